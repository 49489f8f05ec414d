"""A result as text for people, as JSON for programs, and judged against objectives such as `p99=20ms`."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from zcluster.bench.recorder import Summary
from zcluster.bench.result import Progress, Result
from zcluster.errors import InvalidInput

PERCENTILES: Final = ("p50", "p90", "p99", "p999", "max")
_TITLES: Final = {"p999": "p99.9"}
_UNITS_US: Final = {"us": 1.0, "µs": 1.0, "ms": 1e3, "s": 1e6}


class Objective(msgspec.Struct, frozen=True):
    """`percentile` of the latency must be at most `limit_us` microseconds."""

    percentile: str
    limit_us: float
    text: str


def parse_objective(text: str) -> Objective:
    """An objective from text such as `p99=20ms`, `p99.9=1s`, `max=500us`. Raises: InvalidInput.

    >>> parse_objective("p99.9=1.5ms")
    Objective(percentile='p999', limit_us=1500.0, text='p99.9=1.5ms')
    """
    match = re.fullmatch(r"(p\d+(?:\.\d+)?|max)=(\d+(?:\.\d+)?)(us|µs|ms|s)", text.strip())
    percentile = match[1].replace(".", "") if match else ""
    if match is None or percentile not in PERCENTILES:
        raise InvalidInput(f"objective {text!r}: write e.g. p99=20ms (p50, p90, p99, p99.9 or max; us, ms or s)")
    return Objective(percentile, float(match[2]) * _UNITS_US[match[3]], text.strip())


def check_objectives(result: Result, objectives: list[Objective]) -> list[str]:
    """One sentence for each objective that was missed. Nothing measured misses every objective."""
    missed = []
    for objective in objectives:
        reached = getattr(result.latency, objective.percentile)
        if not result.operations:
            missed.append(f"{objective.text}: nothing was measured")
        elif reached > objective.limit_us:
            missed.append(f"{objective.text}: reached {_ms(reached)} ms")
    return missed


def header(result: Result) -> str:
    """One line with every setting that a reader needs to judge the figures."""
    known = result.settings
    parts = []
    if "engine" in known:
        parts.append(f"{known['engine']} n={known['nodes']} · durability {known['durability']} · {known['transport']}")
    if result.kind == "kv":
        parts.append(f"{known['value_size']} B values · {known['read_ratio']:.0%} reads · {known['key_space']:,} keys")
    else:
        workers = known.get("workers", 0) * known.get("nodes", 0)
        parts.append(f"{known.get('task', 'no-op')} tasks" + (f" · {workers} workers" if workers else ""))
        if "balance" in known:
            parts.append(str(known["balance"]))
    rate = known.get("rate")
    loop = "CLOSED loop" if rate is None else f"OPEN loop at {rate:,.0f}/s"
    parts.append(f"{loop}, {result.callers} caller{'s' if result.callers != 1 else ''}")
    parts.append(f"warm-up {known['warmup_s']:g}s excluded")
    parts.append(f"{known['cores']} cores · Python {known['python']} · libzmq {known['libzmq']}")
    return " · ".join(parts)


def progress_line(progress: Progress) -> str:
    return (
        f"{progress.elapsed_s:5.1f}s {progress.throughput_per_s:9,.0f}/s  p50 {_ms(progress.p50_us)}"
        f"  p99 {_ms(progress.p99_us)}  max {_ms(progress.max_us)} ms  errors {progress.errors}"
    )


def table(result: Result) -> str:
    """The figures: a line a kind of latency, in milliseconds, and one line for the rest."""
    lines = [" " * 10 + "".join(f"{_TITLES.get(name, name):>9}" for name in PERCENTILES) + "   ms"]
    rows = [("latency" if result.service is None else "response", result.latency)]
    if result.service is not None:
        rows.append(("service", result.service))
    for name, summary in rows:
        lines.append(f"{name:<10}" + "".join(f"{_ms(getattr(summary, each)):>9}" for each in PERCENTILES))
    lines.append(
        f"throughput {result.throughput_per_s:,.0f}/s · errors {result.errors:,}"
        f" · load generator CPU {result.generator_cpu:.0%}"
    )
    if result.unsent:
        lines.append(f"did not keep up: {result.unsent:,} requests were due and never sent")
    if result.errors_by_type:
        lines.append("errors: " + ", ".join(f"{name} {count:,}" for name, count in result.errors_by_type.items()))
    return "\n".join(lines)


def to_json(result: Result) -> dict[str, Any]:
    """The object that programs rely on: `kind` to `settings` are promised, what follows may grow."""
    encoded = {
        "kind": result.kind,
        "mode": result.mode,
        "callers": result.callers,
        "seconds": round(result.seconds, 6),
        "operations": result.operations,
        "errors": result.errors,
        "throughput_per_s": round(result.throughput_per_s, 3),
        "latency_us": _percentiles(result.latency),
        "settings": result.settings,
        "version": 1,
        "generator_cpu": round(result.generator_cpu, 4),
        "errors_by_type": result.errors_by_type,
    }
    if result.service is not None:
        encoded["service_us"] = _percentiles(result.service)
        encoded["unsent"] = result.unsent
    return encoded


def _percentiles(summary: Summary) -> dict[str, float]:
    return {name: round(getattr(summary, name), 3) for name in (*PERCENTILES, "mean")}


def _ms(us: float) -> str:
    """Microseconds as milliseconds with about three figures."""
    ms = us / 1000
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"
