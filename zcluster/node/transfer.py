"""Both ends of a checkpoint's way to a follower, without the sockets: which piece is next, and which one fits.

    Outgoing   next_piece() -> (Piece, bytes) ... answered(Answer) -> True: it has it all; False: refused
    Incoming   take(...) -> MORE or REFUSED to be answered, or nothing: complete -> finish() -> `Installed`

At most WINDOW pieces are unanswered. A piece that does not continue the transfer in progress (other sender,
incarnation, checkpoint or offset) is refused; the whole file is verified by its own checksums before anything is
believed. Pieces are raw bytes of the checkpoint file, so what arrives is a checkpoint file.

Not here: sockets and threads (`install`); the simulator has its own way of moving pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from zcluster.consensus.api import InstallSnapshot
from zcluster.errors import StorageError
from zcluster.machines.api import Machine
from zcluster.storage.checkpoint import CheckpointFile, CheckpointReceiver, list_checkpoints, read_checkpoint
from zcluster.storage.disk import Disk
from zcluster.types import MS, Nanoseconds, ReplicaId, SnapshotMeta

CHUNK_BYTES: Final = 256 << 10
WINDOW: Final = 2
SILENCE_MAX: Final[Nanoseconds] = 5000 * MS
SNAPSHOT_BYTES_MAX: Final = 1 << 40

MORE, DONE, REFUSED = 0, 1, 2


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """Header of one chunk."""

    term: int
    meta: SnapshotMeta
    size: int
    offset: int


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """`next_offset`: all bytes before it have arrived."""

    index: int
    epoch: int
    next_offset: int
    verdict: int


class Installed(msgspec.Struct, frozen=True):
    """A checkpoint that is complete on disk, and a machine restored from it."""

    sender: ReplicaId
    incarnation: int
    message: InstallSnapshot
    machine: Machine


class Outgoing:
    """One checkpoint on its way to one replica. `heard`: when the follower last answered."""

    def __init__(self, file: CheckpointFile, term: int, now: Nanoseconds, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.heard = now
        self._file = file
        self._term = term
        self._chunk_bytes = chunk_bytes
        self._sent = 0
        self._answered = 0

    def next_piece(self) -> tuple[Piece, bytes] | None:
        """What to send now, the same until `sent` is called; None while the window is full, or all is sent.
        Raises: StorageError."""
        if self._sent >= self._file.size or self._sent - self._answered >= WINDOW * self._chunk_bytes:
            return None
        data = self._file.read_at(self._sent, self._chunk_bytes)
        return Piece(self._term, self._file.meta, self._file.size, self._sent), data

    def sent(self, size_bytes: int) -> None:
        self._sent += size_bytes

    def answered(self, answer: Answer, now: Nanoseconds) -> bool | None:
        """True: the follower has it all. False: refused. None: still going."""
        if (answer.index, answer.epoch) != (self._file.meta.index, self._file.meta.epoch):
            return None
        self.heard = now
        if answer.verdict == DONE:
            return True
        if answer.verdict == REFUSED or not self._answered <= answer.next_offset <= self._sent:
            return False
        self._answered = answer.next_offset
        return None

    def is_silent(self, now: Nanoseconds) -> bool:
        return now - self.heard > SILENCE_MAX

    def close(self) -> None:
        self._file.close()


def open_outgoing(
    disk: Disk, checkpoints: Path, meta: SnapshotMeta, term: int, now: Nanoseconds, chunk_bytes: int = CHUNK_BYTES
) -> Outgoing | None:
    """None: that checkpoint is not here any more, or cannot be read."""
    for info in list_checkpoints(disk, checkpoints):
        if (info.index, info.epoch) == (meta.index, meta.epoch):
            break
    else:
        return None
    try:
        file = CheckpointFile(disk, info.path)
    except StorageError:
        return None
    return Outgoing(file, term, now, chunk_bytes)


class Incoming:
    """The follower's end: one transfer at a time, then `finish` verifies and restores.

    Between `take` saying that the file is complete and `finished`, pieces of other transfers are refused.
    """

    def __init__(self, disk: Disk, checkpoints: Path, cluster_id: str, new_machine: Callable[[], Machine]) -> None:
        self.offset = 0
        self.complete = False
        self._disk = disk
        self._checkpoints = checkpoints
        self._cluster_id = cluster_id
        self._new_machine = new_machine
        self._key: tuple[Any, ...] | None = None
        self._file: CheckpointReceiver | None = None

    def take(self, source: Any, sender: ReplicaId, incarnation: int, piece: Piece, data: bytes) -> int | None:
        """One piece from `source` (a connection). Returns the verdict to answer with; None: nothing to say yet, and
        if `complete` has become true, it is time to `finish`."""
        key = (source, sender, incarnation, piece.meta.index, piece.meta.epoch, piece.size)
        if self.complete:
            return REFUSED if key != self._key else None
        try:
            if piece.offset == 0 and key != self._key:
                self.abort()
                self._file = CheckpointReceiver(self._disk, self._checkpoints, piece.meta, piece.size, self._cluster_id)
                self._key = key
            if self._file is None or key != self._key or piece.offset != self.offset:
                return REFUSED
            complete = self._file.write(piece.offset, data)
        except StorageError:
            self.abort()
            return REFUSED
        self.offset += len(data)
        self.complete = complete
        return None if complete else MORE

    def finish(self) -> Machine | None:
        """Verify, make durable, restore. Slow: may run in a thread, while nobody calls anything but `take`. None: what
        came is not a checkpoint, or the disk failed."""
        assert self._file is not None and self.complete
        try:
            path = self._file.finish()
            machine = self._new_machine()
            machine.restore(read_checkpoint(self._disk, path))
        except (StorageError, ValueError):
            return None
        return machine

    def finished(self) -> None:
        """After `finish`: ready for the next transfer. `offset` is zero from here on."""
        self.complete = False
        self._file = self._key = None
        self.offset = 0

    def abort(self) -> None:
        """Remove what was received."""
        if self._file is not None:
            self._file.abort()
        self._file = self._key = None
        self.offset = 0


def answer(piece: Piece, next_offset: int, verdict: int) -> Answer:
    return Answer(piece.meta.index, piece.meta.epoch, next_offset, verdict)
