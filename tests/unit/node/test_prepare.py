"""From a data directory to a replica: what a start takes from the disk, and what it refuses."""

from __future__ import annotations

import random

import msgspec
import pytest

from tests.unit.storage.faulty_disk import FaultyDisk
from zcluster.config import FRESH, ClusterSpec, NodeSpec, make_settings
from zcluster.consensus.api import Settings
from zcluster.consensus.raft import Raft
from zcluster.machines.mux import ClusterMachine
from zcluster.node.start import (
    Refused,
    check_usable,
    hard_state,
    new_replica,
    open_node_store,
    recovered_core,
    take_incarnation,
)
from zcluster.storage.checkpoint import CheckpointWriter
from zcluster.storage.recover import RecoveredStore, Store
from zcluster.storage.writer import InlineWriter
from zcluster.types import MS, NEVER, Configuration, HardState, SnapshotMeta, WriteBatch

SPEC = ClusterSpec(
    format=1,
    name="c",
    cluster_id="c-1",
    settings=make_settings(nodes=3),
    nodes=(NodeSpec("n1", 1), NodeSpec("n2", 2), NodeSpec("n3", 3)),
    socket_directory="/nowhere",
    directory="/cluster",
)


def open_store(disk: FaultyDisk, spec: ClusterSpec = SPEC, *, create: bool = False) -> Store:
    return open_node_store(disk, spec, "n1", create=create, boot_id="boot-1")


def core(store: Store, spec: ClusterSpec = SPEC) -> Raft:
    replica = new_replica(spec, store, ClusterMachine(16, 1024, 16), 1, lambda replica, incarnation: False, 0)
    assert isinstance(replica.core, Raft)
    return replica.core


def close(store: Store) -> None:
    store.wal.close()
    store.close()


def test_the_initial_configuration_is_that_of_the_creation_whatever_the_description_says_later() -> None:
    disk = FaultyDisk()
    store = open_store(disk, create=True)
    assert core(store).membership.current == Configuration((1, 2, 3))
    close(store)
    disk.power_cut()
    grown = msgspec.structs.replace(SPEC, nodes=(*SPEC.nodes, NodeSpec("n4", 4), NodeSpec("n5", 5)))
    assert core(open_store(disk, grown), grown).membership.current == Configuration((1, 2, 3))


def test_a_restart_holds_its_vote_and_the_first_start_does_not() -> None:
    disk = FaultyDisk()
    store = open_store(disk, create=True)
    assert not core(store).promise.binds(0)
    store.wal.append([WriteBatch(seq=0, incarnation=1)])
    store.wal.sync()
    close(store)
    assert core(open_store(disk)).promise.binds(0)


def test_how_long_a_restart_holds_its_vote() -> None:
    timeout, now = SPEC.settings.election_timeout_ms * MS, 1 << 50
    promised = RecoveredStore(incarnation=1, same_boot=True)
    for found, until in (
        (promised, now + timeout),
        (msgspec.structs.replace(promised, clean_stop=True, stopped_at=now - 5), now - 5 + timeout),
        (msgspec.structs.replace(promised, clean_stop=True), now + timeout),
        (msgspec.structs.replace(promised, same_boot=False, clean_stop=True, stopped_at=now - 5), timeout),
        (msgspec.structs.replace(promised, fresh=True), 0),
    ):
        settings = Settings(election_timeout=timeout)
        core = Raft(1, 2, settings, recovered_core(found, Configuration((1, 2, 3))), random.Random(1), now)
        assert core.promise.until == until


def test_a_damaged_lone_voter_is_refused_and_one_of_several_is_not() -> None:
    for nodes, refused in ((SPEC.nodes[:1], True), (SPEC.nodes, False)):
        spec = msgspec.structs.replace(SPEC, nodes=nodes)
        store = open_store(FaultyDisk(), spec, create=True)
        store.recovered = msgspec.structs.replace(store.recovered, repair=True)
        if refused:
            with pytest.raises(Refused, match="no peer to repair it from"):
                check_usable(store, spec, "n1")
        else:
            check_usable(store, spec, "n1")


def received(disk: FaultyDisk, *, term: int, epoch: int) -> Store:
    """A store in `term` beside which a leader's checkpoint of a later term is whole, when the power went."""
    store = open_store(disk, create=True)
    store.wal.append([WriteBatch(seq=0, incarnation=1, hard_state=HardState(term, 2))])
    store.wal.sync()
    writer = CheckpointWriter(disk, store.checkpoints, SnapshotMeta(40, epoch, Configuration((1, 2, 3)), 5), "c-1")
    writer.write(b"state")
    writer.finish()
    close(store)
    disk.power_cut()
    return open_store(disk)


def test_a_received_checkpoint_of_a_term_that_never_reached_the_disk_is_no_reason_to_refuse() -> None:
    """The vote of term 3 is proven to be the last one, so in term 5 none was given."""
    store = received(FaultyDisk(), term=3, epoch=5)
    check_usable(store, SPEC, "n1")
    assert hard_state(store.recovered) == HardState(5, 0)
    restored = core(store)
    assert (restored.term, restored.voted_for, restored.commit_index) == (5, 0, 40)
    writer = InlineWriter(store.wal, "fsync", lambda: None, lambda: 1, immediate=False)
    assert take_incarnation(writer, lambda: None, store.recovered) == 2
    writer.close(False)
    store.close()


def test_a_checkpoint_of_a_later_term_beside_a_log_that_nothing_confirms_is_refused() -> None:
    disk = FaultyDisk()
    store = received(disk, term=3, epoch=5)
    close(store)
    disk.unlink(store.directory / "wal" / "proof")
    store = open_store(disk)
    with pytest.raises(Refused, match="the term and vote of n1 are lost"):
        check_usable(store, SPEC, "n1")


def test_a_vote_is_kept_where_the_checkpoint_is_of_its_own_term() -> None:
    assert hard_state(received(FaultyDisk(), term=5, epoch=5).recovered) == HardState(5, 2)


def test_a_node_that_joins_later_starts_from_an_empty_configuration_and_cannot_stand() -> None:
    grown = msgspec.structs.replace(SPEC, nodes=(NodeSpec("n1", 4, FRESH), *SPEC.nodes[1:]))
    joining = core(open_store(FaultyDisk(), grown, create=True), grown)
    assert joining.membership.current == Configuration()
    assert joining.next_deadline() == NEVER


@pytest.mark.parametrize("count", [1, 3])
def test_a_node_without_its_data_says_what_helps(count: int) -> None:
    spec = msgspec.structs.replace(SPEC, nodes=SPEC.nodes[:count])
    with pytest.raises(Refused, match="data of n1 are missing") as refused:
        open_store(FaultyDisk(), spec)
    assert ("start n1 --wipe" in str(refused.value)) == (count > 1), "of the only copy nothing comes back"
