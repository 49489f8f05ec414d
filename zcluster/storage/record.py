"""Frames and records: the bytes of the write-ahead log, and the rule that tells a torn tail from damage.

One *frame* is what one write puts into a segment: every batch that was waiting, under one checksum. So a frame is there
as a whole or not at all. Each frame repeats the whole hard state in its header (a few bytes a write), so that the
newest readable frame, wherever it is, answers "which term, which vote": no damage elsewhere can take them away.

Frame (little endian, 36 bytes of header):

    0      4            8             12       16       20            24     32         34      35         36
    | "…"  | header crc | payload crc | length | synced | incarnation | term | voted_for | flags | reserved | payload …

    header crc    crc32 of bytes 8..36     \\ both start from crc32(cluster, segment id, offset of the frame): a frame
    payload crc   crc32 of the payload     /  copied from another segment, place or cluster does not match
    length        bytes of payload
    synced        everything in this segment below this offset was synced before this frame was written
    flags         bit 0: repair mode

The payload is a row of records, 24 bytes of header each:

    0      1      2          4        8       16      24
    | type | kind | reserved | length | index | epoch | body …

    PUT   kind, index, epoch and body are those of the entry; a later PUT of the same index wins
    CUT   forget all entries after `index`
    MARK  kind START: body is a msgpack `StartMark`; first record of each segment and of each start of the process
          kind INSTALLED: the checkpoint (index, epoch) took the place of the log up to `index`
          kind CHOSEN: what the log holds up to `index` never changes
          kind CLEAN_STOP: written and synced last by an orderly stop; `index` is the moment, in monotonic nanoseconds

The torn-tail rule. Reading stops at the first offset where no valid frame begins. If a valid frame header further on
says `synced` > that offset, then bytes that had been synced are gone: *damage*. If none does, nobody was ever promised
what is missing: a *torn tail*, to be cut. In the weak durability modes several frames may be unsynced at once and
survive a power cut in any pattern; the rule holds there too. For the last frame, behind which there is none, `proof`
says the same from another file.

Pure: bytes in, bytes out; no disk, no clock.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

import msgspec

from zcluster import wire
from zcluster.errors import Corrupt, FormatTooNew
from zcluster.types import Entry, Index, ReplicaId, Term

MAGIC: Final = b"\xf5zC\x1b"
FRAME_HEADER: Final = Struct("<4sIIIIIQHBB")
RECORD_HEADER: Final = Struct("<BBHIQQ")
FRAME_HEADER_BYTES: Final = FRAME_HEADER.size
RECORD_HEADER_BYTES: Final = RECORD_HEADER.size
PAYLOAD_BYTES_MAX: Final = 1 << 30  # a frame above this is a bug of ours or damage
KIND_MAX: Final = 255

PUT: Final = 1
CUT: Final = 2
MARK: Final = 3

MARK_START: Final = 1
MARK_INSTALLED: Final = 2
MARK_CLEAN_STOP: Final = 3
MARK_CHOSEN: Final = 4

_COVERED: Final = Struct("<IIIIQHBB")  # the part of the frame header under the header checksum
_SEED: Final = Struct("<8sQQ")
_COVERED_FROM: Final = FRAME_HEADER_BYTES - _COVERED.size
_COPY_MAX: Final = 4096
_FLAG_REPAIR: Final = 1


class WalState(msgspec.Struct, frozen=True, gc=False):
    """The hard state as storage keeps it: in every frame header."""

    term: Term = 0
    voted_for: ReplicaId = 0
    incarnation: int = 0
    repair: bool = False


class StartMark(msgspec.Struct, frozen=True, array_like=True):
    """Who writes this segment. `suspect_after`: the tail may lack acknowledged entries until an entry of a higher epoch
    than this one is in the log (None: the tail is sound)."""

    boot_id: str
    durability: str
    suspect_after: Term | None = None


class Frame(msgspec.Struct, frozen=True, gc=False):
    """A frame whose header is valid; `valid` says whether the payload is too."""

    offset: int
    start: int
    end: int
    synced: int
    incarnation: int
    term: Term
    voted_for: ReplicaId
    flags: int
    valid: bool

    @property
    def state(self) -> WalState:
        return WalState(self.term, self.voted_for, self.incarnation, bool(self.flags & _FLAG_REPAIR))


def cluster_digest(cluster_id: str) -> bytes:
    """16 bytes that stand for the cluster in segment headers and checksums."""
    return blake2b(cluster_id.encode(), digest_size=16).digest()


def encode_frame_header(
    digest: bytes, segment_id: int, offset: int, synced: int, state: WalState, payload: bytes
) -> bytes:
    """The 36 bytes that go before `payload` at `offset` of the segment."""
    assert len(payload) <= PAYLOAD_BYTES_MAX, "the writer bounds its groups"
    assert synced <= offset
    seed = zlib.crc32(_SEED.pack(digest[:8], segment_id, offset))
    covered = _COVERED.pack(
        zlib.crc32(payload, seed),
        len(payload),
        synced,
        state.incarnation,
        state.term,
        state.voted_for,
        _FLAG_REPAIR if state.repair else 0,
        0,
    )
    return MAGIC + zlib.crc32(covered, seed).to_bytes(4, "little") + covered


def decode_frame(data: bytes, offset: int, digest: bytes, segment_id: int) -> Frame | None:
    """The frame whose header begins at `offset`, or None if there is no valid header for this place.

    Never reads or allocates by a length that is not under a valid checksum.
    """
    start = offset + FRAME_HEADER_BYTES
    if start > len(data) or data[offset : offset + 4] != MAGIC:
        return None
    _, header_crc, payload_crc, length, synced, incarnation, term, voted_for, flags, _ = FRAME_HEADER.unpack_from(
        data, offset
    )
    seed = zlib.crc32(_SEED.pack(digest[:8], segment_id, offset))
    if zlib.crc32(data[offset + _COVERED_FROM : start], seed) != header_crc:
        return None
    end = start + length
    # A slice of bytes is a copy: for small frames it is cheaper than a view, for large ones it is not made.
    payload = data[start:end] if length < _COPY_MAX else memoryview(data)[start:end]
    valid = end <= len(data) and zlib.crc32(payload, seed) == payload_crc
    return Frame(offset, start, end, synced, incarnation, term, voted_for, flags, valid)


class Scan(NamedTuple):
    """What a segment's bytes hold. The valid frames in a row from the beginning: where their payloads start and end (as
    arrays: there may be a hundred thousand), the `last` of them, and the `end` of the row.
    strays: frames with a valid header somewhere behind it. damaged: a stray proves that bytes at `end` were synced.
    """

    starts: array[int]
    ends: array[int]
    last: Frame | None
    end: int
    strays: list[Frame]
    damaged: bool


def scan_frames(data: bytes, begin: int, digest: bytes, segment_id: int) -> Scan:
    """Read frames from `begin` until the first bad one, then apply the torn-tail rule to the rest.

    Linear in the size of `data`: behind the first bad frame only headers are checked, at places where the magic is.
    """
    starts, ends = array("I"), array("I")
    last: Frame | None = None
    end = begin
    while (frame := decode_frame(data, end, digest, segment_id)) is not None and frame.valid:
        last = frame
        end = frame.end
        starts.append(frame.start)
        ends.append(end)
    strays = find_frames(data, end, digest, segment_id)
    return Scan(starts, ends, last, end, strays, any(stray.synced > end for stray in strays))


def find_frames(data: bytes, begin: int, digest: bytes, segment_id: int) -> list[Frame]:
    """All frames with a valid header from `begin` on, wherever they start (but not inside valid ones)."""
    found: list[Frame] = []
    place = data.find(MAGIC, begin)
    while place >= 0:
        frame = decode_frame(data, place, digest, segment_id)
        following = place + 1
        if frame is not None:
            found.append(frame)
            if frame.valid:
                following = frame.end
        place = data.find(MAGIC, following)
    return found


def put_record(entry: Entry) -> tuple[bytes, bytes]:
    """Header and body; two pieces so that a large body is copied only once."""
    assert 0 <= entry.kind <= KIND_MAX
    return RECORD_HEADER.pack(PUT, entry.kind, 0, len(entry.data), entry.index, entry.epoch), entry.data


def cut_record(after: Index) -> bytes:
    return RECORD_HEADER.pack(CUT, 0, 0, 0, after, 0)


def mark_record(kind: int, index: Index = 0, epoch: Term = 0, body: bytes = b"") -> bytes:
    return RECORD_HEADER.pack(MARK, kind, 0, len(body), index, epoch) + body


def start_record(start: StartMark) -> bytes:
    return mark_record(MARK_START, body=msgspec.msgpack.encode(start))


def decode_start(path: Path, offset: int, body: bytes) -> StartMark:
    try:
        return msgspec.msgpack.decode(body, type=StartMark)
    except wire.DecodeError as error:
        raise Corrupt(path, offset, f"unreadable start mark: {error}") from error


def decode_records(path: Path, data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int, bytes]]:
    """(type, kind, index, epoch, body) of each record of a valid frame's payload.

    Raises: Corrupt if the records do not fill the payload exactly; FormatTooNew for an unknown type or mark.
    """
    unpack = RECORD_HEADER.unpack_from
    while start < end:
        body = start + RECORD_HEADER_BYTES
        if body > end:
            raise Corrupt(path, start, "a record ends in its header")
        kind_of_record, kind, _, length, index, epoch = unpack(data, start)
        following = body + length
        if following > end:
            raise Corrupt(path, start, f"a record of {length} bytes leaves its frame")
        if not PUT <= kind_of_record <= MARK or (kind_of_record == MARK and kind > MARK_CHOSEN):
            raise FormatTooNew(
                f"{path}: unknown record ({kind_of_record}, {kind}) at byte {start}; "
                "this data directory was written by a newer version of zcluster"
            )
        yield kind_of_record, kind, index, epoch, data[body:following]
        start = following
