"""Listening sockets for servers that take those of the standard library."""

from __future__ import annotations

import os
import socket

from ._socket import Socket, queue_of


class ListeningSocket(socket.socket):
    """A ``socket.socket`` that listens already, and whose queue a second ``listen()`` cannot shorten.

    asyncio, and servers built on it, call ``listen(100)`` on a socket that they are given: a queue of 4096 becomes one
    of 100, and a burst of clients waits for a second. Here ``listen()`` only ever lengthens the queue. multiprocessing
    can send it to a worker, as it sends every socket. (A server that listens in C, as uvloop does, does not come by
    here: give it its own ``backlog``.)
    """

    __slots__ = ()

    def listen(self, backlog: int | None = None, /) -> None:
        """listen(2), unless this socket listens already and its queue is as long."""
        if self.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            granted = queue_of(self.fileno())[1]
            # Where the system does not tell, the queue is what harken asked for.
            if backlog is None or granted is None or backlog <= granted:
                return
        super().listen(*(() if backlog is None else (backlog,)))

    def __reduce__(self) -> tuple[object, ...]:
        # multiprocessing sends handles like this; a registration with its pickler would cost its import.
        from multiprocessing import reduction, resource_sharer

        if hasattr(reduction, "DupFd"):
            sent: object = reduction.DupFd(self.fileno())
        else:  # Windows
            sent = resource_sharer.DupSocket(self)  # type: ignore[attr-defined,unused-ignore]
        return _received, (sent, self.family, self.type, self.proto)


ListeningSocket.__module__ = "harken"


def hand_over(listener: Socket) -> ListeningSocket:
    """Moves the handle; the listener is closed."""
    timeout = listener.gettimeout()
    made = _adopt(listener.detach(), listener.family, listener.type, listener.proto)
    made.settimeout(timeout)
    return made


def _adopt(handle: int, family: int, kind: int, proto: int) -> ListeningSocket:
    try:
        made = ListeningSocket(family, kind, proto, fileno=handle)
    except BaseException:
        socket.close(handle)
        raise
    if made.proto == proto or not hasattr(made, "share"):
        return made
    # On Windows CPython forgets the protocol of a handle, but not that of a shared socket; asyncio wants to read 6.
    with made:
        shared = ListeningSocket(fileno=made.share(os.getpid()))  # type: ignore[arg-type,unused-ignore]
    shared.set_inheritable(False)
    return shared


def _received(sent: object, family: int, kind: int, proto: int) -> ListeningSocket:
    """In the worker: what __reduce__ sent."""
    handle = sent.detach()  # type: ignore[attr-defined]
    return _adopt(handle.detach() if isinstance(handle, socket.socket) else handle, family, kind, proto)
