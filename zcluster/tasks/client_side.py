"""The router's side towards clients: who they are, what they submit, what they are told.

Messages that a client cannot take now are kept, and sent when it reads; they are dropped when it is proven dead, or
has had no connection for GONE_NS.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Final

from zcluster import wire
from zcluster.config import CLIENT
from zcluster.tasks import protocol as p
from zcluster.tasks.direct import remove_endpoint
from zcluster.tasks.peers import ClientPeer, Message
from zcluster.tasks.records import Segments, ToClient
from zcluster.tasks.side import NO_SEGMENTS, Common, Side
from zcluster.tasks.worker_side import WorkerSide
from zcluster.transport.liveness import ProcessWatch
from zcluster.types import MS, NEVER, Nanoseconds

GONE_NS: Final = 10_000 * MS
"""A client without a connection for so long, while there is something to tell it, has closed its pool."""
RATE_NS: Final = 500 * MS


class ClientSide(Side):
    """`workers`: the other side, for what clients and STATUS are told about it."""

    def __init__(self, common: Common, workers: WorkerSide) -> None:
        super().__init__(CLIENT, common)
        self._workers = workers
        self._of: dict[bytes, ClientPeer] = {}  # by identity
        self._clients: dict[int, ClientPeer] = {}
        self._rate = 0.0
        self._rate_done = 0
        self._rate_at = time.monotonic_ns()

    def handle(self, identity: bytes, message: Message) -> None:
        frame = message[0]
        if not frame:
            self.ask_who(identity)
            return
        if len(frame) == wire.HEAD_BYTES and frame[0] == wire.STATUS:
            self._answer_status(identity, wire.HEAD.unpack(frame)[1])
            return
        kind, body = p.unpack(frame)
        peer = self._of.get(identity)
        if peer is None:
            if kind == p.HELLO:
                self._hello(identity, body)
            elif kind in (p.SUBMIT, p.CANCEL, p.BYE):
                self.ask_who(identity)
            else:
                raise ValueError("not a client's message")
        elif kind == p.SUBMIT:
            segments: Iterable[Segments] = NO_SEGMENTS
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
            self._hello(identity, body)
        elif kind == p.BYE:
            self._gone(peer)
            self.ask_who(identity)  # "I do not know you any more"
        else:
            raise ValueError("not a client's message")

    def _hello(self, identity: bytes, hello: p.Hello) -> None:
        refusal = self.refusal(hello.protocol, hello.cluster_id, hello.python)
        if refusal is not None:
            self.send(identity, [p.pack(p.REFUSED, [refusal])])
            return
        peer = self._clients.get(hello.client)
        if peer is None:
            watch = ProcessWatch(hello.pid, hello.ticks)
            if watch.dead:
                watch.close()
                return
            peer = self._clients[hello.client] = ClientPeer(hello.client, watch)
            self.deaths.watch(watch, lambda: self._gone(peer))
        self._of.pop(peer.identity, None)
        peer.identity = identity
        self._of[identity] = peer
        self.dispatcher.client_joined(peer.number)
        self._send_waiting(peer)

    def _gone(self, peer: ClientPeer) -> None:
        self.deaths.unwatch(peer.watch)
        peer.watch.close()
        self._of.pop(peer.identity, None)
        self._clients.pop(peer.number, None)
        self.dispatcher.client_gone(peer.number)
        remove_endpoint(self.spec, peer.number)

    def deliver(self, share: ToClient) -> None:
        """What the dispatcher has to say to one client."""
        peer = self._clients[share.client]
        news = (share.granted, len(self._workers.peers), share.results, share.cancelled)
        peer.unsent.append([p.pack(p.NEWS, news), *share.segments])
        self._send_waiting(peer)

    def _send_waiting(self, peer: ClientPeer) -> None:
        while peer.unsent and self.send(peer.identity, peer.unsent[0]):
            peer.unsent.popleft()

    def _answer_status(self, identity: bytes, request: int) -> None:
        self._measure_rate(time.monotonic_ns())
        workers = [
            {
                "name": worker.name,
                "pid": self._workers.peers[key].pid,
                "running": min(1, len(worker.assigned)),
                "queued": max(0, len(worker.assigned) - 1),
                "done": worker.done,
            }
            for key, worker in sorted(self.dispatcher.workers.items(), key=lambda item: item[1].name)
            if key in self._workers.peers  # else it is dead, and only the verdict on its task is still open
        ]
        body = {
            "name": "router",
            "pid": os.getpid(),
            "workers": workers,
            **self.dispatcher.describe(),
            "tasks_per_s": round(self._rate, 1),
            "dropped_garbage": self.dropped_garbage + self._workers.dropped_garbage,
        }
        self.send(identity, [wire.pack_head(wire.RESULT, request), wire.encode(body)])

    def _measure_rate(self, now: Nanoseconds) -> None:
        """Finished tasks a second, over the last second or so."""
        span_ns = now - self._rate_at
        if span_ns >= RATE_NS:
            self._rate = (self.dispatcher.done_total - self._rate_done) * 1e9 / span_ns
            self._rate_done, self._rate_at = self.dispatcher.done_total, now

    def tick(self, now: Nanoseconds) -> None:
        """Once a second: messages that could not be sent; clients that have closed their pool unheard."""
        self._measure_rate(now)
        for client in list(self._clients.values()):
            self._send_waiting(client)
            if not client.unsent:
                client.unreachable = NEVER
            elif client.unreachable == NEVER:
                client.unreachable = now
            elif now - client.unreachable > GONE_NS and not self._reachable(client):
                self._gone(client)

    def _reachable(self, client: ClientPeer) -> bool:
        """A client that is connected may be slow; one that is not has closed its pool unheard."""
        return self.reachable(client.identity, [p.pack(p.NEWS, (0, len(self._workers.peers), [], []))])

    def close(self) -> None:
        super().close()
        for client in self._clients.values():
            client.watch.close()
