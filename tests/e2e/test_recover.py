"""A majority is lost for good: a new cluster from one node, and what becomes of the old ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import zcluster
from zcluster import wire
from zcluster.cli.main import root
from zcluster.launch import named, probe, recover
from zcluster.launch.cluster import Cluster

pytestmark = pytest.mark.slow


@pytest.fixture
def stopped(private_home: Path) -> Iterator[Cluster]:
    """Three nodes that stopped; n3 was away for the last 20 of 50 writes."""
    cluster, _ = named.up("default", {"workers": 0})
    with cluster.connect() as client:
        for number in range(30):
            client.kv.put(f"k{number}", b"v%d" % number)
        while len(set(cluster.checkpoint().values())) > 1:
            pass  # somebody has not applied the last write yet
        cluster.stop("n3")
        for number in range(30, 50):
            client.kv.put(f"k{number}", b"v%d" % number)
    cluster.down()
    yield cluster
    for name in os.listdir(private_home):
        named.down(name, purge=True)


def test_one_node_begins_anew_with_all_that_its_data_hold(stopped: Cluster, private_home: Path) -> None:
    for name in ("n1", "n3"):
        shutil.rmtree(stopped.spec.data_directory(name))
    before = files_of(stopped.spec.data_directory("n2"))
    old_id = stopped.spec.cluster_id
    recovered, report, kept = recover.force_new(stopped, "n2")
    assert [node["name"] for node in report["nodes"]] == ["n2"]
    assert recovered.spec.cluster_id != old_id
    with recovered.connect() as client:
        assert len(client.kv.list("k")) == 50
        client.kv.put("more", b"x")
    assert sorted(os.listdir(private_home)) == sorted(["default", kept.name])
    assert files_of(kept / "data" / "n2") == before, "the old data are kept as they were"
    assert {c["cluster"]: c["state"] for c in named.clusters()} == {"default": "running", kept.name: "stopped"}


def test_an_old_member_that_comes_back_is_refused(stopped: Cluster) -> None:
    """Its data under the new cluster's directory: refused. Its session and its hello: refused as well."""
    old_id = stopped.spec.cluster_id
    recovered, report, kept = recover.force_new(stopped, "n2")
    (name,) = [node["name"] for node in report["nodes"]]
    hello = wire.encode([wire.PROTOCOL, old_id])
    kind, body = probe.ask(recovered.spec, [name], wire.HELLO, hello, timeout_s=5)[name]
    assert kind == wire.FAILED
    assert "belongs to cluster" in wire.decode(body)[1]
    recovered.down()
    shutil.rmtree(recovered.spec.data_directory("n2"))
    shutil.copytree(kept / "data" / "n2", recovered.spec.data_directory("n2"))
    with pytest.raises(zcluster.Degraded, match="belongs to cluster id"):
        named.up("default", {}, 10)
    # The old cluster, meanwhile, is what it was: with its majority it starts under its new name.
    old, _ = named.up(kept.name, {}, 30)
    with old.connect() as client:
        assert len(client.kv.list("k")) == 50


def test_the_survey_says_who_reaches_how_far_and_what_would_be_better(stopped: Cluster) -> None:
    found = recover.survey(stopped)
    assert {name: finding.state for name, finding in found.items()} == dict.fromkeys(("n1", "n2", "n3"), "sound")
    assert found["n1"].index > found["n3"].index
    text = " ".join(recover.explain(found, "n3"))
    assert "LOST is every write that had not reached n3" in text
    assert "reaches further" in text
    assert "needs no recovery" in text
    shutil.rmtree(stopped.spec.data_directory("n1"))
    shutil.rmtree(stopped.spec.data_directory("n2") / "wal")
    found = recover.survey(stopped)
    assert [found[name].state for name in ("n1", "n2")] == ["missing", "damaged"]
    with pytest.raises(zcluster.InvalidInput, match="its data are gone"):
        recover.explain(found, "n1")


def test_without_its_log_a_node_gives_what_its_checkpoint_holds(stopped: Cluster) -> None:
    shutil.rmtree(stopped.spec.data_directory("n3") / "wal")
    recovered, _, _ = recover.force_new(stopped, "n3")
    with recovered.connect() as client:
        assert len(client.kv.list("k")) == 30


def test_a_weak_cluster_that_lost_a_voter_in_a_power_cut_is_forced_to_go_on(
    private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut in a weak mode all votes are needed; with one disk gone for good nobody can be elected."""
    cluster, _ = named.up("default", {"workers": 0, "durability": "interval:50ms"})
    with cluster.connect() as client:
        client.kv.put("k", b"v")
    cluster.kill("all")
    cluster.down()
    monkeypatch.setattr(recover, "boot_id", lambda: "another boot")  # what a power cut looks like
    shutil.rmtree(cluster.spec.data_directory("n1"))
    found = recover.survey(cluster)
    assert [found[name].state for name in ("n1", "n2", "n3")] == ["missing", "suspect", "suspect"]
    best = max(("n2", "n3"), key=lambda name: found[name].index)
    recovered, _, _ = recover.force_new(cluster, best)
    try:
        with recovered.connect() as client:
            assert client.kv.get("k") == b"v"
    finally:
        for name in os.listdir(private_home):
            named.down(name, purge=True)


def test_the_command_asks_and_a_running_cluster_is_left_alone(stopped: Cluster, private_home: Path) -> None:
    runner = CliRunner()
    looked = runner.invoke(root, ["recover"])
    assert (looked.exit_code, looked.output.count("sound")) == (0, 3)
    refused = runner.invoke(root, ["recover", "--force-new", "n2"])
    assert refused.exit_code == 2
    assert "--yes" in refused.output
    assert runner.invoke(root, ["recover", "--force-new", "n9", "--yes"]).exit_code == 2
    assert os.listdir(private_home) == ["default"]
    done = runner.invoke(root, ["recover", "--force-new", "n2", "--yes"])
    assert done.exit_code == 0, done.output
    assert "LOST is every write" in done.output
    again = runner.invoke(root, ["recover", "--force-new", "n2", "--yes"])
    assert again.exit_code == 6
    assert "stop it first" in again.output


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
