"""What the writer decides: what goes into the next write, when to sync, what to acknowledge. Pure.

The table of the durability modes is in `writer`. The simulator runs this very object over its own disk.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from zcluster.config import parse_durability
from zcluster.types import MS, NEVER, Nanoseconds, WriteBatch

GROUP_BYTES_MAX: Final = 4 << 20
"""Bytes of entries in one write: bounds how long a hard state waits behind data. A single larger batch goes alone."""

FSYNC: Final = "fsync"
INTERVAL: Final = "interval"
NONE: Final = "none"


class Durability(msgspec.Struct, frozen=True):
    """A parsed durability setting. interval: only for mode "interval"."""

    mode: str
    interval: Nanoseconds = 0

    @classmethod
    def parse(cls, text: str) -> Durability:
        """
        >>> Durability.parse("interval:20ms")
        Durability(mode='interval', interval=20000000)
        """
        mode, interval_ms = parse_durability(text)
        return cls(mode, interval_ms * MS)

    def __str__(self) -> str:
        return f"{self.mode}:{self.interval // MS}" if self.mode == INTERVAL else self.mode


class WriterPolicy:
    """Decides; never touches a disk or a clock. Calls come in the order submit* (take written synced?)* ."""

    def __init__(self, durability: Durability) -> None:
        self.durability = durability
        self.acknowledged = 0
        self.unsynced_since: Nanoseconds = 0
        self.unsynced_bytes = 0
        self._waiting: deque[WriteBatch] = deque()
        self._submitted = -1
        self._written = 0
        self._force_sync = False

    def submit(self, batch: WriteBatch) -> None:
        assert batch.seq > self._submitted, "seq grows with every batch"
        self._submitted = batch.seq
        self._waiting.append(batch)

    def waiting(self) -> bool:
        return bool(self._waiting)

    def take(self) -> list[WriteBatch]:
        """The batches of the next write, in order; empty if nothing waits."""
        group: list[WriteBatch] = []
        size = 0
        while self._waiting:
            batch = self._waiting[0]
            size += sum(len(entry.data) for entry in batch.entries)
            if group and size > GROUP_BYTES_MAX:
                break
            group.append(self._waiting.popleft())
            self._force_sync = self._force_sync or _needs_sync(batch)
        return group

    def written(self, group: list[WriteBatch], size: int, now: Nanoseconds) -> bool:
        """`group` was accepted by the operating system at `now`. Returns whether to sync at once."""
        self._written = group[-1].seq
        self.unsynced_bytes += size
        self.unsynced_since = self.unsynced_since or now
        if self.durability.mode == FSYNC or self._force_sync:
            return True
        self.acknowledged = self._written
        return self.sync_deadline() <= now

    def synced(self) -> None:
        """Everything written is durable."""
        self.acknowledged = self._written
        self.unsynced_since = 0
        self.unsynced_bytes = 0
        self._force_sync = False

    def sync_deadline(self) -> Nanoseconds:
        """When a sync is due although nothing forces one; NEVER if none is."""
        if self.durability.mode != INTERVAL or not self.unsynced_since:
            return NEVER
        return self.unsynced_since + self.durability.interval


def _needs_sync(batch: WriteBatch) -> bool:
    """What must not be lost in any mode: a vote, an incarnation, the repair flag, the only pointer to a snapshot."""
    return (
        batch.hard_state is not None
        or batch.incarnation is not None
        or batch.repair is not None
        or batch.snapshot is not None
    )
