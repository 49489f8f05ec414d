"""Clusters of stand-in processes in a temporary home; nothing of them may be left when a test ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zcluster.launch import fleet
from zcluster.launch import process as system
from zcluster.launch.cluster import Cluster
from zcluster.launch.named import up

STAND_IN = str(Path(__file__).with_name("stand_in.py"))
COMMANDS = {role: (STAND_IN, role) for role in ("replica", "worker", "router")}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """$ZCLUSTER_HOME; afterwards every process that was started for a cluster below it is gone."""
    path = tmp_path / "home"
    path.mkdir()
    monkeypatch.setenv("ZCLUSTER_HOME", str(path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(fleet, "COMMANDS", COMMANDS)
    yield path
    for pid in started_below(path):
        os.kill(pid, signal.SIGKILL)


def started_below(path: Path) -> list[int]:
    """Living processes of all clusters in a home."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            directory = system.read_environment(int(entry)).get("ZCLUSTER_DIRECTORY", "")
            stat = system.read_stat(int(entry))
            if directory.startswith(str(path)) and stat is not None and not stat.dead:
                found.append(int(entry))
    return found


@pytest.fixture
def cluster(home: Path) -> Iterator[Cluster]:
    """Three nodes, one worker each, ready."""
    started, _ = up("default", {})
    yield started
    started.down(2)


def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """For what nothing announces (a restart, say): look every few milliseconds."""
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, "it did not come true"
        time.sleep(0.003)


def kill_supervisor(cluster: Cluster) -> int:
    """SIGKILL, and wait until it is dead. Returns: its pid."""
    supervisor = cluster.control.supervisor()
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    assert supervisor.exited(10)
    supervisor.close()
    return supervisor.pid


def pids(cluster: Cluster) -> dict[str, int]:
    return {name: identity.pid for name, identity in cluster.control.processes().items()}
