"""After a restart of the router: bringing together what clients submit again and what workers hold or have finished.

    client submits again       worker has it           -> joined (`strays`)
                               worker had finished it  -> its result (`orphans`)
                               not known (yet)         -> limbo, until every expected worker has reported or is dead
    worker reports             client came first       -> taken from limbo
                               client not here yet     -> `strays`, later perhaps `orphans`; bounded

Pure; the dispatcher decides what becomes of a task that leaves limbo.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from zcluster.tasks.protocol import TaskId
from zcluster.tasks.records import Segments, Task, Worker, size_bytes
from zcluster.types import MS, NEVER, Nanoseconds

REPORT_WAIT_NS: Final = 3_000 * MS
ORPHANS_MAX: Final = 10_000
ORPHAN_BYTES_MAX: Final = 64 << 20

Orphan = tuple[int, bytes, Segments]
"""(status, payload, segments)"""


class Reunion:
    """See the head of this module."""

    def __init__(self) -> None:
        self.strays: dict[TaskId, Worker] = {}  # reported by a worker, not yet submitted again
        self.limbo: dict[TaskId, Task] = {}
        self.deadline: Nanoseconds = NEVER
        self._expected: dict[str, TaskId | None] = {}  # workers that have not reported yet -> what they run
        self._orphans: OrderedDict[TaskId, Orphan] = OrderedDict()
        self._orphan_bytes = 0

    def waiting(self) -> bool:
        """May a worker still report something?"""
        return bool(self._expected)

    def expect(self, name: str, running: TaskId | None, now: Nanoseconds) -> None:
        """A worker of an earlier router lives: REPORT_WAIT_NS at most for its report (the task it runs is waited for
        until it reports or dies)."""
        self._expected[name] = running
        self.deadline = now + REPORT_WAIT_NS

    def reported(self, name: str) -> list[Task]:
        """That worker has reported, or is dead. Returns: tasks that leave limbo."""
        self._expected.pop(name, None)
        return [] if self._expected else self._release(())

    def overdue(self) -> list[Task]:
        """The deadline has passed. Returns: tasks that leave limbo."""
        running = {task_id for task_id in self._expected.values() if task_id is not None}
        self._expected = {name: task_id for name, task_id in self._expected.items() if task_id in running}
        released = self._release(running)
        self.deadline = NEVER
        return released

    def _release(self, keep: Iterable[TaskId]) -> list[Task]:
        limbo, self.limbo = self.limbo, {task_id: self.limbo[task_id] for task_id in keep if task_id in self.limbo}
        if not self.limbo:
            self.deadline = NEVER
        return [task for task_id, task in limbo.items() if task_id not in self.limbo]

    def keep_orphan(self, task_id: TaskId, status: int, payload: bytes, parts: Segments) -> None:
        """The result of a task whose client may come back for it."""
        self._orphans[task_id] = (status, payload, parts)
        self._orphan_bytes += size_bytes(payload, parts)
        while len(self._orphans) > ORPHANS_MAX or self._orphan_bytes > ORPHAN_BYTES_MAX:
            self._forget_orphan(next(iter(self._orphans)))

    def claim_orphan(self, task_id: TaskId) -> Orphan | None:
        return self._forget_orphan(task_id) if task_id in self._orphans else None

    def _forget_orphan(self, task_id: TaskId) -> Orphan:
        orphan = self._orphans.pop(task_id)
        self._orphan_bytes -= size_bytes(orphan[1], orphan[2])
        return orphan

    def client_gone(self, number: int) -> None:
        for task_id in [task_id for task_id in self._orphans if task_id[0] == number]:
            self._forget_orphan(task_id)
