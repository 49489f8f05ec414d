"""Seeded random faults on a small cluster; the oracle checks every turn. A failing seed is in the test's name.

Two kinds of runs. *Steady*: time passes in election timeouts, leases and bounded reads are asked for. *Churn*: replicas
stand whenever they like, promises or not (so no leases), milliseconds apart: divergent logs and elections by the dozen.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.consensus.network import Network
from zcluster.consensus.api import ADD_LEARNER, PROMOTE, REMOVE, ConfigChange, Settings
from zcluster.errors import Error
from zcluster.types import MS, NEVER

SEEDS = range(40)


class Faults:
    """Random inputs for one network; each verb does one thing or, where it makes no sense now, nothing."""

    new_network: Callable[..., Network] = Network

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        chance = self.rng.random
        self.churn = seed % 4 >= 2
        timeout = 25 * MS if self.churn else 600 * MS
        settings = self.draw_settings(
            election_timeout=timeout,
            heartbeat_interval=timeout // 5,
            lease_margin=timeout // 10,
            batch_bytes_max=self.rng.choice([1, 500, 1 << 20]),
            inflight_max=self.rng.choice([1, 3, 8]),
            retained_bytes_max=self.rng.choice([0, 900, 1 << 20]),
            rear_delay=5 * MS * (seed // 4 % 2),
        )
        quick, slow = (MS // 5, MS // 2), (MS // 5, 8 * MS)
        self.network = self.new_network(
            self.rng.choice([3, 3, 5] if self.churn else [1, 2, 3, 3, 3, 4, 5, 5]),
            seed=seed,
            settings=settings,
            pidfds=not self.churn and chance() < 0.5,
            bootstrap=chance() < 0.7,
            delay=self.rng.choice([quick, slow] if self.churn else [quick, slow, (MS // 5, 300 * MS)]),
            disk_delay=self.rng.choice([quick, slow] if self.churn else [quick, slow, (MS, 400 * MS)]),
        )
        self.network.loss = self.rng.choice([0, 0, 0.02, 0.05 if self.churn else 0.2])
        self.network.duplication = self.rng.choice([0, 0.1, 0.5])
        common = [
            *[self.propose] * 14,
            *[self.read] * 8,
            *[self.crash] * 2,
            *[self.restart] * 6,
            *[self.partition] * 2,
            *[self.heal] * 5,
            *[self.compact] * 2,
            *[self.isolate] * 2,
            *[self.change if seed % 2 else self.damage] * 2,
        ]
        steady = [self.pause, *[self.resume] * 3, self.stall, self.transfer, *[self.swap] * 2, self.late_certificate]
        churn = [*[self.stand] * 5, *[self.stall] * 2, *[self.change] * 3 * (seed % 2)]
        self.verbs = common + (churn if self.churn else steady)
        self.steps = 250 if self.churn else 80
        self.spans = (1, 5, 20) if self.churn else (1, 10, 100, 700)

    def draw_settings(self, **settings: Any) -> Settings:
        return Settings(**settings)

    def run(self) -> None:
        self.network.run(self.rng.choice([0, 50, 1_000]) * MS)
        for _ in range(self.steps):
            self.rng.choice(self.verbs)()
            self.network.run(int(self.rng.choice(self.spans) * self.rng.random() * MS))

    def stand(self) -> None:
        """An election timeout has passed, somewhere; the others let go of their leader too, or do not."""
        node = self.network.nodes[self.some()]
        for other in self.network.nodes.values():
            if other.core is None or self.rng.random() < 0.3:
                continue
            other.core.promise.until = 0
            if other.core.leadership is not None and self.rng.random() < 0.5:
                other.core.leadership.check_at = self.network.now
                for progress in other.core.leadership.progress.values():
                    progress.active_at = 0
                self.network.turn(other)
        if node.core is not None and not node.core.is_leader and node.core.election_at < NEVER:
            node.core.election_at = self.network.now
            self.network.turn(node)

    def some(self) -> int:
        return self.rng.choice(sorted(self.network.nodes))

    def propose(self) -> None:
        for node in self.network.nodes.values():  # deposed leaders too
            for _ in range(self.rng.randrange(4)):
                if node.core is not None and node.core.is_leader and not node.paused:
                    try:
                        self.network.propose(self.rng.randbytes(self.rng.choice([1, 10, 100])), node.id)
                    except Error:
                        pass

    def read(self) -> None:
        for node in self.network.nodes.values():
            if node.core is None or node.paused:
                continue
            bound = self.rng.choice([0, 50, 200, 1000]) * MS
            index = node.core.bounded_index(self.network.now, bound)
            if index is not None:
                assert index >= self.network.oracle.acknowledged_before(self.network.now - bound)
            if node.core.is_leader:
                self.network.read(node.id, lease=not self.churn and self.rng.random() < 0.5)

    def crash(self) -> None:
        node = self.network.nodes[self.some()]
        if node.core is not None:
            self.network.crash(node.id)

    def restart(self) -> None:
        node = self.network.nodes[self.some()]
        if node.core is None:
            self.network.start(node.id)

    def partition(self) -> None:
        ids = sorted(self.network.nodes)
        kind = self.rng.randrange(3)
        if kind == 0:
            self.network.cut = {(a, b) for a in ids for b in ids if a != b and self.rng.random() < 0.3}  # one way
        else:
            self.rng.shuffle(ids)
            cut = self.rng.randrange(len(ids) + 1)
            overlap = kind - 1
            self.network.partition(ids[: cut + overlap], ids[cut:])

    def isolate(self) -> None:
        """A leader goes on writing to nobody, while the others go on without it."""
        leader = self.network.leader()
        if not leader:
            return
        self.network.partition([leader], [i for i in self.network.nodes if i != leader])
        for _ in range(3):
            self.propose()
        self.network.run(int(self.rng.random() * 3 * self.network.settings.election_timeout))
        self.propose()

    def swap(self) -> None:
        """Some followers hear nothing until they are about to stand; then it is the leader who hears nothing."""
        leader = self.network.leader()
        if not leader or len(self.network.nodes) == 1:
            return
        others = [i for i in self.network.nodes if i != leader]
        self.rng.shuffle(others)
        cut = len(self.network.nodes) // 2
        self.network.partition([leader, *others[:cut]], others[cut:])
        self.network.run(int((0.8 + 0.8 * self.rng.random()) * self.network.settings.election_timeout))
        if self.rng.random() < 0.5 and self.network.nodes[others[0]].core is not None:
            self.network.crash(others[0])
            self.network.start(others[0])
        self.network.partition([leader], others)
        for _ in range(20):
            self.network.run(int(self.rng.random() * self.network.settings.election_timeout // 10))
            self.propose()
            self.read()

    def heal(self) -> None:
        self.network.heal()

    def pause(self) -> None:
        self.network.pause(self.some())

    def resume(self) -> None:
        self.network.resume(self.some())

    def stall(self) -> None:
        node = self.network.nodes[self.some()]
        if node.core is not None:
            self.network.stall_disk(node.id, self.rng.random() < 0.3)

    def compact(self) -> None:
        node = self.network.nodes[self.some()]
        if node.core is not None and node.applied_index > (node.disk.snapshot.index if node.disk.snapshot else 0):
            self.network.compact(node.id)

    def transfer(self) -> None:
        leader = self.network.leader()
        if leader and not self.network.nodes[leader].paused:
            try:
                self.network.core(leader).transfer_leadership(self.rng.choice([0, self.some()]), self.network.now)
                self.network.pump(self.network.nodes[leader])
            except Error:
                pass

    def change(self) -> None:
        for node in list(self.network.nodes.values()):
            if node.core is None or not node.core.is_leader or node.paused:
                continue
            action = self.rng.choice([ADD_LEARNER, PROMOTE, PROMOTE, REMOVE])
            replica = self.some()
            if action == ADD_LEARNER and len(self.network.nodes) < 7:
                replica = max(self.network.nodes) + 1
            try:
                node.core.propose_config(ConfigChange(action, replica), self.network.now)
            except Error:
                continue
            if replica not in self.network.nodes:
                self.network.add(replica)
            self.network.pump(node)

    def damage(self) -> None:
        """A dead replica's log loses its end, acknowledged or not; one at a time, or what is committed may be gone."""
        node = self.network.nodes[self.some()]
        repairing = any(n.disk.repair for n in self.network.nodes.values())
        if node.core is None and not repairing and len(self.network.nodes) > 2:
            kept = self.rng.randrange(max(node.disk.entries, default=0) + 1)
            node.disk.damage(kept)

    def late_certificate(self) -> None:
        node, other = self.network.nodes[self.some()], self.network.nodes[self.some()]
        if node.core is not None and other.incarnation > 1:
            node.lost.append((other.id, other.incarnation - 1))

    def recover(self) -> None:
        """All faults end: the cluster must serve again."""
        network = self.network
        network.heal()
        network.loss = 0.0
        network.delay = network.disk_delay = (MS // 5, MS // 2)
        for node in list(network.nodes.values()):
            if node.core is None:
                network.start(node.id)
            if node.paused:
                network.resume(node.id)
            if node.disk_stalled:
                network.stall_disk(node.id, False)
        network.run(4 * network.settings.election_timeout)
        network.elect()
        network.commit(b"after all")
        members = network.core(network.leader()).membership.current
        ids = {*members.voters, *members.learners}
        last = max(network.oracle.committed)
        network.run_until(lambda: all(network.nodes[i].applied_index >= last for i in ids))
        token = network.read(leader := network.leader())
        network.run_until(lambda: network.answer(leader, token) is not None)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_committed_is_lost_under_random_faults(seed: int) -> None:
    faults = Faults(seed)
    faults.run()
    faults.recover()


class WeakFaults(Faults):
    """Weak durability: what is written survives SIGKILL, but a power cut takes the end of every log that was in use.

    `suspect`: replica -> the highest term it knew at its last power cut, as the store remembers it.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.suspect: dict[int, int] = {}
        self.stopped: set[int] = set()  # in order, so that their logs were synced
        self.start_replica = self.network.start
        self.network.start = self.start  # type: ignore[method-assign]
        members = [self.change, self.damage]
        self.verbs = [verb for verb in self.verbs if verb not in members] + [self.power_cut, self.outage, self.outage]

    def start(self, replica_id: int, **flags: Any) -> None:
        self.stopped.discard(replica_id)
        self.start_replica(replica_id, suspect_after=self.suspect.get(replica_id), **flags)

    def stop(self) -> None:
        node = self.network.nodes[self.some()]
        if node.core is not None:
            for batch in node.writes:
                node.disk.apply(batch)
                self.network.oracle.on_disk(node, batch)
            node.writes = []
            self.network.crash(node.id)
            self.stopped.add(node.id)

    def outage(self) -> None:
        """One stops in order, the others go on; then the power fails, and only some come back at first."""
        self.network.heal()
        self.stop()
        for _ in range(4):
            self.network.run(int(self.rng.random() * 2 * self.network.settings.election_timeout))
            self.propose()
            self.compact()
        self.power_cut()
        ids = sorted(self.network.nodes)
        for replica in self.rng.sample(ids, len(ids) // 2 + 1):
            self.network.start(replica)
        self.network.run(int(self.rng.random() * 6 * self.network.settings.election_timeout))

    def power_cut(self) -> None:
        oracle = self.network.oracle
        for node in self.network.nodes.values():
            if node.core is not None:
                self.network.crash(node.id, tell=False)
            if node.id in self.stopped:
                continue
            disk = node.disk
            synced = disk.snapshot.index if disk.snapshot else 0
            kept = self.rng.randint(synced, max(disk.entries, default=0) + synced)
            disk.entries = {index: entry for index, entry in disk.entries.items() if index <= kept}
            self.suspect[node.id] = disk.hard_state.term
        # Acknowledged entries may be lost, but only those that no disk holds any more.
        disks = [node.disk for node in self.network.nodes.values()]
        left = [i for i, e in oracle.committed.items() if any(disk.held(i, e.epoch) for disk in disks)]
        last = max(left, default=0)
        oracle.committed = {i: e for i, e in oracle.committed.items() if i <= last}
        oracle.acknowledged = [(at, index) for at, index in oracle.acknowledged if index <= last]


@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_ever_diverges_over_power_cuts_in_a_weak_mode(seed: int) -> None:
    faults = WeakFaults(seed)
    faults.run()
    faults.recover()
