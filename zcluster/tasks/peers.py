"""The processes on both sides of the router: where they are connected, and the proof of their death."""

from __future__ import annotations

import os
from collections import deque

from zcluster.tasks.word import WordReader
from zcluster.transport.liveness import ProcessWatch
from zcluster.types import NEVER, Nanoseconds

Message = list[bytes]


class ClientPeer:
    """A client's process and connection. One client is one pool; a process may have several."""

    __slots__ = ("identity", "number", "unreachable", "unsent", "watch")

    def __init__(self, number: int, watch: ProcessWatch) -> None:
        self.number = number
        self.watch = watch
        self.identity = b""
        self.unsent: deque[Message] = deque()
        self.unreachable: Nanoseconds = NEVER  # since when


class WorkerPeer:
    """One run of a worker process, and its connection."""

    __slots__ = ("acknowledged", "identity", "key", "name", "pid", "sequence", "stat", "watch", "word")

    def __init__(self, key: int, name: str, pid: int, watch: ProcessWatch, word: WordReader | None) -> None:
        self.key = key
        self.name = name
        self.pid = pid
        self.watch = watch
        self.word = word
        self.identity = b""
        self.sequence = 0
        self.acknowledged = 0
        self.stat = os.open(f"/proc/{pid}/stat", os.O_RDONLY) if not watch.dead else -1

    def stopped(self) -> bool:
        """Is the process stopped by a signal (SIGSTOP), or traced?"""
        try:
            return os.pread(self.stat, 512, 0).rsplit(b")", 1)[1].split()[0] in (b"T", b"t")
        except (OSError, IndexError):
            return False

    def close(self) -> None:
        self.watch.close()
        if self.stat >= 0:
            os.close(self.stat)
        if self.word is not None:
            self.word.close()
