"""The engines that can be had here, and what every test of an acceptor needs: a listener, and connections in time."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import time
from collections.abc import Iterator

import harken
from harken._acceptor import engines

POLLABLE = {"io_uring": True, "accept4": True, "kqueue": True, "accept": False, "acceptex": True}
NAMES = [name for name in engines() if name in os.environ.get("HARKEN_ENGINES", ",".join(engines())).split(",")]


@functools.cache
def forbidden(engine: str) -> str:
    """Why it cannot be had here: a kernel may be too old for io_uring, and a container forbid it."""
    try:
        with harken.listen("127.0.0.1:0") as listeners:
            listeners.acceptor(engine=engine).close()
    except OSError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def one_listener() -> Iterator[harken.Listeners]:
    with harken.listen("127.0.0.1:0", backlog=1024) as made:
        yield made


def taken_in_time(acceptor: harken.Acceptor, count: int) -> list[harken.Socket]:
    """So many connections, however many calls it takes."""
    found: list[harken.Socket] = []
    deadline = time.monotonic() + 10
    while len(found) < count:
        assert acceptor.wait(max(0, deadline - time.monotonic())), f"{len(found)} of {count}: {acceptor!r}"
        found += acceptor.accept_many()
    return found


def readable(acceptor: harken.Acceptor, seconds: float = 0) -> bool:
    return bool(select.select([acceptor.fileno()], [], [], seconds)[0])
