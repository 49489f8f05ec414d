"""Noticing that a user's module has changed on disk since a worker imported it.

Modules of the interpreter, of installed packages and of zcluster are left out: they do not change under a running
cluster, and there are many.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from typing import Final

_INSTALLED: Final = ("site-packages", "dist-packages")


class ModuleWatch:
    """Remembers the modification times of the files that users' modules came from."""

    def __init__(self) -> None:
        paths = sysconfig.get_paths()
        self._left_out = tuple(
            {os.path.realpath(paths[name]) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")}
        )
        self._seen: dict[str, tuple[str, int] | None] = dict.fromkeys(sys.modules)

    def changed(self) -> bool:
        """Look at all of them. New modules are noted with their present time, so look soon after they come."""
        self.note_new()
        return any(_modified_ns(entry[0]) not in (entry[1], 0) for entry in self._seen.values() if entry is not None)

    def note_new(self) -> None:
        if len(sys.modules) == len(self._seen):
            return
        for name, module in list(sys.modules.items()):
            if name not in self._seen:
                self._seen[name] = self._entry(getattr(module, "__file__", None))

    def _entry(self, file: object) -> tuple[str, int] | None:
        if not isinstance(file, str):
            return None
        path = os.path.realpath(file)
        if path.startswith(self._left_out) or any(f"{os.sep}{name}{os.sep}" in path for name in _INSTALLED):
            return None
        modified_ns = _modified_ns(path)
        return (path, modified_ns) if modified_ns else None


def _modified_ns(path: str) -> int:
    """0 when the file is gone."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
