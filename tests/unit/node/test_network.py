"""A replica's own network: orders and their answers, and rules that end with the process they are about."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from zcluster import wire
from zcluster.node.network import OwnNetwork
from zcluster.transport.faults import Order, Rule
from zcluster.transport.liveness import start_ticks
from zcluster.transport.peers import Envelope
from zcluster.types import MS

NAMES = {11: "n1", 12: "n2"}


@pytest.fixture
def network() -> Iterator[OwnNetwork[str]]:
    """Of replica 11, which is n1."""
    made: OwnNetwork[str] = OwnNetwork(Envelope(1, "c-1", 11, 1, 0, 1, 1), lambda peer, body: None, NAMES.get)
    yield made
    made.close()


@pytest.fixture
def peer() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for its end."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def cut(pid: int, ticks: int) -> bytes:
    return wire.encode(Order(("cut",), (Rule("cut", "in", 12, pid=pid, start_ticks=ticks),)))


def test_the_answer_to_an_order_is_what_holds_now(network: OwnNetwork[str]) -> None:
    order = Order((), (Rule("slow", "out", until=900 * MS, delay=5 * MS), Rule("cut", "in", 12), Rule("cut", "in", 77)))
    kind, rules = network.order(wire.encode(order), 400 * MS)
    assert kind == wire.RESULT
    assert [(r["kind"], r["peer"], r["delay_ms"], r["seconds_left"]) for r in rules] == [
        ("slow", None, 5.0, 0.5),
        ("cut", "n2", 0.0, None),
        ("cut", "replica 77", 0.0, None),
    ]
    assert network.describe(900 * MS) == rules[1:]  # over, though nobody has looked since


def test_a_member_that_came_later_has_its_name(network: OwnNetwork[str], monkeypatch: pytest.MonkeyPatch) -> None:
    network.order(wire.encode(Order((), (Rule("cut", "in", 13),))), 0)
    monkeypatch.setitem(NAMES, 13, "n3")
    assert [rule["peer"] for rule in network.describe(0)] == ["n3"]


def test_nonsense_is_refused_and_changes_nothing(network: OwnNetwork[str]) -> None:
    kind, content = network.order(b"\x93nonsense", 0)
    assert (kind, content[0]) == (wire.FAILED, wire.E_BAD_REQUEST)
    assert not network.faults.active


def test_a_rule_ends_when_the_process_it_is_about_does(network: OwnNetwork[str], peer: subprocess.Popen[bytes]) -> None:
    network.order(cut(peer.pid, start_ticks(peer.pid) or 0), 0)
    network.forget_dead(0)
    assert network.faults.severed(12)
    assert len(network.descriptors()) == 1
    peer.kill()
    peer.wait()
    network.forget_dead(0)
    assert not network.faults.active
    assert network.descriptors() == []


def test_a_rule_about_a_process_that_is_gone_already_never_holds(
    network: OwnNetwork[str], peer: subprocess.Popen[bytes]
) -> None:
    network.order(cut(peer.pid, (start_ticks(peer.pid) or 0) + 1), 0)  # the pid is another one's by now
    assert not network.faults.active


def test_healing_lets_go_of_the_processes(network: OwnNetwork[str], peer: subprocess.Popen[bytes]) -> None:
    network.order(cut(peer.pid, start_ticks(peer.pid) or 0), 0)
    network.order(wire.encode(Order(("cut",))), 0)
    assert network.descriptors() == []
