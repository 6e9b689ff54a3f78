"""Listening sockets for servers that take those of the standard library."""

from __future__ import annotations

import socket

from ._socket import Socket, apply_at_accept, carried, describe, duplicate, empty, listen_on, to_send
from ._stats import queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._paths import Entry


class ListeningSocket(socket.socket):
    """A ``socket.socket`` that listens already, and whose queue a second ``listen()`` cannot shorten.

    asyncio, and servers built on it, call ``listen(100)`` on a socket that they are given: a queue of 4096 becomes one
    of 100, and a burst of clients waits for a second. Here ``listen()`` only ever lengthens the queue; on a socket of
    `harken.bind` it asks for what bind() was given, or the most. multiprocessing can send it to a worker, as it sends
    every socket. (A server that listens in C, as uvloop does, does not come by here: give it its own ``backlog``.)

    Closing one on a unix socket removes its path, in the process that made it.
    """

    __slots__ = ("_at_accept", "_entry", "_wished")

    _wished: int
    """For the first ``listen()``; -1 asks for the most."""
    _at_accept: bytes | None
    """Options to set on each connection, which on this system does not inherit them: see `set_at_accept`."""
    _entry: Entry | None
    """The path that close() removes; copies have none."""

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
        super().__init__(family, type, proto, fileno)
        self._wished, self._at_accept, self._entry = -1, None, None

    def listen(self, backlog: int | None = None, /) -> None:
        """listen(2), unless this socket listens already and its queue is as long."""
        if describe(self.fileno())[2] == "listening":  # macOS does not tell it by getsockopt()
            granted = queue(self.fileno())[1]
            # Where the system does not tell, the queue is what harken asked for.
            if backlog is None or granted is None or backlog <= granted:
                return
            super().listen(backlog)
        else:
            most = self._wished < 0
            listen_on(self.fileno(), self.family, -1 if most else max(self._wished, backlog or 0))

    def accept(self) -> tuple[socket.socket, Any]:
        """accept(2)."""
        connection, address = super().accept()
        if self._at_accept is not None:
            apply_at_accept(connection.fileno(), self._at_accept)
        return connection, address

    def getsockname(self) -> Any:
        """getsockname(2); of a unix socket the path as it was asked for, whatever it was bound to."""
        bound = super().getsockname()
        return bound if self._entry is None else self._entry.asked

    def dup(self) -> ListeningSocket:
        """A second one for the same socket: dup(2)."""
        twin = empty(ListeningSocket)
        twin._wished, twin._at_accept, twin._entry = self._wished, self._at_accept, None
        return duplicate(self.fileno(), (self.family, self.type, self.proto), self.gettimeout(), twin)

    def close(self) -> None:
        """close(2); the path of a unix socket goes first."""
        if self._entry is not None and self.fileno() >= 0:
            self._entry.remove()
        self._entry = None  # now: a close() that was interrupted can be called again
        super().close()

    def __reduce__(self) -> tuple[object, ...]:
        # multiprocessing sends handles like this; a registration with its pickler would cost its import.
        from multiprocessing import reduction, resource_sharer

        send: Callable[..., object]
        what: tuple[object, ...]
        if dup := getattr(reduction, "DupFd", None):
            send, what = dup, (self.fileno(),)
        else:  # Windows
            send, what = resource_sharer.DupSocket, (self,)  # type: ignore[attr-defined,unused-ignore]
        return to_send(send, what, (self.family, self.type, self.proto, self._wished, self._at_accept))


ListeningSocket.__module__ = "harken"


def room_for(listener: Socket) -> ListeningSocket:
    """What the listener's handle is to move into, and has beside it already what goes with the handle. Only the object
    that has the handle removes the path."""
    made = empty(ListeningSocket)
    made._wished, made._at_accept = carried(listener)
    made._entry = getattr(listener, "entry", None)
    return made
