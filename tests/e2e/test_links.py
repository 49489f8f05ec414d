"""Real replicas with a bad network between them: every history is linearizable, and after healing all goes on."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import zcluster
from tests.e2e.judging import BOTH, assert_linearizable, everywhere, state, wait_other_leader
from tests.e2e.links import Links
from zcluster.chaos.traffic import Traffic
from zcluster.launch import fleet

pytestmark = pytest.mark.slow

LINKED = str(Path(__file__).with_name("linked_node.py"))
TIMEOUT_MS = 300
HEALED_S = 10.0
"""Within so long after healing every client has answers again: some election timeouts, on a busy machine."""
ORDINARY = (0, 1)
"""The callers of the client that knows all nodes: they must go on. The others do while their node leads."""


@dataclass
class Net:
    cluster: zcluster.LocalCluster
    links: Links
    traffic: Traffic
    directory: Path

    def finish(self, **healed: int) -> None:
        """Heal; everybody gets answers soon; what was seen is linearizable; each fault named has really happened."""
        done = self.links.heal()
        self.traffic.wait_progress(2, HEALED_S, callers=ORDINARY)
        self.traffic.stop()
        assert_linearizable(self.traffic, self.directory)
        for name, at_least in healed.items():
            assert done[name] >= at_least, done


@pytest.fixture
def net(private_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Net]:
    """Three nodes, one ordinary client and one for each node that knows only that; two callers each."""
    monkeypatch.setattr(fleet, "COMMANDS", {**fleet.DEFAULT_COMMANDS, "replica": (LINKED,)})
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    private_home.mkdir()
    with (
        Links(private_home / "linked", nodes=3, seed=seed) as links,
        zcluster.LocalCluster(
            workers=0,
            data_dir=private_home / "linked",
            election_timeout_ms=TIMEOUT_MS,
            heartbeat_ms=TIMEOUT_MS // 4,
            checkpoint_bytes=20_000,
            segment_bytes=65_536,
        ) as cluster,
        Traffic(everywhere(cluster), clients=4, seed=seed, consistency=BOTH, timeout_s=3.0) as traffic,
    ):
        traffic.wait_progress(5, callers=ORDINARY)
        yield Net(cluster, links, traffic, tmp_path)
        traffic.stop(final_reads=False)  # the test has done it; if it failed, nothing more is asked for


def test_a_third_of_all_messages_lost_and_half_of_them_twice_and_out_of_order(net: Net) -> None:
    net.links.set(loss=0.3, duplication=0.5, delay=(0, 20))
    net.traffic.wait_progress(30, 60, callers=ORDINARY)
    net.finish(lost=100, duplicated=100)


def test_messages_that_take_longer_than_an_election(net: Net) -> None:
    """Heartbeats, votes and appends of former terms arrive in the middle of later ones."""
    net.links.set(slow=0.25, slow_delay=(TIMEOUT_MS, 4 * TIMEOUT_MS), delay=(0, 5))
    net.traffic.wait_progress(40, 60, callers=ORDINARY)
    weather = {"slow": 0.7, "slow_delay": (TIMEOUT_MS, 3 * TIMEOUT_MS), "delay": (0, 5), "duplication": 0.3}
    for _ in range(2):  # most of them: hardly anybody can lead for long
        net.cluster.nodes["n1"].kill()
        net.cluster.nodes["n1"].start()
        goal = net.links.set(**weather)["slow"] + 40
        while net.links.set(**weather)["slow"] < goal:
            net.cluster.status()
    net.finish(slow=100, duplicated=20)


@pytest.mark.parametrize("direction", ["out", "in", "both"])
def test_a_leader_that_is_cut_off_one_way_or_both_is_replaced(net: Net, direction: str) -> None:
    """Who does not hear it, elects another; whom it does not hear, cannot make it believe that it still leads."""
    cut = {"out": net.links.cut_out, "in": net.links.cut_in, "both": net.links.isolate}[direction]
    for _ in range(2):
        leader = net.cluster.wait_leader().name
        cut(leader)
        wait_other_leader(net.cluster, leader)
        net.traffic.wait_progress(5, 30, callers=ORDINARY)
        net.links.heal()
        net.traffic.wait_progress(2, HEALED_S, callers=ORDINARY)
    net.finish(cut=5)


def test_a_leader_that_wakes_up_beyond_its_lease_and_hears_nobody_serves_nothing(net: Net) -> None:
    """Only its clock tells it that its lease is over: reads that wait in its socket must not be answered."""
    for _ in range(2):
        leader = net.cluster.wait_leader()
        net.links.isolate(leader.name)
        leader.pause()
        wait_other_leader(net.cluster, leader.name)
        net.traffic.wait_progress(5, 30, callers=ORDINARY)
        leader.resume()
        net.traffic.wait_progress(20, 30, callers=ORDINARY)
        net.links.heal()
        net.traffic.wait_progress(2, HEALED_S, callers=ORDINARY)
    net.finish(cut=2)


def test_a_follower_that_only_a_part_of_the_cluster_can_talk_to_disturbs_nobody(net: Net) -> None:
    """It is not heard; it hears nothing; it reaches the other follower but not the leader: pre-vote and the others'
    loyalty keep the leader and its term."""
    leader = net.cluster.wait_leader()
    follower = next(name for name in net.cluster.nodes if name != leader.name)
    term = net.cluster.status()["term"]
    apart = [(leader.name, follower), (follower, leader.name)]
    for cut in (net.links.cut_out, net.links.cut_in, lambda _: net.links.set(cut=apart)):
        cut(follower)
        net.traffic.wait_progress(60, 30, callers=ORDINARY)
        net.links.heal()
        net.traffic.wait_progress(2, HEALED_S, callers=ORDINARY)
    status = net.cluster.status()
    assert (status["leader"], status["term"]) == (leader.name, term)
    net.finish(cut=5)


def test_links_that_come_and_go_and_processes_too(net: Net) -> None:
    """Whoever leads, or anybody, is cut off for a moment, again and again; now and then somebody is killed as well."""
    choose = net.links.draw
    for turn in range(12):
        leader = net.cluster.leader
        victim = leader.name if leader is not None and choose.random() < 0.5 else choose.choice(net.links.nodes)
        choose.choice((net.links.cut_out, net.links.cut_in, net.links.isolate))(victim)
        if turn % 4 == 3:
            other = choose.choice(net.links.nodes)
            net.cluster.nodes[other].kill()
            net.cluster.nodes[other].start()
        if choose.random() < 0.5:
            net.traffic.wait_progress(2, 30, callers=ORDINARY)  # two of three reach each other
        net.links.set(loss=choose.choice((0.0, 0.2)), delay=(0, choose.choice((0, 20))))
        net.traffic.wait_progress(1, 30, callers=ORDINARY)
    net.finish(cut=20)


def test_a_follower_far_behind_gets_a_checkpoint_over_a_link_that_breaks(net: Net) -> None:
    """Two thirds of it have arrived at most when the link is cut; the next attempt brings all of it."""
    nodes = net.cluster.nodes
    leader = net.cluster.wait_leader().name
    away, other = (name for name in nodes if name != leader)
    net.links.isolate(away)
    with net.cluster.connect() as client:
        for number in range(20):
            client.kv.put(f"bulk{number}", bytes(100_000))
        for name in (leader, other):  # what a restarted node has of the log begins at its checkpoint
            nodes[name].restart()
        net.traffic.wait_progress(2, 30, callers=ORDINARY)
        before = net.links.heal()["pieces"]
        while net.links.heal()["pieces"] < before + 2:
            assert net.cluster.running
        net.links.isolate(away)
        net.traffic.wait_progress(5, 30, callers=ORDINARY)
        net.links.heal()
        net.cluster.wait("healthy", timeout=30)
        wait_applied(net.cluster, away)
        nodes[other].kill()  # now the one that was away counts
        net.traffic.wait_progress(2, 30, callers=ORDINARY)
        assert len(client.kv.list("bulk")) == 20
        nodes[other].start()
    net.finish(pieces=8)


def wait_applied(cluster: zcluster.LocalCluster, node: str) -> None:
    """Until the node has applied all that the cluster has committed by now."""
    give_up = time.monotonic() + 30
    goal = max(found["commit_index"] or 0 for found in cluster.status()["nodes"])
    while (state(cluster, node)["last_applied"] or 0) < goal:
        assert time.monotonic() < give_up, state(cluster, node)
