"""The queues of unix sockets, which Linux tells over sock_diag. Those of TCP are in test_listen.py."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import harken
from children import run
from machine import linux_only

pytestmark = linux_only

AF_UNIX = getattr(socket, "AF_UNIX", 0)
NOTHING = (None, None, None, None)


def facts(what: harken.Socket | socket.socket | int) -> tuple[int | None, ...]:
    stats = harken.stats(what)
    return stats.queued, stats.backlog, stats.overflows, stats.drops


@contextlib.contextmanager
def connections(address: object, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(stack.enter_context(socket.socket(AF_UNIX, socket.SOCK_STREAM)))
            made[-1].connect(address)  # type: ignore[arg-type]
        yield made


@pytest.mark.needs_sock_diag
def test_the_queue_of_an_abstract_socket_is_counted() -> None:
    with harken.Socket(AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind("")  # the system chooses an abstract name
        sock.listen(7)
        with connections(sock.getsockname(), 5):
            assert facts(sock) == facts(sock.fileno()) == (5, 7, None, None)
            for left in (4, 3):
                sock.accept()[0].close()
                assert facts(sock) == (left, 7, None, None)


@pytest.mark.needs_sock_diag
def test_the_queue_of_a_path_is_counted_and_of_no_other(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(4):
            sock = stack.enter_context(socket.socket(AF_UNIX, socket.SOCK_STREAM))
            sock.bind(str(tmp_path / str(number)))
            sock.listen(10 + number)
            stack.enter_context(connections(sock.getsockname(), number))
            stack.enter_context(listener := harken.adopt(sock))
            assert listener.backlog == 10 + number
            assert facts(listener) == (number, 10 + number, None, None)


@pytest.mark.needs_tcp_info
def test_a_default_backlog_is_what_the_system_grants(tmp_path: Path) -> None:
    sock = socket.socket(AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(tmp_path / "socket"))
    with harken.adopt(sock) as listener:
        listener.listen()
        assert listener.backlog == int(Path("/proc/sys/net/core/somaxconn").read_text())


@pytest.mark.needs_tcp_info
def test_a_longer_queue_can_be_asked_for_and_a_shorter_one_is_not_made(tmp_path: Path) -> None:
    sock = socket.socket(AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(tmp_path / "socket"))
    sock.listen(10)
    with harken.adopt(sock) as listener:
        for asked, granted in [(5, 10), (20, 20), (10, 20), (None, 20)]:
            listener.listen(asked)
            assert listener.backlog == granted


def test_what_does_not_listen_has_no_queue(tmp_path: Path) -> None:
    with socket.socket(AF_UNIX, socket.SOCK_STREAM) as sock:
        assert facts(sock) == NOTHING
        sock.bind(str(tmp_path / "socket"))
        assert facts(sock) == NOTHING
    one, other = socket.socketpair()
    with one, other:
        one.send(b"waits")
        assert facts(other) == NOTHING


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOENT])
def test_where_the_kernel_may_not_be_asked_it_is_none(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("harken._diagnosis.netlink.ask", refuse)
    with harken.Socket(AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind("")
        sock.listen(7)
        assert facts(sock) == NOTHING


@pytest.mark.needs_tcp_info
def test_the_counters_of_tcp_are_told_for_tcp() -> None:
    with harken.listen("127.0.0.1:0") as (listener,):
        assert None not in facts(listener)
        assert facts(listener)[2:] == (0, 0)


def test_drops_are_those_of_the_listener_itself() -> None:
    """In a network of its own, so that what the whole of it counts is what these listeners did."""
    told = run(
        """
        import harken
        (busy,), (idle,), (other,) = [harken.listen("127.0.0.1:0", backlog=backlog) for backlog in (1, 1, 100)]
        clients = [socket.socket() for _ in range(12)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(busy.address)  # none waits for it
        busy.settimeout(20)
        names = "queued", "backlog", "overflows", "drops", "namespace_overflows", "namespace_drops"
        tell(**{which: {name: getattr(one.stats(), name) for name in names}
                for which, one in (("busy", busy), ("idle", idle), ("other", other))},
             shown=repr(idle.stats()), shared=harken.stats(os.dup(busy.fileno())).drops)
    """,
        namespace=True,
    )
    busy, idle, other = told["busy"], told["idle"], told["other"]
    assert busy["overflows"] == busy["drops"] >= 10
    assert told["shared"] >= 10  # it is the socket's, whoever asks
    for one in (idle, other):
        assert (one["queued"], one["overflows"], one["drops"]) == (0, 0, 0)
        assert one["namespace_drops"] >= one["namespace_overflows"] >= 10
    assert told["shown"].startswith("ListenerStats(queued=0, backlog=1, overflows=0, drops=0, namespace_overflows=")


def test_several_at_once_are_refused_with_the_way_to_ask_each() -> None:
    with harken.listen("127.0.0.1:0", "127.0.0.1:0") as listeners:
        for several in (listeners, list(listeners)):
            with pytest.raises(TypeError, match=r"one listener; for each of several: \[one\.stats\(\) for one in"):
                harken.stats(several)  # type: ignore[arg-type]
