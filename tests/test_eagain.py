"""How long a call waits and what it raises then, as its timeout, its flags, the socket's options and the handle's mode
say."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from wire import KINDS, Call, Kind, connection, fill, full_queue, listening, python, wait_until

import harken
from machine import LINUX, WINDOWS, WINE, linux_only, posix_only

DONTWAIT = getattr(socket, "MSG_DONTWAIT", 0)
LIMIT = 0.05  # seconds, of SO_RCVTIMEO and SO_SNDTIMEO as of timeouts
FOR_EVER = "for ever"


@pytest.fixture(params=KINDS, ids=["stdlib", "harken"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


def limit(sock: Any, seconds: float) -> None:
    value = (
        struct.pack("L", int(seconds * 1000)) if WINDOWS else struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    )
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, value)


RECEIVE: dict[str, Callable[[Any, int], object]] = {
    "recv": lambda s, flags: s.recv(1, flags),
    "recv_into": lambda s, flags: s.recv_into(bytearray(1), 0, flags),
    "recvfrom": lambda s, flags: s.recvfrom(1, flags),
    "recvfrom_into": lambda s, flags: s.recvfrom_into(bytearray(1), 0, flags),
}
SEND: dict[str, Callable[[Any, int], object]] = {
    "send": lambda s, flags: s.send(b"x", flags),
    "sendall": lambda s, flags: s.sendall(b"x", flags),
}
if not WINDOWS:
    RECEIVE |= {
        "recvmsg": lambda s, flags: s.recvmsg(1, 0, flags),
        "recvmsg_into": lambda s, flags: s.recvmsg_into([bytearray(1)], 0, flags),
    }
    SEND |= {"sendmsg": lambda s, flags: s.sendmsg([b"x"], [], flags)}
    if LINUX:  # elsewhere a connected socket takes no address
        SEND |= {"sendto": lambda s, flags: s.sendto(b"x", flags, ("127.0.0.1", 9))}
ACCEPT: dict[str, Callable[[Any, int], object]] = {"accept": lambda s, _: s.accept()}
CALLS = RECEIVE | SEND | ACCEPT
OURS = CALLS | {"accept_many": lambda s, _: s.accept_many()}


@contextmanager
def unready(kind: Kind, call: str) -> Iterator[Any]:
    """A socket for which this call has to wait; its timeout is None."""
    if call.startswith("accept"):
        with listening(kind) as sock:
            yield sock
    else:
        with connection(kind) as (sock, _):
            if call in SEND:
                fill(sock)
                sock.setblocking(True)
            yield sock


def outcome(call: Callable[[], object]) -> tuple[type[BaseException], int | None]:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            Call(call).outcome(5)  # the system may find room for one byte more
        except AssertionError:
            raise
        except Exception as error:
            return type(error), getattr(error, "errno", None)
    raise AssertionError("never waits")


MEANINGS = [
    (call, flags, timeout, seconds)
    for call in CALLS
    for flags in ((0, DONTWAIT) if DONTWAIT and call != "accept" else (0,))
    for timeout in (None, 0, LIMIT)
    for seconds in (0, LIMIT)
    if flags or timeout is not None or seconds  # the rest waits for ever
    if timeout is None
    or call in ("recv", "recvmsg", "send", "sendall", "sendmsg", "accept")  # the others go the same way
    if not (WINDOWS and call == "accept" and timeout is None)  # SO_RCVTIMEO is not for accept() there
]


def meaning(kind: Kind, call: str, flags: int, timeout: float | None, seconds: float) -> object:
    at_once = timeout == 0 or (flags and timeout is None)
    with unready(kind, call) as sock:
        if seconds:
            limit(sock, 30 if at_once else seconds)  # longer than anybody waits for the outcome
        sock.settimeout(timeout)
        start = time.monotonic()
        said = outcome(lambda: CALLS[call](sock, flags))
        assert at_once or call in SEND or time.monotonic() - start >= LIMIT / 2
        return said


@pytest.mark.parametrize(("call", "flags", "timeout", "seconds"), MEANINGS)
def test_eagain_means_what_it_means_to_the_stdlib(call: str, flags: int, timeout: float | None, seconds: float) -> None:
    assert meaning(harken.Socket, call, flags, timeout, seconds) == meaning(
        socket.socket, call, flags, timeout, seconds
    )


@posix_only
def test_peeking_without_waiting_tells_whether_the_client_is_there(kind: Kind) -> None:
    with connection(kind) as (client, server):
        with pytest.raises(BlockingIOError):
            server.recv(1, socket.MSG_PEEK | DONTWAIT)
        client.send(b"x")
        wait_until(lambda: peeked(server) == b"x")
        server.recv(1)
        client.close()
        wait_until(lambda: peeked(server) == b"")


def peeked(sock: Any) -> Any:
    try:
        return sock.recv(1, socket.MSG_PEEK | DONTWAIT)
    except BlockingIOError:
        return None


@pytest.mark.parametrize("call", OURS)
def test_without_a_limit_it_waits_for_ever(call: str) -> None:
    """The control for all of the above."""
    with unready(harken.Socket, call) as sock:
        waiting = Call(lambda: [OURS[call](sock, 0) for _ in range(100_000)]).blocked()
        sock.close()
        with pytest.raises(OSError, match=r"Bad file|not a socket|is closed"):
            waiting.outcome()


@posix_only
@pytest.mark.parametrize("call", OURS)
@pytest.mark.parametrize("seconds", [0, LIMIT])
@pytest.mark.parametrize("blocks", [True, False])
def test_a_timeout_is_obeyed_whatever_mode_others_have_set(call: str, seconds: float, blocks: bool) -> None:
    """O_NONBLOCK belongs to all who share the socket: a duplicate, a parent, a child. Ours is the timeout."""
    with unready(harken.Socket, call) as sock, sock.dup() as twin:
        limit(sock, seconds)
        for timeout, expected in ((None, BlockingIOError), (0, BlockingIOError), (LIMIT, TimeoutError)):
            sock.settimeout(timeout)
            twin.setblocking(blocks)
            assert os.get_blocking(sock.fileno()) is blocks
            if timeout == 0 and call.startswith("accept"):
                continue  # it keeps the mode that it was given, for one system call less
            if timeout is not None or seconds:
                assert outcome(lambda: OURS[call](sock, 0))[0] is expected


@posix_only
@pytest.mark.parametrize("call", OURS)
def test_a_wait_without_timeout_does_not_depend_on_the_mode(call: str) -> None:
    with unready(harken.Socket, call) as sock, sock.dup() as twin:
        twin.setblocking(False)
        waiting = Call(OURS[call], sock, 0).blocked()
        if call in ACCEPT or call == "accept_many":
            with socket.create_connection(sock.getsockname()):
                close(waiting.outcome())
            return
        twin.shutdown(socket.SHUT_RDWR)
        if call in SEND:
            with pytest.raises(BrokenPipeError):
                waiting.outcome()
        else:
            waiting.outcome()


def close(taken: Any) -> None:
    for sock in taken:
        if isinstance(sock, harken.Socket):
            sock.close()


@posix_only
def test_connect_obeys_its_timeout(kind: Kind) -> None:
    with full_queue() as address, kind() as client:
        limit(client, LIMIT)
        with pytest.raises(BlockingIOError) as caught:
            client.connect(address)
        assert caught.value.errno == errno.EINPROGRESS
    with full_queue() as address, kind() as client:
        limit(client, LIMIT)
        assert client.connect_ex(address) == errno.EINPROGRESS


@linux_only
@pytest.mark.parametrize("timeout", [0, LIMIT])
def test_connect_obeys_its_timeout_although_a_duplicate_blocks(timeout: float) -> None:
    with full_queue() as address, harken.Socket() as client, client.dup() as twin:
        client.settimeout(timeout)
        twin.setblocking(True)
        expected = errno.EAGAIN if timeout else errno.EINPROGRESS
        assert Call(client.connect_ex, address).outcome(5) == expected


@linux_only
@pytest.mark.parametrize("timeout", [None, LIMIT])
@pytest.mark.parametrize("flag", ["MSG_ERRQUEUE", "MSG_OOB"])
def test_urgent_data_and_the_error_queue_are_not_waited_for(flag: str, timeout: float | None) -> None:
    number = 0x2000 if flag == "MSG_ERRQUEUE" else socket.MSG_OOB
    with connection() as (client, server):
        client.send(b"there is something to read, but not of that kind")
        server.recv(1)
        server.settimeout(timeout)
        with pytest.raises((BlockingIOError, OSError)) as caught:
            Call(server.recvmsg, 1, 0, number).outcome(5)
        assert caught.value.errno in (errno.EAGAIN, errno.EINVAL)


@linux_only
def test_a_datagram_without_room_is_told_where_the_kernel_does_not_wait(kind: Kind) -> None:
    """poll() says that it can be sent, for its own buffer is empty: whoever believed that would spin."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with kind(fileno=ends[0].detach()) as sender, ends[1]:
        sender.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                sender.send(b"x")


# ---------------------------------------------------------------------- MSG_WAITALL


@pytest.mark.parametrize("call", ["recv", "recv_into", "recvfrom"])
@pytest.mark.parametrize("blocks", [True, False])
def test_waitall_waits_for_all(kind: Kind, call: str, blocks: bool) -> None:
    """On a handle that does not block, as all are on Windows, the parts are gathered by us."""
    if WINE and kind is socket.socket:
        pytest.skip("Wine ends a recv() with MSG_WAITALL at the first part")
    with connection(kind) as (client, server), server.dup() as twin:
        if not blocks:
            if WINDOWS or kind is socket.socket:
                pytest.skip("there nobody shares the mode" if WINDOWS else "the stdlib does what the mode says")
            twin.setblocking(False)
        buffer = bytearray(6)
        arguments: dict[str, tuple[Any, ...]] = {"recv": (6,), "recv_into": (buffer, 6), "recvfrom": (6,)}
        waiting = Call(getattr(server, call), *arguments[call], socket.MSG_WAITALL)
        for part in (b"ab", b"cd"):
            waiting.blocked()
            client.sendall(part)
        waiting.blocked()
        client.sendall(b"ef+")
        got = waiting.outcome()
        assert (got[0] if call == "recvfrom" else buffer if call == "recv_into" else got) == b"abcdef"
        assert server.recv(9) == b"+"


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("end", ["shutdown", "limit"])
def test_waitall_ends_with_what_there_is(kind: Kind, blocks: bool, end: str) -> None:
    with connection(kind) as (client, server), server.dup() as twin:
        if not blocks and not WINDOWS:
            if kind is socket.socket:
                pytest.skip("the stdlib does what the mode says")
            twin.setblocking(False)
        client.sendall(b"abc")
        if end == "limit":
            limit(server, LIMIT)
        else:
            client.shutdown(socket.SHUT_WR)
        assert Call(server.recv, 9, socket.MSG_WAITALL).outcome() == b"abc"


@posix_only
@pytest.mark.parametrize("timeout", [0, LIMIT])
def test_waitall_with_a_timeout_takes_what_is_there(kind: Kind, timeout: float) -> None:
    with connection(kind) as (client, server):
        client.sendall(b"abc")
        wait_until(lambda: peeked(server) == b"a")
        server.settimeout(timeout)
        assert server.recv(9, socket.MSG_WAITALL) == b"abc"


# ---------------------------------------------------------------------- signals


@posix_only
def test_sendall_hears_a_signal_while_its_peer_reads_steadily() -> None:
    """send(2) that has sent a part says so, and not EINTR: between two of them handlers run."""
    code = """
import signal, socket, threading, harken
class Heard(Exception): pass
def heard(*_): raise Heard
signal.signal(signal.SIGALRM, heard)
here, there = socket.socketpair()
got, buffer, data = 0, bytearray(1 << 16), bytes(1 << 30)
def read():
    global got
    while n := there.recv_into(buffer):
        got += n
reader = threading.Thread(target=read)
reader.start()
with harken.Socket(fileno=here.detach()) as sock:
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        sock.sendall(data)
    except Heard:
        pass
reader.join()
there.close()
print(0 < got < len(data))
"""
    assert python(code).stdout == "True\n"


@linux_only
@pytest.mark.parametrize("call", ["send(b'x')", "sendall(b'x')", "sendmsg([b'x'])", "sendto(b'x', 0, ADDRESS)"])
def test_sending_to_a_dead_peer_raises_no_sigpipe(call: str) -> None:
    """Where SIGPIPE is at its default, as in programs that embed Python."""
    code = f"""
import signal, socket, harken
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
here, there = socket.socketpair()
there.close()
ADDRESS = b"nobody"
with harken.Socket(fileno=here.detach()) as sock:
    try:
        sock.{call}
    except OSError as error:
        print(type(error).__name__)
"""
    assert python(code).stdout == ("OSError\n" if "sendto" in call else "BrokenPipeError\n")  # EISCONN
