"""Making what there is what there is to be: carries out the plans of `membership`, in the supervisor's loop.

    wake() --> links to all replicas --> SHOW --> plan --> steps: write down, start, erase ... and at most one change
                                          ^                                                     |
                                          +------------- RESULT, BUSY, NOT_LEADER, silence <----+     until there is
                                                                                                      nothing to do
Nothing is remembered here that matters: the description and the log have all of it, and a supervisor that finds a
description which is not settled goes on with it. Those who asked are told how it goes, and when it is done. One thread.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
import zmq

from zcluster import config, wire
from zcluster.config import LEAVING, ClusterSpec, NodeSpec, save_spec
from zcluster.consensus.api import ConfigChange
from zcluster.errors import Conflict, Error, NoQuorum, StorageError, Timeout
from zcluster.launch import files, layout, membership
from zcluster.launch.fleet import MS, Fleet
from zcluster.launch.membership import Create, Drop, Enter, Propose
from zcluster.launch.probe import Connections
from zcluster.launch.requests import Requests
from zcluster.node import members
from zcluster.types import NEVER, Configuration, Index

SECOND: Final = 1000 * MS
ANSWER_NS: Final = 3 * SECOND
"""A leader that has not answered by then has lost touch: what became of the request is looked up."""
AGAIN_NS: Final = 20 * MS
AGAIN_SLOWLY_NS: Final = 250 * MS
QUORUM_NS: Final = 5 * SECOND
"""Without a leader for so long, a request that has not begun is refused."""
DRAIN_NS: Final = 10 * SECOND
GONE: Final = "removed"
"""Why a node is meant to be down while it is dropped."""


class Waiter:
    """Somebody who asked for a change. `begin`: writes the wish down; called once a majority has answered, then None.
    `done`: whether it is so."""

    __slots__ = ("asked_at", "begin", "client", "deadline", "done", "told", "what")

    def __init__(
        self, client: bytes, what: str, begin: Callable[[], None], done: Callable[[], bool], deadline: int
    ) -> None:
        self.client = client
        self.what = what
        self.asked_at = time.monotonic_ns()
        self.begin: Callable[[], None] | None = begin
        self.done = done
        self.deadline = deadline
        self.told = ""


class Reconciler:
    """See the module's drawing.

    Args:
        use: takes over a description that has been written.
    """

    def __init__(
        self, fleet: Fleet, requests: Requests, *, note: Callable[[str], None], use: Callable[[ClusterSpec], None]
    ) -> None:
        self.fleet = fleet
        self.requests = requests
        self.waits: list[str] = []
        self.problem: str | None = None  # why it does not go on, if it does not
        self._note = note
        self._use = use
        self._waiters: list[Waiter] = []
        self._links: Connections | None = None
        self._configuration: Configuration | None = None
        self._asked: tuple[int, int, ConfigChange] | None = None  # request, deadline, what for
        self._request = 1
        self._next_at = NEVER
        self._answered_at = 0  # when a leader last said something; 0: not since it was woken
        self._woken_at = 0

    # -- being asked --------------------------------------------------------------------------------------------------
    def scale(self, client: bytes, nodes: int, timeout_s: float) -> None:
        """Raises: InvalidInput, Conflict."""
        config.make_settings(nodes=nodes)
        spec = self.fleet.spec
        what = f"scale to {nodes}"
        if membership.is_settled(spec) and spec.settings.nodes == nodes:
            self.requests.reply(client, self._outcome(changed=False))
            return
        self._refuse_another(what)

        def begin() -> None:
            settings = msgspec.structs.replace(self.fleet.spec.settings, nodes=nodes)
            self._save(msgspec.structs.replace(self.fleet.spec, settings=settings))

        self._wait_for(client, what, begin, self._is_complete, timeout_s)

    def wipe(self, client: bytes, node: str, timeout_s: float) -> None:
        """Empty the disk of a node that is down; it gets another id. Raises: InvalidInput, Conflict, NoQuorum."""
        spec = self.fleet.spec
        old = spec.node(node)
        command = config.command(spec.path)
        if self.fleet.children[node].process is not None:  # workers of a replica that refuses to start may run
            raise Conflict(f"{node} is running; stop it first: {command} stop {node}")
        if sum(n.phase != LEAVING for n in spec.nodes) <= 2:
            raise NoQuorum(_too_few(spec, node, command))
        what = f"wipe {node}"
        self._refuse_another(what)

        def begin() -> None:
            if old in self.fleet.spec.nodes:
                self._save(membership.after(self.fleet.spec, Enter(node, LEAVING)))
                if node not in self.fleet.wishes.down:  # its replica refuses to start: it is not to be tried again
                    self.fleet.want_down([node], "wiped")

        def done() -> bool:
            now = self.fleet.spec
            replaced = any(n.name == node for n in now.nodes) or membership.number(old) > now.settings.nodes
            return replaced and all(n.replica_id != old.replica_id for n in now.nodes)

        self._wait_for(client, what, begin, done, timeout_s)

    def _outcome(self, *, changed: bool) -> dict[str, Any]:
        """`absent`: nodes that are kept down, and join when they are started."""
        nodes = self.fleet.spec.nodes
        absent = [n.name for n in nodes if n.phase != config.MEMBER]
        return {"nodes": [n.name for n in nodes], "changed": changed, "absent": absent}

    def _refuse_another(self, what: str) -> None:
        """Raises: Conflict, while somebody waits for another change. One that nobody waits for is superseded."""
        if not self.fleet.spec.created:
            raise Conflict("the cluster is only just being created; ask again when it is ready")
        self._tell()
        for waiter in self._waiters:
            if waiter.what != what:
                raise Conflict(
                    f"another change is running: {waiter.what} ({self.describe_waits()}); wait for it: "
                    f"{config.command(self.fleet.spec.path)} wait --for healthy"
                )

    def _wait_for(
        self, client: bytes, what: str, begin: Callable[[], None], done: Callable[[], bool], timeout_s: float
    ) -> None:
        deadline = time.monotonic_ns() + int(timeout_s * SECOND)
        self._waiters.append(Waiter(client, what, begin, done, deadline))
        self._note(f"asked to {what}")
        self.wake()

    def wake(self) -> None:
        """There may be something to do."""
        now = time.monotonic_ns()
        if self._links is None:
            self._woken_at, self._answered_at = now, 0
        self._next_at = now
        self._configuration = None

    def wake_if_unsettled(self) -> None:
        if not membership.is_settled(self.fleet.spec):
            self.wake()

    # -- telling ------------------------------------------------------------------------------------------------------
    def describe(self) -> dict[str, Any] | None:
        """The change in progress, for `status`; None without one."""
        spec = self.fleet.spec
        if membership.is_settled(spec) and not self._waiters:
            return None
        return {
            "nodes": spec.settings.nodes,
            "requests": [w.what for w in self._waiters],
            "waits": self.waits,
            "problem": self.problem,
            "text": self.describe_waits(),
        }

    def describe_waits(self) -> str:
        return "; ".join([self.problem] if self.problem else self.waits) or "beginning"

    def _tell(self) -> None:
        """News for those who wait; who has gone is forgotten, and the change goes on without them."""
        text = self.describe_waits()
        there = []
        for waiter in self._waiters:
            if self.requests.progress(waiter.client, text if text != waiter.told else ""):
                waiter.told = text
                there.append(waiter)
        self._waiters = there

    # -- the loop's part ----------------------------------------------------------------------------------------------
    def interest(self) -> list[tuple[zmq.Socket[bytes], int]]:
        return self._links.interest() if self._links is not None else []

    def next_deadline(self) -> int:
        """Monotonic ns."""
        moments = [self._next_at, *(w.deadline for w in self._waiters)]
        if self._asked is not None:
            moments.append(self._asked[1])
        if self._links is not None:
            moments.append(int(self._links.next_greeting * SECOND))
        return min(moments)

    def turn(self, now: int) -> None:
        """Take in what has come and do what can be done; never waits."""
        if self._next_at == NEVER and self._links is None:
            return
        if self.fleet.closing:
            self._refuse_all(lambda w: Conflict(f"the cluster is going down; {w.what} goes on when it is up again"))
            self._rest()
            return
        if self._links is None:
            names = [n.name for n in self.fleet.spec.nodes]
            self._links = Connections(self.fleet.spec, names, context=self.requests.context)
        self._links.pump(0.0)
        for name in list(self._links.announced):
            if self.fleet.children[name].process is None:
                del self._links.announced[name]
        self._take_answers(now)
        if self._asked is not None and now >= self._asked[1]:
            self._asked, self._next_at = None, now
        if self._asked is None and now >= self._next_at:
            self._advance(now)
        self._expire(now)

    def _advance(self, now: int) -> None:
        self._next_at = now + AGAIN_NS
        try:
            if self._configuration is None:
                self._ask(now, ConfigChange(members.SHOW, 0))
                return
            self._begin_new()
            self._follow_plan(now)
            self.problem = None
        except (Error, OSError) as error:
            self.problem = f"{error}"
            self._next_at = now + SECOND

    def _begin_new(self) -> None:
        for waiter in list(self._waiters):
            if waiter.begin is not None:
                try:
                    waiter.begin()
                except Error as error:
                    self.requests.refuse(waiter.client, error)
                    self._waiters.remove(waiter)
                waiter.begin = None

    def _follow_plan(self, now: int) -> None:
        assert self._configuration is not None and self._links is not None
        plan = membership.plan(self.fleet.spec, self._configuration, self._links.announced)
        self.waits = plan.waits
        for step in plan.steps:
            if isinstance(step, Propose):
                self._ask(now, step.change, self._configuration.index)
            elif isinstance(step, Drop):
                self._drop(step, now)
            else:
                self._write(step)
                self._next_at = now  # and plan anew
        done = [w for w in self._waiters if w.done()]
        self._waiters = [w for w in self._waiters if w not in done]
        for waiter in done:
            self._note(f"done: {waiter.what}")
            self.requests.reply(waiter.client, self._outcome(changed=True))
        if not plan.steps:
            if not self._waiters and not any(self._may_come(node) for node in self.fleet.spec.nodes):
                self._rest()
            self._next_at = now + AGAIN_SLOWLY_NS if self._links is not None else NEVER
        if self._waiters:
            self._tell()

    def _is_complete(self) -> bool:
        """Whether there are as many nodes as there are to be, and all vote that are not kept down."""
        spec = self.fleet.spec
        return len(spec.nodes) == spec.settings.nodes and not any(
            n.phase == LEAVING or self._may_come(n) for n in spec.nodes
        )

    def _may_come(self, node: NodeSpec) -> bool:
        """Whether a node that is no voter yet runs, or is about to; one that the user keeps down is not waited for."""
        return node.phase != config.MEMBER and self.fleet.wanted(self.fleet.children[node.name])

    def _rest(self) -> None:
        """Nothing to do, or nothing can be done before somebody acts."""
        if self._links is not None:
            self._links.close()
        self._links, self._asked, self._configuration, self._next_at = None, None, None, NEVER

    def _expire(self, now: int) -> None:
        kept = []
        for waiter in self._waiters:
            silent = now - max(self._answered_at, waiter.asked_at) >= QUORUM_NS and self._configuration is None
            if waiter.begin is not None and silent:
                why = "no leader answers, so there is no majority to agree to it; nothing was changed"
                self.requests.refuse(waiter.client, NoQuorum(f"{waiter.what}: {why}. {self._see()}"))
            elif now < waiter.deadline:
                kept.append(waiter)
            elif waiter.begin is not None:
                text = f"{waiter.what}: no leader has answered yet; nothing was changed. {self._see()}"
                self.requests.refuse(waiter.client, Timeout(text))
            elif silent:
                text = f"{waiter.what}: no leader answers; it goes on as soon as there is a majority. {self._see()}"
                self.requests.refuse(waiter.client, NoQuorum(text))
            else:
                text = f"{waiter.what} takes long ({self.describe_waits()}); it goes on. {self._see()}"
                self.requests.refuse(waiter.client, Timeout(text))
        self._waiters = kept

    def _see(self) -> str:
        return f"See: {config.command(self.fleet.spec.path)} status"

    def _refuse_all(self, error: Callable[[Waiter], Error]) -> None:
        for waiter in self._waiters:
            self.requests.refuse(waiter.client, error(waiter))
        self._waiters = []

    # -- the leader ---------------------------------------------------------------------------------------------------
    def _ask(self, now: int, change: ConfigChange, at: Index | None = None) -> None:
        """Send it to whom the newest term names as leader, if that one can be reached. `at`: what it starts from."""
        assert self._links is not None
        claims = [(term, leader) for leader, term in self._links.announced.values() if leader]
        name = self.fleet.spec.node_name(max(claims)[1]) if claims else None
        self._request += 1
        body = members.encode_change(change, at)
        if name is not None and self._links.ask(name, wire.MEMBERSHIP, self._request, body):
            self._asked = (self._request, now + ANSWER_NS, change)
        elif now - max(self._answered_at, self._woken_at) > SECOND:
            self.waits = ["no leader answers"]

    def _take_answers(self, now: int) -> None:
        assert self._links is not None
        answers, self._links.answers = self._links.answers, []
        for name, kind, request, body in answers:
            if self._asked is None or request != self._asked[0]:
                continue
            change = self._asked[2]
            self._asked, self._configuration, self._next_at = None, None, now + AGAIN_NS
            if kind == wire.RESULT:
                self._answered_at = self._next_at = now
                self._configuration = members.decode_configuration(body)
                if change.action != members.SHOW:
                    voters, learners = self._configuration.voters, self._configuration.learners
                    text = f"{change.action} {change.replica}: voters {list(voters)}, learners {list(learners)}"
                    self._note(text)
            elif kind == wire.NOT_LEADER:
                leader, term = wire.decode(body)
                self._links.announced[name] = (leader, term)
            elif kind == wire.BUSY:
                self._answered_at = now
                who = self.fleet.spec.node_name(change.replica)
                text = str(wire.decode(body)[0]).removesuffix("; retry")
                self.waits = [f"{who}: {text}" if who else text]
                self._tell()
            else:
                self.problem = f"{name} refuses to {change.action} replica {change.replica}: {wire.decode(body)[1]}"
                self._next_at = now + SECOND

    # -- steps --------------------------------------------------------------------------------------------------------
    def _write(self, step: Create | Enter) -> None:
        spec = membership.after(self.fleet.spec, step)
        if isinstance(step, Create) and spec.settings.transport == "tcp":
            spec = msgspec.structs.replace(spec, ports=layout.add_ports(spec, step.name))
        self._save(spec)
        self._note(" ".join(map(str, (type(step).__name__.lower(), *step))))
        if isinstance(step, Create):
            self.fleet.add_node(step.name)
            self._relink()

    def _drop(self, step: Drop, now: int) -> None:
        """The workers finish what they run, the replica ends last, then the data go."""
        fleet, node = self.fleet, step.name
        if node not in fleet.wishes.down:
            fleet.want_down([node], GONE)
        living = [child for child in fleet.of_node(node) if child.process is not None]
        workers = [child for child in living if child.kind == "worker"]
        for worker in workers:
            if not worker.asked_to_die:
                fleet.ask_to_stop(worker, now + DRAIN_NS)
        if living and not workers and not living[0].asked_to_die:
            fleet.kill(living[0], signal.SIGKILL)  # it is no member: there is nothing to hand over, or to keep
        if living:
            return
        files.remove_tree(fleet.spec.data_directory(node))
        self._save(membership.after(fleet.spec, step))
        fleet.remove_node(node)
        if fleet.wishes.down[node].reason == GONE or membership.number(NodeSpec(node, 0)) > fleet.spec.settings.nodes:
            del fleet.wishes.down[node]
            fleet.save_wishes()
        self._relink()
        self._next_at = now
        self._note(f"drop {node}")

    def _relink(self) -> None:
        if self._links is not None:
            self._links.close()
        self._links = Connections(
            self.fleet.spec, [n.name for n in self.fleet.spec.nodes], context=self.requests.context
        )

    def _save(self, spec: ClusterSpec) -> None:
        """Raises: StorageError."""
        try:
            save_spec(spec)
        except OSError as error:
            raise StorageError(f"cannot write {spec.path / 'cluster.json'}: {error.strerror or error}") from None
        self._use(spec)


def _too_few(spec: ClusterSpec, node: str, command: str) -> str:
    if sum(n.phase != LEAVING for n in spec.nodes) == 1:
        return (
            f"{node} is the only node: with its disk everything would be lost. Add others first: {command} start "
            f"{node}, then {command} scale 3; or begin anew: {command} down --purge"
        )
    return (
        f"a cluster of two nodes needs both: while {node} is down nothing can be agreed on, its removal included. Add "
        f"others first: {command} start {node}, then {command} scale 3"
    )
