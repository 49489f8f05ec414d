"""A store's life and, beside it, a model of what the store must remember.

A life is a list of steps (put, cut, vote, checkpoint, install, trim, restart ...) run against a store on any disk and,
in parallel, against `Model`. Whatever is recovered after a crash must be the model as it was acknowledged last, or one
of those that were on their way; in the weak modes one no older than the last forced sync.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tests.unit.storage.faulty_disk import FaultyDisk
from tests.unit.storage.stores import CHECKPOINTS, IDENTITY, ROOT, Node, entry, meta, open_at
from zcluster.storage.checkpoint import CheckpointFile, CheckpointReceiver, CheckpointWriter, prune
from zcluster.storage.disk import Disk
from zcluster.storage.recover import RecoveredStore
from zcluster.types import HardState


@dataclass(frozen=True)
class Model:
    """What a store promised to remember. base: an installed checkpoint took the place of the log up to here."""

    hard_state: HardState = field(default_factory=HardState)
    incarnation: int = 0
    repair: bool = False
    base: int = 0
    log: dict[int, int] = field(default_factory=dict)  # index -> epoch
    checkpoint: int = 0  # a checkpoint of at least this index is complete

    def put(self, first: int, last: int, epoch: int) -> Model:
        return replace(self, log=self.log | dict.fromkeys(range(first, last + 1), epoch))

    def cut(self, after: int) -> Model:
        return replace(self, log={index: epoch for index, epoch in self.log.items() if index <= after})

    def install(self, index: int, epoch: int) -> Model:
        if self.log.get(index) == epoch:
            return replace(self, checkpoint=index)
        kept = {} if index in self.log else {i: e for i, e in self.log.items() if i > index}
        return replace(self, log=kept, base=index, checkpoint=index)

    def admits(self, found: RecoveredStore) -> bool:
        """Whether `found` is this state, give or take what a checkpoint covers."""
        covered = found.checkpoint.index if found.checkpoint else 0
        if found.checkpoint and self.log.get(covered, found.checkpoint.epoch) != found.checkpoint.epoch:
            return False
        above = {e.index: e.epoch for e in found.entries if e.index > covered}
        below = [e for e in found.entries if e.index <= covered]
        return (
            covered >= max(self.base, self.checkpoint)
            and above == {index: epoch for index, epoch in self.log.items() if index > covered}
            and all(self.log.get(e.index, e.epoch) == e.epoch for e in below)
            and all(e.data == entry(e.index, e.epoch, len(e.data)).data for e in found.entries)
            and (found.hard_state, found.incarnation) == (self.hard_state, self.incarnation)
            and found.repair == self.repair
        )


@dataclass(frozen=True)
class Moment:
    """What holds from one disk operation on. `acknowledged`, `forced`: positions in `history` of the last model that
    the writer reported done, and of the last that no power cut may undo; `pending`: those that are on their way."""

    acknowledged: int = 0
    forced: int = 0
    pending: tuple[Model, ...] = ()
    created: bool = False


class Life:
    """Runs steps against a store and the model. `history[-1]` is acknowledged; `pending`: what a step would make.

    position: counts the disk's operations, so that `at` knows what held after how many of them.
    """

    def __init__(self, disk: Disk, durability: str, position: Callable[[], int] = lambda: 0) -> None:
        self.disk = disk
        self.durability = durability
        self.history = [Model()]
        self.moments = [(0, Moment())]
        self._position = position

    @property
    def moment(self) -> Moment:
        return self.moments[-1][1]

    @property
    def model(self) -> Model:
        return self.history[-1]

    def at(self, operations: int) -> Moment:
        """What held when so many operations had been done, and no more."""
        return self.moments[bisect_right(self.moments, operations, key=lambda item: item[0]) - 1][1]

    def note(self, **changes: object) -> None:
        self.moments.append((self._position(), replace(self.moment, **changes)))

    def step(self, after: Model, do: Callable[[], None], *, forced: bool = False) -> None:
        self.steps([after], do, forced=forced)

    def steps(self, after: Sequence[Model], do: Callable[[], None], *, forced: bool = False) -> None:
        """Several at once: none of them is acknowledged before the last."""
        self.note(pending=tuple(after))
        do()
        self.history += after
        last = len(self.history) - 1
        forced = forced or self.durability == "fsync"
        self.note(acknowledged=last, pending=(), forced=last if forced else self.moment.forced)

    def start(self, *, create: bool = False, clean: bool | None = None) -> None:
        if clean is not None:
            self.node.stop(clean=clean)
            self.note(forced=len(self.history) - 1 if clean else self.moment.forced)

        def do() -> None:
            self.node = Node(self.disk, create=create, durability=self.durability)

        self.step(replace(self.model, incarnation=self.model.incarnation + 1), do, forced=True)
        self.note(created=True)

    def vote(self, term: int, voted_for: int) -> None:
        state = HardState(term, voted_for)
        self.step(replace(self.model, hard_state=state), lambda: self.node.write(hard_state=state), forced=True)

    def put(self, first: int, last: int, epoch: int, size: int = 60) -> None:
        batch = tuple(entry(index, epoch, size) for index in range(first, last + 1))
        self.step(self.model.put(first, last, epoch), lambda: self.node.write(entries=batch))

    def puts(self, first: int, last: int, epoch: int, size: int = 60) -> None:
        for index in range(first, last + 1):
            self.put(index, index, epoch, size)

    def group(self, first: int, last: int, epoch: int, size: int = 60) -> None:
        """A batch for each entry, all of them waiting when the writer gets to work: one write, one sync."""
        batches = [{"entries": (entry(index, epoch, size),)} for index in range(first, last + 1)]
        self.steps(
            [self.model.put(first, index, epoch) for index in range(first, last + 1)],
            lambda: self.node.write_group(batches),
        )

    def overwrite(self, after: int, last: int, epoch: int, term: int) -> None:
        """What a follower does under a new leader, in one batch: term, cut, entries."""
        batch = tuple(entry(index, epoch, 60) for index in range(after + 1, last + 1))
        state = HardState(term, 0)
        wanted = replace(self.model.cut(after).put(after + 1, last, epoch), hard_state=state)
        self.step(wanted, lambda: self.node.write(hard_state=state, truncate_after=after, entries=batch), forced=True)

    def checkpoint(self, index: int, epoch: int, chunks: int = 1) -> None:
        def do() -> None:
            writer = CheckpointWriter(self.disk, CHECKPOINTS, meta(index, epoch), IDENTITY.cluster_id)
            for _ in range(chunks):
                writer.write(b"state" * 100)
            writer.finish()
            self.node.trim(prune(self.disk, CHECKPOINTS, keep=2) + 1)

        self.step(replace(self.model, checkpoint=index), do)

    def receive(self, index: int, epoch: int) -> None:
        """A leader's checkpoint arrives in pieces, and is installed with the entry behind it."""
        other = FaultyDisk()
        other.make_directory(CHECKPOINTS)
        writer = CheckpointWriter(other, CHECKPOINTS, meta(index, epoch), IDENTITY.cluster_id)
        writer.write(b"theirs" * 100)
        file = CheckpointFile(other, writer.finish())

        def transfer() -> None:
            receiver = CheckpointReceiver(self.disk, CHECKPOINTS, file.meta, file.size, IDENTITY.cluster_id)
            for offset in range(0, file.size, 256):
                receiver.write(offset, file.read_at(offset, 256))
            receiver.finish()

        if self.model.log.get(index, epoch) == epoch:
            # Nothing in the log speaks against it: once whole it may be used, recorded or not.
            self.step(replace(self.model.install(index, epoch), checkpoint=0, base=0), transfer)
        else:
            self.step(self.model, transfer)
        self.step(self.model.install(index, epoch), lambda: self.node.write(snapshot=meta(index, epoch)), forced=True)

    def repaired(self, repair: bool) -> None:
        self.step(replace(self.model, repair=repair), lambda: self.node.write(repair=repair), forced=True)

    def run(self) -> None:
        self.start(create=True)
        self.vote(1, 1)
        self.put(1, 5, 1)
        self.puts(6, 30, 1)
        self.overwrite(20, 24, 2, term=2)
        self.checkpoint(22, 2)
        self.puts(25, 60, 2)
        self.checkpoint(50, 2)
        self.start(clean=True)
        self.put(61, 61, 2, size=5000)
        self.puts(62, 110, 2)
        self.vote(5, 3)
        self.checkpoint(100, 2)
        self.puts(111, 114, 2)
        self.receive(150, 5)
        self.puts(151, 170, 5)
        self.repaired(True)
        self.start(clean=False)
        self.overwrite(160, 175, 7, term=7)
        self.receive(170, 8)
        self.repaired(False)
        self.puts(171, 200, 8)
        self.checkpoint(190, 8)
        self.puts(201, 205, 8)

    def check(self, found: RecoveredStore, *, exact: bool, moment: Moment | None = None) -> None:
        """`exact`: nothing acknowledged may be missing."""
        moment = moment or self.moment
        oldest = moment.acknowledged if exact else moment.forced
        candidates = (*self.history[oldest : moment.acknowledged + 1], *moment.pending)
        assert found.damage is None and not found.wiped, found.damage
        assert any(model.admits(found) for model in candidates), (found, candidates[-1])


def reopen(disk: Disk, moment: Moment, boot: str = "boot-2") -> RecoveredStore:
    """Open the store as a fresh process does, and let go of it."""
    exists = disk.exists(ROOT / "identity.json")
    assert exists or not moment.created
    store = open_at(disk, create=not exists, boot=boot)
    store.wal.close()
    store.close()
    return store.recovered
