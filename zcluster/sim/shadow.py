"""What the checkers remember of one replica, and of one entry."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from zcluster.consensus import invariants
from zcluster.consensus.core import Core
from zcluster.sim.configurations import LogOfMembers
from zcluster.types import Configuration, HardState, Index, ReplicaId, Term, WriteBatch


class Written(NamedTuple):
    """An entry as the first replica wrote it."""

    previous_term: Term | None
    kind: int
    data: bytes


class Applied(NamedTuple):
    """What the first replica to apply an entry did. previous: the index of the frames before these."""

    previous: Index
    log_time_ms: int
    frames: list[bytes]
    results: list[bytes]


class Hashed(Protocol):
    def state_hash(self) -> str: ...


class Shadow:
    """One replica's disk, as far as it has acknowledged; and one life of the replica."""

    __slots__ = (
        "acknowledged",
        "before",
        "committed",
        "core",
        "damaged",
        "hard_state",
        "highest",
        "last_index",
        "log_time_ms",
        "members",
        "pending",
        "repair",
        "said",
        "snapshot_index",
        "suspect_tail",
        "terms",
        "voters",
        "wiped",
    )

    def __init__(self, initial: Configuration) -> None:
        self.members = LogOfMembers(initial)
        self.voters = initial.voters  # in force after the last turn
        self.wiped = False  # its disk is gone, and with it the right to speak
        self.hard_state = HardState()
        self.last_index: Index = 0
        self.highest: Index = 0  # ever acknowledged in this life
        self.snapshot_index: Index = 0
        self.acknowledged: tuple[Term, Index] = (0, 0)  # told to the leader of that term
        self.core: Core | None = None  # while the process runs
        self.repair = False
        self.pending: list[WriteBatch] = []
        self.before: invariants.Summary | None = None
        self.committed: Index = 0
        self.log_time_ms = 0
        self.said: dict[Term, ReplicaId] = {}  # votes of this life, also those on their way to the disk
        self.terms: dict[Index, Term] = {0: 0}  # of the entries as they were handed to the disk in this life
        self.damaged = False  # on purpose
        self.suspect_tail = False  # a power cut in a weak durability mode
