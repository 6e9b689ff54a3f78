"""Ranges of ports: the first that is free on every address, bound once and kept; also when many start together."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

import harken
from harken._errors import ListenError
from machine import LOOPBACKS, WINDOWS, WINE, bind_text, linux_only, needs_ipv6

if TYPE_CHECKING:
    from poison import Poison

pytest_plugins = ["poison"]

TAKEN = {errno.EADDRINUSE, errno.EACCES}  # Winsock says one or the other


@contextlib.contextmanager
def taken_ports(host: str, count: int) -> Iterator[int]:
    """So many ports in a row on which somebody listens, and behind them some that may be free; the first of them."""
    for _ in range(50):
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(harken.listen(bind_text(host))).port
            try:
                for port in range(first + 1, first + count):
                    stack.enter_context(harken.listen(bind_text(host, port)))
            except (OSError, ValueError):
                continue
            if first < 65000:
                yield first
                return
    pytest.skip("no ports in a row are free")


def reaches(listener: harken.Listener, host: str) -> bool:
    with socket.create_connection((host, listener.port), timeout=10) as client:
        connection, peer = listener.accept()
        with connection:
            return bool(peer[:2] == client.getsockname()[:2])


@pytest.mark.parametrize("host", LOOPBACKS)
def test_the_first_free_port_is_taken(host: str) -> None:
    with taken_ports(host, 3) as first, harken.listen(f"{bind_text(host, first)}-{first + 40}") as listeners:
        assert len(listeners) == 1
        assert first + 3 <= listeners.port <= first + 40
        assert reaches(listeners[0], host)


@pytest.mark.parametrize("host", LOOPBACKS)
def test_a_port_that_is_free_is_taken_at_once_and_again(host: str) -> None:
    with harken.listen(bind_text(host)) as listeners:
        port = listeners.port
    for _ in range(3):
        with harken.listen(f"{bind_text(host, port)}-{port}") as listeners:
            assert listeners.port == port


@needs_ipv6
@pytest.mark.parametrize("host", LOOPBACKS)
@pytest.mark.parametrize("bind", ["", "*", "localhost"])
def test_the_port_is_free_on_all_addresses(bind: str, host: str) -> None:
    if bind == "localhost" and host not in {entry[4][0] for entry in socket.getaddrinfo(bind, None)}:
        pytest.skip(f"localhost is not {host} here")
    with taken_ports(host, 2) as first, harken.listen(f"{bind}:{first}-{first + 40}") as listeners:
        assert len({listener.port for listener in listeners}) == 1
        assert first + 2 <= listeners.port <= first + 40
        for listener in listeners:
            assert reaches(listener, "::1" if ":" in listener.address[0] else "127.0.0.1")


@pytest.mark.parametrize("host", LOOPBACKS)
def test_a_range_in_use_is_named(host: str) -> None:
    with taken_ports(host, 3) as first:
        text = f"{bind_text(host, first)}-{first + 2}"
        with pytest.raises(ListenError) as caught:
            harken.listen("127.0.0.1:0", text)
    assert (caught.value.step, caught.value.address) == ("bind", text)
    assert caught.value.errno in TAKEN
    assert str(caught.value).startswith(f"bind({text}): [")


def test_a_range_beside_others_keeps_the_order() -> None:
    with (
        taken_ports("127.0.0.1", 1) as first,
        harken.listen("127.0.0.1:0", f"127.0.0.1:{first}-{first + 40}", "127.0.0.1:0") as listeners,
    ):
        ports = [listener.port for listener in listeners]
        assert len(set(ports)) == 3
        assert first < ports[1] <= first + 40
        assert [reaches(listener, "127.0.0.1") for listener in listeners] == [True] * 3


def test_a_range_can_be_held() -> None:
    with taken_ports("127.0.0.1", 1) as first:
        text = f"127.0.0.1:{first}-{first + 60}"
        with harken.bind(text, backlog=5) as one, harken.bind(text) as other:
            assert {one[0].state, other[0].state} == {"bound"}
            assert first < min(one.port, other.port)
            assert one.port != other.port
            other.listen()
            one.listen()
            assert [reaches(listener, "127.0.0.1") for listener in (one[0], other[0])] == [True] * 2
            assert one[0].backlog in (5, None)


def test_two_ranges_in_one_call_share_no_port() -> None:
    with taken_ports("127.0.0.1", 1) as first:
        text = f"127.0.0.1:{first}-{first + 60}"
        with harken.listen(text, text, text) as listeners:
            assert len({listener.port for listener in listeners}) == 3
            assert [reaches(listener, "127.0.0.1") for listener in listeners] == [True] * 3


STARTER = """
import sys
import harken
print("ready", flush=True)
sys.stdin.readline()
with harken.listen(sys.argv[1]) as listeners:
    print(listeners.port, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_those_that_start_together_get_distinct_ports(host: str) -> None:
    count = 4 if WINE else 16
    with taken_ports("127.0.0.1", 1) as first, contextlib.ExitStack() as stack:
        command = [sys.executable, "-c", STARTER, f"{host}:{first}-{first + 200}"]
        starters = [
            stack.enter_context(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
            for _ in range(count)
        ]
        try:
            for starter in starters:
                assert starter.stdout
                assert starter.stdout.readline() == "ready\n"
            for starter in starters:
                assert starter.stdin
                starter.stdin.write("go\n")
                starter.stdin.flush()
            ports = [int(starter.stdout.readline()) for starter in starters if starter.stdout]
        finally:
            outcomes = [starter.communicate(timeout=30) for starter in starters]
    assert [errors for _, errors in outcomes] == [""] * count
    assert len(set(ports)) == count
    assert min(ports) > first


@linux_only
@pytest.mark.parametrize("bind", ["127.0.0.1", "three", "", "both"])
def test_who_loses_the_race_goes_on_to_the_next_port(poison: Poison, bind: str) -> None:
    """Both have bound the port, and the other was the first to listen."""
    with harken.listen("127.0.0.1:0", "127.0.0.1:0") as holders:
        first = holders[0].port + 1
    host, options = ("", "?ipv6_only=0") if bind == "both" else (bind, "")
    report = poison.run(
        f'attempt("127.0.0.1:0", "{host}:{first}-{first + 60}{options}", "127.0.0.1:0")',
        poison=f"listen:2:{errno.EADDRINUSE}",
        hosts="three=127.0.0.1,127.0.0.2,127.0.0.3",
    )
    ports = report.said["ports"][1:-1]
    assert len(set(ports)) == 1
    assert len(ports) == {"127.0.0.1": 1, "three": 3, "both": 1}.get(bind, len(LOOPBACKS))
    assert first < ports[0] <= first + 60
    assert bind != "both" or not LOOPBACKS[1:] or report.said["hosts"][1] == "::"
    assert report.calls["sockets"] == report.calls["lists"] == 0


@linux_only
def test_who_loses_the_race_in_the_middle_gives_up_what_listens(poison: Poison) -> None:
    with harken.listen("127.0.0.1:0") as holder:
        first = holder.port
    report = poison.run(
        f'attempt("three:{first}-{first + 60}")',
        poison=f"listen:3:{errno.EADDRINUSE}",
        hosts="three=127.0.0.1,127.0.0.2,127.0.0.3",
    )
    assert report.said["hosts"] == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    assert len(set(report.said["ports"])) == 1
    assert report.said["ports"][0] > first
    assert report.calls["sockets"] == report.calls["lists"] == 0


@linux_only
def test_the_race_has_an_end(poison: Poison) -> None:
    with harken.listen("127.0.0.1:0") as holder:
        first = holder.port
    text = f"127.0.0.1:{first}-{first + 5}"
    report = poison.run(f'attempt("127.0.0.1:0", "{text}")', poison=f"listen:2+:{errno.EADDRINUSE}")
    assert (report.said["step"], report.said["address"]) == ("bind", text)
    assert report.said["errno"] == errno.EADDRINUSE
    assert (report.said["open"], report.said["lists"]) == (0, 0)


@linux_only
@pytest.mark.parametrize(
    ("poisoned", "step", "number"),
    [
        ("bind:2:13", "bind", errno.EACCES),
        ("socket:2:24", "socket", errno.EMFILE),
        ("listen:1:105", "listen", errno.ENOBUFS),
    ],
)
def test_other_failures_end_it(poison: Poison, poisoned: str, step: str, number: int) -> None:
    with taken_ports("127.0.0.1", 1) as first:
        report = poison.run(f'attempt("127.0.0.1:{first}-{first + 60}")', poison=poisoned)
    assert (report.said["step"], report.said["errno"]) == (step, number)
    assert report.said["address"][1] > first
    assert (report.said["open"], report.said["lists"]) == (0, 0)


@linux_only
def test_a_family_that_is_not_there_is_left_out_of_a_range_too(poison: Poison) -> None:
    with harken.listen("127.0.0.1:0") as holder:
        first = holder.port
    report = poison.run(f'attempt(":{first}-{first + 60}")', poison="socket:2*:97")
    assert report.said["hosts"] == ["0.0.0.0"]
    ((address, number),) = report.said["left_out"]
    assert (address[0], number) == ("::", errno.EAFNOSUPPORT)


@linux_only
def test_no_port_is_probed_and_closed(poison: Poison) -> None:
    with harken.listen("127.0.0.1:0") as holder:
        first = holder.port
    report = poison.run(f'print(json.dumps({{"port": harken.listen("127.0.0.1:{first}-{first}").port}}))')
    assert json.dumps(report.said) == json.dumps({"port": first})
    assert (report.calls["socket"], report.calls["bind"], report.calls["listen"]) == (1, 1, 1)


@pytest.mark.skipif(not WINDOWS, reason="Winsock only")
def test_a_port_held_for_oneself_is_passed_over() -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)  # type: ignore[attr-defined,unused-ignore]
        sock.bind(("0.0.0.0", 0))
        sock.listen()
        first = sock.getsockname()[1]
        with harken.listen(f"127.0.0.1:{first}-{first + 40}") as listeners:
            assert listeners.port > first
