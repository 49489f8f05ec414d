"""The callers of a run of chaos, on a store that is a dictionary."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from zcluster.chaos.workload import KEYS, PREFIX, Workload
from zcluster.errors import NoQuorum, Unknown
from zcluster.sim.history import Recorder
from zcluster.sim.verdict import check_history


class Store:
    """A linearizable store; `broken`: what every write raises."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {"mine": b"precious"}
        self.broken: BaseException | None = None
        self.reads: set[str] = set()
        self._lock = threading.RLock()

    def _change(self, key: str, value: bytes | None) -> None:
        with self._lock:
            if self.broken is not None:
                raise self.broken
            self.data.pop(key, None)
            if value is not None:
                self.data[key] = value

    def put(self, key: str, value: bytes, *, timeout: float) -> int:
        self._change(key, value)
        return 1

    def get(self, key: str, *, consistency: str, timeout: float) -> bytes | None:
        self.reads.add(consistency)
        return self.data.get(key)

    def delete(self, key: str, *, timeout: float) -> bool:
        with self._lock:
            existed = key in self.data
            self._change(key, None)
            return existed

    def cas(self, key: str, expected: bytes | None, new: bytes | None, *, timeout: float) -> bool:
        with self._lock:
            if self.data.get(key) != expected:
                return False
            self._change(key, new)
            return True

    def append(self, key: str, data: bytes, *, timeout: float) -> bytes:
        with self._lock:
            self._change(key, self.data.get(key, b"") + data)
            return self.data[key]

    def list(self, prefix: str, *, timeout: float) -> dict[str, bytes]:
        return {key: value for key, value in self.data.items() if key.startswith(prefix)}


class Client:
    def __init__(self, kv: Store) -> None:
        self.kv = kv

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def close(self) -> None:
        pass


def make(store: Store, recorder: Recorder) -> Workload:
    return Workload(lambda: Client(store), recorder, callers=4, rate=20_000, seed=1, run_id="r")


def test_callers_use_every_operation_below_their_prefix_and_remove_their_keys() -> None:
    store, recorder = Store(), Recorder()
    workload = make(store, recorder)
    workload.start()
    assert workload.wait_writes(300, 30)
    assert set(store.data) <= {"mine", *(f"{PREFIX}r/{key}" for key in KEYS)}
    workload.stop()
    workload.check()
    workload.finish()
    assert store.data == {"mine": b"precious"}
    operations = recorder.operations()
    assert {o.kind for o in operations} == {"put", "get", "delete", "cas", "append"}
    assert {o.key for o in operations} == set(KEYS)
    assert any(o.kind == "cas" and o.output for o in operations)
    assert store.reads == {"linearizable", "lease"}
    assert check_history(operations).result == "linearizable"


@pytest.mark.parametrize(("error", "status"), [(Unknown("?"), "unknown"), (NoQuorum("no"), "fail")])
def test_errors_are_recorded_as_what_they_mean(error: BaseException, status: str) -> None:
    store, recorder = Store(), Recorder()
    store.broken = error
    workload = make(store, recorder)
    workload.start()
    while workload.errors < 20:
        workload.check()
    workload.stop()
    assert workload.writes == 0
    assert {o.status for o in recorder.operations() if o.kind == "put"} == {status}


def test_a_bug_in_a_caller_is_not_swallowed() -> None:
    store = Store()
    store.broken = ZeroDivisionError()
    workload = make(store, Recorder())
    workload.start()
    with pytest.raises(ZeroDivisionError):
        while not workload.wait_writes(1, 0.01):
            workload.check()
    workload.stop()


def test_the_longest_gap_is_measured_over_all_callers_and_to_both_ends() -> None:
    workload = make(Store(), Recorder())
    first, second, *_ = workload._callers
    first.acknowledged = [5, 100, 400]
    second.acknowledged = [90, 250, 395, 990]
    assert workload.longest_gap_ns(95, 450) == 150
    assert workload.longest_gap_ns(95, 900) == 500
    assert workload.longest_gap_ns(500, 600) == 100
