"""A new data directory: made in such an order that a crash in between leaves something that can be made again.

    directories -> an empty log, synced -> identity.json, the last: whoever finds it finds a whole store

Not here: opening one that exists (`recover`); what `identity.json` holds (`identity`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from zcluster.errors import Conflict
from zcluster.storage.checkpoint import list_checkpoints
from zcluster.storage.disk import Disk
from zcluster.storage.identity import IDENTITY, IDENTITY_TEMPORARY, write_identity
from zcluster.storage.proof import PROOF
from zcluster.storage.record import StartMark, cluster_digest
from zcluster.storage.segment import read_segments
from zcluster.storage.wal import Wal, WalPosition
from zcluster.types import Identity

LOCK: Final = "lock"
WAL: Final = "wal"
CHECKPOINTS: Final = "checkpoints"

SOUND: Final = "fsync"
"""The durability mode under which a power cut loses nothing."""


def make_directory(disk: Disk, directory: Path) -> None:
    """With its missing parents, and durable: each new name is synced into the directory that holds it."""
    path = directory
    parents = [directory.parent]
    while not disk.exists(path):
        path = path.parent
        parents.append(path)
    disk.make_directory(directory)
    for parent in reversed(parents):
        disk.fsync_directory(parent)


def create_store(disk: Disk, directory: Path, identity: Identity, boot_id: str, segment_bytes: int) -> None:
    """Everything an empty store has, the identity last. Does nothing where an identity is already."""
    if disk.exists(directory / IDENTITY):
        return
    wal = directory / WAL
    digest = cluster_digest(identity.cluster_id)
    expected = {LOCK, WAL, CHECKPOINTS, IDENTITY_TEMPORARY}
    foreign = sorted(set(disk.listdir(directory)) - expected)
    if foreign:
        raise Conflict(f"{directory}: not empty (there is {foreign[0]}); a new cluster needs an empty directory")
    for subdirectory in (wal, directory / CHECKPOINTS):
        disk.make_directory(subdirectory)
    if list_checkpoints(disk, directory / CHECKPOINTS):
        raise Conflict(f"{directory}: holds checkpoints, but no {IDENTITY}; restore that file or empty the directory")
    for segment in read_segments(disk, wal, digest):
        frame = segment.newest_frame()
        if frame is not None and frame.state.incarnation > 0:
            raise Conflict(f"{directory}: holds a log, but no {IDENTITY}; restore that file or empty the directory")
        disk.unlink(segment.path)
    if disk.exists(wal / PROOF):  # of a creation that did not get to its end; gone for good once the new log has a name
        disk.unlink(wal / PROOF)
    log = Wal(disk, wal, digest, WalPosition(start=StartMark(boot_id, SOUND), boot_id=boot_id), segment_bytes)
    log.append([])
    log.sync()
    log.close()
    disk.fsync_directory(directory)
    write_identity(disk, directory, identity)
