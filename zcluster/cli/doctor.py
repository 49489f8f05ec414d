"""`doctor`: can zcluster run here, and how well? Each check does what it tells about; none guesses."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from zcluster.cli.context import App, pass_app
from zcluster.cli.main import verb
from zcluster.cli.table import size_text

CHECK_FAILED: Final = 8
SYNCS: Final = 20
BLOCK_BYTES: Final = 4096
SLOW_SYNC_MS: Final = 10.0
FREE_BYTES_MIN: Final = 1 << 30
OPEN_FILES_MIN: Final = 256
OK, WARN, FAIL = "ok", "warn", "fail"


class Finding(NamedTuple):
    """`text`: what was found; where it is not ok, with what to do about it."""

    name: str
    verdict: str
    text: str


def existing(path: Path) -> Path:
    """The path itself, or the nearest directory above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def check_python() -> Finding:
    found = f"{platform.python_version()} ({sys.executable})"
    if sys.implementation.name != "cpython":
        return Finding("Python", WARN, f"{found} is {sys.implementation.name}; only CPython is tested")
    return Finding("Python", OK, found)


def check_system() -> Finding:
    found = f"{platform.system()} {platform.release()}"
    if sys.platform.startswith("linux"):
        return Finding("system", OK, found)
    return Finding("system", FAIL, f"{found}; zcluster needs Linux (on Windows: use WSL2)")


def check_pidfd() -> Finding:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:
        return Finding(
            "pidfd", WARN, f"not available ({error}): a killed leader is noticed by timeouts only, not at once"
        )
    return Finding("pidfd", OK, "available: a killed leader is noticed at once")


def check_boot_id() -> Finding:
    try:
        return Finding("boot id", OK, Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    except OSError as error:
        return Finding("boot id", FAIL, f"unreadable ({error.strerror}): is /proc mounted?")


def check_libraries() -> Finding:
    try:
        import msgspec
        import zmq
    except ImportError as error:
        return Finding("libraries", FAIL, f"{error}; install zcluster again")
    return Finding(
        "libraries", OK, f"libzmq {zmq.zmq_version()} · pyzmq {zmq.__version__} · msgspec {msgspec.__version__}"
    )


def check_home() -> Finding:
    from zcluster.config import home

    path = home()
    base = existing(path)
    if not os.access(base, os.W_OK | os.X_OK):
        return Finding("home", FAIL, f"{path} cannot be written; set ZCLUSTER_HOME to a directory of your own")
    kind = file_system(base)
    if kind in ("tmpfs", "ramfs"):
        return Finding(
            "home", WARN, f"{path} lies in memory ({kind}): nothing there survives a reboot; set ZCLUSTER_HOME"
        )
    if kind in ("nfs", "nfs4", "cifs", "9p", "fuse.sshfs"):
        return Finding(
            "home", WARN, f"{path} lies on a network ({kind}): locks and syncs may not hold; set ZCLUSTER_HOME"
        )
    return Finding("home", OK, f"{path} ({kind or 'unknown file system'})")


def file_system(path: Path) -> str:
    """Type of the file system that holds `path`, from /proc/self/mounts; empty when unknown."""
    wanted = str(path.resolve())
    best, kind = "", ""
    try:
        for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines():
            where, found = line.split(" ")[1:3]
            where = where.replace("\\040", " ")
            inside = wanted == where or wanted.startswith(where.rstrip("/") + "/")
            if inside and len(where) >= len(best):
                best, kind = where, found
    except (OSError, IndexError, ValueError):
        return ""
    return kind


def check_sockets(name: str) -> Finding:
    """The longest socket path of the chosen cluster; the directory is made, as `up` would."""
    from zcluster import config
    from zcluster.errors import Error

    try:
        directory = config.socket_directory(config.cluster_directory(name))
        longest = config.ipc_endpoint(str(directory), "supervisor.control").removeprefix("ipc://")
    except (Error, OSError) as error:
        return Finding("sockets", FAIL, str(error))
    finally_empty(directory)
    return Finding("sockets", OK, f"{len(os.fsencode(longest))} of {config.IPC_PATH_BYTES_MAX} bytes: {longest}")


def finally_empty(directory: Path) -> None:
    """Remove a directory again that this check made; one in use is not empty and stays."""
    try:
        directory.rmdir()
    except OSError:
        pass


def check_disk_free() -> Finding:
    from zcluster.config import home

    free = shutil.disk_usage(existing(home())).free
    if free < FREE_BYTES_MIN:
        return Finding("disk free", WARN, f"{size_text(free)}; nodes stop when the disk is full")
    return Finding("disk free", OK, size_text(free))


def check_sync() -> Finding:
    """How long a small durable write takes where the data would lie: the floor of every `put`."""
    from zcluster.config import home

    try:
        with tempfile.TemporaryFile(dir=existing(home())) as file:
            descriptor = file.fileno()
            os.write(descriptor, bytes(BLOCK_BYTES * SYNCS))
            os.fsync(descriptor)
            times = []
            for i in range(SYNCS):
                began = time.perf_counter()
                os.pwrite(descriptor, b"z" * BLOCK_BYTES, i * BLOCK_BYTES)
                os.fdatasync(descriptor)
                times.append((time.perf_counter() - began) * 1000)
    except OSError as error:
        return Finding("sync time", FAIL, f"cannot write to {existing(home())}: {error.strerror}")
    median = statistics.median(times)
    text = f"{median:.2f} ms (median of {SYNCS}), {max(times):.2f} ms at most"
    if median > SLOW_SYNC_MS:
        return Finding("sync time", WARN, f"{text}: slow; try another disk, or --durability interval:10ms")
    return Finding("sync time", OK, text)


def check_limits() -> Finding:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    cores = len(os.sched_getaffinity(0))
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES_MIN:
        return Finding("limits", WARN, f"{soft} open files; raise it: ulimit -n 4096")
    files = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    return Finding("limits", OK, f"{cores} cores · {files} open files")


def examine(name: str) -> list[Finding]:
    """All checks; one that itself fails is a finding too."""
    checks: list[Callable[[], Finding]] = [
        check_python,
        check_system,
        check_libraries,
        check_pidfd,
        check_boot_id,
        check_limits,
        check_home,
        lambda: check_sockets(name),
        check_disk_free,
        check_sync,
    ]
    findings = []
    for check in checks:
        try:
            findings.append(check())
        except Exception as error:
            label = check.__name__.removeprefix("check_").replace("_", " ")
            findings.append(Finding(label, FAIL, f"{type(error).__name__}: {error}"))
    return findings


_MARKS: Final = {OK: ("✓", "green"), WARN: ("!", "yellow"), FAIL: ("✗", "red")}


@verb("doctor")
@pass_app
@click.pass_context
def doctor(ctx: click.Context, app: App) -> None:
    """Check whether this machine can run zcluster, and how fast its disk is; exit 8 if it cannot."""
    findings = examine(app.name if os.sep not in app.name else "default")
    fields: list[dict[str, Any]] = [finding._asdict() for finding in findings]
    failed = any(finding.verdict == FAIL for finding in findings)
    app.emit({"ok": not failed, "checks": fields})
    for finding in findings:
        mark, color = _MARKS[finding.verdict]
        app.show(f" {click.style(mark, fg=color)} {finding.name:<10} {finding.text}")
    ctx.exit(CHECK_FAILED if failed else 0)
