"""What clients were promised, judged by what they saw.

Every operation becomes a record of the history (the form that `zcluster check` reads). Beside that each answer is
compared with the log at once: the log's order is the witness of linearizability, so an operation that returned must
have taken effect at an index behind everything that had returned before it was called.

    acknowledged write     is in the log, once, with the very result it was answered
    refused write          ("certainly not applied") is nowhere in the log
    linearizable, lease    the value stood at an index >= all that had returned before the call
    bounded(ms)            ... all that had returned `ms` before the call
    eventual               the value stood at some time
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, Final

from zcluster import wire
from zcluster.errors import Busy, NoQuorum, Timeout, Unknown
from zcluster.sim.checkers import Checkers
from zcluster.sim.reference import KeyValueModel
from zcluster.sim.world import Violation, World
from zcluster.types import MS, Index, Nanoseconds

NAMES: Final = {
    wire.OP_PUT: "put",
    wire.OP_GET: "get",
    wire.OP_DELETE: "delete",
    wire.OP_CAS: "cas",
    wire.OP_APPEND: "append",
}
Record = dict[str, Any]


class Call:
    """One operation under way."""

    __slots__ = ("bound_ms", "caller", "consistency", "era", "floor", "op", "record", "started")

    def __init__(
        self, caller: int, op: tuple[Any, ...], consistency: int, bound_ms: int, started: Nanoseconds, floor: Index
    ) -> None:
        self.caller = caller
        self.op = op
        self.consistency = consistency
        self.bound_ms = bound_ms
        self.started = started
        self.floor = floor
        self.era = 0
        self.record: Record = {}


class Promises:
    """History and judgement. `era` grows with each power cut that may have taken acknowledged writes."""

    def __init__(self, world: World, checkers: Checkers) -> None:
        self.history: list[Record] = []
        self.era = 0
        self.completed = 0
        self._world = world
        self._checkers = checkers
        self._floors: list[tuple[Nanoseconds, Index]] = [
            (0, 0)
        ]  # (since, index all returned operations lie at or below)
        self._refused: list[tuple[bytes, Call]] = []

    @property
    def floor(self) -> Index:
        return self._floors[-1][1]

    def value(self, key: str) -> bytes | None:
        """What `key` holds by the newest entry that anybody has applied."""
        model = self._checkers.model
        assert isinstance(model, KeyValueModel)
        return model.values.get(key)

    def _raise_floor(self, index: Index) -> None:
        if index > self.floor:
            self._floors.append((self._world.now, index))

    def power_cut(self, stable: Index) -> None:
        self.era += 1
        self._floors = [(at, index) for at, index in self._floors if index <= stable]

    # -- operations ---------------------------------------------------------------------------------------------------

    def called(self, caller: int, op: tuple[Any, ...], consistency: int = wire.LINEARIZABLE, bound_ms: int = 0) -> Call:
        call = Call(caller, op, consistency, bound_ms, self._world.now, self.floor)
        call.era = self.era
        code = op[0]
        if consistency in (wire.LINEARIZABLE, wire.LEASE):
            record: Record = {"client": caller, "op": NAMES[code], "key": op[1], "call": call.started, "return": None}
            if code == wire.OP_CAS:
                record["expect"], record["value"] = _text(op[2]), _text(op[3])
            elif code in (wire.OP_PUT, wire.OP_APPEND):
                record["value"] = _text(op[2])
            record["status"] = "unknown"
            call.record = record
            self.history.append(record)
        return call

    def returned(self, call: Call, value: Any) -> None:
        """`value`: a result, or an exception."""
        self.completed += 1
        record = call.record
        if isinstance(value, Exception):
            self._failed(call, value)
            return
        record["return"], record["status"] = self._world.now, "ok"
        record["output"] = _text(value) if isinstance(value, bytes) else value
        if call.op[0] == wire.OP_PUT:
            record["output"] = None
        if call.era == self.era:
            self._judge(call, value)

    def _failed(self, call: Call, error: Exception) -> None:
        record = call.record
        if call.op[0] == wire.OP_GET:
            if not isinstance(error, Timeout | Busy):
                raise Violation("client", f"a read ended with {error!r}")
            record["return"], record["status"] = self._world.now, "fail"
        elif isinstance(error, NoQuorum | Busy):
            record["return"], record["status"] = self._world.now, "fail"
            token = written(call.op)
            if token is not None:
                self._refused.append((token, call))
        elif not isinstance(error, Unknown):
            raise Violation("client", f"{call.op} ended with {error!r}")

    def _judge(self, call: Call, value: Any) -> None:
        model, high = self._checkers.model, self._checkers.highest_applied
        assert isinstance(model, KeyValueModel)
        if call.op[0] == wire.OP_GET:
            self._judge_read(call, value, model, high)
            return
        token = written(call.op)
        if token is not None:
            index, result = model.executed.get(token, (0, None))
            if not index:
                raise Violation("lost write", f"{call.op} was acknowledged, but is not in the log")
            if value != result:
                raise Violation("results", f"{call.op} was answered {value!r}, in the log it gave {result!r}")
            if index <= call.floor:
                raise Violation("linearizable", f"{call.op} took effect at {index}, called when {call.floor} was known")
        else:
            found = model.removed_between(call.op[1], value, call.floor, high)
            if found is None:
                raise Violation("lost write", f"{call.op}, answered {value!r}, is not in the log behind {call.floor}")
            index = found
        self._raise_floor(index)

    def _judge_read(self, call: Call, value: bytes | None, model: KeyValueModel, high: Index) -> None:
        low = call.floor
        if call.consistency == wire.EVENTUAL:
            low = 0
        elif call.consistency == wire.BOUNDED:
            low = self._floor_at(call.started - call.bound_ms * MS)
        index = model.seen_since(call.op[1], value, low, high)
        if index is None:
            level = ("linearizable", "lease", f"bounded({call.bound_ms} ms)", "eventual")[call.consistency]
            raise Violation(
                "stale read", f"{level}: {call.op[1]} = {value!r}, which it never was from {low} on (log up to {high})"
            )
        if call.consistency in (wire.LINEARIZABLE, wire.LEASE):
            self._raise_floor(index)

    def _floor_at(self, time: Nanoseconds) -> Index:
        return self._floors[max(bisect_right(self._floors, time, key=_since) - 1, 0)][1]

    # -- at the end ---------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """What can be judged only when nothing is under way any more."""
        model = self._checkers.model
        assert isinstance(model, KeyValueModel)
        for token, call in self._refused:
            if token in model.executed:
                raise Violation(
                    "refused write", f"{call.op} was said not to be applied, but was, at {model.executed[token][0]}"
                )


def written(op: tuple[Any, ...]) -> bytes | None:
    """The value that an operation writes, unique in a run; None for those that only remove."""
    code = op[0]
    token: bytes | None = op[3] if code == wire.OP_CAS else op[2] if code in (wire.OP_PUT, wire.OP_APPEND) else None
    return token


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _since(entry: tuple[Nanoseconds, Index]) -> Nanoseconds:
    return entry[0]
