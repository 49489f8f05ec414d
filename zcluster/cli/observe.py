"""Verbs that look: ls, wait, status, logs."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from zcluster.cli.cluster import complete_selector
from zcluster.cli.context import App, pass_app
from zcluster.cli.duration import DURATION
from zcluster.cli.main import verb
from zcluster.cli.table import plain_table, size_text

if TYPE_CHECKING:
    from zcluster.cli.log_view import Line
    from zcluster.launch.cluster import Cluster

WATCH_S: Final = 0.5
_COMMAND: Final = re.compile(r"(^|: )zcluster ")
_PALETTE: Final = ("cyan", "magenta", "blue", "green", "yellow", "bright_cyan", "bright_magenta", "bright_blue")


@verb("ls")
@pass_app
def list_clusters(app: App) -> None:
    """List all clusters, running and stopped."""
    from zcluster.config import home
    from zcluster.launch import named as launch

    found = launch.clusters()
    app.emit({"clusters": found})
    if not found:
        app.say(f"There is no cluster in {home()}; start one: zcluster up")
        return
    rows = [
        [
            each["cluster"],
            each["state"],
            f"{each['nodes_up']}/{each['nodes'] or '?'}",
            str(each["workers"]),
            each["engine"] or "?",
            each["durability"] or "?",
            size_text(each["disk_bytes"]),
            each["directory"],
        ]
        for each in found
    ]
    header = ("CLUSTER", "STATE", "NODES", "WORKERS", "ENGINE", "DURABILITY", "DISK", "DIRECTORY")
    app.show("\n".join(plain_table(header, rows)))
    for each in found:
        if each["problem"]:
            app.say(f"{each['cluster']}: {each['problem']}")


@verb("wait")
@click.option(
    "--for",
    "condition",
    default="healthy",
    metavar="WHAT",
    help="leader, healthy (default), or a node that is to answer.",
    shell_complete=lambda c, p, i: [n for n in ("healthy", *complete_selector(c, p, i)) if n.startswith(i)],
)
@click.option("-t", "--timeout", type=DURATION, default=30.0, metavar="TIME", help="Then exit 7 (default 30s).")
@pass_app
def wait(app: App, condition: str, timeout: float) -> None:
    """Wait until there is a leader, all is healthy, or a node answers."""
    cluster = app.running_cluster()
    began = time.monotonic()
    cluster.wait(condition, timeout)
    seconds = time.monotonic() - began
    app.step(f"{condition}", "", seconds)
    app.emit({"cluster": cluster.name, "for": condition, "seconds": round(seconds, 3)})


@verb("status")
@click.option("--watch", is_flag=True, help="Go on until Ctrl-C.")
@pass_app
@click.pass_context
def status(ctx: click.Context, app: App, watch: bool) -> None:
    """Show the state of a cluster and of every node.

    Exits 0 when healthy, 3 when stopped, 4 when degraded, 5 without a quorum.
    """
    from zcluster.cli.status_view import EXIT_CODES, colored, plain

    if watch and app.json:
        raise click.UsageError("--json prints one object; it cannot watch")
    cluster = app.cluster()
    if watch:
        _watch(app, cluster)
        return
    found = cluster.status()
    app.emit(found)
    if not app.json:
        found = _with_own_advice(app, found)
        if sys.stdout.isatty():
            console = _console(app)
            console.print(colored(found, console.width))
        else:
            app.show(plain(found))
    ctx.exit(EXIT_CODES[found["state"]])


def _with_own_advice(app: App, found: dict[str, Any]) -> dict[str, Any]:
    """Advice as it can be pasted here: see `App.program`. A command stands at the beginning or behind a colon."""
    return found | {"fix": [_COMMAND.sub(rf"\g<1>{app.program} ", fix) for fix in found.get("fix", ())]}


def _console(app: App) -> Any:
    from rich.console import Console

    return Console(color_system=None if app.plain else "auto", highlight=False)


def _watch(app: App, cluster: Cluster) -> None:
    """Draw the status again and again on a terminal; elsewhere print it whenever its first line changes."""
    from zcluster.cli.status_view import colored, plain

    if sys.stdout.isatty():
        from rich.live import Live

        console = _console(app)
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                found = _with_own_advice(app, cluster.status())
                live.update(colored(found, console.width), refresh=True)
                time.sleep(WATCH_S)
    last = ""
    while True:
        text = plain(_with_own_advice(app, cluster.status()))
        if text.partition("\n")[0] != last:
            last = text.partition("\n")[0]
            app.show(text)
            sys.stdout.flush()
        time.sleep(WATCH_S)


@verb("logs")
@click.argument("nodes", nargs=-1, metavar="[NODE]...", shell_complete=complete_selector)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, until Ctrl-C.")
@click.option(
    "-n", "--lines", "count", type=click.IntRange(0), default=50, metavar="N", help="Last lines (default 50)."
)
@pass_app
def logs(app: App, nodes: tuple[str, ...], follow: bool, count: int) -> None:
    """Show the logs of nodes with their workers, or of single processes (n1.w1, router, supervisor)."""
    from zcluster.cli.log_view import Follower, recent

    if follow and app.json:
        raise click.UsageError("--json prints one object; it cannot follow")
    cluster = app.cluster()
    files = log_files(cluster, nodes)
    follower = Follower(files) if follow else None  # first: what is added while the rest is read is not lost
    lines = recent(files, count)
    app.emit({"cluster": cluster.name, "lines": [line._asdict() for line in lines]})
    if not app.json:
        print_lines(app, lines)
    if not lines and not follow:
        app.say("nothing was logged yet")
    if follower is not None:
        for batch in follower.lines():
            print_lines(app, batch)


def log_files(cluster: Cluster, names: Iterable[str]) -> dict[str, Path]:
    """Process -> its log. A node stands for its replica and its workers; no names: everything. Raises: InvalidInput."""
    directory = cluster.directory / "logs"
    spec = cluster.spec
    of_node = {node.name: [node.name, *spec.worker_names(node.name)] for node in spec.nodes}
    everything = [*(p for group in of_node.values() for p in group), "router", "supervisor"]
    chosen: dict[str, None] = {}
    for name in names:
        if name == "supervisor":
            chosen[name] = None
            continue
        for found in [name] if name in everything else cluster.resolve(name):
            chosen |= dict.fromkeys(of_node.get(found, [found]))
    return {process: directory / f"{process}.log" for process in chosen or everything}


def print_lines(app: App, lines: Iterable[Line]) -> None:
    """`n1.w1 | text`, a colour a process."""
    for line in lines:
        color = _PALETTE[sum(line.process.encode()) % len(_PALETTE)]
        app.show(click.style(f"{line.process:<10}", fg=color) + "| " + line.text)
    sys.stdout.flush()
