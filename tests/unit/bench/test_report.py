"""The text, the JSON object that programs rely on, and objectives."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.bench.fakes import FakeClient
from zcluster.bench.recorder import Summary
from zcluster.bench.report import check_objectives, header, parse_objective, progress_line, table, to_json
from zcluster.bench.result import Progress, Result, outage_ms
from zcluster.bench.workload import Load, run_kv, run_tasks
from zcluster.errors import InvalidInput

SETTINGS: dict[str, Any] = {
    "engine": "raft",
    "nodes": 3,
    "workers": 1,
    "durability": "fsync",
    "balance": "round_robin",
    "transport": "ipc",
    "rate": None,
    "duration_s": 5.0,
    "warmup_s": 1.0,
    "read_ratio": 0.0,
    "value_size": 256,
    "key_space": 10_000,
    "cores": 2,
    "python": "3.11.7",
    "libzmq": "4.3.5",
}


def result(**changes: Any) -> Result:
    values: dict[str, Any] = {
        "kind": "kv",
        "mode": "closed",
        "callers": 64,
        "seconds": 5.0,
        "operations": 140_000,
        "errors": 0,
        "latency": Summary(140_000, 2200.0, 2100.0, 2900.0, 5100.0, 9800.0, 14_200.0),
        "settings": SETTINGS,
        "generator_cpu": 0.38,
    }
    return Result(**(values | changes))


def test_json_has_exactly_the_promised_fields_and_types() -> None:
    encoded = json.loads(json.dumps(to_json(run_kv(FakeClient(), Load(callers=2, duration_s=0.03, warmup_s=0.0)))))
    promised = {
        "kind": str,
        "mode": str,
        "callers": int,
        "seconds": float,
        "operations": int,
        "errors": int,
        "throughput_per_s": float,
        "latency_us": dict,
        "settings": dict,
    }
    assert {name: type(encoded[name]) for name in promised} == promised
    assert set(encoded["latency_us"]) >= {"p50", "p90", "p99", "p999", "max"}
    assert encoded["mode"] == "closed"
    assert {"cores", "python", "libzmq", "value_size", "read_ratio", "rate"} <= set(encoded["settings"])


def test_json_of_an_open_loop_has_both_times() -> None:
    load = Load(callers=2, rate=200, duration_s=0.05, warmup_s=0.0)
    encoded = to_json(run_kv(FakeClient(), load))
    assert encoded["mode"] == "open"
    assert set(encoded["service_us"]) == set(encoded["latency_us"])
    assert to_json(run_tasks(FakeClient(), load))["kind"] == "tasks"


def test_header_has_every_setting() -> None:
    assert header(result()) == (
        "raft n=3 · durability fsync · ipc · 256 B values · 0% reads · 10,000 keys · CLOSED loop, 64 callers"
        " · warm-up 1s excluded · 2 cores · Python 3.11.7 · libzmq 4.3.5"
    )
    tasks = header(result(kind="tasks", callers=1, settings=SETTINGS | {"rate": 1000.0, "task": "no-op"}))
    assert "no-op tasks · 3 workers · round_robin · OPEN loop at 1,000/s, 1 caller ·" in tasks


def test_table_is_in_milliseconds() -> None:
    assert table(result()).splitlines() == [
        "                p50      p90      p99    p99.9      max   ms",
        "latency        2.10     2.90     5.10     9.80     14.2",
        "throughput 28,000/s · errors 0 · load generator CPU 38%",
    ]


def test_table_of_an_overloaded_open_loop_says_so() -> None:
    text = table(result(mode="open", service=Summary(max=123_456.0), unsent=7, errors=2, errors_by_type={"Unknown": 2}))
    assert "response" in text
    assert "service " in text
    assert "123\n" in text
    assert "did not keep up: 7 requests were due and never sent" in text
    assert "errors: Unknown 2" in text


def test_progress_line() -> None:
    assert progress_line(Progress(5.0, 28_001, 28_001.2, 2100, 5000, 11_000, 0)) == (
        "  5.0s    28,001/s  p50 2.10  p99 5.00  max 11.0 ms  errors 0"
    )


@pytest.mark.parametrize(
    ("text", "missed"),
    [("p99=20ms", False), ("p99=5.1ms", False), ("p99=5ms", True), ("p99.9=1s", False), ("max=14000us", True)],
)
def test_objectives_are_judged(text: str, missed: bool) -> None:
    assert bool(check_objectives(result(), [parse_objective(text)])) is missed


def test_a_missed_objective_names_what_was_reached() -> None:
    assert check_objectives(result(), [parse_objective("p99=2ms")]) == ["p99=2ms: reached 5.10 ms"]


def test_nothing_measured_misses_every_objective() -> None:
    assert check_objectives(result(operations=0), [parse_objective("p99=1s")]) == ["p99=1s: nothing was measured"]


@pytest.mark.parametrize("text", ["", "p99", "p99=20", "p98=2ms", "p99=-2ms", "99=2ms", "p99=2m", "p99<2ms"])
def test_objectives_that_say_nothing_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"write e\.g\. p99=20ms"):
        parse_objective(text)


def test_an_outage_ends_with_the_longest_gap_after_the_fault() -> None:
    ms = 1_000_000
    gaps = [(0, 50 * ms), (98 * ms, 104 * ms), (105 * ms, 205 * ms), (300 * ms, 320 * ms)]
    assert outage_ms(gaps, fault_ns=100 * ms) == 105.0
    assert outage_ms(gaps[:1], fault_ns=100 * ms) == 0.0
    assert outage_ms([], fault_ns=100 * ms) == 0.0
