"""Links between replicas and the client socket: what does not belong is dropped and counted, nothing ever blocks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import zmq

from zcluster import wire
from zcluster.config import ipc_endpoint
from zcluster.errors import PathTooLong
from zcluster.transport.clients import ClientSocket
from zcluster.transport.liveness import ProcessWatch, start_ticks
from zcluster.transport.peers import Envelope, PeerLinks
from zcluster.transport.sockets import make_socket
from zcluster.transport.wakeup import Wakeup

WATCHDOG_MS = 10_000


def envelope(sender: int, receiver: int = 0, cluster: str = "c1", protocol: int = wire.PROTOCOL) -> Envelope:
    return Envelope(protocol, cluster, sender, 1, receiver, os.getpid(), start_ticks(os.getpid()) or 0)


def links(context: zmq.Context[zmq.Socket[bytes]], directory: Path, me: int) -> PeerLinks[int]:
    return PeerLinks(
        context,
        bind=f"ipc://{directory}/p{me}",
        me=envelope(me),
        decode=msgspec.msgpack.Decoder(int).decode,
    )


def send_when_connected(link: PeerLinks[int], replica: int, body: bytes) -> None:
    poller = zmq.Poller()
    socket = link._outbound[replica][0]
    poller.register(socket, zmq.POLLOUT)
    assert poller.poll(WATCHDOG_MS)
    assert link.send(replica, body)


def test_messages_arrive_with_their_sender(context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path) -> None:
    a, b = links(context, tmp_path, 1), links(context, tmp_path, 2)
    a.connect({2: f"ipc://{tmp_path}/p2"})
    send_when_connected(a, 2, wire.encode(42))
    assert b.inbound.poll(WATCHDOG_MS)
    [(who, message)] = b.receive(10)
    assert (who.sender, who.incarnation, who.receiver, message) == (1, 1, 2, 42)


def test_sending_to_nobody_drops_at_once(context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path) -> None:
    a = links(context, tmp_path, 1)
    a.connect({2: f"ipc://{tmp_path}/nobody"})
    assert not a.send(2, b"x")
    assert not a.send(3, b"x")
    assert a.unsent == 1


@pytest.mark.parametrize(
    "parts",
    [
        [b"garbage"],
        [b"garbage", b"more"],
        [b"", b"", b""],
        [wire.encode(envelope(1, receiver=9)), wire.encode(1)],
        [wire.encode(envelope(1, receiver=2, cluster="other")), wire.encode(1)],
        [wire.encode(envelope(1, receiver=2, protocol=99)), wire.encode(1)],
        [wire.encode(envelope(2, receiver=2)), wire.encode(1)],
        [wire.encode(envelope(1, receiver=2)), b"\xc1 not a message"],
        [b"x" * 100_000, b"y"],
    ],
)
def test_what_does_not_belong_is_dropped_and_counted(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path, parts: list[bytes]
) -> None:
    b = links(context, tmp_path, 2)
    stranger = make_socket(context, zmq.PUSH, connect=f"ipc://{tmp_path}/p2")
    for message in (parts, parts, [wire.encode(envelope(1, receiver=2)), wire.encode(7)]):
        assert stranger.poll(WATCHDOG_MS, zmq.POLLOUT)
        stranger.send_multipart(message)
    received: list[int] = []
    while not received:
        assert b.inbound.poll(WATCHDOG_MS)
        received += [message for _, message in b.receive(10)]
    assert received == [7]
    assert b.dropped == 2


def test_client_socket_answers_and_forgets_the_gone(context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path) -> None:
    server = ClientSocket(context, bind=f"ipc://{tmp_path}/c")
    client = make_socket(context, zmq.DEALER, connect=f"ipc://{tmp_path}/c")
    for parts in ([b"bad"], [b"123456789", b"a", b"b"], [b"short", b"body"], [wire.pack_head(wire.READ, 5), b"body"]):
        assert client.poll(WATCHDOG_MS, zmq.POLLOUT)
        client.send_multipart(parts)
    requests = []
    while not requests:
        assert server.socket.poll(WATCHDOG_MS)
        requests += server.receive(10)
    [(identity, kind, request, body)] = requests
    assert (kind, request, body, server.dropped) == (wire.READ, 5, b"body", 3)
    server.announce(wire.pack_head(wire.LEADER, 0), b"news")
    assert client.poll(WATCHDOG_MS)
    assert client.recv_multipart() == [wire.pack_head(wire.LEADER, 0), b"news"]
    monitor = server.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    client.close()
    assert monitor.poll(WATCHDOG_MS)
    give_up = time.monotonic() + WATCHDOG_MS / 1000
    while identity in server.known:  # the router notices when it next looks at its connections
        server.send(identity, wire.pack_head(wire.RESULT, 5), b"late")
        assert time.monotonic() < give_up
    assert server.unsent == 1
    server.socket.disable_monitor()
    monitor.close()


def test_a_path_too_long_for_ipc_is_refused_with_its_length() -> None:
    with pytest.raises(PathTooLong, match="allows 107"):
        ipc_endpoint("/tmp/" + "x" * 110, "n1.peer")


def test_death_is_believed_on_proof_only() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ticks = start_ticks(child.pid)
    assert ticks is not None
    watch = ProcessWatch(child.pid, ticks)
    stranger = ProcessWatch(child.pid, ticks - 1)  # the pid was given to somebody else meanwhile
    assert not watch.check()
    assert stranger.check()
    child.kill()
    child.wait()
    assert watch.check()
    assert ProcessWatch(child.pid, ticks).check()
    watch.close()
    stranger.close()
    assert child.stdin is not None
    child.stdin.close()


def test_wakeup_may_be_set_often_and_is_cleared_once() -> None:
    wakeup = Wakeup()
    for _ in range(3):
        wakeup.set()
    wakeup.wait()
    wakeup.clear()
    wakeup.close()
    wakeup.set()  # after the end: nobody to wake, no error
