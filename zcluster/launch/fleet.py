"""The children of one cluster: what runs, what the user wants to run, and starting, signalling and collecting them.

`Wishes` outlive the supervisor (`run/wishes`): a node that was killed or paused on purpose stays so when the next
supervisor adopts the rest. They end with the cluster (`down`) and with the machine's boot.

Not here: the loop, the control socket, replies (`supervisor`). One thread.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from zcluster.config import FRESH, ClusterSpec
from zcluster.errors import InvalidInput
from zcluster.launch import files
from zcluster.launch import process as system
from zcluster.launch.process import Process
from zcluster.launch.restart import QUICK_DEATH_MS, asks_again, delay_ms, gives_up, known_exit, unwritten_reason

Commands = dict[str, tuple[str, ...]]

DEFAULT_COMMANDS: Final[Commands] = {
    "replica": ("-m", "zcluster.node"),
    "worker": ("-m", "zcluster.tasks.worker"),
    "router": ("-m", "zcluster.tasks.router"),
}
"""How each kind of child is started: what stands between the interpreter and the child's own arguments."""
COMMANDS: Commands = DEFAULT_COMMANDS
"""What supervisors started by this process use. Tests put small stand-ins here."""

ROUTER: Final = "router"
STARTED_FIRST: Final = ("replica", ROUTER, "worker")
SUPERVISOR_YOUNG_S: Final = 10
MS: Final = 1_000_000


class Down(msgspec.Struct, frozen=True):
    """Why and since when (wall clock) a node is meant to be down."""

    reason: str
    since_ms: int


class Wishes(msgspec.Struct, kw_only=True):
    """What the user wants, where it differs from "everything runs"."""

    boot_id: str = ""
    down: dict[str, Down] = {}
    paused: set[str] = set()


class Child:
    """One slot: a name, and the process that fills it now, if any."""

    __slots__ = (
        "asked_to_die",
        "exit_ms",
        "exit_text",
        "failure",
        "kill_at",
        "kind",
        "name",
        "node",
        "process",
        "quick_deaths",
        "restart_at",
        "restarts",
        "started",
    )

    def __init__(self, name: str, kind: str, node: str | None) -> None:
        self.name = name
        self.kind = kind
        self.node = node
        self.process: Process | None = None
        self.started = 0  # monotonic ns
        self.restarts = 0
        self.quick_deaths = 0
        self.restart_at: int | None = None  # monotonic ns
        self.kill_at: int | None = None  # monotonic ns; set while it has been asked to stop
        self.asked_to_die = False
        self.exit_text: str | None = None
        self.exit_ms: int | None = None  # wall clock
        self.failure: str | None = None  # why it is not started again by itself


class Fleet:
    """All children of a cluster, living or not.

    Args:
        owner: "PID:STARTTICKS" of the process that the cluster belongs to; children watch it too. None: nobody.
        commands: see `COMMANDS`.
    """

    def __init__(self, spec: ClusterSpec, *, owner: str | None, commands: Commands) -> None:
        self.spec = spec
        self.owner = owner
        self.commands = commands
        self.children: dict[str, Child] = {}
        self._add(Child(ROUTER, ROUTER, None))
        for node in spec.nodes:
            self.add_node(node.name)
        self.wishes = self._read_wishes()
        self.closing = False
        self.displaced = False  # our directory is gone: what has its name now, if anything, is another cluster's
        marks = {"ZCLUSTER_DIRECTORY": spec.directory, "ZCLUSTER_NAME": spec.name}
        if owner is not None:
            marks["ZCLUSTER_OWNER"] = owner
        self._environment = system.child_environment(**marks)

    def _add(self, child: Child) -> None:
        self.children[child.name] = child

    def add_node(self, node: str) -> None:
        """Slots for its processes, which are started as soon as they may be."""
        self._add(Child(node, "replica", node))
        for name in self.spec.worker_names(node):
            self._add(Child(name, "worker", node))
        in_order = sorted(self.children.items(), key=lambda item: STARTED_FIRST.index(item[1].kind))
        self.children = dict(in_order)

    def remove_node(self, node: str) -> None:
        """The slots of a node without processes; `adopt`ed and started ones have ended."""
        for child in self.of_node(node):
            assert child.process is None
            del self.children[child.name]

    # -- looking ------------------------------------------------------------------------------------------------------
    def of_node(self, node: str) -> list[Child]:
        """A node's replica first, then its workers."""
        return [c for c in self.children.values() if c.node == node]

    def resolve(self, targets: Iterable[str]) -> list[Child]:
        """The children that names stand for: a node's name for all of the node. Raises: InvalidInput."""
        found: dict[str, Child] = {}
        for target in targets:
            if target not in self.children:
                raise InvalidInput(f"no process {target!r} in cluster {self.spec.name!r}: {', '.join(self.children)}")
            child = self.children[target]
            for one in self.of_node(target) if child.kind == "replica" else [child]:
                found[one.name] = one
        return list(found.values())

    def wanted(self, child: Child) -> bool:
        """Should this child have a living process?"""
        if self.closing or child.failure is not None:
            return False
        return child.node is None or (child.node not in self.wishes.down and child.node not in self.wishes.paused)

    def living(self) -> list[Child]:
        return [c for c in self.children.values() if c.process is not None]

    # -- wishes -------------------------------------------------------------------------------------------------------
    def _read_wishes(self) -> Wishes:
        path = self.spec.path / "run" / "wishes"
        try:
            wishes = msgspec.json.decode(path.read_bytes(), type=Wishes)
        except (OSError, msgspec.MsgspecError):
            wishes = Wishes()
        if wishes.boot_id != system.boot_id():
            wishes = Wishes(boot_id=system.boot_id())
        nodes = {n.name for n in self.spec.nodes}
        wishes.down = {n: d for n, d in wishes.down.items() if n in nodes}
        wishes.paused &= nodes
        return wishes

    def want_down(self, nodes: Iterable[str], reason: str) -> None:
        for node in nodes:
            self.wishes.down[node] = Down(reason, time.time_ns() // MS)
            self.wishes.paused.discard(node)
        self.save_wishes()

    def want_up(self, nodes: Iterable[str]) -> None:
        for node in nodes:
            self.wishes.down.pop(node, None)
        self.save_wishes()

    def want_paused(self, nodes: Iterable[str], *, paused: bool) -> None:
        for node in nodes:
            (self.wishes.paused.add if paused else self.wishes.paused.discard)(node)
        self.save_wishes()

    def save_wishes(self) -> None:
        """On a full disk they last as long as this supervisor: what was asked for is done all the same."""
        with suppress(OSError):
            files.write_file(self.spec.path / "run" / "wishes", msgspec.json.encode(self.wishes))

    # -- acting -------------------------------------------------------------------------------------------------------
    def log_path(self, child: Child) -> Path:
        return self.spec.path / "logs" / f"{child.name}.log"

    def start(self, child: Child, now: int) -> None:
        """Fill an empty slot. Raises: OSError (no processes or memory left)."""
        assert child.process is None
        log = self.log_path(child)
        files.rotate_log(log)
        arguments = [*self.commands[child.kind], self.spec.directory]
        if child.kind != ROUTER:
            arguments.append(child.name)
        if child.kind == "replica":
            self.error_path(child.name).unlink(missing_ok=True)
            if not self.spec.created or self.spec.node(child.name).phase == FRESH:
                arguments.append("--create")
        environment = {**self._environment, "ZCLUSTER_PROCESS": child.name}
        child.process = system.spawn(child.name, child.kind, arguments, environment=environment, log=log)
        child.started = now
        child.restart_at = child.kill_at = None
        child.asked_to_die = False
        with suppress(OSError):  # a full disk: `mend_run_files` tries again
            files.write_run_file(self.spec.path, child.process.identity)

    def adopt(self, now: int) -> list[Child]:
        """Take over what an earlier supervisor has left; stale run files go, strays are killed (see `end_strays`)."""
        known = files.read_run_files(self.spec.path)
        known.pop("supervisor", None)
        self.end_strays({identity.run_id for identity in known.values()})
        for name, identity in known.items():
            found = Process.adopt(identity)
            child = self.children.get(name)
            if found is None:
                files.remove_run_file(self.spec.path, name)
            elif child is None:  # a worker that the settings no longer have
                found.signal(signal.SIGKILL)
                found.close()
                files.remove_run_file(self.spec.path, name)
            else:
                child.process = found
                stat = found.stat()
                child.started = now - int(stat.age_seconds * 1000 if stat else 0) * MS
        return self.living()

    def end_strays(self, run_ids: set[str]) -> None:
        """Kill processes of this cluster that no run file names; they would share its sockets and data with ours.

        A supervisor that was killed between starting a child and writing it down leaves one; somebody who removes the
        directory of a running cluster leaves all, the old supervisor included (a young one may just wait for our lock).
        What a worker has started is not meant: it carries the worker's run id.
        """
        strays = []
        for pid, marks in system.find_processes(self.spec.directory):
            stat = system.read_stat(pid)
            if stat is None or stat.session != pid or marks["ZCLUSTER_RUN_ID"] in run_ids:
                continue
            name = marks.get("ZCLUSTER_PROCESS")
            if name is not None and (name != "supervisor" or stat.age_seconds > SUPERVISOR_YOUNG_S):
                strays.append((name != "supervisor", pid))
        for _, pid in sorted(strays):  # supervisors first: they would start the others again
            system.kill_pid(pid)

    def collect(self, child: Child, now: int) -> str:
        """After the process has exited: empty the slot and decide what follows. Returns: how it died."""
        assert child.process is not None
        code = child.process.reap()
        child.process = None
        child.kill_at = None
        if not self.displaced:
            files.remove_run_file(self.spec.path, child.name)
        child.exit_text = known_exit(child.kind, code) or system.describe_exit(code)
        child.exit_ms = time.time_ns() // MS
        if child.asked_to_die or asks_again(child.kind, code):
            delay = 0
        else:
            error_text = self.error_text(child.name)
            if gives_up(child.kind, code, error_text):
                child.failure = error_text or unwritten_reason(code)
                return child.exit_text
            quick = now - child.started < QUICK_DEATH_MS * MS
            delay = delay_ms(child.kind, child.quick_deaths if quick else 0)
            child.quick_deaths = child.quick_deaths + 1 if quick else 1
        child.restart_at = now + delay * MS
        return child.exit_text

    def start_due(self, now: int) -> list[Child]:
        """Fill every empty slot that should be filled and whose pause is over."""
        started = []
        for child in self.children.values():
            if child.process is None and self.wanted(child) and (child.restart_at or 0) <= now:
                child.restarts += child.exit_ms is not None
                self.start(child, now)
                started.append(child)
        return started

    def ask_to_stop(self, child: Child, kill_at: int) -> None:
        """SIGTERM, and SIGKILL at `kill_at`. A paused process is continued: it could not stop otherwise."""
        if child.process is not None:
            child.asked_to_die = True
            child.kill_at = kill_at
            child.process.signal(signal.SIGTERM)
            child.process.signal(signal.SIGCONT)

    def kill(self, child: Child, number: int) -> None:
        """A signal that is to end it."""
        if child.process is not None:
            child.process.signal(number)
            child.asked_to_die = True

    def stop_all(self, timeout_s: float) -> None:
        """Ask every child to stop, for good; 0 seconds: SIGKILL."""
        self.closing = True
        kill_at = time.monotonic_ns() + int(timeout_s * 1000) * MS
        for child in self.living():
            if timeout_s <= 0:
                self.kill(child, signal.SIGKILL)
            else:
                self.ask_to_stop(child, kill_at)

    def next_deadline(self) -> int | None:
        """Monotonic ns of the next start or SIGKILL that is due."""
        moments = [c.kill_at for c in self.children.values() if c.kill_at is not None]
        moments += [c.restart_at or 0 for c in self.children.values() if c.process is None and self.wanted(c)]
        return min(moments, default=None)

    def mend_run_files(self) -> None:
        """Write anew what somebody has damaged or removed, and what a full disk had no room for."""
        if self.displaced:
            return
        for child in self.living():
            assert child.process is not None
            if files.read_run_file(self.spec.path, child.name) != child.process.identity:
                with suppress(OSError):
                    files.write_run_file(self.spec.path, child.process.identity)

    # -- telling ------------------------------------------------------------------------------------------------------
    def error_path(self, node: str) -> Path:
        return self.spec.path / "run" / f"{node}.error"

    def error_text(self, node: str) -> str | None:
        try:
            return self.error_path(node).read_text(errors="replace").strip() or None
        except OSError:
            return None

    def describe(self, child: Child) -> dict[str, Any]:
        """One process, for the `status` verb."""
        process = child.process
        stat = process.stat() if process is not None else None
        down = self.wishes.down.get(child.node or "")
        return {
            "name": child.name,
            "kind": child.kind,
            "node": child.node,
            "state": "up" if stat else "failed" if child.failure else "down" if down else "restarting",
            "pid": process.pid if process is not None and stat else None,
            "started_ms": process.identity.started_ms if process is not None and stat else None,
            "paused": stat.paused if stat else False,
            "restarts": child.restarts,
            "quick_deaths": child.quick_deaths,
            "exit": child.exit_text,
            "exit_ms": child.exit_ms,
            "failure": child.failure,
            "down_reason": down.reason if down else None,
            "down_since_ms": down.since_ms if down else None,
        }
