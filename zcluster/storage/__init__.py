"""What a replica remembers: a write-ahead log with group commit, checkpoints, and how both are found again.

Purpose. Make batches durable quickly and in order, acknowledge them only then, and give back after any crash exactly
what was acknowledged, or say plainly that it cannot. Not its purpose: any protocol. It does not know what a leader, a
quorum or a command is; `epoch` is whatever the consensus engine orders its entries by. It never repairs data by itself
and never drops any silently.

    disk             the only way to the operating system: `Disk` (protocol), `PosixDisk`
    record           bytes of frames and records; the torn-tail rule
    segment          bytes of segment files; reading one
    proof            beside the log: how far it is synced, the hard state once more
    wal              appending: segments, rolling, recycling, trimming
    policy           what to write, when to sync, what to acknowledge (pure)
    writer           the policy carried out on the log, beside the event loop
    checkpoint       checkpoint files: write, read, verify, prune, ship, receive (bytes: `checkpoint_file`)
    replay           which segments form the log, and what their records amount to
    recover          opening a data directory: `open_store`
    identity         whose directory it is
    seed             a store that begins with a state instead of nothing
    backup_file      a checkpoint behind a manifest, for taking away

    open_store ──> Store.recovered ──> consensus, machines
        │
        └─ Store.wal ──> Writer <── WriteBatch(seq, …) ── replica          checkpoints/ <── BackgroundCheckpoint
                           └──> Completion(seq, error, …) ──> replica                   <── CheckpointReceiver

Bytes, from the outside in (drawn in full in `segment`, `record`, `checkpoint_file`):

    wal/0000000007-00000000000000001234.wal    segment header (64) | frame | frame | … | zeros or old bytes
    wal/proof                                  one record: newest segment, synced up to, hard state
    frame                                      header (36) with the whole hard state, two checksums | records
    record                                     STATE is in each frame header; CUT, PUT, MARK in the payload
    checkpoints/<index>-<epoch>.ckpt           header with meta | blocks | footer, under one running checksum

Invariants.
1. A batch is acknowledged when it is as durable as the mode asks, never before, and in the order of `seq`.
2. Hard state, incarnation, repair flag and installed snapshots are synced in every mode, before they are acknowledged.
3. The hard state never goes back: every frame carries it and, in a file of its own, the proof; the newest that is
   readable decides.
4. After a failed write or sync nothing is written, synced or acknowledged any more.
5. What recovery returns is durable, and recovering again returns the same.
6. Bytes that had been synced and cannot be read are damage: reported, set aside, never taken for a torn tail. The
   reverse holds too: a torn tail is never taken for damage.
7. The log is kept back to the older of two checkpoints; a gap between a checkpoint and the log is damage.

Trade-offs. Every write carries 36 bytes of header, and each new hard state costs a second sync (of the proof), so that
no single damaged place or lost file can take the vote, or an acknowledged batch unnoticed, away. A segment is
synced when it is full even in mode `none` (one sync in 8 MiB), so that only the newest segment can be torn. Checksums
are crc32: they find accidents, not attackers.
"""
