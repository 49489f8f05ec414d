"""What has to go to disk, what is on its way there, and what has arrived.

    log:  1 2 3 4 5 | 6 7 8 | 9 10
          durable     on the  not handed out
          (index 5)   way     (unwritten_from 9)

Writes are handed out with growing `seq` and done in that order. `durable_index` speaks of the log *as it is now*: a
truncation lowers it and the marks of all writes on their way, so a late completion never counts entries that were
replaced since. That is why a leader may count it as its own acknowledgement without asking in which term it wrote.

Does not live here: the log itself, the disk.
"""

from __future__ import annotations

from collections import deque

from zcluster.consensus.log import Log
from zcluster.types import Entry, HardState, Index, SnapshotMeta, WriteBatch


class _Outstanding:
    __slots__ = ("hard_state", "last_index", "seq")

    def __init__(self, seq: int, hard_state: HardState, last_index: Index) -> None:
        self.seq = seq
        self.hard_state = hard_state
        self.last_index = last_index


class Writes:
    """`hard_state` is the one in force; `durable_hard_state` the last one known on disk."""

    __slots__ = (
        "_chosen",
        "_handed_hard_state",
        "_outstanding",
        "_repair",
        "_snapshot",
        "_sound",
        "_truncate_after",
        "durable_hard_state",
        "durable_index",
        "hard_state",
        "seq",
        "unwritten_from",
    )

    def __init__(self, hard_state: HardState, last_index: Index) -> None:
        self.seq = 0
        self.hard_state = hard_state
        self.durable_hard_state = hard_state
        self.durable_index = last_index
        self.unwritten_from = last_index + 1
        self._handed_hard_state = hard_state
        self._truncate_after: Index | None = None
        self._snapshot: SnapshotMeta | None = None
        self._repair: bool | None = None
        self._sound = False
        self._chosen: Index = 0  # goes with the next write, but is no reason for one
        self._outstanding: deque[_Outstanding] = deque()

    def truncated(self, last_kept: Index) -> None:
        """Entries behind `last_kept` are no longer part of the log."""
        if last_kept + 1 < self.unwritten_from:
            self._truncate_after = last_kept
            self.unwritten_from = last_kept + 1
        self._lower(last_kept)

    def installed(self, meta: SnapshotMeta, *, kept: bool) -> None:
        """A received checkpoint stands for the log up to its index; `kept`: entries behind it stay.

        The cut at its index makes sure that the disk keeps exactly what memory keeps, whatever it still held there.
        """
        self._snapshot = meta
        if kept:
            if self._truncate_after is not None:
                self._truncate_after = max(self._truncate_after, meta.index)
            self.unwritten_from = max(self.unwritten_from, meta.index + 1)
        else:
            self._truncate_after = meta.index
            self.unwritten_from = meta.index + 1
            self._lower(0)

    def repaired(self) -> None:
        self._repair = False

    def take(self, log: Log) -> WriteBatch | None:
        """Everything not yet handed out, as one batch; None when there is nothing."""
        last_index = log.last_index
        entries = self._unwritten(log)
        hard_state = self.hard_state if self.hard_state is not self._handed_hard_state else None
        nothing = self._snapshot is None and self._truncate_after is None and self._repair is None and not self._sound
        if nothing and not entries and hard_state is None:
            return None
        self.seq += 1
        batch = WriteBatch(
            self.seq,
            hard_state,
            self._truncate_after,
            entries,
            self._snapshot,
            repair=self._repair,
            sound=self._sound,
            chosen=self._chosen,
        )
        self._outstanding.append(_Outstanding(self.seq, self.hard_state, last_index))
        self._handed_hard_state = self.hard_state
        self._truncate_after = self._snapshot = self._repair = None
        self._sound = False
        self._chosen = 0
        self.unwritten_from = last_index + 1
        return batch

    def _unwritten(self, log: Log) -> tuple[Entry, ...]:
        return log.tail(self.unwritten_from) if log.last_index >= self.unwritten_from else ()

    def persisted(self, seq: int) -> None:
        assert seq <= self.seq, "persisted a write that was never handed out"
        outstanding = self._outstanding
        while outstanding and outstanding[0].seq <= seq:
            done = outstanding.popleft()
            self.durable_hard_state = done.hard_state
            self.durable_index = max(self.durable_index, done.last_index)

    def _lower(self, last_index: Index) -> None:
        self.durable_index = min(self.durable_index, last_index)
        for write in self._outstanding:
            write.last_index = min(write.last_index, last_index)
