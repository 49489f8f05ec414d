"""Majorities: what a set of voters agrees on. Arithmetic only, no state.

Does not live here: who the voters are (`membership`), whose acknowledgement counts (`raft`, `progress`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from zcluster.types import ReplicaId

PENDING: Final = "pending"
WON: Final = "won"
LOST: Final = "lost"


def majority(voters: int) -> int:
    """Smallest number of voters that any two majorities must share a member of.

    >>> [majority(n) for n in (1, 2, 3, 4, 5)]
    [1, 2, 2, 3, 3]
    """
    return voters // 2 + 1


def reached_by_majority(values: Iterable[int]) -> int:
    """Highest value that a majority has reached; one value a voter. 0 without voters.

    Serves indices (what is stored), round numbers (what is confirmed) and times (who was heard) alike.

    >>> reached_by_majority([7, 3, 5]), reached_by_majority([9, 1]), reached_by_majority([4, 4, 1, 9])
    (5, 1, 4)
    """
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2] if ordered else 0


def reached_by(values: Iterable[int], needed: int) -> int:
    """Highest value that `needed` voters have reached; 0 where there are not so many.

    >>> reached_by([7, 3, 5], 2), reached_by([7, 3, 5], 3), reached_by([7], 2)
    (5, 3, 0)
    """
    ordered = sorted(values, reverse=True)
    return ordered[needed - 1] if needed <= len(ordered) else 0


def vote_result(
    votes: Mapping[ReplicaId, bool], voters: Collection[ReplicaId], *, everyone: bool = False, quorum: int = 0
) -> str:
    """WON, LOST or PENDING. Votes of replicas that are not voters do not count.

    Args:
        everyone: a single refusal loses, and only a grant by every voter wins.
        quorum: how many grants win; 0: a majority.

    >>> vote_result({1: True, 2: True}, (1, 2, 3)), vote_result({1: True, 2: True}, (1, 2, 3), everyone=True)
    ('won', 'pending')
    """
    needed = len(voters) if everyone else quorum or majority(len(voters))
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    refused = sum(1 for voter in voters if votes.get(voter) is False)
    if not voters or refused > len(voters) - needed:
        return LOST
    return WON if granted >= needed else PENDING
