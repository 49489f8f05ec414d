"""Closed and open loops: N asyncio callers in this one process, each with one request outstanding.

    closed    a caller sends its next request when the last was answered
    open      request i is meant for start + i / rate; whichever caller is free takes it, late or not

A run is warm-up, then the measured window. A request belongs to the window if it was sent (open loop: meant to be sent)
within it; the run waits for the last of these, so one that hangs at the end is measured and not dropped.

The hot path is `_closed_caller`: two clock readings and one append a request.
"""

from __future__ import annotations

import asyncio
import random
import selectors
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from zcluster.bench.recorder import Recorder
from zcluster.bench.result import Progress, Result, conditions
from zcluster.errors import Error, InvalidInput

CALLERS_MAX: Final = 100_000
PAUSE_AFTER_ERROR_S: Final = 0.01
_TICK_S: Final = 0.05
_PROGRESS_NS: Final = 1_000_000_000
_PROGRESS_SAMPLES: Final = 1000

Operation = Callable[[], Awaitable[object]]
OnProgress = Callable[[Progress], None]


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How hard, and for how long. `rate` (requests a second) makes the loop an open one. `gap_ms`: report stretches
    without a success at least so long; 0 reports none.
    """

    callers: int = 16
    rate: float | None = None
    duration_s: float = 10.0
    warmup_s: float = 1.0
    gap_ms: float = 0.0

    def check(self) -> Load:
        if not 1 <= self.callers <= CALLERS_MAX:
            raise InvalidInput(f"callers must be from 1 to {CALLERS_MAX}, not {self.callers}")
        if self.rate is not None and not 0 < self.rate <= 10_000_000:
            raise InvalidInput(f"rate must be above 0 and at most 10,000,000 requests a second, not {self.rate}")
        if not 0 < self.duration_s <= 86_400 or not 0 <= self.warmup_s <= 86_400:
            raise InvalidInput("duration must be above 0 and warm-up not below 0, both at most a day")
        return self


class _Run:
    """The state that all callers of one run share; one event loop, so no locks."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.started = time.perf_counter_ns()
        self.begin = self.started + int(load.warmup_s * 1e9)
        self.end = self.begin + int(load.duration_s * 1e9)
        self.latency = Recorder()
        self.service = Recorder() if load.rate is not None else None
        self.errors: Counter[str] = Counter()
        self.gap_ns = int(load.gap_ms * 1e6) or 1 << 62
        self.gaps: list[tuple[int, int]] = []
        self.last_success = self.started
        self.next_slot = 0
        self.processor_s = time.process_time()
        self._reported = self.begin
        self._reported_count = 0

    def failed(self, error: Error, counts: bool) -> None:
        if counts:
            self.errors[type(error).__name__] += 1

    def succeeded(self, now: int) -> None:
        if now - self.last_success >= self.gap_ns:
            self.gaps.append((self.last_success, now))
        self.last_success = now

    def progress(self, now: int) -> Progress:
        """The stretch since the last call. Percentiles from a sample: sorting everything would stall the load."""
        count = len(self.latency) - self._reported_count
        recent = self.latency.samples[-count:] if count else self.latency.samples[:0]
        sample = sorted(recent[:: max(1, len(recent) // _PROGRESS_SAMPLES)]) or [0]
        seconds = max(1, now - self._reported) / 1e9
        self._reported, self._reported_count = now, len(self.latency)
        return Progress(
            elapsed_s=(now - self.begin) / 1e9,
            operations=len(self.latency),
            throughput_per_s=count / seconds,
            p50_us=sample[len(sample) // 2] / 1000,
            p99_us=sample[int(len(sample) * 0.99)] / 1000,
            max_us=max(recent, default=0) / 1000,
            errors=self.errors.total(),
        )

    def progress_due(self, now: int) -> bool:
        return now - self._reported >= _PROGRESS_NS

    def result(self, kind: str, settings: dict[str, Any]) -> Result:
        now = time.perf_counter_ns()
        operations = len(self.latency)
        unsent = self._count_unsent()
        if now - self.last_success >= self.gap_ns:
            self.gaps.append((self.last_success, now))  # not over yet: it lasted at least so long
        seconds = max(1, now - self.begin) / 1e9
        return Result(
            kind=kind,
            mode="closed" if self.load.rate is None else "open",
            callers=self.load.callers,
            seconds=seconds,
            operations=operations,
            errors=self.errors.total(),
            latency=self.latency.summary(),
            settings=settings,
            service=self.service.summary() if self.service is not None else None,
            unsent=unsent,
            generator_cpu=(time.process_time() - self.processor_s) / seconds,
            errors_by_type=dict(self.errors),
            gaps=tuple(self.gaps),
        )

    def slot_time(self, slot: int) -> int:
        assert self.load.rate is not None
        return self.started + int(slot * 1e9 / self.load.rate)

    def _count_unsent(self) -> int:
        """Requests that were due before the end and never sent; each has waited from its time to the end."""
        if self.load.rate is None:
            return 0
        slot, unsent = self.next_slot, 0
        while (meant := self.slot_time(slot)) < self.end:
            if meant >= self.begin:
                self.latency.add(self.end - meant)
                self.latency.bound(1)
                unsent += 1
            slot += 1
        return unsent


async def _closed_caller(run: _Run, operation: Operation) -> None:
    now, add, begin, end, succeeded = time.perf_counter_ns, run.latency.add, run.begin, run.end, run.succeeded
    while (start := now()) < end:
        try:
            await operation()
        except Error as error:
            run.failed(error, start >= begin)
            await asyncio.sleep(PAUSE_AFTER_ERROR_S)
            continue
        done = now()
        succeeded(done)
        if start >= begin:
            add(done - start)


async def _open_caller(run: _Run, operation: Operation) -> None:
    now = time.perf_counter_ns
    service = run.service
    assert service is not None
    while now() < run.end:
        meant = run.slot_time(run.next_slot)
        if meant >= run.end:
            return
        run.next_slot += 1
        if (wait := meant - now()) > 0:
            await asyncio.sleep(wait / 1e9)
        start = now()
        try:
            await operation()
        except Error as error:
            run.failed(error, meant >= run.begin)
            continue
        done = now()
        run.succeeded(done)
        if meant >= run.begin:
            run.latency.add(done - meant)
            service.add(done - start)


async def _observe(run: _Run, on_progress: OnProgress | None) -> None:
    """Start the processor clock when the warm-up ends, bound the recorders, report progress; until cancelled."""
    await asyncio.sleep(max(0, run.begin - time.perf_counter_ns()) / 1e9)
    run.processor_s = time.process_time()
    while True:
        await asyncio.sleep(_TICK_S)
        run.latency.bound()
        if run.service is not None:
            run.service.bound()
        now = time.perf_counter_ns()
        if on_progress is not None and run.progress_due(now):
            on_progress(run.progress(now))


async def drive(
    kind: str, load: Load, operation: Operation, settings: dict[str, Any], on_progress: OnProgress | None = None
) -> Result:
    """Run `operation` under `load` in the running event loop.

    Only `zcluster.Error` counts as a failed request; anything else is a bug of the workload: it ends the run and is
    raised.
    """
    run = _Run(load.check())
    caller = _closed_caller if load.rate is None else _open_caller
    observer = asyncio.create_task(_observe(run, on_progress))
    callers = [asyncio.create_task(caller(run, operation)) for _ in range(load.callers)]
    try:
        await asyncio.gather(*callers)
        return run.result(kind, settings)
    finally:
        for task in (observer, *callers):
            task.cancel()
        await asyncio.gather(observer, *callers, return_exceptions=True)


def run_blocking(
    kind: str, load: Load, operation: Callable[[], object], settings: dict[str, Any], on_progress: OnProgress | None
) -> Result:
    """A closed loop with one caller in the calling thread, over the blocking flavour of the API."""
    run = _Run(load.check())
    now = time.perf_counter_ns
    processor_started = False
    while (start := now()) < run.end:
        if not processor_started and start >= run.begin:
            processor_started, run.processor_s = True, time.process_time()
        try:
            operation()
        except Error as error:
            run.failed(error, start >= run.begin)
            time.sleep(PAUSE_AFTER_ERROR_S)
            continue
        done = now()
        run.succeeded(done)
        if start >= run.begin:
            run.latency.add(done - start)
            run.latency.bound(1)
            if on_progress is not None and run.progress_due(done):
                on_progress(run.progress(done))
    return run.result(kind, settings)


def _event_loop() -> asyncio.AbstractEventLoop:
    """`select` waits with microseconds; `epoll` rounds up to whole milliseconds, which an open loop would measure."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def run_load(
    kind: str, load: Load, operation: Operation, settings: dict[str, Any], on_progress: OnProgress | None = None
) -> Result:
    """`drive` in an event loop of its own."""
    with asyncio.Runner(loop_factory=_event_loop if load.rate is not None else None) as runner:
        return runner.run(drive(kind, load, operation, settings, on_progress))


class KvWork(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the key-value store: random keys of `key_space`, one random value, all from `seed`."""

    read_ratio: float = 0.0
    value_size: int = 256
    key_space: int = 10_000
    consistency: str = "linearizable"
    seed: int = 1

    def check(self) -> KvWork:
        if not 0 <= self.read_ratio <= 1:
            raise InvalidInput(f"read ratio must be from 0 to 1, not {self.read_ratio}")
        if not 0 <= self.value_size <= 16 << 20:
            raise InvalidInput(f"value size must be from 0 to 16 MiB, not {self.value_size}")
        if not 1 <= self.key_space <= 10_000_000:
            raise InvalidInput(f"key space must be from 1 to 10,000,000, not {self.key_space}")
        return self

    def plan(self) -> Iterator[tuple[str, bool]]:
        """An endless sequence of (key, is a read), the same for the same seed."""
        generator = random.Random(self.seed)
        length = max(self.key_space, 10_000)
        return cycle(
            [
                (f"bench/{generator.randrange(self.key_space):08d}", generator.random() < self.read_ratio)
                for _ in range(length)
            ]
        )

    def value(self) -> bytes:
        return random.Random(self.seed).randbytes(self.value_size)


class AsyncKv(Protocol):
    """What the workload needs of `client.aio.kv`."""

    def put(self, key: str, value: bytes, /) -> Awaitable[object]: ...

    def get(self, key: str, /, *, consistency: str) -> Awaitable[object]: ...


def kv_operation(kv: AsyncKv, work: KvWork) -> Operation:
    """One request of the workload, as a function to be called again and again."""
    value = work.value()
    following = work.plan().__next__
    put, get, consistency = kv.put, kv.get, work.consistency

    def write() -> Awaitable[object]:
        return put(following()[0], value)

    def read_or_write() -> Awaitable[object]:
        key, is_read = following()
        return get(key, consistency=consistency) if is_read else put(key, value)

    return write if work.read_ratio == 0 else read_or_write


def _settings(client: Any, load: Load, **work: Any) -> dict[str, Any]:
    cluster = getattr(getattr(client, "spec", None), "settings", None)
    known = msgspec.to_builtins(cluster) if cluster is not None else {}
    names = ("engine", "nodes", "workers", "durability", "balance", "transport")
    return (
        {name: known[name] for name in names if name in known}
        | {"rate": load.rate, "duration_s": load.duration_s, "warmup_s": load.warmup_s}
        | work
        | conditions()
    )


def _check_fits(client: Any, work: KvWork) -> None:
    """Raises: InvalidInput, where every single write would be refused for its size."""
    limit = getattr(getattr(getattr(client, "spec", None), "settings", None), "value_bytes_max", None)
    if limit is not None and work.value_size > limit:
        raise InvalidInput(f"value size {work.value_size}: value_bytes_max of this cluster is {limit}")


def _connect(cluster: Any) -> tuple[Any, bool]:
    """(client, is ours to close) for a client, a cluster's name or its directory."""
    if not isinstance(cluster, str | Path):
        return cluster, False
    from zcluster.api import connect

    return connect(cluster), True


def run_kv(cluster: Any, load: Load, work: KvWork | None = None, on_progress: OnProgress | None = None) -> Result:
    """Load the key-value store of `cluster` (a client, a name or a directory) from this process.

    Raises: InvalidInput, and what connecting raises. Failed requests are counted, not raised.
    """
    work = (work or KvWork()).check()
    load.check()
    client, ours = _connect(cluster)
    try:
        settings = _settings(client, load, **msgspec.to_builtins(work))
        _check_fits(client, work)
        return run_load("kv", load, kv_operation(client.aio.kv, work), settings, on_progress)
    finally:
        if ours:
            client.close()


def noop() -> None:
    """The task of `run_tasks`: what is measured is everything around it."""


def run_tasks(cluster: Any, load: Load, on_progress: OnProgress | None = None) -> Result:
    """Load the task router with no-ops. One caller: round trips of the blocking `submit(...).result()`."""
    load.check()
    client, ours = _connect(cluster)
    try:
        settings = _settings(client, load, task="no-op")
        if load.callers == 1 and load.rate is None:
            return run_blocking("tasks", load, lambda: client.submit(noop).result(), settings, on_progress)
        submit = client.aio.submit
        return run_load("tasks", load, lambda: submit(noop), settings, on_progress)
    finally:
        if ours:
            client.close()
