"""The log while it is written: what reaches the disk, in which order, and what happens after a failure."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.unit.storage.faulty_disk import FaultyDisk
from tests.unit.storage.stores import (
    IDENTITY,
    SEGMENT,
    WAL,
    Node,
    entry,
    indices,
    meta,
    new_node,
    open_at,
    recover,
    segments,
)
from zcluster.errors import Conflict, StorageError
from zcluster.storage import wal as wal_module
from zcluster.storage.checkpoint import CheckpointWriter
from zcluster.storage.disk import PosixDisk
from zcluster.storage.record import StartMark, cluster_digest
from zcluster.storage.recover import Store, open_store
from zcluster.storage.wal import Wal, WalPosition
from zcluster.types import HardState, WriteBatch


def new_wal(disk: FaultyDisk, size: int = SEGMENT) -> Wal:
    disk.make_directory(WAL)
    position = WalPosition(start=StartMark("boot-1", "fsync"), boot_id="boot-1")
    return Wal(disk, WAL, cluster_digest("c"), position, size)


def puts(*numbers: int, size: int = 40) -> WriteBatch:
    return WriteBatch(seq=numbers[0], entries=tuple(entry(number, 1, size) for number in numbers))


def since(disk: FaultyDisk, position: int) -> list[str]:
    return [line.split()[0] for line in disk.log[position:]]


def test_many_batches_are_one_write() -> None:
    disk = FaultyDisk()
    wal = new_wal(disk)
    wal.append([puts(1)])
    before = len(disk.log)
    wal.append([puts(number) for number in range(2, 12)])
    assert since(disk, before) == ["pwritev"]


def test_a_new_segment_begins_only_after_the_old_one_and_its_own_name_are_synced() -> None:
    disk = FaultyDisk()
    wal = new_wal(disk)
    wal.append([puts(1, size=SEGMENT - 500)])
    wal.sync()
    wal.append([puts(1)])
    before = len(disk.log)
    wal.append([puts(2, size=1000)])
    assert since(disk, before) == ["fdatasync", "pwritev", "create", "fsync_directory", "pwritev"]
    assert [path.name for path in segments(disk)] == [
        "0000000001-00000000000000000001.wal",
        "0000000002-00000000000000000002.wal",
    ]


def test_trimming_syncs_the_hard_state_first_and_recycles() -> None:
    disk = FaultyDisk()
    wal = new_wal(disk)
    for number in range(1, 100):
        wal.append([puts(number)])
    before = len(disk.log)
    count = wal.trim(99)
    assert count == 2
    assert since(disk, before) == ["fdatasync", "pwritev", "rename", "rename", "fsync_directory"]
    assert wal.trim(99) == 0
    before = len(disk.log)
    wal.append([puts(100, size=2000)])
    assert since(disk, before) == ["rename", "fsync_directory", "pwritev"], "a spare, not a new file"


def test_a_segment_stays_while_any_of_its_entries_is_wanted() -> None:
    wal = new_wal(FaultyDisk())
    for number in [*range(1, 30), 500, *range(30, 90)]:
        wal.append([puts(number)])
    assert wal.trim(500) <= 1
    assert wal.segment_count >= 2


def test_only_a_few_spares_are_kept() -> None:
    disk = FaultyDisk()
    wal = new_wal(disk)
    for number in range(1, 400):
        wal.append([puts(number)])
    assert wal.trim(399) > wal_module.SPARES_MAX
    assert len([name for name in disk.listdir(WAL) if name.endswith(".spare")]) == wal_module.SPARES_MAX


def test_space_is_filled_with_zeros_ahead_and_never_twice() -> None:
    disk = FaultyDisk()
    chunk = wal_module.ZERO_FILL_BYTES
    wal = new_wal(disk, 6 * chunk)
    wal.append([puts(1)])
    path = segments(disk)[0]
    assert chunk < len(disk.read(path)) < chunk + 1000
    assert not wal.prepare(), "there is enough"
    wal.append([puts(2, size=chunk // 2)])
    assert wal.prepare()
    assert not wal.prepare()
    assert 2 * chunk < len(disk.read(path)) < 2 * chunk + 2000, "as much again as there is"
    wal.append([puts(3, size=5 * chunk // 4)])
    assert wal.prepare()
    assert 4 * chunk < len(disk.read(path)) < 4 * chunk + 4000
    wal.append([puts(4, size=2 * chunk)])
    assert wal.prepare()
    assert len(disk.read(path)) == 6 * chunk, "never above the size of a segment"
    assert not wal.prepare()


def test_every_sync_is_proven_and_durably_so_with_a_new_hard_state() -> None:
    disk = FaultyDisk()
    wal = new_wal(disk)
    wal.append([puts(1)])
    before = len(disk.log)
    wal.sync()
    wal.sync()
    assert since(disk, before) == ["fdatasync", "create", "fsync_directory", "pwritev", "fdatasync"]
    before = len(disk.log)
    wal.append([puts(2)])
    wal.sync()
    assert since(disk, before) == ["pwritev", "fdatasync", "pwritev"], "nobody waits for proof of entries"
    before = len(disk.log)
    wal.append([WriteBatch(seq=3, hard_state=HardState(1, 2))])
    wal.sync()
    assert since(disk, before) == ["pwritev", "fdatasync", "pwritev", "fdatasync"]


@pytest.mark.parametrize(
    ("operation", "code"), [("pwritev", errno.EIO), ("fdatasync", errno.EIO), ("pwritev", errno.ENOSPC)]
)
def test_after_a_failure_nothing_is_tried_again(operation: str, code: int) -> None:
    disk = FaultyDisk()
    wal = new_wal(disk)
    wal.append([puts(1)])
    wal.sync()
    disk.fail(operation, code)
    with pytest.raises(StorageError) as first:
        wal.append([puts(2)])
        wal.sync()
    before = len(disk.log)
    for call in (lambda: wal.append([puts(3)]), wal.sync, lambda: wal.append([puts(4, size=SEGMENT)])):
        wal._offset += 1  # even if there seems to be something to sync
        with pytest.raises(StorageError) as again:
            call()
        assert again.value is first.value
    assert len(disk.log) == before
    assert str(segments(disk)[0]) in str(first.value)


def test_a_full_disk_says_what_to_do() -> None:
    disk = FaultyDisk()
    wal = new_wal(disk)
    wal.append([puts(1)])
    disk.capacity = SEGMENT + 100
    with pytest.raises(StorageError, match=r"No space left.*free some space"):
        for number in range(2, 100):
            wal.append([puts(number)])


def test_a_full_disk_loses_nothing_acknowledged() -> None:
    node = new_node()
    node.disk.capacity = 3 * SEGMENT
    acknowledged = 0
    with pytest.raises(StorageError):
        for number in range(1, 1000):
            node.put(number)
            acknowledged = number
    node.disk.capacity = None
    found = recover(node.disk)
    assert indices(found)[:acknowledged] == list(range(1, acknowledged + 1)) and not found.repair
    node.disk.kill()
    Node(node.disk).put(len(found.entries) + 1)


def test_the_term_never_falls() -> None:
    wal = new_wal(FaultyDisk())
    wal.append([WriteBatch(seq=1, hard_state=HardState(5, 1))])
    with pytest.raises(AssertionError):
        wal.append([WriteBatch(seq=2, hard_state=HardState(4, 1))])


def test_the_real_disk_stores_and_recovers(tmp_path: Path) -> None:
    """The same code over real files: segments, a large record, spares, directory syncs, the lock."""

    def reopen(create: bool) -> Store:
        directory = tmp_path / "n1"
        return open_store(PosixDisk(), directory, identity=IDENTITY, boot_id="b", create=create, segment_bytes=SEGMENT)

    store = reopen(True)
    with pytest.raises(Conflict, match="another process"):
        reopen(False)
    wal = store.wal
    wal.append([WriteBatch(seq=1, hard_state=HardState(2, 1), incarnation=1)])
    for number in range(1, 200):
        wal.append([puts(number)])
    wal.append([puts(200, size=3 * SEGMENT)])
    wal.append([WriteBatch(seq=1, entries=tuple(entry(number) for number in range(201, 2000)))])
    wal.sync()
    wal.close()
    store.close()
    store = reopen(False)
    assert indices(store.recovered) == list(range(1, 2000))
    checkpoint = CheckpointWriter(PosixDisk(), store.checkpoints, meta(150), IDENTITY.cluster_id)
    checkpoint.finish()
    assert store.wal.trim(151) > 0
    store.wal.append([puts(2000, size=SEGMENT // 2), puts(2001, size=SEGMENT // 4)])
    store.wal.sync()
    store.wal.close()
    store.close()
    store = reopen(False)
    found = store.recovered
    assert (found.hard_state, found.incarnation, found.checkpoint) == (HardState(2, 1), 1, meta(150))
    assert indices(found)[-1851:] == list(range(151, 2002)) and not found.repair
    assert PosixDisk().free_bytes(tmp_path) > 0
    store.wal.close()
    store.close()


def test_opening_reuses_spares() -> None:
    node = new_node()
    node.put(*range(1, 200))
    node.store.wal.trim(199)
    node.stop()
    spares = [name for name in node.disk.listdir(WAL) if name.endswith(".spare")]
    again = open_at(node.disk)
    again.wal.append([puts(200, size=3900)])
    assert len([name for name in node.disk.listdir(WAL) if name.endswith(".spare")]) == len(spares) - 1
