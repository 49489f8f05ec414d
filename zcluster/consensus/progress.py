"""What the leader knows about one follower or learner, and whether it may send more to it.

              rejected                     falls behind the log in memory
    +-----------+   +------------- PROBE ------------------+
    |           v   |  one request, then wait for the reply |
    |             PROBE <---- snapshot sent, failed ---- SNAPSHOT
    |               | accepted                              ^
    +-- REPLICATE <-+  pipelined, bounded window            |
            +-----------------------------------------------+

A new incarnation of the peer goes back to PROBE with match_index 0: what its predecessor acknowledged is not held
against it. Does not live here: messages, the log, quorums.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from zcluster.types import Index, Nanoseconds

PROBE: Final = "probe"
REPLICATE: Final = "replicate"
SNAPSHOT: Final = "snapshot"


class Progress:
    """Invariant: match_index < next_index; the window holds at most `inflight_max` requests.

    sent_at: when the last request left or was answered; a silent pipeline is nudged by it.
    active_at: when the peer was last heard in this term (for check-quorum); before it was, when the term began.
    heard: whether it was heard in this term at all.
    acked_round: last heartbeat round that the peer answered.
    repair: the peer says it is damaged; then its match_index moves but does not count. `repair_target`: what it must
    match before it is told otherwise; None before it said so.
    """

    __slots__ = (
        "acked_round",
        "active_at",
        "commit_sent",
        "heard",
        "incarnation",
        "inflight",
        "match_index",
        "next_index",
        "probe_sent",
        "repair",
        "repair_done",
        "repair_target",
        "sent_at",
        "snapshot_index",
        "state",
    )

    def __init__(self, next_index: Index, incarnation: int, now: Nanoseconds) -> None:
        self.active_at = now
        self.heard = False
        self.acked_round = 0
        self.reset(next_index, incarnation, now)

    def reset(self, next_index: Index, incarnation: int, now: Nanoseconds) -> None:
        """A new life of the peer, or of this leader: nothing is known of its log.

        `acked_round` stays: the old incarnation's confirmation and its promise outlive it (a restarted replica holds
        its vote for one election timeout).
        """
        self.incarnation = incarnation
        self.match_index = 0
        self.commit_sent = 0
        self.repair = False
        self.repair_done = False
        self.repair_target: Index | None = None
        self.inflight: deque[Index] = deque()
        self.become_probe(next_index, now)

    def become_probe(self, next_index: Index, now: Nanoseconds, *, wait: bool = False) -> None:
        """`wait`: send nothing before the next heartbeat reply that comes an interval later."""
        self.state = PROBE
        self.next_index = max(next_index, self.match_index + 1)
        self.probe_sent = wait
        self.snapshot_index = 0
        self.sent_at = now
        self.inflight.clear()

    def become_snapshot(self, index: Index, now: Nanoseconds) -> None:
        self.state = SNAPSHOT
        self.snapshot_index = index
        self.sent_at = now
        self.inflight.clear()

    def may_send(self, inflight_max: int) -> bool:
        if self.state == REPLICATE:
            return len(self.inflight) < inflight_max
        return self.state == PROBE and not self.probe_sent

    def sent(self, last_index: Index, now: Nanoseconds) -> None:
        """A request whose last entry is `last_index` left (prev_index for an empty one)."""
        self.sent_at = now
        if self.state == PROBE:
            self.probe_sent = True
        elif last_index >= self.next_index:
            self.inflight.append(last_index)
            self.next_index = last_index + 1

    def accepted(self, match_index: Index, now: Nanoseconds) -> bool:
        """A successful reply; whether match_index moved. A late one moves nothing."""
        moved = match_index > self.match_index
        if moved:
            self.match_index = match_index
            self.sent_at = now
            inflight = self.inflight
            while inflight and inflight[0] <= match_index:
                inflight.popleft()
        if self.next_index <= self.match_index:
            self.next_index = self.match_index + 1
        if self.state == PROBE and match_index >= self.match_index:
            self.state = REPLICATE
            self.next_index = self.match_index + 1
        elif self.state == SNAPSHOT and self.match_index >= self.snapshot_index:
            self.become_probe(self.match_index + 1, now)
            self.state = REPLICATE
        return moved

    def rejection_is_stale(self, prev_index: Index) -> bool:
        """A rejection of a request that is no longer the one in question."""
        if prev_index <= self.match_index or self.state == SNAPSHOT:
            return True
        return self.state == PROBE and prev_index != self.next_index - 1

    def note_repair(self, repair: bool, last_index: Index) -> bool:
        """What a reply says about the peer's damage; it cannot fall back within one incarnation. Whether it ended."""
        if not repair:
            ended, self.repair, self.repair_done = self.repair, False, True
            return ended
        if not self.repair_done:
            self.repair = True
            if self.repair_target is None:
                self.repair_target = last_index
        return False

    @property
    def counted_index(self) -> Index:
        """What this peer adds to a majority."""
        return 0 if self.repair else self.match_index

    @property
    def repaired(self) -> bool:
        """Damaged, but it holds by now whatever it may have acknowledged before."""
        return self.repair and self.repair_target is not None and self.match_index >= self.repair_target
