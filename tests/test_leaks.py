"""Nothing is left behind: counted by the process itself, and seen by valgrind on every byte of the flow."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

import harken
from harken import AI_CANONNAME, AI_PASSIVE, SOCK_STREAM
from machine import HAS_IPV6, LINUX, WINDOWS, linux_only, wine_lacks

if TYPE_CHECKING:
    from poison import Poison

pytest_plugins = ["poison"]

FEWER = 10 if WINDOWS else 1  # rounds cost ten times as much there


def handles() -> int:
    """How many handles, or file descriptors, this process holds."""
    gc.collect()
    if WINDOWS:
        count = ctypes.c_ulong()
        kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore]
        kernel.GetCurrentProcess.restype = ctypes.c_void_p
        assert kernel.GetProcessHandleCount(ctypes.c_void_p(kernel.GetCurrentProcess()), ctypes.byref(count))
        return count.value
    return len(os.listdir("/proc/self/fd" if LINUX else "/dev/fd"))


def resident() -> int:
    """Bytes of memory that this process occupies."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def resolve() -> None:
    harken.getaddrinfo("127.0.0.1", 80, flags=AI_CANONNAME)
    with harken.getaddrinfo(None, "80", type=SOCK_STREAM, flags=AI_PASSIVE) as found:
        list(found)


def resolve_in_vain() -> None:
    for arguments in (("127.0.0.1", "no-such-service"), ("127.0.0.1", 80, 99, 99), ("a\0", 80), ("127.0.0.1", 65536)):
        with pytest.raises((OSError, ValueError, OverflowError)):
            harken.getaddrinfo(*arguments)


def listen() -> None:
    harken.listen(":0" if HAS_IPV6 else "tcp4://:0").close()


def listen_for_others() -> None:
    with harken.listen("127.0.0.1:0") as listeners:
        listeners.sockets()[0].close()


def listen_in_vain() -> None:
    with pytest.raises(OSError, match=r"192\.0\.2\.77"):
        harken.listen("127.0.0.1:0", "192.0.2.77:0")


def accept() -> None:
    with harken.listen("127.0.0.1:0") as listeners, socket.create_connection(("127.0.0.1", listeners.port)) as client:
        connection, _ = listeners[0].accept()
        with connection:
            client.sendall(b"ping")
            assert connection.recv(4) == b"ping"


def accept_by_engine() -> None:
    with harken.listen("127.0.0.1:0") as listeners, listeners.acceptor(limit=1) as acceptor:
        with socket.create_connection(("127.0.0.1", listeners.port)) as client, next(acceptor) as connection:
            client.sendall(b"ping")
            assert connection.recv(4) == b"ping"
        acceptor.stats()


def accept_by_engine_in_vain() -> None:
    with harken.listen("127.0.0.1:0") as listeners:
        for wrong in ([listeners[0], listeners[0]], [listeners[0], None], []):
            with pytest.raises((TypeError, ValueError)):
                harken.Acceptor(wrong)
        acceptor = listeners.acceptor()
    with pytest.raises(OSError, match="."):  # its listener is gone
        acceptor.accept_many()


@pytest.mark.parametrize(
    ("use", "rounds"),
    [(resolve, 10_000), (resolve_in_vain, 1_000), (listen, 2_000), (listen_for_others, 1_000), (listen_in_vain, 1_000),
     (accept, 500), (accept_by_engine, 500), (accept_by_engine_in_vain, 500)],
)  # fmt: skip
def test_no_use_leaves_a_handle_behind(use: Callable[[], None], rounds: int) -> None:
    use()
    before = handles()
    for _ in range(rounds // FEWER):
        use()
    # Windows keeps a few of its own, for its own reasons, which do not grow with the rounds.
    assert handles() - before <= (rounds // FEWER // 10 if WINDOWS else 0)


@wine_lacks("GetProcessHandleCount(): it is 0 there, always")
def test_a_handle_that_is_left_would_be_counted() -> None:
    before = handles()
    with harken.listen(*["127.0.0.1:0"] * 20):
        assert handles() - before >= 20


@linux_only
@pytest.mark.parametrize(
    ("use", "rounds"),
    [(resolve, 10_000), (resolve_in_vain, 3_000), (listen, 5_000), (listen_in_vain, 3_000), (accept_by_engine, 3_000),
     (accept_by_engine_in_vain, 3_000)],
)  # fmt: skip
def test_no_use_leaves_memory_behind(use: Callable[[], None], rounds: int) -> None:
    """The smallest thing that could be lost, an entry of an address list, is 80 bytes."""
    for _ in range(rounds // 10):
        use()
    gc.collect()
    before = resident()
    for _ in range(rounds):
        use()
    gc.collect()
    assert resident() - before < rounds * 60


@linux_only
def test_all_that_was_made_is_given_back_whatever_fails(poison: Poison) -> None:
    """Each call of the flow fails once, one after the other."""
    flow = """
        def one():
            with harken.getaddrinfo("pair", 0, type=harken.SOCK_STREAM) as found:
                sock = harken.Socket(*found[0][:3])
                with sock:
                    sock.bind(found[0])
                    sock.listen()
            with harken.listen("pair:0", ":0") as listeners, harken.Socket() as client:
                client.connect(listeners[0].address)
                listeners[0].accept()[0].close()
        failed = 0
        steps = {"getaddrinfo": 6, "socket": 6, "setsockopt": 9, "bind": 5, "listen": 5, "accept4": 1}
        for name, calls in steps.items():
            for nth in range(1, calls + 1):
                os.environ["POISON"] = f"{name}:{count(name) + nth}:" + ("-10" if name == "getaddrinfo" else "24")
                try:
                    one()
                except OSError as error:
                    failed += 1
                assert (count("sockets"), count("lists")) == (0, 0), (name, nth)
        os.environ["POISON"] = ""
        one()
        tell(failed=failed)
    """
    report = poison.run(flow, hosts="pair=127.0.0.1,127.0.0.2")
    assert report.said["failed"] == sum(report.failures.values()) >= 30
    assert report.calls["sockets"] == report.calls["lists"] == 0
    assert report.calls["close"] == sum(report.calls[name] - report.failures[name] for name in ("socket", "accept4"))
    assert report.calls["freeaddrinfo"] > 0


FLOW = """
    import harken

    def flow():
        with harken.getaddrinfo("127.0.0.1", 0, type=harken.SOCK_STREAM, flags=harken.AI_CANONNAME) as found:
            list(found), found[0].canonname, repr(found)
            sock = harken.Socket(*found[0][:3])
            sock.bind(found[0])
        sock.listen()
        with harken.Socket() as client, sock:
            client.connect(sock.getsockname())
            connection, peer = sock.accept()
            with connection:
                client.sendall(b"ping")
                connection.recv(4), connection.getpeername()
        harken.getaddrinfo(None, "http", flags=harken.AI_PASSIVE)
        harken.getaddrinfo("localhost", 80)
        with harken.listen(":0", "127.0.0.1:0", backlog=5) as listeners, harken.Socket() as client:
            client.connect(("127.0.0.1", listeners[0].port))
            for one in listeners[0].accept_many():
                one.close()
            str(listeners), listeners[0].stats(), listeners[0].url
        with harken.listen("127.0.0.1:0") as listeners, listeners.acceptor(limit=2) as acceptor:
            clients = [harken.Socket() for _ in range(3)]
            for client in clients:
                client.connect(listeners[0].address)
            one, two = next(acceptor), next(acceptor)
            one.detach(), two.close(), acceptor.release()
            next(acceptor).close(), acceptor.wait(0), acceptor.stats(), repr(acceptor)
            listeners.close()
            for client in clients:
                client.close()
        try:
            harken.listen("127.0.0.1:0", "192.0.2.77:0")
        except OSError as error:
            str(error)
        for wrong in (("a\\0", 80), ("x" * 70, 80), ("127.0.0.1", 65536), ("127.0.0.1", "none"), ("127.0.0.1", 80, 99)):
            try:
                harken.getaddrinfo(*wrong)
            except (OSError, ValueError, OverflowError):
                pass

    for _ in range(TIMES):
        flow()
"""
LEAK = """
    import ctypes, harken
    for _ in range(TIMES):
        lost = harken.getaddrinfo("127.0.0.1", 80)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(lost))
        del lost
"""


def errors_in_harken(program: str, times: int, report: Path) -> tuple[set[str], int]:
    """What valgrind finds in a child process, in calls from harken's own modules: the kinds of error, and how many
    pieces of memory are lost."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        pytest.skip("no valgrind on this machine")
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("free-threaded Python allocates in its own way only, which hides leaks from valgrind")
    command = [valgrind, "--quiet", "--leak-check=full", "--show-leak-kinds=definite", "--num-callers=40", "--xml=yes"]
    child = subprocess.run(
        [*command, f"--xml-file={report}", sys.executable, "-c", f"TIMES = {times}\n{textwrap.dedent(program)}"],
        env={**os.environ, "PYTHONMALLOC": "malloc"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    kinds, lost = set(), 0
    for error in ET.parse(report).getroot().iter("error"):
        for frame in error.iterfind("stack[1]/frame"):
            if frame.findtext("fn", "").startswith("_PyEval_EvalFrame"):
                break  # what Python code does further in, an import for one, is not harken's
            if "harken" in Path(frame.findtext("obj", "")).parts:
                kind = error.findtext("kind", "")
                if kind.startswith("Leak"):
                    lost += int(error.findtext("xwhat/leakedblocks", "0"))
                else:
                    kinds.add(kind)
                break
    return kinds, lost


@linux_only
@pytest.mark.proof
@pytest.mark.timeout(300)  # valgrind is slow where the machine has other work
@pytest.mark.parametrize("leak", [False, True], ids=["the flow", "a leak on purpose"])
def test_valgrind_finds_nothing_in_the_flow_and_would_find_a_leak(tmp_path: Path, leak: bool) -> None:
    # What is lost once is a module's: from 3.12 on Python keeps its names for ever.
    program = LEAK if leak else FLOW
    kinds, once = errors_in_harken(program, 2, tmp_path / "few.xml")
    more_kinds, more = errors_in_harken(program, 12, tmp_path / "many.xml")
    assert kinds | more_kinds == set()
    # Not to the last one: some number in memory may look like the address of what is lost.
    assert more - once >= 8 if leak else more - once <= 1, (once, more)
