"""What lives and dies with one ballot of the distinguished proposer: phase 2, on top of any engine's leadership.

    slot          5        6        7        8
    n1 (own)      disk     disk     disk     on its way
    n2            through ------->  7
    n3            5        missing  7 (beyond)
    chosen        yes      yes      yes      not yet

Every acceptor says up to where it has accepted without a gap (`through`, as a Raft follower says what it matches), and
which slots beyond a gap. A slot is chosen when a quorum has accepted it, in any order; the commit index is the end of
the row of chosen slots.

Does not live here: ballots, phase 1 (`preparation`), the acceptor's part.
"""

from __future__ import annotations

from zcluster.consensus import ballots, quorum
from zcluster.consensus.api import Accept, Accepted, AppendRequest, Settings
from zcluster.consensus.leadership import Leadership
from zcluster.consensus.membership import Membership
from zcluster.consensus.progress import REPLICATE
from zcluster.consensus.slots import Slots, SlotWrites
from zcluster.types import NEVER, Entry, Index, Nanoseconds, ReplicaId, Term


class Proposer(Leadership):
    """opening: slot of the no-op that opens the ballot; 0 while the slots of an older configuration are being settled,
    and phase 1 goes on behind them. stop_at: nothing is proposed behind this slot until it is chosen (0: nothing
    stops). change_waits: a change, encoded, that is to be proposed there once everything before it is chosen.
    change, seal: the slot of a change of the configuration, and of the first value behind it. Once an accept
    quorum of the new configuration has the seal, and with it, on disk, the knowledge of the change, the old
    configuration is not needed any more; before that, nobody is told of the change. 0: none.
    """

    __slots__ = ("_beyond", "change", "change_waits", "opening", "seal", "stop_at")

    def __init__(
        self,
        replica_id: ReplicaId,
        term: Term,
        settings: Settings,
        log: Slots,
        membership: Membership,
        writes: SlotWrites,
    ) -> None:
        super().__init__(replica_id, term, settings, log, membership, writes)
        self.opening: Index = 0
        self.stop_at: Index = 0
        self.change_waits = b""
        self.change: Index = 0
        self.seal: Index = 0
        self.term_start = NEVER
        self._beyond: dict[ReplicaId, set[Index]] = {}

    def open(self, index: Index) -> None:
        """Phase 1 is complete: everything before `index` is recovered, from there on the values are new."""
        self.opening = self.term_start = index
        self.seal = index if self.change else 0
        for progress in self.progress.values():
            progress.repair_target = None  # what a damaged acceptor must have again is known only now

    def stop(self, change: Index) -> None:
        """`change` is proposed; wait for it."""
        self.stop_at = change
        self.change = self.change or change

    def is_sealed(self) -> bool:
        """Whether the last change has just become known to as many as it takes."""
        if not self.seal or self.majority_index() < self.seal:
            return False
        self.change = self.seal = 0
        return True

    def chosen_index(self) -> Index:
        """The end of the row of chosen slots."""
        index = self.majority_index()
        while self._beyond and self._is_chosen(index + 1):
            index += 1
        return index

    def _is_chosen(self, index: Index) -> bool:
        voters = self._membership.current.voters
        holders = sum(
            self._writes.durable_index >= index if voter == self._id else self._has_accepted(voter, index)
            for voter in voters
        )
        return holders >= self._quorum(len(voters))

    def _has_accepted(self, voter: ReplicaId, index: Index) -> bool:
        progress = self.progress[voter]
        beyond = self._beyond.get(voter, ())
        return progress.counted_index >= index or (index in beyond and not progress.repair)

    def meet(self, sender: ReplicaId, incarnation: int, now: Nanoseconds) -> None:
        self._beyond.pop(sender, None)
        super().meet(sender, incarnation, now)

    def handle_accepted(self, sender: ReplicaId, message: Accepted, now: Nanoseconds) -> bool:
        """Returns whether more may be chosen than before."""
        progress, last_index = self.progress[sender], self._log.last_index
        ended = progress.note_repair(message.repair, self._repair_target())
        if message.last > last_index:
            return ended  # nonsense
        # One that has learned of slots of a later configuration is past everything that is proposed here.
        through = min(message.through, last_index)
        moved = progress.accepted(through, now)
        if message.last > progress.match_index:
            beyond = self._beyond.setdefault(sender, set())
            beyond.update(range(max(message.first, progress.match_index + 1), message.last + 1))
            moved = True
        elif moved and sender in self._beyond:
            left = {index for index in self._beyond.pop(sender) if index > progress.match_index}
            if left:
                self._beyond[sender] = left
        if message.missing and progress.state == REPLICATE and through == progress.match_index:
            progress.become_probe(through + 1, now)
        if progress.next_index <= last_index:
            self.replication_due = True
        return moved or ended

    def _quorum(self, voters: int) -> int:
        return ballots.accept_quorum(voters, self._settings.accept_quorum)

    def _reached(self, values: list[int]) -> int:
        return quorum.reached_by(values, self._quorum(len(values)))

    def _repair_target(self) -> Index:
        return self._log.last_index if self.opening else NEVER

    def _request(self, next_index: Index, commit_index: Index) -> AppendRequest | Accept:
        entries = self._log.slice(next_index, self._log.last_index + 1, self._settings.batch_bytes_max)
        if entries and entries[0].epoch != self.term:  # chosen before this ballot, which proposes it once more
            entries = [Entry(entry.index, self.term, entry.kind, entry.data) for entry in entries]
        return Accept(self.term, next_index, commit_index, tuple(entries), self.opening)

    def _reminder(self, next_index: Index, commit_index: Index) -> AppendRequest | Accept | None:
        return Accept(self.term, next_index, commit_index, (), self.opening)
