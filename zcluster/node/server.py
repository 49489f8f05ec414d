"""The event loop of a replica process: the only place where its sockets, its disk threads and the clock meet.

    poll once -> drain many (peers, clients, snapshots, wake-ups) -> sample the clock -> feed the replica -> one `turn`
    -> carry out its effects: messages to peers first, then the disk, then replies

One thread at a time runs the loop and owns all sockets. It syncs the log by itself, after the messages to peers have
left; while a sync takes long, a stand-in runs the loop (see `standin`). Helper threads touch files only: one tidies the
log, and one writes or receives a checkpoint; they report through an eventfd. So a stalled disk never stops heartbeats.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
import zmq

from zcluster import wire
from zcluster.config import CLIENT, PEER, SNAPSHOT, ClusterSpec, load_spec
from zcluster.consensus.api import AnyMessage
from zcluster.errors import Error, InvalidInput, NotLeader
from zcluster.events import EventLog
from zcluster.machines.api import Machine
from zcluster.node import status
from zcluster.node.chronicle import Chronicle
from zcluster.node.deaths import DeathWatch
from zcluster.node.install import SnapshotReceiver, SnapshotSender
from zcluster.node.journal import journal
from zcluster.node.network import OwnNetwork
from zcluster.node.replica import Effects, Replica
from zcluster.node.slices import Slices
from zcluster.node.standin import StandIn
from zcluster.storage.checkpoint import BackgroundCheckpoint, prune
from zcluster.storage.disk import Disk
from zcluster.storage.recover import Store
from zcluster.storage.writer import Writer
from zcluster.transport.clients import ClientSocket
from zcluster.transport.peers import Envelope, PeerLinks
from zcluster.transport.sockets import Security, serve_authentication
from zcluster.transport.wakeup import Wakeup
from zcluster.types import MS, NEVER, Configuration, Index, Nanoseconds, SnapshotMeta

PEERS_A_TURN: Final = 512
CLIENTS_A_TURN: Final = 1024
LATE: Final[Nanoseconds] = 100 * MS  # woken this much too late: the process, or the machine, was stopped
HANDOVER_MAX: Final[Nanoseconds] = 400 * MS
STOP_MAX: Final[Nanoseconds] = 5000 * MS
LOOK_AGAIN: Final[Nanoseconds] = 500 * MS


def monotonic() -> Nanoseconds:
    return time.monotonic_ns()


class Server:
    """Everything impure of one replica. `run` returns after SIGTERM; raises StorageError when the disk has failed."""

    def __init__(
        self,
        spec: ClusterSpec,
        node: str,
        *,
        disk: Disk,
        store: Store,
        writer: Writer,
        wakeup: Wakeup,
        me: Envelope,
        make_replica: Callable[[Callable[[int, int], bool], Nanoseconds], Replica],
        new_machine: Callable[[], Machine],
    ) -> None:
        self._spec = spec
        self._node = node
        self._disk = disk
        self._store = store
        self._writer = writer
        self._wakeup = wakeup
        self._me = me
        self._security = Security.load(spec)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._authentication = serve_authentication(self._context, self._security)
        security = self._security
        self._peers: PeerLinks[AnyMessage] = PeerLinks(
            self._context,
            bind=spec.endpoint(node, PEER),
            me=me,
            decode=msgspec.msgpack.Decoder(AnyMessage).decode,
            security=security,
        )
        self._network: OwnNetwork[AnyMessage] = OwnNetwork(me, self._peers.send, self._name_of)
        self._faults = self._network.faults
        self._clients = ClientSocket(self._context, bind=spec.endpoint(node, CLIENT), security=security)
        self._senders = SnapshotSender(self._context, disk, store.checkpoints, security, severed=self._faults.severed)
        self._receiver = SnapshotReceiver(
            self._context,
            disk,
            store.checkpoints,
            bind=spec.endpoint(node, SNAPSHOT),
            security=security,
            me=me,
            new_machine=new_machine,
            notify=wakeup.set,
            severed=self._faults.severed,
        )
        self._deaths = DeathWatch()
        self._started = monotonic()
        self.replica = make_replica(self._deaths.verify, self._started)
        self._events = EventLog(spec.path)
        self._chronicle = Chronicle(self._events, node, me.sender, self.replica, self._name_of)
        self._slices = Slices(self._begin_checkpoint, self._checkpoint_written, self.replica.digest_done)
        self._maintaining = True
        self._configuration = Configuration()  # in force, as far as it has changed in this life
        self._strangers_at: Nanoseconds = NEVER  # when to look again for members whose address is not known
        self._persisted_seq = self._submitted_seq = 0
        self._stuck_since: Nanoseconds = NEVER  # nothing submitted has become durable since
        self._stopping = False
        self._poller = zmq.Poller()
        self._poller_stale = True
        self._watched: set[Any] = set()
        self._death_fds: list[int] = []
        self._death_seen = False
        self._encode = msgspec.msgpack.Encoder().encode
        self._standin = StandIn(self._turn, wakeup.set)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then stop cleanly."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        self._connect_peers()
        damage = self._store.recovered.damage
        self._chronicle.started(self._me.incarnation, str(damage) if damage is not None else None)
        try:
            self._carry_out(self.replica.turn(monotonic(), _wall_ms()))
            while not self._stopping:
                self._turn()
                self._pump_log()
            self._stop()
        finally:
            self._close()

    def _connect_peers(self) -> None:
        """Links to every node of the description, members or not: who is added is reached when its address is known."""
        others = {n.replica_id: n.name for n in self._spec.nodes if n.replica_id != self._me.sender}
        self._peers.connect({replica: self._spec.endpoint(name, PEER) for replica, name in others.items()})

    def _meet_members(self, configuration: Configuration) -> None:
        """Read the description again where it is older than the configuration: it was written before the change."""
        members = {*configuration.voters, *configuration.learners}
        if members <= {n.replica_id for n in self._spec.nodes}:
            self._strangers_at = NEVER
            return
        self._strangers_at = monotonic() + LOOK_AGAIN
        try:
            fresh = load_spec(self._spec.directory)
        except (Error, OSError) as error:
            journal(self._node, f"cannot learn of new members: {error}")
            return
        if (self._node, self._me.sender) in {(n.name, n.replica_id) for n in fresh.nodes}:
            self._spec = fresh
            self._connect_peers()
            self.replica.prefer(fresh.preferred_replica())
        if members <= {n.replica_id for n in self._spec.nodes}:
            self._strangers_at = NEVER

    def _name_of(self, replica: int) -> str | None:
        return self._spec.node_name(replica)

    def _on_signal(self, signum: int, frame: object) -> None:
        self._stopping = True
        self._wakeup.set()

    # -- one turn -----------------------------------------------------------------------------------------------------

    def _turn(self, until: Nanoseconds = NEVER) -> None:
        """Wait for something to happen (at most until `until`) and let it take effect."""
        if self._poller_stale:
            self._update_poller()
        overslept: Nanoseconds = 0
        log_due = NEVER if self._writer.busy() else self._writer.next_deadline()
        network_due = self._faults.next_deadline() if self._faults.active else NEVER
        own_due = min(self.replica.next_deadline(), log_due, self._slices.due)
        due = min(own_due, self._senders.next_deadline(), network_due, until)
        before = monotonic()
        # What follows from a write may be another write, submitted since the log was last pumped.
        unwritten = not self._writer.busy() and self._writer.waiting()
        busy = self._slices.pump(hurry=self._stopping) or self._maintaining or unwritten
        timeout_ms = 0 if busy else min(max(0, -(-(due - before) // MS)), 3_600_000)
        events = dict(self._poller.poll(timeout_ms))
        if monotonic() - before > timeout_ms * MS + LATE:  # stopped meanwhile: first hear what was said, then judge
            overslept = monotonic() - before - timeout_ms * MS
            events.update(self._poller.poll(10))
        peer_messages = self._peers.receive(PEERS_A_TURN) if self._peers.inbound in events else ()
        requests = self._clients.receive(CLIENTS_A_TURN) if self._clients.socket in events else ()
        if self._wakeup.fd in events:
            self._wakeup.clear()
        if self._receiver.socket in events:
            self._receiver.receive(8)
        for fd in self._death_fds:
            if fd in events:
                self._death_seen = True
        now = monotonic()
        if self._faults.active:
            peer_messages = self._faults.inward(peer_messages, now)
        self._feed(now, peer_messages, requests)
        self._carry_out(self.replica.turn(now, _wall_ms()))
        self._maintaining = self.replica.machine.maintain()
        ended = monotonic()
        why = None if self._stopping else self.replica.strained(self._stuck_since, overslept + ended - now, ended)
        if why is not None:
            journal(self._node, f"handing leadership over: {why}")
            self._carry_out(self.replica.turn(ended, _wall_ms()))
        self._chronicle.look(now, self._writer.completed())

    def _pump_log(self) -> None:
        """Write and sync what the turn has submitted, and let what follows from that take effect."""
        if not self._writer.waiting():
            return
        self._standin.cover(self._writer.pump)
        if self._writer.completed().seq != self._persisted_seq:
            now = monotonic()
            self._feed(now, (), ())
            self._carry_out(self.replica.turn(now, _wall_ms()))
            self._chronicle.look(now, self._writer.completed())

    def _feed(self, now: Nanoseconds, peer_messages: Any, requests: Any) -> None:
        replica = self.replica
        completion = self._writer.completed()
        if completion.seq != self._persisted_seq:
            self._persisted_seq = completion.seq
            self._stuck_since = now if completion.seq < self._submitted_seq else NEVER
            replica.persisted(completion.seq, now)
        if completion.error is not None:
            raise completion.error
        if peer_messages:
            self._chronicle.heard(peer_messages, now)
        for envelope, message in peer_messages:
            if self._deaths.meet(envelope):
                self._poller_stale = self._death_seen = True
            replica.peer_message(envelope.sender, envelope.incarnation, message, now)
        for client, kind, request, body in requests:
            if kind == wire.STATUS:
                self._clients.send(client, wire.pack_head(wire.RESULT, request), self._encode(self.describe(now)))
            elif kind == wire.FAULTS:
                self._order_faults(client, request, body, now)
            else:
                replica.client_message(client, kind, request, body, now)
        if self._death_seen:
            self._death_seen, self._poller_stale = False, True
            for lost, incarnation in self._deaths.newly_dead():
                journal(self._node, f"replica {lost} (incarnation {incarnation}) has exited")
                self._chronicle.exited(lost, now)
                replica.peer_lost(lost, incarnation, now)
            self._network.forget_dead(now)
        installed = self._receiver.installed()
        if installed is not None:
            meta = installed.message.meta
            journal(self._node, f"received checkpoint {meta.index} from replica {installed.sender}")
            source = self._name_of(installed.sender) or installed.sender
            self._chronicle.record("checkpoint_received", index=meta.index, **{"from": source})
            replica.install(installed.sender, installed.incarnation, installed.message, installed.machine, now)
        for to, ok in self._senders.receive(now):
            self._poller_stale = True
            journal(self._node, f"checkpoint to replica {to}: {'delivered' if ok else 'not delivered'}")
            self._chronicle.record("checkpoint_sent", to=self._name_of(to) or to, delivered=ok)
            replica.snapshot_status(to, ok, now)
        if now >= replica.next_deadline():
            replica.deadline(now)

    def _carry_out(self, out: Effects) -> None:
        if out.configuration is not None:
            self._configuration = out.configuration
            self._meet_members(out.configuration)
        elif self._strangers_at < NEVER and monotonic() >= self._strangers_at:
            self._meet_members(self._configuration)
        replies_first = not out.writes  # nobody's disk waits for these messages, but clients wait for their answers
        if replies_first:
            self._send_replies(out.replies)
        if out.messages:
            encoded, body = None, b""
            for to, message in out.messages:
                if message is not encoded:  # the same object goes to several followers: encode it once
                    encoded, body = message, self._encode(message)
                if self._faults.active:
                    self._faults.outward(to, body, monotonic())
                else:
                    self._peers.send(to, body)
        if out.writes:
            self._submitted_seq = out.writes[-1].seq
            if self._stuck_since == NEVER:
                self._stuck_since = monotonic()
        for batch in out.writes:
            self._writer.submit(batch)
        if not replies_first:
            self._send_replies(out.replies)
        if out.announce is not None:
            self._announce(*out.announce)
        for to, meta in out.snapshot_sends:
            self._send_snapshot(to, meta)
        if out.compacted is not None:
            self._writer.trim(self._prune)
        if out.capture is not None:
            self._slices.checkpoint(*out.capture)
        if out.digest is not None:
            self._slices.digest(*out.digest)

    def _send_replies(self, replies: list[tuple[bytes, bytes, bytes]]) -> None:
        for client, head, body in replies:
            self._clients.send(client, head, body)

    def _order_faults(self, client: bytes, request: int, body: bytes, now: Nanoseconds) -> None:
        answer, content = self._network.order(body, now)
        self._poller_stale = True
        journal(self._node, f"faults of the network: {content or 'none'}")
        self._clients.send(client, wire.pack_head(answer, request), self._encode(content))

    def _prune(self) -> Index:
        """In the log's helper thread: let old checkpoints go. Returns the first index that the log must keep."""
        return prune(self._disk, self._store.checkpoints, keep=2) + 1

    def _announce(self, leader: int, term: int) -> None:
        journal(self._node, f"leader is {self._spec.node_name(leader) or leader}, term {term}")
        self._clients.announce(wire.pack_head(wire.LEADER, 0), self._encode([leader, term]))

    def _send_snapshot(self, to: int, meta: SnapshotMeta) -> None:
        name = self._spec.node_name(to)
        now = monotonic()
        self._poller_stale = True
        envelope = msgspec.structs.replace(self._me, receiver=to)
        journal(self._node, f"sending checkpoint {meta.index} to {name or to}")
        endpoint = self._spec.endpoint(name, SNAPSHOT) if name else ""
        if not name or not self._senders.start(to, endpoint, envelope, self.replica.core.term, meta, now):
            self.replica.snapshot_status(to, False, now)

    def _update_poller(self) -> None:
        """Poll exactly the descriptors that matter now."""
        wanted: set[Any] = {self._peers.inbound, self._clients.socket, self._receiver.socket, self._wakeup.fd}
        self._death_fds = self._deaths.descriptors() + self._network.descriptors()
        wanted.update(self._death_fds)
        wanted.update(self._senders.sockets())
        if wanted != self._watched:
            for gone in self._watched - wanted:
                self._poller.unregister(gone)
            for new in wanted - self._watched:
                self._poller.register(new, zmq.POLLIN)
            self._watched = wanted
        self._poller_stale = False

    # -- checkpoints and digests, beside service ----------------------------------------------------------------------

    def _begin_checkpoint(self, meta: SnapshotMeta) -> BackgroundCheckpoint:
        return BackgroundCheckpoint(self._disk, self._store.checkpoints, meta, self._spec.cluster_id, self._wakeup.set)

    def _checkpoint_written(self, meta: SnapshotMeta, error: Exception | None, size_bytes: int) -> None:
        if error is None:
            journal(self._node, f"checkpoint {meta.index} written")
            self._chronicle.record("checkpoint", index=meta.index, bytes=size_bytes)
        else:
            journal(self._node, f"checkpoint {meta.index} failed: {error}")
            self._chronicle.record("checkpoint_failed", index=meta.index, reason=str(error))
        self.replica.checkpoint_done(meta, error, monotonic(), size_bytes)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Hand leadership over, write a checkpoint, close the log cleanly; each step bounded in time."""
        journal(self._node, "stopping")
        self._chronicle.record("draining")
        now = monotonic()
        until = now + HANDOVER_MAX
        try:
            self.replica.core.transfer_leadership(0, now)
            while self.replica.core.is_leader and self._deaths.descriptors() and monotonic() < until:
                self._turn(until)
                self._pump_log()
        except (NotLeader, InvalidInput):
            pass
        until = monotonic() + STOP_MAX
        self._slices.drop_digest()
        self.replica.capture_now(monotonic())
        self._carry_out(self.replica.turn(monotonic(), _wall_ms()))
        while self.replica.capturing and monotonic() < until:
            self._turn(until)
            self._pump_log()
        self._writer.close(clean=True)
        journal(self._node, "stopped")
        self._chronicle.record("stopped")

    def _close(self) -> None:
        self._standin.close()
        self._slices.abort()
        self._senders.close()
        self._receiver.close()
        self._peers.close()
        self._clients.close()
        self._deaths.close()
        self._network.close()
        if self._authentication is not None:
            self._authentication.stop()
        self._context.destroy(linger=0)
        self._events.close()
        self._store.close()

    def describe(self, now: Nanoseconds) -> dict[str, Any]:
        """The answer to a STATUS request."""
        damage = self._store.recovered.damage
        return status.describe(
            self._spec,
            self._node,
            self.replica,
            self._writer.completed(),
            incarnation=self._me.incarnation,
            started=self._started,
            now=now,
            counters={
                "peer_dropped": self._peers.dropped,
                "peer_unsent": self._peers.unsent,
                "client_dropped": self._clients.dropped,
                "client_unsent": self._clients.unsent,
                "snapshot_dropped": self._receiver.dropped,
                **self._network.counters(),
            },
            damage=str(damage) if damage is not None else None,
            faults=self._network.describe(now),
        )


def _wall_ms() -> int:
    return time.time_ns() // MS
