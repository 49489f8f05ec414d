"""The write buffer: group commit around the log.

`policy.WriterPolicy` decides, and is pure: what goes into the next write, whether a sync follows, what is acknowledged
when. `Writer` does as it is told, in the loop's own thread, with a helper for what can wait; `InlineWriter` is the same
without a helper, for tests and the simulator.

    mode          acknowledged              synced
    fsync         after the sync            after every write
    interval:MS   after write(2)            at most MS ms after the first unsynced write
    none          after write(2)            when a segment is full, before trimming, at a clean stop

    In every mode a batch with a hard state, an incarnation, a repair flag or an installed snapshot is synced before it
    is acknowledged, and so is whatever was queued in front of it.

Everything that waits when the thread is free goes into one write and one sync (up to `policy.GROUP_BYTES_MAX`);
nothing waits for company. A failed write or sync is never tried again: the error is in `completed()`, and nothing is
acknowledged or accepted afterwards. The node must stop.

Threads: `submit`, `pump`, `trim` and `close` belong to whoever runs the event loop; `completed` may be read by anyone.
The interpreter lock is released during the write and the sync.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Protocol

import msgspec

from zcluster.errors import Closed, StorageError
from zcluster.storage.policy import Durability, WriterPolicy
from zcluster.storage.wal import Wal
from zcluster.types import Index, Nanoseconds, WriteBatch

__all__ = ["Completion", "Durability", "InlineWriter", "LogWriter", "Writer", "WriterPolicy"]


class Completion(msgspec.Struct, frozen=True):
    """How far the writer is; replaced as a whole, so any thread may read it.

    seq: all batches up to this one are as durable as the mode asks. error: set once, then nothing moves any more.
    unsynced_since: when the oldest acknowledged but unsynced batch was written (0: none), the start of the loss window.
    """

    seq: int = 0
    error: StorageError | None = None
    syncs: int = 0
    last_sync_ns: Nanoseconds = 0
    max_sync_ns: Nanoseconds = 0
    bytes_written: int = 0
    unsynced_since: Nanoseconds = 0
    unsynced_bytes: int = 0


class LogWriter(Protocol):
    """What the node uses; `Writer` and `InlineWriter` fulfil it."""

    def submit(self, batch: WriteBatch) -> None:
        """Queue one batch; never blocks. Raises: StorageError after a failure, Closed after `close`."""

    def completed(self) -> Completion: ...

    def close(self, clean: bool) -> None:
        """Write out what is queued (clean: with a sync and a clean-stop mark), close the log. Never raises for the
        disk: see `completed().error`."""


class _Executor:
    """Carries out the policy's decisions on a log; the common part of both writers."""

    def __init__(self, wal: Wal, durability: str, notify: Callable[[], None], clock: Callable[[], int]) -> None:
        self.policy = WriterPolicy(Durability.parse(durability))
        self.completion = Completion(error=wal.failed)
        self.quiet = False  # whoever waits for the completion is the one who makes it
        self._wal = wal
        self.notify = notify
        self._clock = clock
        self._syncs = 0
        self._last_sync: Nanoseconds = 0
        self._max_sync: Nanoseconds = 0
        if wal.failed is None:
            wal.begin_mode(str(self.policy.durability))

    def run(self) -> None:
        """Write everything that waits, a group at a time."""
        while self.completion.error is None and (group := self.policy.take()):
            self._guard(partial(self._write, group))

    def tick(self, now: Nanoseconds) -> None:
        """Sync if the interval is over."""
        if self.completion.error is None and self.policy.sync_deadline() <= now:
            self._guard(self._sync_and_publish)

    def idle(self) -> None:
        """Nothing waits: fill in zeros ahead. Nobody waits for this."""
        if self.completion.error is None:
            self._guard(self._tidy)

    def trim(self, keep_from: Index | Exception) -> None:
        if self.completion.error is None:
            self._guard(partial(self._trim, keep_from))

    def close(self, clean: bool) -> None:
        self.run()
        if clean and self.completion.error is None:
            self._guard(self._stop_cleanly)
        self._wal.close()

    def _write(self, group: list[WriteBatch]) -> None:
        size = self._wal.append(group)
        if self.policy.written(group, size, self._clock()):
            self._sync()
        self._publish()

    def _sync(self) -> None:
        before = self._clock()
        self._wal.sync()
        self._last_sync = self._clock() - before
        self._max_sync = max(self._max_sync, self._last_sync)
        self._syncs += 1
        self.policy.synced()

    def _sync_and_publish(self) -> None:
        self._sync()
        self._publish()

    def _tidy(self) -> None:
        self._wal.prepare()

    def _trim(self, keep_from: Index | Exception) -> None:
        if isinstance(keep_from, Exception):
            raise keep_from
        self._wal.trim(keep_from)

    def _stop_cleanly(self) -> None:
        self._sync()
        self._wal.mark_clean_stop(self._clock())
        self._sync_and_publish()

    def _publish(self, error: StorageError | None = None) -> None:
        policy = self.policy
        self.completion = Completion(
            policy.acknowledged,
            error,
            self._syncs,
            self._last_sync,
            self._max_sync,
            self._wal.bytes_written,
            policy.unsynced_since,
            policy.unsynced_bytes,
        )
        if not self.quiet:
            self.notify()

    def _guard(self, action: Callable[[], None]) -> None:
        """The first failure, ours included, is the last thing that happens."""
        try:
            action()
        except StorageError as error:
            self._publish(error)
        except Exception as error:
            failure = StorageError(f"{self._wal.active_path}: the log writer failed: {error!r}")
            failure.__cause__ = error
            self._publish(failure)


class Writer:
    """The log writer of a node: written by the event loop itself, tidied by a thread.

    `pump`, called at the end of a turn, writes and syncs what was submitted in the calling thread: a hand-over to
    another thread and back costs as much as half a sync. What nobody waits for (zero-filling ahead, trimming) is done
    by a helper thread; while that has the disk, `pump` returns at once and the helper takes over what is submitted
    meanwhile. So no call ever waits for more than its own write.

    Args:
        wal: owned from here on.
        durability: "fsync" | "interval:MS" | "none".
        notify: called whenever `completed()` has changed, in whichever thread changed it.
    """

    def __init__(
        self, wal: Wal, durability: str, notify: Callable[[], None], clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._executor = _Executor(wal, durability, notify, clock)
        self._wal = wal
        self._clock = clock
        self._disk = threading.Lock()  # whoever holds it may touch the log
        self._commands: SimpleQueue[_Tidy | _Trim | _Close] = SimpleQueue()
        self._tidying = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="zcluster-log-helper", daemon=True)
        self._thread.start()

    def submit(self, batch: WriteBatch) -> None:
        """Queue one batch for the next `pump`. Raises: StorageError after a failure, Closed after `close`."""
        self._check_open()
        self._executor.policy.submit(batch)

    def waiting(self) -> bool:
        """Whether `pump` has anything to do now."""
        return self._executor.policy.waiting() or self.next_deadline() <= self._clock()

    def busy(self) -> bool:
        """Whether somebody has the disk. `pump` can do nothing then, so its deadline is no reason to wake up; `notify`
        is called when that is over."""
        return self._disk.locked()

    def pump(self) -> None:
        """Write and sync what waits (and what is due), here and now, unless the helper has the disk and will."""
        policy, now = self._executor.policy, self._clock()
        while (policy.waiting() or policy.sync_deadline() <= now) and self._executor.completion.error is None:
            if not self._disk.acquire(blocking=False):
                return
            self._executor.quiet = True
            try:
                self._work()
            finally:
                self._executor.quiet = False
                self._disk.release()
        if self._wal.untidy and not self._tidying:
            self._tidying = True
            self._commands.put(_Tidy())

    def next_deadline(self) -> Nanoseconds:
        """When `pump` wants to be called although nothing is submitted; NEVER if not at all."""
        return self._executor.policy.sync_deadline()

    def completed(self) -> Completion:
        return self._executor.completion

    def trim(self, clear: Callable[[], Index]) -> None:
        """Let the log forget whole segments below the index that `clear` returns.

        `clear` is called in the helper, once everything submitted so far is written, and may use the disk as long as it
        likes: neither the loop nor `pump` waits for it. What it raises ends the writer as a failed write does.
        """
        self._check_open()
        self._commands.put(_Trim(clear))

    def close(self, clean: bool) -> None:
        """Write out what is queued, end the thread, close the log; see `LogWriter`."""
        if not self._closed:
            self._closed = True
            self._commands.put(_Close(clean))
            self._thread.join()

    def _check_open(self) -> None:
        error = self._executor.completion.error
        if error is not None:
            raise error
        if self._closed:
            raise Closed("the log writer is closed")

    def _work(self) -> None:
        self._executor.run()
        self._executor.tick(self._clock())

    def _clear(self, command: _Trim) -> Index | Exception:
        with self._disk:  # an installed checkpoint must be in the log before older ones may go
            self._work()
        self._take_over()
        try:
            return command.clear()
        except Exception as error:
            return error

    def _run(self) -> None:
        """The helper: one command at a time, and whatever was submitted while it had the disk."""
        while True:
            command = self._commands.get()
            keep_from = self._clear(command) if isinstance(command, _Trim) else 0
            with self._disk:
                if isinstance(command, _Close):
                    self._executor.close(command.clean)
                    return
                self._work()
                if isinstance(command, _Trim):
                    self._executor.trim(keep_from)
                else:
                    self._executor.idle()
                    self._tidying = False
            self._take_over()

    def _take_over(self) -> None:
        """`pump` can get the disk again; what it could not write meanwhile is the helper's to write."""
        while (
            self._executor.policy.waiting()
            and self._executor.completion.error is None
            and self._disk.acquire(blocking=False)
        ):
            try:
                self._work()
            finally:
                self._disk.release()
        self._executor.notify()  # deadlines count again


class _Tidy(msgspec.Struct, frozen=True):
    """Fill in zeros ahead."""


class _Trim(msgspec.Struct, frozen=True):
    clear: Callable[[], Index]


class _Close(msgspec.Struct, frozen=True):
    clean: bool


class InlineWriter:
    """The same interface and the same decisions without a thread: `submit` returns when the batch is acknowledged (or
    has failed). With `immediate=False` nothing happens before `pump`, so that a simulator decides when the disk works.
    """

    def __init__(
        self,
        wal: Wal,
        durability: str,
        notify: Callable[[], None],
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        immediate: bool = True,
    ) -> None:
        self._executor = _Executor(wal, durability, notify, clock)
        self._clock = clock
        self._immediate = immediate
        self._trims: list[Index] = []
        self._closed = False

    def submit(self, batch: WriteBatch) -> None:
        """Queue one batch. Raises: StorageError after a failure, Closed after `close`."""
        self._check_open()
        self._executor.policy.submit(batch)
        if self._immediate:
            self.pump()

    def completed(self) -> Completion:
        return self._executor.completion

    def trim(self, keep_from: Index) -> None:
        """Let the log forget whole segments below `keep_from`, after everything submitted so far."""
        self._check_open()
        self._trims.append(keep_from)
        if self._immediate:
            self.pump()

    def pump(self) -> None:
        """Do everything that is queued or due."""
        self._executor.run()
        trims, self._trims = self._trims, []
        for keep_from in trims:
            self._executor.trim(keep_from)
        self._executor.tick(self._clock())
        self._executor.idle()

    def sync_deadline(self) -> Nanoseconds:
        """When `pump` wants to be called although nothing is submitted; NEVER if not at all."""
        return self._executor.policy.sync_deadline()

    def close(self, clean: bool) -> None:
        """Write out what is queued, close the log; see `LogWriter`."""
        if not self._closed:
            self._closed = True
            self._executor.close(clean)

    def _check_open(self) -> None:
        error = self._executor.completion.error
        if error is not None:
            raise error
        if self._closed:
            raise Closed("the log writer is closed")
