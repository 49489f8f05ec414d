"""The test list of MIT 6.5840's Raft lab, re-created by name against the production core. `LIST` says which is which.

All run in simulated time, checked after every turn (see `lab.py`). Those about persistence and snapshots are in
`test_mit_raft_crashes.py`, the key-value service's in `test_mit_kv.py`.
"""

from __future__ import annotations

import pytest

from tests.sim import test_mit_raft_crashes
from tests.sim.lab import TIMEOUT, Lab, with_leader
from zcluster.types import MS

LIST = {
    "initial election": "test_initial_election",
    "election after network failure": "test_reelection",
    "multiple elections": "test_many_elections",
    "basic agreement": "test_basic_agreement",
    "RPC byte count": "test_rpc_bytes",
    "progressive failure of followers": "test_follower_failure",
    "failure of leaders": "test_leader_failure",
    "agreement after follower reconnects": "test_fail_agree",
    "no agreement if too many followers disconnect": "test_fail_no_agree",
    "concurrent proposals": "test_concurrent_starts",
    "rejoin of partitioned leader": "test_rejoin",
    "leader backs up quickly over incorrect follower logs": "test_backup",
    "RPC counts aren't too high": "test_rpc_counts",
    "basic persistence": "test_basic_persistence",
    "more persistence": "test_more_persistence",
    "partitioned leader and one follower crash": "test_partitioned_leader_and_one_follower_crash",
    "Figure 8": "test_figure_8",
    "unreliable agreement": "test_unreliable_agreement",
    "Figure 8 (unreliable)": "test_figure_8_unreliable",
    "churn": "test_churn",
    "unreliable churn": "test_churn",
    "snapshots basic": "test_snapshots",
    "install snapshots (disconnect)": "test_snapshots",
    "install snapshots (disconnect, unreliable)": "test_snapshots",
    "install snapshots (crash)": "test_snapshots",
    "install snapshots (unreliable, crash)": "test_snapshots",
    "crash and restart all servers": "test_crash_and_restart_all_servers_with_snapshots",
    "snapshot initialization after crash": "test_snapshot_initialization_after_crash",
}


def test_every_name_of_the_list_has_its_test() -> None:
    assert all(name in globals() or hasattr(test_mit_raft_crashes, name) for name in LIST.values())


# -- elections --------------------------------------------------------------------------------------------------------
def test_initial_election() -> None:
    lab = Lab(3)
    leader = lab.check_one_leader()
    lab.run(TIMEOUT // 10)
    terms = lab.terms()
    assert len(terms) == 1
    lab.run(10 * TIMEOUT)  # without a failure nothing changes
    assert (lab.check_one_leader(), lab.terms()) == (leader, terms)


def test_reelection() -> None:
    lab = Lab(3)
    first = lab.check_one_leader()
    lab.disconnect(first)
    second = lab.check_one_leader()
    assert second != first
    lab.connect(first)  # the old leader does not disturb the new one
    lab.run(2 * TIMEOUT)
    assert lab.check_one_leader() == second
    other = next(i for i in lab.nodes if i != second)
    lab.disconnect(second, other)
    lab.run(3 * TIMEOUT)
    assert not any(lab.core(i).is_leader for i in lab.nodes), "leads without a majority"
    lab.connect(other)
    lab.check_one_leader()
    lab.connect(second)
    lab.check_one_leader()


@pytest.mark.parametrize("seed", range(3))
def test_many_elections(seed: int) -> None:
    lab = Lab(7, seed=seed)
    lab.check_one_leader()
    for _ in range(10):
        away = lab.rng.sample(list(lab.nodes), 3)
        lab.disconnect(*away)
        lab.check_one_leader()
        lab.connect(*away)
    lab.check_one_leader()


# -- agreement --------------------------------------------------------------------------------------------------------
def test_basic_agreement() -> None:
    lab = Lab(3)
    lab.check_one_leader()
    lab.run(TIMEOUT)
    first = lab.one(b"0", 3)
    assert [lab.one(b"%d" % number, 3) for number in (1, 2)] == [first + 1, first + 2]
    assert lab.committed_data() == [b"0", b"1", b"2"]


def test_rpc_bytes() -> None:
    """Each command goes to each peer once."""
    lab = Lab(3)
    lab.check_one_leader()
    lab.one(b"first", 3)
    before = lab.sent_bytes
    commands = [b"%d" % number * 5000 for number in range(10)]
    for command in commands:
        lab.one(command, 3)
    lab.run(TIMEOUT)
    assert all(lab.entries_sent[command] == 2 for command in commands)
    assert lab.sent_bytes - before < 2 * sum(map(len, commands)) + 20_000


def test_follower_failure() -> None:
    lab = Lab(3)
    leader = lab.check_one_leader()
    lab.one(b"101", 3)
    one, other = (i for i in lab.nodes if i != leader)
    lab.disconnect(one)
    lab.one(b"102", 2)
    lab.run(TIMEOUT)
    lab.one(b"103", 2)
    lab.disconnect(other)
    index = lab.propose(b"104", leader)
    lab.run(5 * TIMEOUT)
    assert lab.applied_by(index) == 0


def test_leader_failure() -> None:
    lab = Lab(3)
    first = lab.check_one_leader()
    lab.one(b"101", 3)
    lab.disconnect(first)
    lab.one(b"102", 2)
    lab.run(TIMEOUT)
    lab.one(b"103", 2)
    second = lab.check_one_leader()
    lab.disconnect(second)
    before = len(lab.oracle.committed)
    for server in lab.nodes:  # whoever still believes to lead may take it; nobody commits it
        with_leader(lab, server, b"104")
    lab.run(5 * TIMEOUT)
    assert len(lab.oracle.committed) == before


def test_fail_agree() -> None:
    lab = Lab(3)
    lab.one(b"101", 3)
    leader = lab.check_one_leader()
    away = next(i for i in lab.nodes if i != leader)
    lab.disconnect(away)
    for number in range(102, 106):
        lab.one(b"%d" % number, 2)
        lab.run(TIMEOUT // 2)
    lab.connect(away)
    lab.one(b"106", 3)
    lab.run(TIMEOUT)
    lab.one(b"107", 3)


def test_fail_no_agree() -> None:
    lab = Lab(5)
    lab.one(b"10", 5)
    leader = lab.check_one_leader()
    away = [i for i in lab.nodes if i != leader][:3]
    lab.disconnect(*away)
    lost = lab.propose(b"20", leader)
    lab.run(4 * TIMEOUT)
    assert lab.applied_by(lost) == 0
    lab.connect(*away)
    again = lab.check_one_leader()
    index = lab.propose(b"30", again) if lab.core(again).is_leader else 0
    assert index in (lost, lost + 1, lost + 2, lost + 3)  # the three may have chosen another leader meanwhile
    lab.one(b"1000", 5)


def test_concurrent_starts() -> None:
    """Several commands before any of them is committed: each gets an index of its own, all in one term."""
    lab = Lab(3)
    leader = lab.elect()
    commands = [b"%d" % number for number in range(100, 105)]
    indices = [lab.propose(command, leader) for command in commands]
    assert indices == list(range(indices[0], indices[0] + 5))
    lab.run_until(lambda: lab.applied_by(indices[-1]) == 3)
    assert [lab.oracle.committed[index].data for index in indices] == commands
    assert len({lab.oracle.committed[index].epoch for index in indices}) == 1


def test_rejoin() -> None:
    lab = Lab(3)
    lab.one(b"101", 3)
    first = lab.check_one_leader()
    lab.disconnect(first)
    for command in (b"102", b"103", b"104"):
        lab.propose(command, first)
    lab.one(b"103 of the others", 2)
    second = lab.check_one_leader()
    lab.disconnect(second)
    lab.connect(first)
    lab.one(b"104 of the others", 2)
    lab.connect(second)
    lab.one(b"105", 3)
    assert lab.committed_data() == [b"101", b"103 of the others", b"104 of the others", b"105"]


def test_backup() -> None:
    """Fifty wrong entries are replaced after a few questions, not after one for each."""
    lab = Lab(5)
    lab.one(b"start", 5)
    first = lab.check_one_leader()
    companion, *others = (i for i in lab.nodes if i != first)
    lab.disconnect(*others)
    for number in range(50):
        lab.propose(b"lost %d" % number, first)
    lab.run(TIMEOUT // 4)
    lab.disconnect(first, companion)
    lab.connect(*others)
    for number in range(50):
        lab.one(b"kept %d" % number, 3)
    second = lab.check_one_leader()
    third = next(i for i in others if i != second)
    lab.disconnect(third)
    for number in range(50):  # a second kind of wrong entries, on the second leader and one more
        lab.propose(b"lost as well %d" % number, second)
    lab.run(TIMEOUT // 4)
    lab.disconnect(*lab.nodes)
    lab.connect(first, companion, third)
    for number in range(50):
        lab.one(b"kept too %d" % number, 3)
    lab.connect(*lab.nodes)
    before = lab.messages["AppendRequest"]
    lab.one(b"end", 5)
    assert lab.messages["AppendRequest"] - before < 30
    kept = [data for data in lab.committed_data() if b"kept" in data]
    assert kept[:50] == [b"kept %d" % number for number in range(50)]
    assert kept[-50:] == [b"kept too %d" % number for number in range(50)]


def test_rpc_counts() -> None:
    lab = Lab(3)
    leader = lab.elect()
    assert 1 <= lab.messages.total() <= 30, "to elect somebody"
    before = lab.messages.total()
    indices = [lab.propose(b"%d" % number, leader) for number in range(10)]
    lab.run_until(lambda: lab.applied_by(indices[-1]) == 3)
    assert lab.messages.total() - before <= (10 + 1 + 3) * 3, "to agree on ten commands"
    before = lab.messages.total()
    lab.run(1000 * MS)
    interval = lab.settings.heartbeat_interval
    assert lab.messages.total() - before <= 4 * (1000 * MS // interval + 2), "of an idle second"
