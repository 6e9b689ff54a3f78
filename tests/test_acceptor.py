"""The accept engine: what it takes, when it stops, and that it survives. Every test runs on every engine."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import json
import math
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from wire import (
    CHILD_ENVIRONMENT,
    Call,
    clients,
    close_all,
    fails,
    listening,
    python,
    receive,
    wait_for_queue,
    wait_until,
)

import harken
from children import SECCOMP, needs_strace, traced
from harken._acceptor import engines
from machine import EMULATOR, HAS_IPV6, LINUX, WINDOWS, linux_only, posix_only, windows_only

pytest_plugins = ["poison"]

EBADF = 10038 if WINDOWS else errno.EBADF
POLLABLE = {"io_uring": True, "accept4": True, "kqueue": True, "accept": False, "acceptex": True}
NAMES = [name for name in engines() if name in os.environ.get("HARKEN_ENGINES", ",".join(engines())).split(",")]


@functools.cache
def forbidden(engine: str) -> str:
    """Why it cannot be had here: a kernel may be too old for io_uring, and a container forbid it."""
    try:
        with harken.listen("127.0.0.1:0") as listeners:
            listeners.acceptor(engine=engine).close()
    except OSError as error:
        return str(error)
    return ""


@pytest.fixture(params=NAMES)
def engine(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if forbidden(name):
        pytest.skip(f"no {name} here: {forbidden(name)}")
    return name


@pytest.fixture
def listeners() -> Iterator[harken.Listeners]:
    with one_listener() as made:
        yield made


@contextlib.contextmanager
def one_listener() -> Iterator[harken.Listeners]:
    with harken.listen("127.0.0.1:0", backlog=1024) as made:
        yield made


EACH_THREAD = {"listeners": one_listener}  # see conftest.py


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if WINDOWS else "ii", 1, 0))
    client.close()


def taken_in_time(acceptor: harken.Acceptor, count: int) -> list[harken.Socket]:
    """So many connections, however many calls it takes."""
    found: list[harken.Socket] = []
    deadline = time.monotonic() + 10
    while len(found) < count:
        assert acceptor.wait(max(0, deadline - time.monotonic())), f"{len(found)} of {count}: {acceptor!r}"
        found += acceptor.accept_many()
    return found


# ---------------------------------------------------------------------- what is taken


def test_a_batch_is_what_waits_in_its_order(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine) as acceptor, clients(listeners[0].address, 5) as connected:
        wait_for_queue(listeners[0], 5)
        batch = acceptor.accept_many()
        assert [conn.getpeername() for conn in batch] == [client.getsockname() for client in connected]
        for conn, client in zip(batch, connected, strict=True):
            assert isinstance(conn, harken.Socket)
            assert (conn.gettimeout(), conn.get_inheritable()) == (0, False)
            assert (conn.family, conn.type, conn.proto) == (listeners[0].family, listeners[0].type, listeners[0].proto)
            with pytest.raises(BlockingIOError):
                conn.recv(1)
            client.sendall(b"to the right one")
            conn.setblocking(True)
            assert receive(conn, 16) == b"to the right one"
        assert acceptor.accept_many() == []
        close_all(batch)


def test_iteration_gives_sockets_that_block(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine) as acceptor, clients(listeners[0].address, 3) as connected:
        for client in connected:
            conn = next(acceptor)
            assert (conn.gettimeout(), conn.get_inheritable()) == (None, False)
            reading = Call(conn.recv, 4).blocked()
            client.sendall(b"ping")
            assert reading.outcome() == b"ping"
            conn.close()


def test_a_thread_waits_for_a_connection(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine) as acceptor:
        waiting = Call(next, acceptor).blocked()
        with clients(listeners[0].address, 1) as (client,), waiting.outcome() as conn:
            assert conn.getpeername() == client.getsockname()


@pytest.mark.parametrize(
    ("queued", "batch", "limit", "sizes"),
    [
        (5, 3, None, [3, 2, 0]),
        (5, None, 3, [3, 2, 0]),
        (5, 3, 10**30, [3, 2, 0]),
        (3, 1, None, [1, 1, 1, 0]),
        (70, None, None, [64, 6, 0]),
        (64, 64, None, [64, 0]),
        (150, 10**30, None, [150, 0]),
        (130, 128, None, [128, 2, 0]),
    ],
)
def test_the_batch_is_the_most_that_one_call_takes(
    listeners: harken.Listeners, engine: str, queued: int, batch: int | None, limit: int | None, sizes: list[int]
) -> None:
    with listeners.acceptor(engine=engine, batch=batch) as acceptor, clients(listeners[0].address, queued):
        wait_for_queue(listeners[0], queued)
        for size in sizes:
            taken = acceptor.accept_many(limit)
            assert len(taken) == size
            close_all(taken)


def test_a_batch_is_shared_out_among_the_listeners(engine: str) -> None:
    with contextlib.ExitStack() as stack:
        listeners = stack.enter_context(harken.listen(*["127.0.0.1:0"] * 3))
        acceptor = stack.enter_context(listeners.acceptor(engine=engine, batch=6))
        for listener, count in zip(listeners, (40, 2, 4), strict=True):
            stack.enter_context(clients(listener.address, count))
            wait_for_queue(listener, count)
        shares, firsts = [], []
        for _ in range(4):
            batch = acceptor.accept_many()
            ports = [conn.getsockname()[1] for conn in batch]
            shares.append([ports.count(listener.address[1]) for listener in listeners])
            firsts.append(ports[0])
            close_all(batch)
        assert sum(share[0] for share in shares) == 24 - 6  # nothing is left unused for fairness' sake
        assert [sum(share[n] for share in shares[:2]) for n in (1, 2)] == [2, 4]  # the small ones did not wait
        assert len(set(firsts)) > 1
        close_all(taken_in_time(acceptor, 22))


def test_one_that_was_idle_is_not_forgotten_while_another_fills_the_batches(engine: str) -> None:
    with (
        harken.listen("127.0.0.1:0", "127.0.0.1:0", backlog=1024) as (busy, idle),
        harken.Acceptor([busy, idle], engine=engine, batch=4) as acceptor,
        clients(busy.address, 100),
    ):
        wait_for_queue(busy, 100)
        close_all(acceptor.accept_many())
        with clients(idle.address, 1):
            wait_for_queue(idle, 1)
            seen: list[int] = []
            for _ in range(8):
                taken = acceptor.accept_many()
                seen += [conn.getsockname()[1] for conn in taken]
                close_all(taken)
            assert idle.port in seen


def test_listeners_of_any_family(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places: list[tuple[int, Any]] = [(harken.AF_INET, ("127.0.0.1", 0))]
    if HAS_IPV6:
        places.append((harken.AF_INET6, ("::1", 0)))
    if not WINDOWS:
        places.append((harken.AF_UNIX, "s"))
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(harken.Socket(family)) for family, _ in places]
        for listener, (_, address) in zip(listeners, places, strict=True):
            listener.bind(address)
            listener.listen()
        acceptor = stack.enter_context(harken.Acceptor(iter(listeners), engine=engine))
        for listener in listeners:
            with harken.Socket(listener.family) as client:
                client.connect(listener.getsockname())
                (conn,) = taken_in_time(acceptor, 1)
                with conn:
                    assert (conn.family, conn.proto) == (listener.family, listener.proto)
                    assert conn.getsockname() == listener.getsockname()


@linux_only
def test_connections_get_the_options_of_their_listener(engine: str) -> None:
    binds = ["127.0.0.1:0?priority=3", "127.0.0.1:0?priority=5"]  # not inherited on Linux
    with harken.listen(*binds) as listeners, listeners.acceptor(engine=engine) as acceptor:
        for listener, priority in zip(listeners, (3, 5), strict=True):
            with clients(listener.address, 1), taken_in_time(acceptor, 1)[0] as conn:
                assert conn.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == priority


def test_many_listeners(engine: str) -> None:
    with harken.listen(*["127.0.0.1:0"] * 100) as listeners, listeners.acceptor(engine=engine) as acceptor:
        assert "100 listeners" in repr(acceptor)
        for listener in listeners[::9]:
            waiting = Call(next, acceptor).blocked()
            with clients(listener.address, 1), waiting.outcome() as conn:
                assert conn.getsockname() == listener.address


def test_an_accepted_socket_is_small(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine) as acceptor, clients(listeners[0].address, 2), next(acceptor) as first:
        most = 112 + object.__basicsize__  # where there is no GIL, every object has 16 bytes more
        assert sys.getsizeof(first) <= most
        assert not gc.is_tracked(first)
        assert not hasattr(first, "__dict__")
        with taken_in_time(acceptor, 1)[0] as second:
            assert sys.getsizeof(second) <= most


# ---------------------------------------------------------------------- how it waits, and for what a loop polls


def readable(acceptor: harken.Acceptor, seconds: float = 0) -> bool:
    return bool(select.select([acceptor.fileno()], [], [], seconds)[0])


def test_wait_says_whether_there_is_something(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine) as acceptor:
        assert acceptor.wait(0) is False
        assert acceptor.wait(0.01) is False
        with clients(listeners[0].address, 1):
            assert acceptor.wait() is True
            assert acceptor.wait(0) is True  # whenever it is asked
            close_all(taken_in_time(acceptor, 1))
            assert acceptor.wait(0) is False
        waiting = Call(acceptor.wait).blocked()
        acceptor.close()
        assert waiting.outcome() is False
        assert acceptor.wait() is False


@pytest.mark.thread_unsafe(reason="polls a number that is closed meanwhile, and could be another test's")
def test_a_loop_can_poll_it(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine) as acceptor:
        if not POLLABLE[engine]:
            with pytest.raises(OSError, match="fileno|supported|loop") as caught:
                acceptor.fileno()
            assert any("wait()" in note for note in caught.value.__notes__)
            return
        assert not readable(acceptor)
        with clients(listeners[0].address, 2):
            wait_for_queue(listeners[0], 2)
            assert readable(acceptor)
            close_all(acceptor.accept_many(1))
            assert readable(acceptor)
            acceptor.pause()
            assert not readable(acceptor)
            assert acceptor.accept_many() == []
            acceptor.resume()
            assert readable(acceptor)
            close_all(acceptor.accept_many())
            assert not readable(acceptor)
        number = acceptor.fileno()
        polling = Call(select.select, [number], [], [], 10)
        acceptor.close()
        assert acceptor.fileno() == -1
        with contextlib.suppress(OSError):  # a descriptor that is closed while it is polled
            polling.outcome()


@posix_only  # others take connections before they are asked
def test_a_loop_does_not_spin_when_somebody_else_was_faster(listeners: harken.Listeners, engine: str) -> None:
    if not POLLABLE[engine]:
        pytest.skip(f"{engine} has nothing to poll")
    with listeners.acceptor(engine=engine) as faster, listeners.acceptor(engine=engine) as slower:
        with clients(listeners[0].address, 1):
            wait_for_queue(listeners[0], 1)
            assert readable(slower)
            close_all(taken_in_time(faster, 1))
        assert slower.accept_many() == []
        assert not readable(slower)
        assert not readable(faster)


def test_a_loop_hears_of_the_end_of_the_listeners(listeners: harken.Listeners, engine: str) -> None:
    if not POLLABLE[engine]:
        pytest.skip(f"{engine} has nothing to poll")
    with listeners.acceptor(engine=engine) as acceptor:
        polling = Call(select.select, [acceptor.fileno()], [], [], 10).blocked()
        listeners.close()
        assert polling.outcome()[0]
        with fails(EBADF):
            acceptor.accept_many()


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("state", ["waiting", "paused", "full"])
def test_close_wakes_whoever_waits(listeners: harken.Listeners, engine: str, threads: int, state: str) -> None:
    with contextlib.ExitStack() as stack:
        acceptor = stack.enter_context(listeners.acceptor(engine=engine, limit=1))
        if state == "paused":
            acceptor.pause()  # before there is a connection: some engines would have it in their hands already
        stack.enter_context(clients(listeners[0].address, 1))
        if state == "full":
            first = next(acceptor)
        elif state == "waiting":
            next(acceptor).close()
        waiting = [Call(list, acceptor).blocked() for _ in range(threads)]
        began = time.monotonic()
        acceptor.close()
        for call in waiting:
            assert call.outcome() == []
            assert call.ended - began < 1  # in truth a millisecond; a busy machine is no failure
        if state == "full":
            first.close()
        assert acceptor.closed
        with fails(EBADF):
            acceptor.accept_many()
        assert list(acceptor) == []
        acceptor.close()


@posix_only
@pytest.mark.parametrize("handler", ["acceptor.close", "stop"])
def test_a_signal_handler_ends_a_wait(engine: str, handler: str) -> None:
    code = f"""
import os, signal, threading, time, harken
from wire import wait_until_blocked
class Stop(Exception): pass
def stop(): raise Stop
with harken.listen("127.0.0.1:0") as listeners, listeners.acceptor(engine={engine!r}) as acceptor:
    began = []
    signal.signal(signal.SIGUSR1, lambda *_: {handler}())
    def interrupt():
        wait_until_blocked("self", os.getpid())
        began.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGUSR1)
    threading.Thread(target=interrupt).start()
    try:
        for _ in acceptor: pass
        print("ended", time.monotonic() - began[0] < 1)
    except Stop:
        print("raised", time.monotonic() - began[0] < 1)
"""
    assert python(code).stdout.split() == ["raised" if handler == "stop" else "ended", "True"]


@windows_only
def test_an_interrupt_ends_a_wait_on_windows(engine: str) -> None:
    code = f"""
import _thread, threading, time, harken
with harken.listen("127.0.0.1:0") as listeners, listeners.acceptor(engine={engine!r}) as acceptor:
    threading.Timer(0.2, _thread.interrupt_main).start()
    try:
        next(acceptor)
    except KeyboardInterrupt:
        print("interrupted")
"""
    assert python(code).stdout.split() == ["interrupted"]


def test_other_threads_run_while_one_waits(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine) as acceptor:
        waiting = Call(next, acceptor).blocked()
        assert sum(range(1000)) == 499500
        with clients(listeners[0].address, 1):
            waiting.outcome().close()


def test_what_iteration_took_before_the_end_is_still_given_out(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine) as acceptor, clients(listeners[0].address, 8) as connected:
        wait_for_queue(listeners[0], 8)
        taken = [next(acceptor)]
        acceptor.close()
        taken += acceptor.accept_many(2)
        assert [conn.gettimeout() for conn in taken] == [None, 0, 0]
        taken += acceptor
        assert [conn.getpeername() for conn in taken] == [client.getsockname() for client in connected]
        close_all(taken)


@pytest.mark.parametrize("before", ["paused", "waiting"])
def test_a_batch_of_one_thread_is_for_all_threads(listeners: harken.Listeners, engine: str, before: str) -> None:
    """No client waits for the client before it while another thread has nothing to do."""
    together = threading.Barrier(5)

    def serve() -> None:
        for conn in acceptor:
            with conn:
                together.wait(10)

    with listeners.acceptor(engine=engine) as acceptor:
        workers = [Call(serve).blocked() for _ in range(4)]
        if before == "paused":
            acceptor.pause()
        with clients(listeners[0].address, 4):
            if before == "paused":
                acceptor.resume()
            together.wait(10)
            acceptor.close()
            for worker in workers:
                worker.outcome()


def test_pause_holds_back_what_iteration_took_too(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine) as acceptor, clients(listeners[0].address, 4) as connected:
        wait_for_queue(listeners[0], 4)
        taken = [next(acceptor)]
        acceptor.pause()
        assert not acceptor.wait(0)
        assert acceptor.accept_many() == []
        waiting = Call(next, acceptor).blocked()
        acceptor.resume()
        taken.append(waiting.outcome())
        taken += taken_in_time(acceptor, 2)
        assert [conn.getpeername() for conn in taken] == [client.getsockname() for client in connected]
        close_all(taken)


def test_what_was_taken_is_given_out_when_the_listeners_go_while_paused(engine: str) -> None:
    with (
        harken.listen("127.0.0.1:0") as listeners,
        listeners.acceptor(engine=engine) as acceptor,
        clients(listeners[0].address, 3),
    ):
        wait_for_queue(listeners[0], 3)
        first = next(acceptor)
        acceptor.pause()
        listeners.close()
        close_all([first, *acceptor])
        assert acceptor.stats().open == 0


def test_a_loop_hears_of_what_iteration_took(listeners: harken.Listeners, engine: str) -> None:
    if not POLLABLE[engine]:
        pytest.skip(f"{engine} has nothing to poll")
    with listeners.acceptor(engine=engine) as acceptor, clients(listeners[0].address, 4):
        wait_for_queue(listeners[0], 4)
        taken = [next(acceptor)]
        assert readable(acceptor)  # asked for the descriptor afterwards
        acceptor.pause()
        assert not readable(acceptor)
        acceptor.resume()
        assert readable(acceptor)
        taken.append(next(acceptor))
        assert readable(acceptor)
        taken += acceptor.accept_many(1)
        assert readable(acceptor)
        taken += acceptor.accept_many()
        assert len(taken) == 4
        assert not readable(acceptor)
        with clients(listeners[0].address, 2):  # and before
            wait_for_queue(listeners[0], 2)
            taken.append(next(acceptor))
            assert readable(acceptor)
            taken.append(next(acceptor))
            assert not readable(acceptor)
        close_all(taken)


def test_an_acceptor_that_is_dropped_leaves_nothing_open(engine: str) -> None:
    with harken.listen("127.0.0.1:0") as listeners, clients(listeners[0].address, 3) as connected:
        acceptor = listeners.acceptor(engine=engine)
        wait_for_queue(listeners[0], 3)
        next(acceptor).close()
        del acceptor
        gc.collect()
        for client in connected:
            assert client.recv(1) == b""
        with clients(listeners[0].address, 1), listeners[0].accept()[0]:  # it was only borrowed
            pass


# ---------------------------------------------------------------------- pause, resume, limit


def test_pause_leaves_clients_in_the_queue(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine) as acceptor:
        waiting = Call(next, acceptor).blocked()
        acceptor.pause()
        acceptor.pause()
        assert repr(acceptor) == f"<harken.Acceptor {engine}, 1 listener, 0 open, paused>"
        with clients(listeners[0].address, 4):
            wait_for_queue(listeners[0], 4)
            assert not acceptor.wait(0.01)
            assert acceptor.accept_many() == []
            waiting.blocked()
            wait_for_queue(listeners[0], 4)
            acceptor.resume()
            close_all([waiting.outcome(), *taken_in_time(acceptor, 3)])
        acceptor.resume()
        assert acceptor.stats().pauses == 0  # those were the user's


def test_never_more_are_open_than_the_limit(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine, limit=5) as acceptor, clients(listeners[0].address, 60) as connected:
        most = served = 0
        held: list[harken.Socket] = []
        while served < 60:
            if served + len(held) < 60:
                held += taken_in_time(acceptor, 1)
            most = max(most, len(held))
            assert acceptor.stats().open == len(held) <= 5
            conn = held.pop(served % len(held))
            conn.sendall(b"!")
            conn.close()
            served += 1
        assert most == 5
        assert held == []
        assert all(client.recv(1) == b"!" for client in connected)
        stats = acceptor.stats()
        assert (stats.accepted, stats.open, stats.high_water) == (60, 0, 5)
        assert stats.pauses > 0
        assert stats.paused > 0


@pytest.mark.parametrize("count", [1, 8])
def test_the_limit_holds_for_threads_too(listeners: harken.Listeners, engine: str, count: int) -> None:
    lock, now_open, most = threading.Lock(), 0, 0

    def serve() -> int:
        nonlocal now_open, most
        served = 0
        for conn in acceptor:
            with lock:
                now_open += 1
                most = max(most, now_open)
            conn.sendall(b"!")
            with lock:
                now_open -= 1
            conn.close()
            served += 1
        return served

    with listeners.acceptor(engine=engine, limit=3) as acceptor, clients(listeners[0].address, 200) as connected:
        workers = [Call(serve) for _ in range(count)]
        assert all(client.recv(1) == b"!" for client in connected)
        wait_until(lambda: acceptor.stats().open == 0)
        acceptor.close()
        assert sum(worker.outcome() for worker in workers) == 200
        assert 1 <= most <= 3
        assert acceptor.stats().high_water <= 3


def test_the_rest_stays_in_the_queue(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine, limit=3) as acceptor, clients(listeners[0].address, 10):
        wait_for_queue(listeners[0], 10)
        held = acceptor.accept_many()
        assert len(held) == 3
        others = listeners[0].accept_many(20)  # whoever else has the listener
        assert len(others) == 7
        close_all(held + others)
        assert not acceptor.wait(0.01)
        acceptor.pause()
        with clients(listeners[0].address, 2):
            wait_for_queue(listeners[0], 2)
            others = listeners[0].accept_many(20)
            assert len(others) == 2
            close_all(others)


def test_it_goes_on_when_an_eighth_is_free(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine, limit=16) as acceptor, clients(listeners[0].address, 20):
        wait_for_queue(listeners[0], 20)
        held = acceptor.accept_many()
        assert len(held) == 16
        assert repr(acceptor) == f"<harken.Acceptor {engine}, 1 listener, 16 open, paused>"
        waiting = Call(acceptor.wait).blocked()
        held.pop().close()
        assert acceptor.accept_many() == []
        assert not acceptor.wait(0.01)
        held.pop().close()
        assert waiting.outcome() is True
        held += taken_in_time(acceptor, 2)
        assert acceptor.accept_many() == []
        close_all(held)
        close_all(taken_in_time(acceptor, 2))


@pytest.mark.parametrize("why", ["full", "paused"])
def test_clients_that_must_wait_cost_no_processor_time(listeners: harken.Listeners, engine: str, why: str) -> None:
    with listeners.acceptor(engine=engine, limit=1) as acceptor, clients(listeners[0].address, 5):
        wait_for_queue(listeners[0], 5)
        with next(acceptor) as first:
            if why == "paused":
                acceptor.pause()
                first.close()
            before = time.thread_time()
            assert not acceptor.wait(0.3)
            assert time.thread_time() - before < 0.05


def test_a_loop_hears_that_there_is_room_again(listeners: harken.Listeners, engine: str) -> None:
    if not POLLABLE[engine]:
        pytest.skip(f"{engine} has nothing to poll")
    with listeners.acceptor(engine=engine, limit=1) as acceptor, clients(listeners[0].address, 2):
        wait_for_queue(listeners[0], 2)
        (first,) = acceptor.accept_many()
        assert not readable(acceptor)
        closing = threading.Thread(target=first.close)
        closing.start()
        assert readable(acceptor, 10)
        closing.join()
        close_all(taken_in_time(acceptor, 1))


@pytest.mark.parametrize("way", ["detach", "to_socket"])
def test_a_connection_that_was_given_away_counts_until_it_is_released(
    listeners: harken.Listeners, engine: str, way: str
) -> None:
    with listeners.acceptor(engine=engine, limit=2) as acceptor, clients(listeners[0].address, 3):
        wait_for_queue(listeners[0], 3)
        given, kept = acceptor.accept_many()
        other = socket.socket(fileno=given.detach()) if way == "detach" else given.to_socket()
        given.close()
        del given
        other.close()
        assert acceptor.stats().open == 2
        assert not acceptor.wait(0)
        acceptor.release()
        assert acceptor.stats().open == 1
        last = taken_in_time(acceptor, 1)
        kept.close()
        kept.close()
        assert acceptor.stats().open == 1
        with pytest.raises(ValueError, match="only 0 connections were given away"):
            acceptor.release()  # the one that is open counts itself down
        close_all(last)
        assert acceptor.stats().open == 0


def test_a_connection_that_could_not_be_given_away_is_still_ours(
    listeners: harken.Listeners, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refuses(socket.socket):
        def __init__(self, *_: object, **__: object) -> None:
            raise MemoryError

    with listeners.acceptor(engine=engine, limit=1) as acceptor, clients(listeners[0].address, 2) as connected:
        wait_for_queue(listeners[0], 2)
        (taken,) = acceptor.accept_many()
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(socket, "socket", Refuses)
            taken.to_socket()
        taken.sendall(b"?")
        assert connected[0].recv(1) == b"?"
        assert acceptor.stats().open == 1
        with pytest.raises(ValueError, match="only 0"):
            acceptor.release()
        taken.close()
        with fails(EBADF):
            taken.to_socket()
        assert acceptor.stats().open == 0
        close_all(taken_in_time(acceptor, 1))


def test_connections_outlive_their_acceptor(listeners: harken.Listeners, engine: str) -> None:
    with clients(listeners[0].address, 2) as connected:
        acceptor = listeners.acceptor(engine=engine, limit=2)
        wait_for_queue(listeners[0], 2)
        taken = acceptor.accept_many()
        acceptor.close()
        assert repr(acceptor) == "<harken.Acceptor closed, 2 open>"
        taken.pop().close()
        assert acceptor.stats().open == 1
        del acceptor
        gc.collect()
        taken[0].sendall(b"?")
        assert connected[0].recv(1) == b"?"
        close_all(taken)


def test_a_connection_that_is_dropped_is_counted_down(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine, limit=1) as acceptor, clients(listeners[0].address, 2):
        wait_for_queue(listeners[0], 2)
        with pytest.warns(ResourceWarning, match="unclosed"):
            acceptor.accept_many()
        close_all(taken_in_time(acceptor, 1))


# ---------------------------------------------------------------------- overload

STARVED = """
import errno, json, logging, os, resource, select, sys, threading, time
import harken
engine, policy, driver, window = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
lines = []
class Keep(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
logging.getLogger("harken").addHandler(Keep())
asked = []
def ask(acceptor, error):
    asked.append(error.errno)
held, served, over, freed = [], 0, threading.Event(), threading.Event()
listeners = harken.listen("127.0.0.1:0", backlog=1024)
acceptor = listeners.acceptor(engine=engine, on_overload=ask if policy == "ask" else policy)
def deal_with(connection):
    if freed.is_set():
        connection.settimeout(10)
        connection.sendall(b"!")
        connection.close()
    else:
        held.append(connection)
def by_iteration():
    for connection in acceptor:
        deal_with(connection)
def by_loop():
    while not acceptor.closed:
        if driver == "wait":
            acceptor.wait(10)
        else:
            select.select([acceptor.fileno()], [], [], 10)
        try:
            for connection in acceptor.accept_many():
                deal_with(connection)
        except OSError:
            break
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
worker = threading.Thread(target=by_iteration if driver == "iteration" else by_loop)
worker.start()
print(listeners.port, flush=True)
sys.stdin.readline()  # all clients are connected
while not acceptor.stats().failed:
    time.sleep(0.001)
while policy == "shed" and acceptor.stats().accepted + acceptor.stats().shed < 150:
    time.sleep(0.001)
before, began = time.process_time(), time.monotonic()
threading.Event().wait(window)
cpu = (time.process_time() - before) / (time.monotonic() - began)
stats = acceptor.stats()
freed.set()
open_then = len(held)
while held:
    deal_with(held.pop())
print(json.dumps({"cpu": cpu, "lines": lines, "held": open_then, "failed": stats.failed, "pauses": stats.pauses,
                  "paused": stats.paused, "shed": stats.shed, "asked": asked}), flush=True)
sys.stdin.readline()  # every client has been served
acceptor.close()
worker.join()
print(acceptor.stats().accepted, acceptor.stats().open, flush=True)
"""


def drivers(engine: str) -> list[str]:
    return ["iteration", "wait", *(["poll"] if POLLABLE[engine] else [])]


@posix_only
@pytest.mark.parametrize(("engine", "driver"), [(name, driver) for name in NAMES for driver in drivers(name)])
@pytest.mark.parametrize("policy", ["pause", "shed", "ask"])
def test_running_out_of_descriptors(engine: str, driver: str, policy: str) -> None:
    if forbidden(engine):
        pytest.skip(f"no {engine} here: {forbidden(engine)}")
    child = subprocess.Popen(
        [sys.executable, "-c", STARVED, engine, policy, driver, "2"],
        env=CHILD_ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None

    def go() -> None:
        child.stdin.write("\n")  # type: ignore[union-attr]
        child.stdin.flush()  # type: ignore[union-attr]

    with ending(child), clients(("127.0.0.1", int(child.stdout.readline())), 150) as connected:
        go()
        told = json.loads(child.stdout.readline())
        assert told["cpu"] < 0.02
        assert len(told["lines"]) <= 10
        assert 60 < told["held"] < 100
        assert set(map(int, told["failed"])) == {errno.EMFILE}
        answers = Counter(end_of(client) for client in connected)
        go()
        accepted, still_open = map(int, child.stdout.readline().split())
    assert child.returncode == 0
    assert still_open == 0
    assert answers[b"!"] == accepted
    if policy == "shed":
        assert told["held"] == accepted
        assert told["shed"] == answers[b""] == 150 - accepted
        assert any("turned away" in line for line in told["lines"])
    else:
        assert accepted == 150
        assert told["paused"] > 1.9
        assert told["shed"] == 0
        assert len(told["lines"] if policy == "pause" else told["asked"]) > 0
        assert (told["lines"] == []) == (policy == "ask")


@posix_only
def test_the_log_can_be_imported_when_there_are_no_descriptors(engine: str) -> None:
    code = f"""
import os, resource, socket, sys, harken
listeners = harken.listen("127.0.0.1:0")
with listeners.acceptor(engine={engine!r}) as acceptor:
    assert "logging" not in sys.modules
    clients = [socket.create_connection(("127.0.0.1", listeners.port)) for _ in range(3)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        while True:
            os.dup(0)
    except OSError:
        pass
    while acceptor.stats().pauses < 3:
        acceptor.wait()
        assert acceptor.accept_many() == []
os._exit(0)
"""
    said = python(code).stderr.splitlines()
    assert len(said) == 1
    assert f"{os.strerror(errno.EMFILE)}; 0 connections are open, clients wait in the queue" in said[0]


@contextlib.contextmanager
def ending(child: subprocess.Popen[str]) -> Iterator[None]:
    """A test that fails does not wait for its child."""
    with child:
        try:
            yield
        except BaseException:
            child.kill()
            raise


def end_of(client: socket.socket) -> bytes:
    """What the server said before it closed."""
    client.settimeout(10)
    try:
        return receive(client, 2)
    except ConnectionResetError:
        return b""


ONE_FAILURE = """
    import socket, threading
    failures = []
    sys.unraisablehook = lambda unraisable: failures.append(repr(unraisable.exc_value))
    listeners = harken.listen("127.0.0.1:0")
    clients = []
    def connect(count):
        clients.extend(socket.create_connection(("127.0.0.1", listeners.port)) for _ in range(count))
    def fail(*failures):
        so_far = count("accept4")
        os.environ["POISON"] = ",".join(f"accept4:{so_far + nth}{more}:{error}" for nth, more, error in failures)
"""


def test_the_log_needs_no_descriptor_when_logging_is_there(poison: Any, engine: str) -> None:
    """Another thread may take the one that is free for a moment."""
    report = poison.run(
        ONE_FAILURE
        + f"""
    import logging
    lines = []
    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())
    class Refuse:
        def find_spec(self, *_):
            raise OSError(errno.EMFILE, "no descriptor to import with")
    logging.getLogger("harken").addHandler(Keep())
    with listeners.acceptor(engine={engine!r}) as acceptor:
        connect(1)
        acceptor.stats()
        fail((1, "", errno.EMFILE))
        sys.meta_path.insert(0, Refuse())
        assert acceptor.accept_many() == []
        tell(lines=lines, failures=failures, failed=acceptor.stats().failed)
        del sys.meta_path[0]
        next(acceptor).close()
    """
    )
    assert len(report.said["lines"]) == 1
    assert "Too many open files; 0 connections are open, clients wait" in report.said["lines"][0]
    assert report.said["failures"] == []
    assert report.said["failed"] == {str(errno.EMFILE): 1}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("None", (1, 0, "[]")),
        ("'pause'", (1, 0, "[]")),
        ("0", (1, 0, "[]")),
        ("0.01", (1, 0, "[]")),
        ("'shed'", (0, 1, "[]")),
        ("1/0", (1, 0, "['ZeroDivisionError")),
        ("'run'", (1, 0, """["TypeError""")),
        ("True", (1, 0, """['TypeError""")),
        ("-1", (1, 0, """['ValueError""")),
        ("float('nan')", (1, 0, """['ValueError""")),
        ("acceptor.accept_many()[:0] and 0 or None", (1, 0, "[]")),
    ],
)
def test_a_function_decides(poison: Any, engine: str, answer: str, expected: tuple[int, int, str]) -> None:
    report = poison.run(
        ONE_FAILURE
        + f"""
    errors = []
    def decide(acceptor, error):
        errors.append(error)
        return {answer}
    with listeners.acceptor(engine={engine!r}, on_overload=decide) as acceptor:
        connect(1)
        fail((1, "", errno.EMFILE))
        assert acceptor.wait(10)
        first = acceptor.accept_many()
        assert first == [], first
        taken = []
        while not taken and acceptor.wait(5 if acceptor.stats().shed == 0 else 0.1):
            taken = acceptor.accept_many()
        tell(taken=len(taken), shed=acceptor.stats().shed, failures=str(failures), failed=acceptor.stats().failed)
        tell(errors=[type(error).__name__ + str(error.errno) for error in errors])
        for one in taken:
            one.close()
    """
    )
    taken, shed, failures = expected
    assert (report.said["taken"], report.said["shed"]) == (taken, shed)
    assert report.said["failures"].replace('"', "'").startswith(failures.replace('"', "'"))
    assert report.said["failed"] == {str(errno.EMFILE): 1}
    assert report.said["errors"] == [f"OSError{errno.EMFILE}"]


def test_a_function_may_close_the_acceptor(poison: Any, engine: str) -> None:
    report = poison.run(
        ONE_FAILURE
        + f"""
    with listeners.acceptor(engine={engine!r}, on_overload=lambda acceptor, error: acceptor.close()) as acceptor:
        connect(1)
        fail((1, "+", errno.ENFILE))
        tell(taken=list(acceptor), closed=acceptor.closed)
    """
    )
    assert report.said == {"taken": [], "closed": True}


def test_an_interrupt_in_a_function_loses_no_connection(poison: Any, engine: str) -> None:
    report = poison.run(
        ONE_FAILURE
        + f"""
    def decide(acceptor, error):
        raise KeyboardInterrupt
    with listeners.acceptor(engine={engine!r}, batch=300, on_overload=decide) as acceptor:
        connect(130)
        fail((129, "", errno.EMFILE))
        try:
            acceptor.accept_many()
        except KeyboardInterrupt:
            tell(interrupted=True)
        taken = acceptor.accept_many()
        while len(taken) < 130 and acceptor.wait(10):
            taken += acceptor.accept_many()
        tell(taken=len(taken), failed=acceptor.stats().failed)
        for one in taken:
            one.close()
    """
    )
    assert report.said == {"interrupted": True, "taken": 130, "failed": {str(errno.EMFILE): 1}}


def test_a_pause_is_over_as_soon_as_a_connection_is_closed(poison: Any, engine: str) -> None:
    report = poison.run(
        ONE_FAILURE
        + f"""
    import time
    with listeners.acceptor(engine={engine!r}, on_overload=lambda acceptor, error: 1000) as acceptor:
        connect(3)
        first, second = acceptor.accept_many(1) + acceptor.accept_many(1)
        fail((1, "", errno.EMFILE))
        assert acceptor.accept_many() == []
        assert not acceptor.wait(0.05)
        threading.Thread(target=first.close).start()
        third = next(acceptor)
        second.close(), third.close()
        tell(accepted=acceptor.stats().accepted)
    """
    )
    assert report.said == {"accepted": 3}


@pytest.mark.parametrize("number", ["ECONNABORTED", "EPROTO", "EPERM", "ENETDOWN", "EHOSTUNREACH"])
def test_errors_of_one_connection_are_counted_and_passed_over(poison: Any, engine: str, number: str) -> None:
    report = poison.run(
        ONE_FAILURE
        + f"""
    with listeners.acceptor(engine={engine!r}) as acceptor:
        connect(5)
        fail((1, "", errno.{number}), (3, "", errno.{number}), (4, "", errno.{number}))
        taken = acceptor.accept_many()
        stats = acceptor.stats()
        tell(taken=len(taken), failed=stats.failed, pauses=stats.pauses)
        for one in taken:
            one.close()
    """
    )
    assert report.said == {"taken": 5, "failed": {str(getattr(errno, number)): 3}, "pauses": 0}


@pytest.mark.parametrize("number", ["EPERM", "ENOBUFS", "EIO"])
def test_an_error_that_stays_does_not_make_it_spin(poison: Any, engine: str, number: str) -> None:
    report = poison.run(
        ONE_FAILURE
        + f"""
    import time
    with listeners.acceptor(engine={engine!r}, on_overload=lambda *_: None) as acceptor:
        connect(1)
        fail((1, "+", errno.{number}))
        before = count("accept4")
        deadline = time.monotonic() + 0.5
        while (left := deadline - time.monotonic()) > 0:
            if acceptor.wait(left):
                assert acceptor.accept_many() == []
        tell(calls=count("accept4") - before)
        os.environ["POISON"] = ""
        next(acceptor).close()
        tell(pauses=acceptor.stats().pauses > 1)
    """
    )
    assert report.said["pauses"]
    assert report.said["calls"] < 10 * (65 if number == "EPERM" else 1)


def test_clients_that_reset_while_the_server_is_busy(engine: str) -> None:
    with harken.listen("127.0.0.1:0", backlog=1200) as listeners:
        if (listeners[0].backlog or 1200) < 1100:
            pytest.skip("queues are too short on this machine")
        count, busy = (100 if WINDOWS else 1000), threading.Event()
        survived: list[bytes] = []

        def serve() -> None:
            busy.wait(30)
            for conn in acceptor:
                with conn, contextlib.suppress(OSError):
                    survived.append(receive(conn, 5))

        with listeners.acceptor(engine=engine) as acceptor:
            server = Call(serve)
            for _ in range(1000 // count):
                with contextlib.ExitStack() as stack:
                    for _ in range(count):
                        reset(stack.enter_context(socket.create_connection(listeners[0].address)))
                if WINDOWS:
                    busy.set()
            busy.set()
            for _ in range(3):
                with socket.create_connection(listeners[0].address) as client:
                    client.sendall(b"alive")
                    assert client.recv(1) == b""
            acceptor.close()
            server.outcome()
        assert survived.count(b"alive") == 3


# ---------------------------------------------------------------------- listeners that go


@pytest.mark.parametrize("way", ["close", "detach", "to_socket"])
def test_the_last_listener_ends_it(engine: str, way: str) -> None:
    with listening() as listener, harken.Acceptor(listener, engine=engine) as acceptor:
        address = listener.getsockname()
        waiting = [Call(list, acceptor).blocked() for _ in range(3)]
        given = getattr(listener, way)()
        for call in waiting:
            assert call.outcome() == []
        with fails(EBADF):
            acceptor.accept_many()
        assert acceptor.closed
        assert acceptor.wait() is False
        assert repr(acceptor) == f"<harken.Acceptor {engine}, 0 listeners, 0 open>"
        if way == "close":
            with harken.Socket() as again:  # nobody has the port any more
                again.setsockopt(harken.SOL_SOCKET, harken.SO_REUSEADDR, 1)
                again.bind(address)
                again.listen()
        else:
            with given if way == "to_socket" else socket.socket(fileno=given) as theirs, clients(address, 1):
                theirs.setblocking(True)
                theirs.accept()[0].close()  # it is theirs alone


def test_the_other_listeners_go_on(engine: str) -> None:
    with harken.listen(*["127.0.0.1:0"] * 3) as listeners, listeners.acceptor(engine=engine) as acceptor:
        waiting = Call(next, acceptor).blocked()
        listeners[1].close()
        assert repr(acceptor) == f"<harken.Acceptor {engine}, 2 listeners, 0 open>"
        with clients(listeners[2].address, 1), waiting.outcome() as conn:
            assert conn.getsockname() == listeners[2].address
        # A stranger who gets the number of the closed one loses nothing to the engine.
        with harken.listen(*["127.0.0.1:0"] * 4) as strangers, contextlib.ExitStack() as stack:
            for stranger in strangers:
                stack.enter_context(clients(stranger.address, 1))
                wait_for_queue(stranger, 1)
            assert not acceptor.wait(0.01)
            assert acceptor.accept_many() == []
        with clients(listeners[0].address, 1):
            close_all(taken_in_time(acceptor, 1))


def test_sockets_for_other_servers_are_not_accepted_on(engine: str) -> None:
    with harken.listen("127.0.0.1:0") as listeners, listeners.acceptor(engine=engine) as acceptor:
        address = listeners[0].address
        with listeners.sockets()[0] as theirs, clients(address, 1):
            assert acceptor.closed
            theirs.accept()[0].close()


@posix_only
@pytest.mark.parametrize("how", ["os.close(fd)", "os.dup2(0, fd)", "socket.socket(fileno=os.dup(fd)).shutdown(2)"])
def test_a_listener_that_is_broken_behind_its_back(engine: str, how: str) -> None:
    if how.startswith("socket") and not LINUX:
        pytest.skip("only Linux ends listening by shutdown()")
    code = f"""
import os, socket, harken, warnings
warnings.simplefilter("ignore")
listeners = harken.listen("127.0.0.1:0", "127.0.0.1:0")
with listeners.acceptor(engine={engine!r}) as acceptor:
    broken, well = listeners
    address = well.address
    fd = broken.fileno()
    {how}
    try:
        while True:
            assert acceptor.accept_many() == []
            assert acceptor.wait(0.2)
    except OSError as error:
        print(type(error).__name__, error.__notes__)
    except AssertionError:
        print("not noticed")  # epoll forgets what is closed
    client = socket.create_connection(address)
    for connection in acceptor:
        print(connection.getsockname() == address)
        connection.close()
        break
os._exit(0)
"""
    said = python("import sys\n" + code.replace("os._exit(0)", "sys.stdout.flush(); os._exit(0)")).stdout.splitlines()
    assert said[0].startswith("OSError ['one listener") or said[0] == "not noticed"
    assert said[1:] == ["True"]


def test_whoever_shares_a_listener_may_make_it_block(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine) as acceptor, listeners[0].dup().to_socket() as theirs:
        for _ in range(3):
            theirs.setblocking(True)
            listeners[0].setblocking(True)
            with clients(listeners[0].address, 1):
                close_all(taken_in_time(acceptor, 1))
            assert Call(acceptor.accept_many).outcome() == []


def test_a_listener_may_have_several_acceptors(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine) as one, listeners.acceptor(engine=engine) as other:
        waiting = [Call(list, one).blocked(), Call(list, other).blocked()]
        with clients(listeners[0].address, 20) as connected:
            wait_until(lambda: one.stats().accepted + other.stats().accepted == 20)
            assert len({client.getsockname() for client in connected}) == 20
            one.close()
            listeners.close()
            close_all(waiting[0].outcome() + waiting[1].outcome())


def test_the_listener_accepts_by_itself_afterwards(listeners: harken.Listeners, engine: str) -> None:
    listeners.acceptor(engine=engine).close()
    waiting = Call(listeners[0].accept).blocked()
    with clients(listeners[0].address, 1):
        waiting.outcome()[0].close()


# ---------------------------------------------------------------------- processes and threads


FORK = """
import os, select, signal, socket, sys, threading, harken
from wire import Call, wait_until
def in_a_child(function):
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(20)
            function()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
"""


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

        calls = [Call(serve) for _ in range(4)] + [Call(disturb) for _ in range(3)]
        for _ in range(3):
            with clients(listeners[0].address, 50) as connected:
                for client in connected:
                    assert client.recv(1) == b""
        closing = [Call(acceptor.close) for _ in range(3)]
        for call in closing + calls:
            call.outcome()


# ---------------------------------------------------------------------- what it costs, what it tells


@needs_strace
@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        # 10 connections and the end of the queue; the mode of the listener once a batch; then the turn goes to others.
        ("accept4", {"accept4": 11, "ioctl": 3, "epoll_ctl": 2}),
        # A call a batch, and one for the last connection of a full one; the third is not full.
        ("io_uring", {"io_uring_enter": 5, "epoll_ctl": 2}),
    ],
)
def test_how_many_system_calls_a_batch_costs(tmp_path: Path, engine: str, expected: dict[str, int]) -> None:
    assert system_calls(tmp_path, engine, 4, "127.0.0.1:0", 11, ["accept_many(1)"], ["accept_many()"] * 3) == expected


@needs_strace
@pytest.mark.parametrize("engine", ["accept4", "io_uring", "accept"])
@pytest.mark.parametrize(
    ("family", "look"),
    [("tcp", {"getsockopt": 1}), ("unix", {"getsockopt": 1, "poll": 1})],  # unix sockets do not tell how many wait
)
def test_one_that_waits_is_taken_without_an_attempt_in_vain(
    tmp_path: Path, engine: str, family: str, look: dict[str, int]
) -> None:
    bind = "127.0.0.1:0" if family == "tcp" else f"unix:{tmp_path}/socket"
    calls = system_calls(tmp_path, engine, 64, bind, 1, [], ["accept_many()"])
    if engine == "io_uring" and family == "tcp":
        assert calls == {"io_uring_enter": 1}  # the kernel sees the end
    else:
        assert calls == {"accept4": 1, "ioctl": 1} | look


@needs_strace
def test_a_full_batch_lets_other_processes_in_between(tmp_path: Path) -> None:
    adopted = "harken.adopt(os.dup(listeners[0].fileno()))"
    for of, yields in (("listeners", 0), (adopted, 3)):  # each of the three comes after a full one
        calls = system_calls(tmp_path, "accept4", 4, "127.0.0.1:0", 11, ["accept_many(3)"], ["accept_many()"] * 3, of)
        assert calls["sched_yield"] == yields


def system_calls(
    tmp_path: Path,
    engine: str,
    batch: int,
    bind: str,
    clients: int,
    before: list[str],
    counted: list[str],
    of: str = "listeners",
) -> Counter[str]:
    """How often what is called by so many calls of an acceptor, which take all but those taken before."""
    if engine not in NAMES or forbidden(engine):
        pytest.skip(f"no {engine} here")
    code = f"""
import os, socket, harken
listeners = harken.listen({bind!r})
acceptor = harken.Acceptor({of}, batch={batch}, engine={engine!r})
address = listeners[0].address
kept = []
for _ in range({clients}):
    kept.append(socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET))
    kept[-1].connect(address)
for call in {before}:
    eval("kept.extend(acceptor." + call + ")")
os.write(2, b"begin")
taken = [{", ".join("*acceptor." + call for call in counted)}]
os.write(2, b"end")
assert len(kept + taken) == 2 * {clients}, (kept, taken)
os._exit(0)
"""
    return Counter(line.partition("(")[0] for line in traced(code, tmp_path / "calls"))


def test_stats_are_a_value(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine) as acceptor, clients(listeners[0].address, 1), next(acceptor):
        stats = acceptor.stats()
        assert stats == harken.AcceptorStats(1, 1, 1, 0, {}, 0, 0.0, engine)
        with pytest.raises(AttributeError):
            stats.open = 3  # type: ignore[misc]
        assert repr(acceptor) == f"<harken.Acceptor {engine}, 1 listener, 1 open>"
        assert (acceptor.batch, acceptor.limit) == (64, None)
        assert not acceptor.closed
        acceptor.close()
        assert acceptor.stats() == stats


def test_the_best_engine_is_chosen(listeners: harken.Listeners) -> None:
    with listeners.acceptor() as acceptor:
        best = acceptor.stats().engine
        assert best in engines()
    assert acceptor.stats().engine == best


def test_other_systems_have_kqueue(listeners: harken.Listeners) -> None:
    if (LINUX or WINDOWS) and "kqueue" not in engines():
        pytest.skip("macOS and the BSDs only")
    assert engines() == ("kqueue", "accept")
    with listeners.acceptor() as acceptor:
        assert repr(acceptor) == "<harken.Acceptor kqueue, 1 listener, 0 open>"
        assert acceptor.stats().engine == "kqueue"


FORBID = f"""{SECCOMP}
import errno
def forbid(number, error):
    seccomp((0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | error), (0x06, 0, 0, 0x7FFF0000))
SETUP, ENTER = 425, 426  # io_uring_setup(2), io_uring_enter(2), on nearly all processors
"""


@pytest.fixture
def io_uring() -> None:
    if "io_uring" not in NAMES or forbidden("io_uring"):
        pytest.skip("there is no io_uring that could be forbidden")
    if EMULATOR:
        pytest.skip(f"{EMULATOR} has no seccomp")


@pytest.mark.usefixtures("io_uring")
@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
def test_the_next_engine_is_taken_where_io_uring_is_forbidden(error: str) -> None:
    code = f"""{FORBID}
import socket, harken
forbid(SETUP, errno.{error})
with harken.listen("127.0.0.1:0") as listeners, listeners.acceptor() as acceptor:
    print(acceptor, acceptor.stats().engine)
    with socket.create_connection(listeners[0].address), next(acceptor):
        print(acceptor)
    acceptor.close()
    print(acceptor.stats().engine)
    try:
        listeners.acceptor(engine="io_uring")
    except OSError as error:
        print(errno.errorcode[error.errno], *error.__notes__)
"""
    assert python(code).stdout.splitlines() == [
        "<harken.Acceptor accept4, 1 listener, 0 open> accept4",
        "<harken.Acceptor accept4, 1 listener, 1 open>",
        "accept4",
        f"{error} the engine 'io_uring' cannot be had here",
    ]


@pytest.mark.usefixtures("io_uring")
def test_a_fork_tells_the_engine_that_it_has() -> None:
    code = f"""{FORK}{FORBID}
listeners = harken.listen("127.0.0.1:0")
any_engine, io_uring = listeners.acceptor(), listeners.acceptor(engine="io_uring")
def child():
    forbid(SETUP, errno.EPERM)
    print(any_engine)
    print(any_engine.stats().engine)
    print(any_engine)
    for use in (io_uring.stats, io_uring.accept_many, io_uring.fileno):
        try:
            print(use())
        except PermissionError as error:
            print(error.strerror)
    print(io_uring, flush=True)
in_a_child(child)
print(any_engine, any_engine.stats().engine)
"""
    assert python(code).stdout.splitlines() == [
        "<harken.Acceptor forked, 1 listener, 0 open>",
        "accept4",
        "<harken.Acceptor accept4, 1 listener, 0 open>",
        *["Operation not permitted"] * 3,
        "<harken.Acceptor forked, 1 listener, 0 open>",
        "<harken.Acceptor io_uring, 1 listener, 0 open> io_uring",
    ]


@pytest.mark.usefixtures("io_uring")
def test_io_uring_may_be_forbidden_at_any_time() -> None:
    code = f"""{FORBID}
import socket, harken
with harken.listen("127.0.0.1:0") as listeners, listeners.acceptor() as acceptor:
    print(acceptor.stats().engine)
    forbid(ENTER, errno.EPERM)
    with socket.create_connection(listeners[0].address), next(acceptor):
        print(acceptor, acceptor.stats().engine, acceptor.stats().failed)
"""
    assert python(code).stdout.splitlines() == [
        "io_uring",
        "<harken.Acceptor accept4, 1 listener, 1 open> accept4 {}",
    ]


@windows_only
def test_windows_has_acceptex(listeners: harken.Listeners) -> None:
    with listeners.acceptor() as acceptor:
        assert repr(acceptor) == "<harken.Acceptor acceptex, 1 listener, 0 open>"


@windows_only
def test_a_listener_serves_a_proactor_loop_before_and_after(engine: str) -> None:
    """A completion port has a listener for life; this engine must neither need one nor leave one behind."""
    asyncio = pytest.importorskip("asyncio")

    async def serve_one() -> None:
        with listeners[0].dup().to_socket() as theirs:
            theirs.setblocking(False)
            with clients(listeners[0].address, 1) as (client,):
                conn, name = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(theirs), 10)
                conn.close()
                assert name == client.getsockname()

    for order in ("after", "before"):
        with harken.listen("127.0.0.1:0") as listeners:
            if order == "before":
                asyncio.run(serve_one())
            with listeners.acceptor(engine=engine) as acceptor, clients(listeners[0].address, 1):
                close_all(taken_in_time(acceptor, 1))
            if order == "after":
                asyncio.run(serve_one())


@windows_only
def test_a_selector_loop_serves_by_acceptex(listeners: harken.Listeners) -> None:
    asyncio = pytest.importorskip("asyncio")
    served: list[Any] = []

    async def serve() -> None:
        def take() -> None:
            for conn in acceptor.accept_many():
                served.append(conn.getpeername())
                conn.close()
            if len(served) == 50:
                done.set_result(None)

        loop = asyncio.get_running_loop()
        done = loop.create_future()
        with listeners.acceptor(engine="acceptex") as acceptor:
            loop.add_reader(acceptor.fileno(), take)
            connecting = asyncio.to_thread(lambda: stack.enter_context(clients(listeners[0].address, 50)))
            await asyncio.wait_for(asyncio.gather(connecting, done), 20)
            loop.remove_reader(acceptor.fileno())

    with contextlib.ExitStack() as stack:
        loop = asyncio.SelectorEventLoop()
        loop.run_until_complete(serve())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    assert len(set(served)) == 50


# ---------------------------------------------------------------------- bad input


def closed() -> harken.Socket:
    sock = harken.Socket()
    sock.close()
    return sock


@pytest.mark.parametrize(
    ("options", "expected", "about"),
    [
        ({"batch": 0}, ValueError, "batch"),
        ({"batch": -1}, ValueError, "batch"),
        ({"batch": 2.5}, TypeError, "batch"),
        ({"limit": 0}, ValueError, "limit"),
        ({"limit": -3}, ValueError, "limit"),
        ({"limit": "3"}, TypeError, "limit"),
        ({"on_overload": "panic"}, ValueError, "'pause', 'shed' or a function"),
        ({"on_overload": None}, TypeError, "'pause', 'shed' or a function"),
        ({"engine": "steam"}, ValueError, "no engine 'steam'"),
        ({"engine": 3}, TypeError, "engine"),
        ({"engine": "accept4" if WINDOWS else "acceptex"}, ValueError, "Windows" if WINDOWS else "no engine"),
        ({"speed": 3}, TypeError, "speed"),
    ],
)
def test_wrong_options_make_no_acceptor(
    listeners: harken.Listeners, options: dict[str, Any], expected: type[Exception], about: str
) -> None:
    with pytest.raises(expected, match=about):
        listeners.acceptor(**options)
    with listeners.acceptor() as acceptor, clients(listeners[0].address, 1):
        close_all(taken_in_time(acceptor, 1))


def test_what_is_no_listener_is_refused(listeners: harken.Listeners, engine: str) -> None:
    def refused(given: Any, expected: type[Exception], about: str) -> None:
        with pytest.raises(expected, match=about):
            harken.Acceptor(given, engine=engine)

    refused([], ValueError, "at least one")
    refused(closed(), ValueError, "listener 0 is closed, or was given away")
    refused([listeners[0], closed()], ValueError, "listener 1 is closed")
    refused([listeners[0], listeners[0]], ValueError, "listener 1 is there twice")
    refused(None, TypeError, "NoneType")
    refused(7, TypeError, "Sockets, not int; harken.adopt")
    refused("127.0.0.1:80", TypeError, "Sockets, not str")
    with socket.socket() as other:
        refused([other], TypeError, "Sockets, not socket; harken.adopt")
        refused(other, TypeError, "Sockets, not socket; harken.adopt")
    with harken.Socket() as bound, harken.Socket(type=harken.SOCK_DGRAM) as datagram:
        bound.bind(("127.0.0.1", 0))
        refused(bound, ValueError, "does not listen")
        refused(datagram, ValueError, "no stream socket")
    with harken.Acceptor(listeners[0], engine=engine) as acceptor:
        with pytest.raises(RuntimeError):
            acceptor.__init__(listeners)  # type: ignore[misc]
        assert not acceptor.wait(0)
    with pytest.raises(RuntimeError, match="make another one"):
        acceptor.__init__(listeners)  # type: ignore[misc]
    assert acceptor.closed


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda acceptor: acceptor.accept_many(0), ValueError),
        (lambda acceptor: acceptor.accept_many(-1), ValueError),
        (lambda acceptor: acceptor.accept_many("3"), TypeError),
        (lambda acceptor: acceptor.wait(-1), ValueError),
        (lambda acceptor: acceptor.wait(math.nan), ValueError),
        (lambda acceptor: acceptor.wait("3"), TypeError),
        (lambda acceptor: acceptor.release(0), ValueError),
        (lambda acceptor: acceptor.release(-1), ValueError),
        (lambda acceptor: acceptor.release(1), ValueError),
        (lambda acceptor: acceptor.release("1"), TypeError),
    ],
)
def test_wrong_arguments_change_nothing(
    listeners: harken.Listeners, engine: str, call: Callable[[harken.Acceptor], object], expected: type[Exception]
) -> None:
    with listeners.acceptor(engine=engine) as acceptor:
        with pytest.raises(expected):
            call(acceptor)
        with clients(listeners[0].address, 1):
            close_all(taken_in_time(acceptor, 1))


@pytest.mark.parametrize("method", ["accept_many", "pause", "resume"])
def test_a_closed_acceptor_refuses(listeners: harken.Listeners, engine: str, method: str) -> None:
    acceptor = listeners.acceptor(engine=engine)
    acceptor.close()
    with fails(EBADF):
        getattr(acceptor, method)()
    acceptor.close()
    assert acceptor.fileno() == -1


def test_an_acceptor_that_was_never_made(engine: str) -> None:
    empty = harken.Acceptor.__new__(harken.Acceptor)
    assert repr(empty) == "<harken.Acceptor closed, 0 open>"
    assert list(empty) == []
    empty.close()
    with fails(EBADF):
        empty.accept_many()
    assert empty.stats().accepted == 0
    assert engine


@posix_only
def test_no_descriptors_for_an_engine_is_an_error_that_leaks_nothing(engine: str) -> None:
    code = f"""
import errno, os, resource, harken
from harken import Acceptor
listeners = harken.listen("127.0.0.1:0")
for room in range(16):
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    fillers = []
    try:
        while True:
            fillers.append(os.dup(0))
    except OSError:
        pass
    for _ in range(room):
        os.close(fillers.pop())
    try:
        listeners.acceptor(engine={engine!r}).close()
        print("made", end=" ")
    except OSError as error:
        print(errno.errorcode[error.errno], end=" ")
    for filler in fillers:
        os.close(filler)
    assert len(os.listdir("/dev/fd")) < 10
"""
    said = python(code).stdout.split()
    assert said[0] == "EMFILE"
    assert said[-1] == "made"
    assert set(said) == {"EMFILE", "made"}
