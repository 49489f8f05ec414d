"""From every disk that a crash can leave behind, recovery gives back what was acknowledged, and nothing else.

`crash_states` enumerates the disks of a recorded workload; each is recovered by the code that nodes run, and judged:

    complete      all that was acknowledged before the crash is there (in the weak modes: up to the last forced sync)
    honest        no entry, vote or incarnation is there that was not handed to the writer; nothing is reported damaged
    idempotent    recovering again gives the same, also after a power cut right behind the recovery
    stubborn      a second crash, anywhere during the recovery, changes nothing in all this
    alive         the log goes on: what is acknowledged after the recovery survives the next power cut

The quick gate walks a narrow part of the space; the tests marked slow a wide one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.crash.workloads import WORKLOADS, record
from tests.unit.storage.lives import Life, Moment, reopen
from tests.unit.storage.stores import Node
from zcluster.errors import StorageError
from zcluster.sim.crash_points import Bounds, Image, RecordingDisk, Sync, SyncDirectory, crash_states
from zcluster.storage.recover import RecoveredStore

STATES_MAX = int(os.environ.get("CRASH_STATES_MAX", "800"))
"""Of one workload, in the tests marked slow; set it high for a walk through all of them (about 10 minutes)."""
NARROW = Bounds(subset_max=2, samples=1, blocks_max=2)
WIDE = Bounds(subset_max=6, samples=6, blocks_max=8)
INNER = Bounds(subset_max=2, samples=1, blocks_max=1)


@dataclass
class Tally:
    """How many disks were recovered: of the workload, of crashes during their recovery, to be continued."""

    states: int = 0
    inner: int = 0
    continued: int = 0

    def __str__(self) -> str:
        return f"{self.states} recovered, {self.inner} crashes in recoveries, {self.continued} logs continued"


def distinct(states: Iterator[tuple[int, Image]], life: Life) -> Iterator[tuple[Image, Moment]]:
    """Each disk once for each set of obligations."""
    seen: set[tuple[int, int]] = set()
    for operations, image in states:
        moment = life.at(operations)
        key = image.fingerprint(), id(moment)
        if key not in seen:
            seen.add(key)
            yield image, moment


def essence(found: RecoveredStore) -> tuple[object, ...]:
    state = (found.hard_state, found.incarnation, found.repair, found.wiped)
    return (*state, found.entries, found.checkpoint, found.suspect_after)


def examine(image: Image, life: Life, moment: Moment, *, exact: bool) -> RecordingDisk:
    """Recover once, judge, recover again. Returns the disk as the first recovery left it."""
    disk = RecordingDisk(image)
    found = reopen(disk, moment)
    life.check(found, exact=exact, moment=moment)
    assert not exact or found.suspect_after is None
    assert essence(reopen(RecordingDisk(disk.now()), moment)) == essence(found)
    if disk.trace:
        assert essence(reopen(RecordingDisk(disk.durable()), moment)) == essence(found)
    return disk


def crash_again(disk: RecordingDisk, life: Life, moment: Moment, *, exact: bool) -> int:
    """Every crash during the recovery that `disk` has recorded. Returns how many disks that were."""
    count = 0
    for inner, _ in distinct(crash_states(disk.trace, disk.image, INNER), life):
        life.check(reopen(RecordingDisk(inner), moment), exact=exact, moment=moment)
        count += 1
    return count


def continue_log(image: Image, boot: str = "boot-2") -> None:
    """Start a node on this disk, let it acknowledge some more, cut the power, look."""
    disk = RecordingDisk(image)
    node = Node(disk, boot=boot)
    found = node.store.recovered
    last = max([e.index for e in found.entries] + [found.checkpoint.index if found.checkpoint else 0])
    term = found.hard_state.term + 1
    node.vote(term, 3)
    node.put(*range(last + 1, last + 20), epoch=99)
    after = reopen(RecordingDisk(disk.durable()), Moment(created=True), "boot-3")
    assert [e.index for e in after.entries if e.epoch == 99] == list(range(last + 1, last + 20))
    assert [e for e in after.entries if e.epoch != 99] == found.entries and after.checkpoint == found.checkpoint
    assert (after.hard_state.term, after.hard_state.voted_for) == (term, 3)
    assert after.incarnation == found.incarnation + 1 and after.damage is None


def walk(name: str, durability: str, bounds: Bounds, *, limit: int, inner: int, onward: int) -> Tally:
    """Check the crash states of a workload (at most `limit`, evenly spread), every `inner`-th of them for a second
    crash, every `onward`-th for going on."""
    life, disk = record(name, durability)
    exact = durability == "fsync"
    tally = Tally()
    states = list(distinct(crash_states(disk.trace, disk.image, bounds), life))
    for number, (image, moment) in enumerate(states[:: -(-len(states) // limit)]):
        recovered = examine(image, life, moment, exact=exact)
        tally.states += 1
        if number % inner == 0:
            tally.inner += crash_again(recovered, life, moment, exact=exact)
        if number % onward == 0 and moment.created:
            continue_log(image)
            tally.continued += 1
    print(f"\n{name}, {durability}: {len(disk.trace)} operations, {len(states)} crash states, {tally}")
    return tally


@pytest.mark.parametrize("name", ["group commit", "truncations", "votes", "incarnations"])
def test_a_sample_of_all_crash_states_recovers(name: str) -> None:
    assert walk(name, "fsync", NARROW, limit=60, inner=20, onward=10).states > 30


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKLOADS)
def test_every_crash_state_recovers_to_what_was_acknowledged(name: str) -> None:
    assert walk(name, "fsync", WIDE, limit=STATES_MAX, inner=10, onward=10).states > 100


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["interval:20", "none"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_in_a_weak_mode_a_crash_loses_a_suffix_at_most_but_no_vote(name: str, durability: str) -> None:
    assert walk(name, durability, WIDE, limit=STATES_MAX // 4, inner=25, onward=20).states > 100


# -- these tests notice -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [Sync, SyncDirectory])
def test_a_missing_sync_would_be_noticed(missing: type[Sync] | type[SyncDirectory]) -> None:
    life, disk = record("group commit", "fsync")
    disk.trace = [operation for operation in disk.trace if not isinstance(operation, missing)]
    with pytest.raises((AssertionError, StorageError)):
        life.check(reopen(RecordingDisk(disk.durable()), life.moment), exact=True)
