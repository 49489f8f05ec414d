"""Read barriers, leases, bounded reads."""

from __future__ import annotations

import pytest

from tests.unit.consensus.network import Network
from tests.unit.consensus.solo import Solo
from zcluster.consensus.api import REMOVE, ConfigChange, Heartbeat, HeartbeatReply, TimeoutNow
from zcluster.errors import NotLeader
from zcluster.types import MS

TIMEOUT = 600 * MS
LEASE = 540 * MS


def leading() -> Solo:
    """A leader whose rounds so far are confirmed."""
    solo = Solo()
    solo.lead()
    solo.wait(60 * MS)
    solo.step(2, HeartbeatReply(1, solo.last(Heartbeat).round))
    solo.take()
    return solo


def test_reads_of_a_turn_share_a_round_that_starts_after_them() -> None:
    solo = leading()
    solo.core.read_barrier(1, solo.now)
    solo.core.read_barrier(2, solo.now)
    solo.pump()
    assert [type(m) for _, m in solo.sent] == [Heartbeat, Heartbeat]
    round_ = solo.last(Heartbeat).round
    solo.step(2, HeartbeatReply(1, round_ - 1))
    assert not solo.reads
    solo.step(2, HeartbeatReply(1, round_))
    assert solo.reads == {1: 1, 2: 1}


def test_an_answer_to_an_older_round_confirms_no_read() -> None:
    solo = leading()
    solo.wait(60 * MS)
    old = solo.last(Heartbeat).round
    solo.core.read_barrier(1, solo.now)
    solo.pump()
    solo.step(2, HeartbeatReply(1, old))
    solo.step(3, HeartbeatReply(1, old))
    assert not solo.reads


def test_reads_that_come_while_a_round_is_out_wait_for_the_next_together() -> None:
    solo = leading()
    solo.core.read_barrier(1, solo.now)
    solo.pump()
    first = solo.last(Heartbeat).round
    solo.take()
    for token in (2, 3):
        solo.core.read_barrier(token, solo.now)
        solo.pump()
    assert not solo.said(Heartbeat)
    solo.step(2, HeartbeatReply(1, first))
    assert solo.reads == {1: 1}
    assert solo.last(Heartbeat).round == first + 1
    solo.step(2, HeartbeatReply(1, first + 1))
    assert solo.reads == {1: 1, 2: 1, 3: 1}


def test_a_lost_round_is_followed_by_the_next_heartbeat() -> None:
    solo = leading()
    solo.core.read_barrier(1, solo.now)
    solo.pump()
    solo.wait(60 * MS)
    solo.step(3, HeartbeatReply(1, solo.last(Heartbeat).round))
    assert solo.reads == {1: 1}


def test_a_read_before_the_first_commit_of_the_term_waits_and_captures_then() -> None:
    solo = Solo()
    solo.become_leader()
    solo.step(2, HeartbeatReply(1, solo.last(Heartbeat).round))
    solo.core.read_barrier(1, solo.now)
    solo.core.read_barrier(2, solo.now, lease=True)
    solo.pump()
    solo.wait(60 * MS)
    for peer in (2, 3):
        solo.step(peer, HeartbeatReply(1, solo.last(Heartbeat).round))
    assert not solo.reads
    solo.propose()
    solo.acknowledge(2)
    solo.step(2, HeartbeatReply(1, solo.last(Heartbeat).round))
    assert solo.reads == {1: 2, 2: 2}


def test_one_node_cluster_does_not_answer_reads_before_its_log_is_committed() -> None:
    solo = Solo(voters=(1,), bootstrap=True, auto=False)
    solo.wait(0)
    solo.persist()
    assert solo.core.is_leader
    solo.core.read_barrier(1, solo.now)
    solo.pump()
    assert not solo.reads
    solo.persist()
    assert solo.reads == {1: 1}
    solo.core.read_barrier(2, solo.now, lease=True)
    solo.pump()
    assert solo.reads[2] == 1
    assert solo.core.bounded_index(solo.now, 0) == 1


def test_a_round_is_judged_anew_when_the_majority_changes() -> None:
    solo = Solo(voters=(1, 2))
    solo.lead()
    solo.core.read_barrier(1, solo.now)
    solo.pump()
    assert not solo.reads
    solo.core.propose_config(ConfigChange(REMOVE, 2), solo.now)
    solo.pump()
    assert solo.reads == {1: 1}


def test_reads_fail_when_leadership_ends() -> None:
    solo = leading()
    solo.core.read_barrier(1, solo.now)
    solo.pump()
    solo.core.read_barrier(2, solo.now)
    solo.follow(2, term=2)
    assert (solo.reads, solo.reads_failed) == ({}, [1, 2])
    with pytest.raises(NotLeader):
        solo.core.read_barrier(3, solo.now)


# -- leases ------------------------------------------------------------------------------------------------------------


def answered_by_lease(solo: Solo, token: int = 99) -> bool:
    solo.core.read_barrier(token, solo.now, lease=True)
    solo.pump()
    return token in solo.reads


def test_the_lease_counts_from_the_send_time_of_a_confirmed_round() -> None:
    solo = leading()
    start = solo.now
    solo.now = start + LEASE - 1
    assert answered_by_lease(solo, 1)
    solo.now = start + LEASE
    assert not answered_by_lease(solo, 2)


def test_a_late_answer_does_not_lengthen_the_lease() -> None:
    solo = leading()
    solo.wait(60 * MS)
    sent_at, round_ = solo.now, solo.last(Heartbeat).round
    solo.now += LEASE
    solo.step(2, HeartbeatReply(1, round_))
    assert solo.now >= sent_at + LEASE
    assert not answered_by_lease(solo)


def test_a_leader_stopped_beyond_its_lease_asks_a_majority_first() -> None:
    network = Network(3, seed=1)
    old = network.elect()
    network.run(200 * MS)
    network.pause(old)
    network.run(5 * TIMEOUT)
    network.commit(b"new")
    assert network.leader() != old
    network.nodes[old].paused = False
    token = network.read(old, lease=True)  # before anything queued is stepped
    network.resume(old)
    network.run(TIMEOUT)
    assert network.answer(old, token) is None
    assert token in network.nodes[old].reads_failed


def test_the_lease_dies_with_timeout_now_for_the_rest_of_the_term() -> None:
    solo = leading()
    solo.core.transfer_leadership(2, solo.now)
    solo.pump()
    assert solo.said(TimeoutNow)
    assert not answered_by_lease(solo, 1)
    solo.wait(TIMEOUT // 2)
    solo.step(2, HeartbeatReply(1, solo.last(Heartbeat).round))
    solo.wait(TIMEOUT // 2)
    assert solo.core.status().transfer_to == 0
    assert 1 in solo.reads, "by the round"
    assert not answered_by_lease(solo, 2), "the transfer was given up, the message may still arrive"


def test_a_delayed_timeout_now_leads_to_no_stale_lease_read() -> None:
    network = Network(3, seed=2)
    old = network.elect()
    network.run(200 * MS)
    held = []
    network.drop = lambda sender, to, message: isinstance(message, TimeoutNow) and not held.append((to, message))
    network.core(old).transfer_leadership(0, network.now)
    network.pump(network.nodes[old])
    network.run(2 * TIMEOUT)
    assert network.leader() == old
    (target, message) = held[0]
    network.partition([i for i in network.nodes if i != old], [old])
    network.core(target).step(old, network.nodes[old].incarnation, message, network.now)
    network.pump(network.nodes[target])
    network.run(50 * MS)
    network.commit(b"new")
    token = network.read(old, lease=True)  # the oracle checks the answer, if there is one
    network.run(TIMEOUT)
    assert network.answer(old, token) is None


def test_a_restarted_follower_keeps_the_lease_promise_of_its_former_life() -> None:
    """The leader holds its lease through {leader, a}; a restarts; the isolated b stands."""
    network = Network(3, seed=4)
    leader = network.elect()
    network.run(300 * MS)
    a, b = (i for i in network.nodes if i != leader)
    network.partition([leader, a], [b])
    network.run(450 * MS)  # b is about to stand
    network.crash(a)
    network.start(a)
    network.partition([leader], [a, b])
    for _ in range(60):
        network.run(10 * MS)
        if network.core(leader).is_leader:
            network.read(leader, lease=True)
        if network.leader() not in (0, leader):
            network.propose(b"new")
    network.run(4 * TIMEOUT)
    assert network.leader() in (a, b)


# -- bounded -----------------------------------------------------------------------------------------------------------


def test_bounded_reads_rest_on_the_last_confirmed_round() -> None:
    solo = leading()
    start = solo.now
    solo.now += 30 * MS
    assert solo.core.bounded_index(solo.now, 30 * MS) == 1
    assert solo.core.bounded_index(solo.now, 30 * MS - 1) is None
    solo.wait(30 * MS)
    heartbeat = solo.last(Heartbeat)
    assert (heartbeat.quorum_time, heartbeat.quorum_commit) == (start, 1)


def test_a_follower_serves_bounded_reads_by_heartbeats() -> None:
    solo = Solo()
    solo.follow(2, quorum_time=solo.now - 40 * MS, quorum_commit=7)
    assert solo.core.bounded_index(solo.now, 40 * MS) == 7
    assert solo.core.bounded_index(solo.now + 1, 40 * MS) is None
    solo.follow(2, quorum_time=solo.now - 50 * MS, quorum_commit=6)  # reordered
    solo.follow(2, quorum_time=solo.now + 50 * MS, quorum_commit=9)  # nonsense
    assert solo.core.bounded_index(solo.now, 60 * MS) == 7


def test_no_bounded_read_before_a_current_term_commit() -> None:
    solo = Solo()
    solo.become_leader()
    solo.step(2, HeartbeatReply(1, solo.last(Heartbeat).round))
    assert solo.core.bounded_index(solo.now, TIMEOUT) is None
    solo.follow(2, term=2, quorum_time=solo.now, quorum_commit=0)
    assert solo.core.bounded_index(solo.now, TIMEOUT) is None
