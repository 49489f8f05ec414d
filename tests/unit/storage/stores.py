"""Shared by the storage tests: a small store on a faulty disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.unit.storage.faulty_disk import FaultyDisk
from zcluster.storage.disk import Disk
from zcluster.storage.recover import RecoveredStore, Store, open_store
from zcluster.storage.writer import InlineWriter
from zcluster.types import Configuration, Entry, HardState, Identity, SnapshotMeta, WriteBatch

ROOT = Path("/data/n1")
WAL = ROOT / "wal"
CHECKPOINTS = ROOT / "checkpoints"
IDENTITY = Identity(1, "cluster-a", 1, "raft", (1, 2, 3))
SEGMENT = 4096


def entry(index: int, epoch: int = 1, size: int = 40) -> Entry:
    stamp = f"{index}.{epoch}:".encode()
    return Entry(index, epoch, 0, stamp + b"x" * (size - len(stamp)))


def meta(index: int, epoch: int = 1) -> SnapshotMeta:
    return SnapshotMeta(index, epoch, Configuration((1, 2, 3)), 1000 + index)


def open_at(
    disk: Disk, *, create: bool = False, boot: str = "boot-1", identity: Identity = IDENTITY, size: int = SEGMENT
) -> Store:
    return open_store(disk, ROOT, identity=identity, boot_id=boot, create=create, segment_bytes=size)


def recover(disk: FaultyDisk, *, boot: str = "boot-1", size: int = SEGMENT) -> RecoveredStore:
    """What a fresh process finds (the one before is dead)."""
    disk.kill()
    store = open_at(disk, boot=boot, size=size)
    store.wal.close()
    store.close()
    return store.recovered


class Node:
    """A store in use: counts seq, submits through an inline writer."""

    def __init__(
        self,
        disk: Disk,
        *,
        create: bool = False,
        boot: str = "boot-1",
        durability: str = "fsync",
        size: int = SEGMENT,
        clock: object = None,
    ) -> None:
        self.disk = disk
        self.now = 1
        self.store = open_at(disk, create=create, boot=boot, size=size)
        self.writer = InlineWriter(self.store.wal, durability, lambda: None, lambda: self.now, immediate=False)
        self.seq = 0
        self.write(incarnation=self.store.recovered.incarnation + 1, hard_state=self.store.recovered.hard_state)

    def write(self, **fields: object) -> None:
        """One batch; raises the writer's error, if any."""
        self.write_group([fields])

    def write_group(self, batches: Sequence[dict[str, object]]) -> None:
        """Batches that wait together."""
        for fields in batches:
            self.seq += 1
            self.writer.submit(WriteBatch(seq=self.seq, **fields))  # type: ignore[arg-type]
        self.writer.pump()
        completion = self.writer.completed()
        if completion.error is not None:
            raise completion.error

    def put(self, *indices: int, epoch: int = 1, size: int = 40) -> None:
        """A batch of its own for each entry."""
        for index in indices:
            self.write(entries=(entry(index, epoch, size),))

    def vote(self, term: int, voted_for: int = 1) -> None:
        self.write(hard_state=HardState(term, voted_for))

    def trim(self, keep_from: int) -> None:
        self.writer.trim(keep_from)
        self.writer.pump()

    def stop(self, *, clean: bool = False) -> None:
        self.writer.close(clean)
        self.store.close()


def new_node(disk: FaultyDisk | None = None, **options: object) -> Node:
    return Node(disk or FaultyDisk(), create=True, **options)  # type: ignore[arg-type]


def segments(disk: FaultyDisk) -> list[Path]:
    return [WAL / name for name in disk.listdir(WAL) if name.endswith(".wal")]


def damaged(disk: FaultyDisk) -> list[str]:
    return [path.name for path in disk.current if path.name.endswith(".damaged")]


def indices(recovered: RecoveredStore) -> list[int]:
    return [found.index for found in recovered.entries]
