"""Members come and go under the simulator: what is checked, and that the checks find what is wrong."""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from tests.sim.mutants import MEMBERSHIP_MUTANTS, KeepsTruncatedChange
from zcluster.consensus.raft import Raft
from zcluster.sim.checkers import Checkers
from zcluster.sim.configurations import LogOfMembers, check_successor, has_majority
from zcluster.sim.many import run_many, seeds_from
from zcluster.sim.reference import KeyValueModel
from zcluster.sim.run import Case, Run, run_case
from zcluster.sim.schedule import CRASH, DISK, MEMBERSHIP, NETWORK, PAUSE
from zcluster.sim.world import START, Violation, World
from zcluster.storage.recover import RecoveredStore
from zcluster.types import KIND_CONFIG, MS, Configuration, Entry, WriteBatch


def change(index: int, term: int, *voters: int, learners: tuple[int, ...] = ()) -> Entry:
    return Entry(index, term, KIND_CONFIG, msgspec.msgpack.encode(Configuration(voters, learners)))


@pytest.fixture
def checkers() -> Checkers:
    """Of three voters."""
    return Checkers(World(1), (1, 2, 3), KeyValueModel)


# -- configurations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "fair"),
    [
        ((1, 2, 3), (1, 2, 3, 4), True),
        ((1, 2, 3), (1, 2), True),
        ((1,), (1, 2), True),
        ((1, 2, 3), (1, 2, 4), False),  # {1,3} and {2,4}
        ((1, 2, 3), (1,), False),
        ((1, 2, 3), (1, 2, 3, 4, 5), False),
        ((1,), (), False),
    ],
)
def test_majorities_of_neighbours_meet(before: tuple[int, ...], after: tuple[int, ...], fair: bool) -> None:
    if fair:
        check_successor(1, Configuration(before), Configuration(after))
    else:
        with pytest.raises(Violation, match="quorum intersection"):
            check_successor(1, Configuration(before), Configuration(after))


def test_learners_make_no_majority() -> None:
    assert has_majority([1, 2, 9], (1, 2, 3))
    assert not has_majority([1, 8, 9], (1, 2, 3))


def test_a_change_behind_one_that_is_not_committed(checkers: Checkers) -> None:
    checkers.submitted(1, WriteBatch(1, entries=(change(2, 1, 1, 2, 3, learners=(4,)),)))
    checkers.configurations.check_fresh(1, {1})
    checkers.submitted(1, WriteBatch(2, entries=(change(3, 1, 1, 2, 3, 4),)))
    with pytest.raises(Violation, match="one change at a time"):
        checkers.configurations.check_fresh(1, {1})


def test_a_change_before_anything_is_committed_in_the_term(checkers: Checkers) -> None:
    checkers.submitted(2, WriteBatch(1, entries=(change(2, 7, 1, 2),)))
    with pytest.raises(Violation, match="stranger's change"):
        checkers.configurations.check_fresh(1, {1})


def test_what_is_cut_off_is_in_force_no_longer() -> None:
    log = LogOfMembers(Configuration((1, 2, 3)))
    log.append(Configuration((1, 2), (), 5))
    log.append(Configuration((1,), (), 9))
    log.truncate(8)
    assert log.current.voters == (1, 2)
    log.install(7, Configuration((4,), (), 6), kept=False)
    assert log.current.voters == (4,)


def test_a_replaced_disk_does_not_come_back_under_its_id(checkers: Checkers) -> None:
    checkers.shadows[2].wiped = True
    with pytest.raises(Violation, match="amnesia"):
        checkers.recovered(2, RecoveredStore())


# -- whole runs -------------------------------------------------------------------------------------------------------


def test_members_change_under_faults() -> None:
    changes = answered = 0
    for seed in range(1, 7):
        run = Run(Case(seed=seed, groups=(NETWORK, CRASH, PAUSE, MEMBERSHIP), span=3_000 * MS))
        outcome = run.run()
        assert (outcome.property, outcome.detail) == ("", "")
        changes += outcome.changes
        answered += run.operator.answered
    assert changes > 20
    assert answered > 20


@pytest.mark.slow
@pytest.mark.parametrize("first", range(3000, 3060, 10))
def test_many_changes_break_no_promise(first: int) -> None:
    groups = (NETWORK, CRASH, PAUSE, DISK, MEMBERSHIP) if first % 20 else (MEMBERSHIP,)
    report = run_many(seeds_from(Case(seed=first, groups=groups), 10))
    assert not report.violations, report.violations
    assert report.changes > (5 if DISK in groups else 50), "where disks fail, members change in a third of the worlds"


@pytest.mark.parametrize(
    "mutant",
    [pytest.param(m, marks=[pytest.mark.slow] if m is KeepsTruncatedChange else []) for m in MEMBERSHIP_MUTANTS],
    ids=lambda mutant: mutant.__name__,
)
def test_a_planted_mistake_is_found(mutant: type[Raft]) -> None:
    for seed in range(1, 60):
        outcome = run_case(Case(seed=seed, groups=(NETWORK, CRASH, PAUSE, MEMBERSHIP), core_class=mutant))
        if outcome.property:
            break
    assert outcome.property, "nothing was noticed"


@pytest.mark.parametrize("seed", [1, 2])
def test_a_removed_replica_that_goes_on_running_disturbs_nobody(seed: int) -> None:
    """It hears nothing any more, stands for ever, and costs neither an election nor a term."""
    run = Run(Case(seed=seed, nodes=5, groups=(), span=8_000 * MS))
    run.operator.stops = 0.0

    def remove() -> None:
        leader = run.cluster.leader()
        run.operator.shrink(Random(1), next(v for v in run.operator.members.voters if v != leader))

    run.world.at(START + 2_000 * MS, remove)
    run.world.at(START + 4_000 * MS, remove)
    outcome = run.run()
    assert (outcome.property, outcome.detail, outcome.changes) == ("", "", 2)
    removed = [life for life in run.cluster.lives() if life.node.id not in run.operator.members.voters]
    assert len(removed) == 2
    assert outcome.elections == 1


def test_a_wiped_node_is_refused_and_replaced_under_a_new_id() -> None:
    run = Run(Case(seed=5, nodes=3, groups=(), span=3_000 * MS))
    run.world.at(START + 1_000 * MS, run.operator.replace, Random(2))
    outcome = run.run()
    assert (outcome.property, outcome.detail, outcome.changes) == ("", "", 3)
    assert 4 in run.operator.members.voters
    assert len(run.operator.members.voters) == 3
    assert run.cluster.nodes[4].joined
