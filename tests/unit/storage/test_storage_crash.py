"""Power cuts at every disk operation of a busy life: whatever is recovered, everything acknowledged is there.

A life is a list of steps (put, cut, vote, checkpoint, install, trim, restart …) run against a store and, in parallel,
against a model of what must be remembered. The power is cut in the middle of the n-th disk operation, for every n, with
nothing, everything or a random part of the unsynced bytes and names surviving. What is recovered must be the model
before or after the step that was interrupted; in the weak modes, a model no older than the last forced sync.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.unit.storage.faulty_disk import FaultyDisk
from tests.unit.storage.stores import (
    CHECKPOINTS,
    IDENTITY,
    ROOT,
    Node,
    entry,
    indices,
    meta,
    new_node,
    open_at,
    recover,
)
from zcluster.errors import StorageError
from zcluster.storage.checkpoint import CheckpointFile, CheckpointReceiver, CheckpointWriter, list_checkpoints, prune
from zcluster.storage.recover import RecoveredStore
from zcluster.types import HardState


@dataclass(frozen=True)
class Model:
    """What a store promised to remember. base: an installed checkpoint took the place of the log up to here."""

    hard_state: HardState = field(default_factory=HardState)
    incarnation: int = 0
    repair: bool = False
    base: int = 0
    log: dict[int, int] = field(default_factory=dict)  # index -> epoch
    checkpoint: int = 0  # a checkpoint of at least this index is complete

    def put(self, first: int, last: int, epoch: int) -> Model:
        return replace(self, log=self.log | dict.fromkeys(range(first, last + 1), epoch))

    def cut(self, after: int) -> Model:
        return replace(self, log={index: epoch for index, epoch in self.log.items() if index <= after})

    def install(self, index: int, epoch: int) -> Model:
        if self.log.get(index) == epoch:
            return replace(self, checkpoint=index)
        kept = {} if index in self.log else {i: e for i, e in self.log.items() if i > index}
        return replace(self, log=kept, base=index, checkpoint=index)

    def admits(self, found: RecoveredStore) -> bool:
        """Whether `found` is this state, give or take what a checkpoint covers."""
        covered = found.checkpoint.index if found.checkpoint else 0
        if found.checkpoint and self.log.get(covered, found.checkpoint.epoch) != found.checkpoint.epoch:
            return False
        above = {e.index: e.epoch for e in found.entries if e.index > covered}
        below = [e for e in found.entries if e.index <= covered]
        return (
            covered >= max(self.base, self.checkpoint)
            and above == {index: epoch for index, epoch in self.log.items() if index > covered}
            and all(self.log.get(e.index, e.epoch) == e.epoch for e in below)
            and all(e.data == entry(e.index, e.epoch, len(e.data)).data for e in found.entries)
            and (found.hard_state, found.incarnation) == (self.hard_state, self.incarnation)
            and found.repair == self.repair
        )


class Life:
    """Runs steps against a store and the model. `history[-1]` is acknowledged; `pending`: what a step would make."""

    def __init__(self, disk: FaultyDisk, durability: str) -> None:
        self.disk = disk
        self.durability = durability
        self.created = False
        self.history = [Model()]
        self.pending: Model | None = None
        self.forced = 0  # position in `history` that was synced whatever the mode

    @property
    def model(self) -> Model:
        return self.history[-1]

    def step(self, after: Model, do: Callable[[], None], *, forced: bool = False) -> None:
        self.pending = after
        do()
        self.history.append(after)
        self.pending = None
        if forced or self.durability == "fsync":
            self.forced = len(self.history) - 1

    def start(self, *, create: bool = False, clean: bool | None = None) -> None:
        if clean is not None:
            self.node.stop(clean=clean)
            self.forced = len(self.history) - 1 if clean else self.forced

        def do() -> None:
            self.node = Node(self.disk, create=create, durability=self.durability)

        self.step(replace(self.model, incarnation=self.model.incarnation + 1), do, forced=True)
        self.created = True

    def vote(self, term: int, voted_for: int) -> None:
        state = HardState(term, voted_for)
        self.step(replace(self.model, hard_state=state), lambda: self.node.write(hard_state=state), forced=True)

    def put(self, first: int, last: int, epoch: int, size: int = 60) -> None:
        batch = tuple(entry(index, epoch, size) for index in range(first, last + 1))
        self.step(self.model.put(first, last, epoch), lambda: self.node.write(entries=batch))

    def puts(self, first: int, last: int, epoch: int, size: int = 60) -> None:
        for index in range(first, last + 1):
            self.put(index, index, epoch, size)

    def overwrite(self, after: int, last: int, epoch: int, term: int) -> None:
        """What a follower does under a new leader, in one batch: term, cut, entries."""
        batch = tuple(entry(index, epoch, 60) for index in range(after + 1, last + 1))
        state = HardState(term, 0)
        wanted = replace(self.model.cut(after).put(after + 1, last, epoch), hard_state=state)
        self.step(wanted, lambda: self.node.write(hard_state=state, truncate_after=after, entries=batch), forced=True)

    def checkpoint(self, index: int, epoch: int) -> None:
        def do() -> None:
            writer = CheckpointWriter(self.disk, CHECKPOINTS, meta(index, epoch), IDENTITY.cluster_id)
            writer.write(b"state" * 100)
            writer.finish()
            self.node.writer.trim(prune(self.disk, CHECKPOINTS, keep=2) + 1)

        self.step(replace(self.model, checkpoint=index), do)

    def receive(self, index: int, epoch: int) -> None:
        """A leader's checkpoint arrives in pieces, and is installed with the entry behind it."""
        other = FaultyDisk()
        other.make_directory(CHECKPOINTS)
        writer = CheckpointWriter(other, CHECKPOINTS, meta(index, epoch), IDENTITY.cluster_id)
        writer.write(b"theirs" * 100)
        file = CheckpointFile(other, writer.finish())

        def transfer() -> None:
            receiver = CheckpointReceiver(self.disk, CHECKPOINTS, file.meta, file.size, IDENTITY.cluster_id)
            for offset in range(0, file.size, 256):
                receiver.write(offset, file.read_at(offset, 256))
            receiver.finish()

        if self.model.log.get(index, epoch) == epoch:
            # Nothing in the log speaks against it: once whole it may be used, recorded or not.
            self.step(replace(self.model.install(index, epoch), checkpoint=0, base=0), transfer, forced=True)
        else:
            self.step(self.model, transfer)
        self.step(self.model.install(index, epoch), lambda: self.node.write(snapshot=meta(index, epoch)), forced=True)

    def repaired(self, repair: bool) -> None:
        self.step(replace(self.model, repair=repair), lambda: self.node.write(repair=repair), forced=True)

    def run(self) -> None:
        self.start(create=True)
        self.vote(1, 1)
        self.put(1, 5, 1)
        self.puts(6, 30, 1)
        self.overwrite(20, 24, 2, term=2)
        self.checkpoint(22, 2)
        self.puts(25, 60, 2)
        self.checkpoint(50, 2)
        self.start(clean=True)
        self.put(61, 61, 2, size=5000)
        self.puts(62, 110, 2)
        self.vote(5, 3)
        self.checkpoint(100, 2)
        self.puts(111, 114, 2)
        self.receive(150, 5)
        self.puts(151, 170, 5)
        self.repaired(True)
        self.start(clean=False)
        self.overwrite(160, 175, 7, term=7)
        self.receive(170, 8)
        self.repaired(False)
        self.puts(171, 200, 8)
        self.checkpoint(190, 8)
        self.puts(201, 205, 8)

    def check(self, found: RecoveredStore, *, exact: bool) -> None:
        """`exact`: nothing acknowledged may be missing."""
        oldest = len(self.history) - 1 if exact else self.forced
        candidates = self.history[oldest:] + ([self.pending] if self.pending is not None else [])
        assert found.damage is None and not found.wiped, found.damage
        assert any(model.admits(found) for model in candidates), (found, candidates[-1])


Look = Callable[[int, FaultyDisk, "Life"], None]


def live(durability: str, look: Look | None = None, disk: FaultyDisk | None = None) -> Life:
    """A whole life; `look(n, disk, life)` sees the disk as it is in the middle of the n-th operation."""
    life = Life(disk or FaultyDisk(), durability)
    if look is not None:
        life.disk.observer = lambda twin: look(life.disk.operations, twin, life)
    life.run()
    life.disk.observer = None
    return life


def reopen(disk: FaultyDisk, life: Life, boot: str = "boot-2") -> RecoveredStore:
    exists = disk.exists(ROOT / "identity.json")
    assert exists or not life.created
    store = open_at(disk, create=not exists, boot=boot)
    store.wal.close()
    store.close()
    return store.recovered


@pytest.mark.parametrize(("keep", "stride"), [("nothing", 2), ("all", 3), ("random", 1)])
def test_a_power_cut_at_any_operation_loses_nothing_acknowledged(keep: str, stride: int) -> None:
    def look(operation: int, disk: FaultyDisk, life: Life) -> None:
        if operation % stride:
            return
        disk.power_cut(keep)
        found = reopen(disk, life)
        life.check(found, exact=True)
        assert not found.suspect_tail
        if keep == "random" and operation % 3 == 0:  # opening is itself a change: it must not change what is found
            again = reopen(disk, life)
            assert (again.entries, again.checkpoint) == (found.entries, found.checkpoint)

    assert live("fsync", look).disk.operations > 400


@pytest.mark.parametrize("durability", ["fsync", "none"])
def test_a_killed_process_loses_nothing_acknowledged_in_any_mode(durability: str) -> None:
    def look(operation: int, disk: FaultyDisk, life: Life) -> None:
        if operation % 2:
            life.check(reopen(disk, life), exact=True)

    live(durability, look)


@pytest.mark.parametrize("durability", ["interval:20", "none"])
def test_a_power_cut_in_a_weak_mode_loses_a_suffix_but_no_vote(durability: str) -> None:
    def look(operation: int, disk: FaultyDisk, life: Life) -> None:
        disk.power_cut("random" if operation % 2 else "nothing")
        life.check(reopen(disk, life), exact=False)

    live(durability, look)


def test_a_second_power_cut_during_recovery_changes_nothing() -> None:
    def look(operation: int, disk: FaultyDisk, life: Life) -> None:
        def look_again(twin: FaultyDisk) -> None:
            twin.power_cut("random")
            life.check(reopen(twin, life), exact=True)

        if operation % 7 == 0:
            disk.power_cut("random")
            disk.observer = look_again
            reopen(disk, life)

    live("fsync", look)


def test_a_recovered_log_can_be_continued_over_another_power_cut() -> None:
    def look(operation: int, disk: FaultyDisk, life: Life) -> None:
        if operation % 7 or not life.created:
            return
        disk.power_cut("random")
        node = Node(disk, boot="boot-2")
        found = node.store.recovered
        last = max([e.index for e in found.entries] + [found.checkpoint.index if found.checkpoint else 0])
        node.vote(found.hard_state.term + 1)
        node.put(*range(last + 1, last + 20), epoch=99)
        disk.power_cut("random")
        after = reopen(disk, life, "boot-3")
        assert [e.index for e in after.entries if e.epoch == 99] == list(range(last + 1, last + 20))
        assert after.hard_state.term == found.hard_state.term + 1 and after.damage is None

    live("fsync", look)


def test_two_checkpoints_are_kept_and_the_log_reaches_back_to_the_older() -> None:
    life = live("fsync")
    disk = life.disk
    disk.kill()
    newest, older = list_checkpoints(disk, CHECKPOINTS)
    disk.flip(newest.path, 30)
    found = reopen(disk, life)
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
        life.check(reopen(life.disk, life), exact=True)


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
