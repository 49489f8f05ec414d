"""The machine as a whole: determinism, garbage, snapshots."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcluster import wire
from zcluster.errors import FormatTooNew
from zcluster.machines.api import Machine, Snapshot
from zcluster.machines.mux import ClusterMachine, Summary, summarize

NONCE = 77


def session_id(nonce: int) -> int:
    """Of the nonce-th registration."""
    return nonce << 32 | nonce


S = 1 << 32 | NONCE


def make_machine() -> ClusterMachine:
    return ClusterMachine(key_bytes_max=64, value_bytes_max=1 << 20, sessions_max=100)


def frame(frame_id: int, *ops: Any, floor: int = 1, session: int = S) -> bytes:
    return wire.encode((session, frame_id, floor, list(ops)))


def register(nonce: int = NONCE) -> bytes:
    return frame(0, [wire.OP_REGISTER], floor=0, session=nonce)


def put(key: str, value: bytes = b"v") -> list[Any]:
    return [wire.OP_PUT, key, value]


def filled(pairs: int = 2000, sessions: int = 20) -> ClusterMachine:
    machine = make_machine()
    machine.apply(1, 1000, [register(n) for n in range(1, sessions + 1)])
    frames = [frame(i + 1, put(f"k{i}", b"x" * 100), session=session_id(i % sessions + 1)) for i in range(pairs)]
    machine.apply(2, 2000, frames)
    return machine


def test_a_summary_says_what_a_snapshot_holds_and_finds_damage() -> None:
    machine = filled(pairs=30, sessions=2)
    chunks = list(machine.capture().chunks())
    assert summarize(chunks) == Summary(index=2, revision=30, keys=30, sessions=2)
    for damaged in (chunks[:-1], chunks[1:], [], [*chunks[:-1], chunks[-1][:-1]]):
        with pytest.raises(ValueError, match="damaged"):
            summarize(damaged)


def test_a_state_that_begins_anew_keeps_the_keys_and_ends_the_sessions() -> None:
    machine = filled(pairs=30, sessions=2)
    machine.begin_anew()
    (late,) = machine.apply(3, 3000, [frame(99, put("k0", b"late"), session=session_id(1))])
    assert wire.decode(late)["code"] == wire.E_UNKNOWN_SESSION
    assert machine.kv.revision == 30
    (fresh,) = machine.apply(4, 3000, [register(1)])
    assert wire.decode(fresh) == [3 << 32 | 1], "no id is given twice"


def test_the_index_of_a_read_is_the_last_one_applied() -> None:
    machine = filled(pairs=3, sessions=1)
    assert wire.decode(machine.query([[wire.OP_INDEX], [wire.OP_GET, "k0"]])) == [[2, 3], b"x" * 100]


def digest_of(machine: ClusterMachine) -> str:
    *slices, digest = machine.capture().digest()
    assert slices == [None] * len(slices)
    assert digest is not None
    while machine.maintain():
        pass
    return digest


def test_a_digest_does_not_depend_on_the_order_in_which_keys_lie() -> None:
    one, other = filled(sessions=3), make_machine()
    other.restore(one.capture().chunks())
    frozen = other.capture()
    for machine in (one, other):  # in the other one, what is new goes to the overlay and is merged later
        machine.apply(3, 3000, [frame(3000, [wire.OP_DELETE, "k7"], session=session_id(1))])
        machine.apply(4, 3000, [frame(3001, put("k7"), put("new"), session=session_id(1))])
    frozen.close()
    while other.maintain():
        pass
    assert list(one.kv._base) != list(other.kv._base)
    assert one.state_hash() == other.state_hash()
    assert digest_of(one) == digest_of(other)


@pytest.mark.parametrize("change", ["value", "key", "absent", "swapped", "revision", "session", "time"])
def test_a_digest_tells_states_apart(change: str) -> None:
    machine, sound = filled(sessions=3), filled(sessions=3)
    base = machine.kv._base
    if change == "value":
        base["k7"] = b"y" * 100
    elif change == "key":
        base["other"] = base.pop("k7")
    elif change == "absent":
        del base["k7"]
    elif change == "swapped":
        base["k1"], base["k2"] = b"one", b"two"
        sound.kv._base["k1"], sound.kv._base["k2"] = b"two", b"one"
    elif change == "revision":
        machine.kv.revision += 1
    elif change == "session":
        machine.sessions._table[session_id(1)].floor += 1
    else:
        machine.sessions.now_ms += 1
    assert digest_of(machine) != digest_of(sound)


def test_a_mark_changes_nothing_and_is_told_once() -> None:
    machine = filled(pairs=3, sessions=1)
    before = machine.kv.revision, len(machine.sessions)
    assert [wire.decode(body) for body in machine.apply(3, 3000, [wire.MARK_FRAME, wire.MARK_FRAME])] == [[3], [3]]
    assert (machine.take_mark(), machine.take_mark()) == (True, False)
    assert (machine.kv.revision, len(machine.sessions)) == before


def test_fits_the_contract() -> None:
    machine: Machine = make_machine()
    snapshot: Snapshot = machine.capture()
    assert list(snapshot.chunks())


def test_one_body_per_frame_in_order() -> None:
    machine = make_machine()
    bodies = machine.apply(1, 1, [register(), frame(1, put("a"), put("b")), b"garbage", frame(2, [wire.OP_GET, "a"])])
    assert wire.decode(bodies[1]) == [1, 2]
    assert wire.decode(bodies[2])["code"] == wire.E_BAD_REQUEST
    assert wire.decode(bodies[3]) == [b"v"]


def test_hash_is_a_query_and_not_an_operation_of_a_frame() -> None:
    machine = make_machine()
    machine.apply(9, 1, [register()])
    (body,) = machine.apply(10, 1, [frame(1, put("a"), [wire.OP_HASH])])
    assert wire.decode(body)[1][0] == wire.E_BAD_REQUEST
    result = wire.decode(machine.query([[wire.OP_HASH], [wire.OP_GET, "a"]]))
    assert result == [[10, 1, machine.state_hash()], b"v"]


def test_query_of_garbage_is_refused() -> None:
    machine = make_machine()
    assert wire.decode(machine.query({"a": 1}))["code"] == wire.E_BAD_REQUEST  # type: ignore[arg-type]
    assert wire.decode(machine.query([None] * 20_000))["code"] == wire.E_BAD_REQUEST
    bad: list[Any] = [None, [], [[]], [wire.OP_GET, ["a"]], {"a": 1}, [wire.OP_GET, {}], [[wire.OP_GET], "a"]]
    assert [result[0] for result in wire.decode(machine.query(bad))] == [wire.E_BAD_REQUEST] * len(bad)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\x94\x01\x01\x01",
        b"\x94\x01\x01\x01\x91\x92\x0b\xa1\xff",  # text that is not UTF-8
        b"\x94\xcf\x00\x00\x00\x01\x00\x00\x00\x4d\x01\x01\x91" + b"\x91" * 100_000,  # deep nesting
        b"\x94\x4d\x01\x01" + b"\x91" * 100_000,
        b"\x95\x4d\x01\x01\x90" + b"\x91" * 100_000,
        b"\x94\x4d\x01\x01\xdd\x7f\xff\xff\xff",  # two billion operations announced
        wire.encode((S, 1, 1, [put("a")], "more")),
        wire.encode((S, 1, 1, [["a", [1]]])),
        wire.encode((S, 1, 1, [put("a"), [10, "b", {}]])),
        wire.encode((S, 1, 1, [put("a"), [10.0, "b", b""]])),
        wire.encode((S, 1, 1, ["abc"])),
        wire.encode((S, 1, 1, [{10: 1, "a": 2, b"x": 3}])),
        wire.encode((S, 1, 1, [[]] * (wire.OPS_MAX + 1))),
        wire.encode((S, 1, 1, [put("a")])) + b"tail",
        wire.encode((S, 1 << 64 - 1, 1, 7)),
        wire.encode({"session": S}),
    ],
)
def test_garbage_frames_are_refused_as_a_whole(data: bytes) -> None:
    machine = make_machine()
    machine.apply(1, 1, [register()])
    before = machine.state_hash()
    (body,) = machine.apply(2, 1, [data])
    assert wire.decode(body)["code"] == wire.E_BAD_REQUEST
    assert machine.state_hash() == before


def test_nesting_is_refused_alike_on_a_shallow_and_on_a_deep_stack() -> None:
    """A nesting that one stack can decode and another cannot must not tell two replicas apart."""

    def at_depth(depth: int, data: bytes) -> tuple[bytes, str]:
        if depth:
            return at_depth(depth - 1, data)
        machine = make_machine()
        (_, body) = machine.apply(1, 1, [register(), data])
        return body, machine.state_hash()

    for nesting in (1, 10, 100, 300, 500, 700, 900, 1100):
        data = (
            b"\x94\xcf\x00\x00\x00\x01\x00\x00\x00\x4d\x01\x01\x92\x93\x0a\xa1a\xc4\x01x\x92\x0a"
            + b"\x91" * nesting
            + b"\xc0"
        )
        assert len({at_depth(depth, data) for depth in (0, 100, 300, 500)}) == 1


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 60), st.integers(0, 255))
def test_bytes_at_random_never_raise(noise: bytes, at: int, byte: int) -> None:
    machine = make_machine()
    good = bytearray(frame(1, put("a"), [wire.OP_CAS, "a", b"v", None], [wire.OP_LIST, "", None, 3]))
    good[at % len(good)] = byte
    bodies = machine.apply(1, 1, [register(), noise, bytes(good)])
    assert all(type(wire.decode(body)) in (list, dict) for body in bodies)
    assert type(wire.decode(machine.query([[wire.OP_LIST, "", None, 10]]))) is list


# -- determinism ------------------------------------------------------------------------------------------------------
SCRIPT = """
import random
from zcluster import wire
from zcluster.machines.mux import ClusterMachine
choose = random.Random(5)
machine = ClusterMachine(64, 4096, 8)
sessions = []
for index in range(1, 400):
    frames = []
    for _ in range(5):
        nonce, number = choose.randrange(1, 12), choose.randrange(1, 40)
        if choose.random() < 0.1 or not sessions:
            (body,) = machine.apply(index, index * 1000, [wire.encode((nonce, 0, 0, [[1]]))])
            sessions.append(wire.decode(body)[0])
        session = choose.choice(sessions[-12:])
        key = choose.choice("abcdefghijklmnop") * choose.randrange(1, 3)
        ops = [[10, key, b"v%d" % index], [12, key + "x"], [13, key, None, b"n"], [14, key, b"+"], [15, key, None, 3]]
        frames.append(wire.encode((session, number, max(1, number - 5), [choose.choice(ops) for _ in range(3)])))
    answers = machine.apply(index, index * 1000, frames)
import hashlib
print(machine.state_hash(), hashlib.sha256(b"".join(answers)).hexdigest())
"""


def test_state_and_answers_do_not_depend_on_the_hash_seed() -> None:
    outputs = set()
    for seed in ("0", "1", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        outputs.add(
            subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, check=True).stdout
        )
    assert len(outputs) == 1


def test_captures_and_maintenance_at_other_moments_do_not_change_the_state() -> None:
    plain, busy = make_machine(), make_machine()
    choose = random.Random(3)
    chunks: Iterator[bytes] | None = None
    for machine in (plain, busy):
        machine.apply(1, 1, [register()])
    for index in range(2, 300):
        key = f"k{choose.randrange(40)}"
        op = choose.choice([put(key), [wire.OP_DELETE, key], [wire.OP_APPEND, key, b"+"], [wire.OP_LIST, "k", key, 4]])
        data = frame(index, op, floor=index - 1)
        assert plain.apply(index, index, [data]) == busy.apply(index, index, [data])
        if index % 30 == 0:
            chunks = busy.capture().chunks()
        elif index % 30 == 20 and chunks is not None:
            list(chunks)
        elif index % 3 == 0:
            busy.maintain()
    assert plain.state_hash() == busy.state_hash()


# -- snapshots --------------------------------------------------------------------------------------------------------
def test_snapshot_carries_everything_the_sessions_included() -> None:
    """A retry after a checkpoint and a restart must not be applied twice."""
    machine = filled()
    machine.apply(3, 3000, [frame(4001, [wire.OP_APPEND, "k", b"once"], session=session_id(4))])
    restored = make_machine()
    restored.restore(iter(list(machine.capture().chunks())))
    assert restored.state_hash() == machine.state_hash()
    assert restored.index == 3
    retry = frame(4001, [wire.OP_APPEND, "k", b"once"], session=session_id(4))
    assert restored.apply(4, 4000, [retry]) == machine.apply(4, 4000, [retry])
    more = [frame(4002, put("z"), session=session_id(4), floor=4002), register(55)]
    assert restored.apply(5, 5000, more) == machine.apply(5, 5000, more)
    assert restored.state_hash() == machine.state_hash()


def test_writes_during_a_capture_do_not_show_in_it() -> None:
    machine = filled()
    at_capture = machine.state_hash()
    chunks = machine.capture().chunks()
    taken = [next(chunks)]
    for i, chunk in enumerate(chunks):
        taken.append(chunk)
        ops = [put(f"k{i}", b"changed"), put(f"new{i}"), [wire.OP_DELETE, f"k{i + 500}"]]
        machine.apply(3 + i, 9000, [frame(4000 + i, *ops, floor=3000 + i, session=session_id(1)), register(500 + i)])
    restored = make_machine()
    restored.restore(iter(taken))
    assert restored.state_hash() == at_capture
    assert machine.state_hash() != at_capture


def test_chunks_are_bounded() -> None:
    machine = filled(pairs=5000, sessions=1)
    chunks = list(machine.capture().chunks())
    assert len(chunks) > 8
    assert max(map(len, chunks)) < 80_000


def test_a_session_with_many_results_spans_chunks() -> None:
    machine = make_machine()
    machine.apply(1, 1, [register()])
    machine.apply(2, 1, [frame(i, [wire.OP_APPEND, f"k{i}", b"x" * 50_000]) for i in range(1, 9)])
    machine.apply(3, 1, [register(5)])
    restored = make_machine()
    restored.restore(machine.capture().chunks())
    assert restored.state_hash() == machine.state_hash()
    assert restored.sessions.capture()[0][1].result_bytes == machine.sessions.capture()[0][1].result_bytes


@pytest.mark.parametrize("ending", ["exhausted", "closed", "closed unread", "dropped"])
def test_the_view_ends_however_the_reader_leaves(ending: str) -> None:
    machine = filled(pairs=3000)
    chunks: Any = machine.capture().chunks()
    machine.apply(3, 1, [frame(4000, put("new"), session=session_id(1))])
    assert machine.kv._overlay
    if ending == "exhausted":
        list(chunks)
    elif ending == "closed":
        next(chunks)
        chunks.close()
    elif ending == "closed unread":
        chunks.close()
    del chunks
    machine.maintain()
    assert not machine.kv._overlay
    machine.capture()


def test_restore_replaces_everything_even_while_a_view_is_open() -> None:
    source, target = filled(pairs=50), filled(pairs=300)
    chunks = target.capture().chunks()
    target.apply(3, 1, [frame(4000, put("gone"))])
    target.restore(source.capture().chunks())
    assert target.state_hash() == source.state_hash()
    assert len(list(chunks)) >= 3
    target.apply(4, 1, [frame(4001, put("kept"), session=session_id(1))])
    assert wire.decode(target.query([[wire.OP_GET, "kept"], [wire.OP_GET, "gone"]])) == [b"v", None]


def test_damage_is_found_and_changes_nothing() -> None:
    chunks = list(filled(pairs=1500, sessions=3).capture().chunks())
    assert len(chunks) >= 5
    damaged = [chunks[:i] + chunks[i + 1 :] for i in range(len(chunks))]
    damaged += [chunks[:i] for i in range(len(chunks))]
    damaged += [
        [*chunks, chunks[-1]],
        chunks + chunks,
        [chunks[0], chunks[2], chunks[1], *chunks[3:]],
        [b""],
        [b"\x00" * 9],
    ]
    choose = random.Random(1)
    for _ in range(100):
        at = choose.randrange(len(chunks))
        broken = bytearray(chunks[at])
        broken[choose.randrange(len(broken))] ^= 1 << choose.randrange(8)
        damaged.append([*chunks[:at], bytes(broken), *chunks[at + 1 :]])
        damaged.append([*chunks[:at], chunks[at][: choose.randrange(len(chunks[at]))], *chunks[at + 1 :]])
    machine = filled(pairs=10)
    before = machine.state_hash()
    for stream in damaged:
        with pytest.raises(ValueError, match="snapshot is damaged"):
            machine.restore(iter(stream))
        assert machine.state_hash() == before


def signed(*content: Any) -> bytes:
    body = wire.encode(content)
    return zlib.crc32(body).to_bytes(4, "little") + body


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (1, ["a"]),
        (1, [b"a", b"b"]),
        (1, 5),
        (2, [[1, 1, 1, 1, [1]]]),
        (2, [[1, 1, 1, 1, [1, "text"]]]),
        (2, [[[], 1, 1, 1, []]]),
        (2, [[1, 1, 1, 1, []], [2, 2, 1, 1, []], [1, 1, 1, 1, []]]),
        (2, [[1, 1, 1, 1, []], [2, 1, 1, 1, []]]),
        (2, [[1]]),
        (3, None),
        (3, [1, 0]),
        (9, []),
        ("1", []),
    ],
)
def test_well_signed_nonsense_is_damage_too(kind: Any, content: Any) -> None:
    with pytest.raises(ValueError, match="snapshot is damaged"):
        make_machine().restore(iter([signed(0, 0, [1, 5, 5, 5, 5]), signed(1, kind, content), signed(2, 3, [0, 0])]))


def test_a_newer_schema_is_refused_by_name() -> None:
    with pytest.raises(FormatTooNew, match="schema 2"):
        make_machine().restore(iter([signed(0, 0, [2, "whatever", None])]))
    with pytest.raises(ValueError, match="header"):
        make_machine().restore(iter([signed(0, 0, [1, -1, 0, 0, 0])]))
