"""The smallest part of a wrong history that shows that no order explains it.

It is made by steps each of which only weakens what is asked. If the window has no order, then neither has the history:

* only operations called before the stuck one returned are kept; of those that had not returned by then, the outcome is
  forgotten, and whether they took effect;
* whatever came before the window is forgotten, and the key may have had any value at its beginning (unless the history
  is wrong only because the key had none at first: then the window begins with the history);
* operations are forgotten one after the other: those that change nothing altogether, of others the outcome, and
  whether they took effect.

Those left that only may have taken effect, and write what nothing in the window looks at, are counted, not shown.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from zcluster.sim.history import Operation
from zcluster.sim.linearize import Found, OutOfTime, Search
from zcluster.sim.timeline import NEVER
from zcluster.sim.wording import ANY, describe, needs, values_of

POSSIBLE_MAX: Final = 5
Part = tuple[list[Operation], list[Operation]]
"""(operations to be explained, in the order of their calls; operations that may have taken effect)"""


@dataclass(frozen=True)
class Window:
    """A part of a history that no order explains.

    `operations` must all be explained, and any of `maybe` may have taken effect; both in the order of their calls.
    `from_start`: it begins with the history, and the key is absent; otherwise the value at first may be any. `order` is
    one of the longest orders that work and `values` the values (as text) before it and after each of its operations;
    `stuck` fits nowhere, and `possible` are the values that it can have met. `hidden` operations do not help.
    """

    key: str
    operations: list[Operation]
    maybe: list[Operation]
    from_start: bool
    stuck: Operation
    order: list[Operation]
    values: list[str]
    possible: list[str]
    hidden: int = 0


def returned(operation: Operation | None) -> int:
    assert operation is not None and operation.returned is not None
    return operation.returned


def forget(operation: Operation) -> Operation | None:
    """The operation without its outcome, which may or may not have taken effect; None if it changes nothing anyway."""
    same = operation.kind == "cas" and operation.expect == operation.value
    unchanging = (
        same
        or operation.kind == "get"
        or (operation.status == "ok" and operation.output is False and operation.kind in ("cas", "delete"))
    )
    return None if unchanging else replace(operation, status="unknown", output=None)


def forget_all(operations: Sequence[Operation]) -> list[Operation]:
    return [forgotten for operation in operations if (forgotten := forget(operation)) is not None]


def any_order(
    part: Part, from_start: bool, deadline: float, *, look_ahead: bool = True, patience: int = NEVER
) -> Found:
    """Search a part for an order; see `Search`. Raises: OutOfTime."""
    certain, maybe = part
    search = Search([*certain, *helpful(certain, maybe)], deadline, look_ahead=look_ahead)
    return search.run(from_start=from_start, patience=patience)


def helpful(certain: Sequence[Operation], maybe: Sequence[Operation]) -> Sequence[Operation]:
    """Those of `maybe` that suffice: if there is an order with all of them, there is one with these.

    Between two of `certain` nothing that may have taken effect is needed but to lead from one value to another one that
    is looked at, on a way that meets no value twice. So of those with the same effect no more are needed than there are
    in `certain`, and all values that lead nowhere are alike. (Not so with appends; then all are kept.)
    """
    if any(operation.kind == "append" for operation in (*certain, *maybe)):
        return maybe
    looked_at = {operation.expect if operation.kind == "cas" else operation.output for operation in certain}
    leads_to: dict[object, set[str | None]] = {}  # new value -> what a cas expects before it
    for operation in maybe:
        if operation.kind == "cas":
            leads_to.setdefault(operation.value, set()).add(operation.expect)
    ways = [None, *looked_at]
    useful: set[object] = set()
    while ways:
        value = ways.pop()
        if value not in useful:
            useful.add(value)
            ways += leads_to.get(value, ())
    kept: list[Operation] = []
    alike: Counter[object] = Counter()
    for operation in sorted(maybe, key=lambda o: o.call):
        result = operation.value if operation.value in useful else _Elsewhere
        effect = (operation.kind == "cas", operation.expect, result)
        alike[effect] += 1
        if alike[effect] <= len(certain) and (operation.kind != "cas" or operation.expect in useful):
            kept.append(operation)
    return kept


class _Elsewhere:
    """A value that nothing looks at."""


def _fails(part: Part, from_start: bool, deadline: float) -> bool:
    """Whether there is certainly no order."""
    try:
        return not any_order(part, from_start, deadline).linearizable
    except OutOfTime:
        return False


def find_window(operations: Sequence[Operation], found: Found, deadline: float) -> Window:
    """Shrink the history of a key that has no order; when time is up, what has been reached by then counts."""
    alive = [operation for operation in operations if operation.status != "fail"]
    from_start, certain, maybe = _cut(*_end(alive, returned(found.stuck), deadline), deadline)
    thin, maybe = _thin(certain, maybe, from_start, deadline)
    # What was forgotten of operations that matter is remembered for the reader: that only asks more.
    matter = {_name(o) for o in maybe if _concerns(o, thin, certain[-1])}
    thin = [o for o in certain if o in thin or _name(o) in matter]
    maybe = [o for o in maybe if o.status != "ok" and _name(o) not in {_name(kept) for kept in thin}]
    try:
        small = any_order((thin, maybe), from_start, max(deadline, time.monotonic() + 5.0), look_ahead=False)
    except OutOfTime:
        small = found
    return _window(thin, maybe, from_start, found if small.linearizable else small)


def _name(operation: Operation) -> tuple[int, int, int]:
    return operation.line, operation.client, operation.call


def until(operations: Sequence[Operation], end: int) -> Part:
    """What is known at a moment: the outcome of what has returned, and that the rest may have taken effect."""
    certain: list[Operation] = []
    rest: list[Operation] = []
    for operation in operations:
        if operation.call <= end:
            (certain if operation.status == "ok" and returned(operation) <= end else rest).append(operation)
    return sorted(certain, key=lambda o: o.call), forget_all(rest)


def since(part: Part, begin: int) -> Part:
    """What is known if nothing is before a moment: what was called before it and had not returned may take effect."""
    certain, maybe = part
    running = [o for o in certain if o.call < begin <= returned(o)]
    return [o for o in certain if o.call >= begin], [*maybe, *forget_all(running)]


def _first(true: Callable[[int], bool], low: int, high: int) -> int | None:
    """The smallest number from `low` to `high` for which a monotone condition is true, near `low` preferably."""
    step, false = 1, low - 1
    while not true(min(false + step, high)):
        if false + step >= high:
            return None
        false, step = false + step, 2 * step
    found = min(false + step, high)
    while false + 1 < found:
        middle = (false + found) // 2
        false, found = (false, middle) if true(middle) else (middle, found)
    return found


NEAR: Final = 200
"""Operations before the furthest point the search came to, among which a contradiction is looked for first."""


def _end(alive: Sequence[Operation], reached: int, deadline: float) -> Part:
    """The part up to the first return after which there is no order.

    The search looks ahead, so this may be later than where it stopped (`reached`), never earlier.
    """
    returns = sorted(returned(o) for o in alive if o.status == "ok")
    low = returns.index(reached)
    begin = returns[max(0, low - NEAR)]

    def fails_near(index: int) -> bool:
        certain, maybe = since(until(alive, returns[index]), begin)
        return _fails((certain, maybe), False, deadline)

    def fails(index: int) -> bool:
        certain, maybe = until(alive, returns[index])
        return _fails((certain, maybe), True, deadline)

    index = _first(fails_near, low, min(low + NEAR, len(returns) - 1))
    if index is not None:
        return since(until(alive, returns[index]), begin)
    index = _first(fails, low, len(returns) - 1)
    return until(alive, returns[-1 if index is None else index])


def _cut(
    certain: list[Operation], maybe: list[Operation], deadline: float
) -> tuple[bool, list[Operation], list[Operation]]:
    """The latest beginning from which there is still no order: (from the start, operations, those that may be)."""

    def fails(count: int) -> bool:
        kept, possible = since((certain, maybe), certain[-count].call)
        return _fails((kept, possible), False, deadline)

    count = _first(fails, 1, len(certain))
    if count is None:
        return True, certain, maybe
    return False, *since((certain, maybe), certain[-count].call)


def _thin(
    certain: list[Operation], maybe: list[Operation], from_start: bool, deadline: float
) -> tuple[list[Operation], list[Operation]]:
    """Forget operations as long as there is no order: halves first, then smaller pieces, then single ones."""
    size = max(1, len(certain) // 2)
    while True:
        position, changed = 0, False
        while position < len(certain) and time.monotonic() < deadline:
            piece = certain[position : position + size]
            rest = certain[:position] + certain[position + size :]
            weaker = [*maybe, *forget_all(piece)]
            if rest and _fails((rest, weaker), from_start, deadline):
                certain, maybe, changed = rest, weaker, True
            else:
                position += size
        if (size == 1 and not changed) or time.monotonic() >= deadline:
            return certain, maybe
        size = max(1, size // 2)


def _window(certain: list[Operation], maybe: list[Operation], from_start: bool, found: Found) -> Window:
    assert found.stuck is not None
    shown = {id(o) for o in maybe if o in found.order or _concerns(o, certain, found.stuck)}
    first = None if from_start else ANY
    ends = [values_of(order, first)[-1] for order in found.orders]
    return Window(
        found.stuck.key,
        sorted(certain, key=lambda o: o.call),
        sorted((o for o in maybe if id(o) in shown), key=lambda o: o.call),
        from_start,
        found.stuck,
        found.order,
        values_of(found.order, first),
        sorted(set(ends))[:POSSIBLE_MAX],
        len(maybe) - len(shown),
    )


def _concerns(operation: Operation, certain: Sequence[Operation], stuck: Operation) -> bool:
    """Whether what the operation writes is what one of the others looks at (absence: what `stuck` looks at)."""
    looked_at = [_looks_at(other) for other in (*certain, stuck)]
    if operation.kind == "append":
        return any(text is not None and operation.value is not None and operation.value in text for text in looked_at)
    written = None if operation.kind == "delete" else operation.value
    if written is None:
        return _looks_at(stuck) is None and (stuck.kind in ("get", "cas") or stuck.output is False)
    return written in looked_at


def _looks_at(operation: Operation) -> str | None:
    if operation.kind == "cas":
        return operation.expect
    return operation.output if isinstance(operation.output, str) else None


def explanation(window: Window) -> list[str]:
    """Sentences: what is known before, the longest order that works, what does not fit."""
    first = "At first the key is absent" if window.from_start else "Whatever the value before"
    stuck = window.stuck
    possible = " or ".join(window.possible)
    lines = []
    if window.order:
        steps = ", ".join(f"{describe(o)} (client {o.client})" for o in window.order)
        lines.append(f"{first}, the longest order that works is: {steps}.")
    else:
        lines.append(f"{first}, nothing can be placed before it.")
    met = "the key could only be absent" if possible == "absent" else f"the value could only be {possible}"
    if window.possible == ["any value"]:
        met = "nothing gives it that"
    lines.append(f"No place is left for {describe(stuck)} (client {stuck.client}): it {needs(stuck)}, and {met}.")
    if window.hidden:
        noun, verb = ("operation", "makes") if window.hidden == 1 else ("operations", "make")
        lines.append(f"{window.hidden:,} more {noun} that ran before or meanwhile {verb} no difference.")
    return lines
