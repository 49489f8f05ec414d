"""backup, restore, transfer and verify as a user calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-P", "-m", "zcluster"]


def z(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def z_json(*arguments: str, code: int = 0) -> dict[str, Any]:
    return dict(json.loads(z(*arguments, "--json", code=code).stdout))


@pytest.fixture
def cluster(private_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    monkeypatch.chdir(tmp_path)
    yield z_json("up", "-w", "0")
    z("down", "--all", "--purge")
    assert os.listdir(private_home) == []


def test_a_cluster_is_saved_and_brought_back(cluster: dict[str, Any], tmp_path: Path) -> None:
    z("put", "k", "v")
    saved = z_json("backup", "monday.zb")
    assert (saved["keys"], saved["revision"], saved["backup_format"]) == (1, 1, 1)
    assert sorted(os.listdir(tmp_path)) == ["home", "monday.zb"], "no temporary file is left"
    assert "left alone" in z("backup", "monday.zb", code=6).stderr
    z("put", "k2", "v2")
    assert z_json("backup", "monday.zb", "--yes", "--node", "leader")["keys"] == 2
    assert "2 keys" in z("backup", "--verify", "monday.zb").stdout
    z("backup", "tuesday.zb", "--node", "n7", code=2)
    assert "already a cluster" in z("restore", "monday.zb", code=6).stderr
    restored = z_json("-c", "copy", "restore", "monday.zb", "-n", "1")
    assert (restored["ready"], len(restored["nodes"]), restored["restored"]["keys"]) == (True, 1, 2)
    assert z("-c", "copy", "get", "k2").stdout == "v2"
    whole = (tmp_path / "monday.zb").read_bytes()
    (tmp_path / "cut.zb").write_bytes(whole[:-1])
    assert "cut off" in z("-c", "third", "restore", "cut.zb", code=8).stderr
    z("backup", "--verify", "cut.zb", code=8)
    (tmp_path / "newer.zb").write_bytes(whole[:8] + b"\x09" + whole[9:])
    assert "newer" in z("-c", "third", "restore", "newer.zb", code=6).stderr
    z("-c", "third", "restore", "nowhere.zb", code=2)
    assert z("ls").stdout.count("running") == 2


def test_leadership_is_moved_and_the_states_compared(cluster: dict[str, Any]) -> None:
    z("put", "k", "v")
    follower = next(node["name"] for node in cluster["nodes"] if node["name"] != cluster["leader"])
    assert z_json("transfer", follower)["leader"] == follower
    assert z_json("status")["leader"] == follower
    z("transfer", "n8", code=2)
    found = z_json("verify")
    assert (found["equal"], found["missing"], len(set(found["digests"].values()))) == (True, [], 1)
    assert "Verified: equal states of n1 n2 n3" in z("status").stdout
    z("stop", "n1")
    z("transfer", "n1", code=6)
    assert "n1 could not be compared" in z("verify", code=4).stderr
    assert "stop it first" in z("recover", "--force-new", "n1", "--yes", code=6).stderr
