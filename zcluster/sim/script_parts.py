"""What the world of a script is made of: a disk, a life of a replica, a message under way, and the witness.

The witness knows nothing of how replicas work; it compares what they put out. Does not live here: commands, the clock.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Final

import msgspec

from zcluster.consensus import AnyMessage, AppendRequest, InstallSnapshot, Recovered, Settings, invariants, quorum
from zcluster.consensus.raft import Raft
from zcluster.errors import InvalidInput
from zcluster.types import (
    KIND_CONFIG,
    Configuration,
    Entry,
    HardState,
    Index,
    Nanoseconds,
    ReplicaId,
    SnapshotMeta,
    Term,
    WriteBatch,
)

READYS_MAX: Final = 10_000
"""Readys after one input before a core is taken to go round in circles."""


def number(word: str) -> int:
    if not word.isascii() or not word.isdigit():
        raise ScriptError(f"not a number: {word!r}")
    return int(word)


class ScriptError(InvalidInput):
    """The script itself is wrong; `line` counts from 1."""

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(f"line {line}: {reason}" if line else reason)
        self.reason = reason
        self.line = line


class Violation(AssertionError):
    """The replicas did what no cluster may ever do. Not part of any right output."""


# -- words for what is printed ----------------------------------------------------------------------------------------


def describe_configuration(configuration: Configuration) -> str:
    voters, learners = (",".join(map(str, some)) for some in (configuration.voters, configuration.learners))
    return f"{voters or '-'}{'+' + learners if learners else ''}"


def describe_entries(some: Iterable[Entry]) -> str:
    def data(entry: Entry) -> str:
        return "config" if entry.kind == KIND_CONFIG else entry.data.decode()

    return " ".join(f"{e.index}/{e.epoch}{':' + data(e) if e.data else ''}" for e in some) or "-"


def describe(message: AnyMessage) -> str:
    """Fields that are zero, false or none are left out, and what only times and lives decide."""
    if isinstance(message, AppendRequest):
        return (
            f"AppendRequest term={message.term} prev={message.prev_index}/{message.prev_term}"
            f" commit={message.commit_index} entries: {describe_entries(message.entries)}"
        )
    if isinstance(message, InstallSnapshot):
        return f"InstallSnapshot term={message.term} at {message.meta.index}/{message.meta.epoch}"
    fields = ((name, getattr(message, name)) for name in message.__struct_fields__)
    left_out = {"quorum_time", "quorum_commit", "incarnation"}
    shown = (f"{k}={v}" for k, v in fields if k == "term" or (v not in (None, False, 0) and k not in left_out))
    return f"{type(message).__name__} {' '.join(shown)}"


class Wire(msgspec.Struct, eq=False):
    """One message under way; equal only to itself, since the same one may be there twice."""

    sender: ReplicaId
    incarnation: int
    to: ReplicaId
    message: AnyMessage

    def __str__(self) -> str:
        return f"{self.sender}->{self.to} {describe(self.message)}"


# -- one replica ------------------------------------------------------------------------------------------------------


class Disk:
    """What survives a crash, and the writes on their way to it. `weak`: acknowledges before it is safe."""

    def __init__(self, configuration: Configuration, *, weak: bool = False) -> None:
        self.configuration = configuration
        self.weak = weak
        self.stalled = weak
        self.queue: list[WriteBatch] = []
        self.wipe(repair=False)

    def wipe(self, *, repair: bool = True) -> None:
        self.hard_state = HardState()
        self.snapshot: SnapshotMeta | None = None
        self.entries: list[Entry] = []
        self.repair = repair

    def finish(self) -> int:
        """The oldest write on its way becomes durable. Returns its seq."""
        batch = self.queue.pop(0)
        if batch.snapshot is not None:
            meta = self.snapshot = batch.snapshot
            kept = any((entry.index, entry.epoch) == (meta.index, meta.epoch) for entry in self.entries)
            self.entries = [entry for entry in self.entries if kept and entry.index > meta.index]
        if batch.hard_state is not None:
            self.hard_state = batch.hard_state
        if batch.truncate_after is not None:
            self.entries = [entry for entry in self.entries if entry.index <= batch.truncate_after]
        if batch.repair is not None:
            self.repair = batch.repair
        self.entries += batch.entries
        return batch.seq

    def checkpoint(self, meta: SnapshotMeta, first_index: Index) -> None:
        """Entries before `first_index` are trimmed."""
        self.snapshot = meta
        self.entries = [entry for entry in self.entries if entry.index >= first_index]

    def holds(self, index: Index, term: Term) -> bool:
        if self.snapshot is not None and self.snapshot.index >= index:
            return True
        return any((entry.index, entry.epoch) == (index, term) for entry in self.entries)

    def recovered(self, *, hold_votes: bool, suspect: bool = False) -> Recovered:
        """`suspect`: the power failed, so what was acknowledged in the terms known here may be missing."""
        return Recovered(
            hard_state=self.hard_state,
            configuration=self.configuration,
            snapshot=self.snapshot,
            entries=tuple(self.entries),
            repair=self.repair,
            hold_votes=hold_votes,
            suspect_after=self.hard_state.term if suspect else None,
        )


class Replica:
    """One life of a replica process: a core, its disk, and what it put out since somebody looked."""

    def __init__(
        self, replica: ReplicaId, life: int, settings: Settings, disk: Disk, recovered: Recovered, now: Nanoseconds
    ) -> None:
        self.id = replica
        self.life = life
        self.disk = disk
        self.paused = False
        self.core = Raft(replica, life, settings, recovered, random.Random(replica), now)
        self.sent: list[tuple[ReplicaId, AnyMessage]] = []
        self.committed: list[Entry] = []
        self.reads: list[tuple[int, Index]] = []
        self.events: list[str] = []
        self._kept: list[tuple[int, ReplicaId, AnyMessage]] = []
        self._persisted = 0
        self.pump(now)

    def pump(self, now: Nanoseconds) -> None:
        """Carry out everything the core wants done; see the manual in `zcluster.consensus`."""
        core = self.core
        for _ in range(READYS_MAX):
            before = invariants.summarize(core)
            ready = core.ready()
            invariants.check_state(core)
            invariants.check_step(before, invariants.summarize(core))
            if ready is None:
                return
            self.sent += ready.messages
            if ready.write is not None:
                self.disk.queue.append(ready.write)
                if ready.write.snapshot is not None:
                    meta = ready.write.snapshot
                    self.events.append(f"{self.id} restores {meta.index}/{meta.epoch}")
            self._kept += [(ready.seq, to, message) for to, message in ready.messages_after_persist]
            self.committed += ready.committed
            self.reads += ready.reads
            self.events += [f"{self.id} fails read {token}" for token in ready.reads_failed]
            if ready.configuration is not None:
                self.events.append(f"{self.id} configuration {describe_configuration(ready.configuration)}")
            if ready.repaired:
                self.events.append(f"{self.id} is repaired")
            if self.disk.weak:
                self._acknowledge(ready.seq, now)
            elif not self.disk.stalled:
                self.sync(len(self.disk.queue), now, pump=False)
            self._send_kept()
        raise Violation(f"replica {self.id} is never done")

    def sync(self, count: int, now: Nanoseconds, *, pump: bool = True) -> None:
        """The disk finishes its `count` oldest writes, one after the other."""
        for _ in range(count):
            self._acknowledge(self.disk.finish(), now)
            if pump:
                self.pump(now)

    def _acknowledge(self, seq: int, now: Nanoseconds) -> None:
        if seq > self._persisted:
            self._persisted = seq
            self.core.persisted(seq, now)
            self._send_kept()

    def _send_kept(self) -> None:
        self.sent += [(to, message) for seq, to, message in self._kept if seq <= self._persisted]
        self._kept = [kept for kept in self._kept if kept[0] > self._persisted]

    def describe(self, initial: Configuration) -> str:
        core, log = self.core, self.core.log
        base = f"{log.base_index}/{log.base_term} + " if log.base_index else ""
        line = (
            f"{self.id} {core.status().role} term={core.term} vote={core.voted_for} leader={core.leader}"
            f" commit={core.commit_index} log={base}{' '.join(str(e.epoch) for e in log.tail(log.first_index)) or '-'}"
        )
        members = core.membership.current
        if (members.voters, members.learners) != (initial.voters, initial.learners):
            line += f" members={describe_configuration(members)}"
        if self.disk.queue:
            line += f" unsynced={len(self.disk.queue)}"
        return line + " repair" * core.repair + " paused" * self.paused


class Witness:
    """What must hold of all replicas together; knows nothing of how they work. Raises: Violation."""

    def __init__(self) -> None:
        self.leaders: dict[Term, ReplicaId] = {}
        self.chosen: dict[Index, Entry] = {}
        self.chosen_in: dict[Index, Term] = {}  # the term in which it was first seen to be committed
        self.commits: list[tuple[Nanoseconds, Index]] = [(0, 0)]
        self.floors: dict[int, Index] = {}

    def elected(self, replica: Replica) -> None:
        term, log = replica.core.term, replica.core.log
        if self.leaders.setdefault(term, replica.id) != replica.id:
            raise Violation(f"replicas {self.leaders[term]} and {replica.id} both lead term {term}")
        for index, entry in self.chosen.items():
            earlier = self.chosen_in.get(index, 0) < term  # votes may be late, and so elect for a term that is over
            if earlier and index > log.base_index and log.term(index) != entry.epoch:
                raise Violation(f"replica {replica.id} leads term {term} without committed entry {index}/{entry.epoch}")

    def committed(self, replica: Replica, disks: dict[ReplicaId, Disk], now: Nanoseconds) -> None:
        """Each entry it applies is the one that everybody applies, and the leader's are durable on a majority."""
        voters = replica.core.membership.current.voters
        for entry in replica.committed:
            if self.chosen.setdefault(entry.index, entry) != entry:
                raise Violation(f"replica {replica.id} applies {describe_entries([entry])}, others another entry there")
            self.chosen_in.setdefault(entry.index, replica.core.term)
        commit_index = replica.core.commit_index
        if commit_index > self.commits[-1][1]:
            self.commits.append((now, commit_index))
            term = replica.core.log.term(commit_index) or 0
            copies = sum(disks[voter].holds(commit_index, term) for voter in voters if voter in disks)
            weak = any(disk.weak for disk in disks.values())
            if replica.core.is_leader and not weak and copies < quorum.majority(len(voters)):
                raise Violation(f"replica {replica.id} commits {commit_index}/{term} with {copies} durable copies")

    def asked(self, token: int) -> None:
        if token in self.floors:
            raise ScriptError(f"read {token} was asked before")
        self.floors[token] = self.commits[-1][1]

    def served(self, token: int, index: Index) -> None:
        if index < self.floors[token]:
            raise Violation(f"read {token} is served at {index}, but {self.floors[token]} was committed before it")

    def bounded(self, index: Index, oldest: Nanoseconds) -> None:
        """A read that may show any state since `oldest`."""
        needed = max(known for at, known in self.commits if at <= oldest)
        if index < needed:
            raise Violation(f"a bounded read at {index} misses {needed}, committed before its bound")
