"""bench: options become a load, results a table or one object, a missed objective exit code 8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import FakeCluster, Run
from zcluster.bench import Summary
from zcluster.bench.result import Progress, Result
from zcluster.bench.workload import KvWork, Load

SETTINGS = {
    "engine": "raft",
    "nodes": 3,
    "workers": 1,
    "durability": "fsync",
    "transport": "ipc",
    "balance": "round_robin",
    "rate": None,
    "warmup_s": 1.0,
    "value_size": 256,
    "read_ratio": 0.0,
    "key_space": 10_000,
    "cores": 2,
    "python": "3.11",
    "libzmq": "4.3",
}


class FakeBench:
    """Stands for `run_kv` and `run_tasks`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.operations = 1000

    def kv(self, client: Any, load: Load, work: KvWork, on_progress: Any) -> Result:
        self.calls.append(("kv", load, work))
        return self._result("kv", load, on_progress)

    def tasks(self, client: Any, load: Load, on_progress: Any) -> Result:
        self.calls.append(("tasks", load))
        return self._result("tasks", load, on_progress)

    def _result(self, kind: str, load: Load, on_progress: Any) -> Result:
        on_progress(Progress(1.0, 500, 500.0, 2100.0, 5000.0, 11_000.0, 0))
        values = dict.fromkeys(Summary.__struct_fields__, 2100.0)
        return Result(
            kind=kind,
            mode="closed",
            callers=load.callers,
            seconds=2.0,
            operations=self.operations,
            errors=0,
            latency=Summary(**values),  # type: ignore[arg-type]
            settings=SETTINGS,
        )


@pytest.fixture
def bench(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> FakeBench:
    fake = FakeBench()
    monkeypatch.setattr("zcluster.bench.run_kv", fake.kv)
    monkeypatch.setattr("zcluster.bench.run_tasks", fake.tasks)
    return fake


def test_options_become_the_load_and_the_work(run: Run, bench: FakeBench) -> None:
    arguments = ["--callers", "64", "--rate", "500", "--duration", "2s", "--warmup", "500ms"]
    assert run("bench", "kv", *arguments, "--read-ratio", "0.5", "--value-size", "16").exit_code == 0
    load = Load(callers=64, rate=500.0, duration_s=2.0, warmup_s=0.5)
    assert bench.calls == [("kv", load, KvWork(read_ratio=0.5, value_size=16))]
    assert run("bench", "tasks").exit_code == 0
    assert bench.calls[1] == ("tasks", Load())


def test_the_table_goes_to_standard_output_and_progress_elsewhere(run: Run, bench: FakeBench) -> None:
    done = run("bench", "kv")
    assert done.stdout.startswith("raft n=3 · durability fsync")
    assert "throughput 500/s" in done.stdout
    assert "500/s  p50 2.10" in done.stderr


@pytest.mark.parametrize("kind", ["kv", "tasks"])
def test_as_json_one_object_with_what_programs_rely_on(run: Run, bench: FakeBench, kind: str) -> None:
    found = json.loads(run("bench", kind, "--json", "-o", "out.json").stdout)
    promised = {
        "kind",
        "mode",
        "callers",
        "seconds",
        "operations",
        "errors",
        "throughput_per_s",
        "latency_us",
        "settings",
    }
    assert promised <= set(found)
    assert {"p50", "p90", "p99", "p999", "max"} <= set(found["latency_us"])
    assert (found["version"], found["kind"]) == (1, kind)
    assert json.loads(Path("out.json").read_text()) == found


def test_a_missed_objective_is_8(run: Run, bench: FakeBench) -> None:
    assert run("bench", "kv", "--slo", "p99=20ms").exit_code == 0
    done = run("bench", "kv", "--slo", "p99=20ms,p50=1ms")
    assert done.exit_code == 8
    assert done.stderr.endswith("error: missed p50=1ms: reached 2.10 ms\n")
    asked = run("bench", "kv", "--slo", "p50=1ms", "--json")
    assert asked.exit_code == 8
    assert json.loads(asked.stdout)["slo"] == {"objectives": ["p50=1ms"], "missed": ["p50=1ms: reached 2.10 ms"]}


def test_measuring_nothing_is_8(run: Run, bench: FakeBench) -> None:
    bench.operations = 0
    assert run("bench", "kv").exit_code == 8


@pytest.mark.parametrize(
    "arguments",
    ["--slo p99", "--callers 0", "--rate -1", "--read-ratio 2", "--value-size -1", "--duration 0", "-o absent/o.json"],
)
def test_wrong_options_are_2_before_anything_runs(run: Run, bench: FakeBench, arguments: str) -> None:
    assert run("bench", "kv", *arguments.split()).exit_code == 2
    assert bench.calls == []
