"""The verdict on a whole history: key by key, and for a wrong one the smallest part of it that shows so.

A smallest failing window is made by steps each of which only weakens what is asked. If the window has no order, then
neither has the history:

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from zcluster.sim.history import Operation, by_key
from zcluster.sim.linearize import Found, OutOfTime, Search, find_order

Result = Literal["linearizable", "not_linearizable", "undecided"]
SHRINK_S_MAX: Final = 20.0
POSSIBLE_MAX: Final = 5
NEIGHBOURS: Final = 60
WHOLE_S: Final = 2.0
"""So long a key is searched as a whole before its parts are."""


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


@dataclass(frozen=True)
class Verdict:
    """On a history. Keys are in the order of their first operation."""

    result: Result
    operations: int
    clients: int
    keys: int
    seconds: float
    failed_keys: list[str] = field(default_factory=list)
    undecided_keys: list[str] = field(default_factory=list)
    window: Window | None = None


def check_history(operations: Sequence[Operation], timeout_s: float = 60.0, *, explain: bool = True) -> Verdict:
    """Decide within `timeout_s`, as far as that suffices.

    Args:
        explain: also find the window of a wrong history, which may take as long again, at most SHRINK_S_MAX.
    """
    began = time.monotonic()
    deadline = began + timeout_s
    groups = dict(by_key(operations))
    failed: dict[str, Found] = {}
    undecided: set[str] = set()
    for key, group in sorted(groups.items(), key=lambda item: len(item[1])):  # a large one shall not starve small ones
        try:
            found = _decide(group, began, deadline)
        except OutOfTime:
            undecided.add(key)
            continue
        if not found.linearizable:
            failed[key] = found
    window = None
    if failed and explain:
        key = min(failed, key=lambda k: _returned(failed[k].stuck))
        window = find_window(groups[key], failed[key], time.monotonic() + min(max(timeout_s, 1.0), SHRINK_S_MAX))
    return Verdict(
        "not_linearizable" if failed else "undecided" if undecided else "linearizable",
        len(operations),
        len({operation.client for operation in operations}),
        len(groups),
        time.monotonic() - began,
        [key for key in groups if key in failed],
        [key for key in groups if key in undecided],
        window,
    )


def _decide(operations: Sequence[Operation], began: float, deadline: float) -> Found:
    """Search the whole; if that takes long, look for a contradiction among neighbours first. Raises: OutOfTime.

    In a wrong history with many unknown operations the search must try all that they might have done from the beginning
    on, while a few operations suffice to show what is wrong.
    """
    try:
        return find_order(operations, deadline=min(deadline, time.monotonic() + min(WHOLE_S, (deadline - began) / 10)))
    except OutOfTime:
        pass
    alive = sorted((o for o in operations if o.status != "fail"), key=lambda o: o.call)
    certain = [o for o in alive if o.status == "ok"]
    for first in range(0, len(certain), NEIGHBOURS // 2):
        if time.monotonic() > deadline:
            raise OutOfTime
        end = _returned(max(certain[first : first + NEIGHBOURS], key=_returned))
        near, maybe = _since(_until(alive, end), certain[first].call)
        try:
            found = _search([*near, *maybe], False, min(deadline, time.monotonic() + 0.5))
        except OutOfTime:
            continue
        if not found.linearizable:
            return found
    return find_order(operations, deadline=deadline)


def _returned(operation: Operation | None) -> int:
    assert operation is not None and operation.returned is not None
    return operation.returned


# -- the window -------------------------------------------------------------------------------------------------------
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


def _search(operations: Sequence[Operation], from_start: bool, deadline: float, *, look_ahead: bool = True) -> Found:
    return Search(operations, deadline, look_ahead=look_ahead).run(from_start=from_start)


def _fails(operations: Sequence[Operation], from_start: bool, deadline: float) -> bool:
    """Whether there is certainly no order."""
    try:
        return not _search(operations, from_start, deadline).linearizable
    except OutOfTime:
        return False


def find_window(operations: Sequence[Operation], found: Found, deadline: float) -> Window:
    """Shrink the history of a key that has no order; when time is up, what has been reached by then counts."""
    alive = [operation for operation in operations if operation.status != "fail"]
    from_start, certain, maybe = _cut(*_end(alive, _returned(found.stuck), deadline), deadline)
    thin, maybe = _thin(certain, maybe, from_start, deadline)
    # What was forgotten of operations that matter is remembered for the reader: that only asks more.
    matter = {_name(o) for o in maybe if _concerns(o, thin, certain[-1])}
    thin = [o for o in certain if o in thin or _name(o) in matter]
    maybe = [o for o in maybe if o.status != "ok" and _name(o) not in {_name(kept) for kept in thin}]
    try:
        small = _search([*thin, *maybe], from_start, max(deadline, time.monotonic() + 5.0), look_ahead=False)
    except OutOfTime:
        small = found
    return _window(thin, maybe, from_start, found if small.linearizable else small)


def _name(operation: Operation) -> tuple[int, int, int]:
    return operation.line, operation.client, operation.call


Part = tuple[list[Operation], list[Operation]]
"""(operations to be explained, in the order of their calls; operations that may have taken effect)"""


def _until(operations: Sequence[Operation], end: int) -> Part:
    """What is known at a moment: the outcome of what has returned, and that the rest may have taken effect."""
    certain: list[Operation] = []
    rest: list[Operation] = []
    for operation in operations:
        if operation.call <= end:
            (certain if operation.status == "ok" and _returned(operation) <= end else rest).append(operation)
    return sorted(certain, key=lambda o: o.call), forget_all(rest)


def _since(part: Part, begin: int) -> Part:
    """What is known if nothing is before a moment: what was called before it and had not returned may take effect."""
    certain, maybe = part
    running = [o for o in certain if o.call < begin <= _returned(o)]
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
    returns = sorted(_returned(o) for o in alive if o.status == "ok")
    low = returns.index(reached)
    begin = returns[max(0, low - NEAR)]

    def fails_near(index: int) -> bool:
        certain, maybe = _since(_until(alive, returns[index]), begin)
        return _fails([*certain, *maybe], False, deadline)

    def fails(index: int) -> bool:
        certain, maybe = _until(alive, returns[index])
        return _fails([*certain, *maybe], True, deadline)

    index = _first(fails_near, low, min(low + NEAR, len(returns) - 1))
    if index is not None:
        return _since(_until(alive, returns[index]), begin)
    index = _first(fails, low, len(returns) - 1)
    return _until(alive, returns[-1 if index is None else index])


def _cut(
    certain: list[Operation], maybe: list[Operation], deadline: float
) -> tuple[bool, list[Operation], list[Operation]]:
    """The latest beginning from which there is still no order: (from the start, operations, those that may be)."""

    def fails(count: int) -> bool:
        kept, possible = _since((certain, maybe), certain[-count].call)
        return _fails([*kept, *possible], False, deadline)

    count = _first(fails, 1, len(certain))
    if count is None:
        return True, certain, maybe
    return False, *_since((certain, maybe), certain[-count].call)


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
            if rest and _fails([*rest, *weaker], from_start, deadline):
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


# -- values, as text --------------------------------------------------------------------------------------------------
class _Any:
    """Of a value: nothing is known about it."""


ANY: Final = _Any()
TEXT_MAX: Final = 32


def quoted(value: str | _Any | None, size_max: int = TEXT_MAX) -> str:
    """A value as people read it; a long one without its middle.

    >>> quoted("a"), quoted(None), quoted("0123456789" * 9, 20)
    ('"a"', 'absent', '"01234567…123456789"')
    """
    if isinstance(value, _Any):
        return "any value"
    if value is None:
        return "absent"
    plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in value)
    if len(plain) > size_max - 2:
        half = (size_max - 3) // 2
        plain = plain[:half] + "…" + plain[-(size_max - 3 - half) :]
    return f'"{plain}"'


def values_of(order: Sequence[Operation], first: str | _Any | None) -> list[str]:
    """The value before an order and after each of its operations, as text."""
    value = first
    values = [quoted(value)]
    for operation in order:
        value = _after(operation, value)
        values.append(quoted(value))
    return values


def _after(operation: Operation, before: str | _Any | None) -> str | _Any | None:
    known = operation.status == "ok"
    match operation.kind:
        case "get":
            assert not isinstance(operation.output, bool)
            return operation.output if known else before
        case "put":
            return operation.value
        case "delete":
            return None
        case "cas":
            return before if known and operation.output is False else operation.value
        case "append":
            if known and isinstance(operation.output, str):
                return operation.output
            return ANY if isinstance(before, _Any) else (before or "") + (operation.value or "")


def describe(operation: Operation) -> str:
    """What was asked and answered: `cas "1" → "2": true`."""
    text: str = operation.kind
    if operation.kind == "cas":
        text += f" {quoted(operation.expect)} → {quoted(operation.value)}"
    elif operation.value is not None:
        text += f" {quoted(operation.value)}"
    if operation.status != "ok" or operation.kind == "put":
        return text
    if isinstance(operation.output, bool):
        return f"{text}: {str(operation.output).lower()}"
    if operation.output is None and operation.kind in ("append", "delete"):
        return text
    return f"{text}: {quoted(operation.output)}"


def needs(operation: Operation) -> str:
    """What an operation's outcome says about the value that it met."""
    if operation.kind == "get":
        assert not isinstance(operation.output, bool)
        return f"needs {quoted(operation.output)}"
    if operation.kind == "cas":
        return f"needs {quoted(operation.expect)}" if operation.output else f"needs any but {quoted(operation.expect)}"
    if operation.kind == "delete" and operation.output is not None:
        return "needs a value" if operation.output else "needs no value"
    if operation.kind == "append" and isinstance(operation.output, str):
        data = operation.value or ""
        if not operation.output.endswith(data):
            return f"cannot give a value that does not end with {quoted(data)}"
        before = operation.output[: -len(data) or None]
        return f"needs {quoted(before)}" + (" or no value" if not before else "")
    return "must take effect"


def duration_text(ns: int) -> str:
    """About three figures.

    >>> duration_text(0), duration_text(12), duration_text(34_500), duration_text(2_500_000_000)
    ('0', '12ns', '34.5µs', '2.5s')
    """
    if ns == 0:
        return "0"
    for unit, size in (("s", 1_000_000_000), ("ms", 1_000_000), ("µs", 1_000)):
        if ns >= size:
            return f"{ns / size:.3g}{unit}" if ns < 1000 * size else f"{ns / size:,.0f}{unit}"
    return f"{ns}ns"


def span_text(operation: Operation, begin: int) -> str:
    """When an operation ran, counted from `begin`."""
    end = duration_text(operation.returned - begin) if operation.returned is not None else "…"
    return f"{duration_text(operation.call - begin)} – {end}"


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
