"""Nodes that stop and come back: what they were doing goes on, and nothing grows without bounds meanwhile."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

import zcluster
from zcluster.launch.report import directory_bytes

pytestmark = pytest.mark.slow


def node_of(cluster: zcluster.LocalCluster, pid: int) -> str:
    return next(name for name in cluster.nodes if any(w.pid == pid for w in cluster.nodes[name].workers))


def test_a_stop_lets_the_running_task_end_and_moves_what_was_not_started(tmp_path: Path) -> None:
    """With `rerun=False` a second run would be an error; the ones behind it have never begun."""
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    os.mkfifo(begun)
    os.mkfifo(go_on)

    def wait_for_word() -> int:
        begun.write_text(str(os.getpid()))
        go_on.read_text()
        return os.getpid()

    with zcluster.LocalCluster(nodes=3, workers=1) as cluster, cluster.connect() as client:
        running = client.submit(wait_for_word, rerun=False)  # type: ignore[call-arg]
        pid = int(begun.read_text())
        name = node_of(cluster, pid)
        stopping = threading.Thread(target=cluster.stop, args=(name,))
        stopping.start()
        others = [client.submit(os.getpid) for _ in range(50)]
        assert pid not in [future.result(timeout=30) for future in others]
        assert not running.done()
        go_on.write_text("now")
        assert running.result(timeout=30) == pid
        stopping.join()
        assert not cluster.nodes[name].alive


def test_a_task_that_takes_too_long_for_a_stop_runs_again_elsewhere_and_is_not_charged(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    os.mkfifo(begun)
    seen = tmp_path / "seen"

    def stay_the_first_time() -> int:
        if seen.exists():
            return os.getpid()
        seen.touch()
        begun.write_text(str(os.getpid()))
        threading.Event().wait()
        return 0

    with zcluster.LocalCluster(nodes=3, workers=1, attempts_max=1) as cluster, cluster.connect() as client:
        future = client.submit(stay_the_first_time)
        pid = int(begun.read_text())
        cluster.stop(node_of(cluster, pid))
        assert future.result(timeout=30) not in (0, pid)


def test_stopping_the_leader_hands_over_at_once_and_leaves_a_checkpoint() -> None:
    with zcluster.LocalCluster(nodes=3, workers=0) as cluster, cluster.connect() as client:
        for number in range(20):
            client.kv.put(f"k{number}", b"v")
        leader = cluster.wait_leader()
        applied = next(n["last_applied"] for n in cluster.status()["nodes"] if n["name"] == leader.name)
        longest, last, stop = 0.0, time.monotonic(), threading.Event()

        def write() -> None:
            nonlocal longest, last
            with cluster.connect() as mine:
                mine.kv.put("w", b"x")
                last = time.monotonic()
                while not stop.is_set():
                    mine.kv.put("w", b"x")
                    longest, last = max(longest, time.monotonic() - last), time.monotonic()

        writer = threading.Thread(target=write)
        writer.start()
        leader.stop()
        new = cluster.wait_leader()
        assert new.name != leader.name
        stop.set()
        writer.join()
        assert longest < cluster.spec.settings.election_timeout_ms / 1000, "nobody waited for an election timeout"
        newest = max((cluster.spec.data_directory(leader.name) / "checkpoints").glob("*.ckpt"))
        assert int(newest.name.partition("-")[0]) >= applied


def test_logs_stay_bounded_while_a_node_is_away_and_it_catches_up_by_checkpoint() -> None:
    """Many times the size of a log is written while one node is down, again and again."""
    limits = {"checkpoint_bytes": 256 << 10, "segment_bytes": 256 << 10}
    with zcluster.LocalCluster(nodes=3, workers=0, **limits) as cluster, cluster.connect() as client:
        name = next(n for n in cluster.nodes if n != cluster.wait_leader().name)
        cluster.stop(name)
        away = [n for n in cluster.nodes if n != name]
        value = os.urandom(16 << 10)
        sizes = []
        for _ in range(4):
            for number in range(400):
                client.kv.put(f"k{number % 10}", value)
            sizes.append(max(directory_bytes(str(cluster.spec.data_directory(n))) for n in away))
        written = 4 * 400 * len(value)
        assert max(sizes) < written / 4, (sizes, written)
        assert sizes[-1] < 2 * sizes[0] + (2 << 20), "it does not grow with what is written"
        cluster.nodes[name].start()
        cluster.wait_healthy()
        client.kv.put("last", b"x")
        give_up = time.monotonic() + 30
        while (found := cluster.verify())["missing"]:
            assert time.monotonic() < give_up, found
        assert found["equal"]
        log = (cluster.directory / "logs" / f"{name}.log").read_text()
        assert "received checkpoint" in log
