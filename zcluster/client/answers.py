"""What nodes answer: whether it makes sense, and what it means to a caller. PURE."""

from __future__ import annotations

from typing import Any, Final

from zcluster import wire
from zcluster.client.flight import Flight
from zcluster.errors import Busy, Error, InvalidInput, TooLarge

TIMEOUT: Final = "no answer in time; nothing was changed. Is a majority of the nodes up? See: zcluster status"
NO_QUORUM: Final = (
    "no leader took the write in time; it was certainly not applied. "
    "Is a majority of the nodes up? See: zcluster status"
)
UNKNOWN: Final = (
    "the write was sent but not answered in time: it may have been applied, or may still be. Read the key to find out"
)
LOST_SESSION: Final = (
    "the cluster no longer knows this client's session, and an earlier attempt of the write was not answered: it may "
    "have been applied. Read the key to find out"
)


def is_error(value: Any) -> bool:
    """Whether an operation's result is an error: [code, text]. A listing is [[key, value, ...], more]."""
    return type(value) is list and len(value) == 2 and type(value[0]) is int and type(value[1]) is str


def make_error(code: int, text: str) -> Error:
    """The typed error of an error code (see zcluster.wire)."""
    if code == wire.E_TOO_LARGE:
        return TooLarge(text)
    if code == wire.E_FULL:
        return Busy(text)
    if code == wire.E_BAD_REQUEST:
        return InvalidInput(text)
    return Error(f"the cluster answered with error {code}: {text}")


def is_leadership(content: Any) -> bool:
    """Whether it is [leader replica id or 0, term]."""
    if type(content) is not list or len(content) != 2:
        return False
    leader, term = content
    return type(leader) is int and type(term) is int and leader >= 0 and term >= 0


def makes_sense(kind: int, content: Any, flight: Flight) -> bool:
    """Whether an answer has the form that its kind, and the request, ask for."""
    if kind == wire.RESULT:
        if type(content) is dict:
            return type(content.get("code")) is int
        if flight.cargo is None:
            return type(content) is list and len(content) == 1 and type(content[0]) is int
        return type(content) is list and len(content) == len(flight.cargo.ops)
    if kind == wire.NOT_LEADER:
        return is_leadership(content)
    if kind == wire.FAILED:
        return is_error(content)
    return kind == wire.BUSY
