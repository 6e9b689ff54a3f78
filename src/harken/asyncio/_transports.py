"""From an accepted connection to a transport of the loop: the ways that `harken.asyncio` has, the cheapest first.

- asyncio's own loops make a transport when they are asked with the method that their own server uses. It is private, so
  its signature is looked at before, and it gets nothing that it would not get from asyncio. Selector loops work with a
  `harken.Socket` as it is; the proactor loop wants a ``socket.socket``.
- uvloop: ``loop.connect_accepted_socket()``, without a task: `harken._uvloop`.
- any other loop: the same in a task.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
import weakref
from asyncio.selector_events import BaseSelectorEventLoop
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Self

from .._socket import empty, move
from .._uvloop import Lender

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._socket import Socket
    from ._server import Server


def way(server: Server) -> Callable[[Server, Socket], None]:
    """How a connection of this server begins, in a context of its own, as if it were a task."""
    loop = server._loop
    if isinstance(loop, asyncio.BaseEventLoop) and _makes_transports(loop):
        return _in_context(_by_asyncio if isinstance(loop, BaseSelectorEventLoop) else _by_proactor)
    if type(loop).__module__.partition(".")[0] == "uvloop":
        return Lender(loop, server._factory, server._tls, server._held).begin
    return _in_context(_by_any)


def _in_context(connect: Callable[[Server, Socket], None]) -> Callable[[Server, Socket], None]:
    def begin(server: Server, connection: Socket) -> None:
        try:
            copy_context().run(connect, server, connection)
        except BaseException as error:
            server._not_begun(connection, error)

    return begin


def _makes_transports(loop: Any) -> bool:
    """Is the method that asyncio's own server uses there, as it is in Python 3.11 to 3.14?"""
    with suppress(AttributeError, TypeError, ValueError):
        inspect.signature(loop._make_socket_transport).bind(None, None, server=None)
        inspect.signature(loop._make_ssl_transport).bind(
            None, None, None, server_side=True, server=None, ssl_handshake_timeout=None, ssl_shutdown_timeout=None
        )
        return True
    return False


def _by_asyncio(server: Server, connection: Socket | socket.socket) -> None:
    """A transport, at once."""
    protocol = server._protocol()
    loop: Any = server._loop
    held = Held(server)
    try:
        server._held.add(held)
        if server._tls:
            tls = server._tls
            transport = loop._make_ssl_transport(
                connection, protocol, tls["ssl"], server_side=True, server=held,
                ssl_handshake_timeout=tls["ssl_handshake_timeout"], ssl_shutdown_timeout=tls["ssl_shutdown_timeout"],
            )  # fmt: skip
        else:
            transport = loop._make_socket_transport(connection, protocol, server=held)
        held.client = weakref.ref(transport, held._detach)
    except BaseException as error:
        server._held.discard(held)
        half = getattr(loop, "_transports", {}).get(connection.fileno()) if held.begun else None
        if half is not None:  # asyncio would refuse the next connection with this number
            half.set_protocol(asyncio.Protocol())
            half.abort()
        connection.close()
        if isinstance(error, OSError):  # it has died meanwhile: some systems refuse to set an option then
            return
        raise


def _by_proactor(server: Server, connection: Socket) -> None:
    sock = Tracked.of(connection, server._let_go)
    try:
        _by_asyncio(server, sock)
    except BaseException:
        sock.close()
        raise


def _by_any(server: Server, connection: Socket) -> None:
    protocol = server._protocol()
    sock: Any = None
    coroutine: Any = None

    async def begin() -> None:
        try:
            sock.client, _ = await server._loop.connect_accepted_socket(lambda: protocol, sock, **server._tls)
        except BaseException as error:
            sock.close()
            server._failed(error)

    def ended(_: object) -> None:
        sock.task = None
        if sock.client is None:  # it was cancelled before its first step, which would have closed this
            sock.close()

    try:
        sock = Tracked.of(connection, server._given_back)
        # Before there is a task: with an eager task factory it may have come to its end when it is returned.
        server._held.add(sock)
        coroutine = begin()
        task = server._loop.create_task(coroutine)
        if not task.done():
            sock.task = task
            task.add_done_callback(ended)
    except BaseException:
        if coroutine is not None:
            coroutine.close()
        if sock is not None:
            sock.close()
        raise


class Held:
    """What a transport of asyncio's takes for its server: it tells when the transport begins and has ended. Half a
    transport, whose making failed, is not counted. ``client`` is weak, so that a transport that nobody has any more
    dies, with a warning by asyncio."""

    __slots__ = ("begun", "client", "server")

    def __init__(self, server: Server) -> None:
        self.begun = False
        self.client: weakref.ref[Any] | None = None
        self.server = server

    def _attach(self, _transport: object = None) -> None:  # before Python 3.13 without the transport
        self.begun = True

    def _detach(self, _transport: object = None) -> None:
        self.client = None
        self.server._lost(self)

    def end(self, what: str) -> None:
        transport = self.client and self.client()
        if transport is not None:
            getattr(transport, what)()


class Tracked(socket.socket):
    """An accepted connection for a loop that wants a ``socket.socket``. It tells when it is closed or given away."""

    __slots__ = ("client", "task", "tell")

    client: Any
    """The transport."""
    task: Any
    """What makes it."""
    tell: Callable[[Tracked], None] | None

    @classmethod
    def of(cls, connection: Socket, tell: Callable[[Tracked], None]) -> Self:
        self = empty(cls)
        self.client = self.task = None
        self.tell = tell
        return move(connection, self, 0)

    def close(self) -> None:
        super().close()
        self._told()

    def detach(self) -> int:
        number = super().detach()
        self._told()
        return number

    def __del__(self) -> None:
        if self.fileno() >= 0:  # else there is nothing to tell: closed, given away, or never moved here
            super().__del__()  # type: ignore[misc]
            self._told()

    def end(self, what: str) -> None:
        if self.client is not None:
            getattr(self.client, what)()
        elif self.task is not None:
            self.task.cancel()

    def _told(self) -> None:
        tell, self.tell, self.client = self.tell, None, None
        if tell is not None:
            tell(self)
