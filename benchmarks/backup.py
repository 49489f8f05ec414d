"""A backup of 100,000 keys while the cluster serves: how long it takes, and what the writers notice of it.

Callers write all the time; stretches with a backup (the command, a process of its own) and without take turns, each as
long as the backup before. Compared is the 99th percentile of the writes of both kinds of stretches.

    python benchmarks/backup.py [--rounds 5] [--callers 16] [--quick] [--json FILE]
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import facts, median, options, say_header, say_table, spread, verdict, write

import zcluster

KEYS = 100_000
VALUE_SIZE = 256
SECONDS_MAX = 2.0
P99_RATIO_MAX = 1.5
FILLERS = 256
FAIRNESS = (
    f"3 nodes, defaults (raft, fsync, ipc), {KEYS:,} keys of {VALUE_SIZE} B; writes of {VALUE_SIZE} B to random keys",
    "the backup's time is that of the whole command, the interpreter's start included",
)


async def fill(kv: Any, keys: int) -> None:
    numbers = iter(range(keys))
    value = os.urandom(VALUE_SIZE)

    async def caller() -> None:
        for number in numbers:
            await kv.put(f"key-{number:08d}", value)

    await asyncio.gather(*(caller() for _ in range(FILLERS)))


async def write_until(kv: Any, keys: int, stop: asyncio.Event, latencies: list[float]) -> None:
    """One caller in a closed loop; milliseconds go to `latencies`."""
    value = os.urandom(VALUE_SIZE)
    number = int.from_bytes(os.urandom(4))
    while not stop.is_set():
        number = (number * 1_103_515_245 + 12_345) % (1 << 31)
        began = time.perf_counter_ns()
        await kv.put(f"key-{number % keys:08d}", value)
        latencies.append((time.perf_counter_ns() - began) / 1e6)


async def stretch(kv: Any, keys: int, callers: int, body: Any) -> tuple[list[float], float]:
    """(milliseconds of every write while `body` ran, seconds that it took)."""
    latencies: list[float] = []
    stop = asyncio.Event()
    writers = [asyncio.create_task(write_until(kv, keys, stop, latencies)) for _ in range(callers)]
    await asyncio.sleep(0.2)  # until all of them are under way
    latencies.clear()
    began = time.perf_counter()
    await body
    seconds = time.perf_counter() - began
    during = list(latencies)
    stop.set()
    await asyncio.gather(*writers)
    return during, seconds


async def back_up(directory: str, file: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "zcluster",
        "-c",
        directory,
        "-q",
        "backup",
        "--force",
        str(file),
        stdout=asyncio.subprocess.DEVNULL,
    )
    if await process.wait():
        raise SystemExit("the backup failed")


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))] if values else float("nan")


async def measure(cluster: Any, keys: int, callers: int, rounds: int, file: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"seconds": [], "with": [], "without": [], "with_p99": [], "without_p99": []}
    with cluster.connect() as client:
        kv = client.aio.kv
        await fill(kv, keys)
        lasted = 1.0
        await stretch(kv, keys, callers, asyncio.sleep(lasted))
        for _ in range(rounds):
            quiet, _ = await stretch(kv, keys, callers, asyncio.sleep(lasted))
            busy, lasted = await stretch(kv, keys, callers, back_up(str(cluster.directory), file))
            found["seconds"].append(lasted)
            found["without"] += quiet
            found["with"] += busy
            found["without_p99"].append(percentile(quiet, 0.99))
            found["with_p99"].append(percentile(busy, 0.99))
        client.aio.close()
    return found


def main() -> None:
    parser = options("Backups under load.", rounds=5)
    parser.add_argument("--callers", type=int, default=16)
    arguments = parser.parse_args()
    rounds, keys = (1, 10_000) if arguments.quick else (arguments.rounds, KEYS)
    known = facts(rounds=rounds, keys=keys, callers=arguments.callers)
    say_header("Backup while serving", known, FAIRNESS)
    with tempfile.TemporaryDirectory() as directory, zcluster.LocalCluster(nodes=3, workers=0) as cluster:
        file = Path(directory) / "backup"
        found = asyncio.run(measure(cluster, keys, arguments.callers, rounds, file))
        size_mb = file.stat().st_size / 1e6
    p99 = {name: percentile(found[name], 0.99) for name in ("without", "with")}
    ratio = p99["with"] / p99["without"]
    rows = [["writes", "count", "p50 ms", "p99 ms", "of each round", "max ms"]]
    for name in ("without", "with"):
        values = found[name]
        each = spread(found[f"{name}_p99"], 2)
        rows.append(
            [
                f"{name} a backup",
                f"{len(values):,}",
                f"{percentile(values, 0.5):.2f}",
                f"{p99[name]:.2f}",
                each,
                f"{max(values):.1f}",
            ]
        )
    say_table(rows)
    print(
        f"\n  backup of {keys:,} keys, {size_mb:.1f} MB: {spread(found['seconds'], 2)} s"
        f" -> {verdict(median(found['seconds']), SECONDS_MAX, at_most=True)}"
        f"\n  p99 of writes: {ratio:.2f} x -> {verdict(ratio, P99_RATIO_MAX, at_most=True)}"
    )
    figures = {k: v for k, v in found.items() if k not in ("with", "without")}
    write(arguments.json, "backup", known, {**figures, "p99_ratio": ratio, "p99_ms": p99})


if __name__ == "__main__":
    main()
