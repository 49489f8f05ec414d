"""A cluster of cores on one virtual clock: seeded delays, losses, duplicates, partitions, pauses, crashes, disks.

Everything a driver must do is done here the way the package's manual says, and everything that must hold of several
replicas together is checked here after every turn (`Oracle`). Nothing sleeps; the same seed gives the same run.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from zcluster.consensus import invariants
from zcluster.consensus.api import AnyMessage, InstallSnapshot, Ready, Recovered, Settings
from zcluster.consensus.core import Core
from zcluster.consensus.raft import Raft
from zcluster.types import KIND_FRAMES, MS, NEVER, Configuration, Entry, HardState, SnapshotMeta, WriteBatch

_decode = msgspec.msgpack.Decoder(AnyMessage).decode
_encode = msgspec.msgpack.Encoder().encode


class Disk:
    """What survives: writes take effect when they are done, in order; a crash drops those still on their way."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.hard_state = HardState()
        self.snapshot: SnapshotMeta | None = None
        self.entries: dict[int, Entry] = {}
        self.repair = False
        self.damaged: dict[int, Entry] = {}

    def damage(self, last_kept: int) -> None:
        """Lose what lies behind `last_kept`; the next start finds out."""
        self.damaged = {i: e for i, e in self.entries.items() if i > last_kept}
        self.entries = {i: e for i, e in self.entries.items() if i <= last_kept}
        self.repair = True

    def apply(self, batch: WriteBatch) -> None:
        if batch.snapshot is not None:
            meta = batch.snapshot
            at = self.entries.get(meta.index)
            keep = at is not None and at.epoch == meta.epoch
            self.entries = {i: e for i, e in self.entries.items() if keep and i > meta.index}
            if self.snapshot is None or self.snapshot.index < meta.index:
                self.snapshot = meta
        if batch.hard_state is not None:
            assert batch.hard_state.term >= self.hard_state.term
            self.hard_state = batch.hard_state
        if batch.truncate_after is not None:
            self.entries = {i: e for i, e in self.entries.items() if i <= batch.truncate_after}
        for entry in batch.entries:
            self.entries[entry.index] = entry
        if batch.repair is not None:
            self.repair = batch.repair

    def held(self, index: int, epoch: int) -> bool:
        """Whether the entry is or was here; damage does not take back an acknowledgement."""
        if self.snapshot is not None and index <= self.snapshot.index:
            return True
        return any(e is not None and e.epoch == epoch for e in (self.entries.get(index), self.damaged.get(index)))

    def recovered(self, **flags: Any) -> Recovered:
        first = self.snapshot.index + 1 if self.snapshot else 1
        while first - 1 in self.entries and first > 1:
            first -= 1
        entries = []
        while first in self.entries:
            entries.append(self.entries[first])
            first += 1
        return Recovered(
            hard_state=self.hard_state,
            configuration=self.configuration,
            snapshot=self.snapshot,
            entries=entries,
            repair=self.repair,
            **flags,
        )


class Node:
    def __init__(self, replica_id: int, disk: Disk) -> None:
        self.id = replica_id
        self.disk = disk
        self.incarnation = 0
        self.core: Core | None = None
        self.paused = False
        self.inbox: list[tuple[int, int, AnyMessage]] = []
        self.lost: list[tuple[int, int]] = []
        self.writes: list[WriteBatch] = []  # handed to the disk, not done
        self.persisted_seq = 0
        self.kept: list[tuple[int, int, AnyMessage]] = []  # (seq, to, message)
        self.disk_stalled = False
        self.applied_index = 0
        self.reads: list[tuple[int, int]] = []
        self.reads_failed: list[int] = []
        self.before: invariants.Summary | None = None


class Oracle:
    """What must hold of all replicas together. Raises AssertionError."""

    def __init__(self) -> None:
        self.leaders: dict[int, int] = {}  # term -> replica (election safety)
        self.votes: dict[tuple[int, int], int] = {}  # (replica, term) -> vote found on disk
        self.written: dict[tuple[int, int], tuple[int, bytes]] = {}  # (index, term) -> (previous term, data)
        self.committed: dict[int, Entry] = {}
        self.acknowledged: list[tuple[int, int]] = [(0, 0)]  # (time, index): a leader has handed it out
        self.reads: dict[int, int] = {}  # token -> lowest index that is right

    def check_leader(self, network: Network, node: Node) -> None:
        core = node.core
        assert core is not None
        if not core.is_leader or self.leaders.get(core.term) == node.id:
            return
        assert core.term not in self.leaders, f"two leaders in term {core.term}"
        self.leaders[core.term] = node.id
        voters = core.membership.current.voters
        durable = [v for v in voters if self.votes.get((v, core.term)) == node.id]
        assert len(durable) > len(voters) // 2, "elected by votes that are not on disk"
        for index, entry in self.committed.items():
            if index > core.log.base_index:
                assert core.log.term(index) == entry.epoch, f"leader completeness: {index} is missing (§5.4.3)"

    def check_written(self, network: Network, node: Node, batch: WriteBatch) -> None:
        core = node.core
        assert core is not None
        if batch.hard_state is not None and batch.hard_state.voted_for:
            key = (node.id, batch.hard_state.term)
            assert self.votes.get(key, batch.hard_state.voted_for) == batch.hard_state.voted_for, "voted twice"
        for entry in batch.entries:
            previous = core.log.term(entry.index - 1)
            known = self.written.setdefault((entry.index, entry.epoch), (previous or 0, entry.data))
            assert known == (previous or 0, entry.data), "log matching (§5.3)"

    def on_disk(self, node: Node, batch: WriteBatch) -> None:
        if batch.hard_state is not None and batch.hard_state.voted_for:
            self.votes[node.id, batch.hard_state.term] = batch.hard_state.voted_for

    def check_committed(self, network: Network, node: Node, entries: Iterable[Entry]) -> None:
        core = node.core
        assert core is not None
        for entry in entries:
            assert entry.index == node.applied_index + 1, "handed out once and in order"
            node.applied_index = entry.index
            known = self.committed.get(entry.index)
            if known is None:
                self.committed[entry.index] = entry
                self.check_copies(network, node, entry)
            else:
                assert self.is_same(known, entry), f"two different entries committed at {entry.index}"
        if core.is_leader and node.applied_index > self.acknowledged[-1][1]:
            self.acknowledged.append((network.now, node.applied_index))

    def is_same(self, known: Entry, entry: Entry) -> bool:
        return known == entry

    def check_copies(self, network: Network, node: Node, entry: Entry) -> None:
        """It was committed just now, by this one first."""
        assert node.core is not None
        voters = node.core.membership.current.voters
        copies = [v for v in voters if network.nodes[v].disk.held(entry.index, entry.epoch)]
        assert len(copies) > len(voters) // 2, f"{entry.index} committed with copies only on {copies}"

    def check_reads(self, reads: Iterable[tuple[int, int]]) -> None:
        for token, index in reads:
            assert index >= self.reads[token], f"stale read: index {index}, acknowledged {self.reads[token]}"

    def acknowledged_before(self, time: int) -> int:
        return max(index for at, index in self.acknowledged if at <= time or index == 0)


class Network:
    """Replica ids 1..n. `delay` in nanoseconds; `disk_delay` the same for a write."""

    def __init__(
        self,
        voters: int,
        *,
        seed: int = 0,
        settings: Settings | None = None,
        learners: int = 0,
        pidfds: bool = False,
        bootstrap: bool = True,
        delay: tuple[int, int] = (MS // 5, MS // 2),
        disk_delay: tuple[int, int] = (MS // 5, MS // 2),
        core_class: type[Core] = Raft,
        disk_class: type[Disk] = Disk,
        oracle: Oracle | None = None,
    ) -> None:
        self.core_class: Any = core_class
        self.disk_class = disk_class
        self.rng = random.Random(seed)
        self.now = 1_000 * MS
        self.settings = settings or Settings()
        self.delay = delay
        self.disk_delay = disk_delay
        self.loss = 0.0
        self.duplication = 0.0
        self.pidfds = pidfds
        self.cut: set[tuple[int, int]] = set()  # (from, to)
        self.drop: Callable[[int, int, AnyMessage], bool] | None = None
        self.oracle = oracle or Oracle()
        self.tokens = 0
        self._order = 0
        self._events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        ids = range(1, voters + 1)
        initial = Configuration(tuple(ids), tuple(range(voters + 1, voters + learners + 1)))
        self.nodes = {i: Node(i, disk_class(initial)) for i in range(1, voters + learners + 1)}
        for node in self.nodes.values():
            self.start(node.id, bootstrap=bootstrap, hold_votes=False)

    # -- lives --------------------------------------------------------------------------------------------------------

    def add(self, replica_id: int) -> Node:
        """A new data directory with an empty configuration."""
        self.nodes[replica_id] = node = Node(replica_id, self.disk_class(Configuration()))
        self.start(replica_id, hold_votes=False)
        return node

    def start(self, replica_id: int, *, hold_votes: bool = True, **flags: Any) -> None:
        node = self.nodes[replica_id]
        assert node.core is None
        node.incarnation += 1
        recovered = node.disk.recovered(hold_votes=hold_votes, **flags)
        rng = random.Random(self.rng.random())
        node.core = self.core_class(replica_id, node.incarnation, self.settings, recovered, rng, self.now)
        node.inbox, node.lost, node.writes, node.kept = [], [], [], []
        node.persisted_seq = 0
        node.paused = node.disk_stalled = False
        node.applied_index = recovered.snapshot.index if recovered.snapshot else 0
        node.before = None
        if self.pidfds:  # a watcher opened now finds the dead dead
            for other in self.nodes.values():
                if other.core is None and other.incarnation:
                    node.lost.append((other.id, other.incarnation))
        self.turn(node)

    def crash(self, replica_id: int, *, tell: bool | None = None) -> None:
        """SIGKILL and a power cut of that disk's cache at once: unfinished writes are gone, or only some of them."""
        node = self.nodes[replica_id]
        assert node.core is not None
        for batch in node.writes[: self.rng.randrange(len(node.writes) + 1)]:
            node.disk.apply(batch)
            self.oracle.on_disk(node, batch)
        node.core = None
        if self.pidfds if tell is None else tell:
            for other in self.nodes.values():
                if other.core is not None:
                    self.at(self.now + self.rng.randrange(2 * MS), self._lost, other, replica_id, node.incarnation)

    def pause(self, replica_id: int) -> None:
        self.nodes[replica_id].paused = True

    def resume(self, replica_id: int) -> None:
        node = self.nodes[replica_id]
        node.paused = False
        self.turn(node)

    def stall_disk(self, replica_id: int, stalled: bool = True) -> None:
        node = self.nodes[replica_id]
        node.disk_stalled = stalled
        if not stalled:
            for batch in node.writes:
                self.at(self.now, self._disk_done, node, node.incarnation, batch.seq)

    def partition(self, *groups: Iterable[int]) -> None:
        """Only replicas that share a group reach each other."""
        sets = [set(group) for group in groups]
        self.cut = {
            (a, b) for a in self.nodes for b in self.nodes if a != b and not any({a, b} <= group for group in sets)
        }

    def heal(self) -> None:
        self.cut = set()

    # -- time ---------------------------------------------------------------------------------------------------------

    def at(self, time: int, action: Callable[..., None], *arguments: Any) -> None:
        self._order += 1
        heapq.heappush(self._events, (time, self._order, action, arguments))

    def run(self, span: int) -> None:
        """Let `span` nanoseconds pass."""
        end = self.now + span
        while self.run_once(end):
            pass
        self.now = end

    def run_until(self, condition: Callable[[], object], span: int = 10_000 * MS) -> None:
        end = self.now + span
        while not condition():
            assert self.run_once(end), "did not happen in time"

    def run_once(self, end: int) -> bool:
        """The next event or deadline, if it comes before `end`."""
        awake = [n for n in self.nodes.values() if n.core is not None and not n.paused]
        due = min(((n.core.next_deadline(), n.id) for n in awake if n.core is not None), default=(NEVER, 0))
        if self._events and self._events[0][0] <= due[0]:
            if self._events[0][0] > end:
                return False
            time, _, action, arguments = heapq.heappop(self._events)
            self.now = max(self.now, time)
            action(*arguments)
            return True
        if due[0] > end:
            return False
        self.now = max(self.now, due[0])
        self.turn(self.nodes[due[1]])
        return True

    # -- the driver ---------------------------------------------------------------------------------------------------

    def turn(self, node: Node) -> None:
        """One turn of the loop in the manual."""
        core = node.core
        if core is None or node.paused:
            return
        for replica, incarnation in node.lost:
            core.peer_lost(replica, incarnation, self.now)
        inbox, node.inbox, node.lost = node.inbox, [], []
        for sender, incarnation, message in inbox:
            certificate = getattr(message, "certificate", None)
            if certificate and self.pidfds:
                replica, dead = certificate
                if self.is_dead(replica, dead):
                    core.peer_lost(replica, dead, self.now)
            core.step(sender, incarnation, message, self.now)
        core.deadline(self.now)
        self.pump(node)

    def is_dead(self, replica: int, incarnation: int) -> bool:
        node = self.nodes.get(replica)
        return node is not None and (node.incarnation > incarnation or node.core is None)

    def pump(self, node: Node) -> None:
        core = node.core
        assert core is not None
        self._check(node)
        while (ready := core.ready()) is not None:
            self.carry_out(node, ready)
            self._check(node)

    def carry_out(self, node: Node, ready: Ready) -> None:
        for to, message in ready.messages:
            self.send(node, to, message)
        if ready.write is not None:
            self.oracle.check_written(self, node, ready.write)
            node.writes.append(ready.write)
            if not node.disk_stalled:
                delay = self.rng.randint(*self.disk_delay)
                self.at(self.now + delay, self._disk_done, node, node.incarnation, ready.write.seq)
            if ready.write.snapshot is not None:
                node.applied_index = ready.write.snapshot.index
        for to, message in ready.messages_after_persist:
            node.kept.append((ready.seq, to, message))
        self._send_kept(node)
        self.oracle.check_committed(self, node, ready.committed)
        self.oracle.check_reads(ready.reads)
        node.reads.extend(ready.reads)
        node.reads_failed.extend(ready.reads_failed)

    def send(self, node: Node, to: int, message: AnyMessage) -> None:
        encoded = _encode(message)
        copies = 2 if self.rng.random() < self.duplication else 1
        lost = (node.id, to) in self.cut or to not in self.nodes or self.rng.random() < self.loss
        if isinstance(message, InstallSnapshot):
            self.at(self.now + 20 * MS, self._snapshot_sent, node, node.incarnation, to, not lost)
            copies = 1
        if self.drop is not None and self.drop(node.id, to, message):
            lost = True
        for _ in range(0 if lost else copies):
            delay = self.rng.randint(*self.delay)
            self.at(self.now + delay, self._deliver, to, node.id, node.incarnation, _decode(encoded))

    def _deliver(self, to: int, sender: int, incarnation: int, message: AnyMessage) -> None:
        node = self.nodes[to]
        if node.core is not None and (sender, to) not in self.cut:
            node.inbox.append((sender, incarnation, message))
            self.turn(node)

    def _snapshot_sent(self, node: Node, incarnation: int, to: int, ok: bool) -> None:
        if node.core is not None and node.incarnation == incarnation:
            node.core.snapshot_status(to, ok and self.nodes[to].core is not None, self.now)
            self.turn(node)

    def _lost(self, node: Node, replica: int, incarnation: int) -> None:
        if node.core is not None:
            node.lost.append((replica, incarnation))
            self.turn(node)

    def _disk_done(self, node: Node, incarnation: int, seq: int) -> None:
        if node.core is None or node.incarnation != incarnation or node.disk_stalled:
            return
        while node.writes and node.writes[0].seq <= seq:
            batch = node.writes.pop(0)
            node.disk.apply(batch)
            self.oracle.on_disk(node, batch)
            node.persisted_seq = batch.seq
        if node.paused:
            self.at(self.now + MS, self._disk_done, node, incarnation, seq)
            return
        node.core.persisted(node.persisted_seq, self.now)
        self._send_kept(node)
        self.turn(node)

    def _send_kept(self, node: Node) -> None:
        while node.kept and node.kept[0][0] <= node.persisted_seq:
            _, to, message = node.kept.pop(0)
            self.send(node, to, message)

    def _check(self, node: Node) -> None:
        assert node.core is not None
        invariants.check_state(node.core)
        after = invariants.summarize(node.core)
        if node.before is not None:
            invariants.check_step(node.before, after)
        node.before = after
        self.oracle.check_leader(self, node)

    # -- requests -----------------------------------------------------------------------------------------------------

    def core(self, replica_id: int) -> Core:
        core = self.nodes[replica_id].core
        assert core is not None
        return core

    def leader(self) -> int:
        """The leader of the highest term among the living, 0 without one."""
        leaders = [n.core for n in self.nodes.values() if n.core is not None and n.core.is_leader]
        return max(leaders, key=lambda core: core.term).id if leaders else 0

    def elect(self) -> int:
        """Run until somebody leads and has committed in its term."""
        self.run_until(lambda: self.leader() and self.core(self.leader()).status().term_started_committed)
        return self.leader()

    def propose(self, data: bytes = b"x", at: int = 0) -> int:
        node = self.nodes[at or self.leader()]
        index, _ = self.core(node.id).propose(data, self.now)
        self.pump(node)
        return index

    def commit(self, data: bytes = b"x") -> int:
        """Propose at the leader and wait until the leader has handed it out."""
        leader = self.leader()
        index = self.propose(data, leader)
        self.run_until(lambda: self.nodes[leader].applied_index >= index)
        return index

    def settle(self) -> None:
        """Until every living replica has everything that is committed."""
        self.run_until(
            lambda: all(n.applied_index == max(self.oracle.committed) for n in self.nodes.values() if n.core)
        )

    def read(self, at: int = 0, *, lease: bool = False) -> int:
        """Ask for a barrier. Returns the token; the answer, if any, is in the node's `reads`."""
        node = self.nodes[at or self.leader()]
        self.tokens += 1
        self.oracle.reads[self.tokens] = self.oracle.acknowledged[-1][1]
        self.core(node.id).read_barrier(self.tokens, self.now, lease=lease)
        self.pump(node)
        return self.tokens

    def answer(self, at: int, token: int) -> int | None:
        return next((index for t, index in self.nodes[at].reads if t == token), None)

    def compact(self, replica_id: int) -> SnapshotMeta:
        """A checkpoint of everything applied; the disk forgets the log behind it.

        Where the disk still holds another entry at that index (what replaces it is on its way there), the log
        contradicts the checkpoint, and a store that recovers now uses the older one: so it does not count here.
        """
        node = self.nodes[replica_id]
        core = self.core(replica_id)
        index = node.applied_index
        epoch = core.log.term(index)
        assert epoch is not None
        meta = SnapshotMeta(index, epoch, core.configuration_at(index))
        there = node.disk.entries.get(index)
        if there is None or there.epoch == epoch:
            node.disk.snapshot = meta
            node.disk.entries = {i: e for i, e in node.disk.entries.items() if i > index}
        core.compacted(meta)
        self._check(node)
        return meta

    def frames(self, replica_id: int) -> list[bytes]:
        """Data of the KIND_FRAMES entries in the replica's log in memory."""
        log = self.core(replica_id).log
        return [entry.data for entry in log.tail(log.first_index) if entry.kind == KIND_FRAMES]
