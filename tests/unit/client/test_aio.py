"""The same with `async`: one loop, several loops, cancelled callers; against a cluster in one thread."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from typing import Any

import pytest

from tests.unit.client.fake_cluster import FakeCluster
from zcluster import wire
from zcluster.client import aio
from zcluster.client.aio import AsyncKV
from zcluster.client.kv import bounded
from zcluster.errors import Closed, InvalidInput, NoQuorum, Timeout, TooLarge, Unknown, WrongType


def test_every_call_does_what_it_promises(cluster: FakeCluster) -> None:
    kv = AsyncKV(cluster.spec)

    async def main() -> None:
        assert await kv.get("k") is None
        assert await kv.put("k", b"v") == 1
        for consistency in ("linearizable", "lease", "eventual", bounded(ms=20)):
            assert await kv.get("k", consistency=consistency) == b"v"
        assert await kv.cas("k", b"x", b"y") is False
        assert await kv.cas("k", b"v", b"w") is True
        assert await kv.append("k", b"+") == b"w+"
        assert await kv.delete("k") is True
        assert await kv.delete("k") is False
        async with kv.pipeline() as pipeline:
            pipeline.put("a", b"1")
            value = pipeline.get("a")
        assert value.result() == b"1"
        pipeline = kv.pipeline()
        pipeline.get("a")
        assert await pipeline.execute() == [b"1"]
        assert await kv.list("a") == {"a": b"1"}

    asyncio.run(main())
    kv.close()


def test_refusals(cluster: FakeCluster) -> None:
    kv = AsyncKV(cluster.spec)
    wrong: Any = 5

    async def main() -> None:
        with pytest.raises(WrongType):
            await kv.put(wrong, b"")
        with pytest.raises(TooLarge):
            await kv.put("k", b"x" * (1 << 20 | 1))
        with pytest.raises(InvalidInput):
            await kv.get("k", consistency="strong")
        await kv.put("k", b"x" * (1 << 20))
        with pytest.raises(TooLarge):
            await kv.append("k", b"y")

    asyncio.run(main())


def test_callers_of_one_turn_share_a_frame(cluster: FakeCluster) -> None:
    kv = AsyncKV(cluster.spec)

    async def main() -> None:
        await kv.put("first", b"")
        assert await asyncio.gather(*(kv.put(f"k{i}", b"v") for i in range(256))) == list(range(2, 258))
        values = await asyncio.gather(*(kv.get(f"k{i}") for i in range(256)))
        assert values == [b"v"] * 256

    asyncio.run(main())
    assert cluster.frame_sizes == [1, 1, 256]
    assert cluster.counts[wire.READ] == 1


def test_a_burst_of_answers_is_taken_to_its_end_although_it_is_announced_once(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptor of a ZeroMQ socket is edge-triggered, and a turn of the loop takes only so much."""
    monkeypatch.setattr(aio, "MESSAGES_PER_TURN", 4)
    kv = AsyncKV(cluster.spec, frames_in_flight=300)

    async def main() -> None:
        await kv.put("first", b"")
        cluster.lock.acquire()  # its thread answers nothing meanwhile
        try:
            writes = []
            for i in range(200):
                writes.append(asyncio.ensure_future(kv.append("k", b"%d." % i)))
                await asyncio.sleep(0)
                await asyncio.sleep(0)  # a frame for each
        finally:
            cluster.lock.release()
        await asyncio.gather(*writes)

    asyncio.run(main())
    assert len(cluster.frame_sizes) > 150


def test_several_loops_in_turn_and_at_once(cluster: FakeCluster) -> None:
    kv = AsyncKV(cluster.spec)

    async def main(name: str) -> None:
        for i in range(20):
            await kv.append("all", f"{name}.{i};".encode())

    for name in "ab":
        asyncio.run(main(name))
    threads = [threading.Thread(target=lambda n=name: asyncio.run(main(n))) for name in "cdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (value,) = wire.decode(cluster.machine.query([[wire.OP_GET, "all"]]))
    assert len(set(value.split(b";"))) == 121


def test_a_loop_that_ends_closes_its_sockets(cluster: FakeCluster) -> None:
    kv = AsyncKV(cluster.spec)

    async def main() -> aio.LoopConnection:
        await kv.put("k", b"")
        return kv._connected()

    connection = asyncio.run(main())
    assert connection.closed
    assert not connection._sockets


def test_a_loop_closed_without_ceremony_leaves_nothing_behind(cluster: FakeCluster) -> None:
    kv = AsyncKV(cluster.spec)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(kv.put("k", b""))
    assert kv._latest is not None
    connection = weakref.ref(kv._latest)
    loop.close()
    asyncio.run(kv.put("k", b""))  # another loop sweeps up
    del loop
    gc.collect()
    assert connection() is None


def test_a_dropped_client_closes_its_sockets(cluster: FakeCluster) -> None:
    async def main() -> aio.LoopConnection:
        kv = AsyncKV(cluster.spec)
        await kv.put("k", b"")
        connection = kv._connected()
        del kv
        gc.collect()
        return connection

    assert asyncio.run(main()).closed
    loop = asyncio.new_event_loop()
    kv = AsyncKV(cluster.spec)
    loop.run_until_complete(kv.put("k", b""))
    loop.close()
    del kv, loop
    gc.collect()


def test_close_from_another_thread(cluster: FakeCluster) -> None:
    kv = AsyncKV(cluster.spec)

    async def main() -> None:
        await kv.put("k", b"")
        cluster.filter = lambda kind, replica: False
        write, read = asyncio.ensure_future(kv.put("k", b"2")), asyncio.ensure_future(kv.get("k"))
        await asyncio.to_thread(cluster.wait_for, lambda: cluster.counts[wire.READ] == 1)
        await asyncio.to_thread(kv.close)
        with pytest.raises(Unknown):
            await write
        with pytest.raises(Closed):
            await read
        with pytest.raises(Closed):
            await kv.get("k")

    asyncio.run(main())


def test_a_cancelled_caller_leaves_the_operation(cluster: FakeCluster) -> None:
    kv = AsyncKV(cluster.spec)

    async def main() -> None:
        await kv.put("k", b"")
        task = asyncio.ensure_future(kv.append("k", b"+"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await kv.append("other", b"x") == b"x"
        assert await kv.get("k") == b"+"

    asyncio.run(main())


def test_time_is_kept_and_the_outcome_told(cluster: FakeCluster) -> None:
    kv = AsyncKV(cluster.spec)

    async def main() -> None:
        await kv.put("k", b"1")
        cluster.filter = lambda kind, replica: False
        outcomes = await asyncio.gather(
            kv.put("k", b"2", timeout=0.1), kv.get("k", timeout=0.05), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [Unknown, Timeout]
        cluster.filter = lambda kind, replica: True
        assert await kv.put("k", b"3") == 2

    asyncio.run(main())


def test_without_a_cluster_writes_are_certainly_not_applied() -> None:
    with FakeCluster() as cluster:
        spec = cluster.spec

    async def main() -> None:
        with pytest.raises(NoQuorum):
            await AsyncKV(spec).put("k", b"", timeout=0.05)

    asyncio.run(main())


def test_calls_follow_the_leader(three: FakeCluster) -> None:
    kv = AsyncKV(three.spec)

    async def main() -> None:
        await kv.put("k", b"1")
        for leader in (2, 3, 1, 3):
            three.lead(leader)
            await kv.append("k", b"+")
        three.filter = lambda kind, replica: replica != 3
        writes = three.counts[wire.WRITE]
        task = asyncio.ensure_future(kv.append("k", b"!"))
        await asyncio.to_thread(three.wait_for, lambda: three.counts[wire.WRITE] > writes)
        three.lead(2)
        assert await task == b"1++++!"

    asyncio.run(main())


def test_an_idle_loop_has_no_timer(cluster: FakeCluster) -> None:
    kv = AsyncKV(cluster.spec)

    async def main() -> None:
        await asyncio.gather(*(kv.put(f"k{i}", b"") for i in range(10)))
        connection = kv._connected()
        assert connection.session.next_deadline() >= aio.NEVER
        if connection._timer is not None:
            connection._on_timer()
        assert connection._timer is None

    asyncio.run(main())


def test_a_forked_child_opens_its_own_connection(cluster: FakeCluster) -> None:
    kv = AsyncKV(cluster.spec)
    asyncio.run(kv.put("k", b"1"))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(kv.append("k", b"2"))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert asyncio.run(kv.append("k", b"3")) == b"123"
            kv.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert loop.run_until_complete(kv.append("k", b"4")) == b"1234"
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    kv.close()
