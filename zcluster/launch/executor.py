"""`Executor`: a drop-in for `concurrent.futures.Executor` whose workers are a cluster's.

With a name it uses a running cluster; without one it owns a private cluster of one node and `max_workers` workers,
which ends with it. It lives here, above the facade, because it may start a cluster.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

from zcluster.api import Client, connect
from zcluster.config import WORKERS_MAX
from zcluster.errors import InvalidInput
from zcluster.launch.local import LocalCluster

P = ParamSpec("P")
T = TypeVar("T")


class Executor(concurrent.futures.Executor):
    """Runs calls on a cluster's workers, at least once each.

    Args:
        name: of a running cluster, or a path to its directory; None starts a private cluster.
        max_workers: of the private cluster; default: one per processor.
    Raises: NotRunning, InvalidInput.
    """

    def __init__(self, name: str | os.PathLike[str] | None = None, *, max_workers: int | None = None) -> None:
        self._owned: LocalCluster | None = None
        if name is not None:
            if max_workers is not None:
                raise InvalidInput("max_workers is for a private cluster; a named one has the workers it has")
            self._client: Client = connect(name)
            return
        workers = max_workers if max_workers is not None else min(WORKERS_MAX, os.cpu_count() or 1)
        if type(workers) is not int or workers < 1:
            raise InvalidInput(f"max_workers must be a whole number from 1 to {WORKERS_MAX}, not {max_workers!r}")
        self._owned = LocalCluster(nodes=1, workers=workers)
        self._client = self._owned.connect()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> concurrent.futures.Future[T]:
        self._check_open()
        return self._client.submit(fn, *args, **kwargs)

    def _check_open(self) -> None:
        if self._client.closed:  # the error that code written for concurrent.futures expects
            raise RuntimeError("cannot schedule new futures after shutdown")

    def map(
        self, fn: Callable[..., T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[T]:
        """As in concurrent.futures; `chunksize=1`, the default there, means "chosen automatically" here."""
        self._check_open()
        return self._client.map(fn, *iterables, timeout=timeout, chunksize=None if chunksize == 1 else chunksize)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Release the workers: pending calls finish first (`wait`), or are cancelled (`cancel_futures`)."""
        if not self._client.closed:
            self._client.pool.shutdown(wait=wait, cancel_futures=cancel_futures)
            self._client.close()
        if self._owned is not None:
            self._owned.close()
