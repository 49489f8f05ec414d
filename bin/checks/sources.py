"""Which files the checks look at: Python sources, scripts without a suffix included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

SKIPPED = {"__pycache__", "build", "dist", "node_modules"}


def python_files(roots: Iterable[str | Path]) -> Iterator[Path]:
    """Every Python file under `roots`, in a stable order: `*.py`, and extensionless files with a Python shebang."""
    for root in map(Path, roots):
        candidates = [root] if root.is_file() else sorted(root.rglob("*"))
        for path in candidates:
            if SKIPPED.intersection(path.parts) or not path.is_file():
                continue
            if path.suffix == ".py" or (not path.suffix and _has_python_shebang(path)):
                yield path


def _has_python_shebang(path: Path) -> bool:
    with open(path, "rb") as file:
        first = file.readline(120)
    return first.startswith(b"#!") and b"python" in first
