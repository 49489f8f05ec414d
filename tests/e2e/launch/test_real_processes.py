"""The launcher with the real programs: replicas, router and workers."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.launch.conftest import pids, started_below, until
from tests.e2e.launch.test_local import assert_nothing_left, end, line_of, script
from zcluster.config import load_spec
from zcluster.errors import Degraded
from zcluster.launch import fleet
from zcluster.launch.cluster import Cluster
from zcluster.launch.local import LocalCluster
from zcluster.launch.named import up

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def real_commands(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "COMMANDS", fleet.DEFAULT_COMMANDS)


def test_life_of_a_cluster(home: Path) -> None:
    cluster, told = up("default", {})
    try:
        assert told["seconds"] < 10
        until(lambda: load_spec(cluster.directory).created)
        first = cluster.wait_leader()
        first.kill()
        second = cluster.wait_leader(10)
        assert second != first
        second.pause()
        assert cluster.leader != second
        second.resume()
        first.start()
        cluster.wait("healthy")
        status = cluster.status()
        assert status["term"] > 1
        assert all(node["disk_bytes"] > 0 for node in status["nodes"])
        until(lambda: all(node["commit_index"] > 0 for node in cluster.status()["nodes"]))
        assert all(node["loss_window_ms"] == 0 for node in status["nodes"])
        assert set(cluster.checkpoint()) == {"n1", "n2", "n3"}
    finally:
        cluster.down(5)
    assert started_below(home) == []
    again, _ = up("default", {})
    assert again.status()["state"] == "healthy"
    assert Cluster(again.directory).down(5, purge=True)


def test_every_process_survives_sigkill_of_everything(home: Path) -> None:
    with LocalCluster(nodes=1) as cluster:
        for name, pid in pids(cluster).items():
            os.kill(pid, signal.SIGKILL)
            until(lambda name=name, pid=pid: pids(cluster).get(name) not in (None, pid))
        cluster.wait("healthy", 10)
    assert_nothing_left(home)


def test_worker_killed_on_purpose_charges_its_task_nothing(home: Path, tmp_path: Path) -> None:
    """More deliberate kills, of the worker and of its whole node, than a task has attempts."""
    place = str(tmp_path)

    def slow() -> int:
        (Path(place) / f"{os.getpid()}").touch()
        while len(list(Path(place).glob("[0-9]*"))) < 6:
            time.sleep(0.01)
        return len(list(Path(place).glob("[0-9]*")))

    with LocalCluster(nodes=1, attempts_max=2) as cluster, cluster.connect() as client:
        future = client.submit(slow)
        for number in range(1, 6):
            until(lambda number=number: len(list(tmp_path.glob("[0-9]*"))) == number)
            if number % 2:
                cluster.workers[0].kill()
            else:
                cluster.nodes["n1"].kill()
                cluster.nodes["n1"].start()
        assert future.result(20) == 6
    assert_nothing_left(home)


def test_replica_whose_log_was_cut_below_its_checkpoint_says_so_and_the_others_go_on(home: Path) -> None:
    cluster, _ = up("default", {"workers": 0})
    with cluster.connect() as client:
        cluster.transfer(next(name for name in cluster.nodes if name != cluster.wait_leader().name))
        client.kv.put("k", b"v")  # in a term that the beginning of the log knows nothing of
    assert len(cluster.checkpoint()) == 3
    cluster.down(60)
    wal = cluster.directory / "data" / "n2" / "wal"
    for log in wal.glob("*.wal"):
        os.truncate(log, 200)
    (wal / "proof").unlink()  # the second witness of the vote; with it the log alone would be repaired
    with pytest.raises(Degraded, match=r"n2: Refused: .*the term and vote of n2 are lost"):
        up("default", {})
    with cluster.connect() as client:
        assert client.kv.get("k") == b"v"
    cluster.down(5, purge=True)


def test_owner_and_supervisor_killed_at_once_leave_no_process(home: Path) -> None:
    """The children notice by themselves, after the moment that the supervisor would have had for it."""
    process = script(home, "print(cluster.identity('supervisor').pid, flush=True)\nsys.stdin.read()", commands=None)
    line_of(process)
    os.kill(int(line_of(process)), signal.SIGSTOP)
    process.kill()
    end(process)
    began = time.monotonic()
    stopped = {pid for pid in started_below(home) if Path(f"/proc/{pid}/comm").exists() and _is_supervisor(pid)}
    until(lambda: set(started_below(home)) <= stopped)
    assert time.monotonic() - began < 5


def _is_supervisor(pid: int) -> bool:
    return b"zcluster.launch.supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes()
