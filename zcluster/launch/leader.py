"""Asking whoever leads, until somebody who does has answered."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from zcluster import wire
from zcluster.errors import NoQuorum, Timeout
from zcluster.launch import probe

if TYPE_CHECKING:
    from zcluster.launch.cluster import Cluster

ASK_S: Final = 2.0
"""How long one leader is waited for before it is asked who leads now."""


def ask_leader(cluster: Cluster, kind: int, body: bytes, give_up: float, *, otherwise: str) -> Any:
    """The decoded RESULT of a request that only a leader with a majority answers; it must be harmless to repeat.

    Args:
        give_up: when, in seconds of `time.monotonic`.
        otherwise: what to say if nobody has answered by then.
    Raises: NoQuorum.
    """
    while (left_s := give_up - time.monotonic()) > 0:
        try:
            leader = cluster.wait_leader(left_s).name
        except Timeout:
            break
        wait_s = min(ASK_S, max(0.0, give_up - time.monotonic()))
        found, answer = probe.ask(cluster.spec, [leader], kind, body, timeout_s=wait_s).get(leader, (0, b""))
        if found == wire.RESULT:
            return wire.decode(answer)
    raise NoQuorum(otherwise)
