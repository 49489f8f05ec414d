"""One core under a microscope: step messages in, look at exactly what comes out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

from zcluster.consensus import invariants
from zcluster.consensus.api import (
    AnyMessage,
    AppendReply,
    AppendRequest,
    Heartbeat,
    PreVoteReply,
    Ready,
    Recovered,
    Settings,
    VoteReply,
)
from zcluster.consensus.raft import Raft
from zcluster.types import MS, Configuration, Entry, HardState, WriteBatch

T = TypeVar("T")


def entries(first: int, *terms: int, data: bytes = b"x") -> tuple[Entry, ...]:
    """Entries first, first + 1, .. of the given terms."""
    return tuple(Entry(first + i, term, 0, data) for i, term in enumerate(terms))


class Solo:
    """A core and what it said. `auto`: writes are durable at once, and what waited for them is sent."""

    core_class: Any = Raft
    core: Any

    def __init__(
        self,
        replica_id: int = 1,
        voters: Sequence[int] = (1, 2, 3),
        *,
        term: int = 0,
        voted_for: int = 0,
        log: Sequence[Entry] = (),
        settings: Settings | None = None,
        seed: int = 0,
        auto: bool = True,
        incarnation: int = 1,
        now: int = 1_000 * MS,
        **flags: Any,
    ) -> None:
        self.now = now
        recovered = Recovered(
            hard_state=HardState(term, voted_for),
            configuration=flags.pop("configuration", Configuration(tuple(voters))),
            entries=log,
            **flags,
        )
        rng = random.Random(seed)
        self.core = self.core_class(replica_id, incarnation, settings or Settings(), recovered, rng, self.now)
        self.auto = auto
        self.sent: list[tuple[int, AnyMessage]] = []
        self.kept: list[tuple[int, int, AnyMessage]] = []
        self.writes: list[WriteBatch] = []
        self.committed: list[Entry] = []
        self.reads: dict[int, int] = {}
        self.reads_failed: list[int] = []
        self.pump()

    def pump(self) -> list[Ready]:
        readys = []
        while True:
            before = invariants.summarize(self.core)
            ready = self.core.ready()
            invariants.check_state(self.core)
            invariants.check_step(before, invariants.summarize(self.core))
            if ready is None:
                return readys
            readys.append(ready)
            self.sent += ready.messages
            if ready.write:
                self.writes.append(ready.write)
            self.kept += [(ready.seq, to, message) for to, message in ready.messages_after_persist]
            self.committed += ready.committed
            self.reads.update(ready.reads)
            self.reads_failed += ready.reads_failed
            if self.auto:
                self.persist(ready.seq, pump=False)

    def persist(self, seq: int | None = None, *, pump: bool = True) -> None:
        seq = self.core.writes.seq if seq is None else seq
        self.core.persisted(seq, self.now)
        self.sent += [(to, message) for kept, to, message in self.kept if kept <= seq]
        self.kept = [kept for kept in self.kept if kept[0] > seq]
        if pump:
            self.pump()

    def step(self, sender: int, *messages: AnyMessage, incarnation: int = 1) -> None:
        for message in messages:
            self.core.step(sender, incarnation, message, self.now)
        self.pump()

    def wait(self, span: int) -> None:
        self.now += span
        self.core.deadline(self.now)
        self.pump()

    def time_out(self) -> None:
        self.now = max(self.now, self.core.next_deadline())
        self.wait(0)

    def take(self) -> list[tuple[int, AnyMessage]]:
        sent, self.sent = self.sent, []
        return sent

    def last(self, kind: type[T], to: int | None = None) -> T:
        return [m for receiver, m in self.sent if isinstance(m, kind) and to in (None, receiver)][-1]

    def said(self, kind: type) -> int:
        return sum(isinstance(message, kind) for _, message in self.sent)

    # -- whole stories ------------------------------------------------------------------------------------------------

    def others(self) -> list[int]:
        return [voter for voter in self.core.membership.current.voters if voter != self.core.id]

    def become_leader(self) -> None:
        """By the votes of as many others as it takes; the no-op is not acknowledged by anybody yet."""
        self.time_out()
        for other in self.others():
            if self.core.role == "pre_candidate":
                self.step(other, PreVoteReply(self.core.term + 1, True))
        for other in self.others():
            if self.core.role == "candidate":
                self.step(other, VoteReply(self.core.term, True))
        assert self.core.is_leader

    def acknowledge(self, sender: int, index: int | None = None, **fields: Any) -> None:
        index = self.core.log.last_index if index is None else index
        self.step(sender, AppendReply(self.core.term, True, index, **fields))

    def lead(self) -> None:
        """Leader, and everything is committed."""
        self.become_leader()
        for other in self.others():
            self.acknowledge(other)
        assert self.core.commit_index == self.core.log.last_index

    def propose(self, data: bytes = b"x") -> int:
        index, _ = self.core.propose(data, self.now)
        self.pump()
        return index

    def follow(self, leader: int = 2, term: int = 1, *, round_: int = 1, **fields: Any) -> None:
        self.step(leader, Heartbeat(term, round_, 0, **fields))

    def append(self, leader: int, term: int, prev: tuple[int, int], *new: Entry, commit: int = 0) -> None:
        self.step(leader, AppendRequest(term, prev[0], prev[1], commit, new))

    def terms(self) -> list[int]:
        return [entry.epoch for entry in self.core.log.tail(self.core.log.first_index)]
