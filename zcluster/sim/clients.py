"""Clients of the simulated cluster: production sessions, each shared by a few callers.

A caller has one operation under way, then thinks, then asks for the next; so `client` in the history is a caller.
Written values are unique in a run. A session's messages go through the network of the world like everybody's; now and
then one is reported as unsent, as a socket does that knows it is not connected.
"""

from __future__ import annotations

from random import Random
from typing import Any, Final

import msgspec

from zcluster import wire
from zcluster.client.session import ClientSession
from zcluster.sim.cluster import Cluster, client_endpoint
from zcluster.sim.network import Network
from zcluster.sim.promises import Call, Promises
from zcluster.sim.world import World
from zcluster.types import MS, NEVER, Nanoseconds, ReplicaId

CALLERS_MAX: Final = 100


class Load(msgspec.Struct, kw_only=True):
    """What the clients of a world do. think: mean pause between two operations of a caller; timeout: of an operation,
    shortest and longest; levels: consistency levels of reads that are used."""

    sessions: int = 2
    callers: int = 3
    keys: int = 4
    think: Nanoseconds = 20 * MS
    read_share: float = 0.4
    timeout: tuple[Nanoseconds, Nanoseconds] = (500 * MS, 8000 * MS)
    levels: tuple[int, ...] = (wire.LINEARIZABLE, wire.LEASE, wire.BOUNDED, wire.EVENTUAL)


class SimulatedClient:
    """One session. `busy`: operations under way."""

    def __init__(
        self, world: World, network: Network, cluster: Cluster, promises: Promises, number: int, load: Load
    ) -> None:
        self.identity = b"c%d" % number
        self.busy = 0
        self.stopped = False
        self._world = world
        self._network = network
        self._cluster = cluster
        self._promises = promises
        self._load = load
        self._number = number
        self._random: Random = world.random(f"client {number}")
        self.endpoint = client_endpoint(self.identity)
        self._serial = 0
        self._wake_at: Nanoseconds = NEVER
        self._pumping = False
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
        if self.stopped:
            return
        self.ask(self._choose(caller), caller)

    def _choose(self, caller: int) -> tuple[Any, ...]:
        draw, load = self._random, self._load
        key = f"k{draw.randrange(load.keys)}"
        if draw.random() < load.read_share:
            return (wire.OP_GET, key)
        self._serial += 1
        value = b"%d.%d;" % (self._number, self._serial)
        dice = draw.random()
        if dice < 0.4:
            return (wire.OP_PUT, key, value)
        if dice < 0.65:
            return (wire.OP_APPEND, key, value)
        if dice < 0.75:
            return (wire.OP_DELETE, key)
        expected = self._promises.value(key) if draw.random() < 0.8 else None
        return (wire.OP_CAS, key, expected, value if draw.random() < 0.8 else None)

    def ask(self, op: tuple[Any, ...], caller: int = 0, *, patient: bool = False) -> Call:
        """Start one operation. `patient`: with the longest timeout, and reads linearizable."""
        draw, load, now = self._random, self._load, self._world.now
        low, high = load.timeout
        deadline = now + (high if patient else low + draw.randrange(high - low + 1))
        level, bound_ms = wire.LINEARIZABLE, 0
        if op[0] == wire.OP_GET and not patient:
            level = load.levels[draw.randrange(len(load.levels))]
            bound_ms = draw.choice((20, 200, 1000)) if level == wire.BOUNDED else 0
        call = self._promises.called(self._number * CALLERS_MAX + caller, op, level, bound_ms)
        self.busy += 1
        if op[0] == wire.OP_GET:
            self.session.read(op, (call, caller), deadline, level, bound_ms)
        else:
            self.session.write(op, (call, caller), deadline, 32)
        self._pump()
        return call

    # -- what arrives -------------------------------------------------------------------------------------------------

    def replied(self, replica: ReplicaId, head: bytes, body: bytes) -> None:
        kind, request = wire.HEAD.unpack(head)
        self.session.received(replica, kind, request, body, self._world.now)
        self._pump()

    def node_up(self, replica: ReplicaId) -> None:
        self.session.connected(replica, self._world.now)
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
                self.busy -= 1
                self._promises.returned(call, value)
                if not self.stopped and caller >= 0:
                    pause = int(self._random.expovariate(1.0) * self._load.think)
                    self._world.after(pause, self._issue, caller)
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
