"""Exactly once: whatever order frames and their retries arrive in."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcluster import wire
from zcluster.machines import sessions as sessions_module
from zcluster.machines.mux import ClusterMachine
from zcluster.machines.sessions import IDLE_MS_MAX, WINDOW, Session, Sessions

NONCE = (1 << 62) + 5
S = 1 << 32 | 5
"""The id of the first session, made by NONCE."""


def frame(frame_id: int, floor: int, *ops: Any, session: int = S) -> bytes:
    return wire.encode((session, frame_id, floor, list(ops)))


def register(nonce: int = NONCE) -> bytes:
    return frame(0, 0, [wire.OP_REGISTER], session=nonce)


class Log:
    """Applies frames one entry at a time, at a log time that the test moves."""

    def __init__(self, sessions_max: int = 16) -> None:
        self.machine = ClusterMachine(64, 1 << 20, sessions_max)
        self.index = 0
        self.time_ms = 1_000_000

    def apply(self, data: bytes) -> Any:
        self.index += 1
        (body,) = self.machine.apply(self.index, self.time_ms, [data])
        return wire.decode(body)

    def value(self, key: str) -> Any:
        return wire.decode(self.machine.query([[wire.OP_GET, key]]))[0]


def nonces(log: Log) -> list[int]:
    return [session.nonce for _, session in log.machine.sessions.items()]


def add(text: bytes) -> list[Any]:
    return [wire.OP_APPEND, "k", text]


def test_registration_is_idempotent_and_keeps_results() -> None:
    log = Log()
    assert log.apply(register()) == [S]
    assert log.apply(frame(1, 1, add(b"a"))) == [b"a"]
    assert log.apply(register()) == [S]
    assert log.apply(frame(1, 1, add(b"a"))) == [b"a"]
    assert log.value("k") == b"a"


def test_unknown_session_is_refused_and_nothing_is_applied() -> None:
    log = Log()
    assert log.apply(frame(1, 1, add(b"a")))["code"] == wire.E_UNKNOWN_SESSION
    assert log.value("k") is None


@pytest.mark.parametrize(
    "data",
    [
        frame(0, 0),
        frame(0, 0, add(b"a")),
        frame(0, 0, [wire.OP_REGISTER], [wire.OP_REGISTER]),
        frame(0, 0, [wire.OP_REGISTER, 1]),
        frame(0, 0, [wire.OP_REGISTER], session=0),
        frame(0, 0, [wire.OP_REGISTER], session=-4),
        frame(-1, 0, add(b"a")),
        frame(1, -1, add(b"a")),
        frame(1, 2, add(b"a")),
    ],
)
def test_malformed_frames_are_refused(data: bytes) -> None:
    log = Log()
    log.apply(register())
    assert log.apply(data)["code"] == wire.E_BAD_REQUEST
    assert log.value("k") is None


def test_registering_inside_an_ordinary_frame_is_refused() -> None:
    log = Log()
    log.apply(register())
    result = log.apply(frame(1, 1, [wire.OP_REGISTER], add(b"a")))
    assert result[0][0] == wire.E_BAD_REQUEST
    assert result[1] == b"a"


def test_retries_out_of_order_are_applied_once() -> None:
    """5 and 6 are in flight, 6 commits first, 5 is retried twice: each is applied exactly once."""
    log = Log()
    log.apply(register())
    assert log.apply(frame(6, 5, add(b"6"))) == [b"6"]
    assert log.apply(frame(5, 5, add(b"5"))) == [b"65"]
    assert log.apply(frame(5, 5, add(b"5"))) == [b"65"]
    assert log.apply(frame(6, 5, add(b"6"))) == [b"6"]
    assert log.value("k") == b"65"


def test_a_frame_below_the_floor_is_not_applied() -> None:
    """An id that the client has given up must not come to life later."""
    log = Log()
    log.apply(register())
    log.apply(frame(9, 8, add(b"9")))
    assert log.apply(frame(7, 7, add(b"7")))["code"] == wire.E_WINDOW
    assert log.apply(frame(8, 3, add(b"8"))) == [b"98"], "an old floor in a late frame does no harm"


def test_floor_forgets_results_and_only_those() -> None:
    log = Log()
    log.apply(register())
    for i in range(1, 11):
        log.apply(frame(i, 1, add(b"x")))
    log.apply(frame(11, 6, add(b"x")))
    ((_, session),) = log.machine.sessions.items()
    assert sorted(session.results) == [6, 7, 8, 9, 10, 11]
    assert session.result_bytes == sum(map(len, session.results.values()))
    log.apply(frame(1 << 62, 1 << 62, add(b"x")))
    ((_, session),) = log.machine.sessions.items()
    assert sorted(session.results) == [1 << 62]


def test_window_is_bounded() -> None:
    log = Log()
    log.apply(register())
    assert log.apply(frame(WINDOW, 1, add(b"a"))) == [b"a"]
    assert log.apply(frame(WINDOW + 1, 1, add(b"b")))["code"] == wire.E_WINDOW
    assert log.apply(frame(WINDOW + 1, 2, add(b"b"))) == [b"ab"], "a refused id can be applied once there is room"


def test_result_bytes_of_a_session_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions_module, "RESULT_BYTES_MAX", 1000)
    log = Log()
    log.apply(register())
    assert log.apply(frame(1, 1, add(b"x" * 1200))) == [b"x" * 1200]
    assert log.apply(frame(2, 1, add(b"y")))["code"] == wire.E_FULL
    assert log.apply(frame(1, 1, add(b"x" * 1200))) == [b"x" * 1200], "what is known is still told"
    assert log.apply(frame(2, 2, add(b"y"))) == [b"x" * 1200 + b"y"]


def test_result_bytes_of_all_sessions_are_bounded() -> None:
    table = Sessions(100, table_bytes_max=1000)
    for nonce in range(1, 6):
        session = table.admit(table.register(nonce), 1, 1)
        assert isinstance(session, Session)
        table.record(session, 1, b"x" * 300)
    assert [session.nonce for _, session in table.items()] == [3, 4, 5]


def test_least_recently_used_session_makes_room() -> None:
    log = Log(sessions_max=3)
    first, _, third = (log.apply(register(nonce))[0] for nonce in (1, 2, 3))
    log.apply(frame(1, 1, add(b"a"), session=first))
    log.apply(register(2))
    log.apply(register(4))
    assert nonces(log) == [1, 2, 4]
    assert log.apply(frame(1, 1, add(b"b"), session=third))["code"] == wire.E_UNKNOWN_SESSION


def test_a_late_registration_does_not_bring_an_evicted_session_back() -> None:
    """Else frames of its first life that are late as well would be applied a second time."""
    log = Log(sessions_max=2)
    (session,) = log.apply(register())
    assert log.apply(frame(1, 1, add(b"a"), session=session)) == [b"a"]
    log.apply(register(1))
    log.apply(register(2))
    assert log.apply(register()) != [session]
    assert log.apply(frame(1, 1, add(b"a"), session=session))["code"] == wire.E_UNKNOWN_SESSION
    assert log.value("k") == b"a"


def test_idle_sessions_expire_by_log_time_and_time_never_falls() -> None:
    log = Log()
    log.apply(register(1))
    log.time_ms += IDLE_MS_MAX // 2
    log.apply(register(2))
    log.time_ms += IDLE_MS_MAX // 2
    log.apply(register(3))
    assert nonces(log) == [1, 2, 3]
    log.time_ms += 1
    log.apply(register(3))
    assert nonces(log) == [2, 3]
    log.time_ms = 5
    log.apply(register(2))
    assert [session.last_ms for _, session in log.machine.sessions.items()] == [log.machine.sessions.now_ms] * 2


def test_a_captured_session_never_changes() -> None:
    table = Sessions(10)
    first, second = table.register(1), table.register(2)
    session = table.admit(first, 1, 1)
    assert isinstance(session, Session)
    table.record(session, 1, b"first")
    captured = table.capture()
    session = table.admit(first, 2, 2)
    assert isinstance(session, Session)
    table.record(session, 2, b"second")
    table.register(3)
    assert [number for number, _ in captured] == [second, first]
    assert captured[1][1].results == {1: b"first"}
    assert dict(table.items())[first].results == {2: b"second"}


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_order_with_any_duplicates_applies_each_frame_once(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    frames = {i: frame(i, data.draw(st.integers(1, min(i, 1))), add(bytes([i]))) for i in range(1, count + 1)}
    order = data.draw(st.lists(st.sampled_from(sorted(frames)), max_size=30)) + sorted(frames)
    log = Log()
    log.apply(register())
    answers: dict[int, Any] = {}
    for number in order:
        answer = log.apply(frames[number])
        assert answers.setdefault(number, answer) == answer, "a retry is told the first answer"
    assert sorted(log.value("k")) == sorted(frames)
