"""Every disk that a crash can leave behind: record a workload, then enumerate the states it could have ended in.

    workload ──> RecordingDisk ──> trace of operations ──> crash_states ──> Image ──> RecordingDisk(image) ──> recovery

A disk promises two things: `Sync` makes a file's bytes durable, `SyncDirectory` a directory's names. Everything after
the last such promise is *pending* and may have reached the platter or not, in any combination:

    bytes    of a pending write none, all, or some blocks of 512 B or 4 KiB (a block is never torn); the file may have
             grown without the bytes, then there are zeros
    names    a pending creation, rename or removal happened as a whole or not at all, independently of all others,
             even of an earlier one in the same directory: weaker than what journaling file systems do
    order    is not kept: a later write may be there without an earlier one

For each prefix of the trace `crash_states` gives every subset of the pending operations up to a bound, beyond it a
choice (all but one, only one, prefixes, seeded samples), and pending writes torn at every block.

Nothing here knows what the files mean; what must hold after recovery is the caller's to say. The method is that of
Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014), with one difference: the states come from a model
of the disk that is weaker than any file system, not from a model of each.
"""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from zcluster.errors import Conflict
from zcluster.storage.disk import Buffer

SECTOR_BYTES: Final = 512
PAGE_BYTES: Final = 4096
_DIRECTORY: Final = -1
"""What stands for the inode where a name is a directory's."""


# -- what a workload does to a disk -----------------------------------------------------------------------------------


class Write(msgspec.Struct, frozen=True):
    inode: int
    offset: int
    data: bytes


class Truncate(msgspec.Struct, frozen=True):
    inode: int
    size: int


class Create(msgspec.Struct, frozen=True):
    """A file or, with inode _DIRECTORY, a directory appears."""

    path: Path
    inode: int


class Rename(msgspec.Struct, frozen=True):
    path: Path
    target: Path
    inode: int


class Remove(msgspec.Struct, frozen=True):
    path: Path


class Sync(msgspec.Struct, frozen=True):
    inode: int


class SyncDirectory(msgspec.Struct, frozen=True):
    path: Path


Change = Write | Truncate | Create | Rename | Remove
"""What may be pending."""
Operation = Change | Sync | SyncDirectory


class Image(msgspec.Struct, frozen=True):
    """A disk at rest: files with their bytes, and the directories there are."""

    files: dict[Path, bytes] = {}
    directories: frozenset[Path] = frozenset({Path("/")})

    def fingerprint(self) -> int:
        """Equal for equal images; within one process."""
        return hash((frozenset(self.files.items()), self.directories))


class RecordingDisk:
    """`zcluster.storage.disk.Disk` in memory: works at once, forgets nothing, writes down every change in `trace`.

    `trace` begins with an empty list whatever the image; single-threaded.
    """

    def __init__(self, image: Image | None = None) -> None:
        image = image or Image()
        self.image = image
        self.trace: list[Operation] = []
        self._inodes: dict[int, bytearray] = {}
        self._names: dict[Path, int] = dict.fromkeys(image.directories, _DIRECTORY)
        self._handles: dict[int, int] = {}
        self._locks: dict[int, Path] = {}
        self._next_handle = 3
        for inode, (path, data) in enumerate(sorted(image.files.items()), 1):
            self._inodes[inode] = bytearray(data)
            self._names[path] = inode
        self._next_inode = len(self._inodes) + 1

    def kill(self) -> None:
        """The process that used it is gone; nothing else changes."""
        self._handles.clear()
        self._locks.clear()

    def now(self) -> Image:
        """The disk as processes see it."""
        return _image(self._names, {inode: bytes(data) for inode, data in self._inodes.items()})

    def durable(self) -> Image:
        """The disk after a power cut that nothing pending survives."""
        platter = _Platter(self.image)
        for operation in self.trace:
            platter.take(operation)
        return platter.with_survivors(())

    # -- the Disk protocol --------------------------------------------------------------------------------------------

    def open(self, path: Path, *, create: bool = False) -> int:
        inode = self._names.get(path)
        if inode is None:
            if not create or self._names.get(path.parent) != _DIRECTORY:
                raise FileNotFoundError(errno.ENOENT, "no such file or directory", str(path))
            inode, self._next_inode = self._next_inode, self._next_inode + 1
            self._inodes[inode] = bytearray()
            self._names[path] = inode
            self.trace.append(Create(path, inode))
        self._next_handle += 1
        self._handles[self._next_handle] = inode
        return self._next_handle

    def close(self, handle: int) -> None:
        self._locks.pop(handle, None)
        del self._handles[handle]

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        return bytes(self._inodes[self._handles[handle]][offset : offset + size])

    def pwritev(self, handle: int, buffers: Sequence[Buffer], offset: int) -> None:
        operation = Write(self._handles[handle], offset, b"".join(buffers))
        _store(self._inodes[operation.inode], operation)
        self.trace.append(operation)

    def fdatasync(self, handle: int) -> None:
        self.trace.append(Sync(self._handles[handle]))

    def size(self, handle: int) -> int:
        return len(self._inodes[self._handles[handle]])

    def truncate(self, handle: int, size: int) -> None:
        operation = Truncate(self._handles[handle], size)
        _resize(self._inodes[operation.inode], size)
        self.trace.append(operation)

    def read(self, path: Path) -> bytes:
        return bytes(self._inodes[self._existing(path)])

    def exists(self, path: Path) -> bool:
        return path in self._names

    def listdir(self, directory: Path) -> list[str]:
        if self._names.get(directory) != _DIRECTORY:
            raise FileNotFoundError(errno.ENOENT, "no such directory", str(directory))
        return sorted(path.name for path in self._names if path.parent == directory and path != directory)

    def make_directory(self, directory: Path) -> None:
        for path in (*reversed(directory.parents), directory):
            if path not in self._names:
                self._names[path] = _DIRECTORY
                self.trace.append(Create(path, _DIRECTORY))

    def rename(self, source: Path, target: Path) -> None:
        assert source.parent == target.parent, "no rename between directories is needed or modelled"
        operation = Rename(source, target, self._existing(source))
        _apply_name(self._names, operation)
        self.trace.append(operation)

    def unlink(self, path: Path) -> None:
        self._existing(path)
        del self._names[path]
        self.trace.append(Remove(path))

    def fsync_directory(self, directory: Path) -> None:
        self.trace.append(SyncDirectory(directory))

    def free_bytes(self, directory: Path) -> int:
        return 1 << 40

    def lock(self, path: Path) -> int:
        if path in self._locks.values():
            raise Conflict(f"{path.parent}: another process is using this data directory; stop it first")
        handle = self.open(path, create=True)
        self._locks[handle] = path
        return handle

    def _existing(self, path: Path) -> int:
        inode = self._names.get(path, _DIRECTORY)
        if inode == _DIRECTORY:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return inode


# -- what a crash may leave of it -------------------------------------------------------------------------------------


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the space of states is walked through at each prefix.

    subset_max: of up to so many pending operations, or blocks of one write, all subsets. samples: seeded random
    mixtures of dropped, whole and torn operations. blocks_max: of a larger write, so many blocks are tried one by one
    (evenly spread). block_bytes: the sizes of an untearable block. seed: of the samples.
    """

    subset_max: int = 5
    samples: int = 4
    blocks_max: int = 8
    block_bytes: tuple[int, ...] = (SECTOR_BYTES, PAGE_BYTES)
    seed: int = 0


class Survivor(msgspec.Struct, frozen=True):
    """A pending operation that happened, in whole or in part. parts: of a write, the (begin, end) in its data that
    reached the disk; None: all. The file has its new size in any case."""

    change: Change
    parts: tuple[tuple[int, int], ...] | None = None


def crash_states(trace: Sequence[Operation], image: Image, bounds: Bounds) -> Iterator[tuple[int, Image]]:
    """(n, disk) for each state that a crash after the first n operations may leave, for n from 0 to all.

    Args:
        image: what the trace began with, all of it durable.
    The same image may come several times, for one n or for several: what must hold of it depends on n.
    """
    platter = _Platter(image)
    rng = random.Random(bounds.seed)
    yield 0, image
    for count, operation in enumerate(trace, 1):
        platter.take(operation)
        for survivors in _choices(platter.pending, bounds, rng):
            yield count, platter.with_survivors(survivors)


class _Platter:
    """What is durable after a prefix of the trace, and what is pending, in order."""

    def __init__(self, image: Image) -> None:
        self._bytes: dict[int, bytes] = {}
        self._names: dict[Path, int] = dict.fromkeys(image.directories, _DIRECTORY)
        self.pending: list[Change] = []
        for inode, (path, data) in enumerate(sorted(image.files.items()), 1):  # as RecordingDisk counts
            self._bytes[inode] = data
            self._names[path] = inode

    def take(self, operation: Operation) -> None:
        if isinstance(operation, Sync):
            self._settle(lambda change: isinstance(change, Write | Truncate) and change.inode == operation.inode)
        elif isinstance(operation, SyncDirectory):
            self._settle(lambda c: not isinstance(c, Write | Truncate) and c.path.parent == operation.path)
        else:
            self.pending.append(operation)

    def _settle(self, durable: Callable[[Change], bool]) -> None:
        done = [change for change in self.pending if durable(change)]
        self.pending = [change for change in self.pending if not durable(change)]
        self._names, self._bytes = self._applied(map(Survivor, done))

    def with_survivors(self, survivors: Iterable[Survivor]) -> Image:
        return _image(*self._applied(survivors))

    def _applied(self, survivors: Iterable[Survivor]) -> tuple[dict[Path, int], dict[int, bytes]]:
        names, contents = dict(self._names), dict(self._bytes)
        touched: dict[int, bytearray] = {}
        for survivor in survivors:
            change = survivor.change
            if isinstance(change, Write | Truncate):
                data = touched.setdefault(change.inode, bytearray(contents.get(change.inode, b"")))
                if isinstance(change, Truncate):
                    _resize(data, change.size)
                else:
                    _store(data, change, survivor.parts)
            else:
                _apply_name(names, change)
        contents.update({inode: bytes(data) for inode, data in touched.items()})
        return names, contents


def _choices(pending: Sequence[Change], bounds: Bounds, rng: random.Random) -> Iterator[list[Survivor]]:
    whole = [Survivor(change) for change in pending]
    if len(pending) <= bounds.subset_max:
        for mask in itertools.product((False, True), repeat=len(pending)):
            yield list(itertools.compress(whole, mask))
    else:
        for at in range(len(pending)):
            yield whole[:at]
            yield whole[:at] + whole[at + 1 :]
            yield [whole[at]]
        yield whole
    for at, change in enumerate(pending):
        if isinstance(change, Write):
            for parts in _tears(change, bounds):
                yield [*whole[:at], Survivor(change, parts), *whole[at + 1 :]]
                yield [*(s for s in whole if not isinstance(s.change, Write)), Survivor(change, parts)]
    if len(pending) > 1:
        for _ in range(bounds.samples):
            yield [survivor for change in pending for survivor in _at_random(change, bounds, rng)]


def _at_random(change: Change, bounds: Bounds, rng: random.Random) -> list[Survivor]:
    fate = rng.randrange(3)
    if fate == 0:
        return []
    if fate == 1 or not isinstance(change, Write):
        return [Survivor(change)]
    blocks = _blocks(change, rng.choice(bounds.block_bytes))
    return [Survivor(change, tuple(block for block in blocks if rng.random() < 0.5))]


def _tears(write: Write, bounds: Bounds) -> Iterator[tuple[tuple[int, int], ...]]:
    """Parts of a torn write: every subset of few blocks; of many, none (but the size), those up to one or from one on,
    all but one, one alone."""
    for size in bounds.block_bytes:
        blocks = _blocks(write, size)
        if len(blocks) <= bounds.subset_max:
            for mask in itertools.product((False, True), repeat=len(blocks)):
                yield tuple(itertools.compress(blocks, mask))
            continue
        yield ()
        for at in range(0, len(blocks), -(-len(blocks) // bounds.blocks_max)):
            yield tuple(blocks[:at])
            yield tuple(blocks[at:])
            yield (*blocks[:at], *blocks[at + 1 :])
            yield (blocks[at],)


def _blocks(write: Write, size: int) -> list[tuple[int, int]]:
    """The write cut where the disk's blocks of `size` bytes begin, as (begin, end) in its data."""
    end = len(write.data)
    cuts = [0, *range(size - write.offset % size, end, size), end]
    return list(itertools.pairwise(cuts))


def _store(data: bytearray, write: Write, parts: Iterable[tuple[int, int]] | None = None) -> None:
    end = write.offset + len(write.data)
    if len(data) < end:
        data += bytes(end - len(data))
    if parts is None:
        data[write.offset : end] = write.data
    else:
        for begin, stop in parts:
            data[write.offset + begin : write.offset + stop] = write.data[begin:stop]


def _resize(data: bytearray, size: int) -> None:
    data += bytes(max(size - len(data), 0))
    del data[size:]


def _apply_name(names: dict[Path, int], change: Create | Rename | Remove) -> None:
    if isinstance(change, Create):
        names[change.path] = change.inode
        return
    names.pop(change.path, None)
    if isinstance(change, Rename):
        names[change.target] = change.inode


def _image(names: dict[Path, int], contents: dict[int, bytes]) -> Image:
    """A name below a directory that is not there is not there either."""
    directories = frozenset(path for path, inode in names.items() if inode == _DIRECTORY)
    rooted = frozenset(path for path in directories if directories.issuperset(path.parents))
    files = {
        path: contents.get(inode, b"") for path, inode in names.items() if inode != _DIRECTORY and path.parent in rooted
    }
    return Image(files, rooted)
