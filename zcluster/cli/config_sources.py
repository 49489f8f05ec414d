"""Settings from where users put them, each with its origin.

    flag > ZCLUSTER_<SETTING> > ./zcluster.toml (or --config FILE) > $XDG_CONFIG_HOME/zcluster/config.toml > default

A file holds settings at its top level, by their names in `config.Settings`: `nodes = 5`. Not here: their ranges
(`config.make_settings` checks those); here a value only has to have the right type, so that the message can name the
file or variable it came from.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from zcluster.config import Settings, make_settings
from zcluster.errors import InvalidInput

FLAG = "flag"
DEFAULT = "default"
FILE_NAME = "zcluster.toml"


class Sourced(NamedTuple):
    """A setting's value and where it was given. `explicit`: on the command line, by a flag or in the --config file."""

    value: Any
    origin: str
    explicit: bool = False


def gather(
    flags: Mapping[str, Any],
    *,
    config_file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> dict[str, Sourced]:
    """What was given anywhere, by the rules of precedence; settings nobody gave are absent.

    Args:
        flags: of the command line; None means not given.
        config_file: takes the place of ./zcluster.toml; it must exist.
        environment, directory: default to the process's own.
    Raises: InvalidInput, naming the file or variable and the key.
    """
    environment = os.environ if environment is None else environment
    found: dict[str, Sourced] = {}
    for path, required in _files(config_file, environment, directory or Path.cwd()):
        for key, value in read_file(path, required=required).items():
            found[key] = Sourced(value, str(path), explicit=required)
    for key, kind in _kinds().items():
        variable = f"ZCLUSTER_{key.upper()}"
        if environment.get(variable):
            found[key] = Sourced(_parse(variable, environment[variable], kind), f"environment {variable}")
    for key, value in flags.items():
        if value is not None:
            found[key] = Sourced(value, FLAG, explicit=True)
    for key, sourced in found.items():  # each by itself, so that the message can say where it came from
        try:
            make_settings(**_with_partner(key, sourced.value, found))
        except InvalidInput as error:
            raise InvalidInput(str(error) if sourced.origin == FLAG else f"{sourced.origin}: {error}") from None
    return found


def with_defaults(given: Mapping[str, Sourced]) -> dict[str, Sourced]:
    """Every setting, in the order of `Settings`."""
    defaults = msgspec.structs.asdict(Settings())
    return {key: given.get(key, Sourced(value, DEFAULT)) for key, value in defaults.items()}


def read_file(path: Path, *, required: bool) -> dict[str, Any]:
    """The settings in a file; an absent one holds none unless `required`. Raises: InvalidInput."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        if required:
            raise InvalidInput(f"there is no file {path}") from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path} is not valid TOML: {error}") from None
    kinds = _kinds()
    for key, value in content.items():
        if key not in kinds:
            advice = (
                "choose a cluster with -c or ZCLUSTER_NAME"
                if key in ("name", "cluster")
                else f"known: {', '.join(kinds)}"
            )
            raise InvalidInput(f"{path}: unknown key {key!r}; {advice}")
        if type(value) is not kinds[key]:
            wanted = "a whole number" if kinds[key] is int else "text in quotes"
            raise InvalidInput(f"{path}: {key} must be {wanted}, not {value!r}")
    return content


def _files(config_file: Path | None, environment: Mapping[str, str], directory: Path) -> list[tuple[Path, bool]]:
    """(path, must exist), the weakest first."""
    base = environment.get("XDG_CONFIG_HOME")
    own = (Path(base) if base else Path.home() / ".config") / "zcluster" / "config.toml"
    return [(own, False), (config_file, True) if config_file is not None else (directory / FILE_NAME, False)]


def _kinds() -> dict[str, type]:
    """Setting -> int or str, as its default is."""
    return {key: type(value) for key, value in msgspec.structs.asdict(Settings()).items()}


def _parse(variable: str, text: str, kind: type) -> Any:
    if kind is int:
        try:
            return int(text)
        except ValueError:
            raise InvalidInput(f"environment {variable}: must be a whole number, not {text!r}") from None
    return text


_PARTNERS = {"heartbeat_ms": "election_timeout_ms", "election_timeout_ms": "heartbeat_ms"}


def _with_partner(key: str, value: Any, found: Mapping[str, Sourced]) -> dict[str, Any]:
    """Two settings bound each other: judged together where both were given."""
    partner = _PARTNERS.get(key)
    return {key: value} | ({partner: found[partner].value} if partner in found and partner is not None else {})
