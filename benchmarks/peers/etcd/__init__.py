"""etcd on this machine: three members on loopback, and a compiled load generator on etcd's own client.

Both come from Debian packages (`PACKAGES`); nothing is downloaded in any other way, and the generator is built offline
against the packaged sources. Members run with etcd's defaults (every write synced before it is acknowledged, heartbeat
100 ms, election timeout 1 s) and data directories under the temporary directory, like zcluster's own.

    python -m peers.etcd --callers 256 --seconds 5          (from benchmarks/)
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES = ("etcd-server", "golang-go", "golang-etcd-server-dev")
GOPATH = Path("/usr/share/gocode")
CLIENT_SOURCES = GOPATH / "src" / "go.etcd.io" / "etcd" / "clientv3"
LOAD_SOURCE = Path(__file__).with_name("load.go")
CONNECTIONS = 8
READY_SECONDS_MAX = 20.0


def missing() -> list[str]:
    """What of the peer is not installed."""
    found = {
        "etcd-server": shutil.which("etcd") is not None,
        "golang-go": shutil.which("go") is not None,
        "golang-etcd-server-dev": CLIENT_SOURCES.is_dir(),
    }
    return [package for package in PACKAGES if not found[package]]


def ensure_installed() -> None:
    """Install the packages if they are missing and this is root on Debian. Raises: RuntimeError."""
    wanted = missing()
    if not wanted:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise RuntimeError(f"etcd is not installed; as root: apt-get install {' '.join(wanted)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-q"], ["install", "-yq", "--no-install-recommends", *wanted]):
        subprocess.run(["apt-get", *command], env=environment, stdout=subprocess.DEVNULL, check=True)
    # Debian starts a member of its own on installation; it would disturb what is measured.
    if shutil.which("systemctl"):
        subprocess.run(["systemctl", "disable", "--now", "etcd"], stderr=subprocess.DEVNULL, check=False)


def build_load_generator() -> Path:
    """The compiled generator; built once per source text, in the user's cache, never in the checkout."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zcluster-bench"
    digest = hashlib.sha256(LOAD_SOURCE.read_bytes()).hexdigest()[:16]
    binary = cache / f"etcd-load-{digest}"
    if not binary.exists():
        cache.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "GOPATH": str(GOPATH),
            "GO111MODULE": "off",
            "GOFLAGS": "",
            "GOCACHE": str(cache / "go-build"),
        }
        partial = binary.with_suffix(f".{os.getpid()}")
        subprocess.run(["go", "build", "-o", str(partial), str(LOAD_SOURCE)], env=environment, check=True)
        partial.rename(binary)
    return binary


def version() -> str:
    first = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return f"etcd {first.split()[-1]}"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass
class Member:
    name: str
    client_url: str
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    def ask(self, path: str, body: dict[str, str], timeout: float = 1.0) -> dict[str, Any] | None:
        """One call of the JSON gateway; None if there is no answer."""
        request = urllib.request.Request(f"{self.client_url}{path}", data=json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                decoded: dict[str, Any] = json.load(answer)
                return decoded
        except (OSError, urllib.error.URLError, ValueError):
            return None


class EtcdCluster:
    """Three members on loopback. Use it with `with`; `ready_seconds` is spawn to first acknowledged put."""

    def __init__(self, members: int = 3) -> None:
        ensure_installed()
        self.directory = Path(tempfile.mkdtemp(prefix="etcd-bench-"))
        ports = free_ports(2 * members)
        clients, peers = ports[:members], ports[members:]
        initial = ",".join(f"m{i}=http://127.0.0.1:{port}" for i, port in enumerate(peers))
        self.members = [
            self._member(f"m{i}", f"http://127.0.0.1:{clients[i]}", f"http://127.0.0.1:{peers[i]}", initial)
            for i in range(members)
        ]
        self.ready_seconds = 0.0

    def _member(self, name: str, client: str, peer: str, initial: str) -> Member:
        command = ["etcd", "--name", name, "--data-dir", str(self.directory / name)]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--initial-cluster", initial, "--initial-cluster-state", "new", "--logger", "zap"]
        return Member(name, client, command, self.directory / f"{name}.log")

    def __enter__(self) -> EtcdCluster:
        began = time.monotonic()
        try:
            for member in self.members:
                member.start()
            self.wait_ready(began)
        except BaseException:
            self.close()
            raise
        self.ready_seconds = time.monotonic() - began
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for member in self.members:
            member.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def endpoints(self) -> str:
        return ",".join(member.client_url for member in self.members)

    @property
    def pids(self) -> list[int]:
        return [member.process.pid for member in self.members if member.process is not None]

    def wait_ready(self, began: float) -> None:
        """Return at the first acknowledged put."""
        body = {"key": base64.b64encode(b"ready").decode(), "value": base64.b64encode(b"1").decode()}
        while time.monotonic() - began < READY_SECONDS_MAX:
            for member in self.members:
                if member.ask("/v3/kv/put", body) is not None:
                    return
            time.sleep(0.005)
        raise RuntimeError(f"etcd was not ready within {READY_SECONDS_MAX:.0f} s; see {self.members[0].log}")

    def leader(self) -> Member:
        """The member that leads now. Raises: RuntimeError after a while without one."""
        deadline = time.monotonic() + READY_SECONDS_MAX
        while time.monotonic() < deadline:
            for member in self.members:
                status = member.ask("/v3/maintenance/status", {}) if member.process else None
                if status and status.get("leader") == status["header"]["member_id"]:
                    return member
            time.sleep(0.02)
        raise RuntimeError("etcd has no leader")

    def start_load(self, **flags: object) -> subprocess.Popen[str]:
        """The load generator as a running process; its flags are those of load.go, with `_` for `-`."""
        command = [str(build_load_generator()), "-endpoints", self.endpoints]
        command += [f"-{name.replace('_', '-')}={value}" for name, value in flags.items()]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)

    def run_load(self, **flags: object) -> dict[str, Any]:
        """Run the load generator to its end and return its report."""
        return finish_load(self.start_load(**flags))


def finish_load(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the etcd load generator failed with exit code {process.returncode}")
    report: dict[str, Any] = json.loads(output)
    return report
