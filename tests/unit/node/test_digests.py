"""Digests at agreed indices: what is known, who waits, when a leader marks."""

from __future__ import annotations

from zcluster.node.digests import KNOWN_MAX, WAITERS_MAX, Digests
from zcluster.types import NEVER

A = (b"a", 1)


def test_what_is_known_is_bounded_and_the_oldest_goes() -> None:
    digests = Digests(0, 0)
    for index in range(1, KNOWN_MAX + 3):
        assert digests.marked(index, free=True)
        digests.done(index, str(index))
    assert list(digests.known) == list(range(3, KNOWN_MAX + 3))


def test_a_second_mark_while_one_is_worked_out_gives_no_digest() -> None:
    digests = Digests(0, 0)
    assert digests.marked(5, free=True)
    assert not digests.marked(6, free=True)
    assert digests.running == 5
    assert digests.known == {6: None}


def test_who_waits_is_answered_once_it_is_known_or_can_never_be() -> None:
    digests = Digests(0, 0)
    assert digests.ask(A, 5)
    assert digests.answers(applied=4) == []
    digests.marked(5, free=True)
    assert digests.answers(applied=9) == [], "it is being worked out"
    digests.done(5, None)
    assert digests.answers(applied=9) == [(A, 5, None)]
    assert digests.answers(applied=9) == []
    assert all(digests.ask(A, 100) for _ in range(WAITERS_MAX))
    assert not digests.ask(A, 100)


def test_marks_come_at_most_once_an_interval_and_never_for_nothing() -> None:
    digests = Digests(100, 0)
    assert digests.next_deadline(0) == NEVER
    assert not digests.wants_mark(0, 1_000)
    assert not digests.wants_mark(3, 99)
    assert digests.wants_mark(3, 100)
    assert not digests.wants_mark(4, 1_000), "its own mark is the only news"
    assert not digests.wants_mark(5, 150)
    assert digests.wants_mark(5, 200)
    assert Digests(0, 0).next_deadline(7) == NEVER
