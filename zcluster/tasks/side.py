"""One side of the router: a ROUTER socket, who may join, and what the death of a process on it means.

Everything malformed is dropped and counted. Sending never blocks.
"""

from __future__ import annotations

import select
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final, cast

import zmq
from zmq.backend import Socket as RawSocket

from zcluster.config import ClusterSpec
from zcluster.tasks import protocol as p
from zcluster.tasks.dispatcher import Dispatcher
from zcluster.tasks.peers import Message
from zcluster.transport.liveness import ProcessWatch
from zcluster.transport.sockets import Security, make_socket

MESSAGES_PER_TURN: Final = 256
NO_SEGMENTS: Final = repeat(None)
# The plain calls, with plain integers: the convenience layer above them costs more than they do.
_raw_send: Final[Any] = RawSocket.send
_raw_receive: Final[Any] = RawSocket.recv
_raw_get: Final[Any] = RawSocket.get
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_NOBLOCK: Final = int(zmq.NOBLOCK)
_NOBLOCK_MORE: Final = _NOBLOCK | int(zmq.SNDMORE)
_RCVMORE: Final = int(zmq.RCVMORE)


class Deaths:
    """Pidfds in an epoll set, and what to do when one becomes readable."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._react: dict[int, Callable[[], None]] = {}

    def watch(self, process: ProcessWatch, react: Callable[[], None]) -> None:
        if process.fd >= 0:
            self._react[process.fd] = react
            self._epoll.register(process.fd, select.EPOLLIN)

    def unwatch(self, process: ProcessWatch) -> None:
        if process.fd >= 0 and self._react.pop(process.fd, None) is not None:
            self._epoll.unregister(process.fd)

    def handle(self, descriptor: int) -> None:
        """`descriptor` is readable; others than pidfds are ignored."""
        react = self._react.get(descriptor)
        if react is not None:
            react()


@dataclass(frozen=True, slots=True)
class Common:
    """What both sides share. `incarnation` tells one run of the router from another."""

    spec: ClusterSpec
    context: zmq.Context[zmq.Socket[bytes]]
    security: Security | None
    dispatcher: Dispatcher
    deaths: Deaths
    incarnation: int


class Side(ABC):
    """What both sides have in common. `handle` and what is sent are the subclass's.

    Attributes:
        unread: look at the socket before sleeping, whatever its (edge-triggered) descriptor says.
        sent: something was sent since `look`; that may have consumed the descriptor's edge.
    """

    def __init__(self, role: str, common: Common) -> None:
        self.spec = common.spec
        self.dispatcher = common.dispatcher
        self.deaths = common.deaths
        self.unread = True
        self.sent = False
        self.dropped_garbage = 0
        self._who = [p.pack(p.WHO, [common.incarnation])]
        self._socket = make_socket(
            common.context,
            zmq.ROUTER,
            bind=common.spec.endpoint("router", role),
            security=common.security,
            message_bytes_max=p.MESSAGE_BYTES_MAX,
        )
        self.fd = cast(int, self._socket.get(zmq.FD))

    @abstractmethod
    def handle(self, identity: bytes, message: Message) -> None:
        """One message. Raises: ValueError, TypeError, KeyError, OverflowError, OSError for garbage."""

    def receive(self) -> None:
        """Handle what is there, at most MESSAGES_PER_TURN messages."""
        socket = self._socket
        for _ in range(MESSAGES_PER_TURN):
            if not _raw_get(socket, _EVENTS) & _POLLIN:
                self.unread = False
                return
            identity = _raw_receive(socket, _NOBLOCK)
            message = [_raw_receive(socket, _NOBLOCK)]  # an identity never comes alone
            while _raw_get(socket, _RCVMORE):
                message.append(_raw_receive(socket, _NOBLOCK))
            try:
                self.handle(identity, message)
            except (ValueError, TypeError, KeyError, OverflowError, OSError):
                self.dropped_garbage += 1

    def send(self, identity: bytes, message: Message) -> bool:
        """False: not sent, since the peer is gone or does not read."""
        socket = self._socket
        self.sent = True
        try:
            _raw_send(socket, identity, _NOBLOCK_MORE)
            last = len(message) - 1
            for i in range(last):
                _raw_send(socket, message[i], _NOBLOCK_MORE, len(message[i]) < p.INLINE_BYTES_MAX)
            _raw_send(socket, message[last], _NOBLOCK, len(message[last]) < p.INLINE_BYTES_MAX)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return False
        return True

    def reachable(self, identity: bytes, message: Message) -> bool:
        """Is there a connection? If so, and the peer reads, it gets `message` (one frame)."""
        try:
            _raw_send(self._socket, identity, _NOBLOCK_MORE)
        except zmq.ZMQError as error:
            return error.errno != zmq.EHOSTUNREACH
        _raw_send(self._socket, message[0], _NOBLOCK)
        self.sent = True
        return True

    def look(self) -> None:
        """Before anybody sleeps: is there something to receive that the descriptor will not tell?"""
        if self.sent and not self.unread:
            self.unread = bool(_raw_get(self._socket, _EVENTS) & _POLLIN)
        self.sent = False

    def ask_who(self, identity: bytes) -> None:
        self.send(identity, self._who)

    def refusal(self, protocol: int, cluster_id: str, python: str) -> str | None:
        """Why somebody may not join; None: welcome."""
        if cluster_id != self.spec.cluster_id:
            return f"this is cluster {self.spec.name!r} with another id; it was created anew: connect again"
        if protocol != p.PROTOCOL:
            return "the cluster runs another version of zcluster; restart it: zcluster restart"
        if python != p.PYTHON:
            return (
                f"this is Python {python}, the cluster runs Python {p.PYTHON}, and functions do not travel between "
                f"them: use Python {p.PYTHON} here, or start a cluster with Python {python}"
            )
        return None

    def close(self) -> None:
        self._socket.close()
