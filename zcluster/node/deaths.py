"""Who has provably died: watches the processes behind the peers' envelopes by pidfd."""

from __future__ import annotations

from collections.abc import Iterable

from zcluster.transport.faults import Rule
from zcluster.transport.liveness import ProcessWatch
from zcluster.transport.peers import Envelope
from zcluster.types import ReplicaId


class DeathWatch:
    """One watch a peer: of its newest incarnation. Knows of deaths until a newer incarnation shows up."""

    def __init__(self) -> None:
        self._watched: dict[ReplicaId, tuple[int, ProcessWatch]] = {}
        self._reported: set[tuple[ReplicaId, int]] = set()

    def meet(self, envelope: Envelope) -> bool:
        """Called for each message; True when this is a newer incarnation, now watched."""
        known = self._watched.get(envelope.sender)
        if known is not None:
            if envelope.incarnation <= known[0]:
                return False
            known[1].close()
            self._reported.discard((envelope.sender, known[0]))
        self._watched[envelope.sender] = (envelope.incarnation, ProcessWatch(envelope.pid, envelope.start_ticks))
        return True

    def descriptors(self) -> list[int]:
        """Descriptors to poll: those of processes not yet known to be dead."""
        return [watch.fd for _, watch in self._watched.values() if watch.fd >= 0 and not watch.dead]

    def newly_dead(self) -> list[tuple[ReplicaId, int]]:
        """(replica, incarnation) of watched processes that were found to have exited since the last call."""
        dead = [
            (replica, incarnation)
            for replica, (incarnation, watch) in self._watched.items()
            if (replica, incarnation) not in self._reported and watch.check()
        ]
        self._reported.update(dead)
        return dead

    def verify(self, replica: ReplicaId, incarnation: int) -> bool:
        """Has that very incarnation exited? Asks the system; False when it is not known here."""
        known = self._watched.get(replica)
        return known is not None and known[0] == incarnation and known[1].check()

    def close(self) -> None:
        for _, watch in self._watched.values():
            watch.close()
        self._watched.clear()


class RuledPeers:
    """Watches the processes that rules for the network are about: such a rule ends with its process.

    Not the same as `DeathWatch`: a rule may be about a peer that has never said anything here.
    """

    def __init__(self) -> None:
        self._watches: dict[ReplicaId, ProcessWatch] = {}

    def watch(self, rules: Iterable[Rule]) -> None:
        """From now on watch these, and no others."""
        self.close()
        for rule in rules:
            if rule.pid and rule.peer not in self._watches:
                self._watches[rule.peer] = ProcessWatch(rule.pid, rule.start_ticks)

    def descriptors(self) -> list[int]:
        return [watch.fd for watch in self._watches.values() if watch.fd >= 0 and not watch.dead]

    def gone(self) -> list[ReplicaId]:
        """Peers whose process has exited; each is named once."""
        gone = [peer for peer, watch in self._watches.items() if watch.check()]
        for peer in gone:
            self._watches.pop(peer).close()
        return gone

    def close(self) -> None:
        for watch in self._watches.values():
            watch.close()
        self._watches.clear()
