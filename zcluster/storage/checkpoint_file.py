"""The bytes of a checkpoint file, the temporary file it grows in, and reading it back.

    0            8        10         12              16    20
    | "zcckpt\\r\\n" | format | reserved | header length | crc | msgpack(cluster id, meta) | block … | footer |

    block   | "C" | length u32 | crc u32 | bytes |          one chunk, as it was handed to `CheckpointWriter.write`
    footer  | "F" | chunks u32 | bytes u64 | crc u32 |      nothing may follow

All checksums are one running crc32: each covers everything before it, so a missing, repeated or foreign block is as
visible as a flipped bit. Little endian. No length is believed before it was compared with the size of the file, and no
format before the header's checksum, which is and covers the same in every format: a flipped bit is no newer version.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Final

import msgspec

from zcluster import wire
from zcluster.errors import Corrupt, FormatTooNew, StorageError
from zcluster.storage.disk import Buffer, Disk, storage_error
from zcluster.types import Index, SnapshotMeta, Term

CHECKPOINT_FORMAT: Final = 1
CHUNK_BYTES_MAX: Final = 128 << 20
HEADER_BYTES_MAX: Final = 1 << 20
SYNC_EVERY_BYTES: Final = 4 << 20
"""A sync now and then keeps the log's syncs from waiting behind hundreds of megabytes of ours."""
TEMPORARY: Final = ".tmp"
MAGIC: Final = b"zcckpt\r\n"
HEADER: Final = Struct("<8sHHII")
BLOCK: Final = Struct("<cII")
FOOTER: Final = Struct("<cIQI")
FOOTER_COVERED: Final = Struct("<cIQ")


class Head(msgspec.Struct, frozen=True, array_like=True):
    """The msgpack part of the header."""

    cluster_id: str
    meta: SnapshotMeta


def checkpoint_name(index: Index, epoch: Term) -> str:
    return f"{index:020d}-{epoch:020d}.ckpt"


class TemporaryFile:
    """Appended to under a temporary name, then published under the final one."""

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        meta: SnapshotMeta,
        suffix: str = "",
        sync_every_bytes: int = SYNC_EVERY_BYTES,
    ) -> None:
        self._disk = disk
        self._final = directory / checkpoint_name(meta.index, meta.epoch)
        self.path = self._final.with_name(self._final.name + suffix + TEMPORARY)
        self.offset = 0
        self._sync_every_bytes = sync_every_bytes
        self._synced = 0
        self._handle = -1
        try:
            self._handle = disk.open(self.path, create=True)
            disk.truncate(self._handle, 0)
        except OSError as error:
            self.discard()
            raise storage_error("create", self.path, error) from error

    def append(self, buffers: list[Buffer]) -> None:
        try:
            self._disk.pwritev(self._handle, buffers, self.offset)
            self.offset += sum(map(len, buffers))
            if self.offset - self._synced >= self._sync_every_bytes:
                self._disk.fdatasync(self._handle)
                self._synced = self.offset
        except OSError as error:
            raise storage_error("write", self.path, error) from error

    def publish(self) -> Path:
        try:
            self._disk.fdatasync(self._handle)
            self._close()
            self._disk.rename(self.path, self._final)
            self._disk.fsync_directory(self._final.parent)
        except OSError as error:
            raise storage_error("complete", self.path, error) from error
        return self._final

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            self._close()
        with contextlib.suppress(OSError):
            self._disk.unlink(self.path)

    def _close(self) -> None:
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            self._disk.close(handle)


class CheckpointReader:
    """An open checkpoint file whose header was read and checked."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self.path = path
        self._disk = disk
        try:
            self._handle = disk.open(path)
        except OSError as error:
            raise storage_error("open", path, error) from error
        try:
            self.size = disk.size(self._handle)
            self.cluster_id, self.meta = self._read_header()
        except OSError as error:
            self.close()
            raise storage_error("read", path, error) from error
        except StorageError:
            self.close()
            raise

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            self._disk.close(handle)

    def read(self, offset: int, size: int) -> bytes:
        try:
            return self._disk.pread(self._handle, size, offset)
        except OSError as error:
            raise storage_error("read", self.path, error) from error

    def chunks(self) -> Iterator[bytes]:
        """All chunks; ends normally only behind a correct footer at the end of the file."""
        offset, crc, count, total = self._body, self._crc, 0, 0
        while (tag := self.read(offset, 1)) == b"C":
            block = self._exactly(offset, BLOCK.size)
            _, length, expected = BLOCK.unpack(block)
            if length > CHUNK_BYTES_MAX or offset + BLOCK.size + length > self.size:
                raise self._corrupt(offset, f"a block of {length} bytes leaves the file")
            chunk = self._exactly(offset + BLOCK.size, length)
            crc = zlib.crc32(chunk, zlib.crc32(length.to_bytes(4, "little"), crc))
            if crc != expected:
                raise self._corrupt(offset, "the checksum of a block does not match")
            yield chunk
            offset += BLOCK.size + length
            count += 1
            total += length
        if tag != b"F":
            raise self._corrupt(offset, "neither a block nor the footer")
        footer = self._exactly(offset, FOOTER.size)
        if footer != FOOTER.pack(b"F", count, total, zlib.crc32(FOOTER_COVERED.pack(b"F", count, total), crc)):
            raise self._corrupt(offset, "the footer does not match the blocks")
        if offset + FOOTER.size != self.size:
            raise self._corrupt(offset + FOOTER.size, "bytes behind the footer")

    def _read_header(self) -> tuple[str, SnapshotMeta]:
        fixed = self._exactly(0, HEADER.size)
        magic, format_, _, length, expected = HEADER.unpack(fixed)
        if magic != MAGIC:
            raise self._corrupt(0, "not a checkpoint")
        if length > HEADER_BYTES_MAX:
            raise self._corrupt(0, f"a header of {length} bytes")
        head = self._exactly(HEADER.size, length)
        self._body = HEADER.size + length
        self._crc = zlib.crc32(head, zlib.crc32(fixed[:-4]))
        if self._crc != expected:
            raise self._corrupt(0, "the checksum of the header does not match")
        if format_ > CHECKPOINT_FORMAT:
            raise FormatTooNew(
                f"{self.path}: checkpoint format {format_}, but this zcluster knows only up to {CHECKPOINT_FORMAT}; "
                "start it with the version that wrote it"
            )
        try:
            decoded = msgspec.msgpack.decode(head, type=Head)
        except wire.DecodeError as error:
            raise self._corrupt(HEADER.size, f"unreadable header: {error}") from error
        return decoded.cluster_id, decoded.meta

    def _exactly(self, offset: int, size: int) -> bytes:
        data = self.read(offset, size)
        if len(data) != size:
            raise self._corrupt(offset, f"the file ends after {self.size} bytes")
        return data

    def _corrupt(self, offset: int, what: str) -> Corrupt:
        return Corrupt(self.path, offset, what)
