"""The test list of MIT 6.5840's fault-tolerant key-value service, re-created by name against simulated replicas.

The whole production replica runs: consensus, log, checkpoints, recovery, sessions, the clients' retries. Beside the
simulator's own checkers, which watch every step, each history is judged by the linearizability checker. `TABLE` says
what goes wrong in each test; those that follow it are the ones with a story of their own.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.sim.test_histories import complaint
from zcluster import wire
from zcluster.config import ClusterSpec
from zcluster.sim.clients import SimulatedClient
from zcluster.sim.cluster import Options
from zcluster.sim.load import Ask, Load
from zcluster.sim.network import partition
from zcluster.sim.promises import Call
from zcluster.sim.run import Case, Run
from zcluster.types import MS

PARTITION = 1
SMALL_BYTES = 1000
LARGE_BYTES = 1 << 24


class World(Run):
    """Five replicas and some clients; nothing goes wrong but what the test does.

    Args:
        clients: each with a session of its own, and one operation under way.
        unreliable: a tenth of the messages is lost, the others take up to 27 ms and overtake.
        snapshots: checkpoints are made all the time, and the log behind them is not kept.
        keys: how many are used. think: ms between two operations of a client.
    """

    def __init__(
        self,
        *,
        seed: int = 1,
        clients: int = 5,
        unreliable: bool = False,
        snapshots: bool = False,
        keys: int = 5,
        think: int = 15,
        read_share: float = 0.4,
    ) -> None:
        self.load = Load(
            sessions=clients,
            callers=1,
            keys=keys,
            think=think * MS,
            read_share=read_share,
            levels=(wire.LINEARIZABLE, wire.LEASE),
        )
        self.snapshots = snapshots
        super().__init__(Case(seed=seed, nodes=5, groups=(), calm=True))
        if unreliable:
            self.network.latency = (0, 27 * MS)
            self.network.loss = 0.1
        self.chance = self.world.random("test")
        for replica in self.cluster.nodes:
            self.cluster.start(replica)

    def _draw_load(self, draw: Any) -> Load:
        return self.load

    def _options(self, spec: ClusterSpec, draw: Any) -> Options:
        size = SMALL_BYTES if self.snapshots else LARGE_BYTES
        settings = msgspec.structs.replace(spec.settings, checkpoint_bytes=size, checkpoint_seconds=0)
        options = super()._options(msgspec.structs.replace(spec, settings=settings), draw)
        options.core = msgspec.structs.replace(options.core, retained_bytes_max=0 if self.snapshots else LARGE_BYTES)
        return options

    # -- what tests do ------------------------------------------------------------------------------------------------
    def begin(self) -> None:
        for client in self.clients:
            client.begin()

    def pass_ms(self, span: int) -> None:
        self.world.run_until(self.world.now + span * MS)

    def split(self, *, one: set[int], clients: set[int]) -> None:
        """Those replicas and clients reach nobody else, and nobody else reaches them."""
        ends = [*self.cluster.nodes, *(client.endpoint for client in self.clients)]
        inside = one | {self.clients[number].endpoint for number in clients}
        self.network.cut(PARTITION, [(a, b) for a in ends for b in ends if (a in inside) != (b in inside)])

    def split_at_random(self) -> None:
        endpoints = tuple(client.endpoint for client in self.clients)
        self.network.cut(PARTITION, partition("halves", list(self.cluster.nodes), endpoints, self.chance))

    def crash_all(self) -> None:
        for replica in self.cluster.nodes:
            self.cluster.crash(replica)
        self.pass_ms(self.chance.randrange(100))
        for replica in self.cluster.nodes:
            self.cluster.start(replica)

    def wait(self, *calls: Call, within_ms: int = 10_000) -> None:
        """Until these have succeeded."""
        done = self.world.run_until(self.world.now + within_ms * MS, lambda: all(succeeded(call) for call in calls))
        assert done or all(succeeded(call) for call in calls), [call.records for call in calls]

    def leader(self) -> int:
        self.world.run_until(self.world.now + 10_000 * MS, lambda: self.cluster.leader() != 0)
        return self.cluster.leader()

    def finish(self) -> list[dict[str, Any]]:
        """Heal; everything must go on and all replicas agree; judge the history. Returns the history."""
        self._liveness()
        self._judge()
        history = self.promises.history
        assert complaint(history) is None
        return history


def succeeded(call: Call) -> bool:
    return call.status == "ok"


def put(client: SimulatedClient, key: str, value: bytes) -> Call:
    return client.ask(Ask(((wire.OP_PUT, key, value),)), caller=-1, patient=True)


def get(client: SimulatedClient, key: str) -> Call:
    return client.ask(Ask(((wire.OP_GET, key),), only_reads=True), caller=-1, patient=True)


# -- one table for most -----------------------------------------------------------------------------------------------
TABLE: dict[str, dict[str, Any]] = {
    "one client": {"clients": 1},
    "many clients": {},
    "unreliable net, many clients": {"unreliable": True},
    "concurrent append to same key, unreliable": {"unreliable": True, "keys": 1, "read_share": 0.1},
    "partitions, one client": {"clients": 1, "partitions": True},
    "partitions, many clients": {"partitions": True},
    "restarts, one client": {"clients": 1, "restarts": True},
    "restarts, many clients": {"restarts": True},
    "unreliable net, restarts, many clients": {"unreliable": True, "restarts": True},
    "restarts, partitions, many clients": {"restarts": True, "partitions": True},
    "unreliable net, restarts, partitions, many clients": {"unreliable": True, "restarts": True, "partitions": True},
    "unreliable net, restarts, partitions, random keys, many clients": {
        "unreliable": True,
        "restarts": True,
        "partitions": True,
        "clients": 15,
        "keys": 15,
    },
    "restarts, snapshots, one client": {"clients": 1, "restarts": True, "snapshots": True},
    "restarts, snapshots, many clients": {"restarts": True, "snapshots": True},
    "unreliable net, snapshots, many clients": {"unreliable": True, "snapshots": True},
    "unreliable net, restarts, snapshots, many clients": {"unreliable": True, "restarts": True, "snapshots": True},
    "unreliable net, restarts, partitions, snapshots, many clients": {
        "unreliable": True,
        "restarts": True,
        "partitions": True,
        "snapshots": True,
    },
    "unreliable net, restarts, partitions, snapshots, random keys, many clients": {
        "unreliable": True,
        "restarts": True,
        "partitions": True,
        "snapshots": True,
        "clients": 15,
        "keys": 15,
    },
}


FAST = ("one client", "many clients", "restarts, many clients", *list(TABLE)[-2:])


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        pytest.param(name, seed, marks=[] if name in FAST and seed == 1 else [pytest.mark.slow])
        for name in TABLE
        for seed in (1, 2)
    ],
)
def test_generic(name: str, seed: int) -> None:
    play(seed=seed, **TABLE[name])


def play(*, restarts: bool = False, partitions: bool = False, **options: Any) -> World:
    world = World(**options)
    world.begin()
    for _ in range(3):
        if partitions:
            world.split_at_random()
        world.pass_ms(800)
        if restarts:
            world.crash_all()
            world.pass_ms(200)
        world.network.heal(PARTITION)
        world.pass_ms(700)
    history = world.finish()
    answered = sum(record["status"] == "ok" for record in history)
    assert answered > (20 if partitions or options.get("unreliable") or restarts else 100), answered
    if options.get("snapshots"):
        check_snapshots(world)
    return world


def check_snapshots(world: World) -> None:
    """Checkpoints are there, and logs and stored state stay small beside what was written."""
    for life in world.cluster.lives():
        assert life.replica.core.log.base_index > 0, f"{life.node.name} has no checkpoint"
        entries = life.replica.core.log.last_index - life.replica.core.log.base_index
        assert entries < world.checkers.highest // 2 + 50, f"{life.node.name} keeps {entries} entries"


# -- those with a story -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("snapshots", [False, True], ids=["ops complete fast enough", "with snapshots as well"])
def test_speed(snapshots: bool) -> None:
    """One client, one operation after the other: each is committed by its own message, not by the next heartbeat."""
    world = World(clients=1, snapshots=snapshots)
    world.leader()
    client = world.clients[0]
    world.wait(put(client, "k", b"first;"))
    began = world.world.now
    for number in range(200):
        world.wait(client.ask(Ask(((wire.OP_APPEND, "k", b"%d;" % number),)), caller=-1, patient=True))
    mean_ms = (world.world.now - began) / MS / 200
    assert mean_ms < 33 / 2, f"{mean_ms:.1f} ms an operation"
    world.finish()


@pytest.mark.parametrize("leads", ["majority", "minority"])
def test_progress_in_majority_none_in_minority_completion_after_heal(leads: str) -> None:
    """Wherever the old leader is."""
    world = World(clients=3)
    leader = world.leader()
    first, second, third = world.clients
    world.wait(put(first, "1", b"13"))
    others = [replica for replica in world.cluster.nodes if replica != leader]
    few = {leader, others[0]} if leads == "minority" else set(others[:2])
    world.split(one=few, clients={1, 2})
    world.wait(put(first, "1", b"14"))
    stuck = [put(second, "1", b"15"), get(third, "1")]
    world.pass_ms(3000)
    assert not any(succeeded(call) for call in stuck), "a minority has answered"
    read = get(first, "1")
    world.wait(read)
    assert read.records[0]["output"] == "14"
    world.wait(put(first, "1", b"16"))
    world.network.heal(PARTITION)
    world.wait(*stuck)
    last = get(first, "1")
    world.wait(last)
    assert last.records[0]["output"] == "15"
    world.finish()


def test_install_snapshot_rpc() -> None:
    """A minority that was cut off gets the checkpoint, and serves what it says."""
    world = World(clients=1, snapshots=True)
    leader = world.leader()
    (client,) = world.clients
    world.wait(put(client, "a", b"A"))
    others = [replica for replica in world.cluster.nodes if replica != leader]
    few = others[:2]
    world.split(one=set(few), clients=set())
    for number in range(80):
        world.wait(put(client, f"k{number % 10}", b"%d" % number))
    reached = {replica: applied(world, replica) for replica in few}
    world.network.heal(PARTITION)
    world.wait(put(client, "b", b"B"))
    base = min(life.replica.core.log.base_index for life in world.cluster.lives() if life.node.id not in few)
    assert base > max(reached.values()), "the log reaches back far enough, no checkpoint is needed"
    world.world.run_until(world.world.now + 10_000 * MS, lambda: all(applied(world, r) > base for r in few))
    world.split(one={leader, others[3]}, clients=set())  # who was away and one more are the majority now
    for key, value in (("a", "A"), ("b", "B"), ("k9", "79")):
        read = get(client, key)
        world.wait(read, within_ms=20_000)
        assert read.records[0]["output"] == value
    world.finish()


def applied(world: World, replica: int) -> int:
    life = world.cluster.nodes[replica].life
    assert life is not None
    return life.replica.last_applied


def test_a_wrong_history_of_these_tests_is_noticed() -> None:
    """The judge can fail: one read that saw what nobody had written then."""
    history = [dict(record) for record in play(clients=2).promises.history]
    reads = [record for record in history if record["op"] == "get" and record["status"] == "ok" and record["output"]]
    reads[0]["output"] = reads[-1]["output"]
    assert complaint(history) is not None
