"""The status table: exactly as documented, plain off a terminal, and the exit code says the state."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import FakeCluster, Run, a_node, a_status
from zcluster.cli import observe
from zcluster.cli.status_view import age_text, colored, plain

DEGRADED = a_status(
    state="degraded",
    nodes=[
        a_node("n1", pid=41207),
        a_node(
            "n2",
            role="down",
            state="down",
            pid=None,
            term=1,
            commit_index=17911,
            checkpoint_index=17000,
            disk_bytes=4_200_000,
            stale=True,
            lag=293,
            down_reason="SIGKILL",
            down_text="SIGKILL 12s ago",
        ),
        a_node("n3", pid=41209, role="leader", cpu_percent=5.2, rss_bytes=46_137_344),
    ],
    workers=[{"name": f"n{i}.w1", "registered": True} for i in (1, 3)],
    fix=["zcluster start n2"],
)
EXPECTED = """\
default   DEGRADED 2/3 up · quorum ok · leader n3 · term 2
NODE  ROLE      PID    TERM  COMMIT  APPLIED  LAG  CKPT    DISK  CPU  RSS  UP
n1    follower  41207  2     18,204  18,204   0    18,000  4.1M  3%   42M  2m
n2    ✗ killed  -      1     17,911  -        293  17,000  4.0M  -    -    SIGKILL 12s ago
n3    leader    41209  2     18,204  18,204   -    18,000  4.1M  5%   44M  2m
Router: 2 workers · 3 queued · 812 tasks/s
Fix: zcluster start n2"""


def test_a_degraded_cluster_is_shown_as_documented() -> None:
    assert plain(DEGRADED) == EXPECTED


def test_the_terminal_shows_the_same_words() -> None:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=120, no_color=True, force_terminal=False).print(colored(DEGRADED, 120))
    shown = [line.split() for line in out.getvalue().splitlines()]
    assert shown == [line.split() for line in EXPECTED.splitlines()]


@pytest.mark.parametrize("columns", [100, 88, 80, 60, 50])
def test_a_narrow_terminal_loses_columns_but_no_characters(columns: int) -> None:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=columns, no_color=True).print(colored(DEGRADED, columns))
    shown = out.getvalue()
    assert "…" not in shown
    assert "SIGKILL 12s ago" in shown
    assert ("CKPT" in shown) == (columns >= 100)


def test_the_term_of_silent_nodes_is_the_last_one_seen() -> None:
    nodes = [a_node(name, state="down", stale=True, term=7) for name in ("n1", "n2", "n3")]
    assert plain(a_status(state="no_quorum", leader=None, quorum=False, term=0, nodes=nodes)).count("term 7") == 1


def test_a_stopped_cluster_has_no_table() -> None:
    status = a_status(state="stopped", leader=None, routers=[], workers=[], fix=["zcluster up"])
    assert plain(status) == "default   STOPPED 3 nodes · raft · durability fsync\nFix: zcluster up"


def test_no_quorum_and_no_leader_are_said() -> None:
    status = a_status(state="no_quorum", leader=None, quorum=False, routers=[])
    assert plain(status).splitlines()[0] == "default   NO QUORUM 3/3 up · no quorum · no leader · term 2"
    assert "Router: ✗ restarting" in plain(status)


@pytest.mark.parametrize(
    ("changes", "role"),
    [
        ({"role": "paused"}, "paused"),
        ({"state": "down", "down_reason": "SIGTERM"}, "✗ killed"),
        ({"state": "down", "down_reason": "stopped"}, "✗ stopped"),
        ({"state": "down", "failure": "disk full"}, "✗ failed"),
        ({"state": "down"}, "✗ down"),
    ],
)
def test_what_a_role_says(changes: dict[str, Any], role: str) -> None:
    text = plain(a_status(nodes=[a_node("n1", **changes)]))
    assert text.splitlines()[2].split("  ")[2].strip() == role


def test_a_failed_node_gives_its_reason() -> None:
    status = a_status(nodes=[a_node("n1", state="down", failure="No space left on device")])
    assert "Failed: n1 No space left on device" in plain(status)


def test_a_node_in_repair_is_told_from_a_sound_one() -> None:
    problem = "n1 repairs itself from its peers: wal damaged at byte 276"
    status = a_status(state="degraded", nodes=[a_node("n1", repair=True), a_node("n2")], problems=[problem])
    assert "n1    repairing" in plain(status)
    assert f"Repair: {problem}" in plain(status)
    assert "n2    follower" in plain(status)


def test_weak_durability_tells_what_may_be_lost() -> None:
    text = plain(a_status(durability="interval:10ms"))
    assert "Durability: interval:10ms: a power failure may lose the last 10ms of writes" in text
    assert "a power failure may lose recent writes" in plain(a_status(durability="none"))
    assert "Durability" not in plain(a_status())


@pytest.mark.parametrize(("state", "code"), [("healthy", 0), ("stopped", 3), ("degraded", 4), ("no_quorum", 5)])
def test_the_exit_code_says_the_state(run: Run, cluster: FakeCluster, state: str, code: int) -> None:
    cluster.found = a_status(state=state)
    assert run("status").exit_code == code
    done = run("status", "--json")
    assert (done.exit_code, done.stderr) == (code, "")
    assert json.loads(done.stdout) == {
        "version": 1,
        **{k: v for k, v in a_status(state=state).items() if k != "format"},
    }


def test_watch_off_a_terminal_prints_what_changes(
    run: Run, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter([a_status(), a_status(), DEGRADED])

    def status() -> dict[str, Any]:
        try:
            return next(states)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(cluster, "status", status)
    monkeypatch.setattr(observe, "WATCH_S", 0.0)
    done = run("status", "--watch")
    assert done.exit_code == 130
    assert done.stdout == plain(a_status()) + "\n" + EXPECTED + "\n"
    assert run("status", "--watch", "--json").exit_code == 2


def test_ages_are_short() -> None:
    assert [age_text(s) for s in (None, 0.2, 59.9, 60, 3600, 90_000)] == ["-", "0s", "59s", "1m", "1h", "1d"]


def test_advice_can_be_pasted_where_zcluster_is_not_on_the_path(
    run: Run, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZCLUSTER_COMMAND", "bin/zcluster")
    monkeypatch.setenv("PATH", str(tmp_path))
    cluster.found = DEGRADED
    assert run("status").stdout.endswith("Fix: bin/zcluster start n2\n")
    assert json.loads(run("status", "--json").stdout)["fix"] == ["zcluster start n2"]
    cluster.found = DEGRADED | {"fix": ["put it back in /home/zcluster/n2, then: zcluster start n2"]}
    assert run("status").stdout.endswith("Fix: put it back in /home/zcluster/n2, then: bin/zcluster start n2\n")


def test_what_the_table_does_not_show_is_said_below_it() -> None:
    problems = [
        "n1 is down: killed",
        "after a power failure the first election needs every voter",
        "2 of 2 workers are not there: full",
    ]
    text = plain(DEGRADED | {"problems": problems})
    assert "Election: after a power failure the first election needs every voter" in text
    assert "Workers: 2 of 2 workers are not there: full" in text
    assert "n1 is down: killed" not in text


def test_a_change_in_progress_and_its_learners_are_shown() -> None:
    learner = a_node("n4", role="learner", commit_index=12, last_applied=12, lag=18192)
    change = {"nodes": 4, "text": "n4: replica 4 is 18192 entries behind"}
    shown = plain(a_status(state="degraded", nodes=[a_node("n1"), learner], change=change)).splitlines()
    assert shown[3].split()[:2] == ["n4", "learner"]
    assert "Change: to 4 nodes · n4: replica 4 is 18192 entries behind" in shown


def test_paxos_speaks_of_ballots_and_proposers() -> None:
    ballot = (7 << 16) + 2
    status = DEGRADED | {"engine": "paxos", "term": ballot, "nodes": [n | {"term": ballot} for n in DEGRADED["nodes"]]}
    lines = plain(status).splitlines()
    assert "proposer n3 · ballot 7.2" in lines[0]
    assert all("7.2" in line for line in lines[2:5])
