"""Cores with one deliberate mistake each; the simulator must catch every one of them.

Handlers of messages are found in a table, so a mistake in one of them is planted around `step`.
"""

from __future__ import annotations

from typing import Any

from zcluster.consensus import membership, quorum
from zcluster.consensus.api import REMOVE, AnyMessage, AppendRequest, ConfigChange, Ready
from zcluster.consensus.leadership import Leadership
from zcluster.consensus.membership import Membership
from zcluster.consensus.raft import Raft
from zcluster.types import KIND_CONFIG, NEVER, Configuration, Entry, HardState, Index, Nanoseconds, ReplicaId, Term


class EarlyAcknowledgement(Raft):
    """Replies that should wait for the disk leave at once."""

    def ready(self) -> Ready | None:
        ready = super().ready()
        if ready is None or not ready.messages_after_persist:
            return ready
        messages = (*ready.messages, *ready.messages_after_persist)
        return Ready(
            ready.seq,
            ready.write,
            messages,
            (),
            ready.committed,
            ready.reads,
            ready.reads_failed,
            ready.configuration,
            ready.repaired,
        )


class ForgetfulVoter(Raft):
    """The vote is not part of the hard state."""

    def _set_hard_state(self, term: Term, voted_for: ReplicaId) -> None:
        self.term = term
        self.voted_for = voted_for
        self.writes.hard_state = HardState(term, voted_for if voted_for == self.id else 0)


class OldTermCommit(Raft):
    """Figure 8: entries of older terms are committed by count."""

    def _maybe_commit(self, leadership: Leadership) -> None:
        index = leadership.majority_index()
        if index > self.commit_index:
            self.commit_index = index
            leadership.committed(self.now)


class NoElectionRestriction(Raft):
    """Votes for anybody, however short the log."""

    def _is_up_to_date(self, message: Any) -> bool:
        return True


class EagerLeader(Raft):
    """Counts its own entries before they are on its disk."""

    def _maybe_commit(self, leadership: Leadership) -> None:
        progress = leadership.progress
        index = quorum.reached_by_majority(
            [
                self.log.last_index if voter == self.id else progress[voter].counted_index
                for voter in self.membership.current.voters
            ]
        )
        if index > self.commit_index and self.log.term(index) == self.term:
            self.commit_index = index
            leadership.committed(self.now)


class EarlyReads(Raft):
    """A new leader answers reads before it has committed in its own term."""

    def read_barrier(self, token: int, now: Nanoseconds, *, lease: bool = False) -> None:
        self._observe(now)
        self._check_leader()
        self._outbox.reads.append((token, self.commit_index))


class EternalLease(Raft):
    """A lease is believed for as long as somebody leads."""

    def read_barrier(self, token: int, now: Nanoseconds, *, lease: bool = False) -> None:
        if lease and self.is_leader:
            self._outbox.reads.append((token, self.commit_index))
        else:
            super().read_barrier(token, now, lease=lease)


class Disloyal(Raft):
    """Votes for others while a leader may hold a lease."""

    def _is_loyal(self) -> bool:
        return False


class BoastfulFollower(Raft):
    """Commits as far as the leader says, matched or not."""

    def step(self, sender: ReplicaId, incarnation: int, message: AnyMessage, now: Nanoseconds) -> None:
        super().step(sender, incarnation, message, now)
        if type(message) is AppendRequest and message.term == self.term and self.leader == sender:
            self.commit_index = max(self.commit_index, min(message.commit_index, self.log.last_index))


class FreshEveryTime(Raft):
    """Says that bounded reads are fresh without having heard anybody."""

    def bounded_index(self, now: Nanoseconds, bound: Nanoseconds) -> Index | None:
        return self.quorum_commit


class OverwritesAnyway(Raft):
    """A late, shorter append cuts the log although nothing conflicts."""

    def step(self, sender: ReplicaId, incarnation: int, message: AnyMessage, now: Nanoseconds) -> None:
        if type(message) is AppendRequest and message.term == self.term and sender == self.leader:
            last = message.prev_index + len(message.entries)
            if self.commit_index <= last < self.log.last_index:
                self.log.truncate(last)
                self.writes.truncated(last)
                self.membership.truncated(last)
        super().step(sender, incarnation, message, now)


class DamagedVoter(Raft):
    """A damaged replica takes part as if nothing had happened."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.repair = False


class NeverStands(Raft):
    """Waits for ever."""

    def deadline(self, now: Nanoseconds) -> None:
        if self.is_leader:
            super().deadline(now)
        else:
            self.election_at = NEVER


# -- members ----------------------------------------------------------------------------------------------------------


def _append_change(core: Raft, configuration: Configuration) -> Index:
    core.log.append(Entry(configuration.index, core.term, KIND_CONFIG, membership.encode(configuration)))
    core.membership.appended([configuration])
    core._configuration_in_force()
    return configuration.index


class ImpatientChange(Raft):
    """Begins a change while another is not committed."""

    def propose_config(self, change: ConfigChange, now: Nanoseconds) -> Index:
        self._observe(now)
        self._check_proposable()
        return _append_change(self, membership.changed(self.membership.current, change, self.log.last_index + 1))

    def _configuration_in_force(self) -> None:
        super()._configuration_in_force()
        learners = self.membership.current.learners
        if self.leadership is not None and learners:
            self.propose_config(ConfigChange(REMOVE, learners[0]), self.now)


class TwoAtOnce(Raft):
    """Whoever goes takes another one along."""

    def propose_config(self, change: ConfigChange, now: Nanoseconds) -> Index:
        voters = self.membership.current.voters
        if change.action != REMOVE or len(voters) < 4 or not self.is_leader:
            return super().propose_config(change, now)
        kept = [voter for voter in voters if voter not in (change.replica, self.id)][:-1]
        index = self.log.last_index + 1
        learners = self.membership.current.learners
        return _append_change(self, Configuration(tuple(sorted((*kept, self.id))), learners, index))


class CountsLearners(Raft):
    """A learner's copy counts like a voter's."""

    def _maybe_commit(self, leadership: Leadership) -> None:
        current, progress = self.membership.current, leadership.progress
        index = quorum.reached_by_majority(
            sorted(
                (
                    self.writes.durable_index if member == self.id else progress[member].counted_index
                    for member in (*current.voters, *current.learners)
                ),
                reverse=True,
            )[: len(current.voters)]
        )
        if index > self.commit_index and self.log.term(index) == self.term:
            self.commit_index = index
            leadership.committed(self.now)


class _Sticky(Membership):
    """Does not forget what is cut off."""

    def truncated(self, last_kept: Index) -> None:
        pass


class KeepsTruncatedChange(Raft):
    """A change that was cut off stays in force."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        sticky = _Sticky(self.membership._base)
        sticky.appended(self.membership._stack)
        self.membership = sticky


MEMBERSHIP_MUTANTS: tuple[type[Raft], ...] = (ImpatientChange, TwoAtOnce, CountsLearners, KeepsTruncatedChange)

MUTANTS: tuple[type[Raft], ...] = (
    EarlyAcknowledgement,
    ForgetfulVoter,
    OldTermCommit,
    NoElectionRestriction,
    EagerLeader,
    EarlyReads,
    EternalLease,
    Disloyal,
    BoastfulFollower,
    FreshEveryTime,
    OverwritesAnyway,
    DamagedVoter,
)
