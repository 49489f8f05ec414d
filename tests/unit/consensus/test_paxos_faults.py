"""Multi-Paxos under seeded faults: the same verbs, networks and disks as Raft's, judged by what Paxos promises."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.consensus import test_raft_faults as raft
from tests.unit.consensus.paxos_network import SlotDisk, SlotOracle, paxos_network
from zcluster.consensus import ballots

SEEDS = [pytest.param(seed, marks=[pytest.mark.slow] if seed >= 12 else []) for seed in range(60)]


class Faults(raft.Faults):
    """`accept_quorum` is drawn too: flexible quorums."""

    new_network = staticmethod(paxos_network)

    def draw_settings(self, **settings: Any) -> Any:
        return super().draw_settings(accept_quorum=self.rng.choice([0, 0, 0, 1, 2, 4]), **settings)

    def damage(self) -> None:
        """Where phase 1 needs every acceptor, a damaged one leaves nobody who could repair it."""
        voters = len(self.network.nodes)
        if ballots.prepare_quorum(voters, self.network.settings.accept_quorum) < voters:
            super().damage()


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_chosen_is_lost_under_random_faults(seed: int) -> None:
    faults = Faults(seed)
    faults.run()
    faults.recover()


class WeakFaults(Faults, raft.WeakFaults):
    """Power cuts in a weak mode: the acceptors come back suspect, without the end of what they had accepted."""

    def draw_settings(self, **settings: Any) -> Any:
        return raft.Faults.draw_settings(self, **settings)

    def start(self, replica_id: int, **flags: Any) -> None:
        disk = self.network.nodes[replica_id].disk
        if getattr(disk, "sound", False):
            self.suspect.pop(replica_id, None)
        super().start(replica_id, **flags)

    def power_cut(self) -> None:
        before = dict(self.suspect)
        super().power_cut()
        for replica, node in self.network.nodes.items():
            assert isinstance(node.disk, SlotDisk)
            disk = node.disk
            if self.suspect.get(replica) != before.get(replica) or replica not in self.stopped:
                disk.sound = False
            last = max(disk.entries, default=disk.snapshot.index if disk.snapshot else 0)
            disk.chosen = min(disk.chosen, last)
        oracle = self.network.oracle
        assert isinstance(oracle, SlotOracle)
        # What some disk knows to be chosen stays; so does what it holds of a value that was.
        last = max(oracle.committed, default=0)
        oracle.chosen_by = {slot: chosen for slot, chosen in oracle.chosen_by.items() if slot <= last}


@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_ever_diverges_over_power_cuts_in_a_weak_mode(seed: int) -> None:
    faults = WeakFaults(seed)
    faults.run()
    faults.recover()
