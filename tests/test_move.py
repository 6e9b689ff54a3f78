"""A handle that moves between objects has one owner at every moment, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
from multiprocessing import resource_sharer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import harken
from harken._socket import empty, move
from machine import LOOPBACKS, WINDOWS, linux_only, posix_only

CLOSED = getattr(errno, "WSAENOTSOCK", errno.EBADF) if os.name == "nt" else errno.EBADF


def child(program: str, *arguments: str) -> list[str]:
    """What the program printed; it runs on its own, since an audit hook stays for ever."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split("\n")[:-1]


HOOK = """
import os, signal, sys, threading
import harken
[listener] = harken.listen("127.0.0.1:0")
handle, what = listener.fileno(), sys.argv[1]
def hook(event, arguments):
    if event == "socket.__new__":
        if "thread" in what:
            closer = threading.Thread(target=listener.close)
            closer.start()
            closer.join()
        elif "signal" in what:
            signal.raise_signal(signal.SIGUSR1)
            for _ in range(100):  # here the handler runs
                pass
        elif "close" in what:
            listener.close()
        if "raise" in what:
            raise KeyboardInterrupt
if hasattr(signal, "SIGUSR1"):
    signal.signal(signal.SIGUSR1, lambda *_: listener.close())
sys.addaudithook(hook)
made = []
try:
    made.append(listener.to_socket())
except KeyboardInterrupt:
    print("raised")
try:
    os.fstat(handle)
except OSError:
    print("closed")
print(listener.fileno() == handle, [one.fileno() == handle for one in made])
for one in made:
    one.close()
listener.close()
"""


@pytest.mark.skipif(os.name == "nt", reason="fstat() knows no sockets there")
@pytest.mark.parametrize(
    ("what", "outcome"),
    [
        ("nothing", ["False [True]"]),
        ("close", ["False [True]"]),
        ("close in a thread", ["False [True]"]),
        ("close in a signal handler", ["False [True]"]),
        ("raise", ["raised", "True []"]),
        ("close and raise", ["raised", "closed", "False []"]),
        ("close in a thread and raise", ["raised", "closed", "False []"]),
    ],
)
def test_an_audit_hook_that_closes_the_object_under_to_socket(what: str, outcome: list[str]) -> None:
    assert child(HOOK, what) == outcome


class Named(socket.socket):
    __slots__ = ("name",)
    name: str


def test_attributes_are_set_before_the_handle_arrives() -> None:
    [listener] = harken.listen("127.0.0.1:0")
    handle, made = listener.fileno(), empty(Named)
    made.name = "a"
    assert (made.fileno(), repr(made)[:5]) == (-1, "<test")
    made.close()  # there is nothing to close
    made = empty(Named)
    with move(listener, made, 1.5) as moved:
        assert moved is made
        assert (made.gettimeout(), listener.fileno()) == (1.5, -1)
        assert WINDOWS or made.fileno() == handle  # there it is a duplicate, which knows its protocol
        with pytest.raises(OSError, match="Bad file descriptor|10038"):
            move(listener, empty(Named), None)
    assert made.fileno() == -1


def test_to_socket_ignores_the_default_timeout() -> None:
    [listener] = harken.listen("127.0.0.1:0")
    socket.setdefaulttimeout(3)
    try:
        with listener.to_socket() as moved:
            assert moved.gettimeout() is None
    finally:
        socket.setdefaulttimeout(None)


# ---------------------------------------------------------------------------- what is remembered


def by_sockets(listener: harken.Listener) -> Any:
    (made,) = harken.Listeners([listener]).sockets()
    return made


def by_detach(listener: harken.Listener) -> Any:
    return socket.socket(fileno=listener.detach())


MOVES = [
    ("sockets()", by_sockets),
    ("to_socket()", harken.Listener.to_socket),
    ("detach()", by_detach),
    ("adopt()", harken.adopt),
]
by_every_move = pytest.mark.parametrize(("by", "give"), MOVES, ids=[name for name, _ in MOVES])


@by_every_move
@pytest.mark.parametrize("kind", ["127.0.0.1:0", "127.0.0.1:0?ttl=9", "[::1]:0", "unix"])
def test_a_listener_remembers_what_it_was(by: str, give: Any, kind: str, tmp_path: Path) -> None:
    if kind == "unix" and not hasattr(socket, "AF_UNIX"):
        pytest.skip("Python has no AF_UNIX here")
    if kind == "[::1]:0" and "::1" not in LOOPBACKS:
        pytest.skip("no IPv6 here")
    listeners = harken.listen(f"unix:{tmp_path / 'a'}" if kind == "unix" else kind)
    [listener] = listeners
    url, address, backlog = listener.url, listener.address, listener.backlog
    with give(listener):
        assert (listener.address, listener.url, listener.backlog) == (address, url, backlog)
        assert (listener.fileno(), listener.state) == (-1, "closed")
        assert str(listener) == f"{url} (given away by {by})"
        assert repr(listeners) == f"<harken.Listeners {url} (given away by {by})>"
        if kind != "unix":
            assert listener.port == listeners.port == address[1]
        for call in (
            listener.accept, listener.accept_many, listener.getsockname, listener.listen, listener.stats,
            listener.to_socket, listeners.sockets, listener.dup, lambda: listener.settimeout(1),
            lambda: listener.getsockopt(1, 1),
        ):  # fmt: skip
            with pytest.raises(OSError, match=rf"the socket was given away by {re.escape(by)}") as caught:
                call()
            assert caught.value.errno == CLOSED
        assert listener.detach() == -1
        listener.close()
        assert str(listener) == f"{url} (given away by {by})"


def test_a_listener_that_was_closed_says_so() -> None:
    listeners = harken.listen("127.0.0.1:0")
    [listener] = listeners
    listeners.close()
    assert str(listener) == "closed"
    for call in (lambda: listener.address, lambda: listener.port, lambda: listener.backlog, listener.accept):
        with pytest.raises(OSError, match="the socket is closed") as caught:
            call()
        assert caught.value.errno == CLOSED


def test_a_socket_needs_no_more_memory_for_it() -> None:
    with harken.Socket() as sock:
        assert sys.getsizeof(sock) <= 120


# ---------------------------------------------------------------------------- duplicates


@pytest.mark.parametrize("kind", ["127.0.0.1:0?ttl=9&backlog=7", "127.0.0.1:0?backlog=7", "unix"])
def test_dup_copies_options_and_backlog(kind: str, tmp_path: Path) -> None:
    if kind == "unix":
        if not hasattr(socket, "AF_UNIX"):
            pytest.skip("Python has no AF_UNIX here")
        kind = f"unix:{tmp_path / 'a'}?backlog=7"
    with harken.listen(kind) as (listener,):
        listener.settimeout(5)
        with listener.dup() as twin:
            assert type(twin) is type(listener)
            assert isinstance(twin, harken.Listener)
            assert (twin.url, twin.gettimeout(), twin.get_inheritable()) == (listener.url, 5, False)
            assert twin.options == listener.options
        if kind.startswith("unix"):
            assert (tmp_path / "a").exists()  # it is not the twin's to remove


@linux_only
def test_connections_of_a_dup_get_options_that_are_not_inherited() -> None:
    with harken.listen("127.0.0.1:0", priority=3) as (listener,), listener.dup() as twin:
        with socket.create_connection(twin.address, timeout=30), twin.accept()[0] as connection:
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == 3
        with socket.create_connection(twin.address, timeout=30):
            [connection] = twin.accept_many()
            with connection:
                assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == 3


@linux_only
def test_a_dup_of_a_bound_listener_listens_as_the_original_would() -> None:
    with harken.bind("127.0.0.1:0", backlog=9) as (listener,), listener.dup() as twin:
        assert twin.state == "bound"
        twin.listen()
        assert twin.backlog == listener.backlog == 9
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)


@linux_only
def test_options_and_backlog_move_with_the_handle() -> None:
    [listener] = harken.bind("127.0.0.1:0", backlog=9, priority=3)
    adopted = harken.adopt(listener)
    assert type(adopted) is type(listener)
    assert not adopted.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)  # it is held as before
    (plain,) = harken.Listeners([adopted]).sockets()
    with harken.adopt(plain) as back:
        assert plain.fileno() == -1
        back.listen()
        assert back.backlog == 9
        with socket.create_connection(back.address, timeout=30), back.accept()[0] as connection:
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == 3


@posix_only
def test_the_path_is_removed_by_whoever_has_the_handle(tmp_path: Path) -> None:
    path = tmp_path / "a"
    [listener] = harken.listen(f"unix:{path}")
    adopted = harken.adopt(listener)
    listener.close()
    assert path.exists()
    (plain,) = harken.Listeners([adopted]).sockets()
    adopted.close()
    assert path.exists()
    back = harken.adopt(plain)
    plain.close()
    assert path.exists()
    back.close()
    assert not path.exists()


@linux_only
def test_a_takeover_that_is_pending_can_be_adopted(tmp_path: Path) -> None:
    with harken.listen(f"unix:{tmp_path / 'a'}") as (old,):
        [new] = harken.bind(f"unix:{tmp_path / 'a'}", exclusive=False)
        with harken.adopt(new) as adopted:
            adopted.listen()
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(tmp_path / "a"))
                adopted.accept()[0].close()
            old.settimeout(0)
            assert old.accept_many() == []


# ---------------------------------------------------------------------------- all or none


SEVERAL = """
import os, sys
import harken
listeners = harken.listen("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0")
handles, left = [one.fileno() for one in listeners], int(sys.argv[1])
def hook(event, arguments):
    global left
    if event == "socket.__new__":
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
sys.addaudithook(hook)
with listeners.acceptor() as acceptor:
    try:
        listeners.sockets()
    except KeyboardInterrupt:
        pass
    left = 0
    assert [one.fileno() for one in listeners] == handles, listeners
    import socket
    for one in listeners:  # also the acceptor has them still
        with socket.create_connection(one.address, timeout=10):
            for connection in acceptor:
                connection.close()
                break
del acceptor, connection  # the hook keeps this module until Python has ended
made = listeners.sockets()
print([one.fileno() for one in made] == handles, [one.fileno() for one in listeners])
for one in made:
    one.close()
"""


@pytest.mark.skipif(os.name == "nt", reason="the numbers change there")
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_sockets_moves_all_or_none(nth: int) -> None:
    assert child(SEVERAL, str(nth)) == ["True [-1, -1, -1]"]


class Careless(socket.socket):
    """A detach() in Python, which is interrupted."""

    when = ""

    def detach(self) -> int:
        if self.when == "before":
            raise KeyboardInterrupt
        number = super().detach()
        if self.when == "after":
            raise KeyboardInterrupt
        return number


class Foreign:
    """A socket object that is no socket.socket, as gevent's."""

    def __init__(self, sock: socket.socket, when: str) -> None:
        self.sock, self.when = sock, when

    def fileno(self) -> int:
        return self.sock.fileno()

    detach = Careless.detach

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


@posix_only
@pytest.mark.parametrize("when", ["before", "after", ""])
def test_a_detach_in_python_that_is_interrupted(when: str) -> None:
    sock = Careless()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    sock.set_inheritable(True)
    sock.when = when
    handle, name = sock.fileno(), sock.getsockname()
    if when:
        with pytest.raises(KeyboardInterrupt):
            harken.adopt(sock)
        assert (sock.fileno(), sock.getsockname(), sock.get_inheritable()) == (handle, name, True)
        sock.when = ""
    with harken.adopt(sock) as listener:
        assert (listener.fileno(), sock.fileno()) == (handle, -1)
        assert not listener.get_inheritable()


def test_an_object_that_closes_itself_while_it_is_asked() -> None:
    class Closing(socket.socket):
        def detach(self) -> int:
            self.close()
            return super().detach()

    sock = Closing()
    sock.bind(("127.0.0.1", 0))
    with pytest.raises(harken.ListenError, match="adopt"):
        harken.adopt(sock)
    assert sock.fileno() == -1


class Another:
    """Its detach() gives another handle than fileno() told."""

    def __init__(self, told: socket.socket, given: Any) -> None:
        self.told, self.given = told, given

    def fileno(self) -> int:
        return self.told.fileno()

    def detach(self) -> int:
        return int(self.given.detach())


@posix_only
def test_what_detach_gives_is_looked_at_and_not_only_what_fileno_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as told, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wrong:
        wrong.bind(("127.0.0.1", 0))
        number = wrong.fileno()
        with pytest.raises(harken.ListenError, match=f"fd://{number}.*datagram"):
            harken.adopt(Another(told, wrong))
        socket.close(number)  # it stays open, and the error names it
        file = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(harken.ListenError, match=f"fd://{file}"):
            harken.adopt(Another(told, SimpleNamespace(detach=lambda: file)))
        os.close(file)
        other = socket.create_server(("127.0.0.1", 0))
        other.set_inheritable(True)
        name = other.getsockname()
        with harken.adopt(Another(told, other)) as listener:
            assert listener.getsockname() == name
            assert not listener.get_inheritable()
            assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# ---------------------------------------------------------------------------- who calls listen(2)


def here(sock: Any) -> Any:
    sock.listen()
    return sock


def in_c(sock: socket.socket) -> socket.socket:
    socket.SocketType.listen(sock)  # as uvloop does: not by the method of a class derived from it
    return sock


def sent(sock: socket.socket) -> socket.socket:
    """As by a queue of multiprocessing's."""
    try:
        return pickle.loads(pickle.dumps(sock))
    finally:
        resource_sharer.stop(30)
        sock.close()


LISTENS: dict[str, Any] = {
    "listen()": here,
    "dup(), listen()": lambda held: here(held.dup()),
    "to_socket()": lambda held: here(held.to_socket()),
    "dup().to_socket()": lambda held: here(held.dup().to_socket()),
    "detach()": lambda held: here(socket.socket(fileno=held.detach())),
    "dup().detach()": lambda held: here(socket.socket(fileno=held.dup().detach())),
    "sockets()": lambda held: here(by_sockets(held)),
    "sockets(), in C": lambda held: in_c(by_sockets(held)),
    "adopt(), to_socket()": lambda held: here(harken.adopt(held).to_socket()),
    "pickled": lambda held: here(sent(by_sockets(held))),
}


@posix_only
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("way", LISTENS)
def test_a_server_can_restart_whoever_called_listen(way: str) -> None:
    held = harken.bind("127.0.0.1:0")
    port = held.port
    server = LISTENS[way](held[0])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        served, _ = server.accept()
        served.close()  # the server closes first, so the server has the TIME_WAIT
        assert client.recv(1) == b""
    server.close()
    held.close()
    del server
    gc.collect()
    with harken.listen(f"127.0.0.1:{port}"):
        pass


@linux_only
def test_the_negative_control_listen_by_number_blocks_the_restart() -> None:
    """By number: nothing of ours is asked, and the kernel has no other way to hold a port."""
    with harken.bind("127.0.0.1:0") as held:
        port = held.port
        with socket.socket(fileno=os.dup(held[0].fileno())) as server:
            server.listen()
            with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
                served, _ = server.accept()
                served.close()
                assert client.recv(1) == b""
    with pytest.raises(harken.AddressInUseError):
        harken.listen(f"127.0.0.1:{port}")


@linux_only
def test_after_a_failed_move_the_port_is_held_as_before() -> None:
    program = """
import socket, sys, harken
[held] = harken.bind("127.0.0.1:0")
def hook(event, arguments):
    if event == "socket.__new__":
        raise KeyboardInterrupt
sys.addaudithook(hook)
try:
    held.to_socket()
except KeyboardInterrupt:
    print(held.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR), held.state)
held.close()
"""
    assert child(program) == ["0 bound"]


# ---------------------------------------------------------------------------- the mode, which duplicates share


def waits_for_ever(*_: object) -> None:
    raise AssertionError("it waits")


@posix_only
def test_a_timeout_of_0_does_not_wait_although_a_duplicate_blocks() -> None:
    with contextlib.ExitStack() as stack:
        (listener,) = stack.enter_context(harken.listen("127.0.0.1:0"))
        stack.enter_context(socket.create_connection(listener.address, timeout=30))
        with listener.accept()[0] as connection:
            connection.settimeout(0)
            os.set_blocking(connection.fileno(), True)  # as another process does that has it too
            former = signal.signal(signal.SIGALRM, waits_for_ever)
            signal.setitimer(signal.ITIMER_REAL, 20)
            try:
                for call in (
                    lambda: connection.recv(1), lambda: connection.recv_into(bytearray(1)),
                    lambda: [connection.send(bytes(100000)) for _ in range(1000)],
                    lambda: connection.sendmsg([bytes(100000)]),
                ):  # fmt: skip
                    with pytest.raises(BlockingIOError):
                        call()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, former)


@posix_only
def test_a_listener_of_an_acceptor_stays_non_blocking() -> None:
    with harken.listen("127.0.0.1:0") as listeners:
        [listener] = listeners
        with listeners.acceptor() as acceptor:
            for timeout in (None, 5, 0, None):
                listener.settimeout(timeout)
                assert not os.get_blocking(listener.fileno())
            listener.setblocking(True)
            assert not os.get_blocking(listener.fileno())
            assert acceptor.accept_many() == []
        with socket.create_connection(listener.address, timeout=30):
            listener.accept()[0].close()


@posix_only
def test_no_thread_that_accepts_meanwhile_blocks_on_the_new_owners_handle() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(40):
            (listener,) = harken.listen("127.0.0.1:0")
            listener.settimeout(0)
            begun = threading.Event()

            def accept(listener: harken.Listener = listener, begun: threading.Event = begun) -> None:
                with contextlib.suppress(OSError):
                    while True:
                        with contextlib.suppress(BlockingIOError):
                            listener.accept()
                        begun.set()

            thread = threading.Thread(target=accept, daemon=True)
            thread.start()
            assert begun.wait(10)
            with listener.to_socket() as sock:
                sock.settimeout(None)
                thread.join(10)
                assert not thread.is_alive()
    finally:
        sys.setswitchinterval(interval)
