"""The task dispatcher: which task goes where, and what becomes of it. Pure: events in, `Actions` out, `now` handed in.

    submit --> [ queue ] --credit, policy--> worker's hands --result--> client
        ^         ^   \\                        |      |
        |         |    `-- cancelled, client    |      `-- recalled before it was started --> front of the queue
        |         |        gone: dropped        `-- worker died:
     limbo        +---------- front of the queue <----- not started, or may be run again
   (resubmitted after a router restart:                 charged `attempts_max` times, or NO_RERUN --> LOST
    waits for the reports of the workers)

Rules:
  * A client may have as many tasks on the way as it was granted; grants and queue together stay within `queue_max`
    (each client without any task may always submit one).
  * A worker holds one task; more only of kinds measured to be short, worth PREFETCH_NS at most. What is stuck behind
    a surprisingly long task is recalled as soon as another worker has nothing to do.
  * When a worker dies, only the task it was running is charged, and only if nobody meant to kill it.
  * The first result of a task counts; later ones, and results nobody waits for, are dropped.

Not here: sockets, proofs of death, who is silent (`router`).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Any, Final

from zcluster.tasks.policy import Policy
from zcluster.tasks.protocol import ANSWERED, CHUNK, LOST, NO_RERUN, RESUBMITTED, Function, TaskId
from zcluster.tasks.records import Actions, Client, Segments, Task, ToClient, ToWorker, Worker, size_bytes
from zcluster.types import MS, NEVER, Nanoseconds

PREFETCH_NS: Final = 2 * MS
PREFETCH_MAX: Final = 128
SHORT_NS: Final = 1 * MS
STUCK_NS: Final = 5 * MS
REPEAT_NS: Final = 5 * MS
REPORT_WAIT_NS: Final = 3_000 * MS
GRANT_MAX: Final = 4096
ORPHANS_MAX: Final = 10_000
ORPHAN_BYTES_MAX: Final = 64 << 20
KINDS_MAX: Final = 4096


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
        self.queued = 0
        self.occupied: set[int] = set()  # workers that hold something
        self._idle, self._busy = idle, busy
        self._place: dict[int, Policy] = {}
        self._queue_max = queue_max
        self._attempts_max = attempts_max
        self._queue: deque[Task] = deque()  # tasks that were cancelled or finished meanwhile are skipped
        self._granted = 0  # granted and not yet submitted, all clients together
        self._thirsty: OrderedDict[int, None] = OrderedDict()
        self._dirty_workers: list[Worker] = []
        self._dirty_clients: list[Client] = []
        self._nanoseconds: tuple[dict[bytes, int], dict[bytes, int]] = ({}, {})  # by digest: single calls, chunks
        self._deep: dict[int, Worker] = {}  # workers that hold more than one
        self._limbo: dict[TaskId, Task] = {}
        self._expected: dict[str, TaskId | None] = {}  # workers that have not reported yet -> what they run
        self._report_deadline: Nanoseconds = NEVER
        self._strays: dict[TaskId, Worker] = {}  # reported by a worker, not yet submitted again
        self._orphans: OrderedDict[TaskId, tuple[int, bytes, Segments]] = OrderedDict()
        self._orphan_bytes = 0
        self._repeating: dict[int, Client] = {}  # those whose results wait for `_repeat_at`
        self._repeat_at: Nanoseconds = NEVER

    # -- clients ------------------------------------------------------------------------------------------------------
    def client_joined(self, number: int) -> None:
        """A client introduced itself, for the first time or on a new connection: its grants begin anew."""
        client = self.clients.get(number)
        if client is None:
            client = self.clients[number] = Client(number)
        self._granted -= client.granted - client.submitted
        client.granted = client.submitted = 0
        self._thirsty[number] = None
        self._mark_client(client)

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
        for kind in self._nanoseconds:
            kind.pop(digest, None)
        for worker in self.workers.values():
            if digest in worker.known:
                worker.known.remove(digest)
                worker.out.forgotten.append(digest)
                self._mark_worker(worker)

    def submit(
        self, number: int, tasks: Iterable[tuple[int, bytes, bytes, int, int]], segments: Iterable[Segments]
    ) -> None:
        """Tasks of a client, as in protocol.Submit. One with an unknown function is refused as LOST."""
        client = self.clients[number]
        known, functions, queue = client.tasks, client.functions, self._queue
        for (task_number, digest, payload, flags, _), parts in zip(tasks, segments, strict=False):
            if flags & RESUBMITTED:
                self._resubmit(client, Task(client, task_number, digest, payload, flags & ~RESUBMITTED, parts))
                continue
            client.submitted += 1
            self._granted -= 1
            if task_number in known:
                continue
            task = Task(client, task_number, digest, payload, flags, parts)
            known[task_number] = task
            if digest in functions:
                queue.append(task)
                self.queued += 1
            else:
                self._finish(task, LOST, b"its function was never sent to the router", None)
        if client.granted - client.submitted < self._share() // 2 + 1:
            self._thirsty[number] = None

    def _resubmit(self, client: Client, task: Task) -> None:
        """Join what is known about the task; only when nothing can be known any more it is queued."""
        key = (client.id, task.number)
        if task.number in client.tasks:
            return
        client.tasks[task.number] = task
        worker = self._strays.pop(key, None)
        orphan = self._orphans.pop(key, None)
        if worker is not None:
            worker.assigned[key] = task
            task.worker = worker
        elif orphan is not None:
            self._orphan_bytes -= size_bytes(orphan[1], orphan[2])
            self._finish(task, *orphan)
        elif self._expected:
            self._limbo[key] = task
        else:
            self._leave_limbo(task)

    def _leave_limbo(self, task: Task) -> None:
        if task.flags & NO_RERUN:
            self._finish(task, LOST, b"the router was restarted; the task may have run, and must not run again", None)
        else:
            self._requeue([task])

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
                self._mark_worker(task.worker)

    def client_gone(self, number: int) -> None:
        """Proof that the client is dead, or its farewell. Its queued tasks are dropped, running ones not stopped."""
        client = self.clients.pop(number, None)
        if client is None:
            return
        self._thirsty.pop(number, None)
        self._granted -= client.granted - client.submitted
        for task in list(client.tasks.values()):
            if task.worker is None:
                self._drop(task)
            else:
                task.client = None
                task.worker.out.recall.append((number, task.number))
                self._mark_worker(task.worker)
        client.tasks.clear()
        for digest in client.functions:
            self._forget(digest)
        for key in [key for key in self._orphans if key[0] == number]:
            _, payload, parts = self._orphans.pop(key)
            self._orphan_bytes -= size_bytes(payload, parts)

    def _drop(self, task: Task) -> None:
        """Forget a task that no worker holds."""
        assert task.worker is None and task.client is not None
        del task.client.tasks[task.number]
        if self._limbo.pop((task.client.id, task.number), None) is None:
            self.queued -= 1
        task.client = None  # the queue skips it
        task.payload, task.segments = b"", None

    def _answer_cancel(self, client: Client, number: int, cancelled: bool) -> None:
        client.cancelled.append((number, cancelled))
        self._mark_client(client)

    # -- workers ------------------------------------------------------------------------------------------------------
    def expect(self, name: str, running: TaskId | None, now: Nanoseconds) -> None:
        """A worker of an earlier router lives: resubmitted tasks wait for its report (REPORT_WAIT_NS at most; the one
        it runs waits until it reports or dies)."""
        self._expected[name] = running
        self._report_deadline = now + REPORT_WAIT_NS

    def expected_gone(self, name: str) -> None:
        """That worker is dead, or has reported."""
        self._expected.pop(name, None)
        if not self._expected:
            self._release_limbo(())

    def _release_limbo(self, keep: Iterable[TaskId]) -> None:
        keep = set(keep)
        limbo, self._limbo = self._limbo, {key: t for key, t in self._limbo.items() if key in keep}
        if not self._limbo:
            self._report_deadline = NEVER
        for key, task in limbo.items():
            if key not in keep:
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
                self._strays[task_id] = worker
            task.worker = worker
            worker.assigned[task_id] = task
            worker.work += task.expected
        self._take_back(list(before.values()))
        self._settle(worker)
        self.expected_gone(name)

    def _find_held(self, task_id: TaskId) -> Task | None:
        """A task that waits here while a worker says that it has it."""
        client = self.clients.get(task_id[0])
        task = client.tasks.get(task_id[1]) if client is not None else None
        if task is None or task.worker is not None:
            return None
        if self._limbo.pop(task_id, None) is None:
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
            task = worker.assigned.pop((client_id, number), None)
            if task is None:
                self._late_result((client_id, number), status & ~ANSWERED, payload, parts)
                continue
            worker.done += 1
            worker.work -= task.expected
            if task.digest:
                self._measure(task, nanoseconds)
            if task.client is not None:
                task.worker = None
                if status & ANSWERED:
                    self._finish(task, status & ~ANSWERED, payload, parts, known=True)
                else:
                    self._finish(task, status, payload, parts)
            elif self._strays.pop((client_id, number), None) is not None:
                self._keep_orphan((client_id, number), status & ~ANSWERED, payload, parts)
        for client_id, number, returned in recalled:
            self._recalled(worker, (client_id, number), returned)
        worker.silent = False
        self._settle(worker)

    def _measure(self, task: Task, nanoseconds: int) -> None:
        kind = self._nanoseconds[1 if task.flags & CHUNK else 0]
        before = kind.get(task.digest)
        if before is None:
            if len(kind) >= KINDS_MAX:
                kind.clear()
            kind[task.digest] = nanoseconds
        else:
            kind[task.digest] = before + (nanoseconds - before >> 3)

    def _late_result(self, task_id: TaskId, status: int, payload: bytes, parts: Segments) -> None:
        client = self.clients.get(task_id[0])
        task = client.tasks.get(task_id[1]) if client is not None else None
        if task is None:
            if client is None or self._expected:
                self._keep_orphan(task_id, status, payload, parts)
            return
        worker = task.worker
        if worker is not None:  # given to another one meanwhile, who will be late
            worker.assigned.pop(task_id, None)
            worker.work -= task.expected
            worker.out.recall.append(task_id)
            task.worker = None
            self._settle(worker)
            self._mark_worker(worker)
        elif self._limbo.pop(task_id, None) is None:
            self.queued -= 1
        self._finish(task, status, payload, parts)

    def _keep_orphan(self, task_id: TaskId, status: int, payload: bytes, parts: Segments) -> None:
        """The result of a task whose client may come back for it; bounded."""
        self._orphans[task_id] = (status, payload, parts)
        self._orphan_bytes += size_bytes(payload, parts)
        while len(self._orphans) > ORPHANS_MAX or self._orphan_bytes > ORPHAN_BYTES_MAX:
            _, (_, oldest, oldest_parts) = self._orphans.popitem(last=False)
            self._orphan_bytes -= size_bytes(oldest, oldest_parts)

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
        self._strays.pop(task_id, None)
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
            self._mark_worker(worker)
        self._take_back([task for _, task in moved])
        self._settle(worker)

    def worker_heard(self, key: int, now: Nanoseconds) -> None:
        worker = self.workers[key]
        worker.heard = now
        if worker.silent:
            worker.silent = False
            self._settle(worker)

    def worker_lost(self, key: int, running: TaskId | None, charged: bool) -> None:
        """Proof that a worker is dead.

        Args:
            running: what it was running, by its own note in shared memory; None: nothing.
            charged: False when somebody meant to kill it.
        """
        worker = self.workers.pop(key, None)
        if worker is None:
            return
        self._unplace(key)
        self._deep.pop(key, None)
        self.occupied.discard(key)
        started = running in worker.assigned
        again: list[Task] = []
        for task_id, task in worker.assigned.items():
            self._strays.pop(task_id, None)
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
                self.queued += 1  # _drop counts it out again
                self._drop(task)
                self._answer_cancel(client, task.number, True)
            else:
                again.append(task)
        self._requeue(again)

    def _requeue(self, tasks: list[Task]) -> None:
        self._queue.extendleft(reversed(tasks))
        self.queued += len(tasks)

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
        if not known:
            self._mark_client(client)
        elif not client.dirty:
            self._repeating[client.id] = client

    def _mark_client(self, client: Client) -> None:
        if not client.dirty:
            client.dirty = True
            self._dirty_clients.append(client)

    def _mark_worker(self, worker: Worker) -> None:
        if not worker.dirty:
            worker.dirty = True
            self._dirty_workers.append(worker)

    def _unplace(self, key: int) -> None:
        place = self._place.pop(key, None)
        if place is not None:
            place.remove(key)

    def _settle(self, worker: Worker) -> None:
        """Put a worker where it belongs after its load changed."""
        key, load = worker.key, len(worker.assigned)
        if load:
            self.occupied.add(key)
        else:
            self.occupied.discard(key)
        if load > 1:
            self._deep[key] = worker
        else:
            self._deep.pop(key, None)
        place: Policy | None = None
        if not worker.silent and key in self.workers:
            if load == 0:
                place = self._idle
            elif load < PREFETCH_MAX and worker.work < PREFETCH_NS:
                place = self._busy
        before = self._place.get(key)
        if before is not place:
            self._unplace(key)
            if place is not None:
                place.add(key, load)
                self._place[key] = place
        elif place is not None:
            place.update(key, load)

    # -- a turn's end -------------------------------------------------------------------------------------------------
    def take(self, now: Nanoseconds) -> Actions:
        """Hand out what can be handed out, and give everything that is to be sent."""
        if self.queued:
            self._dispatch()
        elif self._queue:
            self._queue.clear()
        if self._deep:
            self._recall_stuck(now)
        if self._thirsty:
            self._grant()
        if self._repeating and self._repeat_at == NEVER:
            self._repeat_at = now + REPEAT_NS
        actions = Actions()
        for worker in self._dirty_workers:
            worker.dirty = False
            if worker.key in self.workers:
                actions.workers.append(worker.out)
            worker.out = ToWorker(worker.key)
        for client in self._dirty_clients:
            client.dirty = False
            if client.id in self.clients:
                actions.clients.append(
                    ToClient(client.id, client.granted, client.results, client.segments, client.cancelled)
                )
            client.results, client.segments, client.cancelled = [], [], []
        self._dirty_workers, self._dirty_clients = [], []
        return actions

    def _dispatch(self) -> None:
        queue = self._queue
        while queue:
            task = queue[0]
            if task.client is None or task.worker is not None:
                queue.popleft()
                continue
            nanoseconds = self._nanoseconds[1 if task.flags & CHUNK else 0].get(task.digest, SHORT_NS)
            key = self._idle.pick()
            if key is None:
                if nanoseconds >= SHORT_NS:
                    return
                key = self._busy.pick()
                if key is None:
                    return
            worker = self.workers[key]
            # When much is queued, several at once; when little is, one each. So nobody ends up with the last ones.
            count = 1
            if nanoseconds < SHORT_NS:
                room = min(PREFETCH_MAX - len(worker.assigned), (PREFETCH_NS - worker.work) // max(nanoseconds, 1000))
                count = max(1, min(room, self.queued // (2 * len(self.workers))))
            self._assign(worker, count, task.digest, nanoseconds)

    def _assign(self, worker: Worker, count: int, digest: bytes, nanoseconds: int) -> None:
        """Give up to `count` tasks from the front of the queue, all of one kind, to a worker."""
        queue, out, assigned = self._queue, worker.out, worker.assigned
        while count and queue:
            task = queue[0]
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
                self.queued -= 1
                count -= 1
            queue.popleft()
        self._mark_worker(worker)
        self._settle(worker)

    def _recall_stuck(self, now: Nanoseconds) -> None:
        """Somebody has nothing to do while another one sits on several tasks: share."""
        if self.queued or self._idle.pick() is None:
            return
        for worker in self._deep.values():
            if not worker.recalling and now - worker.heard >= STUCK_NS:
                held = list(worker.assigned)
                worker.out.recall += held[-(len(held) // 2) :]
                worker.recalling = True
                self._mark_worker(worker)

    def _share(self) -> int:
        return max(1, min(GRANT_MAX, self._queue_max // (2 * max(1, len(self.clients)))))

    def _grant(self) -> None:
        """Let clients submit more, as far as there is room; those that asked first come first."""
        share = self._share()
        free = self._queue_max - self.queued - self._granted
        for number in list(self._thirsty):
            client = self.clients[number]
            left = client.granted - client.submitted
            more = min(share - left, free)
            if more <= 0:
                if left > 0 or client.tasks:
                    continue
                more = 1  # a client with nothing on the way is never shut out
            client.granted += more
            self._granted += more
            free -= more
            self._mark_client(client)
            if left + more > share // 2:
                del self._thirsty[number]

    # -- time ---------------------------------------------------------------------------------------------------------
    def deadline(self, now: Nanoseconds) -> None:
        """`next_deadline()` has passed; `take` does what is due except for this."""
        if now >= self._repeat_at:
            self._repeat_at = NEVER
            for client in self._repeating.values():
                self._mark_client(client)
            self._repeating = {}
        if now >= self._report_deadline:
            self._report_deadline = NEVER
            running = {r for r in self._expected.values() if r is not None}
            self._expected = {name: r for name, r in self._expected.items() if r in running}
            self._release_limbo(running)
            self._report_deadline = NEVER

    def next_deadline(self) -> Nanoseconds:
        """When to call `deadline` and `take` even if nothing happens."""
        due = min(self._report_deadline, self._repeat_at)
        if self._deep and not self.queued and self._idle.pick() is not None:
            for worker in self._deep.values():
                if not worker.recalling:
                    due = min(due, worker.heard + STUCK_NS)
        return due

    def describe(self) -> dict[str, Any]:
        """Counts for STATUS."""
        return {
            "queued": self.queued + len(self._limbo),
            "running": len(self.occupied),
            "done_total": self.done_total,
            "clients": len(self.clients),
        }


def _poison(task: Task, name: str) -> bytes:
    text = f"{task.deaths} workers died while they ran this task, the last one {name}; it is not tried again"
    return text.encode()
