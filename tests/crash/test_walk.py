"""The walk itself: the command runs, names what is wrong, and goes on after it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.walk import NARROW, Tally, inject, walk
from tests.unit.storage.lives import Life
from zcluster.storage.recover import RecoveredStore

ROOT = Path(__file__).parent.parent.parent
WATCHDOG_S = 120


def crash_walk(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "bin" / "crash-walk"), *arguments],
        env=os.environ | {"ZCLUSTER_CRASH_WALK_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        check=False,
    )


def test_the_command_walks_through_what_it_is_told_and_says_how_it_went() -> None:
    done = crash_walk("crash", "incarnations", "--durability", "fsync", "--states", "6")
    assert (done.returncode, done.stderr) == (0, "")
    first, last = done.stdout.splitlines()
    assert first.startswith("crash, incarnations, fsync: 6 of 6 recovered")
    assert last.startswith("6 disks recovered")
    assert " 0 bad" in last


@pytest.mark.parametrize("wrong", ["nonsense", "--states=0"])
def test_a_wrong_word_is_a_usage_error(wrong: str) -> None:
    done = crash_walk(wrong)
    assert done.returncode == 2
    assert "crash-walk: error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_recovery_is_named_and_the_walk_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    check = Life.check

    def refuse_later_lives(self: Life, found: RecoveredStore, **options: object) -> None:
        assert found.incarnation < 15, "planted"
        check(self, found, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Life, "check", refuse_later_lives)
    seen: list[int] = []
    tally = walk("incarnations", "fsync", NARROW, limit=40, progress=lambda tally: seen.append(tally.states))
    assert 0 < tally.bad_count < tally.states == tally.total
    assert all("incarnations, fsync, state " in line and "planted" in line for line in tally.bad)
    assert seen == list(range(1, tally.total + 1))


def test_a_fault_that_is_not_noticed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(life: Life, image: object) -> str:
        raise AssertionError("served")

    monkeypatch.setattr("tests.crash.walk.verdict", blind)
    tally = inject("incarnations", stride=400, truncation_step=97)
    assert tally.bad_count == tally.states > 0
    assert all(line.endswith("AssertionError: served") for line in tally.bad)


def test_the_list_of_what_is_bad_is_bounded_but_its_number_is_told() -> None:
    tally = Tally("x")
    for number in range(50):
        tally.complain(f"{number}", AssertionError())
    assert (tally.bad_count, len(tally.bad)) == (50, 20)
    assert str(tally).endswith("50 bad")
