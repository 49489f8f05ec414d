"""`Cluster`: the handle on a running cluster that the command line and users hold.

A handle keeps nothing open and remembers nothing that may change: every property is asked afresh, in bounded time, so
a handle may be used from any thread, survives a fork, and never shows a dead process.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zcluster import config, events, wire
from zcluster.config import load_spec
from zcluster.errors import InvalidInput, NoQuorum, NotRunning, Timeout
from zcluster.launch import files, probe, readiness, report
from zcluster.launch import process as system
from zcluster.launch.control import Control
from zcluster.launch.handles import Node, Nodes, ProcessHandle
from zcluster.launch.readiness import Progress

if TYPE_CHECKING:
    from zcluster.api import Client

ANSWER_S: Final = 0.3
"""How long a silent replica is waited for when it is asked how it is."""


class Cluster:
    """A handle on the cluster in `directory`. Raises: NotRunning (there is none), FormatTooNew, InvalidInput."""

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory).absolute()
        self.spec = load_spec(self.directory)
        self.control = Control(self.directory)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cluster) and self.spec.cluster_id == other.spec.cluster_id

    def __hash__(self) -> int:
        return hash(self.spec.cluster_id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} in {self.directory}>"

    # -- looking ------------------------------------------------------------------------------------------------------
    @property
    def name(self) -> str:
        return self.spec.name

    def identity(self, process: str) -> system.Identity | None:
        """The living process of that name, None when it is dead."""
        identity = files.read_run_file(self.directory, process)
        return identity if identity is not None and system.living(identity) is not None else None

    @property
    def running(self) -> bool:
        """Whether any process of the cluster is alive."""
        return self.control.running()

    @property
    def nodes(self) -> Nodes:
        return Nodes(self)

    @property
    def routers(self) -> Sequence[ProcessHandle]:
        """The running routers: one, or none while it restarts."""
        return self._of_kind("router")

    @property
    def workers(self) -> Sequence[ProcessHandle]:
        """The running workers of all nodes."""
        return self._of_kind("worker")

    def _of_kind(self, kind: str) -> list[ProcessHandle]:
        return [ProcessHandle(self, i) for i in self.control.processes().values() if i.kind == kind]

    def answering(self) -> list[str]:
        """Nodes that can answer: alive and not frozen."""
        names = []
        for node in self.spec.nodes:
            identity = files.read_run_file(self.directory, node.name)
            stat = system.living(identity) if identity is not None else None
            if stat is not None and not stat.paused:
                names.append(node.name)
        return names

    @property
    def leader(self) -> Node | None:
        """The running node that leads in the highest term, asked afresh; None when there is none right now."""
        answers = probe.statuses(self.spec, self.answering(), timeout_s=ANSWER_S)
        name, _ = report.find_leader(self.spec, answers)
        return self.nodes[name] if name is not None and self.identity(name) is not None else None

    def wait_leader(self, timeout: float = 30.0) -> Node:
        """The leader, as soon as there is one. Raises: Timeout (a TimeoutError)."""
        give_up = time.monotonic() + timeout
        connections: probe.Connections | None = None
        try:
            while (leader := self.leader) is None:
                if time.monotonic() >= give_up:
                    raise Timeout(f"no leader within {timeout:g} s; see: {config.command(self.directory)} status")
                if connections is None:
                    connections = probe.Connections(self.spec, [n.name for n in self.spec.nodes])
                wake = min(give_up, time.monotonic() + ANSWER_S)
                while (
                    not readiness.announces_itself(self.spec, connections) and (left_s := wake - time.monotonic()) > 0
                ):
                    connections.pump(left_s)
                connections.announced.clear()
            return leader
        finally:
            if connections is not None:
                connections.close()

    def status(self) -> dict[str, Any]:
        """What `status --json` prints; see `report`. Adopts a cluster whose supervisor is gone."""
        self.spec = load_spec(self.directory)
        try:
            supervisor = self.control.call("status")
        except NotRunning:
            return report.describe(self.spec, None, {})
        able = [
            p["name"]
            for p in supervisor["processes"]
            if p["kind"] != "worker" and p["state"] == "up" and not p["paused"]
        ]
        return report.describe(self.spec, supervisor, probe.statuses(self.spec, able, timeout_s=ANSWER_S))

    def events(self, count: int | None = None) -> list[dict[str, Any]]:
        """What happened, the oldest first: the last `count` events, or all that are kept. See docs/events.md."""
        return events.read(self.directory, count)

    # -- choosing -----------------------------------------------------------------------------------------------------
    def resolve(self, selector: str, *, chooser: random.Random | None = None) -> list[str]:
        """Names that a selector stands for, without repetition.

        Args:
            selector: `n1`, `leader`, `followers`, `random` (a running node), `all`, a worker (`n1.w1`), `router`, or
                several of these with commas.
            chooser: for `random`; a seeded one makes it repeatable.
        Raises: InvalidInput, NoQuorum (`leader` or `followers` without a leader), NotRunning (`random`, none runs).
        """
        names: dict[str, None] = {}
        for part in (p.strip() for p in selector.split(",")):
            names |= dict.fromkeys(self._resolve_one(part, chooser))
        return list(names)

    def _resolve_one(self, part: str, chooser: random.Random | None) -> list[str]:
        nodes = [n.name for n in self.spec.nodes]
        if part in nodes or part == "router" or any(part in self.spec.worker_names(n) for n in nodes):
            return [part]
        if part == "all":
            return nodes
        if part in ("leader", "followers"):
            leader = self.leader
            if leader is None:
                raise NoQuorum(f"no leader right now; wait for one: {config.command(self.directory)} wait --for leader")
            return [leader.name] if part == "leader" else [n for n in self.answering() if n != leader.name]
        if part == "random":
            alive = [n for n in nodes if self.identity(n) is not None]
            if not alive:
                raise NotRunning("no node is running; start one: zcluster start")
            return [(chooser or random.SystemRandom()).choice(alive)]
        known = ", ".join([*nodes, "leader", "followers", "random", "all", "router"])
        raise InvalidInput(f"no node {part!r} in cluster {self.name!r}; there are: {known}, and workers such as n1.w1")

    # -- acting -------------------------------------------------------------------------------------------------------
    def kill(self, selector: str, signal_name: str = "SIGKILL") -> list[str]:
        """See `Node.kill`. Returns: the names."""
        name = signal_name.upper() if signal_name.upper().startswith("SIG") else f"SIG{signal_name.upper()}"
        if name not in system.signal_names():
            raise InvalidInput(f"no signal {signal_name!r}; for example KILL, TERM, INT, HUP, USR1")
        names = self.resolve(selector)
        self.control.call("kill", targets=names, signal_name=name)
        return names

    def pause(self, selector: str) -> list[str]:
        names = self.resolve(selector)
        self.control.call("pause", targets=names)
        return names

    def resume(self, selector: str) -> list[str]:
        names = self.resolve(selector)
        self.control.call("resume", targets=names)
        return names

    def stop(self, selector: str = "all", *, timeout: float = 10.0) -> list[str]:
        """Stop nodes cleanly, all by default; router and supervisor go on (`down` ends the cluster)."""
        names = self.resolve(selector)
        self.control.call("stop", targets=names, timeout_s=timeout, timeout=timeout + 10)
        return names

    def start(self, selector: str = "all") -> list[str]:
        """Start nodes that are down; see `Node.start`."""
        names = self.resolve(selector)
        self.control.call("start", targets=names, timeout_s=10, timeout=20)
        return names

    def restart(self, selector: str = "all", *, timeout: float = 10.0) -> list[str]:
        """Restart nodes one after the other: the next only when the last one answers and there is a leader."""
        names = self.resolve(selector)
        for name in names:
            self.control.call("restart", targets=[name], timeout_s=timeout, timeout=timeout + 10)
            if name in self.nodes:
                self.wait(name, timeout=30)
                if len(self.answering()) > len(self.spec.nodes) // 2:
                    self.wait_leader(30)
        return names

    def down(self, timeout: float = 10.0, *, purge: bool = False) -> bool:
        """Stop everything; `purge`: remove the cluster with its data. Returns: whether anything ran."""
        ran = self.control.down(timeout)
        if purge:
            files.remove_traces(self.directory, self.spec.socket_directory, everything=True)
        return ran

    def checkpoint(self, timeout: float = 30.0) -> dict[str, int]:
        """Have every answering replica write a checkpoint now. Returns: node -> index of its checkpoint."""
        answers = probe.ask(self.spec, self.answering(), wire.CHECKPOINT, timeout_s=timeout)
        done = {name: wire.decode(body) for name, (kind, body) in answers.items() if kind == wire.RESULT}
        if not done:
            raise NoQuorum(f"no replica of {self.name!r} wrote a checkpoint within {timeout:g} s")
        return {name: body[0] for name, body in sorted(done.items()) if isinstance(body, list)}

    def connect(self) -> Client:
        """A client of this cluster."""
        from zcluster.api import Client

        return Client(self.spec)

    # -- waiting ------------------------------------------------------------------------------------------------------
    def wait(self, for_: str, timeout: float = 30.0) -> None:
        """Until there is a `leader`, the cluster is `healthy`, or a node, named, answers. Raises: Timeout, Degraded."""
        if for_ == "leader":
            self.wait_leader(timeout)
        elif for_ == "healthy":
            self.wait_healthy(timeout)
        elif for_ in self.nodes:
            connections = probe.Connections(self.spec, [for_])
            give_up = time.monotonic() + timeout
            try:
                while not connections.announced:
                    if time.monotonic() >= give_up:
                        raise Timeout(f"{for_} did not answer within {timeout:g} s")
                    connections.pump(give_up - time.monotonic())
            finally:
                connections.close()
        else:
            raise InvalidInput(f"wait for leader, healthy, or one of {', '.join(self.nodes)}; not {for_!r}")

    def wait_healthy(self, timeout: float = 30.0, progress: Progress | None = None) -> dict[str, Any]:
        """Until `status` says healthy. Returns: that status.

        Args:
            progress: called once each with "nodes", "leader", "workers" and what is known then, `seconds` since the
                one before included.
        Raises: Timeout, and Degraded as soon as it is certain that it will not become so by itself.
        """
        give_up = time.monotonic() + timeout
        look_at = time.monotonic() + 0.5
        steps = readiness.Steps(self.spec, progress)
        connections = probe.Connections(self.spec, [n.name for n in self.spec.nodes], router=True)
        try:
            while True:
                connections.pump(max(0.0, min(give_up, look_at) - time.monotonic()))
                now = time.monotonic()
                if not (seems_ready := steps.advance(connections)) and now < min(look_at, give_up):
                    continue
                status = self.status()
                if status["state"] == report.HEALTHY:
                    steps.finish(status)
                    return status
                readiness.check_hopeless(self.spec, status, self.control.call("status")["processes"])
                if now >= give_up:
                    raise Timeout(f"{self.name!r} is not ready after {timeout:g} s: {'; '.join(status['problems'])}")
                look_at = time.monotonic() + 0.5
                if seems_ready:  # what was announced is outdated: hear it again
                    connections.announced.clear()
                    connections.router = None
        finally:
            connections.close()
