"""A contender in Python is a process that reads lines of "case count" and answers each with nanoseconds an operation,
as flow.c does."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

Case = Callable[[int], int]
"""Runs ``count`` operations; the nanoseconds that all of them took."""


def answer(cases: dict[str, Case]) -> None:
    """Answers until there are no more lines."""
    gc.disable()  # as timeit does: a collection would hit whoever is measured when the time has come
    for line in sys.stdin:
        name, count = line.split()
        print(cases[name](int(count)) / int(count), flush=True)


def wait_for_queue(listener: Any) -> None:
    """Tells the harness where to connect, and waits until it has."""
    print(listener.getsockname()[1], flush=True)
    sys.stdin.readline()


def close_all(sockets: list[Any], expected: int) -> None:
    """Closes what was drained, which must be everything."""
    for sock in sockets:
        sock.close()
    if len(sockets) != expected:
        raise RuntimeError(f"drained {len(sockets)} of {expected}")
