"""What came out: medians, their spread, ratios."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from statistics import median, quantiles

Samples = dict[str, list[float]]
"""Nanoseconds an operation, one a round, by contender."""


def machine(where: str = "not pinned") -> list[str]:
    """What the figures were made on, and on which of its cores."""
    processor = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return [
        f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} {platform.release()}",
        f"{processor}, {os.cpu_count()} cores, {where}",
    ]


def spread(samples: list[float]) -> str:
    """The median, and between which values the middle half of the rounds lies, if they differ."""
    if min(samples) == max(samples):
        return figure(samples[0])
    low, _, high = quantiles(samples, n=4, method="inclusive")
    return f"{figure(median(samples))} ({figure(low)}-{figure(high)})"


def figure(number: float) -> str:
    """Three digits, or all before the point."""
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:.3g}"


def _time(samples: list[float] | None) -> str:
    """The median in microseconds, and between which values the middle half of the rounds lies."""
    if not samples:
        return "-"
    low, _, high = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else samples * 3
    return f"{median(samples) / 1000:.3f} ({low / 1000:.3f}-{high / 1000:.3f})"


def _ratio(above: list[float] | None, below: list[float] | None) -> str:
    return f"{median(above) / median(below):.2f}" if above and below else "-"


def table(rows: list[tuple[str, Samples]]) -> str:
    """A Markdown table: a row a case, microseconds an operation."""
    lines = [["case", "C, µs", "stdlib, µs", "ours, µs", "ours / C", "stdlib / ours"]]
    for title, samples in rows:
        c, stdlib, ours = (samples.get(name) for name in ("C", "stdlib", "ours"))
        lines.append([title, _time(c), _time(stdlib), _time(ours), _ratio(ours, c), _ratio(stdlib, ours)])
    return markdown(lines)


def markdown(lines: list[list[str]]) -> str:
    """Lines of cells as a table, the first of them its head; all but the first column are figures."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    head, *rest = lines
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in (head, rule, *rest)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
