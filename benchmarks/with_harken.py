"""The cases with harken."""

from __future__ import annotations

from itertools import repeat
from time import perf_counter_ns as now

from answering import answer, close_all, wait_for_queue

import harken
from harken import (
    AF_INET,
    AF_UNSPEC,
    AI_PASSIVE,
    IPPROTO_TCP,
    SO_REUSEADDR,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
    Socket,
    getaddrinfo,
)


def numeric(count: int) -> int:
    start = now()
    for _ in repeat(None, count):
        getaddrinfo("127.0.0.1", 27015, AF_INET, SOCK_STREAM, IPPROTO_TCP, AI_PASSIVE)
    return now() - start


def numeric_named(count: int) -> int:
    """As Microsoft's documents write it."""
    start = now()
    for _ in repeat(None, count):
        getaddrinfo("127.0.0.1", "27015", family=AF_INET, type=SOCK_STREAM, proto=IPPROTO_TCP, flags=AI_PASSIVE)
    return now() - start


def numeric_decoded(count: int) -> int:
    start = now()
    for _ in repeat(None, count):
        for entry in getaddrinfo("127.0.0.1", 27015, AF_INET, SOCK_STREAM, IPPROTO_TCP, AI_PASSIVE):
            tuple(entry)
    return now() - start


def wildcard(count: int) -> int:
    start = now()
    for _ in repeat(None, count):
        getaddrinfo(None, 27015, AF_UNSPEC, SOCK_STREAM, IPPROTO_TCP, AI_PASSIVE)
    return now() - start


def listen_close(count: int) -> int:
    start = now()
    for _ in repeat(None, count):
        harken.listen("127.0.0.1:0").close()
    return now() - start


def steps(count: int) -> int:
    start = now()
    for _ in repeat(None, count):
        with getaddrinfo("127.0.0.1", 0, 0, SOCK_STREAM, IPPROTO_TCP, AI_PASSIVE) as results:
            first = results[0]
            sock = Socket(first.family, first.type, first.proto)
            sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            sock.bind(first)
        sock.listen()
        sock.close()
    return now() - start


def drain_many(count: int) -> int:
    taken: list[Socket] = []
    with harken.listen("127.0.0.1:0") as listeners:
        sock = listeners[0]
        sock.setblocking(False)
        wait_for_queue(sock)
        start = now()
        while len(taken) < count:
            taken += sock.accept_many(64)
        took = now() - start
    close_all(taken, count)
    return took


def drain_one(count: int) -> int:
    taken = []
    with harken.listen("127.0.0.1:0") as listeners:
        sock = listeners[0]
        sock.setblocking(False)
        wait_for_queue(sock)
        start = now()
        for _ in repeat(None, count):
            connection, _ = sock.accept()
            taken.append(connection)
        took = now() - start
    close_all(taken, count)
    return took


if __name__ == "__main__":
    answer(
        {
            "numeric": numeric,
            "numeric_named": numeric_named,
            "numeric_decoded": numeric_decoded,
            "wildcard": wildcard,
            "listen": listen_close,
            "steps": steps,
            "drain_many": drain_many,
            "drain_many_nonblocking": drain_many,  # they are
            "drain_one": drain_one,
        }
    )
