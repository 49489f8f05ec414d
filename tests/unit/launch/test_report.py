"""The status as one dictionary: what it makes of what the supervisor and the replicas say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zcluster.config import ClusterSpec, NodeSpec, make_settings
from zcluster.launch import report


@pytest.fixture
def spec(tmp_path: Path) -> ClusterSpec:
    nodes = tuple(NodeSpec(f"n{i}", i) for i in (1, 2, 3))
    return ClusterSpec(
        format=1,
        name="c",
        cluster_id="0",
        settings=make_settings(workers=0),
        nodes=nodes,
        socket_directory="/s",
        directory=str(tmp_path / "c"),
    )


def supervisor(**failures: str) -> dict[str, Any]:
    def process(name: str, kind: str) -> dict[str, Any]:
        failure = failures.get(name)
        state = "failed" if failure else "up"
        return {"name": name, "kind": kind, "pid": 2**22 + 1, "state": state, "paused": False, "restarts": 0} | {
            "failure": failure
        }

    processes = [process(n, "replica") for n in ("n1", "n2", "n3")] + [process("router", "router")]
    return {"pid": 1, "version": "0", "processes": processes}


def answers(*repairing: str, leader: int = 1) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {
        f"n{i}": {
            "role": "leader" if i == leader else "follower",
            "leader": leader,
            "term": 3,
            "commit_index": 7,
            "last_applied": 7,
            "repair": f"n{i}" in repairing,
            "damage": "wal: damaged at byte 276" if f"n{i}" in repairing else None,
        }
        for i in (1, 2, 3)
    }
    return found | {"router": {"workers": []}}


def with_digests(**digests: dict[str, str]) -> dict[str, dict[str, Any]]:
    return {name: {**answer, "digests": digests.get(name, {})} for name, answer in answers().items()}


def test_equal_states_at_the_newest_common_index_are_reported(spec: ClusterSpec) -> None:
    found = with_digests(n1={"5": "a", "9": "b", "12": "c"}, n2={"5": "a", "9": "b"}, n3={"9": "b"})
    status = report.describe(spec, supervisor(), found)
    assert status["verified"] == {"index": 9, "equal": True, "nodes": ["n1", "n2", "n3"], "odd": []}
    assert status["state"] == "healthy"
    assert report.describe(spec, supervisor(), answers())["verified"] is None


def test_a_state_that_differs_is_a_problem_that_later_comparisons_do_not_hide(spec: ClusterSpec) -> None:
    found = with_digests(n1={"5": "a", "9": "b"}, n2={"5": "x", "9": "b"}, n3={"5": "a", "9": "b"})
    status = report.describe(spec, supervisor(), found)
    assert status["verified"] == {"index": 5, "equal": False, "nodes": ["n1", "n2", "n3"], "odd": ["n2"]}
    assert status["state"] == "degraded"
    assert "the state of n2" in status["problems"][0]
    assert report.odd_ones({"n1": "a", "n2": "b"}) == ["n1", "n2"], "of two nobody knows which"


def test_all_answer_and_are_sound_is_healthy(spec: ClusterSpec) -> None:
    status = report.describe(spec, supervisor(), answers())
    assert (status["state"], status["problems"], status["leader"]) == ("healthy", [], "n1")


def test_a_node_in_repair_is_not_healthy_and_says_why(spec: ClusterSpec) -> None:
    status = report.describe(spec, supervisor(), answers("n2"))
    assert status["state"] == "degraded"
    assert status["problems"] == ["n2 repairs itself from its peers: wal: damaged at byte 276"]


def test_a_majority_in_repair_is_no_quorum(spec: ClusterSpec) -> None:
    status = report.describe(spec, supervisor(), answers("n2", "n3", leader=0))
    assert status["state"] == "no_quorum"
    assert any("restore their data" in problem for problem in status["problems"])


def test_advice_calls_a_cluster_outside_the_home_by_its_path(spec: ClusterSpec) -> None:
    silent = {name: answer for name, answer in answers().items() if name != "n1"}
    status = report.describe(spec, supervisor(n1="its disk is full"), silent)
    assert status["fix"] == [f"zcluster -c {spec.directory} start n1"]
    assert "n1 is down: its disk is full" in status["problems"]
