"""Verbs that start and stop: up, down, stop, start, restart."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from zcluster.cli import engine_words as words
from zcluster.cli.context import App, pass_app
from zcluster.cli.duration import DURATION
from zcluster.cli.main import verb

if TYPE_CHECKING:
    from zcluster.launch.cluster import Cluster

SETTING_FLAGS: Final = ("nodes", "workers", "engine", "durability", "balance", "transport", "preferred_leader")
CLEAN_STOP_S: Final = 10.0
LOOK_S: Final = 1.0
"""How often a foreground `up` looks whether its cluster still runs."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP while in the foreground: a clean stop, and no error."""


@verb("up")
@click.option("-n", "--nodes", type=int, metavar="N", help="Nodes (default 3).")
@click.option("-w", "--workers", type=int, metavar="N", help="Workers a node (default 1).")
@click.option("--engine", metavar="NAME", help="Consensus protocol: raft (default) or paxos.")
@click.option("--durability", metavar="MODE", help="fsync (default), interval:10ms, none.")
@click.option("--balance", metavar="POLICY", help="round_robin (default), random, least_loaded, power_of_two.")
@click.option("--transport", metavar="KIND", help="ipc (default), tcp.")
@click.option("--preferred-leader", metavar="NODE", help="Who leads whenever it can (default: nobody is preferred).")
@click.option("--wait", "wait_s", type=DURATION, default=30.0, metavar="TIME", help="Until it is ready (default 30s).")
@click.option("-f", "--foreground", is_flag=True, help="Stay, show the logs; Ctrl-C stops the cluster, twice at once.")
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), metavar="FILE", help="In place of ./zcluster.toml."
)
@pass_app
def up(app: App, /, wait_s: float, foreground: bool, config_file: Path | None, **flags: Any) -> None:
    """Start a cluster, or find it running; return when it is ready.

    A second `up` changes nothing and says so; with other settings it exits 6 and shows the difference. Nodes that were
    killed, stopped or paused run again. Settings also come from ZCLUSTER_<SETTING>, ./zcluster.toml and
    $XDG_CONFIG_HOME/zcluster/config.toml (see: zcluster config show --origin).
    """
    if foreground:
        _on_end_signals()
    try:
        cluster = _start(app, _settings(app, flags, config_file), wait_s)
        if foreground:
            _stay(app, cluster)
    except KeyboardInterrupt as interrupt:  # whenever it comes: nothing of a foreground cluster is left running
        app.clear_transient()
        if not foreground:
            app.say(f"interrupted; what was started goes on: {app.command} status, {app.command} down")
            raise
        _stop_twice(app)
        if not isinstance(interrupt, Terminated):
            raise


def _start(app: App, given: dict[str, Any], wait_s: float) -> Cluster:
    """Start or find it, and tell."""
    began = time.monotonic()
    app.transient(f'   starting cluster "{app.name}" …')
    from zcluster.launch import named as launch

    cluster, report = launch.up(app.name, given, wait_s, StepReporter(app))
    app.emit(report)
    show_ending(app, cluster, report, time.monotonic() - began)
    return cluster


def _settings(app: App, flags: dict[str, Any], config_file: Path | None) -> dict[str, Any]:
    """What `launch.up` is to be given: everything for a new cluster, only what was explicit for one that exists."""
    from zcluster.cli.config_sources import gather
    from zcluster.config import cluster_directory

    found = gather({name: flags[name] for name in SETTING_FLAGS}, config_file=config_file)
    exists = (cluster_directory(app.name) / "cluster.json").exists()
    return {key: sourced.value for key, sourced in found.items() if sourced.explicit or not exists}


class StepReporter:
    """Each step of `launch.up` as a line; see `Cluster.wait_healthy`."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._found = False

    def __call__(self, event: str, facts: dict[str, Any]) -> None:
        app, seconds = self._app, facts.get("seconds")
        if event == "found":
            self._found = True
            app.transient(f'   cluster "{app.name}" is running; waiting for all of it …')
        elif event == "nodes":
            nodes = facts["nodes"]
            done = "up" if self._found else "started"
            app.step(f"{len(nodes)} node{'s' * (len(nodes) != 1)} {done}", " ".join(nodes), seconds)
        elif event == "leader":
            done = "there" if self._found else "elected"
            engine = facts.get("engine", words.RAFT)
            which = f"{words.term_word(engine)} {words.term_text(engine, facts['term'])}"
            app.step(f"{words.leader_word(engine)} {done}", f"{facts['leader']}, {which}", seconds)
        elif event == "workers":
            count = facts["workers"]
            app.step(f"router + {count} worker{'s' * (count != 1)} ready" if count else "router ready", "", seconds)


def show_ending(app: App, cluster: Cluster, report: dict[str, Any], seconds: float) -> None:
    """What was done and what to do with it; everything in it can be copied and pasted."""
    app.clear_transient()
    if app.quiet:
        return
    engine = f"{report['engine']} · durability {report['durability']}"
    if report["already_running"]:
        done = (("started", "started again"), ("resumed", "resumed"))
        changes = [f"{' '.join(report[key])} {what}" for key, what in done if report[key]]
        what = f"was running; {', '.join(changes)}" if changes else "is already running; nothing changed"
        app.show(f'Cluster "{cluster.name}" {what}   {engine}')
    else:
        app.show(f'Cluster "{cluster.name}" is ready in {seconds:.1f}s   {engine}')
    argument = "" if app.name == "default" else f'"{app.name}"'
    app.show(f"\n  Python     from zcluster import connect; client = connect({argument})")
    app.show(f"  Data       {_short(report['directory'])}   (kept on down)")
    app.show(f"\nTry:  {app.command} kill leader && {app.command} status\nStop: {app.command} down")


def _short(path: str) -> str:
    home = os.path.expanduser("~")
    return "~" + path[len(home) :] if home != "/" and path.startswith(home + "/") else path


def _on_end_signals() -> None:
    """In the foreground, ending the program by SIGTERM or a closed terminal stops the cluster too."""

    def end(number: int, frame: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)


def _stay(app: App, cluster: Cluster) -> None:
    """Show the logs until the cluster is stopped by somebody else."""
    from zcluster.cli.log_view import Follower
    from zcluster.cli.observe import log_files, print_lines

    app.say("\nIn the foreground: Ctrl-C stops the cluster, twice at once.")
    look_at = time.monotonic() + LOOK_S
    for lines in Follower(log_files(cluster, ())).lines():
        if not app.json:
            print_lines(app, lines)
        if time.monotonic() >= look_at:
            if not cluster.running:
                app.say(f'cluster "{cluster.name}" was stopped')
                return
            look_at = time.monotonic() + LOOK_S


def _stop_twice(app: App) -> None:
    """Stop cleanly; at once when interrupted meanwhile, and not to be interrupted then."""
    from zcluster.launch import named as launch

    try:
        app.say("\nstopping (Ctrl-C again: at once)")
        launch.down(app.name, CLEAN_STOP_S)
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with suppress(ValueError):
                signal.signal(number, signal.SIG_IGN)
        launch.down(app.name, 0)
    app.say("stopped; the data are kept")


@verb("down")
@click.option("--purge", is_flag=True, help="Remove the data too.")
@click.option("--all", "every", is_flag=True, help="All clusters; with --purge the stopped ones too.")
@click.option("-t", "--timeout", type=DURATION, default=10.0, metavar="TIME", help="Then SIGKILL (default 10s).")
@pass_app
@click.pass_context
def down(ctx: click.Context, app: App, purge: bool, every: bool, timeout: float) -> None:
    """Stop a cluster; its data are kept. One that does not run is fine."""
    from zcluster.api import find_directory
    from zcluster.errors import Error, InvalidInput
    from zcluster.launch import named as launch

    if every and app.cluster_given is not None:
        raise InvalidInput("--all and -c contradict each other")
    names = [app.name]
    if every:
        names = [c["cluster"] for c in launch.clusters() if purge or c["running"]]
    doomed = [name for name in names if purge and find_directory(name).exists()]
    if doomed:
        app.confirm(f"Remove {', '.join(doomed)} with all data?")
    done: list[dict[str, Any]] = []
    failed: Error | None = None
    for name in names:
        app.transient(f"   stopping {name} …")
        existed = find_directory(name).exists()
        try:
            ran = launch.down(name, timeout, purge=purge)
        except Error as error:
            if not every:
                raise
            app.clear_transient()
            app.error(f"{name}: {error}")  # and on to the others
            failed = failed or error
            done.append({"cluster": name, "error": {"type": type(error).__name__, "message": str(error)}})
            continue
        app.clear_transient()
        done.append({"cluster": name, "was_running": ran, "purged": purge and existed})
        what = "stopped" if ran else "was not running" if existed else "does not exist"
        kept = "; its data are removed" if purge and existed else "; its data are kept" if ran else ""
        app.say(f'Cluster "{name}" {what}{kept}')
    if every and not names:
        app.say("There is no cluster" if purge else "No cluster is running")
    app.emit({"clusters": done} if every else done[0])
    if failed is not None:
        ctx.exit(failed.exit_code)


def complete_selector(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of nodes and roles for the shell."""
    try:
        names = [node.name for node in ctx.ensure_object(App).cluster().spec.nodes]
    except Exception:
        names = []
    return [n for n in (*names, "leader", "followers", "random", "all") if n.startswith(incomplete)]


nodes_argument = click.argument("nodes", nargs=-1, metavar="[NODE]...", shell_complete=complete_selector)


@verb("stop")
@nodes_argument
@click.option("-t", "--timeout", type=DURATION, default=10.0, metavar="TIME", help="Then SIGKILL (default 10s).")
@pass_app
def stop(app: App, nodes: tuple[str, ...], timeout: float) -> None:
    """Stop nodes cleanly, all by default; they stay down until `start`."""
    cluster = app.running_cluster()
    names = cluster.stop(",".join(nodes) or "all", timeout=timeout)
    down = [name for name in names if name in cluster.nodes]  # the others are restarted at once
    again = "" if len(down) == len(cluster.nodes) else " ".join(down)
    app.say(f"stopped {' '.join(names)}" + (f"; start again: {app.command} start {again}".rstrip() if down else ""))
    app.emit({"cluster": cluster.name, "stopped": names})


@verb("start")
@nodes_argument
@click.option("--wipe", is_flag=True, help="Empty its disk first: it gets everything from the others.")
@pass_app
def start(app: App, nodes: tuple[str, ...], wipe: bool) -> None:
    """Start nodes that are down, all by default; does nothing to running ones.

    With --wipe one node comes back without its data, under a new replica id: the others agree that the old one is no
    member any more, then its disk is emptied, and it votes again once it has caught up. So a lost disk is replaced.
    """
    cluster = app.running_cluster()
    if wipe:
        _wipe(app, cluster, nodes)
    names = cluster.start(",".join(nodes) or "all")
    app.say(f"running: {' '.join(names)}")
    if wipe:
        app.say(f"{names[0]} catches up, then it votes; wait for it: {app.command} wait --for healthy")
    app.emit({"cluster": cluster.name, "running": names, "wiped": names if wipe else []})


def _wipe(app: App, cluster: Cluster, nodes: tuple[str, ...]) -> None:
    if len(nodes) != 1 or nodes[0] not in cluster.nodes:
        raise click.UsageError(f"--wipe takes the name of one node: {', '.join(cluster.nodes)}")
    app.confirm(f"Empty the disk of {nodes[0]}?")
    began = time.monotonic()
    cluster.wipe(nodes[0], progress=lambda text: app.transient(f"   wiping {nodes[0]}: {text} …"))
    app.step(f"{nodes[0]} is empty", "", time.monotonic() - began)


@verb("scale")
@click.argument("nodes", type=int, metavar="N")
@click.option("-t", "--timeout", type=DURATION, default=60.0, metavar="TIME", help="Then exit 7 (default 60s).")
@pass_app
def scale(app: App, nodes: int, timeout: float) -> None:
    """Let the cluster have N nodes, 1 to 9; it serves on meanwhile.

    New nodes vote once they have caught up. The nodes with the highest numbers go: their workers finish what they run,
    then their data are removed. When it is interrupted it goes on by itself; to undo it, scale back.
    """
    cluster = app.running_cluster()
    before, began = list(cluster.nodes), time.monotonic()
    app.transient(f"   {len(before)} → {nodes} nodes …")
    try:
        done = cluster.scale(
            nodes, timeout=timeout, progress=lambda text: app.transient(f"   {len(before)} → {nodes} nodes: {text} …")
        )
    except KeyboardInterrupt:
        app.clear_transient()
        app.say(f"interrupted; it goes on: {app.command} status. To undo it: {app.command} scale {len(before)}")
        raise
    seconds = time.monotonic() - began
    now = done["nodes"]
    count = f"{len(now)} node{'s' * (len(now) != 1)}"
    if not done["changed"]:
        app.clear_transient()
        app.say(f"it has {count} already: {' '.join(now)}")
    else:
        app.step(f"{len(before)} → {count}", " ".join(now), seconds)
        for name in done["absent"]:
            app.say(f"{name} is down; it joins when it is started: {app.command} start {name}")
    app.emit({"cluster": cluster.name, **done, "seconds": round(seconds, 3)})


@verb("restart")
@nodes_argument
@click.option("-t", "--timeout", type=DURATION, default=10.0, metavar="TIME", help="For a clean stop (default 10s).")
@pass_app
def restart(app: App, nodes: tuple[str, ...], timeout: float) -> None:
    """Restart nodes one after the other, all by default; the cluster serves on meanwhile."""
    cluster = app.running_cluster()
    names = cluster.resolve(",".join(nodes) or "all")
    for name in names:
        began = time.monotonic()
        app.transient(f"   restarting {name} …")
        cluster.restart(name, timeout=timeout)
        app.step(f"{name} restarted", "", time.monotonic() - began)
    app.emit({"cluster": cluster.name, "restarted": names})
