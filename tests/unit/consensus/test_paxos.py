"""One Paxos core under a microscope, and small networks: each test is a promise of the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest

from tests.unit.consensus.network import Network
from tests.unit.consensus.paxos_network import paxos_network
from tests.unit.consensus.solo import Solo
from zcluster.consensus import ballots
from zcluster.consensus import membership as members
from zcluster.consensus.api import (
    ADD_LEARNER,
    PROMOTE,
    REMOVE,
    Accept,
    Accepted,
    ConfigChange,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Prepare,
    Promised,
    Rejected,
    Settings,
    TimeoutNow,
    TrialPrepare,
    TrialPromise,
)
from zcluster.consensus.paxos import Paxos
from zcluster.errors import Busy, NotLeader
from zcluster.types import KIND_CONFIG, KIND_NOOP, MS, Configuration, Entry, SnapshotMeta

TIMEOUT = Settings().election_timeout


def ballot(number: int, proposer: int) -> int:
    return ballots.ballot(number, proposer)


def value(slot: int, number: int, proposer: int, data: bytes = b"x", kind: int = 0) -> Entry:
    return Entry(slot, ballot(number, proposer), kind, data)


class SoloPaxos(Solo):
    core_class = Paxos

    def __init__(
        self, replica_id: int = 1, voters: Sequence[int] = (1, 2, 3), *, term: int = 0, **options: Any
    ) -> None:
        options["voted_for"] = ballots.proposer_of(term)
        super().__init__(replica_id, voters, term=term, **options)

    def prepare(self) -> int:
        """Phase 1 has begun; nobody has promised anything yet. Returns the ballot."""
        self.time_out()
        for other in self.others():
            if self.core.role == "pre_candidate":
                self.step(other, TrialPromise(self.core._next_ballot(), True, 0))
        assert self.core.role == "candidate"
        return int(self.core.term)

    def promised(self, sender: int, *accepted: Entry, first: int = 0, **fields: Any) -> None:
        first = first or self.core.preparation.first
        self.step(sender, Promised(self.core.term, True, self.core.term, first, accepted, **fields))

    def become_leader(self) -> None:
        self.prepare()
        for other in self.others():
            if self.core.preparation is not None:
                self.promised(other)
        assert self.core.is_leader

    def accepted(self, sender: int, through: int | None = None, **fields: Any) -> None:
        through = self.core.log.last_index if through is None else through
        self.step(sender, Accepted(self.core.term, through, **fields))

    def lead(self) -> None:
        self.become_leader()
        for other in self.others():
            self.accepted(other)
        assert self.core.commit_index == self.core.log.last_index

    def values(self) -> list[tuple[int, bytes]]:
        return [(entry.kind, entry.data) for entry in self.core.log.held_after(self.core.log.base_index)]


# -- phase 1 ----------------------------------------------------------------------------------------------------------


def test_the_value_of_the_highest_ballot_is_proposed_again() -> None:
    solo = SoloPaxos(term=ballot(4, 1), log=[value(1, 2, 1, b"older")], voters=(1, 2, 3, 4, 5))
    solo.prepare()
    solo.promised(2, value(1, 1, 2, b"oldest"))
    solo.promised(3, value(1, 3, 3, b"newest"))
    request = solo.last(Accept, 4)
    assert request.first == 1
    assert [(e.index, e.epoch, e.data) for e in request.entries[:1]] == [(1, solo.core.term, b"newest")]


def test_gaps_are_filled_with_no_ops_and_everything_is_applied_in_order() -> None:
    """The proposer died with slots 5 and 7 accepted."""
    solo = SoloPaxos(term=ballot(1, 2), log=[value(i, 1, 2, b"%d" % i) for i in (1, 2, 3, 4)], chosen=4)
    solo.prepare()
    solo.promised(2, value(5, 1, 2, b"5"), value(7, 1, 2, b"7"))
    request = solo.last(Accept, 3)
    assert [(e.index, e.kind, e.data) for e in request.entries] == [
        (5, 0, b"5"),
        (6, KIND_NOOP, b""),
        (7, 0, b"7"),
        (8, KIND_NOOP, b""),
    ]
    solo.accepted(3)
    assert [entry.index for entry in solo.committed] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_phase_1_begins_at_the_first_slot_that_is_not_known_to_be_chosen() -> None:
    solo = SoloPaxos(term=ballot(1, 2), log=[value(i, 1, 2) for i in (1, 2, 3, 4)], chosen=3)
    solo.prepare()
    request = solo.last(Prepare)
    assert (request.first, request.held_index, request.held_ballot) == (4, 4, ballot(1, 2))


def test_prepare_waits_for_the_own_ballot_on_disk() -> None:
    solo = SoloPaxos(auto=False)
    solo.prepare()
    assert not solo.said(Prepare)
    solo.persist()
    assert solo.said(Prepare) == 2


def test_a_promise_waits_for_the_disk_and_so_does_an_acceptance() -> None:
    solo = SoloPaxos(auto=False)
    solo.step(2, Prepare(ballot(1, 2), 1))
    assert not solo.said(Promised)
    solo.persist()
    assert solo.last(Promised).granted
    solo.step(2, Accept(ballot(1, 2), 1, 0, (value(1, 1, 2),)))
    assert not solo.said(Accepted)
    solo.persist()
    assert solo.last(Accepted).through == 1


def test_a_restarted_acceptor_keeps_its_promise() -> None:
    solo = SoloPaxos(term=ballot(3, 2))
    solo.step(3, Prepare(ballot(2, 3), 1))
    refusal = solo.last(Promised)
    assert not refusal.granted and refusal.promised == ballot(3, 2)
    solo.step(3, Accept(ballot(2, 3), 1, 0, (value(1, 2, 3),)))
    assert solo.last(Rejected).term == ballot(3, 2)
    assert solo.values() == []


def test_nobody_takes_the_ballot_of_another() -> None:
    solo = SoloPaxos()
    solo.step(3, Prepare(ballot(1, 2), 1))
    solo.step(3, Accept(ballot(1, 2), 1, 0, (value(1, 1, 2),)))
    assert not solo.core.term and not solo.values()


def test_a_report_is_cut_to_the_size_of_a_batch_and_asked_for_again() -> None:
    acceptor = SoloPaxos(
        2, term=ballot(1, 3), log=[value(i, 1, 3, b"x" * 60) for i in (1, 2, 3)], settings=Settings(batch_bytes_max=100)
    )
    acceptor.step(1, Prepare(ballot(2, 1), 1))
    report = acceptor.last(Promised)
    assert [e.index for e in report.entries] == [1] and report.more_from == 2
    proposer = SoloPaxos(term=ballot(1, 3))
    assert proposer.prepare() == ballot(2, 1)
    proposer.step(2, report)
    assert not proposer.core.is_leader
    request = proposer.last(Prepare, 2)
    assert request.first == 2
    acceptor.step(1, request)
    proposer.step(2, acceptor.last(Promised))
    acceptor.step(1, proposer.last(Prepare, 2))
    proposer.step(2, acceptor.last(Promised))
    assert proposer.core.is_leader and proposer.core.log.last_index == 4


def test_what_the_proposer_holds_is_not_told_again() -> None:
    acceptor = SoloPaxos(2, term=ballot(2, 3), log=[value(1, 1, 3), value(2, 2, 3), value(3, 1, 3)])
    acceptor.step(1, Prepare(ballot(3, 1), 1, 2, ballot(1, 3)))
    assert [e.index for e in acceptor.last(Promised).entries] == [2, 3]


def test_promises_for_another_ballot_or_doubled_ones_do_not_count() -> None:
    solo = SoloPaxos(voters=(1, 2, 3, 4, 5))
    term = solo.prepare()
    solo.promised(2)
    solo.promised(2)
    solo.step(3, Promised(term - 1, True, term - 1, 1))
    assert not solo.core.is_leader
    solo.promised(3)
    assert solo.core.is_leader


def test_a_candidate_that_lacks_what_is_forgotten_is_refused_and_sent_the_checkpoint() -> None:
    meta = SnapshotMeta(9, ballot(1, 3), Configuration((1, 2, 3)))
    acceptor = SoloPaxos(2, term=ballot(1, 3), snapshot=meta)
    acceptor.step(1, TrialPrepare(ballot(2, 1), 5, 5))
    assert not acceptor.last(TrialPromise).granted
    assert acceptor.last(InstallSnapshot).meta == meta
    acceptor.step(1, Prepare(ballot(2, 1), 6))
    assert not acceptor.last(Promised).granted
    assert acceptor.said(InstallSnapshot) == 1, "one transfer at a time"
    candidate = SoloPaxos(1, term=ballot(1, 3))
    candidate.step(2, InstallSnapshot(ballot(1, 3), meta))
    assert candidate.core.commit_index == 9
    acceptor.step(1, TrialPrepare(ballot(2, 1), 9, 9))
    assert acceptor.last(TrialPromise).granted


def test_a_damaged_acceptor_promises_nothing() -> None:
    solo = SoloPaxos(repair=True, term=ballot(1, 2))
    solo.step(2, TrialPrepare(ballot(2, 2), 9, 9))
    solo.step(2, Prepare(ballot(2, 2), 9))
    assert not solo.last(TrialPromise).granted and not solo.last(Promised).granted


def test_one_suspect_acceptor_and_phase_1_needs_everybody() -> None:
    solo = SoloPaxos()
    solo.prepare()
    solo.promised(2, suspect=True)
    assert not solo.core.is_leader
    solo.promised(3)
    assert solo.core.is_leader


def test_a_suspect_acceptor_is_sound_once_it_has_all_that_a_later_phase_1_found() -> None:
    solo = SoloPaxos(term=ballot(1, 2), suspect_after=ballot(1, 2))
    term = ballot(2, 3)
    solo.step(3, Accept(term, 1, 0, (value(1, 2, 3),), opening=3))
    solo.step(3, Prepare(term, 1))
    assert solo.last(Promised).suspect and not any(write.sound for write in solo.writes)
    solo.step(3, Accept(term, 2, 0, (value(2, 2, 3), value(3, 2, 3)), opening=3))
    solo.step(3, Prepare(term, 1))
    assert not solo.last(Promised).suspect and solo.writes[-1].sound


# -- phase 2 ----------------------------------------------------------------------------------------------------------


def test_slots_are_chosen_out_of_order_and_applied_in_order() -> None:
    solo = SoloPaxos(voters=(1, 2, 3, 4, 5))
    solo.lead()
    first = solo.propose(b"a")
    second = solo.propose(b"b")
    before = len(solo.committed)
    for sender in (2, 3):
        solo.accepted(sender, first - 1, first=second, last=second, missing=True)
    assert solo.core.commit_index == first - 1 and len(solo.committed) == before
    for sender in (4, 5):
        solo.accepted(sender, first)
    assert solo.core.commit_index == second
    assert [entry.data for entry in solo.committed[before:]] == [b"a", b"b"]


def test_an_acceptor_with_a_gap_says_so_and_gets_what_it_lacks() -> None:
    acceptor = SoloPaxos(2)
    term = ballot(1, 1)
    acceptor.step(1, Accept(term, 1, 0, (value(1, 1, 1),)))
    acceptor.step(1, Accept(term, 3, 0, (value(3, 1, 1),)))
    reply = acceptor.last(Accepted)
    assert (reply.through, reply.first, reply.last, reply.missing) == (1, 3, 3, True)
    solo = SoloPaxos()
    solo.lead()
    solo.propose(b"a")
    solo.propose(b"b")
    assert solo.core.log.last_index == 3
    solo.take()
    solo.step(2, reply)
    assert solo.last(Accept, 2).first == 2
    acceptor.step(1, Accept(term, 2, 0, (value(2, 1, 1),)))
    assert acceptor.last(Accepted).through == 3


def test_an_acceptor_commits_only_what_it_holds_under_the_ballot_in_force() -> None:
    """What it accepted under an older ballot need not be what was chosen."""
    solo = SoloPaxos(2, term=ballot(1, 3), log=[value(1, 1, 3, b"never chosen")])
    term = ballot(2, 1)
    solo.step(1, Heartbeat(term, 1, 1))
    solo.step(1, Accept(term, 2, 1))
    assert solo.core.commit_index == 0
    solo.step(1, Accept(term, 1, 1, (Entry(1, term, 0, b"chosen"),)))
    assert [entry.data for entry in solo.committed] == [b"chosen"]


def test_what_is_known_to_be_chosen_is_acknowledged_and_not_written_again() -> None:
    solo = SoloPaxos(2, term=ballot(1, 3), log=[value(1, 1, 3)], chosen=1)
    solo.step(1, Accept(ballot(2, 1), 1, 0, (value(1, 2, 1), value(2, 2, 1, b"y"))))
    assert solo.last(Accepted).through == 2
    assert [entry.index for entry in solo.writes[-1].entries] == [2]


def test_the_proposer_counts_its_own_acceptance_when_it_is_on_disk() -> None:
    solo = SoloPaxos()
    solo.lead()
    solo.auto = False
    index = solo.propose()
    solo.accepted(2)
    assert solo.core.commit_index == index - 1
    solo.persist()
    assert solo.core.commit_index == index


def test_chosen_slots_are_sent_to_a_straggler_under_the_present_ballot() -> None:
    solo = SoloPaxos(term=ballot(1, 2), log=[value(1, 1, 2, b"a"), value(2, 1, 2, b"b")], chosen=2)
    solo.become_leader()
    solo.accepted(2)
    solo.take()
    solo.accepted(3, 0, first=3, last=3, missing=True)
    sent = [m for to, m in solo.sent if isinstance(m, Accept) and to == 3 and m.first == 1]
    assert sent and {entry.epoch for entry in sent[-1].entries} == {solo.core.term}


def test_a_checkpoint_keeps_what_was_accepted_behind_it() -> None:
    """A store that finds another ballot at its index drops the rest; so the rest is in the same write."""
    log = [value(i, 1, 2, b"%d" % i) for i in (1, 2, 3, 5)]
    solo = SoloPaxos(term=ballot(1, 2), log=log)
    solo.step(3, InstallSnapshot(ballot(2, 3), SnapshotMeta(2, ballot(2, 3), Configuration((1, 2, 3)))))
    write = next(write for write in solo.writes if write.snapshot is not None)
    assert [entry.index for entry in write.entries] == [3, 5]
    assert solo.core.log.base_index == 2 and solo.core.log.get(5) == log[3]


def test_a_higher_ballot_ends_the_proposer_and_the_next_one_outbids_it() -> None:
    solo = SoloPaxos()
    solo.lead()
    solo.step(2, Rejected(ballot(7, 2)))
    assert not solo.core.is_leader
    assert solo.prepare() == ballot(8, 1)


# -- leases, reads, hand-over -----------------------------------------------------------------------------------------


def test_while_a_promise_to_the_proposer_holds_others_are_refused() -> None:
    solo = SoloPaxos(3)
    solo.follow(1, ballot(1, 1))
    solo.step(2, TrialPrepare(ballot(2, 2), 9, 9))
    solo.step(2, Prepare(ballot(2, 2), 1))
    assert not solo.last(TrialPromise).granted and not solo.last(Promised).granted
    assert solo.core.term == ballot(1, 1), "not even the ballot is taken over"
    solo.core.peer_lost(1, 1, solo.now)
    solo.step(2, Prepare(ballot(2, 2), 1))
    assert solo.last(Promised).granted


def test_the_proposer_itself_may_outbid_its_own_ballot() -> None:
    solo = SoloPaxos(3)
    solo.follow(1, ballot(1, 1))
    solo.step(1, Prepare(ballot(2, 1), 1))
    assert solo.last(Promised).granted


def test_a_transfer_passes_only_the_lease_of_the_proposer_that_asked_for_it() -> None:
    solo = SoloPaxos(3)
    solo.follow(1, ballot(2, 1))
    solo.step(2, Prepare(ballot(3, 2), 1, transfer=ballot(1, 1)))
    assert not solo.last(Promised).granted, "the word of an older proposer"
    solo.step(2, Prepare(ballot(3, 2), 1, transfer=ballot(2, 1)))
    assert solo.last(Promised).granted


def test_timeout_now_begins_phase_1_at_once() -> None:
    solo = SoloPaxos(2)
    solo.follow(1, ballot(1, 1))
    solo.step(1, TimeoutNow(ballot(1, 1)))
    assert solo.last(Prepare).transfer == ballot(1, 1)


def test_reads_wait_until_what_phase_1_found_is_chosen() -> None:
    solo = SoloPaxos(term=ballot(1, 2))
    solo.prepare()
    solo.promised(2, value(1, 1, 2))
    solo.core.read_barrier(7, solo.now)
    solo.pump()
    solo.step(2, HeartbeatReply(solo.core.term, solo.core.leadership.rounds.latest))
    assert solo.reads == {}
    solo.accepted(2)
    solo.step(2, HeartbeatReply(solo.core.term, solo.core.leadership.rounds.latest))
    assert solo.reads == {7: 2}


def test_with_a_certificate_the_first_survivor_prepares_at_once_and_the_next_one_asks_before() -> None:
    for replica, said in ((2, Prepare), (3, TrialPrepare)):
        solo = SoloPaxos(replica)
        solo.follow(1, ballot(1, 1))
        solo.core.peer_lost(1, 1, solo.now)
        solo.take()
        solo.time_out()
        assert solo.said(said)


def test_two_proposers_that_outbid_each_other_come_to_an_end() -> None:
    network = paxos_network(3, bootstrap=False, seed=3)
    for node in (1, 2):
        network.core(node).election_at = network.now
        network.turn(network.nodes[node])
    network.elect()
    assert network.commit(b"a")


def test_a_survivor_takes_over_with_one_phase_1_by_proof_of_death() -> None:
    network = paxos_network(3, pidfds=True)
    leader = network.elect()
    network.commit(b"a")
    said: list[type] = []
    network.drop = lambda _, __, message: said.append(type(message)) or False
    network.crash(leader)
    network.elect()
    assert TrialPrepare not in said and said.count(Prepare) == 2


# -- members ----------------------------------------------------------------------------------------------------------


def test_nothing_is_proposed_behind_a_change_before_it_is_chosen() -> None:
    solo = SoloPaxos()
    solo.lead()
    index = solo.core.propose_config(ConfigChange(ADD_LEARNER, 4), solo.now)
    solo.pump()
    with pytest.raises(Busy):
        solo.core.propose(b"x", solo.now)
    with pytest.raises(Busy):
        solo.core.propose_config(ConfigChange(REMOVE, 3), solo.now)
    assert solo.core.membership.current.learners == ()
    solo.accepted(2, index)
    assert solo.core.membership.current.learners == (4,)
    solo.core.propose(b"x", solo.now)


def test_a_change_is_proposed_when_everything_before_it_is_chosen() -> None:
    """Else a later proposer that does not see this one may put its own change before it. Found then, this one would
    undo that."""
    solo = SoloPaxos()
    solo.lead()
    index, _ = solo.core.propose(b"x", solo.now)
    assert solo.core.propose_config(ConfigChange(ADD_LEARNER, 4), solo.now) == index + 1
    solo.pump()
    assert solo.core.log.last_index == index
    with pytest.raises(Busy):
        solo.core.propose(b"y", solo.now)
    solo.accepted(2, index)
    assert solo.last(Accept, 2).entries[-1].kind == KIND_CONFIG
    assert solo.core.log.last_index == index + 1
    solo.accepted(2, index + 1)
    assert solo.core.membership.current.learners == (4,)


def test_a_change_is_told_to_nobody_before_the_new_configuration_knows_it() -> None:
    solo = SoloPaxos(voters=(1, 2))
    solo.lead()
    index = solo.core.propose_config(ConfigChange(REMOVE, 1), solo.now)
    solo.pump()
    solo.accepted(2, index)
    assert solo.core.commit_index == index and solo.core.is_leader
    assert solo.committed[-1].index == index - 1
    solo.accepted(2, index + 1)
    assert solo.committed[-1].index == index + 1
    assert not solo.core.is_leader, "it retires only now"


def test_a_change_that_phase_1_finds_stops_it_and_phase_1_is_done_again_behind_it() -> None:
    solo = SoloPaxos(term=ballot(1, 2))
    solo.prepare()
    after = members.encode(Configuration((1, 2, 3, 4)))
    solo.promised(2, value(1, 1, 2, after, KIND_CONFIG), value(2, 1, 2, b"decided by others"))
    assert solo.core.is_leader and not solo.core.leadership.opening
    assert [entry.index for entry in solo.last(Accept, 3).entries] == [1]
    with pytest.raises(Busy):
        solo.core.propose(b"x", solo.now)
    solo.accepted(3, 1)
    assert solo.core.membership.current.voters == (1, 2, 3, 4)
    assert solo.last(Prepare, 4).first == 2
    solo.promised(4, value(2, 1, 2, b"decided by others"), first=2)
    assert not solo.core.leadership.opening, "two of four are no quorum of promises"
    solo.promised(3, first=2)
    assert solo.core.leadership.opening == 3
    assert solo.last(Accept, 3).entries[-1].index == 3


def test_a_learner_that_lags_is_not_promoted() -> None:
    solo = SoloPaxos(configuration=Configuration((1, 2, 3), (4,)))
    solo.lead()
    with pytest.raises(Busy, match="does not answer yet"):
        solo.core.propose_config(ConfigChange(PROMOTE, 4), solo.now)
    solo.accepted(4)
    for _ in range(9):
        solo.core.propose(bytes(500_000), solo.now)
        solo.pump()
        solo.accepted(2)
    with pytest.raises(Busy, match="9 entries behind"):
        solo.core.propose_config(ConfigChange(PROMOTE, 4), solo.now)
    solo.accepted(4, 2)
    assert solo.core.propose_config(ConfigChange(PROMOTE, 4), solo.now) == 11


def test_no_change_leaves_voters_of_whom_no_majority_answers() -> None:
    """Of voters 1 and 3 with 3 dead nobody could ever seal it, nor decide on anything behind it."""
    solo = SoloPaxos()
    solo.lead()
    solo.now += TIMEOUT
    solo.accepted(2)
    with pytest.raises(Busy, match=r"\[3\] do not answer"):
        solo.core.propose_config(ConfigChange(REMOVE, 2), solo.now)
    assert solo.core.propose_config(ConfigChange(REMOVE, 3), solo.now) == 2


def test_a_small_accept_quorum_is_not_enough_to_change_members() -> None:
    """Two of four decide, but two alone elect nobody."""
    solo = SoloPaxos(voters=(1, 2, 3, 4, 5), settings=Settings(accept_quorum=2))
    solo.lead()
    solo.now += TIMEOUT
    solo.accepted(2)
    with pytest.raises(Busy, match=r"\[4, 5\] do not answer"):
        solo.core.propose_config(ConfigChange(REMOVE, 3), solo.now)


def propose_when_prudent(network: Network, change: ConfigChange) -> int:
    """At the leader, as soon as it agrees. Returns: the slot."""
    found: list[int] = []
    leader = network.leader()

    def proposed() -> bool:
        with suppress(Busy):
            found.append(network.core(leader).propose_config(change, network.now))
            network.pump(network.nodes[leader])
        return bool(found)

    network.run_until(proposed)
    return found[0]


def test_no_change_leaves_a_quorum_of_silent_acceptors() -> None:
    """As with Raft: of 1 2 3 4 with 1 and 2 dead nothing could be chosen, and the service would stop."""
    network = paxos_network(5)
    leader = network.elect()
    assert network.commit(b"a")
    dead = [replica for replica in network.nodes if replica != leader][:2]
    going = next(replica for replica in network.nodes if replica not in (leader, *dead))
    for replica in dead:
        network.crash(replica)
    until = network.now + 3 * TIMEOUT
    while network.run_once(until):
        pass
    core = network.core(leader)
    with pytest.raises(Busy, match="do not answer; start them first"):
        core.propose_config(ConfigChange(REMOVE, going), network.now)
    assert core.propose_config(ConfigChange(REMOVE, dead[0]), network.now), "a dead one may go"


def test_a_learner_that_is_not_there_is_not_promoted() -> None:
    network = paxos_network(3)
    network.elect()
    network.commit(b"a")
    index = propose_when_prudent(network, ConfigChange(ADD_LEARNER, 4))
    network.run_until(lambda: network.nodes[network.leader()].applied_index >= index)
    with pytest.raises(Busy, match="replica 4 does not answer yet"):
        network.core(network.leader()).propose_config(ConfigChange(PROMOTE, 4), network.now)


def test_members_come_and_go() -> None:
    network = paxos_network(3)
    network.elect()
    network.commit(b"a")
    network.add(4)
    for change in (ConfigChange(ADD_LEARNER, 4), ConfigChange(PROMOTE, 4), ConfigChange(REMOVE, network.leader())):
        leader = network.leader()
        index = propose_when_prudent(network, change)
        network.run_until(lambda at=leader, i=index: network.nodes[at].applied_index >= i)  # type: ignore[misc]
        network.run(TIMEOUT)
        network.elect()
    assert len(network.core(network.leader()).membership.current.voters) == 3
    assert network.commit(b"b")


def test_a_single_voter_that_is_left_knows_it_after_a_restart() -> None:
    network = paxos_network(2)
    leader = network.elect()
    other = 3 - leader
    core = network.core(leader)
    index = core.propose_config(ConfigChange(REMOVE, other), network.now)
    network.pump(network.nodes[leader])
    network.run_until(lambda: network.nodes[leader].applied_index >= index)
    network.crash(other)
    network.crash(leader)
    network.start(leader)
    network.elect()
    assert network.commit(b"alone")


# -- flexible quorums -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", range(7))
@pytest.mark.parametrize("voters", range(1, 8))
def test_every_phase_1_shares_an_acceptor_with_every_accept_quorum(voters: int, setting: int) -> None:
    assert ballots.prepare_quorum(voters, setting) + ballots.accept_quorum(voters, setting) > voters
    assert 1 <= ballots.prepare_quorum(voters, setting) <= voters


def test_with_an_accept_quorum_of_two_in_five_phase_1_takes_four_and_so_does_what_confirms_a_lease() -> None:
    solo = SoloPaxos(voters=(1, 2, 3, 4, 5), settings=Settings(accept_quorum=2))
    solo.prepare()
    solo.promised(2)
    solo.promised(3)
    assert not solo.core.is_leader
    solo.promised(4)
    assert solo.core.is_leader
    solo.accepted(5)
    assert solo.core.commit_index == 1
    solo.core.read_barrier(1, solo.now)
    solo.pump()
    solo.step(2, HeartbeatReply(solo.core.term, solo.core.leadership.rounds.latest))
    assert solo.reads == {1: 1}


def test_a_follower_refers_to_the_proposer() -> None:
    solo = SoloPaxos()
    solo.follow(2, ballot(1, 2))
    with pytest.raises(NotLeader):
        solo.core.propose(b"x", solo.now)


def test_a_paused_acceptor_does_not_stand_against_a_living_proposer() -> None:
    network = paxos_network(3)
    leader = network.elect()
    term = network.core(leader).term
    sleeper = next(i for i in network.nodes if i != leader)
    network.pause(sleeper)
    network.run(10 * TIMEOUT)
    network.resume(sleeper)
    network.run(2 * TIMEOUT)
    assert network.leader() == leader and network.core(leader).term == term
    assert network.now > 10 * MS
