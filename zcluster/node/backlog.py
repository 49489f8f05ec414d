"""Client frames that wait for a place in the log. Pure; bounded; in order of arrival, their bytes untouched."""

from __future__ import annotations

from typing import Final

ENTRY_BYTES_SOFT_MAX: Final = 1 << 20  # an entry is closed when its frames exceed this; one frame may be larger
BYTES_MAX: Final = 64 << 20
FRAMES_MAX: Final = 100_000

Waiting = list[tuple[bytes, int]]
"""(client, request) of each frame."""


class Backlog:
    """Two lists side by side: frames, and who waits for their results."""

    __slots__ = ("_bytes", "_frames", "_waiting")

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self._waiting: Waiting = []
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._frames)

    @property
    def full(self) -> bool:
        return len(self._frames) >= FRAMES_MAX or self._bytes > BYTES_MAX

    def add(self, client: bytes, request: int, frame: bytes) -> None:
        self._frames.append(frame)
        self._waiting.append((client, request))
        self._bytes += len(frame)

    def take(self) -> tuple[list[bytes], Waiting]:
        """The frames of the next entry: all, up to the soft size of an entry but at least one."""
        if self._bytes <= ENTRY_BYTES_SOFT_MAX:
            return self._take_all()
        size, count = 0, 0
        for frame in self._frames:
            if count and size + len(frame) > ENTRY_BYTES_SOFT_MAX:
                break
            size += len(frame)
            count += 1
        frames, waiting = self._frames[:count], self._waiting[:count]
        self._frames, self._waiting = self._frames[count:], self._waiting[count:]
        self._bytes -= size
        return frames, waiting

    def clear(self) -> Waiting:
        """Forget everything; those who waited."""
        return self._take_all()[1]

    def _take_all(self) -> tuple[list[bytes], Waiting]:
        frames, waiting = self._frames, self._waiting
        self._frames, self._waiting, self._bytes = [], [], 0
        return frames, waiting
