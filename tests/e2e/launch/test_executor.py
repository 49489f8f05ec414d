"""`Executor` in the place of one from concurrent.futures, with the real programs."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from pathlib import Path

import pytest

from tests.e2e.launch.test_local import assert_nothing_left
from zcluster import Executor
from zcluster.launch import fleet

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def real_commands(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "COMMANDS", fleet.DEFAULT_COMMANDS)


def test_code_written_for_concurrent_futures_runs_as_it_is(home: Path) -> None:
    with Executor(max_workers=2) as executor:
        assert isinstance(executor, concurrent.futures.Executor)
        futures = [executor.submit(pow, 2, n) for n in range(8)]
        assert sorted(f.result() for f in concurrent.futures.as_completed(futures, 20)) == [2**n for n in range(8)]
        assert list(executor.map(pow, [1, 2], [3, 4], timeout=20)) == [1, 16]
        with pytest.raises(TimeoutError):
            list(executor.map(time.sleep, [5], timeout=0.1))

        async def through_a_loop() -> int:
            return await asyncio.get_running_loop().run_in_executor(executor, max, 3, 5)

        assert asyncio.run(through_a_loop()) == 5
        executor.shutdown(cancel_futures=True)
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(pow, 1, 1)
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.map(abs, [1])
    assert_nothing_left(home)
