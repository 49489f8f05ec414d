"""A node's log: one line an event on standard error, which the launcher sends to a file and rotates."""

from __future__ import annotations

import sys
import time


def journal(node: str, text: str) -> None:
    """`2026-01-31T12:00:00.123 n1 text`; never raises (a full disk must not stop a node over its log)."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now))
    try:
        sys.stderr.write(f"{stamp}.{int(now * 1000) % 1000:03d} {node} {text}\n")
        sys.stderr.flush()
    except OSError:
        pass
