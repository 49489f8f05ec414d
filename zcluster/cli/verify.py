"""The verb that compares replicas: verify."""

from __future__ import annotations

import time
from typing import Final

import click

from zcluster.cli.context import App, pass_app
from zcluster.cli.duration import DURATION
from zcluster.cli.main import verb
from zcluster.cli.table import plain_table

DEGRADED: Final = 4
DIVERGED: Final = 8


@verb("verify")
@click.option("-t", "--timeout", type=DURATION, default=30.0, metavar="TIME", help="Default 30s.")
@pass_app
@click.pass_context
def verify(ctx: click.Context, app: App, timeout: float) -> None:
    """Compare the states of all replicas at one entry of the log, while they serve.

    Exits 8 if one differs, 4 if none does but not all could be compared. The same runs by itself every verify_seconds
    (600) if something was written, and shows in `status`. Replicas that differ are a bug of zcluster, or of the
    machine's memory or disk: keep the data of the node that differs, and replace it.
    """
    cluster = app.running_cluster()
    began = time.monotonic()
    app.transient("   comparing …")
    found = cluster.verify(timeout)
    seconds = time.monotonic() - began
    app.clear_transient()
    app.emit({"cluster": cluster.name, **found, "seconds": round(seconds, 3)})
    rows = [[name, digest, "DIFFERS" if name in found["odd"] else ""] for name, digest in found["digests"].items()]
    rows += [[name, "-", "not compared"] for name in found["missing"]]
    app.show("\n".join(plain_table(("NODE", f"STATE AT ENTRY {found['index']:,}", ""), rows)))
    if not found["equal"]:
        app.error(f"the states differ: {' '.join(found['odd'])}; see: {app.command} verify --help")
        ctx.exit(DIVERGED)
    if found["missing"]:
        app.say(f"equal, but {' '.join(found['missing'])} could not be compared; see: {app.command} status")
        ctx.exit(DEGRADED)
    app.step(f"{len(rows)} equal state{'s' * (len(rows) != 1)}", "", seconds)
