"""Who gets entries at once, who a little later, and that nobody waits for a slow one longer than that."""

from __future__ import annotations

from tests.unit.consensus.network import Network
from tests.unit.consensus.solo import Solo
from zcluster.consensus.api import AppendRequest, Settings
from zcluster.consensus.vanguard import HELD_BYTES_MAX
from zcluster.types import MS

DELAY = 5 * MS
SETTINGS = Settings(rear_delay=DELAY)


def leading(*voters: int, **bounds: int) -> Solo:
    solo = Solo(voters=voters, settings=Settings(rear_delay=DELAY, **bounds))
    solo.lead()
    for other in solo.others():
        solo.acknowledge(other)
    solo.take()
    return solo


def requests(solo: Solo) -> list[tuple[int, int]]:
    """(receiver, number of entries) of each append request sent since the last call."""
    return [(to, len(m.entries)) for to, m in solo.take() if isinstance(m, AppendRequest)]


def test_a_commit_needs_the_vanguard_only_and_the_rear_gets_all_of_it_in_one_request() -> None:
    solo = leading(1, 2, 3)
    for _ in range(4):
        index = solo.propose()
        solo.acknowledge(2)
        assert solo.core.commit_index == index
    assert requests(solo) == [(2, 1)] * 4
    solo.wait(DELAY)
    assert requests(solo) == [(3, 4)]


def test_nothing_is_held_back_longer_than_the_delay() -> None:
    solo = leading(1, 2, 3)
    solo.propose()
    solo.acknowledge(2)
    assert solo.core.next_deadline() <= solo.now + DELAY
    solo.wait(DELAY - 1)
    assert requests(solo) == [(2, 1)]
    solo.propose()
    solo.wait(1)
    assert requests(solo) == [(2, 1), (3, 2)], "the first entry held back sets the time"


def test_a_follower_far_behind_catches_up_without_further_delays() -> None:
    """One batch a delay would never catch up with a busy leader. Found by the simulator, seed 428."""
    solo = leading(1, 2, 3, batch_bytes_max=1, inflight_max=1)
    for _ in range(3):
        index = solo.propose()
        solo.acknowledge(2)
    solo.wait(DELAY)
    assert requests(solo)[-1] == (3, 1)
    for _ in range(2):
        solo.acknowledge(3, index - 2)
        assert requests(solo) == [(3, 1)], "each answer lets the next batch go"
        index += 1
    solo.propose()
    assert requests(solo) == [(2, 1)], "what came after the release is held back again"


def test_the_rear_takes_the_place_of_a_vanguard_that_is_slow() -> None:
    solo = leading(1, 2, 3)
    index = solo.propose()  # replica 2 does not answer
    solo.wait(DELAY)
    assert requests(solo) == [(2, 1), (3, 1)]
    solo.acknowledge(3)
    assert solo.core.commit_index == index
    solo.propose()
    solo.wait(DELAY)
    solo.take()
    solo.acknowledge(3)
    solo.propose()
    assert requests(solo) == [(3, 1)], "replica 3 is further ahead"


def test_a_dead_vanguard_is_not_waited_for() -> None:
    solo = leading(1, 2, 3)
    solo.propose()
    assert requests(solo) == [(2, 1)]
    solo.core.peer_lost(2, 1, solo.now)
    solo.pump()
    assert requests(solo) == [(3, 1)], "what was held back leaves at once"
    solo.propose()
    assert requests(solo) == [(3, 1)], "and so does everything as long as it is away"


def test_large_entries_are_held_back_from_nobody() -> None:
    solo = leading(1, 2, 3)
    solo.propose(bytes(HELD_BYTES_MAX))
    assert requests(solo) == [(2, 1), (3, 1)]


def test_five_replicas_have_a_vanguard_of_two() -> None:
    solo = leading(1, 2, 3, 4, 5)
    index = solo.propose()
    assert requests(solo) == [(2, 1), (3, 1)]
    solo.acknowledge(2)
    solo.acknowledge(3)
    assert solo.core.commit_index == index


def test_two_replicas_need_each_other() -> None:
    solo = leading(1, 2)
    solo.propose()
    assert requests(solo) == [(2, 1)]


def test_nothing_is_held_back_while_leadership_moves() -> None:
    solo = leading(1, 2, 3)
    solo.propose()
    solo.acknowledge(2)
    solo.core.transfer_leadership(3, solo.now)
    solo.pump()
    assert (3, 1) in requests(solo)


def test_a_rejected_vanguard_holds_nobody_back() -> None:
    solo = leading(1, 2, 3)
    leadership = solo.core.leadership
    assert leadership is not None
    leadership.progress[2].become_probe(1, solo.now)
    solo.propose()
    assert 3 in [to for to, _ in requests(solo)]


def test_followers_of_the_rear_apply_everything_without_further_writes() -> None:
    network = Network(5, seed=3, settings=SETTINGS)
    network.elect()
    for _ in range(5):
        network.commit()
    network.run(100 * MS)
    assert len({node.applied_index for node in network.nodes.values()}) == 1
