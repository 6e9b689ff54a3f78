"""Workers are replaced under load, and nobody notices: `python tests/reloading.py [--long] [--only WORD]`.

Each case runs harken.workers.serve() with a server in its workers, and clients that count (asking.py) behind a cable
that takes 20 ms and loses 1 % each way (cable.py). All workers are replaced by SIGHUP, twice with --long. Beside the
cases stands the same without patience: workers are stopped when their successor is ready. Then a stop with 100 clients,
of whom none may be reset. Prints a line a case; the exit code is 1 if one fails. Needs root; servers that are not
installed are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cable import SERVER, cable
from retiring import Workers, beside, line

import harken

HERE = Path(__file__)


def with_acceptor(listeners: harken.Listeners) -> None:
    """harken's engine: it accepts until the listeners are closed, and ends when all connections are."""
    workers = Workers()
    acceptor = listeners.acceptor()
    while acceptor.wait():
        with contextlib.suppress(OSError):
            workers.take(acceptor.accept_many())
    while acceptor.stats().open:
        time.sleep(0.005)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    body = str(os.getpid()).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def with_uvicorn(loop: str, http: str) -> Callable[[harken.Listeners], None]:
    def work(listeners: harken.Listeners) -> None:
        import uvicorn

        wrapped: Any = harken.workers.asgi(app)
        config = uvicorn.Config(wrapped, loop=loop, http=http, log_level="error", timeout_graceful_shutdown=10)  # type: ignore[arg-type]
        uvicorn.Server(config).run(sockets=listeners.sockets())

    return work


def with_hypercorn(listeners: harken.Listeners) -> None:
    import asyncio

    import hypercorn.asyncio
    import hypercorn.config

    config = hypercorn.config.Config()
    config.bind = [f"fd://{sock.detach()}" for sock in listeners.sockets()]
    config.graceful_timeout = 10
    config.loglevel = "ERROR"

    async def main() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        wrapped: Any = harken.workers.asgi(app)
        await hypercorn.asyncio.serve(wrapped, config, shutdown_trigger=stop.wait)

    asyncio.run(main())


def with_harken_asyncio(listeners: harken.Listeners) -> None:
    import asyncio

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:  # whoever has asked is answered, and only an answer ends the connection
                await reader.readuntil(b"\r\n\r\n")
                last = b"Connection: close\r\n" if harken.workers.draining() else b""
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n" + last + b"\r\nx")
                await writer.drain()
                if last:
                    break
        writer.close()

    async def main() -> None:
        stop = asyncio.Event()
        server = await harken.asyncio.start_server(answer, listeners)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()
        await server.drain(10)

    asyncio.run(main())


SERVERS: dict[str, tuple[str, Callable[[harken.Listeners], None]]] = {
    "acceptor": ("harken", with_acceptor),
    "asyncio": ("harken", with_harken_asyncio),
    "uvicorn, uvloop": ("uvloop", with_uvicorn("uvloop", "httptools")),
    "uvicorn, asyncio": ("uvicorn", with_uvicorn("asyncio", "h11")),
    "hypercorn": ("hypercorn", with_hypercorn),
}


@dataclass
class Case:
    server: str
    how: str = "close"
    waits: bool = True
    stops: bool = False
    kills: int = 0  # workers that are killed, one after the other
    many: int = 0  # rounds, with --long, after which the supervisor must not have grown
    host: str = SERVER[4]

    @property
    def name(self) -> str:
        return (
            f"{self.server}, {self.how}"
            + ("" if self.waits else ", control")
            + (", last stop" * self.stops)
            + (f", {self.kills} killed" if self.kills else "")
            + (", many times" if self.many else "")
        )


CASES = [
    Case("acceptor", waits=False),
    Case("acceptor"),
    Case("acceptor", "late"),
    Case("uvicorn, uvloop", "late", waits=False),
    *(Case(server, how) for server in SERVERS for how in ("close", "late", "keep") if server != "acceptor"),
    Case("acceptor", kills=8),
    Case("acceptor", many=13),
    Case("acceptor", stops=True),
    Case("uvicorn, uvloop", stops=True),
    Case("acceptor", waits=False, stops=True),
]


def serve(case: Case, port: int) -> int:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    limits: dict[str, float] = {} if case.waits else {"settle": 0, "drain": 0}
    target = SERVERS[case.server][1]
    return harken.workers.serve(target, f"{case.host}:{port}", workers=4, **limits)  # type: ignore[arg-type]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def size(pid: int) -> tuple[int, int]:
    """How many descriptors and how much memory a process has."""
    rss = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return len(os.listdir(f"/proc/{pid}/fd")), int(rss.split()[1])


class Log(threading.Thread):
    """What the supervisor tells."""

    def __init__(self, stream: Any) -> None:
        super().__init__(daemon=True)
        self.stream, self.lines = stream, list[str]()
        self.start()

    def run(self) -> None:
        for text in self.stream:
            self.lines.append(text.rstrip())

    def wait(self, word: str, times: int, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while sum(word in text for text in self.lines) < times:
            assert time.monotonic() < end, (word, times, self.lines)
            time.sleep(0.01)


def run(case: Case, rounds: int, port: int = 8080, clients: int = 60) -> dict[str, Any]:
    """What became of the requests, with the seconds that a round took."""
    with contextlib.ExitStack() as stack:
        wire = stack.enter_context(cable(20, 1))
        command = [sys.executable, str(HERE), "--serve", case.name, "--port", str(port)]
        child = stack.enter_context(beside(command, wire.server))
        log = Log(child.stdout)
        log.wait("serves", 4)
        asking = [sys.executable, str(HERE.with_name("asking.py")), case.host, str(port), "--how", case.how]
        asking += [
            "--clients",
            str(100 if case.stops else clients),
            "--pause",
            "0.06" if case.how == "keep" else "0.02",
        ]
        with beside(asking, wire.client) as asker:
            time.sleep(1)  # the load is there
            began = time.monotonic()
            if case.stops:
                child.send_signal(signal.SIGTERM)
                child.wait(60)
            whole, grown = [], list[tuple[int, int]]()
            for n in range(case.kills):
                began = time.monotonic()
                os.kill(random.choice(children(child.pid)), signal.SIGKILL)
                log.wait("serves", 5 + n)
                whole.append(round(time.monotonic() - began, 2))
                time.sleep(0.3)
            for n in range(0 if case.stops or case.kills else rounds):
                child.send_signal(signal.SIGHUP)
                log.wait("serves", 4 * (n + 2))
                log.wait("ended", 4 * (n + 1))
                grown.append(size(child.pid))
            took = (time.monotonic() - began) / max(1, rounds)
            time.sleep(1)
            asker.stdin.close()  # type: ignore[union-attr]
            told = line(asker)
        if not case.stops:
            child.send_signal(signal.SIGTERM)
            child.wait(60)
        if case.kills:
            told["whole_after"] = max(whole)
        if case.many:
            told["descriptors_and_kilobytes"] = [grown[0], grown[-1]]
        return told | {"seconds": round(took, 2), "code": child.returncode, "log": log.lines}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--serve", default="")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--log", action="store_true")
    asked = parser.parse_args()
    if asked.serve:
        return serve(next(case for case in CASES if case.name == asked.serve), asked.port)
    wrong = 0
    for case in CASES:
        if asked.only not in case.name or importlib.util.find_spec(SERVERS[case.server][0]) is None:
            continue
        told = run(case, case.many if case.many and asked.long else 2 if asked.long or case.many else 1)
        log = told.pop("log")
        bad = told["failed"]
        if case.stops:  # after the end nobody listens
            bad -= sum(number for what, number in told["failures"].items() if what.startswith("refused"))
        good = bad == 0 if case.waits else bad > 0
        if case.kills:  # what a killed worker had accepted is lost, and nothing else
            good = told["whole_after"] < 1 and not any("connecting" in what for what in told["failures"])
        if case.many:
            (before, kilobytes), (after, now) = told["descriptors_and_kilobytes"]
            good = good and before == after and now - kilobytes < 1000
        wrong += not good
        print(f"{'  ' if good else '! '}{case.name}: {bad} of {told['requests']} failed", told, flush=True)
        if asked.log or not good:
            print("\n".join(log))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
