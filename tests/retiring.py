"""Members of a group come and go under load, and nobody notices: `python tests/retiring.py [--long] [--only WORD]`.

Each case runs a server with a group in a process, and clients that count (asking.py), at loopback or with a cable
between them that takes 20 ms and loses 1 % each way (cable.py). Beside the cases stands one without the wait: steered
away, drained and closed at once, as others do it. If that loses less than 5 %, the cases prove nothing. Without --long,
each case is a tenth as long, as in the suite. Prints a line a case; the exit code is 1 if one fails. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cable import CLIENT, SERVER, Network, cable

import harken
from harken._steering import steer

NOBODY = 65534
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"


@dataclass
class Case:
    name: str
    times: int  # members that are retired, with --long
    members: int = 4
    host: str = ""  # "": at loopback
    nobody: bool = False
    how: str = "close"
    waits: bool = True
    policy: str = "hash"
    clients: int = 50
    flood: int = 0  # first packets a second from addresses that do not answer


CASES = [
    Case("control, without the wait", 60, host=SERVER[4], waits=False),
    Case("cable, 2 members", 60, 2, SERVER[4]),
    Case("cable, 4 members", 60, 4, SERVER[4]),
    Case("cable, 8 members", 60, 8, SERVER[4]),
    Case("cable, IPv6", 60, 4, SERVER[6]),
    Case("cable, as nobody", 60, 4, SERVER[4], nobody=True),
    Case("cable, late requests", 60, 4, SERVER[4], how="late"),
    Case("cable, policy least", 60, 4, SERVER[4], policy="least"),
    Case("cable, flood of 200 a second", 10, 4, SERVER[4], flood=200),
    Case("loopback, 4 members", 200),
    Case("loopback, as nobody", 200, nobody=True),
]


# ---------------------------------------------------------------------------- the server, in a process of its own


def serve(connection: harken.Socket) -> None:
    """What has come, or nothing if the client is gone."""
    with connection, contextlib.suppress(OSError):
        connection.settimeout(10)
        if connection.recv(4096):
            connection.sendall(ANSWER)


class Workers:
    """A thread for each member, which accepts, and one for all, which answers when a request is there."""

    def __init__(self) -> None:
        self.waiting: dict[int, harken.Socket] = {}
        import select

        self.poll = select.epoll()
        threading.Thread(target=self._answer, daemon=True).start()

    def start(self, listeners: harken.Listeners) -> None:
        threading.Thread(target=self._accept, args=[listeners.acceptor()], daemon=True).start()

    def _accept(self, acceptor: Any) -> None:
        while acceptor.wait():  # until its listeners are closed
            with contextlib.suppress(OSError):
                self.take(acceptor.accept_many())

    def take(self, connections: Any) -> None:
        import select

        for one in connections:
            self.waiting[one.fileno()] = one
            self.poll.register(one.fileno(), select.EPOLLIN | select.EPOLLONESHOT)

    def _answer(self) -> None:
        while True:
            for number, _ in self.poll.poll():
                one = self.waiting.pop(number)
                self.poll.unregister(number)
                serve(one)


def with_wait(case: Case, host: str, times: int) -> dict[str, Any]:
    workers = Workers()
    waited, drained, lost = [], 0, 0
    with harken.group(f"[{host}]:0" if ":" in host else f"{host}:0", case.members, policy=case.policy) as group:
        for member in group:
            workers.start(member)
        tell({"port": group.port})
        sys.stdin.readline()
        for n in range(times):
            number = random.randrange(case.members)
            if n % 3 or case.members == 1:
                retired = group.replace(number, start=workers.start)
            else:
                retired = group.retire(number)
                workers.take(retired)
                group.replace(number, start=workers.start)
                retired = harken.Retired((), retired.waited, retired.lost_at_most)
            workers.take(retired)
            waited.append(retired.waited)
            drained += len(retired)
            lost += retired.lost_at_most or 0
            time.sleep(0.05)
        tell({"over": True})
        sys.stdin.readline()
        for one in group.drain():
            one.close()
    waited.sort()
    return {
        "median_wait": round(waited[len(waited) // 2], 3),
        "longest_wait": round(waited[-1], 3),
        "lost_at_most": lost,
    }


def without_wait(case: Case, host: str, times: int) -> dict[str, Any]:
    """Steer away, take what is in the queue, close: by the same programs, for the same clients."""
    workers = Workers()

    def one_more(port: int) -> harken.Listener:
        listener = harken.listen(f"{host}:{port}", reuse_port="join")[0]
        listener.setblocking(False)
        return listener

    members = [one_more(0)]
    members += [one_more(members[0].port) for _ in range(case.members - 1)]
    ended: list[harken.Listener] = []
    gate = threading.Lock()

    def accept() -> None:
        while not ended:
            with gate:
                for member in members:
                    workers.take(member.accept_many())
            time.sleep(0.001)

    threading.Thread(target=accept, daemon=True).start()
    tell({"port": members[0].port})
    sys.stdin.readline()
    for _ in range(times):
        number = random.randrange(case.members)
        with gate:
            steer(members[0], [n for n in range(case.members) if n != number])
            workers.take(members[number].accept_many())
            members.pop(number).close()
            if number < len(members):
                members.insert(number, members.pop())  # as the kernel does: the last one gets its number
            members.append(one_more(members[0].port))
            steer(members[0], range(case.members))
        time.sleep(0.05)
    tell({"over": True})
    sys.stdin.readline()
    ended.append(members[0])
    return {}


def tell(facts: dict[str, Any]) -> None:
    print(json.dumps(facts), flush=True)


def server(case: Case, times: int) -> None:
    harken.preload()
    harken.group  # noqa: B018 - imported while it can be
    if case.nobody:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    random.seed(1)
    tell((with_wait if case.waits else without_wait)(case, case.host or "127.0.0.1", times))


# ---------------------------------------------------------------------------- a case


@contextlib.contextmanager
def beside(command: list[str], network: Network | None) -> Iterator[subprocess.Popen[str]]:
    inside = ["ip", "netns", "exec", network.name] if network is not None else []
    child = subprocess.Popen([*inside, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with child:
        try:
            yield child
        finally:
            child.stdin.close()  # type: ignore[union-attr]
            try:
                child.wait(40)
            except subprocess.TimeoutExpired:
                child.kill()


def line(child: subprocess.Popen[str]) -> dict[str, Any]:
    text = child.stdout.readline()  # type: ignore[union-attr]
    assert text, "the server has ended"
    return dict(json.loads(text))


def run(case: Case, times: int) -> dict[str, Any]:
    """What became of the requests, with the server's figures."""
    with contextlib.ExitStack() as stack:
        wire = stack.enter_context(cable(20, 1)) if case.host else None
        here = Path(__file__)
        command = [sys.executable, str(here), "--serve", case.name, "--times", str(times)]
        child = stack.enter_context(beside(command, wire and wire.server))
        port = line(child)["port"]
        asking = [sys.executable, str(here.with_name("asking.py")), case.host or "127.0.0.1", str(port)]
        asking += ["--clients", str(case.clients), "--how", case.how]
        with beside(asking, wire and wire.client) as asker:
            if case.flood and wire is not None:
                stack.enter_context(flood(wire.client, port, case.flood))
            time.sleep(0.5 if not case.flood else 3)  # the load is there
            child.stdin.write("\n")  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
            assert line(child)["over"]
            asker.stdin.close()  # type: ignore[union-attr]
            told = line(asker)
        child.stdin.write("\n")  # type: ignore[union-attr]
        child.stdin.flush()  # type: ignore[union-attr]
        return told | line(child)


@contextlib.contextmanager
def flood(network: Network, port: int, rate: int) -> Iterator[None]:
    """First packets of connections, from addresses of which nobody answers."""
    with network.inside():
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    over = threading.Event()

    def send() -> None:
        number = 0
        while not over.wait(1 / rate):
            number += 1
            source = socket.inet_aton(f"10.77.0.{10 + number % 200}")
            sock.sendto(first_packet(source, 1024 + number % 60000, port), (SERVER[4], 0))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        sock.close()


def first_packet(source: bytes, sender: int, port: int) -> bytes:
    target = socket.inet_aton(SERVER[4])
    tcp = struct.pack("!HHIIBBHHH", sender, port, random.getrandbits(32), 0, 5 << 4, 2, 65535, 0, 0)
    pseudo = source + target + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(tcp)) + tcp
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    tcp = tcp[:16] + struct.pack("!H", ~total & 0xFFFF) + tcp[18:]
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0, 64, socket.IPPROTO_TCP, 0, source, target)
    return head + tcp


# ---------------------------------------------------------------------------- how even the load is


def widest(rounds: int, policy: Any) -> list[float]:
    """In each round four members keep 400 connections open: the busiest to the idlest. ``shared``: of one listener."""
    found = []
    for _ in range(rounds):
        with contextlib.ExitStack() as stack:
            if policy == "shared":
                first = stack.enter_context(harken.listen("127.0.0.1:0"))
                members = [first, *(stack.enter_context(harken.Listeners([first[0].dup()])) for _ in range(3))]  # type: ignore[list-item]
                port, group = first.port, None
            else:
                group = stack.enter_context(harken.group("127.0.0.1:0", 4, policy=policy))
                members, port = list(group), group.port
            counts, kept = [0] * len(members), list[harken.Socket]()

            def take(number: int, acceptor: Any, counts: list[int] = counts, kept: Any = kept) -> None:
                for connection in acceptor:
                    counts[number] += 1
                    kept.append(connection)

            takers = [threading.Thread(target=take, args=[n, one.acceptor()]) for n, one in enumerate(members)]
            for taker in takers:
                taker.start()
            for n in range(400):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                if n % 5 == 0:
                    time.sleep(0.001)  # clients of a server do not all come at the same moment
            while sum(counts) < 400:
                time.sleep(0.001)
            found.append(max(counts) / max(1, min(counts)))
            for one in members:
                one.close()
            for taker in takers:
                taker.join()
            for connection in kept:
                connection.close()
    return sorted(found)


def balance(rounds: int) -> bool:
    good = True
    for policy in ("least", "hash", "shared"):
        found = widest(rounds, policy)
        uneven = sum(one > 1.5 for one in found)
        good = good and (policy != "least" or uneven == 0)
        print(f"  balance, {policy}: median {found[len(found) // 2]:.2f}, most {found[-1]:.2f},"
              f" above 1.5 in {uneven} of {rounds}", flush=True)  # fmt: skip
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--serve", default="")
    parser.add_argument("--times", type=int, default=0)
    asked = parser.parse_args()
    if asked.serve:
        server(next(case for case in CASES if case.name == asked.serve), asked.times)
        return 0
    wrong = 0
    for case in CASES:
        if asked.only in case.name:
            told = run(case, case.times if asked.long else max(3, case.times // 10))
            share = told["failed"] / max(1, told["requests"])
            good = share == 0 if case.waits else share > 0.05
            wrong += not good
            print(
                f"{'  ' if good else '! '}{case.name}: {told['failed']} of {told['requests']} failed", told, flush=True
            )
    if asked.only in "balance":
        wrong += not balance(60 if asked.long else 6)
    return 1 if wrong else 0


if __name__ == "__main__":
    assert CLIENT
    sys.exit(main())
