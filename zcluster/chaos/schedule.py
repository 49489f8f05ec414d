"""Which faults a run does, when, for how long, and to whom: drawn from a seed. PURE.

    |--- every ---|--- every ---|--- every ---|
       [ fault ]      [fault]     [  fault  ]           the rest is calm, so that service comes back

A fault never overlaps the next one, and harms a minority only, unless its kind is in STOPPING.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final

import msgspec

from zcluster.errors import InvalidInput

DEFAULT_KINDS: Final = ("kill", "pause", "partition", "slow", "flaky")
STOPPING: Final = ("kill-all", "split")
"""These take the majority away for as long as they last: writes wait meanwhile."""
KINDS: Final = (*DEFAULT_KINDS, *STOPPING)
OF_PROCESSES: Final = ("kill", "pause", "kill-all")
"""The kinds that a single node can have."""

LEADER: Final = "leader"
EVERY_S_MIN: Final = 1.0
FAULTS_MAX: Final = 100_000
BEGINS: Final = 0.2
SHORTEST: Final = 0.2
LONGEST: Final = 0.5
"""Where in its share of the time a fault begins, and between which parts of it its length is drawn."""


class Fault(msgspec.Struct, frozen=True):
    """One fault of a schedule.

    at_s, lasts_s: seconds, `at_s` from the start of the run. whom: nodes, or "leader", who is found when it is time.
    shape: of a partition, "isolate", "in", "out", "minority" or "bridge". amount: ms of `slow`, the share lost of
    `flaky`; doubled: the share that comes twice.
    """

    number: int
    at_s: float
    lasts_s: float
    kind: str
    whom: tuple[str, ...]
    shape: str = ""
    amount: float = 0.0
    doubled: float = 0.0

    def __str__(self) -> str:
        return describe(self, self.whom)


def describe(fault: Fault, nodes: Sequence[str]) -> str:
    """In words, with the nodes that it met.

    >>> describe(Fault(1, 0.0, 2.0, "partition", ("leader",), "out"), ["leader n3"])
    'partition: nobody hears leader n3'
    """
    names = " ".join(nodes)
    if fault.kind == "partition":
        shapes = {
            "in": "{} hears nobody",
            "out": "nobody hears {}",
            "bridge": "two halves, {} in touch with both",
        }
        return "partition: " + shapes.get(fault.shape, "{} cut off").format(names)
    if fault.kind == "slow":
        return f"slow {names}: {fault.amount:.0f} ms each way"
    if fault.kind == "flaky":
        return f"flaky {names}: {100 * fault.amount:.0f} % lost, {100 * fault.doubled:.0f} % twice"
    if fault.kind == "split":
        return "split: every node alone"
    return f"{fault.kind} {names}"


def parse_kinds(text: str) -> tuple[str, ...]:
    """Names with commas between. Raises: InvalidInput.

    >>> parse_kinds("kill,slow")
    ('kill', 'slow')
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in KINDS:
            raise InvalidInput(f"no fault {name!r}; there are {', '.join(KINDS)}, with commas between")
    if not names:
        raise InvalidInput(f"name some faults: {', '.join(KINDS)}, with commas between")
    return tuple(kind for kind in KINDS if kind in names)


def usable_kinds(kinds: Sequence[str], nodes: int) -> tuple[str, ...]:
    """Of `kinds`, those that so many nodes can have. One or two nodes lose their majority with any of them, so there a
    kill or pause stops the service while it lasts; two have no minority that could be cut off. Raises: InvalidInput."""
    usable = tuple(k for k in kinds if nodes > 2 or k in OF_PROCESSES or (nodes == 2 and k in ("slow", "flaky")))
    if not usable:
        raise InvalidInput(
            f"a cluster of {nodes} node{'s' * (nodes > 1)} cannot have {', '.join(kinds)}; "
            f"it can have {', '.join(usable_kinds(KINDS, nodes))}"
        )
    return usable


def draw_schedule(
    seed: int, nodes: Sequence[str], *, every_s: float, for_s: float, kinds: Sequence[str] = DEFAULT_KINDS
) -> list[Fault]:
    """The same arguments give the same faults. Raises: InvalidInput."""
    if every_s < EVERY_S_MIN:
        raise InvalidInput(f"a fault at most every {EVERY_S_MIN:g} s: an election takes that long; not {every_s:g} s")
    if for_s < every_s:
        raise InvalidInput(f"a run of {for_s:g} s has no room for a fault every {every_s:g} s")
    if for_s / every_s > FAULTS_MAX:
        raise InvalidInput(f"more than {FAULTS_MAX:,} faults in one run; make it shorter")
    kinds = usable_kinds(kinds, len(nodes))
    draw = Random(f"chaos {seed}")
    faults = []
    for number in range(1, int(for_s / every_s + 1e-9) + 1):
        at_s = (number - 1 + BEGINS) * every_s
        lasts_s = every_s * draw.uniform(SHORTEST, LONGEST)
        faults.append(_draw_fault(draw, number, round(at_s, 3), round(lasts_s, 3), draw.choice(kinds), nodes))
    return faults


def _draw_fault(draw: Random, number: int, at_s: float, lasts_s: float, kind: str, nodes: Sequence[str]) -> Fault:
    one: tuple[str, ...] = (LEADER,) if draw.random() < 0.5 else (draw.choice(nodes),)
    if kind == "partition":
        shapes = ["isolate", "in", "out"]
        shapes += ["minority", "bridge"] if len(nodes) >= 5 else []
        shape = draw.choice(shapes)
        if shape == "minority":
            one = tuple(sorted(draw.sample(nodes, (len(nodes) - 1) // 2)))
        elif shape == "bridge":
            one = (draw.choice(nodes),)
        return Fault(number, at_s, lasts_s, kind, one, shape)
    if kind == "slow":
        return Fault(number, at_s, lasts_s, kind, one, amount=float(draw.choice((5, 20, 50, 100))))
    if kind == "flaky":
        return Fault(
            number, at_s, lasts_s, kind, one, amount=draw.choice((0.02, 0.05, 0.1, 0.2)), doubled=draw.choice((0, 0.1))
        )
    return Fault(number, at_s, lasts_s, kind, tuple(nodes) if kind in STOPPING else one)


def halves(nodes: Sequence[str], bridge: str) -> tuple[list[str], list[str]]:
    """The two sides around a bridge; with it, each is a majority of an odd number of nodes.

    >>> halves(["n1", "n2", "n3", "n4", "n5"], "n2")
    (['n1', 'n3'], ['n4', 'n5'])
    """
    rest = [name for name in nodes if name != bridge]
    middle = (len(rest) + 1) // 2
    return rest[:middle], rest[middle:]
