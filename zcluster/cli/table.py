"""Rows as aligned text: two spaces between columns, nothing drawn, so that it reads well and cuts well."""

from __future__ import annotations

from collections.abc import Sequence
from unicodedata import east_asian_width


def width(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return sum(2 if east_asian_width(c) in "WF" else 1 for c in text)


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines without trailing spaces; every row has as many cells as the header.

    >>> plain_table(["NODE", "PID"], [["n1", "41207"], ["n2", "-"]])
    ['NODE  PID', 'n1    41207', 'n2    -']
    """
    widths = [max(width(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return [
        "  ".join(c + " " * (w - width(c)) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


def size_text(size_bytes: float | None) -> str:
    """Powers of 1024, about two figures.

    >>> size_text(512), size_text(4_300_000), size_text(44_040_192), size_text(None)
    ('512B', '4.1M', '42M', '-')
    """
    if size_bytes is None:
        return "-"
    if size_bytes < 1024:
        return f"{size_bytes:.0f}B"
    for unit in "KMGTP":
        size_bytes /= 1024
        if size_bytes < 1024 or unit == "P":
            break
    return f"{size_bytes:.1f}{unit}" if size_bytes < 10 else f"{size_bytes:.0f}{unit}"


def count_text(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"
