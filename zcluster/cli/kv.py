"""Verbs on the replicated store: put, get, del, cas, checkpoint.

Values are bytes: text on the command line is stored as it was typed, `-` reads standard input, and `get` writes exactly
the bytes that are stored, so that `zcluster put k - < file; zcluster get k > copy` copies a file.
"""

from __future__ import annotations

import base64
import os
import sys
from typing import Any, Final

import click

from zcluster.cli.context import App, pass_app
from zcluster.cli.duration import DURATION, parse_duration
from zcluster.cli.main import LITERAL, verb

NOT_FOUND: Final = 9
NOT_SWAPPED: Final = 6

key_argument = click.argument("key")
timeout_option = click.option(
    "--timeout", type=DURATION, default=10.0, metavar="TIME", help="With all retries (default 10s)."
)


def value_bytes(text: str) -> bytes:
    """What a VALUE on the command line stands for. `-` is standard input; what was not valid text stays what it was."""
    if text != "-":
        return os.fsencode(text)
    if sys.stdin is None:
        raise click.UsageError("the value is to come from standard input, which is closed")
    return sys.stdin.buffer.read()


def value_fields(value: bytes | None, prefix: str = "value") -> dict[str, Any]:
    """A value in JSON: as text where it is text, always as base64."""
    if value is None:
        return {prefix: None, f"{prefix}_base64": None}
    try:
        text: str | None = value.decode()
    except UnicodeDecodeError:
        text = None
    return {prefix: text, f"{prefix}_base64": base64.b64encode(value).decode()}


@verb("put", context_settings=LITERAL)
@key_argument
@click.argument("value")
@timeout_option
@pass_app
def put(app: App, key: str, value: str, timeout: float) -> None:
    """Store VALUE (`-`: standard input) under KEY; returns when a majority has it on disk."""
    data = value_bytes(value)
    with app.connect() as client:
        revision = client.kv.put(key, data, timeout=timeout)
    app.say(f"stored, revision {revision}")
    app.emit({"key": key, "revision": revision})


def parse_consistency(text: str) -> Any:
    """What `kv.get` takes, from `linearizable`, `lease`, `eventual` or `bounded:50ms`. Raises: InvalidInput."""
    from zcluster.errors import InvalidInput

    if text in ("linearizable", "lease", "eventual"):
        return text
    kind, _, span = text.partition(":")
    try:
        if kind == "bounded":
            from zcluster.client.kv import bounded

            return bounded(ms=int(parse_duration(span or "?") * 1000))
    except ValueError:
        pass
    raise InvalidInput(f"consistency {text!r}: use linearizable, lease, eventual, or bounded:50ms")


@verb("get", context_settings=LITERAL)
@key_argument
@click.option(
    "--consistency",
    default="linearizable",
    metavar="HOW",
    help="linearizable (default), lease, bounded:50ms, eventual.",
)
@timeout_option
@pass_app
@click.pass_context
def get(ctx: click.Context, app: App, key: str, consistency: str, timeout: float) -> None:
    """Write the value of KEY to standard output, byte for byte; exit 9 if there is none."""
    how = parse_consistency(consistency)
    with app.connect() as client:
        value = client.kv.get(key, consistency=how, timeout=timeout)
    app.emit({"key": key, "found": value is not None, **value_fields(value)})
    if value is None:
        if not app.json:
            app.error(f"no key {key!r}")
        ctx.exit(NOT_FOUND)
    if not app.json:
        app.show_bytes(value)
        if sys.stdout.isatty() and not value.endswith(b"\n"):
            app.say()  # for the prompt's sake; what goes to a file or pipe has the stored bytes alone


@verb("del", context_settings=LITERAL)
@key_argument
@timeout_option
@pass_app
@click.pass_context
def delete(ctx: click.Context, app: App, key: str, timeout: float) -> None:
    """Delete KEY; exit 9 if there was none."""
    with app.connect() as client:
        existed = client.kv.delete(key, timeout=timeout)
    app.emit({"key": key, "existed": existed})
    if not existed:
        if not app.json:
            app.error(f"no key {key!r}")
        ctx.exit(NOT_FOUND)
    app.say("deleted")


@verb("cas", context_settings=LITERAL)
@key_argument
@click.argument("values", nargs=-1, metavar="[EXPECTED] [NEW]")
@click.option("--absent", is_flag=True, help="In place of EXPECTED: the key must not exist.")
@click.option("--delete", "remove", is_flag=True, help="In place of NEW: delete the key.")
@timeout_option
@pass_app
@click.pass_context
def cas(
    ctx: click.Context, app: App, key: str, values: tuple[str, ...], absent: bool, remove: bool, timeout: float
) -> None:
    """Replace the value of KEY if it is EXPECTED now; exit 6, changing nothing, if it is not.

    \b
    zcluster cas lock --absent me        take it if nobody has it
    zcluster cas lock me you             hand it over
    zcluster cas lock you --delete       give it back
    """
    wanted = 2 - absent - remove
    if len(values) != wanted:
        names = ["EXPECTED"] * (not absent) + ["NEW"] * (not remove)
        raise click.UsageError(
            f"cas takes KEY {' '.join(names)} here; {len(values)} given after KEY".replace("  ", " ")
        )
    if values.count("-") > 1:
        raise click.UsageError("only one value can come from standard input")
    data = [value_bytes(value) for value in values]
    expected = None if absent else data[0]
    new = None if remove else data[-1]
    with app.connect() as client:
        swapped = client.kv.cas(key, expected, new, timeout=timeout)
    app.emit({"key": key, "swapped": swapped})
    if not swapped:
        if not app.json:
            app.error(f"not swapped: {key!r} {'exists' if absent else 'has another value, or none'}")
        ctx.exit(NOT_SWAPPED)
    app.say("deleted" if remove else "swapped")


@verb("checkpoint")
@click.option("-t", "--timeout", type=DURATION, default=30.0, metavar="TIME", help="Default 30s.")
@pass_app
def checkpoint(app: App, timeout: float) -> None:
    """Have every running node write a checkpoint now, beside its normal service."""
    cluster = app.running_cluster()
    indices = cluster.checkpoint(timeout)
    for node, index in indices.items():
        app.show(f"{node}  {index:,}")
    missing = [node.name for node in cluster.spec.nodes if node.name not in indices]
    if missing:
        app.say(f"not written by {' '.join(missing)}, which did not answer")
    app.emit({"cluster": cluster.name, "checkpoints": indices, "missing": missing})
