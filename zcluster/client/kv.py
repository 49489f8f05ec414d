"""The replicated key-value store for threads: blocking calls, coalesced over all threads of a client.

    caller threads      put / get / ...  ->  session.write, flush      (with the channel's lock)
    whoever drives      channel          ->  session.received, results -> the callers' slots

The channel decides which thread drives the sockets; nothing here hands over between threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final

from zcluster import wire
from zcluster.client.channel import Channel
from zcluster.client.flight import Op, Ops
from zcluster.client.operations import (
    Bounded,
    Consistency,
    Limits,
    bounded,
    consistency_code,
    list_page,
    take_page,
    text,
    timeout_ns,
)
from zcluster.client.pipeline import Pipeline, only_reads
from zcluster.client.session import FRAMES_IN_FLIGHT, ClientSession
from zcluster.client.shield import Shield
from zcluster.config import CLIENT, ClusterSpec, load_spec
from zcluster.errors import Closed, Error, Unknown
from zcluster.transport.sockets import Security
from zcluster.types import Nanoseconds

__all__ = ["KV", "Bounded", "Consistency", "bounded"]

REFRESH_NS: Final = 100_000_000
"""At most this often the description of the cluster is read again, to find a node that was added."""
GRACE_S: Final = 5.0
_monotonic_ns = time.monotonic_ns


class KV:
    """The key-value store of one cluster. Keys are `str`, values `bytes`.

    Safe for many threads. Nothing is connected before the first call; a forked child connects anew. Every call takes
    `timeout` in seconds and retries within it. Then reads raise Timeout, and writes Unknown, or NoQuorum when they were
    certainly not applied. Wrong types raise WrongType, sizes above the cluster's limits TooLarge; both before sending.

    Reads take `consistency`: "linearizable" (the default: sees all that was acknowledged before it began), "lease" (the
    same, trusting the leader's lease instead of asking a majority), `bounded(ms=50)` (at most so old, any node),
    "eventual" (whatever the asked node has applied).
    """

    def __init__(self, spec: ClusterSpec, *, frames_in_flight: int = FRAMES_IN_FLIGHT) -> None:
        self._spec = spec
        self._frames_in_flight = frames_in_flight
        self._limits = Limits(spec.settings)
        self._connections: dict[int, Connection] = {}  # by process id: a parent's are left alone
        self._closed = False

    def put(self, key: str, value: bytes, *, timeout: float = 10) -> int:
        """Set a key. Returns: the revision, which counts the changes of the whole store."""
        op, size_bytes = self._limits.put(key, value)
        result: int = self._connected().write(op, size_bytes, timeout)
        return result

    def get(self, key: str, *, consistency: Consistency = "linearizable", timeout: float = 10) -> bytes | None:
        """Returns: the value, or None if there is no such key."""
        op, _ = self._limits.get(key)
        result: bytes | None = self._connected().read(op, consistency, timeout)
        return result

    def delete(self, key: str, *, timeout: float = 10) -> bool:
        """Returns: whether the key existed."""
        op, size_bytes = self._limits.delete(key)
        result: bool = self._connected().write(op, size_bytes, timeout)
        return result

    def cas(self, key: str, expected: bytes | None, new: bytes | None, *, timeout: float = 10) -> bool:
        """Compare and set, as one step: if the value is `expected` (None: no such key), make it `new` (None: delete).

        Returns: whether it was.
        """
        op, size_bytes = self._limits.cas(key, expected, new)
        result: bool = self._connected().write(op, size_bytes, timeout)
        return result

    def append(self, key: str, data: bytes, *, timeout: float = 10) -> bytes:
        """Add bytes to the end of a value; a missing key counts as empty. Returns: the new value."""
        op, size_bytes = self._limits.append(key, data)
        result: bytes = self._connected().write(op, size_bytes, timeout)
        return result

    def list(
        self, prefix: str = "", *, consistency: Consistency = "linearizable", timeout: float = 10
    ) -> dict[str, bytes]:
        """All pairs whose key starts with `prefix`, in order of keys (by code point).

        Large results come in pages of about 1 MiB: each page has the consistency asked for, the whole may see changes
        made between two pages. `timeout` covers all of it.
        """
        prefix = text(prefix, "a prefix")
        give_up = _monotonic_ns() + timeout_ns(timeout)
        found: dict[str, bytes] = {}
        after: str | None = None
        while True:
            rest_s = max(give_up - _monotonic_ns(), 1) / 1e9
            after = take_page(found, self._connected().read(list_page(prefix, after), consistency, rest_s))
            if after is None:
                return found

    def pipeline(self, *, timeout: float = 10) -> Pipeline:
        """Several operations in one round trip: ordered, sent as one, not atomic. See Pipeline."""
        return Pipeline(self._limits, self._send_pipeline, timeout)

    def _send_pipeline(self, ops: Ops, size_bytes: int, timeout: float) -> Any:
        return self._connected().run_all(ops, size_bytes, timeout)

    def close(self) -> None:
        """Close the connection; calls under way raise Closed, or Unknown if they may have been applied. Idempotent."""
        self._closed = True
        connection = self._connections.pop(os.getpid(), None)
        if connection is not None:
            connection.close()

    def __del__(self) -> None:
        """A dropped client is closed too: by its own background thread, since this may be any moment of any thread."""
        connection = getattr(self, "_connections", {}).get(os.getpid())
        if connection is not None:
            connection.channel.after(connection.close)

    def _connected(self) -> Connection:
        pid = os.getpid()
        connection = self._connections.get(pid)
        if connection is not None:
            return connection
        if self._closed:
            raise Closed("this client is closed; make a new one with zcluster.connect()")
        # Two threads may come here at once: one connection is kept. (A lock might have been held across a fork.)
        mine = Connection(self._spec, self._frames_in_flight)
        kept = self._connections.setdefault(pid, mine)
        if kept is not mine:
            mine.close()
        return kept


class Slot:
    """Where one caller's result is put."""

    __slots__ = ("done", "value")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None

    def is_done(self) -> bool:
        return self.done


class Connection:
    """A ClientSession over a Channel, in the process that made it."""

    def __init__(self, spec: ClusterSpec, frames_in_flight: int) -> None:
        self._spec = spec
        self._refreshed: Nanoseconds = _monotonic_ns()
        endpoints = {node.replica_id: spec.endpoint(node.name, CLIENT) for node in spec.nodes}
        self.session = ClientSession(endpoints, spec.cluster_id, random_number, frames_in_flight=frames_in_flight)
        self.channel = Channel(
            {},  # added below: callbacks come as soon as there is one, and they need the channel
            Security.load(spec),
            self._on_message,
            self._on_deadline,
            self.session.next_deadline,
            on_writable=self._on_writable,
            probe=True,
        )
        for replica, endpoint in endpoints.items():
            self.channel.add(replica, endpoint)
        with self.channel.lock:
            self._flush(_monotonic_ns())

    # -- calls --------------------------------------------------------------------------------------------------------
    def write(self, op: Op, size_bytes: int, timeout: float) -> Any:
        return self._call(lambda slot, until: self.session.write(op, slot, until, size_bytes), timeout)

    def read(self, op: Op, consistency: Consistency, timeout: float) -> Any:
        code, bound_ms = consistency_code(consistency)
        return self._call(lambda slot, until: self.session.read(op, slot, until, code, bound_ms), timeout)

    def run_all(self, ops: Ops, size_bytes: int, timeout: float) -> Any:
        if only_reads(ops):
            return self._call(lambda slot, until: self.session.read_all(ops, slot, until), timeout)
        return self._call(lambda slot, until: self.session.write_all(ops, slot, until, size_bytes), timeout)

    def _call(self, queue: Callable[[Slot, Nanoseconds], None], timeout: float) -> Any:
        """Put an operation into the session with `queue`, and wait for its result."""
        span_ns, slot = timeout_ns(timeout), Slot()
        with Shield():  # an operation is queued as a whole or not at all
            with self.channel.lock:
                now = _monotonic_ns()
                queue(slot, now + span_ns)
                self._flush(now)
            self.channel.kick()
        return self._wait(slot, timeout)

    def _wait(self, slot: Slot, timeout: float) -> Any:
        try:
            self.channel.wait(slot.is_done, min(timeout, 1e8) + GRACE_S)
        except Closed:
            if not slot.done:
                raise
        if not slot.done:
            raise Unknown("the client's own threads did not get to run in time: the outcome is not known")
        if isinstance(slot.value, Exception):
            raise slot.value
        return slot.value

    def close(self) -> None:
        with self.channel.lock:
            self.session.close()
            self._hand_out()
        self.channel.kick(recheck=True)
        self.channel.close()

    # -- with the channel's lock held ---------------------------------------------------------------------------------
    def _on_message(self, replica: int, parts: list[bytes], now: Nanoseconds) -> None:
        if len(parts) == 2 and len(parts[0]) == wire.HEAD_BYTES:
            kind, request = wire.HEAD.unpack(parts[0])
            self.session.received(replica, kind, request, parts[1], now)
            self._flush(now)

    def _on_deadline(self, now: Nanoseconds) -> None:
        self.session.deadline(now)
        self._carry_out(now)

    def _on_writable(self, replica: int) -> None:
        now = _monotonic_ns()
        self.session.connected(replica, now)
        self._flush(now)

    def _flush(self, now: Nanoseconds) -> None:
        self.session.flush(now)
        self._carry_out(now)

    def _carry_out(self, now: Nanoseconds) -> None:
        session, send = self.session, self.channel.send
        while session.sends:
            sends, session.sends = session.sends, []
            for replica, head, body in sends:
                if not send(replica, (head, body)):
                    session.unsent(replica, head, now)
        if session.results:
            self._hand_out()
        if (session.strangers or session.searching) and now - self._refreshed > REFRESH_NS:
            self._refreshed = now
            self._meet_nodes(now)

    def _meet_nodes(self, now: Nanoseconds) -> None:
        """Nodes come and go: connect to those that the cluster has now, and to no others."""
        session, nodes = self.session, find_nodes(self._spec)
        if nodes:
            for replica in session.keep_replicas(nodes):
                self.channel.remove(replica)
            for replica in nodes.keys() - session.replicas:
                self.channel.add(replica, nodes[replica])
                session.add_replica(replica, now)

    def _hand_out(self) -> None:
        results, self.session.results = self.session.results, []
        for slot, value in results:
            slot.value = value
            slot.done = True


def random_number() -> int:
    """From 1 to 2**63 - 1."""
    return (int.from_bytes(os.urandom(8), "little") >> 1) or 1


def find_nodes(spec: ClusterSpec) -> dict[int, str]:
    """Endpoints of the replicas that there are by now; empty where that cannot be known."""
    try:
        fresh = load_spec(spec.directory)
        if fresh.cluster_id != spec.cluster_id:  # made anew in the same place
            return {}
        return {n.replica_id: fresh.endpoint(n.name, CLIENT) for n in fresh.nodes}
    except (Error, OSError, KeyError):
        return {}
