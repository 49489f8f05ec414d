"""What clients, router and workers say to each other about tasks.

Every message is one frame, a kind (u8) and a MessagePack array, followed by the large segments of its tasks or results
as frames of their own: what is larger than `INLINE_BYTES_MAX` is never copied into a batch. STATUS alone has the form
that replicas understand, [head][body].

    client -> router   HELLO  [protocol, cluster id, client id, python, pid, start ticks]
                       SUBMIT [[[digest, function, sys.path, cwd, keep], ...], [forgotten digest, ...], [task, ...]]
                       CANCEL [number, ...]      BYE []
    router -> client   WHO [incarnation]         REFUSED [text]
                       NEWS [granted, workers, [result, ...], [[number, cancelled], ...]]
    worker -> client   ANSWER result                     (see `direct`)
    worker -> router   REPORT [protocol, cluster id, name, python, pid, start ticks, running or None, [held id, ...]]
                       DONE [sequence, [worker result, ...], [[client, number, returned], ...]]
                       PONG []      LEAVE [] or [client, number] of the task that still runs
    router -> worker   WHO, REFUSED
                       WORK [acknowledged sequence, [function, ...], [forgotten digest, ...], [worker task, ...]]
                       RECALL [[client, number], ...]      PING []

    task           [number, digest, arguments, flags, segments]
    worker task    [client, number, digest, arguments, flags, segments]
    result         [number, status, payload, segments]
    worker result  [client, number, status, payload, nanoseconds, segments]

`segments` counts the extra frames that belong to an item, in order; then its payload in the array is empty.

WHO is the answer to anybody the router does not know: a client introduces itself and submits again all it waits for, a
worker reports what it runs and holds, and repeats the results that were not acknowledged. Sockets announce every new
connection with an empty message (PROBE_ROUTER), so a restarted router is found without a heartbeat.
"""

from __future__ import annotations

import sys
from typing import Any, Final, NamedTuple

import msgspec

PROTOCOL: Final = 2
INLINE_BYTES_MAX: Final = 64 << 10
MESSAGE_BYTES_MAX: Final = 8 << 30
"""Arguments and results may be as large as memory allows; the directory of the sockets is private."""
PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"

HELLO: Final = 64
SUBMIT: Final = 65
CANCEL: Final = 66
BYE: Final = 67
WHO: Final = 72
REFUSED: Final = 73
NEWS: Final = 74
ANSWER: Final = 76
REPORT: Final = 80
DONE: Final = 81
PONG: Final = 82
LEAVE: Final = 83
WORK: Final = 88
RECALL: Final = 89
PING: Final = 90

# -- flags of a task --------------------------------------------------------------------------------------------------
NO_RERUN: Final = 1  # start it at most once; a loss is an error
RESUBMITTED: Final = 2  # the client has submitted it before, to an earlier router or over an earlier connection
CHUNK: Final = 4  # the arguments are a list of argument tuples, the result is [nanoseconds, results, failure]
KEYWORDS: Final = 8  # the arguments are (args, kwargs), else args alone
DIRECT: Final = 16  # the worker may send the client a copy of the result; see `direct`

# -- status of a result -----------------------------------------------------------------------------------------------
RETURNED: Final = 0
RAISED: Final = 1  # payload: see payload.dump_exception
LOST: Final = 2  # payload: UTF-8 text; becomes WorkerDied
ANSWERED: Final = 8  # added to one of them in DONE: the client has been sent a copy already

TaskId = tuple[int, int]
"""(client id, number)"""


class Function(NamedTuple):
    """What workers need to call a function, by the digest of all of it."""

    digest: bytes
    blob: bytes
    path: list[str]
    cwd: str
    keep: bool  # it has no state of its own: one copy serves all calls


_encode = msgspec.msgpack.Encoder().encode
_KINDS = [bytes([kind]) for kind in range(256)]


def pack(kind: int, body: Any) -> bytes:
    return _KINDS[kind] + _encode(body)


class Hello(msgspec.Struct, array_like=True, frozen=True):
    protocol: int
    cluster_id: str
    client: int
    python: str
    pid: int
    ticks: int


class Submit(msgspec.Struct, array_like=True, frozen=True):
    functions: list[Function]
    forgotten: list[bytes]
    tasks: list[tuple[int, bytes, bytes, int, int]]


class News(msgspec.Struct, array_like=True, frozen=True):
    granted: int
    workers: int
    results: list[tuple[int, int, bytes, int]]
    cancelled: list[tuple[int, bool]]


class Report(msgspec.Struct, array_like=True, frozen=True):
    protocol: int
    cluster_id: str
    name: str
    python: str
    pid: int
    ticks: int
    running: TaskId | None
    held: list[TaskId]


class Done(msgspec.Struct, array_like=True, frozen=True):
    sequence: int
    results: list[tuple[int, int, int, bytes, int, int]]
    recalled: list[tuple[int, int, bool]]


class Work(msgspec.Struct, array_like=True, frozen=True):
    acknowledged: int
    functions: list[Function]
    forgotten: list[bytes]
    tasks: list[tuple[int, int, bytes, bytes, int, int]]


DECODERS: Final[dict[int, msgspec.msgpack.Decoder[Any]]] = {
    HELLO: msgspec.msgpack.Decoder(Hello),
    SUBMIT: msgspec.msgpack.Decoder(Submit),
    CANCEL: msgspec.msgpack.Decoder(list[int]),
    BYE: msgspec.msgpack.Decoder(list[int]),
    WHO: msgspec.msgpack.Decoder(tuple[int]),
    REFUSED: msgspec.msgpack.Decoder(tuple[str]),
    NEWS: msgspec.msgpack.Decoder(News),
    ANSWER: msgspec.msgpack.Decoder(tuple[int, int, bytes, int]),
    REPORT: msgspec.msgpack.Decoder(Report),
    DONE: msgspec.msgpack.Decoder(Done),
    PONG: msgspec.msgpack.Decoder(list[int]),
    LEAVE: msgspec.msgpack.Decoder(list[int]),
    WORK: msgspec.msgpack.Decoder(Work),
    RECALL: msgspec.msgpack.Decoder(list[TaskId]),
    PING: msgspec.msgpack.Decoder(list[int]),
}


def unpack(frame: bytes) -> tuple[int, Any]:
    """(kind, body). Raises: ValueError for anything that is not one of ours."""
    kind = frame[0] if frame else 0
    decoder = DECODERS.get(kind)
    if decoder is None:
        raise ValueError(f"unknown kind {kind}")
    try:
        return kind, decoder.decode(frame[1:] if len(frame) < 4096 else memoryview(frame)[1:])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None


def split_segments(counts: list[int], parts: list[bytes]) -> list[list[bytes] | None]:
    """The segments of each item of a batch, `parts` being all frames after the first. Raises: ValueError."""
    if not parts:
        if any(counts):
            raise ValueError("segments are missing")
        return [None] * len(counts)
    found: list[list[bytes] | None] = []
    at = 0
    for count in counts:
        if count < 0:
            raise ValueError("negative count of segments")
        found.append(parts[at : at + count] if count else None)
        at += count
    if at != len(parts):
        raise ValueError(f"{len(parts)} segments came, {at} were announced")
    return found
