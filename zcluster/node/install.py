"""Moving a checkpoint from a leader to a follower that is too far behind, in chunks, on sockets of its own.

    leader   DEALER --> [envelope][term, meta, size, offset][bytes]      at most WINDOW chunks unanswered
    follower ROUTER --> [index, epoch, next offset, verdict]

Chunks are raw pieces of the checkpoint file, so what arrives is a checkpoint file. They never share a socket with
heartbeats. A chunk that does not continue the transfer in progress (other sender, incarnation, checkpoint or offset)
is refused; the whole file is verified by its own checksums, in a thread, before anything is believed; restoring the
state machine from it happens in the same thread. Consensus hears of it only when all that is done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq

from zcluster import wire
from zcluster.consensus.api import InstallSnapshot
from zcluster.errors import StorageError
from zcluster.machines.api import Machine
from zcluster.storage.checkpoint import CheckpointFile, CheckpointReceiver, list_checkpoints, read_checkpoint
from zcluster.storage.disk import Disk
from zcluster.transport.peers import Envelope
from zcluster.transport.sockets import Security, make_socket
from zcluster.types import MS, NEVER, Nanoseconds, ReplicaId, SnapshotMeta

CHUNK_BYTES: Final = 256 << 10
WINDOW: Final = 2
SILENCE_MAX: Final[Nanoseconds] = 5000 * MS
SNAPSHOT_BYTES_MAX: Final = 1 << 40

MORE, DONE, REFUSED = 0, 1, 2

Context = zmq.Context[zmq.Socket[bytes]]


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


_decode_piece = msgspec.msgpack.Decoder(Piece).decode
_decode_answer = msgspec.msgpack.Decoder(Answer).decode
_decode_envelope = msgspec.msgpack.Decoder(Envelope).decode


class Sending:
    """One checkpoint on its way to one replica."""

    def __init__(
        self,
        context: Context,
        endpoint: str,
        security: Security | None,
        envelope: bytes,
        file: CheckpointFile,
        term: int,
    ) -> None:
        self.socket = make_socket(context, zmq.DEALER, connect=endpoint, security=security, high_water=WINDOW + 1)
        self.socket.setsockopt(zmq.IMMEDIATE, 0)  # the first chunks may wait for the connection; silence ends it
        self._envelope = envelope
        self._file = file
        self._term = term
        self._sent = 0
        self._answered = 0
        self.heard: Nanoseconds = 0

    def push(self) -> None:
        """Send as much as the window allows."""
        while self._sent < self._file.size and self._sent - self._answered < WINDOW * CHUNK_BYTES:
            data = self._file.read_at(self._sent, CHUNK_BYTES)
            piece = wire.encode(Piece(self._term, self._file.meta, self._file.size, self._sent))
            try:
                self.socket.send_multipart((self._envelope, piece, data), zmq.DONTWAIT)
            except zmq.Again:
                return
            self._sent += len(data)

    def receive(self, now: Nanoseconds) -> bool | None:
        """True: the follower has it all. False: refused. None: still going."""
        verdict: bool | None = None
        while verdict is None:
            try:
                answer = _decode_answer(self.socket.recv(zmq.DONTWAIT))
            except zmq.Again:
                break
            except wire.DecodeError:
                continue
            if (answer.index, answer.epoch) != (self._file.meta.index, self._file.meta.epoch):
                continue
            self.heard = now
            if answer.verdict == DONE:
                verdict = True
            elif answer.verdict == REFUSED or not self._answered <= answer.next_offset <= self._sent:
                verdict = False
            else:
                self._answered = answer.next_offset
        self.push()
        return verdict

    def close(self) -> None:
        self.socket.close()
        self._file.close()


class SnapshotSender:
    """All checkpoints being sent, at most one a replica. Owned by the event loop."""

    def __init__(self, context: Context, disk: Disk, checkpoints: Path, security: Security | None) -> None:
        self._context = context
        self._disk = disk
        self._checkpoints = checkpoints
        self._security = security
        self._sending: dict[ReplicaId, Sending] = {}

    def start(self, to: ReplicaId, endpoint: str, envelope: Envelope, term: int, meta: SnapshotMeta, now: int) -> bool:
        """Begin (anew). False: that checkpoint is not here any more."""
        self.stop(to)
        for info in list_checkpoints(self._disk, self._checkpoints):
            if (info.index, info.epoch) == (meta.index, meta.epoch):
                break
        else:
            return False
        try:
            file = CheckpointFile(self._disk, info.path)
        except StorageError:
            return False
        sending = Sending(self._context, endpoint, self._security, wire.encode(envelope), file, term)
        sending.heard = now
        self._sending[to] = sending
        sending.push()
        return True

    def stop(self, to: ReplicaId) -> None:
        sending = self._sending.pop(to, None)
        if sending is not None:
            sending.close()

    def sockets(self) -> Iterable[zmq.Socket[bytes]]:
        return [sending.socket for sending in self._sending.values()]

    def receive(self, now: Nanoseconds) -> list[tuple[ReplicaId, bool]]:
        """Read answers, send on. Returns the transfers that ended, well or not."""
        ended: list[tuple[ReplicaId, bool]] = []
        for replica, sending in list(self._sending.items()):
            try:
                verdict = sending.receive(now)
            except StorageError:
                verdict = False
            if verdict is None and now - sending.heard > SILENCE_MAX:
                verdict = False
            if verdict is not None:
                self.stop(replica)
                ended.append((replica, verdict))
        return ended

    def next_deadline(self) -> Nanoseconds:
        return min((s.heard + SILENCE_MAX + MS for s in self._sending.values()), default=NEVER)

    def close(self) -> None:
        for replica in list(self._sending):
            self.stop(replica)


class SnapshotReceiver:
    """The follower's end: one transfer at a time, then a thread that verifies and restores."""

    def __init__(
        self,
        context: Context,
        disk: Disk,
        checkpoints: Path,
        *,
        bind: str,
        security: Security | None,
        me: Envelope,
        new_machine: Callable[[], Machine],
        notify: Callable[[], None],
    ) -> None:
        self.socket = make_socket(
            context, zmq.ROUTER, bind=bind, security=security, message_bytes_max=2 * CHUNK_BYTES, high_water=100
        )
        self._disk = disk
        self._checkpoints = checkpoints
        self._me = me
        self._new_machine = new_machine
        self._notify = notify
        self._key: tuple[Any, ...] | None = None
        self._file: CheckpointReceiver | None = None
        self._offset = 0
        self._thread: threading.Thread | None = None
        self._result: tuple[bytes, Envelope, Piece, Machine | None] | None = None
        self.dropped = 0

    def receive(self, limit: int) -> None:
        for _ in range(limit):
            try:
                parts: list[Any] = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                identity, raw_envelope, raw_piece, data = parts
                envelope, piece = _decode_envelope(raw_envelope), _decode_piece(raw_piece)
            except (ValueError, *wire.DecodeError):
                self.dropped += 1
                continue
            me = self._me
            fits = (envelope.protocol, envelope.cluster_id, envelope.receiver) == (
                me.protocol,
                me.cluster_id,
                me.sender,
            )
            if not fits or not 0 < piece.size <= SNAPSHOT_BYTES_MAX:
                self.dropped += 1
                continue
            self._take(identity, envelope, piece, data)

    def _take(self, identity: bytes, envelope: Envelope, piece: Piece, data: bytes) -> None:
        key = (identity, envelope.sender, envelope.incarnation, piece.meta.index, piece.meta.epoch, piece.size)
        try:
            if self._thread is not None:
                if key != self._key:
                    self._answer(identity, piece, REFUSED)
                return
            if piece.offset == 0 and key != self._key:
                self._abort()
                self._file = CheckpointReceiver(
                    self._disk, self._checkpoints, piece.meta, piece.size, self._me.cluster_id
                )
                self._key = key
            if self._file is None or key != self._key or piece.offset != self._offset:
                self._answer(identity, piece, REFUSED)
                return
            complete = self._file.write(piece.offset, data)
        except StorageError:
            self._abort()
            self._answer(identity, piece, REFUSED)
            return
        self._offset += len(data)
        if complete:
            arguments = (self._file, identity, envelope, piece)
            self._thread = threading.Thread(target=self._finish, args=arguments, name="install", daemon=True)
            self._thread.start()
        else:
            self._answer(identity, piece, MORE)

    def _finish(self, file: CheckpointReceiver, identity: bytes, envelope: Envelope, piece: Piece) -> None:
        """In the thread: verify, make durable, restore."""
        machine: Machine | None = None
        try:
            path = file.finish()
            restored = self._new_machine()
            restored.restore(read_checkpoint(self._disk, path))
            machine = restored
        except (StorageError, ValueError):
            machine = None
        finally:  # whatever happened: a transfer that does not end would be the last one
            self._result = (identity, envelope, piece, machine)
            self._notify()

    def installed(self) -> Installed | None:
        """The transfer that has just become complete, once."""
        if self._result is None:
            return None
        identity, envelope, piece, machine = self._result
        self._result = None
        if self._thread is not None:
            self._thread.join()
        self._thread = self._file = self._key = None
        self._offset = 0
        self._answer(identity, piece, REFUSED if machine is None else DONE)
        if machine is None:
            return None
        return Installed(envelope.sender, envelope.incarnation, InstallSnapshot(piece.term, piece.meta), machine)

    def _answer(self, identity: bytes, piece: Piece, verdict: int) -> None:
        answer = Answer(piece.meta.index, piece.meta.epoch, self._offset, verdict)
        try:
            self.socket.send_multipart((identity, wire.encode(answer)), zmq.DONTWAIT)
        except zmq.ZMQError:
            self.dropped += 1

    def _abort(self) -> None:
        if self._file is not None:
            self._file.abort()
        self._file = self._key = None
        self._offset = 0

    def close(self) -> None:
        if self._thread is not None:
            self._thread.join()
        else:
            self._abort()
        self.socket.close()
