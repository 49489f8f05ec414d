"""Work on a frozen state, in slices between the turns of the loop: a checkpoint goes to its thread, a digest comes out.

After each slice the loop has twice as long as it took for everything else: a checkpoint that took all of its time made
writes twice as slow at the 99th percentile. The state can be frozen once at a time (`replica` sees to that), so there
is one of the two at most. One thread: that of the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic_ns
from typing import Final

from zcluster.errors import StorageError
from zcluster.machines.api import Snapshot
from zcluster.storage.checkpoint import BackgroundCheckpoint
from zcluster.types import NEVER, Index, Nanoseconds, SnapshotMeta

REST: Final = 2  # times as long as a slice took, the loop is for everything else


class Slices:
    """What is under way. `due`: when the next slice is, NEVER if somebody else has to do something first.

    Args:
        begin: makes the thread that writes a checkpoint's file; it wakes the loop up.
        written: told of each checkpoint that is complete or has failed, with its size in bytes.
        digested: told of each digest; None: it was given up.
    """

    def __init__(
        self,
        begin: Callable[[SnapshotMeta], BackgroundCheckpoint],
        written: Callable[[SnapshotMeta, Exception | None, int], None],
        digested: Callable[[Index, str | None], None],
    ) -> None:
        self.due: Nanoseconds = NEVER
        self._begin = begin
        self._written = written
        self._digested = digested
        self._capture: tuple[SnapshotMeta, Iterator[bytes], BackgroundCheckpoint] | None = None
        self._fed = False
        self._bytes = 0
        self._digest: tuple[Index, Iterator[str | None]] | None = None

    def checkpoint(self, meta: SnapshotMeta, snapshot: Snapshot) -> None:
        self._capture = (meta, snapshot.chunks(), self._begin(meta))
        self._fed = False
        self._bytes = 0
        self.due = 0

    def digest(self, index: Index, snapshot: Snapshot) -> None:
        self._digest = (index, snapshot.digest())
        self.due = 0

    def pump(self, *, hurry: bool = False) -> bool:
        """One slice, if it is time for one. `hurry`: without rests.

        Returns: whether the loop must not sleep: there is more to do at once, or somebody may be waiting to hear of
        what has come out.
        """
        if self._capture is not None:
            return self._pump_checkpoint(hurry)
        return self._digest is not None and self._pump_digest()

    def drop_digest(self, digest: str | None = None) -> None:
        """It has come out, or is given up."""
        if self._digest is not None:
            index, _ = self._digest
            self._digest, self.due = None, NEVER  # the view goes with its iterator
            self._digested(index, digest)

    def abort(self) -> None:
        """A checkpoint that is not complete is none."""
        if self._capture is not None:
            self._capture[2].abort()

    def _pump_checkpoint(self, hurry: bool) -> bool:
        assert self._capture is not None
        meta, chunks, background = self._capture
        error: Exception | None = None
        try:
            if not self._fed and background.room() > 0:
                return self._feed(chunks, background, hurry)
            self.due = NEVER  # its thread wakes us
            if background.result() is None:
                return False
        except StorageError as failed:
            error = failed
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
        self._capture, self.due = None, NEVER
        self._written(meta, error, self._bytes)
        return True

    def _feed(self, chunks: Iterator[bytes], background: BackgroundCheckpoint, hurry: bool) -> bool:
        began = monotonic_ns()
        if began < self.due and not hurry:
            return False
        chunk = next(chunks, None)
        if chunk is None:
            background.finish()
            self._fed = True
            return True
        background.put(chunk)
        self._bytes += len(chunk)
        self._rest(began)
        return hurry

    def _pump_digest(self) -> bool:
        assert self._digest is not None
        began = monotonic_ns()
        if began < self.due:
            return False
        digest = next(self._digest[1])
        self._rest(began)
        if digest is None:
            return False
        self.drop_digest(digest)
        return True

    def _rest(self, began: Nanoseconds) -> None:
        now = monotonic_ns()
        self.due = now + REST * (now - began)
