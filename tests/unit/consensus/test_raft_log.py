"""Replication and commitment: what is kept, cut, counted, acknowledged; and what a turn of the leader puts out."""

from __future__ import annotations

import pytest

from tests.unit.consensus.network import Network
from tests.unit.consensus.solo import Solo, entries
from zcluster.consensus.api import AppendReply, AppendRequest, Heartbeat, HeartbeatReply, Ready, Settings
from zcluster.errors import Busy, NotLeader
from zcluster.types import MS, Entry, HardState, WriteBatch

TIMEOUT = 600 * MS

# -- the follower ------------------------------------------------------------------------------------------------------


def test_acknowledgement_waits_for_the_disk_and_one_serves_a_turn() -> None:
    solo = Solo(auto=False)
    solo.append(2, 1, (0, 0), *entries(1, 1))
    solo.append(2, 1, (1, 1), *entries(2, 1))
    assert not solo.sent
    assert solo.writes == [
        WriteBatch(1, HardState(1, 0), None, entries(1, 1)),
        WriteBatch(2, None, None, entries(2, 1)),
    ]
    solo.persist(1)
    assert solo.take() == [(2, AppendReply(1, True, 1))]
    solo.persist(2)
    assert solo.take() == [(2, AppendReply(1, True, 2))]
    solo.core.step(2, 1, AppendRequest(1, 2, 1, 0, entries(3, 1)), solo.now)
    solo.core.step(2, 1, AppendRequest(1, 3, 1, 0, entries(4, 1)), solo.now)
    solo.pump()
    solo.persist()
    assert solo.take() == [(2, AppendReply(1, True, 4))]


def test_reordered_older_append_does_not_cut_the_acknowledged_suffix() -> None:
    solo = Solo()
    solo.append(2, 1, (0, 0), *entries(1, 1, 1, 1, 1))
    solo.append(2, 1, (0, 0), *entries(1, 1, 1))
    assert solo.core.log.last_index == 4
    assert solo.writes[-1].truncate_after is None
    assert solo.sent[-1] == (2, AppendReply(1, True, 2))


def test_conflicting_suffix_is_cut_and_replaced() -> None:
    solo = Solo(term=2, log=entries(1, 1, 1, 2, 2))
    solo.append(2, 3, (1, 1), *entries(2, 1, 3))
    assert solo.terms() == [1, 1, 3]
    assert solo.writes[-1] == WriteBatch(1, HardState(3, 0), 2, entries(3, 3))


def test_commit_index_stops_at_what_the_request_verified() -> None:
    solo = Solo(term=2, log=entries(1, 1, 1, 2, 2))
    solo.append(2, 3, (1, 1), *entries(2, 1), commit=4)
    assert solo.core.commit_index == 2
    solo.append(2, 3, (1, 1), commit=4)
    assert solo.core.commit_index == 2


def test_heartbeat_commits_only_what_this_leader_has_verified() -> None:
    solo = Solo(term=2, log=entries(1, 1, 1, 2, 2))
    solo.step(2, Heartbeat(3, 1, 4))
    assert solo.core.commit_index == 0
    solo.append(2, 3, (2, 1), *entries(3, 3))
    solo.step(2, Heartbeat(3, 1, 4))
    assert solo.core.commit_index == 3


def test_committed_entries_are_handed_out_once_and_in_order() -> None:
    solo = Solo()
    solo.append(2, 1, (0, 0), *entries(1, 1, 1, 1), commit=2)
    solo.append(2, 1, (0, 0), *entries(1, 1, 1, 1), commit=3)
    assert solo.committed == list(entries(1, 1, 1, 1))


def test_committed_entries_come_in_bounded_readys() -> None:
    solo = Solo(settings=Settings(batch_bytes_max=50))
    new = tuple(Entry(i, 1, 0, b"x" * 100) for i in range(1, 8))
    solo.core.step(2, 1, AppendRequest(1, 0, 0, 7, new), solo.now)
    assert [len(ready.committed) for ready in solo.pump()] == [1] * 7
    assert solo.committed == list(new)


def test_a_committed_entry_is_never_cut_whatever_is_sent() -> None:
    solo = Solo()
    solo.append(2, 1, (0, 0), *entries(1, 1, 1), commit=2)
    solo.append(2, 2, (0, 0), *entries(1, 2, 2))
    assert solo.terms() == [1, 1]


def test_a_stalled_disk_does_not_stop_heartbeat_replies() -> None:
    solo = Solo(auto=False)
    solo.follow(2)
    assert not solo.said(HeartbeatReply), "the term is not on disk"
    solo.persist()
    solo.append(2, 1, (0, 0), *entries(1, 1))
    solo.take()
    solo.follow(2, round_=7)
    assert solo.take() == [(2, HeartbeatReply(1, 7))]


FIGURE_7 = {
    "a": (1, 1, 1, 4, 4, 5, 5, 6, 6),
    "b": (1, 1, 1, 4),
    "c": (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
    "d": (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
    "e": (1, 1, 1, 4, 4, 4, 4),
    "f": (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
}


@pytest.mark.parametrize("name", FIGURE_7)
@pytest.mark.parametrize("batch_bytes_max", [1, 1 << 20])
def test_s5_3_figure_7_every_follower_is_brought_to_the_leaders_log(name: str, batch_bytes_max: int) -> None:
    leader_terms = (1, 1, 1, 4, 4, 5, 5, 6, 6, 6)
    settings = Settings(batch_bytes_max=batch_bytes_max)
    leader = Solo(1, term=7, log=entries(1, *leader_terms), settings=settings)
    follower = Solo(2, term=7, log=entries(1, *FIGURE_7[name]))
    leader.become_leader()
    rejections = 0
    for _ in range(40):
        for to, message in leader.take():
            if to == 2:
                follower.step(1, message)
        for _, reply in follower.take():
            rejections += isinstance(reply, AppendReply) and not reply.success
            leader.step(2, reply)
    assert follower.terms() == [*leader_terms, 8]
    assert leader.core.commit_index == 11
    assert rejections <= 3, "hints go back by whole terms"


# -- the leader --------------------------------------------------------------------------------------------------------


def test_a_turn_of_the_leader_puts_out_exactly_this() -> None:
    solo = Solo(auto=False)
    solo.auto = True
    solo.lead()
    solo.acknowledge(3)
    solo.auto = False
    solo.take()
    solo.core.propose(b"abc", solo.now)
    request = AppendRequest(1, 1, 1, 1, (Entry(2, 1, 0, b"abc"),))
    seq = solo.core.writes.seq + 1
    write = WriteBatch(seq, None, None, (Entry(2, 1, 0, b"abc"),))
    assert solo.pump() == [Ready(seq, write, [(2, request), (3, request)], [], [], [], [])]
    solo.core.persisted(seq, solo.now)
    assert solo.core.ready() is None
    solo.core.step(2, 1, AppendReply(1, True, 2), solo.now)
    assert solo.core.ready() == Ready(seq, committed=[Entry(2, 1, 0, b"abc")], messages=[], messages_after_persist=[],
                                      reads=[], reads_failed=[])  # fmt: skip
    solo.core.step(3, 1, AppendReply(1, True, 2), solo.now)
    assert solo.core.ready() is None


def test_own_copy_counts_only_when_durable() -> None:
    solo = Solo()
    solo.lead()
    solo.auto = False
    index = solo.propose()
    solo.acknowledge(2)
    assert solo.core.commit_index == index - 1
    solo.persist()
    assert solo.core.commit_index == index


def test_leader_with_a_stalled_disk_needs_three_other_copies_of_five() -> None:
    solo = Solo(voters=(1, 2, 3, 4, 5))
    solo.lead()
    solo.auto = False
    index = solo.propose()
    solo.acknowledge(2)
    solo.acknowledge(3)
    assert solo.core.commit_index == index - 1
    solo.acknowledge(4)
    assert solo.core.commit_index == index


def test_one_node_cluster_commits_only_what_is_on_its_disk() -> None:
    solo = Solo(voters=(1,), bootstrap=True)
    solo.wait(0)
    solo.auto = False
    index = solo.propose()
    assert solo.core.commit_index == index - 1
    solo.persist()
    assert solo.core.commit_index == index


def test_a_late_completion_does_not_count_entries_that_were_replaced_since() -> None:
    solo = Solo(auto=False, term=1)
    solo.append(2, 1, (0, 0), *entries(1, 1, 1, 1))  # write 1, on its way
    solo.append(3, 2, (1, 1), *entries(2, 2))  # cuts 2 and 3: write 2
    solo.persist(1)
    assert solo.core.writes.durable_index == 1
    solo.persist(2)
    assert solo.core.writes.durable_index == 2


def test_s5_4_2_old_term_entry_is_not_committed_by_count() -> None:
    solo = Solo(term=3, log=entries(1, 1, 2))
    solo.become_leader()
    for peer in (2, 3):
        solo.acknowledge(peer, 2)
    assert solo.core.commit_index == 0
    solo.acknowledge(2, 3)
    assert solo.core.commit_index == 3


def test_a_reply_of_an_older_term_does_not_move_match_index() -> None:
    solo = Solo()
    solo.lead()
    solo.propose()
    stale = AppendReply(1, True, 2)
    solo.follow(3, term=2)  # deposed: another leader
    solo.now += 2 * TIMEOUT
    solo.become_leader()
    assert solo.core.term == 3
    solo.step(2, stale)
    assert solo.core.status().match_index[2] == 0


def test_a_new_incarnation_starts_from_nothing_and_its_past_is_dropped() -> None:
    solo = Solo(voters=(1, 2, 3, 4, 5))
    solo.lead()
    index = solo.propose()
    solo.acknowledge(2)
    solo.step(2, HeartbeatReply(1, 1), incarnation=2)
    assert solo.core.status().match_index[2] == 0
    solo.acknowledge(3)
    assert solo.core.commit_index == index - 1, "two copies of five that are still vouched for"
    solo.step(2, AppendReply(1, True, index), incarnation=1)
    assert solo.core.status().match_index[2] == 0


def test_requests_are_pipelined_up_to_the_window() -> None:
    solo = Solo(settings=Settings(inflight_max=3))
    solo.lead()
    solo.acknowledge(3)
    solo.take()
    for _ in range(5):
        solo.propose()
    assert [len(m.entries) for to, m in solo.take() if to == 2 and isinstance(m, AppendRequest)] == [1, 1, 1]
    solo.acknowledge(2, 2)
    assert [len(m.entries) for _, m in solo.take() if isinstance(m, AppendRequest)] == [2]


def test_batches_are_bounded_by_bytes() -> None:
    solo = Solo(settings=Settings(batch_bytes_max=600))
    solo.lead()
    solo.take()
    for _ in range(6):
        solo.core.propose(b"x" * 100, solo.now)
    solo.pump()
    assert [len(m.entries) for to, m in solo.take() if to == 2 and isinstance(m, AppendRequest)] == [2, 2, 2]


def test_lost_end_of_a_pipeline_is_noticed_by_heartbeats() -> None:
    network = Network(3, seed=1)
    leader = network.elect()
    network.settle()
    other = next(i for i in network.nodes if i != leader)
    network.drop = lambda sender, to, message: to == other and isinstance(message, AppendRequest)
    network.commit()
    network.drop = None
    network.run(TIMEOUT)
    assert network.nodes[other].applied_index == max(network.oracle.committed)


def test_followers_learn_of_a_commit_without_further_writes() -> None:
    network = Network(3)
    network.elect()
    network.commit()
    network.run(15 * MS)
    assert {node.applied_index for node in network.nodes.values()} == {2}


def test_bounds_on_what_is_uncommitted() -> None:
    solo = Solo(settings=Settings(uncommitted_bytes_max=1000))
    solo.lead()
    solo.propose(b"x" * 5000)  # one is always let in
    with pytest.raises(Busy):
        solo.propose(b"x")
    solo.acknowledge(2)
    solo.propose(b"x")


def test_a_leader_whose_disk_stalls_is_bounded_though_the_others_commit_without_it() -> None:
    solo = Solo(settings=Settings(uncommitted_bytes_max=1000))
    solo.lead()
    solo.auto = False
    with pytest.raises(Busy):
        for _ in range(100):
            index = solo.propose(b"x" * 100)
            solo.acknowledge(2)
            solo.acknowledge(3)
            assert solo.core.commit_index == index
    solo.persist()
    solo.propose(b"x")


def test_only_a_leader_takes_proposals() -> None:
    solo = Solo()
    solo.follow(2)
    with pytest.raises(NotLeader) as raised:
        solo.core.propose(b"", solo.now)
    assert (raised.value.leader, raised.value.term) == (2, 1)
