"""Who looks before sleeping, and for how long that goes on."""

from __future__ import annotations

import os
import select
import time
from typing import cast

import pytest

from zcluster.transport.patience import SOON_NS, Patience

READY = [(3, 1)]
WAIT_NS = 1_000


class Epoll:
    """Answers as told, and notes the time-outs (seconds) it was asked with. A sleep of `sleep_ns` is pretended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looking: list[tuple[int, int]] = []
        self.asked: list[float] = []
        self.sleep_ns = 0
        self._now = 0
        monkeypatch.setattr(time, "monotonic_ns", self.now)

    def now(self) -> int:
        self._now += 1
        return self._now

    def poll(self, timeout_s: float) -> list[tuple[int, int]]:
        self.asked.append(timeout_s)
        if timeout_s:
            self._now += self.sleep_ns
            return READY
        return self.looking


def ask(patience: Patience, epoll: Epoll) -> bool:
    """Wait once. Returns: whether it looked before it slept."""
    epoll.asked.clear()
    assert patience.poll(cast(select.epoll, epoll), WAIT_NS, epoll.now()) == READY
    return epoll.asked[0] == 0


def test_looking_begins_after_a_short_wait_and_ends_when_it_is_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    epoll, patience = Epoll(monkeypatch), Patience()
    assert not ask(patience, epoll)  # slept, but not for long
    epoll.looking = READY
    assert ask(patience, epoll)
    assert epoll.asked == [0]
    epoll.looking, epoll.sleep_ns = [], SOON_NS
    assert ask(patience, epoll)  # in vain, and the sleep after it was long
    assert epoll.asked[-1] == WAIT_NS / 1e9
    assert not ask(patience, epoll)
    assert not ask(patience, epoll)


def test_one_processor_is_left_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    epoll, patience = Epoll(monkeypatch), Patience()
    for _ in range(3):
        assert not ask(patience, epoll)
