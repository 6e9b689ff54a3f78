"""Clients that count: many at once ask a server for a page, over and over, and tell what became of each request.

    python tests/asking.py HOST PORT [--clients 50] [--how close|late|keep] [--pause 0.02] [--patience 30]

close: a connection for each request. late: the same, but the request is sent a while after the connection is there.
keep: one connection for many requests, with a pause between them. It asks until its standard input is closed, and then
writes a line of JSON: how many requests there were, how many failed, and at which stage. Nothing is tried again: what
fails is a failure. A kept connection that the server closes while nobody asks is none.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from errno import ECONNREFUSED, ECONNRESET, errorcode
from itertools import count
from typing import Any

LATE = 0.06
"""Seconds between the connection and the request."""


class Client:
    """One of the clients, with the connection that it has now."""

    def __init__(self, of: Clients) -> None:
        self.of = of
        self.socket: socket.socket | None = None

    def begin(self) -> None:
        if self.of.ends:
            return
        sock = socket.socket(self.of.family, socket.SOCK_STREAM)
        sock.setblocking(False)
        self.socket, self.stage, self.kept, self.answer = sock, "connecting", False, b""
        self.asked()
        error = sock.connect_ex(self.of.address)
        if errorcode.get(error) not in (None, "EINPROGRESS"):
            self.fail(error)
            return
        self.of.watched[sock.fileno()] = self
        self.of.poll.register(sock, select.EPOLLOUT | select.EPOLLIN)

    def asked(self) -> None:
        """From now on the server has so much time."""
        self.since = time.monotonic()
        self.of.later(self.of.patience, self.lose_patience, self.socket, self.since)

    def lose_patience(self, sock: socket.socket | None, since: float) -> None:
        if sock is self.socket is not None and since == self.since and self.stage != "idle":
            self.end(f"timeout_{self.stage}")

    def fail(self, error: int) -> None:
        names = {ECONNREFUSED: "refused", ECONNRESET: "reset"}
        self.end(f"{names.get(error, errorcode.get(error, str(error)))}_{self.stage}")

    def end(self, failure: str = "") -> None:
        """Of this connection; the next one comes after a pause."""
        sock, self.socket = self.socket, None
        if sock is not None:
            self.of.watched.pop(sock.fileno(), None)
            with suppress(OSError, ValueError):
                self.of.poll.unregister(sock)
            sock.close()
        if failure:
            self.of.results[failure + ("_kept" if self.kept else "")] += 1
        self.of.later(self.of.pause if failure or self.of.how == "keep" else 0, self.begin)

    def ask(self, sock: socket.socket) -> None:
        if sock is not self.socket:
            return  # it was closed in the pause
        if self.stage == "idle":
            self.asked()
        self.stage = "answering"
        try:
            sock.send(self.of.request)
        except OSError as error:
            self.fail(error.errno or 0)
            return
        self.of.poll.modify(sock, select.EPOLLIN)

    def ready(self) -> None:
        sock = self.socket
        if sock is None:
            return
        if self.stage == "connecting":
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self.fail(error)
            elif self.of.how == "late":
                self.stage = "late"
                self.of.poll.modify(sock, 0)
                self.of.later(LATE, self.ask, sock)
            else:
                self.ask(sock)
            return
        try:
            data = sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            if self.stage == "idle":
                self.end()
            else:
                self.fail(error.errno or 0)
            return
        if self.stage == "idle":
            self.end()
        elif not data:
            self.end(f"closed_{self.stage}")
        else:
            self.answer += data
            self.answered(sock)

    def answered(self, sock: socket.socket) -> None:
        head, found, body = self.answer.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        if not found or len(body) < int(fields.get(b"content-length", b"0")):
            return
        status = head.split(b" ", 2)[1].decode()
        self.of.results["ok" if status == "200" else f"status_{status}"] += 1
        self.of.took.append(time.monotonic() - self.since)
        self.of.bodies[body[-40:].decode("latin-1").strip()] += 1
        self.answer = b""
        if self.of.how != "keep" or fields.get(b"connection") == b"close":
            self.end()
            return
        self.stage, self.kept = "idle", True
        if self.of.ends:
            self.end()
        else:
            self.of.later(random.expovariate(1 / self.of.pause) if self.of.pause else 0, self.ask, sock)


class Clients:
    def __init__(self, host: str, port: int, clients: int, how: str, pause: float, patience: float) -> None:
        self.family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.address, self.how, self.pause, self.patience = (host, port), how, pause, patience
        stays = "keep-alive" if how == "keep" else "close"
        self.request = f"GET / HTTP/1.1\r\nHost: harken\r\nConnection: {stays}\r\n\r\n".encode()
        self.poll = select.epoll()
        self.watched: dict[int, Client] = {}
        self.timers: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.results: Counter[str] = Counter()
        self.bodies: Counter[str] = Counter()
        self.took: list[float] = []
        self.ends = False
        self._order = count()
        for n in range(clients):
            self.later(n * 0.0005, Client(self).begin)

    def later(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self.timers, (time.monotonic() + seconds, next(self._order), call, arguments))

    def run(self) -> dict[str, Any]:
        self.poll.register(sys.stdin, select.EPOLLIN)
        end = float("inf")
        while time.monotonic() < end and not (self.ends and all(one.stage == "idle" for one in self.watched.values())):
            while self.timers and self.timers[0][0] <= time.monotonic():
                _, _, call, arguments = heapq.heappop(self.timers)
                call(*arguments)
            wait = max(0, min(0.1, self.timers[0][0] - time.monotonic())) if self.timers else 0.1
            for number, _ in self.poll.poll(wait, 512):
                if number == sys.stdin.fileno():
                    self.ends, end = True, time.monotonic() + self.patience + 1
                    self.poll.unregister(sys.stdin)
                elif number in self.watched:
                    self.watched[number].ready()
        good = self.results.pop("ok", 0)
        failed = sum(self.results.values())
        took = sorted(self.took) or [0.0]
        return {
            "requests": good + failed,
            "failed": failed,
            "failures": dict(self.results),
            "answers_by": sorted(self.bodies.values(), reverse=True)[:16],
            "median_ms": round(1000 * took[len(took) // 2], 1),
            "p999_ms": round(1000 * took[int(len(took) * 0.999)], 1),
            "longest_ms": round(1000 * took[-1], 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--how", choices=["close", "late", "keep"], default="close")
    parser.add_argument("--pause", type=float, default=0.02)
    parser.add_argument("--patience", type=float, default=30)
    asked = parser.parse_args()
    print(json.dumps(Clients(**vars(asked)).run()))


if __name__ == "__main__":
    main()
