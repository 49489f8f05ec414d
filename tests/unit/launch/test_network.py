"""Faults of the network: which links a request cuts, who is told, and what people read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zcluster import wire
from zcluster.config import ClusterSpec, NodeSpec, make_settings
from zcluster.errors import Conflict, Degraded, InvalidInput, Timeout
from zcluster.launch import network, probe, report
from zcluster.launch.network import NetworkFaults, Seen, links_of_isolation, links_of_partition
from zcluster.transport.faults import KINDS, Order, Rule, decode_order
from zcluster.types import MS, NEVER

FIVE = ["n1", "n2", "n3", "n4", "n5"]


def make_spec(directory: Path, count: int) -> ClusterSpec:
    return ClusterSpec(
        format=1,
        name="c",
        cluster_id="0",
        settings=make_settings(nodes=count, workers=0),
        nodes=tuple(NodeSpec(f"n{i}", 10 + i) for i in range(1, count + 1)),  # ids are not the numbers of the names
        socket_directory="/s",
        directory=str(directory / "c"),
    )


class Told:
    """A cluster of so many nodes, in given conditions; keeps what each node was told."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int = 3) -> None:
        self.orders: dict[str, Order] = {}
        self.silent: set[str] = set()
        spec = make_spec(tmp_path, count)
        self.conditions = {n.name: "up" for n in spec.nodes}
        self.faults = NetworkFaults(spec, lambda: {n: Seen(c, 70 + int(n[1:]), 9) for n, c in self.conditions.items()})

        def ask(spec: ClusterSpec, names: Any, kind: int, body: Any, *, timeout_s: float) -> dict[str, Any]:
            assert kind == wire.FAULTS
            heard = [n for n in names if n not in self.silent]
            self.orders |= {n: decode_order(body[n]) for n in heard}
            return {n: (wire.RESULT, wire.encode([])) for n in heard}

        monkeypatch.setattr(probe, "ask", ask)

    def cuts(self, name: str) -> set[tuple[str, int]]:
        return {(rule.direction, rule.peer) for rule in self.orders[name].rules}


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    return Told(tmp_path, monkeypatch)


def test_nodes_without_a_side_form_one_of_their_own() -> None:
    links = links_of_partition(FIVE, [["n1"], ["n2", "n3"]])
    assert ("n4", "n5") not in links
    assert {("n1", "n4"), ("n4", "n1"), ("n2", "n5"), ("n1", "n2")} <= links
    assert len(links) == 2 * (1 * 2 + 1 * 2 + 2 * 2)


def test_a_bridge_is_in_touch_with_both_sides() -> None:
    links = links_of_partition(FIVE, [["n1", "n2"], ["n4", "n5"]], ["n3"])
    assert not any("n3" in link for link in links)
    assert len(links) == 8


def test_one_direction_cuts_what_the_first_side_hears() -> None:
    assert links_of_partition(FIVE, [["n1"]], direction="in") == {(n, "n1") for n in FIVE[1:]}
    assert links_of_isolation(FIVE, ["n1"], "out") == {("n1", n) for n in FIVE[1:]}


def test_each_isolated_node_is_alone() -> None:
    links = links_of_isolation(FIVE[:3], ["n1", "n2"])
    assert links == links_of_partition(FIVE[:3], [["n1"], ["n2"]])


@pytest.mark.parametrize(
    ("sides", "direction", "text"),
    [
        ([["n1"], ["n1", "n2"]], "both", "n1 is on two sides"),
        ([FIVE], "both", "all nodes are on one side"),
        ([], "both", "all nodes are on one side"),
        ([["n1"], []], "both", "at least one node"),
        ([["n1"], ["n2"]], "in", "exactly two sides, and there are 3"),
    ],
)
def test_partitions_that_are_none_are_refused(sides: Any, direction: Any, text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        links_of_partition(FIVE, sides, direction=direction)


def test_both_ends_of_a_link_are_told_by_replica_id(told: Told) -> None:
    done = told.faults.cut(links_of_isolation(FIVE[:3], ["n1"]))
    assert told.cuts("n1") == {("in", 12), ("out", 12), ("in", 13), ("out", 13)}
    assert told.cuts("n2") == {("in", 11), ("out", 11)}
    assert all(order.lift == ("cut",) for order in told.orders.values())
    assert (done["untold"], done["down"]) == ([], [])


def test_a_cut_names_the_process_it_is_about(told: Told) -> None:
    """Against a peer's next process, which is another one, nothing is held."""
    told.faults.cut(links_of_isolation(FIVE[:3], ["n1"]))
    assert {(rule.peer, rule.pid, rule.start_ticks) for rule in told.orders["n1"].rules} == {(12, 72, 9), (13, 73, 9)}


def test_one_way_each_end_keeps_its_part(told: Told) -> None:
    told.faults.cut({("n1", "n2")})
    assert told.cuts("n1") == {("out", 12)}
    assert told.cuts("n2") == {("in", 11)}
    assert told.orders["n3"].rules == ()  # whatever it cut before is lifted


def test_the_end_is_one_moment_for_all(told: Told) -> None:
    told.faults.cut(links_of_isolation(FIVE[:3], ["n1"]), seconds=10)
    ends = {rule.until for order in told.orders.values() for rule in order.rules}
    assert len(ends) == 1
    assert ends != {NEVER}


def test_peers_of_a_paused_node_keep_the_cut(told: Told) -> None:
    told.conditions["n1"] = "paused"
    done = told.faults.cut(links_of_isolation(FIVE[:3], ["n1"]))
    assert done["untold"] == ["n1"]
    assert set(told.orders) == {"n2", "n3"}


def test_a_link_between_two_paused_nodes_cannot_be_cut(told: Told) -> None:
    told.conditions |= {"n1": "paused", "n2": "paused"}
    with pytest.raises(Conflict, match=r"n1 and n2 are both paused.*resume n1 n2"):
        told.faults.cut(links_of_partition(FIVE[:3], [["n1"], ["n2"]]))
    assert not told.orders


def test_nodes_that_are_down_are_left_out_and_named(told: Told) -> None:
    told.conditions["n3"] = "down"
    done = told.faults.cut(links_of_isolation(FIVE[:3], ["n1"]))
    assert done["down"] == ["n3"]
    assert done["cuts"] == [["n1", "n2"], ["n2", "n1"]]
    with pytest.raises(Conflict, match=r"n3 is down.*start n3"):
        told.faults.cut(links_of_isolation(FIVE[:3], ["n3"]))


def test_a_silent_node_is_no_obstacle_while_its_peers_answer(told: Told) -> None:
    told.silent = {"n1"}
    assert told.faults.cut(links_of_isolation(FIVE[:3], ["n1"]))["untold"] == ["n1"]
    told.silent = {"n1", "n2"}
    with pytest.raises(Degraded, match="n1 and n2 are both silent"):
        told.faults.cut({("n1", "n2")})


def test_slow_and_flaky_are_done_by_the_node_itself(told: Told) -> None:
    told.faults.slow(["n2"], 50)
    rules = (Rule("slow", "in", delay=50 * MS), Rule("slow", "out", delay=50 * MS))
    assert told.orders == {"n2": Order(("slow",), rules)}
    told.faults.flaky(["n2"], 0.05, 0.02)
    assert told.orders["n2"].rules[0] == Rule("flaky", "in", loss=0.05, duplicate=0.02)
    told.faults.slow(["n2"], 0)
    assert told.orders["n2"] == Order(("slow",), ())


@pytest.mark.parametrize(("condition", "verb"), [("paused", "resume"), ("down", "start")])
def test_slow_needs_a_node_that_hears_it(told: Told, condition: str, verb: str) -> None:
    told.conditions["n2"] = condition
    with pytest.raises(Conflict, match=f"n2 is {condition}.*{verb} n2"):
        told.faults.slow(["n2"], 50)


def test_slow_without_an_answer_is_no_success(told: Told) -> None:
    told.silent = {"n2"}
    with pytest.raises(Timeout, match="n2 did not answer"):
        told.faults.slow(["n2"], 50)


@pytest.mark.parametrize(
    ("ms", "seconds"), [(-1, None), (10_001, None), (5, 0), (5, -1), (5, 90_000), (5, float("nan"))]
)
def test_spans_out_of_range_are_refused(told: Told, ms: float, seconds: float | None) -> None:
    with pytest.raises(InvalidInput):
        told.faults.slow(["n1"], ms, seconds)


@pytest.mark.parametrize(("loss", "duplicate"), [(-0.1, 0), (1.1, 0), (0.5, 2), (float("nan"), 0)])
def test_shares_out_of_range_are_refused(told: Told, loss: float, duplicate: float) -> None:
    with pytest.raises(InvalidInput):
        told.faults.flaky(["n1"], loss, duplicate)


def test_heal_lifts_everything_and_says_who_could_not_be_told(told: Told) -> None:
    assert told.faults.heal() == {"healed": ["n1", "n2", "n3"]}
    assert set(told.orders.values()) == {Order(KINDS)}
    told.conditions["n2"] = "paused"
    with pytest.raises(Degraded, match=r"n2 is paused.*resume n2 && .*heal"):
        told.faults.heal()
    told.conditions["n2"] = "down"
    assert told.faults.heal() == {"healed": ["n1", "n3"]}


def test_one_node_has_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(tmp_path, monkeypatch, count=1)
    for fault in (lambda: told.faults.cut(frozenset()), lambda: told.faults.slow(["n1"], 5)):
        with pytest.raises(InvalidInput, match="one node"):
            fault()


def rule(kind: str, direction: str, peer: str | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "direction": direction,
        "peer": peer,
        "delay_ms": 0.0,
        "loss": 0.0,
        "duplicate": 0.0,
        "seconds_left": None,
    } | changes


def test_the_network_is_described_from_the_rules_of_its_nodes() -> None:
    found = network.describe(
        ["n1", "n2"],
        {
            "n1": [rule("cut", "out", "n2", seconds_left=4.0), rule("slow", "in", delay_ms=5.0, seconds_left=9.0)],
            "n2": [rule("cut", "in", "n1", seconds_left=4.0), rule("flaky", "in", loss=0.05, seconds_left=1.0)],
        },
    )
    assert found == {
        "cuts": [["n1", "n2"]],
        "slow": {"n1": 5.0},
        "flaky": {"n2": {"loss": 0.05, "duplicate": 0.0}},
        "seconds_left": 9.0,
    }


@pytest.mark.parametrize(
    ("links", "text"),
    [
        (links_of_isolation(FIVE, ["n2"]), ["n1 n3 n4 n5 | n2 are cut off from each other"]),
        (
            links_of_partition(FIVE, [["n1", "n2"], ["n4", "n5"]], ["n3"]),
            ["n1 n2 | n4 n5 are cut off from each other"],
        ),
        ({("n1", "n2"), ("n1", "n3")}, ["n2 does not hear n1", "n3 does not hear n1"]),
        (links_of_partition(FIVE, [["n1", "n2"]]), ["n1 n2 | n3 n4 n5 are cut off from each other"]),
    ],
)
def test_people_read_sides(links: Any, text: list[str]) -> None:
    assert network.lines({"cuts": [list(link) for link in links], "slow": {}, "flaky": {}}, FIVE) == text


def status_of(tmp_path: Path, links: Any) -> dict[str, Any]:
    spec = make_spec(tmp_path, 3)
    names = [n.name for n in spec.nodes]
    process = {"pid": 2**22 + 1, "state": "up", "paused": False, "restarts": 0, "failure": None}
    processes = [process | {"name": n, "kind": "replica"} for n in names] + [
        process | {"name": "router", "kind": "router"}
    ]
    answer = {"leader": 12, "term": 3, "commit_index": 7, "last_applied": 7, "repair": False}
    answers: dict[str, Any] = {
        n: answer
        | {
            "role": "leader" if n == "n2" else "follower",
            "faults": [rule("cut", "out", b) for a, b in links if a == n],
        }
        for n in names
    }
    supervisor = {"pid": 1, "version": "0", "processes": processes}
    return report.describe(spec, supervisor, answers | {"router": {"workers": []}})


def test_a_cluster_with_a_fault_in_its_network_is_degraded_and_says_how_to_heal(tmp_path: Path) -> None:
    assert status_of(tmp_path, [])["state"] == "healthy"
    status = status_of(tmp_path, links_of_isolation(FIVE[:3], ["n1"]))
    assert (status["state"], status["quorum"]) == ("degraded", True)
    assert status["problems"] == ["n1 | n2 n3 are cut off from each other"]
    assert status["fix"][0].endswith(" heal")


def test_without_two_way_links_to_a_majority_there_is_no_quorum(tmp_path: Path) -> None:
    everybody_alone = links_of_isolation(FIVE[:3], FIVE[:3])
    assert status_of(tmp_path, everybody_alone)["state"] == "no_quorum"
    one_way = links_of_isolation(FIVE[:3], FIVE[:3], "out")
    assert status_of(tmp_path, one_way)["state"] == "no_quorum"
