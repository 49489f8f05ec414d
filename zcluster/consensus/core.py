"""What every engine does, whatever it calls its rounds: one replicated log, one leader at a time.

    Raft    a term  and its leader                        an engine adds: how a leader is found (votes; phase 1),
    Paxos   a ballot and its distinguished proposer       and how an entry is stored and counted (append; phase 2)

Here is the rest: who may speak (incarnations, death certificates), promises to a leader, heartbeats and what reads rest
on, handing out what is committed, losing touch with the others, handing leadership over. `term` stands for a ballot,
too; both only grow.

Does not live here: elections, entries on their way to the log, the commit rule.
Threads: none; the caller owns the object.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Final

from zcluster.consensus.api import (
    AnyMessage,
    Heartbeat,
    HeartbeatReply,
    Ready,
    Recovered,
    Settings,
    Status,
    TimeoutNow,
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

Handlers = dict[type, Callable[[Any, ReplicaId, Any], None]]


class Core(ABC):
    """One replica's part in one replicated log; with what an engine adds it fulfils `api.Consensus`.

    handed_index: last committed entry that a Ready gave out. matched_index: up to here the log is known to agree with
    that of this term's leader. leader_incarnation: that of `leader`, as a follower knows it. leadership: set while
    this one leads.
    """

    handlers: ClassVar[Handlers]
    """What to do with each kind of message; any other is dropped."""

    def __init__(
        self,
        replica_id: ReplicaId,
        incarnation: int,
        settings: Settings,
        recovered: Recovered,
        log: Log,
        writes: Writes,
        rng: Uniform,
        now: Nanoseconds,
    ) -> None:
        """The engine has made `log` and `writes` of what was recovered, and calls `_begin` when it is ready."""
        assert 1 <= replica_id <= REPLICA_ID_MAX
        self.id = replica_id
        self.incarnation = incarnation
        self.settings = settings
        self.now = now
        snapshot = recovered.snapshot
        self.snapshot = snapshot
        self.log = log
        self.term: Term = recovered.hard_state.term
        self.voted_for: ReplicaId = recovered.hard_state.voted_for
        self.writes = writes
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

    def _begin(self, recovered: Recovered, *, alone: bool) -> None:
        """When to stand for the first time. `alone`: nobody else can ever have led."""
        self._settle_election_deadline()
        lowest = min(self.membership.current.voters, default=0)
        if (recovered.bootstrap and self.term == 0 and self.id == lowest) or alone:
            self.patience.hurried = True
            self.election_at = self.now
        elif recovered.hold_votes:
            self.promise.hold(min(self.now, recovered.stopped_at) + self.settings.election_timeout)
            self.patience.hurried = True  # perhaps everybody was restarted; a leader, if there is one, is heard first
            if self.election_at < NEVER:
                self.election_at = max(self.now, self.promise.until) + self._by_rank()

    # -- what an engine adds ------------------------------------------------------------------------------------------

    @abstractmethod
    def propose(self, data: bytes, now: Nanoseconds) -> tuple[Index, Term]: ...

    @abstractmethod
    def persisted(self, seq: int, now: Nanoseconds) -> None: ...

    @abstractmethod
    def _may_stand(self) -> bool:
        """Whether this replica may become the leader."""

    @abstractmethod
    def _ask_for_support(self) -> None:
        """The election deadline has passed, and nothing stands against a new leader: would a majority follow?"""

    @abstractmethod
    def _stand_at_once(self) -> None:
        """The leader of this term asks for it."""

    @abstractmethod
    def _become_follower(self, term: Term) -> None:
        """Of nobody yet, in `term` or the present term if that is higher."""

    @abstractmethod
    def _maybe_commit(self, leadership: Leadership) -> None:
        """More may be on disks than before."""

    @abstractmethod
    def _commit_through(self, index: Index) -> None:
        """A follower learns that everything up to `index`, which it holds, is committed."""

    @abstractmethod
    def _refuse(self, sender: ReplicaId) -> None:
        """Tell the leader of an older term that it was deposed."""

    # -- inputs -------------------------------------------------------------------------------------------------------

    def step(self, sender: ReplicaId, incarnation: int, message: AnyMessage, now: Nanoseconds) -> None:
        """One message of a peer; whatever makes no sense is dropped, never raised."""
        self._observe(now)
        handler = self.handlers.get(type(message))
        if handler is None or not self._admit(sender, incarnation) or not is_sane(message):
            return
        handler(self, sender, message)

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

    # -- outputs -------------------------------------------------------------------------------------------------------

    def ready(self) -> Ready | None:
        leadership = self.leadership
        if leadership is not None:
            if leadership.rounds.reads_due and self.commit_index >= leadership.term_start:
                self._open_round(leadership)
            if leadership.replication_due:
                leadership.replicate(self._outbox.messages, self.commit_index, self.snapshot, self.now)
        write = self.writes.take(self.log)
        committed: list[Entry] = []
        limit = self._may_hand_out()
        if self.handed_index < limit:
            bytes_max = COMMITTED_BATCHES_MAX * self.settings.batch_bytes_max
            committed = self.log.slice(self.handed_index + 1, limit + 1, bytes_max)
            self.handed_index = committed[-1].index
        configuration = None
        if self.membership.current is not self._reported_configuration:
            configuration = self._reported_configuration = self.membership.current
        outbox = self._outbox
        if write is None and configuration is None and not committed and not outbox:
            return None
        self._outbox = Outbox()
        return outbox.ready(self.writes.seq, write, committed, configuration)

    def _may_hand_out(self) -> Index:
        """Up to where entries may be given to the state machine."""
        return self.commit_index

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

    # -- who may speak -------------------------------------------------------------------------------------------------

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

    def _check_leader(self) -> Leadership:
        if self.leadership is None:
            raise NotLeader(self.leader, self.term)
        return self.leadership

    def _check_proposable(self) -> Leadership:
        leadership = self._check_leader()
        if leadership.transfer_to:
            raise Busy(f"leadership is being handed to replica {leadership.transfer_to}; retry there")
        return leadership

    def _check_room(self, leadership: Leadership, size_bytes: int) -> None:
        waiting = leadership.waiting_bytes(self.commit_index)
        if waiting and waiting + size_bytes > self.settings.uncommitted_bytes_max:
            raise Busy(f"{waiting} bytes wait for disks (uncommitted_bytes_max); retry")

    def _set_hard_state(self, term: Term, voted_for: ReplicaId) -> None:
        self.term = term
        self.voted_for = voted_for
        self.writes.hard_state = HardState(term, voted_for)

    def _broadcast(self, box: Box, message: AnyMessage) -> None:
        box.extend((voter, message) for voter in self.membership.current.voters if voter != self.id)

    def _is_loyal(self) -> bool:
        """A leader lives, as far as this replica knows: nobody else gets a vote (thesis §6.4.1, §9.6)."""
        return self.is_leader or self.promise.binds(self.now)

    # -- following -----------------------------------------------------------------------------------------------------

    def _lay_down(self) -> None:
        """Lead no more. Whose reads were not confirmed yet is told so."""
        if self.leadership is not None:
            self._outbox.reads_failed.extend(self.leadership.rounds.unanswered())
            self.leadership = None
            self.is_leader = False
            self.leader = NO_REPLICA

    def _campaign(self) -> None:
        """The election deadline has passed."""
        if not self._may_stand() or self.repair:
            self.election_at = NEVER
        elif self.promise.binds(self.now):
            self.election_at = self.promise.until + self._by_rank()
        else:
            self.patience.attempts += 1
            self._ask_for_support()

    def _settle_election_deadline(self) -> None:
        if not self._may_stand():
            self.election_at = NEVER
        elif self.election_at == NEVER:
            self.election_at = self.now + self.patience.timeout()

    def _by_rank(self) -> Nanoseconds:
        rank = self.promise.rank(self.id, self.membership.current.voters, self.incarnations)
        return self.patience.by_rank(rank)

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
            self._refuse(sender)
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

    def _handle_heartbeat(self, sender: ReplicaId, message: Heartbeat) -> None:
        if not self._follow(sender, message.term):
            return
        # Capped once more: a heartbeat for a former life of this replica proves nothing about this log.
        self._commit_through(min(message.commit_index, self.matched_index))
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

    def _handle_timeout_now(self, sender: ReplicaId, message: TimeoutNow) -> None:
        """Only from the leader of this term, which has ended its lease; an older one is ignored."""
        if message.term == self.term and sender == self.leader and self._may_stand() and not self.repair:
            self._stand_at_once()

    # -- leading -------------------------------------------------------------------------------------------------------

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
        progress.heard = True
        return leadership

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
