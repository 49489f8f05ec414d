"""Letting another node lead, on request: ask the leader, and see that it happened."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from zcluster import config, wire
from zcluster.errors import InvalidInput, Timeout
from zcluster.launch import probe

if TYPE_CHECKING:
    from zcluster.launch.cluster import Cluster
    from zcluster.launch.handles import Node

ASK_S: Final = 1.0
LOOK_S: Final = 0.02


def transfer(cluster: Cluster, selector: str, timeout: float) -> Node:
    """See `Cluster.transfer`. `selector`: a node; of several the first that does not lead already."""
    names = cluster.resolve(selector)
    target = names[0]
    replica_id = cluster.spec.replica_id(target)
    cluster.require_answering(target, "lead")
    give_up = time.monotonic() + timeout
    ask_at = 0.0
    while True:
        leader = cluster.wait_leader(max(0.1, give_up - time.monotonic()))
        now = time.monotonic()
        if leader.name == target:
            return leader
        if now >= give_up:
            raise Timeout(
                f"{leader.name} still leads: {target} is too far behind, or does not answer; see: "
                f"{config.command(cluster.directory)} status"
            )
        if now >= ask_at:
            _ask(cluster, leader.name, replica_id)
            ask_at = now + cluster.spec.settings.election_timeout_ms / 1000  # an attempt is given up after that long
        time.sleep(LOOK_S)


def _ask(cluster: Cluster, leader: str, replica_id: int) -> None:
    """A leader that has changed meanwhile, or is busy, is asked again later."""
    body = wire.encode([replica_id])
    kind, answer = probe.ask(cluster.spec, [leader], wire.TRANSFER, body, timeout_s=ASK_S).get(leader, (0, b""))
    if kind == wire.FAILED:
        raise InvalidInput(str(wire.decode(answer)[1]))
