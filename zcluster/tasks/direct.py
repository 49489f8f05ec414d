"""The short cut of a small answer: from the worker straight to the client, one hop less than through the router.

    client --SUBMIT--> router --WORK--> worker --ANSWER--> client        at once
                         ^ <----DONE------'
                         '-----------NEWS----------------> client        the same result again, some milliseconds later

It is only ever a copy that comes early. The router decides and remembers as if there were no short cut, and tells the
client again, many results in one message; whatever becomes of the copy, no guarantee hangs on it. A client asks for it
(`protocol.DIRECT`) while it has so few tasks on the way that somebody probably waits for each.

The client binds a PULL socket, named after its id, in the cluster's directory of sockets; workers connect when they
first have something for it. With tcp there is no short cut. Threads: `Answers` belongs to the worker's main thread.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import suppress
from typing import Any, Final

import zmq
from zmq.backend import Socket as RawSocket

from zcluster.config import ClusterSpec, ipc_endpoint
from zcluster.errors import PathTooLong
from zcluster.transport.sockets import make_socket
from zcluster.types import MS, Nanoseconds

ANSWER_BYTES_MAX: Final = 4096
"""Larger results go through the router alone: the copy would cost more than the hop."""
CLIENTS_MAX: Final = 64
RETRY_NS: Final = 1_000 * MS

# The plain call, with plain integers: the convenience layer above it costs more than it does.
_raw_send: Final[Any] = RawSocket.send
_DONTWAIT: Final = int(zmq.DONTWAIT)


def answers_endpoint(spec: ClusterSpec, client: int) -> str | None:
    """Where a client takes answers from workers; None where there is no short cut."""
    if spec.settings.transport != "ipc":
        return None
    try:
        return ipc_endpoint(spec.socket_directory, f"client-{client:x}")
    except PathTooLong:
        return None


def remove_endpoint(spec: ClusterSpec, client: int) -> None:
    """What a client that was killed leaves behind."""
    endpoint = answers_endpoint(spec, client)
    if endpoint is not None:
        with suppress(OSError):
            os.unlink(endpoint.removeprefix("ipc://"))


class Answers:
    """A worker's connections to clients, made when first needed; at most CLIENTS_MAX are kept."""

    def __init__(self, spec: ClusterSpec, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._spec = spec
        self._context = context
        self._open: OrderedDict[int, tuple[zmq.Socket[bytes], Nanoseconds]] = OrderedDict()

    def send(self, client: int, message: bytes, now: Nanoseconds) -> bool:
        """False: not sent, since there is no connection (yet, or any more)."""
        entry = self._open.get(client)
        if entry is None:
            self._connect(client, now)
            return False
        try:
            _raw_send(entry[0], message, _DONTWAIT)
        except zmq.Again:
            if now - entry[1] > RETRY_NS:  # it is not made again by itself, see below
                self._connect(client, now)
            return False
        return True

    def _connect(self, client: int, now: Nanoseconds) -> None:
        endpoint = answers_endpoint(self._spec, client)
        if endpoint is None:
            return
        if client in self._open:
            self._open.pop(client)[0].close()
        elif len(self._open) >= CLIENTS_MAX:
            self._open.popitem(last=False)[1][0].close()
        # Clients come and go: a connection that is lost, or was refused, is not tried for ever.
        socket = make_socket(self._context, zmq.PUSH, connect=endpoint, reconnect=False)
        self._open[client] = (socket, now)

    def close(self) -> None:
        for socket, _ in self._open.values():
            socket.close()
        self._open.clear()
