"""A replica's own network: the faults that somebody has ordered for it, and the processes that its rules are about."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from zcluster import wire
from zcluster.node import status
from zcluster.transport.faults import FaultyNetwork, Rule, decode_order
from zcluster.transport.liveness import ProcessWatch
from zcluster.transport.peers import Envelope
from zcluster.types import Nanoseconds, ReplicaId

MessageT = TypeVar("MessageT")


class OwnNetwork(Generic[MessageT]):
    """Owned by the event loop. `faults` is what stands between it and its links; see there.

    Args:
        send: hands a message to the link of a replica.
        name_of: the node that a replica is now; members come and go.
    """

    def __init__(
        self, me: Envelope, send: Callable[[ReplicaId, bytes], object], name_of: Callable[[ReplicaId], str | None]
    ) -> None:
        draw = random.Random(f"{me.cluster_id}.{me.sender}.{me.incarnation}.faults")
        self.faults: FaultyNetwork[MessageT] = FaultyNetwork(send, draw)
        self._name_of = name_of
        self._peers = RuledPeers()

    def order(self, body: bytes, now: Nanoseconds) -> tuple[int, Any]:
        """Do to our own network what somebody asks for. Returns: kind and content of the answer."""
        try:
            order = decode_order(body)
        except wire.DecodeError as error:
            return wire.FAILED, [wire.E_BAD_REQUEST, f"not an order for the network: {error}"]
        self.faults.obey(order, now)
        self._peers.watch(self.faults.rules.all)
        self.forget_dead(now)
        return wire.RESULT, self.describe(now)

    def forget_dead(self, now: Nanoseconds) -> None:
        """End the rules about processes that have exited."""
        for peer in self._peers.gone():
            self.faults.forget(peer, now)

    def descriptors(self) -> list[int]:
        """To poll: one becomes readable when a process that rules are about exits. `order` changes them."""
        return self._peers.descriptors()

    def describe(self, now: Nanoseconds) -> list[dict[str, Any]]:
        """The rules in force."""
        return status.describe_faults(self._name_of, self.faults.rules.all, now)

    def counters(self) -> dict[str, int]:
        faults = self.faults
        return {"faults_lost": faults.lost, "faults_delayed": faults.delayed, "faults_doubled": faults.doubled}

    def close(self) -> None:
        self._peers.close()


class RuledPeers:
    """Watches the processes that rules for the network are about: such a rule ends with its process.

    Not the same as `deaths.DeathWatch`: a rule may be about a peer that has never said anything here.
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
