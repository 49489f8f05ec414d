"""Clients, a router and workers as real processes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.unit.tasks.processes import TIMEOUT_S, Processes, raw_dealer
from zcluster import wire
from zcluster.config import CLIENT, WORKER
from zcluster.errors import Closed, Conflict, Unpicklable, WorkerDied
from zcluster.tasks import protocol
from zcluster.tasks.aio import AsyncTasks
from zcluster.tasks.payload import RemoteTraceback
from zcluster.tasks.pool import TaskPool
from zcluster.tasks.word import spare
from zcluster.transport.liveness import start_ticks


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, short_directory: str) -> Iterator[Processes]:
    """Two workers that the tests which break nothing share."""
    with Processes(tmp_path_factory.mktemp("shared") / "c", short_directory) as processes:
        processes.wait_status(lambda s: len(s["workers"]) == 2)
        yield processes


@pytest.fixture
def pool(shared: Processes) -> Iterator[TaskPool]:
    with TaskPool(shared.spec) as one:
        yield one


def square(n: int) -> int:
    return n * n


def cluster_pool() -> TaskPool:
    """Inside a task: the task's own cluster."""
    from zcluster.config import load_spec

    return TaskPool(load_spec(os.environ["ZCLUSTER_DIRECTORY"]))


def wait_for(path: Path) -> None:
    until = time.monotonic() + TIMEOUT_S
    while not path.exists():
        assert time.monotonic() < until, path
        time.sleep(0.002)


def touch_and_wait(started: str, release: str) -> int:
    Path(started).touch()
    wait_for(Path(release))
    return os.getpid()


# -- results ----------------------------------------------------------------------------------------------------------
def test_submit_gives_a_standard_future(pool: TaskPool) -> None:
    future = pool.submit(pow, 2, 10)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(TIMEOUT_S) == 1024
    assert future.done()
    assert future.exception() is None
    assert pool.submit(sorted, [1, 3, 2], reverse=True).result(TIMEOUT_S) == [3, 2, 1]


def test_many_tasks_come_back_right(pool: TaskPool) -> None:
    futures = [pool.submit(square, n) for n in range(3_000)]
    assert [f.result(TIMEOUT_S) for f in futures] == [n * n for n in range(3_000)]


def test_wait_as_completed_and_callbacks_work_without_a_waiter(pool: TaskPool) -> None:
    done, pending = concurrent.futures.wait([pool.submit(square, n) for n in range(50)], TIMEOUT_S)
    assert len(done) == 50
    assert not pending
    futures = {pool.submit(square, n): n for n in range(50)}
    for future in concurrent.futures.as_completed(futures, TIMEOUT_S):
        assert future.result() == futures[future] ** 2
    called = threading.Event()
    pool.submit(square, 3).add_done_callback(lambda f: called.set() if f.result() == 9 else None)
    assert called.wait(TIMEOUT_S)


def test_a_callback_may_submit_and_wait(pool: TaskPool) -> None:
    answers: list[int] = []
    called = threading.Event()

    def more(future: concurrent.futures.Future[int]) -> None:
        answers.append(pool.submit(square, future.result()).result(TIMEOUT_S))
        called.set()

    pool.submit(square, 3).add_done_callback(more)
    assert called.wait(TIMEOUT_S)
    assert answers == [81]


def test_wrap_future_works_in_asyncio(pool: TaskPool) -> None:
    async def main() -> int:
        return await asyncio.wait_for(asyncio.wrap_future(pool.submit(square, 7)), TIMEOUT_S)

    assert asyncio.run(main()) == 49


def test_many_threads_share_a_pool(pool: TaskPool) -> None:
    answers: dict[int, int] = {}

    def run(base: int) -> None:
        for n in range(base, base + 50):
            answers[n] = pool.submit(square, n).result(TIMEOUT_S)

    threads = [threading.Thread(target=run, args=(100 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {n: n * n for i in range(8) for n in range(100 * i, 100 * i + 50)}


def test_big_arguments_and_results(pool: TaskPool) -> None:
    big = os.urandom(3 << 20)
    assert pool.submit(bytes.__add__, big, b"!").result(TIMEOUT_S) == big + b"!"
    buffers = [bytearray(200_000) for _ in range(3)]

    def grow(items: list[bytearray]) -> list[bytearray]:
        items[1][0] = 7
        return items

    found = pool.submit(grow, buffers).result(TIMEOUT_S)
    assert [len(item) for item in found] == [200_000] * 3
    assert (found[1][0], buffers[1][0]) == (7, 0)


def test_map_is_ordered_lazy_and_stops_at_the_first_failure(pool: TaskPool) -> None:
    assert list(pool.map(square, range(5_000), timeout=TIMEOUT_S)) == [n * n for n in range(5_000)]
    assert list(pool.map(pow, [2, 3, 4], [5, 6], timeout=TIMEOUT_S)) == [32, 729]
    assert list(pool.map(square, range(10), chunksize=3)) == [n * n for n in range(10)]
    endless = pool.map(square, iter(int, 1))
    assert [next(endless) for _ in range(5)] == [0] * 5
    endless.close()  # type: ignore[attr-defined]
    found = []
    with pytest.raises(ZeroDivisionError) as caught:
        for value in pool.map(lambda n: 10 // (5 - n), range(10)):
            found.append(value)
    assert found == [2, 2, 3, 5, 10]
    assert isinstance(caught.value.__cause__, RemoteTraceback)


def test_map_times_out(pool: TaskPool, tmp_path: Path) -> None:
    release = tmp_path / "release"
    with pytest.raises(TimeoutError):
        list(pool.map(wait_for, [release], timeout=0.05))
    release.touch()


def test_a_future_times_out_and_comes_later(pool: TaskPool, tmp_path: Path) -> None:
    future = pool.submit(touch_and_wait, str(tmp_path / "started"), str(tmp_path / "release"))
    with pytest.raises(TimeoutError):
        future.result(0.02)
    (tmp_path / "release").touch()
    assert future.result(TIMEOUT_S) > 0


# -- failures ---------------------------------------------------------------------------------------------------------
def test_exceptions_are_the_original_with_the_remote_traceback(pool: TaskPool) -> None:
    def fails() -> None:
        raise LookupError("here")

    with pytest.raises(LookupError, match="here") as caught:
        pool.submit(fails).result(TIMEOUT_S)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "in fails" in str(caught.value.__cause__)


def test_what_cannot_be_pickled_is_said_at_once_or_returned(pool: TaskPool) -> None:
    with pytest.raises(Unpicklable, match="argument 1"):
        pool.submit(square, threading.Lock())  # type: ignore[arg-type]
    with pytest.raises(Unpicklable, match="result"):
        pool.submit(threading.Lock).result(TIMEOUT_S)
    with pytest.raises(SystemExit):
        pool.submit(sys.exit, 3).result(TIMEOUT_S)
    assert pool.submit(square, 2).result(TIMEOUT_S) == 4


def test_cancel_takes_back_queued_tasks_only(pool: TaskPool, tmp_path: Path) -> None:
    release = str(tmp_path / "release")
    running = [pool.submit(touch_and_wait, str(tmp_path / f"started{i}"), release) for i in range(2)]
    for i in range(2):
        wait_for(tmp_path / f"started{i}")
    queued = [pool.submit(square, n) for n in range(5)]
    assert not running[0].cancel()
    assert queued[3].cancel()
    assert queued[3].cancelled()
    assert queued[3].cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        queued[3].result()
    Path(release).touch()
    assert [queued[n].result(TIMEOUT_S) for n in (0, 1, 2, 4)] == [0, 1, 4, 16]
    assert len({f.result(TIMEOUT_S) for f in running}) == 2
    assert not queued[0].cancel()


def test_shutdown_waits_or_cancels(shared: Processes, tmp_path: Path) -> None:
    pool = TaskPool(shared.spec)
    futures = [pool.submit(square, n) for n in range(100)]
    pool.shutdown()
    assert [f.result() for f in futures] == [n * n for n in range(100)]
    with pytest.raises(Closed):
        pool.submit(square, 1)
    pool = TaskPool(shared.spec)
    release = str(tmp_path / "release")
    running = [pool.submit(touch_and_wait, str(tmp_path / f"started{i}"), release) for i in range(2)]
    for i in range(2):
        wait_for(tmp_path / f"started{i}")
    queued = [pool.submit(square, n) for n in range(20)]
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(f.cancelled() for f in queued)
    Path(release).touch()
    assert all(f.result(TIMEOUT_S) for f in running)
    pool.close()


def test_closing_fails_what_is_open(shared: Processes, tmp_path: Path) -> None:
    pool = TaskPool(shared.spec)
    future = pool.submit(touch_and_wait, str(tmp_path / "started"), str(tmp_path / "release"))
    wait_for(tmp_path / "started")
    pool.close()
    pool.close()
    with pytest.raises(Closed):
        future.result()
    (tmp_path / "release").touch()
    shared.wait_status(lambda s: s["clients"] == 0 and s["running"] == 0)


def test_memory_is_released_with_the_futures(pool: TaskPool) -> None:
    future = pool.submit(bytes, 100_000)
    assert len(future.result(TIMEOUT_S)) == 100_000
    gone = weakref.ref(future)
    del future
    gc.collect()
    assert gone() is None
    link = pool._link
    assert link is not None
    assert not link.calls


def test_ctrl_c_inside_result_leaves_the_pool_usable(pool: TaskPool, tmp_path: Path) -> None:
    future = pool.submit(touch_and_wait, str(tmp_path / "started"), str(tmp_path / "release"))

    def interrupt() -> None:
        wait_for(tmp_path / "started")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt):
        thread.start()
        future.result(TIMEOUT_S)
    thread.join()
    assert pool.submit(square, 5).result(TIMEOUT_S) == 25
    (tmp_path / "release").touch()
    assert future.result(TIMEOUT_S) > 0


# -- nesting ----------------------------------------------------------------------------------------------------------
def fibonacci(n: int) -> int:
    if n < 2:
        return n
    with cluster_pool() as pool:
        first, second = pool.submit(fibonacci, n - 1), pool.submit(fibonacci, n - 2)
        return first.result() + second.result()


def waiting_parent(n: int) -> int:
    with cluster_pool() as pool:
        done, _ = concurrent.futures.wait([pool.submit(square, i) for i in range(n)], TIMEOUT_S)
        return sum(f.result() for f in done) + sum(pool.map(square, range(n)))


async def async_parent(n: int) -> int:
    tasks = AsyncTasks(cluster_pool().spec)
    try:
        return sum(await asyncio.gather(*(tasks.submit(square, i) for i in range(n))))
    finally:
        tasks.close()


def run_async_parent(n: int) -> int:
    return asyncio.run(async_parent(n))


def test_nested_tasks_do_not_deadlock(pool: TaskPool) -> None:
    assert [f.result(TIMEOUT_S) for f in [pool.submit(fibonacci, n) for n in range(6)]] == [0, 1, 1, 2, 3, 5]


def test_nested_tasks_do_not_deadlock_with_one_worker(tmp_path: Path, short_directory: str) -> None:
    with Processes(tmp_path / "c", short_directory + "/1", workers=1) as processes, TaskPool(processes.spec) as pool:
        assert pool.submit(fibonacci, 5).result(TIMEOUT_S) == 5
        assert pool.submit(waiting_parent, 4).result(TIMEOUT_S) == 28
        assert pool.submit(run_async_parent, 4).result(TIMEOUT_S) == 14


# -- asyncio ----------------------------------------------------------------------------------------------------------
def test_async_tasks_work_in_several_loops_in_turn(shared: Processes) -> None:
    tasks = AsyncTasks(shared.spec)

    async def many(count: int) -> list[int]:
        return await asyncio.wait_for(asyncio.gather(*(tasks.submit(square, n) for n in range(count))), TIMEOUT_S)

    for count in (1, 500):
        assert asyncio.run(many(count)) == [n * n for n in range(count)]

    async def fails() -> None:
        with pytest.raises(ZeroDivisionError):
            await tasks.submit(divmod, 1, 0)

    asyncio.run(fails())
    tasks.close()
    with pytest.raises(Closed):
        asyncio.run(many(1))


# -- surroundings -----------------------------------------------------------------------------------------------------
SCRIPT_HEAD = """
from zcluster.config import load_spec
from zcluster.tasks.pool import TaskPool
SPEC = load_spec({directory!r})
"""


def run_script(directory: Path, processes: Processes, source: str) -> subprocess.CompletedProcess[str]:
    script = directory / "script.py"
    head = SCRIPT_HEAD.format(directory=processes.spec.directory)
    script.write_text(head + textwrap.dedent(source))
    return subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def test_a_script_without_a_main_guard(tmp_path: Path, shared: Processes) -> None:
    """Functions and classes of __main__, a module beside the script, its working directory; silence at the end."""
    (tmp_path / "beside.py").write_text("def double(x): return 2 * x\n")
    (tmp_path / "data.txt").write_text("here")
    done = run_script(
        tmp_path,
        shared,
        """
        import beside
        class Point:
            def __init__(self, x): self.x = x
        factor = 3
        def scale(point): return Point(point.x * factor)
        pool = TaskPool(SPEC)
        assert pool.submit(scale, Point(2)).result().x == 6
        assert type(pool.submit(scale, Point(2)).result()) is Point
        factor = 4
        assert pool.submit(scale, Point(2)).result().x == 8
        assert pool.submit(lambda: open("data.txt").read()).result() == "here"
        assert list(pool.map(beside.double, range(3))) == [0, 2, 4]
        pool.submit(print, "to the log")
        pool.submit(beside.double, 1)
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    until = time.monotonic() + TIMEOUT_S
    while not any("to the log" in shared.log(name) for name in shared.workers):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_script_ends_in_silence_though_its_task_never_does(tmp_path: Path, short_directory: str) -> None:
    """Neither a worker that hangs nor a router that is gone holds up the end of a program."""
    with Processes(tmp_path / "cluster", f"{short_directory}/e", workers=1) as processes:
        assert processes.router is not None
        done = run_script(
            tmp_path,
            processes,
            f"""
            import os, signal, time
            pool = TaskPool(SPEC)
            assert pool.submit(pow, 2, 3).result() == 8
            hangs = pool.submit(time.sleep, 3600)
            waits = pool.submit(pow, 2, 4)
            os.kill({processes.router.pid}, signal.SIGKILL)
            print("end")
            """,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_a_forked_child_opens_its_own_connection(tmp_path: Path, shared: Processes) -> None:
    done = run_script(
        tmp_path,
        shared,
        """
        import os
        pool = TaskPool(SPEC)
        first = pool.submit(pow, 2, 3)
        assert first.result() == 8
        open_one = pool.submit(pow, 2, 4)
        child = os.fork()
        answers = [f.result() for f in [pool.submit(pow, 2, n) for n in range(100)]]
        assert answers == [2 ** n for n in range(100)]
        if child:
            assert os.waitpid(child, 0)[1] == 0
            assert open_one.result() == 16
        pool.close()
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_changed_module_means_a_fresh_worker(tmp_path: Path, short_directory: str) -> None:
    source = "import changing\npool = TaskPool(SPEC)\nprint(pool.submit(changing.version).result())\npool.close()\n"
    with Processes(tmp_path / "c", short_directory + "/m", workers=1) as processes:
        processes.keep()
        for version in (1, 2):
            (tmp_path / "changing.py").write_text(f"def version(): return {version}\n")
            os.utime(tmp_path / "changing.py", (1_000_000 * version, 1_000_000 * version))
            done = run_script(tmp_path, processes, source)
            assert (done.stdout, done.stderr) == (f"{version}\n", "")


def test_another_python_version_is_refused(shared: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "PYTHON", "3.99")
    pool = TaskPool(shared.spec)
    with pytest.raises(Conflict, match=r"this is Python 3\.99"):
        pool.submit(square, 1).result(TIMEOUT_S)
    with pytest.raises(Conflict):
        pool.submit(square, 1)
    pool.close()


def test_garbage_is_dropped_and_counted(shared: Processes) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    rng = random.Random(5)
    before = shared.status()["dropped_garbage"]
    sockets = [raw_dealer(context, shared.spec.endpoint("router", role)) for role in (CLIENT, WORKER)]
    hello = protocol.pack(protocol.HELLO, [1, "c1", 5, protocol.PYTHON, os.getpid(), 1])
    frames = [[b"x"], [b"\x04"], [b"x", b"y", b"z"], [hello[:-3]], [protocol.pack(protocol.WORK, [0, [], [], []])]]
    frames += [[bytes([rng.randrange(1, 256)]) + rng.randbytes(rng.randrange(40))] for _ in range(200)]
    frames += [[protocol.pack(protocol.NEWS, [])], [protocol.pack(protocol.DONE, [[], [], []])], [b"\xff" * 100_000]]
    for socket in sockets:
        for frame in frames:
            socket.send_multipart(frame)
    shared.wait_status(lambda s: s["dropped_garbage"] >= before + len(sockets) * 100)
    for socket in sockets:
        socket.close()
    context.term()
    with TaskPool(shared.spec) as pool:
        assert pool.submit(square, 3).result(TIMEOUT_S) == 9


def test_status_has_what_the_command_line_shows(shared: Processes, pool: TaskPool) -> None:
    assert pool.submit(square, 2).result(TIMEOUT_S) == 4
    status = shared.wait_status(lambda s: s["running"] == 0)
    assert status["name"] == "router"
    assert shared.router is not None
    assert status["pid"] == shared.router.pid
    assert {w["name"]: w["pid"] for w in status["workers"]} == {n: p.pid for n, p in shared.workers.items()}
    assert {"running", "queued", "done"} <= set(status["workers"][0])
    assert (status["clients"], status["queued"]) == (1, 0)
    assert status["done_total"] >= 1
    assert wire.STATUS == 4


def test_a_worker_that_reports_twice_is_not_thought_busy(tmp_path: Path, short_directory: str) -> None:
    """It was asked twice who it is, and repeats results that had arrived: its tasks are done all the same."""
    with Processes(tmp_path / "c", short_directory + "/r", workers=0) as processes:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = raw_dealer(context, processes.spec.endpoint("router", WORKER))
        ticks = start_ticks(os.getpid())
        report = [protocol.PROTOCOL, "c1", "fake", protocol.PYTHON, os.getpid(), ticks, None, [[7, 1]]]
        for _ in range(2):
            socket.send(protocol.pack(protocol.REPORT, report))
            socket.send(protocol.pack(protocol.DONE, [1, [[7, 1, protocol.RETURNED, b"", 1, 0]], []]))
        status = processes.wait_status(lambda s: bool(s["workers"]) and s["workers"][0]["done"] == 2)
        assert status["running"] == 0
        socket.close()
        context.term()


# -- back-pressure ----------------------------------------------------------------------------------------------------
def test_submit_blocks_while_the_queue_is_full(tmp_path: Path, short_directory: str) -> None:
    with Processes(tmp_path / "c", short_directory + "/q", workers=1, queue_max=4) as processes:
        pool = TaskPool(processes.spec)
        release = tmp_path / "release"
        futures = [pool.submit(touch_and_wait, str(tmp_path / "started"), str(release))]
        wait_for(tmp_path / "started")
        submitted = threading.Semaphore(0)

        def submit() -> None:
            for n in range(30):
                futures.append(pool.submit(square, n))
                submitted.release()

        thread = threading.Thread(target=submit)
        thread.start()
        for _ in range(4):
            assert submitted.acquire(timeout=TIMEOUT_S)
        assert processes.wait_status(lambda s: s["queued"] == 4)["queued"] == 4
        assert not submitted.acquire(timeout=0.1)
        release.touch()
        thread.join(TIMEOUT_S)
        assert [f.result(TIMEOUT_S) for f in futures[1:]] == [n * n for n in range(30)]
        pool.close()


# -- deaths -----------------------------------------------------------------------------------------------------------
def crash_unless(path: str) -> str:
    if not os.path.exists(path):
        Path(path).touch()
        os._exit(9)
    return "alive"


def crash_always() -> None:
    os._exit(9)


def test_a_crash_is_run_again_and_poison_is_capped(tmp_path: Path, short_directory: str) -> None:
    with Processes(tmp_path / "c", short_directory + "/p", attempts_max=2) as processes:
        processes.keep()
        with TaskPool(processes.spec) as pool:
            assert pool.submit(crash_unless, str(tmp_path / "mark")).result(TIMEOUT_S) == "alive"
            poison = pool.submit(crash_always)
            good = [pool.submit(square, n) for n in range(200)]
            with pytest.raises(WorkerDied, match="2 workers died"):
                poison.result(TIMEOUT_S)
            assert [f.result(TIMEOUT_S) for f in good] == [n * n for n in range(200)]
            with pytest.raises(WorkerDied, match="died while it ran"):
                pool.submit(crash_unless, str(tmp_path / "other"), rerun=False).result(TIMEOUT_S)  # type: ignore[call-arg]


def test_deliberate_kills_charge_nobody(tmp_path: Path, short_directory: str) -> None:
    with (
        Processes(tmp_path / "c", short_directory + "/d", workers=1, attempts_max=1) as processes,
        TaskPool(processes.spec) as pool,
    ):
        release = tmp_path / "release"
        future = pool.submit(touch_and_wait, str(tmp_path / "started"), str(release))
        for kind in ("spared", "terminated"):
            wait_for(tmp_path / "started")
            (tmp_path / "started").unlink()
            worker = processes.workers["n1.w1"]
            if kind == "spared":
                assert spare(processes.spec.path / "run", "n1.w1", worker.pid)
                worker.kill()
            else:
                worker.terminate()
            worker.wait()
            processes.start_worker("n1.w1")
        wait_for(tmp_path / "started")
        release.touch()
        assert future.result(TIMEOUT_S) == processes.workers["n1.w1"].pid


def test_a_worker_that_cannot_write_its_word_says_why_and_works_once_it_can(
    tmp_path: Path, short_directory: str
) -> None:
    """As on a full disk: the run directory takes no file."""
    with Processes(tmp_path / "cluster", f"{short_directory}/w", workers=1) as processes:
        processes.wait_status(lambda s: len(s["workers"]) == 1)
        run = processes.spec.path / "run"
        processes.kill(processes.workers["n1.w1"])
        run.rename(run.with_name("away"))
        processes.start_worker("n1.w1")
        assert processes.workers["n1.w1"].wait(TIMEOUT_S) == 73
        assert "n1.w1 cannot say what it runs: " in processes.log("n1.w1")
        command = [sys.executable, "-m", "zcluster.tasks.worker", processes.spec.directory, "n1.w1"]
        with open("/dev/full", "wb") as full_log:  # not even its last words find room
            assert subprocess.run(command, stderr=full_log, timeout=TIMEOUT_S, check=False).returncode == 73
        run.with_name("away").rename(run)
        processes.start_worker("n1.w1")
        with TaskPool(processes.spec) as pool:
            assert pool.submit(pow, 2, 3).result(TIMEOUT_S) == 8


def test_a_stopped_worker_gets_nothing_new(tmp_path: Path, short_directory: str) -> None:
    with Processes(tmp_path / "c", short_directory + "/s") as processes, TaskPool(processes.spec) as pool:
        processes.wait_status(lambda s: len(s["workers"]) == 2)
        assert list(pool.map(square, range(100))) == [n * n for n in range(100)]
        stopped = processes.workers["n1.w1"]
        stopped.send_signal(signal.SIGSTOP)
        futures = [pool.submit(square, n) for n in range(50)]
        assert [f.result(TIMEOUT_S) for f in futures] == [n * n for n in range(50)]
        stopped.send_signal(signal.SIGCONT)


def test_a_running_task_is_joined_by_the_next_router(tmp_path: Path, short_directory: str) -> None:
    with Processes(tmp_path / "c", short_directory + "/j", workers=1) as processes, TaskPool(processes.spec) as pool:
        runs = tmp_path / "runs"
        release = tmp_path / "release"

        def once() -> int:
            with open(runs, "a") as file:
                file.write("x")
            wait_for(release)
            return 42

        future = pool.submit(once)
        wait_for(runs)
        processes.kill(processes.router)
        processes.start_router()
        queued = [pool.submit(square, n) for n in range(10)]  # accepted while there is no router
        processes.wait_status(lambda s: s["running"] == 1)
        release.touch()
        assert future.result(TIMEOUT_S) == 42
        assert [f.result(TIMEOUT_S) for f in queued] == [n * n for n in range(10)]
        assert runs.read_text() == "x"


def test_a_dead_clients_tasks_are_dropped(tmp_path: Path, short_directory: str) -> None:
    with Processes(tmp_path / "c", short_directory + "/x", workers=1) as processes:
        run_script(
            tmp_path,
            processes,
            """
            import os, time
            pool = TaskPool(SPEC)
            pool.submit(abs, 1).result()
            first = pool.submit(time.sleep, 0.5)
            rest = [pool.submit(time.sleep, 60) for _ in range(10)]
            pool._link.flush()
            pool.submit(abs, 1)
            pool._link.flush()
            os.kill(os.getpid(), 9)
            """,
        )
        processes.wait_status(lambda s: s["clients"] == 0 and s["queued"] == 0 and s["running"] == 0)
        with TaskPool(processes.spec) as pool:
            assert pool.submit(square, 3).result(TIMEOUT_S) == 9


def slow_square(n: int) -> int:
    time.sleep(0.001)
    return n * n


@pytest.mark.slow
def test_a_thousand_tasks_survive_kills_of_workers_and_router(tmp_path: Path, short_directory: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with Processes(tmp_path / "c", short_directory + "/k", workers=3, attempts_max=10) as processes:
        processes.keep()
        with TaskPool(processes.spec) as pool:
            futures = [pool.submit(slow_square, n) for n in range(1_000)]
            done = threading.Semaphore(0)
            for future in futures:
                future.add_done_callback(lambda _: done.release())
            for _ in range(12):
                victims: list[Any] = [*processes.workers.values(), processes.router, processes.router]
                rng.choice(victims).kill()
                for _ in range(50):
                    assert done.acquire(timeout=TIMEOUT_S), "no progress"
            assert [f.result(TIMEOUT_S) for f in futures] == [n * n for n in range(1_000)]
