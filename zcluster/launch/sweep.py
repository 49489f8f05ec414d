"""Ending a cluster without a supervisor's help.

`python -m zcluster.launch.sweep CLUSTER_DIRECTORY` is the last line of defence: a child of a private cluster turns into
it (exec) when it finds that the owner is gone and the supervisor has not ended it in time. The first one to get the
cluster's lock ends everybody else, stopped processes included, and removes the files; the others just exit.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from zcluster.config import ClusterSpec, load_spec
from zcluster.errors import Conflict, Error, StorageError
from zcluster.launch import files
from zcluster.launch import process as system

LOCK_S = 2.0


def sweep(spec: ClusterSpec, *, spare: int | None = None) -> None:
    """Without the supervisor's help: SIGKILL whatever lives of a cluster and remove what it should not leave behind.

    `spare`: a pid left alone.
    """
    end_processes(spec.path, spare=spare, strays=spec.ephemeral)
    with suppress(StorageError):  # a disk that has become read-only, say: nobody is here to be told
        files.remove_traces(spec.path, spec.socket_directory, everything=spec.ephemeral)


def end_processes(directory: Path, *, spare: int | None = None, strays: bool = True) -> None:
    """SIGKILL whatever lives of the cluster in a directory, and wait until it is dead.

    Args:
        spare: a pid left alone.
        strays: also what no run file names, and what tasks have started in sessions of their own.
    """
    found = [system.Process.adopt(i) for i in files.read_run_files(directory).values() if i.pid != spare]
    processes = [p for p in found if p is not None]
    processes.sort(key=lambda p: p.identity.kind != "supervisor")  # first: it would start the others again
    for process in processes:
        system.kill_pid(process.pid)
    if strays:
        marked = [(m.get("ZCLUSTER_PROCESS") != "supervisor", p) for p, m in system.find_processes(directory)]
        for _, pid in sorted(marked):
            if pid != spare:
                system.kill_pid(pid)
    give_up = time.monotonic() + 5
    for process in processes:
        process.exited(give_up - time.monotonic())
        process.close()


def main(arguments: list[str]) -> int:
    if not arguments:
        sys.stderr.write("zcluster starts this by itself; use: zcluster down\n")
        return 2
    directory = Path(arguments[0]).absolute()
    try:
        owner = system.open_owner((directory / "run" / "owner").read_text())
        spec = load_spec(directory)
    except (OSError, ValueError, Error):
        return 0  # somebody has been faster
    if owner is not None:
        return 0  # the owner lives: nothing to do here
    try:
        held = _take_lock(directory)
    except Conflict:
        return 0
    sweep(spec, spare=os.getpid())
    files.unlock(held)
    return 0


def _take_lock(directory: Path) -> int:
    """The cluster's lock, from a supervisor too if it has not done its work. Raises: Conflict."""
    give_up = time.monotonic() + LOCK_S
    while True:
        try:
            return files.lock(directory / "lock")
        except Conflict:
            if time.monotonic() > give_up:
                raise
        identity = files.read_run_file(directory, "supervisor")
        supervisor = system.Process.adopt(identity) if identity is not None else None
        if supervisor is not None:
            system.kill_pid(supervisor.pid)
            supervisor.exited(LOCK_S)
            supervisor.close()
        else:
            time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
