"""Real clusters under stopped processes, failing disks and restarts: what clients saw has an order.

Killed processes: `test_survival.py`. Networks: `test_links.py`.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

import zcluster
from tests.e2e.judging import (
    BOTH,
    assert_linearizable,
    everywhere,
    state,
    wait_for,
    wait_other_leader,
)
from zcluster.chaos.traffic import Traffic
from zcluster.launch import fleet

pytestmark = pytest.mark.slow

FAULTY = str(Path(__file__).with_name("faulty_node.py"))
FAST = {"election_timeout_ms": 300, "heartbeat_ms": 75, "checkpoint_bytes": 20_000, "segment_bytes": 65_536}
ORDINARY = (0, 1)


@pytest.fixture
def seed() -> int:
    drawn = random.randrange(1 << 32)
    print(f"seed {drawn}")
    return drawn


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[zcluster.LocalCluster]:
    """Three nodes whose disks misbehave on demand."""
    monkeypatch.setattr(fleet, "COMMANDS", {**fleet.DEFAULT_COMMANDS, "replica": (FAULTY,)})
    with zcluster.LocalCluster(workers=0, **FAST) as cluster:
        yield cluster


# -- stopped processes ------------------------------------------------------------------------------------------------
def test_leaders_stopped_beyond_their_lease_serve_nothing_stale(seed: int, tmp_path: Path) -> None:
    """Clients that know only the stopped leader ask it meanwhile; it finds their reads when it wakes up."""
    with zcluster.LocalCluster(workers=0, **FAST) as cluster:
        options = {"clients": 4, "seed": seed, "consistency": BOTH, "read_share": 0.6}
        with Traffic(everywhere(cluster), timeout_s=5.0, pace_s=0.002, **options) as traffic:  # type: ignore[arg-type]
            for _ in range(5):
                leader = cluster.wait_leader()
                traffic.wait_progress(5, callers=ORDINARY)
                leader.pause()
                wait_other_leader(cluster, leader.name)
                traffic.wait_progress(10, callers=ORDINARY)
                leader.resume()
                traffic.wait_progress(10, callers=ORDINARY)
        assert_linearizable(traffic, tmp_path)


def test_stopped_followers_stop_writes_only_while_they_are_a_majority(seed: int, tmp_path: Path) -> None:
    with (
        zcluster.LocalCluster(workers=0, **FAST) as cluster,
        Traffic(everywhere(cluster), clients=4, seed=seed, consistency=BOTH, timeout_s=2.0) as traffic,
    ):
        for _ in range(2):
            leader = cluster.wait_leader()
            one, other = (node for node in cluster.nodes.values() if node.name != leader.name)
            term = state(cluster, leader.name)["term"]
            one.pause()
            traffic.wait_progress(20, callers=ORDINARY)  # without an election
            assert (cluster.wait_leader().name, state(cluster, leader.name)["term"]) == (leader.name, term)
            other.pause()
            with pytest.raises(zcluster.Timeout):
                traffic.wait_progress(20, 1.0, callers=ORDINARY)
            one.resume()
            traffic.wait_progress(5, callers=ORDINARY)
            other.resume()
            traffic.wait_progress(5, callers=ORDINARY)
        traffic.stop()
        assert_linearizable(traffic, tmp_path)


# -- disks ------------------------------------------------------------------------------------------------------------
@contextmanager
def fault(cluster: zcluster.LocalCluster, node: str, kind: str, text: str = "") -> Iterator[None]:
    """The node's disk has this fault until the end of the block; see `faulty_node.py`."""
    path = cluster.directory / "run" / f"{node}.{kind}"
    hidden = path.with_suffix(f".{kind}-")
    with open(hidden, "w+") as file:
        file.write(text)
        file.flush()
        if kind == "stall":
            fcntl.flock(file, fcntl.LOCK_EX)
        hidden.rename(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def test_disks_that_stall_are_slow_and_fail_to_sync(faulty: zcluster.LocalCluster, seed: int, tmp_path: Path) -> None:
    """Each node in turn, whether it leads or not: slow syncs, one that hangs, one that fails."""
    with Traffic(everywhere(faulty), clients=4, seed=seed, consistency=BOTH, timeout_s=5.0) as traffic:
        for name in faulty.nodes:
            with fault(faulty, name, "slow", "30"):
                traffic.wait_progress(5, callers=ORDINARY)
            with fault(faulty, name, "stall"):
                traffic.wait_progress(10, callers=ORDINARY)
            with fault(faulty, name, "eio"):
                wait_for(faulty, name, "failed")
                traffic.wait_progress(10, callers=ORDINARY)  # two of three
            faulty.nodes[name].start()
            faulty.wait("healthy", timeout=30)
    assert_linearizable(traffic, tmp_path)


def test_syncs_that_fail_on_two_of_three_lose_nothing(faulty: zcluster.LocalCluster, seed: int, tmp_path: Path) -> None:
    """Without a majority nothing is acknowledged, and nothing refused that may still happen: the leader has written
    what it was asked, and commits it when the others come back, after the callers have given up."""
    with Traffic(faulty.connect, clients=2, seed=seed, consistency=BOTH, timeout_s=1.0) as traffic:
        traffic.wait_progress(10)
        leader = faulty.wait_leader().name
        one, other = (name for name in faulty.nodes if name != leader)
        with fault(faulty, one, "eio"), fault(faulty, other, "eio"):
            wait_for(faulty, one, "failed")
            wait_for(faulty, other, "failed")
        while not traffic.errors:
            assert faulty.running
        faulty.nodes[one].start()
        faulty.nodes[other].start()
        traffic.wait_progress(5, timeout=30)
    assert_linearizable(traffic, tmp_path, answers_min=50)


def test_disks_that_are_full_in_the_middle_of_a_write(faulty: zcluster.LocalCluster, seed: int, tmp_path: Path) -> None:
    """Each node in turn runs out of room after some bytes of a write, stops, and goes on when there is room again."""
    choose = random.Random(seed)
    with Traffic(everywhere(faulty), clients=4, seed=seed, consistency=BOTH, timeout_s=5.0) as traffic:
        for name in faulty.nodes:
            with fault(faulty, name, "enospc", str(choose.randrange(400))):
                assert "space" in str(wait_for(faulty, name, "failed")["failure"])
                traffic.wait_progress(5, callers=ORDINARY)
            faulty.nodes[name].start()
            faulty.wait("healthy", timeout=30)
    assert_linearizable(traffic, tmp_path)


def can_mount() -> bool:
    """Whether this process may mount a file system: root may, unless it is confined."""
    probe = Path("/tmp") / f"zcluster-mount-{os.getpid()}"
    probe.mkdir()
    try:
        with small_disk(probe):
            return True
    except (subprocess.CalledProcessError, FileNotFoundError):
        return False
    finally:
        probe.rmdir()


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """An empty tmpfs of 2 MB at `place` until the end of the block."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True, capture_output=True)


REAL_DISK = "tmpfs" if can_mount() else "no right to mount, so by the faulty disk"
"""In the test's name, so that everybody sees which one it was."""


@pytest.mark.parametrize("disk", [REAL_DISK])
def test_a_file_system_that_is_full(
    disk: str, private_home: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower's, then the leader's: the node stops and says so, the others go on; with room it comes back."""
    if disk != "tmpfs":
        monkeypatch.setattr(fleet, "COMMANDS", {**fleet.DEFAULT_COMMANDS, "replica": (FAULTY,)})
    private_home.mkdir()
    with zcluster.LocalCluster(workers=0, data_dir=private_home / "kept", **FAST) as cluster:
        name = next(n for n in cluster.nodes if n != cluster.wait_leader().name)
        place = cluster.spec.data_directory(name)
        with moved_to_small_disk(cluster, name) if disk == "tmpfs" else nullcontext():
            with Traffic(cluster.connect, seed=seed, consistency=BOTH) as traffic:
                for _ in range(2):
                    with no_room(place) if disk == "tmpfs" else fault(cluster, name, "enospc", "100"):
                        with cluster.connect() as client:
                            while state(cluster, name)["role"] != "failed":
                                client.kv.put("bulk", bytes(20_000))
                        assert "space" in str(state(cluster, name)["failure"])
                        traffic.wait_progress(5)
                    cluster.nodes[name].start()
                    cluster.wait("healthy", timeout=30)
                    make_leader(cluster, name)
            cluster.close()  # before its disk goes
        assert_linearizable(traffic, tmp_path)


def make_leader(cluster: zcluster.LocalCluster, name: str) -> None:
    """Kill whoever else leads until this node does."""
    while (leader := cluster.wait_leader()).name != name:
        leader.kill()
        wait_other_leader(cluster, leader.name)
        leader.start()
        cluster.wait("healthy", timeout=30)


@contextmanager
def moved_to_small_disk(cluster: zcluster.LocalCluster, name: str) -> Iterator[None]:
    """The node's data lie on a small file system from now on."""
    place = cluster.spec.data_directory(name)
    cluster.nodes[name].kill()
    aside = place.with_name("aside")
    place.rename(aside)
    place.mkdir(mode=0o700)
    with small_disk(place):
        shutil.copytree(aside, place, dirs_exist_ok=True)
        cluster.nodes[name].start()
        cluster.wait("healthy", timeout=30)
        yield


@contextmanager
def no_room(place: Path) -> Iterator[None]:
    """Somebody else's file takes all that is left."""
    path = place / "ballast"
    with open(path, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    try:
        yield
    finally:
        path.unlink()


# -- restarts ---------------------------------------------------------------------------------------------------------
def test_restarts_of_everything_in_mid_traffic(private_home: Path, tmp_path: Path, seed: int) -> None:
    """One after the other, all at once, and the whole cluster down and up; every one a clean stop."""
    private_home.mkdir()
    where = private_home / "kept"
    with (
        zcluster.LocalCluster(workers=0, data_dir=where, **FAST) as cluster,
        Traffic(cluster.connect, seed=seed, consistency=BOTH, timeout_s=5.0) as traffic,
    ):
        traffic.wait_progress(5)
        cluster.restart()
        traffic.wait_progress(5)
        cluster.stop()
        cluster.start()
        traffic.wait_progress(5)
        cluster.close()
        with zcluster.LocalCluster(workers=0, data_dir=where, **FAST) as again:
            traffic.wait_progress(5)
            again.nodes["n1"].kill()
            traffic.wait_progress(5)
            traffic.stop()
    assert_linearizable(traffic, tmp_path)


def test_a_killed_supervisor_and_a_killed_leader_at_once(seed: int, tmp_path: Path) -> None:
    """Nobody is there to restart the leader at first; the next supervisor finds it missing."""
    with zcluster.LocalCluster(workers=0, **FAST) as cluster:
        with Traffic(cluster.connect, seed=seed, consistency=BOTH) as traffic:
            for _ in range(3):
                traffic.wait_progress(3)
                supervisor, leader = cluster.identity("supervisor"), cluster.wait_leader()
                assert supervisor is not None and leader.pid is not None
                os.kill(supervisor.pid, signal.SIGKILL)
                os.kill(leader.pid, signal.SIGKILL)
                traffic.wait_progress(3)
                cluster.wait("healthy", timeout=30)
        assert_linearizable(traffic, tmp_path)
