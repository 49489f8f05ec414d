"""From a failing run to a shorter one: leave out parts of the schedule for as long as the same property fails.

The method is delta debugging over the positions of the schedule: halves, then quarters, and so on down to single
faults. It is bounded by a number of runs; what it returns fails for sure, but need not be the shortest of all.
Source: Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", 2002.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from zcluster.sim.run import Case, Outcome, run_case

RUNS_MAX = 60


def shrink(
    case: Case, outcome: Outcome, *, runs_max: int = RUNS_MAX, on_run: Callable[[int], None] | None = None
) -> tuple[Case, Outcome]:
    """A case with as few faults as could be found for the violation of `outcome`, and what comes of it."""
    assert outcome.property, "there is nothing to shrink in a run without a violation"
    kept = list(range(len(outcome.schedule))) if case.only is None else list(case.only)
    best, runs = (case, outcome), 0

    def fails(positions: list[int]) -> bool:
        nonlocal best, runs
        runs += 1
        if on_run is not None:
            on_run(runs)
        smaller = msgspec.structs.replace(case, only=tuple(positions))
        found = run_case(smaller)
        if found.property != outcome.property:
            return False
        best = (smaller, found)
        return True

    parts = 1
    while kept and runs < runs_max:
        size = -(-len(kept) // parts)
        for start in range(0, len(kept), size):
            rest = kept[:start] + kept[start + size :]
            if runs < runs_max and fails(rest):
                kept = rest
                parts = max(parts - 1, 1)
                break
        else:
            if size == 1:
                break
            parts = min(2 * parts, len(kept))
    return best
