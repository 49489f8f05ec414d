"""What happened to real processes can be read afterwards, with how long nobody served."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from zcluster.cli.main import root
from zcluster.launch.cluster import Cluster
from zcluster.launch.local import LocalCluster

pytestmark = pytest.mark.slow

Event = dict[str, Any]


def wait_event(cluster: Cluster, matches: Callable[[Event], bool], after_ns: int) -> Event:
    """The first such event after a moment; events are written beside service, so a little later."""
    give_up = time.monotonic() + 20
    while True:
        for event in cluster.events():
            if event["monotonic_ns"] >= after_ns and matches(event):
                return event
        assert time.monotonic() < give_up, [e for e in cluster.events() if e["monotonic_ns"] >= after_ns]
        time.sleep(0.02)


def is_event(name: str, node: str | None = None) -> Callable[[Event], bool]:
    return lambda e: e["event"] == name and node in (None, e.get("node"))


def test_the_events_tell_the_story_of_a_killed_and_a_paused_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalCluster(nodes=3, workers=0) as cluster:
        monkeypatch.setenv("ZCLUSTER_DIRECTORY", str(cluster.directory))
        first = wait_event(cluster, is_event("leader"), 0)
        assert "without_service_ms" not in first
        old = cluster.wait_leader().name
        began = time.monotonic_ns()
        cluster.kill(old)
        killed = wait_event(cluster, is_event("killed", old), began)
        assert killed["signal"] == "SIGKILL"
        died = wait_event(cluster, is_event("died", old), began)
        assert "KILL" in died["reason"]
        election = wait_event(cluster, is_event("election"), began)
        leader = wait_event(cluster, is_event("leader"), began)
        assert leader["node"] == election["node"] != old
        assert (leader["previous"], leader["term"]) == (old, election["term"])
        assert 0 < leader["since_exit_ms"] <= leader["without_service_ms"] < 5000
        assert leader["monotonic_ns"] <= time.monotonic_ns()

        cluster.start(old)
        started = wait_event(cluster, is_event("replica_started", old), began)
        assert started["incarnation"] == 2
        cluster.wait("healthy")
        cluster.checkpoint()
        assert wait_event(cluster, is_event("checkpoint"), began)["bytes"] > 0

        paused_at = time.monotonic_ns()
        cluster.pause(leader["node"])
        wait_event(cluster, is_event("paused", leader["node"]), paused_at)
        third = wait_event(cluster, is_event("leader"), paused_at)
        assert third["previous"] == leader["node"]
        assert "since_exit_ms" not in third
        took_ms = (third["monotonic_ns"] - paused_at) / 1e6
        assert third["without_service_ms"] <= took_ms + 1000
        cluster.resume(leader["node"])
        wait_event(cluster, is_event("stepped_down", leader["node"]), paused_at)
        cluster.stop(old)
        wait_event(cluster, is_event("stopped", old), paused_at)

        result = CliRunner().invoke(root, ["events", "--json", "-n", "1000"])
        assert result.exit_code == 0, result.output
        printed = [json.loads(line) for line in result.stdout.splitlines()]
        assert {"leader", "killed", "died", "paused", "checkpoint"} <= {event["event"] for event in printed}
        told = CliRunner().invoke(root, ["events", "-n", "1000"]).stdout
        assert f"after {old}, which exited" in told
        assert "ms without service" in told
