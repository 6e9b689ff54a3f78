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


def test_the_queue_of_an_abstract_socket_is_counted() -> None:
    with harken.Socket(AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind("")  # the system chooses an abstract name
        sock.listen(7)
        with connections(sock.getsockname(), 5):
            assert facts(sock) == facts(sock.fileno()) == (5, 7, None, None)
            for left in (4, 3):
                sock.accept()[0].close()
                assert facts(sock) == (left, 7, None, None)


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


def test_a_default_backlog_is_what_the_system_grants(tmp_path: Path) -> None:
    sock = socket.socket(AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(tmp_path / "socket"))
    with harken.adopt(sock) as listener:
        listener.listen()
        assert listener.backlog == int(Path("/proc/sys/net/core/somaxconn").read_text())


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

    monkeypatch.setattr("harken._netlink.ask", refuse)
    with harken.Socket(AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind("")
        sock.listen(7)
        assert facts(sock) == NOTHING


def test_the_counters_of_tcp_are_told_for_tcp() -> None:
    with harken.listen("127.0.0.1:0") as (listener,):
        assert None not in facts(listener)
