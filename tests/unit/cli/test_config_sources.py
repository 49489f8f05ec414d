"""Settings: flag, environment, ./zcluster.toml, the user's file, default; each with its origin, each checked."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import msgspec
import pytest

from tests.unit.cli.conftest import Run
from zcluster.cli.config_sources import Sourced, gather, with_defaults
from zcluster.config import Settings
from zcluster.errors import InvalidInput


@pytest.fixture
def here() -> Path:
    """./zcluster.toml"""
    return Path.cwd() / "zcluster.toml"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """$XDG_CONFIG_HOME/zcluster/config.toml"""
    path = tmp_path / "config" / "zcluster" / "config.toml"
    path.parent.mkdir(parents=True)
    return path


def test_nothing_given_gives_nothing_and_defaults_fill_up() -> None:
    assert gather({"nodes": None}) == {}
    filled = with_defaults({})
    assert {k: s.value for k, s in filled.items()} == msgspec.structs.asdict(Settings())
    assert {s.origin for s in filled.values()} == {"default"}


def test_each_source_beats_the_next(here: Path, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own.write_text("nodes = 1\nworkers = 1\nqueue_max = 11\nattempts_max = 1\n")
    here.write_text("nodes = 2\nworkers = 2\nqueue_max = 22\n")
    monkeypatch.setenv("ZCLUSTER_NODES", "3")
    monkeypatch.setenv("ZCLUSTER_WORKERS", "3")
    assert gather({"nodes": 4, "workers": None}) == {
        "nodes": Sourced(4, "flag", explicit=True),
        "workers": Sourced(3, "environment ZCLUSTER_WORKERS"),
        "queue_max": Sourced(22, str(here)),
        "attempts_max": Sourced(1, str(own)),
    }


def test_a_named_file_takes_the_place_of_the_one_here_and_is_explicit(here: Path, tmp_path: Path) -> None:
    here.write_text("nodes = 2\n")
    other = tmp_path / "other.toml"
    other.write_text("workers = 2\n")
    assert gather({}, config_file=other) == {"workers": Sourced(2, str(other), explicit=True)}


def test_variables_that_are_no_settings_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZCLUSTER_NAME", "x")
    monkeypatch.setenv("ZCLUSTER_WHATEVER", "y")
    monkeypatch.setenv("ZCLUSTER_NODES", "")
    assert gather({}) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodez = 3\n", "unknown key 'nodez'; known: nodes, workers"),
        ("name = 'x'\n", "unknown key 'name'; choose a cluster with -c or ZCLUSTER_NAME"),
        ("[cluster]\nnodes = 3\n", "unknown key 'cluster'"),
        ("nodes = '3'\n", "nodes must be a whole number, not '3'"),
        ("nodes = true\n", "nodes must be a whole number, not True"),
        ("durability = 3\n", "durability must be text in quotes, not 3"),
        ("nodes = \n", "is not valid TOML"),
        ("nodes = 99\n", "nodes must be a whole number from 1 to 9, not 99"),
        ("heartbeat_ms = 500\nelection_timeout_ms = 600\n", "heartbeat_ms must be at most a third"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_key(here: Path, text: str, message: str) -> None:
    here.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        gather({})
    assert str(here) in str(caught.value)
    assert message in str(caught.value)


def test_two_settings_that_bound_each_other_are_judged_together(here: Path) -> None:
    here.write_text("heartbeat_ms = 500\nelection_timeout_ms = 3000\n")
    assert gather({})["heartbeat_ms"].value == 500


def test_a_bad_variable_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZCLUSTER_NODES", "three")
    with pytest.raises(InvalidInput, match="ZCLUSTER_NODES: must be a whole number, not 'three'"):
        gather({})
    monkeypatch.setenv("ZCLUSTER_NODES", "30")
    with pytest.raises(InvalidInput, match="environment ZCLUSTER_NODES: nodes must be"):
        gather({})


def test_a_bad_flag_is_refused_without_an_origin() -> None:
    with pytest.raises(InvalidInput, match=r"^durability 'often'"):
        gather({"durability": "often"})


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="there is no file"):
        gather({}, config_file=tmp_path / "absent.toml")
    with pytest.raises(InvalidInput, match="cannot read"):
        gather({}, config_file=tmp_path)


def test_config_show_can_be_saved_as_a_file(run: Run, here: Path) -> None:
    here.write_text("durability = 'interval:10ms'\n")
    shown = run("config", "show")
    assert shown.exit_code == 0
    assert tomllib.loads(shown.stdout) == msgspec.structs.asdict(Settings(durability="interval:10ms"))


def test_config_show_tells_origins(run: Run, here: Path) -> None:
    here.write_text("nodes = 5\n")
    lines = run("config", "show", "--origin").stdout.splitlines()
    assert lines[0].split(maxsplit=3) == ["nodes", "=", "5", f"# {here}"]
    assert lines[1].split(maxsplit=3) == ["workers", "=", "1", "# default"]
    settings = json.loads(run("config", "show", "--json").stdout)["settings"]
    assert settings["nodes"] == {"value": 5, "origin": str(here)}
