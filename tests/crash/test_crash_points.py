"""From every disk that a crash can leave behind, recovery gives back what was acknowledged, and nothing else.

`crash_states` enumerates the disks of a recorded workload; each is recovered by the code that nodes run, and judged:

    complete      all that was acknowledged before the crash is there (in the weak modes: up to the last forced sync)
    honest        no entry, vote or incarnation is there that was not handed to the writer; nothing is reported damaged
    idempotent    recovering again gives the same, also after a power cut right behind the recovery
    stubborn      a second crash, anywhere during the recovery, changes nothing in all this
    alive         the log goes on: what is acknowledged after the recovery survives the next power cut

The quick gate walks a narrow part of the space; the tests marked slow a wide one; `bin/crash-walk` all of it.
"""

from __future__ import annotations

import pytest

from tests.crash.walk import NARROW, WIDE, Tally, walk
from tests.crash.workloads import WORKLOADS, record
from tests.unit.storage.lives import reopen
from zcluster.errors import StorageError
from zcluster.sim.crash_points import RecordingDisk, Sync, SyncDirectory

STATES_MAX = 400  # of one workload, in the tests marked slow; `bin/crash-walk` takes all


def assert_good(tally: Tally, at_least: int) -> None:
    print(f"\n{tally}")
    assert not tally.bad, "\n".join(tally.bad)
    assert tally.states > at_least


@pytest.mark.parametrize("name", ["group commit", "truncations", "votes", "incarnations"])
def test_a_sample_of_all_crash_states_recovers(name: str) -> None:
    assert_good(walk(name, "fsync", NARROW, limit=60, inner=20, onward=10), 30)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKLOADS)
def test_every_crash_state_recovers_to_what_was_acknowledged(name: str) -> None:
    assert_good(walk(name, "fsync", WIDE, limit=STATES_MAX, inner=10, onward=10), 100)


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["interval:20", "none"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_in_a_weak_mode_a_crash_loses_a_suffix_at_most_but_no_vote(name: str, durability: str) -> None:
    assert_good(walk(name, durability, WIDE, limit=STATES_MAX // 2, inner=25, onward=20), 100)


# -- these tests notice -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [Sync, SyncDirectory])
def test_a_missing_sync_would_be_noticed(missing: type[Sync] | type[SyncDirectory]) -> None:
    life, disk = record("group commit", "fsync")
    disk.trace = [operation for operation in disk.trace if not isinstance(operation, missing)]
    with pytest.raises((AssertionError, StorageError)):
        life.check(reopen(RecordingDisk(disk.durable()), life.moment), exact=True)
