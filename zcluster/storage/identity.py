"""`identity.json`: whose data a directory holds. Written once, atomically, as the last step of a creation.

Readable by people, and refused after any change, be it a single bit: the last member is a checksum of the others, and
the whole text must be the one that `write_identity` writes.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Final

import msgspec

from zcluster import wire
from zcluster.errors import Corrupt, FormatTooNew, WrongCluster
from zcluster.storage.disk import Disk
from zcluster.types import Identity

STORE_FORMAT: Final = 1
IDENTITY: Final = "identity.json"
IDENTITY_TEMPORARY: Final = IDENTITY + ".tmp"


def check_identity(found: Identity, expected: Identity, directory: Path) -> None:
    """Raises: WrongCluster, FormatTooNew, Corrupt."""
    if found.format > STORE_FORMAT:
        raise FormatTooNew(
            f"{directory}: data format {found.format}, but this zcluster knows only up to {STORE_FORMAT}; "
            "start it with the version that wrote it"
        )
    if found.format < 1:
        raise Corrupt(directory / IDENTITY, 0, f"there never was a data format {found.format}")
    if found.engine != expected.engine:
        raise WrongCluster(
            f"{directory}: written by the engine {found.engine}, which keeps other promises in it than "
            f"{expected.engine}; start the cluster with `--engine {found.engine}`, or make a new one"
        )
    for name in ("cluster_id", "replica_id"):
        theirs, ours = getattr(found, name), getattr(expected, name)
        if theirs != ours:
            raise WrongCluster(f"{directory}: belongs to {name.replace('_', ' ')} {theirs}, this is {ours}")


def read_identity(disk: Disk, directory: Path) -> Identity:
    """Raises: Corrupt, OSError."""
    path = directory / IDENTITY
    data = disk.read(path)
    try:
        identity = msgspec.json.decode(data, type=Identity)
    except wire.DecodeError as error:
        raise Corrupt(path, 0, f"unreadable: {error}") from error
    if identity.format <= STORE_FORMAT and data != _text(identity):  # a newer one may well look different
        raise Corrupt(path, 0, "its checksum does not fit")
    return identity


def write_identity(disk: Disk, directory: Path, identity: Identity) -> None:
    """Temporary file, sync, rename, sync of the directory."""
    path = directory / IDENTITY
    temporary = directory / IDENTITY_TEMPORARY
    data = _text(identity)
    handle = disk.open(temporary, create=True)
    try:
        disk.truncate(handle, 0)
        disk.pwritev(handle, [data], 0)
        disk.fdatasync(handle)
    finally:
        disk.close(handle)
    disk.rename(temporary, path)
    disk.fsync_directory(directory)


def _text(identity: Identity) -> bytes:
    members = msgspec.structs.asdict(identity)
    members["crc32"] = zlib.crc32(msgspec.json.encode(identity))
    return msgspec.json.format(msgspec.json.encode(members), indent=2) + b"\n"
