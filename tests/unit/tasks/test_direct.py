"""The short cut from worker to client: it is quick where it works, and missed by nobody where it does not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from tests.unit.tasks.processes import TIMEOUT_S, Processes
from zcluster.config import ClusterSpec, NodeSpec, make_settings
from zcluster.tasks import direct
from zcluster.tasks.direct import CLIENTS_MAX, RETRY_NS, Answers, answers_endpoint, remove_endpoint
from zcluster.tasks.pool import TaskPool

CLIENT = 77


@pytest.fixture
def spec(tmp_path: Path, short_directory: str) -> ClusterSpec:
    return _spec(tmp_path, short_directory + "/a")


def _spec(path: Path, sockets: str, transport: str = "ipc") -> ClusterSpec:
    settings = make_settings(nodes=1, workers=1, transport=transport)
    return ClusterSpec(
        format=1,
        name="t",
        cluster_id="c1",
        settings=settings,
        nodes=(NodeSpec("n1", 1),),
        socket_directory=sockets,
        directory=str(path),
    )


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as one:
        yield one


@pytest.fixture
def answers(spec: ClusterSpec, context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[Answers]:
    one = Answers(spec, context)
    yield one
    one.close()


def listen(spec: ClusterSpec, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    endpoint = answers_endpoint(spec, CLIENT)
    assert endpoint is not None
    socket = context.socket(zmq.PULL)
    socket.linger = 0
    socket.rcvtimeo = int(TIMEOUT_S * 1000)
    socket.bind(endpoint)
    return socket


def send_until_connected(answers: Answers, message: bytes, now: int = 0) -> None:
    until = time.monotonic() + TIMEOUT_S
    while not answers.send(CLIENT, message, now):
        assert time.monotonic() < until
        time.sleep(0.001)


def test_an_answer_arrives_once_the_connection_is_made(
    spec: ClusterSpec, context: zmq.Context[zmq.Socket[bytes]], answers: Answers
) -> None:
    with listen(spec, context) as client:
        assert not answers.send(CLIENT, b"lost", 0)  # the first one only connects
        send_until_connected(answers, b"answer")
        assert client.recv() == b"answer"


def test_a_client_that_is_not_there_is_tried_again_after_a_while_and_not_before(
    spec: ClusterSpec,
    context: zmq.Context[zmq.Socket[bytes]],
    answers: Answers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []
    real = direct.make_socket
    monkeypatch.setattr(direct, "make_socket", lambda *a, **k: made.append(1) or real(*a, **k))
    assert not answers.send(CLIENT, b"lost", 0)
    assert not answers.send(CLIENT, b"lost", RETRY_NS)
    assert len(made) == 1
    with listen(spec, context) as client:
        assert not answers.send(CLIENT, b"lost", RETRY_NS + 1)
        assert len(made) == 2
        send_until_connected(answers, b"answer", RETRY_NS + 1)
        assert client.recv() == b"answer"


def test_connections_are_bounded(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    real = zmq.Socket.close
    monkeypatch.setattr(zmq.Socket, "close", lambda self, *a: (closed.append(1), real(self, *a))[1])
    for client in range(CLIENTS_MAX + 3):
        assert not answers.send(client, b"lost", 0)
    assert len(closed) == 3


def test_tcp_has_no_short_cut(tmp_path: Path) -> None:
    assert answers_endpoint(_spec(tmp_path, "/s", "tcp"), CLIENT) is None
    assert answers_endpoint(_spec(tmp_path, "/" + "s" * 200), CLIENT) is None


def test_what_a_killed_client_leaves_is_removed(spec: ClusterSpec) -> None:
    path = Path(spec.socket_directory) / f"client-{CLIENT:x}"
    path.touch()
    remove_endpoint(spec, CLIENT)
    assert not path.exists()
    remove_endpoint(spec, CLIENT)  # nothing to remove is fine


def touch_and_wait(started: str, release: str) -> int:
    Path(started).touch()
    until = time.monotonic() + TIMEOUT_S
    while not Path(release).exists():
        assert time.monotonic() < until
        time.sleep(0.002)
    return os.getpid()


def test_an_answer_needs_no_router_and_the_router_learns_of_it(tmp_path: Path, short_directory: str) -> None:
    with Processes(tmp_path / "c", short_directory + "/b", workers=1) as processes, TaskPool(processes.spec) as pool:
        worker = processes.workers["n1.w1"]
        answered = pool.submit(touch_and_wait, str(tmp_path / "1"), str(tmp_path)).result(TIMEOUT_S)
        assert answered == worker.pid  # the worker is connecting to us now
        for attempt in range(100):  # connecting takes a moment: then the answer waits for the router
            started, release = tmp_path / f"started{attempt}", tmp_path / f"release{attempt}"
            future = pool.submit(touch_and_wait, str(started), str(release))
            until = time.monotonic() + TIMEOUT_S
            while not started.exists():
                assert time.monotonic() < until
                time.sleep(0.002)
            assert processes.router is not None
            processes.router.send_signal(signal.SIGSTOP)
            try:
                release.touch()
                assert future.result(0.2) == worker.pid
                break
            except TimeoutError:
                pass
            finally:
                processes.router.send_signal(signal.SIGCONT)
            assert future.result(TIMEOUT_S) == worker.pid
        else:
            pytest.fail("no answer came directly")
        done = processes.wait_status(lambda s: s["running"] == 0)["done_total"]
        assert done == attempt + 2
        assert pool.submit(abs, -3).result(TIMEOUT_S) == 3
    assert not list(Path(short_directory, "b").glob("client-*"))  # the pool has cleaned up behind itself
