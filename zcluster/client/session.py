"""The client's retry logic. PURE: no clock, no sockets; a driver hands in what happened and carries out what is left
in `sends` and `results`. The same code serves threads, event loops and the simulator.

    driver                                  ClientSession
    write / read / write_all / read_all  ->   queue
    flush(now)                           ->   queue -> frames (all that waits, never waiting for more) -> sends
    received(replica, kind, ...)         ->   results; news of the leader; redirects
    deadline(now)                        ->   resends, probes, time-outs
    unsent / connected / unreachable     ->   what the sockets know

After every input (or batch of inputs) the driver calls `flush`, then takes `sends` and `results`.

A write's frame is (session, id, floor, ops): immutable, every attempt the same bytes, so that the exactly-once table
of the cluster recognizes it. Its operations are never put into another frame while an attempt of it may still be
applied. It is given up when nobody waits for it any more: the floor of the next frame passes its id, and whatever is
left of it is refused from then on.

    attempt answered      meaning                                         what follows
    RESULT                applied, once                                   results
    NOT_LEADER, BUSY      this attempt was certainly not applied          redirect at once, or pause and try again
    nothing               may have been applied, may still be             same bytes again, to whoever leads then
    unknown session       this attempt was not applied                    if no other attempt may have been: again
                                                                          under a new session; else Unknown

Who leads: nodes announce it, the newest term with a leader wins. A term in which somebody leads is on the disks of a
majority and never comes back; that of a mere candidate may be forgotten with a power cut, so it ends the belief in the
old leader and is not remembered. A leader in a new term gets everything unanswered at once. While
answers are missing, small HELLOs ask all nodes who leads; frames go only to the believed leader, with growing pauses,
so that one that is merely slow is not drowned in copies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from zcluster import wire
from zcluster.client.answers import (
    LOST_SESSION,
    NO_QUORUM,
    TIMEOUT,
    UNKNOWN,
    is_error,
    is_leadership,
    make_error,
    makes_sense,
)
from zcluster.client.flight import ATTEMPTS_MAX, GONE, Cargo, Flight, Op, OpQueue
from zcluster.errors import Busy, Closed, Error, NoQuorum, Timeout, Unknown
from zcluster.types import MS, NEVER, NO_REPLICA, Nanoseconds, ReplicaId, Term

FRAMES_IN_FLIGHT: Final = 4
SILENCE_NS: Final = 250 * MS
SILENCE_NS_MAX: Final = 2_000 * MS
PAUSE_NS: Final = 10 * MS
PAUSE_NS_MAX: Final = 320 * MS
PROBE_NS: Final = 25 * MS
PROBE_NS_MAX: Final = 400 * MS
WINDOW: Final = 4_096
"""Ids above the floor that the cluster's exactly-once table takes."""
QUEUE_OPS_MAX: Final = 500_000
QUEUE_BYTES_MAX: Final = 512 << 20

_encode = wire.encode
_pack_head = wire.pack_head


class ClientSession:
    """One client of one cluster.

    Args:
        replicas: ids of the nodes that can be sent to.
        cluster_id: sent with HELLO.
        new_nonce: gives a fresh random number from 1 to 2**63 - 1; a session is registered by it.
        frames_in_flight: writes, and reads of one consistency, under way at a time. Fewer make bigger frames.
        frame_ops, frame_bytes: bounds of a frame; a single larger operation or program still goes, alone.

    Attributes:
        sends: (replica, head, body) to be sent, in order; the driver takes them and reports failures by `unsent`.
        results: (token, value or exception) to be handed out; the driver takes them. Each token appears once.
        leader, term: what is believed.
        strangers: replicas named as leader that the driver did not know; it should find and `add_replica` them.
        searching: nobody answers who would know who leads; the driver should look which nodes there are by now.
    """

    def __init__(
        self,
        replicas: Iterable[ReplicaId],
        cluster_id: str,
        new_nonce: Callable[[], int],
        *,
        frames_in_flight: int = FRAMES_IN_FLIGHT,
        frame_ops: int = 1_000,
        frame_bytes: int = 256 << 10,
    ) -> None:
        self.sends: list[tuple[ReplicaId, bytes, bytes]] = []
        self.results: list[tuple[Any, Any]] = []
        self.leader: ReplicaId = NO_REPLICA
        self.term: Term = 0
        self.strangers: set[ReplicaId] = set()
        self.searching = False
        self._replicas = list(dict.fromkeys(replicas))
        self._hello = _encode((wire.PROTOCOL, cluster_id))
        self._new_nonce = new_nonce
        self._frames_in_flight = frames_in_flight
        self._frame_ops = frame_ops
        self._frame_bytes = frame_bytes
        self._request = 0
        self._attempts: dict[int, Flight] = {}  # request number -> flight; for attempts without an answer
        self._nonce = new_nonce()
        self._session = 0  # 0: not registered
        self._registration: Flight | None = None
        self._next_id = 1
        self._writes = OpQueue()
        self._write_flights: list[Flight] = []
        self._reads: dict[tuple[int, int], OpQueue] = {}
        self._read_flights: dict[tuple[int, int], list[Flight]] = {}
        self._hold_until: Nanoseconds = 0  # no new write frames before
        self._favourite = self._nonce % max(1, len(self._replicas))  # where reads go that any node may answer
        self._probe_at: Nanoseconds = 0
        self._probe_pause: Nanoseconds = PROBE_NS
        self._next_deadline: Nanoseconds = 0
        self._complaint = ""
        self._closed = False

    # -- operations ---------------------------------------------------------------------------------------------------
    def write(self, op: Op, token: Any, deadline: Nanoseconds, size_bytes: int) -> None:
        """Queue one operation for the log. Its result comes with `token`. Raises: Busy, Closed."""
        self._check_room(self._writes)
        self._writes.add(op, token, deadline, size_bytes)
        self._next_deadline = min(self._next_deadline, deadline)

    def write_all(self, ops: list[Op], token: Any, deadline: Nanoseconds, size_bytes: int) -> None:
        """Queue operations that go as one frame, alone; their result is the list of results, errors in their places."""
        self._check_room(self._writes)
        self._writes.add_program(ops, token, deadline, size_bytes)
        self._next_deadline = min(self._next_deadline, deadline)

    def read(
        self, op: Op, token: Any, deadline: Nanoseconds, consistency: int = wire.LINEARIZABLE, bound_ms: int = 0
    ) -> None:
        """Queue one operation that only reads. Raises: Busy, Closed."""
        queue = self._reads.get((consistency, bound_ms))
        if queue is None:
            queue = self._reads[(consistency, bound_ms)] = OpQueue()
        self._check_room(queue)
        queue.add(op, token, deadline, 16 + len(op[1]) if len(op) > 1 else 16)
        self._next_deadline = min(self._next_deadline, deadline)

    def read_all(self, ops: list[Op], token: Any, deadline: Nanoseconds, consistency: int = wire.LINEARIZABLE) -> None:
        """Queue operations that only read and go as one request, alone."""
        queue = self._reads.setdefault((consistency, 0), OpQueue())
        self._check_room(queue)
        queue.add_program(ops, token, deadline, 16 * len(ops))
        self._next_deadline = min(self._next_deadline, deadline)

    def _check_room(self, queue: OpQueue) -> None:
        if self._closed:
            raise Closed("this client is closed; make a new one with zcluster.connect()")
        if queue.count >= QUEUE_OPS_MAX or queue.size_bytes > QUEUE_BYTES_MAX:
            raise Busy(f"{queue.count} operations wait to be sent; the cluster does not keep up. Wait for some of them")

    # -- time ---------------------------------------------------------------------------------------------------------
    def next_deadline(self) -> Nanoseconds:
        """When `deadline` is to be called, at the latest."""
        return self._next_deadline

    def deadline(self, now: Nanoseconds) -> None:
        """Give up what is late, send again what was not answered, ask who leads."""
        self._expire(now)
        silent = False
        for flight in self._flights():
            if flight.retry_at <= now:
                silent |= bool(flight.attempts)
                if not flight.to_leader and flight.attempts:
                    self._favourite += 1
                self._dispatch(flight, now)
        if silent or (self.leader == NO_REPLICA and self._waits_for_leader()):
            self._maybe_probe(now)
        self.flush(now)

    def flush(self, now: Nanoseconds) -> None:
        """Put all that waits into frames, as far as frames may be under way."""
        if self._closed:
            return
        if not self._probe_at:
            self._maybe_probe(now)
        if self._writes.count:
            if not self._session:
                self._register(now)
            elif now >= self._hold_until:
                self._launch_writes(now)
        for group, queue in self._reads.items():
            if queue.count:
                self._launch_reads(group, queue, now)
        self._find_next_deadline()

    def _find_next_deadline(self) -> None:
        first = self._writes.first_deadline
        for queue in self._reads.values():
            first = min(first, queue.first_deadline)
        for flight in self._flights():
            first = min(first, flight.retry_at)
            if flight.cargo is not None and flight.cargo.first_deadline < first:
                first = flight.cargo.first_deadline
        if self._writes.count and self._session and len(self._write_flights) < self._frames_in_flight:
            first = min(first, self._hold_until or NEVER)
        if self.leader == NO_REPLICA and self._waits_for_leader():
            first = min(first, self._probe_at)
        self._next_deadline = first

    def _flights(self) -> list[Flight]:
        flights = list(self._write_flights)
        if self._registration is not None:
            flights.append(self._registration)
        for group in self._read_flights.values():
            flights += group
        return flights

    def _expire(self, now: Nanoseconds) -> None:
        for token in self._writes.expire(now):
            self._finish(token, NoQuorum(self._explain(NO_QUORUM)))
        for group, queue in list(self._reads.items()):
            for token in queue.expire(now):
                self._finish(token, Timeout(self._explain(TIMEOUT)))
            self._tidy(group)
        for flight in self._flights():
            cargo = flight.cargo
            if cargo is None:
                if not self._writes.count:  # nobody needs the session now; the same one is asked for again later
                    self._drop(flight)
                continue
            if cargo.first_deadline > now:
                continue
            for token in cargo.expire(now):
                self._finish(token, self._late(flight))
            if not cargo.waiting():
                self._drop(flight)
            elif flight.kind == wire.WRITE and flight.certain:
                # Some were just told "not applied", so these bytes must never be sent again.
                self._drop(flight)
                self._writes.put_back(cargo)

    def _late(self, flight: Flight) -> Error:
        if flight.kind == wire.READ:
            return Timeout(self._explain(TIMEOUT))
        if flight.certain:
            return NoQuorum(self._explain(NO_QUORUM))
        return Unknown(UNKNOWN)

    def _explain(self, text: str) -> str:
        return f"{text} (a node said: {self._complaint})" if self._complaint else text

    def _finish(self, token: Any, value: Any) -> None:
        self.results.append((token, value))

    # -- frames -------------------------------------------------------------------------------------------------------
    def _register(self, now: Nanoseconds) -> None:
        if self._registration is None:
            body = _encode((self._nonce, 0, 0, ((wire.OP_REGISTER,),)))
            self._registration = Flight(wire.WRITE, body, None, to_leader=True)
            self._dispatch(self._registration, now)

    def _launch_writes(self, now: Nanoseconds) -> None:
        while self._writes.count and len(self._write_flights) < self._frames_in_flight:
            frame_id = self._next_id
            floor = frame_id
            for flight in self._write_flights:
                if flight.frame_id < floor and flight.session == self._session:
                    floor = flight.frame_id
            if frame_id - floor >= WINDOW:
                return
            cargo = self._writes.take(self._frame_ops, self._frame_bytes)
            self._next_id += 1
            flight = Flight(wire.WRITE, _encode((self._session, frame_id, floor, cargo.ops)), cargo, to_leader=True)
            flight.session, flight.frame_id = self._session, frame_id
            self._write_flights.append(flight)
            self._dispatch(flight, now)

    def _launch_reads(self, group: tuple[int, int], queue: OpQueue, now: Nanoseconds) -> None:
        flights = self._read_flights.setdefault(group, [])
        while queue.count and len(flights) < self._frames_in_flight:
            cargo = queue.take(self._frame_ops, self._frame_bytes)
            to_leader = group[0] in (wire.LINEARIZABLE, wire.LEASE)
            flight = Flight(wire.READ, _encode((*group, cargo.ops)), cargo, to_leader)
            flight.group = group
            flights.append(flight)
            self._dispatch(flight, now)

    def _dispatch(self, flight: Flight, now: Nanoseconds) -> None:
        """Make the next attempt, if there is anybody to send to. The pause until the one after it doubles."""
        if flight.to_leader:
            replica = self.leader
        else:
            replica = self._replicas[self._favourite % len(self._replicas)] if self._replicas else NO_REPLICA
        if replica == NO_REPLICA:
            flight.retry_at = now + PAUSE_NS_MAX
            return
        self._request += 1
        request = self._request
        if len(flight.attempts) >= ATTEMPTS_MAX:
            oldest = next(iter(flight.attempts))
            del flight.attempts[oldest], self._attempts[oldest]
            flight.forgotten = True
        flight.attempts[request] = replica
        self._attempts[request] = flight
        flight.tried = (self.leader, self.term)
        flight.retry_at = now + min(SILENCE_NS << min(flight.tries, 8), SILENCE_NS_MAX)
        flight.tries += 1
        self.sends.append((replica, _pack_head(flight.kind, request), flight.body))

    def _pause(self, flight: Flight, now: Nanoseconds) -> None:
        """Try again later, and later each time."""
        flight.retry_at = now + min(PAUSE_NS << min(flight.refusals, 8), PAUSE_NS_MAX)
        flight.refusals += 1
        flight.tries = 0
        self._next_deadline = min(self._next_deadline, flight.retry_at)

    def _drop(self, flight: Flight) -> None:
        """Forget a flight. An answer that still comes finds nothing."""
        for request in flight.attempts:
            del self._attempts[request]
        if flight is self._registration:
            self._registration = None
        elif flight.group is None:
            self._write_flights.remove(flight)
        else:
            self._read_flights[flight.group].remove(flight)
            self._tidy(flight.group)

    def _tidy(self, group: tuple[int, int]) -> None:
        """Forget a bound that nobody reads with any more: there is no end of different ones."""
        if group[1] and not self._reads[group].count and not self._read_flights.get(group):
            del self._reads[group]
            self._read_flights.pop(group, None)

    # -- what the sockets know ----------------------------------------------------------------------------------------
    def unsent(self, replica: ReplicaId, head: bytes, now: Nanoseconds) -> None:
        """One of `sends` was not handed to the socket: not connected, or full. Certainly not applied."""
        _, request = wire.HEAD.unpack(head)
        flight = self._attempts.pop(request, None)
        if flight is not None:
            del flight.attempts[request]
            self._pause(flight, now)
            if not flight.to_leader:
                self._favourite += 1
            self._maybe_probe(now)

    def connected(self, replica: ReplicaId, now: Nanoseconds) -> None:
        """A node can be sent to, for the first time or again."""
        self._send_hello(replica)
        for flight in self._flights():
            if flight.attempts:
                continue
            if not flight.to_leader and replica in self._replicas:
                self._favourite = self._replicas.index(replica)
                self._dispatch(flight, now)
            elif flight.to_leader and replica == self.leader:
                self._dispatch(flight, now)

    def unreachable(self, replica: ReplicaId, now: Nanoseconds) -> None:
        """A node is gone. What it was sent may have been applied; reads that others can answer go to them."""
        for flight in self._flights():
            if not flight.to_leader and replica in flight.attempts.values():
                self._favourite += 1
                self._dispatch(flight, now)

    def add_replica(self, replica: ReplicaId, now: Nanoseconds) -> None:
        """There is one more node to send to."""
        self.strangers.discard(replica)
        if replica not in self._replicas:
            self._replicas.append(replica)
        self.connected(replica, now)

    def keep_replicas(self, replicas: Collection[ReplicaId]) -> list[ReplicaId]:
        """Forget those that are not among `replicas`: they are no nodes any more. Returns who was forgotten."""
        gone = [replica for replica in self._replicas if replica not in replicas]
        self._replicas = [replica for replica in self._replicas if replica in replicas]
        return gone

    @property
    def replicas(self) -> frozenset[ReplicaId]:
        """Those that can be sent to, as far as the driver has said."""
        return frozenset(self._replicas)

    # -- who leads ----------------------------------------------------------------------------------------------------
    def _send_hello(self, replica: ReplicaId) -> None:
        self.sends.append((replica, _pack_head(wire.HELLO, 0), self._hello))

    def _maybe_probe(self, now: Nanoseconds) -> None:
        """Ask all nodes who leads, unless that was done a moment ago."""
        if now < self._probe_at:
            return
        self.searching = True
        self._probe_at = now + self._probe_pause
        self._probe_pause = min(2 * self._probe_pause, PROBE_NS_MAX)
        for replica in self._replicas:
            self._send_hello(replica)

    def _waits_for_leader(self) -> bool:
        return self._registration is not None or any(flight.to_leader for flight in self._flights())

    def _learn(self, sender: ReplicaId, leader: ReplicaId, term: Term, now: Nanoseconds) -> None:
        """Believe the newest term that has a leader. A new leader gets all that is unanswered, at once.

        Nobody led in a later term: the old leader is believed again only if it says so itself.
        """
        if leader == NO_REPLICA:
            if term > self.term and self.leader != NO_REPLICA:
                self.leader = NO_REPLICA
                self._probe_pause = PROBE_NS
                self._complaint = ""
            return
        if term < self.term or (term == self.term and (self.leader != NO_REPLICA or sender != leader)):
            return
        self.leader, self.term = leader, term
        self.searching = False
        self._probe_pause = PROBE_NS
        self._complaint = ""
        if leader not in self._replicas:
            self.strangers.add(leader)
        for flight in self._flights():
            if flight.to_leader:
                flight.tries = flight.refusals = 0
                self._dispatch(flight, now)

    # -- answers ------------------------------------------------------------------------------------------------------
    def received(self, replica: ReplicaId, kind: int, request: int, body: bytes, now: Nanoseconds) -> None:
        """One message of a node. What makes no sense is ignored: the request is then simply asked again."""
        if self._closed:
            return
        try:
            content = wire.decode(body)
        except (ValueError, RecursionError):
            return
        if kind == wire.LEADER:
            if is_leadership(content):
                self._learn(replica, content[0], content[1], now)
            return
        if kind == wire.FAILED and request == 0:
            self._complaint = str(content)
            return
        flight = self._attempts.get(request)
        if flight is None or flight.attempts.get(request) != replica or not makes_sense(kind, content, flight):
            return
        del self._attempts[request], flight.attempts[request]
        if kind == wire.RESULT:
            self._take_result(flight, content, now)
        elif kind == wire.NOT_LEADER:
            self._take_redirect(flight, replica, content[0], content[1], now)
        elif kind == wire.BUSY:
            self._complaint = str(content[0]) if type(content) is list and content else "busy"
            self._pause(flight, now)
        elif flight.certain or flight.kind == wire.READ:
            self._fail(flight, make_error(content[0], content[1]))
        else:
            self._fail(flight, Unknown(UNKNOWN))

    def _take_redirect(
        self, flight: Flight, sender: ReplicaId, leader: ReplicaId, term: Term, now: Nanoseconds
    ) -> None:
        flight.to_leader = True
        believed = (self.leader, self.term)
        self._learn(sender, leader, term, now)
        if (self.leader, self.term) != believed and self.leader != NO_REPLICA:
            return  # learned something: it is under way again
        if self.leader != NO_REPLICA and flight.tried != (self.leader, self.term):
            self._dispatch(flight, now)
        elif self.leader not in flight.attempts.values():
            self._pause(flight, now)
            self._maybe_probe(now)

    def _take_result(self, flight: Flight, content: Any, now: Nanoseconds) -> None:
        cargo = flight.cargo
        if type(content) is dict:
            self._take_refusal(flight, content["code"], str(content.get("text", "")), now)
        elif cargo is None:
            self._session = content[0]
            self._next_id = 1
            self._drop(flight)
        else:
            self._drop(flight)
            self._deliver(flight, cargo, content)

    def _deliver(self, flight: Flight, cargo: Cargo, values: list[Any]) -> None:
        if cargo.program:
            if cargo.tokens[0] is not GONE:
                self._finish(cargo.tokens[0], [make_error(*v) if is_error(v) else v for v in values])
            return
        tokens = cargo.tokens
        if list not in map(type, values) and GONE not in tokens:
            self.results += zip(tokens, values, strict=True)
            return
        for i, value in enumerate(values):
            if tokens[i] is GONE:
                continue
            if not is_error(value):
                self._finish(tokens[i], value)
            elif value[0] == wire.E_FULL:
                # Certainly not applied: there was no room for its answer beside the others'. Alone there is.
                queue = self._writes if flight.group is None else self._reads.setdefault(flight.group, OpQueue())
                queue.put_back(Cargo([cargo.ops[i]], [tokens[i]], [cargo.deadlines[i]], [cargo.sizes[i]], False))
            else:
                self._finish(tokens[i], make_error(*value))

    def _take_refusal(self, flight: Flight, code: int, text: str, now: Nanoseconds) -> None:
        """The whole frame was refused, and this attempt certainly not applied."""
        if flight.group is not None or flight.cargo is None:
            self._fail(flight, make_error(code, text))
        elif code == wire.E_UNKNOWN_SESSION:
            if flight.session == self._session:
                self._session = 0
                self._nonce = self._new_nonce()
            self._requeue_or_fail(flight, Unknown(LOST_SESSION))
        elif code in (wire.E_WINDOW, wire.E_FULL):
            self._complaint = text
            if flight.certain:
                self._requeue_or_fail(flight, Unknown(UNKNOWN))
                self._hold_until = now + 2 * PAUSE_NS
            else:
                self._pause(flight, now)
        else:
            self._fail(flight, make_error(code, text))

    def _requeue_or_fail(self, flight: Flight, error: Error) -> None:
        cargo = flight.cargo
        assert cargo is not None
        if not flight.certain:
            self._fail(flight, error)
            return
        self._drop(flight)
        self._writes.put_back(cargo)

    def _fail(self, flight: Flight, error: Error) -> None:
        """Everybody who waits for this flight (for a session, if it registers one) gets an error."""
        self._drop(flight)
        tokens = self._writes.clear() if flight.cargo is None else flight.cargo.waiting()
        for token in tokens:
            self._finish(token, type(error)(*error.args))  # one for each: tracebacks grow where errors are raised

    def close(self) -> None:
        """End: those who wait are told. Nothing is sent or received any more."""
        if self._closed:
            return
        self._closed = True
        text = "the client was closed before the operation was done"
        for flight in self._flights():
            for token in flight.cargo.waiting() if flight.cargo is not None else ():
                harmless = flight.kind == wire.READ or flight.certain
                self._finish(token, Closed(text) if harmless else Unknown(UNKNOWN))
        for queue in (self._writes, *self._reads.values()):
            for token in queue.clear():
                self._finish(token, Closed(text))
        self._attempts.clear()
        self._write_flights, self._read_flights, self._registration = [], {}, None
        self.sends = []
        self._next_deadline = NEVER
