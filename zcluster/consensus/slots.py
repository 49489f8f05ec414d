"""What an acceptor has accepted: a log with holes, and which of it is not on disk yet.

    base_index                      last_index        scattered
        |                               |
        v                               v
    .. [ ] [ ] [ ] [ ] [ ] [ ] [ ] [ ] [ ]      .      [ ] [ ]      .      [ ]
     forgotten      without a hole              a hole              another one

Each slot holds the value of the highest ballot it was accepted under (`epoch`). A value may be replaced under a higher
ballot, never under a lower one, and nothing is ever cut off: what was accepted stays until a checkpoint covers it.

Does not live here: which ballots are in force, what is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

from zcluster.consensus.log import Log
from zcluster.consensus.writes import Writes
from zcluster.types import Entry, HardState, Index, SnapshotMeta, Term


class Slots(Log):
    """`scattered`: slots above last_index + 1. The log's terms may rise and fall from slot to slot."""

    __slots__ = ("scattered",)

    def __init__(self, base_index: Index = 0, base_term: Term = 0) -> None:
        super().__init__(base_index, base_term)
        self.scattered: dict[Index, Entry] = {}

    @classmethod
    def recover(cls, snapshot: SnapshotMeta | None, entries: Sequence[Entry]) -> Slots:
        """From what the disk remembered: ascending, perhaps with holes.

        What the log holds up to the checkpoint is left out: it may be a value that was accepted once but never chosen,
        and nobody may be told it in the place of the chosen one.
        """
        slots = cls(snapshot.index, snapshot.epoch) if snapshot else cls()
        slots.scattered = {entry.index: entry for entry in entries if entry.index > slots.base_index}
        slots._absorb()
        return slots

    @property
    def highest(self) -> Index:
        """The last slot that holds anything."""
        return max(self.scattered) if self.scattered else self.last_index

    @property
    def highest_ballot(self) -> Term:
        """Of all slots above the base; 0 without any."""
        return max((entry.epoch for entry in self.held_after(self.base_index)), default=0)

    def get(self, index: Index) -> Entry | None:
        """What the slot holds; `index` > base_index."""
        if index <= self.last_index:
            return self._entries[index - self.base_index - 1]
        return self.scattered.get(index)

    def ballot(self, index: Index) -> Term | None:
        """Under which the slot's value was accepted; None where it holds nothing. `index` > base_index."""
        if index <= self.last_index:
            return self._entries[index - self.base_index - 1].epoch
        entry = self.scattered.get(index)
        return None if entry is None else entry.epoch

    def held_after(self, index: Index) -> list[Entry]:
        """Everything above `index` >= base_index, ascending."""
        scattered = [self.scattered[i] for i in sorted(self.scattered) if i > index]
        return [*self.tail(index + 1), *scattered] if index < self.last_index else scattered

    def run_after(self, index: Index) -> tuple[Index, Term]:
        """The last slot of the row behind `index` whose values were accepted under one ballot, and that ballot."""
        ballot = self.term(index + 1)
        if ballot is None:
            return index, 0
        while self.term(index + 1) == ballot:
            index += 1
        return index, ballot

    def accept(self, run: Sequence[Entry]) -> None:
        """Put the values of consecutive slots, all above base_index, in the place of what was there."""
        first, last = run[0].index, run[-1].index
        if first > self.last_index + 1:
            self.scattered.update((entry.index, entry) for entry in run)
            return
        assert first > self.base_index
        behind: tuple[Entry, ...] = ()
        if first <= self.last_index:
            behind = self.tail(last + 1) if last < self.last_index else ()
            self.truncate(first - 1)
        self.extend(run)
        self.extend(behind)
        if self.scattered:
            for entry in run:
                self.scattered.pop(entry.index, None)
            self._absorb()

    def part_at(self, index: Index) -> None:
        """What lies above `index` is scattered from now on: nothing new may follow on it directly."""
        if index < self.last_index:
            self.scattered.update((entry.index, entry) for entry in self.tail(index + 1))
            self.truncate(index)

    def install(self, index: Index, epoch: Term) -> None:
        """A checkpoint covers everything up to `index`; what lies above stays. What lies below goes, for it need not
        be what was chosen there."""
        above = {entry.index: entry for entry in self.held_after(max(index, self.base_index))}
        self.reset(index, epoch)
        self.scattered = above
        self._absorb()

    def _absorb(self) -> None:
        """The log grows by what lies right behind it."""
        while (entry := self.scattered.pop(self.last_index + 1, None)) is not None:
            self.append(entry)


class SlotWrites(Writes):
    """`durable_index`: of a proposer, up to where its own acceptances under its ballot are on disk."""

    __slots__ = ("_accepted",)

    def __init__(self, hard_state: HardState) -> None:
        super().__init__(hard_state, 0)
        self._accepted: list[Entry] = []

    def accepted(self, run: Sequence[Entry]) -> None:
        self._accepted.extend(run)

    def begin_ballot(self, chosen: Index) -> None:
        """What was accepted before, on disk or on its way, says nothing for the new ballot; what is `chosen` does."""
        self._lower(chosen)
        self.durable_index = chosen

    def covered(self, meta: SnapshotMeta, above: Sequence[Entry]) -> None:
        """A received checkpoint. What was accepted `above` it is written again, in the same batch: a store that finds
        another ballot at the checkpoint's index drops the rest of its log."""
        self._snapshot = meta
        self._accepted = list(above)

    def chosen(self, index: Index) -> None:
        """What is written with or before the next batch holds what is chosen up to `index`."""
        self._chosen = index

    def sound(self) -> None:
        self._sound = True

    def _unwritten(self, log: Log) -> tuple[Entry, ...]:
        accepted, self._accepted = self._accepted, []
        return tuple(accepted)
