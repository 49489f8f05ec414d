"""From a data directory to a replica that may speak: the order in which a node comes to life.

    open the store -> refuse what must not be served -> a new incarnation, durable -> the machine, from the newest
    checkpoint -> the consensus core, as the disk remembers it -> the replica around it

Everything here is given its disk, its clock and its writer, so the simulator starts nodes by the same steps as the
process does. Not here: sockets, signals, the event loop.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from zcluster.config import FORMAT, FRESH, ClusterSpec, command
from zcluster.consensus.api import Recovered
from zcluster.consensus.api import Settings as CoreSettings
from zcluster.consensus.engines import engine_class
from zcluster.errors import StorageError
from zcluster.machines.api import Machine
from zcluster.machines.mux import ClusterMachine
from zcluster.node.checkpoints import Limits
from zcluster.node.leading import Leading
from zcluster.node.replica import Replica
from zcluster.storage.checkpoint import read_checkpoint
from zcluster.storage.disk import Disk
from zcluster.storage.recover import RecoveredStore, Store, open_store
from zcluster.storage.writer import Completion
from zcluster.types import (
    MS,
    NEVER,
    NO_REPLICA,
    PAXOS,
    Configuration,
    HardState,
    Identity,
    Nanoseconds,
    SnapshotMeta,
    WriteBatch,
)

if TYPE_CHECKING:
    from zcluster.consensus.engines import EngineClass

REAR_DELAY: Nanoseconds = 5 * MS  # measured, one caller: 10 to 15 % off a write; with 3 ms two thirds of that


class Refused(StorageError):
    """This data directory must not be served from; starting again does not help."""


class PumpedWriter(Protocol):
    """As much of a log writer as a start needs."""

    def submit(self, batch: WriteBatch) -> None: ...

    def pump(self) -> None: ...

    def completed(self) -> Completion: ...


def open_node_store(disk: Disk, spec: ClusterSpec, node: str, *, create: bool, boot_id: str) -> Store:
    """The data directory of `node`. `create` is how every process of a new cluster is started until all have been seen
    up, and a node that joins later until it has been; one that died in between finds its store made already.

    A node that joins later starts from an empty configuration: it cannot stand, and waits to be told."""
    directory = spec.data_directory(node)
    joins = spec.node(node).phase == FRESH
    exists = disk.exists(directory / "identity.json")
    if not create and not exists:
        raise Refused(
            f"{directory}: the data of {node} are missing; without them it must not take part again under this "
            f"identity: it might vote twice. {without_its_data(spec, node)}"
        )
    voters = () if joins else tuple(sorted(n.replica_id for n in spec.nodes))
    return open_store(
        disk,
        directory,
        identity=Identity(FORMAT, spec.cluster_id, spec.replica_id(node), spec.settings.engine, voters),
        boot_id=boot_id,
        create=not exists,
        segment_bytes=spec.settings.segment_bytes,
    )


def without_its_data(spec: ClusterSpec, node: str) -> str:
    """What to do about a node whose data are no more: it comes back as a new replica."""
    if len(spec.nodes) == 1:
        return f"It is the only node: restore its files, or start anew with `{command(spec.path)} down --purge`"
    return (
        "Restore its files, or let it come back empty and get everything from the others: "
        f"`{command(spec.path)} start {node} --wipe`"
    )


def check_usable(store: Store, spec: ClusterSpec, node: str) -> None:
    """Refuse to serve from data that could break promises made earlier. Raises: Refused."""
    found = store.recovered
    if found.wiped:
        raise Refused(
            f"{spec.data_directory(node)}: the vote and term of {node} are lost ({found.damage}); it must not take "
            f"part again under this identity. {without_its_data(spec, node)}"
        )
    # In Paxos a checkpoint may come from a replica that has promised more than this one ever had.
    exact = store.identity.engine != PAXOS
    if exact and found.checkpoint is not None and found.checkpoint.epoch > found.hard_state.term and not found.proven:
        raise Refused(
            f"{spec.data_directory(node)}: the log ends in term {found.hard_state.term}, before its checkpoint of term "
            f"{found.checkpoint.epoch}: the term and vote of {node} are lost; it must not take part again under this "
            f"identity. {without_its_data(spec, node)}"
        )
    configuration = found.checkpoint.configuration if found.checkpoint else Configuration(store.identity.voters)
    if found.repair and configuration.voters == (store.identity.replica_id,):
        raise Refused(
            f"{found.damage or 'a repair is pending'}: a one-node cluster has no peer to repair it from. The damaged "
            "files are kept as *.damaged; restore them, or start anew with `zcluster down --purge`."
        )


def hard_state(found: RecoveredStore) -> HardState:
    """Term and vote as the disk remembers them, but never below the term of the checkpoint.

    A checkpoint is received beside the log: its file may be whole while its term is still on the way to a disk that
    stalls. No vote of that term was given then, for a vote is on the disk before anybody hears of it.
    """
    if found.checkpoint is not None and found.checkpoint.epoch > found.hard_state.term:
        return HardState(found.checkpoint.epoch, NO_REPLICA)
    return found.hard_state


def take_incarnation(writer: PumpedWriter, wait: Callable[[], None], found: RecoveredStore) -> int:
    """Make a new incarnation durable before anything is said under it. `wait`: until the writer has news.
    Raises: StorageError."""
    incarnation = found.incarnation + 1
    writer.submit(WriteBatch(seq=0, incarnation=incarnation, hard_state=hard_state(found)))
    writer.pump()
    while not (completion := writer.completed()).syncs:
        if completion.error is not None:
            raise completion.error
        wait()
    return incarnation


def new_machine(spec: ClusterSpec) -> Machine:
    return ClusterMachine(spec.settings.key_bytes_max, spec.settings.value_bytes_max, spec.settings.sessions_max)


def restore_machine(disk: Disk, machine: Machine, found: RecoveredStore) -> Machine:
    """`machine` with the state of the checkpoint that was found, if any. Raises: StorageError, ValueError."""
    if found.checkpoint_path is not None:
        machine.restore(read_checkpoint(disk, found.checkpoint_path))
    return machine


def core_settings(spec: ClusterSpec) -> CoreSettings:
    settings = spec.settings
    return CoreSettings(
        election_timeout=settings.election_timeout_ms * MS,
        heartbeat_interval=settings.heartbeat_ms * MS,
        rear_delay=REAR_DELAY,
        lease_margin=settings.election_timeout_ms * MS // 10,
    )


def new_replica(
    spec: ClusterSpec,
    store: Store,
    machine: Machine,
    incarnation: int,
    verify_death: Callable[[int, int], bool],
    now: Nanoseconds,
    *,
    settings: CoreSettings | None = None,
    core_class: EngineClass | None = None,
) -> Replica:
    """The consensus core as the disk remembers it, and the replica around it."""
    replica_id = store.identity.replica_id
    initial = Configuration(voters=store.identity.voters)
    core = (core_class or engine_class(spec.settings.engine))(
        replica_id,
        incarnation,
        settings or core_settings(spec),
        recovered_core(store.recovered, initial),
        random.Random(f"{spec.cluster_id}.{replica_id}.{incarnation}"),
        now,
    )
    return Replica(
        core,
        machine,
        Limits(
            checkpoint_bytes=spec.settings.checkpoint_bytes,
            checkpoint_interval=spec.settings.checkpoint_seconds * 1000 * MS,
        ),
        cluster_id=spec.cluster_id,
        applied=store.recovered.checkpoint or SnapshotMeta(0, 0, initial),
        now=now,
        verify_death=verify_death,
        leading=Leading(replica_id, spec.preferred_replica(), spec.settings.election_timeout_ms * MS),
        digest_interval=spec.settings.verify_seconds * 1000 * MS,
    )


def recovered_core(found: RecoveredStore, initial: Configuration) -> Recovered:
    """What the disk remembered, in the core's words."""
    ended_at = NEVER  # at the latest when this process took the lock of the data directory
    if not found.same_boot:
        ended_at = 0  # all processes of an earlier boot are dead, leaders as well
    elif found.clean_stop and found.stopped_at:
        ended_at = found.stopped_at
    return Recovered(
        hard_state=hard_state(found),
        configuration=found.checkpoint.configuration if found.checkpoint else initial,
        snapshot=found.checkpoint,
        entries=found.entries,
        repair=found.repair,
        suspect_after=found.suspect_after,
        chosen=found.chosen,
        bootstrap=found.fresh,
        hold_votes=not found.fresh,
        stopped_at=ended_at,
    )


def last_index(found: RecoveredStore) -> int:
    if found.entries:
        return found.entries[-1].index
    return found.checkpoint.index if found.checkpoint else 0
