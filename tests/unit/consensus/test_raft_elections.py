"""Elections: terms, votes, pre-votes, promises, certificates."""

from __future__ import annotations

import pytest

from tests.unit.consensus.network import Network
from tests.unit.consensus.solo import Solo, entries
from zcluster.consensus.api import (
    AppendReply,
    AppendRequest,
    Heartbeat,
    HeartbeatReply,
    PreVoteReply,
    PreVoteRequest,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from zcluster.types import KIND_NOOP, MS, NEVER, Entry, HardState

TIMEOUT = 600 * MS


# -- becoming leader ---------------------------------------------------------------------------------------------------


def test_s5_2_timeouts_are_drawn_from_one_to_one_and_a_half() -> None:
    waits = [Solo(seed=seed).core.next_deadline() - 1_000 * MS for seed in range(200)]
    assert all(TIMEOUT <= wait < TIMEOUT * 3 // 2 for wait in waits)
    assert len(set(waits)) > 150


def test_pre_vote_changes_no_term_and_writes_nothing() -> None:
    solo = Solo(term=3, log=entries(1, 1, 3))
    solo.time_out()
    assert solo.take() == [(2, PreVoteRequest(4, 2, 3)), (3, PreVoteRequest(4, 2, 3))]
    assert (solo.core.term, solo.core.role, solo.writes) == (3, "pre_candidate", [])


def test_vote_requests_and_the_own_vote_wait_for_the_disk() -> None:
    solo = Solo(auto=False)
    solo.time_out()
    solo.step(2, PreVoteReply(1, True))
    assert solo.writes[-1].hard_state == HardState(1, 1)
    assert not solo.said(VoteRequest)
    solo.step(2, VoteReply(1, True))  # cannot honestly be here yet; and the own vote is not on disk
    assert not solo.core.is_leader
    solo.persist()
    assert solo.said(VoteRequest) == 2
    assert solo.core.is_leader


def test_new_leader_announces_itself_and_starts_its_term_with_a_no_op() -> None:
    solo = Solo(auto=False)
    solo.time_out()
    solo.step(3, PreVoteReply(1, True))
    solo.persist()
    solo.take()
    solo.step(3, VoteReply(1, True))
    assert [type(m) for _, m in solo.sent] == [Heartbeat, Heartbeat, AppendRequest, AppendRequest]
    first, second = (m for _, m in solo.sent if isinstance(m, AppendRequest))
    assert first is second, "one object for followers at one position"
    assert [(e.index, e.epoch, e.kind) for e in first.entries] == [(1, 1, 1)]


def test_duplicated_vote_replies_count_once() -> None:
    solo = Solo(voters=(1, 2, 3, 4, 5))
    solo.time_out()
    solo.step(2, *[PreVoteReply(1, True)] * 5)
    assert solo.core.role == "pre_candidate"
    solo.step(3, PreVoteReply(1, True))
    solo.step(2, *[VoteReply(1, True)] * 5)
    assert solo.core.role == "candidate"
    solo.step(3, VoteReply(1, True))
    assert solo.core.is_leader


def test_votes_of_learners_and_strangers_do_not_count() -> None:
    solo = Solo()
    solo.time_out()
    solo.step(9, PreVoteReply(1, True))
    assert solo.core.role == "pre_candidate"


def test_refused_by_a_majority_a_candidate_falls_back() -> None:
    solo = Solo()
    solo.time_out()
    solo.step(2, PreVoteReply(0, False))
    solo.step(3, PreVoteReply(0, False))
    assert solo.core.role == "follower"
    assert solo.core.next_deadline() < NEVER


def test_lowest_voter_stands_at_once_at_the_first_creation() -> None:
    assert Solo(1, bootstrap=True).core.next_deadline() == 1_000 * MS
    assert Solo(2, bootstrap=True).core.next_deadline() >= 1_000 * MS + TIMEOUT
    assert Solo(1, bootstrap=True, term=1).core.next_deadline() >= 1_000 * MS + TIMEOUT


def test_one_node_cluster_leads_at_once_even_after_a_restart() -> None:
    solo = Solo(voters=(1,), term=4, voted_for=1, log=entries(1, 4), hold_votes=True)
    solo.wait(0)
    assert solo.core.is_leader
    assert solo.core.commit_index == 2


# -- granting ----------------------------------------------------------------------------------------------------------


def test_vote_reply_waits_for_persisted_vote() -> None:
    solo = Solo(auto=False)
    solo.step(2, VoteRequest(1, 0, 0))
    assert solo.writes[-1].hard_state == HardState(1, 2)
    assert not solo.sent
    solo.persist()
    assert solo.take() == [(2, VoteReply(1, True))]


def test_one_vote_a_term_also_after_a_restart() -> None:
    solo = Solo()
    solo.step(2, VoteRequest(1, 0, 0))
    solo.step(3, VoteRequest(1, 0, 0))
    assert solo.take() == [(2, VoteReply(1, True)), (3, VoteReply(1, False))]
    again = Solo(term=1, voted_for=2)
    again.step(3, VoteRequest(1, 0, 0))
    again.step(2, VoteRequest(1, 0, 0))
    assert again.take() == [(3, VoteReply(1, False)), (2, VoteReply(1, True))]


@pytest.mark.parametrize(
    ("last", "granted"), [((5, 2), False), ((2, 3), False), ((3, 3), True), ((4, 3), True), ((1, 4), True)]
)
def test_s5_4_1_a_candidate_with_a_stale_log_and_a_higher_term_loses(last: tuple[int, int], granted: bool) -> None:
    solo = Solo(term=3, log=entries(1, 1, 2, 3))
    solo.step(2, PreVoteRequest(9, *last))
    assert solo.last(PreVoteReply).granted is granted
    solo.step(2, VoteRequest(9, *last))
    assert solo.last(VoteReply) == VoteReply(9, granted)


def test_refused_candidates_do_not_postpone_the_own_election() -> None:
    solo = Solo(term=3, log=entries(1, 3))
    before = solo.core.next_deadline()
    solo.now += TIMEOUT
    solo.step(2, VoteRequest(9, 0, 0))
    assert solo.core.term == 9
    assert solo.core.next_deadline() == before


def test_pre_vote_and_vote_are_refused_while_a_leader_is_heard() -> None:
    solo = Solo()
    solo.follow(2)
    solo.now += TIMEOUT - 1
    solo.step(3, PreVoteRequest(2, 9, 1), VoteRequest(2, 9, 1))
    assert solo.last(PreVoteReply) == PreVoteReply(1, False)
    assert (solo.core.term, solo.core.leader, solo.said(VoteReply)) == (1, 2, 0)
    solo.now += 1
    solo.step(3, PreVoteRequest(2, 9, 1), VoteRequest(2, 9, 1))
    assert solo.last(PreVoteReply).granted and solo.last(VoteReply).granted


def test_a_promise_outlives_a_higher_term_learned_otherwise() -> None:
    solo = Solo()
    solo.follow(2)
    solo.step(3, VoteReply(5, False))  # tells of term 5, nobody asked for a vote
    assert solo.core.term == 5
    solo.step(3, VoteRequest(5, 9, 1))
    assert solo.last(VoteReply) == VoteReply(5, False)


def test_a_leader_keeps_its_term_against_a_disrupting_candidate() -> None:
    solo = Solo()
    solo.lead()
    solo.step(3, PreVoteRequest(9, 9, 9), VoteRequest(9, 9, 9))
    assert solo.core.is_leader
    assert solo.core.term == 1


def test_a_failed_candidate_with_a_higher_term_brings_the_leader_to_a_new_election() -> None:
    solo = Solo(term=5)
    solo.follow(2, term=4)
    assert solo.take() == [(2, AppendReply(5, False, 0))]
    leader = Solo()
    leader.lead()
    leader.step(3, AppendReply(5, False, 0))
    assert (leader.core.role, leader.core.term) == ("follower", 5)


def test_restarted_replica_holds_its_vote_and_does_not_stand_for_an_election_timeout() -> None:
    solo = Solo(term=1, hold_votes=True)
    solo.now += TIMEOUT - 1
    solo.step(2, PreVoteRequest(2, 9, 1), VoteRequest(2, 9, 1))
    assert (solo.core.term, solo.said(VoteReply)) == (1, 0)
    assert not solo.last(PreVoteReply).granted
    assert solo.core.next_deadline() > solo.now
    solo.now += 1
    solo.step(2, VoteRequest(2, 9, 1))
    assert solo.last(VoteReply).granted


def test_the_hold_counts_from_the_end_of_the_former_life_where_that_is_known() -> None:
    start = 1_000 * MS
    solo = Solo(term=1, hold_votes=True, stopped_at=start - 200 * MS)
    solo.wait(TIMEOUT - 200 * MS - 1)
    solo.step(2, PreVoteRequest(2, 9, 1))
    assert not solo.last(PreVoteReply).granted
    solo.now += 1
    solo.step(2, PreVoteRequest(2, 9, 1))
    assert solo.last(PreVoteReply).granted
    future = Solo(term=1, hold_votes=True, stopped_at=start + 10_000 * MS)
    future.wait(TIMEOUT - 1)
    assert future.core.promise.binds(future.now), "no moment of a former life is later than now"
    future.now += 1
    assert not future.core.promise.binds(future.now)


def test_where_all_were_restarted_they_elect_as_soon_as_no_promise_binds() -> None:
    network = Network(3, seed=5)
    network.elect()
    network.commit()
    for stopped_at, span in ((network.now - 10_000 * MS, 100 * MS), (NEVER, TIMEOUT + 100 * MS)):
        for replica in (1, 2, 3):
            network.crash(replica)
        for replica in (3, 2, 1):
            network.start(replica, stopped_at=stopped_at)
        network.run(span)
        assert network.leader()


def test_a_replica_restarted_after_an_orderly_stop_does_not_disturb_the_others() -> None:
    network = Network(3, seed=6)
    leader = network.elect()
    term = network.core(leader).term
    other = next(i for i in (1, 2, 3) if i != leader)
    network.crash(other, tell=False)
    network.start(other, stopped_at=0)
    network.run(3_000 * MS)
    assert (network.leader(), network.core(leader).term) == (leader, term)


def test_replica_in_repair_neither_votes_nor_stands() -> None:
    solo = Solo(term=1, repair=True)
    solo.step(2, PreVoteRequest(2, 9, 1), VoteRequest(2, 9, 1))
    assert not solo.last(PreVoteReply).granted
    assert solo.last(VoteReply) == VoteReply(2, False)
    solo.time_out()
    assert (solo.core.role, solo.core.next_deadline()) == ("follower", NEVER)


def test_after_a_power_cut_a_candidate_that_may_lack_something_needs_every_voter() -> None:
    solo = Solo(term=1, suspect_after=1)
    solo.time_out()
    solo.step(2, PreVoteReply(2, True))
    assert solo.core.role == "pre_candidate"
    solo.step(3, PreVoteReply(2, True))
    solo.step(2, VoteReply(2, True))
    assert solo.core.role == "candidate"
    solo.step(3, VoteReply(2, True))
    assert solo.core.is_leader
    refused = Solo(term=1, suspect_after=1)
    refused.time_out()
    refused.step(2, PreVoteReply(1, False))
    assert refused.core.role == "follower"


def test_one_suspect_vote_makes_a_candidate_need_every_voter() -> None:
    solo = Solo(term=1, log=entries(1, 1))
    solo.time_out()
    solo.step(2, PreVoteReply(2, True, suspect=True))
    assert solo.core.role == "pre_candidate"
    solo.step(3, PreVoteReply(2, True))
    solo.step(3, VoteReply(2, True))
    assert solo.core.is_leader, "the second vote was sound; so the first one need not be waited for"
    solo = Solo(term=1, log=entries(1, 1))
    solo.time_out()
    solo.step(2, PreVoteReply(2, True), VoteReply(2, True, suspect=True))
    assert solo.core.role == "candidate"
    solo.step(3, VoteReply(2, True))
    assert solo.core.is_leader


@pytest.mark.parametrize(("last_term", "suspect"), [(3, True), (4, True), (5, False)])
def test_a_voter_is_suspect_unless_the_candidate_has_an_entry_of_a_later_term(last_term: int, suspect: bool) -> None:
    solo = Solo(term=4, log=entries(1, 3), suspect_after=4)
    solo.step(2, PreVoteRequest(6, 9, last_term), VoteRequest(6, 9, last_term))
    assert solo.take() == [(2, PreVoteReply(6, True, suspect)), (2, VoteReply(6, True, suspect))]


def test_status_says_that_an_election_needs_everybody_until_there_is_an_entry_of_a_later_term() -> None:
    solo = Solo(term=4, log=entries(1, 3), suspect_after=4)
    assert solo.core.status().suspect
    solo.step(2, AppendRequest(5, 1, 3, 0, (Entry(2, 5, KIND_NOOP, b""),)))
    assert not solo.core.status().suspect
    assert not Solo(term=4, log=entries(1, 3)).core.status().suspect


def test_after_a_power_cut_a_short_but_sound_log_does_not_replace_what_another_replica_has_applied() -> None:
    """Replica 3 stopped cleanly and early; 1 and 2 went on. The power cut takes 2's copy, 1 has a checkpoint."""
    network = Network(3, seed=11, pidfds=True)
    network.elect()
    network.commit(b"early")
    network.settle()
    network.crash(3)
    for number in range(5):
        network.commit(b"late %d" % number)
    network.settle()
    network.compact(1)
    terms = {i: network.nodes[i].disk.hard_state.term for i in (1, 2)}
    for replica in (1, 2):
        network.crash(replica)
    network.nodes[2].disk.entries = {i: e for i, e in network.nodes[2].disk.entries.items() if i <= 2}
    network.start(3, hold_votes=False)
    network.start(2, hold_votes=False, suspect_after=terms[2])
    network.run(5_000 * MS)
    assert not network.leader(), "it lacks what replica 1 has applied"
    network.start(1, hold_votes=False, suspect_after=terms[1])
    network.elect()
    network.commit(b"after")
    network.settle()  # the oracle compares what each replica is given to apply


# -- time --------------------------------------------------------------------------------------------------------------


def test_a_resumed_follower_does_not_stand_under_a_living_leader() -> None:
    network = Network(3, seed=3)
    leader = network.elect()
    follower = next(i for i in network.nodes if i != leader)
    network.pause(follower)
    network.run(10 * TIMEOUT)
    network.drop = lambda sender, to, message: isinstance(message, PreVoteRequest) and pytest.fail("it stood")
    network.resume(follower)
    network.run(10 * TIMEOUT)
    assert network.core(leader).is_leader


def test_a_resumed_leader_without_its_majority_steps_down_by_the_time_of_now() -> None:
    solo = Solo()
    solo.lead()
    solo.now += 10 * TIMEOUT
    solo.wait(0)
    assert (solo.core.role, solo.core.leader) == ("follower", 0)


def test_check_quorum_counts_the_last_election_timeout() -> None:
    solo = Solo(voters=(1, 2, 3, 4, 5))
    solo.lead()
    start = solo.now
    while solo.now < start + 3 * TIMEOUT:
        solo.wait(50 * MS)
        for peer in (2, 3) if solo.now < start + TIMEOUT else (2,):
            solo.step(peer, HeartbeatReply(1, 0))
        if not solo.core.is_leader:
            break
    assert start + 2 * TIMEOUT - 100 * MS <= solo.now <= start + 2 * TIMEOUT + 50 * MS


# -- death certificates ------------------------------------------------------------------------------------------------


def test_survivors_stand_in_rank_order_within_milliseconds() -> None:
    waits = {}
    for own in (2, 3, 4):
        solo = Solo(own, voters=(1, 2, 3, 4))
        solo.follow(1)
        solo.core.peer_lost(1, 1, solo.now)
        waits[own] = (solo.core.next_deadline() - solo.now) / MS
        assert solo.core.leader == 0
    assert waits[2] == 0
    assert 8 <= waits[3] < 12
    assert 16 <= waits[4] < 20


def test_requests_carry_the_certificate() -> None:
    solo = Solo(2)
    solo.follow(1)
    solo.core.peer_lost(1, 1, solo.now)
    solo.time_out()
    assert solo.last(PreVoteRequest).certificate == (1, 1)
    solo.step(3, PreVoteReply(2, True))
    assert solo.last(VoteRequest).certificate == (1, 1)


@pytest.mark.parametrize("last_index", [0, 5])  # an equal log and a lower id; a longer log
def test_a_survivor_gives_way_to_one_with_a_better_claim(last_index: int) -> None:
    solo = Solo(3)
    solo.follow(1)
    solo.core.peer_lost(1, 1, solo.now)
    before = solo.core.next_deadline()
    solo.step(2, PreVoteRequest(2, last_index, min(last_index, 1), (1, 1)))
    assert solo.last(PreVoteReply) == PreVoteReply(2, True)
    assert solo.core.next_deadline() > before + 50 * MS


def test_a_survivor_with_the_better_claim_does_not_give_way() -> None:
    solo = Solo(2)
    solo.follow(1)
    solo.core.peer_lost(1, 1, solo.now)
    solo.time_out()  # a pre-candidate
    solo.step(3, PreVoteRequest(2, 0, 0, (1, 1)))  # an equal log, but a higher id
    assert solo.last(PreVoteReply, 3) == PreVoteReply(2, True)
    solo.step(3, PreVoteReply(2, True))
    assert solo.core.status().role == "candidate"


def test_only_an_own_certificate_voids_the_promise() -> None:
    solo = Solo()
    solo.follow(2)
    solo.step(3, VoteRequest(2, 0, 0, (2, 1)))
    assert solo.core.term == 1
    solo.core.peer_lost(2, 1, solo.now)
    solo.step(3, VoteRequest(2, 0, 0, (2, 1)))
    assert solo.last(VoteReply) == VoteReply(2, True)


def test_a_certificate_of_an_older_incarnation_does_not_void_its_successors_promise() -> None:
    solo = Solo()
    solo.step(2, Heartbeat(1, 1, 0), incarnation=5)
    before = solo.core.next_deadline()
    solo.core.peer_lost(2, 4, solo.now)
    solo.step(3, VoteRequest(2, 9, 9, (2, 4)))
    assert (solo.core.term, solo.core.leader, solo.core.next_deadline()) == (1, 2, before)


def test_a_certificate_of_a_follower_changes_nothing() -> None:
    solo = Solo()
    solo.follow(2)
    before = solo.core.next_deadline()
    solo.core.peer_lost(3, 1, solo.now)
    assert (solo.core.leader, solo.core.next_deadline()) == (2, before)


def test_what_the_dead_said_last_does_not_bring_them_back() -> None:
    solo = Solo(2)
    solo.follow(1)
    solo.core.peer_lost(1, 1, solo.now)
    solo.follow(1, round_=2)
    assert solo.core.leader == 0
    assert solo.core.next_deadline() == solo.now
    solo.step(1, Heartbeat(2, 1, 0), incarnation=2)
    assert solo.core.leader == 1


def test_a_candidate_that_dies_with_our_vote_is_not_waited_for() -> None:
    solo = Solo(3)
    solo.step(2, VoteRequest(1, 0, 0))
    solo.core.peer_lost(2, 1, solo.now)
    assert solo.core.next_deadline() < solo.now + 20 * MS


@pytest.mark.parametrize("seed", range(10))
def test_a_killed_leader_is_replaced_within_milliseconds(seed: int) -> None:
    network = Network(3 + 2 * (seed % 2), seed=seed, pidfds=True)
    network.elect()
    network.run(3 * TIMEOUT)
    network.commit(b"before")
    start, old = network.now, network.leader()
    network.propose(b"maybe")
    network.run(seed * MS // 10)
    network.crash(old)
    assert network.elect() != old
    network.commit(b"after")
    assert network.now - start < 50 * MS


@pytest.mark.parametrize("seed", range(5))
def test_without_certificates_a_killed_leader_is_replaced_by_timeout(seed: int) -> None:
    network = Network(3, seed=seed)
    old = network.elect()
    network.run(3 * TIMEOUT)
    start = network.now
    network.crash(old)
    network.elect()
    assert TIMEOUT * 9 // 10 < network.now - start < 3 * TIMEOUT


# -- partial partitions ------------------------------------------------------------------------------------------------


def settled_leader(network: Network) -> int:
    """The leader that serves after a few timeouts, and that stays."""
    network.run(6 * TIMEOUT)
    leader = network.elect()
    terms = max(n.core.term for n in network.nodes.values() if n.core)
    network.commit()
    network.run(10 * TIMEOUT)
    assert network.leader() == leader
    assert max(n.core.term for n in network.nodes.values() if n.core) == terms
    network.commit()
    return leader


@pytest.mark.parametrize("seed", range(3))
def test_chained_partition_keeps_a_stable_leader(seed: int) -> None:
    network = Network(3, seed=seed)
    network.elect()
    network.partition([1, 2], [2, 3])
    settled_leader(network)


@pytest.mark.parametrize("seed", range(3))
def test_quorum_loss_partition_finds_the_only_replica_with_a_quorum(seed: int) -> None:
    network = Network(5, seed=seed)
    leader = network.elect()
    network.commit()
    hub = next(i for i in network.nodes if i != leader)
    network.partition(*[[hub, other] for other in network.nodes if other != hub])
    assert settled_leader(network) == hub


@pytest.mark.parametrize("seed", range(3))
def test_constrained_partition_elects_the_hub_when_the_old_leader_is_gone(seed: int) -> None:
    network = Network(5, seed=seed)
    leader = network.elect()
    network.commit()
    network.settle()
    hub = next(i for i in network.nodes if i != leader)
    network.partition([leader], *[[hub, other] for other in network.nodes if other not in (hub, leader)])
    assert settled_leader(network) == hub


@pytest.mark.parametrize("seed", range(3))
def test_an_isolated_replica_comes_back_without_an_election(seed: int) -> None:
    network = Network(3, seed=seed)
    leader = network.elect()
    other = next(i for i in network.nodes if i != leader)
    network.partition([i for i in network.nodes if i != other], [other])
    network.run(10 * TIMEOUT)
    network.heal()
    network.run(10 * TIMEOUT)
    assert (network.leader(), len(network.oracle.leaders)) == (leader, 1)


def test_timeout_now_of_another_term_or_sender_is_ignored() -> None:
    solo = Solo(term=3)
    solo.follow(2, term=3)
    solo.step(2, TimeoutNow(2))
    solo.step(3, TimeoutNow(3))
    assert (solo.core.role, solo.core.term) == ("follower", 3)
