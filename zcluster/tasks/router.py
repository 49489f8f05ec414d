"""`python -m zcluster.tasks.router CLUSTER_DIRECTORY`: stands between clients and workers. One thread, one loop.

    poll once -> receive everything that is there -> dispatcher -> one message a worker and a client

    client_side   who the clients are, what they submit      side    a socket, who may join, whose process has died
    worker_side   who the workers are, which one has died    peers   one process as the router sees it

These move bytes and collect proof; decisions are the dispatcher's. Nothing is stored: a router that dies is replaced by
one that asks everybody (WHO); workers say what they run and hold, clients submit again what they wait for.
"""

from __future__ import annotations

import gc
import random
import select
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Final

import zmq

from zcluster.config import ClusterSpec, load_spec
from zcluster.entry import check_arguments
from zcluster.tasks.client_side import ClientSide
from zcluster.tasks.dispatcher import Dispatcher
from zcluster.tasks.policy import make_policy
from zcluster.tasks.side import Common, Deaths
from zcluster.tasks.worker_side import WorkerSide
from zcluster.transport.liveness import exit_with_owner
from zcluster.transport.patience import Patience
from zcluster.transport.sockets import Security, serve_authentication
from zcluster.transport.wakeup import Wakeup
from zcluster.types import MS

TICK_NS: Final = 1_000 * MS
SWITCH_INTERVAL_S: Final = 0.0005


class Router:
    """The loop. `run` returns after `stop`."""

    def __init__(self, spec: ClusterSpec) -> None:
        settings = spec.settings
        rng = random.Random()
        self.dispatcher = Dispatcher(
            make_policy(settings.balance, rng),
            make_policy(settings.balance, rng),
            queue_max=settings.queue_max,
            attempts_max=settings.attempts_max,
        )
        self._stopping = False
        self._patience = Patience()
        self._next_tick = time.monotonic_ns() + TICK_NS
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        security = Security.load(spec)
        self._authentication = serve_authentication(self._context, security)
        self._epoll = select.epoll()
        self._wakeup = Wakeup()
        self._deaths = Deaths(self._epoll)
        incarnation = random.SystemRandom().getrandbits(63)
        common = Common(spec, self._context, security, self.dispatcher, self._deaths, incarnation)
        self._workers = WorkerSide(common)
        self._clients = ClientSide(common, self._workers)
        for descriptor in (self._wakeup.fd, self._workers.fd, self._clients.fd):
            self._epoll.register(descriptor, select.EPOLLIN)

    def stop(self) -> None:
        """From a signal handler."""
        self._stopping = True
        self._wakeup.set()

    def run(self) -> None:
        clients, workers = self._clients, self._workers
        while not self._stopping:
            if not (clients.unread or workers.unread):
                for fd, _ in self._wait():
                    if fd == clients.fd:
                        clients.unread = True
                    elif fd == workers.fd:
                        workers.unread = True
                    elif fd == self._wakeup.fd:
                        self._wakeup.clear()
                    else:
                        self._deaths.handle(fd)
            self.turn()
        self.close()

    def _wait(self) -> list[tuple[int, int]]:
        """Sleep until something comes or is due; while there is one short task after the other, rather look."""
        now = time.monotonic_ns()
        wait_ns = min(self._next_tick, self.dispatcher.next_deadline(), self._workers.next_verdict()) - now
        if wait_ns <= 0:
            return []
        if self.dispatcher.occupied <= 1:
            return self._patience.poll(self._epoll, wait_ns, now)
        return self._epoll.poll(wait_ns / 1e9)

    def turn(self) -> None:
        """Receive, decide, send."""
        clients, workers, dispatcher = self._clients, self._workers, self.dispatcher
        if workers.unread:
            workers.receive()
        if clients.unread:
            clients.receive()
        now = time.monotonic_ns()
        workers.judge_all(now)
        if now >= self._next_tick:
            self._next_tick = now + TICK_NS
            workers.tick(now)
            clients.tick(now)
        if dispatcher.queued:
            workers.check_doubtful(now)
        if dispatcher.next_deadline() <= now:
            dispatcher.deadline(now)
        actions = dispatcher.take(now)
        for to_worker in actions.workers:
            workers.deliver(to_worker)
        for to_client in actions.clients:
            clients.deliver(to_client)
        workers.look()
        clients.look()

    def close(self) -> None:
        self._clients.close()
        self._workers.close()
        if self._authentication is not None:
            self._authentication.stop()
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
    check_arguments(sys.argv[1:], "zcluster.tasks.router CLUSTER_DIRECTORY")
    sys.exit(main(sys.argv[1:]))
