"""A store that begins with a state instead of nothing: how the first replicas of a restored cluster come to their data.

    open_store(create)  ->  the checkpoint, complete in its file  ->  the log says INSTALLED, hard state, clean stop

The order is that of a received checkpoint, so recovery needs no new rule: such a store looks as if its replica had been
sent the state by a leader and then stopped in order. Everything is synced when `seed_store` returns.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from zcluster.storage.checkpoint import CheckpointWriter
from zcluster.storage.disk import Disk
from zcluster.storage.recover import open_store
from zcluster.storage.writer import InlineWriter
from zcluster.types import HardState, Identity, SnapshotMeta, WriteBatch

STOPPED_AT = 1
"""When the former life, which there never was, stopped: long ago on any clock, so nobody waits for its promises."""


def seed_store(
    disk: Disk, directory: Path, identity: Identity, meta: SnapshotMeta, chunks: Iterable[bytes], *, segment_bytes: int
) -> None:
    """Make the store of one replica whose state at `meta` is `chunks`.

    Args:
        directory: absent or empty.
        meta: `epoch` at least 1: the new log continues from it.
    Raises: Conflict, StorageError.
    """
    assert meta.epoch >= 1 and meta.index >= 1
    store = open_store(disk, directory, identity=identity, boot_id="", create=True, segment_bytes=segment_bytes)
    try:
        checkpoint = CheckpointWriter(disk, store.checkpoints, meta, identity.cluster_id)
        try:
            for chunk in chunks:
                checkpoint.write(chunk)
            checkpoint.finish()
        except BaseException:
            checkpoint.abort()
            raise
        writer = InlineWriter(store.wal, "fsync", lambda: None, clock=lambda: STOPPED_AT)
        writer.submit(WriteBatch(seq=1, hard_state=HardState(meta.epoch), snapshot=meta))
        writer.close(clean=True)
        error = writer.completed().error
        if error is not None:
            raise error
    finally:
        store.close()
