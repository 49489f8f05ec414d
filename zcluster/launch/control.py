"""The client side of the control socket, and starting a supervisor where there is none.

Whoever finds a cluster's processes without a supervisor starts one, which adopts them. A `Control` holds nothing open
between calls, so it may be used from any thread and after a fork.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq

from zcluster import config, errors, wire
from zcluster.config import ClusterSpec, load_spec
from zcluster.errors import Conflict, Error, NotRunning, Timeout
from zcluster.launch import files, fleet, layout
from zcluster.launch import process as system
from zcluster.launch.process import Process
from zcluster.transport.sockets import Security, make_socket

START_TIMEOUT_S: Final = 30.0
ANSWER_MARGIN_S: Final = 10.0
"""The supervisor itself answers in time, if with an error; only a stuck one is given up this much later."""

RUN_FILE_S: Final = 2.0
"""A supervisor older than this has written its run file; one that is ending holds its lock for less."""

_started: list[Process] = []
"""Supervisors that this process has started: collected when they have ended, so that they are no zombies of ours."""
_collecting = threading.Lock()


def spawn_supervisor(directory: Path, *, owner: str | None = None) -> Process:
    """Start a supervisor and return once it answers; its children are starting then.

    Args:
        owner: see `process.owner_text`; None: a cluster that stays.
    Raises: Conflict (there is one already), and whatever else the supervisor reports; Error with its last words.
    """
    collect_supervisors()
    try:
        for part in ("run", "logs"):
            (directory / part).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise layout.unwritable(directory, error) from None
    arguments = ["-m", "zcluster.launch.supervisor", str(directory)]
    if owner is not None:
        arguments += ["--owner", owner]
    if fleet.COMMANDS != fleet.DEFAULT_COMMANDS:
        arguments += ["--commands", msgspec.json.encode(fleet.COMMANDS).decode()]
    read_end, write_end = os.pipe()
    log = directory / "logs" / "supervisor.log"
    try:
        arguments += ["--ready-fd", "3"]
        environment = system.child_environment(ZCLUSTER_DIRECTORY=str(directory), ZCLUSTER_PROCESS="supervisor")
        process = system.spawn(
            "supervisor", "supervisor", arguments, environment=environment, log=log, pass_descriptor=write_end
        )
    finally:
        os.close(write_end)
    try:
        text = ""
        if system.readable(read_end, START_TIMEOUT_S):
            text = os.read(read_end, 4096).decode(errors="replace")
    finally:
        os.close(read_end)
    if text == "ready":
        _started.append(process)
        return process
    system.kill_pid(process.pid)
    process.exited(5.0)
    code = process.reap()
    if text:
        raise typed_error(*text.split(": ", 1))
    raise Error(
        f"the supervisor did not start ({system.describe_exit(code)}); the end of {log}:\n{files.log_tail(log, 5)}"
    )


def collect_supervisors() -> None:
    """Collect supervisors of ours that have ended. Another thread at it: it will do (and a fork cannot hang here)."""
    if not _collecting.acquire(blocking=False):
        return
    try:
        for process in list(_started):
            if process.exited():
                _started.remove(process)
                process.reap()
    finally:
        _collecting.release()


def typed_error(name: str, text: str) -> Error:
    """The error that the supervisor reported by class name."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, Error) and kind not in (errors.NotLeader, errors.Corrupt):
        return kind(text)
    return Error(f"{name}: {text}")


class Control:
    """Requests to the supervisor of one cluster.

    Args:
        directory: the cluster's.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory).absolute()

    def supervisor(self) -> Process | None:
        """A handle on the living supervisor, to be closed by the caller; None when there is none."""
        identity = files.read_run_file(self.directory, "supervisor")
        return Process.adopt(identity) if identity is not None else None

    def _find_supervisor(self) -> Process | None:
        """The one that holds the lock although its run file is gone or damaged; the file is written anew."""
        for pid, marks in system.find_processes(self.directory):
            if marks.get("ZCLUSTER_PROCESS") == "supervisor":
                identity = system.identify(pid, "supervisor", marks["ZCLUSTER_RUN_ID"])
                if identity is not None and identity.age_seconds > RUN_FILE_S:  # a younger one is about to write it
                    files.write_run_file(self.directory, identity)
                    return Process.adopt(identity)
        return None

    def processes(self) -> dict[str, system.Identity]:
        """Living processes by name, the supervisor left out."""
        found = files.read_run_files(self.directory)
        return {n: i for n, i in found.items() if n != "supervisor" and system.living(i) is not None}

    def running(self) -> bool:
        """Whether a supervisor or any other process of the cluster is alive."""
        identity = files.read_run_file(self.directory, "supervisor")
        return (identity is not None and system.living(identity) is not None) or bool(self.processes())

    def ensure(self, *, owner: str | None = None) -> Process:
        """The supervisor; started if processes run without one. Raises: NotRunning, when nothing runs."""
        give_up = time.monotonic() + START_TIMEOUT_S
        while True:
            found = self.supervisor()
            if found is not None:
                return found
            if not self.processes():
                name = load_spec(self.directory).name
                raise NotRunning(f"cluster {name!r} is not running; start it: {config.command(self.directory)} up")
            self.start(owner=owner, give_up=give_up)

    def start(self, *, owner: str | None = None, give_up: float | None = None) -> bool:
        """Start a supervisor, whatever runs; one that another command starts at this moment will do as well.

        Returns: whether it is ours. Raises: Error.
        """
        began = time.monotonic()
        give_up = began + 5 if give_up is None else give_up
        while True:
            try:
                spawn_supervisor(self.directory, owner=owner)
                return True
            except Conflict:
                found = self.supervisor()
                if found is None and time.monotonic() - began > RUN_FILE_S:  # till then it may be starting, or ending
                    found = self._find_supervisor()
                if found is not None:
                    found.close()
                    return False
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.02)  # the lock's holder is about to start, or about to end: nothing tells which, or when

    def call(
        self, verb: str, *, timeout: float = 10.0, progress: Callable[[str], None] | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """Ask and wait for the answer.

        Args:
            timeout: seconds, for the whole. Verbs that wait get it as their own limit in `arguments`.
            progress: called with what the supervisor says meanwhile.
        Raises: NotRunning, Timeout, and what the supervisor answers.
        """
        give_up = time.monotonic() + timeout
        body = wire.encode([verb, arguments])
        while True:
            supervisor = self.ensure()
            try:
                spec = load_spec(self.directory)
                if self._is_cut_off(spec):  # nobody can reach it: the next one makes a new socket, and adopts
                    supervisor.signal(signal.SIGKILL)
                    supervisor.exited(give_up - time.monotonic())
                    continue
                answer = self._exchange(spec, supervisor, body, give_up, progress)
            finally:
                supervisor.close()
            if answer is not None:
                ok, result = answer
                if ok:
                    return dict(result)
                raise typed_error(*result)
            if time.monotonic() >= give_up:
                raise Timeout(f"the supervisor of {spec.name!r} did not answer {verb!r} within {timeout:g} s")

    def _is_cut_off(self, spec: ClusterSpec) -> bool:
        """Whether the socket of a supervisor that has one (its run file says so) was removed, by a cleaned /tmp say."""
        endpoint = spec.endpoint("supervisor", config.CONTROL)
        return endpoint.startswith("ipc://") and not os.path.exists(endpoint.removeprefix("ipc://"))

    def _exchange(
        self,
        spec: ClusterSpec,
        supervisor: Process,
        body: bytes,
        give_up: float,
        progress: Callable[[str], None] | None,
    ) -> Any:
        """One request, one answer, decoded; None when the supervisor died or time is up."""
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        endpoint = spec.endpoint("supervisor", config.CONTROL)
        socket = make_socket(context, zmq.DEALER, connect=endpoint, security=Security.load(spec))
        try:
            poller = zmq.Poller()
            poller.register(supervisor.pidfd, zmq.POLLIN)
            poller.register(socket, zmq.POLLOUT)
            while (left_s := give_up - time.monotonic()) > 0:
                ready = dict(poller.poll(int(left_s * 1000) + 1))
                events = ready.get(socket, 0)
                if events & zmq.POLLOUT:
                    socket.send(body, zmq.NOBLOCK)
                    poller.modify(socket, zmq.POLLIN)
                elif events & zmq.POLLIN:
                    answer = wire.decode(socket.recv())
                    if answer[0] is not None:
                        return answer
                    if progress is not None and answer[1]:
                        progress(answer[1])
                elif supervisor.pidfd in ready:
                    return None
            return None
        finally:
            socket.close()
            context.term()

    def down(self, timeout: float) -> bool:
        """Stop everything and wait until the supervisor has ended too. Returns: whether anything ran."""
        give_up = time.monotonic() + timeout + ANSWER_MARGIN_S
        try:
            supervisor = self.ensure()
        except NotRunning:
            return False
        try:
            try:
                self.call("down", timeout=timeout + ANSWER_MARGIN_S, timeout_s=timeout)
            except (NotRunning, Timeout):
                pass
            if not supervisor.exited(max(0.0, give_up - time.monotonic())):
                supervisor.signal(signal.SIGKILL)
                raise Timeout(f"{self.directory}: not everything stopped in time; run `zcluster down` again")
        finally:
            supervisor.close()
            collect_supervisors()
        return True
