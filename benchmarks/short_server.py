"""The contenders in Python of `short.py`, one a process: accept, read, write, close. Each prints its port; for each
line that it reads it prints how many nanoseconds of processor time it has used."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import socket
import sys
import threading
import time
from typing import Any

SIZE = 1 << 16


def tell(port: int) -> None:
    """In a thread, for the loops that cannot read a pipe; it sleeps while it is measured."""
    print(port, flush=True)
    gc.collect()
    gc.freeze()

    def answer() -> None:
        for _ in sys.stdin:
            print(time.process_time_ns(), flush=True)
        os._exit(0)

    threading.Thread(target=answer, daemon=True).start()


def plain() -> socket.socket:
    """What a program makes without harken."""
    sock = socket.create_server(("127.0.0.1", 0), backlog=65535)
    sock.setblocking(False)
    return sock


def engine() -> None:
    """The accept engine alone, in a loop by hand."""
    import harken

    (listener,) = listeners = harken.listen("127.0.0.1:0")
    acceptor = listeners.acceptor()
    tell(listener.port)
    poll = select.epoll()
    first = acceptor.fileno()
    poll.register(first, select.EPOLLIN)
    open_now: dict[int, harken.Socket] = {}
    register, take = poll.register, acceptor.accept_many
    while True:
        for number, _ in poll.poll(-1, 64):
            if number == first:
                for connection in take():
                    number = connection.fileno()  # noqa: PLW2901
                    open_now[number] = connection
                    register(number, select.EPOLLIN)
            else:
                connection = open_now.pop(number)
                connection.send(connection.recv(SIZE))
                connection.close()


def engine_blocking() -> None:
    """The accept engine alone, in a thread: its connections are read at once, since they bring their data."""
    import harken

    (listener,) = listeners = harken.listen("127.0.0.1:0")
    tell(listener.port)
    for connection in listeners.acceptor():
        connection.send(connection.recv(SIZE))
        connection.close()


class Echo(asyncio.Protocol):
    """One answer."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)
        self.transport.close()


async def _asyncio() -> None:
    server = await asyncio.get_running_loop().create_server(Echo, sock=plain(), backlog=65535)
    tell(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def _harken() -> None:
    import harken.asyncio

    server = await harken.asyncio.create_server(Echo, "127.0.0.1", 0)
    tell(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def with_asyncio() -> None:
    """asyncio's own server."""
    asyncio.run(_asyncio())


def ours_on_asyncio() -> None:
    """harken.asyncio on asyncio's loop."""
    asyncio.run(_harken())


def with_uvloop() -> None:
    """uvloop's own server."""
    import uvloop

    uvloop.run(_asyncio())


def ours_on_uvloop() -> None:
    """harken.asyncio on uvloop."""
    import uvloop

    uvloop.run(_harken())


def with_gevent() -> None:
    """gevent's StreamServer."""
    from gevent.server import StreamServer
    from gevent.socket import socket as gevent_socket

    def handle(sock: Any, _: object) -> None:
        sock.sendall(sock.recv(SIZE))
        sock.close()

    listener = plain()
    wrapped = gevent_socket(fileno=listener.detach())
    server = StreamServer(wrapped, handle)
    tell(wrapped.getsockname()[1])
    server.serve_forever()


def with_trio() -> None:
    """trio's serve_listeners."""
    import trio

    async def handle(stream: trio.SocketStream) -> None:
        await stream.send_all(await stream.receive_some(SIZE))
        await stream.aclose()

    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=65535)
        tell(listeners[0].socket.getsockname()[1])
        await trio.serve_listeners(handle, listeners)

    trio.run(main)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
