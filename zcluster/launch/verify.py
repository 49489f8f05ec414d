"""Comparing the states of all replicas at one index, on request.

A mark goes through the log; every replica digests its state where the mark is applied (`node.digests`) and tells when
asked for that index. One that was writing a checkpoint at that moment made no digest: then another mark is tried.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from zcluster import config, wire
from zcluster.launch import probe
from zcluster.launch.leader import ask_leader
from zcluster.launch.report import odd_ones
from zcluster.types import Index

if TYPE_CHECKING:
    from zcluster.launch.cluster import Cluster

PAUSE_S: Final = 0.2
"""Before another mark, when somebody was busy at the last one."""


def verify(cluster: Cluster, timeout: float) -> dict[str, Any]:
    """See `Cluster.verify`. Nodes that are down, silent or too far behind are left out, and named."""
    give_up = time.monotonic() + timeout
    nodes = [node.name for node in cluster.spec.nodes]
    while True:
        index = _mark(cluster, give_up)
        left_s = max(0.1, give_up - time.monotonic())
        body = wire.encode([index])
        still = cluster.still_answering()
        answers = probe.ask(cluster.spec, still(), wire.VERIFY, body, timeout_s=left_s, still=still)
        found = {name: wire.decode(answer)[1] for name, (kind, answer) in answers.items() if kind == wire.RESULT}
        digests = {name: digest for name, digest in sorted(found.items()) if digest is not None}
        busy = len(found) > len(digests)
        if not busy or time.monotonic() + PAUSE_S >= give_up:
            odd = odd_ones(digests) if digests else []
            return {
                "index": index,
                "equal": not odd,
                "digests": digests,
                "odd": odd,
                "missing": [name for name in nodes if name not in digests],
            }
        time.sleep(PAUSE_S)


def _mark(cluster: Cluster, give_up: float) -> Index:
    """Have a mark written. Returns: the index of its entry. Raises: NoQuorum."""
    otherwise = (
        "no leader that a majority follows: there is no index at which all replicas could be compared; see: "
        f"{config.command(cluster.directory)} status"
    )
    return int(ask_leader(cluster, wire.WRITE, wire.MARK_FRAME, give_up, otherwise=otherwise)[0])
