"""A storm on a shared listener: a child process makes it blocking and non-blocking in a loop, and accepts a connection
now and then, while in this process two threads accept, one pauses, resumes and reads counters, and one only counts.

    python flipped.py SECONDS ENGINE [BIND]

Prints the counts, and the longest time that a call or the interpreter stood still. Fails if it hangs or loses a client.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

import harken


def flip(listener: harken.Socket) -> None:
    """The child: it ends with its parent's signal."""
    theirs = socket.socket(fileno=os.dup(listener.fileno()))
    parent = os.getppid()
    turn = 0
    while os.getppid() == parent:
        for _ in range(200):
            theirs.setblocking(True)
            theirs.setblocking(False)
        theirs.setblocking(turn % 2 == 0)  # and sometimes it stays so
        turn += 1
        try:
            theirs.setblocking(False)
            conn, _ = theirs.accept()
            theirs.setblocking(True)
            conn.sendall(b"!")
            conn.close()
        except OSError:
            pass


def main(seconds: float, engine: str, bind: str) -> None:
    faulthandler.dump_traceback_later(seconds + 35, exit=True)
    (listener,) = listeners = harken.listen(bind, backlog=256)
    address: Any = listener.address
    child = os.fork()
    if child == 0:
        try:
            flip(listener)
        finally:
            os._exit(0)
    acceptor = listeners.acceptor(engine=engine)
    counts: dict[str, int] = {}
    longest = {"call": 0.0, "interpreter": 0.0}
    end = time.monotonic() + seconds
    served = threading.Event()
    problems: list[BaseException] = []

    def counted(name: str, function: Any) -> None:
        counts[name] = 0
        try:
            while time.monotonic() < end if "served" in name else not served.is_set():
                function()
                counts[name] += 1
        except BaseException as problem:
            problems.append(problem)
            served.set()

    def take() -> None:
        if acceptor.wait(0.01):
            for conn in acceptor.accept_many():
                conn.sendall(b"!")
                conn.close()

    def ask() -> None:
        for call in (acceptor.pause, acceptor.stats, acceptor.resume, acceptor.stats):
            before = time.perf_counter()
            call()
            longest["call"] = max(longest["call"], time.perf_counter() - before)
        time.sleep(0.0005)

    def tick() -> None:
        before = time.perf_counter()
        time.sleep(0.001)
        longest["interpreter"] = max(longest["interpreter"], time.perf_counter() - before)

    def client() -> None:
        """Several at a time, each of whom must be served, by whomever."""
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        several = [socket.socket(family) for _ in range(5)]
        for sock in several:
            sock.settimeout(30)
            sock.connect(address)
        for sock in several:
            if sock.recv(1) != b"!":
                raise AssertionError("a client was not served")
            sock.close()

    work = [
        ("taken", take),
        ("taken again", take),
        ("asked", ask),
        ("ticks", tick),
        ("served", client),
        ("served again", client),
    ]
    threads = [threading.Thread(target=counted, args=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads[-2:]:  # two: a client lets in the one before him, whose server is held up
        thread.join()
    served.set()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    last = [socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) for _ in range(2)]
    for sock in last:
        sock.connect(address)  # for those that are held up in accept(2)
    for thread in threads:
        thread.join()
    acceptor.close()
    listener.close()
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{engine}: {said}; longest: {longest['call'] * 1e3:.1f} ms a call, {longest['interpreter'] * 1e3:.1f} ms")
    if problems:
        raise problems[0]


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "127.0.0.1:0")
