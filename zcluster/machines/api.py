"""The contract of replicated state machines: pure and deterministic.

Every replica applies the same frames in the same order and must come to the same bytes. So: no clock (time is
`log_time_ms`, from the log), no randomness, no iteration over sets, no dependence on hash seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol


class Snapshot(Protocol):
    """A frozen view of a machine, taken in O(1), read out in bounded slices while the machine goes on."""

    def chunks(self) -> Iterator[bytes]:
        """The state as self-contained chunks of at most ~64 KiB (one big value may exceed it), each made in well
        under a millisecond. Exhausting or closing the iterator ends the view."""

    def digest(self) -> Iterator[str | None]:
        """None after each slice of work, well under a millisecond long, then the digest of the state: the same on all
        replicas at equal index, whatever order their keys came in. In place of `chunks`; ends the view."""


class Machine(Protocol):
    def apply(self, index: int, log_time_ms: int, frames: list[bytes]) -> list[bytes]:
        """Apply one log entry. Returns one encoded result body per frame (see zcluster.wire). Never raises for bad
        input: that is a result. MemoryError and RecursionError stop the node."""

    def query(self, ops: list[Any]) -> bytes:
        """Encoded result body of read-only operations on the applied state."""

    def capture(self) -> Snapshot:
        """Freeze the state after the last applied entry, in O(1). At most one capture at a time."""

    def take_mark(self) -> bool:
        """Whether an OP_MARK was applied since this was last asked."""

    def maintain(self) -> bool:
        """One bounded slice of background work (merging the overlay back). True while there is more to do."""

    def restore(self, chunks: Iterator[bytes]) -> None:
        """Replace the whole state by what `Snapshot.chunks` gave. Raises: FormatTooNew, ValueError (damaged)."""

    def state_hash(self) -> str:
        """Hash over the logical state, equal on all replicas at equal index; O(n), for checks only."""
