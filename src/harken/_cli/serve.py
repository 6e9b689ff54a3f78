"""The main job: an echo server for any number of clients.

Accepting is harken's: one thread for each listener, which takes all connections that wait in one call. Serving is
asyncio's: one event loop for all clients, with its flow control, on IOCP where there is one. What the server tells is
written by a thread, too: whoever does not read it, or has stopped the terminal, does not stop the server.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Self, TextIO

from .._errors import ListenError, shown
from .._listen import listen
from .._listener import Listener, Listeners
from .._socket import Socket
from .._stats import queue

DEFAULT_BINDS = ("127.0.0.1:27015", "[::1]:27015")
PAUSE = 0.1  # seconds to wait when accept() fails for lack of resources
PATIENCE = 0.5  # seconds at the end for lines that are not written yet
MOST_WAITING = 100  # lines that nobody has read; with more, figures are left out


class Stop:
    """The signals that end the server, from before there is a path until it is removed again: a process that is killed
    leaves it behind. One that comes while the listeners are opened, which may take long, ends that with `Stopped`."""

    ALWAYS = ("SIGINT", "SIGTERM", "SIGBREAK")
    BY_DEFAULT = ("SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGXCPU")
    """Those that would kill: not SIGHUP under nohup(1), which has it ignored."""

    def __init__(self) -> None:
        self.asked = 0  # by this signal; 0: not yet
        self.opening = False
        self.tell: Callable[[], object] = int  # does nothing
        self._before: list[tuple[int, Any]] = []

    def __enter__(self) -> Self:
        for name in (*self.ALWAYS, *self.BY_DEFAULT):
            number = getattr(signal, name, None)
            if number is not None and (name in self.ALWAYS or signal.getsignal(number) is signal.SIG_DFL):
                self._before.append((number, signal.signal(number, self._came)))
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def _came(self, number: int, _: object) -> None:
        self.asked = number
        if self.opening:
            self.opening = False
            raise Stopped(number)
        self.tell()


class Stopped(BaseException):
    """A signal came while the listeners were opened."""

    def __init__(self, number: int) -> None:
        self.number = number


def open_listeners(binds: Sequence[str], backlog: int | None, stop: Stop) -> Listeners:
    """The listeners that were asked for; by default the loopback addresses that this machine has. Raises what
    `harken.listen` raises, and `Stopped`."""
    opened: Listeners | None = None
    try:
        stop.opening = True
        if stop.asked:
            raise Stopped(stop.asked)
        # A path is given back when the result of listen() is dropped before this has it, and not later.
        opened = listen(*binds, backlog=backlog) if binds else _open_default(backlog)
        stop.opening = False
        return opened
    except BaseException:
        stop.opening = False
        if opened is not None:
            opened.close()
        raise


def _open_default(backlog: int | None) -> Listeners:
    try:
        return listen(*DEFAULT_BINDS, backlog=backlog)
    except ListenError as error:
        # A machine without IPv6 still has its IPv4 loopback. Any other failure is reported.
        if error.address[0] != "::1" or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        try:
            return listen(DEFAULT_BINDS[0], backlog=backlog)
        except ListenError:
            raise error from None


class Output:
    """Writes texts in a thread of its own, in their order. put() never waits."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._waiting: deque[str] = deque()
        self._changed = threading.Condition()
        self._over = False  # writing has failed, or nothing more will be written
        self._handle: int | None = None
        with suppress(OSError, ValueError):
            # Not through the object: the thread might hold its lock when Python ends and flushes it.
            self._handle = out.fileno()
        self._thread = threading.Thread(target=self._write_all, name="harken.output", daemon=True)
        self._thread.start()

    def put(self, text: str, most_waiting: int | None = None) -> None:
        """``most_waiting``: if more are waiting already, this text is left out."""
        with self._changed:
            if not self._over and (most_waiting is None or len(self._waiting) <= most_waiting):
                self._waiting.append(text)
                self._changed.notify()

    def close(self) -> None:
        """Waits a moment for what is not written yet; the rest is lost."""
        with self._changed:
            self._over = True
            self._changed.notify()
        self._thread.join(PATIENCE)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._over)
                if not self._waiting:
                    return
                text = self._waiting.popleft()
            try:
                self._write(text)
            except (OSError, ValueError):  # the reader has gone, or the disk is full: serve on
                with self._changed:
                    self._over = True
                    self._waiting.clear()

    def _write(self, text: str) -> None:
        if self._handle is None:
            self._out.write(text)
            self._out.flush()
            return
        rest = text.replace("\n", os.linesep).encode(self._out.encoding or "utf-8", "backslashreplace")
        while rest:
            try:
                rest = rest[os.write(self._handle, rest) :]
            except BlockingIOError:  # another process that has this pipe has made it non-blocking
                time.sleep(0.01)


class Report:
    """The server's output: a line that is rewritten on a terminal, whole lines elsewhere, or JSON."""

    def __init__(self, out: TextIO, as_json: bool, every: float) -> None:
        self._out = Output(out)
        self._as_json = as_json
        self._live = out.isatty() and not as_json
        self.every = min(every, 0.5) if self._live else every
        self._told: dict[str, object] = {}
        self._trouble_at = 0.0

    def listening(self, listener: Listener) -> None:
        self._line(
            "listening",
            f"listening on {listener.url}, backlog {listener.backlog or 'unknown'}",
            url=listener.url,
            backlog=listener.backlog,
        )

    def left_out(self, address: object, reason: OSError) -> None:
        where = address if isinstance(address, str) else shown(address)  # type: ignore[arg-type]
        self._line("left_out", f"left out {where}: {reason.strerror}", address=address, reason=reason.strerror)

    def trouble(self, listener: Listener, error: OSError) -> None:
        self._seldom("trouble", f"{listener}: {error.strerror}; trying again", url=str(listener), error=error.strerror)

    def failed(self, _: object, context: dict[str, Any]) -> None:
        """The loop's exception handler: its own would write to stderr, and so might wait."""
        text = f"{context['message']}: {context.get('exception')!r}"
        self._seldom("error", text, error=text)

    def _seldom(self, event: str, text: str, **facts: Any) -> None:
        # A failure that repeats ten times a second gets one line in each period.
        if time.monotonic() < self._trouble_at:
            return
        self._trouble_at = time.monotonic() + self.every
        self._line(event, text, **facts)

    def figures(self, open: int, accepted: int, rate: float, queued: int | None) -> None:
        text = f"open {open}  accepted {accepted}  {rate:.0f}/s  queued {'?' if queued is None else queued}"
        told: dict[str, object] = {"open": open, "accepted": accepted, "queued": queued}
        if self._live:
            self._out.put(f"\r{text}\x1b[K", 1)
        elif told != self._told:
            self._line("figures", text, MOST_WAITING, **told, rate=round(rate, 1))
        self._told = told

    def summary(self, accepted: int, echoed: int, open: int, seconds: float) -> None:
        self._line(
            "summary",
            f"accepted {accepted} connections, echoed {echoed} bytes in {seconds:.1f} s; {open} were open at the end",
            accepted=accepted,
            echoed=echoed,
            open=open,
            seconds=round(seconds, 3),
        )
        self._out.close()

    def _line(self, event: str, text: str, most_waiting: int | None = None, **facts: object) -> None:
        if self._as_json:
            text = json.dumps({"event": event, **facts})
        elif self._live:
            text = f"\r{text}\x1b[K"
        self._out.put(f"{text}\n", most_waiting)


def run(listeners: Listeners, report: Report, stop: Stop, seconds: float | None = None) -> None:
    """Serves until a signal comes, or for ``seconds``."""
    asyncio.run(Server(listeners, report).serve(stop, seconds))


class Server:
    """Every connection in one event loop; every listener in a thread of its own."""

    def __init__(self, listeners: Listeners, report: Report) -> None:
        self.listeners = listeners
        self.report = report
        self.accepted = 0
        self.echoed = 0
        self.open: set[asyncio.Transport] = set()
        self._adopting: set[asyncio.Task[object]] = set()
        self._ended = threading.Event()

    async def serve(self, stop: Stop, seconds: float | None) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self.report.failed)
        ends = asyncio.Event()
        stop.tell = partial(loop.call_soon_threadsafe, ends.set)
        if stop.asked:
            ends.set()
        threads = [threading.Thread(target=self._accept, args=(listener, loop)) for listener in self.listeners]
        begun = time.monotonic()
        for listener in self.listeners:
            self.report.listening(listener)
        for address, reason in self.listeners.left_out:
            self.report.left_out(address, reason)
        figures = loop.create_task(self._tell())
        for thread in threads:
            thread.start()
        try:
            await asyncio.wait_for(ends.wait(), seconds)
        except TimeoutError:
            pass  # --for is over
        finally:
            figures.cancel()
            self._ended.set()
            await asyncio.to_thread(self._close, threads)
            await asyncio.gather(*self._adopting, return_exceptions=True)
            open_at_end = len(self.open)
            for transport in list(self.open):
                transport.abort()
            seconds = time.monotonic() - begun
            await asyncio.to_thread(self.report.summary, self.accepted, self.echoed, open_at_end, seconds)
            stop.tell = int

    def _close(self, threads: list[threading.Thread]) -> None:
        self.listeners.close()  # a path may be on a file system that is far away
        for thread in threads:
            thread.join()

    def _accept(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        """The accept loop of one listener: ends when the listener is closed."""
        while True:
            try:
                connections = listener.accept_many()
            except OSError as error:
                if self._ended.is_set():
                    return
                loop.call_soon_threadsafe(self.report.trouble, listener, error)
                self._ended.wait(PAUSE)
            else:
                loop.call_soon_threadsafe(self._adopt, connections)

    def _adopt(self, connections: list[Socket]) -> None:
        self.accepted += len(connections)
        loop = asyncio.get_running_loop()
        for connection in connections:
            task = loop.create_task(loop.connect_accepted_socket(lambda: Echo(self), connection.to_socket()))
            self._adopting.add(task)
            task.add_done_callback(self._adopted)

    def _adopted(self, task: asyncio.Task[object]) -> None:
        self._adopting.discard(task)
        if not task.cancelled():
            task.exception()  # the client has gone already, which is no failure

    async def _tell(self) -> None:
        accepted, at = 0, time.monotonic()
        while True:
            await asyncio.sleep(self.report.every)
            now = time.monotonic()
            queued = [queue(listener.fileno())[0] for listener in self.listeners]
            known = [count for count in queued if count is not None]
            self.report.figures(
                len(self.open), self.accepted, (self.accepted - accepted) / (now - at), sum(known) if known else None
            )
            accepted, at = self.accepted, now


class Echo(asyncio.Protocol):
    """Sends back what it receives. From a client that does not read, it does not read either."""

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.open.add(transport)

    def data_received(self, data: bytes) -> None:
        self.server.echoed += len(data)
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the name that asyncio gave it
        self.server.open.discard(self.transport)
