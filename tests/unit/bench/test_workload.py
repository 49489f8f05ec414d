"""The loops against a client that answers at once: what is asked, what is counted, what is measured from when."""

from __future__ import annotations

import asyncio
import itertools
import time
from types import SimpleNamespace

import pytest

from tests.unit.bench.fakes import FakeClient
from zcluster.bench.result import Progress
from zcluster.bench.workload import KvWork, Load, drive, run_kv, run_tasks
from zcluster.config import Settings
from zcluster.errors import InvalidInput, Unknown

SHORT = Load(callers=4, duration_s=0.05, warmup_s=0.01)


def test_closed_loop_keeps_every_caller_busy_and_counts_the_window_only() -> None:
    client = FakeClient()
    result = run_kv(client, SHORT, KvWork(value_size=100, key_space=50))
    kv = client.aio.kv
    assert kv.outstanding_max == 4
    assert result.mode == "closed"
    assert result.kind == "kv"
    assert 0 < result.operations < len(kv.puts)
    assert result.operations == result.latency.count
    assert result.errors == 0
    assert result.seconds >= 0.05
    assert result.service is None
    assert 0 < result.latency.p50 <= result.latency.p99 <= result.latency.max
    assert {len(value) for _, value in kv.puts} == {100}
    assert not kv.gets
    assert not client.closed


def test_the_same_seed_asks_the_same_and_another_seed_does_not() -> None:
    def asked(seed: int) -> list[tuple[str, bool]]:
        return list(itertools.islice(KvWork(seed=seed, read_ratio=0.3).plan(), 100))

    assert asked(7) == asked(7)
    assert asked(7) != asked(8)
    assert KvWork(seed=7).value() == KvWork(seed=7).value()


def test_read_ratio_and_consistency_reach_the_client() -> None:
    client = FakeClient()
    run_kv(client, SHORT, KvWork(read_ratio=0.5, consistency="lease", key_space=10))
    kv = client.aio.kv
    share = len(kv.gets) / (len(kv.gets) + len(kv.puts))
    assert 0.3 < share < 0.7
    assert {consistency for _, consistency in kv.gets} == {"lease"}
    assert {key for key, _ in kv.puts} <= {f"bench/{i:08d}" for i in range(10)}


def test_failed_requests_are_counted_by_type_and_do_not_end_the_run() -> None:
    client = FakeClient()
    client.aio.kv.fail_every = 3
    result = run_kv(client, SHORT)
    assert result.errors > 0
    assert result.errors_by_type == {"Unknown": result.errors}
    assert result.operations > 0


def test_an_error_that_is_no_clusters_error_ends_the_run() -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    async def run() -> None:
        await drive("kv", SHORT, broken, {})

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run())


def test_a_request_that_hangs_at_the_end_is_measured_not_dropped() -> None:
    async def run() -> float:
        client = FakeClient()
        kv = client.aio.kv
        kv.hang_on = 1
        load = Load(callers=1, duration_s=0.02, warmup_s=0)
        task = asyncio.create_task(drive("kv", load, lambda: kv.put("k", b"v"), {}))
        while not kv.outstanding:
            await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.06, kv.release.set)
        result = await task
        assert result.operations >= 1
        return result.latency.max

    assert asyncio.run(run()) >= 50_000


def test_open_loop_counts_latency_from_the_intended_time() -> None:
    async def run() -> None:
        client = FakeClient()
        kv = client.aio.kv
        kv.hang_on = 1
        load = Load(callers=1, rate=1000, duration_s=0.06, warmup_s=0)
        task = asyncio.create_task(drive("kv", load, lambda: kv.put("k", b"v"), {}))
        while not kv.outstanding:
            await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.05, kv.release.set)
        result = await task
        assert result.service is not None
        # One stall of 50 ms in a run of 60 ms: most requests were meant to be sent during it and waited for it.
        assert result.latency.p50 >= 15_000
        assert result.latency.p50 > result.service.p50
        assert result.latency.max >= 45_000

    asyncio.run(run())


def test_open_loop_sends_at_the_rate() -> None:
    client = FakeClient()
    result = run_kv(client, Load(callers=8, rate=500, duration_s=0.2, warmup_s=0.02))
    assert result.mode == "open"
    assert result.operations + result.unsent == 100
    assert result.operations > 0
    assert len(client.aio.kv.puts) + result.unsent == 110


def test_requests_that_were_due_and_never_sent_count_with_their_wait() -> None:
    async def run() -> None:
        client = FakeClient()
        kv = client.aio.kv
        kv.hang_on = 1
        load = Load(callers=1, rate=1000, duration_s=0.05, warmup_s=0)
        task = asyncio.create_task(drive("kv", load, lambda: kv.put("k", b"v"), {}))
        while not kv.outstanding:
            await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.08, kv.release.set)
        result = await task
        assert (result.operations, result.unsent) == (1, 49)
        assert result.latency.count == 50
        assert 20_000 < result.latency.p50 < 30_000
        assert result.throughput_per_s < 20

    asyncio.run(run())


def test_gaps_without_any_success_are_reported_with_their_times() -> None:
    async def run() -> None:
        client = FakeClient()
        kv = client.aio.kv
        kv.hang_on = 3
        load = Load(callers=2, duration_s=0.02, warmup_s=0, gap_ms=20)
        before = time.perf_counter_ns()
        task = asyncio.create_task(drive("kv", load, lambda: kv.put("k", b"v"), {}))
        while len(kv.puts) < 3:
            await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.06, kv.release.set)
        result = await task
        begin, end = max(result.gaps, key=lambda gap: gap[1] - gap[0])
        assert before < begin < end < time.perf_counter_ns()
        assert end - begin >= 50_000_000

    asyncio.run(run())


def test_a_gap_that_is_not_over_at_the_end_is_reported_too() -> None:
    async def failing() -> None:
        raise Unknown("planted")

    async def run() -> None:
        load = Load(callers=1, duration_s=0.03, warmup_s=0, gap_ms=20)
        result = await drive("kv", load, failing, {})
        assert (result.operations, len(result.gaps)) == (0, 1)

    asyncio.run(run())


def test_progress_is_reported_while_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zcluster.bench.workload._PROGRESS_NS", 20_000_000)
    monkeypatch.setattr("zcluster.bench.workload._TICK_S", 0.005)
    seen: list[Progress] = []
    result = run_kv(FakeClient(), Load(callers=2, duration_s=0.3, warmup_s=0), on_progress=seen.append)
    assert len(seen) >= 2
    assert [each.elapsed_s for each in seen] == sorted(each.elapsed_s for each in seen)
    assert 0 < seen[0].operations <= result.operations
    assert all(each.throughput_per_s > 0 and each.p50_us <= each.p99_us <= each.max_us for each in seen)


def test_tasks_with_one_caller_are_blocking_round_trips() -> None:
    client = FakeClient()
    result = run_tasks(client, Load(callers=1, duration_s=0.03, warmup_s=0.005))
    assert client.submitted > result.operations > 0
    assert client.aio.submitted == 0
    assert result.kind == "tasks"


def test_tasks_with_many_callers_go_through_the_async_client() -> None:
    client = FakeClient()
    result = run_tasks(client, SHORT)
    assert client.submitted == 0
    assert client.aio.submitted > result.operations > 0


def test_generator_share_of_the_processor_is_that_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = itertools.chain([100.0, 103.0], itertools.repeat(103.5))  # made, warm-up over, end
    monkeypatch.setattr(time, "process_time", lambda: next(readings))
    result = run_kv(FakeClient(), SHORT)
    assert result.generator_cpu == pytest.approx(0.5 / result.seconds)


@pytest.mark.parametrize(
    "load",
    [Load(callers=0), Load(rate=0), Load(rate=-1.0), Load(duration_s=0), Load(warmup_s=-1), Load(callers=10**9)],
)
def test_impossible_loads_are_refused(load: Load) -> None:
    with pytest.raises(InvalidInput):
        run_kv(FakeClient(), load)


@pytest.mark.parametrize("work", [KvWork(read_ratio=1.1), KvWork(value_size=-1), KvWork(key_space=0)])
def test_impossible_work_is_refused(work: KvWork) -> None:
    with pytest.raises(InvalidInput):
        run_kv(FakeClient(), SHORT, work)


def test_values_that_the_cluster_refuses_are_refused_before_the_run() -> None:
    class Bounded(FakeClient):
        spec = SimpleNamespace(settings=Settings(value_bytes_max=1024))

    with pytest.raises(InvalidInput, match="value_bytes_max of this cluster is 1024"):
        run_kv(Bounded(), SHORT, KvWork(value_size=1025))
