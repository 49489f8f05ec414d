"""One machine of a world: what is fixed about it, its data directory, and the process that serves from it.

Plain state; what happens to it is decided in `cluster`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from zcluster.config import ClusterSpec
from zcluster.consensus.api import Settings as CoreSettings
from zcluster.consensus.raft import Raft
from zcluster.machines.api import Machine
from zcluster.node import start, transfer
from zcluster.node.replica import Replica
from zcluster.sim.disk import SimulatedDisk
from zcluster.storage.checkpoint import CheckpointWriter
from zcluster.storage.recover import Store
from zcluster.storage.writer import InlineWriter
from zcluster.types import MS, NEVER, Nanoseconds, ReplicaId, SnapshotMeta

if TYPE_CHECKING:
    from zcluster.consensus.engines import EngineClass

Received = tuple[ReplicaId, int, bytes]
Request = tuple[bytes, int, int, bytes]


class Options(msgspec.Struct, kw_only=True):
    """How the nodes of a world are made and how fast they are.

    service: from one turn of a node to the next; disk: bounds of one write with its sync; drift: local nanoseconds a
    world's second that a node's clock gains, by replica; notices_lost: share of lost news about exits.
    """

    spec: ClusterSpec
    core: CoreSettings
    core_class: EngineClass = Raft
    new_machine: Callable[[ClusterSpec], Machine] = start.new_machine
    service: Nanoseconds = MS // 10
    disk: tuple[Nanoseconds, Nanoseconds] = (MS // 10, MS // 2)
    chunk_bytes: int = 2048
    sector: int = 512
    drift: dict[ReplicaId, int] = {}
    notices_lost: float = 0.0


class Capture:
    """A checkpoint being written."""

    __slots__ = ("chunks", "meta", "size_bytes", "writer")

    def __init__(self, meta: SnapshotMeta, chunks: Iterator[bytes]) -> None:
        self.meta = meta
        self.chunks = chunks
        self.writer: CheckpointWriter | None = None
        self.size_bytes = 0


class Life:
    """One process. What has arrived and waits for the next turn is in the lists."""

    def __init__(self, node: Node, store: Store, writer: InlineWriter, incarnation: int, replica: Replica) -> None:
        self.node = node
        self.store = store
        self.writer = writer
        self.incarnation = incarnation
        self.replica = replica
        self.received: list[Received] = []
        self.requests: list[Request] = []
        self.pieces: list[tuple[Any, ReplicaId, int, transfer.Piece, bytes]] = []
        self.lost: list[tuple[ReplicaId, int]] = []
        self.statuses: list[tuple[ReplicaId, bool]] = []
        self.checkpoints: list[tuple[SnapshotMeta, Exception | None, int]] = []
        self.installed: transfer.Installed | None = None
        self.installing: tuple[Any, ReplicaId, int, transfer.Piece] | None = None
        self.persisted_seq = 0
        self.watched: dict[ReplicaId, int] = {}
        self.clients: dict[bytes, None] = {}
        self.sending: dict[ReplicaId, transfer.Outgoing] = {}
        self.incoming: transfer.Incoming | None = None
        self.capture: Capture | None = None
        self.disk_due: Nanoseconds = NEVER
        self.errors = node.disk.errors
        self.turn_pending = False
        self.free_at: Nanoseconds = 0
        self.wake_at: Nanoseconds = NEVER


class Node:
    """A data directory, and whoever serves from it. out: why it never starts again; joined: it was not there when the
    cluster was made; idle_since: when its process stopped or was paused, so that nothing more was synced."""

    def __init__(self, replica: ReplicaId, name: str, disk: SimulatedDisk, *, joined: bool = False) -> None:
        self.id = replica
        self.name = name
        self.disk = disk
        self.life: Life | None = None
        self.created = False
        self.joined = joined
        self.paused = False
        self.idle_since: Nanoseconds = NEVER
        self.out = ""
        self.crash_keeps: str | None = None  # of the unsynced data, in a crash in the middle of a call
        self.wall_offset_ms = 0
        self.late: Nanoseconds = 0
        self.slow_disk: Nanoseconds = 0
        self.drift = 0
