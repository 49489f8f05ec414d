"""Backup files and seeded stores: whole or refused, never half there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.unit.storage.faulty_disk import FaultyDisk
from tests.unit.storage.stores import CHECKPOINTS, IDENTITY, ROOT, SEGMENT, meta, recover
from zcluster.errors import Conflict, DamagedBackup, FormatTooNew, InvalidInput, StorageError
from zcluster.storage import backup_file
from zcluster.storage.backup_file import HEADER, MAGIC, Manifest, open_backup, write_backup
from zcluster.storage.checkpoint import CheckpointWriter, read_checkpoint
from zcluster.storage.checkpoint_file import CheckpointReader
from zcluster.storage.disk import PosixDisk
from zcluster.storage.seed import seed_store
from zcluster.types import HardState

CHUNKS = [b"first", b"second" * 30]


def manifest_for(checkpoint: CheckpointReader) -> Manifest:
    return Manifest(
        zcluster="0",
        cluster="c",
        cluster_id=checkpoint.cluster_id,
        engine="raft",
        node="n1",
        created_ms=1,
        index=checkpoint.meta.index,
        epoch=checkpoint.meta.epoch,
        revision=3,
        keys=2,
        log_time_ms=4,
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    writer = CheckpointWriter(PosixDisk(), tmp_path / "checkpoints", meta(7), IDENTITY.cluster_id)
    for chunk in CHUNKS:
        writer.write(chunk)
    return writer.finish()


def make(checkpoint: Path, target: Path, *, force: bool = False) -> Manifest:
    with CheckpointReader(PosixDisk(), checkpoint) as reader:
        return write_backup(PosixDisk(), target, manifest_for(reader), reader, force=force)


def test_what_was_written_is_read_back_and_nobody_else_may_read_it(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "b"
    written = make(checkpoint, target)
    with open_backup(PosixDisk(), target) as backup:
        assert backup.manifest == written
        assert list(backup.chunks()) == CHUNKS
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == ["b", "checkpoints"]


def test_progress_ends_with_everything(checkpoint: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with CheckpointReader(PosixDisk(), checkpoint) as reader:
        write_backup(
            PosixDisk(), tmp_path / "b", manifest_for(reader), reader, force=False, progress=lambda *at: seen.append(at)
        )
        assert seen[-1] == (reader.size, reader.size)


def test_an_existing_file_is_left_alone_unless_forced(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "b"
    target.write_bytes(b"precious")
    with pytest.raises(Conflict, match="left alone"):
        make(checkpoint, target)
    assert target.read_bytes() == b"precious"
    make(checkpoint, target, force=True)
    with open_backup(PosixDisk(), target) as backup:
        assert list(backup.chunks()) == CHUNKS
    assert sorted(os.listdir(tmp_path)) == ["b", "checkpoints"]


def test_a_failed_write_leaves_nothing_and_spares_the_old_file(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "b"
    target.write_bytes(b"precious")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup_file.os, "fsync", full)
    with pytest.raises(StorageError, match="free some space"):
        make(checkpoint, target, force=True)
    assert target.read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == ["b", "checkpoints"]


def test_a_backup_cut_off_anywhere_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "b"
    make(checkpoint, target)
    whole = target.read_bytes()
    for size in range(len(whole)):
        target.write_bytes(whole[:size])
        with pytest.raises(DamagedBackup), open_backup(PosixDisk(), target):
            pass
    target.write_bytes(whole + b"x")
    with pytest.raises(DamagedBackup, match="behind its end"), open_backup(PosixDisk(), target):
        pass


def test_a_backup_with_any_byte_changed_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "b"
    make(checkpoint, target)
    whole = target.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x20
        target.write_bytes(damaged)
        with pytest.raises((DamagedBackup, FormatTooNew)), open_backup(PosixDisk(), target):
            pass


def test_a_newer_format_and_a_missing_file_are_told_apart_from_damage(tmp_path: Path) -> None:
    target = tmp_path / "b"
    with pytest.raises(InvalidInput, match="No such file"), open_backup(PosixDisk(), target):
        pass
    target.write_bytes(HEADER.pack(MAGIC, 2, 0, 0, 0))
    with pytest.raises(FormatTooNew, match="format 2"), open_backup(PosixDisk(), target):
        pass
    target.write_bytes(b"#!/bin/sh\necho hello, this is no backup\n")
    with pytest.raises(DamagedBackup, match="no backup of zcluster"), open_backup(PosixDisk(), target):
        pass


def test_a_seeded_store_is_found_as_one_that_stopped_in_order_long_ago() -> None:
    disk = FaultyDisk()
    disk.make_directory(ROOT.parent)
    seed_store(disk, ROOT, IDENTITY, meta(7), CHUNKS, segment_bytes=SEGMENT)
    found = recover(disk)
    assert (found.checkpoint, found.hard_state, found.entries) == (meta(7), HardState(1), [])
    assert found.checkpoint_path is not None
    assert list(read_checkpoint(disk, found.checkpoint_path)) == CHUNKS
    assert (found.clean_stop, found.same_boot, found.suspect_after, found.fresh) == (True, False, None, False)
    assert (found.damage, found.repair, found.incarnation) == (None, False, 0)


def test_a_seeded_store_survives_a_power_cut() -> None:
    disk = FaultyDisk()
    disk.make_directory(ROOT.parent)
    seed_store(disk, ROOT, IDENTITY, meta(7), CHUNKS, segment_bytes=SEGMENT)
    disk.power_cut()
    assert recover(disk).checkpoint == meta(7)


def test_a_directory_with_data_is_not_seeded() -> None:
    disk = FaultyDisk()
    disk.make_directory(ROOT.parent)
    seed_store(disk, ROOT, IDENTITY, meta(7), CHUNKS, segment_bytes=SEGMENT)
    disk.kill()
    with pytest.raises(Conflict):
        seed_store(disk, ROOT, IDENTITY, meta(8), CHUNKS, segment_bytes=SEGMENT)
    assert [info for info in disk.listdir(CHECKPOINTS) if info.endswith(".ckpt")] == [
        "00000000000000000007-00000000000000000001.ckpt"
    ]
