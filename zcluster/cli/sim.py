"""The verb `sim`: seeds through the deterministic simulator. A thin shell over `zcluster.sim`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click

from zcluster.cli.context import App, pass_app
from zcluster.cli.duration import DURATION, seconds_text
from zcluster.cli.main import verb
from zcluster.config import ENGINES

if TYPE_CHECKING:
    from zcluster.sim.many import Found, Report
    from zcluster.sim.run import Case, Outcome

CHECK_FAILED: Final = 8
SEEDS: Final = 100
BAR: Final = 24
RECENT_SHOWN: Final = 15
FAULTS: Final = "network,crash,disk,pause,clock,membership"  # said here too: help must not wait for the simulator


@verb("sim")
@click.option("--engine", type=click.Choice(ENGINES), default="raft", help="raft (default) or paxos.")
@click.option("--nodes", type=click.IntRange(3, 7), help="Replicas (default: drawn from the seed, 3 to 7).")
@click.option("--seeds", type=click.IntRange(1), help=f"How many seeds (default {SEEDS}; 1 with --seed).")
@click.option("--seed", type=click.IntRange(0), help="The first seed (default 1).")
@click.option("--for", "span", type=DURATION, metavar="TIME", help="Go on through the seeds for so long.")
@click.option("--faults", default="all", metavar="LIST", help=f"{FAULTS}; all (default) or none.")
@click.option("--only", metavar="LIST", help="Keep these faults of the schedule, by position: replays a shorter run.")
@click.option("--processes", type=click.IntRange(1), help="How many at a time (default: the processors there are).")
@pass_app
@click.pass_context
def sim(
    ctx: click.Context,
    app: App,
    /,
    engine: str,
    nodes: int | None,
    seeds: int | None,
    seed: int | None,
    span: float | None,
    faults: str,
    only: str | None,
    processes: int | None,
) -> None:
    """Prove the cluster in a simulated world: seeded faults, every step checked.

    The production code runs unchanged over a virtual clock, network and disks. The same seed gives the same run.
    """
    import os

    from zcluster.consensus.engines import engine_class
    from zcluster.sim.many import run_many, seeds_from
    from zcluster.sim.run import Case
    from zcluster.sim.schedule import parse_groups

    case = Case(
        seed=1 if seed is None else seed,
        nodes=nodes or 0,
        groups=parse_groups(faults),
        only=_positions(only),
        core_class=engine_class(engine),
    )
    number = seeds if seeds is not None else None if span is not None else SEEDS if seed is None else 1
    until = float("inf") if span is None else time.monotonic() + span
    count = processes or len(os.sched_getaffinity(0))
    count = count if number is None else min(count, number)
    progress = _Progress(app, number, until)
    report = run_many(seeds_from(case, number), processes=count, until=until, on_progress=progress.show)
    app.clear_transient()
    _show(app, report)
    details = [_explain(app, case, found, faults) for found in report.violations[:1]]
    app.emit(
        {
            "engine": engine,
            "seeds": report.seeds,
            "events": report.events,
            "simulated_seconds": round(report.simulated_seconds, 3),
            "wall_seconds": round(report.wall_seconds, 3),
            "operations": report.operations,
            "elections": report.elections,
            "membership_changes": report.changes,
            "violations": [
                {"seed": found.seed, "property": found.property, "detail": found.detail} for found in report.violations
            ],
            "shortest": details[0] if details else None,
            "trace_hash": report.trace_hash,
        }
    )
    ctx.exit(CHECK_FAILED if report.violations else 0)


def _positions(text: str | None) -> tuple[int, ...] | None:
    from zcluster.errors import InvalidInput

    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise InvalidInput(f"--only {text!r}: whole numbers with commas between") from None


class _Progress:
    """The line that is drawn over while seeds run."""

    def __init__(self, app: App, number: int | None, until: float) -> None:
        self._app = app
        self._number = number
        self._started = time.monotonic()
        self._until = until

    def show(self, report: Report) -> None:
        if self._number is not None:
            share = report.seeds / self._number
        else:
            share = (time.monotonic() - self._started) / max(self._until - self._started, 1e-9)
        filled = min(int(share * BAR), BAR)
        bar = "█" * filled + "░" * (BAR - filled)
        self._app.transient(f"{bar} {_figures(report)}")


def _figures(report: Report) -> str:
    wall = max(report.wall_seconds, 1e-9)
    return (
        f"{report.seeds:,} seeds · {report.events:,} events · {report.events / wall:,.0f} events/s · "
        f"{report.simulated_seconds / wall:,.0f} s simulated/s · {len(report.violations)} violations"
    )


def _show(app: App, report: Report) -> None:
    wall = max(report.wall_seconds, 1e-9)
    app.show(
        f"{report.seeds:,} seeds · {report.events:,} events · {report.elections:,} elections · "
        f"{report.changes:,} changes of members · "
        f"{report.operations:,} operations · {seconds_text(report.simulated_seconds)} simulated in {seconds_text(wall)}"
    )
    app.show(
        f"{report.events / wall:,.0f} events/s · {report.simulated_seconds / wall:,.0f} s simulated/s · "
        f"trace {report.trace_hash}"
    )
    for found in report.violations:
        app.show(click.style("✗", fg="red", bold=True) + f" seed {found.seed}: {found.property}: {found.detail}")
    if not report.violations:
        app.show(click.style("✓", fg="green") + " no violation")


def _explain(app: App, case: Case, found: Found, faults: str) -> dict[str, Any]:
    """Find the shortest run that fails alike, show it, say how to see it again."""
    import msgspec

    from zcluster.sim.run import run_case
    from zcluster.sim.shrink import RUNS_MAX, shrink

    failing = msgspec.structs.replace(case, seed=found.seed)
    smaller, outcome = shrink(
        failing,
        run_case(failing),
        on_run=lambda run: app.transient(f"shrinking seed {found.seed}: {run} of {RUNS_MAX}"),
    )
    app.clear_transient()
    command = _command(app, smaller, faults)
    _show_trace(app, outcome, command)
    return {
        "seed": found.seed,
        "property": outcome.property,
        "detail": outcome.detail,
        "faults": [str(fault) for fault in outcome.schedule],
        "events": outcome.recent,
        "replay": command,
    }


def _show_trace(app: App, outcome: Outcome, command: str) -> None:
    app.show(f"\nThe shortest failing run found, seed {outcome.seed}: {outcome.property}: {outcome.detail}")
    app.show(f"Faults ({len(outcome.schedule)}):")
    for fault in outcome.schedule:
        app.show(f"  {fault}")
    app.show("The last events (time, replica, what):")
    for line in outcome.recent[-RECENT_SHOWN:]:
        app.show(f"  {line}")
    app.show(f"\nReplay: {command}")


def _command(app: App, case: Case, faults: str) -> str:
    parts = [f"{app.program} sim --engine {case.engine} --seed {case.seed}"]
    if case.nodes:
        parts.append(f"--nodes {case.nodes}")
    if faults != "all":
        parts.append(f"--faults {faults}")
    if case.only is not None:
        parts.append(f"--only {','.join(map(str, case.only)) or ','}")
    return " ".join(parts)
