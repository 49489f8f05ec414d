"""`map`: many small calls in few tasks.

Items are cut into chunks whose size follows the measured time an item takes: about CHUNK_NS of work each, never more
than a fair part of what is left, so that the workers finish together. A few chunks per worker are on the way at a time;
where the caller wants small chunks, as many as are worth AHEAD_NS, refilled many at once, since they travel together.
Plain sequences go on being submitted while nobody looks; other iterables are read by the consumer, as it goes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final

from zcluster.tasks import payload
from zcluster.tasks.futures import outcome
from zcluster.tasks.link import Link
from zcluster.tasks.protocol import CHUNK, Function
from zcluster.types import MS

CHUNK_NS: Final = 8 * MS
ITEMS_MAX: Final = 8192
CHUNK_COST_NS: Final = 20_000
"""What a chunk costs beside its items, about."""
GROWTH: Final = 16
"""A chunk is at most this many times the largest before it: the first measurements are the worst."""
CHUNKS_PER_WORKER: Final = 3
CHUNKS_PER_WORKER_MAX: Final = 256
AHEAD_NS: Final = 16 * MS
"""Work that is on the way for each worker, if the chunks are so small that it takes many."""
_PLAIN: Final = (list, tuple, range, str, bytes, dict, set, frozenset)


class Chunk:
    """Some consecutive items of a map."""

    number = 0
    sent = False
    claim: Callable[[Any], None] | None = None

    def __init__(self, owner: Map, function: Function, items: list[tuple[Any, ...]]) -> None:
        self.function = function
        self.flags = CHUNK
        self.count = len(items)
        self.payload, self.segments = payload.dump_arguments(owner.callable, (items,), {})
        self._owner = owner
        self._state: tuple[int, bytes, payload.Segments] | BaseException | None = None
        self._decoded: tuple[list[Any], BaseException | None] | None = None

    def done(self) -> bool:
        return self._state is not None

    def settle(self, status: int, data: bytes, segments: payload.Segments) -> None:
        self._state = (status, data, segments)
        self.payload, self.segments = b"", None
        self._owner.chunk_done(self)

    def settle_error(self, error: BaseException) -> None:
        self._state = error
        self._owner.chunk_done(self)

    def open(self) -> tuple[list[Any], BaseException | None]:
        """(results, the failure that ended them)."""
        if self._decoded is None:
            self._decoded = self._open()
        return self._decoded

    def _open(self) -> tuple[list[Any], BaseException | None]:
        assert self._state is not None
        if isinstance(self._state, BaseException):
            return [], self._state
        value, error = outcome(*self._state)
        if error is not None:
            return [], error
        nanoseconds, results, failure = value
        self._owner.measured(nanoseconds, len(results))
        return results, None if failure is None else payload.load_exception(failure)


class Map:
    """One call of `map`; iterate over `results()` once."""

    def __init__(
        self,
        link: Link,
        function: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        timeout: float | None,
        chunksize: int | None,
    ) -> None:
        self.callable = function
        self._link = link
        self._function = link.functions.get(function)
        self._fixed = chunksize
        self._give_up = None if timeout is None else time.monotonic() + timeout
        self._eager = all(type(iterable) in _PLAIN for iterable in iterables)
        self._left = min(map(len, iterables)) if self._eager else None  # type: ignore[arg-type]
        self._items: Iterator[tuple[Any, ...]] = zip(*iterables, strict=False)
        self._exhausted = False
        self._chunks: deque[Chunk] = deque()
        self._on_the_way = 0
        self._item_ns: float | None = None
        self._largest = 1
        self._failure: BaseException | None = None
        self.pump()
        if self._failure is not None:
            raise self._failure

    # -- cutting ------------------------------------------------------------------------------------------------------
    def measured(self, nanoseconds: int, items: int) -> None:
        if items:
            each = max(1.0, nanoseconds / items)
            self._item_ns = each if self._item_ns is None else (self._item_ns + each) / 2

    def _size(self) -> int:
        if self._fixed is not None:
            return self._fixed
        size = 1
        if self._item_ns is not None:
            size = max(1, min(int(CHUNK_NS / self._item_ns), GROWTH * self._largest, ITEMS_MAX))
        if self._left is not None:
            size = min(size, max(1, self._left // (2 * self._link.workers)))
        return size

    def _enough(self) -> int:
        """Chunks that should be on the way."""
        each = CHUNKS_PER_WORKER
        if self._fixed is not None and self._item_ns is not None:
            chunk_ns = self._item_ns * self._fixed + CHUNK_COST_NS
            each = max(each, min(int(AHEAD_NS / chunk_ns), CHUNKS_PER_WORKER_MAX))
        return each * self._link.workers

    def pump(self) -> None:
        """Put chunks until enough are on the way; only when half of them are back, so that many travel together."""
        enough = self._enough()
        if self._on_the_way > enough // 2 and self._on_the_way > CHUNKS_PER_WORKER * self._link.workers:
            return
        with self._link.channel.lock:
            while not self._exhausted and self._on_the_way < enough:
                size = self._size()
                try:
                    items = list(islice(self._items, size))
                    if items:
                        chunk = Chunk(self, self._function, items)
                        self._link.put(chunk, gather=True)
                except Exception as error:  # the user's iterable, pickling, or a closed pool
                    self._failure = error
                    items = []
                if not items:
                    self._exhausted = True
                    break
                self._largest = max(self._largest, size)
                if self._left is not None:
                    self._left -= len(items)
                self._on_the_way += 1
                self._chunks.append(chunk)
            self._link.flush()

    def chunk_done(self, chunk: Chunk) -> None:
        self._on_the_way -= 1
        if self._eager and not self._exhausted:
            if self._item_ns is None or chunk.count >= self._largest:
                chunk.open()
            self.pump()

    # -- results ------------------------------------------------------------------------------------------------------
    def results(self) -> Iterator[Any]:
        try:
            while True:
                if not self._eager:
                    self.pump()
                if not self._chunks:
                    break
                chunk = self._chunks[0]
                left_s = None if self._give_up is None else max(0.0, self._give_up - time.monotonic())
                if not self._link.wait_call(chunk, left_s):
                    raise TimeoutError()
                results, failure = chunk.open()
                self._chunks.popleft()
                yield from results
                if failure is not None:
                    raise failure
            if self._failure is not None:
                raise self._failure
        finally:
            self._exhausted = True
            if self._chunks and not self._link.closed:
                with self._link.channel.lock:
                    for chunk in self._chunks:
                        self._link.claim(chunk, lambda _: None)  # taken back, and that is all
                self._chunks.clear()
