"""Seeds against a machine of one's own, up to the first that fails; that one made as short as it gets.

proof = prove(workload, seeds=50)
assert proof.holds, proof                        # a proof that does not hold says what went wrong, and when
prove(workload, seed=17, only=(3, 5))            # the same run once more, as the text of the proof says
"""

from __future__ import annotations

import msgspec

from zcluster.sim.many import Report, run_many, seeds_from
from zcluster.sim.own import Workload
from zcluster.sim.run import Case, Outcome, run_case
from zcluster.sim.schedule import GROUPS
from zcluster.sim.shrink import RUNS_MAX, shrink

EVENTS_SHOWN = 12


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """report: of all seeds that ran. shortest: the failing run with as few faults as could be found, its case with it;
    None where nothing failed."""

    report: Report
    case: Case | None = None
    shortest: Outcome | None = None

    @property
    def holds(self) -> bool:
        return self.shortest is None

    def __str__(self) -> str:
        report, outcome = self.report, self.shortest
        line = f"{report.seeds} seeds, {report.operations} operations, {report.elections} elections"
        if outcome is None or self.case is None:
            return f"{line}: no violation"
        only = "" if self.case.only is None else f", only={self.case.only}"
        return "\n".join(
            [
                f"{line}: {outcome.property}",
                outcome.detail,
                f"faults ({len(outcome.schedule)}):",
                *(f"  {fault}" for fault in outcome.schedule),
                "the last events (time, replica, what):",
                *(f"  {event}" for event in outcome.recent[-EVENTS_SHOWN:]),
                f"again: prove(workload, seed={outcome.seed}, nodes={self.case.nodes}{only})",
            ]
        )


def prove(
    workload: Workload,
    *,
    seed: int = 1,
    seeds: int = 1,
    nodes: int = 0,
    faults: tuple[str, ...] = GROUPS,
    only: tuple[int, ...] | None = None,
    shrink_runs: int = RUNS_MAX,
) -> Proof:
    """Run `seeds` worlds from `seed` on, one after the other, until one fails.

    Args:
        nodes: 3 to 7; 0 draws it. faults: groups of `sim.faults`. only: positions of the schedule that are kept.
        shrink_runs: how often a failing world may be run again to find a shorter one.
    """
    first = Case(seed=seed, nodes=nodes, groups=faults, only=only, workload=workload)
    report = run_many(seeds_from(first, seeds), violations_max=1)
    if not report.violations:
        return Proof(report=report)
    found = report.violations[0]
    case = msgspec.structs.replace(first, seed=found.seed)
    again = run_case(case)
    if not again.property:
        again.property = "determinism"
        again.detail = f"{found.property} once, and nothing the second time: chance, a clock or an id is in it"
        return Proof(report=report, case=case, shortest=again)
    case, shortest = shrink(case, again, runs_max=shrink_runs)
    return Proof(report=report, case=case, shortest=shortest)
