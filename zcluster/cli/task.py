"""Verbs that run Python on the workers: submit, run."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from zcluster.cli.context import App, pass_app
from zcluster.cli.duration import DURATION
from zcluster.cli.main import LITERAL, verb

TASK_RAISED: Final = 10


def load_function(place: str) -> Callable[..., Any]:
    """The function that `module:name` names; modules of the current directory come first. Raises: InvalidInput."""
    from zcluster.errors import InvalidInput

    module_name, colon, path = place.partition(":")
    if not colon or not module_name or not path:
        raise InvalidInput(f"{place!r}: write MODULE:FUNCTION, for example math:factorial")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise InvalidInput(f"there is no module {error.name!r} in {os.getcwd()} or among those installed") from None
        raise InvalidInput(f"module {module_name!r} cannot be imported: {error}") from error
    except Exception as error:
        raise InvalidInput(f"module {module_name!r} cannot be imported: {type(error).__name__}: {error}") from error
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise InvalidInput(f"module {module_name!r} has no {path!r}") from None
    if not callable(found):
        raise InvalidInput(f"{place} is no function but {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def parse_argument(text: str) -> Any:
    """As JSON where it is JSON, else the text itself.

    >>> parse_argument("3"), parse_argument('{"a": [1]}'), parse_argument("plain"), parse_argument("NaN")
    (3, {'a': [1]}, 'plain', 'NaN')
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


@verb("submit", context_settings=LITERAL)
@click.argument("function", metavar="MODULE:FUNCTION")
@click.argument("arguments", nargs=-1, metavar="[ARGUMENT]...")
@click.option("--timeout", type=DURATION, default=None, metavar="TIME", help="Give up waiting (default: never).")
@pass_app
@click.pass_context
def submit(ctx: click.Context, app: App, function: str, arguments: tuple[str, ...], timeout: float | None) -> None:
    """Run a function on a worker and print its result; exit 10 if it raises.

    Each ARGUMENT is taken as JSON, else as text. With -v the remote traceback is shown.
    """
    called = load_function(function)
    values = [parse_argument(text) for text in arguments]
    with app.connect(workers=True) as client:
        future = client.submit(called, *values)
        try:
            result = future.result(timeout)
        except BaseException as error:
            if future.done() and not future.cancelled() and future.exception() is error:
                _report_raised(app, function, error)
                ctx.exit(_exit_code(error))
            if isinstance(error, TimeoutError):
                from zcluster.errors import Timeout

                raise Timeout(f"{function} did not end within {timeout:g} s; it may still run") from None
            raise
    app.emit({"function": function, "result": _as_json(result)})
    app.show(str(result))


def _exit_code(error: BaseException) -> int:
    """What the task raised is 10; what zcluster found wrong with the task has its own code (WorkerDied: 10 too)."""
    from zcluster.errors import Error

    ours = isinstance(error, Error) and not _is_remote(error)
    return error.exit_code if isinstance(error, Error) and ours else TASK_RAISED


def _is_remote(error: BaseException) -> bool:
    return type(error.__cause__).__name__ == "RemoteTraceback"


def _report_raised(app: App, function: str, error: BaseException) -> None:
    kind = type(error).__name__
    remote = str(error.__cause__).strip() if _is_remote(error) else ""
    fields: dict[str, Any] = {"type": kind, "message": str(error)}
    if remote:
        fields["traceback"] = remote
    app.emit({"function": function, "error": fields})
    if app.json:
        return
    if remote and app.verbose:
        click.echo(remote, err=True)
    hint = " (with -v: the remote traceback)" if remote and not app.verbose else ""
    text = str(error)
    app.error(f"{function} raised {kind}: {text}{hint}" if remote else text or kind)


def _as_json(result: Any) -> Any:
    """The result itself where JSON has it, else its repr."""
    try:
        json.dumps(result, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return repr(result)
    return result


@verb("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("script", metavar="SCRIPT.py")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENT]...")
@pass_app
@click.pass_context
def run(ctx: click.Context, app: App, script: str, arguments: tuple[str, ...]) -> None:
    """Run a Python script whose `zcluster.connect()` means this cluster; exit with its code.

    Everything after SCRIPT.py belongs to the script. With --json the script's own output goes to standard error.
    """
    from zcluster.errors import InvalidInput

    cluster = app.running_cluster()
    if not Path(script).is_file():
        raise InvalidInput(f"there is no script {script}")
    environment = {**os.environ, "ZCLUSTER_NAME": cluster.name}
    environment.pop("ZCLUSTER_DIRECTORY", None)  # inside a task it names the task's own cluster, and would win
    if os.sep in app.name:
        environment["ZCLUSTER_DIRECTORY"] = str(cluster.directory)
    started: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: object) -> None:
        for process in started:
            process.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGHUP, pass_on)
    command = [sys.executable, script, *arguments]
    started.append(subprocess.Popen(command, env=environment, stdout=2 if app.json else None))
    while True:
        try:
            code = started[0].wait()
            break
        except KeyboardInterrupt:
            continue  # the terminal has sent it to the script too: how to end is for the script to say
    code = 128 - code if code < 0 else code
    app.emit({"cluster": cluster.name, "script": script, "exit_code": code})
    ctx.exit(code)
