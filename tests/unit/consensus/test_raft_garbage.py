"""Whatever a peer sends, `step` never raises and never harms."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.consensus.solo import Solo, entries
from zcluster.consensus import api
from zcluster.consensus.api import AppendReply, AppendRequest, InstallSnapshot
from zcluster.types import KIND_CONFIG, MS, Configuration, Entry, SnapshotMeta

number = st.one_of(st.integers(-2, 6), st.sampled_from([1 << 16, 1 << 62, (1 << 63) - 1, -(1 << 63)]))
replicas = st.lists(number, max_size=3).map(tuple)
configurations = st.builds(Configuration, replicas, replicas, number)
entry = st.builds(
    Entry,
    number,
    number,
    st.integers(0, 3),
    st.one_of(st.binary(max_size=4), configurations.map(msgspec.msgpack.encode)),
)
certificate = st.none() | st.tuples(number, number)
messages = st.one_of(
    st.builds(api.PreVoteRequest, number, number, number, certificate),
    st.builds(api.PreVoteReply, number, st.booleans()),
    st.builds(api.VoteRequest, number, number, number, certificate, st.booleans()),
    st.builds(api.VoteReply, number, st.booleans()),
    st.builds(api.AppendRequest, number, number, number, number, st.lists(entry, max_size=3).map(tuple)),
    st.builds(api.AppendReply, number, st.booleans(), number, number, number, number, st.booleans()),
    st.builds(api.Heartbeat, number, number, number, number, number, st.booleans(), number),
    st.builds(api.HeartbeatReply, number, number, st.booleans()),
    st.builds(api.InstallSnapshot, number, st.builds(SnapshotMeta, number, number, configurations, number)),
    st.builds(api.TimeoutNow, number),
)
verbs = st.one_of(
    st.tuples(st.just("step"), st.one_of(st.integers(2, 3), number), number, messages),
    st.tuples(st.just("wait"), st.integers(0, 900)),
    st.tuples(st.just("lost"), number, number),
    st.tuples(st.just("status"), number, st.booleans()),
)


@settings(max_examples=150, deadline=None)
@given(st.booleans(), st.lists(verbs, max_size=25))
def test_garbage_is_survived(leading: bool, story: list[tuple[object, ...]]) -> None:
    solo = Solo(term=2, log=entries(1, 1, 1, 2))
    if leading:
        solo.lead()
    else:
        solo.append(2, 2, (3, 2), *entries(4, 2), commit=2)
    committed = list(solo.committed)
    for verb, *arguments in story:
        if verb == "step":
            sender, incarnation, message = arguments
            solo.core.step(sender, incarnation, message, solo.now)
        elif verb == "wait":
            solo.now += arguments[0] * MS
            solo.core.deadline(solo.now)
        elif verb == "lost":
            solo.core.peer_lost(*arguments, solo.now)
        else:
            solo.core.snapshot_status(*arguments, solo.now)
        solo.pump()  # checks the invariants
    assert solo.committed[: len(committed)] == committed
    for _, message in solo.sent:
        msgspec.msgpack.encode(message)


def test_requests_with_gaps_or_impossible_terms_are_dropped() -> None:
    solo = Solo(term=5)
    for bad in (
        AppendRequest(5, 0, 0, 0, (Entry(2, 1, 0, b""),)),
        AppendRequest(5, 0, 0, 0, (Entry(1, 1, 0, b""), Entry(3, 1, 0, b""))),
        AppendRequest(5, 0, 0, 0, (Entry(1, 2, 0, b""), Entry(2, 1, 0, b""))),
        AppendRequest(5, 0, 0, 0, (Entry(1, 6, 0, b""),)),
        AppendRequest(5, 0, 0, 0, (Entry(1, 0, 0, b""),)),
        AppendRequest(5, 0, 0, 0, (Entry(1, 5, KIND_CONFIG, b"\xc1"),)),
        AppendRequest(5, -1, 0, 0),
        AppendRequest(1 << 62, 0, 0, 0),
        InstallSnapshot(5, SnapshotMeta(3, 6, Configuration())),
        InstallSnapshot(5, SnapshotMeta(3, 5, Configuration((2, 1)))),
    ):
        solo.step(2, bad)
    assert (solo.core.log.last_index, solo.core.term, solo.writes) == (0, 5, [])


def test_a_reply_beyond_the_log_moves_nothing() -> None:
    solo = Solo()
    solo.lead()
    solo.propose()
    solo.step(2, AppendReply(1, True, 999))
    assert solo.core.commit_index == 1


def test_a_follower_that_rejects_what_it_acknowledged_starts_no_storm() -> None:
    solo = Solo()
    solo.lead()
    solo.take()
    for _ in range(10):
        for prev in (0, 1):
            solo.step(2, AppendReply(1, False, 0, prev_index=prev))
    assert not solo.sent


def test_messages_of_strangers_of_oneself_and_of_former_lives_are_dropped() -> None:
    solo = Solo(term=1)
    for sender, incarnation in ((1, 1), (0, 1), (-1, 1), (1 << 16, 1), (2, -1)):
        solo.core.step(sender, incarnation, api.Heartbeat(9, 1, 0), solo.now)
    solo.core.step(2, 5, api.Heartbeat(1, 1, 0), solo.now)
    solo.core.step(2, 4, api.Heartbeat(9, 1, 0), solo.now)
    assert solo.core.term == 1
