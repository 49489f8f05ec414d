"""The test list of MIT 6.5840's Raft lab, re-created by name against the production core. `LIST` says which is which.

All run in simulated time, checked after every turn (see `lab.py`). The lab's key-value tests: `test_mit_kv.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sim.lab import TIMEOUT, UNRELIABLE, Lab
from zcluster.errors import Busy, NotLeader
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
    assert all(callable(globals()[name]) for name in LIST.values())


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


def with_leader(lab: Lab, server: int, data: bytes) -> int:
    """Propose at this server. Returns the index; 0: it refuses."""
    try:
        return lab.propose(data, server) if lab.nodes[server].core is not None else 0
    except (NotLeader, Busy):
        return 0


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


# -- persistence ------------------------------------------------------------------------------------------------------
def test_basic_persistence() -> None:
    lab = Lab(3)
    lab.one(b"11", 3)
    for server in lab.nodes:
        lab.crash(server)
    for server in lab.nodes:
        lab.start(server)
    lab.one(b"12", 3)
    lab.restart(lab.check_one_leader())
    lab.one(b"13", 3)
    leader = lab.check_one_leader()
    lab.crash(leader)
    lab.one(b"14", 2)
    lab.start(leader)
    lab.run_until(lambda: lab.applied_by(max(lab.oracle.committed)) == 3)
    away = next(i for i in lab.nodes if i != lab.check_one_leader())
    lab.crash(away)
    lab.one(b"15", 2)
    lab.start(away)
    lab.one(b"16", 3)
    assert lab.committed_data() == [b"11", b"12", b"13", b"14", b"15", b"16"]


def test_more_persistence() -> None:
    lab = Lab(5)
    for number in range(5):
        lab.one(b"%d first" % number, 5)
        leader = lab.check_one_leader()
        near, next_one, *far = (1 + (leader + step) % 5 for step in range(4))
        lab.disconnect(near, next_one)
        lab.one(b"%d second" % number, 3)
        lab.disconnect(leader, *far)
        lab.connect(near, next_one)
        for server in (near, next_one):
            lab.restart(server)
        lab.run(TIMEOUT)
        lab.restart(far[0])
        lab.connect(far[0])
        lab.one(b"%d third" % number, 3)
        lab.connect(*lab.nodes)
    lab.one(b"last", 5)


def test_partitioned_leader_and_one_follower_crash() -> None:
    lab = Lab(3)
    lab.one(b"101", 3)
    leader = lab.check_one_leader()
    one, other = (i for i in lab.nodes if i != leader)
    lab.disconnect(other)
    lab.one(b"102", 2)
    lab.crash(leader)
    lab.crash(one)
    lab.connect(other)
    lab.start(leader)
    lab.one(b"103", 2)
    lab.start(one)
    lab.one(b"104", 3)
    assert lab.committed_data() == [b"101", b"102", b"103", b"104"]


class SlowLab(Lab):
    """One entry a message, and as slow as a crash comes: a leader often ends with a part of its log on a few others."""

    batch_bytes_max = 1

    def set_unreliable(self, unreliable: bool) -> None:
        super().set_unreliable(unreliable)
        self.delay = UNRELIABLE


def figure_8(lab: Lab, rounds: int, hurt: Callable[[int], None], mend: Callable[[], None]) -> None:
    for turn in range(rounds):
        leader = lab.leader() if not lab.disconnected else lab.reachable_leader()
        for server in lab.nodes:
            with_leader(lab, server, b"%d at %d" % (turn, server))
        lab.run(lab.rng.randrange(TIMEOUT // 2) if lab.rng.random() < 0.1 else lab.rng.randrange(13 * MS))
        if leader and lab.rng.random() < 0.5:
            hurt(leader)
        mend()


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 7))])
def test_figure_8(seed: int) -> None:
    """Leaders crash soon after they got a command; a majority is always up."""
    lab = SlowLab(5, seed=seed, pidfds=True)
    lab.one(b"first", 1)

    def mend() -> None:
        dead = [i for i, node in lab.nodes.items() if node.core is None]
        if len(dead) > 2:
            lab.start(lab.rng.choice(dead))

    figure_8(lab, 1000, lab.crash, mend)
    for server, node in lab.nodes.items():
        if node.core is None:
            lab.start(server)
    lab.one(b"last", 5)


def test_unreliable_agreement() -> None:
    lab = Lab(5, unreliable=True)
    lab.elect()
    expected = []
    for turn in range(1, 50):
        for branch in range(4):
            if with_leader(lab, lab.reachable_leader(), b"%d.%d" % (turn, branch)):
                expected.append(b"%d.%d" % (turn, branch))
        lab.one(b"%d" % turn, 1)
    lab.set_unreliable(False)
    lab.one(b"last", 5)
    assert set(expected) <= set(lab.committed_data())


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 7))])
def test_figure_8_unreliable(seed: int) -> None:
    """Leaders are cut off, messages are lost, late and out of order; some take longer than an election."""
    lab = SlowLab(5, seed=seed, unreliable=True)
    lab.one(b"first", 1)

    def mend() -> None:
        if len(lab.disconnected) > 2:
            lab.connect(lab.rng.choice(sorted(lab.disconnected)))
        lab.delay = (0, 4 * TIMEOUT) if lab.rng.random() < 0.05 else (0, 27 * MS)

    figure_8(lab, 1000, lab.disconnect, mend)
    lab.connect(*lab.nodes)
    lab.set_unreliable(False)
    lab.one(b"last", 5)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 7))])
@pytest.mark.parametrize("unreliable", [False, True], ids=["reliable", "unreliable"])
def test_churn(seed: int, unreliable: bool) -> None:
    """Clients ask all the time while servers are cut off, crash and come back: what was acknowledged stays."""
    lab = Lab(5, seed=seed, unreliable=unreliable)
    lab.elect()
    asked: dict[bytes, int] = {}
    for turn in range(80):
        for server in lab.nodes:
            data = b"%d at %d" % (turn, server)
            if index := with_leader(lab, server, data):
                asked[data] = index
        dice = lab.rng.random
        server = lab.rng.choice(list(lab.nodes))
        if dice() < 0.2:
            lab.disconnect(server)
        if dice() < 0.5:
            lab.connect(lab.rng.choice(list(lab.nodes)))
        if dice() < 0.2 and lab.nodes[server].core is not None:
            lab.crash(server)
        dead = [i for i, node in lab.nodes.items() if node.core is None]
        if dead and dice() < 0.5:
            lab.start(dead[0])
        lab.run(lab.rng.randrange(TIMEOUT * 7 // 10))
    acknowledged = {data for data, index in asked.items() if (e := lab.oracle.committed.get(index)) and e.data == data}
    lab.set_unreliable(False)
    lab.connect(*lab.nodes)
    for server, node in lab.nodes.items():
        if node.core is None:
            lab.start(server)
    lab.one(b"last", 5)
    found = lab.committed_data()
    assert len(acknowledged) > 20
    assert acknowledged <= set(found)
    assert len(found) == len(set(found))


# -- snapshots --------------------------------------------------------------------------------------------------------
class SnapshotLab(Lab):
    """Every server makes a checkpoint when it has applied ten more entries, and keeps nothing behind it."""

    retained_bytes_max = 0

    def compact_all(self) -> None:
        for server, node in self.nodes.items():
            core = node.core
            if core is not None and node.applied_index >= core.log.base_index + 10:
                self.compact(server)

    def one_each(self, count: int, servers: int, name: str) -> None:
        for number in range(count):
            self.one(b"%s %d" % (name.encode(), number), servers)
            self.compact_all()


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
@pytest.mark.parametrize(
    ("harm", "unreliable"),
    [(None, False), ("disconnect", False), ("disconnect", True), ("crash", False), ("crash", True)],
    ids=["basic", "disconnect", "disconnect-unreliable", "crash", "unreliable-crash"],
)
def test_snapshots(harm: str | None, unreliable: bool, seed: int) -> None:
    """Who was away for longer than the leader's log reaches back gets its checkpoint, and then the rest."""
    lab = SnapshotLab(3, seed=seed, unreliable=unreliable)
    lab.one(b"first", 3)
    leader = lab.check_one_leader()
    for turn in range(8):
        victim = next(i for i in lab.nodes if i != leader) if turn % 3 else leader
        if harm == "disconnect":
            lab.disconnect(victim)
        elif harm == "crash":
            lab.crash(victim)
        lab.one_each(35, 2 if harm else 3, f"turn {turn}")
        if harm == "disconnect":
            lab.connect(victim)
        elif harm == "crash":
            lab.start(victim)
        lab.one(b"turn %d, all" % turn, 3)
        leader = lab.check_one_leader()
    assert (lab.messages["InstallSnapshot"] > 0) == (harm is not None)
    lab.compact_all()
    kept = [len(lab.core(i).log.tail(lab.core(i).log.first_index)) for i in lab.nodes]
    assert max(kept) < 100, f"logs do not stay short: {kept}"
    assert len(set(lab.committed_data())) == 1 + 8 * 36


def test_crash_and_restart_all_servers_with_snapshots() -> None:
    lab = SnapshotLab(3)
    for turn in range(5):
        lab.one_each(25, 3, f"turn {turn}")
        for server in lab.nodes:
            lab.crash(server)
        for server in lab.nodes:
            lab.start(server)
        assert all(node.disk.snapshot is not None for node in lab.nodes.values())
    lab.one(b"last", 3)


def test_snapshot_initialization_after_crash() -> None:
    """A server starts with what its checkpoint covers: that is not handed out again, and what follows is."""
    lab = SnapshotLab(3)
    lab.one_each(14, 3, "before")
    covered = {i: node.disk.snapshot for i, node in lab.nodes.items()}
    for server in lab.nodes:
        lab.crash(server)
    for server in lab.nodes:
        lab.start(server)
        meta = covered[server]
        assert meta is not None and lab.nodes[server].applied_index == meta.index
    index = lab.one(b"after", 3)
    assert lab.applied_by(index) == 3
    assert lab.committed_data()[-1] == b"after"


def test_the_oracle_of_the_lab_notices_two_different_entries() -> None:
    """The judge can fail: what one server commits is compared with what others did."""
    lab = Lab(3)
    index = lab.one(b"x", 3)
    entry = lab.oracle.committed[index]
    lab.nodes[1].applied_index = index - 1
    with pytest.raises(AssertionError, match="two different entries"):
        lab.oracle.check_committed(lab, lab.nodes[1], [type(entry)(index, entry.epoch, entry.kind, b"y")])
