"""The replica: consensus + state machine + who waits for what. Pure: no clock, no disk, no socket.

    client frames --+                                   +--> messages to peers (now, or once persisted)
    peer messages --+--> inputs ... --> turn() --> Effects --> batches for the log writer
    disk done     --+                                   +--> replies to clients
    deadlines     --+                                   +--> checkpoints to write or to send, log to trim

Inputs only take in; `turn` lets all that has come in take effect: every client frame that is waiting becomes part of
ONE log entry (its bytes untouched), then the core's `Ready`s are carried over into `Effects`.

Invariants: an entry is applied once, in order; a reply leaves only after its entry was applied (hence committed); what
consensus wants to send after persisting leaves only after `persisted` said so; a read is served at or after its index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from zcluster import wire
from zcluster.consensus.api import AnyMessage, Consensus, InstallSnapshot, Ready
from zcluster.consensus.log import ENTRY_OVERHEAD_BYTES
from zcluster.errors import Busy, FormatTooNew, InvalidInput, NotLeader
from zcluster.machines.api import Machine, Snapshot
from zcluster.node import members
from zcluster.node.backlog import Backlog, Waiting
from zcluster.node.checkpoints import Checkpoints, Limits
from zcluster.node.digests import Digests
from zcluster.node.kept import KeptMessages
from zcluster.node.leading import Leading
from zcluster.node.reads import Read, Reads
from zcluster.types import (
    KIND_CONFIG,
    KIND_FRAMES,
    KIND_NOOP,
    MS,
    Configuration,
    Entry,
    Index,
    Nanoseconds,
    ReplicaId,
    SnapshotMeta,
    Term,
    WriteBatch,
)

NOBODY: Final = b""  # what a replica asks of itself; nobody waits for the answer
ENTRIES_IN_FLIGHT_MAX: Final = 4  # few and large beats many and small: later frames share the next entry

Client = bytes


class Proposal(NamedTuple):
    """What was proposed for an index, and who waits for it: frames, or a change of the members.

    The same index and term name the same value. Under another term it is told by the value: in Paxos another proposer
    may have proposed it again, under its own ballot."""

    term: Term
    payload: bytes
    change: members.Request | None
    waiting: Waiting


class Effects:
    """What the loop is to carry out, in this order."""

    __slots__ = (
        "announce",
        "capture",
        "compacted",
        "configuration",
        "digest",
        "messages",
        "replies",
        "snapshot_sends",
        "writes",
    )

    def __init__(self) -> None:
        self.configuration: Configuration | None = None  # who there is to be reached, from now on
        self.messages: list[tuple[ReplicaId, AnyMessage]] = []
        self.writes: list[WriteBatch] = []
        self.snapshot_sends: list[tuple[ReplicaId, SnapshotMeta]] = []
        self.replies: list[tuple[Client, bytes, bytes]] = []
        self.announce: tuple[ReplicaId, Term] | None = None  # tell all clients who leads
        self.capture: tuple[SnapshotMeta, Snapshot] | None = None  # write this checkpoint, then `checkpoint_done`
        self.digest: tuple[Index, Snapshot] | None = None  # work this digest out in slices, then `digest_done`
        self.compacted: SnapshotMeta | None = None  # checkpoints before this one, and the log up to it, may go


class Replica:
    """One member of the cluster. See the module's drawing; every `now` is monotonic, sampled after the last frame."""

    def __init__(
        self,
        core: Consensus,
        machine: Machine,
        limits: Limits,
        *,
        cluster_id: str,
        applied: SnapshotMeta,
        now: Nanoseconds,
        verify_death: Callable[[ReplicaId, int], bool],
        leading: Leading | None = None,
        digest_interval: Nanoseconds = 0,
    ) -> None:
        """`applied`: what `machine` has already been restored from (index 0: nothing). `verify_death`: asks the system
        whether that incarnation of a replica has exited; used only when a peer claims so. `leading`: None: it leads for
        as long as it can."""
        self.core = core
        self.machine = machine
        self.cluster_id = cluster_id
        self.last_applied: Index = applied.index
        self.applied_total = 0
        self.stale_replies = 0
        self._verify_death = verify_death
        self._applied_epoch: Term = applied.epoch
        self._configuration = applied.configuration
        self._log_time_ms = applied.log_time_ms
        self._out = Effects()
        self._backlog = Backlog()
        self._waiting: dict[Index, Proposal] = {}
        self._last_proposed: Index = 0
        self._proposed_term: Term = 0
        self._reads = Reads()
        self._changes: list[tuple[Client, int, members.Request]] = []  # asked for, to be proposed in this turn
        self._after_persist = KeptMessages()
        self._persisted_seq = 0
        self._announced: tuple[ReplicaId, Term] = (0, 0)
        self._checkpoints = Checkpoints(limits, applied.index, now)
        self._leading = leading
        self.digests = Digests(digest_interval, now)

    # -- inputs -------------------------------------------------------------------------------------------------------

    def client_message(self, client: Client, kind: int, request: int, body: bytes, now: Nanoseconds) -> None:
        """One request. Every request gets an answer unless it got lost with a leader: then the client asks again."""
        if kind == wire.WRITE:
            self._take_write(client, request, body)
        elif kind == wire.READ:
            self._take_read(client, request, body, now)
        elif kind == wire.HELLO:
            self._take_hello(client, request, body)
        elif kind == wire.CHECKPOINT:
            self._take_checkpoint(client, request, body)
        elif kind == wire.VERIFY:
            self._take_verify(client, request, body)
        elif kind == wire.TRANSFER:
            self._take_transfer(client, request, body, now)
        elif kind == wire.MEMBERSHIP:
            self._take_membership(client, request, body)
        else:
            self._fail(client, request, f"unknown request kind {kind}")

    def peer_message(self, sender: ReplicaId, incarnation: int, message: AnyMessage, now: Nanoseconds) -> None:
        certificate = getattr(message, "certificate", None)
        if certificate is not None and self._verify_death(*certificate):
            self.core.peer_lost(certificate[0], certificate[1], now)
        if type(message) is not InstallSnapshot:  # those come through `install`, once the file is here
            self.core.step(sender, incarnation, message, now)

    def persisted(self, seq: int, now: Nanoseconds) -> None:
        """The log writer is done with all batches up to `seq`."""
        self._persisted_seq = seq
        self.core.persisted(seq, now)
        self._out.messages += self._after_persist.take(seq)

    def peer_lost(self, replica: ReplicaId, incarnation: int, now: Nanoseconds) -> None:
        self.core.peer_lost(replica, incarnation, now)

    def deadline(self, now: Nanoseconds) -> None:
        self.core.deadline(now)
        if self._leading is not None:
            self._leading.look(self.core, now)

    def prefer(self, preferred: ReplicaId) -> None:
        """Who is to lead if it can, from now on; 0: nobody in particular."""
        if self._leading is not None:
            self._leading.prefer(preferred)

    def strained(self, stuck_since: Nanoseconds, late: Nanoseconds, now: Nanoseconds) -> str | None:
        """How the disk and the loop do. `stuck_since`: nothing submitted became durable since then (NEVER: nothing
        waits). `late`: how long the last turn took. Returns: why leadership is being handed over, if it is."""
        if self._leading is None:
            return None
        if stuck_since < now and self._leading.disk_stuck(self.core, stuck_since, now):
            return f"the disk has not answered for {(now - stuck_since) // MS} ms"
        if late and self._leading.lagged(self.core, late, now):
            return f"the event loop hangs again and again, this time for {late // MS} ms"
        return None

    def install(
        self, sender: ReplicaId, incarnation: int, message: InstallSnapshot, machine: Machine, now: Nanoseconds
    ) -> None:
        """A received checkpoint, complete on disk and already restored into `machine`. Dropped if it is too old."""
        self.core.step(sender, incarnation, message, now)
        self._drain(machine, message.meta)

    def checkpoint_done(
        self, meta: SnapshotMeta, error: Exception | None, now: Nanoseconds, size_bytes: int = 0
    ) -> None:
        """The checkpoint asked for by `Effects.capture` is durable, or failed (then the log is simply kept)."""
        if error is None:
            self._checkpoint_complete(meta)
        waiters = self._checkpoints.end(now, meta.index, size_bytes=size_bytes, failed=error is not None)
        for client, request in waiters:
            if error is None:
                self._reply(client, wire.RESULT, request, wire.encode([meta.index]))
            else:
                self._fail(client, request, f"checkpoint failed: {error}")

    def digest_done(self, index: Index, digest: str | None) -> None:
        """What `Effects.digest` asked for; None: it was given up."""
        self.digests.done(index, digest)

    def snapshot_status(self, replica: ReplicaId, ok: bool, now: Nanoseconds) -> None:
        self.core.snapshot_status(replica, ok, now)

    def capture_now(self, now: Nanoseconds) -> bool:
        """Ask for a checkpoint of what is applied. False: there is nothing new, or one is being written."""
        if self.capturing or self.digests.running is not None or self.last_applied == self.checkpoint_index:
            return False
        meta = SnapshotMeta(self.last_applied, self._applied_epoch, self._configuration, self._log_time_ms)
        self._checkpoints.begin(meta)
        self._out.capture = (meta, self.machine.capture())
        return True

    def next_deadline(self) -> Nanoseconds:
        due = min(self.core.next_deadline(), self._checkpoints.due)
        if self.core.is_leader:
            due = min(due, self.digests.next_deadline(self.applied_total))
        return due if self._leading is None else min(due, self._leading.next_deadline(self.core))

    @property
    def capturing(self) -> bool:
        return self._checkpoints.capturing is not None

    @property
    def checkpoint_index(self) -> Index:
        """Of the newest checkpoint that is complete."""
        return self._checkpoints.index

    @property
    def applied_term(self) -> Term:
        """Of the entry applied last."""
        return self._applied_epoch

    @property
    def configuration(self) -> Configuration:
        """As of the entry applied last; a new object whenever it changed."""
        return self._configuration

    # -- the turn -----------------------------------------------------------------------------------------------------

    def turn(self, now: Nanoseconds, wall_ms: int) -> Effects:
        """Let everything that came in take effect. Call after each batch of inputs."""
        if self.core.is_leader and self.digests.wants_mark(self.applied_total, now):
            self._backlog.add(NOBODY, 0, wire.MARK_FRAME)
        if self._backlog:
            self._propose(now, wall_ms)
        self._refuse_reads(self._reads.ask(self.core, now))
        self._drain(None, None)
        while self._backlog and self._propose(now, wall_ms):  # room again: what was applied has left the window
            self._drain(None, None)
        if self._changes:
            self._propose_changes(now)
            self._drain(None, None)
        leads = (self.core.leader, self.core.term)
        if leads != self._announced and leads[0] != 0:
            self._announced = leads
            self._out.announce = leads
        self._maybe_checkpoint(now)
        for (client, request), index, digest in self.digests.answers(self.last_applied):
            self._reply(client, wire.RESULT, request, wire.encode([index, digest]))
        out, self._out = self._out, Effects()
        return out

    def _propose(self, now: Nanoseconds, wall_ms: int) -> bool:
        """One entry of the waiting frames. True if there may be room for another."""
        if not self.core.is_leader:
            self._refuse_backlog()
            return False
        if self._proposed_term == self.core.term and self._last_proposed - self.last_applied >= ENTRIES_IN_FLIGHT_MAX:
            return False
        frames, waiting = self._backlog.take()
        payload = wire.encode_payload(0, wall_ms, frames)
        try:
            index, term = self.core.propose(payload, now)
        except NotLeader:
            for client, request in waiting:
                self._not_leader(client, request)
            self._refuse_backlog()
            return False
        except Busy as busy:
            text = wire.encode([str(busy)])
            for client, request in waiting + self._backlog.clear():
                self._reply(client, wire.BUSY, request, text)
            return False
        self._waiting[index] = Proposal(term, payload, None, waiting)
        self._last_proposed, self._proposed_term = index, term
        return True

    def _propose_changes(self, now: Nanoseconds) -> None:
        changes, self._changes = self._changes, []
        for client, request, change in changes:
            try:
                index = members.propose(self.core, change, self._configuration, now)
            except NotLeader:
                self._not_leader(client, request)
            except Busy as busy:
                self._reply(client, wire.BUSY, request, wire.encode([str(busy)]))
            except InvalidInput as error:
                self._fail(client, request, str(error))
            else:
                self._waiting[index] = Proposal(self.core.term, b"", change, [(client, request)])

    def _refuse_backlog(self) -> None:
        for client, request in self._backlog.clear():
            self._not_leader(client, request)

    def _drain(self, machine: Machine | None, installed: SnapshotMeta | None) -> None:
        """Carry every Ready of the core over. `machine`: restored from `installed`, in case the core takes it."""
        while (ready := self.core.ready()) is not None:
            self._take_ready(ready, machine, installed)
        self._reads.serve(self.last_applied, self._answer_read)

    def _take_ready(self, ready: Ready, machine: Machine | None, installed: SnapshotMeta | None) -> None:
        out = self._out
        if ready.configuration is not None:
            out.configuration = ready.configuration
        if ready.messages:
            for to, message in ready.messages:
                if type(message) is InstallSnapshot:
                    out.snapshot_sends.append((to, message.meta))
                else:
                    out.messages.append((to, message))
        if ready.write is not None:
            out.writes.append(ready.write)
            if ready.write.snapshot is not None:
                assert machine is not None and ready.write.snapshot == installed, "installed what was not restored"
                self._become(machine, ready.write.snapshot)
        if ready.messages_after_persist:
            if ready.seq <= self._persisted_seq:
                out.messages.extend(ready.messages_after_persist)
            else:
                self._after_persist.add(ready.seq, ready.messages_after_persist)
        if ready.committed:
            self._apply(ready.committed)
        for token, index in ready.reads:
            self._reads.confirmed(token, index)
        for token in ready.reads_failed:
            self._refuse_reads(self._reads.failed(token))

    def _become(self, machine: Machine, meta: SnapshotMeta) -> None:
        """Replace the state by a received checkpoint. A capture of the old state still counts for nothing newer."""
        assert meta.index > self.last_applied, "a checkpoint must not take the state back"
        self.machine = machine
        self.last_applied, self._applied_epoch = meta.index, meta.epoch
        self._configuration, self._log_time_ms = meta.configuration, meta.log_time_ms
        for index in [i for i in self._waiting if i <= meta.index]:
            del self._waiting[index]  # outcome unknown here; the clients ask again with the same ids
        self._checkpoints.replaced()
        self._checkpoint_complete(meta)

    def _apply(self, entries: Sequence[Entry]) -> None:
        machine_apply = self.machine.apply
        replies = self._out.replies
        for entry in entries:
            index = entry.index
            assert index == self.last_applied + 1, f"entry {index} after {self.last_applied}"
            data = entry.data
            if entry.kind == KIND_FRAMES:
                try:
                    payload = wire.decode_payload(data)
                except wire.DecodeError as error:
                    raise FormatTooNew(f"entry {index} cannot be read ({error}): written by a newer zcluster") from None
                if payload.group:
                    raise FormatTooNew(f"entry {index} is for group {payload.group}: written by a newer zcluster")
                self._log_time_ms = max(self._log_time_ms, payload.log_time_ms)
                results = machine_apply(index, self._log_time_ms, payload.frames)
                self.applied_total += len(results)
                if self.machine.take_mark():
                    self._mark(index)
                self._checkpoints.bytes_since += len(data) + ENTRY_OVERHEAD_BYTES
                proposal = self._waiting.pop(index, None)
                if proposal is not None:
                    if proposal.term == entry.epoch or proposal.payload == data:
                        for (client, request), body in zip(proposal.waiting, results, strict=True):
                            replies.append((client, wire.pack_head(wire.RESULT, request), body))
                    else:  # another leader's entry took the place: ours is certainly not in the log
                        for client, request in proposal.waiting:
                            self._not_leader(client, request)
            else:
                self._apply_other(entry)
            self.last_applied = index
            self._applied_epoch = entry.epoch

    def _mark(self, index: Index) -> None:
        """Freeze the state for its digest here, in the middle of a batch: all replicas are to take it at this index."""
        if self.digests.marked(index, free=not self.capturing):
            self._out.digest = (index, self.machine.capture())

    def _apply_other(self, entry: Entry) -> None:
        if entry.kind == KIND_CONFIG:
            decoded = msgspec.msgpack.decode(entry.data, type=Configuration)
            self._configuration = msgspec.structs.replace(decoded, index=entry.index)
        elif entry.kind != KIND_NOOP:
            raise FormatTooNew(f"entry {entry.index} has kind {entry.kind}: written by a newer zcluster; upgrade")
        proposal = self._waiting.pop(entry.index, None)
        if proposal is None:
            return
        change = proposal.change
        done = change is not None and members.is_done(change, self._configuration)
        for client, request in proposal.waiting:
            if done:
                self._reply(client, wire.RESULT, request, members.encode_configuration(self._configuration))
            else:
                self._not_leader(client, request)

    def _answer_read(self, read: Read) -> None:
        client, request, asked = read
        if not isinstance(asked, members.Request):
            self._reply(client, wire.RESULT, request, self.machine.query(asked))
        elif members.is_done(asked, self._configuration):
            self._reply(client, wire.RESULT, request, members.encode_configuration(self._configuration))
        else:
            self._changes.append((client, request, asked))

    def _refuse_reads(self, reads: list[Read]) -> None:
        for client, request, _ in reads:
            self._not_leader(client, request)

    # -- requests -----------------------------------------------------------------------------------------------------

    def _take_write(self, client: Client, request: int, body: bytes) -> None:
        if self._backlog.full:
            self._reply(client, wire.BUSY, request, wire.encode(["too many writes are waiting"]))
        else:
            self._backlog.add(client, request, body)

    def _take_read(self, client: Client, request: int, body: bytes, now: Nanoseconds) -> None:
        try:
            consistency, bound_ms, ops = _decode_read(body)
        except wire.DecodeError as error:
            self._fail(client, request, f"not a read request: {error}")
            return
        if self._reads.full:
            self._reply(client, wire.BUSY, request, wire.encode(["too many reads are waiting"]))
        elif consistency in (wire.LINEARIZABLE, wire.LEASE):
            if self.core.is_leader:
                self._reads.arrive(consistency, (client, request, ops))
            else:
                self._not_leader(client, request)
        elif consistency == wire.EVENTUAL:
            self._reply(client, wire.RESULT, request, self.machine.query(ops))
        elif consistency == wire.BOUNDED and 0 <= bound_ms <= 86_400_000:
            index = self.core.bounded_index(now, bound_ms * MS)
            if index is None:
                self._not_leader(client, request)
            else:
                self._reads.arrive_at(index, (client, request, ops))
        else:
            self._fail(client, request, f"unknown consistency {consistency} (bound {bound_ms} ms)")

    def _take_hello(self, client: Client, request: int, body: bytes) -> None:
        try:
            protocol, cluster_id = msgspec.msgpack.decode(body, type=tuple[int, str])
        except wire.DecodeError:
            self._fail(client, request, "not a hello")
            return
        if cluster_id != self.cluster_id:
            self._fail(client, request, f"this node belongs to cluster {self.cluster_id}, not {cluster_id!r}")
        elif protocol != wire.PROTOCOL:
            self._fail(client, request, f"this node speaks protocol {wire.PROTOCOL}, you speak {protocol}")
        else:
            self._reply(client, wire.LEADER, request, wire.encode([self.core.leader, self.core.term]))

    def _take_checkpoint(self, client: Client, request: int, body: bytes) -> None:
        """`body`: an index that the checkpoint must cover; without one, all that is applied here by now."""
        try:
            covering = msgspec.msgpack.decode(body, type=tuple[int])[0] if body else self.last_applied
        except wire.DecodeError as error:
            self._fail(client, request, f"not a request for a checkpoint: {error}")
            return
        if self.core.is_leader and covering > self.core.status().last_index:
            self._fail(client, request, f"there is no entry {covering} that a checkpoint could cover")
        elif not self._checkpoints.ask((client, request), covering):
            self._reply(client, wire.BUSY, request, wire.encode(["too many wait for a checkpoint"]))

    def _take_verify(self, client: Client, request: int, body: bytes) -> None:
        try:
            (index,) = msgspec.msgpack.decode(body, type=tuple[int])
        except wire.DecodeError as error:
            self._fail(client, request, f"not a request to verify: {error}")
            return
        if not self.digests.ask((client, request), index):
            self._reply(client, wire.BUSY, request, wire.encode(["too many wait for digests"]))

    def _take_transfer(self, client: Client, request: int, body: bytes, now: Nanoseconds) -> None:
        try:
            (target,) = msgspec.msgpack.decode(body, type=tuple[int])
            self.core.transfer_leadership(target, now)
        except NotLeader:
            self._not_leader(client, request)
        except (*wire.DecodeError, InvalidInput, Busy) as error:
            self._fail(client, request, str(error))
        else:
            self._reply(client, wire.RESULT, request, wire.encode([True]))

    def _take_membership(self, client: Client, request: int, body: bytes) -> None:
        try:
            asked = members.decode_request(body)
        except InvalidInput as error:
            self._fail(client, request, str(error))
            return
        if not self.core.is_leader:
            self._not_leader(client, request)
        elif self._reads.full:
            self._reply(client, wire.BUSY, request, wire.encode(["too many reads are waiting"]))
        else:
            self._reads.arrive(wire.LINEARIZABLE, (client, request, asked))

    def _reply(self, client: Client, kind: int, request: int, body: bytes) -> None:
        self._out.replies.append((client, wire.pack_head(kind, request), body))

    def _not_leader(self, client: Client, request: int) -> None:
        self._reply(client, wire.NOT_LEADER, request, wire.encode([self.core.leader, self.core.term]))

    def _fail(self, client: Client, request: int, text: str) -> None:
        self._reply(client, wire.FAILED, request, wire.encode([wire.E_BAD_REQUEST, text]))

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _maybe_checkpoint(self, now: Nanoseconds) -> None:
        if self.digests.running is not None:
            return  # the state can be frozen once at a time
        if self._checkpoints.wanted(now, self.last_applied) and not self.capture_now(now):  # nothing new to write
            for client, request in self._checkpoints.end(now, self.checkpoint_index):
                self._reply(client, wire.RESULT, request, wire.encode([self.checkpoint_index]))

    def _checkpoint_complete(self, meta: SnapshotMeta) -> None:
        if self._checkpoints.complete(meta):
            self._out.compacted = meta
            self.core.compacted(meta)


_decode_read = msgspec.msgpack.Decoder(tuple[int, int, list[Any]]).decode
