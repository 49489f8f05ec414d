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
from dataclasses import replace
from pathlib import Path

import pytest

from tests.crash.faults import all_faults, flips, stale_sectors, truncations, with_bytes, with_file
from tests.crash.workloads import record
from tests.unit.storage.lives import Life
from tests.unit.storage.stores import CHECKPOINTS, ROOT, WAL, open_at
from zcluster.errors import StorageError
from zcluster.sim.crash_points import Bounds, Image, RecordingDisk, crash_states
from zcluster.storage.checkpoint import read_checkpoint
from zcluster.storage.proof import PROOF
from zcluster.storage.recover import RecoveredStore


def start(disk: RecordingDisk) -> RecoveredStore:
    store = open_at(disk, boot="boot-2")
    store.wal.close()
    store.close()
    return store.recovered


def verdict(life: Life, image: Image) -> str:
    """What came of a fault. Asserts: nothing false, nothing silent, and the same when recovered again."""
    disk = RecordingDisk(image)
    try:
        found = start(disk)
    except StorageError:
        return "refused"
    if found.wiped:
        assert found.damage is not None
        return "refused"
    if found.checkpoint_path is not None:
        assert sum(1 for _ in read_checkpoint(disk, found.checkpoint_path))
    again = start(disk)
    assert (again.entries, again.checkpoint, again.hard_state) == (found.entries, found.checkpoint, found.hard_state)
    assert again.repair == found.repair
    if found.repair:
        assert found.damage is not None
        assert_true_part(life, found)
        return "repair"
    assert life.model.admits(found) or replace(life.model, checkpoint=0).admits(found), found
    return "harmless" if found.damage is None else "reported"


def assert_true_part(life: Life, found: RecoveredStore) -> None:
    """What is left is what the store held at some time before, and the hard state is the newest all the same."""
    newest = life.model
    for earlier in life.history:
        part = replace(
            earlier,
            checkpoint=0,
            base=0,
            repair=True,
            hard_state=newest.hard_state,
            incarnation=newest.incarnation,
        )
        if part.admits(found):
            return
    raise AssertionError(found)


def damaged_files(image: Image) -> list[Path]:
    return sorted(path for path in image.files if path.parent in (WAL, CHECKPOINTS) and path.suffix != ".spare")


def inject(name: str, *, bits: int, truncation_step: int, stride: int) -> Counter[tuple[str, str]]:
    life, disk = record(name, "fsync")
    silent: list[str] = []
    counts: Counter[tuple[str, str]] = Counter()
    for path in damaged_files(disk.now()):
        faults = list(all_faults(disk, path, bits=bits, truncation_step=truncation_step))
        for kind, _, offset, image in [*faults[:-1:stride], faults[-1]]:  # the last: the file is missing
            try:
                counts[kind, verdict(life, image)] += 1
            except AssertionError as error:
                silent.append(f"{kind} {path.name} at {offset}: {error}")
    total = sum(counts.values())
    print(f"\n{name}: {total + len(silent)} injections, {len(silent)} silent, {dict(sorted(counts.items()))}")
    assert not silent, "\n".join(silent[:20])
    return counts


@pytest.mark.parametrize("name", ["checkpoints", "truncations", "installs", "stops"])
def test_a_sample_of_all_single_faults_is_detected(name: str) -> None:
    assert inject(name, bits=1, truncation_step=97, stride=101).total() > 100


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checkpoints", "truncations", "installs", "stops"])
def test_every_single_fault_of_the_log_and_the_checkpoints_is_detected(name: str) -> None:
    counts = inject(name, bits=1, truncation_step=16, stride=4)
    assert counts.total() > 3000
    assert {kind for kind, _ in counts} == {"flipped", "zeroed", "misdirected", "stale", "lost", "truncated", "missing"}


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
