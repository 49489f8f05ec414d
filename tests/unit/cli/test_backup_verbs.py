"""restore: what it leaves when it is interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import Run
from zcluster.launch import backup as launch
from zcluster.storage.backup_file import Manifest

MANIFEST = Manifest(
    zcluster="0",
    cluster="old",
    cluster_id="c",
    engine="raft",
    node="n1",
    created_ms=0,
    index=1,
    epoch=1,
    revision=1,
    keys=1,
    log_time_ms=0,
    settings={},
)


@pytest.mark.parametrize("made", [True, False])
def test_an_interrupted_restore_says_what_it_leaves(run: Run, monkeypatch: pytest.MonkeyPatch, made: bool) -> None:
    def restore(
        file: Path, name: str, given: Any, wait_s: float, progress: Any, planted: Callable[[Manifest], None]
    ) -> None:
        if made:
            planted(MANIFEST)
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "restore", restore)
    done = run("restore", "monday.zb")
    assert done.exit_code == 130
    assert ("the new cluster goes on" in done.stderr) is made
