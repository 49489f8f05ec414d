"""Python tasks: zcluster's workers against the standard library's ProcessPoolExecutor, taking turns.

python benchmarks/tasks.py [--rounds 5] [--workers 2] [--quick] [--json FILE]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from common import alternate, facts, median, options, say, say_header, say_table, verdict, write

import zcluster
from zcluster.bench.workload import noop

TARGET_SUBMIT_RATIO = 6.0
TARGET_TRIP_RATIO = 1.0
FAIRNESS = (
    "both: the same number of worker processes on this machine, a no-op function that the workers import,",
    "  the client is one thread of this process; the pool is started and warmed up before the clock starts",
    "submit: N times submit, then every result; round trip: submit and wait, one at a time; map: the results in a list",
    "zcluster: one node, so that no consensus runs beside; its router is a process of its own",
)


def identity(value: int) -> int:
    return value


def submit_all(submit: Callable[..., Any], count: int) -> float:
    """Tasks a second: submit `count` no-ops, then collect every result."""
    began = time.perf_counter()
    futures = [submit(noop) for _ in range(count)]
    for future in futures:
        assert future.result() is None
    return count / (time.perf_counter() - began)


def round_trips_us(submit: Callable[..., Any], count: int) -> list[float]:
    clock = time.perf_counter_ns
    trips = []
    for _ in range(count):
        began = clock()
        submit(noop).result()
        trips.append((clock() - began) / 1000)
    return trips


def map_rate(mapper: Callable[..., Any], count: int, chunksize: int | None) -> float:
    more = {} if chunksize is None else {"chunksize": chunksize}
    began = time.perf_counter()
    results = list(mapper(abs, range(count), **more))
    seconds = time.perf_counter() - began
    assert results == list(range(count))
    return count / seconds


def measure(pool: Any, sizes: dict[str, int]) -> dict[str, Any]:
    """Everything for one pool: anything with `submit` and `map`."""
    for future in [pool.submit(noop) for _ in range(200)]:
        future.result()
    trips = round_trips_us(pool.submit, sizes["trips"])
    return {
        "submit_per_s": submit_all(pool.submit, sizes["submit"]),
        "trip_p50_us": statistics.median(trips),
        "trip_p99_us": statistics.quantiles(trips, n=100)[98],
        "map_1_per_s": map_rate(pool.map, sizes["map_1"], 1),
        "map_64_per_s": map_rate(pool.map, sizes["map"], 64),
        "map_512_per_s": map_rate(pool.map, sizes["map"], 512),
    }


def main() -> None:
    parser = options("Python tasks, zcluster beside ProcessPoolExecutor.", rounds=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--submit", type=int, default=20_000, help="no-ops submitted in a round")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    sizes = {"submit": arguments.submit, "trips": 2000, "map_1": 10_000, "map": 200_000}
    if arguments.quick:
        sizes = {name: count // 10 for name, count in sizes.items()}

    def own() -> dict[str, Any]:
        with zcluster.LocalCluster(nodes=1, workers=arguments.workers) as cluster, cluster.connect() as client:
            own_map = {"auto_map_per_s": map_rate(client.map, sizes["map"], None)}
            return measure(client, sizes) | own_map

    def peer() -> dict[str, Any]:
        with ProcessPoolExecutor(arguments.workers) as pool:
            return measure(pool, sizes)

    known = facts(workers=arguments.workers, rounds=rounds, **sizes)
    say_header("Python tasks", known, FAIRNESS)
    outcomes = alternate(rounds, {"zcluster": own, "ProcessPoolExecutor": peer})
    names = {
        "submit_per_s": "submit, all results back, /s",
        "trip_p50_us": "one round trip p50, us",
        "trip_p99_us": "one round trip p99, us",
        "map_1_per_s": "map chunksize 1, /s",
        "map_64_per_s": "map chunksize 64, /s",
        "map_512_per_s": "map chunksize 512, /s",
    }
    targets = {"submit_per_s": (TARGET_SUBMIT_RATIO, False), "trip_p50_us": (TARGET_TRIP_RATIO, True)}
    rows = [["", "zcluster", "ProcessPoolExecutor", "ratio", "target"]]
    for name, title in names.items():
        ours, theirs = (median([each[name] for each in outcomes[who]]) for who in outcomes)
        judged = verdict(ours / theirs, *targets[name]) if name in targets else ""
        rows.append([title, f"{ours:,.0f}", f"{theirs:,.0f}", f"{ours / theirs:.2f} x", judged])
    automatic = median([each["auto_map_per_s"] for each in outcomes["zcluster"]])
    rows.append(["map, chunks chosen by zcluster, /s", f"{automatic:,.0f}", "-", "-", ""])
    say_table(rows)
    say("")
    write(arguments.json, "tasks", known, outcomes)


if __name__ == "__main__":
    main()
