"""The part of the log that is held in memory: everything since the last checkpoint, and a tail before it.

    base_index   first_index                        last_index
        |            |                                   |
        v            v                                   v
    .. [ ]          [ ] [ ] [ ] [ ] [ ] [ ] [ ] [ ] [ ] [ ]
     forgotten      |-- tail for slow --|-- since the --|
     (its term      |   followers       |   checkpoint  |
      is kept)

Knows nothing of disks, terms in force or commit indices. Running byte totals are kept beside the entries, so that
cutting a batch by size or finding how much to forget is a binary search, never a walk.

Invariants: entries are contiguous from base_index + 1; their terms never fall.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import attrgetter
from typing import Final

from zcluster.types import Entry, Index, SnapshotMeta, Term

ENTRY_OVERHEAD_BYTES: Final = 176
"""What an entry costs in memory beside its data (measured)."""

_term_of = attrgetter("epoch")


def size_bytes(entry: Entry) -> int:
    return len(entry.data) + ENTRY_OVERHEAD_BYTES


class Log:
    """Entries base_index + 1 .. last_index. `base_term` is the term at `base_index` (0 at the very beginning)."""

    __slots__ = ("_base_end", "_ends", "_entries", "base_index", "base_term", "last_index")

    def __init__(self, base_index: Index = 0, base_term: Term = 0) -> None:
        self.base_index = base_index
        self.base_term = base_term
        self.last_index = base_index
        self._entries: list[Entry] = []
        self._ends: list[int] = []  # bytes up to and including entry i, counted from an arbitrary start
        self._base_end = 0

    @classmethod
    def recover(cls, snapshot: SnapshotMeta | None, entries: Sequence[Entry]) -> Log:
        """From what the disk remembered. Entries that do not reach the checkpoint are left out.

        A log that holds another entry at the checkpoint's index is refused: what lies behind that entry cannot be
        told from what belongs there, and the store has an older state that is true.
        """
        for before, after in pairwise(entries):
            assert after.index == before.index + 1 and after.epoch >= before.epoch, "recovered entries have a gap"
        if snapshot is None:
            assert not entries or entries[0].index == 1, "without a checkpoint the log starts at 1"
            log = cls()
            log.extend(entries)
            return log
        log = cls(snapshot.index, snapshot.epoch)
        if not entries or entries[-1].index < snapshot.index:
            return log
        first = entries[0].index
        assert first <= snapshot.index + 1, "recovered entries start behind a gap after the checkpoint"
        if first > snapshot.index:
            assert entries[0].epoch >= snapshot.epoch, "the log contradicts the checkpoint"
            log.extend(entries)
            return log
        assert entries[snapshot.index - first].epoch == snapshot.epoch, "the log contradicts the checkpoint"
        # The first entry serves as the base, since its predecessor's term is not known; at index 1 it is.
        log = cls() if first == 1 else cls(first, entries[0].epoch)
        log.extend(entries if first == 1 else entries[1:])
        return log

    @property
    def first_index(self) -> Index:
        return self.base_index + 1

    @property
    def last_term(self) -> Term:
        return self._entries[-1].epoch if self._entries else self.base_term

    def term(self, index: Index) -> Term | None:
        """The term of the entry at `index`; None where it is not known here (forgotten, or not yet written)."""
        position = index - self.base_index - 1
        if position == -1:
            return self.base_term
        if position < 0 or index > self.last_index:
            return None
        return self._entries[position].epoch

    def slice(self, first: Index, stop: Index, bytes_max: int) -> list[Entry]:
        """Entries in [first, stop), cut to `bytes_max` bytes but never to nothing."""
        low, high = first - self.base_index - 1, stop - self.base_index - 1
        assert 0 <= low <= high <= len(self._entries), "slice outside the log in memory"
        if high - low > 1:
            limit = (self._ends[low - 1] if low else self._base_end) + bytes_max
            if self._ends[high - 1] > limit:
                high = max(bisect_right(self._ends, limit, low, high), low + 1)
        return self._entries[low:high]

    def tail(self, first: Index) -> tuple[Entry, ...]:
        """Every entry from `first` on."""
        return tuple(self._entries[first - self.base_index - 1 :])

    def bytes_after(self, index: Index) -> int:
        """Bytes of the entries behind `index`; `index` >= base_index."""
        return (self._ends[-1] if self._ends else self._base_end) - self._end(index)

    def append(self, entry: Entry) -> None:
        assert entry.index == self.last_index + 1
        self._ends.append((self._ends[-1] if self._ends else self._base_end) + len(entry.data) + ENTRY_OVERHEAD_BYTES)
        self._entries.append(entry)
        self.last_index = entry.index

    def extend(self, entries: Sequence[Entry]) -> None:
        """Add contiguous entries behind the last one."""
        if not entries:
            return
        assert entries[0].index == self.last_index + 1
        ends = accumulate(map(size_bytes, entries), initial=self._ends[-1] if self._ends else self._base_end)
        next(ends)
        self._ends.extend(ends)
        self._entries.extend(entries)
        self.last_index = entries[-1].index

    def truncate(self, last_kept: Index) -> None:
        """Forget every entry behind `last_kept`."""
        assert self.base_index <= last_kept <= self.last_index
        del self._entries[last_kept - self.base_index :]
        del self._ends[last_kept - self.base_index :]
        self.last_index = last_kept

    def first_difference(self, entries: Sequence[Entry]) -> int:
        """Position in `entries` of the first one that this log lacks or holds with another term; len when it has all.

        `entries` start at most one behind the last index, and the one before them matches.
        """
        overlap = min(len(entries), self.last_index - entries[0].index + 1) if entries else 0
        # Log matching (§5.3): where the last common entry agrees, all before it do.
        if overlap <= 0 or self.term(entries[overlap - 1].index) == entries[overlap - 1].epoch:
            return max(overlap, 0)
        return next(i for i in range(overlap) if self.term(entries[i].index) != entries[i].epoch)

    def last_at_or_below(self, index: Index, term: Term) -> tuple[Index, Term]:
        """The last entry at or before `index` whose term is at most `term`: (its index, its term).

        (base_index - 1, 0) where only a forgotten entry could be meant. Source: Raft paper §5.3, last part.
        """
        stop = min(index, self.last_index) - self.base_index
        if stop >= 0:
            found = bisect_right(self._entries, term, 0, stop, key=_term_of)
            if found:
                return self.base_index + found, self._entries[found - 1].epoch
            if self.base_term <= term:
                return self.base_index, self.base_term
        return self.base_index - 1, 0

    def compact(self, index: Index, retained_bytes_max: int) -> None:
        """Forget entries up to `index`, but for as many of the last ones as fit into `retained_bytes_max`."""
        count = index - self.base_index
        if count <= 0:
            return
        assert index <= self.last_index
        cut = self._end(index) - retained_bytes_max
        if cut <= self._base_end:
            return
        drop = min(bisect_left(self._ends, cut, 0, count) + 1, count)
        self.base_index += drop
        self.base_term = self._entries[drop - 1].epoch
        self._base_end = self._ends[drop - 1]
        del self._entries[:drop]
        del self._ends[:drop]

    def reset(self, index: Index, term: Term) -> None:
        """Forget everything: a checkpoint at (index, term) takes the place of the log."""
        self._entries.clear()
        self._ends.clear()
        self._base_end = 0
        self.base_index = self.last_index = index
        self.base_term = term

    def _end(self, index: Index) -> int:
        position = index - self.base_index - 1
        return self._ends[position] if position >= 0 else self._base_end
