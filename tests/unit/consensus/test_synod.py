"""All interleavings of a small model: three acceptors, two proposers, two or three ballots. Messages are lost, doubled
and reordered in every way: what was sent may be delivered at any later time, any number of times, or never."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from typing import NamedTuple

import pytest

from zcluster.consensus.synod import Accepted, Acceptor, Ballot, Promise, Value, chosen, value_to_propose

ACCEPTORS = 3
TWO: tuple[Ballot, ...] = ((1, 1), (1, 2))
THREE: tuple[Ballot, ...] = (*TWO, (2, 1))
Prepare = Callable[[Acceptor, Ballot], Acceptor | None]
Accept = Callable[[Acceptor, Ballot, Value], Acceptor | None]
Rule = Callable[[Iterable[Promise], Value], Value]


class State(NamedTuple):
    """`begun`: ballots whose phase 1 was asked for. Everything that was ever sent stays deliverable."""

    acceptors: tuple[Acceptor, ...] = (Acceptor(),) * ACCEPTORS
    begun: frozenset[Ballot] = frozenset()
    promises: frozenset[Promise] = frozenset()
    proposals: frozenset[Accepted] = frozenset()
    accepted: frozenset[tuple[int, Accepted]] = frozenset()


class Model:
    def __init__(
        self,
        ballots: tuple[Ballot, ...] = TWO,
        prepare: Prepare = Acceptor.prepare,
        accept: Accept = Acceptor.accept,
        rule: Rule = value_to_propose,
    ) -> None:
        self.ballots = ballots
        self.prepare, self.accept, self.rule = prepare, accept, rule

    def following(self, state: State) -> Iterator[State]:
        for ballot in self.ballots:
            if ballot not in state.begun:
                yield state._replace(begun=state.begun | {ballot})
            elif not any(proposal.ballot == ballot for proposal in state.proposals):
                yield from self._propose(state, ballot)
        for number, acceptor in enumerate(state.acceptors):
            for ballot in state.begun:
                after = self.prepare(acceptor, ballot)
                if after is not None:
                    promise = Promise(number, ballot, acceptor.accepted)
                    yield _with(state, number, after)._replace(promises=state.promises | {promise})
            for proposal in state.proposals:
                after = self.accept(acceptor, *proposal)
                if after is not None:
                    yield _with(state, number, after)._replace(accepted=state.accepted | {(number, proposal)})

    def _propose(self, state: State, ballot: Ballot) -> Iterator[State]:
        """By every majority that has promised; each ballot wants a value of its own."""
        promises = [promise for promise in state.promises if promise.ballot == ballot]
        for quorum in combinations(promises, ACCEPTORS // 2 + 1):
            if len({promise.acceptor for promise in quorum}) == len(quorum):
                proposal = Accepted(ballot, self.rule(quorum, f"v{ballot[0]}.{ballot[1]}"))
                yield state._replace(proposals=state.proposals | {proposal})

    def explore(self) -> tuple[int, set[Value]]:
        """Every reachable state, up to the names of acceptors. Returns how many there are, and all values that were
        chosen in some of them. Raises: AssertionError if two are chosen in one."""
        start = State()
        seen, frontier = {start}, [start]
        ever: set[Value] = set()
        while frontier:
            for state in self.following(frontier.pop()):
                state = _canonical(state)
                if state not in seen:
                    seen.add(state)
                    frontier.append(state)
                    values = chosen(state.accepted, ACCEPTORS)
                    assert len(values) <= 1, f"two values are chosen: {state}"
                    ever |= values
        return len(seen), ever


def _with(state: State, number: int, acceptor: Acceptor) -> State:
    acceptors = list(state.acceptors)
    acceptors[number] = acceptor
    return state._replace(acceptors=tuple(acceptors))


def _canonical(state: State) -> State:
    """Acceptors are alike: sort them by all that is known of them, so that one state stands for its permutations."""

    def known(number: int) -> tuple[object, ...]:
        acceptor = state.acceptors[number]
        return (
            acceptor.promised,
            acceptor.accepted or (),
            sorted((p.ballot, p.accepted or ()) for p in state.promises if p.acceptor == number),
            sorted(what for who, what in state.accepted if who == number),
        )

    order = sorted(range(ACCEPTORS), key=known)
    place = {number: position for position, number in enumerate(order)}
    return State(
        tuple(state.acceptors[number] for number in order),
        state.begun,
        frozenset(promise._replace(acceptor=place[promise.acceptor]) for promise in state.promises),
        state.proposals,
        frozenset((place[who], what) for who, what in state.accepted),
    )


def test_at_most_one_value_is_chosen_in_every_interleaving_of_two_ballots() -> None:
    states, ever = Model().explore()
    assert states > 150
    assert ever == {"v1.1", "v1.2"}, "each proposer wins in some interleaving"


@pytest.mark.slow
def test_at_most_one_value_is_chosen_in_every_interleaving_of_three_ballots() -> None:
    states, ever = Model(THREE).explore()
    assert states > 10_000
    assert ever == {"v1.1", "v1.2", "v2.1"}


def own_value(_: Iterable[Promise], wanted: Value) -> Value:
    return wanted


def lowest_reported(promises: Iterable[Promise], wanted: Value) -> Value:
    reported = [promise.accepted for promise in promises if promise.accepted is not None]
    return min(reported).value if reported else wanted


def forgets_its_promise(acceptor: Acceptor, ballot: Ballot) -> Acceptor | None:
    return acceptor if ballot > acceptor.promised else None


def forgets_what_it_accepted(acceptor: Acceptor, ballot: Ballot) -> Acceptor | None:
    return Acceptor(ballot) if ballot > acceptor.promised else None


def accepts_anything(_: Acceptor, ballot: Ballot, value: Value) -> Acceptor | None:
    return Acceptor(ballot, Accepted(ballot, value))


@pytest.mark.parametrize(
    "mistaken",
    [
        Model(rule=own_value),
        Model(prepare=forgets_its_promise),
        Model(accept=accepts_anything),
        pytest.param(Model(THREE, rule=lowest_reported), marks=pytest.mark.slow),
        Model(THREE, prepare=forgets_what_it_accepted),
    ],
    ids=["own_value", "promise_forgotten", "accepts_anything", "lowest_reported", "acceptance_forgotten"],
)
def test_each_mistake_chooses_two_values_somewhere(mistaken: Model) -> None:
    with pytest.raises(AssertionError, match="two values"):
        mistaken.explore()
