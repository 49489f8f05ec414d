"""The verb that moves leadership: transfer."""

from __future__ import annotations

import time

import click

from zcluster.cli.cluster import complete_selector
from zcluster.cli.context import App, pass_app
from zcluster.cli.duration import DURATION
from zcluster.cli.main import verb


@verb("transfer")
@click.argument("node", metavar="NODE", shell_complete=complete_selector)
@click.option("-t", "--timeout", type=DURATION, default=10.0, metavar="TIME", help="Then exit 7 (default 10s).")
@pass_app
def transfer(app: App, node: str, timeout: float) -> None:
    """Let NODE lead (n2, followers, random); return when it does. Nothing is lost, and no election timeout passes.

    For good, as long as it can: zcluster up --preferred-leader NODE, after a `down`.
    """
    cluster = app.running_cluster()
    began = time.monotonic()
    leader = cluster.transfer(node, timeout)
    seconds = time.monotonic() - began
    app.emit({"cluster": cluster.name, "leader": leader.name, "seconds": round(seconds, 3)})
    app.step(f"{leader.name} leads", "", seconds)
