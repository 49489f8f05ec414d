"""Recorded traffic: threads of clients at work on a few keys of a cluster, while somebody does harm to it.

    with Traffic(cluster.connect) as traffic:
        cluster.wait_leader().kill()
        traffic.wait_progress()
    assert traffic.verdict().result == "linearizable"

Each caller has one operation under way: a read, put, append, cas or delete of one of a few keys, drawn from a seed.
Values are unique in a run, so that an answer tells whose write it saw. When the traffic ends, every key is read once
more: a history whose last acknowledged writes are lost has no order either.

Threads: a `Traffic` is used by one thread, and has one for each caller. What does not live here: recording itself
(`zcluster.sim.history`), judging (`zcluster.sim.verdict`), the harm.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Final, TextIO

from zcluster.api import Client
from zcluster.errors import Error, Timeout
from zcluster.sim.history import Operation, RecordedStore, Recorder
from zcluster.sim.verdict import Verdict, check_history

JOIN_S: Final = 10.0
"""Beyond an operation's own time limit, for a caller to end."""
SHARES: Final = {"get": 40, "put": 25, "append": 15, "cas": 15, "delete": 5}


class Traffic:
    """Callers at work from the beginning of the block to its end.

    Args:
        connect: makes a client, e.g. `cluster.connect`. Several: clients are made with each in turn.
        clients: with a connection (and so a session) of their own.
        callers: threads that share one client, and so its frames.
        keys: their number, shared by all. They must not exist when the traffic begins; `prefix` keeps them apart from
            what the cluster holds already. In the history they stand without it.
        seed: of every caller's choices.
        consistency: of reads, drawn anew for each: "linearizable", "lease".
        read_share: of all operations; None: as in SHARES.
        pace_s: mean time from one operation of a caller to the next; with slow answers it is longer.
        timeout_s: of an operation.
        stream: where the history is written while it happens, one JSON line an operation.
    """

    def __init__(
        self,
        connect: Callable[[], Client] | Sequence[Callable[[], Client]],
        *,
        clients: int = 3,
        callers: int = 2,
        keys: int = 3,
        prefix: str = "",
        seed: int = 0,
        consistency: Sequence[str] = ("linearizable",),
        read_share: float | None = None,
        pace_s: float = 0.005,
        timeout_s: float = 10.0,
        stream: TextIO | None = None,
    ) -> None:
        connects = [connect] if callable(connect) else list(connect)
        self.recorder = Recorder(stream)
        self.errors: Counter[str] = Counter()
        """Errors that callers were given, by name; each is in the history, too."""
        self.keys = [f"k{number}" for number in range(keys)]
        self._prefix = prefix
        self._last_connect = connects[0]
        self._clients = [connects[number % len(connects)]() for number in range(clients)]
        self._pace_s = pace_s
        self._timeout_s = timeout_s
        self._consistency = tuple(consistency)
        self._shares = _shares(read_share)
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._answered = [0] * (clients * callers)
        self._written = [0] * (clients * callers)
        self._threads = [
            threading.Thread(target=self._run, args=(number, seed), name=f"caller {number}", daemon=True)
            for number in range(clients * callers)
        ]

    # -- from the outside ---------------------------------------------------------------------------------------------
    def start(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def wait_progress(self, answers: int = 2, timeout: float = 30.0, *, callers: Sequence[int] | None = None) -> float:
        """Until each caller (of `callers`: their numbers) has got this many more answers; errors are none.

        Returns: how many seconds that took. Raises: Timeout, or what a caller failed with.
        """
        chosen = range(len(self._threads)) if callers is None else callers
        began = time.monotonic()
        with self._changed:
            goals = {number: self._answered[number] + answers for number in chosen}
            while late := [number for number, goal in goals.items() if self._answered[number] < goal]:
                self.check()
                left_s = began + timeout - time.monotonic()
                if left_s <= 0:
                    raise Timeout(f"callers {late} got no {answers} answers within {timeout:g} s; {dict(self.errors)}")
                self._changed.wait(left_s)
        self.check()
        return time.monotonic() - began

    def wait_writes(self, more: int, timeout: float) -> bool:
        """Until so many more writes are acknowledged. Returns: whether they are. Raises: what a caller failed with."""
        with self._changed:
            goal = self.writes + more
            done = self._changed.wait_for(lambda: self._failure is not None or self.writes >= goal, timeout)
        self.check()
        return done

    @property
    def writes(self) -> int:
        """Acknowledged so far."""
        return sum(self._written)

    def stop(self, *, final_reads: bool = True, timeout: float = 30.0) -> None:
        """End the callers, read every key once more, close the history. Idempotent.

        Args:
            final_reads: False if the cluster may be unable to answer. timeout: of each of them.
        Raises: what a caller, or a last read, failed with.
        """
        if self._stop.is_set():
            return
        self._stop.set()
        try:
            self._join()
            self.check()
            if final_reads:
                with self._last_connect() as client:
                    store = RecordedStore(client.kv, self.recorder, len(self._threads), self._prefix)
                    for key in self.keys:
                        store.get(key, timeout=timeout)
        finally:
            for client in self._clients:
                client.close()
            self.recorder.close()

    def verdict(self, timeout_s: float = 60.0) -> Verdict:
        """On all that happened so far."""
        return check_history(self.operations(), timeout_s)

    def operations(self) -> list[Operation]:
        return self.recorder.operations()

    def __enter__(self) -> Traffic:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(final_reads=error is None)

    def _join(self) -> None:
        give_up = time.monotonic() + self._timeout_s + JOIN_S
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, give_up - time.monotonic()))
        hung = [thread.name for thread in self._threads if thread.is_alive()]
        if hung:
            raise Timeout(f"{', '.join(hung)} did not end {JOIN_S:g} s after the time limit of an operation")

    def check(self) -> None:
        """Raises: what a caller failed with, which is a bug."""
        if self._failure is not None:
            raise self._failure

    # -- one caller, in its thread ------------------------------------------------------------------------------------
    def _run(self, number: int, seed: int) -> None:
        draw = random.Random(f"{seed}/{number}")
        callers = len(self._threads) // len(self._clients)
        try:
            store = RecordedStore(self._clients[number // callers].kv, self.recorder, number, self._prefix)
            caller = _Caller(store, number, self.keys, draw, self._consistency, self._shares, self._timeout_s)
            pause_s = draw.random() * self._pace_s
            while not self._stop.wait(pause_s):
                began = time.monotonic()
                try:
                    wrote = caller.act()
                except Error as error:
                    self._note(number, error)
                else:
                    self._note(number, None, wrote=wrote)
                pause_s = max(0.0, draw.expovariate(1.0) * self._pace_s - (time.monotonic() - began))
        except BaseException as failure:
            with self._changed:
                self._failure = failure
                self._changed.notify_all()

    def _note(self, number: int, error: Error | None, *, wrote: bool = False) -> None:
        with self._changed:
            if error is None:
                self._answered[number] += 1
                self._written[number] += wrote
            else:
                self.errors[type(error).__name__] += 1
            self._changed.notify_all()


class _Caller:
    """Draws operations and carries them out, one at a time."""

    def __init__(
        self,
        store: RecordedStore,
        number: int,
        keys: Sequence[str],
        draw: random.Random,
        consistency: Sequence[str],
        shares: dict[str, float],
        timeout_s: float,
    ) -> None:
        self._store = store
        self._number = number
        self._keys = keys
        self._draw = draw
        self._consistency = consistency
        self._kinds = list(shares)
        self._weights = list(shares.values())
        self._timeout_s = timeout_s
        self._serial = 0
        self._seen: dict[str, bytes | None] = {}

    def act(self) -> bool:
        """One operation. Returns: whether it was a write. Raises: Error."""
        draw, timeout = self._draw, self._timeout_s
        key = draw.choice(self._keys)
        kind = draw.choices(self._kinds, self._weights)[0]
        if kind == "get":
            self._seen[key] = self._store.get(key, consistency=draw.choice(self._consistency), timeout=timeout)
            return False
        self._serial += 1
        value = b"%d.%d;" % (self._number, self._serial)
        if kind == "put":
            self._store.put(key, value, timeout=timeout)
            self._seen[key] = value
        elif kind == "append":
            self._seen[key] = self._store.append(key, value, timeout=timeout)
        elif kind == "delete":
            self._store.delete(key, timeout=timeout)
            self._seen[key] = None
        elif self._store.cas(key, self._seen.get(key), value, timeout=timeout):
            self._seen[key] = value
        return True


def _shares(read_share: float | None) -> dict[str, float]:
    if read_share is None:
        return dict(SHARES)
    writes = sum(share for kind, share in SHARES.items() if kind != "get")
    left = 1.0 - read_share
    return {kind: read_share if kind == "get" else left * share / writes for kind, share in SHARES.items()}


def longest_gap_ns(operations: Iterable[Operation], begin: int, end: int) -> int:
    """The longest time without an acknowledged write between two moments (monotonic ns)."""
    answered = [o.returned for o in operations if o.kind != "get" and o.status == "ok" and o.returned is not None]
    moments = sorted([begin, *(moment for moment in answered if begin < moment < end), end])
    return max(after - before for before, after in pairwise(moments))
