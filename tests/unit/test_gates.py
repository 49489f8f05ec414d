"""The gates catch what they are there for: each check fails on a planted violation and passes on clean code."""

from __future__ import annotations

import doctest
import importlib
import importlib.machinery
import importlib.util
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import zcluster

ROOT = Path(__file__).resolve().parents[2]
SIZES = ROOT / "bin" / "checks" / "sizes.py"
FORBIDDEN = ROOT / "bin" / "checks" / "forbidden.py"


def run_check(script: Path, root: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(script), "zcluster"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def plant(root: Path, name: str, text: str) -> None:
    path = root / "zcluster" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def load_script(name: str) -> ModuleType:
    """A script of bin/ as a module."""
    loader = importlib.machinery.SourceFileLoader(f"bin_{name}", str(ROOT / "bin" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_sizes_pass_on_small_code_and_count_no_docstring(tmp_path: Path) -> None:
    plant(tmp_path, "a.py", 'def f():\n    """A\n' + "    contract.\n" * 100 + '    """\n    return 1\n')
    assert run_check(SIZES, tmp_path) == (0, "")


def test_sizes_fail_on_a_long_function(tmp_path: Path) -> None:
    plant(tmp_path, "a.py", "def f():\n" + "    x = 1\n" * 70)
    code, output = run_check(SIZES, tmp_path)
    assert code == 1
    assert output == "zcluster/a.py:1: f has 71 lines, the cap is 70\n"


def test_sizes_warn_above_the_soft_cap_and_fail_above_the_hard_one(tmp_path: Path) -> None:
    plant(tmp_path, "a.py", "x = 1\n" * 401)
    assert run_check(SIZES, tmp_path) == (0, "warning: zcluster/a.py: 401 lines, above the soft cap of 400\n")
    plant(tmp_path, "a.py", "x = 1\n" * 701)
    assert run_check(SIZES, tmp_path) == (1, "zcluster/a.py: 701 lines, the cap is 700\n")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("print('x')\n", "print in library code"),
        ("breakpoint()\n", "breakpoint left in"),
        ("import random\nx = random.random()\n", "random.random uses global state"),
        ("x = 1  # TO" + "DO later\n", "finish it or file an issue"),
        ('"""Module.\n\nFIX' + 'ME: all of it.\n"""\n', "finish it or file an issue"),
        ("def f():\n    raise NotImplementedError\n", "a stub"),
        ("def f():\n    raise NotImplementedError('later')\n", "a stub"),
    ],
)
def test_forbidden_things_are_found(tmp_path: Path, text: str, complaint: str) -> None:
    plant(tmp_path, "node/a.py", text)
    code, output = run_check(FORBIDDEN, tmp_path)
    assert code == 1
    assert output.startswith("zcluster/node/a.py:")
    assert complaint in output


def test_forbidden_leaves_the_command_line_and_seeded_randomness_alone(tmp_path: Path) -> None:
    plant(tmp_path, "cli/a.py", "print('x')\n")
    plant(tmp_path, "node/b.py", "import random\ngenerator = random.Random(7)\nx = generator.random()\n")
    assert run_check(FORBIDDEN, tmp_path) == (0, "")


def test_forbidden_looks_into_scripts_without_a_suffix(tmp_path: Path) -> None:
    plant(tmp_path, "script", "#!/usr/bin/env python3\nraise NotImplementedError\n")
    plant(tmp_path, "other", "#!/bin/sh\necho NotImplementedError\n")
    assert run_check(FORBIDDEN, tmp_path) == (1, "zcluster/script:2: a stub: raise NotImplementedError\n")


def test_leftover_processes_of_a_test_run_are_found_and_killed(capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("test")
    script.LEFTOVER_GRACE_SECONDS = 0.0
    environment = os.environ | {script.MARK: "planted"}
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environment)
    try:
        assert script.kill_leftovers("another") == 0
        assert script.kill_leftovers("planted") == 1
        assert child.wait(timeout=10) == -9
        assert f"left running: {child.pid}" in capsys.readouterr().out
        assert script.kill_leftovers("planted") == 0
    finally:
        child.kill()
        child.wait()
        assert child.stdin is not None
        child.stdin.close()


def test_examples_in_docstrings_are_true() -> None:
    failed = []
    for found in pkgutil.walk_packages(zcluster.__path__, "zcluster."):
        if not found.name.endswith("__main__"):
            failures, _ = doctest.testmod(importlib.import_module(found.name))
            failed += [found.name] * bool(failures)
    assert not failed
