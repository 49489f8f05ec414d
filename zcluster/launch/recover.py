"""When a majority is lost for good: a new one-node cluster from what one node's data hold.

    survey       copies of every node's data are opened and read: how far does each reach, what is damaged
    force_new    the state of one node -> a new cluster of that node alone, planted beside the old one
                 -> the old directory, untouched, is renamed to <name>.before-<time> -> the new one gets the name

What the other nodes had and this one had not is lost, acknowledged or not: nobody can know. What may be in this node's
log without having been committed is kept.

The new cluster has another cluster id. So a node of the old one that comes back, with its disk, can neither vote in
the new cluster nor join it nor be followed by its clients: every envelope, hello, segment and checkpoint names the
cluster it belongs to, and what names another is refused. No epoch needs to be fenced. The old cluster stays what it
was, under its new name; should its lost nodes' data turn up, it can be started there and read.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from zcluster import config
from zcluster.config import ClusterSpec, save_spec
from zcluster.errors import Conflict, Error, InvalidInput, StorageError
from zcluster.launch import named
from zcluster.launch.cluster import Cluster
from zcluster.launch.plant import Origin, plant, workshop
from zcluster.launch.process import boot_id
from zcluster.launch.readiness import Progress
from zcluster.node.rebuild import Rebuilt, rebuild
from zcluster.node.start import open_node_store
from zcluster.storage.disk import PosixDisk
from zcluster.types import Index, Term

SOUND: Final = "sound"
DAMAGED: Final = "damaged"
SUSPECT: Final = "suspect"
MISSING: Final = "missing"
UNREADABLE: Final = "unreadable"
_NOT_COPIED: Final = shutil.ignore_patterns("lock", "*.damaged", "*.spare", "*.tmp")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one node's data hold.

    state: "sound"; "damaged" (some of it cannot be read); "suspect" (weak durability and a power cut: its end may be
        missing); "missing"; "unreadable". `problem` says more.
    index, epoch: of its last entry. log_time_ms: when the last write in it was made, by the wall clock.
    """

    node: str
    state: str
    index: Index = 0
    epoch: Term = 0
    log_time_ms: int = 0
    problem: str | None = None

    @property
    def usable(self) -> bool:
        return self.state in (SOUND, DAMAGED, SUSPECT)


def survey(cluster: Cluster) -> dict[str, Finding]:
    """Look at all nodes' data; nothing is changed. Raises: Conflict (it runs), StorageError (no room for copies)."""
    _refuse_running(cluster)
    return {node.name: _examine(cluster.spec, node.name)[0] for node in cluster.spec.nodes}


def force_new(
    cluster: Cluster, node: str, wait_s: float = 30.0, progress: Progress | None = None
) -> tuple[Cluster, dict[str, Any], Path]:
    """Put a one-node cluster made from the data of `node` in the place of a stopped cluster, and start it.

    Returns: as `named.up`, and where the old cluster is kept.
    Raises: InvalidInput (no such node), Conflict (it runs), StorageError (its data cannot be read): nothing changed.
    """
    replica_id = cluster.spec.replica_id(node)
    if cluster.directory.parent != config.home():
        raise InvalidInput(
            f"{cluster.directory} is not in {config.home()}: set ZCLUSTER_HOME to the directory above it"
        )
    _refuse_running(cluster)
    finding, rebuilt = _examine(cluster.spec, node)
    if rebuilt is None or rebuilt.index == 0:
        raise StorageError(f"the data of {node} hold nothing to recover: {finding.problem or 'they are empty'}")
    began = time.monotonic()
    spec = cluster.spec
    kept = _place_aside(cluster.directory)
    settings = msgspec.structs.replace(spec.settings, nodes=1, preferred_leader="")
    plant(
        cluster.directory,
        spec.name,
        settings,
        Origin(rebuilt.machine, rebuilt.index, rebuilt.log_time_ms),
        nodes=(config.NodeSpec(node, replica_id),),
        aside=kept,
    )
    save_spec(msgspec.structs.replace(config.load_spec(kept), name=kept.name[:64]))
    recovered, report = named.up(cluster.directory.name, {}, wait_s, progress)
    return recovered, {**report, "seconds": round(time.monotonic() - began, 3)}, kept


def _refuse_running(cluster: Cluster) -> None:
    if cluster.running:
        command = config.command(cluster.directory)
        raise Conflict(
            f"cluster {cluster.name!r} runs; if a majority of its nodes can still be started, start them ({command} "
            f"start): nothing is lost then. Only if not, stop it first: {command} down"
        )


def _place_aside(directory: Path) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    base = f"{directory.name[:40]}.before-{stamp}"
    for name in (base, *(f"{base}-{number}" for number in range(2, 100))):
        if not os.path.lexists(directory.with_name(name)):
            return directory.with_name(name)
    raise Conflict(f"{directory.with_name(base)} exists, and so do its followers; try again in a second")


def _examine(spec: ClusterSpec, node: str) -> tuple[Finding, Rebuilt | None]:
    """Open a copy: opening repairs what it can, and the original is to stay as it is."""
    if not (spec.data_directory(node) / "identity.json").exists():
        return Finding(node=node, state=MISSING, problem="its data are gone"), None
    disk = PosixDisk()
    with workshop(spec.path.parent) as place:
        copy = msgspec.structs.replace(spec, directory=str(place))
        try:
            shutil.copytree(spec.data_directory(node), copy.data_directory(node), ignore=_NOT_COPIED)
        except (OSError, shutil.Error) as error:
            return Finding(node=node, state=UNREADABLE, problem=f"its files cannot be copied: {error}"), None
        try:
            store = open_node_store(disk, copy, node, create=False, boot_id=boot_id())
            try:
                rebuilt = rebuild(disk, store, spec)
            finally:
                store.wal.close()
                store.close()
        except Error as error:
            problem = str(error).replace(str(place), str(spec.path))
            return Finding(node=node, state=UNREADABLE, problem=problem), None
        found = store.recovered
    state, problem = SOUND, ""
    if found.repair or found.wiped or found.damage is not None:
        state, problem = DAMAGED, (rebuilt.lost or "a repair is pending").replace(str(place), str(spec.path))
    elif found.suspect_after is not None:
        state, problem = SUSPECT, "a power cut may have taken the end of its log (weak durability)"
    return (
        Finding(
            node=node,
            state=state,
            index=rebuilt.index,
            epoch=rebuilt.epoch,
            log_time_ms=rebuilt.log_time_ms,
            problem=problem or None,
        ),
        rebuilt,
    )


def explain(findings: dict[str, Finding], node: str) -> list[str]:
    """What recovering from `node` means, in sentences: what is kept, what may be lost, what would be better.

    Raises: InvalidInput, if nothing can be recovered from it.
    """
    chosen = findings[node]
    if not chosen.usable:
        raise InvalidInput(f"nothing can be recovered from {node}: {chosen.problem}")
    lines = [
        f"{node} becomes the only node of a new cluster, with what its data hold: everything up to entry "
        f"{chosen.index:,}, last written {_when(chosen.log_time_ms)}."
    ]
    if chosen.problem:
        lines.append(f"Its data are {chosen.state}: {chosen.problem}.")
    lines.append(
        f"LOST is every write that had not reached {node}, be it acknowledged or not; writes that reached it and were "
        "never acknowledged are kept."
    )
    further = [f for f in findings.values() if f.usable and (f.epoch, f.index) > (chosen.epoch, chosen.index)]
    if further:
        best = max(further, key=lambda f: (f.epoch, f.index))
        lines.append(f"{best.node} reaches further, up to entry {best.index:,}: recover from that one instead.")
    sound = [f.node for f in findings.values() if f.state == SOUND]
    if len(sound) > len(findings) // 2:
        lines.append(f"{', '.join(sound)} are sound, and are a majority: `up` needs no recovery and loses nothing.")
    return lines


def _when(log_time_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(log_time_ms / 1000)) if log_time_ms else "never"
