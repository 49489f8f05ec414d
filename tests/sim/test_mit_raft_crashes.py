"""The Raft lab's tests about persistence, unreliable networks and snapshots; see `LIST` in `test_mit_raft.py`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sim.lab import TIMEOUT, UNRELIABLE, Lab, with_leader
from zcluster.types import MS


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
