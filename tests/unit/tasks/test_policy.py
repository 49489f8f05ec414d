"""The four balancing policies: their distribution, and their bookkeeping."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from zcluster.config import BALANCERS
from zcluster.tasks.policy import Policy, make_policy


def build(name: str, loads: dict[int, int], seed: int = 1) -> Policy:
    policy = make_policy(name, random.Random(seed))
    for worker, load in loads.items():
        policy.add(worker, load)
    return policy


def picks(policy: Policy, count: int) -> Counter[int | None]:
    return Counter(policy.pick() for _ in range(count))


@pytest.mark.parametrize("name", BALANCERS)
def test_an_empty_policy_picks_nobody(name: str) -> None:
    policy = build(name, {})
    assert policy.pick() is None
    policy.add(3, 0)
    assert policy.pick() == 3
    policy.remove(3)
    policy.remove(3)
    assert policy.pick() is None


@pytest.mark.parametrize("name", BALANCERS)
def test_a_removed_worker_is_never_picked(name: str) -> None:
    policy = build(name, dict.fromkeys(range(5), 0))
    policy.remove(2)
    policy.remove(4)
    policy.add(9, 0)
    found = set()
    for _ in range(300):
        worker = policy.pick()
        assert worker is not None
        found.add(worker)
        policy.update(worker, random.Random(len(found)).randrange(5))
    assert found <= {0, 1, 3, 9}


def test_round_robin_takes_turns_and_newcomers_join_at_the_end() -> None:
    policy = build("round_robin", {1: 5, 2: 0, 3: 9})
    assert [policy.pick() for _ in range(4)] == [1, 2, 3, 1]
    policy.add(4, 0)
    assert [policy.pick() for _ in range(5)] == [2, 3, 1, 4, 2]


def test_random_is_even_and_follows_the_seed() -> None:
    loads = dict.fromkeys(range(4), 0)
    counts = picks(build("random", loads), 8_000)
    assert all(1_800 < counts[worker] < 2_200 for worker in loads)
    assert picks(build("random", loads, seed=7), 50) == picks(build("random", loads, seed=7), 50)


def test_power_of_two_never_takes_the_most_loaded_and_prefers_the_least() -> None:
    counts = picks(build("power_of_two", {1: 0, 2: 1, 3: 2, 4: 3}), 6_000)
    assert counts[4] == 0
    assert abs(counts[1] - 3_000) < 250  # in half of the pairs
    assert abs(counts[2] - 2_000) < 250
    assert abs(counts[3] - 1_000) < 250


def test_least_loaded_follows_the_loads_and_is_fair_among_equals() -> None:
    policy = build("least_loaded", {1: 2, 2: 1, 3: 1})
    given = []
    loads = {1: 2, 2: 1, 3: 1}
    for _ in range(5):
        worker = policy.pick()
        assert worker is not None
        given.append(worker)
        loads[worker] += 1
        policy.update(worker, loads[worker])
    assert given == [2, 3, 1, 2, 3]


def test_least_loaded_forgets_overtaken_entries() -> None:
    policy = build("least_loaded", {1: 0, 2: 0})
    for load in range(5_000):
        policy.update(1, load % 7)
    assert len(policy._heap) < 200  # type: ignore[attr-defined]
    policy.update(1, 3)
    policy.update(2, 4)
    assert policy.pick() == 1
