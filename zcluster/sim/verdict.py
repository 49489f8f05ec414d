"""The verdict on a whole history, key by key.

What does not live here: the search for an order (`linearize`), and the part of a wrong history that is shown
(`window`).
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Literal

from zcluster.sim.history import Operation, by_key
from zcluster.sim.linearize import Found, OutOfTime, Search
from zcluster.sim.window import Part, Window, any_order, find_window, returned, since, until

Result = Literal["linearizable", "not_linearizable", "undecided"]
SHRINK_S_MAX: Final = 20.0
WHOLE_PATIENCE: Final = 5_000
PART_PATIENCE: Final = 2_000
"""Moves tried without getting further: in a key as a whole before parts of it are searched (twice as many
each time), and in a part."""
THRIFTS: Final = (10, 30, 3, 100)
"""See `linearize`; which one gets through depends on the history."""
NEIGHBOURS: Final = 60
"""Operations in a part."""
PARTS: Final = 16
"""Parts that are searched before the whole is again."""


@dataclass(frozen=True)
class Verdict:
    """On a history. Keys are in the order of their first operation."""

    result: Result
    operations: int
    clients: int
    keys: int
    seconds: float
    failed_keys: list[str] = field(default_factory=list)
    undecided_keys: list[str] = field(default_factory=list)
    window: Window | None = None


def check_history(operations: Sequence[Operation], timeout_s: float = 60.0, *, explain: bool = True) -> Verdict:
    """Decide within `timeout_s`, as far as that suffices.

    Args:
        explain: also find the window of a wrong history, which may take as long again, at most SHRINK_S_MAX.
    """
    began = time.monotonic()
    deadline = began + timeout_s
    groups = dict(by_key(operations))
    failed: dict[str, Found] = {}
    undecided: set[str] = set()
    for key, group in sorted(groups.items(), key=lambda item: len(item[1])):  # a large one shall not starve small ones
        try:
            found = _decide(group, deadline)
        except OutOfTime:
            undecided.add(key)
            continue
        if not found.linearizable:
            failed[key] = found
    window = None
    if failed and explain:
        key = min(failed, key=lambda k: returned(failed[k].stuck))
        window = find_window(groups[key], failed[key], time.monotonic() + min(max(timeout_s, 1.0), SHRINK_S_MAX))
    return Verdict(
        "not_linearizable" if failed else "undecided" if undecided else "linearizable",
        len(operations),
        len({operation.client for operation in operations}),
        len(groups),
        time.monotonic() - began,
        [key for key in groups if key in failed],
        [key for key in groups if key in undecided],
        window,
    )


def _decide(operations: Sequence[Operation], deadline: float) -> Found:
    """Search the whole; if that takes long, look for a contradiction among neighbours, and so on. Raises: OutOfTime.

    In a wrong history the search must try all that might have been done from the beginning on, while a few operations
    suffice to show what is wrong, mostly near the furthest point that it came to.
    """
    search = Search(operations, deadline)
    parts: Iterator[Part] | None = None
    for turn in count():
        patience = WHOLE_PATIENCE * 2**turn
        try:
            return search.run(thrift=THRIFTS[turn % len(THRIFTS)], patience=patience)
        except OutOfTime as stopped:
            if time.monotonic() > deadline:
                raise
            parts = parts or _parts(operations, stopped.near)
        for _, part in zip(range(PARTS), parts, strict=False):
            try:
                found = any_order(part, False, deadline, patience=PART_PATIENCE)
            except OutOfTime:
                continue
            if not found.linearizable:
                return found
    raise AssertionError("unreachable")


def _parts(operations: Sequence[Operation], near: Sequence[Operation]) -> Iterator[Part]:
    """Parts of a history, each half of the one before and half new, the nearest to some operations first."""
    alive = sorted((o for o in operations if o.status != "fail"), key=lambda o: o.call)
    certain = [o for o in alive if o.status == "ok"]
    calls = [o.call for o in certain]
    middles = [bisect_left(calls, o.call) for o in near]
    begins = range(0, len(certain), NEIGHBOURS // 2)
    for first in sorted(begins, key=lambda i: min(abs(i + NEIGHBOURS // 2 - middle) for middle in middles)):
        end = returned(max(certain[first : first + NEIGHBOURS], key=returned))
        yield since(until(alive, end), certain[first].call)
