"""A machine of one's own under the simulator: what docs/simulator.md shows, and what is judged."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest

from zcluster import wire
from zcluster.errors import NoQuorum, Timeout, Unknown
from zcluster.machines.plain import PlainMachine
from zcluster.sim.checkers import Checkers
from zcluster.sim.own import OwnModel, OwnPromises, Workload
from zcluster.sim.prove import prove
from zcluster.sim.world import Violation, World

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "simulator.md"


class Tickets:
    """Hands out 1, 2, 3, .. for each name."""

    def __init__(self) -> None:
        self.given: dict[str, int] = {}

    def apply(self, op: list[Any]) -> Any:
        self.given[op[1]] = self.given.get(op[1], 0) + 1
        return self.given[op[1]]

    def query(self, op: list[Any]) -> Any:
        return self.given.get(op[1], 0)

    def dump(self) -> Any:
        return sorted(self.given.items())

    def load(self, state: Any) -> None:
        self.given = dict(state)


def take(draw: Random) -> tuple[Any, ...]:
    return ("take", draw.choice("ab"))


WORKLOAD = Workload(machine=lambda: PlainMachine(Tickets), model=Tickets, write=take, read=take)


@pytest.fixture
def checkers() -> Checkers:
    return Checkers(World(1), (1, 2, 3), lambda: OwnModel(WORKLOAD))


@pytest.fixture
def promises(checkers: Checkers) -> OwnPromises:
    return OwnPromises(World(1), checkers)


def execute(checkers: Checkers, index: int, *results: int, name: str = "a") -> None:
    ops = [["take", name] for _ in results]
    checkers.model.run(index, ops, list(results))
    checkers.highest_applied = index


def write(promises: OwnPromises) -> Any:
    return promises.called(0, ("take", "a"), wire.LINEARIZABLE, 0)


def read(promises: OwnPromises, level: int = wire.LINEARIZABLE) -> Any:
    return promises.called_all(1, (("given", "a"),), level)


# -- the documented example -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_example_of_the_documentation_holds_and_its_mistakes_are_found() -> None:
    section = DOCUMENT.read_text().split("## A machine of your own")[1].split("\n## ")[0]
    right, wrong = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(right.strip().splitlines()) <= 30
    names: dict[str, Any] = {}
    output = io.StringIO()
    exec(right, names)
    with contextlib.redirect_stdout(output):
        exec(wrong, names)
    found = dict(re.findall(r"^(\w+) \d+ seeds, .*: (.*)$", output.getvalue(), re.MULTILINE))
    assert found["Forgets"] == "state-machine safety"
    assert found["Loses"] == "results"
    assert found["Chance"] in ("state-machine safety", "results", "determinism")
    printed = re.findall(r"```\n(Loses .*?)\n\.\.\n(.*?)```", section, re.DOTALL)[0]
    for line in "\n".join(printed).strip().splitlines():
        assert line in output.getvalue()


def test_a_right_machine_is_proved_and_a_wrong_one_shrunk_and_replayed() -> None:
    assert prove(WORKLOAD, seed=1, seeds=2, nodes=3).holds
    losing = Workload(machine=lambda: PlainMachine(Losing), model=Tickets, write=take)
    proof = prove(losing, seed=1, seeds=5, shrink_runs=5)
    assert proof.case is not None
    assert proof.shortest is not None
    assert "results" in str(proof)
    assert f"seed={proof.case.seed}" in str(proof)
    again = prove(losing, seed=proof.case.seed, only=proof.case.only, shrink_runs=0)
    assert again.shortest is not None
    assert again.shortest.trace_hash == proof.shortest.trace_hash


class Losing(Tickets):
    """The 20th request and all after it do nothing."""

    requests = 0

    def apply(self, op: list[Any]) -> Any:
        self.requests += 1
        return super().apply(op) if self.requests < 20 else 0


class Once(Tickets):
    """Wrong in the first life of this process only."""

    wrong = True

    def apply(self, op: list[Any]) -> Any:
        wrong, Once.wrong = Once.wrong, False
        return 0 if wrong else super().apply(op)


@pytest.mark.slow
def test_what_does_not_happen_again_is_not_deterministic() -> None:
    chance = Workload(machine=lambda: PlainMachine(Once), model=Tickets, write=take)
    proof = prove(chance, seeds=3, nodes=3, faults=())
    assert proof.shortest is not None
    assert proof.shortest.property == "determinism"


# -- what is judged ---------------------------------------------------------------------------------------------------


def test_each_acknowledged_write_is_another_execution(checkers: Checkers, promises: OwnPromises) -> None:
    first, second, third = (write(promises) for _ in range(3))
    execute(checkers, 1, 1, 2)
    promises.returned(first, 2)
    promises.returned(second, 1)
    with pytest.raises(Violation, match="lost write"):
        promises.returned(third, 2)


def test_a_write_that_took_effect_before_its_call(checkers: Checkers, promises: OwnPromises) -> None:
    first = write(promises)
    execute(checkers, 1, 1)
    promises.returned(first, 1)
    with pytest.raises(Violation, match="lost write"):
        promises.returned(write(promises), 1)


def test_nothing_is_executed_more_often_than_it_was_asked_for(checkers: Checkers, promises: OwnPromises) -> None:
    promises.returned(write(promises), Unknown("?"))
    execute(checkers, 1, 1)
    promises.finish()
    promises.returned(write(promises), NoQuorum("certainly not applied"))
    execute(checkers, 2, 2)
    with pytest.raises(Violation, match="exactly-once"):
        promises.finish()


def test_a_read_shows_a_state_behind_all_that_had_returned(checkers: Checkers, promises: OwnPromises) -> None:
    early, first = read(promises), write(promises)
    execute(checkers, 1, 1)
    promises.returned(first, 1)
    promises.returned(early, [0])
    promises.returned(read(promises, wire.EVENTUAL), [0])
    with pytest.raises(Violation, match="stale read"):
        promises.returned(read(promises), [0])
    with pytest.raises(Violation, match="stale read"):
        promises.returned(read(promises, wire.EVENTUAL), [2])


def test_a_read_is_not_followed_by_an_older_one(checkers: Checkers, promises: OwnPromises) -> None:
    execute(checkers, 1, 1)
    execute(checkers, 2, 2)
    promises.returned(read(promises), [2])
    with pytest.raises(Violation, match="stale read"):
        promises.returned(read(promises), [1])


def test_reads_end_in_time_or_not_at_all(promises: OwnPromises) -> None:
    promises.returned(read(promises), Timeout("late"))
    with pytest.raises(Violation, match="client"):
        promises.returned(read(promises), Unknown("?"))


# -- the machine around a plain object --------------------------------------------------------------------------------


def frame(session: int, number: int, *ops: Any) -> bytes:
    return wire.encode((session, number, 0, ops))


def test_a_plain_machine_executes_each_frame_once_also_behind_a_restore() -> None:
    machine = PlainMachine(Tickets)
    (registered,) = machine.apply(1, 5, [frame(77, 0, (wire.OP_REGISTER,))])
    (session,) = wire.decode(registered)
    first = machine.apply(2, 5, [frame(session, 1, ("take", "a"), ("take", "a"))])
    assert wire.decode(first[0]) == [1, 2]
    assert machine.apply(3, 5, [frame(session, 1, ("take", "a"), ("take", "a"))]) == first
    other = PlainMachine(Tickets)
    other.restore(machine.capture().chunks())
    assert other.state_hash() == machine.state_hash()
    assert other.apply(4, 5, [frame(session, 1, ("take", "a"), ("take", "a"))]) == first
    assert wire.decode(other.query([["given", "a"]])) == [2]
    assert other.apply(5, 6, [frame(session, 2, ("take", "a"))]) == machine.apply(
        5, 6, [frame(session, 2, ("take", "a"))]
    )
    assert other.state_hash() == machine.state_hash()


def test_a_plain_machine_refuses_what_is_no_frame() -> None:
    machine = PlainMachine(Tickets)
    before = machine.state_hash()
    for data in (b"", b"x", frame(1, 1, "take"), frame(1, 1, ("take", 1.5)), frame(1, 0, ("take", "a"))):
        (body,) = machine.apply(1, 0, [data])
        assert wire.decode(body)["code"] == wire.E_BAD_REQUEST
    assert machine.state_hash() == before


def test_a_plain_snapshot_that_is_cut_short_changes_nothing() -> None:
    machine = PlainMachine(Tickets)
    chunks = list(machine.capture().chunks())
    before = machine.state_hash()
    with pytest.raises(ValueError, match="damaged"):
        machine.restore(iter(chunks[:-1]))
    assert machine.state_hash() == before
