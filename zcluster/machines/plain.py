"""A replicated machine out of a plain object: sessions and exactly-once around what somebody writes in ten lines.

    class Tickets:
        def __init__(self): self.given = 0
        def apply(self, op): self.given += 1; return self.given      # one operation; may change the state
        def query(self, op): return self.given                       # one that only reads
        def dump(self): return self.given                            # the whole state as plain data ..
        def load(self, state): self.given = state                    # .. and back

    machine = PlainMachine(Tickets)

An operation is a list of text, bytes, whole numbers, booleans or nothing; a result is whatever MessagePack can hold,
but not a list of a whole number and a text, which stands for an error. The object must be deterministic: no clock, no
randomness, no order of a set. It must not raise for bad input: that is a result.

A capture costs as much as `dump` does, unlike that of `mux`, whose snapshot format this one resembles:

    chunk 0    [SCHEMA, index, log time in ms, registrations, bytes of the state]
    then       slices of the encoded state, as bytes; then lists of session rows (`Sessions.load`); then nothing (nil)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Final, Protocol

from zcluster.errors import FormatTooNew
from zcluster.machines.mux import session_rows
from zcluster.machines.sessions import Session, Sessions, refusal
from zcluster.wire import E_BAD_REQUEST, OP_REGISTER, OPS_MAX, DecodeError, decode, decode_frame, encode

SCHEMA: Final = 1
SLICE_BYTES: Final = 64 << 10
SESSIONS_MAX: Final = 10_000

_SCALARS: Final = frozenset({str, bytes, int, bool, type(None)})
_MALFORMED: Final = refusal(E_BAD_REQUEST, "not a frame of operations whose arguments are text, bytes or whole numbers")


class Plain(Protocol):
    """What is to be replicated; see the module's example."""

    def apply(self, op: list[Any], /) -> Any: ...

    def query(self, op: list[Any], /) -> Any: ...

    def dump(self) -> Any: ...

    def load(self, state: Any, /) -> None: ...


class PlainMachine:
    """Implements zcluster.machines.api.Machine around objects that `new` makes."""

    def __init__(self, new: Callable[[], Plain], sessions_max: int = SESSIONS_MAX) -> None:
        self._new = new
        self._plain = new()
        self._sessions = Sessions(sessions_max)
        self._index = 0

    def apply(self, index: int, log_time_ms: int, frames: list[bytes]) -> list[bytes]:
        """See Machine.apply."""
        self._index = index
        self._sessions.advance(log_time_ms)
        return [self._apply_frame(data) for data in frames]

    def _apply_frame(self, data: bytes) -> bytes:
        try:
            frame = decode_frame(data)
        except DecodeError:
            return _MALFORMED
        ops = frame.ops
        well_formed = len(ops) <= OPS_MAX and all(type(op) is list for op in ops)
        if not well_formed or not _SCALARS.issuperset(map(type, chain.from_iterable(ops))):
            return _MALFORMED
        if frame.id == 0:
            return encode([self._sessions.register(frame.session)]) if ops == [[OP_REGISTER]] else _MALFORMED
        verdict = self._sessions.admit(frame.session, frame.id, frame.floor)
        if type(verdict) is bytes:
            return verdict
        assert isinstance(verdict, Session)
        body = encode([self._plain.apply(op) for op in ops])
        self._sessions.record(verdict, frame.id, body)
        return body

    def query(self, ops: list[Any]) -> bytes:
        """See Machine.query."""
        return encode([self._plain.query(op) for op in ops])

    def maintain(self) -> bool:
        """See Machine.maintain."""
        return False

    def take_mark(self) -> bool:
        """See Machine.take_mark; there are none."""
        return False

    def state_hash(self) -> str:
        """See Machine.state_hash."""
        digest = hashlib.blake2b(encode((self._sessions.now_ms, self._plain.dump())), digest_size=16)
        for session_id, session in self._sessions.items():
            results = sorted(session.results.items())
            digest.update(encode((session_id, session.nonce, session.last_ms, session.floor, results)))
        return digest.hexdigest()

    def capture(self) -> PlainSnapshot:
        """See Machine.capture; the state is copied."""
        sessions = self._sessions
        header = [SCHEMA, self._index, sessions.now_ms, sessions.registrations]
        return PlainSnapshot(header, encode(self._plain.dump()), sessions.capture())

    def restore(self, chunks: Iterator[bytes]) -> None:
        """See Machine.restore. On an error the state is what it was before."""
        contents = map(decode, chunks)
        schema, index, now_ms, registrations, size_bytes = next(contents)
        if schema > SCHEMA:
            raise FormatTooNew(f"the snapshot has schema {schema}, this zcluster reads up to {SCHEMA}; upgrade it")
        state, sessions, ended = bytearray(), Sessions(self._sessions.sessions_max), False
        for content in contents:
            if type(content) is bytes:
                state += content
            elif content is None:
                ended = True
            else:
                sessions.load(content)
        if not ended or len(state) != size_bytes:
            raise ValueError("snapshot is damaged: it has not as many bytes as it should")
        plain = self._new()
        plain.load(decode(state))
        sessions.now_ms, sessions.registrations = now_ms, registrations
        self._index, self._plain, self._sessions = index, plain, sessions


class PlainSnapshot:
    """A copy of the state."""

    def __init__(self, header: list[int], state: bytes, sessions: list[tuple[int, Session]]) -> None:
        self._header = header
        self._state = state
        self._sessions = sessions

    def chunks(self) -> Iterator[bytes]:
        """See Snapshot.chunks."""
        state = self._state
        yield encode([*self._header, len(state)])
        for begin in range(0, len(state), SLICE_BYTES):
            yield encode(state[begin : begin + SLICE_BYTES])
        for rows in session_rows(self._sessions):
            yield encode(rows)
        yield encode(None)

    def digest(self) -> Iterator[str | None]:
        """See Snapshot.digest."""
        digest = hashlib.blake2b(digest_size=16)
        for chunk in self.chunks():
            digest.update(chunk)
            yield None
        yield digest.hexdigest()
