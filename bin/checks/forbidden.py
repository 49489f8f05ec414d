#!/usr/bin/env python3
"""Things that may not be in the code: stubs, debug output, hidden randomness.

Everywhere: notes to finish something later, and `raise NotImplementedError`. In the library (the `zcluster` package):
`print` outside the command line, the module-level functions of `random` (a seeded `random.Random` is handed in
instead), and `breakpoint`.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from sources import python_files

# Spelled in pieces, so that this file passes its own check.
_LATER = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b")
_NOT_DONE = {"NotImplementedError", "NotImplemented"}
_RANDOM_ALLOWED = {"Random", "SystemRandom"}
_PRINT_ALLOWED = ("cli",)


def check_comments(path: Path, text: str) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            found = _LATER.search(token.string)
            # In a string only at the start of a docstring's line would be a note; a comment always is one.
            if found and (token.type == tokenize.COMMENT or token.string.startswith(('"""', "'''"))):
                yield f"{path}:{token.start[0]}: {found[0]}: finish it or file an issue"


def _name(node: ast.expr | None) -> str:
    """`a` for a name and for a call of it, `a.b` for an attribute of a name, otherwise empty."""
    if isinstance(node, ast.Call):
        return _name(node.func)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def check_stubs(path: Path, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and _name(node.exc) in _NOT_DONE:
            yield f"{path}:{node.lineno}: a stub: raise {_name(node.exc)}"


def check_library(path: Path, tree: ast.Module, package_path: tuple[str, ...]) -> Iterator[str]:
    may_print = bool(package_path) and package_path[0] in _PRINT_ALLOWED
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = _name(node)
        if name == "print" and not may_print:
            yield f"{path}:{node.lineno}: print in library code; only the command line prints"
        elif name == "breakpoint":
            yield f"{path}:{node.lineno}: breakpoint left in"
        elif name.startswith("random.") and name.removeprefix("random.") not in _RANDOM_ALLOWED:
            yield f"{path}:{node.lineno}: {name} uses global state; pass a random.Random"


def check_file(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text, str(path))
    yield from check_comments(path, text)
    yield from check_stubs(path, tree)
    parts = path.parts
    if "zcluster" in parts and "tests" not in parts:
        inside = parts[len(parts) - parts[::-1].index("zcluster") :]
        if inside:  # empty for bin/zcluster, a script
            yield from check_library(path, tree, inside)


def main(roots: list[str]) -> int:
    problems = [problem for path in python_files(roots) for problem in check_file(path)]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["."]))
