"""The consensus contract: messages, `Ready`, and the protocol that Raft and Multi-Paxos both fulfil.

Data and signatures only; the manual with the driving loop is in the package's `__init__`. Nothing here reads a clock,
a disk or a socket. Times are monotonic nanoseconds handed in by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from zcluster.types import (
    NEVER,
    Configuration,
    Entry,
    HardState,
    Index,
    Nanoseconds,
    ReplicaId,
    SnapshotMeta,
    Term,
    WriteBatch,
)

Certificate = tuple[ReplicaId, int]
"""(replica, incarnation) whose process has provably exited."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds and times of a consensus core; all replicas of a cluster use the same."""

    election_timeout: Nanoseconds = 600_000_000  # actual timeouts are drawn from [1, 1.5) x this
    heartbeat_interval: Nanoseconds = 60_000_000
    lease_margin: Nanoseconds = 60_000_000
    batch_bytes_max: int = 1 << 20  # entries of one append request
    inflight_max: int = 8  # unanswered append requests per follower
    uncommitted_bytes_max: int = 64 << 20  # not committed, or not on the leader's own disk; then `Busy`
    rear_delay: Nanoseconds = 0  # how long entries may be held back from followers that no commit waits for
    retained_bytes_max: int = 4 << 20  # log kept in memory behind the newest checkpoint for slow followers


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """What the disk remembered; the constructor argument of a core."""

    hard_state: HardState = HardState()
    configuration: Configuration = Configuration()  # as of the snapshot (or the initial one)
    snapshot: SnapshotMeta | None = None
    entries: Sequence[Entry] = ()  # contiguous, from anywhere <= snapshot.index + 1
    repair: bool = False  # damaged: no vote, no candidacy until verified by a leader
    suspect_after: Term | None = None  # weak durability after a power cut: what was acknowledged in terms up to this
    # one may be missing; see `election.Votes`
    bootstrap: bool = False  # first creation of the cluster: the lowest voter campaigns at once
    hold_votes: bool = False  # prior state: a former life may have promised a leader one election timeout of patience
    stopped_at: Nanoseconds = NEVER  # when that life had certainly ended, on this clock; the promise is not younger


# -- messages between replicas: one frozen class each, tagged on the wire by a small integer --------------------------


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of all replica messages. The sender, its incarnation and the receiver are in the transport's envelope."""

    term: Term


class PreVoteRequest(Message, frozen=True, array_like=True, gc=False, tag=1):
    """ "Would you vote for me in `term`?" (`term` is the *next* term: nobody has adopted it.) Source: thesis §9.6."""

    last_index: Index
    last_term: Term
    certificate: Certificate | None = None


class PreVoteReply(Message, frozen=True, array_like=True, gc=False, tag=2):
    """`term`: the requested term when granted, else the voter's own. `suspect`: see VoteReply."""

    granted: bool
    suspect: bool = False


class VoteRequest(Message, frozen=True, array_like=True, gc=False, tag=3):
    """Source: Raft paper §5.2, §5.4.1. `transfer`: the old leader asked for it, so leases do not stand in the way."""

    last_index: Index
    last_term: Term
    certificate: Certificate | None = None
    transfer: bool = False


class VoteReply(Message, frozen=True, array_like=True, gc=False, tag=4):
    """`suspect`: granted by a voter that may have lost acknowledged entries which the candidate may lack; then only
    the votes of all make a leader."""

    granted: bool
    suspect: bool = False


class AppendRequest(Message, frozen=True, array_like=True, gc=False, tag=5):
    """Entries after (prev_index, prev_term). One object serves every follower at the same position: encode it once."""

    prev_index: Index
    prev_term: Term
    commit_index: Index
    entries: tuple[Entry, ...] = ()


class AppendReply(Message, frozen=True, array_like=True, gc=False, tag=6):
    """success: `match_index` is *persisted* here. Else (conflict_term, conflict_index) say where to try next: the
    last entry at or before prev_index that could match, its term and index. Source: Raft paper §5.3, last part."""

    success: bool
    match_index: Index
    prev_index: Index = 0  # echo of the rejected request, so that stale rejections are told apart
    conflict_term: Term = 0
    conflict_index: Index = 0
    repair: bool = False


class Heartbeat(Message, frozen=True, array_like=True, gc=False, tag=7):
    """`round`: read-barrier and lease round, echoed by the reply. (quorum_time, quorum_commit): send time of the last
    quorum-confirmed round and the commit index known when it was sent, 0 before a current-term commit.
    `commit_index` is already capped at what the receiver has matched."""

    round: int
    commit_index: Index
    quorum_time: Nanoseconds = 0
    quorum_commit: Index = 0
    repaired: bool = False  # the receiver holds everything it may ever have acknowledged: it leaves repair mode
    incarnation: int = 0  # with `repaired`: whom of the receiver's lives it is meant for


class HeartbeatReply(Message, frozen=True, array_like=True, gc=False, tag=8):
    round: int
    repair: bool = False


class InstallSnapshot(Message, frozen=True, array_like=True, gc=False, tag=9):
    """Leader side, in `Ready.messages`: "send your checkpoint to that replica" (the node moves the file in chunks on a
    socket of its own). Follower side: the node steps it once the file is complete, verified and synced."""

    meta: SnapshotMeta


class TimeoutNow(Message, frozen=True, array_like=True, gc=False, tag=10):
    """Leadership transfer: campaign at once, without pre-vote. Source: thesis §3.10."""


AnyMessage = (
    PreVoteRequest
    | PreVoteReply
    | VoteRequest
    | VoteReply
    | AppendRequest
    | AppendReply
    | Heartbeat
    | HeartbeatReply
    | InstallSnapshot
    | TimeoutNow
)

ADD_LEARNER: Final = "add_learner"
PROMOTE: Final = "promote"
REMOVE: Final = "remove"


class ConfigChange(msgspec.Struct, frozen=True):
    """`action`: ADD_LEARNER, PROMOTE (learner -> voter) or REMOVE (either)."""

    action: str
    replica: ReplicaId


class Ready(msgspec.Struct, frozen=True):
    """Everything the core wants done since the last `ready()`; see the package manual for the order.

    write: hand to the log writer; when it is durable call `persisted(write.seq)`. None: nothing to write.
    messages: may leave at once. messages_after_persist: may leave once `seq` (of this Ready) is persisted; the
    driver keeps them and sends them in order (at once if everything up to `seq` already is).
    committed: apply in order; each entry is handed out once.
    reads: (token, index): serve when last_applied >= index. reads_failed: tokens whose barrier lost its leader.
    configuration: set when the configuration in force (effective on append) changed.
    """

    seq: int
    write: WriteBatch | None = None
    messages: Sequence[tuple[ReplicaId, AnyMessage]] = ()
    messages_after_persist: Sequence[tuple[ReplicaId, AnyMessage]] = ()
    committed: Sequence[Entry] = ()
    reads: Sequence[tuple[int, Index]] = ()
    reads_failed: Sequence[int] = ()
    configuration: Configuration | None = None
    repaired: bool = False  # left repair mode (the driver only reports it; the write carries repair=False)


class Status(msgspec.Struct, frozen=True):
    """A snapshot of the core for people and programs."""

    role: str  # follower | pre_candidate | candidate | leader | learner
    term: Term
    leader: ReplicaId
    commit_index: Index
    last_index: Index
    first_index: Index
    configuration: Configuration
    match_index: dict[ReplicaId, Index]  # leader only; own included
    repair: bool = False
    term_started_committed: bool = False  # an entry of the current term has committed
    transfer_to: ReplicaId = 0
    active_at: dict[ReplicaId, Nanoseconds] = {}  # leader only: when each member that might lead was last heard
    suspect: bool = False  # the power took what it acknowledged, perhaps: elections with its vote need every voter


class Consensus(Protocol):
    """A replicated log. Every input carries `now`, sampled after the last frame of its batch was received.

    Inputs never return messages: they change state, and `ready()` hands out what follows from it.
    """

    term: Term
    leader: ReplicaId
    commit_index: Index
    is_leader: bool

    def step(self, sender: ReplicaId, incarnation: int, message: AnyMessage, now: Nanoseconds) -> None:
        """One message of a peer. Drops messages of older incarnations of the sender and of older terms; an unknown
        sender's messages are answered only where the protocol needs it."""

    def propose(self, data: bytes, now: Nanoseconds) -> tuple[Index, Term]:
        """Append one KIND_FRAMES entry. Returns its position; it may still be overwritten by another leader.
        Raises: NotLeader; Busy above `uncommitted_bytes_max` or while leadership is being transferred."""

    def propose_config(self, change: ConfigChange, now: Nanoseconds) -> Index:
        """One membership change. Raises: NotLeader; Busy (another change is uncommitted, no current-term commit yet,
        the learner has not caught up, or no majority of the voters that there would be answers); InvalidInput
        (unknown replica, already so, last voter)."""

    def read_barrier(self, token: int, now: Nanoseconds, *, lease: bool = False) -> None:
        """Ask for a linearizable read index; the answer comes in `Ready.reads` or `Ready.reads_failed`. With `lease`
        a valid leader lease answers at once; without a valid one the quorum round is used. Raises: NotLeader."""

    def bounded_index(self, now: Nanoseconds, bound: Nanoseconds) -> Index | None:
        """Index to have applied before serving a read at most `bound` stale, or None if this replica cannot say."""

    def persisted(self, seq: int, now: Nanoseconds) -> None:
        """All writes of Readys up to `seq` are as durable as the cluster's setting asks."""

    def compacted(self, meta: SnapshotMeta) -> None:
        """A checkpoint at `meta` is complete: forget the log behind it, but for a tail for slow followers."""

    def snapshot_status(self, replica: ReplicaId, ok: bool, now: Nanoseconds) -> None:
        """The node finished (or gave up) sending a checkpoint to `replica`."""

    def transfer_leadership(self, to: ReplicaId, now: Nanoseconds) -> None:
        """Hand over to `to` (0: the most up-to-date voter). Aborted after one election timeout.
        Raises: NotLeader; InvalidInput (not a voter, or alone)."""

    def peer_lost(self, replica: ReplicaId, incarnation: int, now: Nanoseconds) -> None:
        """Death certificate: that incarnation's process has provably exited."""

    def deadline(self, now: Nanoseconds) -> None:
        """Do whatever is due at `now`; calling it early does nothing."""

    def next_deadline(self) -> Nanoseconds:
        """When `deadline` wants to be called next; NEVER if not at all."""

    def ready(self) -> Ready | None:
        """What is to be done now, or None. Call until None after each batch of inputs."""

    def status(self) -> Status: ...
