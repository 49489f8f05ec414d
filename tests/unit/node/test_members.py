"""Membership requests to a replica: answered once the change has committed, and harmless when repeated."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.unit.node.test_replica import META0, A, B, ScriptedCore, effects, make, refusal, result
from zcluster import wire
from zcluster.consensus.api import ADD_LEARNER, PROMOTE, REMOVE, Ready
from zcluster.errors import Busy, InvalidInput
from zcluster.node import members
from zcluster.node.replica import Replica
from zcluster.types import KIND_CONFIG, KIND_FRAMES, KIND_NOOP, Configuration, Entry


def ask(replica: Replica, action: str, who: int, *, client: bytes = A, request: int = 1, at: int | None = None) -> None:
    body = wire.encode(members.Request(action, who, at))
    replica.client_message(client, wire.MEMBERSHIP, request, body, 0)


def confirm(replica: Replica, core: ScriptedCore, token: int = 1) -> dict[str, Any]:
    """Let the barrier that the request waits for be confirmed."""
    assert effects(replica) == {}
    core.readys.append(Ready(seq=0, reads=[(token, replica.last_applied)]))
    return effects(replica)


def config_entry(index: int, term: int, voters: tuple[int, ...], learners: tuple[int, ...] = ()) -> Entry:
    return Entry(index, term, KIND_CONFIG, msgspec.msgpack.encode(Configuration(voters, learners, index)))


def commit(core: ScriptedCore, entry: Entry) -> None:
    core.commit_index = entry.index
    core.readys.append(Ready(seq=0, committed=(entry,)))


def in_force(index: int, voters: tuple[int, ...], learners: tuple[int, ...] = ()) -> bytes:
    return wire.encode([index, voters, learners])


def test_a_change_is_answered_when_it_has_committed_and_not_before() -> None:
    replica, core, _ = make()
    ask(replica, ADD_LEARNER, 4, request=7)
    assert confirm(replica, core) == {}
    assert core.told == [("barrier", 1, False), (ADD_LEARNER, 4)]
    commit(core, config_entry(1, 3, (1, 2, 3), (4,)))
    assert effects(replica) == {"replies": [result(A, 7, in_force(1, (1, 2, 3), (4,)))]}
    assert members.decode_configuration(in_force(1, (1, 2, 3), (4,))) == Configuration((1, 2, 3), (4,), 1)


@pytest.mark.parametrize(("action", "who"), [(ADD_LEARNER, 2), (PROMOTE, 2), (REMOVE, 4), (members.SHOW, 0)])
def test_what_is_so_already_is_a_success_and_changes_nothing(action: str, who: int) -> None:
    replica, core, _ = make()
    ask(replica, action, who)
    assert confirm(replica, core) == {"replies": [result(A, 1, in_force(0, (1, 2, 3)))]}
    assert core.told == [("barrier", 1, False)]


def test_a_leader_that_was_deposed_unawares_does_not_say_that_it_is_so_already() -> None:
    """Replica 4 may have become a voter since: whoever believed that it is none would remove its data."""
    replica, core, _ = make()
    ask(replica, REMOVE, 4)
    assert effects(replica) == {}
    core.readys.append(Ready(seq=0, reads_failed=[1]))
    assert effects(replica) == {"replies": [refusal(A, 1, 1, 3)]}


def test_a_follower_sends_the_request_to_the_leader() -> None:
    replica, core, _ = make()
    core.is_leader, core.leader = False, 2
    ask(replica, ADD_LEARNER, 4)
    assert effects(replica)["replies"] == [refusal(A, 1, 2, 3)]
    core.is_leader = True
    ask(replica, ADD_LEARNER, 4)
    effects(replica)
    core.is_leader = False
    core.readys.append(Ready(seq=0, reads=[(1, 0)]))
    assert effects(replica)["replies"] == [refusal(A, 1, 2, 3)], "leadership was lost behind the barrier"


def test_a_change_that_is_not_possible_yet_says_why() -> None:
    replica, core, _ = make()
    core.refuse = Busy("replica 4 is 312 entries behind; retry")
    ask(replica, PROMOTE, 4)
    [(client, head, body)] = confirm(replica, core)["replies"]
    assert (client, head) == (A, wire.pack_head(wire.BUSY, 1))
    assert wire.decode(body) == ["replica 4 is 312 entries behind; retry"]


def test_a_request_that_was_long_under_way_changes_nothing_any_more() -> None:
    """Replica 4 was added and removed since; the request to add it is a copy that comes late."""
    replica, core, _ = make()
    commit(core, config_entry(1, 3, (1, 2, 3), (4,)))
    commit(core, config_entry(2, 3, (1, 2, 3)))
    effects(replica)
    ask(replica, ADD_LEARNER, 4, at=0)
    [(_, head, body)] = confirm(replica, core)["replies"]
    assert head == wire.pack_head(wire.BUSY, 1)
    assert wire.decode(body) == ["the configuration has changed meanwhile, at 2; retry"]
    assert core.told == [("barrier", 1, False)]
    ask(replica, ADD_LEARNER, 5, at=2)
    confirm(replica, core, token=2)
    assert core.told[-1] == (ADD_LEARNER, 5)


def test_a_change_that_makes_no_sense_fails() -> None:
    replica, core, _ = make()
    core.refuse = InvalidInput("replica 4 is not a learner; add it as one first")
    ask(replica, PROMOTE, 4)
    [(_, head, body)] = confirm(replica, core)["replies"]
    assert head == wire.pack_head(wire.FAILED, 1)
    assert wire.decode(body) == [wire.E_BAD_REQUEST, "replica 4 is not a learner; add it as one first"]


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", wire.encode([]), wire.encode(["vanish", 2]), wire.encode([REMOVE, "2"]), wire.encode([REMOVE])],
)
def test_garbage_gets_a_clear_refusal(body: bytes) -> None:
    replica, core, _ = make()
    replica.client_message(A, wire.MEMBERSHIP, 1, body, 0)
    [(_, head, _)] = effects(replica)["replies"]
    assert head == wire.pack_head(wire.FAILED, 1)
    assert core.told == []


@pytest.mark.parametrize(
    "other",
    [config_entry(1, 4, (1, 2)), Entry(1, 4, KIND_NOOP, b""), Entry(1, 4, KIND_FRAMES, wire.encode_payload(0, 1, []))],
)
def test_a_change_lost_to_another_leader_is_refused_as_certainly_not_made(other: Entry) -> None:
    replica, core, _ = make()
    ask(replica, ADD_LEARNER, 4)
    confirm(replica, core)
    core.is_leader, core.leader, core.term = False, 2, 4
    commit(core, other)
    assert effects(replica)["replies"] == [refusal(A, 1, 2, 4)]


def test_a_leader_that_is_to_go_hands_over_first() -> None:
    replica, core, _ = make()
    ask(replica, REMOVE, 1)
    [(_, head, body)] = confirm(replica, core)["replies"]
    assert head == wire.pack_head(wire.BUSY, 1)
    assert "hands its leadership over" in wire.decode(body)[0]
    assert core.told == [("barrier", 1, False), ("transfer", 0)]


def test_a_leader_that_is_to_go_waits_until_somebody_can_take_over() -> None:
    replica, core, _ = make()
    core.refuse = InvalidInput("leadership cannot go to replica 0: it must be another voter")
    ask(replica, REMOVE, 1)
    [(_, head, body)] = confirm(replica, core)["replies"]
    assert head == wire.pack_head(wire.BUSY, 1)
    assert "no other voter" in wire.decode(body)[0]


def test_the_only_voter_is_not_told_to_hand_over() -> None:
    replica, core, _ = make()
    commit(core, config_entry(1, 3, (1,)))
    core.last_index = 1
    effects(replica)
    core.refuse = InvalidInput("replica 1 is the last voter")
    ask(replica, REMOVE, 1)
    [(_, head, body)] = confirm(replica, core)["replies"]
    assert head == wire.pack_head(wire.FAILED, 1)
    assert "last voter" in wire.decode(body)[1]


def test_of_two_who_ask_for_the_same_both_are_answered() -> None:
    replica, core, _ = make()
    ask(replica, REMOVE, 3)
    confirm(replica, core)
    ask(replica, REMOVE, 3, client=B)
    core.refuse = Busy("another membership change is not committed yet; retry")
    [(client, head, _)] = confirm(replica, core, token=2)["replies"]
    assert (client, head) == (B, wire.pack_head(wire.BUSY, 1))
    commit(core, config_entry(1, 3, (1, 2)))
    assert effects(replica)["replies"] == [result(A, 1, in_force(1, (1, 2)))]
    ask(replica, REMOVE, 3, client=B, request=2)
    assert confirm(replica, core, token=3)["replies"] == [result(B, 2, in_force(1, (1, 2)))]


def test_the_initial_configuration_is_the_checkpoints() -> None:
    replica, core, _ = make()
    ask(replica, members.SHOW, 0)
    assert confirm(replica, core)["replies"] == [result(A, 1, in_force(0, META0.configuration.voters))]
