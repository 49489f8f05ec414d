"""Stories of a cluster as data: commands in, what the replicas do out. The language: `tests/scripts/README.md`.

    # Why the output below is right.          A block: commands, `----`, what they print, an empty line.
    campaign 1                                A script is right when replaying it gives the script again;
    stabilize                                 so `replay` is all there is, and regenerating is writing its result.
    ----
    1 leads term 1

The replicas are production cores. Around them everything is by hand: time stands still, messages lie on the wires and
written data waits on a stalled disk until a command says otherwise. So a story is exact and has no randomness but the
seeded election timeouts. After every input the cores' invariants are checked, and what must hold of all replicas
together: one leader a term, one entry an index, no commit without a durable majority, no stale read.

    python -m zcluster.sim.script [--write] FILE..

Does not live here: seeds, random faults and real files (the simulator); node, machines and clients.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from zcluster.sim.script_parts import ScriptError, Violation
from zcluster.sim.script_world import World

__all__ = ["ScriptError", "Violation", "World", "main", "replay"]


def replay(text: str) -> str:
    """The script with the output that its commands give now; a right script comes back as it is.

    Raises: ScriptError, Violation; both with the line.
    """
    world = World()
    written: list[str] = []
    for line, comments, commands in _blocks(text):
        output: list[str] = []
        for offset, command in enumerate(commands):
            try:
                output += world.run(command)
            except ScriptError as error:
                raise ScriptError(error.reason, line + offset) from error.__cause__
            except Violation as violation:
                raise Violation(f"line {line + offset}: {command}: {violation}") from violation.__cause__
        written += [*comments, *commands, *(["----", *output] if commands else []), ""]
    return "\n".join(written[:-1]) + "\n"


def _blocks(text: str) -> Iterator[tuple[int, list[str], list[str]]]:
    """(line of the first command, comments and empty lines before it, commands); output is left out."""
    comments: list[str] = []
    commands: list[str] = []
    first, in_output = 0, False
    for position, line in enumerate([*text.splitlines(), ""], 1):
        if line.strip() and in_output:
            continue
        if not line.strip():
            if commands and not in_output:
                raise ScriptError("a block needs `----` behind its commands", position)
            if commands or comments:
                yield first, comments, commands
            comments, commands, in_output = [], [], False
        elif line == "----":
            in_output = True
        elif line.startswith("#"):
            comments.append(line)
        else:
            first = first if commands else position
            commands.append(line)


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay scripts; print what differs. Returns 0, or 1 where something did and was not written."""
    parser = argparse.ArgumentParser(prog="python -m zcluster.sim.script", description="Replay scripts of a cluster.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--write", action="store_true", help="put the output that comes into the file")
    options = parser.parse_args(arguments)
    failed = False
    for path in options.files:
        try:
            text = path.read_text()
            now = replay(text)
        except (ScriptError, Violation, OSError, UnicodeDecodeError) as error:
            sys.stdout.write(f"{path}: {error}\n")
            failed = True
            continue
        if now != text and options.write:
            path.write_text(now)
        elif now != text:
            sys.stdout.writelines(difflib.unified_diff(text.splitlines(True), now.splitlines(True), str(path), "now"))
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
