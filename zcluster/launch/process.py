"""The operating system's processes, for the launcher: their identity, starting, signalling, collecting.

What is written about them lies in `files`; no other file of this package calls the system. A process is named by
(boot id, pid, start ticks): the pid alone may have been given to a stranger. A zombie is dead. Every child leads a
session and a process group of its own, so a signal to the group reaches what the user's code has started, and stopped
ones too.

Linux only (pidfds, /proc); `require_linux` says so in one line. Threads: functions are safe from any; a `Process`
belongs to whoever made it.
"""

from __future__ import annotations

import functools
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from zcluster.errors import Error

_CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def require_linux() -> None:
    """Raises: Error, in one clear line, where zcluster cannot run."""
    if sys.platform.startswith("linux") and hasattr(os, "pidfd_open") and os.path.isdir("/proc/self"):
        return
    if sys.platform in ("win32", "cygwin"):
        raise Error("zcluster runs on Linux; on Windows use it inside WSL2")
    raise Error(f"zcluster needs Linux 5.3 or newer with /proc mounted; this is {sys.platform}. Use a container or VM.")


# -- identity ---------------------------------------------------------------------------------------------------------
class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one process; the content of its run file. `started_ms` is wall-clock time."""

    name: str
    kind: str
    pid: int
    start_ticks: int
    boot_id: str
    run_id: str
    started_ms: int

    @property
    def age_seconds(self) -> float:
        return max(0.0, time.time() - self.started_ms / 1000)


class Stat(NamedTuple):
    """The fields of /proc/<pid>/stat that matter here."""

    state: str
    group: int
    session: int
    cpu_ticks: int
    start_ticks: int
    rss_bytes: int

    @property
    def dead(self) -> bool:
        return self.state in "ZXx"

    @property
    def paused(self) -> bool:
        return self.state == "T"

    @property
    def cpu_seconds(self) -> float:
        return self.cpu_ticks / _CLOCK_TICKS

    @property
    def age_seconds(self) -> float:
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - self.start_ticks / _CLOCK_TICKS)


@functools.cache
def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def read_stat(pid: int) -> Stat | None:
    """What the system says of a pid; None when there is no such process. A zombie still has one: see `Stat.dead`."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rsplit(b")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return None
    return Stat(
        fields[0].decode(),
        int(fields[2]),
        int(fields[3]),
        int(fields[11]) + int(fields[12]),
        int(fields[19]),
        int(fields[21]) * _PAGE_BYTES,
    )


def living(identity: Identity) -> Stat | None:
    """The state of exactly that process, or None when it is dead (or its pid belongs to another one by now)."""
    if identity.boot_id != boot_id():
        return None
    stat = read_stat(identity.pid)
    if stat is None or stat.dead or stat.start_ticks != identity.start_ticks:
        return None
    run_id = read_environment(identity.pid).get("ZCLUSTER_RUN_ID", "")
    # Code in a worker may overwrite its environment block (to set a process title): there absence proves nothing.
    unmarked = identity.kind == "worker" and not run_id
    return stat if unmarked or run_id == identity.run_id else None


def read_environment(pid: int) -> dict[str, str]:
    """The ZCLUSTER_* variables that a process was started with; empty when they cannot be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            raw = file.read()
    except OSError:
        return {}
    pairs = (os.fsdecode(part).partition("=") for part in raw.split(b"\0") if part.startswith(b"ZCLUSTER_"))
    return {name: value for name, _, value in pairs}


def find_processes(directory: Path | str) -> Iterator[tuple[int, dict[str, str]]]:
    """(pid, variables) of all living processes that were started, directly or not, for the cluster in `directory`."""
    wanted = str(directory)
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            variables = read_environment(int(entry))
            if variables.get("ZCLUSTER_DIRECTORY") == wanted and "ZCLUSTER_RUN_ID" in variables:
                stat = read_stat(int(entry))
                if stat is not None and not stat.dead:
                    yield int(entry), variables


def owner_text(pid: int | None = None) -> str:
    """ "PID:STARTTICKS" of a living process (default: this one)."""
    pid = os.getpid() if pid is None else pid
    stat = read_stat(pid)
    if stat is None:
        raise Error(f"process {pid} has already exited")
    return f"{pid}:{stat.start_ticks}"


def open_owner(text: str) -> int | None:
    """A pidfd of the process that `owner_text` named, or None when it is gone."""
    pid, _, ticks = text.partition(":")
    return _open_pidfd(int(pid), int(ticks))


def _open_pidfd(pid: int, start_ticks: int) -> int | None:
    """A pidfd that certainly belongs to the process meant: opened first, verified after that."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    stat = read_stat(pid)
    if stat is None or stat.dead or stat.start_ticks != start_ticks:
        os.close(descriptor)
        return None
    return descriptor


def readable(descriptor: int, timeout_s: float = 0.0) -> bool:
    """Wait until a descriptor can be read; for a pidfd: until its process has exited."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(max(0.0, timeout_s) * 1000))


# -- processes --------------------------------------------------------------------------------------------------------
class Process:
    """A process that we have started, or one found running (`own` False: its exit code cannot be known)."""

    __slots__ = ("identity", "own", "pidfd")

    def __init__(self, identity: Identity, pidfd: int, *, own: bool) -> None:
        self.identity = identity
        self.pidfd = pidfd
        self.own = own

    @classmethod
    def adopt(cls, identity: Identity) -> Process | None:
        """A handle on a living process known from its run file; None when it is dead."""
        if living(identity) is None:
            return None
        pidfd = _open_pidfd(identity.pid, identity.start_ticks)
        return None if pidfd is None else cls(identity, pidfd, own=False)

    @property
    def pid(self) -> int:
        return self.identity.pid

    def exited(self, timeout_s: float = 0.0) -> bool:
        return self.pidfd < 0 or readable(self.pidfd, timeout_s)

    def stat(self) -> Stat | None:
        return living(self.identity)

    def signal(self, number: int) -> None:
        """To the whole group. Nothing happens once the leader has exited."""
        if not self.exited():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def reap(self) -> int | None:
        """After `exited`: kill what is left of its group and collect it.

        Returns:
            The exit code, negative for a signal; None (unknown) for an adopted process.
        """
        stat = read_stat(self.pid)
        if (
            stat is None or stat.start_ticks == self.identity.start_ticks
        ):  # else: an adopted one, its pid reused already
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)  # before collecting it: until then nobody else can have this group
        code: int | None = None
        if self.own:
            with suppress(ChildProcessError):
                found = os.waitid(os.P_PID, self.pid, os.WEXITED)
                if found is not None:
                    code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        self.close()
        return code

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def spawn(
    name: str,
    kind: str,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: Path,
    pass_descriptor: int | None = None,
) -> Process:
    """Start `python arguments...` in a session of its own.

    Standard input is /dev/null, both outputs are appended to `log`; `pass_descriptor` becomes descriptor 3; every other
    descriptor is closed, also those that our own parent left open. Signal mask and dispositions are the defaults,
    whatever the user's program has set. `posix_spawn` takes half a millisecond and needs no import of `subprocess`.
    """
    if not sys.executable:
        raise Error("this Python does not know its own executable (sys.executable is empty); zcluster cannot start any")
    run_id = os.urandom(8).hex()
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = []
    if pass_descriptor is not None:
        actions.append((os.POSIX_SPAWN_DUP2, pass_descriptor, 3))
    actions += [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    kept = 2 if pass_descriptor is None else 3
    actions += [(os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in _inheritable() if descriptor > kept]
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-P", *arguments],  # -P: never import from the directory that happens to be current
        {**environment, "ZCLUSTER_RUN_ID": run_id},
        file_actions=actions,
        setsid=True,
        setsigmask=[],
        setsigdef=[s for s in signal.valid_signals() if s not in (signal.SIGKILL, signal.SIGSTOP)],
    )
    stat = read_stat(pid)
    assert stat is not None, "a child that nobody has collected has an entry in /proc"
    identity = Identity(
        name=name,
        kind=kind,
        pid=pid,
        start_ticks=stat.start_ticks,
        boot_id=boot_id(),
        run_id=run_id,
        started_ms=time.time_ns() // 1_000_000,
    )
    return Process(identity, os.pidfd_open(pid), own=True)


def _inheritable() -> list[int]:
    found = []
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.get_inheritable(int(entry)):
                found.append(int(entry))
    return found


def child_environment(**variables: str) -> dict[str, str]:
    """Our environment for a child: without another cluster's marks, and able to import the zcluster that runs here."""
    environment = {k: v for k, v in os.environ.items() if k not in _MARKS}
    paths = [os.path.abspath(p) for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p]
    package_root = str(Path(__file__).resolve().parents[2])
    if "site-packages" not in package_root and package_root in {os.path.realpath(p or ".") for p in sys.path}:
        paths.append(package_root)
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return {**environment, **variables}


_MARKS: Final = frozenset(f"ZCLUSTER_{name}" for name in ("RUN_ID", "DIRECTORY", "PROCESS", "OWNER"))


def identify(pid: int, name: str, run_id: str) -> Identity | None:
    """The identity of a living process, for a run file; its kind is its name. None: it is dead."""
    stat = read_stat(pid)
    if stat is None or stat.dead:
        return None
    return Identity(
        name=name,
        kind=name,
        pid=pid,
        start_ticks=stat.start_ticks,
        boot_id=boot_id(),
        run_id=run_id,
        started_ms=(time.time_ns() // 1_000_000) - int(stat.age_seconds * 1000),
    )


def identify_self(name: str) -> Identity:
    identity = identify(os.getpid(), name, os.environ.get("ZCLUSTER_RUN_ID", ""))
    assert identity is not None, "we live"
    return identity


def wait_paused(process: Process, *, paused: bool, timeout_s: float = 0.1) -> None:
    """Until a SIGSTOP or SIGCONT just sent has taken effect: microseconds, as a rule."""
    give_up = time.monotonic() + timeout_s
    while (stat := process.stat()) is not None and stat.paused != paused and time.monotonic() < give_up:
        time.sleep(0.0005)


def kill_pid(pid: int) -> None:
    """SIGKILL to one process and, if it leads one, its group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def describe_exit(code: int | None) -> str:
    """ "exit 1", "SIGKILL" or "unknown" (an adopted process)."""
    if code is None:
        return "unknown"
    if code >= 0:
        return f"exit {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def signal_names() -> frozenset[str]:
    """All signals by name: "SIGKILL", ..."""
    return frozenset(s.name for s in signal.Signals)
