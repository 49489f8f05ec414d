"""Nonsense at the sockets of router, replica and checkpoint receiver: dropped and counted, and service goes on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.mutations import effort, messages, numbers
from tests.unit.storage.faulty_disk import FaultyDisk
from tests.unit.storage.stores import CHECKPOINTS, meta
from zcluster import wire
from zcluster.config import CLIENT, WORKER, ClusterSpec, NodeSpec, make_settings
from zcluster.machines.mux import ClusterMachine
from zcluster.node.install import SnapshotReceiver
from zcluster.node.transfer import Piece
from zcluster.storage.checkpoint import CheckpointFile, CheckpointWriter
from zcluster.tasks import protocol as p
from zcluster.tasks.router import Router
from zcluster.transport.clients import ClientSocket
from zcluster.transport.liveness import start_ticks
from zcluster.transport.peers import Envelope
from zcluster.transport.sockets import make_socket

WATCHDOG_MS = 10_000
PID, TICKS = os.getpid(), start_ticks(os.getpid()) or 0
FUNCTION = (b"f" * 16, b"pickled", ["/x"], "/x", True)
FROM_CLIENTS = [
    p.pack(p.HELLO, (p.PROTOCOL, "c1", 7, p.PYTHON, PID, TICKS)),
    p.pack(p.SUBMIT, ([FUNCTION], [b"g" * 16], [(1, FUNCTION[0], b"args", 0, 0), (2, b"g" * 16, b"", 2, 1)])),
    p.pack(p.CANCEL, [1, 2, 3]),
    p.pack(p.BYE, []),
    wire.pack_head(wire.STATUS, 3),
    b"",
]
FROM_WORKERS = [
    p.pack(p.REPORT, (p.PROTOCOL, "c1", "n1-w1", p.PYTHON, PID, TICKS, (7, 1), [(7, 1), (7, 2)])),
    p.pack(p.DONE, (1, [(7, 1, 0, b"result", 1000, 0), (7, 2, 1, b"", 5, 1)], [(7, 2, True)])),
    p.pack(p.PONG, []),
    p.pack(p.LEAVE, []),
    b"",
]
small = st.one_of(st.integers(0, 4), numbers)
digests = st.sampled_from([FUNCTION[0], b"g" * 16, b""])
task_ids = st.tuples(st.one_of(st.just(7), small), small)
formed_by_clients = st.one_of(
    st.tuples(st.just(p.PROTOCOL), st.just("c1"), st.integers(5, 8), st.just(p.PYTHON), st.just(PID), small).map(
        lambda body: p.pack(p.HELLO, body)
    ),
    st.tuples(
        st.lists(st.just(FUNCTION), max_size=1),
        st.lists(digests, max_size=2),
        st.lists(st.tuples(small, digests, st.binary(max_size=3), small, st.integers(0, 2)), max_size=4),
    ).map(lambda body: p.pack(p.SUBMIT, body)),
    st.lists(small, max_size=4).map(lambda body: p.pack(p.CANCEL, body)),
)
formed_by_workers = st.one_of(
    st.tuples(
        st.sampled_from(["n1-w1", "n1-w2", "../x", "a\0b"]), st.none() | task_ids, st.lists(task_ids, max_size=3)
    ).map(lambda body: p.pack(p.REPORT, (p.PROTOCOL, "c1", body[0], p.PYTHON, PID, TICKS, *body[1:]))),
    st.tuples(
        small,
        st.lists(
            st.tuples(task_ids, st.integers(-1, 4), st.binary(max_size=3), numbers, st.integers(0, 2)).map(
                lambda result: (*result[0], *result[1:])
            ),
            max_size=3,
        ),
        st.lists(st.tuples(task_ids, st.booleans()).map(lambda recalled: (*recalled[0], recalled[1])), max_size=3),
    ).map(lambda body: p.pack(p.DONE, body)),
)
"""Well-formed, with numbers that nobody has given out."""
parts = st.lists(st.binary(max_size=5), max_size=3)


class Wire:
    """A router and one socket on each of its two sides."""

    def __init__(self, directory: Path) -> None:
        (directory / "run").mkdir()
        spec = ClusterSpec(
            format=1,
            name="t",
            cluster_id="c1",
            settings=make_settings(nodes=1, workers=1),
            nodes=(NodeSpec("n1", 1),),
            socket_directory=str(directory),
            directory=str(directory),
        )
        self.router = Router(spec)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.client, self.worker = (
            make_socket(self.context, zmq.DEALER, connect=spec.endpoint("router", role)) for role in (CLIENT, WORKER)
        )

    def say(self, socket: zmq.Socket[bytes], *messages: list[bytes], last: bytes) -> bytes:
        """Send, then `last`, and let the router run until the answer to that has come."""
        assert socket.poll(WATCHDOG_MS, zmq.POLLOUT)
        for message in [*messages, [last]]:
            socket.send_multipart(message)
        side = self.router._clients if socket is self.client else self.router._workers
        poller = zmq.Poller()
        poller.register(side._socket, zmq.POLLIN)
        poller.register(socket, zmq.POLLIN)
        while True:
            assert poller.poll(WATCHDOG_MS)
            self.router._clients.unread = self.router._workers.unread = True
            self.router.turn()
            while socket.poll(0):
                answer = socket.recv_multipart()[0]
                if last and answer[:9] == wire.pack_head(wire.RESULT, 99):
                    return answer
                if not last and answer[:1] == bytes([p.WHO]):
                    return answer

    def close(self) -> None:
        self.client.close()
        self.worker.close()
        self.context.term()
        self.router.close()


@pytest.fixture(scope="module")
def bench() -> Iterator[Wire]:
    with tempfile.TemporaryDirectory(prefix="zcf-") as directory:
        bench = Wire(Path(directory))
        yield bench
        bench.close()


clients_say = st.tuples(st.just("client"), st.one_of(formed_by_clients, messages(FROM_CLIENTS)), parts)
workers_say = st.tuples(st.just("worker"), st.one_of(formed_by_workers, messages(FROM_WORKERS)), parts)


@given(st.lists(st.one_of(clients_say, workers_say), max_size=12))
@effort(200)
def test_the_router_serves_on_whatever_it_hears(bench: Wire, story: list[tuple[str, bytes, list[bytes]]]) -> None:
    for side, first, rest in story:
        if side == "client":
            bench.say(bench.client, [first, *rest], last=wire.pack_head(wire.STATUS, 99))
        else:
            bench.say(bench.worker, [first, *rest], last=b"")
    bench.say(bench.client, last=wire.pack_head(wire.STATUS, 99))


@given(st.lists(st.lists(st.one_of(st.binary(max_size=12), st.just(b"")), min_size=1, max_size=4), max_size=6))
@effort(50)
def test_the_client_socket_drops_what_is_no_request(story: list[list[bytes]]) -> None:
    with tempfile.TemporaryDirectory(prefix="zcf-") as directory:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        server = ClientSocket(context, bind=f"ipc://{directory}/c")
        client = make_socket(context, zmq.DEALER, connect=f"ipc://{directory}/c")
        try:
            assert client.poll(WATCHDOG_MS, zmq.POLLOUT)
            for message in story:
                client.send_multipart(message)
            client.send_multipart([wire.pack_head(wire.READ, 99), b"last"])
            got: list[tuple[Any, ...]] = []
            while not got or got[-1][2:] != (99, b"last"):
                assert server.socket.poll(WATCHDOG_MS)
                got += server.receive(100)
            fitting = [m for m in story if len(m) == 2 and len(m[0]) == wire.HEAD_BYTES]
            assert len(got) == len(fitting) + 1
        finally:
            client.close()
            server.close()
            context.term()


# -- chunks of a checkpoint -------------------------------------------------------------------------------------------

ME = Envelope(wire.PROTOCOL, "c1", 2, 1, 0, PID, TICKS)


def checkpoint_of(machine: ClusterMachine) -> tuple[FaultyDisk, CheckpointFile]:
    disk = FaultyDisk()
    disk.make_directory(CHECKPOINTS)
    writer = CheckpointWriter(disk, CHECKPOINTS, meta(9), "c1")
    for chunk in machine.capture().chunks():
        writer.write(chunk)
    return disk, CheckpointFile(disk, writer.finish())


steps = st.tuples(
    st.integers(0, 2),  # from whom
    st.one_of(st.just(-1), numbers),  # offset; -1: where the last one ended
    st.integers(0, 400),
    st.sampled_from(["whole", "whole", "damaged", "other size", "other index"]),
)


@given(st.lists(steps, max_size=10))
@effort(100)
def test_chunks_in_any_order_install_the_true_checkpoint_or_nothing(story: list[tuple[int, int, int, str]]) -> None:
    source = ClusterMachine(64, 1024, 10)
    source.kv.apply([[wire.OP_PUT, f"k{number}", b"v" * 9] for number in range(20)])
    _, file = checkpoint_of(source)
    disk = FaultyDisk()
    disk.make_directory(CHECKPOINTS)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with tempfile.TemporaryDirectory(prefix="zcf-") as directory:
        receiver = SnapshotReceiver(
            context,
            disk,
            CHECKPOINTS,
            bind=f"ipc://{directory}/s",
            security=None,
            me=ME,
            new_machine=lambda: ClusterMachine(64, 1024, 10),
            notify=lambda: None,
        )
        try:
            for sender, offset, length, kind in [*story, (0, 0, 400, "whole"), (0, -1, 1 << 20, "whole")]:
                size = file.size - (kind == "other size")
                at = receiver._incoming.offset if offset == -1 else offset
                data = file.read_at(max(at, 0), length)
                if kind == "damaged":
                    data = bytes(byte ^ 1 for byte in data)
                piece = Piece(3, meta(9 + (kind == "other index")), size, at)
                receiver._take(bytes([sender]), Envelope(1, "c1", 1 + sender, 1, 2, PID, TICKS), piece, data)
                if receiver._thread is not None:
                    receiver._thread.join(WATCHDOG_MS / 1000)
                    installed = receiver.installed()
                    assert installed is None or installed.machine.state_hash() == source.state_hash()
                    assert receiver._thread is None, "it is ready for the next"
                    names = [name for name in disk.listdir(CHECKPOINTS) if name.endswith(".ckpt")]
                    assert all(disk.read(CHECKPOINTS / name) == file.read_at(0, file.size) for name in names)
        finally:
            receiver.close()
            context.term()
