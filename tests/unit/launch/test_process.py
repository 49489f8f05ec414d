"""Identity, signals, descriptors, logs: what the launcher promises about single processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from zcluster.errors import Conflict
from zcluster.launch import files
from zcluster.launch import process as system

SLEEPER = "import signal\nwhile True: signal.pause()"


def spawn(tmp_path: Path, *arguments: str, **variables: str) -> system.Process:
    environment = system.child_environment(ZCLUSTER_DIRECTORY=str(tmp_path), **variables)
    return system.spawn("n1.w1", "worker", arguments, environment=environment, log=tmp_path / "log")


def end(process: system.Process) -> int | None:
    process.signal(signal.SIGKILL)
    assert process.exited(10)
    return process.reap()


def test_child_leads_a_session_and_inherits_nothing(tmp_path: Path) -> None:
    code = (
        "import os, json, signal; print(json.dumps([os.getsid(0) == os.getpgid(0) == os.getpid(),"
        " sorted(os.listdir('/proc/self/fd'), key=int)[:-1], os.readlink('/proc/self/fd/0'),"
        " signal.getsignal(signal.SIGINT) is signal.default_int_handler,"
        " sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))]))"
    )
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        child = spawn(tmp_path, "-c", code)
        os.close(write_end)
        assert child.exited(10)
        assert child.reap() == 0
        assert os.read(read_end, 1) == b"", "the pipe must have no writer left"
    finally:
        signal.signal(signal.SIGINT, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(read_end)
    assert json.loads((tmp_path / "log").read_text()) == [True, ["0", "1", "2"], "/dev/null", True, []]


def test_zombie_is_dead(tmp_path: Path) -> None:
    child = spawn(tmp_path, "-c", "pass")
    assert child.exited(10)
    stat = system.read_stat(child.pid)
    assert stat is not None
    assert stat.dead
    assert system.living(child.identity) is None
    assert system.Process.adopt(child.identity) is None
    assert child.reap() == 0


def test_reused_pid_is_another_process(tmp_path: Path) -> None:
    child = spawn(tmp_path, "-c", SLEEPER)
    try:
        until(lambda: system.read_environment(child.pid))  # exec ends the wait of posix_spawn a moment before this
        assert system.living(child.identity) is not None
        for stranger in (
            msgspec.structs.replace(child.identity, start_ticks=child.identity.start_ticks - 1),
            msgspec.structs.replace(child.identity, boot_id="another boot"),
            msgspec.structs.replace(child.identity, run_id="another run"),
        ):
            assert system.living(stranger) is None
            assert system.Process.adopt(stranger) is None
    finally:
        assert end(child) == -signal.SIGKILL


def test_kill_reaches_the_whole_group_even_a_stopped_one(tmp_path: Path) -> None:
    code = (
        "import os, signal, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}])\n"
        "print(child.pid, flush=True)\n" + SLEEPER
    )
    child = spawn(tmp_path, "-c", code)
    grandchild_pid = int(until((tmp_path / "log").read_text))
    grandchild = os.pidfd_open(grandchild_pid)
    child.signal(signal.SIGSTOP)
    system.wait_paused(child, paused=True)
    assert end(child) == -signal.SIGKILL
    assert system.readable(grandchild, 10)
    os.close(grandchild)


def test_crash_of_the_leader_takes_its_group_along(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        f"print(subprocess.Popen([sys.executable, '-c', {SLEEPER!r}]).pid, flush=True)\n"
        "import os; os._exit(3)"
    )
    child = spawn(tmp_path, "-c", code)
    assert child.exited(10)
    grandchild = os.pidfd_open(int((tmp_path / "log").read_text()))
    assert child.reap() == 3
    assert system.readable(grandchild, 10)
    os.close(grandchild)


def test_adopted_process_has_no_exit_code(tmp_path: Path) -> None:
    child = spawn(tmp_path, "-c", SLEEPER)
    adopted = system.Process.adopt(child.identity)
    assert adopted is not None
    adopted.signal(signal.SIGKILL)
    assert adopted.exited(10)
    assert adopted.reap() is None
    assert child.reap() == -signal.SIGKILL
    assert [system.describe_exit(code) for code in (None, 3, -9, -64)] == ["unknown", "exit 3", "SIGKILL", "SIGRTMAX"]


def test_processes_are_found_by_the_cluster_they_were_started_for(tmp_path: Path) -> None:
    child = spawn(tmp_path, "-c", SLEEPER, ZCLUSTER_PROCESS="n1.w1")
    try:
        until(lambda: system.read_environment(child.pid))
        ((pid, variables),) = system.find_processes(tmp_path)
        assert pid == child.pid
        assert variables["ZCLUSTER_PROCESS"] == "n1.w1"
        assert variables["ZCLUSTER_RUN_ID"] == child.identity.run_id
    finally:
        end(child)


def test_owner_is_watched_by_pid_and_start(tmp_path: Path) -> None:
    child = spawn(tmp_path, "-c", SLEEPER)
    text = system.owner_text(child.pid)
    descriptor = system.open_owner(text)
    assert descriptor is not None
    assert not system.readable(descriptor)
    assert system.open_owner(f"{child.pid}:1") is None
    end(child)
    assert system.readable(descriptor)
    assert system.open_owner(text) is None
    os.close(descriptor)


def test_run_files_are_written_whole_and_bad_ones_ignored(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    me = system.identify_self("supervisor")
    files.write_run_file(tmp_path, me)
    (tmp_path / "run" / "n1.json").write_text('{"pid": 1')
    assert files.read_run_files(tmp_path) == {"supervisor": me}
    files.remove_run_file(tmp_path, "supervisor")
    files.remove_run_file(tmp_path, "supervisor")
    assert files.read_run_file(tmp_path, "supervisor") is None


def test_lock_is_exclusive_and_not_inherited(tmp_path: Path) -> None:
    held = files.lock(tmp_path / "lock")
    child = spawn(tmp_path, "-c", SLEEPER)
    try:
        with pytest.raises(Conflict, match="another supervisor"):
            files.lock(tmp_path / "lock")
        files.unlock(held)
        files.unlock(files.lock(tmp_path / "lock"))
    finally:
        end(child)


def test_full_log_is_cut_while_its_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "n1.log"
    writer = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(writer, b"old" * 100 + b"new" * 100)
    assert not files.rotate_log(log, 600)
    assert files.rotate_log(log, 300)
    os.write(writer, b"after\n")
    os.close(writer)
    assert log.read_bytes() == b"after\n"
    assert (tmp_path / "n1.log.1").read_bytes() == b"new" * 100
    assert files.log_tail(log) == "after"
    assert not files.rotate_log(tmp_path / "absent")


def test_child_can_import_what_runs_here_and_not_what_lies_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zmq.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "lib")
    monkeypatch.setenv("ZCLUSTER_OWNER", "1:1")
    environment = system.child_environment()
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path / "lib")
    assert "ZCLUSTER_OWNER" not in environment
    child = spawn(tmp_path, "-c", "import zmq, zcluster.wire")
    assert child.exited(10)
    assert child.reap() == 0, (tmp_path / "log").read_text()


def test_other_systems_get_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(Exception, match=r"on Windows use it inside WSL2"):
        system.require_linux()


def test_importing_the_launcher_is_cheap() -> None:
    code = (
        "import sys, zcluster.launch.supervisor; print([m for m in ('asyncio', 'subprocess', 'click', 'rich', 'psutil',"
        " 'cloudpickle', 'zmq', 'multiprocessing') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def until(condition, timeout_s: float = 10.0):  # type: ignore[no-untyped-def]
    give_up = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < give_up, "nothing happened"
        time.sleep(0.002)
    return found
