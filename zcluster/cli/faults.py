"""Verbs that break things on purpose: kill, pause, resume."""

from __future__ import annotations

import click

from zcluster.cli.cluster import complete_selector
from zcluster.cli.context import App, pass_app
from zcluster.cli.main import verb

selector_argument = click.argument(
    "selectors", nargs=-1, required=True, metavar="SELECTOR...", shell_complete=complete_selector
)


@verb("kill")
@selector_argument
@click.option("--signal", "signal_name", default="KILL", metavar="NAME", help="KILL (default), TERM, HUP, ...")
@pass_app
def kill(app: App, selectors: tuple[str, ...], signal_name: str) -> None:
    """Kill nodes, workers or the router.

    SELECTOR: n1, leader, followers, random, all, a worker (n1.w1), router, or several. A killed node stays
    down until `start`; a worker or the router is restarted at once.
    """
    cluster = app.running_cluster()
    names = cluster.kill(",".join(selectors), signal_name)
    nodes = [name for name in names if name in cluster.nodes]
    name = signal_name.upper().removeprefix("SIG")
    app.say(f"{'killed' if name == 'KILL' else f'SIG{name} sent to'} {' '.join(names) or 'nothing'}")
    if nodes and name in ("KILL", "TERM", "INT"):
        app.say(f"start again: {app.command} start {' '.join(nodes)}")
    app.emit({"cluster": cluster.name, "killed": names, "signal": f"SIG{name}"})


@verb("pause")
@selector_argument
@pass_app
def pause(app: App, selectors: tuple[str, ...]) -> None:
    """Freeze nodes (SIGSTOP): they hang but do not die."""
    cluster = app.running_cluster()
    names = cluster.pause(",".join(selectors))
    app.say(f"paused {' '.join(names) or 'nothing'}; go on: {app.command} resume {' '.join(names)}".rstrip())
    app.emit({"cluster": cluster.name, "paused": names})


@verb("resume")
@click.argument("selectors", nargs=-1, metavar="[SELECTOR]...", shell_complete=complete_selector)
@pass_app
def resume(app: App, selectors: tuple[str, ...]) -> None:
    """Let paused nodes go on, all by default."""
    cluster = app.running_cluster()
    names = cluster.resume(",".join(selectors) or "all")
    app.say(f"resumed {' '.join(names) or 'nothing'}")
    app.emit({"cluster": cluster.name, "resumed": names})
