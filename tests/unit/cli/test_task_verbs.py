"""submit and run: what is called, what is printed, whose exit code it is."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from tests.unit.cli.conftest import FakeCluster, Run
from zcluster.cli.task import load_function, parse_argument
from zcluster.errors import InvalidInput


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module in the current directory."""
    Path("mine_for_cli.py").write_text(
        "class Box:\n    @staticmethod\n    def double(x):\n        return x * 2\n"
        "def fail():\n    raise LookupError('no such thing')\n"
        "def kinds(*a):\n    return [type(x).__name__ for x in a]\n"
        "def nothing():\n    pass\nNUMBER = 3\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine_for_cli", raising=False)
    return "mine_for_cli"


def test_submit_prints_the_result(run: Run, cluster: FakeCluster, module: str) -> None:
    assert run("submit", "math:factorial", "5").stdout == "120\n"
    assert run("submit", f"{module}:Box.double", "2").stdout == "4\n"
    assert run("submit", f"{module}:Box.double", "ab").stdout == "abab\n"
    assert run("submit", f"{module}:nothing").stdout == "None\n"
    assert json.loads(run("submit", "math:factorial", "5", "--json").stdout)["result"] == 120


def test_arguments_are_json_else_text(run: Run, cluster: FakeCluster, module: str) -> None:
    done = run("submit", f"{module}:kinds", "1", "-1.5", "true", "null", "[1]", '{"a":1}', "plain", '"2"', "NaN")
    assert done.stdout == "['int', 'float', 'bool', 'NoneType', 'list', 'dict', 'str', 'str', 'str']\n"
    assert parse_argument("[" * 100_000) == "[" * 100_000


def test_a_result_that_json_has_not_is_given_as_its_repr(run: Run, cluster: FakeCluster) -> None:
    assert json.loads(run("submit", "builtins:complex", "1", "2", "--json").stdout)["result"] == "(1+2j)"


def test_a_task_that_raises_is_10_with_one_line(run: Run, cluster: FakeCluster, module: str) -> None:
    done = run("submit", f"{module}:fail")
    assert (done.exit_code, done.stdout) == (10, "")
    assert done.stderr.startswith(f"error: {module}:fail raised LookupError: no such thing")
    assert done.stderr.count("\n") == 1
    assert "far away" in run("submit", f"{module}:fail", "-v").stderr
    asked = run("submit", f"{module}:fail", "--json")
    assert (asked.exit_code, asked.stderr) == (10, "")
    error = json.loads(asked.stdout)["error"]
    assert (error["type"], error["message"]) == ("LookupError", "no such thing")
    assert "far away" in error["traceback"]


def test_a_task_that_raises_an_error_of_ours_is_10_too(run: Run, cluster: FakeCluster) -> None:
    Path("ours_for_cli.py").write_text("from zcluster.errors import NoQuorum\ndef f():\n    raise NoQuorum('x')\n")
    assert run("submit", "ours_for_cli:f").exit_code == 10


def test_a_task_that_does_not_end_in_time_is_7(run: Run, cluster: FakeCluster) -> None:
    cluster.client.never_done = True
    done = run("submit", "math:sqrt", "4", "--timeout", "1ms")
    assert (done.exit_code, done.stdout) == (7, "")
    assert "may still run" in done.stderr


def test_a_cluster_without_workers_is_said_at_once(run: Run, cluster: FakeCluster) -> None:
    cluster.spec.settings.workers = 0
    assert run("submit", "math:sqrt", "4").exit_code == 6


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("math", "write MODULE:FUNCTION"),
        (":f", "write MODULE:FUNCTION"),
        ("no_such_module:f", "there is no module 'no_such_module'"),
        ("math:no_such", "module 'math' has no 'no_such'"),
        ("math:pi", "math:pi is no function but float"),
        ("broken_for_cli:f", "cannot be imported: SyntaxError"),
        ("needs_for_cli:f", "module 'needs_for_cli' cannot be imported: No module named 'absent_thing'"),
    ],
)
def test_a_function_that_cannot_be_found_is_2(monkeypatch: pytest.MonkeyPatch, place: str, message: str) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("broken_for_cli.py").write_text("def f(:\n")
    Path("needs_for_cli.py").write_text("import absent_thing\n")
    with pytest.raises(InvalidInput) as caught:
        load_function(place)
    assert message in str(caught.value)


SCRIPT = """
import os, sys
sys.stdout.write(f"{os.environ['ZCLUSTER_NAME']} {'ZCLUSTER_DIRECTORY' in os.environ} {sys.argv[1:]}")
sys.stdout.flush()
sys.exit(23)
"""


def test_run_names_the_cluster_passes_arguments_and_the_exit_code(
    run: Run, cluster: FakeCluster, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("script.py").write_text(SCRIPT)
    monkeypatch.setenv("ZCLUSTER_DIRECTORY", str(cluster.directory))
    done = run("run", "script.py", "--json", "-x", "a b")
    assert done.exit_code == 23
    assert capfd.readouterr().out == "default False ['--json', '-x', 'a b']"


def test_run_as_json_keeps_standard_output_for_the_object(
    run: Run, cluster: FakeCluster, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("script.py").write_text(SCRIPT)
    done = run("run", "--json", "script.py")
    assert (done.exit_code, json.loads(done.stdout)["exit_code"]) == (23, 23)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "default False []")


def test_a_script_killed_by_a_signal_has_the_shells_code(run: Run, cluster: FakeCluster) -> None:
    Path("script.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    assert run("run", "script.py").exit_code == 137


def test_sigterm_reaches_the_script(run: Run, cluster: FakeCluster) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    Path("script.py").write_text(
        "import os, signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(42))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\nsignal.pause()\n"
    )
    try:
        assert run("run", "script.py").exit_code == 42
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_script_that_is_not_there_is_2(run: Run, cluster: FakeCluster) -> None:
    assert run("run", "absent.py").exit_code == 2
