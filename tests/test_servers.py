"""Servers of all kinds on harken's sockets. For each the kernel tells: the queue is as long as it was granted, and the
connections have TCP_NODELAY, without which a response in two writes waits 40 ms for the client's delayed ACK.

The test listens, and the server is a process of its own that inherits the socket: what it does to the queue is seen on
the test's own listener, and the sockets of its connections are fetched from it.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import harken
from application import ANSWER, FIRST, REST
from children import interpreter, other_end, serving
from machine import linux_only

pytestmark = linux_only  # the queue, and the sockets of another process, are looked at by Linux's means

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n"  # and a byte later

Command = list[str]


def server(command: Command, *needs: str, name: str) -> Any:
    """A server as a parameter, skipped where it is not installed. In its command ``{fd}`` is the listener's number, and
    ``{backlog}`` what was granted."""
    missing = [module for module in needs if find_spec(module) is None]
    marks = [pytest.mark.skip(reason=f"{', '.join(missing)} is not installed")] if missing else []
    return pytest.param(command, id=name, marks=marks)


def module(line: str) -> Command:
    return [sys.executable, "-m", *line.split()]


SOCKETS = """
import harken
sockets = harken.listen("fd://{fd}").sockets()
"""

ASYNCIO = """
import asyncio

async def answer(reader, writer):
    while await reader.readuntil(b"\\r\\n\\r\\n"):
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 6\\r\\n\\r\\n")
        writer.write(b"answer")

async def main(**options):
    server = await asyncio.start_server(answer, sock=sockets[0], **options)
    await server.serve_forever()

"""

UVICORN = """
import uvicorn
from uvicorn.supervisors import Multiprocess

def config(loop, **options):
    return uvicorn.Config("application:asgi", loop=loop, **options)

"""

AIOHTTP = """
from aiohttp import web

async def answer(request):
    return web.Response(body=b"answer")

application = web.Application()
application.add_routes([web.get("/", answer)])
web.run_app(application, sock=sockets)
"""

TORNADO = """
import asyncio
from tornado import httpserver, web

class Answer(web.RequestHandler):
    def get(self):
        self.write(b"answer")

async def main():
    for sock in sockets:
        sock.setblocking(False)  # tornado accepts until none is left
    httpserver.HTTPServer(web.Application([("/", Answer)])).add_sockets(sockets)
    await asyncio.Event().wait()

asyncio.run(main())
"""

TRIO = """
import harken, trio

async def answer(stream):
    while await stream.receive_some():
        await stream.send_all(b"HTTP/1.1 200 OK\\r\\nContent-Length: 6\\r\\n\\r\\n")
        await stream.send_all(b"answer")

async def main():
    sock = harken.listen("fd://{fd}")[0].to_socket()
    await trio.serve_listeners(answer, [trio.SocketListener(trio.socket.from_stdlib_socket(sock))])

trio.run(main)
"""

# What systemd does: the socket is number 3, and the pid is that of the server.
AS_SYSTEMD = """
os.dup2({fd}, 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "gunicorn", "--no-control-socket", "application:wsgi"])
"""

ONE_PROCESS = [
    server(interpreter(SOCKETS + ASYNCIO + "asyncio.run(main())"), name="asyncio"),
    server(
        interpreter(SOCKETS + ASYNCIO + "import uvloop; uvloop.run(main(backlog={backlog}))"), "uvloop", name="uvloop"
    ),
    server(
        interpreter(SOCKETS + UVICORN + "uvicorn.Server(config('asyncio')).run(sockets)"),
        "uvicorn",
        name="uvicorn, sockets=",
    ),
    server(
        interpreter(SOCKETS + UVICORN + "uvicorn.Server(config('uvloop', backlog={backlog})).run(sockets)"),
        "uvicorn",
        "uvloop",
        name="uvicorn on uvloop, sockets=",
    ),
    server(
        module("uvicorn application:asgi --loop asyncio --fd {fd} --backlog {backlog}"), "uvicorn", name="uvicorn --fd"
    ),
    server(
        module("uvicorn application:asgi --loop uvloop --fd {fd} --backlog {backlog}"),
        "uvicorn",
        "uvloop",
        name="uvicorn on uvloop, --fd",
    ),
    server(
        module("gunicorn --no-control-socket application:asgi -b fd://{fd} -k asgi --asgi-loop asyncio -c {hook}"),
        "gunicorn",
        name="gunicorn -k asgi",
    ),
    server(
        module(
            "gunicorn --no-control-socket application:asgi -b fd://{fd} -k uvicorn_worker.UvicornWorker"
            " --backlog {backlog}"
        ),
        "gunicorn",
        "uvicorn_worker",
        name="gunicorn -k UvicornWorker",
    ),
    server(
        module("hypercorn application:asgi -b fd://{fd} --workers 0 --backlog {backlog}"), "hypercorn", name="hypercorn"
    ),
    server(
        module("hypercorn application:asgi -b fd://{fd} --workers 0 -k trio --backlog {backlog}"),
        "hypercorn",
        "trio",
        name="hypercorn -k trio",
    ),
    server(interpreter(SOCKETS + AIOHTTP), "aiohttp", name="aiohttp"),
    server(interpreter(TRIO), "trio", name="trio"),
]

TWO_WORKERS = [
    server(
        interpreter(
            SOCKETS
            + UVICORN
            + "Multiprocess(config('asyncio', workers=2, timeout_worker_healthcheck=50), sockets=sockets).run()"
        ),
        "uvicorn",
        name="uvicorn, sockets=",
    ),
    server(
        module("gunicorn --no-control-socket application:asgi -b fd://{fd} -w 2 -k asgi --asgi-loop asyncio -c {hook}"),
        "gunicorn",
        name="gunicorn -k asgi",
    ),
    server(
        module("hypercorn application:asgi -b fd://{fd} --workers 2 --backlog {backlog}"), "hypercorn", name="hypercorn"
    ),
]

ONE_REQUEST = [
    server(module("gunicorn --no-control-socket application:wsgi -b fd://{fd}"), "gunicorn", name="gunicorn"),
    server(
        module("gunicorn --no-control-socket application:wsgi -b fd://{fd} --threads 2"),
        "gunicorn",
        name="gunicorn --threads 2",
    ),
    server(interpreter(AS_SYSTEMD), "gunicorn", name="gunicorn under systemd"),
]


TURNS_NODELAY_OFF = [server(interpreter(SOCKETS + TORNADO), "tornado", name="tornado")]


def gunicorn_hook() -> str:
    """A configuration, as the documentation has it."""
    text = (Path(__file__).parent.parent / "docs" / "servers.md").read_text("utf-8")
    found = re.search(r"```python\n(# gunicorn\.conf\.py\n.*?)```", text, re.DOTALL)
    assert found
    return found[1]


@contextmanager
def started(command: Command, folder: Path) -> Iterator[tuple[harken.Listener, int]]:
    """A listener with the longest queue, and the pid of the server that serves on it."""
    hook = folder / "gunicorn.conf.py"
    hook.write_text(gunicorn_hook())
    with harken.listen("127.0.0.1:0") as (listener,):
        values = {"fd": listener.fileno(), "backlog": listener.backlog, "hook": hook}
        for name, value in values.items():
            command = [word.replace(f"{{{name}}}", str(value)) for word in command]
        # Nobody waits until it is ready: the queue is there from the beginning.
        with serving(command, listener, folder / "log") as pid:
            yield listener, pid


def ask(client: socket.socket, request: bytes, until: bytes) -> None:
    """Sends a request, and reads until the answer has come so far."""
    client.sendall(request)
    received = b""
    while not received.endswith(until):
        data = client.recv(1 << 16)
        assert data, received
        received += data


def served_by(client: socket.socket, pid: int) -> int:
    """The process that has the connection; which has TCP_NODELAY."""
    worker, connection = other_end(client, pid)
    with connection:
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    return worker


@pytest.mark.parametrize("command", ONE_PROCESS)
def test_the_queue_and_nodelay(command: Command, tmp_path: Path) -> None:
    with started(command, tmp_path) as (listener, pid):
        granted = listener.backlog
        with socket.create_connection(listener.address, timeout=30) as client:
            ask(client, GET, ANSWER)
            served_by(client, pid)
            ask(client, GET, ANSWER)
        assert listener.backlog == granted


@pytest.mark.parametrize("command", TURNS_NODELAY_OFF)
def test_the_queue_and_nodelay_before_the_first_request(command: Command, tmp_path: Path) -> None:
    # tornado turns it off after each answer, and on at the end of the next one.
    with started(command, tmp_path) as (listener, pid):
        granted = listener.backlog
        with (
            socket.create_connection(listener.address, timeout=30) as silent,
            socket.create_connection(listener.address, timeout=30) as client,
        ):
            ask(client, GET, ANSWER)
            served_by(silent, pid)  # it came first, so it has been accepted
        assert listener.backlog == granted


@pytest.mark.parametrize("command", ONE_REQUEST)
def test_the_queue_and_nodelay_where_a_connection_is_one_request(command: Command, tmp_path: Path) -> None:
    with started(command, tmp_path) as (listener, pid):
        granted = listener.backlog
        with socket.create_connection(listener.address, timeout=30) as client:
            ask(client, POST, FIRST)
            served_by(client, pid)
            ask(client, b"x", REST)
        assert listener.backlog == granted


@pytest.mark.parametrize("command", TWO_WORKERS)
def test_the_queue_and_nodelay_of_two_workers(command: Command, tmp_path: Path) -> None:
    with started(command, tmp_path) as (listener, pid):
        granted = listener.backlog
        with socket.create_connection(listener.address, timeout=30) as client:
            ask(client, GET, ANSWER)
            first = served_by(client, pid)
        os.kill(first, signal.SIGSTOP)  # the other one has to serve
        try:
            with socket.create_connection(listener.address, timeout=30) as client:
                ask(client, GET, ANSWER)
                assert served_by(client, pid) != first
        finally:
            os.kill(first, signal.SIGCONT)
        assert listener.backlog == granted
