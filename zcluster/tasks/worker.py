"""`python -m zcluster.tasks.worker CLUSTER_DIRECTORY NAME`: one process that runs tasks, one at a time.

    main thread          wait for work -> note the task in shared memory -> run it -> results, a batch at a time
    attendant            (only while a task runs) recalls, pings, more work, results that would wait; see `line`

Tasks run on the main thread, so signals and `KeyboardInterrupt` mean what they should. Results are kept until the
router has acknowledged them; a new router hears what is running and held, and gets those results again.

Exit codes: 0 asked to stop (SIGTERM); 73 the run directory takes no word on what is running (a full disk?); 75 a user's
module has changed, start me afresh; 78 refused by the router.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import repeat
from types import FrameType
from typing import Any, Final, NoReturn

from zcluster.config import WORKER, ClusterSpec, load_spec
from zcluster.entry import check_arguments
from zcluster.tasks import link as links
from zcluster.tasks import payload
from zcluster.tasks import protocol as p
from zcluster.tasks.direct import ANSWER_BYTES_MAX, Answers
from zcluster.tasks.execute import run
from zcluster.tasks.line import Line
from zcluster.tasks.modules import ModuleWatch
from zcluster.tasks.word import Word
from zcluster.transport.liveness import exit_with_owner, start_ticks
from zcluster.transport.sockets import Security
from zcluster.types import MS, NEVER, Nanoseconds

EXIT_CANNOT_WRITE: Final = 73
EXIT_CHANGED: Final = 75
EXIT_REFUSED: Final = 78
RESULTS_PER_FRAME: Final = 32
RESULT_DELAY_NS: Final = 1 * MS
"""A finished task's result waits this long for company, and only while more tasks are at hand."""
FAREWELL_S: Final = 1.0
DRAIN_S: Final = 2.0
"""How long a task that is running when the worker is asked to stop may go on. After that it is run again elsewhere; one
that must not be has until SIGKILL, which comes when the time given to the stop is over."""
SWITCH_INTERVAL_S: Final = 0.0005
CHECK_MODULES_NS: Final = 1_000 * MS


class Leave(BaseException):
    """SIGTERM came while the worker was waiting for work."""


Task = tuple[tuple[int, int, bytes, bytes, int, int], payload.Segments]
"""(as in protocol.Work, its segments)"""


class Function:
    """A function that the router has sent: unpickled when first needed."""

    __slots__ = ("_call", "wire")

    def __init__(self, wire: p.Function) -> None:
        self.wire = wire
        self._call: Callable[..., Any] | None = None

    def call(self) -> Callable[..., Any]:
        if self._call is not None:
            return self._call
        importlib.invalidate_caches()
        found: Callable[..., Any] = payload.load(self.wire.blob, None)
        if self.wire.keep:
            self._call = found
        return found


class Worker:
    """What one worker process knows. `run` is the main thread's."""

    def __init__(self, spec: ClusterSpec, name: str, word: Word) -> None:
        self.spec = spec
        self.name = name
        self.word = word
        self.running: p.TaskId | None = None
        self.running_flags = 0
        self.inbox: OrderedDict[p.TaskId, Task] = OrderedDict()
        self.functions: dict[bytes, Function] = {}
        self.results: list[tuple[int, int, int, bytes, int, int]] = []  # not sent yet
        self.segments: list[bytes] = []
        self.first_result: Nanoseconds = NEVER
        self.recalled: list[tuple[int, int, bool]] = []
        self.sequence = 0
        self.unacknowledged: deque[tuple[int, list[bytes]]] = deque()  # (sequence, message)
        self.connected = False
        self.stop: int | None = None  # exit code
        self.waiting = False  # the main thread waits for messages: a signal handler may raise `Leave`
        self._context: list[str] | None = None
        self._base_path = list(sys.path)
        self._modules = ModuleWatch()
        self._modules_checked: Nanoseconds = 0
        self._line = Line(
            spec.endpoint("router", WORKER),
            Security.load(spec),
            self._on_message,
            self._flush,
            self._next_deadline,
        )
        self._answers = Answers(spec, self._line.context)

    # -- messages (with the line's lock, on either thread) ------------------------------------------------------------
    def _on_message(self, parts: list[bytes]) -> None:
        try:
            kind, body = p.unpack(parts[0])
            segments: Iterable[payload.Segments] = repeat(None)
            if kind == p.WORK and len(parts) > 1:
                segments = p.split_segments([task[5] for task in body.tasks], parts[1:])
        except ValueError:
            return  # not from our router
        if kind == p.WORK:
            self._acknowledged(body.acknowledged)
            for digest in body.forgotten:
                self.functions.pop(digest, None)
            for function in body.functions:
                self.functions[function.digest] = Function(function)
                self._modules_checked = 0
            for task, own in zip(body.tasks, segments, strict=False):
                self.inbox[task[0], task[1]] = (task, own)
        elif kind == p.RECALL:
            for task_id in body:
                self.recalled.append((*task_id, self.inbox.pop(task_id, None) is not None))
            self._flush()
        elif kind == p.PING:
            self._send([p.pack(p.PONG, [])])
        elif kind == p.WHO:
            self._report()
        elif kind == p.REFUSED:
            sys.stderr.write(f"{self.name}: refused by the router: {body[0]}\n")
            self.stop = EXIT_REFUSED

    def _report(self) -> None:
        """Introduce ourselves to a router that does not know us, and repeat what it may have missed."""
        current = self.running
        held = [result[:2] for result in self.results]
        if current is not None:
            held.append(current)
        finished = [entry[:2] for _, message in self.unacknowledged for entry in p.unpack(message[0])[1].results]
        report = [
            p.PROTOCOL,
            self.spec.cluster_id,
            self.name,
            p.PYTHON,
            os.getpid(),
            start_ticks(os.getpid()) or 0,
            current,
            [*finished, *held, *self.inbox],
        ]
        self._send([p.pack(p.REPORT, report)])
        for _, message in self.unacknowledged:
            self._send(message)

    def _acknowledged(self, sequence: int) -> None:
        while self.unacknowledged and self.unacknowledged[0][0] <= sequence:
            self.unacknowledged.popleft()

    def _send(self, message: list[bytes]) -> None:
        # What is not sent needs no queue: when there is a router again, the report and the results go out anew.
        self.connected = self._line.send(message)

    def _flush(self) -> None:
        """Send the results so far. Needs the lock."""
        if not self.results and not self.recalled:
            return
        results, self.results = self.results, []
        segments, self.segments = self.segments, []
        recalled, self.recalled = self.recalled, []
        self.first_result = NEVER
        self.sequence += 1
        message = [p.pack(p.DONE, (self.sequence, results, recalled)), *segments]
        self.unacknowledged.append((self.sequence, message))
        self._send(message)

    def _next_deadline(self) -> Nanoseconds:
        return self.first_result + RESULT_DELAY_NS if self.first_result < NEVER else NEVER

    # -- tasks (main thread) ------------------------------------------------------------------------------------------
    def run(self) -> int:
        """Until asked to stop. Returns: the exit code."""
        try:
            while self.stop is None:
                self.waiting = True
                if self.stop is None:  # a signal from now on raises `Leave`
                    self._line.receive()
                self.waiting = False
                while self.inbox and self.stop is None:
                    self._line.begin()
                    self._run_all()
                    self._line.end()
        except Leave:
            pass
        self._farewell()
        return self.stop or 0

    def _run_all(self) -> None:
        """Run what is at hand. Whatever the attendant may touch as well is touched with the lock."""
        lock, inbox, now_ns = self._line.lock, self.inbox, time.monotonic_ns
        began = now_ns()
        if began - self._modules_checked >= CHECK_MODULES_NS:
            self._modules_checked = began
            if self._modules.changed():
                self.stop = EXIT_CHANGED
                return
        with lock:
            task_id, (task, segments) = inbox.popitem(last=False)
            self.running, self.running_flags = task_id, task[4]
        while True:
            self.word.set(*task_id)
            function = self.functions[task[2]]
            if self._context is not function.wire.path:
                self._enter(function.wire)
            status, data, segments = run(function.call, task[3], segments, task[4])
            ended = now_ns()
            if task[4] & p.DIRECT and segments is None and len(data) <= ANSWER_BYTES_MAX:
                # Before anything else: somebody waits for it.
                answer = p.pack(p.ANSWER, (task_id[1], status, data, 0))
                if self._answers.send(task_id[0], answer, ended):
                    status |= p.ANSWERED
            result = (*task_id, status, data, ended - began, len(segments) if segments else 0)
            began = ended
            with lock:
                self.results.append(result)
                if segments:
                    self.segments += segments
                if not inbox or self.stop is not None:
                    self.running = None
                    self.word.clear()
                    self._flush()
                    break
                if len(self.results) >= RESULTS_PER_FRAME:
                    self._flush()
                elif self.first_result == NEVER:
                    self.first_result = ended
                task_id, (task, segments) = inbox.popitem(last=False)
                self.running, self.running_flags = task_id, task[4]
        self._modules.note_new()

    # -- surroundings -------------------------------------------------------------------------------------------------
    def _enter(self, wire: p.Function) -> None:
        """Make the client's modules and files visible."""
        self._context = wire.path
        path = [*wire.path, *(entry for entry in self._base_path if entry not in wire.path)]
        if sys.path != path:
            sys.path[:] = path
        try:
            if wire.cwd and os.getcwd() != wire.cwd:
                os.chdir(wire.cwd)
        except OSError:
            pass  # not there any more: relative paths will say so

    # -- the end ------------------------------------------------------------------------------------------------------
    def drain(self) -> None:
        """In a thread of its own, asked to stop while a task runs: take nothing more, let that one end, in time."""
        self._give_back()
        if self.running_flags & p.NO_RERUN:
            return
        time.sleep(DRAIN_S)  # the process ends with its main thread, if that is sooner
        self.word.clear()  # nobody is charged
        leave_now(0)

    def _give_back(self) -> None:
        """What was not started goes to others, and nothing new comes."""
        with self._line.lock:
            while self.inbox:
                task_id, _ = self.inbox.popitem(last=False)
                self.recalled.append((*task_id, True))
            self._flush()
            self._send([p.pack(p.LEAVE, list(self.running or ()))])

    def _farewell(self) -> None:
        """Give back what was not started and see that the results arrive; bounded."""
        self._give_back()
        if self.connected:
            self._line.pump(lambda: not self.unacknowledged, FAREWELL_S)
        self._answers.close()
        self._line.close()


def main(arguments: list[str]) -> int:
    directory, name = arguments[0], arguments[1]
    spec = load_spec(directory)
    os.environ["ZCLUSTER_DIRECTORY"] = spec.directory
    os.environ["ZCLUSTER_NAME"] = spec.name
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    exit_with_owner()
    try:
        word = Word(spec.path / "run", name)
    except OSError as error:
        refuse(f"{name} cannot say what it runs: {error}")
    worker = Worker(spec, name, word)
    links.inside_worker = True

    def terminate(number: int, frame: FrameType | None) -> None:
        """Between tasks: leave in order. Inside one: see `drain`."""
        draining = worker.stop is not None
        worker.stop = 0
        if worker.waiting:
            worker.waiting = False
            raise Leave
        if worker.running is not None and not draining:
            threading.Thread(target=worker.drain, name="drain", daemon=True).start()

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, lambda number, frame: None)  # ours to ignore, not what our children inherit
    return worker.run()


def refuse(text: str) -> NoReturn:
    """The exit code says it too: on a full disk there may be no room for the text, nor for a traceback about that."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())
    os._exit(EXIT_CANNOT_WRITE)


def leave_now(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    check_arguments(sys.argv[1:], "zcluster.tasks.worker CLUSTER_DIRECTORY NAME")
    sys.exit(main(sys.argv[1:]))
