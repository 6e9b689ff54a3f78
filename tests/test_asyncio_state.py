"""harken.asyncio when something else interferes: task factories that start tasks at once, servers without references,
Ctrl-C while clients are connected, exceptions at every line of a hand-over."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from test_asyncio import WAYS, Way, address_of, ask, caught, connect, echo, until, way
from wire import CHILD_ENVIRONMENT, Call, python

import harken
import harken.asyncio
import harken.asyncio._threads
import harken.asyncio._transports
from children import FORK
from machine import open_sockets, posix_only

assert way  # a fixture


# ---------------------------------------------------------------------- tasks that begin when they are made


def eager(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
    """What asyncio.eager_task_factory does from Python 3.12 on."""
    try:
        first = coroutine.send(None)
    except BaseException as end:
        future = loop.create_future()
        if isinstance(end, StopIteration):
            future.set_result(end.value)
        else:
            future.set_exception(end)
        return future

    @types.coroutine
    def rest() -> Iterator[Any]:
        try:
            yield first
        except BaseException as error:
            coroutine.throw(error)
        return (yield from coroutine)

    return asyncio.Task(rest(), loop=loop, **options)  # type: ignore[arg-type]


FACTORIES: list[Any] = [None, getattr(asyncio, "eager_task_factory", eager)]


@pytest.fixture(params=FACTORIES, ids=lambda factory: getattr(factory, "__name__", "plain"))
def factory(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_a_closed_connection_frees_its_place_whenever_its_task_starts(way: Way, factory: Any) -> None:
    if factory and way.name == "uvloop":
        pytest.skip("what uvloop hands to a task factory differs from version to version")

    async def test() -> None:
        server = await way.start_server(echo, "127.0.0.1", 0, max_open=2)
        asyncio.get_running_loop().set_task_factory(factory)
        for _ in range(6):
            assert await ask(address_of(server)) == b"hello"
        await until(lambda: server.acceptor and server.acceptor.stats().open == 0)
        reader, writer = await asyncio.open_connection(*address_of(server))
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        server.close()
        server.close_clients()
        assert await reader.read() == b""
        writer.close()
        await asyncio.wait_for(server.wait_closed(), 5)

    way.run(test)


def test_a_closed_connection_frees_its_place_on_a_loop_without_transports(
    factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lacking(asyncio.SelectorEventLoop):
        async def connect_accepted_socket(self, *_: Any, **__: Any) -> Any:
            raise NotImplementedError

    monkeypatch.setattr("harken.asyncio._transports._makes_transports", lambda loop: False)  # noqa: ARG005

    async def test() -> None:
        loop = asyncio.get_running_loop()
        told = caught(loop)
        server = await harken.asyncio.start_server(echo, "127.0.0.1", 0, max_open=2)
        loop.set_task_factory(factory)
        for count in range(1, 7):
            with connect(address_of(server)) as client:
                client.setblocking(False)
                assert await loop.sock_recv(client, 1) == b""
            assert [type(context["exception"]) for context in told] == [NotImplementedError] * count
        assert server.acceptor is not None
        assert server.acceptor.stats().open == 0
        server.close()
        await asyncio.wait_for(server.wait_closed(), 5)

    with asyncio.Runner(loop_factory=Lacking) as runner:
        runner.run(test())


def test_a_client_is_closed_before_its_task_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harken.asyncio._transports._makes_transports", lambda loop: False)  # noqa: ARG005

    async def test() -> None:
        server = await harken.asyncio.start_server(echo, "127.0.0.1", 0, max_open=1)
        taken = server._hand_over

        def hand_over(connections: Any) -> None:
            taken(connections)
            server.close_clients()

        monkeypatch.setattr(server, "_hand_over", hand_over)
        for _ in range(3):
            with connect(address_of(server)) as client:
                client.setblocking(False)
                assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
        server.close()
        await asyncio.wait_for(server.wait_closed(), 5)

    Way("selector").run(test)


# ---------------------------------------------------------------------- an exception at every line


class Struck(BaseException):
    """What a signal handler raises."""


@pytest.mark.thread_unsafe(reason="counts the sockets of the process")
def test_a_hand_over_that_is_interrupted_at_any_line_leaves_one_owner_or_none(way: Way) -> None:
    """Each connection is served or closed, no number of a descriptor is closed twice, no place stays taken."""
    files = {harken.asyncio._transports.__file__, harken.asyncio._server.__file__}
    functions = {"_hand_over", "_by_asyncio", "_by_any", "of", "begin", "_protocol", "ended"}

    async def test() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)  # an error that is kept keeps its connection
        before = open_sockets()
        strike, lines = 0, 0

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal lines
            if frame.f_code.co_filename not in files or frame.f_code.co_name not in functions:
                return None
            if event == "line":
                lines += 1
                if lines == strike:
                    raise Struck
            return trace

        server = await way.start_server(echo, "127.0.0.1", 0, max_open=2)
        take = server._take

        def struck_take() -> None:
            sys.settrace(trace)
            try:
                take()
            except Struck:
                pass
            finally:
                sys.settrace(None)

        monkeypatch = pytest.MonkeyPatch()
        monkeypatch.setattr(server, "_take", struck_take)
        if server._descriptor >= 0:
            loop.add_reader(server._descriptor, struck_take)
        served = closed = 0
        while True:
            strike, lines = strike + 1, 0
            reader, writer = await asyncio.open_connection(*address_of(server))
            writer.write(b"x")
            try:
                got = await asyncio.wait_for(reader.read(1), 5)
            except ConnectionError:
                got = b""
            served, closed = served + bool(got), closed + (not got)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            if lines and lines < strike:
                break
        assert closed >= 3  # as many as the lines on uvloop's way, most of which is in C
        assert served
        monkeypatch.undo()
        await until(lambda: server.acceptor and server.acceptor.stats().open == 0)
        server.close()
        server.abort_clients()
        await asyncio.wait_for(server.wait_closed(), 5)
        del reader, writer
        gc.collect()
        await until(lambda: not open_sockets() - before)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a connection that was dropped where it was struck
        way.run(test)


# ---------------------------------------------------------------------- servers that nobody keeps


def test_a_server_without_references_keeps_serving(way: Way) -> None:
    """asyncio's does, for its loop refers to what it reads from."""

    async def test() -> None:
        listeners = harken.listen("127.0.0.1:0")
        await way.start_server(echo, listeners)
        for _ in range(3):
            gc.collect()
            assert await ask(listeners[0].address) == b"hello"
        listeners.close()  # which ends it
        await until(lambda: not any(thread.name == "harken.asyncio" for thread in threading.enumerate()))

    way.run(test)


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "dropped"])
def test_a_server_ends_with_its_loop(way: Way, closed: bool) -> None:
    """No thread, and no reference of ours, keeps a loop that nobody has any more."""
    if way.name == "uvloop" and not closed:
        pytest.skip("uvloop keeps a loop that was not closed")
    loop = way.new_loop()
    listeners = harken.listen("127.0.0.1:0")
    loop.run_until_complete(way.start_server(echo, listeners))
    loop.run_until_complete(asyncio.sleep(0))
    gone = weakref.ref(loop)
    warned = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: warned.append(str(message))  # a record would keep the server
        if closed:
            loop.close()
        del loop
        for _ in range(3):
            gc.collect()
    assert gone() is None
    assert any("unclosed server" in text for text in warned)
    assert listeners[0].state == "closed"
    deadline = time.monotonic() + 10
    while any(thread.name == "harken.asyncio" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_closed_server_leaves_nothing_registered_with_its_loop(way: Way) -> None:
    async def test() -> None:
        server = await way.start_server(echo, "127.0.0.1", 0)
        assert await ask(address_of(server)) == b"hello"
        server.close()
        await server.wait_closed()
        gone = weakref.ref(server)
        del server
        # The task that served the client may have a step to do yet.
        await until(lambda: gc.collect() >= 0 and gone() is None)

    way.run(test)


# ---------------------------------------------------------------------- cancelled with clients


SERVES = """
import asyncio, sys, harken.asyncio

async def idle(reader, writer):
    try:
        while data := await reader.read(100):
            writer.write(data)
    finally:
        print("client ended", flush=True)

class Idle(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(data)

async def main():
    if sys.argv[2] == "streams":
        server = await harken.asyncio.start_server(idle, "127.0.0.1", 0, **options)
    else:
        server = await harken.asyncio.create_server(Idle, "127.0.0.1", 0, **options)
    print(server.sockets[0].getsockname()[1], flush=True)
    if "with" in sys.argv[3]:
        async with server:
            await server.serve_forever()
    else:
        await server.serve_forever()

options = {"engine": "accept"} if sys.argv[1] == "thread" else {}
if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


@posix_only
@pytest.mark.parametrize("how", ["alone", "with"])
@pytest.mark.parametrize("kind", ["streams", "protocol"])
@pytest.mark.parametrize("loop", ["selector", "thread", WAYS[3]])
def test_control_c_ends_a_server_while_clients_are_idle(loop: str, kind: str, how: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVES, loop, kind, how], env=CHILD_ENVIRONMENT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        try:
            assert child.stdout is not None
            with connect(("127.0.0.1", int(child.stdout.readline()))) as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"
                child.send_signal(signal.SIGINT)
                out, _ = child.communicate(timeout=20)
            assert child.returncode == -signal.SIGINT  # once is enough
            assert out == ("client ended\n" if kind == "streams" else "")
        finally:
            child.kill()


def test_cancelling_serve_forever_does_not_wait_for_clients(way: Way) -> None:
    async def test() -> None:
        server = await way.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*address_of(server))
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        forever = asyncio.create_task(server.serve_forever())
        await asyncio.sleep(0)
        forever.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(forever, 5)
        writer.write(b"y")
        assert await reader.readexactly(1) == b"y"
        waiting = asyncio.create_task(server.wait_closed())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        writer.close()
        await waiting

    way.run(test)


@pytest.mark.parametrize("error", [LookupError, asyncio.CancelledError])
def test_an_error_in_the_servers_context_does_not_wait_for_clients(way: Way, error: type[BaseException]) -> None:
    async def test() -> None:
        server = await way.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*address_of(server))
        with pytest.raises(error):
            async with asyncio.timeout(5), server:
                raise error
        assert server.sockets == ()
        writer.close()
        assert await reader.read() == b""
        await server.wait_closed()

    way.run(test)


def test_a_close_that_fails_is_not_waited_for() -> None:
    """That of a socket of the caller's, which somebody else may have closed: the others are closed all the same."""

    class Foreign(socket.socket):
        fails = False

        def close(self) -> None:
            super().close()
            if self.fails:
                self.fails = False
                raise OSError(errno.EBADF, "closed elsewhere")

    async def main() -> None:
        given = first, second = Foreign(), Foreign()
        for sock in given:
            sock.bind(("127.0.0.1", 0))
        server = await harken.asyncio.create_server(asyncio.Protocol, sock=given)
        first.fails = True
        server.close()
        assert (second.fileno(), server.sockets) == (-1, ())
        await asyncio.wait_for(server.wait_closed(), 10)

    asyncio.run(main())


# ---------------------------------------------------------------------- paths that are being removed


class Slow:
    """What closes takes as long as the test wants."""

    family = harken.AF_UNIX

    def __init__(self) -> None:
        self.begun, self.go_on, self.closed = threading.Event(), threading.Event(), 0

    def close(self) -> None:
        self.begun.set()
        assert self.go_on.wait(20)
        self.closed += 1


def closing(slow: Slow, then: Callable[[], object] = int) -> bool:
    return harken.asyncio._threads.close_all([slow], {}, then)


def test_who_waits_for_paths_waits_for_a_thread_that_is_not_started_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    waiting: list[Call] = []
    start = threading.Thread.start

    def late(self: threading.Thread) -> None:
        if self.name == "harken.aside":
            waiting.append(Call(harken.asyncio._threads.wait_for_paths))
            waiting[0].join(0.05)
        start(self)

    async def test() -> None:
        monkeypatch.setattr(threading.Thread, "start", late)
        assert closing(slow)

    asyncio.run(test())
    assert slow.begun.wait(20)
    assert waiting[0].is_alive()
    slow.go_on.set()
    waiting[0].outcome()
    assert slow.closed == 1


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_start_that_fails_or_is_interrupted_keeps_nobody_waiting(
    when: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not there is a thread by then, it is closed once, by that thread or by whoever wanted to start it."""
    slow = Slow()
    start = threading.Thread.start

    def interrupted(self: threading.Thread) -> None:
        if self.name != "harken.aside":
            start(self)
            return
        if when == "after":
            start(self)
            assert slow.begun.wait(20)
        slow.go_on.set()
        raise error

    async def test() -> None:
        monkeypatch.setattr(threading.Thread, "start", interrupted)
        if error is RuntimeError and when == "before":  # there is no room for a thread
            assert not closing(slow)
        else:
            with pytest.raises(error):
                closing(slow)

    asyncio.run(test())
    harken.asyncio._threads.wait_for_paths()
    assert slow.closed == (0 if (error, when) == (KeyboardInterrupt, "before") else 1)


@posix_only
def test_a_forked_child_waits_for_nothing_that_a_thread_of_its_parent_does() -> None:
    """Neither for what is being closed nor for a server's lock."""
    python(
        FORK
        + """
import asyncio, harken.asyncio, tempfile
from test_asyncio_state import Slow
from harken.asyncio import _threads
slow, folder = Slow(), tempfile.TemporaryDirectory()

async def main():
    server = await harken.asyncio.start_server(lambda *_: None, f"unix:{folder.name}/socket", start_serving=False)
    assert _threads.close_all([slow], server._paths, int)  # with its lock
    assert slow.begun.wait(20)
    def child():
        _threads.wait_for_paths()
        number = server.sockets[0].fileno()
        server.close()
        try:
            os.fstat(number)
        except OSError:
            return
        raise AssertionError("is open")
    in_a_child(child)
    assert os.path.exists(f"{folder.name}/socket")
    slow.go_on.set()
    server.close()
    await server.wait_closed()
    assert not os.path.exists(f"{folder.name}/socket")
asyncio.run(main())
"""
    )
