"""A task system in miniature: real router and worker processes, restarted when they die, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from zcluster import wire
from zcluster.client.channel import Channel
from zcluster.config import CLIENT, ClusterSpec, NodeSpec, load_spec, make_settings, save_spec
from zcluster.transport.liveness import OWNER_VARIABLE, start_ticks
from zcluster.types import NEVER

TIMEOUT_S = 20.0


class Processes:
    """Router and workers of one cluster. `with` starts them and kills them; `keep` restarts those that die."""

    def __init__(self, directory: Path, socket_directory: str, *, workers: int = 2, **settings: Any) -> None:
        (directory / "run").mkdir(parents=True)
        (directory / "logs").mkdir()
        self.spec: ClusterSpec = load_spec(
            _saved(
                ClusterSpec(
                    format=1,
                    name="t",
                    cluster_id="c1",
                    settings=make_settings(nodes=1, workers=workers, **settings),
                    nodes=(NodeSpec("n1", 1),),
                    socket_directory=socket_directory,
                    directory=str(directory),
                )
            )
        )
        self.router: subprocess.Popen[bytes] | None = None
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self._keeping = threading.Event()
        self._keeper: threading.Thread | None = None

    def __enter__(self) -> Processes:
        self.start_router()
        for name in self.spec.worker_names("n1"):
            self.start_worker(name)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_keeping()
        for process in [*self.workers.values(), self.router]:
            if process is not None:
                process.kill()
                process.wait()

    def _spawn(self, module: str, log: str, *arguments: str) -> subprocess.Popen[bytes]:
        with open(self.spec.path / "logs" / f"{log}.log", "ab") as file:
            return subprocess.Popen(
                [sys.executable, "-W", "error", "-m", module, self.spec.directory, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env={
                    **{k: v for k, v in os.environ.items() if not k.startswith("ZCLUSTER_")},
                    OWNER_VARIABLE: f"{os.getpid()}:{start_ticks(os.getpid())}",  # none outlives the tests
                },
            )

    def start_router(self) -> None:
        self.router = self._spawn("zcluster.tasks.router", "router")

    def start_worker(self, name: str) -> None:
        self.workers[name] = self._spawn("zcluster.tasks.worker", name, name)

    def log(self, name: str) -> str:
        return (self.spec.path / "logs" / f"{name}.log").read_text()

    def keep(self) -> None:
        """Restart whatever dies, at once, as the supervisor does."""

        def run() -> None:
            while not self._keeping.wait(0.005):
                if self.router is not None and self.router.poll() is not None:
                    self.start_router()
                for name, process in list(self.workers.items()):
                    if process.poll() is not None:
                        self.start_worker(name)

        self._keeper = threading.Thread(target=run)
        self._keeper.start()

    def stop_keeping(self) -> None:
        self._keeping.set()
        if self._keeper is not None:
            self._keeper.join()

    def kill(self, process: subprocess.Popen[bytes] | None) -> None:
        assert process is not None
        process.send_signal(signal.SIGKILL)
        process.wait()

    def status(self) -> dict[str, Any]:
        """What the router says about itself."""
        found: list[bytes] = []
        channel = Channel(
            {0: self.spec.endpoint("router", CLIENT)},
            None,
            lambda key, parts, now: found.append(parts[1]),
            lambda now: None,
            lambda: NEVER,
        )
        try:
            until = time.monotonic() + TIMEOUT_S
            while not found:
                assert time.monotonic() < until
                with channel.lock:
                    channel.send(0, [wire.pack_head(wire.STATUS, 7), b""])
                channel.wait(lambda: bool(found), 0.05)
        finally:
            channel.close()
        status: dict[str, Any] = wire.decode(found[0])
        return status

    def wait_status(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Ask until it holds."""
        until = time.monotonic() + TIMEOUT_S
        while not holds(status := self.status()):
            assert time.monotonic() < until, status
            time.sleep(0.005)
        return status


def _saved(spec: ClusterSpec) -> str:
    save_spec(spec)
    return spec.directory


def raw_dealer(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(endpoint)
    return socket
