"""The stand-in: the loop goes on while its thread waits for the disk, and never runs twice at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from zcluster.node.standin import StandIn

WATCHDOG_S = 20


class Loop:
    """Counts turns, which block until woken, and notices if two threads are ever inside one."""

    def __init__(self) -> None:
        self.turns = threading.Semaphore(0)
        self.woken = threading.Event()
        self.inside = threading.Lock()
        self.fail = False

    def turn(self) -> None:
        assert self.inside.acquire(blocking=False), "two threads in the loop"
        try:
            if self.fail:
                raise RuntimeError("the loop broke")
            self.turns.release()
            assert self.woken.wait(WATCHDOG_S)
        finally:
            self.inside.release()


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def standin(loop: Loop) -> Iterator[StandIn]:
    standin = StandIn(loop.turn, loop.woken.set)
    yield standin
    standin.close()


def test_turns_go_on_while_the_disk_stalls_and_stop_when_it_answers(loop: Loop, standin: StandIn) -> None:
    def stalled() -> None:
        assert loop.turns.acquire(timeout=WATCHDOG_S)

    for _ in range(3):
        loop.woken.clear()
        standin.cover(stalled)
        assert loop.inside.acquire(blocking=False), "the stand-in is still in the loop"
        loop.inside.release()
    assert standin.covered == 3


def test_a_quick_disk_needs_nobody(loop: Loop, standin: StandIn) -> None:
    for _ in range(1000):
        standin.cover(lambda: None)
    assert not loop.turns.acquire(blocking=False)


def test_an_error_of_the_action_comes_out(standin: StandIn) -> None:
    with pytest.raises(OSError, match="broken disk"):
        standin.cover(lambda: (_ for _ in ()).throw(OSError("broken disk")))


def test_an_error_of_the_covered_loop_comes_out_in_its_own_thread(loop: Loop, standin: StandIn) -> None:
    loop.fail = True
    failed = threading.Event()
    original = standin._returned.set

    def returned() -> None:
        original()
        failed.set()

    standin._returned.set = returned  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the loop broke"):
        standin.cover(lambda: assert_true(failed.wait(WATCHDOG_S)))


def test_a_loop_that_has_failed_is_not_run_again(loop: Loop, standin: StandIn) -> None:
    """Whatever it was in the middle of is half done; the process ends as soon as the disk answers."""
    loop.fail = True
    ticks = threading.Semaphore(0)
    wait = standin._closed.wait

    def ticking(timeout: float | None = None) -> bool:
        ticks.release()
        return wait(timeout)

    standin._closed.wait = ticking  # type: ignore[method-assign]

    def stalled() -> None:
        while standin._failure is None:
            assert ticks.acquire(timeout=WATCHDOG_S)
        for _ in range(3):
            assert ticks.acquire(timeout=WATCHDOG_S)

    with pytest.raises(RuntimeError, match="the loop broke"):
        standin.cover(stalled)
    assert standin.covered == 1


def assert_true(value: bool) -> None:
    assert value
