"""``python -m harken who``: which processes hold an address."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TextIO

from .._diagnosis.hints import place, printable
from .._diagnosis.holders import Holder, holders
from .table import print_table

LIVING = ("listening", "bound", "established")  # other states outlast the process
HEADINGS = ("PID", "USER", "STATE", "ADDRESS", "NAME", "COMMAND")


def run(binds: Sequence[str], as_json: bool, out: TextIO) -> int:
    """Prints the holders. Returns 0: a process holds one; 1: none does; 2: a bind is invalid; 3: it is undetermined."""
    found: dict[Holder, None] = {}
    for bind in binds:
        try:
            holding = holders(bind)
        except ValueError as error:
            print(f"harken: {error}", file=sys.stderr)
            return 2
        except OSError as error:
            print(f"harken: {bind}: {error.strerror or error}", file=sys.stderr)
            return 3
        found.update(dict.fromkeys(holding))
        if not holding:
            print(f"harken: no process holds {bind}", file=sys.stderr)
    if as_json:
        for holder in found:
            print(json.dumps(_facts(holder)), file=out)
    else:
        print_table(HEADINGS, list(map(_row, found)), out)
    if any(holder.pid is None and holder.user for holder in found):
        print(
            "harken: this user cannot inspect all processes; root, or the administrator on Windows, sees more",
            file=sys.stderr,
        )
    return 0 if any(holder.pid is not None or holder.user or holder.state in LIVING for holder in found) else 1


def _facts(holder: Holder) -> dict[str, object]:
    return {name: getattr(holder, name) for name in Holder.__slots__}


def _row(holder: Holder) -> tuple[str, ...]:
    pid = "-" if holder.pid is None else str(holder.pid)
    texts = (pid, holder.user or "-", holder.state, place(holder), holder.name or "-", holder.command or "-")
    return tuple(map(printable, texts))
