"""Whoever starts one of the cluster's processes by hand, wrongly, gets one line and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zcluster.config import make_settings
from zcluster.entry import check_arguments
from zcluster.launch import layout

NODE = "zcluster.node CLUSTER_DIRECTORY NODE [--create]"
WATCHDOG_S = 60
STARTED_BY_US = (
    "zcluster.node",
    "zcluster.tasks.worker",
    "zcluster.tasks.router",
    "zcluster.launch.supervisor",
    "zcluster.launch.sweep",
)


def by_hand(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("ZCLUSTER_")},
    )


@pytest.mark.parametrize("module", STARTED_BY_US)
def test_without_arguments_the_user_learns_what_to_use_instead(module: str) -> None:
    done = by_hand(module)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "zcluster starts this by itself; use: zcluster " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_script_that_is_not_there_is_named() -> None:
    done = by_hand("zcluster.sim.script", "/no/where.txt")
    assert (done.returncode, done.stderr) == (1, "")
    assert "/no/where.txt" in done.stdout
    assert "No such file" in done.stdout


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        check_arguments(arguments, NODE)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_cluster_or_a_node_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZCLUSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    spec = layout.create("c", make_settings(nodes=1))
    check_arguments([spec.directory, "n1"], NODE)
    check_arguments([spec.directory, "n1", "--create"], NODE)
    assert "usage: python -m zcluster.node CLUSTER_DIRECTORY NODE" in refusal(capsys, spec.directory)
    assert "no cluster 'nothing'" in refusal(capsys, str(tmp_path / "nothing"), "n1")
    assert "has no node 'n7'; it has n1" in refusal(capsys, spec.directory, "n7")
    (spec.path / "cluster.json").write_text("{")
    assert "is damaged" in refusal(capsys, spec.directory, "n1")
