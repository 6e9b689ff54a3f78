"""asyncio's host and port: harken listens on what asyncio would, and never on more."""

from __future__ import annotations

import asyncio
import enum
import errno
import socket
import textwrap
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from test_asyncio import Way, echo
from wire import fails

import harken
import harken.asyncio
from children import needs_root, run
from machine import HAS_IPV6, LINUX, WINDOWS, linux_only, needs_ipv6

Start = Callable[..., Awaitable[Any]]
INVALID = "nobody.invalid"


class Host(enum.StrEnum):
    HERE = "127.0.0.1"


class Port(enum.IntEnum):
    ANY = 0


class Text(str):
    """Not what it says of itself."""

    def __str__(self) -> str:
        return "0.0.0.0"

    __repr__ = __str__


async def opened(create: Start, host: Any, port: Any, **options: Any) -> Any:
    """The addresses, with 0 for a port that the system chose; or the class of the error."""
    try:
        server = await create(asyncio.Protocol, host, port, **options)
    except Exception as error:
        return type(error)
    chosen = {name[:2] for name in (sock.getsockname() for sock in server.sockets) if isinstance(name, tuple)}
    server.close()
    await server.wait_closed()
    asked = {port, *(map(int, [port]) if isinstance(port, str) and port.isdigit() else ())} if port else {0}
    return sorted((host, number if number in asked or number < 1024 else 0) for host, number in chosen)


def agree(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, type) and isinstance(ours, type):
        return issubclass(ours, theirs)
    return bool(theirs == ours)


HOSTS: list[Any] = [
    None, "", b"", "127.0.0.1", b"127.0.0.1", "localhost", Host.HERE, Text("127.0.0.1"), "LOCALHOST", "127.0.0.1 ",
    [""], [None], ["127.0.0.1", None], ["127.0.0.1", ""], ["127.0.0.1"], ("127.0.0.1",), {"127.0.0.1"}, [b"127.0.0.1"],
    ["127.0.0.1", "127.0.0.1"], ["localhost", "127.0.0.1"], [Host.HERE, "127.0.0.1"], ["127.0.0.1", b""],
    ("127.0.0.1", 7401), ("127.0.0.1", True), ["127.0.0.1", 0.5], bytearray(b"127.0.0.1"), memoryview(b"127.0.0.1"),
    "127.0.0.1?reuse_port=1", "127.0.0.1?backlog=1", "unix:/tmp/not-a-host", "unix:@not-a-host", "127.0.0.1:0", "*",
    "[127.0.0.1]", "[::1]", "[::1]:0", ":0", "fd://0", "systemd:x", "tcp://127.0.0.1", "a/b", "127.0.0.1%x", "%", "?",
    "127.0.0.1\0.example", "0.0.0.0", "<any>", 5, 0, True, 1.5, object(), INVALID, [INVALID, "127.0.0.1"],
    *(["::1", "::", "::ffff:127.0.0.1", ["::1", "127.0.0.1"], "fe80::1%nope"] if HAS_IPV6 else []),
]  # fmt: skip
PORTS: list[Any] = [
    None, 0, "0", "", b"", b"0", Port.ANY, " 0", "+0", "nosuch", -1, 65536, 70000, "65536", "-1", "0-5", "8000-8001",
    "0?reuse_port=1", "0:0", "0/x", True, False, 1.0, "1.0", object(), [], 10**30, "0x0", "\0", "0\0",
]  # fmt: skip


def differs(host: Any, port: Any) -> str:
    """Why harken does something else than asyncio of Python 3.11 to 3.14 on this machine's C library; else empty."""
    nul = "\0" in repr(port).replace("\\x00", "\0") or "\0" in repr(host).replace("\\x00", "\0")
    if nul:
        return "C reads a text up to its NUL: for '\\0' asyncio opens any port, for a host what stands before it"
    if isinstance(port, (bool, float)) or not isinstance(port, (int, str, bytes, type(None))):
        return "asyncio takes True for port 1, for an address in digits 1.5 too; other types are an OSError for names"
    if port in (-1, 65536, 70000, "65536", "-1", 10**30):
        return "asyncio opens port 0 for 65536 and 4464 for 70000, where the C library reads it; here OverflowError"
    if isinstance(host, (bytes, bytearray, memoryview)) and not host:
        return "a server that listens nowhere"
    if isinstance(port, Port) and host not in ("127.0.0.1", ["127.0.0.1"]):
        return "asyncio takes an IntEnum with addresses in digits only"
    if isinstance(host, (tuple, list)) and any(isinstance(one, (int, float)) for one in host):
        return "of two mistakes the one that is found first"
    if WINDOWS and host == ["localhost", "127.0.0.1"]:
        return "a name's entries have protocol 0 there, digits have 6: asyncio takes one address for two"
    if port is not None:
        return ""
    if host == "*":
        return "what glibc makes of it depends on whether a port is there"
    if isinstance(host, (int, harken.Bind)) and not isinstance(host, bool):
        return "without a port an int is a bind"
    if isinstance(host, str) and any(sign in host for sign in ":/?[") and host.count(":") < 2:
        return "without a port it is a bind, or an error of one"
    if isinstance(host, str) and host in ("[::1]:0", "[::1]", "fd://0", "tcp://127.0.0.1"):
        return "without a port it is a bind"
    return ""


class Offline(asyncio.SelectorEventLoop):
    """The system's resolver, which asks nobody else."""

    async def getaddrinfo(self, host: Any, port: Any, *, flags: int = 0, **hints: Any) -> Any:  # type: ignore[override]
        if host not in (None, "localhost", "LOCALHOST"):
            flags |= socket.AI_NUMERICHOST
        return socket.getaddrinfo(host, port, flags=flags, **hints)


def test_what_is_opened_is_what_asyncio_opens_for_every_host_and_port() -> None:
    async def test() -> list[tuple[Any, ...]]:
        theirs = asyncio.get_running_loop().create_server
        seen = []
        for host in HOSTS:
            for port in PORTS:
                expected, got = await opened(theirs, host, port), await opened(harken.asyncio.create_server, host, port)
                if not agree(expected, got) and not differs(host, port):
                    seen.append((host, port, expected, got))
                # Whatever differs: nothing is opened that asyncio would not open, but for binds.
                if isinstance(got, list) and port is not None:
                    assert isinstance(expected, list) or isinstance(port, Port), (host, port, expected, got)
                    assert isinstance(port, Port) or {one[0] for one in got} <= {one[0] for one in expected}, (
                        host,
                        port,
                    )
        return seen

    with asyncio.Runner(loop_factory=Offline) as runner:
        assert runner.run(test()) == []


@pytest.mark.parametrize(
    "host",
    [
        ("127.0.0.1", 7401), ["127.0.0.1", 7401], ("127.0.0.1", "7401"), (7401, "127.0.0.1"), ("localhost", 7401),
        ("::1", "7401"), ("::1", 7401), ("127.0.0.1", Port.ANY), ("127.0.0.1", ":7401"), ("127.0.0.1", "*:7401"),
        ("127.0.0.1", "7401-7409"), ("127.0.0.1", "tcp://:7401"), ("127.0.0.1", harken.Bind(7401)),
        (b"127.0.0.1", 7401),
        ("127.0.0.1", "tcp6://*:7401"), ["127.0.0.1", "127.0.0.2", 7401], (Host.HERE, 7401), ("127.0.0.1", "07401"),
    ],
)  # fmt: skip
def test_an_address_given_as_a_tuple_opens_nothing_else(host: Any) -> None:
    async def test() -> None:
        for create in (harken.asyncio.create_server, harken.asyncio.start_server):
            with pytest.raises(TypeError) as refused:
                await create(echo, host)
            text = str(refused.value)
            assert "host=" in text  # both right forms
            assert "port=" in text
            assert "one bind, '" in text

    Way("selector").run(test)


@pytest.mark.parametrize("several", [False, True])
def test_a_bind_beside_a_port_has_its_port_already(several: bool) -> None:
    bind = harken.Bind("127.0.0.1:7401")  # also a tuple, which is not one of hosts

    async def test() -> None:
        for create in (harken.asyncio.create_server, harken.asyncio.start_server):
            with pytest.raises(ValueError, match=r"^127\.0\.0\.1:7401 has its port already$"):
                await create(echo, [bind] if several else bind, 7402)

    Way("selector").run(test)


@pytest.mark.parametrize(
    "host", [b"127.0.0.1", bytearray(b"12"), memoryview(b"12"), [b"\x01\x02", 5], (None, 7401), ("", 7401)]
)
def test_bytes_and_empty_hosts_are_refused(host: Any) -> None:
    async def test() -> None:
        with pytest.raises((TypeError, OSError, ValueError)):
            await harken.asyncio.start_server(echo, host)

    Way("selector").run(test)


@pytest.mark.parametrize("several", [False, True])
def test_hosts_without_a_port_and_binds_may_stand_together(several: bool) -> None:
    async def test() -> None:
        binds: list[Any] = ["127.0.0.1", "127.0.0.1:0"] if several else ["127.0.0.1:0", 0, ":0"]
        async with await harken.asyncio.start_server(echo, binds) as server:
            assert len(server.sockets) == 2 if several else 3 + 2 * HAS_IPV6

    Way("selector").run(test)


def test_a_family_is_for_binds_too() -> None:
    async def test() -> None:
        for bind in (":0", 0, "localhost:0", "tcp4://:0", "tcp4://127.0.0.1:0", ":40000-50000", "tcp://*:0?backlog=5"):
            async with await harken.asyncio.start_server(echo, bind, family=socket.AF_INET) as server:
                assert {one.family for one in server.sockets} == {socket.AF_INET}
        for bind in ("tcp6://:0", "systemd:web", "unix:@x", "fd://0", harken.Bind("tcp6://:0")):
            with pytest.raises(ValueError, match="family"):
                await harken.asyncio.start_server(echo, bind, family=socket.AF_INET)
        for port in (0, None):
            with pytest.raises((OSError, ValueError), match="family"):
                await harken.asyncio.start_server(echo, ":0" if port is None else None, port, family=12345)

    Way("selector").run(test)


class Resolver(asyncio.SelectorEventLoop):
    """Knows names that the system does not."""

    def __init__(self, *answers: Any) -> None:
        super().__init__()
        self.asked: list[Any] = []
        self.answers = answers or (("127.0.0.1",),)

    async def getaddrinfo(self, host: Any, port: Any, **hints: Any) -> Any:  # type: ignore[override]
        self.asked.append(host)
        number = port if isinstance(port, int) else 0
        return [
            (socket.AF_INET6 if ":" in one[0] else socket.AF_INET, hints["type"], 6, "", (one[0], number, *one[1:]))
            for one in self.answers
        ]


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("a.name", 0), (["a.name"], 0), (["a.name", "b.name"], 0), ("a.name", None), ("a.name:0", None),
        (["a.name:0"], None), (["a.name", "b.name:0"], None), (harken.Bind("tcp://a.name:0?backlog=7"), None),
        ("tcp4://a.name:0", None), ("127.0.0.1", "a-service"), ("a.name:a-service", None), ("a.name:40000-50000", None),
    ],
)  # fmt: skip
def test_the_loops_own_resolver_is_asked_for_every_name(host: Any, port: Any) -> None:
    async def test() -> None:
        async with await harken.asyncio.start_server(echo, host, port) as server:
            assert {one.getsockname()[0] for one in server.sockets} == {"127.0.0.1"}
        loop: Any = asyncio.get_running_loop()
        assert loop.asked

    with asyncio.Runner(loop_factory=Resolver) as runner:
        runner.run(test())


def test_the_loops_resolver_is_not_asked_for_numeric_addresses() -> None:
    async def test() -> None:
        for host, port in (("127.0.0.1", 0), (["127.0.0.1"], "0"), (None, 0), ("127.0.0.1:0", None), (":0", None)):
            async with await harken.asyncio.start_server(echo, host, port):
                pass
        loop: Any = asyncio.get_running_loop()
        assert loop.asked == []

    with asyncio.Runner(loop_factory=Resolver) as runner:
        runner.run(test())


@needs_ipv6
def test_the_addresses_of_a_name_share_one_port_and_keep_their_options() -> None:
    async def test() -> None:
        for host, port in (("a.name", 0), ("a.name:40000-50000", None), ("a.name:0?backlog=7", None)):
            async with await harken.asyncio.start_server(echo, host, port) as server:
                assert [one.getsockname()[0] for one in server.sockets] == ["::1", "127.0.0.1"]
                assert len({one.getsockname()[1] for one in server.sockets}) == 1
                if "backlog" in host and LINUX:
                    assert {one.backlog for one in server.sockets} == {7}  # type: ignore[attr-defined]

    with asyncio.Runner(loop_factory=lambda: Resolver(("::1", 0, 0), ("127.0.0.1",), ("::1", 0, 0))) as runner:
        runner.run(test())


def test_the_error_for_an_unknown_name_is_both_asyncios_and_harkens() -> None:
    async def test() -> None:
        for host, port in ((INVALID, 80), ([INVALID, "127.0.0.1"], 0), (f"{INVALID}:80", None)):
            with pytest.raises(socket.gaierror) as unknown:
                await harken.asyncio.start_server(echo, host, port)
            assert isinstance(unknown.value, harken.ListenError)
            assert unknown.value.step == "getaddrinfo"

    Way("selector").run(test)


def test_a_resolver_that_finds_nothing() -> None:
    class Empty(Resolver):
        async def getaddrinfo(self, *_: Any, **__: Any) -> Any:
            return []

    async def test() -> None:
        with pytest.raises(OSError, match="empty list"):
            await harken.asyncio.start_server(echo, "a.name", 0)

    with asyncio.Runner(loop_factory=Empty) as runner:
        runner.run(test())


def test_what_is_too_long_is_refused_before_it_is_encoded() -> None:
    """IDNA takes minutes for it."""

    async def test() -> None:
        for host, port in (("a" + "\u0301\u0316" * 100_000, 80), (["a" + "\u0301\u0316" * 100_000], None)):
            with pytest.raises(UnicodeError):
                await harken.asyncio.start_server(echo, host, port)

    Way("selector").run(test)


SCOPES = """
import asyncio, harken.asyncio

async def scopes(host, port):
    async with await harken.asyncio.create_server(asyncio.Protocol, host, port) as server:
        return [sock.getsockname()[3] for sock in server.sockets]

async def main():
    found = [await scopes(host, port) for host, port in asked]
    async def resolver(host, port, **hints):
        return [(socket.AF_INET6, hints["type"], 6, "", (address[0], port, *address[1:])) for address in answers]
    asyncio.get_running_loop().getaddrinfo = resolver
    tell(found=found, resolved=await scopes("a.name", 0))

asyncio.run(main())
"""


@linux_only
@needs_root
def test_the_name_of_an_interface_need_not_be_ascii() -> None:
    code = """
    index = socket.if_nametoindex("büro0")
    asked = ([f"fe80::c%{index}"], 0), (f"fe80::c%{index}", 0), (f"[fe80::c%{index}]:0", None)
    answers = ("fe80::c", 0, index), (f"fe80::c%{index}", 0, 0), ("fe80::c%büro0", 0, 0)
    assert index == 7
    """
    setup = """ip link add name büro0 index 7 type veth peer name other index 8
    ip link set büro0 up; ip link set other up; ip addr add fe80::c/64 dev büro0 nodad"""
    assert run(textwrap.dedent(code) + SCOPES, setup=setup) == {"found": [[7], [7], [7]], "resolved": [7]}


@linux_only
@needs_root
def test_a_scope_that_a_resolver_gives_is_a_number_also_where_an_interface_is_called_like_that() -> None:
    code = "asked, answers = (), [('fe80::c', 0, 7)]\n"
    setup = """ip link add name 8 index 7 type veth peer name 7 index 8
    ip link set 7 up; ip link set 8 up; ip addr add fe80::c/64 dev 8 nodad; ip addr add fe80::c/64 dev 7 nodad"""
    assert run(code + SCOPES, setup=setup) == {"found": [], "resolved": [7]}


def test_an_unbound_socket_gets_a_free_port() -> None:
    async def test() -> None:
        for make in (socket.socket, harken.Socket):
            if WINDOWS:  # which gives a port by bind() only
                for start in (asyncio.start_server, harken.asyncio.start_server):
                    with make(socket.AF_INET) as unbound, fails(errno.EINVAL):
                        await start(echo, sock=unbound)
                continue
            async with await harken.asyncio.start_server(echo, sock=make(socket.AF_INET)) as server:
                assert server.sockets[0].getsockname()[1]
                reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
                writer.write(b"x")
                assert await reader.read(1) == b"x"
                writer.close()

    Way("selector").run(test)
