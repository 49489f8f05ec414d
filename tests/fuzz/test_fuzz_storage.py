"""Whatever is on a disk: the readers of log, checkpoint, proof and identity give the truth or a typed error.

Two kinds of garbage. Random damage: no checksum accepts it. Nonsense with right checksums, as a bug of ours or a newer
version might write: it is refused by name, and never costs more memory than the file is long.
"""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.mutations import BOMBS, effort, encoded, messages, mutated, numbers
from tests.unit.storage.faulty_disk import FaultyDisk
from tests.unit.storage.stores import CHECKPOINTS, IDENTITY, ROOT, WAL, Node, entry, meta, new_node, recover, segments
from zcluster import wire
from zcluster.errors import StorageError
from zcluster.machines.mux import ClusterMachine
from zcluster.storage import record
from zcluster.storage.checkpoint import CheckpointFile, CheckpointReceiver, CheckpointWriter, read_checkpoint, verify
from zcluster.storage.checkpoint_file import BLOCK, FOOTER, FOOTER_COVERED, HEADER, MAGIC
from zcluster.storage.proof import PROOF, read_proof
from zcluster.storage.record import WalState, cluster_digest
from zcluster.storage.segment import SEGMENT_HEADER_BYTES, SegmentHeader, encode_segment_header, segment_name

DIGEST = cluster_digest(IDENTITY.cluster_id)
PATH = CHECKPOINTS / "x.ckpt"


def disk_with(path: Path, data: bytes) -> FaultyDisk:
    disk = FaultyDisk()
    disk.make_directory(path.parent)
    handle = disk.open(path, create=True)
    disk.pwritev(handle, [data], 0)
    disk.close(handle)
    return disk


# -- the log ----------------------------------------------------------------------------------------------------------

records = st.builds(
    lambda type_, kind, length, index, epoch, body: (
        record.RECORD_HEADER.pack(type_, kind, 0, len(body) if length is None else length, index, epoch) + body
    ),
    st.integers(0, 5),
    st.integers(0, 4),
    st.one_of(st.none(), st.sampled_from([0, 1, 1 << 20, (1 << 32) - 1])),
    st.one_of(st.integers(0, 9), st.sampled_from([1 << 40, (1 << 64) - 1])),
    st.one_of(st.integers(0, 9), st.just((1 << 64) - 1)),
    st.one_of(encoded, st.binary(max_size=9), st.sampled_from(BOMBS[:5])),
)
payloads = st.one_of(st.lists(records, max_size=4).map(b"".join), st.binary(max_size=60))


def segment_of(payloads: list[bytes], header: SegmentHeader) -> bytes:
    """A segment whose checksums are all right, whatever the payloads say."""
    data = encode_segment_header(header, DIGEST)
    for payload in payloads:
        synced = len(data) if len(data) > SEGMENT_HEADER_BYTES else 0
        data += record.encode_frame_header(DIGEST, 1, len(data), synced, WalState(3, 2, 1), payload) + payload
    return data


@given(st.lists(payloads, min_size=1, max_size=4), st.integers(0, 3), st.integers(0, 9), st.integers(0, 9))
@effort(300)
def test_a_well_signed_log_of_nonsense_is_read_or_refused_by_name(
    payloads: list[bytes], previous: int, end: int, floor: int
) -> None:
    node = new_node()
    node.stop()
    path = segments(node.disk)[0]
    data = segment_of(payloads, SegmentHeader(1, previous, end, floor))
    node.disk.cut(path, 0)
    node.disk.unlink(WAL / PROOF)
    node.disk.overwrite(path, 0, data)
    tracemalloc.start()
    try:
        found = recover(node.disk)
        assert found.hard_state.term == 3 and found.incarnation == 1
        assert recover(node.disk).entries == found.entries
    except StorageError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 << 20


@given(st.data())
@effort(150)
def test_damage_to_a_log_is_never_accepted(data: st.DataObject) -> None:
    node = new_node()
    node.vote(3, 2)
    node.put(*range(1, 30), epoch=3)
    path = data.draw(st.sampled_from(segments(node.disk)))
    broken = data.draw(mutated([node.disk.read(path)]))
    node.disk.cut(path, 0)
    node.disk.overwrite(path, 0, broken)
    found = recover(node.disk)
    assert found.wiped or found.hard_state.term == 3
    assert found.entries == [entry(i, 3) for i in range(1, len(found.entries) + 1)]
    assert len(found.entries) == 29 or found.repair


@given(st.one_of(st.binary(max_size=80), st.data()))
@effort(200)
def test_a_proof_that_is_not_ours_says_nothing(source: bytes | st.DataObject) -> None:
    node = new_node()
    node.vote(3, 2)
    whole = node.disk.read(WAL / PROOF)
    data = source if isinstance(source, bytes) else source.draw(mutated([whole]))
    disk = disk_with(WAL / PROOF, data)
    proof = read_proof(disk, WAL, DIGEST)
    assert proof is None or data[: len(whole)] == whole


@given(st.one_of(st.binary(max_size=80), mutated([msgspec.json.encode(IDENTITY)])))
@effort(200)
def test_an_identity_of_nonsense_is_refused_by_name(data: bytes) -> None:
    node = new_node()
    node.stop()
    node.disk.cut(ROOT / "identity.json", 0)
    node.disk.overwrite(ROOT / "identity.json", 0, data)
    try:
        recover(node.disk)
    except StorageError:
        return
    assert msgspec.json.decode(data, type=type(IDENTITY)) == IDENTITY


# -- checkpoints ------------------------------------------------------------------------------------------------------


def signed(head: bytes, blocks: list[tuple[int | None, bytes]], footer: tuple[int, int] | None, rest: bytes) -> bytes:
    """A checkpoint file with right checksums over whatever it is made of; None: the true length or footer."""
    fixed = HEADER.pack(MAGIC, 1, 0, len(head), 0)[:-4]
    crc = zlib.crc32(head, zlib.crc32(fixed))
    data = fixed + crc.to_bytes(4, "little") + head
    for length, chunk in blocks:
        length = len(chunk) if length is None else length
        crc = zlib.crc32(chunk, zlib.crc32(length.to_bytes(4, "little"), crc))
        data += BLOCK.pack(b"C", length, crc) + chunk
    count, total = footer or (len(blocks), sum(len(chunk) for _, chunk in blocks))
    crc = zlib.crc32(FOOTER_COVERED.pack(b"F", count, total), crc)
    return data + FOOTER.pack(b"F", count, total, crc) + rest


HEAD = msgspec.msgpack.encode([IDENTITY.cluster_id, meta(9)])
heads = st.one_of(st.just(HEAD), messages([HEAD]))
lengths = st.one_of(st.none(), st.sampled_from([0, 1, 1 << 27, (1 << 32) - 1]))
blocks = st.lists(st.tuples(lengths, st.one_of(st.binary(max_size=20), encoded)), max_size=3)
footers = st.one_of(st.none(), st.none(), st.tuples(st.integers(0, 3), st.sampled_from([0, 5, (1 << 64) - 1])))


@given(heads, blocks, footers, st.sampled_from([b"", b"", b"x"]))
@effort(300)
def test_a_well_signed_checkpoint_of_nonsense_is_read_or_refused_by_name(
    head: bytes, blocks: list[tuple[int | None, bytes]], footer: tuple[int, int] | None, rest: bytes
) -> None:
    disk = disk_with(PATH, signed(head, blocks, footer, rest))
    tracemalloc.start()
    try:
        verify(disk, PATH)
        assert not rest and list(read_checkpoint(disk, PATH)) == [chunk for _, chunk in blocks]
    except StorageError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20


def chunks_of(*contents: bytes) -> Iterator[bytes]:
    return iter([zlib.crc32(body).to_bytes(4, "little") + body for body in contents])


ROWS = [[1 << 32 | 5, 5, 100, 0, [1, b"result"]]]
CONTENTS = [
    wire.encode([0, 0, [1, 9, 100, 3, 1]]),
    wire.encode([1, 1, ["k", b"v"]]),
    wire.encode([2, 2, ROWS]),
    wire.encode([3, 3, [1, 1]]),
]


@given(st.integers(0, 3), st.one_of(mutated(CONTENTS), st.tuples(st.integers(0, 3), encoded)), st.booleans())
@effort(300)
def test_a_well_signed_state_of_nonsense_is_restored_and_works_or_is_refused(
    at: int, other: bytes | tuple[int, bytes], whole: bool
) -> None:
    if isinstance(other, tuple):  # right around the content, which is anything
        kind, content = other
        other = b"\x93" + wire.encode(at) + wire.encode(kind) + content
    contents = [*CONTENTS]
    contents[at] = other
    machine = ClusterMachine(64, 1024, 10)
    before = machine.state_hash()
    try:
        machine.restore(chunks_of(*(contents if whole else contents[: at + 1])))
    except (ValueError, StorageError):
        assert machine.state_hash() == before
        return
    session = next((number for number, _ in machine.sessions.items()), 1)
    machine.apply(machine.index + 1, 200, [wire.encode(wire.Frame(session, 7, 1, [[wire.OP_APPEND, "k", b"w"]]))])
    machine.state_hash()


def test_the_state_that_the_nonsense_is_made_from_is_sound() -> None:
    machine = ClusterMachine(64, 1024, 10)
    machine.restore(chunks_of(*CONTENTS))
    assert wire.decode(machine.query([[wire.OP_GET, "k"]])) == [b"v"]


# -- a peer's checkpoint, arriving ------------------------------------------------------------------------------------

pieces = st.lists(st.tuples(st.one_of(st.none(), numbers), st.integers(0, 3), st.integers(0, 700)), max_size=12)


@given(pieces, st.booleans(), st.integers(0, 3))
@effort(200)
def test_only_a_whole_checkpoint_gets_its_name(
    story: list[tuple[int | None, int, int]], damage: bool, lie: int
) -> None:
    """Pieces out of order, repeated, damaged, announced wrongly: either the file is the sender's, or there is none."""
    other = FaultyDisk()
    other.make_directory(CHECKPOINTS)
    writer = CheckpointWriter(other, CHECKPOINTS, meta(9), IDENTITY.cluster_id)
    writer.write(b"state" * 100)
    path = writer.finish()
    file = CheckpointFile(other, path)
    disk = FaultyDisk()
    disk.make_directory(CHECKPOINTS)
    size = file.size - (lie == 1)
    announced = meta(9, 2) if lie == 2 else meta(9)
    receiver = CheckpointReceiver(disk, CHECKPOINTS, announced, size, IDENTITY.cluster_id)
    try:
        for offset, kind, length in story:
            at = receiver.received if offset is None else offset
            data = b"garbage" if kind == 0 and damage else file.read_at(max(at, 0), length)
            if receiver.write(at, data):
                break
        receiver.finish()
    except StorageError:
        receiver.abort()
    names = disk.listdir(CHECKPOINTS)
    assert names in ([], [path.name])
    if names:
        assert disk.read(path) == other.read(path)


@pytest.mark.parametrize("field", range(5))
def test_a_session_of_the_wrong_type_is_refused(field: int) -> None:
    for wrong in ("1", -1.5, None, [], {}):
        row = [*ROWS[0]]
        row[field] = wrong if field < 4 or wrong != [] else "xx"
        contents = [CONTENTS[0], CONTENTS[1], wire.encode([2, 2, [row]]), CONTENTS[3]]
        with pytest.raises(ValueError, match="damaged"):
            ClusterMachine(64, 1024, 10).restore(chunks_of(*contents))


def test_a_node_on_a_log_of_nonsense_names_the_file() -> None:
    node = new_node()
    node.stop()
    path = segments(node.disk)[0]
    assert path.name == segment_name(1, 0)
    bad = record.RECORD_HEADER.pack(record.PUT, 0, 0, 1 << 31, 1, 1)
    node.disk.cut(path, 0)
    node.disk.unlink(WAL / PROOF)
    node.disk.overwrite(path, 0, segment_of([bad], SegmentHeader(1, 0, 0, 0)))
    with pytest.raises(StorageError, match=path.name):
        Node(node.disk)
