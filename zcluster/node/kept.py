"""Messages that wait for the disk: each leaves once the write it speaks of is persisted. Pure.

A disk that stalls makes no write go away, while a leader that gets no answer asks again at every heartbeat. So of the
messages that wait for the same write only the newest of each kind to each receiver is kept: the older ones may as well
have been lost on the way, which every receiver copes with. An acknowledgement is not newer than one of more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from zcluster.consensus.api import AnyMessage, AppendReply
from zcluster.types import ReplicaId

Addressed = tuple[ReplicaId, AnyMessage]


class KeptMessages:
    """In the order of the writes (`seq` never falls), and of sending within one."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, dict[tuple[ReplicaId, type], Addressed]]] = deque()

    def __len__(self) -> int:
        return sum(len(messages) for _, messages in self._waiting)

    def add(self, seq: int, messages: Iterable[Addressed]) -> None:
        """Keep `messages` until everything up to `seq` is persisted."""
        if not self._waiting or self._waiting[-1][0] != seq:
            assert not self._waiting or self._waiting[-1][0] < seq, "messages for a write before the last one"
            self._waiting.append((seq, {}))
        kept = self._waiting[-1][1]
        for to, message in messages:
            key = to, type(message)
            earlier = kept.pop(key, None)
            kept[key] = earlier if earlier is not None and _says_more(earlier[1], message) else (to, message)

    def take(self, seq: int) -> list[Addressed]:
        """What may leave now that everything up to `seq` is persisted."""
        free: list[Addressed] = []
        while self._waiting and self._waiting[0][0] <= seq:
            free += self._waiting.popleft()[1].values()
        return free


def _says_more(earlier: AnyMessage, later: AnyMessage) -> bool:
    """Whether the earlier of two acknowledgements acknowledges more."""
    if type(earlier) is not AppendReply or type(later) is not AppendReply or earlier.term != later.term:
        return False
    return earlier.success and later.success and earlier.match_index > later.match_index
