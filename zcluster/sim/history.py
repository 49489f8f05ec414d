"""Histories: what clients asked of the key-value store, what they were told, and when.

A history is a text file of one JSON object a line, one for each operation:

    {"client": 0, "op": "cas", "key": "x", "expect": "1", "value": "2", "output": true, "call": 31, "return": 40,
     "status": "ok"}

    client   whole number; its operations may overlap
    op       put, get, delete, cas, append
    value    what put stores, append adds, and cas stores (null: cas deletes)
    expect   of cas: what must be stored (null: the key must be absent)
    output   get: the value or null; cas: whether it was swapped; both are required if `status` is "ok"
             append: the new value; delete: whether the key existed; both may be left out, or null
    call     ns on a monotonic clock common to all clients, taken before the operation was sent
    return   the same clock, after the answer; may be left out, or null, unless `status` is "ok"
    status   ok; fail: certainly no effect; unknown: takes effect at any time after `call`, or never

Fields with other names are ignored; so is the output of an operation that is not "ok", for it tells nothing.
Values that are no text are written as Python's `surrogateescape` makes them text, which loses nothing.

What does not live here: what a history means (`linearize`).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, Protocol, TextIO, cast

from zcluster.errors import Busy, InvalidInput, NoQuorum

Kind = Literal["put", "get", "delete", "cas", "append"]
Status = Literal["ok", "fail", "unknown"]
Output = str | bool | None

KINDS: Final = ("put", "get", "delete", "cas", "append")
STATUSES: Final = ("ok", "fail", "unknown")


class BadHistory(InvalidInput):
    """A line that is no operation. `line` counts from 1."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")
        self.line = line
        self.what = what

    def __reduce__(self) -> tuple[type[BadHistory], tuple[int, str]]:
        return BadHistory, (self.line, self.what)


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of one client.

    `call` and `returned` are ns; `returned` is None while (or if) no answer came. `line` is where the operation stands
    in its file, from 1; 0 if it came from none.
    """

    client: int
    kind: Kind
    key: str
    call: int
    returned: int | None
    status: Status = "ok"
    value: str | None = None
    expect: str | None = None
    output: Output = None
    line: int = 0


# -- reading ----------------------------------------------------------------------------------------------------------
def parse_history(lines: Iterable[str | bytes]) -> list[Operation]:
    """Every operation, in the order of the file; empty lines are passed over. Raises: BadHistory."""
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            found.append(parse_operation(line, number))
    return found


def parse_operation(text: str | bytes, line: int = 0) -> Operation:
    """One line of a history.

    >>> parse_operation('{"client": 1, "op": "put", "key": "k", "value": "v", "call": 3, "status": "unknown"}').value
    'v'

    Raises: BadHistory, which names the line and the field.
    """
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadHistory(line, f"no JSON: {error.msg} at column {error.colno}") from None
    except UnicodeDecodeError as error:
        raise BadHistory(line, f"no UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise BadHistory(line, f"no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise BadHistory(line, f"an operation is an object, not {_shown(fields)}")
    return _Fields(fields, line).operation()


class _Fields:
    """One object of a history, and the complaints about it."""

    def __init__(self, fields: dict[str, Any], line: int) -> None:
        self._fields = fields
        self._line = line

    def operation(self) -> Operation:
        kind = cast(Kind, self._one_of("op", KINDS))
        status = cast(Status, self._one_of("status", STATUSES))
        client, key, call = self._whole("client"), self._text("key"), self._whole("call")
        given = status == "ok" or self._fields.get("return") is not None
        returned = self._whole("return") if given else None
        if returned is not None and returned < call:
            self._refuse("return", f"is {returned}, before call, {call}")
        value = self._text("value") if kind in ("put", "append") else None
        expect = None
        if kind == "cas":
            value, expect = self._text_or_null("value"), self._text_or_null("expect")
        output = self._output(kind) if status == "ok" else None
        return Operation(client, kind, key, call, returned, status, value, expect, output, self._line)

    def _output(self, kind: Kind) -> Output:
        match kind:
            case "get":
                return self._text_or_null("output")
            case "cas":
                return self._boolean("output")
            case "append":
                return None if self._fields.get("output") is None else self._text("output")
            case "delete":
                return None if self._fields.get("output") is None else self._boolean("output")
            case "put":
                return None  # a put gives a revision or nothing; neither says anything about the key

    def _refuse(self, name: str, what: str) -> None:
        raise BadHistory(self._line, f'"{name}" {what}')

    def _get(self, name: str, wanted: str) -> Any:
        if name not in self._fields:
            self._refuse(name, f"is missing; it is {wanted}")
        return self._fields[name]

    def _typed(self, name: str, wanted: str, *types: type) -> Any:
        found = self._get(name, wanted)
        if type(found) not in types:
            self._refuse(name, f"is {wanted}, not {_shown(found)}")
        return found

    def _whole(self, name: str) -> int:
        found: int = self._typed(name, "a whole number" if name == "client" else "a whole number of ns", int)
        return found

    def _text(self, name: str) -> str:
        found: str = self._typed(name, "a string", str)
        return found

    def _text_or_null(self, name: str) -> str | None:
        found: str | None = self._typed(name, "a string or null", str, type(None))
        return found

    def _boolean(self, name: str) -> bool:
        found: bool = self._typed(name, "true or false", bool)
        return found

    def _one_of(self, name: str, allowed: tuple[str, ...]) -> str:
        wanted = f"one of {', '.join(allowed)}"
        found = self._get(name, wanted)
        if found not in allowed:
            self._refuse(name, f"is {wanted}, not {_shown(found)}")
        return str(found)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


# -- writing ----------------------------------------------------------------------------------------------------------
def encode_operation(operation: Operation) -> str:
    """The line of an operation, without its end: ASCII, fields in the order of the module's description."""
    fields: dict[str, Any] = {"client": operation.client, "op": operation.kind, "key": operation.key}
    if operation.kind == "cas":
        fields["expect"] = operation.expect
    if operation.kind in ("put", "append", "cas"):
        fields["value"] = operation.value
    if operation.status == "ok" and operation.kind != "put":
        fields["output"] = operation.output
    fields |= {"call": operation.call, "return": operation.returned, "status": operation.status}
    return json.dumps(fields)


def write_history(stream: TextIO, operations: Iterable[Operation]) -> None:
    for operation in operations:
        stream.write(encode_operation(operation) + "\n")


class Recorder:
    """Collects operations while they happen, from any number of threads.

    Times are made strictly increasing, so that the order in which `call` and the answers came in is kept even if the
    clock stands still (a simulated one) or ticks slowly. That is sound: they come in one at a time, between the true
    beginning and the true end of each operation.

    Args:
        stream: where every finished operation is written as a line at once; None: they are only kept in memory.
        clock: ns, monotonic.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._stream = stream
        self._clock = clock
        self._lock = threading.Lock()
        self._last_ns: int | None = None
        self._finished: list[Operation] = []
        self._open: dict[Call, None] = {}

    def call(self, client: int, kind: Kind, key: str, *, value: str | None = None, expect: str | None = None) -> Call:
        """An operation is about to be sent. Exactly one method of the result must tell how it ended."""
        with self._lock:
            started = Call(self, client, kind, key, value, expect, self._now())
            self._open[started] = None
            return started

    def operations(self) -> list[Operation]:
        """All so far: the finished ones in the order of their ends, then those still open, as unknown."""
        with self._lock:
            return [*self._finished, *(self._unfinished(call) for call in self._open)]

    def close(self) -> None:
        """Write what is still open as unknown. The stream stays open: it is the caller's. Idempotent."""
        with self._lock:
            for call in self._open:
                self._keep(self._unfinished(call))
            self._open.clear()
            if self._stream is not None:
                self._stream.flush()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def finish(self, call: Call, status: Status, output: Output) -> None:
        """What `Call` calls; a second end of the same operation, or one after `close`, counts for nothing."""
        with self._lock:
            if call in self._open:
                del self._open[call]
                self._keep(call.operation(self._now(), status, output))

    def _keep(self, operation: Operation) -> None:
        self._finished.append(operation)
        if self._stream is not None:
            self._stream.write(encode_operation(operation) + "\n")

    def _now(self) -> int:
        now = self._clock()
        if self._last_ns is not None and now <= self._last_ns:
            now = self._last_ns + 1
        self._last_ns = now
        return now

    @staticmethod
    def _unfinished(call: Call) -> Operation:
        return call.operation(None, "unknown", None)


class Call:
    """An operation under way."""

    def __init__(
        self,
        recorder: Recorder,
        client: int,
        kind: Kind,
        key: str,
        value: str | None,
        expect: str | None,
        called_ns: int,
    ) -> None:
        self._recorder = recorder
        self._about = (client, kind, key)
        self._arguments = (value, expect)
        self._called_ns = called_ns

    def ok(self, output: Output = None) -> None:
        self._recorder.finish(self, "ok", output)

    def fail(self) -> None:
        """It certainly had no effect, and never will."""
        self._recorder.finish(self, "fail", None)

    def unknown(self) -> None:
        """It may have taken effect, or may still."""
        self._recorder.finish(self, "unknown", None)

    def operation(self, returned_ns: int | None, status: Status, output: Output) -> Operation:
        return Operation(*self._about, self._called_ns, returned_ns, status, *self._arguments, output)


# -- around a client --------------------------------------------------------------------------------------------------
class Store(Protocol):
    """What is needed of a client's `kv`."""

    def put(self, key: str, value: bytes, *, timeout: float = 10) -> object: ...
    def get(self, key: str, *, consistency: str = "linearizable", timeout: float = 10) -> bytes | None: ...
    def delete(self, key: str, *, timeout: float = 10) -> bool: ...
    def cas(self, key: str, expected: bytes | None, new: bytes | None, *, timeout: float = 10) -> bool: ...
    def append(self, key: str, data: bytes, *, timeout: float = 10) -> bytes: ...


_NO_EFFECT: Final = (InvalidInput, NoQuorum, Busy, TypeError)
"""Errors after which an operation was certainly not applied. After any other it may have been."""


class RecordedStore:
    """A client's `kv` whose calls are recorded; errors are recorded and go on to the caller.

    One for each thread, each with a number of its own. `prefix`: of the keys in the store; the history is without it.
    """

    def __init__(self, store: Store, recorder: Recorder, client: int, prefix: str = "") -> None:
        self._store = store
        self._recorder = recorder
        self._client = client
        self._prefix = prefix

    def put(self, key: str, value: bytes, *, timeout: float = 10) -> None:
        with self._recorded("put", key, value=_text(value)):
            self._store.put(self._prefix + key, value, timeout=timeout)

    def get(self, key: str, *, consistency: str = "linearizable", timeout: float = 10) -> bytes | None:
        """`consistency`: "linearizable" or "lease". Others promise less than a history is judged by."""
        with self._recorded("get", key) as answer:
            found = self._store.get(self._prefix + key, consistency=consistency, timeout=timeout)
            answer.output = _text(found)
        return found

    def delete(self, key: str, *, timeout: float = 10) -> bool:
        with self._recorded("delete", key) as answer:
            answer.output = existed = self._store.delete(self._prefix + key, timeout=timeout)
        return existed

    def cas(self, key: str, expected: bytes | None, new: bytes | None, *, timeout: float = 10) -> bool:
        with self._recorded("cas", key, value=_text(new), expect=_text(expected)) as answer:
            answer.output = swapped = self._store.cas(self._prefix + key, expected, new, timeout=timeout)
        return swapped

    def append(self, key: str, data: bytes, *, timeout: float = 10) -> bytes:
        with self._recorded("append", key, value=_text(data)) as answer:
            new = self._store.append(self._prefix + key, data, timeout=timeout)
            answer.output = _text(new)
        return new

    def _recorded(self, kind: Kind, key: str, *, value: str | None = None, expect: str | None = None) -> _Answer:
        return _Answer(self._recorder.call(self._client, kind, key, value=value, expect=expect))


class _Answer:
    """Ends a call by how the block ends."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.output: Output = None

    def __enter__(self) -> _Answer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._call.ok(self.output)
        elif isinstance(error, _NO_EFFECT):
            self._call.fail()
        else:
            self._call.unknown()


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "surrogateescape")


def by_key(operations: Iterable[Operation]) -> Iterator[tuple[str, list[Operation]]]:
    """The operations of each key, keys in the order of their first operation."""
    groups: dict[str, list[Operation]] = {}
    for operation in operations:
        groups.setdefault(operation.key, []).append(operation)
    yield from groups.items()
