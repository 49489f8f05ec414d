"""A client that answers at once, or when told, and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future

from zcluster.errors import Unknown


class FakeAsyncKv:
    def __init__(self) -> None:
        self.puts: list[tuple[str, bytes]] = []
        self.gets: list[tuple[str, str]] = []
        self.outstanding = 0
        self.outstanding_max = 0
        self.fail_every = 0
        self.hang_on: int | None = None
        self.release = asyncio.Event()

    async def _served(self) -> None:
        count = len(self.puts) + len(self.gets)
        self.outstanding += 1
        self.outstanding_max = max(self.outstanding, self.outstanding_max)
        try:
            await asyncio.sleep(0)
            if self.hang_on is not None and count >= self.hang_on:
                await self.release.wait()
            if self.fail_every and count % self.fail_every == 0:
                raise Unknown("planted")
        finally:
            self.outstanding -= 1

    async def put(self, key: str, value: bytes, /) -> int:
        self.puts.append((key, value))
        await self._served()
        return len(self.puts)

    async def get(self, key: str, /, *, consistency: str = "linearizable") -> bytes | None:
        self.gets.append((key, consistency))
        await self._served()
        return None


class FakeAio:
    def __init__(self) -> None:
        self.kv = FakeAsyncKv()
        self.submitted = 0

    async def submit(self, function: Callable[[], None]) -> None:
        self.submitted += 1
        await asyncio.sleep(0)
        function()


class FakeClient:
    def __init__(self) -> None:
        self.aio = FakeAio()
        self.submitted = 0
        self.closed = False

    def submit(self, function: Callable[[], None]) -> Future[None]:
        self.submitted += 1
        future: Future[None] = Future()
        future.set_result(function())
        return future

    def close(self) -> None:
        self.closed = True
