"""Inside a worker."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .._group.members import Member
from .._listener import Listeners
from ._board import CLOSE, DRAIN, Board

Message = MutableMapping[str, Any]
Application = Callable[[Any, Callable[[], Awaitable[Any]], Callable[[Message], Awaitable[None]]], Awaitable[None]]
"""An ASGI 3 application."""

_OFTEN, _SELDOM = 10, 50  # milliseconds between two looks at the board, while connections come and go


class _Here:
    """What this process is, if it is a worker."""

    listeners: Member | None = None
    board: Board
    record: int  # of it, on the board


def listeners() -> Listeners:
    """What this worker was given: the `Listeners` that its target was called with. Raises RuntimeError elsewhere."""
    if _Here.listeners is None:
        raise RuntimeError("this process is no worker of harken.workers.serve()")
    return _Here.listeners


def draining() -> bool:
    """Is this worker about to end? Then an answer tells its client that the connection ends with it, which is how
    connections end that clients keep open. False outside of a worker."""
    if _Here.listeners is None:
        return False
    _Here.board.tell_asks(_Here.record)
    return _Here.board.order(_Here.record) >= DRAIN


def ready() -> None:
    """Says that this worker serves, where the supervisor cannot find out by connecting: a worker that shares its
    listener with others (unix sockets, and systems that do not steer). Elsewhere it is not needed, and does nothing."""
    if _Here.listeners is not None:
        _Here.board.tell_ready(_Here.record)


def asgi(app: Application) -> Application:
    """An ASGI application that ends kept-alive connections while its worker is about to end: to each answer by
    HTTP/1.1 it adds ``Connection: close``. When its lifespan has begun, it calls `ready`. ::

        app = harken.workers.asgi(app)
    """

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "lifespan"):
            await app(scope, receive, send)
            return
        multiplexed = not str(scope.get("http_version", "1.1")).startswith("1.")  # where the header is forbidden

        async def closing(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                ready()
            elif message["type"] == "http.response.start" and draining() and not multiplexed:
                headers = [(name, value) for name, value in message.get("headers", ()) if name.lower() != b"connection"]
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
            await send(message)

        await app(scope, receive, closing)

    return wrapped


def run(target: Callable[[Listeners], object], mine: Member, board: Board, record: int, lifeline: int) -> int:
    """In the child of a fork: the target, from its beginning to the end of its threads."""
    _Here.board, _Here.record, _Here.listeners = board, record, mine
    threading.Thread(target=_watch, args=[mine, lifeline], name="harken.workers", daemon=True).start()
    code = 1
    try:
        result = target(mine)
        code = result if isinstance(result, int) and not isinstance(result, bool) else 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    return code & 0xFF


def _watch(mine: Member, lifeline: int) -> None:
    """Tells of connections, hears orders, and ends the worker when there is no supervisor any more."""
    poll = select.poll()  # type: ignore[attr-defined,unused-ignore]
    poll.register(lifeline, select.POLLIN)  # type: ignore[attr-defined,unused-ignore]
    pause, before = _SELDOM, 0
    while not poll.poll(pause):
        acceptors = mine._slot.acceptors()
        open_now = sum(one.stats().open for one in acceptors)
        _Here.board.tell_open(_Here.record, len(acceptors), open_now)
        pause, before = _SELDOM if open_now == before else _OFTEN, open_now
        if _Here.board.order(_Here.record) >= CLOSE and acceptors:
            mine.close()  # which ends the acceptors: what they have taken is still served
    os.kill(os.getpid(), signal.SIGTERM)
