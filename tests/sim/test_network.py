"""Links lose, repeat and delay; each partition cuts exactly what its name says."""

from __future__ import annotations

from random import Random

import pytest

from zcluster.sim.network import Network, partition
from zcluster.sim.world import World
from zcluster.types import MS

CLIENT = 1000


def reached(cuts: list[tuple[int, int]], replicas: range) -> dict[int, set[int]]:
    return {a: {b for b in replicas if b != a and (a, b) not in cuts} for a in replicas}


@pytest.mark.parametrize("seed", range(10))
def test_what_each_partition_cuts(seed: int) -> None:
    five = range(1, 6)
    halves = reached(partition("halves", five, [], Random(seed)), five)
    assert sorted(len(others) for others in halves.values()) == [1, 1, 2, 2, 2]
    alone = reached(partition("isolate", five, [], Random(seed)), five)
    assert sorted(len(others) for others in alone.values()) == [0, 3, 3, 3, 3]
    ring = reached(partition("ring", five, [], Random(seed)), five)
    assert {len(others) for others in ring.values()} == {2}
    assert all(a in ring[b] for a in five for b in ring[a])
    one_way = partition("one_way", five, [], Random(seed))
    assert len(one_way) == 4
    assert not {(b, a) for a, b in one_way} & set(one_way)
    bridge = reached(partition("bridge", five, [], Random(seed), leader=2), five)
    assert sorted(len(others) for others in bridge.values()) == [2, 2, 2, 2, 4]
    assert len(bridge[2]) == 2, "the leader is no bridge"


def test_a_client_sides_with_one_of_the_halves() -> None:
    cuts = partition("halves", range(1, 4), [CLIENT], Random(1))
    assert {a for a, b in cuts if b == CLIENT} in ({1, 2}, {1, 3}, {2, 3}, {1}, {2}, {3})


def deliveries(network: Network, world: World, count: int) -> list[int]:
    arrived: list[int] = []
    for number in range(count):
        network.send(1, 2, arrived.append, number)
    world.run_until(world.now + 10_000 * MS)
    return arrived


def test_a_quiet_network_delivers_everything_once() -> None:
    world = World(1)
    assert sorted(deliveries(Network(world, [1, 2]), world, 50)) == list(range(50))


def test_a_bad_network_loses_repeats_and_reorders() -> None:
    world = World(1)
    network = Network(world, [1, 2])
    network.loss, network.duplication = 0.3, 0.5
    arrived = deliveries(network, world, 200)
    assert 100 < len(set(arrived)) < 180
    assert len(arrived) > len(set(arrived))
    assert arrived != sorted(arrived)


def test_a_stream_keeps_its_order() -> None:
    world = World(1)
    network = Network(world, [1, 2])
    network.slow, network.slow_max = 0.5, 500 * MS
    arrived: list[int] = []
    for number in range(50):
        network.stream(1, 2, arrived.append, number)
    world.run_until(world.now + 10_000 * MS)
    assert arrived == list(range(50))


def test_a_cut_stops_what_is_sent_and_what_is_under_way_until_healed() -> None:
    world = World(1)
    network = Network(world, [1, 2])
    arrived: list[str] = []
    network.send(1, 2, arrived.append, "under way")
    network.cut(1, [(1, 2)])
    network.cut(2, [(1, 2)])
    network.send(1, 2, arrived.append, "cut")
    network.send(2, 1, arrived.append, "other way")
    world.run_until(world.now + 100 * MS)
    network.heal(1)
    assert not network.reaches(1, 2)
    network.heal(2)
    network.send(1, 2, arrived.append, "healed")
    world.run_until(world.now + 100 * MS)
    assert arrived == ["other way", "healed"]


def test_a_power_cut_empties_the_wires() -> None:
    world = World(1)
    network = Network(world, [1, 2])
    arrived: list[int] = []
    network.send(1, 2, arrived.append, 1)
    network.forget()
    world.run_until(world.now + 100 * MS)
    assert not arrived
