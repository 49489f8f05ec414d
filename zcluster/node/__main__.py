"""`python -m zcluster.node CLUSTER_DIRECTORY NODE [--create]`: one replica process.

Exit codes: 0 stopped cleanly; 74 the disk failed; 78 the data directory is refused (missing, another cluster's, newer,
damaged beyond local repair). For the last two the reason is also in `run/<node>.error`.
"""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

from zcluster import wire
from zcluster.config import FORMAT, ClusterSpec, load_spec
from zcluster.consensus.api import Recovered
from zcluster.consensus.api import Settings as CoreSettings
from zcluster.consensus.raft import Raft
from zcluster.errors import Error, StorageError
from zcluster.machines.api import Machine
from zcluster.machines.mux import ClusterMachine
from zcluster.node.checkpoints import Limits
from zcluster.node.journal import journal
from zcluster.node.replica import Replica
from zcluster.node.server import Server
from zcluster.storage.checkpoint import read_checkpoint
from zcluster.storage.disk import Disk, PosixDisk
from zcluster.storage.recover import RecoveredStore, Store, open_store
from zcluster.storage.writer import Writer
from zcluster.transport.liveness import exit_with_owner, start_ticks
from zcluster.transport.peers import Envelope
from zcluster.transport.wakeup import Wakeup
from zcluster.types import MS, NEVER, Configuration, Identity, Nanoseconds, SnapshotMeta, WriteBatch

EXIT_DISK = 74
EXIT_REFUSED = 78
REAR_DELAY: Nanoseconds = 5 * MS  # measured, one caller: 10 to 15 % off a write; with 3 ms two thirds of that
SWITCH_INTERVAL_S = 0.0001  # the log writer's thread must get the interpreter back at once


class Refused(StorageError):
    """This data directory must not be served from; starting again does not help."""


def main(arguments: list[str]) -> int:
    directory, node = arguments[0], arguments[1]
    error_file = Path(directory) / "run" / f"{node}.error"
    serving = False
    try:
        spec = load_spec(directory)
        error_file.unlink(missing_ok=True)
        server = prepare(spec, node, create="--create" in arguments[2:])
        serving = True
        server.run()
    except (Error, OSError, MemoryError, RecursionError) as error:
        text = f"{type(error).__name__}: {error}"
        journal(node, text)
        if not isinstance(error, StorageError):
            raise
        try:
            error_file.write_text(text + "\n")
        except OSError:
            pass
        return EXIT_DISK if serving else EXIT_REFUSED
    return 0


def prepare(spec: ClusterSpec, node: str, *, create: bool) -> Server:
    """Open the store, take a new incarnation, restore the state machine, build the core. Raises: StorageError."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    exit_with_owner()
    disk: Disk = PosixDisk()
    store = open_node_store(disk, spec, node, create=create)
    found = store.recovered
    check_usable(store, spec, node)
    wakeup = Wakeup()
    writer = Writer(store.wal, spec.settings.durability, wakeup.set)
    incarnation = found.incarnation + 1
    take_incarnation(writer, wakeup, incarnation, found)

    def new_machine() -> Machine:
        return ClusterMachine(spec.settings.key_bytes_max, spec.settings.value_bytes_max, spec.settings.sessions_max)

    machine = new_machine()
    if found.checkpoint_path is not None:
        machine.restore(read_checkpoint(disk, found.checkpoint_path))

    def make_replica(verify_death: Callable[[int, int], bool], now: Nanoseconds) -> Replica:
        return new_replica(spec, store, machine, incarnation, verify_death, now)

    pid = os.getpid()
    me = Envelope(
        protocol=wire.PROTOCOL,
        cluster_id=spec.cluster_id,
        sender=store.identity.replica_id,
        incarnation=incarnation,
        receiver=0,
        pid=pid,
        start_ticks=start_ticks(pid) or 0,
    )
    server = Server(
        spec,
        node,
        disk=disk,
        store=store,
        writer=writer,
        wakeup=wakeup,
        me=me,
        make_replica=make_replica,
        new_machine=new_machine,
    )
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    journal(node, f"incarnation {incarnation} started, pid {pid}, log up to {last_index(found)}")
    return server


def open_node_store(disk: Disk, spec: ClusterSpec, node: str, *, create: bool) -> Store:
    """The data directory of `node`. `create` is how every process of a new cluster is started until all have been seen
    up; one that died in between finds its store made already."""
    directory = spec.data_directory(node)
    voters = tuple(sorted(n.replica_id for n in spec.nodes))
    return open_store(
        disk,
        directory,
        identity=Identity(FORMAT, spec.cluster_id, spec.replica_id(node), spec.settings.engine, voters),
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        create=create and not disk.exists(directory / "identity.json"),
        segment_bytes=spec.settings.segment_bytes,
    )


def new_replica(
    spec: ClusterSpec,
    store: Store,
    machine: Machine,
    incarnation: int,
    verify_death: Callable[[int, int], bool],
    now: Nanoseconds,
) -> Replica:
    """The consensus core as the disk remembers it, and the replica around it."""
    settings, replica_id = spec.settings, store.identity.replica_id
    initial = Configuration(voters=store.identity.voters)
    core = Raft(
        replica_id,
        incarnation,
        CoreSettings(
            election_timeout=settings.election_timeout_ms * MS,
            heartbeat_interval=settings.heartbeat_ms * MS,
            rear_delay=REAR_DELAY,
            lease_margin=settings.election_timeout_ms * MS // 10,
        ),
        recovered_core(store.recovered, initial),
        random.Random(f"{spec.cluster_id}.{replica_id}.{incarnation}"),
        now,
    )
    return Replica(
        core,
        machine,
        Limits(checkpoint_bytes=settings.checkpoint_bytes, checkpoint_interval=settings.checkpoint_seconds * 1000 * MS),
        cluster_id=spec.cluster_id,
        applied=store.recovered.checkpoint or SnapshotMeta(0, 0, initial),
        now=now,
        verify_death=verify_death,
    )


def recovered_core(found: RecoveredStore, initial: Configuration) -> Recovered:
    """What the disk remembered, in the core's words."""
    ended_at = NEVER  # at the latest when this process took the lock of the data directory
    if not found.same_boot:
        ended_at = 0  # all processes of an earlier boot are dead, leaders as well
    elif found.clean_stop and found.stopped_at:
        ended_at = found.stopped_at
    return Recovered(
        hard_state=found.hard_state,
        configuration=found.checkpoint.configuration if found.checkpoint else initial,
        snapshot=found.checkpoint,
        entries=found.entries,
        repair=found.repair,
        suspect_after=found.suspect_after,
        bootstrap=found.fresh,
        hold_votes=not found.fresh,
        stopped_at=ended_at,
    )


def last_index(found: RecoveredStore) -> int:
    if found.entries:
        return found.entries[-1].index
    return found.checkpoint.index if found.checkpoint else 0


def check_usable(store: Store, spec: ClusterSpec, node: str) -> None:
    """Refuse to serve from data that could break promises made earlier. Raises: Refused."""
    found = store.recovered
    if found.wiped:
        raise Refused(
            f"{spec.data_directory(node)}: the vote and term of {node} are lost ({found.damage}); it must not take "
            "part again under this identity. The other nodes go on without it."
        )
    if found.checkpoint is not None and found.checkpoint.epoch > found.hard_state.term:
        raise Refused(
            f"{spec.data_directory(node)}: the log ends in term {found.hard_state.term}, before its checkpoint of term "
            f"{found.checkpoint.epoch}: the term and vote of {node} are lost; it must not take part again under this "
            "identity. Restore its files; the other nodes go on without it."
        )
    configuration = found.checkpoint.configuration if found.checkpoint else Configuration(store.identity.voters)
    if found.repair and configuration.voters == (store.identity.replica_id,):
        raise Refused(
            f"{found.damage or 'a repair is pending'}: a one-node cluster has no peer to repair it from. The damaged "
            "files are kept as *.damaged; restore them, or start anew with `zcluster down --purge`."
        )


def take_incarnation(writer: Writer, wakeup: Wakeup, incarnation: int, found: RecoveredStore) -> None:
    """Make the new incarnation durable before anything is said under it. Raises: StorageError."""
    writer.submit(WriteBatch(seq=0, incarnation=incarnation, hard_state=found.hard_state))
    writer.pump()
    while not (completion := writer.completed()).syncs:
        if completion.error is not None:
            raise completion.error
        wakeup.wait()
    wakeup.clear()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
