"""The whole replicated state of a cluster: sessions and keys behind the Machine contract.

    frame  ->  decode  ->  sessions.admit  ->  kv.apply  ->  one encoded body  ->  sessions.record
                               └─ an answer that is known, or a refusal, goes straight back

Whether a frame is well-formed must come out alike on all replicas, on whatever stack they decode it: arguments of
operations are plain scalars (no lists, maps, floats), everything else is refused as a whole before anything is
applied. So a nesting deep enough to exhaust one interpreter's stack and not another's is refused by both.

A snapshot is a stream of chunks. Each chunk is

    [ CRC-32 of the rest, 4 bytes little endian ][ MessagePack: [sequence number, kind, content] ]

    kind 0  header    [schema, index, log time in ms, revision, registrations]    always first, readable by all versions
    kind 1  pairs     [key, value, key, value, ...]
    kind 2  sessions  [[session, nonce, last use in ms, floor, [id, result, ...]], ...]    least recently used first
    kind 3  end       [number of pairs, number of sessions]                 always last
"""

from __future__ import annotations

import hashlib
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Annotated, Any, Final

import msgspec

from zcluster.errors import FormatTooNew
from zcluster.machines.kv import CHUNK_BYTES, KvStore, View, pairs_of
from zcluster.machines.sessions import Session, Sessions, refusal
from zcluster.wire import (
    E_BAD_REQUEST,
    FRAME_BYTES_MAX,
    OP_HASH,
    OP_INDEX,
    OP_MARK,
    OP_REGISTER,
    OPS_MAX,
    decode,
    encode,
)

SCHEMA: Final = 1

DIGEST_BYTES: Final = 16
DIGEST_SLICE: Final = 256
"""Pairs whose digests are worked out in one go: a quarter of a millisecond."""

_HEADER: Final = 0
_PAIRS: Final = 1
_SESSIONS: Final = 2
_END: Final = 3

_SCALARS: Final = frozenset({str, bytes, int, bool, type(None)})
_Natural = Annotated[int, msgspec.Meta(ge=0)]


class _Frame(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """wire.Frame with every bound checked by the decoder."""

    session: Annotated[int, msgspec.Meta(ge=1)]
    id: _Natural
    floor: _Natural
    ops: Annotated[list[list[Any]], msgspec.Meta(max_length=OPS_MAX)]


class _Header(msgspec.Struct, frozen=True, array_like=True):
    """Content of the first chunk; a newer version may add to it."""

    schema: int
    index: _Natural
    now_ms: _Natural
    revision: _Natural
    registrations: _Natural


_decode_frame = msgspec.msgpack.Decoder(_Frame).decode
_MALFORMED: Final = refusal(
    E_BAD_REQUEST,
    f"not a frame [session, id, floor, operations]: at most {OPS_MAX} operations, their arguments text, bytes, whole "
    "numbers, booleans or nothing",
)
_TOO_LONG: Final = refusal(E_BAD_REQUEST, f"a frame has at most {FRAME_BYTES_MAX} bytes")
_BAD_REGISTRATION: Final = refusal(
    E_BAD_REQUEST, "id 0 is for registering the session, or for a mark, and nothing else"
)


class ClusterMachine:
    """Implements zcluster.machines.api.Machine."""

    def __init__(self, key_bytes_max: int, value_bytes_max: int, sessions_max: int) -> None:
        self.sessions = Sessions(sessions_max)
        self.kv = KvStore(key_bytes_max, value_bytes_max)
        self.index = 0
        self._marked = False

    # -- applying and asking ------------------------------------------------------------------------------------------
    def apply(self, index: int, log_time_ms: int, frames: list[bytes]) -> list[bytes]:
        """See Machine.apply."""
        self.index = index
        self.sessions.advance(log_time_ms)
        apply_frame = self._apply_frame
        return [apply_frame(data) for data in frames]

    def _apply_frame(self, data: bytes) -> bytes:
        if len(data) > FRAME_BYTES_MAX:
            return _TOO_LONG
        try:
            frame = _decode_frame(data)
        except (ValueError, RecursionError):  # msgspec's errors and UnicodeDecodeError are ValueErrors
            return _MALFORMED
        ops = frame.ops
        if not _SCALARS.issuperset(map(type, chain.from_iterable(ops))):
            return _MALFORMED  # the same answer: which of the two notices is a matter of stack depth
        frame_id = frame.id
        if frame_id == 0:
            if ops == [[OP_MARK]]:
                self._marked = True
                return encode([self.index])
            if ops != [[OP_REGISTER]]:
                return _BAD_REGISTRATION
            return encode([self.sessions.register(frame.session)])
        verdict = self.sessions.admit(frame.session, frame_id, frame.floor)
        if type(verdict) is bytes:
            return verdict
        assert isinstance(verdict, Session)
        body = encode(self.kv.apply(ops))
        self.sessions.record(verdict, frame_id, body)
        return body

    def query(self, ops: list[Any]) -> bytes:
        """See Machine.query."""
        if type(ops) is not list or len(ops) > OPS_MAX:
            return refusal(E_BAD_REQUEST, f"a read is a list of at most {OPS_MAX} operations")
        results = self.kv.query(ops)
        if [OP_HASH] in ops:
            hashed = self._hash_result()  # once, however often it is asked for: it walks the whole state
            results = [hashed if op == [OP_HASH] else result for op, result in zip(ops, results, strict=True)]
        if [OP_INDEX] in ops:
            at = [self.index, self.kv.revision]
            results = [at if op == [OP_INDEX] else result for op, result in zip(ops, results, strict=True)]
        return encode(results)

    def _hash_result(self) -> list[Any]:
        return [self.index, self.kv.revision, self.state_hash()]

    def state_hash(self) -> str:
        """See Machine.state_hash. Covers keys, values, revision, log time and the sessions with their order."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(encode((SCHEMA, self.kv.revision, self.sessions.now_ms, self.sessions.registrations)))
        for pair in self.kv.items():
            digest.update(encode(pair))
        for session_id, session in self.sessions.items():
            results = sorted(session.results.items())
            digest.update(encode((session_id, session.nonce, session.last_ms, session.floor, results)))
        return digest.hexdigest()

    # -- snapshots ----------------------------------------------------------------------------------------------------
    def capture(self) -> MachineSnapshot:
        """See Machine.capture."""
        header = [SCHEMA, self.index, self.sessions.now_ms, self.kv.revision, self.sessions.registrations]
        return MachineSnapshot(header, self.kv.capture(), self.sessions.capture())

    def take_mark(self) -> bool:
        """See Machine.take_mark."""
        marked, self._marked = self._marked, False
        return marked

    def maintain(self) -> bool:
        """See Machine.maintain."""
        return self.kv.maintain()

    def begin_anew(self) -> None:
        """The state becomes the first one of another cluster: keys, values, revision and log time stay, and what
        belongs to clients of the old one ends. Session ids go on counting, so that none of theirs is given again."""
        ended, self.sessions = self.sessions, Sessions(self.sessions.sessions_max)
        self.sessions.now_ms = ended.now_ms
        self.sessions.registrations = ended.registrations

    def restore(self, chunks: Iterator[bytes]) -> None:
        """See Machine.restore. On an error the state is what it was before."""
        stream = _contents(chunks)
        header = _read_header(next(stream, None))
        pairs: dict[str, bytes] = {}
        sessions = Sessions(self.sessions.sessions_max)
        pair_count = 0
        ended = False
        for kind, content in stream:
            if ended:
                raise ValueError("snapshot is damaged: it goes on after its end")
            try:
                if kind == _PAIRS:
                    pairs.update(pairs_of(content))
                    pair_count += len(content) // 2
                elif kind == _SESSIONS:
                    sessions.load(content)
                elif kind == _END:
                    ended = content == [pair_count, len(sessions)] and pair_count == len(pairs)
                    if not ended:
                        raise ValueError(f"it should hold {content} pairs and sessions")
                else:
                    raise ValueError(f"unknown kind {kind!r}")
            except (TypeError, ValueError) as error:
                raise ValueError(f"snapshot is damaged: {error}") from None
        if not ended:
            raise ValueError("snapshot is damaged: its end is missing")
        sessions.now_ms = header.now_ms
        sessions.registrations = header.registrations
        self.index = header.index
        self.sessions = sessions
        self.kv.replace(pairs, header.revision)


class Summary(msgspec.Struct, frozen=True):
    """What a snapshot holds: up to which index, at which revision, how many keys and sessions."""

    index: int
    revision: int
    keys: int
    sessions: int


def summarize(chunks: Iterable[bytes]) -> Summary:
    """Read a whole snapshot, keep nothing of it. Raises: FormatTooNew, ValueError (damaged)."""
    stream = _contents(chunks)
    first = next(stream, None)
    return _summary(first, (*deque(stream, maxlen=1), (_HEADER, None))[0])


def summary_of(first: bytes, last: bytes) -> Summary:
    """The same from the first and the last chunk alone. Raises: FormatTooNew, ValueError (damaged)."""
    return _summary(_content(first)[1:], _content(last)[1:])


def _summary(first: tuple[int, Any] | None, last: tuple[int, Any]) -> Summary:
    header = _read_header(first)
    kind, content = last
    if kind != _END or type(content) is not list or list(map(type, content)) != [int, int]:
        raise ValueError("snapshot is damaged: its end is missing")
    return Summary(header.index, header.revision, content[0], content[1])


class MachineSnapshot:
    """A frozen view; closed when its chunks were read, when their iterator is closed, or when it is dropped."""

    def __init__(self, header: list[int], view: View, sessions: list[tuple[int, Session]]) -> None:
        self._header = header
        self._view = view
        self._sessions = sessions

    def chunks(self) -> Iterator[bytes]:
        """See Snapshot.chunks. To be called once."""
        return _Chunks(self)

    def digest(self) -> Iterator[str | None]:
        """See Snapshot.digest. Of pairs the digests are added up, so their order does not matter; the rest has one."""
        pairs_sum = 0
        ordered = hashlib.blake2b(digest_size=DIGEST_BYTES)
        for kind, content in self.contents():
            if kind != _PAIRS:
                ordered.update(encode((kind, content)))
                yield None
                continue
            for start in range(0, len(content), 2 * DIGEST_SLICE):
                pairs_sum += _sum_of_digests(content[start : start + 2 * DIGEST_SLICE])
                yield None
        self.close()
        ordered.update((pairs_sum % (1 << 8 * DIGEST_BYTES)).to_bytes(DIGEST_BYTES, "little"))
        yield ordered.hexdigest()

    def close(self) -> None:
        self._view.close()

    def __del__(self) -> None:
        self._view.close()

    def contents(self) -> Iterator[tuple[int, Any]]:
        """(kind, content) of every chunk in order."""
        yield _HEADER, self._header
        pair_count = 0
        for pairs in self._view.pairs():
            pair_count += len(pairs) // 2
            yield _PAIRS, pairs
        for rows in session_rows(self._sessions):
            yield _SESSIONS, rows
        yield _END, [pair_count, len(self._sessions)]


def _sum_of_digests(pairs: list[str | bytes]) -> int:
    """Over [key, value, key, value, ...]."""
    found = 0
    for pair in zip(pairs[::2], pairs[1::2], strict=True):
        found += int.from_bytes(hashlib.blake2b(encode(pair), digest_size=DIGEST_BYTES).digest(), "little")
    return found


class _Chunks:
    """Iterator over encoded chunks. A class and not a generator: closing a generator that never ran runs nothing."""

    def __init__(self, snapshot: MachineSnapshot) -> None:
        self._snapshot = snapshot
        self._contents = enumerate(snapshot.contents())

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            sequence, (kind, content) = next(self._contents)
        except StopIteration:
            self.close()
            raise
        body = encode((sequence, kind, content))
        return zlib.crc32(body).to_bytes(4, "little") + body

    def close(self) -> None:
        self._contents = enumerate(iter(()))
        self._snapshot.close()


def session_rows(sessions: list[tuple[int, Session]]) -> Iterator[list[Any]]:
    """Rows for Sessions.load, in lists of about CHUNK_BYTES; a session with many results spans several rows."""
    rows: list[Any] = []
    size_bytes = 0
    for session_id, session in sessions:
        pairs: list[Any] = []
        rows.append((session_id, session.nonce, session.last_ms, session.floor, pairs))
        size_bytes += 32
        for frame_id, body in session.results.items():
            if size_bytes >= CHUNK_BYTES:
                yield rows
                pairs = []
                rows = [(session_id, session.nonce, session.last_ms, session.floor, pairs)]
                size_bytes = 0
            pairs += (frame_id, body)
            size_bytes += len(body) + 10
        if size_bytes >= CHUNK_BYTES:
            yield rows
            rows, size_bytes = [], 0
    if rows:
        yield rows


def _contents(chunks: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """(kind, content) of every chunk, checked for damage, gaps and order. Raises: ValueError."""
    for expected, chunk in enumerate(chunks):
        sequence, kind, content = _content(chunk)
        if sequence != expected:
            raise ValueError(f"snapshot is damaged: chunk {sequence} where {expected} should be")
        yield kind, content


def _content(chunk: bytes) -> tuple[int, int, Any]:
    """(sequence number, kind, content) of one chunk. Raises: ValueError."""
    body = memoryview(chunk)[4:]
    if len(chunk) < 5 or zlib.crc32(body) != int.from_bytes(chunk[:4], "little"):
        raise ValueError("snapshot is damaged: checksum of a chunk")
    try:
        sequence, kind, content = decode(body)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"snapshot is damaged: a chunk: {error}") from None
    return sequence, kind, content


def _read_header(first: tuple[int, Any] | None) -> _Header:
    if first is None or first[0] != _HEADER:
        raise ValueError("snapshot is damaged: it does not start with a header")
    content = first[1]
    if type(content) is list and content and type(content[0]) is int and content[0] > SCHEMA:
        raise FormatTooNew(
            f"the snapshot has schema {content[0]}, this zcluster reads up to {SCHEMA}; upgrade zcluster on this node"
        )
    try:
        return msgspec.convert(content, _Header)
    except msgspec.ValidationError as error:
        raise ValueError(f"snapshot is damaged: header: {error}") from None
