"""Backups: from a running cluster to one file, and from one file to a new cluster.

    backup    a read barrier: index I covers every acknowledged write
              -> one node, a follower if there is one, writes a checkpoint at I or later, beside its service
              -> its file is copied behind a manifest (`storage.backup_file`)
    restore   the file is checked as a whole -> a machine is restored from it, and what belongs to the old cluster's
              clients ends -> a new cluster is planted with that state on every node (`plant`) -> up

A restored cluster is another cluster: it has an id of its own, so that nothing that still speaks to the old one, or of
it, is listened to. Its session table is empty: a late frame of an old client is refused, and that client reports
`Unknown`, never applied twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

import zcluster
from zcluster import config, wire
from zcluster.config import Settings, make_settings
from zcluster.errors import Conflict, DamagedBackup, Degraded, StorageError, Timeout
from zcluster.launch import named, probe
from zcluster.launch.cluster import Cluster
from zcluster.launch.leader import ask_leader
from zcluster.launch.plant import Origin, plant
from zcluster.launch.readiness import Progress as Steps
from zcluster.machines.mux import ClusterMachine, Summary, summarize, summary_of
from zcluster.storage import backup_file
from zcluster.storage.backup_file import Manifest, Progress, open_backup
from zcluster.storage.checkpoint import list_checkpoints
from zcluster.storage.checkpoint_file import CheckpointReader
from zcluster.storage.disk import PosixDisk
from zcluster.types import Index

if TYPE_CHECKING:
    from zcluster.config import ClusterSpec

_LOOKS: Final = 5
"""A checkpoint may be pruned between its listing and its opening, by two newer ones; not this often in a row."""


def backup(
    cluster: Cluster,
    target: Path,
    *,
    node: str | None = None,
    force: bool = False,
    timeout: float = 30.0,
    progress: Progress = lambda done, size: None,
) -> Manifest:
    """Write a backup that holds every write acknowledged before the call; see `Cluster.backup`."""
    target = target.expanduser().absolute()
    if not force and target.exists():
        raise backup_file.refusal(target)
    if node is not None:
        node = cluster.resolve(node)[0]
        cluster.require_answering(node, "be backed up")
    give_up = time.monotonic() + timeout
    covering = read_barrier(cluster, give_up)
    source = _write_checkpoint(cluster, node, covering, give_up)
    disk = PosixDisk()
    with _open_checkpoint(disk, cluster.spec, source, covering) as checkpoint:
        meta = checkpoint.meta
        found = _summary(checkpoint)
        manifest = Manifest(
            zcluster=zcluster.__version__,
            cluster=cluster.name,
            cluster_id=cluster.spec.cluster_id,
            engine=cluster.spec.settings.engine,
            node=source,
            created_ms=time.time_ns() // 1_000_000,
            index=meta.index,
            epoch=meta.epoch,
            revision=found.revision,
            keys=found.keys,
            log_time_ms=meta.log_time_ms,
            settings=msgspec.structs.asdict(cluster.spec.settings),
        )
        return backup_file.write_backup(disk, target, manifest, checkpoint, force=force, progress=progress)


def _summary(checkpoint: CheckpointReader) -> Summary:
    """Of its first and its last chunk: the processor is needed elsewhere, and `inspect` reads everything."""
    try:
        first, last = None, b""
        for last in checkpoint.chunks():
            first = first or last
        return summary_of(first or b"", last)
    except ValueError as error:
        raise StorageError(f"{checkpoint.path}: {error}; back up another node with --node") from None


def read_barrier(cluster: Cluster, give_up: float) -> Index:
    """An index at or after every write that was acknowledged before the call. Raises: NoQuorum."""
    body = wire.encode([wire.LINEARIZABLE, 0, [[wire.OP_INDEX]]])
    otherwise = (
        "no leader that a majority follows: what one node has may lack acknowledged writes. What helps is said by: "
        f"{config.command(cluster.directory)} status; if nodes are lost for good: zcluster recover --help"
    )
    return int(ask_leader(cluster, wire.READ, body, give_up, otherwise=otherwise)[0][0])


def _write_checkpoint(cluster: Cluster, node: str | None, covering: Index, give_up: float) -> str:
    """Have one node write a checkpoint that covers an index. Returns: which."""
    still = cluster.still_answering()
    if node is not None:
        candidates = [node]
    else:  # a follower: it has time; the leader only if there is nobody else
        leader = cluster.leader
        candidates = sorted(still(), key=lambda name: leader is not None and name == leader.name)
    for left, name in zip(range(len(candidates), 0, -1), candidates, strict=True):
        wait_s = max(0.1, (give_up - time.monotonic()) / left)
        question = wire.encode([covering])
        answers = probe.ask(cluster.spec, [name], wire.CHECKPOINT, question, timeout_s=wait_s, still=still)
        kind, body = answers.get(name, (0, b""))
        if kind == wire.RESULT:
            return name
        if kind == wire.FAILED and left == 1:
            raise Degraded(f"{name}: {wire.decode(body)[1]}")
    raise Timeout(
        f"{' '.join(candidates) or 'no node'} wrote no checkpoint up to index {covering:,} in time; see: "
        f"{config.command(cluster.directory)} status"
    )


def _open_checkpoint(disk: PosixDisk, spec: ClusterSpec, node: str, covering: Index) -> CheckpointReader:
    """The newest one of a node; stays readable while it is open, even if it is pruned meanwhile."""
    directory = spec.data_directory(node) / "checkpoints"
    for look in range(_LOOKS):
        for info in list_checkpoints(disk, directory)[:1]:
            if info.index >= covering:
                try:
                    return CheckpointReader(disk, info.path)
                except StorageError:
                    if look + 1 == _LOOKS or info.path.exists():
                        raise
    raise StorageError(f"{directory}: no checkpoint at index {covering} or later, although {node} has written one")


def inspect(path: Path) -> Manifest:
    """Check a whole backup file, down to its keys. Raises: as `storage.backup_file.open_backup`."""
    with open_backup(PosixDisk(), path) as opened:
        try:
            found = summarize(opened.chunks())
        except ValueError as error:
            raise _unusable(path, error) from None
        if (found.revision, found.keys) != (opened.manifest.revision, opened.manifest.keys):
            raise DamagedBackup(f"{path}: its manifest describes another state; use another backup")
        return opened.manifest


def _unusable(path: Path, error: ValueError) -> DamagedBackup:
    return DamagedBackup(f"{path}: {error}; use another backup")


def plant_backup(
    path: Path, name: str, directory: Path, settings_given: Mapping[str, Any], *, ephemeral: bool = False
) -> tuple[ClusterSpec, Manifest]:
    """A new, stopped cluster in `directory` from the backup at `path`; nothing at all if anything is wrong."""
    with open_backup(PosixDisk(), path) as opened:
        manifest = opened.manifest
        settings = make_settings(**{**_known(manifest.settings), **settings_given})
        if int(settings.preferred_leader.removeprefix("n") or 0) > settings.nodes and not settings_given.get(
            "preferred_leader"
        ):
            settings = msgspec.structs.replace(settings, preferred_leader="")  # fewer nodes than before
        machine = ClusterMachine(settings.key_bytes_max, settings.value_bytes_max, settings.sessions_max)
        try:
            machine.restore(opened.chunks())
        except ValueError as error:
            raise _unusable(path, error) from None
    origin = Origin(machine, manifest.index, manifest.log_time_ms)
    return plant(directory, name, settings, origin, ephemeral=ephemeral), manifest


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a backup's settings that this zcluster has; a newer one may know more."""
    return {key: value for key, value in settings.items() if key in Settings.__struct_fields__}


def restore(
    path: Path,
    name: str,
    settings_given: Mapping[str, Any],
    wait_s: float = 30.0,
    progress: Steps | None = None,
    planted: Callable[[Manifest], None] = lambda manifest: None,
) -> tuple[Cluster, dict[str, Any], Manifest]:
    """Make a new cluster from a backup and return when it is ready.

    Args:
        settings_given: what was asked for; the rest is as it was in the cluster that was backed up.
        planted: called when all data are in place, before anything is started.
    Returns: as `named.up`, and the backup's manifest.
    Raises: Conflict (there is a cluster of that name), DamagedBackup, FormatTooNew, InvalidInput: then nothing was
        made. Timeout or Degraded: it is left running, to be looked at.
    """
    began = time.monotonic()
    directory = config.cluster_directory(name)
    if (directory / "cluster.json").exists():
        raise Conflict(
            f"there is already a cluster {name!r}; restore under another name (-c NAME), or discard that one and its "
            f"data first: {config.command(directory)} down --purge"
        )
    _, manifest = plant_backup(path.expanduser().absolute(), name, directory, settings_given)
    planted(manifest)
    cluster, report = named.up(name, {}, wait_s, progress)
    return cluster, {**report, "created": True, "seconds": round(time.monotonic() - began, 3)}, manifest
