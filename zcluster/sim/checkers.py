"""What must hold of all replicas together, judged from outside.

`Checkers` is told what every replica writes, sends, persists, commits and applies, and what it recovers; it raises
`Violation` at the first thing that cannot be. It shares no code with consensus or storage; `consensus.invariants` (one
replica by itself) runs here after every step too. What clients see is judged in `promises`.

    property                 how it is seen
    election safety          one leader a term, elected by votes that a majority has on disk
    vote once                hard states handed to the disk, and votes that leave; a vote leaves only when on disk
    leader append-only       `invariants.check_step`
    log matching             (index, term) names one entry and one predecessor, for ever, on all replicas
    lease                    nobody is elected while another's lease holds
    repair                   a damaged replica neither votes nor acknowledges
    leader completeness      whoever is elected has every entry committed in an earlier term
    commit                   counts copies that are on the disks of a majority, and entries of the own term
    state-machine safety     one entry, one answer, one state hash at an index; applied in order
    amnesia                  no replica whose disk was replaced takes part again under its id
    membership               see `configurations`
    durability               what was acknowledged by a disk is found again by recovery; no healthy disk is refused

After a power cut in a weak durability mode the log behind `stable` may be another one than before (`power_cut`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from zcluster import wire
from zcluster.consensus import invariants
from zcluster.consensus.api import AnyMessage, AppendReply, VoteReply, VoteRequest
from zcluster.consensus.core import LEADER, Core
from zcluster.machines.api import Machine
from zcluster.sim.configurations import NOBODY, Configurations, LogOfMembers, configuration_of, has_majority
from zcluster.sim.reference import FrameModel
from zcluster.sim.shadow import Applied, Hashed, Shadow, Written
from zcluster.sim.world import Violation, World
from zcluster.storage.recover import RecoveredStore
from zcluster.types import (
    KIND_CONFIG,
    KIND_FRAMES,
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

HASH_EVERY: Final = 16


class Checkers:
    """
    Args:
        new_model: makes the model that the committed log is checked against.
        replicas: voters of the first configuration.
    """

    def __init__(self, world: World, replicas: tuple[ReplicaId, ...], new_model: Callable[[], FrameModel]) -> None:
        self._world = world
        self._new_model = new_model
        self.initial = Configuration(tuple(sorted(replicas)))
        self.configurations = Configurations(self.initial)
        self.model: FrameModel = new_model()
        self.shadows = {replica: Shadow(self.initial) for replica in replicas}
        self.leases = True  # False: the clocks of this world differ, so nobody relies on them
        self.leaders: dict[Term, ReplicaId] = {}
        self.elections = 0
        self._votes: dict[tuple[ReplicaId, Term], ReplicaId] = {}  # on disk
        self._written: dict[tuple[Index, Term], Written] = {}
        self._holders: dict[tuple[Index, Term], int] = {}  # bit set of replicas that have had it on disk
        self.committed: dict[Index, Term] = {}
        self._commit_terms: set[Term] = set()
        self.committed_at: list[tuple[Nanoseconds, Index]] = []
        self.highest: Index = 0  # committed, as far as anybody knows
        self._highest_in: dict[Term, Index] = {}  # committed in that term
        self.highest_applied: Index = 0
        self.applied_at: dict[Index, Applied] = {}
        self._hashes: dict[Index, str] = {}
        self._former: dict[Index, Term] = {}  # committed before a power cut that may have taken it away
        self._former_applied: dict[Index, Applied] = {}

    def joined(self, replica: ReplicaId) -> None:
        """One more, that belongs to no configuration yet."""
        self.shadows[replica] = Shadow(NOBODY)

    # -- the disk -----------------------------------------------------------------------------------------------------

    def submitted(self, replica: ReplicaId, batch: WriteBatch) -> None:
        shadow = self.shadows[replica]
        shadow.pending.append(batch)
        if batch.repair is not None:
            shadow.repair = batch.repair
        hard = batch.hard_state
        if hard is not None and hard.voted_for:
            known = shadow.said.setdefault(hard.term, hard.voted_for)
            if known != hard.voted_for:
                raise Violation("vote once", f"{replica} in term {hard.term}: {known}, then {hard.voted_for}")
        terms = shadow.terms
        members = shadow.members
        if batch.snapshot is not None:
            meta = batch.snapshot
            members.install(meta.index, meta.configuration, kept=terms.get(meta.index) == meta.epoch)
            terms[meta.index] = meta.epoch
        if batch.truncate_after is not None:
            members.truncate(batch.truncate_after)
            for index in [index for index in terms if index > batch.truncate_after]:
                del terms[index]
        for entry in batch.entries:
            if entry.kind == KIND_CONFIG:
                self._change_written(replica, entry)
            self._match(replica, entry, terms.get(entry.index - 1))
            terms[entry.index] = entry.epoch

    def _change_written(self, replica: ReplicaId, entry: Entry) -> None:
        members = self.shadows[replica].members
        members.append(self.configurations.written(replica, entry, members.current))

    def _match(self, replica: ReplicaId, entry: Entry, previous_term: Term | None) -> None:
        """`previous_term`: None where this replica does not know it (in front of what it has read from its disk)."""
        key = (entry.index, entry.epoch)
        known = self._written.get(key)
        if known is None:
            self._written[key] = Written(previous_term, entry.kind, entry.data)
            return
        if known.previous_term is None and previous_term is not None:
            self._written[key] = known = Written(previous_term, known.kind, known.data)
        same = known.kind == entry.kind and known.data == entry.data
        if not same or (previous_term is not None and previous_term != known.previous_term):
            raise Violation("log matching", f"{replica} has another entry {entry.index} of term {entry.epoch}")

    def persisted(self, replica: ReplicaId, seq: int) -> None:
        """The disk has acknowledged all batches up to `seq`."""
        shadow = self.shadows[replica]
        bit = 1 << replica
        while shadow.pending and shadow.pending[0].seq <= seq:
            batch = shadow.pending.pop(0)
            if batch.snapshot is not None:
                shadow.last_index = max(shadow.last_index, batch.snapshot.index)
                shadow.snapshot_index = max(shadow.snapshot_index, batch.snapshot.index)
            if batch.hard_state is not None:
                self._on_disk(replica, batch.hard_state)
                shadow.hard_state = batch.hard_state
            if batch.truncate_after is not None:
                shadow.last_index = min(shadow.last_index, batch.truncate_after)
            if batch.entries:
                shadow.last_index = batch.entries[-1].index
                for entry in batch.entries:
                    key = (entry.index, entry.epoch)
                    self._holders[key] = self._holders.get(key, 0) | bit
            shadow.highest = max(shadow.highest, shadow.last_index)

    def _on_disk(self, replica: ReplicaId, hard: HardState) -> None:
        if hard.voted_for:
            known = self._votes.setdefault((replica, hard.term), hard.voted_for)
            if known != hard.voted_for:
                raise Violation("vote once", f"{replica} has voted for {known} and {hard.voted_for} in {hard.term}")

    def recovered(self, replica: ReplicaId, found: RecoveredStore) -> None:
        """What a start has read from the disk, before the replica takes part."""
        shadow = self.shadows[replica]
        if shadow.wiped:
            raise Violation("amnesia", f"{replica} takes part again, although its disk was replaced")
        hard, last = shadow.hard_state, found.entries[-1].index if found.entries else 0
        if found.checkpoint is not None:
            last = max(last, found.checkpoint.index)
        if (found.hard_state.term, found.hard_state.voted_for) != (hard.term, hard.voted_for):
            newer = found.hard_state.term > hard.term or (found.hard_state.term == hard.term and not hard.voted_for)
            if not newer:
                raise Violation("durability", f"{replica} forgot {hard}, it came back with {found.hard_state}")
        if not shadow.damaged and (found.damage is not None or found.repair):
            raise Violation("recovery", f"{replica}: a healthy disk is called damaged: {found.damage}")
        if not shadow.damaged and not shadow.suspect_tail:
            cuts = [batch.truncate_after for batch in shadow.pending if batch.truncate_after is not None]
            expected = min([shadow.last_index, *cuts])
            if last < expected:
                raise Violation("durability", f"{replica} lost what it had acknowledged: {last} of {expected}")
        self._on_disk(replica, found.hard_state)
        if found.checkpoint is not None:
            self._reinstate(found.checkpoint)
        shadow.terms = terms = {0: 0}
        if found.checkpoint is not None:
            terms[found.checkpoint.index] = found.checkpoint.epoch
        base = found.checkpoint.configuration if found.checkpoint else self._first_members(replica)
        shadow.members = LogOfMembers(base)
        for entry in found.entries:
            if entry.kind == KIND_CONFIG:
                shadow.members.append(configuration_of(entry))
            self._match(replica, entry, terms.get(entry.index - 1))
            terms[entry.index] = entry.epoch
            key = (entry.index, entry.epoch)
            self._holders[key] = self._holders.get(key, 0) | 1 << replica
        self._begin_life(shadow, found, last)

    def _first_members(self, replica: ReplicaId) -> Configuration:
        return self.initial if replica in self.initial.voters else NOBODY

    def _begin_life(self, shadow: Shadow, found: RecoveredStore, last: Index) -> None:
        shadow.hard_state = found.hard_state
        shadow.last_index = shadow.highest = last
        shadow.snapshot_index = found.checkpoint.index if found.checkpoint else 0
        shadow.committed = shadow.snapshot_index
        shadow.log_time_ms = found.checkpoint.log_time_ms if found.checkpoint else 0
        shadow.voters = shadow.members.current.voters
        shadow.pending = []
        shadow.before = None
        shadow.acknowledged = (0, 0)
        shadow.repair = found.repair
        shadow.suspect_tail = False
        hard = found.hard_state
        shadow.said = {hard.term: hard.voted_for} if hard.voted_for else {}

    # -- messages -----------------------------------------------------------------------------------------------------

    def sent(self, replica: ReplicaId, to: ReplicaId, message: AnyMessage) -> None:
        """A message that speaks of what must survive leaves."""
        shadow = self.shadows[replica]
        if type(message) is VoteReply:
            if message.granted:
                self._check_vote(replica, to, message.term)
        elif type(message) is VoteRequest:
            self._check_vote(replica, replica, message.term)
        elif type(message) is AppendReply and message.success:
            if message.match_index > shadow.highest:
                raise Violation(
                    "durability", f"{replica} acknowledges {message.match_index}, its disk only {shadow.highest}"
                )
            if shadow.repair and not message.repair:
                raise Violation("repair", f"{replica} is damaged, but its acknowledgements count")
            shadow.acknowledged = max(shadow.acknowledged, (message.term, message.match_index))

    def _check_vote(self, replica: ReplicaId, candidate: ReplicaId, term: Term) -> None:
        if self.shadows[replica].repair:
            raise Violation("repair", f"{replica} is damaged and votes in {term}")
        found = self._votes.get((replica, term))
        if found is None and self.shadows[replica].hard_state.term > term:
            # A later term reached the disk in the same write: no other vote in this one can follow.
            self._votes[replica, term] = candidate
        elif found != candidate:
            raise Violation("vote once", f"{replica} says it votes for {candidate} in {term}, on its disk is {found}")

    # -- steps --------------------------------------------------------------------------------------------------------

    def stepped(self, replica: ReplicaId, core: Core) -> None:
        """After every turn."""
        shadow = self.shadows[replica]
        before = shadow.before
        try:
            invariants.check_state(core, before.commit_index if before is not None else 0)
            after = invariants.summarize(core)
            if before is not None:
                invariants.check_step(before, after)
        except AssertionError as error:
            raise Violation("invariant", f"{replica}: {_where(error)}") from error
        shadow.before = after
        shadow.core = core
        if after.term == shadow.acknowledged[0] and after.last_index < shadow.acknowledged[1]:
            raise Violation(
                "log matching", f"{replica} cut its log to {after.last_index}, it had told {shadow.acknowledged}"
            )
        if after.role == LEADER and (before is None or before.role != LEADER or before.term != after.term):
            self._elected(replica, core)
        if after.commit_index > shadow.committed:
            self._commit(replica, core, shadow, after)
        self._check_members(replica, core, shadow)

    def _check_members(self, replica: ReplicaId, core: Core, shadow: Shadow) -> None:
        if core.is_leader:
            self.configurations.check_fresh(self.highest, self._commit_terms)
        current, handed = core.membership.current, shadow.members.current
        if (current.voters, current.learners) != (handed.voters, handed.learners):
            raise Violation("membership", f"{replica} goes by {current}, the log it wrote ends with {handed}")
        shadow.voters = current.voters

    def _elected(self, replica: ReplicaId, core: Core) -> None:
        term = core.term
        self.elections += 1
        known = self.leaders.setdefault(term, replica)
        if known != replica:
            raise Violation("election safety", f"{known} and {replica} both lead in term {term}")
        self._check_leases(replica, term)
        votes = [voter for voter in self.shadows if self._votes.get((voter, term)) == replica]
        if not has_majority(votes, core.membership.current.voters):
            raise Violation("election safety", f"{replica} leads in {term} by the votes of {votes}")
        # Votes may be late: then somebody leads in a term that is over, and knows nothing of what came after it.
        highest = max((index for earlier, index in self._highest_in.items() if earlier < term), default=0)
        if highest > core.log.last_index:
            raise Violation(
                "leader completeness", f"{replica} leads in {term} with {core.log.last_index} of {highest} entries"
            )
        if highest >= core.log.base_index and core.log.term(highest) != self.committed.get(highest, 0):
            raise Violation("leader completeness", f"{replica} leads in {term} with another entry at {highest}")

    def _check_leases(self, elected: ReplicaId, term: Term) -> None:
        """While a lease holds nobody else can be elected; else the leader that has it would answer stale reads."""
        if not self.leases:
            return
        for replica, shadow in self.shadows.items():
            core = shadow.core
            if replica == elected or core is None or core.leadership is None or core.term >= term:
                continue
            leadership = core.leadership
            if core.commit_index >= leadership.term_start and leadership.lease_holds(self._world.now):
                raise Violation("lease", f"{elected} is elected in {term} while {replica} has a lease in {core.term}")

    def exited(self, replica: ReplicaId) -> None:
        self.shadows[replica].core = None

    def _commit(self, replica: ReplicaId, core: Core, shadow: Shadow, after: invariants.Summary) -> None:
        log = core.log
        if after.role == LEADER and log.term(after.commit_index) != after.term:
            raise Violation(
                "commit", f"{replica}, leading in {after.term}, commits {after.commit_index} of an older term by count"
            )
        configurations = [shadow.voters, core.membership.current.voters]  # the turn may have changed them behind it
        if after.role != LEADER:  # whoever led then may have gone by a change that did not get this far
            configurations += [found.voters for found in self.configurations.possible()]
        for index in range(max(shadow.committed + 1, log.base_index), after.commit_index + 1):
            term = log.term(index)
            if index and term is not None and self.committed.get(index) != term:
                self._commit_one(replica, index, term, configurations)
                self._highest_in[after.term] = max(self._highest_in.get(after.term, 0), index)
        shadow.committed = after.commit_index

    def _commit_one(
        self, replica: ReplicaId, index: Index, term: Term, configurations: list[tuple[ReplicaId, ...]]
    ) -> None:
        if index in self.committed:
            raise Violation(
                "state-machine safety", f"{replica} commits {index} of term {term}, known is {self.committed[index]}"
            )
        mask = self._holders.get((index, term), 0)
        holders = [
            other
            for other, shadow in self.shadows.items()
            if mask >> other & 1 or shadow.snapshot_index >= index  # a checkpoint holds it too
        ]
        if not any(has_majority(holders, voters) for voters in configurations if voters):
            raise Violation("commit", f"{replica} commits {index} of term {term} with copies on disks of {holders}")
        self.committed[index] = term
        self._commit_terms.add(term)
        self.configurations.committed_at(index, term)
        self._former.pop(index, None)
        self.highest = max(self.highest, index)
        self.committed_at.append((self._world.now, index))
        self._compare_with_log(index, term)

    def _compare_with_log(self, index: Index, term: Term) -> None:
        applied, written = self.applied_at.get(index), self._written.get((index, term))
        if applied is None or written is None:
            return
        if written.kind != KIND_FRAMES or wire.decode_payload(written.data).frames != applied.frames:
            raise Violation("state-machine safety", f"what was applied at {index} is not what the log holds")

    # -- applying -----------------------------------------------------------------------------------------------------

    def applied(
        self,
        replica: ReplicaId,
        index: Index,
        time_ms: int,
        frames: list[bytes],
        results: list[bytes],
        state: Hashed,
        previous: Index | None,
    ) -> None:
        """`previous`: the index of the frames this machine applied before; None if it does not know (a checkpoint)."""
        shadow = self.shadows[replica]
        if time_ms < shadow.log_time_ms:
            raise Violation("log time", f"{replica} at {index}: {time_ms} after {shadow.log_time_ms}")
        shadow.log_time_ms = time_ms
        known = self.applied_at.get(index)
        if known is None:
            if index <= self.highest_applied:
                raise Violation("state-machine safety", f"{replica} applies {index}, which held no frames elsewhere")
            self.applied_at[index] = known = Applied(self.highest_applied, time_ms, frames, results)
            self.highest_applied = index
            self.model.apply(index, frames, results)
        elif known.results != results or known.frames != frames or known.log_time_ms != time_ms:
            what = "answers" if known.frames == frames else "frames"
            raise Violation("state-machine safety", f"{replica} has other {what} at {index} than those before it")
        if previous is not None and previous != known.previous:
            raise Violation("state-machine safety", f"{replica} applies {index} right after {previous}")
        if index % HASH_EVERY == 0:
            self.same_state(replica, index, state)

    def same_state(self, replica: ReplicaId, index: Index, state: Hashed) -> None:
        """Equal states at equal index."""
        mine = state.state_hash()
        if self._hashes.setdefault(index, mine) != mine:
            raise Violation("state-machine safety", f"{replica} is in another state at {index}")

    # -- weak durability ----------------------------------------------------------------------------------------------

    def power_cut(self, stable: Index) -> None:
        """Everything behind `stable` may be gone: from here on the log is what the replicas come back with."""
        for index in sorted(self.committed):
            if index > stable:
                self._former[index] = self.committed.pop(index)
                self._former_applied.pop(index, None)  # of an era before, unless it is put back below
        self.highest = min(self.highest, stable)
        self._highest_in = {term: min(index, stable) for term, index in self._highest_in.items()}
        self.committed_at = [(at, index) for at, index in self.committed_at if index <= stable]
        self._holders = {key: mask for key, mask in self._holders.items() if key[0] <= stable}
        self._hashes = {index: known for index, known in self._hashes.items() if index <= stable}
        former = self.applied_at
        self.applied_at = {}
        self.model = self._new_model()
        self.highest_applied = 0
        for index in sorted(former):
            if index <= stable:
                self._replay(index, former[index])
        self._former_applied.update(former)
        for shadow in self.shadows.values():
            shadow.suspect_tail = True

    def _replay(self, index: Index, applied: Applied) -> None:
        self.applied_at[index] = applied
        self.model.apply(index, applied.frames, applied.results)
        self.highest_applied = index

    def _reinstate(self, meta: SnapshotMeta) -> None:
        """A checkpoint survived: so did everything in it."""
        for index in range(self.highest + 1, meta.index + 1):
            term = self._former.pop(index, None)
            if term is None:
                raise Violation("durability", f"a checkpoint of {meta.index}, but {index} was never committed")
            self.committed[index] = term
            self.committed_at.append((self._world.now, index))
            applied = self._former_applied.get(index)
            if applied is not None and index > self.highest_applied:
                self._replay(index, applied)
            self.highest = index
        self._highest_in[meta.epoch] = max(self._highest_in.get(meta.epoch, 0), meta.index)

    def stable_before(self, time: Nanoseconds) -> Index:
        """The last index that was committed at or before `time`."""
        return max((index for at, index in self.committed_at if at <= time), default=0)


class WatchedMachine:
    """A machine whose every step is reported; fulfils `machines.api.Machine`."""

    def __init__(self, inner: Machine, replica: ReplicaId, checkers: Checkers, last: Index | None) -> None:
        """`last`: 0 for a machine that starts from nothing, None for one that is restored."""
        self.inner = inner
        self.last = last
        self._replica = replica
        self._checkers = checkers
        self.query = inner.query
        self.capture = inner.capture
        self.maintain = inner.maintain
        self.take_mark = inner.take_mark
        self.restore = inner.restore
        self.state_hash = inner.state_hash

    def apply(self, index: int, log_time_ms: int, frames: list[bytes]) -> list[bytes]:
        results = self.inner.apply(index, log_time_ms, frames)
        self._checkers.applied(self._replica, index, log_time_ms, frames, results, self.inner, self.last)
        self.last = index
        return results


def _where(error: BaseException) -> str:
    """The failed assertion's place and text."""
    text = str(error)
    trace: Any = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}" if trace is not None else ""
    return f"{text} ({place})" if text else place
