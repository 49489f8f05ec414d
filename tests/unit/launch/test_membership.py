"""Plans: which step comes next, whatever has happened before."""

from __future__ import annotations

import random

import msgspec
import pytest

from zcluster.config import FRESH, JOINING, LEAVING, MEMBER, ClusterSpec, NodeSpec, make_settings
from zcluster.consensus.api import ADD_LEARNER, PROMOTE, REMOVE, ConfigChange
from zcluster.consensus.membership import changed
from zcluster.errors import InvalidInput
from zcluster.launch.membership import Create, Drop, Enter, Propose, after, is_settled, plan
from zcluster.types import Configuration


def describe(wanted: int, *nodes: NodeSpec) -> ClusterSpec:
    return ClusterSpec(
        format=1,
        name="c",
        cluster_id="0",
        settings=make_settings(nodes=wanted),
        nodes=nodes,
        socket_directory="/s",
        replica_ids_used=len(nodes),
    )


N1, N2, N3 = (NodeSpec(f"n{i}", i) for i in (1, 2, 3))
THREE = Configuration((1, 2, 3))
ALL = ("n1", "n2", "n3", "n4", "n5")


def propose(action: str, replica: int, name: str) -> Propose:
    return Propose(ConfigChange(action, replica), name)


def test_nothing_is_to_be_done_where_all_is_as_it_is_to_be() -> None:
    spec = describe(3, N1, N2, N3)
    assert plan(spec, THREE, ALL) == ([], [])
    assert is_settled(spec)


def test_a_new_node_is_described_then_settled_then_added_then_promoted() -> None:
    spec = describe(4, N1, N2, N3)
    assert plan(spec, THREE, ALL).steps == [Create("n4", 4)]
    spec = after(spec, Create("n4", 4))
    assert spec.nodes[3] == NodeSpec("n4", 4, FRESH)
    assert plan(spec, THREE, ("n1", "n2", "n3")) == ([], ["n4 is starting, or down"])
    assert plan(spec, THREE, ALL).steps == [Enter("n4", JOINING)], "its store is settled before anybody counts on it"
    spec = after(spec, Enter("n4", JOINING))
    assert plan(spec, THREE, ALL).steps == [propose(ADD_LEARNER, 4, "n4")]
    assert plan(spec, Configuration((1, 2, 3), (4,)), ALL).steps == [propose(PROMOTE, 4, "n4")]
    assert plan(spec, Configuration((1, 2, 3, 4)), ALL).steps == [Enter("n4", MEMBER)]
    assert is_settled(after(spec, Enter("n4", MEMBER)))


def test_all_new_nodes_catch_up_at_the_same_time() -> None:
    spec = describe(5, N1, N2, N3, NodeSpec("n4", 4, JOINING), NodeSpec("n5", 5, JOINING))
    assert plan(spec, Configuration((1, 2, 3), (4,)), ALL).steps == [propose(ADD_LEARNER, 5, "n5")]


def test_the_highest_numbers_go_and_their_data_only_after_the_commit() -> None:
    spec = describe(2, N1, N2, N3)
    assert plan(spec, THREE, ALL).steps == [Enter("n3", LEAVING)]
    spec = after(spec, Enter("n3", LEAVING))
    assert plan(spec, THREE, ALL).steps == [propose(REMOVE, 3, "n3")]
    assert plan(spec, Configuration((1, 2)), ALL).steps == [Drop("n3")]
    assert after(spec, Drop("n3")).nodes == (N1, N2)
    assert after(spec, Drop("n3")).replica_ids_used == 3


def test_a_node_on_its_way_out_goes_even_if_it_is_wanted_again_and_its_id_is_not_used_again() -> None:
    spec = describe(3, N1, N2, NodeSpec("n3", 3, LEAVING))
    assert plan(spec, THREE, ALL).steps == [propose(REMOVE, 3, "n3")]
    assert plan(spec, Configuration((1, 2)), ALL).steps == [Drop("n3")]
    assert plan(after(spec, Drop("n3")), Configuration((1, 2)), ALL).steps == [Create("n3", 4)]


def test_a_wiped_node_leaves_before_it_comes_back() -> None:
    """Before the erasure a majority must have agreed that its copies count no more."""
    spec = describe(3, N1, NodeSpec("n2", 2, LEAVING), N3)
    assert plan(spec, THREE, ("n1", "n3")).steps == [propose(REMOVE, 2, "n2")]
    assert plan(spec, Configuration((1, 3)), ("n1", "n3")).steps == [Drop("n2")]
    assert plan(after(spec, Drop("n2")), Configuration((1, 3)), ("n1", "n3")).steps == [Create("n2", 4)]


def test_the_dead_go_before_others_come_and_the_living_after_that() -> None:
    joining = NodeSpec("n4", 4, JOINING)
    dead = describe(3, N1, NodeSpec("n2", 2, LEAVING), N3, joining)
    assert plan(dead, THREE, ("n1", "n3", "n4")).steps == [propose(REMOVE, 2, "n2")]
    assert plan(dead, THREE, ALL).steps == [propose(ADD_LEARNER, 4, "n4")]


def test_a_node_that_is_kept_down_does_not_hold_up_those_that_go() -> None:
    spec = describe(2, N1, NodeSpec("n2", 4, FRESH), NodeSpec("n3", 3, LEAVING))
    assert plan(spec, Configuration((1, 3)), ("n1", "n3")).steps == [propose(REMOVE, 3, "n3")]


def test_a_member_that_nobody_describes_is_removed() -> None:
    """Its addition was asked for, believed lost, given up, and then it committed after all."""
    spec = describe(3, N1, N2, N3)
    assert plan(spec, Configuration((1, 2, 3), (4,)), ALL).steps == [propose(REMOVE, 4, "replica 4")]


def test_ports_of_a_node_go_with_it() -> None:
    spec = msgspec.structs.replace(describe(1, N1, N2), ports={"n1.peer": 1, "n2.peer": 2, "router.client": 3})
    assert after(spec, Drop("n2")).ports == {"n1.peer": 1, "router.client": 3}


class Life:
    """A cluster in which everything that can be interrupted is: a step may not take effect, or the planner never hear
    that it did."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.spec = describe(3, N1, N2, N3)
        self.configuration = THREE
        self.down: set[str] = set()
        self.data = {1, 2, 3}  # replica ids with a data directory
        self.ever: set[int] = {1, 2, 3}
        self.late: list[tuple[ConfigChange, int]] = []  # on their way to a leader; they may arrive whenever

    def answering(self) -> set[str]:
        return {n.name for n in self.spec.nodes if n.name not in self.down and self.serves(n)}

    def serves(self, node: NodeSpec) -> bool:
        if node.phase == FRESH:
            self.data.add(node.replica_id)
        return node.replica_id in self.data

    def apply(self, change: ConfigChange, at: int) -> None:
        if at != self.configuration.index:
            return  # long under way: what it starts from is not so any more
        known = {n.replica_id: n.name for n in self.spec.nodes}
        live = [r for r in self.configuration.voters if known.get(r) in self.answering()]
        if 2 * len(live) <= len(self.configuration.voters):
            return  # no leader
        try:
            after_it = changed(self.configuration, change, self.configuration.index + 1)
        except InvalidInput:
            return
        live = [r for r in after_it.voters if known.get(r) in self.answering()]
        if 2 * len(live) <= len(after_it.voters):
            return  # refused as imprudent
        if change.action == ADD_LEARNER:
            assert change.replica not in self.ever, "a replica id was used again"
            self.ever.add(change.replica)
        if change.action == PROMOTE:
            assert change.replica in self.data, "one without data was promoted"
        self.configuration = after_it

    def step(self, reliable: bool) -> bool:
        """One pass of a planner that may be killed anywhere in it. Returns: whether anything was to be done."""
        found = plan(self.spec, self.configuration, self.answering())
        for step in found.steps:
            if not reliable and self.random.random() < 0.2:
                break
            if isinstance(step, Propose):
                if reliable or self.random.random() < 0.7:
                    self.apply(step.change, self.configuration.index)
                else:
                    self.late.append((step.change, self.configuration.index))
                continue
            if isinstance(step, Drop):
                node = self.spec.node(step.name)
                members = {*self.configuration.voters, *self.configuration.learners}
                assert node.replica_id not in members, "data of a member were erased"
                self.data.discard(node.replica_id)
                if not reliable and self.random.random() < 0.2:
                    break
            self.spec = after(self.spec, step)
        return bool(found.steps)

    def disturb(self) -> None:
        what = self.random.random()
        name = self.random.choice([n.name for n in self.spec.nodes])
        if what < 0.2:
            settings = msgspec.structs.replace(self.spec.settings, nodes=self.random.randint(1, 5))
            self.spec = msgspec.structs.replace(self.spec, settings=settings)
        elif what < 0.4:
            self.down.add(name)
        elif what < 0.6:
            self.down.discard(name)
        elif what < 0.7 and name in self.down and sum(n.phase != LEAVING for n in self.spec.nodes) > 2:
            self.spec = after(self.spec, Enter(name, LEAVING))
        elif what < 0.8 and self.late:
            self.apply(*self.late.pop(self.random.randrange(len(self.late))))


@pytest.mark.parametrize("seed", range(300))
def test_whatever_is_interrupted_it_is_finished_in_the_end_and_no_id_is_used_twice(seed: int) -> None:
    life = Life(seed)
    for _ in range(80):
        if life.random.random() < 0.5:
            life.disturb()
        life.step(reliable=False)
    life.down.clear()
    life.late.clear()
    for _ in range(200):
        if not life.step(reliable=True):
            break
    wanted = life.spec.settings.nodes
    assert [n.name for n in life.spec.nodes] == [f"n{i + 1}" for i in range(wanted)]
    assert is_settled(life.spec)
    assert life.configuration.voters == tuple(sorted(n.replica_id for n in life.spec.nodes))
    assert life.configuration.learners == ()
