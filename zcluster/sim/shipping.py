"""Checkpoints on their way from node to node: what `node.install` does with sockets and threads, over the network and
clock of a world. The rules (what is sent when, what is accepted) are `node.transfer`'s own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Final, Protocol

from zcluster.consensus.api import InstallSnapshot
from zcluster.errors import StorageError
from zcluster.node import transfer
from zcluster.sim.network import Network
from zcluster.sim.process import Life, Node, Options
from zcluster.sim.world import World
from zcluster.types import MS, Nanoseconds, ReplicaId, SnapshotMeta

ASLEEP: Final[Nanoseconds] = 10 * MS  # a paused process is looked at again after so long


class Loop(Protocol):
    """As much of the nodes' loop as is needed here; see `cluster`."""

    def local_time(self, node: Node) -> Nanoseconds: ...

    def poke(self, life: Life) -> None: ...

    def poke_later(self, life: Life) -> None: ...

    def guard(self, life: Life, action: Callable[..., None], *arguments: Any) -> None: ...


class Shipping:
    """Of all nodes of a world."""

    def __init__(
        self,
        world: World,
        network: Network,
        nodes: Mapping[ReplicaId, Node],
        options: Options,
        loop: Loop,
        draw: Random,
    ) -> None:
        self._world = world
        self._network = network
        self._nodes = nodes
        self._options = options
        self._loop = loop
        self._random = draw

    def send(self, life: Life, to: ReplicaId, meta: SnapshotMeta, now: Nanoseconds) -> None:
        former = life.sending.pop(to, None)
        if former is not None:
            former.close()
        outgoing = transfer.open_outgoing(
            life.node.disk, life.store.checkpoints, meta, life.replica.core.term, now, self._options.chunk_bytes
        )
        if outgoing is None:
            life.statuses.append((to, False))
            self._loop.poke_later(life)
            return
        life.sending[to] = outgoing
        self._push(life, to, outgoing)
        self._world.after(transfer.SILENCE_MAX + MS, self._check_silence, life, to, outgoing)

    def _push(self, life: Life, to: ReplicaId, outgoing: transfer.Outgoing) -> None:
        try:
            while (following := outgoing.next_piece()) is not None:
                piece, data = following
                self._network.stream(life.node.id, to, self._piece_arrived, life, to, piece, data, outgoing)
                outgoing.sent(len(data))
        except StorageError:
            self._end_sending(life, to, outgoing, False)

    def _end_sending(self, life: Life, to: ReplicaId, outgoing: transfer.Outgoing, ok: bool) -> None:
        if life.sending.get(to) is outgoing:
            del life.sending[to]
            outgoing.close()
            life.statuses.append((to, ok))

    def _check_silence(self, life: Life, to: ReplicaId, outgoing: transfer.Outgoing) -> None:
        if life.node.life is not life or life.sending.get(to) is not outgoing:
            return
        if outgoing.is_silent(self._loop.local_time(life.node)):
            self._end_sending(life, to, outgoing, False)
            self._loop.poke(life)
        else:
            self._world.after(transfer.SILENCE_MAX // 4, self._check_silence, life, to, outgoing)

    def _piece_arrived(
        self, sender: Life, to: ReplicaId, piece: transfer.Piece, data: bytes, outgoing: transfer.Outgoing
    ) -> None:
        life = self._nodes[to].life
        if life is not None:
            self._world.trace.add(self._world.now, to, "piece", data)
            life.pieces.append(((sender, outgoing), sender.node.id, sender.incarnation, piece, data))
            self._loop.poke(life)

    def take_pieces(self, life: Life) -> None:
        pieces, life.pieces = life.pieces, []
        incoming = life.incoming
        assert incoming is not None
        for source, sender, incarnation, piece, data in pieces:
            verdict = incoming.take(source, sender, incarnation, piece, data)
            if verdict is not None:
                self._answer(life, source, piece, incoming.offset, verdict)
            elif life.installing is None:
                life.installing = (source, sender, incarnation, piece)
                self._world.after(self._random.randrange(MS, 5 * MS), self._finish_install, life)

    def _answer(self, life: Life, source: Any, piece: transfer.Piece, offset: int, verdict: int) -> None:
        sender, outgoing = source
        answer = transfer.answer(piece, offset, verdict)
        self._network.stream(life.node.id, sender.node.id, self._answer_arrived, sender, life.node.id, outgoing, answer)

    def _answer_arrived(self, life: Life, to: ReplicaId, outgoing: transfer.Outgoing, answer: transfer.Answer) -> None:
        if life.node.life is not life or life.sending.get(to) is not outgoing:
            return
        if life.node.paused:
            self._world.after(ASLEEP, self._answer_arrived, life, to, outgoing, answer)
            return
        self._world.trace.add(self._world.now, life.node.id, "answer")
        verdict = outgoing.answered(answer, self._loop.local_time(life.node))
        if verdict is None:
            self._loop.guard(life, self._push, life, to, outgoing)
        else:
            self._end_sending(life, to, outgoing, verdict)
        if life.node.life is life and life.statuses:
            self._loop.poke(life)

    def _finish_install(self, life: Life) -> None:
        if life.node.life is not life:
            return
        if life.node.paused:
            self._world.after(ASLEEP, self._finish_install, life)
        else:
            self._loop.guard(life, self._install, life)

    def _install(self, life: Life) -> None:
        assert life.installing is not None and life.incoming is not None
        source, sender, incarnation, piece = life.installing
        life.installing = None
        machine = life.incoming.finish()
        life.incoming.finished()
        verdict = transfer.REFUSED if machine is None else transfer.DONE
        self._answer(life, source, piece, life.incoming.offset, verdict)
        self._world.trace.add(self._world.now, life.node.id, "installed" if machine is not None else "not a checkpoint")
        if machine is not None:
            message = InstallSnapshot(piece.term, piece.meta)
            life.installed = transfer.Installed(sender, incarnation, message, machine)
            self._loop.poke(life)
