"""The writer: when it writes, syncs and acknowledges. No sleeps: events and a clock that is set by hand."""

from __future__ import annotations

import errno
import threading
import time

import pytest

from tests.unit.storage.faulty_disk import FaultyDisk
from tests.unit.storage.stores import entry, indices, new_node, open_at, recover, segments
from zcluster.errors import Closed, InvalidInput, StorageError
from zcluster.storage.policy import GROUP_BYTES_MAX, Durability, WriterPolicy
from zcluster.storage.writer import InlineWriter, Writer
from zcluster.types import MS, NEVER, HardState, WriteBatch

TIMEOUT = 10.0


def put(seq: int, size: int = 40) -> WriteBatch:
    return WriteBatch(seq, entries=(entry(seq, 1, size),))


def vote(seq: int) -> WriteBatch:
    return WriteBatch(seq, hard_state=HardState(seq, 1))


def syncs(disk: FaultyDisk) -> int:
    return sum(line.startswith("fdatasync") for line in disk.log)


# -- the policy: exact decisions --------------------------------------------------------------------------------------


def test_fsync_acknowledges_after_the_sync_only() -> None:
    policy = WriterPolicy(Durability.parse("fsync"))
    policy.submit(put(1))
    policy.submit(put(2))
    group = policy.take()
    assert [batch.seq for batch in group] == [1, 2]
    assert policy.written(group, 100, now=5)
    assert policy.acknowledged == 0
    policy.synced()
    assert (policy.acknowledged, policy.unsynced_since, policy.unsynced_bytes) == (2, 0, 0)


def test_none_acknowledges_after_the_write_and_never_asks_for_a_sync() -> None:
    policy = WriterPolicy(Durability.parse("none"))
    policy.submit(put(1))
    assert not policy.written(policy.take(), 100, now=5)
    assert (policy.acknowledged, policy.unsynced_since, policy.unsynced_bytes) == (1, 5, 100)
    assert policy.sync_deadline() == NEVER


def test_interval_syncs_that_long_after_the_first_unsynced_write() -> None:
    policy = WriterPolicy(Durability.parse("interval:20"))
    for seq, now in ((1, 5), (2, 7)):
        policy.submit(put(seq))
        assert not policy.written(policy.take(), 100, now)
        assert policy.acknowledged == seq
    assert policy.sync_deadline() == 5 + 20 * MS
    policy.submit(put(3))
    assert policy.written(policy.take(), 100, 5 + 20 * MS), "under load the sync comes with a write"
    policy.synced()
    assert policy.sync_deadline() == NEVER


@pytest.mark.parametrize("mode", ["interval:20", "none"])
@pytest.mark.parametrize(
    "fields",
    [{"hard_state": HardState(1, 1)}, {"incarnation": 1}, {"repair": False}],
    ids=lambda fields: next(iter(fields)),
)
def test_votes_and_incarnations_are_synced_in_every_mode(mode: str, fields: dict[str, object]) -> None:
    policy = WriterPolicy(Durability.parse(mode))
    policy.submit(put(1))
    policy.submit(WriteBatch(2, **fields))  # type: ignore[arg-type]
    assert policy.written(policy.take(), 100, now=5)
    assert policy.acknowledged == 0, "nothing of that write is acknowledged before the sync"
    policy.synced()
    assert policy.acknowledged == 2


def test_a_group_is_bounded_but_a_large_batch_goes_alone() -> None:
    policy = WriterPolicy(Durability.parse("fsync"))
    policy.submit(put(1, GROUP_BYTES_MAX // 2))
    policy.submit(put(2, GROUP_BYTES_MAX // 2))
    policy.submit(put(3, 2 * GROUP_BYTES_MAX))
    policy.submit(put(4))
    assert [[batch.seq for batch in policy.take()] for _ in range(4)] == [[1, 2], [3], [4], []]


@pytest.mark.parametrize("text", ["", "sync", "interval", "interval:0", "interval:-1", "interval:x", "none:5"])
def test_an_unknown_durability_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="use fsync"):
        Durability.parse(text)


# -- the inline writer ------------------------------------------------------------------------------------------------


def test_everything_that_waits_goes_into_one_write_and_one_sync() -> None:
    disk = FaultyDisk()
    writer = InlineWriter(open_at(disk, create=True).wal, "fsync", lambda: None, lambda: 1, immediate=False)
    before = len(disk.log)
    for seq in range(1, 50):
        writer.submit(put(seq, 20))
    assert len(disk.log) == before and writer.completed().seq == 0
    writer.pump()
    assert [line.split()[0] for line in disk.log[before:]] == ["pwritev", "fdatasync", "pwritev"], (
        "the last is the proof"
    )
    assert writer.completed().seq == 49


def test_an_interval_sync_comes_when_it_is_due_and_only_then() -> None:
    disk, now = FaultyDisk(), [1]
    writer = InlineWriter(open_at(disk, create=True).wal, "interval:20", lambda: None, lambda: now[0])
    before = syncs(disk)
    writer.submit(put(1))
    completion = writer.completed()
    assert (completion.seq, completion.unsynced_since, syncs(disk)) == (1, 1, before)
    assert completion.unsynced_bytes > 40
    now[0] = writer.sync_deadline() - 1
    writer.pump()
    assert syncs(disk) == before
    now[0] += 1
    writer.pump()
    writer.pump()
    assert syncs(disk) == before + 1
    assert writer.completed().unsynced_since == 0 and writer.sync_deadline() == NEVER


def test_completions_are_announced_and_carry_figures() -> None:
    calls: list[int] = []
    ticks = iter(range(0, 1000, 10))
    writer = InlineWriter(open_at(FaultyDisk(), create=True).wal, "fsync", lambda: calls.append(1), lambda: next(ticks))
    writer.submit(put(1))
    completion = writer.completed()
    assert len(calls) == 1
    assert (completion.syncs, completion.last_sync_ns, completion.max_sync_ns) == (1, 10, 10)
    assert completion.bytes_written > 40


@pytest.mark.parametrize("operation", ["pwritev", "fdatasync"])
def test_a_failed_write_or_sync_is_final(operation: str) -> None:
    disk = FaultyDisk()
    writer = InlineWriter(open_at(disk, create=True).wal, "fsync", lambda: None)
    writer.submit(put(1))
    disk.fail(operation, errno.EIO)
    writer.submit(put(2))
    completion = writer.completed()
    assert completion.seq == 1 and completion.error is not None
    assert segments(disk)[0].name in str(completion.error)
    before = len(disk.log)
    with pytest.raises(StorageError):
        writer.submit(put(3))
    writer.pump()
    writer.close(clean=True)
    assert len(disk.log) == before and writer.completed().seq == 1
    found = recover(disk)
    assert not found.clean_stop and indices(found)[:1] == [1]


def test_a_bug_in_the_caller_stops_the_writer_and_is_reported() -> None:
    writer = InlineWriter(open_at(FaultyDisk(), create=True).wal, "fsync", lambda: None)
    writer.submit(vote(5))
    writer.submit(WriteBatch(6, hard_state=HardState(1)))
    assert "the term never falls" in str(writer.completed().error)


def test_a_clean_stop_is_synced_and_marked_last() -> None:
    for mode in ("fsync", "interval:20", "none"):
        node = new_node(durability=mode)
        node.put(1, 2)
        node.stop(clean=True)
        node.disk.power_cut("nothing")
        found = recover(node.disk)
        assert found.clean_stop and indices(found) == [1, 2]


def test_an_unclean_close_writes_what_was_submitted() -> None:
    disk = FaultyDisk()
    writer = InlineWriter(open_at(disk, create=True).wal, "fsync", lambda: None, immediate=False)
    writer.submit(put(1))
    writer.close(clean=False)
    with pytest.raises(Closed):
        writer.submit(put(2))
    assert indices(recover(disk)) == [1]


# -- the node's writer: the loop writes, a helper tidies --------------------------------------------------------------


class SlowDisk(FaultyDisk):
    """Every sync of a file takes a permit: `hold` takes them all away, `gate.release(n)` lets n syncs pass."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Semaphore(1000)
        self.waiting = threading.Event()

    def hold(self) -> None:
        while self.gate.acquire(blocking=False):
            pass

    def fdatasync(self, handle: int) -> None:
        if not self.gate.acquire(blocking=False):
            self.waiting.set()
            assert self.gate.acquire(timeout=TIMEOUT)
        super().fdatasync(handle)


class Waiter:
    """`notify` of the helper: wait until a condition on the writer holds."""

    def __init__(self) -> None:
        self.condition = threading.Condition()

    def notify(self) -> None:
        with self.condition:
            self.condition.notify_all()

    def until(self, writer: Writer, seq: int) -> None:
        with self.condition:
            assert self.condition.wait_for(lambda: writer.completed().seq >= seq, TIMEOUT)


def write(writer: Writer, *batches: WriteBatch) -> None:
    for batch in batches:
        writer.submit(batch)
    writer.pump()


def test_what_was_submitted_between_two_pumps_is_one_write_and_one_sync() -> None:
    disk = FaultyDisk()
    writer = Writer(open_at(disk, create=True).wal, "fsync", lambda: None)
    before = len(disk.log)
    assert not writer.waiting()
    for seq in range(1, 30):
        writer.submit(put(seq, 20))
    assert writer.waiting() and len(disk.log) == before and writer.completed().seq == 0
    writer.pump()
    assert [line.split()[0] for line in disk.log[before:]] == ["pwritev", "fdatasync", "pwritev"]
    assert writer.completed().seq == 29 and not writer.waiting()
    writer.close(clean=False)
    assert indices(recover(disk)) == list(range(1, 30))


def test_while_the_helper_has_the_disk_pump_returns_and_the_helper_takes_over() -> None:
    disk, waiter = SlowDisk(), Waiter()
    writer = Writer(open_at(disk, create=True).wal, "none", waiter.notify)
    for seq in range(1, 200):
        write(writer, put(seq))
    disk.hold()
    writer.trim(lambda: 150)  # syncs first, and is stuck in that
    assert disk.waiting.wait(TIMEOUT)
    assert writer.busy(), "the loop must not wake up for a deadline that pump cannot meet"
    write(writer, put(200))
    write(writer, vote(201), put(202))
    assert writer.completed().seq == 199, "pump has not waited"
    disk.gate.release(10)
    waiter.until(writer, 202)
    with waiter.condition:
        assert waiter.condition.wait_for(lambda: not writer.busy(), TIMEOUT), "nobody was told that the disk is free"
    writer.close(clean=False)
    assert writer.completed().error is None
    disk.power_cut("nothing")
    found = recover(disk)
    assert found.hard_state == HardState(201, 1)


def test_a_failure_in_the_loop_or_in_the_helper_is_reported_and_everything_after_refused() -> None:
    for where in ("loop", "helper"):
        disk = FaultyDisk()
        writer = Writer(open_at(disk, create=True).wal, "fsync", lambda: None)
        for seq in range(1, 100):
            write(writer, put(seq))
        if where == "loop":
            disk.fail("fdatasync")
            write(writer, put(100))
        else:
            disk.fail("fsync_directory")
            writer.trim(lambda: 50)
        writer.close(clean=True)
        completion = writer.completed()
        assert completion.seq == 99 and completion.error is not None
        with pytest.raises(StorageError):
            writer.submit(put(101))
        assert not recover(disk).clean_stop


def test_an_interval_asks_for_the_pump_that_syncs() -> None:
    disk, now = FaultyDisk(), [1]
    writer = Writer(open_at(disk, create=True).wal, "interval:20", lambda: None, lambda: now[0])
    write(writer, put(1))
    assert writer.completed().seq == 1 and writer.completed().syncs == 0
    assert writer.next_deadline() == 1 + 20 * MS
    writer.pump()
    assert writer.completed().syncs == 0
    now[0] = writer.next_deadline()
    assert writer.waiting()
    writer.pump()
    assert writer.completed().syncs == 1 and writer.completed().unsynced_since == 0
    writer.close(clean=False)


def test_a_flipped_bit_in_the_last_batch_is_damage_as_soon_as_it_is_acknowledged() -> None:
    disk = FaultyDisk()
    writer = Writer(open_at(disk, create=True).wal, "fsync", lambda: None)
    write(writer, put(1))
    last = segments(disk)[0]
    twin = disk.copy()
    writer.close(clean=False)
    twin.flip(last, disk.read(last).index(b"1.1:"))
    assert recover(twin).repair


def test_trimming_is_done_by_the_helper_in_order() -> None:
    disk = FaultyDisk()
    wal = open_at(disk, create=True).wal
    writer = Writer(wal, "fsync", lambda: None)
    for seq in range(1, 200):
        write(writer, put(seq))
    count = wal.segment_count
    writer.trim(lambda: 150)
    writer.close(clean=True)
    assert 1 < len(segments(disk)) < count


def test_what_makes_room_runs_beside_the_loop_once_everything_submitted_is_written() -> None:
    disk, waiter = FaultyDisk(), Waiter()
    writer = Writer(open_at(disk, create=True).wal, "fsync", waiter.notify)
    asked, answer = threading.Event(), threading.Event()
    seen: list[int] = []

    def clear() -> int:
        seen.append(writer.completed().seq)
        asked.set()
        assert answer.wait(TIMEOUT)
        return 1

    writer.submit(put(1))
    writer.trim(clear)
    assert asked.wait(TIMEOUT)
    assert seen == [1], "it was asked before the log said what it rests on"
    write(writer, put(2))
    assert writer.completed().seq == 2, "pump had to wait"
    answer.set()
    writer.close(clean=True)
    assert writer.completed().error is None


def test_a_failure_to_make_room_ends_the_writer() -> None:
    writer = Writer(open_at(FaultyDisk(), create=True).wal, "fsync", lambda: None)
    failure = StorageError("the directory is gone")

    def clear() -> int:
        raise failure

    writer.trim(clear)
    writer.close(clean=True)
    assert writer.completed().error is failure


def test_closing_writes_what_waits_and_closing_twice_is_harmless() -> None:
    before = time.monotonic_ns()
    disk = FaultyDisk()
    writer = Writer(open_at(disk, create=True).wal, "none", lambda: None)
    writer.submit(put(1))
    writer.close(clean=True)
    writer.close(clean=True)
    with pytest.raises(Closed):
        writer.submit(put(2))
    disk.power_cut("nothing")
    found = recover(disk)
    assert found.clean_stop and indices(found) == [1]
    assert before <= found.stopped_at <= time.monotonic_ns()
