"""`start_server` and `create_server`: asyncio's arguments, and the listeners that are opened for them."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - asyncio imports it at the first look-up, on the loop's thread
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Never

from .._bind import Bind
from .._inherit import adopt
from .._listen import bind
from .._listener import Listeners
from .._options import Options, nearest
from .._socket import Socket, describe, let_go
from .._system import AF_UNSPEC, AI_PASSIVE, SOCK_STREAM
from .._types import Address, OnOverload
from ._hosts import binds_of
from ._server import Server
from ._threads import aside, wait_for_paths, with_explanation

if TYPE_CHECKING:
    from ssl import SSLContext
else:
    try:  # for typing.get_type_hints()
        from ssl import SSLContext
    except ImportError:  # this Python has no TLS
        SSLContext = Any


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
    # <options more_options>: written by .ci/options
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
    # </options>
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

    return await with_explanation(_create(factory, given | {"limit": None}))


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
    # <options more_options>: written by .ci/options
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
    # </options>
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
    is set on POSIX and never on Windows; False is `exclusive`. From ``ipv6_only`` on the options are those of
    `harken.listen`.

    ``limit``: how many connections may be open at once; further clients wait in the queue. ``max_open`` is the same: it
    is the name that `start_server` has, where ``limit`` is asyncio's. ``batch``, ``on_overload``, ``engine``: see
    `harken.Acceptor`.

    What may wait, such as making the path of a unix socket, runs in a thread; ``configure`` may be called there.

    Raises ValueError or TypeError for invalid arguments, and ListenError, which is an OSError, if an address cannot be
    opened; nothing stays open then.
    """
    given = locals()
    _refuse(kwds, create_server, "create_server()")
    return await with_explanation(_create(protocol_factory, given))


_OPTIONS = tuple(name for name in Options.__dataclass_fields__ if name not in ("backlog", "reuse_port"))


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
            raise TypeError(f"an existing socket takes no options: {', '.join(options)}")
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
                raise TypeError(f"existing listeners take no options: {', '.join(sorted(ignored))}")
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
