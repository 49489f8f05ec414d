"""What the scenarios share: options, the facts of the machine, alternating rounds, medians, tables, results on disk."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from zcluster.bench.result import conditions

RESULTS = Path(__file__).resolve().parent / "results"


def options(description: str, rounds: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds of each contestant, alternating")
    parser.add_argument("--quick", action="store_true", help="one short round: does it work, not how fast is it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured to FILE")
    return parser


def facts(**more: Any) -> dict[str, Any]:
    """What a reader must know about the machine to judge a figure."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return {
        **conditions(),
        "cpu": models[0] if models else platform.machine(),
        "kernel": platform.release(),
        "file_system": file_system(tempfile.gettempdir()),
        "load_average": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
        **more,
    }


def file_system(path: str) -> str:
    real = os.path.realpath(path)
    mounts = [mount for mount in psutil.disk_partitions(all=True) if real.startswith(mount.mountpoint)]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype if mounts else "unknown"


def say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)


def say_header(title: str, known: dict[str, Any], fairness: Sequence[str]) -> None:
    say(title, "  " + " · ".join(f"{name} {value}" for name, value in known.items()))
    say(*(f"  - {line}" for line in fairness), "")


def alternate(rounds: int, contestants: dict[str, Callable[[], Any]]) -> dict[str, list[Any]]:
    """Run each contestant `rounds` times, taking turns; who goes first changes every round."""
    outcomes: dict[str, list[Any]] = {name: [] for name in contestants}
    for number in range(rounds):
        order = list(contestants)
        if number % 2:
            order.reverse()
        for name in order:
            if sys.stderr.isatty():
                print(f"\r\033[K  round {number + 1}/{rounds}: {name}", end="", file=sys.stderr, flush=True)
            outcomes[name].append(contestants[name]())
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return outcomes


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median and, where there are several values, the range."""
    text = f"{median(values):,.{digits}f}"
    return text if len(values) < 2 else f"{text} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def verdict(reached: float, target: float, at_most: bool) -> str:
    met = reached <= target if at_most else reached >= target
    return f"{'met' if met else 'MISSED'} ({'at most' if at_most else 'at least'} {target:g})"


def say_table(rows: Sequence[Sequence[str]]) -> None:
    """The first row is the header; the first column is left-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        say("  " + "   ".join(cells).rstrip())


def write(path: Path | None, scenario: str, known: dict[str, Any], measured: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"scenario": scenario, "facts": known, "measured": measured}, indent=1) + "\n")
        say(f"  written to {path}")


def processor_seconds(pids: Sequence[int]) -> float:
    """User and system time of these processes so far; a process that is gone counts nothing."""
    total = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
