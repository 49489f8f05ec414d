"""The word in shared memory by which a worker says what it is running, readable after its death.

    run/<worker>.task, 64 bytes, little endian
    0        4        8         16        24        32        40
    | "zctw" | spared | pid     | ticks   | client  | number  | zeros

client = number = 0: nothing is running. A new run of a worker makes a new file (a new inode), so a reader that mapped
the old one still sees the last word of the dead. `spared` says that somebody meant to kill this run: no task is
charged. The file lies in the cluster's run directory, in the page cache: no disk is touched before a task.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from struct import Struct
from typing import Final

from zcluster.tasks.protocol import TaskId
from zcluster.transport.liveness import start_ticks

SIZE_BYTES: Final = 64
SUFFIX: Final = ".task"
_MAGIC: Final = b"zctw"
_HEAD: Final = Struct("<4sIQQ")
_SPARED: Final = Struct("<I")
_TASK: Final = Struct("<QQ")
_TASK_AT: Final = _HEAD.size
_NOTHING: Final = _TASK.pack(0, 0)


def word_path(run_directory: Path, worker: str) -> Path:
    return run_directory / f"{worker}{SUFFIX}"


class Word:
    """The worker's side. Raises: OSError (no room)."""

    def __init__(self, run_directory: Path, worker: str) -> None:
        path = word_path(run_directory, worker)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(temporary, "w+b") as file:
                ticks = start_ticks(os.getpid()) or 0
                file.write(_HEAD.pack(_MAGIC, 0, os.getpid(), ticks).ljust(SIZE_BYTES, b"\0"))
                file.flush()  # a full disk says so here; without room the mapping would end the process later
                self._map = mmap.mmap(file.fileno(), SIZE_BYTES)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        self._pack = _TASK.pack_into

    def set(self, client: int, number: int) -> None:
        self._pack(self._map, _TASK_AT, client, number)

    def clear(self) -> None:
        self._pack(self._map, _TASK_AT, 0, 0)


class WordReader:
    """The router's side: one run of one worker. Raises: OSError, ValueError (not such a file)."""

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), SIZE_BYTES, access=mmap.ACCESS_READ)
        magic, _, self.pid, self.ticks = _HEAD.unpack_from(self._map)
        if magic != _MAGIC:
            raise ValueError(f"{path} is not a worker's word")

    def running(self) -> TaskId | None:
        client, number = _TASK.unpack_from(self._map, _TASK_AT)
        return (client, number) if client else None

    def spared(self) -> bool:
        return bool(_SPARED.unpack_from(self._map, len(_MAGIC))[0])

    def close(self) -> None:
        self._map.close()


def spare(run_directory: Path, worker: str, pid: int) -> bool:
    """Note that run `pid` of a worker is killed on purpose, so that the task it runs is not charged for it.

    Best before the signal; up to 20 ms later is early enough. Returns: False when that run has no word.
    """
    try:
        descriptor = os.open(word_path(run_directory, worker), os.O_RDWR)
    except OSError:
        return False
    try:
        head = os.pread(descriptor, _HEAD.size, 0)
        if len(head) < _HEAD.size or _HEAD.unpack(head)[2] != pid:
            return False
        os.pwrite(descriptor, _SPARED.pack(1), len(_MAGIC))
        return True
    finally:
        os.close(descriptor)
