"""`App`: what every verb is handed. The values of the global options, the cluster they choose, and how to speak.

Invariant: with --json exactly one object reaches standard output, through `emit`, which `main` checks for errors too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from zcluster.api import Client
    from zcluster.launch.cluster import Cluster

VERSION: Final = 1
"""Of every object that --json prints. It grows when a field goes or changes its meaning, not when one is added."""


class App:
    """One call of the command line."""

    def __init__(self) -> None:
        self.cluster_given: str | None = None
        self.json = False
        self.quiet = False
        self.verbose = 0
        self.no_color = False
        self.yes = False
        self.emitted = False

    # -- the chosen cluster -------------------------------------------------------------------------------------------
    @property
    def name(self) -> str:
        """The name given by -c, else by ZCLUSTER_NAME, else "default"."""
        if self.cluster_given is not None:  # empty: refused later; never taken for "default"
            return self.cluster_given
        return os.environ.get("ZCLUSTER_NAME") or "default"

    @property
    def program(self) -> str:
        """How to call zcluster again, for advice that can be pasted: by its path where the shell would not find it."""
        import shutil

        called = os.environ.get("ZCLUSTER_COMMAND")  # set by bin/zcluster
        return called if called and shutil.which("zcluster") is None else "zcluster"

    @property
    def command(self) -> str:
        """`program`, with -c where the cluster's name needs it."""
        needed = self.name != "default" and os.environ.get("ZCLUSTER_NAME") != self.name
        return f"{self.program} -c {self.name}" if needed else self.program

    def cluster(self) -> Cluster:
        """A handle on the chosen cluster, which may be stopped. Raises: NotRunning (there is none), InvalidInput."""
        from zcluster.api import find_directory
        from zcluster.errors import NotRunning
        from zcluster.launch.cluster import Cluster

        directory = find_directory(self.cluster_given)
        try:
            return Cluster(directory)
        except NotRunning:
            if os.sep in self.name:
                raise NotRunning(f"there is no cluster in {directory}") from None
            raise NotRunning(
                f"there is no cluster {directory.name!r} in {directory.parent}; start it: {self.command} up"
            ) from None

    def running_cluster(self) -> Cluster:
        """Raises: NotRunning (there is none, or it is stopped)."""
        from zcluster.errors import NotRunning

        cluster = self.cluster()
        if not cluster.running:
            raise NotRunning(f"cluster {cluster.name!r} is stopped; start it: {self.command} up")
        return cluster

    def connect(self, *, workers: bool = False) -> Client:
        """A client of the chosen cluster. Raises: NotRunning; Conflict, if `workers` are needed and it has none."""
        from zcluster.errors import Conflict

        cluster = self.running_cluster()
        if workers and cluster.spec.settings.workers == 0:
            raise Conflict(f"cluster {cluster.name!r} has no workers (--workers 0): no task can run on it")
        return cluster.connect()

    # -- speaking -----------------------------------------------------------------------------------------------------
    @property
    def plain(self) -> bool:
        """Whether colours are unwanted wherever the output goes (NO_COLOR: any value but the empty one)."""
        return self.no_color or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"

    @property
    def color(self) -> bool | None:
        """For `click.echo`: None lets it decide by whether the stream is a terminal."""
        return False if self.plain else None

    def animates(self) -> bool:
        """Whether a line on standard error may be drawn over."""
        return sys.stderr.isatty() and not self.quiet and os.environ.get("TERM") != "dumb"

    def say(self, text: str = "", *, end: str = "\n") -> None:
        """A message for people: standard error, unless -q."""
        if not self.quiet:
            click.echo(text + end, err=True, nl=False, color=self.color)

    def error(self, text: str) -> None:
        """Standard error, also with -q."""
        click.echo(click.style("error:", fg="red", bold=True) + " " + text, err=True, color=self.color)

    def show(self, text: str = "") -> None:
        """A result for people: standard output, unless --json (which `emit`s it instead)."""
        if not self.json:
            click.echo(text, color=self.color)

    def show_bytes(self, data: bytes) -> None:
        """Exactly these bytes on standard output."""
        stream = sys.stdout.buffer
        stream.write(data)
        stream.flush()

    def emit(self, fields: Mapping[str, Any]) -> None:
        """The one object of --json; does nothing without it."""
        if not self.json or self.emitted:
            return
        import json

        self.emitted = True
        merged = {"version": VERSION, **{k: v for k, v in fields.items() if k not in ("version", "format")}}
        click.echo(json.dumps(merged, ensure_ascii=False, default=str))

    def transient(self, text: str) -> None:
        """A line on a terminal that the next one is drawn over; nothing elsewhere."""
        if self.animates():
            columns = _columns() - 1
            click.echo("\r\033[K" + text[:columns], err=True, nl=False)

    def clear_transient(self) -> None:
        if self.animates():
            click.echo("\r\033[K", err=True, nl=False)

    def step(self, text: str, detail: str = "", seconds: float | None = None) -> None:
        """A step done: ` ✓ 3 nodes started          n1 n2 n3               0.4s`."""
        self.clear_transient()
        tick = click.style("✓", fg="green")
        took = f"{seconds:.1f}s" if seconds is not None else ""
        self.say(f" {tick} {text:<24} {detail:<22} {took}".rstrip())

    def confirm(self, question: str) -> None:
        """Ask on a terminal; --yes, and anything that is no terminal, means yes. Raises: click.Abort."""
        if not self.yes and not self.json and sys.stdin.isatty():
            click.confirm(question, abort=True, err=True)


def _columns() -> int:
    try:
        return max(20, os.get_terminal_size(sys.stderr.fileno()).columns)
    except (OSError, ValueError):
        return 80


pass_app = click.make_pass_decorator(App)
