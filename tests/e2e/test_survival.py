"""Every acknowledged write survives; every `Unknown` is there once or not at all; nothing is applied twice."""

from __future__ import annotations

import os
import random
import threading
import time

import pytest

import zcluster

pytestmark = pytest.mark.slow

WRITERS = 8
CYCLES = int(os.environ.get("ZCLUSTER_TEST_KILL_CYCLES", "100"))
WATCHDOG_S = 60


class Writer(threading.Thread):
    """Appends its next number to its own key, for ever, and remembers what was acknowledged."""

    def __init__(self, client: zcluster.Client, name: str) -> None:
        super().__init__(daemon=True)
        self.client = client
        self.key = f"log/{name}"
        self.acknowledged: list[int] = []
        self.unknown: list[int] = []
        self.refused: list[int] = []
        self.stop = threading.Event()
        self.progress = threading.Condition()
        self.failure: BaseException | None = None

    def run(self) -> None:
        number = 0
        while not self.stop.is_set():
            number += 1
            try:
                value = self.client.kv.append(self.key, b"%d;" % number, timeout=30)
                assert value.endswith(b"%d;" % number)
                self.acknowledged.append(number)
            except zcluster.Unknown:
                self.unknown.append(number)
            except (zcluster.NoQuorum, zcluster.Busy):
                self.refused.append(number)
            except BaseException as failure:
                self.failure = failure
                return
            finally:
                with self.progress:
                    self.progress.notify_all()
            if number % 2000 == 0:  # keep the values small: append returns all of it
                self.key = f"{self.key}+"

    def wait_acknowledged(self, more: int) -> None:
        goal = len(self.acknowledged) + more
        give_up = time.monotonic() + WATCHDOG_S
        with self.progress:
            while len(self.acknowledged) < goal:
                assert self.failure is None, self.failure
                assert self.progress.wait(give_up - time.monotonic()), "no write was acknowledged"

    def check(self) -> None:
        stored: list[int] = []
        for _, value in sorted(self.client.kv.list(self.key.rstrip("+")).items(), key=lambda item: len(item[0])):
            stored += [int(part) for part in value.split(b";")[:-1]]
        assert len(stored) == len(set(stored)), "a write was applied twice"
        assert stored == sorted(stored), "one caller's writes changed their order"
        assert set(self.acknowledged) <= set(stored), "an acknowledged write is lost"
        assert set(stored) <= set(self.acknowledged) | set(self.unknown), "a refused write was applied"


def wait_caught_up(cluster: zcluster.LocalCluster) -> None:
    """Until every node has applied what the leader has committed."""
    give_up = time.monotonic() + WATCHDOG_S
    while True:
        nodes = cluster.status()["nodes"]
        if len({node["last_applied"] for node in nodes}) == 1:
            return
        assert time.monotonic() < give_up, nodes


def test_kill_cycles_lose_nothing() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    choose = random.Random(seed)
    with zcluster.LocalCluster(nodes=3, workers=0, checkpoint_bytes=100_000) as cluster:
        client = cluster.connect()
        writers = [Writer(client, f"w{i}") for i in range(WRITERS)]
        for writer in writers:
            writer.start()
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
                writers[cycle % WRITERS].wait_acknowledged(2)  # two of three go on
            for node in victims:
                node.start()
            writers[(cycle + 1) % WRITERS].wait_acknowledged(2)
        for writer in writers:
            writer.stop.set()
        for writer in writers:
            writer.join(WATCHDOG_S)
            assert writer.failure is None
            writer.check()
        cluster.wait("healthy", timeout=30)
        client.close()


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
