"""Rows of text: a table for a person at a terminal, columns between tabs for another program."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import TextIO


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], out: TextIO) -> None:
    """On a terminal aligned and cut to its width, with headings; elsewhere whole, with tabs, for other programs."""
    print_table_with_lines(headings, [(row, ()) for row in rows], out)


def print_table_with_lines(
    headings: Sequence[str], rows: Sequence[tuple[Sequence[str], Iterable[str]]], out: TextIO
) -> None:
    """Like `print_table`, with lines under each row, which are wrapped. Headings and lines, and only the columns with a
    heading, are for a terminal: another program gets whole rows."""
    if not out.isatty():
        for row, _ in rows:
            print("\t".join(row), file=out)
    elif rows:
        seen = [headings, *(row for row, _ in rows)]
        widths = [max(len(row[column]) for row in seen) for column in range(len(headings))]
        across = shutil.get_terminal_size().columns
        for row, lines in [(headings, ()), *rows]:
            line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False)).rstrip()
            print(line if len(line) <= across else f"{line[: across - 3]}...", file=out)
            for under in lines:
                wrapped = textwrap.wrap(
                    under, max(across, 40), initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
                )
                print("\n".join(wrapped), file=out)
