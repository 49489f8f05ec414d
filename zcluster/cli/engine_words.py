"""The engines' own words, for people. JSON keeps the common ones: `term`, `leader`."""

from __future__ import annotations

from typing import Final

RAFT: Final = "raft"
PAXOS: Final = "paxos"
_ID_BITS: Final = 16  # of a ballot, as in consensus.ballots, which a quick command need not load


def leader_word(engine: str) -> str:
    return "proposer" if engine == PAXOS else "leader"


def term_word(engine: str) -> str:
    return "ballot" if engine == PAXOS else "term"


def term_text(engine: str, term: int | None) -> str:
    """A Paxos ballot as number.proposer.

    >>> term_text("raft", 1234), term_text("paxos", (7 << 16) + 2), term_text("raft", None)
    ('1,234', '7.2', '-')
    """
    if term is None:
        return "-"
    return f"{term >> _ID_BITS}.{term & (1 << _ID_BITS) - 1}" if engine == PAXOS else f"{term:,}"
