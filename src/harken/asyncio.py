"""asyncio's servers over the accept engine: `start_server` and `create_server`, with asyncio's own signatures.

::

    server = await harken.asyncio.start_server(greet, "127.0.0.1", 8080, max_open=1000)
    server = await harken.asyncio.create_server(Protocol, ":8080", ssl=context)
    async with server:
        await server.serve_forever()

What differs from asyncio's: connections are taken in batches by an `harken.Acceptor`, which survives running out of
descriptors; no task is made for each; the queue has the length that the system grants, and never becomes shorter; a
protocol factory that fails closes its connection, and the loop's exception handler is told.

When there is something to take is told by ``loop.add_reader()`` on the acceptor's one descriptor, or where the loop or
the engine has none, by a thread that waits. How a connection gets to the loop is in `_transport.py`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - asyncio imports it at the first look-up, on the loop's thread
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Never, Self, TypeVar

from ._acceptor import Acceptor
from ._aside import aside, can_wait, close_all, explained, wait_for_paths
from ._bind import Bind
from ._errors import ListenError
from ._hosts import binds_of
from ._inherit import adopt
from ._listen import bind
from ._listener import Listener, Listeners
from ._loading import PARTS, idna, load
from ._options import Options, nearest
from ._socket import Socket, describe, let_go, queue_of, state_of
from ._system import AF_UNSPEC, AI_PASSIVE, SOCK_STREAM
from ._transport import way
from ._types import Address, OnOverload

if TYPE_CHECKING:
    from ssl import SSLContext

    from ._transport import Held, Lent, Tracked
else:
    try:  # for typing.get_type_hints()
        from ssl import SSLContext
    except ImportError:  # this Python has no TLS
        SSLContext = Any

__all__ = ["Server", "create_server", "start_server"]

# What is for options, errors and other names is loaded now, and not on a loop's thread.
for _part in PARTS:
    load(f"harken.{_part}")
idna("harken\u00e9")

_FATAL = (SystemExit, KeyboardInterrupt)
_AGES = 30 * 365 * 86400.0  # seconds; uvloop takes no more than a hundred years

T = TypeVar("T")


async def start_server(
    client_connected_cb: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object],
    host: Any = None,
    port: int | str | None = None,
    *,
    limit: int = 2**16,
    family: int = AF_UNSPEC,
    flags: int = AI_PASSIVE,
    sock: Any = None,
    backlog: int | None = None,
    ssl: SSLContext | None = None,
    reuse_address: bool | None = None,
    reuse_port: bool | None = None,
    keep_alive: bool | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    start_serving: bool = True,
    max_open: int | None = None,
    batch: int | None = None,
    on_overload: OnOverload = "pause",
    engine: str | None = None,
    ipv6_only: bool | None = None,
    exclusive: bool | None = None,
    nodelay: bool | None = None,
    keepalive: bool | None = None,
    keepalive_idle: int | None = None,
    keepalive_interval: int | None = None,
    keepalive_count: int | None = None,
    user_timeout: int | None = None,
    defer_accept: int | None = None,
    fastopen: int | None = None,
    rcvbuf: int | None = None,
    sndbuf: int | None = None,
    freebind: bool | None = None,
    transparent: bool | None = None,
    interface: str | None = None,
    mark: int | None = None,
    tos: int | None = None,
    ttl: int | None = None,
    mss: int | None = None,
    congestion: str | None = None,
    priority: int | None = None,
    incoming_cpu: int | None = None,
    busy_poll: int | None = None,
    inheritable: bool | None = None,
    mode: int | None = None,
    owner: str | int | None = None,
    group: str | int | None = None,
    configure: Callable[[Socket, Address], object] | None = None,
    **kwds: Never,
) -> Server:
    """``asyncio.start_server()`` over `harken.Acceptor`: ``client_connected_cb(reader, writer)``, a function or a
    coroutine function, is called for each connection; if it raises, the connection is closed. ``limit`` is asyncio's,
    how much a StreamReader buffers; ``max_open`` is how many connections may be open at once. For the rest see
    `create_server`."""
    given = locals()
    _refuse(kwds, start_server, "start_server()")
    if limit <= 0:
        raise ValueError("Limit cannot be <= 0")  # as StreamReader says, for each connection
    loop = asyncio.get_running_loop()

    def factory() -> asyncio.StreamReaderProtocol:
        reader = asyncio.StreamReader(limit=limit, loop=loop)
        return _StreamProtocol(reader, client_connected_cb, loop=loop)  # type: ignore[arg-type]

    return await _explained(_create(factory, given | {"limit": None}))


# From 3.11.7 and 3.12.1 on CPython closes the connection of a coroutine that fails, and tells the loop.
_LEFT_TO_US = sys.version_info < (3, 11, 7) or sys.version_info[:3] == (3, 12, 0)


class _StreamProtocol(asyncio.StreamReaderProtocol):
    """asyncio closes the connection of a coroutine that fails, not that of a function: nobody else would."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        try:
            super().connection_made(transport)
        except BaseException:
            transport.close()
            raise
        task: asyncio.Task[object] | None = getattr(self, "_task", None)
        if _LEFT_TO_US and task is not None:
            task.add_done_callback(partial(self._ended, transport))

    def _ended(self, transport: asyncio.BaseTransport, task: asyncio.Task[object]) -> None:
        if task.cancelled():
            transport.close()
        elif (error := task.exception()) is not None:
            message = "Unhandled exception in client_connected_cb"
            context = {"message": message, "exception": error, "transport": transport}
            task.get_loop().call_exception_handler(context)
            transport.close()


async def create_server(
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    host: Any = None,
    port: int | str | None = None,
    *,
    family: int = AF_UNSPEC,
    flags: int = AI_PASSIVE,
    sock: Any = None,
    backlog: int | None = None,
    ssl: SSLContext | None = None,
    reuse_address: bool | None = None,
    reuse_port: bool | None = None,
    keep_alive: bool | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    start_serving: bool = True,
    limit: int | None = None,
    max_open: int | None = None,
    batch: int | None = None,
    on_overload: OnOverload = "pause",
    engine: str | None = None,
    ipv6_only: bool | None = None,
    exclusive: bool | None = None,
    nodelay: bool | None = None,
    keepalive: bool | None = None,
    keepalive_idle: int | None = None,
    keepalive_interval: int | None = None,
    keepalive_count: int | None = None,
    user_timeout: int | None = None,
    defer_accept: int | None = None,
    fastopen: int | None = None,
    rcvbuf: int | None = None,
    sndbuf: int | None = None,
    freebind: bool | None = None,
    transparent: bool | None = None,
    interface: str | None = None,
    mark: int | None = None,
    tos: int | None = None,
    ttl: int | None = None,
    mss: int | None = None,
    congestion: str | None = None,
    priority: int | None = None,
    incoming_cpu: int | None = None,
    busy_poll: int | None = None,
    inheritable: bool | None = None,
    mode: int | None = None,
    owner: str | int | None = None,
    group: str | int | None = None,
    configure: Callable[[Socket, Address], object] | None = None,
    **kwds: Never,
) -> Server:
    """``loop.create_server()`` over `harken.Acceptor`, for the running loop.

    ``host`` and ``port`` are asyncio's; a wildcard with port 0 gets one port for both families. Without a port,
    ``host`` may also be a bind (``":8080"``, ``"unix:/run/app.sock"``, ``8080``), a sequence of binds, or what
    `harken.listen` or `harken.bind` returned; ``("127.0.0.1", 8080)`` is refused, as it would be two binds, of which
    8080 is every address. Names are looked up by ``loop.getaddrinfo()``. ``sock`` may be a ``socket.socket``, a
    `harken.Socket`, or several. Listeners and ``sock`` belong to the server: it closes them.

    ``backlog``: by default the queue is as long as the system grants, or as it is already. A number never shortens the
    queue of a socket that listens.

    ``reuse_port`` joins the sockets of other processes on the same port, as in asyncio. ``reuse_address``: SO_REUSEADDR
    is on on POSIX and never on Windows; False is `exclusive`. From ``ipv6_only`` on the options are those of
    `harken.listen`.

    ``limit``: how many connections may be open at once; further clients wait in the queue. ``max_open`` is the same: it
    is the name that `start_server` has, where ``limit`` is asyncio's. ``batch``, ``on_overload``, ``engine``: see
    `harken.Acceptor`.

    What may wait, such as making the path of a unix socket, runs in a thread; ``configure`` may be called there.

    Raises ValueError or TypeError for invalid arguments, and ListenError, which is an OSError, if an address cannot be
    had; nothing stays open then.
    """
    given = locals()
    _refuse(kwds, create_server, "create_server()")
    return await _explained(_create(protocol_factory, given))


_OPTIONS = tuple(name for name in Options.__dataclass_fields__ if name not in ("backlog", "reuse_port"))


async def _explained(work: Coroutine[Any, Any, T]) -> T:
    """What an error is going to say is found out before it is raised, and not on the loop's thread."""
    try:
        return await work
    except ListenError as error:
        await explained(error)
        raise


async def _create(protocol_factory: Callable[[], asyncio.BaseProtocol], given: dict[str, Any]) -> Server:
    """What both come to. ``given``: the arguments by their names."""
    host, port, sock, backlog = given["host"], given["port"], given["sock"], given["backlog"]
    limits = {name: given[name] for name in ("limit", "max_open", "batch")}
    tls = {name: given[name] for name in ("ssl", "ssl_handshake_timeout", "ssl_shutdown_timeout")}
    options = {name: given[name] for name in _OPTIONS if given[name] is not None}
    _check(protocol_factory, limits, tls)
    if sock is not None:
        if host is not None or port is not None:
            raise ValueError("host/port and sock can not be specified at the same time")
        if options:
            raise TypeError(f"a socket that is there already takes no options: {', '.join(options)}")
        sock = [sock] if isinstance(sock, Socket) or not isinstance(sock, Iterable) else list(sock)
    elif host is None and port is None:
        raise ValueError("Neither host/port nor sock were specified")
    else:
        reuse_port = given["reuse_port"]
        wished = {
            "backlog": backlog,
            "reuse_port": "join" if reuse_port else None,
            "keepalive": given["keep_alive"] or None,
        }
        if given["reuse_address"] is False and not reuse_port:
            wished["exclusive"] = True
        options |= {name: value for name, value in wished.items() if value is not None}
    limits = {
        "batch": limits["batch"],
        "limit": limits["limit"] or limits["max_open"],
        "on_overload": given["on_overload"],
        "engine": given["engine"],
    }
    loop = asyncio.get_running_loop()
    server: Server | None = None
    opened: list[Listeners] = []  # by the thread that makes them, before it tells
    try:
        if sock is not None:
            listeners = _from_sockets(sock)
        else:
            listeners = await _bound(host, port, given["family"], given["flags"], options, opened)
        server = Server(loop, listeners, protocol_factory, backlog, tls if tls["ssl"] else {}, limits, sock or ())
        if given["start_serving"]:
            await server.start_serving()
        return server
    except BaseException as error:
        await _undo(server, opened, error)
        raise


async def _undo(server: Server | None, opened: list[Listeners], error: BaseException) -> None:
    """A listener that is only dropped leaves its path behind."""
    waits = not isinstance(error, GeneratorExit)  # a coroutine that is closed must not await
    if server is not None:
        server.close()
        if waits:
            await server._paths_are_free()
    elif opened and waits:
        await aside(partial(_close, opened))
    else:
        _close(opened)


def _refuse(unknown: dict[str, Any], function: Callable[..., object], called: str) -> None:
    """Names that the function does not have, which a type checker finds too: their type is Never."""
    for name in unknown:
        near = nearest(name, function.__kwdefaults__ or ())
        raise TypeError(
            f"{called} got an unexpected keyword argument {name!r}" + (f"; did you mean {near!r}?" if near else "")
        )


def _check(protocol_factory: Any, counts: dict[str, Any], tls: dict[str, Any]) -> None:
    """What is wrong is told before anything is opened."""
    if not callable(protocol_factory):
        raise TypeError(f"protocol_factory must be callable, not {type(protocol_factory).__name__}")
    if counts["limit"] is not None and counts["max_open"] is not None:
        raise TypeError("limit and max_open are the same: give one of them")
    for name, number in counts.items():
        if number is not None and (not isinstance(number, int) or number < 1):
            raise (ValueError if isinstance(number, int) else TypeError)(f"{name} must be at least 1: {number!r}")
    if tls["ssl"] is not None and not hasattr(tls["ssl"], "wrap_bio"):
        raise TypeError("ssl argument must be an SSLContext or None")
    for name, seconds in tls.items():
        if tls["ssl"] is None and seconds is not None:
            raise ValueError(f"{name} is only meaningful with ssl")


# ---------------------------------------------------------------------------- where it listens


def _from_sockets(given: Sequence[Any]) -> list[Socket]:
    """A ``socket.socket`` of the caller's stays usable, as in asyncio, where it is the very socket that listens."""
    for sock in given:
        if hasattr(sock, "do_handshake"):
            raise TypeError("Socket cannot be of type SSLSocket")
        if getattr(sock, "type", None) != SOCK_STREAM:
            raise ValueError(f"A Stream Socket was expected, got {sock!r}")
    listeners: list[Socket] = []
    try:
        for sock in given:
            if isinstance(sock, Socket):
                listeners.append(sock)
                continue
            with sock.dup() as duplicate:  # empty when it is adopted
                listeners.append(_adopted(duplicate))
    except BaseException:
        for mine in set(listeners).difference(given):
            mine.close()
        raise
    if not listeners:
        raise ValueError("there is no socket to listen on")
    return listeners


def _adopted(sock: Any) -> Socket:
    """One without an address gets a free port from listen(2)."""
    if describe(sock.fileno())[2] == "new":
        made = Socket(fileno=sock.fileno())
        try:
            sock.detach()
        except BaseException:
            let_go(made)
            raise
        return made
    return adopt(sock)


async def _bound(
    host: Any, port: Any, family: int, flags: int, options: dict[str, Any], opened: list[Listeners]
) -> list[Socket]:
    """Listeners, for the time being bound only. Those that are made here are in ``opened``, also when this raises."""
    if port is None:
        only = isinstance(host, (str, int, Bind, Socket)) or not isinstance(host, Iterable)
        several: Any = host
        given: list[Any] = [host] if only else list(several)
        if given and all(isinstance(one, Socket) for one in given):
            if ignored := options.keys() - {"backlog"}:
                raise TypeError(f"listeners that are there already take no options: {', '.join(sorted(ignored))}")
            return given
        host = host if only or isinstance(host, (bytes, bytearray, memoryview)) else given
    binds = await binds_of(host, port, family, flags)
    if not binds:
        raise ValueError("there is no host to listen on")
    if options or any(map(_opening_can_wait, binds)):
        await aside(partial(_open, binds, options, opened), lambda _: _close(opened))
    else:
        opened.append(bind(*binds, **options))  # TCP only: one that is dropped is closed, and leaves nothing
    return list(opened[0])


def _close(opened: list[Listeners]) -> None:
    for listeners in opened:
        listeners.close()


def _opening_can_wait(one: Bind) -> bool:
    """Not that of an address in digits, by TCP. Options look at the system's limits, and at who shares a port."""
    return not one.is_plain or bool(one.options)


def _open(binds: Sequence[Bind], options: dict[str, Any], opened: list[Listeners]) -> None:
    if any(one.path for one in binds):
        wait_for_paths()
    opened.append(bind(*binds, **options))


def _listen(listener: Socket, backlog: int | None) -> None:
    """A queue is never made shorter."""
    if not isinstance(listener, Listener) and state_of(listener) == "listening":
        granted = queue_of(listener)[1]
        if backlog is None or granted is None or backlog <= granted:
            return
    listener.listen(backlog)


def _listening_can_wait(listener: Socket) -> bool:
    """Options are compared with what the system has granted, and its limits are read for the warning."""
    return can_wait(listener) or getattr(listener, "plan", None) is not None


# ---------------------------------------------------------------------------- the server


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
        self._paths = threading.Lock()  # of the threads that listen or close
        self._forever: asyncio.Future[None] | None = None
        self._anchor: asyncio.TimerHandle | None = None
        # What close() has still to do. Each part is noted before it is begun, and struck off when it is done, so that a
        # second call goes on where the first was interrupted.
        self._ending = False
        self._closing: tuple[Any, ...] = ()  # sockets
        self._remaining: list[Socket] = []  # connections that the engine had taken
        self._connect = way(loop)
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
        return self._loop

    def is_serving(self) -> bool:
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
        await _explained(self._begin())

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
        with self._paths:  # what is being closed is not listened on
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
                self._begin_one(connection)
            self._batches, held = self._batches - 1, False
            self._wake_if_over()
        except BaseException:  # the loop stops; if it goes on, so does this
            self._loop.call_soon(self._hand_over, left, held)
            raise

    def _begin_one(self, connection: Socket) -> None:
        try:
            # In a context of its own, as if it were a task.
            copy_context().run(self._connect, self, connection)
        except BaseException as error:
            connection.close()
            if isinstance(error, _FATAL):
                raise
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
        protocol = self._factory()
        if isinstance(protocol, type) or not hasattr(protocol, "connection_made"):
            # Found out before there is a transport, which would stay.
            raise TypeError(f"the protocol factory returned {protocol!r}, which is no protocol")
        return protocol

    def _given_back(self, lent: Lent | Tracked) -> None:
        """It is closed. The engine does not know."""
        self._release()
        self._lost(lent)

    def _lost(self, held: Held | Lent | Tracked) -> None:
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
