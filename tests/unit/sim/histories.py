"""Histories for tests: made from real sequential runs, a checker that tries every order, and one that checks an order.

None of it shares a line with the checker under test.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from zcluster.sim.history import Kind, Operation, Output

Value = str | None


def outcome(kind: str, value: Value, expect: Value, before: Value) -> tuple[Output, Value]:
    """(output, value afterwards) of one operation on a key whose value is `before`."""
    if kind == "get":
        return before, before
    if kind == "put":
        return None, value
    if kind == "delete":
        return before is not None, None
    if kind == "cas":
        return (True, value) if before == expect else (False, before)
    assert kind == "append"
    after = (before or "") + (value or "")
    return after, after


def explains(operation: Operation, before: Value) -> tuple[bool, Value]:
    """(whether the operation may take effect here with the outcome it had, value afterwards)."""
    output, after = outcome(operation.kind, operation.value, operation.expect, before)
    if operation.status != "ok" or operation.kind == "put":
        return True, after
    if operation.output is None and operation.kind in ("append", "delete"):
        return True, after
    return output == operation.output, after


def precedes(first: Operation, second: Operation) -> bool:
    return first.status == "ok" and first.returned is not None and first.returned < second.call


def brute_force(operations: Sequence[Operation], starts: Sequence[Value] = (None,)) -> bool:
    """Whether some order of the operations of one key explains all: by trying them all."""
    alive = [operation for operation in operations if operation.status != "fail"]

    def search(rest: frozenset[int], value: Value) -> bool:
        if all(alive[i].status == "unknown" for i in rest):
            return True
        for i in rest:
            if any(precedes(alive[j], alive[i]) for j in rest if j != i):
                continue
            possible, after = explains(alive[i], value)
            if possible and search(rest - {i}, after):
                return True
        return False

    return any(search(frozenset(range(len(alive))), start) for start in starts)


def is_proof(operations: Sequence[Operation], order: Sequence[Operation], start: Value = None) -> bool:
    """Whether the order contains every `ok` operation once, unknown ones at most once, obeys time, and explains all."""
    wanted = {id(o) for o in operations if o.status == "ok"}
    placed = [id(o) for o in order]
    allowed = {id(o) for o in operations if o.status != "fail"}
    if len(set(placed)) != len(placed) or not wanted <= set(placed) <= allowed:
        return False
    latest_call, value = -(1 << 70), start
    for operation in order:
        if operation.status == "ok" and operation.returned is not None and operation.returned < latest_call:
            return False
        latest_call = max(latest_call, operation.call)
        possible, value = explains(operation, value)
        if not possible:
            return False
    return True


def run_clients(
    seed: int,
    *,
    operations: int,
    clients: int = 16,
    keys: int = 1,
    values: int | None = None,
    unknown: float = 0.0,
    kinds: Sequence[Kind] = ("put", "get", "delete", "cas", "append"),
    silent: float = 0.0,
    lag: int = 30,
) -> list[Operation]:
    """What clients of a correct store see: each operation takes effect at one moment between its call and its return.

    Args:
        values: how many different values are written; None: each is new.
        unknown: share of operations whose answer is lost; half of them take effect, perhaps much later.
        silent: share of appends and deletes that do not tell their outcome.
        lag: how long an operation takes at most; the next one of the client follows within a tenth of that.
    """
    generator = random.Random(seed)
    events: list[tuple[float, int, Operation]] = []
    clock = [generator.uniform(0, lag) for _ in range(clients)]
    for number in range(operations):
        client = min(range(clients), key=lambda c: clock[c])
        call = clock[client]
        returned = call + generator.uniform(1, lag)
        clock[client] = returned + generator.uniform(0, lag / 10)
        kind = generator.choice(kinds)

        def fresh(number: int = number) -> str:
            return f"v{number}." if values is None else f"{generator.randrange(values)}"

        lost = generator.random() < unknown
        operation = Operation(
            client=client,
            kind=kind,
            key=f"k{generator.randrange(keys)}",
            call=int(call * 1000),
            returned=None if lost else int(returned * 1000),
            status="unknown" if lost else "ok",
            value=fresh() if kind in ("put", "append", "cas") else None,
            line=number + 1,
        )
        if lost and generator.random() < 0.5:
            effect = float("inf")
        else:
            effect = generator.uniform(call, returned) + (generator.uniform(0, 20 * lag) if lost else 0)
        events.append((effect, number, operation))
    events.sort(key=lambda event: event[:2])
    store: dict[str, Value] = {}
    recent: dict[str, list[Value]] = {}
    finished = []
    for effect, _, operation in events:
        seen = recent.setdefault(operation.key, [None])
        if operation.kind == "cas":
            current = store.get(operation.key)
            new = None if generator.random() < 0.1 else operation.value
            operation = replace(
                operation, expect=current if generator.random() < 0.6 else generator.choice(seen[-5:]), value=new
            )
        if effect < float("inf"):
            before = store.get(operation.key)
            output, after = outcome(operation.kind, operation.value, operation.expect, before)
            store[operation.key] = after
            seen.append(after)
            if operation.status == "ok":
                quiet = operation.kind in ("append", "delete") and generator.random() < silent
                operation = replace(operation, output=None if quiet else output)
        finished.append(operation)
    finished.sort(key=lambda operation: operation.line)
    return finished


def random_history(
    generator: random.Random, count: int, *, values: int = 3, times: int = 12, unknown: float = 0.25
) -> list[Operation]:
    """Small and arbitrary: as likely wrong as right."""
    kinds: tuple[Kind, ...] = ("put", "get", "delete", "cas", "append")
    allowed = generator.sample(kinds, generator.randint(2, 5))
    texts: list[Value] = [generator.choice(["a", "b", "", "ab", "aa", "c"]) for _ in range(values)]
    found = []
    for line in range(1, count + 1):
        kind = generator.choice(allowed)
        call = generator.randrange(times)
        lost = generator.random() < unknown
        value = generator.choice(texts) if kind in ("put", "append", "cas") else None
        if kind == "cas" and generator.random() < 0.2:
            value = None
        output: Output = None
        if not lost:
            if kind == "get":
                output = generator.choice([None, *texts])
            elif kind == "cas":
                output = generator.random() < 0.6
            elif kind == "delete":
                output = generator.choice([None, True, False])
            elif kind == "append":
                assert value is not None
                output = generator.choice([None, value, *((t or "") + value for t in texts)])
        found.append(
            Operation(
                client=line,
                kind=kind,
                key="k",
                call=call,
                returned=None if lost else call + generator.randrange(times // 2),
                status="unknown" if lost else "ok",
                value=value,
                expect=generator.choice([None, *texts]) if kind == "cas" else None,
                output=output,
                line=line,
            )
        )
    return found
