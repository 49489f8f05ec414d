"""Multi-Paxos under seeded faults: the same verbs, networks and disks as Raft's, judged by what Paxos promises."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.consensus import test_raft_faults as raft
from tests.unit.consensus.paxos_network import paxos_network
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
