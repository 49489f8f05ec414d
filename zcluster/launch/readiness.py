"""When is a cluster ready, and when is it hopeless to wait on? Pure judgement of what others have asked and heard."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from zcluster import config
from zcluster.config import ClusterSpec
from zcluster.errors import Degraded
from zcluster.launch import files, probe

GIVE_UP_DEATHS: Final = 6
"""A process that has died this often right after its start will not make the cluster ready: say so early."""

Progress = Callable[[str, dict[str, Any]], None]
"""Called with a step towards readiness, once each: "nodes", "leader", "workers", and what is known then."""


def announces_itself(spec: ClusterSpec, connections: probe.Connections) -> bool:
    """Has a node just said that it leads itself?"""
    return any(spec.node_name(leader) == name for name, (leader, _) in connections.announced.items())


class Steps:
    """Reports each step towards readiness once, as it is reached."""

    def __init__(self, spec: ClusterSpec, progress: Progress | None) -> None:
        self._spec = spec
        self._progress = progress or (lambda event, facts: None)
        self._last = time.monotonic()
        self._todo = ["nodes", "leader", "workers"]

    def advance(self, connections: probe.Connections) -> bool:
        """Returns: whether everything seems to be there."""
        spec, announced = self._spec, connections.announced
        nodes = [n.name for n in spec.nodes]
        leader, term = max(((ld, t) for ld, t in announced.values() if ld), key=lambda c: c[1], default=(0, 0))
        name = spec.node_name(leader)
        workers = {w["name"] for w in (connections.router or {}).get("workers", ())}
        wanted = {w for n in nodes for w in spec.worker_names(n)}
        reached = {
            "nodes": len(announced) == len(nodes),
            "leader": name is not None and announced.get(name, (0, 0))[0] == leader,
            "workers": connections.router is not None and wanted <= workers,
        }
        while self._todo and reached[self._todo[0]]:
            self._report(name, term)
        return all(reached.values())

    def finish(self, status: dict[str, Any]) -> None:
        """The cluster is ready: report the steps that nobody has announced to us."""
        while self._todo:
            self._report(status["leader"], status["term"])

    def _report(self, leader: str | None, term: int) -> None:
        now = time.monotonic()
        facts = {
            "nodes": [n.name for n in self._spec.nodes],
            "leader": leader,
            "term": term,
            "engine": self._spec.settings.engine,
            "workers": len(self._spec.nodes) * self._spec.settings.workers,
            "seconds": now - self._last,
        }
        self._progress(self._todo.pop(0), facts)
        self._last = now


def check_hopeless(spec: ClusterSpec, status: dict[str, Any], processes: list[dict[str, Any]]) -> None:
    """Raises: Degraded, when a replica refuses to start or a process dies again and again."""
    failed = [f"{n['name']}: {n['failure']}" for n in status["nodes"] if n["failure"]]
    if failed:
        raise Degraded(f"{'; '.join(failed)}. See: {config.command(spec.path)} logs")
    for process in processes:
        if process["quick_deaths"] >= GIVE_UP_DEATHS:
            log = spec.path / "logs" / f"{process['name']}.log"
            last_words = files.log_tail(log, 5) or "(empty; if the disk is full: zcluster doctor)"
            raise Degraded(f"{process['name']} keeps dying ({process['exit']}); the end of {log}:\n{last_words}")
