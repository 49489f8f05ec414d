"""Whatever bytes arrive, a decoder gives a value or one of `wire.DecodeError`, and allocates by what is there, not by
what a length prefix says."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.mutations import BOMBS, effort, messages
from zcluster import wire
from zcluster.consensus.api import AnyMessage, AppendRequest
from zcluster.machines import mux
from zcluster.node import install, replica
from zcluster.tasks import protocol
from zcluster.transport.peers import Envelope
from zcluster.types import Entry

DECODERS: dict[str, Callable[[bytes], Any]] = {
    "anything": wire.decode,
    "frame": wire.decode_frame,
    "payload": wire.decode_payload,
    "machine's frame": mux._decode_frame,
    "read": replica._decode_read,
    "peer message": msgspec.msgpack.Decoder(AnyMessage).decode,
    "envelope": msgspec.msgpack.Decoder(Envelope).decode,
    "piece": install._decode_piece,
    "answer": install._decode_answer,
}
VALID = [
    wire.encode(wire.Frame(1, 2, 1, [[wire.OP_PUT, "k", b"v"], [wire.OP_LIST, "", None, 3]])),
    wire.encode_payload(0, 5, [b"frame", b""]),
    wire.encode([wire.LEASE, 5, [[wire.OP_GET, "k"]]]),
    wire.encode(AppendRequest(2, 1, 1, 1, (Entry(2, 2, 0, b"data"),))),
    wire.encode(Envelope(1, "cluster", 1, 2, 3, 4, 5)),
]
PREFIXES = [
    b"",
    b"\x91",
    b"\x92\x00",
    b"\x93\x01\x01",
    b"\x94\x01\x01\x00",
    b"\x94\x01\x01\x00\x91",
    b"\x96\x05\x02\x00\x00\x03\x91",
]


@given(st.sampled_from(sorted(DECODERS)), messages(VALID))
@effort(400)
def test_garbage_is_a_decode_error_at_most(name: str, data: bytes) -> None:
    try:
        DECODERS[name](data)
    except wire.DecodeError:
        pass


@given(st.integers(0, 255), st.one_of(messages(VALID)))
@effort(300)
def test_garbage_between_tasks_is_a_value_error_at_most(kind: int, body: bytes) -> None:
    for frame in (bytes([kind]) + body, body):
        try:
            protocol.unpack(frame)
        except ValueError:
            pass


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_length_prefix_allocates_nothing(bomb: bytes) -> None:
    tasks = {str(kind): decoder.decode for kind, decoder in protocol.DECODERS.items()}
    for decode in {**DECODERS, **tasks}.values():
        for prefix in PREFIXES:
            tracemalloc.start()
            try:
                decode(prefix + bomb)
            except wire.DecodeError:
                pass
            finally:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
            assert peak < 1 << 20
