"""accept() and accept_many(): what they take, how they wait, and how a wait ends."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
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
    connection,
    fails,
    full_queue,
    listening,
    python,
    receive,
    wait_for_queue,
    wait_until_blocked,
)

import harken
from children import FORK, needs_strace, traced
from machine import LINUX, WINDOWS, linux_only, posix_only, windows_only, wine_lacks

MEGABYTE = 1 << 20
EBADF = 10038 if WINDOWS else errno.EBADF


@pytest.fixture
def listener() -> Iterator[harken.Socket]:
    with listening(backlog=1024) as sock:
        yield sock


EACH_THREAD = {"listener": functools.partial(listening, backlog=1024)}  # see conftest.py


# ---------------------------------------------------------------------- what is taken


def test_a_batch_is_all_that_waits_in_its_order(listener: harken.Socket) -> None:
    with clients(listener.getsockname(), 5) as connected:
        wait_for_queue(listener, 5)
        batch = listener.accept_many()
        assert [conn.getpeername() for conn in batch] == [client.getsockname() for client in connected]
        for conn, client in zip(batch, connected, strict=True):
            client.sendall(b"to the right one")
            conn.setblocking(True)
            assert receive(conn, 16) == b"to the right one"
        close_all(batch)


@pytest.mark.parametrize(
    ("queued", "limit", "sizes"),
    [
        (5, 3, [3, 2, 0]),
        (5, 5, [5, 0]),
        (3, 1, [1, 1, 1, 0]),
        (70, None, [64, 6, 0]),
        (64, 64, [64, 0]),
        (130, 65, [65, 65, 0]),
        (150, 100, [100, 50, 0]),
        (150, 10**6, [150, 0]),
        (128, 128, [128, 0]),
    ],
)
def test_the_limit_is_kept_and_nothing_is_left_behind(
    listener: harken.Socket, queued: int, limit: int | None, sizes: list[int]
) -> None:
    listener.setblocking(False)
    with clients(listener.getsockname(), queued):
        wait_for_queue(listener, queued)
        for size in sizes:
            batch = listener.accept_many() if limit is None else listener.accept_many(limit)
            assert len(batch) == size
            close_all(batch)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(0, ValueError), (-1, ValueError), ("1", TypeError), (None, TypeError), (2.5, TypeError), (2**80, OverflowError)],
)
def test_a_wrong_limit_is_refused_and_takes_nothing(
    listener: harken.Socket, limit: Any, expected: type[Exception]
) -> None:
    with clients(listener.getsockname(), 1):
        with pytest.raises(expected):
            listener.accept_many(limit)
        close_all(listener.accept_many(limit=1))


def test_a_batch_does_not_block_and_is_not_inherited(listener: harken.Socket) -> None:
    with clients(listener.getsockname(), 2):
        wait_for_queue(listener, 2)
        for conn in listener.accept_many():
            with conn:
                assert type(conn) is harken.Socket
                assert (conn.family, conn.type, conn.proto) == (listener.family, listener.type, listener.proto)
                assert (conn.gettimeout(), conn.getblocking(), conn.get_inheritable()) == (0, False, False)
                assert WINDOWS or os.get_blocking(conn.fileno()) is False
                with pytest.raises(BlockingIOError):
                    conn.recv(1)


def test_an_accepted_socket_blocks_and_is_not_inherited(listener: harken.Socket) -> None:
    with clients(listener.getsockname(), 1) as (client,):
        conn, address = listener.accept()
        with conn:
            assert type(conn) is harken.Socket
            assert address == client.getsockname()
            assert (conn.gettimeout(), conn.getblocking(), conn.get_inheritable()) == (None, True, False)
            assert WINDOWS or os.get_blocking(conn.fileno()) is True


def test_a_listener_hands_out_plain_sockets() -> None:
    with harken.listen("127.0.0.1:0") as (listener,), clients(listener.address, 2):
        wait_for_queue(listener, 2)
        with listener.accept()[0] as one, listener.accept_many()[0] as other:
            assert type(one) is type(other) is harken.Socket


@posix_only
def test_unix_connections_are_taken_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with harken.Socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind("s")
        listener.listen()
        client.bind("c")
        client.connect("s")
        with listener.accept_many()[0] as conn:
            assert conn.getpeername() == "c"
            assert (conn.family, conn.proto) == (socket.AF_UNIX, 0)


@needs_strace
@pytest.mark.parametrize(
    ("call", "calls"),
    [
        # Is it still non-blocking, how many wait; and no attempt in vain.
        ("listener.accept_many()", ["ioctl", "getsockopt", *["accept4"] * 5]),
        ("[listener.accept() for _ in range(5)]", ["accept4"] * 5),
    ],
)
def test_a_connection_costs_one_system_call(call: str, calls: list[str], tmp_path: Path) -> None:
    code = f"""
import os, socket, harken
listener = harken.Socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
listener.setblocking(False)
clients = [socket.create_connection(listener.getsockname()) for _ in range(6)]
listener.accept_many(1)
os.write(2, b"begin")
taken = {call}
os.write(2, b"end")
assert len(taken) == 5
os._exit(0)
"""
    lines = traced(code, tmp_path / "calls")
    assert [line.partition("(")[0] for line in lines] == calls
    assert not [line for line in lines if "EAGAIN" in line]


# ---------------------------------------------------------------------- how it waits


@pytest.mark.parametrize("method", ["accept", "accept_many"])
def test_what_waits_is_taken_however_short_the_timeout(method: str) -> None:
    with listening() as listener, clients(listener.getsockname(), 1):
        listener.settimeout(1e-9)
        getattr(listener, method)()[0].close()


def test_a_batch_waits_for_the_first_connection_only(listener: harken.Socket) -> None:
    call = Call(listener.accept_many).blocked()
    with clients(listener.getsockname(), 1) as (client,):
        (conn,) = call.outcome()
        with conn:
            assert conn.getpeername() == client.getsockname()


def test_accept_waits_for_a_connection(listener: harken.Socket) -> None:
    call = Call(listener.accept).blocked()
    with clients(listener.getsockname(), 1) as (client,):
        conn, address = call.outcome()
        with conn:
            assert address == client.getsockname()


def test_a_non_blocking_batch_may_be_empty(listener: harken.Socket) -> None:
    listener.setblocking(False)
    assert listener.accept_many() == []
    with pytest.raises(BlockingIOError) as caught:
        listener.accept()
    assert caught.value.errno == errno.EWOULDBLOCK


@pytest.mark.parametrize("method", ["accept", "accept_many"])
def test_a_timeout_ends_the_wait(listener: harken.Socket, method: str) -> None:
    listener.settimeout(0.1)
    for _ in range(2):
        start = time.monotonic()
        with pytest.raises(TimeoutError, match="^timed out$"):
            getattr(listener, method)()
        assert 0.09 < time.monotonic() - start < 5
    with clients(listener.getsockname(), 1):
        close_all(listener.accept_many())


@pytest.mark.parametrize("method", ["accept", "accept_many"])
def test_what_does_not_listen_cannot_accept(method: str) -> None:
    with harken.Socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with fails(errno.EINVAL):
            getattr(sock, method)()
    with connection() as (client, _), fails():
        getattr(client, method)()


def test_other_threads_run_while_one_waits(listener: harken.Socket) -> None:
    waiting = [Call(listener.accept).blocked(), Call(listener.accept_many).blocked()]
    assert Call(lambda: sum(range(100_000))).outcome() == 4999950000
    assert all(call.is_alive() for call in waiting)
    listener.close()
    for call in waiting:
        with fails():
            call.outcome()


# ---------------------------------------------------------------------- bad luck


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if WINDOWS else "ii", 1, 0))
    client.close()


@pytest.mark.parametrize("method", ["accept", "accept_many"])
def test_connections_that_died_in_the_queue_hurt_nobody(listener: harken.Socket, method: str) -> None:
    """Some systems hand them out and fail the first recv(), others never show them."""
    with clients(listener.getsockname(), 6) as connected:
        wait_for_queue(listener, 6)
        for client in connected[::2]:
            reset(client)
        alive = {client.getsockname() for client in connected[1::2]}
        for client in connected[1::2]:
            client.sendall(b"alive")
        seen: set[Any] = set()
        while seen != alive:
            for conn in listener.accept_many() if method == "accept_many" else [listener.accept()[0]]:
                conn.setblocking(True)
                with conn, contextlib.suppress(OSError):
                    if receive(conn, 5):
                        seen.add(conn.getpeername())
    with clients(listener.getsockname(), 1):
        close_all([conn for conn in listener.accept_many() if conn.fileno() >= 0])


OUT_OF_DESCRIPTORS = """
import contextlib, errno, os, resource, socket, sys, harken
listener = harken.Socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
listener.settimeout(0.001)
with contextlib.suppress(TimeoutError):
    listener.accept()  # a wait takes a descriptor too, once
clients = [socket.create_connection(listener.getsockname()) for _ in range(10)]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
fillers = []
with contextlib.suppress(OSError):
    while True:
        fillers.append(os.dup(0))
for _ in range(4):  # so many connections can be open at a time
    os.close(fillers.pop())
"""


@posix_only
@pytest.mark.parametrize("timeout", [None, 0, 5])
def test_a_batch_that_runs_out_of_descriptors_is_returned_and_the_error_comes_next(timeout: float | None) -> None:
    code = (
        OUT_OF_DESCRIPTORS
        + f"""
listener.settimeout({timeout})
names = [client.getsockname() for client in clients]
for expected in (4, 4, 2):
    batch = listener.accept_many()
    print([conn.getpeername() for conn in batch] == [names.pop(0) for _ in range(expected)])
    if expected == 4:
        for _ in range(2):
            try:
                listener.accept_many()
            except OSError as error:
                print(errno.errorcode[error.errno])
    for conn in batch:
        conn.close()
sys.stdout.flush()
os._exit(0)
"""
    )
    assert python(code).stdout.split() == ["True", "EMFILE", "EMFILE", "True", "EMFILE", "EMFILE", "True"]


@posix_only
@pytest.mark.parametrize("timeout", [None, 0, 5])
def test_accept_goes_on_when_there_are_descriptors_again(timeout: float | None) -> None:
    code = (
        OUT_OF_DESCRIPTORS
        + f"""
listener.settimeout({timeout})
open_now, seen = [], []
while len(seen) < 10:
    try:
        conn, address = listener.accept()
    except OSError as error:
        print(errno.errorcode[error.errno], len(open_now))
        while open_now:
            open_now.pop().close()
    else:
        open_now.append(conn)
        seen.append(address)
print(seen == [client.getsockname() for client in clients], flush=True)
os._exit(0)
"""
    )
    assert python(code).stdout == "EMFILE 4\nEMFILE 4\nTrue\n"


# ---------------------------------------------------------------------- close() ends every wait


@contextlib.contextmanager
def about_to_wait(call: str) -> Iterator[tuple[harken.Socket, Callable[[], object]]]:
    """A socket, and a call on it that waits."""
    if call.startswith("accept"):
        with listening() as sock:
            yield sock, getattr(sock, call)
    elif call == "connect":
        with full_queue() as address, harken.Socket() as sock:
            yield sock, lambda: sock.connect(address)
    else:
        with connection() as (sock, _):
            argument: Any = {"recv": 1, "recv_into": bytearray(1), "sendmsg": [bytes(MEGABYTE)]}.get(
                call, bytes(MEGABYTE)
            )

            def until_it_fails() -> None:
                while True:  # the system may find room once more
                    getattr(sock, call)(argument)

            yield sock, until_it_fails


WAITS = ["accept", "accept_many", "recv", "recv_into", "send", "sendall", "sendmsg"]


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("timeout", [None, 30])
@pytest.mark.parametrize("call", [*WAITS, pytest.param("connect", marks=linux_only)])
def test_close_ends_the_calls_of_other_threads(call: str, timeout: float | None, threads: int) -> None:
    with about_to_wait(call) as (sock, function):
        sock.settimeout(timeout)
        waiting = [Call(function).blocked() for _ in range(1 if call == "connect" else threads)]
        start = time.monotonic()
        sock.close()
        assert sock.fileno() == -1
        for each in waiting:
            with fails(EBADF):
                each.outcome()
            assert each.ended - start < 1


@pytest.mark.parametrize("call", ["accept", "accept_many"])
def test_the_port_is_free_once_close_returns(call: str) -> None:
    with listening() as listener:
        address = listener.getsockname()
        waiting = [Call(getattr(listener, call)).blocked() for _ in range(4)]
        listener.close()
        with harken.Socket() as successor:
            successor.bind(address)
            successor.listen()
        for each in waiting:
            with fails():
                each.outcome()


@pytest.mark.parametrize("call", ["accept", "accept_many"])
def test_close_ends_accept_although_a_duplicate_made_the_listener_block(listener: harken.Socket, call: str) -> None:
    with clients(listener.getsockname(), 1):
        listener.accept()[0].close()
    with listener.dup() as twin:
        twin.setblocking(False)
        twin.setblocking(True)
        waiting = Call(getattr(listener, call)).blocked()
        assert Call(listener.close).outcome() is None
        with fails(EBADF):
            waiting.outcome()


def test_two_threads_may_close_at_the_same_time(listener: harken.Socket) -> None:
    waiting = [Call(listener.accept).blocked() for _ in range(4)]
    for closer in [Call(listener.close) for _ in range(4)]:
        assert closer.outcome() is None
    for each in waiting:
        with fails(EBADF):
            each.outcome()


def test_detach_ends_accept_but_keeps_the_listener_open(listener: harken.Socket) -> None:
    waiting = Call(listener.accept).blocked()
    with listener.to_socket() as theirs:
        with fails(EBADF):
            waiting.outcome()
        with clients(theirs.getsockname(), 1), theirs.accept()[0]:
            pass


# ---------------------------------------------------------------------- signals


SIGNALS = """
import contextlib, os, signal, socket, sys, threading, time, harken
from wire import Call, connection, fill, listening, wait_until, wait_until_blocked
main = threading.main_thread()

def when_blocked(function, *args):
    def run():
        wait_until_blocked("self", main.native_id)
        function(*args)
    return Call(run)
"""


@posix_only
@pytest.mark.parametrize("call", ["accept()", "accept_many()", "recv(1)"])
@pytest.mark.parametrize("timeout", [None, 30])
def test_a_signal_handler_may_close_what_its_own_thread_waits_on(call: str, timeout: float | None) -> None:
    code = (
        SIGNALS
        + f"""
with listening() as listener, connection() as (client, _):
    sock = listener if "accept" in {call!r} else client
    sock.settimeout({timeout})
    signal.signal(signal.SIGUSR1, lambda *_: sock.close())
    when_blocked(signal.pthread_kill, main.ident, signal.SIGUSR1)
    try:
        sock.{call}
    except OSError as error:
        print(error.errno, sock.fileno())
"""
    )
    assert python(code).stdout == f"{errno.EBADF} -1\n"


@posix_only
@pytest.mark.parametrize("call", ["accept()", "accept_many()", "recv(1)", "recv_into(bytearray(1))", "send(b'x')"])
@pytest.mark.parametrize("timeout", [None, 30])
def test_ctrl_c_ends_a_wait(call: str, timeout: float | None) -> None:
    code = (
        SIGNALS
        + f"""
with listening() as listener, connection() as (client, _):
    sock = listener if "accept" in {call!r} else client
    if "send" in {call!r}:
        fill(sock)
    sock.settimeout({timeout})
    print("ready", flush=True)
    try:
        while True:
            sock.{call}
    except KeyboardInterrupt:
        print("KeyboardInterrupt", sock.fileno() >= 0)
"""
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], env=CHILD_ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        wait_until_blocked(child.pid, child.pid)
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=20)[0] == "KeyboardInterrupt True\n"
        assert child.returncode == 0


@windows_only
@pytest.mark.parametrize("call", ["accept()", "accept_many()", "recv(1)", "send(b'x')"])
def test_an_interrupt_ends_a_wait_on_windows(call: str) -> None:
    """What CPython's Ctrl-C handler does, without the console that a test has not."""
    code = (
        SIGNALS
        + f"""
import _thread
with listening() as listener, connection() as (client, _):
    sock = listener if "accept" in {call!r} else client
    if "send" in {call!r}:
        fill(sock)
    sock.settimeout(None)
    when_blocked(_thread.interrupt_main)
    start = time.monotonic()
    try:
        while True:
            sock.{call}
    except KeyboardInterrupt:
        print("KeyboardInterrupt", time.monotonic() - start < 5)
"""
    )
    assert python(code).stdout == "KeyboardInterrupt True\n"


TICKS = (
    SIGNALS
    + """
ticks = 0
def tick(*_):
    global ticks
    ticks += 1
signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
"""
)


@posix_only
@pytest.mark.parametrize("call", ["accept()", "accept_many()", "recv(1)", "send(b'x')", "sendmsg([b'x'])"])
def test_signals_do_not_make_a_timeout_longer(call: str) -> None:
    code = (
        TICKS
        + f"""
with listening() as listener, connection() as (client, _):
    sock = listener if "accept" in {call!r} else client
    if "send" in {call!r}:
        fill(sock)
    sock.settimeout(0.2)
    ticks, start = 0, time.monotonic()
    try:
        while True:
            sock.{call}
    except TimeoutError as error:
        print(error, 0.19 < time.monotonic() - start < 2, ticks > 3)
signal.setitimer(signal.ITIMER_REAL, 0)
"""
    )
    assert python(code).stdout == "timed out True True\n"


@posix_only
@pytest.mark.parametrize("timeout", [None, 30])
def test_a_wait_goes_on_after_a_signal(timeout: float | None) -> None:
    code = (
        TICKS
        + f"""
with listening() as listener, connection() as (client, server):
    def then(function, *args):
        seen = ticks
        def run():
            wait_until(lambda: ticks > seen + 3)
            return function(*args)
        return Call(run)

    for sock in (listener, client, server):
        sock.settimeout({timeout})
    connecting = then(socket.create_connection, listener.getsockname())
    conn, _ = listener.accept()
    conn.close()
    connecting.outcome().close()
    connecting = then(socket.create_connection, listener.getsockname())
    (conn,) = listener.accept_many()
    conn.close()
    connecting.outcome().close()
    then(server.sendall, b"x")
    print(client.recv(1))
    data = os.urandom(1 << 24)
    def read():
        got = bytearray()
        while len(got) < len(data):
            got += server.recv(1 << 20)
        return got == data
    reading = then(read)
    client.sendall(data)
    print(reading.outcome())
signal.setitimer(signal.ITIMER_REAL, 0)
"""
    )
    assert python(code).stdout == "b'x'\nTrue\n"


# ---------------------------------------------------------------------- threads and processes


@pytest.mark.parametrize("method", ["accept", "accept_many"])
def test_threads_share_a_listener_without_loss_or_doubles(listener: harken.Socket, method: str) -> None:
    def work() -> list[Any]:
        seen: list[Any] = []
        while True:
            try:
                batch = listener.accept_many() if method == "accept_many" else [listener.accept()[0]]
            except OSError as error:
                assert error.errno == EBADF
                return seen
            for conn in batch:
                with conn:
                    seen.append(conn.getpeername())

    workers = [Call(work).blocked() for _ in range(8)]
    with clients(listener.getsockname(), 300) as connected:
        for client in connected:
            assert client.recv(1) == b""  # somebody took it, and closed it
        listener.close()
        taken = Counter(address for worker in workers for address in worker.outcome())
        assert taken == Counter(client.getsockname() for client in connected)


@pytest.mark.parametrize("method", ["accept", "accept_many"])
def test_whoever_shares_a_listener_may_make_it_block(method: str) -> None:
    with listening() as listener:
        listener.settimeout(0.001)
        with pytest.raises(TimeoutError):
            listener.accept()  # now it is non-blocking
        listener.settimeout(None)
        with clients(listener.getsockname(), 1), listener.dup().to_socket() as theirs:
            theirs.setblocking(True)
            getattr(listener, method)()[0].close()
            theirs.setblocking(True)
            again = Call(getattr(listener, method)).blocked()
            listener.close()
            with fails(EBADF):
                again.outcome()


@posix_only
def test_a_batch_does_not_wait_where_others_made_the_listener_block(listener: harken.Socket) -> None:
    """On a unix socket, whose queue is not looked at before, and on TCP."""
    with harken.Socket(socket.AF_UNIX) as abstract:
        listeners = [listener]
        if LINUX:
            abstract.bind("\0harken-" + os.urandom(8).hex())
            abstract.listen()
            listeners.append(abstract)
        for each in listeners:
            each.setblocking(False)
            with each.dup() as twin:
                os.set_blocking(twin.fileno(), True)
                assert Call(each.accept_many).outcome() == []
                os.set_blocking(twin.fileno(), True)
                assert Call(each.accept_many, 1).outcome() == []


@posix_only
@pytest.mark.parametrize("method", ["accept", "accept_many"])
def test_closing_in_a_fork_neither_hangs_nor_wakes_the_parent(method: str) -> None:
    code = (
        SIGNALS
        + FORK
        + f"""
with listening() as listener:
    waiting = Call(listener.{method}).blocked()
    in_a_child(listener.close)
    waiting.blocked()
    client = socket.create_connection(listener.getsockname())
    conn = waiting.outcome()[0]
    print(conn.getpeername() == client.getsockname())
    conn.close()
    waiting = Call(listener.{method}).blocked()
    listener.close()
    try:
        waiting.outcome()
    except OSError as error:
        print(error.errno)
"""
    )
    assert python(code).stdout == f"True\n{errno.EBADF}\n"


@posix_only
def test_closing_a_connection_in_a_fork_leaves_it_to_the_parent() -> None:
    code = (
        SIGNALS
        + FORK
        + """
with connection() as (client, server):
    waiting = Call(client.recv, 1).blocked()
    in_a_child(client.close)
    server.send(b"x")
    print(waiting.outcome())
"""
    )
    assert python(code).stdout == "b'x'\n"


@posix_only
def test_a_fork_accepts_for_itself() -> None:
    code = (
        SIGNALS
        + FORK
        + """
with listening() as listener:
    waiting = Call(listener.accept).blocked()
    def child():
        listener.settimeout(0.05)
        try:
            listener.accept()
        except TimeoutError:
            again = Call(listener.accept_many)
            listener.close()
            try:
                again.outcome()
            except OSError:
                return
        raise AssertionError
    in_a_child(child)
    waiting.blocked()
    listener.close()
    try:
        waiting.outcome()
    except OSError as error:
        print(error.errno)
"""
    )
    assert python(code).stdout == f"{errno.EBADF}\n"


@posix_only
@pytest.mark.parametrize("method", ["accept", "accept_many"])
def test_a_fork_can_close_under_its_own_wait_with_a_timeout(method: str) -> None:
    code = (
        SIGNALS
        + FORK
        + f"""
with listening() as listener:
    listener.settimeout(0.001)
    try:
        listener.{method}()  # makes the waker
    except TimeoutError:
        pass
    def child():
        listener.settimeout(50)
        waiting = Call(listener.{method}).blocked()
        listener.close()
        try:
            waiting.outcome()
        except TimeoutError:
            raise AssertionError
        except OSError:
            pass
    in_a_child(child)
    print("ended")
"""
    )
    assert python(code).stdout == "ended\n"


WORKER = """
import sys, harken
with harken.Socket(harken.AF_INET, harken.SOCK_STREAM, harken.IPPROTO_TCP, fileno=int(sys.argv[1])) as listener:
    print("ready", flush=True)
    conn, _ = listener.accept()
    with conn:
        conn.sendall(b"from the worker")
"""


@wine_lacks("getsockopt() of an inherited socket")
def test_an_inherited_listener_works_on_when_its_maker_has_closed_it() -> None:
    with listening() as listener:
        listener.set_inheritable(True)
        command = [sys.executable, "-c", WORKER, str(listener.fileno())]
        with subprocess.Popen(
            command, env=CHILD_ENVIRONMENT, close_fds=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as worker:  # fmt: skip
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
            wait_until_blocked(worker.pid, worker.pid)
            ours = Call(listener.accept_many).blocked()
            address = listener.getsockname()
            listener.close()
            with fails():
                ours.outcome()
            with clients(address, 1) as (client,):
                assert receive(client, 15) == b"from the worker"
            assert worker.wait(20) == 0


def test_a_listener_travels_to_a_spawned_process() -> None:
    code = """
import multiprocessing
from wire import answer_one, clients, listening, receive
if __name__ == "__main__":
    with listening() as listener:
        address = listener.getsockname()
        with listener.to_socket() as theirs:
            worker = multiprocessing.get_context("spawn").Process(target=answer_one, args=(theirs,), daemon=True)
            worker.start()
            with clients(address, 1) as (client,):
                print(receive(client, 15))
            worker.join(20)
            print(worker.exitcode)
"""
    assert python(code).stdout == "b'from the worker'\n0\n"


@linux_only
def test_close_does_not_wait_for_ever_for_a_connect_to_a_full_unix_socket() -> None:
    path = f"\0harken-full-{threading.get_native_id()}"
    with harken.Socket(harken.AF_UNIX) as listener, harken.Socket(harken.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        second = harken.Socket(harken.AF_UNIX)
        waiting = Call(second.connect, path).blocked()
        second.close()
    with pytest.raises(OSError, match="."):
        waiting.outcome()
