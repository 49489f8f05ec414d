"""When a leader gives its leadership away by itself. Pure.

    stuck disk     nothing submitted became durable for half an election timeout, while a majority without this replica
                   holds more on its disks than this one (the commit index is past what is durable here)
    lagging loop   three turns of half an election timeout or more within ten seconds
    preference     another replica is preferred, is heard, and has kept up for a while

Why these. A stuck disk that stops everybody is no reason to move: then nothing commits, and nobody could elect anybody.
A loop that hangs for longer is replaced by its followers' timeouts; here it is about one that hangs again and again.
A preferred leader that was given up for one of these reasons would be back, and be given up again, in a circle: each
time that this replica hands back, it waits twice as long for the next.

Not here: how leadership is transferred (consensus), and the measuring (`server`).
"""

from __future__ import annotations

from collections import deque
from typing import Final

from zcluster.consensus.api import Consensus
from zcluster.errors import Busy, InvalidInput, NotLeader
from zcluster.types import MS, NEVER, NO_REPLICA, Index, Nanoseconds, ReplicaId

LAGS: Final = 3
LAGS_WITHIN: Final[Nanoseconds] = 10_000 * MS
LAG_REST: Final[Nanoseconds] = 30_000 * MS
LOOK_EVERY: Final[Nanoseconds] = 500 * MS
STEADY_MIN: Final[Nanoseconds] = 2_000 * MS
STEADY_MAX: Final[Nanoseconds] = 300_000 * MS


class Leading:
    """One replica's readiness to let another one lead.

    Args:
        preferred: who should lead if it can; 0: nobody in particular.
    Attributes:
        patience: how long a stuck disk, or one turn of the loop, may take before it counts.
    """

    def __init__(self, me: ReplicaId, preferred: ReplicaId, election_timeout: Nanoseconds) -> None:
        self.patience: Nanoseconds = election_timeout // 2
        self._me = me
        self.prefer(preferred)
        self._election_timeout = election_timeout
        self._again_at: Nanoseconds = 0
        self._lags: deque[Nanoseconds] = deque(maxlen=LAGS)
        self._lag_again_at: Nanoseconds = 0
        self._look_at: Nanoseconds = 0
        self._steady_since: Nanoseconds = NEVER
        self._steady_for: Nanoseconds = STEADY_MIN
        self._commit_seen: Index = 0

    # -- strain -------------------------------------------------------------------------------------------------------
    def disk_stuck(self, core: Consensus, since: Nanoseconds, now: Nanoseconds) -> bool:
        """Nothing that was submitted has become durable since then. Returns: whether leadership is being handed over
        because of that."""
        if not core.is_leader or now - since < self.patience or now < self._again_at:
            return False
        status = core.status()
        if status.commit_index <= status.match_index.get(self._me, 0):
            return False
        self._again_at = now + self._election_timeout  # an attempt is given up after that long
        return _transfer(core, NO_REPLICA, now)

    def lagged(self, core: Consensus, span: Nanoseconds, now: Nanoseconds) -> bool:
        """A turn of the loop took `span`, or came so much too late. Returns: as `disk_stuck`."""
        if span < self.patience:
            return False
        self._lags.append(now)
        often = len(self._lags) == LAGS and now - self._lags[0] <= LAGS_WITHIN
        if not core.is_leader or not often or now < self._lag_again_at:
            return False
        self._lags.clear()
        self._lag_again_at = now + LAG_REST
        return _transfer(core, NO_REPLICA, now)

    # -- preference ---------------------------------------------------------------------------------------------------
    def prefer(self, preferred: ReplicaId) -> None:
        """As `preferred` above. A node whose disk was wiped, or that was removed and came back, is another replica."""
        self._preferred = preferred if preferred != self._me else NO_REPLICA

    def next_deadline(self, core: Consensus) -> Nanoseconds:
        """When `look` wants to be called; NEVER if somebody else leads, or nobody is preferred."""
        return self._look_at if self._preferred and core.is_leader else NEVER

    def look(self, core: Consensus, now: Nanoseconds) -> bool:
        """Hand over to the preferred replica if it could lead as well. Returns: whether that was begun."""
        if not self._preferred or not core.is_leader:
            self._steady_since = NEVER
            return False
        if now < self._look_at:
            return False
        self._look_at = now + LOOK_EVERY
        status = core.status()
        heard_at = status.active_at.get(self._preferred)
        fit = (
            self._preferred in status.configuration.voters
            and heard_at is not None
            and now - heard_at < self._election_timeout
            and status.match_index.get(self._preferred, 0) >= self._commit_seen
        )
        self._commit_seen = status.commit_index
        if not fit:
            self._steady_since = NEVER
        elif self._steady_since == NEVER:
            self._steady_since = now
        elif now - self._steady_since >= self._steady_for:
            self._steady_since = NEVER
            self._steady_for = min(2 * self._steady_for, STEADY_MAX)
            return _transfer(core, self._preferred, now)
        return False


def _transfer(core: Consensus, to: ReplicaId, now: Nanoseconds) -> bool:
    try:
        core.transfer_leadership(to, now)
    except (NotLeader, InvalidInput, Busy):
        return False
    return True
