"""Somebody to run the event loop while its own thread is held up by the disk.

Handing every sync to another thread costs two thread switches a write, on each replica: a fifth of a write's latency.
So the loop's thread syncs by itself, and a second thread stands by: when the sync has taken longer than `STALL`, the
stand-in runs the loop's turns, so that heartbeats, votes and reads go on, until the disk has answered.

    loop thread    turn  turn  [sync ............................]  turn  turn
    stand-in       (asleep)           | STALL |  turn  turn  turn |  (asleep)

Only one of the two is ever inside a turn: the loop's thread is blocked in `cover` meanwhile, and the change-over goes
through a lock, which is the fence that ZeroMQ asks for when a socket changes threads. The stand-in looks every `TICK`
while there are syncs and sleeps when there are none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from zcluster.types import MS, Nanoseconds

TICK_S: Final = 0.010
STALL: Final[Nanoseconds] = 15 * MS
QUIET_TICKS: Final = 20  # without a sync: back to sleep


class StandIn:
    """
    Args:
        turn: one turn of the loop; may block until something happens or `wake` is called.
        wake: ends a `turn` that is blocking; callable from any thread.
    """

    def __init__(self, turn: Callable[[], None], wake: Callable[[], None]) -> None:
        self.covered = 0  # how often the disk was so slow
        self._turn = turn
        self._wake = wake
        self._lock = threading.Lock()
        self._since: Nanoseconds = 0
        self._count = 0
        self._asleep = True
        self._covering = False
        self._back = False
        self._failure: BaseException | None = None
        self._bell = threading.Event()
        self._returned = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="zcluster-stand-in", daemon=True)
        self._thread.start()

    def cover(self, action: Callable[[], None]) -> None:
        """Run `action` in this thread (the loop's); the loop goes on if that takes long. Raises what either raised."""
        with self._lock:
            self._since = time.monotonic_ns()
            self._count += 1
            rouse, self._asleep = self._asleep, False
        if rouse:
            self._bell.set()
        try:
            action()
        finally:
            with self._lock:
                self._since = 0
                covering = self._back = self._covering
            if covering:
                self._wake()
                self._returned.wait()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        self._closed.set()
        self._bell.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.is_set():
            self._bell.wait()
            self._bell.clear()
            self._watch()

    def _watch(self) -> None:
        """Look at every tick until there has been nothing to look at for a while."""
        quiet, seen = 0, -1
        while not self._closed.wait(TICK_S):
            with self._lock:
                # A loop that has failed is not run again: its state may be half changed.
                stalled = self._since != 0 and time.monotonic_ns() - self._since > STALL
                late = stalled and self._failure is None
                if late:
                    self._covering, self._back = True, False
                    self._returned.clear()
                elif self._count != seen or self._since:
                    quiet, seen = 0, self._count
                else:
                    quiet += 1
                    if quiet >= QUIET_TICKS:
                        self._asleep = True
                        return
            if late:
                self._stand_in()

    def _stand_in(self) -> None:
        self.covered += 1
        try:
            while True:
                with self._lock:
                    if self._back:
                        break
                self._turn()
        except BaseException as failure:  # for the loop's own thread, which is the one to end the process
            self._failure = failure
        finally:
            with self._lock:
                self._covering = False
            self._returned.set()
