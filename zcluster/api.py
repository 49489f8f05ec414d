"""The facade: `connect` gives a `Client`; a client is key-value store (`kv`), tasks (`submit`, `map`) and both with
`async` (`aio`).

A client is cheap to make (nothing is opened before it is used), safe for many threads, survives a fork (the child opens
connections of its own) and pickles as a handle that reconnects. Not here: starting clusters (zcluster.launch).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import msgspec

from zcluster.config import ClusterSpec, cluster_directory, command, load_spec
from zcluster.errors import Closed, InvalidInput, NotRunning
from zcluster.transport.liveness import start_ticks

if TYPE_CHECKING:
    from zcluster.client.aio import AsyncKV
    from zcluster.client.kv import KV
    from zcluster.tasks.aio import AsyncTasks
    from zcluster.tasks.pool import TaskPool

P = ParamSpec("P")
T = TypeVar("T")

DIRECTORY_VARIABLE = "ZCLUSTER_DIRECTORY"
NAME_VARIABLE = "ZCLUSTER_NAME"


class Client:
    """A connection to one cluster. Use it as a context manager, or call `close` when done.

    >>> with zcluster.connect() as client:                     # doctest: +SKIP
    ...     client.kv.put("k", b"v")
    ...     client.submit(pow, 2, 10).result()
    """

    def __init__(self, spec: ClusterSpec) -> None:
        self.spec = spec
        self._pid = os.getpid()
        self._closed = False
        self._kv: KV | None = None
        self._pool: TaskPool | None = None
        self._aio: AsyncClient | None = None

    @property
    def kv(self) -> KV:
        """The replicated key-value store; see `zcluster.client.kv.KV`."""
        self._check_open()
        if self._kv is None:
            from zcluster.client.kv import KV

            self._kv = KV(self.spec)
        return self._kv

    @property
    def aio(self) -> AsyncClient:
        """The same with `async`, in any event loop: `await client.aio.kv.put(...)`, `await client.aio.submit(...)`."""
        self._check_open()
        if self._aio is None:
            self._aio = AsyncClient(self.spec)
        return self._aio

    @property
    def pool(self) -> TaskPool:
        """The workers; `submit` and `map` are its methods."""
        self._check_open()
        if self._pool is None:
            from zcluster.tasks.pool import TaskPool

            self._pool = TaskPool(self.spec)
        return self._pool

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `function(*args, **kwargs)` on a worker, at least once. Blocks while the cluster's queue is full.

        Raises: Unpicklable. The future raises what the function raised, or WorkerDied.
        """
        return self.pool.submit(function, *args, **kwargs)

    def map(
        self,
        function: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
    ) -> Iterator[T]:
        """Like the built-in `map`, over all workers; results in order, as they arrive. `timeout` in seconds, for the
        whole; `chunksize`: items a task, chosen automatically by default."""
        return self.pool.map(function, *iterables, timeout=timeout, chunksize=chunksize)

    def close(self) -> None:
        """Close the connections. Idempotent; silent."""
        self._closed = True
        for part in (self._kv, self._pool, self._aio):
            if part is not None and self._pid == os.getpid():
                part.close()
        self._kv = self._pool = self._aio = None

    @property
    def closed(self) -> bool:
        return self._closed

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("this client is closed; make a new one with zcluster.connect()")
        if self._pid != os.getpid():  # forked: what the parent opened is the parent's
            self._pid = os.getpid()
            self._kv = self._pool = self._aio = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[str], Client], tuple[str]]:
        return _reconnect, (self.spec.directory,)

    def __repr__(self) -> str:
        return f"<zcluster.Client of {self.spec.name!r}{' (closed)' if self._closed else ''}>"


class AsyncClient:
    """`client.aio`: works in any event loop, also in several in turn; many callers in one loop share frames."""

    def __init__(self, spec: ClusterSpec) -> None:
        self._spec = spec
        self._kv: AsyncKV | None = None
        self._tasks: AsyncTasks | None = None

    @property
    def kv(self) -> AsyncKV:
        if self._kv is None:
            from zcluster.client.aio import AsyncKV

            self._kv = AsyncKV(self._spec)
        return self._kv

    @property
    def tasks(self) -> AsyncTasks:
        if self._tasks is None:
            from zcluster.tasks.aio import AsyncTasks

            self._tasks = AsyncTasks(self._spec)
        return self._tasks

    async def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` on a worker and give its result, or raise what it raised."""
        return await self.tasks.submit(function, *args, **kwargs)

    def close(self) -> None:
        for part in (self._kv, self._tasks):
            if part is not None:
                part.close()
        self._kv = self._tasks = None


def connect(name: str | os.PathLike[str] | None = None) -> Client:
    """A client of a running cluster.

    Args:
        name: of the cluster, or a path to its directory. None: inside a task the task's own cluster, else
            $ZCLUSTER_NAME, else "default".
    Raises: NotRunning (no such cluster, or stopped), InvalidInput (bad name).
    """
    directory = find_directory(name)
    spec = load_spec(directory)
    if not is_running(spec):
        raise NotRunning(f"cluster {spec.name!r} is not running; start it: {command(spec.path)} up")
    return Client(spec)


def find_directory(name: str | os.PathLike[str] | None) -> Path:
    """Directory of a cluster by name, path, or environment (see `connect`)."""
    if name is None:
        inside = os.environ.get(DIRECTORY_VARIABLE)
        if inside:
            return Path(inside)
        return cluster_directory(os.environ.get(NAME_VARIABLE) or "default")
    if isinstance(name, os.PathLike) or (isinstance(name, str) and os.sep in name):
        return Path(name)
    if not isinstance(name, str):
        raise InvalidInput(f"a cluster is named by text or a path, not {name!r}")
    return cluster_directory(name)


def is_running(spec: ClusterSpec) -> bool:
    """Whether any replica process of the cluster is alive, by its run file."""
    for node in spec.nodes:
        try:
            record = msgspec.json.decode((spec.path / "run" / f"{node.name}.json").read_bytes())
            if start_ticks(record["pid"]) == record["start_ticks"]:
                return True
        except (OSError, msgspec.MsgspecError, KeyError, TypeError):
            continue
    return False


def _reconnect(directory: str) -> Client:
    return connect(Path(directory))
