"""`chaos`: faults on a running cluster while clients of its own watch it; a thin shell over `zcluster.chaos`."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from zcluster.cli.check import UNDECIDED, WRONG, verdict_fields, verdict_lines
from zcluster.cli.context import App, pass_app
from zcluster.cli.duration import DURATION, seconds_text
from zcluster.cli.main import verb

if TYPE_CHECKING:
    from zcluster.chaos.run import Done, Outcome
    from zcluster.chaos.schedule import Fault

NOT_HEALTHY: Final = 4


@verb("chaos")
@click.option("--every", type=DURATION, default=5.0, metavar="TIME", help="A fault so often (default 5s).")
@click.option("--for", "span", type=DURATION, default=60.0, metavar="TIME", help="How long (default 1m).")
@click.option("--seed", type=click.IntRange(0), help="Of the schedule; the same one, the same faults (default: drawn).")
@click.option(
    "--faults",
    default=None,
    metavar="LIST",
    help="kill,pause,partition,slow,flaky (default: these); kill-all and split stop the service meanwhile.",
)
@click.option("--callers", type=int, default=8, metavar="N", help="Clients that use the store meanwhile (default 8).")
@click.option("--rate", type=float, default=400.0, metavar="R", help="Their operations a second, together (400).")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Keep the history."
)
@click.option("--timeout", type=DURATION, default=60.0, metavar="TIME", help="For the verdict (default 60s).")
@click.option("--dry-run", is_flag=True, help="Print the schedule, and do nothing.")
@pass_app
@click.pass_context
def chaos(
    ctx: click.Context,
    app: App,
    /,
    every: float,
    span: float,
    seed: int | None,
    faults: str | None,
    callers: int,
    rate: float,
    output: Path | None,
    timeout: float,
    dry_run: bool,
) -> None:
    """Do faults to a running cluster, and check that it keeps its word.

    Nodes are killed and started again, frozen, cut off, slowed down, one fault at a time, so that a majority is always
    there. (kill-all and split take it away while they last; so does a kill or pause where there are only one or two
    nodes.) Clients of the run's own put, get, delete, cas and append meanwhile, under keys that nobody else uses and
    that are removed in the end; the history of what they saw is checked as by `check`. Tasks on killed workers run
    again.

    However it ends, also by Ctrl-C, all faults are ended. Exits 0 if the history is linearizable, 8 if it is not (and
    keeps it), 7 if that could not be decided, 4 if the cluster is not healthy afterwards.
    """
    from zcluster.chaos.run import Chaos
    from zcluster.chaos.schedule import DEFAULT_KINDS, parse_kinds

    cluster = app.cluster() if dry_run else app.running_cluster()
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    kinds = parse_kinds(faults) if faults is not None else DEFAULT_KINDS
    watcher = _Watcher(app, span)
    planned = Chaos(
        cluster, seed=seed, every_s=every, for_s=span, kinds=kinds, callers=callers, rate=rate, watcher=watcher
    )
    if dry_run:
        for fault in planned.schedule:
            app.show(f"{fault.number:4d} {fault.at_s:8.1f}s  {fault} for {seconds_text(fault.lasts_s)}")
        app.emit({"cluster": cluster.name, "seed": seed, "schedule": [_fault_fields(f) for f in planned.schedule]})
        return
    app.say(
        f"chaos on {cluster.name}: {_count(len(cluster.nodes), 'node')} · seed {seed} · "
        f"a fault every {seconds_text(every)} for {seconds_text(span)} · "
        f"{_count(callers, 'caller')}, {rate:,.0f} operations/s"
    )
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # a KeyboardInterrupt: what was begun is ended
    outcome = planned.run(history=output, judge_s=timeout)
    app.clear_transient()
    app.emit({"cluster": cluster.name, **outcome_fields(outcome)})
    for line in outcome_lines(outcome):
        app.show(line)
    code = {"linearizable": 0, "not_linearizable": WRONG, "undecided": UNDECIDED}[outcome.verdict.result]
    ctx.exit(code or (NOT_HEALTHY if outcome.problems else 0))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


class _Watcher:
    """Tells people how a run goes on: a line a fault, and one that is drawn over."""

    def __init__(self, app: App, span: float) -> None:
        self._app = app
        self._span = span

    def begins(self, schedule: Sequence[Fault]) -> None:
        pass

    def tick(self, seconds: float, writes: int, errors: int, now: str) -> None:
        self._app.transient(
            f"   {seconds_text(seconds)} of {seconds_text(self._span)} · {writes:,} writes · {errors} errors"
            + (f" · {now}" if now else "")
        )

    def done(self, done: Done) -> None:
        self._app.clear_transient()
        self._app.say(done_line(done))

    def says(self, text: str) -> None:
        self._app.transient(f"   {text} …")


def done_line(done: Done) -> str:
    text = f"{done.text} for {seconds_text(done.fault.lasts_s)}"
    line = f"{done.fault.number:4d} {done.at_s:8.1f}s  {text:<58} {done.without_write_ms:7,.0f} ms without a write"
    return line + (f"   ({done.problem})" if done.problem else "")


def outcome_lines(outcome: Outcome) -> list[str]:
    counts = outcome.statuses
    lines = verdict_lines(outcome.verdict)
    lines += [
        f"{_count(len(outcome.done), 'fault')} in {seconds_text(outcome.seconds)} · seed {outcome.seed} · "
        f"{counts['ok']:,} ok, {counts['fail']:,} failed, {counts['unknown']:,} unknown · "
        f"longest without a write {outcome.longest_without_write_ms:,.0f} ms"
    ]
    lines += [f"After the faults: {problem}" for problem in outcome.problems]
    return lines + ([f"History: {outcome.history}"] if outcome.history is not None else [])


def _fault_fields(fault: Fault) -> dict[str, Any]:
    import msgspec

    return msgspec.structs.asdict(fault) | {"text": str(fault)}


def outcome_fields(outcome: Outcome) -> dict[str, Any]:
    return {
        "seed": outcome.seed,
        "seconds": round(outcome.seconds, 3),
        "faults": [
            _fault_fields(done.fault)
            | {
                "text": done.text,
                "nodes": done.nodes,
                "began_s": round(done.at_s, 3),
                "without_write_ms": round(done.without_write_ms, 3),
                "problem": done.problem or None,
            }
            for done in outcome.done
        ],
        "operations": outcome.statuses,
        "longest_without_write_ms": round(outcome.longest_without_write_ms, 3),
        "history": str(outcome.history) if outcome.history is not None else None,
        "problems": outcome.problems,
        "verdict": verdict_fields(outcome.verdict),
    }
