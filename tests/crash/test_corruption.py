"""Whatever single fault a medium has, it is detected: never a silent truncation, never a false byte served.

A store at rest gets one fault in one place (`faults`), for every place of every file, and is recovered by the code that
nodes run. What may come of it:

    refused   opening raises a typed error, or finds the hard state lost (`wiped`): the node does not start
    repair    entries are missing; that is reported, nothing false is left, no vote is forgotten, and the node neither
              votes nor counts before it has them again
    reported  nothing is missing, since a checkpoint or the log covers it; the damage is reported
    harmless  nothing is missing: no byte in that place carries anything
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.crash.faults import flips, stale_sectors, truncations, with_bytes, with_file
from tests.crash.walk import Tally, inject, start, verdict
from tests.crash.workloads import record
from tests.unit.storage.stores import ROOT, WAL
from zcluster.sim.crash_points import Bounds, RecordingDisk, crash_states
from zcluster.storage.proof import PROOF


def assert_none_silent(tally: Tally, at_least: int) -> None:
    print(f"\n{tally}, {dict(sorted(tally.verdicts.items()))}")
    assert not tally.bad, "\n".join(tally.bad)
    assert tally.states > at_least


@pytest.mark.parametrize("name", ["checkpoints", "truncations", "installs", "stops"])
def test_a_sample_of_all_single_faults_is_detected(name: str) -> None:
    assert_none_silent(inject(name, truncation_step=97, stride=101), 100)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checkpoints", "truncations", "installs", "stops"])
def test_every_single_fault_of_the_log_and_the_checkpoints_is_detected(name: str) -> None:
    tally = inject(name, truncation_step=16, stride=4)
    assert_none_silent(tally, 3000)
    kinds = {kind for kind, _ in tally.verdicts}
    assert kinds == {"flipped", "zeroed", "misdirected", "stale", "lost", "truncated", "missing"}


def test_every_fault_of_the_identity_is_refused() -> None:
    """All 8 bits of each byte, each length, or nothing there at all."""
    life, disk = record("stops", "fsync")
    path = ROOT / "identity.json"
    verdicts: Counter[str] = Counter()
    for kind, _, offset, image in (*flips(disk.now(), path, 8), *truncations(disk.now(), path, 1)):
        verdict_ = verdict(life, image)
        assert verdict_ == "refused", (kind, offset, image.files[path])
        verdicts[verdict_] += 1
    assert verdict(life, with_file(disk.now(), path, None)) == "refused"
    assert verdicts.total() > 700


def test_no_fault_of_the_proof_costs_anything() -> None:
    life, disk = record("stops", "fsync")
    path = WAL / PROOF
    for _, _, _, image in (*flips(disk.now(), path, 8), *truncations(disk.now(), path, 1), *stale_sectors(disk, path)):
        assert verdict(life, image) == "harmless"
    assert verdict(life, with_file(disk.now(), path, None)) == "harmless"


def test_a_checkpoint_in_the_place_of_another_is_not_taken_for_it() -> None:
    """Whole and valid, but not what its name says: the log behind it may be trimmed up to the name."""
    life, disk = record("checkpoints", "fsync")
    image = disk.now()
    older, newest = sorted(path for path in image.files if path.suffix == ".ckpt")
    swapped = with_file(image, newest, image.files[older])
    assert verdict(life, swapped) == "reported"


def test_a_crash_at_any_point_of_a_repair_comes_to_the_same() -> None:
    """In every state that a crash may leave of the repair itself, for each way in which a log may be broken."""
    _, disk = record("truncations", "fsync")
    image = disk.now()
    first, *_, last = sorted(path for path in image.files if path.suffix == ".wal")
    states = 0
    for broken in (
        with_bytes(image, first, 700, bytes(512)),
        with_bytes(image, last, 0, bytes(512)),
        with_file(image, last, image.files[last][:300]),
        with_file(image, last, None),
        with_file(image, first, None),
    ):
        repaired = RecordingDisk(broken)
        expected = start(repaired)
        assert expected.repair and not expected.wiped
        for _, left in crash_states(repaired.trace, broken, Bounds(subset_max=6, samples=4)):
            found = start(RecordingDisk(left))
            assert found.repair and found.entries == expected.entries and found.hard_state == expected.hard_state
            assert found.incarnation == expected.incarnation
            states += 1
    print(f"\n{states} crash states of repairs")
    assert states > 100
