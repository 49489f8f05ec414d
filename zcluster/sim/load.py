"""What the clients of a simulated cluster ask for: the mix of operations on the key-value store.

Written values are unique in a run, so that each can be found in the log. A caller that lists asks for page after page,
as `KV.list` does.
"""

from __future__ import annotations

from random import Random
from typing import Any, Final, NamedTuple

import msgspec

from zcluster import wire
from zcluster.client.operations import take_page
from zcluster.sim.promises import Call, Op, Promises
from zcluster.types import MS, Nanoseconds

PROGRAM_OPS_MAX: Final = 6


class Load(msgspec.Struct, kw_only=True):
    """What the clients of a world do. think: mean pause between two operations of a caller; timeout: of an operation,
    shortest and longest; levels: consistency levels of reads that are used; the shares are of everything, of what is
    not a pipeline, and of reads."""

    sessions: int = 2
    callers: int = 3
    keys: int = 4
    think: Nanoseconds = 20 * MS
    read_share: float = 0.4
    pipeline_share: float = 0.1
    list_share: float = 0.1
    timeout: tuple[Nanoseconds, Nanoseconds] = (500 * MS, 8000 * MS)
    levels: tuple[int, ...] = (wire.LINEARIZABLE, wire.LEASE, wire.BOUNDED, wire.EVENTUAL)


class Ask(NamedTuple):
    """One thing that a caller wants. program: the operations go as one, alone. only_reads: not through the log.
    level: consistency of reads; -1: any for a single read, linearizable for a pipeline."""

    ops: tuple[Op, ...]
    program: bool = False
    only_reads: bool = False
    level: int = -1


class KeyValueWork:
    """Draws the operations of one client. `number` makes its values its own."""

    def __init__(self, load: Load, promises: Promises, number: int, draw: Random) -> None:
        self._load = load
        self._promises = promises
        self._number = number
        self._random = draw
        self._serial = 0

    def choose(self) -> Ask:
        draw, load = self._random, self._load
        if draw.random() < load.pipeline_share:
            return self._pipeline()
        if draw.random() >= load.read_share:
            return Ask((self._write(),))
        if draw.random() >= load.list_share:
            return Ask((self._get(),), only_reads=True)
        prefix = draw.choice(("", "k", "k", f"k{draw.randrange(load.keys)}"))
        return Ask(((wire.OP_LIST, prefix, None, draw.choice((1, 2, 3, 10_000))),), only_reads=True)

    def _pipeline(self) -> Ask:
        draw = self._random
        count = draw.randint(1, PROGRAM_OPS_MAX)
        if draw.random() < self._load.read_share / 2:
            return Ask(tuple(self._get() for _ in range(count)), program=True, only_reads=True)
        ops = [self._get() if draw.random() < 0.3 else self._write() for _ in range(count)]
        ops.insert(draw.randint(0, count), (wire.OP_PUT, self._key(), self._value()))
        return Ask(tuple(ops), program=True)

    def _key(self) -> str:
        return f"k{self._random.randrange(self._load.keys)}"

    def _value(self) -> bytes:
        self._serial += 1
        return b"%d.%d;" % (self._number, self._serial)

    def _get(self) -> Op:
        return (wire.OP_GET, self._key())

    def _write(self) -> Op:
        draw = self._random
        key, value, dice = self._key(), self._value(), self._random.random()
        if dice < 0.4:
            return (wire.OP_PUT, key, value)
        if dice < 0.65:
            return (wire.OP_APPEND, key, value)
        if dice < 0.75:
            return (wire.OP_DELETE, key)
        expected = self._promises.value(key) if draw.random() < 0.8 else None
        return (wire.OP_CAS, key, expected, value if draw.random() < 0.8 else None)

    def following(self, call: Call, result: Any) -> Ask | None:
        """What the caller asks for next without a pause: the next page of a listing."""
        op = call.ops[0]
        if op[0] != wire.OP_LIST or isinstance(result, Exception):
            return None
        after = take_page({}, result)
        return None if after is None else Ask(((*op[:2], after, op[3]),), only_reads=True)

    def last(self) -> tuple[Ask, Ask]:
        """A fresh write and a fresh read, which must get through once everything is well."""
        write = (wire.OP_PUT, "last", b"c%d.last;" % self._number)
        return Ask((write,)), Ask(((wire.OP_GET, "last"),), only_reads=True)
