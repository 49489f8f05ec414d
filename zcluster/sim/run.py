"""One seed, one run: a safety phase in which everything goes wrong, then a liveness phase in which nothing does.

    draw the world from the seed (nodes, timeouts, sizes, speeds, load, schedule of faults)
    safety     faults and load; every checker watches every step
    liveness   faults heal, all start; within LIVENESS_TIMEOUTS election timeouts somebody leads, every client gets a
               write and a read through, and all replicas that are not damaged for good hold the same state
    at the end the history is judged once more as a whole

A run is a pure function of its `Case`; `run_case` never raises for a violation, it returns it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zcluster import wire
from zcluster.config import FORMAT, ClusterSpec, NodeSpec, Settings
from zcluster.consensus.api import Settings as CoreSettings
from zcluster.consensus.paxos import Paxos
from zcluster.consensus.raft import Raft
from zcluster.machines.api import Machine
from zcluster.node.start import new_machine
from zcluster.sim.checkers import Checkers
from zcluster.sim.clients import SimulatedClient, Work
from zcluster.sim.cluster import OPERATOR, Cluster, client_endpoint
from zcluster.sim.faults import Faults
from zcluster.sim.load import KeyValueWork, Load
from zcluster.sim.network import Network
from zcluster.sim.operator import Operator
from zcluster.sim.own import OwnModel, OwnPromises, OwnWork, Workload
from zcluster.sim.paxos_checkers import PaxosCheckers
from zcluster.sim.process import Options
from zcluster.sim.promises import Call, Promises, Record
from zcluster.sim.reference import FrameModel, KeyValueModel
from zcluster.sim.schedule import CLOCK, DISK, GROUPS, MEMBERSHIP, NETWORK, Fault, draw_schedule
from zcluster.sim.world import START, Violation, World
from zcluster.types import MS, PAXOS, RAFT, Nanoseconds

if TYPE_CHECKING:
    from zcluster.consensus.engines import EngineClass

LIVENESS_TIMEOUTS: Final = 40
"""Election timeouts after the healing within which everything must be well; clients' longest pause comes on top."""
CLIENT_PATIENCE: Final[Nanoseconds] = 12_000 * MS
LATENCIES: Final = ((MS // 20, MS // 2), (MS // 20, 5 * MS), (MS // 5, 30 * MS))
"""From a machine at rest to one that swaps."""

HistoryCheck = Callable[[list[Record]], str | None]
"""Judges a whole history: what is wrong with it, or None. The seam for a checker that does not trust the log."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a run depends on. nodes: 0 draws 3 to 7. only: positions of the schedule that are kept (None: all).
    core_class, new_machine: what the replicas are made of. workload: a machine of one's own in the place of the store.
    check_history: one more judge of the history."""

    seed: int
    nodes: int = 0
    groups: tuple[str, ...] = GROUPS
    only: tuple[int, ...] | None = None
    span: Nanoseconds = 0  # of the safety phase; 0: drawn
    calm: bool = False  # light load, no faults: for measuring
    core_class: EngineClass = Raft
    new_machine: Callable[[ClusterSpec], Machine] = new_machine
    workload: Workload | None = None
    check_history: HistoryCheck | None = None

    @property
    def engine(self) -> str:
        return PAXOS if issubclass(self.core_class, Paxos) else RAFT


class Outcome(msgspec.Struct, kw_only=True):
    """What came of a run. schedule: the faults as drawn (those that were kept); recent: the last events in words."""

    seed: int
    events: int
    simulated: Nanoseconds
    trace_hash: str
    property: str = ""
    detail: str = ""
    schedule: list[Fault] = []
    recent: list[str] = []
    operations: int = 0
    elections: int = 0
    entries: int = 0
    changes: int = 0


class Run:
    """A world put together, not yet run."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.world = World(case.seed)
        draw = self.world.random("plan")
        count = case.nodes or draw.choice((3, 3, 3, 4, 5, 5, 6, 7))
        self.election_timeout = draw.choice((150, 300, 600)) * MS
        durability = draw.choice(("fsync",) * 5 + ("interval:20ms", "interval:200ms", "none"))
        if case.calm:
            self.election_timeout, durability = 600 * MS, "fsync"
        self.drifts = not case.calm and CLOCK in case.groups and draw.random() < 0.15
        self.changes = self._members_change(draw)
        if self.changes:
            durability = "fsync"
        self.weak = durability != "fsync"
        spec = _spec(case, count, durability, self.election_timeout, draw)
        self.network = Network(self.world, [node.replica_id for node in spec.nodes])
        if NETWORK in case.groups and not case.calm:
            self.network.latency = draw.choice(LATENCIES)
        checkers = PaxosCheckers if case.engine == PAXOS else Checkers
        self.checkers = checkers(self.world, tuple(n.replica_id for n in spec.nodes), partial(_new_model, case, spec))
        self.checkers.leases = not self.drifts
        judge = Promises if case.workload is None else OwnPromises
        self.promises: Promises | OwnPromises = judge(self.world, self.checkers)
        self.cluster = Cluster(self.world, self.network, self.checkers, self._options(spec, draw))
        self.operator = Operator(
            self.world,
            self.cluster,
            self.checkers,
            voters_min=draw.choice((1, 2, 3, 3)),
            election_timeout=self.election_timeout,
        )
        self.clients = self._make_clients(self._draw_load(draw))
        self.span = case.span or draw.choice((3, 6, 10, 20)) * 1000 * MS
        window = None
        if self.weak:
            interval = int(durability.removeprefix("interval:").removesuffix("ms") or 0) if durability != "none" else 0
            window = interval * MS + 2500 * MS if interval else 1 << 62
        self.faults = Faults(
            self.world,
            self.network,
            self.cluster,
            self.checkers,
            self.promises,
            self.operator,
            clients=tuple(client_endpoint(client.identity) for client in self.clients),
            election_timeout=self.election_timeout,
            loss_window=window,
        )
        schedule = draw_schedule(
            self.world.random("schedule"),
            case.groups,
            self.span,
            self.election_timeout,
            weak=self.weak,
            changes=self.changes,
        )
        if case.calm:
            schedule = []
        self.schedule = [fault for i, fault in enumerate(schedule) if case.only is None or i in case.only]

    def _members_change(self, draw: Random) -> bool:
        """Not where disks are damaged for good or power cuts take acknowledged writes: how much of that a cluster bears
        is settled for fixed members."""
        groups = self.case.groups
        share = 0.35 if DISK in groups else 1.0
        return draw.random() < share and MEMBERSHIP in groups and not self.case.calm

    def _options(self, spec: ClusterSpec, draw: Random) -> Options:
        timeout = self.election_timeout
        return Options(
            spec=spec,
            core=CoreSettings(
                election_timeout=timeout,
                heartbeat_interval=timeout // 4,
                lease_margin=timeout // 10,
                batch_bytes_max=draw.choice((400, 4000, 1 << 20)),
                inflight_max=draw.choice((1, 2, 8)),
                retained_bytes_max=draw.choice((0, 500, 5000, 1 << 20)),
                rear_delay=draw.choice((0, MS, 5 * MS, 20 * MS)),
            ),
            core_class=self.case.core_class,
            new_machine=_machines(self.case),
            service=draw.choice((20, 100, 400)) * MS // 1000,
            disk=draw.choice(((MS // 20, MS // 5), (MS // 5, 2 * MS), (MS, 10 * MS))),
            chunk_bytes=draw.choice((300, 2000, 256 << 10)),
            sector=draw.choice((512, 4096)),
            drift={n.replica_id: draw.randrange(100_000_000) for n in spec.nodes} if self.drifts else {},
            notices_lost=draw.choice((0.0, 0.0, 0.3, 1.0)),
        )

    def _draw_load(self, draw: Random) -> Load:
        levels = (wire.LINEARIZABLE, wire.LEASE, wire.BOUNDED, wire.EVENTUAL)
        load = Load(
            sessions=draw.choice((1, 2, 3)),
            callers=draw.choice((1, 2, 4)),
            keys=draw.choice((1, 3, 8)),
            think=draw.choice((5, 20, 100, 1500)) * MS,
            read_share=draw.choice((0.1, 0.4, 0.7, 0.95)),
            pipeline_share=draw.choice((0.0, 0.1, 0.5)),
            list_share=draw.choice((0.0, 0.1, 0.3)),
            levels=(wire.LINEARIZABLE, wire.EVENTUAL) if self.drifts else levels,
        )
        if self.case.calm:
            load = Load(sessions=1, callers=1, think=500 * MS)
        return load

    def _make_clients(self, load: Load) -> list[SimulatedClient]:
        clients = [self._make_client(number, load) for number in range(load.sessions)]
        by_name = {client.identity: client for client in clients}

        def reply(to: bytes, replica: int, head: bytes, body: bytes) -> None:
            if to == OPERATOR:
                self.world.after(0, self.operator.replied, head, body)
                return
            client = by_name.get(to)
            if client is not None:
                self.network.send(replica, client.endpoint, client.replied, replica, head, body)

        self.cluster.on_reply = reply
        self.cluster.on_up = lambda replica: self._tell(clients, replica, True)
        self.cluster.on_down = lambda replica: self._tell(clients, replica, False)
        return clients

    def _make_client(self, number: int, load: Load) -> SimulatedClient:
        draw = self.world.random(f"work {number}")
        work: Work
        if isinstance(self.promises, Promises):
            work = KeyValueWork(load, self.promises, number, draw)
        else:
            assert self.case.workload is not None
            work = OwnWork(self.case.workload, load.read_share, load.levels, draw)
        return SimulatedClient(self.world, self.network, self.cluster, self.promises, work, number, load)

    def _tell(self, clients: list[SimulatedClient], replica: int, up: bool) -> None:
        for client in clients:
            self.world.after(5 * MS, client.node_up if up else client.node_down, replica)

    # -- the phases ---------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        try:
            self._safety()
            self._liveness()
            self._judge()
        except Violation as violation:
            return self._outcome(violation.name, violation.detail)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            kind = "assertion" if isinstance(error, AssertionError) else "unexpected error"
            where = f"{place.filename.rsplit('/', 1)[-1]}:{place.lineno} {place.line}"
            return self._outcome(kind, f"{type(error).__name__}: {error} at {where}")
        return self._outcome("", "")

    def _safety(self) -> None:
        for replica in self.cluster.nodes:
            self.cluster.start(replica)
        for client in self.clients:
            client.begin()
        self.faults.schedule(self.schedule)
        self.world.run_until(START + self.span)

    def _liveness(self) -> None:
        world = self.world
        for client in self.clients:
            client.stopped = True
        self.faults.heal()
        # First everybody who waits gets an answer or gives up, then fresh operations must succeed.
        end = world.now + LIVENESS_TIMEOUTS * self.election_timeout
        if not world.run_until(end, self._everything_agrees):
            raise Violation("liveness", self._what_is_missing("replicas do not agree"))
        probes: list[Call] = []
        for client in self.clients:
            probes += [client.ask(ask, caller, patient=True) for caller, ask in enumerate(client.work.last())]
        end = world.now + LIVENESS_TIMEOUTS * self.election_timeout + CLIENT_PATIENCE
        if not world.run_until(end, lambda: not any(client.busy for client in self.clients)):
            raise Violation("liveness", self._what_is_missing("operations of clients do not end"))
        for call in probes:
            if call.status != "ok":
                raise Violation("liveness", self._what_is_missing(f"{call.ops} did not succeed: {call.status}"))
        if not world.run_until(world.now + LIVENESS_TIMEOUTS * self.election_timeout, self._everything_agrees):
            raise Violation("liveness", self._what_is_missing("replicas do not agree at the end"))

    def _everything_agrees(self) -> bool:
        """One leader of the highest term, nobody in repair, all that can have applied everything."""
        cluster = self.cluster
        leader = cluster.leader()
        if not leader:
            return False
        life = cluster.nodes[leader].life
        assert life is not None
        core = cluster.core(life)
        if core.commit_index < core.log.last_index or core.leadership is None or self.operator.busy:
            return False
        current = core.membership.current
        nodes = [cluster.nodes[member] for member in (*current.voters, *current.learners)]
        if any(node.life is None and not node.out for node in nodes):
            return False
        lives = [node.life for node in nodes if node.life is not None]
        return all(
            other.replica.last_applied == core.commit_index
            and other.replica.core.term == core.term
            and not cluster.core(other).repair
            for other in lives
        )

    def _what_is_missing(self, text: str) -> str:
        lines = [text]
        for node in self.cluster.nodes.values():
            if node.life is None:
                lines.append(f"{node.name}: {node.out or 'down'}")
            else:
                core = self.cluster.core(node.life)
                lines.append(
                    f"{node.name}: {core.role}, term {core.term}, leader {core.leader}, log {core.log.last_index}, "
                    f"committed {core.commit_index}, applied {node.life.replica.last_applied}"
                    + (", in repair" if core.repair else "")
                )
        return "; ".join(lines)

    def _judge(self) -> None:
        for life in self.cluster.lives():
            machine: Any = life.replica.machine
            self.checkers.same_state(life.node.id, life.replica.last_applied, machine)
        self.promises.finish()
        if self.case.check_history is not None and self.promises.floors.era == 0:
            wrong = self.case.check_history(self.promises.history)
            if wrong is not None:
                raise Violation("linearizable history", wrong)

    def _outcome(self, name: str, detail: str) -> Outcome:
        trace = self.world.trace
        return Outcome(
            seed=self.case.seed,
            events=trace.events,
            simulated=self.world.now - START,
            trace_hash=trace.hash(),
            property=name,
            detail=detail,
            schedule=self.schedule,
            recent=[f"{(at - START) / 1e9:10.6f} s  {where:4d}  {what}" for at, where, what, _ in trace.recent],
            operations=self.promises.completed,
            elections=self.checkers.elections,
            entries=self.checkers.highest,
            changes=self.checkers.configurations.changes,
        )


def _new_model(case: Case, spec: ClusterSpec) -> FrameModel:
    if case.workload is not None:
        return OwnModel(case.workload)
    return KeyValueModel(spec.settings.value_bytes_max)


def _machines(case: Case) -> Callable[[ClusterSpec], Machine]:
    workload = case.workload
    return case.new_machine if workload is None else lambda spec: workload.machine()


def run_case(case: Case) -> Outcome:
    """Run one seed from beginning to end."""
    return Run(case).run()


def _spec(case: Case, count: int, durability: str, election_timeout: Nanoseconds, draw: Random) -> ClusterSpec:
    """A cluster as `up` would describe it, but with small segments and checkpoints so that they roll often."""
    settings = Settings(
        nodes=count,
        engine=case.engine,
        durability=durability,
        election_timeout_ms=election_timeout // MS,
        heartbeat_ms=election_timeout // MS // 4,
        segment_bytes=draw.choice((4096, 8192, 32768)),
        checkpoint_bytes=draw.choice((500, 2000, 10_000)),
        checkpoint_seconds=draw.choice((0, 3)),
        sessions_max=draw.choice((16, 10_000)),
        value_bytes_max=draw.choice((20, 1 << 20)),
    )
    return ClusterSpec(
        format=FORMAT,
        name="simulated",
        cluster_id=f"simulated-{case.seed}",
        settings=settings,
        nodes=tuple(NodeSpec(f"n{i}", i) for i in range(1, count + 1)),
        socket_directory="/nowhere",
        directory="/simulated",
    )
