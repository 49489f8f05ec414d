"""The command line as a user has it: real processes, a real cluster, from any directory."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-P", "-m", "zcluster"]


def z(*arguments: str, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """One call; its exit code must be `code`."""
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=60, **options)
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def z_json(*arguments: str, code: int = 0) -> dict[str, Any]:
    """One call with --json: exactly one object on standard output."""
    found = json.loads(z(*arguments, "--json", code=code).stdout)
    assert found["version"] == 1
    return dict(found)


@pytest.fixture
def cluster(private_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Three nodes started by `up`; called from another directory than any other test."""
    monkeypatch.chdir(tmp_path)
    started = z_json("up")
    yield started
    z("down", "--all", "--purge")
    assert os.listdir(private_home) == []


def test_a_day_of_a_cluster(cluster: dict[str, Any], tmp_path: Path) -> None:
    assert cluster["ready"] is True
    assert [node["name"] for node in cluster["nodes"]] == ["n1", "n2", "n3"]
    assert len(cluster["workers"]) == 3

    # Data: bytes in, bytes out; every outcome has its code.
    z("put", "greeting", "hello")
    assert z("get", "greeting").stdout == "hello"
    raw = bytes(range(256))
    subprocess.run([*COMMAND, "put", "raw", "-"], input=raw, check=True, capture_output=True)
    assert subprocess.run([*COMMAND, "get", "raw"], check=True, capture_output=True).stdout == raw
    z("get", "absent", code=9)
    z("cas", "greeting", "hello", "goodbye")
    z("cas", "greeting", "hello", "x", code=6)
    z("put", "big", "-", code=2, input="x" * (2 << 20))

    # Tasks.
    assert z("submit", "math:factorial", "20").stdout == "2432902008176640000\n"
    assert "ValueError" in z("submit", "math:sqrt", "-1", code=10).stderr
    (tmp_path / "mine.py").write_text("def double(x):\n    return 2 * x\n")
    assert z("submit", "mine:double", "21").stdout == "42\n"
    (tmp_path / "script.py").write_text(
        "import sys, zcluster\n"
        "with zcluster.connect() as client:\n"
        "    print(client.kv.get('greeting'), list(client.map(lambda x: x + 1, [1, 2])), sys.argv[1:])\n"
        "sys.exit(7)\n"
    )
    assert z("run", "script.py", "--json", "a", code=7).stdout == "b'goodbye' [2, 3] ['--json', 'a']\n"

    # The leader is killed: everything acknowledged is there, the status says what to do, and it helps.
    before = z_json("status")
    killed = z_json("kill", "leader")["killed"]
    assert killed == [before["leader"]]
    z("wait", "--for", "leader")
    assert z("get", "greeting").stdout == "goodbye"
    table = z("status", code=4).stdout.splitlines()
    assert table[0].startswith("default   DEGRADED 2/3 up · quorum ok · leader n")
    assert any(f"{killed[0]}    ✗ killed" in line for line in table)
    assert table[-1] == f"Fix: zcluster start {killed[0]}"
    z("start", killed[0])
    z("wait", "--for", "healthy")
    after = z_json("status")
    assert (after["state"], after["term"] > before["term"]) == ("healthy", True)

    # A second `up` changes nothing; another one contradicts.
    assert "nothing changed" in z("up").stdout
    conflict = z_json("up", "-n", "5", code=6)["error"]
    assert conflict["type"] == "Conflict"
    assert "nodes is 3, not 5" in conflict["message"]

    # Stopped and started again, the data are there.
    z("checkpoint")
    z("down")
    z("status", code=3)
    z("get", "greeting", code=3)
    z("down")
    z("up")
    assert z("get", "greeting").stdout == "goodbye"


def test_pausing_stopping_and_restarting_nodes(cluster: dict[str, Any]) -> None:
    assert z_json("pause", "followers")["paused"] != []
    status = z_json("status", code=5)
    assert status["state"] == "no_quorum"
    refused = subprocess.run(
        [*COMMAND, "put", "k", "v", "--timeout", "1s"], capture_output=True, text=True, check=False
    )
    assert refused.returncode in (5, 7)  # 5: certainly not applied; 7: the leader had taken it before it stepped down
    z("resume")
    z("wait")
    z("stop", "n1")
    assert "✗ stopped" in z("status", code=4).stdout
    z("start")
    z("restart", "n2", "n3")
    z("wait")
    assert "n1 incarnation 2 started" in z("logs", "n1").stdout
    assert [c["nodes_up"] for c in z_json("ls")["clusters"]] == [3]


def test_several_clusters_at_once_do_not_mix(cluster: dict[str, Any]) -> None:
    z("up", "-c", "two", "-n", "1", "-w", "0", "--durability", "interval:10ms")
    z("put", "-c", "two", "k", "two")
    z("get", "k", code=9)
    assert z("get", "k", env={**os.environ, "ZCLUSTER_NAME": "two"}).stdout == "two"
    assert "may lose the last 10ms" in z("status", "-c", "two").stdout
    z("submit", "-c", "two", "math:sqrt", "4", code=6)
    assert [c["cluster"] for c in z_json("ls")["clusters"]] == ["default", "two"]
    z("down", "--all")
    assert [c["state"] for c in z_json("ls")["clusters"]] == ["stopped", "stopped"]


def test_bench_reports_what_programs_rely_on(cluster: dict[str, Any], tmp_path: Path) -> None:
    kv = z_json("bench", "kv", "--duration", "500ms", "--warmup", "100ms", "--callers", "8", "-o", "out.json")
    assert kv["operations"] > 0
    assert kv["errors"] == 0
    assert kv["settings"]["durability"] == "fsync"
    assert json.loads((tmp_path / "out.json").read_text()) == kv
    tasks = z_json("bench", "tasks", "--duration", "500ms", "--warmup", "100ms", "--rate", "50")
    assert (tasks["mode"], tasks["errors"]) == ("open", 0)
    z("bench", "kv", "--duration", "200ms", "--warmup", "0", "--slo", "p50=1us", code=8)


def test_the_demo_loses_nothing() -> None:
    story = z_json("demo")
    assert story["survived"] is True
    assert story["read_back"] == story["keys_written"] + story["acknowledged"]
    assert 0 < story["without_service_ms"] < 10_000
    assert story["new_leader"] != story["killed"]


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.output = ""
        self._descriptor, theirs = pty.openpty()
        take_it = (
            "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
        )
        command = [sys.executable, "-c", take_it, *COMMAND, *arguments]
        self._process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, close_fds=True
        )
        os.close(theirs)

    def read_until(self, text: str, timeout_s: float = 30.0) -> None:
        """Until `text` was shown. Raises: AssertionError."""
        give_up = time.monotonic() + timeout_s
        while text not in self.output:
            assert select.select([self._descriptor], [], [], max(0.0, give_up - time.monotonic()))[0], self.output
            self.output += os.read(self._descriptor, 4096).decode(errors="replace")

    def press_ctrl_c(self) -> None:
        os.write(self._descriptor, b"\x03")

    def exit_code(self) -> int:
        try:
            while part := os.read(self._descriptor, 4096):
                self.output += part.decode(errors="replace")
        except OSError:
            pass  # the other end is closed: it has ended
        os.close(self._descriptor)
        return self._process.wait(30)


def test_ctrl_c_ends_a_foreground_cluster_cleanly() -> None:
    terminal = Terminal("up", "-f")
    terminal.read_until("In the foreground")
    assert z_json("status")["state"] == "healthy"
    terminal.press_ctrl_c()
    assert terminal.exit_code() == 130
    assert "stopped; the data are kept" in terminal.output
    z("status", code=3)
    z("down", "--purge")


def test_ctrl_c_twice_ends_it_now_and_loses_nothing() -> None:
    terminal = Terminal("up", "-f")
    terminal.read_until("In the foreground")
    z("put", "k", "v")
    z("pause", "n1")  # it cannot stop cleanly
    terminal.press_ctrl_c()
    terminal.read_until("again: at once")
    terminal.press_ctrl_c()
    assert terminal.exit_code() == 130
    z("up")
    assert z("get", "k").stdout == "v"
    z("down", "--purge")


def test_sigterm_ends_a_foreground_cluster_cleanly() -> None:
    process = subprocess.Popen(
        [*COMMAND, "up", "-f", "-n", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "In the foreground" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=30)
    assert (process.returncode, rest.endswith("stopped; the data are kept\n")) == (0, True)
    z("down", "--purge")


def test_status_on_a_terminal_is_drawn_and_watch_ends_with_ctrl_c(cluster: dict[str, Any]) -> None:
    terminal = Terminal("status", "--watch")
    terminal.read_until("HEALTHY")
    terminal.read_until("Router:")
    terminal.press_ctrl_c()
    assert terminal.exit_code() == 130


def test_following_logs_shows_what_happens_meanwhile(cluster: dict[str, Any]) -> None:
    terminal = Terminal("logs", "-f", "n1")
    terminal.read_until("incarnation 1 started")
    z("restart", "n1")
    terminal.read_until("incarnation 2 started")
    terminal.press_ctrl_c()
    assert terminal.exit_code() == 130


def test_help_comes_within_the_promised_time() -> None:
    times = []
    for _ in range(5):
        began = time.monotonic()
        z("--help")
        times.append(time.monotonic() - began)
    assert min(times) < 0.5  # 0.2 s on a quiet machine; tests share theirs


def test_every_process_stops_when_asked_all_at_the_same_moment(private_home: Path) -> None:
    """What ends the router also ends a worker's connection, just when the worker is asked to stop itself."""
    for _ in range(6):
        z("up")
        z("down", "-t", "300s")  # no process is killed before the time limit of `z`
    z("down", "--purge")
