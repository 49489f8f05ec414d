"""Credits: how many tasks each client may have submitted, so that queue and open grants stay within a bound. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from zcluster.tasks.records import Client

GRANT_MAX: Final = 4096


class Grants:
    """Counts since a client joined: `Client.granted` only grows, `Client.submitted` follows it.

    Args:
        queue_max: tasks in the queue and grants not used yet, together, at most.
    """

    def __init__(self, queue_max: int) -> None:
        self._queue_max = queue_max
        self._open = 0  # granted and not yet submitted, all clients together
        self._thirsty: OrderedDict[int, Client] = OrderedDict()

    def joined(self, client: Client) -> None:
        """On a new connection the counts begin anew."""
        self._open -= client.granted - client.submitted
        client.granted = client.submitted = 0
        self._thirsty[client.id] = client

    def submitted(self, client: Client, count: int, clients: int) -> None:
        """`count` tasks came; `clients`: how many there are."""
        client.submitted += count
        self._open -= count
        if client.granted - client.submitted < self._share(clients) // 2 + 1:
            self._thirsty[client.id] = client

    def gone(self, client: Client) -> None:
        self._thirsty.pop(client.id, None)
        self._open -= client.granted - client.submitted

    def give(self, queued: int, clients: int) -> list[Client]:
        """Grant more, as far as there is room; those that asked first come first. Returns: who got something."""
        if not self._thirsty:
            return []
        given = []
        share = self._share(clients)
        free = self._queue_max - queued - self._open
        for client in list(self._thirsty.values()):
            left = client.granted - client.submitted
            more = min(share - left, free)
            if more <= 0:
                if left > 0 or client.tasks:
                    continue
                more = 1  # a client with nothing on the way is never shut out
            client.granted += more
            self._open += more
            free -= more
            given.append(client)
            if left + more > share // 2:
                del self._thirsty[client.id]
        return given

    def _share(self, clients: int) -> int:
        return max(1, min(GRANT_MAX, self._queue_max // (2 * max(1, clients))))
