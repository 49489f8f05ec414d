"""The values beside the protocol: log, quorum, progress, writes, and the invariants that watch over them."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.consensus.solo import Solo, entries
from zcluster.consensus import invariants, quorum
from zcluster.consensus.api import PreVoteReply
from zcluster.consensus.log import ENTRY_OVERHEAD_BYTES, Log
from zcluster.consensus.progress import PROBE, REPLICATE, SNAPSHOT, Progress
from zcluster.consensus.reads import OPEN_ROUNDS_MAX, Rounds
from zcluster.types import Configuration, Entry, SnapshotMeta

terms = st.lists(st.integers(1, 4), max_size=12).map(sorted)


def log_of(some: list[int]) -> Log:
    log = Log()
    log.extend(entries(1, *some))
    return log


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(quorum).failed == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=7))
def test_a_majority_has_reached_the_value_and_none_higher(values: list[int]) -> None:
    reached = quorum.reached_by_majority(values)
    needed = quorum.majority(len(values))
    assert sum(value >= reached for value in values) >= needed
    assert sum(value > reached for value in values) < needed


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.integers(1, 6), st.booleans()), st.sets(st.integers(1, 6), min_size=1), st.booleans())
def test_a_vote_is_won_or_lost_when_it_cannot_turn_any_more(
    votes: dict[int, bool], voters: set[int], every: bool
) -> None:
    result = quorum.vote_result(votes, voters, everyone=every)
    needed = len(voters) if every else len(voters) // 2 + 1
    yes = sum(votes.get(voter) is True for voter in voters)
    silent = sum(voter not in votes for voter in voters)
    assert (result == quorum.WON) == (yes >= needed)
    assert (result == quorum.LOST) == (yes + silent < needed)


@settings(max_examples=50, deadline=None)
@given(terms, st.integers(0, 14), st.integers(0, 5), st.integers(0, 12))
def test_last_at_or_below_agrees_with_a_walk(some: list[int], index: int, term: int, compacted: int) -> None:
    log = log_of(some)
    log.compact(min(compacted, log.last_index), 0)
    expected = next(
        ((i, log.term(i)) for i in range(min(index, log.last_index), log.base_index - 1, -1) if log.term(i) <= term),
        (log.base_index - 1, 0),
    )
    assert log.last_at_or_below(index, term) == expected


@settings(max_examples=50, deadline=None)
@given(terms, terms, st.data())
def test_first_difference_agrees_with_a_walk(mine: list[int], theirs: list[int], data: st.DataObject) -> None:
    """For logs that match: where (index, term) agree, everything before agrees."""
    shared = data.draw(st.integers(0, min(len(mine), len(theirs))))
    theirs = [*mine[:shared], *(term + 10 for term in theirs[shared:])]
    log = log_of(mine)
    start = data.draw(st.integers(0, shared))
    new = entries(start + 1, *theirs[start:])
    expected = next((i for i, e in enumerate(new) if log.term(e.index) != e.epoch), len(new))
    assert log.first_difference(new) == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.integers(0, 400), st.data())
def test_slices_and_the_retained_tail_are_bounded_by_bytes(sizes: list[int], limit: int, data: st.DataObject) -> None:
    log = Log()
    for i, size in enumerate(sizes):
        log.append(Entry(i + 1, 1, 0, b"x" * size))

    def cost(first: int, last: int) -> int:
        return sum(size + ENTRY_OVERHEAD_BYTES for size in sizes[first - 1 : last])

    first = data.draw(st.integers(1, len(sizes)))
    got = log.slice(first, len(sizes) + 1, limit)
    assert [e.index for e in got] == list(range(first, first + len(got)))
    assert len(got) == 1 or cost(first, got[-1].index) <= limit
    assert got[-1].index == len(sizes) or cost(first, got[-1].index + 1) > limit
    index = data.draw(st.integers(0, len(sizes)))
    log.compact(index, limit)
    assert cost(log.first_index, index) <= limit
    assert log.base_index == 0 or cost(log.base_index, index) > limit or log.base_index == index == 0
    assert log.bytes_after(index) == cost(index + 1, len(sizes))


META = SnapshotMeta(3, 2, Configuration((1,)))


@pytest.mark.parametrize(
    ("snapshot", "log", "base", "last"),
    [
        (None, entries(1, 1, 2), (0, 0), 2),
        (META, (), (3, 2), 3),
        (META, entries(4, 2, 3), (3, 2), 5),
        (META, entries(1, 1, 1, 2, 2), (0, 0), 4),
        (META, entries(2, 1, 2, 2), (2, 1), 4),
        (META, entries(2, 1), (3, 2), 3),  # the checkpoint is ahead of the log
    ],
)
def test_recovery_from_a_checkpoint_and_a_log(
    snapshot: SnapshotMeta | None, log: tuple[Entry, ...], base: tuple[int, int], last: int
) -> None:
    recovered = Log.recover(snapshot, log)
    assert ((recovered.base_index, recovered.base_term), recovered.last_index) == (base, last)


@pytest.mark.parametrize(
    ("snapshot", "log"),
    [
        (None, entries(2, 1)),
        (None, (*entries(1, 1), *entries(3, 1))),
        (META, entries(5, 2)),
        (META, entries(2, 1, 1, 1)),  # another entry at its index: nothing behind it can be trusted
        (META, entries(4, 1)),
    ],
)
def test_recovered_log_with_a_gap_or_against_its_checkpoint_is_refused(
    snapshot: SnapshotMeta | None, log: tuple[Entry, ...]
) -> None:
    with pytest.raises(AssertionError):
        Log.recover(snapshot, log)


def test_progress_goes_from_probe_to_replicate_and_back() -> None:
    progress = Progress(5, 1, 0)
    assert (progress.state, progress.may_send(2)) == (PROBE, True)
    progress.sent(6, 1)
    assert not progress.may_send(2)
    assert not progress.rejection_is_stale(4) and progress.rejection_is_stale(3)
    progress.accepted(6, 2)
    assert (progress.state, progress.next_index) == (REPLICATE, 7)
    progress.sent(8, 3)
    progress.sent(9, 3)
    assert (progress.may_send(2), progress.next_index) == (False, 10)
    assert not progress.accepted(6, 4), "a late reply moves nothing"
    progress.accepted(8, 4)
    assert (progress.may_send(2), list(progress.inflight)) == (True, [9])
    assert progress.rejection_is_stale(8) and not progress.rejection_is_stale(9)
    progress.become_snapshot(20, 5)
    assert (progress.state, progress.may_send(2)) == (SNAPSHOT, False)
    progress.accepted(20, 6)
    assert (progress.state, progress.next_index) == (REPLICATE, 21)
    progress.reset(30, 2, 7)
    assert (progress.state, progress.match_index, progress.next_index) == (PROBE, 0, 30)


def test_open_rounds_are_bounded_and_keep_their_reads() -> None:
    rounds = Rounds()
    rounds.waiting.append(7)
    for now in range(3 * OPEN_ROUNDS_MAX):
        rounds.open(now, 5)
    assert rounds.confirm(OPEN_ROUNDS_MAX) == []
    assert rounds.confirm(3 * OPEN_ROUNDS_MAX) == [(7, 5)]


def test_invariants_notice_what_must_not_be() -> None:
    solo = Solo()
    solo.lead()
    good = invariants.summarize(solo.core)
    for worse in (
        good._replace(term=0),
        good._replace(voted_for=2),
        good._replace(commit_index=0),
        good._replace(last_index=0),
        good._replace(leader=3),
        good._replace(repair=True),
        good._replace(incarnation=2),
    ):
        with pytest.raises(AssertionError):
            invariants.check_step(good, worse)
    solo.core.voted_for = 2
    with pytest.raises(AssertionError):
        invariants.check_state(solo.core)


def test_an_earlier_write_that_is_done_does_not_make_the_own_vote_count() -> None:
    solo = Solo(auto=False)
    solo.follow(2, term=1)
    earlier = solo.core.writes.seq
    solo.time_out()
    solo.step(2, PreVoteReply(2, True))
    assert solo.core.role == "candidate" and solo.core.writes.seq > earlier
    solo.persist(earlier)
    assert 1 not in solo.core.votes
    solo.persist()
    assert 1 in solo.core.votes
