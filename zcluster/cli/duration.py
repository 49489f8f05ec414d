"""Spans of time as people write them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    _SecondsType = click.ParamType[float]
else:
    _SecondsType = click.ParamType  # not generic before click 8.4

_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


def parse_duration(text: str) -> float:
    """Seconds. Without a unit the number means seconds. Raises: ValueError.

    >>> parse_duration("500ms"), parse_duration("10s"), parse_duration("1.5m"), parse_duration("3")
    (0.5, 10.0, 90.0, 3.0)
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|)", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no duration; write e.g. 500ms, 10s or 2m")
    return float(match[1]) * _UNITS_S[match[2]]


class Duration(_SecondsType):
    """The type of options that take a span of time; gives seconds as a float."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION: Final = Duration()


def seconds_text(seconds: float) -> str:
    """One figure after the point below ten minutes, then minutes.

    >>> seconds_text(0.44), seconds_text(75.2), seconds_text(3600)
    ('0.4s', '75.2s', '60m')
    """
    return f"{seconds:.1f}s" if seconds < 600 else f"{seconds / 60:.0f}m"
