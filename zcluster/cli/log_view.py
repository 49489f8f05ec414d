"""The ends of many log files as one, in order of time; then what is added to them, as it comes.

Lines that start with a time (`2026-01-31T12:00:00.123`) are ordered by it; a line without one belongs to the one above
it, as in a traceback; in a log without any it belongs to the file's last change. Files are read from their ends, so
that a log of any size costs what is shown. Following notices that a file was emptied (the launcher rotates by copying
and emptying), replaced, or made anew.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

POLL_S: Final = 0.2
CHUNK_BYTES: Final = 64 << 10
LINE_BYTES_MAX: Final = 1 << 20
_TIME = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?")


class Line(NamedTuple):
    process: str
    text: str


def tail(path: Path, count: int) -> list[bytes]:
    """The last `count` lines of a file without their ends; none if it cannot be read."""
    if count <= 0:
        return []
    try:
        with open(path, "rb") as file:
            position = file.seek(0, os.SEEK_END)
            data = b""
            while position > 0 and data.count(b"\n") <= count and len(data) < count * LINE_BYTES_MAX:
                step = min(CHUNK_BYTES, position)
                position -= step
                file.seek(position)
                data = file.read(step) + data
    except OSError:
        return []
    return data.splitlines()[-count:]


def recent(files: Mapping[str, Path], count: int) -> list[Line]:
    """The last `count` lines of all files together; a rotated file's predecessor (`.1`) fills up what is missing."""
    stamped: list[tuple[bytes, int, Line]] = []
    for process, path in files.items():
        lines = tail(path, count)
        if len(lines) < count:
            lines = tail(path.with_name(path.name + ".1"), count - len(lines)) + lines
        times = [found[0] if (found := _TIME.match(line)) else None for line in lines]
        # Lines before the first time belong to a line that was cut off above, so they are older than all that follow.
        stamp = b"" if any(times) else _last_written(path)
        for line, found_time in zip(lines, times, strict=True):
            stamp = found_time or stamp
            stamped.append((stamp, len(stamped), Line(process, line.decode(errors="replace"))))
    stamped.sort(key=lambda entry: entry[:2])
    return [line for _, _, line in stamped][-count:] if count > 0 else []


def _last_written(path: Path) -> bytes:
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(path.stat().st_mtime)).encode()
    except OSError:
        return b""


class Follower:
    """What is added to files from now on.

    Args:
        files: process -> path; they need not exist yet.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)
        self._positions: dict[str, tuple[int, int]] = {}  # process -> (inode, offset of the first byte not yet shown)
        for process, path in self._files.items():
            try:
                found = path.stat()
                self._positions[process] = (found.st_ino, found.st_size)
            except OSError:
                self._positions[process] = (0, 0)

    def poll(self) -> list[Line]:
        """Complete lines that were added since the last call."""
        added: list[Line] = []
        for process, path in self._files.items():
            try:
                with open(path, "rb") as file:
                    found = os.fstat(file.fileno())
                    inode, offset = self._positions[process]
                    if found.st_ino != inode or found.st_size < offset:
                        offset = 0
                    file.seek(offset)
                    data = file.read(LINE_BYTES_MAX)
                    complete = data.rfind(b"\n") + 1 or (len(data) if len(data) == LINE_BYTES_MAX else 0)
                    self._positions[process] = (found.st_ino, offset + complete)
                    added += [Line(process, t.decode(errors="replace")) for t in data[:complete].splitlines()]
            except OSError:
                continue
        return added

    def lines(self, pause_s: float = POLL_S) -> Iterator[list[Line]]:
        """Batches for ever, an empty one whenever nothing was added: the caller decides when to end."""
        while True:
            added = self.poll()
            yield added
            if not added:
                time.sleep(pause_s)
