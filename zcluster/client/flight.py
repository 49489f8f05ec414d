"""Values of the client's retry logic: operations that wait to be sent, and frames on their way. PURE.

A `Cargo` is what one frame carries: either single operations of many callers, each with a result of its own, or the
operations of one caller (a *program*, from a pipeline), which has one result: the list. A `Flight` is a cargo under
way, with the attempts made to deliver it. Nothing here decides anything; see `session`.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from zcluster.types import NEVER, Nanoseconds, ReplicaId

ATTEMPTS_MAX: Final = 16
"""Unanswered attempts remembered of one flight; the oldest is forgotten, and counts as unanswered for ever."""
GONE: Final = object()
"""Takes the place of a token whose caller was already told."""

Op = list[Any] | tuple[Any, ...]
Ops = list[Op]


class Cargo:
    """What one frame carries. The lists are parallel, except that a program has many ops and one token."""

    __slots__ = ("deadlines", "first_deadline", "ops", "program", "sizes", "tokens")

    def __init__(
        self, ops: list[Op], tokens: list[Any], deadlines: list[Nanoseconds], sizes: list[int], program: bool
    ) -> None:
        self.ops = ops
        self.tokens = tokens
        self.deadlines = deadlines
        self.sizes = sizes
        self.program = program
        self.first_deadline = min(deadlines)

    def expire(self, now: Nanoseconds) -> list[Any]:
        """Tokens whose deadline has passed; they are GONE afterwards."""
        expired: list[Any] = []
        rest = NEVER
        for i, deadline in enumerate(self.deadlines):
            if self.tokens[i] is GONE:
                continue
            if deadline <= now:
                expired.append(self.tokens[i])
                self.tokens[i] = GONE
            elif deadline < rest:
                rest = deadline
        self.first_deadline = rest
        return expired

    def waiting(self) -> list[Any]:
        """Tokens that still want a result."""
        return [token for token in self.tokens if token is not GONE]


class OpQueue:
    """Operations not sent yet, in order of arrival; programs wait in a line of their own and take turns with them."""

    __slots__ = (
        "_deadlines",
        "_ops",
        "_program_next",
        "_programs",
        "_sizes",
        "_tokens",
        "count",
        "first_deadline",
        "size_bytes",
    )

    def __init__(self) -> None:
        self.count = 0
        self._ops: list[Op] = []
        self._tokens: list[Any] = []
        self._deadlines: list[Nanoseconds] = []
        self._sizes: list[int] = []
        self._programs: deque[Cargo] = deque()
        self._program_next = False
        self.size_bytes = 0
        self.first_deadline: Nanoseconds = NEVER

    def add(self, op: Op, token: Any, deadline: Nanoseconds, size_bytes: int) -> None:
        self._ops.append(op)
        self._tokens.append(token)
        self._deadlines.append(deadline)
        self._sizes.append(size_bytes)
        self.count += 1
        self.size_bytes += size_bytes
        if deadline < self.first_deadline:  # noqa: PLR1730  (a call would cost more than the rest)
            self.first_deadline = deadline

    def add_program(self, ops: list[Op], token: Any, deadline: Nanoseconds, size_bytes: int) -> None:
        self._programs.append(Cargo(ops, [token], [deadline], [size_bytes], program=True))
        self.count += 1
        self.size_bytes += size_bytes
        self.first_deadline = min(self.first_deadline, deadline)

    def take(self, ops_max: int, bytes_max: int) -> Cargo:
        """The next frame's content: a program, or as many single operations as the bounds allow, at least one."""
        assert self.count
        if not self._programs and self.count <= ops_max and self.size_bytes <= bytes_max:
            cargo = Cargo(self._ops, self._tokens, self._deadlines, self._sizes, program=False)
            self._ops, self._tokens, self._deadlines, self._sizes = [], [], [], []
            self.count = self.size_bytes = 0
            self.first_deadline = NEVER
            return cargo
        if self._programs and (self._program_next or not self._tokens):
            self._program_next = False
            cargo = self._programs.popleft()
        else:
            self._program_next = True
            cargo = self._take_singles(ops_max, bytes_max)
        self.count -= len(cargo.tokens)
        self.size_bytes -= sum(cargo.sizes)
        return cargo  # `first_deadline` stays: early is harmless, and `expire` sets it right

    def _take_singles(self, ops_max: int, bytes_max: int) -> Cargo:
        count = len(self._tokens)
        if count > ops_max or self.size_bytes > bytes_max:
            count, size_bytes = 1, self._sizes[0]
            while count < min(ops_max, len(self._sizes)):
                size_bytes += self._sizes[count]
                if size_bytes > bytes_max:
                    break
                count += 1
        cut = slice(0, count)
        cargo = Cargo(self._ops[cut], self._tokens[cut], self._deadlines[cut], self._sizes[cut], program=False)
        del self._ops[cut], self._tokens[cut], self._deadlines[cut], self._sizes[cut]
        return cargo

    def put_back(self, cargo: Cargo) -> None:
        """Take a cargo that was certainly not applied; it goes first. Those who gave up are left out."""
        kept = [i for i, token in enumerate(cargo.tokens) if token is not GONE]
        if not kept:
            return
        if cargo.program:
            self._programs.appendleft(cargo)
        else:
            self._ops[:0] = [cargo.ops[i] for i in kept]
            self._tokens[:0] = [cargo.tokens[i] for i in kept]
            self._deadlines[:0] = [cargo.deadlines[i] for i in kept]
            self._sizes[:0] = [cargo.sizes[i] for i in kept]
        self._recount()

    def expire(self, now: Nanoseconds) -> list[Any]:
        """Take out what is past its deadline; the tokens, singles first."""
        if self.first_deadline > now:
            return []
        expired = [token for token, deadline in zip(self._tokens, self._deadlines, strict=True) if deadline <= now]
        if expired:
            kept = [i for i, deadline in enumerate(self._deadlines) if deadline > now]
            self._ops = [self._ops[i] for i in kept]
            self._tokens = [self._tokens[i] for i in kept]
            self._deadlines = [self._deadlines[i] for i in kept]
            self._sizes = [self._sizes[i] for i in kept]
        expired += [cargo.tokens[0] for cargo in self._programs if cargo.first_deadline <= now]
        self._programs = deque(cargo for cargo in self._programs if cargo.first_deadline > now)
        self._recount()
        return expired

    def clear(self) -> list[Any]:
        """Take out everything; the tokens."""
        return self.expire(NEVER + 1)

    def _recount(self) -> None:
        self.count = len(self._tokens) + len(self._programs)
        self.size_bytes = sum(self._sizes) + sum(cargo.sizes[0] for cargo in self._programs)
        first = min(self._deadlines, default=NEVER)
        self.first_deadline = min((cargo.first_deadline for cargo in self._programs), default=first)
        self.first_deadline = min(self.first_deadline, first)


class Flight:
    """A request under way. `body` never changes: every attempt sends the same bytes.

    Attributes:
        attempts: request number -> replica it went to, for attempts without an answer.
        forgotten: an attempt was dropped from `attempts`; it may have been applied.
        tries: sent so often without an answer; makes the pauses longer.
        refusals: answered "not now" so often; likewise.
        tried: (leader, term) it was last sent under.
    """

    __slots__ = (
        "attempts",
        "body",
        "cargo",
        "forgotten",
        "frame_id",
        "group",
        "kind",
        "refusals",
        "retry_at",
        "session",
        "to_leader",
        "tried",
        "tries",
    )

    def __init__(self, kind: int, body: bytes, cargo: Cargo | None, to_leader: bool) -> None:
        self.kind = kind
        self.body = body
        self.cargo = cargo
        self.to_leader = to_leader
        self.session = 0
        self.frame_id = 0
        self.group: tuple[int, int] | None = None  # of a read: (consistency, bound in ms)
        self.attempts: dict[int, ReplicaId] = {}
        self.forgotten = False
        self.tries = 0
        self.refusals = 0
        self.retry_at: Nanoseconds = 0
        self.tried: tuple[ReplicaId, int] = (0, 0)

    @property
    def certain(self) -> bool:
        """Whether no attempt can still be applied: none was sent, or each was answered with a refusal."""
        return not self.attempts and not self.forgotten
