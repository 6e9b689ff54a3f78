"""A burst of connections against a server that is busy: ``python benchmarks/burst.py``; Linux.

The server's loop does something else for 50 ms; in that time all clients connect at once. A queue that is too short
leaves clients out, and their system tries again after a second, then two, then four. What is told is how long a client
waits until it is connected, which is the queue's doing, and until it has an answer, which is the server's as well.

The clients are one process with an epoll, all their sockets made before. Each round measures every server in rotating
order, so that whatever else the machine does hits all; of each percentile the median of the rounds is told, with the
least and the most in brackets. The first round warms up. Nothing is pinned: clients and server have a core each.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import select
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median, quantiles
from time import perf_counter
from typing import Any

SERVERS = {
    "streams-stdlib": "asyncio, `start_server(host, port)`",
    "streams-ours": "asyncio, `start_server(sock=…)` on harken's `sockets()`",
    "protocols-stdlib": "asyncio, `create_server(host, port)`",
    "protocols-ours": "asyncio, `create_server(sock=…)` on harken's `sockets()`",
    "loop-stdlib": "a selector, `create_server()`, `accept()`",
    "loop-ours": "a selector, `harken.listen()`, `accept_many()`",
}
STALL = 0.050
PATIENCE = 30  # seconds, for a whole burst

# ---------------------------------------------------------------------------- the servers: they echo


def stall() -> None:
    """Busy with something else, as a line on stdin asks for; it is told when that begins."""
    sys.stdin.readline()
    print("stalling", flush=True)
    time.sleep(STALL)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionResetError):  # the client's way to close
        while data := await reader.read(100):
            writer.write(data)
    writer.close()


class Answer(asyncio.Protocol):
    """The same without streams, as uvicorn and aiohttp are written."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def with_asyncio(kind: str, whose: str) -> None:
    """asyncio's defaults, but for the socket."""
    if whose == "ours":
        import harken

        where: dict[str, Any] = {"sock": harken.listen("127.0.0.1:0").sockets()[0]}
    else:
        where = {"host": "127.0.0.1", "port": 0}
    if kind == "streams":
        server = await asyncio.start_server(answer, **where)
    else:
        server = await asyncio.get_running_loop().create_server(Answer, **where)
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stall)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def with_a_loop(whose: str) -> None:
    """One thread and a selector."""
    listener, take = ours() if whose == "ours" else stdlibs()
    listener.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    print(listener.getsockname()[1], flush=True)
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                stall()
            elif key.fileobj is listener:
                for connection in take():
                    selector.register(connection, selectors.EVENT_READ)
            else:
                give_back(selector, key.fileobj)


def give_back(selector: selectors.BaseSelector, connection: Any) -> None:
    try:
        data = connection.recv(100)
    except ConnectionResetError:
        data = b""
    if data:
        connection.send(data)
    else:
        selector.unregister(connection)
        connection.close()


def ours() -> tuple[Any, Callable[[], Iterable[Any]]]:
    """A listener, and what takes those that wait on it."""
    import harken

    (listener,) = harken.listen("127.0.0.1:0")
    return listener, listener.accept_many


def stdlibs() -> tuple[Any, Callable[[], Iterable[Any]]]:
    """The same with the standard library's defaults."""
    listener = socket.create_server(("127.0.0.1", 0))

    def take() -> Iterator[socket.socket]:
        for _ in range(64):  # as many as accept_many() takes
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return
            connection.setblocking(False)
            yield connection

    return listener, take


# ---------------------------------------------------------------------------- the clients


class Server:
    """A server in a process of its own, kept for the whole run."""

    def __init__(self, name: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.address = ("127.0.0.1", int(self._line()))

    def _line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with {self.process.wait()}")
        return line

    def stall(self) -> None:
        """Returns when it has begun."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self._line()

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate()


@contextmanager
def clients(count: int) -> Iterator[dict[int, socket.socket]]:
    """Sockets that have not connected yet, by their numbers."""
    with ExitStack() as stack:
        made = {}
        for _ in range(count):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            # Closed with a reset: thousands of connections in TIME_WAIT would use up the ports.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            made[client.fileno()] = client
        yield made


def burst(server: Server, count: int) -> tuple[list[float], list[float]]:
    """For each client, the milliseconds from connect() until it is connected, and until it has its answer."""
    connected: list[float] = []
    answered: list[float] = []
    started: dict[int, float] = {}
    with clients(count) as made, select.epoll() as epoll:
        waiting = set(made)

        def look(timeout: float) -> None:
            for fd, _ in epoll.poll(timeout, 256):
                client = made[fd]
                if fd in waiting:
                    waiting.discard(fd)
                    connected.append((perf_counter() - started[fd]) * 1000)
                    client.send(b"x")  # raises what connect() has come to
                    epoll.modify(fd, select.EPOLLIN)
                else:
                    client.recv(1)
                    answered.append((perf_counter() - started[fd]) * 1000)
                    epoll.unregister(fd)

        server.stall()
        until = perf_counter() + PATIENCE
        for number, (fd, client) in enumerate(made.items()):
            started[fd] = perf_counter()
            error = client.connect_ex(server.address)
            if error not in (0, errno.EINPROGRESS):
                raise OSError(error, "connect")
            epoll.register(fd, select.EPOLLOUT)
            if number % 64 == 63:
                look(0)
        while len(answered) < count:
            if perf_counter() > until:
                raise TimeoutError(f"{count - len(answered)} of {count} clients had no answer within {PATIENCE} s")
            look(1)
    return connected, answered


def main() -> None:
    parser = argparse.ArgumentParser(description="a burst of connections against a server that stalls for 50 ms")
    parser.add_argument("--rounds", type=int, default=5, help="besides one to warm up")
    parser.add_argument("--count", type=int, default=2000, help="connections at once")
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        kind, _, whose = options.serve.partition("-")
        with_a_loop(whose) if kind == "loop" else asyncio.run(with_asyncio(kind, whose))
        return
    import report
    from run import room_for

    count = room_for(options.count)
    percentiles: dict[str, list[tuple[float, ...]]] = {name: [] for name in SERVERS}
    with ExitStack() as stack:
        servers = {}
        for name in SERVERS:
            servers[name] = Server(name)
            stack.callback(servers[name].close)
        order = list(servers)
        for number in range(options.rounds + 1):
            for name in order[number % len(order) :] + order[: number % len(order)]:
                connected, answered = (quantiles(took, n=100) for took in burst(servers[name], count))
                if number:
                    percentiles[name].append((connected[49], connected[98], answered[49], answered[98]))

    print("\n".join(report.machine(None)))
    print(f"{count} connections at once, the server stalls for {STALL * 1000:.0f} ms; {options.rounds} rounds\n")
    lines = [["ms", "connected, median", "99th percentile", "answered, median", "99th percentile"]]
    for name, title in SERVERS.items():
        lines.append([title, *(spread(values) for values in zip(*percentiles[name], strict=True))])
    print(report.markdown(lines))


def spread(values: tuple[float, ...]) -> str:
    return f"{median(values):.0f} ({min(values):.0f}-{max(values):.0f})"


if __name__ == "__main__":
    main()
