"""A worker's connection to the router: one DEALER, two threads, and at any moment one of them responsible.

    main thread, nothing to do      blocked in the socket's own receive: the shortest way from a message to a task
    main thread, in a short task    nobody looks: what comes waits in the socket
    main thread, in a long task     the attendant watches: more work, recalls, pings, results that should not wait

The attendant costs short tasks nothing: while tasks come it looks every LOOK_NS whether one of them has been running
for long, and takes over the socket only then (`attended`); when none come it sleeps. The socket is used with the lock
held, except by the blocking receive, and then it is not attended.

The descriptor is edge-triggered: the attendant reads EVENTS before it sleeps on it, and after every send by others.
"""

from __future__ import annotations

import os
import select
import signal
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
REST_S: Final = 1.0
"""A signal that comes in the moment before the main thread sleeps is acted on after so long at the latest."""
LOOK_NS: Final = 5_000_000
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
        next_deadline: moment in monotonic nanoseconds or NEVER; kept to LOOK_NS.
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
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = make_socket(
            self.context,
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
        self._rest = select.epoll()  # the main thread's
        self._rest.register(self._descriptor, select.EPOLLIN)
        self._busy = 0  # odd while a batch of tasks is run; every batch counts it up
        self._asleep = True  # the attendant, until the bell rings
        self._attended = False
        self._closed = False
        self._attendant = threading.Thread(target=self._attend, name="attendant", daemon=True)
        self._attendant.start()

    # -- main thread --------------------------------------------------------------------------------------------------
    def receive(self) -> None:
        """Block until a message comes, and hand it on. Signal handlers may raise here.

        A receive that blocks inside the library would not do: it may sleep on where a signal and something else that
        is no message (a peer that is gone) come together, and the signal's handler waits with it.
        """
        while True:
            try:
                first = _raw_receive(self._socket, _DONTWAIT)
                break
            except zmq.Again:
                self._rest.poll(REST_S)
        with self.lock:
            self._hand_on(first)

    def begin(self) -> None:
        """A batch of tasks begins: it may take long."""
        self._busy += 1
        if self._asleep:
            self._asleep = False
            os.eventfd_write(self._bell, 1)

    def end(self) -> None:
        """The batch is done: the socket is the main thread's again."""
        self._busy += 1
        if self._attended:
            with self.lock:
                self._attended = False
                self._epoll.unregister(self._descriptor)
                self._drain()

    def pump(self, done: Callable[[], bool], timeout_s: float) -> None:
        """Hand messages on until `done()`, at most so long. Not in a batch."""
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
        self._rest.close()
        self._socket.close()
        self.context.term()

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
            if self._attended and _raw_get(socket, _EVENTS) & _POLLIN:  # the edge may be gone
                os.eventfd_write(self._bell, 1)
        return True

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
        # A signal that the kernel gives to this thread would not wake the main one, which has to act on it.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        seen = -1
        while True:
            with self.lock:
                if self._closed:
                    return
                busy = self._busy
                if self._attended:
                    self._drain()
                elif busy == seen and busy & 1:  # the same batch as last time
                    self._attended = True
                    self._epoll.register(self._descriptor, select.EPOLLIN)
                    self._drain()
                if busy & 1 and self._next_deadline() <= time.monotonic_ns():
                    self._on_deadline()
                # No batch since the last look, or one that is attended: no need to look again before `begin` rings.
                watching = self._attended and self._next_deadline() >= NEVER
                self._asleep = watching or (busy == seen and not busy & 1)
                if self._busy != busy:  # one has begun just now, and may have seen us awake
                    self._asleep = False
                seen = busy
            self._epoll.poll(None if self._asleep else LOOK_NS / 1e9)
            try:
                os.eventfd_read(self._bell)
            except BlockingIOError:
                pass
