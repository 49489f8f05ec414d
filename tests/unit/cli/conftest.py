"""The command line without any process: a cluster that remembers what it was asked, in a private home."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from zcluster.cli.main import root
from zcluster.errors import NotRunning

Run = Callable[..., Result]


class FakeKV:
    """The store as a dictionary."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.calls: list[tuple[Any, ...]] = []

    def put(self, key: str, value: bytes, timeout: float = 10) -> int:
        self.calls.append(("put", key, value, timeout))
        self.data[key] = value
        return len(self.calls)

    def get(self, key: str, *, consistency: Any = "linearizable", timeout: float = 10) -> bytes | None:
        self.calls.append(("get", key, consistency, timeout))
        return self.data.get(key)

    def delete(self, key: str, timeout: float = 10) -> bool:
        return self.data.pop(key, None) is not None

    def cas(self, key: str, expected: bytes | None, new: bytes | None, timeout: float = 10) -> bool:
        self.calls.append(("cas", key, expected, new))
        if self.data.get(key) != expected:
            return False
        if new is None:
            self.data.pop(key, None)
        else:
            self.data[key] = new
        return True


class FakeClient:
    """Runs tasks where it stands."""

    def __init__(self) -> None:
        self.kv = FakeKV()
        self.never_done = False

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if self.never_done:
            return future
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            error.__cause__ = RemoteTraceback("Traceback (most recent call last):\n  far away")
            future.set_exception(error)
        return future


class RemoteTraceback(Exception):
    """Named like the one that `tasks` chains."""


def a_node(name: str, **changes: Any) -> dict[str, Any]:
    """A node's part of a status, healthy unless told otherwise."""
    node = {
        "name": name,
        "role": "follower",
        "pid": 100 + int(name[1:]),
        "state": "up",
        "term": 2,
        "commit_index": 18204,
        "last_applied": 18204,
        "checkpoint_index": 18000,
        "lag": 0,
        "disk_bytes": 4_300_000,
        "cpu_percent": 3.0,
        "rss_bytes": 44_040_192,
        "uptime_seconds": 130.0,
    }
    return node | changes


def a_status(**changes: Any) -> dict[str, Any]:
    """What `Cluster.status` gives."""
    status = {
        "format": 1,
        "cluster": "default",
        "state": "healthy",
        "engine": "raft",
        "durability": "fsync",
        "leader": "n3",
        "term": 2,
        "quorum": True,
        "nodes": [a_node("n1"), a_node("n2"), a_node("n3", role="leader")],
        "routers": [{"name": "router", "pid": 200}],
        "workers": [{"name": f"n{i}.w1", "pid": 210 + i, "registered": True} for i in (1, 2, 3)],
        "queued": 3,
        "tasks_per_s": 812.4,
        "directory": "/somewhere/default",
        "fix": [],
    }
    return status | changes


class FakeCluster:
    """Stands for `launch.cluster.Cluster`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = directory.name
        self.running = True
        self.calls: list[tuple[Any, ...]] = []
        self.found = a_status()
        self.nodes = {name: SimpleNamespace(name=name) for name in ("n1", "n2", "n3")}
        self.spec = SimpleNamespace(
            nodes=tuple(self.nodes.values()),
            settings=SimpleNamespace(workers=1),
            worker_names=lambda node: [f"{node}.w1"],
        )
        self.client = FakeClient()
        self.absent: list[str] = []
        self.raises: BaseException | None = None

    def _record(self, *call: Any) -> list[str]:
        self.calls.append(call)
        if self.raises is not None:
            raise self.raises
        return self.resolve(call[1])

    def resolve(self, selector: str) -> list[str]:
        named = {"all": ["n1", "n2", "n3"], "leader": ["n3"], "followers": ["n1", "n2"]}
        return named.get(selector) or selector.split(",")

    def status(self) -> dict[str, Any]:
        if self.raises is not None:
            raise self.raises
        return self.found

    def kill(self, selector: str, signal_name: str) -> list[str]:
        return self._record("kill", selector, signal_name)

    def pause(self, selector: str) -> list[str]:
        return self._record("pause", selector)

    def resume(self, selector: str) -> list[str]:
        return self._record("resume", selector)

    def partition(self, *sides: str, **options: Any) -> dict[str, Any]:
        return self._cut("partition", sides, options)

    def isolate(self, selector: Any, **options: Any) -> dict[str, Any]:
        return self._cut("isolate", selector, options)

    def _cut(self, verb: str, named: Any, options: dict[str, Any]) -> dict[str, Any]:
        self._record(verb, ",".join(named), options)
        return {"cuts": [["n1", "n2"], ["n2", "n1"]], "untold": ["n2"], "down": ["n3"], "seconds": options["seconds"]}

    def slow(self, selector: str, ms: float, *, seconds: float | None) -> dict[str, Any]:
        return {"nodes": self._record("slow", selector, ms, seconds), "delay_ms": ms, "seconds": seconds}

    def flaky(self, selector: str, loss: float, *, duplicate: float, seconds: float | None) -> dict[str, Any]:
        nodes = self._record("flaky", selector, loss, duplicate, seconds)
        return {"nodes": nodes, "loss": loss, "duplicate": duplicate, "seconds": seconds}

    def heal(self) -> dict[str, Any]:
        return {"healed": self._record("heal", "all")}

    def stop(self, selector: str, *, timeout: float) -> list[str]:
        return self._record("stop", selector, timeout)

    def start(self, selector: str) -> list[str]:
        return self._record("start", selector)

    def scale(self, nodes: int, *, timeout: float, progress: Callable[[str], None]) -> dict[str, Any]:
        self.calls.append(("scale", nodes, timeout))
        progress("n4 is added")
        return {
            "nodes": [f"n{i + 1}" for i in range(nodes)],
            "changed": nodes != len(self.nodes),
            "absent": self.absent,
        }

    def wipe(self, node: str, *, progress: Callable[[str], None]) -> None:
        self._record("wipe", node)
        progress("n2 is removed")

    def restart(self, selector: str, *, timeout: float) -> list[str]:
        return self._record("restart", selector, timeout)

    def wait(self, condition: str, timeout: float) -> None:
        self._record("wait", condition, timeout)

    def down(self, timeout: float, *, purge: bool = False) -> bool:
        self._record("down", "all", timeout, purge)
        return True

    def checkpoint(self, timeout: float) -> dict[str, int]:
        return {"n1": 7, "n3": 7}

    def connect(self) -> FakeClient:
        return self.client


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, a configuration directory and a current directory of this test alone; no ZCLUSTER_* from outside."""
    for name in [n for n in os.environ if n.startswith("ZCLUSTER_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("NO_COLOR", raising=False)
    path = tmp_path / "home"
    monkeypatch.setenv("ZCLUSTER_HOME", str(path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return path


@pytest.fixture
def run() -> Run:
    """Call the command line: `run("put", "k", "v")`."""

    def call(*arguments: str, **options: Any) -> Result:
        return CliRunner().invoke(root, list(arguments), **options)

    return call


@pytest.fixture
def cluster(home: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    """The only cluster there is, named "default"."""
    fake = FakeCluster(home / "default")

    def find(directory: Path) -> FakeCluster:
        if Path(directory).name != "default":
            raise NotRunning("no such cluster")
        return fake

    monkeypatch.setattr("zcluster.launch.cluster.Cluster", find)
    return fake
