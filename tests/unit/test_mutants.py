"""The seeded bugs fit the code, and a sample of them is caught; `bin/mutants` runs them all."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from datetime import date
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MUTANTS = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text())["mutant"]
WATCHDOG_S = 400


def test_there_are_many_and_each_has_a_name_of_its_own() -> None:
    assert len(MUTANTS) >= 40
    assert len({mutant["name"] for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: str(mutant["name"]))
def test_a_mutant_changes_one_place_of_the_code_as_it_is(mutant: dict[str, str]) -> None:
    assert (ROOT / mutant["file"]).read_text().count(mutant["old"]) == 1
    assert mutant["old"] != mutant["new"]


@pytest.mark.slow
def test_a_sample_is_caught() -> None:
    """Another one every day, so that in time all of them have their turn; the day is in the output."""
    turn = str(date.today().toordinal())
    environment = os.environ | {"ZCLUSTER_MUTANTS_PYTHON": sys.executable}
    command = [sys.executable, str(ROOT / "bin" / "mutants"), "--sample", "6", "--turn", turn]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WATCHDOG_S, check=False)
    assert done.returncode == 0, f"turn {turn}:\n{done.stdout}{done.stderr}"
