"""What the core has to say since the last Ready: messages for now, messages for after the disk, answered reads.

Order within each list is the order of sending. Does not live here: what is written (`writes`), what is committed.
"""

from __future__ import annotations

from zcluster.consensus.api import AnyMessage, AppendReply, Ready
from zcluster.types import Configuration, Entry, Index, ReplicaId, Term, WriteBatch

Box = list[tuple[ReplicaId, AnyMessage]]


class Outbox:
    """The lists are handed to the Ready and replaced, never copied."""

    __slots__ = ("after_persist", "left_repair", "messages", "reads", "reads_failed")

    def __init__(self) -> None:
        self.messages: Box = []
        self.after_persist: Box = []
        self.reads: list[tuple[int, Index]] = []
        self.reads_failed: list[int] = []
        self.left_repair = False

    def __bool__(self) -> bool:
        return bool(self.messages or self.after_persist or self.reads or self.reads_failed or self.left_repair)

    def acknowledge(self, leader: ReplicaId, term: Term, match_index: Index, repair: bool) -> None:
        """Everything up to `match_index` will be on disk once the next Ready's `seq` is. One reply serves a turn."""
        box = self.after_persist
        if box and box[-1][0] == leader:
            last = box[-1][1]
            if type(last) is AppendReply and last.success and last.term == term:
                box.pop()
                match_index = max(match_index, last.match_index)
        box.append((leader, AppendReply(term, True, match_index, repair=repair)))

    def ready(
        self, seq: int, write: WriteBatch | None, committed: list[Entry], configuration: Configuration | None
    ) -> Ready:
        return Ready(
            seq,
            write,
            self.messages,
            self.after_persist,
            committed,
            self.reads,
            self.reads_failed,
            configuration,
            self.left_repair,
        )
