"""Moving a checkpoint from a leader to a follower that is too far behind, in chunks, on sockets of its own.

    leader   DEALER --> [envelope][term, meta, size, offset][bytes]      at most WINDOW chunks unanswered
    follower ROUTER --> [index, epoch, next offset, verdict]

Which piece is next and which one fits is decided in `transfer`; here are the sockets, and the thread that verifies a
complete file and restores the state machine from it. The pieces never share a socket with heartbeats. Consensus hears
of a checkpoint only when all that is done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import zmq

from zcluster import wire
from zcluster.consensus.api import InstallSnapshot
from zcluster.errors import StorageError
from zcluster.machines.api import Machine
from zcluster.node.journal import journal
from zcluster.node.transfer import (
    CHUNK_BYTES,
    DONE,
    REFUSED,
    SILENCE_MAX,
    SNAPSHOT_BYTES_MAX,
    WINDOW,
    Answer,
    Incoming,
    Installed,
    Outgoing,
    Piece,
    answer,
    open_outgoing,
)
from zcluster.storage.disk import Disk
from zcluster.transport.peers import Envelope
from zcluster.transport.sockets import Security, make_socket
from zcluster.types import MS, NEVER, Nanoseconds, ReplicaId, SnapshotMeta

Context = zmq.Context[zmq.Socket[bytes]]

_decode_piece = msgspec.msgpack.Decoder(Piece).decode
_decode_answer = msgspec.msgpack.Decoder(Answer).decode
_decode_envelope = msgspec.msgpack.Decoder(Envelope).decode


class Sending:
    """One checkpoint on its way to one replica, and its socket."""

    def __init__(
        self, context: Context, endpoint: str, security: Security | None, envelope: bytes, outgoing: Outgoing
    ) -> None:
        self.socket = make_socket(
            context,
            zmq.DEALER,
            connect=endpoint,
            security=security,
            high_water=WINDOW + 1,
            immediate=False,  # the first chunks may wait for the connection; silence ends it
        )
        self.outgoing = outgoing
        self._envelope = envelope

    def push(self) -> None:
        """Send as much as the window allows."""
        while (following := self.outgoing.next_piece()) is not None:
            piece, data = following
            try:
                self.socket.send_multipart((self._envelope, wire.encode(piece), data), zmq.DONTWAIT)
            except zmq.Again:
                return
            self.outgoing.sent(len(data))

    def receive(self, now: Nanoseconds) -> bool | None:
        """True: the follower has it all. False: refused. None: still going."""
        verdict: bool | None = None
        while verdict is None:
            try:
                received = _decode_answer(self.socket.recv(zmq.DONTWAIT))
            except zmq.Again:
                break
            except wire.DecodeError:
                continue
            verdict = self.outgoing.answered(received, now)
        self.push()
        return verdict

    def close(self) -> None:
        self.socket.close()
        self.outgoing.close()


class SnapshotSender:
    """All checkpoints being sent, at most one a replica. Owned by the event loop.

    Args:
        severed: whether the network between us and a replica is cut, on purpose; a transfer ends then.
    """

    def __init__(
        self,
        context: Context,
        disk: Disk,
        checkpoints: Path,
        security: Security | None,
        *,
        severed: Callable[[ReplicaId], bool] = lambda replica: False,
    ) -> None:
        self._severed = severed
        self._context = context
        self._disk = disk
        self._checkpoints = checkpoints
        self._security = security
        self._sending: dict[ReplicaId, Sending] = {}

    def start(self, to: ReplicaId, endpoint: str, envelope: Envelope, term: int, meta: SnapshotMeta, now: int) -> bool:
        """Begin (anew). False: that checkpoint is not here any more, or nothing gets there."""
        self.stop(to)
        if self._severed(to):
            return False
        outgoing = open_outgoing(self._disk, self._checkpoints, meta, term, now)
        if outgoing is None:
            return False
        sending = Sending(self._context, endpoint, self._security, wire.encode(envelope), outgoing)
        self._sending[to] = sending
        try:
            sending.push()
        except StorageError:
            self.stop(to)
            return False
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
            if verdict is None and (sending.outgoing.is_silent(now) or self._severed(replica)):
                verdict = False
            if verdict is not None:
                self.stop(replica)
                ended.append((replica, verdict))
        return ended

    def next_deadline(self) -> Nanoseconds:
        return min((s.outgoing.heard + SILENCE_MAX + MS for s in self._sending.values()), default=NEVER)

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
        severed: Callable[[ReplicaId], bool] = lambda replica: False,
    ) -> None:
        self._severed = severed
        self.socket = make_socket(
            context, zmq.ROUTER, bind=bind, security=security, message_bytes_max=2 * CHUNK_BYTES, high_water=100
        )
        self._incoming = Incoming(disk, checkpoints, me.cluster_id, new_machine)
        self._me = me
        self._notify = notify
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
            if not fits or not 0 < piece.size <= SNAPSHOT_BYTES_MAX or self._severed(envelope.sender):
                self.dropped += 1
                continue
            self._take(identity, envelope, piece, data)

    def _take(self, identity: bytes, envelope: Envelope, piece: Piece, data: bytes) -> None:
        incoming = self._incoming
        verdict = incoming.take(identity, envelope.sender, envelope.incarnation, piece, data)
        if verdict is not None:
            self._answer(identity, piece, verdict)
        elif self._thread is None:
            arguments = (identity, envelope, piece)
            self._thread = threading.Thread(target=self._finish, args=arguments, name="install", daemon=True)
            self._thread.start()

    def _finish(self, identity: bytes, envelope: Envelope, piece: Piece) -> None:
        """In the thread."""
        machine: Machine | None = None
        reason: Exception | None = None
        try:
            machine = self._incoming.finish()
        except Exception as error:  # whatever it is, the leader must hear that this one did not work
            reason = error
        if machine is None:
            journal(f"replica {self._me.sender}", f"checkpoint {piece.meta.index} not installed: {reason!r}")
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
        self._thread = None
        self._incoming.finished()
        self._answer(identity, piece, REFUSED if machine is None else DONE)
        if machine is None:
            return None
        return Installed(envelope.sender, envelope.incarnation, InstallSnapshot(piece.term, piece.meta), machine)

    def _answer(self, identity: bytes, piece: Piece, verdict: int) -> None:
        encoded = wire.encode(answer(piece, self._incoming.offset, verdict))
        try:
            self.socket.send_multipart((identity, encoded), zmq.DONTWAIT)
        except zmq.ZMQError:
            self.dropped += 1

    def close(self) -> None:
        if self._thread is not None:
            self._thread.join()
        else:
            self._incoming.abort()
        self.socket.close()
