"""The command group: finds verbs when they are called, takes global options anywhere, turns errors into exit codes.

0 ok   1 our bug   2 usage   3 not running   4 degraded   5 no quorum   6 conflict   7 timeout
8 check or objective missed   9 key not found   10 the task raised   130 interrupted
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, NoReturn

import click

import zcluster
from zcluster.cli.context import App


class Place(NamedTuple):
    """Where a verb is found, and what the list of verbs says about it (so that listing them imports none)."""

    module: str
    attribute: str
    summary: str


SECTIONS: Final[dict[str, dict[str, Place]]] = {
    "Lifecycle": {
        "up": Place("cluster", "up", "Start a cluster, or find it running"),
        "demo": Place("demo", "demo", "See a private cluster survive its leader's death"),
        "down": Place("cluster", "down", "Stop a cluster; --purge removes its data too"),
        "stop": Place("cluster", "stop", "Stop nodes cleanly"),
        "start": Place("cluster", "start", "Start nodes that are down"),
        "restart": Place("cluster", "restart", "Restart nodes one after the other"),
        "transfer": Place("transfer", "transfer", "Let another node lead"),
        "scale": Place("cluster", "scale", "Let there be N nodes, 1 to 9"),
        "ls": Place("observe", "list_clusters", "List all clusters"),
        "wait": Place("observe", "wait", "Wait for a leader, a node, or everything"),
    },
    "Observe": {
        "status": Place("observe", "status", "Show the state of a cluster and its nodes"),
        "verify": Place("verify", "verify", "Compare the states of all replicas"),
        "logs": Place("observe", "logs", "Show or follow the logs"),
        "events": Place("events", "events", "Tell what happened: elections, faults, restarts"),
        "doctor": Place("doctor", "doctor", "Check this machine"),
    },
    "Faults, on n1, leader, followers, random, all, n1.w1, router": {
        "kill": Place("faults", "kill", "Kill with SIGKILL, or another signal"),
        "pause": Place("faults", "pause", "Freeze: hang, but do not die"),
        "resume": Place("faults", "resume", "Let paused nodes go on"),
        "partition": Place("faults", "partition", "Cut the network between nodes, both ways or one"),
        "slow": Place("faults", "slow", "Delay what a node sends and hears"),
        "flaky": Place("faults", "flaky", "Lose or double messages of a node"),
        "heal": Place("faults", "heal", "End all faults of the network"),
        "chaos": Place("chaos", "chaos", "Do faults for a while, and check what clients saw"),
    },
    "Data and tasks": {
        "put": Place("kv", "put", "Store a value"),
        "get": Place("kv", "get", "Print a value, byte for byte"),
        "del": Place("kv", "delete", "Delete a key"),
        "cas": Place("kv", "cas", "Replace a value if it is the expected one"),
        "checkpoint": Place("kv", "checkpoint", "Have every node write a checkpoint now"),
        "backup": Place("backup", "backup", "Save all keys to a file, while the cluster serves"),
        "restore": Place("backup", "restore", "Make a new cluster from a backup"),
        "recover": Place("recover", "recover", "Begin anew from one node's data, a majority being lost"),
        "submit": Place("task", "submit", "Run a function on a worker"),
        "run": Place("task", "run", "Run a script against a cluster"),
    },
    "Measure and prove": {
        "bench": Place("bench", "bench", "Throughput and latency: bench kv, bench tasks"),
        "sim": Place("sim", "sim", "Seeded faults in a simulated world, every step checked"),
        "check": Place("check", "check", "Check that a recorded history is linearizable"),
    },
    "The tool itself": {
        "config": Place("meta", "config", "Show settings and their origin: config show"),
        "completion": Place("meta", "completion", "Print a shell's completion script"),
        "version": Place("meta", "version", "Print the version"),
    },
}
VERBS: Final = {verb: place for section in SECTIONS.values() for verb, place in section.items()}
INTERRUPTED: Final = 130
COMPLETE_VARIABLE: Final = "_ZCLUSTER_COMPLETE"


# -- global options ---------------------------------------------------------------------------------------------------
def _remember(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Keep an option's value in the `App`, wherever the option stood; the last one given wins."""
    if value is not None and value is not False and value != 0 and parameter.name is not None:
        setattr(ctx.ensure_object(App), parameter.name, value)


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        app = ctx.ensure_object(App)
        app.json = app.json or "--json" in ctx.meta.get("zcluster.arguments", ())
        show_version(app)
        ctx.exit(0)


def show_version(app: App) -> None:
    app.show(f"zcluster {zcluster.__version__}")
    app.emit({"zcluster": zcluster.__version__})


def _complete_cluster(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from zcluster.config import home

    try:
        names = sorted(path.parent.name for path in home().glob("*/cluster.json"))
    except OSError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def global_options(*, hidden: bool) -> list[click.Parameter]:
    """Fresh parameters, for the group and for every verb; they reach no function but set fields of the `App`."""
    common: dict[str, Any] = {"expose_value": False, "callback": _remember, "hidden": hidden}
    return [
        click.Option(
            ["-c", "--cluster", "cluster_given"],
            metavar="NAME",
            help="Which cluster (default: $ZCLUSTER_NAME, else default).",
            shell_complete=_complete_cluster,
            **common,
        ),
        click.Option(["--json"], is_flag=True, help="Print one JSON object and nothing else.", **common),
        click.Option(["-q", "--quiet"], is_flag=True, help="No messages; results and errors only.", **common),
        click.Option(["-v", "--verbose"], count=True, help="Show tracebacks of errors.", **common),
        click.Option(["--no-color"], is_flag=True, help="No colours (also: NO_COLOR).", **common),
        click.Option(["--yes"], is_flag=True, help="Answer yes to every question.", **common),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            hidden=hidden,
            help="Print the version.",
        ),
    ]


class _TakesGlobals(click.Command):
    """A command that takes the global options too."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.params.extend(global_options(hidden=True))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["zcluster.arguments"] = tuple(args)
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        formatter.write_paragraph()
        formatter.write_text("Everywhere: -c NAME, --json, -q, -v, --no-color, --yes (see zcluster --help)")


class Verb(_TakesGlobals):
    """One command."""


class VerbGroup(_TakesGlobals, click.Group):
    """A command with sub-commands, such as `bench`."""

    command_class = Verb

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, no_args_is_help=False, **attributes)


def verb(name: str, **attributes: Any) -> Callable[[Callable[..., Any]], Verb]:
    """Make a function a command; its docstring is the help."""
    return click.command(name, cls=Verb, **attributes)


# Negative numbers and other values with a leading dash are arguments of these verbs, not options.
LITERAL: Final = {"ignore_unknown_options": True}


# -- the group --------------------------------------------------------------------------------------------------------
class Root(click.Group):
    """`zcluster`: verbs are imported when they are called, or all of them to list them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["zcluster.arguments"] = tuple(args)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = VERBS.get(cmd_name)
        if place is None:
            return None
        command = getattr(importlib.import_module(f"zcluster.cli.{place.module}"), place.attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in VERBS and not name.startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches

            close = get_close_matches(name, VERBS, n=1)
            ctx.fail(f"no command {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, verbs in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name.ljust(10), place.summary) for name, place in verbs.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run one call and exit with its code (return it if not `standalone_mode`). Never a traceback but with -v."""
        app = extra.pop("obj", None) or App()
        arguments = list(sys.argv[1:] if args is None else args)
        code = _close_streams(self._run(app, arguments, extra))
        if standalone_mode:
            sys.exit(code)
        return code

    def _run(self, app: App, arguments: list[str], extra: dict[str, Any]) -> int:
        instruction = os.environ.get(COMPLETE_VARIABLE)
        if instruction:
            from click.shell_completion import shell_complete

            return shell_complete(self, {}, "zcluster", COMPLETE_VARIABLE, instruction)
        try:
            with self.make_context("zcluster", arguments.copy(), obj=app, **extra) as ctx:
                self.invoke(ctx)
            return 0
        except click.exceptions.Exit as stop:
            return stop.exit_code
        except BrokenPipeError:
            _discard_output()  # the reader has seen enough: no error
            return 0
        except BaseException as error:
            app.json = app.json or (isinstance(error, click.UsageError) and "--json" in arguments)
            return report_error(app, error)


def report_error(app: App, error: BaseException) -> int:
    """Say what went wrong, as text or as JSON. Returns: the exit code. Raises: SystemExit, as it came."""
    if isinstance(error, SystemExit):
        raise error
    app.clear_transient()
    kind, text, code, advice = _judge(app, error)
    if app.verbose or os.environ.get("ZCLUSTER_DEBUG"):
        import traceback

        if not isinstance(error, click.ClickException | click.Abort | KeyboardInterrupt):
            click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    if app.json:
        try:
            app.emit({"error": {"type": kind, "message": text}})
        except OSError:  # nobody reads it, or the disk behind it is full
            _discard_output()
        return code
    if text:
        app.error(text)
    if advice:
        click.echo(advice, err=True)
    return code


def _judge(app: App, error: BaseException) -> tuple[str, str, int, str]:
    """(type, message, exit code, a second line of advice) of an exception."""
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx is not None else "zcluster"
        return "Usage", error.format_message(), 2, f"See: {command} --help"
    if isinstance(error, click.ClickException):
        return type(error).__name__, error.format_message(), 2, ""
    if isinstance(error, click.Abort | KeyboardInterrupt | EOFError):
        return "Interrupted", "interrupted" if app.json else "", INTERRUPTED, ""
    from zcluster.errors import Error

    if isinstance(error, Error):
        return type(error).__name__, str(error), error.exit_code, ""
    if isinstance(error, TimeoutError):
        return "Timeout", str(error) or "not done in time", 7, ""
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return type(error).__name__, f"{error.strerror or error}{where}", 1, "See: zcluster doctor"
    advice = (
        "" if app.verbose else "This is a bug in zcluster. With -v (or ZCLUSTER_DEBUG=1) the same call shows where."
    )
    return type(error).__name__, f"unexpected {type(error).__name__}: {error}", 1, advice


def _close_streams(code: int) -> int:
    """Flush what is buffered, so that a reader that is gone is noticed here and not while the interpreter ends."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
    except OSError as error:
        _discard_output()  # or the interpreter would try again, and complain, while it ends
        if code == 0:
            click.echo(f"error: cannot write the output: {error.strerror}", err=True)
            return 1
    return code


def _discard_output() -> None:
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        pass  # no real descriptor behind it


root = Root(
    "zcluster",
    params=global_options(hidden=False),
    invoke_without_command=True,
    help="A whole distributed system on one machine, for real: processes, sockets, disks, crashes.",
    epilog="Start with: zcluster demo, or zcluster up",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


@click.pass_context
def _without_verb(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        if ctx.ensure_object(App).json:
            raise click.UsageError("no command given")
        click.echo(ctx.get_help())


root.callback = _without_verb


def _void() -> io.TextIOWrapper:
    """A stream that forgets; open until the process ends."""
    return io.TextIOWrapper(io.FileIO(os.devnull, "w"))


def main() -> NoReturn:
    """The console script."""
    if sys.stdout is None:  # closed by whoever called us: nobody wants to read it
        sys.stdout = _void()
    if sys.stderr is None:
        sys.stderr = _void()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    root.main()
    raise AssertionError("unreachable: root.main exits")
