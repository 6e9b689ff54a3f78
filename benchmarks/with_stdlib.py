"""The cases with the standard library: the same system calls, as far as it lets one choose."""

from __future__ import annotations

import socket
from itertools import repeat
from socket import AF_INET, AF_UNSPEC, AI_PASSIVE, IPPROTO_TCP, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, TCP_NODELAY
from time import perf_counter_ns as now

from answering import answer, close_all, wait_for_queue

MOST = 2**31 - 1  # the backlog that asks for the kernel's maximum


def numeric(count: int) -> int:
    start = now()
    for _ in repeat(None, count):
        socket.getaddrinfo("127.0.0.1", 27015, AF_INET, SOCK_STREAM, IPPROTO_TCP, AI_PASSIVE)
    return now() - start


def numeric_named(count: int) -> int:
    """As Microsoft's documents write it."""
    start = now()
    for _ in repeat(None, count):
        socket.getaddrinfo("127.0.0.1", "27015", family=AF_INET, type=SOCK_STREAM, proto=IPPROTO_TCP, flags=AI_PASSIVE)
    return now() - start


def wildcard(count: int) -> int:
    start = now()
    for _ in repeat(None, count):
        socket.getaddrinfo(None, 27015, AF_UNSPEC, SOCK_STREAM, IPPROTO_TCP, AI_PASSIVE)
    return now() - start


def listener() -> socket.socket:
    family, type_, proto, _, address = socket.getaddrinfo("127.0.0.1", 0, 0, SOCK_STREAM, IPPROTO_TCP, AI_PASSIVE)[0]
    sock = socket.socket(family, type_, proto)
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    sock.bind(address)
    sock.listen(MOST)
    return sock


def listen_close(count: int) -> int:
    start = now()
    for _ in repeat(None, count):
        listener().close()
    return now() - start


def drain(count: int) -> int:
    """``socket.accept()`` and nothing else: its connections block."""
    taken = []
    with listener() as sock:
        sock.setblocking(False)
        wait_for_queue(sock)
        start = now()
        for _ in repeat(None, count):
            connection, _ = sock.accept()
            taken.append(connection)
        took = now() - start
    close_all(taken, count)
    return took


def drain_nonblocking(count: int) -> int:
    """``socket.accept()`` and ``setblocking(False)``, which is what a server on an event loop does."""
    taken = []
    with listener() as sock:
        sock.setblocking(False)
        wait_for_queue(sock)
        start = now()
        for _ in repeat(None, count):
            connection, _ = sock.accept()
            connection.setblocking(False)
            taken.append(connection)
        took = now() - start
    close_all(taken, count)
    return took


if __name__ == "__main__":
    answer(
        {
            "numeric": numeric,
            "numeric_named": numeric_named,
            "numeric_decoded": numeric,  # it decodes always
            "wildcard": wildcard,
            "listen": listen_close,
            "steps": listen_close,
            "drain_many": drain,
            "drain_many_nonblocking": drain_nonblocking,
            "drain_one": drain,
        }
    )
