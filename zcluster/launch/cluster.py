"""`Cluster`: the handle on a running cluster that the command line and users hold.

A handle keeps nothing open and remembers nothing that may change: every property is asked afresh, in bounded time, so
a handle may be used from any thread, survives a fork, and never shows a dead process.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zcluster import config, events, wire
from zcluster.config import load_spec, make_settings
from zcluster.errors import Conflict, Error, InvalidInput, NoQuorum, NotRunning, Timeout
from zcluster.launch import files, probe, readiness, report
from zcluster.launch import process as system
from zcluster.launch.control import Control
from zcluster.launch.handles import Node, Nodes, ProcessHandle
from zcluster.launch.network import DIRECTIONS, NetworkFaults, OneOrBoth, Seen, links_of_isolation, links_of_partition
from zcluster.launch.readiness import Progress

if TYPE_CHECKING:
    from zcluster.api import Client

ANSWER_S: Final = 0.3
"""How long a silent replica is waited for when it is asked how it is."""


class Cluster:
    """A handle on the cluster in `directory`. Raises: NotRunning (there is none), FormatTooNew, InvalidInput."""

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory).absolute()
        self._spec = load_spec(self.directory)
        self.control = Control(self.directory)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cluster) and self.spec.cluster_id == other.spec.cluster_id

    def __hash__(self) -> int:
        return hash(self.spec.cluster_id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} in {self.directory}>"

    # -- looking ------------------------------------------------------------------------------------------------------
    @property
    def spec(self) -> config.ClusterSpec:
        """The description, read afresh: nodes come and go. The last known one where there is none any more."""
        try:
            self._spec = load_spec(self.directory)
        except (Error, OSError):
            pass
        return self._spec

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
        return [name for name, condition in self.conditions().items() if condition == "up"]

    def still_answering(self) -> Callable[[], list[str]]:
        """Of the replicas that run now, those that have neither died nor been frozen since: another process under the
        same name does not know what the one before it was asked."""
        before = self._look()
        return lambda: [n for n, seen in self._look().items() if seen.condition == "up" and seen == before.get(n)]

    def require_answering(self, node: str, what: str) -> None:
        """`what` it is to do, in words. Raises: InvalidInput (a worker, the router), Conflict (down, or frozen)."""
        self.spec.replica_id(node)
        state = self.conditions().get(node, "down")
        if state != "up":
            verb = "resume" if state == "paused" else "start"
            raise Conflict(f"{node} is {state} and cannot {what}: {config.command(self.directory)} {verb} {node}")

    def conditions(self) -> dict[str, str]:
        """What the system knows of each node's replica: "up", "paused" or "down"."""
        return {name: seen.condition for name, seen in self._look().items()}

    def _look(self) -> dict[str, Seen]:
        found = {}
        for node in self.spec.nodes:
            identity = files.read_run_file(self.directory, node.name)
            stat = system.living(identity) if identity is not None else None
            if identity is None or stat is None:
                found[node.name] = Seen("down")
            else:
                found[node.name] = Seen("paused" if stat.paused else "up", identity.pid, identity.start_ticks)
        return found

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
        spec = load_spec(self.directory)
        try:
            supervisor = self.control.call("status")
        except NotRunning:
            return report.describe(spec, None, {})
        able = [
            p["name"]
            for p in supervisor["processes"]
            if p["kind"] != "worker" and p["state"] == "up" and not p["paused"]
        ]
        return report.describe(spec, supervisor, probe.statuses(spec, able, timeout_s=ANSWER_S))

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
    def _call_on(self, selector: str, verb: str, **arguments: Any) -> list[str]:
        """Ask for what is selected. Returns: the names."""
        while True:
            names = self.resolve(selector)
            try:
                self.control.call(verb, targets=names, **arguments)
                return names
            except InvalidInput:  # a node that `all` stood for has just gone
                if self.resolve(selector) == names:
                    raise

    def kill(self, selector: str, signal_name: str = "SIGKILL") -> list[str]:
        """See `Node.kill`. Returns: the names."""
        name = signal_name.upper() if signal_name.upper().startswith("SIG") else f"SIG{signal_name.upper()}"
        if name not in system.signal_names():
            raise InvalidInput(f"no signal {signal_name!r}; for example KILL, TERM, INT, HUP, USR1")
        return self._call_on(selector, "kill", signal_name=name)

    def pause(self, selector: str) -> list[str]:
        return self._call_on(selector, "pause")

    def resume(self, selector: str) -> list[str]:
        return self._call_on(selector, "resume")

    # -- the network among the replicas; see `network` for what these return ------------------------------------------
    def partition(
        self,
        *sides: str | Iterable[str],
        bridge: str | Iterable[str] = (),
        direction: OneOrBoth = "both",
        seconds: float | None = None,
    ) -> dict[str, Any]:
        """Cut the network between sides, instead of all cuts before. Clients still reach every node.

        Args:
            sides: selectors (see `resolve`) or names; the nodes on none of them form one side of their own.
            bridge: nodes that stay in touch with all sides.
            direction: of two sides, only what the first sends is cut ("out"), or only what it hears ("in").
            seconds: then it heals by itself; None: `heal` ends it. A restarted node is in touch with all again.
        Raises: InvalidInput, Conflict, Degraded.
        """
        self._network.check_peers()
        names = self._node_names(bridge)
        chosen = [self._node_names(side) for side in sides]
        nodes = [n.name for n in self.spec.nodes]
        _check_direction(direction)
        return self._network.cut(links_of_partition(nodes, chosen, names, direction), seconds)

    def isolate(
        self, selector: str | Iterable[str], *, direction: OneOrBoth = "both", seconds: float | None = None
    ) -> dict[str, Any]:
        """Cut each of these nodes off from all others: what it sends (out), what it hears (in), or both."""
        self._network.check_peers()
        nodes = [n.name for n in self.spec.nodes]
        _check_direction(direction)
        return self._network.cut(links_of_isolation(nodes, self._node_names(selector), direction), seconds)

    def slow(self, selector: str | Iterable[str], ms: float, *, seconds: float | None = None) -> dict[str, Any]:
        """Delay what these nodes send to their peers and hear from them, each way; 0 ends it."""
        return self._network.slow(self._node_names(selector), ms, seconds)

    def flaky(
        self,
        selector: str | Iterable[str],
        loss: float = 0.0,
        *,
        duplicate: float = 0.0,
        seconds: float | None = None,
    ) -> dict[str, Any]:
        """Lose or double shares (0 to 1) of what these nodes send to their peers and hear from them; 0 ends it."""
        return self._network.flaky(self._node_names(selector), loss, duplicate, seconds)

    def heal(self) -> dict[str, Any]:
        """End all faults of the network. Raises: Degraded (a paused node cannot be told; the others are healed)."""
        return self._network.heal()

    @property
    def _network(self) -> NetworkFaults:
        return NetworkFaults(self.spec, self._look)

    def _node_names(self, selector: str | Iterable[str]) -> list[str]:
        """Nodes only. Raises: InvalidInput."""
        parts = [selector] if isinstance(selector, str) else [str(getattr(part, "name", part)) for part in selector]
        names = list(dict.fromkeys(name for part in parts for name in self.resolve(part)))
        for name in names:
            if name not in self.nodes:
                raise InvalidInput(f"{name} is no node; the network among replicas has {', '.join(self.nodes)}")
        return names

    def stop(self, selector: str = "all", *, timeout: float = 10.0) -> list[str]:
        """Stop nodes cleanly, all by default; router and supervisor go on (`down` ends the cluster)."""
        return self._call_on(selector, "stop", timeout_s=timeout, timeout=timeout + 10)

    def start(self, selector: str = "all") -> list[str]:
        """Start nodes that are down; see `Node.start`."""
        return self._call_on(selector, "start", timeout_s=10, timeout=20)

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

    def scale(
        self, nodes: int, *, timeout: float = 60.0, progress: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        """Let the cluster have that many nodes, 1 to 9; the highest numbers go. Return when it is so.

        New nodes vote once they have caught up. Of a node that goes the workers finish what they run; then its data are
        removed. Whoever is killed meanwhile: the change goes on, and asking for the same again joins it.

        Args:
            progress: called with what is being waited for, in words.
        Returns: `nodes` (names), `changed`, and `absent`: names of those that are kept down, and join once started.
        Raises: InvalidInput, NoQuorum (nothing was changed), Conflict (another change runs), Timeout (says whether it
        goes on).
        """
        make_settings(nodes=nodes)
        return self.control.call("scale", timeout=timeout + 10, progress=progress, nodes=nodes, timeout_s=timeout)

    def wipe(self, node: str, *, timeout: float = 60.0, progress: Callable[[str], None] | None = None) -> None:
        """See `Node.wipe`."""
        self.spec.node(node)
        self.control.call("wipe", timeout=timeout + 10, progress=progress, node=node, timeout_s=timeout)

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

    def backup(
        self, path: Path | str, *, node: str | None = None, force: bool = False, timeout: float = 30.0
    ) -> dict[str, Any]:
        """Write a consistent backup of all keys to a file, while the cluster serves; see `launch.backup.backup`.

        Args:
            node: whose checkpoint it is made from; by default a follower's.
            force: replace an existing file.
        Returns: its manifest. Raises: Conflict (the file exists), NoQuorum, Timeout, InvalidInput, StorageError.
        """
        from zcluster.launch.backup import backup

        return msgspec.structs.asdict(backup(self, Path(path), node=node, force=force, timeout=timeout))

    def transfer(self, selector: str, timeout: float = 10.0) -> Node:
        """Let another node lead; return when it does. Raises: InvalidInput, Conflict (it cannot), Timeout."""
        from zcluster.launch.transfer import transfer

        return transfer(self, selector, timeout)

    def verify(self, timeout: float = 30.0) -> dict[str, Any]:
        """Compare the states of all replicas at one index, beside service.

        Returns: {"index", "equal", "digests": node -> digest, "odd": those that differ, "missing": those not compared}.
        Raises: NoQuorum.
        """
        from zcluster.launch.verify import verify

        return verify(self, timeout)

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


def _check_direction(direction: str) -> None:
    if direction not in DIRECTIONS:
        raise InvalidInput(f"direction {direction!r}: use {', '.join(DIRECTIONS)}")
