"""Who changes the members of a simulated cluster, by the requests that `zcluster scale` and a wiped node make.

A *wish* is a few changes one after the other: grow (add a learner, promote it), shrink, a visit (a learner that leaves
again), and replace (a disk is gone; a new replica takes the place, the old one is removed, in any order). They wait in
line; each change is asked of whoever leads until somebody says that it is committed. A wish that takes too long is
undone. What was removed has its process stopped later, or never.

**The operator's atlas.** Disks are only replaced, and voters only removed, where every configuration that is or may
yet be in force keeps a majority of voters whose disks are intact. That is enough for safety, however many disks go one
after the other: a replica whose disk is gone never votes again, so each election needs a majority out of those that are
left, and that meets the copies of everything committed.
"""

from __future__ import annotations

from random import Random
from typing import Final

from zcluster import wire
from zcluster.consensus.api import ADD_LEARNER, PROMOTE, REMOVE, ConfigChange
from zcluster.node.members import decode_configuration, encode_change, is_done
from zcluster.sim.checkers import Checkers
from zcluster.sim.cluster import Cluster
from zcluster.sim.configurations import has_majority
from zcluster.sim.process import Life
from zcluster.sim.world import Violation, World
from zcluster.types import MS, Configuration, Nanoseconds, ReplicaId, Term

VOTERS_MAX: Final = 9
PAUSE: Final[Nanoseconds] = 20 * MS


class Wish:
    """steps: what is still to be done; newcomer: the replica that was started for it; patience: attempts until it is
    undone; must: it cannot be given up, since a disk is gone."""

    __slots__ = ("must", "newcomer", "patience", "steps")

    def __init__(
        self, steps: list[ConfigChange], patience: int, newcomer: ReplicaId = 0, *, must: bool = False
    ) -> None:
        self.steps = steps
        self.patience = patience
        self.newcomer = newcomer
        self.must = must


class Operator:
    """voters_min: no shrinking below. answered: changes that were acknowledged. stops: share of removed replicas whose
    process is stopped; the others go on by themselves."""

    def __init__(
        self, world: World, cluster: Cluster, checkers: Checkers, *, voters_min: int, election_timeout: Nanoseconds
    ) -> None:
        self.answered = 0
        self.stops = 0.7
        self._world = world
        self._cluster = cluster
        self._checkers = checkers
        self._voters_min = voters_min
        self._election_timeout = election_timeout
        self._random: Random = world.random("operator")
        self._wishes: list[Wish] = []
        self._gone: set[ReplicaId] = set()  # their disks were replaced
        self._serial = 0
        self._asked: dict[int, tuple[Life, Term, ConfigChange]] = {}  # not answered yet, by request
        self._running = False
        self._hurried = False

    @property
    def busy(self) -> bool:
        return bool(self._wishes)

    @property
    def members(self) -> Configuration:
        """As far as anybody knows."""
        return self._checkers.configurations.committed

    def hurry(self) -> None:
        """Everything is well again: whatever was begun comes to its end."""
        self._hurried = True

    # -- wishes -------------------------------------------------------------------------------------------------------

    def grow(self, draw: Random) -> None:
        if self._room():
            self._add(draw, [ADD_LEARNER, PROMOTE])

    def visit(self, draw: Random) -> None:
        """A learner comes, and leaves again."""
        if self._room():
            self._add(draw, [ADD_LEARNER, REMOVE])

    def shrink(self, draw: Random, victim: ReplicaId = 0) -> None:
        voters = self.members.voters
        if len(voters) > self._voters_min and not self.busy:
            self._begin(Wish([ConfigChange(REMOVE, victim or draw.choice(voters))], draw.choice((5, 30, 100))))

    def replace(self, draw: Random) -> None:
        """A disk breaks; a new one takes its place, and with it a new replica."""
        candidates = [
            voter
            for voter in self.members.voters
            if self._cluster.nodes[voter].created and not self._cluster.nodes[voter].out and self._survives(voter)
        ]
        if not candidates:
            return
        broken = draw.choice(candidates)
        node = self._cluster.nodes[broken]
        self._cluster.crash(broken)
        node.disk.wipe()
        self._gone.add(broken)
        self._checkers.shadows[broken].damaged = True
        if draw.random() < 0.5:
            self._cluster.start(broken)  # somebody forgot to tell; it must see by itself that it knows nothing
        self._checkers.shadows[broken].wiped = True
        node.out = node.out or "its disk was replaced"
        newcomer = self._cluster.join()
        steps = [ConfigChange(ADD_LEARNER, newcomer), ConfigChange(PROMOTE, newcomer)]
        steps.insert(draw.choice((0, 1, 2)), ConfigChange(REMOVE, broken))
        self._begin(Wish(steps, 0, newcomer, must=True))

    def _room(self) -> bool:
        waiting = sum(bool(wish.newcomer) for wish in self._wishes)
        return len(self.members.voters) + len(self.members.learners) + waiting < VOTERS_MAX

    def _add(self, draw: Random, actions: list[str]) -> None:
        newcomer = self._cluster.join()
        steps = [ConfigChange(action, newcomer) for action in actions]
        self._begin(Wish(steps, draw.choice((5, 30, 100)), newcomer))

    def _begin(self, wish: Wish) -> None:
        self._wishes.append(wish)
        if not self._running:
            self._running = True
            self._world.after(0, self._advance)

    # -- one change after the other -----------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Ask for the next change of the first wish, of whoever leads."""
        if not self._wishes:
            self._running = False
            return
        wish = self._wishes[0]
        wish.patience -= 1
        if wish.patience < 0 and not wish.must and not self._hurried and not self._undo(wish):
            return
        change, leader = wish.steps[0], self._cluster.leader()
        pause = PAUSE
        life = self._cluster.nodes[leader].life if leader else None
        if life is not None and self._may_ask(change):
            self._serial += 1
            self._forget_the_dead()
            self._asked[self._serial] = (life, life.replica.core.term, change)
            self._cluster.change(leader, self._serial, encode_change(change))
            pause = 4 * self._election_timeout
        elif life is not None:
            self._wishes.append(self._wishes.pop(0))  # others may go first; a lost disk can always be replaced
            wish = self._wishes[0]
        self._world.after(pause, self._ask_again, wish, len(wish.steps), self._serial)

    def _ask_again(self, wish: Wish, left: int, serial: int) -> None:
        """No answer came, or the time was not right."""
        if self._wishes and self._wishes[0] is wish and len(wish.steps) == left and self._serial == serial:
            self._advance()

    def _undo(self, wish: Wish) -> bool:
        """Whether anything is left to be done for it."""
        if not wish.newcomer:
            self._end(wish)
            return False
        wish.must = True  # this much has to be
        wish.steps = [ConfigChange(REMOVE, wish.newcomer)]
        return True

    def _may_ask(self, change: ConfigChange) -> bool:
        """Nothing else is under way that could come between, and a majority survives whatever comes of it."""
        self._forget_the_dead()
        others = any(asked != change for _, _, asked in self._asked.values())
        return not others and (change.replica in self._gone or self._survives(0, change))

    def _survives(self, broken: ReplicaId, change: ConfigChange | None = None) -> bool:
        """Whether every configuration keeps a majority of intact voters, without `broken` and after `change`."""
        self._forget_the_dead()
        changes = [asked for _, _, asked in self._asked.values()] + ([change] if change is not None else [])
        if broken:  # wishes in line will be asked for some time
            changes += [step for wish in self._wishes for step in wish.steps]
        for found in self._checkers.configurations.possible():
            for voters in (found.voters, *(_after(found.voters, one) for one in changes)):
                if not has_majority([v for v in voters if v not in self._gone and v != broken], voters):
                    return False
        return True

    def _forget_the_dead(self) -> None:
        """What they were asked is in the log by now, or never will be."""
        self._asked = {
            request: (life, term, change)
            for request, (life, term, change) in self._asked.items()
            if life.node.life is life and life.replica.core.is_leader and life.replica.core.term == term
        }

    # -- what comes back ----------------------------------------------------------------------------------------------

    def replied(self, head: bytes, body: bytes) -> None:
        kind, request = wire.HEAD.unpack(head)
        found = self._asked.pop(request, None)
        if found is None or not self._wishes:
            return
        wish, change = self._wishes[0], found[2]
        if wish.steps[0] != change or (request != self._serial and kind != wire.RESULT):
            return  # of an attempt that was given up
        if kind == wire.RESULT:
            self._done(wish, change, decode_configuration(body))
        elif kind == wire.FAILED:
            text = wire.decode(body)[1]
            if "last voter" not in text:
                raise Violation("membership", f"{change} is refused: {text}")
            self._end(wish)
        else:
            self._world.after(self._random.randrange(2 * PAUSE), self._ask_again, wish, len(wish.steps), self._serial)

    def _done(self, wish: Wish, change: ConfigChange, configuration: Configuration) -> None:
        if not is_done(change, configuration):
            raise Violation("membership", f"{change} is acknowledged by {configuration}")
        if configuration.index > self._checkers.highest:
            raise Violation("membership", f"{change} is acknowledged, {configuration} is not committed")
        self._checkers.configurations.check_answered(configuration)
        self.answered += 1
        if change.action == REMOVE:
            node = self._cluster.nodes[change.replica]
            if not node.out and self._random.random() < self.stops:
                pause = self._random.randrange(4 * self._election_timeout)
                self._world.after(pause, self._cluster.retire, change.replica, "removed")
        wish.steps.pop(0)
        if not wish.steps:
            self._end(wish)
        else:
            self._serial += 1  # what was asked before is over
            self._advance()

    def _end(self, wish: Wish) -> None:
        self._wishes.remove(wish)
        self._serial += 1
        self._world.after(0, self._advance)


def _after(voters: tuple[ReplicaId, ...], change: ConfigChange) -> tuple[ReplicaId, ...]:
    if change.action == PROMOTE:
        return tuple(sorted({*voters, change.replica}))
    if change.action == REMOVE and len(voters) > 1:
        return tuple(voter for voter in voters if voter != change.replica)
    return voters
