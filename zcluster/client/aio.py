"""The replicated key-value store for event loops: the same calls with `async`.

    tasks of a loop    await kv.put(...)  ->  session.write, a future; the first one of a turn asks for a flush
    end of the turn    flush              ->  one frame for all of them  ->  send
    socket readable    drain              ->  session.received           ->  futures

Each running event loop has sockets and a session of its own, closed when the loop ends (asyncio.run and others that
shut down asynchronous generators), when the AsyncKV is closed or dropped, or when another loop uses it after the first
was closed. Raw sockets, not zmq.asyncio. One timer a loop, not one an operation.

The file descriptor of a ZeroMQ socket is edge-triggered: after every send and receive EVENTS is read again.
"""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections.abc import AsyncGenerator
from typing import Any, Final, cast

import zmq

from zcluster import wire
from zcluster.client.context import close_at_exit, process_context
from zcluster.client.flight import Op, Ops
from zcluster.client.kv import REFRESH_NS, find_nodes, random_number
from zcluster.client.operations import (
    Consistency,
    Limits,
    consistency_code,
    list_page,
    take_page,
    text,
    timeout_ns,
)
from zcluster.client.pipeline import AsyncPipeline, only_reads
from zcluster.client.session import FRAMES_IN_FLIGHT, ClientSession
from zcluster.config import CLIENT, ClusterSpec
from zcluster.errors import Closed
from zcluster.transport.sockets import Security, make_socket
from zcluster.types import NEVER, Nanoseconds

MESSAGES_PER_TURN: Final = 256
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_POLLOUT: Final = int(zmq.POLLOUT)
_NOBLOCK: Final = int(zmq.NOBLOCK)
_RCVMORE: Final = int(zmq.RCVMORE)
_SNDMORE: Final = int(zmq.SNDMORE)
_monotonic_ns = time.monotonic_ns
_running_loop = asyncio.get_running_loop


class AsyncKV:
    """The key-value store of one cluster, in any event loop, also in several. See zcluster.client.kv.KV for what the
    calls promise; they are the same.

    Cancelling a task that waits for a write does not take the write back: it goes on, and whether it was applied is as
    unknown as with a write that timed out.
    """

    def __init__(self, spec: ClusterSpec, *, frames_in_flight: int = FRAMES_IN_FLIGHT) -> None:
        self._spec = spec
        self._frames_in_flight = frames_in_flight
        self._limits = Limits(spec.settings)
        self._closed = False
        self._connections: dict[int, LoopConnection] = {}  # by id of the loop
        self._latest: LoopConnection | None = None

    async def put(self, key: str, value: bytes, *, timeout: float = 10) -> int:
        """See KV.put."""
        op, size_bytes = self._limits.put(key, value)
        result: int = await self._connected().write(op, size_bytes, timeout)
        return result

    async def get(self, key: str, *, consistency: Consistency = "linearizable", timeout: float = 10) -> bytes | None:
        """See KV.get."""
        op, _ = self._limits.get(key)
        result: bytes | None = await self._connected().read(op, consistency, timeout)
        return result

    async def delete(self, key: str, *, timeout: float = 10) -> bool:
        """See KV.delete."""
        op, size_bytes = self._limits.delete(key)
        result: bool = await self._connected().write(op, size_bytes, timeout)
        return result

    async def cas(self, key: str, expected: bytes | None, new: bytes | None, *, timeout: float = 10) -> bool:
        """See KV.cas."""
        op, size_bytes = self._limits.cas(key, expected, new)
        result: bool = await self._connected().write(op, size_bytes, timeout)
        return result

    async def append(self, key: str, data: bytes, *, timeout: float = 10) -> bytes:
        """See KV.append."""
        op, size_bytes = self._limits.append(key, data)
        result: bytes = await self._connected().write(op, size_bytes, timeout)
        return result

    async def list(
        self, prefix: str = "", *, consistency: Consistency = "linearizable", timeout: float = 10
    ) -> dict[str, bytes]:
        """See KV.list."""
        prefix = text(prefix, "a prefix")
        give_up = _monotonic_ns() + timeout_ns(timeout)
        found: dict[str, bytes] = {}
        after: str | None = None
        while True:
            rest_s = max(give_up - _monotonic_ns(), 1) / 1e9
            after = take_page(found, await self._connected().read(list_page(prefix, after), consistency, rest_s))
            if after is None:
                return found

    def pipeline(self, *, timeout: float = 10) -> AsyncPipeline:
        """See KV.pipeline; with `async with`, or `await pipeline.execute()`."""
        return AsyncPipeline(self._limits, self._send_pipeline, timeout)

    async def _send_pipeline(self, ops: Ops, size_bytes: int, timeout: float) -> Any:
        return await self._connected().run_all(ops, size_bytes, timeout)

    def _connected(self) -> LoopConnection:
        loop = _running_loop()
        latest = self._latest
        if latest is not None and latest.loop is loop and not latest.closed and latest.pid == os.getpid():
            return latest
        if self._closed:
            raise Closed("this client is closed; make a new one with zcluster.connect()")
        for key, connection in tuple(self._connections.items()):
            if connection.closed or connection.loop.is_closed() or connection.pid != os.getpid():
                self._connections.pop(key, None)
                connection.close()
        found = self._connections.get(id(loop))
        if found is None:
            found = self._connections[id(loop)] = LoopConnection(self._spec, loop, self._frames_in_flight)
        self._latest = found
        return found

    def close(self) -> None:
        """Close the connections of all loops, from any thread. Idempotent."""
        self._closed = True
        self._latest = None
        while self._connections:
            _, connection = self._connections.popitem()
            connection.close_from_anywhere()

    def __del__(self) -> None:
        for connection in getattr(self, "_connections", {}).values():
            connection.close_from_anywhere()


class LoopConnection:
    """A ClientSession over DEALER sockets that one event loop watches. Used in that loop's thread only."""

    def __init__(self, spec: ClusterSpec, loop: asyncio.AbstractEventLoop, frames_in_flight: int) -> None:
        self.loop = loop
        self.pid = os.getpid()
        self.closed = False
        self._spec = spec
        self._security = Security.load(spec)
        self._sockets: dict[int, zmq.Socket[bytes]] = {}
        self._blocked: set[int] = set()  # replicas whose socket could not send
        self._refreshed: Nanoseconds = _monotonic_ns()
        self._flush_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: Nanoseconds = NEVER
        self.session = ClientSession(
            [n.replica_id for n in spec.nodes], spec.cluster_id, random_number, frames_in_flight=frames_in_flight
        )
        for node in spec.nodes:
            self._add(node.replica_id, spec.endpoint(node.name, CLIENT))
        self._guard = _close_with_loop(weakref.ref(self))
        _start(self._guard)
        _connections.add(self)
        self._flush()

    def _add(self, replica: int, endpoint: str) -> None:
        socket = make_socket(process_context(), zmq.DEALER, connect=endpoint, security=self._security, probe=True)
        self._sockets[replica] = socket
        self._blocked.add(replica)
        self.loop.add_reader(cast(int, socket.get(zmq.FD)), self._drain, replica, socket)

    def _remove(self, replica: int) -> None:
        socket = self._sockets.pop(replica, None)
        self._blocked.discard(replica)
        if socket is not None:
            self.loop.remove_reader(cast(int, socket.get(zmq.FD)))
            socket.close(0)

    # -- calls --------------------------------------------------------------------------------------------------------
    def write(self, op: Op, size_bytes: int, timeout: float) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self.loop.create_future()
        self.session.write(op, future, _monotonic_ns() + timeout_ns(timeout), size_bytes)
        if not self._flush_due:
            self._flush_due = True
            self.loop.call_soon(self._flush)
        return future

    def read(self, op: Op, consistency: Consistency, timeout: float) -> asyncio.Future[Any]:
        code, bound_ms = consistency_code(consistency)
        future: asyncio.Future[Any] = self.loop.create_future()
        self.session.read(op, future, _monotonic_ns() + timeout_ns(timeout), code, bound_ms)
        if not self._flush_due:
            self._flush_due = True
            self.loop.call_soon(self._flush)
        return future

    def run_all(self, ops: Ops, size_bytes: int, timeout: float) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self.loop.create_future()
        deadline = _monotonic_ns() + timeout_ns(timeout)
        if only_reads(ops):
            self.session.read_all(ops, future, deadline)
        else:
            self.session.write_all(ops, future, deadline, size_bytes)
        if not self._flush_due:
            self._flush_due = True
            self.loop.call_soon(self._flush)
        return future

    # -- what the loop calls ------------------------------------------------------------------------------------------
    def _flush(self) -> None:
        self._flush_due = False
        if not self.closed:
            now = _monotonic_ns()
            self.session.flush(now)
            self._carry_out(now)

    def _drain(self, replica: int, socket: zmq.Socket[bytes]) -> None:
        """Take what has arrived, at most MESSAGES_PER_TURN of it before others get their turn."""
        if self.closed or self._sockets.get(replica) is not socket:
            return
        messages: list[list[bytes]] = []
        while (events := cast(int, socket.get(_EVENTS))) & _POLLIN:
            if len(messages) == MESSAGES_PER_TURN:
                self.loop.call_soon(self._drain, replica, socket)
                break
            message = [socket.recv(_NOBLOCK)]
            while socket.get(_RCVMORE):
                message.append(socket.recv(_NOBLOCK))
            messages.append(message)
        now = _monotonic_ns()
        session = self.session
        for message in messages:
            if len(message) == 2 and len(message[0]) == wire.HEAD_BYTES:
                kind, request = wire.HEAD.unpack(message[0])
                session.received(replica, kind, request, message[1], now)
        if events & _POLLOUT and replica in self._blocked:
            self._blocked.discard(replica)
            session.connected(replica, now)
        elif not messages:
            return
        session.flush(now)
        self._carry_out(now)

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, NEVER
        if self.closed:
            return
        now = _monotonic_ns()
        if self.session.next_deadline() <= now:
            self.session.deadline(now)
        self._carry_out(now)

    def _carry_out(self, now: Nanoseconds) -> None:
        session = self.session
        while session.sends:
            sends, session.sends = session.sends, []
            for replica, head, body in sends:
                if not self._send(replica, head, body):
                    session.unsent(replica, head, now)
        if session.results:
            results, session.results = session.results, []
            for future, value in results:
                if future.done():  # its task was cancelled
                    continue
                if isinstance(value, Exception):
                    future.set_exception(value)
                else:
                    future.set_result(value)
        if (session.strangers or session.searching) and now - self._refreshed > REFRESH_NS:
            self._refreshed = now
            self._meet_nodes(now)
        self._arm(now)

    def _meet_nodes(self, now: Nanoseconds) -> None:
        """Nodes come and go: connect to those that the cluster has now, and to no others."""
        session, nodes = self.session, find_nodes(self._spec)
        if nodes:
            for replica in session.keep_replicas(nodes):
                self._remove(replica)
            for replica in nodes.keys() - session.replicas:
                self._add(replica, nodes[replica])
                session.add_replica(replica, now)

    def _send(self, replica: int, head: bytes, body: bytes) -> bool:
        socket = self._sockets.get(replica)
        if socket is None:
            return False
        sent = True
        try:
            socket.send(head, _NOBLOCK | _SNDMORE)
            socket.send(body, _NOBLOCK)
        except zmq.Again:
            self._blocked.add(replica)
            sent = False
        events = cast(int, socket.get(_EVENTS))
        if events & _POLLIN or (events & _POLLOUT and not sent):
            self.loop.call_soon(self._drain, replica, socket)
        return sent

    def _arm(self, now: Nanoseconds) -> None:
        """One timer, moved only when it would ring too late."""
        due = self.session.next_deadline()
        if due < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = due
            self._timer = self.loop.call_later(max(0, due - now) / 1e9, self._on_timer)

    # -- the end ------------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """Close the sockets; those who wait get Closed or Unknown. In the loop's thread, or after the loop is closed;
        in a forked child nothing of the parent's is touched."""
        if self.closed:
            return
        self.closed = True
        if self.pid != os.getpid():
            _inherited.append(self)
            return
        if self._timer is not None:
            self._timer.cancel()
        alive = not self.loop.is_closed()
        self.session.close()
        for future, value in self.session.results:
            if alive and not future.done():
                if isinstance(value, Exception):
                    future.set_exception(value)
                else:
                    future.set_result(value)
        self.session.results = []
        for socket in self._sockets.values():
            if alive:
                self.loop.remove_reader(cast(int, socket.get(zmq.FD)))
            socket.close(0)
        self._sockets.clear()
        _finish(self._guard)

    def close_from_anywhere(self) -> None:
        """Close, in the loop's own thread if it still runs."""
        if self.closed:
            return
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self.loop or not self.loop.is_running() or self.pid != os.getpid():
            self.close()
            return
        try:
            self.loop.call_soon_threadsafe(self.close)
        except RuntimeError:  # closed at this moment
            self.close()


async def _close_with_loop(connection: weakref.ref[LoopConnection]) -> AsyncGenerator[None, None]:
    """Never produces anything: its only purpose is that loops close their asynchronous generators when they end."""
    try:
        yield
    finally:
        found = connection()
        if found is not None:
            found.close()


def _start(generator: AsyncGenerator[None, None]) -> None:
    """Run to its `yield`, which takes no event loop's help but makes it known to the running one."""
    try:
        generator.__anext__().send(None)
    except StopIteration:
        pass


def _finish(generator: AsyncGenerator[None, None]) -> None:
    """Run to its end; nothing happens if it is just running."""
    try:
        generator.aclose().send(None)
    except (StopIteration, RuntimeError):
        pass


_connections: weakref.WeakSet[LoopConnection] = weakref.WeakSet()
_inherited: list[LoopConnection] = []
"""Connections of a parent process, kept as they are."""


@close_at_exit
def _close_all() -> None:
    for connection in list(_connections):
        if connection.pid == os.getpid():
            connection.close()
