"""Verbs that break things on purpose: kill, pause, resume; partition, slow, flaky, heal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import click

from zcluster.cli.cluster import complete_selector
from zcluster.cli.context import App, pass_app
from zcluster.cli.duration import DURATION, seconds_text
from zcluster.cli.main import verb

if TYPE_CHECKING:
    _ShareType = click.ParamType[float]
else:
    _ShareType = click.ParamType  # not generic before click 8.4

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


# -- the network among the replicas -----------------------------------------------------------------------------------
class Share(_ShareType):
    """5% or 0.05; gives a float from 0 to 1."""

    name = "share"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip()
        match = re.fullmatch(r"(\d{1,3}(?:\.\d{1,6})?)%|(0?\.\d{1,9}|0|1(?:\.0)?)", text)
        share = float(match[1]) / 100 if match and match[1] else float(match[2]) if match else 2.0
        if share > 1:
            self.fail(f"{text!r} is no share; write e.g. 5% or 0.05", param, ctx)
        return share


SHARE: Final = Share()
for_option = click.option(
    "--for", "seconds", type=DURATION, metavar="TIME", help="Heal by itself after that, whatever happens to us."
)


@verb("partition", short_help="Cut the network between nodes.")
@click.argument("sides", nargs=-1, metavar="[SIDE]...", shell_complete=complete_selector)
@click.option("--isolate", metavar="SELECTOR", help="Cut each of these off from all others.", multiple=True)
@click.option("--bridge", metavar="SELECTOR", help="These stay in touch with every side.", multiple=True)
@click.option(
    "--direction",
    type=click.Choice(["in", "out", "both"]),
    default="both",
    help="Cut only what the first side, or the isolated, hears (in) or sends (out).",
)
@for_option
@pass_app
def partition(
    app: App,
    sides: tuple[str, ...],
    isolate: tuple[str, ...],
    bridge: tuple[str, ...],
    direction: Any,
    seconds: float | None,
) -> None:
    """Cut the network between replicas, instead of all cuts before.

    SIDE: nodes with commas between (n1,n2), or leader, followers, random. Nodes that are not named form one side of
    their own. What is cut is the network among the replicas, checkpoints on their way included: clients still reach
    every node, on both sides, and so do workers and the router.

    A node that is started anew has a whole network. A paused one need not be told: its peers keep the cut.

    \b
      zcluster partition n1,n2 n3             two sides
      zcluster partition --isolate leader     the leader alone
      zcluster partition n1 --direction out   n1 hears the others, they do not hear it
      zcluster partition n1,n2 n4,n5 --bridge n3
    """
    if bool(sides) == bool(isolate):
        raise click.UsageError("name the sides (n1,n2 n3), or --isolate SELECTOR")
    if isolate and bridge:
        raise click.UsageError("--bridge goes with sides, not with --isolate")
    cluster = app.running_cluster()
    if isolate:
        done = cluster.isolate(isolate, direction=direction, seconds=seconds)
    else:
        done = cluster.partition(*sides, bridge=bridge, direction=direction, seconds=seconds)
    from zcluster.launch.network import lines

    names = list(cluster.nodes)
    for line in lines({"cuts": done["cuts"], "slow": {}, "flaky": {}}, names):
        app.say(line)
    if done["down"]:
        app.say(f"down, and in touch with all once started: {' '.join(done['down'])}")
    if done["untold"]:
        app.say(f"could not be told, so their peers alone keep the cut: {' '.join(done['untold'])}")
    _say_end(app, seconds)
    app.emit({"cluster": cluster.name, **done})


@verb("slow")
@click.argument("selector", shell_complete=complete_selector)
@click.argument("delay", type=DURATION, metavar="DELAY")
@for_option
@pass_app
def slow(app: App, selector: str, delay: float, seconds: float | None) -> None:
    """Delay what nodes send to their peers and hear from them, by DELAY (50ms) each way; 0 ends it.

    The network among the replicas is slow then; clients notice it only by what takes longer.
    """
    cluster = app.running_cluster()
    done = cluster.slow(selector, delay * 1000, seconds=seconds)
    names = " ".join(done["nodes"])
    app.say(f"slow by {delay * 1000:g} ms each way: {names}" if delay else f"no longer slow: {names}")
    if delay:
        _say_end(app, seconds)
    app.emit({"cluster": cluster.name, **done})


@verb("flaky")
@click.argument("selector", shell_complete=complete_selector)
@click.argument("loss", type=SHARE, default=None, metavar="[LOSS]")
@click.option("--duplicate", type=SHARE, metavar="SHARE", help="So many come twice, the second time late.")
@for_option
@pass_app
def flaky(app: App, selector: str, loss: float | None, duplicate: float | None, seconds: float | None) -> None:
    """Lose a share (5%) of what nodes send to their peers and hear from them; 0 ends it.

    Only messages among the replicas are lost. A checkpoint on its way to a replica is not: it takes a stream, where
    the system would send again what was lost.
    """
    if loss is None and duplicate is None:
        raise click.UsageError("how many? LOSS (5%; 0 ends it), or --duplicate SHARE")
    loss, duplicate = loss or 0.0, duplicate or 0.0
    cluster = app.running_cluster()
    done = cluster.flaky(selector, loss, duplicate=duplicate, seconds=seconds)
    parts = [f"{100 * share:g} % {what}" for share, what in ((loss, "lost"), (duplicate, "twice")) if share]
    names = " ".join(done["nodes"])
    app.say(f"flaky, {', '.join(parts)}: {names}" if parts else f"no longer flaky: {names}")
    if parts:
        _say_end(app, seconds)
    app.emit({"cluster": cluster.name, **done})


@verb("heal")
@pass_app
def heal(app: App) -> None:
    """End all faults of the network: partition, slow, flaky."""
    cluster = app.running_cluster()
    done = cluster.heal()
    app.say(f"the network is whole again: {' '.join(done['healed'])}")
    app.emit({"cluster": cluster.name, **done})


def _say_end(app: App, seconds: float | None) -> None:
    app.say(f"it heals by itself in {seconds_text(seconds)}" if seconds else f"end it: {app.command} heal")
