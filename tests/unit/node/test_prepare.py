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
from zcluster.node.start import Refused, check_usable, new_replica, open_node_store, recovered_core
from zcluster.storage.recover import RecoveredStore, Store
from zcluster.types import MS, NEVER, Configuration, WriteBatch

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
