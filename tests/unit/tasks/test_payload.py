"""Functions, arguments, results and failures as bytes."""

from __future__ import annotations

import functools
import operator
import pickle
import sys
import types
from typing import Any

import pytest

from zcluster.errors import Unpicklable
from zcluster.tasks import payload
from zcluster.tasks.execute import run
from zcluster.tasks.payload import FUNCTIONS_MAX, Functions, RemoteTraceback, dump, dump_arguments, load
from zcluster.tasks.protocol import (
    CHUNK,
    DONE,
    INLINE_BYTES_MAX,
    KEYWORDS,
    RAISED,
    RETURNED,
    SUBMIT,
    pack,
    split_segments,
    unpack,
)


def main_function(source: str, name: str, **namespace: Any) -> Any:
    """A function as if it had been written in the user's script."""
    module_globals = {"__name__": "__main__", "__builtins__": __builtins__, **namespace}
    exec(source, module_globals)
    return module_globals[name]


def outcome(function: Any, *args: Any, flags: int = 0) -> tuple[int, Any]:
    data, segments = dump_arguments(function, args, {})
    status, result, parts = run(lambda: function, data, segments, flags)
    return status, load(result, parts) if status == RETURNED else payload.load_exception(result)


def test_importable_functions_travel_by_name() -> None:
    blob, by_value = payload.dump_function(operator.add)
    assert not by_value
    assert len(blob) < 60
    assert pickle.loads(blob) is operator.add


def test_lambdas_and_script_functions_travel_by_value() -> None:
    offset = 3
    for function in (lambda x: x + offset, main_function("def f(x): return x + 3", "f")):
        blob, by_value = payload.dump_function(function)
        assert by_value
        assert pickle.loads(blob)(4) == 7


def test_a_function_is_serialized_once() -> None:
    functions = Functions()
    by_value = main_function("N = 5\ndef g(): return N\ndef f(): return g()", "f")
    for function in (operator.add, by_value, len, int):
        assert functions.get(function) is functions.get(function)


def test_a_changed_global_is_seen() -> None:
    functions = Functions()
    function = main_function("N = 5\ndef g(): return N\ndef f(): return g()", "f")
    before = functions.get(function)
    function.__globals__["N"] = 6
    after = functions.get(function)
    assert pickle.loads(before.blob)() == 5
    assert pickle.loads(after.blob)() == 6
    assert before.digest != after.digest


def test_a_changed_closure_is_seen() -> None:
    functions = Functions()
    count = 0

    def read() -> int:
        return count

    assert pickle.loads(functions.get(read).blob)() == 0
    count = 1
    assert pickle.loads(functions.get(read).blob)() == 1


def test_what_can_change_in_place_is_serialized_anew() -> None:
    functions = Functions()
    function = main_function("L = [1]\ndef f(): return list(L)", "f")
    assert pickle.loads(functions.get(function).blob)() == [1]
    function.__globals__["L"].append(2)
    assert pickle.loads(functions.get(function).blob)() == [1, 2]
    bound = [1].count
    partial = functools.partial(operator.add, 1)
    assert functions.get(bound) is not functions.get(bound)
    assert not functions.get(bound).keep
    assert functions.get(len).keep
    assert functions.get(partial).digest == functions.get(partial).digest


def test_known_functions_are_bounded() -> None:
    functions = Functions()
    for i in range(FUNCTIONS_MAX + 50):
        functions.get(main_function(f"def f(): return {i}", "f"))
    assert len(functions._known) == FUNCTIONS_MAX


def test_functions_carry_where_they_come_from() -> None:
    wire = Functions().get(operator.add)
    assert wire.cwd
    assert all(entry.startswith("/") for entry in wire.path)
    assert set(wire.path) >= {entry for entry in sys.path if entry}


def test_small_values_stay_inline_and_large_ones_become_segments() -> None:
    assert dump((1, "x"))[1] is None
    data, segments = dump(b"x" * INLINE_BYTES_MAX)
    assert data == b""
    assert segments is not None
    assert len(segments) == 1
    assert load(data, segments) == b"x" * INLINE_BYTES_MAX


def test_large_buffers_travel_beside_the_pickle_and_arrive_writable() -> None:
    big = pickle.PickleBuffer(bytearray(b"a" * INLINE_BYTES_MAX))
    small = pickle.PickleBuffer(bytearray(b"b" * 10))
    data, segments = dump([big, small])
    assert data == b""
    assert segments is not None
    assert [len(part) for part in segments[1:]] == [INLINE_BYTES_MAX]
    found = load(data, segments)
    assert bytes(found[1]) == b"b" * 10
    found[0][0] = ord("c")
    assert bytes(found[0][:2]) == b"ca"


def test_an_unpicklable_argument_is_named() -> None:
    with pytest.raises(Unpicklable, match=r"argument 2 \(generator\) of add\(\)") as caught:
        dump_arguments(operator.add, (1, (i for i in "x")), {})
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(Unpicklable, match=r"key \(generator\) of sorted"):
        dump_arguments(sorted, (), {"key": (i for i in "x")})


def test_an_unpicklable_function_is_named() -> None:
    generator = (i for i in "x")
    with pytest.raises(Unpicklable, match="function"):
        Functions().get(lambda: generator)


def test_running_keywords_and_chunks() -> None:
    data, segments = dump_arguments(sorted, ([1, 3, 2],), {"reverse": True})
    status, result, parts = run(lambda: sorted, data, segments, KEYWORDS)
    assert (status, load(result, parts)) == (RETURNED, [3, 2, 1])
    status, value = outcome(operator.truediv, [(6, 2), (1, 0), (1, 1)], flags=CHUNK)
    assert status == RETURNED
    nanoseconds, results, failure = value
    assert nanoseconds > 0
    assert results == [3.0]
    assert isinstance(payload.load_exception(failure), ZeroDivisionError)


def test_the_original_exception_comes_with_the_remote_traceback() -> None:
    status, error = outcome(lambda: list(range(0))[1])
    assert status == RAISED
    assert type(error) is IndexError
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "IndexError" in str(error.__cause__)
    assert "execute.py" not in str(error.__cause__)


class Stubborn(Exception):
    """Pickles, and cannot be unpickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("stubborn")


def raise_stubborn() -> None:
    raise Stubborn(1, 2)


@pytest.mark.parametrize("make", [raise_stubborn, lambda: (_ for _ in ()).throw(ValueError(i for i in "x"))])
def test_an_exception_that_cannot_travel_is_told_about(make: Any) -> None:
    status, error = outcome(make)
    assert status == RAISED
    assert isinstance(error, Unpicklable)
    assert "Traceback" in str(error.__cause__)


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), MemoryError("x"), StopIteration(1)])
def test_whatever_is_raised_is_returned(raised: BaseException) -> None:
    def fail() -> None:
        raise raised

    status, error = outcome(fail)
    assert status == RAISED
    assert type(error) is type(raised)


def test_an_unpicklable_result_is_an_error() -> None:
    status, error = outcome(lambda: (i for i in "x"))
    assert status == RAISED
    assert isinstance(error, Unpicklable)
    assert "generator" in str(error)


def test_values_of_script_classes_come_back_as_the_same_class() -> None:
    module = types.ModuleType("__main__")
    exec("class Point:\n    def __init__(self, x): self.x = x", module.__dict__)
    data, segments = dump(module.Point(3))
    found = load(data, segments)
    assert found.x == 3
    assert type(found) is module.Point


@pytest.mark.parametrize(
    "frame", [b"", b"\0", b"\xff\x90", bytes([SUBMIT]), pack(SUBMIT, [1, 2]), pack(DONE, {"a": 1})]
)
def test_garbage_is_refused(frame: bytes) -> None:
    with pytest.raises(ValueError):
        unpack(frame)


def test_segments_must_be_as_many_as_announced() -> None:
    assert split_segments([0, 2, 1], [b"a", b"b", b"c"]) == [None, [b"a", b"b"], [b"c"]]
    for counts, parts in (([1], []), ([0], [b"a"]), ([-1], [b"a"]), ([2], [b"a"])):
        with pytest.raises(ValueError, match=r"segments|negative"):
            split_segments(counts, parts)
