"""The chart of accepting.py for the README: bars, in four panels. Nothing but text and rectangles, in colours that can
be read on a white page and on a black one."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from statistics import median
from typing import Any, NamedTuple

import report

INK, BAR, OURS = "#737d87", "#8c959f", "#2f81f7"
WIDTH, LABELS, ROW, GAP = 440, 190, 18, 28
"""Of a panel, of its names, of a bar with the space below it, between panels; pixels."""


class Panel(NamedTuple):
    case: str
    column: str
    title: str


PANELS = [
    Panel("drain_many", "µs of CPU a connection", "a long queue is accepted: µs of CPU a connection"),
    Panel("short", "µs of CPU a connection", "accept, read, write, close: µs of CPU a connection"),
    Panel("burst", "connected, 99 %", "a burst: 99 % of the clients are connected after, ms"),
    Panel("starved", "% of a core", "out of descriptors: % of a core"),
]
TOP = 24  # of a panel: its title


def draw(results: list[dict[str, Any]]) -> str:
    """An SVG of the panels whose cases were measured, two in a row."""
    samples = {result["case"]: result["samples"] for result in results}
    panels = [panel for panel in PANELS if panel.case in samples]
    drawn, y = [], 0
    for pair in (panels[n : n + 2] for n in range(0, len(panels), 2)):
        for n, panel in enumerate(pair):
            drawn += [f'<g transform="translate({n * (WIDTH + GAP)},{y})">', *bars(panel, samples[panel.case]), "</g>"]
        y += TOP + ROW * max(len(samples[panel.case]) for panel in pair) + GAP
    style = f"text{{font:12px sans-serif;fill:{INK}}}.t{{font-weight:bold}}.n{{text-anchor:end}}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH + GAP} {max(1, y - GAP)}" role="img">'
    return "\n".join([head, f"<style>{style}</style>", *drawn, "</svg>\n"])


def bars(panel: Panel, samples: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """The best first; ours in colour."""
    found = {name: median(one[panel.column] for one in each) for name, each in samples.items()}
    most = max(found.values()) or 1
    yield f'<text class="t" x="0" y="14">{escape(panel.title)}</text>'
    for n, (name, value) in enumerate(sorted(found.items(), key=lambda item: item[1])):
        y, width = TOP + ROW * n, (WIDTH - LABELS - 50) * value / most
        colour = OURS if name.startswith("harken") else BAR
        yield f'<text class="n" x="{LABELS}" y="{y + 11}">{escape(name)}</text>'
        yield f'<rect x="{LABELS + 6}" y="{y}" width="{max(1, width):.1f}" height="{ROW - 4}" fill="{colour}"/>'
        closed = median(one.get("closed", 0) for one in samples[name])
        told = report.figure(value) + (f", and {closed:.0f} clients are closed" if closed else "")
        yield f'<text x="{LABELS + 10 + max(1, width):.1f}" y="{y + 11}">{told}</text>'
