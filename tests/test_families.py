"""MPTCP and vsock: what is left of them where the system has them not, and what it is where it has."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest
from wire import receive

import children
import harken
from harken._system import AF_VSOCK, IPPROTO_MPTCP
from machine import LINUX, LOOPBACKS, bind_text, linux_only

MPTCP = 262  # linux/in.h


def _can(family: int, proto: int) -> bool:
    try:
        socket.socket(family, socket.SOCK_STREAM, proto).close()
    except OSError:
        return False
    return True


HAS_MPTCP = LINUX and _can(socket.AF_INET, MPTCP)
needs_mptcp = pytest.mark.skipif(not HAS_MPTCP, reason="this system has no MPTCP")
HAS_VSOCK = LINUX and hasattr(socket, "AF_VSOCK") and _can(socket.AF_VSOCK, 0)
needs_vsock = pytest.mark.skipif(not HAS_VSOCK, reason="this system has no vsock")


def _has_vsock_loopback() -> bool:
    if not HAS_VSOCK:
        return False
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        try:
            sock.bind((1, 0xFFFFFFFF))
        except OSError:
            return False
    return True


# ---------------------------------------------------------------------------- MPTCP


def test_the_numbers_are_the_systems() -> None:
    assert (MPTCP if LINUX else -1) == IPPROTO_MPTCP
    assert getattr(socket, "AF_VSOCK", AF_VSOCK) == AF_VSOCK or not LINUX


@needs_mptcp
@pytest.mark.parametrize("host", LOOPBACKS)
@pytest.mark.parametrize("proto", [MPTCP, 0])
def test_mptcp_serves_clients_with_it_and_without(host: str, proto: int) -> None:
    with harken.listen(f"mptcp://{bind_text(host)}") as listeners:
        (listener,) = listeners
        assert listener.proto == listener.getsockopt(socket.SOL_SOCKET, 38) == MPTCP  # SO_PROTOCOL
        assert listener.url == f"mptcp://{bind_text(host, listener.port)}"
        assert listeners.left_out == ()
        for many in (False, True):
            with socket.socket(listener.family, socket.SOCK_STREAM, proto) as client:
                client.connect(listener.address)
                connection = listener.accept_many()[0] if many else listener.accept()[0]
                connection.setblocking(True)
                with connection:
                    client.sendall(b"ping")
                    assert receive(connection, 4) == b"ping"
                    connection.sendall(b"pong")
                    assert receive(client, 4) == b"pong"


@needs_mptcp
def test_the_wildcard_is_two_of_them_and_the_url_reads_back() -> None:
    with harken.listen("mptcp://:0") as listeners:
        assert {listener.proto for listener in listeners} == {MPTCP}
        assert len({listener.port for listener in listeners}) == 1
        urls = [listener.url for listener in listeners]
    with harken.listen(*urls) as again:
        assert [listener.url for listener in again] == urls


@needs_mptcp
def test_mptcp_can_be_held_and_found_in_a_range() -> None:
    with harken.bind("mptcp://127.0.0.1:20000-29000") as listeners:
        listeners.listen()
        assert listeners[0].proto == MPTCP
        with pytest.raises(harken.AddressInUseError):
            harken.listen(listeners[0].url)
        with harken.listen(f"mptcp://127.0.0.1:{listeners.port}-29500") as others:
            assert others[0].proto == MPTCP
            assert others.port > listeners.port


@needs_mptcp
@pytest.mark.parametrize("proto", [MPTCP, 0])
def test_connections_have_the_options_of_an_mptcp_listener(proto: int) -> None:
    """Linux passes on less to the connections of clients without MPTCP: all is set on each."""
    options: dict[str, Any] = {"keepalive_idle": 77, "rcvbuf": 50_000, "tos": 0x10, "priority": 5, "busy_poll": 50}
    try:
        listeners = harken.listen("mptcp://127.0.0.1:0", nodelay=False, **options)
    except OSError as error:
        pytest.skip(f"this kernel's MPTCP has less: {error}")
    with listeners as (listener,), socket.socket(socket.AF_INET, socket.SOCK_STREAM, proto) as client:
        assert dict(listener.options) == {"nodelay": False, **options}
        client.connect(listener.address)
        with listener.accept()[0] as connection:
            numbers = [(6, 4), (1, socket.SO_RCVBUF), (0, 1), (1, 12), (1, 46), (6, 1)]
            assert [connection.getsockopt(*number) for number in numbers] == [77, 100_000, 0x10, 5, 50, 0]


@needs_mptcp
def test_what_mptcp_lacks_of_tcp_is_told() -> None:
    with harken.listen("mptcp://127.0.0.1:0") as (listener,):
        try:
            listener.setsockopt(6, 18, 7777)
        except OSError:
            pass
        else:
            pytest.skip("this kernel's MPTCP has TCP_USER_TIMEOUT")
    with pytest.raises(harken.ListenError) as caught:
        harken.listen("mptcp://127.0.0.1:0", user_timeout=7777)
    assert caught.value.option == ("user_timeout", 7777)
    assert caught.value.hint == "this kernel, or this kind of socket, does not support user_timeout"


FALLS_BACK = """
    {first}
    import harken
    found = []
    for options in ({{}}, {{"ttl": 33}}):
        with harken.listen("mptcp://:0", **options) as listeners, socket.socket() as client:
            client.connect(("127.0.0.1", listeners.port))
            listeners[0].accept()[0].close()
            left_out = [[address, type(error).__name__, error.errno] for address, error in listeners.left_out]
            found.append([[one.proto for one in listeners], [one.url.split(":")[0] for one in listeners], left_out])
    tell(found=found)
"""


@linux_only
@needs_mptcp
def test_where_mptcp_is_switched_off_it_is_tcp_and_told() -> None:
    first = 'open("/proc/sys/net/mptcp/enabled", "w").write("0")'
    found = children.run(FALLS_BACK.format(first=first), namespace=True)["found"]
    assert [[set(protos), set(schemes)] for protos, schemes, _ in found] == [[{6}, {"tcp"}]] * 2
    assert [left_out for *_, left_out in found] == [[["mptcp://:0", "OSError", errno.ENOPROTOOPT]]] * 2


@pytest.mark.skipif(LINUX, reason="Linux has it")
def test_where_there_is_no_mptcp_it_is_tcp_and_told() -> None:
    with harken.listen("mptcp://127.0.0.1:0") as listeners:
        assert (listeners[0].proto, listeners[0].url[:6]) == (6, "tcp://")
        ((bind, error),) = listeners.left_out
        assert (bind, error.errno) == ("mptcp://127.0.0.1:0", errno.EPROTONOSUPPORT)


@needs_mptcp
def test_a_port_in_use_is_no_reason_to_fall_back() -> None:
    with harken.listen("mptcp://127.0.0.1:0") as (listener,), pytest.raises(harken.AddressInUseError) as caught:
        harken.listen(listener.url)
    assert caught.value.step == "bind"


# ---------------------------------------------------------------------------- vsock


@needs_vsock
@pytest.mark.parametrize("bind", ["vsock://*:0", "vsock://any:0", "vsock://:0", "vsock://4294967295:0"])
def test_a_vsock_port_is_chosen_by_the_system(bind: str) -> None:
    with harken.listen(bind) as listeners:
        (listener,) = listeners
        assert (listener.family, listener.type, listener.state) == (socket.AF_VSOCK, socket.SOCK_STREAM, "listening")
        assert listener.address == (0xFFFFFFFF, listener.port)
        assert 0 < listener.port < 0xFFFFFFFF
        assert listener.url == f"vsock://*:{listener.port}"
        assert not listener.get_inheritable()


@needs_vsock
def test_a_vsock_port_in_use_is_told() -> None:
    with harken.listen("vsock://*:0") as (listener,):
        with pytest.raises(harken.AddressInUseError) as caught:
            harken.listen(listener.url)
        error = caught.value
        assert (error.step, error.address, error.errno) == ("bind", listener.url, errno.EADDRINUSE)
        assert str(error).startswith(f"bind({listener.url}): ")
        with pytest.raises(harken.AddressInUseError):
            harken.bind(listener.url)
        first, last = listener.port, listener.port + 20
        with harken.listen(f"vsock://*:{first}-{last}") as (other,):
            assert first < other.port <= last
        with pytest.raises(harken.AddressInUseError):
            harken.listen("127.0.0.1:0", f"vsock://*:{first}-{first}")


@needs_vsock
def test_a_vsock_can_be_held_and_has_the_options_that_mean_something() -> None:
    seen: list[Any] = []
    with harken.bind("vsock://*:0?backlog=7", inheritable=True, configure=lambda *told: seen.append(told)) as listeners:
        (listener,) = listeners
        assert listener.state == "bound"
        listeners.listen()
        assert listener.state == "listening"
        assert seen == [(listener, (0xFFFFFFFF, 0xFFFFFFFF))]  # Linux's number for a port that the system chooses
        assert dict(listener.options) == {"backlog": 7, "inheritable": True}
        with listener.dup().to_socket() as same:
            assert same.getsockname() == (0xFFFFFFFF, listener.port)


@needs_vsock
def test_a_context_that_is_not_this_one_is_told() -> None:
    with pytest.raises(harken.ListenError) as caught:
        harken.listen("127.0.0.1:0", "vsock://12345:7000")
    assert (caught.value.step, caught.value.errno) == ("bind", errno.EADDRNOTAVAIL)
    assert caught.value.address == "vsock://12345:7000"
    assert caught.value.hint.startswith("`*` stands for this machine's own context")


@needs_vsock
@pytest.mark.parametrize("how", ["accept", "accept_many"])
def test_a_vsock_takes_connections(how: str) -> None:
    if not _has_vsock_loopback():
        pytest.skip("this machine has no vsock_loopback (modprobe vsock_loopback)")
    with harken.listen("vsock://local:0") as (listener,), socket.socket(socket.AF_VSOCK) as client:
        client.connect((1, listener.port))
        connection = listener.accept()[0] if how == "accept" else listener.accept_many()[0]
        connection.setblocking(True)
        with connection:
            client.sendall(b"ping")
            assert receive(connection, 4) == b"ping"
            assert connection.getpeername()[0] == 1


@pytest.mark.skipif(HAS_VSOCK, reason="this system has vsock")
def test_where_there_is_no_vsock_it_is_told() -> None:
    with pytest.raises(harken.ListenError) as caught:
        harken.listen("127.0.0.1:0", "vsock://*:7000")
    error = caught.value
    assert (error.step, error.address, error.errno) == ("socket", "vsock://*:7000", errno.EAFNOSUPPORT)
    assert error.hint == "this system has no such address family"
