"""The write-ahead log: frames appended to numbered segments. No threads, no clock, no knowledge of a protocol.

`append` makes one frame of everything it is given and hands it to the disk in one write; `sync` makes it durable;
`trim` lets whole segments go. Reading back is `recover`'s business. The bytes are drawn in `record` and `segment`.

Space. Overwriting bytes that exist costs half of what a growing file costs per sync, but filling 8 MiB with zeros takes
20 ms. So the active segment is filled with zeros ahead of the writes, in idle moments where there are any (`prepare`),
and trimmed segments are kept to be used again, old bytes and all: those need no filling. A file that grows makes the
file system commit its journal, and every sync on that file system waits for it (measured: 4.5 ms); so each filling is
as large as the file is by then, up to `FILL_BYTES_MAX`: few of them under load, little disk for a log that stays small.

Order. (1) A segment is synced before the next one begins, in every durability mode. (2) The name of a new segment is
synced into the directory before its first byte is written. (3) Before a segment is trimmed the active one is synced: it
carries the hard state. (4) Nothing is ever written behind bytes that a failed write or sync left uncertain: after the
first failure every call raises that same error. (5) After each sync `proof`, beside the log, is told; it is
synced itself where the hard state has changed, so that this is durable twice before it counts.

Threads: one at a time; the owner is the writer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from zcluster.errors import StorageError
from zcluster.storage import record
from zcluster.storage.disk import Buffer, Disk, storage_error
from zcluster.storage.proof import PROOF, Proof, encode_proof
from zcluster.storage.record import FRAME_HEADER_BYTES, StartMark, WalState
from zcluster.storage.segment import (
    SegmentHeader,
    encode_segment_header,
    segment_name,
    spare_name,
)
from zcluster.types import HardState, Index, Nanoseconds, SnapshotMeta, Term, WriteBatch

DEFAULT_SEGMENT_BYTES: Final = 8 << 20
SEGMENT_BYTES_MIN: Final = 4096
ZERO_FILL_BYTES: Final = 256 << 10
FILL_BYTES_MAX: Final = 4 << 20
SPARES_MAX: Final = 4

T = TypeVar("T")

_ZEROS: Final = bytes(ZERO_FILL_BYTES)


class LiveSegment(msgspec.Struct):
    """What the log remembers of a segment. max_index: the highest index ever put there (0: none). size: of the file,
    known once another segment has begun."""

    id: int
    path: Path
    max_index: Index = 0
    size: int = 0


class WalPosition(msgspec.Struct, kw_only=True):
    """Where a log goes on: made by recovery, or empty for a new log.

    segments: oldest first, the active one last; offset: end of its valid frames; size: of the active file.
    link: (id, end) that the next segment's header names as its predecessor, where there is no active segment.
    floor: the highest index that may be needed from somewhere else than later segments; see `segment`.
    proof: the one that is there, if it agrees with the log.
    start: the mark of the previous start; boot_id, suspect_after: for the mark of this one.
    """

    segments: list[LiveSegment] = msgspec.field(default_factory=list)
    next_id: int = 1
    offset: int = 0
    size: int = 0
    link: tuple[int, int] | None = (0, 0)
    floor: Index = 0
    state: WalState = WalState()
    proof: Proof | None = None
    start: StartMark
    boot_id: str
    suspect_after: Term | None = None
    spares: list[Path] = msgspec.field(default_factory=list)


class Wal:
    """One log, positioned for appending. Every method may raise StorageError; after that all of them do."""

    def __init__(self, disk: Disk, directory: Path, digest: bytes, position: WalPosition, segment_bytes: int) -> None:
        assert segment_bytes >= SEGMENT_BYTES_MIN
        assert bool(position.segments) or position.link is not None
        self.disk = disk
        self.directory = directory
        self.segment_bytes = segment_bytes
        self.state = position.state
        self.start = position.start
        self._boot_id = position.boot_id
        self._suspect_after = position.suspect_after
        self.failed: StorageError | None = None
        self.bytes_written = 0
        self._digest = digest
        self._segments = position.segments
        self._next_id = position.next_id
        self._spares = position.spares
        self._highest = position.floor  # the highest index ever put, or covered by an installed checkpoint
        self._start_pending = True
        self._link = position.link  # set: the next append begins a segment
        self._handle = -1
        self._offset = position.offset
        self._filled = position.size  # the file holds bytes (zeros, old frames) up to here
        self._synced = position.offset
        self._proof = position.proof
        self._proof_handle = -1
        if self._link is None:
            self._handle = self._attempt("open", self._segments[-1].path, lambda: disk.open(self._segments[-1].path))

    # -- what the writer and the status page read ---------------------------------------------------------------------

    @property
    def unsynced_bytes(self) -> int:
        return self._offset - self._synced

    @property
    def untidy(self) -> bool:
        """Whether `prepare` has work: too few zeros are left ahead of the next write."""
        return (
            self._link is None
            and self._filled < self.segment_bytes
            and self._filled - self._offset < ZERO_FILL_BYTES // 2
        )

    @property
    def segment_count(self) -> int:
        return len(self._segments)

    @property
    def active_path(self) -> Path:
        return self._segments[-1].path if self._segments else self.directory

    @property
    def hard_state(self) -> HardState:
        return HardState(self.state.term, self.state.voted_for)

    # -- appending ----------------------------------------------------------------------------------------------------

    def begin_mode(self, durability: str) -> None:
        """From the next append on the log belongs to this start of the process, under this durability mode. (Until
        then it goes on in the name of the previous start, so that its mode and boot are judged again after a crash.)"""
        self.start = StartMark(self._boot_id, durability, self._suspect_after)
        self._start_pending = True

    def append(self, batches: Iterable[WriteBatch]) -> int:
        """Write the batches as one frame; returns its bytes. Accepted by the operating system, not yet synced."""
        parts: list[bytes] = []
        state = self.state
        highest = put_highest = 0
        for batch in batches:
            if batch.snapshot is not None:
                parts.append(_installed_record(batch.snapshot))
                highest = max(highest, batch.snapshot.index)
            state = _next_state(state, batch)
            if batch.truncate_after is not None:
                parts.append(record.cut_record(batch.truncate_after))
            for entry in batch.entries:
                parts += record.put_record(entry)
                put_highest = max(put_highest, entry.index)
            if batch.chosen:
                parts.append(record.mark_record(record.MARK_CHOSEN, batch.chosen))
            if batch.sound:
                self._suspect_after = None
                self.start = StartMark(self.start.boot_id, self.start.durability)
                parts.append(record.start_record(self.start))
        written = self._write_frame(parts, state)
        self._highest = max(self._highest, highest, put_highest)
        self._segments[-1].max_index = max(self._segments[-1].max_index, put_highest)
        return written

    def mark_clean_stop(self, now: Nanoseconds) -> None:
        """The last frame of an orderly stop at `now` (monotonic); the caller syncs before and after."""
        self._write_frame([record.mark_record(record.MARK_CLEAN_STOP, index=now)], self.state)

    def sync(self) -> None:
        """Make everything appended durable. A failure is final."""
        if self._link is None and self._synced != self._offset:
            self._sync_segment()

    def prepare(self) -> bool:
        """Fill the file further with zeros if little is left; for idle moments. Returns whether there was work."""
        if not self.untidy:
            return False
        count = min(max(ZERO_FILL_BYTES, self._filled), FILL_BYTES_MAX, self.segment_bytes - self._filled)
        zeros = [_ZEROS[: count - start] for start in range(0, count, ZERO_FILL_BYTES)]
        self._attempt("fill", self.active_path, lambda: self.disk.pwritev(self._handle, zeros, self._filled))
        self._filled += count
        self._sync_segment()
        return True

    # -- forgetting ---------------------------------------------------------------------------------------------------

    def trim(self, keep_from: Index) -> int:
        """Drop the oldest segments that hold nothing at or above `keep_from`; returns how many. The last one stays."""
        count = 0
        while count < len(self._segments) - 1 and self._segments[count].max_index < keep_from:
            count += 1
        if self._link is not None or count == 0:
            return 0
        self.sync()  # the segments that go may carry the only synced hard state
        for segment in self._segments[:count]:
            self._attempt("recycle", segment.path, partial(self._recycle, segment))
        del self._segments[:count]
        self._attempt("sync", self.directory, lambda: self.disk.fsync_directory(self.directory))
        return count

    def close(self) -> None:
        """Release the files; nothing is synced."""
        handles, self._handle, self._proof_handle = (self._handle, self._proof_handle), -1, -1
        for handle in handles:
            if handle >= 0:
                self.disk.close(handle)
        self.failed = self.failed or StorageError(f"{self.directory}: the log is closed")

    # -- inside -------------------------------------------------------------------------------------------------------

    def _write_frame(self, parts: Sequence[bytes], state: WalState) -> int:
        records = list(parts)
        if self._start_pending:
            records.insert(0, record.start_record(self.start))
        payload = b"".join(records)
        if self._link is None and not self._fits(len(payload)):
            self._finish_segment()
        buffers: list[Buffer] = []
        if self._link is not None:
            buffers.append(self._begin_segment(self._link))
            if not self._start_pending:
                payload = record.start_record(self.start) + payload
        segment_id = self._segments[-1].id
        place = self._offset + sum(map(len, buffers))
        header = record.encode_frame_header(self._digest, segment_id, place, self._synced, state, payload)
        end = place + len(header) + len(payload)
        buffers += (header, payload)
        filled = max(self._filled, end)
        if end > self._filled and end < self.segment_bytes:
            filled = min(end + ZERO_FILL_BYTES, self.segment_bytes)
            buffers.append(_ZEROS[: filled - end])
        self._attempt("write", self.active_path, lambda: self.disk.pwritev(self._handle, buffers, self._offset))
        written = end - self._offset
        self._offset, self._filled = end, filled
        self._link = None
        self._start_pending = False
        self.state = state
        self.bytes_written += written
        return written

    def _sync_segment(self) -> None:
        self._attempt("sync", self.active_path, lambda: self.disk.fdatasync(self._handle))
        self._synced = self._offset
        self._prove()

    def _prove(self) -> None:
        """Rule 5. Nobody waits for this to reach the disk unless the hard state has changed."""
        proof, before = Proof(self._segments[-1].id, self._synced, self.state), self._proof
        if proof == before:
            return
        path = self.directory / PROOF
        if self._proof_handle < 0:
            self._proof_handle = self._attempt("create", path, lambda: self._open_proof(path))
        data = encode_proof(proof, self._digest)
        self._attempt("write", path, lambda: self.disk.pwritev(self._proof_handle, [data], 0))
        if before is None or before.state != proof.state:
            self._attempt("sync", path, lambda: self.disk.fdatasync(self._proof_handle))
        self._proof = proof

    def _open_proof(self, path: Path) -> int:
        if self.disk.exists(path):
            return self.disk.open(path)
        handle = self.disk.open(path, create=True)
        self.disk.fsync_directory(self.directory)
        return handle

    def _fits(self, payload_bytes: int) -> bool:
        return self._offset + FRAME_HEADER_BYTES + payload_bytes <= max(self.segment_bytes, self._filled)

    def _finish_segment(self) -> None:
        """Rule 1: synced to its end, so that everything before the next header is beyond doubt."""
        self.sync()
        self._segments[-1].size = self._filled
        self._link = (self._segments[-1].id, self._offset)
        handle, self._handle = self._handle, -1
        self.disk.close(handle)

    def _begin_segment(self, link: tuple[int, int]) -> bytes:
        """Rule 2: a file of the right name, durable as a name. Returns the header that goes before the first frame."""
        segment_id = self._next_id
        path = self.directory / segment_name(segment_id, self._highest)
        self._attempt("create", path, lambda: self._create(path))
        self._next_id += 1
        self._segments.append(LiveSegment(segment_id, path))
        self._offset = self._synced = 0
        return encode_segment_header(SegmentHeader(segment_id, *link, self._highest), self._digest)

    def _create(self, path: Path) -> None:
        if self._spares:
            self.disk.rename(self._spares.pop(), path)
        self._handle = self.disk.open(path, create=True)
        self.disk.fsync_directory(self.directory)
        self._filled = self.disk.size(self._handle)

    def _recycle(self, segment: LiveSegment) -> None:
        if len(self._spares) >= SPARES_MAX or segment.size > 2 * self.segment_bytes:
            self.disk.unlink(segment.path)
            return
        spare = self.directory / spare_name(segment.id)
        self.disk.rename(segment.path, spare)
        self._spares.append(spare)

    def _attempt(self, action: str, path: Path, call: Callable[[], T]) -> T:
        """Rule 4: one try, and after a failure none at all."""
        if self.failed is not None:
            raise self.failed
        try:
            return call()
        except OSError as error:
            self.failed = storage_error(action, path, error)
            raise self.failed from error


def _installed_record(meta: SnapshotMeta) -> bytes:
    return record.mark_record(record.MARK_INSTALLED, meta.index, meta.epoch)


def _next_state(state: WalState, batch: WriteBatch) -> WalState:
    """The hard state after `batch`; it never goes back.

    Asserts: the term and the incarnation do not fall (a bug of the caller, and a broken promise to its peers).
    """
    if batch.hard_state is None and batch.incarnation is None and batch.repair is None:
        return state
    hard = batch.hard_state or HardState(state.term, state.voted_for)
    incarnation = state.incarnation if batch.incarnation is None else batch.incarnation
    assert hard.term >= state.term, "the term never falls"
    assert incarnation >= state.incarnation, "the incarnation never falls"
    repair = state.repair if batch.repair is None else batch.repair
    return WalState(hard.term, hard.voted_for, incarnation, repair)
