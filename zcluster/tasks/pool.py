"""`TaskPool`: submit and map, for threads. `zcluster.tasks.aio` is the same for event loops."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from zcluster.config import ClusterSpec
from zcluster.errors import Closed, InvalidInput
from zcluster.tasks import link as links
from zcluster.tasks.chunks import Map
from zcluster.tasks.futures import TaskFuture, cancel_futures
from zcluster.tasks.link import Link
from zcluster.tasks.payload import dump_arguments
from zcluster.tasks.protocol import KEYWORDS, NO_RERUN

P = ParamSpec("P")
T = TypeVar("T")


class TaskPool:
    """The workers of a running cluster. Safe for many threads; a forked child opens its own connection."""

    def __init__(self, spec: ClusterSpec) -> None:
        self.spec = spec
        self._link: Link | None = None
        self._closed = False

    def _open(self) -> Link:
        if self._closed:
            raise Closed("this pool is closed")
        link = self._link
        if link is None or link.forks != links.forks:
            link = self._link = Link(self.spec)
            weakref.finalize(self, link.close).atexit = False
        return link

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `function(*args, **kwargs)` on a worker, at least once. Blocks while the router's queue is full.

        The keyword `rerun=False` is ours: should the worker die, the task is not run again but fails with WorkerDied.

        Raises: Unpicklable, Closed; Conflict when the cluster runs another version of Python.
        """
        link = self._link
        if link is None or link.forks != links.forks or self._closed:
            link = self._open()
        flags = 0
        if kwargs:
            if not kwargs.pop("rerun", True):
                flags = NO_RERUN
            if kwargs:
                flags |= KEYWORDS
        wire = link.functions.get(function)
        future: TaskFuture[T] = TaskFuture(link, wire, *dump_arguments(function, args, kwargs), flags)
        if link.room <= 0:
            link.wait_for_room()
        link.put(future)
        return future

    def map(
        self,
        function: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
    ) -> Iterator[T]:
        """Like the built-in `map`, over all workers; results in order, each as soon as it and those before it are in.

        Args:
            timeout: seconds from now for everything; then TimeoutError is raised.
            chunksize: items in one task; None: chosen from the time they take.
        """
        if chunksize is not None and chunksize < 1:
            raise InvalidInput("chunksize must be at least 1")
        if not iterables:
            raise InvalidInput("map() needs at least one iterable")
        return Map(self._open(), function, iterables, timeout, chunksize).results()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No more submits. Pending tasks are cancelled, waited for, or (neither) go on until `close`."""
        self._closed = True
        link = self._link
        if link is None or link.forks != links.forks or link.closed:
            return
        if cancel_futures:
            self._cancel_all(link)
        if wait:
            link.flush()
            link.channel.wait(lambda: not link.calls)
            link.close()

    @staticmethod
    def _cancel_all(link: Link) -> None:
        with link.channel.lock:
            pending = [call for call in link.calls.values() if isinstance(call, TaskFuture)]
        cancel_futures(link, pending)

    def close(self) -> None:
        """End the connection now. Futures that are not done fail with Closed. Idempotent; silent."""
        self._closed = True
        if self._link is not None:
            self._link.close()

    def __enter__(self) -> TaskPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown(wait=error is None)
        self.close()

    def __repr__(self) -> str:
        return f"<TaskPool of {self.spec.name!r}, process {os.getpid()}>"
