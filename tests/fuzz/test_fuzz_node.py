"""A replica that hears nonsense from clients and peers: it never raises, never hangs, and what it held stays.

The whole of it: `Replica` around the real consensus core and the real state machine, with writes that are durable at
once. A peer that commits an entry nobody can read is the only one that stops a node, by name.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.mutations import effort, messages, numbers
from tests.unit.consensus import test_raft_garbage as raft
from zcluster import wire
from zcluster.consensus import invariants
from zcluster.consensus.api import AnyMessage, AppendRequest, Heartbeat, InstallSnapshot, Recovered, Settings
from zcluster.consensus.raft import Raft
from zcluster.errors import FormatTooNew
from zcluster.machines.kv import REPLY_BYTES_MAX
from zcluster.machines.mux import ClusterMachine
from zcluster.node.replica import Limits, Replica
from zcluster.types import MS, Configuration, Entry, SnapshotMeta

REGISTER = wire.encode(wire.Frame(77, 0, 0, [[wire.OP_REGISTER]]))
PUT = wire.encode(wire.Frame(1 << 32 | 77, 1, 0, [[wire.OP_PUT, "k", b"v"], [wire.OP_CAS, "k", b"v", None]]))
CLIENT_BODIES = [
    REGISTER,
    PUT,
    wire.encode([wire.LINEARIZABLE, 0, [[wire.OP_GET, "k"]]]),
    wire.encode([wire.EVENTUAL, 0, [[wire.OP_LIST, "", None, 5], [wire.OP_HASH]]]),
    wire.encode([wire.BOUNDED, 1000, [[wire.OP_GET, "k"]]]),
    wire.encode([wire.PROTOCOL, "c"]),
    wire.encode([2]),
    wire.encode(["remove", 2]),
    b"",
]
PEER_MESSAGES = [
    wire.encode(AppendRequest(2, 0, 0, 3, (Entry(1, 1, 0, wire.encode_payload(0, 1, [REGISTER, PUT])),))),
    wire.encode(Heartbeat(2, 1, 3)),
]
decode_peer = msgspec.msgpack.Decoder(AnyMessage).decode

kinds = st.one_of(st.integers(1, 7), st.integers(0, 255))
client_verbs = st.tuples(st.just("client"), kinds, st.integers(0, (1 << 64) - 1), messages(CLIENT_BODIES))
peer_verbs = st.tuples(st.just("peer"), st.one_of(st.integers(2, 3), numbers), numbers, raft.messages)
bytes_verbs = st.tuples(st.just("bytes"), messages(PEER_MESSAGES))
wait_verbs = st.tuples(st.just("wait"), st.integers(0, 900))


class World:
    """One replica of three; the others are whatever the story says."""

    def __init__(self, cluster: int) -> None:
        self.now = 1000 * MS
        self.machine = ClusterMachine(64, 1024, 10)
        voters = Configuration(tuple(range(1, cluster + 1)))
        self.core = Raft(1, 1, Settings(), Recovered(configuration=voters, bootstrap=True), random.Random(1), self.now)
        self.replica = Replica(
            self.core,
            self.machine,
            Limits(checkpoint_bytes=1 << 20, checkpoint_interval=0),
            cluster_id="c",
            applied=SnapshotMeta(0, 0, voters),
            now=self.now,
            verify_death=lambda replica, incarnation: (replica, incarnation) == (2, 1),
        )
        self.replies: list[tuple[bytes, bytes, bytes]] = []

    def turn(self) -> None:
        before = invariants.summarize(self.core)
        for _ in range(20):
            if self.now >= self.replica.next_deadline():
                self.replica.deadline(self.now)
            out = self.replica.turn(self.now, self.now // MS)
            self.replies += out.replies
            for _, message in out.messages:
                assert len(wire.encode(message)) < 1 << 20
            if out.capture is not None:
                assert sum(map(len, out.capture[1].chunks())) < 1 << 20
                self.replica.checkpoint_done(out.capture[0], None, self.now)
            if not out.writes:
                break
            self.replica.persisted(out.writes[-1].seq, self.now)
        else:
            raise AssertionError("it does not come to rest")
        invariants.check_state(self.core)
        invariants.check_step(before, invariants.summarize(self.core))

    def carry_out(self, verb: tuple[Any, ...]) -> None:
        kind, *arguments = verb
        if kind == "client":
            self.replica.client_message(b"client", *arguments, self.now)
        elif kind == "peer":
            sender, incarnation, message = arguments
            self.replica.peer_message(sender, incarnation, message, self.now)
        elif kind == "bytes":
            try:
                message = decode_peer(arguments[0])
            except wire.DecodeError:
                return
            self.replica.peer_message(2, 1, message, self.now)
        else:
            self.now += arguments[0] * MS


def lead(world: World) -> None:
    while not world.core.is_leader:
        world.now = max(world.now, world.replica.next_deadline())
        world.turn()


@given(st.lists(st.one_of(client_verbs, client_verbs, wait_verbs), max_size=20))
@effort(150)
def test_a_leader_answers_whatever_clients_send(story: list[tuple[Any, ...]]) -> None:
    world = World(1)
    lead(world)
    asked = 0
    for verb in story:
        world.carry_out(verb)
        asked += verb[0] == "client"
        world.turn()
    world.now += 5000 * MS
    world.turn()
    assert len(world.replies) == asked
    for client, head, body in world.replies:
        assert client == b"client" and len(head) == wire.HEAD_BYTES
        wire.decode(body)
    world.carry_out(("client", wire.WRITE, 5, REGISTER))
    world.turn()
    assert type(wire.decode(world.replies[-1][2])[0]) is int, "it serves on"


@given(st.booleans(), st.lists(st.one_of(client_verbs, peer_verbs, bytes_verbs, wait_verbs), max_size=20))
@effort(200)
def test_nonsense_from_peers_and_clients_harms_nothing(follow: bool, story: list[tuple[Any, ...]]) -> None:
    world = World(3)
    if follow:
        world.carry_out(("bytes", PEER_MESSAGES[0]))
        world.turn()
    for verb in story:
        applied = world.replica.last_applied
        try:
            world.carry_out(verb)
            world.turn()
        except FormatTooNew:
            return  # an entry was committed that no version of ours has written
        assert world.replica.last_applied >= applied
    world.machine.state_hash()


def test_an_unreadable_entry_that_is_committed_stops_the_node_by_name() -> None:
    for data in (b"", b"\x01", wire.encode([1, 2]), b"\xdd\xff\xff\xff\xff"):
        world = World(3)
        world.replica.peer_message(2, 1, AppendRequest(2, 0, 0, 1, (Entry(1, 1, 0, data),)), world.now)
        try:
            world.turn()
        except FormatTooNew as error:
            assert "entry 1" in str(error)
        else:
            raise AssertionError("it was applied")


def test_a_frame_full_of_hashes_costs_one() -> None:
    """The hash walks the whole state; a request must not make the node do that thousands of times."""
    machine = ClusterMachine(64, 1024, 10)
    calls = []
    original = machine.state_hash
    machine.state_hash = lambda: (calls.append(1), original())[1]  # type: ignore[method-assign]
    results = wire.decode(machine.query([[wire.OP_HASH]] * wire.OPS_MAX))
    assert len(results) == wire.OPS_MAX and len(calls) == 1


def test_a_hash_among_reads_does_not_lift_the_bound_of_the_answer() -> None:
    machine = ClusterMachine(64, REPLY_BYTES_MAX, 10)
    machine.kv.apply([[wire.OP_PUT, "k", bytes(REPLY_BYTES_MAX // 2)]])
    body = machine.query([[wire.OP_HASH], *[[wire.OP_GET, "k"]] * 20])
    assert len(body) < 2 * REPLY_BYTES_MAX


def test_a_snapshot_message_does_not_come_in_by_the_front_door() -> None:
    world = World(3)
    meta = SnapshotMeta(5, 1, Configuration((1, 2, 3)))
    world.replica.peer_message(2, 1, InstallSnapshot(2, meta), world.now)
    world.turn()
    assert world.replica.last_applied == 0
