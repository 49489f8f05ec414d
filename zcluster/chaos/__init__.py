"""Faults on a running cluster, on purpose, while clients of its own watch whether it keeps its word.

    schedule   which faults, when, for how long, to whom: drawn from a seed. Pure
    traffic    callers that put, get, delete, cas and append under a prefix of their own, and record what they saw
    run        does the faults, ends all of them whatever happens, and has the history judged

Purpose: to show on real processes and real disks what the simulator shows in worlds of its own. Not here: what a fault
is (`launch`), what a history means (`sim.verdict`).

Trade-offs. One fault at a time: so a majority always stays (but for the kinds in `STOPPING`, which nobody gets without
asking), and each measured time without service belongs to one fault. The same seed gives the same schedule, not the
same run: the scheduler of the operating system has no seed. Callers are paced, so that the history of some minutes can
be judged in seconds.
"""

from zcluster.chaos.run import Chaos, Outcome, run_chaos
from zcluster.chaos.schedule import DEFAULT_KINDS, KINDS, STOPPING, draw_schedule, parse_kinds

__all__ = [
    "DEFAULT_KINDS",
    "KINDS",
    "STOPPING",
    "Chaos",
    "Outcome",
    "draw_schedule",
    "parse_kinds",
    "run_chaos",
]
