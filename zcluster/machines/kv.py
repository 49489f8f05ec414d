"""Keys and values: the replicated map, its revision, and the overlay that lets a snapshot be taken in O(1).

    plain       reads and writes go to `base`
    frozen      a view of `base` is being read out: writes go to `overlay` (None marks a deletion), reads ask it first
    draining    the view is gone: writes go to `base` again, `maintain` moves the overlay into it, a slice at a time

Which of these a replica is in never shows in results: views are taken at other moments on other replicas.

The revision counts operations that changed the state: each put and append; a delete or cas only if it did something.
Bad input is a result, [code, text], never an exception. Keys are ordered by code point, which is also the order of
their UTF-8 bytes. A dict of str to bytes holds nothing the garbage collector needs to look at, whatever its size.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

from zcluster.machines.keys import KeyIndex, first_keys
from zcluster.wire import (
    E_BAD_REQUEST,
    E_FULL,
    E_TOO_LARGE,
    OP_APPEND,
    OP_CAS,
    OP_DELETE,
    OP_GET,
    OP_LIST,
    OP_PUT,
)

LIST_BYTES_MAX: Final = 1 << 20
LIST_COUNT_MAX: Final = 10_000
REPLY_BYTES_MAX: Final = 8 << 20
"""Keys and values in the answer to one frame; operations that would answer with more find E_FULL (at least one of
them is always answered)."""
MERGE_SLICE: Final = 2_000
CHUNK_BYTES: Final = 64 << 10

BAD_ARGUMENTS: Final = "wrong number or type of arguments"


class View:
    """The pairs as they were when it was taken. Must be closed, or dropped: until then the overlay grows."""

    def __init__(self, base: dict[str, bytes]) -> None:
        self._base = base
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def pairs(self) -> Iterator[list[str | bytes]]:
        """Lists [key, value, key, value, ...] of about CHUNK_BYTES each."""
        chunk: list[str | bytes] = []
        size_bytes = 0
        for key, value in self._base.items():
            chunk += (key, value)
            size_bytes += len(key) + len(value) + 8
            if size_bytes >= CHUNK_BYTES:
                yield chunk
                chunk, size_bytes = [], 0
        if chunk:
            yield chunk


class KvStore:
    """The map. `apply` runs writes and reads in order; `query` only reads."""

    def __init__(self, key_bytes_max: int, value_bytes_max: int) -> None:
        self.revision = 0
        self._key_bytes_max = key_bytes_max
        self._short_key = key_bytes_max // 4  # a character has at most four bytes
        self._value_bytes_max = value_bytes_max
        self._base: dict[str, bytes] = {}
        self._overlay: dict[str, bytes | None] = {}
        self._view: View | None = None
        self._index = KeyIndex(self._base)
        self._reply_bytes = 0
        self._writes: dict[int, Callable[[list[Any]], Any]] = {
            OP_PUT: self._put,
            OP_DELETE: self._delete,
            OP_CAS: self._cas,
            OP_APPEND: self._append,
        }
        self._reads: dict[int, Callable[[list[Any]], Any]] = {OP_GET: self._get, OP_LIST: self._list}

    # -- operations ---------------------------------------------------------------------------------------------------
    def apply(self, ops: list[Any]) -> list[Any]:
        """One result per op, in order. The loop serves the common case, a well-formed put, without a call."""
        results: list[Any] = []
        append = results.append
        frozen = self._view is not None
        target: dict[str, Any] = self._overlay if frozen else self._base
        stale = None if frozen else (self._overlay or None)
        short_key, value_bytes_max = self._short_key, self._value_bytes_max
        revision = self.revision
        self._reply_bytes = 0
        for op in ops:
            if len(op) == 3:
                code, key, value = op
                if (
                    code == OP_PUT
                    and type(key) is str
                    and type(value) is bytes
                    and len(key) <= short_key
                    and len(value) <= value_bytes_max
                ):
                    target[key] = value
                    if stale is not None:
                        stale.pop(key, None)
                    revision += 1
                    append(revision)
                    continue
            self.revision = revision
            append(self._run(op, self._writes))
            revision = self.revision
        self.revision = revision
        return results

    def query(self, ops: list[Any]) -> list[Any]:
        """One result per op; operations that write are refused one by one."""
        self._reply_bytes = 0
        return [self._run(op, {}) for op in ops]

    def _run(self, op: Any, writes: dict[int, Callable[[list[Any]], Any]]) -> Any:
        if type(op) is not list or not op or type(op[0]) is not int:
            return [E_BAD_REQUEST, "an operation is a list that starts with its code"]
        handler = self._reads.get(op[0]) or writes.get(op[0])
        if handler is None:
            return [E_BAD_REQUEST, f"operation {op[0]} is unknown, or not allowed here"]
        return handler(op)

    def _put(self, op: list[Any]) -> Any:
        if len(op) != 3 or type(op[1]) is not str or type(op[2]) is not bytes:
            return [E_BAD_REQUEST, BAD_ARGUMENTS]
        if refused := self._too_large(op[1], op[2]):
            return refused
        self._store(op[1], op[2])
        self.revision += 1
        return self.revision

    def _get(self, op: list[Any]) -> Any:
        if len(op) != 2 or type(op[1]) is not str:
            return [E_BAD_REQUEST, BAD_ARGUMENTS]
        if self._reply_bytes >= REPLY_BYTES_MAX:
            return [E_FULL, "the answer would be too large; ask for fewer keys at a time"]
        value = self._value(op[1])
        if value is not None:
            self._reply_bytes += len(value)
        return value

    def _delete(self, op: list[Any]) -> Any:
        if len(op) != 2 or type(op[1]) is not str:
            return [E_BAD_REQUEST, BAD_ARGUMENTS]
        if self._value(op[1]) is None:
            return False
        self._remove(op[1])
        self.revision += 1
        return True

    def _cas(self, op: list[Any]) -> Any:
        if len(op) != 4 or type(op[1]) is not str:
            return [E_BAD_REQUEST, BAD_ARGUMENTS]
        _, key, expected, new = op
        if not (expected is None or type(expected) is bytes) or not (new is None or type(new) is bytes):
            return [E_BAD_REQUEST, BAD_ARGUMENTS]
        if refused := self._too_large(key, new or b""):
            return refused
        if self._value(key) != expected:
            return False
        if new is not None:
            self._store(key, new)
            self.revision += 1
        elif expected is not None:
            self._remove(key)
            self.revision += 1
        return True

    def _append(self, op: list[Any]) -> Any:
        if len(op) != 3 or type(op[1]) is not str or type(op[2]) is not bytes:
            return [E_BAD_REQUEST, BAD_ARGUMENTS]
        if self._reply_bytes >= REPLY_BYTES_MAX:
            return [E_FULL, "the answer would be too large; append to fewer keys at a time"]
        old = self._value(op[1]) or b""
        if len(old) + len(op[2]) > self._value_bytes_max:
            return [E_TOO_LARGE, self._large_value(len(old) + len(op[2]))]
        if refused := self._too_large(op[1], b""):
            return refused
        new = old + op[2]
        self._store(op[1], new)
        self.revision += 1
        self._reply_bytes += len(new)
        return new

    def _list(self, op: list[Any]) -> Any:
        if len(op) != 4 or type(op[1]) is not str or not (op[2] is None or type(op[2]) is str):
            return [E_BAD_REQUEST, BAD_ARGUMENTS]
        if type(op[3]) is not int or op[3] < 1:
            return [E_BAD_REQUEST, "count must be a whole number above 0"]
        if self._reply_bytes >= REPLY_BYTES_MAX:
            return [E_FULL, "the answer would be too large; list fewer prefixes at a time"]
        count = min(op[3], LIST_COUNT_MAX)
        pairs: list[str | bytes] = []
        size_bytes = 0
        for key in self._keys_after(op[1], op[2], count + 1):
            value = self._value(key)
            if value is None:
                continue
            size_bytes += len(key.encode()) + len(value)
            if len(pairs) == 2 * count or (pairs and size_bytes > LIST_BYTES_MAX):
                return [pairs, True]
            pairs += (key, value)
            self._reply_bytes += len(key) + len(value)
        return [pairs, False]

    def _too_large(self, key: str, value: bytes) -> list[Any] | None:
        if len(key) > self._short_key:
            size_bytes = len(key.encode())
            if size_bytes > self._key_bytes_max:
                return [E_TOO_LARGE, f"the key has {size_bytes} bytes; key_bytes_max is {self._key_bytes_max}"]
        if len(value) > self._value_bytes_max:
            return [E_TOO_LARGE, self._large_value(len(value))]
        return None

    def _large_value(self, size_bytes: int) -> str:
        return f"the value would have {size_bytes} bytes; value_bytes_max is {self._value_bytes_max}"

    # -- base and overlay ---------------------------------------------------------------------------------------------
    def _value(self, key: str) -> bytes | None:
        if self._overlay:
            try:
                return self._overlay[key]
            except KeyError:
                pass
        return self._base.get(key)

    def _store(self, key: str, value: bytes) -> None:
        if self._view is not None:
            self._overlay[key] = value
        else:
            self._base[key] = value
            self._overlay.pop(key, None)

    def _remove(self, key: str) -> None:
        """Take out a key that exists."""
        if self._view is not None:
            self._overlay[key] = None
            return
        self._overlay.pop(key, None)
        if self._base.pop(key, None) is not None:
            self._index.removed(key)

    def _keys_after(self, prefix: str, after: str | None, count: int) -> Iterator[str]:
        """Keys in order, among them some that the overlay has deleted; at least `count` that exist, if there are."""
        overlay = self._overlay
        deleted = sum(1 for value in overlay.values() if value is None) if overlay else 0
        keys = self._index.after(prefix, after, count + deleted)
        if not overlay:
            return keys
        new = first_keys(overlay, prefix, after, len(overlay))
        base = self._base
        return heapq.merge(keys, [key for key in new if key not in base])

    def __len__(self) -> int:
        base, count = self._base, len(self._base)
        for key, value in self._overlay.items():
            count += (value is not None) - (key in base)
        return count

    def items(self) -> Iterator[tuple[str, bytes]]:
        """All pairs in key order; O(n log n), for checks."""
        overlay = self._overlay
        for key in sorted({**self._base, **overlay} if overlay else self._base):
            value = self._value(key)
            if value is not None:
                yield key, value

    # -- snapshots ----------------------------------------------------------------------------------------------------
    def capture(self) -> View:
        """Freeze the pairs. O(1), unless an earlier overlay is still draining: then that is finished first."""
        assert self._view is None or self._view.closed, "at most one capture at a time"
        while self._drain():
            pass
        self._view = View(self._base)
        return self._view

    def maintain(self) -> bool:
        """Drain a slice of the overlay once its view is closed, or index a slice of keys. True: there is more."""
        if self._view is not None and not self._view.closed:
            return False
        return self._drain() or self._index.work()

    def _drain(self) -> bool:
        self._view = None
        overlay, base = self._overlay, self._base
        for _ in range(min(MERGE_SLICE, len(overlay))):
            key, value = overlay.popitem()
            if value is not None:
                base[key] = value
            elif base.pop(key, None) is not None:
                self._index.removed(key)
        return bool(overlay)

    def replace(self, pairs: dict[str, bytes], revision: int) -> None:
        """Become another map, the one of a snapshot."""
        self._base, self._overlay, self._view = pairs, {}, None
        self._index = KeyIndex(pairs)
        self.revision = revision


def pairs_of(chunk: list[Any]) -> Iterator[tuple[str, bytes]]:
    """Pairs of one of `View.pairs`' lists. Raises: ValueError."""
    if len(chunk) % 2:
        raise ValueError("a key without its value")
    keys, values = islice(chunk, 0, None, 2), islice(chunk, 1, None, 2)
    for key, value in zip(keys, values, strict=True):
        if type(key) is not str or type(value) is not bytes:
            raise ValueError("a key or value of the wrong type")
        yield key, value
