"""Which operation may take effect next: rules 3 and 4 of `linearize`, and what rule 7 must know of what was not there.

What does not live here: what taking effect does, and the search (`linearize`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from zcluster.sim.model import ABSENT, APPEND, EMPTY, EXACTLY, KEEP, NOT, NOTHING, OTHER, SET, State, Step
from zcluster.sim.timeline import Configuration, Group, Timeline

Kind = tuple[int, State, int, State, str, bool]
"""Operations with the same one are alike here and now; the last: whether it must take effect."""


class _Situation(NamedTuple):
    """A configuration at the return of `forced`, taken apart for the rules."""

    at: Configuration
    forced: Step
    running: list[Step]  # those in `may`, the first to return first
    obliged: list[Step]  # those in `must`
    needed: set[State]  # by `obliged`
    appending: list[Step]  # appends without an answer that must take effect
    another: bool  # whether any other state than this one would be of use
    wanted: dict[State, int] | None  # see `_wanted`; None: every state may be of use


class Moves:
    """What may take effect next in a configuration.

    After `choose`, these are what the choice rests on:

    must    operations taken for others that are alike since both must take effect, and these return first
    lacks   running operations that would have been chosen if they had not taken effect already
    used    unknown operations whose group was asked for and found used up
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._states = timeline.states
        self._unknown = timeline.unknown
        self.must = self.lacks = self.used = 0

    def choose(self, at: Configuration) -> list[Step]:
        """What is worth trying, the most promising first."""
        self.must = self.lacks = self.used = 0
        now, dead = self._situation(at), self._timeline.dead(at.position)
        found: list[Step] = []
        alike: dict[Kind, Step] = {}  # -> the one chosen
        for step in (*now.running, *self._unknown_moves(now)):
            if not step.holds(at.state, self._states):
                continue
            after = self._after(step, now)
            obliged = not step.optional and step.bit & at.must > 0
            kind = (step.need, step.argument, step.effect, after, step.data, obliged)
            if step.optional and step.bit & dead:
                kind = (NOTHING, ABSENT, SET, OTHER, "", False)
            if kind in alike:
                self.must |= alike[kind].bit if obliged else 0
            elif self._useful(step, after, obliged, now):
                alike[kind] = step
                found.append(step)
        self._find_lacks(now, alike)
        found.sort(key=lambda step: self._order(step, now))
        return found

    def _order(self, step: Step, now: _Situation) -> tuple[int, ...]:
        """First operations that need just this state, for it may not come again. Unknown ones last: those that leave
        the fewest to be used after them, then those of which there are most."""
        if not step.optional:
            return 0, step.need == NOTHING, step is not now.forced
        after = step.after(now.at.state, self._states)
        way = 0 if now.wanted is None else now.wanted.get(after, 0)
        return 1, way, -self._unknown.group_of[step.number].left(now.at.used, now.at.position)

    def _after(self, step: Step, now: _Situation) -> State:
        return self._timeline.now(step.after(now.at.state, self._states), now.at.position, now.needed)

    def _next(self, group: Group, at: Configuration) -> Step | None:
        found = group.next(at.used, at.position)
        if found is None:
            self.used |= at.used & group.mask
        return found

    def _find_lacks(self, now: _Situation, alike: dict[Kind, Step]) -> None:
        """Running operations that took effect already and would be chosen otherwise, now or further on a chain that
        starts now; not those that are alike to a chosen one that returns earlier (rule 4)."""
        at = now.at
        for step in self._timeline.running(self._timeline.active[at.position] & ~at.may, at.position):
            if step.effect == KEEP:
                continue
            leads = step.effect == SET and step.need != NOTHING and now.wanted is not None and step.result in now.wanted
            if step.effect == APPEND or leads or self._is_blurred(step, at, now.needed):
                self.lacks |= step.bit
            elif step.holds(at.state, self._states):
                after = self._after(step, now)
                kinds = ((step.need, step.argument, step.effect, after, step.data, must) for must in (False, True))
                earlier = any(kind in alike and alike[kind].returned < step.returned for kind in kinds)
                if not earlier and self._useful(step, after, False, now):
                    self.lacks |= step.bit

    def blurred(self, at: Configuration) -> int:
        """Running operations that took effect already, and if not could make use of a state that is OTHER without them,
        for nobody else mentions it: what is said of OTHER holds only where they lack."""
        timeline = self._timeline
        needed = timeline.needed(timeline.running(at.must, at.position))
        absent = timeline.running(timeline.active[at.position] & ~at.may, at.position)
        return sum(step.bit for step in absent if self._is_blurred(step, at, needed))

    def _is_blurred(self, step: Step, at: Configuration, needed: set[State]) -> bool:
        if step.effect != SET or step.need not in (EXACTLY, EMPTY):
            return False
        state = self._states.empty if step.need == EMPTY else step.argument
        return self._timeline.now(state, at.position, needed) == OTHER

    # -- what is of use (rule 3) --------------------------------------------------------------------------------------
    def _situation(self, at: Configuration) -> _Situation:
        timeline = self._timeline
        forced = timeline.events[at.position][0]
        running = sorted(timeline.running(at.may, at.position), key=lambda step: step.returned)
        obliged = [step for step in running if step.bit & at.must]
        appending = [step for step in running if step.effect == APPEND and (step.bit & at.must or step is forced)]
        comes_back = forced.effect != KEEP and forced.after(at.state, self._states) == at.state
        another = any(
            step.need == NOT and step.argument == at.state and (step is forced or comes_back or step.effect != KEEP)
            for step in obliged
        )
        wanted = None if another or appending else self._wanted(at, running, obliged)
        return _Situation(at, forced, running, obliged, timeline.needed(obliged), appending, another, wanted)

    def _wanted(self, at: Configuration, running: Sequence[Step], obliged: Sequence[Step]) -> dict[State, int]:
        """The states that operations need which must take effect and cannot in this one, and states from which
        optional appends and unknown operations lead to those: -> by how many of these."""
        states, unknown = self._states, self._unknown
        wanted: dict[State, int] = {}
        work: list[State] = []

        def want(length: int, *needed: State) -> None:
            for state in needed:
                if state not in wanted:
                    wanted[state] = length
                    work.append(state)

        for step in obliged:
            if not step.holds(at.state, states):
                if step.need == EXACTLY:
                    want(0, step.argument)
                elif step.need == EMPTY:
                    want(0, ABSENT, states.empty)
        appends = [step.data for step in running if step.effect == APPEND]
        for target in work:  # grows meanwhile
            length = wanted[target] + 1
            for expected, group in unknown.swaps_to.get(target, ()):
                if self._next(group, at):
                    want(length, expected)
            if target <= OTHER:
                continue
            endings = (states.ending(target, size) for size in unknown.append_lengths)
            called = [data for data in endings if data in unknown.appends and self._next(unknown.appends[data], at)]
            for data in appends + called:
                want(length, *states.before_append(target, data))
        return wanted

    def _unknown_moves(self, now: _Situation) -> Iterator[Step]:
        """Unknown operations that may lead to a wanted state (to any, if that is None), or that leave this one."""
        unknown, state = self._unknown, now.at.state
        groups: Iterable[Group | None] = unknown.groups
        if now.wanted is not None:
            groups = [
                *(unknown.writes.get(target) for target in (state, *now.wanted)),
                *(group for result, group in unknown.swaps_from.get(state, ()) if result in now.wanted),
                *(unknown.appends.get(rest) for t in now.wanted if (rest := self._states.rest(state, t)) is not None),
            ]
        for group in groups:
            step = self._next(group, now.at) if group is not None else None
            if step is not None:
                yield step

    def _useful(self, step: Step, after: State, obliged: bool, now: _Situation) -> bool:
        """Whether there is a reason to let an operation take effect now (rule 3)."""
        state = now.at.state
        if obliged and (step is now.forced or step.need != NOTHING):
            return True
        if self._buries_in_time(step, after, now):
            return True
        if step is now.forced and after == state:
            return any(other.need == NOTHING for other in now.obliged)  # its last chance to bury them
        if after == state:
            return False
        if step is now.forced:
            return after != OTHER or self._better_other(now)
        if now.wanted is not None:
            return after in now.wanted
        if now.another or after != OTHER:
            return True
        if step.effect == SET:
            return step.need != NOTHING
        # To append what leads to OTHER matters before another append only if the other order leads elsewhere.
        append = self._states.append
        return any(append(append(state, o.data), step.data) != OTHER for o in now.appending if o is not step)

    def _buries_in_time(self, step: Step, after: State, now: _Situation) -> bool:
        """Whether something must be buried that what comes next could not bury, though it is possible without `step`:
        operations that need exactly this state, or append to it."""
        if step.effect != SET or step.need != NOTHING or after == OTHER:
            return False
        if not any(other.need == NOTHING and other is not step for other in now.obliged):
            return False
        state, states = now.at.state, self._states
        guarded = [other for other in now.obliged if other.effect == SET and other.holds(state, states)]
        if any(other.need == EMPTY and other.holds(after, states) for other in guarded):
            return True
        if after != state:
            return False
        appends = self._unknown.appends or any(other.effect == APPEND for other in now.running)
        return bool(appends) or state in self._unknown.swaps_from or any(o.need == EXACTLY for o in guarded)

    def _better_other(self, now: _Situation) -> bool:
        """Whether OTHER may serve better than this state, and those that puts would have to make instead: only if an
        operation needs anything but one of these."""
        if self._timeline.prefixes:
            return True
        states = {now.at.state, *(step.result for step in now.obliged if step.need == NOTHING)}
        if any(self._timeline.last_exclusion.get(state, -1) >= now.at.position for state in states):
            return True
        return any(step.need == NOT and step.argument in states for step in now.obliged)
