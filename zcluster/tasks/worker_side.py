"""The router's side towards workers: who they are, what they run, whether they are alive, dead, or stopped.

Proof of death is a pidfd. A worker that dies while it runs a task is judged a moment later, so that whoever killed it
on purpose can say so (`word.spare`): then nobody is charged. A stopped or mute worker is only given nothing new.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Final

from zcluster.config import WORKER
from zcluster.tasks import protocol as p
from zcluster.tasks.peers import Message, WorkerPeer
from zcluster.tasks.records import Segments, ToWorker
from zcluster.tasks.side import NO_SEGMENTS, Common, Side
from zcluster.tasks.word import SUFFIX, WordReader, word_path
from zcluster.transport.liveness import ProcessWatch
from zcluster.types import MS, NEVER, Nanoseconds

DOUBT_NS: Final = 100 * MS
"""A worker that was silent for longer is checked for being stopped before it gets work."""
SILENT_NS: Final = 2_500 * MS
"""An idle worker answers pings; one that has not for so long gets nothing new."""
PING_NS: Final = 500 * MS
VERDICT_NS: Final = 20 * MS
"""Time for whoever killed a worker on purpose to say so."""


class WorkerSide(Side):
    """`peers`: the workers that are alive, by the dispatcher's key."""

    def __init__(self, common: Common) -> None:
        super().__init__(WORKER, common)
        self.peers: dict[int, WorkerPeer] = {}
        self._run_directory = self.spec.path / "run"
        self._of: dict[bytes, WorkerPeer] = {}  # by identity
        self._last_key = 0
        self._verdicts: deque[tuple[Nanoseconds, WorkerPeer]] = deque()
        self._expected: dict[str, ProcessWatch] = {}  # name -> workers that should report
        self._expect_all()

    def _expect_all(self) -> None:
        """Workers that run already (ours is not the first router) are to report before anything is started twice."""
        now = time.monotonic_ns()
        for path in self._run_directory.glob(f"*{SUFFIX}"):
            try:
                word = WordReader(path)
            except (OSError, ValueError):
                continue
            watch = ProcessWatch(word.pid, word.ticks)
            name = path.name.removesuffix(SUFFIX)
            if watch.dead:
                watch.close()
            else:
                self.dispatcher.expect(name, word.running(), now)
                self._expected[name] = watch
                self.deaths.watch(watch, lambda name=name: self._expected_dead(name))  # type: ignore[misc]
            word.close()

    def _expected_dead(self, name: str) -> None:
        watch = self._expected.pop(name, None)
        if watch is not None:
            self.deaths.unwatch(watch)
            watch.close()
            self.dispatcher.expected_gone(name)

    def handle(self, identity: bytes, message: Message) -> None:
        if not message[0]:
            self.ask_who(identity)
            return
        kind, body = p.unpack(message[0])
        peer = self._of.get(identity)
        if kind == p.REPORT:
            self._report(identity, body)
        elif kind not in (p.DONE, p.PONG, p.LEAVE):
            raise ValueError("not a worker's message")
        elif peer is None:
            self.ask_who(identity)
        elif kind == p.DONE:
            segments: Iterable[Segments] = NO_SEGMENTS
            if len(message) > 1:
                segments = p.split_segments([result[5] for result in body.results], message[1:])
            if body.sequence > peer.sequence:  # else it was repeated, and had arrived
                peer.sequence = body.sequence
                self.dispatcher.done(peer.key, body.results, segments, body.recalled, time.monotonic_ns())
        elif kind == p.LEAVE:
            self._acknowledge(peer)
            self.dispatcher.worker_silent(peer.key, (body[0], body[1]) if len(body) == 2 else None)
        else:
            self.dispatcher.worker_heard(peer.key, time.monotonic_ns())

    def _report(self, identity: bytes, report: p.Report) -> None:
        refusal = self.refusal(report.protocol, report.cluster_id, report.python)
        if refusal is not None:
            self.send(identity, [p.pack(p.REFUSED, [refusal])])
            return
        peer = next((w for w in self.peers.values() if w.pid == report.pid and w.name == report.name), None)
        if peer is None:
            watch = ProcessWatch(report.pid, report.ticks)
            if watch.dead:
                watch.close()
                return
            self._last_key += 1
            peer = WorkerPeer(self._last_key, report.name, report.pid, watch, self._open_word(report))
            self.peers[peer.key] = peer
            self.deaths.watch(watch, lambda: self._dead(peer))
        self._of.pop(peer.identity, None)
        peer.identity = identity
        peer.sequence = peer.acknowledged = 0  # what it repeats counts again: its report says that it holds those tasks
        self._of[identity] = peer
        self.dispatcher.worker_joined(peer.key, peer.name, report.held, time.monotonic_ns())
        expected = self._expected.pop(report.name, None)
        if expected is not None:
            self.deaths.unwatch(expected)
            expected.close()

    def _open_word(self, report: p.Report) -> WordReader | None:
        try:
            word = WordReader(word_path(self._run_directory, report.name))
        except (OSError, ValueError):
            return None
        if word.pid == report.pid:
            return word
        word.close()
        return None

    def _dead(self, peer: WorkerPeer) -> None:
        """Its process is gone. If it was running a task, wait a moment for a word of whoever killed it."""
        self.deaths.unwatch(peer.watch)
        self._of.pop(peer.identity, None)
        self.peers.pop(peer.key, None)
        self.dispatcher.worker_silent(peer.key, None if peer.word is None else peer.word.running())
        self._verdicts.append((time.monotonic_ns() + VERDICT_NS, peer))

    def next_verdict(self) -> Nanoseconds:
        return self._verdicts[0][0] if self._verdicts else NEVER

    def judge_all(self, now: Nanoseconds) -> None:
        """What is to become of the tasks of the dead."""
        while self._verdicts and self._verdicts[0][0] <= now:
            self._judge(self._verdicts.popleft()[1])

    def _judge(self, peer: WorkerPeer) -> None:
        running = None if peer.word is None else peer.word.running()
        charged = peer.word is not None and not peer.word.spared()
        self.dispatcher.worker_lost(peer.key, running, charged)
        peer.close()

    def deliver(self, share: ToWorker) -> None:
        """What the dispatcher has for one worker."""
        peer = self.peers.get(share.worker)
        if peer is None:
            return
        if share.tasks or share.functions or share.forgotten:
            peer.acknowledged = peer.sequence
            work = (peer.sequence, share.functions, share.forgotten, share.tasks)
            self.send(peer.identity, [p.pack(p.WORK, work), *share.segments])
        if share.recall:
            self.send(peer.identity, [p.pack(p.RECALL, share.recall)])
        # What cannot be sent needs no memory: a worker that lives connects again and reports what it has.

    def _acknowledge(self, peer: WorkerPeer) -> None:
        peer.acknowledged = peer.sequence
        self.send(peer.identity, [p.pack(p.WORK, (peer.sequence, [], [], []))])

    def check_doubtful(self, now: Nanoseconds) -> None:
        """There is work to hand out: those that have not been heard for a while may be stopped."""
        for key, worker in self.dispatcher.workers.items():
            if now - worker.heard > DOUBT_NS and not worker.silent:
                peer = self.peers.get(key)
                if peer is not None and peer.stopped():
                    self.dispatcher.worker_silent(key, None if peer.word is None else peer.word.running())

    def tick(self, now: Nanoseconds) -> None:
        """Once a second: acknowledgements, pings to idle workers, and a look at those that do not answer."""
        for key, peer in self.peers.items():
            worker = self.dispatcher.workers.get(key)
            if worker is None:
                continue
            running = None if peer.word is None else peer.word.running()
            if not worker.silent and now - worker.heard > DOUBT_NS and peer.stopped():
                self.dispatcher.worker_silent(key, running)
            elif not worker.silent and running is None and not worker.assigned and now - worker.heard > SILENT_NS:
                self.dispatcher.worker_silent(key, None)
            if peer.acknowledged != peer.sequence:
                self._acknowledge(peer)
            if not peer.stopped() and now - worker.heard > PING_NS:
                self.send(peer.identity, [p.pack(p.PING, [])])

    def close(self) -> None:
        super().close()
        for worker in self.peers.values():
            worker.close()
