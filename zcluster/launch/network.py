"""Faults in the network among the replicas of a running cluster: who is told what.

    partition, isolate  ->  links to cut  ->  an order for each end that can be told
    slow, flaky         ->  an order for the node itself, about all of its peers

A *link* is (from, to), names of nodes: one direction. Both of its ends keep a cut, so one of them is enough if the
other is paused and cannot be told. A node that is down needs none: it starts with a whole network, and what the others
held against it ends with its process. Every rule carries its end, so nobody has to be there when it is over.

Clients still reach every node. What a rule does to messages is the replica's business (`transport.faults`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from zcluster import config, wire
from zcluster.config import ClusterSpec
from zcluster.errors import Conflict, Degraded, InvalidInput, Timeout
from zcluster.launch import probe
from zcluster.transport.faults import DELAY_MAX, KINDS, Direction, Kind, Order, Rule
from zcluster.types import MS, NEVER

Link = tuple[str, str]
OneOrBoth = Literal["in", "out", "both"]
DIRECTIONS: Final = ("in", "out", "both")
ANSWER_S: Final = 2.0
SECONDS_MAX: Final = 86_400.0


# -- which links are cut ----------------------------------------------------------------------------------------------
def links_of_partition(
    nodes: Sequence[str], sides: Sequence[Collection[str]], bridge: Collection[str] = (), direction: OneOrBoth = "both"
) -> frozenset[Link]:
    """Links between nodes of different sides.

    Args:
        nodes: all nodes; those on no side form one of their own.
        bridge: in touch with everybody.
        direction: of two sides, cut only what the first one sends (out) or hears (in).
    Raises: InvalidInput.

    >>> sorted(links_of_partition(["n1", "n2", "n3"], [["n1"], ["n2", "n3"]], direction="out"))
    [('n1', 'n2'), ('n1', 'n3')]
    """
    side_of: dict[str, int] = {}
    for number, side in enumerate([*sides, bridge]):
        if not side and number < len(sides):
            raise InvalidInput("a side of a partition needs at least one node")
        for name in dict.fromkeys(side):
            if name in side_of:
                raise InvalidInput(f"{name} is on two sides of the partition; name every node once")
            side_of[name] = number
    for name in bridge:
        del side_of[name]
    rest = len(sides) + 1
    for name in nodes:
        if name not in bridge:
            side_of.setdefault(name, rest)
    count = len(set(side_of.values()))
    if count < 2:
        raise InvalidInput("all nodes are on one side: nothing would be cut; name fewer of them, or a second side")
    if direction != "both" and count != 2:
        raise InvalidInput(f"one direction needs exactly two sides, and there are {count}; or use isolate")
    return frozenset(
        (a, b)
        for a, side_a in side_of.items()
        for b, side_b in side_of.items()
        if side_a != side_b and (direction == "both" or (direction == "out") == (side_a == 0))
    )


def links_of_isolation(nodes: Sequence[str], names: Collection[str], direction: OneOrBoth = "both") -> frozenset[Link]:
    """All links of each of `names`: what it sends (out), what it hears (in), or both.

    >>> sorted(links_of_isolation(["n1", "n2", "n3"], ["n3"], "in"))
    [('n1', 'n3'), ('n2', 'n3')]
    """
    return frozenset(
        (a, b)
        for a in nodes
        for b in nodes
        if a != b and ((a in names and direction != "in") or (b in names and direction != "out"))
    )


# -- telling them -----------------------------------------------------------------------------------------------------
class Seen(NamedTuple):
    """A replica's process: "up", "paused" or "down"; its pid and start time, 0 if it is down."""

    condition: str
    pid: int = 0
    start_ticks: int = 0


class NetworkFaults:
    """Puts faults into the network of one cluster, and takes them out.

    Args:
        look: what each node's replica is right now.
    """

    def __init__(self, spec: ClusterSpec, look: Callable[[], Mapping[str, Seen]]) -> None:
        self._spec = spec
        self._look = look
        self._command = config.command(spec.path)

    @property
    def names(self) -> list[str]:
        return [node.name for node in self._spec.nodes]

    def cut(self, links: Collection[Link], seconds: float | None = None) -> dict[str, Any]:
        """Cut these links instead of all that were cut before.

        Returns: {"cuts", "untold", "down", "seconds"}: the links cut; paused nodes, whose peers alone keep the cut;
            nodes that are down and start with a whole network.
        Raises: Conflict (no link would be cut, or both ends of one are paused), InvalidInput, Degraded.
        """
        self.check_peers()
        until = _until(seconds)
        seen = self._look()
        able = [n for n in self.names if seen[n].condition == "up"]
        down = [n for n in self.names if seen[n].condition == "down"]
        live = sorted((a, b) for a, b in links if a not in down and b not in down)
        if not live:
            gone = sorted({n for link in links for n in link if n in down})
            raise Conflict(
                f"{_and(gone)} {_is(gone)} down: no link would be cut, and a node starts with a whole network. "
                f"Start first: {self._command} start {' '.join(gone)}"
            )
        self._check_kept(live, able, "paused", f"{self._command} resume {{}}")
        silent = self._tell({name: Order(("cut",), self._cuts_of(name, live, seen, until)) for name in able})
        told = [n for n in able if n not in silent]
        self._check_kept(live, told, "silent", f"{self._command} heal")
        untold = [n for n in self.names if n not in told and n not in down and any(n in link for link in live)]
        return {"cuts": [list(link) for link in live], "untold": untold, "down": down, "seconds": seconds}

    def _cuts_of(self, name: str, links: Iterable[Link], seen: Mapping[str, Seen], until: int) -> tuple[Rule, ...]:
        """The part of a cut that one end keeps, against each peer for as long as that one's process lives."""
        rules = []
        for a, b in links:
            if name in (a, b):
                peer = b if a == name else a
                _, pid, start_ticks = seen[peer]
                direction: Direction = "out" if a == name else "in"
                peer_id = self._spec.replica_id(peer)
                rules.append(Rule("cut", direction, peer_id, until, pid=pid, start_ticks=start_ticks))
        return tuple(rules)

    def slow(self, names: Sequence[str], ms: float, seconds: float | None = None) -> dict[str, Any]:
        """Everything that these nodes send to and hear from their peers comes `ms` later; 0: no more."""
        if not 0 <= ms <= DELAY_MAX / MS:
            raise InvalidInput(f"a delay is from 0 to {DELAY_MAX // MS:,} ms, not {ms:,.10g} ms")
        until = _until(seconds)
        rules = _both_ways(Rule("slow", "in", until=until, delay=int(ms * MS))) if ms else ()
        self._tell_each(names, Order(("slow",), rules))
        return {"nodes": list(names), "delay_ms": ms, "seconds": seconds}

    def flaky(
        self, names: Sequence[str], loss: float, duplicate: float = 0.0, seconds: float | None = None
    ) -> dict[str, Any]:
        """Of what these nodes send to and hear from their peers, a share is lost, another comes twice; 0: none."""
        for share, what in ((loss, "loss"), (duplicate, "duplicate")):
            if not 0 <= share <= 1:
                raise InvalidInput(f"{what} is a share from 0 to 1 (5 % is 0.05), not {share:g}")
        until = _until(seconds)
        wanted = loss or duplicate
        rules = _both_ways(Rule("flaky", "in", until=until, loss=loss, duplicate=duplicate)) if wanted else ()
        self._tell_each(names, Order(("flaky",), rules))
        return {"nodes": list(names), "loss": loss, "duplicate": duplicate, "seconds": seconds}

    def heal(self) -> dict[str, Any]:
        """End all faults of the network. Raises: Degraded, when a node could not be told; the others are healed."""
        seen = self._look()
        up = [n for n in self.names if seen[n].condition == "up"]
        silent = self._tell(dict.fromkeys(up, Order(KINDS)))
        paused = [n for n in self.names if seen[n].condition == "paused"]
        if paused:
            raise Degraded(
                f"{_and(paused)} {_is(paused)} paused and could not be told to heal; the others are healed. "
                f"Then: {self._command} resume {' '.join(paused)} && {self._command} heal"
            )
        if silent:
            raise Degraded(f"{_and(silent)} did not answer; the others are healed. Try again: {self._command} heal")
        return {"healed": up}

    def check_peers(self) -> None:
        """Raises: InvalidInput, if there is no network to break."""
        if len(self.names) < 2:
            raise InvalidInput(
                f"cluster {self._spec.name!r} has one node: there is no network among replicas to break; "
                "faults for one node are kill and pause"
            )

    def _check_kept(self, links: Iterable[Link], told: Collection[str], state: str, advice: str) -> None:
        """Every link needs one end that keeps the cut."""
        for a, b in links:
            if a not in told and b not in told:
                pair = [a, b]
                text = f"{_and(pair)} are both {state}, and nobody else can cut the link between them"
                kind = Conflict if state == "paused" else Degraded
                raise kind(f"{text}. First: {advice.format(' '.join(pair))}")

    def _tell_each(self, names: Sequence[str], order: Order) -> None:
        """Nodes that alone keep the rule: all must be there. Raises: Conflict, Timeout."""
        self.check_peers()
        if not names:
            raise InvalidInput("no node is named")
        seen = self._look()
        for state, verb in (("down", "start"), ("paused", "resume")):
            absent = [n for n in names if seen[n].condition == state]
            if absent:
                raise Conflict(
                    f"{_and(absent)} {_is(absent)} {state} and cannot be told. "
                    f"First: {self._command} {verb} {' '.join(absent)}"
                )
        silent = self._tell(dict.fromkeys(names, order))
        if silent:
            raise Timeout(f"{_and(silent)} did not answer within {ANSWER_S:g} s; see: {self._command} status")

    def _tell(self, orders: Mapping[str, Order]) -> list[str]:
        """Returns: who did not answer. Raises: InvalidInput, what a node does not understand."""
        bodies = {name: wire.encode(order) for name, order in orders.items()}
        answers = probe.ask(self._spec, bodies, wire.FAULTS, bodies, timeout_s=ANSWER_S)
        for name, (kind, body) in answers.items():
            if kind != wire.RESULT:
                raise InvalidInput(f"{name} refused: {wire.decode(body)}; is another zcluster version running?")
        return [name for name in orders if name not in answers]


def _both_ways(rule: Rule) -> tuple[Rule, Rule]:
    return rule, Rule(rule.kind, "out", rule.peer, rule.until, rule.delay, rule.loss, rule.duplicate)


def _until(seconds: float | None) -> int:
    """The moment, on the clock that all processes of this boot share."""
    if seconds is None:
        return NEVER
    if not 0 < seconds <= SECONDS_MAX:
        raise InvalidInput(f"a fault of the network lasts more than 0 s and at most a day, not {seconds:g} s")
    return time.monotonic_ns() + int(seconds * 1e9)


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


# -- what is in force -------------------------------------------------------------------------------------------------
def describe(names: Sequence[str], faults: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The network as the nodes' own rules make it.

    Args:
        faults: what each node's status says of its rules.
    Returns:
        {"cuts": [[from, to]...], "slow": {node: ms}, "flaky": {node: {"loss", "duplicate"}}, "seconds_left"}: until
        the last of them ends; None: there is none, or one that only `heal` ends.
    """
    cuts: set[Link] = set()
    slow: dict[str, float] = {}
    flaky: dict[str, dict[str, float]] = {}
    left: list[float | None] = []
    for name in names:
        for rule in faults.get(name, ()):
            kind: Kind = rule["kind"]
            left.append(rule["seconds_left"])
            if kind == "cut":
                peers = [rule["peer"]] if rule["peer"] is not None else [n for n in names if n != name]
                cuts |= {(name, peer) if rule["direction"] == "out" else (peer, name) for peer in peers}
            elif kind == "slow":
                slow[name] = max(slow.get(name, 0.0), rule["delay_ms"])
            else:
                flaky[name] = {"loss": rule["loss"], "duplicate": rule["duplicate"]}
    longest = None if None in left else max((x for x in left if x is not None), default=None)
    return {"cuts": [list(link) for link in sorted(cuts)], "slow": slow, "flaky": flaky, "seconds_left": longest}


def in_touch(names: Collection[str], cuts: Iterable[Sequence[str]]) -> int:
    """The largest number of nodes that one of `names` reaches both ways, itself included.

    >>> in_touch(["n1", "n2", "n3"], [["n1", "n2"], ["n1", "n3"]])
    2
    """
    severed = {frozenset(link) for link in cuts}
    return max((sum(a == b or frozenset((a, b)) not in severed for b in names) for a in names), default=0)


def lines(network: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """For people: who does not hear whom, who is slow, who is flaky.

    >>> lines({"cuts": [["n1", "n2"], ["n2", "n1"], ["n3", "n1"]], "slow": {"n2": 50}, "flaky": {}}, ["n1", "n2", "n3"])
    ['n1 | n2 are cut off from each other', 'n1 does not hear n3', 'n2 is slow: 50 ms']
    """
    cuts = {(a, b) for a, b in network["cuts"]}
    two_way = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if {(a, b), (b, a)} <= cuts]
    found = []
    if two_way:
        involved = [name for name in names if any(name in pair for pair in two_way)]
        sides = _sides(involved, {frozenset(pair) for pair in two_way})
        groups = [sides] if sides is not None else [[[a], [b]] for a, b in two_way]
        found += [" | ".join(" ".join(side) for side in group) + " are cut off from each other" for group in groups]
    for listener in names:
        unheard = [a for a, b in sorted(cuts) if b == listener and (b, a) not in cuts]
        if unheard:
            found.append(f"{listener} does not hear {_and(unheard)}")
    found += [f"{name} is slow: {ms:g} ms" for name, ms in network["slow"].items()]
    for name, share in network["flaky"].items():
        parts = [(share["loss"], "lost"), (share["duplicate"], "twice")]
        found.append(f"{name} is flaky: {', '.join(f'{100 * part:g} % {text}' for part, text in parts if part)}")
    return found


def _sides(names: Sequence[str], severed: Collection[frozenset[str]]) -> list[list[str]] | None:
    """The sides of a partition, if cutting exactly between them gives `severed`; None if there are no such sides."""
    sides: list[list[str]] = []
    for name in names:
        for side in sides:
            if frozenset((name, side[0])) not in severed:
                side.append(name)
                break
        else:
            sides.append([name])
    between = {frozenset((a, b)) for s in sides for t in sides if s is not t for a in s for b in t}
    return sides if len(sides) > 1 and between == set(severed) else None
