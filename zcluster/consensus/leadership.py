"""What lives and dies with one leadership: followers' progress, rounds, the transfer, the leader's timers.

Made when an election is won, dropped when the term or the majority is lost; so nothing of it can leak into a later
term. It writes requests into the box it is given, and answers questions ("what does a majority hold?"). It decides
nothing about terms, roles or the commit index: that is `raft`.
"""

from __future__ import annotations

from typing import Final

from zcluster.consensus import quorum
from zcluster.consensus.api import (
    PROMOTE,
    Accept,
    AppendReply,
    AppendRequest,
    ConfigChange,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Settings,
    TimeoutNow,
)
from zcluster.consensus.election import Promise
from zcluster.consensus.log import Log
from zcluster.consensus.membership import Membership
from zcluster.consensus.outbox import Box
from zcluster.consensus.progress import PROBE, REPLICATE, SNAPSHOT, Progress
from zcluster.consensus.reads import Rounds
from zcluster.consensus.vanguard import HELD_BYTES_MAX, Vanguard
from zcluster.consensus.writes import Writes
from zcluster.errors import Busy
from zcluster.types import NEVER, NO_REPLICA, Configuration, Index, Nanoseconds, ReplicaId, SnapshotMeta, Term

CAUGHT_UP_BYTES_MAX: Final = 4 << 20
"""A learner that lacks no more than this is ready to vote: it gets the rest within a round trip and one sync. As much
may be under way to it at any time under load, so less might never be reached."""


class Leadership:
    """Of replica `replica_id` in `term`. `log`, `membership` and `writes` are the core's own, read only here.

    term_start: index of the no-op that opens the term. heartbeat_at: next round. check_at: next look at who was heard.
    notice_at: when followers that got no request since the last commit are told of it. transfer_at: when a transfer
    is given up; `transfer_to` is 0 without one. vanguard: who gets new entries at once.
    """

    __slots__ = (
        "_id",
        "_log",
        "_membership",
        "_settings",
        "_writes",
        "check_at",
        "heartbeat_at",
        "notice_at",
        "progress",
        "replication_due",
        "rounds",
        "term",
        "term_start",
        "transfer_at",
        "transfer_to",
        "vanguard",
    )

    def __init__(
        self, replica_id: ReplicaId, term: Term, settings: Settings, log: Log, membership: Membership, writes: Writes
    ) -> None:
        self._id = replica_id
        self._settings = settings
        self._log = log
        self._membership = membership
        self._writes = writes
        self.term = term
        self.term_start: Index = log.last_index + 1
        self.progress: dict[ReplicaId, Progress] = {}
        self.rounds = Rounds()
        self.vanguard = Vanguard(settings.rear_delay, self._quorum)
        self.replication_due = True
        self.transfer_to: ReplicaId = NO_REPLICA
        self.heartbeat_at = self.check_at = self.notice_at = self.transfer_at = NEVER

    # -- questions ----------------------------------------------------------------------------------------------------

    def _quorum(self, voters: int) -> int:
        """How many of `voters` must hold an entry, or have answered a round."""
        return quorum.majority(voters)

    def _reached(self, values: list[int]) -> int:
        """The highest value that such a quorum has reached; one value a voter."""
        return quorum.reached_by_majority(values)

    def next_deadline(self) -> Nanoseconds:
        return min(self.heartbeat_at, self.check_at, self.notice_at, self.transfer_at, self.vanguard.release_at)

    def is_alone(self) -> bool:
        return self._membership.current.voters == (self._id,)

    def match_index(self) -> dict[ReplicaId, Index]:
        """What each member has on its disk, as far as is known; the leader's own included."""
        match_index = {replica: progress.match_index for replica, progress in self.progress.items()}
        match_index[self._id] = self._writes.durable_index
        return match_index

    def active_at(self) -> dict[ReplicaId, Nanoseconds]:
        """When each sound member was last heard."""
        return {replica: progress.active_at for replica, progress in self.progress.items() if not progress.repair}

    def _repair_target(self) -> Index:
        """What a damaged follower may have acknowledged, at the most, before it is first heard."""
        return self._log.last_index

    def waiting_bytes(self, commit_index: Index) -> int:
        """Bytes of the log that wait for disks: for a majority's, or for the own one, without which followers may
        commit for as long as they like, while what waits for it is kept in memory here."""
        return self._log.bytes_after(max(min(commit_index, self._writes.durable_index), self._log.base_index))

    def majority_index(self) -> Index:
        """Highest index on the disks of a majority, the own disk included. A damaged replica does not count."""
        progress, own = self.progress, self._id
        return self._reached(
            [
                self._writes.durable_index if voter == own else progress[voter].counted_index
                for voter in self._membership.current.voters
            ]
        )

    def heard_majority_at(self, now: Nanoseconds) -> Nanoseconds:
        """Since when, at the latest, a majority has been silent."""
        progress, own = self.progress, self._id
        return self._reached(
            [now if voter == own else progress[voter].active_at for voter in self._membership.current.voters]
        )

    def lease_holds(self, now: Nanoseconds) -> bool:
        """Whether nobody else can lead at `now`. The caller has checked that the term has committed something."""
        if self.is_alone():
            return True
        return self.rounds.lease_holds(now, self._settings.election_timeout - self._settings.lease_margin)

    def best_successor(self, promise: Promise) -> ReplicaId:
        """The living voter with the longest verified log, the lowest id among equals; 0 if there is none."""
        candidates = [
            (-progress.match_index, voter)
            for voter in self._membership.current.voters
            if (progress := self.progress.get(voter)) is not None
            and not progress.repair
            and not promise.is_dead(voter, progress.incarnation)
        ]
        return min(candidates)[1] if candidates else NO_REPLICA

    # -- members ------------------------------------------------------------------------------------------------------

    def check_prudent(self, change: ConfigChange, after: Configuration, promise: Promise, now: Nanoseconds) -> None:
        """Refuse, for now, what would stop the service: the voters that there would be decide on everything behind it.

        A learner is promoted once it has caught up (thesis §4.2.1), and a quorum of the voters that there would be,
        but no less than a majority, must have been heard within an election timeout, and not be known to have died
        since. Raises: Busy.
        """
        learner = self.progress.get(change.replica)
        if change.action == PROMOTE and learner is not None:
            self._check_caught_up(change.replica, learner, now)
        silent = [
            voter
            for voter in after.voters
            if voter != self._id
            and (
                not self._is_heard(self.progress[voter], now)
                or promise.is_dead(voter, self.progress[voter].incarnation)
            )
        ]
        voters = len(after.voters)
        if voters - len(silent) < max(self._quorum(voters), quorum.majority(voters)):
            raise Busy(
                f"of the voters {list(after.voters)} that there would be, {silent} do not answer; start them first"
            )

    def _is_heard(self, progress: Progress, now: Nanoseconds) -> bool:
        return progress.heard and now - progress.active_at < self._settings.election_timeout

    def _check_caught_up(self, replica: ReplicaId, learner: Progress, now: Nanoseconds) -> None:
        if learner.repair:
            raise Busy(f"replica {replica} repairs itself; retry")
        if learner.state == SNAPSHOT:
            raise Busy(f"replica {replica} is being sent checkpoint {learner.snapshot_index}; retry")
        if learner.state == PROBE or not self._is_heard(learner, now):
            raise Busy(f"replica {replica} does not answer yet; retry")
        missing = self._log.last_index - learner.match_index
        if (
            learner.match_index < self._log.base_index
            or self._log.bytes_after(learner.match_index) > CAUGHT_UP_BYTES_MAX
        ):
            raise Busy(f"replica {replica} is {missing} entries behind; retry")

    def sync_members(self, incarnations: dict[ReplicaId, int], now: Nanoseconds) -> None:
        """One Progress for each other member; timers run only while there are others."""
        current = self._membership.current
        known, next_index = self.progress, self._log.last_index + 1
        self.progress = {
            replica: known.get(replica) or Progress(next_index, incarnations.get(replica, -1), now)
            for replica in (*current.voters, *current.learners)
            if replica != self._id
        }
        if not self.progress:
            self.heartbeat_at = self.check_at = NEVER
        elif not known:
            self.heartbeat_at = now
            self.check_at = now + self._settings.election_timeout
        self.vanguard.choose(self.progress, current.voters, self._log.last_index)
        self.replication_due = True

    def meet(self, sender: ReplicaId, incarnation: int, now: Nanoseconds) -> None:
        """The sender shows a newer incarnation than before: what the last one acknowledged is forgotten."""
        progress = self.progress.get(sender)
        if progress is not None and incarnation > progress.incarnation:
            if progress.incarnation < 0:
                progress.incarnation = incarnation
            else:
                progress.reset(self._log.last_index + 1, incarnation, now)
                self.replication_due = True

    # -- replication --------------------------------------------------------------------------------------------------

    def replicate(self, box: Box, commit_index: Index, snapshot: SnapshotMeta | None, now: Nanoseconds) -> None:
        """Append requests for everybody who may have one; followers at one position share the object."""
        self.replication_due = False
        vanguard = self.vanguard
        may_hold = now < vanguard.release_at and not self.transfer_to and vanguard.is_healthy(self.progress)
        if now >= vanguard.release_at:
            vanguard.choose(self.progress, self._membership.current.voters, self._log.last_index)
        shared: dict[Index, AppendRequest | Accept] = {}
        inflight_max, last_index = self._settings.inflight_max, self._log.last_index
        for replica, progress in self.progress.items():
            if may_hold and replica not in vanguard.members and self._may_wait(progress):
                if progress.next_index <= last_index:
                    vanguard.hold_back(now)
                continue
            while progress.may_send(inflight_max):
                next_index = progress.next_index
                if next_index > last_index and progress.state == REPLICATE:
                    break
                if next_index <= self._log.base_index:
                    self._send_snapshot(box, replica, progress, snapshot, now)
                    break
                request = shared.get(next_index)
                if request is None:
                    shared[next_index] = request = self._request(next_index, commit_index)
                box.append((replica, request))
                progress.sent(next_index + len(request.entries) - 1, now)
                progress.commit_sent = commit_index

    def _request(self, next_index: Index, commit_index: Index) -> AppendRequest | Accept:
        """As many entries from `next_index` on as fit into one request."""
        prev_term = self._log.term(next_index - 1)
        assert prev_term is not None
        entries = self._log.slice(next_index, self._log.last_index + 1, self._settings.batch_bytes_max)
        return AppendRequest(self.term, next_index - 1, prev_term, commit_index, tuple(entries))

    def _reminder(self, next_index: Index, commit_index: Index) -> AppendRequest | Accept | None:
        """A request without entries, behind all that were sent; None if its place is forgotten."""
        prev_term = self._log.term(next_index - 1)
        return None if prev_term is None else AppendRequest(self.term, next_index - 1, prev_term, commit_index)

    def _may_wait(self, progress: Progress) -> bool:
        """Whether a follower that no commit waits for may get what it lacks later."""
        if progress.state != REPLICATE or progress.next_index <= max(self._log.base_index, self.vanguard.released):
            return False
        return self._log.bytes_after(progress.next_index - 1) <= HELD_BYTES_MAX

    def _send_snapshot(
        self, box: Box, replica: ReplicaId, progress: Progress, snapshot: SnapshotMeta | None, now: Nanoseconds
    ) -> None:
        """For a follower that is behind the log in memory; one that was not heard of late must speak first."""
        assert snapshot is not None, "the log is compacted but there is no checkpoint"
        if now - progress.active_at >= self._settings.election_timeout:
            progress.become_probe(progress.next_index, now, wait=True)
        else:
            box.append((replica, InstallSnapshot(self.term, snapshot)))
            progress.become_snapshot(snapshot.index, now)

    def handle_append_reply(self, progress: Progress, message: AppendReply, now: Nanoseconds) -> bool:
        """Returns whether the peer may add more to a majority than before."""
        last_index = self._log.last_index
        repaired = progress.note_repair(message.repair, last_index)
        if not message.success:
            if not progress.rejection_is_stale(message.prev_index):
                index, _ = self._log.last_at_or_below(message.conflict_index, message.conflict_term)
                progress.become_probe(min(index, message.prev_index - 1) + 1, now)
                self.replication_due = True
            return repaired
        if message.match_index > last_index:
            return repaired  # nonsense
        moved = progress.accepted(message.match_index, now)
        if progress.next_index <= last_index:
            self.replication_due = True
        return moved or repaired

    def handle_snapshot_status(self, replica: ReplicaId, ok: bool, now: Nanoseconds) -> None:
        """The transfer has ended. Delivered: what follows goes out once the follower says that it has taken it over,
        which it does as soon as its disk has; were that answer lost, a later heartbeat's is the sign to go on."""
        progress = self.progress.get(replica)
        if progress is not None and progress.snapshot_index:
            next_index = progress.snapshot_index + 1 if ok else progress.match_index + 1
            progress.become_probe(next_index, now, wait=True)

    def handle_peer_lost(self, replica: ReplicaId, incarnation: int, now: Nanoseconds) -> None:
        """Nothing more is sent to the dead, and leadership does not go there."""
        progress = self.progress.get(replica)
        if progress is not None and progress.incarnation <= incarnation:
            progress.become_probe(progress.match_index + 1, now, wait=True)
            self.replication_due = True  # the others may have been spared because of it
            if self.transfer_to == replica:
                self.end_transfer()

    # -- rounds -------------------------------------------------------------------------------------------------------

    def open_round(self, box: Box, commit_index: Index, now: Nanoseconds) -> None:
        """A round of heartbeats, now. Its commit index is capped at what each receiver has matched."""
        number = self.rounds.open(now, commit_index if commit_index >= self.term_start else 0)
        confirmed = self.rounds.confirmed
        quorum_time, quorum_commit = (confirmed.sent_at, confirmed.commit_index) if confirmed else (0, 0)
        shared: dict[Index, Heartbeat] = {}
        for replica, progress in self.progress.items():
            capped = min(commit_index, progress.match_index)
            if progress.repaired:
                heartbeat = Heartbeat(self.term, number, capped, quorum_time, quorum_commit, True, progress.incarnation)
            elif capped in shared:
                heartbeat = shared[capped]
            else:
                shared[capped] = heartbeat = Heartbeat(self.term, number, capped, quorum_time, quorum_commit)
            box.append((replica, heartbeat))
            progress.commit_sent = max(progress.commit_sent, capped)
        self.heartbeat_at = now + self._settings.heartbeat_interval if self.progress else NEVER

    def confirmed_reads(self) -> list[tuple[int, Index]]:
        """Close the rounds that a majority has answered; the reads they carried, with their indices."""
        rounds, progress, own = self.rounds, self.progress, self._id
        if not rounds.unconfirmed:
            return []
        number = self._reached(
            [
                rounds.latest if voter == own else progress[voter].acked_round
                for voter in self._membership.current.voters
            ]
        )
        return rounds.confirm(number)

    def handle_heartbeat_reply(
        self, box: Box, sender: ReplicaId, message: HeartbeatReply, commit_index: Index, now: Nanoseconds
    ) -> bool:
        """Returns whether the peer may add more to a majority than before."""
        progress = self.progress[sender]
        if message.round > self.rounds.latest:
            return False  # nonsense
        repaired = progress.note_repair(message.repair, self._repair_target())
        progress.acked_round = max(progress.acked_round, message.round)
        silent = now - progress.sent_at
        if progress.state == PROBE:
            if progress.probe_sent and silent >= self._settings.heartbeat_interval:
                progress.probe_sent = False
                self.replication_due = True
        elif progress.inflight and silent >= 2 * self._settings.heartbeat_interval:
            # It lives but owes an answer for long. An empty request behind the last one sent is rejected where
            # something before it was lost.
            progress.sent_at = now
            reminder = self._reminder(progress.next_index, commit_index)
            if reminder is not None:
                box.append((sender, reminder))
            else:  # forgotten meanwhile: only a checkpoint can help
                progress.become_probe(progress.match_index + 1, now)
                self.replication_due = True
        return repaired

    def round_due(self, now: Nanoseconds, commit_index: Index) -> bool:
        """Let pass what was due by `now`; returns whether a round is to be opened."""
        if now >= self.transfer_at:
            self.end_transfer()
        if now >= self.vanguard.release_at:
            self.replication_due = True
        if now >= self.notice_at:
            self.notice_at = NEVER
            # A follower that keeps up has not been told of the last commit.
            if any(p.state == REPLICATE and p.commit_sent < commit_index for p in self.progress.values()):
                return True
        return now >= self.heartbeat_at

    def committed(self, now: Nanoseconds) -> None:
        """Followers learn of a commit with the next request; where none follows soon, a round comes early."""
        if self.notice_at == NEVER and self.progress:
            self.notice_at = now + self._settings.heartbeat_interval // 8

    # -- handing over -------------------------------------------------------------------------------------------------

    def start_transfer(self, box: Box, target: ReplicaId, now: Nanoseconds) -> None:
        if target != self.transfer_to:
            self.transfer_to = target
            self.transfer_at = now + self._settings.election_timeout
            self.replication_due = True  # the target may belong to the rear
            self.maybe_finish_transfer(box)

    def maybe_finish_transfer(self, box: Box) -> bool:
        """Once the target has the whole log: tell it to stand."""
        progress = self.progress.get(self.transfer_to)
        if progress is None or progress.match_index != self._log.last_index:
            return False
        self.send_timeout_now(box, self.transfer_to)
        return True

    def send_timeout_now(self, box: Box, target: ReplicaId) -> None:
        """It may take effect at any time from now on, so the lease is over for the rest of the term."""
        self.rounds.lease_ended = True
        box.append((target, TimeoutNow(self.term)))

    def end_transfer(self) -> None:
        self.transfer_to = NO_REPLICA
        self.transfer_at = NEVER
