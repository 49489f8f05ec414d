"""What the store keeps for Paxos: slots in any order, what is chosen, and a doubt that ends only by the core's word."""

from __future__ import annotations

from pathlib import Path

import pytest

from zcluster.errors import WrongCluster
from zcluster.storage.disk import PosixDisk
from zcluster.storage.recover import RecoveredStore, open_store
from zcluster.types import Entry, HardState, Identity, WriteBatch


def identity(engine: str = "paxos") -> Identity:
    return Identity(1, "c", 1, engine, (1, 2, 3))


def life(
    path: Path,
    *batches: WriteBatch,
    boot: str = "b",
    mode: str = "fsync",
    create: bool = False,
    engine: str = "paxos",
) -> RecoveredStore:
    """Open, write the batches in frames of their own, end without a clean stop."""
    store = open_store(PosixDisk(), path, identity=identity(engine), boot_id=boot, create=create)
    store.wal.begin_mode(mode)
    for batch in batches:
        store.wal.append([batch])
    store.wal.sync()
    store.wal.close()
    store.close()
    return store.recovered


def test_slots_come_back_with_their_holes_the_later_value_and_what_is_chosen(tmp_path: Path) -> None:
    first = WriteBatch(1, HardState(5, 1), entries=(Entry(1, 5, 0, b"a"), Entry(4, 5, 0, b"d")))
    second = WriteBatch(2, HardState(9, 1), entries=(Entry(2, 9, 0, b"b"), Entry(1, 9, 0, b"A")), chosen=2)
    life(tmp_path, first, second, WriteBatch(3, entries=(Entry(6, 9, 0, b"f"),)), create=True)
    found = life(tmp_path)
    assert [(e.index, e.epoch, e.data) for e in found.entries] == [
        (1, 9, b"A"),
        (2, 9, b"b"),
        (4, 5, b"d"),
        (6, 9, b"f"),
    ]
    assert found.chosen == 2


def test_after_a_power_cut_a_higher_ballot_in_the_log_does_not_end_the_doubt_but_the_cores_word_does(
    tmp_path: Path,
) -> None:
    entry = WriteBatch(1, HardState(5, 1), entries=(Entry(1, 5, 0, b"a"),))
    life(tmp_path, entry, mode="none", create=True)
    assert life(tmp_path, WriteBatch(1, HardState(9, 1)), boot="after", mode="none").suspect_after == 5
    life(tmp_path, WriteBatch(1, entries=(Entry(2, 9, 0, b"b"),)), boot="after", mode="none")
    assert life(tmp_path, WriteBatch(1, sound=True), boot="after", mode="none").suspect_after == 5
    assert life(tmp_path, boot="after", mode="none").suspect_after is None


@pytest.mark.parametrize(("wrote", "opens"), [("paxos", "raft"), ("raft", "paxos")])
def test_the_other_engine_is_refused_with_what_to_do(tmp_path: Path, wrote: str, opens: str) -> None:
    life(tmp_path, create=True, engine=wrote)
    with pytest.raises(WrongCluster, match=f"written by the engine {wrote}, .* `--engine {wrote}`, or make a new one"):
        open_store(PosixDisk(), tmp_path, identity=identity(opens), boot_id="b", create=False)
