"""The standard library's meanings, tested on both: messages, files, default timeouts, enums."""

from __future__ import annotations

import array
import gc
import io
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wire import KINDS, Call, Kind, connection, listening, python, receive, wait_until

import harken
from machine import LINUX, WINDOWS, linux_only, needs_ipv6, posix_only, windows_only


@pytest.fixture(params=KINDS, ids=["stdlib", "harken"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def default_timeout() -> Iterator[None]:
    yield
    socket.setdefaulttimeout(None)


# ---------------------------------------------------------------------- messages


def test_recvfrom_of_a_connection_tells_no_address(kind: Kind) -> None:
    with connection(kind) as (client, server):
        client.sendall(b"abcdef")
        wait_until(lambda: server.recv(6, socket.MSG_PEEK) == b"abcdef")
        data, address = server.recvfrom(2)
        buffer = bytearray(b"----")
        assert (data, buffer) == (b"ab", b"----")
        assert server.recvfrom_into(buffer, 2) == (2, address)
        assert buffer == b"cd--"
        if not WINDOWS:
            assert address is None
        client.close()
        assert receive(server, 9) == b"ef"
        assert server.recvfrom(5)[0] == b""


def test_datagrams_have_addresses(kind: Kind) -> None:
    with kind(socket.AF_INET, socket.SOCK_DGRAM) as here, kind(socket.AF_INET, socket.SOCK_DGRAM) as there:
        here.bind(("127.0.0.1", 0))
        there.bind(("127.0.0.1", 0))
        assert there.sendto(b"hail", here.getsockname()) == 4
        assert here.recvfrom(9) == (b"hail", there.getsockname())
        assert there.sendto(b"again", 0, here.getsockname()) == 5
        assert here.recvfrom_into(bytearray(9)) == (5, there.getsockname())
        if not WINDOWS:
            assert there.sendmsg([b"a ", b"message"], [], 0, here.getsockname()) == 9
            assert here.recvmsg(4) == (b"a me", [], socket.MSG_TRUNC, there.getsockname())
        assert here.type is socket.SOCK_DGRAM
        with pytest.raises(TypeError):
            there.sendto(b"x")
        with pytest.raises(TypeError):
            there.sendto(b"x", 0, here.getsockname(), 0)


@linux_only
@pytest.mark.parametrize("kind", KINDS)
def test_the_broadcast_address_has_a_name(kind: Kind) -> None:
    with kind(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("<broadcast>", 0))
        assert sock.getsockname()[0] == "255.255.255.255"
        with pytest.raises(PermissionError):  # as SO_BROADCAST is off
            sock.sendto(b"x", ("<broadcast>", 9))
        for host in ("<broadcast", "<broadcast>.", "<>", "<"):
            with pytest.raises(OSError, match=r"Errno -\d"):
                sock.connect((host, 9))


class Index:
    def __index__(self) -> int:
        return 5


@needs_ipv6
@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_an_address_may_be_an_object_with_index(kind: Kind) -> None:
    with kind(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.connect(("::1", Index(), Index(), 0))
        assert sock.getpeername()[1] == 5


@posix_only
def test_recvmsg_takes_descriptors_and_addresses(kind: Kind, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    ours, theirs = socket.socketpair()
    with kind(fileno=ours.detach()) as sock, theirs, tempfile.TemporaryFile() as file:
        socket.send_fds(theirs, [b"two"], [file.fileno(), file.fileno()])
        data, control, flags, _ = sock.recvmsg(9, socket.CMSG_SPACE(8))
        assert data == b"two"
        assert flags & socket.MSG_CTRUNC == 0
        ((level, kind_of_data, numbers),) = control
        assert (level, kind_of_data) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        received = array.array("i", numbers)
        for number in received:
            os.close(number)
        assert len(received) == 2
        theirs.send(b"abcdefgh")
        parts = [bytearray(3), bytearray(2)]
        assert sock.recvmsg_into(parts)[:3] == (5, [], 0)
        assert parts == [b"abc", b"de"]
        assert socket.recv_fds is not None
        assert sock.recvmsg(9, 0, socket.MSG_PEEK)[0] == b"fgh"
        assert sock.sendmsg([b"x"], [], 0, None) == 1


@posix_only
def test_descriptors_without_room_are_not_left_open(kind: Kind) -> None:
    ours, theirs = socket.socketpair()
    with kind(fileno=ours.detach()) as sock, theirs, tempfile.TemporaryFile() as file:
        for room in (0, socket.CMSG_LEN(0), socket.CMSG_LEN(4)):
            socket.send_fds(theirs, [b"x"], [file.fileno()] * 3)
            before = len(os.listdir("/dev/fd"))
            _, control, flags, _ = sock.recvmsg(1, room)
            for _, _, numbers in control:
                for number in array.array("i", numbers[: len(numbers) // 4 * 4]):
                    os.close(number)
            assert len(os.listdir("/dev/fd")) == before
            assert flags & socket.MSG_CTRUNC


@linux_only
def test_descriptors_are_closed_when_nobody_gets_them() -> None:
    """There is no memory for what recvmsg() would return."""
    code = """
import os, socket, tempfile, harken, _testcapi
ours, theirs = socket.socketpair()
sock = harken.Socket(fileno=ours.detach())
file = tempfile.TemporaryFile()
lost = tried = 0
for n in range(1, 40):
    socket.send_fds(theirs, [b"x"], [file.fileno()])
    before = len(os.listdir("/proc/self/fd"))
    got = (b"", [])
    try:
        _testcapi.set_nomemory(n, n + 1)
        try:
            got = sock.recvmsg(1, 100)  # a name that is there already: it takes no memory to give it a value
        finally:
            _testcapi.remove_mem_hooks()
    except MemoryError:
        tried += not got[1]  # or it hit the test itself
        try:
            sock.setblocking(False)
            for _, _, numbers in sock.recvmsg(1, 100)[1]:  # it failed before the call
                os.close(int.from_bytes(numbers, "little"))
        except BlockingIOError:
            pass
        sock.setblocking(True)
    for _, _, numbers in got[1]:
        os.close(int.from_bytes(numbers, "little"))
    lost += len(os.listdir("/proc/self/fd")) - before
print(lost, tried > 2)
os._exit(0)
"""
    pytest.importorskip("_testcapi")
    assert python(code).stdout == "0 True\n"


@windows_only
def test_windows_refuses_ancillary_data() -> None:
    with connection() as (client, server):
        client.sendall(b"ab")
        assert server.recvmsg(1)[:3] == (b"a", [], 0)
        assert server.recvmsg_into([bytearray(1)])[0] == 1
        with pytest.raises(OSError, match=r"10045|not supported"):
            server.recvmsg(1, 100)


def test_wrong_ancillary_data_are_a_type_error(kind: Kind) -> None:
    if not hasattr(kind, "sendmsg"):
        pytest.skip("the stdlib has none there")
    with connection(kind) as (client, _):
        for wrong in (5, [5], [()], [(1, 2)], [(1, 2, b"", 4)], [("1", 2, b"")], [(1, 2, 5)], [(1.5, 2, b"")]):
            with pytest.raises(TypeError):
                client.sendmsg([b"x"], wrong)


# ---------------------------------------------------------------------- files


def test_a_file_keeps_the_connection_open(kind: Kind) -> None:
    with connection(kind) as (client, server):
        file = server.makefile("rwb")
        other = server.makefile("r", encoding="utf-8")
        number = server.fileno()
        server.close()
        server.close()
        assert server.fileno() == number
        client.sendall(b"line\nrest")
        assert file.readline() == b"line\n"
        file.write(b"answer")
        file.flush()
        assert receive(client, 6) == b"answer"
        file.close()
        file.close()
        assert server.fileno() == number
        other.close()
        assert server.fileno() == -1
        assert receive(client, 1) == b""


def test_a_file_that_is_dropped_closes_it_too(kind: Kind) -> None:
    with connection(kind) as (_, server):
        file = server.makefile("rb")
        server.close()
        assert server.fileno() != -1
        del file
        gc.collect()
        assert server.fileno() == -1


def test_a_file_that_is_closed_leaves_the_socket_open(kind: Kind) -> None:
    with connection(kind) as (client, server):
        with server.makefile("w", newline="\n") as file:
            file.write("text\n")
        client.settimeout(5)
        assert receive(client, 5) == b"text\n"
        server.send(b"still")
        assert receive(client, 5) == b"still"


@pytest.mark.parametrize(
    ("mode", "buffering", "expected"),
    [
        ("r", None, io.TextIOWrapper), ("", None, io.TextIOWrapper), ("rw", None, io.TextIOWrapper),
        ("rb", None, io.BufferedReader), ("wb", 100, io.BufferedWriter), ("rwb", -1, io.BufferedRWPair),
        ("rb", 0, socket.SocketIO), ("wb", 0, socket.SocketIO),
        ("r", 0, ValueError), ("x", None, ValueError), ("a", None, ValueError), ("rb+", None, ValueError),
    ],
)  # fmt: skip
def test_files_are_of_the_stdlibs_classes(kind: Kind, mode: str, buffering: int | None, expected: Any) -> None:
    with connection(kind) as (_, server):
        if issubclass(expected, Exception):
            with pytest.raises(expected):
                server.makefile(mode, buffering)
            server.close()
            assert server.fileno() == -1  # nothing holds it
            return
        with server.makefile(mode, buffering) as file:
            assert type(file) is expected
            assert mode != "rw" or file.mode == "rw"
            assert set(mode) >= {"r", "w"} or file.fileno() == server.fileno()


def test_a_file_raises_timeout_error(kind: Kind) -> None:
    with connection(kind) as (_, server):
        server.settimeout(0.01)
        with server.makefile("rb") as file:
            with pytest.raises(TimeoutError):
                file.read(1)
            with pytest.raises(OSError, match="timed out object"):
                file.read(1)
        server.setblocking(False)
        with server.makefile("rb", 0) as raw:
            assert raw.read(1) is None


# From CPython 3.13 on, a SocketIO that was not made complains when it is dropped.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_file_that_is_not_made_takes_no_other_with_it() -> None:
    """Wherever the making of one is interrupted: close() of the socket waits for those that are open, and no others."""
    with connection(harken.Socket) as (_, server):
        for line in range(100):
            with server.makefile("rb"):
                ahead = [line]

                def interrupt(frame: Any, event: str, _: object, ahead: list[int] = ahead) -> Any:
                    if not frame.f_code.co_filename.endswith("socket.py"):
                        return None
                    if event != "return":
                        ahead[0] -= 1
                        if ahead[0] < 0:
                            raise KeyboardInterrupt
                    return interrupt

                trace = sys.gettrace()
                sys.settrace(interrupt)
                made = None
                try:
                    made = server.makefile("rb", 0)
                except KeyboardInterrupt:
                    pass
                finally:
                    sys.settrace(trace)
                interrupted = made is None
                if made is not None:
                    made.close()
                gc.collect()
                assert server._io_refs == 1, line
            assert server._io_refs == 0, line
            if not interrupted:
                break
        assert 3 <= line < 99


def test_the_stdlibs_servers_and_clients_run_on_it() -> None:
    code = """
import socket, harken
socket.socket = harken.Socket
import http.client, http.server, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        assert type(self.connection) is harken.Socket
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *_): pass
with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for _ in range(20):
        client = http.client.HTTPConnection(*server.server_address)
        client.request("GET", "/")
        assert client.getresponse().read() == b"ok"
        client.close()
    server.shutdown()
from multiprocessing.connection import Client, Listener
with Listener(("127.0.0.1", 0), authkey=b"k") as listener:
    def answer():
        with listener.accept() as one: one.send(one.recv() * 2)
    thread = threading.Thread(target=answer); thread.start()
    with Client(listener.address, authkey=b"k") as client:
        client.send("ab"); print(client.recv())
    thread.join()
"""
    assert python(code).stdout == "abab\n"


# ---------------------------------------------------------------------- the default timeout


@pytest.mark.usefixtures("default_timeout")
@pytest.mark.parametrize("seconds", [None, 0, 2.5])
def test_the_default_timeout_is_that_of_new_sockets(kind: Kind, seconds: float | None) -> None:
    with listening(kind) as listener, socket.create_connection(listener.getsockname()):
        socket.setdefaulttimeout(seconds)
        with (
            kind() as sock,
            listener.accept()[0] as taken,
            # Winsock knows nothing of a handle without an address.
            taken.dup() if WINDOWS else kind(fileno=kind().detach()) as other,
        ):
            for one in (sock, taken, other):
                assert one.gettimeout() == seconds
                if not WINDOWS:
                    assert os.get_blocking(one.fileno()) is (seconds is None)
        if LINUX:
            with kind(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
                assert sock.gettimeout() == 0


@pytest.mark.usefixtures("default_timeout")
def test_a_listener_of_harkens_blocks_whatever_it_is() -> None:
    socket.setdefaulttimeout(0.5)
    with harken.listen("127.0.0.1:0") as (listener,), socket.create_connection(listener.address):
        assert listener.gettimeout() is None
        for taken in listener.accept_many():
            with taken:
                assert taken.gettimeout() == 0


def test_the_default_timeout_applies_if_socket_is_imported_later() -> None:
    code = """
import sys, harken
with harken.Socket() as sock: assert sock.gettimeout() is None
assert "socket" not in sys.modules
import socket
socket.setdefaulttimeout(3)
with harken.Socket() as sock: print(sock.gettimeout())
"""
    assert python(code).stdout == "3.0\n"


# ---------------------------------------------------------------------- enums


def test_family_and_type_are_enums(kind: Kind) -> None:
    with kind(socket.AF_INET, socket.SOCK_STREAM) as sock:
        assert sock.family is socket.AF_INET
        assert sock.type is socket.SOCK_STREAM
        assert (sock.family.name, sock.type.name) == ("AF_INET", "SOCK_STREAM")
    with harken.Socket() as sock:
        for name in ("family", "type", "proto"):
            with pytest.raises(AttributeError):
                setattr(sock, name, 1)


def test_family_and_type_are_enums_if_nobody_has_imported_socket() -> None:
    code = """
import sys, harken
with harken.listen("127.0.0.1:0") as (listener,):
    assert listener.port and listener.url
    assert "socket" not in sys.modules and "enum" not in sys.modules
    print(listener.family.name, listener.type.name)
"""
    assert python(code).stdout == "AF_INET SOCK_STREAM\n"


# ---------------------------------------------------------------------- sendfile


class OnlyReads:
    def __init__(self, data: bytes) -> None:
        self.data = io.BytesIO(data)
        self.read = self.data.read


@pytest.mark.parametrize("count", [None, 5, 100_000, 500_000])
def test_sendfile_takes_whatever_can_be_read(kind: Kind, count: int | None) -> None:
    data = os.urandom(200_000)
    with connection(kind) as (client, server):
        call = Call(client.sendfile, OnlyReads(data), 0, count)
        expected = data[:count]
        assert receive(server, len(expected)) == expected
        assert call.outcome() == len(expected)
        with pytest.raises(AttributeError):
            client.sendfile(OnlyReads(data), 5)


@pytest.mark.parametrize("make", ["file", "bytes"])
@pytest.mark.parametrize(("offset", "count"), [(0, 100_000), (7, 100_000), (7, None), (0, 65536), (0, 65537), (3, 1)])
def test_sendfile_sends_count_bytes_and_no_more(
    kind: Kind, make: str, offset: int, count: int | None, tmp_path: Path
) -> None:
    data = os.urandom(200_000)
    (tmp_path / "data").write_bytes(data)
    expected = data[offset:][:count]
    with (tmp_path / "data").open("rb") if make == "file" else io.BytesIO(data) as file:
        with connection(kind) as (client, server):
            call = Call(client.sendfile, file, offset, count)
            assert receive(server, len(expected)) == expected
            assert call.outcome() == len(expected)
            client.close()
            assert receive(server, 1) == b""
        assert file.tell() == offset + len(expected)


def test_sendfile_of_text_is_refused(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    with connection(kind) as (client, _), (tmp_path / "text").open() as file:
        with pytest.raises(ValueError, match="binary"):
            client.sendfile(file)
        with pytest.raises(TypeError):
            client.sendfile(io.StringIO("text"))
        with pytest.raises(TypeError, match="count"):
            client.sendfile(io.BytesIO(b"x"), 0, 1.5)
    with kind(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(ValueError, match="SOCK_STREAM"):
        sock.sendfile(io.BytesIO(b"x"))


@pytest.mark.parametrize("end", ["timeout", "error"])
def test_an_interrupted_sendfile_leaves_the_file_where_it_came_to(end: str) -> None:
    """To the byte, also within what one send(2) was given."""
    data = os.urandom(1 << 20) * 16
    with io.BytesIO(data) as file, connection() as (client, server):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 30_000)
        if end == "timeout":
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.sendfile(file, 11)
        else:
            call = Call(client.sendfile, file, 11).blocked()
            client.shutdown(socket.SHUT_WR)
            with pytest.raises(BrokenPipeError if not WINDOWS else OSError):
                call.outcome()
        client.close()
        got = receive(server, len(data))
        assert file.tell() == 11 + len(got)
        assert got == data[11 : file.tell()]
        assert got


# ---------------------------------------------------------------------- options and modes


@pytest.mark.parametrize("size", [1, 3, 4, 16, 1024])
def test_an_option_is_as_long_as_the_system_made_it(kind: Kind, size: int) -> None:
    with socket.socket() as plain, kind() as sock:
        arguments = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, size)
        assert sock.getsockopt(*arguments) == plain.getsockopt(*arguments)
        assert len(sock.getsockopt(*arguments)) <= 4
        for wrong in (-1, 1025, 2**31 - 1):
            with pytest.raises(OSError, match="buflen"):
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, wrong)


@posix_only
@pytest.mark.parametrize("timeout", [None, 0, 3])
def test_a_listener_of_an_acceptor_keeps_its_mode(timeout: float | None) -> None:
    """Its acceptor takes batches, and must not be held up where one ends."""
    with harken.listen("127.0.0.1:0") as listeners, listeners.acceptor():
        listener = listeners[0]
        assert not os.get_blocking(listener.fileno())
        listener.settimeout(timeout)
        assert listener.gettimeout() == timeout
        assert not os.get_blocking(listener.fileno())
    with harken.Socket() as sock:  # the control
        sock.settimeout(timeout)
        assert os.get_blocking(sock.fileno()) is (timeout is None)


@posix_only
def test_settimeout_sets_the_mode_that_a_duplicate_has_changed(kind: Kind) -> None:
    with kind() as sock, sock.dup() as twin:
        twin.setblocking(False)
        assert not os.get_blocking(sock.fileno())
        sock.settimeout(None)
        assert os.get_blocking(sock.fileno())
