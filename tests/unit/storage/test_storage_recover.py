"""Opening a store: torn tails, damage, checkpoints, identity."""

from __future__ import annotations

import zlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.storage.faulty_disk import FaultyDisk
from tests.unit.storage.stores import (
    CHECKPOINTS,
    IDENTITY,
    ROOT,
    SEGMENT,
    WAL,
    Node,
    damaged,
    entry,
    indices,
    meta,
    new_node,
    open_at,
    recover,
    segments,
)
from zcluster.errors import Conflict, FormatTooNew, StorageError, WrongCluster
from zcluster.storage.checkpoint import CheckpointWriter
from zcluster.storage.record import cluster_digest
from zcluster.storage.segment import SEGMENT_HEADER_BYTES, read_segment
from zcluster.types import HardState, WriteBatch

DIGEST = cluster_digest(IDENTITY.cluster_id)


def checkpoint(disk: FaultyDisk, index: int, epoch: int = 1) -> None:
    writer = CheckpointWriter(disk, CHECKPOINTS, meta(index, epoch), IDENTITY.cluster_id)
    writer.write(b"state")
    writer.finish()


def used(disk: FaultyDisk, position: int = -1) -> int:
    """Bytes of valid frames in a segment."""
    path = segments(disk)[position]
    return read_segment(disk, path, int(path.name.split("-")[0]), DIGEST).scan.end


def log_of(count: int, **options: object) -> FaultyDisk:
    node = new_node(**options)
    node.vote(3, 2)
    node.put(*range(1, count + 1), epoch=3)
    return node.disk


# -- the plain way ----------------------------------------------------------------------------------------------------


def test_a_new_store_is_fresh_and_a_used_one_is_not() -> None:
    disk = FaultyDisk()
    store = open_at(disk, create=True)
    assert store.recovered.fresh and not store.recovered.wiped
    store.wal.close()
    store.close()
    node = Node(disk)
    node.stop()
    found = recover(disk)
    assert not found.fresh and found.incarnation == 1


def test_everything_written_comes_back() -> None:
    disk = log_of(5)
    found = recover(disk)
    assert found.hard_state == HardState(3, 2)
    assert found.entries == [entry(i, 3) for i in range(1, 6)]
    assert found.damage is None and not found.repair and found.same_boot and not found.clean_stop


def test_cut_and_overwrite_are_replayed_in_order() -> None:
    node = new_node()
    node.put(1, 2, 3, 4)
    node.write(truncate_after=2, entries=(entry(3, 2),))
    node.put(3, epoch=5)  # the later one wins
    found = recover(node.disk)
    assert [(e.index, e.epoch) for e in found.entries] == [(1, 1), (2, 1), (3, 5)]


def test_entries_may_come_out_of_order_with_holes() -> None:
    node = new_node()
    node.put(7, 5, 9, epoch=2)
    assert indices(recover(node.disk)) == [5, 7, 9]


def test_a_log_over_many_segments_comes_back() -> None:
    disk = log_of(200)
    assert len(segments(disk)) > 3
    assert indices(recover(disk)) == list(range(1, 201))


def test_a_record_larger_than_a_segment_comes_back() -> None:
    node = new_node()
    node.put(1)
    node.put(2, size=50_000)
    node.put(3)
    found = recover(node.disk)
    assert indices(found) == [1, 2, 3] and len(found.entries[1].data) == 50_000


def test_restarts_do_not_use_up_segments() -> None:
    disk = log_of(3)
    for boot in range(10):
        disk.kill()
        Node(disk, boot=f"boot-{boot}")
    assert len(segments(disk)) == 1
    assert recover(disk).incarnation == 11


def test_clean_stop_and_boot_are_told_apart() -> None:
    node = new_node()
    node.put(1)
    node.stop(clean=True)
    assert recover(node.disk).clean_stop
    assert recover(node.disk).clean_stop, "opening alone changes nothing"
    assert not recover(node.disk, boot="boot-2").same_boot
    Node(node.disk).stop()
    assert not recover(node.disk).clean_stop


# -- torn tails -------------------------------------------------------------------------------------------------------


def test_last_segment_truncated_at_every_byte_starts() -> None:
    disk = log_of(64)
    last = segments(disk)[-1]
    before = len(recover(disk.copy()).entries)
    length = used(disk)
    assert len(segments(disk)) >= 2 and length > 800
    for size in range(length + 1):
        twin = disk.copy()
        twin.cut(last, size)
        found = recover(twin)
        assert found.damage is None and not found.repair and not found.wiped
        assert found.hard_state == HardState(3, 2)
        assert found.entries == [entry(i, 3) for i in range(1, len(found.entries) + 1)]
        if size == length:
            assert len(found.entries) == before


def test_a_log_goes_on_behind_a_cut_tail() -> None:
    disk = log_of(30)
    disk.cut(segments(disk)[-1], used(disk) - 40)  # the seal and a bit of the last entry
    disk.kill()
    node = Node(disk)
    assert indices(node.store.recovered) == list(range(1, 30))
    node.put(30, 31, epoch=4)
    found = recover(disk)
    assert [e.epoch for e in found.entries[-3:]] == [3, 4, 4]


def test_zeroed_sectors_in_the_tail_are_a_torn_tail() -> None:
    """The last batch was being written: any of its sectors may be missing."""
    node = new_node()
    node.put(*range(1, 6))
    node.writer.close(clean=False)
    batch_begins = used(node.disk)
    node.disk.kill()
    store = open_at(node.disk)
    store.wal.append([WriteBatch(seq=1, entries=tuple(entry(i, 1, 200) for i in range(6, 16)))])
    store.wal.close()
    last = segments(node.disk)[-1]
    first, end = batch_begins // 512 + 1, used(node.disk) // 512
    assert end - first >= 3
    for mask in range(1, 1 << (end - first)):
        twin = node.disk.copy()
        for bit in range(end - first):
            if mask >> bit & 1:
                twin.overwrite(last, (first + bit) * 512, bytes(512))
        found = recover(twin)
        assert found.damage is None and not found.repair
        assert indices(found) == [1, 2, 3, 4, 5]


def test_frames_behind_a_tear_never_come_back_to_life() -> None:
    """Two unsynced frames in a weak mode, the first one torn: a new frame of its size must not revive the second."""
    node = new_node(durability="none")
    node.put(1)
    begin = used(node.disk)
    node.put(2, 3)
    disk = node.disk
    last = segments(disk)[-1]
    disk.overwrite(last, begin + 40, b"\0\0\0\0")  # in the payload of entry 2, nobody had synced it
    disk.kill()
    store = open_at(disk)
    assert indices(store.recovered) == [1] and store.recovered.damage is None
    store.wal._start_pending = False  # so that the new frame has exactly the size of the torn one
    store.wal.append([WriteBatch(seq=1, entries=(entry(2, 9),))])
    store.wal.sync()
    store.wal.close()
    assert [(e.index, e.epoch) for e in recover(disk).entries] == [(1, 1), (2, 9)]


def test_a_recycled_segment_does_not_show_old_records() -> None:
    node = new_node()
    node.put(*range(1, 120))
    node.write(snapshot=meta(119))
    checkpoint(node.disk, 119)
    node.writer.trim(120)
    spares = [name for name in node.disk.listdir(WAL) if name.endswith(".spare")]
    assert spares
    old = node.disk.read(WAL / spares[-1])
    node.put(*range(120, 180), epoch=2)
    assert [name for name in node.disk.listdir(WAL) if name.endswith(".spare")] != spares, "a spare was used"
    last = segments(node.disk)[-1]
    length = used(node.disk)
    node.disk.overwrite(last, length, old[length:])  # planted where the next frame would begin
    found = recover(node.disk)
    assert indices(found)[-60:] == list(range(120, 180)) and found.damage is None
    assert all(e.epoch == 2 for e in found.entries[-60:])


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 1, -1])
def test_a_flipped_bit_anywhere_is_never_a_silent_truncation(position: int) -> None:
    disk = log_of(60)
    path = segments(disk)[position]
    assert len(segments(disk)) >= 3
    for offset in range(0, used(disk, position), 7):
        twin = disk.copy()
        twin.flip(path, offset, offset % 8)
        found = recover(twin)
        assert found.entries == [entry(i, 3) for i in range(1, len(found.entries) + 1)]
        if len(found.entries) < 60:
            assert found.damage is not None and found.repair
            assert found.damage.path == path and 0 <= found.damage.offset <= offset
            assert damaged(twin), "what is broken is kept"
        assert found.hard_state == HardState(3, 2), "one readable frame is enough to know the vote"


def test_repair_lasts_until_it_is_said_to_be_over() -> None:
    disk = log_of(60)
    disk.flip(segments(disk)[1], 500)
    assert recover(disk).repair
    again = recover(disk)
    assert again.repair and again.damage is None, "found once, remembered"
    disk.kill()
    node = Node(disk)
    first = len(again.entries) + 1
    node.put(*range(first, first + 5), epoch=4)
    assert recover(disk).repair
    disk.kill()
    Node(disk).write(repair=False)
    found = recover(disk)
    assert not found.repair
    assert indices(found) == list(range(1, first + 5))


def test_a_missing_middle_segment_is_damage() -> None:
    disk = log_of(60)
    disk.unlink(segments(disk)[1])
    found = recover(disk)
    assert found.repair and found.damage is not None and "missing" in str(found.damage)
    assert 0 < len(found.entries) < 60


def test_a_middle_segment_cut_between_two_frames_is_damage() -> None:
    disk = log_of(60)
    path = segments(disk)[1]
    ends = read_segment(disk, path, 2, DIGEST).scan.ends
    disk.cut(path, ends[len(ends) // 2])
    found = recover(disk)
    assert found.repair and 0 < len(found.entries) < 60


def test_a_zeroed_header_of_a_used_segment_is_damage() -> None:
    disk = log_of(80)
    disk.overwrite(segments(disk)[-1], 0, bytes(512))
    found = recover(disk)
    assert found.repair and found.hard_state == HardState(3, 2)


def test_a_log_without_any_readable_frame_is_wiped() -> None:
    disk = log_of(3)
    path = segments(disk)[0]
    disk.overwrite(path, 0, b"\xa5" * len(disk.read(path)))
    found = recover(disk)
    assert found.wiped and found.damage is not None
    assert recover(disk).wiped, "nothing was changed"
    disk.kill()
    with pytest.raises(StorageError, match="hard state is lost"):
        Node(disk)


def test_no_log_at_all_is_wiped() -> None:
    disk = log_of(3)
    disk.unlink(segments(disk)[0])
    assert recover(disk).wiped


def test_an_unreadable_newest_segment_is_wiped() -> None:
    """The votes of the newest segment are gone; those of the one before may be older."""
    disk = log_of(60)
    path = segments(disk)[-1]
    disk.overwrite(path, 0, b"\xa5" * len(disk.read(path)))
    assert recover(disk).wiped


def test_damage_behind_the_checkpoint_costs_nothing() -> None:
    disk = log_of(100)
    checkpoint(disk, 90, 3)
    broken = segments(disk)[0]
    disk.flip(broken, 300)
    found = recover(disk)
    assert not found.repair and found.damage is not None and found.damage.path == broken
    assert found.checkpoint == meta(90, 3)
    assert found.entries[-1].index == 100
    assert broken.name + ".damaged" in damaged(disk)
    assert recover(disk).damage is None


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_garbage_in_the_log_leaves_a_true_prefix_or_refuses(data: st.DataObject) -> None:
    disk = log_of(70)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(segments(disk)))
        patch = data.draw(st.one_of(st.binary(min_size=1, max_size=600), st.just(bytes(512)), st.just(b"\xff" * 64)))
        disk.overwrite(path, data.draw(st.integers(0, SEGMENT - len(patch))), patch)
    found = recover(disk)
    assert found.entries == [entry(i, 3) for i in range(1, len(found.entries) + 1)]
    assert found.wiped or found.hard_state == HardState(3, 2)
    if not found.wiped:
        again = recover(disk)
        assert again.entries == found.entries and again.repair == found.repair


@pytest.mark.parametrize("kind", ["flipped", "missing", "shortened"])
def test_a_crash_at_any_point_of_a_repair_comes_to_the_same(kind: str) -> None:
    disk = log_of(80)
    path = segments(disk)[1]
    if kind == "flipped":
        disk.flip(path, 500)
    elif kind == "missing":
        disk.unlink(path)
        disk.fsync_directory(WAL)
    else:
        disk.cut(path, read_segment(disk, path, 2, DIGEST).scan.ends[5])
    expected = indices(recover(disk.copy()))
    assert 0 < len(expected) < 60

    def look(twin: FaultyDisk) -> None:
        for keep in ("nothing", "all", "random"):
            cut = twin.copy()
            cut.power_cut(keep)
            found = recover(cut)
            assert found.repair and indices(found) == expected and found.hard_state == HardState(3, 2)

    disk.observer = look
    recover(disk)


# -- checkpoints ------------------------------------------------------------------------------------------------------


def trimmed(disk: FaultyDisk | None = None) -> FaultyDisk:
    """Checkpoints at 40 and 80, the log trimmed to the older one, entries up to 100."""
    node = new_node(disk)
    node.vote(3, 2)
    for last in (40, 80, 100):
        node.put(*range(last - 39 if last < 100 else 81, last + 1), epoch=3)
        if last < 100:
            checkpoint(node.disk, last, 3)
    node.writer.trim(41)
    return node.disk


def test_the_newest_checkpoint_and_the_log_behind_it_are_used() -> None:
    found = recover(trimmed())
    assert found.checkpoint == meta(80, 3) and found.checkpoint_path is not None
    assert found.entries[-1].index == 100
    assert 1 < found.entries[0].index <= 41, "kept back to the older checkpoint, but not for ever"


def test_a_damaged_checkpoint_falls_back_to_the_older_one_and_the_log() -> None:
    disk = trimmed()
    newest = CHECKPOINTS / sorted(name for name in disk.listdir(CHECKPOINTS))[-1]
    disk.flip(newest, 60)
    found = recover(disk)
    assert found.checkpoint == meta(40, 3)
    assert indices(found)[-60:] == list(range(41, 101))
    assert found.damage is not None and found.damage.path == newest and not found.repair
    assert newest.name + ".damaged" in damaged(disk)


def test_no_usable_checkpoint_and_a_trimmed_log_is_repair_not_a_holed_log() -> None:
    disk = trimmed()
    for name in disk.listdir(CHECKPOINTS):
        disk.flip(CHECKPOINTS / name, 60)
    found = recover(disk)
    assert found.repair and found.damage is not None
    assert found.entries == [] and found.checkpoint is None
    assert found.hard_state == HardState(3, 2)
    again = recover(disk)
    assert again.repair and again.entries == []


def test_trimming_everything_keeps_term_and_vote() -> None:
    node = new_node()
    node.vote(9, 2)
    node.put(*range(1, 100), epoch=9)
    checkpoint(node.disk, 99, 9)
    node.writer.trim(1 << 40)
    assert len(segments(node.disk)) == 1
    found = recover(node.disk)
    assert found.hard_state == HardState(9, 2) and found.incarnation == 1 and found.checkpoint == meta(99, 9)


def test_trimming_in_a_weak_mode_keeps_term_and_vote_over_a_power_cut() -> None:
    node = new_node(durability="none")
    node.vote(9, 2)
    node.put(*range(1, 100), epoch=9)
    checkpoint(node.disk, 99, 9)
    node.writer.trim(1 << 40)
    node.disk.power_cut("nothing")
    assert recover(node.disk, boot="boot-2").hard_state == HardState(9, 2)


def test_an_installed_checkpoint_replaces_a_shorter_log() -> None:
    node = new_node()
    node.put(1, 2, 3)
    checkpoint(node.disk, 50, 2)
    node.write(snapshot=meta(50, 2))
    node.put(51, epoch=2)
    found = recover(node.disk)
    assert found.checkpoint == meta(50, 2) and indices(found) == [51]


def test_an_installed_checkpoint_drops_a_log_that_contradicts_it() -> None:
    node = new_node()
    node.put(*range(1, 61))
    checkpoint(node.disk, 50, 2)
    node.write(snapshot=meta(50, 2), entries=(entry(51, 2),))
    found = recover(node.disk)
    assert found.checkpoint == meta(50, 2)
    assert [(e.index, e.epoch) for e in found.entries] == [(51, 2)]


def test_an_installed_checkpoint_keeps_the_suffix_of_a_log_that_matches() -> None:
    node = new_node()
    node.put(*range(1, 61))
    checkpoint(node.disk, 50)
    node.write(snapshot=meta(50))
    assert indices(recover(node.disk)) == list(range(1, 61))


def test_an_installed_checkpoint_keeps_what_is_above_a_hole() -> None:
    """Paxos: accepted slots above the checkpoint are promises to others, whether or not its own slot is here."""
    node = new_node()
    node.put(1, 2, 3, 55, 60)
    checkpoint(node.disk, 50, 2)
    node.write(snapshot=meta(50, 2))
    found = recover(node.disk)
    assert found.checkpoint == meta(50, 2) and indices(found) == [55, 60] and not found.repair


def test_a_received_checkpoint_counts_only_when_the_log_says_so() -> None:
    """The file is complete, the process dies before the log says INSTALLED: nobody was told anything."""
    node = new_node()
    node.put(*range(1, 61))
    checkpoint(node.disk, 20)
    checkpoint(node.disk, 50, 2)
    found = recover(node.disk)
    assert found.checkpoint == meta(20) and indices(found) == list(range(1, 61))
    assert found.damage is None and not found.repair


def test_a_checkpoint_beyond_the_end_of_the_log_is_used_and_noted() -> None:
    node = new_node()
    node.put(1, 2, 3)
    checkpoint(node.disk, 50, 2)
    found = recover(node.disk)
    assert found.checkpoint == meta(50, 2) and found.entries == []
    node.disk.kill()
    again = Node(node.disk)
    again.put(51, epoch=2)
    checkpoint(node.disk, 51, 2)
    newest = CHECKPOINTS / node.disk.listdir(CHECKPOINTS)[0]
    assert indices(recover(node.disk)) == [51]
    node.disk.flip(newest, 60)
    node.disk.flip(CHECKPOINTS / node.disk.listdir(CHECKPOINTS)[-1], 60)
    found = recover(node.disk)
    assert found.repair and found.entries == [], "entries 4 to 50 are nowhere: never a log with a hole"


def test_leftover_temporary_files_are_removed() -> None:
    disk = log_of(3)
    writer = CheckpointWriter(disk, CHECKPOINTS, meta(2), IDENTITY.cluster_id)
    writer.write(b"half")
    recover(disk)
    assert disk.listdir(CHECKPOINTS) == []


# -- weak durability --------------------------------------------------------------------------------------------------


def test_a_killed_process_loses_nothing_in_any_mode() -> None:
    for mode in ("fsync", "interval:50", "none"):
        node = new_node(durability=mode)
        node.put(*range(1, 100))
        found = recover(node.disk)
        assert indices(found) == list(range(1, 100)) and not found.suspect_tail


def test_what_recovery_returns_is_durable() -> None:
    """A process is killed before its sync; the next one counts what it finds as persisted, so it must be."""
    node = new_node(durability="none")
    node.put(*range(1, 20))
    assert len(recover(node.disk).entries) == 19
    node.disk.power_cut("nothing")
    assert len(recover(node.disk).entries) == 19


@pytest.mark.parametrize("mode", ["interval:50", "none"])
def test_a_power_cut_in_a_weak_mode_makes_the_tail_suspect_until_a_higher_epoch(mode: str) -> None:
    node = new_node(durability=mode)
    node.vote(3)
    node.put(1, 2, epoch=3)
    node.disk.power_cut("nothing")
    assert recover(node.disk, boot="boot-2").suspect_tail
    again = Node(node.disk, boot="boot-2", durability=mode)
    assert again.store.recovered.suspect_tail
    assert recover(node.disk, boot="boot-2").suspect_tail, "a restart in the new boot does not forget it"
    node.disk.kill()
    third = Node(node.disk, boot="boot-2", durability=mode)
    third.vote(4)
    third.put(3, epoch=4)
    assert not recover(node.disk, boot="boot-2").suspect_tail


def test_fsync_mode_or_a_clean_stop_is_never_suspect() -> None:
    node = new_node()
    node.put(1)
    node.disk.power_cut("nothing")
    assert not recover(node.disk, boot="boot-2").suspect_tail
    node = new_node(durability="none")
    node.put(1)
    node.stop(clean=True)
    node.disk.power_cut("nothing")
    found = recover(node.disk, boot="boot-2")
    assert found.clean_stop and not found.suspect_tail and indices(found) == [1]


# -- identity, creation, lock -----------------------------------------------------------------------------------------


def test_a_missing_store_is_not_created_by_opening() -> None:
    with pytest.raises(WrongCluster, match="data of replica 1 is missing"):
        open_at(FaultyDisk())


def test_a_lost_identity_is_not_a_new_store() -> None:
    disk = log_of(3)
    disk.kill()
    disk.unlink(ROOT / "identity.json")
    with pytest.raises(WrongCluster, match="missing"):
        open_at(disk)
    with pytest.raises(Conflict, match=r"no identity\.json"):
        open_at(disk, create=True)


def test_creating_twice_is_refused_once_it_was_used() -> None:
    disk = FaultyDisk()
    open_at(disk, create=True)
    disk.kill()
    assert open_at(disk, create=True).recovered.fresh, "the creation may be repeated while nothing was written"
    disk.kill()
    Node(disk)
    disk.kill()
    with pytest.raises(Conflict, match="only be created once"):
        open_at(disk, create=True)


def test_creation_in_a_foreign_directory_is_refused() -> None:
    disk = FaultyDisk()
    disk.make_directory(ROOT)
    disk.open(ROOT / "thesis.tex", create=True)
    with pytest.raises(Conflict, match=r"not empty.*thesis\.tex"):
        open_at(disk, create=True)


@pytest.mark.parametrize(("field", "value"), [("cluster_id", "cluster-b"), ("replica_id", 2), ("engine", "paxos")])
def test_another_identity_is_refused(field: str, value: object) -> None:
    disk = log_of(1)
    disk.kill()
    with pytest.raises(WrongCluster, match=str(value)):
        open_at(disk, identity=msgspec.structs.replace(IDENTITY, **{field: value}))
    open_at(disk)


def test_a_newer_format_is_refused() -> None:
    disk = log_of(1)
    disk.kill()
    newer = msgspec.json.encode(msgspec.structs.replace(IDENTITY, format=99))
    handle = disk.open(ROOT / "identity.json")
    disk.truncate(handle, 0)
    disk.pwritev(handle, [newer], 0)
    with pytest.raises(FormatTooNew, match="99"):
        open_at(disk)


def test_a_segment_of_a_newer_format_is_refused() -> None:
    disk = log_of(1)
    path = segments(disk)[0]
    data = bytearray(disk.read(path)[:SEGMENT_HEADER_BYTES])
    data[8:10] = (9).to_bytes(2, "little")
    data[12:16] = bytes(4)
    data[12:16] = zlib.crc32(bytes(data)).to_bytes(4, "little")
    disk.overwrite(path, 0, bytes(data))
    with pytest.raises(FormatTooNew, match="log format 9"):
        recover(disk)


def test_a_second_process_is_refused() -> None:
    disk = FaultyDisk()
    store = open_at(disk, create=True)
    with pytest.raises(Conflict, match="another process"):
        open_at(disk)
    store.close()
    open_at(disk)
