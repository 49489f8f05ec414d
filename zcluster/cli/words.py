"""The demo's piece of work; a module of its own, because workers import it and need nothing else from here."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

_WORD = re.compile(r"[a-z]{3,}")


def count_words(path: str) -> dict[str, int]:
    """How often each word of at least three letters occurs in a file; capitals count as small letters."""
    return Counter(_WORD.findall(Path(path).read_text(encoding="utf-8", errors="replace").lower()))
