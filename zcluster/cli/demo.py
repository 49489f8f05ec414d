"""`demo`: start a private cluster, use it, kill its leader with SIGKILL under a writer, and count what survived.

Everything shown was measured in this run; a lost write makes the demo fail with exit code 8.
"""

from __future__ import annotations

import asyncio
import os
import sysconfig
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import click

from zcluster.cli.context import App, pass_app
from zcluster.cli.main import verb

if TYPE_CHECKING:
    from zcluster.api import Client
    from zcluster.launch.local import LocalCluster

LOST_WRITES: Final = 8
FILES_MAX: Final = 1500
WORDS_KEPT: Final = 500
WRITES_AROUND: Final = 200
"""Acknowledged writes to see before the kill, and again after it."""
RECOVERY_S_MAX: Final = 15.0
_NOT_COUNTED: Final = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


@dataclass
class Story:
    """What happened, as it goes into the summary and into --json."""

    nodes: int
    workers: int
    start_s: float = 0.0
    files: int = 0
    words: int = 0
    most_common: list[tuple[str, int]] = field(default_factory=list)
    count_s: float = 0.0
    keys_written: int = 0
    killed: str = ""
    new_leader: str = ""
    without_service_ms: float = 0.0
    acknowledged: int = 0
    unknown: int = 0
    read_back: int = 0
    lost: list[str] = field(default_factory=list)
    rejoin_s: float = 0.0
    seconds: float = 0.0


class Writer(threading.Thread):
    """Writes one key after the other until told to stop, and remembers what was acknowledged, and when."""

    def __init__(self, client: Client) -> None:
        super().__init__(name="demo-writer", daemon=True)
        self._kv = client.kv
        self._ending = threading.Event()
        self._milestone = WRITES_AROUND
        self.reached = threading.Event()
        self.acknowledged: dict[str, bytes] = {}
        self.times_ns: list[int] = []
        self.unknown = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        from zcluster.errors import NoQuorum, Unknown

        number = 0
        try:
            while not self._ending.is_set():
                number += 1
                key, value = f"demo/write/{number:06d}", str(number).encode()
                try:
                    self._kv.put(key, value)
                except Unknown:
                    self.unknown += 1
                    continue
                except NoQuorum:
                    continue  # certainly not applied
                self.times_ns.append(time.monotonic_ns())
                self.acknowledged[key] = value
                if len(self.acknowledged) >= self._milestone:
                    self.reached.set()
        except BaseException as error:
            self.failure = error
            self.reached.set()

    def wait(self, timeout_s: float) -> bool:
        """Until the next milestone. Raises: whatever ended the writer."""
        reached = self.reached.wait(timeout_s)
        if self.failure is not None:
            raise self.failure
        return reached

    def expect_more(self) -> None:
        """The next milestone is WRITES_AROUND acknowledgements from now."""
        self.reached.clear()
        self._milestone = len(self.acknowledged) + WRITES_AROUND

    def stop(self) -> None:
        self._ending.set()
        self.join(RECOVERY_S_MAX)


def longest_gap_ms(times_ns: list[int], since_ns: int) -> float:
    """The longest stretch without an acknowledgement that ended after `since_ns`.

    >>> longest_gap_ms([0, 1_000_000, 41_000_000, 42_000_000], since_ns=2_000_000)
    40.0
    """
    return max((b - a for a, b in pairwise(times_ns) if b > since_ns), default=0) / 1e6


def library_files() -> list[str]:
    """Source files of the standard library, at most FILES_MAX, always the same ones."""
    found: list[str] = []
    for directory, below, names in os.walk(sysconfig.get_path("stdlib")):
        below[:] = sorted(set(below) - _NOT_COUNTED)  # pruned while walking: what is installed there may be huge
        found += [os.path.join(directory, name) for name in sorted(names) if name.endswith(".py")]
        if len(found) >= FILES_MAX:
            break
    return found[:FILES_MAX]


@verb("demo")
@click.option("-n", "--nodes", type=click.IntRange(3, 9), default=3, metavar="N", help="Nodes (default 3).")
@click.option("-w", "--workers", type=click.IntRange(1, 16), default=1, metavar="N", help="Workers a node (default 1).")
@pass_app
@click.pass_context
def demo(ctx: click.Context, app: App, nodes: int, workers: int) -> None:
    """See a cluster survive its leader's death: private, on this machine, gone afterwards.

    Counts words with Python tasks, writes keys, kills the leader with SIGKILL under a writer, measures the time without
    service, and reads every key back. Exits 8 if anything was lost.
    """
    app.say("A private cluster on this machine: real processes, real disks, a real crash. Nothing of it stays.\n")
    app.transient("   starting …")
    story = Story(nodes, nodes * workers)
    began = time.monotonic()
    from zcluster.launch.local import LocalCluster

    with LocalCluster(nodes=nodes, workers=workers) as cluster:
        story.start_s = time.monotonic() - began
        app.step("cluster is ready", f"{nodes} nodes, {story.workers} workers", story.start_s)
        with cluster.connect() as client:
            counts = _count(app, client, story)
            written = _write(app, client, counts, story)
            _kill(app, cluster, client, written, story)
            _read_back(app, client, written, story)
        _rejoin(app, cluster, story)
    story.seconds = time.monotonic() - began
    rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in story.__dict__.items()}
    app.emit(rounded | {"survived": not story.lost})
    _summary(app, story)
    ctx.exit(LOST_WRITES if story.lost else 0)


def _count(app: App, client: Client, story: Story) -> Counter[str]:
    from zcluster.cli.words import count_words

    began = time.monotonic()
    files = library_files()
    counts: Counter[str] = Counter()
    for done, result in enumerate(client.map(count_words, files), start=1):
        counts.update(result)
        if done % 10 == 0:
            app.transient(f"   counting words … {done:,} of {len(files):,} files")
    story.files, story.words, story.most_common = len(files), counts.total(), counts.most_common(4)
    story.count_s = time.monotonic() - began
    app.step("words counted", f"{len(files):,} files as tasks", story.count_s)
    app.say(f"     {story.words:,} words in Python's own library; {_often(story)}")
    return counts


def _often(story: Story) -> str:
    return "most often " + ", ".join(f"{word} ({count:,})" for word, count in story.most_common)


def _write(app: App, client: Client, counts: Counter[str], story: Story) -> dict[str, bytes]:
    """Store the most frequent words. Returns: what is in the store now."""
    began = time.monotonic()
    written = {f"demo/word/{word}": str(count).encode() for word, count in counts.most_common(WORDS_KEPT)}

    async def put_all() -> None:
        await asyncio.gather(*(client.aio.kv.put(key, value) for key, value in written.items()))

    asyncio.run(put_all())
    story.keys_written = len(written)
    app.step("counts written", f"{len(written):,} keys, on disk", time.monotonic() - began)
    return written


def _kill(app: App, cluster: LocalCluster, client: Client, written: dict[str, bytes], story: Story) -> None:
    """SIGKILL to the leader while a writer goes on; what it had acknowledged is added to `written`."""
    writer = Writer(client)
    writer.start()
    try:
        writer.wait(RECOVERY_S_MAX)
        leader = cluster.wait_leader(RECOVERY_S_MAX)
        story.killed = leader.name
        pid = leader.pid
        fault_ns = time.monotonic_ns()
        leader.kill()
        writer.expect_more()
        app.step("leader killed", f"{leader.name}, pid {pid}, SIGKILL")
        app.transient("   writing on …")
        if not writer.wait(RECOVERY_S_MAX):
            from zcluster.errors import NoQuorum

            raise NoQuorum(f"no service within {RECOVERY_S_MAX:g} s after the leader was killed")
    finally:
        writer.stop()
    story.without_service_ms = longest_gap_ms(writer.times_ns, fault_ns)
    story.new_leader = cluster.wait_leader(RECOVERY_S_MAX).name
    story.acknowledged, story.unknown = len(writer.acknowledged), writer.unknown
    written |= writer.acknowledged
    app.step("service is back", f"{story.new_leader} leads now")
    text = click.style(f"{story.without_service_ms:.0f} ms", bold=True)
    app.say(f"     {text} without service, as the writer saw it")


def _read_back(app: App, client: Client, written: dict[str, bytes], story: Story) -> None:
    """Every acknowledged key, linearizably, from the cluster that has lost its leader."""
    began = time.monotonic()

    async def get_all() -> list[bytes | None]:
        return await asyncio.gather(*(client.aio.kv.get(key) for key in written))

    values = asyncio.run(get_all())
    story.lost = [key for (key, value), found in zip(written.items(), values, strict=True) if found != value]
    story.read_back = len(written) - len(story.lost)
    if story.lost:
        app.clear_transient()
        app.error(f"{len(story.lost)} acknowledged keys are lost or wrong, among them {story.lost[0]}")
    else:
        app.step("every key read back", f"{story.read_back:,} of {len(written):,}", time.monotonic() - began)


def _rejoin(app: App, cluster: LocalCluster, story: Story) -> None:
    began = time.monotonic()
    app.transient(f"   starting {story.killed} again …")
    cluster.start(story.killed)
    cluster.wait_healthy(RECOVERY_S_MAX)
    story.rejoin_s = time.monotonic() - began
    app.step(f"{story.killed} started again", "caught up", story.rejoin_s)


def _summary(app: App, story: Story) -> None:
    total = story.keys_written + story.acknowledged
    if not story.lost:
        app.show(
            f"\nSurvived: all {total:,} acknowledged writes, {story.acknowledged:,} of them made around the crash.\n"
            f"Without service: {story.without_service_ms:.0f} ms.  The whole demo: {story.seconds:.1f}s.\n"
        )
    app.show("Try next:")
    commands: list[tuple[str, str]] = [
        ("up", "a cluster that stays"),
        ("kill leader && {} status", "the same crash, by hand"),
        ("submit math:factorial 20", "a Python function on a worker"),
        ("bench kv --callers 64", "how fast it is here"),
        ("down", "stop it; the data are kept"),
    ]
    lines = [(f"{app.program} {arguments.format(app.program)}", what) for arguments, what in commands]
    longest = max(len(command) for command, _ in lines)
    for command, what in lines:
        app.show(f"  {command:<{longest}}   {what}")
