"""The dispatcher's exact outputs. Every test checks all actions; whatever is left over fails it."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from zcluster.tasks.dispatcher import Dispatcher
from zcluster.tasks.outgoing import REPEAT_NS
from zcluster.tasks.placement import STUCK_NS
from zcluster.tasks.policy import make_policy
from zcluster.tasks.protocol import ANSWERED, LOST, NO_RERUN, RAISED, RESUBMITTED, RETURNED, Function, TaskId
from zcluster.tasks.records import Actions, ToClient, ToWorker
from zcluster.tasks.reunion import REPORT_WAIT_NS
from zcluster.types import MS, NEVER

F = Function(b"f" * 16, b"pickled", ["/x"], "/x", True)
LONG = 50 * MS
A, B = 101, 102  # clients


class Bench:
    """A dispatcher, a clock, and what it said last."""

    def __init__(self, queue_max: int = 100, attempts_max: int = 3) -> None:
        rng = random.Random(1)
        self.d = Dispatcher(
            make_policy("round_robin", rng),
            make_policy("round_robin", rng),
            queue_max=queue_max,
            attempts_max=attempts_max,
        )
        self.now = 1_000 * MS

    def take(self) -> Actions:
        if self.d.next_deadline() <= self.now:
            self.d.deadline(self.now)
        return self.d.take(self.now)

    def client(self, number: int = A) -> Actions:
        self.d.client_joined(number)
        self.d.add_functions(number, [F], [])
        return self.take()

    def worker(self, key: int, held: list[TaskId] | None = None) -> Actions:
        self.d.worker_joined(key, f"w{key}", held or [], self.now)
        return self.take()

    def submit(self, *numbers: int, client: int = A, flags: int = 0) -> Actions:
        tasks = [(n, F.digest, b"args%d" % n, flags, 0) for n in numbers]
        self.d.submit(client, tasks, [None] * len(tasks))
        return self.take()

    def done(self, key: int, *numbers: int, client: int = A, ns: int = LONG, status: int = RETURNED) -> Actions:
        results = [(client, n, status, b"r%d" % n, ns, 0) for n in numbers]
        self.d.done(key, results, [None] * len(results), [], self.now)
        return self.take()

    def recalled(self, key: int, *answers: tuple[int, bool], client: int = A) -> Actions:
        self.d.done(key, [], [], [(client, n, returned) for n, returned in answers], self.now)
        return self.take()

    def lost(self, key: int, running: int | None, *, charged: bool = True, client: int = A) -> Actions:
        self.d.worker_lost(key, None if running is None else (client, running), charged)
        return self.take()


def task(number: int, client: int = A, flags: int = 0) -> tuple[int, int, bytes, bytes, int, int]:
    return (client, number, F.digest, b"args%d" % number, flags, 0)


def work(key: int, *numbers: int, first: bool = False, recall: list[TaskId] | None = None, flags: int = 0) -> ToWorker:
    return ToWorker(
        key,
        functions=[F] if first else [],
        tasks=[task(n, flags=flags) for n in numbers],
        recall=recall or [],
    )


def result(number: int, status: int = RETURNED, payload: bytes | None = None) -> tuple[int, int, bytes, int]:
    return (number, status, b"r%d" % number if payload is None else payload, 0)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """One client and two workers; at the end nothing may be left to say."""
    one = Bench()
    assert one.client() == Actions(clients=[ToClient(A, 50)])
    assert one.worker(1) == Actions()
    assert one.worker(2) == Actions()
    yield one
    assert one.take() == Actions()


def test_tasks_go_to_idle_workers_in_turn_and_the_function_once(bench: Bench) -> None:
    assert bench.submit(1, 2) == Actions(workers=[work(1, 1, first=True), work(2, 2, first=True)])
    assert bench.done(1, 1) == Actions(clients=[ToClient(A, 50, [result(1)])])
    assert bench.submit(3) == Actions(workers=[work(1, 3)])
    assert bench.done(2, 2, status=RAISED) == Actions(clients=[ToClient(A, 50, [result(2, RAISED)])])
    assert bench.d.done_total == 2


def test_what_a_client_has_got_already_is_repeated_in_company(bench: Bench) -> None:
    bench.submit(1, 2)
    assert bench.done(1, 1, status=RETURNED | ANSWERED) == Actions()
    assert bench.d.next_deadline() == bench.now + REPEAT_NS
    assert bench.submit(3) == Actions(workers=[work(1, 3)])  # the worker is free at once
    assert bench.done(2, 2) == Actions(clients=[ToClient(A, 50, [result(1), result(2)])])
    assert bench.d.next_deadline() == NEVER
    assert bench.done(1, 3, status=RAISED | ANSWERED) == Actions()
    bench.now += REPEAT_NS
    assert bench.take() == Actions(clients=[ToClient(A, 50, [result(3, RAISED)])])


def test_long_tasks_are_handed_out_late(bench: Bench) -> None:
    assert bench.submit(1, 2, 3, 4).workers == [work(1, 1, first=True), work(2, 2, first=True)]
    assert bench.d.queued == 2
    assert bench.done(2, 2).workers == [work(2, 3)]
    assert bench.d.queued == 1


def test_short_tasks_are_prefetched_within_bounds(bench: Bench) -> None:
    bench.submit(1)
    bench.done(1, 1, ns=MS // 2)
    first, second = bench.submit(*range(2, 42)).workers
    assert [len(first.tasks), len(second.tasks)] == [4, 4]  # 2 ms worth of work each
    assert [t[1] for t in [*first.tasks, *second.tasks]] == [2, 3, 4, 5, 6, 7, 8, 9]


def test_few_short_tasks_are_spread_one_by_one(bench: Bench) -> None:
    bench.submit(1)
    bench.done(1, 1, ns=MS // 100)
    assert bench.submit(2, 3).workers == [work(2, 2, first=True), work(1, 3)]


def test_one_surprisingly_long_task_ends_the_prefetching(bench: Bench) -> None:
    bench.submit(1)
    bench.done(1, 1, ns=MS // 2)
    bench.submit(2)
    bench.done(2, 2, ns=20 * MS)
    assert [len(w.tasks) for w in bench.submit(3, 4, 5, 6).workers] == [1, 1]


def test_stuck_tasks_are_recalled_once_somebody_is_idle(bench: Bench) -> None:
    bench.submit(1)
    bench.done(1, 1, ns=MS // 100)
    first, second = bench.submit(*range(2, 10)).workers
    held = [t[1] for t in first.tasks]
    assert (first.worker, held) == (2, [2, 3, 5, 7, 9])
    assert [t[1] for t in second.tasks] == [4, 6, 8]
    assert bench.done(1, 4, 6, 8, ns=MS // 100).workers == []
    assert bench.d.next_deadline() == bench.now + STUCK_NS
    bench.now += STUCK_NS
    assert bench.take() == Actions(workers=[ToWorker(2, recall=[(A, 7), (A, 9)])])
    assert bench.take() == Actions()  # not asked twice
    assert bench.d.next_deadline() == NEVER
    assert bench.recalled(2, (7, True), (9, False)) == Actions(workers=[work(1, 7)])


def test_result_of_a_restarted_client_connection_is_not_lost_by_joining_again(bench: Bench) -> None:
    bench.submit(1)
    bench.d.client_joined(A)
    assert bench.take() == Actions(clients=[ToClient(A, 50)])
    assert bench.submit(1, flags=RESUBMITTED) == Actions()  # it is running: joined
    assert bench.done(1, 1) == Actions(clients=[ToClient(A, 50, [result(1)])])


# -- grants -----------------------------------------------------------------------------------------------------------
def test_grants_and_queue_together_stay_within_the_bound() -> None:
    bench = Bench(queue_max=4)
    assert bench.client() == Actions(clients=[ToClient(A, 2)])
    assert bench.submit(1) == Actions(clients=[ToClient(A, 3)])
    assert bench.submit(2, 3) == Actions(clients=[ToClient(A, 4)])
    assert bench.submit(4) == Actions()  # four are queued: the client waits
    assert bench.worker(1) == Actions([work(1, 1, first=True)], [ToClient(A, 5)])


def test_a_client_with_nothing_on_the_way_is_never_shut_out() -> None:
    bench = Bench(queue_max=2)
    bench.client(A)
    bench.submit(1)
    bench.submit(2)
    assert bench.d.queued == 2
    assert bench.client(B) == Actions(clients=[ToClient(B, 1)])


def test_a_queue_of_one_moves() -> None:
    bench = Bench(queue_max=1)
    assert bench.client() == Actions(clients=[ToClient(A, 1)])
    assert bench.submit(1) == Actions()
    assert bench.worker(1) == Actions([work(1, 1, first=True)], [ToClient(A, 2)])
    assert bench.submit(2) == Actions()
    assert bench.done(1, 1) == Actions([work(1, 2)], [ToClient(A, 3, [result(1)])])


# -- deaths -----------------------------------------------------------------------------------------------------------
def test_only_the_running_task_is_charged(bench: Bench) -> None:
    bench.submit(1)
    bench.done(1, 1, ns=MS // 2)
    first, second = bench.submit(*range(2, 10)).workers
    held = [t[1] for t in first.tasks]
    again = bench.lost(first.worker, held[0])
    assert again == Actions()  # the other one has all it may hold: they are at the front of the queue
    key = second.worker
    finished = bench.done(key, *(t[1] for t in second.tasks), ns=MS // 2)
    assert [t[1] for t in finished.workers[0].tasks] == held
    client = bench.d.clients[A]
    assert {n: t.deaths for n, t in client.tasks.items()} == {n: int(n == held[0]) for n in held}


def test_a_poison_task_is_given_up_after_attempts_max() -> None:
    bench = Bench(attempts_max=2)
    bench.client()
    bench.worker(1)
    bench.submit(7)
    assert bench.lost(1, 7) == Actions()
    assert bench.worker(2) == Actions(workers=[work(2, 7, first=True)])
    text = b"2 workers died while they ran this task, the last one w2; it is not tried again"
    assert bench.lost(2, 7) == Actions(clients=[ToClient(A, 50, [result(7, LOST, text)])])


def test_a_deliberate_kill_charges_nobody() -> None:
    bench = Bench(attempts_max=1)
    bench.client()
    bench.worker(1)
    bench.submit(7)
    for key in range(2, 6):
        assert bench.lost(key - 1, 7, charged=False) == Actions()
        assert bench.worker(key) == Actions(workers=[work(key, 7, first=True)])


def test_a_task_that_must_not_run_again_fails_when_it_may_have_run(bench: Bench) -> None:
    bench.submit(1)
    bench.done(1, 1, ns=MS // 2)
    bench.d.worker_silent(2, None)
    assert bench.submit(2, flags=NO_RERUN) == Actions(workers=[work(1, 2, flags=NO_RERUN)])
    text = b"worker w1 died while it ran the task"
    assert bench.lost(1, 2) == Actions(clients=[ToClient(A, 50, [result(2, LOST, text)])])


def test_tasks_behind_the_running_one_were_not_started() -> None:
    bench = Bench()
    bench.client()
    bench.worker(1)
    bench.submit(1)
    bench.done(1, 1, ns=MS // 2)
    assert [t[1] for t in bench.submit(2, 3, 4, 5, 6, 7, 8, 9, flags=NO_RERUN).workers[0].tasks] == [2, 3, 4, 5]
    lost = bench.lost(1, 3)
    may_have_run = b"worker w1 died; the task may have run"
    running = b"worker w1 died while it ran the task"
    assert lost == Actions(clients=[ToClient(A, 50, [result(2, LOST, may_have_run), result(3, LOST, running)])])
    assert [t[1] for t in bench.worker(2).workers[0].tasks] == [4, 5, 6, 7]  # in their old order


def test_a_lost_worker_gets_nothing_and_unknown_ones_are_ignored(bench: Bench) -> None:
    assert bench.lost(1, None) == Actions()
    assert bench.lost(1, None) == Actions()
    assert bench.submit(1, 2) == Actions(workers=[work(2, 1, first=True)])


# -- silence ----------------------------------------------------------------------------------------------------------
def test_a_silent_worker_gets_nothing_new_and_gives_up_what_it_has_not_started(bench: Bench) -> None:
    bench.submit(1)
    bench.done(1, 1, ns=MS // 2)
    first, second = bench.submit(2, 3, 4, 5).workers
    assert (first.worker, [t[1] for t in first.tasks], [t[1] for t in second.tasks]) == (2, [2, 4], [3, 5])
    bench.d.worker_silent(2, (A, 2))
    assert bench.take() == Actions(workers=[ToWorker(2, recall=[(A, 4)]), work(1, 4)])
    assert bench.submit(6, 7).workers == [work(1, 6)]
    bench.d.worker_heard(2, bench.now)
    assert bench.take().workers == [work(2, 7)]
    # It had started 4 after all: the first result counts, the second is dropped.
    assert bench.done(2, 2, 4, ns=MS // 2) == Actions(
        workers=[ToWorker(1, recall=[(A, 4)])], clients=[ToClient(A, 50, [result(2), result(4)])]
    )
    assert bench.done(1, 4, ns=MS // 2) == Actions()


# -- clients ----------------------------------------------------------------------------------------------------------
def test_a_dead_clients_queued_tasks_are_dropped(bench: Bench) -> None:
    bench.client(B)
    bench.submit(1, 2, 3, 4)
    bench.d.client_gone(A)
    gone = bench.take()
    assert gone == Actions(
        workers=[ToWorker(1, forgotten=[F.digest], recall=[(A, 1)]), ToWorker(2, forgotten=[F.digest], recall=[(A, 2)])]
    ) or gone == Actions(workers=[ToWorker(1, recall=[(A, 1)]), ToWorker(2, recall=[(A, 2)])])
    assert bench.d.queued == 0
    assert bench.done(1, 1) == Actions()  # the result of a running one: nobody wants it
    assert bench.recalled(2, (2, True)) == Actions()
    assert bench.d.describe()["running"] == 0


def test_cancel_takes_back_what_is_queued_and_asks_for_what_is_not_started(bench: Bench) -> None:
    bench.submit(1, 2, 3)
    bench.d.cancel(A, [3, 1, 2, 99])
    assert bench.take() == Actions(
        workers=[ToWorker(1, recall=[(A, 1)]), ToWorker(2, recall=[(A, 2)])],
        clients=[ToClient(A, 50, cancelled=[(3, True), (99, False)])],
    )
    assert bench.recalled(1, (1, True)) == Actions(clients=[ToClient(A, 50, cancelled=[(1, True)])])
    assert bench.recalled(2, (2, False)) == Actions(clients=[ToClient(A, 50, cancelled=[(2, False)])])
    assert bench.done(2, 2) == Actions(clients=[ToClient(A, 50, [result(2)])])


def test_a_cancelled_task_of_a_dead_worker_is_cancelled(bench: Bench) -> None:
    bench.submit(1)
    bench.d.cancel(A, [1])
    bench.take()
    assert bench.lost(1, None) == Actions(clients=[ToClient(A, 50, cancelled=[(1, True)])])
    assert bench.submit(2) == Actions(workers=[work(2, 2, first=True)])


def test_an_unknown_function_fails_the_task(bench: Bench) -> None:
    bench.d.submit(A, [(1, b"?" * 16, b"", 0, 0)], [None])
    text = b"its function was never sent to the router"
    assert bench.take() == Actions(clients=[ToClient(A, 50, [result(1, LOST, text)])])


def test_forgotten_functions_are_forgotten_by_workers_unless_another_client_needs_them(bench: Bench) -> None:
    bench.client(B)
    bench.submit(1)
    bench.done(1, 1)
    bench.d.add_functions(A, [], [F.digest])
    assert bench.take() == Actions()
    bench.d.add_functions(B, [], [F.digest])
    assert bench.take() == Actions(workers=[ToWorker(1, forgotten=[F.digest])])


def test_segments_travel_beside_their_tasks_and_results(bench: Bench) -> None:
    big = [b"x" * 10, b"y" * 20]
    bench.d.submit(A, [(1, F.digest, b"", 0, 2)], [big])
    assert bench.take() == Actions(
        workers=[ToWorker(1, functions=[F], tasks=[(A, 1, F.digest, b"", 0, 2)], segments=big)]
    )
    bench.d.done(1, [(A, 1, RETURNED, b"", LONG, 1)], [[b"z"]], [], bench.now)
    assert bench.take() == Actions(clients=[ToClient(A, 50, [(1, RETURNED, b"", 1)], [b"z"])])


# -- a new router -----------------------------------------------------------------------------------------------------
def test_resubmitted_tasks_wait_for_the_reports_and_join_what_runs() -> None:
    bench = Bench()
    bench.d.expect("w1", (A, 1), bench.now)
    bench.d.expect("w2", None, bench.now)
    bench.client()
    assert bench.submit(1, 2, 3, flags=RESUBMITTED) == Actions()
    assert bench.worker(1, held=[(A, 1), (A, 2)]) == Actions()  # 1 runs, 2 is held, 3 may be with the other one
    assert bench.submit(4) == Actions()  # new tasks need not wait, but the one worker is busy
    assert bench.worker(2) == Actions(workers=[work(2, 3, first=True)])  # the older one first
    assert bench.done(2, 3) == Actions(workers=[work(2, 4)], clients=[ToClient(A, 50, [result(3)])])
    assert bench.done(1, 1, 2) == Actions(clients=[ToClient(A, 50, [result(1), result(2)])])


def test_results_that_come_before_their_client_are_kept_for_it() -> None:
    bench = Bench()
    bench.worker(1, held=[(A, 1)])
    assert bench.done(1, 1) == Actions()
    bench.client()
    assert bench.submit(1, flags=RESUBMITTED) == Actions(clients=[ToClient(A, 50, [result(1)])])


def test_a_worker_that_never_reports_does_not_hold_up_the_others() -> None:
    bench = Bench()
    bench.d.expect("w1", (A, 1), bench.now)
    bench.client()
    bench.worker(2)
    assert bench.submit(1, 2, flags=RESUBMITTED) == Actions()
    assert bench.d.next_deadline() == bench.now + REPORT_WAIT_NS
    bench.now += REPORT_WAIT_NS
    assert bench.take() == Actions(workers=[work(2, 2, first=True)])  # what it runs still waits for it
    assert bench.d.next_deadline() == NEVER
    bench.d.expected_gone("w1")
    assert bench.done(2, 2) == Actions(workers=[work(2, 1)], clients=[ToClient(A, 50, [result(2)])])


def test_a_resubmitted_task_that_must_not_run_again_fails_unless_a_worker_has_it() -> None:
    bench = Bench()
    bench.worker(1, held=[(A, 1)])
    bench.client()
    text = b"the router was restarted; the task may have run, and must not run again"
    assert bench.submit(1, 2, flags=RESUBMITTED | NO_RERUN) == Actions(
        clients=[ToClient(A, 50, [result(2, LOST, text)])]
    )
    assert bench.done(1, 1) == Actions(clients=[ToClient(A, 50, [result(1)])])


def test_what_a_reconnecting_worker_does_not_know_it_never_received(bench: Bench) -> None:
    bench.submit(1, 2)
    assert bench.worker(1, held=[]) == Actions(workers=[work(1, 1, first=True)])
    assert bench.worker(1, held=[(A, 1)]) == Actions()


def test_a_reported_task_dies_with_its_worker_until_its_client_comes() -> None:
    bench = Bench()
    bench.worker(1, held=[(A, 1)])
    assert bench.lost(1, 1) == Actions()
    bench.client()
    bench.worker(2)
    assert bench.submit(1, flags=RESUBMITTED) == Actions(workers=[work(2, 1, first=True)])


@pytest.mark.parametrize("flags", [0, RESUBMITTED])
def test_a_queued_task_whose_function_is_not_there_is_lost_and_stops_nobody(flags: int) -> None:
    """It was forgotten while the task waited, or a resubmission came without it."""
    bench = Bench()
    bench.client()
    bench.submit(1, flags=flags)
    bench.d.add_functions(A, [], [F.digest])
    bench.d.worker_joined(1, "w1", [], bench.now)
    (news,) = bench.take().clients
    assert [(number, status) for number, status, _, _ in news.results] == [(1, LOST)]
    assert bench.d.queued == 0
    bench.d.add_functions(A, [F], [])
    assert [task[1] for task in bench.submit(2).workers[0].tasks] == [2]
