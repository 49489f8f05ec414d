"""Whole runs with Multi-Paxos: the production code holds its promises under seeded faults."""

from __future__ import annotations

import pytest

from zcluster.consensus.api import Prepare, Promised
from zcluster.consensus.paxos import Paxos
from zcluster.consensus.preparation import Preparation
from zcluster.sim.many import run_many, seeds_from
from zcluster.sim.run import Case, run_case


@pytest.mark.parametrize("first", (1, 130))
def test_no_seed_breaks_a_promise(first: int) -> None:
    for seed in range(first, first + 6):
        outcome = run_case(Case(seed=seed, span=2_000_000_000, core_class=Paxos))
        assert not outcome.property, f"seed {seed}: {outcome.property}: {outcome.detail}"
        assert outcome.operations > 0


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 1100, 20))
def test_many_seeds_break_no_promise(first: int) -> None:
    report = run_many(seeds_from(Case(seed=first, core_class=Paxos), 20))
    assert not report.violations, report.violations


class DeafProposer(Paxos):
    """Proposes what it likes, whatever phase 1 reports."""

    def _maybe_lead(self, preparation: Preparation) -> None:
        preparation._reported.clear()
        super()._maybe_lead(preparation)


class ForgetfulAcceptor(Paxos):
    """Tells a proposer nothing of what it has accepted."""

    def _report(self, message: Prepare) -> Promised:
        found = super()._report(message)
        return Promised(found.term, True, found.promised, found.first)


@pytest.mark.slow
@pytest.mark.parametrize("mistaken", (DeafProposer, ForgetfulAcceptor))
def test_planted_mistakes_are_found(mistaken: type[Paxos]) -> None:
    assert any(run_case(Case(seed=seed, core_class=mistaken)).property for seed in range(1, 40))
