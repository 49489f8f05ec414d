"""Nodes come and go under load: 3 → 5 → 3 under 64 writing callers, and how soon a new node with much to learn votes.

The pause is the longest stretch without any acknowledged write while the change runs (and, beside it, in as long a time
before it). Afterwards every key must hold the last number that its caller was told was written, or a later one.

    python benchmarks/scale.py [--rounds 5] [--quick] [--json FILE]
"""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import Any

from common import facts, median, options, say_header, say_table, spread, verdict, write

import zcluster

CALLERS = 64
BEFORE_S = 2.0
PAUSE_TARGET_MS = 200.0
KEYS = 100_000
VALUE = bytes(256)
VOTER_TARGET_S = 5.0
FAIRNESS = (
    f"3 → 5 → 3: {CALLERS} callers in a closed loop, 256 B values, every write synced, no workers",
    f"new node: {KEYS:,} keys of 256 B, then 3 → 4; from the command to the answer that it votes, no load meanwhile",
)


class Callers:
    """Each writes growing numbers to its own key and remembers the last one acknowledged."""

    def __init__(self, client: zcluster.Client) -> None:
        self._kv = client.aio.kv
        self.acknowledged = [0] * CALLERS
        self.moments: list[float] = []
        self.errors = 0
        self.stop = False

    async def call(self, caller: int) -> None:
        number = 0
        while not self.stop:
            number += 1
            try:
                await self._kv.put(f"caller/{caller}", b"%0256d" % number)
            except zcluster.Error:
                self.errors += 1
            else:
                self.acknowledged[caller] = number
                self.moments.append(time.monotonic())

    async def lost(self) -> int:
        """How many callers were told of a write that is not there."""
        found = [await self._kv.get(f"caller/{caller}") for caller in range(CALLERS)]
        return sum(int(value or 0) < last for value, last in zip(found, self.acknowledged, strict=True))

    def pause_ms(self, begin: float, end: float) -> float:
        """The longest stretch without an acknowledgement in [begin, end]."""
        inside = [begin, *(moment for moment in self.moments if begin <= moment <= end), end]
        return 1000 * max(later - earlier for earlier, later in pairwise(inside))


async def change_under_load(cluster: zcluster.LocalCluster, client: zcluster.Client) -> dict[str, Any]:
    callers = Callers(client)
    running = [asyncio.create_task(callers.call(i)) for i in range(CALLERS)]
    started = time.monotonic()
    await asyncio.sleep(BEFORE_S)
    measured: dict[str, Any] = {"pause_before_ms": callers.pause_ms(started + 0.5, time.monotonic())}
    for count, name in ((5, "up"), (3, "down")):
        begin = time.monotonic()
        await asyncio.to_thread(cluster.scale, count)
        measured[f"{name}_s"] = time.monotonic() - begin
        await asyncio.sleep(0.3)
        measured[f"{name}_pause_ms"] = callers.pause_ms(begin, time.monotonic())
    callers.stop = True
    await asyncio.gather(*running)
    return {**measured, "errors": callers.errors, "writes": len(callers.moments), "lost": await callers.lost()}


def measure_change(leader_goes: bool) -> dict[str, Any]:
    """`leader_goes`: it is one of the two that are removed."""
    with zcluster.LocalCluster(nodes=3, workers=0) as cluster, cluster.connect() as client:
        if leader_goes:
            cluster.scale(5)
            while (leader := cluster.wait_leader()).name in ("n1", "n2", "n3"):
                leader.restart()
            cluster.wait_healthy()
        return asyncio.run(change_under_load(cluster, client))


async def fill(client: zcluster.Client, keys: int) -> None:
    for first in range(0, keys, 10_000):
        await asyncio.gather(*(client.aio.kv.put(f"key/{i}", VALUE) for i in range(first, min(keys, first + 10_000))))


def measure_join(keys: int) -> float:
    with zcluster.LocalCluster(nodes=3, workers=0) as cluster, cluster.connect() as client:
        asyncio.run(fill(client, keys))
        cluster.checkpoint()
        begin = time.monotonic()
        cluster.scale(4)
        return time.monotonic() - begin


def main() -> None:
    arguments = options("Scaling under load.", rounds=5).parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    known = facts(rounds=rounds)
    say_header("Nodes come and go", known, FAIRNESS)
    changes = [measure_change(leader_goes=False) for _ in range(rounds)]
    leader_goes = [measure_change(leader_goes=True) for _ in range(rounds)]
    joins = [measure_join(KEYS // 10 if arguments.quick else KEYS) for _ in range(rounds)]

    def row(name: str, key: str, target: float | None = None, of: list[dict[str, Any]] = changes) -> list[str]:
        values = [one[key] for one in of]
        return [name, spread(values), verdict(max(values), target, True) if target is not None else ""]

    say_table(
        [
            ["", "median (range)", "target, for the worst"],
            row("longest pause before it, ms", "pause_before_ms"),
            row("longest pause, 3 → 5, ms", "up_pause_ms", PAUSE_TARGET_MS),
            row("longest pause, 5 → 3, ms", "down_pause_ms", PAUSE_TARGET_MS),
            row("  where the leader goes, ms", "down_pause_ms", PAUSE_TARGET_MS, leader_goes),
            row("3 → 5 takes, s", "up_s"),
            row("5 → 3 takes, s", "down_s"),
            row("callers whose acknowledged write is lost", "lost", 0, changes + leader_goes),
            row("errors", "errors", None, changes + leader_goes),
            ["new node votes after, s", spread(joins), verdict(median(joins), VOTER_TARGET_S, True)],
        ]
    )
    measured = {"changes": changes, "leader_goes": leader_goes, "join_s": joins}
    write(arguments.json, "scale", known, measured)


if __name__ == "__main__":
    main()
