"""Raft: roles and handlers.

                       times out              pre-votes of a majority         votes of a majority
    +----------+    +-----------+      +---------------+      +-----------+      +--------+
    | follower | -> | (silence) |  ->  | pre_candidate |  ->  | candidate |  ->  | leader |
    +----------+    +-----------+      +---------------+      +-----------+      +--------+
         ^                 TimeoutNow skips the pre-vote ------->   |                 |
         +--- hears a leader, a higher term, or lost touch with the majority <--------+

What it shares with every engine is in `core`. Its values live beside it: `log`, `writes`, `leadership` (progress and
reads), `membership`, `election` (promise, patience), `quorum` (arithmetic). How to drive it: the package's manual.

Does not live here: clocks, disks, sockets, encoding (but for configuration entries).
Threads: none; the caller owns the object.
Sources: the Raft paper (§) and Ongaro's thesis ("thesis §").
"""

from __future__ import annotations

from zcluster.consensus import membership as members
from zcluster.consensus import quorum
from zcluster.consensus.api import (
    AppendReply,
    AppendRequest,
    ConfigChange,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    PreVoteReply,
    PreVoteRequest,
    Recovered,
    Settings,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from zcluster.consensus.core import CANDIDATE, FOLLOWER, LEADER, PRE_CANDIDATE, Core
from zcluster.consensus.election import Uniform, Votes
from zcluster.consensus.leadership import Leadership
from zcluster.consensus.log import Log
from zcluster.consensus.writes import Writes
from zcluster.errors import Busy
from zcluster.types import (
    KIND_CONFIG,
    KIND_FRAMES,
    KIND_NOOP,
    NEVER,
    NO_REPLICA,
    Entry,
    Index,
    Nanoseconds,
    ReplicaId,
    Term,
)


class Raft(Core):
    """One replica's part in one replicated log; fulfils `api.Consensus`."""

    def __init__(
        self,
        replica_id: ReplicaId,
        incarnation: int,
        settings: Settings,
        recovered: Recovered,
        rng: Uniform,
        now: Nanoseconds,
    ) -> None:
        snapshot = recovered.snapshot
        log = Log.recover(snapshot, recovered.entries)
        assert log.last_term <= recovered.hard_state.term, "the log is ahead of the term on disk"
        writes = Writes(recovered.hard_state, log.last_index)
        super().__init__(replica_id, incarnation, settings, recovered, log, writes, rng, now)
        first = log.first_index if snapshot is None else max(log.first_index, snapshot.index + 1)
        self.membership.appended(members.configurations_in(log.tail(first)))
        self._begin(recovered, alone=self.membership.always_alone(self.id))

    # -- inputs -------------------------------------------------------------------------------------------------------

    def propose(self, data: bytes, now: Nanoseconds) -> tuple[Index, Term]:
        self._observe(now)
        leadership = self._check_proposable()
        self._check_room(leadership, len(data))
        index = self.log.last_index + 1
        self.log.append(Entry(index, self.term, KIND_FRAMES, data))
        leadership.replication_due = True
        return index, self.term

    def propose_config(self, change: ConfigChange, now: Nanoseconds) -> Index:
        self._observe(now)
        leadership = self._check_proposable()
        # Without a current-term commit two leaders could each change the same old configuration (raft-dev, 2015).
        if self.commit_index < leadership.term_start:
            raise Busy("the leader has not committed anything yet; retry")
        if self.membership.current.index > self.commit_index:
            raise Busy("another membership change is not committed yet; retry")
        index = self.log.last_index + 1
        configuration = members.changed(self.membership.current, change, index)
        leadership.check_prudent(change, configuration, self.promise, self.now)
        self.log.append(Entry(index, self.term, KIND_CONFIG, members.encode(configuration)))
        self.membership.appended([configuration])
        self._configuration_in_force()
        return index

    def persisted(self, seq: int, now: Nanoseconds) -> None:
        self._observe(now)
        self.writes.persisted(seq)
        if self.leadership is not None:
            self._maybe_commit(self.leadership)
        elif self.role == CANDIDATE and self.id not in self.votes:
            durable = self.writes.durable_hard_state
            if durable.term == self.term and durable.voted_for == self.id:
                self._count_vote(self.id, True, self.log.last_term <= self.suspect_after)

    def _may_stand(self) -> bool:
        """A voter, or one whose removal is not committed: only its log may be good enough to win (thesis §4.2.2)."""
        current = self.membership.current
        if self.id in current.voters:
            return True
        return current.index > self.commit_index and self.id in self.membership.at(self.commit_index).voters

    # -- roles --------------------------------------------------------------------------------------------------------

    def _become_follower(self, term: Term) -> None:
        """Of nobody yet. The election deadline moves only where there was none: others' terms must not postpone it."""
        self._lay_down()
        if term > self.term:
            self._set_hard_state(term, NO_REPLICA)
            self.leader = NO_REPLICA
            self.matched_index = 0
        self.role = FOLLOWER
        self.votes = Votes()
        self._settle_election_deadline()

    def _ask_for_support(self) -> None:
        """By pre-votes (thesis §9.6)."""
        self.role = PRE_CANDIDATE
        self.leader = NO_REPLICA
        self.election_at = self.now + self.patience.retry(pre_vote=True)
        self.votes = Votes()
        certificate = self.promise.certificate()
        request = PreVoteRequest(self.term + 1, self.log.last_index, self.log.last_term, certificate)
        self._broadcast(self._outbox.messages, request)
        self._count_vote(self.id, True, self.log.last_term <= self.suspect_after)

    def _stand_at_once(self) -> None:
        self._become_candidate(transfer=True)

    def _become_candidate(self, *, transfer: bool = False) -> None:
        """The requests leave, and the own vote counts, once term and vote are on disk."""
        assert self._may_stand() and not self.repair
        self._set_hard_state(self.term + 1, self.id)
        self.role = CANDIDATE
        self.leader = NO_REPLICA
        self.matched_index = 0
        self.votes = Votes()
        self.patience.attempts = max(self.patience.attempts, 1)
        self.election_at = self.now + self.patience.retry(pre_vote=False)
        certificate = self.promise.certificate()
        request = VoteRequest(self.term, self.log.last_index, self.log.last_term, certificate, transfer)
        self._broadcast(self._outbox.after_persist, request)

    def _count_vote(self, voter: ReplicaId, granted: bool, suspect: bool) -> None:
        self.votes.count(voter, granted, suspect)
        result = self.votes.result(self.membership.current.voters)
        if result == quorum.LOST:
            self.role = FOLLOWER
            self.votes = Votes()
        elif result == quorum.WON and self.role == PRE_CANDIDATE:
            self._become_candidate()
        elif result == quorum.WON:
            self._become_leader()

    def _become_leader(self) -> None:
        self.role = LEADER
        self.is_leader = True
        self.leader = self.id
        self.votes = Votes()
        self.patience.settle()
        self.election_at = NEVER
        self.leadership = Leadership(self.id, self.term, self.settings, self.log, self.membership, self.writes)
        self.leadership.sync_members(self.incarnations, self.now)
        self.log.append(Entry(self.leadership.term_start, self.term, KIND_NOOP, b""))
        self._open_round(self.leadership)

    def _commit_through(self, index: Index) -> None:
        self.commit_index = max(self.commit_index, index)

    def _refuse(self, sender: ReplicaId) -> None:
        self._outbox.after_persist.append((sender, AppendReply(self.term, False, 0, repair=self.repair)))

    # -- elections ----------------------------------------------------------------------------------------------------

    def _is_up_to_date(self, message: PreVoteRequest | VoteRequest) -> bool:
        """The election restriction (§5.4.1)."""
        return (message.last_term, message.last_index) >= (self.log.last_term, self.log.last_index)

    def _handle_pre_vote_request(self, sender: ReplicaId, message: PreVoteRequest) -> None:
        granted = message.term > self.term and not self.repair and not self._is_loyal() and self._is_up_to_date(message)
        if granted and self.patience.hurried:
            self._give_way_to(sender, message)
        suspect = granted and message.last_term <= self.suspect_after
        self._outbox.messages.append((sender, PreVoteReply(message.term if granted else self.term, granted, suspect)))

    def _give_way_to(self, sender: ReplicaId, message: PreVoteRequest) -> None:
        """Two survivors with the same proof would split the votes: the longer log goes first, then the lower id."""
        mine = (self.log.last_term, self.log.last_index, -self.id)
        if self.role != CANDIDATE and (message.last_term, message.last_index, -sender) > mine:
            self.role, self.votes = FOLLOWER, Votes()
            self.election_at = max(self.election_at, self.now + self.patience.give_way())

    def _handle_pre_vote_reply(self, sender: ReplicaId, message: PreVoteReply) -> None:
        if not message.granted and message.term > self.term:
            self._become_follower(message.term)
        elif self.role == PRE_CANDIDATE and (not message.granted or message.term == self.term + 1):
            self._count_vote(sender, message.granted, message.suspect)

    def _handle_vote_request(self, sender: ReplicaId, message: VoteRequest) -> None:
        # A transfer's request goes past a promise: its leader ended its own lease, and older leases ended before.
        loyal = self._is_loyal() and not message.transfer
        if message.term > self.term:
            if loyal:
                return  # not even the term is taken over: that would depose the leader
            self._become_follower(message.term)
        granted = (
            message.term == self.term
            and (self.voted_for == sender or (self.voted_for == NO_REPLICA and not loyal))
            and self.leader == NO_REPLICA
            and not self.repair
            and self._is_up_to_date(message)
        )
        if granted:
            if self.voted_for != sender:
                self._set_hard_state(self.term, sender)
            self.role = FOLLOWER
            self.votes = Votes()
            if self._may_stand():
                self.election_at = self.now + self.patience.timeout()
        suspect = granted and message.last_term <= self.suspect_after
        self._outbox.after_persist.append((sender, VoteReply(self.term, granted, suspect)))

    def _handle_vote_reply(self, sender: ReplicaId, message: VoteReply) -> None:
        if message.term > self.term:
            self._become_follower(message.term)
        elif message.term == self.term and self.role == CANDIDATE:
            self._count_vote(sender, message.granted, message.suspect)

    # -- the log: follower's side -------------------------------------------------------------------------------------

    def _handle_append_request(self, sender: ReplicaId, message: AppendRequest) -> None:
        if not self._follow(sender, message.term):
            return
        prev_index, prev_term, entries = message.prev_index, message.prev_term, message.entries
        log = self.log
        if prev_index < self.commit_index:
            # What is committed agrees already (and may be forgotten here): go on behind it.
            entries = entries[self.commit_index - prev_index :]
            prev_index = self.commit_index
            prev_term = log.term(prev_index) or 0
        elif log.term(prev_index) != prev_term:
            self._reject(sender, prev_index, prev_term)
            return
        new = log.first_difference(entries)
        if new < len(entries) and not self._store(entries[new:] if new else entries):
            return
        match_index = prev_index + len(entries)
        self.matched_index = max(self.matched_index, match_index)
        self._commit_through(min(message.commit_index, match_index))
        self._outbox.acknowledge(sender, self.term, match_index, self.repair)

    def _store(self, entries: tuple[Entry, ...]) -> bool:
        """Append `entries`, cutting what conflicts with them. False: they cannot come from an honest leader."""
        last_kept = entries[0].index - 1
        if last_kept < self.commit_index:
            return False
        try:
            configurations = members.configurations_in(entries)
        except ValueError:
            return False
        before = self.membership.current
        if last_kept < self.log.last_index:
            self.log.truncate(last_kept)
            self.writes.truncated(last_kept)
            self.membership.truncated(last_kept)
        self.log.extend(entries)
        self.membership.appended(configurations)
        if self.membership.current is not before:
            self._configuration_in_force()
        return True

    def _reject(self, sender: ReplicaId, prev_index: Index, prev_term: Term) -> None:
        """Say where the logs might agree; what is committed surely does (§5.3)."""
        committed = (self.commit_index, self.log.term(self.commit_index) or 0)
        index, term = max(self.log.last_at_or_below(prev_index, prev_term), committed)
        reply = AppendReply(self.term, False, 0, prev_index, term, index, self.repair)
        self._outbox.after_persist.append((sender, reply))

    def _handle_install_snapshot(self, sender: ReplicaId, message: InstallSnapshot) -> None:
        """The checkpoint's file is complete and synced here; take it over unless the log is ahead of it (§7)."""
        if not self._follow(sender, message.term):
            return
        meta = message.meta
        if meta.index > self.commit_index:
            kept = self.log.term(meta.index) == meta.epoch
            if kept:
                self.log.compact(meta.index, self.settings.retained_bytes_max)
            else:
                self.log.reset(meta.index, meta.epoch)
                self.membership.truncated(0)
            self.writes.installed(meta, kept=kept)
            self.membership.replaced(meta.index, meta.configuration)
            self.snapshot = meta
            self.commit_index = self.handed_index = meta.index
            self.matched_index = max(self.matched_index, meta.index)
            self._configuration_in_force()
        self._outbox.acknowledge(sender, self.term, self.commit_index, self.repair)

    # -- leading ------------------------------------------------------------------------------------------------------

    def _handle_append_reply(self, sender: ReplicaId, message: AppendReply) -> None:
        leadership = self._answered(sender, message.term)
        if leadership is None:
            return
        if leadership.handle_append_reply(leadership.progress[sender], message, self.now):
            if message.match_index > self.commit_index:
                self._maybe_commit(leadership)
            if sender == leadership.transfer_to:
                leadership.maybe_finish_transfer(self._outbox.messages)

    def _maybe_commit(self, leadership: Leadership) -> None:
        """By count only entries of the current term (§5.4.2); earlier ones commit with them."""
        index = leadership.majority_index()
        if index <= self.commit_index or self.log.term(index) != self.term:
            return
        self.commit_index = index
        leadership.committed(self.now)
        if self.membership.current.index <= index and not self._may_stand():
            self._retire(leadership)


Raft.handlers = {
    PreVoteRequest: Raft._handle_pre_vote_request,
    PreVoteReply: Raft._handle_pre_vote_reply,
    VoteRequest: Raft._handle_vote_request,
    VoteReply: Raft._handle_vote_reply,
    AppendRequest: Raft._handle_append_request,
    AppendReply: Raft._handle_append_reply,
    Heartbeat: Raft._handle_heartbeat,
    HeartbeatReply: Raft._handle_heartbeat_reply,
    InstallSnapshot: Raft._handle_install_snapshot,
    TimeoutNow: Raft._handle_timeout_now,
}
