"""Consensus: one log that every replica agrees on. The manual for whoever drives a core.

Purpose: decide the order of entries, who leads, who belongs, and when a read is linearizable. Not its purpose: what
entries mean, where bytes are kept, how messages travel. A core is *pure*: it has no clock, disk, socket, thread or
randomness of its own. The same object runs in a replica process and in the deterministic simulator.

    inputs (each with `now`)                        output
    ------------------------                        ------
    step(sender, incarnation, message)  ----+
    propose(data), propose_config(change)   |
    read_barrier(token)                     |       ready() -> Ready(write, messages, messages_after_persist,
    persisted(seq)                          +--->                    committed, reads, reads_failed, configuration)
    peer_lost(replica, incarnation)         |       next_deadline()
    snapshot_status, compacted, transfer    |
    deadline()                          ----+

**The loop.** One thread owns the core. Inputs never return messages; `ready()` hands out what follows from them.

    while running:
        wait for frames, finished writes, exits of peers, or core.next_deadline()
        now = monotonic_ns()                         # after the last frame of the batch was received, never before
        for replica, incarnation in exits of peers:  core.peer_lost(replica, incarnation, now)
        for sender, incarnation, message in frames:
            if message carries a certificate and this process verifies it:
                core.peer_lost(*message.certificate, now)
            core.step(sender, incarnation, message, now)
        for seq in finished writes:
            core.persisted(seq, now)
            send everything kept for seqs <= seq, in order
        for batch of client frames:                  core.propose(batch, now)    # one entry a turn
        core.deadline(now)                           # last: a queued heartbeat must be stepped before it
        while (ready := core.ready()) is not None:
            send(ready.messages)                                         # 1. before the write: both run at once
            if ready.write: writer.submit(ready.write)                   # 2. first in, first out
            if ready.write and ready.write.snapshot: machines.restore()  # 3. the file is complete already
            keep(ready.seq, ready.messages_after_persist)                # 4. or send, if ready.seq is persisted
            apply(ready.committed)                                       # 5.
            serve(ready.reads); refuse(ready.reads_failed)               # 6. when last_applied >= index

**Send now, or after the disk.** Append requests and heartbeats leave at once; the leader's own write runs beside them
(thesis §10.2.1). Votes, vote requests, and acknowledgements of entries wait: each speaks of something that must
survive a crash. `Ready.seq` is the last write handed out, so a Ready without a write may still have to wait for one.
Replies to heartbeats wait only while the term itself is not on disk: a stalled disk does not look like a dead replica.

**What a write contains** and in which order it takes effect: snapshot, hard state, cut, entries. After `persisted(n)`
all of it, up to write n, survives a crash. Writes are acknowledged in order; a failed one is never retried: stop.

**Commit** counts copies known to be on disk, the leader's own included, and only for entries of its own term; earlier
ones commit with them. Each entry is in `committed` exactly once in a life of the core, in order. An entry may be
committed before it is on the *own* disk, so a checkpoint can be ahead of the log. Recovery accepts a log that ends
before the checkpoint, but not one with *another* entry at its index: then the older checkpoint is the true one, which
is why the store keeps two, and the log back to the older.

**Time.** Deadlines are moments, not ticks. A process that was stopped for ten election timeouts sees one late
`deadline`, after the messages that waited for it; so a follower under a living leader does not stand, and a leader
judges its lease and its majority by the time of now.

**Incarnations.** Each start of a replica has a higher one. Messages of older ones are dropped, and of those that have
provably exited (`peer_lost`). At the leader a new incarnation starts from nothing.

**Elections.** Timeouts are drawn from [1, 1.5) election timeouts; a pre-vote asks first; whoever hears a leader
refuses everybody else for one election timeout. Proof of the leader's death voids that, and the survivors stand in
rank order, milliseconds apart; still with a pre-vote, whose round trip costs less than deposing a leader that another
survivor has become meanwhile. A restarted replica (`Recovered.hold_votes`) refuses for one election timeout after the
end of its former life (`stopped_at`, or now if that is not known), for it cannot know whom it had promised. Then it
asks for pre-votes at once: that disturbs no living leader, and where all were restarted it saves a timeout.
`Recovered.bootstrap` lets the lowest voter stand at once.

**Reads.** A barrier is answered with an index once a round of heartbeats, sent after the barrier arrived, has been
answered by a majority, and never before the leader has committed in its own term. A lease answers at once: it counts
from the *send* time of such a round and ends with the first TimeoutNow of the term. `bounded_index` serves any
replica: heartbeats carry (time, commit index) of the last confirmed round.

**Membership.** A configuration is in force from the moment it is in the log, and reverts when it is cut off; one
change at a time, learners first. A learner that has not caught up is not promoted, and nothing is changed that would
leave no majority of voters that answer: `Busy`, until that is otherwise. `Ready.configuration` reports each change,
`Raft.configuration_at(index)` gives the one to put into a checkpoint's meta.

**Snapshots.** `InstallSnapshot` in `messages` asks the node to move its newest checkpoint to that replica, at least as
new as `meta`; then `snapshot_status`. The receiver steps the message once the file is complete and synced; a Ready
whose write has `snapshot` tells it to restore from the file. `compacted(meta)` after each own checkpoint.

**Repair.** With `Recovered.repair` a replica does not vote or stand, and its acknowledgements do not count, until the
leader knows that it holds all it may ever have acknowledged; then `Ready.repaired`, with `write.repair == False`.

**Two engines.** All of the above holds for Multi-Paxos too, with a ballot for the term and the distinguished proposer
for the leader. What differs: a change of the members is in force once it is *chosen*, and nothing is proposed behind it
before; a write may carry entries in any order and again (the later one wins), `chosen` and `sound`, and never a cut;
an entry may be handed out under different epochs by different replicas, with the same value; a checkpoint may be asked
for by a replica that does not lead. `paxos` says why it is safe; `synod` is the protocol of one slot, on one page.

Files: `api` the contract. `core` what both engines share; `raft`, `paxos` roles and handlers; `leadership` what one
leadership owns, `proposer` what Paxos adds to it; `preparation`, `slots`, `ballots` values of Paxos; `progress`,
`reads`, `log`, `writes`, `membership`, `election`, `outbox`, `quorum`, `validate` of both, without a protocol of their
own; `invariants` what must always hold; `engines` which one goes by which name.
"""

from zcluster.consensus.api import (
    ADD_LEARNER,
    PROMOTE,
    REMOVE,
    AnyMessage,
    AppendReply,
    AppendRequest,
    Certificate,
    ConfigChange,
    Consensus,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    PreVoteReply,
    PreVoteRequest,
    Ready,
    Recovered,
    Settings,
    Status,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)

__all__ = [
    "ADD_LEARNER",
    "PROMOTE",
    "REMOVE",
    "AnyMessage",
    "AppendReply",
    "AppendRequest",
    "Certificate",
    "ConfigChange",
    "Consensus",
    "Heartbeat",
    "HeartbeatReply",
    "InstallSnapshot",
    "Message",
    "PreVoteReply",
    "PreVoteRequest",
    "Ready",
    "Recovered",
    "Settings",
    "Status",
    "TimeoutNow",
    "VoteReply",
    "VoteRequest",
]
