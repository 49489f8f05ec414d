"""Multi-Paxos: roles and handlers.

                    silence, or proof of      trial promises       promises of a phase-1 quorum,
    +----------+    the proposer's death  +---------+      +-----------+  all they report     +----------+
    | acceptor | ----------------------->  |  trial  | ---> | phase 1:  | ------------------> | phase 2: |
    | learner  |   (the first of the       +---------+      | candidate |                     | proposer |
    +----------+    survivors skips the trial) -----------> +-----------+                     +----------+
         ^                                                                                         |
         +------- hears a higher ballot's proposer, or lost touch with an accept quorum <----------+

Every replica is acceptor and learner; one at a time is the distinguished proposer, the *leader* of the contract. Its
ballot is the contract's `term`. What it shares with every engine is in `core`; its values live beside it: `ballots`,
`slots` (what is accepted), `preparation` (phase 1), `proposer` (phase 2).

**Why it is safe.** A value is chosen in a slot when an accept quorum holds it under one ballot, on disk.
* An acceptor accepts nothing under a ballot below the one it has promised, and both are on disk before it says so.
* Phase 1 asks a quorum that shares an acceptor with every accept quorum. So whatever is chosen under lower ballots is
  reported, and of several reports in a slot the one of the highest ballot is proposed again: by induction no ballot
  above the one it was chosen under ever proposes anything else. A slot that nobody reports can hold nothing chosen.
* So "accepted under ballot b, and b's proposer says that it is chosen" names the chosen value (`_commit_through` walks
  over `matched_index` only, which counts slots of the ballot in force). Under which ballot a replica holds a chosen
  value may differ from replica to replica, and is of no matter.
* An acceptor that knows a slot to be chosen acknowledges any proposal for it and writes nothing: what it holds was
  accepted under a ballot not below the one that chose it, and every such value is the chosen one.
* A candidate that lacks chosen slots which an acceptor has forgotten (a checkpoint took their place) is refused: it
  takes a checkpoint first. The voter with the most chosen slots is refused by nobody for that.

**Reads.** A read index is good once everything that phase 1 has recovered is chosen, which the no-op that opens the
ballot shows (`opening`): what was acknowledged by earlier proposers was chosen, hence recovered, hence before it. That
nobody has been elected since is what a round of heartbeats shows: an accept quorum has promised nothing higher when it
answers, and shares an acceptor with every phase 1. With a lease these acceptors refuse other proposers' phase 1 for
one election timeout, unless the proposer's death is proven or it hands over itself.

**Membership by stop-sign.** A change is proposed when everything before it is chosen, takes effect when it is chosen
itself, and nothing is proposed behind it before. So each slot is decided by one configuration, and each change made for
the configuration in force. A new proposer that recovers a change settles the slots up to it, under the
configuration it knows, and does phase 1 again behind it, under the new one.

**Acceptors that may have forgotten.** A *damaged* one (repair) promises nothing, hence no phase 1 counts it, until the
proposer of a complete phase 1 has seen it accept (or be past) everything up to the last slot it had proposed when it
first heard from it: under lower ballots nothing else was chosen or ever can be, for that phase 1 would have found it.
A *suspect* one (weak durability, after a power cut) promises, but then phase 1 needs every voter: whatever is left on
any disk is found. It stops being suspect when it holds everything up to the opening of a ballot that began later.

Sources: Lamport, "Paxos Made Simple" (2001) and "The Part-Time Parliament" (1998); Howard, Malkhi, Spiegelman,
"Flexible Paxos" (2016); Lamport, Malkhi, Zhou, "Reconfiguring a State Machine" (2010), for the stop-sign.
"""

from __future__ import annotations

from zcluster.consensus import ballots, quorum
from zcluster.consensus import membership as members
from zcluster.consensus.api import (
    Accept,
    Accepted,
    ConfigChange,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Prepare,
    Promised,
    Recovered,
    Rejected,
    Settings,
    TimeoutNow,
    TrialPrepare,
    TrialPromise,
)
from zcluster.consensus.core import CANDIDATE, FOLLOWER, LEADER, PRE_CANDIDATE, Core
from zcluster.consensus.election import Uniform, Votes
from zcluster.consensus.leadership import Leadership
from zcluster.consensus.preparation import Preparation
from zcluster.consensus.proposer import Proposer
from zcluster.consensus.slots import Slots, SlotWrites
from zcluster.errors import Busy
from zcluster.types import (
    KIND_CONFIG,
    KIND_FRAMES,
    KIND_NOOP,
    NEVER,
    NO_REPLICA,
    Configuration,
    Entry,
    Index,
    Nanoseconds,
    ReplicaId,
    Term,
)


class Paxos(Core):
    """One replica's part in one replicated log; fulfils `api.Consensus`.

    term: the promised ballot. matched_index: every slot up to it is accepted under that ballot, or known to be chosen.
    preparation: phase 1 of the own ballot, while it lasts. heard_of: the highest ballot known to exist.
    """

    log: Slots
    writes: SlotWrites
    leadership: Proposer | None

    def __init__(
        self,
        replica_id: ReplicaId,
        incarnation: int,
        settings: Settings,
        recovered: Recovered,
        rng: Uniform,
        now: Nanoseconds,
    ) -> None:
        slots = Slots.recover(recovered.snapshot, recovered.entries)
        writes = SlotWrites(recovered.hard_state)
        super().__init__(replica_id, incarnation, settings, recovered, slots, writes, rng, now)
        assert slots.highest_ballot <= self.term, "a ballot is on disk that was never promised"
        if slots.base_term > self.term:  # a checkpoint came from a replica that had promised more
            self._set_hard_state(slots.base_term, ballots.proposer_of(slots.base_term))
        self._offered: set[ReplicaId] = set()
        self._told: tuple[Term, Index] = (0, 0)  # what that ballot's proposer calls chosen, whether it is here or not
        self._unsealed: Index = 0  # a change that was not sealed when the own phase 2 ended
        self.preparation: Preparation | None = None
        self.heard_of = self.term
        self._commit_through(min(recovered.chosen, slots.last_index))
        self._match()
        # A change that was chosen, though this replica does not know it, made others voters.
        known = [self.membership.current, *members.configurations_in(slots.held_after(self.commit_index))]
        self._begin(recovered, alone=all(configuration.voters == (self.id,) for configuration in known))

    # -- inputs -------------------------------------------------------------------------------------------------------

    def propose(self, data: bytes, now: Nanoseconds) -> tuple[Index, Term]:
        self._observe(now)
        proposer = self._check_open()
        self._check_room(proposer, len(data))
        return self._append(proposer, KIND_FRAMES, data), self.term

    def propose_config(self, change: ConfigChange, now: Nanoseconds) -> Index:
        self._observe(now)
        proposer = self._check_open()
        if self.commit_index < proposer.term_start:
            raise Busy("the proposer has not chosen anything yet; retry")
        index = self.log.last_index + 1
        configuration = members.changed(self.membership.current, change, index)
        proposer.check_prudent(change, configuration, self.promise, self.now)
        proposer.stop(index)
        proposer.change_waits = members.encode(configuration)
        self._propose_change(proposer)
        return index

    def _propose_change(self, proposer: Proposer) -> None:
        """Once everything before it is chosen. Were a slot before it lost, a later proposer might put another change
        there, and find this one behind it: made for a configuration that is not in force any more."""
        if proposer.change_waits and self.commit_index == self.log.last_index:
            self._append(proposer, KIND_CONFIG, proposer.change_waits)
            proposer.change_waits = b""

    def persisted(self, seq: int, now: Nanoseconds) -> None:
        self._observe(now)
        self.writes.persisted(seq)
        preparation, proposer = self.preparation, self.leadership
        if proposer is not None:
            self._note_sound(proposer.term, proposer.opening, self.writes.durable_index)
            self._maybe_commit(proposer)
        elif preparation is not None and self.writes.durable_hard_state.term == preparation.ballot:
            preparation.votes.count(self.id, True, self._is_suspect())
            self._maybe_lead(preparation)

    def snapshot_status(self, replica: ReplicaId, ok: bool, now: Nanoseconds) -> None:
        self._offered.discard(replica)
        super().snapshot_status(replica, ok, now)

    # -- who may speak ------------------------------------------------------------------------------------------------

    def _check_open(self) -> Proposer:
        """The own phase 2, open for new values."""
        self._check_proposable()
        proposer = self.leadership
        assert proposer is not None
        if not proposer.opening or proposer.stop_at > self.commit_index:
            raise Busy("a membership change is not chosen yet; retry")
        return proposer

    def _may_stand(self) -> bool:
        return self.id in self.membership.current.voters

    def _is_bound(self, candidate: ReplicaId) -> bool:
        """A proposer lives, as far as this replica knows: nobody else gets a promise. It may itself want a higher
        ballot: it has given up the lower one, and with it the lease that the promise is for."""
        return self.is_leader or (self.promise.binds(self.now) and self.promise.leader != candidate)

    def _lets_go(self, transfer: Term) -> bool:
        """Whether the proposer of ballot `transfer`, which has ended its lease to hand over, is the last one that this
        replica may have promised its patience."""
        known = not self.is_leader and self.promise.leader != NO_REPLICA
        return (self.promise.term if known else self.term) <= transfer

    def _is_suspect(self) -> bool:
        return self.suspect_after >= 0

    def _note_sound(self, ballot: Term, opening: Index, held: Index) -> None:
        """Everything that phase 1 of a later ballot recovered is here again."""
        if 0 <= self.suspect_after < ballot and 0 < opening <= held:
            self.suspect_after = -1
            self.writes.sound()

    def _next_ballot(self) -> Term:
        return ballots.ballot(ballots.number_of(max(self.term, self.heard_of)) + 1, self.id)

    def _prepare_quorum(self) -> int:
        return ballots.prepare_quorum(len(self.membership.current.voters), self.settings.accept_quorum)

    # -- roles --------------------------------------------------------------------------------------------------------

    def _become_follower(self, term: Term) -> None:
        before = self.term
        if self.leadership is not None:
            self._unsealed = self.leadership.change or self._unsealed
        self._lay_down()
        if term > self.term:
            self._set_hard_state(term, ballots.proposer_of(term))
            self.leader = NO_REPLICA
        self._match(0 if term > before else self.matched_index)
        self.role = FOLLOWER
        self.preparation = None
        self.votes = Votes()
        self._settle_election_deadline()

    def _ask_for_support(self) -> None:
        """Whether a quorum would promise; where nobody needs to be asked, begin phase 1."""
        if self._goes_first():
            self._prepare()
            return
        self.role = PRE_CANDIDATE
        self.leader = NO_REPLICA
        self.preparation = None
        self.election_at = self.now + self.patience.retry(pre_vote=True)
        self.votes = Votes()
        request = TrialPrepare(self._next_ballot(), self.commit_index, self.log.highest, self.promise.certificate())
        self._broadcast(self._outbox.messages, request)
        self._count_trial(self.id, True, self._is_suspect())

    def _goes_first(self) -> bool:
        """With proof that the proposer of the present ballot is dead, the first of the survivors disturbs nobody (and
        so does the first of all at the creation of a cluster)."""
        dead = self.promise.certificate() is not None and self.promise.term == self.term
        first = self.promise.rank(self.id, self.membership.current.voters, self.incarnations) == 0
        return first and self.patience.attempts == 1 and (dead or self.term == 0)

    def _stand_at_once(self) -> None:
        self._prepare(transfer=self.term)

    def _prepare(self, *, transfer: Term = 0) -> None:
        """Begin phase 1. The requests leave, and the own promise counts, once the ballot is on disk."""
        assert self._may_stand() and not self.repair
        self._set_hard_state(self._next_ballot(), self.id)
        self._match()
        self.role = CANDIDATE
        self.leader = NO_REPLICA
        self.votes = Votes()
        self.patience.attempts = max(self.patience.attempts, 1)
        self.election_at = self.now + self.patience.retry(pre_vote=False)
        certificate = self.promise.certificate()
        self.preparation = Preparation(
            self.term, self.commit_index + 1, self.log, certificate=certificate, transfer=transfer
        )
        self._broadcast(self._outbox.after_persist, self.preparation.request())

    def _count_trial(self, voter: ReplicaId, granted: bool, suspect: bool) -> None:
        self.votes.count(voter, granted, suspect)
        result = self.votes.result(self.membership.current.voters, self._prepare_quorum())
        if result == quorum.LOST:
            self.role = FOLLOWER
            self.votes = Votes()
        elif result == quorum.WON:
            self._prepare()

    def _maybe_lead(self, preparation: Preparation) -> None:
        """Phase 1 may be complete."""
        result = preparation.result(self.membership.current.voters, self._prepare_quorum())
        if result == quorum.WON:
            self.preparation = None
            if self.leadership is None:
                self._become_leader()
            self._recover(preparation.values(self.log))
        elif result == quorum.LOST and self.leadership is None:
            self.role = FOLLOWER
            self.preparation = None

    def _become_leader(self) -> None:
        self.role = LEADER
        self.is_leader = True
        self.leader = self.id
        self.patience.settle()
        self.election_at = NEVER
        self.writes.begin_ballot(self.commit_index)
        self.leadership = Proposer(self.id, self.term, self.settings, self.log, self.membership, self.writes)
        self.leadership.sync_members(self.incarnations, self.now)
        for progress in self.leadership.progress.values():
            progress.next_index = self.commit_index + 1
        self._open_round(self.leadership)

    def _recover(self, values: list[Entry]) -> None:
        """Propose what phase 1 found, and open the ballot behind it, unless a change of the configuration stops it."""
        proposer = self.leadership
        assert proposer is not None
        if values:
            self._accept(values)
            proposer.replication_due = True
        if values and values[-1].kind == KIND_CONFIG:
            self.log.part_at(values[-1].index)
            proposer.stop(values[-1].index)
        else:
            proposer.open(self._append(proposer, KIND_NOOP, b""))

    def _append(self, proposer: Proposer, kind: int, data: bytes) -> Index:
        """Propose a new value in the next slot; the own acceptor accepts it with the next write."""
        entry = Entry(self.log.last_index + 1, self.term, kind, data)
        assert not self.log.scattered, "slots beyond a gap were not recovered"
        self.log.append(entry)
        self.writes.accepted((entry,))
        proposer.replication_due = True
        return entry.index

    def _refuse(self, sender: ReplicaId) -> None:
        self._outbox.after_persist.append((sender, Rejected(self.term)))

    # -- phase 1 ------------------------------------------------------------------------------------------------------

    def _handle_trial_prepare(self, sender: ReplicaId, message: TrialPrepare) -> None:
        granted = (
            # A higher number, not only a higher id: whoever is promised one already is given time for its phase 1.
            ballots.number_of(message.term) > ballots.number_of(self.term)
            and not self.repair
            and not self._is_bound(sender)
            and not self._leaves_behind(sender, message.commit_index + 1)
        )
        if granted and self.patience.hurried:
            self._give_way_to(sender, message)
        suspect = granted and self._is_suspect()
        self._outbox.messages.append((sender, TrialPromise(message.term, granted, self.term, suspect)))

    def _leaves_behind(self, candidate: ReplicaId, first: Index) -> bool:
        """Whether the candidate lacks chosen values that are forgotten here. It is sent the checkpoint that has them,
        if nobody leads who would do it: what is chosen is chosen, whoever tells."""
        if first > self.log.base_index:
            return False
        if self.leader == NO_REPLICA and self.snapshot is not None and candidate not in self._offered:
            self._offered.add(candidate)
            self._outbox.messages.append((candidate, InstallSnapshot(self.term, self.snapshot)))
        return True

    def _give_way_to(self, sender: ReplicaId, message: TrialPrepare) -> None:
        """Two survivors with the same proof would outbid each other: the more complete goes first, or the lower id."""
        mine = (self.commit_index, self.log.highest, -self.id)
        if self.role != CANDIDATE and (message.commit_index, message.last_index, -sender) > mine:
            self.role, self.votes = FOLLOWER, Votes()
            self.election_at = max(self.election_at, self.now + self.patience.give_way())

    def _handle_trial_promise(self, sender: ReplicaId, message: TrialPromise) -> None:
        self.heard_of = max(self.heard_of, message.promised)
        if self.role == PRE_CANDIDATE and ballots.proposer_of(message.term) == self.id and message.term > self.term:
            self._count_trial(sender, message.granted, message.suspect)

    def _handle_prepare(self, sender: ReplicaId, message: Prepare) -> None:
        bound = self._is_bound(sender) and not self._lets_go(message.transfer)
        behind = self._leaves_behind(sender, message.first)
        refused = (
            ballots.proposer_of(message.term) != sender
            or message.term < self.term
            or (message.term > self.term and bound)
            or self.repair
        )
        if refused or behind:
            more_from = self.log.first_index if behind else 0
            refusal = Promised(message.term, False, self.term, message.first, (), more_from)
            self._outbox.after_persist.append((sender, refusal))
            return
        if message.term > self.term:
            self._become_follower(message.term)
            if self._may_stand():
                self.election_at = self.now + self.patience.timeout()
        self._outbox.after_persist.append((sender, self._report(message)))

    def _report(self, message: Prepare) -> Promised:
        """What is accepted from `first` on and not known to the proposer, as much as fits."""
        entries: list[Entry] = []
        more_from, room = 0, self.settings.batch_bytes_max
        for entry in self.log.held_after(message.first - 1):
            if entry.index <= message.held_index and entry.epoch <= message.held_ballot:
                continue
            room -= len(entry.data)
            if room < 0 and entries:
                more_from = entry.index
                break
            entries.append(entry)
        suspect = self._is_suspect()
        return Promised(message.term, True, self.term, message.first, tuple(entries), more_from, suspect)

    def _handle_promised(self, sender: ReplicaId, message: Promised) -> None:
        preparation = self.preparation
        if preparation is None or message.term != preparation.ballot:
            return
        if not message.granted:
            self.heard_of = max(self.heard_of, message.promised)
            if self.leadership is None:
                preparation.votes.count(sender, False, False)
            elif message.more_from > preparation.first:
                self._become_follower(self.term)  # others know more of what is chosen, and of who the voters are
                return
        elif not _are_configurations_sane(message.entries):
            return
        elif preparation.report(sender, message):
            self.election_at = max(self.election_at, self.now + self.patience.timeout())
            self._outbox.messages.append((sender, preparation.request(sender)))
            return
        self._maybe_lead(preparation)

    def _handle_rejected(self, sender: ReplicaId, message: Rejected) -> None:
        """A higher ballot is promised there: this one cannot be relied upon any more."""
        self.heard_of = max(self.heard_of, message.term)
        if message.term > self.term and self.role in (CANDIDATE, LEADER):
            self._become_follower(self.term)
            if self._may_stand():
                self.patience.attempts += 1
                self.election_at = self.now + self.patience.retry(pre_vote=True)

    # -- phase 2: the acceptor ----------------------------------------------------------------------------------------

    def _follow(self, sender: ReplicaId, term: Term) -> bool:
        return ballots.proposer_of(term) == sender and super()._follow(sender, term)

    def _handle_accept(self, sender: ReplicaId, message: Accept) -> None:
        if not self._follow(sender, message.term):
            return
        first = message.first
        # What is chosen is held already, under a ballot that will do; so is what came twice.
        new = max(self.commit_index + 1 - first, 0)
        while new < len(message.entries) and self.log.ballot(first + new) == self.term:
            new += 1
        if new < len(message.entries):
            entries = message.entries[new:] if new else message.entries
            if not _are_configurations_sane(entries):
                return
            self._accept(entries)
        self._match(self.matched_index)
        # A message that was overtaken may bring what an earlier one has called chosen. Whoever acknowledges a seal
        # knows of the change before it, on disk.
        self._told = max(self._told, (self.term, message.commit_index))
        self._commit_through(min(self._told[1], self.matched_index))
        self._note_sound(message.term, message.opening, self.matched_index)
        self._acknowledge(sender, first, first + len(message.entries) - 1)

    def _accept(self, entries: tuple[Entry, ...] | list[Entry]) -> None:
        self.log.accept(entries)
        self.writes.accepted(entries)

    def _match(self, from_: Index = 0) -> None:
        """Walk on over what is accepted under the promised ballot."""
        index = max(from_, self.commit_index)
        log, ballot = self.log, self.term
        while log.term(index + 1) == ballot:
            index += 1
        self.matched_index = index

    def _acknowledge(self, proposer: ReplicaId, first: Index, last: Index) -> None:
        """Everything accepted will be on disk once the next Ready's `seq` is. One reply serves a turn."""
        through, box = self.matched_index, self._outbox.after_persist
        missing = through < first - 1
        if last < first or last <= through:
            first = last = 0
            if not missing and box and box[-1][0] == proposer:
                before = box[-1][1]
                if type(before) is Accepted and before.term == self.term and not before.last and not before.missing:
                    box.pop()
        box.append((proposer, Accepted(self.term, through, first, last, missing, self.repair)))

    def _handle_install_snapshot(self, sender: ReplicaId, message: InstallSnapshot) -> None:
        """The checkpoint's file is complete and synced here; take it over unless more is chosen here already. It need
        not come from the proposer."""
        meta = message.meta
        follows = ballots.proposer_of(message.term) == sender and self._follow(sender, message.term)
        if self.is_leader:
            return  # phase 1 has found whatever it is in there
        if meta.epoch > self.term or self.role != FOLLOWER:
            self._become_follower(max(meta.epoch, self.term))  # a phase 1 from an earlier slot on is void
        if meta.index > self.commit_index:
            self.log.install(meta.index, meta.epoch)
            self.writes.covered(meta, self.log.held_after(meta.index))
            self.membership.replaced(meta.index, meta.configuration)
            self.snapshot = meta
            self.commit_index = self.handed_index = meta.index
            self.writes.chosen(meta.index)
            self._match(self.matched_index)
            self._configuration_in_force()
        if follows:
            self._acknowledge(sender, 0, 0)

    def _commit_through(self, index: Index) -> None:
        """Slots up to `index` are chosen, and the chosen values are here. Changes among them take effect."""
        before = self.commit_index
        if index <= before:
            return
        self.commit_index = index
        self.writes.chosen(index)
        changes: list[Configuration] = []
        for slot in range(before + 1, index + 1):
            entry = self.log.get(slot)
            assert entry is not None
            if entry.kind == KIND_CONFIG:
                changes.append(members.decode(entry))
        if changes:
            self.membership.appended(changes)
            self._configuration_in_force()

    # -- phase 2: the proposer ----------------------------------------------------------------------------------------

    def _handle_accepted(self, sender: ReplicaId, message: Accepted) -> None:
        if message.term != self.term or self._answered(sender, message.term) is None:
            return
        proposer = self.leadership
        assert proposer is not None
        if proposer.handle_accepted(sender, message, self.now):
            self._maybe_commit(proposer)
            if sender == proposer.transfer_to:
                proposer.maybe_finish_transfer(self._outbox.messages)

    def _maybe_commit(self, leadership: Leadership) -> None:
        proposer = self.leadership
        assert proposer is leadership and proposer is not None
        index = proposer.chosen_index()
        if index > self.commit_index:
            self._commit_through(index)
            proposer.committed(self.now)
            self._propose_change(proposer)
            if 0 < proposer.stop_at <= self.commit_index:
                proposer.stop_at = 0
                if proposer.opening:
                    proposer.seal = self._append(proposer, KIND_NOOP, b"")
                else:
                    self._prepare_behind()
        if proposer.seal and proposer.is_sealed() and not self._may_stand():
            self._retire(proposer)

    def _may_hand_out(self) -> Index:
        proposer = self.leadership
        change = proposer.change if proposer is not None else 0
        if self._unsealed >= self.commit_index:  # with something chosen behind it, others have sealed it
            change = min(change or self._unsealed, self._unsealed)
        return min(self.commit_index, change - 1) if change else self.commit_index

    def _prepare_behind(self) -> None:
        """The change that phase 1 found is chosen: do it again behind it, with the acceptors of the new configuration.
        The ballot is the same one, and on disk."""
        self.preparation = preparation = Preparation(self.term, self.commit_index + 1, self.log)
        self._broadcast(self._outbox.messages, preparation.request())
        preparation.votes.count(self.id, True, self._is_suspect())
        self._maybe_lead(preparation)

    def _open_round(self, leadership: Leadership) -> None:
        super()._open_round(leadership)
        preparation = self.preparation
        if preparation is not None and self.leadership is leadership:
            for voter in self.membership.current.voters:
                if voter != self.id and voter not in preparation.votes:
                    self._outbox.messages.append((voter, preparation.request(voter)))


def _are_configurations_sane(entries: tuple[Entry, ...]) -> bool:
    try:
        members.configurations_in(entries)
    except ValueError:
        return False
    return True


Paxos.handlers = {
    TrialPrepare: Paxos._handle_trial_prepare,
    TrialPromise: Paxos._handle_trial_promise,
    Prepare: Paxos._handle_prepare,
    Promised: Paxos._handle_promised,
    Accept: Paxos._handle_accept,
    Accepted: Paxos._handle_accepted,
    Rejected: Paxos._handle_rejected,
    Heartbeat: Paxos._handle_heartbeat,
    HeartbeatReply: Paxos._handle_heartbeat_reply,
    InstallSnapshot: Paxos._handle_install_snapshot,
    TimeoutNow: Paxos._handle_timeout_now,
}
