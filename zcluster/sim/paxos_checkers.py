"""What must hold of all replicas together where the engine is Multi-Paxos. What serves both is in `checkers`.

property                 how it is seen
ballots are unique       nobody leads by a ballot that carries another's id
promises are kept        a promise leaves, and a ballot opens, only when a phase-1 quorum has it on disk; nothing is
                         accepted under a lower ballot than the disk has promised; a start finds all of it again
one value a ballot       (slot, ballot) names one value, for ever, on all replicas
acceptances are on disk  what an acceptor acknowledges is on its disk, or known to be chosen
chosen                   what a replica calls chosen has been on the disks of an accept quorum under one ballot
one value chosen         every replica holds the same value in a slot that it calls chosen, and keeps it
completeness             a ballot that opens holds every value that was chosen under a lower one
membership               see `chosen_configurations`; each slot is decided by the configuration chosen before it
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from zcluster.consensus import ballots, invariants
from zcluster.consensus.api import Accepted, AnyMessage, Prepare, Promised
from zcluster.consensus.core import Core
from zcluster.consensus.proposer import Proposer
from zcluster.consensus.slots import Slots
from zcluster.sim.checkers import Checkers
from zcluster.sim.chosen_configurations import ChosenConfigurations
from zcluster.sim.configurations import NOBODY
from zcluster.sim.shadow import Shadow
from zcluster.sim.world import Violation
from zcluster.storage.recover import RecoveredStore
from zcluster.types import Configuration, Entry, Index, ReplicaId, SnapshotMeta, Term, WriteBatch

Value = tuple[int, bytes]


class PaxosCheckers(Checkers):
    """`committed` maps a slot to the lowest ballot that was seen to choose its value."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.configurations: ChosenConfigurations = ChosenConfigurations(self.initial)
        self._open: set[Term] = set()  # ballots whose opening was checked
        self._accepted: defaultdict[ReplicaId, dict[Index, Term]] = defaultdict(dict)  # on disk
        self._ballots: dict[Index, set[Term]] = {}  # under which the slot was accepted anywhere
        self._values: dict[Index, Value] = {}  # chosen
        self._former_values: dict[Index, Value] = {}  # chosen before a power cut that may have taken them away
        self._through: dict[ReplicaId, tuple[Term, Index]] = {}  # acknowledged, and checked

    # -- the disk -----------------------------------------------------------------------------------------------------

    def _change_written(self, replica: ReplicaId, entry: Entry) -> None:
        """In force when chosen, not before."""

    def _match(self, replica: ReplicaId, entry: Entry, previous_term: Term | None) -> None:
        if (entry.index, entry.epoch) not in self._written:
            self.configurations.proposed(replica, entry)
        super()._match(replica, entry, None)
        chosen = self.committed.get(entry.index)
        if chosen is not None and entry.epoch > chosen and self._values[entry.index] != (entry.kind, entry.data):
            raise Violation("one value chosen", f"{replica} accepts another value in slot {entry.index}")

    def submitted(self, replica: ReplicaId, batch: WriteBatch) -> None:
        super().submitted(replica, batch)
        if batch.truncate_after is not None:
            raise Violation("promises are kept", f"{replica} cuts off what it has accepted")
        promised = max([batch.hard_state.term] if batch.hard_state else [], default=0)
        for earlier in self.shadows[replica].pending:
            if earlier.hard_state is not None:
                promised = max(promised, earlier.hard_state.term)
        promised = max(promised, self.shadows[replica].hard_state.term)
        if any(entry.epoch > promised for entry in batch.entries):
            raise Violation("promises are kept", f"{replica} accepts beyond its promise of {ballots.text(promised)}")

    def persisted(self, replica: ReplicaId, seq: int) -> None:
        shadow, accepted = self.shadows[replica], self._accepted[replica]
        for batch in shadow.pending:
            if batch.seq > seq:
                break
            self.configurations.known(replica, batch.chosen)
            if batch.snapshot is not None:
                accepted.clear()
                self.configurations.known(replica, batch.snapshot.index)
            for entry in batch.entries:
                if accepted.get(entry.index, 0) > entry.epoch:
                    raise Violation("promises are kept", f"{replica} accepts {entry.index} under a lower ballot")
                accepted[entry.index] = entry.epoch
                self._ballots.setdefault(entry.index, set()).add(entry.epoch)
        super().persisted(replica, seq)
        shadow.last_index = shadow.highest = max([shadow.snapshot_index, *accepted])

    def recovered(self, replica: ReplicaId, found: RecoveredStore) -> None:
        shadow = self.shadows[replica]
        held = {entry.index: entry.epoch for entry in found.entries}
        covered = found.checkpoint.index if found.checkpoint else 0
        if not shadow.damaged and not shadow.suspect_tail:
            for index, epoch in self._accepted[replica].items():
                if index > covered and held.get(index, 0) < epoch:
                    raise Violation("promises are kept", f"{replica} lost what it had accepted in slot {index}")
        super().recovered(replica, found)
        if found.chosen > self.highest:  # after a power cut: this replica had been told, and has not forgotten
            self._reinstate(SnapshotMeta(found.chosen, 0, Configuration()))
        self._accepted[replica] = held
        self._through.pop(replica, None)
        for index, epoch in held.items():
            self._ballots.setdefault(index, set()).add(epoch)

    # -- messages -----------------------------------------------------------------------------------------------------

    def sent(self, replica: ReplicaId, to: ReplicaId, message: AnyMessage) -> None:
        if type(message) is Promised:
            if message.granted:
                self._check_vote(replica, to, message.term)
        elif type(message) is Prepare:
            self._check_vote(replica, replica, message.term)
        elif type(message) is Accepted:
            self._check_acknowledged(replica, message)

    def _check_acknowledged(self, replica: ReplicaId, message: Accepted) -> None:
        shadow, accepted = self.shadows[replica], self._accepted[replica]
        if shadow.repair and not message.repair:
            raise Violation("repair", f"{replica} is damaged, but its acknowledgements count")
        term, through = self._through.get(replica, (0, 0))
        start = through if term == message.term else 0
        chosen = max(shadow.committed, shadow.snapshot_index, shadow.core.commit_index if shadow.core else 0)
        for index in (*range(start + 1, message.through + 1), *range(message.first, message.last + 1)):
            if index > chosen and accepted.get(index, 0) < message.term:
                raise Violation(
                    "acceptances are on disk", f"{replica} acknowledges slot {index}, its disk has not got it"
                )
        self._through[replica] = (message.term, max(start, message.through))

    # -- steps --------------------------------------------------------------------------------------------------------

    def _elected(self, replica: ReplicaId, core: Core) -> None:
        term, slots = core.term, core.log
        assert isinstance(slots, Slots)
        self.elections += 1
        self.leaders[term] = replica
        if ballots.proposer_of(term) != replica:
            raise Violation("ballots are unique", f"{replica} leads by the ballot {ballots.text(term)}")
        self._check_promised(replica, core, slots.last_index)

    def _check_promised(self, replica: ReplicaId, core: Core, slot: Index) -> None:
        """Those who decide on this slot."""
        term, voters = core.term, self.configurations.in_force(slot).voters
        promised = [voter for voter in voters if self._votes.get((voter, term)) == replica]
        if len(promised) < ballots.prepare_quorum(len(voters), core.settings.accept_quorum):
            raise Violation(
                "promises are kept", f"{replica} leads in {ballots.text(term)} by the promises of {promised}"
            )

    def _check_opened(self, replica: ReplicaId, core: Core) -> None:
        """Phase 1 is complete, behind whatever changes it found."""
        term, slots, proposer = core.term, core.log, core.leadership
        assert isinstance(slots, Slots)
        if not isinstance(proposer, Proposer) or not proposer.opening or term in self._open:
            return
        self._open.add(term)
        self._check_leases(replica, term)  # one that settles the slots of an older configuration serves nobody yet
        self._check_promised(replica, core, proposer.opening)
        for index in range(slots.base_index + 1, self.highest + 1):
            chosen = self.committed.get(index, term)
            entry = slots.get(index)
            if chosen < term and (entry is None or (entry.kind, entry.data) != self._values[index]):
                raise Violation(
                    "completeness", f"{replica} leads in {ballots.text(term)} without the value of slot {index}"
                )

    def _commit(self, replica: ReplicaId, core: Core, shadow: Shadow, after: invariants.Summary) -> None:
        slots = core.log
        assert isinstance(slots, Slots)
        for index in range(max(shadow.committed, slots.base_index) + 1, after.commit_index + 1):
            entry = slots.get(index)
            assert entry is not None
            known = self._values.get(index)
            if known is None:
                self._choose(replica, core, entry)
            elif known != (entry.kind, entry.data):
                raise Violation("one value chosen", f"{replica} holds another value in the chosen slot {index}")
        shadow.committed = after.commit_index

    def _choose(self, replica: ReplicaId, core: Core, entry: Entry) -> None:
        """The first replica calls the slot chosen."""
        index, voters = entry.index, self.configurations.in_force(entry.index).voters
        needed = ballots.accept_quorum(len(voters), core.settings.accept_quorum)
        mask = sum(1 << voter for voter in voters)
        chosen = [
            ballot
            for ballot in self._ballots.get(index, ())
            if (self._holders.get((index, ballot), 0) & mask).bit_count() >= needed
        ]
        if not chosen:
            raise Violation(
                "chosen", f"{replica} calls slot {index} chosen, no ballot has {needed} acceptances on disks"
            )
        self._values[index] = (entry.kind, entry.data)
        self.committed[index] = min(chosen)
        self.configurations.chosen(entry)
        self._former.pop(index, None)
        self.highest = max(self.highest, index)
        self.committed_at.append((self._world.now, index))
        self._compare_with_log(index, entry.epoch)

    def _check_members(self, replica: ReplicaId, core: Core, shadow: Shadow) -> None:
        self._check_opened(replica, core)
        self.configurations.check_proposed(self.highest)
        expected = self.configurations.in_force(core.commit_index + 1)
        if not expected.index and replica not in self.initial.voters and not core.log.base_index:
            expected = NOBODY  # the first members are in no slot: it has not been told of anybody
        current = core.membership.current
        if (current.voters, current.learners) != (expected.voters, expected.learners):
            raise Violation("membership", f"{replica} goes by {current}, chosen is {expected}")

    # -- weak durability ----------------------------------------------------------------------------------------------

    def power_cut(self, stable: Index) -> None:
        super().power_cut(stable)
        self._former_values |= {i: value for i, value in self._values.items() if i > stable}
        self._values = {i: value for i, value in self._values.items() if i <= stable}

    def _reinstate(self, meta: SnapshotMeta) -> None:
        before = self.highest
        super()._reinstate(meta)
        for index in range(before + 1, self.highest + 1):
            self._values[index] = self._former_values[index]
