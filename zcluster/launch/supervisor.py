"""`python -m zcluster.launch.supervisor CLUSTER_DIRECTORY [--owner PID:STARTTICKS]`: keeps one cluster's processes.

One thread, one poll over pidfds, the control socket, signals and the owner; a timer only where something is due. An
idle cluster wakes it twice a minute, to bound the logs.

    request    [verb, {argument: value}]                          MessagePack, one frame from a DEALER
    reply      [True, {...}]  or  [False, [error class, text]]

    ping · status · pause · resume            answered at once
    kill · stop · start · restart · down      answered when it is so; other requests are served meanwhile

SIGTERM: stop everything cleanly. SIGKILL: the children go on; the next supervisor adopts them. The owner's death:
SIGKILL to everything, and every file of an ephemeral cluster is removed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zcluster import __version__, config, wire
from zcluster.config import ClusterSpec, load_spec, save_spec
from zcluster.errors import Conflict, Error, InvalidInput, Timeout
from zcluster.launch import process as system
from zcluster.launch.fleet import DEFAULT_COMMANDS, MS, Child, Commands, Fleet
from zcluster.launch.process import Process

if TYPE_CHECKING:
    import zmq

SECOND: Final = 1000 * MS
LOG_CHECK_S: Final = 30
LOG_GROWTH_BYTES: Final = 1 << 20
"""A log that grew by more than this since the last look is looked at again after a second."""
DEADLY: Final = frozenset({"SIGKILL", "SIGTERM", "SIGINT", "SIGQUIT", "SIGABRT"})


class Pending:
    """A reply that waits for something to become true."""

    __slots__ = ("client", "deadline", "holds", "what")

    def __init__(self, client: bytes, holds: Callable[[], bool], deadline: int, what: str) -> None:
        self.client = client
        self.holds = holds
        self.deadline = deadline
        self.what = what


class Supervisor:
    """The loop and the verbs. `fleet` knows the children; this decides when to act."""

    def __init__(self, spec: ClusterSpec, *, owner: str | None, commands: Commands) -> None:
        self.spec = spec
        self.fleet = Fleet(spec, owner=owner, commands=commands)
        self.owner_fd = system.open_owner(owner) if owner is not None else None
        self.owned = owner is not None
        self.pending: list[Pending] = []
        self.done = False
        self.next_log_check = 0
        self._log_sizes: dict[str, int] = {}
        self._creation: Any = None  # probe.Connections, until every replica has been seen up once
        self._creation_check = 0
        self._signals, self._signal_write = os.pipe()
        self._events = open(spec.path / "logs" / "events.jsonl", "ab", buffering=0)  # noqa: SIM115 closed at exit
        self.socket: zmq.Socket[bytes] | None = None

    # -- start and end ------------------------------------------------------------------------------------------------
    def begin(self) -> None:
        """Adopt what lives, start what should live; the slow imports come after that, while the children start."""
        for number in (self._signals, self._signal_write):
            os.set_blocking(number, False)
        signal.set_wakeup_fd(self._signal_write, warn_on_full_buffer=False)
        for terminating in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(terminating, self._on_signal)
        if self.owned and self.owner_fd is None:
            self.abandon()
            return
        for child in self.fleet.adopt(time.monotonic_ns()):
            self.note("adopted", child)
        self.start_due()

    def open_control(self) -> None:
        import zmq

        from zcluster.transport.sockets import Security, make_socket, serve_authentication

        security = Security.load(self.spec)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.authentication: Any = serve_authentication(self.context, security)
        endpoint = self.spec.endpoint("supervisor", config.CONTROL)
        self.socket = make_socket(self.context, zmq.ROUTER, bind=endpoint, security=security)
        self.socket.linger = 1000  # the answer to `down` is the last thing we say
        if not self.spec.created:
            from zcluster.launch.probe import Connections

            self._creation = Connections(self.spec, [n.name for n in self.spec.nodes], context=self.context)

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        if self._creation is not None:
            self._creation.close()
        if self.socket is not None:
            self.socket.close()
            if self.authentication is not None:
                self.authentication.stop()
            self.context.term()
        self._events.close()

    def _on_signal(self, number: int, frame: object) -> None:
        """The wakeup descriptor has the number; the loop acts on it."""

    def stop_all(self, timeout_s: float) -> None:
        """Ask every child to stop; 0 seconds: SIGKILL. The loop ends once all are gone."""
        self.fleet.closing = True
        now = time.monotonic_ns()
        for child in self.fleet.living():
            if timeout_s <= 0:
                self.kill_child(child, signal.SIGKILL)
            else:
                self.fleet.ask_to_stop(child, now + int(timeout_s * SECOND))

    def abandon(self) -> None:
        """The owner is gone: everything dies now."""
        self.note("owner gone", None)
        if self.owner_fd is not None:
            os.close(self.owner_fd)
            self.owner_fd = None
        self.stop_all(0)

    def clean(self) -> None:
        """After the last child: remove what means nothing without processes; of an ephemeral cluster, everything."""
        if self.spec.ephemeral:
            for pid, _ in system.find_processes(self.spec.directory):
                system.kill_pid(pid)  # what a task has started in a session of its own
        system.remove_traces(self.spec.path, self.spec.socket_directory, everything=self.spec.ephemeral)

    # -- the loop -----------------------------------------------------------------------------------------------------
    def run(self) -> None:
        import zmq

        assert self.socket is not None
        while not self.done:
            poller = zmq.Poller()
            poller.register(self.socket, zmq.POLLIN)
            poller.register(self._signals, zmq.POLLIN)
            if self.owner_fd is not None:
                poller.register(self.owner_fd, zmq.POLLIN)
            for child in self.fleet.living():
                assert child.process is not None
                poller.register(child.process.pidfd, zmq.POLLIN)
            if self._creation is not None:
                for socket, events in self._creation.interest():
                    poller.register(socket, events)
            ready = dict(poller.poll(self._timeout_ms()))
            self.turn(ready)

    def turn(self, ready: dict[Any, int]) -> None:
        if self._signals in ready:
            numbers = os.read(self._signals, 64)
            if signal.SIGTERM in numbers or signal.SIGINT in numbers or (signal.SIGHUP in numbers and self.owned):
                self.note("asked to stop", None)
                self.stop_all(0 if self.spec.ephemeral else 10)
        if self.owner_fd is not None and self.owner_fd in ready:
            self.abandon()
        self.collect_dead()
        if self.socket in ready:
            self.serve()
            self.collect_dead()
        self.answer_pending()
        now = time.monotonic_ns()
        for child in self.fleet.living():
            if child.kill_at is not None and child.kill_at <= now:
                self.note("SIGKILL: did not stop in time", child)
                self.kill_child(child, signal.SIGKILL)
        self.start_due()
        self.answer_pending()
        self.check_creation(now)
        if now >= self.next_log_check:
            self.check_logs(now)
        if self.fleet.closing and not self.fleet.living() and not self.pending:
            self.done = True

    def _timeout_ms(self) -> int:
        moments = [self.next_log_check, *(p.deadline for p in self.pending)]
        due = self.fleet.next_deadline()
        if due is not None:
            moments.append(due)
        if self._creation is not None:
            moments.append(self._creation_check)
        return max(0, -(-(min(moments) - time.monotonic_ns()) // MS))

    def collect_dead(self) -> None:
        now = time.monotonic_ns()
        for child in self.fleet.living():
            if child.process is not None and child.process.exited():
                pid = child.process.pid
                self.note(f"died: {self.fleet.collect(child, now)}", child, pid)

    def start_due(self) -> None:
        now = time.monotonic_ns()
        try:
            for child in self.fleet.start_due(now):
                self.note("started", child)
        except OSError as error:  # out of processes, memory or disk: try again soon, never give up
            self.note(f"cannot start processes: {error}", None)
            for child in self.fleet.children.values():
                if child.process is None:
                    child.restart_at = now + SECOND

    def check_creation(self, now: int) -> None:
        """Once every replica has answered, its store exists: from then on a missing one is an error."""
        if self._creation is None:
            return
        self._creation.pump(0.0)
        self._creation_check = now + SECOND  # one that was restarted meanwhile does not know us: greet it again
        if len(self._creation.announced) == len(self.spec.nodes):
            self.spec = msgspec.structs.replace(load_spec(self.spec.directory), created=True)
            save_spec(self.spec)
            self.fleet.spec = self.spec
            self._creation.close()
            self._creation = None

    def check_logs(self, now: int) -> None:
        busy = False
        for path in (self.spec.path / "logs").glob("*.*"):
            if path.suffix not in (".log", ".jsonl"):
                continue
            if system.rotate_log(path):
                self.note(f"log {path.name} was full: the older half is gone", None)
            with suppress(FileNotFoundError):
                size_bytes = path.stat().st_size
                busy = busy or size_bytes - self._log_sizes.get(path.name, size_bytes) > LOG_GROWTH_BYTES
                self._log_sizes[path.name] = size_bytes
        self.next_log_check = now + (1 if busy else LOG_CHECK_S) * SECOND

    # -- the control socket -------------------------------------------------------------------------------------------
    def serve(self) -> None:
        import zmq

        assert self.socket is not None
        for _ in range(64):
            try:
                client, body = self.socket.recv_multipart(zmq.NOBLOCK)
                verb, arguments = wire.decode(body)
            except zmq.Again:
                return
            except (ValueError, *wire.DecodeError):
                continue  # not one of ours
            try:
                handler = self.VERBS.get(verb)
                if handler is None:
                    raise InvalidInput(f"the supervisor knows no verb {verb!r}; is another zcluster version running?")
                if self.fleet.closing and verb not in ("ping", "status", "down"):
                    raise Conflict(f"cluster {self.spec.name!r} is going down")
                handler(self, client, **arguments)
            except (Error, OSError, TypeError) as error:
                self.send(client, False, [type(error).__name__, str(error)])

    def send(self, client: bytes, ok: bool, body: Any) -> None:
        import zmq

        assert self.socket is not None
        with suppress(zmq.ZMQError):  # the asker has gone
            self.socket.send_multipart([client, wire.encode([ok, body])], zmq.NOBLOCK)

    def answer_pending(self) -> None:
        now = time.monotonic_ns()
        waiting, self.pending = self.pending, []
        for one in waiting:
            if one.holds():
                self.send(one.client, True, {})
            elif now >= one.deadline:
                self.send(one.client, False, [Timeout.__name__, f"{one.what} took too long; it still goes on"])
            else:
                self.pending.append(one)

    def wait_until(self, client: bytes, timeout_s: float, what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic_ns() + int(timeout_s * SECOND)
        self.pending.append(Pending(client, holds, deadline, what))

    # -- verbs --------------------------------------------------------------------------------------------------------
    def verb_ping(self, client: bytes) -> None:
        self.send(client, True, {"pid": os.getpid(), "version": __version__, "cluster_id": self.spec.cluster_id})

    def verb_status(self, client: bytes) -> None:
        fleet = self.fleet
        body = {
            "pid": os.getpid(),
            "version": __version__,
            "processes": [fleet.describe(child) for child in fleet.children.values()],
        }
        self.send(client, True, body)

    def kill_child(self, child: Child, number: int) -> None:
        if child.process is not None:
            child.process.signal(number)
            child.asked_to_die = True

    def verb_kill(
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
        for child in children:
            if child.process is not None:
                child.process.signal(number)
                child.asked_to_die = child.asked_to_die or deadly
        names = {c.name for c in children}
        if deadly:
            self._spare_tasks(children)
        for child in children:
            self.note(f"sent {signal_name}", child)
        if deadly:
            nodes = [c.name for c in children if c.kind == "replica" and c.name not in self.fleet.wishes.down]
            if nodes:
                self.fleet.want_down(nodes, signal_name)
            self.wait_until(client, timeout_s, f"{signal_name} to {', '.join(sorted(names))}", _gone(killed))
        else:
            self.send(client, True, {})

    def _spare_tasks(self, children: list[Child]) -> None:
        """Killed on purpose: whatever these workers were running is not to blame for it."""
        from zcluster.tasks.word import spare

        for child in children:
            if child.kind == "worker" and child.process is not None:
                spare(self.fleet.spec.path / "run", child.name, child.process.pid)

    def verb_pause(self, client: bytes, targets: list[str]) -> None:
        self._set_paused(targets, paused=True)
        self.send(client, True, {})

    def verb_resume(self, client: bytes, targets: list[str]) -> None:
        self._set_paused(targets, paused=False)
        self.send(client, True, {})

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

    def verb_stop(self, client: bytes, targets: list[str], timeout_s: float = 10) -> None:
        children = self.fleet.resolve(targets)
        kill_at = time.monotonic_ns() + int(timeout_s * SECOND)
        stopped = [c.process for c in children if c.process is not None]
        for child in children:
            self.fleet.ask_to_stop(child, kill_at)
        nodes = [c.name for c in children if c.kind == "replica" and c.name not in self.fleet.wishes.down]
        if nodes:
            self.fleet.want_down(nodes, "stopped")
        self.wait_until(client, timeout_s + 5, "stop", _gone(stopped))

    def verb_start(self, client: bytes, targets: list[str], timeout_s: float = 10) -> None:
        """What is being stopped right now is started once it is gone; a paused node with a living replica stays so."""
        children = self.fleet.resolve(targets)
        self.fleet.want_up(c.name for c in children if c.kind == "replica")
        stalled = [c.name for c in children if c.process is None and c.name in self.fleet.wishes.paused]
        if stalled:
            self._set_paused(stalled, paused=False)
        for child in children:
            if child.process is None:
                child.failure = child.restart_at = None
                child.quick_deaths = 0
        self.start_due()
        self.wait_until(client, timeout_s, "start", self._running(children))

    def verb_restart(self, client: bytes, targets: list[str], timeout_s: float = 10) -> None:
        children = self.fleet.resolve(targets)
        nodes = [c.name for c in children if c.kind == "replica"]
        self.fleet.want_up(nodes)
        self.fleet.want_paused(nodes, paused=False)
        old = [c.process for c in children if c.process is not None]
        kill_at = time.monotonic_ns() + int(timeout_s * SECOND)
        for child in children:
            child.failure = child.restart_at = None
            self.fleet.ask_to_stop(child, kill_at)
        self.start_due()
        gone, running = _gone(old), self._running(children)
        self.wait_until(client, timeout_s + 5, "restart", lambda: gone() and running())

    def verb_down(self, client: bytes, timeout_s: float = 10) -> None:
        self.note("down", None)
        self.stop_all(timeout_s)
        self.wait_until(client, timeout_s + 10, "down", lambda: not self.fleet.living())

    def _running(self, children: list[Child]) -> Callable[[], bool]:
        return lambda: all((c.process is not None and not c.asked_to_die) or not self.fleet.wanted(c) for c in children)

    VERBS: Final[dict[str, Callable[..., None]]] = {
        "ping": verb_ping,
        "status": verb_status,
        "kill": verb_kill,
        "pause": verb_pause,
        "resume": verb_resume,
        "stop": verb_stop,
        "start": verb_start,
        "restart": verb_restart,
        "down": verb_down,
    }

    # -- the event log ------------------------------------------------------------------------------------------------
    def note(self, event: str, child: Child | None, pid: int | None = None) -> None:
        """One line of logs/events.jsonl. A full disk must not stop the supervisor."""
        line: dict[str, Any] = {"time_ms": time.time_ns() // MS, "event": event}
        if child is not None:
            line |= {"process": child.name, "pid": child.process.pid if child.process is not None else pid}
        with suppress(OSError):
            self._events.write(msgspec.json.encode(line) + b"\n")


def _gone(processes: Iterable[Process]) -> Callable[[], bool]:
    """True once all of them were collected (their descriptors are closed then)."""
    waiting = list(processes)
    return lambda: all(p.pidfd < 0 for p in waiting)


def report_ready(descriptor: int, text: str = "ready") -> None:
    """Tell whoever started us, if they gave a pipe: "ready", or "ErrorClass: text"."""
    if descriptor >= 0:
        with suppress(OSError):
            os.write(descriptor, text.encode()[:4000])
            os.close(descriptor)


def main(arguments: list[str], commands: Commands | None = None) -> int:
    directory = str(Path(arguments[0]).absolute())
    options = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    ready_fd = int(options.get("--ready-fd", -1))
    if ready_fd >= 0:
        os.set_inheritable(ready_fd, False)
    try:
        system.require_linux()
        if "--commands" in options:
            commands = msgspec.json.decode(options["--commands"], type=Commands)
        spec = load_spec(directory)
        held = system.lock(spec.path / "lock")
        os.chdir(directory)
        owner_path = spec.path / "run" / "owner"
        owner = options.get("--owner") or (owner_path.read_text() if owner_path.exists() else None)
        if owner is not None:
            system.write_file(owner_path, owner.encode())
        supervisor = Supervisor(spec, owner=owner, commands=commands or DEFAULT_COMMANDS)
        supervisor.begin()
        supervisor.open_control()
        system.write_run_file(spec.path, system.identify_self("supervisor"))
    except Error as error:
        report_ready(ready_fd, f"{type(error).__name__}: {error}")
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    report_ready(ready_fd)
    supervisor.run()
    supervisor.clean()
    supervisor.close()
    system.unlock(held)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
