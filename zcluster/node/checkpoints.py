"""When the next checkpoint is due, and who waits for it. Pure.

    idle ----- enough bytes applied, or time, or asked ----> capturing ---- durable ----> idle
      ^                                                          |
      +------------------ failed: not again for a while <--------+

Does not live here: taking the capture (the machine), writing it (`storage.checkpoint`), trimming the log behind it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from zcluster.types import MS, NEVER, Index, Nanoseconds, SnapshotMeta

WAITERS_MAX: Final = 1_000
RETRY_AFTER: Final[Nanoseconds] = 10_000 * MS
"""What made a checkpoint fail (a full disk, mostly) does not pass in a moment, and each attempt writes a lot."""

Waiter = tuple[bytes, int]
"""(client, request)"""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """When to write a checkpoint: after so many bytes of applied entries (or as many as the last checkpoint had, if
    that is more), or so long after the last one (0: never by time). Nothing is written while nothing was applied."""

    checkpoint_bytes: int
    checkpoint_interval: Nanoseconds


class Checkpoints:
    """`index`: of the newest one that is complete. `bytes_since`: of entries applied since the last capture that became
    one. `capturing`: what is being written. `due`: when `wanted` turns True by time alone."""

    __slots__ = (
        "_captured",
        "_limits",
        "_retry_at",
        "_size_bytes",
        "_waiters",
        "bytes_since",
        "capturing",
        "due",
        "index",
    )

    def __init__(self, limits: Limits, index: Index, now: Nanoseconds) -> None:
        self.index = index
        self.bytes_since = 0
        self.capturing: SnapshotMeta | None = None
        self.due: Nanoseconds = NEVER
        self._limits = limits
        self._captured = 0  # of `bytes_since`, those that the capture holds
        self._size_bytes = 0
        self._retry_at: Nanoseconds = 0
        self._waiters: list[tuple[Waiter, Index]] = []
        self._arm(now)

    def ask(self, waiter: Waiter, covering: Index) -> bool:
        """Somebody wants to hear of one at `covering` or later: never of one whose capture is older. False: too many
        do."""
        if len(self._waiters) >= WAITERS_MAX:
            return False
        self._waiters.append((waiter, covering))
        return True

    def wanted(self, now: Nanoseconds, applied: Index) -> bool:
        if self.capturing is not None:
            return False
        # Writing the state again must not cost more than writing the log did: a large state waits for as large a log.
        enough = max(self._limits.checkpoint_bytes, self._size_bytes)
        asked = any(covering <= applied for _, covering in self._waiters)
        return asked or now >= self.due or (self.bytes_since >= enough and now >= self._retry_at)

    def begin(self, meta: SnapshotMeta) -> None:
        self.capturing = meta
        self._captured = self.bytes_since
        self.due = NEVER

    def complete(self, meta: SnapshotMeta) -> bool:
        """A checkpoint at `meta` is durable, written here or received. False: there is a newer one."""
        if meta.index <= self.index and self.index:
            return False
        self.index = meta.index
        self.bytes_since -= self._captured
        self._captured = 0
        return True

    def replaced(self) -> None:
        """The state is another one now, a received checkpoint's; a capture of the old one counts for nothing."""
        self.bytes_since = self._captured = 0

    def end(self, now: Nanoseconds, index: Index, *, size_bytes: int = 0, failed: bool = False) -> list[Waiter]:
        """The capture at `index` was written, or failed, or there was nothing newer to write. Returns those who wait
        for that: all of them after a failure."""
        self.capturing = None
        if size_bytes:
            self._size_bytes = size_bytes
        self._arm(now)
        if failed:
            self._retry_at = now + RETRY_AFTER
            self.due = min(self.due, self._retry_at)
        answered = [waiter for waiter, covering in self._waiters if failed or covering <= index]
        self._waiters = [] if failed else [waiting for waiting in self._waiters if waiting[1] > index]
        return answered

    def _arm(self, now: Nanoseconds) -> None:
        interval = self._limits.checkpoint_interval
        self.due = now + interval if interval else NEVER
