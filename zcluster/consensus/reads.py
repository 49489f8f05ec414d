"""Quorum rounds of one leadership: batched read barriers, the lease, and what bounded reads rest on.

A *round* is one set of heartbeats with one number. A majority's replies prove that nobody else had been elected when
the round was sent; so whatever was committed then covers every write acknowledged before.

    read A --+                      read B, C -- wait --+
             v                                          v
        round 7 sent ---- majority replied ------- round 8 sent ---- majority replied
                          A is answered                              B and C are answered

Reads that arrive while a round is out wait for the next one, together. Without a commit in the current term no read
joins a round: the leader does not know yet what its predecessors acknowledged (thesis §6.4).

Does not live here: who replied (`progress`), the messages, the clock.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from zcluster.types import Index, Nanoseconds

OPEN_ROUNDS_MAX: Final = 64


class Round(NamedTuple):
    """`commit_index`: as known when the round was sent, 0 before the first commit of the term."""

    number: int
    sent_at: Nanoseconds
    commit_index: Index
    tokens: list[int]


class Rounds:
    """Of one leadership. `confirmed`: the last round that a majority answered."""

    __slots__ = ("_open", "_reads_out", "confirmed", "latest", "lease_ended", "waiting")

    def __init__(self) -> None:
        self.latest = 0
        self.confirmed: Round | None = None
        self.lease_ended = False
        self.waiting: list[int] = []
        self._open: deque[Round] = deque()
        self._reads_out = 0  # number of the last round that carries reads

    def open(self, now: Nanoseconds, commit_index: Index) -> int:
        """Start a round at `now` and give it the waiting reads (unless `commit_index` is 0). Returns its number."""
        self.latest += 1
        tokens: list[int] = []
        if len(self._open) >= OPEN_ROUNDS_MAX:
            tokens = self._open.popleft().tokens  # a later round serves earlier reads as well
        if commit_index and self.waiting:
            tokens = tokens + self.waiting
            self.waiting = []
        if tokens:
            self._reads_out = self.latest
        self._open.append(Round(self.latest, now, commit_index, tokens))
        return self.latest

    def confirm(self, number: int) -> list[tuple[int, Index]]:
        """A majority answered round `number` or a later one. Returns the reads that may be served: (token, index)."""
        served: list[tuple[int, Index]] = []
        rounds = self._open
        while rounds and rounds[0].number <= number:
            self.confirmed = done = rounds.popleft()
            for token in done.tokens:
                served.append((token, done.commit_index))
        return served

    @property
    def unconfirmed(self) -> bool:
        return bool(self._open)

    @property
    def reads_due(self) -> bool:
        """Reads wait and no round with reads is out."""
        return bool(self.waiting) and not (self._open and self._open[0].number <= self._reads_out)

    def lease_holds(self, now: Nanoseconds, span: Nanoseconds) -> bool:
        """Whether nobody can have been elected by `now`; counts from the send time of the last confirmed round."""
        return not self.lease_ended and self.confirmed is not None and now < self.confirmed.sent_at + span

    def unanswered(self) -> list[int]:
        """Leadership ends: the tokens that get no answer."""
        return [token for round_ in self._open for token in round_.tokens] + self.waiting
