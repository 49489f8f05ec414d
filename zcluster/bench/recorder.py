"""Latencies in, percentiles out, in bounded memory.

Recording is one `append` to an array of integers: at 80,000 operations a second anything more would be a visible part
of the load. Up to `EXACT_MAX` samples (32 MB) every percentile is exact. Beyond that the samples are folded into a
histogram of buckets whose width is 1/128 of their value, so a percentile is then right within 0.8%.

    value < 256           a bucket of its own
    otherwise             the top 8 bits of the value and how far they were shifted

Not thread-safe: one recorder a thread, `merge` afterwards.
"""

from __future__ import annotations

import math
from array import array
from typing import Final

import msgspec

EXACT_MAX: Final = 4_000_000
SLICE: Final = 8192
_BITS: Final = 7
_LINEAR: Final = 1 << (_BITS + 1)
_PER_OCTAVE: Final = 1 << _BITS
_BUCKETS: Final = _LINEAR + (63 - _BITS) * _PER_OCTAVE


class Summary(msgspec.Struct, frozen=True):
    """Percentiles of one recorder, in microseconds; all zero where nothing was recorded."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    p999: float = 0.0
    max: float = 0.0


def bucket_of(value: int) -> int:
    """Index of the bucket that holds `value` (0 <= value < 2**63)."""
    if value < _LINEAR:
        return value
    shift = value.bit_length() - (_BITS + 1)
    return shift * _PER_OCTAVE + (value >> shift)


def bucket_top(index: int) -> int:
    """The largest value that bucket `index` holds."""
    if index < _LINEAR:
        return index
    shift = index // _PER_OCTAVE - 1
    return ((index - shift * _PER_OCTAVE + 1) << shift) - 1


class Recorder:
    """Nanoseconds recorded one by one. `add` is the bound `append` of the array: look it up once, outside the loop."""

    __slots__ = ("_buckets", "_exact_max", "_folded", "_max", "_sum", "add", "samples")

    def __init__(self, exact_max: int = EXACT_MAX) -> None:
        self._exact_max = exact_max
        self.samples = array("q")
        self.add = self.samples.append
        self._buckets: array[int] | None = None
        self._folded = 0
        self._sum = 0
        self._max = 0

    def __len__(self) -> int:
        return self._folded + len(self.samples)

    def bound(self, count_max: int = SLICE) -> None:
        """Fold what is too much to keep, at most `count_max` samples: so that a load never waits long for it.

        Call it some twenty times a second.
        """
        excess = len(self.samples) - self._exact_max
        if excess > 0:
            self._fold(min(excess, count_max))

    def _fold(self, count: int) -> None:
        """Move the last `count` samples into the buckets."""
        if self._buckets is None:
            self._buckets = array("q", bytes(8 * _BUCKETS))
        if not count:
            return
        buckets = self._buckets
        folding = self.samples[-count:]
        del self.samples[-count:]  # in place: `add` stays bound to it
        for value in folding:
            buckets[bucket_of(max(value, 0))] += 1
        self._folded += count
        self._sum += sum(folding)
        self._max = max(self._max, *folding)

    def merge(self, other: Recorder) -> None:
        """Take over what `other` recorded; `other` is unchanged."""
        self.samples.extend(other.samples)
        if other._buckets is not None:
            self._fold(len(self.samples))
            assert self._buckets is not None
            for index, count in enumerate(other._buckets):
                if count:
                    self._buckets[index] += count
            self._folded += other._folded
            self._sum += other._sum
            self._max = max(self._max, other._max)
        self.bound(len(self.samples))

    def percentiles_ns(self, shares: tuple[float, ...]) -> list[int]:
        """The nearest-rank percentile for each share (0 < share <= 1), ascending shares; 0 where nothing was recorded.

        >>> recorder = Recorder()
        >>> for value in range(1, 101):
        ...     recorder.add(value)
        >>> recorder.percentiles_ns((0.5, 0.99, 1.0))
        [50, 99, 100]
        """
        assert all(0 < share <= 1 for share in shares) and list(shares) == sorted(shares)
        if not len(self):
            return [0] * len(shares)
        ranks = [max(1, math.ceil(share * len(self) - 1e-9)) for share in shares]
        if self._buckets is None:
            ordered = sorted(self.samples)
            return [ordered[rank - 1] for rank in ranks]
        self._fold(len(self.samples))
        return self._from_buckets(ranks)

    def _from_buckets(self, ranks: list[int]) -> list[int]:
        assert self._buckets is not None
        found: list[int] = []
        seen = 0
        for index, count in enumerate(self._buckets):
            seen += count
            while len(found) < len(ranks) and ranks[len(found)] <= seen:
                found.append(min(bucket_top(index), self._max))
            if len(found) == len(ranks):
                break
        return found

    def summary(self) -> Summary:
        count = len(self)
        if not count:
            return Summary()
        p50, p90, p99, p999, largest = (ns / 1000 for ns in self.percentiles_ns((0.5, 0.9, 0.99, 0.999, 1.0)))
        mean = (self._sum + sum(self.samples)) / count / 1000
        return Summary(count, mean, p50, p90, p99, p999, largest)
