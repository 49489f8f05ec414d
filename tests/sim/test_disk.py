"""The simulated disk forgets what was not synced, tears no sector, and damages what it is told to."""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random

import pytest

from zcluster.sim.disk import PAGE, UNIT, Crashed, SimulatedDisk

HOME = Path("/home")
FILE = HOME / "file"


def new_disk(seed: int = 1, sector: int = UNIT) -> SimulatedDisk:
    disk = SimulatedDisk(Random(seed), sector)
    disk.make_directory(HOME)
    return disk


def durable_file(disk: SimulatedDisk, data: bytes) -> int:
    handle = disk.open(FILE, create=True)
    disk.pwritev(handle, [data], 0)
    disk.fdatasync(handle)
    disk.fsync_directory(HOME)
    return handle


def test_what_was_synced_survives_and_the_rest_may_go() -> None:
    disk = new_disk()
    handle = durable_file(disk, b"a" * UNIT)
    disk.pwritev(handle, [b"b" * UNIT], UNIT)
    disk.lose_cache("nothing")
    assert disk.read(FILE) == b"a" * UNIT


def test_a_killed_process_loses_nothing_that_it_wrote() -> None:
    disk = new_disk()
    handle = disk.open(FILE, create=True)
    disk.pwritev(handle, [b"unsynced"], 0)
    disk.kill()
    assert disk.read(FILE) == b"unsynced"


def test_a_name_is_lost_without_a_sync_of_its_directory() -> None:
    disk = new_disk()
    handle = disk.open(FILE, create=True)
    disk.pwritev(handle, [b"data"], 0)
    disk.fdatasync(handle)
    disk.lose_cache("nothing")
    assert not disk.exists(FILE)


def test_a_rename_is_undone_without_a_sync_of_its_directory() -> None:
    disk = new_disk()
    durable_file(disk, b"data")
    disk.rename(FILE, HOME / "other")
    assert disk.listdir(HOME) == ["other"]
    disk.lose_cache("nothing")
    assert disk.listdir(HOME) == ["file"]


@pytest.mark.parametrize("sector", [UNIT, 8 * UNIT])
def test_sectors_are_kept_in_any_order_but_never_torn(sector: int) -> None:
    patterns = set()
    for seed in range(30):
        disk = new_disk(seed, sector)
        handle = durable_file(disk, b"a" * 4 * sector)
        disk.pwritev(handle, [b"b" * 4 * sector], 0)
        disk.lose_cache("random")
        data = disk.read(FILE)
        pieces = [data[i : i + sector] for i in range(0, len(data), sector)]
        assert all(piece in (b"a" * sector, b"b" * sector) for piece in pieces)
        patterns.add(tuple(piece[:1] for piece in pieces))
    assert len(patterns) > 8


def test_after_a_failed_sync_another_one_saves_nothing_until_written_again() -> None:
    disk = new_disk()
    handle = durable_file(disk, b"old")
    disk.pwritev(handle, [b"new"], 0)
    disk.fail("fdatasync", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        disk.fdatasync(handle)
    disk.fdatasync(handle)
    assert disk.read(FILE) == b"new"
    disk.lose_cache("nothing")
    assert disk.read(FILE) == b"old"


def test_a_crash_in_a_write_leaves_whole_pages_of_it() -> None:
    lengths = set()
    for seed in range(20):
        disk = new_disk(seed)
        handle = disk.open(FILE, create=True)
        disk.crash_after = 1
        with pytest.raises(Crashed):
            disk.pwritev(handle, [b"x" * 3 * PAGE], 100)
        lengths.add(len(disk.read(FILE)))
    assert lengths == {0, PAGE, 2 * PAGE, 3 * PAGE, 3 * PAGE + 100}


def test_a_full_disk_refuses_and_keeps_what_fits() -> None:
    disk = new_disk()
    handle = disk.open(FILE, create=True)
    disk.capacity = 10
    with pytest.raises(OSError, match="No space"):
        disk.pwritev(handle, [b"x" * 20], 0)
    assert disk.errors == 1
    assert disk.read(FILE) == b"x" * 10


def test_a_lost_write_shows_the_bytes_from_before() -> None:
    disk = new_disk()
    disk.remember = True
    handle = durable_file(disk, b"a" * UNIT)
    disk.pwritev(handle, [b"b" * UNIT], 0)
    disk.fdatasync(handle)
    assert disk.regress(str(FILE), 0)
    assert disk.read(FILE) == b"a" * UNIT
    assert not disk.regress(str(FILE), 0)


def test_a_misdirected_read_happens_once() -> None:
    disk = new_disk()
    content = b"".join(bytes([number]) * UNIT for number in range(20))
    handle = durable_file(disk, content)
    disk.misread(str(FILE), 5 * UNIT)
    wrong = disk.pread(handle, len(content), 0)
    assert wrong[: 5 * UNIT] == content[: 5 * UNIT]
    assert wrong != content
    assert disk.pread(handle, len(content), 0) == content


def test_a_flipped_bit_stays() -> None:
    disk = new_disk()
    durable_file(disk, bytes(4))
    disk.flip(str(FILE), 2, 3)
    disk.lose_cache("nothing")
    assert disk.read(FILE) == bytes([0, 0, 8, 0])
