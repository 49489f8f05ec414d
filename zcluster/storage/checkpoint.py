"""Checkpoint files: the state of the machines after one index, complete or not there at all.

A file is written as `<name>.tmp`, synced, renamed to `<index>-<epoch>.ckpt`, and the directory is synced: what bears
the final name is whole. A received checkpoint goes the same way, after the whole of it was verified; it *counts* only
once the log agrees with it or says INSTALLED (see `recover`). Damaged files are set aside as `*.damaged`. The bytes are
drawn in `checkpoint_file`.

Not here: what the chunks mean, when to take a checkpoint.
Threads: one per object; only `BackgroundCheckpoint` has a thread of its own.
"""

from __future__ import annotations

import contextlib
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import msgspec

from zcluster.errors import Corrupt, StorageError, WrongCluster
from zcluster.storage.checkpoint_file import (
    BLOCK,
    CHECKPOINT_FORMAT,
    CHUNK_BYTES_MAX,
    FOOTER,
    FOOTER_COVERED,
    HEADER,
    MAGIC,
    TEMPORARY,
    CheckpointReader,
    Head,
    TemporaryFile,
)
from zcluster.storage.disk import Disk, storage_error
from zcluster.types import Index, SnapshotMeta, Term

DAMAGED: Final = ".damaged"
QUEUE_CHUNKS: Final = 8
"""Chunks between the event loop and the thread of a `BackgroundCheckpoint`."""

_NAME: Final = re.compile(r"(\d{20})-(\d{20})\.ckpt")


class CheckpointInfo(msgspec.Struct, frozen=True):
    """One complete file."""

    path: Path
    index: Index
    epoch: Term
    size: int


def list_checkpoints(disk: Disk, directory: Path) -> list[CheckpointInfo]:
    """Complete files, newest (highest index, then epoch) first; damage is found by `verify` only."""
    found: list[CheckpointInfo] = []
    for name in disk.listdir(directory):
        if match := _NAME.fullmatch(name):
            path = directory / name
            with contextlib.suppress(FileNotFoundError):  # pruned at this moment, by another thread
                found.append(CheckpointInfo(path, int(match[1]), int(match[2]), _size(disk, path)))
    found.sort(key=lambda info: (info.index, info.epoch), reverse=True)
    return found


def prune(disk: Disk, directory: Path, keep: int = 2) -> Index:
    """Remove all but the `keep` newest; returns the index of the oldest one left (0: fewer than `keep`): the log is
    still needed above it. A received checkpoint must not be counted (call this) before its installation is persisted.
    """
    assert keep >= 1
    found = list_checkpoints(disk, directory)
    for info in found[keep:]:
        _attempt_unlink(disk, info.path)
    if len(found) > keep:
        _fsync_directory(disk, directory)
    return found[keep - 1].index if len(found) >= keep else 0


def remove_leftovers(disk: Disk, directory: Path) -> int:
    """Delete temporary files of an earlier process; returns how many. Only while nobody writes checkpoints."""
    names = [name for name in disk.listdir(directory) if name.endswith(TEMPORARY)]
    for name in names:
        _attempt_unlink(disk, directory / name)
    return len(names)


def set_aside(disk: Disk, path: Path) -> Path:
    """Rename a damaged file so that it no longer counts; it is kept for a post-mortem."""
    target = path.with_name(path.name + DAMAGED)
    disk.rename(path, target)
    disk.fsync_directory(path.parent)
    return target


def read_checkpoint(disk: Disk, path: Path) -> Iterator[bytes]:
    """The chunks as they were written. Raises: Corrupt (possibly after some chunks), FormatTooNew, StorageError."""
    with CheckpointReader(disk, path) as reader:
        yield from reader.chunks()


def verify(disk: Disk, path: Path, cluster_id: str | None = None) -> SnapshotMeta:
    """Read the whole file, return its meta. Raises: Corrupt, FormatTooNew, StorageError; WrongCluster if the file is
    not of `cluster_id` (None: any)."""
    with CheckpointReader(disk, path) as reader:
        if cluster_id is not None and reader.cluster_id != cluster_id:
            raise WrongCluster(f"{path}: a checkpoint of cluster {reader.cluster_id}, expected {cluster_id}")
        for _ in reader.chunks():
            pass
        return reader.meta


class CheckpointWriter:
    """One checkpoint being written. Either `finish` or `abort` ends it; after a StorageError only `abort` is left."""

    def __init__(self, disk: Disk, directory: Path, meta: SnapshotMeta, cluster_id: str) -> None:
        self._file = TemporaryFile(disk, directory, meta)
        self._chunks = 0
        self._bytes = 0
        head = msgspec.msgpack.encode(Head(cluster_id, meta))
        covered = HEADER.pack(MAGIC, CHECKPOINT_FORMAT, 0, len(head), 0)[:-4]
        self._crc = zlib.crc32(head, zlib.crc32(covered))
        try:
            self._file.append([covered, self._crc.to_bytes(4, "little"), head])
        except StorageError:
            self.abort()
            raise

    def write(self, chunk: bytes) -> None:
        """Any size up to 128 MiB, boundaries are kept. Raises: StorageError."""
        assert len(chunk) <= CHUNK_BYTES_MAX
        self._crc = zlib.crc32(chunk, zlib.crc32(len(chunk).to_bytes(4, "little"), self._crc))
        self._file.append([BLOCK.pack(b"C", len(chunk), self._crc), chunk])
        self._chunks += 1
        self._bytes += len(chunk)

    def finish(self) -> Path:
        """Footer, sync, rename, sync of the directory. Raises: StorageError."""
        crc = zlib.crc32(FOOTER_COVERED.pack(b"F", self._chunks, self._bytes), self._crc)
        self._file.append([FOOTER.pack(b"F", self._chunks, self._bytes, crc)])
        return self._file.publish()

    def abort(self) -> None:
        """Remove what was written. Never raises."""
        self._file.discard()


class CheckpointFile:
    """Raw bytes of a complete checkpoint, for shipping it to a peer. Stays readable while open, even if pruned.

    Raises: StorageError, Corrupt, FormatTooNew on opening (only the header is checked).
    """

    def __init__(self, disk: Disk, path: Path) -> None:
        self._reader = CheckpointReader(disk, path)
        self.path = path
        self.meta = self._reader.meta
        self.size = self._reader.size

    def read_at(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`; fewer only at the end. Raises: StorageError."""
        return self._reader.read(offset, size)

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> CheckpointFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class CheckpointReceiver:
    """A peer's checkpoint, arriving in raw pieces in order. The result is the peer's file, byte for byte.

    Args: meta and size as the sender announced them; both are checked against what arrives.
    """

    def __init__(self, disk: Disk, directory: Path, meta: SnapshotMeta, size: int, cluster_id: str) -> None:
        self.meta = meta
        self.size = size
        self._cluster_id = cluster_id
        self._disk = disk
        # Pieces are written by the event loop, which must not wait for a sync; `finish` has a thread for that.
        self._file = TemporaryFile(disk, directory, meta, suffix=".received", sync_every_bytes=1 << 62)

    @property
    def received(self) -> int:
        """Bytes that are here: the offset at which the next piece begins."""
        return self._file.offset

    def write(self, offset: int, data: bytes) -> bool:
        """One piece, in order. True when `size` bytes are there. Raises: Corrupt (wrong offset), StorageError."""
        if offset != self._file.offset or offset + len(data) > self.size:
            raise Corrupt(self._file.path, offset, f"a piece of {len(data)} bytes came at {self._file.offset}")
        self._file.append([data])
        return self._file.offset == self.size

    def finish(self) -> Path:
        """Verify the whole, sync, rename. Raises: Corrupt, FormatTooNew, WrongCluster, StorageError; then the
        temporary file is gone."""
        try:
            if self._file.offset != self.size:
                raise Corrupt(self._file.path, self._file.offset, f"the transfer ended early, {self.size} expected")
            found = verify(self._disk, self._file.path, self._cluster_id)
            if found != self.meta:
                raise Corrupt(self._file.path, 0, f"announced as {self.meta}, but it is {found}")
            return self._file.publish()
        except StorageError:
            self.abort()
            raise

    def abort(self) -> None:
        """Remove what was received. Never raises."""
        self._file.discard()


class BackgroundCheckpoint:
    """One checkpoint written beside normal service: the event loop hands over chunks, a thread does the rest.

    The queue between the two is bounded (`QUEUE_CHUNKS`): the event loop cuts the next chunks only while there is
    `room`, and goes on when `notify` wakes it. The thread ends with the checkpoint.

    Args: notify is called in the thread after every chunk written and at the end; must only wake the event loop.
    """

    def __init__(
        self, disk: Disk, directory: Path, meta: SnapshotMeta, cluster_id: str, notify: Callable[[], None]
    ) -> None:
        self.meta = meta
        self._notify = notify
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._put = 0
        self._taken = 0
        self._ended = False
        self._aborted = False
        self._path: Path | None = None
        self._error: StorageError | None = None
        self._writer_arguments = (disk, directory, meta, cluster_id)
        self._thread = threading.Thread(target=self._run, name="zcluster-checkpoint", daemon=True)
        self._thread.start()

    def room(self) -> int:
        """How many chunks `put` takes now; grows again with every `notify`. After a failure it stays generous: see
        `result`."""
        return max(QUEUE_CHUNKS - (self._put - self._taken), 0)

    def put(self, chunk: bytes) -> None:
        """Hand over one chunk; never blocks. Only while there is room."""
        assert not self._ended, "no chunk after the last"
        assert self.room() > 0, "ask room() first"
        self._put += 1
        self._queue.put(chunk)

    def finish(self) -> None:
        """No more chunks; the file is completed and `result` follows."""
        assert not self._ended
        self._ended = True
        self._queue.put(None)

    def abort(self) -> None:
        """Give up: waits for the write in progress, removes the temporary file; `result` raises from then on. Comes too
        late if the file is already complete."""
        self._aborted = True
        if not self._ended:
            self._ended = True
            self._queue.put(None)
        self._thread.join()

    def result(self) -> Path | None:
        """None: not done yet. Raises: StorageError if it failed or was aborted."""
        if self._error is not None:
            raise self._error
        return self._path

    def _run(self) -> None:
        writer: CheckpointWriter | None = None
        try:
            writer = CheckpointWriter(*self._writer_arguments)
            while (chunk := self._queue.get()) is not None and not self._aborted:
                writer.write(chunk)
                self._taken += 1
                self._notify()
            if self._aborted:
                raise StorageError(f"checkpoint {self.meta.index}: aborted")
            self._path = writer.finish()
        except Exception as error:
            if writer is not None:
                writer.abort()
            self._fail(error)
        self._notify()

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, StorageError):
            wrapped = StorageError(f"checkpoint {self.meta.index}: {error!r}")
            wrapped.__cause__ = error
            error = wrapped
        self._error = error
        self._taken = 1 << 62


def _size(disk: Disk, path: Path) -> int:
    handle = disk.open(path)
    try:
        return disk.size(handle)
    finally:
        disk.close(handle)


def _attempt_unlink(disk: Disk, path: Path) -> None:
    try:
        disk.unlink(path)
    except OSError as error:
        raise storage_error("remove", path, error) from error


def _fsync_directory(disk: Disk, directory: Path) -> None:
    try:
        disk.fsync_directory(directory)
    except OSError as error:
        raise storage_error("sync", directory, error) from error
