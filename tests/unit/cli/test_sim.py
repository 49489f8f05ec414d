"""`zcluster sim`: figures for people and programs; a violation exits with 8 and says how to see it again."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from zcluster.cli.main import root
from zcluster.sim import many
from zcluster.sim.run import Case, Outcome, run_case


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(root, ["sim", "--processes", "1", *arguments])
    return result.exit_code, result.stdout


def test_json_has_the_figures() -> None:
    code, output = call("--seed", "3", "--nodes", "3", "--faults", "network", "--json")
    found = json.loads(output)
    assert code == 0
    assert (found["engine"], found["seeds"], found["violations"]) == ("raft", 1, [])
    outcome = run_case(Case(seed=3, nodes=3, groups=("network",)))
    assert found["events"] == outcome.events > 100
    assert found["simulated_seconds"] == pytest.approx(outcome.simulated / 1e9, abs=0.001)
    assert found["wall_seconds"] > 0
    assert len(found["trace_hash"]) == 32


def test_people_see_that_nothing_was_violated() -> None:
    code, output = call("--seed", "3", "--nodes", "3", "--faults", "none")
    assert code == 0
    assert "1 seeds" in output
    assert "no violation" in output


def test_a_violation_is_shown_with_the_way_to_replay_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: Case) -> Outcome:
        outcome = run_case(case)
        outcome.property, outcome.detail = "election safety", "two leaders"
        return outcome

    monkeypatch.setattr(many, "run_case", broken)
    monkeypatch.setattr("zcluster.sim.run.run_case", broken)
    monkeypatch.setattr("zcluster.sim.shrink.run_case", broken)
    code, output = call("--seed", "3", "--nodes", "3", "--faults", "pause")
    assert code == 8
    assert "seed 3: election safety: two leaders" in output
    assert "Replay: zcluster sim --engine raft --seed 3 --nodes 3 --faults pause" in output


@pytest.mark.parametrize(
    "arguments", [("--faults", "fire"), ("--nodes", "2"), ("--only", "x"), ("--engine", "viewstamped")]
)
def test_wrong_options_are_usage_errors(arguments: tuple[str, str]) -> None:
    assert call(*arguments)[0] == 2
