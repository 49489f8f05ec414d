"""Back-off: at once, then longer, never given up; failed disks are not hammered."""

from __future__ import annotations

import doctest

import pytest

from zcluster.launch import report, restart


@pytest.mark.parametrize(("kind", "cap_ms"), [("worker", 1000), ("router", 1000), ("replica", 3000)])
def test_first_restart_is_at_once_and_the_pause_is_bounded(kind: str, cap_ms: int) -> None:
    delays = [restart.delay_ms(kind, n) for n in range(100)]
    assert delays[0] == 0
    assert delays == sorted(delays)
    assert delays[-1] == cap_ms


def test_a_replica_whose_disk_failed_stays_down() -> None:
    assert restart.gives_up("replica", 74, None)
    assert restart.gives_up("replica", 78, "refused")
    assert restart.gives_up("replica", None, "adopted, but it left a reason")
    assert not restart.gives_up("replica", None, None)
    assert not restart.gives_up("replica", 0, None)
    assert not restart.gives_up("replica", -9, "an old reason")
    assert not restart.gives_up("worker", 74, None)


@pytest.mark.parametrize("module", [report, restart])
def test_examples_in_docstrings(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]
