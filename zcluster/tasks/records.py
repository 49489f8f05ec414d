"""What the dispatcher keeps, and what it gives back: clients, tasks, workers, actions. Data only; pure."""

from __future__ import annotations

import msgspec

from zcluster.tasks.protocol import Function, TaskId
from zcluster.types import Nanoseconds

Segments = list[bytes] | None


class ToWorker(msgspec.Struct):
    """One worker's share of a turn. `tasks` as in protocol.Work; `segments`: their extra frames in order."""

    worker: int
    functions: list[Function] = []
    forgotten: list[bytes] = []
    tasks: list[tuple[int, int, bytes, bytes, int, int]] = []
    segments: list[bytes] = []
    recall: list[TaskId] = []


class ToClient(msgspec.Struct):
    """One client's share of a turn. `granted`: tasks it may have submitted in all since it joined."""

    client: int
    granted: int
    results: list[tuple[int, int, bytes, int]] = []
    segments: list[bytes] = []
    cancelled: list[tuple[int, bool]] = []


class Actions(msgspec.Struct):
    """What a turn asks for."""

    workers: list[ToWorker] = []
    clients: list[ToClient] = []


class Client:
    """What the dispatcher knows about one client."""

    __slots__ = ("cancelled", "dirty", "functions", "granted", "id", "results", "segments", "submitted", "tasks")

    def __init__(self, number: int) -> None:
        self.id = number
        self.tasks: dict[int, Task] = {}
        self.functions: dict[bytes, Function] = {}
        self.granted = 0
        self.submitted = 0
        self.dirty = False
        self.results: list[tuple[int, int, bytes, int]] = []
        self.segments: list[bytes] = []
        self.cancelled: list[tuple[int, bool]] = []


class Task:
    """One task that is not finished. `client` is None for one that only a worker's report has told us about."""

    __slots__ = ("cancel", "client", "deaths", "digest", "expected", "flags", "number", "payload", "segments", "worker")

    def __init__(
        self, client: Client | None, number: int, digest: bytes, payload: bytes, flags: int, segments: Segments
    ) -> None:
        self.client = client
        self.number = number
        self.digest = digest
        self.payload = payload
        self.flags = flags
        self.segments = segments
        self.deaths = 0
        self.worker: Worker | None = None
        self.cancel = False
        self.expected = 0


class Worker:
    """What the dispatcher knows about one run of a worker process."""

    __slots__ = ("assigned", "dirty", "done", "heard", "key", "known", "name", "out", "recalling", "silent", "work")

    def __init__(self, key: int, name: str, now: Nanoseconds) -> None:
        self.key = key
        self.name = name
        self.assigned: dict[TaskId, Task] = {}
        self.known: set[bytes] = set()
        self.work = 0  # expected nanoseconds of `assigned`
        self.heard = now
        self.done = 0
        self.silent = False
        self.recalling = False
        self.dirty = False
        self.out = ToWorker(key)


def size_bytes(payload: bytes, parts: Segments) -> int:
    return len(payload) + sum(map(len, parts or ()))
