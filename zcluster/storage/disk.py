"""The only way storage touches the operating system.

`Disk` is what the rest of the package sees: plain calls on paths and on small integer handles, every one of which may
raise `OSError`. `PosixDisk` is the real one. The simulator and the tests bring disks of their own that forget what was
not synced. Nothing here knows about logs, checksums or retries; a failed call is reported once and never repeated.

Threads: `PosixDisk` has no state, so any thread may use it; the slow calls release the interpreter lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from zcluster.errors import Conflict, StorageError

Buffer = bytes | bytearray | memoryview

_IOV_MAX: Final = 1024  # buffers per system call on Linux
_MODE_FILE: Final = 0o600
_MODE_DIRECTORY: Final = 0o700


class Disk(Protocol):
    """A disk with one promise: `fdatasync` makes a file's bytes durable, `fsync_directory` its names."""

    def open(self, path: Path, *, create: bool = False) -> int:
        """A handle for reading and writing. `create`: make an empty file if there is none.
        Raises: FileNotFoundError."""

    def close(self, handle: int) -> None: ...

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        """At most `size` bytes; fewer only at the end of the file."""

    def pwritev(self, handle: int, buffers: Sequence[Buffer], offset: int) -> None:
        """All buffers, one behind the other, from `offset` on. Not durable yet. On an error any part may be written."""

    def fdatasync(self, handle: int) -> None:
        """Make the bytes (and the size) durable. After a failure nothing is known about them: never call it again."""

    def size(self, handle: int) -> int: ...

    def truncate(self, handle: int, size: int) -> None: ...

    def read(self, path: Path) -> bytes:
        """The whole file. Raises: FileNotFoundError."""

    def exists(self, path: Path) -> bool: ...

    def listdir(self, directory: Path) -> list[str]:
        """Sorted names. Raises: FileNotFoundError."""

    def make_directory(self, directory: Path) -> None:
        """Also its parents; nothing happens if it exists. Durable after `fsync_directory` of the parent."""

    def rename(self, source: Path, target: Path) -> None:
        """Atomic, replaces `target`. Durable after `fsync_directory`."""

    def unlink(self, path: Path) -> None: ...

    def fsync_directory(self, directory: Path) -> None:
        """Make creations, renames and removals in this directory durable."""

    def free_bytes(self, directory: Path) -> int: ...

    def lock(self, path: Path) -> int:
        """A handle that excludes every other process until it is closed or its process ends.
        Raises: Conflict if another process has it."""


class PosixDisk:
    """Linux files. File mode 0600, directories 0700; handles are not inherited by child processes."""

    def open(self, path: Path, *, create: bool = False) -> int:
        return os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), _MODE_FILE)

    def close(self, handle: int) -> None:
        os.close(handle)

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        data = os.pread(handle, size, offset)
        if len(data) == size or not data:
            return data
        parts = [data]
        got = len(data)
        while got < size and (more := os.pread(handle, size - got, offset + got)):
            parts.append(more)
            got += len(more)
        return b"".join(parts)

    def pwritev(self, handle: int, buffers: Sequence[Buffer], offset: int) -> None:
        left = sum(map(len, buffers))
        if len(buffers) <= _IOV_MAX:
            written = os.pwritev(handle, buffers, offset)
            if written == left:
                return
            offset += written
        else:
            written = 0
        rest = memoryview(b"".join(buffers))[written:]
        while rest:  # a short write (signal, nearly full disk): the next call finishes it or says why not
            written = os.pwrite(handle, rest, offset)
            if written == 0:
                raise OSError(errno.EIO, "the file accepts no more bytes")
            rest = rest[written:]
            offset += written

    def fdatasync(self, handle: int) -> None:
        os.fdatasync(handle)

    def size(self, handle: int) -> int:
        return os.fstat(handle).st_size

    def truncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def exists(self, path: Path) -> bool:
        return path.exists()

    def listdir(self, directory: Path) -> list[str]:
        return sorted(os.listdir(directory))

    def make_directory(self, directory: Path) -> None:
        directory.mkdir(mode=_MODE_DIRECTORY, parents=True, exist_ok=True)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def fsync_directory(self, directory: Path) -> None:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def free_bytes(self, directory: Path) -> int:
        stat = os.statvfs(directory)
        return stat.f_bavail * stat.f_frsize

    def lock(self, path: Path) -> int:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, _MODE_FILE)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise Conflict(f"{path.parent}: another process is using this data directory; stop it first") from None
        except OSError:
            os.close(handle)
            raise
        return handle


def storage_error(action: str, path: Path, error: OSError) -> StorageError:
    """`error` in words: what was tried, on which file, why it failed, what to do."""
    advice = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "; free some space on that file system and start the node again"
    elif error.errno == errno.EROFS:
        advice = "; the file system is read-only: see `dmesg`, repair it and start the node again"
    elif error.errno == errno.EIO:
        advice = "; the device reports errors: see `dmesg`, and replace it if they recur"
    elif error.errno in (errno.EACCES, errno.EPERM):
        advice = "; the data directory must belong to the user who runs the node"
    reason = error.strerror or str(error)
    return StorageError(f"{path}: could not {action}: {reason}{advice}")
