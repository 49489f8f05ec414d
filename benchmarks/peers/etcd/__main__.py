"""Measure etcd alone: `python -m peers.etcd --callers 256 --seconds 5` from benchmarks/."""

from __future__ import annotations

import argparse
import json

from peers.etcd import CONNECTIONS, EtcdCluster, build_load_generator, ensure_installed, version


def main() -> None:
    options = argparse.ArgumentParser(description="Measure durable puts on a three-member etcd cluster.")
    options.add_argument("--callers", type=int, nargs="+", default=[1, 64, 256, 1000])
    options.add_argument("--connections", type=int, default=CONNECTIONS)
    options.add_argument("--seconds", type=float, default=5.0)
    options.add_argument("--value-size", type=int, default=256)
    options.add_argument("--read-ratio", type=float, default=0.0)
    options.add_argument("--target-leader", action="store_true", help="connect to the leader only")
    arguments = options.parse_args()
    ensure_installed()
    build_load_generator()
    for callers in arguments.callers:
        with EtcdCluster() as cluster:
            report = cluster.run_load(
                callers=callers,
                connections=arguments.connections,
                duration=f"{arguments.seconds}s",
                value_size=arguments.value_size,
                read_ratio=arguments.read_ratio,
                target_leader=str(arguments.target_leader).lower(),
            )
            print(json.dumps({"peer": version(), "callers": callers, "ready_s": cluster.ready_seconds} | report))


if __name__ == "__main__":
    main()
