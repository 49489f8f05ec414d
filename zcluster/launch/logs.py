"""What the supervisor does for the logs of a cluster: it notes what happens to processes, and keeps every log bounded.

    logs/events.jsonl    what happens to processes, beside what they tell themselves; see `zcluster.events`

Not here: reading logs (`cli.log_view`). One thread.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from zcluster.events import encode, new_event
from zcluster.launch import files

LOOK_S: Final = 30
GROWTH_BYTES: Final = 1 << 20
"""A log that grew by more than this since the last look is looked at again after a second."""
_SECOND: Final = 1_000_000_000


class Logs:
    """The log directory of one cluster. `next_look`: monotonic ns of the next time that `bound` is due."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.next_look = 0
        # Open for good: when the directory is removed and another made in its place, nothing is written there.
        self._events = os.open(directory / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._sizes: dict[str, int] = {}

    def note(self, event: str, process: str | None = None, pid: int | None = None, **facts: Any) -> None:
        """One line. A full disk must not stop the supervisor."""
        about = {} if process is None else {"process": process, "pid": pid}
        node = process.partition(".")[0] if process not in (None, "router") else None
        with suppress(OSError):
            os.write(self._events, encode(new_event(event, node, about | facts)))

    def bound(self, now: int) -> None:
        """Cut what has grown too long, and decide when to look again."""
        busy = False
        for path in self.directory.glob("*.*"):
            if path.suffix not in (".log", ".jsonl"):
                continue
            with suppress(OSError):
                if files.rotate_log(path):
                    self.note(f"log {path.name} was full: the older half is gone")
                size_bytes = path.stat().st_size
                busy = busy or size_bytes - self._sizes.get(path.name, size_bytes) > GROWTH_BYTES
                self._sizes[path.name] = size_bytes
        self.next_look = now + (1 if busy else LOOK_S) * _SECOND

    def close(self) -> None:
        os.close(self._events)
