"""How long tasks of one kind take: a running mean per function, single calls and chunks apart. Pure."""

from __future__ import annotations

from typing import Final

from zcluster.tasks.protocol import CHUNK
from zcluster.tasks.records import Task
from zcluster.types import MS

SHORT_NS: Final = 1 * MS
"""Tasks below it are handed out several at a time; unknown ones count as this long, thus as not short."""
KINDS_MAX: Final = 4096


class Durations:
    """Nanoseconds by function digest."""

    def __init__(self) -> None:
        self._calls: dict[bytes, int] = {}
        self._chunks: dict[bytes, int] = {}

    def expected(self, task: Task) -> int:
        return (self._chunks if task.flags & CHUNK else self._calls).get(task.digest, SHORT_NS)

    def measure(self, task: Task, nanoseconds: int) -> None:
        kind = self._chunks if task.flags & CHUNK else self._calls
        before = kind.get(task.digest)
        if before is None:
            if len(kind) >= KINDS_MAX:
                kind.clear()
            kind[task.digest] = nanoseconds
        else:
            kind[task.digest] = before + (nanoseconds - before >> 3)

    def forget(self, digest: bytes) -> None:
        self._calls.pop(digest, None)
        self._chunks.pop(digest, None)
