"""What the log means, told a second time: a plain model of keys, values and exactly-once, fed with the committed log.

It trusts nothing of `machines`: it executes every frame once, in the order of the log, and compares each answer. The
one thing taken from the replicas is whether a frame was *refused* (an unknown session, a window), since which sessions
are evicted when is their business; a refused frame must then have no effect anywhere.

Every version of every key is kept with its index, so that one can ask afterwards whether a read may have seen it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from typing import Any, Final, NamedTuple

from zcluster import wire
from zcluster.sim.world import Violation
from zcluster.types import Index

_MAP: Final = range(0x80, 0x90)  # first byte of a small MessagePack map: a refusal


class FrameModel(ABC):
    """Exactly-once: each frame takes effect at its first place in the log, whole, and its answer stays the same.
    What its operations mean is said by `run`."""

    def __init__(self) -> None:
        self._answered: dict[tuple[int, int], bytes] = {}
        self._sessions: dict[int, int] = {}  # id -> nonce it was given to

    def apply(self, index: Index, frames: list[bytes], results: list[bytes]) -> None:
        """One committed entry and what the replica that applied it first had answered. Raises: Violation."""
        for data, result in zip(frames, results, strict=True):
            frame = wire.decode_frame(data)
            if result[0] in _MAP:
                continue
            if frame.id == 0:
                self._register(frame.session, wire.decode(result)[0])
                continue
            key = (frame.session, frame.id)
            before = self._answered.get(key)
            if before is not None:
                if before != result:
                    raise Violation("exactly-once", f"frame {key} was executed again at {index}")
                continue
            self._answered[key] = result
            self.run(index, frame.ops, wire.decode(result))

    def _register(self, nonce: int, session: int) -> None:
        if self._sessions.setdefault(session, nonce) != nonce:
            raise Violation("exactly-once", f"session {session} was given to two clients")

    @abstractmethod
    def run(self, index: Index, ops: list[Any], answers: list[Any]) -> None:
        """Execute a frame. Raises: Violation where an answer is wrong."""


class Execution(NamedTuple):
    """Where the log holds an operation: the index, its place in its frame, the frame and the answers to it."""

    at: Index
    place: int
    ops: list[Any]
    results: list[Any]


class KeyValueModel(FrameModel):
    """Model of `machines.mux.ClusterMachine`.

    Args:
        value_bytes_max: larger values are refused.
    Attributes:
        executed: value written (unique in a run) -> where that was executed. removals: key -> (index, result) of each
        delete and of each cas that deletes.
    """

    def __init__(self, value_bytes_max: int = 1 << 20) -> None:
        super().__init__()
        self.values: dict[str, bytes] = {}
        self.revision = 0
        self.executed: dict[bytes, Execution] = {}
        self.removals: dict[str, list[tuple[Index, Any]]] = {}
        self._value_bytes_max = value_bytes_max
        self._version_index: dict[str, list[Index]] = {}
        self._version_value: dict[str, list[bytes | None]] = {}

    # -- operations ---------------------------------------------------------------------------------------------------

    def run(self, index: Index, ops: list[Any], answers: list[Any]) -> None:
        expected: list[Any] = []
        for place, (op, answer) in enumerate(zip(ops, answers, strict=True)):
            expected.append(self._run(index, op, answer))
            token = op[3] if op[0] == wire.OP_CAS else op[2] if op[0] in (wire.OP_PUT, wire.OP_APPEND) else None
            if token is not None:
                known = self.executed.setdefault(token, Execution(index, place, ops, answers))
                if (known.at, known.place) != (index, place):
                    raise Violation("exactly-once", f"{token!r} was written at {known.at} and at {index}")
        if answers != expected:
            raise Violation("results", f"index {index}, {ops}: answered {answers}, right is {expected}")

    def _run(self, index: Index, op: list[Any], answer: Any) -> Any:
        code, key = op[0], op[1]
        value = self.values.get(key)
        if code == wire.OP_PUT:
            return self._too_large(op[2], answer) or self._set(index, key, op[2])
        if code == wire.OP_APPEND:
            new = (value or b"") + op[2]
            refusal = self._too_large(new, answer)
            if refusal is None:
                self._set(index, key, new)
            return refusal or new
        if code == wire.OP_DELETE:
            result = value is not None
            if result:
                self._set(index, key, None)
            self.removals.setdefault(key, []).append((index, result))
            return result
        if code == wire.OP_CAS:
            return self._swap(index, op, value, answer)
        return value if code == wire.OP_GET else answer  # others are not modelled

    def _swap(self, index: Index, op: list[Any], value: bytes | None, answer: Any) -> Any:
        _, key, expected, new = op
        refusal = self._too_large(new or b"", answer)
        if refusal is not None:
            return refusal
        result = value == expected
        if result and not (value is None and new is None):
            self._set(index, key, new)
        if new is None:
            self.removals.setdefault(key, []).append((index, result))
        return result

    def _too_large(self, value: bytes, answer: Any) -> list[Any] | None:
        """The refusal of a value that is too large; its words are the machine's own."""
        if len(value) <= self._value_bytes_max:
            return None
        text = answer[1] if type(answer) is list and len(answer) == 2 else "..."
        return [wire.E_TOO_LARGE, text]

    def _set(self, index: Index, key: str, value: bytes | None) -> int:
        self.revision += 1
        if value is None:
            del self.values[key]
        else:
            self.values[key] = value
        indices = self._version_index.setdefault(key, [0])
        values = self._version_value.setdefault(key, [None])
        if indices[-1] == index:
            values[-1] = value
        else:
            indices.append(index)
            values.append(value)
        return self.revision

    # -- what may have been seen --------------------------------------------------------------------------------------

    def seen_since(self, key: str, value: bytes | None, low: Index, high: Index) -> Index | None:
        """The first index in [low, high] after which `key` had `value`; None: it never had it there."""
        indices = self._version_index.get(key)
        if indices is None:
            return low if value is None else None
        values = self._version_value[key]
        position = bisect_right(indices, low) - 1
        if values[position] == value:
            return low
        for later in range(position + 1, len(indices)):
            if indices[later] > high:
                break
            if values[later] == value:
                return indices[later]
        return None

    def together_since(self, pairs: list[tuple[str, bytes | None]], low: Index, high: Index) -> Index | None:
        """The first index in [low, high] after which all of these keys had these values at once."""
        at, agreed, position = low, 0, 0
        while agreed < len(pairs):
            found = self.seen_since(*pairs[position], at, high)
            if found is None:
                return None
            agreed = agreed + 1 if found == at else 1
            at, position = found, (position + 1) % len(pairs)
        return at

    def page_since(self, op: Any, page: list[Any], low: Index, high: Index) -> Index | None:
        """The first index in [low, high] after which a listing gives this page; `op`, `page`: see wire.OP_LIST."""
        _, prefix, after, count = op
        keys, values, more = page[0][::2], page[0][1::2], page[1]
        inside = [key for key in self._version_index if key.startswith(prefix) and (after is None or key > after)]
        if sorted(set(keys)) != keys or not set(keys) <= set(inside):
            return None
        if len(keys) > count or (more and len(keys) < count):
            return None
        beyond = [key for key in inside if more and key > keys[-1]]
        absent = [key for key in inside if key not in keys and key not in beyond]
        wanted = [*zip(keys, values, strict=True), *((key, None) for key in absent)]
        at = self.together_since(wanted, low, high)
        while at is not None and more:
            exists = [there for key in beyond if (there := self._exists_since(key, at, high)) is not None]
            if not exists or min(exists) == at:
                return at if exists else None
            at = self.together_since(wanted, min(exists), high)
        return at

    def _exists_since(self, key: str, low: Index, high: Index) -> Index | None:
        indices, values = self._version_index[key], self._version_value[key]
        for position in range(bisect_right(indices, low) - 1, len(indices)):
            if indices[position] > high:
                break
            if values[position] is not None:
                return max(indices[position], low)
        return None

    def removed_between(self, key: str, result: Any, low: Index, high: Index) -> Index | None:
        """The first index in (low, high] with a removal of `key` that had this result."""
        for index, found in self.removals.get(key, ()):
            if low < index <= high and found == result:
                return index
        return None
