"""Single faults of a medium: what one may do to one file of a disk at rest.

flipped      one bit
zeroed       a sector or a page of zeros
misdirected  a sector that holds what belongs to another place, of the same file or of its neighbour
stale        a sector that holds what it held before the last time it was synced
lost         a whole write that was synced is not there
truncated    the file is shorter
missing      the file is gone
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from zcluster.sim.crash_points import PAGE_BYTES, SECTOR_BYTES, Create, Image, RecordingDisk, Rename, Write

Fault = tuple[str, Path, int, Image]
"""(kind, file, offset, the disk with it)"""


def with_bytes(image: Image, path: Path, offset: int, data: bytes) -> Image:
    old = image.files[path]
    return with_file(image, path, old[:offset] + data[: len(old) - offset] + old[offset + len(data) :])


def with_file(image: Image, path: Path, data: bytes | None) -> Image:
    files = {**image.files}
    if data is None:
        del files[path]
    else:
        files[path] = data
    return Image(files, image.directories)


def flips(image: Image, path: Path, bits: int) -> Iterator[Fault]:
    """`bits` of the eight of each byte, which of them changes from byte to byte."""
    data = image.files[path]
    for offset, byte in enumerate(data):
        for number in range(bits):
            flipped = byte ^ (1 << (offset + number) % 8)
            yield "flipped", path, offset, with_bytes(image, path, offset, bytes([flipped]))


def zeroes(image: Image, path: Path) -> Iterator[Fault]:
    for size in (SECTOR_BYTES, PAGE_BYTES):
        for offset in range(0, len(image.files[path]), size):
            yield "zeroed", path, offset, with_bytes(image, path, offset, bytes(size))


def misdirections(image: Image, path: Path) -> Iterator[Fault]:
    files = sorted(p for p in image.files if p.parent == path.parent)
    neighbour = files[files.index(path) - 1]
    sources = {path: image.files[path], neighbour: image.files[neighbour]}
    for source, data in sources.items():
        for begin in range(0, len(data), SECTOR_BYTES):
            sector = data[begin : begin + SECTOR_BYTES]
            for offset in range(0, len(image.files[path]), SECTOR_BYTES):
                if (source, begin) != (path, offset):
                    yield "misdirected", path, offset, with_bytes(image, path, offset, sector)


def truncations(image: Image, path: Path, step: int) -> Iterator[Fault]:
    data = image.files[path]
    for size in range(0, len(data), step):
        yield "truncated", path, size, with_file(image, path, data[:size])


def stale_sectors(disk: RecordingDisk, path: Path) -> Iterator[Fault]:
    """Each sector as any earlier write of the recorded workload left it."""
    image = disk.now()
    inode = inode_of(disk, path)
    content = bytearray()
    versions: dict[int, list[bytes]] = {}
    for operation in disk.trace:
        if isinstance(operation, Write) and operation.inode == inode:
            end = operation.offset + len(operation.data)
            content += bytes(max(end - len(content), 0))
            content[operation.offset : end] = operation.data
            for number in range(operation.offset // SECTOR_BYTES, -(-end // SECTOR_BYTES)):
                sector = bytes(content[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES])
                versions.setdefault(number, []).append(sector)
    for number, earlier in versions.items():
        for sector in dict.fromkeys(earlier):
            yield "stale", path, number * SECTOR_BYTES, with_bytes(image, path, number * SECTOR_BYTES, sector)


def lost_writes(disk: RecordingDisk, path: Path) -> Iterator[Fault]:
    """The file without one of the writes that made it."""
    image = disk.now()
    inode = inode_of(disk, path)
    writes = [o for o in disk.trace if isinstance(o, Write) and o.inode == inode]
    for lost in writes:
        content = bytearray(len(image.files[path]))
        for write in writes:
            if write is not lost:
                content[write.offset : write.offset + len(write.data)] = write.data
        yield "lost", path, lost.offset, with_file(image, path, bytes(content))


def inode_of(disk: RecordingDisk, path: Path) -> int:
    """Of a file that was made in the recorded workload, whatever its name was then."""
    for operation in reversed(disk.trace):
        if isinstance(operation, Create) and operation.path == path:
            return operation.inode
        if isinstance(operation, Rename) and operation.target == path:
            return operation.inode
    raise AssertionError(f"{path} was not made here")


def all_faults(disk: RecordingDisk, path: Path, *, bits: int, truncation_step: int) -> Iterator[Fault]:
    """Those that change anything."""
    image = disk.now()
    for fault in itertools.chain(
        flips(image, path, bits),
        zeroes(image, path),
        misdirections(image, path),
        stale_sectors(disk, path),
        lost_writes(disk, path),
        truncations(image, path, truncation_step),
        [("missing", path, 0, with_file(image, path, None))],
    ):
        if fault[3].files.get(path) != image.files[path]:
            yield fault
