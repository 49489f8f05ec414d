#!/usr/bin/env python3
"""Size caps: a file warns above 400 lines and fails above 700; a function fails above 70.

A function's lines are counted from `def` to its last line, without its decorators and without its docstring: a
contract written out in full should never be a reason to split code.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from sources import python_files

FILE_LINES_SOFT = 400
FILE_LINES_MAX = 700
FUNCTION_LINES_MAX = 70


def function_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None and len(function.body) > 1:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def check_file(path: Path) -> Iterator[tuple[bool, str]]:
    """Yield (is an error, message) for each cap that `path` exceeds."""
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n") + (not text.endswith("\n") and bool(text))
    if lines > FILE_LINES_MAX:
        yield True, f"{path}: {lines} lines, the cap is {FILE_LINES_MAX}"
    elif lines > FILE_LINES_SOFT:
        yield False, f"{path}: {lines} lines, above the soft cap of {FILE_LINES_SOFT}"
    for node in ast.walk(ast.parse(text, str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = function_lines(node)
            if lines > FUNCTION_LINES_MAX:
                yield True, f"{path}:{node.lineno}: {node.name} has {lines} lines, the cap is {FUNCTION_LINES_MAX}"


def main(roots: list[str]) -> int:
    failed = False
    for path in python_files(roots):
        for is_error, message in check_file(path):
            print(message if is_error else f"warning: {message}")
            failed = failed or is_error
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["."]))
