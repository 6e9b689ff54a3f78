"""The servers in Python of accepting.py, one a process: accept, read, write what was read, close.

    python accepting_servers.py NAME LISTENERS BACKLOG

BACKLOG 0 is what each has by default. A server prints its ports on one line. Then it obeys the lines on its standard
input, in the thread that accepts, which does nothing else meanwhile; it answers "now" first:

    stall 50     is busy with something else for so many milliseconds
    drain 2000   waits for another line, and tells how many nanoseconds of processor time, and how many altogether, it
                 takes from then on until the server's own code has so many connections: see `accepted`

It ends with its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

SIZE = 1 << 16
HOST = "127.0.0.1"

left = 0
start = (0, 0)


def accepted() -> None:
    """Called by the server's own code for each connection: a protocol's connection_made(), a handler's first line."""
    global left  # noqa: PLW0603
    left -= 1
    if left == 0:
        tell()


def clocks() -> tuple[int, int]:
    """Processor time, and time."""
    return time.process_time_ns(), time.perf_counter_ns()


def tell() -> None:
    """How long a drain took."""
    print(*(after - before for after, before in zip(clocks(), start, strict=True)), flush=True)


def obey(drain: Callable[[int], None] | None = None) -> None:
    """One line from the standard input; ``drain``, if connections are taken by hand."""
    global left, start
    os.set_blocking(0, True)  # libuv wants it the other way
    line = sys.stdin.readline()
    if not line:
        os._exit(0)
    command, number = line.split()
    print("now", flush=True)
    if command == "stall":
        time.sleep(int(number) / 1000)
        return
    sys.stdin.readline()
    left, start = int(number), clocks()
    if drain:
        drain(left)


def ready(ports: Iterable[int]) -> None:
    """Serves from now on."""
    print(*ports, flush=True)
    gc.collect()
    gc.freeze()


# ---------------------------------------------------------------------------- by hand: one thread and an epoll


def by_hand(
    ports: Iterable[int], sources: dict[int, Callable[[], Iterable[Any]]], fill: Callable[[int], list[Any]]
) -> None:
    """``sources``: for each descriptor that tells of connections what takes them. ``fill``: takes so many that wait."""
    poll = select.epoll()
    register = poll.register
    for number in (*sources, 0):
        register(number, select.EPOLLIN)
    open_now: dict[int, Any] = {}

    def drain(count: int) -> None:
        taken = fill(count)
        tell()
        for connection in taken:
            open_now[connection.fileno()] = connection
            register(connection, select.EPOLLIN)

    ready(ports)
    while True:
        for number, _ in poll.poll(-1, 64):
            connection = open_now.pop(number, None)
            if connection is not None:
                with_one(connection)
            elif number:
                for connection in sources[number]():
                    number = connection.fileno()  # noqa: PLW2901
                    open_now[number] = connection
                    register(number, select.EPOLLIN)
            else:
                obey(drain)


def with_one(connection: Any) -> None:
    try:  # what is measured has no room for suppress()
        connection.send(connection.recv(SIZE))
    except OSError:  # reset by the client
        pass
    connection.close()


def engine(listeners: int, backlog: int, name: str | None) -> None:  # noqa: ARG001
    """harken's accept engine: accept_many(), of non-blocking connections."""
    import harken

    ours = harken.listen(*[f"{HOST}:0"] * listeners)
    acceptor = ours.acceptor(engine=name)
    sources: dict[int, Callable[[], Iterable[Any]]] = {}
    with contextlib.suppress(OSError):  # the engine "accept" has nothing to poll
        sources[acceptor.fileno()] = acceptor.accept_many

    def fill(count: int) -> list[Any]:
        taken: list[Any] = []
        while len(taken) < count:
            taken += acceptor.accept_many()
        return taken

    by_hand([one.port for one in ours], sources, fill)


def stdlib(listeners: int, backlog: int, blocking: bool) -> None:
    """socket.accept(), and setblocking(False) unless ``blocking``."""
    theirs = [socket.create_server((HOST, 0), backlog=backlog or None) for _ in range(listeners)]
    for one in theirs:
        one.setblocking(False)

    def take(listener: socket.socket) -> Iterable[socket.socket]:
        for _ in range(64):  # as many as accept_many() takes
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return
            if not blocking:
                connection.setblocking(False)
            yield connection

    def fill(count: int) -> list[socket.socket]:
        taken = []
        (listener,) = theirs
        for _ in range(count):
            connection, _ = listener.accept()
            if not blocking:
                connection.setblocking(False)
            taken.append(connection)
        return taken

    ports = [one.getsockname()[1] for one in theirs]
    by_hand(ports, {one.fileno(): partial(take, one) for one in theirs}, fill)


# ---------------------------------------------------------------------------- threads


def until_told() -> None:
    """A thread that ends the process with its standard input."""

    def wait() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def iterated(listeners: int, backlog: int) -> None:  # noqa: ARG001
    """harken's acceptor in the one thread that serves, too: the connections bring what is read."""
    import harken

    ours = harken.listen(*[f"{HOST}:0"] * listeners)
    acceptor = ours.acceptor()
    until_told()
    ready(one.port for one in ours)
    for connection in acceptor:
        with_one(connection)


def threads(listeners: int, backlog: int, policy: str) -> None:  # noqa: ARG001
    """harken's acceptor, and a thread for each connection."""
    import harken

    ours = harken.listen(*[f"{HOST}:0"] * listeners)
    acceptor = ours.acceptor(on_overload=policy)
    until_told()
    ready(one.port for one in ours)
    for connection in acceptor:
        threading.Thread(target=with_one, args=(connection,), daemon=True).start()


def with_socketserver(listeners: int, backlog: int) -> None:  # noqa: ARG001
    """The standard library's: a thread for each connection."""
    import socketserver

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = backlog or 100  # 5, its own, would leave most clients out

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(self.request.recv(SIZE))

    server = Server((HOST, 0), Handler)
    until_told()
    ready([server.server_address[1]])
    server.serve_forever()


# ---------------------------------------------------------------------------- asyncio, uvloop


class Echo(asyncio.Protocol):
    """One answer."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        accepted()

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)
        self.transport.close()


async def serve_with_asyncio(listeners: int, backlog: int, adopted: bool) -> None:
    loop = asyncio.get_running_loop()
    longer: dict[str, Any] = {"backlog": backlog} if backlog else {}
    if adopted:
        import harken

        wheres: list[dict[str, Any]] = [{"sock": one} for one in harken.listen(*[f"{HOST}:0"] * listeners).sockets()]
    else:
        wheres = [{"host": HOST, "port": 0}] * listeners
    servers = [await loop.create_server(Echo, **where, **longer) for where in wheres]
    loop.add_reader(0, obey)
    ready(server.sockets[0].getsockname()[1] for server in servers)
    await asyncio.Event().wait()


async def serve_with_harken(listeners: int, backlog: int, policy: str) -> None:  # noqa: ARG001
    import harken
    import harken.asyncio

    ours = harken.listen(*[f"{HOST}:0"] * listeners)
    ports = [one.port for one in ours]
    server = await harken.asyncio.create_server(Echo, ours, on_overload=policy)
    asyncio.get_running_loop().add_reader(0, obey)
    ready(ports)
    await server.serve_forever()


def with_asyncio(listeners: int, backlog: int, adopted: bool = False) -> None:
    """asyncio's own create_server(); ``adopted``: on harken's sockets."""
    asyncio.run(serve_with_asyncio(listeners, backlog, adopted))


def ours_on_asyncio(listeners: int, backlog: int, policy: str = "pause") -> None:
    """harken.asyncio.create_server() on asyncio's loop."""
    asyncio.run(serve_with_harken(listeners, backlog, policy))


def with_uvloop(listeners: int, backlog: int) -> None:
    """uvloop's own create_server()."""
    import uvloop

    uvloop.run(serve_with_asyncio(listeners, backlog, False))


def ours_on_uvloop(listeners: int, backlog: int) -> None:
    """harken.asyncio.create_server() on uvloop."""
    import uvloop

    uvloop.run(serve_with_harken(listeners, backlog, "pause"))


# ---------------------------------------------------------------------------- the others


def with_gevent(listeners: int, backlog: int) -> None:
    """gevent's StreamServer."""
    import gevent
    from gevent.server import StreamServer

    def handle(sock: Any, _: object) -> None:
        accepted()
        with_one(sock)

    longer = {"backlog": backlog} if backlog else {}
    servers = [StreamServer((HOST, 0), handle, **longer) for _ in range(listeners)]
    for server in servers:
        server.start()
    lines = gevent.get_hub().loop.io(0, 1)
    lines.start(obey)
    ready(server.server_port for server in servers)
    gevent.wait()


def with_trio(listeners: int, backlog: int) -> None:
    """trio's serve_listeners()."""
    import trio

    async def handle(stream: trio.SocketStream) -> None:
        accepted()
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(await stream.receive_some(SIZE))
        await stream.aclose()

    async def main() -> None:
        theirs = []
        for _ in range(listeners):
            theirs += await trio.open_tcp_listeners(0, host=HOST, backlog=backlog or None)
        ready(one.socket.getsockname()[1] for one in theirs)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, handle, theirs)
            while True:
                await trio.lowlevel.wait_readable(0)
                obey()

    trio.run(main)


def with_tornado(listeners: int, backlog: int) -> None:
    """tornado's TCPServer."""
    from tornado.ioloop import IOLoop
    from tornado.iostream import IOStream, StreamClosedError
    from tornado.netutil import bind_sockets
    from tornado.tcpserver import TCPServer

    class Server(TCPServer):
        async def handle_stream(self, stream: IOStream, address: object) -> None:  # noqa: ARG002
            accepted()
            with contextlib.suppress(StreamClosedError):
                await stream.write(await stream.read_bytes(SIZE, partial=True))
            stream.close()

    async def main() -> None:
        longer = {"backlog": backlog} if backlog else {}
        sockets = [bind_sockets(0, HOST, **longer)[0] for _ in range(listeners)]
        Server().add_sockets(sockets)
        IOLoop.current().add_handler(0, lambda *_: obey(), IOLoop.READ)
        ready(sock.getsockname()[1] for sock in sockets)
        await asyncio.Event().wait()

    asyncio.run(main())


def with_twisted(listeners: int, backlog: int) -> None:
    """Twisted's listenTCP()."""
    from twisted.internet import reactor
    from twisted.internet.protocol import Factory, Protocol

    class Answer(Protocol):
        def connectionMade(self) -> None:  # noqa: N802
            accepted()

        def dataReceived(self, data: bytes) -> None:  # noqa: N802
            self.transport.write(data)
            self.transport.loseConnection()

    class Lines:
        def fileno(self) -> int:
            return 0

        def doRead(self) -> None:  # noqa: N802
            obey()

        def logPrefix(self) -> str:  # noqa: N802
            return "lines"

        def connectionLost(self, reason: object) -> None:  # noqa: ARG002, N802
            os._exit(1)

    longer = {"backlog": backlog} if backlog else {}
    wanted: Any = reactor
    ports = [wanted.listenTCP(0, Factory.forProtocol(Answer), interface=HOST, **longer) for _ in range(listeners)]
    wanted.addReader(Lines())
    ready(port.getHost().port for port in ports)
    wanted.run(installSignalHandlers=False)


class Python(NamedTuple):
    """One contender."""

    serve: Callable[[int, int], None]
    needs: str = ""
    """A module that may be missing."""
    engine: str | None = None
    """An engine that may be missing."""


SERVERS = {
    "harken, io_uring": Python(partial(engine, name="io_uring"), engine="io_uring"),
    "harken, accept4": Python(partial(engine, name="accept4"), engine="accept4"),
    "harken, accept": Python(partial(engine, name="accept"), engine="accept"),
    "harken, best engine": Python(partial(engine, name=None)),
    "harken, iterated": Python(iterated),
    "harken, threads": Python(partial(threads, policy="pause")),
    "harken, threads, shed": Python(partial(threads, policy="shed")),
    "harken on asyncio": Python(ours_on_asyncio),
    "harken on asyncio, shed": Python(partial(ours_on_asyncio, policy="shed")),
    "harken on uvloop": Python(ours_on_uvloop, "uvloop"),
    "socket.accept()": Python(partial(stdlib, blocking=True)),
    "socket.accept(), non-blocking": Python(partial(stdlib, blocking=False)),
    "socketserver, threads": Python(with_socketserver),
    "asyncio": Python(with_asyncio),
    "asyncio on harken's sockets": Python(partial(with_asyncio, adopted=True)),
    "uvloop": Python(with_uvloop, "uvloop"),
    "gevent": Python(with_gevent, "gevent"),
    "trio": Python(with_trio, "trio"),
    "tornado": Python(with_tornado, "tornado"),
    "Twisted": Python(with_twisted, "twisted"),
}


if __name__ == "__main__":
    SERVERS[sys.argv[1]].serve(int(sys.argv[2]), int(sys.argv[3]))
