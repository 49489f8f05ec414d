"""The ZeroMQ context of a client process: one, shared by all its connections, and none inherited by a fork.

What uses sockets of it says at import how they are closed at the interpreter's end (`close_at_exit`): before the
context is, or the end would hang.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable

import zmq

_contexts: dict[int, zmq.Context[zmq.Socket[bytes]]] = {}
"""By process. A parent's is kept, untouched, in the child."""
_closers: list[Callable[[], None]] = []


def process_context() -> zmq.Context[zmq.Socket[bytes]]:
    pid = os.getpid()
    if pid not in _contexts:
        _contexts[pid] = zmq.Context()
    return _contexts[pid]


def close_at_exit(close: Callable[[], None]) -> Callable[[], None]:
    """`close` closes all sockets of its kind that belong to this process. Usable as a decorator."""
    _closers.append(close)
    return close


@atexit.register
def _end() -> None:
    """Before the interpreter dismantles itself, so that neither threads nor sockets hang its end."""
    for close in _closers:
        close()
    context = _contexts.pop(os.getpid(), None)
    if context is not None:
        context.term()
