"""An acceptor among processes and threads. More threads, and without a GIL: test_threads.py."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from typing import Any

import pytest
from wire import Call, clients, python

import harken
from children import FORK
from engines import one_listener
from machine import posix_only

EACH_THREAD = {"listeners": one_listener}  # see conftest.py


@posix_only
@pytest.mark.parametrize("end", ["acceptor.close()", "del acceptor", "listeners.close()", "pass"])
def test_a_fork_has_an_engine_of_its_own(engine: str, end: str) -> None:
    code = (
        FORK
        + f"""
listeners = harken.listen("127.0.0.1:0")
acceptor = listeners.acceptor(engine={engine!r})
waiting = Call(next, acceptor).blocked()
parent = acceptor
def child():
    global acceptor, parent
    del parent
    client = socket.create_connection(("127.0.0.1", listeners.port))
    while not (found := acceptor.accept_many()):  # or the parent took it
        if waiting_is_done(): break
        acceptor.wait(0.01)
    for one in found: one.close()
    acceptor.pause()
    {end}
def waiting_is_done():
    return bool(select.select([gone], [], [], 0)[0])
gone, tell = os.pipe()
def note():
    waiting.join()
    os.write(tell, b"!")
threading.Thread(target=note, daemon=True).start()
in_a_child(child)
if not waiting.ended:
    waiting.blocked()  # nothing that the child did disturbed it
    client = socket.create_connection(("127.0.0.1", listeners.port))
waiting.outcome().close()
for _ in range(3):
    client = socket.create_connection(("127.0.0.1", listeners.port))
    next(acceptor).close()
print(acceptor)
"""
    )
    assert python(code).stdout == f"<harken.Acceptor {engine}, 1 listener, 0 open>\n"


@posix_only
@pytest.mark.parametrize("use", ["acceptor.accept_many(); acceptor.close()", "acceptor.close()", "del acceptor"])
def test_a_fork_touches_no_descriptors_of_strangers(engine: str, use: str) -> None:
    """A kqueue is not there in a child, and somebody else may get its number."""
    code = (
        FORK
        + f"""
listeners = harken.listen("127.0.0.1:0")
acceptor = listeners.acceptor(engine={engine!r})
def child():
    global acceptor
    strangers = [os.dup(0) for _ in range(16)]
    {use}
    for stranger in strangers:
        os.close(stranger)
in_a_child(child)
client = socket.create_connection(("127.0.0.1", listeners.port))
next(acceptor).close()
print("well")
"""
    )
    assert python(code).stdout == "well\n"


@posix_only
@pytest.mark.parametrize("use", ["acceptor.close()", "acceptor.accept_many()", "acceptor.stats()"])
def test_a_fork_closes_its_copies_of_what_the_parent_took(engine: str, use: str) -> None:
    """Closed, not dropped: whoever drops an open socket is warned."""
    code = (
        FORK
        + f"""
import gc, warnings
with harken.listen("127.0.0.1:0") as listeners:
    acceptor = listeners.acceptor(engine={engine!r})
    clients = [socket.create_connection(listeners[0].address) for _ in range(5)]
    wait_until(lambda: listeners[0].stats().queued in (5, None))
    first = next(acceptor)
    def child():
        warnings.simplefilter("error", ResourceWarning)
        problems = []
        sys.unraisablehook = problems.append
        {use}
        gc.collect()
        assert not problems, problems
    in_a_child(child)
    acceptor.close()
    taken = [first, *acceptor]
    assert len(taken) == 5, taken
    for client, conn in zip(clients, taken):
        conn.sendall(b"!")
        assert client.recv(1) == b"!"
        conn.close()
"""
    )
    python(code)


@posix_only
def test_a_fork_leaves_to_the_parent_what_the_parent_took(engine: str) -> None:
    code = (
        FORK
        + f"""
listeners = harken.listen("127.0.0.1:0")
with listeners.acceptor(engine={engine!r}) as acceptor:
    clients = [socket.create_connection(("127.0.0.1", listeners.port)) for _ in range(5)]
    wait_until(lambda: listeners[0].stats().queued in (5, None))
    first = next(acceptor)
    def child():
        assert acceptor.accept_many() == []
        assert acceptor.stats().open == 1
    def child_that_ends_it():
        acceptor.close()
        assert list(acceptor) == []
        assert acceptor.stats().open == 1
    in_a_child(child)
    in_a_child(child_that_ends_it)
    taken = [first] + [next(acceptor) for _ in range(4)]
    for one in taken:
        one.sendall(b"!")
        one.close()
    print(b"".join(client.recv(1) for client in clients))
"""
    )
    assert python(code).stdout == "b'!!!!!'\n"


WORKERS = """
import os, signal, sys, time, harken
engine, way, workers, clients = sys.argv[1], sys.argv[2], 4, 400
import socket
listeners = harken.listen("127.0.0.1:0", backlog=1024)
connected = [socket.create_connection(("127.0.0.1", listeners.port)) for _ in range(clients)]
ready, say_ready = os.pipe()
go, say_go = os.pipe()
taken, say_taken = os.pipe()
def work(number):
    acceptor = listeners.acceptor(engine=engine)
    os.write(say_ready, b"!")
    os.read(go, 1)
    def serve(connection):
        os.write(say_taken, bytes([number]))
        time.sleep(0.001)  # what a request costs
        connection.close()
    if way == "iteration":
        for connection in acceptor:
            serve(connection)
    else:
        while acceptor.wait():
            for connection in acceptor.accept_many():
                serve(connection)
children = []
for number in range(workers):
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(30)
            work(number)
        finally:
            os._exit(1)
    children.append(child)
for _ in children:
    os.read(ready, 1)
os.write(say_go, b"!" * workers)
seen = b""
while len(seen) < clients:
    seen += os.read(taken, clients)
for child in children:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print(max(seen.count(bytes([number])) for number in range(workers)) / clients)
"""


@posix_only
@pytest.mark.parametrize("way", ["iteration", "accept_many"])
def test_no_process_takes_most_of_a_shared_queue(engine: str, way: str) -> None:
    with harken.listen("127.0.0.1:0", backlog=1024) as probe:
        if (probe[0].backlog or 1024) < 500:
            pytest.skip("queues are too short on this machine")
    assert float(python(WORKERS, engine, way).stdout) <= 0.4


@pytest.mark.parametrize("way", ["iteration", "accept_many"])
def test_sixteen_threads_lose_and_double_nothing(listeners: harken.Listeners, engine: str, way: str) -> None:
    def serve() -> list[Any]:
        seen = []
        if way == "iteration":
            for conn in acceptor:
                with conn:
                    seen.append(conn.getpeername())
        else:
            while acceptor.wait():
                with contextlib.suppress(OSError):  # closed in between
                    for conn in acceptor.accept_many():
                        with conn:
                            seen.append(conn.getpeername())
        return seen

    with listeners.acceptor(engine=engine, batch=7) as acceptor:
        workers = [Call(serve) for _ in range(16)]
        names = []
        for _ in range(5):
            with clients(listeners[0].address, 100) as connected:
                names += [client.getsockname() for client in connected]
                for client in connected:
                    assert client.recv(1) == b""  # somebody took it, and closed it
        acceptor.close()
        taken = Counter(name for worker in workers for name in worker.outcome())
    assert taken == Counter(names)


def test_pause_resume_and_close_from_many_threads(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine, limit=4) as acceptor:

        def serve() -> None:
            for conn in acceptor:
                conn.close()

        def disturb() -> None:
            while not acceptor.closed:
                with contextlib.suppress(OSError):
                    acceptor.pause()
                    acceptor.stats()
                    acceptor.resume()
                time.sleep(0)  # where system calls are slow, as under Wine, threads that never wait keep the GIL

        calls = [Call(serve) for _ in range(4)] + [Call(disturb) for _ in range(3)]
        for _ in range(3):
            with clients(listeners[0].address, 50) as connected:
                for client in connected:
                    assert client.recv(1) == b""
        closing = [Call(acceptor.close) for _ in range(3)]
        for call in closing + calls:
            call.outcome()
