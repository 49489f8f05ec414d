"""ZeroMQ's traps, each with the test that we do not step into it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

import zcluster
from zcluster import wire
from zcluster.client.kv import KV
from zcluster.config import CLIENT, ClusterSpec, NodeSpec, make_settings
from zcluster.errors import Corrupt, NoQuorum, Timeout
from zcluster.transport.clients import ClientSocket
from zcluster.transport.sockets import Security, make_socket, serve_authentication

PACKAGE = Path(zcluster.__file__).parent
WATCHDOG_MS = 10_000
RESULT = wire.pack_head(wire.RESULT, 1)


def calls_and_imports() -> Iterator[tuple[str, str]]:
    """(file, what) for each attribute that is called or set, and each module that is imported, in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield name, f"{node.func.attr}()"
            elif isinstance(node, ast.Attribute):
                yield name, node.attr
            elif isinstance(node, ast.Import):
                yield from ((name, f"import {alias.name}") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((name, f"import {node.module}.{alias.name}") for alias in node.names)


def test_sockets_are_made_in_one_place_and_never_given_a_name_or_an_asyncio_coat() -> None:
    """One place knows the options. A name of one's own would be refused, or routed wrongly, after a crash; zmq.asyncio
    costs several times a plain socket."""
    found = list(calls_and_imports())
    makers = {name for name, what in found if what == "socket()"}
    assert makers == {"transport/sockets.py", "launch/layout.py"}  # the latter: a plain one, which looks for free ports
    assert [
        name for name, what in found if what in ("IDENTITY", "ROUTING_ID", "routing_id", "setsockopt_string()")
    ] == []
    assert [name for name, what in found if what.startswith("import zmq.asyncio")] == []
    assert [name for name, what in found if what in ("fork()", "forkpty()", "Process()")] == []


@pytest.mark.parametrize("kind", [zmq.ROUTER, zmq.DEALER, zmq.PUSH, zmq.PULL, zmq.PAIR])
def test_no_socket_hangs_at_the_end_or_grows_without_bound(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> None:
    socket = make_socket(context, kind)
    assert socket.linger == 0
    assert (socket.sndhwm, socket.rcvhwm) == (10_000, 10_000)
    assert socket.get(zmq.IMMEDIATE) == 1
    assert socket.get(zmq.MAXMSGSIZE) == 128 << 20
    socket.close()


def connected(
    context: zmq.Context[zmq.Socket[bytes]], server: ClientSocket, endpoint: str, high_water: int = 100
) -> tuple[zmq.Socket[bytes], bytes]:
    """A client that the server has heard of, and its name there."""
    client = make_socket(context, zmq.DEALER, connect=endpoint, high_water=high_water)
    assert client.poll(WATCHDOG_MS, zmq.POLLOUT)
    client.send_multipart([wire.pack_head(wire.READ, 1), b""])
    while True:
        assert server.socket.poll(WATCHDOG_MS)
        for name, *_ in server.receive(10):
            return client, name


def test_a_client_that_does_not_read_is_waited_for_by_nobody(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    endpoint = f"ipc://{tmp_path}/c"
    server = ClientSocket(context, bind=endpoint)
    _, silent = connected(context, server, endpoint, high_water=1)
    eager, name = connected(context, server, endpoint)
    for _ in range(60_000):
        server.send(silent, RESULT, b"x" * 200)
        if server.unsent:
            break
    assert server.unsent == 1, "the queue of one client has no end"
    server.send(name, RESULT, b"for you")
    assert eager.poll(WATCHDOG_MS)
    assert eager.recv_multipart() == [RESULT, b"for you"]
    server.close()


def test_a_client_that_comes_back_is_another_one(context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path) -> None:
    """What is meant for its former life finds nobody, least of all the new one."""
    endpoint = f"ipc://{tmp_path}/c"
    server = ClientSocket(context, bind=endpoint)
    former, old_name = connected(context, server, endpoint)
    former.close()
    now, new_name = connected(context, server, endpoint)
    assert old_name != new_name
    server.send(old_name, RESULT, b"late")
    server.send(new_name, RESULT, b"in time")
    assert now.poll(WATCHDOG_MS)
    assert now.recv_multipart() == [RESULT, b"in time"]
    server.close()


# -- CURVE ------------------------------------------------------------------------------------------------------------


def tcp_spec(directory: Path, port: int) -> ClusterSpec:
    return ClusterSpec(
        format=1,
        name="guarded",
        cluster_id="guarded",
        settings=make_settings(nodes=1, transport="tcp"),
        nodes=(NodeSpec(name="n1", replica_id=1),),
        socket_directory=str(directory),
        directory=str(directory),
        ports={f"n1.{CLIENT}": port},
    )


def write_key(directory: Path, public: bytes, secret: bytes) -> None:
    (directory / "keys").mkdir(exist_ok=True)
    (directory / "keys" / "cluster.key").write_bytes(public + b"\n" + secret + b"\n")


def test_a_client_with_another_key_gets_an_error_in_time_and_is_never_heard(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    ours, theirs = zmq.curve_keypair(), zmq.curve_keypair()
    write_key(tmp_path, *theirs)
    security = Security(*ours)
    authentication = serve_authentication(context, security)
    server = ClientSocket(context, bind="tcp://127.0.0.1:*", security=security)
    endpoint = server.socket.getsockopt_string(zmq.LAST_ENDPOINT)
    kv = KV(tcp_spec(tmp_path, int(endpoint.rpartition(":")[2])))
    with pytest.raises(NoQuorum, match="not applied"):
        kv.put("k", b"v", timeout=0.3)
    with pytest.raises(Timeout, match=r"no majority|in time"):
        kv.get("k", timeout=0.1)
    kv.close()
    assert server.receive(10) == []
    server.close()
    authentication.stop()  # type: ignore[union-attr]


def test_half_of_the_key_is_not_enough(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """Who knows the public key only gets through CURVE's own handshake; the cluster admits nobody but itself."""
    ours, stranger = Security(*zmq.curve_keypair()), Security(*zmq.curve_keypair())
    authentication = serve_authentication(context, ours)
    server = ClientSocket(context, bind="tcp://127.0.0.1:*", security=ours)
    client = context.socket(zmq.DEALER)
    client.linger = 0
    client.curve_publickey, client.curve_secretkey, client.curve_serverkey = (
        stranger.public,
        stranger.secret,
        ours.public,
    )
    monitor = client.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_SUCCEEDED)
    client.connect(server.socket.getsockopt_string(zmq.LAST_ENDPOINT))
    assert monitor.poll(WATCHDOG_MS)
    event = int.from_bytes(monitor.recv_multipart()[0][:2], "little")
    assert event == zmq.EVENT_HANDSHAKE_FAILED_AUTH
    client.disable_monitor()
    monitor.close()
    server.close()
    authentication.stop()  # type: ignore[union-attr]


@pytest.mark.parametrize("content", [b"", b"one-word", b"\xff\xfe broken", b"a b c", b"short keys"])
def test_a_damaged_key_is_named_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    spec = tcp_spec(tmp_path, 1)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "cluster.key").write_bytes(content)
    with pytest.raises(Corrupt, match=r"cluster\.key: damaged .*down --purge"):
        Security.load(spec)


def test_a_lost_key_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match=r"cluster\.key: .*down --purge"):
        Security.load(tcp_spec(tmp_path, 1))


def test_the_key_of_an_ipc_cluster_is_its_private_directory(tmp_path: Path) -> None:
    spec = tcp_spec(tmp_path, 1)
    assert Security.load(msgspec.structs.replace(spec, settings=make_settings(nodes=1))) is None
