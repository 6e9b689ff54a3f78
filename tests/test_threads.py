"""Many threads on one object: nothing is lost, served twice or counted wrongly, and no stranger's socket is touched.

Under the GIL these hold by the order in which it is handed over, and without it by the locks: .ci/nogil runs them so.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from wire import (
    CHILD_ENVIRONMENT,
    Call,
    clients,
    close_all,
    connection,
    fails,
    listening,
    python,
    receive,
    wait_for_queue,
    wait_until,
)

import harken
from machine import WINDOWS, posix_only

EBADF = 10038 if WINDOWS else 9
THREADS = 4


def at_once(*functions: Callable[[], object]) -> list[Any]:
    """All of them at the same moment, each in a thread of its own; what they returned."""
    ready = threading.Barrier(len(functions))

    def run(function: Callable[[], object]) -> object:
        ready.wait(10)
        return function()

    return [call.outcome() for call in [Call(run, function) for function in functions]]


@contextlib.contextmanager
def ended_by(what: Any) -> Iterator[None]:
    """The block is ended by the end of ``what``."""
    try:
        yield
    except OSError as error:
        assert error.errno == EBADF, error
        assert what.closed


def served_once(connected: list[socket.socket]) -> None:
    for client in connected:
        client.settimeout(10)
        assert receive(client, 2) == b"!"


def serve(acceptor: harken.Acceptor) -> int:
    count = 0
    for conn in acceptor:
        with conn:
            conn.sendall(b"!")
        count += 1
    return count


# ---------------------------------------------------------------------- one acceptor


def test_what_one_thread_took_is_for_all_that_wait(engine: str) -> None:
    everybody = threading.Barrier(THREADS + 1)

    def serve_together() -> None:
        for conn in acceptor:
            with conn:
                everybody.wait(10)  # nobody is served before each thread has somebody to serve

    with harken.listen("127.0.0.1:0") as listeners, listeners.acceptor(engine=engine) as acceptor:
        workers = [Call(serve_together).blocked() for _ in range(THREADS)]
        for _ in range(10):
            acceptor.pause()
            with clients(listeners[0].address, THREADS) as connected:
                wait_for_queue(listeners[0], THREADS)
                acceptor.resume()
                everybody.wait(10)
                for client in connected:
                    assert client.recv(1) == b""
        acceptor.close()
        for worker in workers:
            worker.outcome()


@pytest.mark.parametrize("limit", [None, 3])
def test_iteration_while_others_pause_resume_and_ask(engine: str, limit: int | None) -> None:
    def disturb() -> None:
        while not acceptor.closed:
            with ended_by(acceptor):
                acceptor.pause()
                assert repr(acceptor).startswith("<harken.Acceptor ")
                assert 0 <= acceptor.stats().open <= (limit or 60)
                acceptor.resume()
                acceptor.wait(0.001)

    with harken.listen("127.0.0.1:0") as listeners:
        acceptor = listeners.acceptor(engine=engine, limit=limit)
        workers = [Call(serve, acceptor) for _ in range(THREADS)]
        others = [Call(disturb) for _ in range(2)]
        for _ in range(3):
            with clients(listeners[0].address, 60) as connected:
                served_once(connected)
        at_once(*[acceptor.close] * 3)
        assert sum(worker.outcome() for worker in workers) == 180
        for other in others:
            other.outcome()
        stats = acceptor.stats()
        assert (stats.accepted, stats.open) == (180, 0)
        assert stats.high_water <= (limit or 60)


def test_the_limit_while_other_threads_close(engine: str) -> None:
    limit, count = 8, 200
    taken: queue.SimpleQueue[harken.Socket | None] = queue.SimpleQueue()

    def take() -> None:
        while acceptor.wait():
            with ended_by(acceptor):
                for conn in acceptor.accept_many():
                    taken.put(conn)

    def give_back() -> None:
        while conn := taken.get():
            assert 1 <= acceptor.stats().open <= limit
            conn.send(b"!")
            conn.close()

    with harken.listen("127.0.0.1:0", backlog=1024) as listeners:
        acceptor = listeners.acceptor(engine=engine, limit=limit)
        takers, closers = [Call(take) for _ in range(THREADS)], [Call(give_back) for _ in range(THREADS)]
        with clients(listeners[0].address, count) as connected:
            served_once(connected)
        wait_until(lambda: acceptor.stats().open == 0)
        acceptor.close()
        for _ in closers:
            taken.put(None)
        for call in takers + closers:
            call.outcome()
        stats = acceptor.stats()
        assert (stats.accepted, stats.open) == (count, 0)
        assert stats.high_water <= limit


def test_two_acceptors_on_the_same_listeners(engine: str) -> None:
    with harken.listen("127.0.0.1:0", "127.0.0.1:0") as listeners:
        acceptors = [listeners.acceptor(engine=engine, limit=5) for _ in range(2)]
        workers = [Call(serve, acceptor) for acceptor in acceptors for _ in range(2)]
        for _ in range(2):
            with clients(listeners[0].address, 50) as some, clients(listeners[1].address, 50) as others:
                served_once(some + others)
        at_once(*[acceptor.close for acceptor in acceptors])
        assert sum(worker.outcome() for worker in workers) == 200
        assert [acceptor.stats().open for acceptor in acceptors] == [0, 0]


# ---------------------------------------------------------------------- listeners that go meanwhile


def test_listeners_close_while_their_acceptor_does(engine: str) -> None:
    for _ in range(15):
        with harken.listen("127.0.0.1:0", "127.0.0.1:0") as listeners, clients(listeners[0].address, 2):
            acceptor = listeners.acceptor(engine=engine)
            waiting = Call(list, acceptor)
            at_once(
                listeners[0].close, listeners[1].close, acceptor.close, acceptor.__repr__, acceptor.stats,
                lambda acceptor=acceptor: acceptor.wait(0), lambda acceptor=acceptor: acceptor.closed,
            )  # fmt: skip
            close_all(waiting.outcome())
            assert list(acceptor) == []


def test_listeners_close_while_acceptors_are_made_for_them(engine: str) -> None:
    def make(listeners: harken.Listeners) -> None:
        try:
            with listeners.acceptor(engine=engine) as acceptor:
                close_all(list(acceptor))  # the end of the listeners is its end
        except (ValueError, OSError) as error:
            assert isinstance(error, ValueError) or error.errno == EBADF, error

    for _ in range(15):
        listeners = harken.listen("127.0.0.1:0", "127.0.0.1:0")
        at_once(*[lambda listeners=listeners: make(listeners)] * 2, listeners[0].close, listeners[1].close)


# ---------------------------------------------------------------------- one socket


@pytest.mark.parametrize("way", ["detach", "to_socket"])
def test_a_connection_is_given_away_or_closed_and_counted_once(engine: str, way: str) -> None:
    given = 0
    with harken.listen("127.0.0.1:0") as listeners, listeners.acceptor(engine=engine) as acceptor:
        for _ in range(40):
            with clients(listeners[0].address, 1):
                conn = next(acceptor)

                def give(conn: harken.Socket = conn) -> bool:
                    if way == "to_socket":
                        try:
                            conn.to_socket().close()
                        except OSError as error:
                            assert error.errno == EBADF
                            return False
                        return True
                    handle = conn.detach()
                    if handle >= 0:
                        socket.socket(fileno=handle).close()
                    return handle >= 0

                given += sum(at_once(give, give, conn.close, conn.close)[:2])
                assert acceptor.stats().open == given


@posix_only
def test_who_asks_while_it_is_closed_hears_of_no_stranger() -> None:
    """The number of a socket that is closed goes to the next that is made, here at once."""
    with connection(socket.socket) as (_, stranger):
        for _ in range(60):
            with connection() as (client, server):
                expected = server.getpeername()
                asked: list[Any] = []

                def ask(server: harken.Socket = server, asked: list[Any] = asked) -> None:
                    with fails(EBADF):
                        while True:
                            asked.append(server.getpeername())
                            server.setsockopt(harken.SOL_SOCKET, harken.SO_KEEPALIVE, 1)
                            server.settimeout(5)

                def close(server: harken.Socket = server) -> int:
                    server.close()
                    return os.dup(stranger.fileno())

                *_, copy = at_once(ask, ask, close)
                os.close(copy)
                assert set(asked) <= {expected}
                assert client.recv(1) == b""
        assert stranger.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


def test_close_from_several_threads_under_calls_in_flight() -> None:
    for _ in range(25):
        with connection() as (client, server), listening() as listener:
            reading = [Call(server.recv, 1).blocked() for _ in range(2)]
            accepting = [Call(listener.accept).blocked() for _ in range(2)]
            assert at_once(server.close, server.close, listener.close, listener.close) == [None] * 4
            for call in reading + accepting:
                with fails(EBADF):
                    call.outcome()
            assert client.recv(1) == b""


@pytest.mark.parametrize("way", ["accept", "accept_many"])
def test_threads_accept_on_one_listener(way: str) -> None:
    def serve_all() -> int:
        count = 0
        with contextlib.suppress(OSError):
            while True:
                for conn in [listener.accept()[0]] if way == "accept" else listener.accept_many(5):
                    with conn:
                        conn.send(b"!")
                    count += 1
        return count

    with listening() as listener:
        workers = [Call(serve_all) for _ in range(THREADS)]
        for _ in range(3):
            with clients(listener.getsockname(), 50) as connected:
                served_once(connected)
        listener.close()
        assert sum(worker.outcome() for worker in workers) == 150


# ---------------------------------------------------------------------- what systemd passed


@posix_only
def test_what_systemd_passed_goes_to_one_thread_each() -> None:
    code = """
import os, sys, threading, harken
listeners = harken.listen(*["127.0.0.1:0"] * 8)
for n, listener in enumerate(listeners):
    os.dup2(listener.fileno(), 100 + n)
listeners.close()
for n in range(8):
    os.dup2(100 + n, 3 + n)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "8"}
sys.setswitchinterval(1e-6)
ready, got = threading.Barrier(8), []
def take():
    ready.wait(10)
    try:
        got.extend(listener.fileno() for listener in harken.from_systemd())
    except OSError:
        pass  # nothing is left
threads = [threading.Thread(target=take) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sorted(got) == list(range(3, 11)))
os._exit(0)
"""
    assert python("import sys\n" + code.replace("os._exit", "sys.stdout.flush(); os._exit")).stdout == "True\n"


# ---------------------------------------------------------------------- one list of addresses


def test_addresses_are_read_while_they_are_closed() -> None:
    for _ in range(50):
        found = harken.getaddrinfo(None, 27015, type=harken.SOCK_STREAM)
        expected = list(found)

        def read(found: harken.AddrInfo = found, expected: list[harken.AddrInfoEntry] = expected) -> None:
            with pytest.raises(ValueError, match="closed"):
                while True:
                    assert list(found[:]) == expected
                    assert found[-1] == expected[-1]
                    assert len(found) == len(expected)

        at_once(read, read, found.close, found.close)


@posix_only
@pytest.mark.thread_unsafe(reason="runs in a child process")
def test_a_storm_reaches_no_reused_descriptor() -> None:
    """storm.py, which runs longer by hand: no ENOTSOCK, and no file closed that is not ours."""
    program = Path(__file__).with_name("storm.py")
    child = subprocess.run(
        [sys.executable, program, "2"], env=CHILD_ENVIRONMENT, capture_output=True, text=True, timeout=90, check=False
    )
    assert (child.returncode, child.stderr) == (0, ""), child.stdout
    assert "ENOTSOCK: 0, files gone: 0" in child.stdout
