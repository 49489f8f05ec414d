"""The queue, and how it is handed out: to idle workers one task each, of short ones several at a time. Pure.

When much is queued a worker gets several, when little is, one: so nobody ends up with the last ones. What turns out to
be stuck behind a surprisingly long task is recalled as soon as another worker has nothing to do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

from zcluster.tasks.durations import SHORT_NS, Durations
from zcluster.tasks.outgoing import Outgoing
from zcluster.tasks.placement import Placement
from zcluster.tasks.records import Task, Worker
from zcluster.types import Nanoseconds


class Queue:
    """`waiting` counts the tasks that can still be handed out.

    Args: functionless is called with a task, taken off the queue, that cannot be handed out: its function is not there
    (it was resubmitted without it, or forgotten too early).
    """

    def __init__(
        self,
        workers: Mapping[int, Worker],
        place: Placement,
        durations: Durations,
        out: Outgoing,
        functionless: Callable[[Task], None],
    ) -> None:
        self.waiting = 0
        self._tasks: deque[Task] = deque()  # those that were cancelled or finished meanwhile are skipped
        self._workers, self._place, self._durations, self._out = workers, place, durations, out
        self._functionless = functionless

    def append(self, task: Task) -> None:
        self._tasks.append(task)
        self.waiting += 1

    def put_back(self, tasks: Iterable[Task]) -> None:
        """To the front, in this order."""
        back = list(tasks)
        self._tasks.extendleft(reversed(back))
        self.waiting += len(back)

    def skip(self) -> None:
        """One of the tasks has lost its client, and is not to be handed out."""
        self.waiting -= 1

    def hand_out(self, now: Nanoseconds) -> None:
        """Give workers what they may take; recall what they should share."""
        if self.waiting:
            self._dispatch()
        elif self._tasks:
            self._tasks.clear()
        if not self.waiting:
            self._recall_stuck(now)

    def _dispatch(self) -> None:
        tasks, place = self._tasks, self._place
        while tasks:
            task = tasks[0]
            if task.client is None or task.worker is not None:
                tasks.popleft()
                continue
            if task.digest not in task.client.functions:
                tasks.popleft()
                self.waiting -= 1
                self._functionless(task)
                continue
            nanoseconds = self._durations.expected(task)
            key = place.idle.pick()
            if key is None:
                if nanoseconds >= SHORT_NS:
                    return
                key = place.busy.pick()
                if key is None:
                    return
            worker = self._workers[key]
            count = 1
            if nanoseconds < SHORT_NS:
                count = max(1, min(place.room(worker, nanoseconds), self.waiting // (2 * len(self._workers))))
            self._assign(worker, count, task.digest, nanoseconds)

    def _assign(self, worker: Worker, count: int, digest: bytes, nanoseconds: int) -> None:
        """Give up to `count` tasks from the front, all of one kind, to a worker."""
        tasks, out, assigned = self._tasks, worker.out, worker.assigned
        while count and tasks:
            task = tasks[0]
            client = task.client
            if client is not None and task.worker is None:
                if task.digest != digest:
                    break
                if digest not in worker.known:
                    worker.known.add(digest)
                    out.functions.append(client.functions[digest])
                key = (client.id, task.number)
                task.worker = worker
                task.expected = nanoseconds
                worker.work += nanoseconds
                assigned[key] = task
                parts = task.segments
                out.tasks.append((*key, digest, task.payload, task.flags, len(parts) if parts else 0))
                if parts:
                    out.segments += parts
                self.waiting -= 1
                count -= 1
            tasks.popleft()
        self._out.mark_worker(worker)
        self._place.settle(worker)

    def _recall_stuck(self, now: Nanoseconds) -> None:
        """Somebody has nothing to do while another one sits on several tasks: share."""
        for worker in self._place.stuck(now):
            held = list(worker.assigned)
            worker.out.recall += held[-(len(held) // 2) :]
            worker.recalling = True
            self._out.mark_worker(worker)
