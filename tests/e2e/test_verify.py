"""Replicas that differ are found: on request, and by themselves."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import zcluster
from zcluster.cli.main import root
from zcluster.launch import fleet

pytestmark = pytest.mark.slow

DIVERGING = str(Path(__file__).with_name("diverging_node.py"))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[zcluster.LocalCluster]:
    monkeypatch.setattr(fleet, "COMMANDS", {**fleet.DEFAULT_COMMANDS, "replica": (DIVERGING,)})
    with zcluster.LocalCluster(nodes=3, workers=0, verify_seconds=1) as cluster:
        yield cluster


def command(cluster: zcluster.LocalCluster) -> tuple[int, str]:
    done = CliRunner().invoke(root, ["-c", str(cluster.directory), "verify"])
    return done.exit_code, done.output


def test_equal_replicas_are_equal_under_load_checkpoints_and_restarts(cluster: zcluster.LocalCluster) -> None:
    stop = threading.Event()

    def write(number: int) -> None:
        with cluster.connect() as client:
            while not stop.is_set():
                for key in range(20):
                    client.kv.append(f"w{number}-{key}", b"x")
                    client.kv.delete(f"w{number}-{(key * 7) % 20}")

    writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for writer in writers:
        writer.start()
    try:
        for round_ in range(4):
            if round_ == 1:
                cluster.checkpoint()
            if round_ == 2:
                cluster.wait_leader().kill()
            if round_ == 3:
                cluster.start()
                cluster.wait_healthy()
            found = cluster.verify()
            assert found["equal"]
            assert len(found["digests"]) == (2 if round_ == 2 else 3), found
    finally:
        stop.set()
        for writer in writers:
            writer.join()


@pytest.mark.parametrize("victim", ["leader", "follower"])
def test_a_replica_with_another_state_is_found(cluster: zcluster.LocalCluster, victim: str) -> None:
    with cluster.connect() as client:
        client.kv.put("k", b"value")
        code, text = command(cluster)
        assert (code, text.count("DIFFERS")) == (0, 0), text
        leader = cluster.wait_leader().name
        name = leader if victim == "leader" else next(n for n in cluster.nodes if n != leader)
        fault = cluster.directory / "run" / f"{name}.diverge"
        fault.touch()
        client.kv.put("k", b"value")
        found = cluster.verify()  # by now everybody has applied it
        fault.unlink()
        assert (found["equal"], found["odd"], found["missing"]) == (False, [name], [])
        code, text = command(cluster)
        assert code == 8
        assert f"the states differ: {name}" in text
        # By itself as well: whoever looks at the status sees it.
        give_up = time.monotonic() + 20
        while not (status := cluster.status())["verified"] or status["verified"]["equal"]:
            client.kv.put("more", b"x")
            assert time.monotonic() < give_up, status["verified"]
        assert status["verified"]["odd"] == [name]
        assert status["state"] == "degraded"


def test_states_are_compared_in_the_background_without_being_asked(cluster: zcluster.LocalCluster) -> None:
    with cluster.connect() as client:
        give_up = time.monotonic() + 20
        while (found := cluster.status()["verified"]) is None or len(found["nodes"]) < 3:
            client.kv.put("k", b"v")
            assert time.monotonic() < give_up
    assert found["equal"]


def test_who_is_not_there_is_not_compared(cluster: zcluster.LocalCluster) -> None:
    with cluster.connect() as client:
        client.kv.put("k", b"v")
    name = next(n for n in cluster.nodes if n != cluster.wait_leader().name)
    cluster.nodes[name].kill()
    code, text = command(cluster)
    assert code == 4
    assert f"{name} could not be compared" in text
    cluster.kill("leader")
    with pytest.raises(zcluster.NoQuorum):
        cluster.verify(timeout=2)
