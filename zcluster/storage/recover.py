"""Opening a data directory: whose it is, what it remembers, and where the log goes on.

    <directory>/identity.json   whose data this is; written last at creation, so its presence means "created"
                lock            held while a process uses the directory
                wal/            <id>-<first index>.wal, <id>.spare
                checkpoints/    <index>-<epoch>.ckpt, *.tmp
                **/*.damaged    set aside by a repair, never read again, never deleted

Rules.
* The newest checkpoint that is whole and does not contradict the log is used. A damaged one is set aside; nothing is
  lost by that while the log reaches back to the older one.
* A checkpoint contradicts the log if the log holds another entry at its index. It was received from a leader, and the
  process ended before the log said INSTALLED: nobody was told anything, so the older state is the true one.
* A torn tail is cut (`record`). Bytes that had been synced and are not readable are damage: the log ends in front of
  them, what follows is set aside, and a new segment begins that carries the hard state of the newest readable frame
  and repair=True, all before anything is served. Done again after a crash in between, it comes to the same.
* So is what `proof` says was synced, and the newest segment if it is gone.
* Damage behind the checkpoint is reported and costs nothing. Damage that leaves neither a readable frame at the newest
  end nor a proof means that a vote may be forgotten: `wiped`; the log stays as it is, and the caller refuses to start.
* Whatever is returned is durable: the active segment and the directories are synced first.

In the weak durability modes a power cut (changed boot id, no clean stop) makes the tail suspect. That is remembered in
the log's start marks until it holds an entry of a higher epoch than any it could have held before: then a leader was
elected under the stricter rule since. Paxos says so itself (`WriteBatch.sound`): there a higher epoch in one place says
nothing of the others.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from zcluster.errors import Conflict, Corrupt, StorageError, WrongCluster
from zcluster.storage import record
from zcluster.storage.checkpoint import DAMAGED, CheckpointInfo, list_checkpoints, remove_leftovers, set_aside, verify
from zcluster.storage.create import CHECKPOINTS, LOCK, SOUND, WAL, create_store, make_directory
from zcluster.storage.disk import Disk, storage_error
from zcluster.storage.identity import IDENTITY, check_identity, read_identity
from zcluster.storage.proof import read_proof
from zcluster.storage.record import StartMark, WalState, cluster_digest
from zcluster.storage.replay import Chain, Kept, Replay, assemble, newest_state
from zcluster.storage.segment import (
    SEGMENT_HEADER_BYTES,
    Segment,
    decode_segment_header,
    is_spare_name,
    read_segments,
)
from zcluster.storage.wal import DEFAULT_SEGMENT_BYTES, SPARES_MAX, LiveSegment, Wal, WalPosition
from zcluster.types import PAXOS, Entry, HardState, Identity, Index, Nanoseconds, SnapshotMeta, Term, WriteBatch


class RecoveredStore(msgspec.Struct, frozen=True, kw_only=True):
    """What the disk remembered.

    incarnation: of the last start; the caller adds one and submits it before its first message.
    entries: ascending by index, after replay; contiguous for Raft, possibly with holes for Paxos. They begin at or
        before checkpoint.index + 1.
    checkpoint, checkpoint_path: the newest usable one.
    clean_stop, stopped_at: the last process stopped in order, at that moment (monotonic, of its boot).
    suspect_after: weak durability and a power cut: acknowledged entries of epochs up to this one may be missing.
    damage: what was found broken, for the operator; `repair` says that entries may be missing because of it (now or
        by an earlier damage that was not made good yet).
    chosen: what `entries` hold up to here never changes (Paxos).
    wiped: the hard state is lost: refuse to start. The log is not usable then.
    proven: a second witness (`proof`) confirms that the hard state is the newest one.
    fresh: nothing was ever written: the first start after the creation.
    """

    hard_state: HardState = HardState()
    incarnation: int = 0
    entries: list[Entry] = msgspec.field(default_factory=list)
    checkpoint: SnapshotMeta | None = None
    checkpoint_path: Path | None = None
    chosen: Index = 0
    clean_stop: bool = False
    stopped_at: Nanoseconds = 0
    same_boot: bool = False
    suspect_after: Term | None = None
    damage: Corrupt | None = None
    repair: bool = False
    wiped: bool = False
    proven: bool = False
    fresh: bool = False


class Store:
    """An open data directory, locked until `close`. The log goes to a writer, which closes it."""

    def __init__(
        self, disk: Disk, directory: Path, identity: Identity, wal: Wal, recovered: RecoveredStore, lock: int
    ) -> None:
        self.directory = directory
        self.checkpoints = directory / CHECKPOINTS
        self.identity = identity
        self.wal = wal
        self.recovered = recovered
        self._disk = disk
        self._lock = lock

    def close(self) -> None:
        """Let another process have the directory; after the writer was closed."""
        if self._lock >= 0:
            lock, self._lock = self._lock, -1
            self._disk.close(lock)


def open_store(
    disk: Disk,
    directory: Path,
    *,
    identity: Identity,
    boot_id: str,
    create: bool,
    segment_bytes: int = DEFAULT_SEGMENT_BYTES,
) -> Store:
    """Open (or create) the data directory of one replica.

    Args:
        identity: who the caller is; must be what the directory says, but for `voters`, which count only at creation.
        boot_id: of the machine's current boot; a change tells a power cut from a killed process.
        create: only at the first creation of a cluster: the directory is absent, empty, or left over from a creation
            that did not get to its end.
        segment_bytes: size of a log segment.
    Raises: WrongCluster (not ours, or missing: a wiped replica must not vote under its old id), FormatTooNew, Conflict
        (in use, or already created), StorageError. Damage is not raised: see `RecoveredStore`.
    """
    if not create and not disk.exists(directory / IDENTITY):
        raise WrongCluster(
            f"{directory}: the data of replica {identity.replica_id} is missing (no {IDENTITY}); a replica without its "
            "data must not take part under its old id: remove it from the cluster and add a new one"
        )
    try:
        if create:
            make_directory(disk, directory)
        lock = disk.lock(directory / LOCK)
        try:
            if create:
                create_store(disk, directory, identity, boot_id, segment_bytes)
            found = read_identity(disk, directory)
            check_identity(found, identity, directory)
            wal, recovered = _Recovery(disk, directory, identity, boot_id, segment_bytes).run()
            if create and not recovered.fresh:
                wal.close()
                raise Conflict(f"{directory}: already in use by this cluster; it can only be created once")
        except BaseException:
            disk.close(lock)
            raise
    except OSError as error:
        raise storage_error("open", directory, error) from error
    return Store(disk, directory, found, wal, recovered, lock)


class _Usable(msgspec.Struct, frozen=True):
    """A checkpoint that is whole."""

    meta: SnapshotMeta
    path: Path


class _Recovery:
    """One pass over the directory: find out first, then change what has to be changed."""

    def __init__(self, disk: Disk, directory: Path, identity: Identity, boot_id: str, segment_bytes: int) -> None:
        self._disk = disk
        self._wal_directory = directory / WAL
        self._checkpoints = directory / CHECKPOINTS
        self._cluster_id = identity.cluster_id
        self._engine = identity.engine
        self._digest = cluster_digest(identity.cluster_id)
        self._boot_id = boot_id
        self._segment_bytes = segment_bytes
        self._damage: Corrupt | None = None
        self._unread: list[CheckpointInfo] = []
        self._usable: list[_Usable] = []
        self._live: list[LiveSegment] = []
        self._replay = Replay()

    def run(self) -> tuple[Wal, RecoveredStore]:
        for subdirectory in (self._wal_directory, self._checkpoints):
            self._disk.make_directory(subdirectory)
        remove_leftovers(self._disk, self._checkpoints)
        self._unread = list_checkpoints(self._disk, self._checkpoints)
        newest = self._usable_checkpoint(0)
        segments = read_segments(self._disk, self._wal_directory, self._digest)
        proof = read_proof(self._disk, self._wal_directory, self._digest)
        proven = proof.segment_id if proof else 0
        next_id = max(segments[-1].id if segments else 0, proven) + 1
        unbegun = segments.pop() if segments and segments[-1].blank and segments[-1].id > proven else None
        chain = assemble(segments, newest.meta.index if newest else 0, self._wal_directory, proof)
        self._damage = self._damage or chain.damage
        state = newest_state(segments, proof)
        if state is None:
            return self._wiped()
        for kept in chain.kept:
            highest, found = self._replay.read(self._disk, kept), kept.segment
            self._live.append(LiveSegment(found.id, found.path, highest, found.size))
        checkpoint = self._choose(chain)
        if not chain.lost:
            last = chain.kept[-1].segment.scan.last
            assert last is not None, "a segment without a frame was never begun"
            state = last.state  # not that of unsynced frames behind a torn tail
        recovered = self._recovered(state, checkpoint, chain, proven=proof is not None)
        position = WalPosition(
            segments=self._live,
            next_id=next_id,
            floor=max(self._replay.highest, chain.floor),
            state=state,
            proof=None if chain.lost else proof,
            start=self._replay.start or StartMark("", SOUND),
            boot_id=self._boot_id,
            suspect_after=recovered.suspect_after,
        )
        if unbegun is not None:
            self._disk.unlink(unbegun.path)
        wal = self._repair(chain, position, checkpoint) if chain.lost else self._resume(chain, position, checkpoint)
        return wal, recovered

    # -- finding out --------------------------------------------------------------------------------------------------

    def _usable_checkpoint(self, position: int) -> _Usable | None:
        """The newest whole checkpoint (0), the one before it (1) …; damaged ones are set aside. An older file is read
        only if it is asked for."""
        while len(self._usable) <= position and self._unread:
            info = self._unread.pop(0)
            try:
                meta = verify(self._disk, info.path, self._cluster_id)
                if (meta.index, meta.epoch) != (info.index, info.epoch):
                    raise Corrupt(info.path, 0, f"holds the checkpoint {meta.index} of epoch {meta.epoch}")
                self._usable.append(_Usable(meta, info.path))
            except Corrupt as damage:
                self._damage = self._damage or damage
                set_aside(self._disk, info.path)
        return self._usable[position] if position < len(self._usable) else None

    def _choose(self, chain: Chain) -> _Usable | None:
        """The newest checkpoint that the log agrees with and that leaves no gap to it. Marks the chain as lost if
        there is none although one is needed."""
        floor = max(chain.floor, self._replay.floor)
        position = 0
        while (candidate := self._usable_checkpoint(position)) is not None and candidate.meta.index >= floor:
            if not self._replay.contradicts(candidate.meta.index, candidate.meta.epoch):
                return candidate
            position += 1
        if floor == 0:
            return None
        self._damage = self._damage or Corrupt(
            self._checkpoints, 0, f"the log begins after {floor}, and there is no usable checkpoint of that index"
        )
        chain.lost = True
        chain.aside += [kept.segment for kept in chain.kept]
        chain.kept = []
        self._live.clear()
        self._replay.entries.clear()
        return self._usable_checkpoint(0)

    def _recovered(self, state: WalState, checkpoint: _Usable | None, chain: Chain, *, proven: bool) -> RecoveredStore:
        replay = self._replay
        entries = replay.above(checkpoint.meta.index if checkpoint else 0)
        epochs = [entry.epoch for entry in entries] + ([checkpoint.meta.epoch] if checkpoint else [])
        highest = 0 if self._engine == PAXOS else max(epochs, default=0)
        suspect_after = self._suspect_after(state, highest)
        same_boot = replay.start is not None and replay.start.boot_id == self._boot_id
        nothing = not entries and checkpoint is None and state.incarnation == 0
        return RecoveredStore(
            hard_state=HardState(state.term, state.voted_for),
            incarnation=state.incarnation,
            entries=entries,
            checkpoint=checkpoint.meta if checkpoint else None,
            checkpoint_path=checkpoint.path if checkpoint else None,
            chosen=replay.chosen,
            clean_stop=replay.clean,
            stopped_at=replay.stopped_at if replay.clean else 0,
            same_boot=same_boot,
            suspect_after=suspect_after,
            damage=self._damage,
            repair=state.repair or chain.lost,
            proven=proven,
            fresh=nothing and not chain.lost,
        )

    def _suspect_after(self, state: WalState, highest_epoch: Term) -> Term | None:
        """See the module docstring; None: the tail is sound."""
        start = self._replay.start
        if start is None:
            return None
        threshold = start.suspect_after
        if start.durability != SOUND and start.boot_id != self._boot_id and not self._replay.clean:
            threshold = max(state.term, highest_epoch)
        return None if threshold is None or highest_epoch > threshold else threshold

    def _wiped(self) -> tuple[Wal, RecoveredStore]:
        damage = self._damage or Corrupt(self._wal_directory, 0, "no readable segment of the log")
        position = WalPosition(start=StartMark("", SOUND), boot_id=self._boot_id)
        wal = Wal(self._disk, self._wal_directory, self._digest, position, self._segment_bytes)
        wal.failed = StorageError(f"{self._wal_directory}: the hard state is lost; this replica must not be used")
        return wal, RecoveredStore(damage=damage, wiped=True, repair=True)

    # -- changing -----------------------------------------------------------------------------------------------------

    def _resume(self, chain: Chain, position: WalPosition, checkpoint: _Usable | None) -> Wal:
        """Go on in the newest segment: cut its torn tail, make sure of everything that was read."""
        active = chain.kept[-1]
        position.offset = active.end
        position.size = active.segment.size
        position.link = None
        position.spares = self._spares()
        handle = self._disk.open(active.segment.path)
        try:
            self._write_again(handle, active)
            for stray in active.segment.scan.strays:  # unsynced frames behind the tear: they must never match again
                self._disk.pwritev(handle, [bytes(4)], stray.offset)
            self._disk.fdatasync(handle)
        finally:
            self._disk.close(handle)
        for segment in chain.obsolete:
            self._disk.unlink(segment.path)
        self._set_aside(chain.aside)
        self._disk.fsync_directory(self._wal_directory)
        wal = Wal(self._disk, self._wal_directory, self._digest, position, self._segment_bytes)
        self._note_checkpoint(wal, checkpoint, max(chain.floor, self._replay.floor))
        wal.sync()
        return wal

    def _write_again(self, handle: int, active: Kept) -> None:
        """What no frame proves to be synced may be in the page cache only, and marked clean there by a failed sync of
        the process before: then another sync would succeed and save nothing. Written again it is dirty again.
        Raises: Corrupt if the bytes are not those that were read before: nothing unchecked is ever written."""
        segment, last = active.segment, active.segment.scan.last
        assert last is not None, "a segment without a frame was never begun"
        data = self._disk.pread(handle, active.end, 0)
        place = max(last.synced, SEGMENT_HEADER_BYTES)
        good = decode_segment_header(segment.path, data, self._digest) == segment.header
        while good and place < active.end:
            frame = record.decode_frame(data, place, self._digest, segment.id)
            good = frame is not None and frame.valid
            place = frame.end if frame is not None else place
        if not good:
            raise Corrupt(segment.path, place, "it was readable a moment ago")
        self._disk.pwritev(handle, [data[last.synced :]], last.synced)

    def _repair(self, chain: Chain, position: WalPosition, checkpoint: _Usable | None) -> Wal:
        """Begin a new segment behind the readable part; only then put away what is not readable."""
        self._preserve(chain)
        covered = checkpoint.meta.index if checkpoint else 0
        if chain.kept:
            position.link = (chain.kept[-1].segment.id, chain.kept[-1].end)
        else:
            position.link = (0, 0)
            position.floor = covered
        state = position.state
        position.state = WalState(state.term, state.voted_for, state.incarnation, True)
        position.spares = self._spares()
        wal = Wal(self._disk, self._wal_directory, self._digest, position, self._segment_bytes)
        wal.append([])
        self._note_checkpoint(wal, checkpoint, max(chain.floor, self._replay.floor) if chain.kept else covered)
        wal.sync()
        self._set_aside(chain.aside)
        self._disk.fsync_directory(self._wal_directory)
        return wal

    def _note_checkpoint(self, wal: Wal, checkpoint: _Usable | None, floor: int) -> None:
        """The log does not reach up to the checkpoint (a lost tail, or one received just before the end): say so in
        the log, or the entries that follow would seem to lie behind a hole."""
        if checkpoint is None or checkpoint.meta.index <= floor or checkpoint.meta.index in self._replay.entries:
            return
        wal.append([WriteBatch(seq=0, snapshot=checkpoint.meta)])

    def _preserve(self, chain: Chain) -> None:
        """A copy of the segment that stays in use up to the damage; the log may overwrite it one day."""
        for kept in chain.kept[-1:]:
            copy = kept.segment.path.with_name(kept.segment.path.name + DAMAGED)
            handle = self._disk.open(copy, create=True)
            try:
                self._disk.pwritev(handle, [self._disk.read(kept.segment.path)], 0)
                self._disk.fdatasync(handle)
            finally:
                self._disk.close(handle)

    def _set_aside(self, segments: list[Segment]) -> None:
        for segment in segments:
            self._disk.rename(segment.path, segment.path.with_name(segment.path.name + DAMAGED))

    def _spares(self) -> list[Path]:
        names = [name for name in self._disk.listdir(self._wal_directory) if is_spare_name(name)]
        for name in names[SPARES_MAX:]:
            with contextlib.suppress(FileNotFoundError):
                self._disk.unlink(self._wal_directory / name)
        return [self._wal_directory / name for name in names[:SPARES_MAX]]
