"""A failing window as a picture: clients are lanes, operations bars, the one that fits nowhere stands out.

Time runs to the right, but not to scale: only the order of calls and returns matters, so moments are as far apart as
the labels need. Bars that no answer ends run out to the right. Below, the longest order that works, with the value
after each step. One HTML file that needs nothing else, for light and dark screens.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

from zcluster.sim.history import Operation
from zcluster.sim.window import Window, explanation
from zcluster.sim.wording import describe, span_text

CHARACTER: Final = 7.3
"""Width of a character of the labels' font, px."""
STEP: Final = 26.0
LANE: Final = 58.0
BAR: Final = 20.0
LEFT: Final = 96.0
TOP: Final = 18.0
WIDTH: Final = 1178.0
"""Of a small picture, which is stretched to it; others are wider."""
STRETCH_MAX: Final = 4.0

_STYLE: Final = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2330; --soft: #667085; --line: #e3e7ee; --lane: #f7f9fc;
  --good: #3b76d6; --maybe: #98a2b3; --bad: #d92d20; --bad-soft: #fdeceb; --chip: #eef3fc; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171d; --ink: #e8ebf0; --soft: #98a2b3; --line: #2b313c;
  --lane: #1a1e26; --good: #6b9cf0; --maybe: #667085; --bad: #f97066; --bad-soft: #3a1d1c; --chip: #1f2937; } }
body { margin: 40px auto; max-width: 1180px; padding: 0 24px; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 24px; margin: 0 0 2px; } h2 { font-size: 17px; margin: 32px 0 10px; }
.soft { color: var(--soft); } .bad { color: var(--bad); font-weight: 600; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; margin-top: 20px; }
svg { display: block; } svg text { font: 12px ui-monospace, "DejaVu Sans Mono", monospace; fill: var(--ink); }
svg .client { font: 600 13px system-ui, "DejaVu Sans", sans-serif; } svg .number { fill: #fff; font-weight: 700; }
svg .axis { fill: var(--soft); font-size: 11px; }
ol { list-style: none; display: flex; flex-wrap: wrap; gap: 8px; padding: 0; margin: 0; align-items: center; }
li { border-radius: 8px; padding: 5px 11px; background: var(--chip);
  font: 13px ui-monospace, "DejaVu Sans Mono", monospace; }
li.value { background: none; padding: 5px 2px; color: var(--soft); }
li.stuck { background: var(--bad-soft); color: var(--bad); font-weight: 700; outline: 1.5px solid var(--bad); }
li small { color: var(--soft); }
"""


class _Bar(NamedTuple):
    operation: Operation
    lane: int
    first: int  # of the moments
    last: int | None  # None: no answer


def draw_window(window: Window) -> str:
    """The HTML page."""
    shown = sorted([*window.operations, *window.maybe], key=lambda o: (o.call, o.line))
    sentences = "".join(f"<p>{escape(line)}</p>" for line in explanation(window)[1:])
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f"<title>Not linearizable: key {escape(window.key)}</title>\n<style>{_STYLE}</style></head>\n<body>\n"
        f'<h1><span class="bad">Not linearizable:</span> key “{escape(window.key)}”</h1>\n'
        f'<p class="soft">{_claim(window)}</p>\n<div class="scroll">{_picture(window, shown)}</div>\n'
        f"<h2>The longest order that works</h2>\n{_order(window)}\n<h2>What does not fit</h2>\n{sentences}\n"
        "</body></html>\n"
    )


def _claim(window: Window) -> str:
    count = len(window.operations)
    what = "this operation" if count == 1 else f"these {count} operations"
    start = "from the absent key at the beginning" if window.from_start else "whatever the value was before"
    dashed = " Dashed: may have taken effect at any time after its call, or never." if window.maybe else ""
    return f"No order of {what} that respects time explains the answers, {start}.{dashed}"


# -- the lanes --------------------------------------------------------------------------------------------------------
def _bars(shown: Sequence[Operation]) -> tuple[list[_Bar], list[int], int]:
    """(bars, the client of each lane, how many moments there are). Operations that overlap get lanes of their own."""
    moments = sorted({o.call for o in shown} | {o.returned for o in shown if o.returned is not None})
    rank = {moment: number for number, moment in enumerate(moments)}
    lanes: list[int] = []
    bars = []
    for client in sorted({o.client for o in shown}):
        busy: list[float] = []  # until when, for each lane of this client
        base = len(lanes)
        for operation in (o for o in shown if o.client == client):
            free = next((number for number, until in enumerate(busy) if until < operation.call), len(busy))
            end = float("inf") if operation.returned is None else float(operation.returned)
            busy[free : free + 1] = [end]
            last = None if operation.returned is None else rank[operation.returned]
            bars.append(_Bar(operation, base + free, rank[operation.call], last))
        lanes += [client] * len(busy)
    return bars, lanes, len(moments)


def _places(bars: Sequence[_Bar], moments: int) -> list[float]:
    """Where each moment is, px: as near together as labels and numbers allow."""
    places = [LEFT + 14 + number * STEP for number in range(moments)]
    after: dict[int, list[tuple[int, float]]] = {}  # moment -> (earlier moment, distance that it must have)
    for bar in bars:
        following = [other.first for other in bars if other.lane == bar.lane and other.first > bar.first]
        if following:
            after.setdefault(min(following), []).append((bar.first, len(describe(bar.operation)) * CHARACTER + 18))
        if bar.last is not None and bar.last > bar.first:
            after.setdefault(bar.last, []).append((bar.first, 34.0))
    for number in range(1, moments):
        least = [places[earlier] + distance for earlier, distance in after.get(number, ())]
        places[number] = max([places[number - 1] + STEP, *least])
    used = places[-1] - places[0]
    stretch = min(STRETCH_MAX, max(1.0, (WIDTH - 2 * LEFT - 60) / used)) if used else 1.0
    return [places[0] + (place - places[0]) * stretch for place in places]


def _picture(window: Window, shown: Sequence[Operation]) -> str:
    bars, lanes, moments = _bars(shown)
    places = _places(bars, moments)
    width = max(WIDTH, places[-1] + 60, *(places[b.first] + len(describe(b.operation)) * CHARACTER + 24 for b in bars))
    height = TOP + len(lanes) * LANE + 14
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" role="img">']
    for number, client in enumerate(lanes):
        y = TOP + number * LANE
        if number % 2 == 0:
            parts.append(f'<rect x="0" y="{y:.1f}" width="{width:.0f}" height="{LANE}" fill="var(--lane)"/>')
        if number == 0 or lanes[number - 1] != client:
            parts.append(f'<text class="client" x="16" y="{y + 40:.1f}">client {client}</text>')
    numbers = {id(operation): number for number, operation in enumerate(window.order, 1)}
    begin = shown[0].call
    for bar in bars:
        stuck = bar.operation is window.stuck or bar.operation == window.stuck
        end = width + 12 if bar.last is None else places[bar.last]
        y = TOP + bar.lane * LANE
        place = numbers.get(id(bar.operation))
        parts.append(_bar(bar.operation, places[bar.first], end, y, place, stuck, span_text(bar.operation, begin)))
    parts.append("</svg>")
    return "".join(parts)


def _bar(operation: Operation, x: float, end: float, y: float, number: int | None, stuck: bool, span: str) -> str:
    color = "var(--bad)" if stuck else "var(--good)" if operation.status == "ok" else "var(--maybe)"
    sure = operation.status == "ok"
    look = f'fill="{color}"' if sure else f'fill="none" stroke="{color}" stroke-width="1.5" stroke-dasharray="5 4"'
    where = f"line {operation.line} of the history, client {operation.client}, {span}"
    weight = ' font-weight="700" style="fill: var(--bad)"' if stuck else ""
    mark = "✗" if stuck else "" if number is None else str(number)
    mark_style = "" if sure else ' style="fill: var(--ink)"'
    return (
        f"<g><title>{escape(where)}</title>"
        f'<text x="{x:.1f}" y="{y + 19:.1f}"{weight}>{escape(describe(operation))}{"" if sure else " ?"}</text>'
        f'<rect x="{x:.1f}" y="{y + 26:.1f}" width="{max(end - x, 6):.1f}" height="{BAR}" rx="5" {look}/>'
        f'<text class="number" x="{(x + end) / 2:.1f}" y="{y + 40.5:.1f}" text-anchor="middle"{mark_style}>'
        f"{mark}</text></g>"
    )


# -- the order --------------------------------------------------------------------------------------------------------
def _order(window: Window) -> str:
    items = [f'<li class="value">{escape(window.values[0])}</li>']
    for number, (operation, value) in enumerate(zip(window.order, window.values[1:], strict=True), 1):
        items.append(f"<li><b>{number}</b> {escape(describe(operation))} <small>client {operation.client}</small></li>")
        items.append(f'<li class="value">→ {escape(value)}</li>')
    items.append(
        f'<li class="stuck">✗ {escape(describe(window.stuck))} <small>client {window.stuck.client}</small></li>'
    )
    return f"<ol>{''.join(items)}</ol>"
