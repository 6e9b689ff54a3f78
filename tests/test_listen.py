"""harken.listen: from a name to listening sockets, all of them or none; and an error that says which step, and where.

Real sockets show what it does. The failures come from the shim of ``poison.c``, in child processes.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import pickle
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import harken
from harken import IPPROTO_IPV6, IPPROTO_TCP, IPV6_V6ONLY, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, TCP_NODELAY
from harken._errors import ListenError, failure
from machine import (
    LOOPBACKS,
    WINDOWS,
    bind_text,
    linux_only,
    needs_ipv6,
    posix_only,
    windows_only,
)

if TYPE_CHECKING:
    from poison import Poison

pytest_plugins = ["poison"]

TAKEN = {errno.EADDRINUSE, errno.EACCES}  # Winsock says one or the other
CLOSED = r"WinError 10038\]" if WINDOWS else rf"Errno {errno.EBADF}\]"


def echo_once(listener: harken.Listener, host: str) -> None:
    """A client gets in and is answered."""
    with socket.create_connection((host, listener.port), timeout=10) as client:
        connection, peer = listener.accept()
        with connection:
            assert peer[:2] == client.getsockname()[:2]
            client.sendall(b"ping")
            assert connection.recv(16) == b"ping"


def refused(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=10).close()
    except ConnectionRefusedError:
        return True
    return False


@contextlib.contextmanager
def taken_port(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, SOCK_STREAM) as sock:
        if WINDOWS:
            sock.setsockopt(SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)  # type: ignore[attr-defined,unused-ignore]
        sock.bind((host, port))
        sock.listen()
        yield sock.getsockname()[1]


# ---------------------------------------------------------------------------- what comes up


@pytest.mark.parametrize("host", LOOPBACKS)
def test_an_address_in_digits_is_listened_on(host: str) -> None:
    with harken.listen(bind_text(host)) as listeners:
        (listener,) = listeners
        assert listener.address[0] == host
        assert listener.port == listeners.port == listener.address[1] != 0
        assert listener.state == "listening"
        assert listeners.left_out == ()
        echo_once(listener, host)


@needs_ipv6
@pytest.mark.parametrize("bind", [0, "0", ":0", "*:0", "tcp://:0"])
def test_the_wildcard_is_two_sockets_with_one_port(bind: str | int) -> None:
    with harken.listen(bind) as listeners:
        assert [listener.address[0] for listener in listeners] == ["0.0.0.0", "::"]
        assert listeners[0].port == listeners[1].port == listeners.port != 0
        assert listeners[1].getsockopt(IPPROTO_IPV6, IPV6_V6ONLY) == 1
        echo_once(listeners[0], "127.0.0.1")
        echo_once(listeners[1], "::1")


@needs_ipv6
@pytest.mark.parametrize(("bind", "host"), [("tcp4://:0", "0.0.0.0"), ("tcp6://:0", "::"), ("tcp6://[::1]:0", "::1")])
def test_a_scheme_may_ask_for_one_family(bind: str, host: str) -> None:
    with harken.listen(bind) as listeners:
        assert [listener.address[0] for listener in listeners] == [host]
        if ":" in host:
            assert listeners[0].getsockopt(IPPROTO_IPV6, IPV6_V6ONLY) == 1
            assert refused("127.0.0.1", listeners.port)


@needs_ipv6
def test_both_families_share_a_number_also_when_one_of_them_is_crowded() -> None:
    taken = []
    try:
        # On these IPv6 has no number left to give, IPv4 has: the first number that IPv4 draws may well be one of them.
        for _ in range(1500 if not WINDOWS else 300):
            sock = socket.socket(socket.AF_INET6, SOCK_STREAM)
            taken.append(sock)
            sock.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 1)
            sock.bind(("::", 0))
            sock.listen(1)
        for _ in range(30):
            with harken.listen(":0") as listeners:
                assert listeners[0].port == listeners[1].port
    finally:
        for sock in taken:
            sock.close()


def test_several_binds_come_up_in_their_order() -> None:
    with harken.listen(*(bind_text(host) for host in LOOPBACKS), "127.0.0.1:0") as listeners:
        assert [listener.address[0] for listener in listeners] == [*LOOPBACKS, "127.0.0.1"]
        ports = {listener.port for listener in listeners}
        assert len(ports) == len(listeners)  # each bind has a port of its own
        with pytest.raises(ValueError, match=f"{len(listeners)} ports: tcp://127.0.0.1:"):
            listeners.port  # noqa: B018
        for listener, host in zip(listeners, [*LOOPBACKS, "127.0.0.1"], strict=True):
            echo_once(listener, host)


def test_a_name_is_listened_on_at_every_address() -> None:
    expected = {entry[4][0] for entry in socket.getaddrinfo("localhost", 0, type=SOCK_STREAM)}
    with harken.listen("localhost:0") as listeners:
        found = [*(listener.address for listener in listeners), *(address for address, _ in listeners.left_out)]
        assert {address[0] for address in found} == expected
        assert len({listener.port for listener in listeners}) == 1


@linux_only
def test_a_service_may_stand_for_the_port(poison: Poison) -> None:
    report = poison.run('attempt("127.0.0.1:http")', poison="bind:1:98")  # port 80 may be in use, or forbidden
    assert report.said["address"] == ["127.0.0.1", 80]


@linux_only
def test_an_address_named_twice_is_bound_once(poison: Poison) -> None:
    report = poison.run('attempt("pair:0")', hosts="pair=127.0.0.1,127.0.0.2,127.0.0.1,127.0.0.2")
    assert report.said["hosts"] == ["127.0.0.1", "127.0.0.2"]
    assert len(set(report.said["ports"])) == 1
    assert report.calls["sockets"] == report.calls["lists"] == 0


# ---------------------------------------------------------------------------- the backlog


@pytest.mark.needs_tcp_info
@linux_only
@pytest.mark.parametrize("backlog", [None, 0, 1, 7, 128, 65535, 65536, 2**31 - 1, 2**31, 10**30])
def test_the_backlog_is_granted_up_to_the_systems_maximum_and_read_back(backlog: int | None) -> None:
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    more = backlog is not None and backlog > most
    with pytest.warns(RuntimeWarning, match="somaxconn") if more else contextlib.nullcontext():
        listeners = harken.listen("127.0.0.1:0", backlog=backlog)
    with listeners:
        granted = most if backlog is None else min(backlog, most)
        assert listeners[0].backlog == granted
        stats = listeners[0].stats()
        assert (stats.queued, stats.backlog) == (0, granted)
        assert f"queued=0, backlog={granted}" in repr(stats)


@pytest.mark.needs_tcp_info
@linux_only
def test_the_queue_is_counted() -> None:
    with harken.listen("127.0.0.1:0", backlog=4) as listeners:
        clients = [socket.create_connection(("127.0.0.1", listeners.port), timeout=10) for _ in range(3)]
        assert listeners[0].stats().queued == 3
        for client in clients:
            client.close()


@pytest.mark.filterwarnings("ignore:a backlog of")
@pytest.mark.parametrize("backlog", [None, 0, 1, 200, 201, 10**30])
def test_any_backlog_takes_connections(backlog: int | None) -> None:
    with harken.listen("127.0.0.1:0", backlog=backlog) as listeners:
        echo_once(listeners[0], "127.0.0.1")


@windows_only
def test_windows_does_not_tell_the_backlog() -> None:
    with harken.listen("127.0.0.1:0") as listeners:
        assert listeners[0].backlog is None
        assert listeners[0].stats().queued is None


@pytest.mark.parametrize(
    ("backlog", "kind", "told"),
    [
        (-1, ValueError, "backlog must not be negative: -1"),
        (-(10**30), ValueError, "backlog must not be negative"),
        ("128", TypeError, "backlog must be an int or None, not str"),
        (1.0, TypeError, "backlog must be an int or None, not float"),
        ([], TypeError, "backlog must be an int or None, not list"),
    ],
)
def test_a_wrong_backlog_is_named(backlog: Any, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        harken.listen("127.0.0.1:0", backlog=backlog)


# ---------------------------------------------------------------------------- options


@pytest.mark.parametrize("host", LOOPBACKS)
def test_nagle_is_off_on_the_listener_and_on_what_it_accepts(host: str) -> None:
    with harken.listen(bind_text(host)) as listeners:
        assert listeners[0].getsockopt(IPPROTO_TCP, TCP_NODELAY) != 0
        with socket.create_connection((host, listeners.port), timeout=10):
            connection, _ = listeners[0].accept()
            with connection:
                assert connection.getsockopt(IPPROTO_TCP, TCP_NODELAY) != 0


@pytest.mark.parametrize("host", LOOPBACKS)
def test_no_child_inherits_a_listener_or_what_it_accepts(host: str) -> None:
    with harken.listen(bind_text(host)) as listeners:
        assert not listeners[0].get_inheritable()
        with socket.create_connection((host, listeners.port), timeout=10):
            connection, _ = listeners[0].accept()
            with connection:
                assert not connection.get_inheritable()
        (sock,) = listeners.sockets()
        with sock:
            assert not sock.get_inheritable()


@posix_only
def test_posix_reuses_an_address_in_time_wait() -> None:
    with harken.listen("127.0.0.1:0") as listeners:
        assert listeners[0].getsockopt(SOL_SOCKET, SO_REUSEADDR) != 0


@windows_only
def test_windows_holds_an_address_alone() -> None:
    with harken.listen("127.0.0.1:0") as listeners:
        assert listeners[0].getsockopt(SOL_SOCKET, SO_REUSEADDR) == 0
        assert listeners[0].getsockopt(SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE) != 0  # type: ignore[attr-defined,unused-ignore]


@pytest.mark.parametrize("host", LOOPBACKS)
@posix_only
def test_a_server_that_closed_first_can_start_again_at_once(host: str) -> None:
    with harken.listen(bind_text(host)) as listeners:
        port = listeners.port
        with socket.create_connection((host, port), timeout=10) as client:
            connection, _ = listeners[0].accept()
            connection.close()  # the side that closes first keeps the address in TIME_WAIT
            assert client.recv(1) == b""
    with harken.listen(bind_text(host, port)) as listeners:
        echo_once(listeners[0], host)


@pytest.mark.parametrize("host", LOOPBACKS)
def test_a_port_that_was_closed_can_be_had_again(host: str) -> None:
    with harken.listen(bind_text(host)) as listeners:
        port = listeners.port
    for _ in range(3):
        with harken.listen(bind_text(host, port)) as listeners:
            assert listeners.port == port


# ---------------------------------------------------------------------------- Listener and Listeners


@pytest.mark.parametrize("host", LOOPBACKS)
def test_the_url_is_a_bind_for_the_same_address(host: str) -> None:
    with harken.listen(bind_text(host)) as listeners:
        url, address = listeners[0].url, listeners[0].address
        assert url == f"tcp://{bind_text(host, listeners.port)}"
        assert str(listeners[0]) == url
        assert repr(listeners[0]) == f"<harken.Listener {url}>"
        assert repr(listeners) == f"<harken.Listeners {url}>"
    with harken.listen(url) as again:
        assert again[0].address == address


@linux_only
def test_the_url_of_a_link_local_address_has_its_interface(poison: Poison) -> None:
    program = """
        from harken._listener import url_of
        import socket
        lo = socket.if_nametoindex("lo")
        url = url_of(("fe80::1", 80, 0, lo))
        again = harken.getaddrinfo("fe80::1%lo", 80)[0].sockaddr
        tell(url=url, far=url_of(("fe80::1", 80, 0, 999999)), same=again == ("fe80::1", 80, 0, lo))
    """
    said = poison.run(program).said
    assert said == {"url": "tcp://[fe80::1%lo]:80", "far": "tcp://[fe80::1%999999]:80", "same": True}


def test_listeners_are_a_sequence() -> None:
    with harken.listen("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0") as listeners:
        assert len(listeners) == 3
        first, second, third = listeners
        assert listeners[0] is first
        assert listeners[-1] is third
        assert listeners[1:] == (second, third)
        assert list(reversed(listeners)) == [third, second, first]
        assert second in listeners
        assert listeners.index(third) == 2
        assert all(isinstance(one, harken.Listener) and isinstance(one, harken.Socket) for one in listeners)


def test_leaving_the_block_closes_all_also_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), harken.listen("127.0.0.1:0", "127.0.0.1:0") as listeners:
        ports = [listener.port for listener in listeners]
        1 / 0  # noqa: B018
    assert all(refused("127.0.0.1", port) for port in ports)
    assert [listener.fileno() for listener in listeners] == [-1, -1]


def test_closed_is_a_state_and_no_accident() -> None:
    listeners = harken.listen("127.0.0.1:0")
    (listener,) = listeners
    listeners.close()
    listeners.close()
    listener.close()
    assert listener.state == str(listener) == "closed"
    assert repr(listener) == "<harken.Listener closed>"
    assert repr(listeners) == "<harken.Listeners closed>"
    for use in ("address", "port", "url", "backlog"):
        with pytest.raises(OSError, match=CLOSED):
            getattr(listener, use)
    for call in (listener.accept, listener.accept_many, listener.stats, listener.to_socket, listeners.sockets):
        with pytest.raises(OSError, match=CLOSED):
            call()


def test_dropped_listeners_are_closed_with_a_warning() -> None:
    with pytest.warns(ResourceWarning, match="unclosed"):
        port = harken.listen("127.0.0.1:0").port
    assert refused("127.0.0.1", port)


@pytest.mark.parametrize("host", LOOPBACKS)
def test_sockets_are_the_standard_librarys_own(host: str) -> None:
    listeners = harken.listen(bind_text(host), "127.0.0.1:0")
    addresses = [listener.address for listener in listeners]
    sockets = listeners.sockets()
    try:
        assert all(isinstance(sock, socket.socket) for sock in sockets)
        assert [sock.getsockname() for sock in sockets] == addresses
        assert [sock.proto for sock in sockets] == [socket.IPPROTO_TCP] * 2
        assert [sock.type for sock in sockets] == [socket.SOCK_STREAM] * 2
        assert [sock.gettimeout() for sock in sockets] == [None, None]
        assert [listener.state for listener in listeners] == ["closed", "closed"]  # the handles have moved
        listeners.close()
        with socket.create_connection((host, addresses[0][1]), timeout=10):
            connection, _ = sockets[0].accept()
            connection.close()
    finally:
        for sock in sockets:
            sock.close()


def test_a_listener_cannot_be_copied() -> None:
    with harken.listen("127.0.0.1:0") as listeners:
        for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="cannot pickle"):
                duplicate(listeners[0])


def test_several_threads_may_accept_from_one_listener() -> None:
    served = threading.Semaphore(0)
    with harken.listen("127.0.0.1:0") as listeners:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listeners[0].accept()[0].close()
                    served.release()

        threads = [threading.Thread(target=serve) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(40):
            socket.create_connection(("127.0.0.1", listeners.port), timeout=10).close()
        for _ in range(40):
            assert served.acquire(timeout=10)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_a_listener_blocks_at_first_and_can_be_told_not_to() -> None:
    with harken.listen("127.0.0.1:0") as listeners:
        assert listeners[0].gettimeout() is None
        listeners[0].settimeout(0.01)
        with pytest.raises(TimeoutError):
            listeners[0].accept()
        listeners[0].setblocking(False)
        with pytest.raises(BlockingIOError):
            listeners[0].accept()
        assert listeners[0].accept_many() == []


# ---------------------------------------------------------------------------- refusals, before there is a socket


@pytest.mark.parametrize("wrong", ["nonsense", ":65536", "::1:80", "http://:80", 70000, -1])
@linux_only
def test_what_cannot_be_read_is_refused_before_there_is_a_socket(poison: Poison, wrong: str | int) -> None:
    report = poison.run(
        f"""
        for binds in (["127.0.0.1:0", {wrong!r}], [{wrong!r}, "127.0.0.1:0"]):
            try:
                harken.listen(*binds)
            except ValueError as error:
                tell(text=str(error))
        """
    )
    assert report.said["text"].startswith("bind ")
    assert report.calls["socket"] == report.calls["getaddrinfo"] == 0


def test_nothing_to_listen_on_is_refused() -> None:
    with pytest.raises(TypeError, match="at least one bind"):
        harken.listen()


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="backlogg"):
        harken.listen("127.0.0.1:0", backlogg=5)  # type: ignore[call-arg]


@pytest.mark.parametrize("host", ["a\0b", "x" * 64, "é" * 70, "\udc80"])
def test_a_host_that_can_be_no_name_is_a_value_error_and_closes_the_others(host: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the argument may stand in a note
        harken.listen("127.0.0.1:0", f"{host}:0")
    told = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert "host" in told or told.startswith(f"bind {host + ':0'!r}: ")


# ---------------------------------------------------------------------------- errors, with real sockets


@pytest.mark.parametrize("host", LOOPBACKS)
def test_a_port_in_use_is_told_with_step_and_address(host: str) -> None:
    with taken_port(host) as port, pytest.raises(ListenError) as caught:
        harken.listen(bind_text(host, port))
    error = caught.value
    assert error.step == "bind"
    assert error.address[:2] == (host, port)
    assert error.errno in TAKEN
    assert str(error).startswith(f"bind({bind_text(host, port)}): [")
    assert f"{error.winerror if WINDOWS else error.errno}]" in str(error)  # type: ignore[attr-defined,unused-ignore]


def test_when_the_second_is_in_use_the_first_is_closed() -> None:
    with harken.listen("127.0.0.1:0") as listeners:
        free = listeners.port
    with taken_port() as port, pytest.raises(ListenError) as caught:
        harken.listen(f"127.0.0.1:{free}", f"127.0.0.1:{port}")
    assert caught.value.address == ("127.0.0.1", port)
    assert refused("127.0.0.1", free)


@needs_ipv6
def test_when_the_port_is_in_use_on_one_family_the_other_is_closed() -> None:
    with harken.listen(":0") as listeners:
        free = listeners.port  # on both
    with taken_port("::1", free) as port, pytest.raises(ListenError) as caught:
        harken.listen(f"0.0.0.0:{port}", f"[::1]:{port}")
    assert caught.value.address[0] == "::1"
    assert refused("127.0.0.1", port)


def test_an_address_that_is_not_here_is_told() -> None:
    with pytest.raises(ListenError) as caught:
        harken.listen("192.0.2.77:0")
    assert (caught.value.step, caught.value.address) == ("bind", ("192.0.2.77", 0))
    assert caught.value.errno == errno.EADDRNOTAVAIL


@needs_ipv6
def test_a_family_that_the_address_has_not_is_told() -> None:
    with pytest.raises(socket.gaierror) as caught:
        harken.listen("tcp4://[::1]:0")
    assert isinstance(caught.value, ListenError)
    assert (caught.value.step, caught.value.address) == ("getaddrinfo", "tcp4://[::1]:0")


def test_an_unknown_service_is_told() -> None:
    with pytest.raises(socket.gaierror, match=r"^getaddrinfo\(127\.0\.0\.1:no-such-service\): ") as caught:
        harken.listen("127.0.0.1:no-such-service")
    assert isinstance(caught.value, ListenError)
    assert caught.value.errno in (socket.EAI_SERVICE, socket.EAI_NONAME)
    assert caught.value.address == "127.0.0.1:no-such-service"


def test_harken_names_the_error_class() -> None:
    assert harken.ListenError is ListenError
    assert issubclass(ListenError, OSError)


def through_pickle(error: ListenError) -> ListenError:
    copied: ListenError = pickle.loads(pickle.dumps(error))
    return copied


REASONS = [
    OSError(errno.EADDRINUSE, "in use"),
    PermissionError(errno.EACCES, "not allowed"),
    socket.gaierror(socket.EAI_NONAME, "no such name"),
    ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
]
if sys.platform == "win32":
    REASONS.append(OSError(errno.EADDRINUSE, "in use", None, 10048))


@pytest.mark.parametrize("address", [("127.0.0.1", 80), ("::1", 80, 0, 0), "localhost:80"])
@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: type(reason).__name__)
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, through_pickle, lambda it: it])
def test_an_error_keeps_all_that_it_tells_when_it_is_copied(duplicate: Any, reason: OSError, address: Any) -> None:
    error = duplicate(failure("bind", address, reason))
    assert isinstance(error, ListenError)
    assert isinstance(error, type(reason))
    assert (error.step, error.address) == ("bind", address)
    assert (error.errno, error.strerror) == (reason.errno, reason.strerror)
    assert getattr(error, "winerror", None) == getattr(reason, "winerror", None)
    shown = {"127.0.0.1": "127.0.0.1:80", "::1": "[::1]:80"}.get(address[0], address)
    assert str(error).splitlines()[0] == f"bind({shown}): {reason}"


def test_each_class_of_error_is_made_once() -> None:
    first, second = (failure("bind", "x", PermissionError(13, "no")) for _ in range(2))
    assert type(first) is type(second)
    assert type(failure("bind", "x", OSError(errno.EINVAL, "x"))) is ListenError
    assert type(failure("bind", "x", OSError(errno.EADDRINUSE, "x"))) is harken.AddressInUseError


def test_an_error_that_somebody_else_made_can_be_shown_and_copied() -> None:
    error = ListenError(errno.EADDRINUSE, "in use")
    assert "in use" in str(error)
    assert through_pickle(error).errno == errno.EADDRINUSE


# ---------------------------------------------------------------------------- errors, each step poisoned


THREE = "three=127.0.0.1,127.0.0.2,127.0.0.3"
BINDS = {"one name": ('"three:0"',), "three binds": ('"127.0.0.1:0"', '"127.0.0.2:0"', '"127.0.0.3:0"')}
# For each address: one socket(), SO_REUSEADDR and TCP_NODELAY, one bind(), one listen().
STEPS = [
    ("socket", 1, errno.EMFILE, "OSError"),
    ("socket", 1, errno.EACCES, "PermissionError"),
    ("setsockopt", 2, errno.ENOPROTOOPT, "OSError"),
    ("setsockopt", 2, errno.EPERM, "PermissionError"),
    ("bind", 1, errno.EACCES, "PermissionError"),
    ("bind", 1, errno.EADDRNOTAVAIL, "OSError"),
    pytest.param("listen", 1, errno.EADDRINUSE, "OSError", marks=pytest.mark.needs_sock_diag),
    ("listen", 1, errno.ENOBUFS, "OSError"),
]


@linux_only
@pytest.mark.parametrize("which", [1, 2, 3])
@pytest.mark.parametrize(("step", "calls", "number", "kind"), STEPS)
@pytest.mark.parametrize("binds", BINDS.values(), ids=BINDS)
def test_a_step_that_fails_undoes_all_before_it(
    poison: Poison, binds: tuple[str, ...], step: str, calls: int, number: int, kind: str, which: int
) -> None:
    report = poison.run(f"attempt({', '.join(binds)})", poison=f"{step}:{which * calls}:{number}", hosts=THREE)
    assert report.failures[step] == 1
    assert report.said["step"] == step
    assert report.said["address"][0] == f"127.0.0.{which}"
    assert report.said["errno"] == number
    assert {"ListenError", kind} <= set(report.said["kinds"])
    assert report.said["text"].startswith(f"{step}(127.0.0.{which}:")
    # All is given back by the time that the error is there, not only when the program ends.
    assert (report.said["open"], report.said["lists"]) == (0, 0)
    assert report.calls["close"] == report.calls["socket"] - report.failures["socket"]
    assert report.calls["listen"] == (which if step == "listen" else 0)


@linux_only
@pytest.mark.parametrize(("which", "address"), [(3, "::1"), (4, "::1"), (5, "::1")])
def test_each_option_of_ipv6_that_fails_is_told(poison: Poison, which: int, address: str) -> None:
    report = poison.run('attempt("pair:0")', poison=f"setsockopt:{which}:92", hosts="pair=127.0.0.1,::1")
    assert (report.said["step"], report.said["address"][0]) == ("setsockopt", address)
    assert (report.said["open"], report.said["lists"]) == (0, 0)


@linux_only
@pytest.mark.parametrize(
    ("binds", "poisoned", "address", "code"),
    [
        ('"three:0"', f"getaddrinfo:1:{socket.EAI_MEMORY}", "three:0", socket.EAI_MEMORY),  # as a number
        ('"three:0"', f"getaddrinfo:2:{socket.EAI_AGAIN}", "three:0", socket.EAI_AGAIN),  # as a name
        ('"127.0.0.1:0"', f"getaddrinfo:1:{socket.EAI_MEMORY}", "127.0.0.1:0", socket.EAI_MEMORY),
        ('"127.0.0.1:0", "three:0"', f"getaddrinfo:3:{socket.EAI_FAIL}", "three:0", socket.EAI_FAIL),
        ('"three:0", "127.0.0.9:0"', f"getaddrinfo:3:{socket.EAI_FAIL}", "127.0.0.9:0", socket.EAI_FAIL),
        ('":0"', f"getaddrinfo:1+:{socket.EAI_FAMILY}", ":0", socket.EAI_FAMILY),
        ('":0"', f"getaddrinfo:2:{socket.EAI_MEMORY}", ":0", socket.EAI_MEMORY),
        ("0", f"getaddrinfo:1:{socket.EAI_MEMORY}", ":0", socket.EAI_MEMORY),
    ],
)
def test_a_resolver_that_fails_undoes_all_before_it(
    poison: Poison, binds: str, poisoned: str, address: str, code: int
) -> None:
    report = poison.run(f"attempt({binds})", poison=poisoned, hosts=THREE)
    assert (report.said["step"], report.said["address"], report.said["errno"]) == ("getaddrinfo", address, code)
    assert {"ListenError", "gaierror"} <= set(report.said["kinds"])
    assert (report.said["open"], report.said["lists"]) == (0, 0)
    assert report.calls["close"] == report.calls["socket"]


@linux_only
def test_a_system_error_of_the_resolver_is_told(poison: Poison) -> None:
    report = poison.run('attempt("three:0")', poison=f"getaddrinfo:2:{socket.EAI_SYSTEM}:{errno.EMFILE}", hosts=THREE)
    assert (report.said["step"], report.said["errno"]) == ("getaddrinfo", errno.EMFILE)
    assert "gaierror" not in report.said["kinds"]


@linux_only
@pytest.mark.parametrize(
    ("poisoned", "left", "left_out", "number"),
    [
        ("socket:1:97", "::", "0.0.0.0", errno.EAFNOSUPPORT),
        ("socket:2:97", "0.0.0.0", "::", errno.EAFNOSUPPORT),
        ("bind:2:99", "0.0.0.0", "::", errno.EADDRNOTAVAIL),
    ],
)
@pytest.mark.parametrize("bind", [":0", "both:0"])
def test_a_family_that_this_machine_has_not_is_left_out_and_told(
    poison: Poison, bind: str, poisoned: str, left: str, left_out: str, number: int
) -> None:
    report = poison.run(f"attempt({bind!r})", poison=poisoned, hosts="both=0.0.0.0,::")
    assert report.said["hosts"] == [left]
    assert [(address[0], why) for address, why in report.said["left_out"]] == [(left_out, number)]
    assert report.calls["sockets"] == report.calls["lists"] == 0


@linux_only
@pytest.mark.parametrize(
    ("poisoned", "step", "number"),
    [
        ("socket:1+:97", "socket", errno.EAFNOSUPPORT),
        ("socket:1:97,bind:1:99", "bind", errno.EADDRNOTAVAIL),
    ],
)
def test_when_no_family_is_there_it_is_an_error(poison: Poison, poisoned: str, step: str, number: int) -> None:
    report = poison.run('attempt(":0")', poison=poisoned)
    assert (report.said["step"], report.said["errno"]) == (step, number)
    assert report.said["address"][0] == "::"
    assert (report.said["open"], report.said["lists"]) == (0, 0)


@linux_only
@pytest.mark.parametrize(
    ("bind", "poisoned"),
    [
        ("[::1]:0", "socket:1:97"),  # asked for by name: there is nothing else that would do
        ("tcp6://:0", "socket:1:97"),
        (":0", "socket:2:24"),  # out of descriptors is no lack of a family
        (":0", "bind:2:13"),
        ("far:0", "bind:2:99"),  # an address that is elsewhere is a mistake
        ("near:0", "bind:2:99"),
    ],
)
def test_other_failures_are_not_left_out(poison: Poison, bind: str, poisoned: str) -> None:
    report = poison.run(f"attempt({bind!r})", poison=poisoned, hosts="far=127.0.0.1,2001:db8::1 near=127.0.0.1,::2")
    step, _, number = poisoned.split(":")
    assert (report.said["step"], report.said["errno"]) == (step, int(number))
    assert (report.said["open"], report.said["lists"]) == (0, 0)


@linux_only
@pytest.mark.parametrize("binds", ['":0"', '"three:0"'])
def test_a_number_that_one_address_has_not_is_drawn_again(poison: Poison, binds: str) -> None:
    report = poison.run(f"attempt({binds})", poison="bind:2:98,bind:4:98", hosts=THREE)
    assert report.failures["bind"] == 2
    assert len(set(report.said["ports"])) == 1
    assert len(report.said["hosts"]) == (3 if "three" in binds else 2)
    assert report.calls["sockets"] == report.calls["lists"] == 0


@linux_only
def test_drawing_again_has_an_end(poison: Poison) -> None:
    report = poison.run('attempt(":0")', poison="bind:2*:98")
    assert (report.said["step"], report.said["errno"], report.said["address"][0]) == ("bind", errno.EADDRINUSE, "::")
    assert report.failures["bind"] > 100
    assert (report.said["open"], report.said["lists"]) == (0, 0)


@linux_only
def test_a_number_that_was_asked_for_is_not_drawn_again(poison: Poison) -> None:
    report = poison.run('attempt(":27015")', poison="bind:1+:98")
    assert (report.failures["bind"], report.said["errno"]) == (1, errno.EADDRINUSE)
    assert report.said["address"] == ["0.0.0.0", 27015]


@linux_only
def test_a_late_listen_that_fails_is_told_with_step_and_address(poison: Poison) -> None:
    program = """
with harken.bind("127.0.0.1:0", "127.0.0.1:0") as listeners:
    try:
        listeners.listen()
    except harken.AddressInUseError as error:
        tell(step=error.step, same=error.address == listeners[0].address)
    listeners.listen()
listeners.close()
try:
    listeners[0].listen()
except OSError as error:
    assert error.errno == errno.EBADF and not isinstance(error, harken.ListenError)
"""
    assert poison.run(program, poison=f"listen:1:{errno.EADDRINUSE}").said == {"step": "listen", "same": True}


@linux_only
def test_after_a_failed_listen_nobody_is_let_in(poison: Poison) -> None:
    report = poison.run(
        """
        import socket
        with harken.listen("127.0.0.1:0") as listeners:
            port = listeners.port
        attempt(f"127.0.0.1:{port}", "127.0.0.2:0", "127.0.0.3:0")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5)
        except ConnectionRefusedError:
            tell(refused=True)
        """,
        poison=f"listen:4:{errno.ENOBUFS}",
    )
    assert report.said["step"] == "listen"
    assert report.said["refused"]


# ---------------------------------------------------------------------------- plans


def test_each_listener_has_a_plan_however_it_came_about() -> None:
    with (
        harken.listen("127.0.0.1:0", "127.0.0.1:0?ttl=9", backlog=7) as (plain, tuned),
        harken.Listener(socket.AF_INET, socket.SOCK_STREAM) as made,
        plain.dup() as twin,
        harken.adopt(socket.create_server(("127.0.0.1", 0))) as adopted,
    ):
        assert [dict(one.options) for one in (plain, tuned, twin, made, adopted)] == [
            {"backlog": 7}, {"backlog": 7, "ttl": 9}, {"backlog": 7}, {}, {},
        ]  # fmt: skip
        with harken.adopt(tuned) as moved:
            assert (moved.plan, dict(moved.options)) == (tuned.plan, {"backlog": 7, "ttl": 9})
        assert repr(tuned.plan) == "<Plan backlog=7, ttl=9>"
        assert (repr(made.plan), repr(plain.plan)) == ("<Plan with no options>", "<Plan backlog=7>")


@pytest.mark.parametrize("call", [harken.listen, harken.bind])
def test_binds_with_and_without_options_are_opened_in_one_order(call: Any) -> None:
    asked = ["127.0.0.1:0", "127.0.0.1:0?ttl=9", "tcp4://localhost:0", ":0"]
    with call(*asked) as listeners:
        hosts = [one.address[0] for one in listeners]
        assert hosts[:3] == ["127.0.0.1"] * 3
        assert set(hosts[3:]) <= {"0.0.0.0", "::"}
        assert [dict(one.options) for one in listeners[:3]] == [{}, {"ttl": 9}, {}]
        assert {one.state for one in listeners} == {"listening" if call is harken.listen else "bound"}


def test_only_those_beside_which_something_was_left_out_keep_a_list() -> None:
    with harken.listen("127.0.0.1:0") as listeners:
        assert listeners.left_out == ()
        assert vars(listeners) == {}
