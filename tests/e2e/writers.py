"""Callers that append to keys of their own without end, and know what must be there afterwards."""

from __future__ import annotations

import threading
import time

import zcluster

WATCHDOG_S = 60


class Writer(threading.Thread):
    """Appends its next number to its own key, for ever, and remembers what was acknowledged."""

    def __init__(self, client: zcluster.Client, name: str) -> None:
        super().__init__(daemon=True)
        self.client = client
        self.key = f"log/{name}"
        self.acknowledged: list[int] = []
        self.unknown: list[int] = []
        self.refused: list[int] = []
        self.stop = threading.Event()
        self.progress = threading.Condition()
        self.failure: BaseException | None = None

    def run(self) -> None:
        number = 0
        while not self.stop.is_set():
            number += 1
            try:
                value = self.client.kv.append(self.key, b"%d;" % number, timeout=30)
                assert value.endswith(b"%d;" % number)
                self.acknowledged.append(number)
            except zcluster.Unknown:
                self.unknown.append(number)
            except (zcluster.NoQuorum, zcluster.Busy):
                self.refused.append(number)
            except BaseException as failure:
                self.failure = failure
                return
            finally:
                with self.progress:
                    self.progress.notify_all()
            if number % 2000 == 0:  # keep the values small: append returns all of it
                self.key = f"{self.key}+"

    def wait_acknowledged(self, more: int) -> None:
        goal = len(self.acknowledged) + more
        give_up = time.monotonic() + WATCHDOG_S
        with self.progress:
            while len(self.acknowledged) < goal:
                assert self.failure is None, self.failure
                assert self.progress.wait(give_up - time.monotonic()), "no write was acknowledged"

    def check(self) -> None:
        stored: list[int] = []
        for _, value in sorted(self.client.kv.list(self.key.rstrip("+")).items(), key=lambda item: len(item[0])):
            stored += [int(part) for part in value.split(b";")[:-1]]
        assert len(stored) == len(set(stored)), "a write was applied twice"
        assert stored == sorted(stored), "one caller's writes changed their order"
        assert set(self.acknowledged) <= set(stored), "an acknowledged write is lost"
        assert set(stored) <= set(self.acknowledged) | set(self.unknown), "a refused write was applied"
