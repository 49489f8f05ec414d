"""What must always hold of a core: in one state, and from one state to the next.

For tests and the simulator; every function raises AssertionError. Properties of several replicas together (election
safety, log matching, leader completeness) need a view of all of them and live with the simulator.
"""

from __future__ import annotations

from typing import NamedTuple

from zcluster.consensus import ballots
from zcluster.consensus.core import CANDIDATE, FOLLOWER, LEADER, PRE_CANDIDATE, Core
from zcluster.consensus.paxos import Paxos
from zcluster.consensus.progress import PROBE, SNAPSHOT
from zcluster.types import NEVER, NO_REPLICA, Index, ReplicaId, Term


class Summary(NamedTuple):
    """As much of a core as `check_step` compares; a dozen numbers."""

    replica_id: ReplicaId
    incarnation: int
    role: str
    term: Term
    voted_for: ReplicaId
    leader: ReplicaId
    commit_index: Index
    commit_term: Term | None
    handed_index: Index
    base_index: Index
    last_index: Index
    durable_index: Index
    seq: int
    repair: bool


def summarize(core: Core) -> Summary:
    return Summary(
        core.id,
        core.incarnation,
        core.role,
        core.term,
        core.voted_for,
        core.leader,
        core.commit_index,
        core.log.term(core.commit_index),
        core.handed_index,
        core.log.base_index,
        core.log.last_index,
        core.writes.durable_index,
        core.writes.seq,
        core.repair,
    )


def check_state(core: Core, checked: Index = 0) -> None:
    """One state, by itself. `checked`: entries up to here were checked in an earlier state, and are committed."""
    log, writes = core.log, core.writes
    assert 0 <= log.base_index <= core.handed_index <= core.commit_index <= log.last_index
    assert log.last_term <= core.term
    assert 1 <= writes.unwritten_from <= log.last_index + 1 or isinstance(core, Paxos)
    assert 0 <= writes.durable_index < writes.unwritten_from or isinstance(core, Paxos)
    assert (writes.hard_state.term, writes.hard_state.voted_for) == (core.term, core.voted_for)
    assert writes.durable_hard_state.term <= core.term
    assert core.role in (FOLLOWER, PRE_CANDIDATE, CANDIDATE, LEADER)
    assert core.is_leader == (core.role == LEADER) == (core.leadership is not None)
    assert not (core.repair and core.role != FOLLOWER), "a damaged replica may only follow"
    current = core.membership.current
    assert not set(current.voters) & set(current.learners)
    assert current.index <= log.last_index
    if core.role in (CANDIDATE, LEADER):
        assert core.voted_for == core.id
    if core.role in (PRE_CANDIDATE, CANDIDATE):
        assert core.id in {*current.voters, *core.membership.at(core.commit_index).voters}
        assert core.leader == NO_REPLICA
        assert core.election_at < NEVER
    if core.leadership is not None:
        _check_leadership(core)
    if isinstance(core, Paxos):
        _check_slots(core, checked)
    else:
        _check_log(core, checked)


def _check_log(core: Core, checked: Index) -> None:
    log = core.log
    index = max(log.base_index, checked)
    term = log.term(index)
    assert term is not None
    for entry in log.tail(index + 1):
        assert entry.index == index + 1 and entry.epoch >= term
        index, term = entry.index, entry.epoch
    assert index == log.last_index
    if core.leadership is not None and core.commit_index >= core.leadership.term_start:
        assert log.term(core.commit_index) == core.term or log.base_index >= core.commit_index


def _check_slots(core: Paxos, checked: Index) -> None:
    """Accepted under promised ballots only; in the order of the slots; what the ballot in force has, without a gap."""
    slots, proposer, preparation = core.log, core.leadership, core.preparation
    index = max(slots.base_index, checked)
    for entry in slots.tail(index + 1):
        assert entry.index == index + 1 and entry.epoch <= core.term
        index = entry.index
    assert index == slots.last_index
    assert all(i == e.index > slots.last_index and e.epoch <= core.term for i, e in slots.scattered.items())
    assert ballots.proposer_of(core.term) == core.voted_for or core.term == 0
    assert core.commit_index <= core.matched_index <= slots.last_index or core.leadership is not None
    assert core.membership.current.index <= core.commit_index, "a change is in force before it is chosen"
    assert core.role != CANDIDATE or preparation is not None
    if preparation is not None:
        assert preparation.ballot == core.term and core.role in (CANDIDATE, LEADER)
        assert preparation.first == core.commit_index + 1
    if proposer is not None:
        assert all(entry.epoch == core.term for entry in slots.tail(max(proposer.opening, core.commit_index) + 1))
        assert not (proposer.opening and slots.scattered), "open with slots that were not recovered"
        last = slots.last_index + bool(proposer.change_waits)
        assert proposer.stop_at in (0, last) or proposer.stop_at <= core.commit_index
        assert bool(proposer.opening) == (proposer.term_start < NEVER)


def _check_leadership(core: Core) -> None:
    leadership = core.leadership
    assert leadership is not None
    assert core.leader == core.id
    assert core.election_at == NEVER
    assert leadership.term == core.term
    durable = core.writes.durable_hard_state
    assert (durable.term, durable.voted_for) == (core.term, core.id), "leads by a vote that is not on disk"
    assert core.log.last_index >= leadership.term_start or isinstance(core, Paxos)
    current = core.membership.current
    assert set(leadership.progress) == {*current.voters, *current.learners} - {core.id}
    for progress in leadership.progress.values():
        assert 0 <= progress.match_index < progress.next_index <= core.log.last_index + 1
        assert len(progress.inflight) <= core.settings.inflight_max
        assert not (progress.state in (PROBE, SNAPSHOT) and progress.inflight)
        assert (progress.state == SNAPSHOT) == (progress.snapshot_index > 0)
        assert progress.acked_round <= leadership.rounds.latest


def check_step(before: Summary, after: Summary) -> None:
    """From one state of a life to a later one, with any inputs between."""
    assert (after.replica_id, after.incarnation) == (before.replica_id, before.incarnation)
    assert after.term >= before.term
    assert after.commit_index >= before.commit_index
    assert after.handed_index >= before.handed_index
    assert after.base_index >= before.base_index
    assert after.seq >= before.seq
    assert after.last_index >= before.commit_index
    assert before.repair or not after.repair
    if after.commit_index == before.commit_index and None not in (after.commit_term, before.commit_term):
        assert after.commit_term == before.commit_term
    if after.term == before.term:
        assert before.voted_for in (NO_REPLICA, after.voted_for), "voted twice in a term"
        assert not (before.leader and after.leader and before.leader != after.leader), "two leaders in a term"
        assert not (after.role == LEADER and before.role not in (CANDIDATE, LEADER))
        if before.role == LEADER:
            assert after.last_index >= before.last_index, "a leader only appends (§5.3)"
            assert after.durable_index >= before.durable_index
