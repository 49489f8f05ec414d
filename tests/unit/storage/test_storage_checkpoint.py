"""Checkpoint files: whole or not there, readable, shippable, prunable."""

from __future__ import annotations

import errno
import threading
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.storage.faulty_disk import FaultyDisk
from tests.unit.storage.stores import CHECKPOINTS, IDENTITY, meta
from zcluster.errors import Corrupt, FormatTooNew, StorageError, WrongCluster
from zcluster.storage import checkpoint as module
from zcluster.storage.checkpoint import (
    BackgroundCheckpoint,
    CheckpointFile,
    CheckpointReceiver,
    CheckpointWriter,
    list_checkpoints,
    prune,
    read_checkpoint,
    remove_leftovers,
    verify,
)
from zcluster.storage.checkpoint_file import SYNC_EVERY_BYTES

CLUSTER = IDENTITY.cluster_id
CHUNKS = [b"first", b"", b"third" * 50]


def new_disk() -> FaultyDisk:
    disk = FaultyDisk()
    disk.make_directory(CHECKPOINTS)
    return disk


def write(disk: FaultyDisk, index: int = 7, epoch: int = 1, chunks: list[bytes] | None = None) -> None:
    writer = CheckpointWriter(disk, CHECKPOINTS, meta(index, epoch), CLUSTER)
    for chunk in CHUNKS if chunks is None else chunks:
        writer.write(chunk)
    writer.finish()


def only(disk: FaultyDisk) -> module.CheckpointInfo:
    (info,) = list_checkpoints(disk, CHECKPOINTS)
    return info


def test_chunks_come_back_as_they_were() -> None:
    disk = new_disk()
    write(disk)
    info = only(disk)
    assert (info.index, info.epoch, info.path.name) == (7, 1, f"{7:020d}-{1:020d}.ckpt")
    assert list(read_checkpoint(disk, info.path)) == CHUNKS
    assert verify(disk, info.path, CLUSTER) == meta(7)
    assert info.size == len(disk.read(info.path))
    assert not disk.handles, "every handle is closed"


def test_the_file_is_synced_before_its_name_and_the_name_before_it_is_reported() -> None:
    disk = new_disk()
    write(disk)
    assert [line.split()[0] for line in disk.log] == [
        "create",
        "truncate",
        *["pwritev"] * 5,
        "fdatasync",
        "rename",
        "fsync_directory",
    ]


@pytest.mark.parametrize("keep", ["nothing", "all", "random"])
def test_a_power_cut_at_any_point_leaves_a_whole_file_or_none(keep: str) -> None:
    clean = new_disk()
    write(clean)
    for stop_at in range(1, clean.operations + 2):
        disk = new_disk()
        disk.stop_at = stop_at
        finished = True
        try:
            write(disk)
        except BaseException as cut:
            assert type(cut).__name__ == "PowerCut"
            finished = False
        disk.power_cut(keep)
        found = list_checkpoints(disk, CHECKPOINTS)
        assert found or not finished
        for info in found:
            assert verify(disk, info.path) == meta(7)
        remove_leftovers(disk, CHECKPOINTS)
        assert len(disk.listdir(CHECKPOINTS)) == len(found)


def test_a_large_checkpoint_is_synced_piece_by_piece() -> None:
    disk = new_disk()
    write(disk, chunks=[bytes(SYNC_EVERY_BYTES // 2)] * 6)
    assert sum(line.startswith("fdatasync") for line in disk.log) >= 3


def test_every_flipped_bit_and_every_missing_byte_is_noticed() -> None:
    disk = new_disk()
    write(disk)
    path = only(disk).path
    for offset in range(only(disk).size):
        disk.flip(path, offset, offset % 8)
        with pytest.raises(Corrupt):  # also in the format's number: no newer version, which a start would stop at
            verify(disk, path)
        disk.flip(path, offset, offset % 8)
    data = disk.read(path)
    for size in range(len(data)):
        twin = disk.copy()
        twin.cut(path, size)
        with pytest.raises(Corrupt):
            verify(twin, path)
    disk.overwrite(path, len(data), b"x")
    with pytest.raises(Corrupt, match="behind the footer"):
        verify(disk, path)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_garbage_is_corrupt_and_never_a_memory_error(data: st.DataObject) -> None:
    disk = new_disk()
    write(disk)
    path = only(disk).path
    good = disk.read(path)
    begin = data.draw(st.integers(0, len(good) - 1))
    patch = data.draw(st.one_of(st.binary(min_size=1, max_size=30), st.just(b"\xff" * 30)))
    disk.overwrite(path, begin, patch)
    if disk.read(path) != good:
        with pytest.raises(Corrupt):
            verify(disk, path)


def test_another_cluster_and_a_newer_format_are_told_apart() -> None:
    disk = new_disk()
    write(disk)
    path = only(disk).path
    with pytest.raises(WrongCluster, match="expected other"):
        verify(disk, path, "other")
    data = bytearray(disk.read(path))
    data[8:10] = (2).to_bytes(2, "little")
    end = 20 + int.from_bytes(data[12:16], "little")
    data[16:20] = zlib.crc32(bytes(data[20:end]), zlib.crc32(bytes(data[:16]))).to_bytes(4, "little")
    disk.overwrite(path, 0, bytes(data))
    with pytest.raises(FormatTooNew, match="checkpoint format 2"):
        verify(disk, path)


def test_pruning_keeps_the_newest_and_says_how_far_the_log_is_needed() -> None:
    disk = new_disk()
    assert prune(disk, CHECKPOINTS) == 0
    for index, epoch in ((5, 1), (30, 2), (20, 2), (30, 3)):
        write(disk, index, epoch)
    assert prune(disk, CHECKPOINTS) == 30
    assert [(info.index, info.epoch) for info in list_checkpoints(disk, CHECKPOINTS)] == [(30, 3), (30, 2)]
    assert prune(disk, CHECKPOINTS, keep=3) == 0, "fewer than asked for: the whole log is needed"


def test_an_aborted_checkpoint_leaves_nothing() -> None:
    disk = new_disk()
    writer = CheckpointWriter(disk, CHECKPOINTS, meta(1), CLUSTER)
    writer.write(b"x")
    writer.abort()
    assert disk.listdir(CHECKPOINTS) == [] and not disk.handles


# -- shipping ---------------------------------------------------------------------------------------------------------


def ship(source: FaultyDisk, target: FaultyDisk, *, piece: int = 64, announced: int | None = None) -> None:
    with CheckpointFile(source, only(source).path) as file:
        receiver = CheckpointReceiver(target, CHECKPOINTS, file.meta, announced or file.size, CLUSTER)
        for offset in range(0, file.size, piece):
            receiver.write(offset, file.read_at(offset, piece))
        receiver.finish()


def test_a_shipped_checkpoint_is_the_same_file() -> None:
    source, target = new_disk(), new_disk()
    write(source)
    ship(source, target)
    assert target.read(only(target).path) == source.read(only(source).path)
    assert not source.handles and not target.handles
    assert target.log[-3:] == [
        f"fdatasync {only(target).path.name}.received.tmp",
        f"rename {only(target).path.name}.received.tmp",
        "fsync_directory checkpoints",
    ]


def test_a_piece_out_of_order_is_refused() -> None:
    disk = new_disk()
    receiver = CheckpointReceiver(disk, CHECKPOINTS, meta(7), 100, CLUSTER)
    assert not receiver.write(0, b"x" * 10)
    for offset, data in ((0, b"x"), (11, b"x"), (10, b"x" * 91)):
        with pytest.raises(Corrupt):
            receiver.write(offset, data)
    assert receiver.received == 10
    assert receiver.write(10, b"x" * 90)


@pytest.mark.parametrize("fault", ["bit", "short", "meta", "cluster"])
def test_what_arrives_damaged_never_gets_the_final_name(fault: str) -> None:
    source, target = new_disk(), new_disk()
    write(source)
    data = bytearray(source.read(only(source).path))
    if fault == "bit":
        data[60] ^= 4
    if fault == "short":
        del data[-5:]
    expected = meta(8) if fault == "meta" else meta(7)
    cluster = "other" if fault == "cluster" else CLUSTER
    receiver = CheckpointReceiver(target, CHECKPOINTS, expected, only(source).size, cluster)
    receiver.write(0, bytes(data))
    with pytest.raises(StorageError):
        receiver.finish()
    assert target.listdir(CHECKPOINTS) == [] and not target.handles


def test_a_pruned_checkpoint_stays_readable_while_it_is_being_shipped() -> None:
    source = new_disk()
    write(source)
    file = CheckpointFile(source, only(source).path)
    expected = source.read(only(source).path)
    write(source, 8)
    prune(source, CHECKPOINTS, keep=1)
    assert file.read_at(0, file.size) == expected


# -- beside service ---------------------------------------------------------------------------------------------------


class Bell:
    def __init__(self) -> None:
        self.condition = threading.Condition()

    def ring(self) -> None:
        with self.condition:
            self.condition.notify_all()

    def wait_for(self, predicate: Callable[[], bool]) -> None:
        with self.condition:
            assert self.condition.wait_for(predicate, 10)


def finished(background: BackgroundCheckpoint) -> bool:
    try:
        return background.result() is not None
    except StorageError:
        return True


def test_a_background_checkpoint_is_bounded_and_complete() -> None:
    disk, bell = new_disk(), Bell()
    background = BackgroundCheckpoint(disk, CHECKPOINTS, meta(7), CLUSTER, bell.ring)
    chunks = [bytes([number]) * 100 for number in range(100)]
    for chunk in chunks:
        bell.wait_for(lambda: background.room() > 0)
        assert background.room() <= module.QUEUE_CHUNKS
        background.put(chunk)
    assert background.result() is None
    background.finish()
    bell.wait_for(lambda: finished(background))
    assert background.result() == only(disk).path
    assert list(read_checkpoint(disk, only(disk).path)) == chunks


def test_a_failed_background_checkpoint_reports_once_and_leaves_nothing() -> None:
    disk, bell = new_disk(), Bell()
    disk.fail("pwritev", errno.ENOSPC)
    background = BackgroundCheckpoint(disk, CHECKPOINTS, meta(7), CLUSTER, bell.ring)
    bell.wait_for(lambda: finished(background))
    assert background.room() > 0, "the feeder is never stuck"
    background.put(b"x")
    background.finish()
    with pytest.raises(StorageError, match="free some space"):
        background.result()
    assert disk.listdir(CHECKPOINTS) == []


def test_an_aborted_background_checkpoint_ends_its_thread() -> None:
    disk, bell = new_disk(), Bell()
    background = BackgroundCheckpoint(disk, CHECKPOINTS, meta(7), CLUSTER, bell.ring)
    background.put(b"x")
    background.abort()
    with pytest.raises(StorageError, match="aborted"):
        background.result()
    assert disk.listdir(CHECKPOINTS) == [] and not disk.handles
