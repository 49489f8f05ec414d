"""The verb `events`: what happened in a cluster, as a person tells it or as programs read it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from zcluster.cli.context import App, pass_app
from zcluster.cli.main import verb

if TYPE_CHECKING:
    from zcluster.events import Event, Teller


@verb("events")
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option("-n", "--lines", "count", type=click.IntRange(0), default=50, metavar="N", help="Last ones (default 50).")
@pass_app
def events(app: App, follow: bool, count: int) -> None:
    """Tell what happened: starts and exits, elections, leaders, faults, members, checkpoints.

    A line that names a new leader says how long there was no service, as that leader saw it. With --json each event is
    an object on a line of its own, also with -f; docs/events.md has the fields.
    """
    from zcluster.cli.log_view import Follower
    from zcluster.events import FILE, Teller, parse, read

    cluster = app.cluster()
    follower = Follower({"": cluster.directory / FILE}) if follow else None  # first: nothing is lost in between
    teller = Teller()
    found = read(cluster.directory, count)
    _show(app, found, teller)
    if not found and count and not follow:
        app.say("nothing has happened yet")
    if follower is not None:
        for batch in follower.lines():
            _show(app, [event for line in batch if (event := parse(line.text)) is not None], teller)


def _show(app: App, found: list[Event], teller: Teller) -> None:
    from zcluster.events import encode

    for event in found:
        click.echo(encode(event).decode().rstrip("\n") if app.json else teller.line(event))
    sys.stdout.flush()
