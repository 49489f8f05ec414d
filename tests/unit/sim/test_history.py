"""The format of histories: what is read back is what was written; what is no history is named by line and field."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import FakeKV
from tests.unit.sim.histories import run_clients
from zcluster.errors import NoQuorum, Timeout, Unknown
from zcluster.sim.history import BadHistory, Operation, RecordedStore, Recorder, parse_history, write_history

LINE: dict[str, Any] = {
    "client": 0,
    "op": "cas",
    "key": "x",
    "expect": "1",
    "value": "2",
    "output": True,
    "call": 31,
    "return": 40,
    "status": "ok",
}


def line(**changes: Any) -> str:
    fields = {name: value for name, value in (LINE | changes).items() if value is not ...}
    return json.dumps(fields)


def test_the_documented_line_is_read() -> None:
    assert parse_history([line()]) == [Operation(0, "cas", "x", 31, 40, "ok", "2", "1", True, 1)]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    history = run_clients(3, operations=300, keys=3, unknown=0.1, silent=0.5)
    path = tmp_path / "history.jsonl"
    with open(path, "w") as file:
        write_history(file, history)
    with open(path, "rb") as binary:
        assert parse_history(binary) == history


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[1]", "an operation is an object, not [1]"),
        (line(client="a"), '"client" is a whole number, not "a"'),
        (line(client=True), '"client" is a whole number, not true'),
        (line(op="swap"), '"op" is one of put, get, delete, cas, append, not "swap"'),
        (line(key=1), '"key" is a string, not 1'),
        (line(call=1.5), '"call" is a whole number of ns, not 1.5'),
        (line(**{"return": 30}), '"return" is 30, before call, 31'),
        (line(**{"return": ...}), '"return" is missing; it is a whole number of ns'),
        (line(**{"return": None}), '"return" is a whole number of ns, not null'),
        (line(status="maybe"), '"status" is one of ok, fail, unknown, not "maybe"'),
        (line(status=...), '"status" is missing'),
        (line(expect=...), '"expect" is missing; it is a string or null'),
        (line(output=None), '"output" is true or false, not null'),
        (line(output=...), '"output" is missing; it is true or false'),
        (line(op="put", value=None), '"value" is a string, not null'),
        (line(op="append", output=3), '"output" is a string, not 3'),
        (line(op="get", output=...), '"output" is missing; it is a string or null'),
        (line(op="delete", output="yes"), '"output" is true or false, not "yes"'),
    ],
)
def test_a_bad_line_is_named_with_its_field(text: str, complaint: str) -> None:
    with pytest.raises(BadHistory) as caught:
        parse_history([line(), "\n", text])
    assert str(caught.value).startswith(f"line 3: {complaint}")
    assert caught.value.exit_code == 2


def test_bytes_that_are_no_text_are_named() -> None:
    with pytest.raises(BadHistory, match="line 1: no UTF-8 at byte 1"):
        parse_history([b'"\xff"'])


def test_optional_fields_may_be_left_out() -> None:
    texts = [
        line(op="put", output=..., expect=...),
        line(op="append", output=...),
        line(op="delete", output=None, value=...),
        line(status="unknown", output=..., **{"return": ...}),
        line(status="fail", output=..., more="ignored"),
    ]
    assert [o.status for o in parse_history(texts)] == ["ok", "ok", "ok", "unknown", "fail"]
    assert [o.output for o in parse_history(texts)] == [None] * 5


def test_recorded_times_keep_the_order_of_events_on_a_clock_that_stands_still() -> None:
    recorder = Recorder(clock=lambda: 7)
    first = recorder.call(0, "put", "k", value="1")
    first.ok()
    second = recorder.call(0, "get", "k")
    second.ok("1")
    times = [(o.call, o.returned) for o in recorder.operations()]
    assert times == [(7, 8), (9, 10)]


def test_what_never_ended_is_written_as_unknown_once() -> None:
    stream = io.StringIO()
    with Recorder(stream) as recorder:
        call = recorder.call(0, "put", "k", value="1")
    call.ok()
    found = parse_history(stream.getvalue().splitlines())
    assert [(o.status, o.returned) for o in found] == [("unknown", None)]
    assert found == [Operation(0, "put", "k", found[0].call, None, "unknown", "1", line=1)]


class FailingKV(FakeKV):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def put(self, key: str, value: bytes, timeout: float = 10) -> int:
        raise self.error

    def append(self, key: str, data: bytes, *, timeout: float = 10) -> bytes:
        raise self.error


class AppendingKV(FakeKV):
    def append(self, key: str, data: bytes, *, timeout: float = 10) -> bytes:
        self.data[key] = self.data.get(key, b"") + data
        return self.data[key]


@pytest.mark.parametrize(
    ("error", "status"), [(Unknown("?"), "unknown"), (NoQuorum("no"), "fail"), (Timeout("late"), "unknown")]
)
def test_errors_of_the_client_are_recorded_and_passed_on(error: Exception, status: str) -> None:
    recorder = Recorder()
    with pytest.raises(type(error)):
        RecordedStore(FailingKV(error), recorder, client=1).put("k", b"1")
    assert [o.status for o in recorder.operations()] == [status]


def test_many_threads_record_a_history_that_can_be_read() -> None:
    stream = io.StringIO()
    with Recorder(stream) as recorder:

        def work(client: int) -> None:
            store = RecordedStore(AppendingKV(), recorder, client)
            for number in range(50):
                store.put("k", b"\xff%d" % number)
                store.cas("k", b"\xff%d" % number, None)
                store.append("k", b"x")
                assert store.get("k") == b"x"
                assert store.delete("k")

        threads = [threading.Thread(target=work, args=(client,)) for client in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = parse_history(stream.getvalue().splitlines())
    assert len(found) == 4 * 50 * 5
    assert all(o.status == "ok" for o in found)
    moments = [moment for o in found for moment in (o.call, o.returned)]
    assert len(set(moments)) == len(moments)
    assert {o.value for o in found if o.kind == "put"} == {f"\udcff{number}" for number in range(50)}
