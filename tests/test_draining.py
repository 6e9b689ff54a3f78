"""A server that stops without losing a client: `Acceptor.drain`, `harken.asyncio.Server.drain`."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from cable import SERVER, STAGES, Cable, at_stage, cable
from wire import Call, clients, fails, python, wait_until

import harken
from children import FORK, needs_root, run
from harken import _draining
from machine import WINDOWS, bind_text, linux_only, posix_only


@pytest.fixture(scope="module")
def wire() -> Iterator[Cable]:
    with cable(100) as made:
        yield made


def taker(acceptor: harken.Acceptor) -> tuple[list[harken.Socket], Call]:
    """A thread that accepts until there is nothing more."""
    taken: list[harken.Socket] = []
    return taken, Call(taken.extend, acceptor)


def close(connections: list[harken.Socket]) -> None:
    for connection in connections:
        connection.close()


def outcome(client: socket.socket) -> str:
    client.settimeout(5)
    try:
        return client.recv(10).decode()
    except OSError as error:
        return type(error).__name__


@linux_only
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("drains", [True, False])
def test_a_client_in_any_stage_of_its_handshake_is_served(wire: Cable, drains: bool, stage: str, version: int) -> None:
    """Without drain() all are reset."""
    with wire.server.inside():
        listeners = harken.listen(bind_text(SERVER[version]))
    with listeners, at_stage(wire, stage, version, listeners[0]) as several:
        if not drains:
            listeners.close()
            assert Counter(outcome(client) for client in several) == {"ConnectionResetError": 20}
            return
        acceptor = listeners.acceptor()
        with wire.server.inside():
            call = Call(acceptor.drain, 2.0)
        taken, thread = taker(acceptor)
        thread.outcome()
        for client in several:
            client.send(b"asked")
        for connection in taken:
            connection.settimeout(5)
            assert connection.recv(5) == b"asked", "what it inherits from its listener does not make it deaf"
            connection.sendall(b"served")
        assert Counter(outcome(client) for client in several) == {"served": 20}
        close(taken)
        drained = call.outcome()
        assert (drained.left, drained.lost_at_most) == (0, 0)


@linux_only
def test_whoever_comes_now_is_not_refused_before_the_end() -> None:
    with harken.listen("127.0.0.1:0") as listeners, socket.socket() as late, clients(listeners[0].address, 2):
        acceptor = listeners.acceptor()
        taken, thread = taker(acceptor)
        wait_until(lambda: len(taken) + acceptor.stats().open >= 2)
        call = Call(acceptor.drain, 30.0)
        wait_until(lambda: listeners[0].fileno() < 0 or listeners[0].getsockopt(socket.IPPROTO_IP, 21) == 255)
        late.setblocking(False)
        late.connect_ex(listeners[0].address)
        thread.outcome()
        assert not call.ended, "two connections are open"
        close(taken)
        drained = call.outcome()
        assert (drained.accepted, drained.finished, drained.left, drained.lost_at_most) == (0, 2, 0, 0)
        assert select.select([], [late], [], 5)[1]
        assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


@linux_only
def test_what_nobody_accepts_is_told() -> None:
    with harken.listen("127.0.0.1:0") as listeners, clients(listeners[0].address, 3):
        drained = listeners.acceptor().drain(0.2)
        assert (drained.accepted, drained.left, drained.lost_at_most) == (0, 0, 3)
        assert drained.waited >= 0.2


@linux_only
def test_silent_clients_of_a_deferred_listener_are_handed_out() -> None:
    with harken.listen("127.0.0.1:0", defer_accept=60) as listeners, clients(listeners[0].address, 5):
        acceptor = listeners.acceptor()
        taken, thread = taker(acceptor)
        drained = Call(acceptor.drain, 10.0)
        thread.outcome()
        assert len(taken) == 5
        close(taken)
        assert drained.outcome().lost_at_most == 0


@posix_only
def test_a_unix_socket_has_no_path_any_more_and_its_queue_is_served(tmp_path: Any) -> None:
    path = tmp_path / "s"
    with harken.listen(f"unix:{path}") as listeners, contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        acceptor = listeners.acceptor()
        taken, thread = taker(acceptor)
        call = Call(acceptor.drain, 10.0)
        thread.outcome()
        assert len(taken) == 3
        assert not path.exists()
        close(taken)
        assert call.outcome().left == 0


@linux_only
def test_what_other_processes_have_too_is_left_to_them() -> None:
    code = (
        FORK
        + """
listeners = harken.listen("127.0.0.1:0")
client = socket.create_connection(("127.0.0.1", listeners.port))
def child():
    acceptor = listeners.acceptor()
    print(acceptor.drain())
in_a_child(child)
late = socket.create_connection(("127.0.0.1", listeners.port), timeout=5)
print(listeners[0].stats().queued)
"""
    )
    told = python(code).stdout.splitlines()
    assert told[0].startswith("Drained(accepted=0, finished=0, left=0, lost_at_most=0")
    assert told[1] == "2"


@linux_only
@needs_root
def test_it_takes_no_privilege() -> None:
    told = run("""
        import harken, os, socket, threading
        harken.preload()
        listeners = harken.listen("127.0.0.1:0")
        become(65534)
        acceptor = listeners.acceptor()
        thread = threading.Thread(target=lambda: [one.close() for one in acceptor])
        clients = [socket.create_connection(("127.0.0.1", listeners.port)) for _ in range(5)]
        thread.start()
        drained = acceptor.drain()
        thread.join()
        tell(lost=drained.lost_at_most, left=drained.left)
    """)
    assert told == {"lost": 0, "left": 0}


def test_where_the_system_does_not_count_the_queue_it_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_draining, "queue", lambda _: (None, None))
    with harken.listen("127.0.0.1:0") as listeners, clients(listeners[0].address, 5):
        assert _draining.waiting(listeners) == 1
        acceptor = listeners.acceptor()
        taken, thread = taker(acceptor)
        call = Call(acceptor.drain, 20.0)
        thread.outcome()
        assert len(taken) == 5
        close(taken)
        assert call.outcome().left == 0
        assert _draining.waiting(listeners) == 0


@pytest.mark.parametrize("deadline", [-1, float("nan")])
def test_a_deadline_is_a_number_of_seconds(deadline: float) -> None:
    with harken.listen("127.0.0.1:0") as listeners, listeners.acceptor() as acceptor:
        with pytest.raises(ValueError, match="deadline must be a number of seconds"):
            acceptor.drain(deadline)
        assert not acceptor.closed


def test_a_closed_acceptor_has_nothing_to_drain() -> None:
    with harken.listen("127.0.0.1:0") as listeners:
        acceptor = listeners.acceptor()
        acceptor.close()
        with fails(errno.WSAENOTSOCK if WINDOWS else errno.EBADF):
            acceptor.drain()


@linux_only
@pytest.mark.parametrize("how", ["close", "to_socket"])
def test_a_listener_that_is_gone_does_not_hide_the_handshakes_of_the_others(how: str) -> None:
    with harken.listen("127.0.0.1:0", "127.0.0.1:0") as listeners, contextlib.ExitStack() as stack:
        acceptor = listeners.acceptor()
        gone = getattr(listeners[0], how)()
        if gone is not None:
            stack.enter_context(gone)
        assert acceptor.drain(5.0).lost_at_most == 0


@linux_only
def test_a_drain_that_is_interrupted_leaves_no_listener_that_takes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(_: object) -> None:
        raise KeyboardInterrupt

    with harken.listen("127.0.0.1:0") as listeners, clients(listeners[0].address, 1):
        acceptor = listeners.acceptor()
        monkeypatch.setattr(_draining.time, "sleep", raises)
        with pytest.raises(KeyboardInterrupt):
            acceptor.drain(5.0)
        assert acceptor.closed
        assert listeners[0].state == "closed"


# ---------------------------------------------------------------------------- asyncio


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(100):
            writer.write(data)
            await writer.drain()
    writer.close()


async def begun() -> tuple[Any, tuple[str, int]]:
    server = await harken.asyncio.start_server(echo, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()


def test_an_asyncio_server_serves_those_in_the_queue() -> None:
    async def main() -> tuple[Any, list[bytes], bool]:
        server, address = await begun()
        loop = asyncio.get_running_loop()
        with clients(address, 5) as several:  # nobody has accepted them: the loop has not run since
            for client in several:
                client.sendall(b"asked")
                client.shutdown(socket.SHUT_WR)
            drained = await server.drain(20)
            answers = []
            for client in several:
                client.setblocking(False)
                answers.append(await asyncio.wait_for(loop.sock_recv(client, 100), 5))
        return drained, answers, server.is_serving()

    drained, answers, serves = asyncio.run(main())
    assert answers == [b"asked"] * 5
    assert not serves
    assert drained.left == 0
    assert drained.finished == 5
    assert drained.waited < 20


def test_an_asyncio_server_cuts_off_whoever_stays_until_the_deadline() -> None:
    async def main() -> tuple[Any, bool, bool]:
        server, address = await begun()
        with clients(address, 3):
            await asyncio.sleep(0)
            before = server.draining
            drained = await server.drain(0.3)
        return drained, before, server.draining

    drained, before, after = asyncio.run(main())
    assert (before, after) == (False, True)
    assert drained.left == 3
    assert drained.finished == 0


def test_an_asyncio_server_that_does_not_serve_yet_is_closed() -> None:
    async def main() -> Any:
        server = await harken.asyncio.start_server(echo, "127.0.0.1", 0, start_serving=False)
        return await server.drain(5)

    drained = asyncio.run(main())
    assert (drained.accepted, drained.left) == (0, 0)


def test_an_asyncio_server_whose_drain_is_cancelled_is_closed() -> None:
    async def main() -> bool:
        server, address = await begun()
        server.acceptor.pause()  # what is in the queue stays there
        with clients(address, 1):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(server.drain(20), 0.1)
            return bool(server.is_serving() or server.sockets)

    assert not asyncio.run(main())
