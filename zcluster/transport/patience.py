"""Looking for a moment before sleeping, where sleeping costs more than what is waited for.

A processor with nothing to do goes to sleep, and to wake it takes longer than a short task. So a loop that is a link
in a quick chain (one caller, one short task after the other) asks again and again for up to LOOK_NS before it sleeps
for real. Between two questions it offers its processor to whoever needs it. Whether that pays is learned: success
earns luck, looking in vain spends it twice as fast, and only waits that ended soon earn it back. So a loop whose
waits are long, or that is idle, never looks.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import select

    from zcluster.types import Nanoseconds

LOOK_NS: Final = 400_000
SOON_NS: Final = 500_000
LUCK_MAX: Final = 8


class Patience:
    """The memory of one loop. On a machine with a single processor there is nobody to look for."""

    def __init__(self) -> None:
        self._luck = 0
        self._alone = len(os.sched_getaffinity(0)) < 2

    def poll(self, epoll: select.epoll, wait_ns: Nanoseconds, began: Nanoseconds) -> list[tuple[int, int]]:
        """Like `epoll.poll`, for at most `wait_ns` from `began`, which is now."""
        if self._alone:
            return epoll.poll(wait_ns / 1e9)
        poll, now_ns = epoll.poll, time.monotonic_ns
        if self._luck > 0:
            rest, until = os.sched_yield, began + min(wait_ns, LOOK_NS)
            while now_ns() < until:
                ready = poll(0)
                if ready:
                    self._luck = min(LUCK_MAX, self._luck + 1)
                    return ready
                rest()
            self._luck -= 2
        ready = poll(wait_ns / 1e9)
        if now_ns() - began < SOON_NS:
            self._luck = min(LUCK_MAX, self._luck + 1)
        return ready
