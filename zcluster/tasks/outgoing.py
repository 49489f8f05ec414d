"""What is to be sent at the end of a turn: one share for each worker and client that something happened to. Pure.

Results that a client has probably got already (see `direct`) wait for company, REPEAT_NS at most.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from zcluster.tasks.records import Actions, Client, ToClient, ToWorker, Worker
from zcluster.types import MS, NEVER, Nanoseconds

REPEAT_NS: Final = 5 * MS


class Outgoing:
    """Notes whom to write to; the shares themselves grow in `Worker.out` and `Client.results`."""

    def __init__(self) -> None:
        self.repeat_at: Nanoseconds = NEVER
        self._workers: list[Worker] = []
        self._clients: list[Client] = []
        self._patient: dict[int, Client] = {}  # those that have only results which may wait

    def mark_worker(self, worker: Worker) -> None:
        if not worker.dirty:
            worker.dirty = True
            self._workers.append(worker)

    def mark_client(self, client: Client) -> None:
        if not client.dirty:
            client.dirty = True
            self._clients.append(client)

    def mark_patient(self, client: Client) -> None:
        """It has a result that it has probably got already."""
        if not client.dirty:
            self._patient[client.id] = client

    def repeat(self) -> None:
        """`repeat_at` has passed."""
        self.repeat_at = NEVER
        for client in self._patient.values():
            self.mark_client(client)

    def take(self, workers: Container[int], clients: Container[int], now: Nanoseconds) -> Actions:
        """All shares, of those that are still there."""
        actions = Actions()
        for worker in self._workers:
            worker.dirty = False
            if worker.key in workers:
                actions.workers.append(worker.out)
            worker.out = ToWorker(worker.key)
        for client in self._clients:
            client.dirty = False
            self._patient.pop(client.id, None)
            if client.id in clients:
                actions.clients.append(
                    ToClient(client.id, client.granted, client.results, client.segments, client.cancelled)
                )
            client.results, client.segments, client.cancelled = [], [], []
        self._workers, self._clients = [], []
        if not self._patient:
            self.repeat_at = NEVER
        elif self.repeat_at == NEVER:
            self.repeat_at = now + REPEAT_NS
        return actions
