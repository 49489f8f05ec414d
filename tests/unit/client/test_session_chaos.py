"""The session against a small unreliable cluster, in virtual time: lost and late answers, leaders that come and go,
sessions that are evicted. Whatever happens, each operation gets one result, and that result is true."""

from __future__ import annotations

import heapq
import itertools
import random
from typing import Any

import pytest

from zcluster import wire
from zcluster.client.session import ClientSession
from zcluster.errors import NoQuorum, Timeout, Unknown
from zcluster.machines.mux import ClusterMachine
from zcluster.types import MS

SECOND = 1000 * MS
REPLICAS = (1, 2, 3)


class World:
    """Three replicas over one log. A leader applies a write at once, late (even when it leads no more), or never."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = SECOND
        self.events: list[tuple[int, int, Any]] = []
        self.order = itertools.count()
        self.machine = ClusterMachine(64, 1 << 16, sessions_max=16)
        self.index = 0
        self.leader, self.term = 1, 1
        self.trouble = self.random.choice([0.0, 0.1, 0.3, 0.6])
        self.session = ClientSession(
            REPLICAS, "c", lambda: self.random.getrandbits(62) + 1, frames_in_flight=self.random.randint(1, 4)
        )
        self.bodies: dict[tuple[int, int], bytes] = {}
        self.results: dict[Any, Any] = {}
        self.submitted = 0

    def at(self, delay_ns: float, action: Any) -> None:
        heapq.heappush(self.events, (self.now + int(delay_ns), next(self.order), action))

    def latency(self) -> float:
        if self.random.random() < self.trouble / 4:
            return self.random.uniform(0, 3 * SECOND)
        return self.random.uniform(0.05, 2) * MS

    def chance(self, share: float = 1.0) -> bool:
        return self.random.random() < self.trouble * share

    # -- the cluster ----------------------------------------------------------------------------------------------
    def apply(self, body: bytes) -> bytes:
        self.index += 1
        return self.machine.apply(self.index, self.now // MS, [body])[0]

    def arrive(self, replica: int, head: bytes, body: bytes) -> None:
        kind, request = wire.HEAD.unpack(head)
        if kind == wire.HELLO:
            self.answer(replica, wire.LEADER, request, wire.encode([self.leader, self.term]))
        elif kind == wire.READ and wire.decode(body)[0] == wire.EVENTUAL:
            self.answer(replica, wire.RESULT, request, self.machine.query(wire.decode(body)[2]))
        elif replica != self.leader:
            hint = self.leader if self.random.random() < 0.7 else 0
            self.answer(replica, wire.NOT_LEADER, request, wire.encode([hint, self.term - (hint == 0)]))
        elif self.chance(0.2):
            self.answer(replica, wire.BUSY, request, wire.encode(["busy"]))
        elif kind == wire.READ:
            self.answer(replica, wire.RESULT, request, self.machine.query(wire.decode(body)[2]))
        elif self.chance(0.3):
            self.at(self.random.uniform(0, 4) * SECOND, lambda: self.commit(replica, request, body))
        elif not self.chance(0.2):
            self.commit(replica, request, body)

    def commit(self, replica: int, request: int, body: bytes) -> None:
        self.answer(replica, wire.RESULT, request, self.apply(body))

    def answer(self, replica: int, kind: int, request: int, body: bytes) -> None:
        if not self.chance(0.5):
            self.at(self.latency(), lambda: self.session.received(replica, kind, request, body, self.now))

    def elect(self) -> None:
        self.leader, self.term = self.random.choice([0, 1, 2, 3]), self.term + 1
        if self.leader:
            self.answer(self.leader, wire.LEADER, 0, wire.encode([self.leader, self.term]))
        elif self.events:
            self.at(self.random.uniform(10, 600) * MS, self.elect)

    def crowd_out(self) -> None:
        """Other clients come, so that the least recently used sessions are evicted."""
        for _ in range(self.random.choice([1, 16])):
            self.apply(wire.encode((self.random.getrandbits(62) + 1, 0, 0, [[wire.OP_REGISTER]])))

    # -- the client -----------------------------------------------------------------------------------------------
    def submit(self) -> None:
        choose, session = self.random, self.session
        for _ in range(choose.choice([1, 1, 5])):
            number = self.submitted
            self.submitted += 1
            deadline = self.now + int(choose.choice([0.05, 1, 5, 10]) * SECOND)
            mark = f"{number};".encode()
            dice = choose.random()
            if dice < 0.6:
                session.write([wire.OP_APPEND, "k", mark], ("append", number), deadline, len(mark))
            elif dice < 0.7:
                ops: list[Any] = [[wire.OP_APPEND, "k", mark], [wire.OP_GET, "k"]]
                session.write_all(ops, ("program", number), deadline, len(mark))
            else:
                consistency = choose.choice([wire.LINEARIZABLE, wire.LEASE, wire.EVENTUAL])
                session.read([wire.OP_GET, "k"], ("get", number), deadline, consistency)

    def pump(self) -> None:
        session = self.session
        session.flush(self.now)
        while session.sends:
            sends, session.sends = session.sends, []
            for replica, head, body in sends:
                if wire.HEAD.unpack(head)[0] == wire.WRITE:
                    session_id, frame_id = wire.decode(body)[:2]
                    assert self.bodies.setdefault((session_id, frame_id), body) == body, "a retry is the same bytes"
                if self.chance(0.2):
                    session.unsent(replica, head, self.now)
                elif not self.chance(0.3):
                    self.at(self.latency(), lambda r=replica, h=head, b=body: self.arrive(r, h, b))
        results, session.results = session.results, []
        for token, value in results:
            assert token not in self.results, "one result each"
            self.results[token] = value

    def run(self) -> None:
        for _ in range(40):
            self.at(self.random.uniform(0, 4) * SECOND, self.submit)
        for _ in range(self.random.choice([0, 1, 5])):
            self.at(self.random.uniform(0, 6) * SECOND, self.elect)
        for _ in range(self.random.choice([0, 0, 3])):
            self.at(self.random.uniform(0, 6) * SECOND, self.crowd_out)
        for _ in range(50_000):
            self.pump()
            event_at = self.events[0][0] if self.events else 1 << 62
            due = self.session.next_deadline()
            if min(event_at, due) >= 1 << 62:
                return
            if due < event_at:
                self.now = max(self.now, due)
                self.session.deadline(self.now)
            else:
                self.now, _, action = heapq.heappop(self.events)
                action()
        raise AssertionError("it never comes to rest")


@pytest.mark.parametrize("block", range(8))
def test_each_operation_gets_one_true_result(block: int) -> None:
    for seed in range(block * 25, block * 25 + 25):
        world = World(seed)
        world.run()
        session = world.session
        assert len(world.results) == world.submitted, f"seed {seed}"
        assert not (session._attempts or session._write_flights or session._writes.count), f"seed {seed}"
        applied = wire.decode(world.machine.query([[wire.OP_GET, "k"]]))[0] or b""
        marks = applied.split(b";")[:-1]
        assert len(marks) == len(set(marks)), f"seed {seed}: applied twice"
        for (what, number), value in world.results.items():
            done = str(number).encode() in marks
            if what == "get":
                assert value is None or type(value) in (bytes, Timeout), f"seed {seed}"
            elif isinstance(value, NoQuorum):
                assert not done, f"seed {seed}: {number} was said not to be applied"
            elif not isinstance(value, Unknown):
                new_value = value if what == "append" else value[0]
                assert done, f"seed {seed}: {number} was said to be applied"
                assert applied.startswith(new_value), f"seed {seed}"
                assert new_value.endswith(f"{number};".encode()), f"seed {seed}"


def test_without_trouble_everything_succeeds() -> None:
    world = World(1)
    world.trouble = 0.0
    world.elect = lambda: None  # type: ignore[method-assign]
    world.run()
    assert not [value for value in world.results.values() if isinstance(value, Exception)]
    assert world.now < 12 * SECOND
