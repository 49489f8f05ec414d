"""From one disk that a crash may have left behind, or one that a medium has damaged: what must hold of its recovery.

    crash       `walk`     every disk that `crash_states` makes of a recorded workload
    corruption  `inject`   a store at rest with one fault in one place (`faults`), for every place of every file

Both recover with the code that nodes run, go on after a bad disk, and give a `Tally`: the tests look at that, and
`bin/crash-walk` shows it while it grows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.crash.faults import Fault, all_faults
from tests.crash.workloads import record
from tests.unit.storage.lives import Life, Moment, reopen
from tests.unit.storage.stores import CHECKPOINTS, WAL, Node, open_at
from zcluster.errors import StorageError
from zcluster.sim.crash_points import Bounds, Image, RecordingDisk, crash_states
from zcluster.storage.checkpoint import read_checkpoint
from zcluster.storage.recover import RecoveredStore

NARROW = Bounds(subset_max=2, samples=1, blocks_max=2)
WIDE = Bounds(subset_max=6, samples=6, blocks_max=8)
INNER = Bounds(subset_max=2, samples=1, blocks_max=1)
BAD_MAX = 20  # that are told; all are counted


@dataclass
class Tally:
    """How many disks were recovered, and what was wrong.

    states: of crashes of the workload, or of faults. total: so many there are to be walked through. inner: crashes
    during a recovery. continued: logs that were written on. verdicts: (kind of fault, what came of it).
    """

    name: str
    total: int = 0
    states: int = 0
    inner: int = 0
    continued: int = 0
    bad_count: int = 0
    bad: list[str] = field(default_factory=list)
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __str__(self) -> str:
        text = f"{self.name}: {self.states} of {self.total} recovered"
        if self.inner or self.continued:
            text += f", {self.inner} crashes in recoveries, {self.continued} logs continued"
        return f"{text}, {self.bad_count} bad"

    def complain(self, where: str, error: BaseException) -> None:
        self.bad_count += 1
        if len(self.bad) < BAD_MAX:
            self.bad.append(f"{where}: {type(error).__name__}: {error}")


Progress = Callable[[Tally], None]


def silent(tally: Tally) -> None:
    """Progress of which nobody wants to hear."""


# -- crashes ----------------------------------------------------------------------------------------------------------


def distinct(states: Iterator[tuple[int, Image]], life: Life) -> Iterator[tuple[int, Image, Moment]]:
    """Each disk once for each set of obligations, with the number of operations before the crash."""
    seen: set[tuple[int, int]] = set()
    for operations, image in states:
        moment = life.at(operations)
        key = image.fingerprint(), id(moment)
        if key not in seen:
            seen.add(key)
            yield operations, image, moment


def essence(found: RecoveredStore) -> tuple[object, ...]:
    state = (found.hard_state, found.incarnation, found.repair, found.wiped)
    return (*state, found.entries, found.checkpoint, found.suspect_after)


def vote_may_be_lost(found: RecoveredStore) -> bool:
    """What `node.start` refuses to serve from; see there."""
    return found.checkpoint is not None and found.checkpoint.epoch > found.hard_state.term and not found.proven


def examine(image: Image, life: Life, moment: Moment, *, exact: bool) -> RecordingDisk:
    """Recover once, judge, recover again. Returns the disk as the first recovery left it."""
    disk = RecordingDisk(image)
    found = reopen(disk, moment)
    life.check(found, exact=exact, moment=moment)
    assert not exact or found.suspect_after is None, "a sound log is suspect"
    assert not vote_may_be_lost(found), "a node would refuse a sound disk"
    assert essence(reopen(RecordingDisk(disk.now()), moment)) == essence(found), "recovering again gives something else"
    if disk.trace:
        again = reopen(RecordingDisk(disk.durable()), moment)
        assert essence(again) == essence(found), "what was recovered did not survive a power cut"
    return disk


def crash_again(disk: RecordingDisk, life: Life, moment: Moment, *, exact: bool) -> int:
    """Every crash during the recovery that `disk` has recorded. Returns how many disks that were."""
    count = 0
    for _, inner, _ in distinct(crash_states(disk.trace, disk.image, INNER), life):
        life.check(reopen(RecordingDisk(inner), moment), exact=exact, moment=moment)
        count += 1
    return count


def continue_log(image: Image, boot: str = "boot-2") -> None:
    """Start a node on this disk, let it acknowledge some more, cut the power, look."""
    disk = RecordingDisk(image)
    node = Node(disk, boot=boot)
    found = node.store.recovered
    last = max([e.index for e in found.entries] + [found.checkpoint.index if found.checkpoint else 0])
    term = found.hard_state.term + 1
    node.vote(term, 3)
    node.put(*range(last + 1, last + 20), epoch=99)
    after = reopen(RecordingDisk(disk.durable()), Moment(created=True), "boot-3")
    assert [e.index for e in after.entries if e.epoch == 99] == list(range(last + 1, last + 20))
    assert [e for e in after.entries if e.epoch != 99] == found.entries and after.checkpoint == found.checkpoint
    assert (after.hard_state.term, after.hard_state.voted_for) == (term, 3)
    assert after.incarnation == found.incarnation + 1 and after.damage is None


def walk(
    name: str,
    durability: str,
    bounds: Bounds,
    *,
    limit: int | None = None,
    inner: int = 1,
    onward: int = 1,
    progress: Progress = silent,
) -> Tally:
    """Check the crash states of a workload: all, or at most `limit`, evenly spread; every `inner`-th of them for a
    second crash, every `onward`-th for going on."""
    life, disk = record(name, durability)
    exact = durability == "fsync"
    states = list(distinct(crash_states(disk.trace, disk.image, bounds), life))
    if limit is not None:
        states = states[:: -(-len(states) // limit)]
    tally = Tally(f"crash, {name}, {durability}", len(states))
    for number, (operations, image, moment) in enumerate(states):
        try:
            recovered = examine(image, life, moment, exact=exact)
            if number % inner == 0:
                tally.inner += crash_again(recovered, life, moment, exact=exact)
            if number % onward == 0 and moment.created:
                continue_log(image)
                tally.continued += 1
        except (AssertionError, StorageError) as error:
            tally.complain(f"{name}, {durability}, state {number}, after {operations} operations", error)
        tally.states += 1
        progress(tally)
    return tally


# -- corruption -------------------------------------------------------------------------------------------------------


def start(disk: RecordingDisk) -> RecoveredStore:
    store = open_at(disk, boot="boot-2")
    store.wal.close()
    store.close()
    return store.recovered


def verdict(life: Life, image: Image) -> str:
    """What came of a fault. Asserts: nothing false, nothing silent, and the same when recovered again."""
    disk = RecordingDisk(image)
    try:
        found = start(disk)
    except StorageError:
        return "refused"
    if found.wiped:
        assert found.damage is not None
        return "refused"
    if vote_may_be_lost(found):
        return "refused"
    if found.checkpoint_path is not None:
        assert sum(1 for _ in read_checkpoint(disk, found.checkpoint_path))
    again = start(disk)
    assert (again.entries, again.checkpoint, again.hard_state) == (found.entries, found.checkpoint, found.hard_state)
    assert again.repair == found.repair
    if found.repair:
        assert found.damage is not None
        assert_true_part(life, found)
        return "repair"
    assert life.model.admits(found) or replace(life.model, checkpoint=0).admits(found), found
    return "harmless" if found.damage is None else "reported"


def assert_true_part(life: Life, found: RecoveredStore) -> None:
    """What is left is what the store held at some time before, and the hard state is the newest all the same."""
    newest = life.model
    for earlier in life.history:
        part = replace(
            earlier,
            checkpoint=0,
            base=0,
            repair=True,
            hard_state=newest.hard_state,
            incarnation=newest.incarnation,
        )
        if part.admits(found):
            return
    raise AssertionError(found)


def damaged_files(image: Image) -> list[Path]:
    return sorted(path for path in image.files if path.parent in (WAL, CHECKPOINTS) and path.suffix != ".spare")


def inject(
    name: str,
    durability: str = "fsync",
    *,
    bits: int = 1,
    truncation_step: int = 1,
    stride: int = 1,
    progress: Progress = silent,
) -> Tally:
    """Single faults of the log and the checkpoints that a workload leaves: `bits` of each byte flipped one by one, all
    sectors zeroed, misdirected, stale, lost writes, a file cut at every `truncation_step`-th byte, or gone. Every
    `stride`-th of these; the missing files always."""
    life, disk = record(name, durability)
    tally = Tally(f"corruption, {name}, {durability}")
    files = damaged_files(disk.now())
    options = {"bits": bits, "truncation_step": truncation_step}
    tally.total = sum(1 for path in files for _ in chosen(disk, path, stride, options))
    for path in files:
        for kind, _, offset, image in chosen(disk, path, stride, options):
            try:
                tally.verdicts[kind, verdict(life, image)] += 1
            except AssertionError as error:
                tally.complain(f"{kind} {path.name} at {offset}", error)
            tally.states += 1
            progress(tally)
    return tally


def chosen(disk: RecordingDisk, path: Path, stride: int, options: dict[str, int]) -> Iterator[Fault]:
    for number, fault in enumerate(all_faults(disk, path, **options)):
        if number % stride == 0 or fault[0] == "missing":
            yield fault
