from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import zmq


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    kept: list[zmq.Socket[bytes]] = []  # until the end of the test, so that all are closed there
    make = context.socket

    def make_and_keep(kind: int, **options: Any) -> zmq.Socket[bytes]:
        kept.append(make(kind, **options))
        return kept[-1]

    object.__setattr__(context, "socket", make_and_keep)
    yield context
    for socket in kept:
        socket.close(linger=0)
    context.term()
