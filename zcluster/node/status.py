"""What a node says about itself: one flat map, the field's words, numbers in base units."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable
from typing import Any

from zcluster.config import ClusterSpec, parse_durability
from zcluster.node.replica import Replica
from zcluster.storage.writer import Completion
from zcluster.transport.faults import EVERYBODY, Rule
from zcluster.types import MS, NEVER, Nanoseconds, ReplicaId


def describe(
    spec: ClusterSpec,
    node: str,
    replica: Replica,
    completion: Completion,
    *,
    incarnation: int,
    started: Nanoseconds,
    now: Nanoseconds,
    counters: dict[str, int],
    damage: str | None,
    faults: list[dict[str, Any]],
) -> dict[str, Any]:
    """The answer to a STATUS request. `counters`: messages dropped and unsent, for those who look for trouble."""
    core = replica.core.status()
    mode, interval_ms = parse_durability(spec.settings.durability)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "name": node,
        "replica_id": spec.replica_id(node),
        "role": core.role,
        "pid": os.getpid(),
        "state": "up",
        "term": core.term,
        "leader": core.leader,
        "leader_name": spec.node_name(core.leader),
        "commit_index": core.commit_index,
        "last_applied": replica.last_applied,
        "last_index": core.last_index,
        "first_index": core.first_index,
        "checkpoint_index": replica.checkpoint_index,
        "voters": list(core.configuration.voters),
        "learners": list(core.configuration.learners),
        "configuration_index": core.configuration.index,
        "change_committed": core.configuration.index <= core.commit_index,
        "match_index": {str(k): v for k, v in core.match_index.items()},
        "incarnation": incarnation,
        "repair": core.repair,
        "suspect": core.suspect,
        "damage": damage,
        "engine": spec.settings.engine,
        "durability": spec.settings.durability,
        "loss_window_ms": {"fsync": 0, "interval": interval_ms, "none": None}[mode],
        "unsynced_bytes": completion.unsynced_bytes,
        "syncs": completion.syncs,
        "last_sync_us": completion.last_sync_ns // 1000,
        "max_sync_us": completion.max_sync_ns // 1000,
        "bytes_written": completion.bytes_written,
        "frames_applied": replica.applied_total,
        "checkpointing": replica.capturing,
        "digests": {str(index): digest for index, digest in replica.digests.known.items() if digest is not None},
        "uptime_ms": (now - started) // MS,
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
        "counters": counters,
        "faults": faults,
    }


def describe_faults(
    name_of: Callable[[ReplicaId], str | None], rules: Iterable[Rule], now: Nanoseconds
) -> list[dict[str, Any]]:
    """The rules that a node's network is under; `peer` None: all peers; `seconds_left` None: until `heal`."""
    return [
        {
            "kind": rule.kind,
            "direction": rule.direction,
            "peer": (name_of(rule.peer) or f"replica {rule.peer}") if rule.peer != EVERYBODY else None,
            "delay_ms": rule.delay / MS,
            "loss": rule.loss,
            "duplicate": rule.duplicate,
            "seconds_left": round((rule.until - now) / 1e9, 3) if rule.until != NEVER else None,
        }
        for rule in rules
        if rule.until > now
    ]
