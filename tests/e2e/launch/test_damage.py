"""What somebody has damaged, removed or moved under a running cluster: it heals, or ends cleanly, and is never lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.e2e.launch.conftest import pids, started_below, until
from zcluster import config
from zcluster.errors import Conflict, FormatTooNew, InvalidInput, StorageError
from zcluster.launch import control, files
from zcluster.launch import process as system
from zcluster.launch.cluster import Cluster
from zcluster.launch.named import clusters, down, up


def damage(cluster: Cluster, text: str = "garbage") -> None:
    (cluster.directory / "cluster.json").write_text(text)


@pytest.mark.parametrize("clean", [True, False])
def test_cluster_whose_description_is_damaged_is_listed_and_stopped(cluster: Cluster, home: Path, clean: bool) -> None:
    description = (cluster.directory / "cluster.json").read_text()
    damage(cluster)
    with pytest.raises(InvalidInput, match="damaged"):
        up("default", {})
    [one] = clusters()
    assert (one["state"], one["running"], one["nodes_up"], one["nodes"]) == ("damaged", True, 3, None)
    assert "down --purge" in one["problem"]
    assert down("default", 5 if clean else 0) is True
    assert started_below(home) == []
    assert down("default") is False
    assert clusters()[0]["running"] is False
    damage(cluster, description)
    assert clusters()[0]["state"] == "stopped"


def test_cluster_whose_description_is_damaged_is_removed_with_its_sockets(cluster: Cluster, home: Path) -> None:
    sockets = Path(cluster.spec.socket_directory)
    damage(cluster)
    assert down("default", 5, purge=True) is True
    assert (started_below(home), os.listdir(home), sockets.exists()) == ([], [], False)


def test_cluster_of_a_newer_version_is_listed_and_can_be_removed(cluster: Cluster, home: Path) -> None:
    cluster.down()
    damage(cluster, (cluster.directory / "cluster.json").read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(FormatTooNew):
        up("default", {})
    assert "newer zcluster" in clusters()[0]["problem"]
    assert down("default") is False
    assert down("default", purge=True) is False
    assert os.listdir(home) == []


def test_purging_removes_half_a_creation_and_nothing_of_others(home: Path) -> None:
    (home / "half" / "run").mkdir(parents=True)
    (home / "half" / ".create").touch()
    assert down("half", purge=True) is False
    assert not (home / "half").exists()
    (home / "mine").mkdir()
    (home / "mine" / "thesis").touch()
    with pytest.raises(Conflict, match="left alone"):
        down("mine", purge=True)
    assert (home / "mine" / "thesis").exists()


def test_supervisor_whose_directory_is_gone_ends_everything(cluster: Cluster, home: Path) -> None:
    """At the next thing that happens to it, or within half a minute."""
    sockets = Path(cluster.spec.socket_directory)
    worker = cluster.workers[0].pid
    files.remove_tree(cluster.directory)
    os.kill(worker, signal.SIGKILL)
    until(lambda: started_below(home) == [])
    until(lambda: not sockets.exists())


def test_new_cluster_in_the_place_of_a_removed_one_gets_on_with_it(cluster: Cluster, home: Path) -> None:
    """The old supervisor, young as it is, neither fights the new one nor touches its files."""
    old = set(started_below(home))
    files.remove_tree(cluster.directory)
    successor, report = up("default", {})
    assert report["created"]
    until(lambda: not old & set(started_below(home)))
    assert successor.status()["state"] == "healthy"
    assert len(pids(successor)) == 7
    successor.down(2, purge=True)
    assert started_below(home) == []


def test_supervisor_cut_off_from_its_socket_is_replaced(cluster: Cluster) -> None:
    before = pids(cluster)
    (Path(cluster.spec.socket_directory) / "supervisor.control").unlink()
    assert cluster.status()["state"] == "healthy"
    assert pids(cluster) == before


def test_processes_whose_sockets_were_removed_are_started_again(cluster: Cluster) -> None:
    files.remove_tree(cluster.spec.socket_directory)
    cluster.wait("healthy")
    files.remove_tree(cluster.spec.socket_directory)
    assert cluster.down(5) is True


def test_lost_run_files_are_written_anew(cluster: Cluster, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "RUN_FILE_S", 0.0)
    before = pids(cluster)
    for path in (cluster.directory / "run").glob("*.json"):
        path.write_text("garbage")
    up("default", {})
    assert cluster.status()["state"] == "healthy"
    assert pids(cluster) == before
    assert cluster.down(5) is True
    assert started_below(home) == []


def test_forged_run_file_harms_nobody(cluster: Cluster) -> None:
    """It names a stranger exactly; but a process of ours carries the run's id."""
    cluster.down()
    stranger = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
    try:
        for name in ("supervisor", "n1", "router"):
            identity = system.identify(stranger.pid, name, "forged")
            assert identity is not None
            files.write_run_file(cluster.directory, identity)
        assert not cluster.running
        up("default", {})
        cluster.down(5)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_wishes_and_run_files_that_cannot_be_written_stop_nothing(cluster: Cluster) -> None:
    """As on a full disk; root writes wherever it likes, so directories stand in the way of the files."""
    wishes = cluster.directory / "run" / "wishes"
    wishes.unlink(missing_ok=True)
    (wishes / "in the way").mkdir(parents=True)
    cluster.nodes["n1"].kill()
    assert cluster.status()["nodes"][0]["down_reason"] == "SIGKILL"
    cluster.nodes["n1"].start()
    cluster.wait("healthy")


def test_what_cannot_be_removed_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, _ = up("default", {"nodes": 1})
    cluster.down()
    place = str(cluster.directory)

    def refuse(path: object, onerror: Callable[[object, object, tuple[object, ...]], None]) -> None:
        assert str(path) in (place, cluster.spec.socket_directory)
        onerror(os.rmdir, path, (OSError, OSError(30, "Read-only file system", str(path)), None))

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(StorageError, match="Read-only"):
        down("default", purge=True)
    monkeypatch.undo()


def test_advice_names_the_cluster_as_it_can_be_called(home: Path, tmp_path: Path) -> None:
    assert config.command(home / "default") == "zcluster"
    assert config.command(home / "two") == "zcluster -c two"
    assert config.command(tmp_path / "kept") == f"zcluster -c {tmp_path}/kept"
    assert config.command(tmp_path / "two words") == f"zcluster -c '{tmp_path}/two words'"


def test_description_stays_as_it_is_when_a_cluster_is_only_looked_at(cluster: Cluster) -> None:
    until(lambda: config.load_spec(cluster.directory).created)
    before = (cluster.directory / "cluster.json").read_bytes()
    cluster.status()
    clusters()
    assert (cluster.directory / "cluster.json").read_bytes() == before
    assert msgspec.json.decode(before)["format"] == config.FORMAT
