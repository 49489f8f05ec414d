"""Verbs that measure: bench kv, bench tasks. A thin shell over `zcluster.bench`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from zcluster.cli.context import App, pass_app
from zcluster.cli.duration import DURATION
from zcluster.cli.main import VerbGroup

if TYPE_CHECKING:
    from zcluster.api import Client
    from zcluster.bench import Result
    from zcluster.bench.workload import Load, OnProgress

F = TypeVar("F", bound=Callable[..., Any])
OBJECTIVE_MISSED: Final = 8

_LOAD_OPTIONS: Final = (
    click.option("--callers", type=int, default=16, metavar="N", help="Requests in flight (default 16)."),
    click.option(
        "--rate", type=float, metavar="R", help="Open loop: requests a second, counted from when they were due."
    ),
    click.option("--duration", type=DURATION, default=10.0, metavar="TIME", help="Default 10s."),
    click.option("--warmup", type=DURATION, default=1.0, metavar="TIME", help="Not measured (default 1s)."),
    click.option("--slo", multiple=True, metavar="P=TIME", help="E.g. p99=20ms; exit 8 if missed. Repeatable."),
    click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the JSON there too."),
)


def load_options(function: F) -> F:
    for option in reversed(_LOAD_OPTIONS):
        function = option(function)
    return function


@click.group("bench", cls=VerbGroup)
def bench() -> None:
    """Measure throughput and latency: `bench kv`, `bench tasks`."""


@bench.command("kv")
@load_options
@click.option("--read-ratio", type=float, default=0.0, metavar="X", help="0 to 1 (default 0: writes only).")
@click.option("--value-size", type=int, default=256, metavar="BYTES", help="Default 256.")
@pass_app
@click.pass_context
def kv(ctx: click.Context, app: App, /, read_ratio: float, value_size: int, **load: Any) -> None:
    """Durable writes (and reads) of random keys, from callers of one process."""
    from zcluster.bench import run_kv
    from zcluster.bench.workload import KvWork

    work = KvWork(read_ratio=read_ratio, value_size=value_size).check()
    ctx.exit(_measure(app, load, lambda client, how, shown: run_kv(client, how, work, shown)))


@bench.command("tasks")
@load_options
@pass_app
@click.pass_context
def tasks(ctx: click.Context, app: App, /, **load: Any) -> None:
    """Tasks that do nothing, through the router to the workers and back."""
    from zcluster.bench import run_tasks

    ctx.exit(_measure(app, load, run_tasks, workers=True))


def _measure(
    app: App, given: dict[str, Any], run: Callable[[Client, Load, OnProgress], Result], *, workers: bool = False
) -> int:
    """Run, report, judge. Returns: the exit code. Everything that can be wrong with the options is found first."""
    from zcluster.bench import check_objectives, header, parse_objective, table, to_json
    from zcluster.bench.report import progress_line
    from zcluster.bench.workload import Load
    from zcluster.errors import InvalidInput

    output: Path | None = given["output"]
    objectives = [parse_objective(part) for text in given["slo"] for part in text.split(",")]
    load = Load(
        callers=given["callers"], rate=given["rate"], duration_s=given["duration"], warmup_s=given["warmup"]
    ).check()
    if output is not None and not os.access(output.parent, os.W_OK):
        raise InvalidInput(f"cannot write {output}: no such directory, or not writable")
    with app.connect(workers=workers) as client:
        result = run(client, load, lambda progress: app.say(progress_line(progress)))
    encoded = to_json(result)
    missed = check_objectives(result, objectives)
    if objectives:
        encoded["slo"] = {"objectives": [o.text for o in objectives], "missed": missed}
    if output is not None:
        output.write_text(json.dumps({"version": 1, **encoded}, indent=2) + "\n")
    app.emit(encoded)
    app.show(header(result))
    app.show(table(result))
    if not result.operations:
        app.error("no request succeeded" + (f": {', '.join(result.errors_by_type)}" if result.errors_by_type else ""))
        return OBJECTIVE_MISSED
    if not app.json:
        for sentence in missed:
            app.error(f"missed {sentence}")
    return OBJECTIVE_MISSED if missed else 0
