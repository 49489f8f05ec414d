"""Power cuts at every disk operation of a busy life: whatever is recovered, everything acknowledged is there.

A life (`lives`) is run against a store and, in parallel, against a model of what must be remembered. The power is cut
in the middle of the n-th disk operation, for every n, with nothing, everything or a random part of the unsynced bytes
and names surviving. What is recovered must be the model before or after the step that was interrupted; in the weak
modes, a model no older than the last forced sync. Every other way in which a crash can fall: `tests/crash`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.storage.faulty_disk import FaultyDisk
from tests.unit.storage.lives import Life, reopen
from tests.unit.storage.stores import CHECKPOINTS, Node, indices, new_node, recover
from zcluster.errors import StorageError
from zcluster.storage.checkpoint import list_checkpoints

Look = Callable[[int, FaultyDisk, "Life"], None]


def live(durability: str, look: Look | None = None, disk: FaultyDisk | None = None) -> Life:
    """A whole life; `look(n, disk, life)` sees the disk as it is in the middle of the n-th operation."""
    life = Life(disk or FaultyDisk(), durability)
    if look is not None:
        life.disk.observer = lambda twin: look(life.disk.operations, twin, life)
    life.run()
    life.disk.observer = None
    return life


@pytest.mark.parametrize(("keep", "stride"), [("nothing", 2), ("all", 3), ("random", 1)])
def test_a_power_cut_at_any_operation_loses_nothing_acknowledged(keep: str, stride: int) -> None:
    def look(operation: int, disk: FaultyDisk, life: Life) -> None:
        if operation % stride:
            return
        disk.power_cut(keep)
        found = reopen(disk, life.moment)
        life.check(found, exact=True)
        assert found.suspect_after is None
        if keep == "random" and operation % 3 == 0:  # opening is itself a change: it must not change what is found
            again = reopen(disk, life.moment)
            assert (again.entries, again.checkpoint) == (found.entries, found.checkpoint)

    assert live("fsync", look).disk.operations > 400


@pytest.mark.parametrize("durability", ["fsync", "none"])
def test_a_killed_process_loses_nothing_acknowledged_in_any_mode(durability: str) -> None:
    def look(operation: int, disk: FaultyDisk, life: Life) -> None:
        if operation % 2:
            life.check(reopen(disk, life.moment), exact=True)

    live(durability, look)


@pytest.mark.parametrize("durability", ["interval:20", "none"])
def test_a_power_cut_in_a_weak_mode_loses_a_suffix_but_no_vote(durability: str) -> None:
    def look(operation: int, disk: FaultyDisk, life: Life) -> None:
        disk.power_cut("random" if operation % 2 else "nothing")
        life.check(reopen(disk, life.moment), exact=False)

    live(durability, look)


def test_a_second_power_cut_during_recovery_changes_nothing() -> None:
    def look(operation: int, disk: FaultyDisk, life: Life) -> None:
        def look_again(twin: FaultyDisk) -> None:
            twin.power_cut("random")
            life.check(reopen(twin, life.moment), exact=True)

        if operation % 7 == 0:
            disk.power_cut("random")
            disk.observer = look_again
            reopen(disk, life.moment)

    live("fsync", look)


def test_a_recovered_log_can_be_continued_over_another_power_cut() -> None:
    def look(operation: int, disk: FaultyDisk, life: Life) -> None:
        if operation % 7 or not life.moment.created:
            return
        disk.power_cut("random")
        node = Node(disk, boot="boot-2")
        found = node.store.recovered
        last = max([e.index for e in found.entries] + [found.checkpoint.index if found.checkpoint else 0])
        node.vote(found.hard_state.term + 1)
        node.put(*range(last + 1, last + 20), epoch=99)
        disk.power_cut("random")
        after = reopen(disk, life.moment, "boot-3")
        assert [e.index for e in after.entries if e.epoch == 99] == list(range(last + 1, last + 20))
        assert after.hard_state.term == found.hard_state.term + 1 and after.damage is None

    live("fsync", look)


def test_two_checkpoints_are_kept_and_the_log_reaches_back_to_the_older() -> None:
    life = live("fsync")
    disk = life.disk
    disk.kill()
    newest, older = list_checkpoints(disk, CHECKPOINTS)
    disk.flip(newest.path, 30)
    found = reopen(disk, life.moment)
    assert found.checkpoint is not None and found.checkpoint.index == older.index
    assert found.entries[-1].index == 205 and not found.repair


class NoDirectorySync(FaultyDisk):
    def fsync_directory(self, directory: Path) -> None:
        self.operations += 1


class NoSync(FaultyDisk):
    def fdatasync(self, handle: int) -> None:
        self.operations += 1


@pytest.mark.parametrize("kind", [NoDirectorySync, NoSync])
def test_these_tests_notice_a_missing_sync(kind: type[FaultyDisk]) -> None:
    life = live("fsync", disk=kind())
    life.disk.power_cut("nothing")
    with pytest.raises((AssertionError, StorageError)):
        life.check(reopen(life.disk, life.moment), exact=True)


def test_what_a_failed_sync_left_in_the_page_cache_is_durable_once_it_was_recovered() -> None:
    """The process stops at a failed sync, but the pages stay, readable and marked clean: the next process must not
    take them for durable (and acknowledge them) without writing them again. Found by the simulator, seed 56."""
    disk = FaultyDisk()
    node = new_node(disk)
    node.put(1, 2)
    disk.fail("fdatasync")
    with pytest.raises(StorageError):
        node.put(3)
    assert indices(recover(disk)) == [1, 2, 3]
    disk.power_cut("nothing")
    found = recover(disk, boot="boot-2")
    assert indices(found) == [1, 2, 3]
    assert found.damage is None
