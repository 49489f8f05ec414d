"""End-to-end tests: real processes in a private ZCLUSTER_HOME; whatever a test leaves behind is an error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest


@pytest.fixture(autouse=True)
def private_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A ZCLUSTER_HOME of this test alone; afterwards nothing that was started for it may be alive."""
    home = tmp_path / "home"
    monkeypatch.setenv("ZCLUSTER_HOME", str(home))
    monkeypatch.delenv("ZCLUSTER_NAME", raising=False)
    monkeypatch.delenv("ZCLUSTER_DIRECTORY", raising=False)
    yield home
    left = living(home)
    psutil.wait_procs(left, timeout=5)
    left = living(home)
    lines = [f"{process.pid} {process.cmdline()}" for process in left]
    for process in left:
        process.kill()
    assert not lines, f"left behind: {lines}"


def living(home: Path) -> list[psutil.Process]:
    """Processes whose command line names a cluster below `home`."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        cmdline = process.info["cmdline"] or []
        ours = process.pid != os.getpid() and any(str(home) in argument for argument in cmdline)
        if ours and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found
