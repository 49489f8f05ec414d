"""Disks that stall, fail to sync or fill up, under a real cluster."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import zcluster
from zcluster.launch import fleet
from zcluster.storage.checkpoint import list_checkpoints
from zcluster.storage.disk import PosixDisk

pytestmark = pytest.mark.slow

FAULTY = str(Path(__file__).with_name("faulty_node.py"))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[zcluster.LocalCluster]:
    monkeypatch.setattr(fleet, "COMMANDS", {**fleet.DEFAULT_COMMANDS, "replica": (FAULTY,)})
    with zcluster.LocalCluster(nodes=3, workers=0) as cluster:
        yield cluster


@contextmanager
def stalled(cluster: zcluster.LocalCluster, node: str) -> Iterator[None]:
    """Syncs of `node` take until the end of the block."""
    path = cluster.directory / "run" / f"{node}.stall"
    hidden = path.with_suffix(".stall-")
    with open(hidden, "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        hidden.rename(path)
        try:
            yield
        finally:
            path.unlink()


def state(cluster: zcluster.LocalCluster, node: str) -> dict[str, object]:
    return next(n for n in cluster.status()["nodes"] if n["name"] == node)


def test_a_stalled_disk_of_a_follower_stops_neither_heartbeats_nor_the_cluster(cluster: zcluster.LocalCluster) -> None:
    with cluster.connect() as client:
        client.kv.put("k", b"0")
        leader = cluster.wait_leader().name
        name = next(n for n in cluster.nodes if n != leader)
        term = state(cluster, leader)["term"]
        with stalled(cluster, name):
            until = time.monotonic() + 3 * cluster.spec.settings.election_timeout_ms / 1000
            number = 0
            while time.monotonic() < until:  # the two other disks are a majority
                number += 1
                client.kv.put("k", b"%d" % number)
            assert state(cluster, name)["responsive"]
        assert client.kv.get("k") == b"%d" % number
        assert cluster.wait_leader().name == leader
        assert state(cluster, leader)["term"] == term


def test_a_leader_whose_disk_is_stuck_hands_over_and_writes_go_on(cluster: zcluster.LocalCluster) -> None:
    """Within a bounded time, without an election timeout, and with nothing lost; it follows while it is stuck."""
    with cluster.connect() as client:
        client.kv.put("k", b"0")
        leader = cluster.wait_leader().name
        term = state(cluster, leader)["term"]
        number, longest, moved_after = 0, 0.0, None
        with stalled(cluster, leader):
            began = last = time.monotonic()
            while moved_after is None or time.monotonic() - began < moved_after + 1:
                number += 1
                client.kv.put("k", b"%d" % number)
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
                if moved_after is None and (found := cluster.leader) is not None and found.name != leader:
                    moved_after = time.monotonic() - began
                assert time.monotonic() - began < 20, "it keeps its leadership although its disk is stuck"
            assert state(cluster, leader)["responsive"]
            assert state(cluster, leader)["role"] == "follower"
        timeout = cluster.spec.settings.election_timeout_ms / 1000
        assert moved_after < 5 * timeout
        assert longest < 2 * timeout
        assert client.kv.get("k") == b"%d" % number
        log = (cluster.directory / "logs" / f"{leader}.log").read_text()
        assert "handing leadership over: the disk has not answered" in log
        assert int(str(state(cluster, cluster.wait_leader().name)["term"])) == int(str(term)) + 1


def test_a_failed_sync_stops_the_node_which_says_so_and_nothing_is_lost(cluster: zcluster.LocalCluster) -> None:
    with cluster.connect() as client:
        client.kv.put("before", b"x")
        leader = cluster.wait_leader()
        fault = cluster.directory / "run" / f"{leader.name}.eio"
        fault.touch()
        client.kv.put("after", b"y")
        cluster_waits_for(cluster, leader.name, "failed")
        assert "Input/output error" in str(state(cluster, leader.name)["failure"])
        assert not fault.exists()  # one sync failed, and none was tried again
        leader.start()
        cluster.wait("healthy", timeout=30)
        assert (client.kv.get("before"), client.kv.get("after")) == (b"x", b"y")


def test_a_full_disk_stops_the_node_and_says_what_to_do(cluster: zcluster.LocalCluster) -> None:
    with cluster.connect() as client:
        leader = cluster.wait_leader().name
        name = next(n for n in cluster.nodes if n != leader)
        fault = cluster.directory / "run" / f"{name}.enospc"
        fault.touch()
        client.kv.put("k", b"v")
        cluster_waits_for(cluster, name, "failed")
        assert "space" in str(state(cluster, name)["failure"])
        fault.unlink()
        cluster.nodes[name].start()
        cluster.wait("healthy", timeout=30)
        assert client.kv.get("k") == b"v"


@pytest.mark.parametrize("fault", ["flipped", "shortened", "missing"])
def test_a_damaged_log_is_repaired_from_the_peers(cluster: zcluster.LocalCluster, fault: str) -> None:
    """A bit in the middle, the end of the newest segment, all of it: no vote is lost, the peers have the entries."""
    with cluster.connect() as client:
        for number in range(200):
            client.kv.put(f"k{number}", b"v" * 500)
        leader = cluster.wait_leader().name
        name = next(n for n in cluster.nodes if n != leader)
        cluster.nodes[name].kill()
        wal = cluster.spec.data_directory(name) / "wal"
        newest = max(wal.glob("*.wal"))
        if fault == "flipped":
            flip_bits(wal, 20_000)
        elif fault == "shortened":
            os.truncate(newest, 20_000)
        else:
            newest.unlink()
        cluster.nodes[name].start()
        cluster.wait("healthy", timeout=30)
        client.kv.put("later", b"w")
        give_up = time.monotonic() + 30
        while (found := state(cluster, name))["repair"] or found["last_applied"] != state(cluster, leader)[
            "last_applied"
        ]:
            assert time.monotonic() < give_up, found
        assert found["damage"]
        for other in cluster.nodes:
            if other not in (name, leader):
                cluster.nodes[other].kill()  # the repaired one now counts
        assert len(client.kv.list("k")) == 200


def test_a_damaged_log_of_a_lone_node_is_refused_not_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    with zcluster.LocalCluster(nodes=1, workers=0) as cluster:
        with cluster.connect() as client:
            for number in range(200):
                client.kv.put(f"k{number}", b"v" * 500)
        cluster.nodes["n1"].kill()
        flip_bits(cluster.spec.data_directory("n1") / "wal", 20_000)
        cluster.nodes["n1"].start()
        cluster_waits_for(cluster, "n1", "failed")
        assert "no peer to repair it from" in str(state(cluster, "n1")["failure"])


def test_a_damaged_checkpoint_falls_back_to_the_older_one_and_the_log(cluster: zcluster.LocalCluster) -> None:
    with cluster.connect() as client:
        for generation in range(3):
            for number in range(20):
                client.kv.put(f"k{generation}-{number}", b"v")
            give_up = time.monotonic() + 30
            while len(written := cluster.checkpoint()) < 3 or len(set(written.values())) > 1:
                assert time.monotonic() < give_up, f"somebody does not catch up: {written}"
        leader = cluster.wait_leader().name
        name = next(n for n in cluster.nodes if n != leader)
        cluster.nodes[name].kill()
        newest = list_checkpoints(PosixDisk(), cluster.spec.data_directory(name) / "checkpoints")[0].path
        content = bytearray(newest.read_bytes())
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
        cluster.nodes[name].start()
        cluster.wait("healthy", timeout=30)
        assert len(client.kv.list("k", consistency="linearizable")) == 60


def test_missing_data_of_a_known_node_are_refused(cluster: zcluster.LocalCluster) -> None:
    import shutil

    with cluster.connect() as client:
        client.kv.put("k", b"v")
        name = next(n for n in cluster.nodes if n != cluster.wait_leader().name)
        cluster.nodes[name].kill()
        shutil.rmtree(cluster.spec.data_directory(name))
        cluster.nodes[name].start()
        cluster_waits_for(cluster, name, "failed")
        assert "must not" in str(state(cluster, name)["failure"])
        assert client.kv.get("k") == b"v"


def cluster_waits_for(cluster: zcluster.LocalCluster, node: str, role: str) -> None:
    give_up = time.monotonic() + 30
    while (found := state(cluster, node))["role"] != role:
        assert time.monotonic() < give_up, found


def flip_bits(directory: Path, offset: int) -> None:
    """Damage the first segment in the middle."""
    segment = sorted(path for path in directory.iterdir() if path.is_file())[0]
    with open(segment, "r+b") as file:
        file.seek(offset)
        old = file.read(8)
        file.seek(offset)
        file.write(bytes(255 - byte for byte in old))
