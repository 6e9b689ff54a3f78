"""`Server`: what `start_server` and `create_server` return. It accepts in batches when the loop says that there is
something to accept: by ``loop.add_reader()`` on the acceptor's one descriptor, or where the loop or the engine has
none, by a thread that waits."""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from .._acceptor import Acceptor
from .._draining import Drained, added, stop, waiting
from .._listener import Listener
from .._socket import Socket, queue_of, state_of
from .._system import of_this_process
from .._uvloop import must_be_protocol
from ._threads import aside, can_wait, close_all, with_explanation
from ._transports import way

if TYPE_CHECKING:
    from .._uvloop import Lent
    from ._transports import Held, Tracked

_FATAL = (SystemExit, KeyboardInterrupt)
_AGES = 30 * 365 * 86400.0  # seconds; uvloop takes no more than a hundred years


class Server(asyncio.AbstractServer):
    """What `create_server` and `start_server` return: it behaves as ``asyncio.Server`` of Python 3.13 does, on every
    Python and every loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listeners: list[Socket],
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        backlog: int | None,
        tls: dict[str, Any],
        limits: dict[str, Any],
        given: Sequence[Any],
    ) -> None:
        self._loop = loop
        self._given = given  # the caller's sockets, which are closed with ours
        self._factory = protocol_factory
        self._backlog = backlog
        self._tls = tls
        self._limits = limits
        self._acceptor: Engine | None = None
        self._descriptor = -1  # the acceptor's, while the loop polls it, or may do so
        self._taken: threading.Event | None = None  # for the thread that waits, if there is one
        self._held: set[Held | Lent | Tracked] = set()  # connections that are not lost yet
        self._batches = 0  # that are being handed over
        self._waiters: list[asyncio.Future[None]] | None = []
        self._leaving = False  # paths are being removed, in a thread
        self._leavers: list[asyncio.Future[None]] = []  # who waits for that
        self._paths: dict[int, threading.Lock] = {}  # of the threads that listen or close: one in each process
        self._forever: asyncio.Future[None] | None = None
        self._draining = False
        self._anchor: asyncio.TimerHandle | None = None
        # What close() has still to do. Each part is noted before it is begun, and struck off when it is done, so that a
        # second call goes on where the first was interrupted.
        self._ending = False
        self._closing: tuple[Any, ...] = ()  # sockets
        self._remaining: list[Socket] = []  # connections that the engine had taken
        self._connect = way(self)
        self._listeners: tuple[Socket, ...] | None = tuple(listeners)  # last: from now on this closes them

    def __repr__(self) -> str:
        return f"<harken.asyncio.Server {', '.join(map(str, self._listeners or ())) or 'closed'}>"

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:  # Python's end may have taken the module
        # The loop was closed while this served, or it never served.
        if getattr(self, "_listeners", None) is not None or getattr(self, "_ending", False):
            try:
                _warn(f"unclosed server {self!r}", ResourceWarning, stacklevel=1, source=self)
            finally:
                self._stop()

    # ------------------------------------------------------------------ as asyncio.Server

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop that the server runs on."""
        return self._loop

    def is_serving(self) -> bool:
        """Whether the server accepts connections now."""
        return self._acceptor is not None

    @property
    def sockets(self) -> tuple[Socket, ...]:
        """The listeners; none when the server is closed."""
        return self._listeners or ()

    @property
    def acceptor(self) -> Acceptor | None:
        """The `harken.Acceptor`, while the server serves: to pause it, or read its counters."""
        return self._acceptor

    async def start_serving(self) -> None:
        """Starts to listen and accept, if it has not yet."""
        await with_explanation(self._begin())

    async def _begin(self) -> None:
        if self._acceptor is not None:
            return
        if self._backlog is not None or any(map(_listening_can_wait, self._must_be_open())):
            await aside(self._listen_aside)
        else:
            self._listen()
        self._must_be_open()  # nobody has closed it meanwhile
        if self._acceptor is None:
            self._serve()

    def _must_be_open(self) -> tuple[Socket, ...]:
        if self._listeners is None:
            raise RuntimeError(f"server {self!r} is closed")
        return self._listeners

    def _listen(self) -> None:
        for listener in self._listeners or ():
            _listen(listener, self._backlog)

    def _listen_aside(self) -> None:
        with of_this_process(self._paths, threading.Lock):  # what is being closed is not listened on
            self._listen()

    def _serve(self) -> None:
        acceptor = Engine(self._must_be_open(), **self._limits)
        acceptor.server = weakref.ref(self)
        self._acceptor, self._release = acceptor, acceptor.release
        try:
            try:
                # Noted before: what is polled must be given up before it is closed, or else uvloop aborts the process.
                self._descriptor = acceptor.fileno()
                self._loop.add_reader(self._descriptor, self._take)
            except (NotImplementedError, OSError):  # the proactor loop; an engine without a descriptor
                self._descriptor = -1
                self._wait_in_a_thread(acceptor)
        except BaseException:
            self._release_loop()
            self._acceptor = None
            acceptor.end()
            raise

    def _wait_in_a_thread(self, acceptor: Engine) -> None:
        # As long as the server serves, its loop refers to it, as it does to what it reads from. The thread refers to
        # neither of the two: so they end together when nobody has the loop any more, and the thread with them.
        self._anchor = self._loop.call_later(_AGES, self._take)
        self._taken = threading.Event()
        server, loop = weakref.ref(self), weakref.ref(self._loop)
        arguments = (acceptor, loop, server, self._taken, copy_context())
        threading.Thread(target=_watch, args=arguments, name="harken.asyncio", daemon=True).start()

    def _release_loop(self) -> None:
        if self._descriptor >= 0 and not self._loop.is_closed():
            self._loop.remove_reader(self._descriptor)
        self._descriptor = -1
        if self._anchor is not None:
            self._anchor.cancel()
        if self._taken is not None:
            self._taken.set()
        self._anchor = None

    async def serve_forever(self) -> None:
        """Serves until the server is closed, or this task is cancelled, which closes the server without waiting for its
        clients."""
        if self._forever is not None:
            raise RuntimeError(f"server {self!r} is already being awaited on serve_forever()")
        self._must_be_open()
        self._forever = self._loop.create_future()
        try:
            await self.start_serving()
            await self._forever
        except asyncio.CancelledError:
            self.close()
            await self._paths_are_free()
            raise
        finally:
            self._forever = None

    def close(self) -> None:
        """Stops accepting and closes the listeners. Connections stay open. A second call does nothing, unless a signal
        handler that raises has interrupted the first: then it does the rest.

        While the loop runs, unix sockets are closed and their paths removed in a thread, which `wait_closed` waits for.
        """
        if self._listeners is None and not self._ending:
            self._wake_if_over()
            return
        self._stop()
        if self._forever is not None and not self._forever.done():
            self._forever.cancel()
        self._forever = None
        # What the engine has taken and not handed out is served: these clients are connected.
        left, self._remaining = self._remaining, []
        if self._loop.is_closed():
            for connection in left:
                connection.close()
        elif left:
            self._hand_over(left)
        self._ending = False
        self._wake_if_over()

    def _stop(self, _close_all: Callable[..., bool] = close_all) -> None:
        """Also for a loop that is closed. What the engine still had is in ``_remaining``."""
        self._ending = True
        if self._listeners is not None:
            self._closing = (*self._listeners, *self._given)
            self._listeners, self._given = None, ()
        self._release_loop()
        if self._acceptor is not None:
            self._acceptor.end()
            self._remaining.extend(self._acceptor)
            for connection in self._remaining:
                connection.setblocking(False)
            self._acceptor = None
        if self._closing:
            self._leaving = True  # before there is a thread that takes it back
            if not _close_all(self._closing, self._paths, self._has_left):
                self._leaving = False
            self._closing = ()

    def _has_left(self) -> None:
        """In a thread: the paths are free."""
        self._leaving = False  # here, for the call on the loop may be interrupted
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._tell_leavers)

    def _tell_leavers(self) -> None:
        for leaver in self._leavers:
            if not leaver.done():
                leaver.set_result(None)
        self._leavers.clear()
        self._wake_if_over()

    async def _paths_are_free(self) -> None:
        if self._leaving:
            leaver = self._loop.create_future()
            self._leavers.append(leaver)
            await leaver

    @property
    def draining(self) -> bool:
        """Is the server about to end? Then a protocol tells its client that this connection ends with the answer:
        ``Connection: close``, GOAWAY, 1001."""
        return self._draining

    async def drain(self, deadline: float = 30.0) -> Drained:
        """Stops without losing a client, and returns a `harken.Drained`: no new connections; those whose handshake has
        begun, and those in the queue, are served; the listeners are closed; then this waits for the connections, and
        at the deadline aborts those that are left. See `Acceptor.drain` for how new connections are stopped, and for
        listeners that other processes have too.

        ``deadline`` is in seconds, for all of it. Connections that are kept open by their clients last until then,
        unless the protocol ends them: it asks `draining`. A task that is cancelled closes the server without waiting
        for its clients."""
        if not deadline >= 0:
            raise ValueError(f"deadline must be a number of seconds that is not negative: {deadline!r}")
        begun = time.monotonic()
        until = begun + deadline
        acceptor = self._acceptor
        self._draining = True
        if acceptor is None:
            self.close()
            await self._end_by(until)
            return Drained(0, 0, 0, 0, time.monotonic() - begun)
        before = acceptor.stats()
        listeners, shared = acceptor._begin_drain()
        lost: int | None = 0
        try:
            if not shared:
                lost = await aside(partial(stop, listeners, until))
                while self._acceptor is not None and waiting(listeners) and time.monotonic() < until:
                    await asyncio.sleep(0.005)
                lost = added(lost, waiting(listeners))
        finally:  # also when it is cancelled: nobody can connect any more
            self.close()
        left = await self._end_by(until)
        after = acceptor.stats()
        since = after.accepted - before.accepted
        return Drained(since, before.open + since - left, left, lost, time.monotonic() - begun)

    async def _end_by(self, until: float) -> int:
        """Waits for the connections, aborts those that are left, and tells how many these were."""
        left = 0
        try:
            await asyncio.wait_for(self.wait_closed(), max(0, until - time.monotonic()))
        except TimeoutError:
            left = len(self._held)
            self.abort_clients()
            await self.wait_closed()
        return left

    def close_clients(self) -> None:
        """Closes all connections, each after what was written to it is sent."""
        self._each("close")

    def abort_clients(self) -> None:
        """Closes all connections at once."""
        self._each("abort")

    def _each(self, what: str) -> None:
        for held in list(self._held):
            held.end(what)

    async def wait_closed(self) -> None:
        """Waits until the server and all of its connections are closed, on every Python as asyncio does since
        3.12.1."""
        if self._ending:  # close() was interrupted
            self.close()
        self._wake_if_over()
        if self._waiters is None:
            return
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake_if_over(self) -> None:
        if self._held or self._batches or self._leaving or self._ending or self._listeners is not None:
            return
        if self._loop.is_closed():
            return
        if self._waiters is not None:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._waiters = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Closes it and waits for the clients; after an exception, a cancelled task's for one, not for the clients."""
        self.close()
        if exc_info[0] is None:
            await self.wait_closed()
        else:
            await self._paths_are_free()

    # ------------------------------------------------------------------ from the engine to the loop

    def _take(self) -> None:
        """The loop says that there is something to do."""
        acceptor = self._acceptor
        if acceptor is None:
            return
        try:
            connections = acceptor.accept_many()
        except OSError as error:
            self._report("accepting failed", error)
            if acceptor.closed:  # the last listener was closed, and not by close()
                self.close()
            return
        if connections:
            self._hand_over(connections)

    def _hand_over(self, connections: Iterable[Socket], held: bool = False) -> None:
        left = iter(connections)
        try:
            if not held:
                self._batches, held = self._batches + 1, True  # a factory may close the server before it has the rest
            for connection in left:
                self._connect(self, connection)
            self._batches, held = self._batches - 1, False
            self._wake_if_over()
        except BaseException:  # the loop stops; if it goes on, so does this
            self._loop.call_soon(self._hand_over, left, held)
            raise

    def _not_begun(self, connection: Socket, error: BaseException) -> None:
        connection.close()
        if isinstance(error, _FATAL):
            raise error
        self._report("Error on transport creation for incoming connection", error)

    def _report(self, message: str, error: BaseException) -> None:
        self._loop.call_exception_handler({"message": message, "exception": error, "server": self})

    def _failed(self, error: BaseException) -> None:
        """A connection did not get its transport. A handshake that fails is the client's business, as in asyncio."""
        if isinstance(error, _FATAL):
            raise error
        if not isinstance(error, (OSError, asyncio.CancelledError)):
            self._report("Error on transport creation for incoming connection", error)

    def _protocol(self) -> asyncio.BaseProtocol:
        return must_be_protocol(self._factory())

    def _given_back(self, lent: Tracked) -> None:
        """It is closed. The engine does not know."""
        self._release()
        self._lost(lent)

    def _lost(self, held: Held | Tracked) -> None:
        self._held.discard(held)
        if self._listeners is None:
            self._wake_if_over()

    def _let_go(self, _: object) -> None:
        """As `_given_back`, of what asyncio's transport tells the end."""
        self._release()


class Engine(Acceptor):
    """To close it is to close its server, for a loop must not poll a descriptor that is gone: uvloop's aborts then."""

    server: Callable[[], Server | None] | None = None

    def end(self) -> None:
        super().close()

    def close(self) -> None:
        server = self.server and self.server()
        if server is None or server._acceptor is not self or server._loop.is_closed():
            self.end()
        elif asyncio._get_running_loop() is server._loop:
            server.close()
        else:  # from another thread
            with suppress(OSError):  # closed meanwhile
                self.pause()
            with suppress(RuntimeError):  # the loop was closed meanwhile
                server._loop.call_soon_threadsafe(server.close)


def _watch(
    acceptor: Acceptor,
    loop: weakref.ref[asyncio.AbstractEventLoop],
    server: weakref.ref[Server],
    taken: threading.Event,
    context: Context,
) -> None:
    """In a thread: wakes the loop, and waits until it has taken what there was."""
    more = True
    while more:
        with suppress(OSError):  # accept_many() meets it too, and tells
            more = acceptor.wait()
        taken.clear()
        if not _told(loop(), server, taken, context):
            return
        while more and not taken.wait(1):
            more = not acceptor.closed  # or else the loop is gone, and the call with it


def _told(loop: Any, server: weakref.ref[Server], taken: threading.Event, context: Context) -> bool:
    try:
        if loop is not None:
            loop.call_soon_threadsafe(_take_once, server, taken, context=context)
            return True
    except RuntimeError:  # the loop is closed
        pass
    return False


def _take_once(reference: weakref.ref[Server], taken: threading.Event) -> None:
    try:
        server = reference()
        if server is not None:
            server._take()
    finally:
        taken.set()


def _listen(listener: Socket, backlog: int | None) -> None:
    """A queue is never made shorter."""
    if not isinstance(listener, Listener) and state_of(listener) == "listening":
        granted = queue_of(listener)[1]
        if backlog is None or granted is None or backlog <= granted:
            return
    listener.listen(backlog)


def _listening_can_wait(listener: Socket) -> bool:
    """Options are compared with what the system has granted, and its limits are read for the warning."""
    return can_wait(listener) or (isinstance(listener, Listener) and listener.plan.options is not None)
