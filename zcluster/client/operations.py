"""From what a caller writes to an operation on the wire: types, sizes, consistency, time. PURE.

Everything that can be refused without asking the cluster is refused here, with the same limits as the cluster's own.
"""

from __future__ import annotations

import math
from typing import Any, Final

from zcluster import wire
from zcluster.client.flight import Op
from zcluster.config import Settings
from zcluster.errors import InvalidInput, TooLarge, WrongType
from zcluster.types import Nanoseconds

PIPELINE_BYTES_MAX: Final = wire.FRAME_BYTES_MAX // 2
OP_BYTES: Final = 16
"""What an operation takes in a frame besides its key and values, about."""
TIMEOUT_S_MAX: Final = 1e9
BOUND_MS_MAX: Final = 86_400_000
_CODES: Final = {"linearizable": wire.LINEARIZABLE, "lease": wire.LEASE, "eventual": wire.EVENTUAL}


class Bounded:
    """A consistency: what is read was true at most `ms` milliseconds ago. Made by `bounded`."""

    __slots__ = ("ms",)

    def __init__(self, ms: int) -> None:
        self.ms = ms

    def __repr__(self) -> str:
        return f"bounded(ms={self.ms})"


Consistency = str | Bounded


def bounded(ms: int = 50) -> Bounded:
    """Consistency for reads that may be old, but at most `ms` milliseconds (1 to a day). Any node may answer.

    >>> bounded(ms=20)
    bounded(ms=20)
    """
    if type(ms) is not int or not 1 <= ms <= BOUND_MS_MAX:
        raise InvalidInput(f"bounded(ms): a whole number from 1 to {BOUND_MS_MAX}, not {ms!r}")
    return Bounded(ms)


def consistency_code(consistency: Consistency) -> tuple[int, int]:
    """(code, bound in ms) for the wire. Raises: InvalidInput."""
    if type(consistency) is Bounded:
        return wire.BOUNDED, consistency.ms
    code = _CODES.get(consistency) if isinstance(consistency, str) else None
    if code is None:
        raise InvalidInput(
            f'consistency {consistency!r}: use "linearizable", "lease", "eventual" or zcluster.bounded(ms=...)'
        )
    return code, 0


def timeout_ns(timeout: float) -> Nanoseconds:
    """Seconds to nanoseconds. Raises: InvalidInput."""
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise InvalidInput(f"timeout: seconds, a number above 0, not {timeout!r}")
    return math.ceil(min(timeout, TIMEOUT_S_MAX) * 1e9)


class Limits:
    """Checks keys and values against a cluster's settings, and makes operations of them."""

    def __init__(self, settings: Settings) -> None:
        self._key_bytes_max = settings.key_bytes_max
        self._short_key = settings.key_bytes_max // 4  # a character has at most four bytes
        self._value_bytes_max = settings.value_bytes_max

    def key(self, key: Any) -> str:
        """`key` as plain str. Raises: WrongType, InvalidInput, TooLarge."""
        if type(key) is str and len(key) <= self._short_key and key.isascii():
            return key
        plain = text(key, "a key")
        size_bytes = len(plain.encode())
        if size_bytes > self._key_bytes_max:
            raise TooLarge(f"the key has {size_bytes} bytes; key_bytes_max is {self._key_bytes_max}")
        return plain

    def value(self, value: Any, what: str = "a value") -> bytes:
        """`value` as plain bytes. Raises: WrongType, TooLarge."""
        if type(value) is not bytes:
            if not isinstance(value, bytes):
                raise WrongType(f"{what} must be bytes, not {type(value).__name__}")
            value = bytes(value)
        if len(value) > self._value_bytes_max:
            raise TooLarge(f"{what} has {len(value)} bytes; value_bytes_max is {self._value_bytes_max}")
        plain: bytes = value
        return plain

    # Each returns (operation, its size on the wire in bytes, about).
    def put(self, key: str, value: bytes) -> tuple[Op, int]:
        key, value = self.key(key), self.value(value)
        return (wire.OP_PUT, key, value), len(key) + len(value) + OP_BYTES

    def get(self, key: str) -> tuple[Op, int]:
        key = self.key(key)
        return (wire.OP_GET, key), len(key) + OP_BYTES

    def delete(self, key: str) -> tuple[Op, int]:
        key = self.key(key)
        return (wire.OP_DELETE, key), len(key) + OP_BYTES

    def cas(self, key: str, expected: bytes | None, new: bytes | None) -> tuple[Op, int]:
        key = self.key(key)
        expected = None if expected is None else self.value(expected, "the expected value")
        new = None if new is None else self.value(new, "the new value")
        return (wire.OP_CAS, key, expected, new), len(key) + len(expected or b"") + len(new or b"") + OP_BYTES

    def append(self, key: str, data: bytes) -> tuple[Op, int]:
        key, data = self.key(key), self.value(data, "what is appended")
        return (wire.OP_APPEND, key, data), len(key) + len(data) + OP_BYTES


LIST_COUNT: Final = 10_000


def list_page(prefix: str, after: str | None) -> Op:
    """One page of a listing; the cluster cuts it at about 1 MiB."""
    return (wire.OP_LIST, prefix, after, LIST_COUNT)


def text(value: Any, what: str) -> str:
    """`value` as plain str that UTF-8 can hold. Raises: WrongType, InvalidInput."""
    if not isinstance(value, str):
        raise WrongType(f"{what} must be str, not {type(value).__name__}")
    plain = str.__str__(value)
    try:
        plain.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{what} holds lone surrogates, which no UTF-8 text can: {plain!r}") from None
    return plain


def take_page(found: dict[str, bytes], page: list[Any]) -> str | None:
    """Add a page [[key, value, ...], more] to `found`. Returns: the key to go on after, None at the end."""
    pairs, more = page
    found.update(zip(pairs[::2], pairs[1::2], strict=True))
    return pairs[-2] if more and pairs else None
