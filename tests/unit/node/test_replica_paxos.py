"""What Paxos may do that Raft does not, as the replica sees it."""

from __future__ import annotations

from tests.unit.node.test_replica import A, effects, make, refusal, result
from zcluster import wire


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
