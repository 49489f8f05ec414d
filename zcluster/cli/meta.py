"""Verbs about the tool itself: config, completion, version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zcluster.cli.context import App, pass_app
from zcluster.cli.main import COMPLETE_VARIABLE, VerbGroup, show_version, verb


@click.group("config", cls=VerbGroup)
def config() -> None:
    """Show the settings a new cluster would get: `config show`."""


@config.command("show")
@click.option("--origin", is_flag=True, help="Where each one comes from.")
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), metavar="FILE", help="In place of ./zcluster.toml."
)
@pass_app
def show(app: App, origin: bool, config_file: Path | None) -> None:
    """The settings as they can be written into zcluster.toml.

    A flag of `up` beats ZCLUSTER_<SETTING>, which beats ./zcluster.toml, which beats
    $XDG_CONFIG_HOME/zcluster/config.toml, which beats the default.
    """
    from zcluster.cli.config_sources import gather, with_defaults

    settings = with_defaults(gather({}, config_file=config_file))
    app.emit({"settings": {k: {"value": s.value, "origin": s.origin} for k, s in settings.items()}})
    assignments = [f"{key} = {_toml(sourced.value)}" for key, sourced in settings.items()]
    longest = max(map(len, assignments))
    for assignment, sourced in zip(assignments, settings.values(), strict=True):
        app.show(f"{assignment:<{longest}}  # {sourced.origin}" if origin else assignment)


def _toml(value: Any) -> str:
    import json

    return json.dumps(value)  # whole numbers and plain text are written alike in both


@verb("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@pass_app
def completion(app: App, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash   zcluster completion bash > ~/.local/share/bash-completion/completions/zcluster
    zsh    zcluster completion zsh > "${fpath[1]}/_zcluster"
    fish   zcluster completion fish > ~/.config/fish/completions/zcluster.fish
    """
    from click.shell_completion import get_completion_class

    from zcluster.cli.main import root

    kind = get_completion_class(shell)
    assert kind is not None
    source = kind(root, {}, "zcluster", COMPLETE_VARIABLE).source()
    app.emit({"shell": shell, "script": source})
    app.show(source)


@verb("version")
@pass_app
def version(app: App) -> None:
    """Print the version."""
    show_version(app)
