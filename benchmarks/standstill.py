"""How long an event loop stands still while harken.asyncio opens and closes a unix socket in a directory on which
another process holds a lock.

    python benchmarks/standstill.py             (Linux; as root, another user holds the lock, who may not write there)

A heartbeat in the loop records the longest time between two beats. The first line is the negative control: a call that
waits 100 ms for the lock on the loop's thread. Exits with 1 if a call took 50 ms, or a beat 20 ms, in each of three
runs: code that waits for the lock does so every time, while a busy machine delays only some of the runs."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import harken
import harken.asyncio

MOST, MOST_BEAT = 50.0, 20.0  # milliseconds
HOLDER = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.{}); print(); sys.stdin.read()"


@contextlib.contextmanager
def locked(folder: str, kind: str) -> Iterator[None]:
    nobody: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    command = [sys.executable, "-S", "-c", HOLDER.format(kind), folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **nobody) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n", "the lock could not be taken"
        yield
        holder.stdin.close()


@contextlib.asynccontextmanager
async def beating() -> AsyncIterator[list[float]]:
    """The longest time between two beats, in milliseconds."""
    longest = [0.0]

    async def beat() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest[0], last = max(longest[0], 1000 * (now - last)), now

    task = asyncio.create_task(beat())
    await asyncio.sleep(0)
    yield longest
    await asyncio.sleep(0)
    task.cancel()


async def timed(what: str, call: Callable[[], Awaitable[Any] | Any]) -> tuple[str, float, float]:
    async with beating() as longest:
        begun = time.perf_counter()
        result = call()
        if isinstance(result, Awaitable):
            await result
        took = 1000 * (time.perf_counter() - begun)
    return what, took, longest[0]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read(10))
    writer.close()


async def measure(folder: str, kind: str) -> list[tuple[str, float, float]]:
    found: list[tuple[str, float, float]] = []
    servers: list[Any] = []

    async def start(exclusive: bool = True) -> None:
        servers.append(await harken.asyncio.start_server(echo, f"unix:{folder}/s", mode=0o600, exclusive=exclusive))

    async def end() -> None:
        server = servers.pop()
        server.close()
        await server.wait_closed()

    for _ in range(20):
        found += [
            await timed(f"start_server(), {kind}", start),
            await timed(f"start_server(exclusive=False), {kind}", lambda: start(False)),
            await timed(f"Server.close(), then wait_closed(), {kind}", end),
        ]
        await end()
        listeners = []

        def by_hand(listeners: list[Any] = listeners) -> None:
            begun = time.perf_counter()
            opened = harken.listen(f"unix:{folder}/b", mode=0o600)
            between = time.perf_counter()
            opened.close()
            listeners += [1000 * (between - begun), 1000 * (time.perf_counter() - between)]

        await asyncio.to_thread(by_hand)
        found += [
            (f"listen(), in a thread, {kind}", listeners[0], 0),
            (f"close(), in a thread, {kind}", listeners[1], 0),
        ]
    return found


async def control(folder: str) -> tuple[str, float, float]:
    def wait() -> None:
        handle = os.open(folder, os.O_RDONLY)
        end = time.monotonic() + 0.1
        while time.monotonic() < end:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            time.sleep(0.001)
        os.close(handle)

    return await timed("control", wait)


def main() -> int:
    return int(all(stands_still() for _ in range(3)))


def stands_still() -> bool:
    found: list[tuple[str, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        found.append(asyncio.run(control(folder)))
        for kind in ("LOCK_SH", "LOCK_EX"):
            with locked(folder, kind):
                found += asyncio.run(measure(folder, kind))
    worst: dict[str, tuple[float, float]] = {}
    for what, took, beat in found:
        before = worst.get(what, (0.0, 0.0))
        worst[what] = max(before[0], took), max(before[1], beat)
    print(f"{'the worst of 20, in milliseconds':52} {'call':>7} {'beat':>7}")
    for what, (took, beat) in worst.items():
        print(f"{what:52} {took:7.1f} {beat:7.1f}")
    assert worst.pop("control")[1] > 90, "the heartbeat does not see what waits"
    return any(took >= MOST or beat >= MOST_BEAT for took, beat in worst.values())


if __name__ == "__main__":
    sys.exit(main())
