"""The replica against a scripted core: exact effects, nothing left over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from zcluster import wire
from zcluster.consensus.api import AppendReply, AppendRequest, ConfigChange, InstallSnapshot, Ready, Status, VoteRequest
from zcluster.errors import Busy, FormatTooNew, NotLeader
from zcluster.machines.api import Snapshot
from zcluster.node.checkpoints import RETRY_AFTER, WAITERS_MAX, Limits
from zcluster.node.replica import ENTRIES_IN_FLIGHT_MAX, Effects, Replica
from zcluster.types import KIND_FRAMES, KIND_NOOP, NEVER, Configuration, Entry, SnapshotMeta, WriteBatch

META0 = SnapshotMeta(0, 0, Configuration((1, 2, 3)))
A, B = b"client-a", b"client-b"


class EchoMachine:
    """Results are the frames, upper-cased; remembers what was applied."""

    def __init__(self) -> None:
        self.applied: list[tuple[int, int, list[bytes]]] = []
        self.marked = False

    def apply(self, index: int, log_time_ms: int, frames: list[bytes]) -> list[bytes]:
        self.applied.append((index, log_time_ms, frames))
        return [frame.upper() for frame in frames]

    def query(self, ops: list[Any]) -> bytes:
        return wire.encode([len(self.applied), *ops])

    def capture(self) -> Snapshot:
        machine = self

        class View:
            def chunks(self) -> Iterator[bytes]:
                yield wire.encode(len(machine.applied))

        return View()

    def take_mark(self) -> bool:
        marked, self.marked = self.marked, False
        return marked

    def maintain(self) -> bool:
        return False

    def restore(self, chunks: Iterator[bytes]) -> None:
        raise AssertionError("not here")

    def state_hash(self) -> str:
        return str(len(self.applied))


class ScriptedCore:
    """A core whose Readys the test writes; it remembers what it was told."""

    def __init__(self) -> None:
        self.term, self.leader, self.commit_index, self.is_leader = 3, 1, 0, True
        self.readys: list[Ready] = []
        self.told: list[tuple[Any, ...]] = []
        self.last_index = 0
        self.log_end = 100  # as `status` has it
        self.refuse: Exception | None = None

    def step(self, sender: int, incarnation: int, message: Any, now: int) -> None:
        self.told.append(("step", sender, type(message).__name__))

    def propose(self, data: bytes, now: int) -> tuple[int, int]:
        if not self.is_leader:
            raise NotLeader(self.leader, self.term)
        if self.refuse is not None:
            raise self.refuse
        self.last_index += 1
        self.told.append(("propose", self.last_index, wire.decode_payload(data).frames))
        return self.last_index, self.term

    def propose_config(self, change: ConfigChange, now: int) -> int:
        if not self.is_leader:
            raise NotLeader(self.leader, self.term)
        if self.refuse is not None:
            raise self.refuse
        self.last_index += 1
        self.told.append((change.action, change.replica))
        return self.last_index

    def read_barrier(self, token: int, now: int, *, lease: bool = False) -> None:
        self.told.append(("barrier", token, lease))

    def bounded_index(self, now: int, bound: int) -> int | None:
        return 1 if bound >= 50_000_000 else None

    def persisted(self, seq: int, now: int) -> None:
        self.told.append(("persisted", seq))

    def compacted(self, meta: SnapshotMeta) -> None:
        self.told.append(("compacted", meta.index))

    def snapshot_status(self, replica: int, ok: bool, now: int) -> None:
        self.told.append(("snapshot_status", replica, ok))

    def transfer_leadership(self, to: int, now: int) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.told.append(("transfer", to))

    def peer_lost(self, replica: int, incarnation: int, now: int) -> None:
        self.told.append(("lost", replica, incarnation))

    def deadline(self, now: int) -> None:
        self.told.append(("deadline",))

    def next_deadline(self) -> int:
        return NEVER

    def ready(self) -> Ready | None:
        return self.readys.pop(0) if self.readys else None

    def status(self) -> Status:
        return Status("leader", self.term, self.leader, self.commit_index, self.log_end, 1, Configuration((1,)), {})

    def commit(self, *frames: bytes, time_ms: int = 1, term: int | None = None) -> None:
        """Let the next Ready commit one entry of these frames."""
        self.commit_index += 1
        data = wire.encode_payload(0, time_ms, list(frames))
        entry = Entry(self.commit_index, term or self.term, KIND_FRAMES, data)
        self.readys.append(Ready(seq=0, committed=(entry,)))


def make(limits: Limits | None = None, digest_interval: int = 0) -> tuple[Replica, ScriptedCore, EchoMachine]:
    core, machine = ScriptedCore(), EchoMachine()
    limits = limits or Limits(checkpoint_bytes=1 << 30, checkpoint_interval=0)
    replica = Replica(
        core,
        machine,
        limits,
        cluster_id="c",
        applied=META0,
        now=0,
        verify_death=lambda r, i: (r, i) == (2, 7),
        digest_interval=digest_interval,
    )
    announced = effects(replica)
    assert announced["announce"] == (1, 3)
    return replica, core, machine


def effects(replica: Replica, now: int = 0, wall_ms: int = 100) -> dict[str, Any]:
    """What one turn gives, without the empty fields."""
    out = replica.turn(now, wall_ms)
    return {name: value for name in Effects.__slots__ if (value := getattr(out, name))}


def result(client: bytes, request: int, body: bytes) -> tuple[bytes, bytes, bytes]:
    return client, wire.pack_head(wire.RESULT, request), body


def refusal(client: bytes, request: int, leader: int, term: int) -> tuple[bytes, bytes, bytes]:
    return client, wire.pack_head(wire.NOT_LEADER, request), wire.encode([leader, term])


def test_all_waiting_frames_share_one_entry_and_their_bytes_are_untouched() -> None:
    replica, core, machine = make()
    replica.client_message(A, wire.WRITE, 11, b"one", 0)
    replica.client_message(B, wire.WRITE, 5, b"two", 0)
    assert effects(replica) == {}
    assert core.told == [("propose", 1, [b"one", b"two"])]
    core.commit(b"one", b"two")
    assert effects(replica) == {"replies": [result(A, 11, b"ONE"), result(B, 5, b"TWO")]}
    assert machine.applied == [(1, 1, [b"one", b"two"])]


def test_frames_wait_for_the_next_entry_while_enough_are_in_flight() -> None:
    replica, core, _ = make()
    for request in range(ENTRIES_IN_FLIGHT_MAX + 3):
        replica.client_message(A, wire.WRITE, request, b"%d" % request, 0)
        effects(replica)
    assert len(core.told) == ENTRIES_IN_FLIGHT_MAX
    core.told.clear()
    core.commit(b"0")
    effects(replica)
    assert core.told == [("propose", ENTRIES_IN_FLIGHT_MAX + 1, [b"4", b"5", b"6"])]


def test_a_leader_whose_old_entries_vanished_still_accepts_writes() -> None:
    replica, core, _ = make()
    for request in range(ENTRIES_IN_FLIGHT_MAX):
        replica.client_message(A, wire.WRITE, request, b"x", 0)
        effects(replica)
    core.term, core.last_index = 9, 0  # deposed, truncated, elected again
    core.told.clear()
    replica.client_message(A, wire.WRITE, 50, b"new", 0)
    effects(replica)
    assert core.told == [("propose", 1, [b"new"])]


def test_a_follower_refuses_writes_and_reads_with_a_hint() -> None:
    replica, core, _ = make()
    core.is_leader, core.leader, core.term = False, 2, 4
    replica.client_message(A, wire.WRITE, 1, b"x", 0)
    replica.client_message(A, wire.READ, 2, wire.encode([wire.LINEARIZABLE, 0, []]), 0)
    out = effects(replica)
    assert sorted(out["replies"]) == sorted([refusal(A, 1, 2, 4), refusal(A, 2, 2, 4)])
    assert out["announce"] == (2, 4)


def test_an_entry_lost_to_another_leader_is_refused_as_certainly_not_applied() -> None:
    replica, core, machine = make()
    replica.client_message(A, wire.WRITE, 1, b"mine", 0)
    effects(replica)
    core.is_leader, core.leader, core.term = False, 2, 4
    core.commit(b"theirs", term=4)
    out = effects(replica)
    assert out["replies"] == [refusal(A, 1, 2, 4)]
    assert machine.applied == [(1, 1, [b"theirs"])]


def test_a_noop_in_the_place_of_our_entry_refuses_it_too() -> None:
    replica, core, _ = make()
    replica.client_message(A, wire.WRITE, 1, b"mine", 0)
    effects(replica)
    core.readys.append(Ready(seq=0, committed=(Entry(1, 4, KIND_NOOP, b""),)))
    assert effects(replica)["replies"] == [refusal(A, 1, 1, 3)]


def test_busy_is_told_to_everybody_who_waits_and_nothing_is_kept() -> None:
    replica, core, _ = make()
    core.refuse = Busy("full")
    replica.client_message(A, wire.WRITE, 1, b"x", 0)
    [(client, head, body)] = effects(replica)["replies"]
    assert (client, head) == (A, wire.pack_head(wire.BUSY, 1))
    assert msgspec.msgpack.decode(body) == ["full"]
    core.refuse = None
    assert effects(replica) == {}


def test_messages_after_persist_leave_only_when_persisted_and_in_order() -> None:
    replica, core, _ = make()
    write = WriteBatch(seq=1, entries=())
    first, second = AppendReply(3, True, 1), AppendReply(3, True, 2)
    request = AppendRequest(3, 0, 0, 0)
    core.readys.append(Ready(seq=1, write=write, messages=[(2, request)], messages_after_persist=[(3, first)]))
    core.readys.append(Ready(seq=2, messages_after_persist=[(3, second)]))
    assert effects(replica) == {"messages": [(2, request)], "writes": [write]}
    replica.persisted(1, 0)
    assert effects(replica) == {"messages": [(3, first)]}
    replica.persisted(2, 0)
    assert effects(replica) == {"messages": [(3, second)]}
    core.readys.append(Ready(seq=2, messages_after_persist=[(3, second)]))
    assert effects(replica) == {"messages": [(3, second)]}


def test_a_stalled_disk_collects_no_answers_to_a_leader_that_asks_again_and_again() -> None:
    replica, core, _ = make()
    core.readys.append(Ready(seq=1, write=WriteBatch(seq=1)))
    for _ in range(500):
        core.readys.append(Ready(seq=1, messages_after_persist=[(3, AppendReply(3, True, 2))]))
        effects(replica)
    replica.persisted(1, 0)
    assert effects(replica) == {"messages": [(3, AppendReply(3, True, 2))]}


def test_log_time_never_falls_though_leaders_clocks_do() -> None:
    replica, core, machine = make()
    core.commit(b"a", time_ms=1000)
    core.commit(b"b", time_ms=400)
    core.commit(b"c", time_ms=1001)
    effects(replica)
    assert [time for _, time, _ in machine.applied] == [1000, 1000, 1001]


def test_reads_of_a_turn_share_a_barrier_and_wait_until_their_index_is_applied() -> None:
    replica, core, _ = make()
    read = wire.encode([wire.LINEARIZABLE, 0, ["x"]])
    replica.client_message(A, wire.READ, 1, read, 0)
    replica.client_message(B, wire.READ, 2, read, 0)
    replica.client_message(B, wire.READ, 3, wire.encode([wire.LEASE, 0, ["y"]]), 0)
    assert effects(replica) == {}
    assert core.told == [("barrier", 1, False), ("barrier", 2, True)]
    core.readys.append(Ready(seq=0, reads=[(1, 1), (2, 0)]))
    assert effects(replica) == {"replies": [result(B, 3, wire.encode([0, "y"]))]}
    core.commit(b"w")
    answer = wire.encode([1, "x"])
    assert effects(replica) == {"replies": [result(A, 1, answer), result(B, 2, answer)]}


def test_reads_whose_barrier_failed_go_elsewhere() -> None:
    replica, core, _ = make()
    replica.client_message(A, wire.READ, 1, wire.encode([wire.LINEARIZABLE, 0, []]), 0)
    effects(replica)
    core.readys.append(Ready(seq=0, reads_failed=[1]))
    assert effects(replica) == {"replies": [refusal(A, 1, 1, 3)]}


def test_weak_reads_are_served_here_and_bounded_ones_only_within_their_bound() -> None:
    replica, core, _ = make()
    core.is_leader, core.leader = False, 2
    effects(replica)
    replica.client_message(A, wire.READ, 1, wire.encode([wire.EVENTUAL, 0, ["e"]]), 0)
    replica.client_message(A, wire.READ, 2, wire.encode([wire.BOUNDED, 10, ["b"]]), 0)
    replica.client_message(A, wire.READ, 3, wire.encode([wire.BOUNDED, 50, ["b"]]), 0)
    assert effects(replica)["replies"] == [result(A, 1, wire.encode([0, "e"])), refusal(A, 2, 2, 3)]
    core.commit(b"w")
    assert effects(replica) == {"replies": [result(A, 3, wire.encode([1, "b"]))]}


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", wire.encode([9, 0, []]), wire.encode([wire.BOUNDED, -1, []]), b"\x90", b"\x93\x00\x00\x91\xa1\xff"],
)
def test_garbage_reads_get_a_clear_refusal(body: bytes) -> None:
    replica, _, _ = make()
    replica.client_message(A, wire.READ, 1, body, 0)
    [(_, head, _)] = effects(replica)["replies"]
    assert head == wire.pack_head(wire.FAILED, 1)


def test_an_unknown_request_kind_is_refused() -> None:
    replica, _, _ = make()
    replica.client_message(A, 99, 1, b"", 0)
    [(_, head, body)] = effects(replica)["replies"]
    assert head == wire.pack_head(wire.FAILED, 1)
    assert msgspec.msgpack.decode(body) == [wire.E_BAD_REQUEST, "unknown request kind 99"]


def test_hello_says_who_leads_and_refuses_another_protocol() -> None:
    replica, _, _ = make()
    replica.client_message(A, wire.HELLO, 1, wire.encode([wire.PROTOCOL, "c"]), 0)
    replica.client_message(A, wire.HELLO, 2, wire.encode([99, "c"]), 0)
    replica.client_message(A, wire.HELLO, 3, wire.encode([wire.PROTOCOL, "other"]), 0)
    replies = effects(replica)["replies"]
    assert replies[0] == (A, wire.pack_head(wire.LEADER, 1), wire.encode([1, 3]))
    assert replies[1][1] == wire.pack_head(wire.FAILED, 2)
    assert replies[2][1] == wire.pack_head(wire.FAILED, 3)


def test_a_certificate_counts_only_when_the_system_confirms_the_death() -> None:
    replica, core, _ = make()
    replica.peer_message(3, 1, VoteRequest(5, 0, 0, certificate=(2, 7)), 0)
    replica.peer_message(3, 1, VoteRequest(5, 0, 0, certificate=(2, 6)), 0)
    assert core.told == [("lost", 2, 7), ("step", 3, "VoteRequest"), ("step", 3, "VoteRequest")]


def test_a_snapshot_message_without_its_file_is_ignored() -> None:
    replica, core, _ = make()
    replica.peer_message(2, 1, InstallSnapshot(3, META0), 0)
    assert core.told == []


def test_an_installed_checkpoint_replaces_state_and_position() -> None:
    replica, core, _ = make()
    core.commit(b"old")
    effects(replica)
    meta = SnapshotMeta(10, 2, Configuration((1, 2, 3)), 5_000)
    core.readys.append(Ready(seq=1, write=WriteBatch(seq=1, snapshot=meta)))
    fresh = EchoMachine()
    replica.install(2, 1, InstallSnapshot(3, meta), fresh, 0)
    out = effects(replica)
    assert out["compacted"] == meta
    assert (replica.last_applied, replica.checkpoint_index, replica.machine) == (10, 10, fresh)
    core.commit_index = 10
    core.commit(b"next", time_ms=1)
    effects(replica)
    assert fresh.applied == [(11, 5_000, [b"next"])]


def test_a_checkpoint_is_taken_after_enough_bytes_and_confirmed_to_those_who_asked() -> None:
    replica, core, _ = make(Limits(checkpoint_bytes=10, checkpoint_interval=0))
    core.commit(b"0123456789")
    meta, _ = effects(replica)["capture"]
    assert (meta.index, meta.epoch) == (1, 3)
    replica.client_message(A, wire.CHECKPOINT, 8, b"", 0)
    assert effects(replica) == {}
    replica.checkpoint_done(meta, None, 0)
    assert effects(replica) == {"compacted": meta, "replies": [result(A, 8, wire.encode([1]))]}
    assert ("compacted", 1) in core.told
    replica.client_message(A, wire.CHECKPOINT, 9, b"", 0)
    assert effects(replica) == {"replies": [result(A, 9, wire.encode([1]))]}


def test_a_checkpoint_older_than_the_question_is_no_answer() -> None:
    """A capture begun before a write was acknowledged does not hold that write."""
    replica, core, _ = make(Limits(checkpoint_bytes=10, checkpoint_interval=0))
    core.commit(b"0123456789")
    first, _ = effects(replica)["capture"]
    core.commit(b"more")
    effects(replica)
    replica.client_message(A, wire.CHECKPOINT, 8, b"", 0)
    replica.checkpoint_done(first, None, 0)
    out = effects(replica)
    assert out.get("replies") is None
    second, _ = out["capture"]
    assert second.index == 2
    replica.checkpoint_done(second, None, 0)
    assert effects(replica)["replies"] == [result(A, 8, wire.encode([2]))]


def test_a_checkpoint_that_is_to_cover_an_index_waits_until_that_is_applied() -> None:
    replica, core, _ = make()
    core.commit(b"x")
    replica.client_message(A, wire.CHECKPOINT, 8, wire.encode([2]), 0)
    assert effects(replica) == {}
    core.commit(b"y")
    meta, _ = effects(replica)["capture"]
    assert meta.index == 2
    replica.checkpoint_done(meta, None, 0)
    assert effects(replica)["replies"] == [result(A, 8, wire.encode([2]))]
    replica.client_message(B, wire.CHECKPOINT, 9, b"\xc1", 0)
    [(_, head, _)] = effects(replica)["replies"]
    assert head == wire.pack_head(wire.FAILED, 9)


def test_a_checkpoint_of_what_is_in_no_log_is_refused() -> None:
    replica, core, _ = make()
    core.log_end = 1
    replica.client_message(A, wire.CHECKPOINT, 7, wire.encode([2]), 0)
    ((client, head, body),) = replica.turn(0, 0).replies
    assert (client, wire.HEAD.unpack(head)[0]) == (A, wire.FAILED)
    assert "there is no entry 2" in str(wire.decode(body))


def test_a_failed_checkpoint_keeps_the_log_and_says_so() -> None:
    replica, core, _ = make()
    core.commit(b"x")
    effects(replica)
    replica.client_message(A, wire.CHECKPOINT, 8, b"", 0)
    meta, _ = effects(replica)["capture"]
    replica.checkpoint_done(meta, OSError("disk full"), 0)
    [(_, head, body)] = effects(replica)["replies"]
    assert head == wire.pack_head(wire.FAILED, 8)
    assert "disk full" in msgspec.msgpack.decode(body)[1]
    assert replica.checkpoint_index == 0


def test_a_checkpoint_that_failed_is_not_tried_again_at_once() -> None:
    """The disk is full: every turn would start a thread, write a lot, and fail again."""
    replica, core, _machine = make(Limits(checkpoint_bytes=10, checkpoint_interval=0))
    core.commit(b"x" * 100)
    meta, _view = effects(replica)["capture"]
    replica.checkpoint_done(meta, OSError("full"), 1_000)
    core.commit(b"x" * 100)
    assert "capture" not in effects(replica, now=1_000)
    assert replica.next_deadline() == 1_000 + RETRY_AFTER
    assert "capture" in effects(replica, now=1_000 + RETRY_AFTER)


def test_those_who_wait_for_a_checkpoint_are_bounded() -> None:
    replica, core, _machine = make()
    core.commit(b"x")
    for request in range(WAITERS_MAX + 1):
        replica.client_message(A, wire.CHECKPOINT, request, b"", 0)
    replies = effects(replica)["replies"]
    assert [reply[1] for reply in replies] == [wire.pack_head(wire.BUSY, WAITERS_MAX)]


def test_checkpoints_by_time_skip_when_nothing_changed() -> None:
    replica, core, _ = make(Limits(checkpoint_bytes=1 << 30, checkpoint_interval=1_000))
    assert effects(replica, now=1_000) == {}
    assert replica.next_deadline() == 2_000
    core.commit(b"x")
    assert effects(replica, now=1_500) == {}
    assert effects(replica, now=2_000)["capture"][0].index == 1


def verified(client: bytes, request: int, index: int, digest: str | None) -> tuple[bytes, bytes, bytes]:
    return result(client, request, wire.encode([index, digest]))


def test_a_mark_freezes_the_state_where_it_is_applied_and_the_digest_is_told() -> None:
    replica, core, machine = make()
    replica.client_message(A, wire.VERIFY, 8, wire.encode([1]), 0)
    assert effects(replica) == {}
    machine.marked = True
    core.commit(b"mark")
    index, _ = effects(replica)["digest"]
    assert index == 1
    replica.client_message(B, wire.VERIFY, 9, wire.encode([1]), 0)
    assert effects(replica) == {}
    replica.digest_done(1, "d1")
    assert effects(replica)["replies"] == [verified(A, 8, 1, "d1"), verified(B, 9, 1, "d1")]
    replica.client_message(A, wire.VERIFY, 10, wire.encode([1]), 0)
    assert effects(replica)["replies"] == [verified(A, 10, 1, "d1")]


def test_where_no_mark_was_there_is_no_digest_and_that_is_said_at_once() -> None:
    replica, core, _ = make()
    core.commit(b"x")
    effects(replica)
    replica.client_message(A, wire.VERIFY, 8, wire.encode([1]), 0)
    assert effects(replica)["replies"] == [verified(A, 8, 1, None)]
    replica.client_message(A, wire.VERIFY, 9, b"\xc1", 0)
    [(_, head, _)] = effects(replica)["replies"]
    assert head == wire.pack_head(wire.FAILED, 9)


def test_a_checkpoint_and_a_digest_never_freeze_the_state_at_once() -> None:
    replica, core, machine = make()
    core.commit(b"x")
    effects(replica)
    replica.client_message(A, wire.CHECKPOINT, 7, b"", 0)
    meta, _ = effects(replica)["capture"]
    machine.marked = True
    core.commit(b"mark")
    assert "digest" not in effects(replica)
    assert replica.digests.known == {2: None}
    replica.checkpoint_done(meta, None, 0)
    machine.marked = True
    core.commit(b"mark")
    assert "digest" in effects(replica)
    replica.client_message(A, wire.CHECKPOINT, 8, b"", 0)
    assert effects(replica) == {}
    assert not replica.capture_now(0)
    replica.digest_done(3, "d")
    assert effects(replica)["capture"][0].index == 3


def test_a_leader_marks_by_itself_every_so_often_if_anything_was_written() -> None:
    replica, core, _ = make(digest_interval=1_000)
    assert replica.next_deadline() == NEVER, "nothing was written"
    core.commit(b"x")
    effects(replica)
    assert replica.next_deadline() == 1_000
    core.is_leader = False
    assert replica.next_deadline() == NEVER
    effects(replica, now=1_000)
    assert not [told for told in core.told if told[0] == "propose"]
    core.is_leader = True
    effects(replica, now=1_000)
    assert core.told[-1] == ("propose", core.last_index, [wire.MARK_FRAME])
    core.commit(wire.MARK_FRAME)
    effects(replica, now=1_000)
    assert replica.next_deadline() == NEVER, "its own mark is nothing new"


def test_an_unknown_entry_kind_stops_the_node() -> None:
    replica, core, _ = make()
    core.readys.append(Ready(seq=0, committed=(Entry(1, 3, 77, b""),)))
    with pytest.raises(FormatTooNew, match="kind 77"):
        effects(replica)


@pytest.mark.parametrize("error", [MemoryError, RecursionError, KeyError])
def test_an_error_in_apply_stops_the_node_and_answers_nobody(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """What one replica alone cannot do must not be skipped: its state would differ from then on."""
    replica, core, machine = make()
    replica.client_message(A, wire.WRITE, 1, b"x", 0)
    effects(replica)

    def fail(index: int, log_time_ms: int, frames: list[bytes]) -> list[bytes]:
        raise error

    monkeypatch.setattr(machine, "apply", fail)
    core.commit(b"x")
    with pytest.raises(error):
        effects(replica)
    assert replica.last_applied == 0
    assert replica._out.replies == []


def test_an_oversized_backlog_becomes_several_entries_in_order() -> None:
    replica, core, _ = make()
    big = b"x" * 700_000
    for request in range(3):
        replica.client_message(A, wire.WRITE, request, big, 0)
    effects(replica)
    assert [len(frames) for _, _, frames in core.told] == [1, 1, 1]
    core.commit(big)
    core.commit(big)
    core.commit(big)
    assert [head for _, head, _ in effects(replica)["replies"]] == [wire.pack_head(wire.RESULT, i) for i in range(3)]
