"""A cluster in one thread: ROUTER sockets as nodes offer them, over one machine that applies at once."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable

import zmq

from zcluster import wire
from zcluster.config import CLIENT, ClusterSpec, NodeSpec, make_settings
from zcluster.machines.mux import ClusterMachine
from zcluster.transport.sockets import make_socket


class FakeCluster:
    """Nodes 1..count; node `leader` serves writes. `filter(kind, replica)` may return False to swallow a request, or
    bytes to answer with that head kind and body. The machine and `leader` are only touched by the thread, or with
    `lock` held."""

    def __init__(self, count: int = 1) -> None:
        self.directory = tempfile.mkdtemp(prefix="zc")
        self.spec = ClusterSpec(
            format=1,
            name="fake",
            cluster_id="fake",
            settings=make_settings(nodes=count, value_bytes_max=1 << 20),
            nodes=tuple(NodeSpec(name=f"n{i}", replica_id=i) for i in range(1, count + 1)),
            socket_directory=self.directory,
            directory=self.directory,
        )
        self.machine = ClusterMachine(4096, 1 << 20, 100)
        self.leader, self.term = 1, 1
        self.index = 0
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.counts: Counter[int] = Counter()
        self.frame_sizes: list[int] = []
        self.filter: Callable[[int, int], bool] = lambda kind, replica: True
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.routers = {
            n.replica_id: make_socket(self.context, zmq.ROUTER, bind=self.spec.endpoint(n.name, CLIENT))
            for n in self.spec.nodes
        }
        self.known: dict[int, dict[bytes, None]] = {replica: {} for replica in self.routers}
        bell = f"inproc://bell-{id(self)}"
        self.bell_in = make_socket(self.context, zmq.PAIR, bind=bell)
        self.bell_out = make_socket(self.context, zmq.PAIR, connect=bell)
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def __enter__(self) -> FakeCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.bell_out.send(b"stop")
        self.thread.join()
        for socket in (*self.routers.values(), self.bell_in, self.bell_out):
            socket.close(0)
        self.context.term()
        shutil.rmtree(self.directory)

    def lead(self, replica: int) -> None:
        """Another node leads from now on, and says so."""
        with self.lock:
            self.leader, self.term = replica, self.term + 1
        self.bell_out.send(b"announce")

    def wait_for(self, predicate: Callable[[], bool]) -> None:
        """Until something about the counts is true."""
        with self.changed:
            assert self.changed.wait_for(predicate, 10)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self.bell_in, zmq.POLLIN)
        for socket in self.routers.values():
            poller.register(socket, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self.bell_in in ready:
                if self.bell_in.recv() == b"stop":
                    return
                self._announce()
            for replica, socket in self.routers.items():
                if socket in ready:
                    self._take(replica, socket)

    def _announce(self) -> None:
        for replica, socket in self.routers.items():
            for client in self.known[replica]:
                self._reply(socket, client, wire.LEADER, 0, wire.encode([self.leader, self.term]))

    def _take(self, replica: int, socket: zmq.Socket[bytes]) -> None:
        client, head, *bodies = socket.recv_multipart()
        self.known[replica][client] = None
        if not bodies:
            return  # a probe: the client has just connected
        (body,) = bodies
        kind, request = wire.HEAD.unpack(head)
        with self.changed:
            self.counts[kind] += 1
            self.changed.notify_all()
            if not self.filter(kind, replica):
                return
            if kind == wire.HELLO:
                answer = wire.LEADER, wire.encode([self.leader, self.term])
            elif kind == wire.READ and wire.decode(body)[0] >= wire.BOUNDED:
                answer = wire.RESULT, self.machine.query(wire.decode(body)[2])
            elif replica != self.leader:
                answer = wire.NOT_LEADER, wire.encode([self.leader, self.term])
            elif kind == wire.READ:
                answer = wire.RESULT, self.machine.query(wire.decode(body)[2])
            else:
                self.index += 1
                self.frame_sizes.append(len(wire.decode(body)[3]))
                answer = wire.RESULT, self.machine.apply(self.index, self.index, [body])[0]
        self._reply(socket, client, answer[0], request, answer[1])

    def _reply(self, socket: zmq.Socket[bytes], client: bytes, kind: int, request: int, body: bytes) -> None:
        try:
            socket.send_multipart((client, wire.pack_head(kind, request), body), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            assert error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN)
