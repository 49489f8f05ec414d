"""The task dispatcher: which task goes where, and what becomes of it. Pure: events in, `Actions` out, `now` handed in.

    submit --> [ queue ] --credit, policy--> worker's hands --result--> client
        ^         ^   \\                        |      |
        |         |    `-- cancelled, client    |      `-- recalled before it was started --> front of the queue
        |         |        gone: dropped        `-- worker died:
     limbo        +---------- front of the queue <----- not started, or may be run again
   (resubmitted after a router restart:                 charged `attempts_max` times, or NO_RERUN --> LOST
    waits for the reports of the workers)

Rules:
  * A client may have as many tasks on the way as it was granted (`grants`).
  * A worker holds one task; more only of kinds measured to be short (`durations`, `placement`, `queue`).
  * When a worker dies, only the task it was running is charged, and only if nobody meant to kill it.
  * The first result of a task counts; later ones, and results nobody waits for, are dropped.
  * After a restart tasks are joined, not started again (`reunion`).

Not here: sockets, proofs of death, who is silent (`router`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zcluster.tasks.durations import Durations
from zcluster.tasks.grants import Grants
from zcluster.tasks.outgoing import Outgoing
from zcluster.tasks.placement import Placement
from zcluster.tasks.policy import Policy
from zcluster.tasks.protocol import ANSWERED, LOST, NO_RERUN, RESUBMITTED, Function, TaskId
from zcluster.tasks.queue import Queue
from zcluster.tasks.records import Actions, Client, Segments, Task, ToWorker, Worker
from zcluster.tasks.reunion import Reunion
from zcluster.types import Nanoseconds


class Dispatcher:
    """See the head of this module.

    Args:
        idle: policy over the workers that hold nothing.
        busy: policy over those that may hold more.
        queue_max: tasks waiting here, at most.
        attempts_max: workers that may die under one task.
    """

    def __init__(self, idle: Policy, busy: Policy, *, queue_max: int, attempts_max: int) -> None:
        self.clients: dict[int, Client] = {}
        self.workers: dict[int, Worker] = {}
        self.done_total = 0
        self._place = Placement(idle, busy)
        self._attempts_max = attempts_max
        self._grants = Grants(queue_max)
        self._durations = Durations()
        self._reunion = Reunion()
        self._out = Outgoing()
        self._queue = Queue(self.workers, self._place, self._durations, self._out, self._finish_functionless)

    @property
    def queued(self) -> int:
        """Tasks that wait for a worker."""
        return self._queue.waiting

    @property
    def occupied(self) -> int:
        """Workers that hold something."""
        return len(self._place.occupied)

    # -- clients ------------------------------------------------------------------------------------------------------
    def client_joined(self, number: int) -> None:
        """A client introduced itself, for the first time or on a new connection: its grants begin anew."""
        client = self.clients.get(number)
        if client is None:
            client = self.clients[number] = Client(number)
        self._grants.joined(client)
        self._out.mark_client(client)

    def add_functions(self, number: int, functions: Iterable[Function], forgotten: Iterable[bytes]) -> None:
        client = self.clients[number]
        for function in functions:
            client.functions[function.digest] = function
        for digest in forgotten:
            if client.functions.pop(digest, None) is not None:
                self._forget(digest)

    def _forget(self, digest: bytes) -> None:
        if any(digest in client.functions for client in self.clients.values()):
            return
        self._durations.forget(digest)
        for worker in self.workers.values():
            if digest in worker.known:
                worker.known.remove(digest)
                worker.out.forgotten.append(digest)
                self._out.mark_worker(worker)

    def submit(
        self, number: int, tasks: Iterable[tuple[int, bytes, bytes, int, int]], segments: Iterable[Segments]
    ) -> None:
        """Tasks of a client, as in protocol.Submit. One with an unknown function is refused as LOST."""
        client = self.clients[number]
        known, functions, queue = client.tasks, client.functions, self._queue
        new = 0
        for (task_number, digest, payload, flags, _), parts in zip(tasks, segments, strict=False):
            if flags & RESUBMITTED:
                self._resubmit(client, Task(client, task_number, digest, payload, flags & ~RESUBMITTED, parts))
                continue
            new += 1
            if task_number in known:
                continue
            task = Task(client, task_number, digest, payload, flags, parts)
            known[task_number] = task
            if digest in functions:
                queue.append(task)
            else:
                self._finish_functionless(task)
        self._grants.submitted(client, new, len(self.clients))

    def _resubmit(self, client: Client, task: Task) -> None:
        """Join what is known about the task; only when nothing can be known any more it is queued."""
        key = (client.id, task.number)
        if task.number in client.tasks:
            return
        client.tasks[task.number] = task
        worker = self._reunion.strays.pop(key, None)
        orphan = self._reunion.claim_orphan(key)
        if worker is not None:
            worker.assigned[key] = task
            task.worker = worker
        elif orphan is not None:
            self._finish(task, *orphan)
        elif self._reunion.waiting():
            self._reunion.limbo[key] = task
        else:
            self._leave_limbo(task)

    def _leave_limbo(self, task: Task) -> None:
        if task.flags & NO_RERUN:
            self._finish(task, LOST, b"the router was restarted; the task may have run, and must not run again", None)
        else:
            self._queue.put_back([task])

    def cancel(self, number: int, numbers: Iterable[int]) -> None:
        """Take tasks back that have not been started. Each gets an answer, at the latest with its result."""
        client = self.clients[number]
        for one in numbers:
            task = client.tasks.get(one)
            if task is None:
                self._answer_cancel(client, one, False)
            elif task.worker is None:
                self._drop(task)
                self._answer_cancel(client, one, True)
            elif not task.cancel:
                task.cancel = True
                task.worker.out.recall.append((number, one))
                self._out.mark_worker(task.worker)

    def client_gone(self, number: int) -> None:
        """Proof that the client is dead, or its farewell. Its queued tasks are dropped, running ones not stopped."""
        client = self.clients.pop(number, None)
        if client is None:
            return
        self._grants.gone(client)
        for task in list(client.tasks.values()):
            if task.worker is None:
                self._drop(task)
            else:
                task.client = None
                task.worker.out.recall.append((number, task.number))
                self._out.mark_worker(task.worker)
        client.tasks.clear()
        for digest in client.functions:
            self._forget(digest)
        self._reunion.client_gone(number)

    def _drop(self, task: Task) -> None:
        """Forget a task that no worker holds."""
        assert task.worker is None and task.client is not None
        del task.client.tasks[task.number]
        if self._reunion.limbo.pop((task.client.id, task.number), None) is None:
            self._queue.skip()
        task.client = None  # the queue skips it
        task.payload, task.segments = b"", None

    def _answer_cancel(self, client: Client, number: int, cancelled: bool) -> None:
        client.cancelled.append((number, cancelled))
        self._out.mark_client(client)

    # -- workers ------------------------------------------------------------------------------------------------------
    def expect(self, name: str, running: TaskId | None, now: Nanoseconds) -> None:
        """A worker of an earlier router lives: resubmitted tasks wait for its report. See `Reunion.expect`."""
        self._reunion.expect(name, running, now)

    def expected_gone(self, name: str) -> None:
        """That worker is dead, or has reported."""
        for task in self._reunion.reported(name):
            self._leave_limbo(task)

    def worker_joined(self, key: int, name: str, held: Iterable[TaskId], now: Nanoseconds) -> None:
        """A worker reports what it runs and holds: a new one, or one that lost its connection (to us, or to an earlier
        router). What we thought it had and it does not know, it never received."""
        worker = self.workers.get(key)
        if worker is None:
            worker = self.workers[key] = Worker(key, name, now)
        worker.heard = now
        worker.silent = worker.recalling = False
        worker.known.clear()
        worker.out = ToWorker(key)
        before, worker.assigned, worker.work = worker.assigned, {}, 0
        for task_id in held:
            task = before.pop(task_id, None) or self._find_held(task_id)
            if task is None:
                task = Task(None, task_id[1], b"", b"", 0, None)
                self._reunion.strays[task_id] = worker
            task.worker = worker
            worker.assigned[task_id] = task
            worker.work += task.expected
        self._take_back(list(before.values()))
        self._place.settle(worker)
        self.expected_gone(name)

    def _find_held(self, task_id: TaskId) -> Task | None:
        """A task that waits here while a worker says that it has it."""
        client = self.clients.get(task_id[0])
        task = client.tasks.get(task_id[1]) if client is not None else None
        if task is None or task.worker is not None:
            return None
        if self._reunion.limbo.pop(task_id, None) is None:
            return None  # queued again meanwhile: the first result counts
        return task

    def done(
        self,
        key: int,
        results: Iterable[tuple[int, int, int, bytes, int, int]],
        segments: Iterable[Segments],
        recalled: Iterable[tuple[int, int, bool]],
        now: Nanoseconds,
    ) -> None:
        """Results of a worker (as in protocol.Done), and its answers to recalls."""
        worker = self.workers[key]
        worker.heard = now
        for (client_id, number, status, payload, nanoseconds, _), parts in zip(results, segments, strict=False):
            known, status = bool(status & ANSWERED), status & ~ANSWERED
            task = worker.assigned.pop((client_id, number), None)
            if task is None:
                self._late_result((client_id, number), status, payload, parts)
                continue
            worker.done += 1
            worker.work -= task.expected
            if task.digest:
                self._durations.measure(task, nanoseconds)
            if task.client is not None:
                task.worker = None
                self._finish(task, status, payload, parts, known)
            elif self._reunion.strays.pop((client_id, number), None) is not None:
                self._reunion.keep_orphan((client_id, number), status, payload, parts)
        for client_id, number, returned in recalled:
            self._recalled(worker, (client_id, number), returned)
        worker.silent = False
        self._place.settle(worker)

    def _late_result(self, task_id: TaskId, status: int, payload: bytes, parts: Segments) -> None:
        client = self.clients.get(task_id[0])
        task = client.tasks.get(task_id[1]) if client is not None else None
        if task is None:
            if client is None or self._reunion.waiting():
                self._reunion.keep_orphan(task_id, status, payload, parts)
            return
        worker = task.worker
        if worker is not None:  # given to another one meanwhile, who will be late
            worker.assigned.pop(task_id, None)
            worker.work -= task.expected
            worker.out.recall.append(task_id)
            task.worker = None
            self._place.settle(worker)
            self._out.mark_worker(worker)
        elif self._reunion.limbo.pop(task_id, None) is None:
            self._queue.skip()
        self._finish(task, status, payload, parts)

    def _recalled(self, worker: Worker, task_id: TaskId, returned: bool) -> None:
        worker.recalling = False
        task = worker.assigned.get(task_id)
        if task is None:
            return
        if not returned:
            if task.cancel and task.client is not None:
                task.cancel = False
                self._answer_cancel(task.client, task.number, False)
            return
        del worker.assigned[task_id]
        worker.work -= task.expected
        self._reunion.strays.pop(task_id, None)
        self._take_back([task])

    def worker_silent(self, key: int, running: TaskId | None) -> None:
        """A worker is stopped or does not answer. It gets nothing new; what it holds and has not started goes to
        others (and is recalled, should it wake up); what must not run twice stays with it."""
        worker = self.workers.get(key)
        if worker is None or worker.silent:
            return
        worker.silent = True
        moved = [
            (task_id, task)
            for task_id, task in worker.assigned.items()
            if task_id != running and not task.flags & NO_RERUN and task.client is not None
        ]
        for task_id, task in moved:
            del worker.assigned[task_id]
            worker.work -= task.expected
            worker.out.recall.append(task_id)
            self._out.mark_worker(worker)
        self._take_back([task for _, task in moved])
        self._place.settle(worker)

    def worker_heard(self, key: int, now: Nanoseconds) -> None:
        worker = self.workers[key]
        worker.heard = now
        if worker.silent:
            worker.silent = False
            self._place.settle(worker)

    def worker_lost(self, key: int, running: TaskId | None, charged: bool) -> None:
        """Proof that a worker is dead.

        Args:
            running: what it was running, by its own note in shared memory; None: nothing.
            charged: False when somebody meant to kill it.
        """
        worker = self.workers.pop(key, None)
        if worker is None:
            return
        worker.silent = True
        self._place.remove(key)
        started = running in worker.assigned
        again: list[Task] = []
        for task_id, task in worker.assigned.items():
            self._reunion.strays.pop(task_id, None)
            if task.client is None:
                continue
            if task_id == running:
                started = False  # tasks are started in order: the later ones were not
                task.deaths += charged
                task.worker = None
                if task.flags & NO_RERUN:
                    self._finish(task, LOST, f"worker {worker.name} died while it ran the task".encode(), None)
                elif task.deaths >= self._attempts_max:
                    self._finish(task, LOST, _poison(task, worker.name), None)
                else:
                    again.append(task)
            elif task.flags & NO_RERUN and (started or running not in worker.assigned):
                task.worker = None
                self._finish(task, LOST, f"worker {worker.name} died; the task may have run".encode(), None)
            else:
                again.append(task)
        worker.assigned = {}
        worker.out = ToWorker(key)
        self._take_back(again)

    # -- common -------------------------------------------------------------------------------------------------------
    def _take_back(self, tasks: list[Task]) -> None:
        """Tasks that a worker will not run: to the front of the queue, unless nobody wants them any more."""
        again: list[Task] = []
        for task in tasks:
            task.worker = None
            if task.client is None:
                continue
            if task.cancel:
                client, task.cancel = task.client, False
                self._queue.append(task)  # where `_drop` takes it out again
                self._drop(task)
                self._answer_cancel(client, task.number, True)
            else:
                again.append(task)
        self._queue.put_back(again)

    def _finish(self, task: Task, status: int, payload: bytes, parts: Segments, known: bool = False) -> None:
        """known: the client has probably got the result already, so that telling it may wait for company."""
        client = task.client
        assert client is not None and task.worker is None
        del client.tasks[task.number]
        task.client = None
        if task.cancel:
            client.cancelled.append((task.number, False))
        if parts is None:
            client.results.append((task.number, status, payload, 0))
        else:
            client.results.append((task.number, status, payload, len(parts)))
            client.segments += parts
        self.done_total += 1
        if known:
            self._out.mark_patient(client)
        else:
            self._out.mark_client(client)

    def _finish_functionless(self, task: Task) -> None:
        self._finish(task, LOST, b"its function was never sent to the router", None)

    # -- a turn's end -------------------------------------------------------------------------------------------------
    def take(self, now: Nanoseconds) -> Actions:
        """Hand out what can be handed out, and give everything that is to be sent."""
        self._queue.hand_out(now)
        for client in self._grants.give(self.queued, len(self.clients)):
            self._out.mark_client(client)
        return self._out.take(self.workers, self.clients, now)

    # -- time ---------------------------------------------------------------------------------------------------------
    def deadline(self, now: Nanoseconds) -> None:
        """`next_deadline()` has passed; `take` does what is due except for this."""
        if now >= self._out.repeat_at:
            self._out.repeat()
        if now >= self._reunion.deadline:
            for task in self._reunion.overdue():
                self._leave_limbo(task)

    def next_deadline(self) -> Nanoseconds:
        """When to call `deadline` and `take` even if nothing happens."""
        due = min(self._reunion.deadline, self._out.repeat_at)
        return due if self.queued else min(due, self._place.next_stuck())

    def describe(self) -> dict[str, Any]:
        """Counts for STATUS."""
        return {
            "queued": self.queued + len(self._reunion.limbo),
            "running": self.occupied,
            "done_total": self.done_total,
            "clients": len(self.clients),
        }


def _poison(task: Task, name: str) -> bytes:
    text = f"{task.deaths} workers died while they ran this task, the last one {name}; it is not tried again"
    return text.encode()
