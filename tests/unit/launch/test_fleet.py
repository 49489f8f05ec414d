"""What follows a child's death, for the slot it leaves."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from zcluster.config import FRESH, NodeSpec, make_settings
from zcluster.launch import layout
from zcluster.launch.fleet import Fleet


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZCLUSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "home"


def dying(kind: str, code: int) -> Fleet:
    """A cluster whose children of that kind exit at once."""
    spec = layout.create("c", make_settings(nodes=1))
    return Fleet(spec, owner=None, commands={kind: ("-c", f"raise SystemExit({code})")})


def die(fleet: Fleet, name: str, now: int) -> None:
    """One life and death, both at `now`."""
    child = fleet.children[name]
    fleet.start(child, now)
    assert child.process is not None
    assert child.process.exited(10)
    fleet.collect(child, now)


def test_quick_deaths_back_off(home: Path) -> None:
    fleet = dying("worker", 1)
    worker = fleet.children["n1.w1"]
    pauses = []
    for _ in range(3):
        die(fleet, "n1.w1", 10)
        assert worker.restart_at is not None
        pauses.append(worker.restart_at - 10)
    assert pauses == [0, 50_000_000, 100_000_000]


def test_worker_that_asks_for_a_fresh_start_gets_it_at_once_however_often(home: Path) -> None:
    fleet = dying("worker", 75)
    worker = fleet.children["n1.w1"]
    for _ in range(4):
        die(fleet, "n1.w1", 10)
        assert (worker.restart_at, worker.quick_deaths) == (10, 0)


def test_replica_that_had_no_room_for_its_last_words_is_given_some(home: Path) -> None:
    fleet = dying("replica", 74)
    die(fleet, "n1", 10)
    assert fleet.children["n1"].failure == "its disk failed or is full (exit 74); make room, then start it again"
    assert not fleet.wanted(fleet.children["n1"])


def test_worker_without_room_for_its_run_file_says_so_by_its_exit_code_and_is_tried_again(home: Path) -> None:
    """Its log is on the same full disk, so it may be empty."""
    fleet = dying("worker", 73)
    worker = fleet.children["n1.w1"]
    for _ in range(9):
        die(fleet, "n1.w1", 10)
    assert worker.exit_text == "it cannot write to the run directory (exit 73); is the disk full?"
    assert worker.failure is None
    assert worker.restart_at == 10 + 1_000_000_000


def test_lost_run_file_is_written_anew_and_a_displaced_fleet_touches_none(home: Path) -> None:
    spec = layout.create("c", make_settings(nodes=1))
    fleet = Fleet(spec, owner=None, commands={"router": ("-c", "import signal; signal.pause()")})
    router = fleet.children["router"]
    fleet.start(router, 0)
    assert router.process is not None
    run_file = spec.path / "run" / "router.json"
    before = run_file.read_bytes()
    run_file.write_text("garbage")
    fleet.mend_run_files()
    assert run_file.read_bytes() == before
    fleet.displaced = True
    run_file.write_text("of another cluster by now")
    fleet.mend_run_files()
    fleet.stop_all(0)
    assert router.process.exited(10)
    fleet.collect(router, 0)
    assert run_file.read_text() == "of another cluster by now"


def test_nodes_get_and_lose_their_slots_and_replicas_start_first(home: Path) -> None:
    spec = layout.create("c", make_settings(nodes=2, workers=1))
    fleet = Fleet(spec, owner=None, commands={})
    assert list(fleet.children) == ["n1", "n2", "router", "n1.w1", "n2.w1"]
    fleet.add_node("n3")
    assert list(fleet.children) == ["n1", "n2", "n3", "router", "n1.w1", "n2.w1", "n3.w1"]
    fleet.remove_node("n2")
    assert list(fleet.children) == ["n1", "n3", "router", "n1.w1", "n3.w1"]


def test_only_a_fresh_node_may_make_its_store_once_the_cluster_is_created(home: Path) -> None:
    spec = layout.create("c", make_settings(nodes=1, workers=0))
    nodes = (*spec.nodes, NodeSpec("n2", 2, FRESH))
    told = "import sys; sys.exit(5 if '--create' in sys.argv else 6)"
    fleet = Fleet(
        msgspec.structs.replace(spec, created=True, nodes=nodes), owner=None, commands={"replica": ("-c", told)}
    )
    die(fleet, "n1", 10)
    die(fleet, "n2", 10)
    assert [fleet.children[name].exit_text for name in ("n1", "n2")] == ["exit 6", "exit 5"]
