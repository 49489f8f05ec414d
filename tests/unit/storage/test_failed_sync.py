"""A failed sync leaves the page cache clean: the next process reads what no disk holds, and must not believe it.

Found by the simulator (seed 56). The process stops on the failed sync, as it must; the next one reads the log from the
page cache, where everything is still there. Its own sync reports success and saves nothing, since the pages count as
clean. It would acknowledge the entries, and the next power cut takes them.
"""

from __future__ import annotations

import pytest

from tests.unit.storage.stores import entry, indices, new_node, open_at, recover
from zcluster.errors import StorageError


@pytest.mark.parametrize("entries", [1, 40])
def test_what_a_failed_sync_left_in_the_page_cache_is_written_again(entries: int) -> None:
    node = new_node()
    node.put(1, 2)
    node.disk.fail("fdatasync")
    with pytest.raises(StorageError):
        node.write_group([{"entries": ()}, *({"entries": (one,)} for one in _entries(3, entries))])
    node.disk.kill()

    found = open_at(node.disk).recovered
    assert indices(found) == list(range(1, 3 + entries)), "they are in the page cache, so the next process has them"

    node.disk.power_cut("nothing")
    assert indices(recover(node.disk)) == indices(found), "and what it has, it has promised to keep"


def _entries(first: int, count: int) -> list[object]:
    return [entry(first + position) for position in range(count)]
