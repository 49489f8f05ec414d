"""Which followers get new entries at once, and which a little later, in larger batches.

A commit needs the leader and a few others, not all. On one machine every further copy takes processor and disk away
from the ones that are waited for, so the followers that no commit waits for (the *rear*) get what has gathered after
`delay`, with one write and one sync for all of it.

    n1 (leader)   e1   e2   e3   e4   e5
    vanguard      e1   e2   e3   e4   e5            answers: commit
    rear                         e1-e4      e5      the same entries, fewer turns and syncs

Only what was appended since the last release is held back: a follower that is further behind catches up at full speed.

Safety does not depend on this: it only delays requests, and a majority still means what it meant. Nothing is held back
unless every member of the vanguard is healthy; and when a delay ends the vanguard is chosen anew, the furthest ahead
first, so one that has become slow is replaced by one that is not.

Does not live here: messages, the log, what a majority holds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

from zcluster.consensus import quorum
from zcluster.consensus.progress import REPLICATE, Progress
from zcluster.types import NEVER, Index, Nanoseconds, ReplicaId

HELD_BYTES_MAX: Final = 256 << 10
"""More than this is not held back from anybody."""


class Vanguard:
    """Of one leadership. members: as many others as make a majority together with the leader.

    release_at: when the rear gets what was held back; NEVER while nothing is. released: up to this index nothing is
    held back any more.
    """

    __slots__ = ("_delay", "_quorum_of", "members", "release_at", "released")

    def __init__(self, delay: Nanoseconds, quorum_of: Callable[[int], int] = quorum.majority) -> None:
        """`delay`: how long an entry may be held back; 0: never. `quorum_of`: copies that a commit needs."""
        self._delay = delay
        self._quorum_of = quorum_of
        self.members: frozenset[ReplicaId] = frozenset()
        self.release_at: Nanoseconds = NEVER
        self.released: Index = 0

    def choose(self, progress: Mapping[ReplicaId, Progress], voters: Collection[ReplicaId], last_index: Index) -> None:
        """Release everything up to `last_index`, and decide who is in the vanguard from now on.

        Those furthest ahead; among equals those that were in it before, then the lowest ids."""
        needed = self._quorum_of(len(voters)) - 1
        others = [voter for voter in voters if voter in progress]
        others.sort(key=lambda voter: (-progress[voter].counted_index, voter not in self.members, voter))
        self.members = frozenset(others[:needed])
        self.release_at = NEVER
        self.released = last_index

    def is_healthy(self, progress: Mapping[ReplicaId, Progress]) -> bool:
        """Whether every member takes entries as they come, so that others may wait."""
        return bool(self._delay and self.members) and all(
            (member := progress.get(replica)) is not None and member.state == REPLICATE and not member.repair
            for replica in self.members
        )

    def hold_back(self, now: Nanoseconds) -> None:
        """Something was not sent at `now`; it leaves a delay after the first such thing at the latest."""
        self.release_at = min(self.release_at, now + self._delay)
