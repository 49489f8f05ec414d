"""A replica whose disk misbehaves on demand: `python faulty_node.py CLUSTER_DIRECTORY NODE [--create]`.

While `<cluster>/run/<node>.stall` exists, a sync waits for a lock on that file; with `.slow` it takes so many ms more
as the file says; with `.eio` one sync of the log fails, and the file goes; with `.enospc` a write
fails, after as many of its bytes as the file says; with `.lag` every entry takes 0.4 s to apply, in the event loop.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zcluster.machines.mux import ClusterMachine
from zcluster.node.__main__ import main
from zcluster.storage.disk import PosixDisk

RUN, NODE = Path(sys.argv[1]) / "run", sys.argv[2]
real_sync, real_write, real_apply = PosixDisk.fdatasync, PosixDisk.pwritev, ClusterMachine.apply


def fdatasync(disk: PosixDisk, handle: int) -> None:
    if os.readlink(f"/proc/self/fd/{handle}").endswith(".wal"):  # a failed checkpoint would not stop the node
        try:
            (RUN / f"{NODE}.eio").unlink()
        except FileNotFoundError:
            pass
        else:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
    try:
        with open(RUN / f"{NODE}.stall", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
    except FileNotFoundError:
        pass
    try:
        time.sleep(int((RUN / f"{NODE}.slow").read_text() or 0) / 1000)
    except FileNotFoundError:
        pass
    real_sync(disk, handle)


def pwritev(disk: PosixDisk, handle: int, buffers: Sequence[Any], offset: int) -> None:
    try:
        left = int((RUN / f"{NODE}.enospc").read_text() or 0)
    except FileNotFoundError:
        real_write(disk, handle, buffers, offset)
        return
    real_write(disk, handle, [b"".join(buffers)[:left]], offset)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def apply(machine: ClusterMachine, index: int, log_time_ms: int, frames: list[bytes]) -> list[bytes]:
    if (RUN / f"{NODE}.lag").exists():
        time.sleep(0.4)
    return real_apply(machine, index, log_time_ms, frames)


ClusterMachine.apply = apply  # type: ignore[method-assign]
PosixDisk.fdatasync = fdatasync  # type: ignore[method-assign]
PosixDisk.pwritev = pwritev  # type: ignore[method-assign]
sys.exit(main(sys.argv[1:]))
