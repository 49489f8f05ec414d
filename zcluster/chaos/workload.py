"""Callers of the key-value store that record everything they ask and are told, for the linearizability checker.

Each caller is a thread with a client of its own and asks one thing at a time, at a steady pace. Keys lie below a prefix
that belongs to the run, so nothing of the user's is read or written; in the history they stand without it. Every value
is written once, so that a read says which write it saw.
"""

from __future__ import annotations

import random
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, Final

from zcluster.client.kv import KV
from zcluster.errors import Error
from zcluster.sim.history import RecordedStore, Recorder

KEYS: Final = ("k0", "k1", "k2", "k3", "k4")
PREFIX: Final = "zcluster-chaos/"
TIMEOUT_S: Final = 10.0
STRONG: Final[tuple[str, ...]] = ("linearizable", "linearizable", "lease")
"""What reads ask for: both levels promise the same."""

MIX: Final = (("get", 40), ("put", 20), ("append", 15), ("cas", 15), ("delete", 10))
"""Operations and how many of a hundred they are."""


class PrefixedStore:
    """A client's `kv` below a prefix, as `RecordedStore` wants one."""

    def __init__(self, kv: KV, prefix: str) -> None:
        self._kv = kv
        self._prefix = prefix

    def put(self, key: str, value: bytes, *, timeout: float = 10) -> int:
        return self._kv.put(self._prefix + key, value, timeout=timeout)

    def get(self, key: str, *, consistency: str = "linearizable", timeout: float = 10) -> bytes | None:
        return self._kv.get(self._prefix + key, consistency=consistency, timeout=timeout)

    def delete(self, key: str, *, timeout: float = 10) -> bool:
        return self._kv.delete(self._prefix + key, timeout=timeout)

    def cas(self, key: str, expected: bytes | None, new: bytes | None, *, timeout: float = 10) -> bool:
        return self._kv.cas(self._prefix + key, expected, new, timeout=timeout)

    def append(self, key: str, data: bytes, *, timeout: float = 10) -> bytes:
        return self._kv.append(self._prefix + key, data, timeout=timeout)


class Caller(threading.Thread):
    """One caller. `acknowledged`: when each of its writes was, monotonic ns, in order."""

    def __init__(
        self,
        number: int,
        client: Any,
        recorder: Recorder,
        stop: threading.Event,
        *,
        prefix: str,
        seed: int,
        pause_s: float,
        reads: Sequence[str],
        on_write: Callable[[], None],
    ) -> None:
        super().__init__(name=f"chaos-caller-{number}", daemon=True)
        self.acknowledged: list[int] = []
        self.errors = 0
        self.failure: BaseException | None = None
        self._number = number
        self._client = client
        self._draw = random.Random(f"caller {seed} {number}")
        self._store = RecordedStore(PrefixedStore(client.kv, prefix), recorder, number)
        self._reads = reads
        self._halt = stop
        self._pause_s = pause_s
        self._on_write = on_write
        self._written = 0
        self._seen: dict[str, bytes | None] = dict.fromkeys(KEYS)

    def run(self) -> None:
        try:
            while not self._halt.is_set():
                began = time.monotonic()
                self._step()
                self._halt.wait(max(0.0, self._pause_s * self._draw.uniform(0.5, 1.5) - (time.monotonic() - began)))
        except BaseException as failure:  # for the one who waits for us
            self.failure = failure
        finally:
            with suppress(Error):
                self._client.close()

    def _step(self) -> None:
        kind = self._draw.choices([k for k, _ in MIX], [w for _, w in MIX])[0]
        key = self._draw.choice(KEYS)
        store = self._store
        self._written += 1
        value = b"%d.%d" % (self._number, self._written)
        try:
            if kind == "get":
                self._seen[key] = store.get(key, consistency=self._draw.choice(self._reads), timeout=TIMEOUT_S)
                return
            if kind == "put":
                store.put(key, value, timeout=TIMEOUT_S)
                self._seen[key] = value
            elif kind == "append":
                self._seen[key] = store.append(key, b"+" + value, timeout=TIMEOUT_S)
            elif kind == "cas":
                if store.cas(key, self._seen[key], value, timeout=TIMEOUT_S):
                    self._seen[key] = value
            else:
                store.delete(key, timeout=TIMEOUT_S)
                self._seen[key] = None
        except Error:
            self.errors += 1
        else:
            self.acknowledged.append(time.monotonic_ns())
            self._on_write()


class Workload:
    """All callers of a run.

    Args:
        connect: makes a client.
        rate: operations a second, all callers together; with slow answers it is less.
        reads: what reads ask for; anything but STRONG makes histories that may be wrong.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        recorder: Recorder,
        *,
        callers: int,
        rate: float,
        seed: int,
        run_id: str,
        reads: Sequence[str] = STRONG,
    ) -> None:
        self.prefix = f"{PREFIX}{run_id}/"
        self._connect = connect
        self._recorder = recorder
        self._stop = threading.Event()
        self._progress = threading.Condition()
        self._callers = [
            Caller(
                number,
                connect(),
                recorder,
                self._stop,
                prefix=self.prefix,
                seed=seed,
                pause_s=callers / rate,
                reads=reads,
                on_write=self._notify,
            )
            for number in range(callers)
        ]

    def start(self) -> None:
        for caller in self._callers:
            caller.start()

    def _notify(self) -> None:
        with self._progress:
            self._progress.notify_all()

    def check(self) -> None:
        """Raises: what a caller died of, which is a bug."""
        for caller in self._callers:
            if caller.failure is not None:
                raise caller.failure

    def wait_writes(self, more: int, timeout_s: float) -> bool:
        """Until so many more writes are acknowledged. Returns: whether they are."""
        goal = self.writes + more
        with self._progress:
            return self._progress.wait_for(lambda: self.writes >= goal, timeout_s)

    @property
    def writes(self) -> int:
        """Acknowledged so far."""
        return sum(len(caller.acknowledged) for caller in self._callers)

    @property
    def errors(self) -> int:
        """Operations that ended with an error of the cluster's."""
        return sum(caller.errors for caller in self._callers)

    def stop(self) -> None:
        """Returns when every caller has ended. What they still waited for ends within its timeout."""
        self._stop.set()
        for caller in self._callers:
            if caller.ident is not None:
                caller.join(TIMEOUT_S + 5)

    def finish(self) -> None:
        """After `stop`, on a sound cluster: read every key once more, recorded too, then remove them all.

        Raises: Error, what the cluster says.
        """
        with self._connect() as client:
            last = RecordedStore(PrefixedStore(client.kv, self.prefix), self._recorder, len(self._callers))
            for key in KEYS:
                last.get(key, timeout=TIMEOUT_S)
            self.remove(client)

    def remove(self, client: Any) -> None:
        """Every key of this run. Raises: Error."""
        for key in client.kv.list(self.prefix, timeout=TIMEOUT_S):
            client.kv.delete(key, timeout=TIMEOUT_S)

    def longest_gap_ns(self, begin: int, end: int) -> int:
        """The longest time without an acknowledged write between two moments (monotonic ns)."""
        inside: list[int] = [begin, end]
        for caller in self._callers:
            moments = caller.acknowledged
            inside += moments[bisect_left(moments, begin) : bisect_right(moments, end)]
        inside.sort()
        return max(b - a for a, b in pairwise(inside))
