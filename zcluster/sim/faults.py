"""How each fault of a schedule is done to a world, and undone.

**The fault atlas.** Disks may only be harmed so far that a majority keeps a good copy of everything committed. Harm
that stays (flipped bits, lost writes, a wiped disk) is done to a fixed minority of the replicas of a world, and never
to bytes whose loss nobody can notice: the end of the log behind the last proof that it was synced. Where a power cut
may take acknowledged writes (weak durability), the election behind it needs every voter: so no disk is damaged until
that is over, and no power is cut while a damaged disk is not made good. Where members change, see `operator`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from random import Random
from typing import Protocol

from zcluster.sim.checkers import Checkers
from zcluster.sim.cluster import Cluster
from zcluster.sim.disk import UNIT
from zcluster.sim.network import Network, partition
from zcluster.sim.operator import Operator
from zcluster.sim.process import Node
from zcluster.sim.schedule import Fault
from zcluster.sim.world import World
from zcluster.storage.record import cluster_digest, find_frames
from zcluster.storage.segment import SEGMENT_HEADER_BYTES, parse_segment_name
from zcluster.types import MS, Index, Nanoseconds


class Promise(Protocol):
    """Who must know when acknowledged writes may be gone."""

    def power_cut(self, stable: Index) -> None: ...


class Faults:
    """Does the faults of one world, and undoes all of them for the liveness phase.

    loss_window: how long before a power cut a write may have been committed and still go; None: nothing may go.
    """

    def __init__(
        self,
        world: World,
        network: Network,
        cluster: Cluster,
        checkers: Checkers,
        promises: Promise,
        operator: Operator,
        *,
        clients: tuple[int, ...],
        election_timeout: Nanoseconds,
        loss_window: Nanoseconds | None,
    ) -> None:
        self.done: list[Fault] = []
        self._world = world
        self._network = network
        self._cluster = cluster
        self._checkers = checkers
        self._promises = promises
        self._operator = operator
        self._clients = clients
        self._election_timeout = election_timeout
        self._loss_window = loss_window
        self._healed = False
        self._power_was_cut = False
        replicas = list(cluster.nodes)
        self.fragile = world.random("atlas").sample(replicas, (len(replicas) - 1) // 2)
        for replica in self.fragile:
            cluster.nodes[replica].disk.remember = True
        self._keys = 0

    def schedule(self, faults: list[Fault]) -> None:
        for fault in faults:
            self._world.after(fault.at, self._do, fault)

    def heal(self) -> None:
        """Nothing is wrong any more, except what is damaged for good."""
        self._healed = True
        self._operator.hurry()
        self._network.heal_all()
        for node in self._cluster.nodes.values():
            node.disk.recover_from_faults()
            node.late = node.slow_disk = 0
            self._cluster.resume(node.id)
            self._cluster.start(node.id)

    def _do(self, fault: Fault) -> None:
        if self._healed:
            return
        draw = Random(fault.dice)
        self._world.trace.add(self._world.now, 0, fault.kind)
        self.done.append(fault)
        kind, _, detail = fault.kind.partition(" ")
        if kind == "partition":
            self._partition(detail, fault, draw)
        else:
            action: Callable[[Fault, Random], None] = getattr(self, f"_{kind}")
            action(fault, draw)

    def _later(self, span: Nanoseconds, action: Callable[..., object], *arguments: object) -> None:
        """What ends a fault; healing has ended it already."""
        self._world.after(span, self._unless_healed, action, arguments)

    def _unless_healed(self, action: Callable[..., object], arguments: tuple[object, ...]) -> None:
        if not self._healed:
            action(*arguments)

    def _any(self, draw: Random) -> Node:
        return draw.choice(self._cluster.present())

    def _leading(self, draw: Random) -> Node:
        leader = self._cluster.leader()
        return self._cluster.nodes[leader] if leader else self._any(draw)

    def _fragile(self, draw: Random) -> Node | None:
        if not self.fragile or not self._damage_is_fair():
            return None
        return self._cluster.nodes[draw.choice(self.fragile)]

    def _damage_is_fair(self) -> bool:
        """Behind a power cut that took writes, the next election needs every voter (see `consensus.election`), and one
        that repairs itself has no vote: then damage waits until everybody holds an entry of a later term."""
        if self._loss_window is None or not self._power_was_cut:
            return True
        cores = [self._cluster.core(life) for life in self._cluster.lives()]
        return len(cores) == len(self._cluster.nodes) and all(
            (core.log.term(core.writes.durable_index) or 0) > core.suspect_after for core in cores
        )

    def _cut_is_fair(self) -> bool:
        """The same the other way round: no power cut while a damaged disk is not made good."""
        nodes = self._cluster.nodes.values()
        if not any(self._checkers.shadows[node.id].damaged for node in nodes):
            return True
        pending = [batch for node in nodes for batch in self._checkers.shadows[node.id].pending]
        return all(node.life is not None and not self._cluster.core(node.life).repair for node in nodes) and all(
            batch.repair is None for batch in pending
        )

    # -- network ------------------------------------------------------------------------------------------------------

    def _lossy(self, fault: Fault, draw: Random) -> None:
        self._network.loss = draw.random() * 0.3
        self._network.duplication = draw.random() * 0.5
        self._later(fault.span, self._calm)

    def _slow_links(self, fault: Fault, draw: Random) -> None:
        self._network.slow = draw.random() * 0.3
        self._network.slow_max = int(draw.random() * 4 * self._election_timeout)
        self._later(fault.span, self._calm)

    def _slow(self, fault: Fault, draw: Random) -> None:
        """Each message from and to one node takes longer."""
        node = self._any(draw)
        self._network.slow_nodes[node.id] = int(draw.choice((0.1, 0.5, 2.0)) * self._election_timeout)
        self._later(fault.span, self._network.mend, node.id)

    def _flaky(self, fault: Fault, draw: Random) -> None:
        node = self._any(draw)
        self._network.flaky_nodes[node.id] = draw.choice((0.05, 0.3, 0.7))
        self._later(fault.span, self._network.mend, node.id)

    def _calm(self) -> None:
        self._network.loss = self._network.duplication = self._network.slow = 0.0

    def _partition(self, kind: str, fault: Fault, draw: Random) -> None:
        self._keys += 1
        pairs = partition(kind, self._reachable(), self._clients, draw, self._cluster.leader())
        self._network.cut(self._keys, pairs)
        if kind == "flapping":
            period = max(draw.randrange(2 * self._election_timeout), MS)
            self._flap(self._keys, pairs, period, self._world.now + fault.span)
        else:
            self._later(fault.span, self._network.heal, self._keys)

    def _reachable(self) -> list[int]:
        return [node.id for node in self._cluster.present()]

    def _flap(self, key: int, pairs: list[tuple[int, int]], period: Nanoseconds, end: Nanoseconds) -> None:
        self._later(period // 2, self._network.heal, key)
        if self._world.now + period < end:
            self._later(period, self._network.cut, key, pairs)
            self._later(period, self._flap, key, pairs, period, end)

    # -- processes ----------------------------------------------------------------------------------------------------

    def _kill(self, fault: Fault, draw: Random) -> None:
        self._crash(self._any(draw), None, fault)

    def _kill_leader(self, fault: Fault, draw: Random) -> None:
        self._crash(self._leading(draw), None, fault)

    def _power_loss(self, fault: Fault, draw: Random) -> None:
        """Of one node's disk: what it had not synced is gone, in part or in whole."""
        self._crash(self._any(draw), draw.choice(("nothing", "random", "random")), fault)

    def _crash(self, node: Node, keep: str | None, fault: Fault) -> None:
        self._cluster.crash(node.id, keep)
        self._later(fault.span, self._cluster.start, node.id)

    def _crash_in_write(self, fault: Fault, draw: Random) -> None:
        """In the middle of a call that changes the disk, soon."""
        node = self._any(draw)
        node.disk.crash_after = draw.choice((1, 2, 3, 5, 8, 20))
        node.crash_keeps = draw.choice((None, "nothing", "random")) if self._loss_window is None else None
        self._later(fault.span, self._stop_waiting, node)
        self._later(fault.span + 10 * MS, self._cluster.start, node.id)

    def _crash_in_start(self, fault: Fault, draw: Random) -> None:
        node = self._any(draw)
        self._cluster.crash(node.id)
        node.disk.crash_after = draw.choice((1, 2, 3, 5, 8))
        self._later(fault.span // 2, self._start_and_crash, node, draw.choice((1, 2, 3, 5, 8)))
        self._later(fault.span + 10 * MS, self._cluster.start, node.id)

    def _start_and_crash(self, node: Node, calls: int) -> None:
        if node.life is None:
            node.disk.kill()
            node.disk.crash_after = calls
            self._cluster.start(node.id, keep_fault=True)
            self._stop_waiting(node)

    def _stop_waiting(self, node: Node) -> None:
        node.disk.crash_after = None

    def _power_cut(self, fault: Fault, draw: Random) -> None:
        """Of the machine: everything stops, what is not synced may be gone; a new boot."""
        if self._loss_window is not None:
            if not self._cut_is_fair():
                return
            self._power_was_cut = True
            stable = self._checkers.stable_before(self._cluster.all_sync_until() - self._loss_window)
            self._checkers.power_cut(stable)
            self._promises.power_cut(stable)
        self._cluster.power_cut(draw.choice(("nothing", "random", "random")))
        for node in self._cluster.nodes.values():
            self._later(draw.randrange(fault.span + 1), self._cluster.start, node.id)

    def _transfer(self, fault: Fault, draw: Random) -> None:
        self._cluster.hand_over(self._leading(draw).id, draw.choice([0, *self._reachable()]))

    def _checkpoint(self, fault: Fault, draw: Random) -> None:
        self._cluster.checkpoint(self._any(draw).id)

    def _pause(self, fault: Fault, draw: Random) -> None:
        self._freeze(self._any(draw), fault)

    def _pause_leader(self, fault: Fault, draw: Random) -> None:
        self._freeze(self._leading(draw), fault)

    def _freeze(self, node: Node, fault: Fault) -> None:
        self._cluster.pause(node.id)
        self._later(fault.span, self._cluster.resume, node.id)

    # -- disks --------------------------------------------------------------------------------------------------------

    def _sync_error(self, fault: Fault, draw: Random) -> None:
        self._fail(self._any(draw), "fdatasync", errno.EIO, fault)

    def _write_error(self, fault: Fault, draw: Random) -> None:
        self._fail(self._any(draw), "pwritev", draw.choice((errno.EIO, errno.ENOSPC)), fault)

    def _read_error(self, fault: Fault, draw: Random) -> None:
        self._fail(self._any(draw), "pread", errno.EIO, fault)

    def _fail(self, node: Node, operation: str, code: int, fault: Fault) -> None:
        node.disk.fail(operation, code)
        self._later(fault.span + 20 * MS, self._cluster.start, node.id)

    def _full(self, fault: Fault, draw: Random) -> None:
        node = self._any(draw)
        node.disk.capacity = draw.randrange(1, 60_000)
        self._later(fault.span, self._make_room, node)

    def _make_room(self, node: Node) -> None:
        node.disk.capacity = None
        self._cluster.start(node.id)

    def _slow_disk(self, fault: Fault, draw: Random) -> None:
        node = self._any(draw)
        node.slow_disk = draw.choice((5, 50, 500, 2000)) * MS
        self._later(fault.span, setattr, node, "slow_disk", 0)

    def _flip_log(self, fault: Fault, draw: Random) -> None:
        """One bit of a segment, below the last proof that the bytes were synced; found at the next start."""
        node = self._fragile(draw)
        place = None if node is None else self._place_in_log(node, draw)
        if node is not None and place is not None:
            self._checkers.shadows[node.id].damaged = True
            node.disk.flip(*place, draw.randrange(8))
            self._crash(node, None, fault)

    def _place_in_log(self, node: Node, draw: Random, room: int = 1) -> tuple[str, int] | None:
        """(path, offset) of `room` bytes below a proof, somewhere; None if there are none."""
        digest = cluster_digest(self._cluster.spec.cluster_id)
        places: list[tuple[str, int]] = []
        paths = [path for path in sorted(node.disk.durable) if path in node.disk.current and path.endswith(".wal")]
        for path in paths:
            segment_id = parse_segment_name(path.rsplit("/", 1)[1])
            assert segment_id is not None
            frames = find_frames(bytes(node.disk.durable[path].durable), SEGMENT_HEADER_BYTES, digest, segment_id)
            proven = max((frame.synced for frame in frames), default=0)
            if proven >= room:
                places.append((path, draw.randrange(proven - room + 1)))
        return draw.choice(places) if places else None

    def _flip_checkpoint(self, fault: Fault, draw: Random) -> None:
        node = self._fragile(draw)
        if node is None:
            return
        paths = [path for path in sorted(node.disk.current) if path.endswith(".ckpt")]
        if paths:
            path = draw.choice(paths)
            self._checkers.shadows[node.id].damaged = True
            node.disk.flip(path, draw.randrange(len(node.disk.current[path].current)), draw.randrange(8))
            self._crash(node, None, fault)

    def _misread(self, fault: Fault, draw: Random) -> None:
        """At the next start one read brings bytes of another place."""
        node = self._fragile(draw)
        place = None if node is None else self._place_in_log(node, draw, 2 * UNIT)
        if node is not None and place is not None:
            self._checkers.shadows[node.id].damaged = True
            self._cluster.crash(node.id)
            node.disk.misread(place[0], place[1] + UNIT - 1)
            self._later(fault.span, self._cluster.start, node.id)

    def _lost_write(self, fault: Fault, draw: Random) -> None:
        """A write that the disk had reported durable never arrived; below the proof again."""
        node = self._fragile(draw)
        place = None if node is None else self._place_in_log(node, draw, 2 * UNIT)
        if node is not None and place is not None:
            path, offset = place
            self._cluster.crash(node.id)
            if node.disk.regress(path, -(-offset // UNIT)):
                self._checkers.shadows[node.id].damaged = True
            self._later(fault.span, self._cluster.start, node.id)

    def _wipe(self, fault: Fault, draw: Random) -> None:
        """A new disk in the place of the old: the replica must not come back under its id."""
        node = self._fragile(draw)
        if node is not None and draw.random() < 0.3:
            self._checkers.shadows[node.id].damaged = True
            self._cluster.crash(node.id)
            node.disk.wipe()
            self._later(fault.span, self._cluster.start, node.id)

    # -- members ------------------------------------------------------------------------------------------------------

    def _grow(self, fault: Fault, draw: Random) -> None:
        self._operator.grow(draw)

    def _shrink(self, fault: Fault, draw: Random) -> None:
        self._operator.shrink(draw)

    def _shrink_leader(self, fault: Fault, draw: Random) -> None:
        leader = self._cluster.leader()
        if leader in self._operator.members.voters:
            self._operator.shrink(draw, leader)

    def _visit(self, fault: Fault, draw: Random) -> None:
        self._operator.visit(draw)

    def _replace(self, fault: Fault, draw: Random) -> None:
        self._operator.replace(draw)

    def _some_change(self, draw: Random) -> None:
        draw.choice((self._operator.grow, self._operator.shrink, self._operator.visit))(draw)

    def _kill_in_change(self, fault: Fault, draw: Random) -> None:
        """Whoever leads dies while a change is under way."""
        self._some_change(draw)
        self._later(draw.randrange(60 * MS), self._kill_leader, fault, draw)

    def _kill_newcomer(self, fault: Fault, draw: Random) -> None:
        self._operator.grow(draw)
        newest = self._cluster.nodes[max(self._cluster.nodes)]
        self._later(draw.randrange(100 * MS), self._crash, newest, None, fault)

    def _transfer_in_change(self, fault: Fault, draw: Random) -> None:
        self._some_change(draw)
        self._later(draw.randrange(60 * MS), self._transfer, fault, draw)

    # -- clocks -------------------------------------------------------------------------------------------------------

    def _wall_jump(self, fault: Fault, draw: Random) -> None:
        years = draw.choice((-30, -1, 1, 30)) if draw.random() < 0.3 else 0
        node = self._any(draw)
        node.wall_offset_ms = years * 31_557_600_000 + draw.randrange(-600_000, 600_000)

    def _deaf_leader(self, fault: Fault, draw: Random) -> None:
        """Cut off from its peers but not from all clients, with timers so late that it does not notice."""
        node = self._leading(draw)
        self._keys += 1
        with_it = [client for client in self._clients if draw.random() < 0.5]
        others = [other for other in (*self._reachable(), *self._clients) if other not in (node.id, *with_it)]
        self._network.cut(self._keys, [pair for other in others for pair in ((node.id, other), (other, node.id))])
        apart = [other for other in others if other in self._cluster.nodes]
        self._network.cut(-self._keys, [pair for a in apart for b in with_it for pair in ((a, b), (b, a))])
        node.late = max(fault.span, MS)
        self._later(fault.span, self._network.heal, self._keys)
        self._later(fault.span, self._network.heal, -self._keys)
        self._later(fault.span, setattr, node, "late", 0)

    def _late_timers(self, fault: Fault, draw: Random) -> None:
        node = self._any(draw)
        node.late = draw.choice((1, 20, 200, 1000)) * MS
        self._later(fault.span, setattr, node, "late", 0)
