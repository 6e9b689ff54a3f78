"""Who may have a port beside whom: a second server is refused, with reuse_port too, unless it joins on purpose."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from textwrap import dedent
from typing import Any, NamedTuple

import pytest
from wire import CHILD_ENVIRONMENT, python

import harken
from children import running
from harken import _plan
from machine import linux_only, needs_ipv6

pytestmark = linux_only  # the only system with such groups that these tests run on

SECOND = """
import json, sys
import harken
if {late}:
    from harken import _plan
    _plan.JOINS_LATE = False
for line in sys.stdin:
    bind, options, with_hint = json.loads(line)
    try:
        harken.listen(bind, **options).close()
        print(json.dumps(["opened", ""]), flush=True)
    except harken.AddressInUseError as error:
        print(json.dumps(["refused", error.hint if with_hint else ""]), flush=True)
"""


class Server(NamedTuple):
    family: str
    wildcard: bool
    reuse_port: bool

    def bind(self, port: int) -> str:
        specific, wildcard = {
            "v4": ("127.0.0.1", "0.0.0.0"),
            "v6": ("[::1]", "[::]"),
            "dual": ("[::ffff:127.0.0.1]", "[::]"),
        }[self.family]
        options = [*(["ipv6_only=0"] if self.family == "dual" else []), *(["reuse_port=1"] if self.reuse_port else [])]
        return f"{wildcard if self.wildcard else specific}:{port}{'?' if options else ''}{'&'.join(options)}"

    def addresses(self) -> set[tuple[str, str]]:
        """What it takes connections for; ``*`` is any."""
        if self.family == "dual":
            return {("v4", "*"), ("v6", "*")} if self.wildcard else {("v4", "127.0.0.1")}
        return {(self.family, "*" if self.wildcard else {"v4": "127.0.0.1", "v6": "::1"}[self.family])}

    def overlaps(self, other: Server) -> bool:
        pairs = itertools.product(self.addresses(), other.addresses())
        return any(mine[0] == its[0] and (mine[1] == its[1] or "*" in (mine[1], its[1])) for mine, its in pairs)


SERVERS = [Server(*choice) for choice in itertools.product(["v4", "v6", "dual"], [False, True], [False, True])]


class Child:
    """A second process that tries to listen, as often as it is asked."""

    def __init__(self, late: bool) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SECOND.format(late=late)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=CHILD_ENVIRONMENT,
        )

    def tries(self, bind: str, *, hint: bool = False, **options: Any) -> tuple[str, str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([bind, options, hint]) + "\n")
        self.process.stdin.flush()
        result, told = json.loads(self.process.stdout.readline())
        return result, told


@contextlib.contextmanager
def second_process(late: bool = False) -> Iterator[Child]:
    child = Child(late)
    try:
        yield child
    finally:
        assert child.process.stdin is not None
        assert child.process.stdout is not None
        child.process.stdin.close()
        child.process.stdout.close()
        assert child.process.wait(30) == 0


@needs_ipv6
@pytest.mark.parametrize("how", ["listening", "held", "where sockets join at bind(2)"])
def test_a_second_server_is_refused_where_the_two_overlap(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table: {specific, wildcard} x {IPv4, IPv6, both} x {reuse_port, not}, first and second: 144 pairs."""
    at_bind = how == "where sockets join at bind(2)"
    if at_bind:
        monkeypatch.setattr(_plan, "JOINS_LATE", False)
    call = harken.bind if how == "held" else harken.listen
    wrong: list[str] = []
    with second_process(at_bind) as child:
        for first in SERVERS:
            for _ in range(3):  # a number that is free for the first may be somebody else's in the other family
                found = []
                with call(first.bind(0)) as listeners:
                    for second in SERVERS:
                        result, _ = child.tries(second.bind(listeners.port))
                        expected = "refused" if first.overlaps(second) else "opened"
                        if result != expected:
                            found.append(f"{first} then {second}: {result}, should be {expected}")
                if not found:
                    break
            wrong += found
    assert wrong == []
    assert Counter(one.overlaps(other) for one in SERVERS for other in SERVERS) == {True: 96, False: 48}


def spread(listeners: list[harken.Listener], count: int = 200) -> list[int]:
    """How many of ``count`` connections each is given."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(listeners[0].address[:2], timeout=10))
        found = []
        for listener in listeners:
            listener.setblocking(False)
            taken = []
            while batch := listener.accept_many():
                taken += batch
            found.append(len(taken))
            for connection in taken:
                connection.close()
    return found


@pytest.mark.needs_sock_diag
@pytest.mark.parametrize("at_bind", [False, True])
@pytest.mark.parametrize("call", [harken.listen, harken.bind])
def test_a_second_of_the_same_process_joins(
    call: Callable[..., harken.Listeners], at_bind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if at_bind:
        monkeypatch.setattr(_plan, "JOINS_LATE", False)
    with call("127.0.0.1:0", reuse_port=True) as first, call(first[0].url, reuse_port=True) as second:
        for listeners in (first, second):
            listeners.listen()
        found = spread([first[0], second[0]])
        assert sum(found) == 200
        assert min(found) > 20  # by the hash of the addresses: about half each
        assert [dict(one[0].options) for one in (first, second)] == [{"reuse_port": True}] * 2
        with second_process() as child:
            assert child.tries(first[0].url, reuse_port=True)[0] == "refused"


@pytest.mark.needs_sock_diag
@pytest.mark.parametrize("call", [harken.listen, harken.bind])
def test_a_group_may_be_opened_by_one_call(call: Callable[..., harken.Listeners]) -> None:
    with harken.listen("127.0.0.1:0") as free:
        port = free.port
    with call(*[f"127.0.0.1:{port}"] * 3, reuse_port=True) as listeners:
        listeners.listen()
        found = spread(list(listeners))
        assert sum(found) == 200
        assert min(found) > 10
        with second_process() as child:
            assert child.tries(f"127.0.0.1:{port}", reuse_port=True)[0] == "refused"
            assert child.tries(f"127.0.0.1:{port}")[0] == "refused"


@pytest.mark.needs_sock_diag
@pytest.mark.parametrize("at_bind", [False, True])
def test_a_second_process_joins_on_purpose_only(at_bind: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if at_bind:
        monkeypatch.setattr(_plan, "JOINS_LATE", False)
    with harken.listen("127.0.0.1:0", reuse_port=True) as (listener,), second_process(at_bind) as child:
        result, hint = child.tries(listener.url, hint=True, reuse_port=True)
        assert result == "refused"
        assert hint.startswith("python")
        assert f"(pid {os.getpid()}" in hint
        assert hint.endswith(
            "; to share the port with the group of another process of this user, use reuse_port='join'"
        )
        result, hint = child.tries(listener.url, hint=True)
        assert result == "refused"
        assert "join" not in hint
        assert child.tries(listener.url, reuse_port="join") == ("opened", "")
        assert child.tries(f"{listener.url}?reuse_port=join") == ("opened", "")


def test_nobody_joins_who_did_not_begin_a_group() -> None:
    with second_process() as child:
        for options in ({}, {"reuse_port": False}, {"exclusive": True}):
            with harken.listen("127.0.0.1:0", **options) as (listener,):  # type: ignore[arg-type]
                for asked in (True, "join"):
                    assert child.tries(listener.url, reuse_port=asked)[0] == "refused"
                with pytest.raises(harken.AddressInUseError):
                    harken.listen(listener.url, reuse_port=True)


@pytest.mark.needs_sock_diag
def test_a_group_of_ours_does_not_let_us_into_one_of_others_that_overlaps() -> None:
    program = """
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("0.0.0.0", {port}))
        sock.listen()
        tell()
        wait()
    """
    first = harken.listen("127.0.0.1:0", reuse_port=True)
    with first as (listener,), running(dedent(program).format(port=first.port)):
        with pytest.raises(harken.AddressInUseError):
            harken.listen(f"0.0.0.0:{listener.port}", reuse_port=True)
        harken.listen(listener.url, reuse_port=True).close()


def test_where_it_cannot_be_told_whose_the_group_is_the_port_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module that tells cannot be loaded any more, as for want of descriptors: that is not what the error is about,
    and never an ImportError."""
    with harken.listen("127.0.0.1:0", reuse_port=True) as (listener,):
        monkeypatch.setitem(sys.modules, "harken._diagnosis.holders", None)
        harken.listen(listener.url, reuse_port=True).close()  # whose it is is known without
        url = listener.url
        with listener.to_socket(), pytest.raises(harken.AddressInUseError):
            harken.listen(url, reuse_port=True)


@pytest.mark.parametrize("at_bind", [False, True])
def test_a_range_goes_on_behind_what_another_process_has(at_bind: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if at_bind:
        monkeypatch.setattr(_plan, "JOINS_LATE", False)
    program = """
        import harken
        with harken.listen(":0", reuse_port=True) as listeners:
            tell(port=listeners.port)
            wait()
    """
    with running(dedent(program)) as told:
        first = told["port"]
        with harken.listen(f":{first}-{first + 60}", reuse_port=True) as listeners:
            assert first < listeners.port <= first + 60


@pytest.mark.parametrize("options", [{}, {"reuse_port": True}])
def test_what_another_process_holds_is_refused(options: dict[str, Any]) -> None:
    with harken.bind("127.0.0.1:0", **options) as listeners, second_process() as child:
        assert child.tries(listeners[0].url, reuse_port=True)[0] == "refused"
        assert child.tries(listeners[0].url)[0] == "refused"
        listeners.listen()
        assert child.tries(listeners[0].url, reuse_port=True)[0] == "refused"


def test_joining_a_group_of_which_nobody_is_there_begins_one() -> None:
    with harken.listen("127.0.0.1:0", reuse_port="join") as (listener,), second_process() as child:
        assert listener.options == {"reuse_port": "join"}
        assert child.tries(listener.url, reuse_port="join") == ("opened", "")
        assert child.tries(listener.url, reuse_port=True)[0] == "refused"


@pytest.mark.needs_sock_diag
def test_a_forked_child_is_of_the_group() -> None:
    program = """
import os, harken
with harken.listen("127.0.0.1:0", reuse_port=True) as (listener,):
    child = os.fork()
    if child == 0:
        harken.listen(listener.url, reuse_port=True).close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    harken.listen(listener.url, reuse_port=True).close()
"""
    python(program)


def test_time_wait_of_the_server_before_is_not_in_the_way() -> None:
    port = 0
    for options in ({"reuse_port": True}, {}, {"reuse_port": True}, {"reuse_port": True}):
        for call in (harken.listen, harken.bind):
            with call(f"127.0.0.1:{port}", **options) as listeners:
                listeners.listen()
                port = listeners.port
                with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                    listeners[0].accept()[0].close()  # it closes first, and has the TIME_WAIT
                    assert client.recv(1) == b""


RACE = """
import os, socket, sys
from collections import Counter
import harken
PROCESSES, ROUNDS, call, options = 6, int(sys.argv[3]), getattr(harken, sys.argv[1]), eval(sys.argv[2])
with harken.bind("127.0.0.1:0") as free:
    port = free.port
results_in, results_out = os.pipe()
starts = []
for _ in range(PROCESSES):
    wait, go = os.pipe()
    if os.fork() == 0:
        os.close(go)
        for one in starts:
            os.close(one)
        while os.read(wait, 1):
            try:
                mine = call(f"127.0.0.1:{port}", **options)
            except harken.AddressInUseError:
                mine = None
            os.write(results_out, b"1" if mine else b"0")
            os.read(wait, 1)
            if mine:
                mine.close()
            os.write(results_out, b".")
        os._exit(0)
    os.close(wait)
    starts.append(go)

def all_of_them():
    for go in starts:
        os.write(go, b"x")
    data = b""
    while len(data) < PROCESSES:
        data += os.read(results_in, PROCESSES - len(data))
    return data

winners = Counter()
for _ in range(ROUNDS):
    winners[all_of_them().count(b"1")] += 1
    all_of_them()
for go in starts:
    os.close(go)
assert all(os.wait()[1] == 0 for _ in range(PROCESSES))
assert winners == {1: ROUNDS}, winners
"""


@pytest.mark.parametrize("rounds", [8, pytest.param(50, marks=pytest.mark.proof)])
@pytest.mark.parametrize("options", [{}, {"reuse_port": True}])
@pytest.mark.parametrize("call", ["listen", "bind"])
def test_of_several_that_start_at_the_same_moment_one_has_the_port(
    call: str, options: dict[str, Any], rounds: int
) -> None:
    python(RACE, call, options, rounds)
