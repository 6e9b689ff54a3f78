"""The main job: an echo server for any number of clients.

Accepting is harken's: one thread for each listener, which takes all connections that wait in one call. Serving is
asyncio's: one event loop for all clients, with its flow control, on IOCP where there is one.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import TextIO

from ._errors import ListenError
from ._listen import listen
from ._listener import Listener, Listeners
from ._socket import Socket

DEFAULT_BINDS = ("127.0.0.1:27015", "[::1]:27015")
PAUSE = 0.1  # seconds, when accept() fails because something has run out


def open_listeners(binds: Sequence[str], backlog: int | None) -> Listeners:
    """The listeners that were asked for; by default the loopback addresses that this machine has."""
    if binds:
        return listen(*binds, backlog=backlog)
    try:
        return listen(*DEFAULT_BINDS, backlog=backlog)
    except ListenError as error:
        # A machine without IPv6 still has its IPv4 loopback. Any other failure is the user's to know.
        if error.address[0] != "::1" or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        try:
            return listen(DEFAULT_BINDS[0], backlog=backlog)
        except ListenError:
            raise error from None


class Report:
    """What the server tells: a line that is rewritten on a terminal, whole lines elsewhere, or JSON."""

    def __init__(self, out: TextIO, as_json: bool, every: float) -> None:
        self._out = out
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
        self._line("left_out", f"left out {address}: {reason.strerror}", address=address, reason=reason.strerror)

    def trouble(self, listener: Listener, error: OSError) -> None:
        # What fails ten times a second is worth a line in each period.
        if time.monotonic() < self._trouble_at:
            return
        self._trouble_at = time.monotonic() + self.every
        self._line("trouble", f"{listener}: {error.strerror}; trying again", url=str(listener), error=error.strerror)

    def figures(self, open: int, accepted: int, rate: float, queued: int | None) -> None:
        text = f"open {open}  accepted {accepted}  {rate:.0f}/s  queued {'?' if queued is None else queued}"
        told: dict[str, object] = {"open": open, "accepted": accepted, "queued": queued}
        if self._live:
            self._write(f"\r{text}\x1b[K")
        elif told != self._told:
            self._line("figures", text, **told, rate=round(rate, 1))
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

    def _line(self, event: str, text: str, **facts: object) -> None:
        if self._as_json:
            text = json.dumps({"event": event, **facts})
        elif self._live:
            text = f"\r{text}\x1b[K"
        self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except OSError:
            # Whoever read it has left, the clients have not. What was not written goes nowhere, also when Python ends.
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._out.fileno())


def run(listeners: Listeners, report: Report, seconds: float | None = None) -> None:
    """Serves until Ctrl-C, SIGTERM, or for ``seconds``."""
    asyncio.run(Server(listeners, report).serve(seconds))


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

    async def serve(self, seconds: float | None) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        before = {
            number: signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
            for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGBREAK", None))
            if number is not None
        }
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
            await asyncio.wait_for(stop.wait(), seconds)
        except TimeoutError:
            pass  # --for is over
        finally:
            figures.cancel()
            self._ended.set()
            self.listeners.close()
            await asyncio.gather(*(loop.run_in_executor(None, thread.join) for thread in threads))
            await asyncio.gather(*self._adopting, return_exceptions=True)
            open_at_end = len(self.open)
            for transport in list(self.open):
                transport.abort()
            self.report.summary(self.accepted, self.echoed, open_at_end, time.monotonic() - begun)
            for number, handler in before.items():
                signal.signal(number, handler)

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
            task.exception()  # a client that is gone already is nobody's failure

    async def _tell(self) -> None:
        accepted, at = 0, time.monotonic()
        while True:
            await asyncio.sleep(self.report.every)
            now = time.monotonic()
            queued = [listener.stats().queued for listener in self.listeners]
            known = [count for count in queued if count is not None]
            self.report.figures(
                len(self.open), self.accepted, (self.accepted - accepted) / (now - at), sum(known) if known else None
            )
            accepted, at = self.accepted, now


class Echo(asyncio.Protocol):
    """Sends back what comes. A client that does not read is not read from either."""

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
