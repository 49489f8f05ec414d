"""What each request to the supervisor does: the verbs.

    ping · status · pause · resume            answered at once
    kill · stop · start · restart · down      answered when it is so; other requests are served meanwhile
    scale · wipe                              likewise, by `reconcile`

Not here: how requests come in and replies go out (`requests`), and what happens between them (`supervisor`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from zcluster import __version__
from zcluster.errors import Conflict, Error, InvalidInput, StorageError
from zcluster.launch import process as system
from zcluster.launch.fleet import MS, Child, Fleet
from zcluster.launch.process import Process
from zcluster.launch.reconcile import GONE, Reconciler
from zcluster.launch.requests import Requests

SECOND: Final = 1000 * MS
DEADLY: Final = frozenset({"SIGKILL", "SIGTERM", "SIGINT", "SIGQUIT", "SIGABRT"})
WHILE_CLOSING: Final = frozenset({"ping", "status", "down"})


class Note(Protocol):
    """Writes a line of the event log."""

    def __call__(self, event: str, child: Child | None = None, **facts: Any) -> None: ...


class Verbs:
    """Carries requests out.

    Args:
        start_due: starts what should run and may start now.
    """

    def __init__(
        self,
        fleet: Fleet,
        requests: Requests,
        reconciler: Reconciler,
        *,
        note: Note,
        start_due: Callable[[], None],
    ) -> None:
        self.fleet = fleet
        self.requests = requests
        self.reconciler = reconciler
        self.note = note
        self.start_due = start_due

    def carry_out(self, client: bytes, verb: str, arguments: dict[str, Any]) -> None:
        """Do what is asked and answer, now or later; whatever is wrong with the request is the answer."""
        try:
            handler = self._BY_NAME.get(verb)
            if handler is None:
                raise InvalidInput(f"the supervisor knows no verb {verb!r}; is another zcluster version running?")
            if self.fleet.closing and verb not in WHILE_CLOSING:
                raise Conflict(f"cluster {self.fleet.spec.name!r} is going down; ask again when it has stopped")
            handler(self, client, **arguments)
        except (Error, TypeError) as error:
            self.requests.refuse(client, error)
        except OSError as error:
            self.requests.refuse(client, StorageError(f"{verb}: {error}; see: zcluster doctor"))

    def ping(self, client: bytes) -> None:
        self.requests.reply(
            client, {"pid": os.getpid(), "version": __version__, "cluster_id": self.fleet.spec.cluster_id}
        )

    def status(self, client: bytes) -> None:
        fleet = self.fleet
        fleet.mend_run_files()
        body = {
            "pid": os.getpid(),
            "version": __version__,
            "processes": [fleet.describe(child) for child in fleet.children.values()],
            "change": self.reconciler.describe(),
        }
        self.requests.reply(client, body)

    def kill(
        self,
        client: bytes,
        targets: list[str],
        signal_name: str = "SIGKILL",
        pid: int | None = None,
        timeout_s: float = 10,
    ) -> None:
        """The signal leaves before anything else. With `pid`: only that run of a process."""
        children = [c for c in self.fleet.resolve(targets) if pid is None or (c.process and c.process.pid == pid)]
        number = signal.Signals[signal_name]
        killed = [c.process for c in children if c.process is not None]
        deadly = signal_name in DEADLY
        if deadly:
            self.kill_spared(children, number)
        else:
            for process in killed:
                process.signal(number)
        names = {c.name for c in children}
        for child in children:
            self.note("killed" if deadly else "signalled", child, signal=signal_name)
        if deadly:
            nodes = [c.name for c in children if c.kind == "replica" and c.name not in self.fleet.wishes.down]
            if nodes:
                self.fleet.want_down(nodes, signal_name)
            self.requests.wait_until(client, timeout_s, f"{signal_name} to {', '.join(sorted(names))}", _gone(killed))
        else:
            self.requests.reply(client)

    def kill_spared(self, children: list[Child], number: int) -> None:
        """A deadly signal, on purpose: whatever workers among them were running is not to blame for it."""
        from zcluster.tasks.word import spare

        meant = [(c, c.process.pid) for c in children if c.process is not None]
        for child, _ in meant:
            self.fleet.kill(child, number)
        for child, pid in meant:
            if child.kind == "worker":
                spare(self.fleet.spec.path / "run", child.name, pid)

    def pause(self, client: bytes, targets: list[str]) -> None:
        self._set_paused(targets, paused=True)
        self.requests.reply(client)

    def resume(self, client: bytes, targets: list[str]) -> None:
        self._set_paused(targets, paused=False)
        self.requests.reply(client)

    def _set_paused(self, targets: list[str], *, paused: bool) -> None:
        children = [c for c in self.fleet.resolve(targets) if c.process is not None]
        for child in children:
            assert child.process is not None
            child.process.signal(signal.SIGSTOP if paused else signal.SIGCONT)
        nodes = [c.name for c in children if c.kind == "replica"]
        nodes += [n for n in targets if not paused and n in self.fleet.wishes.paused and n not in nodes]
        if nodes:
            self.fleet.want_paused(nodes, paused=paused)
        for child in children:
            assert child.process is not None
            system.wait_paused(child.process, paused=paused)
            self.note("paused" if paused else "resumed", child)

    def stop(self, client: bytes, targets: list[str], timeout_s: float = 10) -> None:
        children = self.fleet.resolve(targets)
        kill_at = time.monotonic_ns() + int(timeout_s * SECOND)
        stopped = [c.process for c in children if c.process is not None]
        for child in children:
            self.fleet.ask_to_stop(child, kill_at)
        nodes = [c.name for c in children if c.kind == "replica" and c.name not in self.fleet.wishes.down]
        if nodes:
            self.fleet.want_down(nodes, "stopped")
        self.requests.wait_until(client, timeout_s + 5, "stop", _gone(stopped))

    def start(self, client: bytes, targets: list[str], timeout_s: float = 10) -> None:
        """What is being stopped right now is started once it is gone; a paused node with a living replica stays so."""
        children = self._that_stay(targets)
        self.fleet.want_up(c.name for c in children if c.kind == "replica")
        stalled = [c.name for c in children if c.process is None and c.name in self.fleet.wishes.paused]
        if stalled:
            self._set_paused(stalled, paused=False)
        for child in children:
            if child.process is None:
                child.failure = child.restart_at = None
                child.quick_deaths = 0
        self.start_due()
        self.reconciler.wake_if_unsettled()
        self.requests.wait_until(client, timeout_s, "start", self._running(children))

    def _that_stay(self, targets: list[str]) -> list[Child]:
        """As `Fleet.resolve`, but for nodes that are no members any more and end. One that is on its way out but still
        a member may be needed for that very decision. Raises: Conflict, if those were all."""
        down = self.fleet.wishes.down
        found = self.fleet.resolve(targets)
        staying = [child for child in found if child.node not in down or down[child.node].reason != GONE]
        if found and not staying:
            raise Conflict(f"{', '.join(targets)}: removed from the cluster, and about to end; see: zcluster status")
        return staying

    def restart(self, client: bytes, targets: list[str], timeout_s: float = 10) -> None:
        children = self._that_stay(targets)
        nodes = [c.name for c in children if c.kind == "replica"]
        self.fleet.want_up(nodes)
        self.fleet.want_paused(nodes, paused=False)
        old = [c.process for c in children if c.process is not None]
        kill_at = time.monotonic_ns() + int(timeout_s * SECOND)
        for child in children:
            child.failure = child.restart_at = None
            self.fleet.ask_to_stop(child, kill_at)
        self.start_due()
        self.reconciler.wake_if_unsettled()
        gone, running = _gone(old), self._running(children)
        self.requests.wait_until(client, timeout_s + 5, "restart", lambda: gone() and running())

    def scale(self, client: bytes, nodes: int, timeout_s: float = 60) -> None:
        self.reconciler.scale(client, nodes, timeout_s)

    def wipe(self, client: bytes, node: str, timeout_s: float = 60) -> None:
        self.reconciler.wipe(client, node, timeout_s)

    def down(self, client: bytes, timeout_s: float = 10) -> None:
        self.note("down", None)
        self.fleet.stop_all(timeout_s)
        self.requests.wait_until(client, timeout_s + 10, "down", lambda: not self.fleet.living())

    def _running(self, children: list[Child]) -> Callable[[], bool]:
        return lambda: all((c.process is not None and not c.asked_to_die) or not self.fleet.wanted(c) for c in children)

    _BY_NAME: Final[dict[str, Callable[..., None]]] = {
        "ping": ping,
        "status": status,
        "kill": kill,
        "pause": pause,
        "resume": resume,
        "stop": stop,
        "start": start,
        "restart": restart,
        "scale": scale,
        "wipe": wipe,
        "down": down,
    }


def _gone(processes: Iterable[Process]) -> Callable[[], bool]:
    """True once all of them were collected (their descriptors are closed then)."""
    waiting = list(processes)
    return lambda: all(p.pidfd < 0 for p in waiting)
