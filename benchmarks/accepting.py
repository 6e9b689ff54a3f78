"""Accepting connections, ours beside C and the servers that Python has: ``python benchmarks/accepting.py``; Linux.

In each round each contender of a case is measured, in rotating order, so that whatever else the machine does hits all;
medians are told, with the middle half of the rounds in brackets, and ratios of medians. The first round warms up.

Every contender is a process of its own (accepting_server.c, accepting_servers.py), which accepts, reads, writes what it
read, and closes; all are on one core, and this program, whose children the clients are, is on another. All of it
happens in a network of its own, with a long queue; ``--here`` does without. What is not installed is left out and told:
``pip install --group bench`` installs it.

The cases:

    drain       connections are queued while the server looks away; the time, the processor's and the clock's, from when
                it looks until its code has the last of them: accept4() in C, accept_many(), socket.accept() with or
                without setblocking(False), each in a loop that does nothing else; a protocol's connection_made() or a
                handler's first line in the others
    short       the server's processor time for a connection, while a program in C keeps 50 going
    burst       all clients connect within the 50 ms in which the server is busy with something else, and each server
                has the queue that it has by default: milliseconds until connected, and until answered, ten seconds for
                who has waited so long
    starved     100 descriptors and 150 clients, of which none says anything: the processor time meanwhile, the lines on
                stderr, and how many are served when they speak at last
    listeners   as short, with all the listeners of a process
    open        as short, with so many other connections open, and the memory of the process for each of those
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib.util
import json
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from time import clock_gettime_ns, monotonic, perf_counter, sleep
from typing import IO, Any, NamedTuple, Self

import chart
import report
from accepting_servers import SERVERS
from contenders import HERE, compiler, queued, room_for

C = "C, epoll and accept4"
LONG = 65535  # a queue
PATIENCE = 30  # seconds, for whatever must happen
STALL = 50  # milliseconds
BURST = 10  # seconds
AT_ONCE = 50
CLIENTS, DESCRIPTORS = 150, 100
NETWORK = """
ip link set lo up
echo 65535 > /proc/sys/net/core/somaxconn
echo 10000 65535 > /proc/sys/net/ipv4/ip_local_port_range
exec "$@"
"""

Figures = dict[str, float]
"""What one measurement of one contender found, by column."""


class Server:
    """A contender's process. It listens when this is made."""

    folder = ""
    """Where the programs in C are."""
    core = 0
    """Where they all run."""

    def __init__(self, name: str, *, listeners: int = 1, backlog: int = LONG, stderr: IO[bytes] | None = None) -> None:
        command = [f"{self.folder}/server"] if name == C else [sys.executable, f"{HERE}/accepting_servers.py", name]
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self.core})  # which the child has from its birth
        try:
            self.process = subprocess.Popen(
                [*command, str(listeners), str(backlog)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                bufsize=1,
            )
        finally:
            os.sched_setaffinity(0, own)
        self.name = name
        self.ports = [int(port) for port in self.line().split()]
        self.idle = self.descriptors()

    def line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self.process.wait()}")
        return line

    def say(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")

    def tell(self, line: str) -> None:
        """Returns when the server has begun to obey."""
        self.say(line)
        self.line()

    def used(self) -> int:
        """Nanoseconds of processor time so far, user and system, of all threads."""
        return clock_gettime_ns(~self.process.pid << 3 | 2)  # as clock_getcpuclockid() makes it

    def memory(self) -> int:
        """Bytes that are resident."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        folder = f"/proc/{self.process.pid}/fd"
        return os.stat(folder).st_size or len(os.listdir(folder))  # the size is that, from Linux 6.2 on

    def settle(self, others: int = 0) -> None:
        """Waits until the server has closed its connections, but for so many others."""
        wanted = self.idle + 4 + others  # some have a few more of their own, once they serve
        until = monotonic() + PATIENCE
        while self.descriptors() > wanted:
            if monotonic() > until:
                raise TimeoutError(f"{self.name} has {self.descriptors()} descriptors, not {wanted}")
            sleep(0.002)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self.process.stdin
        assert self.process.stdout
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


# ---------------------------------------------------------------------------- one measurement of one contender


@contextmanager
def drained(server: Server, count: int) -> Iterator[Figures]:
    """The connections are open while the block runs."""
    server.tell(f"drain {count}")
    with queued(server.ports[0], count):
        server.say("go")
        used, took = map(int, server.line().split())
        yield {"µs of CPU a connection": used / count / 1000, "µs": took / count / 1000}


def drain(server: Server, count: int) -> Figures:
    with drained(server, count) as found:
        pass
    server.settle()
    return found


def load(server: Server, count: int, besides: int = 0) -> Figures:
    """``besides``: so many other connections are open."""
    before = server.used()
    command = [f"{server.folder}/load", str(count), str(AT_ONCE), *map(str, server.ports)]
    took = int(subprocess.check_output(command, timeout=60))
    server.settle(besides)
    return {
        "µs of CPU a connection": (server.used() - before) / count / 1000,
        "connections a second": count / took * 1e9,
    }


def burst(server: Server, count: int) -> Figures:
    connected: list[float] = []
    answered: list[float] = []
    started: dict[int, float] = {}
    with unconnected(count) as made, select.epoll() as epoll:
        waiting = set(made)

        def look(timeout: float) -> None:
            for fd, _ in epoll.poll(timeout, 256):
                client = made[fd]
                if fd in waiting:
                    waiting.discard(fd)
                    connected.append((perf_counter() - started[fd]) * 1000)
                    client.send(b"x")  # raises what connect() has come to
                    epoll.modify(fd, select.EPOLLIN)
                else:
                    client.recv(1)
                    answered.append((perf_counter() - started[fd]) * 1000)
                    epoll.unregister(fd)

        server.tell(f"stall {STALL}")
        until = perf_counter() + BURST
        for number, (fd, client) in enumerate(made.items()):
            started[fd] = perf_counter()
            error = client.connect_ex(("127.0.0.1", server.ports[0]))
            if error not in (0, errno.EINPROGRESS):
                raise OSError(error, "connect")
            epoll.register(fd, select.EPOLLOUT)
            if number % 64 == 63:
                look(0)
        while len(answered) < count:
            if perf_counter() > until:
                break
            look(1)
    server.settle()
    for times in (connected, answered):
        times.extend([BURST * 1000] * (count - len(times)))
    return {
        f"{what}, {which}": quantiles(times, n=100)[number]
        for what, times in (("connected", connected), ("answered", answered))
        for which, number in (("median", 49), ("99 %", 98))
    }


@contextmanager
def unconnected(count: int) -> Iterator[dict[int, socket.socket]]:
    """Sockets that have not connected yet, by their numbers."""
    with ExitStack() as stack:
        made = {}
        for _ in range(count):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            # Closed with a reset: thousands of connections in TIME_WAIT would use up the ports.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            made[client.fileno()] = client
        yield made


def starved(name: str, seconds: float) -> Figures:
    """A process of its own: it has the limit for good."""
    import resource

    with tempfile.TemporaryFile() as log, Server(name, backlog=0, stderr=log) as server, ExitStack() as stack:
        pid = server.process.pid
        highest = max(int(number) for number in os.listdir(f"/proc/{pid}/fd"))
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1 + DESCRIPTORS, hard))
        address = ("127.0.0.1", server.ports[0])
        clients = [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(CLIENTS)]
        used, since = server.used(), perf_counter()
        sleep(seconds)
        used, since = server.used() - used, perf_counter() - since
        log.seek(0)
        lines = sum(block.count(b"\n") for block in iter(lambda: log.read(1 << 20), b""))
        return {"% of a core": used / since / 1e7, "lines": lines, **spoken(clients)}


def spoken(clients: list[socket.socket]) -> Figures:
    """Each client says something, and gets it back, or was closed."""
    served = closed = 0
    until = monotonic() + PATIENCE / 3
    for client in clients:
        with contextlib.suppress(OSError):
            client.send(b"0123456789abcdef")
    for client in clients:
        client.settimeout(max(0.001, until - monotonic()))
        try:
            if client.recv(16):
                served += 1
            else:
                closed += 1
        except ConnectionError:
            closed += 1
        except TimeoutError:
            pass
    return {"served afterwards": served, "closed": closed}


def listeners(name: str, numbers: list[int], count: int) -> Figures:
    found = {}
    for number in numbers:
        with Server(name, listeners=number) as server:
            load(server, max(1, count // 4))  # warms up
            found[f"{number}"] = load(server, count)["µs of CPU a connection"]
    return found


def opened(name: str, numbers: list[int], count: int) -> Figures:
    found = {}
    with Server(name) as server, ExitStack() as stack:
        load(server, max(1, count // 4))
        before, have = server.memory(), 0
        for number in numbers:
            if number > have:
                stack.enter_context(drained(server, number - have))
                now = server.memory()
                each, before, have = (now - before) / (number - have), now, number  # at last: of the most
            found[f"{number}"] = load(server, count, number)["µs of CPU a connection"]
    return {**found, "bytes for each": each}


# ---------------------------------------------------------------------------- the cases


class Case(NamedTuple):
    """A table."""

    name: str
    title: str
    rounds: int
    contenders: list[str]
    measure: Callable[[Any], Figures]
    """Of a server, or if ``backlog`` is None of a name."""
    backlog: int | None = LONG
    """The length of the queue, 0 for what is the default; None: the measurement starts its own process."""
    ratios: bool = True
    """To C, of the first column."""


ENGINES = ["harken, io_uring", "harken, accept4"]
ON_LOOPS = ["harken on asyncio", "asyncio", "harken on uvloop", "uvloop"]
OTHERS = ["gevent", "trio", "tornado", "Twisted"]
BOTH_ACCEPTS = ["socket.accept()", "socket.accept(), non-blocking"]


def cases(quick: bool) -> list[Case]:
    def of(full: int, small: int) -> int:
        return small if quick else full

    few, many = (room_for(number) for number in ((20, 50) if quick else (2000, 20000)))
    at_once = room_for(of(2000, 50))
    numbers = [1, 8] if quick else [1, 4, 16, 64]
    held = [0, 20] if quick else [0, *(number for number in (100, 1000, 10000) if number <= many - 2 * AT_ONCE)]
    count = of(4000, 60)
    seconds = 0.2 if quick else 2.0
    drains = [C, *ENGINES, "harken, accept", *BOTH_ACCEPTS, *ON_LOOPS, *OTHERS]
    result = [
        Case("drain_few", f"{few} queued connections are accepted", 11, drains, lambda server: drain(server, few)),
        Case("drain_many", f"{many} queued connections are accepted", 5, drains, lambda server: drain(server, many)),
        Case(
            "short",
            f"short connections, {AT_ONCE} at once",
            11,
            [C, *ENGINES, "harken, iterated", BOTH_ACCEPTS[1], *ON_LOOPS, *OTHERS],
            lambda server: load(server, count),
        ),
        Case(
            "burst",
            f"{at_once} clients at once, the server is busy for {STALL} ms: milliseconds",
            4,
            [
                "harken, best engine",
                BOTH_ACCEPTS[1],
                "harken on asyncio",
                "asyncio on harken's sockets",
                "asyncio",
                "harken on uvloop",
                "uvloop",
                *OTHERS,
            ],
            lambda server: burst(server, at_once),
            backlog=0,
            ratios=False,
        ),
        Case(
            "starved",
            f"out of descriptors for {seconds:g} s: {DESCRIPTORS} descriptors, {CLIENTS} clients",
            2,
            [
                "harken, threads",
                "harken, threads, shed",
                "socketserver, threads",
                "harken on asyncio",
                "harken on asyncio, shed",
                "asyncio",
                "harken on uvloop",
                "uvloop",
                *OTHERS,
            ],
            lambda name: starved(name, seconds),
            backlog=None,
            ratios=False,
        ),
        Case(
            "listeners",
            "listeners in one process: µs of CPU a connection",
            5,
            [C, *ENGINES, BOTH_ACCEPTS[1], "harken on asyncio", "asyncio"],
            lambda name: listeners(name, numbers, count),
            backlog=None,
            ratios=False,
        ),
        Case(
            "open",
            "other connections that are open: µs of CPU a connection, and bytes of memory for each of them",
            3,
            [C, *ENGINES, BOTH_ACCEPTS[1], *ON_LOOPS],
            lambda name: opened(name, held, count),
            backlog=None,
            ratios=False,
        ),
    ]
    return [case._replace(rounds=1) for case in result] if quick else result


def missing(name: str) -> str | None:
    """Why a contender cannot take part."""
    if name == C:
        return None
    needs, engine = SERVERS[name].needs, SERVERS[name].engine
    if needs and importlib.util.find_spec(needs) is None:
        return f"{needs} is not installed"
    if engine:
        import harken

        try:
            with harken.listen("127.0.0.1:0") as tried:
                tried.acceptor(engine=engine).close()
        except (OSError, ValueError) as error:
            return str(error)
    return None


def measure(case: Case, names: list[str], rounds: int) -> dict[str, list[Figures]]:
    """The samples of each contender; the first round warms up, and is not kept, unless it is the only one."""
    samples: dict[str, list[Figures]] = {name: [] for name in names}
    with ExitStack() as stack:
        subjects: dict[str, Any] = {name: name for name in names}
        if case.backlog is not None:
            subjects = {name: stack.enter_context(Server(name, backlog=case.backlog)) for name in names}
        for number in range(rounds + (rounds > 1)):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                found = case.measure(subjects[name])
                if number or rounds == 1:
                    samples[name].append(found)
            if sys.stderr.isatty():
                print(f"\r{case.name}, round {number} of {rounds} ", end="", file=sys.stderr, flush=True)
    return samples


def table(case: Case, samples: dict[str, list[Figures]]) -> str:
    columns = list(next(iter(samples.values()))[0])
    medians = {name: median(one[columns[0]] for one in found) for name, found in samples.items()}
    lines = [["", *columns, *(["to C"] if case.ratios else [])]]
    for name, found in samples.items():
        line = [name, *(report.spread([one[column] for one in found]) for column in columns)]
        lines.append([*line, f"{medians[name] / medians[C]:.2f}"] if case.ratios else line)
    return report.markdown(lines)


def in_own_network(arguments: list[str]) -> None:
    """This program again, in a network with only a loopback; returns where that cannot be made."""
    unshare = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-Urn"]
    shell = [*unshare, "sh", "-ec", NETWORK, "sh"]
    if shutil.which("unshare") and subprocess.run([*shell, "true"], capture_output=True, check=False).returncode == 0:
        os.execvp(shell[0], [*shell, sys.executable, __file__, "--here", *arguments])


def main() -> None:
    names = [case.name for case in cases(False)]
    parser = argparse.ArgumentParser(description="accepting connections: harken beside C and other servers")
    parser.add_argument("--quick", action="store_true", help="few connections, one round: does it all work?")
    parser.add_argument("--rounds", type=int, help="measurements of each, instead of each case's own number")
    parser.add_argument("--case", action="append", choices=names, help="only this one; may be repeated")
    parser.add_argument("--here", action="store_true", help="in this network, with its limits")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every sample to this file")
    parser.add_argument("--svg", metavar="FILE", type=Path, help="draw the medians")
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    cc, cores = compiler(), sorted(os.sched_getaffinity(0))
    if cc is None or len(cores) < 2:
        parser.error("needs a C compiler, and two cores: one for the servers, one for the clients")
    if not options.here:
        in_own_network(sys.argv[1:])
    os.sched_setaffinity(0, {cores[-2]})
    Server.core = cores[-1]

    reasons = {name: missing(name) for name in (C, *SERVERS)}
    about = report.machine("servers on one, clients on another")
    about.append("medians, and between which values the middle half of the rounds lies")
    about += [f"{name} is left out: {why}" for name, why in reasons.items() if why]
    print("\n".join(about), flush=True)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        Server.folder = folder
        for name in ("server", "load"):
            subprocess.run([cc, "-O2", "-o", f"{folder}/{name}", f"{HERE}/accepting_{name}.c"], check=True)
        for case in cases(options.quick):
            if options.case and case.name not in options.case:
                continue
            rounds = options.rounds or case.rounds
            samples = measure(case, [name for name in case.contenders if not reasons[name]], rounds)
            results.append({"case": case.name, "title": case.title, "samples": samples})
            print(f"\n{case.title}; {rounds} rounds\n\n{table(case, samples)}", flush=True)
            if options.json:
                options.json.write_text(
                    json.dumps({"about": about, "results": results}, indent=1) + "\n", encoding="utf-8"
                )
            if options.svg:
                options.svg.write_text(chart.draw(results), encoding="utf-8")


if __name__ == "__main__":
    main()
