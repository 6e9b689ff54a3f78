"""What a request costs on an adopted socket: ``python benchmarks/adopted.py``; needs uvicorn.

uvicorn on asyncio's own loop sends a header and a body, in two writes, on a connection that is kept. The second write
waits for the client's delayed ACK, 40 ms on Linux, unless the connection has TCP_NODELAY. asyncio sets that only on
what it takes for TCP: not where the protocol number is 0, as in a socket of socket.create_server().

All servers run from the beginning to the end. Each round asks each of them, one after the other, so that whatever else
the machine does hits all; the median of all requests is told. The first round warms up.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

WAYS = {
    "sockets": "`Server.run(sockets=…)`",
    "workers": "`Multiprocess(sockets=…)`, 2 workers",
    "fd": "`uvicorn --fd`",
}
BODY = b"answer"
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def app(scope: dict[str, Any], receive: object, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:  # noqa: ARG001
    """Header and body: two writes."""
    headers = [(b"content-length", str(len(BODY)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


# ---------------------------------------------------------------------------- the servers


def serve(whose: str, way: str) -> None:
    """A server; the port is its first line."""
    if whose == "ours":
        import harken

        (sock,) = harken.listen("127.0.0.1:0").sockets()
    else:
        sock = socket.create_server(("127.0.0.1", 0))
    print(sock.getsockname()[1], flush=True)
    if way == "fd":
        sock.set_inheritable(True)
        options = f"--fd {sock.fileno()} --loop asyncio --lifespan off --log-level critical --timeout-keep-alive 60"
        command = [sys.executable, "-m", "uvicorn", "adopted:app", "--app-dir", str(Path(__file__).parent)]
        os.execv(sys.executable, [*command, *options.split()])

    import uvicorn
    from uvicorn.supervisors import Multiprocess

    workers = 2 if way == "workers" else 1
    config = uvicorn.Config(
        "adopted:app", loop="asyncio", lifespan="off", workers=workers, log_level="critical", timeout_keep_alive=60
    )
    if workers > 1:
        Multiprocess(config, sockets=[sock]).run()
    else:
        uvicorn.Server(config).run(sockets=[sock])


@contextmanager
def client_of(whose: str, way: str) -> Iterator[socket.socket]:
    """A connection to a server of its own."""
    command = [sys.executable, __file__, "--serve", whose, way]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        with socket.create_connection(("127.0.0.1", int(process.stdout.readline())), timeout=30) as client:
            yield client
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


# ---------------------------------------------------------------------------- the client


def ask(client: socket.socket) -> int:
    """Nanoseconds from the request to the end of the answer."""
    start = perf_counter_ns()
    client.sendall(REQUEST)
    received = b""
    while not received.endswith(BODY):
        data = client.recv(1 << 16)
        if not data:
            raise RuntimeError(f"closed after {received!r}")
        received += data
    return perf_counter_ns() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="uvicorn on adopted sockets: stdlib's beside harken's")
    parser.add_argument("--rounds", type=int, default=10, help="besides one to warm up")
    parser.add_argument("--requests", type=int, default=20, help="to each server in each round")
    parser.add_argument("--serve", nargs=2, metavar=("WHOSE", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    import report
    import uvicorn

    samples: dict[tuple[str, str], list[int]] = {(whose, way): [] for way in WAYS for whose in ("stdlib", "ours")}
    with ExitStack() as stack:
        clients = {pair: stack.enter_context(client_of(*pair)) for pair in samples}
        for number in range(options.rounds + 1):
            for pair, client in clients.items():
                took = [ask(client) for _ in range(options.requests)]
                if number:
                    samples[pair] += took

    print("\n".join(report.machine()))
    print(f"uvicorn {uvicorn.__version__}; {options.rounds} rounds of {options.requests} requests; medians\n")
    lines = [["a keep-alive request", "create_server(), ms", "harken, ms", "stdlib / ours"]]
    for way, title in WAYS.items():
        stdlib, ours = (median(samples[whose, way]) for whose in ("stdlib", "ours"))
        lines.append([title, f"{stdlib / 1e6:.2f}", f"{ours / 1e6:.2f}", f"{stdlib / ours:.0f}"])
    print(report.markdown(lines))


if __name__ == "__main__":
    main()
