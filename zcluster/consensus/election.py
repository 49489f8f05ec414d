"""Values of elections: the votes, whom a replica has promised its patience, and when it stands itself.

**The promise.** Hearing from a leader promises it one election timeout without a vote for anybody else; the leader's
lease rests on a majority of such promises, counted from its *send* time, so that it ends first. A promise belongs to
one incarnation of one replica. It ends early only with proof that this process has exited (a death certificate). A
restarted replica does not remember to whom it had promised: `hold` stands for that.

**The timing.** Normal timeouts are drawn from [1, 1.5) election timeouts. With a certificate the survivors stand in
rank order a few milliseconds apart. They still ask for pre-votes first: that costs one round trip without any disk,
and keeps a certificate holder from deposing a leader it has not heard of.

**The votes.** A voter whose log may have lost its end in a power cut (weak durability) is *suspect*: it may have
forgotten entries that it once acknowledged, so its vote does not speak for them. See `Votes`.

Does not live here: who may be voted for, terms, messages.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final, Protocol

from zcluster.consensus import quorum
from zcluster.consensus.api import Certificate
from zcluster.types import MS, NO_REPLICA, Nanoseconds, ReplicaId, Term

RANK_STEP: Final[Nanoseconds] = 8 * MS
RANK_JITTER: Final[Nanoseconds] = 4 * MS
HURRIED_PRE_VOTE: Final[Nanoseconds] = 6 * MS
HURRIED_VOTE: Final[Nanoseconds] = 40 * MS
"""Pace of hurried retries, times the number of the attempt: a vote waits for disks, a pre-vote for nobody's."""


class Uniform(Protocol):
    """The one thing needed of a `random.Random`."""

    def random(self) -> float: ...


class Votes:
    """The answers to one (pre-)candidacy; each voter counts once, and its first answer stands.

    One suspect grant, the candidate's own included, and every voter must grant: then the candidate's log holds
    whatever is left on any disk, and nothing that some replica has applied is ever replaced by something else.

    A voter is suspect only towards candidates whose last term is not above every term it had known before the power
    cut. It never acknowledged anything in a higher term, and an entry of a higher term was written by a leader that
    held all that was committed before (§5.4.3), so what the voter has lost does not matter to such a candidate.
    """

    __slots__ = ("_given", "_suspect")

    def __init__(self) -> None:
        self._given: dict[ReplicaId, bool] = {}
        self._suspect = False

    def __contains__(self, voter: ReplicaId) -> bool:
        return voter in self._given

    def count(self, voter: ReplicaId, granted: bool, suspect: bool) -> None:
        if voter not in self._given:
            self._given[voter] = granted
            self._suspect |= granted and suspect

    def result(self, voters: Collection[ReplicaId], needed: int = 0) -> str:
        """quorum.WON, LOST or PENDING. Votes of replicas that are not voters do not count. `needed`: how many grants
        win where nobody is suspect; 0: a majority."""
        return quorum.vote_result(self._given, voters, everyone=self._suspect, quorum=needed)


class Promise:
    """To whom, in which term, until when. `lost`: replica -> newest incarnation that has provably exited."""

    __slots__ = ("incarnation", "leader", "lost", "term", "until")

    def __init__(self) -> None:
        self.leader: ReplicaId = NO_REPLICA
        self.incarnation = 0
        self.term: Term = 0
        self.until: Nanoseconds = 0
        self.lost: dict[ReplicaId, int] = {}

    def heard(self, leader: ReplicaId, incarnation: int, term: Term, until: Nanoseconds) -> None:
        """A newer leader's election proves that older leases are over, so one promise is enough."""
        self.leader, self.incarnation, self.term, self.until = leader, incarnation, term, until

    def hold(self, until: Nanoseconds) -> None:
        """Promised to somebody in a former life."""
        self.heard(NO_REPLICA, 0, 0, until)

    def exited(self, replica: ReplicaId, incarnation: int) -> None:
        self.lost[replica] = max(incarnation, self.lost.get(replica, -1))

    def is_dead(self, replica: ReplicaId, incarnation: int) -> bool:
        """Whether that incarnation has provably exited; a later one's exit proves it too."""
        return self.lost.get(replica, -1) >= incarnation

    def binds(self, now: Nanoseconds) -> bool:
        return now < self.until and not self.is_dead(self.leader, self.incarnation)

    def rank(self, own: ReplicaId, voters: Iterable[ReplicaId], incarnations: Mapping[ReplicaId, int]) -> int:
        """How many voters with lower ids are not known dead."""
        return sum(1 for voter in voters if voter < own and not self.is_dead(voter, incarnations.get(voter, 0)))

    def certificate(self) -> Certificate | None:
        """Proof that the promise is void, for others who made the same one."""
        if self.leader != NO_REPLICA and self.is_dead(self.leader, self.incarnation):
            return (self.leader, self.incarnation)
        return None


class Patience:
    """Draws waiting times. `attempts`: campaigns since a leader was last known. `hurried`: proof is at hand."""

    __slots__ = ("_rng", "attempts", "election_timeout", "hurried")

    def __init__(self, rng: Uniform, election_timeout: Nanoseconds) -> None:
        self._rng = rng
        self.election_timeout = election_timeout
        self.attempts = 0
        self.hurried = False

    def settle(self) -> None:
        """There is a leader."""
        self.attempts = 0
        self.hurried = False

    def timeout(self) -> Nanoseconds:
        """In [1, 1.5) election timeouts. Source: Raft paper §5.2."""
        return self._between(self.election_timeout, self.election_timeout * 3 // 2)

    def by_rank(self, rank: int) -> Nanoseconds:
        """The first of the survivors waits for nothing."""
        return rank * RANK_STEP + self._between(0, RANK_JITTER) if rank else 0

    def give_way(self) -> Nanoseconds:
        """Time for another survivor to be elected: two syncs and two round trips on a busy machine."""
        return self._between(2 * HURRIED_VOTE, 3 * HURRIED_VOTE)

    def retry(self, *, pre_vote: bool) -> Nanoseconds:
        """How long to wait for votes. Failed pre-votes cost nobody anything and are repeated sooner."""
        if self.hurried:
            pace = (HURRIED_PRE_VOTE if pre_vote else HURRIED_VOTE) * min(self.attempts, 16)
            return min(self._between(pace, 2 * pace), self.timeout())
        if pre_vote:
            return self._between(self.election_timeout // 4, self.election_timeout // 2)
        return self.timeout()

    def _between(self, low: Nanoseconds, high: Nanoseconds) -> Nanoseconds:
        return low + int(self._rng.random() * (high - low))
