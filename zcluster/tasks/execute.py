"""Running one task in this process: arguments in, result or failure out, both as bytes. Nothing escapes.

Whatever a task raises is its result, `SystemExit` and `MemoryError` included; so is a result that cannot be pickled.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from zcluster.errors import Unpicklable
from zcluster.tasks import payload
from zcluster.tasks.protocol import CHUNK, KEYWORDS, RAISED, RETURNED


def run(
    find: Callable[[], Callable[..., Any]], data: bytes, segments: payload.Segments, flags: int
) -> tuple[int, bytes, payload.Segments]:
    """Call what `find()` gives. Returns: (status, payload, segments). Never raises."""
    try:
        function = find()
        arguments = payload.load(data, segments)
        if flags & CHUNK:
            value: Any = run_chunk(function, arguments[0])
        elif flags & KEYWORDS:
            value = function(*arguments[0], **arguments[1])
        else:
            value = function(*arguments)
    except BaseException as error:
        return RAISED, _failure(error), None
    try:
        return RETURNED, *payload.dump(value)
    except BaseException as error:
        name = type(value).__name__
        failure = Unpicklable(f"the result of the task (a {name}) cannot be pickled: {error}")
        failure.__cause__ = error
        return RAISED, _failure(failure), None


def run_chunk(function: Callable[..., Any], items: list[tuple[Any, ...]]) -> tuple[int, list[Any], bytes | None]:
    """(nanoseconds, results, None), or the results up to the first failure, and that."""
    results: list[Any] = []
    failure = None
    began = time.monotonic_ns()
    try:
        for arguments in items:
            results.append(function(*arguments))
    except BaseException as error:
        failure = _failure(error)
    return time.monotonic_ns() - began, results, failure


def _failure(error: BaseException) -> bytes:
    # The first frame of the traceback is ours and says nothing to the user.
    if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
        error.__traceback__ = error.__traceback__.tb_next
    return payload.dump_exception(error)
