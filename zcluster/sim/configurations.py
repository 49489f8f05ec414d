"""Membership, judged from outside: which configurations the logs hold, and that each may follow the one before it.

    property                    how it is seen
    quorums intersect           every majority of a configuration meets every majority of the one before it in the log
    one change at a time        the configuration before is committed when the next is appended
    no change of a stranger     whoever appends one has committed in its own term (the bug of 2015)
    in force when appended,     the core goes by the last configuration of the log as it was handed to the disk
    reverted when cut off

Shares no code with `consensus.membership`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from zcluster.sim.world import Violation
from zcluster.types import Configuration, Entry, Index, ReplicaId, Term

NOBODY: Final = Configuration()

_decode = msgspec.msgpack.Decoder(Configuration).decode


def configuration_of(entry: Entry) -> Configuration:
    return msgspec.structs.replace(_decode(entry.data), index=entry.index)


def majority(voters: tuple[ReplicaId, ...]) -> int:
    return len(voters) // 2 + 1


def has_majority(replicas: Iterable[ReplicaId], voters: tuple[ReplicaId, ...]) -> bool:
    """Whether `replicas` hold a majority of `voters`; others do not count.

    >>> has_majority([1, 4, 5], (1, 2, 3)), has_majority([1, 2], (1, 2, 3))
    (False, True)
    """
    return len(set(replicas) & set(voters)) >= majority(voters)


def check_successor(replica: ReplicaId, before: Configuration, after: Configuration) -> None:
    """Raises: Violation where two majorities could decide without each other."""
    together = set(before.voters) | set(after.voters)
    if not after.voters or majority(before.voters) + majority(after.voters) <= len(together):
        raise Violation("quorum intersection", f"{replica} goes from {before} to {after}")


class Configurations:
    """Those of all logs. possible: every one that is, or may yet be, in force: the last committed one, and what was
    written behind it."""

    def __init__(self, initial: Configuration) -> None:
        self.changes = 0  # committed so far
        self.committed = initial
        self._written: dict[tuple[Index, Term], Configuration] = {}
        self._fresh: list[tuple[ReplicaId, Term, Configuration, Configuration]] = []

    def written(self, replica: ReplicaId, entry: Entry, before: Configuration) -> Configuration:
        """An entry as it is handed to the disk. `before`: in force in front of it. Raises: Violation."""
        after = configuration_of(entry)
        key = (entry.index, entry.epoch)
        if key not in self._written:
            self._written[key] = after
            check_successor(replica, before, after)
            self._fresh.append((replica, entry.epoch, before, after))
        return after

    def check_fresh(self, highest: Index, commits: set[Term]) -> None:
        """At the end of the turn that wrote them, when all that it committed is known: up to `highest` of the log,
        something in the terms `commits`. Raises: Violation."""
        fresh, self._fresh = self._fresh, []
        for replica, term, before, after in fresh:
            if before.index > highest:
                raise Violation("one change at a time", f"{replica} appends {after}, {before} is not committed")
            if term not in commits:
                raise Violation("stranger's change", f"{replica} appends {after} before a commit in term {term}")

    def committed_at(self, index: Index, term: Term) -> None:
        found = self._written.get((index, term))
        if found is not None:
            self.changes += 1
            self.committed = found

    def check_answered(self, configuration: Configuration) -> None:
        """Somebody was told that it is in force. Raises: Violation."""

    def possible(self) -> list[Configuration]:
        last = self.committed.index
        return [self.committed, *(found for (index, _), found in self._written.items() if index > last)]


class LogOfMembers:
    """The configurations in one replica's log, as it was handed to its disk."""

    def __init__(self, base: Configuration = NOBODY) -> None:
        self._stack = [base]

    @property
    def current(self) -> Configuration:
        return self._stack[-1]

    def append(self, configuration: Configuration) -> None:
        self._stack.append(configuration)

    def truncate(self, last_kept: Index) -> None:
        while len(self._stack) > 1 and self._stack[-1].index > last_kept:
            self._stack.pop()

    def install(self, index: Index, base: Configuration, *, kept: bool) -> None:
        """A checkpoint takes the place of the log up to `index`; what lies behind it stays if `kept`."""
        later = [found for found in self._stack if found.index > index] if kept else []
        self._stack = [base, *later]
