"""Every acknowledged write survives, is applied once, and is seen by whoever asks afterwards."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

import zcluster
from tests.e2e.judging import BOTH, assert_linearizable
from zcluster.chaos.traffic import Traffic

pytestmark = pytest.mark.slow

CYCLES = int(os.environ.get("ZCLUSTER_TEST_KILL_CYCLES", "100"))
WATCHDOG_S = 60
QUICK = {"election_timeout_ms": 300, "heartbeat_ms": 75}


def wait_caught_up(cluster: zcluster.LocalCluster) -> None:
    """Until every node has applied what the leader has committed."""
    give_up = time.monotonic() + WATCHDOG_S
    while True:
        nodes = cluster.status()["nodes"]
        if len({node["last_applied"] for node in nodes}) == 1:
            return
        assert time.monotonic() < give_up, nodes


def test_kill_cycles_lose_nothing(tmp_path: Path) -> None:
    """SIGKILL of leaders, followers and everybody, while clients write and read: there is an order of all operations
    that explains every answer, those of lease reads and the last values included."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    choose = random.Random(seed)
    with zcluster.LocalCluster(workers=0, checkpoint_bytes=100_000, **QUICK) as cluster:
        callers = {"clients": 4, "callers": 2, "keys": 4, "timeout_s": 30.0}
        with Traffic(cluster.connect, seed=seed, consistency=BOTH, **callers) as traffic:  # type: ignore[arg-type]
            for cycle in range(CYCLES):
                victim = choose.choices(["leader", "follower", "all"], [6, 3, 1])[0]
                leader = cluster.wait_leader()
                if victim == "leader":
                    victims = [leader]
                elif victim == "follower":
                    victims = [choose.choice([n for n in cluster.nodes.values() if n.name != leader.name])]
                else:
                    victims = list(cluster.nodes.values())
                for node in victims:
                    node.kill()
                if victim != "all":
                    traffic.wait_progress(2, WATCHDOG_S, callers=[cycle % 8])  # two of three go on
                for node in victims:
                    node.start()
                traffic.wait_progress(2, WATCHDOG_S, callers=[(cycle + 1) % 8])
            traffic.stop()
        assert not traffic.errors, "the clients retry for longer than any of this takes"
        assert_linearizable(traffic, tmp_path, answers_min=4 * CYCLES)
        cluster.wait("healthy", timeout=30)


def test_a_hung_leader_is_replaced_and_its_late_answers_harm_nothing() -> None:
    with zcluster.LocalCluster(nodes=3, workers=0) as cluster, cluster.connect() as client:
        client.kv.put("k", b"0")
        for number in range(1, 6):
            leader = cluster.wait_leader()
            leader.pause()
            client.kv.put("k", b"%d" % number)
            successor = cluster.wait_leader()
            assert successor.name != leader.name
            leader.resume()
            assert client.kv.get("k") == b"%d" % number
            cluster.wait("healthy", timeout=30)


def test_a_follower_behind_the_log_catches_up_by_checkpoint() -> None:
    with (
        zcluster.LocalCluster(nodes=3, workers=0, checkpoint_bytes=50_000, segment_bytes=65_536) as cluster,
        cluster.connect() as client,
    ):
        leader = cluster.wait_leader()
        away = next(n for n in cluster.nodes.values() if n.name != leader.name)
        away.kill()
        value = bytes(100_000)
        for number in range(500):  # 50 MB: more than the log in memory keeps
            client.kv.put(f"k{number}", value)
        away.start()
        cluster.wait("healthy", timeout=60)
        wait_caught_up(cluster)
        assert {n["name"]: n["checkpoint_index"] for n in cluster.status()["nodes"]}[away.name] > 0
        for node in (n for n in cluster.nodes.values() if n.name != away.name):
            node.kill()
            node.start()
        assert all(client.kv.get(f"k{number}") == value for number in (0, 250, 499))


def test_data_survive_down_and_up(private_home: object) -> None:
    directory = str(private_home) + "-data"
    for generation in range(3):
        with zcluster.LocalCluster(nodes=3, workers=0, data_dir=directory) as cluster, cluster.connect() as client:
            for earlier in range(generation):
                assert client.kv.get(f"generation-{earlier}") == b"x"
            client.kv.put(f"generation-{generation}", b"x")


def test_one_node_cluster_keeps_its_word() -> None:
    with zcluster.LocalCluster(nodes=1, workers=0) as cluster, cluster.connect() as client:
        for number in range(5):
            client.kv.put("k", b"%d" % number)
            cluster.nodes["n1"].kill()
            cluster.nodes["n1"].start()
            assert client.kv.get("k") == b"%d" % number


def test_without_a_quorum_writes_say_so_and_reads_time_out() -> None:
    with zcluster.LocalCluster(nodes=3, workers=0) as cluster, cluster.connect() as client:
        client.kv.put("k", b"v")
        wait_caught_up(cluster)
        cluster.nodes["n1"].kill()
        cluster.nodes["n2"].kill()
        with pytest.raises((zcluster.Unknown, zcluster.NoQuorum)):
            client.kv.put("k", b"w", timeout=2)
        with pytest.raises(zcluster.Timeout):
            client.kv.get("k", timeout=1)
        assert client.kv.get("k", consistency="eventual", timeout=5) == b"v"
        cluster.nodes["n1"].start()
        assert client.kv.get("k", timeout=20) in (b"v", b"w")
        cluster.nodes["n2"].start()


@pytest.mark.parametrize("durability", ["interval:10ms", "none"])
def test_weak_durability_still_survives_sigkill_of_everything(durability: str) -> None:
    with zcluster.LocalCluster(nodes=3, workers=0, durability=durability) as cluster, cluster.connect() as client:
        for number in range(200):
            client.kv.put(f"k{number}", b"v")
        for node in cluster.nodes.values():
            node.kill()
        for node in cluster.nodes.values():
            node.start()
        assert len(client.kv.list("k", timeout=30)) == 200


def test_tcp_transport_serves() -> None:
    with zcluster.LocalCluster(nodes=3, workers=1, transport="tcp") as cluster, cluster.connect() as client:
        client.kv.put("k", b"v")
        assert client.kv.get("k") == b"v"
        assert client.submit(pow, 2, 5).result(timeout=30) == 32
        cluster.wait_leader().kill()
        client.kv.put("k", b"w")
        assert client.kv.get("k") == b"w"
