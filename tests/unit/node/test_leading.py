"""When a leader gives its leadership away by itself."""

from __future__ import annotations

from itertools import pairwise

import pytest

from zcluster.consensus.api import Status
from zcluster.errors import Busy
from zcluster.node.leading import LAG_REST, LOOK_EVERY, STEADY_MAX, STEADY_MIN, Leading
from zcluster.types import MS, NEVER, Configuration

TIMEOUT = 600 * MS


class Core:
    """As much of a consensus core as is asked; remembers to whom leadership was handed."""

    def __init__(self) -> None:
        self.is_leader = True
        self.commit_index = 10
        self.match_index = {1: 10, 2: 10, 3: 10}
        self.active_at = {2: 0, 3: 0}
        self.voters: tuple[int, ...] = (1, 2, 3)
        self.transfers: list[int] = []
        self.refuse: Exception | None = None

    def status(self) -> Status:
        return Status(
            role="leader",
            term=1,
            leader=1,
            commit_index=self.commit_index,
            last_index=self.commit_index,
            first_index=1,
            configuration=Configuration(self.voters),
            match_index=self.match_index,
            active_at=self.active_at,
        )

    def transfer_leadership(self, to: int, now: int) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.transfers.append(to)


@pytest.fixture
def core() -> Core:
    return Core()


def make(preferred: int = 0) -> Leading:
    return Leading(1, preferred, TIMEOUT)


def test_a_stuck_disk_counts_once_a_majority_without_it_has_more(core: Core) -> None:
    leading = make()
    core.match_index[1] = 9
    assert not leading.disk_stuck(core, 0, TIMEOUT // 2 - 1)
    assert leading.disk_stuck(core, 0, TIMEOUT // 2)
    assert core.transfers == [0]


def test_a_disk_that_stops_everybody_is_no_reason_to_move(core: Core) -> None:
    """All replicas on one disk: nothing commits past what is durable here."""
    assert not make().disk_stuck(core, 0, 100 * TIMEOUT)
    assert core.transfers == []


def test_a_handover_that_came_to_nothing_is_tried_again_only_when_it_was_given_up(core: Core) -> None:
    leading = make()
    core.match_index[1] = 9
    core.refuse = Busy("a membership change")
    assert not leading.disk_stuck(core, 0, TIMEOUT)
    core.refuse = None
    assert not leading.disk_stuck(core, 0, 2 * TIMEOUT - 1)
    assert leading.disk_stuck(core, 0, 2 * TIMEOUT)


def test_who_does_not_lead_has_nothing_to_hand_over(core: Core) -> None:
    leading = make(preferred=2)
    core.is_leader = False
    core.match_index = {}
    assert not leading.disk_stuck(core, 0, TIMEOUT)
    for second in range(1, 4):
        assert not leading.lagged(core, TIMEOUT, second * 1000 * MS)
    assert leading.next_deadline(core) == NEVER
    assert core.transfers == []


def test_a_loop_that_hangs_now_and_then_keeps_its_leadership(core: Core) -> None:
    leading = make()
    for second in range(0, 100, 6):
        assert not leading.lagged(core, TIMEOUT, second * 1000 * MS)
    for second in range(200, 210):
        assert not leading.lagged(core, TIMEOUT // 2 - 1, second * 1000 * MS)


def test_a_loop_that_hangs_again_and_again_hands_over_and_not_twice_in_a_row(core: Core) -> None:
    leading = make()
    hung = [leading.lagged(core, TIMEOUT // 2, second * 1000 * MS) for second in range(1, 7)]
    assert hung == [False, False, True, False, False, False]
    assert leading.lagged(core, TIMEOUT, 6000 * MS + LAG_REST) is False, "the two before it are long past"


def look_until(leading: Leading, core: Core, begin: int, end: int) -> list[int]:
    """Looks whenever it wants to, everybody heard. Returns: when it handed over."""
    now, found = begin, []
    while now <= end:
        core.active_at = dict.fromkeys(core.active_at, now)
        if leading.look(core, now):
            found.append(now)
        assert leading.next_deadline(core) > now
        now = leading.next_deadline(core)
    return found


def test_the_preferred_one_gets_leadership_when_it_has_kept_up_for_a_while(core: Core) -> None:
    leading = make(preferred=3)
    [first, *_] = look_until(leading, core, 0, 10 * STEADY_MIN)
    assert STEADY_MIN <= first <= STEADY_MIN + LOOK_EVERY
    assert set(core.transfers) == {3}


def test_each_time_it_waits_twice_as_long_so_that_leadership_does_not_go_in_circles(core: Core) -> None:
    moments = look_until(make(preferred=3), core, 0, 5 * STEADY_MAX)
    gaps = [after - before for before, after in pairwise(moments)]
    assert gaps[:3] == sorted(gaps[:3])
    assert gaps[1] >= 1.7 * gaps[0]
    assert max(gaps) <= STEADY_MAX + 3 * LOOK_EVERY


@pytest.mark.parametrize("fault", ["behind", "silent", "damaged", "learner"])
def test_one_that_cannot_lead_is_not_preferred(core: Core, fault: str) -> None:
    leading = make(preferred=3)
    if fault == "behind":
        core.match_index[3] = 5
    elif fault == "damaged":
        del core.active_at[3]
    elif fault == "learner":
        core.voters = (1, 2)
    for now in range(0, 20 * STEADY_MIN, LOOK_EVERY):
        core.commit_index += 1
        if fault != "behind":
            core.match_index[3] = core.commit_index
        if fault != "silent":
            core.active_at = dict.fromkeys(core.active_at, now)
        assert not (leading.look(core, now) and now > TIMEOUT)
    assert core.transfers == []


def test_a_preferred_node_that_comes_back_as_another_replica_is_preferred_again(core: Core) -> None:
    leading = make(preferred=5)  # wiped, or removed and added again: replica 3 now
    assert look_until(leading, core, 0, 3 * STEADY_MIN) == []
    leading.prefer(3)
    assert len(look_until(leading, core, 3 * STEADY_MIN, 5 * STEADY_MIN)) == 1
    leading.prefer(1)
    assert leading.next_deadline(core) == NEVER, "it leads already"


def test_who_is_preferred_itself_or_prefers_nobody_never_looks(core: Core) -> None:
    assert make(preferred=1).next_deadline(core) == NEVER
    assert make().next_deadline(core) == NEVER
