"""up, down, stop, start, restart, kill, pause, resume, wait, ls, checkpoint: what they ask for and what they say."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import FakeCluster, Run, a_node
from zcluster.cli import cluster as verbs
from zcluster.cli.context import App
from zcluster.errors import Conflict, Timeout

Given = dict[str, Any]


class FakeUp:
    """Stands for `launch.named.up`: keeps what it was given, reports the usual steps."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.name = ""
        self.given: Given = {}
        self.wait_s = 0.0
        self.found = False
        self.raises: BaseException | None = None
        self.changed: dict[str, list[str]] = {}

    def __call__(
        self, name: str, given: Given, wait_s: float, progress: Callable[[str, Given], None]
    ) -> tuple[FakeCluster, Given]:
        self.name, self.given, self.wait_s = name, given, wait_s
        if self.raises is not None:
            raise self.raises
        progress("found" if self.found else "started", {"created": not self.found})
        facts = {"nodes": ["n1", "n2", "n3"], "leader": "n2", "term": 1, "workers": 3, "seconds": 0.1}
        for event in ("nodes", "leader", "workers"):
            progress(event, facts)
        report = {"cluster": name, "ready": True, "seconds": 0.6, "already_running": self.found, "leader": "n2"}
        report |= {
            "engine": "raft",
            "durability": "fsync",
            "directory": f"/data/{name}",
            "workers": [],
            "started": [],
            "resumed": [],
            **self.changed,
        }
        return self.cluster, report | {"format": 1, "nodes": [a_node("n1"), a_node("n2", uptime_seconds=500.0)]}


@pytest.fixture
def up(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> FakeUp:
    fake = FakeUp(cluster)
    monkeypatch.setattr("zcluster.launch.named.up", fake)
    return fake


def make_existing(home: Path) -> None:
    (home / "default").mkdir(parents=True)
    (home / "default" / "cluster.json").write_text("{}")


def test_up_shows_steps_and_an_ending_that_can_be_pasted(run: Run, up: FakeUp) -> None:
    done = run("up")
    assert done.exit_code == 0
    assert done.stderr.splitlines() == [
        " ✓ 3 nodes started          n1 n2 n3               0.1s",
        " ✓ leader elected           n2, term 1             0.1s",
        " ✓ router + 3 workers ready                        0.1s",
    ]
    lines = done.stdout.splitlines()
    assert lines[0].startswith('Cluster "default" is ready in 0.')
    assert lines[0].endswith("s   raft · durability fsync")
    assert lines[1:] == [
        "",
        "  Python     from zcluster import connect; client = connect()",
        "  Data       /data/default   (kept on down)",
        "",
        "Try:  zcluster kill leader && zcluster status",
        "Stop: zcluster down",
    ]


def test_up_of_a_named_cluster_ends_with_its_name(run: Run, up: FakeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("up", "-c", "two")
    assert 'connect("two")' in done.stdout
    assert "Stop: zcluster -c two down" in done.stdout
    monkeypatch.setenv("ZCLUSTER_NAME", "two")
    assert "Stop: zcluster down" in run("up").stdout


def test_up_as_json_is_one_object(run: Run, up: FakeUp) -> None:
    report = json.loads(run("up", "--json").stdout)
    assert report.pop("version") == 1
    assert "format" not in report
    assert {"cluster", "ready", "seconds", "leader", "nodes", "workers", "engine", "durability"} <= set(report)


def test_a_second_up_says_what_runs_again(run: Run, up: FakeUp) -> None:
    up.found = True
    up.changed = {"started": ["n1"], "resumed": ["n3", "router"]}
    assert "was running; n1 started again, n3 router resumed " in run("up").stdout


def test_stopped_nodes_are_told_how_to_start_again(run: Run, cluster: FakeCluster) -> None:
    assert run("stop", "leader").stderr == "stopped n3; start again: zcluster start n3\n"
    assert run("stop").stderr.splitlines()[0] == "stopped n1 n2 n3; start again: zcluster start"
    assert run("stop", "router").stderr == "stopped router\n"


def test_a_second_up_says_that_nothing_changed(run: Run, up: FakeUp) -> None:
    up.found = True
    up.cluster.name = "default"
    report = run("up")
    assert "n1 started again" not in report.stdout
    assert 'Cluster "default" is already running; nothing changed' in report.stdout
    assert report.stderr.startswith(" ✓ 3 nodes up")


def test_a_new_cluster_gets_settings_from_everywhere(run: Run, up: FakeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZCLUSTER_WORKERS", "2")
    Path("zcluster.toml").write_text("queue_max = 5\n")
    run("up", "-n", "5", "--wait", "500ms")
    assert (up.name, up.given, up.wait_s) == ("default", {"nodes": 5, "workers": 2, "queue_max": 5}, 0.5)


def test_an_existing_cluster_is_compared_with_what_was_explicit_only(
    run: Run, up: FakeUp, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_existing(home)
    monkeypatch.setenv("ZCLUSTER_WORKERS", "2")
    Path("zcluster.toml").write_text("queue_max = 5\n")
    run("up", "--durability", "none")
    assert up.given == {"durability": "none"}
    Path("explicit.toml").write_text("balance = 'random'\nworkers = 4\n")
    run("up", "--config", "explicit.toml")
    assert up.given == {"balance": "random"}  # workers comes from the environment, which beats files


def test_up_with_other_settings_is_6_and_shows_the_difference(run: Run, up: FakeUp) -> None:
    up.raises = Conflict("nodes is 3, not 5")
    done = run("up", "-n", "5")
    assert (done.exit_code, done.stderr) == (6, "error: nodes is 3, not 5\n")


def test_up_that_is_not_ready_in_time_is_7(run: Run, up: FakeUp) -> None:
    up.raises = Timeout("not ready")
    assert run("up").exit_code == 7


def test_an_interrupted_up_leaves_the_cluster_and_says_so(run: Run, up: FakeUp) -> None:
    up.raises = KeyboardInterrupt()
    done = run("up")
    assert (done.exit_code, up.cluster.calls) == (130, [])
    assert "zcluster down" in done.stderr


class FakeFollower:
    """No line ever, and an interrupt at the second look."""

    def __init__(self, *_: object) -> None:
        pass

    def lines(self) -> Any:
        yield []
        raise KeyboardInterrupt


class Foreground:
    """`up -f` with an end of its own: what `launch.down` was asked for, and whether it is interrupted meanwhile."""

    def __init__(self, up: FakeUp) -> None:
        self.up = up
        self.downs: list[float] = []
        self.interrupted_again = False

    def down(self, name: str, timeout: float) -> bool:
        assert name == "default"
        self.downs.append(timeout)
        if self.interrupted_again and timeout:
            raise KeyboardInterrupt
        return True


@pytest.fixture
def foreground(up: FakeUp, monkeypatch: pytest.MonkeyPatch) -> Foreground:
    fake = Foreground(up)
    monkeypatch.setattr("zcluster.launch.named.down", fake.down)
    monkeypatch.setattr("zcluster.cli.log_view.Follower", FakeFollower)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    return fake


def test_ctrl_c_in_the_foreground_stops_cleanly(run: Run, foreground: Foreground) -> None:
    done = run("up", "-f")
    assert (done.exit_code, foreground.downs) == (130, [10.0])
    assert done.stderr.endswith("stopped; the data are kept\n")


def test_ctrl_c_twice_in_the_foreground_stops_now(run: Run, foreground: Foreground) -> None:
    foreground.interrupted_again = True
    assert run("up", "-f").exit_code == 130
    assert foreground.downs == [10.0, 0]


def test_ctrl_c_while_a_foreground_cluster_starts_stops_it_too(run: Run, foreground: Foreground) -> None:
    foreground.up.raises = KeyboardInterrupt()
    assert (run("up", "-f").exit_code, foreground.downs) == (130, [10.0])


def test_sigterm_in_the_foreground_is_a_clean_end(
    run: Run, foreground: Foreground, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(FakeFollower):
        def lines(self) -> Any:
            raise verbs.Terminated
            yield

    monkeypatch.setattr("zcluster.cli.log_view.Follower", Ended)
    assert (run("up", "-f").exit_code, foreground.downs) == (0, [10.0])


def test_the_foreground_ends_with_the_cluster(
    run: Run, foreground: Foreground, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.running = False
    monkeypatch.setattr(verbs, "LOOK_S", -1.0)
    done = run("up", "-f")
    assert (done.exit_code, foreground.downs) == (0, [])
    assert 'cluster "default" was stopped' in done.stderr


@pytest.fixture
def downs(monkeypatch: pytest.MonkeyPatch, home: Path) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    def down(name: str, timeout: float, *, purge: bool) -> bool:
        calls.append((name, timeout, purge))
        return name != "stopped" and (home / name).exists()

    states = [{"cluster": name, "state": name, "running": name == "running"} for name in ("running", "stopped")]
    monkeypatch.setattr("zcluster.launch.named.down", down)
    monkeypatch.setattr("zcluster.launch.named.clusters", lambda: states)
    for name in ("running", "stopped"):
        (home / name).mkdir(parents=True)
    return calls


def test_down_of_an_absent_cluster_is_fine(run: Run, downs: list[Any]) -> None:
    done = run("down")
    assert (done.exit_code, done.stderr) == (0, 'Cluster "default" does not exist\n')
    assert json.loads(run("down", "--json").stdout) == {
        "version": 1,
        "cluster": "default",
        "was_running": False,
        "purged": False,
    }


def test_down_keeps_the_data_unless_told(run: Run, downs: list[Any]) -> None:
    assert run("down", "-c", "running", "-t", "2s").stderr == 'Cluster "running" stopped; its data are kept\n'
    assert run("down", "-c", "running", "--purge").stderr == 'Cluster "running" stopped; its data are removed\n'
    assert downs == [("running", 2.0, False), ("running", 10.0, True)]


def test_down_all_covers_stopped_clusters_only_with_purge(run: Run, downs: list[Any]) -> None:
    assert run("down", "--all").exit_code == 0
    assert [call[0] for call in downs] == ["running"]
    downs.clear()
    found = json.loads(run("down", "--all", "--purge", "--json").stdout)
    assert [call[0] for call in downs] == ["running", "stopped"]
    assert [c["was_running"] for c in found["clusters"]] == [True, False]
    assert run("down", "--all", "-c", "running").exit_code == 2


def test_purging_asks_on_a_terminal_only(run: Run, downs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("click.confirm", lambda question, **_: asked.append(question))
    assert run("down", "-c", "running", "--purge").exit_code == 0
    assert asked == []
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda self: True, raising=False)
    run("down", "-c", "running", "--purge", "--yes")
    run("down", "-c", "running")
    run("down", "-c", "absent", "--purge")
    assert asked == []
    run("down", "-c", "running", "--purge")
    assert asked == ["Remove running with all data?"]


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        (["stop"], ("stop", "all", 10.0)),
        (["stop", "n1", "n2", "-t", "1m"], ("stop", "n1,n2", 60.0)),
        (["start"], ("start", "all")),
        (["start", "n2"], ("start", "n2")),
        (["restart", "n2"], ("restart", "n2", 10.0)),
        (["kill", "leader"], ("kill", "leader", "KILL")),
        (["kill", "n1", "n2", "--signal", "hup"], ("kill", "n1,n2", "hup")),
        (["pause", "followers"], ("pause", "followers")),
        (["resume"], ("resume", "all")),
        (["resume", "n1"], ("resume", "n1")),
        (["wait"], ("wait", "healthy", 30.0)),
        (["wait", "--for", "leader", "-t", "2s"], ("wait", "leader", 2.0)),
    ],
)
def test_what_a_verb_asks_for(run: Run, cluster: FakeCluster, arguments: list[str], call: tuple[Any, ...]) -> None:
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (0, "")
    assert cluster.calls == [call]
    assert json.loads(run(*arguments, "--json").stdout)["version"] == 1


def test_restart_takes_the_nodes_one_by_one(run: Run, cluster: FakeCluster) -> None:
    done = run("restart")
    assert cluster.calls == [("restart", name, 10.0) for name in ("n1", "n2", "n3")]
    assert done.stderr.splitlines()[2].startswith(" ✓ n3 restarted")


def test_a_killed_node_is_told_how_to_start_again(run: Run, cluster: FakeCluster) -> None:
    assert run("kill", "leader").stderr == "killed n3\nstart again: zcluster start n3\n"
    assert run("kill", "router").stderr == "killed router\n"
    assert run("kill", "n1", "--signal", "SIGHUP").stderr == "SIGHUP sent to n1\n"


def test_checkpoint_tells_the_index_of_each_node_and_who_is_missing(run: Run, cluster: FakeCluster) -> None:
    done = run("checkpoint")
    assert (done.stdout, done.stderr) == ("n1  7\nn3  7\n", "not written by n2, which did not answer\n")
    found = json.loads(run("checkpoint", "--json").stdout)
    assert (found["checkpoints"], found["missing"]) == ({"n1": 7, "n3": 7}, ["n2"])


def test_ls_lists_clusters_or_says_that_there_is_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "start one: zcluster up" in run("ls").stderr
    assert json.loads(run("ls", "--json").stdout) == {"version": 1, "clusters": []}
    one = {"cluster": "a", "state": "running", "nodes": 3, "nodes_up": 2, "workers": 2, "engine": "raft"}
    one |= {"durability": "fsync", "directory": "/d/a", "disk_bytes": 2048, "problem": None}
    monkeypatch.setattr("zcluster.launch.named.clusters", lambda: [one])
    assert run("ls").stdout.splitlines() == [
        "CLUSTER  STATE    NODES  WORKERS  ENGINE  DURABILITY  DISK  DIRECTORY",
        "a        running  2/3    2        raft    fsync       2.0K  /d/a",
    ]


def test_ls_shows_a_damaged_cluster_with_what_to_do(run: Run, home: Path) -> None:
    make_existing(home)
    done = run("ls")
    assert done.stdout.splitlines()[1].split()[:6] == ["default", "damaged", "0/?", "0", "?", "?"]
    assert "zcluster down --purge" in done.stderr
    assert json.loads(run("ls", "--json").stdout)["clusters"][0]["state"] == "damaged"


def test_down_all_goes_on_after_a_cluster_that_cannot_be_removed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(name: str, timeout: float, *, purge: bool) -> bool:
        if name == "a":
            raise Conflict("a is special")
        return True

    monkeypatch.setattr("zcluster.launch.named.down", down)
    monkeypatch.setattr("zcluster.launch.named.clusters", lambda: [{"cluster": n, "running": True} for n in "ab"])
    done = run("down", "--all")
    assert (done.exit_code, done.stderr.splitlines()[0]) == (6, "error: a: a is special")
    assert 'Cluster "b" stopped' in done.stderr
    found = json.loads(run("down", "--all", "--json").stdout)["clusters"]
    assert (found[0]["error"]["type"], found[1]["was_running"]) == ("Conflict", True)


def test_a_path_stands_for_a_private_cluster(run: Run, cluster: FakeCluster, home: Path) -> None:
    assert run("pause", "n1", "-c", f"{home}/default").exit_code == 0
    done = run("pause", "n1", "-c", f"{home}/other")
    assert (done.exit_code, done.stderr) == (3, f"error: there is no cluster in {home}/other\n")


def test_commands_in_advice_name_the_cluster_only_where_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    app = App()
    assert app.command == "zcluster"
    app.cluster_given = "two"
    assert app.command == "zcluster -c two"


def test_scale_says_what_there_is_now(run: Run, cluster: FakeCluster) -> None:
    done = run("scale", "5", "-t", "90s")
    assert cluster.calls == [("scale", 5, 90.0)]
    assert done.stderr.startswith(" ✓ 3 → 5 nodes              n1 n2 n3 n4 n5")
    assert run("scale", "3").stderr == "it has 3 nodes already: n1 n2 n3\n"
    found = json.loads(run("scale", "1", "--json").stdout)
    assert (found["nodes"], found["changed"], found["absent"]) == (["n1"], True, [])


def test_scale_says_who_is_kept_down(run: Run, cluster: FakeCluster) -> None:
    cluster.absent = ["n4"]
    said = run("scale", "4").stderr.splitlines()
    assert said[-1] == "n4 is down; it joins when it is started: zcluster start n4"


def test_an_interrupted_scale_goes_on_and_says_how_to_undo_it(
    run: Run, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "scale", interrupted)
    done = run("scale", "5")
    assert done.exit_code == 130
    assert "it goes on: zcluster status. To undo it: zcluster scale 3" in done.stderr


def test_a_wiped_node_is_emptied_and_then_started(run: Run, cluster: FakeCluster) -> None:
    done = run("start", "n2", "--wipe")
    assert cluster.calls == [("wipe", "n2"), ("start", "n2")]
    assert "n2 catches up, then it votes; wait for it: zcluster wait --for healthy" in done.stderr


@pytest.mark.parametrize("names", [(), ("n1", "n2"), ("leader",), ("n9",)])
def test_one_named_node_is_wiped_at_a_time(run: Run, cluster: FakeCluster, names: tuple[str, ...]) -> None:
    refused = run("start", *names, "--wipe")
    assert refused.exit_code == 2
    assert "--wipe takes the name of one node: n1, n2, n3" in refused.stderr
    assert cluster.calls == []
