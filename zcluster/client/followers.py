"""Those who wait beside the thread that drives a channel: asleep until they are done, or called on to drive.

    join -> [ first come, first called on ] -> release_done: their `done()` holds
                                            -> promote_next: the driver has left, the next one takes over
                                            -> release_all: the channel is closed

All but `Follower.sleep` is called with the channel's lock held. `done` of one waiter may be asked by any thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from zcluster.types import NEVER, Nanoseconds


class Follower:
    """One waiter. `promoted`: it was woken in order to drive."""

    __slots__ = ("_token", "done", "promoted", "thread")

    def __init__(self, thread: int, done: Callable[[], bool]) -> None:
        self.thread = thread
        self.done = done
        self.promoted = False
        self._token = threading.Lock()
        self._token.acquire()

    def wake(self) -> None:
        self._token.release()

    def sleep(self, give_up: Nanoseconds) -> None:
        """Until `wake`, or until the moment `give_up` (monotonic)."""
        timeout_s = -1.0 if give_up >= NEVER else max(0.0, (give_up - time.monotonic_ns()) / 1e9)
        self._token.acquire(timeout=timeout_s)


class Followers:
    """In the order in which they came."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[Follower] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def join(self, thread: int, done: Callable[[], bool]) -> Follower:
        follower = Follower(thread, done)
        self._waiting.append(follower)
        return follower

    def leave(self, follower: Follower) -> None:
        """Nothing happens if it was released."""
        if follower in self._waiting:
            self._waiting.remove(follower)

    def release_done(self) -> None:
        waiting: deque[Follower] = deque()
        for follower in self._waiting:
            if follower.done():
                follower.wake()
            else:
                waiting.append(follower)
        self._waiting = waiting

    def promote_next(self) -> Follower | None:
        """Wake the first one that is not done, to drive; and, before it, those that are."""
        while self._waiting:
            follower = self._waiting.popleft()
            follower.promoted = not follower.done()
            follower.wake()
            if follower.promoted:
                return follower
        return None

    def release_all(self) -> None:
        for follower in self._waiting:
            follower.wake()
        self._waiting.clear()
