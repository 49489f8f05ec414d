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
that run together. Six rules, none of which loses an answer, keep it small in practice. Let s be the current state; a
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
   * y is not possible in s: c makes a state that y needs. `_wanted` finds all such states, also those from which
     unknown operations lead to one that is needed.
   * y appends: what it leaves behind depends on c. As long as an append without an answer must take effect, everything
     is tried, except for c that leads to OTHER: y after c then gives OTHER, as c after y would.
4  Alike. Of operations with the same effect the one that returns first is taken, of unknown ones the one called first:
   the other can do whatever that one could have done later. Values that nobody mentions any more are alike, too.
5  Dominated. A configuration is given up if one was visited at the same position and state that had to do no more,
   could do no less, and had used no more unknown operations: it can follow every completion of this one.

6  Hope. A configuration is given up if an operation that must take effect, or one that is yet to be called, needs a
   state that is not there and that no remaining operation leaves behind.

No recursion; what is visited is kept, so memory grows with the number of configurations that did not lead on.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from zcluster.sim.history import Operation
from zcluster.sim.model import (
    ABSENT,
    APPEND,
    EMPTY,
    EXACTLY,
    KEEP,
    NEVER_HOLDS,
    NOT,
    NOTHING,
    OTHER,
    SET,
    Latest,
    State,
    States,
    Step,
    extends_unseen,
    make_step,
    mentioned_by,
)

NEVER: Final = 1 << 62
_CLOCK_EVERY: Final = 64
_STUCK_KEPT: Final = 200

Path = tuple["Path", int] | None
"""The steps taken, last first: a number as in `Step.number`, or ~number where an operation became optional."""


class Node(NamedTuple):
    """A configuration, and how it was reached."""

    position: int
    state: State
    must: int
    may: int
    used: int
    path: Path


class _Situation(NamedTuple):
    """A configuration at the return of `forced`, taken apart for the rules."""

    node: Node
    forced: Step
    running: list[Step]  # those in `may`, the first to return first
    obliged: list[Step]  # those in `must`
    needed: set[State]  # by `obliged`
    appending: list[Step]  # appends without an answer that must take effect
    another: bool  # whether one that must take effect needs any other state than this one
    wanted: set[State] | None  # see `_wanted`; None: every state may be of use


class OutOfTime(Exception):
    """The search was not done before its deadline."""


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


class _Group:
    """Unknown operations that are alike, in the order of their calls; they are used in that order (rule 4)."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.mask = 0

    def next(self, used: int, position: int) -> Step | None:
        """The first that is not used, if it has been called."""
        index = (used & self.mask).bit_count()
        if index < len(self.steps) and self.steps[index].called < position:
            return self.steps[index]
        return None


class _Unknown:
    """The unknown operations of a key, to be found by what they do."""

    def __init__(self, steps: Iterable[Step]) -> None:
        groups: dict[tuple[int, State, int, State, str], _Group] = {}
        for number, step in enumerate(steps):
            step.bit = 1 << number
            group = groups.setdefault((step.need, step.argument, step.effect, step.result, step.data), _Group())
            group.steps.append(step)
            group.mask |= step.bit
        self.groups = list(groups.values())
        self.writes: dict[State, _Group] = {}  # puts and deletes, by the state they leave behind
        self.swaps_from: dict[State, list[tuple[State, _Group]]] = {}  # cas: expected -> (new, group)
        self.swaps_to: dict[State, list[tuple[State, _Group]]] = {}  # cas: new -> (expected, group)
        self.appends: dict[str, _Group] = {}
        for (need, argument, effect, result, data), group in groups.items():
            if effect == APPEND:
                self.appends[data] = group
            elif need == NOTHING:
                self.writes[result] = group
            else:
                self.swaps_from.setdefault(argument, []).append((result, group))
                self.swaps_to.setdefault(result, []).append((argument, group))
        self.append_lengths = sorted({len(data) for data in self.appends})


class Search:
    """The search on one key.

    Args:
        operations: of one key, in any order.
        deadline: of `time.monotonic()`; later the search raises OutOfTime.
        look_ahead: apply rule 6. Without it the search is slower, but stops only where it has to.
    """

    def __init__(
        self, operations: Sequence[Operation], deadline: float = float("inf"), *, look_ahead: bool = True
    ) -> None:
        self._look_ahead = look_ahead
        self._deadline = deadline
        self._pops = 0
        prefixes = any(extends_unseen(o) for o in operations if o.status != "fail")
        mentions = [(o, text) for o in operations if o.status != "fail" and (text := mentioned_by(o)) is not None]
        self._prefixes = prefixes
        self._mentioned = sorted({text for _, text in mentions})
        self.states = States(self._mentioned, prefixes=prefixes)
        made = (make_step(operation, number, self.states) for number, operation in enumerate(operations))
        self._steps = {step.number: step for step in made if step is not None}
        self._events = self._order_events()
        self._assign_places()
        unknown = sorted((step for step in self._steps.values() if step.optional), key=lambda step: step.called)
        self._unknown = _Unknown(unknown)
        self._last_call, self._last_return = self._find_mentions(mentions)
        self._makers: dict[State, list[Step]] = {}
        self._setting: dict[State, list[Step]] = {}
        self._adding: dict[str, list[Step]] = {}
        self._last_exact: dict[State, int] = {}
        self._last_exclusion: dict[State, int] = {}
        for step in self._steps.values():
            if step.effect == SET:
                self._setting.setdefault(step.result, []).append(step)
            elif step.effect == APPEND:
                self._adding.setdefault(step.data, []).append(step)
            if step.need == EXACTLY and not step.optional:
                self._last_exact[step.argument] = max(self._last_exact.get(step.argument, -1), step.called)
            if step.need == NOT:
                self._last_exclusion[step.argument] = max(self._last_exclusion.get(step.argument, -1), step.called)
        self._dead_from, self._dead_masks = self._find_dead()

    # -- preparation --------------------------------------------------------------------------------------------------
    def _order_events(self) -> list[tuple[Step, bool]]:
        """(step, whether it returns), in time. Of equal times calls come first: those operations ran together."""
        moments: list[tuple[int, bool, int]] = []
        for step in self._steps.values():
            moments.append((step.operation.call, False, step.number))
            if not step.optional:
                assert step.operation.returned is not None
                moments.append((step.operation.returned, True, step.number))
        events: list[tuple[Step, bool]] = []
        for _, returns, number in sorted(moments):
            step = self._steps[number]
            if returns:
                step.returned = len(events)
                events.append((step, True))
            elif step.optional:
                # A position between two events: it counts as called once everything before it has happened.
                step.called, step.returned = len(events) - 1, NEVER
            else:
                step.called = len(events)
                events.append((step, False))
        return events

    def _assign_places(self) -> None:
        """Give each operation a bit that no other has while it runs."""
        self._place_called: list[list[int]] = []  # place -> positions of the calls of its operations
        self._place_steps: list[list[Step]] = []
        free: list[int] = []
        for step, returns in self._events:
            if returns:
                free.append(step.bit.bit_length() - 1)
                continue
            if not free:
                free.append(len(self._place_steps))
                self._place_called.append([])
                self._place_steps.append([])
            place = free.pop()
            step.bit = 1 << place
            self._place_called[place].append(step.called)
            self._place_steps[place].append(step)

    def _find_mentions(self, mentions: Sequence[tuple[Operation, str]]) -> tuple[Latest, Latest]:
        """When states are mentioned last: by calls of operations, and by their returns."""
        steps = {id(step.operation): step for step in self._steps.values()}
        called, returned = dict.fromkeys(self._mentioned, -1), dict.fromkeys(self._mentioned, -1)
        for operation, text in mentions:
            step = steps.get(id(operation))
            if step is not None:
                called[text] = max(called[text], NEVER if step.optional else step.called)
                returned[text] = max(returned[text], step.returned)
        return Latest(self.states, list(called.values())), Latest(self.states, list(returned.values()))

    def _find_dead(self) -> tuple[list[int], list[int]]:
        """Unknown puts and appends which, from some position on, give values that nobody mentions, whatever was there:
        ([position], [the set from there on]). All of them are alike (rule 4)."""
        ends: list[tuple[int, int]] = []
        texts = {text: self._last_return.of(self.states.of(text)) for text in self._mentioned}
        for step in self._steps.values():
            if not step.optional or step.need != NOTHING or (step.effect == SET and step.result == ABSENT):
                continue
            if step.effect == SET:
                ends.append((self._last_return.of(step.result), step.bit))
            else:
                ends.append((max((at for text, at in texts.items() if step.data in text), default=-1), step.bit))
        ends.sort()
        masks, mask = [], 0
        for _, bit in ends:
            mask |= bit
            masks.append(mask)
        return [position for position, _ in ends], masks

    def _dead(self, position: int) -> int:
        index = bisect_right(self._dead_from, position - 1)
        return self._dead_masks[index - 1] if index else 0

    def _now(self, state: State, position: int, needed: set[State]) -> State:
        """The state, or OTHER if no operation that is yet to take effect, or to be called, mentions it (rule 4).

        Args:
            needed: the states mentioned by the operations in `must`.
        """
        if state <= OTHER or state in needed or self._last_call.of(state) >= position:
            return state
        if self._prefixes and any(self.states.rest(state, longer) is not None for longer in needed):
            return state
        return OTHER

    def _needed(self, must: Iterable[Step]) -> set[State]:
        return {self.states.empty if step.need == EMPTY else step.argument for step in must if step.need != NOTHING}

    def _first_states(self) -> list[State]:
        """Every state that the operations can tell from all others."""
        found = [ABSENT, OTHER, *(self.states.of(text) for text in self._mentioned)]
        seen = set(found)
        data = {step.data for step in self._steps.values() if step.effect == APPEND}
        for state in found:  # grows meanwhile
            if state > OTHER:
                for text in sorted(data):
                    new = [before for before in self.states.before_append(state, text) if before not in seen]
                    seen.update(new)
                    found += new
        return list(dict.fromkeys(found))

    # -- the search ---------------------------------------------------------------------------------------------------
    def run(self, *, from_start: bool = True) -> Found:
        """Search, from the absent key or (not `from_start`) from every state. Raises: OutOfTime."""
        starts = (ABSENT,) if from_start else self._first_states()
        visited: dict[tuple[int, State], list[tuple[int, int, int, int]]] = {}
        stuck: list[Node] = []
        stack: list[tuple[Node, Step | None]] = [(Node(0, state, 0, 0, 0, None), None) for state in starts]
        stack.reverse()
        while stack:
            self._pops += 1
            if self._pops % _CLOCK_EVERY == 0 and time.monotonic() > self._deadline:
                raise OutOfTime
            before, step = stack.pop()
            after = before if step is None else self._take(before, step)
            if step is not None and self._lost(before.state, after):
                continue
            node = self._advance(after)
            if node.position == len(self._events):
                return Found(True, self._order(node.path))
            if not stuck or node.position > stuck[0].position:
                stuck = [node]
            elif node.position == stuck[0].position and len(stuck) < _STUCK_KEPT:
                stuck.append(node)
            if self._dominated(node, visited) or self._hopeless(node):
                continue
            stack += [(node, move) for move in reversed(self._moves(node))]
            returning = self._events[node.position][0].bit
            if not node.must & returning:
                stack.append((node._replace(position=node.position + 1, may=node.may & ~returning), None))
        stuck.sort(key=lambda node: (node.must.bit_count(), node.used.bit_count()))
        orders = tuple(self._order(node.path) for node in stuck)
        return Found(False, orders[0], self._events[stuck[0].position][0].operation, orders)

    def _advance(self, node: Node) -> Node:
        """Go on to the next return of an operation that must or may take effect first, or to the end."""
        position, state, must, may, used, path = node
        events, states, end = self._events, self.states, len(self._events)
        while position < end:
            step, returns = events[position]
            bit = step.bit
            if returns:
                if may & bit:
                    break
            elif step.effect == KEEP and step.holds(state, states):
                path = (path, step.number)
            else:
                may |= bit
                if step.need == NOTHING and step.after(state, states) == state:
                    path = (path, ~step.number)
                else:
                    must |= bit
            position += 1
        if position == node.position:
            return node
        return self._settle(Node(position, state, must, may, used, path))

    def _take(self, node: Node, step: Step) -> Node:
        """`step` takes effect; rules 1 and 2 are applied."""
        position, state, must, may, used, path = node
        after = step.after(state, self.states)
        if step.optional:
            used |= step.bit
        else:
            must &= ~step.bit
            may &= ~step.bit
        if step.effect == SET:
            must, path = self._bury(node, step, must, path)
        return self._settle(Node(position, after, must, may, used, (path, step.number)))

    def _bury(self, node: Node, step: Step, must: int, path: Path) -> tuple[int, Path]:
        """Rule 2. Several that fit before `step` alone also fit there together, in any order.

        The last of them decides. If it is a put or a delete, it leaves the same behind wherever it stands. If it is an
        append, then `step` needs nothing; or a value, which every append leaves; or ABSENT or "", and the append is an
        empty one as all others there; or exactly s, and the same holds.
        """
        for other in self._running(must, node.position):
            if other.need == NOTHING and step.holds(other.after(node.state, self.states), self.states):
                must &= ~other.bit
                path = (path, ~other.number)
        return must, path

    def _settle(self, node: Node) -> Node:
        """Rule 1, for all running operations."""
        position, state, must, may, used, path = node
        rest: list[Step] = []
        for step in self._running(must, position):
            if step.effect == KEEP and step.holds(state, self.states):
                must &= ~step.bit
                may &= ~step.bit
                path = (path, step.number)
            else:
                rest.append(step)
        needed = self._needed(rest)
        state = self._now(state, position, needed)
        for step in rest:
            if step.need == NOTHING and self._now(step.after(state, self.states), position, needed) == state:
                must &= ~step.bit
                path = (path, ~step.number)
        return Node(position, state, must, may, used, path)

    def _running(self, mask: int, position: int) -> Iterator[Step]:
        """The operations of a set of places, as they are at a position."""
        while mask:
            lowest = mask & -mask
            place = lowest.bit_length() - 1
            mask ^= lowest
            yield self._place_steps[place][bisect_right(self._place_called[place], position) - 1]

    def _dominated(self, node: Node, visited: dict[tuple[int, State], list[tuple[int, int, int, int]]]) -> bool:
        """Rule 5; remembers the node if it is not."""
        dead = self._dead(node.position)
        must, may, used, dead_used = node.must, node.may, node.used & ~dead, (node.used & dead).bit_count()
        seen = visited.setdefault((node.position, node.state), [])
        for their_must, their_may, their_used, their_dead in seen:
            if not (their_must & ~must or may & ~their_may or their_used & ~used or their_dead > dead_used):
                return True
        seen.append((must, may, used, dead_used))
        return False

    # -- hope ---------------------------------------------------------------------------------------------------------
    def _hopeless(self, node: Node) -> bool:
        """Rule 6: whether an operation must take effect that needs a state which cannot come any more."""
        return self._look_ahead and any(
            step.need == NEVER_HOLDS
            or (step.need == EXACTLY and step.argument != node.state and not self._can_come(step.argument, node))
            for step in self._running(node.must, node.position)
        )

    def _lost(self, state: State, node: Node) -> bool:
        """Rule 6: whether a state was left that an operation yet to be called needs, and that cannot come again."""
        needed = self._look_ahead and self._last_exact.get(state, -1) >= node.position
        return needed and state != node.state and not self._can_come(state, node)

    def _can_come(self, state: State, node: Node) -> bool:
        """Whether an operation that may take effect now or later leaves this state, as far as can be seen at once."""
        makers = self._makers.get(state)
        if makers is None:
            makers = self._makers[state] = self._find_makers(state)
        for step in makers:
            if step.optional:
                if not node.used & step.bit:
                    return True
            elif step.called > node.position or (step.returned >= node.position and node.may & step.bit):
                return True
            elif step.returned < node.position:
                return False  # so did all that follow
        return False

    def _find_makers(self, state: State) -> list[Step]:
        """All operations that can leave a state: unknown ones first, then the last to return first."""
        makers = list(self._setting.get(state, ()))
        if state > OTHER:
            text = self.states.text(state)
            for data, steps in self._adding.items():
                if text.endswith(data):
                    makers += steps
        return sorted(makers, key=lambda step: -step.returned)

    # -- moves --------------------------------------------------------------------------------------------------------
    def _moves(self, node: Node) -> list[Step]:
        """What may take effect next (rules 3 and 4), the most promising first."""
        now, dead = self._situation(node), self._dead(node.position)
        found: list[Step] = []
        alike: set[tuple[int, State, int, State, str, bool]] = set()
        for step in (*now.running, *self._unknown_moves(now)):
            if not step.holds(node.state, self.states):
                continue
            after = self._now(step.after(node.state, self.states), node.position, now.needed)
            obliged = not step.optional and step.bit & node.must > 0
            kind = (step.need, step.argument, step.effect, after, step.data, obliged)
            if step.optional and step.bit & dead:
                kind = (NOTHING, ABSENT, SET, OTHER, "", False)
            if kind not in alike and self._useful(step, after, obliged, now):
                alike.add(kind)
                found.append(step)
        # First operations that need just this state, for it may not come again; unknown ones last.
        found.sort(key=lambda step: (step.optional, step.need == NOTHING, step is not now.forced))
        return found

    def _situation(self, node: Node) -> _Situation:
        forced = self._events[node.position][0]
        running = sorted(self._running(node.may, node.position), key=lambda step: step.returned)
        obliged = [step for step in running if step.bit & node.must]
        appending = [step for step in running if step.effect == APPEND and (step.bit & node.must or step is forced)]
        another = any(step.need == NOT and step.argument == node.state for step in obliged)
        wanted = None if another or appending else self._wanted(node, running, obliged)
        return _Situation(node, forced, running, obliged, self._needed(obliged), appending, another, wanted)

    def _useful(self, step: Step, after: State, obliged: bool, now: _Situation) -> bool:
        """Whether there is a reason to let an operation take effect now (rule 3)."""
        state = now.node.state
        if obliged and (step is now.forced or step.need != NOTHING):
            return True
        if self._buries_in_time(step, after, now):
            return True
        if step is now.forced and after == state:
            return any(other.need == NOTHING for other in now.obliged)  # its last chance to bury them
        if after == state:
            return False
        if step is now.forced:
            return after != OTHER or self._better_other(now)
        if now.wanted is not None:
            return after in now.wanted
        if now.another or after != OTHER:
            return True
        if step.effect == SET:
            return step.need != NOTHING
        # To append what leads to OTHER matters before another append only if the other order leads elsewhere.
        append = self.states.append
        return any(append(append(state, o.data), step.data) != OTHER for o in now.appending if o is not step)

    def _buries_in_time(self, step: Step, after: State, now: _Situation) -> bool:
        """Whether something must be buried that what comes next could not bury, though it is possible without `step`:
        operations that need exactly this state, or append to it."""
        if step.effect != SET or step.need != NOTHING or after == OTHER:
            return False
        if not any(other.need == NOTHING and other is not step for other in now.obliged):
            return False
        state, states = now.node.state, self.states
        guarded = [other for other in now.obliged if other.effect == SET and other.holds(state, states)]
        if any(other.need == EMPTY and other.holds(after, states) for other in guarded):
            return True
        if after != state:
            return False
        appends = self._unknown.appends or any(other.effect == APPEND for other in now.running)
        return bool(appends) or state in self._unknown.swaps_from or any(o.need == EXACTLY for o in guarded)

    def _better_other(self, now: _Situation) -> bool:
        """Whether OTHER may serve better than this state, and those that puts would have to make instead: only if an
        operation needs anything but one of these."""
        if self._prefixes:
            return True
        states = {now.node.state, *(step.result for step in now.obliged if step.need == NOTHING)}
        if any(self._last_exclusion.get(state, -1) >= now.node.position for state in states):
            return True
        return any(step.need == NOT and step.argument in states for step in now.obliged)

    def _wanted(self, node: Node, running: Sequence[Step], obliged: Sequence[Step]) -> set[State]:
        """The states that operations need which must take effect and cannot in this one, and states from which
        optional appends and unknown operations lead to those."""
        states, used, position = self.states, node.used, node.position
        unknown = self._unknown
        wanted: set[State] = set()
        work: list[State] = []

        def want(*needed: State) -> None:
            for state in needed:
                if state not in wanted:
                    wanted.add(state)
                    work.append(state)

        for step in obliged:
            if not step.holds(node.state, states):
                if step.need == EXACTLY:
                    want(step.argument)
                elif step.need == EMPTY:
                    want(ABSENT, states.empty)
        appends = [step.data for step in running if step.effect == APPEND]
        while work:
            target = work.pop()
            for expected, group in unknown.swaps_to.get(target, ()):
                if group.next(used, position):
                    want(expected)
            if target <= OTHER:
                continue
            endings = (states.ending(target, length) for length in unknown.append_lengths)
            called = [
                data for data in endings if data in unknown.appends and unknown.appends[data].next(used, position)
            ]
            for data in appends + called:
                want(*states.before_append(target, data))
        return wanted

    def _unknown_moves(self, now: _Situation) -> Iterator[Step]:
        """Unknown operations that may lead to a wanted state (to any, if that is None), or that leave this one."""
        unknown, state = self._unknown, now.node.state
        groups: Iterable[_Group | None] = unknown.groups
        if now.wanted is not None:
            groups = [
                *(unknown.writes.get(target) for target in (state, *now.wanted)),
                *(group for result, group in unknown.swaps_from.get(state, ()) if result in now.wanted),
                *(unknown.appends.get(rest) for t in now.wanted if (rest := self.states.rest(state, t)) is not None),
            ]
        for group in groups:
            step = group.next(now.node.used, now.node.position) if group is not None else None
            if step is not None:
                yield step

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


def find_order(operations: Sequence[Operation], *, deadline: float = float("inf")) -> Found:
    """Search for an order of the operations of one key, which is absent at first. Raises: OutOfTime."""
    return Search(operations, deadline).run()
