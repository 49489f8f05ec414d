"""Faults of the network that a replica puts between itself and its peers, because it was asked to. PURE.

    loop  -- outward --> [ rules ] --> links to peers        cut: nothing passes      slow: it passes later
    loop  <-- inward --- [ rules ] <-- links from peers      flaky: lost, or twice

A replica does this to itself, so nobody needs privileges, and the real sockets, processes and clocks go on as ever.
Clients are not concerned: it is the network among the replicas that has the fault.

A rule says what happens to messages of one direction, to or from one peer or all of them, until a moment that is part
of the rule: so it ends even if whoever asked for it is gone. Rules live in memory and go with the process; what a
replica holds against a peer goes with *that peer's* process too (`forget`), so a restarted node has a whole network.

Not here: the sockets (`peers`), who is told what when a cluster is cut in two (`launch.network`). While there is no
rule, `active` is False and nothing here is called.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Final, Generic, Literal, TypeVar

import msgspec

from zcluster.types import MS, NEVER, Nanoseconds, ReplicaId

if TYPE_CHECKING:
    from random import Random

    from zcluster.transport.peers import Envelope

MessageT = TypeVar("MessageT")
ItemT = TypeVar("ItemT")

Kind = Literal["cut", "slow", "flaky"]
Direction = Literal["in", "out"]
KINDS: Final[tuple[Kind, ...]] = ("cut", "slow", "flaky")
EVERYBODY: Final = 0

DELAY_MAX: Final[Nanoseconds] = 10_000 * MS
RULES_MAX: Final = 256
HELD_MAX: Final = 10_000
"""Messages under way in a direction; what comes on top is lost, as in a switch whose buffers are full."""
SECOND_COPY_LATE: Final[Nanoseconds] = 50 * MS
"""A message that comes twice comes again up to this much later, hence also out of order."""

Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Rule(msgspec.Struct, frozen=True, array_like=True):
    """peer: a replica id, or EVERYBODY. until: on the machine's monotonic clock; the rule is over then.

    `delay` counts if kind is "slow"; `loss` and `duplicate`, the shares of messages, if it is "flaky". `pid` and
    `start_ticks` name the peer's process at the time of the order; 0: not known.
    """

    kind: Kind
    direction: Direction
    peer: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = EVERYBODY
    until: Annotated[int, msgspec.Meta(ge=0, le=NEVER)] = NEVER
    delay: Annotated[int, msgspec.Meta(ge=0, le=DELAY_MAX)] = 0
    loss: Probability = 0.0
    duplicate: Probability = 0.0
    pid: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)] = 0
    start_ticks: Annotated[int, msgspec.Meta(ge=0, le=NEVER)] = 0


class Order(msgspec.Struct, frozen=True, array_like=True):
    """What a replica is asked: forget all rules of the kinds in `lift`, then keep `rules` as well."""

    lift: tuple[Kind, ...]
    rules: Annotated[tuple[Rule, ...], msgspec.Meta(max_length=RULES_MAX)] = ()


decode_order = msgspec.msgpack.Decoder(Order).decode


class _Link(msgspec.Struct, frozen=True):
    """All rules for one peer and direction, taken together."""

    cut: bool
    delay: Nanoseconds
    loss: float
    duplicate: float


class Rules:
    """The rules in force, and what they mean for one message.

    Args:
        draw: decides which messages are lost or come twice; seeded, so that it can be repeated.
    """

    def __init__(self, draw: Random) -> None:
        self.all: tuple[Rule, ...] = ()
        self.next_end: Nanoseconds = NEVER
        self._draw = draw
        self._links: dict[tuple[Direction, ReplicaId], _Link] = {}

    def obey(self, order: Order) -> None:
        self._keep([*(rule for rule in self.all if rule.kind not in order.lift), *order.rules])

    def expire(self, now: Nanoseconds) -> bool:
        """Forget the rules whose time is over. Returns: whether there were any."""
        if now < self.next_end:
            return False
        self._keep(rule for rule in self.all if rule.until > now)
        return True

    def forget(self, peer: ReplicaId) -> bool:
        """That peer's process is gone: rules about it alone mean nothing to its next one."""
        before = len(self.all)
        self._keep(rule for rule in self.all if rule.peer != peer)
        return len(self.all) < before

    def _keep(self, rules: Iterable[Rule]) -> None:
        self.all = tuple(rules)
        self.next_end = min((rule.until for rule in self.all), default=NEVER)
        self._links.clear()

    def link(self, direction: Direction, peer: ReplicaId) -> _Link:
        found = self._links.get((direction, peer))
        if found is None:
            rules = [r for r in self.all if r.direction == direction and r.peer in (peer, EVERYBODY)]
            passes = 1.0
            for rule in rules:
                passes *= 1 - rule.loss
            found = self._links[direction, peer] = _Link(
                cut=any(rule.kind == "cut" for rule in rules),
                delay=sum(rule.delay for rule in rules),
                loss=1 - passes,
                duplicate=max((rule.duplicate for rule in rules), default=0.0),
            )
        return found

    def fate(self, direction: Direction, peer: ReplicaId, now: Nanoseconds) -> tuple[Nanoseconds, ...]:
        """When copies of a message that is here now go on: none (it is lost), one, or two."""
        link = self.link(direction, peer)
        if link.cut or (link.loss and self._draw.random() < link.loss):
            return ()
        due = now + link.delay
        if link.duplicate and self._draw.random() < link.duplicate:
            return due, due + int(self._draw.random() * SECOND_COPY_LATE)
        return (due,)


class _Held(Generic[ItemT]):
    """Messages under way, the next one due first; those due at one moment in the order in which they came."""

    def __init__(self) -> None:
        self._heap: list[tuple[Nanoseconds, int, ItemT]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_due(self) -> Nanoseconds:
        return self._heap[0][0] if self._heap else NEVER

    def add(self, due: Nanoseconds, item: ItemT) -> None:
        self._number += 1
        heapq.heappush(self._heap, (due, self._number, item))

    def take(self, now: Nanoseconds) -> Iterator[ItemT]:
        while self._heap and self._heap[0][0] <= now:
            yield heapq.heappop(self._heap)[2]

    def hasten(self, now: Nanoseconds) -> None:
        """All are due now."""
        self._heap = [(now, number, item) for _, number, item in sorted(self._heap, key=lambda held: held[:2])]


class FaultyNetwork(Generic[MessageT]):
    """What stands between the event loop and its peer links while there are rules, or messages still under way.

    Args:
        send: hands a message to the link of a replica.
    Attributes:
        active: False: nothing is to be asked here.
        lost, delayed, doubled: messages so far, for `status`.
    """

    def __init__(self, send: Callable[[ReplicaId, bytes], object], draw: Random) -> None:
        self.rules = Rules(draw)
        self.active = False
        self.lost = 0
        self.delayed = 0
        self.doubled = 0
        self._send = send
        self._leaving: _Held[tuple[ReplicaId, bytes]] = _Held()
        self._arriving: _Held[tuple[Envelope, MessageT]] = _Held()

    def obey(self, order: Order, now: Nanoseconds) -> None:
        self.rules.obey(order)
        self._changed(now)

    def forget(self, peer: ReplicaId, now: Nanoseconds) -> None:
        """The process of `peer` is gone."""
        if self.rules.forget(peer):
            self._changed(now)

    def next_deadline(self) -> Nanoseconds:
        """When `inward` is to be called though nothing came."""
        if not self.active:
            return NEVER
        return min(self.rules.next_end, self._leaving.next_due, self._arriving.next_due)

    def severed(self, peer: ReplicaId) -> bool:
        """Is anything cut between that peer and us? A stream, which needs both directions, cannot live then."""
        return self.active and (self.rules.link("in", peer).cut or self.rules.link("out", peer).cut)

    def outward(self, peer: ReplicaId, body: bytes, now: Nanoseconds) -> None:
        """A message of ours: send it, now or later, or not."""
        for due in self._fate("out", peer, now):
            if due <= now:
                self._send(peer, body)
            else:
                self._hold(self._leaving, due, (peer, body))

    def inward(
        self, received: Iterable[tuple[Envelope, MessageT]], now: Nanoseconds
    ) -> list[tuple[Envelope, MessageT]]:
        """Call it once a turn, with what the links have received.

        Returns: what arrives now, messages included that were held until now. What is due to leave, leaves.
        """
        if self.rules.expire(now):
            self._changed(now)
        for peer, body in self._leaving.take(now):
            self._send(peer, body)
        arrived = list(self._arriving.take(now))
        for envelope, message in received:
            for due in self._fate("in", envelope.sender, now):
                if due <= now:
                    arrived.append((envelope, message))
                else:
                    self._hold(self._arriving, due, (envelope, message))
        self._settle()
        return arrived

    def _fate(self, direction: Direction, peer: ReplicaId, now: Nanoseconds) -> tuple[Nanoseconds, ...]:
        fate = self.rules.fate(direction, peer, now)
        self.lost += not fate
        self.doubled += len(fate) > 1
        self.delayed += bool(fate) and fate[0] > now
        return fate

    def _hold(self, held: _Held[ItemT], due: Nanoseconds, item: ItemT) -> None:
        if len(held) < HELD_MAX:
            held.add(due, item)
        else:
            self.lost += 1

    def _changed(self, now: Nanoseconds) -> None:
        """After the rules: on a network that is no longer slow nothing is late."""
        if not any(rule.kind == "slow" for rule in self.rules.all):
            self._leaving.hasten(now)
            self._arriving.hasten(now)
        self._settle()

    def _settle(self) -> None:
        self.active = bool(self.rules.all or self._leaving or self._arriving)
