"""Clients of the simulated cluster: production sessions, each shared by a few callers.

A caller has one thing under way (an operation, a pipeline, a listing), then thinks, then asks for the next; so `client`
in the history is a caller. What is asked for is decided elsewhere (`load`), and so is whether the answers are right
(`promises`). A session's messages go through the network of the world like everybody's; now and then one is reported as
unsent, as a socket does that knows it is not connected.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Final, Protocol

from zcluster import wire
from zcluster.client.session import ClientSession
from zcluster.sim.cluster import Cluster, client_endpoint
from zcluster.sim.load import Ask, Load
from zcluster.sim.network import Network
from zcluster.sim.promises import Call, Op
from zcluster.sim.world import World
from zcluster.types import MS, NEVER, Nanoseconds, ReplicaId

CALLERS_MAX: Final = 100
FIND_NODE: Final[Nanoseconds] = 50 * MS  # until a client knows where a node is that it heard of
OP_BYTES: Final = 32  # about what one takes on the wire


class Work(Protocol):
    """What one client asks for."""

    def choose(self) -> Ask: ...

    def following(self, call: Call, result: Any) -> Ask | None: ...

    def last(self) -> Sequence[Ask]: ...


class Judge(Protocol):
    """Who compares the answers with what was promised."""

    def called(self, caller: int, op: Op, consistency: int, bound_ms: int) -> Call: ...

    def called_all(self, caller: int, ops: tuple[Op, ...], consistency: int) -> Call: ...

    def returned(self, call: Call, value: Any) -> None: ...


class SimulatedClient:
    """One session. `busy`: calls under way."""

    def __init__(
        self, world: World, network: Network, cluster: Cluster, judge: Judge, work: Work, number: int, load: Load
    ) -> None:
        self.identity = b"c%d" % number
        self.busy = 0
        self.stopped = False
        self.work = work
        self._world = world
        self._network = network
        self._cluster = cluster
        self._judge = judge
        self._load = load
        self._number = number
        self._random: Random = world.random(f"client {number}")
        self.endpoint = client_endpoint(self.identity)
        self._wake_at: Nanoseconds = NEVER
        draw = world.random(f"nonce {number}")
        self.session = ClientSession(
            cluster.nodes,
            cluster.spec.cluster_id,
            lambda: draw.getrandbits(62) + 1,
            frames_in_flight=draw.randint(1, 4),
        )

    def begin(self) -> None:
        for replica in self._cluster.nodes:
            self.session.connected(replica, self._world.now)
        for caller in range(self._load.callers):
            self._world.after(self._random.randrange(self._load.think + 1), self._issue, caller)
        self._pump()

    # -- operations ---------------------------------------------------------------------------------------------------

    def _issue(self, caller: int) -> None:
        if not self.stopped:
            self.ask(self.work.choose(), caller)

    def ask(self, ask: Ask, caller: int = 0, *, patient: bool = False, like: Call | None = None) -> Call:
        """Begin one call. `caller`: asks on when it is answered; one below 0 does not. `patient`: with the longest
        timeout, and reads linearizable; `like`: with the consistency of that one."""
        draw, load, now = self._random, self._load, self._world.now
        low, high = load.timeout
        deadline = now + (high if patient else low + draw.randrange(high - low + 1))
        level, bound_ms = wire.LINEARIZABLE, 0
        if like is not None:
            level, bound_ms = like.consistency, like.bound_ms
        elif ask.level >= 0 and not patient:
            level = ask.level
        elif ask.only_reads and not ask.program and not patient:
            level = load.levels[draw.randrange(len(load.levels))]
            bound_ms = draw.choice((20, 200, 1000)) if level == wire.BOUNDED else 0
        me = self._number * CALLERS_MAX + caller
        session, ops = self.session, ask.ops
        self.busy += 1
        if ask.program:
            call = self._judge.called_all(me, ops, level)
            token = (call, caller)
            if ask.only_reads:
                session.read_all(list(ops), token, deadline, level)
            else:
                session.write_all(list(ops), token, deadline, OP_BYTES * len(ops))
        else:
            call = self._judge.called(me, ops[0], level, bound_ms)
            if ask.only_reads:
                session.read(ops[0], (call, caller), deadline, level, bound_ms)
            else:
                session.write(ops[0], (call, caller), deadline, OP_BYTES)
        self._pump()
        return call

    def _take_result(self, call: Call, caller: int, value: Any) -> None:
        self.busy -= 1
        self._judge.returned(call, value)
        if self.stopped or caller < 0:
            return
        following = self.work.following(call, value)
        if following is not None:
            self._world.after(0, self._ask_on, following, caller, call)
        else:
            self._world.after(int(self._random.expovariate(1.0) * self._load.think), self._issue, caller)

    def _ask_on(self, ask: Ask, caller: int, like: Call) -> None:
        if not self.stopped:
            self.ask(ask, caller, like=like)

    # -- what arrives -------------------------------------------------------------------------------------------------

    def replied(self, replica: ReplicaId, head: bytes, body: bytes) -> None:
        kind, request = wire.HEAD.unpack(head)
        self.session.received(replica, kind, request, body, self._world.now)
        self._pump()

    def node_up(self, replica: ReplicaId) -> None:
        """A node can be sent to; one that is new is found in the description of the cluster."""
        self.session.add_replica(replica, self._world.now)
        self._pump()

    def node_down(self, replica: ReplicaId) -> None:
        self.session.unreachable(replica, self._world.now)
        self._pump()

    # -- the driver of the session ------------------------------------------------------------------------------------

    def _pump(self) -> None:
        session, now = self.session, self._world.now
        session.flush(now)
        while session.sends:
            sends, session.sends = session.sends, []
            for replica, head, body in sends:
                if self._cluster.nodes[replica].life is None and self._random.random() < 0.5:
                    session.unsent(replica, head, now)
                    continue
                kind, request = wire.HEAD.unpack(head)
                self._network.send(
                    self.endpoint,
                    replica,
                    self._cluster.client_arrived,
                    replica,
                    (self.identity, kind, request, body),
                )
        if session.results:
            results, session.results = session.results, []
            for (call, caller), value in results:
                self._take_result(call, caller, value)
        for stranger in sorted(session.strangers):
            self._world.after(FIND_NODE, self.node_up, stranger)
        session.strangers.clear()
        due = session.next_deadline()
        if due < self._wake_at:
            self._wake_at = max(due, now + 1)
            self._world.at(self._wake_at, self._wake, self._wake_at)

    def _wake(self, due: Nanoseconds) -> None:
        if due != self._wake_at:
            return
        self._wake_at = NEVER
        if self._world.now >= self.session.next_deadline():
            self.session.deadline(self._world.now)
        self._pump()
