"""What operations on one key need and do, in terms of small whole numbers.

    get -> v              needs v                     keeps
    cas(e, w) -> true     needs e                     sets w
    cas(e, w) -> false    needs anything but e        keeps
    put(v)                needs nothing               sets v
    delete -> true        needs a value               sets ABSENT
    delete -> false       needs ABSENT                keeps
    delete                needs nothing               sets ABSENT
    append(a) -> o        needs o without its end a   sets o        (if o = a: needs ABSENT or "")
    append(a)             needs nothing               appends a

States. A value matters only if some operation can tell it from others: if it is *mentioned* (an operation needs it, or
anything but it) or, where appends without an answer may extend it, begins a mentioned one. All other values behave the
same and are one state, OTHER: no operation needs exactly one of them, `anything but e` holds for all of them, and
appending to one gives one again. So states are few, and a long value is a place in a mentioned text.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from zcluster.sim.history import Operation

State = int
ABSENT: Final[State] = 0
OTHER: Final[State] = 1

NOTHING, EXACTLY, NOT, EMPTY, NEVER_HOLDS = range(5)
"""Kinds of need: none; `argument`; anything but `argument`; ABSENT or the empty string; one that no state meets."""
KEEP, SET, APPEND = range(3)
"""Kinds of effect: none; `result` whatever was there; `data` at the end of it."""


class States:
    """The states of one key.

    Args:
        mentioned: values that operations can tell from all others.
        prefixes: whether their beginnings matter too.
    """

    def __init__(self, mentioned: Iterable[str], *, prefixes: bool) -> None:
        self._texts = sorted(set(mentioned))
        self._prefixes = prefixes
        # A beginning is known as (number of the first mentioned text that has it, length): equal for equal beginnings.
        self._places: list[tuple[int, int]] = [(-1, 0), (-1, 0)]
        self._states: dict[tuple[int, int], State] = {}
        self._appended: dict[tuple[State, str], State] = {}
        self.empty = self.of("")

    def of(self, value: str | None) -> State:
        """The state of a key with this value (None: without any)."""
        if value is None:
            return ABSENT
        first = bisect_left(self._texts, value)
        if first == len(self._texts):
            return OTHER
        text = self._texts[first]
        if not (text.startswith(value) if self._prefixes else text == value):
            return OTHER
        return self._at((first, len(value)))

    def _at(self, place: tuple[int, int]) -> State:
        state = self._states.get(place)
        if state is None:
            state = self._states[place] = len(self._places)
            self._places.append(place)
        return state

    def text(self, state: State) -> str:
        """The value of a state other than ABSENT and OTHER."""
        first, length = self._places[state]
        return self._texts[first][:length]

    def beginning_with(self, state: State) -> tuple[int, int]:
        """The mentioned texts, by number in order, that a state other than ABSENT and OTHER may yet become."""
        first, length = self._places[state]
        if not self._prefixes:
            return first, first + 1
        text = self._texts[first][:length]
        return first, bisect_right(self._texts, text, lo=first, key=lambda other: other[:length])

    def append(self, state: State, data: str) -> State:
        """The state after appending. A missing key counts as empty."""
        if state == OTHER:
            return OTHER
        known = self._appended.get((state, data))
        if known is None:
            known = self._appended[state, data] = self._append(state, data)
        return known

    def _append(self, state: State, data: str) -> State:
        if state == ABSENT:
            return self.of(data)
        first, length = self._places[state]
        # All texts with a given beginning are neighbours, so if the first of them goes on with `data`, it is also the
        # first that begins with both. Otherwise look for it.
        if self._texts[first].startswith(data, length):
            return self._at((first, length + len(data)))
        return self.of(self._texts[first][:length] + data)

    def before_append(self, state: State, data: str) -> list[State]:
        """The states from which appending gives this one, itself not ABSENT or OTHER."""
        first, length = self._places[state]
        text = self._texts[first]
        if not text.endswith(data, 0, length) or len(data) > length:
            return []
        before = [self.of(text[: length - len(data)])]
        return [ABSENT, *before] if len(data) == length else before

    def ending(self, state: State, length: int) -> str | None:
        """The last characters of a state's value; None if it is shorter, or the state is ABSENT or OTHER."""
        first, size = self._places[state]
        return self._texts[first][size - length : size] if first >= 0 and length <= size else None

    def rest(self, state: State, longer: State) -> str | None:
        """What must be appended to `state` to get `longer`; None if nothing can."""
        first, size = self._places[longer]
        if first < 0 or state == OTHER:
            return None
        if state == ABSENT:
            return self._texts[first][:size]
        beginning, length = self._places[state]
        if length > size or not self._texts[first].startswith(self._texts[beginning][:length]):
            return None
        return self._texts[first][length:size]


class Latest:
    """The latest of the moments at which texts are mentioned that a state may yet become.

    Args:
        moments: one for each mentioned text, in their order.
    """

    _BLOCK: Final = 128

    def __init__(self, states: States, moments: list[int]) -> None:
        self._states = states
        self._moments = moments
        self._blocks = [max(moments[i : i + self._BLOCK]) for i in range(0, len(moments), self._BLOCK)]
        self._known: dict[State, int] = {OTHER: -1}

    def of(self, state: State) -> int:
        known = self._known.get(state)
        if known is None:
            low, high = self._states.beginning_with(state)
            first, last = -(-low // self._BLOCK), high // self._BLOCK
            if first < last:
                ends = self._moments[low : first * self._BLOCK] + self._moments[last * self._BLOCK : high]
                known = max(ends + self._blocks[first:last])
            else:
                known = max(self._moments[low:high])
            self._known[state] = known
        return known


@dataclass(slots=True, eq=False)
class Step:
    """An operation in terms of states.

    `called` and `returned` are positions in the list of the key's events. `bit` is its place in sets of operations: a
    place of its own among those that run at the same time; for optional ones, a place of its own for good.
    """

    operation: Operation
    number: int
    need: int
    argument: State
    effect: int
    result: State
    data: str
    optional: bool
    called: int = 0
    returned: int = 0
    bit: int = 0

    def holds(self, state: State, states: States) -> bool:
        """Whether it may take effect in this state with the outcome that it had."""
        need = self.need
        if need == NOTHING:
            return True
        if need == EXACTLY:
            return state == self.argument
        if need == NOT:
            return state != self.argument
        return need == EMPTY and state in (ABSENT, states.empty)

    def after(self, state: State, states: States) -> State:
        """The state that it leaves behind."""
        if self.effect == KEEP:
            return state
        return self.result if self.effect == SET else states.append(state, self.data)


def mentioned_by(operation: Operation) -> str | None:
    """The value that the operation's outcome depends on, if there is one."""
    if operation.kind == "cas":
        return operation.expect
    if operation.status != "ok":
        return None
    if operation.kind == "get" and isinstance(operation.output, str):
        return operation.output
    if operation.kind == "append" and isinstance(operation.output, str):
        data = operation.value or ""
        return operation.output[: -len(data) or None] if operation.output.endswith(data) else None
    return None


def extends_unseen(operation: Operation) -> bool:
    """Whether it appends to a value that its own outcome does not tell."""
    return operation.kind == "append" and (operation.status != "ok" or operation.output is None)


def make_step(operation: Operation, number: int, states: States) -> Step | None:
    """None: an operation that can be left out, as nothing depends on it and it changes nothing."""
    if operation.status == "fail":
        return None
    known = operation.status == "ok"
    need, argument, effect, result, data = NOTHING, ABSENT, KEEP, ABSENT, ""
    value, output = operation.value, operation.output if known else None
    match operation.kind:
        case "get":
            assert not isinstance(output, bool)
            need, argument = EXACTLY, states.of(output)
        case "put":
            effect, result = SET, states.of(value)
        case "delete":
            effect = SET
            if known and output is True:
                need = NOT
            elif known and output is False:
                need, effect = EXACTLY, KEEP
        case "cas":
            need, argument = EXACTLY, states.of(operation.expect)
            if known and output is False:
                need = NOT
            elif operation.expect != value:
                effect, result = SET, states.of(value)
        case "append":
            data = value or ""
            if isinstance(output, str):
                need, argument, effect, result = _append_seen(output, data, states)
            else:
                effect = APPEND
    if not known and effect == KEEP:
        return None
    return Step(operation, number, need, argument, effect, result, data, not known)


def _append_seen(output: str, data: str, states: States) -> tuple[int, State, int, State]:
    """(need, argument, effect, result) of an append whose answer is known."""
    if not output.endswith(data):
        return NEVER_HOLDS, ABSENT, KEEP, ABSENT
    if output == data:
        return EMPTY, ABSENT, SET, states.of(output)
    if not data:
        return EXACTLY, states.of(output), KEEP, ABSENT
    return EXACTLY, states.of(output[: -len(data)]), SET, states.of(output)
