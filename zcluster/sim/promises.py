"""What clients were promised, judged by what they saw.

Every operation becomes a record of the history (the form that `zcluster check` reads). Beside that each answer is
compared with the log at once: the log's order is the witness of linearizability, so an operation that returned must
have taken effect at an index behind everything that had returned before it was called.

    acknowledged write     is in the log, once, with the very result it was answered
    refused write          ("certainly not applied") is nowhere in the log
    pipeline               is one frame of the log: its operations in order, nothing between them, each with its own
                           result or error; but not atomic: an error in it keeps none of the others from being applied
    linearizable, lease    the value stood at an index >= all that had returned before the call
    bounded(ms)            ... all that had returned `ms` before the call
    eventual               the value stood at some time
    several reads at once  (a pipeline that only reads, a page of a listing) all stood at one such index; the pages of
                           a long listing are asked for one after the other, each keeps the promise for itself
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, Final

from zcluster import wire
from zcluster.errors import Busy, NoQuorum, Timeout, TooLarge, Unknown
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
READS: Final = (wire.OP_GET, wire.OP_LIST)
LEVELS: Final = ("linearizable", "lease", "bounded", "eventual")
Op = tuple[Any, ...]
Record = dict[str, Any]


class Call:
    """What one caller has under way: one operation, or several that go as one. status: ok, fail (certainly no effect),
    unknown (so far, or for ever)."""

    __slots__ = ("bound_ms", "caller", "consistency", "era", "floor", "ops", "program", "records", "started", "status")

    def __init__(
        self,
        caller: int,
        ops: tuple[Op, ...],
        program: bool,
        consistency: int,
        bound_ms: int,
        started: Nanoseconds,
        floor: Index,
        era: int,
    ) -> None:
        self.caller = caller
        self.ops = ops
        self.program = program
        self.consistency = consistency
        self.bound_ms = bound_ms
        self.started = started
        self.floor = floor
        self.era = era
        self.status = "unknown"
        self.records: list[Record] = []

    @property
    def level(self) -> str:
        return LEVELS[self.consistency] + (f"({self.bound_ms} ms)" if self.consistency == wire.BOUNDED else "")

    @property
    def strict(self) -> bool:
        return self.consistency in (wire.LINEARIZABLE, wire.LEASE)


class Floors:
    """Which index all operations that have returned lie at or below, now and at any time before.

    `era` grows with each power cut that may have taken acknowledged writes."""

    def __init__(self, world: World) -> None:
        self.era = 0
        self._world = world
        self._since: list[tuple[Nanoseconds, Index]] = [(0, 0)]

    @property
    def now(self) -> Index:
        return self._since[-1][1]

    def rise(self, index: Index) -> None:
        if index > self.now:
            self._since.append((self._world.now, index))

    def at(self, time: Nanoseconds) -> Index:
        return self._since[max(bisect_right(self._since, time, key=lambda entry: entry[0]) - 1, 0)][1]

    def power_cut(self, stable: Index) -> None:
        self.era += 1
        self._since = [(at, index) for at, index in self._since if index <= stable]

    def lowest(self, call: Call) -> Index:
        """The oldest state that an answer to this read may show."""
        if call.consistency == wire.EVENTUAL:
            return 0
        if call.consistency == wire.BOUNDED:
            return self.at(call.started - call.bound_ms * MS)
        return call.floor


class Promises:
    """History and judgement of the key-value store."""

    def __init__(self, world: World, checkers: Checkers) -> None:
        self.history: list[Record] = []
        self.completed = 0
        self.floors = Floors(world)
        self._world = world
        self._checkers = checkers
        self._refused: list[tuple[bytes, Call]] = []

    @property
    def model(self) -> KeyValueModel:
        model = self._checkers.model
        assert isinstance(model, KeyValueModel)
        return model

    def value(self, key: str) -> bytes | None:
        """What `key` holds by the newest entry that anybody has applied."""
        return self.model.values.get(key)

    def power_cut(self, stable: Index) -> None:
        self.floors.power_cut(stable)

    # -- operations ---------------------------------------------------------------------------------------------------

    def called(self, caller: int, op: Op, consistency: int = wire.LINEARIZABLE, bound_ms: int = 0) -> Call:
        """One operation."""
        return self._begin(caller, (op,), False, consistency, bound_ms)

    def called_all(self, caller: int, ops: tuple[Op, ...], consistency: int = wire.LINEARIZABLE) -> Call:
        """A pipeline: its result is the list of results."""
        return self._begin(caller, ops, True, consistency, 0)

    def _begin(self, caller: int, ops: tuple[Op, ...], program: bool, consistency: int, bound_ms: int) -> Call:
        floors = self.floors
        call = Call(caller, ops, program, consistency, bound_ms, self._world.now, floors.now, floors.era)
        if call.strict:
            call.records = [self._record(call, op) for op in ops if op[0] in NAMES]
            self.history += call.records
        return call

    def _record(self, call: Call, op: Op) -> Record:
        code = op[0]
        record: Record = {"client": call.caller, "op": NAMES[code], "key": op[1], "call": call.started, "return": None}
        if code == wire.OP_CAS:
            record["expect"], record["value"] = _text(op[2]), _text(op[3])
        elif code in (wire.OP_PUT, wire.OP_APPEND):
            record["value"] = _text(op[2])
        record["status"] = "unknown"
        return record

    def returned(self, call: Call, value: Any) -> None:
        """`value`: a result (of a pipeline: the list of results, errors in their places), or an exception."""
        self.completed += 1
        if isinstance(value, Exception) and not (isinstance(value, TooLarge) and not call.program):
            self._failed(call, value)
            return
        call.status = "ok"
        values = value if call.program else [value]
        if call.ops[0][0] == wire.OP_LIST:
            self._record_page(call, value)
        elif call.records:
            for record, op, result in zip(call.records, call.ops, values, strict=True):
                self._fill(record, op, result)
        if call.era == self.floors.era:
            if all(op[0] in READS for op in call.ops):
                self._judge_reads(call, values)
            else:
                self._judge_writes(call, values)

    def _fill(self, record: Record, op: Op, result: Any) -> None:
        record["return"], record["status"] = self._world.now, "ok"
        if isinstance(result, Exception):  # of this operation: it had no effect
            record["status"] = "fail"
        elif op[0] != wire.OP_PUT:
            record["output"] = _text(result) if isinstance(result, bytes) else result
        else:
            record["output"] = None

    def _record_page(self, call: Call, page: Any) -> None:
        """A strict listing says of each of its pairs what a get would have said."""
        if not call.strict:
            return
        for key, value in zip(page[0][::2], page[0][1::2], strict=True):
            record = self._record(call, (wire.OP_GET, key))
            record["return"], record["status"], record["output"] = self._world.now, "ok", _text(value)
            self.history.append(record)

    def _failed(self, call: Call, error: Exception) -> None:
        if all(op[0] in READS for op in call.ops):
            if not isinstance(error, Timeout | Busy):
                raise Violation("client", f"a read ended with {error!r}")
            call.status = "fail"
        elif isinstance(error, NoQuorum | Busy):
            call.status = "fail"
            self._refused += [(token, call) for op in call.ops if (token := written(op)) is not None]
        elif not isinstance(error, Unknown):
            raise Violation("client", f"{call.ops} ended with {error!r}")
        for record in call.records:
            if call.status == "fail" or record["op"] == "get":  # a get has no effect, whatever became of its frame
                record["return"], record["status"] = self._world.now, "fail"

    # -- judgement ----------------------------------------------------------------------------------------------------

    def _judge_writes(self, call: Call, values: list[Any]) -> None:
        model, floor = self.model, call.floor
        token = next((token for op in call.ops if (token := written(op)) is not None), None)
        if token is None:
            (op,), (value,) = call.ops, values
            found = model.removed_between(op[1], value, floor, self._checkers.highest_applied)
            if found is None:
                raise Violation("lost write", f"{op}, answered {value!r}, is not in the log behind {floor}")
            self.floors.rise(found)
            return
        execution = model.executed.get(token)
        if execution is None:
            raise Violation("lost write", f"{call.ops} was acknowledged, but is not in the log")
        ops, results = execution.ops, execution.results
        if not call.program:
            place = execution.place
            ops, results = ops[place : place + 1], results[place : place + 1]
        if len(ops) != len(call.ops) or any(list(a) != list(b) for a, b in zip(ops, call.ops, strict=True)):
            raise Violation("pipeline", f"{call.ops} is in the log as {ops}, at {execution.at}")
        if not all(map(_same, results, values)):
            raise Violation("results", f"{call.ops} was answered {values!r}, in the log it gave {results!r}")
        if execution.at <= floor:
            raise Violation("linearizable", f"{call.ops} took effect at {execution.at}, called at {floor}")
        self.floors.rise(execution.at)

    def _judge_reads(self, call: Call, values: list[Any]) -> None:
        model, high = self.model, self._checkers.highest_applied
        low = self.floors.lowest(call)
        if call.ops[0][0] == wire.OP_LIST:
            index = model.page_since(call.ops[0], values[0], low, high)
        else:
            index = model.together_since([(op[1], v) for op, v in zip(call.ops, values, strict=True)], low, high)
        if index is None:
            seen = ", ".join(f"{op[1]} = {value!r}" for op, value in zip(call.ops, values, strict=True))
            raise Violation("stale read", f"{call.level}: {seen}, which never was from {low} on (log up to {high})")
        if call.strict:
            self.floors.rise(index)

    # -- at the end ---------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """What can be judged only when nothing is under way any more."""
        for token, call in self._refused:
            execution = self.model.executed.get(token)
            if execution is not None:
                raise Violation("refused write", f"{call.ops} was said not to be applied, but was, at {execution.at}")


def written(op: Op) -> bytes | None:
    """The value that an operation writes, unique in a run; None for those that only read or remove."""
    code = op[0]
    token: bytes | None = op[3] if code == wire.OP_CAS else op[2] if code in (wire.OP_PUT, wire.OP_APPEND) else None
    return token


def _same(result: Any, value: Any) -> bool:
    """`result`: of the log, an error as [code, text]; `value`: what the client was given."""
    if isinstance(value, TooLarge):
        return type(result) is list and result[0] == wire.E_TOO_LARGE
    return bool(result == value)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
