"""Percentiles: exact while samples are kept, within a bucket's width once they are folded."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcluster.bench.recorder import Recorder, Summary, bucket_of, bucket_top

SHARES = (0.5, 0.9, 0.99, 0.999, 1.0)


def nearest_rank(values: list[int], share: float) -> int:
    return sorted(values)[max(1, math.ceil(share * len(values) - 1e-9)) - 1]


def filled(values: list[int], exact_max: int) -> Recorder:
    recorder = Recorder(exact_max)
    for value in values:
        recorder.add(value)
        recorder.bound()
    return recorder


@given(st.lists(st.integers(0, 10**11), min_size=1, max_size=300))
def test_percentiles_are_exact_while_samples_are_kept(values: list[int]) -> None:
    assert filled(values, 1000).percentiles_ns(SHARES) == [nearest_rank(values, share) for share in SHARES]


@given(st.lists(st.integers(0, 2**62), min_size=20, max_size=300))
def test_folded_percentiles_are_within_a_bucket(values: list[int]) -> None:
    recorder = filled(values, 8)
    assert len(recorder) == len(values)
    for found, share in zip(recorder.percentiles_ns(SHARES), SHARES, strict=True):
        exact = nearest_rank(values, share)
        assert exact <= found <= exact * (1 + 1 / 128) + 1
    assert recorder.percentiles_ns((1.0,)) == [max(values)]


@given(st.integers(0, 2**63 - 1))
def test_a_bucket_holds_its_value_and_is_narrow(value: int) -> None:
    index = bucket_of(value)
    top = bucket_top(index)
    assert value <= top <= value * (1 + 1 / 128)
    assert bucket_of(top) == index
    if top < 2**63 - 1:
        assert bucket_of(top + 1) == index + 1


def test_memory_stays_bounded() -> None:
    recorder = filled(list(range(10_000)), 100)
    assert len(recorder.samples) <= 100
    assert len(recorder) == 10_000


@pytest.mark.parametrize("folded", ["neither", "self", "other", "both"])
def test_merge_is_the_sum_of_both(folded: str) -> None:
    generator = random.Random(5)
    first = [generator.randrange(10**7) for _ in range(500)]
    second = [generator.randrange(10**9) for _ in range(700)]
    one = filled(first, 10 if folded in ("self", "both") else 10_000)
    other = filled(second, 10 if folded in ("other", "both") else 10_000)
    one.merge(other)
    assert len(one) == 1200
    assert len(other) == 700
    for found, share in zip(one.percentiles_ns(SHARES), SHARES, strict=True):
        exact = nearest_rank(first + second, share)
        assert exact <= found <= exact * (1 + 1 / 128) + 1
    summary = one.summary()
    assert summary.max == max(first + second) / 1000
    assert summary.mean == pytest.approx(sum(first + second) / 1200 / 1000)


def test_add_stays_valid_after_folding() -> None:
    recorder = Recorder(2)
    add = recorder.add
    for value in (1, 2, 3):
        add(value)
    recorder.bound()
    add(4)
    assert len(recorder) == 4
    assert list(recorder.samples) == [1, 2, 4]


def test_bound_folds_in_slices() -> None:
    recorder = Recorder(10)
    for value in range(100):
        recorder.add(value)
    recorder.bound(count_max=60)
    assert len(recorder.samples) == 40
    recorder.bound(count_max=60)
    assert len(recorder.samples) == 10
    assert len(recorder) == 100


def test_an_empty_recorder_summarises_to_zero() -> None:
    assert Recorder().summary() == Summary()
    assert Recorder().percentiles_ns(SHARES) == [0] * 5


def test_summary_is_in_microseconds() -> None:
    summary = filled([1_000, 2_000, 3_000], 10).summary()
    assert summary == Summary(count=3, mean=2.0, p50=2.0, p90=3.0, p99=3.0, p999=3.0, max=3.0)
