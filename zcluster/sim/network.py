"""Links between everybody: loss, duplication, delay (hence reordering), and who is cut off from whom.

Replicas are addressed by their ids, clients by CLIENTS + number. A message that is cut off when it is sent, or when it
would arrive, is lost. Links of checkpoints (`stream`) are connections: in order, never twice, lost only by a cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, Final

from zcluster.sim.world import World
from zcluster.types import MS, Nanoseconds

CLIENTS: Final = 1000
LATENCY: Final[tuple[Nanoseconds, Nanoseconds]] = (MS // 20, MS // 2)
COPY_LATER_MAX: Final[Nanoseconds] = 20 * MS

PARTITIONS: Final = ("halves", "isolate", "one_way", "bridge", "ring", "flapping")


class Network:
    """`latency`: shortest and longest; the longer, the more messages overtake each other. `loss` and `duplication` are
    shares; `slow`: the share of messages that take up to `slow_max` instead. A copy may come much later.

    slow_nodes, flaky_nodes: what is added to the time of each message from or to these, and the share of them that is
    lost (`zcluster slow`, `zcluster flaky`)."""

    def __init__(self, world: World, replicas: Sequence[int]) -> None:
        self.latency = LATENCY
        self.loss = 0.0
        self.duplication = 0.0
        self.slow = 0.0
        self.slow_max: Nanoseconds = 0
        self.slow_nodes: dict[int, Nanoseconds] = {}
        self.flaky_nodes: dict[int, float] = {}
        self.sent = 0
        self._boot = 0
        self._world = world
        self._replicas = tuple(replicas)
        self._random: Random = world.random("network")
        self._cuts: dict[int, dict[tuple[int, int], None]] = {}  # by the fault that made them
        self._cut: dict[tuple[int, int], int] = {}  # how many faults cut this direction
        self._streams: dict[tuple[int, int], Nanoseconds] = {}

    # -- who reaches whom ---------------------------------------------------------------------------------------------

    def reaches(self, source: int, target: int) -> bool:
        return not self._cut or (source, target) not in self._cut

    def cut(self, key: int, pairs: Iterable[tuple[int, int]]) -> None:
        """Cut these directions until `heal(key)`."""
        self.heal(key)
        self._cuts[key] = dict.fromkeys(pairs)
        for pair in self._cuts[key]:
            self._cut[pair] = self._cut.get(pair, 0) + 1

    def heal(self, key: int) -> None:
        for pair in self._cuts.pop(key, {}):
            self._cut[pair] -= 1
            if not self._cut[pair]:
                del self._cut[pair]

    def mend(self, node: int) -> None:
        """Neither slow nor flaky any more."""
        self.slow_nodes.pop(node, None)
        self.flaky_nodes.pop(node, None)

    def heal_all(self) -> None:
        self.loss = self.duplication = self.slow = 0.0
        self.latency = LATENCY
        self.slow_nodes.clear()
        self.flaky_nodes.clear()
        self._cuts.clear()
        self._cut.clear()

    # -- messages -----------------------------------------------------------------------------------------------------

    def send(self, source: int, target: int, deliver: Callable[..., None], *arguments: Any) -> None:
        """Let `deliver(*arguments)` happen at the other end: never, once, or twice."""
        self.sent += 1
        if self._cut and (source, target) in self._cut:
            return
        draw = self._random.random
        if self.loss and draw() < self.loss:
            return
        if self.flaky_nodes and self._is_lost(source, target):
            return
        self._world.after(self._delay(source, target), self._arrive, self._boot, source, target, deliver, arguments)
        if self.duplication and draw() < self.duplication:
            again = self._delay(source, target) + int(draw() * COPY_LATER_MAX)
            self._world.after(again, self._arrive, self._boot, source, target, deliver, arguments)

    def stream(self, source: int, target: int, deliver: Callable[..., None], *arguments: Any) -> None:
        """The same over a connection: in order."""
        if not self.reaches(source, target):
            return
        at = max(self._world.now + self._delay(source, target), self._streams.get((source, target), 0) + 1)
        self._streams[source, target] = at
        self._world.at(at, self._arrive, self._boot, source, target, deliver, arguments)

    def forget(self) -> None:
        """The machine lost its power: what is under way was in its memory."""
        self._boot += 1

    def _arrive(
        self, boot: int, source: int, target: int, deliver: Callable[..., None], arguments: tuple[Any, ...]
    ) -> None:
        if boot == self._boot and (not self._cut or (source, target) not in self._cut):
            deliver(*arguments)

    def _is_lost(self, source: int, target: int) -> bool:
        return any(
            end in self.flaky_nodes and self._random.random() < self.flaky_nodes[end] for end in (source, target)
        )

    def _delay(self, source: int, target: int) -> Nanoseconds:
        draw = self._random.random
        added = self.slow_nodes.get(source, 0) + self.slow_nodes.get(target, 0) if self.slow_nodes else 0
        if self.slow and draw() < self.slow:
            return added + int(draw() * self.slow_max)
        low, high = self.latency
        return added + low + int(draw() * (high - low))


def partition(
    kind: str, replicas: Sequence[int], endpoints: Sequence[int], draw: Random, leader: int = 0
) -> list[tuple[int, int]]:
    """The directions that a partition cuts.

    Args:
        kind: "halves": two groups; "isolate": one replica alone; "one_way": a replica is heard, or hears, no more;
            "bridge": two groups that only one replica reaches both of, not the leader; "ring": each replica reaches
            its two neighbours (fewer than four: a bridge); "flapping" is cut like "isolate", again and again.
        endpoints: clients; each sides with one replica of its group where there are groups.
    """
    order = list(replicas)
    draw.shuffle(order)
    middle = max(1, len(order) // 2)
    if kind == "halves":
        sides = [order[:middle], order[middle:]]
        return _between(_with_clients(sides, endpoints, draw))
    if kind in ("isolate", "flapping"):
        return _between([[order[0]], [*order[1:], *endpoints]])
    if kind == "one_way":
        others = [*order[1:], *(endpoints if draw.random() < 0.5 else ())]
        outward = draw.random() < 0.5
        return [(order[0], other) if outward else (other, order[0]) for other in others]
    if kind == "bridge" or len(order) < 4:
        if order[0] == leader:
            order.append(order.pop(0))
        middle = max(1, (len(order) - 1) // 2)
        return _between([order[1 : 1 + middle], order[1 + middle :]])
    assert kind == "ring"
    count = len(order)
    near = {(order[i], order[(i + step) % count]) for i in range(count) for step in (1, count - 1)}
    return [(a, b) for a in order for b in order if a != b and (a, b) not in near]


def _with_clients(sides: list[list[int]], endpoints: Sequence[int], draw: Random) -> list[list[int]]:
    groups = [list(side) for side in sides]
    for endpoint in endpoints:
        groups[draw.randrange(len(groups))].append(endpoint)
    return groups


def _between(groups: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    return [(a, b) for one in groups for a in one for other in groups if other is not one for b in other]
