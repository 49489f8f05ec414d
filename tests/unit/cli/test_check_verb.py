"""`zcluster check`: exit codes, text, JSON, drawing, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.sim.histories import run_clients
from tests.unit.sim.test_linearize import BAD, GOOD
from tests.unit.sim.test_verdict import numbered
from zcluster.sim.history import Operation, write_history


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.jsonl"


def write(path: Path, history: list[Operation]) -> str:
    with open(path, "w") as file:
        write_history(file, history)
    return str(path)


def test_a_good_history_exits_0(run: Run, path: Path) -> None:
    shown = run("check", write(path, numbered(GOOD["deletes"])))
    assert shown.exit_code == 0
    assert shown.stdout.startswith("linearizable   4 operations · 3 clients · 1 key")


def test_an_empty_history_is_linearizable(run: Run, path: Path) -> None:
    assert run("check", write(path, [])).exit_code == 0


def test_a_bad_history_exits_8_with_its_window(run: Run, path: Path) -> None:
    shown = run("check", write(path, numbered(BAD["stale read"])))
    assert shown.exit_code == 8
    assert "NOT linearizable" in shown.stdout
    assert 'get: "1"' in shown.stdout
    assert 'it needs "1", and the value could only be "2"' in shown.stdout


def test_an_undecided_history_exits_7(run: Run, path: Path) -> None:
    name = write(path, run_clients(1, operations=2000, values=4, unknown=0.2))
    shown = run("check", name, "--timeout", "0s")
    assert shown.exit_code == 7
    assert "'k0'" in shown.stdout


def test_bad_input_exits_2_with_the_line(run: Run, path: Path) -> None:
    path.write_text('\n{"client": 0}\n')
    shown = run("check", str(path))
    assert shown.exit_code == 2
    assert f'{path}, line 2: "op" is missing' in shown.stderr
    assert run("check", str(path.with_name("absent"))).exit_code == 2


def test_json_is_one_object(run: Run, path: Path) -> None:
    found = json.loads(run("check", write(path, numbered(BAD["stale read"])), "--json").stdout)
    assert (found["version"], found["result"], found["failed_keys"]) == (1, "not_linearizable", ["k"])
    window = found["window"]
    assert [o["line"] for o in window["operations"]] == [2, 3]
    assert (window["order"], window["stuck"], window["possible"]) == ([2], 3, ['"2"'])


def test_a_drawing_is_written(run: Run, path: Path) -> None:
    drawing = path.with_name("out.html")
    assert run("check", write(path, numbered(BAD["stale read"])), "--draw", str(drawing)).exit_code == 8
    assert "<svg" in drawing.read_text()
    assert run("check", str(path), "--draw", "/nowhere/out.html").exit_code == 2
