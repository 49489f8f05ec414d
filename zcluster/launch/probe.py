"""Asking replicas and the router how they are, all at once and in bounded time.

`Connections` stay open while somebody waits for something; `ask` is one question to each. A silent process (paused,
starting, dead) costs the caller its timeout and nothing else. Threads: each object belongs to the thread that made it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

import zmq

from zcluster import wire
from zcluster.config import CLIENT, ClusterSpec
from zcluster.transport.sockets import Security, make_socket

HELLO_AGAIN_S: Final = 0.2
"""A replica that was restarted meanwhile does not know us: greet again after this long."""
ROUTER_AGAIN_S: Final = 0.02
RECONNECT_MS: Final = 5
LOOK_S: Final = 0.2
"""How often those who ask look whether the others are still there."""
GREETING: Final = 1
"""The number of every HELLO."""

ROUTER: Final = "router"

Reply = tuple[int, bytes]
"""(kind, body) of one answer."""


def _open(context: zmq.Context[zmq.Socket[bytes]], spec: ClusterSpec, name: str) -> zmq.Socket[bytes]:
    """A DEALER that tries again every few milliseconds for as long as nobody listens (somebody waits for this)."""
    socket = make_socket(context, zmq.DEALER, security=Security.load(spec))
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 0)
    socket.connect(spec.endpoint(name, CLIENT))
    return socket


class Connections:
    """Open connections to some replicas of a cluster and, on request, to its router.

    `announced`: node -> (leader's replica id or 0, term), the last that this very node has said.
    `router`: the router's last status, None before the first.
    `answers`: (node, kind, request, body) of what came of `ask`; the caller takes them out.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        nodes: Iterable[str],
        *,
        router: bool = False,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        self.spec = spec
        self.announced: dict[str, tuple[int, int]] = {}
        self.router: dict[str, Any] | None = None
        self.answers: list[tuple[str, int, int, bytes]] = []
        self._own_context = context is None
        self._context = context if context is not None else zmq.Context()
        self._hello = [wire.pack_head(wire.HELLO, GREETING), wire.encode([wire.PROTOCOL, spec.cluster_id])]
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._greeted: dict[str, float] = {}
        self._poller = zmq.Poller()
        for name in [*nodes, *([ROUTER] if router else [])]:
            socket = _open(self._context, spec, name)
            self._sockets[name] = socket
            self._poller.register(socket, zmq.POLLIN | zmq.POLLOUT)

    def interest(self) -> list[tuple[zmq.Socket[bytes], int]]:
        """For a loop that polls itself: our sockets, and what each waits for. Then `pump(0)`."""
        now = time.monotonic()
        return [(s, zmq.POLLIN | (zmq.POLLOUT if self._due(n) <= now else 0)) for n, s in self._sockets.items()]

    def _due(self, name: str) -> float:
        return self._greeted.get(name, 0.0) + (ROUTER_AGAIN_S if name == ROUTER else HELLO_AGAIN_S)

    def pump(self, timeout_s: float) -> bool:
        """Greet who is due, take in what has come; wait at most `timeout_s` for it. Returns: whether anything came."""
        names = {socket: name for name, socket in self._sockets.items()}
        give_up = time.monotonic() + timeout_s
        while True:
            now = time.monotonic()
            due = min(now + 1, give_up)
            for name, socket in self._sockets.items():
                again = self._due(name)
                self._poller.modify(socket, zmq.POLLIN | (zmq.POLLOUT if again <= now else 0))
                due = min(due, again) if again > now else due
            came = False
            for socket, events in self._poller.poll(max(0, int((due - now) * 1000 + 0.999))):
                name = names[socket]
                if events & zmq.POLLOUT:
                    self._greet(name)
                if events & zmq.POLLIN:
                    came = self._take(name) or came
            if came or time.monotonic() >= give_up:
                return came

    def _greet(self, name: str) -> None:
        parts = self._hello if name != ROUTER else [wire.pack_head(wire.STATUS, 1), b""]
        try:
            self._sockets[name].send_multipart(parts, zmq.NOBLOCK)
        except zmq.Again:
            return
        self._greeted[name] = time.monotonic()

    def _take(self, name: str) -> bool:
        came = False
        while (parts := _receive_parts(self._sockets[name])) is not None:
            kind, request = wire.HEAD.unpack(parts[0])
            body = parts[1]
            if kind == wire.LEADER and name != ROUTER:
                leader, term = wire.decode(body)
                self.announced[name] = (leader, term)
                came = True
            elif kind == wire.RESULT and name == ROUTER:
                status = wire.decode(body)
                self.router = status if isinstance(status, dict) else None
                came = True
            elif request > GREETING:
                self.answers.append((name, kind, request, body))
                came = True
        return came

    def ask(self, name: str, kind: int, request: int, body: bytes) -> bool:
        """Send a request with a number above GREETING; False: it cannot be sent now."""
        try:
            self._sockets[name].send_multipart([wire.pack_head(kind, request), body], zmq.NOBLOCK)
        except (KeyError, zmq.Again):
            return False
        return True

    @property
    def next_greeting(self) -> float:
        """time.monotonic() of when somebody is to be greeted again; who is overdue cannot be reached yet."""
        now = time.monotonic()
        return min((due for name in self._sockets if (due := self._due(name)) > now), default=now + 1)

    def close(self) -> None:
        for socket in self._sockets.values():
            socket.close()
        self._sockets.clear()
        if self._own_context:
            self._context.term()


def _receive(socket: zmq.Socket[bytes]) -> Reply | None:
    """One answer that is already here, or None."""
    parts = _receive_parts(socket)
    return None if parts is None else (wire.HEAD.unpack(parts[0])[0], parts[1])


def _receive_parts(socket: zmq.Socket[bytes]) -> list[bytes] | None:
    """[head, body] of one answer that is already here, or None. What is not an answer is dropped."""
    while True:
        try:
            parts = socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        if len(parts) == 2 and len(parts[0]) == wire.HEAD_BYTES:
            return parts


def ask(
    spec: ClusterSpec,
    names: Iterable[str],
    kind: int,
    body: bytes | Mapping[str, bytes] = b"",
    *,
    timeout_s: float,
    still: Callable[[], Collection[str]] | None = None,
) -> dict[str, Reply]:
    """One question to several processes at once; `body` may differ by name.

    Args:
        still: for questions that take long: who can still answer, looked at again and again; nobody waits for others.
    Returns:
        Who answered within `timeout_s`: name -> (kind, body).
    """
    answers: dict[str, Reply] = {}
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    poller = zmq.Poller()
    names_of: dict[zmq.Socket[bytes], str] = {}
    try:
        for name in names:
            socket = _open(context, spec, name)
            names_of[socket] = name
            poller.register(socket, zmq.POLLOUT)
        give_up = time.monotonic() + timeout_s
        waiting = set(names_of.values())
        look_at = time.monotonic() + LOOK_S
        while waiting and (left_s := give_up - (now := time.monotonic())) > 0:
            if still is not None and now >= look_at:
                waiting &= set(still())
                look_at = now + LOOK_S
            wait_s = left_s if still is None else min(left_s, LOOK_S)
            for socket, events in poller.poll(int(wait_s * 1000) + 1):
                if events & zmq.POLLOUT:
                    content = body if isinstance(body, bytes) else body[names_of[socket]]
                    with suppress(zmq.Again):  # whom it was connected to has gone this very moment: it connects again
                        socket.send_multipart([wire.pack_head(kind, 1), content], zmq.NOBLOCK)
                        poller.modify(socket, zmq.POLLIN)
                elif (reply := _receive(socket)) is not None and reply[0] != wire.LEADER:
                    answers[names_of[socket]] = reply
                    waiting.discard(names_of[socket])
                    poller.unregister(socket)
    finally:
        for socket in names_of:
            socket.close()
        context.term()
    return answers


def statuses(spec: ClusterSpec, names: Iterable[str], *, timeout_s: float = 0.3) -> dict[str, dict[str, Any]]:
    """What replicas (or the router) say about themselves: name -> status map, of those that answered in time."""
    found = {}
    for name, (kind, body) in ask(spec, names, wire.STATUS, timeout_s=timeout_s).items():
        if kind == wire.RESULT:
            status = wire.decode(body)
            if isinstance(status, dict):
                found[name] = status
    return found
