"""A worker's connection to the router: one DEALER, two threads, and at any moment one of them responsible.

    main thread, nothing to do     blocked in the socket's own receive: the shortest way from a message to a task
    main thread, running a task    the attendant watches: more work, recalls, pings, results that should not wait

Changing sides costs one system call that arms or disarms the attendant's epoll entry; it wakes no thread. The socket
is used with the lock held, except by the blocking receive, during which the attendant is disarmed.

The descriptor is edge-triggered: whoever arms the attendant has read EVENTS after the last receive and send.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any, Final, cast

import zmq
from zmq.backend import Socket as RawSocket

from zcluster.tasks.protocol import INLINE_BYTES_MAX, MESSAGE_BYTES_MAX
from zcluster.transport.sockets import Security, make_socket
from zcluster.types import NEVER, Nanoseconds

# The plain calls, with plain integers: the convenience layer above them costs more than they do.
_raw_send: Final[Any] = RawSocket.send
_raw_receive: Final[Any] = RawSocket.recv
_raw_get: Final[Any] = RawSocket.get
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_DONTWAIT: Final = int(zmq.DONTWAIT)
_SNDMORE: Final = int(zmq.SNDMORE)
_RCVMORE: Final = int(zmq.RCVMORE)


class Line:
    """See the head of this module.

    Args:
        on_message: called with the frames of each message, on either thread, with the lock.
        on_deadline: called by the attendant, with the lock, once `next_deadline()` has passed.
        next_deadline: moment in monotonic nanoseconds or NEVER; `ring` after making it earlier.
    """

    def __init__(
        self,
        endpoint: str,
        security: Security | None,
        on_message: Callable[[list[bytes]], None],
        on_deadline: Callable[[], None],
        next_deadline: Callable[[], Nanoseconds],
    ) -> None:
        self.lock = threading.RLock()
        self._on_message = on_message
        self._on_deadline = on_deadline
        self._next_deadline = next_deadline
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = make_socket(
            self._context,
            zmq.DEALER,
            connect=endpoint,
            security=security,
            message_bytes_max=MESSAGE_BYTES_MAX,
            probe=True,
        )
        self._descriptor = cast(int, self._socket.get(zmq.FD))
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._bell, select.EPOLLIN)
        self._epoll.register(self._descriptor, 0)
        self._armed = False
        self._closed = False
        self._attendant_until: Nanoseconds = NEVER
        self._attendant = threading.Thread(target=self._attend, name="attendant", daemon=True)
        self._attendant.start()

    # -- main thread --------------------------------------------------------------------------------------------------
    def receive(self) -> None:
        """Block until a message comes, and hand it on. Disarmed only. Signal handlers may raise here."""
        first = _raw_receive(self._socket)
        with self.lock:
            self._hand_on(first)

    def arm(self) -> None:
        """From now on the attendant watches."""
        with self.lock:
            self._drain()
            self._armed = True
        self._epoll.modify(self._descriptor, select.EPOLLIN)

    def disarm(self) -> None:
        """The attendant steps aside."""
        self._epoll.modify(self._descriptor, 0)
        with self.lock:
            self._armed = False

    def pump(self, done: Callable[[], bool], timeout_s: float) -> None:
        """Hand messages on until `done()`, at most so long. Disarmed only."""
        give_up = time.monotonic() + timeout_s
        while not done() and (left_s := give_up - time.monotonic()) > 0:
            if self._socket.poll(max(1, int(left_s * 1000))):
                with self.lock:
                    self._drain()

    def close(self) -> None:
        """End; unsent messages are dropped."""
        with self.lock:
            self._closed = True
            os.eventfd_write(self._bell, 1)
        self._attendant.join()
        self._socket.close()
        self._context.term()

    # -- either thread, with the lock ---------------------------------------------------------------------------------
    def send(self, message: list[bytes]) -> bool:
        """False: not connected. Then the router will ask who we are, once it is there again."""
        socket = self._socket
        last = len(message) - 1
        try:
            for i in range(last):
                _raw_send(socket, message[i], _DONTWAIT | _SNDMORE, len(message[i]) < INLINE_BYTES_MAX)
            _raw_send(socket, message[last], _DONTWAIT, len(message[last]) < INLINE_BYTES_MAX)
        except zmq.Again:
            return False
        finally:
            if self._armed and _raw_get(socket, _EVENTS) & _POLLIN:  # the edge may be gone
                os.eventfd_write(self._bell, 1)
        return True

    def ring(self) -> None:
        """The deadline may be earlier now."""
        if self._next_deadline() < self._attendant_until:
            os.eventfd_write(self._bell, 1)

    def _drain(self) -> None:
        socket = self._socket
        while _raw_get(socket, _EVENTS) & _POLLIN:
            self._hand_on(_raw_receive(socket, _DONTWAIT))

    def _hand_on(self, first: bytes) -> None:
        message = [first]
        while _raw_get(self._socket, _RCVMORE):
            message.append(_raw_receive(self._socket, _DONTWAIT))
        self._on_message(message)

    # -- attendant ----------------------------------------------------------------------------------------------------
    def _attend(self) -> None:
        while True:
            with self.lock:
                if self._closed:
                    return
                if self._armed:
                    self._drain()
                    if self._next_deadline() <= time.monotonic_ns():
                        self._on_deadline()
                until = self._attendant_until = self._next_deadline() if self._armed else NEVER
            wait_ns = until - time.monotonic_ns()
            if wait_ns > 0:
                self._epoll.poll(None if until >= NEVER else wait_ns / 1e9)
            try:
                os.eventfd_read(self._bell)
            except BlockingIOError:
                pass
