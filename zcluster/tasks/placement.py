"""Which workers may take a task now, and how much: the idle ones, those that may hold more, those that sit on many.

A worker holds one task; more only while what it holds is worth PREFETCH_NS at most. Pure; the choice among those that
may is a policy's (see `policy`).
"""

from __future__ import annotations

from typing import Final

from zcluster.tasks.policy import Policy
from zcluster.tasks.records import Worker
from zcluster.types import MS, NEVER, Nanoseconds

PREFETCH_NS: Final = 2 * MS
PREFETCH_MAX: Final = 128
STUCK_NS: Final = 5 * MS
"""A worker that holds several tasks and has been silent for so long has met one that is longer than expected."""


class Placement:
    """Args: a policy over the workers that hold nothing, one over those that may hold more."""

    def __init__(self, idle: Policy, busy: Policy) -> None:
        self.idle, self.busy = idle, busy
        self.occupied: set[int] = set()  # keys of workers that hold something
        self.deep: dict[int, Worker] = {}  # those that hold more than one
        self._place: dict[int, Policy] = {}

    def settle(self, worker: Worker) -> None:
        """Put a worker where it belongs after its load, or whether it is silent, has changed."""
        key, load = worker.key, len(worker.assigned)
        if load:
            self.occupied.add(key)
        else:
            self.occupied.discard(key)
        if load > 1:
            self.deep[key] = worker
        else:
            self.deep.pop(key, None)
        place: Policy | None = None
        if not worker.silent:
            if load == 0:
                place = self.idle
            elif load < PREFETCH_MAX and worker.work < PREFETCH_NS:
                place = self.busy
        before = self._place.get(key)
        if before is not place:
            self._unplace(key)
            if place is not None:
                place.add(key, load)
                self._place[key] = place
        elif place is not None:
            place.update(key, load)

    def remove(self, key: int) -> None:
        self._unplace(key)
        self.deep.pop(key, None)
        self.occupied.discard(key)

    def _unplace(self, key: int) -> None:
        place = self._place.pop(key, None)
        if place is not None:
            place.remove(key)

    @staticmethod
    def room(worker: Worker, nanoseconds: int) -> int:
        """Tasks of such a length that a worker may be given, beside what it holds."""
        return min(PREFETCH_MAX - len(worker.assigned), (PREFETCH_NS - worker.work) // max(nanoseconds, 1000))

    def stuck(self, now: Nanoseconds) -> list[Worker]:
        """Workers that should share, since somebody has nothing to do while they sit on several tasks."""
        if not self.deep or self.idle.pick() is None:
            return []
        return [w for w in self.deep.values() if not w.recalling and now - w.heard >= STUCK_NS]

    def next_stuck(self) -> Nanoseconds:
        """When to ask `stuck` again if nothing happens."""
        if not self.deep or self.idle.pick() is None:
            return NEVER
        return min((w.heard + STUCK_NS for w in self.deep.values() if not w.recalling), default=NEVER)
