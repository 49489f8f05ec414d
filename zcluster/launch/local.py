"""`LocalCluster`: a private cluster that belongs to one Python process and ends with it.

    with LocalCluster(nodes=3) as cluster: ...          ready when `with` returns; nothing is left when it ends

However the process ends: on exit, by SIGKILL, with the supervisor dead or alive. The supervisor watches it by pidfd.
Only the process that made it can close it; in a forked child closing does nothing. Threads: usable from any; one of
its own waits, asleep, for the supervisor's end, to start another one if that was no clean end.
"""

from __future__ import annotations

import atexit
import os
import select
import threading
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgspec

from zcluster.config import ClusterSpec, load_spec, make_settings
from zcluster.errors import Conflict, Error, NotRunning
from zcluster.launch import files, layout
from zcluster.launch import process as system
from zcluster.launch.cluster import Cluster
from zcluster.launch.control import Control, collect_supervisors
from zcluster.launch.sweep import sweep

READY_S: Final = 60.0
STOP_S: Final = 5.0
"""For a clean stop of a cluster whose data are kept; then SIGKILL, which loses nothing acknowledged either."""


class LocalCluster(Cluster):
    """Start a private cluster and return when it is ready.

    Args:
        nodes: 1 to 9.
        workers: per node.
        engine: the consensus protocol.
        durability: fsync, interval:10ms or none.
        balance: how tasks are spread: round_robin, random, least_loaded, power_of_two.
        transport: ipc, or tcp (127.0.0.1, encrypted).
        data_dir: keep the data there; a later LocalCluster on it goes on with them. Default: a private directory in
            $ZCLUSTER_HOME or the temporary directory, removed at the end.
        restore: a backup file to begin with. Settings that are no parameter here are then those of the cluster that was
            backed up.
        settings: any other field of `config.Settings`.
    Raises: DamagedBackup, FormatTooNew (restore); Conflict (data_dir: used by a running cluster, made with other
        settings, or not empty although there is something to restore); InvalidInput, Timeout, Degraded. Nothing is
        left running then.
    """

    def __init__(
        self,
        nodes: int = 3,
        workers: int = 1,
        engine: str = "raft",
        durability: str = "fsync",
        balance: str = "round_robin",
        transport: str = "ipc",
        data_dir: str | os.PathLike[str] | None = None,
        restore: str | os.PathLike[str] | None = None,
        **settings: Any,
    ) -> None:
        system.require_linux()
        given = {
            "nodes": nodes,
            "workers": workers,
            "engine": engine,
            "durability": durability,
            "balance": balance,
            "transport": transport,
            **settings,
        }
        wanted = make_settings(**given)
        self._creator_pid = os.getpid()
        self._closed = True
        self._closing = threading.Lock()
        if restore is not None:
            spec = _plant(Path(restore), data_dir, given)
        elif data_dir is None:
            path = layout.ephemeral_directory()
            try:
                spec = layout.create(path.name[:64], wanted, directory=path, ephemeral=True)
            except BaseException:
                files.remove_tree(path)
                raise
        else:
            spec = _open_kept(Path(data_dir), msgspec.structs.asdict(wanted))
        super().__init__(spec.directory)
        self._closed = False
        try:
            self._owner = system.owner_text()
            self.control.start(owner=self._owner)
            self._guardian = _Guardian(self.control, self._owner)
            _open_clusters.add(self)
            self.wait_healthy(READY_S)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it: no process and, without `data_dir`, no file is left. Idempotent; nothing in a forked child."""
        if os.getpid() != self._creator_pid or self._closed:
            return
        with self._closing:
            if self._closed:
                return
            self._closed = True
            _open_clusters.discard(self)
            guardian = getattr(self, "_guardian", None)
            if guardian is not None:
                guardian.stop()
            ended = False
            try:
                ended = self.control.down(0 if self.spec.ephemeral else STOP_S)
            except (Error, OSError):
                pass  # `sweep` does not ask anybody
            if not ended:
                sweep(self.spec)
            collect_supervisors()

    @property
    def closed(self) -> bool:
        return self._closed

    def down(self, timeout: float = 10.0, *, purge: bool = False) -> bool:
        """`close`, and with `purge` the data go too."""
        ran = not self._closed
        self.close()
        if purge and os.getpid() == self._creator_pid:
            files.remove_tree(self.directory)
        return ran

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_closing"):
            self.close()


_open_clusters: weakref.WeakSet[LocalCluster] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for cluster in list(_open_clusters):
        cluster.close()


def _plant(backup: Path, data_dir: str | os.PathLike[str] | None, given: dict[str, Any]) -> ClusterSpec:
    """A stopped cluster with the state of a backup, in a new private directory or in one that the user keeps."""
    from zcluster.launch.backup import plant_backup

    backup = backup.expanduser().absolute()
    if data_dir is not None:
        spec, _ = plant_backup(backup, "local", Path(data_dir).expanduser().absolute(), given)
    else:
        path = layout.ephemeral_directory()
        try:
            spec, _ = plant_backup(backup, path.name[:64], path, given, ephemeral=True)
        except BaseException:
            files.remove_tree(path)
            raise
    return layout.prepare_start(spec, {})


def _open_kept(path: Path, given: dict[str, Any]) -> ClusterSpec:
    """The cluster in a directory that the user keeps, made ready to start; a new one if there is none."""
    path = path.expanduser().absolute()
    try:
        spec = load_spec(path)
    except NotRunning:
        return layout.create("local", make_settings(**given), directory=path)
    if Control(path).running():
        raise Conflict(f"the cluster in {path} is in use by another process")
    return layout.prepare_start(spec, given)


class _Guardian:
    """A sleeping thread that starts a new supervisor when the old one was killed."""

    def __init__(self, control: Control, owner: str) -> None:
        self._control = control
        self._owner = owner
        self._read_end, self._write_end = os.pipe()
        self._thread = threading.Thread(target=self._watch, name="zcluster-guardian", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while True:
            supervisor = self._control.supervisor()
            if supervisor is None:
                try:
                    supervisor = self._control.ensure(owner=self._owner)
                except (Error, OSError):  # nothing runs any more: `down`, by this process or by a command
                    return
            poller = select.poll()
            poller.register(supervisor.pidfd, select.POLLIN)
            poller.register(self._read_end, select.POLLIN)
            ready = [descriptor for descriptor, _ in poller.poll()]
            supervisor.close()
            if self._read_end in ready:
                return

    def stop(self) -> None:
        """Returns when the thread has ended."""
        os.write(self._write_end, b"x")
        if threading.current_thread() is not self._thread:
            self._thread.join(10)
        os.close(self._write_end)
        os.close(self._read_end)
