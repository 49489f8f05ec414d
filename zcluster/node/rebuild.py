"""The state that one replica's data hold, all of its log applied, whether committed or not.

Only for making a new cluster of it when the old one has lost its majority: what one replica's log holds may have been
committed and acknowledged, and nobody is left who knows better, so all of it counts. A running replica never does this.
"""

from __future__ import annotations

import msgspec

from zcluster import wire
from zcluster.config import ClusterSpec
from zcluster.errors import Corrupt, FormatTooNew, StorageError
from zcluster.machines.mux import ClusterMachine
from zcluster.storage.checkpoint import list_checkpoints, read_checkpoint, verify
from zcluster.storage.disk import Disk
from zcluster.storage.recover import Store
from zcluster.types import KIND_CONFIG, KIND_FRAMES, KIND_NOOP, Configuration, Entry, Index, SnapshotMeta, Term


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """`index`, `epoch`: of the last entry applied (0: nothing). `lost`: what could not be read, in words."""

    machine: ClusterMachine
    index: Index
    epoch: Term
    log_time_ms: int
    checkpoint_index: Index
    lost: str | None


def rebuild(disk: Disk, store: Store, spec: ClusterSpec) -> Rebuilt:
    """Read what is readable. Raises: StorageError (nothing is), FormatTooNew."""
    found = store.recovered
    settings = spec.settings
    machine = ClusterMachine(settings.key_bytes_max, settings.value_bytes_max, settings.sessions_max)
    meta, path = found.checkpoint, found.checkpoint_path
    if found.wiped:  # the log is lost as a whole; a checkpoint may be left
        for info in list_checkpoints(disk, store.checkpoints):
            try:
                meta, path = verify(disk, info.path, spec.cluster_id), info.path
                break
            except Corrupt:
                continue
        else:
            raise StorageError(f"{store.directory}: neither the log nor a checkpoint can be read ({found.damage})")
    if path is not None:
        try:
            machine.restore(read_checkpoint(disk, path))
        except ValueError as error:
            raise StorageError(f"{path}: {error}") from None
    last = meta or SnapshotMeta(0, 0, Configuration())
    index, epoch, log_time_ms = last.index, last.epoch, last.log_time_ms
    for entry in () if found.wiped else found.entries:
        if entry.index <= index:
            continue
        if entry.index != index + 1:
            break  # a hole: what lies behind it was never chosen
        log_time_ms = _apply(machine, entry, log_time_ms)
        index, epoch = entry.index, entry.epoch
    return Rebuilt(
        machine=machine,
        index=index,
        epoch=epoch,
        log_time_ms=log_time_ms,
        checkpoint_index=last.index,
        lost=str(found.damage) if found.damage is not None else None,
    )


def _apply(machine: ClusterMachine, entry: Entry, log_time_ms: int) -> int:
    """Returns: the log time after it."""
    if entry.kind == KIND_FRAMES:
        try:
            payload = wire.decode_payload(entry.data)
        except wire.DecodeError as error:
            raise FormatTooNew(f"entry {entry.index} cannot be read ({error}): written by a newer zcluster") from None
        log_time_ms = max(log_time_ms, payload.log_time_ms)
        machine.apply(entry.index, log_time_ms, payload.frames)
    elif entry.kind not in (KIND_NOOP, KIND_CONFIG):
        raise FormatTooNew(f"entry {entry.index} has kind {entry.kind}: written by a newer zcluster; upgrade")
    return log_time_ms
