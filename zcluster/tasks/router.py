"""`python -m zcluster.tasks.router CLUSTER_DIRECTORY`: stands between clients and workers. One thread, one loop.

    poll once -> receive everything that is there -> dispatcher -> one message a worker and a client

This file moves bytes and collects proof: who is connected, whose process is dead (pidfds), who is stopped. Decisions
are the dispatcher's. Nothing is stored: a router that dies is replaced by one that asks everybody (WHO); workers say
what they run and hold, clients submit again what they wait for.

Malformed messages are dropped and counted. Messages that a client cannot take now are kept, and sent when it reads.
"""

from __future__ import annotations

import gc
import os
import random
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import repeat
from pathlib import Path
from types import FrameType
from typing import Any, Final, cast

import zmq
from zmq.backend import Socket as RawSocket

from zcluster import wire
from zcluster.config import CLIENT, WORKER, ClusterSpec, load_spec
from zcluster.tasks import protocol as p
from zcluster.tasks.direct import remove_endpoint
from zcluster.tasks.dispatcher import Dispatcher
from zcluster.tasks.peers import ClientPeer, Message, WorkerPeer
from zcluster.tasks.policy import make_policy
from zcluster.tasks.records import Segments, ToClient, ToWorker
from zcluster.tasks.word import SUFFIX, WordReader, word_path
from zcluster.transport.liveness import ProcessWatch, exit_with_owner
from zcluster.transport.patience import Patience
from zcluster.transport.sockets import Security, make_socket, serve_authentication
from zcluster.transport.wakeup import Wakeup
from zcluster.types import MS, NEVER, Nanoseconds

MESSAGES_PER_TURN: Final = 256
TICK_NS: Final = 1_000 * MS
DOUBT_NS: Final = 100 * MS
"""A worker that was silent for longer is checked for being stopped before it gets work."""
SILENT_NS: Final = 2_500 * MS
"""An idle worker answers pings; one that has not for so long gets nothing new."""
VERDICT_NS: Final = 20 * MS
"""Time for whoever killed a worker on purpose to say so (`word.spare`)."""
GONE_NS: Final = 10_000 * MS
"""A client without a connection for so long, while there is something to tell it, has closed its pool."""
SWITCH_INTERVAL_S: Final = 0.0005
# The plain calls, with plain integers: the convenience layer above them costs more than they do.
_raw_send: Final[Any] = RawSocket.send
_raw_receive: Final[Any] = RawSocket.recv
_raw_get: Final[Any] = RawSocket.get
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_NOBLOCK: Final = int(zmq.NOBLOCK)
_NOBLOCK_MORE: Final = _NOBLOCK | int(zmq.SNDMORE)
_RCVMORE: Final = int(zmq.RCVMORE)


_NO_SEGMENTS: Final = repeat(None)


class Router:
    """The loop. `run` returns after `stop`."""

    def __init__(self, spec: ClusterSpec) -> None:
        self.spec = spec
        self.run_directory = spec.path / "run"
        settings = spec.settings
        rng = random.Random()
        self.dispatcher = Dispatcher(
            make_policy(settings.balance, rng),
            make_policy(settings.balance, rng),
            queue_max=settings.queue_max,
            attempts_max=settings.attempts_max,
        )
        self.incarnation = random.SystemRandom().getrandbits(63)
        self.dropped_garbage = 0
        self._stopping = False
        self._patience = Patience()
        self._touched = False  # something was sent outside the usual order
        self._rate = 0.0
        self._rate_done = 0
        self._rate_at = time.monotonic_ns()
        self._next_tick = self._rate_at + TICK_NS
        self._client_of: dict[bytes, ClientPeer] = {}
        self._clients: dict[int, ClientPeer] = {}
        self._worker_of: dict[bytes, WorkerPeer] = {}
        self._workers: dict[int, WorkerPeer] = {}
        self._last_key = 0
        self._verdicts: deque[tuple[Nanoseconds, WorkerPeer]] = deque()
        self._expected: dict[str, tuple[ProcessWatch, int]] = {}  # name -> (watch, pid) of workers that should report
        self._watching: dict[int, Callable[[], None]] = {}  # pidfd -> what its death means
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        security = Security.load(spec)
        self._authentication = serve_authentication(self._context, security)
        self._epoll = select.epoll()
        self._wakeup = Wakeup()
        self._epoll.register(self._wakeup.fd, select.EPOLLIN)
        self._client_socket, self._client_fd = self._bind(CLIENT, security)
        self._worker_socket, self._worker_fd = self._bind(WORKER, security)
        self._clients_unread = self._workers_unread = True  # look before sleeping, whatever the descriptors say
        self._expect_workers()

    def _bind(self, role: str, security: Security | None) -> tuple[zmq.Socket[bytes], int]:
        socket = make_socket(
            self._context,
            zmq.ROUTER,
            bind=self.spec.endpoint("router", role),
            security=security,
            message_bytes_max=p.MESSAGE_BYTES_MAX,
        )
        descriptor = cast(int, socket.get(zmq.FD))
        self._epoll.register(descriptor, select.EPOLLIN)
        return socket, descriptor

    def _expect_workers(self) -> None:
        """Workers that run already (ours is not the first router) are to report before anything is started twice."""
        now = time.monotonic_ns()
        for path in self.run_directory.glob(f"*{SUFFIX}"):
            try:
                word = WordReader(path)
            except (OSError, ValueError):
                continue
            watch = ProcessWatch(word.pid, word.ticks)
            name = path.name.removesuffix(SUFFIX)
            if watch.dead:
                watch.close()
            else:
                self.dispatcher.expect(name, word.running(), now)
                self._expected[name] = (watch, word.pid)
                self._watch(watch, lambda name=name: self._expected_dead(name))  # type: ignore[misc]
            word.close()

    def _expected_dead(self, name: str) -> None:
        entry = self._expected.pop(name, None)
        if entry is not None:
            self._unwatch(entry[0])
            entry[0].close()
            self.dispatcher.expected_gone(name)

    def stop(self) -> None:
        """From a signal handler."""
        self._stopping = True
        self._wakeup.set()

    # -- the loop -----------------------------------------------------------------------------------------------------
    def run(self) -> None:
        client_fd, worker_fd = self._client_fd, self._worker_fd
        while not self._stopping:
            if not (self._clients_unread or self._workers_unread):
                for fd, _ in self._wait():
                    if fd == client_fd:
                        self._clients_unread = True
                    elif fd == worker_fd:
                        self._workers_unread = True
                    elif fd in self._watching:
                        self._watching[fd]()
                    elif fd == self._wakeup.fd:
                        self._wakeup.clear()
            self.turn()
        self.close()

    def _wait(self) -> list[tuple[int, int]]:
        """Sleep until something comes or is due; while there is one short task after the other, rather look."""
        now = time.monotonic_ns()
        wait_ns = self._next_moment() - now
        if wait_ns <= 0:
            return []
        if self.dispatcher.occupied <= 1:
            return self._patience.poll(self._epoll, wait_ns, now)
        return self._epoll.poll(wait_ns / 1e9)

    def turn(self) -> None:
        """Receive, decide, send."""
        if self._workers_unread:
            self._workers_unread = self._receive(self._worker_socket, self._from_worker)
        if self._clients_unread:
            self._clients_unread = self._receive(self._client_socket, self._from_client)
        now = time.monotonic_ns()
        if self._verdicts or now >= self._next_tick:
            self._chores(now)
        dispatcher = self.dispatcher
        if dispatcher.queued:
            self._check_doubtful(now)
        if dispatcher.next_deadline() <= now:
            dispatcher.deadline(now)
        actions = dispatcher.take(now)
        for to_worker in actions.workers:
            self._to_worker(to_worker)
        for to_client in actions.clients:
            self._to_client(to_client)
        # Sending may have consumed the edge of a descriptor: nobody sleeps before EVENTS were read again.
        touched, self._touched = self._touched, False
        if (actions.workers or touched) and not self._workers_unread:
            self._workers_unread = bool(_raw_get(self._worker_socket, _EVENTS) & _POLLIN)
        if (actions.clients or touched) and not self._clients_unread:
            self._clients_unread = bool(_raw_get(self._client_socket, _EVENTS) & _POLLIN)

    def _chores(self, now: Nanoseconds) -> None:
        while self._verdicts and self._verdicts[0][0] <= now:
            self._judge(self._verdicts.popleft()[1])
        if now >= self._next_tick:
            self._tick(now)

    def _next_moment(self) -> Nanoseconds:
        first = self._verdicts[0][0] if self._verdicts else NEVER
        return min(self._next_tick, self.dispatcher.next_deadline(), first)

    def _receive(self, socket: zmq.Socket[bytes], handle: Callable[[bytes, Message], None]) -> bool:
        for _ in range(MESSAGES_PER_TURN):
            if not _raw_get(socket, _EVENTS) & _POLLIN:
                return False
            identity = _raw_receive(socket, _NOBLOCK)
            message = [_raw_receive(socket, _NOBLOCK)]  # an identity never comes alone
            while _raw_get(socket, _RCVMORE):
                message.append(_raw_receive(socket, _NOBLOCK))
            try:
                handle(identity, message)
            except (ValueError, TypeError, KeyError, OverflowError, OSError):
                self.dropped_garbage += 1
        return True

    def _send(self, socket: zmq.Socket[bytes], identity: bytes, message: Message) -> bool:
        """False: not sent, since the peer is gone or does not read."""
        try:
            _raw_send(socket, identity, _NOBLOCK_MORE)
            last = len(message) - 1
            for i in range(last):
                _raw_send(socket, message[i], _NOBLOCK_MORE, len(message[i]) < p.INLINE_BYTES_MAX)
            _raw_send(socket, message[last], _NOBLOCK, len(message[last]) < p.INLINE_BYTES_MAX)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return False
        return True

    # -- clients ------------------------------------------------------------------------------------------------------
    def _from_client(self, identity: bytes, message: Message) -> None:
        frame = message[0]
        if not frame:
            self._ask_who(self._client_socket, identity)
            return
        if len(frame) == wire.HEAD_BYTES and frame[0] == wire.STATUS:
            self._answer_status(identity, wire.HEAD.unpack(frame)[1])
            return
        kind, body = p.unpack(frame)
        peer = self._client_of.get(identity)
        if peer is None:
            if kind == p.HELLO:
                self._client_hello(identity, body)
            elif kind in (p.SUBMIT, p.CANCEL, p.BYE):
                self._ask_who(self._client_socket, identity)
            else:
                raise ValueError("not a client's message")
        elif kind == p.SUBMIT:
            segments: Iterable[Segments] = _NO_SEGMENTS
            if len(message) > 1:
                segments = p.split_segments([task[4] for task in body.tasks], message[1:])
            if body.functions:
                self.dispatcher.add_functions(peer.number, body.functions, ())
            self.dispatcher.submit(peer.number, body.tasks, segments)
            if body.forgotten:
                self.dispatcher.add_functions(peer.number, (), body.forgotten)
        elif kind == p.CANCEL:
            self.dispatcher.cancel(peer.number, body)
        elif kind == p.HELLO:
            self._client_hello(identity, body)
        elif kind == p.BYE:
            self._client_gone(peer)
            self._ask_who(self._client_socket, identity)  # "I do not know you any more"
        else:
            raise ValueError("not a client's message")

    def _ask_who(self, socket: zmq.Socket[bytes], identity: bytes) -> None:
        self._send(socket, identity, [p.pack(p.WHO, [self.incarnation])])

    def _client_hello(self, identity: bytes, hello: p.Hello) -> None:
        refusal = self._refusal(hello.protocol, hello.cluster_id, hello.python)
        if refusal is not None:
            self._send(self._client_socket, identity, [p.pack(p.REFUSED, [refusal])])
            return
        peer = self._clients.get(hello.client)
        if peer is None:
            watch = ProcessWatch(hello.pid, hello.ticks)
            if watch.dead:
                watch.close()
                return
            peer = self._clients[hello.client] = ClientPeer(hello.client, watch)
            self._watch(watch, lambda: self._client_gone(peer))
        self._client_of.pop(peer.identity, None)
        peer.identity = identity
        self._client_of[identity] = peer
        self.dispatcher.client_joined(peer.number)
        self._send_waiting(peer)

    def _refusal(self, protocol: int, cluster_id: str, python: str) -> str | None:
        if cluster_id != self.spec.cluster_id:
            return f"this is cluster {self.spec.name!r} with another id; it was created anew: connect again"
        if protocol != p.PROTOCOL:
            return "the cluster runs another version of zcluster; restart it: zcluster restart"
        if python != p.PYTHON:
            return (
                f"this is Python {python}, the cluster runs Python {p.PYTHON}, and functions do not travel between "
                f"them: use Python {p.PYTHON} here, or start a cluster with Python {python}"
            )
        return None

    def _client_gone(self, peer: ClientPeer) -> None:
        self._unwatch(peer.watch)
        peer.watch.close()
        self._client_of.pop(peer.identity, None)
        self._clients.pop(peer.number, None)
        self.dispatcher.client_gone(peer.number)
        remove_endpoint(self.spec, peer.number)

    def _to_client(self, share: ToClient) -> None:
        peer = self._clients[share.client]
        news = (share.granted, len(self._workers), share.results, share.cancelled)
        peer.unsent.append([p.pack(p.NEWS, news), *share.segments])
        self._send_waiting(peer)

    def _send_waiting(self, peer: ClientPeer) -> None:
        while peer.unsent and self._send(self._client_socket, peer.identity, peer.unsent[0]):
            peer.unsent.popleft()

    def _answer_status(self, identity: bytes, request: int) -> None:
        self._measure_rate(time.monotonic_ns())
        workers = [
            {
                "name": worker.name,
                "pid": self._workers[key].pid,
                "running": min(1, len(worker.assigned)),
                "queued": max(0, len(worker.assigned) - 1),
                "done": worker.done,
            }
            for key, worker in sorted(self.dispatcher.workers.items(), key=lambda item: item[1].name)
            if key in self._workers  # else it is dead, and only the verdict on its task is still open
        ]
        body = {
            "name": "router",
            "pid": os.getpid(),
            "workers": workers,
            **self.dispatcher.describe(),
            "tasks_per_s": round(self._rate, 1),
            "dropped_garbage": self.dropped_garbage,
        }
        self._send(self._client_socket, identity, [wire.pack_head(wire.RESULT, request), wire.encode(body)])

    def _measure_rate(self, now: Nanoseconds) -> None:
        """Finished tasks a second, over the last second or so."""
        span_ns = now - self._rate_at
        if span_ns >= TICK_NS // 2:
            self._rate = (self.dispatcher.done_total - self._rate_done) * 1e9 / span_ns
            self._rate_done, self._rate_at = self.dispatcher.done_total, now

    # -- workers ------------------------------------------------------------------------------------------------------
    def _from_worker(self, identity: bytes, message: Message) -> None:
        if not message[0]:
            self._ask_who(self._worker_socket, identity)
            return
        kind, body = p.unpack(message[0])
        peer = self._worker_of.get(identity)
        if kind == p.REPORT:
            self._worker_report(identity, body)
        elif kind not in (p.DONE, p.PONG, p.LEAVE):
            raise ValueError("not a worker's message")
        elif peer is None:
            self._ask_who(self._worker_socket, identity)
        elif kind == p.DONE:
            segments: Iterable[Segments] = _NO_SEGMENTS
            if len(message) > 1:
                segments = p.split_segments([result[5] for result in body.results], message[1:])
            if body.sequence > peer.sequence:  # else it was repeated, and had arrived
                peer.sequence = body.sequence
                self.dispatcher.done(peer.key, body.results, segments, body.recalled, time.monotonic_ns())
        elif kind == p.LEAVE:
            self._acknowledge(peer)
            self.dispatcher.worker_silent(peer.key, None)
        else:
            self.dispatcher.worker_heard(peer.key, time.monotonic_ns())

    def _worker_report(self, identity: bytes, report: p.Report) -> None:
        refusal = self._refusal(report.protocol, report.cluster_id, report.python)
        if refusal is not None:
            self._send(self._worker_socket, identity, [p.pack(p.REFUSED, [refusal])])
            return
        peer = next((w for w in self._workers.values() if w.pid == report.pid and w.name == report.name), None)
        if peer is None:
            watch = ProcessWatch(report.pid, report.ticks)
            if watch.dead:
                watch.close()
                return
            self._last_key += 1
            peer = WorkerPeer(self._last_key, report.name, report.pid, watch, self._open_word(report))
            self._workers[peer.key] = peer
            self._watch(watch, lambda: self._worker_dead(peer))
        self._worker_of.pop(peer.identity, None)
        peer.identity = identity
        peer.sequence = peer.acknowledged = 0  # what it repeats counts again: its report says that it holds those tasks
        self._worker_of[identity] = peer
        self.dispatcher.worker_joined(peer.key, peer.name, report.held, time.monotonic_ns())
        expected = self._expected.pop(report.name, None)
        if expected is not None:
            self._unwatch(expected[0])
            expected[0].close()

    def _open_word(self, report: p.Report) -> WordReader | None:
        try:
            word = WordReader(word_path(self.run_directory, report.name))
        except (OSError, ValueError):
            return None
        if word.pid == report.pid:
            return word
        word.close()
        return None

    def _worker_dead(self, peer: WorkerPeer) -> None:
        """Its process is gone. If it was running a task, wait a moment for a word of whoever killed it."""
        self._unwatch(peer.watch)
        self._worker_of.pop(peer.identity, None)
        self._workers.pop(peer.key, None)
        self.dispatcher.worker_silent(peer.key, None if peer.word is None else peer.word.running())
        self._verdicts.append((time.monotonic_ns() + VERDICT_NS, peer))

    def _judge(self, peer: WorkerPeer) -> None:
        running = None if peer.word is None else peer.word.running()
        charged = peer.word is not None and not peer.word.spared()
        self.dispatcher.worker_lost(peer.key, running, charged)
        peer.close()

    def _to_worker(self, share: ToWorker) -> None:
        peer = self._workers.get(share.worker)
        if peer is None:
            return
        if share.tasks or share.functions or share.forgotten:
            peer.acknowledged = peer.sequence
            work = (peer.sequence, share.functions, share.forgotten, share.tasks)
            self._send(self._worker_socket, peer.identity, [p.pack(p.WORK, work), *share.segments])
        if share.recall:
            self._send(self._worker_socket, peer.identity, [p.pack(p.RECALL, share.recall)])
        # What cannot be sent needs no memory: a worker that lives connects again and reports what it has.

    def _acknowledge(self, peer: WorkerPeer) -> None:
        peer.acknowledged = peer.sequence
        self._send(self._worker_socket, peer.identity, [p.pack(p.WORK, (peer.sequence, [], [], []))])

    def _check_doubtful(self, now: Nanoseconds) -> None:
        """There is work to hand out: those that have not been heard for a while may be stopped."""
        for key, worker in self.dispatcher.workers.items():
            if now - worker.heard > DOUBT_NS and not worker.silent:
                peer = self._workers.get(key)
                if peer is not None and peer.stopped():
                    self.dispatcher.worker_silent(key, None if peer.word is None else peer.word.running())

    def _tick(self, now: Nanoseconds) -> None:
        """Once a second: pings to idle workers, acknowledgements, messages that could not be sent."""
        self._next_tick = now + TICK_NS
        self._touched = True
        self._measure_rate(now)
        for key, peer in self._workers.items():
            worker = self.dispatcher.workers.get(key)
            if worker is None:
                continue
            running = None if peer.word is None else peer.word.running()
            if not worker.silent and now - worker.heard > DOUBT_NS and peer.stopped():
                self.dispatcher.worker_silent(key, running)
            elif not worker.silent and running is None and not worker.assigned and now - worker.heard > SILENT_NS:
                self.dispatcher.worker_silent(key, None)
            if peer.acknowledged != peer.sequence:
                self._acknowledge(peer)
            if not peer.stopped() and now - worker.heard > TICK_NS // 2:
                self._send(self._worker_socket, peer.identity, [p.pack(p.PING, [])])
        for client in list(self._clients.values()):
            self._send_waiting(client)
            if not client.unsent:
                client.unreachable = NEVER
            elif client.unreachable == NEVER:
                client.unreachable = now
            elif now - client.unreachable > GONE_NS and not self._reachable(client):
                self._client_gone(client)

    def _reachable(self, client: ClientPeer) -> bool:
        """Is there a connection? A client that is connected may be slow; one that is not closed its pool unheard."""
        try:
            self._client_socket.send(client.identity, _NOBLOCK_MORE)
        except zmq.ZMQError as error:
            return error.errno != zmq.EHOSTUNREACH
        self._client_socket.send(p.pack(p.NEWS, (0, len(self._workers), [], [])), _NOBLOCK)
        return True

    # -- deaths, the end ----------------------------------------------------------------------------------------------
    def _watch(self, watch: ProcessWatch, react: Callable[[], None]) -> None:
        if watch.fd >= 0:
            self._watching[watch.fd] = react
            self._epoll.register(watch.fd, select.EPOLLIN)

    def _unwatch(self, watch: ProcessWatch) -> None:
        if watch.fd >= 0 and self._watching.pop(watch.fd, None) is not None:
            self._epoll.unregister(watch.fd)

    def close(self) -> None:
        self._client_socket.close()
        self._worker_socket.close()
        for client in self._clients.values():
            client.watch.close()
        for worker in self._workers.values():
            worker.close()
        if self._authentication is not None:
            cast(Any, self._authentication).stop()
        self._context.term()
        self._epoll.close()
        self._wakeup.close()


def main(arguments: list[str]) -> int:
    spec = load_spec(Path(arguments[0]))
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    exit_with_owner()
    router = Router(spec)

    def terminate(number: int, frame: FrameType | None) -> None:
        router.stop()

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, terminate)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    router.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
