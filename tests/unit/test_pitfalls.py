"""Each known mistake that docs/pitfalls.md lists is shown by tests that exist, and each script of one is listed."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = ROOT / "tests" / "scripts" / "raft"
PAGE, _, WAITING = (ROOT / "docs" / "pitfalls.md").read_text().partition("## Not yet")
ROWS = [
    (mistake, re.findall(r"`([^`]+)`", shown))
    for mistake, shown in re.findall(r"^\| (.+?) \| (.+) \|$", PAGE, flags=re.MULTILINE)
    if mistake not in ("mistake", "trap", "complaint", "---")
]


@cache
def names_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_the_page_is_read_as_it_is_meant() -> None:
    assert len(ROWS) > 60
    assert len({mistake for mistake, _ in ROWS}) == len(ROWS)
    assert "Multi-Paxos" in WAITING


@pytest.mark.parametrize(("mistake", "shown"), ROWS, ids=[mistake for mistake, _ in ROWS])
def test_a_mistake_is_shown_by_tests_that_exist(mistake: str, shown: list[str]) -> None:
    assert shown
    for name in shown:
        file, _, test = name.partition("::")
        if test:
            assert test in names_in(file), name
        else:
            assert (SCRIPTS / f"{name}.txt").is_file(), name


def test_every_script_of_a_mistake_is_on_the_page() -> None:
    shown = {name for _, names in ROWS for name in names}
    assert [path.stem for path in sorted(SCRIPTS.glob("mistake_*.txt")) if path.stem not in shown] == []
