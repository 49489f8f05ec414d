"""Proof that a process has exited: pidfds.

A process is named by (pid, start ticks): the pid alone may have been given to a stranger. The pidfd is opened first
and the start time read after that, so that the descriptor is known to belong to the process that was meant.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from typing import Final

OWNER_VARIABLE: Final = "ZCLUSTER_OWNER"
OWNER_GRACE_MS: Final = 2_000


def start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot (field 22 of /proc/<pid>/stat); None if gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rsplit(b")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


class ProcessWatch:
    """Watches one process. `dead` turns True on proof only; `fd` becomes readable when the process exits.

    `fd` is -1 where the system offers no proof (no pidfd support): then `dead` stays False for ever.
    """

    def __init__(self, pid: int, ticks: int) -> None:
        self.pid = pid
        self.dead = False
        self.fd = -1
        try:
            self.fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self.dead = True
            return
        except (OSError, AttributeError):
            return
        if start_ticks(pid) != ticks:
            self.dead = True

    def check(self) -> bool:
        """Ask the system now, without waiting. True: it has exited."""
        if not self.dead and self.fd >= 0:
            poller = select.poll()
            poller.register(self.fd, select.POLLIN)
            self.dead = bool(poller.poll(0))
        return self.dead

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def exit_with_owner() -> None:
    """Sweep a private cluster away soon after its owner ($ZCLUSTER_OWNER, "pid:start ticks") has exited.

    The supervisor does that at once; this is for the case that it has been killed as well. A thread waits in poll(2),
    which costs nothing, and then turns this process into the sweeper, which ends all others, paused ones included, and
    removes the files. Without the variable: nothing.
    """
    owner = os.environ.get(OWNER_VARIABLE, "")
    pid, _, ticks = owner.partition(":")
    if not (pid.isdigit() and ticks.isdigit()):
        return
    watch = ProcessWatch(int(pid), int(ticks))

    def wait() -> None:
        poller = select.poll()
        if not watch.dead:
            if watch.fd < 0:
                return
            poller.register(watch.fd, select.POLLIN)
            while not poller.poll():
                pass
            poller.unregister(watch.fd)
        poller.poll(OWNER_GRACE_MS)
        directory = os.environ.get("ZCLUSTER_DIRECTORY", "")
        os.execv(sys.executable, [sys.executable, "-P", "-m", "zcluster.launch.sweep", directory])

    threading.Thread(target=wait, name="owner-watch", daemon=True).start()
