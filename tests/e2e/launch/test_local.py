"""`LocalCluster` leaves nothing behind, however its owner ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from tests.e2e.launch.conftest import COMMANDS, kill_supervisor, pids, started_below, until
from zcluster.errors import Conflict, InvalidInput
from zcluster.launch.local import LocalCluster

pytestmark = pytest.mark.slow


def assert_nothing_left(home: Path) -> None:
    assert started_below(home) == []
    assert os.listdir(home) == []
    sockets = home.parent / "zcluster"
    assert not sockets.exists() or os.listdir(sockets) == []


def script(home: Path, body: str, commands: object = COMMANDS) -> subprocess.Popen[str]:
    """A user's program, without a `__main__` guard, that makes a LocalCluster `cluster` and then runs `body`."""
    head = f"""
        import os, signal, sys
        from zcluster.launch import fleet
        fleet.COMMANDS = {commands!r} or fleet.COMMANDS
        from zcluster.launch.local import LocalCluster
        cluster = LocalCluster(nodes=2)
        print(cluster.directory, flush=True)
    """
    code = textwrap.dedent(head) + textwrap.dedent(body)
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> int:
    with process:
        process.communicate(timeout=20)
    return process.returncode


def test_ready_inside_nothing_left_outside(home: Path) -> None:
    with LocalCluster(nodes=2, workers=2) as cluster:
        status = cluster.status()
        assert status["state"] == "healthy"
        assert len(cluster.workers) == 4
        assert cluster.directory.parent == home
        cluster.nodes["n1"].kill()
        cluster.nodes["n2"].pause()
    assert cluster.closed
    cluster.close()
    assert_nothing_left(home)
    assert "zcluster-guardian" not in [t.name for t in threading.enumerate()]


def test_one_node_and_bad_settings(home: Path) -> None:
    with pytest.raises(InvalidInput):
        LocalCluster(nodes=0)
    with pytest.raises(InvalidInput):
        LocalCluster(colour="red")
    with LocalCluster(nodes=1, workers=0) as cluster:
        assert cluster.leader is not None
    assert_nothing_left(home)


def test_data_dir_is_kept_and_gone_on_with(home: Path, tmp_path: Path) -> None:
    data = tmp_path / "mine"
    with LocalCluster(nodes=2, data_dir=data) as cluster:
        cluster_id = cluster.spec.cluster_id
        with pytest.raises(Conflict, match="in use"):
            LocalCluster(nodes=2, data_dir=data)
        assert cluster.status()["state"] == "healthy"
    assert started_below(tmp_path) == []
    with LocalCluster(nodes=2, data_dir=data, balance="random") as cluster:
        assert cluster.spec.cluster_id == cluster_id
    with pytest.raises(Conflict, match="nodes is 2, not 3"):
        LocalCluster(data_dir=data)
    assert (data / "cluster.json").exists()
    assert started_below(tmp_path) == []


def test_only_the_creator_can_close(home: Path) -> None:
    cluster = LocalCluster(nodes=1)
    try:
        before = pids(cluster)
        with pytest.warns(DeprecationWarning) if sys.version_info >= (3, 12) else _nothing():
            child = os.fork()
        if child == 0:
            try:
                cluster.__exit__(None, None, None)
                del cluster
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert pids(cluster) == before
    finally:
        cluster.close()
    assert_nothing_left(home)


class _nothing:  # noqa: N801 a context manager in the place of another
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_made_and_closed_in_a_thread(home: Path) -> None:
    """The creating thread ends while the cluster lives: no process may notice."""
    made: list[LocalCluster] = []
    thread = threading.Thread(target=lambda: made.append(LocalCluster(nodes=1)))
    thread.start()
    thread.join()
    assert made[0].status()["state"] == "healthy"
    thread = threading.Thread(target=made[0].close)
    thread.start()
    thread.join()
    assert_nothing_left(home)


def test_killed_supervisor_is_replaced_without_anybody_asking(home: Path) -> None:
    with LocalCluster(nodes=2) as cluster:
        before = pids(cluster)
        old = kill_supervisor(cluster)
        until(lambda: (i := cluster.identity("supervisor")) is not None and i.pid != old)
        assert pids(cluster) == before
        os.kill(before["n1.w1"], signal.SIGKILL)
        until(lambda: pids(cluster).get("n1.w1") not in (None, before["n1.w1"]))
    assert_nothing_left(home)


def test_forgotten_cluster_is_closed_at_exit(home: Path) -> None:
    process = script(home, "sys.exit(7)")
    assert end(process) == 7
    assert_nothing_left(home)


def test_collected_cluster_is_closed(home: Path) -> None:
    process = script(home, "del cluster\nimport gc; gc.collect()\nprint(os.listdir(os.environ['ZCLUSTER_HOME']))")
    line_of(process)
    assert line_of(process) == "[]"
    assert end(process) == 0


def test_owner_killed_all_gone_within_a_second_stopped_ones_too(home: Path) -> None:
    process = script(home, "cluster.nodes['n1'].pause()\nprint('ready', flush=True)\nsys.stdin.read()")
    line_of(process)
    assert line_of(process) == "ready"
    assert len(started_below(home)) == 6
    process.kill()
    process.wait()
    began = time.monotonic()
    until(lambda: not started_below(home) and not os.listdir(home))
    assert time.monotonic() - began < 1.0
    end(process)
    assert_nothing_left(home)


def test_owner_with_forked_children_is_watched_itself(home: Path) -> None:
    """A child of the owner keeps all its pipes open: only the owner's own death counts."""
    body = """
        child = os.fork()
        if child == 0:
            signal.pause()
        print(child, flush=True)
        sys.stdin.read()
    """
    process = script(home, body)
    line_of(process)
    child = int(line_of(process))
    try:
        process.kill()
        process.wait()
        until(lambda: not started_below(home) and not os.listdir(home), 1.0)
    finally:
        os.kill(child, signal.SIGKILL)
        end(process)


def test_control_c_in_the_terminal_reaches_only_the_owner(home: Path) -> None:
    body = """
        try:
            print('ready', flush=True)
            signal.pause()
        except KeyboardInterrupt:
            print(cluster.status()['state'], flush=True)
    """
    process = script(home, body)
    line_of(process)
    assert line_of(process) == "ready"
    process.send_signal(signal.SIGINT)
    assert line_of(process) == "healthy"
    assert end(process) == 0
    assert_nothing_left(home)


def test_sweep_ends_what_owner_and_supervisor_left(home: Path) -> None:
    """Both killed at once: a child that notices becomes `zcluster.launch.sweep`."""
    body = """
        cluster.nodes['n2'].pause()
        print(cluster.identity('supervisor').pid, flush=True)
        sys.stdin.read()
    """
    process = script(home, body)
    directory = line_of(process)
    sweep = [sys.executable, "-m", "zcluster.launch.sweep", directory]
    supervisor = int(line_of(process))
    assert subprocess.run(sweep, check=False).returncode == 0
    assert len(started_below(home)) == 6, "the owner lives: nothing is swept"
    os.kill(supervisor, signal.SIGSTOP)  # as good as dead, and it holds the lock
    process.kill()
    end(process)
    assert len(started_below(home)) == 6
    assert subprocess.run(sweep, check=False).returncode == 0
    assert_nothing_left(home)
