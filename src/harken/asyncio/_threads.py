"""Runs what may wait in a thread, so that a loop's other tasks go on meanwhile: work in directories, which may be on a
remote file system, looking up users and groups, which may ask a directory service, and finding who holds an address.

Each call has a thread of its own: the threads of the loop's executor might all be waiting for something else.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Protocol, TypeVar

from .._errors import AddressInUseError, ListenError
from .._system import AF_UNIX, of_this_process

T = TypeVar("T")


class Closable(Protocol):
    def close(self) -> object: ...


async def aside(call: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
    """What ``call()`` returns or raises, in a thread of its own. It has a copy of the caller's context.

    Nobody can stop a call that waits: a task that is cancelled goes on at once, and when the call has come to its end
    all the same, ``undo`` is given what it has returned, in that thread."""
    loop = asyncio.get_running_loop()
    context = copy_context()
    future: asyncio.Future[None] = loop.create_future()
    done: list[T] = []  # what it has returned
    failed: list[BaseException] = []
    lock = threading.Lock()
    left = told = False  # has the task gone on; was it told in time

    def tell() -> None:
        if not future.done():
            future.set_result(None)

    def work() -> None:
        nonlocal told
        try:
            done.append(context.run(call))
        except BaseException as error:
            failed.append(error)
        with lock:
            if not left:
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(tell)
                    told = True
        if done and undo is not None and not told:
            undo(done[0])

    try:
        threading.Thread(target=work, name="harken.aside").start()
        await future
        if failed:
            raise failed.pop()
        return done[0]
    except BaseException:  # also when the loop is gone, or start() was interrupted: the thread runs all the same
        with lock:
            left = True
        if told and done and undo is not None:
            _in_a_thread(lambda: undo(done[0]))
        raise


def _in_a_thread(call: Callable[[], object]) -> None:
    try:
        threading.Thread(target=call, name="harken.aside").start()
    except RuntimeError:  # Python is ending, or there is no room for a thread
        call()


async def explained(error: ListenError) -> None:
    """Finds out in a thread what the error will say, above all whose sockets are in the way: otherwise printing it, for
    instance by the loop's exception handler, would search all of /proc on the loop's thread."""
    with suppress(RuntimeError):  # there is no room for a thread
        await aside(lambda: explain(error))


def explain(error: ListenError) -> None:
    _ = error.hint
    if isinstance(error, AddressInUseError):
        _ = error.cause


# ---------------------------------------------------------------------------- closing


class Closing:
    """What is closed in a thread. It is done once, by whoever claims it: the thread, or, where its start() fails or is
    interrupted before there is one, the thread that called it."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.thread = 0
        self._free = threading.Lock()

    def claim(self) -> bool:
        return self._free.acquire(blocking=False)

    def end(self) -> None:
        of_this_process(_closing, set).discard(self)
        self.over.set()


_closing: dict[int, set[Closing]] = {}
"""What is being closed by this process: when it is over, the paths are removed. A forked child waits for nothing of its
parent's, whose threads it does not have."""


def wait_for_paths() -> None:
    """Waits until the sockets that this process closed before have had their paths removed."""
    mine: set[Closing] = of_this_process(_closing, set)
    for closing in list(mine):
        if closing.thread != threading.get_ident():
            closing.over.wait()


def can_wait(sock: Any) -> bool:
    """Whether its listen() or close() may wait: true for a unix socket that has a path in a directory."""
    return bool(getattr(sock, "family", None) == AF_UNIX)


def close_all(sockets: Iterable[Closable], locks: dict[int, Any], then: Callable[[], object]) -> bool:
    """Closes sockets; those that can wait in a thread, if this one runs a loop. Answers whether there is such a thread,
    which calls ``then`` at its end. ``locks`` has a lock for each process."""
    slow = []
    for sock in sockets:
        if can_wait(sock):
            slow.append(sock)
        else:
            with suppress(OSError):  # of one that somebody else has closed; the others are closed as well
                sock.close()
    if not slow:
        return False

    def work() -> None:
        with of_this_process(locks, threading.Lock):
            for sock in slow:
                with suppress(OSError):
                    sock.close()

    if asyncio._get_running_loop() is not None:
        closing = Closing()

        def run() -> None:
            if not closing.claim():
                return
            closing.thread = threading.get_ident()
            try:
                work()
            finally:
                closing.end()
                then()

        try:
            of_this_process(_closing, set).add(closing)
            threading.Thread(target=run, name="harken.aside").start()
            return True
        except BaseException as error:
            if not closing.claim():  # a signal handler has raised, and the thread is at work
                raise
            closing.end()
            if not isinstance(error, RuntimeError):
                raise
            # Python is ending, or there is no room for a thread.
    work()
    return False


async def with_explanation(work: Coroutine[Any, Any, T]) -> T:
    """What an error is going to say is found out before it is raised, and not on the loop's thread."""
    try:
        return await work
    except ListenError as error:
        await explained(error)
        raise
