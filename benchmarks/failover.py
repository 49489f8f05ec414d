"""How long nobody is served when the leader is killed (SIGKILL) or hangs (SIGSTOP): zcluster, and etcd beside it.

64 callers write in a closed loop. The time is from just before the signal to the first acknowledged put after the
longest stretch without one: answers that were already under way do not count as service.

    python benchmarks/failover.py [--rounds 10] [--quick] [--json FILE]
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from common import alternate, facts, median, options, say_header, say_table, spread, verdict, write
from peers import etcd

import zcluster
from zcluster.bench.result import outage_ms
from zcluster.bench.workload import KvWork, Load, drive, kv_operation

CALLERS = 64
GAP_MS = 5.0
BEFORE_S = 1.5
AFTER_S = {"kill": 2.0, "pause": 4.0}
TARGET_MS = {"kill": 150.0, "pause": 1500.0}
ETCD_MORE_S = 4.0
ETCD_REQUEST_TIMEOUT = "250ms"
FAIRNESS = (
    f"both: 3 nodes on loopback, defaults, every write synced, {CALLERS} callers in a closed loop, 256 B values",
    "both: time from just before the signal to the first put acknowledged after the longest stretch without one",
    f"etcd: its Go client knows all three members; a request gives up after {ETCD_REQUEST_TIMEOUT} and is sent anew,"
    " so that no long client time-out is counted against it",
)


async def zcluster_round(cluster: Any, client: Any, fault: str) -> dict[str, Any]:
    """Load, strike the leader, and see when service is back. The struck node is healed afterwards."""
    load = Load(callers=CALLERS, duration_s=BEFORE_S + AFTER_S[fault], warmup_s=0.0, gap_ms=GAP_MS)
    running = asyncio.create_task(drive("kv", load, kv_operation(client.aio.kv, KvWork()), {}))
    await asyncio.sleep(BEFORE_S)
    leader = await asyncio.to_thread(cluster.wait_leader)

    def strike() -> int:
        before = time.perf_counter_ns()
        leader.kill() if fault == "kill" else leader.pause()
        return before

    struck_ns = await asyncio.to_thread(strike)
    result = await running
    await asyncio.to_thread(leader.start if fault == "kill" else leader.resume)
    await asyncio.to_thread(settle, cluster, client)
    return {
        "outage_ms": outage_ms(result.gaps, struck_ns),
        "errors": result.errors,
        "errors_by_type": result.errors_by_type,
        "throughput_per_s": result.throughput_per_s,
    }


def settle(cluster: Any, client: Any) -> None:
    """Until the healed node has had the time to rejoin: a leader, and a second of idling."""
    cluster.wait_leader()
    client.kv.put("settle", b"1")
    time.sleep(1.0)


def etcd_round(cluster: etcd.EtcdCluster, fault: str) -> dict[str, Any]:
    load = cluster.start_load(
        callers=CALLERS,
        connections=etcd.CONNECTIONS,
        duration=f"{BEFORE_S + ETCD_MORE_S + AFTER_S[fault]}s",
        warmup="0s",
        gap=f"{GAP_MS}ms",
        timeout=ETCD_REQUEST_TIMEOUT,
    )
    time.sleep(BEFORE_S)
    leader = cluster.leader()
    assert leader.process is not None
    struck_ns = time.time_ns()
    os.kill(leader.process.pid, signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
    report = etcd.finish_load(load)
    if fault == "kill":
        leader.process.wait()
        leader.start()
    else:
        os.kill(leader.process.pid, signal.SIGCONT)
    time.sleep(1.0)
    cluster.leader()
    gaps = [(gap["begin_ns"], gap["end_ns"]) for gap in report["gaps"] or []]
    return {
        "outage_ms": outage_ms(gaps, struck_ns),
        "errors": report["errors"],
        "throughput_per_s": report["throughput_per_s"],
    }


def measure_zcluster(fault: str) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        with zcluster.LocalCluster(nodes=3, workers=1, durability="fsync") as cluster, cluster.connect() as client:
            return asyncio.run(zcluster_round(cluster, client, fault))

    return run


def measure_etcd(fault: str) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        with etcd.EtcdCluster() as cluster:
            return etcd_round(cluster, fault)

    return run


def main() -> None:
    parser = options("Fail-over time, zcluster beside etcd.", rounds=10)
    parser.add_argument("--faults", nargs="+", choices=["kill", "pause"], default=["kill", "pause"])
    parser.add_argument("--no-peer", action="store_true", help="zcluster only")
    arguments = parser.parse_args()
    rounds = 2 if arguments.quick else arguments.rounds
    if not arguments.no_peer:
        etcd.ensure_installed()
        etcd.build_load_generator()
    known = facts(peer="none" if arguments.no_peer else etcd.version(), rounds=rounds)
    say_header("Leader lost under 64 writing callers: time to the next acknowledged put", known, FAIRNESS)
    rows = [["", "fault", "outage ms: median (range)", "errors", "target"]]
    measured: dict[str, Any] = {}
    for fault in arguments.faults:
        contestants = {"zcluster": measure_zcluster(fault)}
        if not arguments.no_peer:
            contestants["etcd"] = measure_etcd(fault)
        outcomes = alternate(rounds, contestants)
        measured[fault] = outcomes
        for name, each in outcomes.items():
            outages = [one["outage_ms"] for one in each]
            target = verdict(median(outages), TARGET_MS[fault], True) if name == "zcluster" else ""
            signal_name = "SIGKILL" if fault == "kill" else "SIGSTOP"
            rows.append([name, signal_name, spread(outages, 0), str(sum(one["errors"] for one in each)), target])
    say_table(rows)
    write(arguments.json, "failover", known, measured)


if __name__ == "__main__":
    main()
