"""Acting on clusters by name: up, down, ls.

A `Cluster` is a handle on one whose description can be read. The functions here also do for a name that nobody uses
yet, for half a creation, and for a cluster whose `cluster.json` is damaged or was written by a newer zcluster: such a
one can always be seen, stopped and removed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from zcluster import config
from zcluster.api import find_directory
from zcluster.config import ClusterSpec, load_spec, make_settings
from zcluster.errors import Conflict, FormatTooNew, InvalidInput, NotRunning
from zcluster.launch import files, layout, report
from zcluster.launch import process as system
from zcluster.launch.cluster import Cluster
from zcluster.launch.control import ANSWER_MARGIN_S, Control
from zcluster.launch.layout import create
from zcluster.launch.readiness import Progress
from zcluster.launch.sweep import end_processes

DAMAGED: Final = "damaged"
"""In `clusters`: the description of this one cannot be read."""


def up(
    name: str, settings_given: Mapping[str, Any], wait_s: float = 30.0, progress: Progress | None = None
) -> tuple[Cluster, dict[str, Any]]:
    """Start a cluster, or find it running; return when it is ready.

    Args:
        settings_given: only what was asked for explicitly: a running or stopped cluster keeps the rest as it is. A
            stopped one may get new values of `layout.CHANGEABLE`.
        progress: see `Cluster.wait_healthy`; also called with "started" or "found" first.
    Returns:
        The cluster, and what `up --json` prints. Nodes that were killed, stopped or paused run again.
    Raises: Conflict (other settings), Timeout or Degraded (it is left running, to be looked at), InvalidInput.
    """
    system.require_linux()
    began = time.monotonic()
    directory = config.cluster_directory(name)
    try:
        spec = load_spec(directory)
        created = False
    except NotRunning:
        spec = _create_or_find(name, settings_given)
        created = not spec.created
    control = Control(directory)
    found = control.running()
    if found:
        different = layout.differences(spec.settings, settings_given)
        if different:
            layout.refuse_differences(spec, different, running=True)
        control.ensure().close()
    else:
        spec = layout.prepare_start(spec, settings_given)
        found = not control.start()
    if progress is not None:
        progress("found" if found else "started", {"created": created})
    cluster = Cluster(directory)
    changed = _bring_back(cluster) if found else {}
    status = cluster.wait_healthy(wait_s, progress)
    report = up_report(status, seconds=time.monotonic() - began, found=found, created=created)
    return cluster, {**report, "started": [], "resumed": [], **changed}


def _bring_back(cluster: Cluster) -> dict[str, list[str]]:
    """Let everything run again that was killed, stopped, paused or cut off. Returns: the names, by what was done."""
    processes = cluster.control.call("status")["processes"]
    down = [p["name"] for p in processes if p["kind"] == "replica" and p["state"] in ("down", "failed")]
    paused = [p["name"] for p in processes if p["paused"]]
    of_paused_nodes = {worker for name in paused for worker in cluster.spec.worker_names(name)}
    cluster.resume("all,router")
    if any(node.get("faults") for node in cluster.status()["nodes"]):
        cluster.heal()
    cluster.start("all")
    return {"started": down, "resumed": [name for name in paused if name not in of_paused_nodes]}


def up_report(status: dict[str, Any], *, seconds: float, found: bool, created: bool) -> dict[str, Any]:
    """What `up --json` prints."""
    kept = (
        "cluster",
        "leader",
        "term",
        "nodes",
        "workers",
        "routers",
        "engine",
        "durability",
        "transport",
        "directory",
    )
    return {
        "format": report.FORMAT,
        "ready": True,
        "seconds": round(seconds, 3),
        "already_running": found,
        "created": created,
        **{key: status[key] for key in kept},
    }


def _create_or_find(name: str, settings_given: Mapping[str, Any]) -> ClusterSpec:
    """A new cluster, or the one that another command has created at this very moment."""
    try:
        return create(name, make_settings(**settings_given))
    except Conflict:
        if (config.cluster_directory(name) / "cluster.json").exists():
            return load_spec(config.cluster_directory(name))
        raise


def down(name: str, timeout: float = 10.0, *, purge: bool = False) -> bool:
    """Stop a cluster by name, or by a path to its directory; an absent one is fine.

    Args:
        timeout: seconds for a clean stop; then SIGKILL.
        purge: remove what it has on disk, too.
    Returns: whether anything ran. Raises: Conflict (`purge`: the directory holds what is not ours), StorageError.
    """
    directory = find_directory(name).absolute()
    try:
        return Cluster(directory).down(timeout, purge=purge)
    except NotRunning:  # no description: nothing was ever created here, or not wholly
        if purge and directory.is_dir():
            layout.remove_unfinished(directory)
        return False
    except (InvalidInput, FormatTooNew):
        if not (directory / "cluster.json").exists():
            raise
        ran = end_undescribed(directory, timeout)
        if purge:
            files.remove_traces(directory, config.socket_directory(directory), everything=True)
        return ran


def end_undescribed(directory: Path, timeout: float) -> bool:
    """Stop a cluster whose description cannot be read. Returns: whether anything ran.

    Its supervisor knows it by heart and stops it cleanly on SIGTERM; what is left after that is killed.
    """
    control = Control(directory)
    ran = control.running()
    supervisor = control.supervisor()
    if supervisor is not None:
        if timeout > 0:
            supervisor.signal(signal.SIGTERM)
            supervisor.exited(timeout + ANSWER_MARGIN_S)
        supervisor.close()
    end_processes(directory)
    return ran


def clusters() -> list[dict[str, Any]]:
    """All clusters under the home directory, running, stopped or damaged; quick: nobody is asked.

    What cannot be known of a damaged one is None, and `problem` says what is wrong and what to do.
    """
    found = []
    for name, spec in layout.find():
        directory = config.home() / name
        control = Control(directory)
        alive = control.processes()
        one: dict[str, Any] = {
            "cluster": name,
            "state": "running" if control.running() else "stopped",
            "running": control.running(),
            "nodes": None,
            "nodes_up": sum(i.kind == "replica" for i in alive.values()),
            "workers": sum(i.kind == "worker" for i in alive.values()),
            "engine": None,
            "durability": None,
            "transport": None,
            "directory": str(directory),
            "disk_bytes": report.directory_bytes(os.path.join(directory, "data")),
            "problem": None,
        }
        if isinstance(spec, ClusterSpec):
            settings = spec.settings
            one |= {"nodes": len(spec.nodes), "engine": settings.engine}
            one |= {"durability": settings.durability, "transport": settings.transport}
        else:
            one |= {"state": DAMAGED, "problem": str(spec)}
        found.append(one)
    return found


__all__ = ["clusters", "create", "down", "end_undescribed", "up"]
