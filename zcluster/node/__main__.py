"""`python -m zcluster.node CLUSTER_DIRECTORY NODE [--create]`: one replica process.

Exit codes: 0 stopped cleanly; 74 the disk failed; 78 the data directory is refused (missing, another cluster's, newer,
damaged beyond local repair). For the last two the reason is also in `run/<node>.error`.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from zcluster import wire
from zcluster.config import ClusterSpec, load_spec
from zcluster.entry import check_arguments
from zcluster.errors import Error, StorageError
from zcluster.node import start
from zcluster.node.journal import journal
from zcluster.node.replica import Replica
from zcluster.node.server import Server
from zcluster.storage.disk import Disk, PosixDisk
from zcluster.storage.writer import Writer
from zcluster.transport.liveness import exit_with_owner, start_ticks
from zcluster.transport.peers import Envelope
from zcluster.transport.wakeup import Wakeup
from zcluster.types import Nanoseconds

EXIT_DISK = 74
EXIT_REFUSED = 78
SWITCH_INTERVAL_S = 0.0001  # the log writer's thread must get the interpreter back at once


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
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    store = start.open_node_store(disk, spec, node, create=create, boot_id=boot_id)
    found = store.recovered
    start.check_usable(store, spec, node)
    wakeup = Wakeup()
    writer = Writer(store.wal, spec.settings.durability, wakeup.set)
    incarnation = start.take_incarnation(writer, wakeup.wait, found)
    wakeup.clear()
    new_machine = partial(start.new_machine, spec)
    machine = start.restore_machine(disk, new_machine(), found)

    def make_replica(verify_death: Callable[[int, int], bool], now: Nanoseconds) -> Replica:
        return start.new_replica(spec, store, machine, incarnation, verify_death, now)

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
    journal(node, f"incarnation {incarnation} started, pid {pid}, log up to {start.last_index(found)}")
    return server


if __name__ == "__main__":
    check_arguments(sys.argv[1:], "zcluster.node CLUSTER_DIRECTORY NODE [--create]")
    sys.exit(main(sys.argv[1:]))
