"""Bytes on the wire and in the log: entry payloads, client frames, message heads.

One encoding everywhere: MessagePack through msgspec, arrays rather than maps. What a client sends is a *frame*: opaque
to consensus and storage, encoded once by the client, decoded once where it is applied.

    log entry (KIND_FRAMES)   [group, log_time_ms, [frame, frame, ...]]
    client frame              [session, id, floor, [op, op, ...]]            op = [code, arguments ...]
    client -> node            [head][body]      head = kind u8, request u64 (little endian)
    node -> client            [head][body]      the same head; `request` echoes the client's

A result body is either an array (one result per op) or a map {"code", "text"} (the whole frame was refused). A single
op's error stands in the array as [code, text].
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgspec

PROTOCOL: Final = 1
"""Version of everything in this module; peers and clients exchange it in their first message."""

# -- what clients ask, what nodes answer: the `kind` of a head --------------------------------------------------------
HELLO: Final = 1  # body: [protocol, cluster_id]; answered by LEADER, and again at every change of leader
WRITE: Final = 2  # body: a client frame
READ: Final = 3  # body: [consistency, bound_ms, [op, ...]]
STATUS: Final = 4  # body: empty; answered by RESULT with a map
CHECKPOINT: Final = 5  # body: empty, or [index to cover]; RESULT [index] once a checkpoint that covers it is on disk
TRANSFER: Final = 6  # body: [replica id]; RESULT [true] when asked for
MEMBERSHIP: Final = 7  # body: [action, replica id] (node.members); RESULT [index, voters, learners] once committed
FAULTS: Final = 16  # body: an order for the replica's network (transport.faults); RESULT: the rules in force
VERIFY: Final = 20  # body: [index of a mark]; RESULT [index, digest of the state there, or nil: none was made]

RESULT: Final = 33  # body: see above
NOT_LEADER: Final = 34  # body: [leader replica id or 0, term]; the request was certainly not applied
BUSY: Final = 35  # body: [text]; certainly not applied, retry after a pause
FAILED: Final = 36  # body: [code, text]; the request itself is wrong
LEADER: Final = 37  # body: [leader replica id or 0, term]; an announcement, request 0

# -- consistency of a READ --------------------------------------------------------------------------------------------
LINEARIZABLE: Final = 0
LEASE: Final = 1
BOUNDED: Final = 2
EVENTUAL: Final = 3

# -- op codes ---------------------------------------------------------------------------------------------------------
OP_REGISTER: Final = (
    1  # [1]                       -> session id, for the frames that follow; in a frame of its own with
)
#                                                      id 0, whose session field is a random number (the same: a retry)
OP_PUT: Final = 10  # [10, key, value]              -> revision
OP_GET: Final = 11  # [11, key]                     -> bytes | None
OP_DELETE: Final = 12  # [12, key]                  -> bool: existed
OP_CAS: Final = 13  # [13, key, expected|None, new|None] -> bool
OP_APPEND: Final = 14  # [14, key, data]            -> bytes: the new value
OP_LIST: Final = 15  # [15, prefix, after, count]   -> [[key, value, ...], more?]: pairs in key order after key `after`
OP_HASH: Final = 16  # [16]                         -> [applied index, revision, state hash]; for tests and checks
OP_INDEX: Final = 90  # [90]                        -> [applied index, revision]; linearizable: covers what is answered
OP_MARK: Final = 91  # [91]                         -> applied index; changes nothing; every replica digests its state
#                                                      there. In a frame of its own with id 0, as OP_REGISTER

# -- error codes ------------------------------------------------------------------------------------------------------
E_BAD_REQUEST: Final = 1
E_TOO_LARGE: Final = 2
E_UNKNOWN_SESSION: Final = 3  # outcome of an earlier attempt is unknown; this attempt was not applied
E_WINDOW: Final = 4  # the id lies beyond the session's window; not applied
E_FULL: Final = 5  # a bound of the state machine; not applied

FRAME_BYTES_MAX: Final = 32 << 20
"""No single client frame may be larger; anything above is dropped as garbage."""

OPS_MAX: Final = 16_384
"""No frame may hold more operations; a machine refuses it as a whole."""

HEAD: Final = struct.Struct("<BQ")
HEAD_BYTES: Final = HEAD.size

_encode = msgspec.msgpack.Encoder().encode
encode = _encode
decode = msgspec.msgpack.decode
DecodeError: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding garbage may raise; for `except`."""


class Frame(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One client's batch of operations, applied as one unit of exactly-once: all of it once, in order.

    `floor`: the lowest id of this session that the client still waits for; results below it may be forgotten.
    """

    session: int
    id: int
    floor: int
    ops: list[Any]


decode_frame = msgspec.msgpack.Decoder(Frame).decode


class Payload(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Decoded data of a KIND_FRAMES entry. `log_time_ms` is wall-clock time that never falls along the log."""

    group: int
    log_time_ms: int
    frames: list[bytes]


decode_payload = msgspec.msgpack.Decoder(Payload).decode


def encode_payload(group: int, log_time_ms: int, frames: list[bytes]) -> bytes:
    """Data of a KIND_FRAMES entry; the frames' bytes are carried as they are."""
    return _encode((group, log_time_ms, frames))


MARK_FRAME: Final = _encode((1, 0, 0, [[OP_MARK]]))
"""A frame that marks; it needs no session, and applying it twice does no harm."""


def pack_head(kind: int, request: int) -> bytes:
    """The nine bytes in front of every message between clients and nodes."""
    return HEAD.pack(kind, request)
