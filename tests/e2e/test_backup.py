"""Backups of clusters that serve, and clusters made from them."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

import zcluster
from zcluster import wire
from zcluster.launch import backup, named, probe
from zcluster.launch.cluster import Cluster
from zcluster.storage.backup_file import Manifest

pytestmark = pytest.mark.slow


def key(number: int) -> str:
    return f"k{number:06d}"


def test_a_backup_under_writes_holds_everything_acknowledged_before_it(tmp_path: Path) -> None:
    """Three clients write all the time; each backup, from whichever node, has what they had acknowledged."""
    acknowledged = [0, 0, 0]
    stop = threading.Event()
    with zcluster.LocalCluster(nodes=3, workers=0, checkpoint_bytes=65_536) as cluster:

        def write(number: int) -> None:
            with cluster.connect() as client:
                while not stop.is_set():
                    client.kv.put(f"c{number}", b"%d" % (acknowledged[number] + 1))
                    client.kv.put(f"c{number}-{acknowledged[number]}", b"x" * 500)
                    acknowledged[number] += 1

        threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        try:
            before = []
            for name in ("n1", "n2", "n3"):
                before.append(list(acknowledged))
                assert cluster.backup(tmp_path / name, node=name)["node"] == name
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    for name, counts in zip(("n1", "n2", "n3"), before, strict=True):
        with (
            zcluster.LocalCluster(nodes=1, workers=0, restore=tmp_path / name) as restored,
            restored.connect() as client,
        ):
            for number, count in enumerate(counts):
                value = int(client.kv.get(f"c{number}") or b"0")
                assert value >= count
                assert len(client.kv.list(f"c{number}-")) in (value - 1, value), "one cut through all keys"


@pytest.mark.parametrize("nodes", [1, 5])
def test_a_restored_cluster_of_another_size_goes_on_from_the_same_revision(tmp_path: Path, nodes: int) -> None:
    file = tmp_path / "b"
    with zcluster.LocalCluster(nodes=3, workers=0, value_bytes_max=4096) as cluster, cluster.connect() as client:
        for number in range(50):
            revision = client.kv.put(key(number), b"v%d" % number)
        manifest = cluster.backup(file)
        old = cluster.spec.cluster_id
    assert (manifest["keys"], manifest["revision"], manifest["cluster_id"]) == (50, revision, old)
    data = tmp_path / "data"
    with zcluster.LocalCluster(nodes=nodes, workers=0, restore=file, data_dir=data) as cluster:
        assert cluster.spec.cluster_id != old
        assert len(cluster.nodes) == nodes
        assert cluster.spec.settings.value_bytes_max == 4096, "settings nobody names are the old cluster's"
        with cluster.connect() as client:
            assert client.kv.list("k") == {key(n): b"v%d" % n for n in range(50)}
            assert client.kv.put("more", b"x") == revision + 1
            if nodes > 1:
                cluster.wait_leader().kill()
                assert client.kv.put("more", b"y") == revision + 2
    again = zcluster.LocalCluster(nodes=nodes, workers=0, data_dir=data, value_bytes_max=4096)
    with again, again.connect() as client:
        assert client.kv.get("more") == (b"y" if nodes > 1 else b"x")
        with pytest.raises(zcluster.Conflict, match="not empty"):
            zcluster.LocalCluster(nodes=nodes, workers=0, restore=file, data_dir=data)


def test_a_late_frame_of_the_old_cluster_is_refused_by_the_restored_one(tmp_path: Path) -> None:
    """The same name, hence the same sockets: what an old client still has in flight must not be applied."""
    cluster, _ = named.up("twin", {"nodes": 1, "workers": 0})
    session = wire.decode(
        probe.ask(cluster.spec, ["n1"], wire.WRITE, wire.encode([7, 0, 0, [[wire.OP_REGISTER]]]), timeout_s=5)["n1"][1]
    )[0]
    late = wire.encode([session, 1, 1, [[wire.OP_APPEND, "log", b"x"]]])
    assert probe.ask(cluster.spec, ["n1"], wire.WRITE, late, timeout_s=5)["n1"][0] == wire.RESULT
    cluster.backup(tmp_path / "b")
    cluster.down(purge=True)
    restored, _, manifest = backup.restore(tmp_path / "b", "twin", {})
    try:
        assert isinstance(manifest, Manifest)
        kind, body = probe.ask(restored.spec, ["n1"], wire.WRITE, late, timeout_s=5)["n1"]
        assert (kind, wire.decode(body)["code"]) == (wire.RESULT, wire.E_UNKNOWN_SESSION)
        with restored.connect() as client:
            assert client.kv.get("log") == b"x"
    finally:
        restored.down(purge=True)


def test_nothing_is_made_from_a_bad_file_and_nothing_existing_is_touched(tmp_path: Path, private_home: Path) -> None:
    file = tmp_path / "b"
    cluster, _ = named.up("first", {"nodes": 1, "workers": 0})
    try:
        with cluster.connect() as client:
            client.kv.put("k", b"v")
        cluster.backup(file)
        with pytest.raises(zcluster.Conflict, match="already a cluster"):
            backup.restore(file, "first", {})
        damaged = bytearray(file.read_bytes())
        damaged[-20] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(zcluster.DamagedBackup):
            backup.restore(file, "second", {})
        with pytest.raises(zcluster.DamagedBackup):
            backup.inspect(file)
        with pytest.raises(zcluster.InvalidInput, match="nodes must be"):
            cluster.backup(tmp_path / "c")
            backup.restore(tmp_path / "c", "second", {"nodes": 99})
        assert os.listdir(private_home) == ["first"]
    finally:
        cluster.down(purge=True)


def test_without_a_majority_there_is_no_backup_that_claims_to_be_whole(tmp_path: Path) -> None:
    with zcluster.LocalCluster(nodes=3, workers=0) as cluster:
        cluster.kill("n1,n2")
        with pytest.raises(zcluster.NoQuorum, match="may lack"):
            cluster.backup(tmp_path / "b", timeout=2)
        with pytest.raises(zcluster.InvalidInput, match="no node 'n9'"):
            Cluster(cluster.directory).backup(tmp_path / "b", node="n9", timeout=2)
        assert not (tmp_path / "b").exists()


def test_a_node_that_is_down_or_paused_is_not_waited_for(tmp_path: Path) -> None:
    with zcluster.LocalCluster(nodes=3, workers=0) as cluster:
        cluster.nodes["n2"].pause()
        with pytest.raises(zcluster.Conflict, match="n2 is paused and cannot be backed up"):
            cluster.backup(tmp_path / "b", node="n2")
        cluster.nodes["n2"].kill()
        with pytest.raises(zcluster.Conflict, match="n2 is down and cannot be backed up"):
            cluster.backup(tmp_path / "b", node="n2")
        assert not (tmp_path / "b").exists()


def test_who_dies_while_it_is_asked_is_waited_for_no_longer() -> None:
    """Far behind, as if its checkpoint took long; and started again it does not know what it was asked."""
    with zcluster.LocalCluster(nodes=3, workers=0) as cluster:
        cluster.wait_healthy()
        still = cluster.still_answering()
        began = time.monotonic()

        def kill() -> list[str]:
            cluster.nodes["n2"].kill()
            cluster.nodes["n2"].start()
            return still()

        never = wire.encode([1 << 40])
        assert not probe.ask(cluster.spec, ["n2"], wire.CHECKPOINT, never, timeout_s=20, still=kill)
        assert time.monotonic() - began < 10
