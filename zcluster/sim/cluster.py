"""The nodes of a world: production replicas on simulated disks and links, and the loop around each.

A `Node` has a disk and, while it is up, a `Life`: one incarnation of one process, started by the very steps of
`node.start`. The loop is that of `node.server`: everything that has arrived, in the same order, one `turn`, then its
effects, messages first. A node that is busy takes what arrives meanwhile in its next turn. The disk works beside it.

What may go wrong at any moment ends up here: a disk call that is the last one (`Crashed`), an error of the disk, which
stops the process, a kill, a pause, a power cut of the whole machine (a new boot id: only then may unsynced data of weak
modes go). The kernel of the machine tells survivors whose process has exited, late or never, and answers when asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from zcluster import wire
from zcluster.config import FORMAT
from zcluster.consensus.api import AnyMessage
from zcluster.consensus.core import Core
from zcluster.errors import Corrupt, StorageError, WrongCluster
from zcluster.node import start, transfer
from zcluster.node.replica import Effects, Replica
from zcluster.sim.checkers import Checkers, WatchedMachine
from zcluster.sim.disk import Crashed, SimulatedDisk
from zcluster.sim.network import CLIENTS, Network
from zcluster.sim.process import Capture, Life, Node, Options, Received, Request
from zcluster.sim.shipping import ASLEEP, Shipping
from zcluster.sim.world import Violation, World
from zcluster.storage.checkpoint import CheckpointWriter, prune
from zcluster.storage.recover import Store, open_store
from zcluster.storage.writer import InlineWriter
from zcluster.types import MS, NEVER, Identity, Nanoseconds, ReplicaId

WALL_MS: Final = 1_700_000_000_000
OPERATOR: Final = b""  # asks beside the network

_decode = msgspec.msgpack.Decoder(AnyMessage).decode
_encode = msgspec.msgpack.Encoder().encode


class Cluster:
    """All nodes, and the kernel of their machine. `on_up`, `on_down`: told of every start and end of a process."""

    def __init__(self, world: World, network: Network, checkers: Checkers, options: Options) -> None:
        self.options = options
        self.spec = options.spec
        self.nodes: dict[ReplicaId, Node] = {}
        self.boot = 1
        self.on_up: Callable[[ReplicaId], None] = _nothing
        self.on_down: Callable[[ReplicaId], None] = _nothing
        self.on_reply: Callable[[bytes, ReplicaId, bytes, bytes], None] = _nothing
        self._world = world
        self._network = network
        self._checkers = checkers
        self._random = world.random("cluster")
        self._exited: dict[tuple[ReplicaId, int], None] = {}
        self._shipping = Shipping(world, network, self.nodes, options, self, self._random)
        for spec in self.spec.nodes:
            disk = SimulatedDisk(world.random(f"disk {spec.name}"), options.sector)
            self.nodes[spec.replica_id] = node = Node(spec.replica_id, spec.name, disk)
            node.drift = options.drift.get(spec.replica_id, 0)

    # -- questions ----------------------------------------------------------------------------------------------------

    def leader(self) -> ReplicaId:
        """Who leads in the highest term among those that are up; 0 if nobody does."""
        found = [(life.replica.core.term, life.node.id) for life in self.lives() if life.replica.core.is_leader]
        return max(found)[1] if found else 0

    def all_sync_until(self) -> Nanoseconds:
        """Since when some process has been down or paused; what it had not synced then, it has not synced yet."""
        return min(self._world.now, *(node.idle_since for node in self.present()))

    def lives(self) -> list[Life]:
        return [node.life for node in self.nodes.values() if node.life is not None]

    def core(self, life: Life) -> Core:
        core = life.replica.core
        assert isinstance(core, Core)
        return core

    def local_time(self, node: Node) -> Nanoseconds:
        """By the node's own clock."""
        now = self._world.now
        return now + now * node.drift // 1_000_000_000 if node.drift else now

    # -- lives --------------------------------------------------------------------------------------------------------

    def start(self, replica: ReplicaId, *, keep_fault: bool = False) -> None:
        """Start the process, unless it runs or must not. One that fails by a passing error may be started again.
        `keep_fault`: a crash arranged at the disk may happen in the course of it."""
        node = self.nodes[replica]
        if node.life is not None or node.out:
            return
        node.paused = False
        if not keep_fault:
            node.disk.kill()
        errors = node.disk.errors
        try:
            life = self._begin(node)
            life.errors = errors
        except Crashed:
            self.crash(replica, node.crash_keeps)
            self._restart_later(node)
            return
        except (start.Refused, WrongCluster, Corrupt) as error:
            if node.disk.errors != errors:
                self._restart_later(node)
                return
            if not self._checkers.shadows[replica].damaged:
                raise Violation("recovery", f"{node.name}: a healthy disk is refused: {error}") from error
            node.out = str(error)
            self._world.trace.add(self._world.now, replica, "refused")
            return
        except StorageError as error:
            if node.disk.errors == errors and not self._checkers.shadows[replica].damaged:
                raise Violation("recovery", f"{node.name} does not start: {error}") from error
            self._restart_later(node)
            return
        node.life = life
        node.created = True
        node.idle_since = NEVER
        self._world.trace.add(self._world.now, replica, "start")
        self.on_up(replica)
        self.guard(life, self._turn, life)

    def _begin(self, node: Node) -> Life:
        options, disk = self.options, node.disk
        store = self._open_store(node)
        found = store.recovered
        start.check_usable(store, self.spec, node.name)
        self._checkers.recovered(node.id, found)
        clock = self._world
        writer = InlineWriter(store.wal, self.spec.settings.durability, _nothing, lambda: clock.now, immediate=False)
        incarnation = start.take_incarnation(writer, _nothing, found)
        fresh = 0 if found.checkpoint_path is None else None
        machine = WatchedMachine(options.new_machine(self.spec), node.id, self._checkers, fresh)
        start.restore_machine(disk, machine, found)
        watched: dict[ReplicaId, int] = {}

        def verify_death(replica: ReplicaId, incarnation: int) -> bool:
            return watched.get(replica) == incarnation and (replica, incarnation) in self._exited

        replica = start.new_replica(
            self.spec,
            store,
            machine,
            incarnation,
            verify_death,
            self.local_time(node),
            settings=options.core,
            core_class=options.core_class,
        )
        life = Life(node, store, writer, incarnation, replica)
        life.watched = watched
        life.incoming = transfer.Incoming(
            disk,
            store.checkpoints,
            self.spec.cluster_id,
            lambda: WatchedMachine(options.new_machine(self.spec), node.id, self._checkers, None),
        )
        return life

    def _open_store(self, node: Node) -> Store:
        """Those that the cluster was made of agree on its first members; one that joins waits to be told."""
        boot_id, spec = f"boot-{self.boot}", self.spec
        if not node.joined:
            create = not all(other.created for other in self.nodes.values() if not other.joined)
            return start.open_node_store(node.disk, spec, node.name, create=create, boot_id=boot_id)
        directory = spec.data_directory(node.name)
        return open_store(
            node.disk,
            directory,
            identity=Identity(FORMAT, spec.cluster_id, node.id, spec.settings.engine),
            boot_id=boot_id,
            create=not node.created and not node.disk.exists(directory / "identity.json"),
            segment_bytes=spec.settings.segment_bytes,
        )

    def join(self) -> ReplicaId:
        """One more machine with an empty disk, under an id that was never used. It is started, and belongs to nothing
        until it is told."""
        replica = max(self.nodes) + 1
        disk = SimulatedDisk(self._world.random(f"disk n{replica}"), self.options.sector)
        self.nodes[replica] = Node(replica, f"n{replica}", disk, joined=True)
        self._checkers.joined(replica)
        self.start(replica)
        return replica

    def retire(self, replica: ReplicaId, why: str) -> None:
        """Its process ends, and none is started again."""
        self.crash(replica)
        self.nodes[replica].out = why

    def present(self) -> list[Node]:
        """Those that run, or may run again."""
        return [node for node in self.nodes.values() if not node.out]

    def crash(self, replica: ReplicaId, keep: str | None = None) -> None:
        """SIGKILL. `keep`: what survives of the unsynced data too ("nothing", "random", "all"); None: all, in the
        page cache."""
        node = self.nodes[replica]
        life, node.life = node.life, None
        node.paused = False
        node.idle_since = min(node.idle_since, self._world.now)
        if keep is None:
            node.disk.kill()
        else:
            node.disk.lose_cache(keep)
        if life is None:
            return
        self._world.trace.add(self._world.now, replica, "exit")
        self._exited[replica, life.incarnation] = None
        self._checkers.exited(replica)
        for other in self.lives():
            if other.watched.get(replica) == life.incarnation and self._random.random() >= self.options.notices_lost:
                self._world.after(self._random.randrange(2 * MS), self._notice, other, replica, life.incarnation)
        self.on_down(replica)

    def power_cut(self, keep: str) -> None:
        """The machine loses its power: every process, every page cache, and the boot id."""
        self._world.trace.add(self._world.now, 0, "power cut")
        self._network.forget()
        for replica in self.nodes:
            self.crash(replica, keep)
        self.boot += 1

    def change(self, replica: ReplicaId, request: int, body: bytes) -> None:
        """The operator asks this node for a change of the members."""
        self._ask(replica, wire.MEMBERSHIP, body, request)

    def hand_over(self, replica: ReplicaId, to: ReplicaId) -> None:
        """Somebody asks the node to hand leadership over (0: to whom it likes)."""
        self._ask(replica, wire.TRANSFER, wire.encode([to]))

    def checkpoint(self, replica: ReplicaId) -> None:
        self._ask(replica, wire.CHECKPOINT, b"")

    def _ask(self, replica: ReplicaId, kind: int, body: bytes, request: int = 0) -> None:
        life = self.nodes[replica].life
        if life is not None:
            life.requests.append((OPERATOR, kind, request, body))
            self.poke(life)

    def pause(self, replica: ReplicaId) -> None:
        node = self.nodes[replica]
        if node.life is not None:
            node.paused = True
            node.idle_since = min(node.idle_since, self._world.now)

    def resume(self, replica: ReplicaId) -> None:
        node = self.nodes[replica]
        node.paused = False
        if node.life is not None:
            node.idle_since = NEVER
            self.poke(node.life)

    def _notice(self, life: Life, replica: ReplicaId, incarnation: int) -> None:
        if life.node.life is life and life.watched.get(replica) == incarnation:
            self._world.trace.add(self._world.now, life.node.id, "exit notice")
            life.lost.append((replica, incarnation))
            self.poke(life)

    def guard(self, life: Life, action: Callable[..., None], *arguments: Any) -> None:
        """Run a part of a process; it may end in it."""
        try:
            action(*arguments)
        except Crashed:
            self.crash(life.node.id, life.node.crash_keeps)
            self._restart_later(life.node)
        except StorageError as error:
            if life.node.disk.errors == life.errors:
                raise Violation("storage", f"{life.node.name} stops without a fault of its disk: {error}") from error
            self.crash(life.node.id)
            self._restart_later(life.node)

    def _restart_later(self, node: Node) -> None:
        """The supervisor starts what died by itself."""
        self._world.after(self._random.randrange(100 * MS, 2000 * MS), self.start, node.id)

    # -- the loop -----------------------------------------------------------------------------------------------------

    def poke(self, life: Life) -> None:
        """Something has arrived: take a turn, now or when the last one is over."""
        if life.turn_pending or life.node.paused:
            return
        if self._world.now >= life.free_at:
            self.guard(life, self._turn, life)
        else:
            life.turn_pending = True
            self._world.at(life.free_at, self._late_turn, life)

    def poke_later(self, life: Life) -> None:
        """The same, in the middle of a turn."""
        life.turn_pending = True
        self._world.at(self._world.now + self.options.service, self._late_turn, life)

    def _late_turn(self, life: Life) -> None:
        life.turn_pending = False
        if life.node.life is life and not life.node.paused:
            self.guard(life, self._turn, life)

    def _turn(self, life: Life) -> None:
        node, replica = life.node, life.replica
        if life.pieces:
            self._shipping.take_pieces(life)
        now = self.local_time(node)
        self._feed(life, replica, now)
        wall_ms = WALL_MS + self._world.now // MS + node.wall_offset_ms
        self._carry_out(life, replica.turn(now, wall_ms), now)
        replica.machine.maintain()
        self._checkers.stepped(node.id, self.core(life))
        life.free_at = self._world.now + self.options.service
        self._schedule_wake(life)

    def _feed(self, life: Life, replica: Replica, now: Nanoseconds) -> None:
        """The order is that of `node.server`."""
        completion = life.writer.completed()
        if completion.seq != life.persisted_seq:
            life.persisted_seq = completion.seq
            self._checkers.persisted(life.node.id, completion.seq)
            replica.persisted(completion.seq, now)
        if completion.error is not None:
            raise completion.error
        if life.received:
            received, life.received = life.received, []
            for sender, incarnation, body in received:
                if incarnation > life.watched.get(sender, -1):
                    life.watched[sender] = incarnation
                    if (sender, incarnation) in self._exited:
                        life.lost.append((sender, incarnation))
                replica.peer_message(sender, incarnation, _decode(body), now)
        if life.requests:
            requests, life.requests = life.requests, []
            for client, kind, request, body in requests:
                replica.client_message(client, kind, request, body, now)
        if life.lost:
            lost, life.lost = life.lost, []
            for dead, incarnation in lost:
                replica.peer_lost(dead, incarnation, now)
        if life.installed is not None:
            installed, life.installed = life.installed, None
            replica.install(installed.sender, installed.incarnation, installed.message, installed.machine, now)
        if life.statuses:
            statuses, life.statuses = life.statuses, []
            for to, ok in statuses:
                replica.snapshot_status(to, ok, now)
        if life.checkpoints:
            checkpoints, life.checkpoints = life.checkpoints, []
            for meta, error, size in checkpoints:
                replica.checkpoint_done(meta, error, now, size)
        if now >= replica.next_deadline():
            self._world.trace.add(self._world.now, life.node.id, "deadline")
            replica.deadline(now)

    def _carry_out(self, life: Life, out: Effects, now: Nanoseconds) -> None:
        me, network, checkers = life.node.id, self._network, self._checkers
        for batch in out.writes:
            checkers.submitted(me, batch)
        encoded, body = None, b""
        for to, message in out.messages:
            if message is not encoded:
                encoded, body = message, _encode(message)
            checkers.sent(me, to, message)
            network.send(me, to, self._peer_arrived, to, (me, life.incarnation, body))
        for batch in out.writes:
            life.writer.submit(batch)
        for client, head, body in out.replies:
            self.on_reply(client, me, head, body)
        if out.announce is not None:
            head, body = wire.pack_head(wire.LEADER, 0), wire.encode(out.announce)
            for client in life.clients:
                self.on_reply(client, me, head, body)
        for to, meta in out.snapshot_sends:
            self._shipping.send(life, to, meta, now)
        if out.compacted is not None:
            oldest = prune(life.node.disk, life.store.checkpoints, keep=2)
            life.writer.trim(oldest + 1)
            self._schedule_disk(life)
        if out.writes:
            self._schedule_disk(life)
        if out.capture is not None:
            life.capture = Capture(out.capture[0], out.capture[1].chunks())
            self._world.after(self._random.randrange(MS), self._capture_step, life, life.capture)

        if out.digest is not None:
            index, snapshot = out.digest
            *_, digest = snapshot.digest()
            life.replica.digest_done(index, digest)

    def _schedule_wake(self, life: Life) -> None:
        """One wake-up is on the heap at most; one that comes too early finds the new time."""
        due = life.replica.next_deadline()
        node = life.node
        if node.drift:
            due = due * 1_000_000_000 // (1_000_000_000 + node.drift) + 1
        if node.late:
            due += self._random.randrange(node.late)
        if due < life.wake_at:
            life.wake_at = due
            self._world.at(due, self._wake, life, due)

    def _wake(self, life: Life, due: Nanoseconds) -> None:
        if life.node.life is not life or due != life.wake_at:
            return
        life.wake_at = NEVER
        if life.node.paused:
            return
        if self.local_time(life.node) >= life.replica.next_deadline():
            self.poke(life)
        else:
            self._schedule_wake(life)

    # -- what arrives -------------------------------------------------------------------------------------------------

    def _peer_arrived(self, to: ReplicaId, received: Received) -> None:
        life = self.nodes[to].life
        if life is not None:
            self._world.trace.add(self._world.now, to, "message", received[2])
            life.received.append(received)
            self.poke(life)

    def client_arrived(self, to: ReplicaId, request: Request) -> None:
        life = self.nodes[to].life
        if life is not None:
            self._world.trace.add(self._world.now, to, "request", request[3])
            life.clients[request[0]] = None
            life.requests.append(request)
            self.poke(life)

    # -- the disk -----------------------------------------------------------------------------------------------------

    def _schedule_disk(self, life: Life) -> None:
        """Let the writer work after the time that a write takes, unless it is at work already."""
        if life.disk_due != NEVER:
            return
        low, high = self.options.disk
        span = low + self._random.randrange(high - low + 1)
        if life.node.slow_disk:
            span += self._random.randrange(life.node.slow_disk)
        life.disk_due = self._world.now + span
        self._world.at(life.disk_due, self._disk_works, life)

    def _disk_works(self, life: Life) -> None:
        if life.node.life is not life:
            return
        life.disk_due = NEVER
        if life.node.paused:  # the process sleeps in its system call
            self._schedule_disk(life)
            return
        self._world.trace.add(self._world.now, life.node.id, "disk")
        self.guard(life, life.writer.pump)
        if life.node.life is not life:
            return
        self.poke(life)
        if life.node.life is life:
            due = life.writer.sync_deadline()
            if due != NEVER and life.disk_due == NEVER:
                life.disk_due = max(due, self._world.now + 1)
                self._world.at(life.disk_due, self._disk_works, life)

    def _capture_step(self, life: Life, capture: Capture) -> None:
        if life.node.life is not life or life.capture is not capture:
            return
        if life.node.paused:
            self._world.after(ASLEEP, self._capture_step, life, capture)
        else:
            self.guard(life, self._write_checkpoint, life, capture)

    def _write_checkpoint(self, life: Life, capture: Capture) -> None:
        """One slice of a checkpoint; failures of the disk cost the checkpoint only."""
        error: Exception | None = None
        try:
            if capture.writer is None:
                capture.writer = CheckpointWriter(
                    life.node.disk, life.store.checkpoints, capture.meta, self.spec.cluster_id
                )
            chunk = next(capture.chunks, None)
            if chunk is not None:
                capture.writer.write(chunk)
                capture.size_bytes += len(chunk)
                self._world.after(self._random.randrange(2 * MS), self._capture_step, life, capture)
                return
            capture.writer.finish()
        except StorageError as failed:
            if life.node.disk.errors == life.errors:
                raise
            error = failed
            if capture.writer is not None:
                capture.writer.abort()
        close = getattr(capture.chunks, "close", None)
        if close is not None:
            close()
        life.capture = None
        self._world.trace.add(self._world.now, life.node.id, "checkpoint")
        life.checkpoints.append((capture.meta, error, capture.size_bytes))
        self.poke(life)


def client_endpoint(client: bytes) -> int:
    return CLIENTS + int(client[1:])


def _nothing(*_: Any) -> None:
    """For news that nobody wants."""
