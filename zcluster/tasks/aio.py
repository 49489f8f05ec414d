"""`AsyncTasks`: tasks for asyncio. Works in any event loop, also in several in turn or at once.

Calls of one turn of a loop leave in one frame; results of one turn of the connection come back to it in one wake-up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from zcluster.config import ClusterSpec
from zcluster.errors import Closed
from zcluster.tasks import link as links
from zcluster.tasks import payload
from zcluster.tasks.futures import outcome
from zcluster.tasks.link import Link
from zcluster.tasks.payload import dump_arguments
from zcluster.tasks.protocol import KEYWORDS, NO_RERUN, Function

P = ParamSpec("P")
T = TypeVar("T")


class AsyncCall:
    """A task that a coroutine waits for."""

    number = 0
    sent = False
    claim: Callable[[Any], None] | None = None

    def __init__(
        self, inbox: LoopInbox, function: Function, data: bytes, segments: payload.Segments, flags: int
    ) -> None:
        self.function = function
        self.payload = data
        self.segments = segments
        self.flags = flags
        self.inbox = inbox
        self.future: asyncio.Future[Any] = inbox.loop.create_future()
        self._outcome: tuple[int, bytes, payload.Segments] | BaseException | None = None

    def done(self) -> bool:
        return self._outcome is not None

    def settle(self, status: int, data: bytes, segments: payload.Segments) -> None:
        self._finished((status, data, segments))

    def settle_error(self, error: BaseException) -> None:
        self._finished(error)

    def _finished(self, found: tuple[int, bytes, payload.Segments] | BaseException) -> None:
        if self._outcome is None:
            self._outcome = found
            self.payload, self.segments = b"", None
            self.inbox.add(self)

    def deliver(self) -> None:
        """In the loop's thread."""
        if self.future.done():  # cancelled meanwhile
            return
        found = self._outcome
        assert found is not None
        result, error = (None, found) if isinstance(found, BaseException) else outcome(*found)
        if error is None:
            self.future.set_result(result)
        elif isinstance(error, StopIteration):  # a future cannot carry it
            failure = RuntimeError("the task raised StopIteration")
            failure.__cause__ = error
            self.future.set_exception(failure)
        else:
            self.future.set_exception(error)


class LoopInbox:
    """Finished calls on their way to one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.flush_planned = False
        self._finished: list[AsyncCall] = []

    def add(self, call: AsyncCall) -> None:
        """From the thread that drives the channel, with its lock."""
        self._finished.append(call)
        if len(self._finished) == 1:
            try:
                self.loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the loop is closed: nobody waits any more
                self._finished.clear()

    def _deliver(self) -> None:
        finished, self._finished = self._finished, []
        for call in finished:
            call.deliver()


class AsyncTasks:
    """The workers of a running cluster, for coroutines."""

    def __init__(self, spec: ClusterSpec) -> None:
        self.spec = spec
        self._link: Link | None = None
        self._inbox: LoopInbox | None = None
        self._closed = False

    def _open(self) -> Link:
        if self._closed:
            raise Closed("these tasks are closed")
        if self._link is None or self._link.forks != links.forks:
            self._link = Link(self.spec)
        return self._link

    async def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function(*args, **kwargs)` on a worker and give its result, or raise what it raised.

        The keyword `rerun=False` is ours; see `TaskPool.submit`. Cancelling the awaiting task takes the call back if it
        has not been started.
        """
        link = self._open()
        loop = asyncio.get_running_loop()
        inbox = self._inbox
        if inbox is None or inbox.loop is not loop:
            inbox = self._inbox = LoopInbox(loop)
        flags = 0 if kwargs.pop("rerun", True) else NO_RERUN
        if kwargs:
            flags |= KEYWORDS
        wire = link.functions.get(function)
        call = AsyncCall(inbox, wire, *dump_arguments(function, args, kwargs), flags)
        link.put(call, gather=True)
        if not inbox.flush_planned:
            inbox.flush_planned = True
            loop.call_soon(_flush, link, inbox)
        if links.inside_worker:
            link.flush()
            link.claim_in_thread(call)
        try:
            return await call.future  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            link.claim(call, lambda _: None)
            raise

    def close(self) -> None:
        """End the connection now. Idempotent; silent."""
        self._closed = True
        if self._link is not None:
            self._link.close()


def _flush(link: Link, inbox: LoopInbox) -> None:
    inbox.flush_planned = False
    if not link.closed:
        link.flush()
