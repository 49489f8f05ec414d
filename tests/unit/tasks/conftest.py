"""A short directory for sockets: the path of an ipc socket holds 107 bytes, pytest's directories are longer."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def short_directory() -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="zct-")
    for name in "1mqpdsjxkrabew":  # one a test that has processes of its own
        (Path(path) / name).mkdir()
    yield path
    shutil.rmtree(path, ignore_errors=True)
