"""Promises about a running cluster: faults, restarts, adoption. Real processes with stand-ins for their programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from tests.e2e.launch.conftest import kill_supervisor, pids, started_below, until
from zcluster.config import load_spec, make_settings
from zcluster.errors import Conflict, Degraded, InvalidInput, NoQuorum, NotRunning, Timeout
from zcluster.launch import files, fleet
from zcluster.launch import process as system
from zcluster.launch.cluster import Cluster
from zcluster.launch.control import Control, spawn_supervisor
from zcluster.launch.fleet import Fleet
from zcluster.launch.named import clusters, create, down, up

pytestmark = pytest.mark.slow


def order(cluster: Cluster, name: str, text: str) -> None:
    (cluster.directory / "orders").mkdir(exist_ok=True)
    (cluster.directory / "orders" / name).write_text(text)


def events(cluster: Cluster) -> list[dict]:
    return [json.loads(line) for line in (cluster.directory / "logs" / "events.jsonl").read_text().splitlines()]


# -- up, status, down -------------------------------------------------------------------------------------------------
def test_up_returns_when_ready_and_status_has_the_promised_fields(home: Path) -> None:
    steps: list[str] = []
    cluster, told = up("default", {"nodes": 3}, progress=lambda event, facts: steps.append(event))
    try:
        assert steps == ["started", "nodes", "leader", "workers"]
        assert {"cluster", "ready", "seconds", "leader", "nodes", "workers", "engine", "durability"} <= set(told)
        assert [n["name"] for n in told["nodes"]] == ["n1", "n2", "n3"]
        assert all(isinstance(n["pid"], int) for n in told["nodes"])
        status = json.loads(msgspec.json.encode(cluster.status()))
        assert (status["state"], status["leader"], status["queued"]) == ("healthy", "n1", 0)
        fields = {"name", "role", "pid", "term", "commit_index", "last_applied", "checkpoint_index", "state"}
        assert all(fields <= set(node) for node in status["nodes"])
        assert [w["name"] for w in status["workers"]] == ["n1.w1", "n2.w1", "n3.w1"]
        assert [r["name"] for r in status["routers"]] == ["router"]
        assert (status["problems"], status["fix"]) == ([], [])
        until(lambda: load_spec(cluster.directory).created)
    finally:
        cluster.down()
    assert started_below(home) == []


def test_second_up_is_harmless_and_compares_only_what_was_given(cluster: Cluster) -> None:
    before = pids(cluster)
    _, told = up("default", {})
    assert told["already_running"]
    up("default", {"nodes": 3})
    with pytest.raises(Conflict, match=r"nodes is 3, not 5"):
        up("default", {"nodes": 5})
    assert pids(cluster) == before
    (listed,) = clusters()
    assert (listed["cluster"], listed["state"], listed["nodes_up"], listed["workers"]) == ("default", "running", 3, 3)


def test_down_keeps_the_data_and_up_goes_on_with_them(cluster: Cluster) -> None:
    cluster_id = cluster.spec.cluster_id
    until(lambda: load_spec(cluster.directory).created)
    assert cluster.down()
    assert cluster.status()["state"] == "stopped"
    assert clusters()[0]["state"] == "stopped"
    assert os.listdir(cluster.directory / "run") == ["seen"] or os.listdir(cluster.directory / "run") == []
    assert not Path(cluster.spec.socket_directory).exists()
    with pytest.raises(NotRunning):
        cluster.nodes["n1"].kill()
    again, _ = up("default", {"balance": "random"})
    assert again.spec.cluster_id == cluster_id
    assert again.spec.settings.balance == "random"
    assert "--create" not in json.loads((again.directory / "data" / "n1.seen").read_text())["arguments"]
    again.down(purge=True)
    assert not again.directory.exists()
    assert not down("default"), "an absent cluster is fine"


def test_sigterm_to_the_supervisor_is_a_clean_down(cluster: Cluster, home: Path) -> None:
    supervisor = cluster.control.supervisor()
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGTERM)
    assert supervisor.exited(10)
    supervisor.close()
    assert started_below(home) == []
    assert {e["reason"] for e in events(cluster) if e["event"] == "died"} == {"exit 0"}


def test_what_ignores_sigterm_is_killed_in_the_end(cluster: Cluster, home: Path) -> None:
    order(cluster, "n1.stubborn", "")
    cluster.nodes["n1"].kill()
    cluster.nodes["n1"].start()
    until((cluster.directory / "data" / "n1.seen").exists)
    cluster.wait("n1")
    cluster.stop("n1", timeout=0.1)
    assert not cluster.nodes["n1"].alive
    assert cluster.status()["nodes"][0]["down_reason"] == "stopped"


def test_children_get_their_names_and_nothing_else(cluster: Cluster) -> None:
    seen = json.loads((cluster.directory / "data" / "n2.w1.seen").read_text())
    directory = str(cluster.directory)
    assert seen["arguments"] == ["worker", directory, "n2.w1"]
    assert seen["targets"] == ["/dev/null", f"{directory}/logs/n2.w1.log", f"{directory}/logs/n2.w1.log"]
    assert len([d for d in seen["descriptors"] if d > 2]) == 1, "only the one that lists the directory"
    environment = seen["environment"]
    assert environment["ZCLUSTER_NAME"] == "default"
    assert environment["ZCLUSTER_DIRECTORY"] == directory
    assert environment["ZCLUSTER_PROCESS"] == "n2.w1"
    assert "ZCLUSTER_OWNER" not in environment
    assert json.loads((cluster.directory / "data" / "n2.seen").read_text())["arguments"][3:] == ["--create"]


# -- faults -----------------------------------------------------------------------------------------------------------
def test_killed_node_is_dead_with_its_workers_and_stays_down_until_start(cluster: Cluster) -> None:
    node = cluster.leader
    assert node is not None
    doomed = [cluster.identity(name) for name in (node.name, f"{node.name}.w1")]
    node.kill()
    assert [system.living(identity) for identity in doomed if identity is not None] == [None, None]
    assert not node.alive
    node.kill()
    leader = cluster.wait_leader()
    assert leader != node
    status = cluster.status()
    assert status["state"] == "degraded"
    down_row = next(n for n in status["nodes"] if n["name"] == node.name)
    assert (down_row["state"], down_row["pid"], down_row["down_reason"]) == ("down", None, "SIGKILL")
    assert down_row["down_text"].startswith("SIGKILL 0s")
    assert status["fix"] == [f"zcluster start {node.name}"]
    assert len(cluster.workers) == 2
    node.start()
    assert node.alive
    pid = node.pid
    node.start()
    assert node.pid == pid
    cluster.wait("healthy")


def test_no_majority_is_no_quorum(cluster: Cluster) -> None:
    cluster.kill("n1,n2")
    assert cluster.status()["state"] == "no_quorum"
    cluster.kill("n3")
    with pytest.raises(TimeoutError):
        cluster.wait_leader(0.2)
    with pytest.raises(Timeout, match="n1 is down"):
        cluster.wait("healthy", 0.1)
    with pytest.raises(NoQuorum):
        cluster.resolve("leader")
    cluster.start()
    cluster.wait_leader()


def test_paused_node_answers_nobody_and_costs_bounded_time(cluster: Cluster) -> None:
    leader = cluster.leader
    assert leader is not None
    leader.pause()
    assert leader.paused
    assert all(s is not None and s.paused for s in (system.living(i) for i in _identities(cluster, leader.name)))
    assert cluster.wait_leader() != leader
    status = cluster.status()
    row = next(n for n in status["nodes"] if n["name"] == leader.name)
    assert (row["state"], row["paused"], row["role"]) == ("up", True, "paused")
    assert status["fix"] == [f"zcluster resume {leader.name}"]
    leader.resume()
    cluster.wait("healthy")
    leader.pause()
    leader.kill()
    assert not leader.alive
    leader.pause()
    leader.resume()
    assert not leader.alive


def test_silent_node_is_waited_for_a_short_while(cluster: Cluster) -> None:
    """Stopped behind the supervisor's back: nobody knows but the one who asks."""
    pid = cluster.nodes["n3"].pid
    assert pid is not None
    os.killpg(pid, signal.SIGSTOP)
    assert cluster.leader == cluster.nodes["n1"]
    os.killpg(pid, signal.SIGCONT)


def _identities(cluster: Cluster, node: str) -> list[system.Identity]:
    found = (cluster.identity(name) for name in (node, *cluster.spec.worker_names(node)))
    return [identity for identity in found if identity is not None]


def test_selectors(cluster: Cluster) -> None:
    assert cluster.resolve("leader") == ["n1"]
    assert cluster.resolve("followers") == ["n2", "n3"]
    assert cluster.resolve("n3,n2,n3") == ["n3", "n2"]
    assert cluster.resolve("n1.w1,router,all") == ["n1.w1", "router", "n1", "n2", "n3"]
    assert cluster.resolve("random")[0] in cluster.nodes
    with pytest.raises(InvalidInput, match="n1, n2, n3, leader"):
        cluster.resolve("n9")
    with pytest.raises(InvalidInput, match="no signal"):
        cluster.kill("n1", "BOOM")
    assert cluster.checkpoint() == {"n1": 7, "n2": 7, "n3": 7}


def test_stop_and_restart(cluster: Cluster) -> None:
    cluster.stop("n2")
    assert not cluster.nodes["n2"].alive
    before = pids(cluster)
    cluster.restart("n2,n1")
    after = pids(cluster)
    assert {"n1", "n2", "n1.w1", "n2.w1"} <= set(after)
    assert after["n1"] != before["n1"]
    assert after["n3"] == before["n3"]


def test_worker_and_router_are_restarted_however_they_die(cluster: Cluster) -> None:
    worker = cluster.workers[0]
    worker.kill()
    assert not worker.alive
    worker.kill()  # that run is dead: its successor is left alone
    until(lambda: len(cluster.workers) == 3)
    assert worker.pid not in [w.pid for w in cluster.workers]
    router = cluster.routers[0]
    os.kill(router.pid, signal.SIGKILL)
    until(lambda: cluster.routers and cluster.routers[0].pid != router.pid)
    replica_pid = cluster.nodes["n2"].pid
    assert replica_pid is not None
    os.kill(replica_pid, signal.SIGTERM)  # a clean exit that nobody asked for
    until(lambda: cluster.nodes["n2"].pid not in (None, replica_pid))
    cluster.wait("healthy")


def test_restarts_back_off_but_never_end(cluster: Cluster) -> None:
    order(cluster, "n1.w1", "1")
    os.kill(pids(cluster)["n1.w1"], signal.SIGKILL)
    until(lambda: len(_starts(cluster, "n1.w1")) >= 6)
    starts = _starts(cluster, "n1.w1")
    gaps = [b - a for a, b in pairwise(starts[1:])]
    assert gaps[1] >= 45
    assert gaps[2] >= 95
    assert gaps[3] >= 195
    (cluster.directory / "orders" / "n1.w1").unlink()
    cluster.wait("healthy")


def _starts(cluster: Cluster, process: str) -> list[int]:
    return [e["time_ms"] for e in events(cluster) if e["event"] == "started" and e["process"] == process]


@pytest.mark.parametrize("code", [74, 78])
def test_replica_whose_disk_failed_stays_down_until_start(cluster: Cluster, code: int) -> None:
    order(cluster, "n2", f"{code} the disk is on fire")
    pid = cluster.nodes["n2"].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: cluster.status()["nodes"][1]["failure"] == "the disk is on fire")
    with pytest.raises(Degraded, match="n2: the disk is on fire"):
        cluster.wait("healthy")
    starts = len(_starts(cluster, "n2"))
    assert cluster.status()["nodes"][1]["role"] == "failed"
    (cluster.directory / "orders" / "n2").unlink()
    cluster.nodes["n2"].start()
    cluster.wait("healthy")
    assert len(_starts(cluster, "n2")) == starts + 1


def test_up_says_early_and_why_when_it_cannot_get_ready(home: Path) -> None:
    spec = create("default", make_settings(nodes=1))
    (spec.path / "orders").mkdir()
    (spec.path / "orders" / "n1.w1").write_text("3")
    with pytest.raises(Degraded, match=r"n1\.w1 keeps dying \(exit 3\)"):
        up("default", {})
    Cluster(spec.path).down()


# -- the supervisor's own death ---------------------------------------------------------------------------------------
def test_next_command_adopts_what_a_killed_supervisor_left(cluster: Cluster) -> None:
    cluster.nodes["n3"].kill()
    cluster.nodes["n2"].pause()
    before = pids(cluster)
    old = kill_supervisor(cluster)
    assert pids(cluster) == before, "nodes go on without it"
    status = cluster.status()
    assert status["supervisor"]["pid"] != old
    assert pids(cluster) == before, "adopted, not started anew"
    assert cluster.nodes["n2"].paused
    assert status["nodes"][2]["down_reason"] == "SIGKILL", "what was wished for survives"
    cluster.resume("n2")
    cluster.start("n3")
    cluster.wait("healthy")
    worker = cluster.workers[0]
    worker.kill()  # adopted: not a child of the new supervisor
    until(lambda: len(cluster.workers) == 3)
    assert cluster.down()


def test_child_that_no_run_file_names_is_ended_at_adoption(cluster: Cluster) -> None:
    """As if the supervisor had died between starting a process and writing it down."""
    kill_supervisor(cluster)
    stray = cluster.identity("n1.w1")
    assert stray is not None
    files.remove_run_file(cluster.directory, "n1.w1")
    cluster.wait("healthy")
    until(lambda: system.living(stray) is None)
    assert pids(cluster)["n1.w1"] != stray.pid


def test_directory_removed_under_a_running_cluster(
    cluster: Cluster, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next `up` there must not share sockets with what still runs."""
    old = set(started_below(home))
    files.remove_tree(cluster.directory)
    monkeypatch.setattr(fleet, "SUPERVISOR_YOUNG_S", 0)
    spec = create("default", make_settings())
    Fleet(spec, owner=None, commands={}).adopt(0)
    until(lambda: not old & set(started_below(home)))


def test_stale_run_file_with_a_reused_pid_harms_nobody(home: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
    try:
        spec = create("default", make_settings())
        me = system.identify_self("n1")
        stale = msgspec.structs.replace(
            me, pid=stranger.pid, start_ticks=me.start_ticks - 5, run_id="x", kind="replica"
        )
        files.write_run_file(spec.path, stale)
        cluster, _ = up("default", {})
        assert cluster.nodes["n1"].pid != stranger.pid
        cluster.kill("n1")
        cluster.down()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_second_supervisor_is_refused(cluster: Cluster) -> None:
    with pytest.raises(Conflict, match="another supervisor"):
        spawn_supervisor(cluster.directory)
    command = [sys.executable, "-m", "zcluster.launch.supervisor", str(cluster.directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 6
    assert "another supervisor" in done.stderr
    assert cluster.status()["state"] == "healthy"


def test_unknown_verbs_and_garbage_do_no_harm(cluster: Cluster) -> None:
    control = Control(cluster.directory)
    with pytest.raises(InvalidInput, match="no verb"):
        control.call("dance")
    with pytest.raises(InvalidInput, match="no process"):
        control.call("kill", targets=["n9"])
    with pytest.raises(Exception, match="TypeError"):
        control.call("kill", nonsense=1)
    assert control.call("ping")["cluster_id"] == cluster.spec.cluster_id


def test_idle_supervisor_sleeps(cluster: Cluster) -> None:
    supervisor = cluster.control.supervisor()
    assert supervisor is not None
    until(lambda: load_spec(cluster.directory).created)
    status = Path(f"/proc/{supervisor.pid}/status")

    def switches() -> int:
        return sum(int(line.split()[1]) for line in status.read_text().splitlines() if "ctxt_switches" in line)

    before = switches()
    assert not supervisor.exited(1.0)
    assert switches() - before <= 3
    supervisor.close()


def test_tcp_cluster_has_keys_and_works_the_same(home: Path) -> None:
    spec = create("default", make_settings(nodes=1, transport="tcp"))
    process = spawn_supervisor(spec.path)
    control = Control(spec.path)
    assert control.call("ping")["pid"] == process.pid
    assert control.down(2)
