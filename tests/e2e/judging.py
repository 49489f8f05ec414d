"""What end-to-end tests share: the judgement of a history, clients that reach one node only, waiting for a state."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

import zcluster
from zcluster.chaos.traffic import Traffic
from zcluster.cli.check import verdict_lines
from zcluster.sim.history import write_history

BOTH = ("linearizable", "lease")


def assert_linearizable(traffic: Traffic, directory: Path, *, answers_min: int = 100) -> None:
    """After the traffic: there is an order that explains it, and there was something to explain.

    A wrong history is left in `directory` for `zcluster check`.
    """
    operations = traffic.operations()
    answered = sum(operation.status == "ok" for operation in operations)
    assert answered >= answers_min, f"only {answered} answers: {dict(traffic.errors)}"
    verdict = traffic.verdict()
    if verdict.result != "linearizable":
        path = directory / "history.jsonl"
        with open(path, "w") as file:
            write_history(file, operations)
        raise AssertionError("\n".join([*verdict_lines(verdict), f"zcluster check {path}"]))


def narrow(cluster: zcluster.LocalCluster, node: str) -> Callable[[], zcluster.Client]:
    """Makes clients that know this node only, and so do not hear of its successor.

    What they ask a leader that is cut off or frozen waits there until it answers. They are who is told stale values.
    """
    only = tuple(spec for spec in cluster.spec.nodes if spec.name == node)
    spec = msgspec.structs.replace(cluster.spec, nodes=only, directory=str(cluster.directory / "nowhere"))
    return lambda: zcluster.Client(spec)


def everywhere(cluster: zcluster.LocalCluster) -> Sequence[Callable[[], zcluster.Client]]:
    """For `Traffic`: one ordinary client, and one narrow client for each node."""
    return [cluster.connect, *(narrow(cluster, node) for node in cluster.nodes)]


def state(cluster: zcluster.LocalCluster, node: str) -> dict[str, Any]:
    found: dict[str, Any] = next(n for n in cluster.status()["nodes"] if n["name"] == node)
    return found


def wait_for(cluster: zcluster.LocalCluster, node: str, role: str, timeout: float = 30.0) -> dict[str, Any]:
    """Until the node has this role ("failed", ...). Returns its state."""
    give_up = time.monotonic() + timeout
    while (found := state(cluster, node))["role"] != role:
        assert time.monotonic() < give_up, found
    return found


def wait_other_leader(cluster: zcluster.LocalCluster, old: str, timeout: float = 30.0) -> str:
    """Until somebody else leads (the old one may still believe that it does). Returns its name."""
    give_up = time.monotonic() + timeout
    while (found := cluster.wait_leader(timeout).name) == old:
        assert time.monotonic() < give_up, f"{old} still leads"
    return found
