"""The demo's parts that need no cluster: what is counted, how the gap is measured, what ends the writer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zcluster.cli.demo import FILES_MAX, WRITES_AROUND, Writer, library_files, longest_gap_ms
from zcluster.cli.words import count_words
from zcluster.errors import NoQuorum, Unknown


def test_the_gap_is_the_longest_stretch_that_ended_after_the_fault() -> None:
    ms = 1_000_000
    assert longest_gap_ms([], 0) == 0
    assert longest_gap_ms([0, 50 * ms, 51 * ms, 91 * ms, 92 * ms], since_ns=52 * ms) == 40.0


def test_words_are_counted_without_regard_to_case(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(b"Return return of the KING \xff king's")
    assert count_words(str(path)) == {"return": 2, "the": 1, "king": 2}


def test_the_library_is_the_same_files_each_time() -> None:
    files = library_files()
    assert 50 < len(files) <= FILES_MAX
    assert files == library_files()
    assert not any("site-packages" in path for path in files)


class Store:
    """Each write goes as the next outcome says; after them, all succeed."""

    def __init__(self, *outcomes: BaseException) -> None:
        self.outcomes = list(outcomes)
        self.data: dict[str, bytes] = {}

    def put(self, key: str, value: bytes) -> int:
        if self.outcomes:
            raise self.outcomes.pop(0)
        self.data[key] = value
        return 1


def started(store: Any) -> Writer:
    writer = Writer(SimpleNamespace(kv=store))  # type: ignore[arg-type]
    writer.start()
    return writer


def test_the_writer_counts_what_is_unknown_and_claims_only_what_was_acknowledged() -> None:
    store = Store(Unknown("?"), NoQuorum("no"))
    writer = started(store)
    assert writer.wait(10)
    writer.expect_more()
    assert writer.wait(10)
    writer.stop()
    assert writer.acknowledged == store.data
    assert writer.unknown == 1
    assert len(writer.acknowledged) == len(writer.times_ns) >= 2 * WRITES_AROUND


def test_an_error_that_ends_the_writer_is_not_swallowed() -> None:
    writer = started(Store(ValueError("bug")))
    with pytest.raises(ValueError, match="bug"):
        writer.wait(10)
    writer.stop()
