"""The bytes of a backup: a manifest that people and programs can read, and a checkpoint behind it.

    0            8        10         12                16    20
    | "zcbackup" | format | reserved | manifest length | crc | manifest, JSON | a checkpoint file, byte for byte |

The crc covers everything in front of it and the manifest; the manifest names the size and the BLAKE2b digest of the
rest, and nothing follows that. So a file that was cut off, changed or joined to another one is never taken for whole.
Little endian. A backup is written under a temporary name beside its place, read back, synced, and given its name.

Not here: what the checkpoint means (`machines`), where it comes from and what becomes of it (`launch.backup`).
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from struct import Struct
from typing import IO, Any, Final

import msgspec

from zcluster.errors import Conflict, Corrupt, DamagedBackup, FormatTooNew, InvalidInput
from zcluster.storage.checkpoint_file import CheckpointReader
from zcluster.storage.disk import Disk, storage_error
from zcluster.types import Index, Term

BACKUP_FORMAT: Final = 1
MAGIC: Final = b"zcbackup"
HEADER: Final = Struct("<8sHHII")
MANIFEST_BYTES_MAX: Final = 1 << 20
PIECE_BYTES: Final = 1 << 18
DIGEST_BYTES: Final = 32
SYNC_EVERY_BYTES: Final = 1 << 20
"""The syncs of a serving cluster must not wait behind all of a backup."""

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup says about itself. Times are wall clock. `size_bytes`, `blake2b`: of the checkpoint in it."""

    format: int = BACKUP_FORMAT
    zcluster: str
    cluster: str
    cluster_id: str
    engine: str
    node: str
    created_ms: int
    index: Index
    epoch: Term
    revision: int
    keys: int
    log_time_ms: int
    settings: dict[str, Any] = {}
    size_bytes: int = 0
    blake2b: str = ""


def write_backup(
    disk: Disk,
    target: Path,
    manifest: Manifest,
    checkpoint: CheckpointReader,
    *,
    force: bool,
    progress: Progress = lambda done, size: None,
) -> Manifest:
    """Complete at `target`, or nothing there that was not there before.

    Args:
        manifest: size and digest are filled in here, from what has arrived in the file.
        force: replace a file that is there already.
    Returns: the manifest as written.
    Raises: Conflict (there is a file), InvalidInput (cannot be written there), StorageError.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "r+b") as file:
            manifest = msgspec.structs.replace(manifest, size_bytes=checkpoint.size, blake2b="0" * 2 * DIGEST_BYTES)
            base = len(_head(manifest))
            _copy(file, base, checkpoint, progress)
            with CheckpointReader(disk, temporary, base) as copy:
                manifest = msgspec.structs.replace(manifest, blake2b=_digest(copy))
                for _ in copy.chunks():  # every checksum in it, read back from what was written
                    pass
            file.seek(0)
            file.write(_head(manifest))
            file.flush()
            os.fsync(file.fileno())
        _publish(temporary, target, force=force)
        disk.fsync_directory(target.parent)
    except (FileNotFoundError, NotADirectoryError, PermissionError, IsADirectoryError) as error:
        raise InvalidInput(f"cannot write {target}: {error.strerror}; choose another place") from None
    except OSError as error:
        raise storage_error("write", target, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return manifest


def _publish(temporary: Path, target: Path, *, force: bool) -> None:
    """Give the file its name; without `force` in a way that cannot take anybody else's."""
    if not force:
        try:
            os.link(temporary, target)
            return
        except FileExistsError:
            raise refusal(target) from None
        except OSError:  # a file system without links: the best that can be done there
            if target.exists():
                raise refusal(target) from None
    os.replace(temporary, target)


def refusal(target: Path) -> Conflict:
    """What to say when there is a file already."""
    return Conflict(f"{target} exists; it is left alone (--force replaces it)")


def _head(manifest: Manifest) -> bytes:
    """Everything in front of the checkpoint; as long for any digest as for another."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    assert len(text) <= MANIFEST_BYTES_MAX
    covered = HEADER.pack(MAGIC, BACKUP_FORMAT, 0, len(text), 0)[:-4]
    return covered + zlib.crc32(text, zlib.crc32(covered)).to_bytes(4, "little") + text


def _copy(file: IO[bytes], base: int, checkpoint: CheckpointReader, progress: Progress) -> None:
    file.seek(base)
    unsynced = 0
    for done, data in _pieces(checkpoint):
        file.write(data)
        unsynced += len(data)
        if unsynced >= SYNC_EVERY_BYTES:
            file.flush()
            os.fdatasync(file.fileno())
            unsynced = 0
        progress(done, checkpoint.size)
    file.flush()


def _digest(reader: CheckpointReader) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for _, data in _pieces(reader):
        digest.update(data)
    return digest.hexdigest()


def _pieces(reader: CheckpointReader) -> Iterator[tuple[int, bytes]]:
    """(bytes read so far, these)"""
    offset = 0
    while data := reader.read(offset, PIECE_BYTES):
        offset += len(data)
        yield offset, data


class Backup:
    """An open, wholly checked backup file. `chunks`: those of its checkpoint, checked once more as they are read."""

    def __init__(self, manifest: Manifest, checkpoint: CheckpointReader) -> None:
        self.manifest = manifest
        self._checkpoint = checkpoint

    def chunks(self) -> Iterator[bytes]:
        """Raises: DamagedBackup, if the file changes under our hands."""
        try:
            yield from self._checkpoint.chunks()
        except Corrupt as damage:
            raise _damaged(damage.path, damage.offset, damage.what) from None


@contextmanager
def open_backup(disk: Disk, path: Path) -> Iterator[Backup]:
    """Check everything, then hand it out.

    Raises: DamagedBackup, FormatTooNew, InvalidInput (there is no such file), StorageError.
    """
    try:
        with open(path, "rb") as file:
            manifest, base = _read_manifest(path, file)
            size_bytes = os.fstat(file.fileno()).st_size - base
    except (FileNotFoundError, NotADirectoryError, PermissionError, IsADirectoryError) as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from None
    except OSError as error:
        raise storage_error("read", path, error) from error
    if size_bytes < manifest.size_bytes:
        raise _damaged(path, base + size_bytes, f"it is cut off: {size_bytes} of {manifest.size_bytes} bytes are there")
    if size_bytes > manifest.size_bytes:
        raise _damaged(path, base + manifest.size_bytes, "bytes behind its end")
    try:
        with CheckpointReader(disk, path, base) as checkpoint:
            if _digest(checkpoint) != manifest.blake2b:
                raise _damaged(path, base, "what it holds does not match the digest in its manifest")
            if (checkpoint.meta.index, checkpoint.cluster_id) != (manifest.index, manifest.cluster_id):
                raise _damaged(path, base, "its manifest describes another checkpoint")
            yield Backup(manifest, checkpoint)
    except Corrupt as damage:
        raise _damaged(damage.path, damage.offset, damage.what) from None


def _read_manifest(path: Path, file: IO[bytes]) -> tuple[Manifest, int]:
    """The manifest, and where the checkpoint begins."""
    fixed = file.read(HEADER.size)
    if not fixed or fixed[: len(MAGIC)] != MAGIC[: len(fixed)]:
        raise _damaged(path, 0, "it is no backup of zcluster")
    if len(fixed) < HEADER.size:
        raise _damaged(path, len(fixed), "it is cut off")
    _, format_, _, length, expected = HEADER.unpack(fixed)
    if format_ > BACKUP_FORMAT:
        raise FormatTooNew(
            f"{path}: backup format {format_}, but this zcluster knows only up to {BACKUP_FORMAT}; restore it with "
            "the version that wrote it, or a newer one"
        )
    text = file.read(min(length, MANIFEST_BYTES_MAX))
    if len(text) < length:
        raise _damaged(path, HEADER.size + len(text), "it is cut off")
    if zlib.crc32(text, zlib.crc32(fixed[:-4])) != expected:
        raise _damaged(path, 0, "the checksum of its manifest does not match")
    try:
        return msgspec.json.decode(text, type=Manifest), HEADER.size + length
    except msgspec.MsgspecError as error:
        raise _damaged(path, HEADER.size, f"unreadable manifest: {error}") from None


def _damaged(path: Path, offset: int, what: str) -> DamagedBackup:
    return DamagedBackup(f"{path}: damaged at byte {offset}: {what}; use another backup")
