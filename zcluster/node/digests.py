"""Digests of the state at agreed indices, for finding out that replicas differ. Pure.

A mark goes through the log like any write, and changes nothing. Where it is applied, at the same index on every
replica, the state is frozen as for a checkpoint and its digest is worked out in slices beside service. What comes out
must be the same everywhere. Who compares: `status` and `verify`, which ask all replicas; nobody else has to.

    mark applied --+-- state is free ------------> running --> known[index] = digest
                   +-- a capture is under way ---> known[index] = None          (no answer; mark again)

A leader marks by itself, every so often, if anything was written since the last mark.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from zcluster.types import NEVER, Index, Nanoseconds

KNOWN_MAX: Final = 16
WAITERS_MAX: Final = 1_000

Waiter = tuple[bytes, int]
"""(client, request)"""
Answer = tuple[Waiter, Index, str | None]


class Digests:
    """`known`: the last ones by index, oldest first. `running`: the index whose digest is being worked out."""

    def __init__(self, interval: Nanoseconds, now: Nanoseconds) -> None:
        """`interval`: between marks by a leader; 0: it makes none by itself."""
        self.known: OrderedDict[Index, str | None] = OrderedDict()
        self.running: Index | None = None
        self._interval = interval
        self._due = now + interval if interval else NEVER
        self._applied = 0
        self._waiters: list[tuple[Waiter, Index]] = []

    def marked(self, index: Index, *, free: bool) -> bool:
        """A mark was applied. `free`: no other capture is under way. Returns: whether the state is to be frozen now."""
        if free and self.running is None:
            self.running = index
            return True
        self._learn(index, None)
        return False

    def done(self, index: Index, digest: str | None) -> None:
        """None: it was given up."""
        if self.running == index:
            self.running = None
        self._learn(index, digest)

    def ask(self, waiter: Waiter, index: Index) -> bool:
        """Somebody wants that digest. False: too many do."""
        if len(self._waiters) >= WAITERS_MAX:
            return False
        self._waiters.append((waiter, index))
        return True

    def answers(self, applied: Index) -> list[Answer]:
        """Who can be answered by now, with None where there will never be a digest."""
        if not self._waiters:
            return []
        waiting, found = [], []
        for waiter, index in self._waiters:
            if index in self.known or (index <= applied and index != self.running):
                found.append((waiter, index, self.known.get(index)))
            else:
                waiting.append((waiter, index))
        self._waiters = waiting
        return found

    # -- marks by a leader itself -------------------------------------------------------------------------------------
    def next_deadline(self, applied_total: int) -> Nanoseconds:
        """NEVER while nothing new was written: an idle cluster is not woken up."""
        return self._due if applied_total > self._applied else NEVER

    def wants_mark(self, applied_total: int, now: Nanoseconds) -> bool:
        """True once each interval. `applied_total`: frames applied so far, marks included."""
        if now < self.next_deadline(applied_total):
            return False
        self._due = now + self._interval
        self._applied = applied_total + 1  # the mark itself is nothing new
        return True

    def _learn(self, index: Index, digest: str | None) -> None:
        self.known[index] = digest
        while len(self.known) > KNOWN_MAX:
            self.known.popitem(last=False)
