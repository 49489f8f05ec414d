"""What is refused before anything is sent."""

from __future__ import annotations

import enum
from typing import Any

import pytest

from zcluster import wire
from zcluster.client.operations import (
    Bounded,
    Limits,
    bounded,
    consistency_code,
    list_page,
    take_page,
    text,
    timeout_ns,
)
from zcluster.client.pipeline import PIPELINE_BYTES_MAX, Pipeline, PipelineResult
from zcluster.config import make_settings
from zcluster.errors import InvalidInput, NoQuorum, TooLarge, WrongType

LIMITS = Limits(make_settings(key_bytes_max=16, value_bytes_max=1024))


class Name(str):
    __slots__ = ()


class Color(str, enum.Enum):  # noqa: UP042  (str() of it is not its value)
    RED = "red"


class Blob(bytes):
    __slots__ = ()


@pytest.mark.parametrize("key", [1, None, b"k", ["k"], 1.5])
def test_keys_are_str(key: Any) -> None:
    with pytest.raises(WrongType, match="a key must be str") as caught:
        LIMITS.get(key)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("value", [1, None, "v", bytearray(b"v"), memoryview(b"v")])
def test_values_are_bytes(value: Any) -> None:
    with pytest.raises(WrongType, match="must be bytes"):
        LIMITS.put("k", value)
    with pytest.raises(WrongType, match="must be bytes"):
        LIMITS.append("k", value)
    if value is not None:
        with pytest.raises(WrongType, match="expected value must be bytes"):
            LIMITS.cas("k", value, b"")
        with pytest.raises(WrongType, match="new value must be bytes"):
            LIMITS.cas("k", b"", value)


def test_subclasses_are_sent_as_plain_values() -> None:
    op, _ = LIMITS.put(Name("n"), Blob(b"b"))
    assert [type(part) for part in op] == [int, str, bytes]
    assert LIMITS.get(Color.RED)[0][1] == "red"
    assert type(LIMITS.get(Color.RED)[0][1]) is str


def test_sizes_are_checked_in_bytes() -> None:
    assert LIMITS.put("é" * 8, b"x" * 1024)
    for call in (
        lambda: LIMITS.get("é" * 9),
        lambda: LIMITS.delete("k" * 17),
        lambda: LIMITS.put("k", b"x" * 1025),
        lambda: LIMITS.cas("k", b"x" * 1025, None),
        lambda: LIMITS.cas("k", None, b"x" * 1025),
        lambda: LIMITS.append("k", b"x" * 1025),
    ):
        with pytest.raises(TooLarge, match="bytes_max is"):
            call()


def test_text_that_utf8_cannot_hold_is_refused() -> None:
    with pytest.raises(InvalidInput, match="surrogates"):
        LIMITS.put("\ud800", b"")
    with pytest.raises(InvalidInput, match="surrogates"):
        text("\ud800", "a prefix")


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), None, "5", True])
def test_time_is_a_number_above_zero(timeout: Any) -> None:
    with pytest.raises(InvalidInput, match="timeout"):
        timeout_ns(timeout)


def test_any_amount_of_time_will_do() -> None:
    assert timeout_ns(0.5) == 500_000_000
    assert timeout_ns(1e-12) == 1
    assert timeout_ns(float("inf")) < 1 << 62


def test_consistency() -> None:
    assert consistency_code("linearizable") == (wire.LINEARIZABLE, 0)
    assert consistency_code("lease") == (wire.LEASE, 0)
    assert consistency_code("eventual") == (wire.EVENTUAL, 0)
    assert consistency_code(bounded(ms=70)) == (wire.BOUNDED, 70)
    assert consistency_code(bounded()) == (wire.BOUNDED, 50)
    for wrong in ("strong", None, 3, Bounded):
        with pytest.raises(InvalidInput, match="consistency"):
            consistency_code(wrong)  # type: ignore[arg-type]
    for ms in (0, -1, 1.5, True, None, 1 << 40):
        with pytest.raises(InvalidInput, match="bounded"):
            bounded(ms)  # type: ignore[arg-type]


def test_pages() -> None:
    assert list_page("p", "a")[1:3] == ("p", "a")
    found: dict[str, bytes] = {}
    assert take_page(found, [["a", b"1", "b", b"2"], True]) == "b"
    assert take_page(found, [["c", b"3"], False]) is None
    assert take_page(found, [[], False]) is None
    assert found == {"a": b"1", "b": b"2", "c": b"3"}


# -- pipelines --------------------------------------------------------------------------------------------------------
class Sender:
    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.sent: list[Any] = []

    def __call__(self, ops: Any, size_bytes: int, timeout: float) -> Any:
        self.sent.append((ops, timeout))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_pipeline_sends_once_and_fills_its_results() -> None:
    sender = Sender([1, b"v", True, False, b"ab"], [5])
    pipeline = Pipeline(LIMITS, sender, 7)
    results: list[PipelineResult[Any]] = [
        pipeline.put("k", b"v"),
        pipeline.get("k"),
        pipeline.cas("k", b"v", None),
        pipeline.delete("k"),
        pipeline.append("k", b"ab"),
    ]
    assert len(pipeline) == 5
    assert not results[0].done
    with pytest.raises(InvalidInput, match="not executed"):
        results[0].result()
    assert pipeline.execute() == [1, b"v", True, False, b"ab"]
    assert [result.result() for result in results] == [1, b"v", True, False, b"ab"]
    pipeline.put("again", b"")
    assert pipeline.execute(timeout=3) == [5]
    assert [timeout for _, timeout in sender.sent] == [7, 3]
    assert pipeline.execute() == []


def test_an_error_stands_in_its_place_and_is_raised_at_the_end_of_with() -> None:
    error = TooLarge("too large")
    pipeline = Pipeline(LIMITS, Sender([1, error, 3]), 7)
    results = [pipeline.append(key, b"x") for key in "abc"]
    assert pipeline.execute() == [1, error, 3]
    with pytest.raises(TooLarge):
        results[1].result()
    with pytest.raises(TooLarge), Pipeline(LIMITS, Sender([1, error, 3]), 7) as pipeline:
        results = [pipeline.append(key, b"x") for key in "abc"]
    assert results[2].result() == 3


def test_a_failed_block_sends_nothing() -> None:
    sender = Sender()
    with pytest.raises(ZeroDivisionError), Pipeline(LIMITS, sender, 7) as pipeline:
        pipeline.put("k", b"")
        raise ZeroDivisionError
    assert sender.sent == []


def test_a_frame_that_fails_fails_its_results() -> None:
    pipeline = Pipeline(LIMITS, Sender(NoQuorum("none")), 7)
    result = pipeline.put("k", b"")
    with pytest.raises(NoQuorum):
        pipeline.execute()
    with pytest.raises(NoQuorum):
        result.result()


def test_pipelines_are_bounded() -> None:
    pipeline = Pipeline(Limits(make_settings(value_bytes_max=16 << 20)), Sender(), 7)
    pipeline.put("k", b"x" * (PIPELINE_BYTES_MAX - 1000))
    with pytest.raises(TooLarge, match="execute it"):
        pipeline.put("k", b"x" * 1000)
    pipeline = Pipeline(LIMITS, Sender(), 7)
    for _ in range(wire.OPS_MAX):
        pipeline.get("k")
    with pytest.raises(TooLarge, match="execute it"):
        pipeline.get("k")
