"""The faults of a run of chaos: drawn from the seed alone, one at a time, never a majority without being asked to."""

from __future__ import annotations

import pytest

from zcluster.chaos.schedule import (
    DEFAULT_KINDS,
    KINDS,
    LEADER,
    STOPPING,
    Fault,
    draw_schedule,
    halves,
    parse_kinds,
    usable_kinds,
)
from zcluster.errors import InvalidInput
from zcluster.launch.network import in_touch, links_of_isolation, links_of_partition

NODES = [f"n{i}" for i in range(1, 10)]


def draw(seed: int, nodes: int = 3, kinds: tuple[str, ...] = DEFAULT_KINDS) -> list[Fault]:
    return draw_schedule(seed, NODES[:nodes], every_s=5, for_s=60, kinds=kinds)


def test_the_same_seed_gives_the_same_faults() -> None:
    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_a_schedule_is_what_it_was() -> None:
    """A seed that somebody has noted still means the same; change this only on purpose."""
    assert [str(fault) for fault in draw(7)][:4] == [
        "partition: nobody hears n1",
        "kill n1",
        "pause n1",
        "flaky leader: 5 % lost, 10 % twice",
    ]


@pytest.mark.parametrize("seed", range(20))
def test_faults_never_overlap_and_leave_time_for_service_to_come_back(seed: int) -> None:
    faults = draw(seed)
    assert [fault.number for fault in faults] == list(range(1, 13))
    for fault in faults:
        begin, end = 5 * (fault.number - 1), 5 * fault.number
        assert begin < fault.at_s < fault.at_s + fault.lasts_s <= end - 5 * 0.3 + 0.002


@pytest.mark.parametrize("nodes", [3, 4, 5, 7, 9])
def test_default_faults_leave_a_majority_in_touch(nodes: int) -> None:
    names = NODES[:nodes]
    seen = set()
    for seed in range(40):
        for fault in draw(seed, nodes):
            whom = ["n1"] if fault.whom == (LEADER,) else list(fault.whom)
            seen.add((fault.kind, fault.shape))
            if fault.kind in ("kill", "pause"):
                assert nodes - len(whom) > nodes // 2
            elif fault.kind == "partition":
                if fault.shape == "bridge":
                    links = links_of_partition(names, halves(names, whom[0]), whom)
                elif fault.shape == "minority":
                    links = links_of_partition(names, [whom])
                else:
                    links = links_of_isolation(names, whom)
                assert in_touch(names, links) > nodes // 2
    assert {kind for kind, _ in seen} == set(DEFAULT_KINDS)
    assert (("partition", "bridge") in seen) == (nodes >= 5)


def test_only_those_who_ask_lose_the_majority() -> None:
    assert not {fault.kind for seed in range(40) for fault in draw(seed)} & set(STOPPING)
    assert {fault.kind for seed in range(40) for fault in draw(seed, kinds=KINDS)} == set(KINDS)


def test_one_node_has_no_network() -> None:
    assert usable_kinds(DEFAULT_KINDS, 1) == ("kill", "pause")
    assert usable_kinds(DEFAULT_KINDS, 2) == ("kill", "pause", "slow", "flaky")
    assert {fault.kind for fault in draw(3, nodes=1)} == {"kill", "pause"}
    with pytest.raises(InvalidInput, match=r"1 node cannot have partition, slow; it can have kill, pause, kill-all"):
        usable_kinds(("partition", "slow"), 1)


@pytest.mark.parametrize(("every_s", "for_s"), [(0.5, 60), (5, 4), (1, 1e9)])
def test_times_that_do_not_fit_are_refused(every_s: float, for_s: float) -> None:
    with pytest.raises(InvalidInput):
        draw_schedule(1, NODES[:3], every_s=every_s, for_s=for_s)


@pytest.mark.parametrize("text", ["", ",", "kill,burn"])
def test_kinds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="kill, pause, partition"):
        parse_kinds(text)


def test_kinds_are_in_one_order_however_they_are_given() -> None:
    assert parse_kinds("slow, kill") == parse_kinds("kill,slow") == ("kill", "slow")
