"""Many seeds over the processors of the machine. What comes out depends on the seeds alone, never on how many processes
took part or which was faster; only the wall-clock figures do."""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import count, islice
from typing import Final

import msgspec

from zcluster.sim.run import Case, Outcome, run_case

VIOLATIONS_MAX: Final = 20
"""Then no more seeds are begun: there is enough to look at."""


class Found(msgspec.Struct, frozen=True):
    """One violation."""

    seed: int
    property: str
    detail: str


class Report(msgspec.Struct, kw_only=True):
    """Of all seeds together. trace_hash: over the hashes of all runs, in the order of the seeds."""

    seeds: int = 0
    events: int = 0
    simulated_seconds: float = 0.0
    wall_seconds: float = 0.0
    operations: int = 0
    elections: int = 0
    changes: int = 0
    violations: list[Found] = []
    trace_hash: str = ""


def seeds_from(case: Case, number: int | None) -> Iterator[Case]:
    """`case` with its seed and the ones after it; None: without end."""
    cases = (msgspec.structs.replace(case, seed=seed) for seed in count(case.seed))
    return cases if number is None else islice(cases, number)


def run_many(
    cases: Iterator[Case],
    *,
    processes: int = 1,
    until: float = float("inf"),
    violations_max: int = VIOLATIONS_MAX,
    on_progress: Callable[[Report], None] | None = None,
) -> Report:
    """Run all cases, at most until `until` (by `time.monotonic`): then only what has begun is finished."""
    report = Report(violations=[])
    started = time.monotonic()
    hashes: dict[int, str] = {}

    def take(outcome: Outcome) -> None:
        hashes[outcome.seed] = outcome.trace_hash
        report.seeds += 1
        report.events += outcome.events
        report.simulated_seconds += outcome.simulated / 1e9
        report.operations += outcome.operations
        report.elections += outcome.elections
        report.changes += outcome.changes
        report.wall_seconds = time.monotonic() - started
        if outcome.property:
            report.violations.append(Found(outcome.seed, outcome.property, outcome.detail))
        if on_progress is not None:
            on_progress(report)

    def wanted() -> Case | None:
        enough = time.monotonic() >= until or len(report.violations) >= violations_max
        return None if enough else next(cases, None)

    if processes == 1:
        while (case := wanted()) is not None:
            take(run_case(case))
    else:
        _spread(processes, wanted, take)
    report.violations.sort(key=lambda found: found.seed)
    digest = hashlib.blake2b(digest_size=16)
    for seed in sorted(hashes):
        digest.update(f"{seed} {hashes[seed]}\n".encode())
    report.trace_hash = digest.hexdigest()
    return report


def _spread(processes: int, wanted: Callable[[], Case | None], take: Callable[[Outcome], None]) -> None:
    """A fresh interpreter each (`spawn`): nothing of this process may leak into a run."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_settle) as pool:
        pending: set[Future[Outcome]] = set()
        while True:
            while len(pending) < 2 * processes and (case := wanted()) is not None:
                pending.add(pool.submit(run_case, case))
            if not pending:
                return
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                take(future.result())


def _settle() -> None:
    """Runs make many small objects that live long: looking for garbage less often saves a tenth of the time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
