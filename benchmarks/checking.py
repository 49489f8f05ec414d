"""How long the linearizability checker takes: 20,000 operations of 16 clients, in several mixes, right and wrong.

python benchmarks/checking.py [--rounds 1] [--quick] [--json FILE]
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import facts, options, say, say_header, say_table, verdict, write

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.unit.sim.histories import run_clients
from zcluster.sim.history import Operation
from zcluster.sim.verdict import check_history

TARGET_S = 5.0
FAIRNESS = (
    "histories of a correct store with random delays; wrong ones have one late read that gives a much older value",
    "parsing is not counted; shrinking a wrong history to its smallest window is",
)
MIXES: dict[str, dict[str, Any]] = {
    "all kinds, 5 keys": {"keys": 5},
    "all kinds, 5 keys, 2% unknown": {"keys": 5, "unknown": 0.02},
    "all kinds, 100 keys, 5% unknown": {"keys": 100, "unknown": 0.05},
    "all kinds, 1 key": {"keys": 1},
    "put get cas delete, 1 key, 10% unknown": {
        "keys": 1,
        "kinds": ("put", "get", "cas", "delete"),
        "unknown": 0.1,
    },
    "put get, 1 key": {"keys": 1, "kinds": ("put", "get")},
    "put get, 1 key, 4 values": {"keys": 1, "kinds": ("put", "get"), "values": 4},
    "put get cas, 5 keys, 4 values, 5% unknown": {
        "keys": 5,
        "kinds": ("put", "get", "cas"),
        "values": 4,
        "unknown": 0.05,
    },
    "put get cas, 1 key, 4 values, 20% unknown": {
        "keys": 1,
        "kinds": ("put", "get", "cas"),
        "values": 4,
        "unknown": 0.2,
    },
    "put get cas delete, 1 key, 2 values, 20% unknown": {
        "keys": 1,
        "kinds": ("put", "get", "cas", "delete"),
        "values": 2,
        "unknown": 0.2,
    },
    "put get cas delete, 1 key, 4 values, 20% unknown": {
        "keys": 1,
        "kinds": ("put", "get", "cas", "delete"),
        "values": 4,
        "unknown": 0.2,
    },
    "cas get, 1 key, 4 values, 5% unknown": {"keys": 1, "kinds": ("cas", "get"), "values": 4, "unknown": 0.05},
    "append get, 10 keys, long values, 2% unknown": {"keys": 10, "kinds": ("append", "get"), "unknown": 0.02},
}


def spoil(history: list[Operation], seed: int) -> list[Operation]:
    generator = random.Random(seed)
    history = list(history)
    late = generator.choice(
        [i for i, o in enumerate(history) if o.kind == "get" and o.status == "ok" and i > 0.7 * len(history)]
    )
    old = [
        o.output
        for o in history[late - 2000 : late - 500]
        if o.kind == "get" and o.key == history[late].key and o.status == "ok" and o.output != history[late].output
    ]
    history[late] = replace(history[late], output=generator.choice(old) if old else "never written")
    return history


def main() -> None:
    arguments = options("The linearizability checker.", rounds=1).parse_args()
    count = 4000 if arguments.quick else 20_000
    known = facts(operations=count, clients=16, rounds=arguments.rounds)
    say_header("Checking histories", known, FAIRNESS)
    rows = [["", "right, s", "answer", "wrong, s", "answer", ""]]
    measured: dict[str, Any] = {}
    for name, settings in MIXES.items():
        taken: dict[str, list[float]] = {"right": [], "wrong": []}
        answers: dict[str, str] = {}
        for seed in range(arguments.rounds):
            right = run_clients(seed, operations=count, **settings)
            for kind, history in (("right", right), ("wrong", spoil(right, seed))):
                began = time.perf_counter()
                found = check_history(history, timeout_s=20.0)
                taken[kind].append(time.perf_counter() - began)
                answers[kind] = found.result
        measured[name] = {**taken, "answers": answers}
        worst = max(taken["right"] + taken["wrong"])
        rows.append(
            [
                name,
                f"{max(taken['right']):.2f}",
                answers["right"],
                f"{max(taken['wrong']):.2f}",
                answers["wrong"],
                verdict(worst, TARGET_S, True),
            ]
        )
    say_table(rows)
    say("  a wrong history may be linearizable by chance where few different values are written")
    write(arguments.json, "checking", known, measured)


if __name__ == "__main__":
    main()
