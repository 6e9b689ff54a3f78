"""Another process that shares a listener may make it blocking, and accept the connection that was seen, at any moment.
Then accept(2) waits in one thread; no other thread may wait for that."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from wire import CHILD_ENVIRONMENT

from engines import NAMES, forbidden
from machine import posix_only

ENGINES = [name for name in NAMES if name != "acceptex"]
# From 3.12 on CPython warns of every fork() beside a thread, which is what is tried here.
QUIET = ["-W", "ignore::ResourceWarning", "-W", "ignore::DeprecationWarning"]


@pytest.fixture(scope="module")
def thief(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or compiler is None:
        pytest.skip("the shim is written for Linux and glibc, and needs a C compiler")
    if os.environ.get("HARKEN_SANITIZED"):
        pytest.skip("the sanitizer has to be preloaded first")
    library = tmp_path_factory.mktemp("thief") / "thief.so"
    source = Path(__file__).with_name("thief.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


# A thread is held up in accept(2), by whom `take` says, until a client comes.
HELD_UP = """
import ctypes, faulthandler, socket, sys, threading
import harken
from wire import Call, wait_for_queue
faulthandler.dump_traceback_later(30, exit=True)  # hangs are in C, where nothing else could end them
engine, take = sys.argv[1:]
works = ctypes.c_int.in_dll(ctypes.CDLL(None), "thief_works")
(listener,) = listeners = harken.listen("127.0.0.1:0")
address = listener.address
acceptor = listeners.acceptor(engine=engine)
first = socket.create_connection(address)
wait_for_queue(listener, 1)
works.value = 1
if take == "accept_many":
    taker = Call(acceptor.accept_many, 1)
elif take == "next":
    taker = Call(next, acceptor)
else:
    taker = Call(listener.accept)
wait_for_queue(listener, 0)
taker.blocked()  # its connection was stolen
works.value = 0
def let_in():
    with socket.create_connection(address) as client:
        return taker.outcome()
"""

STEPS = {
    # All that others do goes on; then a client comes, and is served.
    "go on": """
def others():
    for _ in range(3):
        acceptor.pause()
        acceptor.resume()
        assert acceptor.stats().open == 0
        assert engine in repr(acceptor)
        assert acceptor.accept_many() == []
        assert acceptor.wait(0) is False
        assert not acceptor.closed
Call(others).outcome()
others()
taken = let_in()
(conn,) = [taken] if take == "next" else taken
conn.close()
acceptor.close()
listener.close()
""",
    # The acceptor is closed, then the one who was held up comes back: what he has is not lost.
    "close the acceptor": """
Call(acceptor.close).outcome()
acceptor.close()
assert acceptor.closed
assert list(acceptor) == []
taken = let_in()
(conn,) = [taken] if take == "next" else taken
conn.close()
listener.close()
""",
    # The listener is closed: its number may be another's soon, and nobody uses it.
    "close the listener": """
number = listener.fileno()
other = Call(lambda: sum(range(1000)))
listener.close()
other.outcome()
import os
again = os.open(os.devnull, os.O_RDONLY)
while again < number:
    again = os.open(os.devnull, os.O_RDONLY)
acceptor.close()
os.fstat(again)
print("closed")
sys.stdout.flush()
os._exit(0)  # nobody comes to a port that is closed, so that thread stays in accept(2)
""",
    # The listener moves to another owner, who has it at once.
    "give the listener away": """
theirs = listener.to_socket()
assert theirs.getsockname() == address
acceptor.close()
taken = let_in()
(conn,) = [taken] if take == "next" else taken
conn.close()
theirs.close()
""",
    # A child has an engine of its own, and locks that nobody there holds.
    "fork": """
import os, signal
child = os.fork()
if child == 0:
    signal.alarm(20)
    assert acceptor.stats().open == 0
    acceptor.pause()
    acceptor.close()
    assert acceptor.stats().accepted == 0
    listener.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
taken = let_in()
(conn,) = [taken] if take == "next" else taken
conn.close()
acceptor.close()
listener.close()
""",
}


@pytest.mark.parametrize("what", STEPS)
@pytest.mark.parametrize("take", ["accept_many", "next"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_thread_blocked_in_accept_blocks_no_other(thief: Path, engine: str, take: str, what: str) -> None:
    if reason := forbidden(engine):
        pytest.skip(f"no {engine} here: {reason}")
    if engine == "io_uring" and take == "next":
        pytest.skip("takes a batch by a request that cannot wait")
    held_up(thief, engine, take, STEPS[what])


def test_a_listener_can_be_closed_while_its_accept_blocks(thief: Path) -> None:
    held_up(thief, ENGINES[-1], "accept", STEPS["close the listener"])


def held_up(thief: Path, engine: str, take: str, then: str) -> None:
    environment = {**CHILD_ENVIRONMENT, "LD_PRELOAD": str(thief)}
    child = subprocess.run(
        [sys.executable, *QUIET, "-c", HELD_UP + then, engine, take],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (child.returncode, child.stderr) == (0, "")


LIMIT = """
import ctypes, sys
import harken
from wire import Call, clients
with harken.listen("127.0.0.1:0") as listeners, listeners.acceptor(engine=sys.argv[1], limit=3) as acceptor:
    def serve():
        for connection in acceptor:
            connection.sendall(b"!")
            connection.close()
    with clients(listeners[0].address, 30) as connected:
        ctypes.c_int.in_dll(ctypes.CDLL(None), "thief_delays").value = 60_000
        workers = [Call(serve) for _ in range(8)]
        assert all(client.recv(1) == b"!" for client in connected)
        acceptor.close()
        for worker in workers:
            worker.outcome()
    print(acceptor.stats().accepted, acceptor.stats().high_water <= 3)
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_that_do_not_wait_for_a_slow_accept_keep_to_the_limit(thief: Path, engine: str) -> None:
    """Who is held up has room for what it may still bring: those beside it take no more than the rest."""
    if reason := forbidden(engine):
        pytest.skip(f"no {engine} here: {reason}")
    child = subprocess.run(
        [sys.executable, "-c", LIMIT, engine],
        env={**CHILD_ENVIRONMENT, "LD_PRELOAD": str(thief)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (child.stdout, child.stderr) == ("30 True\n", "")


@posix_only
@pytest.mark.parametrize("family", ["tcp", "unix"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seconds", ["0.2", pytest.param("1", marks=pytest.mark.proof)])
def test_another_process_changes_the_mode_in_a_loop(engine: str, family: str, seconds: str, tmp_path: Path) -> None:
    """A real one, in a loop, that takes connections now and then. See flipped.py, which runs longer by hand."""
    if reason := forbidden(engine):
        pytest.skip(f"no {engine} here: {reason}")
    bind = "127.0.0.1:0" if family == "tcp" else f"unix:{tmp_path}/s"
    program = Path(__file__).with_name("flipped.py")
    child = subprocess.run(
        [sys.executable, *QUIET, program, seconds, engine, bind],
        env=CHILD_ENVIRONMENT | {"PYTHONWARNINGS": "ignore::ResourceWarning"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (child.returncode, child.stderr) == (0, ""), child.stdout
    assert os.fsencode("served") in child.stdout.encode()
