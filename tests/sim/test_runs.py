"""Whole runs: the production code holds its promises under seeded faults, and every planted mistake is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.sim.mutants import MUTANTS, BoastfulFollower, Disloyal, NeverStands, NoElectionRestriction
from zcluster import wire
from zcluster.config import ClusterSpec
from zcluster.consensus.raft import Raft
from zcluster.machines.api import Machine
from zcluster.machines.kv import KvStore
from zcluster.machines.mux import ClusterMachine
from zcluster.sim.many import run_many, seeds_from
from zcluster.sim.run import Case, Outcome, Run, run_case
from zcluster.sim.schedule import GROUPS
from zcluster.sim.shrink import shrink

NEEDS_MANY_SEEDS = (Disloyal, BoastfulFollower)
FIRST_SEED = {"OldTermCommit": 6, "NoElectionRestriction": 5, "EarlyReads": 6, "EternalLease": 18, "FreshEveryTime": 29}
"""Where the search for a planted mistake begins: those before were seen to find nothing."""
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("first", range(1, 25, 8))
def test_no_seed_breaks_a_promise(first: int) -> None:
    for seed in range(first, first + 8):
        outcome = run_case(Case(seed=seed, span=2_000_000_000))
        assert not outcome.property, f"seed {seed}: {outcome.property}: {outcome.detail}"
        assert outcome.operations > 0


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 1500, 20))
def test_many_seeds_break_no_promise(first: int) -> None:
    """Five hundred seeds, more than three million events."""
    report = run_many(seeds_from(Case(seed=first), 20))
    assert not report.violations, report.violations


@pytest.mark.parametrize("group", GROUPS)
def test_each_kind_of_fault_by_itself(group: str) -> None:
    for seed in range(50, 53):
        outcome = run_case(Case(seed=seed, groups=(group,), span=2_000_000_000))
        assert not outcome.property, f"seed {seed}: {outcome.property}: {outcome.detail}"


def test_the_same_seed_is_the_same_run_in_another_process_under_another_hash_seed() -> None:
    case = Case(seed=11)
    here = run_case(case)
    code = (
        "import json; from zcluster.sim.run import *; o = run_case(Case(seed=11)); "
        "print(json.dumps([o.trace_hash, o.events, o.simulated]))"
    )
    for hash_seed in ("1", "4242"):
        found = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            text=True,
        )
        assert json.loads(found.stdout) == [here.trace_hash, here.events, here.simulated]


def test_different_seeds_are_different_runs() -> None:
    assert len({run_case(Case(seed=seed, nodes=3, span=500_000_000)).trace_hash for seed in range(4)}) == 4


@pytest.mark.slow
def test_the_report_does_not_depend_on_the_number_of_processes() -> None:
    """In processes of their own: a pool leaves helpers and signal masks behind in the one that had it."""
    reports = []
    for processes in (1, 2):
        command = [
            "-m",
            "zcluster",
            "sim",
            "--seed",
            "5",
            "--seeds",
            "5",
            "--nodes",
            "3",
            "--faults",
            "pause",
            "--json",
        ]
        found = subprocess.run(
            [sys.executable, *command, "--processes", str(processes)],
            cwd=ROOT,
            capture_output=True,
            check=True,
            text=True,
        )
        reports.append(json.loads(found.stdout))
    one, two = reports
    assert [one[name] for name in ("trace_hash", "events", "seeds")] == [
        two[name] for name in ("trace_hash", "events", "seeds")
    ]
    assert one["seeds"] == 5


@pytest.mark.parametrize(
    "mutant",
    [pytest.param(m, marks=[pytest.mark.slow] if m in NEEDS_MANY_SEEDS else []) for m in MUTANTS],
    ids=lambda mutant: mutant.__name__,
)
def test_a_planted_mistake_is_found(mutant: type[Raft]) -> None:
    found = first_failure(mutant)
    assert found.property, "nothing was noticed"


class Forgetful(ClusterMachine):
    """Leaves out an append now and then, on one replica only: its state is another one then."""

    lives = 0

    def __init__(self) -> None:
        super().__init__(4096, 1 << 20, 10_000)
        Forgetful.lives += 1
        self.drops = Forgetful.lives == 2

    def apply(self, index: int, log_time_ms: int, frames: list[bytes]) -> list[bytes]:
        results = super().apply(index, log_time_ms, frames)
        if self.drops and index % 7 == 0:
            self.kv.apply([[wire.OP_PUT, "k0", b"?"]])
        return results


class UntilAnError(KvStore):
    """Takes a pipeline for a transaction: behind an error in it, nothing is applied any more."""

    def apply(self, ops: list[Any]) -> list[Any]:
        results: list[Any] = []
        for op in ops:
            refused = next((result for result in results if type(result) is list), None)
            results += super().apply([op]) if refused is None else [refused]
        return results


class AllOrNothing(ClusterMachine):
    """See UntilAnError."""

    def __init__(self, spec: ClusterSpec) -> None:
        super().__init__(4096, spec.settings.value_bytes_max, 10_000)
        self.kv = UntilAnError(4096, spec.settings.value_bytes_max)


class Misses(ClusterMachine):
    """A listing leaves out its second key."""

    def __init__(self, spec: ClusterSpec) -> None:
        super().__init__(4096, spec.settings.value_bytes_max, 10_000)

    def query(self, ops: list[Any]) -> bytes:
        results = wire.decode(super().query(ops))
        for op, result in zip(ops, results, strict=True):
            if op[0] == wire.OP_LIST:
                del result[0][2:4]
        return wire.encode(results)


@pytest.mark.parametrize(("machine", "found"), [(AllOrNothing, "results"), (Misses, "stale read")])
def test_pipelines_and_listings_are_judged(machine: Callable[[ClusterSpec], Machine], found: str) -> None:
    for seed in range(1, 20):
        outcome = run_case(Case(seed=seed, groups=(), new_machine=machine))
        if outcome.property:
            break
    assert outcome.property == found, outcome.detail


def test_a_machine_that_is_not_deterministic_is_found() -> None:
    Forgetful.lives = 0
    outcome = run_case(Case(seed=4, nodes=3, groups=(), new_machine=lambda spec: Forgetful()))
    assert outcome.property == "state-machine safety"


def test_a_cluster_that_never_elects_is_a_violation_of_liveness() -> None:
    outcome = run_case(Case(seed=1, nodes=3, calm=True, span=300_000_000, core_class=NeverStands))
    assert outcome.property == "liveness"
    assert "n2: follower" in outcome.detail


def first_failure(mutant: type[Raft]) -> Outcome:
    """Of the first seeds; the last outcome if none fails."""
    first = FIRST_SEED.get(mutant.__name__, 1)
    for seed in range(first, first + 80):
        outcome = run_case(Case(seed=seed, core_class=mutant))
        if outcome.property:
            break
    return outcome


@pytest.mark.slow
def test_a_failing_run_is_shrunk_to_fewer_faults_and_still_fails() -> None:
    outcome = first_failure(NoElectionRestriction)
    failing = Case(seed=outcome.seed, core_class=NoElectionRestriction)
    smaller, found = shrink(failing, outcome, runs_max=30)
    assert found.property == outcome.property
    assert smaller.only is not None
    assert len(found.schedule) < len(outcome.schedule)
    assert run_case(smaller).trace_hash == found.trace_hash


def test_a_history_checker_has_the_last_word() -> None:
    case = Case(seed=4, nodes=3, groups=(), span=1_000_000_000)
    run = Run(case)
    assert not run.run().property
    records = run.promises.history
    assert {record["op"] for record in records} >= {"put", "get", "delete", "cas", "append"}
    for record in records:
        assert record["status"] in ("ok", "fail", "unknown")
        assert record["status"] != "ok" or record["return"] >= record["call"]
        assert json.loads(json.dumps(record)) == record
    complaint = msgspec.structs.replace(case, check_history=lambda history: f"{len(history)} of them")
    outcome = run_case(complaint)
    assert (outcome.property, outcome.detail) == ("linearizable history", f"{len(records)} of them")


def test_a_calm_world_serves_everybody() -> None:
    run = Run(Case(seed=1, nodes=3, calm=True, span=20_000_000_000))
    outcome = run.run()
    assert not outcome.property
    assert outcome.elections == 1
    assert all(record["status"] == "ok" for record in run.promises.history)
