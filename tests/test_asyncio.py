"""harken.asyncio: the same as asyncio's own servers, on every loop, and what is better."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import gc
import importlib.util
import inspect
import json
import os
import socket
import struct
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Never, get_type_hints

import pytest
from wire import python, wait_until

import harken
import harken.asyncio
from harken._socket import queue_of
from machine import HAS_IPV6, LINUX, WINDOWS, linux_only, needs_ipv6, open_sockets, posix_only

if TYPE_CHECKING:
    import ssl

HAS_UVLOOP = importlib.util.find_spec("uvloop") is not None
Start = Callable[..., Awaitable[Any]]


class Way:
    """A loop, and how connections get there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.options: dict[str, Any] = {"engine": "accept"} if name == "thread" else {}

    def new_loop(self) -> asyncio.AbstractEventLoop:
        if self.name == "uvloop":
            import uvloop

            return uvloop.new_event_loop()
        if self.name == "proactor":
            return asyncio.ProactorEventLoop()  # type: ignore[attr-defined,unused-ignore]
        return asyncio.SelectorEventLoop()

    def run(self, test: Callable[[], Awaitable[Any]]) -> Any:
        async def bounded() -> Any:
            task = asyncio.ensure_future(test())
            await asyncio.wait({task}, timeout=30)
            while not task.done():  # a server that waits for a connection takes more than one word
                task.cancel("took too long")
                await asyncio.wait({task}, timeout=0.1)
            return task.result()

        with asyncio.Runner(loop_factory=self.new_loop) as runner:
            return runner.run(bounded())

    async def create_server(self, *args: Any, **options: Any) -> harken.asyncio.Server:
        return await harken.asyncio.create_server(*args, **self.options, **options)

    async def start_server(self, *args: Any, **options: Any) -> harken.asyncio.Server:
        return await harken.asyncio.start_server(*args, **self.options, **options)


if HAS_UVLOOP:
    with asyncio.Runner(loop_factory=Way("uvloop").new_loop) as first:  # libuv opens a pipe for the process
        first.run(asyncio.sleep(0))

WAYS = [
    "selector",
    "thread",  # on Windows the only one: there is no descriptor to poll
    "any",  # as on a loop that is not known
    pytest.param("uvloop", marks=pytest.mark.skipif(not HAS_UVLOOP, reason="uvloop is not installed")),
    pytest.param("proactor", marks=pytest.mark.skipif(not WINDOWS, reason="only Windows has the proactor loop")),
]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    if request.param == "any":
        monkeypatch = request.getfixturevalue("monkeypatch")  # not always: what patches runs in one thread
        monkeypatch.setattr("harken.asyncio._transports._makes_transports", lambda loop: False)  # noqa: ARG005
    return Way(request.param)


class Recorder(asyncio.Protocol):
    """Echoes, and writes down what happened."""

    def __init__(self, seen: list[Any]) -> None:
        self.seen = seen

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.seen.append("made")

    def data_received(self, data: bytes) -> None:
        self.seen.append(data)
        self.transport.write(data)

    def eof_received(self) -> None:
        self.seen.append("eof")

    def connection_lost(self, error: Exception | None) -> None:
        self.seen.append(("lost", error))


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1000):
            writer.write(data)
            await writer.drain()
    writer.close()


def address_of(server: Any) -> Any:
    return server.sockets[0].getsockname()


async def ask(address: Any, data: bytes = b"hello", **options: Any) -> bytes:
    """What the server echoes."""
    reader, writer = await asyncio.open_connection(*address[:2], **options)
    try:
        writer.write(data)
        return await reader.readexactly(len(data))
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.001)


def connect(address: Any) -> socket.socket:
    return socket.create_connection(address[:2], 10)


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if WINDOWS else "ii", 1, 0))
    client.close()


def caught(loop: asyncio.AbstractEventLoop) -> list[dict[str, Any]]:
    """What the loop's exception handler is told from now on."""
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    return told


# ---------------------------------------------------------------------- the same as asyncio's own: the table


async def seen_by_a_protocol(create: Start) -> object:
    seen: list[Any] = []
    made: list[Recorder] = []

    def factory() -> Recorder:
        made.append(Recorder(seen))
        return made[-1]

    async with await create(factory, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*address_of(server))
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        transport = made[0].transport
        names = [transport.get_extra_info(name) for name in ("peername", "sockname")]
        sock = transport.get_extra_info("socket")
        facts = (
            names == [writer.get_extra_info("sockname"), writer.get_extra_info("peername")],
            sock.family == socket.AF_INET,
            sock.type == socket.SOCK_STREAM,
            sock.getsockname() == names[1],
            transport.is_closing(),
            transport.get_protocol() is made[0],
            transport.get_extra_info("nonsense", "default"),
        )
        writer.write_eof()
        rest = await reader.read()
        writer.close()
        await writer.wait_closed()
        await until(lambda: len(seen) == 4)
        return facts, rest, seen


async def seen_by_a_server_object(create: Start) -> object:
    server = await create(asyncio.Protocol, "127.0.0.1", 0, start_serving=False)
    seen: list[Any] = [server.is_serving(), len(server.sockets), server.get_loop() is asyncio.get_running_loop()]
    with pytest.raises(ConnectionRefusedError):  # it does not listen yet
        await asyncio.open_connection(*address_of(server))
    await server.start_serving()
    await server.start_serving()
    seen.append(server.is_serving())
    forever = asyncio.create_task(server.serve_forever())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError) as twice:
        await server.serve_forever()
    seen.append("already being awaited" in str(twice.value))
    forever.cancel()
    seen.append((await asyncio.gather(forever, return_exceptions=True))[0])
    seen += [server.is_serving(), len(server.sockets)]
    server.close()
    await server.wait_closed()
    with pytest.raises(RuntimeError) as closed:
        await server.serve_forever()
    seen.append("is closed" in str(closed.value))
    return [type(one) if isinstance(one, BaseException) else one for one in seen]


async def seen_when_closed_while_served_forever(create: Start) -> object:
    server = await create(asyncio.Protocol, "127.0.0.1", 0)
    forever = asyncio.create_task(server.serve_forever())
    await asyncio.sleep(0.01)
    server.close()
    return [type(one) for one in await asyncio.gather(forever, return_exceptions=True)]


async def seen_of_an_exception_in_connection_made(create: Start) -> object:
    told = caught(asyncio.get_running_loop())
    seen: list[Any] = []

    class Failing(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            raise LookupError("in connection_made")

    async with await create(lambda: Failing(seen), "127.0.0.1", 0) as server:
        answer = await ask(address_of(server))
        await until(lambda: ("lost", None) in seen)
    return answer, seen, [repr(context["exception"]) for context in told]


async def seen_of_contexts(create: Start) -> object:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nobody's")
    variable.set("the server's")
    seen: list[Any] = []

    class Looking(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.seen.append(variable.get())

    def factory() -> Recorder:
        seen.append(variable.get())
        variable.set("this connection's")
        return Looking(seen)

    async with await create(factory, "127.0.0.1", 0) as server:
        variable.set("the caller's")
        for _ in range(2):
            await ask(address_of(server))
            await until(lambda: seen[-1] == ("lost", None))
            seen.remove("eof")
    return seen


async def seen_of_several_hosts(create: Start) -> object:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hosts = ["127.0.0.1", *(["::1"] if HAS_IPV6 else []), "127.0.0.1"]
    async with await create(lambda: Recorder([]), hosts, port) as server:
        answers = [await ask(listener.getsockname()) for listener in server.sockets]
        return answers, sorted(
            listener.getsockname()[:2] == (host, port) for listener in server.sockets for host in hosts
        )


async def seen_of_a_socket(create: Start) -> object:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        async with await create(lambda: Recorder([]), sock=sock) as server:
            same = address_of(server) == sock.getsockname()
            answer = await ask(sock.getsockname())
        return same, answer, sock.fileno()


async def seen_of_bad_arguments(create: Start) -> object:
    seen = []
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams, socket.socket() as stream:
        for arguments in (
            {},
            {"host": "127.0.0.1", "port": 0, "sock": stream},
            {"sock": datagrams},
            {"host": "127.0.0.1", "port": 0, "ssl": True},
            {"host": "127.0.0.1", "port": 0, "ssl_handshake_timeout": 1},
            {"host": "127.0.0.1", "port": 0, "ssl_shutdown_timeout": 1},
            {"host": "127.0.0.1", "port": 0, "nonsense": 1},
        ):
            with pytest.raises((ValueError, TypeError)) as error:
                await create(asyncio.Protocol, **arguments)
            seen.append(error.type)
        async with await create(asyncio.Protocol, "127.0.0.1", 0) as taken:
            with pytest.raises(OSError, match="127.0.0.1") as in_use:
                await create(asyncio.Protocol, *address_of(taken))
            seen.append(in_use.value.errno)
    return seen


async def seen_of_streams(create: Start) -> object:
    """`create` is a start_server here."""
    seen: list[Any] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\n")
        except asyncio.LimitOverrunError:
            seen.append("too long")
        writer.write(b"bye")
        writer.close()
        await writer.wait_closed()

    async with await create(talk, "127.0.0.1", 0, limit=10) as server:
        for line in (b"short\n", b"longer than ten\n"):
            reader, writer = await asyncio.open_connection(*address_of(server))
            writer.write(line)
            with contextlib.suppress(ConnectionError):  # not all was read
                seen.append(await reader.read())
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
    return seen


async def seen_of_wait_closed(create: Start) -> object:
    seen: list[Any] = []
    server = await create(lambda: Recorder(seen), "127.0.0.1", 0)
    early = asyncio.create_task(server.wait_closed())
    _, writer = await asyncio.open_connection(*address_of(server))
    await until(lambda: seen)
    server.close()
    late = asyncio.create_task(server.wait_closed())
    await asyncio.sleep(0.05)
    facts = [early.done(), late.done()]
    writer.close()
    await writer.wait_closed()
    await asyncio.gather(early, late)
    return facts, seen


async def seen_of_close_clients(create: Start) -> object:
    seen: list[Any] = []
    ends = []
    for what in ("close_clients", "abort_clients"):
        async with await create(lambda: Recorder(seen), "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*address_of(server))
            writer.write(b"1")
            await reader.readexactly(1)
            getattr(server, what)()
            try:
                ends.append(await reader.read())
            except ConnectionError as error:
                ends.append(type(error))
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
    return seen, ends


OBSERVED = {
    seen_by_a_protocol: None,
    seen_by_a_server_object: None,
    seen_when_closed_while_served_forever: None,
    seen_of_an_exception_in_connection_made: None,
    seen_of_contexts: None,
    seen_of_several_hosts: None,
    seen_of_a_socket: None,
    seen_of_bad_arguments: None,
    seen_of_streams: None,
    seen_of_wait_closed: (3, 12, 1),  # since when asyncio does so
    seen_of_close_clients: (3, 13),
}
AFTER_3_13 = {
    seen_of_wait_closed: ([False, False], ["made", "eof", ("lost", None)]),
    seen_of_close_clients: (["made", b"1", ("lost", None)] * 2, [b"", b""]),
}


@pytest.mark.parametrize("scenario", OBSERVED, ids=lambda scenario: scenario.__name__)
def test_what_is_seen_is_what_asyncio_shows(way: Way, scenario: Callable[[Start], Awaitable[object]]) -> None:
    streams = scenario is seen_of_streams
    if way.name == "uvloop" and scenario is seen_of_an_exception_in_connection_made:
        pytest.skip("uvloop never reads from such a connection, whoever has accepted it")
    ours = way.run(lambda: scenario(way.start_server if streams else way.create_server))
    since: Any = OBSERVED[scenario]
    if since is None or sys.version_info >= since:

        async def theirs(*args: Any, **options: Any) -> Any:
            if streams:
                return await asyncio.start_server(*args, **options)
            return await asyncio.get_running_loop().create_server(*args, **options)

        # On asyncio's loop: uvloop's server lacks some.
        assert ours == Way("selector").run(lambda: scenario(theirs))
    if scenario in AFTER_3_13:
        assert ours == AFTER_3_13[scenario]


def test_small_writes_are_sent_at_once(way: Way) -> None:
    """With asyncio's own server they are not on Windows, nor on a socket whose protocol is 0."""

    async def test() -> None:
        seen: list[Any] = []

        class Looking(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                sock = transport.get_extra_info("socket")
                seen.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0)
        sock.bind(("127.0.0.1", 0))
        for where in ({"host": "127.0.0.1", "port": 0}, {"sock": sock}):
            async with await way.create_server(Looking, **where) as server:
                _, writer = await asyncio.open_connection(*address_of(server))
                await until(lambda: seen)
                writer.close()
                assert seen.pop()

    way.run(test)


def test_the_signatures_are_asyncios() -> None:
    """Only the queue is as long as it may be, and there is more."""
    for ours, theirs in (
        (harken.asyncio.start_server, asyncio.start_server),
        (harken.asyncio.create_server, asyncio.SelectorEventLoop.create_server),
    ):
        have = inspect.signature(ours).parameters
        for name, parameter in inspect.signature(theirs).parameters.items():
            if name != "self":
                assert have[name].kind is parameter.kind
                assert name == "backlog" or have[name].default == parameter.default, name
        positional = [name for name in have if have[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        assert positional == [*positional[:1], "host", "port"]


@pytest.mark.parametrize("function", [harken.asyncio.start_server, harken.asyncio.create_server])
def test_every_option_stands_in_the_signature_with_its_type(function: Callable[..., object]) -> None:
    parameters, hints = inspect.signature(function).parameters, get_type_hints(function)
    options = get_type_hints(harken.Options, {**vars(harken.asyncio._start), "Literal": Literal})
    for name, hint in options.items():
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].default is None
        if name != "reuse_port":  # asyncio's, which joins others
            assert str(hints[name]) == str(hint), name
    assert hints["kwds"] is Never  # so that a type checker finds what is not there


@pytest.mark.parametrize(
    ("function", "name", "near"),
    [
        ("start_server", "max_opn", "max_open"),
        ("create_server", "max_opn", "max_open"),
        ("create_server", "limt", "limit"),
        ("start_server", "sockt", "sock"),
        ("start_server", "use_port", "reuse_port"),
        ("create_server", "keep_idle", "keepalive_idle"),
        ("create_server", "nothing_like_it", None),
        ("start_server", "bogus", None),
        ("start_server", "reuse", "reuse_port"),
    ],
)
def test_a_name_that_is_mistyped_is_told_with_the_one_that_was_meant(function: str, name: str, near: Any) -> None:
    async def test() -> None:
        with pytest.raises(TypeError) as error:
            await getattr(harken.asyncio, function)(echo, "127.0.0.1", 0, **{name: 3})
        assert str(error.value).startswith(f"{function}() got an unexpected keyword argument {name!r}")
        assert str(error.value).endswith(f"did you mean {near!r}?") == (near is not None)

    Way("selector").run(test)


def test_harken_alone_has_its_asyncio() -> None:
    python("import harken; harken.asyncio.start_server")
    python("import harken; assert hasattr(harken, 'asyncio'); from harken import asyncio as one; one.create_server")


# ---------------------------------------------------------------------- where it listens


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        ("127.0.0.1", 0, "tcp://127.0.0.1:"),
        ("127.0.0.1", "0", "tcp://127.0.0.1:"),
        ("127.0.0.1", None, "tcp://127.0.0.1:"),
        ("127.0.0.1:0", None, "tcp://127.0.0.1:"),
        ("tcp4://localhost:0", None, "tcp://127.0.0.1:"),
        (["127.0.0.1:0"], None, "tcp://127.0.0.1:"),
        (harken.Bind("127.0.0.1:0"), None, "tcp://127.0.0.1:"),
        pytest.param("::1", None, "tcp://[::1]:", marks=needs_ipv6),
        pytest.param("::1", 0, "tcp://[::1]:", marks=needs_ipv6),
        pytest.param("[::1]:0", None, "tcp://[::1]:", marks=needs_ipv6),
    ],
)
def test_hosts_and_binds(host: Any, port: Any, url: str) -> None:
    async def test() -> None:
        async with await harken.asyncio.start_server(echo, host, port) as server:
            (listener,) = server.sockets
            assert str(listener).startswith(url)
            assert listener.state == "listening"  # type: ignore[attr-defined]

    Way("selector").run(test)


@posix_only
def test_unix_sockets(way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def test() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind("s")
            async with await way.start_server(echo, sock=sock, max_open=1) as server:
                for _ in range(3):
                    reader, writer = await asyncio.open_unix_connection("s")
                    writer.write(b"hello")
                    assert await reader.readexactly(5) == b"hello"
                    writer.close()
                    await writer.wait_closed()
                assert server.sockets[0].family == socket.AF_UNIX

    way.run(test)


@pytest.mark.parametrize("host", [None, ""])
def test_no_host_is_every_family_with_one_port(host: str | None) -> None:
    async def test() -> None:
        async with await harken.asyncio.start_server(echo, host, 0) as server:
            assert len({listener.getsockname()[1] for listener in server.sockets}) == 1
            assert len(server.sockets) == 1 + HAS_IPV6
        async with await harken.asyncio.start_server(echo, host, 0, family=socket.AF_INET) as server:
            assert [listener.family for listener in server.sockets] == [socket.AF_INET]

    Way("selector").run(test)


def test_listeners_are_taken_over(way: Way) -> None:
    async def test() -> None:
        for make in (harken.bind, harken.listen):
            listeners = make("127.0.0.1:0")
            async with await way.start_server(echo, listeners) as server:
                assert server.sockets == tuple(listeners)
                assert await ask(listeners[0].address) == b"hello"
            assert listeners[0].state == "closed"

    way.run(test)


def test_several_sockets_that_are_there_already(way: Way) -> None:
    async def test() -> None:
        listeners = harken.listen("127.0.0.1:0", "127.0.0.1:0")
        async with await way.start_server(echo, sock=listeners) as server:
            assert server.sockets == tuple(listeners)
            assert await asyncio.gather(*(ask(listener.address) for listener in listeners)) == [b"hello"] * 2
        assert [listener.state for listener in listeners] == ["closed", "closed"]

        (ours,) = harken.listen("127.0.0.1:0")
        with socket.create_server(("127.0.0.1", 0)) as theirs:
            async with await way.start_server(echo, sock=[ours, theirs]) as server:
                assert [await ask(sock.getsockname()) for sock in server.sockets] == [b"hello"] * 2
            assert (ours.state, theirs.fileno()) == ("closed", -1)

    way.run(test)


@pytest.mark.thread_unsafe(reason="counts the sockets of the process")
def test_sockets_that_cannot_be_served_are_refused_and_stay_their_owners() -> None:
    async def test() -> None:
        before = open_sockets()
        with socket.create_server(("127.0.0.1", 0)) as good, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            for sock in ([], 5, "sock", datagrams, [good, datagrams], [good, None]):
                with pytest.raises(ValueError, match=r"Stream Socket|no socket"):
                    await harken.asyncio.start_server(echo, sock=sock)
            with connect(good.getsockname()) as client, pytest.raises(OSError, match="a connection"):
                await harken.asyncio.start_server(echo, sock=[good, client])  # after `good` was duplicated
            with pytest.raises(TypeError, match="nodelay"):
                await harken.asyncio.start_server(echo, sock=good, nodelay=False)
            assert good.fileno() != -1
        with harken.listen("127.0.0.1:0") as listeners:
            with pytest.raises(TypeError, match="nodelay, reuse_port"):
                await harken.asyncio.start_server(echo, listeners, nodelay=False, reuse_port=True)
            assert listeners[0].fileno() != -1
        assert open_sockets() == before

    Way("selector").run(test)


def test_the_queue_never_becomes_shorter() -> None:
    async def test() -> None:
        with socket.socket() as sock, harken.Socket() as ours:
            for one in (sock, ours):
                one.bind(("127.0.0.1", 0))
                one.listen(512)
                granted = queue_of(one.fileno())[1]
                for backlog in (None, 100):
                    duplicate = one.dup()
                    async with await harken.asyncio.create_server(
                        asyncio.Protocol, sock=duplicate, backlog=backlog
                    ) as server:
                        assert queue_of(server.sockets[0].fileno())[1] == granted
        async with await harken.asyncio.create_server(asyncio.Protocol, "127.0.0.1", 0) as server:
            with harken.listen("127.0.0.1:0") as (most,):
                assert server.sockets[0].backlog == most.backlog  # type: ignore[attr-defined]
        async with await harken.asyncio.create_server(asyncio.Protocol, "127.0.0.1", 0, backlog=77) as server:
            assert server.sockets[0].backlog in (77, None)  # type: ignore[attr-defined]

    Way("selector").run(test)


@linux_only
def test_reuse_port_joins_and_keep_alive_is_inherited() -> None:
    async def test() -> None:
        options: dict[str, Any] = {"reuse_port": True, "keep_alive": True}
        async with (
            await harken.asyncio.start_server(echo, "127.0.0.1", 0, **options) as one,
            await harken.asyncio.start_server(echo, *address_of(one), **options) as other,
        ):
            assert address_of(one) == address_of(other)
            assert one.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)

    Way("selector").run(test)


def test_a_name_that_is_being_resolved_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    slow, go_on = threading.Event(), threading.Event()
    bind = harken.asyncio._start.bind

    def slow_bind(*binds: Any, **options: Any) -> Any:
        slow.set()
        go_on.wait(10)
        opened.append(bind(*binds, **options))
        return opened[0]

    monkeypatch.setattr(harken.asyncio._start, "bind", slow_bind)

    async def test() -> None:
        starting = asyncio.create_task(harken.asyncio.start_server(echo, "localhost", 0))
        await until(slow.is_set)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        go_on.set()
        await until(lambda: opened and all(listener.state == "closed" for listener in opened[0]))

    Way("selector").run(test)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_open": 0}, ValueError),
        ({"max_open": -1}, ValueError),
        ({"max_open": "1"}, TypeError),
        ({"batch": 0}, ValueError),
        ({"on_overload": "panic"}, ValueError),
        ({"engine": "steam"}, ValueError),
        ({"backlog": -1}, ValueError),
        ({"limit": 0}, ValueError),  # the StreamReader's
        ({"ssl": "context"}, TypeError),
    ],
)
def test_bad_limits_are_refused(options: dict[str, Any], expected: type[Exception]) -> None:
    async def test() -> None:
        with pytest.raises(expected):
            await harken.asyncio.start_server(echo, "127.0.0.1", 0, **options)

    Way("selector").run(test)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"limit": 0}, ValueError),
        ({"limit": "1"}, TypeError),
        ({"limit": 1, "max_open": 1}, TypeError),
        ({"protocol_factory": asyncio.Protocol()}, TypeError),
    ],
)
def test_bad_arguments_of_create_server_are_refused(options: dict[str, Any], expected: type[Exception]) -> None:
    async def test() -> None:
        with pytest.raises(expected):
            await harken.asyncio.create_server(
                **{"protocol_factory": asyncio.Protocol, "host": "127.0.0.1", "port": 0, **options}
            )

    Way("selector").run(test)


# ---------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    ssl = pytest.importorskip("ssl", reason="this Python has no TLS")
    pem = Path(__file__).with_name("localhost.pem")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cafile=pem)


def test_tls_is_spoken_and_a_client_that_does_not_harms_nobody(
    way: Way, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    async def test() -> None:
        told = caught(asyncio.get_running_loop())
        async with await way.start_server(
            echo, "127.0.0.1", 0, ssl=contexts[0], ssl_handshake_timeout=20, max_open=2
        ) as server:
            address = address_of(server)
            for _ in range(3):  # more than may be open
                reader, writer = await asyncio.open_connection(*address)
                writer.write(b"GET / HTTP/1.0\r\n\r\n")
                with contextlib.suppress(ConnectionError):
                    await reader.read()
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
            for _ in range(3):
                assert await ask(address, ssl=contexts[1], server_hostname="localhost") == b"hello"
            # One that says nothing is thrown out with the others.
            silent = connect(address)
            await until(lambda: server.acceptor and server.acceptor.stats().open >= 1)
            await asyncio.sleep(0)
            server.abort_clients()
            server.close()
            await server.wait_closed()
            with contextlib.suppress(ConnectionError):
                assert silent.recv(1) == b""
            silent.close()
        assert told == []

    way.run(test)


def test_tls_connections_count_until_they_are_closed_in_whatever_way(
    way: Way, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    async def test() -> None:
        made: list[Any] = []

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                made.append(transport)

        server = await way.create_server(Protocol, "127.0.0.1", 0, ssl=contexts[0], limit=1)
        clients = [
            asyncio.create_task(
                asyncio.open_connection(*address_of(server), ssl=contexts[1], server_hostname="localhost")
            )
            for _ in range(4)
        ]
        await until(lambda: len(made) == 1)
        made[0].abort()
        await until(lambda: len(made) == 2)
        made[1].close()
        await until(lambda: len(made) == 3)
        server.close_clients()
        await until(lambda: len(made) == 4)
        assert server.acceptor is not None
        assert server.acceptor.stats().high_water == 1
        for client in clients:
            (await client)[1].close()
        await until(lambda: server.acceptor.stats().open == 0)  # type: ignore[union-attr]
        server.close()
        await server.wait_closed()

    way.run(test)


@pytest.mark.parametrize("what", ["close_clients", "abort_clients"])
def test_a_batch_of_clients_is_closed_while_its_last_begins(way: Way, what: str) -> None:
    """No client is forgotten between the moment at which the loop has it and that at which its transport is known."""

    async def test() -> None:
        made: list[Any] = []
        lost: list[Any] = []

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:  # noqa: ARG002
                made.append(self)
                if len(made) == 5:
                    getattr(server, what)()

            def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
                lost.append(self)

        loop = asyncio.get_running_loop()
        server = await way.create_server(Protocol, "127.0.0.1", 0, max_open=5)
        for _ in range(2):
            del made[:], lost[:]
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(connect(address_of(server))) for _ in range(5)]
                for client in clients:
                    client.setblocking(False)
                    with contextlib.suppress(ConnectionResetError):
                        assert await asyncio.wait_for(loop.sock_recv(client, 1), 5) == b""
            assert len(made) == 5
            assert len(lost) == len(set(lost)) >= 4  # uvloop drops the one that is being made
            await until(lambda: server.acceptor and server.acceptor.stats().open == 0)
        server.close()
        await asyncio.wait_for(server.wait_closed(), 5)

    way.run(test)


def test_a_connection_that_becomes_tls_goes_on_counting(
    way: Way, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    import ssl

    async def test() -> None:
        async def upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await writer.start_tls(contexts[0])
            await echo(reader, writer)

        server = await way.start_server(upgrade, "127.0.0.1", 0, max_open=1)
        for last in (False, True):
            reader, writer = await asyncio.open_connection(*address_of(server))
            await writer.start_tls(contexts[1], server_hostname="localhost")
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            assert server.acceptor is not None
            assert server.acceptor.stats().open == 1
            if last:
                server.close()
                server.close_clients()
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
        await server.wait_closed()

    way.run(test)


# ---------------------------------------------------------------------- limits, overload, resets


def test_no_more_are_open_than_may_be_and_all_are_served(way: Way) -> None:
    async def test() -> None:
        open_now = most = 0
        full = asyncio.Event()

        async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal open_now, most
            open_now += 1
            most = max(most, open_now)
            if open_now == 5:
                full.set()
            await full.wait()  # however quick the server is
            await echo(reader, writer)
            open_now -= 1

        async with await way.start_server(count, "127.0.0.1", 0, max_open=5, batch=3) as server:
            answers = await asyncio.gather(*(ask(address_of(server)) for _ in range(60)))
            assert answers == [b"hello"] * 60
            assert server.acceptor is not None
            await until(lambda: server.acceptor.stats().open == 0)  # type: ignore[union-attr]
            stats = server.acceptor.stats()
            assert (stats.accepted, stats.high_water) == (60, 5)
        assert most == 5

    way.run(test)


def test_create_server_calls_it_limit(way: Way) -> None:
    async def test() -> None:
        held: list[Any] = []

        class Holds(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                held.append(transport)

        async with await way.create_server(Holds, "127.0.0.1", 0, limit=2, batch=1) as server:
            assert server.acceptor is not None
            assert (server.acceptor.limit, server.acceptor.batch) == (2, 1)
            with contextlib.ExitStack() as stack:
                for _ in range(6):
                    stack.enter_context(connect(address_of(server)))
                for served in range(2, 7):
                    await until(lambda served=served: len(held) == served)
                    assert server.acceptor.stats().high_water == 2
                    held[served - 2].close()
                held[-1].close()

    way.run(test)


def test_a_small_batch_leaves_the_loop_to_others(way: Way) -> None:
    async def test() -> None:
        (listener,) = harken.listen("127.0.0.1:0")
        made = most = 0

        class Protocol(asyncio.Protocol):
            def connection_made(self, _: Any) -> None:
                nonlocal made
                made += 1

        with contextlib.ExitStack() as stack:
            for _ in range(60):
                stack.enter_context(connect(listener.address))
            server = await way.create_server(Protocol, sock=listener, batch=5)
            while made < 60:
                before = made
                await asyncio.sleep(0)
                most = max(most, made - before)
            assert most <= 10  # two batches, where connection_made() comes a round later
            server.close()
            server.abort_clients()
            await server.wait_closed()

    way.run(test)


OVERLOAD = """
import asyncio, json, logging, resource, sys, time
import harken.asyncio

lines, served = [], 0
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger().addHandler(handler)

class Protocol(asyncio.Protocol):
    def connection_made(self, transport):
        global served
        served += 1
        self.transport = transport
    def data_received(self, data):
        self.transport.write(data)

async def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    server = await harken.asyncio.create_server(Protocol, "127.0.0.1", 0, on_overload=sys.argv[2])
    print(server.sockets[0].getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.readline)  # all clients are connected
    cpu, now = time.process_time(), time.monotonic()
    await loop.run_in_executor(None, sys.stdin.readline)  # and have waited
    print(json.dumps({"share": (time.process_time() - cpu) / (time.monotonic() - now), "lines": lines,
                      "failed": server.acceptor.stats().failed, "served": served}), flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    print(json.dumps({"served": served}), flush=True)
    server.close()
    await server.wait_closed()

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


@linux_only
@pytest.mark.parametrize("policy", ["pause", "shed"])
@pytest.mark.parametrize("loop", ["asyncio", WAYS[3]])
def test_without_descriptors_nothing_spins(loop: str, policy: str) -> None:
    import subprocess

    from wire import CHILD_ENVIRONMENT

    child = subprocess.Popen(
        [sys.executable, "-c", OVERLOAD, loop, policy], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=CHILD_ENVIRONMENT,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    with contextlib.ExitStack() as stack:
        stack.callback(child.wait, 20)
        stack.callback(child.stdout.close)
        stack.callback(child.stdin.close)
        port = int(child.stdout.readline())

        def tell() -> Any:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write("\n")
            child.stdin.flush()

        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(150)]
        for client in clients:
            with contextlib.suppress(ConnectionError):  # shed already
                client.sendall(b"x")
        tell()
        time.sleep(0.5)  # the time that is measured
        tell()
        starved = json.loads(child.stdout.readline())
        assert starved["share"] < 0.08, starved  # one that spins takes all of it
        assert 1 <= len(starved["lines"]) <= 10, starved
        assert 50 < starved["served"] < 100
        assert str(errno.EMFILE) in starved["failed"]
        answers = Counter()
        for client in clients:  # in the order in which they came; each makes room for another
            try:
                answers[client.recv(1)] += 1
            except ConnectionError:
                answers[b""] += 1
            client.close()
        tell()
        served = json.loads(child.stdout.readline())["served"]
        assert served == answers[b"x"] == (150 if policy == "pause" else starved["served"])
        assert answers.total() == 150


def test_a_thousand_resets_while_the_loop_is_busy(way: Way) -> None:
    async def test() -> None:
        told = caught(asyncio.get_running_loop())
        async with await way.start_server(echo, "127.0.0.1", 0) as server:
            address = address_of(server)
            for _ in range(10):
                for _ in range(100):  # without a moment for the loop
                    reset(connect(address))
                await asyncio.sleep(0)
            assert await ask(address) == b"hello"
            await until(lambda: server.acceptor.stats().open == 0)  # type: ignore[union-attr]
        # Without a GIL the garbage collector may get to the future of a StreamReaderProtocol before it gets to that,
        # which would have looked at it: so it is with asyncio's own server, too.
        told = [context for context in told if context["message"] != "Future exception was never retrieved"]
        assert [context for context in told if "exception" in context] == []

    way.run(test)


@pytest.mark.thread_unsafe(reason="counts the sockets of the process")
def test_a_factory_that_fails_closes_its_connection_and_nothing_else(way: Way) -> None:
    async def test() -> None:
        told = caught(asyncio.get_running_loop())
        failing = True
        seen: list[Any] = []

        def factory() -> asyncio.Protocol:
            if failing:
                raise OSError("no protocol today")
            return Recorder(seen)

        async with await way.create_server(factory, "127.0.0.1", 0, max_open=8) as server:
            address = address_of(server)
            before = open_sockets()
            for _ in range(20):
                clients = [connect(address) for _ in range(50)]
                for client in clients:
                    client.setblocking(False)
                    with contextlib.suppress(ConnectionError):
                        assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
                    client.close()
            assert len(open_sockets() - before) == 0
            assert len(told) == 1000
            assert {str(context["exception"]) for context in told} == {"no protocol today"}
            assert all(context["server"] is server for context in told)
            failing = False
            assert await ask(address) == b"hello"

    way.run(test)


@pytest.mark.parametrize("what", [None, object(), Recorder], ids=["None", "object", "class"])
def test_a_factory_that_returns_no_protocol_closes_its_connection_and_nothing_else(way: Way, what: Any) -> None:
    async def test() -> None:
        told = caught(asyncio.get_running_loop())
        protocols = [what, what, Recorder([])]
        server = await way.create_server(lambda: protocols.pop(0), "127.0.0.1", 0, limit=1)
        for _ in range(2):
            reader, writer = await asyncio.open_connection(*address_of(server))
            assert await reader.read() == b""
            writer.close()
        assert await ask(address_of(server)) == b"hello"
        server.close()
        await server.wait_closed()
        assert ["not a protocol" in str(context["exception"]) for context in told] == [True, True]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        way.run(test)
        gc.collect()


@pytest.mark.parametrize("waits", [False, True], ids=["function", "coroutine"])
def test_a_callback_that_fails_closes_its_connection_and_nothing_else(way: Way, waits: bool) -> None:
    async def test() -> None:
        told = caught(asyncio.get_running_loop())

        def fail(*_: object) -> None:
            raise LookupError("no answer today")

        async def fail_later(*_: object) -> None:
            fail()

        server = await way.start_server(fail_later if waits else fail, "127.0.0.1", 0, max_open=1)
        for _ in range(3):
            reader, writer = await asyncio.open_connection(*address_of(server))
            assert await reader.read() == b""
            writer.close()
        server.close()
        await server.wait_closed()
        assert [str(context["exception"]) for context in told] == ["no answer today"] * 3

    way.run(test)


def test_a_transport_that_cannot_be_made_is_not_waited_for(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some systems refuse to set an option of a connection that was reset."""
    if way.name in ("any", "uvloop"):
        pytest.skip("such a loop makes its transports without us")

    def refused(_: object) -> None:
        raise OSError(errno.EINVAL, "it is dead")

    async def test() -> None:
        told = caught(asyncio.get_running_loop())
        server = await way.create_server(asyncio.Protocol, "127.0.0.1", 0, limit=1)
        with monkeypatch.context() as patch:
            patch.setattr("asyncio.base_events._set_nodelay", refused)
            for _ in range(2):
                client = connect(address_of(server))
                client.setblocking(False)
                assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
                client.close()
        server.close()
        await asyncio.wait_for(server.wait_closed(), 5)
        assert told == []

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        way.run(test)
        gc.collect()


def test_a_transport_that_nobody_has_any_more_is_not_waited_for() -> None:
    async def test() -> None:
        class Protocol(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                made.append(transport)

        made: list[asyncio.Transport] = []
        server = await harken.asyncio.create_server(Protocol, "127.0.0.1", 0)
        client = connect(address_of(server))
        await until(lambda: made)
        await asyncio.sleep(0)  # it reads: earlier, CPython 3.11.2 forgets the pause
        made.pop().pause_reading()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # asyncio's: it was not closed
            await asyncio.sleep(0)
            gc.collect()
        assert client.recv(1) == b""
        client.close()
        server.close()
        await asyncio.wait_for(server.wait_closed(), 5)

    Way("selector").run(test)


@pytest.mark.needs_tcp_info
def test_several_listeners_take_turns(way: Way) -> None:
    async def test() -> None:
        listeners = harken.listen("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0")
        order: list[int] = []

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                order.append(transport.get_extra_info("sockname")[1])

        with contextlib.ExitStack() as stack:
            for listener in listeners:
                for _ in range(30):
                    stack.enter_context(connect(listener.address))
            if LINUX:
                for listener in listeners:
                    wait_until(lambda listener=listener: listener.stats().queued == 30)
            server = await way.create_server(Protocol, listeners, batch=6)
            await until(lambda: len(order) == 90)
            shares = Counter(order[:30])
            assert len(shares) == 3
            assert min(shares.values()) >= 8, shares
            server.close()
            server.abort_clients()
            await server.wait_closed()

    way.run(test)


# ---------------------------------------------------------------------- ends


@pytest.mark.needs_tcp_info
def test_closing_while_a_batch_is_handed_over_loses_nobody(way: Way) -> None:
    async def test() -> None:
        told = caught(asyncio.get_running_loop())
        seen: list[Any] = []
        server: Any = None

        def factory() -> Recorder:
            server.close()
            return Recorder(seen)

        listeners = harken.listen("127.0.0.1:0")
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(listeners[0].address)) for _ in range(5)]
            for client in clients:
                client.sendall(b"x")
            if LINUX:
                wait_until(lambda: listeners[0].stats().queued == 5)
            server = await way.create_server(factory, listeners)
            await until(lambda: seen.count(b"x") == 5)
            assert all(client.recv(1) == b"x" for client in clients)
            waiting = asyncio.create_task(server.wait_closed())
            await asyncio.sleep(0.01)
            assert not waiting.done()
        await waiting
        assert told == []

    way.run(test)


def test_what_the_acceptor_has_taken_when_the_server_closes_is_served(way: Way) -> None:
    """Iteration takes a batch of connections that block, gives out the first and keeps the others."""

    async def test() -> None:
        told = caught(asyncio.get_running_loop())
        seen: list[Any] = []
        blocking: list[bool] = []

        class Asking(Recorder):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                blocking.append(not WINDOWS and os.get_blocking(transport.get_extra_info("socket").fileno()))

        server = await way.create_server(lambda: Asking(seen), "127.0.0.1", 0)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(address_of(server))) for _ in range(5)]
            for client in clients:
                client.sendall(b"x")
            if LINUX:
                wait_until(lambda: harken.stats(server.sockets[0]).queued == 5)
            assert server.acceptor is not None
            with next(server.acceptor) as first:
                assert first.recv(1) == b"x"
            server.close()
            await until(lambda: seen.count(b"x") == 4)
            assert [client.recv(1) for client in clients] == [b"", b"x", b"x", b"x", b"x"]
            assert blocking == [False] * 4
        await server.wait_closed()
        assert told == []

    way.run(test)


@pytest.mark.needs_tcp_info
def test_what_ends_the_program_comes_through_and_the_others_are_served_later() -> None:
    seen: list[Any] = []
    stops = [True]

    def factory() -> Recorder:
        if stops:
            stops.clear()
            raise SystemExit(7)
        return Recorder(seen)

    async def serve(server: harken.asyncio.Server) -> None:
        await server.start_serving()
        await asyncio.sleep(10)

    loop = asyncio.SelectorEventLoop()
    listeners = harken.listen("127.0.0.1:0")
    with contextlib.closing(loop), contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(connect(listeners[0].address)).sendall(b"x")
        if LINUX:
            wait_until(lambda: listeners[0].stats().queued == 5)
        server = loop.run_until_complete(harken.asyncio.create_server(factory, listeners, start_serving=False))
        with pytest.raises(SystemExit):
            loop.run_until_complete(serve(server))
        loop.run_until_complete(until(lambda: seen.count(b"x") == 4))
        server.close()
        server.abort_clients()
        loop.run_until_complete(server.wait_closed())


@pytest.mark.parametrize("drop", [True, False], ids=["dropped", "closed afterwards"])
def test_a_loop_that_is_closed_while_it_serves(way: Way, drop: bool) -> None:
    loop = way.new_loop()
    server: Any = loop.run_until_complete(way.start_server(echo, "127.0.0.1", 0))
    address = address_of(server)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    if drop:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            del server, loop
            gc.collect()
        assert any("unclosed server" in str(one.message) for one in warned)
    else:
        server.close()
        server.close()
    with harken.Socket() as again:
        wait_until(lambda: _binds(again, address))


def _binds(sock: harken.Socket, address: Any) -> bool:
    try:
        sock.bind(address)
    except OSError:
        return False
    return True


def test_a_listener_that_is_closed_elsewhere_ends_the_server(way: Way) -> None:
    async def test() -> None:
        told = caught(asyncio.get_running_loop())
        listeners = harken.listen("127.0.0.1:0", "127.0.0.1:0")
        server = await way.start_server(echo, listeners)
        listeners[0].close()
        assert await ask(listeners[1].address) == b"hello"
        assert server.is_serving()
        listeners[1].close()
        await asyncio.wait_for(server.wait_closed(), 5)
        assert not server.is_serving()
        assert len(told) <= 1

    way.run(test)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["in the loop", "in a thread"])
def test_to_close_the_acceptor_is_to_close_the_server(way: Way, elsewhere: bool) -> None:
    """uvloop aborts the process when a descriptor that it polls is closed."""

    async def test() -> None:
        told = caught(asyncio.get_running_loop())
        server = await way.start_server(echo, "127.0.0.1", 0)
        assert await ask(address_of(server)) == b"hello"
        acceptor = server.acceptor
        assert acceptor is not None
        if elsewhere:
            await asyncio.get_running_loop().run_in_executor(None, acceptor.close)
        else:
            acceptor.close()
        await asyncio.wait_for(server.wait_closed(), 5)
        assert acceptor.closed
        assert not server.is_serving()
        assert server.sockets == ()
        assert told == []

    way.run(test)


INTERRUPTED = """
import asyncio, sys, harken.asyncio

async def echo(reader, writer):
    writer.write(await reader.readexactly(5))
    writer.close()

async def main():
    async with await harken.asyncio.start_server(echo, "127.0.0.1", 0) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

try:
    if sys.argv[1] == "uvloop":
        import uvloop
        uvloop.run(main())
    else:
        asyncio.run(main())
except KeyboardInterrupt:
    sys.exit("interrupted")
"""


@posix_only
@pytest.mark.parametrize("loop", ["asyncio", WAYS[3]])
def test_control_c_ends_it_and_leaves_nothing(loop: str) -> None:
    import signal
    import subprocess

    from wire import CHILD_ENVIRONMENT

    with subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", INTERRUPTED, loop],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=CHILD_ENVIRONMENT,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        port = int(child.stdout.readline())
        with connect(("127.0.0.1", port)) as client:
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=20)
        assert (child.returncode, errors) == (1, "interrupted\n")


def test_a_thread_that_waits_ends_with_the_server() -> None:
    async def test() -> None:
        async with await harken.asyncio.start_server(echo, "127.0.0.1", 0, engine="accept") as server:
            assert await ask(address_of(server)) == b"hello"
        await until(lambda: not any(thread.name == "harken.asyncio" for thread in threading.enumerate()))

    Way("selector").run(test)


def test_importing_harken_does_not_import_asyncio() -> None:
    python("import harken, sys; assert 'asyncio' not in sys.modules; import harken.asyncio")
    assert os.path.basename(asyncio.__file__) == "__init__.py"


@pytest.mark.parametrize("before", ["", "import harken.asyncio._server as s; vars(s).update(dict.fromkeys(vars(s)))"])
def test_a_server_that_python_ends_with(before: str) -> None:
    """Modules are gone by then, and cannot be imported; what was in them may be None."""
    import subprocess

    from wire import CHILD_ENVIRONMENT

    code = f"""
import asyncio, harken.asyncio
loop = asyncio.new_event_loop()
server = loop.run_until_complete(harken.asyncio.create_server(asyncio.Protocol, "127.0.0.1", 0))
{before}
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], env=CHILD_ENVIRONMENT, capture_output=True, text=True, timeout=50, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
