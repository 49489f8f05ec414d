"""Real clusters with Multi-Paxos: proposers and whole clusters are killed, members come and go, and clients see one
order."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import zcluster
from tests.e2e.judging import assert_linearizable
from zcluster.chaos.traffic import Traffic


def square(number: int) -> int:
    return number * number


@pytest.mark.slow
def test_what_clients_see_has_an_order_whoever_dies(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    directory = tmp_path / "data"
    with zcluster.LocalCluster(engine="paxos", workers=1, data_dir=directory, checkpoint_bytes=50_000) as cluster:
        with Traffic(cluster.connect, seed=seed, consistency=("linearizable", "lease"), prefix="first-") as traffic:
            for _ in range(3):
                proposer = cluster.wait_leader()
                proposer.kill()
                traffic.wait_progress(10)
                proposer.start()
                traffic.wait_progress(10)
            everybody = list(cluster.nodes.values())
            for node in everybody:
                node.kill()
            for node in everybody:
                node.start()
            traffic.wait_progress(10)
            cluster.scale(4)
            traffic.wait_progress(10)
            cluster.wait_leader().kill()
            traffic.wait_progress(10)
            cluster.scale(3)
            traffic.wait_progress(10)
        assert_linearizable(traffic, tmp_path)
        with cluster.connect() as client:
            assert client.submit(square, 12).result(timeout=30) == 144
            client.kv.put("kept", b"x")
    with (
        zcluster.LocalCluster(engine="paxos", workers=1, data_dir=directory) as cluster,
        cluster.connect() as client,
    ):
        assert len(cluster.nodes) == 3
        assert client.kv.get("kept") == b"x"
        with Traffic(cluster.connect, seed=seed + 1, prefix="second-") as traffic:
            traffic.wait_progress(10)
        assert_linearizable(traffic, tmp_path, answers_min=20)
