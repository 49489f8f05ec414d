"""Which worker gets the next task: four ways, one interface. Pure: randomness is handed in.

A policy knows the workers that may take a task now, each with its load (tasks it holds); the dispatcher adds, removes
and updates them. `pick` costs O(1) or O(log n).

With a bounded central queue that hands out late, the differences are small for equal tasks; for mixed ones the order
of tails is least_loaded, power_of_two, round_robin, random.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import random


class Policy(Protocol):
    """The workers that may take a task, and the choice among them."""

    def add(self, worker: int, load: int) -> None:
        """`worker` may take tasks. It must not be known."""

    def remove(self, worker: int) -> None:
        """`worker` takes no more; unknown ones are ignored."""

    def update(self, worker: int, load: int) -> None:
        """The load of a known worker."""

    def pick(self) -> int | None:
        """The worker for the next task, or None when there is none. Its load is not changed by this."""


class RoundRobin:
    """Each in turn; one that comes (back) goes to the end of the line."""

    def __init__(self, rng: random.Random) -> None:
        self._line: dict[int, None] = {}

    def add(self, worker: int, load: int) -> None:
        assert worker not in self._line
        self._line[worker] = None

    def remove(self, worker: int) -> None:
        self._line.pop(worker, None)

    def update(self, worker: int, load: int) -> None:
        assert worker in self._line

    def pick(self) -> int | None:
        if not self._line:
            return None
        worker = next(iter(self._line))
        del self._line[worker]
        self._line[worker] = None
        return worker


class Random:
    """Anyone, with equal chances. A swap with the last one keeps removal O(1)."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._workers: list[int] = []
        self._place: dict[int, int] = {}
        self._load: dict[int, int] = {}

    def add(self, worker: int, load: int) -> None:
        assert worker not in self._place
        self._place[worker] = len(self._workers)
        self._workers.append(worker)
        self._load[worker] = load

    def remove(self, worker: int) -> None:
        place = self._place.pop(worker, None)
        if place is None:
            return
        del self._load[worker]
        last = self._workers.pop()
        if last != worker:
            self._workers[place] = last
            self._place[last] = place

    def update(self, worker: int, load: int) -> None:
        assert worker in self._load
        self._load[worker] = load

    def pick(self) -> int | None:
        if not self._workers:
            return None
        return self._workers[int(self._rng.random() * len(self._workers))]


class PowerOfTwo(Random):
    """Two different ones at random, the less loaded of them."""

    def pick(self) -> int | None:
        count = len(self._workers)
        if count < 2:
            return self._workers[0] if count else None
        first = int(self._rng.random() * count)
        second = int(self._rng.random() * (count - 1))
        if second >= first:
            second += 1
        one, other = self._workers[first], self._workers[second]
        return one if self._load[one] <= self._load[other] else other


class LeastLoaded:
    """The one that holds the fewest tasks; among equals the one that was given work the longest ago.

    A heap of (load, turn, worker); entries that were overtaken by a later one are dropped when they come up.
    """

    def __init__(self, rng: random.Random) -> None:
        self._heap: list[tuple[int, int, int]] = []
        self._entry: dict[int, tuple[int, int, int]] = {}
        self._turn = 0

    def add(self, worker: int, load: int) -> None:
        assert worker not in self._entry
        self._push(worker, load)

    def remove(self, worker: int) -> None:
        self._entry.pop(worker, None)

    def update(self, worker: int, load: int) -> None:
        assert worker in self._entry
        if self._entry[worker][0] != load:
            self._push(worker, load)

    def _push(self, worker: int, load: int) -> None:
        self._turn += 1
        entry = (load, self._turn, worker)
        self._entry[worker] = entry
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 64 + 4 * len(self._entry):
            self._heap = list(self._entry.values())
            heapq.heapify(self._heap)

    def pick(self) -> int | None:
        while self._heap:
            entry = self._heap[0]
            if self._entry.get(entry[2]) is entry:
                return entry[2]
            heapq.heappop(self._heap)
        return None


POLICIES: dict[str, Callable[[random.Random], Policy]] = {
    "round_robin": RoundRobin,
    "random": Random,
    "least_loaded": LeastLoaded,
    "power_of_two": PowerOfTwo,
}


def make_policy(name: str, rng: random.Random) -> Policy:
    """The policy of a name in `config.BALANCERS`."""
    return POLICIES[name](rng)
