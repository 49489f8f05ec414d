"""Requests to change who belongs to the cluster: what they say, and what the cluster says to them. Pure.

    request --> linearizable read of the committed configuration --already so---------------------> RESULT
                                          |
                                          +--> proposed --> committed and applied ----------------> RESULT
                                          +--> not yet (catching up, another change, a transfer) --> BUSY [why]

The read comes first so that a leader that was deposed unawares says nothing outdated. A request may be repeated until
it gets a RESULT: replica ids are never used again, so what it asks for is done once. Does not live here: whether a
change is prudent (`consensus.leadership`), and which changes make a wish come true (`launch.membership`).
"""

from __future__ import annotations

from typing import Final

import msgspec

from zcluster import wire
from zcluster.consensus.api import ADD_LEARNER, PROMOTE, REMOVE, ConfigChange, Consensus
from zcluster.errors import Busy, InvalidInput
from zcluster.types import Configuration, Index, Nanoseconds, ReplicaId

SHOW: Final = "show"
"""Changes nothing: only the answer is wanted."""


class Request(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The body of a MEMBERSHIP request. `at`: index of the committed configuration that it starts from; with another
    one nothing is changed. So a request that was long under way cannot undo what was decided meanwhile. None: any."""

    action: str
    replica: ReplicaId
    at: Index | None = None

    @property
    def change(self) -> ConfigChange:
        return ConfigChange(self.action, self.replica)


_decode = msgspec.msgpack.Decoder(Request).decode


def decode_request(body: bytes) -> Request:
    """Raises: InvalidInput."""
    try:
        request = _decode(body)
    except wire.DecodeError as error:
        raise InvalidInput(f"not a membership request: {error}") from None
    if request.action not in (SHOW, ADD_LEARNER, PROMOTE, REMOVE):
        raise InvalidInput(f"unknown membership change {request.action!r}")
    return request


def encode_change(change: ConfigChange, at: Index | None = None) -> bytes:
    """The body of a MEMBERSHIP request; see `Request`."""
    return wire.encode(Request(change.action, change.replica, at))


def encode_configuration(configuration: Configuration) -> bytes:
    """The body of its RESULT."""
    return wire.encode([configuration.index, configuration.voters, configuration.learners])


def decode_configuration(body: bytes) -> Configuration:
    """Raises: wire.DecodeError."""
    index, voters, learners = msgspec.msgpack.decode(body, type=tuple[int, tuple[int, ...], tuple[int, ...]])
    return Configuration(voters, learners, index)


def is_done(change: Request | ConfigChange, configuration: Configuration) -> bool:
    """Whether `configuration` is what the change is to bring about.

    >>> change = ConfigChange("add_learner", 2)
    >>> is_done(change, Configuration((1, 2))), is_done(change, Configuration((1,)))
    (True, False)
    """
    is_voter, is_learner = change.replica in configuration.voters, change.replica in configuration.learners
    if change.action == ADD_LEARNER:
        return is_voter or is_learner
    if change.action == PROMOTE:
        return is_voter
    return change.action == SHOW or not (is_voter or is_learner)


def propose(core: Consensus, request: Request, committed: Configuration, now: Nanoseconds) -> Index:
    """Put the change into the log of a leader; one that is to go hands its leadership over instead, first.

    A leader may remove itself (thesis §4.2.2), but then the service stops between the commit of that and the election;
    a transfer takes a few milliseconds. Raises: NotLeader, Busy, InvalidInput.
    """
    if request.at is not None and request.at != committed.index:
        raise Busy(f"the configuration has changed meanwhile, at {committed.index}; retry")
    change = request.change
    if change.action == REMOVE and core.is_leader and change.replica == core.leader and len(committed.voters) > 1:
        try:
            core.transfer_leadership(0, now)
        except InvalidInput:
            raise Busy(f"replica {change.replica} leads, and no other voter is there to take over; retry") from None
        raise Busy(f"replica {change.replica} leads, and hands its leadership over first; retry")
    return core.propose_config(change, now)
