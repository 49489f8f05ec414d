"""Which step comes next on the way from the nodes that there are to the nodes that there are to be. Pure.

    wish          `settings.nodes`, and the phase of each node: in cluster.json, written before anything is done
    truth         the committed configuration, in the log
    in between    processes and data directories, which follow the truth one step at a time

Every step can be repeated, and after each the plan is made anew from what is so then. So it does not matter who was
killed when: whoever plans next goes on from there, forwards or, if the wish has changed, back.

    a node that is to be    Create (FRESH) -> its process answers (JOINING) -> ADD_LEARNER -> PROMOTE (MEMBER)
    a node that is not      LEAVING -> REMOVE -> Drop: workers drain, the replica ends, the data go, the name is free
    a disk to be wiped      LEAVING, so all of the second line; then the name is missing, so all of the first

Order. Dead members go before anybody comes: that never takes a majority away (of 3 voters with one dead, and of the 2
that stay, both living ones are needed), while a fourth voter beside a dead one would ask for 3 of 4. And a disk is
erased only when its replica is no member any more: where no majority can agree to that, nothing is lost. Living members
go when nobody is ready to come.

Does not live here: carrying out (`reconcile`), whether a learner has caught up (`consensus.leadership`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import msgspec

from zcluster.config import FRESH, JOINING, LEAVING, MEMBER, ClusterSpec, NodeSpec
from zcluster.consensus.api import ADD_LEARNER, PROMOTE, REMOVE, ConfigChange
from zcluster.types import Configuration, ReplicaId


class Create(NamedTuple):
    """A node joins the description; its processes start."""

    name: str
    replica_id: ReplicaId


class Enter(NamedTuple):
    """A node's next phase is written down."""

    name: str
    phase: str


class Propose(NamedTuple):
    """Ask the leader for a change; `name`: of whom, for people."""

    change: ConfigChange
    name: str


class Drop(NamedTuple):
    """It is no member (any more): end its processes, erase its data, forget it."""

    name: str


Step = Create | Enter | Propose | Drop


class Plan(NamedTuple):
    """`steps` that can be taken now, at most one of them a `Propose`. `waits`: what is waited for, in words.
    Neither: everything is as it is to be."""

    steps: list[Step]
    waits: list[str]


def number(node: NodeSpec) -> int:
    return int(node.name.removeprefix("n"))


def is_settled(spec: ClusterSpec) -> bool:
    """Whether there is nothing to do, as far as it was written down."""
    return len(spec.nodes) == spec.settings.nodes and all(n.phase == MEMBER for n in spec.nodes)


def plan(spec: ClusterSpec, configuration: Configuration, answering: Collection[str]) -> Plan:
    """Args:
    configuration: committed.
    answering: names of the nodes whose replicas live and answer.
    """
    members = {*configuration.voters, *configuration.learners}
    staying = sorted((n for n in spec.nodes if n.phase != LEAVING), key=number)
    steps: list[Step] = []
    if any(n.replica_id in configuration.voters for n in staying[: spec.settings.nodes]):  # else nobody would be left
        steps += [Enter(n.name, LEAVING) for n in staying[spec.settings.nodes :]]
    steps += _creations(spec)
    steps += [Enter(n.name, JOINING) for n in staying if n.phase == FRESH and n.name in answering]
    steps += [Enter(n.name, MEMBER) for n in staying if n.phase == JOINING and n.replica_id in configuration.voters]
    dropped = [n.name for n in spec.nodes if n.phase == LEAVING and n.replica_id not in members]
    steps += [Drop(name) for name in dropped]
    change, waits = _next_change(spec, configuration, answering)
    steps += [change] if change is not None else []
    return Plan(steps, waits + [f"{name} ends" for name in dropped])


def _creations(spec: ClusterSpec) -> list[Step]:
    """The nodes n1 .. nN that are to be and are missing. A name that is still being left waits until it is free."""
    taken = {n.name for n in spec.nodes}
    names = [name for i in range(spec.settings.nodes) if (name := f"n{i + 1}") not in taken]
    used = max(spec.replica_ids_used, *(n.replica_id for n in spec.nodes), 0)
    return [Create(name, used + i + 1) for i, name in enumerate(names)]


def _next_change(
    spec: ClusterSpec, configuration: Configuration, answering: Collection[str]
) -> tuple[Propose | None, list[str]]:
    """The change to ask for now, if any can be made, and what is waited for."""
    members = {*configuration.voters, *configuration.learners}
    known = {n.replica_id: n for n in spec.nodes}
    going = {
        replica: known[replica].name if replica in known else f"replica {replica}"
        for replica in sorted(members, reverse=True)
        if replica not in known or known[replica].phase == LEAVING
    }
    coming = [n for n in spec.nodes if n.phase != LEAVING and n.replica_id not in configuration.voters]
    ready = [n for n in coming if n.name in answering and n.phase != FRESH]
    waits = [f"{n.name} is starting, or down" for n in coming if n.name not in answering]
    dead = [replica for replica, name in going.items() if name not in answering]
    outside = [n for n in ready if n.replica_id not in members]
    if dead:
        return _removal(dead[0], going, waits)
    if outside:  # before anybody is promoted: all of them catch up at the same time
        change = Propose(ConfigChange(ADD_LEARNER, outside[0].replica_id), outside[0].name)
        return change, [*waits, f"{outside[0].name} is added"]
    if ready:
        return Propose(ConfigChange(PROMOTE, ready[0].replica_id), ready[0].name), [
            *waits,
            f"{ready[0].name} catches up",
        ]
    if going:
        return _removal(next(iter(going)), going, waits)
    return None, waits


def _removal(replica: ReplicaId, names: dict[ReplicaId, str], waits: list[str]) -> tuple[Propose, list[str]]:
    return Propose(ConfigChange(REMOVE, replica), names[replica]), [*waits, f"{names[replica]} is removed"]


def after(spec: ClusterSpec, step: Create | Enter | Drop) -> ClusterSpec:
    """The description once a step is taken. Ports of a new node are the caller's."""
    if isinstance(step, Create):
        nodes = (*spec.nodes, NodeSpec(step.name, step.replica_id, FRESH))
    elif isinstance(step, Enter):
        nodes = tuple(NodeSpec(n.name, n.replica_id, step.phase) if n.name == step.name else n for n in spec.nodes)
    else:
        nodes = tuple(n for n in spec.nodes if n.name != step.name)
    return msgspec.structs.replace(
        spec,
        nodes=tuple(sorted(nodes, key=number)),
        replica_ids_used=max(spec.replica_ids_used, *(n.replica_id for n in (*spec.nodes, *nodes))),
        ports={
            socket: p
            for socket, p in spec.ports.items()
            if not isinstance(step, Drop) or socket.partition(".")[0] != step.name
        },
    )
