"""Time, chance and memory of one simulated world: the event heap, seeded generators, the trace.

Everything that happens is an *action* at a moment of one virtual clock; equal moments keep the order in which they
were asked for. A world owns no randomness but generators derived from its seed by name, so that one more draw in one
part changes nothing in another. Every event goes into the trace's hash; two runs are the same run if and only if the
hashes are equal. Nothing here may depend on `hash()`, `id()` or the order of a set.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import Any, Final

from zcluster.types import MS, Nanoseconds

START: Final[Nanoseconds] = 10_000 * MS
RECENT_EVENTS: Final = 60
_BUFFER_BYTES: Final = 1 << 16
_HEAD: Final = Struct("<QHHI")

Action = Callable[..., None]


class Violation(AssertionError):
    """A property does not hold. `name`: which one; `detail`: how it was seen."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name
        self.detail = detail


class Trace:
    """Hash of everything that happened, and the last few events in words."""

    def __init__(self, keep: int = RECENT_EVENTS) -> None:
        self.events = 0
        self.recent: deque[tuple[Nanoseconds, int, str, bytes]] = deque(maxlen=keep)
        self._digest = hashlib.blake2b(digest_size=16)
        self._buffer = bytearray()

    def add(self, now: Nanoseconds, where: int, what: str, body: bytes = b"") -> None:
        """One event: an input delivered to the replica (or client) `where`, or a fault."""
        self.events += 1
        buffer = self._buffer
        buffer += _HEAD.pack(now, where, len(what), len(body))
        buffer += what.encode()
        buffer += body
        if len(buffer) >= _BUFFER_BYTES:
            self._digest.update(buffer)
            buffer.clear()
        self.recent.append((now, where, what, body))

    def hash(self) -> str:
        digest = self._digest.copy()
        digest.update(self._buffer)
        return digest.hexdigest()


class World:
    """The clock and the heap of actions."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now: Nanoseconds = START
        self.trace = Trace()
        self._order = 0
        self._heap: list[tuple[Nanoseconds, int, Action, tuple[Any, ...]]] = []

    def random(self, name: str) -> random.Random:
        """A generator of its own for `name`."""
        return random.Random(f"{self.seed}/{name}")

    def at(self, time: Nanoseconds, action: Action, *arguments: Any) -> None:
        """Run `action(*arguments)` at `time`, or now if that is past."""
        self._order += 1
        heapq.heappush(self._heap, (time, self._order, action, arguments))

    def after(self, span: Nanoseconds, action: Action, *arguments: Any) -> None:
        self._order += 1
        heapq.heappush(self._heap, (self.now + span, self._order, action, arguments))

    def run_until(self, end: Nanoseconds, done: Callable[[], bool] | None = None) -> bool:
        """Let time pass up to `end`, or until `done` says so after an action. Returns whether it did."""
        heap = self._heap
        pop = heapq.heappop
        while heap and heap[0][0] <= end:
            time, _, action, arguments = pop(heap)
            self.now = max(self.now, time)
            action(*arguments)
            if done is not None and done():
                return True
        self.now = max(self.now, end)
        return False
