"""A cluster's directory: made whole or not at all, changed only where that is safe."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from zcluster.config import ClusterSpec, NodeSpec, load_spec, make_settings
from zcluster.errors import Conflict, FormatTooNew, InvalidInput, PathTooLong
from zcluster.launch import layout
from zcluster.launch import process as system
from zcluster.transport.sockets import Security


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZCLUSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "home"


def test_creation_is_private_and_described(home: Path) -> None:
    spec = layout.create("one", make_settings(nodes=5))
    assert stat.S_IMODE((home / "one").stat().st_mode) == 0o700
    assert load_spec(home / "one") == spec
    assert [(n.name, n.replica_id) for n in spec.nodes] == [(f"n{i}", i) for i in range(1, 6)]
    assert not spec.created
    assert layout.create("two", make_settings()).cluster_id != spec.cluster_id
    assert [name for name, _ in layout.find()] == ["one", "two"]


def test_existing_cluster_or_foreign_files_are_never_overwritten(home: Path, tmp_path: Path) -> None:
    layout.create("one", make_settings())
    with pytest.raises(Conflict, match="already a cluster"):
        layout.create("one", make_settings())
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").write_text("...")
    with pytest.raises(Conflict, match="other files"):
        layout.create("x", make_settings(), directory=tmp_path / "thesis")
    (home / "file").write_text("")
    with pytest.raises(InvalidInput, match="not a directory"):
        layout.create("file", make_settings())


def test_creation_cut_short_can_be_repeated(home: Path) -> None:
    (home / "one" / "run").mkdir(parents=True)
    (home / "one" / "data").mkdir()
    layout.create("one", make_settings())
    (home / "two" / "data" / "n1").mkdir(parents=True)
    with pytest.raises(Conflict, match="data"):
        layout.create("two", make_settings())


def test_socket_path_too_long_is_said_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with pytest.raises(PathTooLong, match="107"):
        layout.create("one", make_settings())


def test_refused_creation_leaves_nothing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(spec: object) -> None:
        raise OSError(28, "No space left on device", str(home / "one" / "cluster.tmp"))

    monkeypatch.setattr(layout, "save_spec", full)
    with pytest.raises(InvalidInput, match=r"No space left on device; make room.*ZCLUSTER_HOME"):
        layout.create("one", make_settings())
    assert os.listdir(home) == []
    assert os.listdir(tmp_path / "zcluster") == []
    (home / "mine").mkdir()
    with pytest.raises(InvalidInput, match="No space"):
        layout.create("mine", make_settings())
    assert os.listdir(home / "mine") == []


def test_home_that_cannot_be_written_is_said_with_what_to_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *arguments: object, **options: object) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InvalidInput, match=r"cannot write .*one: Read-only file system.*zcluster doctor"):
        layout.create("one", make_settings())
    with pytest.raises(InvalidInput, match=r"cannot write .*home: Read-only file system"):
        layout.ephemeral_directory()


def test_damaged_and_newer_clusters_are_found_with_what_is_wrong(home: Path) -> None:
    for name in ("good", "damaged", "newer"):
        layout.create(name, make_settings())
    (home / "damaged" / "cluster.json").write_text("[]")
    newer = home / "newer" / "cluster.json"
    newer.write_text(newer.read_text().replace('"format": 1', '"format": 9'))
    (home / "no cluster").mkdir()
    found = dict(layout.find())
    assert sorted(found) == ["damaged", "good", "newer"]
    assert isinstance(found["good"], ClusterSpec)
    assert "is damaged" in str(found["damaged"])
    assert isinstance(found["newer"], FormatTooNew)


def test_tcp_gets_keys_and_ports_outside_the_ephemeral_range() -> None:
    spec = layout.create("one", make_settings(transport="tcp"))
    assert sorted(spec.ports) == sorted(layout.socket_names(spec))
    assert len(set(spec.ports.values())) == len(spec.ports) == 3 * 3 + 2 + 1
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert all(1024 <= port < 65536 and not low <= port <= high for port in spec.ports.values())
    key = spec.path / "keys" / "cluster.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    security = Security.load(spec)
    assert security is not None
    assert len(security.public) == len(security.secret) == 40
    assert layout.allocate_ports(spec) == spec.ports, "free ports are kept"


def test_only_safe_settings_of_a_stopped_cluster_change() -> None:
    spec = layout.create("one", make_settings())
    changed = layout.prepare_start(spec, {"balance": "random", "workers": 2, "nodes": 3})
    assert (changed.settings.balance, changed.settings.workers) == ("random", 2)
    assert load_spec(spec.path) == changed
    with pytest.raises(Conflict, match=r"nodes is 3, not 5; to change that: .* up, then .* scale 5"):
        layout.prepare_start(spec, {"nodes": 5, "balance": "random"})
    with pytest.raises(Conflict, match=r"engine is 'raft', not 'paxos'; use another name, or discard it"):
        layout.prepare_start(spec, {"engine": "paxos"})
    with pytest.raises(InvalidInput):
        layout.prepare_start(spec, {"nodes": 0})


def test_running_cluster_is_compared_by_what_was_given() -> None:
    settings = make_settings(nodes=5)
    assert layout.differences(settings, {"nodes": 5}) == {}
    assert layout.differences(settings, {"workers": 2}) == {"workers": (1, 2)}
    spec = layout.create("one", settings)
    with pytest.raises(Conflict, match=r"is running.*workers is 1, not 2; stop it first"):
        layout.refuse_differences(spec, {"workers": (1, 2)}, running=True)


def test_private_directories_are_never_in_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZCLUSTER_HOME")
    monkeypatch.setattr("tempfile.tempdir", "/dev/shm")
    path = layout.ephemeral_directory()
    try:
        assert path.parent == Path("/var/tmp")
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    finally:
        path.rmdir()


def test_leftovers_of_dead_owners_go_and_living_ones_stay(home: Path) -> None:
    def make(owner: str) -> Path:
        path = layout.ephemeral_directory()
        layout.create(path.name, make_settings(), directory=path, ephemeral=True)
        (path / "run" / "owner").write_text(owner)
        os.utime(path / "run" / "owner", (0, 0))
        return path

    dead, alive = make(f"{os.getpid()}:1"), make(system.owner_text())
    kept = layout.ephemeral_directory()
    assert not dead.exists()
    assert alive.exists()
    assert kept.parent == home
    assert layout.find() == []
    spec = load_spec(alive)
    assert msgspec.structs.replace(spec, directory="").ephemeral


def test_a_node_that_joins_gets_ports_beside_those_in_use() -> None:
    spec = layout.create("one", make_settings(nodes=1, transport="tcp"))
    grown = msgspec.structs.replace(spec, nodes=(*spec.nodes, NodeSpec("n2", 2)))
    ports = layout.add_ports(grown, "n2")
    assert {name: ports[name] for name in spec.ports} == spec.ports, "they are in use, by us"
    assert set(ports) - set(spec.ports) == {"n2.peer", "n2.client", "n2.snapshot"}
    assert len(set(ports.values())) == len(ports)
