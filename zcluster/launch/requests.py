"""The supervisor's end of the control socket: requests come in, replies go out, some of them later.

    request    [verb, {argument: value}]                          MessagePack, one frame from a DEALER
    progress   [None, text]                                       any number of them, before the reply
    reply      [True, {...}]  or  [False, [error class, text]]

A reply may wait for something to become true: `wait_until` keeps it, `answer_due` looks whether it is time. Not here:
what the verbs do (`supervisor`). One thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import zmq

from zcluster import config, wire
from zcluster.config import ClusterSpec
from zcluster.errors import Error, Timeout
from zcluster.transport.sockets import Security, make_socket, serve_authentication

SECOND: Final = 1_000_000_000
BATCH: Final = 64
"""Requests taken at a time, so that a flood of them does not keep the supervisor from its children."""


class Pending:
    """A reply that waits for something to become true."""

    __slots__ = ("client", "deadline", "holds", "what")

    def __init__(self, client: bytes, holds: Callable[[], bool], deadline: int, what: str) -> None:
        self.client = client
        self.holds = holds
        self.deadline = deadline
        self.what = what


class Requests:
    """The bound socket, and who still waits for an answer. Raises: Error (it cannot be bound), InvalidInput.

    `sockets_were_gone`: the directory of all sockets had to be made anew; a cleaner of /tmp may have taken it.
    """

    def __init__(self, spec: ClusterSpec) -> None:
        security = Security.load(spec)
        sockets = Path(spec.socket_directory)
        self.sockets_were_gone = spec.settings.transport == "ipc" and not sockets.exists()
        if self.sockets_were_gone:
            config.make_private(sockets)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._authentication = serve_authentication(self.context, security)
        endpoint = spec.endpoint("supervisor", config.CONTROL)
        try:
            self.socket = make_socket(self.context, zmq.ROUTER, bind=endpoint, security=security)
        except zmq.ZMQError as error:
            raise Error(f"cannot listen on {endpoint}: {error.strerror}") from None
        self.socket.linger = 1000  # the answer to `down` is the last thing we say
        self.pending: list[Pending] = []

    def close(self) -> None:
        self.socket.close()
        if self._authentication is not None:
            self._authentication.stop()
        self.context.term()

    def take(self) -> Iterator[tuple[bytes, str, dict[str, Any]]]:
        """(client, verb, arguments) of what has come; what is no request of ours is dropped."""
        for _ in range(BATCH):
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                client, body = parts
                verb, arguments = wire.decode(body)
                arguments = {str(name): value for name, value in arguments.items()}
            except (ValueError, TypeError, AttributeError, *wire.DecodeError):
                continue
            yield client, verb if isinstance(verb, str) else repr(verb), arguments

    def reply(self, client: bytes, fields: dict[str, Any] | None = None) -> None:
        self._send(client, [True, fields or {}])

    def refuse(self, client: bytes, error: BaseException) -> None:
        self._send(client, [False, [type(error).__name__, str(error)]])

    def progress(self, client: bytes, text: str) -> bool:
        """Say how far it is. False: the asker has gone."""
        return self._send(client, [None, text])

    def _send(self, client: bytes, body: list[Any]) -> bool:
        try:
            self.socket.send_multipart([client, wire.encode(body)], zmq.NOBLOCK)
        except zmq.ZMQError:  # the asker has gone
            return False
        return True

    def wait_until(self, client: bytes, timeout_s: float, what: str, holds: Callable[[], bool]) -> None:
        """Answer once `holds()` is true, or that `what` took too long."""
        self.pending.append(Pending(client, holds, time.monotonic_ns() + int(timeout_s * SECOND), what))

    def answer_due(self) -> None:
        """Answer all whose time has come."""
        now = time.monotonic_ns()
        waiting, self.pending = self.pending, []
        for one in waiting:
            if one.holds():
                self.reply(one.client)
            elif now >= one.deadline:
                self.refuse(one.client, Timeout(f"{one.what} took too long; it still goes on"))
            else:
                self.pending.append(one)

    def deadlines(self) -> list[int]:
        """Monotonic ns."""
        return [one.deadline for one in self.pending]
