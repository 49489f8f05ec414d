"""The network of cores for Paxos: what the disk gives back, and what must hold of all replicas together."""

from __future__ import annotations

from typing import Any

import msgspec

from tests.unit.consensus.network import Disk, Network, Node, Oracle
from zcluster.consensus import ballots
from zcluster.consensus import membership as members
from zcluster.consensus.api import Recovered
from zcluster.consensus.paxos import Paxos
from zcluster.types import KIND_CONFIG, Entry, WriteBatch


class SlotDisk(Disk):
    """A log with holes. `accepted`: all that was ever on it: (slot, ballot)."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.accepted: set[tuple[int, int]] = set()
        self.sound = True
        self.chosen = 0

    def apply(self, batch: WriteBatch) -> None:
        assert batch.truncate_after is None, "nothing that was accepted is ever cut off"
        for entry in batch.entries:
            there = self.entries.get(entry.index)
            assert there is None or there.epoch <= entry.epoch, "a lower ballot takes the place of a higher one"
        super().apply(batch)
        assert all(entry.epoch <= self.hard_state.term for entry in batch.entries), "accepted, but not promised"
        self.accepted.update((entry.index, entry.epoch) for entry in batch.entries)
        self.sound |= batch.sound
        self.chosen = max(self.chosen, batch.chosen)

    def recovered(self, **flags: Any) -> Recovered:
        entries = [self.entries[index] for index in sorted(self.entries)]
        return msgspec.structs.replace(super().recovered(**flags), entries=entries, chosen=self.chosen)


class SlotOracle(Oracle):
    """One value chosen a slot, by a quorum's disks; a chosen value never changes; every ballot proposes one value."""

    def __init__(self) -> None:
        super().__init__()
        self.proposed: dict[tuple[int, int], tuple[int, bytes]] = {}  # (slot, ballot) -> value
        self.chosen_by: dict[int, tuple[int, set[int]]] = {}
        self.opened: set[tuple[int, int]] = set()

    def check_leader(self, network: Network, node: Node) -> None:
        core = node.core
        assert isinstance(core, Paxos)
        proposer = core.leadership
        if proposer is None:
            return
        assert ballots.proposer_of(core.term) == node.id, "leads by the ballot of another"
        first = self.leaders.setdefault(core.term, node.id) == node.id and proposer.opening
        if not first or (core.term, proposer.opening) in self.opened:
            return
        self.opened.add((core.term, proposer.opening))
        voters = core.membership.current.voters
        promised = [v for v in voters if self.votes.get((v, core.term)) == node.id]
        needed = ballots.prepare_quorum(len(voters), network.settings.accept_quorum)
        assert len(promised) >= needed, "open by promises that are not on disk"
        for index, entry in self.committed.items():
            if index > core.log.base_index:
                held = core.log.get(index)
                assert held is not None and (held.kind, held.data) == (entry.kind, entry.data), f"{index} is lost"

    def check_written(self, network: Network, node: Node, batch: WriteBatch) -> None:
        for entry in batch.entries:
            value = (entry.kind, entry.data)
            known = self.proposed.setdefault((entry.index, entry.epoch), value)
            assert known == value, "one ballot, two values"
            chosen = self.committed.get(entry.index)
            above = self.chosen_by.get(entry.index, (1 << 62, set()))[0]
            assert chosen is None or entry.epoch < above or (chosen.kind, chosen.data) == value, "the chosen changes"

    def is_same(self, known: Entry, entry: Entry) -> bool:
        return (known.kind, known.data) == (entry.kind, entry.data)

    def check_copies(self, network: Network, node: Node, entry: Entry) -> None:
        """A quorum of the configuration that the slot belongs to has had one ballot's value on disk."""
        voters = next(iter(network.nodes.values())).disk.configuration.voters
        for index in sorted(self.committed):
            if index < entry.index and self.committed[index].kind == KIND_CONFIG:
                voters = members.decode(self.committed[index]).voters
        holders: dict[int, set[int]] = {}
        for voter in voters:
            for slot, ballot in getattr(network.nodes[voter].disk, "accepted", ()):
                if slot == entry.index:
                    holders.setdefault(ballot, set()).add(voter)
        needed = ballots.accept_quorum(len(voters), network.settings.accept_quorum)
        chosen = [ballot for ballot, who in holders.items() if len(who) >= needed]
        assert chosen, f"slot {entry.index} is called chosen, on disks it is not: {holders}"
        self.chosen_by[entry.index] = (min(chosen), holders[min(chosen)])


def paxos_network(*arguments: Any, **options: Any) -> Network:
    return Network(*arguments, core_class=Paxos, disk_class=SlotDisk, oracle=SlotOracle(), **options)
