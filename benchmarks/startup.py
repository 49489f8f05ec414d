"""What it costs to have a cluster: `up` to ready, `--help`, an idle cluster's processor time, a replica's memory.

python benchmarks/startup.py [--rounds 5] [--idle-seconds 20] [--quick] [--json FILE]
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from common import facts, median, options, processor_seconds, say, say_header, say_table, spread, verdict, write
from peers import etcd

COMMAND = str(Path(sys.executable).with_name("zcluster"))
TARGETS = {"up_s": 1.0, "help_ms": 200.0, "idle_percent": 2.0, "replica_rss_mb": 50.0}
FAIRNESS = (
    "up: the whole command, from its start to its exit: 3 nodes, 3 workers, router, supervisor, fresh data each time",
    "idle: user and system time of every process of the cluster, supervisor and router included, from /proc",
    "etcd beside it: from the first spawn to the first acknowledged put; idle and memory of its three processes",
)


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )


def timed(environment: dict[str, str], *arguments: str) -> float:
    began = time.perf_counter()
    run(environment, *arguments)
    return time.perf_counter() - began


def cluster_processes(home: str) -> list[psutil.Process]:
    """Every process of clusters under `home`, found by its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("ZCLUSTER_HOME") == home:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def idle_percent(pids: list[int], seconds: float) -> float:
    """Of one core, over `seconds` in which nobody asks for anything."""
    before, began = processor_seconds(pids), time.perf_counter()
    time.sleep(seconds)
    return 100 * (processor_seconds(pids) - before) / (time.perf_counter() - began)


def resident_mb(pids: list[int]) -> list[float]:
    return [psutil.Process(pid).memory_info().rss / 1e6 for pid in pids]


def measure_up(rounds: int, idle_seconds: float) -> dict[str, Any]:
    home = tempfile.mkdtemp(prefix="zcb-")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ZCLUSTER_")}
    environment["ZCLUSTER_HOME"] = home
    measured: dict[str, Any] = {"up_s": [], "help_ms": [], "idle_percent": [], "replica_rss_mb": [], "rss_mb": []}
    try:
        run(environment, "--help")  # once, to have everything compiled and cached
        for _ in range(max(5, rounds)):
            measured["help_ms"].append(1000 * timed(environment, "--help"))
        for number in range(rounds):
            measured["up_s"].append(timed(environment, "up"))
            try:
                if number == 0:
                    time.sleep(3.0)
                    pids = [process.pid for process in cluster_processes(home)]
                    measured["processes"] = len(pids)
                    measured["idle_percent"].append(idle_percent(pids, idle_seconds))
                    status = json.loads(run(environment, "status", "--json").stdout)
                    measured["replica_rss_mb"] = resident_mb([node["pid"] for node in status["nodes"]])
                    measured["rss_mb"].append(sum(resident_mb(pids)))
            finally:
                run(environment, "down", "--purge", "--yes")
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return measured


def measure_etcd(rounds: int, idle_seconds: float) -> dict[str, Any]:
    measured: dict[str, Any] = {"up_s": [], "idle_percent": [], "replica_rss_mb": []}
    for number in range(rounds):
        with etcd.EtcdCluster() as cluster:
            measured["up_s"].append(cluster.ready_seconds)
            if number == 0:
                time.sleep(3.0)
                measured["idle_percent"].append(idle_percent(cluster.pids, idle_seconds))
                measured["replica_rss_mb"] = resident_mb(cluster.pids)
    return measured


def main() -> None:
    parser = options("Start-up, idle cost and memory, etcd beside it.", rounds=5)
    parser.add_argument("--idle-seconds", type=float, default=20.0)
    parser.add_argument("--no-peer", action="store_true", help="zcluster only")
    arguments = parser.parse_args()
    rounds, idle_seconds = (1, 5.0) if arguments.quick else (arguments.rounds, arguments.idle_seconds)
    known = facts(rounds=rounds, idle_seconds=idle_seconds)
    say_header("Start-up, idle cost and memory", known, FAIRNESS)
    own = measure_up(rounds, idle_seconds)
    peer: dict[str, Any] = {}
    if not arguments.no_peer:
        etcd.ensure_installed()
        peer = measure_etcd(rounds, idle_seconds)
    titles = {
        "up_s": ("up to ready, s", 2),
        "help_ms": ("zcluster --help, ms", 0),
        "idle_percent": ("idle cluster, % of one core", 2),
        "replica_rss_mb": ("a replica resident, MB", 1),
    }
    rows = [["", "zcluster", "etcd", "target"]]
    for name, (title, digits) in titles.items():
        beside = spread(peer[name], digits) if peer.get(name) else "-"
        reached = max(own[name]) if name == "replica_rss_mb" else median(own[name])
        rows.append([title, spread(own[name], digits), beside, verdict(reached, TARGETS[name], True)])
    say_table(rows)
    say(f"  all {own['processes']} processes of the cluster together: {own['rss_mb'][0]:.0f} MB resident")
    write(arguments.json, "startup", known, {"zcluster": own, "etcd": peer})


if __name__ == "__main__":
    main()
