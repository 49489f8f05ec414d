"""Segment files: names, the 64-byte header, and reading one file.

    0            8        10         12    16   24            32             40      48               64
    | "zcwalseg" | format | reserved | crc | id | previous id | previous end | floor | cluster digest | frames …

    crc           crc32 of the header with these four bytes zero
    previous id   the segment before this one, 0 if the log begins here; previous end: where its valid frames end
    floor         no segment from here on is needed for indices <= floor: they are in earlier segments or in checkpoints

The links make the log a chain: a segment that is no longer linked to (set aside by a repair that was interrupted) does
not count, and a shortened middle segment is noticed even if it was cut between two frames.

A new segment is *begun* when its header and its first frame, written together, are valid. Before that the header is
absent, zero, that of an older segment (a recycled file), or valid without a frame behind it; sectors are written as a
whole, so anything else is damage.
"""

from __future__ import annotations

import re
import zlib
from array import array
from pathlib import Path
from struct import Struct
from typing import Final

import msgspec

from zcluster.errors import Corrupt, FormatTooNew, WrongCluster
from zcluster.storage.disk import Disk
from zcluster.storage.record import Frame, Scan, find_frames, scan_frames
from zcluster.types import Index

SEGMENT_MAGIC: Final = b"zcwalseg"
SEGMENT_FORMAT: Final = 1
SEGMENT_HEADER: Final = Struct("<8sHHIQQQQ16s")
SEGMENT_HEADER_BYTES: Final = SEGMENT_HEADER.size
SEGMENT_BYTES_MAX: Final = 2 << 30  # nothing we write is larger; a larger file is not read into memory

_NAME: Final = re.compile(r"(\d{10,})-(\d{20,})\.wal")
_SPARE: Final = re.compile(r"(\d{10,})\.spare")


class SegmentHeader(msgspec.Struct, frozen=True, gc=False):
    """The fields of the 64 bytes; see the module docstring."""

    id: int
    previous_id: int
    previous_end: int
    floor: Index


class Segment(msgspec.Struct, frozen=True):
    """One file as found on disk. blank: it was never begun. header: None if blank, or not valid."""

    id: int
    path: Path
    size: int
    header: SegmentHeader | None
    blank: bool
    scan: Scan

    def newest_frame(self) -> Frame | None:
        """The last frame with a valid header, wherever it is: the one that knows the newest hard state."""
        if self.scan.strays:
            return self.scan.strays[-1]
        return self.scan.last

    def has_frame_end(self, end: int) -> bool:
        """Whether the valid frames reach `end` exactly (more may follow)."""
        return end in self.scan.ends

    def corrupt(self) -> Corrupt:
        if self.header is None:
            return Corrupt(self.path, 0, "the segment header is not readable")
        return Corrupt(self.path, self.scan.end, "a record of the log that had been synced is not readable")


def segment_name(segment_id: int, floor: Index) -> str:
    """`<id>-<first index>.wal`: the first index that may be put here, and the order of the files in a listing."""
    return f"{segment_id:010d}-{floor + 1:020d}.wal"


def spare_name(segment_id: int) -> str:
    """A trimmed segment that waits to be used again; the id only keeps names apart."""
    return f"{segment_id:010d}.spare"


def parse_segment_name(name: str) -> int | None:
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def is_spare_name(name: str) -> bool:
    return _SPARE.fullmatch(name) is not None


def encode_segment_header(header: SegmentHeader, digest: bytes) -> bytes:
    def pack(crc: int) -> bytes:
        return SEGMENT_HEADER.pack(
            SEGMENT_MAGIC,
            SEGMENT_FORMAT,
            0,
            crc,
            header.id,
            header.previous_id,
            header.previous_end,
            header.floor,
            digest,
        )

    return pack(zlib.crc32(pack(0)))


def decode_segment_header(path: Path, data: bytes, digest: bytes) -> SegmentHeader | None:
    """The header at the beginning of `data`; None if it is not one.

    Raises: FormatTooNew; WrongCluster for a readable header of another cluster.
    """
    if len(data) < SEGMENT_HEADER_BYTES or data[:8] != SEGMENT_MAGIC:
        return None
    _, format_, _, crc, id_, previous_id, previous_end, floor, found = SEGMENT_HEADER.unpack_from(data)
    blanked = data[:12] + bytes(4) + data[16:SEGMENT_HEADER_BYTES]
    if zlib.crc32(blanked) != crc:
        return None
    if format_ > SEGMENT_FORMAT:
        raise FormatTooNew(
            f"{path}: log format {format_}, but this zcluster knows only up to {SEGMENT_FORMAT}; "
            "start it with the version that wrote it"
        )
    if found != digest:
        raise WrongCluster(f"{path}: this segment belongs to another cluster")
    return SegmentHeader(id_, previous_id, previous_end, floor)


def read_bytes(disk: Disk, path: Path) -> bytes | None:
    """The whole file, but never more than a segment can be: None for a larger one."""
    handle = disk.open(path)
    try:
        size = disk.size(handle)
        return disk.pread(handle, size, 0) if size <= SEGMENT_BYTES_MAX else None
    finally:
        disk.close(handle)


def read_segment(disk: Disk, path: Path, segment_id: int, digest: bytes) -> Segment:
    """Check one file from end to end; damage is a result, not an error. Raises: FormatTooNew, WrongCluster, OSError."""
    data = read_bytes(disk, path)
    if data is None:
        return Segment(segment_id, path, 0, None, False, _unread([], True))
    header = decode_segment_header(path, data, digest)
    blank = False
    if header is None:
        blank = not any(data[:SEGMENT_HEADER_BYTES]) or len(data) < SEGMENT_HEADER_BYTES
    elif header.id != segment_id:  # a recycled file that got its new name but not yet its new header
        blank = header.id < segment_id
        header = None
    if header is not None:
        scan = scan_frames(data, SEGMENT_HEADER_BYTES, digest, segment_id)
        if scan.last is not None or scan.damaged:
            return Segment(segment_id, path, len(data), header, False, scan)
        blank = True
    # Nothing in the file counts as read; every frame is a stray, and those behind the first prove damage.
    strays = find_frames(data, SEGMENT_HEADER_BYTES, digest, segment_id)
    blank = blank and not any(frame.synced > 0 for frame in strays)
    return Segment(segment_id, path, len(data), None, blank, _unread(strays, not blank))


def read_segments(disk: Disk, wal: Path, digest: bytes) -> list[Segment]:
    """All segments of a log, ascending by id. Raises: as `read_segment`."""
    found = [(segment_id, name) for name in disk.listdir(wal) if (segment_id := parse_segment_name(name)) is not None]
    return [read_segment(disk, wal / name, segment_id, digest) for segment_id, name in sorted(found)]


def _unread(strays: list[Frame], damaged: bool) -> Scan:
    return Scan(array("I"), array("I"), None, 0, strays, damaged)
