"""What a pool puts into its link: one task on its way, of whatever class (`futures`, `chunks`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from zcluster.tasks import payload
from zcluster.tasks import protocol as p
from zcluster.tasks.execute import run
from zcluster.tasks.payload import Segments


class Call(Protocol):
    """One task on its way. Classes say what happens in the end."""

    number: int
    function: p.Function
    payload: bytes
    segments: Segments
    flags: int
    sent: bool  # the router has it, or had it
    claim: Callable[[Any], None] | None  # what to do once the router has given the task back; see `Link.claim`

    def settle(self, status: int, data: bytes, segments: Segments) -> None:
        """The result. With the lock held."""

    def settle_error(self, error: BaseException) -> None:
        """There will be no result: `error` says why. With the lock held."""

    def done(self) -> bool:
        """Cheap; any thread."""


def run_call(call: Call) -> tuple[int, bytes, Segments]:
    """Run a task in this process as a worker would. Never raises."""
    return run(lambda: payload.load(call.function.blob, None), call.payload, call.segments, call.flags)
