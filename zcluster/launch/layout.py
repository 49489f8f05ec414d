"""A cluster's directory: made once, completely or not at all; changed only where that is safe; listed; removed.

Not here: processes (`control`, `supervisor`).
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from zcluster import config
from zcluster.config import ClusterSpec, NodeSpec, Settings, load_spec, make_settings, save_spec
from zcluster.errors import Conflict, Error, InvalidInput, NotRunning
from zcluster.launch import files
from zcluster.launch import process as system

CHANGEABLE: Final = frozenset(
    {
        "balance",
        "workers",
        "durability",
        "checkpoint_bytes",
        "checkpoint_seconds",
        "verify_seconds",
        "preferred_leader",
    }
)
"""Settings that a stopped cluster may get anew; the others are part of what its data mean, or of who may vote."""

_PARTS: Final = ("run", "logs", "data", "keys")
_EPHEMERAL_PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT: Final = 20_000


def create(name: str, settings: Settings, *, directory: Path | None = None, ephemeral: bool = False) -> ClusterSpec:
    """Make the directory of a new cluster; nothing is started.

    Args:
        directory: default: `<home>/<name>`. May exist if it is empty.
        ephemeral: it is removed when its cluster ends.
    Raises: Conflict (there is a cluster already, or foreign files), InvalidInput, PathTooLong.
    """
    system.require_linux()
    config.check_name(name)
    path = (directory if directory is not None else config.cluster_directory(name)).absolute()
    existed = path.exists()
    try:
        held = _lock_creation(path)
    except (FileExistsError, NotADirectoryError):
        raise InvalidInput(f"{path} is not a directory") from None
    except OSError as error:
        raise unwritable(path, error) from None
    try:
        return _fill(path, name, settings, ephemeral=ephemeral)
    except OSError as error:
        _undo(path, existed=existed)
        raise unwritable(path, error) from None
    except Error:
        _undo(path, existed=existed)
        raise
    finally:
        files.unlock(held)


def _lock_creation(path: Path) -> int:
    """Make the directory and hold its creation lock; another one's refused creation may remove both meanwhile."""
    while True:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = files.lock(path / ".create", wait=True)
        if files.is_same(path / ".create", held):
            return held
        files.unlock(held)


def unwritable(path: Path, error: OSError) -> InvalidInput:
    """What to tell somebody whose home directory is read-only, full, or somebody else's."""
    return InvalidInput(
        f"cannot write {error.filename or path}: {error.strerror or error}; make room or give the right to, or set "
        "ZCLUSTER_HOME to another directory (zcluster doctor checks it)"
    )


def _undo(path: Path, *, existed: bool) -> None:
    """Nothing is left of a creation that was refused; what is not empty, or not ours, is not touched."""
    if (path / "cluster.json").exists():
        return
    for part in _PARTS:
        with suppress(OSError):
            (path / part).rmdir()
    with suppress(OSError):
        if set(os.listdir(path)) <= {".create", "cluster.tmp"}:
            (path / "cluster.tmp").unlink(missing_ok=True)
            (path / ".create").unlink()
            if not existed:
                path.rmdir()
    with suppress(OSError, Error):
        config.socket_directory(path).rmdir()


def remove_unfinished(directory: Path) -> None:
    """Remove what a creation that was cut short has left. Raises: Conflict (there are other files), StorageError."""
    foreign = sorted(set(os.listdir(directory)) - {".create", "cluster.tmp", "lock", *_PARTS})
    if foreign or ((directory / "data").is_dir() and os.listdir(directory / "data")):
        raise Conflict(
            f"{directory} holds no cluster, but other files ({[*foreign, 'data'][0]}, ...); they are left alone"
        )
    files.remove_tree(directory)


def _fill(path: Path, name: str, settings: Settings, *, ephemeral: bool) -> ClusterSpec:
    """Make everything in a new cluster's directory, its description last."""
    if (path / "cluster.json").exists():
        raise Conflict(f"there is already a cluster in {path}")
    foreign = sorted(set(os.listdir(path)) - {".create", *_PARTS})
    if foreign or ((path / "data").exists() and os.listdir(path / "data")):
        raise Conflict(f"{path} holds other files ({[*foreign, 'data'][0]}, ...); choose an empty directory")
    path.chmod(0o700)
    sockets = config.socket_directory(path)
    for part in _PARTS:
        (path / part).mkdir(mode=0o700, exist_ok=True)
    nodes = tuple(NodeSpec(f"n{i + 1}", i + 1) for i in range(settings.nodes))
    check_preferred(settings, nodes)
    spec = ClusterSpec(
        format=config.FORMAT,
        name=name,
        cluster_id=os.urandom(16).hex(),
        settings=settings,
        nodes=nodes,
        replica_ids_used=len(nodes),
        socket_directory=str(sockets),
        ephemeral=ephemeral,
        directory=str(path),
    )
    if settings.transport == "tcp":
        _make_keys(path / "keys" / "cluster.key")
        spec = msgspec.structs.replace(spec, ports=allocate_ports(spec))
    save_spec(spec)
    return spec


def check_preferred(settings: Settings, nodes: tuple[NodeSpec, ...]) -> None:
    """Raises: InvalidInput, if the preferred leader is no node."""
    names = [node.name for node in nodes]
    if settings.preferred_leader and settings.preferred_leader not in names:
        raise InvalidInput(f"preferred_leader is {settings.preferred_leader}, but the nodes are {', '.join(names)}")


def _make_keys(path: Path) -> None:
    """Two lines, Z85: public, secret. Every process of the cluster has both; nobody else can read them."""
    import zmq

    public, secret = zmq.curve_keypair()
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(public + b"\n" + secret + b"\n")


def socket_names(spec: ClusterSpec) -> list[str]:
    """All bound sockets of a cluster as "process.role"."""
    roles = (config.PEER, config.CLIENT, config.SNAPSHOT)
    names = [f"{node.name}.{role}" for node in spec.nodes for role in roles]
    return [*names, f"router.{config.CLIENT}", f"router.{config.WORKER}", f"supervisor.{config.CONTROL}"]


def allocate_ports(spec: ClusterSpec) -> dict[str, int]:
    """A port on 127.0.0.1 for each socket of a stopped cluster. Those in `spec.ports` that are still free are kept.
    Raises: Error (no ports left)."""
    supply = _free_ports()
    ports: dict[str, int] = {}
    for name in socket_names(spec):
        port = spec.ports.get(name)
        while port is None or port in ports.values() or not _port_is_free(port):
            port = next(supply)
        ports[name] = port
    return ports


def add_ports(spec: ClusterSpec, node: str) -> dict[str, int]:
    """The ports of a running cluster, and those of a node that joins it. Raises: Error (no ports left)."""
    supply = _free_ports()
    ports = dict(spec.ports)
    for name in socket_names(spec):
        if name.partition(".")[0] == node:
            ports[name] = next(port for port in supply if port not in ports.values() and _port_is_free(port))
    return ports


def _free_ports() -> Iterator[int]:
    """Candidates, one after the other. They lie outside the range from which the system serves outgoing connections,
    so that nobody is given one of them by chance while a replica is down. Raises: Error, in place of ending."""
    try:
        low, high = (int(part) for part in _EPHEMERAL_PORTS.read_text().split())
    except (OSError, ValueError):
        low, high = 32_768, 60_999
    candidates = [p for p in range(_FIRST_PORT, 65_536) if not low <= p <= high]
    if not candidates:
        candidates = list(range(1024, low))
    start = int.from_bytes(os.urandom(4)) % max(1, len(candidates))  # two clusters made at once look elsewhere
    yield from [*candidates[start:], *candidates[:start]]
    raise Error("no free tcp ports on 127.0.0.1 outside the ephemeral range; use --transport ipc")


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def differences(settings: Settings, given: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that were asked for and are not so: name -> (is, asked for). Raises: InvalidInput."""
    make_settings(**given)
    return {k: (getattr(settings, k), v) for k, v in given.items() if getattr(settings, k) != v}


def refuse_differences(spec: ClusterSpec, different: Mapping[str, tuple[Any, Any]], *, running: bool) -> None:
    """Raises: Conflict, listing them, with what to do."""
    listed = ", ".join(f"{name} is {now!r}, not {asked!r}" for name, (now, asked) in sorted(different.items()))
    safe = running and set(different) <= CHANGEABLE
    command = f"{config.command(spec.path)} down"
    if set(different) == {"nodes"}:
        up = "" if running else f"{config.command(spec.path)} up, then "
        advice = f"to change that: {up}{config.command(spec.path)} scale {different['nodes'][1]}"
    elif safe:
        advice = f"stop it first ({command}), then `up` again with the new value"
    else:
        advice = f"use another name, or discard it and its data: {command} --purge"
    raise Conflict(
        f"cluster {spec.name!r} {'is running' if running else 'exists'} with other settings: {listed}; {advice}"
    )


def prepare_start(spec: ClusterSpec, given: Mapping[str, Any]) -> ClusterSpec:
    """Make a stopped cluster ready to start, with new values of the changeable settings if any were given.

    Raises: Conflict (a setting that cannot change), InvalidInput.
    """
    different = differences(spec.settings, given)
    if not set(different) <= CHANGEABLE:
        refuse_differences(spec, {k: v for k, v in different.items() if k not in CHANGEABLE}, running=False)
    merged = {**msgspec.structs.asdict(spec.settings), **given}
    prepared = msgspec.structs.replace(
        spec,
        settings=make_settings(**merged),
        socket_directory=str(config.socket_directory(spec.path)),
    )
    if given.get("preferred_leader"):
        check_preferred(prepared.settings, spec.nodes)
    try:
        for part in _PARTS:
            (spec.path / part).mkdir(mode=0o700, exist_ok=True)
        (spec.path / "run" / "owner").unlink(missing_ok=True)
        if prepared.settings.transport == "tcp":
            prepared = msgspec.structs.replace(prepared, ports=allocate_ports(prepared))
        if prepared != spec:
            save_spec(prepared)
    except OSError as error:
        raise unwritable(spec.path, error) from None
    return prepared


def ephemeral_directory() -> Path:
    """A fresh private directory's name for an ephemeral cluster: in $ZCLUSTER_HOME, else in the temporary directory.

    Never in /dev/shm: what lies there is memory, and data would not be on any disk. Leftovers of owners that died
    together with everything that could have cleaned up (a power cut) are removed on the way.
    """
    if os.environ.get("ZCLUSTER_HOME"):
        base = config.home()
        try:
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(base, error) from None
    else:
        base = Path(tempfile.gettempdir())
        if base.resolve().is_relative_to("/dev/shm"):
            base = Path("/var/tmp")
    for left in base.glob("zcluster-private-*"):
        _remove_leftover(left)
    try:
        return Path(tempfile.mkdtemp(prefix=f"zcluster-private-{os.getpid()}-", dir=base))
    except OSError as error:
        raise unwritable(base, error) from None


def _remove_leftover(path: Path) -> None:
    """Remove an ephemeral cluster's directory whose owner and processes are all gone."""
    try:
        owner = path / "run" / "owner"
        if path.stat().st_uid != os.getuid() or time.time() - owner.stat().st_mtime < 5:
            return
        spec = load_spec(path)
        text = owner.read_text()
    except (OSError, Error):
        return
    descriptor = system.open_owner(text)
    if descriptor is not None:
        os.close(descriptor)
        return
    if spec.ephemeral and not any(system.living(i) for i in files.read_run_files(path).values()):
        files.remove_traces(path, spec.socket_directory, everything=True)


def find() -> list[tuple[str, ClusterSpec | Error]]:
    """All clusters under the home directory by name, private ones left out; of a damaged one, what is wrong with it."""
    found: list[tuple[str, ClusterSpec | Error]] = []
    try:
        names = sorted(os.listdir(config.home()))
    except (FileNotFoundError, NotADirectoryError):
        return []
    for name in names:
        try:
            spec = load_spec(config.home() / name)
        except NotRunning:
            continue
        except Error as error:
            found.append((name, error))
        except OSError as error:
            found.append((name, Error(f"cannot read {config.home() / name}: {error.strerror or error}")))
        else:
            if not spec.ephemeral:
                found.append((name, spec))
    return found
