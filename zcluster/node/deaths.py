"""Who has provably died: watches the processes behind the peers' envelopes by pidfd."""

from __future__ import annotations

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
