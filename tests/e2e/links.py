"""A proxy between the replicas of a real cluster: loses, delays, duplicates, reorders, and cuts one way.

    replica n1  PUSH --> n1-n2.peer [PULL  proxy  PUSH] --> n2.peer  PULL  replica n2

Every direction between two nodes is a link of its own, with a generator of its own drawn from the seed. Checkpoints
travel over connections (DEALER to ROUTER), so their links can only be cut. Death certificates go past all this: they
are the kernel's word.

`Links` is the handle for tests; it runs this file as a process of its own, told what to do by lines of JSON on its
standard input, each answered by a line with what has been done so far. It ends when its input does. Replicas are led
here by `linked_node.py`, which is all that they know of it.
"""

from __future__ import annotations

import heapq
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgspec
import zmq

from zcluster.config import PEER, SNAPSHOT, ipc_endpoint, socket_directory
from zcluster.transport.sockets import make_socket, receive_parts, send_parts

MS: Final = 1_000_000
MESSAGES_A_TURN: Final = 256

Pair = tuple[str, str]


class Weather(msgspec.Struct, frozen=True, kw_only=True):
    """How all links are. Shares from 0 to 1, times in ms, ranges as (shortest, longest).

    loss: share of lost messages. duplication: share sent twice. delay: of every message. slow: the share of messages
    that take `slow_delay` instead. Delays that differ reorder. cut: directions in which nothing arrives.
    """

    loss: float = 0.0
    duplication: float = 0.0
    delay: tuple[float, float] = (0.0, 0.0)
    slow: float = 0.0
    slow_delay: tuple[float, float] = (0.0, 0.0)
    cut: tuple[Pair, ...] = ()


# -- the handle -------------------------------------------------------------------------------------------------------
class Links:
    """The proxy process for the cluster that is to be made in `directory`; start it before the cluster."""

    def __init__(self, directory: Path, nodes: int, seed: int) -> None:
        self.nodes = [f"n{number + 1}" for number in range(nodes)]
        command = [sys.executable, str(Path(__file__)), str(directory), str(seed), *self.nodes]
        self.draw = random.Random(f"{seed}/test")
        """For the test's own choices."""
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.weather = Weather()
        self.set()

    def set(self, **weather: Any) -> Counter[str]:
        """From now on it is so; what is not named is well. Returns: what was done up to now, by name."""
        self.weather = msgspec.convert(weather, Weather)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(self.weather).decode() + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the proxy has ended"
        return Counter(json.loads(answer))

    def heal(self) -> Counter[str]:
        return self.set()

    def cut_out(self, node: str) -> None:
        """The others hear the node no more; it hears them."""
        self.set(cut=[(node, other) for other in self._others(node)])

    def cut_in(self, node: str) -> None:
        """The node hears nobody any more; they hear it."""
        self.set(cut=[(other, node) for other in self._others(node)])

    def isolate(self, *nodes: str) -> None:
        """These and the others are out of reach of each other."""
        apart = [other for other in self.nodes if other not in nodes]
        self.set(cut=[pair for a in nodes for b in apart for pair in ((a, b), (b, a))])

    def _others(self, node: str) -> Iterable[str]:
        return (other for other in self.nodes if other != node)

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            assert self._process.wait(10) == 0
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()

    def __enter__(self) -> Links:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# -- the process ------------------------------------------------------------------------------------------------------
class Proxy:
    """All links of a cluster. One thread."""

    def __init__(self, sockets: str, nodes: list[str], seed: str) -> None:
        self.weather = Weather()
        self.counters: Counter[str] = Counter()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._cut: frozenset[Pair] = frozenset()
        self._order = 0
        self._waiting: list[tuple[int, int, Pair, list[bytes]]] = []
        self._poller = zmq.Poller()
        self._poller.register(sys.stdin.fileno(), zmq.POLLIN)
        self._links: dict[zmq.Socket[bytes], Pair] = {}
        self._targets: dict[Pair, zmq.Socket[bytes]] = {}
        self._draws: dict[Pair, random.Random] = {}
        self._checkpoints: dict[zmq.Socket[bytes], Pair] = {}
        self._relays: dict[tuple[Pair, bytes], zmq.Socket[bytes]] = {}
        self._answers: dict[zmq.Socket[bytes], tuple[zmq.Socket[bytes], Pair, bytes]] = {}
        self._sockets = sockets
        for pair in [(a, b) for a in nodes for b in nodes if a != b]:
            near = "-".join(pair)
            inbound = make_socket(self._context, zmq.PULL, bind=ipc_endpoint(sockets, f"{near}.{PEER}"))
            self._targets[pair] = make_socket(
                self._context, zmq.PUSH, connect=ipc_endpoint(sockets, f"{pair[1]}.{PEER}")
            )
            self._draws[pair] = random.Random(f"{seed}/{near}")
            checkpoints = make_socket(self._context, zmq.ROUTER, bind=ipc_endpoint(sockets, f"{near}.{SNAPSHOT}"))
            self._links[inbound] = pair
            self._checkpoints[checkpoints] = pair
            self._poller.register(inbound, zmq.POLLIN)
            self._poller.register(checkpoints, zmq.POLLIN)

    def run(self) -> None:
        """Until the end of the standard input."""
        while True:
            now = time.monotonic_ns()
            left_ms = (self._waiting[0][0] - now) / MS if self._waiting else 10_000
            ready = dict(self._poller.poll(max(0, int(left_ms) + 1) if left_ms > 0 else 0))
            if sys.stdin.fileno() in ready and not self._obey():
                self._context.destroy(linger=0)
                return
            now = time.monotonic_ns()
            for socket in ready:
                if socket in self._links:
                    self._take(socket, self._links[socket], now)
                elif socket in self._checkpoints:
                    self._relay(socket, self._checkpoints[socket])
                elif socket in self._answers:
                    self._relay_answers(socket)
            while self._waiting and self._waiting[0][0] <= now:
                _, _, pair, parts = heapq.heappop(self._waiting)
                self._deliver(pair, parts)

    def _obey(self) -> bool:
        line = sys.stdin.readline()
        if line:
            self.weather = msgspec.json.decode(line, type=Weather)
            self._cut = frozenset(self.weather.cut)
            print(json.dumps(self.counters), flush=True)
        return bool(line)

    # -- messages -----------------------------------------------------------------------------------------------------
    def _take(self, socket: zmq.Socket[bytes], pair: Pair, now: int) -> None:
        weather, draw = self.weather, self._draws[pair].random
        for _ in range(MESSAGES_A_TURN):
            parts = receive_parts(socket)
            if parts is None:
                return
            if pair in self._cut:
                self.counters["cut"] += 1
                continue
            if weather.loss and draw() < weather.loss:
                self.counters["lost"] += 1
                continue
            copies = 1
            if weather.duplication and draw() < weather.duplication:
                self.counters["duplicated"] += 1
                copies = 2
            for _ in range(copies):
                low, high = weather.delay
                if weather.slow and draw() < weather.slow:
                    self.counters["slow"] += 1
                    low, high = weather.slow_delay
                if high:
                    self._order += 1
                    due = now + int((low + draw() * (high - low)) * MS)
                    heapq.heappush(self._waiting, (due, self._order, pair, parts))
                else:
                    self._deliver(pair, parts)

    def _deliver(self, pair: Pair, parts: list[bytes]) -> None:
        if pair in self._cut:
            self.counters["cut"] += 1
            return
        try:
            send_parts(self._targets[pair], parts)
        except zmq.Again:
            self.counters["nobody there"] += 1
        else:
            self.counters["delivered"] += 1

    # -- checkpoints --------------------------------------------------------------------------------------------------
    def _relay(self, socket: zmq.Socket[bytes], pair: Pair) -> None:
        """From the sending replica. Each of its sockets gets one of ours, so that the receiver can tell them apart."""
        while (parts := receive_parts(socket)) is not None:
            if pair in self._cut:
                self.counters["cut"] += 1
                continue
            key = (pair, parts[0])
            if key not in self._relays:
                to = ipc_endpoint(self._sockets, f"{pair[1]}.{SNAPSHOT}")
                relay = make_socket(self._context, zmq.DEALER, connect=to, immediate=False)
                self._relays[key] = relay
                self._answers[relay] = (socket, pair, parts[0])
                self._poller.register(relay, zmq.POLLIN)
            send_parts(self._relays[key], parts[1:])
            self.counters["pieces"] += 1

    def _relay_answers(self, relay: zmq.Socket[bytes]) -> None:
        socket, pair, identity = self._answers[relay]
        while (parts := receive_parts(relay)) is not None:
            if (pair[1], pair[0]) in self._cut:
                self.counters["cut"] += 1
                continue
            try:
                send_parts(socket, [identity, *parts])
            except zmq.ZMQError:  # that transfer is over
                self.counters["nobody there"] += 1


if __name__ == "__main__":
    Proxy(str(socket_directory(Path(sys.argv[1]))), sys.argv[3:], sys.argv[2]).run()
