"""Drives a ClientSession by hand, in virtual time."""

from __future__ import annotations

import itertools
from typing import Any

from zcluster import wire
from zcluster.client.session import ClientSession
from zcluster.types import MS

SECOND = 1000 * MS


class Driver:
    """Carries out nothing: keeps what was sent, answers by hand."""

    def __init__(self, replicas: tuple[int, ...] = (1, 2, 3), **options: Any) -> None:
        numbers = itertools.count(100)
        self.session = ClientSession(replicas, "cluster", lambda: next(numbers), **options)
        self.now = 10 * SECOND
        self.session.flush(self.now)

    def sends(self) -> list[tuple[int, int, int, bytes]]:
        """Newly sent: (replica, kind, request, body); HELLOs left out."""
        taken, self.session.sends = self.session.sends, []
        found = [(replica, *wire.HEAD.unpack(head), body) for replica, head, body in taken]
        return [send for send in found if send[1] != wire.HELLO]

    def hellos(self) -> list[int]:
        taken, self.session.sends = self.session.sends, []
        return [replica for replica, head, _ in taken if wire.HEAD.unpack(head)[0] == wire.HELLO]

    def results(self) -> list[tuple[Any, Any]]:
        taken, self.session.results = self.session.results, []
        return taken

    def receive(self, replica: int, kind: int, request: int, content: Any) -> None:
        self.session.received(replica, kind, request, wire.encode(content), self.now)
        self.session.flush(self.now)

    def leader(self, replica: int, term: int, said_by: int = 1) -> None:
        self.receive(said_by, wire.LEADER, 0, [replica, term])

    def put(self, token: Any, key: str = "k", timeout_ms: int = 10_000) -> None:
        self.session.write([wire.OP_PUT, key, b"v"], token, self.now + timeout_ms * MS, 20)

    def get(
        self, token: Any, consistency: int = wire.LINEARIZABLE, bound_ms: int = 0, timeout_ms: int = 10_000
    ) -> None:
        self.session.read([wire.OP_GET, "k"], token, self.now + timeout_ms * MS, consistency, bound_ms)

    def flush(self) -> None:
        self.session.flush(self.now)

    def advance(self, ms: float) -> None:
        """Let virtual time pass, with `deadline` called exactly when asked for."""
        end = self.now + int(ms * MS)
        for _ in range(10_000):
            due = self.session.next_deadline()
            if due > end:
                break
            self.now = max(self.now, due)
            self.session.deadline(self.now)
        else:
            raise AssertionError("the session asks for deadlines without end")
        self.now = end

    def register(self) -> None:
        """Learn that 1 leads, and register the session."""
        self.leader(1, 1)
        self.put("first")
        self.flush()
        ((replica, kind, request, body),) = self.sends()
        assert (replica, kind, wire.decode(body)) == (1, wire.WRITE, [100, 0, 0, [[wire.OP_REGISTER]]])
        self.receive(1, wire.RESULT, request, [7])
        ((_, _, request, body),) = self.sends()
        assert wire.decode(body) == [7, 1, 1, [[wire.OP_PUT, "k", b"v"]]]
        self.receive(1, wire.RESULT, request, [1])
        assert self.results() == [("first", 1)]
