"""doctor: each check finds what it looks for, and one that breaks is a finding."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Run
from zcluster.cli import doctor
from zcluster.cli.doctor import FAIL, OK, WARN


def test_a_machine_that_runs_the_tests_can_run_zcluster(run: Run) -> None:
    done = run("doctor", "--json")
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    assert report["ok"] is True
    assert [c["name"] for c in report["checks"]][:4] == ["Python", "system", "libraries", "pidfd"]
    assert "✓ Python" in run("doctor").stdout


def test_a_failed_check_is_8(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda name: [doctor.Finding("x", FAIL, "broken")])
    done = run("doctor")
    assert (done.exit_code, done.stdout) == (8, " ✗ x          broken\n")


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_sync() -> doctor.Finding:
        raise RuntimeError("oops")

    monkeypatch.setattr(doctor, "check_sync", check_sync)
    assert doctor.examine("default")[-1] == doctor.Finding("sync", FAIL, "RuntimeError: oops")


def test_without_pidfds_there_are_only_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    assert doctor.check_pidfd().verdict == WARN


def test_a_socket_path_that_is_too_long_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    finding = doctor.check_sockets("default")
    assert finding.verdict == FAIL
    assert "107" in finding.text


def test_the_socket_check_leaves_no_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    short = tmp_path / "r"
    short.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    finding = doctor.check_sockets("default")
    left = [p for p in short.rglob("*") if p.name != "zcluster"]
    assert left == []
    assert finding.verdict in (OK, FAIL)  # by how long the temporary path of this test is


def test_a_home_that_cannot_hold_data_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "file_system", lambda path: "tmpfs")
    assert "in memory" in doctor.check_home().text
    monkeypatch.setattr(doctor, "file_system", lambda path: "nfs4")
    assert "on a network" in doctor.check_home().text
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert doctor.check_home().verdict == FAIL


def test_a_slow_disk_is_found_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SLOW_SYNC_MS", -1.0)
    assert "--durability interval:10ms" in doctor.check_sync().text


def test_the_file_system_of_a_path_is_that_of_its_nearest_mount() -> None:
    assert doctor.file_system(Path("/proc/self")) == "proc"
    assert doctor.existing(Path("/proc/no/such/place")) == Path("/proc")
