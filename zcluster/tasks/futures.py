"""Futures of tasks: real `concurrent.futures.Future`s that cost little.

The standard one makes a lock and a condition for every future, which takes longer than sending the task. Here they are
made when something first asks for them (`wait`, `as_completed`, callbacks). Why that is safe: a condition is made, and
the state of a future without one is changed, under one short lock; the state of a future with a condition is changed
under that condition, as the standard library expects.

`result` and `exception` need none of that: they drive the connection in the calling thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar, cast

from zcluster.errors import Unpicklable, WorkerDied
from zcluster.tasks import link as links
from zcluster.tasks import payload
from zcluster.tasks.link import Link
from zcluster.tasks.protocol import RAISED, RETURNED, Function

T = TypeVar("T")

PENDING = "PENDING"
CANCELLED = "CANCELLED_AND_NOTIFIED"
FINISHED = "FINISHED"
CANCEL_WAIT_S = 2.0

_making = threading.Lock()


def outcome(status: int, data: bytes, segments: payload.Segments) -> tuple[Any, BaseException | None]:
    """(result, exception) of a task."""
    if status == RETURNED:
        try:
            return payload.load(data, segments), None
        except Exception as error:
            failure = Unpicklable(f"the result of the task cannot be unpickled here: {error}")
            failure.__cause__ = error
            return None, failure
    if status == RAISED:
        return None, payload.load_exception(data)
    return None, WorkerDied(data.decode(errors="replace"))


class TaskFuture(Future[T]):
    """The future of one task."""

    number = 0
    sent = False
    claim: Callable[[Any], None] | None = None

    # What the standard constructor sets; the instance gets its own when they change.
    _state = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _waiters: Any = ()
    _done_callbacks: Any = ()
    _outcome: tuple[int, bytes, payload.Segments] | None = None

    def __init__(self, link: Link, function: Function, data: bytes, segments: payload.Segments, flags: int) -> None:
        # The standard constructor is left out on purpose.
        self._link = link
        self.function = function
        self.payload = data
        self.segments = segments
        self.flags = flags

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        condition: threading.Condition | None = self.__dict__.get("_made_condition")
        if condition is None:
            with _making:
                condition = self.__dict__.get("_made_condition")
                if condition is None:
                    self._waiters, self._done_callbacks = [], []
                    condition = self._made_condition = threading.Condition()
            if links.inside_worker and self._state is PENDING:
                # In a thread of its own, since the asker may hold conditions while it looks at this one.
                threading.Thread(target=self._link.claim_in_thread, args=(self,), daemon=True).start()
        return condition

    # -- the end of the task, with the channel's lock -----------------------------------------------------------------
    def settle(self, status: int, data: bytes, segments: payload.Segments) -> None:
        if self._state is PENDING:
            self._outcome = (status, data, segments)
            self._finished(FINISHED)

    def settle_error(self, error: BaseException) -> None:
        if self._state is PENDING:
            self._exception = error
            self._finished(FINISHED)

    def _finished(self, state: str) -> None:
        self.payload, self.segments = b"", None
        with _making:
            condition = self.__dict__.get("_made_condition")
            if condition is None:
                self._state = state
                return
        with condition:
            self._state = state
        self._link.channel.after(self._announce)

    def _announce(self) -> None:
        """Tell those who asked to be told. Without the lock: callbacks are the user's code."""
        with self._condition:
            for waiter in self._waiters:
                if self._state is CANCELLED:
                    waiter.add_cancelled(self)
                elif self.exception() is not None:
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
            self._condition.notify_all()
        self._invoke_callbacks()  # type: ignore[attr-defined]

    # -- asking -------------------------------------------------------------------------------------------------------
    def done(self) -> bool:
        return self._state is not PENDING

    def cancelled(self) -> bool:
        return self._state is CANCELLED

    def running(self) -> bool:
        """Always False: what is queued and what runs is known to the router alone."""
        return False

    def result(self, timeout: float | None = None) -> T:
        """What the task returned. Raises: what it raised; WorkerDied; TimeoutError; CancelledError; Closed."""
        if self._state is PENDING and not self._link.wait_call(self, timeout):
            raise TimeoutError()
        if self._outcome is not None:
            self._decode()
        if self._exception is not None:
            try:
                raise self._exception
            finally:
                self = None  # type: ignore[assignment]  # noqa: PLW0642 or the traceback keeps us, and we keep it
        if self._state is CANCELLED:
            raise CancelledError()
        return self._result  # type: ignore[no-any-return]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        if self._state is PENDING and not self._link.wait_call(self, timeout):
            raise TimeoutError()
        if self._state is CANCELLED:
            raise CancelledError()
        if self._outcome is not None:
            self._decode()
        return self._exception

    def _decode(self) -> None:
        found = self._outcome
        if found is not None:
            self._result, self._exception = outcome(*found)
            self._outcome = None

    def cancel(self) -> bool:
        """Cancel a task that has not been started; asks the router, and waits for its answer for a moment."""
        if self._state is PENDING:
            cancel_futures(self._link, [self])
        return self._state is CANCELLED

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        super().add_done_callback(fn)
        if self._link.outbox and self._state is PENDING:
            self._link.flush()

    def __repr__(self) -> str:
        return f"<TaskFuture {getattr(self, 'number', 0)} {self._state.lower().split('_')[0]}>"


def cancel_futures(link: Link, futures: list[TaskFuture[Any]]) -> None:
    """Cancel those that nobody has started."""
    cancelled = link.cancel(futures, CANCEL_WAIT_S)
    with link.channel.lock:
        for call in cancelled:
            cast(TaskFuture[Any], call)._finished(CANCELLED)
        link.channel.kick(recheck=True)
