"""Load generation and measurement: what `zcluster bench` and the scenarios in `benchmarks/` are made of.

    recorder    latencies in, percentiles out; bounded memory
    workload    closed and open loops over a client: `run_kv`, `run_tasks`
    result      what one run measured, and under which conditions
    report      a result as text, as JSON, and judged against service-level objectives

Not here: starting clusters (zcluster.launch), the peers and the scenarios (benchmarks/).

Two rules make the figures mean something. A *closed* loop keeps N callers busy, so a stalled system is asked less: it
measures throughput. An *open* loop sends at a fixed rate whatever happens, and counts latency from the moment a request
was *meant* to be sent: a stall is then paid by every request that should have run meanwhile. And the generator measures
its own share of the processor, because on a small machine it competes with what it measures.
"""

from zcluster.bench.recorder import Recorder, Summary
from zcluster.bench.report import Objective, check_objectives, header, parse_objective, table, to_json
from zcluster.bench.result import Progress, Result
from zcluster.bench.workload import run_kv, run_tasks

__all__ = [
    "Objective",
    "Progress",
    "Recorder",
    "Result",
    "Summary",
    "check_objectives",
    "header",
    "parse_objective",
    "run_kv",
    "run_tasks",
    "table",
    "to_json",
]
