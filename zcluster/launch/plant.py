"""Planting: a new cluster whose replicas begin with a given state, complete on disk or not there at all.

The whole directory is made in a workshop beside its place and gets its name by one rename, so that a crash at any
moment leaves no half-made cluster: at most a workshop, which the next planting sweeps away.

    <home>/.planting-<pid>-<random>/cluster/     everything, synced        --rename-->     <home>/<name>/

Not here: where the state comes from (`backup`, `recover`), and starting it (`named.up`).
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from zcluster import config
from zcluster.config import ClusterSpec, NodeSpec, Settings, save_spec
from zcluster.errors import Conflict
from zcluster.launch import files, layout
from zcluster.launch import process as system
from zcluster.machines.mux import ClusterMachine
from zcluster.storage.disk import PosixDisk
from zcluster.storage.seed import seed_store
from zcluster.types import Configuration, Identity, Index, SnapshotMeta

FIRST_EPOCH: Final = 1
"""The new log starts in this epoch, whatever the old one had reached: to the old cluster it owes nothing."""
_WORKSHOP: Final = ".planting-"


class Origin(msgspec.Struct, frozen=True):
    """The state to begin with: a machine, the index of its last entry (which the new log continues), its log time."""

    machine: ClusterMachine
    index: Index
    log_time_ms: int


def plant(
    directory: Path,
    name: str,
    settings: Settings,
    origin: Origin,
    *,
    nodes: tuple[NodeSpec, ...] | None = None,
    ephemeral: bool = False,
    aside: Path | None = None,
) -> ClusterSpec:
    """Make a stopped cluster. Clients' sessions in the machine end: it is another cluster, with an id of its own.

    Args:
        directory: absent or empty, unless `aside` says where to put what is there.
        nodes: by default n1, n2 ... as many as the settings say.
    Raises: Conflict (there is something already), InvalidInput, StorageError. Then nothing was made.
    """
    directory = directory.absolute()
    if aside is None and directory.exists() and (not directory.is_dir() or os.listdir(directory)):
        raise Conflict(f"{directory} is not empty; choose another name or an empty directory")
    origin.machine.begin_anew()
    with workshop(directory.parent) as place:
        spec = layout.create(name, settings, directory=place / "cluster", ephemeral=ephemeral)
        with suppress(OSError):
            os.rmdir(spec.socket_directory)
        spec = msgspec.structs.replace(
            spec,
            nodes=nodes or spec.nodes,
            created=True,
            socket_directory=str(config.socket_directory(directory)),
        )
        _seed(spec, origin)
        save_spec(spec)
        _move(Path(spec.directory), directory, aside)
    return config.load_spec(directory)


def _seed(spec: ClusterSpec, origin: Origin) -> None:
    """The same state in every node's store."""
    disk = PosixDisk()
    voters = tuple(sorted(node.replica_id for node in spec.nodes))
    index = max(1, origin.index)
    meta = SnapshotMeta(index, FIRST_EPOCH, Configuration(voters), origin.log_time_ms)
    for node in spec.nodes:
        identity = Identity(config.FORMAT, spec.cluster_id, node.replica_id, spec.settings.engine, voters)
        chunks = origin.machine.capture().chunks()
        seed_store(
            disk, spec.data_directory(node.name), identity, meta, chunks, segment_bytes=spec.settings.segment_bytes
        )
        while origin.machine.maintain():
            pass


def _move(made: Path, directory: Path, aside: Path | None) -> None:
    """Durable; onto nothing or an empty directory, unless what is there goes `aside` first."""
    disk = PosixDisk()
    disk.fsync_directory(made)
    try:
        if aside is not None:
            os.rename(directory, aside)
        os.rename(made, directory)
    except OSError as error:
        if aside is not None and aside.exists() and not directory.exists():
            os.rename(aside, directory)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise Conflict(f"{directory}: somebody else has just made something there; nothing was changed") from None
        raise layout.unwritable(directory, error) from None
    disk.fsync_directory(directory.parent)


@contextmanager
def workshop(parent: Path) -> Iterator[Path]:
    """A private directory on the same file system, removed at the end; also later, if this process is killed in it.

    Raises: InvalidInput (it cannot be made).
    """
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(parent)
        place = Path(tempfile.mkdtemp(prefix=f"{_WORKSHOP}{os.getpid()}-", dir=parent))
    except OSError as error:
        raise layout.unwritable(parent, error) from None
    try:
        yield place
    finally:
        files.remove_tree(place)


def _sweep(parent: Path) -> None:
    """Remove workshops whose makers died in them."""
    for left in parent.glob(f"{_WORKSHOP}*"):
        pid = left.name.removeprefix(_WORKSHOP).partition("-")[0]
        if pid.isdigit() and system.read_stat(int(pid)) is None:
            files.remove_tree(left)
