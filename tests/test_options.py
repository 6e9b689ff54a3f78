"""Every option: what is asked for, what the system then says, what connections have of it, and what it does.

The numbers of the options stand here once more, so that a wrong one in platform/on_linux.h cannot agree with itself.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.machinery
import importlib.util
import inspect
import io
import os
import pickle
import select
import socket
import warnings
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from wire import clients, fails, fill, python

import children
import harken
import harken.asyncio
from harken import Options, _option_table
from harken._option_kinds import Whole
from harken._option_table import ANY_TCP, INHERITED, NOT_HERE, PATH, TABLE
from harken._system import OPTIONS, SYSTEM
from machine import (
    HAS_IPV6,
    LINUX,
    LOOPBACKS,
    WINDOWS,
    bind_text,
    linux_only,
    needs_ipv6,
    posix_only,
    wine_lacks,
)

if TYPE_CHECKING:
    from poison import Poison

pytest_plugins = ["poison"]
# Not in force as it was asked for, which is what test_in_force.py is about: by the setting of this machine, and of TCP.
pytestmark = pytest.mark.filterwarnings("ignore:.*(fastopen=9 does nothing|tos=186 was asked for):RuntimeWarning")

IP, IPV6, TCP, SOCKET = socket.IPPROTO_IP, socket.IPPROTO_IPV6, socket.IPPROTO_TCP, socket.SOL_SOCKET
NUMBER = tuple[int, int]
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
HAS_UNIX = hasattr(socket, "AF_UNIX")


class Case(NamedTuple):
    """An option, a value for it, and what getsockopt(2) says afterwards."""

    value: Any
    ipv4: NUMBER
    ipv6: NUMBER | None = None
    """Where it is not the same."""
    told: Any = None
    """What the system makes of the value."""
    raw: Any = None
    """As getsockopt(2) has it."""
    accepted: Any = None
    """On a connection; False for what is the listener's alone."""

    def number(self, host: str) -> NUMBER:
        return self.ipv6 if self.ipv6 and ":" in host else self.ipv4

    def of_listener(self) -> Any:
        return self.raw if self.raw is not None else self.value if self.told is None else self.told

    def of_connection(self) -> Any:
        return self.of_listener() if self.accepted is None else self.accepted


_DARWIN_IDLE = getattr(socket, "TCP_KEEPALIVE", 0x10)
ANYWHERE = {
    "nodelay": Case(False, (TCP, socket.TCP_NODELAY)),
    "keepalive": Case(True, (SOCKET, socket.SO_KEEPALIVE)),
    "rcvbuf": Case(50_000, (SOCKET, socket.SO_RCVBUF), raw=100_000 if LINUX else None),
    "sndbuf": Case(50_000, (SOCKET, socket.SO_SNDBUF), raw=100_000 if LINUX else None),
    "ttl": Case(33, (IP, socket.IP_TTL), (IPV6, socket.IPV6_UNICAST_HOPS)),
    "keepalive_idle": Case(77, (TCP, getattr(socket, "TCP_KEEPIDLE", _DARWIN_IDLE))),
    "keepalive_interval": Case(13, (TCP, getattr(socket, "TCP_KEEPINTVL", -1))),
    "keepalive_count": Case(5, (TCP, getattr(socket, "TCP_KEEPCNT", -1))),
}
ON_LINUX = {  # with its numbers, in include/uapi/linux and asm-generic
    "user_timeout": Case(7777, (TCP, 18)),
    "defer_accept": Case(5, (TCP, 9), told=7, accepted=False),  # the times of its handshake: 1, 3, 7 seconds
    "fastopen": Case(9, (TCP, 23), accepted=False),
    "freebind": Case(True, (IP, 15), (IPV6, 78)),
    "transparent": Case(True, (IP, 19), (IPV6, 75)),
    "interface": Case("lo", (SOCKET, 25)),
    "mark": Case(0xFFFFFFFE, (SOCKET, 36), raw=-2),
    "tos": Case(0xBA, (IP, 1), (IPV6, 67), told=0xB8),  # the lower two bits are ECN's
    "mss": Case(900, (TCP, 2), accepted=888),  # without the timestamps in each segment
    "congestion": Case("reno", (TCP, 13)),
    "priority": Case(5, (SOCKET, 12)),
    "incoming_cpu": Case(0, (SOCKET, 49), accepted=False),
    "busy_poll": Case(50, (SOCKET, 46)),
    "reuse_port": Case(True, (SOCKET, 15)),
}
CASES = ANYWHERE | ON_LINUX
HERE = {name: case for name, case in CASES.items() if LINUX or (name in ANYWHERE and name in OPTIONS)}
PRIVILEGED = {"mark", "transparent", "busy_poll"}
NOT_UNDER_WINE = {"keepalive_idle", "keepalive_interval", "keepalive_count"}


def the_options(*left_out: str) -> list[Any]:
    found = []
    for name in HERE:
        if name in left_out:
            continue
        marks = [wine_lacks("TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT: 10042")] if name in NOT_UNDER_WINE else []
        if name in PRIVILEGED and not IS_ROOT:
            marks = [pytest.mark.skip(reason=f"{name} needs CAP_NET_ADMIN")]
        if name in ("mark", "incoming_cpu", "busy_poll", "transparent", "congestion", "interface"):
            marks = [*marks, pytest.mark.needs_socket_options]
        found.append(pytest.param(name, marks=marks))
    return found


def as_query(name: str, value: Any) -> str:
    return f"?{name}={int(value) if isinstance(value, bool) else value}"


def opened(how: str, call: Callable[..., harken.Listeners], bind: str, name: str) -> harken.Listeners:
    value = CASES[name].value
    return call(bind, **{name: value}) if how == "keyword" else call(bind + as_query(name, value))


def read(sock: Any, number: NUMBER, like: Any) -> Any:
    """An option as a socket of the standard library reads it, in the type of ``like``."""
    if isinstance(like, str):
        return sock.getsockopt(*number, 16).partition(b"\0")[0].decode()
    told = sock.getsockopt(*number)
    return bool(told) if isinstance(like, bool) else told


@contextlib.contextmanager
def accepted(listener: harken.Listener, host: str) -> Iterator[list[socket.socket]]:
    """Two connections as the standard library's sockets, one from accept(), one from accept_many(); and the client."""
    with clients((host, listener.port), 2) as (one, two):
        for client in (one, two):
            client.sendall(b"hello")  # which some listeners wait for
        first, _ = listener.accept()
        (second,) = listener.accept_many(1)
        with first.to_socket() as first_connection, second.to_socket() as second_connection:
            yield [first_connection, second_connection]


@pytest.mark.parametrize("how", ["keyword", "query"])
@pytest.mark.parametrize("host", LOOPBACKS)
@pytest.mark.parametrize("name", the_options())
def test_it_is_set_and_read_back_and_connections_have_it(name: str, host: str, how: str) -> None:
    case = CASES[name]
    number = case.number(host)
    with opened(how, harken.listen, bind_text(host), name) as (listener,):
        assert dict(listener.options) == {name: case.value if case.told is None else case.told}
        with listener.dup().to_socket() as same:
            assert read(same, number, case.value) == case.of_listener()
        with accepted(listener, host) as connections:
            for connection in connections if case.accepted is not False else []:
                assert read(connection, number, case.value) == case.of_connection()


@pytest.mark.parametrize("host", LOOPBACKS)
@pytest.mark.parametrize("name", the_options())
def test_what_is_held_has_it_too_and_keeps_it_when_it_listens(name: str, host: str) -> None:
    case = CASES[name]
    with harken.bind(bind_text(host), **{name: case.value}) as listeners:
        (listener,) = listeners
        with listener.dup().to_socket() as same:
            assert read(same, case.number(host), case.value) == case.of_listener()
        listeners.listen()
        assert dict(listener.options) == {name: case.value if case.told is None else case.told}
        with accepted(listener, host) as connections:
            for connection in connections if case.accepted is not False else []:
                assert read(connection, case.number(host), case.value) == case.of_connection()


@pytest.mark.parametrize("host", LOOPBACKS)
@pytest.mark.parametrize("name", the_options())
def test_what_is_held_and_handed_over_has_it_too(name: str, host: str) -> None:
    """Another server calls listen() then, which knows nothing of options."""
    case = CASES[name]
    with harken.bind(bind_text(host), **{name: case.value}, inheritable=True) as listeners:
        (sock,) = listeners.sockets()
    with sock:
        sock.listen()
        assert sock.get_inheritable()
        assert read(sock, case.number(host), case.value) == case.of_listener()
        with socket.create_connection(sock.getsockname()[:2], timeout=10) as client:
            client.sendall(b"not before there is data, for defer_accept")
            with sock.accept()[0] as connection:
                if case.accepted is not False:
                    assert read(connection, case.number(host), case.value) == case.of_connection()


@pytest.mark.needs_socket_options
def test_all_of_them_at_once_on_a_held_range() -> None:
    chosen = {
        name: case.value
        for name, case in HERE.items()
        if name not in PRIVILEGED | NOT_UNDER_WINE and name not in ("interface", "reuse_port")
    }
    with harken.bind("127.0.0.1:20000-29000", **chosen, inheritable=True, backlog=9) as listeners:
        assert listeners[0].get_inheritable()
        listeners.listen()
        told = {name: case.value if case.told is None else case.told for name, case in HERE.items() if name in chosen}
        assert dict(listeners[0].options) == told | {"inheritable": True, "backlog": 9}
        with listeners[0].dup().to_socket() as same:
            for name in chosen:
                assert read(same, CASES[name].ipv4, CASES[name].value) == CASES[name].of_listener()


@linux_only
@needs_ipv6
def test_a_socket_of_both_families_has_it_for_both() -> None:
    names = ["tos", "ttl", "freebind"]
    with (
        harken.listen(":0", ipv6_only=False, **{name: CASES[name].value for name in names}) as (listener,),
        listener.dup().to_socket() as same,
        accepted(listener, "127.0.0.1") as (first, second),
        accepted(listener, "::1") as (third, fourth),
    ):
        for name in names:
            case = CASES[name]
            assert case.ipv6 is not None
            for number, socks in ((case.ipv4, (same, first, second)), (case.ipv6, (same, third, fourth))):
                assert [read(sock, number, case.value) for sock in socks] == [case.of_listener()] * 3


def test_a_name_has_it_on_all_its_addresses() -> None:
    with harken.listen("localhost:0", ":0", ttl=CASES["ttl"].value) as listeners:
        assert [listener.options["ttl"] for listener in listeners] == [CASES["ttl"].value] * len(listeners)


def test_nothing_asked_for_is_nothing_told() -> None:
    with harken.listen("127.0.0.1:0") as (listener,), harken.bind(":0") as held:
        assert [dict(one.options) for one in (listener, *held)] == [{}] * (1 + len(held))


# ---------------------------------------------------------------------------- what connections inherit


@linux_only
@pytest.mark.parametrize("host", LOOPBACKS)
@pytest.mark.parametrize("name", the_options())
def test_the_table_knows_what_connections_inherit(name: str, host: str) -> None:
    """Measured without harken: what Linux passes on, and what it does not."""
    case, number = CASES[name], CASES[name].number(host)
    value = case.value.encode() if isinstance(case.value, str) else case.raw if case.raw == -2 else int(case.value)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener, socket.socket(family) as client:
        untouched = read(client, number, case.value)
        listener.setsockopt(*number, value)
        listener.bind((host, 0))
        listener.listen()
        client.connect(listener.getsockname())
        client.sendall(b"hello")
        connection, _ = listener.accept()
        with connection:
            inherits = OPTIONS[name][2]
            if name == "incoming_cpu":
                assert not inherits  # it is a reading there: the CPU that the connection's packets arrive on
            elif inherits:
                assert read(connection, number, case.value) == case.of_connection()
            else:
                assert read(connection, number, case.value) == untouched


@linux_only
def test_what_connections_do_not_inherit_and_need_is_set_at_accept() -> None:
    given = {name for name, (_, _, inherits) in OPTIONS.items() if not inherits}
    assert given == {"priority", "defer_accept", "fastopen", "incoming_cpu"}  # all but one are the listener's alone
    assert given & {one.name for one in _option_table.for_connections()} == {"priority"}


@pytest.mark.needs_socket_options
@pytest.mark.parametrize("host", LOOPBACKS)
def test_where_nothing_was_inherited_all_of_it_is_set_at_accept(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """As on systems that pass on less than Linux: what the listener has is changed, the connections have it still."""
    names = [name for name in ("keepalive", "ttl", "rcvbuf", "congestion") if name in HERE]
    for name in names:
        monkeypatch.setitem(OPTIONS, name, (*OPTIONS[name][:2], False))
    with harken.listen(bind_text(host), **{name: CASES[name].value for name in names}) as (listener,):
        listener.setsockopt(SOCKET, socket.SO_KEEPALIVE, 0)
        listener.setsockopt(*CASES["ttl"].number(host), 44)
        listener.setsockopt(SOCKET, socket.SO_RCVBUF, 90_000)
        if LINUX:
            other = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control").read_text().split()[-1]
            listener.setsockopt(TCP, 13, other.encode())
        with accepted(listener, host) as connections:
            for connection in connections:
                for name in names:
                    case = CASES[name]
                    assert read(connection, case.number(host), case.value) == case.of_connection()


@pytest.mark.skipif(not HAS_UNIX or WINDOWS, reason="Python has no AF_UNIX here")
def test_connections_of_a_unix_socket_have_its_buffers(tmp_path: Path) -> None:
    path = os.path.relpath(tmp_path / "s")
    with harken.Socket(harken.AF_UNIX, harken.SOCK_STREAM, 0) as made:
        made.bind(path)
        made.listen()
        given = made.detach()
    with harken.listen(f"fd://{given}", rcvbuf=50_000, sndbuf=60_000) as (listener,):
        assert dict(listener.options) == {"rcvbuf": 50_000, "sndbuf": 60_000}
        for accept in (lambda: listener.accept()[0], lambda: listener.accept_many()[0]):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                with accept().to_socket() as connection:
                    factor = 2 if LINUX else 1
                    assert connection.getsockopt(SOCKET, socket.SO_RCVBUF) == 50_000 * factor
                    assert connection.getsockopt(SOCKET, socket.SO_SNDBUF) == 60_000 * factor


OF_PATHS: dict[str, tuple[Any, str]] = {
    "backlog": (7, "7"),
    "inheritable": (True, "1"),
    "exclusive": (True, "1"),
    "rcvbuf": (50_000, "50000"),
    "sndbuf": (60_000, "60000"),
    "mode": (0o640, "640"),
    "owner": (os.getuid() if hasattr(os, "getuid") else 0, str(os.getuid() if hasattr(os, "getuid") else 0)),
    "group": (os.getgid() if hasattr(os, "getgid") else 0, str(os.getgid() if hasattr(os, "getgid") else 0)),
    "configure": (lambda *_: None, ""),
}


@pytest.mark.skipif(not HAS_UNIX or WINDOWS, reason="Python has no AF_UNIX here, or no options of paths")
@pytest.mark.parametrize("name", OF_PATHS)
def test_every_option_of_unix_sockets_is_taken_on_a_path(name: str, tmp_path: Path) -> None:
    value, text = OF_PATHS[name]
    path = os.path.relpath(tmp_path / "s")
    for call in (harken.listen, harken.bind):
        with call(f"unix:{path}", **{name: value}) as (listener,):
            assert name == "configure" or listener.options[name] == value
        if text:
            with call(f"unix:{path}?{name}={text}") as (listener,):
                assert listener.options[name] == value


@linux_only
@pytest.mark.parametrize("name", ["backlog", "inheritable", "exclusive", "rcvbuf", "sndbuf", "configure"])
def test_every_option_of_unix_sockets_is_taken_on_an_abstract_name(name: str) -> None:
    with harken.listen(f"unix:@harken-options-{os.getpid()}", **{name: OF_PATHS[name][0]}) as (listener,):
        assert name == "configure" or listener.options[name] == OF_PATHS[name][0]


def test_the_options_of_unix_sockets_are_these() -> None:
    assert set(OF_PATHS) == {name for name, one in TABLE.items() if PATH in one.binds}


def test_an_abstract_name_cannot_be_taken_over() -> None:
    for binds, options in ((["unix:@x"], {"exclusive": False}), (["unix:@x?exclusive=0"], {})):
        with pytest.raises(ValueError, match="an abstract name cannot be taken over: it is in no directory"):
            harken.listen(*binds, **options)  # type: ignore[arg-type]


@linux_only
@pytest.mark.parametrize("call", ["bind", "listen"])
def test_a_race_that_is_lost_names_reuse_port(poison: Poison, call: str) -> None:
    report = poison.run('attempt("127.0.0.1:0", reuse_port=True)', poison=f"{call}:1:98")
    assert report.said["step"] == call
    assert report.said["text"].startswith(f"{call}(127.0.0.1:")
    assert ", reuse_port=True): " in report.said["text"]


def test_a_connection_that_died_in_the_queue_is_handed_out_all_the_same() -> None:
    with harken.listen("127.0.0.1:0", ttl=33, **({"priority": 5} if LINUX else {})) as (listener,):
        for many in (False, True):
            with socket.create_connection(("127.0.0.1", listener.port)) as client:
                # RST at close: by now the connection is dead, and refuses options on some systems.
                client.setsockopt(SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0])[: 4 if WINDOWS else 8])
            with contextlib.suppress(OSError):  # some systems take it out of the queue, and have nothing to hand out
                listener.settimeout(0.2)
                (listener.accept_many()[0] if many else listener.accept()[0]).close()


# ---------------------------------------------------------------------------- what they do


@linux_only
def test_mss_is_what_the_handshake_offers() -> None:
    with harken.listen("127.0.0.1:0", mss=900) as (listener,), clients(listener.address, 1) as (client,):
        assert client.getsockopt(TCP, 2) == 888
        listener.accept()[0].close()


@pytest.mark.needs_tcp_info
@linux_only
def test_rcvbuf_is_there_in_time_for_the_handshake() -> None:
    """The scale of the window is told in the handshake, once: set after listen(2) it would have been the default's."""
    scales, room = [], []
    for options in ({"rcvbuf": 4096}, {}):
        with harken.listen("127.0.0.1:0", **options) as (listener,), socket.socket() as client:
            client.setsockopt(SOCKET, socket.SO_SNDBUF, 4096)
            client.connect(listener.address)
            with listener.accept()[0]:
                scales.append(client.getsockopt(TCP, socket.TCP_INFO, 16)[6] & 0x0F)  # tcpi_snd_wscale
                room.append(fill(client))
    assert scales[0] == 0 < scales[1]
    assert room[0] < room[1]


@linux_only
def test_sndbuf_bounds_what_waits_to_be_sent() -> None:
    room = []
    for options in ({"sndbuf": 4096}, {"sndbuf": 100_000}):
        with harken.listen("127.0.0.1:0", **options) as (listener,), socket.socket() as client:
            client.setsockopt(SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(listener.address)
            with listener.accept()[0] as connection:
                room.append(fill(connection))
    assert room[0] < room[1]


@linux_only
def test_defer_accept_hands_out_who_has_sent_something() -> None:
    with harken.listen("127.0.0.1:0", defer_accept=60) as (listener,), clients(listener.address, 2) as (mute, speaker):
        speaker.sendall(b"hello")
        connection, peer = listener.accept()
        connection.close()
        assert peer == speaker.getsockname()  # although the other had come first
        listener.setblocking(False)
        assert listener.accept_many() == []
        mute.sendall(b"hello")
        assert select.select([listener], [], [], 10)[0]
        (connection,) = listener.accept_many()
        with connection:
            assert connection.getpeername() == mute.getsockname()


@linux_only
def test_fastopen_takes_data_with_the_first_packet() -> None:
    program = """
        from pathlib import Path
        import harken
        Path("/proc/sys/net/ipv4/tcp_fastopen").write_text("3")

        def passive():
            names, numbers = [line.split() for line in open("/proc/net/netstat") if line.startswith("TcpExt:")]
            return int(numbers[names.index("TCPFastOpenPassive")])

        for options in ({}, {"fastopen": 16}):
            before = passive()
            with harken.listen("127.0.0.1:0", **options) as (listener,):
                for _ in range(3):  # the first is given a cookie, the others bring it
                    client = socket.socket()
                    client.sendto(b"ping", 0x20000000, listener.address)  # MSG_FASTOPEN
                    with client, listener.accept()[0] as connection:
                        assert connection.recv(4) == b"ping"
            tell(**{"with" if options else "without": passive() - before})
    """
    assert children.run(program, namespace=True) == {"without": 0, "with": 2}


@linux_only
@pytest.mark.parametrize(
    "name",
    [
        "freebind",
        pytest.param(
            "transparent",
            marks=[
                pytest.mark.skipif(not IS_ROOT, reason="needs CAP_NET_ADMIN"),
                pytest.mark.needs_socket_options,
            ],
        ),
    ],
)
@pytest.mark.parametrize("host", ["192.0.2.7", pytest.param("2001:db8::7", marks=needs_ipv6)])
def test_an_address_that_is_not_here_can_be_bound(host: str, name: str) -> None:
    with pytest.raises(harken.ListenError) as caught:
        harken.listen(bind_text(host), **{name: False})
    assert caught.value.errno == errno.EADDRNOTAVAIL
    with harken.listen(bind_text(host), **{name: True}) as (listener,):
        assert listener.address[0] == host


NEIGHBOUR = """
import json, socket, subprocess
print("ready", flush=True)
ports = json.loads(input())
for command in (["addr", "add", "198.51.100.2/24", "dev", "far"], ["link", "set", "far", "up"]):
    subprocess.run(["ip", *command], check=True)
found = []
for port in ports:
    with socket.socket() as client:
        client.settimeout(10)
        found.append(client.connect_ex(("198.51.100.1", port)))
print(json.dumps(found), flush=True)
"""


@linux_only
def test_an_interface_is_the_only_way_in() -> None:
    program = f"""
        import errno
        import harken
        from contextlib import ExitStack

        def ip(*words):
            subprocess.run(["ip", *words], check=True)

        command = ["unshare", "-n", sys.executable, "-c", {NEIGHBOUR!r}]
        neighbour = subprocess.Popen(command, stdin=subprocess.PIPE,
                                     stdout=subprocess.PIPE, text=True)
        assert neighbour.stdout.readline() == "ready\\n"
        ip("link", "add", "near", "type", "veth", "peer", "name", "far", "netns", str(neighbour.pid))
        ip("addr", "add", "198.51.100.1/24", "dev", "near")
        ip("link", "set", "near", "up")
        with ExitStack() as stack:
            chosen = (dict(interface="near"), dict(interface="lo"), dict())
            ports = [stack.enter_context(harken.listen("0.0.0.0:0", **one)).port for one in chosen]
            told, _ = neighbour.communicate(json.dumps(ports) + "\\n", timeout=40)
            own = []
            for port in ports:
                with socket.socket() as client:
                    own.append(client.connect_ex(("127.0.0.1", port)))
        names = dict([(0, "in"), (errno.ECONNREFUSED, "refused")])
        tell(over_near=[names.get(one, one) for one in json.loads(told)], over_lo=[names.get(one, one) for one in own])
    """
    assert children.run(program, namespace=True) == {
        "over_near": ["in", "refused", "in"],
        "over_lo": ["refused", "in", "in"],
    }


@pytest.mark.needs_socket_options
@linux_only
@pytest.mark.skipif(LINUX and len(os.sched_getaffinity(0)) < 2, reason="this machine has one CPU")
def test_incoming_cpu_takes_what_arrives_there() -> None:
    program = """
        import harken
        cpus = sorted(os.sched_getaffinity(0))[:2]
        first = harken.listen("127.0.0.1:0", reuse_port=True, incoming_cpu=cpus[0])
        second = harken.listen(first[0].url, reuse_port=True, incoming_cpu=cpus[1])
        found = []
        for cpu in cpus:
            os.sched_setaffinity(0, {cpu})
            clients = [socket.create_connection(first[0].address) for _ in range(50)]
            for (listener,) in (first, second):
                listener.setblocking(False)
                connections = listener.accept_many(100)
                found.append(len(connections))
                for connection in connections:
                    connection.close()
            for client in clients:
                client.close()
        first.close()
        second.close()
        tell(found=found)
    """
    found = children.run(program)["found"]
    if found[0] < 50 and found[2] > 0:
        pytest.skip("this kernel spreads by hash, whatever the CPU (before 6.2)")
    assert found == [50, 0, 0, 50]


HAS_IT = """
import socket, sys
family = [socket.AF_INET, socket.SOCK_STREAM] if sys.platform == "win32" else []  # told, it does not look at the handle
try:
    sock = socket.socket(*family, fileno=int(sys.argv[1]))
except OSError:
    print("no")
else:
    try:
        print(sock.getsockname()[1])
    except OSError:
        print("no")
    sock.detach()  # Wine cannot close what it has not made itself
"""


@pytest.mark.parametrize("call", [harken.listen, harken.bind])
@pytest.mark.parametrize("asked", [True, False, None])
def test_inheritable_is_for_child_processes(asked: bool | None, call: Callable[..., harken.Listeners]) -> None:
    with call("127.0.0.1:0", inheritable=asked) as (listener,):
        assert dict(listener.options) == ({} if asked is None else {"inheritable": asked})
        told = python(HAS_IT, listener.fileno(), close_fds=False).stdout.strip()
        assert told == (str(listener.port) if asked else "no")
        if call is harken.listen:
            with accepted(listener, "127.0.0.1") as connections:
                assert [connection.get_inheritable() for connection in connections] == [False, False]


@needs_ipv6
def test_without_ipv6_only_one_socket_takes_both_families() -> None:
    with harken.listen(":0", ipv6_only=False) as listeners:
        (listener,) = listeners
        assert listener.address[0] == "::"
        assert listener.options == {"ipv6_only": False}
        assert listener.getsockopt(IPV6, socket.IPV6_V6ONLY) == 0
        for host, seen in (("127.0.0.1", "::ffff:127.0.0.1"), ("::1", "::1")):
            with socket.create_connection((host, listeners.port), timeout=10):
                connection, peer = listener.accept()
                connection.close()
                assert peer[0] == seen


@needs_ipv6
@pytest.mark.parametrize("bind", [":0", "[::]:0", "tcp6://:0"])
def test_with_ipv6_only_it_is_ipv6_alone(bind: str) -> None:
    with harken.listen(bind, ipv6_only=True) as listeners:
        assert listeners[-1].options == {"ipv6_only": True}
        assert listeners[-1].getsockopt(IPV6, socket.IPV6_V6ONLY) != 0
        assert len(listeners) == (2 if bind == ":0" else 1)


@linux_only
@needs_ipv6
def test_ipv6_only_is_the_same_whatever_the_system_says() -> None:
    program = """
        from pathlib import Path
        import harken
        found = []
        for system in "01":
            Path("/proc/sys/net/ipv6/bindv6only").write_text(system)
            for options in ({}, {"ipv6_only": True}, {"ipv6_only": False}):
                with harken.listen("[::]:0", **options) as (listener,), socket.socket() as client:
                    found.append(client.connect_ex(("127.0.0.1", listener.port)) == 0)
        tell(takes_ipv4=found)
    """
    assert children.run(program, namespace=True) == {"takes_ipv4": [False, False, True] * 2}


@linux_only
def test_where_there_is_no_ipv6_the_one_socket_is_of_ipv4(poison: Poison) -> None:
    report = poison.run('attempt(":0", ipv6_only=False)', poison="socket:1:97")
    assert report.said["hosts"] == ["0.0.0.0"]
    assert [(address[0], why) for address, why in report.said["left_out"]] == [("::", errno.EAFNOSUPPORT)]
    assert report.calls["sockets"] == 0


def test_exclusive_is_how_it_always_is_or_a_choice() -> None:
    with harken.listen("127.0.0.1:0", exclusive=True) as (listener,):
        assert listener.options == {"exclusive": True}
        assert (listener.getsockopt(SOCKET, socket.SO_REUSEADDR) != 0) == LINUX
        with pytest.raises(harken.AddressInUseError):
            harken.listen(listener.url, exclusive=True)
    if LINUX:
        with pytest.raises(io.UnsupportedOperation, match="exclusive is not available on Linux"):
            harken.listen("127.0.0.1:0", exclusive=False)
    else:
        with harken.listen("127.0.0.1:0", exclusive=False) as (listener,):
            assert listener.options == {"exclusive": False}
            if WINDOWS:
                assert listener.getsockopt(SOCKET, ~socket.SO_REUSEADDR) == 0  # SO_EXCLUSIVEADDRUSE


@pytest.mark.needs_tcp_info
@linux_only
def test_the_backlog_is_one_of_the_options() -> None:
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    for call in (harken.listen, harken.bind):
        for bind, options in (("127.0.0.1:0", {"backlog": 7}), ("127.0.0.1:0?backlog=7", {})):
            with call(bind, **options) as listeners:
                listeners.listen()
                assert listeners[0].options == {"backlog": 7}
    for bind, options in (("127.0.0.1:0", {"backlog": 10**40}), (f"127.0.0.1:0?backlog={10**40}", {})):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # that it is more than the system grants
            listeners = harken.listen(bind, **options)
        with listeners as (listener,):
            assert listener.options == {"backlog": most}


# ---------------------------------------------------------------------------- configure


@pytest.mark.parametrize("call", [harken.listen, harken.bind])
def test_configure_is_called_with_each_socket_before_it_is_bound(call: Callable[..., harken.Listeners]) -> None:
    seen: list[tuple[Any, bool, Any, int]] = []

    def configure(sock: harken.Socket, address: Any) -> None:
        bound = False
        with contextlib.suppress(OSError):  # Winsock has no name for a socket that is not bound
            bound = sock.getsockname()[1] != 0
        seen.append((address, bound, sock, sock.getsockopt(*CASES["ttl"].number(address[0]))))
        sock.setsockopt(SOCKET, socket.SO_KEEPALIVE, 1)

    with call(":0", "127.0.0.1:0", ttl=33, configure=configure) as listeners:
        assert [address[:2] for address, *_ in seen] == [
            ("0.0.0.0", 0),
            *([("::", listeners[0].port)] if HAS_IPV6 else []),
            ("127.0.0.1", 0),
        ]
        assert not any(bound for _, bound, *_ in seen)
        assert [sock for _, _, sock, _ in seen] == list(listeners)  # the very objects
        assert {ttl for *_, ttl in seen} == {33}  # what it sets goes over what was asked for
        listeners.listen()
        assert all(listener.getsockopt(SOCKET, socket.SO_KEEPALIVE) != 0 for listener in listeners)
        assert all("configure" not in listener.options for listener in listeners)


@pytest.mark.parametrize("host", LOOPBACKS)
def test_configure_is_given_a_listener_that_can_be_shown(host: str) -> None:
    """Before bind() its address is the wildcard's, also where the system has none for it."""
    seen: list[Any] = []

    def configure(sock: harken.Listener, _: Any) -> None:
        seen.append((sock.address, sock.port, sock.url, sock.state, str(sock), repr(sock)))

    harken.listen(bind_text(host), configure=configure).close()
    url = f"tcp://{bind_text('::' if ':' in host else '0.0.0.0')}"
    address = ("::", 0, 0, 0) if ":" in host else ("0.0.0.0", 0)
    assert seen == [(address, 0, url, "bound", url, f"<harken.Listener {url}>")]
    with harken.Socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        if WINDOWS:
            with fails(errno.EINVAL):  # as the standard library's
                sock.getsockname()
        else:
            assert sock.getsockname() == address


class NotThisOneError(Exception):
    pass


@pytest.mark.parametrize("error", [NotThisOneError("no"), KeyboardInterrupt(), OSError(errno.EPERM, "mine")])
@pytest.mark.parametrize("which", [1, 2, 3])
def test_what_configure_raises_is_passed_on_and_nothing_stays_open(which: int, error: BaseException) -> None:
    seen: list[harken.Socket] = []

    def configure(sock: harken.Socket, _: Any) -> None:
        seen.append(sock)
        if len(seen) == which:
            raise error

    with pytest.raises(type(error)) as caught:
        harken.listen("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", configure=configure)
    assert caught.value is error
    assert [sock.fileno() for sock in seen] == [-1] * which


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "[::1]:0", "unix:{path}", "unix:@harken-{pid}", "vsock://:0"])
@pytest.mark.parametrize("call", ["bind", "listen"])
@linux_only
def test_configure_must_leave_the_socket_unbound(bind: str, call: str, tmp_path: Path) -> None:
    bind = bind.format(path=tmp_path / "a", pid=os.getpid())
    seen: list[harken.Socket] = []

    def nothing(sock: harken.Socket, _: Any) -> None:
        seen.append(sock)

    def binds(sock: harken.Socket, address: Any) -> None:
        seen.append(sock)
        sock.bind(address)
        if call == "listen":
            sock.listen()

    try:
        harken.listen(bind, configure=nothing).close()
    except harken.ListenError as error:
        pytest.skip(f"not here: {error}")
    with pytest.raises(ValueError, match=r"configure\(\) has bound the socket"):
        harken.listen(bind, configure=binds)
    assert [sock.fileno() for sock in seen] == [-1, -1]


@pytest.mark.parametrize("end", ["close", "detach", "to_socket"])
def test_configure_must_leave_the_socket_open(end: str) -> None:
    kept: list[Any] = []

    def configure(sock: harken.Socket, _: Any) -> None:
        kept.append(getattr(sock, end)())

    with pytest.raises(ValueError, match=r"configure\(\) has closed the socket"):
        harken.listen("127.0.0.1:0", "127.0.0.1:0", configure=configure)
    (mine,) = kept
    if end == "detach":
        socket.close(mine)  # it was given away, and is its receiver's
    elif end == "to_socket":
        mine.close()


@pytest.mark.skipif(not HAS_UNIX or WINDOWS, reason="Python has no AF_UNIX here")
@pytest.mark.parametrize("binds", [("fd://0",), ("fd://0", "systemd:web")])
def test_configure_is_not_for_what_is_bound_already(binds: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="configure does not apply to an inherited socket"):
        harken.listen(*binds, configure=print)


# ---------------------------------------------------------------------------- sockets that are there already


@pytest.mark.needs_socket_options
@posix_only
def test_a_socket_that_is_there_already_is_given_them() -> None:
    names = [name for name in HERE if name not in PRIVILEGED and INHERITED in TABLE[name].binds]
    for state in ("bound", "listening"):
        made = socket.socket()
        made.bind(("127.0.0.1", 0))
        if state == "listening":
            made.listen(20)
        chosen = {name: CASES[name].value for name in names}
        with harken.listen(f"fd://{made.detach()}", **chosen, inheritable=True, backlog=9) as (listener,):
            told = {name: CASES[name].value if CASES[name].told is None else CASES[name].told for name in names}
            told |= {"inheritable": True, "backlog": listener.backlog or 9}
            assert dict(listener.options) == told
            assert not LINUX or listener.backlog == (9 if state == "bound" else 20)  # never shortened
            with accepted(listener, "127.0.0.1") as connections:
                for name in names:
                    case = CASES[name]
                    for connection in connections if case.accepted is not False and name != "mss" else []:
                        assert read(connection, case.ipv4, case.value) == case.of_connection()


@linux_only
def test_what_it_cannot_have_is_told_and_it_stays_open() -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("\0" + os.urandom(8).hex())
        made.listen(5)
        with pytest.raises(harken.ListenError) as caught:
            harken.listen(f"fd://{made.fileno()}", keepalive_idle=5)
        assert caught.value.option == ("keepalive_idle", 5)
        assert "this kind of socket, does not support keepalive_idle" in caught.value.hint
        assert made.getsockopt(SOCKET, socket.SO_ACCEPTCONN) == 1


@linux_only
def test_when_the_second_of_systemds_fails_both_stay_open() -> None:
    program = """
        import harken
        first, second = socket.socket(), socket.socket(socket.AF_UNIX)
        first.bind(("127.0.0.1", 0))
        second.bind("\\0" + os.urandom(8).hex())
        for number, sock in enumerate((first, second)):
            sock.listen()
            os.dup2(sock.detach(), 60 + number)
        os.dup2(60, 3)
        os.dup2(61, 4)
        os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "web:web"}
        for _ in range(2):
            try:
                harken.listen("systemd:web", keepalive_idle=5)
            except harken.ListenError as error:
                tell(option=error.option, open=[socket.socket(fileno=os.dup(fd)).getsockopt(1, 30) for fd in (3, 4)])
        with harken.listen("systemd:web") as listeners:
            tell(families=[one.family for one in listeners])
    """
    told = children.run(program)
    assert told == {"option": ["keepalive_idle", 5], "open": [1, 1], "families": [socket.AF_INET, socket.AF_UNIX]}


# ---------------------------------------------------------------------------- refused before there is a socket

REFUSED: list[tuple[list[str], dict[str, Any], type[Exception], str]] = [
    # contradictions
    (["127.0.0.1:0"], {"mode": 0o660}, ValueError, "127.0.0.1:0: mode does not apply to TCP"),
    (["127.0.0.1:0"], {"owner": "www"}, ValueError, "owner does not apply to TCP"),
    ([":8000-8010"], {"group": 0}, ValueError, "group does not apply to TCP"),
    (["127.0.0.1:0"], {"ipv6_only": True}, ValueError, "127.0.0.1:0: ipv6_only does not apply to IPv4"),
    (["tcp4://:0"], {"ipv6_only": False}, ValueError, "ipv6_only does not apply to IPv4"),
    (["unix:/x"], {"ipv6_only": True}, ValueError, "ipv6_only does not apply to a unix socket"),
    (["unix:/x"], {"reuse_port": True}, ValueError, "reuse_port does not apply to a unix socket"),
    (["unix:/x"], {"nodelay": True}, ValueError, "nodelay does not apply to a unix socket"),
    (["unix:@x"], {"mode": 0o600}, ValueError, "mode does not apply to an abstract unix socket"),
    (["vsock://*:0"], {"nodelay": True}, ValueError, "nodelay does not apply to a vsock"),
    (["vsock://*:0"], {"reuse_port": True}, ValueError, "reuse_port does not apply to a vsock"),
    (["fd://3"], {"reuse_port": True}, ValueError, "reuse_port does not apply to an inherited socket"),
    (["systemd:web"], {"freebind": True}, ValueError, "freebind does not apply to an inherited socket"),
    (["fd://3"], {"configure": len}, ValueError, "configure does not apply to an inherited socket"),
    (
        ["127.0.0.1:0"],
        {"keepalive": False, "keepalive_idle": 5},
        ValueError,
        "keepalive_idle needs keepalive, which is off",
    ),
    ([":0"], {"keepalive": False, "keepalive_count": 5}, ValueError, "keepalive_count needs keepalive, which is off"),
    (
        [":0?keepalive=0"],
        {"keepalive_interval": 5},
        ValueError,
        ":0?keepalive=0: keepalive_interval needs keepalive, wh",
    ),
    (
        [":0"],
        {"exclusive": True, "reuse_port": True},
        ValueError,
        "reuse_port shares the port, and exclusive forbids that",
    ),
    (
        [":0"],
        {"exclusive": True, "reuse_port": "join"},
        ValueError,
        "reuse_port shares the port, and exclusive forbids that",
    ),
    ([":0?reuse_port=1"], {"exclusive": True}, ValueError, "reuse_port shares the port, and exclusive forbids that"),
    # unknown
    ([":0"], {"backlogg": 5}, TypeError, "unexpected keyword argument 'backlogg'; did you mean 'backlog'?"),
    ([":0"], {"reuseport": True}, TypeError, "unexpected keyword argument 'reuseport'; did you mean 'reuse_port'?"),
    ([":0"], {"colour": 1}, TypeError, "unexpected keyword argument 'colour'"),
    # of the wrong type
    ([":0"], {"nodelay": "yes"}, TypeError, "nodelay must be True or False, not str"),
    ([":0"], {"nodelay": 2}, TypeError, "nodelay must be True or False, not int"),
    ([":0"], {"reuse_port": "yes"}, TypeError, "reuse_port must be True or False, not str"),
    ([":0"], {"ttl": "5"}, TypeError, "ttl must be an int from 1 to 255, not str"),
    ([":0"], {"ttl": 5.0}, TypeError, "ttl must be an int from 1 to 255, not float"),
    ([":0"], {"ttl": True}, TypeError, "ttl must be an int from 1 to 255, not bool"),
    ([":0"], {"backlog": "5"}, TypeError, "backlog must be an int or None, not str"),
    ([":0"], {"interface": b"lo"}, TypeError, "interface must be a str, not bytes"),
    ([":0"], {"configure": 5}, TypeError, "configure must be a function of a socket and an address, not int"),
    (["unix:/x"], {"owner": 1.5}, TypeError, "owner must be a name or a number, not float"),
    (["unix:/x"], {"mode": "0660"}, TypeError, "mode must be an int, as 0o660, not str"),
    # out of range
    ([":0"], {"backlog": -1}, ValueError, "backlog must not be negative: -1"),
    ([":0"], {"ttl": 0}, ValueError, "ttl must be from 1 to 255, not 0"),
    ([":0"], {"ttl": 256}, ValueError, "ttl must be from 1 to 255, not 256"),
    ([":0"], {"ttl": 10**400}, ValueError, "ttl must be from 1 to 255, not a number of 1329 bits"),
    ([":0"], {"tos": -1}, ValueError, "tos must be from 0 to 255, not -1"),
    ([":0"], {"mss": 87}, ValueError, "mss must be from 88 to 32767, not 87"),
    ([":0"], {"mark": 2**32}, ValueError, "mark must be from 0 to 4294967295, not 4294967296"),
    ([":0"], {"rcvbuf": 0}, ValueError, "rcvbuf must be from 1 to 2147483647, not 0"),
    ([":0"], {"keepalive_idle": 0}, ValueError, "keepalive_idle must be from 1 to 32767, not 0"),
    ([":0"], {"keepalive_count": 128}, ValueError, "keepalive_count must be from 1 to 127, not 128"),
    ([":0"], {"interface": ""}, ValueError, "interface must be a name of 1 to 15 characters, not ''"),
    ([":0"], {"interface": "a" * 16}, ValueError, "interface must be a name of 1 to 15 characters"),
    ([":0"], {"interface": "a/b"}, ValueError, "interface must be a name of 1 to 15 characters, not 'a/b'"),
    ([":0"], {"congestion": "réno"}, ValueError, "congestion must be a name of 1 to 15 characters"),
    (["unix:/x"], {"mode": 660}, ValueError, "not 0o1224 (660); did you mean 0o660?"),
    (["unix:/x"], {"mode": 0o1000}, ValueError, "mode must be from 0o0 to 0o777, written in octal, not 0o1000 (512)"),
    (["unix:/x"], {"owner": -1}, ValueError, "owner must be a name or a number from 0 on, not -1"),
    # in a bind: the character is pointed at
    ([":0?backlogg=5"], {}, ValueError, "character 4: no option is called 'backlogg'; did you mean 'backlog'?"),
    ([":0?ttl=5&reuseport=1"], {}, ValueError, "character 10: no option is called 'reuseport'; did you mean 'reuse_p"),
    ([":0?configure=x"], {}, ValueError, "character 4: no option is called 'configure'"),
    (["127.0.0.1:0?ttl=5&mode=660"], {}, ValueError, "character 19: mode does not apply to TCP"),
    (["127.0.0.1:0?ipv6_only=1"], {}, ValueError, "character 13: ipv6_only does not apply to IPv4"),
    ([":0?ttl="], {}, ValueError, "character 4: ttl must be a number, not ''"),
    ([":0?ttl=0x10"], {}, ValueError, "character 4: ttl must be a number, not '0x10'"),
    ([":0?ttl=-1"], {}, ValueError, "character 4: ttl must be a number, not '-1'"),
    ([":0?ttl=²"], {}, ValueError, "character 4: ttl must be a number"),
    ([":0?ttl=256"], {}, ValueError, "character 4: ttl must be from 1 to 255, not 256"),
    ([f":0?ttl={'9' * 5000}"], {}, ValueError, "character 4: ttl must be a number"),
    ([":0?nodelay="], {}, ValueError, "character 4: nodelay must be 1 or 0, not ''"),
    ([":0?nodelay=2"], {}, ValueError, "character 4: nodelay must be 1 or 0, not '2'"),
    ([":0?reuse_port=both"], {}, ValueError, "character 4: reuse_port must be 1 or 0, or join, not 'both'"),
    ([":0?interface="], {}, ValueError, "character 4: interface must be a name of 1 to 15 characters, not ''"),
    ([":0?interface=a%00b"], {}, ValueError, "character 4: interface must be a name of 1 to 15 characters"),
    (["unix:/x?mode=8"], {}, ValueError, "character 9: mode is written in octal, as in mode=0660, not '8'"),
    (
        ["unix:/x?mode=1777"],
        {},
        ValueError,
        "character 9: mode must be from 0o0 to 0o777, written in octal",
    ),
    (
        ["unix:/x?owner="],
        {},
        ValueError,
        "character 9: owner must be a name of 1 to 255 characters or a number, not ''",
    ),
    ([":0?keepalive=0&keepalive_idle=5"], {}, ValueError, "character 16: keepalive_idle needs keepalive, which is off"),
    (["fd://3?reuse_port=1"], {}, ValueError, "character 8: reuse_port does not apply to an inherited socket"),
    (["vsock://*:0?ttl=5"], {}, ValueError, "character 13: ttl does not apply to a vsock"),
]


@pytest.mark.parametrize("call", [harken.listen, harken.bind])
@pytest.mark.parametrize(("binds", "options", "kind", "told"), REFUSED, ids=[told for *_, told in REFUSED])
def test_what_makes_no_sense_is_refused(
    binds: list[str], options: dict[str, Any], kind: type[Exception], told: str, call: Callable[..., harken.Listeners]
) -> None:
    with pytest.raises(kind) as caught:
        call(*binds, **options)
    assert told in str(caught.value)
    assert not isinstance(caught.value, OSError)


@linux_only
def test_no_socket_is_made_for_what_is_refused(poison: Poison) -> None:
    before = ["127.0.0.1:0", "localhost:0?ttl=9", ":8000-8010"]
    cases = []
    for binds, options, _, told in REFUSED:
        if "configure" not in options:
            cases.append((binds, options))
            if not options or "does not apply" not in told:  # a keyword may have one for those in front
                cases.append((before + binds, options))
    report = poison.run(
        f"""
        refused = 0
        for binds, options in {cases!r}:
            for call in (harken.listen, harken.bind):
                try:
                    call(*binds, **options)
                except (TypeError, ValueError):
                    refused += 1
        tell(refused=refused)
        """
    )
    assert report.said["refused"] == len(cases) * 2 > 200
    assert (report.calls["socket"], report.calls["getaddrinfo"]) == (0, 0)


def test_a_keyword_is_for_the_binds_that_it_means_something_for() -> None:
    with harken.listen("127.0.0.1:0", "[::]:0" if HAS_IPV6 else "127.0.0.1:0", ttl=33, backlog=5) as listeners:
        assert [set(listener.options) for listener in listeners] == [{"ttl", "backlog"}] * 2
    if HAS_IPV6:
        with harken.listen("127.0.0.1:0", "[::1]:0", ipv6_only=True) as listeners:
            assert [dict(listener.options) for listener in listeners] == [{}, {"ipv6_only": True}]


def test_what_stands_in_a_bind_goes_over_the_keyword() -> None:
    with harken.listen("127.0.0.1:0?ttl=44&nodelay=off", "127.0.0.1:0", ttl=33, keepalive=True) as listeners:
        assert [dict(listener.options) for listener in listeners] == [
            {"nodelay": False, "keepalive": True, "ttl": 44},
            {"keepalive": True, "ttl": 33},
        ]
        assert [listener.getsockopt(IP, socket.IP_TTL) for listener in listeners] == [44, 33]


@pytest.mark.parametrize("name", ["nodelay", "keepalive"])
@pytest.mark.parametrize(
    ("text", "on"),
    [("1", True), ("true", True), ("YES", True), ("on", True), ("0", False), ("False", False), ("no", False)],
)
def test_a_switch_has_the_words_that_people_write(name: str, text: str, on: bool) -> None:
    with harken.listen(f"127.0.0.1:0?{name}={text}") as (listener,):
        assert listener.options == {name: on}
        assert (listener.getsockopt(*CASES[name].ipv4) != 0) == on


def test_keepalive_is_implied_by_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    if not LINUX:
        monkeypatch.setitem(OPTIONS, "keepalive_idle", ((SOCKET, socket.SO_KEEPALIVE),) * 2 + (True,))
    with harken.listen("127.0.0.1:0", keepalive_idle=1) as (listener,):
        assert listener.getsockopt(SOCKET, socket.SO_KEEPALIVE) != 0
        assert set(listener.options) == {"keepalive_idle"}


@linux_only
@pytest.mark.filterwarnings("ignore:.* was asked for:RuntimeWarning")
def test_what_the_system_rounds_is_read_back() -> None:
    with harken.listen("127.0.0.1:0", rcvbuf=1, sndbuf=2**31 - 1, defer_accept=100, tos=3) as (listener,):
        options = listener.options
        assert 1 < options["rcvbuf"] == listener.getsockopt(SOCKET, socket.SO_RCVBUF) // 2  # type: ignore[operator]
        most = int(Path("/proc/sys/net/core/wmem_max").read_text())
        assert options["sndbuf"] == most
        assert options["defer_accept"] == 127
        assert options["tos"] == 0
        # Now, and not as it was: a switch too.
        listener.setsockopt(SOCKET, socket.SO_RCVBUF, 60_000)
        assert listener.options["rcvbuf"] == 60_000
    with harken.listen("127.0.0.1:0", nodelay=False, keepalive=True) as (listener,):
        listener.setsockopt(TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(SOCKET, socket.SO_KEEPALIVE, 0)
        assert listener.options == {"nodelay": True, "keepalive": False}


# ---------------------------------------------------------------------------- what the system lacks


LACKING = [name for name in CASES if name not in OPTIONS]


def on(value: Any) -> Any:
    return True if isinstance(value, bool) else value


@pytest.mark.parametrize("name", sorted(CASES))
def test_what_the_system_lacks_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if name not in LACKING:
        monkeypatch.delitem(OPTIONS, name)
    value = on(CASES[name].value)
    with pytest.raises(harken.ListenError) as caught:
        harken.listen("127.0.0.1:0", "localhost:0", **{name: value})
    error = caught.value
    assert isinstance(error, OSError)
    assert isinstance(error, ValueError)
    assert isinstance(error, io.UnsupportedOperation)
    assert error.option == (name, value)
    assert f"{name} is not available on {SYSTEM}: " in str(error)
    assert str(error).startswith(f"setsockopt(127.0.0.1:0, {name}={value!r}): ")
    assert error.hint == ""
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), type(copied), copied.option) == (str(error), type(error), error.option)


def test_a_system_without_sockets_of_both_families_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenBSD."""
    monkeypatch.setattr(_option_table, "TAKES_BOTH", False)
    with pytest.raises(io.UnsupportedOperation, match="ipv6_only is not available on .*: IPv6 sockets never accept"):
        harken.listen(":0", ipv6_only=False)
    harken.listen(":0", ipv6_only=True).close()


@pytest.mark.parametrize("name", ["reuse_port", "freebind", "transparent"])
def test_not_to_have_it_is_possible_everywhere(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delitem(OPTIONS, name, raising=False)
    with harken.listen("127.0.0.1:0", **{name: False}) as (listener,):
        assert listener.options == {name: False}


@linux_only
def test_no_socket_is_made_for_what_is_lacking(poison: Poison) -> None:
    program = f"""
        from harken._system import OPTIONS
        OPTIONS.clear()
        refused = []
        for name, value in {[(name, on(case.value)) for name, case in CASES.items()]!r} + [("exclusive", False)]:
            try:
                harken.listen(*["127.0.0.1:0"] * 50, "localhost:0?backlog=7", **{{name: value}})
            except harken.ListenError as error:
                refused.append(error.option[0])
        tell(refused=refused)
    """
    report = poison.run(program)
    assert report.said["refused"] == [*CASES, "exclusive"]
    assert (report.calls["socket"], report.calls["getaddrinfo"]) == (0, 0)


@linux_only
def test_an_interface_may_be_meant_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS: the option takes an index, which is looked up. (The number of another option stands in for it.)"""
    by_index = (IP, socket.IP_TTL), (IPV6, socket.IPV6_UNICAST_HOPS), False
    monkeypatch.setitem(OPTIONS, "interface", by_index)
    for host in LOOPBACKS:
        with harken.listen(bind_text(host), interface="lo") as (listener,):
            assert listener.getsockopt(*CASES["ttl"].number(host)) == socket.if_nametoindex("lo")
            assert listener.options == {"interface": "lo"}
    with pytest.raises(harken.ListenError, match=r"setsockopt\(127.0.0.1:0, interface='harken0'\)"):
        harken.listen("127.0.0.1:0", interface="harken0")


# ---------------------------------------------------------------------------- errors


@pytest.mark.needs_socket_options
@linux_only
@children.needs_root
def test_what_needs_a_privilege_says_which() -> None:
    program = """
        import pickle
        import harken, harken._options, harken._plan
        available, allowed = [
            open(f"/proc/sys/net/ipv4/tcp_{which}_congestion_control").read().split()
            for which in ("available", "allowed")
        ]
        forbidden = {"congestion": name for name in available if name not in allowed}
        tell(forbidden=len(forbidden), allowed=" ".join(allowed))
        become(65534)
        for name, value in {"mark": 1, "transparent": True, "priority": 7, **forbidden}.items():
            try:
                harken.listen("127.0.0.1:0", **{name: value})
            except PermissionError as error:
                same = pickle.loads(pickle.dumps(error))
                assert (str(same), type(same), same.hint) == (str(error), type(error), error.hint)
                assert isinstance(error, harken.ListenError) and error.option == (name, value), error.option
                tell(**{name: [error.step, error.hint, str(error).splitlines()[0]]})
        harken.listen("127.0.0.1:0", priority=6).close()
    """
    told = children.run(program)
    forbidden, allowed = told.pop("forbidden"), told.pop("allowed")
    assert set(told) == {"mark", "transparent", "priority", *(["congestion"] if forbidden else [])}
    for name, (step, hint, text) in told.items():
        assert step == "setsockopt"
        assert text.startswith(f"setsockopt(127.0.0.1:0, {name}=")
        assert "[Errno 1] Operation not permitted" in text
        assert "CAP_NET_ADMIN" in hint
    assert told["priority"][1].startswith("priority above 6 needs CAP_NET_ADMIN: AmbientCapabilities=CAP_NET_ADMIN in")
    if forbidden:
        allowed_are = f"only these may be used: {allowed} (net.ipv4.tcp_allowed_congestion_control)"
        assert told["congestion"][1] == f"without CAP_NET_ADMIN {allowed_are}"


@linux_only
def test_what_is_not_here_says_what_is() -> None:
    names = [name for _, name in socket.if_nameindex()]
    with pytest.raises(harken.ListenError) as caught:
        harken.listen("127.0.0.1:0", "127.0.0.1:0?interface=harken0")
    error = caught.value
    assert (error.errno, error.option, error.step) == (errno.ENODEV, ("interface", "harken0"), "setsockopt")
    assert error.hint == f"this machine has {', '.join(names)}"
    with pytest.raises(harken.ListenError) as caught:
        harken.listen("127.0.0.1:0", congestion="harken")
    error = caught.value
    assert (error.errno, error.option) == (errno.ENOENT, ("congestion", "harken"))
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    assert error.hint == f"available here: {' '.join(available)}; `modprobe tcp_harken` may add it"
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), type(copied), copied.option) == (str(error), type(error), error.option)


@linux_only
@pytest.mark.parametrize("which", [1, 2, 3])
def test_an_option_that_fails_undoes_all_before_it(poison: Poison, which: int) -> None:
    # For each: SO_REUSEADDR and TCP_NODELAY, then the one that is asked for.
    report = poison.run(
        'attempt("127.0.0.1:0", "127.0.0.2:0", "127.0.0.3:0", ttl=9)', poison=f"setsockopt:{which * 3}:105"
    )
    assert report.failures["setsockopt"] == 1
    assert report.said["step"] == "setsockopt"
    assert report.said["address"][0] == f"127.0.0.{which}"
    assert report.said["text"].startswith(f"setsockopt(127.0.0.{which}:0, ttl=9): [Errno 105]")
    assert report.said["open"] == 0
    assert report.calls["close"] == report.calls["socket"] == which


@linux_only
def test_an_option_after_listen_that_fails_undoes_all_too(poison: Poison) -> None:
    # Three for each up to bind(2), then reuse_port: the first one's, and the second's.
    report = poison.run('attempt("127.0.0.1:0", "127.0.0.2:0", ttl=9, reuse_port=True)', poison="setsockopt:8:95")
    assert report.said["text"].startswith("setsockopt(127.0.0.2:")
    assert "reuse_port=True" in report.said["text"]
    assert (report.said["open"], report.calls["listen"]) == (0, 2)


# ---------------------------------------------------------------------------- Options itself


def test_options_are_a_frozen_value() -> None:
    options = Options(ttl=9, nodelay=1, reuse_port="join")  # type: ignore[arg-type]
    assert options == Options(nodelay=True, ttl=9, reuse_port="join")
    assert hash(options) == hash(Options(nodelay=True, ttl=9, reuse_port="join"))
    assert list(options) == ["reuse_port", "nodelay", "ttl"]
    assert options.nodelay is True
    with pytest.raises(FrozenInstanceError):
        options.ttl = 10  # type: ignore[misc]
    with pytest.raises(TypeError):
        Options(ttl="9")  # type: ignore[arg-type]
    assert Options(ttl=1).over(options) == Options(ttl=1, nodelay=True, reuse_port="join")
    assert pickle.loads(pickle.dumps(options)) == options
    assert list(Options()) == []


NAMES = [one.name for one in fields(Options)]
ELSEWHERE = {
    "backlog": test_the_backlog_is_one_of_the_options,
    "ipv6_only": test_without_ipv6_only_one_socket_takes_both_families,
    "exclusive": test_exclusive_is_how_it_always_is_or_a_choice,
    "inheritable": test_inheritable_is_for_child_processes,
    "configure": test_configure_is_called_with_each_socket_before_it_is_bound,
    # Their values here; what comes of them is with the unix sockets.
    "mode": test_what_makes_no_sense_is_refused,
    "owner": test_what_makes_no_sense_is_refused,
    "group": test_what_makes_no_sense_is_refused,
}


def test_every_option_has_a_test() -> None:
    assert sorted([*CASES, *ELSEWHERE]) == sorted(NAMES)
    assert set(OPTIONS) <= set(CASES)
    if LINUX:
        assert set(OPTIONS) == set(CASES)


HOME = Path(__file__).parent.parent
PACKAGE = Path(harken.__file__).parent


def the_writer() -> Any:
    """``.ci/options``, which writes what follows from the table into other files."""
    path = HOME / ".ci" / "options"
    if not path.exists():
        pytest.skip("the tests are not in a source tree")
    loader = importlib.machinery.SourceFileLoader("options_writer", str(path))
    spec = importlib.util.spec_from_loader("options_writer", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


BLOCKS = {
    PACKAGE / "_options.py": ["fields"],
    PACKAGE / "_listen.pyi": ["signature", "signature"],
    PACKAGE / "asyncio" / "_start.py": ["more_options", "more_options"],
    HOME / "ext" / "harken" / "functions.pxi": ["c_signature"],
    HOME / "docs" / "options.md": ["sets", "connections", "shortfalls", "elsewhere"],
}


@pytest.mark.parametrize("path", BLOCKS, ids=[path.name for path in BLOCKS])
def test_what_follows_from_the_table_is_what_the_files_have(path: Path) -> None:
    """If this fails, run .ci/options."""
    writer = the_writer()
    if not path.exists():
        pytest.skip("the tests are not in a source tree")
    text = path.read_text(encoding="utf-8")
    assert [found["name"] for found in writer.BLOCK.finditer(text)] == BLOCKS[path]
    assert writer.rewritten(text) == text


def test_a_new_option_appears_in_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = the_writer()
    new = _option_table.Option(
        "not_yet",
        Whole("bytes", 0),
        "TCP_WINDOW_CLAMP (Linux).",
        binds=ANY_TCP,
        sets=_option_table.on(linux="TCP_WINDOW_CLAMP"),
        shortfall=("never", ""),
    )
    before = {name: write() for name, write in writer.BLOCKS.items()}
    monkeypatch.setitem(TABLE, new.name, new)
    for name, write in writer.BLOCKS.items():
        assert "not_yet" not in before[name]
        assert write().count("not_yet") == 1, name


def test_signatures_have_every_option() -> None:
    for call in (harken.listen, harken.bind):
        parameters = list(inspect.signature(call).parameters.values())
        assert [one.name for one in parameters[1:]] == NAMES
        assert all(one.kind is one.KEYWORD_ONLY and one.default is None for one in parameters[1:])
    for call in (harken.asyncio.start_server, harken.asyncio.create_server):
        names = list(inspect.signature(call).parameters)
        assert names[names.index("ipv6_only") :] == [*NAMES[2:], "kwds"]
        assert {"backlog", "reuse_port"} < set(names)
    assert list(TABLE) == NAMES


@linux_only
@pytest.mark.parametrize("name", OPTIONS)
def test_the_table_names_the_constants_that_are_set(name: str) -> None:
    """The table and platform/on_linux.h, written apart from each other, agree where Python names the constants too."""
    constants = TABLE[name].sets[0].split(", ")
    for constant, (level, number) in zip(constants, OPTIONS[name][:2], strict=False):
        known = getattr(socket, constant, number)  # Python does not name all of them
        assert number == known, constant
        assert constant.partition("_")[0] == {IP: "IP", IPV6: "IPV6", TCP: "TCP", SOCKET: "SO"}[level]


def test_the_table_says_what_the_system_has_and_passes_on() -> None:
    if not (LINUX or WINDOWS):
        pytest.skip("the table has other systems in one column")
    column, connections = (0, 0) if LINUX else (4, 2)
    for name, option in TABLE.items():
        if not option.sockopt:
            continue
        assert (option.sets[column] != NOT_HERE) == (name in OPTIONS), name
        if name in OPTIONS:
            said = option.connections[connections]
            assert OPTIONS[name][2] == said.startswith("yes"), name
            if option.at_accept and not OPTIONS[name][2]:
                assert said in ("again", "**no: set at accept**"), name
