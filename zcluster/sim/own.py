"""A machine of one's own under the simulator: what to ask it, and a model that says what is right.

    proof = prove(Workload(machine=.., model=.., write=.., read=..), seeds=50)    # sim.prove
    assert proof.holds, proof

The model is a second, simpler telling of the machine, a `machines.plain.Plain` object that never fails and lives once.
It executes the committed log, so every answer that a replica gives, in whatever order machines crash, restart from
checkpoints and replace each other, is compared with it. Everything else is checked as for the store: see `checkers`.

    acknowledged write     is in the log behind all that had returned before its call, with that very result; each of
                           them another execution
    every operation        is executed at most as often as it was asked for, not counting what was refused
    linearizable, lease    the answer is that of a state behind all that had returned before the call
    eventual               the answer is that of some state
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import msgspec

from zcluster import wire
from zcluster.errors import Busy, NoQuorum, Timeout, Unknown
from zcluster.machines.api import Machine
from zcluster.machines.plain import Plain
from zcluster.sim.checkers import Checkers
from zcluster.sim.load import Ask
from zcluster.sim.promises import Call, Floors, Op, Record
from zcluster.sim.reference import FrameModel
from zcluster.sim.world import Violation, World
from zcluster.types import Index


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """Args:
    machine: makes what is replicated; an object without sessions goes into a `machines.plain.PlainMachine`.
    model: makes the object that says what is right.
    write, read: draw one operation, a tuple of text, bytes and numbers. Without `read` nothing is read.
    """

    machine: Callable[[], Machine]
    model: Callable[[], Plain]
    write: Callable[[Random], Op]
    read: Callable[[Random], Op] | None = None


class OwnModel(FrameModel):
    """executed: what the log holds, by operation: (index, result). States are kept for reads, each with the index
    behind which it stood."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.executed: dict[bytes, list[tuple[Index, Any]]] = {}
        self._plain = workload.model()
        self._keeps_states = workload.read is not None
        self._states: list[tuple[Index, Plain]] = [(0, copy.deepcopy(self._plain))]

    def run(self, index: Index, ops: list[Any], answers: list[Any]) -> None:
        expected = [_as_sent(self._plain.apply(op)) for op in ops]
        if answers != expected:
            raise Violation("results", f"index {index}, {ops}: answered {answers}, the model says {expected}")
        for op, result in zip(ops, expected, strict=True):
            self.executed.setdefault(wire.encode(op), []).append((index, result))
        if self._keeps_states:
            if self._states[-1][0] == index:
                self._states.pop()
            self._states.append((index, copy.deepcopy(self._plain)))

    def answers(self, op: Op, low: Index) -> Iterable[tuple[Index, Any]]:
        """What a read would have been answered, from the newest state back to the one that stood at `low`."""
        for index, state in reversed(self._states):
            yield max(index, low), _as_sent(state.query(list(op)))
            if index <= low:
                return


class OwnPromises:
    """Judges what the callers of a machine of one's own were answered."""

    def __init__(self, world: World, checkers: Checkers) -> None:
        self.history: list[Record] = []  # only the store's operations have a form for others to judge
        self.completed = 0
        self.floors = Floors(world)
        self._world = world
        self._checkers = checkers
        self._claimed: dict[bytes, list[tuple[Index, Any]]] = {}
        self._asked: dict[bytes, int] = {}

    @property
    def model(self) -> OwnModel:
        model = self._checkers.model
        assert isinstance(model, OwnModel)
        return model

    def power_cut(self, stable: Index) -> None:
        self.floors.power_cut(stable)
        self._claimed = {}

    def called(self, caller: int, op: Op, consistency: int, bound_ms: int) -> Call:
        """A write."""
        key = wire.encode(op)
        self._asked[key] = self._asked.get(key, 0) + 1
        return Call(caller, (op,), False, consistency, bound_ms, self._world.now, self.floors.now, self.floors.era)

    def called_all(self, caller: int, ops: tuple[Op, ...], consistency: int) -> Call:
        """A read; it travels as a pipeline of one."""
        return Call(caller, ops, True, consistency, 0, self._world.now, self.floors.now, self.floors.era)

    def returned(self, call: Call, value: Any) -> None:
        self.completed += 1
        if isinstance(value, Exception):
            self._failed(call, value)
            return
        call.status = "ok"
        if call.era == self.floors.era:
            if call.program:
                self._judge_read(call, value[0])
            else:
                self._judge_write(call, value)

    def _failed(self, call: Call, error: Exception) -> None:
        if isinstance(error, (Timeout, Busy) if call.program else (NoQuorum, Busy)):
            call.status = "fail"
            if not call.program:
                self._asked[wire.encode(call.ops[0])] -= 1
        elif call.program or not isinstance(error, Unknown):
            raise Violation("client", f"{call.ops} ended with {error!r}")

    def _judge_write(self, call: Call, value: Any) -> None:
        key = wire.encode(call.ops[0])
        claimed = self._claimed.setdefault(key, [])
        for execution in self.model.executed.get(key, ()):
            index, result = execution
            if index > call.floor and result == value and self._count(execution, key) > claimed.count(execution):
                claimed.append(execution)
                self.floors.rise(index)
                return
        raise Violation("lost write", f"{call.ops}, answered {value!r}, is not in the log behind {call.floor}")

    def _count(self, execution: tuple[Index, Any], key: bytes) -> int:
        return self.model.executed[key].count(execution)

    def _judge_read(self, call: Call, value: Any) -> None:
        low, found = self.floors.lowest(call), None
        for index, answer in self.model.answers(call.ops[0], low):
            if answer == value:
                found = index
                if not call.strict:
                    break
        if found is None:
            raise Violation("stale read", f"{call.level}: {call.ops[0]} = {value!r}, which it never was from {low} on")
        if call.strict:
            self.floors.rise(found)

    def finish(self) -> None:
        """Nothing was executed more often than it was asked for."""
        for key, executions in self.model.executed.items():
            if len(executions) > self._asked.get(key, 0):
                raise Violation(
                    "exactly-once",
                    f"{wire.decode(key)} was executed {len(executions)} times, asked for {self._asked.get(key, 0)}",
                )


class OwnWork:
    """Draws what one client asks for."""

    def __init__(self, workload: Workload, read_share: float, levels: tuple[int, ...], draw: Random) -> None:
        self._workload = workload
        self._read_share = read_share
        self._levels = [level for level in levels if level != wire.BOUNDED]
        self._random = draw

    def choose(self) -> Ask:
        read = self._workload.read
        if read is not None and self._random.random() < self._read_share:
            return Ask((read(self._random),), True, True, self._random.choice(self._levels))
        return Ask((self._workload.write(self._random),))

    def following(self, call: Call, result: Any) -> Ask | None:
        return None

    def last(self) -> list[Ask]:
        """A fresh write, and a fresh read if there are any."""
        asks = [Ask((self._workload.write(self._random),))]
        if self._workload.read is not None:
            asks.append(Ask((self._workload.read(self._random),), True, True))
        return asks


def _as_sent(result: Any) -> Any:
    """As it arrives at the client: tuples are lists there."""
    return wire.decode(wire.encode(result))
