"""A disk in memory that forgets, tears, mixes up and damages, by the rules of real ones.

Two views of everything: `current` is what the process sees (the page cache), `durable` is what the platter holds.

* Bytes: a write lands in `current`; its sectors become durable at `fdatasync`, or, in any order and any number, by a
  crash before it. A sector (512 bytes or 4 KiB, by the world) is never torn, a write of several may be.
* Names: creations, renames and removals become durable, in order, at `fsync_directory`; a crash keeps a prefix.
* A failed `fdatasync` leaves its sectors neither durable nor dirty: syncing again reports success and saves nothing.
* `crash_after` ends the process in the middle of the n-th changing call from now (`Crashed`), a write
  half done: whole pages of it are there.
* `fail` makes calls fail; `capacity` makes the disk full. `flip` damages a byte for good; `misread` makes one read
  return bytes of another place; with `remember` set, `regress` puts older bytes of a sector back (a lost write).

Which damage is fair, so that a quorum keeps a good copy, is decided in `faults`, not here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Final

from zcluster.errors import Conflict
from zcluster.storage.disk import Buffer

UNIT: Final = 512
PAGE: Final = 4096


class Crashed(BaseException):
    """The process is gone. Not an Exception: nothing of it may go on."""


class Inode:
    """One file. Dirty sectors are counted in units of 512 bytes; dicts, because the order must be that of writing."""

    __slots__ = ("current", "dirty", "durable", "older")

    def __init__(self) -> None:
        self.current = bytearray()
        self.durable = bytearray()
        self.dirty: dict[int, None] = {}
        self.older: dict[int, bytes] = {}

    def store(self, data: bytes, offset: int) -> None:
        if not data:
            return
        current = self.current
        length = len(current)
        if length < offset:
            for number in range(length // UNIT, offset // UNIT + 1):
                self.dirty[number] = None
            current += bytes(offset - length)
        end = offset + len(data)
        current[offset:end] = data
        dirty = self.dirty
        for number in range(offset // UNIT, (end + UNIT - 1) // UNIT):
            dirty[number] = None

    def persist(self, number: int, remember: bool) -> None:
        """Make one unit durable, and the size that it needs."""
        begin = number * UNIT
        data = self.current[begin : begin + UNIT]
        durable = self.durable
        if begin + len(data) > len(durable):
            durable += bytes(begin + len(data) - len(durable))
        if remember and durable[begin : begin + UNIT] != data:
            self.older[number] = bytes(durable[begin : begin + UNIT])
        durable[begin : begin + len(data)] = data

    def sync(self, remember: bool) -> None:
        length = len(self.current)
        if len(self.durable) > length:
            del self.durable[length:]
        elif len(self.durable) < length:
            self.durable += bytes(length - len(self.durable))
        for number in self.dirty:
            self.persist(number, remember)
        self.dirty.clear()


class _Change:
    """A change of names on its way to the platter: creation (no source), removal (no target) or rename."""

    __slots__ = ("directory", "inode", "source", "target")

    def __init__(self, source: str | None, target: str | None, directory: str, inode: Inode | None = None) -> None:
        self.source = source
        self.target = target
        self.directory = directory
        self.inode = inode

    def apply(self, names: dict[str, Inode]) -> None:
        inode = self.inode if self.source is None else names.pop(self.source, None)
        if inode is not None and self.target is not None:
            names[self.target] = inode


class SimulatedDisk:
    """Fulfils `storage.disk.Disk` for one node. `sector`: 512 or 4096."""

    def __init__(self, draw: Random, sector: int = UNIT) -> None:
        self.random = draw
        self.sector = sector
        self.remember = False
        self.capacity: int | None = None
        self.crash_after: int | None = None
        self.errors = 0  # raised so far
        self.current: dict[str, Inode] = {}
        self.durable: dict[str, Inode] = {}
        self.directories: dict[str, None] = {"/": None}
        self.pending: list[_Change] = []
        self._faults: list[tuple[str, int]] = []
        self._misreads: dict[str, int] = {}
        self._handles: dict[int, tuple[Inode, str]] = {}
        self._locks: dict[int, str] = {}
        self._next_handle = 3

    # -- faults -------------------------------------------------------------------------------------------------------

    def fail(self, operation: str, code: int) -> None:
        """The next call of `operation` fails, once."""
        self._faults.append((operation, code))

    def misread(self, path: str, offset: int) -> None:
        """The next read of these bytes gets those of another place of the file."""
        self._misreads[path] = offset // UNIT * UNIT

    def recover_from_faults(self) -> None:
        """Nothing that was arranged for the future happens any more."""
        self._faults.clear()
        self._misreads.clear()
        self.capacity = None
        self.crash_after = None

    def kill(self) -> None:
        """The process is gone, its handles and locks with it; the page cache stays."""
        self._handles.clear()
        self._locks.clear()
        self.crash_after = None

    def lose_cache(self, keep: str) -> None:
        """What was not synced is gone: keep "nothing", "all", or a "random" part of sectors and a prefix of names."""
        draw = self.random
        names = {"nothing": 0, "all": len(self.pending), "random": draw.randint(0, len(self.pending))}[keep]
        for change in self.pending[:names]:
            change.apply(self.durable)
        self.pending.clear()
        seen: list[Inode] = []
        for path in sorted(self.durable):
            seen.append(self.durable[path])
        units = self.sector // UNIT
        for inode in seen:
            if inode.dirty:
                kept: dict[int, bool] = {}
                for number in sorted(inode.dirty):
                    group = number // units
                    if group not in kept:
                        kept[group] = keep == "all" or (keep == "random" and draw.random() < 0.5)
                    if kept[group]:
                        inode.persist(number, False)
                inode.dirty.clear()
            inode.current = bytearray(inode.durable)
        self.current = dict(self.durable)
        self.kill()

    def wipe(self) -> None:
        """An empty disk in the place of this one."""
        self.kill()
        self.current, self.durable = {}, {}
        self.pending.clear()
        self.directories = {"/": None}

    def flip(self, path: str, offset: int, bit: int) -> None:
        """Damage that stays, in both views."""
        inode = self.current[path]
        for data in (inode.current, inode.durable):
            if offset < len(data):
                data[offset] ^= 1 << bit

    def regress(self, path: str, number: int) -> bool:
        """A write that was reported durable had never arrived: the unit shows what it held before."""
        inode = self.current[path]
        older = inode.older.pop(number, None)
        if older is None or number in inode.dirty:
            return False
        begin = number * UNIT
        for data in (inode.current, inode.durable):
            data[begin : begin + len(older)] = older
        return True

    # -- the Disk protocol --------------------------------------------------------------------------------------------

    def open(self, path: Path, *, create: bool = False) -> int:
        name = str(path)
        inode = self.current.get(name)
        if inode is None:
            directory = str(path.parent)
            if not create or directory not in self.directories:
                raise FileNotFoundError(errno.ENOENT, "no such file or directory", name)
            self._change("create", name)
            inode = self.current[name] = Inode()
            self.pending.append(_Change(None, name, directory, inode))
        self._next_handle += 1
        self._handles[self._next_handle] = (inode, name)
        return self._next_handle

    def close(self, handle: int) -> None:
        self._locks.pop(handle, None)
        self._handles.pop(handle, None)

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        inode, name = self._handles[handle]
        if self._faults:
            self._maybe_fail("pread", name)
        if self._misreads and offset <= self._misreads.get(name, -1) <= offset + size - UNIT:
            return self._elsewhere(inode, size, offset, self._misreads.pop(name) - offset)
        return bytes(inode.current[offset : offset + size])

    def _elsewhere(self, inode: Inode, size: int, offset: int, place: int) -> bytes:
        """One unit of what was asked for comes from another place of the file."""
        data = inode.current[offset : offset + size]
        other = self.random.randrange(len(inode.current) // UNIT) * UNIT
        data[place : place + UNIT] = inode.current[other : other + UNIT]
        return bytes(data)

    def pwritev(self, handle: int, buffers: Sequence[Buffer], offset: int) -> None:
        inode, name = self._handles[handle]
        data = b"".join(buffers)
        self._change("pwritev", name, inode, data, offset)
        if self.capacity is not None:
            used = sum(len(self.current[path].current) for path in self.current)
            room = max(self.capacity - used + max(len(inode.current) - offset, 0), 0)
            if len(data) > room:
                inode.store(data[:room], offset)
                self.errors += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        inode.store(data, offset)

    def fdatasync(self, handle: int) -> None:
        inode, name = self._handles[handle]
        try:
            self._change("fdatasync", name)
        except OSError:
            inode.dirty.clear()
            raise
        inode.sync(self.remember)

    def size(self, handle: int) -> int:
        return len(self._handles[handle][0].current)

    def truncate(self, handle: int, size: int) -> None:
        inode, name = self._handles[handle]
        self._change("truncate", name)
        length = len(inode.current)
        if size > length:
            inode.current += bytes(size - length)
        else:
            del inode.current[size:]
        for number in range(min(size, length) // UNIT, max(size, length) // UNIT + 1):
            inode.dirty[number] = None

    def read(self, path: Path) -> bytes:
        name = str(path)
        inode = self.current.get(name)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        if self._faults:
            self._maybe_fail("pread", name)
        return bytes(inode.current)

    def exists(self, path: Path) -> bool:
        name = str(path)
        return name in self.current or name in self.directories

    def listdir(self, directory: Path) -> list[str]:
        name = str(directory)
        if name not in self.directories:
            raise FileNotFoundError(errno.ENOENT, "no such directory", name)
        prefix = name.rstrip("/") + "/"
        names = [path[len(prefix) :] for path in (*self.current, *self.directories) if path.startswith(prefix)]
        return sorted(entry for entry in names if entry and "/" not in entry)

    def make_directory(self, directory: Path) -> None:
        """Durable at once: a lost empty directory is the same as a wiped disk, which is a fault of its own."""
        for path in (directory, *directory.parents):
            self.directories[str(path)] = None

    def rename(self, source: Path, target: Path) -> None:
        self._change("rename", str(source))
        if str(source) not in self.current:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(source))
        self._later(_Change(str(source), str(target), str(target.parent)))

    def unlink(self, path: Path) -> None:
        self._change("unlink", str(path))
        if str(path) not in self.current:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        self._later(_Change(str(path), None, str(path.parent)))

    def fsync_directory(self, directory: Path) -> None:
        name = str(directory)
        self._change("fsync_directory", name)
        for change in self.pending:
            if change.directory == name:
                change.apply(self.durable)
        self.pending = [change for change in self.pending if change.directory != name]

    def free_bytes(self, directory: Path) -> int:
        return 1 << 40

    def lock(self, path: Path) -> int:
        name = str(path)
        if name in self._locks.values():
            raise Conflict(f"{path.parent}: another process is using this data directory; stop it first")
        handle = self.open(path, create=True)
        self._locks[handle] = name
        return handle

    # -- inside -------------------------------------------------------------------------------------------------------

    def _later(self, change: _Change) -> None:
        change.apply(self.current)
        self.pending.append(change)

    def _change(
        self, operation: str, name: str, inode: Inode | None = None, data: bytes = b"", offset: int = 0
    ) -> None:
        """Every call that changes something passes here: it may be the last, it may fail."""
        if self.crash_after is not None:
            self.crash_after -= 1
            if self.crash_after <= 0:
                self.crash_after = None
                if inode is not None and data:
                    inode.store(data[: self._cut(offset, len(data))], offset)
                raise Crashed(f"in {operation} {name}")
        if self._faults:
            self._maybe_fail(operation, name)

    def _cut(self, offset: int, size: int) -> int:
        """How much of a write has reached the page cache when the process is killed in it: whole pages."""
        pages = (offset + size) // PAGE - offset // PAGE + 1
        page = offset // PAGE + self.random.randrange(pages + 1)
        return min(max(page * PAGE - offset, 0), size)

    def _maybe_fail(self, operation: str, name: str) -> None:
        for position, (wanted, code) in enumerate(self._faults):
            if wanted == operation:
                del self._faults[position]
                self.errors += 1
                raise OSError(code, os.strerror(code), name)
