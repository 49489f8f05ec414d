"""Messages that wait for a disk: none leaves early, and a disk that stalls makes no heap of them."""

from __future__ import annotations

import pytest

from zcluster.consensus.api import AppendReply, HeartbeatReply, VoteReply
from zcluster.node.kept import KeptMessages


def test_messages_leave_in_order_once_their_write_is_persisted() -> None:
    kept = KeptMessages()
    kept.add(1, [(2, VoteReply(3, True, False)), (3, AppendReply(3, True, 1))])
    kept.add(2, [(3, AppendReply(3, True, 2))])
    assert kept.take(0) == []
    assert kept.take(1) == [(2, VoteReply(3, True, False)), (3, AppendReply(3, True, 1))]
    assert kept.take(1) == []
    assert kept.take(9) == [(3, AppendReply(3, True, 2))]
    assert len(kept) == 0


def test_a_stalled_disk_keeps_the_newest_of_each_kind_for_each_receiver() -> None:
    kept = KeptMessages()
    for number in range(1000):
        kept.add(7, [(2, AppendReply(3, True, 40)), (2, HeartbeatReply(3, number)), (3, VoteReply(3, False, False))])
    assert len(kept) == 3
    assert kept.take(7) == [(2, AppendReply(3, True, 40)), (2, HeartbeatReply(3, 999)), (3, VoteReply(3, False, False))]


def test_what_was_acknowledged_is_not_taken_back_by_a_late_smaller_acknowledgement() -> None:
    kept = KeptMessages()
    kept.add(1, [(2, AppendReply(3, True, 9)), (2, AppendReply(3, True, 5))])
    assert kept.take(1) == [(2, AppendReply(3, True, 9))]


@pytest.mark.parametrize("later", [AppendReply(4, True, 5), AppendReply(3, False, 0, 9, 2, 4)])
def test_another_term_or_a_rejection_takes_the_place_of_an_acknowledgement(later: AppendReply) -> None:
    kept = KeptMessages()
    kept.add(1, [(2, AppendReply(3, True, 9))])
    kept.add(1, [(2, later)])
    assert kept.take(1) == [(2, later)]
