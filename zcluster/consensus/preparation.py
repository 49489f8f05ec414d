"""Phase 1 of one ballot: who has promised, and what was accepted before.

One phase 1 serves every slot from `first` on. When a quorum has promised, each slot takes the value of the highest
ballot that anybody of it reports; where none is reported nothing can have been chosen, and any value may be proposed:
a no-op, so that later slots can be applied.

    slot      5      6      7      8
    n1        2.1    .      2.1    .        ballots of what each has accepted
    n2        1.2    .      .      .
    n1 proposes again, under its ballot 3.1, the values it has at 5 and 7, and a no-op at 6; then it is open for 8

**The stop-sign.** A slot belongs to the configuration set by the slots before it. So the row ends with the first change
of the configuration: what follows it is another configuration's business, and phase 1 is done anew there.

Does not live here: the acceptor's own slots, messages' ways.
"""

from __future__ import annotations

from collections.abc import Collection

from zcluster.consensus.api import Certificate, Prepare, Promised
from zcluster.consensus.election import Votes
from zcluster.consensus.slots import Slots
from zcluster.types import KIND_CONFIG, KIND_NOOP, Entry, Index, ReplicaId, Term


class Preparation:
    """Of `ballot`, for the slots from `first` on. `votes`: acceptors that have promised and reported everything."""

    __slots__ = ("_asked", "_held", "_reported", "ballot", "certificate", "first", "transfer", "votes")

    def __init__(
        self,
        ballot: Term,
        first: Index,
        slots: Slots,
        *,
        certificate: Certificate | None = None,
        transfer: Term = 0,
    ) -> None:
        self.ballot = ballot
        self.first = first
        self.certificate = certificate
        self.transfer = transfer
        self.votes = Votes()
        self._held = slots.run_after(first - 1)
        self._asked: dict[ReplicaId, Index] = {}  # from where the next part of a report is awaited, if not from `first`
        self._reported: dict[Index, Entry] = {}

    def request(self, acceptor: ReplicaId = 0) -> Prepare:
        """To all, or to one whose report was cut off."""
        first = self._asked.get(acceptor, self.first)
        return Prepare(self.ballot, first, *self._held, self.certificate, self.transfer)

    def report(self, acceptor: ReplicaId, message: Promised) -> bool:
        """Take in (a part of) what the acceptor tells. Returns whether it is to be asked for more."""
        if message.first != self._asked.get(acceptor, self.first):
            return False
        for entry in message.entries:
            known = self._reported.get(entry.index)
            if known is None or known.epoch < entry.epoch:
                self._reported[entry.index] = entry
        if message.more_from:
            self._asked[acceptor] = message.more_from
            return True
        self.votes.count(acceptor, True, message.suspect)
        return False

    def result(self, voters: Collection[ReplicaId], needed: int) -> str:
        return self.votes.result(voters, needed)

    def values(self, slots: Slots) -> list[Entry]:
        """What is to be proposed under this ballot, from `first` on, up to the first change of the configuration."""
        values: list[Entry] = []
        last = max([slots.highest, *self._reported])
        for index in range(self.first, last + 1):
            own, found = slots.get(index), self._reported.get(index)
            if found is None or (own is not None and own.epoch >= found.epoch):
                found = own
            if found is None:
                values.append(Entry(index, self.ballot, KIND_NOOP, b""))
            else:
                values.append(Entry(index, self.ballot, found.kind, found.data))
                if found.kind == KIND_CONFIG:
                    break
        return values
