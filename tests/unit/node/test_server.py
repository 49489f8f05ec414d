"""The event loop with everything real but the log writer, which the test holds in its hand."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from zcluster import wire
from zcluster.config import CLIENT, ClusterSpec, NodeSpec, make_settings, save_spec
from zcluster.machines.mux import ClusterMachine
from zcluster.node import server as server_module
from zcluster.node.replica import Effects
from zcluster.node.server import Server
from zcluster.node.start import new_replica, open_node_store
from zcluster.storage.disk import PosixDisk
from zcluster.storage.writer import Completion
from zcluster.transport.peers import Envelope
from zcluster.transport.sockets import make_socket
from zcluster.transport.wakeup import Wakeup
from zcluster.types import MS, NEVER, Configuration, Index, SnapshotMeta, WriteBatch

TURNS_MAX = 1000


class HandWriter:
    """A log writer whose disk is instant, and works only in `pump`."""

    def __init__(self) -> None:
        self.queue: list[WriteBatch] = []
        self.completion = Completion()
        self.trims: list[Callable[[], Index]] = []

    def submit(self, batch: WriteBatch) -> None:
        self.queue.append(batch)

    def waiting(self) -> bool:
        return bool(self.queue)

    def busy(self) -> bool:
        return False

    def next_deadline(self) -> int:
        return NEVER

    def pump(self) -> None:
        while self.queue:
            self.completion = Completion(seq=self.queue.pop(0).seq)

    def completed(self) -> Completion:
        return self.completion

    def trim(self, clear: Callable[[], Index]) -> None:
        self.trims.append(clear)

    def close(self, clean: bool) -> None:
        pass


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short enough for socket paths."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def writer() -> HandWriter:
    return HandWriter()


@pytest.fixture
def server(directory: Path, writer: HandWriter) -> Iterator[Server]:
    """The only node of a new cluster."""
    spec = ClusterSpec(
        format=1,
        name="c",
        cluster_id="c-1",
        settings=make_settings(nodes=1),
        nodes=(NodeSpec("n1", 1),),
        socket_directory=str(directory),
        directory=str(directory),
    )
    disk = PosixDisk()
    store = open_node_store(disk, spec, "n1", create=True, boot_id="boot-1")
    machine = ClusterMachine(64, 1024, 16)
    made = Server(
        spec,
        "n1",
        disk=disk,
        store=store,
        writer=writer,  # type: ignore[arg-type]
        wakeup=Wakeup(),
        me=Envelope(wire.PROTOCOL, "c-1", 1, 1, 0, 1, 1),
        make_replica=lambda verify, now: new_replica(spec, store, machine, 1, verify, now),
        new_machine=lambda: ClusterMachine(64, 1024, 16),
    )
    yield made
    made._close()
    store.wal.close()


def run_until(server: Server, condition: Callable[[], bool]) -> None:
    for _ in range(TURNS_MAX):
        if condition():
            return
        server._turn()
        server._pump_log()
    raise AssertionError("that never happens")


def test_the_loop_never_sleeps_on_a_write_that_nobody_has_begun(server: Server, writer: HandWriter) -> None:
    """What follows from a write may be another write: here the no-op of a leader whose own vote was the last needed."""
    poll = server._poller.poll
    slept_on: list[int] = []

    def watched(timeout_ms: int) -> Any:
        if timeout_ms and writer.queue:
            slept_on.append(timeout_ms)
            timeout_ms = 0
        return poll(timeout_ms)

    server._poller.poll = watched  # type: ignore[method-assign]
    run_until(server, lambda: server.replica.core.commit_index == 1)
    assert not slept_on


def test_the_clock_is_read_after_the_last_message_of_the_batch(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may be stopped between two messages; a lease must be judged by the time after that."""
    run_until(server, lambda: server.replica.core.commit_index == 1)
    clock = [server_module.monotonic()]
    judged: list[int] = []
    receive, feed = server._clients.receive, server._feed

    def receive_and_stop(limit: int) -> Any:
        requests = receive(limit)
        clock[0] += 3_600_000 * MS
        return requests

    def watched(now: int, peer_messages: Any, requests: Any) -> None:
        if requests:
            judged.append(now)
        feed(now, peer_messages, requests)

    monkeypatch.setattr(server_module, "monotonic", lambda: clock[0])
    monkeypatch.setattr(server._clients, "receive", receive_and_stop)
    monkeypatch.setattr(server, "_feed", watched)
    before = clock[0]
    client = make_socket(server._context, zmq.DEALER, connect=server._spec.endpoint("n1", CLIENT))
    client.setsockopt(zmq.SNDTIMEO, 20_000)
    client.send_multipart((wire.pack_head(wire.READ, 1), wire.encode((wire.LEASE, 0, [(wire.OP_GET, "k")]))))
    run_until(server, lambda: bool(judged))
    client.close()
    assert judged[0] >= before + 3_600_000 * MS


def test_old_checkpoints_go_in_the_writers_helper_not_in_the_loop(
    server: Server, writer: HandWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory's sync may take as long as a stalled disk likes."""
    run_until(server, lambda: server.replica.core.commit_index == 1)

    def stalled(directory: Path) -> None:
        raise AssertionError("the loop would wait here")

    monkeypatch.setattr(server._disk, "fsync_directory", stalled)
    monkeypatch.setattr(server, "_prune", lambda: 1)
    out = Effects()
    out.compacted = SnapshotMeta(1, 1, Configuration((1,)))
    server._carry_out(out)
    assert [clear() for clear in writer.trims] == [1]


def test_the_address_of_a_new_member_is_read_from_the_description_before_anything_is_sent(server: Server) -> None:
    run_until(server, lambda: server.replica.core.commit_index == 1)
    out = Effects()
    out.configuration = Configuration((1,), (2,))
    server._carry_out(out)  # there is no description (yet): it goes on, and looks again
    assert set(server._peers._outbound) == set()
    assert server._strangers_at < NEVER
    save_spec(msgspec.structs.replace(server._spec, nodes=(NodeSpec("n1", 1), NodeSpec("n2", 2))))
    server._carry_out(out)
    assert set(server._peers._outbound) == {2}
    assert server._strangers_at == NEVER


def test_a_preferred_leader_is_known_by_its_new_replica_id_once_the_description_is_read(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until(server, lambda: server.replica.core.commit_index == 1)
    assert server.replica.core.is_leader
    assert server._spec.preferred_replica() == 0
    settings = make_settings(preferred_leader="n2")
    nodes = (NodeSpec("n1", 1), NodeSpec("n2", 7))
    save_spec(msgspec.structs.replace(server._spec, settings=settings, nodes=nodes))
    preferred: list[int] = []
    monkeypatch.setattr(server.replica, "prefer", preferred.append)
    out = Effects()
    out.configuration = Configuration((1,), (7,))
    server._carry_out(out)
    assert preferred == [7]


def test_a_description_that_does_not_have_this_replica_is_not_taken_over(server: Server) -> None:
    """It was removed, and has not been told yet."""
    save_spec(msgspec.structs.replace(server._spec, nodes=(NodeSpec("n1", 5), NodeSpec("n2", 2))))
    out = Effects()
    out.configuration = Configuration((1, 2))
    server._carry_out(out)
    assert server._spec.replica_id("n1") == 1
