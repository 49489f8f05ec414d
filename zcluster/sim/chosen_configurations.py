"""Membership of Multi-Paxos, judged from outside: a change is in force when it is chosen, and then sealed.

    property                    how it is seen
    one change at a time        under one ballot nothing is proposed behind a change that is not chosen
    made for what is in force   whatever is before a change is chosen when the change is proposed for the first time
    quorums intersect           every majority of a configuration meets every majority of the one before it
    sealed when answered        an accept quorum of the new configuration knows the change on its disks by then: whoever
                                left with it may go

Raft's rules, and what both share, are in `configurations`.
"""

from __future__ import annotations

from zcluster.sim.configurations import Configurations, check_successor, configuration_of, majority
from zcluster.sim.world import Violation
from zcluster.types import KIND_CONFIG, Configuration, Entry, Index, ReplicaId, Term


class ChosenConfigurations(Configurations):
    """The chosen ones, in order. possible: the last of them, what was proposed behind it, and the one before it for as
    long as only its acceptors may know of the change."""

    def __init__(self, initial: Configuration) -> None:
        super().__init__(initial)
        self._chosen = [initial]
        self._known: dict[ReplicaId, Index] = {}  # how far a disk knows of chosen slots
        self._changes: dict[Term, Index] = {}  # the last one that each ballot proposed
        self._first: set[tuple[int, bytes]] = set()  # proposed by anybody: a later ballot only repeats it
        self._new: list[tuple[ReplicaId, Entry]] = []

    def proposed(self, replica: ReplicaId, entry: Entry) -> None:
        """The first time that this slot gets a value under this ballot."""
        self._new.append((replica, entry))

    def check_proposed(self, highest: Index) -> None:
        """At the end of the turn, when all that it has chosen is known: all up to `highest`. Raises: Violation."""
        new, self._new = self._new, []
        for replica, entry in new:
            if entry.index <= highest:
                continue
            change = self._changes.get(entry.epoch, 0)
            if highest < change < entry.index:
                raise Violation(
                    "one change at a time", f"{replica} proposes {entry.index}, the change at {change} is not chosen"
                )
            if entry.kind == KIND_CONFIG:
                self._changes[entry.epoch] = entry.index
                self._check_change(replica, entry, highest)

    def _check_change(self, replica: ReplicaId, entry: Entry, highest: Index) -> None:
        after = configuration_of(entry)
        self._written[entry.index, entry.epoch] = after
        check_successor(replica, self.committed, after)
        if (entry.index, entry.data) not in self._first:
            self._first.add((entry.index, entry.data))
            if entry.index != highest + 1:
                raise Violation(
                    "made for what is in force", f"{replica} proposes {after}, only {highest} slots are chosen"
                )

    def chosen(self, entry: Entry) -> None:
        if entry.kind == KIND_CONFIG:
            self.changes += 1
            self.committed = configuration_of(entry)
            self._chosen.append(self.committed)

    def in_force(self, slot: Index) -> Configuration:
        """Who decides on this slot, once everything before it is chosen."""
        return next(found for found in reversed(self._chosen) if found.index < slot or not found.index)

    def known(self, replica: ReplicaId, chosen: Index) -> None:
        """Its disk says so."""
        self._known[replica] = max(self._known.get(replica, 0), chosen)

    def is_sealed(self, configuration: Configuration) -> bool:
        knowing = sum(self._known.get(voter, 0) >= configuration.index for voter in configuration.voters)
        return knowing >= majority(configuration.voters)

    def check_answered(self, configuration: Configuration) -> None:
        """Somebody was told that it is in force. Raises: Violation."""
        if not self.is_sealed(configuration):
            raise Violation("sealed when answered", f"{configuration} is acknowledged, no quorum of it has the change")

    def possible(self) -> list[Configuration]:
        sealed = len(self._chosen) == 1 or self.is_sealed(self.committed)
        return super().possible() if sealed else [self._chosen[-2], *super().possible()]
