"""From segments to a log: which segments form the chain, and what their records amount to.

`assemble` follows the links from the newest segment backwards and says what is to be read, what is damaged and what
does not belong. `Replay` applies the records of the chosen segments in order. Neither changes anything on disk; acting
on what they found is `recover`'s part.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from zcluster.errors import Corrupt
from zcluster.storage import record
from zcluster.storage.disk import Disk
from zcluster.storage.proof import Proof, later_state
from zcluster.storage.record import StartMark, WalState
from zcluster.storage.segment import Segment, SegmentHeader, read_bytes
from zcluster.types import Entry, Index, Nanoseconds, Term


class Kept(msgspec.Struct, frozen=True):
    """A segment of the chain and where its part of the chain ends."""

    segment: Segment
    header: SegmentHeader
    end: int


class Chain(msgspec.Struct):
    """The usable log. kept: oldest first, without a hole between them.

    damage: the worst that was found. lost: it concerns what no checkpoint covers, so that entries may be missing.
    obsolete: whole and readable, but behind the base of the chain: a trim that was interrupted.
    aside: segments that must not be read again, damaged or cut off from the rest by damage.
    """

    kept: list[Kept] = msgspec.field(default_factory=list)
    damage: Corrupt | None = None
    lost: bool = False
    obsolete: list[Segment] = msgspec.field(default_factory=list)
    aside: list[Segment] = msgspec.field(default_factory=list)

    @property
    def floor(self) -> Index:
        """Indices up to this one may be missing from the chain."""
        return self.kept[0].header.floor if self.kept else 0


def assemble(segments: list[Segment], covered: Index, directory: Path, proof: Proof | None) -> Chain:
    """Follow the links from the newest segment back.

    Args:
        segments: all there are, ascending by id, without a segment that was never begun at the end.
        covered: index of the newest valid checkpoint; segments whose successor's floor is at or below it are not
            needed, so damage there is reported but loses nothing.
        proof: what is known of the newest end from elsewhere.
    """
    chain = Chain()
    pending = list(segments)
    if proof is not None and proof.segment_id > (segments[-1].id if segments else 0):
        chain.damage = Corrupt(directory, 0, f"segment {proof.segment_id} of the log, the newest one, is missing")
        chain.lost = True
    while pending:
        segment = pending.pop()
        if not chain.kept:
            _start_at(chain, segment, proof)
            continue
        link = chain.kept[-1].header  # newest first until the end of this function
        if link.previous_id == 0 or segment.id > link.previous_id:
            chain.aside.append(segment)  # by a repair that was interrupted before it renamed them
        elif segment.id == link.previous_id and _reaches(segment, link.previous_end):
            assert segment.header is not None
            chain.kept.append(Kept(segment, segment.header, link.previous_end))
        elif link.floor > covered:
            _cut_off(chain, _missing(directory, link, segment))
            pending.append(segment)
        elif segment.id == link.previous_id:
            chain.damage = chain.damage or segment.corrupt()
            chain.aside.append(segment)
            chain.obsolete += pending
            break
        else:
            chain.obsolete += [*pending, segment]
            break
    if chain.kept and chain.kept[-1].header.floor > covered:
        _cut_off(chain, _missing(directory, chain.kept[-1].header, None))
    chain.kept.reverse()
    return chain


def _start_at(chain: Chain, segment: Segment, proof: Proof | None) -> None:
    """`segment` is the newest one that may be usable: keep its valid part."""
    proven = proof.end if proof is not None and proof.segment_id == segment.id else 0
    if segment.header is None or segment.scan.damaged or segment.scan.end < proven:
        chain.damage = chain.damage or segment.corrupt()
        chain.lost = True
    if segment.header is None:
        chain.aside.append(segment)
    else:
        chain.kept.append(Kept(segment, segment.header, segment.scan.end))


def _reaches(segment: Segment, end: int) -> bool:
    return segment.header is not None and segment.has_frame_end(end)


def _cut_off(chain: Chain, damage: Corrupt) -> None:
    """What was kept so far lies behind a hole: the log ends in front of it."""
    chain.damage = damage
    chain.lost = True
    chain.aside += [kept.segment for kept in chain.kept]
    chain.kept = []


def _missing(directory: Path, link: SegmentHeader, found: Segment | None) -> Corrupt:
    if found is not None and found.id == link.previous_id:
        return found.corrupt()
    if link.previous_id == 0:
        return Corrupt(directory, 0, f"the checkpoint at {link.floor}, on which the log builds, is missing")
    return Corrupt(directory, 0, f"segment {link.previous_id} of the log is missing, and no checkpoint covers it")


def newest_state(segments: list[Segment], proof: Proof | None) -> WalState | None:
    """The hard state in the newest readable frame header, damaged segment or not, or the one of the proof, whichever
    came later; None if there is neither a readable frame in the newest segment nor a proof: then a newer state may have
    been there."""
    frame = segments[-1].newest_frame() if segments else None
    if frame is None or proof is None:
        return proof.state if proof is not None else frame.state if frame is not None else None
    return later_state(frame.state, proof.state)


class Replay:
    """The log as its records tell it.

    entries: by index. floor: indices up to this one are not in `entries` because a checkpoint took their place.
    highest: the highest index ever put or installed. chosen: what `entries` hold up to here never changes (Paxos).
    installed: the newest installed checkpoint (index, epoch).
    clean, stopped_at: the last frame is that of an orderly stop, and its moment.
    """

    def __init__(self) -> None:
        self.entries: dict[Index, Entry] = {}
        self.floor: Index = 0
        self.chosen: Index = 0
        self.highest: Index = 0
        self.installed: tuple[Index, Term] | None = None
        self.start: StartMark | None = None
        self.clean = False
        self.stopped_at: Nanoseconds = 0
        self._last: Index = 0  # no entry is above it

    def read(self, disk: Disk, kept: Kept) -> Index:
        """Apply one segment's part; returns the highest index put there (0: none).
        Raises: Corrupt, FormatTooNew, OSError."""
        segment = kept.segment
        self.highest = max(self.highest, kept.header.floor)
        data = read_bytes(disk, segment.path)
        assert data is not None, "it was read before"
        highest = 0
        for start, end in zip(segment.scan.starts, segment.scan.ends, strict=True):
            if end > kept.end:
                break
            highest = max(highest, self._apply(segment.path, data, start, end))
        self.highest = max(self.highest, highest)
        return highest

    def _apply(self, path: Path, data: bytes, start: int, end: int) -> Index:
        entries = self.entries
        highest = 0
        self.clean = False
        for type_, kind, index, epoch, body in record.decode_records(path, data, start, end):
            if type_ == record.PUT:
                entries[index] = Entry(index, epoch, kind, body)
                highest = max(highest, index)
            elif type_ == record.CUT:
                self._last = max(self._last, highest)
                self.cut(index)
                entries = self.entries
            elif kind == record.MARK_START:
                self.start = record.decode_start(path, start, body)
            elif kind == record.MARK_INSTALLED:
                self.install(index, epoch)
                entries = self.entries
            elif kind == record.MARK_CHOSEN:
                self.chosen = max(self.chosen, index)
            else:
                self.clean, self.stopped_at = True, index
        self._last = max(self._last, highest)
        return highest

    def cut(self, after: Index) -> None:
        """Forget all entries after this index."""
        if self._last - after > 2 * len(self.entries):  # far apart: do not walk through indices that are not there
            self.entries = {index: entry for index, entry in self.entries.items() if index <= after}
        else:
            for index in range(after + 1, self._last + 1):
                self.entries.pop(index, None)
        self._last = min(self._last, after)

    def install(self, index: Index, epoch: Term) -> None:
        """A checkpoint took the log's place up to `index`: of the whole log where the entry there contradicts it. A log
        that has the very entry keeps everything; one without any entry there keeps what is above."""
        entry = self.entries.get(index)
        self.installed = (index, epoch)
        self.highest = max(self.highest, index)
        if entry is not None and entry.epoch == epoch:
            return
        self.entries = {} if entry is not None else {i: e for i, e in self.entries.items() if i > index}
        self.floor = max(self.floor, index)

    def contradicts(self, index: Index, epoch: Term) -> bool:
        """Whether the log has another entry where a checkpoint of (index, epoch) ends. Only a checkpoint received from
        a leader can do that, and only if the process ended before the log said so."""
        entry = self.entries.get(index)
        return entry is not None and entry.epoch != epoch and self.installed != (index, epoch)

    def above(self, index: Index) -> list[Entry]:
        """What follows a checkpoint at `index` (0: none): all above it, and the unbroken run that leads up to it."""
        first = index + 1
        while first - 1 in self.entries and first > 1:
            first -= 1
        return [self.entries[i] for i in sorted(self.entries) if i >= first]
