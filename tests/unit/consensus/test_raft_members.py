"""Membership, transfer, snapshots, repair."""

from __future__ import annotations

import msgspec
import pytest

from tests.unit.consensus.network import Network
from tests.unit.consensus.solo import Solo, entries
from zcluster.consensus.api import (
    ADD_LEARNER,
    PROMOTE,
    REMOVE,
    AppendReply,
    AppendRequest,
    ConfigChange,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    PreVoteReply,
    Settings,
    TimeoutNow,
    VoteRequest,
)
from zcluster.consensus.log import ENTRY_OVERHEAD_BYTES
from zcluster.errors import Busy, InvalidInput
from zcluster.types import KIND_CONFIG, MS, NEVER, Configuration, Entry, SnapshotMeta

TIMEOUT = 600 * MS


def config_entry(index: int, term: int, voters: tuple[int, ...], learners: tuple[int, ...] = ()) -> Entry:
    return Entry(index, term, KIND_CONFIG, msgspec.msgpack.encode(Configuration(voters, learners, index)))


# -- membership --------------------------------------------------------------------------------------------------------


def test_2015_no_change_before_a_commit_in_the_current_term() -> None:
    solo = Solo()
    solo.become_leader()
    with pytest.raises(Busy):
        solo.core.propose_config(ConfigChange(ADD_LEARNER, 4), solo.now)
    solo.acknowledge(2)
    assert solo.core.propose_config(ConfigChange(ADD_LEARNER, 4), solo.now) == 2


def test_a_change_is_in_force_on_append_and_only_one_is_uncommitted() -> None:
    solo = Solo()
    solo.lead()
    solo.core.propose_config(ConfigChange(ADD_LEARNER, 4), solo.now)
    (ready,) = solo.pump()
    assert ready.configuration == Configuration((1, 2, 3), (4,), 2)
    assert msgspec.msgpack.decode(ready.write.entries[0].data, type=Configuration) == ready.configuration
    assert {to for to, m in ready.messages if isinstance(m, AppendRequest)} == {2, 3, 4}
    with pytest.raises(Busy):
        solo.core.propose_config(ConfigChange(PROMOTE, 4), solo.now)
    solo.acknowledge(2)
    solo.acknowledge(4)
    solo.core.propose_config(ConfigChange(PROMOTE, 4), solo.now)
    solo.pump()
    solo.acknowledge(2)
    assert solo.core.commit_index == 2, "two of four do not commit the fourth voter's own promotion"
    solo.acknowledge(3)
    assert solo.core.commit_index == 3


@pytest.mark.parametrize(
    "change",
    [(ADD_LEARNER, 2), (PROMOTE, 2), (PROMOTE, 9), (REMOVE, 9), (ADD_LEARNER, 0), (ADD_LEARNER, 1 << 16), ("", 4)],
)
def test_changes_that_make_no_sense_are_refused(change: tuple[str, int]) -> None:
    solo = Solo()
    solo.lead()
    with pytest.raises(InvalidInput):
        solo.core.propose_config(ConfigChange(*change), solo.now)
    assert solo.pump() == []


def test_s4_2_1_a_learner_is_promoted_once_it_has_caught_up() -> None:
    solo = Solo(configuration=Configuration((1, 2, 3), (4,)))
    solo.lead()
    promote = ConfigChange(PROMOTE, 4)
    with pytest.raises(Busy, match="does not answer yet"):
        solo.core.propose_config(promote, solo.now)
    solo.acknowledge(4)
    for _ in range(9):
        solo.core.propose(bytes(500_000), solo.now)
        solo.pump()
        solo.acknowledge(2)
    with pytest.raises(Busy, match="9 entries behind"):
        solo.core.propose_config(promote, solo.now)
    solo.step(4, AppendReply(1, True, 2))
    assert solo.core.propose_config(promote, solo.now) == 11, "eight entries of half a megabyte will be there soon"


def test_a_learner_that_has_fallen_silent_is_not_promoted() -> None:
    solo = Solo(configuration=Configuration((1, 2, 3), (4,)))
    solo.lead()
    solo.acknowledge(4)
    solo.now += TIMEOUT
    solo.acknowledge(2)
    with pytest.raises(Busy, match="does not answer yet"):
        solo.core.propose_config(ConfigChange(PROMOTE, 4), solo.now)


def test_no_change_leaves_a_majority_of_silent_voters() -> None:
    """A removal is in force on append: of voters 1 and 3 with 3 dead, nobody could ever commit it."""
    solo = Solo()
    solo.lead()
    solo.now += TIMEOUT
    solo.acknowledge(2)
    with pytest.raises(Busy, match=r"\[3\] do not answer"):
        solo.core.propose_config(ConfigChange(REMOVE, 2), solo.now)
    assert solo.core.propose_config(ConfigChange(REMOVE, 3), solo.now) == 2


def test_who_has_never_answered_this_leader_does_not_count_as_heard() -> None:
    """Right after an election: of voters 1 2 3 4 only 1 and 2 are known to be there, and 3 would be needed."""
    solo = Solo(voters=(1, 2, 3, 4, 5))
    solo.become_leader()
    solo.acknowledge(2)
    solo.acknowledge(5)
    with pytest.raises(Busy, match=r"\[3, 4\] do not answer"):
        solo.core.propose_config(ConfigChange(REMOVE, 5), solo.now)
    solo.acknowledge(3)
    assert solo.core.propose_config(ConfigChange(REMOVE, 5), solo.now) == 2


def test_who_is_known_to_be_dead_does_not_count_as_heard() -> None:
    """Its death is proved at once; it was heard a moment ago."""
    solo = Solo()
    solo.lead()
    solo.core.peer_lost(3, 1, solo.now)
    with pytest.raises(Busy, match=r"\[3\] do not answer"):
        solo.core.propose_config(ConfigChange(REMOVE, 2), solo.now)
    assert solo.core.propose_config(ConfigChange(REMOVE, 3), solo.now) == 2


def test_the_last_voter_cannot_be_removed() -> None:
    solo = Solo(voters=(1,), bootstrap=True)
    solo.wait(0)
    with pytest.raises(InvalidInput):
        solo.core.propose_config(ConfigChange(REMOVE, 1), solo.now)


def test_a_truncated_change_reverts() -> None:
    solo = Solo()
    solo.append(2, 1, (0, 0), *entries(1, 1), config_entry(2, 1, (1, 2, 3, 4)))
    assert solo.core.membership.current.voters == (1, 2, 3, 4)
    solo.core.step(3, 1, AppendRequest(2, 1, 1, 0, entries(2, 2)), solo.now)
    (ready,) = solo.pump()
    assert ready.configuration == Configuration((1, 2, 3))


def test_configurations_survive_a_restart() -> None:
    log = (*entries(1, 1), config_entry(2, 1, (1, 2), (3,)), *entries(3, 1))
    solo = Solo(term=1, log=log)
    assert solo.core.membership.current == Configuration((1, 2), (3,), 2)
    assert solo.core.configuration_at(1) == Configuration((1, 2, 3))


def test_a_learner_neither_stands_nor_counts() -> None:
    learner = Solo(4, configuration=Configuration((1, 2, 3), (4,)))
    assert learner.core.next_deadline() == NEVER
    assert learner.core.status().role == "learner"
    solo = Solo(configuration=Configuration((1, 2, 3), (4,)))
    solo.lead()
    solo.propose()
    solo.acknowledge(4)
    assert solo.core.commit_index == 1


def test_a_replica_of_an_empty_configuration_waits_to_be_told() -> None:
    solo = Solo(7, voters=())
    assert solo.core.next_deadline() == NEVER
    solo.append(1, 3, (0, 0), *entries(1, 1), config_entry(2, 3, (1,), (7,)), commit=2)
    assert solo.core.status().role == "learner"
    solo.append(1, 3, (2, 3), config_entry(3, 3, (1, 7)), commit=2)
    assert solo.core.next_deadline() < NEVER


def test_a_removed_leader_leaves_after_the_commit_and_names_a_successor() -> None:
    solo = Solo()
    solo.lead()
    solo.core.propose_config(ConfigChange(REMOVE, 1), solo.now)
    solo.pump()
    assert solo.core.is_leader
    solo.acknowledge(2)
    assert solo.core.is_leader, "it does not count itself"
    solo.acknowledge(3)
    assert (solo.core.role, solo.core.commit_index) == ("follower", 2)
    assert solo.last(Heartbeat, to=2).commit_index == 2
    assert solo.said(TimeoutNow) == 1
    assert solo.core.next_deadline() == NEVER


def test_a_voter_stands_while_its_removal_is_not_committed() -> None:
    """It may be the only one whose log can win (thesis §4.2.2)."""
    solo = Solo(2, voters=(1, 2), term=1, log=(*entries(1, 1), config_entry(2, 1, (1,))))
    solo.time_out()
    solo.step(1, PreVoteReply(2, True))
    assert solo.core.role == "candidate"


def test_a_cluster_grows_and_shrinks_under_load() -> None:
    network = Network(1, seed=5)
    network.elect()

    def change(action: str, replica: int) -> None:
        leader = network.leader()
        index = network.core(leader).propose_config(ConfigChange(action, replica), network.now)
        network.pump(network.nodes[leader])
        network.run_until(lambda: index in network.oracle.committed)
        network.run(2 * TIMEOUT)
        network.elect()
        network.commit()

    for replica in (2, 3, 4):
        network.add(replica)
        change(ADD_LEARNER, replica)
        change(PROMOTE, replica)
    assert network.core(network.leader()).membership.current.voters == (1, 2, 3, 4)
    for replica in (1, 2, 3):
        change(REMOVE, replica)
    assert network.core(4).membership.current.voters == (4,)
    assert network.core(4).is_leader


# -- transfer ----------------------------------------------------------------------------------------------------------


def test_transfer_brings_the_target_up_first_and_refuses_proposals() -> None:
    solo = Solo()
    solo.lead()
    index = solo.propose()
    solo.core.transfer_leadership(3, solo.now)
    with pytest.raises(Busy):
        solo.propose()
    with pytest.raises(Busy):
        solo.core.propose_config(ConfigChange(REMOVE, 3), solo.now)
    assert not solo.said(TimeoutNow)
    solo.acknowledge(3, index)
    assert [to for to, m in solo.sent if isinstance(m, TimeoutNow)] == [3]
    assert solo.core.status().transfer_to == 3


def test_transfer_is_given_up_after_an_election_timeout() -> None:
    solo = Solo()
    solo.lead()
    solo.propose()
    solo.core.transfer_leadership(3, solo.now)
    for _ in range(12):
        solo.wait(50 * MS)
        solo.step(2, HeartbeatReply(1, 0))
    solo.propose()


def test_transfer_to_nobody_in_particular_takes_the_longest_log() -> None:
    solo = Solo()
    solo.lead()
    solo.propose()
    solo.acknowledge(3)
    solo.core.transfer_leadership(0, solo.now)
    assert solo.core.status().transfer_to == 3


def test_transfer_goes_to_another_voter_only() -> None:
    solo = Solo(configuration=Configuration((1, 2), (3,)))
    solo.lead()
    for target in (1, 3, 9):
        with pytest.raises(InvalidInput):
            solo.core.transfer_leadership(target, solo.now)
    alone = Solo(voters=(1,), bootstrap=True)
    alone.wait(0)
    with pytest.raises(InvalidInput):
        alone.core.transfer_leadership(0, alone.now)


def test_the_target_stands_without_pre_vote_past_all_promises() -> None:
    solo = Solo()
    solo.follow(2)
    solo.step(2, TimeoutNow(1))
    assert solo.last(VoteRequest) == VoteRequest(2, 0, 0, None, True)
    voter = Solo(3)
    voter.follow(2)
    voter.step(1, VoteRequest(2, 0, 0, None, True))
    assert voter.core.voted_for == 1


@pytest.mark.parametrize("seed", range(5))
def test_transfer_takes_milliseconds(seed: int) -> None:
    network = Network(3, seed=seed)
    old = network.elect()
    network.commit()
    start = network.now
    network.core(old).transfer_leadership(0, network.now)
    network.pump(network.nodes[old])
    network.run_until(lambda: network.leader() != old and network.elect())
    assert network.now - start < 10 * MS


# -- snapshots ---------------------------------------------------------------------------------------------------------


def meta_of(index: int, epoch: int, voters: tuple[int, ...] = (1, 2, 3)) -> SnapshotMeta:
    return SnapshotMeta(index, epoch, Configuration(voters))


def test_a_snapshot_replaces_a_log_that_does_not_hold_its_entry() -> None:
    solo = Solo(term=2, log=entries(1, 1, 1, 2))
    solo.step(2, InstallSnapshot(3, meta_of(3, 3, (1, 2))))
    write = solo.writes[-1]
    assert (write.snapshot, write.truncate_after, write.entries) == (meta_of(3, 3, (1, 2)), 3, ())
    assert (solo.core.log.base_index, solo.core.log.last_index, solo.core.log.last_term) == (3, 3, 3)
    assert solo.core.membership.current.voters == (1, 2)
    assert solo.sent[-1] == (2, AppendReply(3, True, 3))
    solo.append(2, 3, (3, 3), *entries(4, 3), commit=4)
    assert solo.committed == list(entries(4, 3)), "what the snapshot holds is not handed out again"


def test_a_delayed_snapshot_keeps_the_matched_suffix() -> None:
    solo = Solo()
    solo.append(2, 1, (0, 0), *entries(1, 1, 1, 1, 1))
    solo.step(2, InstallSnapshot(1, meta_of(2, 1)))
    assert solo.core.log.last_index == 4
    assert (solo.writes[-1].snapshot, solo.writes[-1].truncate_after) == (meta_of(2, 1), None)
    solo.append(2, 1, (4, 1), commit=4)
    assert solo.committed == list(entries(3, 1, 1))


def test_an_old_snapshot_cuts_nothing() -> None:
    solo = Solo()
    solo.append(2, 1, (0, 0), *entries(1, 1, 1, 1), commit=3)
    solo.step(2, InstallSnapshot(1, meta_of(2, 1)))
    assert solo.core.log.last_index == 3
    assert all(write.snapshot is None for write in solo.writes)
    assert solo.sent[-1] == (2, AppendReply(1, True, 3))


def test_snapshot_is_acknowledged_once_persisted() -> None:
    solo = Solo(auto=False, term=3)
    solo.step(2, InstallSnapshot(3, meta_of(9, 2)))
    assert not solo.sent
    solo.persist()
    assert solo.sent == [(2, AppendReply(3, True, 9))]


def test_compaction_keeps_a_bounded_tail() -> None:
    solo = Solo(settings=Settings(retained_bytes_max=3 * (100 + ENTRY_OVERHEAD_BYTES)))
    solo.lead()
    for _ in range(9):
        solo.propose(b"x" * 100)
    solo.acknowledge(2)
    solo.core.compacted(meta_of(8, 1))
    assert (solo.core.log.first_index, solo.core.log.last_index) == (6, 10)


def test_a_follower_behind_the_log_gets_a_snapshot_and_then_entries() -> None:
    solo = Solo(settings=Settings(retained_bytes_max=0))
    solo.lead()
    for _ in range(4):
        solo.propose()
    solo.acknowledge(2)
    solo.core.compacted(meta_of(4, 1))
    solo.take()
    solo.step(3, HeartbeatReply(1, 1), incarnation=2)
    assert solo.take() == [(3, AppendRequest(1, 5, 1, 5))]
    solo.step(3, AppendReply(1, False, 0, prev_index=0), incarnation=2)  # nonsense: nothing can be missing there
    assert not solo.sent
    solo.step(3, AppendReply(1, False, 0, prev_index=5, conflict_index=1, conflict_term=1), incarnation=2)
    assert solo.take() == [(3, InstallSnapshot(1, meta_of(4, 1)))]
    solo.propose()
    assert not [m for to, m in solo.take() if to == 3]
    solo.core.snapshot_status(3, True, solo.now)
    assert not [m for to, m in solo.take() if to == 3]  # delivered, but not yet on its disk
    solo.step(3, AppendReply(1, True, 4), incarnation=2)
    (request,) = [m for to, m in solo.take() if to == 3]
    assert isinstance(request, AppendRequest)
    assert [e.index for e in request.entries] == [5, 6]


def test_after_a_snapshot_whose_answer_was_lost_the_entries_go_with_a_heartbeat() -> None:
    solo = Solo(settings=Settings(retained_bytes_max=0))
    solo.lead()
    solo.propose()
    solo.acknowledge(2)
    solo.core.compacted(meta_of(2, 1))
    solo.step(3, HeartbeatReply(1, 1), incarnation=2)
    solo.step(3, AppendReply(1, False, 0, prev_index=2), incarnation=2)
    solo.propose()
    solo.core.snapshot_status(3, True, solo.now)
    solo.take()
    solo.wait(60 * MS)
    solo.step(3, HeartbeatReply(1, 1), incarnation=2)
    assert [e.index for e in solo.last(AppendRequest, to=3).entries] == [3]


def test_a_failed_snapshot_is_tried_again_at_heartbeat_pace() -> None:
    solo = Solo(settings=Settings(retained_bytes_max=0))
    solo.lead()
    solo.propose()
    solo.acknowledge(2)
    solo.core.compacted(meta_of(2, 1))
    solo.step(3, HeartbeatReply(1, 1), incarnation=2)
    solo.step(3, AppendReply(1, False, 0, prev_index=2), incarnation=2)
    assert solo.said(InstallSnapshot) == 1
    solo.core.snapshot_status(3, False, solo.now)
    solo.step(3, HeartbeatReply(1, 1), incarnation=2)
    assert solo.said(InstallSnapshot) == 1
    solo.wait(60 * MS)
    solo.step(3, HeartbeatReply(1, 1), incarnation=2)
    assert solo.said(InstallSnapshot) == 2


@pytest.mark.parametrize("retained", [0, 1 << 20])
def test_a_slow_follower_catches_up_after_compaction(retained: int) -> None:
    network = Network(3, seed=6, settings=Settings(retained_bytes_max=retained))
    leader = network.elect()
    slow = next(i for i in network.nodes if i != leader)
    network.crash(slow)
    for _ in range(20):
        network.commit()
    network.compact(leader)
    network.commit()
    network.start(slow)
    network.settle()
    assert (network.nodes[slow].disk.snapshot is not None) == (retained == 0)


# -- repair ------------------------------------------------------------------------------------------------------------


def test_acknowledgements_of_a_damaged_replica_do_not_count_until_it_is_told_that_it_is_whole() -> None:
    solo = Solo()
    solo.lead()
    index = solo.propose()
    solo.step(2, AppendReply(1, True, 1, repair=True), incarnation=2)
    solo.step(2, AppendReply(1, True, index, repair=True), incarnation=2)
    assert solo.core.commit_index == 1
    solo.wait(60 * MS)
    assert solo.last(Heartbeat, to=2).repaired and not solo.last(Heartbeat, to=3).repaired
    assert solo.last(Heartbeat, to=2).incarnation == 2
    solo.step(2, AppendReply(1, True, index), incarnation=2)
    assert solo.core.commit_index == index


def test_the_repair_target_is_the_leaders_log_at_the_first_reply() -> None:
    solo = Solo()
    solo.lead()
    for _ in range(4):
        solo.propose()
    solo.step(2, HeartbeatReply(1, 1, repair=True), incarnation=2)
    solo.step(2, AppendReply(1, True, 3, repair=True), incarnation=2)
    solo.wait(60 * MS)
    assert not solo.last(Heartbeat, to=2).repaired


def test_a_replica_leaves_repair_only_for_its_own_life() -> None:
    solo = Solo(term=1, repair=True)
    solo.step(2, Heartbeat(1, 1, 0, repaired=True, incarnation=7))
    assert solo.core.repair
    solo.step(2, Heartbeat(0, 1, 0, repaired=True, incarnation=1))
    assert solo.core.repair
    solo.core.step(2, 1, Heartbeat(1, 2, 0, repaired=True, incarnation=1), solo.now)
    (ready,) = solo.pump()
    assert ready.repaired and ready.write.repair is False
    assert solo.last(HeartbeatReply) == HeartbeatReply(1, 2, False)


def test_a_damaged_replica_is_repaired_by_its_peers() -> None:
    network = Network(3, seed=8)
    leader = network.elect()
    other = next(i for i in network.nodes if i != leader)
    for _ in range(5):
        network.commit()
    network.settle()
    network.crash(other)
    network.nodes[other].disk.damage(1)
    network.start(other)
    assert network.core(other).repair
    network.run(TIMEOUT)
    assert not network.core(other).repair
    assert not network.nodes[other].disk.repair
    assert network.core(other).log.last_index == network.core(leader).log.last_index
