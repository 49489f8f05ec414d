"""A status (see `launch.report`) as people read it: a headline, a row a node, the rest in a line each, advice.

    default   DEGRADED 2/3 up · quorum ok · leader n3 · term 2
    NODE  ROLE      PID    TERM  COMMIT  APPLIED  LAG  CKPT    DISK  CPU  RSS  UP
    n1    follower  41207  2     18,204  18,204   0    18,000  4.1M  3%   42M  2m
    n2    ✗ killed  -      1     17,911  -        293  17,000  4.0M  -    -    SIGKILL 12s ago
    Router: 2 workers · 3 queued · 812 tasks/s
    Fix: zcluster start n2

Pure: from a dictionary to text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from zcluster.cli import engine_words as words
from zcluster.cli.table import count_text, plain_table, size_text, width

if TYPE_CHECKING:
    from rich.console import Group

Map = Mapping[str, Any]
HEADER: Final = ("NODE", "ROLE", "PID", "TERM", "COMMIT", "APPLIED", "LAG", "CKPT", "DISK", "CPU", "RSS", "UP")
EXIT_CODES: Final = {"healthy": 0, "stopped": 3, "degraded": 4, "no_quorum": 5}
_PROBLEMS: Final = {"Repair": "repair", "Election": "first election needs", "Workers": "workers are not there:"}
"""Problems that the table does not show: their label, and the words by which they are known."""
_EXPENDABLE: Final = ("CKPT", "RSS", "CPU", "DISK", "APPLIED", "TERM", "LAG", "PID")
_COLORS: Final = {"healthy": "green", "stopped": "yellow", "degraded": "yellow", "no_quorum": "red"}
_ROLE_COLORS: Final = {
    "leader": "green",
    "paused": "yellow",
    "silent": "yellow",
    "learner": "yellow",
    "leaving": "yellow",
}


def headline(status: Map) -> tuple[str, str, str]:
    """(cluster, state, the rest of the line)."""
    nodes = status["nodes"]
    up = sum(node["state"] == "up" for node in nodes)
    state = status["state"]
    if state == "stopped":
        return (
            status["cluster"],
            "STOPPED",
            f"{len(nodes)} node{'s' * (len(nodes) != 1)} · {status['engine']} · durability {status['durability']}",
        )
    engine, term = status["engine"], max([status["term"], *(node.get("term") or 0 for node in nodes)])
    parts = [
        f"{up}/{len(nodes)} up",
        "quorum ok" if status.get("quorum", state != "no_quorum") else "no quorum",
        f"{words.leader_word(engine)} {status['leader']}" if status["leader"] else f"no {words.leader_word(engine)}",
        f"{words.term_word(engine)} {words.term_text(engine, term)}",
    ]
    return status["cluster"], state.replace("_", " ").upper(), " · ".join(parts)


def row(node: Map, engine: str = words.RAFT) -> list[str]:
    """The cells of one node, in the order of HEADER."""
    up = node["state"] == "up"
    lag = node.get("lag")
    cpu = node.get("cpu_percent")
    return [
        node["name"],
        _role(node),
        str(node["pid"] or "-"),
        words.term_text(engine, node.get("term")),
        count_text(node.get("commit_index")),
        count_text(node.get("last_applied")) if not node.get("stale") else "-",
        "-" if lag is None or node["role"] == "leader" else count_text(lag),
        count_text(node.get("checkpoint_index")),
        size_text(node.get("disk_bytes")),
        f"{cpu:.0f}%" if up and cpu is not None else "-",
        size_text(node.get("rss_bytes")) if up else "-",
        age_text(node.get("uptime_seconds")) if up else (node.get("down_text") or "-"),
    ]


def _role(node: Map) -> str:
    if node["state"] == "up":
        return "repairing" if node.get("repair") else str(node["role"])
    reason = str(node.get("down_reason") or "")
    if node.get("failure"):
        return "✗ failed"
    if reason.startswith("SIG"):
        return "✗ killed"
    return "✗ stopped" if reason == "stopped" else "✗ down"


def age_text(seconds: float | None) -> str:
    """12s, 3m, 5h, 2d.

    >>> age_text(12.4), age_text(200), age_text(7300), age_text(200000)
    ('12s', '3m', '2h', '2d')
    """
    if seconds is None:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def footer(status: Map) -> list[str]:
    """What follows the table: the router, what the durability means, what is wrong, what helps."""
    if status["state"] == "stopped":
        return _advice(status)
    lines = []
    workers = status["workers"]
    registered = sum(worker.get("registered", True) for worker in workers)
    if status["routers"]:
        figures = [
            f"{registered} worker{'s' * (registered != 1)}",
            f"{status['queued']:,} queued",
            f"{status.get('tasks_per_s', 0):,.0f} tasks/s",
        ]
        lines.append("Router: " + " · ".join(figures))
    else:
        lines.append("Router: ✗ restarting")
    lines += network_lines(status)
    durability = str(status.get("durability", "fsync"))
    if durability != "fsync":
        window = f"the last {durability.partition(':')[2]} of" if durability.startswith("interval") else "recent"
        lines.append(
            f"Durability: {durability}: a power failure may lose {window} writes; a crash of processes loses none"
        )
    if status.get("change"):
        change = status["change"]
        lines.append(f"Change: to {change['nodes']} node{'s' * (change['nodes'] != 1)} · {change['text']}")
    failures = [f"{node['name']} {node['failure']}" for node in status["nodes"] if node.get("failure")]
    lines += [f"Failed: {failure}" for failure in failures]
    problems = status.get("problems", ())
    for label, phrase in _PROBLEMS.items():
        lines += [f"{label}: {problem}" for problem in problems if phrase in problem]
    verified = status.get("verified")
    if verified is not None and verified["equal"]:
        lines.append(f"Verified: equal states of {' '.join(verified['nodes'])} at entry {verified['index']:,}")
    elif verified is not None:
        lines.append(
            f"DIVERGED: {' '.join(verified['odd'])} at entry {verified['index']:,}: see zcluster verify --help"
        )
    return lines + _advice(status)


def network_lines(status: Map) -> list[str]:
    """The faults that somebody has put into the network."""
    from zcluster.launch.network import lines

    network = status.get("network")
    broken = lines(network, [node["name"] for node in status["nodes"]]) if network else []
    left = network["seconds_left"] if network else None
    ends = f" ({left:.0f}s left)" if left is not None else ""
    return [f"Network: {line}{ends}" for line in broken]


def _advice(status: Map) -> list[str]:
    return [f"Fix: {fix}" for fix in status.get("fix", ())]


def table_rows(status: Map) -> list[list[str]]:
    return [] if status["state"] == "stopped" else [row(node, status["engine"]) for node in status["nodes"]]


def plain(status: Map) -> str:
    """Without any colour or animation: for pipes and files."""
    cluster, state, rest = headline(status)
    lines = [f"{cluster}   {state} {rest}"]
    rows = table_rows(status)
    if rows:
        lines += plain_table(HEADER, rows)
    return "\n".join(lines + footer(status))


def fitting(rows: list[list[str]], columns: int) -> list[int]:
    """Which columns of HEADER to show so that a row takes at most `columns` characters; the least telling go first."""
    chosen = list(range(len(HEADER)))
    widths = [max(width(row[i]) for row in (HEADER, *rows)) for i in chosen]
    for title in _EXPENDABLE:
        if sum(widths[i] + 2 for i in chosen) - 2 <= columns:
            break
        chosen.remove(HEADER.index(title))
    return chosen


def colored(status: Map, columns: int) -> Group:
    """The same for a terminal of so many columns."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    cluster, state, rest = headline(status)
    color = _COLORS[status["state"]]
    parts: list[Any] = [Text.assemble((cluster, "bold"), "   ", (state, f"bold {color}"), " ", rest)]
    rows = table_rows(status)
    if rows:
        table = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        chosen = fitting(rows, columns)
        for i in chosen:
            table.add_column(HEADER[i], no_wrap=True)
        for node, cells in zip(status["nodes"], rows, strict=True):
            style = _ROLE_COLORS.get(node["role"], "") if node["state"] == "up" else "red"
            table.add_row(*[Text(cells[i], style=style if HEADER[i] == "ROLE" else "") for i in chosen])
        parts.append(table)
    for line in footer(status):
        label, _, text = line.partition(": ")
        parts.append(Text.assemble((f"{label}: ", "bold"), text))
    return Group(*parts)
