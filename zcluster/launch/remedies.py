"""What helps: for each state of trouble in a status, the words that say what to do. Pure.

A node that was killed is started. One that refuses its data, or whose disk has failed, would only refuse again: first
its cause has to go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

Map = dict[str, Any]

_WIPE: Final = "--wipe"
_TOO_NEW: Final = "FormatTooNew"
_DISK: Final = ("StorageError", "its disk failed")
"""How the reasons of a failed or full disk begin: as the node writes them, and as the supervisor guesses them."""


def start(command: str, nodes: Sequence[Map], directory: str) -> list[str]:
    """For nodes that are down. `command`: how this cluster is called, without a verb.

    A node whose data are lost says itself that it is to be wiped, where that is safe.
    """
    plain = [node["name"] for node in nodes if not node["failure"]]
    fixes = [f"{command} start {' '.join(plain)}"] if plain else []
    return fixes + [_after_failure(command, node, directory) for node in nodes if node["failure"]]


def _after_failure(command: str, node: Map, directory: str) -> str:
    name, failure = node["name"], node["failure"]
    if _WIPE in failure:
        return f"{command} start {name} {_WIPE}"
    again = f"then: {command} start {name}"
    if failure.startswith(_TOO_NEW):
        return f"upgrade zcluster, {again}"
    if failure.startswith(_DISK):
        return f"see to the disk of {directory} (is it full?), {again}"
    return f"put the data of {name} back in {directory}/data/{name}, {again}"


def election(command: str, nodes: Sequence[Map]) -> tuple[list[str], list[str]]:
    """(problems, fixes) where no leader can be elected because the power went in a weak durability mode: a majority is
    not enough then, since any voter may be the only one that still has what was acknowledged."""
    absent = [node["name"] for node in nodes if not node["responsive"]]
    if not absent or not any(node.get("suspect") for node in nodes):
        return [], []
    names = " and ".join(absent)
    problem = (
        f"after a power failure with this durability the first election needs every voter, and {names} "
        f"{'is' if len(absent) == 1 else 'are'} missing"
    )
    candidates = [node for node in nodes if node["responsive"]]
    best = max(candidates, key=lambda node: (node.get("term") or 0, node.get("last_index") or 0))["name"]
    force = f"if {names} cannot come back, give up what only {'it' if len(absent) == 1 else 'they'} had: "
    return [problem], [f"{force}{command} recover --force-new {best}"]


def workers(report: Map, registered: int) -> list[str]:
    """Workers that are not there, and why they died where that is known."""
    expected = report["workers_expected"]
    missing = expected - registered
    if missing <= 0:
        return []
    reasons = dict.fromkeys(worker["exit"] for worker in report["workers_down"] if worker["exit"])
    return [f"{missing} of {expected} workers are not there" + (f": {', '.join(reasons)}" if reasons else "")]
