"""Checkpoints on their way: pieces of two are never mixed, and whatever goes wrong is answered."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from zcluster import wire
from zcluster.machines.api import Machine
from zcluster.machines.mux import ClusterMachine
from zcluster.node.install import SnapshotReceiver
from zcluster.node.transfer import DONE, MORE, REFUSED, Answer, Installed, Piece
from zcluster.storage.checkpoint import CheckpointWriter, list_checkpoints
from zcluster.storage.disk import PosixDisk
from zcluster.transport.peers import Envelope
from zcluster.transport.sockets import make_socket
from zcluster.types import Configuration, SnapshotMeta

WATCHDOG_S = 20
CLUSTER = "c-1"


def machine() -> ClusterMachine:
    return ClusterMachine(64, 1024, 16)


class Bench:
    """A receiver, leaders that send to it whatever the test wants, and one directory each."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.disk = PosixDisk()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.endpoint = f"ipc://{directory}/s"
        self.finished = threading.Event()
        self.made: Machine = machine()
        self.checkpoints = directory / "checkpoints"
        self.checkpoints.mkdir()
        self.receiver = SnapshotReceiver(
            self.context,
            self.disk,
            self.checkpoints,
            bind=self.endpoint,
            security=None,
            me=Envelope(wire.PROTOCOL, CLUSTER, 1, 1, 0, 1, 1),
            new_machine=lambda: self.made,
            notify=self.finished.set,
        )
        self.sockets: list[zmq.Socket[bytes]] = []

    def leader(self) -> zmq.Socket[bytes]:
        socket = make_socket(self.context, zmq.DEALER, connect=self.endpoint)
        socket.setsockopt(zmq.SNDTIMEO, WATCHDOG_S * 1000)
        socket.setsockopt(zmq.RCVTIMEO, WATCHDOG_S * 1000)
        self.sockets.append(socket)
        return socket

    def checkpoint(self, value: bytes, index: int = 7, epoch: int = 2) -> tuple[SnapshotMeta, bytes]:
        """Meta and bytes of a checkpoint in which key "k" is `value`."""
        source = machine()
        source.apply(1, 1, [wire.encode((1, 0, 0, [(wire.OP_REGISTER,)]))])
        session = next(iter(source.sessions.items()))[0]
        source.apply(index, 1, [wire.encode((session, 1, 1, [(wire.OP_PUT, "k", value)]))])
        meta = SnapshotMeta(index, epoch, Configuration((1, 2, 3)))
        elsewhere = self.directory / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        writer = CheckpointWriter(self.disk, elsewhere, meta, CLUSTER)
        for chunk in source.capture().chunks():
            writer.write(chunk)
        return meta, writer.finish().read_bytes()

    def say(
        self,
        leader: zmq.Socket[bytes],
        meta: SnapshotMeta,
        data: bytes,
        part: slice,
        *,
        sender: int = 2,
        incarnation: int = 1,
    ) -> None:
        envelope = Envelope(wire.PROTOCOL, CLUSTER, sender, incarnation, 1, 1, 1)
        piece = Piece(3, meta, len(data), part.start or 0)
        leader.send_multipart((wire.encode(envelope), wire.encode(piece), data[part]))
        assert self.receiver.socket.poll(WATCHDOG_S * 1000)
        self.receiver.receive(8)

    def finish(self) -> Installed | None:
        assert self.finished.wait(WATCHDOG_S)
        self.finished.clear()
        return self.receiver.installed()

    def close(self) -> None:
        self.receiver.close()
        for socket in self.sockets:
            socket.close()
        self.context.term()


@pytest.fixture
def bench() -> Iterator[Bench]:
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    bench = Bench(directory)
    yield bench
    bench.close()
    shutil.rmtree(directory)


def answer(leader: zmq.Socket[bytes]) -> tuple[int, int]:
    """(verdict, next offset)."""
    decoded = Answer(*wire.decode(leader.recv()))
    return decoded.verdict, decoded.next_offset


def value_of(installed: Installed | None) -> bytes:
    assert installed is not None
    (value,) = wire.decode(installed.machine.query([[wire.OP_GET, "k"]]))
    assert isinstance(value, bytes)
    return value


def test_pieces_that_arrive_in_order_become_the_checkpoint(bench: Bench) -> None:
    leader = bench.leader()
    meta, data = bench.checkpoint(b"one")
    bench.say(leader, meta, data, slice(0, 50))
    assert answer(leader) == (MORE, 50)
    bench.say(leader, meta, data, slice(50, None))
    installed = bench.finish()
    assert value_of(installed) == b"one"
    assert answer(leader)[0] == DONE
    assert [info.path.read_bytes() for info in list_checkpoints(bench.disk, bench.checkpoints)] == [data]


def test_a_new_leaders_transfer_takes_over_and_the_old_ones_pieces_are_refused(bench: Bench) -> None:
    """Two checkpoints of the same index and size, as two leaders would send them."""
    old, new = bench.leader(), bench.leader()
    meta, data = bench.checkpoint(b"one")
    other_meta, other = bench.checkpoint(b"two", epoch=3)
    assert len(data) == len(other)
    bench.say(old, meta, data, slice(0, 50))
    assert answer(old) == (MORE, 50)
    bench.say(new, other_meta, other, slice(0, 50), sender=3)
    assert answer(new) == (MORE, 50)
    bench.say(old, meta, data, slice(50, None))
    assert answer(old)[0] == REFUSED
    bench.say(new, other_meta, other, slice(50, None), sender=3)
    installed = bench.finish()
    assert value_of(installed) == b"two"
    assert installed is not None and (installed.sender, installed.message.meta) == (3, other_meta)


@pytest.mark.parametrize("what", ["incarnation", "sender", "meta", "offset", "size"])
def test_a_piece_that_does_not_continue_the_transfer_is_refused(bench: Bench, what: str) -> None:
    leader = bench.leader()
    meta, data = bench.checkpoint(b"one")
    other_meta, _ = bench.checkpoint(b"two", epoch=3)
    bench.say(leader, meta, data, slice(0, 50))
    assert answer(leader) == (MORE, 50)
    if what == "incarnation":
        bench.say(leader, meta, data, slice(50, 80), incarnation=2)
    elif what == "sender":
        bench.say(leader, meta, data, slice(50, 80), sender=3)
    elif what == "meta":
        bench.say(leader, other_meta, data, slice(50, 80))
    elif what == "offset":
        bench.say(leader, meta, data, slice(51, 80))
    else:
        bench.say(leader, meta, data + b"x", slice(50, 80))
    assert answer(leader)[0] == REFUSED
    bench.say(leader, meta, data, slice(50, None))
    assert value_of(bench.finish()) == b"one", "the transfer itself was disturbed"


def test_a_damaged_transfer_is_refused_and_leaves_nothing(bench: Bench) -> None:
    leader = bench.leader()
    meta, data = bench.checkpoint(b"one")
    broken = data[:-30] + bytes([data[-30] ^ 1]) + data[-29:]
    bench.say(leader, meta, broken, slice(0, None))
    assert bench.finish() is None
    assert answer(leader)[0] == REFUSED
    assert list(bench.checkpoints.iterdir()) == []


def test_a_failure_to_restore_is_answered_and_the_next_transfer_is_taken(bench: Bench) -> None:
    class Broken(ClusterMachine):
        def restore(self, chunks: Iterator[bytes]) -> None:
            raise MemoryError

    leader = bench.leader()
    meta, data = bench.checkpoint(b"one")
    bench.made = Broken(64, 1024, 16)
    bench.say(leader, meta, data, slice(0, None))
    assert bench.finish() is None
    assert answer(leader)[0] == REFUSED
    bench.made = machine()
    bench.say(leader, meta, data, slice(0, None))
    assert value_of(bench.finish()) == b"one"


def test_pieces_for_somebody_else_are_dropped(bench: Bench) -> None:
    leader = bench.leader()
    meta, data = bench.checkpoint(b"one")
    piece = wire.encode(Piece(3, meta, len(data), 0))
    for cluster, receiver in (("c-2", 1), (CLUSTER, 3)):
        leader.send_multipart((wire.encode(Envelope(wire.PROTOCOL, cluster, 2, 1, receiver, 1, 1)), piece, data))
    leader.send_multipart((b"garbage", piece, data))
    while bench.receiver.dropped < 3:
        assert bench.receiver.socket.poll(WATCHDOG_S * 1000)
        bench.receiver.receive(8)
    assert list(bench.checkpoints.iterdir()) == []
