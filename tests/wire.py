"""Connections and threads for the tests: made in one line, ended in any case."""

from __future__ import annotations

import contextlib
import os
import platform
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harken
from harken._socket import queue_of

LINUX = sys.platform == "linux"  # not from `machine`, whose import of pytest takes children long
Kind = Any  # socket.socket or harken.Socket: what both have is what the tests use
KINDS = [socket.socket, harken.Socket]

# A thread that sleeps in this call waits for a lock or the GIL, in any other for the network.
_FUTEX = {"x86_64": "202", "aarch64": "98", "i686": "240", "armv7l": "240", "ppc64le": "221", "s390x": "238"}.get(
    platform.machine()
)


_PATH = [str(Path(harken.__file__).absolute().parent.parent), str(Path(__file__).absolute().parent)]
CHILD_ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([*_PATH, os.environ.get("PYTHONPATH", "")])}


def family_of(host: str) -> int:
    return harken.AF_INET6 if ":" in host else harken.AF_INET


@contextlib.contextmanager
def listening(kind: Kind = harken.Socket, host: str = "127.0.0.1", backlog: int = 128) -> Iterator[Any]:
    """A listening socket of ``kind`` on a port that the system chose."""
    with kind(family_of(host)) as listener:
        listener.bind((host, 0))
        listener.listen(backlog)
        yield listener


@contextlib.contextmanager
def connection(kind: Kind = harken.Socket, host: str = "127.0.0.1") -> Iterator[tuple[Any, Any]]:
    """Both ends of a TCP connection, the client's first."""
    with listening(kind, host) as listener, kind(family_of(host)) as client:
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            yield client, server


@contextlib.contextmanager
def clients(address: Any, count: int) -> Iterator[list[socket.socket]]:
    """``count`` standard library sockets that are connected to ``address``."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(address[:2])) for _ in range(count)]


def fill(sock: Any) -> int:
    """Sends until the system takes no more, and tells how much it took; the socket is non-blocking afterwards."""
    sock.setblocking(False)
    sent, before = 0, -1
    while sent > before:
        before = sent
        for size in (1 << 20, 1 << 10, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += sock.send(bytes(size))
        # A busy machine carries over later what was sent, and takes more then; select() tells of much room only.
        select.select([], [sock.fileno()], [], 0.1)
    return sent


@contextlib.contextmanager
def full_queue() -> Iterator[Any]:
    """The address of a listener whose queue is full: on Linux further connects wait."""
    with listening(socket.socket, backlog=0) as listener, contextlib.ExitStack() as stack:
        for _ in range(10):
            client = stack.enter_context(socket.socket())
            client.settimeout(0.05)
            if client.connect_ex(listener.getsockname()):
                break
        yield listener.getsockname()


def receive(sock: Any, size: int) -> bytes:
    """Exactly ``size`` bytes, or what came before the end."""
    data = bytearray()
    while len(data) < size and (part := sock.recv(min(size - len(data), 1 << 16))):
        data += part
    return bytes(data)


@contextlib.contextmanager
def fails(number: int | None = None) -> Iterator[None]:
    """The block raises OSError, with this number if one is given; on Windows with Winsock's own number beside it."""
    try:
        yield
    except OSError as error:
        assert number is None or error.errno == number, error
        assert sys.platform != "win32" or error.winerror, error
    else:
        raise AssertionError("did not fail")


def wait_until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


class Call(threading.Thread):
    """A call in a thread of its own: what became of it, and when."""

    result: Any = None
    error: BaseException | None = None
    ended: float = 0

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        super().__init__(daemon=True)  # a test that failed shall not hang as well
        self.call = lambda: function(*args)
        self.start()

    def run(self) -> None:
        try:
            self.result = self.call()
        except BaseException as error:
            self.error = error
        self.ended = time.monotonic()

    def blocked(self) -> Call:
        """Returns when the thread waits for the network: on Linux the kernel tells, elsewhere after a short while."""
        wait_until_blocked("self", self.native_id, lambda: f"{self.error or self.result!r}" if self.ended else "")
        return self

    def outcome(self, seconds: float = 10) -> Any:
        """The result, or the exception raised again."""
        self.join(seconds)
        assert not self.is_alive(), "the call did not end"
        if self.error:
            raise self.error
        return self.result


def wait_for_queue(listener: harken.Socket, length: int) -> None:
    """A client may come back from connect() a moment before the connection stands in the queue."""
    if queue_of(listener.fileno())[0] is None:
        time.sleep(0.05)  # a system that does not tell
    else:
        wait_until(lambda: queue_of(listener.fileno())[0] == length)


def close_all(sockets: list[Any]) -> None:
    for sock in sockets:
        sock.close()


def wait_until_blocked(process: int | str, thread: int | None, ended: Callable[[], str] = lambda: "") -> None:
    """Until the thread waits for the network. Only Linux tells; elsewhere a short while has to do."""
    where = Path(f"/proc/{process}/task/{thread}/syscall")
    deadline = time.monotonic() + (10 if LINUX and _FUTEX else 0.1)
    while True:
        assert not ended(), f"ended early: {ended()}"
        with contextlib.suppress(OSError):
            call, _, _ = where.read_text().partition(" ")
            if _FUTEX and call.isdigit() and call != _FUTEX:
                return
        if time.monotonic() > deadline:
            assert not (LINUX and _FUTEX), "does not block"
            return
        time.sleep(0.001)


def python(code: str, *args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs ``code`` in a child process, which imports the same harken."""
    ended = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50, check=False,
        env=CHILD_ENVIRONMENT, **options,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr + ended.stdout
    return ended


def answer_one(listener: Any) -> None:
    """What a worker does in a process of its own."""
    conn, _ = listener.accept()
    with conn, listener:
        conn.sendall(b"from the worker")
