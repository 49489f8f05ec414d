"""What a second `up` brings back, and how it is told."""

from __future__ import annotations

from zcluster.launch.cluster import Cluster
from zcluster.launch.named import up


def test_second_up_brings_back_what_was_killed_and_paused_and_names_it(cluster: Cluster) -> None:
    cluster.nodes["n1"].kill()
    cluster.pause("n2,router,n3.w1")
    status = cluster.status()
    assert {"n2 is paused", "the router is paused", "n3.w1 is paused"} <= set(status["problems"])
    assert status["fix"] == ["zcluster start n1", "zcluster resume n2 router n3.w1"]
    _, report = up("default", {})
    assert (report["started"], report["resumed"]) == (["n1"], ["n2", "router", "n3.w1"])
    _, report = up("default", {})
    assert (report["started"], report["resumed"]) == ([], [])


def test_paused_worker_is_not_healthy(cluster: Cluster) -> None:
    cluster.pause("n3.w1")
    assert cluster.status()["state"] == "degraded"
    cluster.resume("n3.w1")
    assert cluster.status()["state"] == "healthy"
