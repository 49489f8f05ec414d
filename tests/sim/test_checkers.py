"""Each checker fails when it should: fed with traces that no correct cluster can produce, and passes their twins."""

from __future__ import annotations

from typing import Any

import pytest

from zcluster import wire
from zcluster.consensus.api import AppendReply, VoteReply, VoteRequest
from zcluster.errors import Corrupt, NoQuorum, Timeout, TooLarge
from zcluster.sim.checkers import HASH_EVERY, Checkers, WatchedMachine
from zcluster.sim.promises import Promises
from zcluster.sim.reference import KeyValueModel
from zcluster.sim.world import Violation, World
from zcluster.storage.recover import RecoveredStore
from zcluster.types import (
    KIND_FRAMES,
    KIND_NOOP,
    MS,
    Configuration,
    Entry,
    HardState,
    SnapshotMeta,
    WriteBatch,
)

REPLICAS = (1, 2, 3)


class Hash:
    def __init__(self, value: str = "same") -> None:
        self.value = value

    def state_hash(self) -> str:
        return self.value


def frame(session: int, number: int, *ops: Any) -> bytes:
    return wire.encode((session, number, 0, ops))


def body(*results: Any) -> bytes:
    return wire.encode(list(results))


@pytest.fixture
def world() -> World:
    return World(1)


@pytest.fixture
def checkers(world: World) -> Checkers:
    return Checkers(world, REPLICAS, KeyValueModel)


@pytest.fixture
def promises(world: World, checkers: Checkers) -> Promises:
    return Promises(world, checkers)


def entry(index: int, term: int, data: bytes = b"") -> Entry:
    return Entry(index, term, KIND_FRAMES if data else KIND_NOOP, data)


def apply(
    checkers: Checkers,
    index: int,
    frames: list[bytes],
    results: list[bytes],
    *,
    replica: int = 1,
    state: str = "same",
    previous: int | None = None,
    time_ms: int = 5,
) -> None:
    checkers.applied(replica, index, time_ms, frames, results, Hash(state), previous)


def put(checkers: Checkers, index: int, key: str, value: bytes, revision: int) -> None:
    apply(checkers, index, [frame(1, index, (wire.OP_PUT, key, value))], [body(revision)])


def fails(name: str) -> Any:
    return pytest.raises(Violation, match=f"^{name}:")


# -- disks and votes --------------------------------------------------------------------------------------------------


def test_two_votes_in_one_term(checkers: Checkers) -> None:
    checkers.submitted(1, WriteBatch(1, HardState(5, 2)))
    checkers.submitted(1, WriteBatch(2, HardState(6, 3)))
    with fails("vote once"):
        checkers.submitted(1, WriteBatch(3, HardState(6, 2)))


def test_two_votes_in_one_term_in_two_lives(checkers: Checkers) -> None:
    checkers.submitted(1, WriteBatch(1, HardState(5, 2)))
    checkers.persisted(1, 1)
    with fails("durability"):
        checkers.recovered(1, RecoveredStore(hard_state=HardState(5, 0)))
    with fails("durability"):
        checkers.recovered(1, RecoveredStore(hard_state=HardState(5, 3)))
    checkers.recovered(1, RecoveredStore(hard_state=HardState(5, 2)))


def test_a_vote_that_never_reached_the_disk_binds_nobody(checkers: Checkers) -> None:
    checkers.submitted(1, WriteBatch(1, HardState(5, 2)))
    checkers.recovered(1, RecoveredStore(hard_state=HardState(4, 0)))
    checkers.submitted(1, WriteBatch(1, HardState(5, 3)))


def test_a_vote_leaves_before_it_is_on_disk(checkers: Checkers) -> None:
    checkers.submitted(1, WriteBatch(1, HardState(5, 2)))
    with fails("vote once"):
        checkers.sent(1, 2, VoteReply(5, True))
    checkers.persisted(1, 1)
    checkers.sent(1, 2, VoteReply(5, True))
    with fails("vote once"):
        checkers.sent(1, 3, VoteReply(5, True))
    with fails("vote once"):
        checkers.sent(1, 3, VoteRequest(5, 0, 0))


def test_an_acknowledgement_leaves_before_the_entry_is_on_disk(checkers: Checkers) -> None:
    checkers.submitted(1, WriteBatch(1, entries=(entry(1, 1),)))
    with fails("durability"):
        checkers.sent(1, 2, AppendReply(1, True, 1))
    checkers.persisted(1, 1)
    checkers.sent(1, 2, AppendReply(1, True, 1))


def test_recovery_loses_an_acknowledged_entry(checkers: Checkers) -> None:
    checkers.submitted(1, WriteBatch(1, entries=(entry(1, 1), entry(2, 1))))
    checkers.persisted(1, 1)
    with fails("durability"):
        checkers.recovered(1, RecoveredStore(entries=[entry(1, 1)]))
    checkers.recovered(1, RecoveredStore(entries=[entry(1, 1), entry(2, 1)]))


def test_recovery_may_find_a_cut_that_was_on_its_way(checkers: Checkers) -> None:
    checkers.submitted(1, WriteBatch(1, entries=(entry(1, 1), entry(2, 1))))
    checkers.persisted(1, 1)
    checkers.submitted(1, WriteBatch(2, truncate_after=1))
    checkers.recovered(1, RecoveredStore(entries=[entry(1, 1)]))


def test_a_healthy_disk_called_damaged(checkers: Checkers) -> None:
    damaged = RecoveredStore(damage=Corrupt("/wal", 1, "test"), repair=True)
    with fails("recovery"):
        checkers.recovered(1, damaged)
    checkers.shadows[2].damaged = True
    checkers.recovered(2, damaged)


def test_a_damaged_replica_votes_and_acknowledges(checkers: Checkers) -> None:
    checkers.shadows[1].damaged = True
    checkers.recovered(1, RecoveredStore(hard_state=HardState(4, 2), repair=True, entries=[entry(1, 1)]))
    with fails("repair"):
        checkers.sent(1, 2, VoteReply(4, True))
    with fails("repair"):
        checkers.sent(1, 2, AppendReply(4, True, 1))
    checkers.sent(1, 2, AppendReply(4, True, 1, repair=True))


# -- the log ----------------------------------------------------------------------------------------------------------


def test_two_entries_of_one_index_and_term(checkers: Checkers) -> None:
    checkers.submitted(1, WriteBatch(1, entries=(entry(1, 1, b"a"),)))
    checkers.submitted(2, WriteBatch(1, entries=(entry(1, 1, b"a"),)))
    with fails("log matching"):
        checkers.submitted(3, WriteBatch(1, entries=(entry(1, 1, b"b"),)))


def test_one_entry_behind_two_predecessors(checkers: Checkers) -> None:
    checkers.submitted(1, WriteBatch(1, entries=(entry(1, 1), entry(2, 3))))
    with fails("log matching"):
        checkers.submitted(2, WriteBatch(1, entries=(entry(1, 2), entry(2, 3))))


# -- applying ---------------------------------------------------------------------------------------------------------


def test_another_answer_at_the_same_index(checkers: Checkers) -> None:
    frames = [frame(1, 1, (wire.OP_PUT, "k", b"v"))]
    apply(checkers, 1, frames, [body(1)])
    apply(checkers, 1, frames, [body(1)], replica=2)
    with fails("state-machine safety"):
        apply(checkers, 1, frames, [body(2)], replica=3)


def test_other_frames_at_the_same_index(checkers: Checkers) -> None:
    put(checkers, 1, "k", b"v", 1)
    with fails("state-machine safety"):
        apply(checkers, 1, [frame(1, 1, (wire.OP_PUT, "k", b"w"))], [body(1)], replica=2)


def test_an_entry_that_is_left_out(checkers: Checkers) -> None:
    for index in (1, 2, 3):
        put(checkers, index, "k", b"%d" % index, index)
    frames = [frame(1, 3, (wire.OP_PUT, "k", b"3"))]
    apply(checkers, 3, frames, [body(3)], replica=2, previous=2)
    with fails("state-machine safety"):
        apply(checkers, 3, frames, [body(3)], replica=3, previous=1)


def test_another_state_at_the_same_index(checkers: Checkers) -> None:
    frames = [frame(1, 1, (wire.OP_PUT, "k", b"v"))]
    apply(checkers, HASH_EVERY, frames, [body(1)])
    with fails("state-machine safety"):
        apply(checkers, HASH_EVERY, frames, [body(1)], replica=2, state="other")


def test_log_time_that_falls(checkers: Checkers) -> None:
    apply(checkers, 1, [], [], time_ms=9)
    with fails("log time"):
        apply(checkers, 2, [], [], time_ms=8)


def test_a_frame_that_is_executed_twice(checkers: Checkers) -> None:
    append = frame(7, 1, (wire.OP_APPEND, "k", b"x"))
    apply(checkers, 1, [append], [body(b"x")])
    apply(checkers, 2, [append], [body(b"x")])  # the answer that is known
    with fails("exactly-once"):
        apply(checkers, 3, [append], [body(b"xx")])


def test_one_session_for_two_clients(checkers: Checkers) -> None:
    apply(checkers, 1, [frame(111, 0, (wire.OP_REGISTER,))], [body(5)])
    with fails("exactly-once"):
        apply(checkers, 2, [frame(222, 0, (wire.OP_REGISTER,))], [body(5)])


def test_a_wrong_answer(checkers: Checkers) -> None:
    put(checkers, 1, "k", b"v", 1)
    with fails("results"):
        apply(checkers, 2, [frame(1, 2, (wire.OP_CAS, "k", b"w", b"x"))], [body(True)])


def test_a_refused_frame_changes_nothing(checkers: Checkers) -> None:
    refused = wire.encode({"code": wire.E_UNKNOWN_SESSION, "text": ""})
    apply(checkers, 1, [frame(1, 1, (wire.OP_PUT, "k", b"v"))], [refused])
    apply(checkers, 2, [frame(2, 1, (wire.OP_CAS, "k", None, b"w"))], [body(True)])


def test_a_watched_machine_knows_what_it_applied_before(checkers: Checkers) -> None:
    class Inner:
        def apply(self, index: int, log_time_ms: int, frames: list[bytes]) -> list[bytes]:
            return [body() for _ in frames]

        query = capture = maintain = restore = take_mark = None

        def state_hash(self) -> str:
            return ""

    first, second = (WatchedMachine(Inner(), replica, checkers, 0) for replica in (1, 2))  # type: ignore[arg-type]
    for index in (1, 2):
        first.apply(index, 1, [])
    with fails("state-machine safety"):
        second.apply(2, 1, [])


# -- promises to clients ----------------------------------------------------------------------------------------------


def test_an_acknowledged_write_that_is_not_in_the_log(checkers: Checkers, promises: Promises) -> None:
    call = promises.called(0, (wire.OP_PUT, "k", b"v"))
    with fails("lost write"):
        promises.returned(call, 1)
    call = promises.called(0, (wire.OP_DELETE, "k"))
    with fails("lost write"):
        promises.returned(call, False)


def test_a_write_that_took_effect_before_it_was_called(checkers: Checkers, promises: Promises) -> None:
    put(checkers, 1, "k", b"early", 1)
    put(checkers, 2, "k", b"v", 2)
    promises.returned(promises.called(0, (wire.OP_PUT, "k", b"v")), 2)
    with fails("linearizable"):
        promises.returned(promises.called(0, (wire.OP_PUT, "k", b"early")), 1)


def test_a_refused_write_that_was_applied(checkers: Checkers, promises: Promises) -> None:
    call = promises.called(0, (wire.OP_PUT, "k", b"v"))
    promises.returned(call, NoQuorum("certainly not applied"))
    promises.finish()
    put(checkers, 1, "k", b"v", 1)
    with fails("refused write"):
        promises.finish()


@pytest.mark.parametrize("level", [wire.LINEARIZABLE, wire.LEASE])
def test_a_read_that_misses_an_acknowledged_write(checkers: Checkers, promises: Promises, level: int) -> None:
    write = promises.called(0, (wire.OP_PUT, "k", b"v"))
    during = promises.called(1, (wire.OP_GET, "k"), level)
    put(checkers, 1, "k", b"v", 1)
    promises.returned(write, 1)
    after = promises.called(1, (wire.OP_GET, "k"), level)
    promises.returned(during, None)  # it was under way at the same time: either answer is right
    with fails("stale read"):
        promises.returned(after, None)


def test_a_read_that_goes_back_behind_an_earlier_read(checkers: Checkers, promises: Promises) -> None:
    put(checkers, 1, "k", b"v", 1)
    promises.returned(promises.called(0, (wire.OP_GET, "k")), b"v")
    with fails("stale read"):
        promises.returned(promises.called(1, (wire.OP_GET, "k")), None)


def test_a_bounded_read_that_is_too_old(world: World, checkers: Checkers, promises: Promises) -> None:
    write = promises.called(0, (wire.OP_PUT, "k", b"v"))
    put(checkers, 1, "k", b"v", 1)
    promises.returned(write, 1)
    world.run_until(world.now + 100 * MS)
    promises.returned(promises.called(1, (wire.OP_GET, "k"), wire.BOUNDED, 200), None)
    with fails("stale read"):
        promises.returned(promises.called(1, (wire.OP_GET, "k"), wire.BOUNDED, 50), None)


def test_an_eventual_read_of_what_never_was(checkers: Checkers, promises: Promises) -> None:
    put(checkers, 1, "k", b"v", 1)
    put(checkers, 2, "k", b"w", 2)
    for value in (None, b"v", b"w"):
        promises.returned(promises.called(0, (wire.OP_GET, "k"), wire.EVENTUAL), value)
    with fails("stale read"):
        promises.returned(promises.called(0, (wire.OP_GET, "k"), wire.EVENTUAL), b"x")


def test_a_read_ends_only_with_a_value_or_a_timeout(checkers: Checkers, promises: Promises) -> None:
    promises.returned(promises.called(0, (wire.OP_GET, "k")), Timeout("late"))
    with fails("client"):
        promises.returned(promises.called(0, (wire.OP_GET, "k")), NoQuorum("a write's error"))


# -- pipelines and listings -------------------------------------------------------------------------------------------

PROGRAM = ((wire.OP_PUT, "a", b"1"), (wire.OP_GET, "a"), (wire.OP_APPEND, "b", b"2"))


def test_a_pipeline_is_one_frame_of_the_log(checkers: Checkers, promises: Promises) -> None:
    call = promises.called_all(0, PROGRAM)
    apply(checkers, 1, [frame(1, 1, *PROGRAM)], [body(1, b"1", b"2")])
    promises.returned(call, [1, b"1", b"2"])
    assert [(record["op"], record["status"]) for record in call.records] == [
        ("put", "ok"),
        ("get", "ok"),
        ("append", "ok"),
    ]


@pytest.mark.parametrize(
    ("ops", "results"),
    [
        (PROGRAM[:2], (1, b"1")),
        ((PROGRAM[1], PROGRAM[0], PROGRAM[2]), (None, 1, b"2")),
        ((*PROGRAM, (wire.OP_DELETE, "c")), (1, b"1", b"2", False)),
    ],
    ids=["cut short", "out of order", "with something between"],
)
def test_a_pipeline_that_is_in_the_log_as_another(
    checkers: Checkers, promises: Promises, ops: tuple[Any, ...], results: tuple[Any, ...]
) -> None:
    call = promises.called_all(0, PROGRAM)
    apply(checkers, 1, [frame(1, 1, *ops)], [body(*results)])
    with fails("pipeline"):
        promises.returned(call, [1, b"1", b"2"])


def test_an_error_in_a_pipeline_stands_for_itself(world: World) -> None:
    checkers = Checkers(world, REPLICAS, lambda: KeyValueModel(value_bytes_max=4))
    promises = Promises(world, checkers)
    ops = ((wire.OP_PUT, "a", b"1"), (wire.OP_PUT, "a", b"too large"), (wire.OP_APPEND, "a", b"2"))
    error = [wire.E_TOO_LARGE, "the value would have 9 bytes"]
    call = promises.called_all(0, ops)
    apply(checkers, 1, [frame(1, 1, *ops)], [body(1, error, b"12")])
    promises.returned(call, [1, TooLarge(""), b"12"])
    assert [record["status"] for record in call.records] == ["ok", "fail", "ok"]
    late = promises.called(0, (wire.OP_PUT, "a", b"also too large"))
    apply(checkers, 2, [frame(1, 2, late.ops[0])], [body(error)])
    promises.returned(late, TooLarge(""))
    with fails("results"):  # as if the error had ended the pipeline
        others = ((wire.OP_PUT, "a", b"too large again"), (wire.OP_PUT, "a", b"3"))
        apply(checkers, 3, [frame(1, 3, *others)], [body(error, error)])


def test_a_pipeline_with_another_answer_than_in_the_log(checkers: Checkers, promises: Promises) -> None:
    call = promises.called_all(0, PROGRAM)
    apply(checkers, 1, [frame(1, 1, *PROGRAM)], [body(1, b"1", b"2")])
    with fails("results"):
        promises.returned(call, [1, None, b"2"])


def test_a_refused_pipeline_none_of_which_may_be_applied(checkers: Checkers, promises: Promises) -> None:
    promises.returned(promises.called_all(0, PROGRAM), NoQuorum("certainly not applied"))
    apply(checkers, 1, [frame(1, 1, PROGRAM[2])], [body(b"2")])
    with fails("refused write"):
        promises.finish()


def test_reads_of_one_pipeline_stand_at_one_moment(checkers: Checkers, promises: Promises) -> None:
    reads = ((wire.OP_GET, "a"), (wire.OP_GET, "b"))
    first, second = promises.called_all(0, reads), promises.called_all(1, reads)
    put(checkers, 1, "a", b"1", 1)
    put(checkers, 2, "b", b"2", 2)
    promises.returned(first, [b"1", b"2"])
    with fails("stale read"):
        promises.returned(second, [None, b"2"])


def listing(checkers: Checkers) -> None:
    put(checkers, 1, "k1", b"a", 1)
    put(checkers, 2, "k2", b"b", 2)
    put(checkers, 3, "k1", b"c", 3)
    apply(checkers, 4, [frame(1, 4, (wire.OP_DELETE, "k2"))], [body(True)])


@pytest.mark.parametrize(
    ("after", "count", "page"),
    [
        (None, 9, [[], False]),
        (None, 9, [["k1", b"a"], False]),
        (None, 9, [["k1", b"a", "k2", b"b"], False]),
        (None, 9, [["k1", b"c", "k2", b"b"], False]),
        (None, 9, [["k1", b"c"], False]),
        (None, 1, [["k1", b"a"], True]),
        ("k1", 1, [["k2", b"b"], False]),
        ("k1", 1, [[], False]),
    ],
)
def test_a_page_of_a_listing_is_one_state(
    checkers: Checkers, promises: Promises, after: str | None, count: int, page: list[Any]
) -> None:
    call = promises.called(0, (wire.OP_LIST, "k", after, count))
    listing(checkers)
    promises.returned(call, page)
    assert [(r["op"], r["key"], r["output"]) for r in promises.history] == [
        ("get", key, value.decode()) for key, value in zip(page[0][::2], page[0][1::2], strict=True)
    ]


@pytest.mark.parametrize(
    ("after", "count", "page"),
    [
        (None, 9, [["k2", b"b"], False]),  # k1 was there all the time
        (None, 9, [["k1", b"x"], False]),
        (None, 9, [["k2", b"b", "k1", b"a"], False]),  # out of order
        (None, 9, [["k1", b"a"], True]),  # a page of one, where nine were asked for
        (None, 1, [["k1", b"a", "k2", b"b"], False]),  # more than were asked for
        ("k1", 1, [["k1", b"c"], False]),
        (None, 9, [["k1", b"a", "x", b"b"], False]),
    ],
)
def test_a_page_that_never_was(
    checkers: Checkers, promises: Promises, after: str | None, count: int, page: list[Any]
) -> None:
    call = promises.called(0, (wire.OP_LIST, "k", after, count))
    listing(checkers)
    with fails("stale read"):
        promises.returned(call, page)


def test_a_page_says_that_more_follows_only_if_more_follows(checkers: Checkers, promises: Promises) -> None:
    listing(checkers)
    promises.returned(promises.called(0, (wire.OP_GET, "k1")), b"c")
    last = promises.called(0, (wire.OP_LIST, "k", None, 1), wire.EVENTUAL)
    promises.returned(last, [["k1", b"c"], True])  # at index 3, before k2 was deleted
    promises.returned(promises.called(0, (wire.OP_GET, "k2")), None)
    with fails("stale read"):
        promises.returned(promises.called(0, (wire.OP_LIST, "k", None, 1)), [["k1", b"c"], True])


@pytest.mark.parametrize(("level", "bound_ms"), [(wire.LINEARIZABLE, 0), (wire.LEASE, 0), (wire.BOUNDED, 50)])
def test_a_listing_keeps_the_promise_of_its_level(
    world: World, checkers: Checkers, promises: Promises, level: int, bound_ms: int
) -> None:
    write = promises.called(0, (wire.OP_PUT, "k1", b"a"))
    put(checkers, 1, "k1", b"a", 1)
    promises.returned(write, 1)
    world.run_until(world.now + 100 * MS)
    promises.returned(promises.called(0, (wire.OP_LIST, "", None, 9), wire.EVENTUAL), [[], False])
    promises.returned(promises.called(0, (wire.OP_LIST, "", None, 9), wire.BOUNDED, 200), [[], False])
    with fails("stale read"):
        promises.returned(promises.called(0, (wire.OP_LIST, "", None, 9), level, bound_ms), [[], False])


# -- weak durability --------------------------------------------------------------------------------------------------


def committed(checkers: Checkers, last: int) -> None:
    for index in range(1, last + 1):
        checkers.committed[index] = 1
        checkers.committed_at.append((index * MS, index))
        put(checkers, index, "k", b"%d" % index, index)
    checkers.highest = last


def test_after_a_power_cut_only_the_window_may_be_another_log(checkers: Checkers) -> None:
    committed(checkers, 5)
    assert checkers.stable_before(3 * MS) == 3
    checkers.power_cut(3)
    assert (checkers.highest, checkers.highest_applied) == (3, 3)
    put(checkers, 4, "k", b"another", 4)
    with fails("state-machine safety"):
        put(checkers, 2, "k", b"another", 2)


def test_a_checkpoint_that_survived_a_power_cut_brings_its_log_back(checkers: Checkers) -> None:
    committed(checkers, 5)
    checkers.power_cut(1)
    meta = SnapshotMeta(4, 1, Configuration(REPLICAS))
    checkers.recovered(2, RecoveredStore(checkpoint=meta))
    assert checkers.highest == checkers.highest_applied == 4
    with fails("state-machine safety"):
        put(checkers, 4, "k", b"another", 4)


def test_a_checkpoint_of_what_was_never_committed(checkers: Checkers) -> None:
    with fails("durability"):
        checkers.recovered(2, RecoveredStore(checkpoint=SnapshotMeta(4, 1, Configuration(REPLICAS))))
