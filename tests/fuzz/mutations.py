"""Hypothesis strategies for bytes that are nearly right, and how long to try."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st

FACTOR = int(os.environ.get("FUZZ_FACTOR", "1"))
"""So many times as many examples; set it high for a long search."""


def effort(examples: int) -> settings:
    return settings(max_examples=examples * FACTOR, deadline=None)


BOMBS = [
    b"\xdd\xff\xff\xff\xff",  # an array of 2^32 - 1 elements
    b"\xdf\xff\xff\xff\xff",  # a map
    b"\xc6\xff\xff\xff\xff",  # bytes
    b"\xdb\xff\xff\xff\xff",  # text
    b"\xc9\xff\xff\xff\xff\x01",  # an extension
    b"\x91" * 5000,  # arrays in arrays
]
"""Length prefixes that announce gigabytes, and depth."""

numbers = st.one_of(
    st.integers(-3, 9),
    st.sampled_from([1 << 16, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1, (1 << 64) - 1, -(1 << 63)]),
)
scalars: st.SearchStrategy[Any] = st.one_of(
    numbers, st.none(), st.booleans(), st.floats(), st.text(max_size=6), st.binary(max_size=6)
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(st.one_of(numbers, st.text(max_size=3)), inner, max_size=3)
    ),
    max_leaves=12,
)
encoded = values.map(msgspec.msgpack.encode)


@st.composite
def mutated(draw: st.DrawFn, originals: Sequence[bytes]) -> bytes:
    """A valid message with a few bytes changed, cut out, put in, repeated, or with a bomb in it."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        end = draw(st.integers(at, min(len(data), at + 8)))
        kind = draw(st.integers(0, 5))
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            del data[at:end]
        elif kind == 2:
            data[at:at] = draw(st.binary(max_size=4))
        elif kind == 3:
            data[at:at] = data[at:end]
        elif kind == 4:
            data[at:end] = draw(st.sampled_from(BOMBS))
        else:
            del data[at:]
    return bytes(data)


def messages(originals: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Garbage, well-formed nonsense, or nearly valid."""
    return st.one_of(mutated(originals), encoded, st.binary(max_size=40), st.sampled_from([*originals, *BOMBS]))
