"""Global options anywhere; every error has its line, its exit code and its JSON; never a traceback unasked."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import click
import pytest

import zcluster
from tests.unit.cli.conftest import FakeCluster, Run
from zcluster import errors
from zcluster.cli.main import SECTIONS, VERBS, root


def zcluster_process(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-W", "error", "-m", "zcluster", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


def test_every_verb_is_found_under_its_name_and_documented() -> None:
    context = click.Context(root)
    for name, place in VERBS.items():
        command = root.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert command.help
        assert not place.summary.endswith(".")


def test_help_lists_every_verb_in_its_section(run: Run) -> None:
    shown = run("--help")
    assert shown.exit_code == 0
    for section, verbs in SECTIONS.items():
        assert f"{section}:" in shown.stdout
        for name, place in verbs.items():
            assert f"  {name:<10}  {place.summary}" in shown.stdout


def test_without_a_verb_the_help_is_shown(run: Run) -> None:
    assert run().stdout == run("--help").stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from zcluster.cli.main import root\n"
        "try: root.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'zmq', 'msgspec', 'rich', 'asyncio', 'zcluster.launch', 'zcluster.api'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [["--version"], ["version"], ["status", "--version"], ["put", "--version"]])
def test_version_anywhere(run: Run, arguments: list[str]) -> None:
    shown = run(*arguments)
    assert (shown.exit_code, shown.stdout) == (0, f"zcluster {zcluster.__version__}\n")


@pytest.mark.parametrize("arguments", [["--json", "--version"], ["--version", "--json"], ["version", "--json"]])
def test_version_as_json(run: Run, arguments: list[str]) -> None:
    assert json.loads(run(*arguments).stdout) == {"version": 1, "zcluster": zcluster.__version__}


def test_version_of_the_module_needs_no_click() -> None:
    done = zcluster_process("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"zcluster {zcluster.__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--json", "-c", "default", "kill", "n1"],
        ["kill", "--json", "--cluster=default", "n1"],
        ["kill", "n1", "-c", "default", "--json"],
        ["-c", "other", "--json", "kill", "n1", "-c", "default"],
    ],
)
def test_global_options_before_and_after_the_verb(run: Run, cluster: FakeCluster, arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {"version": 1, "cluster": "default", "killed": ["n1"], "signal": "SIGKILL"}


def test_the_cluster_is_named_by_the_environment_unless_told(
    run: Run, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZCLUSTER_NAME", "other")
    assert run("pause", "n1").exit_code == 3
    assert run("pause", "n1", "-c", "default").exit_code == 0


def test_an_empty_name_is_never_taken_for_the_default_cluster(run: Run, cluster: FakeCluster) -> None:
    done = run("-c", "", "down", "--purge")
    assert (done.exit_code, cluster.calls) == (2, [])


def test_quiet_leaves_results_only(run: Run, cluster: FakeCluster) -> None:
    done = run("-q", "kill", "n1")
    assert (done.stdout, done.stderr) == ("", "")


ERRORS = [
    (errors.InvalidInput("m"), 2),
    (errors.TooLarge("m"), 2),
    (errors.WrongType("m"), 2),
    (errors.NotRunning("m"), 3),
    (errors.Degraded("m"), 4),
    (errors.NoQuorum("m"), 5),
    (errors.Conflict("m"), 6),
    (errors.FormatTooNew("m"), 6),
    (errors.Timeout("m"), 7),
    (errors.Unknown("m"), 7),
    (errors.WorkerDied("m"), 10),
    (errors.StorageError("m"), 1),
    (TimeoutError("m"), 7),
    (PermissionError(13, "m"), 1),
]


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: type(value).__name__)
def test_each_error_has_its_exit_code_one_line_and_one_object(
    run: Run, cluster: FakeCluster, error: BaseException, code: int
) -> None:
    cluster.raises = error
    plain = run("pause", "n1")
    advice = "See: zcluster doctor\n" if isinstance(error, PermissionError) else ""
    assert (plain.exit_code, plain.stdout, plain.stderr) == (code, "", f"error: m\n{advice}")
    asked = run("pause", "n1", "--json")
    kind = "Timeout" if isinstance(error, TimeoutError) else type(error).__name__
    assert (asked.exit_code, asked.stderr) == (code, "")
    assert json.loads(asked.stdout) == {"version": 1, "error": {"type": kind, "message": "m"}}


def test_an_interrupt_is_130_and_silent(run: Run, cluster: FakeCluster) -> None:
    cluster.raises = KeyboardInterrupt()
    done = run("pause", "n1")
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "")


def test_our_own_bug_is_one_line_and_says_how_to_see_more(
    run: Run, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.raises = ZeroDivisionError("oops")
    done = run("pause", "n1")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[0] == "error: unexpected ZeroDivisionError: oops"
    assert "-v" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in run("pause", "n1", "-v").stderr
    monkeypatch.setenv("ZCLUSTER_DEBUG", "1")
    assert "Traceback" in run("pause", "n1").stderr


def test_an_unknown_cluster_is_3_with_what_to_do(run: Run) -> None:
    for verb in (["status"], ["put", "k", "v"], ["kill", "n1"], ["logs"], ["submit", "math:sqrt", "4"]):
        done = run(*verb, "-c", "nope")
        assert done.exit_code == 3
        assert done.stderr.endswith("start it: zcluster -c nope up\n")


def test_a_stopped_cluster_is_3_with_what_to_do(run: Run, cluster: FakeCluster) -> None:
    cluster.running = False
    done = run("get", "k")
    assert (done.exit_code, done.stderr) == (3, "error: cluster 'default' is stopped; start it: zcluster up\n")


@pytest.mark.parametrize(
    "arguments", [["nope"], ["put"], ["up", "--nope"], ["up", "-n", "x"], ["bench"], ["wait", "-t", "soon"]]
)
def test_wrong_usage_is_2_without_a_traceback(run: Run, arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.splitlines()[1].startswith("See: zcluster")
    asked = run(*arguments, "--json")
    assert (asked.exit_code, asked.stderr) == (2, "")
    assert json.loads(asked.stdout)["error"]["type"] == "Usage"


def test_a_mistyped_verb_gets_a_suggestion(run: Run) -> None:
    assert "did you mean 'status'?" in run("statsu").stderr


def test_advice_names_the_checkouts_own_script_where_the_shell_finds_no_other(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZCLUSTER_COMMAND", "bin/zcluster")
    monkeypatch.setenv("PATH", "/nowhere")
    assert run("status").stderr.endswith("start it: bin/zcluster up\n")


def test_a_reader_that_is_gone_is_no_error() -> None:
    command = f"{sys.executable} -P -m zcluster --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("asked", ["--help", "version"])
def test_a_full_disk_behind_standard_output_is_an_error(unbuffered: str, asked: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-P", "-m", "zcluster", asked]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\nSee: zcluster doctor\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_error_as_json_onto_a_full_disk_keeps_its_code_and_shows_no_traceback(unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-P", "-m", "zcluster", "status", "-c", "a b", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (2, "")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_no_bug(closed: str) -> None:
    command = f"{sys.executable} -P -m zcluster version {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_json_without_a_verb_is_one_object_too(run: Run) -> None:
    done = run("--json")
    assert (done.exit_code, done.stderr) == (2, "")
    assert json.loads(done.stdout)["error"]["type"] == "Usage"


def test_completion_knows_verbs_clusters_and_selectors(run: Run, cluster: FakeCluster, home: object) -> None:
    def complete(words: str, word: str) -> list[str]:
        environment = {"_ZCLUSTER_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": word}
        return [line.split(",")[1] for line in run(env=environment).stdout.splitlines()]

    assert complete("zcluster sta", "1") == ["start", "status"]
    assert complete("zcluster kill l", "2") == ["leader"]
    assert complete("zcluster wait --for h", "3") == ["healthy"]


def test_completion_scripts_exist_for_each_shell(run: Run) -> None:
    for shell in ("zsh", "fish"):
        assert "_ZCLUSTER_COMPLETE" in run("completion", shell).stdout
