"""Tasks under fire: workers and the router are killed at random, and every result still comes, each right."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

import zcluster

pytestmark = pytest.mark.slow


def square(number: int) -> int:
    total = 0
    for _ in range(2_000):  # long enough that some are running when their worker dies
        total += number
    return total * number // 2_000


def test_a_thousand_tasks_survive_the_death_of_workers_and_router() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    choose = random.Random(seed)
    with zcluster.LocalCluster(nodes=3, workers=1) as cluster, cluster.connect() as client:
        done = threading.Semaphore(0)
        futures = [client.submit(square, number) for number in range(1_000)]
        for future in futures:
            future.add_done_callback(lambda _: done.release())
        for _ in range(12):
            assert all(done.acquire(timeout=60) for _ in range(60)), "no progress"
            victims = [*cluster.workers, *cluster.routers]
            if victims:
                choose.choice(victims).kill()
        assert [future.result(timeout=60) for future in futures] == [n * n for n in range(1_000)]


def test_a_worker_killed_on_purpose_is_not_charged_to_its_task(tmp_path: Path) -> None:
    """With one attempt allowed, a charged task would fail with WorkerDied."""
    begun, seen = tmp_path / "begun", tmp_path / "seen"
    os.mkfifo(begun)

    def stay_the_first_time() -> str:
        if seen.exists():
            return "second run"
        seen.touch()
        begun.write_text("here")  # blocks until the test reads
        threading.Event().wait()
        return "never"

    with zcluster.LocalCluster(nodes=1, workers=1, attempts_max=1) as cluster, cluster.connect() as client:
        future = client.submit(stay_the_first_time)
        assert begun.read_text() == "here"
        cluster.workers[0].kill()
        assert future.result(timeout=60) == "second run"


def test_killing_a_node_moves_its_tasks() -> None:
    with zcluster.LocalCluster(nodes=3, workers=1) as cluster, cluster.connect() as client:
        futures = [client.submit(square, number) for number in range(300)]
        cluster.nodes["n1"].kill()
        assert [future.result(timeout=60) for future in futures] == [n * n for n in range(300)]
        cluster.nodes["n1"].start()
        cluster.wait("healthy", timeout=30)
        assert len(cluster.workers) == 3
