"""Sockets for other servers: the queue keeps its length, the protocol is TCP, workers can have them."""

from __future__ import annotations

import asyncio
import errno
import multiprocessing
import os
import socket
import tempfile
from multiprocessing.connection import Connection

import pytest

import harken
from machine import LINUX, linux_only, wine_lacks


@pytest.fixture(scope="module", autouse=True)
def what_multiprocessing_keeps_open() -> None:
    """On POSIX the first spawn opens a pipe to a process that stays until the end: not a leak of any test."""
    if hasattr(os, "fork"):
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()


def longest() -> int | None:
    with harken.listen("127.0.0.1:0") as listeners:
        return listeners[0].backlog


def queue(sock: socket.socket) -> int | None:
    """How many may wait, as the system has it."""
    return harken.stats(sock).backlog


def test_they_are_the_standard_librarys_and_tcp() -> None:
    listeners = harken.listen(":0")
    port, families = listeners.port, [listener.family for listener in listeners]
    sockets = listeners.sockets()
    assert [sock.family for sock in sockets] == families
    for sock in sockets:
        with sock:
            assert isinstance(sock, socket.socket)
            assert sock.proto == socket.IPPROTO_TCP
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockname()[1] == port
            assert not sock.get_inheritable()
            assert sock.gettimeout() is None
    assert [listener.state for listener in listeners] == ["closed"] * len(listeners)


@linux_only
@pytest.mark.parametrize("last", ["closed", "not taken over yet"])
def test_all_change_hands_or_none(last: str) -> None:
    if last != "closed" and not hasattr(os, "fchmod"):
        pytest.skip("paths are taken over on POSIX only")
    with tempfile.TemporaryDirectory() as folder:
        name = os.path.join(folder, "a.sock")
        binds = ("127.0.0.1:0",) if last == "closed" else (f"unix:{name}?exclusive=0",)
        live = "127.0.0.1:0" if last == "closed" else f"unix:{name}"
        with harken.listen(live), harken.bind("127.0.0.1:0", *binds) as listeners:
            if last == "closed":
                listeners[1].close()
            with pytest.raises(OSError if last == "closed" else ValueError):
                listeners.sockets()
            assert listeners[0].state == "bound"
            listeners[0].listen()
            assert listeners[0].state == "listening"


@pytest.mark.needs_tcp_info
def test_a_second_listen_never_shortens_the_queue() -> None:
    (sock,) = harken.listen("127.0.0.1:0").sockets()
    with sock:
        for backlog in (100, 0, -1):
            sock.listen(backlog)
            assert queue(sock) == longest()
        sock.listen()
        assert queue(sock) == longest()


@linux_only
def test_the_state_is_known_where_getsockopt_does_not_tell_it(monkeypatch: pytest.MonkeyPatch) -> None:
    (sock,) = harken.listen("127.0.0.1:0").sockets()

    def as_on_macos(self: socket.socket, level: int, name: int, *size: int) -> int | bytes:
        if (level, name) == (socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
        return socket.socket.getsockopt(self, level, name, *size)

    with sock:
        monkeypatch.setattr(type(sock), "getsockopt", as_on_macos, raising=False)
        sock.listen(100)
        assert queue(sock) == longest()


@pytest.mark.needs_tcp_info
@linux_only
def test_a_second_listen_may_lengthen_it() -> None:
    (sock,) = harken.listen("127.0.0.1:0", backlog=5).sockets()
    with sock:
        sock.listen(50)
        assert queue(sock) == 50


@pytest.mark.needs_tcp_info
@linux_only
def test_who_keeps_the_listener_can_lengthen_the_queue_again() -> None:
    with harken.listen("127.0.0.1:0") as (listener,), socket.socket(fileno=os.dup(listener.fileno())) as servers:
        servers.listen(100)
        assert listener.backlog == 100
        listener.listen(longest())
        assert queue(servers) == longest()


def test_what_is_only_bound_listens() -> None:
    (sock,) = harken.bind("127.0.0.1:0").sockets()
    with sock:
        sock.listen(5)
        with socket.create_connection(sock.getsockname(), timeout=30) as client:
            sock.accept()[0].close()
            assert client.recv(1) == b""


@linux_only
@pytest.mark.parametrize(
    ("backlog", "asked", "queued"),
    [
        (None, 100, None),
        *(
            pytest.param(*row, marks=pytest.mark.needs_tcp_info)
            for row in [(64, 100, 100), (64, 10, 64), (64, None, 64)]
        ),
    ],
)
def test_what_is_only_bound_asks_for_what_bind_was_given_or_the_most(
    backlog: int | None, asked: int | None, queued: int | None
) -> None:
    (sock,) = harken.bind("127.0.0.1:0", backlog=backlog).sockets()
    with sock:
        sock.listen(*([] if asked is None else [asked]))
        assert queue(sock) == (longest() if queued is None else queued)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)


@linux_only
def test_its_connections_have_what_they_do_not_inherit() -> None:
    (sock,) = harken.listen("127.0.0.1:0", priority=3).sockets()
    with sock, sock.dup() as twin:
        for one in (sock, twin):
            with socket.create_connection(sock.getsockname(), timeout=30), one.accept()[0] as connection:
                assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == 3


def test_asyncio_serves_on_it_and_leaves_the_queue_alone() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(100))
        await writer.drain()
        writer.close()

    async def main(sock: socket.socket) -> bytes:
        server = await asyncio.start_server(echo, sock=sock)
        if LINUX:
            assert queue(sock) == longest()
        reader, writer = await asyncio.open_connection(*sock.getsockname()[:2])
        writer.write(b"hello")
        received = await reader.read(100)
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        return received

    (sock,) = harken.listen("127.0.0.1:0").sockets()
    with sock:
        assert asyncio.run(main(sock)) == b"hello"


def serve_one(sock: socket.socket, told: Connection) -> None:
    with sock:
        sock.listen(100)
        told.send((type(sock).__name__, sock.proto, harken.stats(sock).backlog))
        connection, _ = sock.accept()
        with connection:
            told.send(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) if LINUX else 3)
            connection.sendall(b"from the worker")


def test_a_spawned_worker_can_have_it() -> None:
    (sock,) = harken.listen("127.0.0.1:0", **({"priority": 3} if LINUX else {})).sockets()
    context = multiprocessing.get_context("spawn")
    told, tell = context.Pipe(duplex=False)
    worker = context.Process(target=serve_one, args=(sock, tell))
    with sock, told, tell:
        worker.start()
        assert told.poll(60)
        assert told.recv() == ("ListeningSocket", socket.IPPROTO_TCP, longest())
        with socket.create_connection(sock.getsockname(), timeout=30) as client:
            assert client.recv(100) == b"from the worker"
            assert told.recv() == 3
        worker.join(60)
        assert worker.exitcode == 0
        worker.close()


@pytest.mark.needs_tcp_info
@wine_lacks("a queue that can be seen")
@linux_only
def test_stats_of_a_listener_a_socket_and_a_number_are_the_same() -> None:
    with harken.listen("127.0.0.1:0", backlog=9) as (listener,):
        client = socket.create_connection(listener.address, timeout=30)
        with client, client.dup():
            for what in (listener, listener.fileno()):
                stats = harken.stats(what)
                assert (stats.queued, stats.backlog) == (1, 9)
        (sock,) = [listener.to_socket()]
        with sock:
            assert harken.stats(sock).backlog == 9


def test_stats_of_what_is_no_socket_is_an_error() -> None:
    listeners = harken.listen("127.0.0.1:0")
    listeners.close()
    with pytest.raises(OSError, match="."):
        harken.stats(listeners[0])
    with pytest.raises(TypeError, match="handle"):
        harken.stats("8080")  # type: ignore[arg-type]
