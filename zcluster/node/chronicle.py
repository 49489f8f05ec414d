"""What a replica tells the cluster's event file (`zcluster.events`): elections, leaders, members, slow syncs and so on.

Time without service, as the new leader sees it: it begins when the leader before was last heard of (every write and
every heartbeat is a message of it, so at most a heartbeat too early), and ends when the first entry of the new term is
applied here: from then on reads and writes are answered. Both are read from one clock in one process, so it is an upper
bound; if the old leader is known to have exited, the time since that was noticed is told beside it. A node that was
started after the old leader was gone cannot know, and says nothing.

What does not live here: when to write or what a fault is; everything here only looks. Threads: that of the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from zcluster.events import EventLog
from zcluster.node.replica import Replica
from zcluster.storage.writer import Completion
from zcluster.transport.peers import Envelope
from zcluster.types import MS, Nanoseconds, ReplicaId

SLOW_SYNC: Final[Nanoseconds] = 100 * MS
SLOW_SYNC_PAUSE: Final[Nanoseconds] = 1000 * MS
"""At most one slow sync in this time is recorded."""


class Chronicle:
    """Looks at the replica after each turn and records what has changed.

    Args:
        name_of: replica id -> node name; None for one that is not known.
    """

    def __init__(
        self, log: EventLog, node: str, me: ReplicaId, replica: Replica, name_of: Callable[[ReplicaId], str | None]
    ) -> None:
        self._log = log
        self._node = node
        self._me = me
        self._replica = replica
        self._name_of = name_of
        self._seen = (replica.core.term, replica.core.leader)
        self._leader: ReplicaId = 0  # the last one there was
        self._heard: Nanoseconds | None = None  # of that leader, or by it
        self._exited: dict[ReplicaId, Nanoseconds] = {}  # since the last change of leader: when it was noticed
        self._taking_over: dict[str, Any] | None = None  # facts of the leader event that is to come
        self._began: Nanoseconds | None = None  # when service ended before that
        self._exit_noticed: Nanoseconds | None = None  # of the leader before
        self._configuration = replica.configuration
        self._syncs = 0
        self._slow_at: Nanoseconds = 0
        self._repairing = False

    def record(self, event: str, **facts: Any) -> None:
        """One event of this node."""
        self._log.record(event, self._node, **facts)

    def started(self, incarnation: int, damage: str | None) -> None:
        status = self._replica.core.status()
        self._repairing = status.repair
        self.record("replica_started", incarnation=incarnation, last_index=status.last_index, damage=damage)

    def heard(self, messages: Sequence[tuple[Envelope, Any]], now: Nanoseconds) -> None:
        """Messages of peers came in: does the leader speak, or does anybody answer this one?"""
        leader = self._replica.core.leader
        if leader == self._me or any(envelope.sender == leader for envelope, _ in messages):
            self._heard = now

    def exited(self, peer: ReplicaId, now: Nanoseconds) -> None:
        self._exited[peer] = now
        self.record("peer_exited", peer=self._name(peer))

    def look(self, now: Nanoseconds, completion: Completion) -> None:
        """After a turn. Cheap as long as nothing has changed."""
        core = self._replica.core
        if self._seen != (core.term, core.leader):
            self._turn_over(now)
        if self._taking_over is not None and self._replica.applied_term == core.term:
            times = {"without_service_ms": self._began, "since_exit_ms": self._exit_noticed}
            measured = {name: round((now - begin) / MS, 1) for name, begin in times.items() if begin is not None}
            self.record("leader", **self._taking_over, **measured)
            self._taking_over, self._heard = None, now
        if self._replica.configuration is not self._configuration:
            self._meet_members()
        if completion.syncs != self._syncs:
            self._syncs = completion.syncs
            if completion.last_sync_ns >= SLOW_SYNC and now >= self._slow_at:
                self._slow_at = now + SLOW_SYNC_PAUSE
                self.record("slow_sync", ms=completion.last_sync_ns // MS)
        if self._repairing and not core.status().repair:
            self._repairing = False
            self.record("repaired")

    def _turn_over(self, now: Nanoseconds) -> None:
        """The term or the leader has changed."""
        core = self._replica.core
        (term, leader), self._seen = self._seen, (core.term, core.leader)
        if leader == self._me and core.leader != self._me:
            self.record("stepped_down", term=term)
        if core.leader == self._me:
            previous = self._leader
            self._taking_over = {
                "term": core.term,
                "previous": self._name(previous) if previous else None,
            }
            self._began = self._heard if previous else None
            self._exit_noticed = self._exited.get(previous)
        else:
            self._taking_over = None
            if core.term > term and core.status().role == "candidate":
                self.record("election", term=core.term)
        if core.leader:
            if core.leader != self._me:
                self._heard = now  # the message that told who leads was one of it
            self._leader = core.leader
            self._exited.clear()

    def _meet_members(self) -> None:
        before, self._configuration = self._configuration, self._replica.configuration
        after = self._configuration
        if self._replica.core.is_leader and (before.voters, before.learners) != (after.voters, after.learners):
            voters = [self._name(replica) for replica in after.voters]
            self.record("membership", voters=voters, learners=[self._name(replica) for replica in after.learners])

    def _name(self, replica: ReplicaId) -> str:
        return self._name_of(replica) or f"replica {replica}"
