"""The exactly-once table: which frames of which client were applied, and what they were answered.

A client stamps each frame with (session, id, floor) and may have many in flight; after a change of leader they can
arrive, and be applied, in any order, some of them twice. For every session the results of all ids at or above its
floor are kept:

    id      floor                     floor + window
    ────────┼──────────────────────────┼──────────
    refused │ answered: told again     │ refused: not applied (E_WINDOW)
            │ unseen: applied once     │

Sessions are registered through the log. They leave through the log too: the least recently used one when the table
(or its memory) is full, and any that was idle for an hour of *log* time. A frame of an unknown session is refused.
The log gives each session its id, and no id twice: if clients chose them, a registration that arrives late would
bring an evicted session back, empty, and old frames that arrive after it would be applied again. The client's own
random number (nonce) only makes a retried registration find the session it has already made.

Deterministic: order of use is the order of the log. `capture` copies one list of references; a session changed
later is copied first (once a capture), so a frozen view never changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Final

from zcluster.wire import E_BAD_REQUEST, E_FULL, E_UNKNOWN_SESSION, E_WINDOW, encode

WINDOW: Final = 4_096
RESULT_BYTES_MAX: Final = 64 << 20
"""Unforgotten results of one session, in bytes, beyond which its next frame is refused."""
TABLE_BYTES_MAX: Final = 256 << 20
"""Unforgotten results of all sessions, beyond which the least recently used sessions are evicted."""
IDLE_MS_MAX: Final = 3_600_000


def refusal(code: int, text: str) -> bytes:
    """Result body that refuses a whole frame."""
    return encode({"code": code, "text": text})


_UNKNOWN: Final = refusal(E_UNKNOWN_SESSION, "this session is not registered, or it expired; register a new one")
_ANSWERED: Final = refusal(E_WINDOW, "the id lies below the session's floor: already answered or given up")
_BEYOND: Final = refusal(E_WINDOW, f"the id lies {WINDOW} or more above the session's floor")
_FULL: Final = refusal(E_FULL, f"more than {RESULT_BYTES_MAX} bytes of results wait for the client's floor to rise")
_MALFORMED: Final = refusal(E_BAD_REQUEST, "the floor lies above the id")


class Session:
    """What one client was answered. `results`: id -> result body, for ids at or above `floor`."""

    __slots__ = ("era", "floor", "last_ms", "nonce", "result_bytes", "results")

    def __init__(self, era: int, nonce: int, last_ms: int, floor: int = 0) -> None:
        self.era = era
        self.nonce = nonce
        self.last_ms = last_ms
        self.floor = floor
        self.result_bytes = 0
        self.results: dict[int, bytes] = {}


class Sessions:
    """The table. `now_ms` is log time: it comes from entries and never falls."""

    def __init__(self, sessions_max: int, table_bytes_max: int = TABLE_BYTES_MAX) -> None:
        self.sessions_max = sessions_max
        self.now_ms = 0
        self.registrations = 0
        self._table_bytes_max = table_bytes_max
        self._table_bytes = 0
        self._era = 0
        self._table: OrderedDict[int, Session] = OrderedDict()  # least recently used first
        self._by_nonce: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, session_id: int) -> bool:
        return session_id in self._table

    def advance(self, log_time_ms: int) -> None:
        """Move log time on and drop what was idle too long."""
        self.now_ms = max(self.now_ms, log_time_ms)
        oldest_ms = self.now_ms - IDLE_MS_MAX
        table = self._table
        while table and next(iter(table.values())).last_ms < oldest_ms:
            self._evict()

    def register(self, nonce: int) -> int:
        """The id of a new session, or of the one that this nonce has made and that is still there."""
        session_id = self._by_nonce.get(nonce)
        if session_id is not None:
            self._touch(session_id, self._table[session_id])
            return session_id
        if len(self._table) >= self.sessions_max:
            self._evict()
        self.registrations += 1
        # The nonce's bits keep apart the sessions of two clusters, one of which took the other's place.
        session_id = self.registrations << 32 | (nonce & 0xFFFFFFFF)
        self._table[session_id] = Session(self._era, nonce, self.now_ms)
        self._by_nonce[nonce] = session_id
        return session_id

    def admit(self, session_id: int, frame_id: int, floor: int) -> Session | bytes:
        """The session to apply a frame under (then `record` its result), or the body to answer without applying."""
        session = self._table.get(session_id)
        if session is None:
            return _UNKNOWN
        session = self._touch(session_id, session)
        if floor > session.floor:
            if floor > frame_id:
                return _MALFORMED
            self._raise_floor(session, floor)
        elif frame_id < session.floor:
            return _ANSWERED
        known = session.results.get(frame_id)
        if known is not None:
            return known
        if frame_id >= session.floor + WINDOW:
            return _BEYOND
        if session.result_bytes > RESULT_BYTES_MAX:
            return _FULL
        return session

    def record(self, session: Session, frame_id: int, result: bytes) -> None:
        """Keep the answer of a frame that was just applied. `session` is the most recently used one."""
        session.results[frame_id] = result
        size_bytes = len(result)
        session.result_bytes += size_bytes
        self._table_bytes += size_bytes
        while self._table_bytes > self._table_bytes_max and len(self._table) > 1:
            self._evict()

    def _touch(self, session_id: int, session: Session) -> Session:
        if session.era != self._era:
            session = self._table[session_id] = self._copy(session)
        session.last_ms = self.now_ms
        self._table.move_to_end(session_id)
        return session

    def _copy(self, session: Session) -> Session:
        copy = Session(self._era, session.nonce, session.last_ms, session.floor)
        copy.result_bytes = session.result_bytes
        copy.results = session.results.copy()
        return copy

    def _evict(self) -> None:
        _, session = self._table.popitem(last=False)
        self._table_bytes -= session.result_bytes
        del self._by_nonce[session.nonce]

    def _raise_floor(self, session: Session, floor: int) -> None:
        results = session.results
        forgotten = 0
        if floor - session.floor <= len(results):
            for frame_id in range(session.floor, floor):
                body = results.pop(frame_id, None)
                if body is not None:
                    forgotten += len(body)
        else:
            for frame_id in [known for known in results if known < floor]:
                forgotten += len(results.pop(frame_id))
        session.floor = floor
        session.result_bytes -= forgotten
        self._table_bytes -= forgotten

    def items(self) -> Iterator[tuple[int, Session]]:
        """Sessions with their ids, least recently used first."""
        return iter(self._table.items())

    # -- snapshots ----------------------------------------------------------------------------------------------------
    def capture(self) -> list[tuple[int, Session]]:
        """All sessions, least recently used first; from now on each is copied before it changes."""
        self._era += 1
        return list(self._table.items())

    def load(self, rows: list[list[Any]]) -> None:
        """Take rows [session, nonce, last_ms, floor, [id, result, ...]] of a snapshot, in its order; a session whose
        results fill more than one row is continued by the next. Raises: ValueError."""
        for session_id, nonce, last_ms, floor, pairs in rows:
            if not all(type(number) is int for number in (session_id, nonce, last_ms, floor)):
                raise ValueError("a session of the wrong type")
            if type(pairs) is not list:
                raise ValueError("a session's results of the wrong type")
            session = self._table.get(session_id)
            if session is None:
                session = self._table[session_id] = Session(self._era, nonce, last_ms, floor)
                if self._by_nonce.setdefault(nonce, session_id) != session_id:
                    raise ValueError(f"two sessions were made by the nonce {nonce}")
            elif next(reversed(self._table)) != session_id:
                raise ValueError(f"session {session_id} appears twice")
            if len(pairs) % 2:
                raise ValueError("a result without its id")
            for frame_id, body in zip(pairs[::2], pairs[1::2], strict=True):
                if type(frame_id) is not int or type(body) is not bytes:
                    raise ValueError("a session's result of the wrong type")
                session.results[frame_id] = body
                session.result_bytes += len(body)
                self._table_bytes += len(body)
