"""What happened in a cluster: one file of lines that every process adds to, and sentences for people.

    logs/events.jsonl    one JSON object a line, in the order of writing; rotated like the logs, with `events.jsonl.1`

Every line has `time_ms` (wall clock), `monotonic_ns` (the machine's clock since it started, the same for all processes)
and `event`, mostly `node` or `process` and `pid`, and facts that depend on the event: see docs/events.md.

Writing is beside service: `EventLog.record` only queues, a thread writes. Each line is one write to the end of the
file, so lines of several processes do not mix. What cannot be written (a full disk, too many at once) is dropped in
silence. Reading passes over what is no event; of a line that a full disk cut short, only that one is lost.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

FILE: Final = "logs/events.jsonl"
QUEUE_MAX: Final = 1000
LINE_BYTES_MAX: Final = 64 << 10
_BEGINNING: Final = b'{"time_ms":'

Event = dict[str, Any]


def new_event(event: str, node: str | None, facts: dict[str, Any]) -> Event:
    """An event of now. Facts that are None are left out."""
    found: Event = {"time_ms": time.time_ns() // 1_000_000, "monotonic_ns": time.monotonic_ns(), "event": event}
    if node is not None:
        found["node"] = node
    return found | {name: value for name, value in facts.items() if value is not None}


def encode(event: Event) -> bytes:
    """One line. What has no JSON is written as its text."""
    return msgspec.json.encode(event, enc_hook=str) + b"\n"


def record(directory: Path | str, event: str, node: str | None = None, **facts: Any) -> None:
    """Add one event to a cluster's file now, from a process that serves nobody (a command, say); never raises."""
    with suppress(OSError):
        _append(Path(directory) / FILE, encode(new_event(event, node, facts)))


def _append(path: Path, line: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, line[-LINE_BYTES_MAX:])
    finally:
        os.close(descriptor)


class EventLog:
    """For a process that serves: `record` costs microseconds and waits for nothing. Any thread may call it.

    Args:
        directory: of the cluster.
    """

    def __init__(self, directory: Path | str) -> None:
        self._path = Path(directory) / FILE
        self._lines: deque[bytes] = deque(maxlen=QUEUE_MAX)
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None

    def record(self, event: str, node: str | None = None, **facts: Any) -> None:
        """Queue one event; of more than QUEUE_MAX the oldest is dropped."""
        self._lines.append(encode(new_event(event, node, facts)))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="zcluster-events", daemon=True)
            self._thread.start()
        self._wake.set()

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what is queued, if that is possible in time."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._closing or self._lines:
            self._wake.wait()
            self._wake.clear()
            while self._lines:
                with suppress(OSError):
                    _append(self._path, self._lines.popleft())


# -- reading ----------------------------------------------------------------------------------------------------------
def parse(line: bytes | str) -> Event | None:
    """The event of a line; None if it is none. A line that follows the beginning of another one is found in it."""
    data = line.encode(errors="surrogateescape") if isinstance(line, str) else line
    start = data.rfind(_BEGINNING)
    for candidate in (data, data[start:] if start > 0 else b""):
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            found = msgspec.json.decode(candidate)
            if isinstance(found, dict) and isinstance(found.get("event"), str) and type(found.get("time_ms")) is int:
                return found
    return None


def read(directory: Path | str, count: int | None = None) -> list[Event]:
    """The last `count` events of a cluster (None: all that are kept), the oldest first."""
    found: list[Event] = []
    path = Path(directory) / FILE
    for part in (path.with_name(path.name + ".1"), path):
        with suppress(OSError):
            found += [event for line in part.read_bytes().splitlines() if (event := parse(line)) is not None]
    return found if count is None else found[max(0, len(found) - count) :]


# -- for people -------------------------------------------------------------------------------------------------------
def who(event: Event) -> str:
    """The process or node that an event is about."""
    return str(event.get("process") or event.get("node") or "")


def sentence(event: Event) -> str:
    """What happened, without when and who: `leads term 5 after n1; at most 12.9 ms without service`."""
    known = _SENTENCES.get(event["event"])
    if known is not None:
        with suppress(KeyError, TypeError, ValueError):  # a newer or a foreign line: show what there is
            return known(event)
    shown = [f"{k} {_value(v)}" for k, v in event.items() if k not in _FRAME]
    return ", ".join([event["event"].replace("_", " "), *shown])


_FRAME: Final = frozenset({"time_ms", "monotonic_ns", "event", "node", "process", "pid"})


def _value(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(each) for each in value) or "none"
    return str(value)


def _leader(event: Event) -> str:
    text = f"leads term {event['term']}"
    previous = event.get("previous")
    if previous is not None:
        text += f" after {'itself' if previous == event.get('node') else previous}"
        if event.get("since_exit_ms") is not None:
            text += f", which exited {event['since_exit_ms']:.1f} ms before"
    outage = event.get("without_service_ms")
    return text if outage is None else f"{text}; at most {outage:.1f} ms without service"


def _membership(event: Event) -> str:
    learners = event.get("learners") or []
    return f"members: {_value(event['voters'])}" + (f"; learners: {_value(learners)}" if learners else "")


def _started(event: Event) -> str:
    return "started" + (f", pid {event['pid']}" if event.get("pid") else "")


def _replica_started(event: Event) -> str:
    damage = event.get("damage")
    text = f"replica ready, incarnation {event['incarnation']}, log up to {event['last_index']}"
    return text + (f"; damaged: {damage}" if damage else "")


_SENTENCES: Final[dict[str, Callable[[Event], str]]] = {
    "started": _started,
    "died": lambda e: f"process ended: {e['reason']}",
    "killed": lambda e: f"fault: {e['signal']} sent",
    "signalled": lambda e: f"fault: {e['signal']} sent",
    "paused": lambda e: "fault: paused",
    "resumed": lambda e: "resumed",
    "adopted": lambda e: f"adopted by a new supervisor, pid {e['pid']}",
    "replica_started": _replica_started,
    "election": lambda e: f"stands for election in term {e['term']}",
    "leader": _leader,
    "stepped_down": lambda e: f"leads no more, term {e['term']}",
    "peer_exited": lambda e: f"noticed that {e['peer']} exited",
    "membership": _membership,
    "checkpoint": lambda e: f"wrote a checkpoint at {e['index']:,}, {e['bytes']:,} bytes",
    "checkpoint_failed": lambda e: f"checkpoint at {e['index']:,} failed: {e['reason']}",
    "checkpoint_sent": lambda e: f"checkpoint to {e['to']}: {'delivered' if e['delivered'] else 'not delivered'}",
    "checkpoint_received": lambda e: f"received the checkpoint at {e['index']:,} from {e['from']}",
    "slow_sync": lambda e: f"the disk took {e['ms']:.0f} ms to sync",
    "repaired": lambda e: "repaired: its log is whole again",
    "draining": lambda e: "stops: hands over, writes a checkpoint",
    "stopped": lambda e: "stopped cleanly",
    "down": lambda e: "the cluster is going down",
}


class Teller:
    """Events as lines: wall clock, seconds since the event before, who, what."""

    def __init__(self) -> None:
        self._before: int | None = None

    def line(self, event: Event) -> str:
        ms = event["time_ms"]
        clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000)) + f".{ms % 1000:03d}"
        now, gap = event.get("monotonic_ns"), ""
        if type(now) is not int:
            now = None
        elif self._before is not None and now >= self._before:
            gap = f"+{(now - self._before) / 1e9:.3f}"
        self._before = now
        return f"{clock}  {gap:>9}  {who(event):<9} {sentence(event)}".rstrip()
