"""What the log means, told a second time: a plain model of keys, values and exactly-once, fed with the committed log.

It trusts nothing of `machines`: it executes every frame once, in the order of the log, and compares each answer. The
one thing taken from the replicas is whether a frame was *refused* (an unknown session, a window), since which sessions
are evicted when is their business; a refused frame must then have no effect anywhere.

Every version of every key is kept with its index, so that one can ask afterwards whether a read may have seen it.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, Final, Protocol

from zcluster import wire
from zcluster.sim.world import Violation
from zcluster.types import Index

_MAP: Final = range(0x80, 0x90)  # first byte of a small MessagePack map: a refusal


class Model(Protocol):
    """What a model of one's own machine has to offer; see docs/simulator.md."""

    def apply(self, index: Index, frames: list[bytes], results: list[bytes]) -> None:
        """One committed entry and what the replica that applied it first had answered. Raises: Violation."""


class KeyValueModel:
    """Model of `machines.mux.ClusterMachine`.

    executed: value written (unique in a run) -> (index, result). removals: key -> (index, result) of each delete and of
    each cas that deletes.
    """

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.revision = 0
        self.executed: dict[bytes, tuple[Index, Any]] = {}
        self.removals: dict[str, list[tuple[Index, Any]]] = {}
        self._answered: dict[tuple[int, int], bytes] = {}
        self._sessions: dict[int, int] = {}  # id -> nonce it was given to
        self._version_index: dict[str, list[Index]] = {}
        self._version_value: dict[str, list[bytes | None]] = {}

    def apply(self, index: Index, frames: list[bytes], results: list[bytes]) -> None:
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
            given = wire.decode(result)
            expected = [self._run(index, op, answer) for op, answer in zip(frame.ops, given, strict=True)]
            if given != expected:
                raise Violation("results", f"index {index}, {frame.ops}: answered {given}, right is {expected}")

    def _register(self, nonce: int, session: int) -> None:
        if self._sessions.setdefault(session, nonce) != nonce:
            raise Violation("exactly-once", f"session {session} was given to two clients")

    def _run(self, index: Index, op: list[Any], answer: Any) -> Any:
        code, key = op[0], op[1]
        value = self.values.get(key)
        if code == wire.OP_PUT:
            result: Any = self._set(index, key, op[2])
            self._note(index, op[2], result)
        elif code == wire.OP_APPEND:
            self._set(index, key, (value or b"") + op[2])
            result = self.values[key]
            self._note(index, op[2], result)
        elif code == wire.OP_DELETE:
            result = value is not None
            if result:
                self._set(index, key, None)
            self.removals.setdefault(key, []).append((index, result))
        elif code == wire.OP_CAS:
            result = value == op[2]
            if result and not (value is None and op[3] is None):
                self._set(index, key, op[3])
            if op[3] is None:
                self.removals.setdefault(key, []).append((index, result))
            else:
                self._note(index, op[3], result)
        elif code == wire.OP_GET:
            result = value
        else:
            result = answer  # not modelled
        return result

    def _note(self, index: Index, written: bytes, result: Any) -> None:
        if self.executed.setdefault(written, (index, result)) != (index, result):
            raise Violation("exactly-once", f"{written!r} was written at {self.executed[written][0]} and at {index}")

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

    def removed_between(self, key: str, result: Any, low: Index, high: Index) -> Index | None:
        """The first index in (low, high] with a removal of `key` that had this result."""
        for index, found in self.removals.get(key, ()):
            if low < index <= high and found == result:
                return index
        return None
