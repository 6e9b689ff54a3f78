"""Workers in processes of their own: `harken.workers`. Under load, with other servers: reloading.py."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wire import CHILD_ENVIRONMENT, wait_until

import harken
from children import needs_root
from harken.workers import _board, _worker
from machine import LINUX, posix_only

pytestmark = posix_only

PROGRAM = """
import harken, logging, os, signal, socket, sys, threading, time
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)

def answer(connection):
    with connection:
        connection.settimeout(20)
        while data := connection.recv(100):
            connection.sendall(b"%d\\n" % os.getpid())

def work(listeners):
    "A thread for each connection, which says who it is as often as it is asked."
    for connection in listeners.acceptor():
        threading.Thread(target=answer, args=[connection]).start()
"""


class Running:
    """A program that serves, and what it has told so far."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.child, self.lines = child, list[str]()
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    def read(self) -> None:
        for line in self.child.stdout or ():
            self.lines.append(line.rstrip())

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def told(self, words: str, times: int = 1, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while len(re.findall(words, self.log)) < times:
            assert time.monotonic() < end, f"{words!r} {times} times:\n{self.log}"
            time.sleep(0.01)

    def pids(self, words: str = "serves") -> list[int]:
        return [int(pid) for pid in re.findall(rf"worker \d+ \(pid (\d+)\) {words}", self.log)]

    def kill(self, name: str) -> None:
        self.child.send_signal(getattr(signal, name))

    def end(self, seconds: float = 30) -> int:
        code = self.child.wait(seconds)
        self.thread.join(seconds)
        return code


@contextlib.contextmanager
def running(call: str, first: str = "", port: int | None = None, prefix: list[str] | None = None) -> Iterator[Running]:
    """The program ``sys.exit(harken.workers.serve(CALL))``. ``{port}`` in it is one that is free."""
    port = free_port() if port is None else port
    program = (
        PROGRAM + textwrap.dedent(first) + f"\nsys.exit(harken.workers.serve({call.replace('{port}', str(port))}))"
    )
    child = subprocess.Popen(
        [*(prefix or []), sys.executable, "-W", "ignore", "-c", program],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=CHILD_ENVIRONMENT,
    )  # fmt: skip
    made = Running(child)
    made.port = port  # type: ignore[attr-defined]
    try:
        yield made
    finally:
        if child.poll() is None:
            child.kill()  # its workers end by themselves
        made.end()
        assert child.stdout is not None
        child.stdout.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def ask(port: Any) -> int:
    """The pid of the worker that answers a new connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        return ask_again(client)


def ask_again(client: socket.socket) -> int:
    client.sendall(b"who?")
    data = b""
    while not data.endswith(b"\n"):
        part = client.recv(100)
        assert part, "closed"
        data += part
    return int(data)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not LINUX or "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


SERVE = 'work, "127.0.0.1:{port}", workers=3'


def test_each_worker_is_a_process_that_serves() -> None:
    with running(SERVE) as server:
        server.told("serves", 3)
        wait_until(lambda: {ask(server.port) for _ in range(20)} <= set(server.pids()))  # type: ignore[attr-defined]
        assert len(set(server.pids())) == 3
        server.kill("SIGTERM")
        assert server.end() == 0, server.log
        assert not any(alive(pid) for pid in server.pids())


def test_workers_are_replaced_one_by_one_the_successor_first() -> None:
    with running(SERVE) as server:
        server.told("serves", 3)
        old = server.pids()
        server.kill("SIGHUP")
        server.told("serves", 6)
        server.told("has ended", 3)
        events = re.findall(r"pid (\d+)\) (serves|has ended)", server.log)[3:]
        assert [what for _, what in events] == ["serves", "has ended"] * 3
        assert {int(pid) for pid, what in events if what == "has ended"} == set(old)
        assert {ask(server.port) for _ in range(20)} <= set(server.pids()[3:])  # type: ignore[attr-defined]
        server.kill("SIGTERM")
        assert server.end() == 0, server.log


def test_a_connection_in_use_is_waited_for_and_the_next_one_goes_elsewhere() -> None:
    with running('work, "127.0.0.1:{port}", workers=1') as server:
        server.told("serves")
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:  # type: ignore[attr-defined]
            old = ask_again(client)
            server.kill("SIGHUP")
            server.told("serves", 2)
            assert ask(server.port) != old  # type: ignore[attr-defined]
            assert ask_again(client) == old, "it is still served"
        server.told("has ended with exit code 0")


def test_a_worker_that_was_killed_is_started_again_and_its_queue_is_served() -> None:
    with running('work, "127.0.0.1:{port}", workers=1') as server:
        server.told("serves")
        os.kill(server.pids()[0], signal.SIGSTOP)
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:  # type: ignore[attr-defined]
            os.kill(server.pids()[0], signal.SIGKILL)
            assert ask_again(client) != server.pids()[0]
        server.told("was ended by SIGKILL")
        server.told("serves", 2)


def test_a_worker_that_ends_by_itself_is_no_failure() -> None:
    first = """
    def once(listeners):
        with listeners.acceptor() as acceptor:
            answer_one = next(acceptor)  # the supervisor's
            answer_one.close()
            answer(next(acceptor))
    """
    with running('once, "127.0.0.1:{port}", workers=1', first) as server:
        for n in range(1, 8):  # with the pauses of failures it would take twelve seconds
            server.told("serves", n)
            ask(server.port)  # type: ignore[attr-defined]
        assert "exit code" not in server.log


def test_a_target_that_fails_at_once_is_given_up_and_its_error_shown() -> None:
    first = """
    def fails(listeners):
        raise LookupError("there is no such application")
    """
    with running('fails, "127.0.0.1:{port}", workers=2', first) as server:
        assert server.end() == 3
        assert "LookupError: there is no such application" in server.log
        assert "no worker was ever ready, after 5 attempts" in server.log


def test_a_target_that_returns_without_serving_is_given_up_too() -> None:
    with running('lambda listeners: None, "127.0.0.1:{port}", workers=1') as server:
        assert server.end() == 3


@pytest.mark.parametrize("fault", ["time.sleep(60)", "sys.exit(7)"])
def test_when_a_successor_is_not_ready_the_others_stay(tmp_path: Path, fault: str) -> None:
    flag = tmp_path / "flag"
    first = f"""
    def by_flag(listeners):
        if os.path.exists({str(flag)!r}):
            {fault}
        work(listeners)
    """
    with running('by_flag, "127.0.0.1:{port}", workers=2, start_timeout=0.7', first) as server:
        server.told("serves", 2)
        flag.touch()
        server.kill("SIGHUP")
        server.told("before it was ready: the others stay as they are")
        assert ("is not ready after 1 seconds" in server.log) == ("sleep" in fault)
        assert ("exit code 7" in server.log) == ("exit" in fault)
        assert {ask(server.port) for _ in range(20)} <= set(server.pids())  # type: ignore[attr-defined]
        assert all(alive(pid) for pid in server.pids())
        flag.unlink()
        server.kill("SIGHUP")
        server.told("serves", 4)


def test_there_may_be_more_workers_and_fewer() -> None:
    with running('work, "127.0.0.1:{port}", workers=1, slots=2') as server:
        server.told("serves")
        for n in (2, 3, 4):
            server.kill("SIGTTIN")
            server.told("serves", n)
        for n in (1, 2, 3):
            server.kill("SIGTTOU")
            server.told("has ended", n)
        server.kill("SIGTTOU")  # the last one stays
        assert {ask(server.port) for _ in range(10)} == {server.pids()[0]}  # type: ignore[attr-defined]
        server.kill("SIGHUP")
        server.told("serves", 5)


def test_workers_end_with_their_supervisor() -> None:
    with running(SERVE) as server:
        server.told("serves", 3)
        server.kill("SIGKILL")
        wait_until(lambda: not any(alive(pid) for pid in server.pids()))


def test_connections_that_are_in_use_are_told_by_the_exit_code() -> None:
    with running('work, "127.0.0.1:{port}", workers=1, drain=0.3') as server:
        server.told("serves")
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:  # type: ignore[attr-defined]
            ask_again(client)
            server.kill("SIGTERM")
            assert server.end() == 4
        assert "is stopped with 1 connections that are in use" in server.log


def test_a_second_signal_does_not_wait() -> None:
    with running('work, "127.0.0.1:{port}", workers=2, drain=600') as server:
        server.told("serves", 2)
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:  # type: ignore[attr-defined]
            ask_again(client)
            server.kill("SIGTERM")
            wait_until(lambda: not reachable(server.port))  # type: ignore[attr-defined]
            server.kill("SIGINT")
            assert server.end() == 4


def reachable(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(0.2)
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_a_target_that_ignores_signals_is_killed() -> None:
    first = """
    def stubborn(listeners):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        work(listeners)
        time.sleep(60)
    """
    with running('stubborn, "127.0.0.1:{port}", workers=1', first) as server:
        server.told("serves")
        server.kill("SIGQUIT")
        assert server.end() == 4
        assert "does not stop, and is killed" in server.log


def test_after_sigterm_it_may_serve_for_a_while() -> None:
    with running('work, "127.0.0.1:{port}", workers=1, drain_delay=0.5') as server:
        server.told("serves")
        server.kill("SIGTERM")
        assert ask(server.port) == server.pids()[0]  # type: ignore[attr-defined]
        assert server.end() == 0


def test_a_bind_that_cannot_be_had_starts_nothing() -> None:
    with harken.listen("127.0.0.1:0") as taken, running(SERVE, port=taken.port) as server:
        assert server.end() == 1
        assert "AddressInUseError" in server.log
        assert "pid" not in re.sub(r"\(pid \d+", "", server.log.partition("AddressInUseError")[0])


def test_workers_may_share_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with running(f'work, "unix:{path}", workers=2') as server:
        server.told("serves", 2)

        def ask_by_path() -> int:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                client.connect(str(path))
                return ask_again(client)

        before = {ask_by_path() for _ in range(10)}
        server.kill("SIGHUP")
        server.told("has ended", 2)
        assert not before & {ask_by_path() for _ in range(10)}
        server.kill("SIGTERM")
        assert server.end() == 0, server.log
        assert not path.exists()


@pytest.mark.skipif(not LINUX, reason="elsewhere workers share a listener")
def test_the_emptiest_worker_gets_connections_by_the_policy_least() -> None:
    ratios = []
    for _ in range(3):  # another process that has the processor holds a round's balancing up
        with running('work, "127.0.0.1:{port}", workers=4, policy="least"') as server, contextlib.ExitStack() as stack:
            server.told("serves", 4)
            owners: Counter[int] = Counter()
            for _ in range(400):
                client = socket.create_connection(("127.0.0.1", server.port), timeout=20)  # type: ignore[attr-defined]
                owners[ask_again(stack.enter_context(client))] += 1
            assert len(owners) == 4
            ratios.append(max(owners.values()) / min(owners.values()))
            server.kill("SIGQUIT")
        if ratios[-1] <= 1.5:
            break
    assert min(ratios) <= 1.5, ratios


@pytest.mark.skipif(not LINUX, reason="descriptors are counted in /proc")
def test_the_supervisor_does_not_grow() -> None:
    with running('work, "127.0.0.1:{port}", workers=1') as server:
        server.told("serves")
        counts = []
        for n in range(2, 8):
            server.kill("SIGHUP")
            server.told("serves", n)
            server.told("has ended", n - 1)
            counts.append(len(os.listdir(f"/proc/{server.child.pid}/fd")))
        assert len(set(counts)) == 1, counts


@needs_root
@pytest.mark.skipif(not LINUX or shutil.which("unshare") is None, reason="a first process is made by unshare(1)")
def test_as_the_first_process_it_reaps_whoever_has_ended() -> None:
    """SIGTERM, which a first process ignores that does not handle it, ends it; orphans leave no zombies."""
    first = """
    def makes_orphans(listeners):
        if os.fork() == 0:
            if os.fork() == 0:
                time.sleep(0.2)
            os._exit(0)
        os.wait()
        work(listeners)
    """
    prefix = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    with running('makes_orphans, "127.0.0.1:{port}", workers=2', first, prefix=prefix) as server:
        server.told("serves", 2)
        inside = int(Path(f"/proc/{server.child.pid}/task/{server.child.pid}/children").read_text().split()[0])

        def children() -> list[str]:
            listed = Path(f"/proc/{inside}/task/{inside}/children").read_text().split()
            try:
                return [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in listed]
            except (FileNotFoundError, ProcessLookupError):  # one was reaped meanwhile
                return []

        wait_until(lambda: len(children()) == 2 and "Z" not in children())
        os.kill(inside, signal.SIGTERM)
        assert server.end() == 0, server.log


# ---------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (("work", "127.0.0.1:0"), {}, TypeError, "target is a function of listeners, and not str"),
        ((print,), {}, TypeError, "needs at least one bind"),
        ((print, "127.0.0.1:0"), {"workers": 0}, ValueError, "size is from 1"),
        ((print, "127.0.0.1:0"), {"workers": 10000}, ValueError, "size is from 1"),
        ((print, "127.0.0.1:0"), {"drain": -1}, ValueError, "drain is a number of seconds"),
        ((print, "127.0.0.1:0"), {"settle": "5"}, ValueError, "settle is a number of seconds"),
        ((print, "127.0.0.1:0"), {"policy": "best"}, ValueError, "policy is"),
        ((print, "127.0.0.1:0"), {"backlogs": 3}, TypeError, "unexpected keyword argument 'backlogs'"),
    ],
)
def test_what_is_wrong_is_told_before_a_process_exists(arguments: Any, options: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        harken.workers.serve(*arguments, **options)


def test_it_is_called_in_the_main_thread() -> None:
    failed: list[BaseException] = []

    def call() -> None:
        try:
            harken.workers.serve(print, "127.0.0.1:0")
        except RuntimeError as error:
            failed.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert "main thread" in str(failed[0])


def test_without_fork_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    with pytest.raises(OSError, match=r"fork\(2\)") as caught:
        harken.workers.serve(print, "127.0.0.1:0")
    assert caught.value.errno == errno.EOPNOTSUPP


# ---------------------------------------------------------------------------- in a worker


def test_outside_of_a_worker_there_is_nothing_to_tell() -> None:
    assert harken.workers.draining() is False
    harken.workers.ready()
    with pytest.raises(RuntimeError, match="no worker"):
        harken.workers.listeners()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[_board.Board]:
    """This process is a worker, as far as it can tell."""
    board = _board.Board()
    monkeypatch.setattr(_worker._Here, "board", board, raising=False)
    monkeypatch.setattr(_worker._Here, "record", 3, raising=False)
    monkeypatch.setattr(_worker._Here, "listeners", harken.Listeners())
    return board


def test_a_worker_is_told_that_it_is_about_to_end(here: _board.Board) -> None:
    assert not harken.workers.draining()
    assert here.asks(3)
    here.give_order(3, _board.DRAIN)
    assert harken.workers.draining()
    assert harken.workers.listeners() == ()
    assert not here.ready(3)
    harken.workers.ready()
    assert here.ready(3)
    here.tell_open(3, 2, 70000)
    assert (here.accepting(3), here.open(3), here.order(3), here.ready(3), here.asks(3)) == (2, 70000, 1, True, True)
    assert (here.accepting(2), here.open(4)) == (0, 0)
    here.clear(3)
    assert (here.accepting(3), here.open(3), here.order(3), here.ready(3), here.asks(3)) == (0, 0, 0, False, False)


def through_asgi(scope: dict[str, Any], message: dict[str, Any]) -> dict[str, Any]:
    """What the server gets of what the application sends."""
    sent: list[dict[str, Any]] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(message)

    async def send(given: Any) -> None:
        sent.append(given)

    wrapped: Any = harken.workers.asgi(app)
    asyncio.run(wrapped(scope, None, send))
    return sent[0]


def test_an_asgi_application_ends_connections_that_are_kept_open(here: _board.Board) -> None:
    start = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b"), (b"Connection", b"keep-alive")]}
    scope = {"type": "http", "http_version": "1.1"}
    assert through_asgi(scope, start) == start
    here.give_order(3, _board.DRAIN)
    assert through_asgi(scope, start)["headers"] == [(b"a", b"b"), (b"connection", b"close")]
    assert through_asgi(scope, {"type": "http.response.start", "status": 204})["headers"] == [(b"connection", b"close")]
    assert through_asgi(scope | {"http_version": "2"}, start) == start, "HTTP/2 forbids the header"
    assert through_asgi(scope, {"type": "http.response.body"}) == {"type": "http.response.body"}
    assert through_asgi({"type": "websocket"}, start) == start


def test_an_asgi_application_is_ready_when_its_lifespan_has_begun(here: _board.Board) -> None:
    through_asgi({"type": "lifespan"}, {"type": "lifespan.startup.failed"})
    assert not here.ready(3)
    through_asgi({"type": "lifespan"}, {"type": "lifespan.startup.complete"})
    assert here.ready(3)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_it_serves_without_streams(stream: str) -> None:
    """As a daemon that has closed its descriptors has none."""
    with running('work, "127.0.0.1:{port}", workers=1', f"sys.{stream} = None") as program:
        program.told("serves")
        program.kill("SIGTERM")
        assert program.end() == 0


@pytest.mark.skipif(not LINUX, reason="/dev/full")
def test_it_serves_when_its_output_cannot_be_written() -> None:
    first = """
    logging.getLogger().handlers[0].stream = sys.stderr = sys.stdout
    sys.stdout = open("/dev/full", "w")
    sys.stdout.write("half a line")
    """
    with running('work, "127.0.0.1:{port}", workers=1', first) as program:
        program.told("serves")
        program.kill("SIGTERM")
        program.end()
        assert "cannot be started" not in program.log
