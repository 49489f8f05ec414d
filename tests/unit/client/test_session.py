"""The retry logic, input by input, in virtual time: frames, leaders, silence."""

from __future__ import annotations

import itertools

import pytest

from tests.unit.client.session_driver import Driver
from zcluster import wire
from zcluster.client import session as session_module
from zcluster.errors import Timeout, TooLarge, Unknown
from zcluster.types import MS, NEVER


# -- first contact ----------------------------------------------------------------------------------------------------
def test_every_node_is_greeted_at_once(driver: Driver) -> None:
    assert driver.hellos() == [1, 2, 3]
    driver.flush()
    assert driver.hellos() == []


def test_an_idle_client_asks_for_no_deadline(driver: Driver) -> None:
    assert driver.session.next_deadline() == NEVER
    driver.register()
    assert driver.session.next_deadline() == NEVER


def test_a_node_that_connects_is_greeted(driver: Driver) -> None:
    driver.hellos()
    driver.session.connected(2, driver.now)
    assert driver.hellos() == [2]


def test_reads_need_no_session(driver: Driver) -> None:
    driver.hellos()
    driver.leader(2, 1)
    driver.get("g")
    driver.flush()
    ((replica, kind, request, body),) = driver.sends()
    assert (replica, kind, wire.decode(body)) == (2, wire.READ, [wire.LINEARIZABLE, 0, [[wire.OP_GET, "k"]]])
    driver.receive(2, wire.RESULT, request, [b"v"])
    assert driver.results() == [("g", b"v")]


def test_operations_wait_for_a_leader_and_go_when_it_is_known(driver: Driver) -> None:
    driver.put("p")
    driver.get("g")
    driver.flush()
    assert driver.sends() == []
    driver.leader(3, 5)
    assert sorted((send[0], send[1]) for send in driver.sends()) == [(3, wire.WRITE), (3, wire.READ)]


def test_nodes_are_asked_again_who_leads_while_nobody_does(driver: Driver) -> None:
    driver.hellos()
    driver.put("p")
    driver.flush()
    asked = 0
    for _ in range(30):
        driver.advance(100)
        asked += len(driver.hellos())
    assert 3 * 6 <= asked <= 3 * 15


# -- frames -----------------------------------------------------------------------------------------------------------
def test_all_that_waits_goes_into_one_frame(ready: Driver) -> None:
    for i in range(300):
        ready.put(i, f"k{i}")
    ready.flush()
    ((_, _, request, body),) = ready.sends()
    assert [op[1] for op in wire.decode(body)[3]] == [f"k{i}" for i in range(300)]
    ready.receive(1, wire.RESULT, request, list(range(300)))
    assert ready.results() == [(i, i) for i in range(300)]


def test_frames_are_bounded_in_operations_and_bytes() -> None:
    driver = Driver(frame_ops=10, frame_bytes=100, frames_in_flight=99)
    driver.register()
    for i in range(12):
        driver.session.write([wire.OP_PUT, "k", b""], i, NEVER, 1)
    driver.session.write([wire.OP_PUT, "k", b"big"], "big", NEVER, 500)
    driver.session.write([wire.OP_PUT, "k", b""], "last", NEVER, 60)
    driver.flush()
    assert [len(wire.decode(send[3])[3]) for send in driver.sends()] == [10, 2, 1, 1]


def test_frames_in_flight_are_bounded_and_the_rest_is_coalesced() -> None:
    driver = Driver(frames_in_flight=2)
    driver.register()
    for i in range(6):
        driver.put(i)
        driver.flush()
    _, second = driver.sends()
    driver.receive(1, wire.RESULT, second[2], [7])
    (third,) = driver.sends()
    assert [token for token, _ in driver.results()] == [1]
    assert len(wire.decode(third[3])[3]) == 4


def test_floor_is_the_lowest_unanswered_id(ready: Driver) -> None:
    for i in range(4):
        ready.put(i)
        ready.flush()
    sends = ready.sends()
    assert [wire.decode(send[3])[1:3] for send in sends] == [[2, 2], [3, 2], [4, 2], [5, 2]]
    ready.receive(1, wire.RESULT, sends[0][2], [1])
    ready.receive(1, wire.RESULT, sends[2][2], [1])
    ready.put("next")
    ready.flush()
    assert wire.decode(ready.sends()[0][3])[1:3] == [6, 3]


def test_ids_stay_inside_the_window(ready: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "WINDOW", 5)
    ready.put("stuck")
    ready.flush()
    (stuck,) = ready.sends()
    for i in range(10):
        ready.put(i)
        ready.flush()
        for _, _, request, _ in ready.sends():
            ready.receive(1, wire.RESULT, request, [1])
    assert len(ready.results()) == 4
    ready.receive(1, wire.RESULT, stuck[2], [1])
    assert [wire.decode(send[3])[1] for send in ready.sends()] == [7]


def test_reads_are_coalesced_by_consistency(ready: Driver) -> None:
    for token in "abc":
        ready.get(token)
        ready.get(token, wire.LEASE)
        ready.get(token, wire.EVENTUAL)
        ready.get(token, wire.BOUNDED, 50)
        ready.get(token, wire.BOUNDED, 70)
    ready.flush()
    sends = ready.sends()
    assert [wire.decode(send[3])[:2] for send in sends] == [[0, 0], [1, 0], [3, 0], [2, 50], [2, 70]]
    assert all(len(wire.decode(send[3])[2]) == 3 for send in sends)
    for replica, _, request, _ in sends:
        ready.receive(replica, wire.RESULT, request, [b"1", b"2", b"3"])
    assert len(ready.results()) == 15
    assert set(ready.session._reads) == {(0, 0), (1, 0), (3, 0)}, "bounds that nobody uses are forgotten"


def test_a_program_goes_as_one_frame_alone_and_has_one_result(ready: Driver) -> None:
    ready.put("single")
    ready.session.write_all([[wire.OP_PUT, "a", b"1"], [wire.OP_GET, "a"], [wire.OP_PUT, "b", b"2"]], "all", NEVER, 60)
    ready.flush()
    first, second = sorted(ready.sends(), key=lambda send: len(send[3]))
    assert len(wire.decode(first[3])[3]) == 1
    assert len(wire.decode(second[3])[3]) == 3
    ready.receive(1, wire.RESULT, second[2], [5, b"1", [wire.E_TOO_LARGE, "too large"]])
    ((token, values),) = ready.results()
    assert (token, values[:2]) == ("all", [5, b"1"])
    assert isinstance(values[2], TooLarge)


# -- the leader -------------------------------------------------------------------------------------------------------
def test_a_new_leader_gets_everything_unanswered_at_once_byte_for_byte(ready: Driver) -> None:
    for i in range(3):
        ready.put(i)
        ready.flush()
    ready.get("g")
    ready.flush()
    before = ready.sends()
    ready.leader(2, 2, said_by=2)
    after = ready.sends()
    assert {send[0] for send in after} == {2}
    assert [send[3] for send in after] == [send[3] for send in before]
    assert not {send[2] for send in before} & {send[2] for send in after}
    for _, _, request, body in after:
        ready.receive(2, wire.RESULT, request, [len(body)])
    assert len(ready.results()) == 4
    for _, _, request, _ in before:
        ready.receive(1, wire.RESULT, request, [0])
    assert ready.results() == [], "late answers find nothing"
    assert not ready.session._attempts


def test_the_answer_of_the_old_leader_counts_too(ready: Driver) -> None:
    ready.put("p")
    ready.flush()
    (before,) = ready.sends()
    ready.leader(2, 2)
    ready.receive(1, wire.RESULT, before[2], [9])
    assert ready.results() == [("p", 9)]
    assert not ready.session._attempts


def test_the_same_leader_in_a_newer_term_gets_it_again(ready: Driver) -> None:
    ready.put("p")
    ready.flush()
    ready.sends()
    ready.leader(1, 2)
    assert [send[0] for send in ready.sends()] == [1]


@pytest.mark.parametrize(("leader", "term"), [(1, 1), (2, 1), (0, 1), (3, 0), (0, 0)])
def test_old_news_change_nothing(ready: Driver, leader: int, term: int) -> None:
    ready.put("p")
    ready.flush()
    ready.sends()
    ready.leader(leader, term)
    assert ready.sends() == []
    assert (ready.session.leader, ready.session.term) == (1, 1)


def test_a_newer_term_without_a_leader_makes_operations_wait(ready: Driver) -> None:
    ready.leader(0, 2)
    ready.put("p")
    ready.flush()
    assert ready.sends() == []
    ready.leader(3, 2)
    assert [send[0] for send in ready.sends()] == [3]


def test_the_term_of_a_candidate_is_not_remembered(ready: Driver) -> None:
    """It may be forgotten with a power cut, and a leader be elected in a lower one (seed 1520052)."""
    ready.leader(0, 7)
    ready.put("p")
    ready.flush()
    assert ready.sends() == []
    ready.leader(2, 6)
    assert [send[0] for send in ready.sends()] == [2]


def test_a_leader_that_was_given_up_is_believed_again_when_it_says_that_it_leads(ready: Driver) -> None:
    ready.leader(0, 2, said_by=2)
    ready.put("p")
    ready.flush()
    ready.leader(1, 1, said_by=3)
    assert ready.sends() == []
    ready.leader(1, 1, said_by=1)
    assert [send[0] for send in ready.sends()] == [1]


def test_not_leader_redirects_at_once(ready: Driver) -> None:
    ready.put("p")
    ready.flush()
    (before,) = ready.sends()
    ready.receive(1, wire.NOT_LEADER, before[2], [3, 4])
    (after,) = ready.sends()
    assert (after[0], after[3]) == (3, before[3])


def test_two_redirects_to_the_same_leader_send_each_frame_once(ready: Driver) -> None:
    for i in range(2):
        ready.put(i)
        ready.flush()
    first, second = ready.sends()
    ready.receive(1, wire.NOT_LEADER, first[2], [3, 4])
    ready.receive(1, wire.NOT_LEADER, second[2], [3, 4])
    assert [send[0] for send in ready.sends()] == [3, 3]


def test_not_leader_without_news_pauses_longer_each_time(ready: Driver) -> None:
    ready.put("p")
    ready.flush()
    times = []
    for _ in range(8):
        while not (sends := ready.sends()):
            ready.advance(1)
        times.append(ready.now // MS)
        ready.receive(1, wire.NOT_LEADER, sends[0][2], [0, 1])
    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert pauses == [10, 20, 40, 80, 160, 320, 320]


def test_busy_pauses_and_sends_the_same_bytes(ready: Driver) -> None:
    ready.put("p")
    ready.flush()
    (before,) = ready.sends()
    ready.receive(1, wire.BUSY, before[2], ["too much"])
    assert ready.sends() == []
    ready.advance(10)
    (after,) = ready.sends()
    assert after[3] == before[3]


def test_an_unknown_leader_is_reported_and_used_once_it_can_be_reached(ready: Driver) -> None:
    ready.leader(9, 7)
    ready.put("p")
    ready.flush()
    (send,) = ready.sends()
    ready.session.unsent(9, wire.pack_head(wire.WRITE, send[2]), ready.now)
    assert ready.session.strangers == {9}
    ready.session.add_replica(9, ready.now)
    assert [send[0] for send in ready.sends()] == [9]
    assert not ready.session.strangers


def test_a_leader_that_nobody_answers_for_is_searched_until_one_is_known(ready: Driver) -> None:
    assert not ready.session.searching
    ready.put("p")
    ready.flush()
    ready.advance(1_000)
    assert ready.session.searching
    ready.leader(2, 7)
    assert not ready.session.searching


def test_nodes_that_are_gone_are_not_asked_any_more(ready: Driver) -> None:
    assert ready.session.keep_replicas({2, 9}) == [1, 3]
    assert ready.session.replicas == {2}
    ready.hellos()
    ready.put("p")
    ready.flush()
    ready.advance(1_000)
    assert set(ready.hellos()) == {2}


# -- silence ----------------------------------------------------------------------------------------------------------
def test_a_silent_leader_is_asked_again_with_growing_pauses_and_the_others_who_leads(ready: Driver) -> None:
    ready.hellos()
    ready.put("p", timeout_ms=60_000)
    ready.flush()
    start = ready.now
    ready.sends()
    times, hellos, bodies = [], 0, set()
    for _ in range(2000):
        ready.advance(10)
        taken, ready.session.sends = ready.session.sends, []
        for replica, head, body in taken:
            if wire.HEAD.unpack(head)[0] == wire.HELLO:
                hellos += 1
            else:
                assert replica == 1
                times.append((ready.now - start) // MS)
                bodies.add(body)
    assert times[:6] == [250, 750, 1750, 3750, 5750, 7750]
    assert len(times) <= 15
    assert len(bodies) == 1
    assert 3 <= hellos <= 60


def test_attempts_remembered_are_bounded(ready: Driver) -> None:
    ready.put("p", timeout_ms=600_000)
    ready.get("g", timeout_ms=600_000)
    ready.flush()
    for term in range(2, 60):
        ready.leader(term % 3 + 1, term)
    assert len(ready.session._attempts) <= 2 * 16
    ready.advance(600_000)
    outcomes = dict(ready.results())
    assert isinstance(outcomes["p"], Unknown)
    assert isinstance(outcomes["g"], Timeout)
    assert not ready.session._attempts


def test_eventual_reads_stay_with_one_node_and_leave_it_when_it_is_silent(driver: Driver) -> None:
    seen = []
    for _ in range(3):
        driver.get("g", wire.EVENTUAL)
        driver.flush()
        ((replica, _, request, _),) = driver.sends()
        seen.append(replica)
        driver.receive(replica, wire.RESULT, request, [None])
    assert len(set(seen)) == 1
    driver.get("g", wire.EVENTUAL)
    driver.flush()
    driver.sends()
    driver.advance(250)
    ((other, _, request, _),) = driver.sends()
    assert other != seen[0]
    driver.receive(other, wire.RESULT, request, [b"v"])
    driver.get("h", wire.EVENTUAL)
    driver.flush()
    assert driver.sends()[0][0] == other


def test_eventual_reads_leave_a_node_that_cannot_be_reached(driver: Driver) -> None:
    driver.get("g", wire.EVENTUAL)
    driver.flush()
    ((first, kind, request, _),) = driver.sends()
    driver.session.unsent(first, wire.pack_head(kind, request), driver.now)
    driver.advance(10)
    ((second, *_),) = driver.sends()
    assert second != first
    driver.session.unreachable(second, driver.now)
    ((third, _, request, _),) = driver.sends()
    assert third not in (first, second)
    driver.receive(third, wire.RESULT, request, [None])
    assert driver.results() == [("g", None)]


def test_a_bounded_read_that_a_follower_cannot_serve_goes_to_the_leader(driver: Driver) -> None:
    driver.get("g", wire.BOUNDED, 50)
    driver.flush()
    ((replica, _, request, _),) = driver.sends()
    leader = replica % 3 + 1
    driver.receive(replica, wire.NOT_LEADER, request, [leader, 3])
    ((target, _, _, body),) = driver.sends()
    assert target == leader
    assert wire.decode(body)[:2] == [wire.BOUNDED, 50]


def test_unsent_requests_go_as_soon_as_the_leader_is_connected(ready: Driver) -> None:
    ready.put("p")
    ready.flush()
    (send,) = ready.sends()
    ready.session.unsent(1, wire.pack_head(wire.WRITE, send[2]), ready.now)
    ready.session.connected(2, ready.now)
    assert ready.sends() == []
    ready.session.connected(1, ready.now)
    (again,) = ready.sends()
    assert again[3] == send[3]
    ready.session.connected(1, ready.now)
    assert ready.sends() == [], "nothing is sent twice"
