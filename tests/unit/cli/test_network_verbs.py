"""partition, slow, flaky, heal and chaos: what reaches the cluster, and what people and programs are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import FakeCluster, Run, a_status
from zcluster.chaos.run import Done, Outcome
from zcluster.chaos.schedule import Fault
from zcluster.cli.chaos import done_line, outcome_fields, outcome_lines
from zcluster.cli.status_view import plain
from zcluster.errors import Conflict
from zcluster.sim.verdict import Verdict


def test_partition_hands_over_sides_bridge_and_end(run: Run, cluster: FakeCluster) -> None:
    result = run("partition", "n1", "n2", "--bridge", "n3", "--for", "10s")
    assert result.exit_code == 0
    assert cluster.calls == [("partition", "n1,n2", {"bridge": ("n3",), "direction": "both", "seconds": 10.0})]
    assert "n1 | n2 are cut off from each other" in result.stderr
    assert "heals by itself in 10.0s" in result.stderr
    assert "could not be told, so their peers alone keep the cut: n2" in result.stderr
    assert "in touch with all once started: n3" in result.stderr


def test_isolate_takes_a_direction_and_prints_json(run: Run, cluster: FakeCluster) -> None:
    result = run("partition", "--isolate", "leader", "--direction", "in", "--json")
    assert cluster.calls == [("isolate", "leader", {"direction": "in", "seconds": None})]
    found = json.loads(result.stdout)
    assert found["cuts"] == [["n1", "n2"], ["n2", "n1"]]
    assert found["untold"] == ["n2"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("partition",),
        ("partition", "n1", "--isolate", "n2"),
        ("partition", "--isolate", "n2", "--bridge", "n1"),
        ("partition", "n1", "--direction", "sideways"),
        ("partition", "n1", "--for", "soon"),
        ("slow", "n1"),
        ("slow", "n1", "much"),
        ("flaky", "n1"),
        ("flaky", "n1", "5"),
        ("flaky", "n1", "101%"),
        ("flaky", "n1", "-5%"),
        ("flaky", "n1", "5%", "--duplicate", "x"),
        ("chaos", "--faults", "burn"),
        ("chaos", "--every", "100ms"),
        ("chaos", "--for", "1s"),
        ("chaos", "--seed", "-1"),
        ("chaos", "--callers", "0"),
        ("chaos", "--rate", "0"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(run: Run, cluster: FakeCluster, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert not cluster.calls


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), (".5", 0.5), ("12.5%", 0.125), ("0", 0.0)])
def test_shares_as_people_write_them(run: Run, cluster: FakeCluster, text: str, share: float) -> None:
    assert run("flaky", "n1", text, "--duplicate", "100%", "--for", "2s").exit_code == 0
    assert cluster.calls == [("flaky", "n1", share, 1.0, 2.0)]


def test_slow_says_what_it_did_and_how_to_end_it(run: Run, cluster: FakeCluster) -> None:
    result = run("slow", "followers", "50ms")
    assert cluster.calls == [("slow", "followers", 50.0, None)]
    assert result.stderr == "slow by 50 ms each way: n1 n2\nend it: zcluster heal\n"
    assert run("slow", "n1", "0").stderr == "no longer slow: n1\n"


def test_heal_names_who_is_healed(run: Run, cluster: FakeCluster) -> None:
    result = run("heal", "--json")
    assert json.loads(result.stdout)["healed"] == ["n1", "n2", "n3"]


def test_a_refusal_is_one_line_and_its_code(run: Run, cluster: FakeCluster) -> None:
    cluster.raises = Conflict("n1 is down. First: zcluster start n1")
    result = run("slow", "n1", "5ms")
    assert (result.exit_code, result.stderr) == (6, "error: n1 is down. First: zcluster start n1\n")


def test_status_shows_the_faults_of_the_network() -> None:
    network = {"cuts": [["n1", "n3"]], "slow": {"n2": 50.0}, "flaky": {}, "seconds_left": 7.4}
    text = plain(a_status(state="degraded", network=network))
    assert "Network: n3 does not hear n1 (7s left)\nNetwork: n2 is slow: 50 ms (7s left)" in text


# -- chaos ------------------------------------------------------------------------------------------------------------
def test_a_dry_run_prints_the_schedule_and_does_nothing(run: Run, cluster: FakeCluster) -> None:
    cluster.running = False
    first = run("chaos", "--seed", "7", "--dry-run", "--every", "2s", "--for", "10s")
    assert first.stdout.count("\n") == 5
    assert first.stdout == run("chaos", "--seed", "7", "--dry-run", "--every", "2s", "--for", "10s").stdout
    assert not cluster.calls


def test_chaos_refuses_a_cluster_that_is_not_healthy(run: Run, cluster: FakeCluster, home: Path) -> None:
    (home / "default" / "run").mkdir(parents=True)
    cluster.found = a_status(state="degraded", problems=["n2 is down"], fix=["zcluster start n2"])
    result = run("chaos", "--seed", "7")
    assert result.exit_code == 4
    assert "n2 is down" in result.stderr
    assert "First: zcluster start n2" in result.stderr


def an_outcome(**changes: Any) -> Outcome:
    fault = Fault(1, 1.0, 2.5, "kill", ("leader",))
    values: dict[str, Any] = {
        "seed": 7,
        "done": [Done(fault, ["n2"], "kill leader n2", 1.01, 34.6)],
        "verdict": Verdict("linearizable", 30, 9, 5, 0.1),
        "statuses": {"ok": 28, "fail": 1, "unknown": 1},
        "longest_without_write_ms": 34.6,
        "seconds": 5.0,
        "history": None,
        "problems": [],
    }
    return Outcome(**values | changes)


def test_a_fault_is_told_with_whom_it_met_and_what_it_cost() -> None:
    line = done_line(an_outcome().done[0])
    assert " ".join(line.split()) == "1 1.0s kill leader n2 for 2.5s 35 ms without a write"


def test_the_outcome_is_told_to_people_and_programs() -> None:
    lines = outcome_lines(an_outcome(history=Path("/tmp/h"), problems=["the cluster is not healthy again: n2 is down"]))
    assert lines[-3:] == [
        "1 fault in 5.0s · seed 7 · 28 ok, 1 failed, 1 unknown · longest without a write 35 ms",
        "After the faults: the cluster is not healthy again: n2 is down",
        "History: /tmp/h",
    ]
    fields = outcome_fields(an_outcome())
    assert json.loads(json.dumps(fields)) == fields | {"faults": [{**fields["faults"][0], "whom": ["leader"]}]}
    assert fields["faults"][0]["nodes"] == ["n2"]
    assert fields["verdict"]["result"] == "linearizable"
