"""A cluster of cores as a course's lab uses one: servers that are cut off and connected again, and a count of messages.

    one        propose at whoever leads, until so many servers have applied it
    disconnect the server neither hears nor is heard
    crash      the process ends; its disk stays

Safety is checked after every turn by `Network`'s oracle: one leader a term, one entry an index, nothing committed
without copies on the disks of a majority. What does not live here: the tests (`test_mit_raft.py`).
"""

from __future__ import annotations

from collections import Counter

import msgspec

from tests.unit.consensus.network import Network, Node
from zcluster.consensus.api import AnyMessage, Settings
from zcluster.errors import Busy, NotLeader
from zcluster.types import MS

TIMEOUT = 600 * MS
RELIABLE = (MS // 5, MS // 2)
UNRELIABLE = (0, 27 * MS)
_encode = msgspec.msgpack.Encoder().encode


class Lab(Network):
    """Servers 1..n. `unreliable`: a tenth of the messages is lost, the others take up to 27 ms and overtake.
    `pidfds`: survivors hear at once of a crash, and elect."""

    retained_bytes_max = 4 << 20
    batch_bytes_max = 1 << 20

    def __init__(self, servers: int, *, seed: int = 1, unreliable: bool = False, pidfds: bool = False) -> None:
        self.disconnected: set[int] = set()
        self.messages: Counter[str] = Counter()
        self.sent_bytes = 0
        self.entries_sent: Counter[bytes] = Counter()
        settings = Settings(
            election_timeout=TIMEOUT, retained_bytes_max=self.retained_bytes_max, batch_bytes_max=self.batch_bytes_max
        )
        super().__init__(servers, seed=seed, settings=settings, delay=RELIABLE, pidfds=pidfds)
        self.set_unreliable(unreliable)

    def set_unreliable(self, unreliable: bool) -> None:
        self.delay = UNRELIABLE if unreliable else RELIABLE
        self.loss = 0.1 if unreliable else 0.0

    # -- links --------------------------------------------------------------------------------------------------------
    def disconnect(self, *servers: int) -> None:
        self.disconnected.update(servers)
        self._cut_off()

    def connect(self, *servers: int) -> None:
        self.disconnected.difference_update(servers)
        self._cut_off()

    def _cut_off(self) -> None:
        self.cut = {(a, b) for a in self.nodes for b in self.nodes if {a, b} & self.disconnected}

    def send(self, node: Node, to: int, message: AnyMessage) -> None:
        self.messages[type(message).__name__] += 1
        self.sent_bytes += len(_encode(message))
        for entry in getattr(message, "entries", ()):
            self.entries_sent[entry.data] += 1
        super().send(node, to, message)

    # -- who is there -------------------------------------------------------------------------------------------------
    def reachable(self) -> list[int]:
        return [i for i, node in self.nodes.items() if i not in self.disconnected and node.core is not None]

    def reachable_leader(self) -> int:
        """Who leads in the highest term among the connected; 0: nobody."""
        leaders = [(self.core(i).term, i) for i in self.reachable() if self.core(i).is_leader]
        return max(leaders)[1] if leaders else 0

    def check_one_leader(self) -> int:
        """Within ten election timeouts exactly one of the connected leads, and a majority follows it."""

        def settled() -> bool:
            leader = self.reachable_leader()
            following = [i for i in self.reachable() if self.core(i).leader == leader]
            return bool(leader) and len(following) > len(self.nodes) // 2 and self.leads_alone(leader)

        self.run_until(settled, 10 * TIMEOUT)
        return self.reachable_leader()

    def leads_alone(self, leader: int) -> bool:
        return [i for i in self.reachable() if self.core(i).is_leader] == [leader]

    def terms(self) -> set[int]:
        return {self.core(i).term for i in self.reachable()}

    # -- commands -----------------------------------------------------------------------------------------------------
    def applied_by(self, index: int) -> int:
        """On how many servers the entry is applied."""
        return sum(node.core is not None and node.applied_index >= index for node in self.nodes.values())

    def one(self, data: bytes, servers: int, *, retry: bool = True) -> int:
        """Propose until `servers` servers have applied it, at the same index. Returns the index."""
        end = self.now + 20 * TIMEOUT
        while self.now < end:
            leader = self.reachable_leader()
            try:
                index = self.propose(data, leader) if leader else 0
            except (NotLeader, Busy):
                index = 0
            if not index:
                self.run(10 * MS)
                continue
            until = self.now + 4 * TIMEOUT
            while self.now < until and self.applied_by(index) < servers and self.run_once(until):
                pass
            entry = self.oracle.committed.get(index)
            if self.applied_by(index) >= servers and entry is not None and entry.data == data:
                return index
            assert retry, f"{data!r} is not applied by {servers} servers"
        raise AssertionError(f"{data!r}: no agreement")

    def restart(self, server: int) -> None:
        if self.nodes[server].core is not None:
            self.crash(server)
        self.start(server)

    def committed_data(self) -> list[bytes]:
        """What clients had committed, in order."""
        committed = self.oracle.committed
        return [committed[index].data for index in sorted(committed) if committed[index].data]


def with_leader(lab: Lab, server: int, data: bytes) -> int:
    """Propose at this server. Returns the index; 0: it refuses."""
    try:
        return lab.propose(data, server) if lab.nodes[server].core is not None else 0
    except (NotLeader, Busy):
        return 0
