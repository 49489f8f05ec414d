"""The event file: lines of many writers, whatever is between them, and what people read."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zcluster.events import FILE, QUEUE_MAX, EventLog, Teller, encode, new_event, parse, read, record, sentence


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path


def test_an_event_comes_back_with_both_clocks_and_its_facts(directory: Path) -> None:
    before = time.monotonic_ns()
    record(directory, "rolled_out", "n1", version="1.2", nothing=None)
    (event,) = read(directory)
    assert before <= event.pop("monotonic_ns") <= time.monotonic_ns()
    assert abs(event.pop("time_ms") - time.time() * 1000) < 60_000
    assert event == {"event": "rolled_out", "node": "n1", "version": "1.2"}


def test_whatever_is_no_event_is_passed_over(directory: Path) -> None:
    good = encode(new_event("good", "n1", {}))
    lines = [
        b"",
        b"\x00\xff",
        b"[1]",
        b"17",
        b'{"event": 3, "time_ms": 1}',
        b'{"event": "no time"}',
        b'{"time_ms":',
        good,
    ]
    (directory / FILE).write_bytes(b"\n".join(lines))
    assert [event["event"] for event in read(directory)] == ["good"]


def test_a_line_after_one_that_was_cut_short_is_not_lost(directory: Path) -> None:
    first, second, third = (encode(new_event(name, None, {"text": "x" * 20})) for name in ("first", "second", "third"))
    for cut in range(len(second)):
        (directory / FILE).write_bytes(first + second[:cut] + third)
        assert [event["event"] for event in read(directory)] == ["first", "third"], cut


def test_the_rotated_half_comes_first_and_only_the_last_ones_are_given(directory: Path) -> None:
    record(directory, "old")
    (directory / FILE).rename(directory / (FILE + ".1"))
    record(directory, "new")
    assert [event["event"] for event in read(directory)] == ["old", "new"]
    assert [event["event"] for event in read(directory, 1)] == ["new"]
    assert read(directory, 0) == []
    assert read(directory / "elsewhere") == []


def test_lines_of_many_processes_do_not_mix(directory: Path) -> None:
    program = (
        "import sys; from zcluster.events import record\nfor i in range(200): record(sys.argv[1], 'e', text='x' * 500)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(directory)]) for _ in range(4)]
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    assert len(read(directory)) == 800


def test_a_log_that_serves_writes_in_order_and_all_of_it_when_closed(directory: Path) -> None:
    log = EventLog(directory)
    for number in range(500):
        log.record("count", "n1", number=number)
    log.close(10)
    assert [event["number"] for event in read(directory)] == list(range(500))


def test_a_full_disk_is_silent(directory: Path) -> None:
    (directory / FILE).symlink_to("/dev/full")
    record(directory, "lost")
    log = EventLog(directory)
    log.record("lost")
    log.close(10)
    record(directory / "elsewhere", "lost")


def test_a_file_that_blocks_for_ever_delays_nobody(directory: Path) -> None:
    os.mkfifo(directory / FILE)  # to open it waits for a reader, and there is none
    log = EventLog(directory)
    began = time.monotonic()
    for _ in range(3 * QUEUE_MAX):
        log.record("stuck")
    log.close(0.0)
    assert time.monotonic() - began < 2
    assert len(log._lines) <= QUEUE_MAX
    reader = os.open(directory / FILE, os.O_RDONLY)  # lets the thread go
    os.close(reader)


def test_people_read_sentences() -> None:
    facts = {"term": 2, "previous": "n1", "since_exit_ms": 4.6, "without_service_ms": 31.1}
    told = sentence(new_event("leader", "n2", facts))
    assert told == "leads term 2 after n1, which exited 4.6 ms before; at most 31.1 ms without service"
    assert sentence(new_event("leader", "n1", {"term": 1})) == "leads term 1"
    assert sentence(new_event("killed", "n1", {"signal": "SIGKILL"})) == "fault: SIGKILL sent"
    members = {"voters": ["n1", "n2"], "learners": ["n3"]}
    assert sentence(new_event("membership", "n1", members)) == "members: n1 n2; learners: n3"


def test_unknown_events_and_odd_facts_are_told_as_they_are() -> None:
    assert sentence(new_event("brand_new", "n1", {"size": 3, "of": ["a", "b"]})) == "brand new, size 3, of a b"
    assert sentence(new_event("leader", "n1", {"previous": "n2"})) == "leader, previous n2"
    assert sentence(new_event("checkpoint", "n1", {"index": "many", "bytes": 1})) == "checkpoint, index many, bytes 1"


def test_a_line_shows_who_what_and_how_long_after_the_one_before() -> None:
    teller = Teller()
    first = {"time_ms": 1_700_000_000_123, "monotonic_ns": 5_000_000_000, "event": "paused", "process": "n1.w1"}
    assert teller.line(first).split()[2:] == ["n1.w1", "fault:", "paused"]
    line = teller.line({**first, "monotonic_ns": 5_250_000_000, "event": "down", "process": None})
    assert "+0.250" in line
    assert line.endswith("the cluster is going down")
    assert "+" not in teller.line({**first, "monotonic_ns": 1}), "another start of the machine"


def test_lines_of_older_versions_are_read() -> None:
    event = parse('{"time_ms":1,"event":"started","process":"n1","pid":7}')
    assert event is not None
    assert sentence(event) == "started, pid 7"
