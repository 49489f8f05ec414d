"""Handles on a cluster's parts: a node, and one run of a worker or router process.

They hold names, not state: what may change is asked afresh. What they do, the supervisor does for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from zcluster.launch import process as system

if TYPE_CHECKING:
    from zcluster.launch.cluster import Cluster


class ProcessHandle:
    """One run of a worker or router process."""

    def __init__(self, cluster: Cluster, identity: system.Identity) -> None:
        self._cluster = cluster
        self._identity = identity
        self.name = identity.name
        self.pid = identity.pid

    @property
    def alive(self) -> bool:
        return system.living(self._identity) is not None

    def kill(self) -> None:
        """SIGKILL to its group; returns when it is dead. It is restarted at once. Does nothing to a dead one."""
        self._cluster.control.call("kill", targets=[self.name], pid=self.pid)

    def pause(self) -> None:
        """SIGSTOP to its group."""
        self._cluster.control.call("pause", targets=[self.name])

    def resume(self) -> None:
        """SIGCONT to its group."""
        self._cluster.control.call("resume", targets=[self.name])

    def __repr__(self) -> str:
        return f"<{self._identity.kind} {self.name} pid {self.pid}{'' if self.alive else ' (dead)'}>"


class Node:
    """One machine in miniature: a replica and its workers, which live, stop and die together."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self.name = name

    @property
    def replica_id(self) -> int:
        """Another one after `wipe`. Raises: InvalidInput (there is no such node any more)."""
        return self._cluster.spec.replica_id(self.name)

    @property
    def pid(self) -> int | None:
        """Of the replica; None when it is dead."""
        identity = self._cluster.identity(self.name)
        return identity.pid if identity is not None else None

    @property
    def alive(self) -> bool:
        return self.pid is not None

    @property
    def paused(self) -> bool:
        identity = self._cluster.identity(self.name)
        stat = system.living(identity) if identity is not None else None
        return stat is not None and stat.paused

    @property
    def workers(self) -> list[ProcessHandle]:
        """Its running workers."""
        mine = set(self._cluster.spec.worker_names(self.name))
        return [w for w in self._cluster.workers if w.name in mine]

    def kill(self, signal_name: str = "SIGKILL") -> None:
        """Send the signal before anything else; return when its processes are dead. It stays down until `start`.

        Does nothing to a dead node. Signals that do not end a process (SIGHUP, ...) are only sent.
        """
        self._cluster.kill(self.name, signal_name)

    def start(self) -> None:
        """Return when its processes run; never waits for a quorum. Does nothing to a running node."""
        self._cluster.start(self.name)

    def stop(self, timeout: float = 10.0) -> None:
        """Stop it cleanly (SIGKILL after `timeout` seconds). It stays down until `start`."""
        self._cluster.stop(self.name, timeout=timeout)

    def wipe(self, timeout: float = 60.0) -> None:
        """Empty its disk, and do what a lost disk needs; only while it is down. It stays down until `start`.

        First the others agree that its replica is no member any more, so nothing is erased where a majority might miss
        it. Its successor has the name and another replica id; once started it gets everything from the others, and
        votes when it has it. Raises: Conflict (it runs, or another change does), NoQuorum, Timeout.
        """
        self._cluster.wipe(self.name, timeout=timeout)

    def restart(self, timeout: float = 10.0) -> None:
        self._cluster.control.call("restart", targets=[self.name], timeout_s=timeout, timeout=timeout + 10)

    def pause(self) -> None:
        """Freeze its processes (SIGSTOP). Does nothing to a dead node."""
        self._cluster.pause(self.name)

    def resume(self) -> None:
        self._cluster.resume(self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and (self.name, self._cluster) == (other.name, other._cluster)

    def __hash__(self) -> int:
        return hash((self.name, self._cluster))

    def __repr__(self) -> str:
        pid = self.pid
        return f"<node {self.name} {f'pid {pid}' if pid is not None else 'down'}>"


class Nodes(Mapping[str, Node]):
    """The nodes by name, in order of their numbers."""

    def __init__(self, cluster: Cluster) -> None:
        self._nodes = {n.name: Node(cluster, n.name) for n in cluster.spec.nodes}

    def __getitem__(self, name: str) -> Node:
        try:
            return self._nodes[name]
        except KeyError:
            raise KeyError(f"no node {name!r}; there are {', '.join(self._nodes)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def __repr__(self) -> str:
        return f"<nodes {', '.join(map(repr, self._nodes.values()))}>"
