"""Socket beside the standard library's: the same small programs, run with both, and what only Socket has."""

from __future__ import annotations

import array
import contextlib
import copy
import errno
import gc
import io
import mmap
import os
import pickle
import socket
import struct
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wire import (
    KINDS,
    Call,
    Kind,
    connection,
    fails,
    family_of,
    fill,
    full_queue,
    listening,
    python,
    receive,
    wait_until,
)

import harken
from machine import HAS_IPV6, LINUX, LOOPBACKS, WINDOWS, linux_only, needs_ipv6, posix_only, windows_only, wine_lacks

EBADF = 10038 if WINDOWS else errno.EBADF
MEGABYTE = 1 << 20


@pytest.fixture(params=KINDS, ids=["stdlib", "harken"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(params=LOOPBACKS)
def host(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# ---------------------------------------------------------------------- a life


def test_a_server_and_a_client_talk_and_end(kind: Kind, host: str) -> None:
    with listening(kind, host) as listener, kind(family_of(host)) as client:
        client.connect(listener.getsockname())
        server, peer = listener.accept()
        with server:
            assert peer == client.getsockname() == server.getpeername()
            assert server.getsockname() == client.getpeername() == listener.getsockname()
            assert client.send(b"hello") == 5
            assert receive(server, 5) == b"hello"
            client.shutdown(socket.SHUT_WR)
            assert server.recv(10) == b""
            server.sendall(b"still here")
            server.close()
            assert receive(client, 100) == b"still here"


def test_a_socket_is_ipv4_tcp_unless_told(kind: Kind) -> None:
    with kind() as sock:
        assert (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_STREAM)
        assert (sock.gettimeout(), sock.timeout, sock.getblocking()) == (None, None, True)
        assert sock.get_inheritable() is False
        assert sock.fileno() >= 0


def test_family_type_and_proto_can_be_named(kind: Kind) -> None:
    with kind(family=socket.AF_INET, type=socket.SOCK_DGRAM, proto=socket.IPPROTO_UDP) as sock:
        assert (sock.family, sock.type, sock.proto) == (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP)


@posix_only
def test_flags_in_the_type_are_obeyed_and_taken_out(kind: Kind) -> None:
    if not hasattr(socket, "SOCK_NONBLOCK"):
        pytest.skip("this system has no SOCK_NONBLOCK")
    with kind(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
        assert sock.type == socket.SOCK_STREAM
        assert sock.gettimeout() == 0
        assert os.get_blocking(sock.fileno()) is False


@pytest.mark.parametrize("given", [-1, 0, socket.IPPROTO_TCP])
def test_the_protocol_of_a_tcp_socket_is_never_0(given: int) -> None:
    with harken.Socket(socket.AF_INET, socket.SOCK_STREAM, given) as sock:
        assert sock.proto == socket.IPPROTO_TCP
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        with socket.create_connection(sock.getsockname()), sock.accept()[0] as server:
            assert server.proto == socket.IPPROTO_TCP


def test_an_accepted_socket_blocks_whatever_its_listener_does(kind: Kind) -> None:
    with listening(kind) as listener, kind() as client:
        listener.settimeout(5)
        client.connect(listener.getsockname())
        with listener.accept()[0] as server:
            assert server.gettimeout() is None
            call = Call(server.recv, 1).blocked()
            client.send(b"x")
            assert call.outcome() == b"x"


def test_a_context_closes_its_socket_also_when_it_fails(kind: Kind) -> None:
    with pytest.raises(ZeroDivisionError), kind() as sock:
        raise ZeroDivisionError
    assert sock.fileno() == -1


def test_closing_twice_does_nothing(kind: Kind) -> None:
    sock = kind()
    sock.close()
    sock.close()
    assert sock.fileno() == -1


def test_detach_gives_the_handle_away(kind: Kind) -> None:
    with connection(kind) as (client, server):
        handle = client.fileno()
        assert client.detach() == handle
        assert client.fileno() == -1
        client.close()
        with kind(fileno=handle) as again:
            again.sendall(b"same connection")
            assert receive(server, 15) == b"same connection"


def test_a_duplicate_outlives_the_original(kind: Kind) -> None:
    with connection(kind) as (client, server):
        client.settimeout(7)
        with client.dup() as twin:
            assert twin.fileno() != client.fileno()
            assert (twin.family, twin.type, twin.gettimeout()) == (client.family, client.type, 7)
            client.close()
            twin.sendall(b"x")
            assert server.recv(1) == b"x"


@pytest.mark.parametrize("state", ["new", "bound", "connected", "closed"])
def test_repr_tells_the_handle_and_the_addresses(kind: Kind, state: str) -> None:
    with connection(kind) as (client, _), kind() as sock:
        if state == "connected":
            assert str(client.getpeername()) in repr(client)
            assert f"fd={client.fileno()}" in repr(client)
            return
        if state == "bound":
            sock.bind(("127.0.0.1", 0))
            assert str(sock.getsockname()) in repr(sock)
        if state == "closed":
            sock.close()
        assert "raddr" not in repr(sock)
        assert ("closed" in repr(sock)) == (state == "closed")


# ---------------------------------------------------------------------- modes


@pytest.mark.parametrize(
    ("setter", "value", "timeout"),
    [
        ("settimeout", None, None),
        ("settimeout", 0, 0.0),
        ("settimeout", 1.5, 1.5),
        ("settimeout", 3, 3.0),
        ("setblocking", True, None),
        ("setblocking", False, 0.0),
    ],
)
def test_modes_read_back(kind: Kind, setter: str, value: Any, timeout: float | None) -> None:
    with kind() as sock:
        sock.settimeout(42)
        getattr(sock, setter)(value)
        assert sock.gettimeout() == timeout
        assert type(sock.gettimeout()) is type(timeout)
        assert sock.getblocking() == (timeout != 0)
        if not WINDOWS:
            assert os.get_blocking(sock.fileno()) == (timeout is None)


@pytest.mark.parametrize("call", ["accept", "recv", "recv_into", "send"])
def test_a_timeout_is_waited_for_and_told(kind: Kind, call: str) -> None:
    with connection(kind) as (client, _), listening(kind) as listener:
        sock = listener if call == "accept" else client
        if call == "send":
            fill(client)
        sock.settimeout(0.05)
        arguments = {"accept": (), "recv": (1,), "recv_into": (bytearray(1),), "send": (b"x",)}[call]
        with pytest.raises(TimeoutError, match="^timed out$") as caught:
            while True:  # the system may find room for one byte more
                start = time.monotonic()
                getattr(sock, call)(*arguments)
        assert 0.04 < time.monotonic() - start < 5
        assert caught.value.errno is None


@pytest.mark.parametrize("call", ["accept", "accept_many", "recv", "send"])
def test_a_timeout_holds_although_a_duplicate_blocks(kind: Kind, call: str) -> None:
    """On POSIX the mode belongs to the socket: settimeout() of one descriptor changes it for all."""
    if call == "accept_many" and kind is socket.socket:
        pytest.skip("the stdlib has none")
    with connection(kind) as (client, _), listening(kind) as listener:
        sock = listener if call.startswith("accept") else client
        arguments = {"recv": (1,), "send": (bytes(64 * MEGABYTE),)}.get(call, ())
        sock.settimeout(0.05)
        with sock.dup() as twin:
            if call == "send":
                fill(twin)
            twin.settimeout(None)
            with pytest.raises(TimeoutError):
                while True:
                    Call(getattr(sock, call), *arguments).outcome(5)


def test_the_timeout_of_sendall_is_for_the_whole(kind: Kind) -> None:
    with connection(kind) as (client, server):
        client.settimeout(0.2)
        stop = threading.Event()
        reader = Call(drip, server, stop)
        start = time.monotonic()
        with pytest.raises(TimeoutError, match="^timed out$"):
            while True:  # the reader takes a little all the time, so that no single wait is long
                client.sendall(bytes(64 * MEGABYTE))
        assert 0.15 < time.monotonic() - start < 3
        stop.set()
        reader.outcome()


def drip(sock: Any, stop: threading.Event) -> None:
    while not stop.wait(0.01):
        sock.recv(65536)


def test_a_non_blocking_send_takes_a_part_and_then_says_so(kind: Kind) -> None:
    with connection(kind) as (client, server):
        sent = fill(client)
        assert sent > 0
        client.close()
        assert len(receive(server, sent + 1)) == sent


@pytest.mark.parametrize("timeout", [None, 30])
def test_sendall_sends_all_to_a_slow_reader(kind: Kind, timeout: float | None) -> None:
    data = os.urandom(MEGABYTE) * 16
    with connection(kind) as (client, server):
        client.settimeout(timeout)
        call = Call(client.sendall, data).blocked()
        assert receive(server, len(data)) == data
        assert call.outcome() is None


def test_connect_ex_returns_what_connect_raises(kind: Kind) -> None:
    with listening(kind) as listener, kind() as client:
        assert client.connect_ex(listener.getsockname()) == 0
        assert client.connect_ex(listener.getsockname()) == errno.EISCONN
        gone = listener.getsockname()
    with kind() as client:
        assert client.connect_ex(gone) == errno.ECONNREFUSED


def test_connect_with_a_timeout_connects(kind: Kind) -> None:
    with listening(kind) as listener, kind() as client:
        client.settimeout(5)
        client.connect(listener.getsockname())
        assert client.getpeername() == listener.getsockname()


@linux_only
def test_a_connect_that_takes_too_long_is_told_like_the_stdlib_does(kind: Kind) -> None:
    with full_queue() as address:
        with kind() as client:
            client.settimeout(0.05)
            with pytest.raises(TimeoutError, match="^timed out$"):
                client.connect(address)
        with kind() as client:
            client.settimeout(0.05)
            assert client.connect_ex(address) == errno.EAGAIN


# ---------------------------------------------------------------------- the same exceptions

PROGRAMS: dict[str, Callable[[Kind], object]] = {}


def program(function: Callable[[Kind], object]) -> Callable[[Kind], object]:
    PROGRAMS[function.__name__.replace("_", " ")] = function
    return function


@program
def nothing_to_receive(kind: Kind) -> None:
    with connection(kind) as (client, _):
        client.setblocking(False)
        client.recv(1)


@program
def nothing_to_accept(kind: Kind) -> None:
    with listening(kind) as listener:
        listener.setblocking(False)
        listener.accept()


@program
def connecting_without_waiting(kind: Kind) -> None:
    with listening(kind) as listener, kind() as client:
        client.setblocking(False)
        client.connect(listener.getsockname())


@program
def nobody_listens(kind: Kind) -> None:
    with kind() as bound, kind() as client:
        bound.bind(("127.0.0.1", 0))
        client.connect(bound.getsockname())


@program
def nobody_listens_and_we_have_a_timeout(kind: Kind) -> None:
    with kind() as bound, kind() as client:
        bound.bind(("127.0.0.1", 0))
        client.settimeout(5)
        client.connect(bound.getsockname())


@program
def connecting_twice(kind: Kind) -> None:
    with listening(kind) as listener, connection(kind) as (client, _):
        client.connect(listener.getsockname())


@program
def sending_after_shutdown(kind: Kind) -> None:
    with connection(kind) as (client, _):
        client.shutdown(socket.SHUT_WR)
        client.send(b"x")


@program
def sending_unconnected(kind: Kind) -> None:
    with kind() as sock:
        sock.send(b"x")


@program
def receiving_unconnected(kind: Kind) -> None:
    with kind() as sock:
        sock.recv(1)


@program
def shutting_down_unconnected(kind: Kind) -> None:
    with kind() as sock:
        sock.shutdown(socket.SHUT_RDWR)


@program
def shutting_down_in_an_unknown_way(kind: Kind) -> None:
    with connection(kind) as (client, _):
        client.shutdown(77)


@program
def the_peer_of_nobody(kind: Kind) -> None:
    with kind() as sock:
        sock.getpeername()


@program
def accepting_without_listening(kind: Kind) -> None:
    with kind() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.accept()


@program
def listening_on_a_datagram_socket(kind: Kind) -> None:
    with kind(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(1)


@program
def an_address_in_use(kind: Kind) -> None:
    with listening(kind) as listener, kind() as second:
        second.bind(listener.getsockname())


@program
def binding_twice(kind: Kind) -> None:
    with kind() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.bind(("127.0.0.1", 0))


@program
def an_address_of_another_machine(kind: Kind) -> None:
    with kind() as sock:
        sock.bind(("203.0.113.7", 0))


@program
def an_unknown_option(kind: Kind) -> None:
    with kind() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, 9999, 1)


@program
def reading_an_unknown_option(kind: Kind) -> None:
    with kind() as sock:
        sock.getsockopt(socket.IPPROTO_TCP, 9999)


@program
def reading_an_option_into_nothing(kind: Kind) -> None:
    with kind() as sock:
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE, -1)


@program
def reading_an_option_into_too_much(kind: Kind) -> None:
    with kind() as sock:
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE, 1025)


@program
def an_unknown_family(kind: Kind) -> None:
    kind(12345)


@program
def an_unknown_type(kind: Kind) -> None:
    kind(socket.AF_INET, 99)


@program
def a_protocol_of_another_type(kind: Kind) -> None:
    kind(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_UDP)


@program
def a_negative_timeout(kind: Kind) -> None:
    with kind() as sock:
        sock.settimeout(-1)


@program
def a_negative_size(kind: Kind) -> None:
    with connection(kind) as (client, _):
        client.recv(-1)


@program
def a_negative_size_to_receive_into(kind: Kind) -> None:
    with connection(kind) as (client, _):
        client.recv_into(bytearray(1), -1)


@program
def too_little_room(kind: Kind) -> None:
    with connection(kind) as (client, _):
        client.recv_into(bytearray(2), 3)


@program
def a_negative_handle(kind: Kind) -> None:
    kind(fileno=-1)


@program
def a_handle_that_somebody_else_closed(kind: Kind) -> None:
    sock = kind()
    with socket.socket(fileno=sock.fileno()) if not WINDOWS else socket.socket(2, 1, 6, fileno=sock.fileno()):
        pass
    sock.close()


def told(function: Callable[[Kind], object], kind: Kind) -> tuple[object, ...]:
    with pytest.raises(Exception) as caught:  # noqa: PT011  which one is what is compared
        function(kind)
    error = caught.value
    return type(error), getattr(error, "errno", None), getattr(error, "winerror", None), str(error)


@pytest.mark.parametrize("function", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_failures_are_the_stdlibs(function: Callable[[Kind], object]) -> None:
    assert told(function, harken.Socket) == told(function, socket.socket)


@pytest.mark.parametrize(
    ("name", "expected", "number"),
    [
        ("nothing to receive", BlockingIOError, errno.EWOULDBLOCK),
        ("nobody listens", ConnectionRefusedError, errno.ECONNREFUSED),
        ("sending after shutdown", BrokenPipeError, errno.ESHUTDOWN if WINDOWS else errno.EPIPE),
        ("an address in use", OSError, errno.EADDRINUSE),
        ("an address of another machine", OSError, errno.EADDRNOTAVAIL),
        ("binding twice", OSError, errno.EINVAL),
        ("accepting without listening", OSError, errno.EINVAL),
        ("a handle that somebody else closed", OSError, EBADF),
    ],
)
def test_failures_have_their_class_and_number(name: str, expected: type[OSError], number: int) -> None:
    cls, code, winerror, _ = told(PROGRAMS[name], harken.Socket)
    assert (cls, code) == (expected, number)
    assert winerror == (None if not WINDOWS else 10022 if number == errno.EINVAL else number)


@wine_lacks("a reset connection reads as ended")
def test_a_reset_is_an_error(kind: Kind) -> None:
    with connection(kind) as (client, server):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if WINDOWS else "ii", 1, 0))
        client.close()
        with pytest.raises(ConnectionResetError) as caught:
            server.recv(1)
        assert caught.value.errno == errno.ECONNRESET


def test_sending_to_a_peer_that_left_fails_in_the_end(kind: Kind) -> None:
    with connection(kind) as (client, server):
        server.close()
        with pytest.raises((BrokenPipeError, ConnectionResetError, ConnectionAbortedError)):
            for _ in range(100_000):
                client.send(b"x")


@posix_only
def test_a_forbidden_address_is_a_permission_error(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "closed" / "s"
    path.parent.mkdir(mode=0)
    module = "socket.socket" if kind is socket.socket else "harken.Socket"
    code = f"""
import errno, os, socket, harken, sys
if os.getuid() == 0:
    os.setuid(65534)
with {module}(socket.AF_UNIX) as sock:
    try:
        sock.bind(sys.argv[1])
    except PermissionError as error:
        print(errno.errorcode[error.errno])
"""
    assert python(code, path).stdout == "EACCES\n"


@windows_only
def test_a_port_that_is_held_exclusively_is_a_permission_error(kind: Kind) -> None:
    with kind() as first, kind() as second:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        first.bind(("127.0.0.1", 0))
        second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(PermissionError) as caught:
            second.bind(first.getsockname())
        assert (caught.value.errno, caught.value.winerror) == (13, 10013)


METHODS: dict[str, Callable[[Any], object]] = {
    "accept": lambda s: s.accept(),
    "accept_many": lambda s: s.accept_many(),
    "bind": lambda s: s.bind(("127.0.0.1", 0)),
    "connect": lambda s: s.connect(("127.0.0.1", 9)),
    "dup": lambda s: s.dup(),
    "get_inheritable": lambda s: s.get_inheritable(),
    "getpeername": lambda s: s.getpeername(),
    "getsockname": lambda s: s.getsockname(),
    "getsockopt": lambda s: s.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
    "getsockopt bytes": lambda s: s.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE, 4),
    "listen": lambda s: s.listen(),
    "makefile": lambda s: s.makefile("rb").read(1),
    "recv": lambda s: s.recv(1),
    "recv_into": lambda s: s.recv_into(bytearray(1)),
    "recvfrom": lambda s: s.recvfrom(1),
    "recvfrom_into": lambda s: s.recvfrom_into(bytearray(1)),
    "recvmsg": lambda s: s.recvmsg(1),
    "recvmsg_into": lambda s: s.recvmsg_into([bytearray(1)]),
    "send": lambda s: s.send(b"x"),
    "sendall": lambda s: s.sendall(b"x"),
    "sendfile": lambda s: s.sendfile(io.BytesIO(b"x")),
    "sendmsg": lambda s: s.sendmsg([b"x"]),
    "sendto": lambda s: s.sendto(b"x", ("127.0.0.1", 9)),
    "set_inheritable": lambda s: s.set_inheritable(True),
    "setblocking": lambda s: s.setblocking(False),
    "setsockopt": lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    "setsockopt bytes": lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, b"\1\0\0\0"),
    "settimeout": lambda s: s.settimeout(1),
    "shutdown": lambda s: s.shutdown(socket.SHUT_RDWR),
    "to_socket": lambda s: s.to_socket(),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_a_closed_socket_refuses_everything(method: Callable[[Any], object]) -> None:
    sock = harken.Socket()
    sock.close()
    with fails(EBADF):
        method(sock)


def test_every_method_is_tried_on_a_closed_socket() -> None:
    harmless = {"close", "connect_ex", "detach", "fileno", "getblocking", "gettimeout", "timeout"}
    public = {name for name in dir(harken.Socket) if not name.startswith("_")} - {"family", "type", "proto"}
    assert public - harmless == {name.partition(" ")[0] for name in METHODS}


def test_connect_ex_of_a_closed_socket_returns_the_number(kind: Kind) -> None:
    sock = kind()
    sock.close()
    assert sock.connect_ex(("127.0.0.1", 9)) == EBADF


# ---------------------------------------------------------------------- buffers


def in_a_map() -> mmap.mmap:
    area = mmap.mmap(-1, 8)
    area[:] = b"abcdefgh"
    return area


BUFFERS: dict[str, Callable[[], Any]] = {
    "bytes": lambda: b"abcdefgh",
    "bytearray": lambda: bytearray(b"abcdefgh"),
    "slice": lambda: memoryview(bytearray(b"--abcdefgh--"))[2:10],
    "array": lambda: array.array("H", b"abcdefgh"),
    "mmap": in_a_map,
    "two dimensions": lambda: memoryview(bytearray(b"abcdefgh")).cast("B", (2, 4)),
}


@pytest.mark.parametrize("make", BUFFERS.values(), ids=BUFFERS.keys())
def test_any_buffer_can_be_sent(kind: Kind, make: Callable[[], Any]) -> None:
    with connection(kind) as (client, server):
        assert client.send(make()) == 8
        client.sendall(make())
        assert receive(server, 16) == b"abcdefgh" * 2


@pytest.mark.parametrize("name", [name for name in BUFFERS if name != "bytes"])
def test_any_buffer_that_can_be_written_is_received_into(kind: Kind, name: str) -> None:
    with connection(kind) as (client, server):
        client.sendall(b"01234567")
        wait_until(lambda: server.recv(8, socket.MSG_PEEK) == b"01234567")
        buffer = BUFFERS[name]()
        assert server.recv_into(buffer) == 8
        assert bytes(memoryview(buffer).cast("B") if name != "two dimensions" else buffer) == b"01234567"


def test_receiving_into_a_slice_leaves_the_rest_alone(kind: Kind) -> None:
    with connection(kind) as (client, server):
        client.sendall(b"0123456789")
        buffer = bytearray(b"--------")
        assert server.recv_into(memoryview(buffer)[2:5]) == 3
        assert buffer == b"--012---"
        assert server.recv_into(buffer, 2) == 2
        assert buffer == b"34012---"


def test_a_buffer_is_released_afterwards(kind: Kind) -> None:
    with connection(kind) as (client, server):
        buffer = bytearray(b"x")
        client.send(buffer)
        client.sendall(buffer)
        server.recv_into(buffer)
        server.setblocking(False)
        wait_until(lambda: server.recv(1) if readable(server) else b"")
        with pytest.raises(BlockingIOError):
            server.recv_into(buffer)
        buffer.append(1)  # a BufferError if somebody still held it


def readable(sock: Any) -> bool:
    import select

    return bool(select.select([sock.fileno()], [], [], 0)[0])


@pytest.mark.parametrize(
    ("method", "argument"),
    [
        ("send", "text"),
        ("sendall", None),
        ("send", memoryview(bytearray(8))[::2]),
        ("sendall", memoryview(bytearray(8))[::2]),
        ("recv_into", b"read-only"),
        ("recv_into", memoryview(b"read-only")),
        ("recv_into", memoryview(bytearray(8))[::2]),
        ("recv_into", 7),
        ("recv", 1.5),
        ("recv", "1"),
    ],
)
def test_what_is_no_buffer_or_size_is_refused(kind: Kind, method: str, argument: Any) -> None:
    with connection(kind) as (client, _), pytest.raises((TypeError, BufferError)):
        client.settimeout(5)
        getattr(client, method)(argument)


def test_receiving_nothing_does_not_wait(kind: Kind) -> None:
    with connection(kind) as (client, _):
        client.settimeout(5)
        assert client.recv(0) == b""
        assert client.recv_into(bytearray()) == 0
        client.setblocking(False)
        assert client.recv(0) == b""


def test_flags_are_passed_on(kind: Kind) -> None:
    with connection(kind) as (client, server):
        client.sendall(b"ab")
        # Not together with MSG_WAITALL: Windows refuses the two (WSAEOPNOTSUPP).
        wait_until(lambda: server.recv(2, socket.MSG_PEEK) == b"ab")
        assert receive(server, 2) == b"ab"
        client.send(b"!", socket.MSG_OOB)
        wait_until(lambda: oob(server) == b"!")


def oob(sock: Any) -> bytes:
    try:
        return bytes(sock.recv(1, socket.MSG_OOB))
    except OSError:
        return b""  # not there yet


# ---------------------------------------------------------------------- sendmsg, sendfile


@posix_only
def test_sendmsg_sends_many_buffers_as_one(kind: Kind) -> None:
    with connection(kind) as (client, server):
        assert client.sendmsg([b"ab", bytearray(b"cd"), memoryview(b"-ef-")[1:3], b""]) == 6
        assert client.sendmsg(bytes([n]) for n in range(200)) == 200
        assert client.sendmsg([]) == 0
        assert receive(server, 206) == b"abcdef" + bytes(range(200))


@windows_only
def test_sendmsg_exists_on_windows_too() -> None:
    with connection() as (client, server):
        assert client.sendmsg([b"ab", bytearray(b"cd"), b""]) == 4
        assert receive(server, 4) == b"abcd"
        with fails(errno.EOPNOTSUPP):
            client.sendmsg([b"x"], [(1, 1, b"data")])


@posix_only
@pytest.mark.parametrize(
    "arguments",
    [
        (b"bytes are numbers",),
        ([b"ab", "text"],),
        (5,),
        ([b"x"], [5]),
        ([b"x"], [(1, 2)]),
        ([b"x"], [(1, 2, "text")]),
        ([b"x"], [(socket.SOL_SOCKET, getattr(socket, "SCM_RIGHTS", 1), 0)]),
    ],
    ids=str,
)
def test_sendmsg_refuses_what_it_cannot_send(kind: Kind, arguments: tuple[Any, ...]) -> None:
    ours, theirs = socket.socketpair()
    with kind(fileno=ours.detach()) as sock, theirs:
        with pytest.raises((TypeError, ValueError)):
            sock.sendmsg(*arguments)
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


@posix_only
def test_descriptors_travel_over_unix_sockets(kind: Kind) -> None:
    ours, theirs = socket.socketpair()
    with (
        kind(fileno=ours.detach()) as sock,
        theirs,
        tempfile.TemporaryFile() as first,
        tempfile.TemporaryFile() as second,
    ):
        first.write(b"the file itself")
        first.flush()
        rights = [
            (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [first.fileno()])),
            (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [second.fileno()])),
        ]
        assert sock.sendmsg([b"he", b"re"], rights[:1] if sys.platform == "darwin" else rights) == 4
        data, numbers, _, _ = socket.recv_fds(theirs, 100, 2)
        try:
            assert data == b"here"
            assert os.pread(numbers[0], 100, 0) == b"the file itself"
        finally:
            for number in numbers:
                os.close(number)


@posix_only
def test_a_blocking_sendmsg_waits_for_room(kind: Kind) -> None:
    with connection(kind) as (client, server):
        call = Call(client.sendmsg, [bytes(16 * MEGABYTE), b"the", b"end"]).blocked()
        assert receive(server, 16 * MEGABYTE) == bytes(16 * MEGABYTE)
        assert receive(server, 6) == b"theend"
        assert call.outcome() == 16 * MEGABYTE + 6


@pytest.mark.parametrize(
    ("at", "arguments", "expected"),
    [(0, (), "0123456789"), (4, (), "0123456789"), (0, (3,), "3456789"), (7, (3, 2), "34"), (0, (0, 99), "0123456789")],
)
def test_sendfile_sends_what_was_asked_for(
    kind: Kind, tmp_path: Path, at: int, arguments: tuple[int, ...], expected: str
) -> None:
    path = tmp_path / "digits"
    path.write_bytes(b"0123456789")
    with connection(kind) as (client, server), path.open("rb") as file:
        file.seek(at)
        if WINDOWS and at and not arguments:
            pytest.skip("without os.sendfile() the stdlib starts where the file stands")
        assert client.sendfile(file, *arguments) == len(expected)
        assert file.tell() == (arguments or (0,))[0] + len(expected)
        assert receive(server, len(expected)) == expected.encode()


def test_sendfile_refuses_what_the_stdlib_refuses(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with connection(kind) as (client, _), path.open("rb") as file:
        with pytest.raises(ValueError, match="count"):
            client.sendfile(file, 0, 0)
        with path.open() as text, pytest.raises((ValueError, TypeError)):
            client.sendfile(text)
        client.setblocking(False)
        with pytest.raises(ValueError, match="non-blocking"):
            client.sendfile(file)


# ---------------------------------------------------------------------- options


def test_options_are_numbers_or_bytes(kind: Kind) -> None:
    with kind() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, False)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
        linger = struct.pack("hh" if WINDOWS else "ii", 1, 7)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)[: len(linger)] == linger
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE, 4) == struct.pack("i", socket.SOCK_STREAM)


@linux_only
def test_an_option_may_have_a_length_only(kind: Kind) -> None:
    with kind() as sock, fails(errno.EFAULT):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, None, 16)


@pytest.mark.parametrize(
    "arguments",
    [(1, 2), (1, 2, None), (1, 2, 3, 4), ("1", 2, 3), (1, 2, "text"), (1, 2, 2**40), (1, 2, 1.5), (1, 2, [1])],
)
def test_wrong_options_are_refused(kind: Kind, arguments: tuple[Any, ...]) -> None:
    with kind() as sock, pytest.raises((TypeError, OverflowError)):
        sock.setsockopt(*arguments)


# ---------------------------------------------------------------------- addresses


@needs_ipv6
def test_ipv6_addresses_have_two_to_four_parts(kind: Kind) -> None:
    for address in [("::1", 0), ("::1", 0, 0), ("::1", 0, 0, 0), (b"::1", 0)]:
        with kind(socket.AF_INET6) as sock:
            sock.bind(address)
            assert sock.getsockname() == ("::1", sock.getsockname()[1], 0, 0)


@pytest.mark.needs_flow_labels
@needs_ipv6
@linux_only
def test_a_flow_label_is_passed_on() -> None:
    with listening(harken.Socket, "::1") as listener, harken.Socket(socket.AF_INET6) as client:
        client.setsockopt(socket.IPPROTO_IPV6, 33, 1)  # IPV6_FLOWINFO_SEND: without it Linux ignores the label
        client.connect((*listener.getsockname()[:2], 0x12345, 0))
        assert client.getpeername() == (*listener.getsockname()[:2], 0x12345, 0)


def link_locals() -> list[tuple[str, int, str]]:
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            address, index, _, scope, _, name = line.split()
            if scope == "20":
                text = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address))
                with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as sock:
                    sock.bind((text, 0, 0, int(index, 16)))
                    found.append((text, int(index, 16), name))
    return found


@linux_only
@pytest.mark.skipif(not link_locals(), reason="no interface here has a link-local address")
def test_a_scope_is_a_number_or_stands_in_the_host(kind: Kind) -> None:
    text, index, name = link_locals()[0]
    addresses: list[tuple[Any, ...]]
    addresses = [(text, 0, 0, index)]
    if kind is harken.Socket:  # the stdlib overwrites the scope of a host with that of the tuple, or 0
        addresses += [(f"{text}%{name}", 0), (f"{text}%{index}", 0)]
    for address in addresses:
        with kind(socket.AF_INET6) as listener, kind(socket.AF_INET6) as client:
            listener.bind(address)
            assert listener.getsockname() == (text, listener.getsockname()[1], 0, index)
            listener.listen(1)
            client.connect(listener.getsockname())
            conn, peer = listener.accept()
            with conn:
                assert (peer[0], peer[3]) == (text, index)


def test_the_empty_host_is_the_wildcard(kind: Kind) -> None:
    with kind() as sock:
        sock.bind(("", 0))
        assert sock.getsockname()[0] == "0.0.0.0"


def test_hosts_are_str_bytes_or_bytearray(kind: Kind) -> None:
    for host in ("127.0.0.1", b"127.0.0.1", bytearray(b"127.0.0.1")):
        with kind() as sock:
            sock.bind((host, 0))
            assert sock.getsockname()[0] == "127.0.0.1"


def test_host_names_are_resolved(kind: Kind) -> None:
    with kind() as listener, kind() as client:
        listener.bind(("localhost", 0))
        listener.listen(1)
        assert listener.getsockname()[0].startswith("127.")
        client.connect(("localhost", listener.getsockname()[1]))
        with listener.accept()[0]:
            assert client.getpeername() == listener.getsockname()


@pytest.mark.parametrize("call", ["bind", "connect", "connect_ex"])
def test_a_host_that_has_no_address_is_a_gaierror(kind: Kind, call: str) -> None:
    with kind() as sock, pytest.raises(socket.gaierror):
        getattr(sock, call)(("..", 80))


@pytest.mark.skipif(bool(WINDOWS), reason="a literal of the wrong family has another number on each Windows")
def test_a_literal_of_the_other_family_is_a_gaierror(kind: Kind) -> None:
    with kind() as sock, pytest.raises(socket.gaierror):
        sock.bind(("::1", 0))


def test_entries_of_getaddrinfo_are_addresses(host: str) -> None:
    with (
        harken.getaddrinfo(host, 0, type=harken.SOCK_STREAM, flags=harken.AI_PASSIVE) as results,
        harken.Socket(results[0].family, results[0].type, results[0].proto) as listener,
    ):
        listener.bind(results[0])
        listener.listen()
        port = listener.getsockname()[1]
        with harken.getaddrinfo(host, port, type=harken.SOCK_STREAM) as there, harken.Socket(there[0].family) as client:
            client.connect(there[0])
            with listener.accept()[0]:
                assert client.getpeername() == listener.getsockname()


@needs_ipv6
def test_an_entry_of_another_family_is_refused_by_the_system() -> None:
    with harken.getaddrinfo("::1", 0, type=harken.SOCK_STREAM) as results, harken.Socket() as sock, fails():
        sock.bind(results[0])


BAD_ADDRESSES: list[tuple[Any, tuple[type[Exception], ...]]] = [
    ("127.0.0.1", (TypeError,)),
    (["127.0.0.1", 0], (TypeError,)),
    (None, (TypeError,)),
    ((), (TypeError,)),
    (("127.0.0.1",), (TypeError,)),
    (("127.0.0.1", 0, 0), (TypeError,)),
    (("127.0.0.1", "80"), (TypeError,)),
    (("127.0.0.1", 1.5), (TypeError,)),
    (("127.0.0.1", None), (TypeError,)),
    (("127.0.0.1", 65536), (OverflowError,)),
    (("127.0.0.1", -1), (OverflowError,)),
    (("127.0.0.1", 2**80), (OverflowError,)),
    ((None, 0), (TypeError,)),
    ((1, 0), (TypeError,)),
    (("127.0.0.1\0", 0), (ValueError, TypeError)),
    ((b"\0", 0), (ValueError, TypeError, OSError)),
    (("\udcff", 0), (ValueError, TypeError)),
]


@pytest.mark.parametrize("call", ["bind", "connect", "connect_ex"])
@pytest.mark.parametrize(("address", "expected"), BAD_ADDRESSES, ids=[ascii(address) for address, _ in BAD_ADDRESSES])
def test_bad_addresses_are_refused(kind: Kind, call: str, address: Any, expected: tuple[type[Exception], ...]) -> None:
    with kind() as sock, pytest.raises(expected):
        getattr(sock, call)(address)


@needs_ipv6
@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (("::1",), TypeError),
        (("::1", 0, 0, 0, 0), TypeError),
        (("::1", 0, -1), OverflowError),
        (("::1", 0, 1 << 20), OverflowError),
        (("::1", 0, "0"), TypeError),
        (("::1", 0, 0, "lo"), TypeError),
    ],
    ids=str,
)
def test_bad_ipv6_addresses_are_refused(kind: Kind, address: Any, expected: type[Exception]) -> None:
    with kind(socket.AF_INET6) as sock, pytest.raises(expected):
        sock.bind(address)


@needs_ipv6
@pytest.mark.parametrize("scope", [-1, 1 << 32])
def test_a_scope_that_does_not_fit_is_refused(scope: int) -> None:
    with harken.Socket(socket.AF_INET6) as sock, pytest.raises(OverflowError, match="scope_id"):
        sock.bind(("::1", 0, 0, scope))


@pytest.mark.parametrize(
    "address", [("127.0.0.1", 65536), ("127.0.0.1", "80"), ("127.0.0.1\0", 0), "127.0.0.1"], ids=ascii
)
def test_a_bad_address_names_what_is_wrong(address: Any) -> None:
    with harken.Socket() as sock, pytest.raises((TypeError, ValueError, OverflowError), match=r"port|host|address"):
        sock.bind(address)


# ---------------------------------------------------------------------- unix addresses


@posix_only
@pytest.mark.parametrize("form", [str, os.fsencode, Path], ids=["str", "bytes", "PathLike"])
def test_unix_paths(kind: Kind, form: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the full path may be longer than a sockaddr_un
    if kind is socket.socket and form is Path:
        pytest.skip("the stdlib takes no PathLike")
    with kind(socket.AF_UNIX) as listener, kind(socket.AF_UNIX) as client:
        listener.bind(form("s"))
        listener.listen(1)
        client.connect(form("s"))
        conn, peer = listener.accept()
        with conn:
            assert peer == client.getsockname() == ""
            assert listener.getsockname() == client.getpeername() == conn.getsockname() == "s"
            client.sendall(b"x")
            assert conn.recv(1) == b"x"


@posix_only
def test_a_unix_path_may_be_as_long_as_the_system_allows(kind: Kind, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    room = 108 if LINUX else 104
    with kind(socket.AF_UNIX) as sock:
        for path in ["x" * room, "x" * 10000]:
            with pytest.raises(OSError, match="AF_UNIX path too long"):
                sock.bind(path)
        sock.bind("x" * (room - 1))
        assert sock.getsockname() == "x" * (room - 1)
    assert os.listdir() == ["x" * (room - 1)]


@posix_only
def test_a_name_that_is_no_utf8_survives(kind: Kind, tmp_path: Path, monkeypatch: Any) -> None:
    if not LINUX:
        pytest.skip("file names are UTF-8 here")
    monkeypatch.chdir(tmp_path)
    with kind(socket.AF_UNIX) as sock:
        sock.bind(b"\xff\xfe")
        assert sock.getsockname() == "\udcff\udcfe"
    assert os.listdir(b".") == [b"\xff\xfe"]


@linux_only
def test_abstract_names(kind: Kind) -> None:
    name = f"\0harken-{threading.get_native_id()}-{kind.__module__}"
    for address in (name, name.encode(), name + "\0with another NUL", name.ljust(108, "x")):
        with kind(socket.AF_UNIX) as listener, kind(socket.AF_UNIX) as client:
            listener.bind(address)
            listener.listen(1)
            client.connect(address)
            with listener.accept()[0]:
                assert client.getpeername() == os.fsencode(address)
    with kind(socket.AF_UNIX) as sock, pytest.raises(OSError, match="AF_UNIX path too long"):
        sock.bind(name.ljust(109, "x"))


@linux_only
def test_linux_chooses_a_name_for_the_empty_one(kind: Kind) -> None:
    with kind(socket.AF_UNIX) as sock:
        sock.bind("")
        assert len(sock.getsockname()) == 6
        assert sock.getsockname()[:1] == b"\0"


@posix_only
@pytest.mark.parametrize("address", [5, None, ("a", 1), ["a"]], ids=str)
def test_what_is_no_unix_path_is_refused(kind: Kind, address: Any) -> None:
    with kind(socket.AF_UNIX) as sock, pytest.raises(TypeError):
        sock.bind(address)


@posix_only
def test_a_nul_inside_a_unix_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with harken.Socket(socket.AF_UNIX) as sock, pytest.raises(ValueError, match="null character"):
        sock.bind("a\0b")
    assert os.listdir() == []


# ---------------------------------------------------------------------- handles from elsewhere


HANDLES: list[tuple[str, int, int]] = [
    ("AF_INET", socket.SOCK_STREAM, socket.IPPROTO_TCP),
    ("AF_INET6", socket.SOCK_STREAM, socket.IPPROTO_TCP),
    ("AF_INET", socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    ("AF_UNIX", socket.SOCK_STREAM, 0),
    ("AF_UNIX", socket.SOCK_DGRAM, 0),
]


@pytest.mark.parametrize(("family", "type", "proto"), HANDLES)
def test_a_handle_is_asked_what_it_is(family: str, type: int, proto: int) -> None:
    if not hasattr(socket, family) or (family == "AF_INET6" and not HAS_IPV6):
        pytest.skip(f"no {family} here")
    theirs = socket.socket(getattr(socket, family), type)
    handle = theirs.detach()
    with harken.Socket(fileno=handle) as sock:
        assert (sock.family, sock.type, sock.proto) == (getattr(socket, family), type, proto)
        assert sock.fileno() == handle


def test_what_is_told_about_a_handle_is_not_asked() -> None:
    with harken.Socket(socket.AF_INET6, socket.SOCK_DGRAM, 99, fileno=socket.socket().detach()) as sock:
        assert (sock.family, sock.type, sock.proto) == (socket.AF_INET6, socket.SOCK_DGRAM, 99)


@pytest.mark.parametrize(
    ("handle", "expected"),
    [
        ("7", TypeError),
        (1.0, TypeError),
        (b"7", TypeError),
        (-1, ValueError),
        (-(2**70), ValueError),
        (2**70, OverflowError),
        (999_996, OSError),
    ],
)
def test_what_is_no_handle_is_refused(handle: Any, expected: type[Exception]) -> None:
    with pytest.raises(expected):
        harken.Socket(fileno=handle)


@posix_only
def test_a_descriptor_that_is_no_socket_is_refused_and_left_open(tmp_path: Path) -> None:
    read, write = os.pipe()
    file = os.open(tmp_path, os.O_RDONLY)
    try:
        for number in (read, write, file):
            with pytest.raises(OSError, match=os.strerror(errno.ENOTSOCK)) as caught:
                harken.Socket(fileno=number)
            assert str(number) in "".join(caught.value.__notes__)
            os.fstat(number)
    finally:
        for number in (read, write, file):
            os.close(number)


@posix_only
def test_a_closed_descriptor_is_refused() -> None:
    number = socket.socket().detach()
    os.close(number)
    with fails(errno.EBADF):
        harken.Socket(fileno=number)


@windows_only
def test_a_file_is_no_socket_on_windows(tmp_path: Path) -> None:
    import msvcrt

    with (tmp_path / "file").open("wb") as file, fails(errno.ENOTSOCK):
        harken.Socket(fileno=msvcrt.get_osfhandle(file.fileno()))


def test_a_socket_gets_one_handle_in_its_life() -> None:
    with harken.Socket() as sock:
        handle = sock.fileno()
        with pytest.raises(RuntimeError):
            sock.__init__()
        assert sock.fileno() == handle


@pytest.mark.parametrize("timeout", [None, 0, 2.5])
def test_to_socket_moves_handle_mode_and_protocol(timeout: float | None) -> None:
    with connection() as (client, server):
        server.settimeout(timeout)
        handle = server.fileno()
        with server.to_socket() as moved:
            assert type(moved) is socket.socket
            assert server.fileno() == -1
            assert moved.fileno() == handle
            assert moved.gettimeout() == timeout
            assert (moved.family, moved.type) == (socket.AF_INET, socket.SOCK_STREAM)
            assert moved.proto == (0 if WINDOWS else socket.IPPROTO_TCP)  # there CPython forgets what it is told
            if not WINDOWS:
                assert os.get_blocking(handle) == (timeout is None)
            moved.sendall(b"x")
            assert client.recv(1) == b"x"
            with harken.Socket(fileno=moved.detach()) as back:
                back.sendall(b"y")
                assert client.recv(1) == b"y"


def test_to_socket_also_moves_what_was_accepted_in_a_batch() -> None:
    with listening() as listener, socket.create_connection(listener.getsockname()) as client:
        (server,) = listener.accept_many()
        with server.to_socket() as moved:
            assert moved.gettimeout() == 0
            assert moved.getpeername() == client.getsockname()
    with listening() as listener, listener.to_socket() as moved:
        assert moved.getblocking()
        with socket.create_connection(moved.getsockname()), moved.accept()[0]:
            pass


def test_a_detached_handle_has_the_mode_of_its_timeout() -> None:
    if WINDOWS:
        pytest.skip("Winsock does not tell the mode of a handle")
    with listening() as listener, socket.create_connection(listener.getsockname()):
        listener.accept()[0].close()  # this made the handle non-blocking underneath
        number = listener.detach()
        try:
            assert os.get_blocking(number) is True
        finally:
            os.close(number)


@posix_only
@pytest.mark.parametrize("blocking", [True, False])
def test_taking_a_handle_over_does_not_change_it_for_those_who_share_it(blocking: bool) -> None:
    """O_NONBLOCK is a flag of the open socket, not of the descriptor: a sibling's event loop would hang in accept()."""
    with connection() as (client, server):
        theirs = server.to_socket()
        theirs.setblocking(blocking)
        with theirs, harken.Socket(fileno=theirs.dup().detach()) as sock:
            assert os.get_blocking(theirs.fileno()) is blocking
            assert sock.gettimeout() is None
            call = Call(sock.recv, 1).blocked()
            client.send(b"x")
            assert call.outcome() == b"x"
            sock.settimeout(0.02)
            with pytest.raises(TimeoutError):
                sock.recv(1)


# ---------------------------------------------------------------------- children


CHILD = """
import socket, sys
for number in map(int, sys.argv[1:]):
    try:
        # On Windows a constructor that is told the family does not look at the handle.
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=number)
    except OSError:
        print("closed")
        continue
    try:
        print(*sock.getsockname())
    except OSError:
        print("closed")
    sock.detach()
"""


def seen_by_a_child(*sockets: Any) -> list[str]:
    return python(CHILD, *[sock.fileno() for sock in sockets], close_fds=False).stdout.splitlines()


def test_no_socket_reaches_a_child_by_accident() -> None:
    with (
        listening() as listener,
        harken.Socket() as client,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
        listener.dup() as twin,
        harken.Socket(fileno=socket.socket().detach()) as adopted,
    ):
        adopted.bind(("127.0.0.1", 0))
        client.connect(listener.getsockname())
        (batch,) = listener.accept_many()
        with batch:
            everything = [listener, client, accepted, batch, twin, adopted]
            assert [sock.get_inheritable() for sock in everything] == [False] * 6
            assert seen_by_a_child(*everything) == ["closed"] * 6


def test_a_socket_that_was_made_inheritable_reaches_the_child() -> None:
    with listening() as listener:
        listener.set_inheritable(True)
        assert listener.get_inheritable() is True
        assert seen_by_a_child(listener) == [f"127.0.0.1 {listener.getsockname()[1]}"]
        listener.set_inheritable(False)
        assert seen_by_a_child(listener) == ["closed"]


@posix_only
def test_an_inherited_socket_works_in_the_child() -> None:
    code = "import harken, sys; s = harken.Socket(fileno=int(sys.argv[1])); s.sendall(b'from the child'); s.close()"
    with connection() as (client, server):
        python(code, server.fileno(), pass_fds=[server.fileno()])
        assert receive(client, 14) == b"from the child"


# ---------------------------------------------------------------------- the object


@linux_only
@pytest.mark.parametrize("end", ["client.close()", "del client"])
def test_other_threads_run_while_a_close_lingers(end: str) -> None:
    """The peer reads what the close waits for: without the GIL it could not, and the close would last 100 seconds."""
    code = f"""
import struct, threading, harken, wire
with wire.listening() as listener:
    client = harken.Socket()
    client.setsockopt(harken.SOL_SOCKET, harken.SO_LINGER, struct.pack("ii", 1, 100))
    client.connect(listener.getsockname())
    server, _ = listener.accept()
    wire.fill(client)
    closing = threading.Event()
    def read():
        closing.wait()
        while server.recv(1 << 20):
            pass
        server.close()
    reader = threading.Thread(target=read)
    reader.start()
    closing.set()
    {end}
    reader.join()
"""
    python(code)


def test_an_open_socket_that_is_dropped_warns_and_is_closed(kind: Kind) -> None:
    sockets = [kind()]
    handle = sockets[0].fileno()
    with pytest.warns(ResourceWarning, match=f"unclosed.*{handle}") as kept:
        sockets.clear()
    assert isinstance(kept[0].source, kind)  # the recorded warning holds the object, which is closed all the same
    with fails():
        socket.socket(fileno=handle)


def test_the_warning_of_an_open_socket_has_its_addresses() -> None:
    sockets = [harken.Socket(harken.AF_INET, harken.SOCK_STREAM, 0)]
    sockets[0].bind(("127.0.0.1", 0))
    sockets[0].listen()
    address = sockets[0].getsockname()
    with socket.create_connection(address) as client:
        sockets.append(sockets[0].accept()[0])
        with pytest.warns(ResourceWarning) as told:
            del sockets[1]
        assert str(told[0].message).endswith(f", {address!r}, connected to {client.getsockname()!r}")
        with pytest.warns(ResourceWarning) as told:
            del sockets[0]
        assert str(told[0].message).endswith(f", {address!r}")


@linux_only
def test_the_warning_of_an_open_socket_is_told_whatever_its_path_is() -> None:
    sockets = [harken.Socket(harken.AF_UNIX, harken.SOCK_STREAM, 0)]
    sockets[0].bind(b"\0harken %s\xff\xe9")
    with pytest.warns(ResourceWarning, match="unclosed harken.Socket, handle [0-9]+, b'.x00harken %s.xff.xe9'$"):
        del sockets[0]


def test_a_dropped_socket_that_was_closed_or_given_away_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        closed, detached, moved = harken.Socket(), harken.Socket(), harken.Socket()
        closed.close()
        number = detached.detach()
        theirs = moved.to_socket()
        del closed, detached, moved
        gc.collect()
    harken.Socket(fileno=number).close()
    theirs.close()


def test_a_warning_that_is_an_error_does_not_keep_the_socket_open() -> None:
    code = """
import os, sys, warnings, harken
warnings.simplefilter("error")
sock = harken.Socket()
number = sock.fileno()
del sock
try:
    harken.Socket(fileno=number).detach()
except OSError:
    print("closed")
"""
    done = python(code)
    assert done.stdout == "closed\n"
    assert "unclosed harken.Socket" in done.stderr


def test_a_socket_cannot_be_pickled_or_copied(kind: Kind) -> None:
    with kind() as sock:
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError):
                pickle.dumps(sock, protocol)
        for duplicate in (copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                duplicate(sock)


def test_an_accepted_socket_is_small() -> None:
    with connection() as (_, server):
        assert sys.getsizeof(server) <= 112 + object.__basicsize__  # 16 more where there is no GIL
        assert not hasattr(server, "__dict__")


def test_a_socket_can_be_referred_to_weakly() -> None:
    with harken.Socket() as sock:
        reference = weakref.ref(sock)
        assert reference() is sock
    del sock
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize(
    "arguments",
    [("x",), (None,), (socket.AF_INET, "x"), (socket.AF_INET, socket.SOCK_STREAM, "x"), (2**40,), (1, 2, 3, 4, 5)],
    ids=str,
)
def test_wrong_arguments_make_no_socket(kind: Kind, arguments: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, OverflowError)):
        kind(*arguments)


@pytest.mark.parametrize("timeout", ["x", [], float("nan"), float("inf"), -0.001, -(2**70)], ids=str)
def test_wrong_timeouts_are_refused_and_change_nothing(kind: Kind, timeout: Any) -> None:
    with kind() as sock:
        sock.settimeout(3)
        with pytest.raises((TypeError, ValueError, OverflowError)):
            sock.settimeout(timeout)
        assert sock.gettimeout() == 3


@pytest.mark.parametrize(
    ("backlog", "expected"), [(-1, ValueError), (1.5, TypeError), ("1", TypeError), (2**31, OverflowError)]
)
def test_a_wrong_backlog_is_refused(backlog: Any, expected: type[Exception]) -> None:
    with harken.Socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(expected, match="backlog"):
            sock.listen(backlog)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0


@pytest.mark.parametrize("backlog", [None, 0, 1, 1000, 2**31 - 1], ids=str)
def test_any_backlog_that_is_not_negative_is_taken(backlog: int | None) -> None:
    with harken.Socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(backlog)
        with socket.create_connection(sock.getsockname()), sock.accept()[0]:
            pass


@linux_only
def test_the_flow_leaks_nothing_in_thousands_of_rounds() -> None:
    code = """
import gc, os, resource, socket, struct, harken
def once():
    with harken.Socket() as listener, harken.Socket() as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client.connect(listener.getsockname())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no TIME_WAIT
        for conn in listener.accept_many():
            conn.sendmsg([b"x", b"y"])
            conn.close()
        try:
            client.connect(("a\\0b", 1))
        except ValueError:
            pass
for n in range(3000):
    once()
    if n == 1000:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
gc.collect()
print(len(os.listdir("/proc/self/fd")) < 10, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512)
"""
    assert python(code).stdout == "True True\n"


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda _: harken.Socket(2.0), "family"),
        (lambda _: harken.Socket(harken.AF_INET, "stream"), "type"),
        (lambda _: harken.Socket(harken.AF_INET, harken.SOCK_STREAM, 6.5), "proto"),
        (lambda sock: sock.getsockopt(1.9, 3), "level"),
        (lambda sock: sock.getsockopt(harken.SOL_SOCKET, None), "optname"),
        (lambda sock: sock.setsockopt(harken.SOL_SOCKET, 2.5, 1), "optname"),
        (lambda sock: sock.shutdown("both"), "how"),
    ],
)
def test_what_c_takes_as_an_int_must_be_one(call: Callable[[harken.Socket], object], named: str) -> None:
    with harken.Socket() as sock, pytest.raises(TypeError, match=named):
        call(sock)


def test_what_is_too_large_for_c_is_named() -> None:
    with harken.Socket() as sock, pytest.raises(OverflowError, match="value"):
        sock.setsockopt(harken.SOL_SOCKET, harken.SO_RCVBUF, 2**40)


def test_a_number_of_thousands_of_digits_is_named_all_the_same() -> None:
    huge = 10**5000
    for call, named in [
        (lambda: harken.getaddrinfo(None, huge), "port"),
        (lambda: harken.getaddrinfo(None, 80, huge), "family"),
        (lambda: harken.listen("127.0.0.1:0", backlog=-huge), "backlog"),
        (lambda: harken.listen(huge), "port"),
        (lambda: harken.Socket(huge), "family"),
    ]:
        with pytest.raises((OverflowError, ValueError), match=named):
            call()


def test_sendfile_leaves_the_file_behind_what_was_sent(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"0123456789")
    with connection(harken.Socket) as (client, server), open(tmp_path / "data", "rb") as file:
        assert client.sendfile(file, 2, 5) == 5
        assert file.tell() == 7
        assert server.recv(10) == b"23456"
