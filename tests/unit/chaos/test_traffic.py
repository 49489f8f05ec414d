"""Recorded traffic against a store in memory: what it records is true, and a wrong store does not get away with it."""

from __future__ import annotations

import io
import threading
from typing import Any

import pytest

from zcluster.chaos.traffic import Traffic, longest_gap_ns
from zcluster.errors import NoQuorum, Timeout, Unknown
from zcluster.sim.history import Operation, parse_history
from zcluster.sim.verdict import check_history


class MemoryStore:
    """A correct store; subclasses are wrong. `closed` counts what was closed."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.levels: set[str] = set()
        self.closed = 0

    def get(self, key: str, *, consistency: str = "linearizable", timeout: float = 10) -> bytes | None:
        with self.lock:
            self.levels.add(consistency)
            return self.data.get(key)

    def put(self, key: str, value: bytes, *, timeout: float = 10) -> int:
        with self.lock:
            self.data[key] = value
            return 1

    def delete(self, key: str, *, timeout: float = 10) -> bool:
        with self.lock:
            return self.data.pop(key, None) is not None

    def cas(self, key: str, expected: bytes | None, new: bytes | None, *, timeout: float = 10) -> bool:
        with self.lock:
            if self.data.get(key) != expected:
                return False
            assert new is not None
            self.data[key] = new
            return True

    def append(self, key: str, data: bytes, *, timeout: float = 10) -> bytes:
        with self.lock:
            self.data[key] = self.data.get(key, b"") + data
            return self.data[key]


class FakeClient:
    def __init__(self, store: MemoryStore) -> None:
        self.kv = store

    def close(self) -> None:
        self.kv.closed += 1

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def traffic(store: MemoryStore, **options: Any) -> Traffic:
    return Traffic(lambda: FakeClient(store), pace_s=0.0005, **options)  # type: ignore[arg-type,return-value]


def test_a_correct_store_gives_a_linearizable_history_of_all_kinds_in_the_file_too() -> None:
    store, stream = MemoryStore(), io.StringIO()
    with traffic(store, consistency=("linearizable", "lease"), stream=stream) as running:
        running.wait_progress(40)
    found = running.operations()
    assert {operation.kind for operation in found} == {"get", "put", "append", "cas", "delete"}
    assert {operation.client for operation in found} == set(range(7))  # the last one reads at the end
    assert any(operation.kind == "cas" and operation.output for operation in found)
    assert store.levels == {"linearizable", "lease"}
    assert running.verdict().result == "linearizable"
    assert check_history(parse_history(stream.getvalue().splitlines())).operations == len(found)
    assert store.closed == 4


class LosesTheLast(MemoryStore):
    """Forgets everything when the callers have ended, as far as the last reads (of the test's own thread) can see."""

    def get(self, key: str, *, consistency: str = "linearizable", timeout: float = 10) -> bytes | None:
        found = super().get(key)
        return None if threading.current_thread() is threading.main_thread() else found


class Stale(MemoryStore):
    """Answers reads from a copy that is behind."""

    def get(self, key: str, *, consistency: str = "linearizable", timeout: float = 10) -> bytes | None:
        with self.lock:
            self.copy = getattr(self, "copy", dict(self.data))
            return self.copy.get(key)


class Twice(MemoryStore):
    """Applies an append again, as a retry that is not recognized does."""

    def append(self, key: str, data: bytes, *, timeout: float = 10) -> bytes:
        super().append(key, data)
        super().append(key, data)
        return data


@pytest.mark.parametrize("wrong", [Stale, Twice, LosesTheLast])
def test_a_wrong_store_is_noticed(wrong: type[MemoryStore]) -> None:
    with traffic(wrong()) as running:
        running.wait_progress(40)
    assert running.verdict().result == "not_linearizable"


class Lost(MemoryStore):
    """Does what it is told and does not say so."""

    def put(self, key: str, value: bytes, *, timeout: float = 10) -> int:
        super().put(key, value)
        raise Unknown("lost")


def test_unknown_outcomes_are_recorded_as_such_and_counted_and_are_no_answers() -> None:
    with traffic(Lost()) as running:
        running.wait_progress(20)
    assert {o.status for o in running.operations() if o.kind == "put"} == {"unknown"}
    assert set(running.errors) == {"Unknown"}
    assert running.verdict().result == "linearizable"


class Broken(MemoryStore):
    def append(self, key: str, data: bytes, *, timeout: float = 10) -> bytes:
        raise ZeroDivisionError


class Silent(MemoryStore):
    def get(self, key: str, *, consistency: str = "linearizable", timeout: float = 10) -> bytes | None:
        raise Timeout("nobody there")


def test_what_no_client_should_raise_ends_the_test() -> None:
    running = traffic(Broken()).start()
    with pytest.raises(ZeroDivisionError):
        running.wait_progress(1000)
    with pytest.raises(ZeroDivisionError):
        running.stop()


def test_no_progress_is_an_error_that_says_who_waits() -> None:
    running = traffic(Silent(), clients=1, callers=1, read_share=1.0).start()
    with pytest.raises(Timeout, match=r"callers \[0\] got no 2 answers"):
        running.wait_progress(timeout=0.05)
    running.stop(final_reads=False)


def test_keys_lie_below_the_prefix_and_stand_in_the_history_without_it() -> None:
    store = MemoryStore()
    store.data["mine"] = b"precious"
    with traffic(store, prefix="zcluster-chaos/r/", keys=5) as running:
        assert running.wait_writes(300, 30)
        assert set(store.data) <= {"mine", *(f"zcluster-chaos/r/k{number}" for number in range(5))}
    assert store.data["mine"] == b"precious"
    assert {operation.key for operation in running.operations()} == {f"k{number}" for number in range(5)}
    assert running.verdict().result == "linearizable"


class Refuses(MemoryStore):
    """Every write ends with the same error."""

    error: Exception = NoQuorum("no")

    def append(self, key: str, data: bytes, *, timeout: float = 10) -> bytes:
        raise self.error

    def put(self, key: str, value: bytes, *, timeout: float = 10) -> int:
        raise self.error

    def delete(self, key: str, *, timeout: float = 10) -> bool:
        raise self.error

    def cas(self, key: str, expected: bytes | None, new: bytes | None, *, timeout: float = 10) -> bool:
        raise self.error


@pytest.mark.parametrize(("error", "status"), [(Unknown("?"), "unknown"), (NoQuorum("no"), "fail")])
def test_errors_are_recorded_as_what_they_mean(error: Exception, status: str) -> None:
    store = Refuses()
    store.error = error
    with traffic(store, read_share=0.0) as running:
        while running.errors.total() < 20:
            running.check()
        assert not running.wait_writes(1, 0.01)
    assert running.writes == 0
    assert {o.status for o in running.operations() if o.kind != "get"} == {status}


def test_who_waits_for_writes_hears_of_a_bug() -> None:
    running = traffic(Broken()).start()
    with pytest.raises(ZeroDivisionError):
        running.wait_writes(1_000_000, 30)
    with pytest.raises(ZeroDivisionError):
        running.stop()


def test_the_longest_gap_is_measured_over_all_callers_and_to_both_ends() -> None:
    writes = [Operation(0, "put", "k", 0, returned, "ok", "v") for returned in (5, 90, 100, 250, 395, 400, 990)]
    others = [Operation(1, "get", "k", 0, 300), Operation(1, "put", "k", 0, None, "unknown", "v")]
    operations = [*writes, *others]
    assert longest_gap_ns(operations, 95, 450) == 150
    assert longest_gap_ns(operations, 95, 900) == 500
    assert longest_gap_ns(operations, 500, 600) == 100
