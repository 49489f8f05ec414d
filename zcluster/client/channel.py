"""One bundle of DEALER sockets, shared by the threads of a client: whoever waits does the work.

A hand-over between threads costs as much as half a round trip, so a caller that waits polls the sockets itself. While
nobody waits, one daemon thread does, so that futures, callbacks and time-outs make progress. Protocols (the kv
session, the task pool) live elsewhere; they see whole messages, deadlines, and a lock.

    caller threads          wait(): one of them drives, the others sleep until they are done or take over
          |  lock
    [ protocol state ] <- on_message(key, parts, now) / on_deadline(now) / on_writable(key)
          |
    [ DEALER ] [ PULL ] ... and a bell (an eventfd)          all file descriptors in the epoll set `_inner`
          |
    background thread       sleeps on `_outer`, which holds only `_inner`; a driver *mutes* that one entry on entering
                            and restores it on leaving: two system calls, no thread is woken, nothing is handed over

Invariants:
  * Sockets are touched only with `lock` held. Callbacks run with it held, functions given to `after` without.
  * The descriptor of a ZeroMQ socket is edge-triggered: nobody goes to sleep before EVENTS, read again after the last
    send and receive on that socket, has shown that there is nothing to receive.
  * Only proof that the process is the one that made the channel lets a method touch anything: a forked child gets
    `Closed` (or False) and makes a channel of its own.
  * Ctrl-C is held back while a message is half handled, and raised where it can do no harm.
"""

from __future__ import annotations

import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from threading import get_ident
from typing import Any, Final, cast

import zmq
from zmq.backend import Socket as RawSocket

from zcluster.client.context import close_at_exit, process_context
from zcluster.client.followers import Follower, Followers
from zcluster.client.shield import Shield
from zcluster.errors import Closed
from zcluster.transport.patience import Patience
from zcluster.transport.sockets import MESSAGE_BYTES_MAX, Security, make_socket
from zcluster.types import NEVER, Nanoseconds

MESSAGES_PER_TURN: Final = 512
"""Received with the lock held before others get a chance; the rest follows at once."""
ZERO_COPY_BYTES: Final = 1 << 16
# The plain calls, with plain integers: the convenience layer above them costs more than they do.
_raw_send: Final[Any] = RawSocket.send
_raw_receive: Final[Any] = RawSocket.recv
_raw_get: Final[Any] = RawSocket.get
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_POLLOUT: Final = int(zmq.POLLOUT)
_NOBLOCK: Final = int(zmq.NOBLOCK)
_SNDMORE: Final = int(zmq.SNDMORE)
_RCVMORE: Final = int(zmq.RCVMORE)
_SLEEP_S_MAX: Final = 3600.0
_SLEEP_NS_MAX: Final = 3600 * 10**9

Part = bytes | bytearray | memoryview

_forks = 0
"""How many forks lie between this process and the one that imported this module: a cheap way to notice one."""


class Channel:
    """DEALER sockets by key, driven by whichever thread waits. See the head of this module.

    Nothing is called back before the channel is first used (any method but `add` and `remove`): `kick` will do.

    Args:
        endpoints: key -> ZeroMQ address.
        on_message: called with (key, parts, now); `now` was sampled after the last message of the batch arrived.
        on_deadline: called with (now) once `next_deadline()` has passed.
        next_deadline: moment in monotonic nanoseconds, or NEVER; call `kick()` after making it earlier.
        on_writable: called with (key) when a key on which `send` returned False can be sent to again.
        probe: send one empty message on every new connection, so that a restarted ROUTER hears of us at once.
        quick: may the answer be here so soon that a waiter should look for it before it sleeps? See `Patience`.
    """

    def __init__(
        self,
        endpoints: Mapping[int, str],
        security: Security | None,
        on_message: Callable[[int, list[bytes], Nanoseconds], None],
        on_deadline: Callable[[Nanoseconds], None],
        next_deadline: Callable[[], Nanoseconds],
        *,
        on_writable: Callable[[int], None] | None = None,
        probe: bool = False,
        message_bytes_max: int = MESSAGE_BYTES_MAX,
        quick: Callable[[], bool] | None = None,
    ) -> None:
        self.lock = threading.RLock()
        self._forks = _forks
        self.closed = False
        self._on_message = on_message
        self._on_deadline = on_deadline
        self._next_deadline = next_deadline
        self._on_writable = on_writable
        self._quick = quick
        self._patience = Patience()
        self._security = security
        self._probe = probe
        self._message_bytes_max = message_bytes_max
        self._context = process_context()
        self._sockets: dict[int, zmq.Socket[bytes]] = {}
        self._keys: dict[int, int] = {}  # descriptor -> key
        self._blocked: set[int] = set()
        self._unread: set[int] = set()  # keys to look at before anybody sleeps, whatever their descriptors say
        self._after: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._followers = Followers()
        self._driver = 0  # thread id of the waiter that drives
        self._turning = 0  # thread id of whoever is inside a turn
        self._until: Nanoseconds = 0  # when the sleeping driver (or background thread) wakes by itself
        self._background_until: Nanoseconds = 0
        self._background: threading.Thread | None = None
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._inner = select.epoll()
        self._inner.register(self._bell, select.EPOLLIN)
        self._inner_fd = self._inner.fileno()
        self._outer = select.epoll()
        self._outer.register(self._inner_fd, select.EPOLLIN)
        for key, endpoint in endpoints.items():
            self._connect(key, endpoint)
        _channels.add(self)

    # -- connections ---------------------------------------------------------------------------------------------------

    def add(self, key: int, endpoint: str) -> None:
        """Connect `key`; an existing connection of that key is closed first. Raises: Closed, zmq.ZMQError."""
        self._check()
        with self.lock:
            self._drop(key)
            self._connect(key, endpoint)
            self._ring()

    def _connect(self, key: int, endpoint: str) -> None:
        socket = make_socket(
            self._context,
            zmq.DEALER,
            connect=endpoint,
            security=self._security,
            message_bytes_max=self._message_bytes_max,
            probe=self._probe,
        )
        self._register(key, socket)

    def _register(self, key: int, socket: zmq.Socket[bytes]) -> None:
        descriptor = cast(int, socket.get(zmq.FD))
        self._sockets[key] = socket
        self._keys[descriptor] = key
        self._unread.add(key)  # whatever happened before the registration is looked at once
        self._inner.register(descriptor, select.EPOLLIN)

    def listen(self, key: int, endpoint: str) -> None:
        """Bind a PULL socket as `key`: messages of strangers come in as those of connections do. Raises: Closed,
        zmq.ZMQError."""
        self._check()
        with self.lock:
            socket = make_socket(
                self._context,
                zmq.PULL,
                bind=endpoint,
                security=self._security,
                message_bytes_max=self._message_bytes_max,
            )
            self._register(key, socket)
            self._ring()

    def remove(self, key: int) -> None:
        """Close the connection of `key`; nothing happens if there is none."""
        if self._forks == _forks:
            with self.lock:
                self._drop(key)

    def _drop(self, key: int) -> None:
        socket = self._sockets.pop(key, None)
        self._blocked.discard(key)
        self._unread.discard(key)
        if socket is not None and not self.closed:
            descriptor = cast(int, socket.get(zmq.FD))
            del self._keys[descriptor]
            self._inner.unregister(descriptor)
            socket.close(0)

    def send(self, key: int, parts: Sequence[Part]) -> bool:
        """Hand one message to `key`, never blocking. Needs the lock.

        Returns:
            False when nothing was sent: not connected, the queue is full, the channel is closed or belongs to a
            parent process. Otherwise the message is on its way, which says nothing about its arrival.
        """
        socket = self._sockets.get(key)
        if socket is None or self.closed or self._forks != _forks:
            return False
        if self._background is None:
            self._start()
        sent = True
        try:
            if len(parts) == 1:
                _raw_send(socket, parts[0], _NOBLOCK, len(parts[0]) < ZERO_COPY_BYTES)
            else:
                _send_parts(socket, parts)
            if self._blocked:
                self._blocked.discard(key)
        except zmq.Again:
            self._blocked.add(key)
            sent = False
        events = _raw_get(socket, _EVENTS)
        # The attempt may have consumed the descriptor's edge: what it announced is looked at again.
        if events & _POLLIN or (events & _POLLOUT and not sent):
            self._unread.add(key)
            if self._turning != get_ident():
                self._ring()
        return sent

    # -- waiting -------------------------------------------------------------------------------------------------------

    def wait(self, done: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Drive the channel until `done()`, or see to it that another waiter does. Call it without the lock.

        `done` is cheap, and changes only in callbacks or with the lock held; it may be called by other threads.

        Returns: what `done()` says in the end; False after `timeout_s` seconds (None: no limit).
        Raises: Closed.
        """
        if done():
            return True
        give_up = NEVER if timeout_s is None else time.monotonic_ns() + int(timeout_s * 1e9)
        me = get_ident()
        self._check()
        if self._driver == me:  # called by a function given to `after`, on the thread that drives
            with Shield() as shield:
                return self._drive(done, give_up, shield)
        with Shield() as shield:
            try:
                with self.lock:
                    if done():
                        return True
                    follower = None
                    if self._driver:
                        follower = self._followers.join(me, done)
                    else:
                        self._driver = me
                        self._outer.modify(self._inner_fd, 0)
                if follower is not None:
                    with shield.open():
                        self._follow(follower, give_up)
                    if not follower.promoted:
                        self._check()
                        return done()
                return self._drive(done, give_up, shield)
            finally:
                if self._driver == me:
                    with self.lock:
                        self._pass_on()

    def _follow(self, follower: Follower, give_up: Nanoseconds) -> None:
        """Sleep until done, out of time, or promoted."""
        try:
            follower.sleep(give_up)
        finally:
            with self.lock:
                self._followers.leave(follower)

    def _drive(self, done: Callable[[], bool], give_up: Nanoseconds, shield: Shield) -> bool:
        ready: list[tuple[int, int]] = []
        lock, poll, now_ns = self.lock, self._inner.poll, time.monotonic_ns
        while True:
            with lock:
                if ready or self._unread or self._until == 0:
                    self._turn(ready)
                    if done():
                        return True
                self._check()
                until = 0 if self._unread or self._after else min(self._next_deadline(), give_up)
                self._until = until
            if self._after:
                self._run_after(shield)
            now = now_ns()
            if now >= give_up:
                return False
            ready = []
            if until > now:
                with shield.open():
                    if self._quick is not None and self._quick():
                        ready = self._patience.poll(self._inner, min(until - now, _SLEEP_NS_MAX), now)
                    else:
                        ready = poll(_SLEEP_S_MAX if until >= NEVER else (until - now) / 1e9)
            if not ready:
                self._until = 0  # a deadline, or more to do

    def _pass_on(self) -> None:
        """The driver goes: the next waiter takes over, else the background thread. Needs the lock."""
        successor = self._followers.promote_next()
        self._driver = successor.thread if successor is not None else 0
        if successor is not None or self.closed:
            return
        self._outer.modify(self._inner_fd, select.EPOLLIN)
        self._until = self._background_until
        if self._unread or self._after or self._next_deadline() < self._until:
            self._ring()

    # -- turns ---------------------------------------------------------------------------------------------------------

    def _turn(self, ready: Sequence[tuple[int, int]]) -> None:
        """Receive what is there, hand it on, meet deadlines. Needs the lock. `ready`: what the poll said."""
        outer_turn, self._turning = self._turning, get_ident()
        self._until = 0
        try:
            for descriptor, _ in ready:
                key = self._keys.get(descriptor)
                if key is not None:
                    self._unread.discard(key)
                    self._receive(key)
                elif descriptor == self._bell:
                    try:
                        os.eventfd_read(self._bell)
                    except BlockingIOError:  # another thread was quicker
                        pass
            if self._unread:
                unread, self._unread = self._unread, set()
                for key in unread:
                    self._receive(key)
            now = time.monotonic_ns()
            if self._next_deadline() <= now:
                self._on_deadline(now)
            if self._followers:
                self._followers.release_done()
        finally:
            self._turning = outer_turn

    def _receive(self, key: int) -> None:
        socket = self._sockets.get(key)
        if socket is None:
            return
        batch: list[list[bytes]] = []
        while (events := _raw_get(socket, _EVENTS)) & _POLLIN:
            if len(batch) == MESSAGES_PER_TURN:
                self._unread.add(key)
                break
            message = [_raw_receive(socket, _NOBLOCK)]
            while _raw_get(socket, _RCVMORE):
                message.append(_raw_receive(socket, _NOBLOCK))
            batch.append(message)
        if batch:
            now = time.monotonic_ns()
            for message in batch:
                if self._sockets.get(key) is not socket:
                    return  # a callback closed it
                self._on_message(key, message, now)
        if self._blocked and events & _POLLOUT and key in self._blocked:
            self._blocked.discard(key)
            if self._on_writable is not None:
                self._on_writable(key)

    def after(self, function: Callable[..., object], *args: Any) -> None:
        """Run `function` soon, without the lock, on whichever thread drives (users' callbacks). Needs the lock.

        It must not raise: exceptions are dropped, since there is nobody to tell.
        """
        self._after.append((function, args))
        if self._turning != get_ident():
            self._ring()

    def _run_after(self, shield: Shield | None) -> None:
        while self._after:
            try:
                function, args = self._after.popleft()
            except IndexError:  # another thread was quicker
                return
            try:
                if shield is None:
                    function(*args)
                else:
                    with shield.open():
                        function(*args)
            except Exception:
                pass

    def _run(self) -> None:
        """Body of the background thread."""
        ready: list[tuple[int, int]] = []
        while True:
            with self.lock:
                if self.closed:
                    return
                if self._driver:
                    until = NEVER
                else:
                    self._turn(ready)
                    until = 0 if self._unread or self._after else self._next_deadline()
                    self._until = until
                self._background_until = until
            if self._after and not self._driver:
                self._run_after(None)
            ready = []
            now = time.monotonic_ns()
            if until > now and self._outer.poll(_SLEEP_S_MAX if until >= NEVER else (until - now) / 1e9):
                with self.lock:
                    if not self._driver and not self.closed:
                        ready = self._inner.poll(0)

    def kick(self, recheck: bool = False) -> None:
        """The next deadline may be earlier now: whoever sleeps looks again. Any thread, with or without the lock.

        recheck: also let the waiters ask their `done` again, which something other than a callback has changed.
        """
        if self._forks != _forks:
            return
        with self.lock:
            if self._turning == get_ident() or self.closed:
                return
            if self._background is None:
                self._start()
            if recheck or self._unread or self._next_deadline() < self._until:
                self._ring()

    def _ring(self) -> None:
        if not self.closed:
            os.eventfd_write(self._bell, 1)

    def _start(self) -> None:
        """Start the background thread: when the channel is first used, since its owner is not complete before."""
        self._background = threading.Thread(target=self._run, name="zcluster-channel", daemon=True)
        self._background.start()

    # -- the end -------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """May this process use the channel? Raises: Closed."""
        if self._forks != _forks:
            raise Closed("this connection belongs to the parent process; a forked child opens its own")
        if self.closed:
            raise Closed("the connection is closed")
        if self._background is None:
            with self.lock:
                if self._background is None:
                    self._start()

    def close(self) -> None:
        """Close the sockets and end the background thread; waiters get `Closed`. Harmless when repeated or forked."""
        if self._forks != _forks or self.closed:
            return
        with self.lock:
            if self.closed:
                return
            self._ring()
            if self._driver:
                self._outer.modify(self._inner_fd, select.EPOLLIN)
            self.closed = True
            self._followers.release_all()
            for socket in self._sockets.values():
                socket.close(0)
            self._sockets.clear()
        thread = self._background
        if thread is not None and thread is not threading.current_thread():
            thread.join(1.0)

    def __del__(self) -> None:
        if hasattr(self, "_bell"):
            os.close(self._bell)


def _send_parts(socket: zmq.Socket[bytes], parts: Sequence[Part]) -> None:
    """A half-sent message would corrupt every later one, so Ctrl-C waits until the last part is out."""
    with Shield():
        last = len(parts) - 1
        for i, part in enumerate(parts):
            _raw_send(socket, part, _NOBLOCK | (_SNDMORE if i < last else 0), len(part) < ZERO_COPY_BYTES)


_channels: weakref.WeakSet[Channel] = weakref.WeakSet()


def _after_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_after_fork)


@close_at_exit
def _close_all() -> None:
    for channel in list(_channels):
        channel.close()
