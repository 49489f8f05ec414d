"""The small files by which processes of a cluster find each other: run files, locks, logs; and removing them all.

Run files mean nothing after a reboot and are not synced; what must last is written by `config.save_spec`. Threads:
every function is safe from any.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from zcluster.errors import Conflict, StorageError
from zcluster.launch.process import Identity

LOG_BYTES_MAX: Final = 8 << 20
"""A log above this is copied to `<name>.log.1` (at most this much of its end) and emptied."""


def write_file(path: Path, data: bytes) -> None:
    """Replace a small file atomically. Not synced: run files mean nothing after a reboot."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # half of it, on a full disk
        raise


def write_run_file(directory: Path, identity: Identity) -> None:
    write_file(directory / "run" / f"{identity.name}.json", msgspec.json.encode(identity))


def read_run_file(directory: Path, name: str) -> Identity | None:
    """The last known run of a process, dead or alive; None when there is none."""
    try:
        return msgspec.json.decode((directory / "run" / f"{name}.json").read_bytes(), type=Identity)
    except (OSError, msgspec.MsgspecError):
        return None


def read_run_files(directory: Path) -> dict[str, Identity]:
    """All run files by process name; unreadable ones are left out."""
    try:
        names = [n.removesuffix(".json") for n in os.listdir(directory / "run") if n.endswith(".json")]
    except FileNotFoundError:
        return {}
    found = {name: read_run_file(directory, name) for name in sorted(names)}
    return {name: identity for name, identity in found.items() if identity is not None}


def remove_run_file(directory: Path, name: str) -> None:
    (directory / "run" / f"{name}.json").unlink(missing_ok=True)


def lock(path: Path, *, wait: bool = False) -> int:
    """A descriptor that holds the lock file for this process (not for its children). Raises: Conflict when held."""
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        raise Conflict(f"{path.parent}: another supervisor runs this cluster") from None
    return descriptor


def unlock(descriptor: int) -> None:
    os.close(descriptor)


def is_same(path: Path, descriptor: int) -> bool:
    """Whether `path` still names the open file `descriptor`; not so once its directory was removed, or made anew."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def rotate_log(path: Path, bytes_max: int = LOG_BYTES_MAX) -> bool:
    """Bound a log that other processes have open for appending: keep its end in `<name>.1`, then empty it.

    Lines written between the copy and the cut are lost; a name change would lose all later ones. Returns: whether cut.
    """
    try:
        size_bytes = path.stat().st_size
        if size_bytes <= bytes_max:
            return False
        with open(path, "rb") as source:
            source.seek(size_bytes - bytes_max)
            write_file(path.with_name(path.name + ".1"), source.read(bytes_max))
        os.truncate(path, 0)
    except FileNotFoundError:
        return False
    return True


def log_tail(path: Path, lines: int = 3) -> str:
    """The last non-empty lines of a log, for error messages."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def remove_tree(path: Path | str) -> None:
    """Remove a directory with all it holds; absent is fine, and so is a file that appears meanwhile (tried again).

    Raises: StorageError, with what stands in the way.
    """
    import shutil

    failures: list[BaseException] = []
    for _ in range(5):
        failures.clear()
        shutil.rmtree(path, onerror=lambda function, name, found: failures.append(found[1]))
        if not os.path.lexists(path):
            return
    why = next(
        (str(f) for f in failures if not isinstance(f, FileNotFoundError)), "something writes to it all the time"
    )
    raise StorageError(f"could not remove {path}: {why}")


def remove_traces(directory: Path, sockets: Path | str, *, everything: bool) -> None:
    """When nothing runs any more: remove sockets and run files, or all that the cluster has on disk.

    Raises: StorageError; without `everything` what cannot be removed stays, and harms nobody.
    """
    if everything:
        remove_tree(sockets)
        remove_tree(directory)
        return
    with suppress(OSError, StorageError):
        remove_tree(sockets)
        for entry in os.listdir(directory / "run"):
            (directory / "run" / entry).unlink(missing_ok=True)
