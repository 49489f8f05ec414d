"""Lives of a store, each about one thing that a crash may interrupt."""

from __future__ import annotations

from collections.abc import Callable

from tests.unit.storage.lives import Life
from zcluster.sim.crash_points import RecordingDisk


def group_commit(life: Life) -> None:
    """Groups of waiting batches over several segments, small and larger than a segment."""
    life.start(create=True)
    life.vote(1, 1)
    for first in range(1, 100, 9):
        life.group(first, first + 8, 1, size=120)
    life.group(100, 102, 1, size=9000)
    life.group(103, 130, 1)


def truncations(life: Life) -> None:
    """Leaders that follow each other, each cutting into what the one before wrote."""
    life.start(create=True)
    life.puts(1, 40, 1)
    for term, after in ((2, 30), (3, 5), (4, 12), (5, 11)):
        life.overwrite(after, after + 15, term, term)
        life.puts(after + 16, after + 30, term)
    life.overwrite(0, 3, 6, 6)
    life.puts(4, 20, 6)


def votes(life: Life) -> None:
    """Terms and votes come and go between entries."""
    life.start(create=True)
    last = 0
    for term in range(1, 60):
        life.vote(term, 0)
        life.vote(term, 1 + term % 3)
        if term % 4 == 0:
            life.group(last + 1, last + 3, term)
            last += 3


def checkpoints(life: Life) -> None:
    """Checkpoint, prune, trim, recycle, restart, over and over."""
    life.start(create=True)
    for round_ in range(1, 7):
        life.puts(40 * round_ - 39, 40 * round_, round_)
        life.checkpoint(40 * round_ - 10, round_, chunks=round_)
        if round_ % 2:
            life.start(clean=round_ == 3)
            life.vote(round_, 1)


def stops(life: Life) -> None:
    """Clean stops with little between them, and with much."""
    life.start(create=True)
    last = 0
    for count in (1, 0, 3, 40, 1, 60):
        if count:
            life.puts(last + 1, last + count, 1)
        last += count
        life.start(clean=True)


def installs(life: Life) -> None:
    """Checkpoints of a leader: beyond the log, inside it, against it."""
    life.start(create=True)
    life.vote(1, 0)
    life.puts(1, 20, 1)
    life.receive(60, 2)
    life.puts(61, 90, 2)
    life.receive(75, 2)
    life.start(clean=False)
    life.puts(91, 100, 2)
    life.receive(95, 3)
    life.puts(96, 130, 3)
    life.checkpoint(110, 3)
    life.receive(200, 4)
    life.start(clean=True)
    life.puts(201, 210, 4)


def incarnations(life: Life) -> None:
    """A process that dies young, again and again."""
    life.start(create=True)
    for number in range(1, 25):
        if number % 3 == 0:
            life.put(number // 3, number // 3, 1)
        life.start(clean=number % 5 == 0)


WORKLOADS: dict[str, Callable[[Life], None]] = {
    "busy": Life.run,
    "group commit": group_commit,
    "truncations": truncations,
    "votes": votes,
    "checkpoints": checkpoints,
    "stops": stops,
    "installs": installs,
    "incarnations": incarnations,
}


def record(name: str, durability: str) -> tuple[Life, RecordingDisk]:
    """Run a workload; the disk has its trace, the life what held after each operation."""
    disk = RecordingDisk()
    life = Life(disk, durability, lambda: len(disk.trace))
    WORKLOADS[name](life)
    return life, disk
