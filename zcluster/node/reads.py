"""Reads on their way: which barrier they wait for, then which index. Pure.

    arrived (linearizable, lease) --ask--> waiting for a barrier --confirmed--> waiting for an index --serve--> answered
    arrived (bounded)             ---------------------------------------------^

All reads of one kind that arrive in one turn share a barrier: they cost the cluster one round, however many they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from zcluster.consensus.api import Consensus
from zcluster.errors import NotLeader
from zcluster.node import members
from zcluster.types import Index, Nanoseconds

READS_WAITING_MAX: Final = 100_000

Read = tuple[bytes, int, list[Any] | members.Request]
"""(client, request, ops); or a wish to change what is read, the configuration (`members`)"""


class Reads:
    """Every read that is here and not answered yet, at most READS_WAITING_MAX of them."""

    def __init__(self) -> None:
        self._arrived: list[list[Read]] = [[], []]  # by wire.LINEARIZABLE, wire.LEASE: since the last turn
        self._barriers: dict[int, list[Read]] = {}
        self._next_token = 1
        self._indexed: deque[tuple[Index, list[Read]]] = deque()
        self._count = 0

    @property
    def full(self) -> bool:
        return self._count >= READS_WAITING_MAX

    def arrive(self, consistency: int, read: Read) -> None:
        """A linearizable or lease read, on the leader."""
        self._count += 1
        self._arrived[consistency].append(read)

    def arrive_at(self, index: Index, read: Read) -> None:
        """A read that may be served once `index` is applied."""
        self._count += 1
        self._indexed.append((index, [read]))

    def ask(self, core: Consensus, now: Nanoseconds) -> list[Read]:
        """One barrier for all of a kind that arrived. Returns those that must go elsewhere: this is no leader."""
        refused: list[Read] = []
        for lease, arrived in enumerate(self._arrived):
            if not arrived:
                continue
            self._arrived[lease] = []
            token = self._next_token
            self._next_token += 1
            try:
                core.read_barrier(token, now, lease=bool(lease))
            except NotLeader:
                self._count -= len(arrived)
                refused += arrived
            else:
                self._barriers[token] = arrived
        return refused

    def confirmed(self, token: int, index: Index) -> None:
        self._indexed.append((index, self._barriers.pop(token)))

    def failed(self, token: int) -> list[Read]:
        """The barrier lost its leader. Returns the reads that must go elsewhere."""
        reads = self._barriers.pop(token)
        self._count -= len(reads)
        return reads

    def serve(self, last_applied: Index, answer: Callable[[Read], None]) -> None:
        """Hand every read whose index is applied to `answer`."""
        if not self._indexed:
            return
        kept: deque[tuple[Index, list[Read]]] = deque()
        for index, reads in self._indexed:
            if index > last_applied:
                kept.append((index, reads))
                continue
            self._count -= len(reads)
            for read in reads:
                answer(read)
        self._indexed = kept
