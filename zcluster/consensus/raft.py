"""Raft: roles and handlers.

                       times out              pre-votes of a majority         votes of a majority
    +----------+    +-----------+      +---------------+      +-----------+      +--------+
    | follower | -> | (silence) |  ->  | pre_candidate |  ->  | candidate |  ->  | leader |
    +----------+    +-----------+      +---------------+      +-----------+      +--------+
         ^                 TimeoutNow skips the pre-vote ------->   |                 |
         +--- hears a leader, a higher term, or lost touch with the majority <--------+

One class, because it is one protocol; its values live beside it: `log`, `writes`, `leadership` (with `progress` and
`reads`), `membership`, `election` (promise, patience), `quorum` (arithmetic). How to drive it: the package's manual.

Does not live here: clocks, disks, sockets, encoding (but for configuration entries).
Threads: none; the caller owns the object.
Sources: the Raft paper (§) and Ongaro's thesis ("thesis §").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from zcluster.consensus import membership as members
from zcluster.consensus import quorum
from zcluster.consensus.api import (
    AnyMessage,
    AppendReply,
    AppendRequest,
    ConfigChange,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    PreVoteReply,
    PreVoteRequest,
    Ready,
    Recovered,
    Settings,
    Status,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from zcluster.consensus.election import Patience, Promise, Uniform, Votes
from zcluster.consensus.leadership import Leadership
from zcluster.consensus.log import Log
from zcluster.consensus.membership import REPLICA_ID_MAX, Membership
from zcluster.consensus.outbox import Box, Outbox
from zcluster.consensus.validate import is_sane
from zcluster.consensus.writes import Writes
from zcluster.errors import Busy, InvalidInput, NotLeader
from zcluster.types import (
    KIND_CONFIG,
    KIND_FRAMES,
    KIND_NOOP,
    NEVER,
    NO_REPLICA,
    Configuration,
    Entry,
    HardState,
    Index,
    Nanoseconds,
    ReplicaId,
    SnapshotMeta,
    Term,
)

FOLLOWER: Final = "follower"
PRE_CANDIDATE: Final = "pre_candidate"
CANDIDATE: Final = "candidate"
LEADER: Final = "leader"
LEARNER: Final = "learner"  # only in Status: a follower that has no vote

COMMITTED_BATCHES_MAX: Final = 4
"""Committed entries of one Ready, in units of `batch_bytes_max`."""


class Raft:
    """One replica's part in one replicated log; fulfils `api.Consensus`.

    handed_index: last committed entry that a Ready gave out. matched_index: last entry known to agree with the leader
    of this term. leader_incarnation: that of `leader`, as a follower knows it. leadership: set while this one leads.
    """

    def __init__(
        self,
        replica_id: ReplicaId,
        incarnation: int,
        settings: Settings,
        recovered: Recovered,
        rng: Uniform,
        now: Nanoseconds,
    ) -> None:
        assert 1 <= replica_id <= REPLICA_ID_MAX
        self.id = replica_id
        self.incarnation = incarnation
        self.settings = settings
        self.now = now
        snapshot = recovered.snapshot
        self.snapshot = snapshot
        self.log = Log.recover(snapshot, recovered.entries)
        assert self.log.last_term <= recovered.hard_state.term, "the log is ahead of the term on disk"
        self.term: Term = recovered.hard_state.term
        self.voted_for: ReplicaId = recovered.hard_state.voted_for
        self.writes = Writes(recovered.hard_state, self.log.last_index)
        base = snapshot.configuration if snapshot else recovered.configuration
        self.membership = Membership(base)
        self.commit_index: Index = snapshot.index if snapshot else 0
        self.handed_index: Index = self.commit_index
        self.repair = recovered.repair
        self.suspect_after: Term = -1 if recovered.suspect_after is None else recovered.suspect_after

        self.role: str = FOLLOWER
        self.is_leader = False
        self.leader: ReplicaId = NO_REPLICA
        self.leader_incarnation = 0
        self.matched_index: Index = 0
        self.incarnations: dict[ReplicaId, int] = {}
        self.promise = Promise()
        self.patience = Patience(rng, settings.election_timeout)
        self.votes = Votes()
        self.quorum_time: Nanoseconds = 0
        self.quorum_commit: Index = 0

        self.leadership: Leadership | None = None
        self.election_at: Nanoseconds = NEVER

        self._outbox = Outbox()
        self._reported_configuration = base

        first = self.log.first_index if snapshot is None else max(self.log.first_index, snapshot.index + 1)
        self.membership.appended(members.configurations_in(self.log.tail(first)))
        self._settle_election_deadline()
        first_of_all = recovered.bootstrap and self.term == 0 and self.id == min(base.voters, default=0)
        if first_of_all or self.membership.always_alone(self.id):
            self.patience.hurried = True
            self.election_at = now
        elif recovered.hold_votes:
            self.promise.hold(min(now, recovered.stopped_at) + settings.election_timeout)
            self.patience.hurried = True  # perhaps everybody was restarted; a leader, if there is one, is heard first
            if self.election_at < NEVER:
                self.election_at = max(now, self.promise.until) + self._by_rank()

    # -- inputs -------------------------------------------------------------------------------------------------------

    def step(self, sender: ReplicaId, incarnation: int, message: AnyMessage, now: Nanoseconds) -> None:
        """One message of a peer; whatever makes no sense is dropped, never raised."""
        self._observe(now)
        handler = _HANDLERS.get(type(message))
        if handler is None or not self._admit(sender, incarnation) or not is_sane(message):
            return
        handler(self, sender, message)

    def propose(self, data: bytes, now: Nanoseconds) -> tuple[Index, Term]:
        self._observe(now)
        leadership = self._check_proposable()
        waiting = leadership.waiting_bytes(self.commit_index)
        if waiting and waiting + len(data) > self.settings.uncommitted_bytes_max:
            raise Busy(f"{waiting} bytes wait for disks (uncommitted_bytes_max); retry")
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
        self.log.append(Entry(index, self.term, KIND_CONFIG, members.encode(configuration)))
        self.membership.appended([configuration])
        self._configuration_in_force()
        return index

    def read_barrier(self, token: int, now: Nanoseconds, *, lease: bool = False) -> None:
        self._observe(now)
        leadership = self._check_leader()
        if lease and self.commit_index >= leadership.term_start and leadership.lease_holds(self.now):
            self._outbox.reads.append((token, self.commit_index))
        else:
            leadership.rounds.waiting.append(token)

    def bounded_index(self, now: Nanoseconds, bound: Nanoseconds) -> Index | None:
        self._observe(now)
        leadership = self.leadership
        if leadership is not None and leadership.is_alone() and self.commit_index >= leadership.term_start:
            return self.commit_index
        if self.quorum_commit == 0 or self.now - self.quorum_time > bound:
            return None
        return self.quorum_commit

    def persisted(self, seq: int, now: Nanoseconds) -> None:
        self._observe(now)
        self.writes.persisted(seq)
        if self.leadership is not None:
            self._maybe_commit(self.leadership)
        elif self.role == CANDIDATE and self.id not in self.votes:
            durable = self.writes.durable_hard_state
            if durable.term == self.term and durable.voted_for == self.id:
                self._count_vote(self.id, True, self.log.last_term <= self.suspect_after)

    def compacted(self, meta: SnapshotMeta) -> None:
        assert meta.index <= self.handed_index, "a checkpoint of entries that were never given out"
        if self.snapshot is not None and meta.index <= self.snapshot.index:
            return
        self.snapshot = meta
        self.log.compact(meta.index, self.settings.retained_bytes_max)
        self.membership.compacted(self.log.base_index)

    def snapshot_status(self, replica: ReplicaId, ok: bool, now: Nanoseconds) -> None:
        self._observe(now)
        if self.leadership is not None:
            self.leadership.handle_snapshot_status(replica, ok, self.now)

    def transfer_leadership(self, to: ReplicaId, now: Nanoseconds) -> None:
        self._observe(now)
        leadership = self._check_leader()
        target = to or leadership.best_successor(self.promise)
        if target in (NO_REPLICA, self.id) or target not in self.membership.current.voters:
            raise InvalidInput(f"leadership cannot go to replica {target}: it must be another voter")
        leadership.start_transfer(self._outbox.messages, target, self.now)

    def peer_lost(self, replica: ReplicaId, incarnation: int, now: Nanoseconds) -> None:
        self._observe(now)
        if replica == self.id or not 1 <= replica <= REPLICA_ID_MAX or incarnation < 0:
            return
        self.promise.exited(replica, incarnation)
        if self.leadership is not None:
            self.leadership.handle_peer_lost(replica, incarnation, self.now)
            return
        if self.leader == replica and self.leader_incarnation <= incarnation:
            self.leader = NO_REPLICA
        promise = self.promise
        led = promise.leader == replica and promise.term == self.term and promise.certificate() is not None
        # A candidate that dies with our vote leaves nobody to wait for either.
        chosen = self.voted_for == replica and promise.is_dead(replica, self.incarnations.get(replica, 0))
        if self.leader == NO_REPLICA and (led or chosen) and self.role != CANDIDATE and self._may_stand():
            self.patience.hurried = True
            self.election_at = min(self.election_at, self.now + self._by_rank())

    def deadline(self, now: Nanoseconds) -> None:
        self._observe(now)
        leadership = self.leadership
        if leadership is None:
            if self.now >= self.election_at:
                self._campaign()
            return
        if self.now >= leadership.check_at and not self._check_quorum(leadership):
            return
        if leadership.round_due(self.now, self.commit_index):
            self._open_round(leadership)

    def next_deadline(self) -> Nanoseconds:
        return self.election_at if self.leadership is None else self.leadership.next_deadline()

    # -- outputs ------------------------------------------------------------------------------------------------------

    def ready(self) -> Ready | None:
        leadership = self.leadership
        if leadership is not None:
            if leadership.rounds.reads_due and self.commit_index >= leadership.term_start:
                self._open_round(leadership)
            if leadership.replication_due:
                leadership.replicate(self._outbox.messages, self.commit_index, self.snapshot, self.now)
        write = self.writes.take(self.log)
        committed: list[Entry] = []
        if self.handed_index < self.commit_index:
            bytes_max = COMMITTED_BATCHES_MAX * self.settings.batch_bytes_max
            committed = self.log.slice(self.handed_index + 1, self.commit_index + 1, bytes_max)
            self.handed_index = committed[-1].index
        configuration = None
        if self.membership.current is not self._reported_configuration:
            configuration = self._reported_configuration = self.membership.current
        outbox = self._outbox
        if write is None and configuration is None and not committed and not outbox:
            return None
        self._outbox = Outbox()
        return outbox.ready(self.writes.seq, write, committed, configuration)

    def status(self) -> Status:
        current = self.membership.current
        leadership = self.leadership
        return Status(
            role=LEARNER if self.role == FOLLOWER and self.id in current.learners else self.role,
            term=self.term,
            leader=self.leader,
            commit_index=self.commit_index,
            last_index=self.log.last_index,
            first_index=self.log.first_index,
            configuration=current,
            match_index=leadership.match_index() if leadership is not None else {},
            repair=self.repair,
            term_started_committed=leadership is not None and self.commit_index >= leadership.term_start,
            transfer_to=leadership.transfer_to if leadership is not None else NO_REPLICA,
            active_at=leadership.active_at() if leadership is not None else {},
            suspect=self.log.last_term <= self.suspect_after,
        )

    def configuration_at(self, index: Index) -> Configuration:
        """The configuration after applying `index`, for the checkpoint made there."""
        return self.membership.at(index)

    # -- who may speak ------------------------------------------------------------------------------------------------

    def _observe(self, now: Nanoseconds) -> None:
        self.now = max(self.now, now)

    def _admit(self, sender: ReplicaId, incarnation: int) -> bool:
        """Whether the sender is a living peer; a newer incarnation starts again from nothing at the leader."""
        known = self.incarnations.get(sender, -1)
        if incarnation != known or known < 0:
            if incarnation < known or incarnation < 0 or sender == self.id or not 1 <= sender <= REPLICA_ID_MAX:
                return False
            self.incarnations[sender] = incarnation
            if self.leadership is not None:
                self.leadership.meet(sender, incarnation, self.now)
        return not self.promise.lost or not self.promise.is_dead(sender, incarnation)

    def _may_stand(self) -> bool:
        """A voter, or one whose removal is not committed: only its log may be good enough to win (thesis §4.2.2)."""
        current = self.membership.current
        if self.id in current.voters:
            return True
        return current.index > self.commit_index and self.id in self.membership.at(self.commit_index).voters

    def _check_leader(self) -> Leadership:
        if self.leadership is None:
            raise NotLeader(self.leader, self.term)
        return self.leadership

    def _check_proposable(self) -> Leadership:
        leadership = self._check_leader()
        if leadership.transfer_to:
            raise Busy(f"leadership is being handed to replica {leadership.transfer_to}; retry there")
        return leadership

    def _set_hard_state(self, term: Term, voted_for: ReplicaId) -> None:
        self.term = term
        self.voted_for = voted_for
        self.writes.hard_state = HardState(term, voted_for)

    def _broadcast(self, box: Box, message: AnyMessage) -> None:
        box.extend((voter, message) for voter in self.membership.current.voters if voter != self.id)

    # -- roles --------------------------------------------------------------------------------------------------------

    def _become_follower(self, term: Term) -> None:
        """Of nobody yet. The election deadline moves only where there was none: others' terms must not postpone it."""
        if self.leadership is not None:
            self._outbox.reads_failed.extend(self.leadership.rounds.unanswered())
            self.leadership = None
            self.is_leader = False
            self.leader = NO_REPLICA
        if term > self.term:
            self._set_hard_state(term, NO_REPLICA)
            self.leader = NO_REPLICA
            self.matched_index = 0
        self.role = FOLLOWER
        self.votes = Votes()
        self._settle_election_deadline()

    def _settle_election_deadline(self) -> None:
        if not self._may_stand():
            self.election_at = NEVER
        elif self.election_at == NEVER:
            self.election_at = self.now + self.patience.timeout()

    def _campaign(self) -> None:
        """The election deadline has passed: ask for pre-votes (thesis §9.6)."""
        if not self._may_stand() or self.repair:
            self.election_at = NEVER
            return
        if self.promise.binds(self.now):
            self.election_at = self.promise.until + self._by_rank()
            return
        self.role = PRE_CANDIDATE
        self.leader = NO_REPLICA
        self.patience.attempts += 1
        self.election_at = self.now + self.patience.retry(pre_vote=True)
        self.votes = Votes()
        certificate = self.promise.certificate()
        request = PreVoteRequest(self.term + 1, self.log.last_index, self.log.last_term, certificate)
        self._broadcast(self._outbox.messages, request)
        self._count_vote(self.id, True, self.log.last_term <= self.suspect_after)

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

    def _configuration_in_force(self) -> None:
        """After every change of `membership.current`."""
        if self.leadership is not None:
            self.leadership.sync_members(self.incarnations, self.now)
            self._take_confirmed(self.leadership)
            self._maybe_commit(self.leadership)
        elif not self._may_stand() and self.role != FOLLOWER:
            self._become_follower(self.term)
        else:
            self._settle_election_deadline()

    def _follow(self, sender: ReplicaId, term: Term) -> bool:
        """A message that only a leader sends. Returns whether it is the one of the current term."""
        if term < self.term:
            # It must learn that it was deposed; else a replica whose election failed could never rejoin it.
            self._outbox.after_persist.append((sender, AppendReply(self.term, False, 0, repair=self.repair)))
            return False
        incarnation = self.incarnations[sender]
        if term > self.term or self.leader == NO_REPLICA:
            self._become_follower(term)
            self.leader, self.leader_incarnation = sender, incarnation
            self.patience.settle()
            self.election_at = NEVER
        elif self.leader != sender or self.leader_incarnation != incarnation:
            return False  # two leaders of one term: nonsense
        self.promise.heard(sender, incarnation, term, self.now + self.settings.election_timeout)
        if self._may_stand():
            self.election_at = self.now + self.patience.timeout()
        return True

    def _by_rank(self) -> Nanoseconds:
        rank = self.promise.rank(self.id, self.membership.current.voters, self.incarnations)
        return self.patience.by_rank(rank)

    # -- elections ----------------------------------------------------------------------------------------------------

    def _is_up_to_date(self, message: PreVoteRequest | VoteRequest) -> bool:
        """The election restriction (§5.4.1)."""
        return (message.last_term, message.last_index) >= (self.log.last_term, self.log.last_index)

    def _is_loyal(self) -> bool:
        """A leader lives, as far as this replica knows: nobody else gets a vote (thesis §6.4.1, §9.6)."""
        return self.is_leader or self.promise.binds(self.now)

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

    def _handle_timeout_now(self, sender: ReplicaId, message: TimeoutNow) -> None:
        """Only from the leader of this term, which has ended its lease; an older one is ignored."""
        if message.term == self.term and sender == self.leader and self._may_stand() and not self.repair:
            self._become_candidate(transfer=True)

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
        self.commit_index = max(self.commit_index, min(message.commit_index, match_index))
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

    def _handle_heartbeat(self, sender: ReplicaId, message: Heartbeat) -> None:
        if not self._follow(sender, message.term):
            return
        # Capped once more: a heartbeat for a former life of this replica proves nothing about this log.
        self.commit_index = max(self.commit_index, min(message.commit_index, self.matched_index))
        if message.quorum_commit and self.quorum_time < message.quorum_time <= self.now:
            self.quorum_time, self.quorum_commit = message.quorum_time, message.quorum_commit
        if message.repaired and self.repair and message.incarnation == self.incarnation:
            self.repair = False
            self._outbox.left_repair = True
            self.writes.repaired()
        # Only the term must be on disk first, the promise lives in memory: with a stalled disk it still answers.
        durable = self.writes.durable_hard_state.term == self.term
        box = self._outbox.messages if durable else self._outbox.after_persist
        box.append((sender, HeartbeatReply(self.term, message.round, self.repair)))

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

    def _answered(self, sender: ReplicaId, term: Term) -> Leadership | None:
        """Whose leadership a reply is for: the present one's, or None."""
        if term > self.term:
            self._become_follower(term)
        leadership = self.leadership
        if leadership is None or term != self.term:
            return None
        progress = leadership.progress.get(sender)
        if progress is None:
            return None
        progress.active_at = self.now
        return leadership

    def _handle_append_reply(self, sender: ReplicaId, message: AppendReply) -> None:
        leadership = self._answered(sender, message.term)
        if leadership is None:
            return
        if leadership.handle_append_reply(leadership.progress[sender], message, self.now):
            if message.match_index > self.commit_index:
                self._maybe_commit(leadership)
            if sender == leadership.transfer_to:
                leadership.maybe_finish_transfer(self._outbox.messages)

    def _handle_heartbeat_reply(self, sender: ReplicaId, message: HeartbeatReply) -> None:
        leadership = self._answered(sender, message.term)
        if leadership is not None:
            box = self._outbox.messages
            if leadership.handle_heartbeat_reply(box, sender, message, self.commit_index, self.now):
                self._maybe_commit(leadership)
            self._take_confirmed(leadership)

    def _open_round(self, leadership: Leadership) -> None:
        leadership.open_round(self._outbox.messages, self.commit_index, self.now)
        self._take_confirmed(leadership)

    def _take_confirmed(self, leadership: Leadership) -> None:
        self._outbox.reads.extend(leadership.confirmed_reads())
        confirmed = leadership.rounds.confirmed
        if confirmed is not None and confirmed.commit_index:
            self.quorum_time, self.quorum_commit = confirmed.sent_at, confirmed.commit_index

    def _maybe_commit(self, leadership: Leadership) -> None:
        """By count only entries of the current term (§5.4.2); earlier ones commit with them."""
        index = leadership.majority_index()
        if index <= self.commit_index or self.log.term(index) != self.term:
            return
        self.commit_index = index
        leadership.committed(self.now)
        if self.membership.current.index <= index and not self._may_stand():
            self._retire(leadership)

    def _retire(self, leadership: Leadership) -> None:
        """The configuration without this replica is committed: tell the others and go (thesis §4.2.2)."""
        self._open_round(leadership)
        successor = leadership.best_successor(self.promise)
        if successor:
            leadership.send_timeout_now(self._outbox.messages, successor)
        self._become_follower(self.term)

    def _check_quorum(self, leadership: Leadership) -> bool:
        """Step down when no majority was heard for an election timeout, judged by the time of now (thesis §6.2)."""
        heard_at = leadership.heard_majority_at(self.now)
        if self.now - heard_at >= self.settings.election_timeout:
            self._become_follower(self.term)
            return False
        leadership.check_at = heard_at + self.settings.election_timeout
        return True


_HANDLERS: Final[dict[type, Callable[[Raft, ReplicaId, Any], None]]] = {
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
