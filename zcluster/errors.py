"""One tree for everything that can go wrong while operating.

`assert` is for our own bugs; these are for the world. Each message says what happened and what to do about it. The
command line turns `exit_code` into its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class Error(Exception):
    """Base of all errors that zcluster raises on purpose."""

    exit_code: ClassVar[int] = 1


class InvalidInput(Error, ValueError):
    """A value that can never work: bad name, unknown option, key too long."""

    exit_code = 2


class TooLarge(InvalidInput):
    """A key, value or frame above its limit. The limit and the setting's name are in the message."""


class PathTooLong(InvalidInput):
    """A socket path above the 107 bytes that the operating system allows for ipc."""


class WrongType(Error, TypeError):
    """A value of the wrong Python type: keys are `str`, values are `bytes`."""

    exit_code = 2


class Unpicklable(Error, TypeError):
    """A function, argument or result that cannot be serialized; the cause is chained."""

    exit_code = 2


class NotRunning(Error):
    """There is no such cluster, or it is stopped."""

    exit_code = 3


class Degraded(Error):
    """The cluster serves, but not all of it is up."""

    exit_code = 4


class NoQuorum(Error):
    """No majority of the nodes is reachable. On a write: it was certainly not applied."""

    exit_code = 5


class Conflict(Error):
    """The request contradicts what is running: other settings, a second supervisor, a change in progress."""

    exit_code = 6


class Timeout(Error, TimeoutError):
    """Not done within the time given; nothing was changed."""

    exit_code = 7


class Unknown(Error):
    """A write whose outcome cannot be known: it may have been applied, or may still be."""

    exit_code = 7


class Busy(Error):
    """A bound was reached (queue, uncommitted bytes, sessions). Retry later; nothing was changed."""

    exit_code = 7


class NotLeader(Error):
    """This replica does not lead. `leader` is its best guess (0: none known), `term` how fresh that is."""

    def __init__(self, leader: int = 0, term: int = 0) -> None:
        super().__init__(f"not the leader (leader: {leader or 'unknown'}, term {term})")
        self.leader = leader
        self.term = term


class Closed(Error):
    """The client, pool or cluster was closed."""


class WorkerDied(Error):
    """The worker died while running the task (and the task may not, or may no longer, be re-run)."""

    exit_code = 10


class StorageError(Error):
    """The disk refused: full, failed to sync, unreadable. A failed sync is never retried; the node stops."""


class Corrupt(StorageError):
    """A file whose content is damaged other than by a torn tail."""

    def __init__(self, path: Path | str, offset: int, what: str) -> None:
        super().__init__(f"{path}: damaged at byte {offset}: {what}")
        self.path = Path(path)
        self.offset = offset
        self.what = what

    def __reduce__(self) -> tuple[type[Corrupt], tuple[Path, int, str]]:
        return Corrupt, (self.path, self.offset, self.what)


class DamagedBackup(StorageError):
    """A backup file that is no longer what was written: cut off, changed, or never one."""

    exit_code = 8


class WrongCluster(StorageError):
    """A data directory that belongs to another cluster, replica or engine, or is missing for a known replica."""

    exit_code = 6


class FormatTooNew(StorageError):
    """A file written by a newer version of zcluster."""

    exit_code = 6
