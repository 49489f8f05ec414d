"""Holding Ctrl-C back where it would leave something half done.

Python runs signal handlers between any two bytecodes of the main thread: also between receiving a message and noting it
down, or between putting an operation into a queue and its caller beside it. There a `KeyboardInterrupt` would leave the
client of a program that goes on (a prompt, a notebook) with other people's answers.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal.signal` costs ten times as much
import threading
from threading import get_ident
from types import FrameType
from typing import Any


class Shield:
    """Holds back Ctrl-C on the main thread, except inside `open()`.

    Only SIGINT with a Python handler is held back; that handler is called in the end, whatever it does. Shields nest.
    """

    __slots__ = ("_outer", "_pending", "_previous", "_shut")

    def __enter__(self) -> Shield:
        self._previous: Any = None
        self._outer: tuple[Shield, bool] | None = None
        self._pending = False
        self._shut = True
        if get_ident() == threading.main_thread().ident:
            previous = _signal.getsignal(_signal.SIGINT)
            outer = getattr(previous, "__self__", None)
            if isinstance(outer, Shield):
                self._outer = (outer, outer._shut)
                outer._shut = True
            elif callable(previous):
                self._previous = previous
                _signal.signal(_signal.SIGINT, self._hold)
        return self

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if self._shut:
            self._pending = True
        else:
            self._previous(number, frame)

    def open(self) -> _Opening:
        return _Opening(self if self._outer is None else self._outer[0])

    def __exit__(self, *_: object) -> None:
        if self._outer is not None:
            self._outer[0]._shut = self._outer[1]
        if self._previous is not None:
            _signal.signal(_signal.SIGINT, self._previous)
            if self._pending:
                self._previous(int(_signal.SIGINT), None)


class _Opening:
    """A stretch in which Ctrl-C may strike at once."""

    __slots__ = ("_shield",)

    def __init__(self, shield: Shield) -> None:
        self._shield = shield

    def __enter__(self) -> None:
        shield = self._shield
        shield._shut = False
        if shield._pending:
            shield._pending = False
            shield._shut = True
            shield._previous(int(_signal.SIGINT), None)

    def __exit__(self, *_: object) -> None:
        self._shield._shut = True
