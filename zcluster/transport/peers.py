"""Links between replicas: one PULL socket to receive on, one PUSH socket to each peer.

    frame 1   envelope: msgpack [protocol, cluster id, from, incarnation, to, pid, start ticks]
    frame 2   body: the message, encoded by consensus

The envelope of a link never changes, so it is built once by the sender and looked up by its bytes by the receiver:
one dictionary access a message. An envelope that does not fit (other cluster, other addressee, other protocol, plain
garbage) is remembered as refused and its messages are counted in `dropped`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import msgspec
import zmq

from zcluster import wire
from zcluster.transport.sockets import Security, make_socket, receive_parts, send_parts

MessageT = TypeVar("MessageT")

ENVELOPES_MAX = 1024
PEER_MESSAGES_MAX = 2_000


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    protocol: int
    cluster_id: str
    sender: int
    incarnation: int
    receiver: int
    pid: int
    start_ticks: int


class PeerLinks(Generic[MessageT]):
    """Owned by the event loop's thread. Never blocks: what cannot leave at once is dropped."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        *,
        bind: str,
        me: Envelope,
        decode: Callable[[bytes], MessageT],
        security: Security | None = None,
    ) -> None:
        self._context = context
        self._me = me
        self._decode = decode
        self._security = security
        self.inbound = make_socket(context, zmq.PULL, bind=bind, security=security, high_water=PEER_MESSAGES_MAX)
        self._outbound: dict[int, tuple[zmq.Socket[bytes], bytes]] = {}
        self._known: dict[bytes, Envelope | None] = {}
        self.dropped = 0  # received, refused
        self.unsent = 0  # sent to nobody: no connection, or its queue is full

    def connect(self, peers: Mapping[int, str]) -> None:
        """Make the set of links equal to `peers` (replica id -> endpoint)."""
        for replica in self._outbound.keys() - peers.keys():
            self._outbound.pop(replica)[0].close()
        for replica, endpoint in peers.items():
            if replica not in self._outbound:
                socket = make_socket(
                    self._context, zmq.PUSH, connect=endpoint, security=self._security, high_water=PEER_MESSAGES_MAX
                )
                envelope = wire.encode(msgspec.structs.replace(self._me, receiver=replica))
                self._outbound[replica] = (socket, envelope)

    def send(self, replica: int, body: bytes) -> bool:
        link = self._outbound.get(replica)
        if link is None:
            return False
        try:
            send_parts(link[0], (link[1], body))
        except zmq.Again:
            self.unsent += 1
            return False
        return True

    def receive(self, limit: int) -> list[tuple[Envelope, MessageT]]:
        """At most `limit` messages that are already here, in order of arrival."""
        received: list[tuple[Envelope, MessageT]] = []
        inbound = self.inbound
        known = self._known
        for _ in range(limit):
            parts = receive_parts(inbound)
            if parts is None:
                break
            if len(parts) != 2:
                self.dropped += 1
                continue
            try:
                envelope = known[parts[0]]
            except KeyError:
                envelope = self._admit(parts[0])
            if envelope is None:
                self.dropped += 1
                continue
            try:
                received.append((envelope, self._decode(parts[1])))
            except wire.DecodeError:
                self.dropped += 1
        return received

    def _admit(self, raw: bytes) -> Envelope | None:
        """Judge an envelope seen for the first time and remember the verdict."""
        envelope: Envelope | None
        try:
            envelope = msgspec.msgpack.decode(raw, type=Envelope)
        except wire.DecodeError:
            envelope = None
        me = self._me
        if envelope is not None and (
            (envelope.protocol, envelope.cluster_id, envelope.receiver) != (me.protocol, me.cluster_id, me.sender)
            or envelope.sender == me.sender
        ):
            envelope = None
        if len(self._known) >= ENVELOPES_MAX:
            self._known.clear()
        if len(raw) <= ENVELOPES_MAX:
            self._known[raw] = envelope
        return envelope

    def close(self) -> None:
        self.inbound.close()
        for socket, _ in self._outbound.values():
            socket.close()
        self._outbound.clear()
