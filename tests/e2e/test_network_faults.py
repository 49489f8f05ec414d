"""The network among real replicas cut, slow and flaky: service goes on where it may, and nobody reads what is stale."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

import zcluster
from zcluster import wire
from zcluster.chaos.traffic import Traffic
from zcluster.client.kv import KV
from zcluster.launch import probe

pytestmark = pytest.mark.slow

WATCHDOG_S = 30.0
ELECTION_TIMEOUT_S = 0.9
LARGE_VALUES = 20
"""Of a megabyte: more than the log in memory keeps for those who are behind."""


def until(condition: Callable[[], object], what: str) -> None:
    """For what nobody announces to us: ask again and again."""
    give_up = time.monotonic() + WATCHDOG_S
    while not condition():
        assert time.monotonic() < give_up, what
        time.sleep(0.02)


@contextmanager
def load(cluster: zcluster.LocalCluster) -> Iterator[Traffic]:
    """Callers while the block runs; what they saw must be linearizable."""
    with Traffic(cluster.connect, clients=6, callers=1, consistency=("linearizable", "lease"), pace_s=0.02) as traffic:
        assert traffic.wait_writes(5, WATCHDOG_S)
        yield traffic
    verdict = traffic.verdict()
    assert verdict.result == "linearizable", verdict


def statuses(cluster: zcluster.LocalCluster) -> dict[str, dict[str, Any]]:
    return probe.statuses(cluster.spec, list(cluster.nodes), timeout_s=2)


def term(cluster: zcluster.LocalCluster) -> int:
    return max(status["term"] for status in statuses(cluster).values())


def read_at(cluster: zcluster.LocalCluster, node: str, consistency: int, key: str) -> Any:
    """What that very node answers to a read: the value; None if it sends us elsewhere or does not answer in time."""
    body = wire.encode([consistency, 0, [[wire.OP_GET, key]]])
    kind, answer = probe.ask(cluster.spec, [node], wire.READ, body, timeout_s=0.5).get(node, (0, b""))
    return wire.decode(answer)[0] if kind == wire.RESULT else None


def wait_value(cluster: zcluster.LocalCluster, node: str, key: str, value: bytes) -> None:
    """Until that node has applied what the others have."""
    until(lambda: read_at(cluster, node, wire.EVENTUAL, key) == value, f"{node} does not catch up")


def test_one_node_has_no_network_to_cut() -> None:
    with zcluster.LocalCluster(nodes=1, workers=0) as cluster:
        with pytest.raises(zcluster.InvalidInput, match="has one node: there is no network"):
            cluster.partition(["n1"])
        with pytest.raises(zcluster.InvalidInput, match="has one node: there is no network"):
            cluster.isolate("n1")


def test_a_leader_cut_off_is_replaced_and_says_nothing_stale() -> None:
    with zcluster.LocalCluster(nodes=3, workers=0) as cluster, cluster.connect() as client, load(cluster) as traffic:
        client.kv.put("k", b"old")
        old = cluster.wait_leader().name
        before = term(cluster)
        cluster.isolate(old)
        client.kv.put("k", b"new", timeout=WATCHDOG_S)
        for _ in range(3):
            assert read_at(cluster, old, wire.LINEARIZABLE, "k") is None
            assert read_at(cluster, old, wire.LEASE, "k") is None
        assert read_at(cluster, old, wire.EVENTUAL, "k") == b"old"
        assert traffic.wait_writes(20, WATCHDOG_S)
        assert cluster.wait_leader().name != old
        status = cluster.status()
        assert (status["state"], status["quorum"]) == ("degraded", True)
        assert len(status["network"]["cuts"]) == 4
        cluster.heal()
        wait_value(cluster, old, "k", b"new")
        cluster.wait_healthy()
        assert term(cluster) <= before + 2


def test_the_smaller_side_waits_and_the_larger_one_serves() -> None:
    with zcluster.LocalCluster(nodes=5, workers=0) as cluster, cluster.connect() as client, load(cluster) as traffic:
        leader = cluster.wait_leader().name
        other = next(name for name in cluster.nodes if name != leader)
        cluster.partition([leader, other])
        client.kv.put("k", b"v", timeout=WATCHDOG_S)
        assert traffic.wait_writes(20, WATCHDOG_S)
        small_side = msgspec.structs.replace(
            cluster.spec,
            nodes=tuple(n for n in cluster.spec.nodes if n.name in (leader, other)),
            directory="/nowhere",  # or it would look there for nodes that it does not know
        )
        cut_off = KV(small_side)
        with pytest.raises((zcluster.NoQuorum, zcluster.Unknown)):
            cut_off.put("k", b"w", timeout=0.5)
        cut_off.close()
        cluster.heal()
        cluster.wait_healthy()
        assert traffic.wait_writes(20, WATCHDOG_S)


def test_without_any_majority_nothing_is_written_and_healing_brings_it_back() -> None:
    with zcluster.LocalCluster(nodes=3, workers=0) as cluster, cluster.connect() as client, load(cluster) as traffic:
        cluster.partition(["n1"], ["n2"], ["n3"])
        assert cluster.status()["state"] == "no_quorum"
        with pytest.raises((zcluster.NoQuorum, zcluster.Unknown)):
            client.kv.put("k", b"v", timeout=2)
        cluster.heal()
        assert traffic.wait_writes(20, WATCHDOG_S)
        cluster.wait_healthy()


@pytest.mark.parametrize("direction", ["in", "out"])
def test_one_way_cuts_cost_at_most_two_terms(direction: Any) -> None:
    with zcluster.LocalCluster(nodes=3, workers=0) as cluster, load(cluster) as traffic:
        before = term(cluster)
        cluster.isolate("leader", direction=direction)
        assert traffic.wait_writes(20, WATCHDOG_S)
        keep_writing(traffic, 4 * ELECTION_TIMEOUT_S)
        assert term(cluster) <= before + 2
        cluster.heal()
        cluster.wait_healthy()
        keep_writing(traffic, 2 * ELECTION_TIMEOUT_S)
        assert term(cluster) <= before + 2


@pytest.mark.parametrize("leads", ["bridge", "side"])
def test_a_bridge_costs_at_most_two_terms(leads: str) -> None:
    with zcluster.LocalCluster(nodes=5, workers=0) as cluster, load(cluster) as traffic:
        leader = cluster.wait_leader().name
        before = term(cluster)
        others = [name for name in cluster.nodes if name != leader]
        if leads == "bridge":
            cluster.partition(others[:2], others[2:], bridge=[leader])
        else:
            cluster.partition([leader, others[0]], others[2:], bridge=[others[1]])
        keep_writing(traffic, 4 * ELECTION_TIMEOUT_S)
        assert term(cluster) <= before + 2
        cluster.heal()
        cluster.wait_healthy()
        assert term(cluster) <= before + 2


def keep_writing(traffic: Traffic, seconds: float) -> None:
    """So long, service is watched; it must be there in the end."""
    threading.Event().wait(seconds)
    traffic.check()
    assert traffic.wait_writes(5, WATCHDOG_S)


def test_a_slow_and_flaky_network_is_only_slow() -> None:
    with zcluster.LocalCluster(nodes=3, workers=0) as cluster, load(cluster) as traffic:
        follower = next(name for name in cluster.nodes if name != cluster.wait_leader().name)
        cluster.slow(follower, 20)
        cluster.flaky("all", loss=0.1, duplicate=0.2)
        assert traffic.wait_writes(300, WATCHDOG_S)
        counters = {name: status["counters"] for name, status in statuses(cluster).items()}
        assert counters[follower]["faults_delayed"] > 0
        assert all(c["faults_lost"] > 0 and c["faults_doubled"] > 0 for c in counters.values())
        status = cluster.status()
        assert status["network"]["slow"] == {follower: 20.0}
        assert set(status["network"]["flaky"]) == set(cluster.nodes)
        cluster.heal()
        cluster.wait_healthy()


def test_it_heals_by_itself_though_everybody_who_knew_is_dead() -> None:
    with zcluster.LocalCluster(nodes=3, workers=0) as cluster:
        cluster.isolate("leader", seconds=1.5)
        supervisor = cluster.control.supervisor()
        assert supervisor is not None
        os.kill(supervisor.pid, 9)
        assert supervisor.exited(10)
        supervisor.close()
        assert any(status["faults"] for status in statuses(cluster).values())
        until(lambda: not any(status["faults"] for status in statuses(cluster).values()), "it does not heal")
        cluster.wait_healthy()


def test_a_node_cut_off_while_it_was_frozen_stays_so_until_it_is_healed() -> None:
    with zcluster.LocalCluster(nodes=3, workers=0) as cluster, cluster.connect() as client:
        follower = next(node for node in cluster.nodes.values() if node.name != cluster.wait_leader().name)
        follower.pause()
        assert cluster.isolate(follower.name)["untold"] == [follower.name]
        follower.resume()
        client.kv.put("k", b"v", timeout=WATCHDOG_S)
        for _ in range(3):
            assert read_at(cluster, follower.name, wire.EVENTUAL, "k") is None
        cluster.heal()
        wait_value(cluster, follower.name, "k", b"v")


def test_a_restarted_node_has_a_whole_network() -> None:
    with zcluster.LocalCluster(nodes=3, workers=0) as cluster:
        follower = next(node for node in cluster.nodes.values() if node.name != cluster.wait_leader().name)
        cluster.isolate(follower.name)
        cluster.slow(follower.name, 30)
        assert cluster.status()["state"] == "degraded"
        follower.kill()
        follower.start()
        status = cluster.wait_healthy()
        assert status["network"] == {"cuts": [], "slow": {}, "flaky": {}, "seconds_left": None}


def test_no_checkpoint_passes_a_cut_and_one_comes_after_it() -> None:
    with (
        zcluster.LocalCluster(nodes=3, workers=0, checkpoint_bytes=50_000) as cluster,
        cluster.connect() as client,
    ):
        leader = cluster.wait_leader().name
        away = next(name for name in cluster.nodes if name != leader)
        for generation in (b"first", b"second"):
            cluster.isolate(away)
            before = statuses(cluster)[away]
            value = generation + bytes(1_000_000)
            for number in range(LARGE_VALUES):
                client.kv.put(f"k{number}", value, timeout=WATCHDOG_S)
            assert statuses(cluster)[away]["last_applied"] <= before["last_applied"] + 1
            cluster.checkpoint()  # so that the leader has forgotten what `away` lacks
            cluster.heal()
            if generation == b"second":  # a transfer that has just begun ends, and another one begins after the healing
                cluster.isolate(away)
                cluster.heal()
            wait_value(cluster, away, f"k{LARGE_VALUES - 1}", value)
            assert statuses(cluster)[away]["checkpoint_index"] > before["last_applied"] + 1
