"""`python -m zcluster.launch.supervisor CLUSTER_DIRECTORY [--owner PID:STARTTICKS]`: keeps one cluster's processes.

One thread, one poll over pidfds, the control socket, signals and the owner; a timer only where something is due. An
idle cluster wakes it twice a minute, to bound the logs and to see that its directory is still there.

    ping · status · pause · resume            answered at once
    kill · stop · start · restart · down      answered when it is so; other requests are served meanwhile
    scale · wipe                              likewise, by `reconcile`

What requests look like: see `requests`. SIGTERM: stop everything cleanly. SIGKILL: the children go on; the next
supervisor adopts them. The owner's death: SIGKILL to everything, and every file of an ephemeral cluster is removed.
The directory's removal: SIGKILL to everything.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zcluster.config import ClusterSpec, load_spec, save_spec
from zcluster.errors import Error, StorageError
from zcluster.launch import files
from zcluster.launch import process as system
from zcluster.launch.fleet import DEFAULT_COMMANDS, MS, Child, Commands, Fleet
from zcluster.launch.logs import Logs

if TYPE_CHECKING:
    from zcluster.launch.reconcile import Reconciler
    from zcluster.launch.verbs import Verbs

SECOND: Final = 1000 * MS


class Supervisor:
    """The loop and the verbs. `fleet` knows the children; this decides when to act."""

    def __init__(self, spec: ClusterSpec, *, owner: str | None, commands: Commands, lock: int) -> None:
        self.spec = spec
        self.fleet = Fleet(spec, owner=owner, commands=commands)
        self.owner_fd = system.open_owner(owner) if owner is not None else None
        self.owned = owner is not None
        self.done = False
        self._lock = lock
        self._creation: Any = None  # probe.Connections, until every replica has been seen up once
        self._creation_check = 0
        self._signals, self._signal_write = os.pipe()
        self.logs = Logs(spec.path / "logs")
        self.verbs: Verbs | None = None  # once the control socket is open
        self.reconciler: Reconciler | None = None  # likewise

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
        """Raises: zmq.ZMQError, InvalidInput: where the socket is to lie is not ours to write."""
        from zcluster.launch.reconcile import Reconciler
        from zcluster.launch.requests import Requests
        from zcluster.launch.verbs import Verbs

        requests = Requests(self.spec)
        self.reconciler = Reconciler(self.fleet, requests, note=self.note, use=self.use)
        self.reconciler.wake_if_unsettled()
        self.verbs = Verbs(self.fleet, requests, self.reconciler, note=self.note, start_due=self.start_due)
        if requests.sockets_were_gone:
            for child in self.fleet.living():
                if child.process is not None and not child.process.own:  # adopted: nobody can connect to it any more
                    self.note("its sockets were removed: restarted", child)
                    self.verbs.kill_spared([child], signal.SIGKILL)
        if not self.spec.created:
            from zcluster.launch.probe import Connections

            names = [n.name for n in self.spec.nodes]
            self._creation = Connections(self.spec, names, context=requests.context)

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        if self._creation is not None:
            self._creation.close()
        if self.verbs is not None:
            self.verbs.requests.close()
        self.logs.close()

    def give_up(self) -> None:
        """We cannot be reached: end what we have started; what was adopted lives on for the next one."""
        for child in self.fleet.living():
            if child.process is not None and child.process.own:
                self.fleet.kill(child, signal.SIGKILL)

    def _on_signal(self, number: int, frame: object) -> None:
        """The wakeup descriptor has the number; the loop acts on it."""

    def abandon(self) -> None:
        """The owner is gone: everything dies now."""
        self.note("owner gone", None)
        if self.owner_fd is not None:
            os.close(self.owner_fd)
            self.owner_fd = None
        self.fleet.stop_all(0)

    def check_place(self) -> None:
        """Somebody removed our directory, and may have made another cluster there: end, and touch nothing of that."""
        if not self.fleet.displaced and not files.is_same(self.spec.path / "lock", self._lock):
            self.fleet.displaced = True
            self.fleet.stop_all(0)

    def clean(self) -> None:
        """After the last child: remove what means nothing without processes; of an ephemeral cluster, everything."""
        if not self.fleet.displaced:
            with suppress(OSError):
                files.remove_run_file(self.spec.path, "supervisor")  # first: nobody is to wait for us any more
        if self.spec.ephemeral:
            for pid, _ in system.find_processes(self.spec.directory):
                system.kill_pid(pid)  # what a task has started in a session of its own
        if self.fleet.displaced:
            if not self.spec.path.exists():
                files.remove_traces(self.spec.path, self.spec.socket_directory, everything=False)
            return
        with suppress(StorageError):  # nobody is left to be told
            files.remove_traces(self.spec.path, self.spec.socket_directory, everything=self.spec.ephemeral)

    # -- the loop -----------------------------------------------------------------------------------------------------
    def run(self) -> None:
        import zmq

        assert self.verbs is not None and self.reconciler is not None
        while not self.done:
            poller = zmq.Poller()
            poller.register(self.verbs.requests.socket, zmq.POLLIN)
            poller.register(self._signals, zmq.POLLIN)
            if self.owner_fd is not None:
                poller.register(self.owner_fd, zmq.POLLIN)
            for child in self.fleet.living():
                assert child.process is not None
                poller.register(child.process.pidfd, zmq.POLLIN)
            if self._creation is not None:
                for socket, events in self._creation.interest():
                    poller.register(socket, events)
            for socket, events in self.reconciler.interest():
                poller.register(socket, events)
            ready = dict(poller.poll(self._timeout_ms()))
            self.turn(ready)

    def turn(self, ready: dict[Any, int]) -> None:
        assert self.verbs is not None and self.reconciler is not None
        self.check_place()
        if self._signals in ready:
            numbers = os.read(self._signals, 64)
            if signal.SIGTERM in numbers or signal.SIGINT in numbers or (signal.SIGHUP in numbers and self.owned):
                self.note("asked to stop", None)
                self.fleet.stop_all(0 if self.spec.ephemeral else 10)
        if self.owner_fd is not None and self.owner_fd in ready:
            self.abandon()
        self.collect_dead()
        if self.verbs.requests.socket in ready:
            self.serve()
            self.collect_dead()
        self.verbs.requests.answer_due()
        now = time.monotonic_ns()
        for child in self.fleet.living():
            if child.kill_at is not None and child.kill_at <= now:
                self.note("SIGKILL: did not stop in time", child)
                self.fleet.kill(child, signal.SIGKILL)
        if not self.fleet.displaced:
            self.reconciler.turn(now)
        self.start_due()
        self.verbs.requests.answer_due()
        self.check_creation(now)
        if now >= self.logs.next_look:
            self.logs.bound(now)
            self.fleet.mend_run_files()
        if self.fleet.closing and not self.fleet.living() and not self.verbs.requests.pending:
            self.done = True

    def _timeout_ms(self) -> int:
        assert self.verbs is not None and self.reconciler is not None
        moments = [self.logs.next_look, self.reconciler.next_deadline(), *self.verbs.requests.deadlines()]
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
                self.note("died", child, pid, reason=self.fleet.collect(child, now))

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
        if self._creation is None or self.fleet.displaced:
            return
        self._creation.pump(0.0)
        self._creation_check = now + SECOND  # one that was restarted meanwhile does not know us: greet it again
        if len(self._creation.announced) == len(self.spec.nodes):
            try:
                created = msgspec.structs.replace(load_spec(self.spec.directory), created=True)
                save_spec(created)
            except (Error, OSError) as error:  # a full disk, a damaged description: try again
                self.note(f"cannot note that every store exists: {error}", None)
                return
            self.use(created)
            self._creation.close()
            self._creation = None

    def use(self, spec: ClusterSpec) -> None:
        """The description has changed."""
        self.spec = self.fleet.spec = spec

    def serve(self) -> None:
        assert self.verbs is not None
        for client, verb, arguments in self.verbs.requests.take():
            self.verbs.carry_out(client, verb, arguments)

    def note(self, event: str, child: Child | None = None, pid: int | None = None, **facts: Any) -> None:
        """A line of the event log; `pid`: of a child that has none any more."""
        if child is None:
            self.logs.note(event, **facts)
        else:
            self.logs.note(event, child.name, child.process.pid if child.process is not None else pid, **facts)


def report_ready(descriptor: int, text: str = "ready") -> None:
    """Tell whoever started us, if they gave a pipe: "ready", or "ErrorClass: text"."""
    if descriptor >= 0:
        with suppress(OSError):
            os.write(descriptor, text.encode()[:4000])
            os.close(descriptor)


def main(arguments: list[str], commands: Commands | None = None) -> int:
    if len(arguments) % 2 == 0:
        sys.stderr.write("zcluster starts this by itself; use: zcluster up\n")
        return 2
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
        held = files.lock(spec.path / "lock")
        os.chdir(directory)
        owner_path = spec.path / "run" / "owner"
        owner = options.get("--owner") or (owner_path.read_text() if owner_path.exists() else None)
        if owner is not None:
            files.write_file(owner_path, owner.encode())
        supervisor = Supervisor(spec, owner=owner, commands=commands or DEFAULT_COMMANDS, lock=held)
        supervisor.begin()
        try:
            supervisor.open_control()
        except Error:
            supervisor.give_up()
            raise
        files.write_run_file(spec.path, system.identify_self("supervisor"))
    except (Error, OSError) as error:
        report_ready(ready_fd, f"{type(error).__name__}: {error}")
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code if isinstance(error, Error) else 1
    report_ready(ready_fd)
    supervisor.run()
    supervisor.clean()
    supervisor.close()
    files.unlock(held)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
