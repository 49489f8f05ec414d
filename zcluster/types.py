"""Identifiers and value types that every layer shares.

Only plain data lives here: no behaviour, no input or output. The structs are immutable, slotted and invisible to the
garbage collector (`gc=False`: they hold no cycles), so that a log of a million entries costs no collector time.
"""

from __future__ import annotations

from typing import Final

import msgspec

ReplicaId = int
"""u16, fixed for the life of a data directory and never reused; 0 means "none"."""
Term = int
"""u64. A Raft term, or a Paxos ballot as number << 16 | replica id; storage calls both `epoch`."""
Index = int
"""Position in the replicated log; the first entry has index 1, 0 means "before the log"."""
Nanoseconds = int
"""A moment or a span on the machine's monotonic clock (CLOCK_MONOTONIC, shared by all processes of one boot)."""

NO_REPLICA: Final = 0
NEVER: Final[Nanoseconds] = 1 << 62
"""A deadline that does not come."""
MS: Final[Nanoseconds] = 1_000_000

PAXOS: Final = "paxos"
"""The engine, by the name it has in settings and in `identity.json`."""
RAFT: Final = "raft"

# Entry kinds. An unknown kind stops the node: it was written by a newer version.
KIND_FRAMES: Final = 0
KIND_NOOP: Final = 1
KIND_CONFIG: Final = 2


class Entry(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One slot of the replicated log.

    `data` is opaque to consensus and storage: for KIND_FRAMES what `wire.encode_frames` made, for KIND_CONFIG an
    encoded `Configuration`, empty for KIND_NOOP.
    """

    index: Index
    epoch: Term
    kind: int
    data: bytes


class HardState(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What must be on disk before a vote or an acknowledgement leaves. Source: Raft paper, Figure 2."""

    term: Term = 0
    voted_for: ReplicaId = NO_REPLICA


class Configuration(msgspec.Struct, frozen=True, array_like=True):
    """Who takes part. Both tuples are sorted and disjoint. `index` is that of the entry that set it (0: initial)."""

    voters: tuple[ReplicaId, ...] = ()
    learners: tuple[ReplicaId, ...] = ()
    index: Index = 0


class SnapshotMeta(msgspec.Struct, frozen=True, array_like=True):
    """Names a checkpoint: the state after applying `index`, whose entry had `epoch`, under `configuration`."""

    index: Index
    epoch: Term
    configuration: Configuration
    log_time_ms: int = 0


class WriteBatch(msgspec.Struct, frozen=True):
    """One hand-over to the log on disk. Applied in this order: snapshot, hard_state, truncate_after, entries.

    `seq` grows by one a batch; the store acknowledges "all up to seq". `snapshot`: a received checkpoint, already
    complete in a file beside the others, takes the place of the log up to its index (of the whole log where the
    entry at that index is absent or has another epoch). `sound`: what an earlier power cut may have taken from the log
    is here again (Paxos; Raft's log shows it by its epochs). `chosen`: up to here the log, with these entries, holds
    what will never change (Paxos; 0: nothing new to say).
    """

    seq: int
    hard_state: HardState | None = None
    truncate_after: Index | None = None
    entries: tuple[Entry, ...] = ()
    snapshot: SnapshotMeta | None = None
    incarnation: int | None = None
    repair: bool | None = None
    sound: bool = False
    chosen: Index = 0


class Identity(msgspec.Struct, frozen=True):
    """Who a data directory belongs to (`identity.json`); written once, at its creation.

    `voters`: the initial configuration. From the creation on it is read from here and nowhere else: a description of
    the cluster that has changed since must not change what this replica once started from. Empty for a replica that
    joins later and waits to be told.
    """

    format: int
    cluster_id: str
    replica_id: ReplicaId
    engine: str
    voters: tuple[ReplicaId, ...] = ()
