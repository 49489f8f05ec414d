"""`zcluster chaos` on real clusters: it passes where it should, it can fail, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import zcluster
from zcluster.chaos import Chaos, run_chaos
from zcluster.chaos.run import PREFIX
from zcluster.cli.main import root
from zcluster.errors import Conflict, Degraded
from zcluster.launch.cluster import Cluster
from zcluster.launch.named import down, up

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def private_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Histories of runs that were killed stay: here."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def named() -> Iterator[Cluster]:
    cluster, _ = up("default", {"workers": 0})
    yield cluster
    down("default", 5, purge=True)


def call(*arguments: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(root, [*arguments, "--json"])
    return result.exit_code, json.loads(result.stdout)


def test_every_default_fault_leaves_the_history_linearizable_and_the_users_data_alone(
    named: Cluster, tmp_path: Path
) -> None:
    with named.connect() as client:
        client.kv.put("mine", b"precious")
        code, found = call("chaos", "--every", "2s", "--for", "16s", "--seed", "3", "-o", str(tmp_path / "h.jsonl"))
        assert (code, found["verdict"]["result"], found["problems"]) == (0, "linearizable", [])
        assert {fault["kind"] for fault in found["faults"]} >= {"kill", "pause", "partition"}
        assert not any(fault["problem"] for fault in found["faults"])
        assert found["operations"]["ok"] > 500
        assert client.kv.list("") == {"mine": b"precious"}
    assert call("check", str(tmp_path / "h.jsonl"))[0] == 0
    assert named.status()["state"] == "healthy"


def test_the_same_seed_gives_the_same_schedule(named: Cluster) -> None:
    first, second, other = (call("chaos", "--seed", seed, "--dry-run")[1]["schedule"] for seed in ("7", "7", "8"))
    assert first == second
    assert first != other


def test_reads_that_are_not_linearizable_are_found_and_the_history_is_kept(
    named: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eventual reads passed off as linearizable ones: a node that is cut off answers with what was."""
    monkeypatch.setattr(Chaos, "reads", ("eventual",))
    code, found = call("chaos", "--every", "3s", "--for", "6s", "--seed", "5", "--faults", "partition")
    assert code == 8
    assert found["verdict"]["result"] == "not_linearizable"
    assert found["verdict"]["window"]["stuck"]
    history = Path(found["history"])
    assert call("check", str(history))[0] == 8


def test_a_kill_of_all_nodes_loses_nothing(named: Cluster) -> None:
    code, found = call("chaos", "--every", "3s", "--for", "6s", "--seed", "1", "--faults", "kill-all,split")
    assert (code, found["problems"]) == (0, [])


@pytest.mark.parametrize("nodes", [1, 2, 5])
def test_other_sizes(nodes: int) -> None:
    with zcluster.LocalCluster(nodes=nodes, workers=0) as cluster:
        outcome = run_chaos(cluster, seed=nodes, every_s=2, for_s=6)
        assert (outcome.verdict.result, outcome.problems, outcome.history) == ("linearizable", [], None)
        assert len(outcome.done) == 3


def test_an_interrupted_run_ends_its_faults_and_removes_its_keys(named: Cluster) -> None:
    command = [sys.executable, "-m", "zcluster", "chaos", "--every", "4s", "--for", "1m", "--seed", "1"]
    for kind, state in (("kill-all", "down"), ("pause", "paused"), ("split", "cut")):
        process = subprocess.Popen([*command, "--faults", kind])
        give_up = time.monotonic() + 30
        while not is_in(named, state):
            assert time.monotonic() < give_up
            time.sleep(0.02)
        process.send_signal(signal.SIGINT if kind != "pause" else signal.SIGTERM)
        assert process.wait(60) == 130
        assert named.status()["state"] == "healthy"
        with named.connect() as client:
            assert client.kv.list(PREFIX) == {}


def is_in(cluster: Cluster, state: str) -> bool:
    if state == "cut":
        return bool(cluster.status()["network"]["cuts"])
    return state in cluster.conditions().values()


def test_a_run_that_was_killed_leaves_no_cut_for_good_and_the_next_run_cleans_up(named: Cluster) -> None:
    arguments = ["--every", "2s", "--for", "1m", "--seed", "1", "--faults", "split"]
    process = subprocess.Popen([sys.executable, "-m", "zcluster", "chaos", *arguments])
    give_up = time.monotonic() + 30
    while not is_in(named, "cut"):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    named.wait_healthy(30)
    with named.connect() as client:
        assert client.kv.list(PREFIX)
        assert call("chaos", "--every", "2s", "--for", "2s", "--faults", "slow")[0] == 0
        assert client.kv.list(PREFIX) == {}


def test_a_cluster_that_is_not_healthy_and_a_second_run_are_refused(named: Cluster) -> None:
    chaos = Chaos(named, seed=1, every_s=2, for_s=2)
    with chaos._alone(), pytest.raises(Conflict, match="runs on 'default' already"):
        run_chaos(named, seed=1, every_s=2, for_s=2)
    named.kill("n2")
    with pytest.raises(Degraded, match=r"n2 is down.*start n2"):
        run_chaos(named, seed=1, every_s=2, for_s=2)
