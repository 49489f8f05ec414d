"""Blocking calls, many threads, forks; against a cluster in one thread."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from typing import Any

import msgspec
import pytest

import zcluster
from tests.unit.client.fake_cluster import FakeCluster
from zcluster import wire
from zcluster.client.kv import KV, bounded, find_nodes
from zcluster.config import save_spec
from zcluster.errors import Closed, InvalidInput, NoQuorum, Timeout, TooLarge, Unknown, WrongType


def test_every_call_does_what_it_promises(cluster: FakeCluster) -> None:
    kv = KV(cluster.spec)
    assert kv.get("k") is None
    assert kv.put("k", b"v") == 1
    assert kv.get("k") == b"v"
    assert kv.get("k", consistency="lease") == b"v"
    assert kv.get("k", consistency="eventual") == b"v"
    assert kv.get("k", consistency=bounded(ms=20)) == b"v"
    assert kv.cas("k", b"x", b"y") is False
    assert kv.cas("k", b"v", b"w") is True
    assert kv.append("k", b"+") == b"w+"
    assert kv.cas("k", b"w+", None) is True
    assert kv.cas("k", None, b"new") is True
    assert kv.delete("k") is True
    assert kv.delete("k") is False
    kv.close()


def test_list_gives_all_pages_in_order(cluster: FakeCluster) -> None:
    kv = KV(cluster.spec)
    with kv.pipeline() as pipeline:
        for i in range(2500):
            pipeline.put(f"a{i % 50:02}/{i}", b"x" * 1000)
        pipeline.put("b", b"")
    found = kv.list("a")
    assert len(found) == 2500
    assert list(found) == sorted(found)
    assert cluster.counts[wire.READ] >= 3
    assert kv.list("b", consistency="eventual") == {"b": b""}
    assert len(kv.list()) == 2501
    assert kv.list("nothing") == {}
    kv.close()


def test_a_pipeline_is_one_frame_and_one_of_reads_is_not_written(cluster: FakeCluster) -> None:
    kv = KV(cluster.spec)
    with kv.pipeline() as pipeline:
        first = pipeline.put("a", b"1")
        value = pipeline.get("a")
        pipeline.put("a", b"2")
    assert (first.result(), value.result()) == (1, b"1")
    assert cluster.frame_sizes == [1, 3]
    pipeline = kv.pipeline()
    pipeline.get("a")
    pipeline.get("b")
    assert pipeline.execute() == [b"2", None]
    assert cluster.frame_sizes == [1, 3]
    kv.close()


def test_refused_by_the_client(cluster: FakeCluster) -> None:
    kv = KV(cluster.spec)
    wrong: Any = 5
    with pytest.raises(WrongType):
        kv.put(wrong, b"")
    with pytest.raises(WrongType):
        kv.put("k", wrong)
    with pytest.raises(WrongType):
        kv.list(wrong)
    with pytest.raises(TooLarge):
        kv.put("k", b"x" * (1 << 20 | 1))
    with pytest.raises(InvalidInput):
        kv.get("k", consistency="strong")
    with pytest.raises(InvalidInput):
        kv.get("k", timeout=0)
    kv.close()
    assert set(cluster.counts) <= {wire.HELLO}


def test_refused_by_the_cluster(cluster: FakeCluster) -> None:
    kv = KV(cluster.spec)
    kv.put("k", b"x" * (1 << 20))
    with pytest.raises(TooLarge, match="value_bytes_max"):
        kv.append("k", b"y")
    kv.close()


def test_large_answers_beside_each_other(cluster: FakeCluster) -> None:
    """Together they exceed what one answer may hold; each thread gets its own all the same."""
    kv = KV(cluster.spec)
    kv.put("k", b"x" * (1 << 20))
    sizes: list[int] = []
    threads = [threading.Thread(target=lambda: sizes.append(len(kv.get("k") or b""))) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [1 << 20] * 24
    kv.close()


def test_many_threads_share_a_client(cluster: FakeCluster) -> None:
    kv = KV(cluster.spec)
    start = threading.Barrier(16)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            start.wait()
            for i in range(30):
                kv.append("all", f"{number}.{i};".encode())
                kv.put(f"own-{number}", str(i).encode())
                assert kv.get(f"own-{number}") == str(i).encode()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    marks = (kv.get("all") or b"").split(b";")[:-1]
    assert len(marks) == len(set(marks)) == 16 * 30
    assert len(cluster.frame_sizes) < 2 * 16 * 30, "writes of several threads share frames"
    kv.close()


def test_ctrl_c_while_an_operation_is_being_queued_mixes_no_answers(cluster: FakeCluster) -> None:
    """Between the operation and its caller, which stand in two lists side by side."""

    class Interrupting(list[Any]):
        def append(self, item: Any) -> None:
            signal.raise_signal(signal.SIGINT)
            super().append(item)

    kv = KV(cluster.spec)
    assert kv.put("a", b"1") == 1
    writes = kv._connected().session._writes
    writes._tokens = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        kv.put("b", b"2")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert kv.cas("c", None, b"3") is True
    assert kv.append("c", b"+") == b"3+"
    assert kv.get("b") == b"2"
    kv.close()


def test_calls_follow_the_leader(three: FakeCluster) -> None:
    kv = KV(three.spec)
    kv.put("k", b"1")
    for leader in (2, 3, 1, 3):
        three.lead(leader)
        assert kv.append("k", b"+")
    assert kv.get("k") == b"1++++"
    kv.close()


def test_a_write_held_by_a_stalled_leader_is_done_by_the_next(three: FakeCluster) -> None:
    kv = KV(three.spec)
    kv.put("k", b"1")
    three.filter = lambda kind, replica: replica != 1
    writes = three.counts[wire.WRITE]
    done: list[bytes] = []
    thread = threading.Thread(target=lambda: done.append(kv.append("k", b"+")))
    thread.start()
    three.wait_for(lambda: three.counts[wire.WRITE] > writes)
    three.lead(2)
    thread.join()
    assert done == [b"1+"]
    kv.close()


def test_lost_answers_do_not_apply_a_write_twice(cluster: FakeCluster) -> None:
    kv = KV(cluster.spec)
    kv.put("k", b"")
    apply = cluster.machine.apply
    seen: list[bytes] = []

    def apply_and_lose_the_answer(index: int, log_time_ms: int, frames: list[bytes]) -> list[bytes]:
        seen.extend(frames)
        bodies = apply(index, log_time_ms, frames)
        return [b"\xc1 lost"] if len(seen) == 1 else bodies

    cluster.machine.apply = apply_and_lose_the_answer  # type: ignore[method-assign]
    assert kv.append("k", b"+") == b"+"
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert kv.get("k") == b"+"
    kv.close()


def test_time_is_kept_and_the_outcome_told(cluster: FakeCluster) -> None:
    kv = KV(cluster.spec)
    kv.put("k", b"1")
    cluster.filter = lambda kind, replica: False
    started = time.monotonic()
    with pytest.raises(Unknown):
        kv.put("k", b"2", timeout=0.1)
    with pytest.raises(Timeout) as caught:
        kv.get("k", timeout=0.1)
    assert isinstance(caught.value, TimeoutError)
    assert 0.2 <= time.monotonic() - started < 2
    cluster.filter = lambda kind, replica: True
    assert kv.put("k", b"3") == 2, "the write that was given up is gone for good"
    kv.close()


def test_without_a_cluster_writes_are_certainly_not_applied() -> None:
    with FakeCluster() as cluster:
        spec = cluster.spec
    kv = KV(spec)
    with pytest.raises(NoQuorum):
        kv.put("k", b"", timeout=0.05)
    with pytest.raises(Timeout):
        kv.get("k", consistency="eventual", timeout=0.05)
    kv.close()


def test_a_node_added_later_is_found(three: FakeCluster) -> None:
    full = three.spec
    old = type(full)(**{**{f: getattr(full, f) for f in full.__struct_fields__}, "nodes": full.nodes[:1]})
    save_spec(full)
    kv = KV(old)
    kv.put("k", b"1")
    three.lead(3)
    assert kv.put("k", b"2") == 2
    kv.close()


def test_a_client_whose_only_node_is_gone_finds_the_others(three: FakeCluster) -> None:
    """Nobody it knows could tell it who leads; the description can."""
    full = three.spec
    save_spec(msgspec.structs.replace(full, nodes=full.nodes[:1]))
    kv = KV(msgspec.structs.replace(full, nodes=full.nodes[:1]))
    kv.put("k", b"1")
    with three.lock:
        three.leader, three.term = 3, 2
        three.filter = lambda kind, replica: replica != 1
    save_spec(msgspec.structs.replace(full, nodes=full.nodes[1:]))
    assert kv.put("k", b"2", timeout=20) == 2
    assert kv._connections[os.getpid()].session.replicas == {2, 3}
    kv.close()


def test_a_cluster_made_anew_in_the_same_place_is_another_one(three: FakeCluster) -> None:
    save_spec(msgspec.structs.replace(three.spec, cluster_id="another"))
    assert find_nodes(three.spec) == {}


def test_closing(cluster: FakeCluster) -> None:
    kv = KV(cluster.spec)
    kv.put("k", b"1")
    cluster.filter = lambda kind, replica: False
    outcomes: list[type] = []

    def work(call: Any) -> None:
        try:
            call()
        except zcluster.Error as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=work, args=(call,)) for call in (lambda: kv.put("k", b"2"), lambda: kv.get("k"))]
    for thread in threads:
        thread.start()
    cluster.wait_for(lambda: cluster.counts[wire.READ] == 1 and cluster.counts[wire.WRITE] == 3)
    kv.close()
    for thread in threads:
        thread.join()
    assert sorted(outcomes, key=str) == [Closed, Unknown]
    with pytest.raises(Closed):
        kv.get("k")
    kv.close()


def test_a_dropped_client_closes_its_connection(cluster: FakeCluster) -> None:
    kv = KV(cluster.spec)
    kv.put("k", b"")
    (connection,) = kv._connections.values()
    thread = connection.channel._background
    assert thread is not None
    del kv
    gc.collect()
    thread.join(10)
    assert connection.channel.closed


def test_a_forked_child_opens_its_own_connection(cluster: FakeCluster) -> None:
    kv = KV(cluster.spec)
    kv.put("parent", b"1")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert kv.put("child", b"1") == 2
            assert kv.append("parent", b"+") == b"1+"
            kv.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert kv.append("parent", b"+") == b"1++"
    assert kv.get("child") == b"1"
    assert len(cluster.machine.sessions) == 2
    kv.close()
