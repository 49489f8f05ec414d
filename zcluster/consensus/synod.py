"""Single-decree Paxos, for readers: the whole protocol that `paxos` runs for every slot, on one page.

    proposer                     acceptors                    learner
       | -- prepare(b) ------------> |                           |
       | <------- promise(b, accepted so far) -- |               |     phase 1: nobody of a majority will accept
       |                             |                           |     anything below b any more, and what they have
       | -- accept(b, value) ------> |                           |     accepted is known
       |                             | -- accepted(b, value) --> |     phase 2: a majority: chosen

The only rule that is not obvious is `value_to_propose`. If a value is chosen under some ballot, a majority has accepted
it there; every later majority of promises contains one of these acceptors, and between the two nobody has accepted
anything else under a higher ballot. So the highest report is the chosen value, and it is proposed again.

Nothing runs on this module. The exhaustive test does: all interleavings of two proposers and three acceptors.
Source: Lamport, "Paxos Made Simple" (2001), §2.2.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

Ballot = tuple[int, int]
"""(number, proposer): unique, and ordered."""
Value = str


class Accepted(NamedTuple):
    ballot: Ballot
    value: Value


class Promise(NamedTuple):
    """By `acceptor`: nothing below `ballot` from now on; `accepted` is what it has accepted last."""

    acceptor: int
    ballot: Ballot
    accepted: Accepted | None


class Acceptor(NamedTuple):
    """Both fields are on disk before anything is answered."""

    promised: Ballot = (0, 0)
    accepted: Accepted | None = None

    def prepare(self, ballot: Ballot) -> Acceptor | None:
        """Phase 1. None: it has promised more already."""
        return self._replace(promised=ballot) if ballot > self.promised else None

    def accept(self, ballot: Ballot, value: Value) -> Acceptor | None:
        """Phase 2. None: it has promised more."""
        return Acceptor(ballot, Accepted(ballot, value)) if ballot >= self.promised else None


def value_to_propose(promises: Iterable[Promise], wanted: Value) -> Value:
    """Under a ballot that a majority has promised: the value of the highest ballot reported, or else any.

    >>> value_to_propose([Promise(1, (3, 1), Accepted((1, 2), "a")), Promise(2, (3, 1), Accepted((2, 1), "b"))], "c")
    'b'
    """
    reported = [promise.accepted for promise in promises if promise.accepted is not None]
    return max(reported).value if reported else wanted


def chosen(accepted: Collection[tuple[int, Accepted]], acceptors: int) -> set[Value]:
    """What a learner may conclude from who has accepted what: a majority under one ballot."""
    counts: dict[Accepted, set[int]] = {}
    for acceptor, what in accepted:
        counts.setdefault(what, set()).add(acceptor)
    return {what.value for what, who in counts.items() if len(who) > acceptors // 2}
