"""The status as one dictionary: what it makes of what the supervisor and the replicas say."""

from __future__ import annotations

import os
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


def silent(*names: str, **changed: Any) -> dict[str, dict[str, Any]]:
    """What the others say, each with `changed`."""
    found = {name: answer | changed for name, answer in answers().items() if name not in (*names, "router")}
    return found | {"router": {"workers": []}}


def test_advice_calls_a_cluster_outside_the_home_by_its_path(spec: ClusterSpec) -> None:
    status = report.describe(spec, supervisor(n1="StorageError: its disk is full"), silent("n1"))
    again = f"then: zcluster -c {spec.directory} start n1"
    assert status["fix"] == [f"see to the disk of {spec.directory} (is it full?), {again}"]
    assert "n1 is down: StorageError: its disk is full" in status["problems"]


@pytest.mark.parametrize(
    ("failure", "remedy"),
    [
        ("Refused: the vote and term of n1 are lost", "put the data of n1 back in"),
        ("WrongCluster: the data of replica 1 is missing", "put the data of n1 back in"),
        ("its data were refused (exit 78); its log may say more", "put the data of n1 back in"),
        ("FormatTooNew: written by a newer zcluster", "upgrade zcluster, then: "),
        ("its disk failed or is full (exit 74); make room", "see to the disk of"),
    ],
)
def test_a_node_that_would_only_fail_again_is_not_simply_started(spec: ClusterSpec, failure: str, remedy: str) -> None:
    (fix,) = report.describe(spec, supervisor(n1=failure), silent("n1"))["fix"]
    assert fix.startswith(remedy)
    assert fix.endswith(f"then: zcluster -c {spec.directory} start n1")


def test_nodes_that_were_killed_are_started_beside_those_that_need_more(spec: ClusterSpec) -> None:
    said = supervisor(n1="Refused: lost")
    for process in said["processes"][1:3]:
        process |= {"state": "down", "down_reason": "SIGKILL", "down_since_ms": None}
    fixes = report.describe(spec, said, {"router": {"workers": []}})["fix"]
    assert fixes[0] == f"zcluster -c {spec.directory} start n2 n3"
    assert fixes[1].startswith("put the data of n1 back")


def test_a_lost_voter_after_a_power_failure_in_a_weak_mode_is_named_with_both_ways_out(spec: ClusterSpec) -> None:
    said = supervisor(n3="WrongCluster: missing")
    status = report.describe(spec, said, silent("n3", suspect=True, leader=0, last_index=9))
    assert status["leader"] is None
    assert any("the first election needs every voter, and n3 is missing" in problem for problem in status["problems"])
    assert status["fix"][0].startswith("put the data of n3 back")
    assert status["fix"][1] == (
        f"if n3 cannot come back, give up what only it had: zcluster -c {spec.directory} recover --force-new n1"
    )


@pytest.mark.parametrize(("suspect", "leader"), [(False, 0), (True, 1)])
def test_a_majority_is_enough_where_nothing_is_suspect_or_a_leader_was_elected(
    spec: ClusterSpec, suspect: bool, leader: int
) -> None:
    status = report.describe(spec, supervisor(n3="WrongCluster: missing"), silent("n3", suspect=suspect, leader=leader))
    assert not any("every voter" in problem for problem in status["problems"])
    assert not any("--force-new" in fix for fix in status["fix"])


def test_workers_that_are_not_there_say_why(spec: ClusterSpec) -> None:
    said = supervisor()
    said["processes"] += [
        {"name": f"n{i}.w1", "kind": "worker", "node": f"n{i}", "state": "restarting", "exit": "no room"}
        for i in (1, 2, 3)
    ]
    spec = msgspec.structs.replace(spec, settings=make_settings(workers=1))
    status = report.describe(spec, said, answers())
    assert status["problems"] == ["3 of 3 workers are not there: no room"]


def test_a_file_that_vanishes_while_a_directory_is_measured_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logs are trimmed and checkpoints pruned at any time; their names may just have been read."""
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(bytes(10_000))
    whole = report.directory_bytes(str(tmp_path))
    real = os.scandir

    class Late:
        """All names are read; then a file goes."""

        def __init__(self, path: str) -> None:
            with real(path) as entries:
                self._entries = list(entries)
            os.unlink(self._entries[0].path)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self._entries

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Late)
    assert report.directory_bytes(str(tmp_path)) == whole * 2 // 3


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
    refused = supervisor(n1="FormatTooNew: of a newer zcluster", n2="the data of n2 are missing: `start n2 --wipe`")
    fixes = report.describe(spec, refused, silent("n1", "n2"))["fix"]
    assert fixes[1] == f"zcluster -c {spec.directory} start n2 --wipe"
