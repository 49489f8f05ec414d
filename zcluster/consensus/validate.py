"""Whether a message could come from an honest peer at all. What fails is dropped: a peer's nonsense never raises here.

Checks the message against itself only; what needs the replica's state is checked by the handlers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from zcluster.consensus import membership
from zcluster.consensus.api import (
    Accept,
    Accepted,
    AnyMessage,
    AppendReply,
    AppendRequest,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Prepare,
    PreVoteReply,
    PreVoteRequest,
    Promised,
    Rejected,
    TimeoutNow,
    TrialPrepare,
    TrialPromise,
    VoteReply,
    VoteRequest,
)
from zcluster.types import Entry, Index, Term

LIMIT: Final = 1 << 62
"""Terms, indices, rounds and times stay below it, so that adding to them never overflows on the wire."""

REPORT_SPAN_MAX: Final = 1 << 24
"""Slots that one report of an acceptor may reach over."""


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


def _is_sane_trial_prepare(message: TrialPrepare) -> bool:
    return message.term > 0 and 0 <= message.commit_index < LIMIT and 0 <= message.last_index < LIMIT


def _is_sane_trial_promise(message: TrialPromise) -> bool:
    return 0 <= message.promised < LIMIT


def _is_sane_prepare(message: Prepare) -> bool:
    return (
        message.term > 0
        and 0 < message.first < LIMIT
        and 0 <= message.held_index < LIMIT
        and 0 <= message.held_ballot < LIMIT
        and 0 <= message.transfer < message.term
    )


def _is_sane_promised(message: Promised) -> bool:
    """Slots ascend from `first` on, near to it (a gap costs a value each); no value is of a higher ballot."""
    if not 0 < message.first < LIMIT or not 0 <= message.promised < LIMIT or not 0 <= message.more_from < LIMIT:
        return False
    before = message.first - 1
    for entry in message.entries:
        if not before < entry.index < message.first + REPORT_SPAN_MAX or not 0 < entry.epoch < message.term:
            return False
        before = entry.index
    return not message.granted or not message.more_from or message.more_from > before >= message.first


def _is_sane_accept(message: Accept) -> bool:
    """Values of consecutive slots, proposed under the message's ballot."""
    if message.term == 0 or not 0 < message.first < LIMIT:
        return False
    if not 0 <= message.commit_index < LIMIT or not 0 <= message.opening < LIMIT:
        return False
    return _are_consecutive(message.entries, message.first, message.term)


def _are_consecutive(entries: tuple[Entry, ...], index: Index, epoch: Term) -> bool:
    for entry in entries:
        if entry.index != index or entry.epoch != epoch:
            return False
        index += 1
    return True


def _is_sane_accepted(message: Accepted) -> bool:
    return 0 <= message.through < LIMIT and 0 <= message.first <= message.last < LIMIT


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
    TrialPrepare: _is_sane_trial_prepare,
    TrialPromise: _is_sane_trial_promise,
    Prepare: _is_sane_prepare,
    Promised: _is_sane_promised,
    Accept: _is_sane_accept,
    Accepted: _is_sane_accepted,
    Rejected: _always,
}
