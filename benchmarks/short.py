"""A server for short connections: ``python benchmarks/short.py``. Accept, read 16 bytes, write them, close.

Every server is a process on one core, the load (a program in C) is on another. Each round measures every server, in
rotating order, so that whatever else the machine does hits all of them. Told are the server's processor time for a
connection, user and system, and connections a second; medians, and ratios of medians. Linux, with a C compiler.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import report

HERE = Path(__file__).parent
PYTHON = {
    "harken.Acceptor, epoll by hand": ("engine", "harken"),
    "harken.Acceptor, iterated": ("engine_blocking", "harken"),
    "harken.asyncio on asyncio": ("ours_on_asyncio", "harken"),
    "asyncio": ("with_asyncio", "asyncio"),
    "harken.asyncio on uvloop": ("ours_on_uvloop", "uvloop"),
    "uvloop": ("with_uvloop", "uvloop"),
    "gevent": ("with_gevent", "gevent"),
    "trio": ("with_trio", "trio"),
}


class Server:
    """A process that serves, and tells its processor time."""

    def __init__(self, name: str, command: list[str], core: int) -> None:
        self.name = name
        self.samples: list[tuple[float, float]] = []
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})  # which the child has from its birth
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
        finally:
            os.sched_setaffinity(0, own)
        self.port = self._number()

    def _number(self) -> int:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self.process.wait()}")
        return int(line)

    def used(self) -> int:
        """Nanoseconds of processor time, so far."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        return self._number()

    def measure(self, load: str, count: int, at_once: int) -> tuple[float, float]:
        """Nanoseconds of processor time for a connection, and connections a second."""
        before = self.used()
        took = int(subprocess.check_output([load, str(self.port), str(count), str(at_once)], timeout=60))
        return (self.used() - before) / count, count / took * 1e9

    def close(self) -> None:
        """No more lines: it ends."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def table(servers: list[Server]) -> str:
    """A row a server."""
    medians = {server.name: [median(column) for column in zip(*server.samples, strict=True)] for server in servers}
    lines = [["server", "µs of CPU a connection", "ratio to C", "connections a second"]]
    for name, (cpu, rate) in medians.items():
        lines.append([name, f"{cpu / 1000:.2f}", f"{cpu / medians['C, epoll'][0]:.2f}", f"{rate:,.0f}"])
    widths = [max(len(line[n]) for line in lines) for n in range(4)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(
        f"| {line[0].ljust(widths[0])} | {' | '.join(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))} |"
        for line in lines
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="servers for short connections, interleaved")
    parser.add_argument("--rounds", type=int, default=11, help="measurements of each, besides one to warm up")
    parser.add_argument("--count", type=int, default=4000, help="connections a measurement")
    parser.add_argument("--at-once", type=int, default=50, help="how many are under way at a time")
    parser.add_argument("--server", action="append", choices=PYTHON, help="only this one, beside C; may be repeated")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every sample to this file")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("two cores are needed: one for the server, one for the load")
    os.sched_setaffinity(0, {cores[-2]})

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for name in ("short", "short_load"):
            source = str(HERE / f"{name}.c")
            subprocess.run([os.environ.get("CC", "cc"), "-O2", "-o", f"{folder}/{name}", source], check=True)
        commands = {"C, epoll": [f"{folder}/short"]}
        for name, (function, needed) in PYTHON.items():
            if (options.server is None or name in options.server) and importlib.util.find_spec(needed):
                commands[name] = [sys.executable, str(HERE / "short_server.py"), function]
        servers = []
        for name, command in commands.items():
            servers.append(Server(name, command, cores[-1]))
            stack.callback(servers[-1].close)
        for number in range(options.rounds + 1):
            first = number % len(servers)
            for server in servers[first:] + servers[:first]:
                sample = server.measure(f"{folder}/short_load", options.count, options.at_once)
                if number:
                    server.samples.append(sample)
    print("\n".join(report.machine(None)[:1]))
    print(
        f"server on one core, load on another; {options.rounds} rounds of {options.count}, {options.at_once} at once\n"
    )
    print(table(servers))
    if options.json:
        options.json.write_text(json.dumps({server.name: server.samples for server in servers}) + "\n")


if __name__ == "__main__":
    main()
