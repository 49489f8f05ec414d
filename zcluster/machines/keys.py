"""The keys of one dict in order, built when first asked for. Writers pay nothing for it, and deleters one append.

A Python dict keeps insertion order: every key inserted after the index was built stands behind all keys that the
index knows. So the index catches up by reading the dict's tail, without being told about insertions:

    dict        a  c  b | e  d          tail length = len(dict) - (indexed keys that are still in place)
    index       a  b  c

Only removals are reported (`removed`). A key that was removed and inserted again stands in the tail and is simply
found there. Large dicts are indexed in slices (`work`), so that no single question stalls the caller.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

BUCKET_KEYS_MAX: Final = 1024
BUILD_AT_ONCE_MAX: Final = 50_000
"""Up to this many keys are sorted on the spot (about 20 ms); more are indexed by `work`, a slice at a time."""
SLICE_KEYS: Final = 300
CATCH_UP_MAX: Final = 5_000


class KeyIndex:
    """Sorted buckets over the keys of `data`. Positions never show in results: equal dicts give equal answers."""

    def __init__(self, data: dict[str, Any], build_at_once_max: int = BUILD_AT_ONCE_MAX) -> None:
        self._data = data
        self._build_at_once_max = build_at_once_max
        self._wanted = False
        self._todo: list[str] = []
        self._buckets: list[list[str]] = []
        self._lasts: list[str] = []
        self._count = 0
        self._removed: list[str] = []

    def removed(self, key: str) -> None:
        """Tell that `key` has left the dict. An index that nobody asks for is dropped, not dragged along."""
        if self._wanted:
            self._removed.append(key)
            if len(self._removed) > CATCH_UP_MAX and not self._todo:
                self._wanted = False
                self._build([])

    def after(self, prefix: str, after: str | None, count: int) -> Iterator[str]:
        """At least the first `count` keys in order that start with `prefix` and are greater than `after`."""
        self._wanted = True
        if not self._todo:
            self._catch_up()
        if self._todo:
            return iter(first_keys(self._data, prefix, after, count))
        return self._walk(prefix, after)

    def work(self) -> bool:
        """Index one slice. True while there is more to do."""
        if self._todo:
            for key in self._todo[-SLICE_KEYS:]:
                self._add(key)
            del self._todo[-SLICE_KEYS:]
            if not self._todo:
                self._catch_up()
        return bool(self._todo)

    def _build(self, ordered: list[str]) -> None:
        half = BUCKET_KEYS_MAX // 2
        self._buckets = [ordered[i : i + half] for i in range(0, len(ordered), half)]
        self._lasts = [bucket[-1] for bucket in self._buckets]
        self._count = len(ordered)
        self._removed = []

    def _catch_up(self) -> None:
        """Take up what changed since; what is too much for now goes to `todo`."""
        for key in self._removed:
            self._discard(key)
        self._removed = []
        fresh = len(self._data) - self._count
        assert fresh >= 0, "a removal was not reported"
        if fresh <= CATCH_UP_MAX:
            for key in islice(reversed(self._data), fresh):
                self._add(key)
        elif len(self._data) <= self._build_at_once_max:
            self._build(sorted(self._data))
        else:
            self._todo = list(islice(reversed(self._data), fresh))

    def _add(self, key: str) -> None:
        self._count += 1
        if not self._buckets:
            self._buckets.append([key])
            self._lasts.append(key)
            return
        at = bisect_left(self._lasts, key)
        if at == len(self._lasts):
            at -= 1
            self._lasts[at] = key
        bucket = self._buckets[at]
        insort(bucket, key)
        if len(bucket) > BUCKET_KEYS_MAX:
            half = len(bucket) // 2
            self._buckets.insert(at, bucket[:half])
            self._lasts.insert(at, bucket[half - 1])
            del bucket[:half]

    def _discard(self, key: str) -> None:
        at = bisect_left(self._lasts, key)
        if at == len(self._lasts):
            return
        bucket = self._buckets[at]
        place = bisect_left(bucket, key)
        if bucket[place] != key:
            return
        self._count -= 1
        del bucket[place]
        if not bucket:
            del self._buckets[at], self._lasts[at]
        else:
            self._lasts[at] = bucket[-1]

    def _walk(self, prefix: str, after: str | None) -> Iterator[str]:
        exclusive = after is not None and after >= prefix
        start = after if exclusive and after is not None else prefix
        at = (bisect_right if exclusive else bisect_left)(self._lasts, start)
        for bucket in islice(self._buckets, at, None):
            place = (bisect_right if exclusive else bisect_left)(bucket, start)
            for key in islice(bucket, place, None):
                if not key.startswith(prefix):
                    return
                yield key


def first_keys(keys: Iterable[str], prefix: str, after: str | None, count: int) -> list[str]:
    """The `count` smallest keys with `prefix` that are greater than `after`, found by looking at every key.

    >>> first_keys({"b2": 0, "a": 0, "b1": 0}, "b", None, 5)
    ['b1', 'b2']
    """
    if after is None:
        found = (key for key in keys if key.startswith(prefix))
    else:
        found = (key for key in keys if key > after and key.startswith(prefix))
    return heapq.nsmallest(count, found)
