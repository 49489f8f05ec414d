"""Tasks under fire: workers and the router are killed at random, and every result still comes, each right."""

from __future__ import annotations

import random
import threading

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


def test_killing_a_node_moves_its_tasks() -> None:
    with zcluster.LocalCluster(nodes=3, workers=1) as cluster, cluster.connect() as client:
        futures = [client.submit(square, number) for number in range(300)]
        cluster.nodes["n1"].kill()
        assert [future.result(timeout=60) for future in futures] == [n * n for n in range(300)]
        cluster.nodes["n1"].start()
        cluster.wait("healthy", timeout=30)
        assert len(cluster.workers) == 3
