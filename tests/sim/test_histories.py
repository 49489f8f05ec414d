"""The linearizability checker has the last word on simulated histories, beside the checkers that know the log."""

from __future__ import annotations

import json
from typing import Any

import pytest

from zcluster.sim.history import parse_history
from zcluster.sim.run import Case, run_case
from zcluster.sim.verdict import check_history


def complaint(records: list[dict[str, Any]]) -> str | None:
    verdict = check_history(parse_history(json.dumps(record) for record in records), timeout_s=60)
    return None if verdict.result == "linearizable" else f"{verdict.result}, {verdict.operations} operations"


@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 13))])
def test_what_clients_saw_under_all_faults_is_linearizable(seed: int) -> None:
    outcome = run_case(Case(seed=seed, check_history=complaint))
    assert (outcome.property, outcome.detail) == ("", "")


def test_a_stale_read_in_a_simulated_history_is_noticed() -> None:
    seen: list[dict[str, Any]] = []

    def spoil(records: list[dict[str, Any]]) -> str | None:
        seen.extend(dict(record) for record in records)
        for record in seen:
            if record["op"] == "get" and record["status"] == "ok":
                record["output"] = "never written"
                break
        return complaint(seen)

    assert run_case(Case(seed=4, nodes=3, groups=(), span=1_000_000_000, check_history=spoil)).property
    assert seen
