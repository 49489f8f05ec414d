"""The verb for when a majority is lost for good: recover."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from zcluster.cli.cluster import StepReporter, complete_selector, show_ending
from zcluster.cli.context import App, pass_app
from zcluster.cli.duration import DURATION
from zcluster.cli.main import verb
from zcluster.cli.table import plain_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zcluster.launch.recover import Finding


@verb("recover")
@click.option(
    "--force-new", "node", metavar="NODE", help="Make the new cluster from it.", shell_complete=complete_selector
)
@click.option("--wait", "wait_s", type=DURATION, default=30.0, metavar="TIME", help="Until it is ready (default 30s).")
@pass_app
def recover(app: App, node: str | None, wait_s: float) -> None:
    """Make a new one-node cluster from one node's data when a majority of the nodes is lost for good.

    Without --force-new it only looks: what each node's data hold. With it, it says what may be lost, and asks. The old
    cluster is kept under another name. For a stopped cluster only. Also the way out when, after a power cut, a
    cluster of weak durability (interval, none) has lost a node whose vote it would need.
    """
    from zcluster.errors import InvalidInput
    from zcluster.launch import recover as launch

    cluster = app.cluster()
    if node is not None:
        cluster.spec.replica_id(node)
    app.transient("   reading the data of all nodes …")
    findings = launch.survey(cluster)
    app.clear_transient()
    if node is None:
        app.emit({"cluster": cluster.name, "nodes": [_fields(finding) for finding in findings.values()]})
        app.show("\n".join(_table(findings)))
        return
    lines = launch.explain(findings, node)
    for line in [*_table(findings), "", *lines]:
        app.say(line)
    if not app.yes:
        if app.json or not sys.stdin.isatty():
            raise InvalidInput(f"this may lose acknowledged writes: {' '.join(lines[1:])} If you mean it: --yes")
        click.confirm(f"Make a new cluster of {node} alone?", abort=True, err=True)
    began = time.monotonic()
    recovered, report, kept = launch.force_new(cluster, node, wait_s, StepReporter(app))
    app.emit({**report, "recovered_from": _fields(findings[node]), "kept": str(kept)})
    show_ending(app, recovered, report, time.monotonic() - began)
    app.say(f"\nThe old cluster is kept, stopped: {kept}")


def _table(findings: Mapping[str, Finding]) -> list[str]:
    rows = []
    for finding in findings.values():
        written = finding.log_time_ms / 1000
        rows.append(
            [
                finding.node,
                finding.state,
                f"{finding.index:,}" if finding.usable else "-",
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(written)) if written else "-",
                finding.problem or "",
            ]
        )
    return plain_table(("NODE", "DATA", "UP TO", "LAST WRITE", ""), rows)


def _fields(finding: Finding) -> dict[str, object]:
    import msgspec

    return msgspec.structs.asdict(finding)
