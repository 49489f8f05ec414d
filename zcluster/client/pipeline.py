"""Several operations as one frame: in order, at once, but not atomic.

Not atomic means: each operation succeeds or fails by itself, and an error (a failed `cas` is none) does not keep the
later ones from being applied. The frame as a whole is applied at most once, and no other client's operation comes
between its own. A pipeline that only reads is not written to the log.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

from zcluster import wire
from zcluster.client.flight import Op
from zcluster.client.operations import PIPELINE_BYTES_MAX, Limits
from zcluster.errors import InvalidInput, TooLarge

T = TypeVar("T")
_PENDING: Final = object()


class PipelineResult(Generic[T]):
    """Stands for the result of one operation until the pipeline was executed."""

    __slots__ = ("_value",)

    def __init__(self) -> None:
        self._value: Any = _PENDING

    @property
    def done(self) -> bool:
        return self._value is not _PENDING

    def result(self) -> T:
        """The operation's result. Raises: its error; InvalidInput before the pipeline was executed."""
        if self._value is _PENDING:
            raise InvalidInput("the pipeline was not executed yet: call execute(), or leave its `with` block")
        if isinstance(self._value, Exception):
            raise self._value
        value: T = self._value
        return value

    def __repr__(self) -> str:
        return f"<PipelineResult {'pending' if self._value is _PENDING else repr(self._value)}>"


class _Operations:
    """The operations queued so far. Not for several threads at once."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._ops: list[Op] = []
        self._results: list[PipelineResult[Any]] = []
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._ops)

    def put(self, key: str, value: bytes) -> PipelineResult[int]:
        """Result: the revision."""
        return self._add(self._limits.put(key, value))

    def get(self, key: str) -> PipelineResult[bytes | None]:
        """Result: the value as left by the operations before, or None."""
        return self._add(self._limits.get(key))

    def delete(self, key: str) -> PipelineResult[bool]:
        """Result: whether the key existed."""
        return self._add(self._limits.delete(key))

    def cas(self, key: str, expected: bytes | None, new: bytes | None) -> PipelineResult[bool]:
        """Result: whether `expected` (None: absent) was there and `new` (None: delete) took its place."""
        return self._add(self._limits.cas(key, expected, new))

    def append(self, key: str, data: bytes) -> PipelineResult[bytes]:
        """Result: the new value."""
        return self._add(self._limits.append(key, data))

    def _add(self, sized: tuple[Op, int]) -> PipelineResult[Any]:
        op, size_bytes = sized
        if len(self._ops) >= wire.OPS_MAX:
            raise TooLarge(f"a pipeline holds at most {wire.OPS_MAX} operations; execute it and go on with the next")
        if self._ops and self._size_bytes + size_bytes > PIPELINE_BYTES_MAX:
            raise TooLarge(f"a pipeline holds at most {PIPELINE_BYTES_MAX} bytes; execute it and go on with the next")
        self._ops.append(op)
        self._size_bytes += size_bytes
        result: PipelineResult[Any] = PipelineResult()
        self._results.append(result)
        return result

    def _take(self) -> tuple[list[Op], list[PipelineResult[Any]], int]:
        taken = self._ops, self._results, self._size_bytes
        self._ops, self._results, self._size_bytes = [], [], 0
        return taken


def _settle(results: list[PipelineResult[Any]], values: list[Any]) -> list[Any]:
    for result, value in zip(results, values, strict=True):
        result._value = value
    return values


def _raise_first(values: list[Any]) -> None:
    for value in values:
        if isinstance(value, Exception):
            raise value


class Pipeline(_Operations):
    """Made by `KV.pipeline()`.

    >>> with kv.pipeline() as pipeline:                        # doctest: +SKIP
    ...     pipeline.put("a", b"1")
    ...     value = pipeline.get("a")
    >>> value.result()                                         # doctest: +SKIP
    b'1'
    """

    def __init__(self, limits: Limits, send: Callable[[list[Op], int, float], list[Any]], timeout: float) -> None:
        super().__init__(limits)
        self._send = send
        self._timeout = timeout

    def execute(self, timeout: float | None = None) -> list[Any]:
        """Send what was queued, as one frame, and wait. The pipeline is empty afterwards.

        Returns:
            One result per operation, in order. The error of an operation (TooLarge, Busy, ...) stands in its place.
        Raises:
            Unknown, NoQuorum, Timeout: about the frame as a whole.
        """
        ops, results, size_bytes = self._take()
        if not ops:
            return []
        try:
            return _settle(results, self._send(ops, size_bytes, self._timeout if timeout is None else timeout))
        except Exception as error:
            _settle(results, [error] * len(results))
            raise

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Execute, unless the block failed. Raises: the first error of an operation, after all were applied."""
        if kind is None:
            _raise_first(self.execute())


class AsyncPipeline(_Operations):
    """Made by `AsyncKV.pipeline()`; see Pipeline. Use `async with`, or `await pipeline.execute()`."""

    def __init__(
        self, limits: Limits, send: Callable[[list[Op], int, float], Awaitable[list[Any]]], timeout: float
    ) -> None:
        super().__init__(limits)
        self._send = send
        self._timeout = timeout

    async def execute(self, timeout: float | None = None) -> list[Any]:
        """See Pipeline.execute."""
        ops, results, size_bytes = self._take()
        if not ops:
            return []
        try:
            return _settle(results, await self._send(ops, size_bytes, self._timeout if timeout is None else timeout))
        except Exception as error:
            _settle(results, [error] * len(results))
            raise

    async def __aenter__(self) -> AsyncPipeline:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See Pipeline.__exit__."""
        if kind is None:
            _raise_first(await self.execute())


def only_reads(ops: list[Op]) -> bool:
    return all(op[0] == wire.OP_GET for op in ops)
