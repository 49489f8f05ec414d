"""Verbs that save a cluster to a file and make one from it: backup, restore."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from zcluster.cli.cluster import StepReporter, complete_selector, show_ending
from zcluster.cli.context import App, pass_app
from zcluster.cli.duration import DURATION
from zcluster.cli.main import verb
from zcluster.cli.table import size_text

if TYPE_CHECKING:
    from zcluster.storage.backup_file import Manifest

POLITE: Final = 15
"""By how much this process lowers its priority: the cluster serves meanwhile, on the same processors."""

file_argument = click.argument("file", type=click.Path(path_type=Path), metavar="FILE")


@verb("backup")
@file_argument
@click.option("--node", metavar="NODE", help="From this node (default: a follower).", shell_complete=complete_selector)
@click.option("--force", is_flag=True, help="Replace FILE if it exists (as --yes does).")
@click.option("--verify", "only_verify", is_flag=True, help="Back nothing up: check that FILE is whole.")
@click.option("-t", "--timeout", type=DURATION, default=30.0, metavar="TIME", help="Default 30s.")
@pass_app
def backup(app: App, file: Path, node: str | None, force: bool, only_verify: bool, timeout: float) -> None:
    """Save all keys of a running cluster to FILE, while it serves.

    Everything acknowledged before the call is in it. An existing file is left alone (exit 6) unless --force is given;
    a backup that was changed or cut off is found out (exit 8) by --verify, and by `restore`.
    """
    from zcluster.launch import backup as launch

    if only_verify:
        manifest = launch.inspect(file)
        app.emit(_fields(file, manifest))
        app.show(f"{file} is whole: {_summary(manifest)}")
        return
    cluster = app.running_cluster()
    os.nice(POLITE)
    began = time.monotonic()
    app.transient("   writing a checkpoint …")

    def progress(done: int, size: int) -> None:
        app.transient(f"   copying {size_text(done)} of {size_text(size)} …")

    manifest = launch.backup(cluster, file, node=node, force=force or app.yes, timeout=timeout, progress=progress)
    app.clear_transient()
    seconds = time.monotonic() - began
    app.emit({**_fields(file, manifest), "seconds": round(seconds, 3)})
    app.show(f"{file}: {_summary(manifest)}, from {manifest.node} in {seconds:.1f}s")
    app.say(f"restore: {app.program} -c NEW_NAME restore {file}")


def _summary(manifest: Manifest) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.created_ms / 1000))
    keys = f"{manifest.keys:,} key{'s' * (manifest.keys != 1)}"
    return f'{keys} of cluster "{manifest.cluster}" at revision {manifest.revision:,}, {when}'


def _fields(file: Path, manifest: Manifest) -> dict[str, Any]:
    import msgspec

    fields = msgspec.structs.asdict(manifest)
    return {"file": str(file.absolute()), "backup_format": fields.pop("format"), **fields}


@verb("restore")
@file_argument
@click.option("-n", "--nodes", type=int, metavar="N", help="Nodes (default: as many as were backed up).")
@click.option("-w", "--workers", type=int, metavar="N", help="Workers a node.")
@click.option("--engine", metavar="NAME", help="Consensus protocol; may be another one than before.")
@click.option("--durability", metavar="MODE", help="fsync, interval:10ms, none.")
@click.option("--balance", metavar="POLICY", help="round_robin, random, least_loaded, power_of_two.")
@click.option("--transport", metavar="KIND", help="ipc, tcp.")
@click.option("--wait", "wait_s", type=DURATION, default=30.0, metavar="TIME", help="Until it is ready (default 30s).")
@pass_app
def restore(app: App, /, file: Path, wait_s: float, **flags: Any) -> None:
    """Make a new cluster (-c NAME) from the backup in FILE; return when it is ready.

    Settings not given are those of the cluster that was backed up. A cluster of that name is never touched (exit 6).
    A damaged file (exit 8) or one of a newer zcluster (exit 6) is refused, and nothing is made then.
    """
    from zcluster.launch import backup as launch

    given = {name: value for name, value in flags.items() if value is not None}
    began = time.monotonic()
    app.transient(f"   checking {file} …")

    made = False

    def planted(manifest: Manifest) -> None:
        nonlocal made
        made = True
        app.step("state restored", _summary(manifest))
        app.transient(f'   starting cluster "{app.name}" …')

    try:
        cluster, report, manifest = launch.restore(file, app.name, given, wait_s, StepReporter(app), planted)
    except KeyboardInterrupt:
        app.clear_transient()
        if made:
            app.say(f"interrupted; the new cluster goes on: {app.command} status, {app.command} down --purge")
        raise
    app.emit({**report, "restored": _fields(file, manifest)})
    show_ending(app, cluster, report, time.monotonic() - began)
