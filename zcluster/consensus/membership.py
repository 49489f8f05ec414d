"""Which configuration is in force: the last one in the log, committed or not (thesis §4.1).

Keeps the configurations of the log in memory as a stack over the one at its base, so that a truncated change reverts
and a checkpoint can be given the configuration of its index. Does not live here: when a change may be proposed.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from zcluster.consensus.api import ADD_LEARNER, PROMOTE, REMOVE, ConfigChange
from zcluster.errors import InvalidInput
from zcluster.types import KIND_CONFIG, Configuration, Entry, Index, ReplicaId

REPLICA_ID_MAX = 0xFFFF

_decoder = msgspec.msgpack.Decoder(Configuration)
_encoder = msgspec.msgpack.Encoder()


def encode(configuration: Configuration) -> bytes:
    return _encoder.encode(configuration)


def decode(entry: Entry) -> Configuration:
    """The configuration that a KIND_CONFIG entry sets. Raises: ValueError when it is none."""
    decoded = _decoder.decode(entry.data)
    check(decoded)
    return Configuration(decoded.voters, decoded.learners, entry.index)


def check(configuration: Configuration) -> None:
    """Raises: ValueError unless both tuples are sorted, disjoint and hold valid ids."""
    everyone = (*configuration.voters, *configuration.learners)
    if (
        len(set(everyone)) != len(everyone)
        or any(not 1 <= replica <= REPLICA_ID_MAX for replica in everyone)
        or list(configuration.voters) != sorted(configuration.voters)
        or list(configuration.learners) != sorted(configuration.learners)
    ):
        raise ValueError(f"not a configuration: {configuration}")


def changed(now: Configuration, change: ConfigChange, index: Index) -> Configuration:
    """`now` after `change`, set by the entry at `index`. Raises: InvalidInput where the change makes no sense."""
    voters, learners, replica = set(now.voters), set(now.learners), change.replica
    if not 1 <= replica <= REPLICA_ID_MAX:
        raise InvalidInput(f"replica id {replica} is outside 1..{REPLICA_ID_MAX}")
    if change.action == ADD_LEARNER:
        if replica in voters or replica in learners:
            raise InvalidInput(f"replica {replica} is a member already")
        learners.add(replica)
    elif change.action == PROMOTE:
        if replica not in learners:
            raise InvalidInput(f"replica {replica} is not a learner; add it as one first")
        learners.remove(replica)
        voters.add(replica)
    elif change.action == REMOVE:
        if replica not in voters and replica not in learners:
            raise InvalidInput(f"replica {replica} is not a member")
        if voters == {replica}:
            raise InvalidInput(f"replica {replica} is the last voter")
        voters.discard(replica)
        learners.discard(replica)
    else:
        raise InvalidInput(f"unknown configuration change {change.action!r}")
    return Configuration(tuple(sorted(voters)), tuple(sorted(learners)), index)


class Membership:
    """Invariant: indices on the stack grow; `current` is its top, or the base."""

    __slots__ = ("_base", "_stack", "current")

    def __init__(self, base: Configuration) -> None:
        self._base = base
        self._stack: list[Configuration] = []
        self.current = base

    def appended(self, configurations: Sequence[Configuration]) -> None:
        self._stack.extend(configurations)
        self._settle()

    def truncated(self, last_kept: Index) -> None:
        while self._stack and self._stack[-1].index > last_kept:
            self._stack.pop()
        self._settle()

    def compacted(self, base_index: Index) -> None:
        """Entries up to `base_index` are forgotten."""
        while self._stack and self._stack[0].index <= base_index:
            self._base = self._stack.pop(0)

    def replaced(self, index: Index, configuration: Configuration) -> None:
        """A checkpoint at `index` was installed; later changes stay if their entries do (else truncate first)."""
        self._base = configuration
        self._stack = [later for later in self._stack if later.index > index]
        self._settle()

    def at(self, index: Index) -> Configuration:
        """The configuration in force after applying `index`; not before the base of the log."""
        found = self._base
        for configuration in self._stack:
            if configuration.index > index:
                break
            found = configuration
        return found

    def always_alone(self, replica: ReplicaId) -> bool:
        """Whether no configuration in the log has another voter than `replica`: then nobody else can have led."""
        return all(known.voters == (replica,) for known in (self._base, *self._stack))

    def _settle(self) -> None:
        self.current = self._stack[-1] if self._stack else self._base


def configurations_in(entries: Sequence[Entry]) -> list[Configuration]:
    """All configurations that `entries` set. Raises: ValueError where one cannot be read."""
    return [decode(entry) for entry in entries if entry.kind == KIND_CONFIG]
