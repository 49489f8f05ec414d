"""What a replica tells of elections: who leads after whom, and how long nobody served."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from zcluster.events import EventLog
from zcluster.node.chronicle import Chronicle
from zcluster.node.replica import Replica
from zcluster.storage.writer import Completion
from zcluster.transport.peers import Envelope
from zcluster.types import MS, Configuration, ReplicaId


@dataclass
class Core:
    term: int = 1
    leader: int = 0
    role: str = "follower"
    repair: bool = False

    @property
    def is_leader(self) -> bool:
        return self.leader == 2

    def status(self) -> Any:
        return SimpleNamespace(role=self.role, last_index=7, repair=self.repair)


@dataclass
class Told:
    """Node n2 (replica 2) with a core that the test turns; what it tells is kept."""

    core: Core = field(default_factory=Core)
    events: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.replica = SimpleNamespace(core=self.core, applied_term=1, configuration=Configuration())
        log = SimpleNamespace(record=lambda event, node, **facts: self.events.append({"event": event, **facts}))
        replica = cast(Replica, self.replica)
        self.chronicle = Chronicle(cast(EventLog, log), "n2", ReplicaId(2), replica, lambda r: f"n{r}")

    def hear(self, sender: int, ms: int) -> None:
        self.chronicle.heard([(cast(Envelope, SimpleNamespace(sender=sender)), None)], ms * MS)

    def turn(self, ms: int, completion: Completion | None = None, **changes: Any) -> list[dict[str, Any]]:
        """Returns: what is new."""
        for name, value in changes.items():
            setattr(self.replica if name in ("applied_term", "configuration") else self.core, name, value)
        before = len(self.events)
        self.chronicle.look(ms * MS, completion or Completion())
        return self.events[before:]


@pytest.fixture
def told() -> Told:
    made = Told()
    made.turn(0, leader=1)
    made.hear(1, 100)
    return made


def test_time_without_service_runs_from_the_last_word_of_the_old_leader_to_the_first_entry_applied(told: Told) -> None:
    told.hear(3, 120)  # not the leader
    told.chronicle.exited(ReplicaId(1), 110 * MS)
    assert told.events[-1] == {"event": "peer_exited", "peer": "n1"}
    assert told.turn(112, term=2, leader=0, role="candidate") == [{"event": "election", "term": 2}]
    assert told.turn(115, leader=2, role="leader") == []
    assert told.turn(118, applied_term=2) == [
        {"event": "leader", "term": 2, "previous": "n1", "without_service_ms": 18.0, "since_exit_ms": 8.0}
    ]
    assert told.turn(119) == []


def test_a_leader_that_said_nothing_but_that_it_leads_was_heard_then() -> None:
    told = Told()
    told.turn(50, leader=1)
    (event,) = told.turn(70, term=2, leader=2, applied_term=2)
    assert event["without_service_ms"] == 20.0


def test_a_leader_that_was_only_silent_is_not_said_to_have_exited(told: Told) -> None:
    told.turn(700, term=2, leader=0, role="candidate")
    (event,) = told.turn(705, leader=2, applied_term=2)
    assert event == {"event": "leader", "term": 2, "previous": "n1", "without_service_ms": 605.0}


def test_the_first_leader_measures_nothing() -> None:
    told = Told()
    assert told.turn(5, leader=2, applied_term=1) == [{"event": "leader", "term": 1, "previous": None}]


def test_who_only_follows_tells_of_no_leader_and_of_no_election(told: Told) -> None:
    assert told.turn(200, term=2, leader=0) == []
    assert told.turn(205, leader=3) == []


def test_a_leader_that_lost_its_followers_leads_again_after_itself(told: Told) -> None:
    told.turn(200, term=2, leader=2, applied_term=2)
    told.hear(3, 300)
    assert told.turn(900, leader=0) == [{"event": "stepped_down", "term": 2}]
    told.turn(1000, term=3, role="candidate")
    (event,) = told.turn(1010, leader=2, applied_term=3)
    assert (event["previous"], event["without_service_ms"]) == ("n2", 710.0)


def test_only_the_leader_tells_of_members(told: Told) -> None:
    one = Configuration(voters=(ReplicaId(1), ReplicaId(2)), learners=(ReplicaId(3),))
    assert told.turn(200, configuration=one) == []
    told.turn(300, term=2, leader=2, applied_term=2)
    two = Configuration(voters=(ReplicaId(1), ReplicaId(2), ReplicaId(3)))
    assert told.turn(400, configuration=two) == [{"event": "membership", "voters": ["n1", "n2", "n3"], "learners": []}]


def test_slow_syncs_are_told_at_most_once_a_second(told: Told) -> None:
    def sync(count: int, ms: int) -> Completion:
        return Completion(syncs=count, last_sync_ns=ms * MS)

    assert told.turn(2000, sync(1, 99)) == []
    assert told.turn(2001, sync(2, 250)) == [{"event": "slow_sync", "ms": 250}]
    assert told.turn(2002, sync(2, 250)) == []
    assert told.turn(2500, sync(3, 300)) == []
    assert told.turn(3100, sync(4, 300)) == [{"event": "slow_sync", "ms": 300}]


def test_a_repair_is_told_when_it_is_done(told: Told) -> None:
    told.core.repair = True
    told.chronicle.started(4, "segment 3 at 17")
    assert told.events[-1] == {
        "event": "replica_started",
        "incarnation": 4,
        "last_index": 7,
        "damage": "segment 3 at 17",
    }
    assert told.turn(10) == []
    assert told.turn(20, repair=False) == [{"event": "repaired"}]
