"""`wal/proof`: a word, beside the log, on how far the log had been synced and which hard state was the last.

    0            8        10         12    16           24    32            36     44          46      47       63
    | "zcwproof" | format | reserved | crc | segment id | end | incarnation | term | voted_for | flags | digest |

    crc   crc32 of the record with these four bytes zero
    end   everything in this segment below it was synced before this record was written
    flags bit 0: repair mode

One record, overwritten in place; 63 bytes in one sector, so that a crash leaves the old one or the new one. The log
alone cannot tell a last frame that was lost from one that was never written, nor miss a newest segment that is gone;
with this record a second place says so. It is rewritten after a sync, and is itself synced where the hard state has
changed: then that is known whatever happens to one of the two files. Otherwise it may be older than the log, never
newer: it promises less then, and nothing false.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from struct import Struct
from typing import Final

import msgspec

from zcluster.errors import FormatTooNew
from zcluster.storage.disk import Disk
from zcluster.storage.record import WalState

PROOF: Final = "proof"
PROOF_FORMAT: Final = 1

_MAGIC: Final = b"zcwproof"
_RECORD: Final = Struct("<8sHHIQQIQHB16s")
_FLAG_REPAIR: Final = 1


class Proof(msgspec.Struct, frozen=True):
    """See the module docstring."""

    segment_id: int
    end: int
    state: WalState


def encode_proof(proof: Proof, digest: bytes) -> bytes:
    state = proof.state
    flags = _FLAG_REPAIR if state.repair else 0

    def pack(crc: int) -> bytes:
        place = (proof.segment_id, proof.end)
        return _RECORD.pack(
            _MAGIC, PROOF_FORMAT, 0, crc, *place, state.incarnation, state.term, state.voted_for, flags, digest
        )

    return pack(zlib.crc32(pack(0)))


def read_proof(disk: Disk, directory: Path, digest: bytes) -> Proof | None:
    """The record; None if there is none or it is not whole: then the log has to speak for itself.
    Raises: FormatTooNew, OSError."""
    path = directory / PROOF
    if not disk.exists(path):
        return None
    handle = disk.open(path)
    try:
        data = disk.pread(handle, _RECORD.size, 0)
    finally:
        disk.close(handle)
    if len(data) != _RECORD.size or data[:8] != _MAGIC:
        return None
    _, format_, _, crc, segment_id, end, incarnation, term, voted_for, flags, found = _RECORD.unpack(data)
    if zlib.crc32(data[:12] + bytes(4) + data[16:]) != crc or found != digest:
        return None
    if format_ > PROOF_FORMAT:
        raise FormatTooNew(f"{path}: format {format_}; this data directory was written by a newer version of zcluster")
    return Proof(segment_id, end, WalState(term, voted_for, incarnation, bool(flags & _FLAG_REPAIR)))


def later_state(one: WalState, other: WalState) -> WalState:
    """The hard state that came after the other; of two terms the higher, in one term the vote."""
    term, voted_for = max((one.term, one.voted_for), (other.term, other.voted_for))
    return WalState(term, voted_for, max(one.incarnation, other.incarnation), one.repair or other.repair)
