"""Rules for a replica's own network: what each does to messages, how long it holds, and what ends it."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from zcluster import wire
from zcluster.transport.faults import DELAY_MAX, HELD_MAX, FaultyNetwork, Order, Rule, decode_order
from zcluster.transport.peers import Envelope
from zcluster.types import MS, NEVER

SECOND = 1000 * MS


class World:
    """Replica 1 with a network that remembers what has left it."""

    def __init__(self, seed: int = 7) -> None:
        self.now = 5 * SECOND
        self.left: list[tuple[int, bytes]] = []
        self.network: FaultyNetwork[str] = FaultyNetwork(
            lambda peer, body: self.left.append((peer, body)), random.Random(seed)
        )

    def order(self, *rules: Rule, lift: Any = ()) -> None:
        self.network.obey(Order(lift, rules), self.now)

    def send(self, peer: int, body: bytes = b"x") -> list[tuple[int, bytes]]:
        """What has left so far."""
        self.network.outward(peer, body, self.now)
        return self.left

    def receive(self, *messages: tuple[int, str]) -> list[tuple[int, str]]:
        received = [(Envelope(1, "c", sender, 1, 1, 1, 1), text) for sender, text in messages]
        return [(envelope.sender, text) for envelope, text in self.network.inward(received, self.now)]

    def sleep(self, span: int) -> None:
        self.now += span


@pytest.fixture
def world() -> World:
    return World()


def test_without_rules_nothing_is_to_be_asked(world: World) -> None:
    assert not world.network.active
    assert world.network.next_deadline() == NEVER
    assert not world.network.severed(2)


def test_a_cut_stops_one_direction_of_one_peer(world: World) -> None:
    world.order(Rule("cut", "in", 2))
    assert world.network.active
    assert world.receive((2, "a"), (3, "b")) == [(3, "b")]
    assert world.send(2) == [(2, b"x")]
    world.order(Rule("cut", "out", 2))
    world.left.clear()
    world.send(2)
    assert world.send(3) == [(3, b"x")]
    assert world.network.lost == 2


@pytest.mark.parametrize("direction", ["in", "out"])
def test_either_direction_cut_severs_streams(world: World, direction: Any) -> None:
    world.order(Rule("cut", direction, 2))
    assert world.network.severed(2)
    assert not world.network.severed(3)


def test_an_order_replaces_the_rules_of_the_kinds_it_lifts_and_no_others(world: World) -> None:
    world.order(Rule("cut", "in", 2), Rule("slow", "out", delay=MS))
    world.order(Rule("cut", "in", 3), lift=("cut",))
    assert world.network.rules.all == (Rule("slow", "out", delay=MS), Rule("cut", "in", 3))
    world.order(lift=("cut", "slow", "flaky"))
    assert not world.network.active


def test_a_rule_ends_by_itself_at_its_moment(world: World) -> None:
    world.order(Rule("cut", "in", until=world.now + SECOND))
    assert world.network.next_deadline() == world.now + SECOND
    world.sleep(SECOND - 1)
    assert world.receive((2, "early")) == []
    world.sleep(1)
    assert world.receive((2, "late")) == [(2, "late")]
    assert not world.network.active


def test_slow_messages_come_later_in_their_order(world: World) -> None:
    world.order(Rule("slow", "in", delay=50 * MS), Rule("slow", "out", delay=20 * MS))
    assert world.receive((2, "a"), (2, "b")) == []
    assert world.send(2) == []
    assert world.network.next_deadline() == world.now + 20 * MS
    world.sleep(20 * MS)
    assert world.receive() == []
    assert world.left == [(2, b"x")]
    assert world.network.next_deadline() == world.now + 30 * MS
    world.sleep(30 * MS)
    assert world.receive() == [(2, "a"), (2, "b")]
    assert world.network.delayed == 3


def test_what_was_late_arrives_when_the_network_is_healed(world: World) -> None:
    world.order(Rule("slow", "in", delay=10 * SECOND), Rule("slow", "out", delay=10 * SECOND))
    world.receive((2, "old"))
    world.send(3)
    world.order(lift=("slow",))
    assert world.network.active  # until the loop has come for it
    assert world.network.next_deadline() <= world.now
    assert world.receive((2, "new")) == [(2, "old"), (2, "new")]
    assert world.left == [(3, b"x")]
    assert not world.network.active


def test_messages_under_way_are_bounded(world: World) -> None:
    world.order(Rule("slow", "out", delay=SECOND))
    for _ in range(HELD_MAX + 5):
        world.send(2)
    assert world.network.lost == 5


def test_the_share_that_is_lost_is_the_share_asked_for(world: World) -> None:
    world.order(Rule("flaky", "out", loss=0.2))
    for _ in range(5000):
        world.send(2)
    assert 800 < world.network.lost < 1200
    assert len(world.left) == 5000 - world.network.lost


def test_the_same_seed_loses_the_same_messages() -> None:
    def run(seed: int) -> list[bytes]:
        world = World(seed)
        world.order(Rule("flaky", "out", loss=0.5))
        for number in range(64):
            world.send(2, b"%d" % number)
        return [body for _, body in world.left]

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_a_second_copy_comes_later(world: World) -> None:
    world.order(Rule("flaky", "in", duplicate=1.0))
    assert world.receive((2, "a")) == [(2, "a")]
    world.sleep(SECOND)
    assert world.receive() == [(2, "a")]
    assert (world.network.doubled, world.network.delayed) == (1, 0)


def test_rules_about_one_link_add_up(world: World) -> None:
    world.order(Rule("slow", "in", 2, delay=10 * MS), Rule("slow", "in", delay=5 * MS))
    world.receive((2, "far"), (3, "near"))
    world.sleep(5 * MS)
    assert world.receive() == [(3, "near")]
    world.sleep(10 * MS)
    assert world.receive() == [(2, "far")]


def test_the_death_of_a_peer_ends_what_was_held_against_it_alone(world: World) -> None:
    world.order(Rule("cut", "in", 2), Rule("cut", "out", 2), Rule("cut", "in", 3), Rule("slow", "out", delay=MS))
    world.network.forget(2, world.now)
    assert world.network.rules.all == (Rule("cut", "in", 3), Rule("slow", "out", delay=MS))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        wire.encode([["cut"], [["cut", "sideways", 2]]]),
        wire.encode([["everything"], []]),
        wire.encode([[], [["slow", "in", 2, NEVER, DELAY_MAX + 1]]]),
        wire.encode([[], [["slow", "in", 2, NEVER, -1]]]),
        wire.encode([[], [["flaky", "in", 2, NEVER, 0, 1.5]]]),
        wire.encode([[], [["flaky", "in", 2, NEVER, 0, float("nan")]]]),
        wire.encode([[], [["cut", "in", 70_000]]]),
        wire.encode([[], [["cut", "in", 2]] * 257]),
    ],
)
def test_an_order_that_makes_no_sense_is_not_taken(body: bytes) -> None:
    with pytest.raises(wire.DecodeError):
        decode_order(body)


def test_an_order_survives_its_encoding() -> None:
    order = Order(("cut", "slow"), (Rule("flaky", "out", 3, 99, 0, 0.25, 0.5),))
    assert decode_order(wire.encode(order)) == order
    assert msgspec.msgpack.decode(wire.encode(order))[0] == ["cut", "slow"]
