"""The accept engine: what it takes, how it waits, and how it ends. Every test runs on every engine."""

from __future__ import annotations

import contextlib
import copy
import errno
import gc
import math
import pickle
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from wire import Call, clients, close_all, fails, listening, python, receive, wait_for_queue, wait_until

import harken
from engines import POLLABLE, one_listener, readable, taken_in_time
from machine import HAS_IPV6, LINUX, WINDOWS, linux_only, posix_only, windows_only

EBADF = 10038 if WINDOWS else errno.EBADF
EACH_THREAD = {"listeners": one_listener}  # see conftest.py


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
        print("noticed")  # epoll forgets what is closed
    client = socket.create_connection(address)
    for connection in acceptor:
        print(connection.getsockname() == address)
        connection.close()
        break
os._exit(0)
"""
    said = python("import sys\n" + code.replace("os._exit(0)", "sys.stdout.flush(); os._exit(0)")).stdout.splitlines()
    assert said[0].startswith("OSError ['one listener") or said[0] == "noticed"
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


# ---------------------------------------------------------------------- what it tells


def test_stats_are_a_value(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine) as acceptor, clients(listeners[0].address, 1), next(acceptor):
        stats = acceptor.stats()
        assert stats == harken.AcceptorStats(1, 1, 1, 0, {}, 0, 0.0, engine)
        with pytest.raises(AttributeError):
            stats.open = 3  # type: ignore[misc]
        assert repr(acceptor) == f"<harken.Acceptor {engine}, 1 listener, 1 open>"
        assert (acceptor.batch, acceptor.limit) == (64, None)
        assert not acceptor.closed
        for copied in (copy.copy(stats), copy.deepcopy(stats), pickle.loads(pickle.dumps(stats))):
            assert copied == stats
            assert copied.failed == {}
        acceptor.close()
        assert acceptor.stats() == stats


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
    refused([listeners[0], listeners[0]], ValueError, "listener 1 is given twice")
    refused(None, TypeError, "NoneType")
    refused(7, TypeError, "Sockets, not int; harken.adopt")
    refused("127.0.0.1:80", TypeError, "Sockets, not str")
    with socket.socket() as other:
        refused([other], TypeError, "Sockets, not socket; harken.adopt")
        refused(other, TypeError, "Sockets, not socket; harken.adopt")
    with harken.Socket() as bound, harken.Socket(type=harken.SOCK_DGRAM) as datagram:
        bound.bind(("127.0.0.1", 0))
        refused(bound, ValueError, "does not listen")
        refused(datagram, ValueError, "not a stream socket")
    with harken.Acceptor(listeners[0], engine=engine) as acceptor:
        with pytest.raises(RuntimeError):
            acceptor.__init__(listeners)  # type: ignore[misc]
        assert not acceptor.wait(0)
    with pytest.raises(RuntimeError, match="make another one"):
        acceptor.__init__(listeners)  # type: ignore[misc]
    assert acceptor.closed


class Odd(int):
    """A number that compares as nobody expects."""

    def __lt__(self, other: object) -> bool:
        return False

    __le__ = __gt__ = __ge__ = __lt__


@pytest.mark.parametrize("where", ["iter", "next", "of another", "hash and eq"])
def test_listeners_that_make_the_acceptor_while_it_is_made(
    listeners: harken.Listeners, engine: str, where: str
) -> None:
    """Python code of the caller runs before the first field is written: whoever comes first has the acceptor."""
    made = harken.Acceptor.__new__(harken.Acceptor)
    made_within: list[int] = []

    def make(count: int) -> None:
        with harken.listen(*["127.0.0.1:0"] * count) as others:
            made.__init__(others, engine=engine)  # type: ignore[misc]
            made_within.append(count)
            assert f"{count} listener" in repr(made)
            assert made.stats().engine == engine  # while its listeners are open

    class Making:
        def __iter__(self) -> Iterator[harken.Socket]:
            if where == "iter":
                make(40)
            return self.each()

        def each(self) -> Iterator[harken.Socket]:
            for listener in listeners:
                if where == "next":
                    make(40)
                yield listener
            if where == "of another":
                make(1)

    class Name(str):
        def __eq__(self, other: object) -> bool:
            if where == "hash and eq" and not made_within:
                make(3)
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    with pytest.raises(RuntimeError, match="make another one"):
        made.__init__(Making(), engine=Name(engine), on_overload=Name("shed"), batch=7)  # type: ignore[misc]
    assert len(made_within) == 1
    assert made.batch == 64  # of the one that was made
    assert made.closed  # with its last listener
    with listeners.acceptor(engine=engine) as other, clients(listeners[0].address, 1):
        close_all(taken_in_time(other, 1))


def test_only_one_of_many_threads_makes_an_acceptor(listeners: harken.Listeners, engine: str) -> None:
    for _ in range(20):
        acceptor = harken.Acceptor.__new__(harken.Acceptor)

        def make(acceptor: harken.Acceptor = acceptor) -> int:
            try:
                acceptor.__init__(listeners, engine=engine)  # type: ignore[misc]
            except RuntimeError:
                return 0
            return 1

        assert sum(call.outcome() for call in [Call(make) for _ in range(4)]) == 1
        acceptor.close()


def test_numbers_are_read_as_c_reads_them(listeners: harken.Listeners, engine: str) -> None:
    for wrong in (Odd(-3), Odd(0), Odd(-(10**30))):
        with pytest.raises(ValueError, match="at least 1"):
            listeners.acceptor(engine=engine, batch=wrong)
        with listeners.acceptor(engine=engine) as acceptor, pytest.raises(ValueError, match="at least 1"):
            acceptor.accept_many(wrong)
    with listeners.acceptor(engine=engine, limit=Odd(10**30)) as acceptor, clients(listeners[0].address, 3):
        wait_for_queue(listeners[0], 3)
        assert acceptor.limit == 0x7FFFFFFF
        close_all(acceptor.accept_many(Odd(10**30)))


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
