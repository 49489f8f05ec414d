"""Ballots and quorums: arithmetic only, no state.

A ballot is (number, replica id), packed into one integer so that it orders, travels and is stored like a Raft term. No
two proposers ever use the same one, because the id is part of it; no proposer uses one twice, because it writes each
down before it asks for promises.
"""

from __future__ import annotations

from typing import Final

from zcluster.consensus import quorum
from zcluster.types import ReplicaId, Term

ID_BITS: Final = 16


def ballot(number: int, proposer: ReplicaId) -> Term:
    """
    >>> ballot(3, 2) > ballot(2, 7), text(ballot(3, 2))
    (True, '3.2')
    """
    return number << ID_BITS | proposer


def number_of(term: Term) -> int:
    return term >> ID_BITS


def proposer_of(term: Term) -> ReplicaId:
    return term & ((1 << ID_BITS) - 1)


def text(term: Term) -> str:
    """For people: number.proposer."""
    return f"{number_of(term)}.{proposer_of(term)}"


def accept_quorum(voters: int, setting: int) -> int:
    """How many acceptances make a value chosen (phase 2). `setting`: 0 for a majority, else so many, where there are so
    many."""
    return min(setting, voters) if setting else quorum.majority(voters)


def prepare_quorum(voters: int, setting: int) -> int:
    """How many promises phase 1 needs: any so many acceptors share one with any accept quorum (flexible quorums).

    Leases and read barriers are confirmed by accept quorums, so they share an acceptor with every phase 1 as well.

    >>> [(accept_quorum(5, s), prepare_quorum(5, s)) for s in (0, 1, 2, 4, 9)]
    [(3, 3), (1, 5), (2, 4), (4, 2), (5, 1)]
    """
    return voters - accept_quorum(voters, setting) + 1 if setting else quorum.majority(voters)
