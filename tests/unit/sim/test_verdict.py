"""Verdicts on whole histories: the window is small, true, and readable."""

from __future__ import annotations

import random
import xml.dom.minidom
from dataclasses import replace

import pytest

from tests.unit.sim.histories import brute_force, is_proof, random_history, run_clients
from tests.unit.sim.test_linearize import BAD, GOOD, cas, get, put
from zcluster.sim.draw import draw_window
from zcluster.sim.history import Operation
from zcluster.sim.verdict import check_history
from zcluster.sim.window import Window, explanation, helpful
from zcluster.sim.wording import describe


def numbered(history: list[Operation]) -> list[Operation]:
    return [replace(operation, line=number, client=number % 3) for number, operation in enumerate(history, 1)]


def spoiled(seed: int, unknown: float) -> list[Operation]:
    """A real run in which one read gives a value that was there long before."""
    history = run_clients(seed, operations=600, clients=6, kinds=("put", "get", "cas", "delete"), unknown=unknown)
    reads = [i for i, o in enumerate(history) if o.kind == "get" and o.status == "ok" and isinstance(o.output, str)]
    late = random.Random(seed).choice(reads[len(reads) // 2 :])
    early = next(i for i in reads if history[i].output != history[late].output)
    history[late] = replace(history[late], output=history[early].output)
    return history


@pytest.mark.parametrize("name", BAD)
def test_every_window_fails_by_itself(name: str) -> None:
    verdict = check_history(numbered(BAD[name]))
    assert verdict.result == "not_linearizable"
    assert verdict.window is not None
    check_window(verdict.window)


def check_window(window: Window) -> None:
    """Nothing explains it, from any value; without any one of its operations something does."""
    everything = [*window.operations, *window.maybe]
    starts = [None] if window.from_start else [None, "", "other", *{o.value for o in everything}]
    if not window.from_start:
        starts += [str(o.output)[:n] for o in everything if isinstance(o.output, str) for n in range(len(o.output) + 1)]
        starts += [o.expect for o in everything]
    assert not brute_force(everything, starts)
    assert window.stuck in everything
    assert window.stuck not in window.order
    assert len(window.values) == len(window.order) + 1
    assert any(is_proof(window.order, window.order, start) for start in starts)


@pytest.mark.parametrize("seed", range(6))
def test_a_stale_read_among_hundreds_gives_a_window_of_few(seed: int) -> None:
    verdict = check_history(spoiled(seed, unknown=0.02 * (seed % 2)))
    assert verdict.result == "not_linearizable"
    assert verdict.window is not None
    assert len(verdict.window.operations) + len(verdict.window.maybe) <= 6
    check_window(verdict.window)


def test_only_helpful_operations_are_kept_and_they_suffice() -> None:
    left_out = 0
    for seed in range(600):
        generator = random.Random(seed)
        history = random_history(generator, generator.randint(2, 7), unknown=0.6)
        certain = [o for o in history if o.status == "ok"]
        maybe = [o for o in history if o.status == "unknown"]
        kept = helpful(certain, maybe)
        left_out += len(maybe) - len(kept)
        assert brute_force([*certain, *kept]) == brute_force(history), f"seed {seed}"
    assert left_out > 300


def test_good_histories_have_no_window() -> None:
    for history in GOOD.values():
        verdict = check_history(numbered(history))
        assert (verdict.result, verdict.window) == ("linearizable", None)


def test_out_of_time_is_undecided_and_says_which_keys() -> None:
    verdict = check_history(run_clients(1, operations=2000, values=4, unknown=0.2), timeout_s=0.0)
    assert verdict.result == "undecided"
    assert verdict.undecided_keys == ["k0"]


def test_the_explanation_names_what_was_needed_and_what_was_there() -> None:
    history = [put("1", 0, 1), put("2", 2, 3), cas("2", "3", 4, 5, True), get("2", 6, 7)]
    window = check_history(numbered(history)).window
    assert window is not None
    assert [describe(o) for o in window.order] == ['put "2"', 'cas "2" → "3": true'] or len(window.order) == 1
    assert 'it needs "2", and the value could only be "3".' in explanation(window)[1]


def test_the_drawing_is_well_formed_whatever_the_values() -> None:
    nasty = '<script>"&\x00'
    window = check_history(numbered([put(nasty, 0, 1), put("2", 2, None), get(nasty + "x" * 99, 3, 4)])).window
    assert window is not None
    page = draw_window(window)
    picture = page[page.index("<svg") : page.index("</svg>") + 6]
    document = xml.dom.minidom.parseString(picture.encode())
    bars = list(document.getElementsByTagName("g"))
    assert len(bars) == len(window.operations) + len(window.maybe)
    assert "<script" not in page
    assert "✗" in picture
