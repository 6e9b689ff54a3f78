"""docs/differences.md lists everything that differs from `socket.socket`, and nothing that does not."""

from __future__ import annotations

import inspect
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wire import Call, Kind, connection

import harken
from machine import WINDOWS

PAGE = Path(__file__).parent.parent / "docs" / "differences.md"
if not PAGE.exists():
    pytest.skip("the documentation is not here", allow_module_level=True)


def rows(heading: str) -> list[list[str]]:
    part = PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


VALUES = [row[0] for row in rows("The same name, another behaviour")]
NAMES = {row[0].strip("`"): row[1] for row in rows("Names that only one of them has")}


def public(kind: Kind) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("__")}


def test_every_name_that_only_one_of_them_has_is_told() -> None:
    theirs, ours = public(socket.socket), public(harken.Socket)
    told_ours = {name for name, whose in NAMES.items() if whose == "ours"}
    told_theirs = NAMES.keys() - told_ours
    messages = {"sendmsg", "recvmsg", "recvmsg_into"}  # on Windows the standard library has not got them
    assert ours - theirs == told_ours | (messages if WINDOWS else set())
    assert theirs - ours <= told_theirs
    elsewhere = {name for name in told_theirs if "on Windows" in NAMES[name] or name == "sendmsg_afalg"}
    assert told_theirs - (theirs - ours) <= elsewhere


def parameters(kind: Kind, name: str) -> list[str] | None:
    try:
        signature = inspect.signature(getattr(kind, name))
    except (TypeError, ValueError):
        return None
    return [parameter.name for parameter in signature.parameters.values()]


@pytest.mark.parametrize("name", sorted(public(socket.socket) & public(harken.Socket)))
def test_parameters_have_the_same_names(name: str) -> None:
    theirs, ours = parameters(socket.socket, name), parameters(harken.Socket, name)
    if theirs is None and (told := re.match(rf"{name}\((.*?)\)", getattr(socket.socket, name).__doc__ or "")):
        count = len(re.findall(r"\w+", told[1].replace("flags=0", "flags").replace("buffersize=0", "").split("->")[0]))
        assert ours is None or "args" in ours or len(ours) - 1 <= max(count, 1) + 1
    elif theirs == ["self", "object"]:  # from CPython 3.13 on, for an argument that has no name
        assert ours is not None
        assert len(ours) == 2
    elif theirs is not None:
        assert ours == theirs
        assert callable(getattr(harken.Socket, name))


def test_the_constructor_is_the_same() -> None:
    assert parameters(harken, "Socket") == ["family", "type", "proto", "fileno"]
    assert list(inspect.signature(socket.socket).parameters) == ["family", "type", "proto", "fileno"]


# ---------------------------------------------------------------------- each row, shown


def outcome(call: Callable[[], object]) -> object:
    try:
        result = call()
    except Exception as error:
        return type(error).__name__
    if hasattr(result, "close"):
        result.close()
    return result


def with_one(
    call: Callable[[Any], object], family: int = socket.AF_INET, type: int = socket.SOCK_STREAM
) -> Callable[[Kind], object]:
    def check(kind: Kind) -> object:
        with kind(family, type) as sock:
            return outcome(lambda: call(sock))

    return check


def listen_with(*arguments: Any) -> Callable[[Kind], object]:
    def check(kind: Kind) -> object:
        with kind() as sock:
            sock.bind(("127.0.0.1", 0))
            if said := outcome(lambda: sock.listen(*arguments)):
                return said
            if sys.platform == "linux" and not arguments:
                from harken._socket import queue_of

                return queue_of(sock.fileno())[1] > 128 or "the system grants no more"
            return None

    return check


def in_flight(kind: Kind) -> object:
    with connection(kind) as (client, server):
        waiting = Call(server.recv, 1).blocked()
        server.close()
        client.send(b"x")
        return outcome(waiting.outcome)


def mode(blocks: bool, timeout: float | None) -> Callable[[Kind], object]:
    def check(kind: Kind) -> object:
        with connection(kind) as (client, server), server.dup() as twin:
            server.settimeout(timeout)
            twin.setblocking(blocks)
            if timeout is not None:
                waiting = Call(server.recv, 1)
                waiting.join(1)
                client.send(b"x")
                return outcome(waiting.outcome)
            later = threading.Timer(0.1, client.send, [b"x"])
            later.start()
            try:
                return outcome(lambda: server.recv(1))
            finally:
                later.join()

    return check


def piped(kind: Kind) -> object:
    with connection(kind) as (client, _):
        read, write = os.pipe()
        os.write(write, b"piped")
        os.close(write)
        with open(read, "rb") as file:
            return outcome(lambda: client.sendfile(file))


def system_calls_of_sendfile(kind: Kind) -> object:
    class Watched:
        """A regular file, which tells whether it was read."""

        mode, reads = "rb", 0

        def __init__(self) -> None:
            self.file = Path(__file__).open("rb")  # noqa: SIM115  closed below
            self.fileno, self.seek = self.file.fileno, self.file.seek

        def read(self, size: int) -> bytes:
            self.reads += 1
            return self.file.read(size)

    file = Watched()
    with connection(kind) as (client, _), file.file:
        client.sendfile(file, 0, 10)
        return file.reads


def scoped(kind: Kind) -> object:
    """The address is nobody's; the interface is there."""
    with kind(socket.AF_INET6) as sock:
        try:
            sock.bind(("fe80::bad:1%lo", 0))
        except OSError as error:
            return error.errno
        return None


def truncated(kind: Kind) -> object:
    with kind(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(30)
        sock.sendto(b"longer", sock.getsockname())
        length = len(sock.recv(4, socket.MSG_TRUNC | socket.MSG_PEEK))
        assert sock.recv_into(bytearray(4), 0, socket.MSG_TRUNC) == 6
        return length


def duplicated(kind: Any) -> object:
    class Subclass(kind):  # type: ignore[misc]
        pass

    with Subclass() as sock, sock.dup() as twin:
        return type(twin) is Subclass


def unclosed(kind: Kind) -> object:
    import gc
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sock = kind()
        shown = repr(sock)
        del sock
        gc.collect()
    return shown in str(caught[0].message)


def audited(kind: Kind) -> object:
    name = "socket.socket" if kind is socket.socket else "harken.Socket"
    code = "import sys, socket, harken; sys.addaudithook(lambda e, a: print(e) if e == 'socket.bind' else None)\n"
    code += f"with {name}() as s: s.bind(('127.0.0.1', 0))"
    from wire import CHILD_ENVIRONMENT

    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=CHILD_ENVIRONMENT).stdout


WIN, POSIX, LINUX = "only on Windows", "only on POSIX", "only on Linux"
SHOWN: dict[str, tuple[Callable[[Kind], object] | str, str]] = {
    "`proto` of a TCP socket": (with_one(lambda s: s.proto), ""),
    "`listen()`": (listen_with(), LINUX),
    "`listen(None)`": (listen_with(None), ""),
    "`listen(-1)`": (listen_with(-1), ""),
    "`accept()`": ("test_accept.py, by a shim that makes accept(2) fail", ""),
    "`close()`": (in_flight, LINUX),
    "a timeout of None on a handle that others made non-blocking": (mode(False, None), POSIX),
    "a timeout on a handle that others made blocking": (mode(True, 0), POSIX),
    "`setsockopt()` of a number too large for C": (
        with_one(lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 2**40)), ""),
    '`setblocking("no")`': (
        with_one(lambda s: s.setblocking("no")) if sys.version_info < (3, 12) else "alike since Python 3.12", ""),
    "a NUL inside a unix path": (with_one(lambda s: s.connect("/nowhere\0/x"), getattr(socket, "AF_UNIX", 0)), LINUX),
    "a path-like as a unix address": (
        with_one(lambda s: s.connect(Path("/nowhere/x")), getattr(socket, "AF_UNIX", 0)), POSIX),
    "an entry of `harken.getaddrinfo()` as an address": (
        with_one(lambda s: s.bind(harken.getaddrinfo("127.0.0.1", 0)[0])), ""),
    'an IPv6 address with its scope in the host, `("fe80::1%eth0", 80)`': (scoped, LINUX),
    "a scope id that is negative or larger than 32 bits": (
        with_one(lambda s: s.bind(("::1", 0, 0, 2**32)), socket.AF_INET6), ""),
    "an address of another family than IPv4, IPv6, unix and vsock": (
        with_one(lambda s: s.getsockname()[0], getattr(socket, "AF_NETLINK", 0), socket.SOCK_DGRAM), LINUX),
    "a host with a label of more than 63 characters": (with_one(lambda s: s.connect(("a" * 64 + ".invalid", 1))), ""),
    "`recv(n, MSG_TRUNC)` of a longer datagram": (truncated, LINUX),
    "`dup()` of an object of a subclass": (duplicated, ""),
    "`sendfile()`": (system_calls_of_sendfile, LINUX),
    "`sendfile()` of a pipe": (piped, LINUX),
    "SO_RCVTIMEO on Windows": ("the value is alike", WIN),
    "MSG_WAITALL on Windows": ("test_eagain.py", WIN),
    "the ResourceWarning of a socket that was not closed": (unclosed, ""),
    "audit events": (audited, ""),
}  # fmt: skip


def test_every_row_is_shown() -> None:
    assert list(SHOWN) == VALUES


@pytest.mark.parametrize("what", SHOWN)
def test_each_row_is_a_real_difference(what: str) -> None:
    check, where = SHOWN[what]
    if isinstance(check, str):
        pytest.skip(check)
    if (where == LINUX and sys.platform != "linux") or (where == POSIX and WINDOWS):
        pytest.skip(where)
    theirs, ours = check(socket.socket), check(harken.Socket)
    assert ours != theirs, f"no difference any more: {ours}"
