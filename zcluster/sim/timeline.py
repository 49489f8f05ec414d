"""The operations of one key laid out in time, for the search in `linearize`: made once, never changed.

Events are the calls and returns of operations with an outcome, in time; a *position* counts them. An operation with an
outcome gets a *place*, a bit that no other has while it runs, so that sets of running operations are small numbers; an
unknown one, which may take effect for ever, gets a bit of its own in another set of numbers.

What does not live here: which operation takes effect when (`moves`, `linearize`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from zcluster.sim.history import Operation
from zcluster.sim.model import (
    ABSENT,
    APPEND,
    EMPTY,
    EXACTLY,
    NOT,
    NOTHING,
    OTHER,
    SET,
    Latest,
    State,
    States,
    Step,
    extends_unseen,
    make_step,
    mentioned_by,
)

NEVER: Final = 1 << 62

Path = tuple["Path", int] | None
"""The steps taken, last first: a number as in `Step.number`, or ~number where an operation became optional."""


class Configuration(NamedTuple):
    """How far an order has come, as `linearize` describes, and the way to it."""

    position: int
    state: State
    must: int
    may: int
    used: int
    path: Path


class Group:
    """Unknown operations that are alike, in the order of their calls; they are used in that order (rule 4)."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.calls: list[int] = []
        self.mask = 0

    def add(self, step: Step) -> None:
        self.steps.append(step)
        self.calls.append(step.called)
        self.mask |= step.bit

    def next(self, used: int, position: int) -> Step | None:
        """The first that is not used, if it has been called."""
        index = (used & self.mask).bit_count()
        return self.steps[index] if index < len(self.steps) and self.calls[index] < position else None

    def left(self, used: int, position: int) -> int:
        """How many have been called and are not used."""
        return bisect_left(self.calls, position) - (used & self.mask).bit_count()


class Unknown:
    """The unknown operations of a key, to be found by what they do."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self.group_of: dict[int, Group] = {}  # Step.number -> its group
        groups: dict[tuple[int, State, int, State, str], Group] = {}
        for number, step in enumerate(steps):
            step.bit = 1 << number
            group = groups.setdefault((step.need, step.argument, step.effect, step.result, step.data), Group())
            group.add(step)
            self.group_of[step.number] = group
        self.groups = list(groups.values())
        self.writes: dict[State, Group] = {}  # puts and deletes, by the state they leave behind
        self.swaps_from: dict[State, list[tuple[State, Group]]] = {}  # cas: expected -> (new, group)
        self.swaps_to: dict[State, list[tuple[State, Group]]] = {}  # cas: new -> (expected, group)
        self.appends: dict[str, Group] = {}
        for (need, argument, effect, result, data), group in groups.items():
            if effect == APPEND:
                self.appends[data] = group
            elif need == NOTHING:
                self.writes[result] = group
            else:
                self.swaps_from.setdefault(argument, []).append((result, group))
                self.swaps_to.setdefault(result, []).append((argument, group))
        self.append_lengths = sorted({len(data) for data in self.appends})


class Timeline:
    """One key's operations, in any order.

    events: (step, whether it returns). active: for each event, the places of those that run before it. last_exact and
    last_exclusion: state -> the last call of an operation that needs just it, or anything but it.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        alive = [operation for operation in operations if operation.status != "fail"]
        self.prefixes = any(extends_unseen(operation) for operation in alive)
        mentions = [(operation, text) for operation in alive if (text := mentioned_by(operation)) is not None]
        self._mentioned = sorted({text for _, text in mentions})
        self.states = States(self._mentioned, prefixes=self.prefixes)
        made = (make_step(operation, number, self.states) for number, operation in enumerate(operations))
        self.steps = {step.number: step for step in made if step is not None}
        self.events = self._order_events()
        self.active = self._assign_places()
        self.unknown = Unknown(sorted((s for s in self.steps.values() if s.optional), key=lambda step: step.called))
        self._last_call, self._last_return = self._find_mentions(mentions)
        self.last_exact: dict[State, int] = {}
        self.last_exclusion: dict[State, int] = {}
        self._setting: dict[State, list[Step]] = {}
        self._adding: dict[str, list[Step]] = {}
        self._makers: dict[State, list[Step]] = {}
        for step in self.steps.values():
            if step.effect == SET:
                self._setting.setdefault(step.result, []).append(step)
            elif step.effect == APPEND:
                self._adding.setdefault(step.data, []).append(step)
            if step.need == EXACTLY and not step.optional:
                self.last_exact[step.argument] = max(self.last_exact.get(step.argument, -1), step.called)
            if step.need == NOT:
                self.last_exclusion[step.argument] = max(self.last_exclusion.get(step.argument, -1), step.called)
        self._dead_from, self._dead_masks = self._find_dead()

    # -- preparation --------------------------------------------------------------------------------------------------
    def _order_events(self) -> list[tuple[Step, bool]]:
        """In time. Of equal times calls come first: those operations ran together."""
        moments: list[tuple[int, bool, int]] = []
        for step in self.steps.values():
            moments.append((step.operation.call, False, step.number))
            if not step.optional:
                assert step.operation.returned is not None
                moments.append((step.operation.returned, True, step.number))
        events: list[tuple[Step, bool]] = []
        for _, returns, number in sorted(moments):
            step = self.steps[number]
            if returns:
                step.returned = len(events)
                events.append((step, True))
            elif step.optional:
                # A position between two events: it counts as called once everything before it has happened.
                step.called, step.returned = len(events) - 1, NEVER
            else:
                step.called = len(events)
                events.append((step, False))
        return events

    def _assign_places(self) -> list[int]:
        """Give each operation with an outcome its place. Returns: `active`."""
        self._place_called: list[list[int]] = []  # place -> positions of the calls of its operations
        self._place_steps: list[list[Step]] = []
        free: list[int] = []
        active: list[int] = []
        running = 0
        for step, returns in self.events:
            active.append(running)
            if returns:
                free.append(step.bit.bit_length() - 1)
                running &= ~step.bit
                continue
            if not free:
                free.append(len(self._place_steps))
                self._place_called.append([])
                self._place_steps.append([])
            place = free.pop()
            step.bit = 1 << place
            running |= step.bit
            self._place_called[place].append(step.called)
            self._place_steps[place].append(step)
        return active

    def _find_mentions(self, mentions: Sequence[tuple[Operation, str]]) -> tuple[Latest, Latest]:
        """When states are mentioned last: by calls of operations, and by their returns."""
        steps = {id(step.operation): step for step in self.steps.values()}
        called, returned = dict.fromkeys(self._mentioned, -1), dict.fromkeys(self._mentioned, -1)
        for operation, text in mentions:
            step = steps.get(id(operation))
            if step is not None:
                called[text] = max(called[text], NEVER if step.optional else step.called)
                returned[text] = max(returned[text], step.returned)
        return Latest(self.states, list(called.values())), Latest(self.states, list(returned.values()))

    def _find_dead(self) -> tuple[list[int], list[int]]:
        """Unknown puts and appends which, from some position on, give values that nobody mentions, whatever was there:
        ([position], [the set from there on]). All of them are alike (rule 4)."""
        ends: list[tuple[int, int]] = []
        texts = {text: self._last_return.of(self.states.of(text)) for text in self._mentioned}
        for step in self.steps.values():
            if not step.optional or step.need != NOTHING or (step.effect == SET and step.result == ABSENT):
                continue
            if step.effect == SET:
                ends.append((self._last_return.of(step.result), step.bit))
            else:
                ends.append((max((at for text, at in texts.items() if step.data in text), default=-1), step.bit))
        ends.sort()
        masks, mask = [], 0
        for _, bit in ends:
            mask |= bit
            masks.append(mask)
        return [position for position, _ in ends], masks

    # -- questions ----------------------------------------------------------------------------------------------------
    def dead(self, position: int) -> int:
        """The unknown operations that are alike at a position because nobody mentions any more what they give."""
        index = bisect_right(self._dead_from, position - 1)
        return self._dead_masks[index - 1] if index else 0

    def running(self, mask: int, position: int) -> Iterator[Step]:
        """The operations of a set of places, as they are at a position."""
        while mask:
            lowest = mask & -mask
            place = lowest.bit_length() - 1
            mask ^= lowest
            yield self._place_steps[place][bisect_right(self._place_called[place], position) - 1]

    def needed(self, must: Iterable[Step]) -> set[State]:
        """The states that operations mention."""
        return {self.states.empty if step.need == EMPTY else step.argument for step in must if step.need != NOTHING}

    def now(self, state: State, position: int, needed: set[State]) -> State:
        """The state, or OTHER if no operation that is yet to take effect, or to be called, mentions it (rule 4).

        Args:
            needed: the states mentioned by the operations in `must`.
        """
        if state <= OTHER or state in needed or self._last_call.of(state) >= position:
            return state
        if self.prefixes and any(self.states.rest(state, longer) is not None for longer in needed):
            return state
        return OTHER

    def makers(self, state: State) -> list[Step]:
        """All operations that can leave a state behind: unknown ones first, then the last to return first."""
        known = self._makers.get(state)
        if known is None:
            known = list(self._setting.get(state, ()))
            if state > OTHER:
                text = self.states.text(state)
                for data, steps in self._adding.items():
                    if text.endswith(data):
                        known += steps
            known.sort(key=lambda step: -step.returned)
            self._makers[state] = known
        return known

    def first_states(self) -> list[State]:
        """Every state that the operations can tell from all others."""
        found = [ABSENT, OTHER, *(self.states.of(text) for text in self._mentioned)]
        seen = set(found)
        data = {step.data for step in self.steps.values() if step.effect == APPEND}
        for state in found:  # grows meanwhile
            if state > OTHER:
                for text in sorted(data):
                    new = [before for before in self.states.before_append(state, text) if before not in seen]
                    seen.update(new)
                    found += new
        return list(dict.fromkeys(found))
