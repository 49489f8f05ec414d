"""Multi-Paxos under seeded faults: the same verbs, networks and disks as Raft's, judged by what Paxos promises."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.consensus import test_raft_faults as raft
from tests.unit.consensus.paxos_network import SlotDisk, paxos_network
from zcluster.types import MS

SEEDS = range(40)


class Faults(raft.Faults):
    """`accept_quorum` is drawn too: flexible quorums."""

    new_network = staticmethod(paxos_network)

    def draw_settings(self, **settings: Any) -> Any:
        return super().draw_settings(accept_quorum=self.rng.choice([0, 0, 0, 1, 2, 4]), **settings)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_chosen_is_lost_under_random_faults(seed: int) -> None:
    faults = Faults(seed)
    faults.run()
    faults.recover()
