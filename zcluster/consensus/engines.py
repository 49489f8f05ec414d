"""Which engine goes by which name. Only the one that is asked for is imported: a replica starts the sooner for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zcluster.types import PAXOS, RAFT

if TYPE_CHECKING:
    from zcluster.consensus.paxos import Paxos
    from zcluster.consensus.raft import Raft

    EngineClass = type[Raft] | type[Paxos]


def engine_class(name: str) -> EngineClass:
    """By the name in a cluster's settings and in `identity.json`."""
    if name == PAXOS:
        from zcluster.consensus.paxos import Paxos

        return Paxos
    assert name == RAFT, name
    from zcluster.consensus.raft import Raft

    return Raft
