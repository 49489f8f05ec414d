"""The client's side of the router: calls on their way, what was granted, what to send again. Used by pools.

    put --> [ outbox ] --granted--> router ... --> settle
                 `------ calls: every unfinished one, with its payload, until its result is in hand ------'

A call is any object with the attributes of `Call`. State is guarded by the channel's lock; `settle` is called with it
held. When the router is replaced, its successor asks who we are (WHO): we say so and submit again, marked as such,
everything that was sent and has no result.

Tasks are sent at once while few are on the way; while the workers have plenty, what comes is gathered for a moment.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import repeat
from typing import Final

import zmq

from zcluster.client.channel import Channel
from zcluster.config import CLIENT, ClusterSpec
from zcluster.errors import Closed, Conflict, Error
from zcluster.tasks import payload
from zcluster.tasks import protocol as p
from zcluster.tasks.calls import Call, run_call
from zcluster.tasks.direct import answers_endpoint
from zcluster.tasks.payload import Segments
from zcluster.transport.liveness import start_ticks
from zcluster.transport.sockets import Security
from zcluster.types import MS, NEVER, Nanoseconds

ROUTER: Final = 0
ANSWERS: Final = 1
TASKS_PER_FRAME: Final = 256
GATHER: Final = 64
GATHER_NS: Final = MS // 2
FEW_PER_WORKER: Final = 4
FAREWELL_S: Final = 0.2
CLAIM_AGAIN_S: Final = 0.5

inside_worker = False
"""Set by a worker: this process runs tasks, so who waits here for a task must be ready to run it himself."""

forks = 0
"""How often this process was made by a fork: links of before belong to the parent."""


def _after_fork() -> None:
    global forks
    forks += 1


os.register_at_fork(after_in_child=_after_fork)


class Link:
    """One client of the router."""

    def __init__(self, spec: ClusterSpec) -> None:
        self.spec = spec
        self.forks = forks
        self.id = random.SystemRandom().getrandbits(62) + 1
        self.functions = payload.Functions()
        self.calls: dict[int, Call] = {}
        self.outbox: deque[Call] = deque()
        self.room = 0  # tasks that may be put before `put` blocks
        self.workers = 1
        self.closed = False
        self.refused: Error | None = None
        self._connected = False
        self._welcome = False  # a router has granted something
        self._number = 0
        self._granted = 0
        self._submitted = 0
        self._known: OrderedDict[bytes, p.Function] = OrderedDict()  # what the router knows
        self._uses: dict[bytes, int] = {}  # digest -> unfinished calls
        self._flushed: Nanoseconds = 0
        self._flush_at: Nanoseconds = NEVER
        self._cancels: dict[int, bool | None] = {}  # number -> answer
        self._farewell = False
        self._direct = 0
        self.channel = Channel(
            {ROUTER: spec.endpoint("router", CLIENT)},
            Security.load(spec),
            self._on_message,
            self._on_deadline,
            lambda: self._flush_at,
            on_writable=lambda _: None,
            probe=True,
            message_bytes_max=p.MESSAGE_BYTES_MAX,
            quick=self._few,
        )
        self._listen()
        self.channel.kick()

    def _few(self) -> bool:
        """So few tasks are on the way that somebody probably waits for each."""
        return len(self.calls) <= self.workers

    def _listen(self) -> None:
        endpoint = answers_endpoint(self.spec, self.id)
        if endpoint is not None:
            with suppress(zmq.ZMQError):  # then answers come through the router
                self.channel.listen(ANSWERS, endpoint)
                self._direct = p.DIRECT

    # -- putting ------------------------------------------------------------------------------------------------------
    def wait_for_room(self) -> None:
        """Block while the router's queue is full. Raises: Closed, Conflict."""
        self.channel.wait(lambda: self.room > 0 or self.refused is not None)

    def put(self, call: Call, gather: bool = False) -> None:
        """Take over an unfinished call. Needs no lock; never blocks (see `wait_for_room`).

        gather: do not send yet, the caller will `flush`.
        """
        channel = self.channel
        with channel.lock:
            if self.closed or self.refused is not None:
                raise self.refused or Closed("this pool is closed")
            self._number += 1
            call.number = self._number
            self.calls[self._number] = call
            digest = call.function.digest
            self._uses[digest] = self._uses.get(digest, 0) + 1
            self.outbox.append(call)
            self.room -= 1
            if gather or not self._connected:
                return
            waiting = len(self.outbox)
            if waiting >= GATHER or len(self.calls) - waiting < FEW_PER_WORKER * self.workers:
                self.flush()
            elif waiting == 1:
                self._flush_at = time.monotonic_ns() + GATHER_NS
                channel.kick()
            elif time.monotonic_ns() >= self._flush_at:
                self.flush()

    def flush(self) -> None:
        """Send what is waiting, as far as it was granted."""
        with self.channel.lock:
            self._flush_at = NEVER
            outbox = self.outbox
            while outbox and self._connected and self._granted > self._submitted:
                count = min(len(outbox), TASKS_PER_FRAME, self._granted - self._submitted)
                batch = [outbox.popleft() for _ in range(count)]
                if not self._send_calls(batch, self._direct if self._few() else 0):
                    outbox.extendleft(reversed(batch))
                    return
                self._submitted += count

    def _send_calls(self, batch: list[Call], flag: int) -> bool:
        functions: list[p.Function] = []
        forgotten: list[bytes] = []
        tasks = []
        segments: list[bytes] = []
        for call in batch:
            function = call.function
            digest = function.digest
            if digest not in self._known:
                self._known[digest] = function
                functions.append(function)
            parts = call.segments
            if parts is None:
                tasks.append((call.number, digest, call.payload, call.flags | flag, 0))
            else:
                tasks.append((call.number, digest, call.payload, call.flags | flag, len(parts)))
                segments += parts
        if functions and len(self._known) > payload.FUNCTIONS_MAX:
            forgotten = self._forget()
        if not self.channel.send(ROUTER, [p.pack(p.SUBMIT, (functions, forgotten, tasks)), *segments]):
            for function in functions:
                self._known.pop(function.digest, None)
            self._lost_connection()
            return False
        for call in batch:
            call.sent = True
        return True

    def _forget(self) -> list[bytes]:
        """Digests that no unfinished call needs, oldest first, as many as are too many."""
        forgotten = []
        for digest in list(self._known):
            if len(self._known) <= payload.FUNCTIONS_MAX:
                break
            if not self._uses.get(digest):
                del self._known[digest]
                self._uses.pop(digest, None)
                forgotten.append(digest)
        return forgotten

    # -- messages (with the lock) -------------------------------------------------------------------------------------
    def _on_message(self, key: int, parts: list[bytes], now: Nanoseconds) -> None:
        try:
            kind, body = p.unpack(parts[0])
            segments: Iterable[Segments] = repeat(None)
            if kind == p.NEWS and len(parts) > 1:
                segments = p.split_segments([result[3] for result in body.results], parts[1:])
        except ValueError:
            return  # not from our router
        if kind == p.NEWS:
            self._news(body, segments)
        elif kind == p.ANSWER:
            self._result(body, None)
        elif kind == p.WHO:
            if self.closed:
                self._farewell = True
            else:
                self._introduce()
        elif kind == p.REFUSED:
            self.refused = Conflict(body[0])
            self._fail_all(self.refused)

    def _news(self, news: p.News, segments: Iterable[Segments]) -> None:
        for result, parts in zip(news.results, segments, strict=False):
            self._result(result, parts)
        for number, cancelled in news.cancelled:
            self._cancel_answered(number, cancelled)
        self._granted = max(self._granted, news.granted)
        self._welcome = True
        self.workers = max(1, news.workers)
        if self.outbox:
            self.flush()
        self._count_room()

    def _result(self, result: tuple[int, int, bytes, int], segments: Segments) -> None:
        call = self.calls.pop(result[0], None)
        if call is not None:  # else it came before, from the worker
            self._uses[call.function.digest] -= 1
            call.settle(result[1], result[2], segments)

    def _count_room(self) -> None:
        """With a connection, what was granted; without one, what the queue holds, since it is empty then."""
        if self._connected:
            self.room = self._granted - self._submitted - len(self.outbox)
        elif self._welcome:
            self.room = self.spec.settings.queue_max - len(self.outbox)

    def _lost_connection(self) -> None:
        self._connected = False
        self._count_room()

    def _introduce(self) -> None:
        """Somebody new is listening: say who we are, and what we still wait for."""
        self._connected = True
        self._granted = self._submitted = 0
        self._known.clear()
        hello = (p.PROTOCOL, self.spec.cluster_id, self.id, p.PYTHON, os.getpid(), start_ticks(os.getpid()) or 0)
        self.channel.send(ROUTER, [p.pack(p.HELLO, hello)])
        again = [call for call in self.calls.values() if call.sent]
        for start in range(0, len(again), TASKS_PER_FRAME):
            if not self._send_calls(again[start : start + TASKS_PER_FRAME], p.RESUBMITTED):
                return
        open_cancels = [number for number, answer in self._cancels.items() if answer is None]
        if open_cancels:
            self.channel.send(ROUTER, [p.pack(p.CANCEL, open_cancels)])
        self._count_room()

    def _on_deadline(self, now: Nanoseconds) -> None:
        self.flush()

    # -- waiting, cancelling ------------------------------------------------------------------------------------------
    def wait_call(self, call: Call, timeout_s: float | None) -> bool:
        """Block until `call.done()`. Inside a task, one that nobody has started is run right here: a worker that only
        waits would be one worker less, and the last one would wait for ever."""
        if self.forks != forks:
            raise Closed("this future belongs to the parent process")
        if self.outbox:
            self.flush()
        if not inside_worker:
            return self.channel.wait(call.done, timeout_s)
        give_up = NEVER if timeout_s is None else time.monotonic_ns() + int(timeout_s * 1e9)
        given: list[Call] = []
        while not call.done():
            self.claim(call, given.append)
            left_s = (give_up - time.monotonic_ns()) / 1e9
            self.channel.wait(lambda: bool(given) or call.done(), max(0.0, min(CLAIM_AGAIN_S, left_s)))
            if given:
                self.run_here(given.pop())
            elif left_s <= 0:
                return call.done()
        return True

    def claim(self, call: Call, then: Callable[[Call], None]) -> None:
        """Ask the router to give a task back if nobody has started it; then `then(call)` is called, with the lock."""
        with self.channel.lock:
            if call.done() or call.number not in self.calls:
                return
            call.claim = then
            self._ask_cancel([call.number])

    def claim_in_thread(self, call: Call) -> None:
        """The same for a task inside a task that something other than `result` waits for."""

        def start(given: Call) -> None:
            threading.Thread(target=self.run_here, args=(given,), daemon=True).start()

        self.claim(call, start)

    def run_here(self, call: Call) -> None:
        """Run a task that was given back, in this thread, and settle it."""
        status, data, segments = run_call(call)
        with self.channel.lock:
            call.settle(status, data, segments)
            self.channel.kick(recheck=True)

    def cancel(self, calls: Iterable[Call], timeout_s: float) -> list[Call]:
        """Take back tasks that nobody has started. Returns: those for which that worked; they will not be settled."""
        with self.channel.lock:
            asked = [call for call in calls if not call.done() and call.number in self.calls]
            self._ask_cancel([call.number for call in asked])
        numbers = [call.number for call in asked]
        self.channel.wait(lambda: all(self._cancels.get(n, False) is not None for n in numbers), timeout_s)
        with self.channel.lock:
            # An answer that comes later finds nobody: then the call goes out again.
            return [call for call in asked if self._cancels.pop(call.number, None)]

    def _ask_cancel(self, numbers: list[int]) -> None:
        self._cancels.update(dict.fromkeys(numbers))
        unsent = {number for number in numbers if not self.calls[number].sent}
        if unsent:
            self.outbox = deque(call for call in self.outbox if call.number not in unsent)
            self._count_room()
            for number in unsent:
                self._cancel_answered(number, True)
        asked = [number for number in numbers if number not in unsent]
        if asked:
            self.channel.send(ROUTER, [p.pack(p.CANCEL, asked)])

    def _cancel_answered(self, number: int, cancelled: bool) -> None:
        call = self.calls.get(number)
        if call is None or not cancelled:
            if call is not None and call.claim is not None:
                call.claim = None
                self._cancels.pop(number, None)
            elif number in self._cancels:
                self._cancels[number] = False
            return
        if call.claim is None and number not in self._cancels:
            call.sent = False  # nobody wants it cancelled any more
            self.outbox.appendleft(call)
            return
        del self.calls[number]
        self._uses[call.function.digest] -= 1
        if call.claim is None:
            self._cancels[number] = True
            return
        then, call.claim = call.claim, None
        self._cancels.pop(number, None)
        then(call)

    # -- the end ------------------------------------------------------------------------------------------------------
    def _fail_all(self, error: BaseException) -> None:
        calls, self.calls = self.calls, {}
        self.outbox.clear()
        self._uses.clear()
        for call in calls.values():
            call.settle_error(error)
        self.channel.kick(recheck=True)

    def close(self) -> None:
        """Unfinished calls fail with Closed. Idempotent; silent; harmless in a forked child."""
        if self.closed or self.forks != forks:
            return
        with self.channel.lock:
            self.closed = True
            self._fail_all(Closed("the pool was closed before the task had finished"))
            said = self._connected and self.channel.send(ROUTER, [p.pack(p.BYE, [])])
        if said:
            try:
                self.channel.wait(lambda: self._farewell, FAREWELL_S)
            except Closed:
                pass
        self.channel.close()
