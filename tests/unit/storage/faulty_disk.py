"""A disk in memory that fails the way disks do. Test-side; a simulator may build upon it.

Two views of everything: `current` is what processes see (the page cache), `durable` is what a power cut leaves.

* Bytes: a write lands in `current`; its 512-byte sectors become durable at `fdatasync`, or, sector by sector and at the
  whim of `power_cut`, before. A sector is never torn.
* Names: creations, renames and removals become durable, in order, at `fsync_directory` of that directory; a power cut
  keeps some prefix of the rest (or nothing).
* `kill()` ends the process only: `current` stays.
* `observer` is handed a copy of the disk in the middle of every changing operation, to cut the power there and look.
* Faults: `fail(operation, errno, ...)` makes the next such call fail, `capacity` makes the disk full, `stop_at` cuts
  the power in the middle of the n-th changing operation (a write may have reached the page cache in part), `flip`,
  `overwrite` and `cut` damage what is there.
* After a failed `fdatasync` the unsynced sectors are neither durable nor tried again, as on Linux: syncing once more
  reports success and saves nothing, until they are written again.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zcluster.errors import Conflict
from zcluster.storage.disk import Buffer

SECTOR = 512


class PowerCut(BaseException):
    """The machine is off. Not an Exception: nothing may catch it and go on."""


@dataclass
class Inode:
    current: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    dirty: set[int] = field(default_factory=set)  # numbers of sectors that differ, or may
    lost: set[int] = field(default_factory=set)  # given up by a failed sync

    def sync(self) -> None:
        if len(self.durable) != len(self.current):
            length = len(self.current)
            self.durable = self.durable[:length] + bytes(max(0, length - len(self.durable)))
        for number in self.dirty - self.lost:
            self.persist(number)
        self.dirty &= self.lost

    def persist(self, number: int) -> None:
        """Make one sector durable, and the size that it needs."""
        begin, end = number * SECTOR, min((number + 1) * SECTOR, len(self.current))
        if end > len(self.durable):
            self.durable += bytes(end - len(self.durable))
        self.durable[begin:end] = self.current[begin:end]


@dataclass(frozen=True)
class NameChange:
    """source None: the creation of `inode` as `target`; target None: a removal; else a rename."""

    source: Path | None
    target: Path | None
    inode: Inode | None = None

    @property
    def directory(self) -> Path:
        path = self.source or self.target
        assert path is not None
        return path.parent

    def apply(self, names: dict[Path, Inode]) -> None:
        inode = self.inode if self.source is None else names.pop(self.source, None)
        if inode is not None and self.target is not None:
            names[self.target] = inode


class FaultyDisk:
    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.current: dict[Path, Inode] = {}
        self.durable: dict[Path, Inode] = {}
        self.directories: set[Path] = {Path("/")}
        self.pending: list[NameChange] = []  # not yet durable, in order
        self.handles: dict[int, Inode] = {}
        self.paths: dict[int, Path] = {}
        self.locks: dict[int, Path] = {}
        self.capacity: int | None = None
        self.operations = 0
        self.log: list[str] = []
        self.stop_at: int | None = None
        self.observer: Callable[[FaultyDisk], None] | None = None
        self._next_handle = 3
        self._faults: list[tuple[str, int, str]] = []

    # -- faults -------------------------------------------------------------------------------------------------------

    def fail(self, operation: str, code: int = errno.EIO, name: str = "") -> None:
        """The next call of `operation` on a path that contains `name` raises OSError(code), once."""
        self._faults.append((operation, code, name))

    def kill(self) -> None:
        """The process is gone: its handles and locks with it; the page cache stays."""
        self.handles.clear()
        self.paths.clear()
        self.locks.clear()
        self.stop_at = None
        self._faults.clear()

    def power_cut(self, keep: str = "nothing") -> None:
        """What was not synced: keep "nothing", "all", or a "random" part of the sectors and a prefix of the names."""
        inodes = {id(inode): inode for inode in [*self.current.values(), *self.durable.values()]}
        names = {"nothing": 0, "all": len(self.pending), "random": self.random.randint(0, len(self.pending))}[keep]
        for change in self.pending[:names]:
            change.apply(self.durable)
        for inode in inodes.values():
            for number in sorted(inode.dirty - inode.lost):
                if keep == "all" or (keep == "random" and self.random.random() < 0.5):
                    inode.persist(number)
            inode.current = bytearray(inode.durable)
            inode.dirty.clear()
            inode.lost.clear()
        self.pending.clear()
        self.current = dict(self.durable)
        self.kill()

    def flip(self, path: Path, offset: int, bit: int = 0) -> None:
        inode = self.current[path]
        for data in (inode.current, inode.durable):
            if offset < len(data):
                data[offset] ^= 1 << bit

    def overwrite(self, path: Path, offset: int, data: bytes) -> None:
        """Damage from outside: changes both views."""
        inode = self.current[path]
        for view in (inode.current, inode.durable):
            view[offset : offset + len(data)] = data

    def cut(self, path: Path, size: int) -> None:
        """Shorten a file from outside, in both views."""
        inode = self.current[path]
        del inode.current[size:]
        del inode.durable[size:]
        inode.dirty.clear()

    def copy(self) -> FaultyDisk:
        """An independent disk in the same state: what is synced, what is not; no handles."""
        twin = FaultyDisk(self.random.randrange(1 << 30))
        twin.directories = set(self.directories)
        twin.capacity = self.capacity
        inodes = {
            id(inode): Inode(bytearray(inode.current), bytearray(inode.durable), set(inode.dirty), set(inode.lost))
            for inode in [*self.current.values(), *self.durable.values()]
        }
        twin.current = {path: inodes[id(inode)] for path, inode in self.current.items()}
        twin.durable = {path: inodes[id(inode)] for path, inode in self.durable.items()}
        for change in self.pending:
            inode = None if change.inode is None else inodes.get(id(change.inode), Inode())
            twin.pending.append(NameChange(change.source, change.target, inode))
        return twin

    # -- the Disk protocol --------------------------------------------------------------------------------------------

    def open(self, path: Path, *, create: bool = False) -> int:
        if path not in self.current:
            if not create:
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            self._change("create", path)
            if path.parent not in self.directories:
                raise FileNotFoundError(errno.ENOENT, "no such directory", str(path))
            inode = Inode()
            self._rename_later(NameChange(None, path, inode))
        return self._handle(self.current[path], path)

    def close(self, handle: int) -> None:
        self.locks.pop(handle, None)
        self.paths.pop(handle, None)
        del self.handles[handle]

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        self._maybe_fail("pread", self.paths[handle])
        return bytes(self.handles[handle].current[offset : offset + size])

    def pwritev(self, handle: int, buffers: Sequence[Buffer], offset: int) -> None:
        inode, path = self.handles[handle], self.paths[handle]
        data = b"".join(buffers)
        self._change("pwritev", path, data, offset)
        if self.capacity is not None:
            used = sum(len(other.current) for other in self.current.values())
            room = max(self.capacity - used + max(len(inode.current) - offset, 0), 0)
            if len(data) > room:
                self._store(inode, data[:room], offset)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        self._store(inode, data, offset)

    def fdatasync(self, handle: int) -> None:
        inode = self.handles[handle]
        try:
            self._change("fdatasync", self.paths[handle])
        except OSError:
            inode.lost |= inode.dirty
            raise
        inode.sync()

    def size(self, handle: int) -> int:
        return len(self.handles[handle].current)

    def truncate(self, handle: int, size: int) -> None:
        inode = self.handles[handle]
        self._change("truncate", self.paths[handle])
        grown = size - len(inode.current)
        if grown > 0:
            inode.current += bytes(grown)
        else:
            del inode.current[size:]
        inode.dirty |= set(range(size // SECTOR, (size + abs(grown)) // SECTOR + 1))

    def read(self, path: Path) -> bytes:
        if path not in self.current:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        self._maybe_fail("read", path)
        return bytes(self.current[path].current)

    def exists(self, path: Path) -> bool:
        return path in self.current or path in self.directories

    def listdir(self, directory: Path) -> list[str]:
        if directory not in self.directories:
            raise FileNotFoundError(errno.ENOENT, "no such directory", str(directory))
        names = [path.name for path in self.current if path.parent == directory]
        return sorted(names + [path.name for path in self.directories if path.parent == directory])

    def make_directory(self, directory: Path) -> None:
        """Durable at once: losing an empty directory is a case of its own and tested as a missing store."""
        while directory not in self.directories:
            self.directories.add(directory)
            directory = directory.parent

    def rename(self, source: Path, target: Path) -> None:
        self._change("rename", source)
        if source not in self.current:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(source))
        self._rename_later(NameChange(source, target))

    def unlink(self, path: Path) -> None:
        self._change("unlink", path)
        if path not in self.current:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        self._rename_later(NameChange(path, None))

    def fsync_directory(self, directory: Path) -> None:
        self._change("fsync_directory", directory)
        for change in self.pending:
            if change.directory == directory:
                change.apply(self.durable)
        self.pending = [change for change in self.pending if change.directory != directory]

    def free_bytes(self, directory: Path) -> int:
        return 1 << 40

    def lock(self, path: Path) -> int:
        if path in self.locks.values():
            raise Conflict(f"{path.parent}: another process is using this data directory; stop it first")
        handle = self.open(path, create=True)
        self.locks[handle] = path
        return handle

    # -- inside -------------------------------------------------------------------------------------------------------

    def _handle(self, inode: Inode, path: Path) -> int:
        self._next_handle += 1
        self.handles[self._next_handle] = inode
        self.paths[self._next_handle] = path
        return self._next_handle

    def _rename_later(self, change: NameChange) -> None:
        change.apply(self.current)
        self.pending.append(change)

    def _change(self, operation: str, path: Path, data: bytes = b"", offset: int = 0) -> None:
        """Every call that changes something passes here: it is counted, observed, may fail, may be the last."""
        self.operations += 1
        self.log.append(f"{operation} {path.name}")
        if self.observer is not None:
            twin = self.copy()
            if data and path in twin.current:
                self._store(twin.current[path], data[: self.random.randint(0, len(data))], offset)
            self.observer(twin)
        if self.stop_at is not None and self.operations >= self.stop_at:
            if data and path in self.current:
                self._store(self.current[path], data[: self.random.randint(0, len(data))], offset)
            raise PowerCut(f"operation {self.operations}: {operation} {path.name}")
        self._maybe_fail(operation, path)

    def _maybe_fail(self, operation: str, path: Path) -> None:
        for fault in self._faults:
            if fault[0] == operation and fault[2] in path.name:
                self._faults.remove(fault)
                raise OSError(fault[1], os.strerror(fault[1]), str(path))

    @staticmethod
    def _store(inode: Inode, data: bytes, offset: int) -> None:
        if not data:
            return
        if len(inode.current) < offset:
            inode.dirty |= set(range(len(inode.current) // SECTOR, offset // SECTOR + 1))
            inode.current += bytes(offset - len(inode.current))
        inode.current[offset : offset + len(data)] = data
        written = set(range(offset // SECTOR, (offset + len(data) - 1) // SECTOR + 1))
        inode.dirty |= written
        inode.lost -= written  # a page that is written again is dirty again
