"""More clients than there is room for: pause, limit, and no descriptors left. Every test runs on every engine."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from wire import CHILD_ENVIRONMENT, Call, clients, close_all, fails, python, receive, wait_for_queue, wait_until

import harken
from engines import NAMES, POLLABLE, forbidden, one_listener, readable, taken_in_time
from machine import WINDOWS, posix_only

pytest_plugins = ["poison"]

EBADF = 10038 if WINDOWS else errno.EBADF
EACH_THREAD = {"listeners": one_listener}  # see conftest.py


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if WINDOWS else "ii", 1, 0))
    client.close()


# ---------------------------------------------------------------------- pause, resume, limit


def test_pause_leaves_clients_in_the_queue(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine) as acceptor:
        waiting = Call(next, acceptor).blocked()
        acceptor.pause()
        acceptor.pause()
        assert repr(acceptor) == f"<harken.Acceptor {engine}, 1 listener, 0 open, paused>"
        with clients(listeners[0].address, 4):
            wait_for_queue(listeners[0], 4)
            assert not acceptor.wait(0.01)
            assert acceptor.accept_many() == []
            waiting.blocked()
            wait_for_queue(listeners[0], 4)
            acceptor.resume()
            close_all([waiting.outcome(), *taken_in_time(acceptor, 3)])
        acceptor.resume()
        assert acceptor.stats().pauses == 0  # those were the user's


def test_never_more_are_open_than_the_limit(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine, limit=5) as acceptor, clients(listeners[0].address, 60) as connected:
        most = served = 0
        held: list[harken.Socket] = []
        while served < 60:
            if served + len(held) < 60:
                held += taken_in_time(acceptor, 1)
            most = max(most, len(held))
            assert acceptor.stats().open == len(held) <= 5
            conn = held.pop(served % len(held))
            conn.sendall(b"!")
            conn.close()
            served += 1
        assert most == 5
        assert held == []
        assert all(client.recv(1) == b"!" for client in connected)
        stats = acceptor.stats()
        assert (stats.accepted, stats.open, stats.high_water) == (60, 0, 5)
        assert stats.pauses > 0
        assert stats.paused > 0


@pytest.mark.parametrize("count", [1, 8])
def test_the_limit_holds_for_threads_too(listeners: harken.Listeners, engine: str, count: int) -> None:
    lock, now_open, most = threading.Lock(), 0, 0

    def serve() -> int:
        nonlocal now_open, most
        served = 0
        for conn in acceptor:
            with lock:
                now_open += 1
                most = max(most, now_open)
            conn.sendall(b"!")
            with lock:
                now_open -= 1
            conn.close()
            served += 1
        return served

    with listeners.acceptor(engine=engine, limit=3) as acceptor, clients(listeners[0].address, 200) as connected:
        workers = [Call(serve) for _ in range(count)]
        assert all(client.recv(1) == b"!" for client in connected)
        wait_until(lambda: acceptor.stats().open == 0)
        acceptor.close()
        assert sum(worker.outcome() for worker in workers) == 200
        assert 1 <= most <= 3
        assert acceptor.stats().high_water <= 3


def test_the_rest_stays_in_the_queue(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine, limit=3) as acceptor, clients(listeners[0].address, 10):
        wait_for_queue(listeners[0], 10)
        held = acceptor.accept_many()
        assert len(held) == 3
        others = listeners[0].accept_many(20)  # whoever else has the listener
        assert len(others) == 7
        close_all(held + others)
        assert not acceptor.wait(0.01)
        acceptor.pause()
        with clients(listeners[0].address, 2):
            wait_for_queue(listeners[0], 2)
            others = listeners[0].accept_many(20)
            assert len(others) == 2
            close_all(others)


def test_it_goes_on_when_an_eighth_is_free(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine, limit=16) as acceptor, clients(listeners[0].address, 20):
        wait_for_queue(listeners[0], 20)
        held = acceptor.accept_many()
        assert len(held) == 16
        assert repr(acceptor) == f"<harken.Acceptor {engine}, 1 listener, 16 open, paused>"
        waiting = Call(acceptor.wait).blocked()
        held.pop().close()
        assert acceptor.accept_many() == []
        assert not acceptor.wait(0.01)
        held.pop().close()
        assert waiting.outcome() is True
        held += taken_in_time(acceptor, 2)
        assert acceptor.accept_many() == []
        close_all(held)
        close_all(taken_in_time(acceptor, 2))


@pytest.mark.parametrize("why", ["full", "paused"])
def test_clients_that_must_wait_cost_no_processor_time(listeners: harken.Listeners, engine: str, why: str) -> None:
    with listeners.acceptor(engine=engine, limit=1) as acceptor, clients(listeners[0].address, 5):
        wait_for_queue(listeners[0], 5)
        with next(acceptor) as first:
            if why == "paused":
                acceptor.pause()
                first.close()
            before = time.thread_time()
            assert not acceptor.wait(0.3)
            assert time.thread_time() - before < 0.05


def test_a_loop_hears_that_there_is_room_again(listeners: harken.Listeners, engine: str) -> None:
    if not POLLABLE[engine]:
        pytest.skip(f"{engine} has nothing to poll")
    with listeners.acceptor(engine=engine, limit=1) as acceptor, clients(listeners[0].address, 2):
        wait_for_queue(listeners[0], 2)
        (first,) = acceptor.accept_many()
        assert not readable(acceptor)
        closing = threading.Thread(target=first.close)
        closing.start()
        assert readable(acceptor, 10)
        closing.join()
        close_all(taken_in_time(acceptor, 1))


@pytest.mark.parametrize("way", ["detach", "to_socket"])
def test_a_connection_that_was_given_away_counts_until_it_is_released(
    listeners: harken.Listeners, engine: str, way: str
) -> None:
    with listeners.acceptor(engine=engine, limit=2) as acceptor, clients(listeners[0].address, 3):
        wait_for_queue(listeners[0], 3)
        given, kept = acceptor.accept_many()
        other = socket.socket(fileno=given.detach()) if way == "detach" else given.to_socket()
        given.close()
        del given
        other.close()
        assert acceptor.stats().open == 2
        assert not acceptor.wait(0)
        acceptor.release()
        assert acceptor.stats().open == 1
        last = taken_in_time(acceptor, 1)
        kept.close()
        kept.close()
        assert acceptor.stats().open == 1
        with pytest.raises(ValueError, match="only 0 connections were given away"):
            acceptor.release()  # the one that is open counts itself down
        close_all(last)
        assert acceptor.stats().open == 0


def test_a_connection_that_could_not_be_given_away_is_still_ours(
    listeners: harken.Listeners, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refuses(socket.socket):
        def __new__(cls, *_: object, **__: object) -> Any:
            raise MemoryError

    with listeners.acceptor(engine=engine, limit=1) as acceptor, clients(listeners[0].address, 2) as connected:
        wait_for_queue(listeners[0], 2)
        (taken,) = acceptor.accept_many()
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(socket, "socket", Refuses)
            taken.to_socket()
        taken.sendall(b"?")
        assert connected[0].recv(1) == b"?"
        assert acceptor.stats().open == 1
        with pytest.raises(ValueError, match="only 0"):
            acceptor.release()
        taken.close()
        with fails(EBADF):
            taken.to_socket()
        assert acceptor.stats().open == 0
        close_all(taken_in_time(acceptor, 1))


@posix_only
def test_failures_outlive_the_end(engine: str) -> None:
    """A failure is counted; the acceptor is closed; it is still told."""
    code = f"""
import os, resource, socket, harken
listeners = harken.listen("127.0.0.1:0")
acceptor = harken.Acceptor(listeners, engine={engine!r})
client = socket.create_connection(listeners[0].address)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
fillers = []
try:
    while True:
        fillers.append(os.dup(0))
except OSError:
    pass
assert acceptor.accept_many() == []
for filler in fillers:
    os.close(filler)
before = acceptor.stats()
assert sum(before.failed.values()) > 0, before
acceptor.close()
after = acceptor.stats()
assert after.failed == before.failed, (before, after)
assert after.pauses == before.pauses == 1
"""
    python(code)


def test_a_refused_release_counts_nothing(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine, limit=1) as acceptor, clients(listeners[0].address, 2):
        wait_for_queue(listeners[0], 2)
        (taken,) = acceptor.accept_many()
        theirs = taken.to_socket()
        for refused in (2, 10**30):
            with pytest.raises(ValueError, match="only 1"):
                acceptor.release(refused)
        assert acceptor.stats().open == 1
        acceptor.release(1)
        theirs.close()
        assert acceptor.stats().open == 0
        with pytest.raises(ValueError, match="only 0"):
            acceptor.release()
        close_all(taken_in_time(acceptor, 1))


def test_connections_outlive_their_acceptor(listeners: harken.Listeners, engine: str) -> None:
    with clients(listeners[0].address, 2) as connected:
        acceptor = listeners.acceptor(engine=engine, limit=2)
        wait_for_queue(listeners[0], 2)
        taken = acceptor.accept_many()
        acceptor.close()
        assert repr(acceptor) == "<harken.Acceptor closed, 2 open>"
        taken.pop().close()
        assert acceptor.stats().open == 1
        del acceptor
        gc.collect()
        taken[0].sendall(b"?")
        assert connected[0].recv(1) == b"?"
        close_all(taken)


def test_a_connection_that_is_dropped_is_counted_down(listeners: harken.Listeners, engine: str) -> None:
    with listeners.acceptor(engine=engine, limit=1) as acceptor, clients(listeners[0].address, 2):
        wait_for_queue(listeners[0], 2)
        with pytest.warns(ResourceWarning, match="unclosed"):
            acceptor.accept_many()
        close_all(taken_in_time(acceptor, 1))


# ---------------------------------------------------------------------- overload

STARVED = """
import errno, json, logging, os, resource, select, sys, threading, time
import harken
engine, policy, driver, window = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
lines = []
class Keep(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
logging.getLogger("harken").addHandler(Keep())
asked = []
def ask(acceptor, error):
    asked.append(error.errno)
held, served, over, freed = [], 0, threading.Event(), threading.Event()
listeners = harken.listen("127.0.0.1:0", backlog=1024)
acceptor = listeners.acceptor(engine=engine, on_overload=ask if policy == "ask" else policy)
def deal_with(connection):
    if freed.is_set():
        connection.settimeout(10)
        connection.sendall(b"!")
        connection.close()
    else:
        held.append(connection)
def by_iteration():
    for connection in acceptor:
        deal_with(connection)
def by_loop():
    while not acceptor.closed:
        if driver == "wait":
            acceptor.wait(10)
        else:
            select.select([acceptor.fileno()], [], [], 10)
        try:
            for connection in acceptor.accept_many():
                deal_with(connection)
        except OSError:
            break
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
worker = threading.Thread(target=by_iteration if driver == "iteration" else by_loop)
worker.start()
print(listeners.port, flush=True)
sys.stdin.readline()  # all clients are connected
while not acceptor.stats().failed:
    time.sleep(0.001)
while policy == "shed" and acceptor.stats().accepted + acceptor.stats().shed < 150:
    time.sleep(0.001)
before, began = time.process_time(), time.monotonic()
threading.Event().wait(window)
cpu = (time.process_time() - before) / (time.monotonic() - began)
stats = acceptor.stats()
freed.set()
open_then = len(held)
while held:
    deal_with(held.pop())
print(json.dumps({"cpu": cpu, "lines": lines, "held": open_then, "failed": stats.failed, "pauses": stats.pauses,
                  "paused": stats.paused, "shed": stats.shed, "asked": asked}), flush=True)
sys.stdin.readline()  # every client has been served
acceptor.close()
worker.join()
print(acceptor.stats().accepted, acceptor.stats().open, flush=True)
"""


def drivers(engine: str) -> list[str]:
    return ["iteration", "wait", *(["poll"] if POLLABLE[engine] else [])]


@posix_only
@pytest.mark.parametrize(("engine", "driver"), [(name, driver) for name in NAMES for driver in drivers(name)])
@pytest.mark.parametrize("policy", ["pause", "shed", "ask"])
@pytest.mark.parametrize("window", [0.4, pytest.param(2, marks=pytest.mark.proof)])
def test_running_out_of_descriptors(engine: str, driver: str, policy: str, window: float) -> None:
    if forbidden(engine):
        pytest.skip(f"no {engine} here: {forbidden(engine)}")
    child = subprocess.Popen(
        [sys.executable, "-c", STARVED, engine, policy, driver, str(window)],
        env=CHILD_ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None

    def go() -> None:
        child.stdin.write("\n")  # type: ignore[union-attr]
        child.stdin.flush()  # type: ignore[union-attr]

    with ending(child), clients(("127.0.0.1", int(child.stdout.readline())), 150) as connected:
        go()
        told = json.loads(child.stdout.readline())
        assert told["cpu"] * window < 0.04  # one that spins takes the whole of it
        assert len(told["lines"]) <= 10
        assert 60 < told["held"] < 100
        assert set(map(int, told["failed"])) == {errno.EMFILE}
        answers = Counter(end_of(client) for client in connected)
        go()
        accepted, still_open = map(int, child.stdout.readline().split())
    assert child.returncode == 0
    assert still_open == 0
    assert answers[b"!"] == accepted
    if policy == "shed":
        assert told["held"] == accepted
        assert told["shed"] == answers[b""] == 150 - accepted
        assert any("turned away" in line for line in told["lines"])
    else:
        assert accepted == 150
        assert told["paused"] > 0.95 * window
        assert told["shed"] == 0
        assert len(told["lines"] if policy == "pause" else told["asked"]) > 0
        assert (told["lines"] == []) == (policy == "ask")


@posix_only
def test_the_log_can_be_imported_when_there_are_no_descriptors(engine: str) -> None:
    code = f"""
import os, resource, socket, sys, harken
listeners = harken.listen("127.0.0.1:0")
with listeners.acceptor(engine={engine!r}) as acceptor:
    assert "logging" not in sys.modules
    clients = [socket.create_connection(("127.0.0.1", listeners.port)) for _ in range(3)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        while True:
            os.dup(0)
    except OSError:
        pass
    while acceptor.stats().pauses < 3:
        acceptor.wait()
        assert acceptor.accept_many() == []
os._exit(0)
"""
    said = python(code).stderr.splitlines()
    assert len(said) == 1
    assert f"{os.strerror(errno.EMFILE)}; 0 connections are open, clients wait in the queue" in said[0]


@contextlib.contextmanager
def ending(child: subprocess.Popen[str]) -> Iterator[None]:
    """A test that fails does not wait for its child."""
    with child:
        try:
            yield
        except BaseException:
            child.kill()
            raise


def end_of(client: socket.socket) -> bytes:
    """What the server said before it closed."""
    client.settimeout(10)
    try:
        return receive(client, 2)
    except ConnectionResetError:
        return b""


ONE_FAILURE = """
    import socket, threading
    failures = []
    sys.unraisablehook = lambda unraisable: failures.append(repr(unraisable.exc_value))
    listeners = harken.listen("127.0.0.1:0")
    clients = []
    def connect(count):
        clients.extend(socket.create_connection(("127.0.0.1", listeners.port)) for _ in range(count))
    def fail(*failures):
        so_far = count("accept4")
        os.environ["POISON"] = ",".join(f"accept4:{so_far + nth}{more}:{error}" for nth, more, error in failures)
"""


def test_the_log_needs_no_descriptor_when_logging_is_there(poison: Any, engine: str) -> None:
    """Another thread may take the one that is free for a moment."""
    report = poison.run(
        ONE_FAILURE
        + f"""
    import logging
    lines = []
    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())
    class Refuse:
        def find_spec(self, *_):
            raise OSError(errno.EMFILE, "no descriptor to import with")
    logging.getLogger("harken").addHandler(Keep())
    with listeners.acceptor(engine={engine!r}) as acceptor:
        connect(1)
        acceptor.stats()
        fail((1, "", errno.EMFILE))
        sys.meta_path.insert(0, Refuse())
        assert acceptor.accept_many() == []
        tell(lines=lines, failures=failures, failed=acceptor.stats().failed)
        del sys.meta_path[0]
        next(acceptor).close()
    """
    )
    assert len(report.said["lines"]) == 1
    assert "Too many open files; 0 connections are open, clients wait" in report.said["lines"][0]
    assert report.said["failures"] == []
    assert report.said["failed"] == {str(errno.EMFILE): 1}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("None", (1, 0, "[]")),
        ("'pause'", (1, 0, "[]")),
        ("0", (1, 0, "[]")),
        ("0.01", (1, 0, "[]")),
        ("'shed'", (0, 1, "[]")),
        ("1/0", (1, 0, "['ZeroDivisionError")),
        ("'run'", (1, 0, """["TypeError""")),
        ("True", (1, 0, """['TypeError""")),
        ("-1", (1, 0, """['ValueError""")),
        ("float('nan')", (1, 0, """['ValueError""")),
        ("acceptor.accept_many()[:0] and 0 or None", (1, 0, "[]")),
    ],
)
def test_a_function_decides(poison: Any, engine: str, answer: str, expected: tuple[int, int, str]) -> None:
    report = poison.run(
        ONE_FAILURE
        + f"""
    errors = []
    def decide(acceptor, error):
        errors.append(error)
        return {answer}
    with listeners.acceptor(engine={engine!r}, on_overload=decide) as acceptor:
        connect(1)
        fail((1, "", errno.EMFILE))
        assert acceptor.wait(10)
        first = acceptor.accept_many()
        assert first == [], first
        taken = []
        while not taken and acceptor.wait(5 if acceptor.stats().shed == 0 else 0.1):
            taken = acceptor.accept_many()
        tell(taken=len(taken), shed=acceptor.stats().shed, failures=str(failures), failed=acceptor.stats().failed)
        tell(errors=[type(error).__name__ + str(error.errno) for error in errors])
        for one in taken:
            one.close()
    """
    )
    taken, shed, failures = expected
    assert (report.said["taken"], report.said["shed"]) == (taken, shed)
    assert report.said["failures"].replace('"', "'").startswith(failures.replace('"', "'"))
    assert report.said["failed"] == {str(errno.EMFILE): 1}
    assert report.said["errors"] == [f"OSError{errno.EMFILE}"]


def test_a_function_may_close_the_acceptor(poison: Any, engine: str) -> None:
    report = poison.run(
        ONE_FAILURE
        + f"""
    with listeners.acceptor(engine={engine!r}, on_overload=lambda acceptor, error: acceptor.close()) as acceptor:
        connect(1)
        fail((1, "+", errno.ENFILE))
        tell(taken=list(acceptor), closed=acceptor.closed)
    """
    )
    assert report.said == {"taken": [], "closed": True}


def test_an_interrupt_in_a_function_loses_no_connection(poison: Any, engine: str) -> None:
    report = poison.run(
        ONE_FAILURE
        + f"""
    def decide(acceptor, error):
        raise KeyboardInterrupt
    with listeners.acceptor(engine={engine!r}, batch=300, on_overload=decide) as acceptor:
        connect(130)
        fail((129, "", errno.EMFILE))
        try:
            acceptor.accept_many()
        except KeyboardInterrupt:
            tell(interrupted=True)
        taken = acceptor.accept_many()
        while len(taken) < 130 and acceptor.wait(10):
            taken += acceptor.accept_many()
        tell(taken=len(taken), failed=acceptor.stats().failed)
        for one in taken:
            one.close()
    """
    )
    assert report.said == {"interrupted": True, "taken": 130, "failed": {str(errno.EMFILE): 1}}


def test_a_pause_is_over_as_soon_as_a_connection_is_closed(poison: Any, engine: str) -> None:
    report = poison.run(
        ONE_FAILURE
        + f"""
    import time
    with listeners.acceptor(engine={engine!r}, on_overload=lambda acceptor, error: 1000) as acceptor:
        connect(3)
        first, second = acceptor.accept_many(1) + acceptor.accept_many(1)
        fail((1, "", errno.EMFILE))
        assert acceptor.accept_many() == []
        assert not acceptor.wait(0.05)
        threading.Thread(target=first.close).start()
        third = next(acceptor)
        second.close(), third.close()
        tell(accepted=acceptor.stats().accepted)
    """
    )
    assert report.said == {"accepted": 3}


@pytest.mark.parametrize("number", ["ECONNABORTED", "EPROTO", "EPERM", "ENETDOWN", "EHOSTUNREACH"])
def test_errors_of_one_connection_are_counted_and_passed_over(poison: Any, engine: str, number: str) -> None:
    report = poison.run(
        ONE_FAILURE
        + f"""
    with listeners.acceptor(engine={engine!r}) as acceptor:
        connect(5)
        fail((1, "", errno.{number}), (3, "", errno.{number}), (4, "", errno.{number}))
        taken = acceptor.accept_many()
        stats = acceptor.stats()
        tell(taken=len(taken), failed=stats.failed, pauses=stats.pauses)
        for one in taken:
            one.close()
    """
    )
    assert report.said == {"taken": 5, "failed": {str(getattr(errno, number)): 3}, "pauses": 0}


@pytest.mark.parametrize("number", ["EPERM", "ENOBUFS", "EIO"])
def test_an_error_that_stays_does_not_make_it_spin(poison: Any, engine: str, number: str) -> None:
    report = poison.run(
        ONE_FAILURE
        + f"""
    import time
    with listeners.acceptor(engine={engine!r}, on_overload=lambda *_: None) as acceptor:
        connect(1)
        fail((1, "+", errno.{number}))
        before = count("accept4")
        deadline = time.monotonic() + 0.5
        while (left := deadline - time.monotonic()) > 0:
            if acceptor.wait(left):
                assert acceptor.accept_many() == []
        tell(calls=count("accept4") - before)
        os.environ["POISON"] = ""
        next(acceptor).close()
        tell(pauses=acceptor.stats().pauses > 1)
    """
    )
    assert report.said["pauses"]
    assert report.said["calls"] < 10 * (65 if number == "EPERM" else 1)


def test_clients_that_reset_while_the_server_is_busy(engine: str) -> None:
    with harken.listen("127.0.0.1:0", backlog=1200) as listeners:
        if (listeners[0].backlog or 1200) < 1100:
            pytest.skip("queues are too short on this machine")
        count, busy = (100 if WINDOWS else 1000), threading.Event()
        survived: list[bytes] = []

        def serve() -> None:
            busy.wait(30)
            for conn in acceptor:
                with conn, contextlib.suppress(OSError):
                    survived.append(receive(conn, 5))

        with listeners.acceptor(engine=engine) as acceptor:
            server = Call(serve)
            for _ in range(1000 // count):
                with contextlib.ExitStack() as stack:
                    for _ in range(count):
                        reset(stack.enter_context(socket.create_connection(listeners[0].address)))
                if WINDOWS:
                    busy.set()
            busy.set()
            for _ in range(3):
                with socket.create_connection(listeners[0].address) as client:
                    client.sendall(b"alive")
                    assert client.recv(1) == b""
            acceptor.close()
            server.outcome()
        assert survived.count(b"alive") == 3
