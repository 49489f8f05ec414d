"""The socket that a replica offers to clients: a ROUTER; bodies stay opaque bytes.

A client that does not read its answers is not waited for: the answer is dropped and counted, and the client, whose
requests carry ids, asks again. Everything malformed is dropped and counted.
"""

from __future__ import annotations

import zmq

from zcluster import wire
from zcluster.transport.sockets import Security, make_socket, receive_parts, send_parts

Request = tuple[bytes, int, int, bytes]
"""(client identity, kind, request, body)"""

CLIENTS_MAX = 10_000


class ClientSocket:
    """Owned by the event loop's thread."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], *, bind: str, security: Security | None = None) -> None:
        self.socket = make_socket(context, zmq.ROUTER, bind=bind, security=security)
        self.known: dict[bytes, None] = {}  # clients to tell about a change of leader; oldest first
        self.dropped = 0
        self.unsent = 0
        self._unpack = wire.HEAD.unpack

    def receive(self, limit: int) -> list[Request]:
        """At most `limit` requests that are already here, in order of arrival."""
        requests: list[Request] = []
        socket = self.socket
        unpack, known = self._unpack, self.known
        for _ in range(limit):
            parts = receive_parts(socket)
            if parts is None:
                break
            if len(parts) == 2 and not parts[1]:  # a client's probe: it has just connected, and waits for news
                self._remember(parts[0])
                continue
            if len(parts) != 3 or len(parts[1]) != wire.HEAD_BYTES or len(parts[2]) > wire.FRAME_BYTES_MAX:
                self.dropped += 1
                continue
            client = parts[0]
            if client not in known:
                self._remember(client)
            kind, request = unpack(parts[1])
            requests.append((client, kind, request, parts[2]))
        return requests

    def _remember(self, client: bytes) -> None:
        if len(self.known) >= CLIENTS_MAX:
            del self.known[next(iter(self.known))]
        self.known[client] = None

    def send(self, client: bytes, head: bytes, body: bytes) -> None:
        if not client:
            return  # the replica asked itself
        try:
            send_parts(self.socket, (client, head, body))
        except zmq.Again:
            self.unsent += 1
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.known.pop(client, None)
            self.unsent += 1

    def announce(self, head: bytes, body: bytes) -> None:
        """Tell every client that has ever written to us and is still connected."""
        for client in list(self.known):
            self.send(client, head, body)

    def close(self) -> None:
        self.socket.close()
