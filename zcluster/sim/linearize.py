"""Linearizability of one key's history: is there an order of its operations that explains all outcomes?

The operations must keep their order in real time: one that returned before another was called stands before it. Each
one that is `ok` stands in the order exactly once, with its outcome; each `unknown` one at most once, anywhere after
its call. The search is that of Wing and Gong (1993) with the memory of configurations by Lowe (2017), in his form that
decides "just in time": it walks through calls and returns, and orders operations only when one returns that has not
taken effect. A configuration is

    position    the next event
    state       the value of the key, see `model`
    must        running operations that have yet to take effect before they return
    may         running operations that can yet take effect; contains `must`
    used        unknown operations that took effect

Without further thought the number of configurations is exponential in the number of unknown operations and of writes
that run together. Seven rules, none of which loses an answer, keep it small in practice. Let s be the current state; a
*completion* of a configuration is an order of operations that takes it to the end of the history.

1  Unchanged. If an operation may take effect in s and leaves s as it is, it takes effect at once: in any completion it
   can be moved to the front, since it changes nothing for the others and all that precede it are in place already. If
   it needs nothing, it becomes optional instead (in `may`, no longer in `must`): it has its place, yet can still serve.
2  Buried. When y takes effect, and what y leaves behind does not depend on what was there, every running operation p
   that needs nothing, and after which y would still be possible, becomes optional: right before y, nobody sees it.
   (All of them together fit there: see `_bury`.)
3  Needed. Before the operation x that is about to return, another one, c, is ordered only for a reason. Let c be first
   in a completion, and y follow it.
   * y is possible in s, too, and leaves a fixed state: without c all is the same. If c was optional, drop it; if not,
     y buries it (rule 2). Only an operation with a need of its own can be lost that way, so those are always tried.
   * y is possible in s and keeps the state: then rule 1 has taken it before.
   * y is not possible in s: c makes a state that y needs. `moves` finds all such states, also those from which
     unknown operations lead to one that is needed. If y keeps the state and only must not see s, it can wait for the
     first operation that leaves s; so it is a reason only when it returns itself, or one does that comes back to s.
   * y appends: what it leaves behind depends on c. As long as an append without an answer must take effect, everything
     is tried, except for c that leads to OTHER: y after c then gives OTHER, as c after y would.
4  Alike. Of operations with the same effect the one that returns first is taken, of unknown ones the one called first:
   the other can do whatever that one could have done later. Values that nobody mentions any more are alike, too.
5  Dominated. A configuration is given up if one was visited at the same position and state that had to do no more,
   could do no less, and had used no more unknown operations: it can follow every completion of this one.
6  Hope. A configuration is given up if an operation that must take effect, or one that is yet to be called, needs a
   state that is not there and that no remaining operation leaves behind.
7  Reasons. Once all that follows from a configuration has failed, only the reason is remembered: what it had to do,
   what it could do no more, and what it had used, as far as that mattered. It refutes every configuration at that
   position and state of which the same is true, however they differ otherwise. See `Reason`.

Which configuration is next: the one furthest on, where each unknown operation used counts as some events back. So the
search looks around a little before it spends one, for another order may do without, and there may be need of it later.

No recursion; what is visited is kept, so memory grows with the number of configurations that did not lead on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Final, NamedTuple

from zcluster.sim.history import Operation
from zcluster.sim.model import ABSENT, APPEND, EXACTLY, KEEP, NEVER_HOLDS, NOTHING, OTHER, SET, State, Step
from zcluster.sim.moves import Moves
from zcluster.sim.timeline import NEVER, Configuration, Path, Timeline

_CLOCK_EVERY: Final = 64
_STUCK_KEPT: Final = 200
THRIFT: Final = 10
"""Events that an unknown operation counts as, unless told otherwise."""


class OutOfTime(Exception):
    """The search was not done before its deadline. `near`: where to look for what is wrong, if anything is: the
    operation at whose return the search was furthest, and the first and the last that hope was given up for there."""

    def __init__(self, near: list[Operation]) -> None:
        super().__init__()
        self.near = near


class Found(NamedTuple):
    """What the search found.

    If `linearizable`, `order` is a complete order that proves it. If not, `stuck` is an operation that cannot take
    effect before it returns, whatever the order of all that was called before (or, looking ahead, a return after which
    some later operation cannot); `order` is one of the longest that lead there, and `orders` several of those.
    """

    linearizable: bool
    order: list[Operation]
    stuck: Operation | None = None
    orders: tuple[list[Operation], ...] = ()


class Reason(NamedTuple):
    """Why there is no completion (rule 7): none from any configuration at that position and state in which all of
    `must` must take effect, none of `lacks` can any more, and all of `used` is used.

    It is made of: the operation that returns, if it must take effect; what the choice of moves rests on (`Moves`); what
    took effect already when its return was passed, the last chance to be of use; what hope was given up for; and the
    reasons of all configurations that follow, as far as they speak of what was there
    before. A configuration that is still open refutes others by all that it is.

    That this holds is seen at the end of a search that failed: of all configurations that some reason covers wrongly
    take the one with the shortest completion. Its first step leads to one that another reason covers, and that has a
    shorter one.
    """

    must: int
    lacks: int
    used: int


class _Open:
    """A configuration from which not all moves have failed yet, and the reason as far as it is known."""

    __slots__ = ("absent", "at", "bit", "lacks", "left", "must", "parent", "reason", "used")

    def __init__(self, at: Configuration, parent: _Open | None, bit: int, absent: int) -> None:
        self.at = at
        self.parent = parent
        self.bit = bit  # of the unknown operation that led here from the parent, or 0
        self.absent = absent  # running operations that cannot take effect any more
        self.left = 0  # moves that have not failed yet
        self.must = self.lacks = self.used = 0
        self.reason = Reason(at.must, absent, at.used)

    def add(self, reason: Reason, bit: int) -> None:
        """What followed from here, by the unknown operation `bit`, failed for this reason."""
        self.must |= reason.must & self.at.must
        self.lacks |= reason.lacks & self.absent
        self.used |= reason.used & ~bit

    def fail(self) -> None:
        """One of its moves failed; if it was the last one, so did this, and so on up."""
        opened = self
        opened.left -= 1
        while opened.left == 0 and opened.parent is not None:
            opened.reason = Reason(opened.must, opened.lacks, opened.used)
            opened.parent.add(opened.reason, opened.bit)
            opened = opened.parent
            opened.left -= 1


class Search:
    """The search on one key.

    Args:
        operations: of one key, in any order.
        deadline: of `time.monotonic()`; later a search raises OutOfTime.
        look_ahead: apply rule 6. Without it the search is slower, but stops only where it has to.
    """

    def __init__(
        self, operations: Sequence[Operation], deadline: float = float("inf"), *, look_ahead: bool = True
    ) -> None:
        self._look_ahead = look_ahead
        self._deadline = deadline
        self._timeline = timeline = Timeline(operations)
        self._moves = Moves(timeline)
        self._states, self._steps, self._events = timeline.states, timeline.steps, timeline.events
        self._visited: dict[tuple[int, State], list[_Open]] = {}
        self._queue: list[tuple[int, int, _Open, Configuration, Step | None]] = []
        self._stuck: list[Configuration] = []
        self._missed: list[int] = []  # calls of operations that need what was lost, since `_stuck` got here
        self._thrift = THRIFT
        self._pushed = 0

    def run(self, *, from_start: bool = True, thrift: int = THRIFT, patience: int = NEVER) -> Found:
        """Search, from the absent key or (not `from_start`) from every state. Raises: OutOfTime.

        Args:
            thrift: events that an unknown operation counts as when the next configuration is chosen.
            patience: moves tried without getting further before OutOfTime is raised anyway; a second has some 20,000.
        """
        self._visited, self._queue, self._stuck, self._thrift = {}, [], [], thrift
        self._missed.clear()
        starts = (ABSENT,) if from_start else self._timeline.first_states()
        root = _Open(Configuration(0, ABSENT, 0, 0, 0, None), None, 0, 0)
        self._push(root, [(Configuration(0, state, 0, 0, 0, None), None) for state in reversed(starts)])
        pops = last = furthest = 0
        while self._queue:
            pops += 1
            if pops - last > patience or (pops % _CLOCK_EVERY == 0 and time.monotonic() > self._deadline):
                missed = [self._missed[0], max(self._missed)] if self._missed else []
                near = [self._events[position][0].operation for position in (self._stuck[0].position, *missed)]
                raise OutOfTime(near)
            _, _, opened, before, step = heappop(self._queue)
            at = self._follow(opened, before, step)
            if at is not None and at.position == len(self._events):
                return Found(True, self._order(at.path))
            if at is not None and at.position > furthest:
                furthest, last = at.position, pops
        self._stuck.sort(key=lambda at: (at.must.bit_count(), at.used.bit_count()))
        orders = tuple(self._order(at.path) for at in self._stuck)
        return Found(False, orders[0], self._events[self._stuck[0].position][0].operation, orders)

    def _push(self, opened: _Open, moves: list[tuple[Configuration, Step | None]]) -> None:
        """Of equal ones the last is the first to be tried."""
        opened.left = len(moves)
        for before, step in moves:
            self._pushed += 1
            used = before.used.bit_count() + (step is not None and step.optional)
            heappush(self._queue, (self._thrift * used - before.position, -self._pushed, opened, before, step))
        if not moves:
            opened.left = 1
            opened.fail()

    def _follow(self, opened: _Open, before: Configuration, step: Step | None) -> Configuration | None:
        """Try one move, and open what it leads to unless that is refuted. None: it was at once."""
        bit = step.bit if step is not None and step.optional else 0
        after = before if step is None else self._take(before, step)
        reason = None if step is None else self._lost(before.state, after)
        at = None
        if reason is not None:
            self._missed.append(self._timeline.last_exact[before.state])
        else:
            at, passed = self._advance(after)
            opened.lacks |= passed & opened.absent
            if at.position == len(self._events):
                return at
            if not self._stuck or at.position > self._stuck[0].position:
                self._stuck = [at]
                self._missed.clear()
            elif at.position == self._stuck[0].position and len(self._stuck) < _STUCK_KEPT:
                self._stuck.append(at)
            reason = self._refuted(at) or self._hopeless(at)
        if reason is not None:
            opened.add(reason, bit)
            opened.fail()
        elif at is not None:
            self._open(at, opened, bit)
        return at

    def _open(self, at: Configuration, parent: _Open, bit: int) -> None:
        """Queue all moves from here, and remember it."""
        opened = _Open(at, parent, bit, self._timeline.active[at.position] & ~at.may)
        self._visited.setdefault((at.position, at.state), []).append(opened)
        moves: list[tuple[Configuration, Step | None]] = [(at, move) for move in reversed(self._moves.choose(at))]
        opened.must, opened.lacks, opened.used = self._moves.must, self._moves.lacks, self._moves.used
        returning = self._events[at.position][0].bit
        if at.must & returning:
            opened.must |= returning
        else:
            moves.append((at._replace(position=at.position + 1, may=at.may & ~returning), None))
        self._push(opened, moves)

    # -- taking effect ------------------------------------------------------------------------------------------------
    def _advance(self, at: Configuration) -> tuple[Configuration, int]:
        """Go on to the next return of an operation that must or may take effect first, or to the end.

        Returns:
            Also the operations whose return was passed since they took effect already, and that might have been of use
            there otherwise, at the last chance.
        """
        position, state, must, may, used, path = at
        events, states, end = self._events, self._states, len(self._events)
        passed = 0
        while position < end:
            step, returns = events[position]
            bit = step.bit
            if returns:
                if may & bit:
                    break
                if step.effect == APPEND or (step.effect == SET and (step.result != state or must)):
                    passed |= bit
            elif step.effect == KEEP and step.holds(state, states):
                path = (path, step.number)
            else:
                may |= bit
                if step.need == NOTHING and step.after(state, states) == state:
                    path = (path, ~step.number)
                else:
                    must |= bit
            position += 1
        if position == at.position:
            return at, 0
        return self._settle(Configuration(position, state, must, may, used, path)), passed

    def _take(self, at: Configuration, step: Step) -> Configuration:
        """`step` takes effect; rules 1 and 2 are applied."""
        position, state, must, may, used, path = at
        after = step.after(state, self._states)
        if step.optional:
            used |= step.bit
        else:
            must &= ~step.bit
            may &= ~step.bit
        if step.effect == SET:
            must, path = self._bury(at, step, must, path)
        return self._settle(Configuration(position, after, must, may, used, (path, step.number)))

    def _bury(self, at: Configuration, step: Step, must: int, path: Path) -> tuple[int, Path]:
        """Rule 2. Several that fit before `step` alone also fit there together, in any order.

        The last of them decides. If it is a put or a delete, it leaves the same behind wherever it stands. If it is an
        append, then `step` needs nothing; or a value, which every append leaves; or ABSENT or "", and the append is an
        empty one as all others there; or exactly s, and the same holds.
        """
        for other in self._timeline.running(must, at.position):
            if other.need == NOTHING and step.holds(other.after(at.state, self._states), self._states):
                must &= ~other.bit
                path = (path, ~other.number)
        return must, path

    def _settle(self, at: Configuration) -> Configuration:
        """Rule 1, for all running operations."""
        position, state, must, may, used, path = at
        timeline = self._timeline
        rest: list[Step] = []
        for step in timeline.running(must, position):
            if step.effect == KEEP and step.holds(state, self._states):
                must &= ~step.bit
                may &= ~step.bit
                path = (path, step.number)
            else:
                rest.append(step)
        needed = timeline.needed(rest)
        state = timeline.now(state, position, needed)
        for step in rest:
            if step.need == NOTHING and timeline.now(step.after(state, self._states), position, needed) == state:
                must &= ~step.bit
                path = (path, ~step.number)
        return Configuration(position, state, must, may, used, path)

    # -- giving up ----------------------------------------------------------------------------------------------------
    def _refuted(self, at: Configuration) -> Reason | None:
        """Rules 5 and 7: the reason, if one is known already."""
        must, may, used = at.must, at.may, at.used
        dead = self._timeline.dead(at.position)
        alive = used & ~dead
        for opened in self._visited.get((at.position, at.state), ()):
            reason = opened.reason
            if reason.must & ~must or reason.lacks & may or reason.used & ~dead & ~alive:
                continue
            count = (reason.used & dead).bit_count()
            if count <= (used & dead).bit_count():
                # The dead are alike, so what counts is their number; the same number is blamed of those used here.
                lacks = reason.lacks | (self._moves.blurred(at) if at.state == OTHER else 0)
                return Reason(reason.must, lacks, reason.used & ~dead | _lowest(used & dead, count))
        return None

    def _hopeless(self, at: Configuration) -> Reason | None:
        """Rule 6: an operation must take effect that needs a state which cannot come any more."""
        if not self._look_ahead:
            return None
        for step in self._timeline.running(at.must, at.position):
            if step.need == NEVER_HOLDS:
                return Reason(step.bit, 0, 0)
            if step.need == EXACTLY and step.argument != at.state:
                reason = self._cannot_come(step.argument, at)
                if reason is not None:
                    return reason._replace(must=step.bit)
        return None

    def _lost(self, state: State, at: Configuration) -> Reason | None:
        """Rule 6: a state was left that an operation yet to be called needs, and that cannot come again."""
        if not self._look_ahead or state == at.state or self._timeline.last_exact.get(state, -1) < at.position:
            return None
        return self._cannot_come(state, at)

    def _cannot_come(self, state: State, at: Configuration) -> Reason | None:
        """None if an operation that may take effect now or later leaves this state, as far as can be seen at once."""
        lacks = used = 0
        for step in self._timeline.makers(state):
            if step.optional:
                if not at.used & step.bit:
                    return None
                used |= step.bit
            elif step.called > at.position or (step.returned >= at.position and at.may & step.bit):
                return None
            elif step.returned < at.position:
                break  # so did all that follow
            else:
                lacks |= step.bit
        return Reason(0, lacks, used)

    # -- the order ----------------------------------------------------------------------------------------------------
    def _order(self, path: Path) -> list[Operation]:
        """A path as an order: an operation that became optional stands there, unless it took effect later."""
        placed: set[int] = set()
        order: list[Operation] = []
        while path is not None:
            path, code = path
            number = code if code >= 0 else ~code
            if number not in placed:
                placed.add(number)
                order.append(self._steps[number].operation)
        order.reverse()
        return order


def _lowest(mask: int, count: int) -> int:
    """So many of the lowest bits that are set."""
    rest = mask
    for _ in range(count):
        rest &= rest - 1
    return mask & ~rest


def find_order(operations: Sequence[Operation], *, deadline: float = float("inf")) -> Found:
    """Search for an order of the operations of one key, which is absent at first. Raises: OutOfTime."""
    return Search(operations, deadline).run()
