"""``python -m harken check``: what it foretells, and then what ``harken.listen`` does in the same circumstances."""

from __future__ import annotations

import contextlib
import errno
import inspect
import io
import itertools
import json
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import children
import harken
from children import (
    NOBODY,
    needs_root,
    needs_seccomp,
    needs_table,
    on_terminal,
    run,
    running,
)
from harken import _system
from harken.__main__ import main
from harken._diagnosis import foresee as _foresee
from harken._diagnosis import holders as _holders
from machine import HAS_IPV6, LINUX, WINDOWS, linux_only, needs_ipv6, posix_only

if TYPE_CHECKING:
    from poison import Poison

pytest_plugins = ["poison"]

TELLS_BOUND = not LINUX or tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (6, 8)  # type: ignore[attr-defined,unused-ignore]
"""Linux tells of sockets that are bound and no more from 6.8 on."""
HAS_UNIX = hasattr(socket, "AF_UNIX")
HAS_VSOCK = True
try:
    socket.socket(getattr(socket, "AF_VSOCK", -1), socket.SOCK_STREAM).close()
except OSError:
    HAS_VSOCK = False
needs_unix = pytest.mark.skipif(not HAS_UNIX, reason="Python has no AF_UNIX here")


def compare(*binds: str) -> dict[str, Any]:
    """What is foretold of these binds, and then what happens."""
    import contextlib
    import io
    import json

    import harken
    from harken.__main__ import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(["check", "--json", *binds])
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    told: dict[str, Any] = {"code": code, "rows": rows, "error": None}
    try:
        with harken.listen(*binds) as listeners:
            addresses = [listener.address for listener in listeners]
            told["opened"] = [one if isinstance(one, str) else list(one) for one in addresses]
            told["backlogs"] = [listener.backlog for listener in listeners]
            told["left_out"] = [address[0] for address, _ in listeners.left_out]
    except harken.ListenError as error:
        cause = getattr(error, "cause", None)
        address = list(error.address) if isinstance(error.address, tuple) else error.address or binds[-1]
        told["error"] = {"step": error.step, "address": address, "cause": cause, "hint": error.hint}
    return told


IN_A_CHILD = f"""
    import textwrap, typing
    from typing import Any
    import argparse, ctypes, fcntl, harken.__main__, harken._cli.check, harken._cli.serve
    exec(textwrap.dedent({inspect.getsource(compare)!r}))
"""

GOOD = ["free", "left out", "passed on", "left behind"]


def agrees(told: dict[str, Any]) -> list[str]:
    """Did happen what was foretold? Gives the verdicts."""
    rows = told["rows"]
    verdicts = [row["verdict"] for row in rows]
    if told["error"] is None:
        assert told["code"] == 0, rows
        assert set(verdicts) <= set(GOOD)
        assert [row["address"][0] for row in rows if row["verdict"] == "left out"] == told["left_out"]
        free = [row for row in rows if row["verdict"] != "left out"]
        assert len(free) == len(told["opened"])
        for row, address, backlog in zip(free, told["opened"], told["backlogs"], strict=True):
            if row["address"][1]:
                assert row["address"] == address
            assert row["backlog"] == backlog
    else:
        assert told["code"] == 1, rows
        first = next(row for row in rows if row["verdict"] not in GOOD)
        assert {name: first[name] for name in ("step", "address", "cause", "hint")} == told["error"]
    return verdicts


_drawn = itertools.count()


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody has, another one each time, and that the system gives to none of the tests beside this one."""
    first = 10000 + (os.getpid() * 1009 + next(_drawn) * 61) % 20000
    with harken.listen(f"[{host}]:{first}-{first + 60}" if ":" in host else f"{host}:{first}-{first + 60}") as found:
        return found.port


def server(host: str = "127.0.0.1", **facts: Any) -> str:
    """`children.server`, at a port from which no connection of the other tests goes out."""
    return children.server(host, **({"port": free_port()} | facts))


# ---------------------------------------------------------------------------- who has it


@pytest.mark.needs_tcp_info
@needs_table
@pytest.mark.parametrize("bind", ["127.0.0.1:{}", "tcp4://:{}", "127.0.0.1:0"])
def test_a_free_port_is_free(bind: str) -> None:
    assert agrees(compare(bind.format(free_port()))) == ["free"]


@pytest.mark.needs_tcp_info
@needs_table
@needs_ipv6
@pytest.mark.parametrize("bind", [":{}", "*:0", "localhost:{}"])
def test_a_wildcard_and_a_name_are_told_address_by_address(bind: str) -> None:
    told = compare(bind.format(free_port()))
    assert set(agrees(told)) == {"free"}
    assert len(told["rows"]) >= (1 if "local" in bind else 2)


CLASHES = [
    ("127.0.0.1", None, "127.0.0.1:{}", "listener"),
    ("0.0.0.0", None, "127.0.0.1:{}", "wildcard"),
    ("127.0.0.1", None, "tcp4://:{}", "wildcard"),
    ("127.0.0.1", None, ":{}", "wildcard"),
    ("::1", None, ":{}", "wildcard"),
    ("::1", None, "[::1]:{}", "listener"),
    ("::", 0, "127.0.0.1:{}", "v6only"),
    ("::", 0, "tcp4://:{}", "v6only"),
    ("::", 0, "[::1]:{}", "wildcard"),
    ("::", 0, ":{}", "v6only"),
    ("::", 1, "127.0.0.1:{}", None),
    ("::", 1, "tcp4://:{}", None),
    ("::", 1, "tcp6://:{}", "listener"),
    ("0.0.0.0", None, "tcp6://:{}", None),
    ("0.0.0.0", None, "[::1]:{}", None),
    ("127.0.0.1", None, "tcp4://127.0.0.2:{}", None),
]


@pytest.mark.needs_sock_diag
@linux_only
@pytest.mark.parametrize(("theirs", "v6only", "ours", "cause"), CLASHES)
def test_who_listens_is_in_the_way_or_not(theirs: str, v6only: int | None, ours: str, cause: str | None) -> None:
    if not HAS_IPV6 and ":" in theirs + ours.replace(":{}", ""):
        pytest.skip("this machine has no ::1")
    with running(server(theirs, v6only=v6only)) as child:
        told = compare(ours.format(child["port"]))
    verdicts = agrees(told)
    assert ("taken" in verdicts) == (cause is not None)
    if cause:
        row = next(row for row in told["rows"] if row["verdict"] == "taken")
        assert row["cause"] == cause
        assert [holder["pid"] for holder in row["holders"]] == [child["pid"]]
        assert f"pid {child['pid']}" in row["hint"]
        assert row["backlog"] is None


@pytest.mark.needs_sock_diag
@needs_table
def test_a_live_server_is_in_the_way_on_every_system() -> None:
    with running(server()) as child:
        assert agrees(compare(f"127.0.0.1:{child['port']}")) == ["taken"]


@pytest.mark.needs_sock_diag
@linux_only
@needs_ipv6
def test_only_one_of_two_families_is_taken() -> None:
    with running(server("::", v6only=1)) as child:
        told = compare(f":{child['port']}")
    assert agrees(told) == ["free", "taken"]
    assert [row["address"][0] for row in told["rows"]] == ["0.0.0.0", "::"]


BOUND = """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, {reuse})
    sock.bind(("127.0.0.1", 0))
    tell(port=sock.getsockname()[1])
    wait()
"""
HELD = """
    import harken
    held = harken.bind("127.0.0.1:0")
    tell(port=held.port)
    wait()
"""


@pytest.mark.needs_sock_diag
@linux_only
@pytest.mark.parametrize(
    ("program", "cause"), [(HELD, "bound"), (BOUND.format(reuse=0), "bound"), (BOUND.format(reuse=1), None)]
)
@pytest.mark.parametrize("ours", ["127.0.0.1:{}", ":{}"])
def test_a_socket_that_does_not_listen_is_in_the_way_by_its_option(program: str, cause: str | None, ours: str) -> None:
    with running(program) as child:
        told = compare(ours.format(child["port"]))
    assert ("taken" in agrees(told)) == bool(cause)
    row = told["rows"][0]
    if cause and TELLS_BOUND:
        assert row["cause"] == (cause if "127" in ours else "wildcard")
        assert [holder["pid"] for holder in row["holders"]] == [child["pid"]]


@pytest.mark.needs_sock_diag
@linux_only
def test_nothing_changes_for_who_is_asked() -> None:
    """What is bound is closed again, and the socket in the way is as it was."""
    with harken.bind(f"127.0.0.1:{free_port()}") as held, harken.listen("127.0.0.1:0") as far:
        before = set(os.listdir("/proc/self/fd"))
        assert foretold(f"127.0.0.1:{held.port}")[1][0]["verdict"] == "taken"
        assert set(os.listdir("/proc/self/fd")) == before
        held.listen()
        with socket.create_connection(("127.0.0.1", held.port), timeout=10):
            held[0].accept()[0].close()
        assert far[0].stats().queued == 0


def foretold(*binds: str) -> tuple[int, list[dict[str, Any]]]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(["check", "--json", *binds])
    return code, [json.loads(line) for line in out.getvalue().splitlines()]


@pytest.mark.needs_sock_diag
@linux_only
def test_a_connection_that_goes_out_from_the_port_is_in_the_way() -> None:
    with harken.listen("127.0.0.1:0") as far, socket.create_connection(("127.0.0.1", far.port), timeout=10) as client:
        told = compare(f"127.0.0.1:{client.getsockname()[1]}")
        assert agrees(told) == ["taken"]
        assert (told["rows"][0]["cause"], told["rows"][0]["holders"][0]["state"]) == ("bound", "established")


@pytest.mark.needs_tcp_info
@linux_only
def test_connections_of_a_server_that_has_stopped_are_not_in_the_way() -> None:
    with harken.listen("127.0.0.1:0") as listeners:
        client = socket.create_connection(("127.0.0.1", listeners.port), timeout=10)
        connection, _ = listeners[0].accept()
    with client, connection:
        told = compare(f"127.0.0.1:{connection.getsockname()[1]}")
        assert agrees(told) == ["free"]


@pytest.mark.needs_sock_diag
@linux_only
@pytest.mark.parametrize("reuse", [True, False])
def test_connections_that_have_ended_are_in_the_way_by_their_option(reuse: bool) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
    port = server.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        connection, _ = server.accept()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        server.close()
        connection.close()  # first, so that this side waits
        assert client.recv(1) == b""
    told = compare(f"127.0.0.1:{port}")
    assert agrees(told) == (["free"] if reuse else ["taken"])
    assert told["rows"][0]["cause"] == (None if reuse else "time-wait")


@pytest.mark.needs_sock_diag
@linux_only
@needs_root
def test_what_may_not_be_looked_into_is_taken_all_the_same() -> None:
    with running(server(first=f"become({NOBODY})")) as child:
        told = run(IN_A_CHILD + f"    become({NOBODY - 1}); tell(**compare('127.0.0.1:{child['port']}'))\n")
    assert agrees(told) == ["taken"]
    assert told["rows"][0]["cause"] == "hidden"


@pytest.mark.needs_sock_diag
@linux_only
@needs_root
def test_a_held_bind_of_another_user_is_in_the_way() -> None:
    with running(server(first=f"become({NOBODY})", listens=False)) as child:
        told = run(IN_A_CHILD + f"    become({NOBODY - 1}); tell(**compare('127.0.0.1:{child['port']}'))\n")
    assert agrees(told) == ["taken"]
    assert told["rows"][0]["cause"] == ("hidden" if TELLS_BOUND else "unknown")


@linux_only
@needs_ipv6
@pytest.mark.parametrize(("host", "v6only", "verdict"), [("0.0.0.0", None, "taken"), ("::", 1, "free")])
def test_no_table_decides(monkeypatch: pytest.MonkeyPatch, host: str, v6only: int | None, verdict: str) -> None:
    """/proc/net does not tell which IPv6 sockets take IPv4, nor which sockets are bound and do not listen."""
    monkeypatch.setattr(_holders, "by_sock_diag", unavailable)
    with running(server(host, v6only=v6only)) as child:
        assert agrees(compare(f"127.0.0.1:{child['port']}")) == [verdict]
    with running(HELD) as child:
        assert agrees(compare(f"127.0.0.1:{child['port']}")) == ["taken"]


@pytest.mark.needs_sock_diag
@linux_only
@pytest.mark.parametrize("shared", [True, False])
def test_a_group_may_be_joined(shared: bool) -> None:
    """With reuse_port, by what the one that listens there has; the system lets only its own user join."""
    program = f"""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, {int(shared)})
    sock.bind(("127.0.0.1", {free_port()}))
    sock.listen()
    tell(port=sock.getsockname()[1])
    wait()
"""
    with running(program) as child:
        bind = f"127.0.0.1:{child['port']}"
        assert agrees(compare(bind)) == ["taken"]
        assert agrees(compare(f"{bind}?reuse_port=1")) == ["taken"]  # another process's group
        assert agrees(compare(f"{bind}?reuse_port=join")) == (["free"] if shared else ["taken"])


@linux_only
@pytest.mark.parametrize(
    ("option", "verdict"),
    [("congestion=nosuch", "impossible"), ("interface=nosuch0", "impossible"), ("ttl=5", "free")],
)
def test_an_option_that_would_fail_is_told(option: str, verdict: str) -> None:
    bind = f"127.0.0.1:0?{option}"
    code, (row,) = foretold(bind)
    assert (code, row["verdict"]) == (int(verdict != "free"), verdict)
    if code:
        with pytest.raises(harken.ListenError) as caught:
            harken.listen(bind)
        assert (row["step"], row["hint"]) == (caught.value.step, caught.value.hint)


def test_an_owner_that_nobody_is_is_told() -> None:
    if not hasattr(os, "chown"):
        pytest.skip("paths have owners on POSIX only")
    with pytest.raises(ValueError, match="no user is called 'nosuchuser'"):
        _foresee.foresee(["unix:/tmp/x.sock?owner=nosuchuser"])


def test_an_option_that_this_system_lacks_is_told_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(_system.OPTIONS, "ttl")
    lacking, fine = _foresee.foresee(["127.0.0.1:0?ttl=3", "127.0.0.1:0"])
    assert (lacking.verdict, fine.verdict) == ("not supported", "free")
    with pytest.raises(harken.ListenError) as caught:
        harken.listen("127.0.0.1:0?ttl=3")
    assert str(lacking.error) == str(caught.value)


# ---------------------------------------------------------------------------- ranges


@contextlib.contextmanager
def listening_in_a_row(count: int) -> Iterator[int]:
    for _ in range(50):
        with contextlib.ExitStack() as stack:
            first = free_port()
            try:
                for port in range(first, first + count):
                    stack.enter_context(harken.listen(f"127.0.0.1:{port}"))
            except OSError:
                continue
            yield first
            return
    pytest.skip("no ports in a row are free")


@pytest.mark.needs_sock_diag
@needs_table
@pytest.mark.parametrize("host", ["127.0.0.1", "", "localhost"])
def test_the_free_port_of_a_range_is_told(host: str) -> None:
    if WINDOWS and host != "127.0.0.1":
        pytest.skip("on Windows a wildcard and an address may stand side by side")
    with listening_in_a_row(2) as first:
        told = compare(f"{host}:{first}-{first + 60}")
    assert set(agrees(told)) == {"free"}
    assert first + 2 <= told["rows"][0]["address"][1] <= first + 60


@pytest.mark.needs_sock_diag
@needs_table
def test_a_range_in_use_is_told() -> None:
    with listening_in_a_row(2) as first:
        told = compare(f"127.0.0.1:{first}-{first + 1}")
    assert agrees(told) == ["taken"]
    assert told["rows"][0]["hint"].startswith(f"no port of 127.0.0.1:{first}-{first + 1} is free")


@pytest.mark.needs_sock_diag
@linux_only
def test_a_range_goes_on_behind_what_is_held() -> None:
    with harken.bind(f"127.0.0.1:{free_port()}") as held:
        told = compare(f"127.0.0.1:{held.port}-{held.port + 60}")
        assert agrees(told) == ["free"]
        assert told["rows"][0]["address"][1] > held.port


# ---------------------------------------------------------------------------- several binds


@pytest.mark.needs_tcp_info
@linux_only
@needs_ipv6
@pytest.mark.parametrize(
    ("binds", "verdicts"),
    [
        (["127.0.0.1:{0}", "127.0.0.1:{0}"], ["free", "given twice"]),
        (["tcp4://:{0}", "127.0.0.1:{0}"], ["free", "given twice"]),
        (["127.0.0.1:{0}", "tcp4://:{0}"], ["free", "given twice"]),
        (["127.0.0.1:{0}", ":{0}"], ["free", "given twice", "free"]),
        (["tcp4://:{0}", "tcp6://:{0}"], ["free", "free"]),
        (["127.0.0.1:{0}", "[::1]:{0}"], ["free", "free"]),
        (["127.0.0.1:{0}", "127.0.0.2:{0}"], ["free", "free"]),
        (["127.0.0.1:0", "127.0.0.1:0"], ["free", "free"]),
        (["127.0.0.1:{0}-{1}", "127.0.0.1:{0}-{1}"], ["free", "free"]),
        (["127.0.0.1:{0}", "127.0.0.1:{0}-{1}"], ["free", "free"]),
        (["127.0.0.1:{0}-{1}", "127.0.0.1:{0}"], ["free", "given twice"]),
    ],
)
def test_binds_that_want_the_same_are_told(binds: list[str], verdicts: list[str]) -> None:
    port = free_port()
    told = compare(*(bind.format(port, port + 60) for bind in binds))
    assert agrees(told) == verdicts
    for row in told["rows"]:
        if row["verdict"] == "given twice":
            assert (row["step"], row["cause"], row["holders"]) == (told["error"]["step"], "twice", [])
            assert repr(binds[0].format(port, port + 60)) in row["hint"]


@linux_only
@pytest.mark.parametrize("first", ["0", "1", "join"])
@pytest.mark.parametrize("second", ["0", "1", "join"])
@pytest.mark.parametrize("same", [True, False])
def test_binds_that_share_a_port_are_told(first: str, second: str, same: bool) -> None:
    """Two that overlap are let in by the kernel when both have SO_REUSEPORT by the time that the second one listens."""
    for hosts in (("127.0.0.1", "127.0.0.1" if same else "0.0.0.0"), ("127.0.0.1" if same else "0.0.0.0", "127.0.0.1")):
        port = free_port()
        binds = [f"{host}:{port}?reuse_port={wish}" for host, wish in zip(hosts, (first, second), strict=True)]
        agrees(compare(*binds))
        agrees(compare(*binds, f"127.0.0.1:{port}?reuse_port=1"))


@linux_only
@pytest.mark.parametrize("many", [2, 3])
def test_a_shared_port_is_had_by_several_and_not_by_one_that_does_not_share(many: int) -> None:
    bind = f"127.0.0.1:{free_port()}"
    assert agrees(compare(*[f"{bind}?reuse_port=1"] * many)) == ["free"] * many
    assert agrees(compare(*[f"{bind}?reuse_port=1"] * many, bind)) == ["free"] * many + ["given twice"]


TWO_INTERFACES = """
    ip link add va type veth peer name vb; ip link set va up; ip link set vb up
    ip address add 198.51.100.1/24 dev va
    echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
"""


@pytest.mark.needs_socket_options
@linux_only
@needs_root
@needs_ipv6
@pytest.mark.parametrize(
    ("binds", "verdicts"),
    [
        ([":8080?interface=va", ":8080?interface=lo"], ["free"] * 4),
        (["127.0.0.1:8080?interface=va", "127.0.0.1:8080?interface=vb"], ["free"] * 2),
        (["tcp6://:8080?interface=va&ipv6_only=0", "127.0.0.1:8080?interface=lo"], ["free"] * 2),
        (["tcp4://:8080?interface=va", "tcp4://:8080"], ["free", "given twice"]),
        (["tcp4://:8080", "127.0.0.1:8080?interface=lo"], ["free", "given twice"]),
        (["tcp4://:8080?interface=va", "198.51.100.1:8080?interface=va"], ["free", "given twice"]),
        (["tcp4://:8080-8081?interface=va", "tcp4://:8080?interface=va"], ["free", "given twice"]),
        (["tcp4://:8080?interface=va&reuse_port=1", "tcp4://:8080?interface=va&reuse_port=1"], ["free", "free"]),
    ],
)
def test_two_interfaces_never_meet(binds: list[str], verdicts: list[str]) -> None:
    told = run(IN_A_CHILD + f"    tell(**compare(*{binds!r}))\n", setup=TWO_INTERFACES)
    assert agrees(told) == verdicts


@pytest.mark.needs_socket_options
@linux_only
@needs_root
@needs_ipv6
@pytest.mark.parametrize(
    ("theirs", "ours", "taken"),
    [
        ("va", ":8080?interface=lo", False),
        ("va", ":8080?interface=va", True),
        ("va", ":8080", True),
        ("", ":8080?interface=va", True),
        ("va", "127.0.0.1:8080", True),
    ],
)
def test_who_is_on_another_interface_is_in_nobodys_way(theirs: str, ours: str, taken: bool) -> None:
    program = f"""
    import harken
    with harken.listen({("tcp4://:8080?interface=" + theirs) if theirs else "tcp4://:8080"!r}):
        tell(pid=os.getpid())
        wait()
"""
    program = (
        IN_A_CHILD
        + f"""
    bystander = harken.listen("tcp4://:8080?interface=vb") if {bool(theirs and "?" in ours)} else None
    child = subprocess.Popen({children.interpreter(program)!r}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    tell(**compare({ours!r}), pid=child.pid)
    child.communicate()
"""
    )
    told = run(program, setup=TWO_INTERFACES)
    assert ("taken" in agrees(told)) == taken
    if taken:
        row = next(row for row in told["rows"] if row["verdict"] == "taken")
        assert {holder["pid"] for holder in row["holders"]} == {told["pid"]}
        assert {holder["interface"] for holder in row["holders"]} == {theirs or None}


@linux_only
@needs_ipv6
def test_a_socket_for_both_families_clashes_with_either() -> None:
    port = free_port()
    assert [row["verdict"] for row in foretold(f"tcp6://:{port}?ipv6_only=0", f"tcp4://:{port}")[1]] == [
        "free",
        "given twice",
    ]
    assert [(row["address"], row["verdict"]) for row in foretold(f":{port}?ipv6_only=0")[1]] == [
        (["::", port, 0, 0], "free")
    ]
    with running(server("127.0.0.1")) as child:
        _, rows = foretold(f"tcp6://:{child['port']}?ipv6_only=0", f"tcp6://:{child['port']}")
    assert [(row["verdict"], row["cause"]) for row in rows] == [("taken", "v6only"), ("free", None)]


# ---------------------------------------------------------------------------- what this machine has and allows


@pytest.mark.parametrize(
    ("bind", "verdict"),
    [
        ("no-such-name.invalid:80", "unknown name"),
        ("127.0.0.1:no-such-service", "unknown name"),
        ("tcp4://[::1]:0", "unknown name"),
        ("[fe80::1%no-such-interface]:0", "unknown name"),
        ("fd://1000000", "impossible"),
        ("systemd:web", "impossible"),
    ],
)
def test_what_is_not_there_is_told_everywhere(bind: str, verdict: str) -> None:
    told = compare(bind)
    assert agrees(told) == [verdict]
    assert told["rows"][0]["error"]


@pytest.mark.needs_tcp_info
@linux_only
@needs_ipv6
@pytest.mark.parametrize(
    ("bind", "verdict"),
    [
        ("192.0.2.77:0", "not here"),
        ("240.0.0.1:0", "not here"),
        ("0.1.2.3:0", "not here"),
        ("[2001:db8::77]:0", "not here"),
        ("[fe80::77]:0", "impossible"),
        ("[fe80::77%lo]:0", "not here"),
        ("[fe80::77%9999]:0", "impossible"),
        ("[::ffff:127.0.0.1]:0", "impossible"),
        ("127.3.4.5:0", "free"),
        ("[::127.0.0.1]:0", "not here"),
    ],
)
def test_which_addresses_are_this_machines(bind: str, verdict: str) -> None:
    assert agrees(compare(bind)) == [verdict]


VETH = "ip link add name va type veth peer name vb; ip link set va up; ip link set vb up"


@pytest.mark.needs_sock_diag
@linux_only
@needs_seccomp
@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EPERM, errno.EACCES])
def test_netlink_need_not_be_there(number: int) -> None:
    """As in a systemd unit with RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX."""
    program = (
        IN_A_CHILD
        + textwrap.indent(children.REFUSE_FAMILY, "    ")
        + f"""
    refuse_family(socket.AF_NETLINK, {number})
"""
        + """
    tell(here=compare("127.0.0.1:0"), elsewhere=compare("192.0.2.77:0"))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        tell(taken=compare("127.0.0.1:%s" % sock.getsockname()[1]), pid=os.getpid())
"""
    )
    told = run(program)
    assert agrees(told["here"]) == ["free"]
    assert agrees(told["elsewhere"]) == ["not here"]
    assert agrees(told["taken"]) == ["taken"]
    assert [holder["pid"] for holder in told["taken"]["rows"][0]["holders"]] == [told["pid"]]


NETWORKS = [
    ("", "198.51.100.7:0", ["not here"]),
    ("ip address add 198.51.100.7/32 dev lo", "198.51.100.7:0", ["free"]),
    ("ip route add local 198.51.100.0/24 dev lo", "198.51.100.7:80", ["free"]),
    ("sysctl -qw net.ipv4.ip_nonlocal_bind=1", "198.51.100.7:80", ["free"]),
    ("sysctl -qw net.ipv6.ip_nonlocal_bind=1", "[2001:db8::7]:80", ["free"]),
    ("ip address add 2001:db8::7/128 dev lo nodad", "[2001:db8::7]:80", ["free"]),
    ("ip link set lo down", "127.0.0.1:0", ["free"]),
    ("ip address flush dev lo", "127.0.0.1:0", ["not here"]),
    ("sysctl -qw net.ipv6.conf.all.disable_ipv6=1", "[::1]:80", ["not here"]),
    ("sysctl -qw net.ipv6.conf.all.disable_ipv6=1", ":80", ["free", "left out"]),
    ("sysctl -qw net.ipv6.conf.all.disable_ipv6=1", "localhost:80", ["free"]),
    ("ip address del 127.0.0.1/8 dev lo", ":80", ["left out", "free"]),
    ("ip address flush dev lo", ":80", ["free", "free"]),
    ("ip address flush dev lo", ":80?ipv6_only=0", ["free"]),
    ("sysctl -qw net.core.somaxconn=99", "127.0.0.1:0", ["free"]),
    (VETH, "[fe80::1%va]:0", ["not here"]),
    (f"{VETH}; ip address add fe80::1/64 dev va nodad", "[fe80::1%va]:0", ["free"]),
    (f"{VETH}; ip address add fe80::1/64 dev va nodad", "[fe80::1%vb]:0", ["not here"]),
]


@linux_only
@needs_ipv6
@pytest.mark.parametrize(("change", "bind", "verdicts"), NETWORKS)
def test_the_network_decides(change: str, bind: str, verdicts: list[str]) -> None:
    program = IN_A_CHILD + f"    subprocess.run({change!r}, shell=True, check=True)\n    tell(**compare({bind!r}))\n"
    told = run(program, namespace=True)
    assert agrees(told) == verdicts


@pytest.mark.needs_tcp_info
@linux_only
@needs_ipv6
def test_a_name_leaves_out_the_family_that_is_missing(poison: Poison) -> None:
    told = poisoned(poison, "both:0", "socket", 2, hosts="both=0.0.0.0,::")
    assert agrees(told) == ["free", "left out"]
    assert told["rows"][1]["hint"].startswith("this system has IPv6, but a seccomp filter denies IPv6 to this process")
    assert told["rows"][1]["backlog"] is None


@pytest.mark.needs_tcp_info
@linux_only
@pytest.mark.parametrize(("nth", "verdicts"), [(1, ["left out", "free"]), (2, ["free", "left out"])])
def test_a_family_that_is_missing_is_left_out(poison: Poison, nth: int, verdicts: list[str]) -> None:
    assert agrees(poisoned(poison, ":0", "socket", nth)) == verdicts


@linux_only
def test_when_no_family_is_there_it_is_told(poison: Poison) -> None:
    told = poisoned(poison, ":0", "socket", "1+")
    assert agrees(told) == ["left out", "not supported"]


def poisoned(
    poison: Poison, bind: str, call: str, nth: int | str, hosts: str = "", number: int = errno.EAFNOSUPPORT
) -> dict[str, Any]:
    """`compare`, with the nth call failing in what is foretold, and again in what happens."""
    if isinstance(nth, int):
        poison_each = f"{call}:{{0}}:{number}"
    else:
        poison_each, nth = f"{call}:{{0}}+:{number}", int(nth.rstrip("+"))
    program = f"""
from typing import Any
import harken.__main__, harken._cli.check
{inspect.getsource(compare)}
def prepare():
    os.environ["POISON"] = {poison_each!r}.format(count({call!r}) + {nth})
prepare()
open_them = harken.listen
def listen(*binds):
    prepare()
    return open_them(*binds)
harken.listen = listen
tell(**compare({bind!r}))
"""
    return poison.run(program, hosts=hosts).said


@linux_only
@needs_root
@pytest.mark.parametrize(
    ("before", "bind", "verdicts"),
    [
        ("become(65534)", "127.0.0.1:599", ["forbidden"]),
        ("become(65534)", ":599", ["forbidden", "forbidden"]),
        ("become(65534)", "127.0.0.1:600", ["free"]),
        ("become(65534)", "127.0.0.1:598-601", ["forbidden"]),
        ("become(65534)", "192.0.2.77:599", ["not here"]),
        ("become(65534)", "[2001:db8::77]:599", ["forbidden"]),
        ("", "127.0.0.1:599", ["free"]),
    ],
)
def test_a_port_may_be_forbidden(before: str, bind: str, verdicts: list[str]) -> None:
    if not HAS_IPV6 and len(verdicts) + bind.count("[") > 1:
        pytest.skip("this machine has no ::1")
    program = (
        IN_A_CHILD
        + f"""
    open("/proc/sys/net/ipv4/ip_unprivileged_port_start", "w").write("600")
    {before}
    tell(**compare({bind!r}))
"""
    )
    assert agrees(run(program, namespace=True)) == verdicts


@linux_only
@needs_root
def test_root_of_a_container_may_not_have_the_ports_of_its_host() -> None:
    """It has every capability, in a user namespace that the network does not belong to."""
    start = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if int(start.read_text()) < 3:
        pytest.skip("every port is for everybody here")
    source = children.PREAMBLE + textwrap.dedent(IN_A_CHILD + "    tell(**compare('127.0.0.1:2'))\n")
    command = ["unshare", "-Ur", sys.executable, "-c", source]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"user namespaces cannot be made here: {error}")
    assert agrees(json.loads(done.stdout)) == ["forbidden"]


@linux_only
@pytest.mark.parametrize(("asked", "granted"), [(7, 7), (10**9, None)])
def test_which_backlog_would_be_granted_is_told(asked: int, granted: int | None) -> None:
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    _, (row,) = foretold(f"127.0.0.1:0?backlog={asked}")
    assert row["backlog"] == (granted or most)
    assert (f"net.core.somaxconn grants {most}" in row["note"]) == (granted is None)


@linux_only
@pytest.mark.parametrize(
    ("port", "reserved", "warned"),
    [(40000, "", True), (40999, "", True), (39999, "", False), (41000, "", False), (40500, "40400-40500", False),
     (40500, "1,40500", False), (40500, "40501", True), (0, "", False)],
)  # fmt: skip
def test_a_port_that_connections_may_take_is_warned_of(port: int, reserved: str, warned: bool) -> None:
    setup = f"""
        echo 40000 40999 > /proc/sys/net/ipv4/ip_local_port_range
        echo '{reserved}' > /proc/sys/net/ipv4/ip_local_reserved_ports
    """
    told = run(IN_A_CHILD + f"    tell(**compare('127.0.0.1:{port}'))\n", setup=setup)
    assert agrees(told) == ["free"]
    note = told["rows"][0]["note"]
    assert ("net.ipv4.ip_local_port_range" in note) == warned
    assert (f"ip_local_reserved_ports={reserved}{',' if reserved else ''}{port}`" in note) == warned


# ---------------------------------------------------------------------------- inherited


@pytest.mark.needs_tcp_info
@linux_only
@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("sock = socket.create_server(('127.0.0.1', 0), backlog=5)", "passed on"),
        ("sock = socket.socket(); sock.bind(('127.0.0.1', 0))", "passed on"),
        ("sock = socket.socket()", "impossible"),
        ("sock = socket.socket(type=socket.SOCK_DGRAM); sock.bind(('127.0.0.1', 0))", "impossible"),
        ("sock, far = socket.socketpair()", "impossible"),
        ("sock = open(os.devnull)", "impossible"),
    ],
)
@pytest.mark.parametrize("by_systemd", [False, True])
def test_what_was_inherited_is_judged_and_left_alone(program: str, verdict: str, by_systemd: bool) -> None:
    told = run(
        IN_A_CHILD
        + f"""
    {program}
    os.dup2(sock.fileno(), 3, inheritable=True) if sock.fileno() != 3 else os.set_inheritable(3, True)
    settings = {{"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}}
    os.environ.update(settings)
    bind = "systemd:web" if {by_systemd} else "fd://3"
    real = harken.listen
    def listen(*binds):
        tell(inheritable=os.get_inheritable(3), unchanged=all(os.environ.get(k) == v for k, v in settings.items()))
        return real(*binds)
    harken.listen = listen
    tell(**compare(bind))
    os._exit(0)  # the descriptor had two owners
"""
    )
    assert agrees(told) == [verdict]
    assert told["inheritable"]
    assert told["unchanged"]


@pytest.mark.needs_sock_diag
@linux_only
def test_a_descriptor_that_came_too_late_is_told() -> None:
    """Both were bound with SO_REUSEADDR, and the other one listens."""
    told = run(
        IN_A_CHILD
        + """
    def bound(port):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        return sock
    late = bound(0)
    port = late.getsockname()[1]
    first = bound(port)
    first.listen()
    tell(**compare(f"fd://{late.fileno()}"))
    os._exit(0)
"""
    )
    assert agrees(told) == ["taken"]
    told = run(
        IN_A_CHILD
        + """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    tell(**compare(f"fd://{sock.fileno()}", "127.0.0.1:%s" % sock.getsockname()[1]))
    os._exit(0)
"""
    )
    assert agrees(told) == ["passed on", "given twice"]


@linux_only
def test_a_descriptor_is_passed_on_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        fd = sock.fileno()
        code, rows = foretold(f"fd://{fd}", f"fd://{fd}")
        assert (code, [row["verdict"] for row in rows]) == (1, ["passed on", "given twice"])
        assert rows[0]["address"] == list(sock.getsockname())
    told = run(
        """
    sock = socket.create_server(("127.0.0.1", 0))
    sock.set_inheritable(True)  # as one that was passed
    assert sock.fileno() == 3  # before ctypes, for which some libffi keep a descriptor open
"""
        + IN_A_CHILD
        + """
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="web")
    tell(**compare("systemd:web", "systemd:web"))
    os._exit(0)
"""
    )
    assert agrees(told) == ["passed on", "impossible"]
    told = run(
        IN_A_CHILD
        + """
    os.environ.update(LISTEN_PID="1", LISTEN_FDS="1")
    tell(**compare("systemd:web"))
"""
    )
    assert agrees(told) == ["impossible"]
    assert "passed to process 1" in told["rows"][0]["error"]


# ---------------------------------------------------------------------------- unix


@pytest.fixture
def room() -> Iterator[Path]:
    """A folder whose name is short enough for the path of a unix socket."""
    with tempfile.TemporaryDirectory(prefix="harken-") as name:
        yield Path(name)


def about(bind: str) -> tuple[int, dict[str, Any]]:
    code, (row,) = foretold(bind)
    return code, row


@needs_unix
def test_a_path_is_free_where_it_can_be_made(room: Path) -> None:
    code, row = about(f"unix:{room}/app.sock")
    assert (code, row["verdict"], row["address"]) == (0, "free", f"{room}/app.sock")
    assert list(room.iterdir()) == []
    code, row = about(f"unix:{room}/no/app.sock")
    assert (code, row["verdict"]) == (1, "impossible")
    assert f"the folder {room}/no does not exist" in row["hint"]
    (room / "file").write_text("")
    code, row = about(f"unix:{room}/file/app.sock")
    assert (code, row["verdict"]) == (1, "impossible")


@needs_unix
def test_a_path_without_a_server_would_be_replaced_and_is_left_alone(room: Path) -> None:
    path = room / "app.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    before = path.lstat()
    code, row = about(f"unix:{path}")
    assert (code, row["verdict"]) == (0, "left behind")
    assert path.lstat() == before


@linux_only
@pytest.mark.parametrize("listens", [True, False])
def test_a_path_with_a_server_is_taken_and_the_server_undisturbed(room: Path, listens: bool) -> None:
    path = room / "app.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        if listens:
            sock.listen(1)
        sock.setblocking(False)
        code, row = about(f"unix:{path}")
        assert (code, row["verdict"], row["cause"]) == (1, "taken", "listener" if listens else "bound")
        assert row["holders"][0]["pid"] == os.getpid()
        with pytest.raises(BlockingIOError if listens else OSError):
            sock.accept()  # nobody has connected


@linux_only
def test_connections_of_a_server_that_has_gone_do_not_keep_its_path(room: Path) -> None:
    path = str(room / "app.sock")
    with socket.socket(socket.AF_UNIX) as client:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
            sock.listen()
            client.connect(path)
            connection, _ = sock.accept()
        with connection:
            assert about(f"unix:{path}")[1]["verdict"] == "left behind"


SERVER_IN_ANOTHER_NETWORK = """
    sock = socket.socket(socket.AF_UNIX)
    sock.bind({path!r})
    sock.listen()
    program = "import sys; from harken.__main__ import main; sys.exit(main(['check', '--json', 'unix:' + sys.argv[1]]))"
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", program, {path!r}], capture_output=True, text=True, check=False
    )
    tell(code=done.returncode, row=json.loads(done.stdout))
"""


@linux_only
@needs_root
def test_a_server_in_another_network_is_seen_by_connecting(room: Path) -> None:
    told = run(SERVER_IN_ANOTHER_NETWORK.format(path=str(room / "app.sock")), namespace=True)
    assert (told["code"], told["row"]["verdict"]) == (1, "taken")
    assert "not visible from here" in told["row"]["hint"]


@needs_unix
@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_socket_is_never_replaced(room: Path, make: Callable[[Path], None]) -> None:
    path = room / "app.sock"
    make(path)
    before = path.lstat()
    code, row = about(f"unix:{path}")
    assert (code, row["verdict"]) == (1, "taken")
    assert "only sockets that servers left behind are replaced" in row["hint"]
    assert (path.lstat().st_ino, stat.S_IFMT(path.lstat().st_mode)) == (before.st_ino, stat.S_IFMT(before.st_mode))


@needs_unix
@pytest.mark.parametrize("behind", ["", "/", "/.", "//"])
def test_a_folder_is_named_as_one_and_never_to_be_removed(room: Path, behind: str) -> None:
    # bind(2) says "in use" of a folder with a slash behind it.
    code, row = about(f"unix:{room}{behind}")
    assert (code, row["verdict"]) == (1, "taken")
    with pytest.raises(harken.ListenError) as caught:
        harken.listen(f"unix:{room}{behind}")
    assert isinstance(caught.value, FileExistsError)
    for told in (row["hint"], caught.value.hint):
        assert "only sockets that servers left behind are replaced" in told
        assert "rm " not in told


@linux_only
@pytest.mark.parametrize("folder", ["/proc", "/proc/self", "/sys", "/dev/pts", "/dev/fd"])
def test_file_systems_without_sockets_are_told(folder: str) -> None:
    if not os.path.isdir(folder):
        pytest.skip(f"there is no {folder}")
    code, row = about(f"unix:{folder}/harken.sock")
    assert code == 1
    assert row["verdict"] in ("forbidden", "impossible")
    with pytest.raises(harken.ListenError) as caught:
        harken.listen(f"unix:{folder}/harken.sock")
    assert isinstance(caught.value, (PermissionError, FileNotFoundError))
    for told in (row["hint"], caught.value.hint):
        assert "choose another folder" in told or "this user must be allowed to write to" in told
        assert "mkdir" not in told  # it is there


@pytest.mark.needs_tcp_info
@linux_only
@pytest.mark.parametrize(("length", "verdict"), [(107, "free"), (108, "impossible")])
def test_the_room_for_a_name_is_told_to_the_byte(length: int, verdict: str) -> None:
    assert agrees(compare(f"unix:@{'x' * length}")) == [verdict]  # and the NUL in front


@pytest.mark.needs_tcp_info
@linux_only
def test_a_long_path_is_free_and_a_long_name_impossible(room: Path) -> None:
    assert agrees(compare(f"unix:{room}/{'x' * 200}")) == ["free"]
    assert agrees(compare(f"unix:{room}/{'x' * 256}")) == ["impossible"]


@pytest.mark.needs_tcp_info
@needs_unix
def test_listen_does_what_was_told_of_a_path(room: Path) -> None:
    path = room / "app.sock"
    assert agrees(compare(f"unix:{path}")) == ["free"]
    assert agrees(compare(f"unix:{room}/no/app.sock")) == ["impossible"]
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        assert agrees(compare(f"unix:{path}")) == ["taken"]
        assert agrees(compare(f"unix:{path}?exclusive=0")) == ["free"]
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    assert agrees(compare(f"unix:{path}")) == ["left behind"]
    path.touch()
    assert agrees(compare(f"unix:{path}")) == ["taken"]
    assert agrees(compare(f"unix:{path}/app.sock")) == ["impossible"]


@linux_only
@needs_root
def test_a_folder_may_be_forbidden(room: Path) -> None:
    def told(prepare: str, bind: str) -> dict[str, Any]:
        program = (
            IN_A_CHILD
            + f"""
    import harken._diagnosis.foresee
    {prepare}
    become({NOBODY})
    import contextlib, io
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = harken.__main__.main(["check", "--json", {bind!r}])
    tell(code=code, row=json.loads(out.getvalue()))
"""
        )
        return run(program)

    room.chmod(0o755)
    row = told("", f"unix:{room}/app.sock")["row"]
    assert row["verdict"] == "forbidden"
    assert "this user must be allowed to write to" in row["hint"]

    # In a sticky folder, as /tmp is, a path that another user left behind cannot be replaced.
    room.chmod(0o1777)
    assert told("", f"unix:{room}/app.sock")["row"]["verdict"] == "free"
    path = room / "old.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    path.chmod(0o777)
    row = told("", f"unix:{path}")["row"]
    assert (row["verdict"], "only the owner" in row["hint"]) == ("forbidden", True)

    # Who may not write to a socket cannot find out whether anybody is there, and is refused.
    path.chmod(0o700)
    assert told("", f"unix:{path}")["row"]["verdict"] == "forbidden"
    os.chown(path, NOBODY, -1)
    assert told("", f"unix:{path}")["row"]["verdict"] == "left behind"


@linux_only
@needs_root
@pytest.mark.parametrize(
    ("option", "step"),
    [
        ("owner=root", "chown"),
        ("owner=0", "chown"),
        ("group=0", "chown"),
        ("owner=65534", None),
        ("group=65534", None),
        ("group=1234", None),
        ("group=1235", "chown"),
        ("owner=65534&group=1234&mode=0660", None),
        ("mode=0666", None),
    ],
)
@pytest.mark.parametrize("unnamed", [True, False])
def test_owner_and_group_are_given_as_the_system_allows(
    room: Path, option: str, step: str | None, unnamed: bool
) -> None:
    """To nobody, who is of group 1234 too; on a file system that has files without names, and on one that has not."""
    room.chmod(0o777)
    program = (
        IN_A_CHILD
        + f"""
    import harken._diagnosis.foresee
    {"" if unnamed else "del os.O_TMPFILE"}
    become({NOBODY}, 1234)
    tell(**compare({f"unix:{room}/app.sock?{option}"!r}))
"""
    )
    told = run(program)
    assert agrees(told) == (["free"] if step is None else ["forbidden"])
    assert told["rows"][0]["step"] == step
    assert list(room.iterdir()) == []


@linux_only
@needs_root
@pytest.mark.parametrize("option", ["owner=0", "group=0", "owner=5&group=7", "mode=0600"])
def test_owner_and_group_of_a_container_without_the_right_to_give_them(room: Path, option: str) -> None:
    """Root without CAP_CHOWN: who is asked is the kernel, not the number of the user."""
    source = children.PREAMBLE + textwrap.dedent(IN_A_CHILD + f"    tell(**compare({f'unix:{room}/a?{option}'!r}))\n")
    command = ["capsh", "--drop=cap_chown", "--", "-c", 'exec "$@"', "sh", sys.executable, "-c", source]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"capabilities cannot be dropped here: {error}")
    told = json.loads(done.stdout)
    assert agrees(told) == (["forbidden"] if "5" in option else ["free"])


@linux_only
@needs_root
def test_a_folder_gives_its_group_to_what_is_made_there(room: Path) -> None:
    os.chown(room, -1, 4321)
    room.chmod(0o2777)
    program = IN_A_CHILD + f"    become({NOBODY})\n    tell(**compare('unix:{room}/app.sock?group=4321'))\n"
    assert agrees(run(program)) == ["free"]


@linux_only
def test_abstract_names() -> None:
    name = f"harken-check-{os.getpid()}"
    assert about(f"unix:@{name}")[1]["verdict"] == "free"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"\0{name}")
        code, row = about(f"unix:@{name}")
        assert (code, row["verdict"], row["cause"]) == (1, "taken", "bound")
        assert row["holders"][0]["pid"] == os.getpid()


@needs_unix
def test_one_path_is_given_once(room: Path) -> None:
    code, rows = foretold(f"unix:{room}/a.sock", f"unix:{room}/../{room.name}/a.sock", f"unix:{room}/b.sock")
    assert (code, [row["verdict"] for row in rows]) == (1, ["free", "given twice", "free"])


# ---------------------------------------------------------------------------- families


@linux_only
@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT])
@pytest.mark.parametrize("bind", ["vsock://*:5000", "unix:/tmp/app.sock", "unix:@harken-check"])
def test_whether_the_system_has_a_family_is_told(poison: Poison, number: int, bind: str) -> None:
    assert agrees(poisoned(poison, bind, "socket", "1+", number=number)) == (
        ["not supported"] if HAS_VSOCK or "vsock" not in bind else ["impossible"]
    )


@linux_only
def test_without_mptcp_it_is_plain_tcp(poison: Poison) -> None:
    told = poisoned(poison, "mptcp://127.0.0.1:0", "socket", 1, number=errno.EPROTONOSUPPORT)
    (row,) = told["rows"]
    assert (told["code"], row["verdict"], "plain TCP" in row["note"]) == (0, "free", True)


@linux_only
def test_a_vsock_is_tried_like_any_other() -> None:
    if not HAS_VSOCK:
        assert agrees(compare("vsock://*:59999")) == ["not supported"]
        return
    (row,) = compare("vsock://*:59999")["rows"]
    assert (row["verdict"], row["address"], row["backlog"]) == ("free", "vsock://*:59999", None)
    told = compare("vsock://*:59999", "vsock://*:59990-59999", "vsock://*:59999")
    assert agrees(told) == ["free", "free", "given twice"]
    with harken.listen("vsock://*:59999"):
        assert agrees(compare("vsock://*:59999")) == ["taken"]


# ---------------------------------------------------------------------------- what is printed, exit codes


def unavailable(_: range) -> Any:
    raise ImportError


@pytest.fixture
def without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("by_sock_diag", "by_proc", "by_psutil"):
        monkeypatch.setattr(_holders, name, unavailable)


@pytest.mark.needs_tcp_info
@pytest.mark.usefixtures("without_a_table")
def test_without_a_table_it_is_told_all_the_same() -> None:
    port = free_port()
    assert agrees(compare(f"127.0.0.1:{port}", "127.0.0.1:0")) == ["free", "free"]
    assert agrees(compare(f"127.0.0.1:{port}", f"127.0.0.1:{port}")) == ["free", "given twice"]
    with running(server()) as child:
        code, (row,) = foretold(f"127.0.0.1:{child['port']}")
    assert (code, row["verdict"], row["cause"], row["holders"]) == (1, "taken", "unknown", [])
    assert "pip install 'harken[psutil]'" in row["hint"]


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["127.0.0.1:0", "127.0.0.1:70000"], ["--yaml", "80"], [":80?backlog=many"],
                  [":80?ipv6_only=maybe"]],
)  # fmt: skip
def test_a_mistake_has_an_exit_code_of_its_own(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: Any = main(["check", *arguments])
    except SystemExit as ended:
        code = ended.code
    shown = capsys.readouterr()
    assert (code, shown.out) == (2, "")  # nothing of the others
    assert shown.err


@pytest.mark.needs_sock_diag
def test_columns_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "127.0.0.1:0", "127.0.0.1:no-such-service"]) == 1
    free, unknown = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert free[:3] == ["free", "127.0.0.1:0", "127.0.0.1:0"]
    assert unknown[:6] == ["unknown name", "127.0.0.1:no-such-service", "127.0.0.1:no-such-service", "-", "-", "-"]
    assert "no service is called" in unknown[7]
    assert len(free) == len(unknown) == 9


@pytest.mark.needs_sock_diag
def test_json_for_a_program() -> None:
    command = [sys.executable, "-m", "harken", "check", "--json", "127.0.0.1:0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    (fact,) = map(json.loads, done.stdout.splitlines())
    assert list(fact) == [
        "bind", "address", "verdict", "step", "error", "cause", "holders", "hint", "backlog", "note",
    ]  # fmt: skip
    assert (fact["address"], fact["verdict"], fact["holders"]) == (["127.0.0.1", 0], "free", [])


def test_what_the_exit_codes_mean_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["check", "--help"], ["--help"]):
        with pytest.raises(SystemExit):
            main(arguments)
        shown = " ".join(capsys.readouterr().out.split())
        assert re.search(r"Exit codes: 0 .* 1 .* 2 .* 3 ", shown)


@pytest.mark.needs_sock_diag
@linux_only
def test_a_table_for_a_person() -> None:
    with running(server()) as child:
        bind = f"127.0.0.1:{child['port']}"
        code, shown = on_terminal(["check", "127.0.0.1:0", bind], columns=70)
    assert code == 1
    headings, free, taken, *hint = shown.splitlines()
    assert headings.split() == ["VERDICT", "ADDRESS", "BIND", "BACKLOG", "CAUSE", "HELD", "BY"]
    assert re.match(r"free +127\.0\.0\.1:0 +127\.0\.0\.1:0 ", free)
    assert re.match(rf"taken +{re.escape(bind)} +{re.escape(bind)} +- +listener", taken)
    assert headings.index("BIND") == taken.index(bind, 20)
    assert max(map(len, (headings, free, taken, *hint))) <= 70
    assert hint[0].startswith("    hint: ")
    assert f"pid {child['pid']}" in " ".join(hint)
    assert "end it or choose another port" in " ".join(" ".join(hint).split())


@linux_only
def test_nothing_listens_and_all_is_closed(poison: Poison, room: Path) -> None:
    report = poison.run(f"""
        from harken.__main__ import main
        main(["check", "--json", "127.0.0.1:0", "127.0.0.1:18081", ":18000-18010", "unix:{room}/a.sock", "unix:@a"])
    """)
    assert list(room.iterdir()) == []
    assert (report.calls["listen"], report.calls["sockets"]) == (0, 0)
    assert report.calls["bind"] >= 5


@posix_only
@pytest.mark.parametrize("query", ["", "?exclusive=0"])
def test_two_names_of_one_socket_are_two_places(tmp_path: Path, query: str) -> None:
    """Hard links: each gets a socket of its own."""
    one, other = tmp_path / "one", tmp_path / "other"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(one))
        server.listen()
        other.hardlink_to(one)
        if not query:
            server.close()  # a path that a dead server left
        binds = [f"unix:{one}{query}", f"unix:{other}{query}"]
        assert [row.verdict for row in _foresee.foresee(binds)] == ["free" if query else "left behind"] * 2
        with harken.listen(*binds) as listeners:
            assert len({os.stat(path).st_ino for path in (one, other)}) == 2
            assert [listener.address for listener in listeners] == [str(one), str(other)]


@posix_only
@pytest.mark.parametrize("way", ["linked/socket", "../{name}/socket", "/proc/self/cwd/socket"])
def test_two_ways_to_one_place_are_given_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.chdir(tmp_path)
    if way.startswith("/proc") and not LINUX:
        pytest.skip("/proc of Linux")
    (tmp_path / "linked").symlink_to(tmp_path)
    binds = ["unix:socket", f"unix:{way.format(name=tmp_path.name)}"]
    assert [row.verdict for row in _foresee.foresee(binds)] == ["free", "given twice"]
    with pytest.raises(harken.AddressInUseError, match="of the same call"):
        harken.listen(*binds)
    assert not (tmp_path / "socket").exists()
