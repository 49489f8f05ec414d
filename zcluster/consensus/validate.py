"""Whether a message could come from an honest peer at all. What fails is dropped: a peer's nonsense never raises here.

Checks the message against itself only; what needs the replica's state is checked by the handlers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from zcluster.consensus import membership
from zcluster.consensus.api import (
    AnyMessage,
    AppendReply,
    AppendRequest,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    PreVoteReply,
    PreVoteRequest,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)

LIMIT: Final = 1 << 62
"""Terms, indices, rounds and times stay below it, so that adding to them never overflows on the wire."""


def is_sane(message: AnyMessage) -> bool:
    check = _CHECKS.get(type(message))
    return check is not None and 0 <= message.term < LIMIT and check(message)


def _always(_: AnyMessage) -> bool:
    return True


def _is_sane_vote(message: PreVoteRequest | VoteRequest) -> bool:
    return message.term > 0 and 0 <= message.last_term <= message.term and 0 <= message.last_index < LIMIT


def _is_sane_append_request(message: AppendRequest) -> bool:
    """Entries follow each other and prev_index; terms never fall and do not exceed the message's."""
    if message.term == 0 or not 0 <= message.prev_index < LIMIT or not 0 <= message.commit_index < LIMIT:
        return False
    index, term = message.prev_index, message.prev_term
    if term < 0 or (index == 0) != (term == 0):
        return False
    for entry in message.entries:
        index += 1
        if entry.index != index or entry.epoch < term:
            return False
        term = entry.epoch
    return term <= message.term and (term > 0 or not message.entries)


def _is_sane_append_reply(message: AppendReply) -> bool:
    return (
        0 <= message.match_index < LIMIT
        and 0 <= message.prev_index < LIMIT
        and 0 <= message.conflict_index < LIMIT
        and 0 <= message.conflict_term < LIMIT
    )


def _is_sane_heartbeat(message: Heartbeat) -> bool:
    return (
        message.term > 0
        and 0 <= message.round < LIMIT
        and 0 <= message.commit_index < LIMIT
        and 0 <= message.quorum_time < LIMIT
        and 0 <= message.quorum_commit < LIMIT
    )


def _is_sane_heartbeat_reply(message: HeartbeatReply) -> bool:
    return 0 <= message.round < LIMIT


def _is_sane_snapshot(message: InstallSnapshot) -> bool:
    meta = message.meta
    if not 0 < meta.index < LIMIT or not 0 < meta.epoch <= message.term:
        return False
    try:
        membership.check(meta.configuration)
    except ValueError:
        return False
    return 0 <= meta.configuration.index <= meta.index


_CHECKS: Final[dict[type, Callable[[Any], bool]]] = {
    PreVoteRequest: _is_sane_vote,
    PreVoteReply: _always,
    VoteRequest: _is_sane_vote,
    VoteReply: _always,
    AppendRequest: _is_sane_append_request,
    AppendReply: _is_sane_append_reply,
    Heartbeat: _is_sane_heartbeat,
    HeartbeatReply: _is_sane_heartbeat_reply,
    InstallSnapshot: _is_sane_snapshot,
    TimeoutNow: _always,
}
