"""``python -m harken check``: what `harken.listen` would do with some binds, and why: `_diagnosis.foresee`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from .._diagnosis.foresee import GOOD, UNKNOWN, Foreseen, foresee
from .._diagnosis.hints import printable
from .._diagnosis.holders import Holder
from .._errors import shown
from .._listener import url_of
from .table import print_table_with_lines

HEADINGS = ("VERDICT", "ADDRESS", "BIND", "BACKLOG", "CAUSE", "HELD BY")


def run(binds: Sequence[str], as_json: bool, out: TextIO) -> int:
    """Prints what listen() would do with each address. Returns 0: all could be opened; 1: one could not; 2: a bind is
    invalid, and nothing is printed of the others, as nothing would be opened; 3: one is undetermined."""
    try:
        rows = foresee(binds)
    except ValueError as error:
        print(f"harken: {error}", file=sys.stderr)
        return 2
    if as_json:
        for row in rows:
            print(json.dumps(_facts(row)), file=out)
    else:
        print_table_with_lines(HEADINGS, [(_columns(row), _lines(row)) for row in rows], out)
    verdicts = {row.verdict for row in rows}
    return 1 if verdicts - {*GOOD, UNKNOWN} else 3 if UNKNOWN in verdicts else 0


def _facts(row: Foreseen) -> dict[str, object]:
    error = row.error
    return {
        "bind": row.bind,
        "address": row.address,
        "verdict": row.verdict,
        "step": error.step if error else None,
        "error": None if error is None else error.strerror,
        "cause": row.cause or None,
        "holders": [{name: getattr(holder, name) for name in Holder.__slots__} for holder in row.holders],
        "hint": row.hint,
        "backlog": row.backlog,
        "note": row.note,
    }


def _columns(row: Foreseen) -> tuple[str, ...]:
    """The columns, with three that have no heading: people get those as lines."""
    backlog = "-" if row.backlog is None else str(row.backlog)
    where = shown(row.address) if isinstance(row.address, str) else url_of(row.address).removeprefix("tcp://")
    error = row.error.strerror or "" if row.error else ""
    texts = (row.verdict, where, row.bind, backlog, row.cause, _short(row.holders), error, row.hint, row.note)
    return tuple(printable(text) or "-" for text in texts)


def _short(holders: Iterable[Holder]) -> str:
    names = {
        holder.pid: f"{holder.name} ({holder.pid})" if holder.pid is not None else f"user {holder.user}"
        for holder in holders
        if holder.pid is not None or holder.user
    }
    return ", ".join(names.values())


def _lines(row: Foreseen) -> list[str]:
    """The hint, or at least the system's text, and the remark."""
    found = [f"hint: {row.hint}" if row.hint else row.error.strerror or "" if row.error else "", row.note]
    return [printable(line) for line in found if line]
