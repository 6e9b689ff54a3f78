"""Arguments that run code of their own, are far too long, or have a wrong type: none of them may do harm."""

from __future__ import annotations

import errno
import itertools
import os
import random
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wire import KINDS, Kind, fails

import harken
from machine import HAS_IPV6, WINDOWS, posix_only


@pytest.fixture(params=KINDS, ids=["stdlib", "harken"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


# ---------------------------------------------------------------------- code of the caller's inside an argument


class Fresh(tuple):  # type: ignore[type-arg]
    """Answers ``[at]`` and iteration with objects that nobody else keeps alive."""

    __slots__ = ()

    def __getitem__(self, at: Any) -> Any:
        item = tuple.__getitem__(self, at)
        return bytes(bytearray(b"203.0.113.9")).decode() if isinstance(item, str) else 65000

    def __iter__(self) -> Any:
        return iter([self[n] for n in range(tuple.__len__(self))])

    def __len__(self) -> int:
        return 7


@pytest.mark.parametrize("call", ["bind", "connect", "connect_ex"])
@pytest.mark.parametrize(
    ("family", "host"),
    [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, b"127.0.0.1"), (socket.AF_INET, "localhost")]
    + ([(socket.AF_INET6, "::1")] if HAS_IPV6 else []),
    ids=str,
)
def test_the_parts_of_an_address_are_read_once(kind: Kind, call: str, family: int, host: Any) -> None:
    """As the standard library reads it: not what a subclass answers, and fresh each time."""
    with kind(family) as listener, kind(family) as sock:
        listener.bind((host, 0))
        if call == "bind":
            sock.bind(Fresh((host, 0, 0, 0)[: 2 if family == socket.AF_INET else 4]))
            assert sock.getsockname()[0] == listener.getsockname()[0]
        else:
            listener.listen(1)
            getattr(sock, call)(Fresh((host, listener.getsockname()[1])))
            assert sock.getpeername() == listener.getsockname()


class Closing:
    """Closes the socket at the moment when C asks for the argument's value."""

    def __init__(self, sock: Any, value: Any) -> None:
        self.sock, self.value = sock, value

    def close(self) -> Any:
        self.sock.close()
        return self.value

    __index__ = __float__ = __fspath__ = close

    def __iter__(self) -> Any:
        return iter(self.close())

    def __len__(self) -> int:
        return len(self.close())

    def __buffer__(self, flags: int) -> memoryview:
        return memoryview(self.close())


class ClosingBuffer:
    """The same for a call that takes a number, too: a buffer and nothing else."""

    def __init__(self, sock: Any, value: bytes) -> None:
        self.sock, self.value = sock, value

    def __buffer__(self, flags: int) -> memoryview:
        self.sock.close()
        return memoryview(self.value)


SOL, KEEP = socket.SOL_SOCKET, socket.SO_KEEPALIVE
CLOSED_BY_AN_ARGUMENT: dict[str, Callable[[Any], object]] = {
    "bind": lambda s: s.bind(("127.0.0.1", Closing(s, 0))),
    "connect": lambda s: s.connect(("127.0.0.1", Closing(s, 9))),
    "recv": lambda s: s.recv(Closing(s, 1)),
    "recv's flags": lambda s: s.recv(1, Closing(s, 0)),
    "recv_into": lambda s: s.recv_into(bytearray(1), Closing(s, 1)),
    "send": lambda s: s.send(b"x", Closing(s, 0)),
    "sendall": lambda s: s.sendall(b"x", Closing(s, 0)),
    "sendmsg's buffers": lambda s: s.sendmsg(Closing(s, [b"x"])),
    "sendmsg's ancillary data": lambda s: s.sendmsg([b"x"], Closing(s, [])),
    "accept_many": lambda s: s.accept_many(Closing(s, 1)),
    "getsockopt's length": lambda s: s.getsockopt(SOL, KEEP, Closing(s, 4)),
    "settimeout": lambda s: s.settimeout(Closing(s, 1)),
}
if sys.version_info >= (3, 12):
    CLOSED_BY_AN_ARGUMENT |= {
        "sendmsg's buffer": lambda s: s.sendmsg([b"x", Closing(s, b"x")]),
        "a buffer of recv_into": lambda s: s.recv_into(Closing(s, bytearray(1))),
        "a buffer of send": lambda s: s.send(Closing(s, b"x")),
        "a buffer of setsockopt": lambda s: s.setsockopt(SOL, KEEP, ClosingBuffer(s, b"\1\0\0\0")),
    }


@pytest.mark.parametrize("function", CLOSED_BY_AN_ARGUMENT.values(), ids=CLOSED_BY_AN_ARGUMENT.keys())
def test_an_argument_may_close_its_socket(function: Callable[[Any], object]) -> None:
    """Whoever closes it makes its number free for others: nothing may be done with that one."""
    stranger: list[Any] = []

    class Replaced(harken.Socket):
        def close(self) -> None:
            super().close()
            if not stranger:
                stranger.append(socket.socket())

    sock = Replaced()
    number = sock.fileno()
    with fails(errno.WSAENOTSOCK if WINDOWS else errno.EBADF):
        function(sock)
    with stranger[0] as other:
        if os.name == "posix":
            assert other.fileno() == number  # the number was free, and somebody else has it
        assert other.getsockopt(SOL, KEEP) == 0
        assert other.gettimeout() is None
        if os.name == "posix":
            assert os.get_blocking(other.fileno())
            assert other.getsockname()[1] == 0


class Lying(int):
    """An int that compares as it likes."""

    def __lt__(self, other: Any) -> bool:
        return False

    __gt__ = __le__ = __ge__ = __lt__


def test_a_subclass_of_int_cannot_change_its_value() -> None:
    with harken.Socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(ValueError, match="backlog"):
            sock.listen(Lying(-1))
    with pytest.raises(ValueError, match="negative"):
        harken.Socket(fileno=Lying(-1))
    if HAS_IPV6:
        with harken.Socket(socket.AF_INET6) as sock, pytest.raises(OverflowError, match="scope_id"):
            sock.bind(("::1", 0, 0, Lying(-1)))


@posix_only
@pytest.mark.parametrize("form", [bytes, bytearray, str])
def test_a_path_is_read_once(form: Callable[..., Any], tmp_path: Path, monkeypatch: Any) -> None:
    class Other(bytes):
        def __bytes__(self) -> bytes:
            return b"elsewhere" * 100  # noqa: PLE0308  what ruff does not work out

        def __len__(self) -> int:
            return 1000

    monkeypatch.chdir(tmp_path)
    with harken.Socket(socket.AF_UNIX) as sock:
        sock.bind(Other(b"here") if form is bytes else form("here", "ascii") if form is bytearray else "here")
        assert sock.getsockname() == "here"


# ---------------------------------------------------------------------- far too long


@pytest.mark.parametrize("length", [1013, 200_000])
@pytest.mark.parametrize("call", ["getaddrinfo", "bind", "connect"])
def test_a_name_that_is_too_long_is_refused_before_it_is_encoded(call: str, length: int) -> None:
    """Composing characters takes a time that grows with the square of their number: minutes for these."""
    host = ("a" + "\u0301\u0316" * length)[:length]
    with harken.Socket() as sock, pytest.raises(UnicodeError, match=f"{call}.*host.*{length} characters") as caught:
        harken.getaddrinfo(host, 80) if call == "getaddrinfo" else getattr(sock, call)((host, 80))
    assert len(str(caught.value)) < 500


def test_a_name_that_idna_makes_short_enough_is_no_error_of_length() -> None:
    with pytest.raises(UnicodeError) as caught:  # the label is too long, and the codec says so
        harken.getaddrinfo("e\u0301" * 100, 80)
    assert "253" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("a." * 127 + "a", 80),
        ("a." * 500_000, 80),
        (b"a." * 500_000, 80),
        ("\u00e9." * 200, 80),
        ("127.0.0.1", "x" * 1_000_000),
    ],
    ids=["254", "a million", "bytes", "idna", "a service"],
)
def test_a_host_too_long_for_dns_is_not_looked_up(host: Any, port: Any) -> None:
    with pytest.raises(socket.gaierror) as caught:
        harken.getaddrinfo(host, port)
    assert len(str(caught.value)) < 1000


# ---------------------------------------------------------------------- of any shape


class Index:
    def __index__(self) -> int:
        return 1


class Number:
    """What is no number for C, though it becomes one."""

    def __float__(self) -> float:
        return 1.0

    __int__ = __float__  # type: ignore[assignment]


SHAPES: dict[str, Any] = {
    "None": None, "0": 0, "1": 1, "-1": -1, "2**31": 2**31, "2**63": 2**63, "2**70": 2**70, "1.0": 1.0,
    "nan": float("nan"), "True": True, "'x'": "x", "b'x'": b"x", "bytearray": bytearray(b"xy"),
    "writable": memoryview(bytearray(b"abcd")), "gaps": memoryview(bytearray(8))[::2], "read-only": memoryview(b"abcd"),
    "list": [], "tuple": (), "buffers": [b"x"], "object": object(), "index": Index(), "number": Number(),
    "address": ("127.0.0.1", 9), "control": [(1, 2)], "more": [(1, 2, 3, 4)], "level": [("1", 2, b"")],
}  # fmt: skip
TAKES = {
    "recv": 2, "recv_into": 3, "recvfrom": 2, "recvfrom_into": 3, "recvmsg": 3, "recvmsg_into": 3, "send": 2,
    "sendall": 2, "sendto": 3, "sendmsg": 4, "listen": 1, "shutdown": 1, "getsockopt": 3, "setsockopt": 4,
    "settimeout": 1, "bind": 1, "connect": 1, "connect_ex": 1, "set_inheritable": 1, "sendfile": 3, "makefile": 2,
    "dup": 1, "fileno": 1, "accept": 1, "getsockname": 1, "getpeername": 1, "gettimeout": 1,
}  # fmt: skip


if sys.version_info >= (3, 12):  # before, the standard library took a truth for a number
    TAKES["setblocking"] = 1


def said(kind: Kind, name: str, arguments: list[Any], closed: bool) -> str:
    ours, theirs = socket.socketpair()
    sock = kind(fileno=ours.detach())
    sock.settimeout(0)
    if closed:
        sock.close()
    try:
        result = getattr(sock, name)(*arguments)
        if hasattr(result, "close"):
            result.close()
        return "ok"
    except Exception as error:
        number = error.errno if isinstance(error, OSError) and not isinstance(error, socket.gaierror) else ""
        return f"{type(error).__name__} {number}"
    finally:
        sock.close()
        theirs.close()
        Path("x").unlink(missing_ok=True)
        Path("xy").unlink(missing_ok=True)
        Path("abcd").unlink(missing_ok=True)


def meant(name: str, shapes: tuple[str, ...]) -> bool:
    """Differs on purpose, as docs/differences.md tells, or where two mistakes are made at once."""
    return (
        (name == "listen" and shapes in (("None",), ("-1",)))
        or (name == "setsockopt" and not {"2**31", "2**63", "2**70", "None"}.isdisjoint(shapes))
        or (name in ("bind", "connect", "connect_ex", "sendto", "sendmsg") and "gaps" in shapes[-1:])
        or (name in ("sendmsg", "recvmsg_into") and "-1" in shapes)  # flags that no call has
    )


@posix_only
@pytest.mark.parametrize("name", TAKES)
@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
def test_arguments_are_accepted_or_refused_as_by_the_stdlib(
    name: str, closed: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    draw = random.Random(name)
    tried = 0
    for count in range(TAKES[name] + 1):
        choices = [*itertools.product(SHAPES, repeat=count)]
        for shapes in choices if len(choices) < 100 else draw.sample(choices, 200):
            arguments = [SHAPES[shape] for shape in shapes]
            if name.endswith("sockopt") and count > 1 and draw.random() < 0.7:
                arguments[:2] = SOL, KEEP
            if not meant(name, shapes):
                tried += 1
                ours, theirs = (said(one, name, arguments, closed) for one in (harken.Socket, socket.socket))
                assert ours == theirs, (name, shapes, arguments)
    assert tried > 20
