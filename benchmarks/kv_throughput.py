"""Durable puts: zcluster against etcd, three nodes each, in the same run and taking turns.

python benchmarks/kv_throughput.py [--rounds 5] [--callers 1 64 256 1000] [--quick] [--json FILE]
"""

from __future__ import annotations

from typing import Any

from common import alternate, facts, median, options, say, say_header, say_table, verdict, write
from peers import etcd

import zcluster
from zcluster.bench import run_kv, to_json
from zcluster.bench.workload import KvWork, Load, run_blocking

VALUE_SIZE = 256
KEY_SPACE = 10_000
TARGET_RATIO = 5.0
TARGET_CALLERS = 256
TARGET_P50_RATIO = 0.7
FAIRNESS = (
    "both: 3 nodes on loopback, every write synced to disk before it is acknowledged, data on the same file system,",
    f"  {VALUE_SIZE} B values, {KEY_SPACE:,} random keys, closed loop, a fresh cluster every round, warm-up excluded",
    "zcluster: defaults (raft, fsync, ipc, 3 workers idle beside); the callers are asyncio tasks in one Python process",
    f"etcd: defaults; compiled load generator on its own Go client, {etcd.CONNECTIONS} connections to the leader"
    " (its fastest set-up here)",
)


def measure_zcluster(callers: int, seconds: float) -> dict[str, Any]:
    load = Load(callers=callers, duration_s=seconds, warmup_s=1.0)
    work = KvWork(value_size=VALUE_SIZE, key_space=KEY_SPACE)
    with zcluster.LocalCluster(nodes=3, workers=1, durability="fsync") as cluster, cluster.connect() as client:
        return to_json(run_kv(client, load, work))


def measure_blocking(seconds: float) -> dict[str, Any]:
    """One caller that is a plain thread: `client.kv.put`, no event loop."""
    work = KvWork(value_size=VALUE_SIZE, key_space=KEY_SPACE)
    following, value = work.plan().__next__, work.value()
    with zcluster.LocalCluster(nodes=3, workers=1, durability="fsync") as cluster, cluster.connect() as client:
        put = client.kv.put
        load = Load(callers=1, duration_s=seconds, warmup_s=1.0)
        return to_json(run_blocking("kv", load, lambda: put(following()[0], value), {}, None))


def measure_etcd(callers: int, seconds: float) -> dict[str, Any]:
    with etcd.EtcdCluster() as cluster:
        return cluster.run_load(
            callers=callers,
            connections=etcd.CONNECTIONS,
            duration=f"{seconds}s",
            warmup="1s",
            value_size=VALUE_SIZE,
            key_space=KEY_SPACE,
            target_leader="true",
        )


def row(name: str, callers: int, outcomes: list[dict[str, Any]]) -> list[str]:
    percentiles = [f"{median([each['latency_us'][p] for each in outcomes]) / 1000:,.2f}" for p in ("p50", "p99", "max")]
    throughput = [each["throughput_per_s"] for each in outcomes]
    return [
        name,
        str(callers),
        f"{median(throughput):,.0f}",
        f"{min(throughput):,.0f} to {max(throughput):,.0f}",
        *percentiles,
        f"{median([each['generator_cpu'] for each in outcomes]):.0%}",
        str(sum(each["errors"] for each in outcomes)),
    ]


def main() -> None:
    parser = options("Durable puts, zcluster beside etcd.", rounds=5)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 64, 256, 1000])
    parser.add_argument("--seconds", type=float, default=5.0, help="measured time of a round")
    arguments = parser.parse_args()
    rounds, seconds, all_callers = arguments.rounds, arguments.seconds, arguments.callers
    if arguments.quick:
        rounds, seconds, all_callers = 1, 2.0, [1, TARGET_CALLERS]
    etcd.ensure_installed()
    etcd.build_load_generator()
    known = facts(peer=etcd.version(), rounds=rounds, seconds=seconds)
    say_header("Durable puts, 3 nodes", known, FAIRNESS)
    rows = [["", "callers", "puts/s", "range", "p50 ms", "p99 ms", "max ms", "generator CPU", "errors"]]
    measured: dict[str, Any] = {}
    conclusions = []
    for callers in all_callers:
        contestants = {
            "zcluster": lambda callers=callers: measure_zcluster(callers, seconds),
            "etcd": lambda callers=callers: measure_etcd(callers, seconds),
        }
        if callers == 1:
            contestants["zcluster, thread"] = lambda: measure_blocking(seconds)
        outcomes = alternate(rounds, contestants)
        measured[str(callers)] = outcomes
        rows += [row(name, callers, each) for name, each in outcomes.items()]
        conclusions += conclude(callers, outcomes)
    say_table(rows)
    say("", *conclusions)
    write(arguments.json, "kv_throughput", known, measured)


def conclude(callers: int, outcomes: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Ratios of the medians, with the target where there is one."""
    peer = median([each["throughput_per_s"] for each in outcomes["etcd"]])
    own = median([each["throughput_per_s"] for each in outcomes["zcluster"]])
    line = f"  {callers} callers: {own / peer:.2f} x etcd's throughput"
    if callers == TARGET_CALLERS:
        line += f" -> {verdict(own / peer, TARGET_RATIO, at_most=False)}"
    lines = [line]
    if callers == 1:
        peer = median([each["latency_us"]["p50"] for each in outcomes["etcd"]])
        for name in ("zcluster", "zcluster, thread"):
            own = median([each["latency_us"]["p50"] for each in outcomes[name]])
            ratio = own / peer
            lines.append(f"  1 caller, {name}: p50 {ratio:.2f} x etcd's -> {verdict(ratio, TARGET_P50_RATIO, True)}")
    return lines


if __name__ == "__main__":
    main()
