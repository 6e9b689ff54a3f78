"""Which engine is taken, what it costs, and what only one of them can do."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from wire import clients, close_all, python

import harken
from children import FORK, SECCOMP, needs_strace, traced
from engines import NAMES, forbidden, one_listener, taken_in_time
from harken._acceptor import engines
from machine import EMULATOR, LINUX, WINDOWS, windows_only

EACH_THREAD = {"listeners": one_listener}  # see conftest.py


# ---------------------------------------------------------------------- what it costs


@needs_strace
@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        # Once a batch the queue's length and the mode of the listener; then the turn goes to others.
        ("accept4", {"accept4": 10, "getsockopt": 3, "fcntl": 3, "epoll_ctl": 2}),
        ("io_uring", {"io_uring_enter": 3, "epoll_ctl": 2}),  # a call a batch
    ],
)
def test_how_many_system_calls_a_batch_costs(tmp_path: Path, engine: str, expected: dict[str, int]) -> None:
    assert system_calls(tmp_path, engine, 4, "127.0.0.1:0", 11, ["accept_many(1)"], ["accept_many()"] * 3) == expected


@needs_strace
@pytest.mark.parametrize("engine", ["accept4", "io_uring", "accept"])
@pytest.mark.parametrize(
    ("family", "look"),
    [("tcp", {"getsockopt": 1}), ("unix", {"getsockopt": 1, "poll": 2})],  # unix sockets do not tell how many wait
)
def test_one_that_waits_is_taken_without_an_attempt_in_vain(
    tmp_path: Path, engine: str, family: str, look: dict[str, int]
) -> None:
    bind = "127.0.0.1:0" if family == "tcp" else f"unix:{tmp_path}/socket"
    calls = system_calls(tmp_path, engine, 64, bind, 1, [], ["accept_many()"])
    if engine == "io_uring" and family == "tcp":
        assert calls == {"io_uring_enter": 1}  # the kernel sees the end
    else:
        assert calls == {"accept4": 1, "fcntl": 1} | look


@needs_strace
def test_a_full_batch_lets_other_processes_in_between(tmp_path: Path) -> None:
    adopted = "harken.adopt(os.dup(listeners[0].fileno()))"
    for of, forks, yields in (("listeners", False, 0), (adopted, False, 3), ("listeners", True, 3)):
        before, counted = ["accept_many(3)"], ["accept_many()"] * 3  # each of the three comes after a full one
        calls = system_calls(tmp_path, "accept4", 4, "127.0.0.1:0", 11, before, counted, of, forks)
        assert calls["sched_yield"] == yields, (of, forks)


def system_calls(
    tmp_path: Path,
    engine: str,
    batch: int,
    bind: str,
    clients: int,
    before: list[str],
    counted: list[str],
    of: str = "listeners",
    forks: bool = False,
) -> Counter[str]:
    """How often what is called by so many calls of an acceptor, which take all but those taken before. ``forks``: by a
    child of the process that has made the acceptor, which takes the first ones, too."""
    if engine not in NAMES or forbidden(engine):
        pytest.skip(f"no {engine} here")
    code = f"""
import os, socket, harken
listeners = harken.listen({bind!r})
acceptor = harken.Acceptor({of}, batch={batch}, engine={engine!r})
address = listeners[0].address
kept = []
for _ in range({clients}):
    kept.append(socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET))
    kept[-1].connect(address)
if {forks} and os.fork():
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
for call in {before}:
    eval("kept.extend(acceptor." + call + ")")
os.write(2, b"begin")
taken = [{", ".join("*acceptor." + call for call in counted)}]
os.write(2, b"end")
assert len(kept + taken) == 2 * {clients}, (kept, taken)
os._exit(0)
"""
    return Counter(line.partition("(")[0] for line in traced(code, tmp_path / "calls"))


# ---------------------------------------------------------------------- which one is taken


def test_the_best_engine_is_chosen(listeners: harken.Listeners) -> None:
    with listeners.acceptor() as acceptor:
        best = acceptor.stats().engine
        assert best in engines()
    assert acceptor.stats().engine == best


def test_other_systems_have_kqueue(listeners: harken.Listeners) -> None:
    if (LINUX or WINDOWS) and "kqueue" not in engines():
        pytest.skip("macOS and the BSDs only")
    assert engines() == ("kqueue", "accept")
    with listeners.acceptor() as acceptor:
        assert repr(acceptor) == "<harken.Acceptor kqueue, 1 listener, 0 open>"
        assert acceptor.stats().engine == "kqueue"


FORBID = f"""{SECCOMP}
import errno
def forbid(number, error):
    seccomp((0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | error), (0x06, 0, 0, 0x7FFF0000))
SETUP, ENTER = 425, 426  # io_uring_setup(2), io_uring_enter(2), on nearly all processors
"""


@pytest.fixture
def io_uring() -> None:
    if "io_uring" not in NAMES or forbidden("io_uring"):
        pytest.skip("there is no io_uring that could be forbidden")
    if EMULATOR:
        pytest.skip(f"{EMULATOR} has no seccomp")


@pytest.mark.usefixtures("io_uring")
@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
def test_the_next_engine_is_taken_where_io_uring_is_forbidden(error: str) -> None:
    code = f"""{FORBID}
import socket, harken
forbid(SETUP, errno.{error})
with harken.listen("127.0.0.1:0") as listeners, listeners.acceptor() as acceptor:
    print(acceptor, acceptor.stats().engine)
    with socket.create_connection(listeners[0].address), next(acceptor):
        print(acceptor)
    acceptor.close()
    print(acceptor.stats().engine)
    try:
        listeners.acceptor(engine="io_uring")
    except OSError as error:
        print(errno.errorcode[error.errno], *error.__notes__)
"""
    assert python(code).stdout.splitlines() == [
        "<harken.Acceptor accept4, 1 listener, 0 open> accept4",
        "<harken.Acceptor accept4, 1 listener, 1 open>",
        "accept4",
        f"{error} the engine 'io_uring' is not available here",
    ]


@pytest.mark.usefixtures("io_uring")
def test_a_fork_tells_the_engine_that_it_has() -> None:
    code = f"""{FORK}{FORBID}
listeners = harken.listen("127.0.0.1:0")
any_engine, io_uring = listeners.acceptor(), listeners.acceptor(engine="io_uring")
def child():
    forbid(SETUP, errno.EPERM)
    print(any_engine)
    print(any_engine.stats().engine)
    print(any_engine)
    for use in (io_uring.stats, io_uring.accept_many, io_uring.fileno):
        try:
            print(use())
        except PermissionError as error:
            print(error.strerror)
    print(io_uring, flush=True)
in_a_child(child)
print(any_engine, any_engine.stats().engine)
"""
    assert python(code).stdout.splitlines() == [
        "<harken.Acceptor forked, 1 listener, 0 open>",
        "accept4",
        "<harken.Acceptor accept4, 1 listener, 0 open>",
        *["Operation not permitted"] * 3,
        "<harken.Acceptor forked, 1 listener, 0 open>",
        "<harken.Acceptor io_uring, 1 listener, 0 open> io_uring",
    ]


@pytest.mark.usefixtures("io_uring")
def test_io_uring_may_be_forbidden_at_any_time() -> None:
    code = f"""{FORBID}
import socket, harken
with harken.listen("127.0.0.1:0") as listeners, listeners.acceptor() as acceptor:
    print(acceptor.stats().engine)
    forbid(ENTER, errno.EPERM)
    with socket.create_connection(listeners[0].address), next(acceptor):
        print(acceptor, acceptor.stats().engine, acceptor.stats().failed)
"""
    assert python(code).stdout.splitlines() == [
        "io_uring",
        "<harken.Acceptor accept4, 1 listener, 1 open> accept4 {}",
    ]


@windows_only
def test_windows_has_acceptex(listeners: harken.Listeners) -> None:
    with listeners.acceptor() as acceptor:
        assert repr(acceptor) == "<harken.Acceptor acceptex, 1 listener, 0 open>"


@windows_only
def test_a_listener_serves_a_proactor_loop_before_and_after(engine: str) -> None:
    """A completion port has a listener for life; this engine must neither need one nor leave one behind."""
    asyncio = pytest.importorskip("asyncio")

    async def serve_one() -> None:
        with listeners[0].dup().to_socket() as theirs:
            theirs.setblocking(False)
            with clients(listeners[0].address, 1) as (client,):
                conn, name = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(theirs), 10)
                conn.close()
                assert name == client.getsockname()

    for order in ("after", "before"):
        with harken.listen("127.0.0.1:0") as listeners:
            if order == "before":
                asyncio.run(serve_one())
            with listeners.acceptor(engine=engine) as acceptor, clients(listeners[0].address, 1):
                close_all(taken_in_time(acceptor, 1))
            if order == "after":
                asyncio.run(serve_one())


@windows_only
def test_a_selector_loop_serves_by_acceptex(listeners: harken.Listeners) -> None:
    asyncio = pytest.importorskip("asyncio")
    served: list[Any] = []

    async def serve() -> None:
        def take() -> None:
            for conn in acceptor.accept_many():
                served.append(conn.getpeername())
                conn.close()
            if len(served) == 50:
                done.set_result(None)

        loop = asyncio.get_running_loop()
        done = loop.create_future()
        with listeners.acceptor(engine="acceptex") as acceptor:
            loop.add_reader(acceptor.fileno(), take)
            connecting = asyncio.to_thread(lambda: stack.enter_context(clients(listeners[0].address, 50)))
            await asyncio.wait_for(asyncio.gather(connecting, done), 20)
            loop.remove_reader(acceptor.fileno())

    with contextlib.ExitStack() as stack:
        loop = asyncio.SelectorEventLoop()
        loop.run_until_complete(serve())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    assert len(set(served)) == 50
