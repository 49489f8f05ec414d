"""Frames and records: what the reader believes, and what it does not."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcluster.errors import Corrupt, FormatTooNew
from zcluster.storage import record
from zcluster.storage.record import FRAME_HEADER_BYTES, WalState, decode_frame, encode_frame_header, scan_frames
from zcluster.types import Entry

DIGEST = record.cluster_digest("a")
STATE = WalState(7, 3, 11, True)
PATH = Path("segment")


def frame(payload: bytes, offset: int, synced: int = 0, segment_id: int = 5, digest: bytes = DIGEST) -> bytes:
    return encode_frame_header(digest, segment_id, offset, synced, STATE, payload) + payload


def row(*payloads: bytes, synced: bool = True) -> bytes:
    """Frames one behind the other from offset 0, each synced before the next was written."""
    data = b""
    for payload in payloads:
        data += frame(payload, len(data), len(data) if synced else 0)
    return data


def test_a_frame_comes_back_with_its_state() -> None:
    found = decode_frame(row(b"one", b"two"), FRAME_HEADER_BYTES + 3, DIGEST, 5)
    assert found is not None and found.valid
    assert found.state == STATE
    assert (found.offset, found.end) == (39, 78)


@pytest.mark.parametrize(
    ("offset", "segment_id", "digest"),
    [(0, 6, DIGEST), (0, 5, record.cluster_digest("b")), (8, 5, DIGEST)],
    ids=["segment", "cluster", "offset"],
)
def test_a_frame_of_another_place_segment_or_cluster_is_none(offset: int, segment_id: int, digest: bytes) -> None:
    data = bytes(offset) + frame(b"payload", 0)
    assert decode_frame(data, offset, digest, segment_id) is None


def test_a_frame_inside_an_entry_is_not_taken_for_a_frame() -> None:
    """A value may hold a copy of our own log; torn behind it, the copy must not look like a later frame."""
    first = row(b"first")
    torn = (first + frame(first + first, len(first)))[:-1]
    scan = scan_frames(torn, 0, DIGEST, 5)
    assert list(scan.ends) == [len(first)]
    assert not scan.damaged


def test_a_tear_without_a_later_frame_is_torn() -> None:
    data = row(b"one", b"two", b"three")
    for size in range(len(data)):
        scan = scan_frames(data[:size], 0, DIGEST, 5)
        assert not scan.damaged
        assert scan.end <= size


def test_a_bad_frame_before_a_frame_that_proves_its_sync_is_damage() -> None:
    data = bytearray(row(b"one", b"two", b"three"))
    data[FRAME_HEADER_BYTES] ^= 1
    scan = scan_frames(bytes(data), 0, DIGEST, 5)
    assert scan.damaged and scan.end == 0
    assert scan.strays[-1].state == STATE


def test_a_bad_frame_before_unsynced_frames_is_torn() -> None:
    data = bytearray(row(b"one", b"two", b"three", synced=False))
    data[FRAME_HEADER_BYTES] ^= 1
    scan = scan_frames(bytes(data), 0, DIGEST, 5)
    assert not scan.damaged
    assert len(scan.strays) == 3, "the first one's header is still good"


def test_a_seal_proves_the_last_frame() -> None:
    data = bytearray(row(b"one", b""))
    data[FRAME_HEADER_BYTES] ^= 1
    assert scan_frames(bytes(data), 0, DIGEST, 5).damaged


def test_a_header_with_an_absurd_length_is_not_followed() -> None:
    header = bytearray(encode_frame_header(DIGEST, 5, 0, 0, STATE, b""))
    header[12:16] = (0xFFFFFFF0).to_bytes(4, "little")
    assert decode_frame(bytes(header), 0, DIGEST, 5) is None
    seed = zlib.crc32(record._SEED.pack(DIGEST[:8], 5, 0))
    header[4:8] = zlib.crc32(bytes(header[8:]), seed).to_bytes(4, "little")
    found = decode_frame(bytes(header), 0, DIGEST, 5)
    assert found is not None and not found.valid


def test_records_come_back_in_order() -> None:
    entry = Entry(9, 4, 2, b"data")
    payload = b"".join(
        [*record.put_record(entry), record.cut_record(8), record.mark_record(record.MARK_INSTALLED, 7, 3)]
    )
    assert list(record.decode_records(PATH, payload, 0, len(payload))) == [
        (record.PUT, 2, 9, 4, b"data"),
        (record.CUT, 0, 8, 0, b""),
        (record.MARK, record.MARK_INSTALLED, 7, 3, b""),
    ]


def test_an_unknown_record_stops_the_reader() -> None:
    payload = record.RECORD_HEADER.pack(9, 0, 0, 0, 0, 0)
    with pytest.raises(FormatTooNew):
        list(record.decode_records(PATH, payload, 0, len(payload)))


@pytest.mark.parametrize("cut", [1, 23, 26])
def test_a_record_that_leaves_its_frame_is_corrupt(cut: int) -> None:
    payload = b"".join(record.put_record(Entry(1, 1, 0, b"data")))[:cut]
    with pytest.raises(Corrupt):
        list(record.decode_records(PATH, payload, 0, len(payload)))


@given(st.binary(max_size=600))
@settings(max_examples=80, deadline=None)
def test_garbage_never_raises_and_never_counts(data: bytes) -> None:
    scan = scan_frames(data + record.MAGIC + data, 0, DIGEST, 5)
    assert not scan.ends and not scan.damaged


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=6), st.data())
@settings(max_examples=80, deadline=None)
def test_any_damage_leaves_a_true_prefix(payloads: list[bytes], data: st.DataObject) -> None:
    good = row(*payloads)
    begin = data.draw(st.integers(0, len(good) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=40))
    bad = (good[:begin] + patch + good[begin + len(patch) :])[: len(good)]
    scan = scan_frames(bad, 0, DIGEST, 5)
    original = scan_frames(good, 0, DIGEST, 5).ends
    assert scan.ends == original[: len(scan.ends)]
    lost = original[len(scan.ends) :]
    assert scan.damaged == any(later.synced > scan.end for later in scan.strays)
    if len(lost) > 1 and begin + len(patch) <= lost[-2]:
        assert scan.damaged, "the last frame is whole and proves that the one before it was synced"
