"""Many logs as one: ends only, in order of time, rotation noticed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.unit.cli.conftest import FakeCluster, Run
from zcluster.cli import log_view
from zcluster.cli.log_view import Follower, Line, recent, tail


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    path = tmp_path / "logs"
    path.mkdir()
    return path


@pytest.mark.parametrize("chunk_bytes", [1, 3, 4096])
def test_tail_gives_whole_lines_however_it_reads(logs: Path, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_view, "CHUNK_BYTES", chunk_bytes)
    path = logs / "a.log"
    path.write_bytes(b"one\ntwo\nthree\nlast without end")
    assert tail(path, 0) == []
    assert tail(path, 1) == [b"last without end"]
    assert tail(path, 3) == [b"two", b"three", b"last without end"]
    assert tail(path, 99) == [b"one", b"two", b"three", b"last without end"]
    assert tail(logs / "absent.log", 5) == []


def test_lines_are_merged_by_time_and_what_has_none_stays_below_its_line(logs: Path) -> None:
    (logs / "n1.log").write_text(
        "2026-01-31T12:00:01.000 n1 first\nTraceback\n  detail\n2026-01-31T12:00:03.000 n1 third\n"
    )
    (logs / "n2.log").write_text("2026-01-31T12:00:02.000 n2 second\n")
    files = {name: logs / f"{name}.log" for name in ("n1", "n2")}
    assert [line.text.split()[-1] for line in recent(files, 50)] == ["first", "Traceback", "detail", "second", "third"]
    assert recent(files, 2) == [
        Line("n2", "2026-01-31T12:00:02.000 n2 second"),
        Line("n1", "2026-01-31T12:00:03.000 n1 third"),
    ]
    assert recent(files, 0) == []


def test_a_log_without_times_counts_by_its_last_change(logs: Path) -> None:
    (logs / "old.log").write_text("old\n")
    os.utime(logs / "old.log", (0, 0))
    (logs / "new.log").write_text("2026-01-31T12:00:01 new\n")
    lines = recent({"new": logs / "new.log", "old": logs / "old.log"}, 5)
    assert [line.process for line in lines] == ["old", "new"]


def test_a_rotated_predecessor_fills_up(logs: Path) -> None:
    (logs / "n1.log.1").write_text("a\nb\n")
    (logs / "n1.log").write_text("c\n")
    assert [line.text for line in recent({"n1": logs / "n1.log"}, 2)] == ["b", "c"]


def test_following_shows_whole_lines_once(logs: Path) -> None:
    path = logs / "n1.log"
    path.write_text("before\n")
    follower = Follower({"n1": path, "n2": logs / "n2.log"})
    assert follower.poll() == []
    with path.open("a") as file:
        file.write("one\ntw")
    assert follower.poll() == [Line("n1", "one")]
    with path.open("a") as file:
        file.write("o\n")
    (logs / "n2.log").write_text("new file\n")
    assert follower.poll() == [Line("n1", "two"), Line("n2", "new file")]
    assert follower.poll() == []


def test_following_goes_on_when_a_log_is_emptied_or_replaced(logs: Path) -> None:
    path = logs / "n1.log"
    path.write_text("a long line before\n")
    follower = Follower({"n1": path})
    os.truncate(path, 0)
    path.write_text("short\n")
    assert follower.poll() == [Line("n1", "short")]
    other = logs / "other"
    other.write_text("another file altogether\n")
    os.replace(other, path)
    assert follower.poll() == [Line("n1", "another file altogether")]
    path.unlink()
    assert follower.poll() == []


def test_a_node_stands_for_its_replica_and_workers(run: Run, cluster: FakeCluster) -> None:
    directory = cluster.directory / "logs"
    directory.mkdir(parents=True)
    for process in ("n1", "n1.w1", "n2", "n3", "router", "supervisor"):
        (directory / f"{process}.log").write_text(f"2026-01-31T12:00:00 {process}\n")

    def shown(*arguments: str) -> list[str]:
        return [line["process"] for line in json.loads(run("logs", *arguments, "--json").stdout)["lines"]]

    assert shown("n1") == ["n1", "n1.w1"]
    assert shown("leader") == ["n3"]
    assert shown("n1.w1", "router", "supervisor") == ["n1.w1", "router", "supervisor"]
    assert len(shown()) == 6
    assert shown("-n", "2") == ["router", "supervisor"]
    assert run("logs", "n2").stdout == "n2        | 2026-01-31T12:00:00 n2\n"
    assert run("logs", "-f", "--json").exit_code == 2
