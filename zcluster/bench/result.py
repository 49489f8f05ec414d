"""What one run measured, and everything that has to be known to judge it. Data and arithmetic."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import zmq

import zcluster
from zcluster.bench.recorder import Summary


class Progress(msgspec.Struct, frozen=True):
    """One line of a running measurement: the last second or so. `sampled` percentiles, in microseconds."""

    elapsed_s: float
    operations: int
    throughput_per_s: float
    p50_us: float
    p99_us: float
    max_us: float
    errors: int


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `latency` is what a user waits: in an open loop from the intended send time (response time); `service`
    is from the actual send, and only the open loop has it. `unsent`: requests of an open loop that were due but never
    sent, because the system did not keep up; they count in `latency` with the time they had waited at the end.
    `gaps`: (begin, end) of stretches without any success that were at least as long as asked for, CLOCK_MONOTONIC ns.
    """

    kind: str
    mode: str
    callers: int
    seconds: float
    operations: int
    errors: int
    latency: Summary
    settings: dict[str, Any]
    service: Summary | None = None
    unsent: int = 0
    generator_cpu: float = 0.0
    errors_by_type: dict[str, int] = {}
    gaps: tuple[tuple[int, int], ...] = ()

    @property
    def throughput_per_s(self) -> float:
        return self.operations / self.seconds if self.seconds > 0 else 0.0


def conditions() -> dict[str, Any]:
    """The machine and the versions a figure depends on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "libzmq": zmq.zmq_version(),
        "zcluster": zcluster.__version__,
    }


UNDER_WAY_NS: Final = 100_000_000
"""Answers that were already on their way at a fault have arrived by then."""


def outage_ms(gaps: Sequence[tuple[int, int]], fault_ns: int) -> float:
    """How long after `fault_ns` there was service again: the end of the longest gap that the fault can have made.

    Not the first gap, because answers that were under way arrive just after the fault; and none that begins later than
    those, because a short outage must not be confused with some other stall of the run.

    >>> outage_ms([(0, 9_000_000), (10_000_000, 12_000_000), (12_000_000, 90_000_000)], fault_ns=11_000_000)
    79.0
    >>> outage_ms([(1_000_000, 15_000_000), (500_000_000, 530_000_000)], fault_ns=1_000_000)
    14.0
    """
    after = [gap for gap in gaps if gap[1] > fault_ns and gap[0] <= fault_ns + UNDER_WAY_NS]
    if not after:
        return 0.0
    longest = max(after, key=lambda gap: gap[1] - gap[0])
    return (longest[1] - fault_ns) / 1e6
