"""`check`: is a recorded history linearizable? A thin shell over `zcluster.sim.verdict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from zcluster.cli.context import App, pass_app
from zcluster.cli.duration import DURATION, seconds_text
from zcluster.cli.main import verb

if TYPE_CHECKING:
    from zcluster.sim.history import Operation
    from zcluster.sim.verdict import Verdict
    from zcluster.sim.window import Window

WRONG: Final = 8
UNDECIDED: Final = 7


@verb("check")
@click.argument("history", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--timeout", type=DURATION, default=60.0, metavar="TIME", help="Then the answer is `undecided` (default 60s)."
)
@click.option("--draw", type=click.Path(path_type=Path), metavar="FILE", help="Draw what is wrong, as HTML.")
@pass_app
@click.pass_context
def check(ctx: click.Context, app: App, history: Path, timeout: float, draw: Path | None) -> None:
    """Check that a HISTORY of put, get, delete, cas and append (`-`: standard input) is linearizable.

    Exits 0 if it is, 8 if it is not (and shows the smallest part of it that proves so), 7 if that could not be decided
    in time, 2 if the file is no history. docs/checking.md describes the format.
    """
    from zcluster.sim.verdict import check_history

    verdict = check_history(read(history), timeout)
    fields = verdict_fields(verdict)
    if draw is not None and verdict.window is not None:
        from zcluster.sim.draw import draw_window

        write(draw, draw_window(verdict.window))
        fields["drawing"] = str(draw)
    app.emit(fields)
    for line in verdict_lines(verdict):
        app.show(line)
    if draw is not None:
        app.say(f"\ndrawn in {draw}" if verdict.window is not None else "nothing to draw")
    ctx.exit({"linearizable": 0, "not_linearizable": WRONG, "undecided": UNDECIDED}[verdict.result])


def read(path: Path) -> list[Operation]:
    """Raises: InvalidInput, which names the file and, where there is one, the line."""
    from zcluster.errors import InvalidInput
    from zcluster.sim.history import BadHistory, parse_history

    try:
        with click.open_file(str(path), "rb") as file:
            return parse_history(file)
    except BadHistory as error:
        raise InvalidInput(f"{path}, {error}") from None
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from None


def write(path: Path, text: str) -> None:
    """Raises: InvalidInput."""
    from zcluster.errors import InvalidInput

    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InvalidInput(f"cannot write {path}: {error.strerror}") from None


# -- for programs -----------------------------------------------------------------------------------------------------
def verdict_fields(verdict: Verdict) -> dict[str, Any]:
    return {
        "result": verdict.result,
        "operations": verdict.operations,
        "clients": verdict.clients,
        "keys": verdict.keys,
        "seconds": round(verdict.seconds, 3),
        "failed_keys": verdict.failed_keys,
        "undecided_keys": verdict.undecided_keys,
        "window": None if verdict.window is None else _window_fields(verdict.window),
    }


def _window_fields(window: Window) -> dict[str, Any]:
    import json

    from zcluster.sim.history import encode_operation
    from zcluster.sim.wording import needs

    def encoded(operation: Operation) -> dict[str, Any]:
        return {"line": operation.line, **json.loads(encode_operation(operation))}

    return {
        "key": window.key,
        "from_start": window.from_start,
        "operations": [encoded(operation) for operation in window.operations],
        "maybe": [encoded(operation) for operation in window.maybe],
        "hidden": window.hidden,
        "order": [operation.line for operation in window.order],
        "stuck": window.stuck.line,
        "needs": needs(window.stuck),
        "possible": window.possible,
    }


# -- for people -------------------------------------------------------------------------------------------------------
def verdict_lines(verdict: Verdict) -> list[str]:
    facts = (
        f"{verdict.operations:,} operations · {verdict.clients} clients · "
        f"{verdict.keys} {'key' if verdict.keys == 1 else 'keys'} · "
        f"{seconds_text(verdict.seconds)}"
    )
    if verdict.result == "linearizable":
        return [click.style("linearizable", fg="green", bold=True) + f"   {facts}"]
    if verdict.result == "undecided":
        return [
            click.style("undecided", fg="yellow", bold=True) + f"   {facts}",
            f"Not decided in time: {_names(verdict.undecided_keys)}. Give it more with --timeout.",
        ]
    lines = [click.style("NOT linearizable", fg="red", bold=True) + f"   {facts}", ""]
    assert verdict.window is not None
    lines += window_lines(verdict.window)
    others = [key for key in verdict.failed_keys if key != verdict.window.key]
    if others:
        lines += ["", f"Also not linearizable: {_names(others)}."]
    if verdict.undecided_keys:
        lines += ["", f"Not decided in time: {_names(verdict.undecided_keys)}."]
    return lines


def _names(keys: list[str], most: int = 8) -> str:
    text = ", ".join(f"{key!r}" for key in keys[:most])
    return text + (f" and {len(keys) - most} more" if len(keys) > most else "")


def window_lines(window: Window) -> list[str]:
    """The window as a table, the longest order that works, and why there is no longer one."""
    from zcluster.cli.table import plain_table
    from zcluster.sim.window import explanation
    from zcluster.sim.wording import describe, span_text

    count = len(window.operations)
    lines = [
        f"Key {window.key!r}: no order explains {'this operation' if count == 1 else f'these {count} operations'}."
    ]
    shown = sorted([*window.operations, *window.maybe], key=lambda o: o.call)
    begin = shown[0].call
    place = {operation.line: number for number, operation in enumerate(window.order, 1)}
    rows = []
    for operation in shown:
        stuck = operation.line == window.stuck.line
        rows.append(
            [
                "✗" if stuck else str(place.get(operation.line, "")),
                str(operation.line),
                str(operation.client),
                span_text(operation, begin),
                describe(operation) + ("   (may have taken effect)" if operation.status != "ok" else ""),
            ]
        )
    lines += ["", *plain_table(["ORDER", "LINE", "CLIENT", "TIME", "OPERATION"], rows), ""]
    return lines + explanation(window)
