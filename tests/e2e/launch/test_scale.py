"""Nodes come and go, under load and kills: no acknowledged write is lost, and nothing stays half done."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

import zcluster
from tests.e2e.launch.conftest import kill_supervisor, until
from tests.e2e.writers import Writer
from zcluster import config
from zcluster.config import LEAVING, make_settings, save_spec
from zcluster.errors import Conflict, Degraded, InvalidInput, NoQuorum
from zcluster.launch.cluster import Cluster
from zcluster.launch.membership import Enter, after
from zcluster.launch.named import up

WRITERS = 8
CHANGES = int(os.environ.get("ZCLUSTER_TEST_CHANGES", "12"))
SEED = int(os.environ.get("ZCLUSTER_TEST_SEED", "1"))


@pytest.fixture
def cluster() -> Iterator[zcluster.LocalCluster]:
    with zcluster.LocalCluster(nodes=3, workers=0) as started:
        yield started


@pytest.fixture
def writers(cluster: zcluster.LocalCluster) -> Iterator[list[Writer]]:
    """Writing from the start of the test to its end; then every acknowledged write must be there."""
    with cluster.connect() as client:
        found = [Writer(client, f"w{i}") for i in range(WRITERS)]
        for writer in found:
            writer.start()
        for writer in found:
            writer.wait_acknowledged(5)
        yield found
        for writer in found:
            writer.wait_acknowledged(5)
            writer.stop.set()
        for writer in found:
            writer.join(60)
            writer.check()


def names(cluster: Cluster) -> list[str]:
    return list(cluster.nodes)


def assert_settled(cluster: Cluster, count: int) -> None:
    """As many nodes as there are to be, all of them voters, and nothing left of others."""
    status = cluster.wait_healthy(30)
    assert status["voters"] == names(cluster) == [f"n{i + 1}" for i in range(count)]
    assert status["change"] is None
    assert sorted(os.listdir(cluster.directory / "data")) == names(cluster)
    running = {n for n, i in cluster.control.processes().items() if i.kind == "replica"}
    assert running == set(names(cluster))


def when(text: str, act: Callable[[], object]) -> Callable[[str], None]:
    """A `progress` that acts once, when it is told of `text`."""
    todo = [act]

    def progress(news: str) -> None:
        if text in news and todo:
            todo.pop()()

    return progress


@pytest.mark.slow
def test_nodes_come_and_go_under_writers(cluster: zcluster.LocalCluster, writers: list[Writer]) -> None:
    for count in (5, 3, 1, 4):
        assert cluster.scale(count)["nodes"] == [f"n{i + 1}" for i in range(count)]
        assert_settled(cluster, count)
        for writer in writers:
            writer.wait_acknowledged(5)
    ids = [node.replica_id for node in cluster.nodes.values()]
    assert ids == [1, 6, 7, 8], "ids 2 to 5 are spent"


@pytest.mark.slow
@pytest.mark.parametrize("text", ["n5 is added", "catches up"])
def test_supervisor_killed_while_nodes_join(cluster: zcluster.LocalCluster, writers: list[Writer], text: str) -> None:
    cluster.scale(5, progress=when(text, lambda: kill_supervisor(cluster)))
    assert_settled(cluster, 5)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["n5 is removed", "n4 is removed", "ends"])
def test_supervisor_killed_while_nodes_leave(cluster: zcluster.LocalCluster, writers: list[Writer], text: str) -> None:
    cluster.scale(5)
    cluster.scale(3, progress=when(text, lambda: kill_supervisor(cluster)))
    assert_settled(cluster, 3)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["n4 is added", "n5 is added", "n4 catches up", "n5 catches up"])
def test_leader_killed_while_nodes_join(cluster: zcluster.LocalCluster, writers: list[Writer], text: str) -> None:
    dead: list[str] = []

    def kill_leader() -> None:
        leader = cluster.wait_leader()
        dead.append(leader.name)
        leader.kill()

    cluster.scale(5, progress=when(text, kill_leader))
    for name in dead:
        cluster.nodes[name].start()
    assert_settled(cluster, 5)


@pytest.mark.slow
def test_leader_goes(cluster: zcluster.LocalCluster, writers: list[Writer]) -> None:
    """It hands over first; whoever leads then may go as well."""
    cluster.scale(5)
    for name in ("n1", "n2", "n3"):  # until one of the two that are to go leads
        if cluster.wait_leader().name == name:
            cluster.nodes[name].kill()
            cluster.wait_leader()
            cluster.nodes[name].start()
    cluster.wait_healthy()
    cluster.scale(3)
    assert_settled(cluster, 3)


@pytest.mark.slow
def test_client_killed_and_the_change_undone_by_the_next_command(cluster: zcluster.LocalCluster) -> None:
    command = [sys.executable, "-m", "zcluster", "-c", str(cluster.directory), "scale", "5"]
    asker = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    until(lambda: len(cluster.nodes) == 5)
    asker.send_signal(signal.SIGKILL)
    asker.wait()
    cluster.scale(3)
    assert_settled(cluster, 3)
    assert all(node.replica_id <= 3 for node in cluster.nodes.values())
    cluster.scale(4)
    assert cluster.nodes["n4"].replica_id == 6


@pytest.mark.slow
def test_another_change_while_somebody_waits_for_one_is_refused(cluster: zcluster.LocalCluster) -> None:
    with ThreadPoolExecutor() as pool:
        begun = threading.Event()
        first: Future[Any] = pool.submit(cluster.scale, 5, progress=when("is starting", begun.set))
        assert begun.wait(10)
        with pytest.raises(Conflict, match=r"another change is running: scale to 5 .* wait --for healthy"):
            cluster.scale(4)
        assert cluster.scale(5)["nodes"] == first.result(30)["nodes"], "to ask for the same is to join"
    assert_settled(cluster, 5)


@pytest.mark.slow
def test_without_a_majority_nothing_is_changed(cluster: zcluster.LocalCluster) -> None:
    for name in ("n2", "n3"):
        cluster.nodes[name].kill()
    with pytest.raises(NoQuorum, match="nothing was changed"):
        cluster.scale(5)
    with pytest.raises(NoQuorum, match="nothing was changed"):
        cluster.nodes["n2"].wipe()
    with pytest.raises(zcluster.Timeout, match="no leader has answered yet; nothing was changed"):
        cluster.scale(5, timeout=1)
    assert cluster.status()["change"] is None
    cluster.start("all")
    assert_settled(cluster, 3)


@pytest.mark.slow
def test_a_node_that_goes_is_needed_to_agree_to_that(private_home: Path) -> None:
    """One of two dies when its leaving has been written down and nothing else; the supervisor dies as well."""
    cluster, _ = up("default", {"workers": 0, "nodes": 2})
    try:
        cluster.nodes["n2"].kill()
        kill_supervisor(cluster)
        wished = msgspec.structs.replace(cluster.spec, settings=make_settings(nodes=1, workers=0))
        save_spec(after(wished, Enter("n2", LEAVING)))
        status = cluster.status()
        assert status["state"] == "no_quorum"
        assert [fix for fix in status["fix"] if fix.endswith("start n2")]
        cluster.start("n2")
        until(lambda: names(cluster) == ["n1"])
        assert_settled(cluster, 1)
    finally:
        cluster.down()


@pytest.mark.slow
def test_a_wiped_node_comes_back_as_another_replica(cluster: zcluster.LocalCluster, writers: list[Writer]) -> None:
    node = cluster.wait_leader()
    with pytest.raises(Conflict, match=f"{node.name} is running; stop it first"):
        node.wipe()
    node.stop()
    old = node.replica_id
    node.wipe()
    assert (node.alive, node.replica_id) == (False, 4)
    status = cluster.status()
    assert status["quorum"] and node.name not in status["voters"]
    node.start()
    assert_settled(cluster, 3)
    assert old not in cluster.status()["nodes"][0]["voters"]


@pytest.mark.slow
def test_a_node_without_its_data_says_what_helps_and_that_helps(cluster: zcluster.LocalCluster) -> None:
    with cluster.connect() as client:
        client.kv.put("k", b"v")
        node = cluster.nodes["n2"]
        node.kill()
        (cluster.directory / "data" / "n2").rename(cluster.directory / "data" / "lost")
        node.start()
        with pytest.raises(Degraded, match=r"data of n2 are missing.*start n2 --wipe"):
            cluster.wait_healthy(20)
        assert [fix for fix in cluster.status()["fix"] if fix.endswith("start n2 --wipe")]
        node.wipe()
        node.start()
        shutil.rmtree(cluster.directory / "data" / "lost")
        assert_settled(cluster, 3)
        cluster.nodes["n1"].kill()  # now the copy of n2 counts
        assert client.kv.get("k") == b"v"


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_the_last_copies_are_not_wiped(count: int) -> None:
    with zcluster.LocalCluster(nodes=count, workers=0) as cluster:
        cluster.nodes["n1"].stop()
        with pytest.raises(NoQuorum, match="only node" if count == 1 else "needs both"):
            cluster.nodes["n1"].wipe()
        cluster.nodes["n1"].start()
        cluster.wait_healthy()


@pytest.mark.slow
def test_a_client_finds_the_new_nodes_when_all_that_it_knew_are_gone() -> None:
    with zcluster.LocalCluster(nodes=1, workers=0) as cluster, cluster.connect() as client:
        client.kv.put("k", b"v")
        cluster.scale(3)
        cluster.nodes["n1"].kill()
        assert client.kv.get("k", timeout=10) == b"v"
        client.kv.put("k", b"w", timeout=10)


@pytest.mark.slow
def test_tasks_of_a_node_that_goes_are_finished(tmp_path: Path) -> None:
    with zcluster.LocalCluster(nodes=4, workers=1) as cluster, cluster.connect() as client:
        futures = [client.submit(time.sleep, 0.3) for _ in range(16)]
        cluster.scale(1)
        assert [future.result(30) for future in futures] == [None] * 16
        assert_settled(cluster, 1)


@pytest.mark.slow
def test_scale_over_tcp() -> None:
    with zcluster.LocalCluster(nodes=1, workers=0, transport="tcp") as cluster, cluster.connect() as client:
        client.kv.put("k", b"v")
        cluster.scale(3)
        cluster.nodes["n1"].kill()
        assert client.kv.get("k", timeout=10) == b"v"


@pytest.mark.slow
def test_a_change_outlives_down(private_home: Path) -> None:
    cluster, _ = up("default", {"workers": 0})
    try:
        with ThreadPoolExecutor() as pool:
            begun = threading.Event()
            asked = pool.submit(cluster.scale, 5, progress=when("is starting", begun.set))
            assert begun.wait(10)
            cluster.down()
            with pytest.raises(Conflict, match="goes on when it is up again"):
                asked.result(30)
        again, _ = up("default", {})
        assert_settled(again, 5)
        assert config.load_spec(again.directory).settings.nodes == 5
    finally:
        cluster.down()


@pytest.mark.parametrize("count", [0, 10, "3"])
def test_how_many_nodes_there_can_be_is_checked_before_anybody_is_asked(private_home: Path, count: Any) -> None:
    handle = Cluster.__new__(Cluster)
    with pytest.raises(InvalidInput, match="nodes must be a whole number from 1 to 9"):
        handle.scale(count)


@pytest.mark.slow
def test_random_changes_with_kills_in_a_row(cluster: zcluster.LocalCluster, writers: list[Writer]) -> None:
    """Of ZCLUSTER_TEST_CHANGES changes, each with one kill at a random time of a random kind."""
    rng = random.Random(SEED)
    for change in range(CHANGES):
        print(f"seed {SEED}, change {change}: {names(cluster)}", file=sys.stderr)
        _one_change(cluster, rng)
        assert_settled(cluster, len(cluster.nodes))
        writers[change % WRITERS].wait_acknowledged(2)


def _one_change(cluster: Cluster, rng: random.Random) -> None:
    count = len(cluster.nodes)
    wipe = count >= 3 and rng.random() < 0.25
    target = rng.choice([n for n in range(1, 6) if n != count])

    def disturb() -> None:
        time.sleep(rng.uniform(0, 0.8))  # at any moment, that is the test
        what = rng.choice(["supervisor", "leader", "node", "nothing"])
        print(f"  kill {what}", file=sys.stderr)
        if what == "supervisor":
            kill_supervisor(cluster)
        elif what == "leader":
            cluster.kill(cluster.wait_leader().name)
        elif what == "node":
            cluster.kill("random")

    if wipe:
        name = rng.choice(names(cluster))
        cluster.nodes[name].stop()
    with ThreadPoolExecutor() as pool:
        if wipe:
            disturbed = pool.submit(lambda: None)
            cluster.nodes[name].wipe()
            cluster.nodes[name].start()
        else:
            disturbed = pool.submit(disturb)
            asked = pool.submit(cluster.scale, target, timeout=60)
            disturbed.exception(60)
            while not asked.done():  # the killed one may be needed, or be asked to go
                cluster.start("all")
                asked.exception(1) if asked.done() else threading.Event().wait(0.2)
            asked.result()
        failure = disturbed.exception(60)
        assert failure is None or isinstance(failure, zcluster.Error), failure
    cluster.start("all")
