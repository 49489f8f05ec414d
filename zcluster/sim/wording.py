"""Operations, values and times of a history as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from zcluster.sim.history import Operation


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
