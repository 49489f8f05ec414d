"""What Paxos may do that Raft does not, as the replica sees it."""

from __future__ import annotations

from tests.unit.node.test_members import ask, commit, config_entry, confirm, in_force
from tests.unit.node.test_replica import A, B, effects, make, refusal, result
from zcluster import wire
from zcluster.consensus.api import ADD_LEARNER


def test_a_value_that_another_proposer_proposed_again_is_answered() -> None:
    """It is the very entry, chosen under another ballot: to call it lost would be a lie, and end in a second one."""
    replica, core, _ = make()
    replica.client_message(A, wire.WRITE, 1, b"mine", 0)
    effects(replica, wall_ms=100)
    core.is_leader, core.leader, core.term = False, 2, 4
    core.commit(b"mine", term=4, time_ms=100)
    assert effects(replica)["replies"] == [result(A, 1, b"MINE")]


def test_another_value_in_its_slot_means_that_it_was_never_chosen() -> None:
    replica, core, _ = make()
    replica.client_message(A, wire.WRITE, 1, b"mine", 0)
    effects(replica, wall_ms=100)
    core.is_leader, core.leader, core.term = False, 2, 4
    core.commit(b"mine", term=4, time_ms=101)  # the same frame, sent again to another: another entry
    assert effects(replica)["replies"] == [refusal(A, 1, 2, 4)]


def test_a_change_of_the_members_that_another_proposer_proposed_again_is_answered() -> None:
    """To send its client on would be harmless, for a change may be asked for twice; but it is not what happened."""
    replica, core, _ = make()
    ask(replica, ADD_LEARNER, 4)
    confirm(replica, core)
    core.is_leader, core.leader, core.term = False, 2, 4
    commit(core, config_entry(1, 4, (1, 2, 3), (4,)))
    assert effects(replica)["replies"] == [result(A, 1, in_force(1, (1, 2, 3), (4,)))]


def test_frames_that_were_proposed_in_its_place_before_do_not_answer_for_a_change() -> None:
    """Cut off, led again, proposed a change at the same index; in the end the frames are what is committed there."""
    replica, core, _ = make()
    replica.client_message(A, wire.WRITE, 1, b"mine", 0)
    effects(replica, wall_ms=100)
    core.last_index, core.term = 0, 5
    effects(replica)
    ask(replica, ADD_LEARNER, 4, client=B, request=2)
    confirm(replica, core)
    core.is_leader, core.leader, core.term = False, 2, 6
    core.commit(b"mine", term=3, time_ms=100)
    assert effects(replica)["replies"] == [refusal(B, 2, 2, 6)]
