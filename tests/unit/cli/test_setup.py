"""The set-up of a checkout: once, again when something changed, never half; and what `bin/zcluster` passes on.

Nothing is downloaded: pip and venv are replaced, in the tests of bin/zcluster the whole set-up.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

BIN = Path(__file__).resolve().parents[3] / "bin"


class Setup:
    """bin/setup-venv as a module, at work on a checkout of its own, with venv and pip replaced."""

    def __init__(self, root: Path) -> None:
        loader = importlib.machinery.SourceFileLoader("setup_venv", str(BIN / "setup-venv"))
        spec = importlib.util.spec_from_loader(loader.name, loader)
        assert spec is not None
        self.module: Any = importlib.util.module_from_spec(spec)
        loader.exec_module(self.module)
        self.root = root
        root.mkdir()
        self.pyproject = root / "pyproject.toml"
        self.pyproject.write_text("one")
        self.stamp = root / ".venv" / ".zcluster-setup"
        self.unfinished = root / ".venv" / ".zcluster-unfinished"
        self.steps: list[str] = []
        self.said: list[str] = []
        self.fails: BaseException | None = None
        self.real_run = self.module.run
        changes = {"ROOT": str(root), "VENV": str(root / ".venv"), "PYTHON": str(root / ".venv/bin/python")}
        changes |= {"STAMP": str(self.stamp), "UNFINISHED": str(self.unfinished)}
        self.module.__dict__.update(changes, run=self.run, say=self.said.append)

    def run(self, command: list[str], lock: int) -> None:
        assert self.unfinished.exists()
        assert not self.stamp.exists()
        if "venv" in command:
            self.steps.append("venv")
            (self.root / ".venv" / "bin").mkdir()
            (self.root / ".venv" / "bin" / "python").symlink_to(sys.executable)
            return
        if "compileall" in command:
            return
        self.steps.append("pip [dev]" if command[-1].endswith("[dev]") else "pip")
        if self.fails is not None:
            raise self.fails

    def __call__(self, *arguments: str) -> tuple[int, list[str]]:
        """(exit code, steps taken)."""
        self.steps = []
        return self.module.main(list(arguments)), self.steps


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path / "checkout")


def test_a_fresh_checkout_is_set_up_once(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    assert setup() == (0, ["venv", "pip"])
    assert capsys.readouterr().out == f"{setup.root}/.venv/bin/python\n"
    assert setup.said[0] == "first use: setting up"
    digest = hashlib.sha256(b"one").hexdigest()
    assert setup.stamp.read_text() == f"{digest} {setup.root}\nuser\n"
    assert not setup.unfinished.exists()
    assert setup() == (0, [])


def test_a_changed_pyproject_is_installed_anew_into_what_is_there(setup: Setup) -> None:
    setup("--dev")
    setup.pyproject.write_text("two")
    assert setup() == (0, ["pip [dev]"])
    assert setup.said[-3] == "pyproject.toml has changed"
    assert setup() == (0, [])


def test_the_tools_of_developers_come_on_top_and_stay(setup: Setup) -> None:
    assert setup() == (0, ["venv", "pip"])
    assert setup("--dev") == (0, ["pip [dev]"])
    assert setup() == (0, [])
    assert setup("--dev") == (0, [])


def test_a_set_up_that_was_cut_short_is_done_anew(setup: Setup) -> None:
    setup.fails = KeyboardInterrupt()
    assert setup() == (130, ["venv", "pip"])
    assert setup.unfinished.exists()
    (setup.root / ".venv" / "half-written").touch()
    setup.fails = None
    assert setup() == (0, ["venv", "pip"])
    assert not (setup.root / ".venv" / "half-written").exists()


def test_a_repeated_set_up_that_was_cut_short_is_done_anew(setup: Setup) -> None:
    setup()
    setup.pyproject.write_text("two")
    setup.fails = KeyboardInterrupt()
    assert setup() == (130, ["pip"])
    setup.fails = None
    assert setup() == (0, ["venv", "pip"])


def test_a_failing_pip_is_one_message_and_tried_again(setup: Setup) -> None:
    setup.fails = setup.module.SetupFailed("no network")
    assert setup()[0] == 1
    assert setup.said[-1] == "no network"
    setup.fails = None
    assert setup() == (0, ["venv", "pip"])
    setup.pyproject.write_text("two")
    setup.fails = setup.module.SetupFailed("no network")
    assert setup() == (1, ["pip"])
    setup.fails = None
    assert setup() == (0, ["pip"])  # pip had rolled back: the environment was kept


def test_a_moved_checkout_is_set_up_anew(setup: Setup) -> None:
    setup()
    digest = hashlib.sha256(b"one").hexdigest()
    setup.stamp.write_text(f"{digest} /another/place\nuser\n")
    assert setup() == (0, ["venv", "pip"])


def test_an_environment_whose_python_is_gone_is_made_anew(setup: Setup) -> None:
    setup()
    python = setup.root / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/usr/bin/python-of-yesterday")
    assert setup() == (0, ["venv", "pip"])


def test_a_missing_venv_module_is_one_line_that_says_what_to_install(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    assert setup() == (1, [])
    assert len(setup.said) == 1
    assert "sudo apt install python3-venv" in setup.said[0]


def test_a_python_that_is_too_old_is_one_line_or_gives_way_to_a_newer_one(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(setup.module, "MINIMUM", (99, 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert setup() == (1, [])
    assert "Python 99.0 or newer is needed" in setup.said[0]

    class Replaced(Exception):
        pass

    def execv(path: str, arguments: list[str]) -> None:
        raise Replaced(path)

    (tmp_path / "python3.12").symlink_to(sys.executable)
    monkeypatch.setattr(os, "execv", execv)
    with pytest.raises(Replaced, match=r"python3\.12"):
        setup()


def test_two_at_once_take_turns(setup: Setup) -> None:
    waiting = threading.Event()

    def say(text: str) -> None:
        setup.said.append(text)
        waiting.set()

    setup.module.say = say
    lock = os.open(setup.root, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    other = threading.Thread(target=setup)
    other.start()
    assert waiting.wait(10)
    assert setup.said == ["another set-up of this checkout is at work; waiting for it"]
    os.close(lock)
    other.join(10)
    assert setup.steps == ["venv", "pip"]
    assert setup.stamp.exists()


def test_the_output_of_a_failing_step_is_in_the_message(setup: Setup, tmp_path: Path) -> None:
    code = "import sys; sys.stderr.write('ERROR: no luck'); sys.exit(3)"
    lock = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(setup.module.SetupFailed, match=r"status 3.*\n  ERROR: no luck"):
            setup.real_run([sys.executable, "-c", code], lock)
    finally:
        os.close(lock)


def test_wrong_arguments_are_2(setup: Setup) -> None:
    assert setup("--nope") == (2, [])


# -- bin/zcluster -----------------------------------------------------------------------------------------------------
PYTHON = """#!/bin/sh
echo "$ZCLUSTER_COMMAND" "$@"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose Python tells what it was given, already set up."""
    root = tmp_path / "a checkout"
    (root / "bin").mkdir(parents=True)
    (root / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(BIN / "zcluster", root / "bin" / "zcluster")
    (root / "bin" / "setup-venv").write_text(
        "import pathlib, sys\npathlib.Path(sys.argv[0]).with_name('calls').touch()\n"
    )
    (root / "pyproject.toml").write_text("one")
    (root / ".venv" / "bin" / "python").write_text(PYTHON)
    (root / ".venv" / "bin" / "python").chmod(0o755)
    digest = hashlib.sha256(b"one").hexdigest()
    (root / ".venv" / ".zcluster-setup").write_text(f"{digest} {root}\nuser\n")
    return root


def call(path: str, *arguments: str, cwd: Path) -> str:
    done = subprocess.run([path, *arguments], cwd=cwd, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def test_a_checkout_that_is_set_up_starts_at_once_from_anywhere(checkout: Path, tmp_path: Path) -> None:
    script = str(checkout / "bin" / "zcluster")
    assert call(script, "up", "-c", "a b", cwd=tmp_path) == f"{script} -P -m zcluster up -c a b\n"
    assert call("bin/zcluster", cwd=checkout) == "bin/zcluster -P -m zcluster\n"
    assert call("./zcluster", "x", cwd=checkout / "bin") == "./zcluster -P -m zcluster x\n"
    assert not (checkout / "bin" / "calls").exists()


def test_a_link_to_the_script_finds_its_checkout(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("middle")
    (tmp_path / "middle").symlink_to(checkout / "bin" / "zcluster")
    assert call("./link", "x", cwd=tmp_path) == "./link -P -m zcluster x\n"


@pytest.mark.parametrize("what", ["pyproject", "stamp", "python"])
def test_the_set_up_runs_where_it_is_stale(checkout: Path, tmp_path: Path, what: str) -> None:
    if what == "pyproject":
        (checkout / "pyproject.toml").write_text("two")
    elif what == "stamp":
        (checkout / ".venv" / ".zcluster-setup").unlink()
    else:
        (checkout / ".venv" / "bin" / "python").rename(checkout / "elsewhere")
        (checkout / ".venv" / "bin" / "python").symlink_to(checkout / "elsewhere")
        (checkout / "elsewhere").chmod(0o644)
        subprocess.run([str(checkout / "bin" / "zcluster")], capture_output=True, check=False)
    if what != "python":
        call(str(checkout / "bin" / "zcluster"), cwd=tmp_path)
    assert (checkout / "bin" / "calls").exists()


def test_a_set_up_that_fails_ends_the_call_with_its_code(checkout: Path) -> None:
    (checkout / "pyproject.toml").write_text("two")
    (checkout / "bin" / "setup-venv").write_text("import sys; sys.exit('zcluster: no venv')")
    done = subprocess.run([str(checkout / "bin" / "zcluster")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "zcluster: no venv\n")
