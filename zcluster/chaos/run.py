"""One run of chaos: faults one after the other, callers meanwhile, then a sound cluster again and a verdict.

    alone -> healthy? -> callers -> [ fault begins, lasts, ends -> calm ] ... -> all ended -> healthy? -> verdict

However the run ends (done, interrupted, an error), what was killed is started, what was paused goes on, and the network
is healed; faults of the network carry a deadline besides, for the case that this process is killed. Then the keys of
the run are removed.
"""

from __future__ import annotations

import os
import secrets
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

import msgspec

from zcluster.chaos.schedule import DEFAULT_KINDS, LEADER, Fault, describe, draw_schedule, halves
from zcluster.chaos.traffic import Traffic, longest_gap_ns
from zcluster.errors import Conflict, Degraded, Error, InvalidInput, Timeout
from zcluster.launch import files
from zcluster.sim.history import parse_history
from zcluster.sim.verdict import Verdict, check_history

if TYPE_CHECKING:
    from zcluster.launch.cluster import Cluster

PREFIX: Final = "zcluster-chaos/"
"""Of the keys that callers use; each run adds a name of its own."""
KEYS: Final = 5
CALLERS_MAX: Final = 256
RATE_MAX: Final = 100_000.0
FIRST_WRITE_S: Final = 10.0
HEALTHY_S: Final = 30.0
LEADER_S: Final = 2.0
LEFT_ALONE_S: Final = 5.0
"""So much longer than planned a fault of the network lasts at most if nobody ends it."""
TICK_S: Final = 0.25
RUNNING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Done(msgspec.Struct):
    """A fault that was done. `nodes` it met; `problem`: why it could not be done, or ended; empty: it was.

    `without_write_ms`: the longest time without an acknowledged write from its beginning to that of the next fault.
    """

    fault: Fault
    nodes: list[str]
    text: str
    at_s: float
    without_write_ms: float = 0.0
    problem: str = ""


class Outcome(msgspec.Struct):
    """`history`: the file that is kept; None: it was not asked for, and nothing is wrong. `problems`: what is not as it
    should be after all faults have ended."""

    seed: int
    done: list[Done]
    verdict: Verdict
    statuses: dict[str, int]
    longest_without_write_ms: float
    seconds: float
    history: Path | None
    problems: list[str]


class Watcher(Protocol):
    """Hears how a run goes on."""

    def begins(self, schedule: Sequence[Fault]) -> None: ...
    def tick(self, seconds: float, writes: int, errors: int, now: str) -> None: ...
    def done(self, done: Done) -> None: ...
    def says(self, text: str) -> None: ...


class Silence:
    """A watcher that does not care."""

    def begins(self, schedule: Sequence[Fault]) -> None: ...
    def tick(self, seconds: float, writes: int, errors: int, now: str) -> None: ...
    def done(self, done: Done) -> None: ...
    def says(self, text: str) -> None: ...


def run_chaos(
    cluster: Cluster,
    *,
    seed: int,
    every_s: float = 5.0,
    for_s: float = 60.0,
    kinds: Sequence[str] = DEFAULT_KINDS,
    callers: int = 8,
    rate: float = 400.0,
    history: Path | None = None,
    judge_s: float = 60.0,
    watcher: Watcher | None = None,
) -> Outcome:
    """Do faults to a healthy cluster for a while, and judge what clients of its own saw.

    Args:
        kinds: of `schedule.KINDS`.
        rate: operations a second, of all callers.
        history: where it is kept; None: nowhere, unless it is wrong or undecided.
        judge_s: then the verdict is "undecided".
    Raises: Degraded (not healthy at the beginning), Conflict (another run is under way), InvalidInput, and what the
        cluster raises. All faults have ended then too.
    """
    chaos = Chaos(
        cluster,
        seed=seed,
        every_s=every_s,
        for_s=for_s,
        kinds=kinds,
        callers=callers,
        rate=rate,
        watcher=watcher,
    )
    return chaos.run(history=history, judge_s=judge_s)


class Chaos:
    """The faults of one run; see `run_chaos`."""

    reads: Sequence[str] = ("linearizable", "lease")
    """What the callers ask for. Only the test that shows that a verdict can be bad changes it."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        seed: int,
        every_s: float,
        for_s: float,
        kinds: Sequence[str] = DEFAULT_KINDS,
        callers: int = 8,
        rate: float = 400.0,
        watcher: Watcher | None = None,
    ) -> None:
        if not 1 <= callers <= CALLERS_MAX:
            raise InvalidInput(f"from 1 to {CALLERS_MAX} callers, not {callers}")
        if not 0 < rate <= RATE_MAX:
            raise InvalidInput(f"more than 0 and at most {RATE_MAX:,.0f} operations a second, not {rate:g}")
        self._callers = callers
        self._rate = rate
        self.cluster = cluster
        self.seed = seed
        self.for_s = for_s
        self.schedule = draw_schedule(seed, list(cluster.nodes), every_s=every_s, for_s=for_s, kinds=kinds)
        self._watcher: Watcher = watcher if watcher is not None else Silence()
        self._killed: list[str] = []
        self._paused: list[str] = []
        self._network_touched = False
        self._began_ns = 0
        self._done: list[Done] = []

    # -- the whole ----------------------------------------------------------------------------------------------------
    def run(self, *, history: Path | None = None, judge_s: float = 60.0) -> Outcome:
        with self._alone():
            self._check_healthy()
            run_id = secrets.token_hex(4)
            path = history or Path(tempfile.gettempdir()) / f"zcluster-chaos-{self.cluster.name}-{run_id}.jsonl"
            with _open_history(path) as stream:
                try:
                    problems, seconds = self._record(stream, run_id)
                except BaseException:
                    if history is None:
                        with suppress(OSError):
                            path.unlink()
                    raise
        return self._judge(path, history, judge_s, problems, seconds)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two runs at once would take the majority away. Raises: Conflict."""
        try:
            held = files.lock(self.cluster.directory / "run" / "chaos.lock")
        except Conflict:
            raise Conflict(f"chaos runs on {self.cluster.name!r} already; wait until it has ended") from None
        try:
            yield
        finally:
            files.unlock(held)

    def _check_healthy(self) -> None:
        status = self.cluster.status()
        if status["state"] != "healthy":
            fix = f" First: {'; '.join(status['fix'])}" if status["fix"] else ""
            raise Degraded(
                f"{self.cluster.name!r} is not healthy ({'; '.join(status['problems'])}), and one more fault could "
                f"take its majority away.{fix}"
            )

    def _record(self, stream: TextIO, run_id: str) -> tuple[list[str], float]:
        """Faults and callers. Returns: what is wrong afterwards, and how long it took, in seconds."""
        self._remove_keys()
        traffic = Traffic(
            self.cluster.connect,
            clients=self._callers,
            callers=1,
            keys=KEYS,
            prefix=f"{PREFIX}{run_id}/",
            seed=self.seed,
            consistency=self.reads,
            pace_s=self._callers / self._rate,
            stream=stream,
        )
        problems: list[str] = []
        try:
            traffic.start()
            if not traffic.wait_writes(1, FIRST_WRITE_S):
                raise Timeout(f"no write was acknowledged within {FIRST_WRITE_S:g} s; nothing was done to the cluster")
            self._began_ns = time.monotonic_ns()
            self._watcher.begins(self.schedule)
            self._do_all(traffic)
            seconds = (time.monotonic_ns() - self._began_ns) / 1e9
        finally:
            with _uninterrupted():
                problems += self._end_all()
                problems += self._wait_healthy()
                problems += _attempt(traffic.stop, "the last reads are missing")
                problems += _attempt(self._remove_keys, "the keys of the run are left")
        return problems, seconds

    def _remove_keys(self) -> None:
        """Of this run, and of others that were killed: nobody else uses the prefix, for this run is alone."""
        with self.cluster.connect() as client:
            for key in client.kv.list(PREFIX):
                client.kv.delete(key)

    def _judge(self, path: Path, history: Path | None, judge_s: float, problems: list[str], seconds: float) -> Outcome:
        self._watcher.says("judging the history")
        with open(path, "rb") as file:
            operations = parse_history(file)
        verdict = check_history(operations, judge_s)
        kept: Path | None = path
        if history is None and verdict.result == "linearizable":
            path.unlink()
            kept = None
        return Outcome(
            self.seed,
            self._done,
            verdict,
            dict.fromkeys(("ok", "fail", "unknown"), 0) | Counter(o.status for o in operations),
            max((done.without_write_ms for done in self._done), default=0.0),
            seconds,
            kept,
            problems,
        )

    # -- the faults ---------------------------------------------------------------------------------------------------
    def _do_all(self, traffic: Traffic) -> None:
        for i, fault in enumerate(self.schedule):
            self._sleep_until(fault.at_s, traffic, "")
            begin_ns = time.monotonic_ns()
            done = Done(fault, [], str(fault), (begin_ns - self._began_ns) / 1e9)
            self._done.append(done)
            try:
                self._begin(fault, done)
                self._sleep_until(fault.at_s + fault.lasts_s, traffic, done.text)
            except Error as error:
                done.problem = str(error)
            problems = self._end_all()
            done.problem = done.problem or "; ".join(problems)
            following = self.schedule[i + 1].at_s if i + 1 < len(self.schedule) else self.for_s
            self._sleep_until(following, traffic, "")
            done.without_write_ms = longest_gap_ns(traffic.operations(), begin_ns, time.monotonic_ns()) / 1e6
            self._watcher.done(done)

    def _sleep_until(self, at_s: float, traffic: Traffic, now: str) -> None:
        """Until so many seconds after the beginning; shows meanwhile how it goes."""
        pause = threading.Event()
        while True:
            traffic.check()
            seconds = (time.monotonic_ns() - self._began_ns) / 1e9
            self._watcher.tick(seconds, traffic.writes, traffic.errors.total(), now)
            if seconds >= at_s:
                return
            pause.wait(min(TICK_S, at_s - seconds))

    def _begin(self, fault: Fault, done: Done) -> None:
        """Raises: Error."""
        names = self._find(fault)
        done.nodes = names
        done.text = describe(fault, [f"leader {n}" if fault.whom == (LEADER,) else n for n in names])
        cluster, kind, selector = self.cluster, fault.kind, ",".join(names)
        limit_s = fault.lasts_s + LEFT_ALONE_S
        if kind in ("kill", "kill-all"):
            self._killed = names
            cluster.kill(selector)
            return
        if kind == "pause":
            self._paused = names
            cluster.pause(selector)
            return
        self._network_touched = True
        if kind == "slow":
            cluster.slow(names, fault.amount, seconds=limit_s)
        elif kind == "flaky":
            cluster.flaky(names, fault.amount, duplicate=fault.doubled, seconds=limit_s)
        elif fault.shape == "bridge":
            cluster.partition(*halves(list(cluster.nodes), names[0]), bridge=names, seconds=limit_s)
        elif fault.shape == "minority":
            cluster.partition(names, seconds=limit_s)
        else:
            direction: Any = fault.shape if fault.shape in ("in", "out") else "both"
            cluster.isolate(names, direction=direction, seconds=limit_s)

    def _find(self, fault: Fault) -> list[str]:
        """The nodes that a fault is for; without a leader, one that its number chooses."""
        if fault.whom != (LEADER,):
            return list(fault.whom)
        try:
            return [self.cluster.wait_leader(LEADER_S).name]
        except Timeout:
            names = list(self.cluster.nodes)
            return [names[fault.number % len(names)]]

    # -- the end of them ----------------------------------------------------------------------------------------------
    def _end_all(self) -> list[str]:
        """End what is under way. Returns: what did not work; it is tried again with the next fault, and at the end."""
        cluster = self.cluster
        problems = []
        if self._paused:
            found = _attempt(lambda: cluster.resume(",".join(self._paused)), f"{' '.join(self._paused)} may be paused")
            self._paused = self._paused if found else []
            problems += found
        if self._killed:
            found = _attempt(lambda: cluster.start(",".join(self._killed)), f"{' '.join(self._killed)} may be down")
            self._killed = self._killed if found else []
            problems += found
        if self._network_touched:
            found = _attempt(cluster.heal, f"the network heals by itself within {LEFT_ALONE_S:g} s")
            self._network_touched = bool(found)
            problems += found
        return problems

    def _wait_healthy(self) -> list[str]:
        return _attempt(lambda: self.cluster.wait_healthy(HEALTHY_S), "the cluster is not healthy again")


def _attempt(action: Callable[[], object], meaning: str) -> list[str]:
    """Returns: nothing if it worked, else what that means and why."""
    try:
        action()
    except (Error, OSError) as error:
        return [f"{meaning}: {error}"]
    return []


def _open_history(path: Path) -> TextIO:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise InvalidInput(f"cannot write the history to {path}: {error.strerror}") from None
    return os.fdopen(descriptor, "w", encoding="utf-8")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back what would end this process: the faults are ended first. (Only the main thread can see to that.)"""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.signal(number, signal.SIG_IGN) for number in RUNNING}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
