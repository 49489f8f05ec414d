"""Moving leadership on purpose, and a leader that users prefer."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

import zcluster
from zcluster.launch import fleet

pytestmark = pytest.mark.slow

FAULTY = str(Path(__file__).with_name("faulty_node.py"))


def test_transfer_moves_leadership_without_losing_or_repeating_a_write() -> None:
    counts = [0, 0]
    stop = threading.Event()
    with zcluster.LocalCluster(nodes=3, workers=0) as cluster:

        def write(number: int) -> None:
            with cluster.connect() as client:
                while not stop.is_set():
                    client.kv.append(f"c{number}", b".")
                    counts[number] += 1

        threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        try:
            for name in ("n2", "n3", "n1", "n1", "n2"):
                assert cluster.transfer(name).name == name
                leader = cluster.leader
                assert leader is not None
                assert leader.name == name
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        with cluster.connect() as client:
            assert [len(client.kv.get(f"c{number}") or b"") for number in range(2)] == counts
        assert "handing leadership over" not in (cluster.directory / "logs" / "n1.log").read_text()


def test_what_cannot_lead_is_refused_and_says_why() -> None:
    with zcluster.LocalCluster(nodes=3, workers=0) as cluster:
        with pytest.raises(zcluster.InvalidInput, match="no node 'n9'"):
            cluster.transfer("n9")
        with pytest.raises(zcluster.InvalidInput, match="has no node 'router'"):
            cluster.transfer("router")
        name = next(n for n in cluster.nodes if n != cluster.wait_leader().name)
        cluster.nodes[name].pause()
        with pytest.raises(zcluster.Conflict, match="paused"):
            cluster.transfer(name)
        cluster.nodes[name].kill()
        with pytest.raises(zcluster.Conflict, match="is down"):
            cluster.transfer(name)


def test_the_preferred_leader_gets_leadership_back_when_it_is_up_to_date() -> None:
    with zcluster.LocalCluster(nodes=3, workers=0, preferred_leader="n2") as cluster, cluster.connect() as client:
        wait_for_leader(cluster, "n2")
        cluster.nodes["n2"].kill()
        assert cluster.wait_leader().name != "n2"
        for number in range(100):
            client.kv.put(f"k{number}", b"v" * 1000)
        cluster.nodes["n2"].start()
        wait_for_leader(cluster, "n2")
        assert len(client.kv.list("k")) == 100


def test_a_preferred_leader_that_is_no_node_is_refused() -> None:
    with pytest.raises(zcluster.InvalidInput, match="preferred_leader is n4"):
        zcluster.LocalCluster(nodes=3, workers=0, preferred_leader="n4")
    with pytest.raises(zcluster.InvalidInput, match="name of a node"):
        zcluster.LocalCluster(nodes=3, workers=0, preferred_leader="leader")


def test_a_leader_whose_event_loop_hangs_again_and_again_hands_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time for less than an election timeout: its followers have no reason to replace it."""
    monkeypatch.setattr(fleet, "COMMANDS", {**fleet.DEFAULT_COMMANDS, "replica": (FAULTY,)})
    with zcluster.LocalCluster(nodes=3, workers=0) as cluster, cluster.connect() as client:
        client.kv.put("k", b"v")
        leader = cluster.wait_leader().name
        (cluster.directory / "run" / f"{leader}.lag").touch()
        give_up = time.monotonic() + 20
        while (found := cluster.leader) is None or found.name == leader:
            client.kv.put("k", b"v")
            assert time.monotonic() < give_up, "it keeps its leadership although it hangs"
        assert "the event loop hangs again and again" in (cluster.directory / "logs" / f"{leader}.log").read_text()
        began = time.monotonic()
        client.kv.put("k", b"w")
        assert time.monotonic() - began < 0.4, "nobody waits for the one that hangs"


def wait_for_leader(cluster: zcluster.LocalCluster, name: str) -> None:
    give_up = time.monotonic() + 30
    while (leader := cluster.leader) is None or leader.name != name:
        assert time.monotonic() < give_up


def test_a_preferred_leader_with_a_new_disk_is_preferred_still() -> None:
    """It comes back as another replica, which those that never stopped have to learn."""
    with zcluster.LocalCluster(nodes=3, workers=0, preferred_leader="n2") as cluster:
        wait_for_leader(cluster, "n2")
        cluster.nodes["n2"].kill()
        cluster.nodes["n2"].wipe()
        cluster.nodes["n2"].start()
        wait_for_leader(cluster, "n2")
