"""Sockets that are there already: adopted from a number or an object, passed to a child, passed by systemd's protocol.

The children are real; what stands in for systemd is a program that puts the descriptors in their places, writes the
environment for its own pid and then becomes the server by exec.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wire import python

import harken
from children import FORK
from harken import IPPROTO_TCP, TCP_NODELAY, Listener, Socket
from harken._errors import ListenError
from machine import LOOPBACKS, WINDOWS, linux_only, posix_only

HAS_UNIX = hasattr(socket, "AF_UNIX")
needs_unix = pytest.mark.skipif(not HAS_UNIX, reason="Python has no AF_UNIX here")


def stdlib_socket(host: str, *, listening: bool = True, backlog: int = 7) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.bind((host, 0))
    if listening:
        sock.listen(backlog)
    return sock


@pytest.fixture
def room() -> Iterator[Path]:
    """A folder whose name is short enough for the path of a unix socket."""
    with tempfile.TemporaryDirectory(prefix="harken-") as name:
        yield Path(name)


def echo_once(listener: Listener) -> None:
    with socket.create_connection((listener.address[0], listener.port), timeout=10) as client:
        connection, _ = listener.accept()
        with connection:
            client.sendall(b"ping")
            assert connection.recv(16) == b"ping"


def is_refused(address: Any) -> bool:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(10)
        return client.connect_ex(address) != 0


# ---------------------------------------------------------------------------- adopt


@pytest.mark.parametrize("host", LOOPBACKS)
def test_an_object_gives_its_socket_away(host: str) -> None:
    sock = stdlib_socket(host)
    sock.set_inheritable(True)
    address, family = sock.getsockname(), sock.family
    with harken.adopt(sock) as listener:
        assert type(listener) is Listener
        assert sock.fileno() == -1
        assert (listener.family, listener.type, listener.proto) == (family, socket.SOCK_STREAM, IPPROTO_TCP)
        assert (listener.address, listener.port, listener.state) == (address, address[1], "listening")
        assert not listener.get_inheritable()
        assert listener.getsockopt(IPPROTO_TCP, TCP_NODELAY) != 0
        assert listener.gettimeout() is None
        assert harken.Bind(listener.url).host == host
        echo_once(listener)
    assert listener.state == "closed"


@pytest.mark.parametrize("host", LOOPBACKS)
def test_a_number_is_taken_over(host: str) -> None:
    sock = stdlib_socket(host)
    address = sock.getsockname()
    with harken.adopt(sock.detach()) as listener:
        assert listener.address == address
        echo_once(listener)
        (again,) = harken._listener.Listeners([listener]).sockets()
        with again:
            assert again.getsockname() == address
            assert again.proto == IPPROTO_TCP or WINDOWS  # where CPython forgets the protocol that it is told
            assert again.getsockopt(IPPROTO_TCP, TCP_NODELAY) != 0


def test_our_own_sockets_can_be_adopted() -> None:
    own = Socket(socket.AF_INET, socket.SOCK_STREAM)
    own.bind(("127.0.0.1", 0))
    own.listen()
    own.settimeout(0.001)
    with pytest.raises(TimeoutError):
        own.accept()
    own.settimeout(None)
    with harken.adopt(own) as listener, harken.adopt(listener) as again:
        assert (own.fileno(), listener.fileno()) == (-1, -1)
        echo_once(again)
        again.settimeout(0.001)
        with pytest.raises(TimeoutError):
            again.accept()


def test_one_that_does_not_block_waits_all_the_same() -> None:
    sock = stdlib_socket("127.0.0.1")
    sock.setblocking(False)
    with harken.adopt(sock) as listener:
        listener.settimeout(0.001)
        with pytest.raises(TimeoutError):
            listener.accept()
        echo_once(listener)


@pytest.mark.parametrize("host", LOOPBACKS)
def test_one_that_is_bound_can_listen_later(host: str) -> None:
    with harken.adopt(stdlib_socket(host, listening=False)) as listener:
        assert listener.state == "bound"
        assert is_refused(listener.address)
        listener.listen()
        assert listener.state == "listening"
        echo_once(listener)


def bound_datagram() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


@contextlib.contextmanager
def connected() -> Iterator[socket.socket]:
    with stdlib_socket("127.0.0.1") as server, socket.create_connection(server.getsockname()) as client:
        yield client


def no_longer_open() -> socket.socket:
    sock = socket.socket()
    sock.close()
    return sock


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), "a datagram socket cannot listen"),
        (bound_datagram, "a datagram socket cannot listen"),
        (connected, "it is a connection"),
        (socket.socket, "it is bound to no address"),
        (no_longer_open, "."),
    ],
)
@pytest.mark.parametrize("as_number", [False, True])
def test_what_cannot_listen_is_refused_and_left_open(make: Any, told: str, as_number: bool) -> None:
    with make() as sock:
        fd = sock.fileno()
        inheritable = sock.get_inheritable() if fd >= 0 else None
        with pytest.raises(ListenError, match=rf"^adopt\(fd://{fd}\): .*({told})") as caught:
            harken.adopt(fd if as_number else sock)
        assert (caught.value.step, caught.value.address) == ("adopt", f"fd://{fd}")
        assert sock.fileno() == fd
        if fd >= 0:
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)  # as open as before
            assert sock.get_inheritable() == inheritable


@posix_only
def test_a_file_is_refused_and_left_open(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        with pytest.raises(ListenError, match=rf"adopt\(fd://{file.fileno()}\)") as caught:
            harken.adopt(file.fileno())
        assert caught.value.errno == errno.ENOTSOCK
        file.write(b"still open")
        file.flush()


def test_a_number_that_is_not_open_is_refused() -> None:
    for number in (-1, 12345, 2**31 - 1, 2**40, 2**80):
        with pytest.raises(ListenError, match=f"fd://{number}") as caught:
            harken.adopt(number)
        assert caught.value.errno in (errno.EBADF, getattr(errno, "WSAENOTSOCK", errno.EBADF))


@pytest.mark.parametrize("wrong", [None, "3", 3.0, True, object(), ("127.0.0.1", 80)])
def test_a_wrong_type_is_named(wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"adopt.. takes a file descriptor or a socket object.*{type(wrong).__name__}"):
        harken.adopt(wrong)


@pytest.mark.needs_tcp_info
@linux_only
def test_a_second_listen_never_shortens_the_queue() -> None:
    with harken.adopt(stdlib_socket("127.0.0.1", backlog=50)) as listener:
        assert listener.backlog == 50
        listener.listen(5)
        assert listener.backlog == 50
        listener.listen(60)
        assert listener.backlog == 60
        with pytest.raises(ValueError, match="negative"):
            listener.listen(-1)
        listener.listen()
        assert listener.backlog == 60


@needs_unix
def test_a_unix_socket_has_a_path_and_no_port(room: Path) -> None:
    sock = socket.socket(socket.AF_UNIX)
    path = str(room / "my app.sock")
    sock.bind(path)
    with harken.adopt(sock) as listener:
        assert (listener.state, listener.address, listener.proto) == ("bound", path, sock.proto)
        listener.listen()
        assert listener.state == "listening"
        assert listener.url == str(listener) == f"unix:{path.replace(' ', '%20')}"
        assert harken.Bind(listener.url).path == path
        with pytest.raises(ValueError, match="my%20app.sock has no port"):
            listener.port  # noqa: B018
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            connection, _ = listener.accept()
            connection.close()


@linux_only
def test_an_abstract_name_is_a_path_behind_a_nul() -> None:
    sock = socket.socket(socket.AF_UNIX)
    name = f"\0harken-{os.getpid()}-\udcff"
    sock.bind(os.fsencode(name))
    sock.listen()
    with harken.adopt(sock) as listener:
        assert listener.address == name
        assert listener.url == f"unix:@harken-{os.getpid()}-%FF"
        assert harken.Bind(listener.url).path == name


@needs_unix
@posix_only
def test_a_unix_socket_without_a_name_is_refused() -> None:
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(ListenError, match="bound to no address"):
        harken.adopt(sock)


@linux_only
def test_a_seqpacket_socket_is_taken_when_it_listens(room: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(room / "s"))
        with pytest.raises(ListenError, match="its type is 5"):
            harken.adopt(sock)
        sock.listen()
        with harken.adopt(sock) as listener:
            assert (listener.type, listener.state) == (socket.SOCK_SEQPACKET, "listening")


# ---------------------------------------------------------------------------- fd:// in listen


@pytest.mark.needs_tcp_info
@pytest.mark.parametrize("host", LOOPBACKS)
@pytest.mark.parametrize("listening", [True, False])
def test_a_descriptor_can_be_listened_on(host: str, listening: bool) -> None:
    sock = stdlib_socket(host, listening=listening)
    address, fd = sock.getsockname(), sock.fileno()
    with harken.listen("127.0.0.1:0", f"fd://{fd}", "127.0.0.1:0", backlog=5) as listeners:
        sock.detach()
        assert [listener.state for listener in listeners] == ["listening"] * 3
        assert listeners[1].address == address
        echo_once(listeners[1])
        if sys.platform == "linux":
            assert listeners[1].backlog == (7 if listening else 5)  # a queue that is there stays as it is


@pytest.mark.needs_tcp_info
@pytest.mark.parametrize("listening", [True, False])
def test_a_descriptor_can_be_bound_and_listened_on_later(listening: bool) -> None:
    sock = stdlib_socket("127.0.0.1", listening=listening)
    with harken.bind(f"fd://{sock.fileno()}", "127.0.0.1:0", backlog=5) as listeners:
        sock.detach()
        assert [listener.state for listener in listeners] == ["listening" if listening else "bound", "bound"]
        listeners.listen()
        assert [listener.state for listener in listeners] == ["listening"] * 2
        for listener in listeners:
            echo_once(listener)
        if sys.platform == "linux":
            assert [listener.backlog for listener in listeners] == [7 if listening else 5, 5]


@pytest.mark.parametrize("listening", [True, False])
def test_after_a_failure_a_descriptor_is_as_it_was(listening: bool) -> None:
    with stdlib_socket("127.0.0.1", listening=listening) as sock, stdlib_socket("127.0.0.1") as other:
        if WINDOWS:
            other.close()  # it would let others in: it has no SO_EXCLUSIVEADDRUSE
        mode = None if WINDOWS else os.get_blocking(sock.fileno())
        for wrong in (f"fd://{sock.fileno()}", "fd://2147483647", "192.0.2.77:0"):
            with pytest.raises(ListenError) as caught:
                harken.listen(f"fd://{sock.fileno()}", "127.0.0.1:0", wrong)
            assert str(caught.value.address) in (wrong, "('192.0.2.77', 0)")
            assert is_refused(sock.getsockname()) != listening
            if mode is not None:
                assert os.get_blocking(sock.fileno()) == mode
        with harken.listen(f"fd://{sock.fileno()}") as listeners:
            assert listeners.port == sock.getsockname()[1]
            sock.detach()


@posix_only
def test_a_descriptor_that_another_bind_just_got_is_refused() -> None:
    with socket.socket() as sock:
        free = sock.fileno()
    with pytest.raises(ListenError, match=f"adopt.fd://{free}.: .* given twice, or was not open"):
        harken.listen("127.0.0.1:0", f"fd://{free}")


@needs_unix
def test_listeners_of_several_kinds_share_the_port_of_those_that_have_one(room: Path) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(room / "s"))
    with harken.listen("127.0.0.1:0", f"fd://{sock.fileno()}") as listeners:
        sock.detach()
        assert listeners.port == listeners[0].port
        with pytest.raises(ValueError, match="no ports"):
            harken.Listeners(listeners[1:]).port  # noqa: B018


# ---------------------------------------------------------------------------- passed to a child


PREAMBLE = """
import json, os, sys
import harken

def tell(**facts):
    print(json.dumps(facts))

def facts(listeners):
    return [[one.url, one.state, one.get_inheritable(), one.family, one.type, one.proto] for one in listeners]

def attempt(function, *arguments):
    try:
        with function(*arguments) as got:
            tell(got=facts(got if isinstance(got, harken.Listeners) else [got]), port=got.port)
    except (OSError, ValueError) as error:
        tell(kind=type(error).__name__, step=getattr(error, "step", None), text=str(error))
"""


def run(command: list[str], **options: Any) -> list[dict[str, Any]]:
    """What the child told, line by line."""
    child = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)
    assert (child.returncode, child.stderr) == (0, "")
    return [json.loads(line) for line in child.stdout.splitlines()]


def child(program: str, **options: Any) -> list[dict[str, Any]]:
    return run([sys.executable, "-c", PREAMBLE + textwrap.dedent(program)], **options)


@posix_only
@pytest.mark.parametrize("host", LOOPBACKS)
@pytest.mark.parametrize("how", ["harken.adopt, {fd}", "harken.listen, 'fd://{fd}'"])
def test_a_child_takes_what_it_inherits(host: str, how: str) -> None:
    with stdlib_socket(host) as sock:
        fd, port = sock.fileno(), sock.getsockname()[1]
        (told,) = child(f"attempt({how.format(fd=fd)})", pass_fds=[fd])
        ((url, *rest),) = told["got"]
        assert harken.Bind(url).host == host
        assert told["port"] == port
        assert rest == ["listening", False, sock.family, socket.SOCK_STREAM, IPPROTO_TCP]
        assert not is_refused(sock.getsockname())  # ours is as open as before


@posix_only
def test_a_child_refuses_what_cannot_listen(tmp_path: Path) -> None:
    with bound_datagram() as datagram, (tmp_path / "file").open("wb") as file:
        numbers = [datagram.fileno(), file.fileno(), 200]
        program = f"""
            for fd in {numbers}:
                attempt(harken.adopt, fd)
                attempt(harken.listen, f"fd://{{fd}}")
            tell(open=[os.fstat(fd).st_size for fd in {numbers[:2]}])
        """
        *told, last = child(program, pass_fds=numbers[:2])
        assert [one["step"] for one in told] == ["adopt"] * 6
        for n, words in enumerate(
            ["a datagram socket cannot listen", os.strerror(errno.ENOTSOCK), os.strerror(errno.EBADF)]
        ):
            for one in told[2 * n : 2 * n + 2]:
                assert words in one["text"]
                assert f"fd://{numbers[n]}" in one["text"]
        assert len(last["open"]) == 2


# ---------------------------------------------------------------------------- systemd's protocol


# Puts the descriptors at 3, 4, … and becomes the server. {pid} is its pid, {parent} another's, {id} its pidfd's inode.
MANAGER = """
import fcntl, json, os, sys
descriptors, environment, wrap, command = json.loads(sys.argv[1])
high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in descriptors]
for n, fd in enumerate(high):
    os.dup2(fd, 3 + n)
    os.close(fd)
facts = {"pid": os.getpid(), "parent": os.getppid()}
if hasattr(os, "pidfd_open"):
    pidfd = os.pidfd_open(os.getpid())
    facts["id"] = os.fstat(pidfd).st_ino
    os.close(pidfd)
os.closerange(3 + len(high), 200)
for name, value in environment.items():
    os.environ[name] = value.format(**facts)
if wrap:  # as uv run does
    sys.exit(os.spawnv(os.P_WAIT, command[0], command))
os.execv(command[0], command)
"""


def activated(program: str, sockets: Any, *, wrap: bool = False, **environment: str) -> list[dict[str, Any]]:
    """Runs a program as systemd would start it with these sockets."""
    descriptors = [sock if isinstance(sock, int) else sock.fileno() for sock in sockets]
    everything = {"LISTEN_PID": "{pid}", "LISTEN_FDS": str(len(descriptors)), **environment}
    command = [sys.executable, "-c", PREAMBLE + textwrap.dedent(program)]
    told = json.dumps([descriptors, {name: value for name, value in everything.items() if value != "-"}, wrap, command])
    return run([sys.executable, "-c", MANAGER, told], pass_fds=descriptors)


@contextlib.contextmanager
def three_sockets(room: Path) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(stdlib_socket(LOOPBACKS[0]))
        also = stack.enter_context(stdlib_socket(LOOPBACKS[-1]))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(str(room / "s"))
        unix.listen()
        yield [tcp, also, unix]


def urls(told: dict[str, Any]) -> list[str]:
    return [one[0] for one in told["got"]]


def url(sock: socket.socket) -> str:
    with harken.adopt(sock.dup()) as listener:
        return listener.url


@posix_only
@pytest.mark.parametrize("names", [{}, {"LISTEN_FDNAMES": ""}, {"LISTEN_FDNAMES": "a:b:c"}])
def test_all_that_systemd_passes_is_taken_in_its_order(room: Path, names: dict[str, str]) -> None:
    program = """
        left = [name for name in os.environ if name.startswith("LISTEN_")]
        with harken.from_systemd() as listeners:
            gone = [name for name in os.environ if name.startswith("LISTEN_")]
            fds = [one.fileno() for one in listeners]
            tell(got=facts(listeners), before=len(left), gone=gone, kind=type(listeners).__name__, fds=fds)
        attempt(harken.from_systemd)
    """
    with three_sockets(room) as sockets:
        told, again = activated(program, sockets, **names)
        assert urls(told) == [url(sock) for sock in sockets]
        assert {tuple(one[1:3]) for one in told["got"]} == {("listening", False)}
        assert (told["fds"], told["kind"]) == ([3, 4, 5], "Listeners")
        assert told["before"] == 2 + len(names)
        assert told["gone"] == []
        assert "taken over already" in again["text"]


@posix_only
def test_names_choose_and_order(room: Path) -> None:
    program = """
        with harken.from_systemd("admin", "web") as first, harken.from_systemd() as rest:
            tell(got=facts(first))
            tell(got=facts(rest))
    """
    with three_sockets(room) as sockets:
        first, rest = activated(program, sockets, LISTEN_FDNAMES="web:other:admin")
        assert urls(first) == [url(sockets[2]), url(sockets[0])]
        assert urls(rest) == [url(sockets[1])]


@posix_only
def test_several_sockets_may_have_one_name(room: Path) -> None:
    program = """
        attempt(harken.from_systemd, "web")
    """
    with three_sockets(room) as sockets:
        (told,) = activated(program, [*sockets[:1], sockets[2], sockets[0].fileno()], LISTEN_FDNAMES="web:admin:web")
        assert urls(told) == [url(sockets[0])] * 2


@posix_only
def test_sockets_without_names_are_called_unknown(room: Path) -> None:
    with three_sockets(room) as sockets:
        (told,) = activated('attempt(harken.from_systemd, "unknown")', sockets[:1])
        assert urls(told) == [url(sockets[0])]


@posix_only
def test_a_name_that_is_not_there_is_told_with_those_that_are(room: Path) -> None:
    program = """
        attempt(harken.from_systemd, "web", "api")
        attempt(harken.listen, "127.0.0.1:0", "systemd:api")
        attempt(harken.from_systemd)
    """
    with three_sockets(room) as sockets:
        *failures, last = activated(program, sockets[:2], LISTEN_FDNAMES="web:admin")
        for told in failures:
            assert (told["kind"], told["step"]) == ("ListenError", "from_systemd")
            assert "systemd:api" in told["text"]
            assert "the names are 'web', 'admin'" in told["text"]
        assert len(last.get("got", [])) == 2 or "2 ports" in last["text"]  # nothing was lost


@pytest.mark.needs_tcp_info
@posix_only
def test_systemd_stands_in_a_bind(room: Path) -> None:
    program = """
        with harken.listen("systemd:web", "127.0.0.1:0", "systemd:admin", "fd://4", backlog=3) as listeners:
            tell(got=facts(listeners), backlog=listeners[0].backlog)
        attempt(harken.from_systemd)
    """
    with three_sockets(room) as sockets, stdlib_socket("127.0.0.1", listening=False) as bound:
        first, last = activated(program, [sockets[0], sockets[2], bound], LISTEN_FDNAMES="web:other:admin")
        assert [urls(first)[n] for n in (0, 2, 3)] == [url(sockets[0]), url(bound), url(sockets[2])]
        assert {one[1] for one in first["got"]} == {"listening"}
        if sys.platform == "linux":
            assert first["backlog"] == 7
        assert "taken over already" in last["text"]


@posix_only
def test_systemd_without_a_name_is_all_that_was_passed(room: Path) -> None:
    program = """
        from harken._diagnosis.foresee import foresee
        told = [row.verdict for row in foresee(["systemd:"])]
        with harken.listen("systemd:", "127.0.0.1:0") as listeners:
            tell(got=facts(listeners), told=told)
        attempt(harken.listen, "systemd:")
    """
    with three_sockets(room) as sockets:
        for names in ({"LISTEN_FDNAMES": "web:other:admin"}, {}):  # also where nobody gave them names
            first, last = activated(program, list(sockets), **names)
            assert urls(first)[:3] == [url(sock) for sock in sockets]
            assert (len(first["got"]), first["told"]) == (4, ["passed on"] * 3)
            assert "taken over already" in last["text"]


@posix_only
def test_what_a_failed_listen_had_can_be_had_again(room: Path) -> None:
    program = """
        attempt(harken.listen, "systemd:web", "systemd:other", "fd://99")
        attempt(harken.listen, "systemd:web", "fd://3")
        attempt(harken.listen, "fd://3", "systemd:web")
        attempt(harken.from_systemd, "web")
    """
    with three_sockets(room) as sockets:
        *failures, last = activated(program, sockets[:2], LISTEN_FDNAMES="web:other")
        assert [one["step"] for one in failures] == ["adopt", "adopt", "from_systemd"]
        assert urls(last) == [url(sockets[0])]


@posix_only
@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"LISTEN_FDS": "0"}, "systemd passed no sockets"),
        ({"LISTEN_FDS": "-"}, "LISTEN_FDS is not in the environment"),
        ({"LISTEN_FDS": ""}, "it is not a number"),
        ({"LISTEN_FDS": "one"}, "from_systemd(LISTEN_FDS=one): [Errno 22] it is not a number"),
        ({"LISTEN_FDS": "-1"}, "it is not a number"),
        ({"LISTEN_FDS": " 1"}, "it is not a number"),
        ({"LISTEN_FDS": "1x"}, "it is not a number"),
        ({"LISTEN_FDS": "٣"}, "it is not a number"),
        ({"LISTEN_FDS": "9" * 400}, "it is not a number"),
        ({"LISTEN_FDS": "3"}, "3 sockets from 3 on, but 5 is not open"),
        ({"LISTEN_FDS": "2147483647"}, "but 5 is not open"),
        ({"LISTEN_PID": "-"}, "but not LISTEN_PID"),
        ({"LISTEN_PID": ""}, "it is not a number"),
        ({"LISTEN_PID": "me"}, "it is not a number"),
        ({"LISTEN_PID": "{parent}"}, "A wrapper (uv run, poetry run, sh -c)"),
        ({"LISTEN_PID": "0"}, "the sockets were passed to process 0"),
        ({"LISTEN_PIDFDID": "mine"}, "it is not a number"),
        ({"LISTEN_FDNAMES": "web"}, "1 names for 2 sockets"),
        ({"LISTEN_FDNAMES": "a:b:c"}, "3 names for 2 sockets"),
    ],
)
def test_an_environment_that_is_wrong_is_told(room: Path, environment: dict[str, str], told: str) -> None:
    program = """
        before = dict(os.environ)
        attempt(harken.from_systemd)
        attempt(harken.listen, "systemd:web")
        tell(same=dict(os.environ) == before, open=[os.fstat(fd).st_size for fd in (3, 4)])
    """
    with three_sockets(room) as sockets:
        *failures, last = activated(program, sockets[:2], **environment)
        for one in failures:
            assert (one["kind"], one["step"]) == ("ListenError", "from_systemd")
            assert told in one["text"]
        assert last == {"same": True, "open": [0, 0]}


@posix_only
def test_a_wrapper_that_changes_the_pid_is_told(room: Path) -> None:
    with three_sockets(room) as sockets:
        (told,) = activated("attempt(harken.from_systemd)", sockets, wrap=True)
        assert "A wrapper (uv run, poetry run, sh -c) that starts Python as its child changed the pid" in told["text"]


def has_pidfd_inodes() -> bool:
    from harken._inherit import _pidfd_id

    return _pidfd_id() is not None


@pytest.mark.skipif(not has_pidfd_inodes(), reason="pidfds have no inodes of their own here: Linux 6.9 has them")
def test_a_pid_that_another_process_had_is_told(room: Path) -> None:
    with three_sockets(room) as sockets:
        (told,) = activated("attempt(harken.from_systemd)", sockets[:1], LISTEN_PIDFDID="{id}")
        assert urls(told) == [url(sockets[0])]
        (told,) = activated("attempt(harken.from_systemd)", sockets[:1], LISTEN_PIDFDID="12")
        assert "LISTEN_PIDFDID=12" in told["text"]
        assert "which is gone" in told["text"]


@posix_only
def test_without_pidfds_their_number_is_not_asked_for(room: Path) -> None:
    program = """
        for name in ("pidfd_open", "eventfd"):
            if hasattr(os, name):
                delattr(os, name)
        attempt(harken.from_systemd)
    """
    with three_sockets(room) as sockets:
        (told,) = activated(program, sockets[:1], LISTEN_PIDFDID="12")
        assert urls(told) == [url(sockets[0])]


@posix_only
def test_a_name_twice_is_not_two_owners_of_one_socket(room: Path) -> None:
    program = """
        attempt(harken.from_systemd, "web", "web")
        attempt(harken.listen, "systemd:web", "systemd:web")
        attempt(harken.from_systemd, "web")
    """
    with three_sockets(room) as sockets:
        once, also, last = activated(program, sockets[:2], LISTEN_FDNAMES="web:admin")
        for told in (once, also):
            assert (told["kind"], told["step"]) == ("ListenError", "from_systemd")
            assert "systemd:web" in told["text"]
        assert urls(last) == [url(sockets[0])]


@posix_only
def test_no_variable_of_the_protocol_is_left_for_children(room: Path) -> None:
    program = """
        os.environ.setdefault("LISTEN_PIDFDID", "0")
        harken._inherit._pidfd_id = lambda: None  # as before Linux 6.9
        with harken.from_systemd():
            tell(left=[name for name in os.environ if name.startswith("LISTEN_")])
    """
    with three_sockets(room) as sockets:
        (told,) = activated(program, sockets[:1], LISTEN_FDNAMES="web")
        assert told["left"] == []


@posix_only
@pytest.mark.parametrize("inheritable", [False, True])
@pytest.mark.parametrize("ask", ["harken.from_systemd", 'harken.listen, "systemd:unknown"'])
def test_what_this_process_has_opened_was_not_passed(ask: str, inheritable: bool) -> None:
    """As with `sh -c 'LISTEN_PID=$$ LISTEN_FDS=1 exec python ...'`, where nothing lies at 3."""
    program = f"""
        with harken.listen("127.0.0.1:0", inheritable={inheritable}) as (own,):
            attempt({ask})
            own.settimeout(0)
            tell(fd=own.fileno(), open=own.accept_many(), state=own.state)
            attempt({ask})
    """
    first, own, again = activated(program, [], LISTEN_FDS="1")
    assert own == {"fd": 3, "open": [], "state": "listening"}
    for told in (first, again):
        assert (told["kind"], told["step"]) == ("ListenError", "from_systemd")
        assert "3 was opened by this process and not passed to it" in told["text"]


@posix_only
def test_of_two_that_are_announced_one_is_our_own(room: Path) -> None:
    program = """
        with harken.listen("127.0.0.1:0") as (own,):
            attempt(harken.from_systemd)
            tell(fd=own.fileno(), state=own.state)
        attempt(harken.adopt, 3)
    """
    with three_sockets(room) as sockets:
        told, own, adopted = activated(program, sockets[:1], LISTEN_FDS="2")
        assert "2 sockets from 3 on, but 4 was opened by this process" in told["text"]
        assert own == {"fd": 4, "state": "listening"}
        assert urls(adopted) == [url(sockets[0])]  # what was passed is as it was


@posix_only
@pytest.mark.parametrize("how", ["harken.adopt(3)", 'harken.listen("fd://3")[0]', 'harken.bind("fd://3", ttl=9)[0]'])
def test_what_was_adopted_by_its_number_is_taken(room: Path, how: str) -> None:
    program = f"""
        with {how} as first, harken.from_systemd() as rest:
            tell(got=facts([first]))
            tell(got=facts(rest))
            attempt(harken.from_systemd)
    """
    with three_sockets(room) as sockets:
        first, rest, none = activated(program, sockets)
        assert urls(first) == [url(sockets[0])]
        assert urls(rest) == [url(sockets[1]), url(sockets[2])]
        assert "taken over already" in none["text"]


@posix_only
@pytest.mark.parametrize("ask", ['harken.from_systemd, "dns"', 'harken.listen, "systemd:dns"', "harken.from_systemd"])
def test_a_datagram_socket_of_the_same_name_is_left(room: Path, ask: str) -> None:
    program = f"""
        attempt({ask})
        tell(open=[os.fstat(fd).st_size for fd in (3, 4)])
        attempt(harken.from_systemd, "dns")
    """
    with three_sockets(room) as sockets, bound_datagram() as datagram:
        first, left, again = activated(program, [datagram, datagram, sockets[0]], LISTEN_FDNAMES="dns:dns:dns")
        assert urls(first) == [url(sockets[0])]
        assert left == {"open": [0, 0]}
        assert "a datagram socket cannot listen" in again["text"]


@posix_only
def test_one_socket_of_systemds_has_one_owner_whichever_thread_asks(room: Path) -> None:
    program = """
        import threading
        from harken import _inherit
        chosen, go_on = threading.Event(), threading.Event()
        choose, found, names = _inherit._chosen, [], []
        def slow(*arguments):
            result = choose(*arguments)
            chosen.set()
            if threading.current_thread() is first:
                go_on.wait(20)  # between the choice and the taking
            return result
        _inherit._chosen = slow
        def ask():
            try:
                found.append(harken.from_systemd())
            except harken.ListenError as error:
                names.append(str(error))
        first, second = threading.Thread(target=ask), threading.Thread(target=ask)
        first.start()
        chosen.wait(20)
        second.start()
        second.join(0.5)  # without a lock it has them by now
        go_on.set()
        first.join(20)
        second.join(20)
        tell(owners=len(found), errors=names)
    """
    with three_sockets(room) as sockets:
        (told,) = activated(program, sockets[:2])
        assert told["owners"] == 1
        assert "taken over already" in told["errors"][0]


@posix_only
def test_a_signal_handler_that_asks_as_well_makes_no_second_owner(room: Path) -> None:
    program = """
        from harken import _inherit
        choose, found = _inherit._chosen, []
        def interrupted(*arguments):
            result = choose(*arguments)
            _inherit._chosen = choose
            found.append(harken.from_systemd())  # as a handler could, at this line
            return result
        _inherit._chosen = interrupted
        attempt(harken.from_systemd)
        tell(fds=[one.fileno() for one in found[0]])
    """
    with three_sockets(room) as sockets:
        told, last = activated(program, sockets[:2])
        assert (told["kind"], told["step"]) == ("ListenError", "adopt")
        assert last["fds"] == [3, 4]


@posix_only
def test_what_is_passed_but_no_listener_is_refused_and_the_rest_stays(room: Path, tmp_path: Path) -> None:
    program = """
        attempt(harken.from_systemd)
        attempt(harken.from_systemd, "log")
        attempt(harken.from_systemd, "web")
        tell(inheritable=[os.get_inheritable(fd) for fd in (4, 5)])
    """
    with three_sockets(room) as sockets, (tmp_path / "log").open("wb") as log, bound_datagram() as datagram:
        *failures, web, last = activated(program, [sockets[0], log.fileno(), datagram], LISTEN_FDNAMES="web:log:dns")
        for told in failures:
            assert told["step"] == "adopt"
            assert "fd://4" in told["text"]
        assert urls(web) == [url(sockets[0])]
        assert last == {"inheritable": [False, False]}  # nor do children inherit what nobody asked for


@posix_only
def test_children_of_an_activated_server_get_nothing(room: Path) -> None:
    program = """
        import subprocess
        with harken.from_systemd() as listeners:
            look = "import os; print(sorted(os.listdir('/dev/fd')), [n for n in os.environ if n.startswith('LISTEN')])"
            look = "import os\\nfor fd in (3, 4, 5):\\n try: os.fstat(fd); print(fd)\\n except OSError: pass"
            ended = subprocess.run([sys.executable, "-c", look], close_fds=False, capture_output=True, text=True)
            names = "import os; print([n for n in os.environ if n.startswith('LISTEN_')])"
            more = subprocess.run([sys.executable, "-c", names], capture_output=True, text=True)
            tell(seen=ended.stdout, names=more.stdout)
    """
    with three_sockets(room) as sockets:
        (told,) = activated(program, sockets)
        assert told == {"seen": "", "names": "[]\n"}


def test_names_are_texts() -> None:
    from harken._inherit import _number

    assert _number("LISTEN_FDS", "12") == 12
    with pytest.raises(ListenError, match="LISTEN_FDS is not in the environment"):
        harken.from_systemd("web")


def test_harken_names_them() -> None:
    assert {"adopt", "from_systemd", "Bind"} <= set(harken.__all__)
    assert harken.adopt is harken._inherit.adopt
    with pytest.raises(AttributeError, match="adoptt"):
        harken.adoptt  # type: ignore[attr-defined]  # noqa: B018


@posix_only
def test_a_child_may_ask_although_a_thread_of_its_parent_was_choosing_at_the_fork() -> None:
    python(
        FORK
        + """
from harken import _inherit
chosen, asking, go_on = _inherit._chosen, threading.Event(), threading.Event()
def slowly(*arguments):
    if threading.current_thread() is not threading.main_thread():
        asking.set()
        go_on.wait(20)
    return chosen(*arguments)
_inherit._chosen = slowly
listener = harken.listen("127.0.0.1:0")[0]
os.dup2(os.dup(listener.detach()), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
thread = Call(harken.from_systemd)
assert asking.wait(20)
def child():
    os.environ["LISTEN_PID"] = str(os.getpid())
    harken.from_systemd().close()
in_a_child(child)
go_on.set()
thread.outcome().close()
"""
    )
