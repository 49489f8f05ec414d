"""The status as one dictionary: what it makes of what the supervisor and the replicas say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from zcluster.config import JOINING, LEAVING, ClusterSpec, NodeSpec, make_settings
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


def with_membership(found: dict[str, dict[str, Any]], voters: list[int], index: int = 5) -> dict[str, dict[str, Any]]:
    for name, answer in found.items():
        if name != "router":
            answer |= {"voters": voters, "learners": [], "configuration_index": index}
    return found


def test_a_learner_is_shown_as_one_and_does_not_count_for_the_quorum(spec: ClusterSpec) -> None:
    nodes = (*spec.nodes[:2], NodeSpec("n3", 4, JOINING))
    joining = msgspec.structs.replace(spec, nodes=nodes)
    told = supervisor() | {"change": {"nodes": 3, "text": "n3 catches up"}}
    status = report.describe(joining, told, with_membership(answers(), [1, 2]))
    assert [node["role"] for node in status["nodes"]] == ["leader", "follower", "learner"]
    assert (status["state"], status["quorum"], status["voters"]) == ("degraded", True, ["n1", "n2"])
    assert "it is to have 3 nodes: n3 catches up" in status["problems"]
    assert "n3 is a learner: it votes once it has caught up" in status["problems"]
    alone = {name: answer for name, answer in answers().items() if name != "n2"}
    assert report.describe(joining, told, with_membership(alone, [1, 2]))["state"] == "no_quorum"


def test_who_votes_is_what_the_latest_configuration_says(spec: ClusterSpec) -> None:
    found = with_membership(answers(), [1, 2, 3])
    found["n2"] |= {"voters": [1, 2], "configuration_index": 4}
    assert report.find_voters(spec, found) == [1, 2, 3]
    assert report.find_voters(spec, {}) == [1, 2, 3]


def test_a_node_on_its_way_out_is_no_problem_of_its_own(spec: ClusterSpec) -> None:
    leaving = msgspec.structs.replace(spec, nodes=(*spec.nodes[:2], NodeSpec("n3", 3, LEAVING)))
    told = supervisor() | {"change": {"nodes": 2, "text": "n3 is removed"}}
    status = report.describe(leaving, told, with_membership(answers(), [1, 2]))
    assert [node["role"] for node in status["nodes"]] == ["leader", "follower", "leaving"]
    assert status["problems"] == ["it is to have 2 nodes: n3 is removed"]


def test_lost_data_are_not_started_again_but_wiped(spec: ClusterSpec) -> None:
    silent = {name: answer for name, answer in answers().items() if name not in ("n1", "n2")}
    refused = supervisor(n1="its disk is full", n2="the data of n2 are missing: `zcluster start n2 --wipe`")
    fixes = report.describe(spec, refused, silent)["fix"]
    assert [fix.rpartition(" start ")[2] for fix in fixes] == ["n1", "n2 --wipe"]
