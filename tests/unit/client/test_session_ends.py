"""The retry logic, input by input, in virtual time: time-outs, refusals, bounds, the end."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.client.session_driver import Driver
from zcluster import wire
from zcluster.client import session as session_module
from zcluster.errors import Busy, Closed, Error, InvalidInput, NoQuorum, Timeout, TooLarge, Unknown
from zcluster.types import MS, NEVER


# -- the end of patience ----------------------------------------------------------------------------------------------
def outcome(driver: Driver, token: Any) -> Any:
    ((found, value),) = driver.results()
    assert found == token
    return value


def test_a_write_never_sent_is_certainly_not_applied(driver: Driver) -> None:
    driver.put("p", timeout_ms=500)
    driver.flush()
    driver.advance(499)
    assert driver.results() == []
    driver.advance(1)
    assert isinstance(outcome(driver, "p"), NoQuorum)


def test_a_write_whose_session_could_not_be_registered_is_certainly_not_applied(driver: Driver) -> None:
    driver.leader(1, 1)
    driver.put("p", timeout_ms=500)
    driver.flush()
    assert len(driver.sends()) == 1
    driver.advance(500)
    assert isinstance(outcome(driver, "p"), NoQuorum)
    driver.sends()
    driver.advance(60_000)
    assert driver.sends() == [], "nobody needs the session now"
    driver.put("q")
    driver.flush()
    assert wire.decode(driver.sends()[0][3]) == [100, 0, 0, [[wire.OP_REGISTER]]]


def test_a_write_that_was_sent_and_not_answered_is_unknown_and_never_sent_again(ready: Driver) -> None:
    ready.put("p", timeout_ms=500)
    ready.flush()
    ready.advance(500)
    assert isinstance(outcome(ready, "p"), Unknown)
    ready.sends()
    ready.leader(2, 2)
    ready.advance(60_000)
    assert ready.sends() == []
    ready.put("q")
    ready.flush()
    assert wire.decode(ready.sends()[0][3])[1:3] == [3, 3], "the floor passes the id that was given up"


def test_a_write_whose_every_attempt_was_refused_is_certainly_not_applied(ready: Driver) -> None:
    ready.put("p", timeout_ms=500)
    ready.flush()
    while not (results := ready.results()):
        for replica, kind, request, _ in ready.sends():
            if request % 3 == 0:
                ready.receive(replica, wire.NOT_LEADER, request, [0, 1])
            elif request % 3 == 1:
                ready.receive(replica, wire.BUSY, request, ["full"])
            else:
                ready.session.unsent(replica, wire.pack_head(kind, request), ready.now)
        ready.advance(1)
    assert isinstance(results[0][1], NoQuorum)


def test_one_unanswered_attempt_among_refusals_leaves_it_unknown(ready: Driver) -> None:
    ready.put("p", timeout_ms=2000)
    ready.flush()
    ready.sends()
    ready.leader(2, 2)
    (second,) = ready.sends()
    ready.receive(2, wire.NOT_LEADER, second[2], [0, 3])
    ready.advance(2000)
    assert isinstance(outcome(ready, "p"), Unknown)


def test_reads_time_out(ready: Driver) -> None:
    ready.get("g", timeout_ms=300)
    ready.get("never sent", timeout_ms=300)
    ready.flush()
    ready.advance(300)
    assert [type(value) for _, value in ready.results()] == [Timeout, Timeout]
    assert ready.session.next_deadline() == NEVER


def test_each_operation_of_a_frame_has_its_own_time(ready: Driver) -> None:
    ready.put("short", timeout_ms=100)
    ready.put("long", timeout_ms=5000)
    ready.flush()
    (send,) = ready.sends()
    ready.advance(100)
    assert isinstance(outcome(ready, "short"), Unknown)
    ready.advance(200)
    (again,) = ready.sends()
    assert again[3] == send[3], "the frame lives on for the other, unchanged"
    ready.receive(1, wire.RESULT, again[2], [5, 6])
    assert ready.results() == [("long", 6)]


def test_a_frame_that_one_was_told_is_not_applied_is_never_sent_again(ready: Driver) -> None:
    ready.put("short", "a", timeout_ms=15)
    ready.put("long", "b", timeout_ms=5000)
    ready.flush()
    ready.receive(1, wire.BUSY, ready.sends()[0][2], ["full"])
    ready.advance(10)
    ready.receive(1, wire.BUSY, ready.sends()[0][2], ["full"])
    ready.advance(5)
    assert isinstance(outcome(ready, "short"), NoQuorum)
    (other,) = ready.sends()
    assert wire.decode(other[3]) == [7, 3, 3, [[wire.OP_PUT, "b", b"v"]]]


def test_waiting_operations_time_out_one_by_one() -> None:
    driver = Driver(frames_in_flight=1)
    driver.register()
    driver.put("stuck")
    driver.flush()
    for i, timeout_ms in enumerate((300, 100, 200)):
        driver.put(i, timeout_ms=timeout_ms)
    driver.session.write_all([[wire.OP_PUT, "a", b""]], "all", driver.now + 150 * MS, 10)
    order = []
    for _ in range(300):
        driver.advance(1)
        order += [(token, type(value)) for token, value in driver.results()]
    assert order == [(1, NoQuorum), ("all", NoQuorum), (2, NoQuorum), (0, NoQuorum)]
    assert driver.session._writes.size_bytes == 0


# -- refusals ---------------------------------------------------------------------------------------------------------
def refuse(driver: Driver, request: int, code: int) -> None:
    driver.receive(1, wire.RESULT, request, {"code": code, "text": "why"})


def test_a_lost_session_before_any_doubt_costs_nothing(ready: Driver) -> None:
    """An hour of silence ends a session. The only attempt was refused, so the write goes again under a new one."""
    ready.put("p", "first")
    ready.put("q", "second")
    ready.flush()
    (send,) = ready.sends()
    refuse(ready, send[2], wire.E_UNKNOWN_SESSION)
    ((_, _, request, body),) = ready.sends()
    assert wire.decode(body) == [101, 0, 0, [[wire.OP_REGISTER]]]
    ready.receive(1, wire.RESULT, request, [8])
    ((_, _, request, body),) = ready.sends()
    assert wire.decode(body) == [8, 1, 1, [[wire.OP_PUT, "first", b"v"], [wire.OP_PUT, "second", b"v"]]]
    ready.receive(1, wire.RESULT, request, [1, 2])
    assert ready.results() == [("p", 1), ("q", 2)]


def test_a_lost_session_after_an_unanswered_attempt_is_unknown(ready: Driver) -> None:
    ready.put("p")
    ready.flush()
    ready.advance(250)
    _, second = ready.sends()
    refuse(ready, second[2], wire.E_UNKNOWN_SESSION)
    assert isinstance(outcome(ready, "p"), Unknown)
    ready.put("q")
    ready.flush()
    assert wire.decode(ready.sends()[0][3]) == [101, 0, 0, [[wire.OP_REGISTER]]]


def test_several_frames_of_a_lost_session_start_one_new_session(ready: Driver) -> None:
    for i in range(3):
        ready.put(i)
        ready.flush()
    sends = ready.sends()
    for send in sends:
        refuse(ready, send[2], wire.E_UNKNOWN_SESSION)
    ((_, _, request, body),) = ready.sends()
    assert wire.decode(body)[0] == 101
    ready.receive(1, wire.RESULT, request, [8])
    ((_, _, request, body),) = ready.sends()
    ready.receive(1, wire.RESULT, request, [1, 2, 3])
    assert sorted(token for token, _ in ready.results()) == [0, 1, 2]


@pytest.mark.parametrize("code", [wire.E_FULL, wire.E_WINDOW])
def test_no_room_in_the_table_means_later_under_a_new_id(ready: Driver, code: int) -> None:
    ready.put("p")
    ready.flush()
    (send,) = ready.sends()
    refuse(ready, send[2], code)
    assert ready.sends() == []
    ready.advance(50)
    (again,) = ready.sends()
    assert wire.decode(again[3])[1:3] == [3, 3]


@pytest.mark.parametrize("code", [wire.E_FULL, wire.E_WINDOW])
def test_no_room_in_the_table_with_an_attempt_open_means_the_same_frame_later(ready: Driver, code: int) -> None:
    ready.put("p")
    ready.flush()
    ready.advance(250)
    first, second = ready.sends()
    refuse(ready, second[2], code)
    ready.advance(20)
    (again,) = ready.sends()
    assert again[3] == first[3]


@pytest.mark.parametrize(
    ("code", "error"), [(wire.E_BAD_REQUEST, InvalidInput), (wire.E_TOO_LARGE, TooLarge), (77, Error)]
)
def test_refused_for_good_means_a_typed_error(ready: Driver, code: int, error: type[Error]) -> None:
    ready.put("frame")
    ready.flush()
    refuse(ready, ready.sends()[0][2], code)
    assert type(outcome(ready, "frame")) is error
    ready.put("request")
    ready.flush()
    ready.receive(1, wire.FAILED, ready.sends()[0][2], [code, "why"])
    assert type(outcome(ready, "request")) is error
    ready.put("operation")
    ready.put("other")
    ready.flush()
    ready.receive(1, wire.RESULT, ready.sends()[0][2], [[code, "why"], 3])
    (_, first), (_, second) = ready.results()
    assert type(first) is error
    assert second == 3


def test_an_operation_without_room_beside_others_is_asked_again(ready: Driver) -> None:
    ready.get("a")
    ready.get("b")
    ready.flush()
    (send,) = ready.sends()
    ready.receive(1, wire.RESULT, send[2], [b"x", [wire.E_FULL, "too much"]])
    assert ready.results() == [("a", b"x")]
    (again,) = ready.sends()
    ready.receive(1, wire.RESULT, again[2], [b"y"])
    assert ready.results() == [("b", b"y")]


def test_a_listing_is_not_taken_for_an_error(ready: Driver) -> None:
    ready.get("a")
    ready.flush()
    ready.receive(1, wire.RESULT, ready.sends()[0][2], [[["k", b"v"], False]])
    assert ready.results() == [("a", [["k", b"v"], False])]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (wire.RESULT, b""),
        (wire.RESULT, b"\xa1\xff"),
        (wire.RESULT, b"\x91" * 100_000),
        (wire.RESULT, wire.encode([1, 2, 3])),
        (wire.RESULT, wire.encode({"text": "no code"})),
        (wire.RESULT, wire.encode(5)),
        (wire.NOT_LEADER, wire.encode([1])),
        (wire.NOT_LEADER, wire.encode(["a", 1])),
        (wire.FAILED, wire.encode("x")),
        (wire.LEADER, wire.encode([1, 2, 3])),
        (wire.LEADER, wire.encode([-1, 9])),
        (200, wire.encode(1)),
    ],
)
def test_nonsense_is_ignored_and_the_request_goes_on(ready: Driver, kind: int, body: bytes) -> None:
    ready.put("p")
    ready.flush()
    (send,) = ready.sends()
    ready.session.received(1, kind, send[2], body, ready.now)
    ready.session.received(2, wire.RESULT, send[2], wire.encode([1]), ready.now)
    assert ready.results() == []
    ready.receive(1, wire.RESULT, send[2], [8])
    assert ready.results() == [("p", 8)]


def test_a_refused_hello_is_told_to_those_who_wait(driver: Driver) -> None:
    driver.receive(1, wire.FAILED, 0, [1, "this node speaks protocol 2"])
    driver.put("p", timeout_ms=100)
    driver.flush()
    driver.advance(100)
    assert "protocol 2" in str(outcome(driver, "p"))


# -- bounds and the end -----------------------------------------------------------------------------------------------
def test_the_queue_is_bounded(ready: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "QUEUE_OPS_MAX", 3)
    for i in range(3):
        ready.put(i)
        ready.get(i)
    for method in (ready.put, ready.get):
        with pytest.raises(Busy, match="wait to be sent"):
            method("more")


def test_close_tells_everybody(ready: Driver) -> None:
    ready.put("sent")
    ready.get("read")
    ready.flush()
    ready.put("queued")
    ready.session.close()
    assert {token: type(value) for token, value in ready.results()} == {
        "sent": Unknown,
        "read": Closed,
        "queued": Closed,
    }
    with pytest.raises(Closed):
        ready.put("late")
    ready.session.flush(ready.now)
    ready.session.deadline(ready.now)
    ready.session.close()
    assert (ready.sends(), ready.results(), ready.session.next_deadline()) == ([], [], NEVER)
