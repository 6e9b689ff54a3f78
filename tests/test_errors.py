"""What an error says: why, who, and what to do; with real processes in the way, and in networks that lack something."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import pickle
import re
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import harken
from children import NOBODY, REFUSE_FAMILY, has_ended, needs_root, needs_seccomp, needs_table, run, running, server
from harken import Holder
from harken.__main__ import main
from harken._diagnosis import hints as _hints
from harken._diagnosis import holders as _holders
from harken._errors import failure
from machine import HAS_IPV6, LINUX, WINDOWS, linux_only, needs_ipv6, posix_only

if TYPE_CHECKING:
    from poison import Poison

pytest_plugins = ["poison"]


def failing(bind: str | int) -> harken.AddressInUseError:
    with pytest.raises(harken.AddressInUseError) as caught:
        harken.listen(bind)
    return caught.value


# ---------------------------------------------------------------------------- causes


@pytest.mark.needs_sock_diag
@needs_table
def test_a_live_listener_is_the_cause() -> None:
    with running(server()) as child:
        error = failing(f"127.0.0.1:{child['port']}")
        (holder,) = error.holders
        assert (error.cause, holder.pid, holder.state) == ("listener", child["pid"], "listening")
        assert f"(pid {child['pid']}, user " in error.hint
        assert "\n" not in error.hint
        assert "sys.stdin.read()" not in error.hint  # long command lines are cut
        assert str(error).splitlines()[1] == f"hint: {error.hint}"


@pytest.mark.needs_sock_diag
@needs_table
def test_that_we_listen_ourselves_is_said() -> None:
    with harken.listen("127.0.0.1:0") as listeners:
        error = failing(f"127.0.0.1:{listeners.port}")
        assert (error.cause, [holder.pid for holder in error.holders]) == ("listener", [os.getpid()])
        assert error.hint.startswith("this process itself listens on 127.0.0.1:")


@pytest.mark.needs_sock_diag
@linux_only
def test_connections_that_ended_are_the_cause() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # what it had forgotten
    port = server.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        connection, _ = server.accept()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        server.close()
        connection.close()  # first, so that this side waits
        assert client.recv(1) == b""
    error = failing(f"127.0.0.1:{port}")
    (holder,) = error.holders
    assert (error.cause, holder.pid, holder.user, holder.state) == ("time-wait", None, None, "time-wait")
    assert "SO_REUSEADDR" in error.hint


@linux_only
def test_connections_that_went_out_from_a_port_are_told_as_the_cause() -> None:
    program = """
        import harken
        server = socket.create_server(("127.0.0.1", 5000))
        client = socket.socket()
        client.connect(("127.0.0.1", 5000))
        port = client.getsockname()[1]
        connection, _ = server.accept()
        def told(bind):
            try:
                harken.listen(bind).close()
            except harken.AddressInUseError as error:
                return [error.cause, error.hint]
        open_ = told(f"127.0.0.1:{port}")
        client.close()  # first, so that its side waits
        connection.recv(1)
        connection.close()
        server.close()
        closed = told(f"127.0.0.1:{port}")
        open("/proc/sys/net/ipv4/ip_local_reserved_ports", "w").write(f"1-5,{port},60000")
        tell(port=port, open=open_, closed=closed, reserved=told(f"127.0.0.1:{port}"), low=told("127.0.0.1:5000"))
    """
    told = run(program, setup="echo 40000 40999 > /proc/sys/net/ipv4/ip_local_port_range")
    given = "The system uses the ports 40000 to 40999 (net.ipv4.ip_local_port_range) for outgoing connections"
    for which, cause in (("open", "bound"), ("closed", "time-wait")):
        assert told[which][0] == cause
        assert given in told[which][1]
        assert f"`sysctl -w net.ipv4.ip_local_reserved_ports={told['port']}`" in told[which][1]
    assert told["reserved"][0] == "time-wait"
    assert given not in told["reserved"][1]
    assert told["low"] is None


@pytest.mark.needs_sock_diag
@needs_table
def test_the_listeners_on_a_whole_range_are_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(server()) as child:
        port = child["port"]
        error = failure("bind", f"127.0.0.1:{port}-{port}", OSError(errno.EADDRINUSE, "in use"))
        assert isinstance(error, harken.AddressInUseError)
        assert (error.cause, [holder.pid for holder in error.holders]) == ("listener", [child["pid"]])
        assert error.hint.startswith(f"no port of 127.0.0.1:{port}-{port} is free: ")
        monkeypatch.setattr(_holders, "_on_ports", lambda _: [])
        error = failure("bind", f"127.0.0.1:{port}-{port}", OSError(errno.EADDRINUSE, "in use"))
        assert "try again" in error.hint


@pytest.mark.needs_sock_diag
@needs_table
@pytest.mark.parametrize(("theirs", "ours"), [("127.0.0.1", "tcp4://:{}"), ("0.0.0.0", "127.0.0.1:{}")])
def test_a_wildcard_over_an_address_is_the_cause_in_both_directions(theirs: str, ours: str) -> None:
    with running(server(theirs)) as child:
        port = child["port"]
        error = failing(ours.format(port))
        assert (error.cause, error.holders[0].pid) == ("wildcard", child["pid"])
        assert f"0.0.0.0:{port} includes 127.0.0.1:{port};" in error.hint


@needs_ipv6
@needs_table
@pytest.mark.parametrize("ours", ["tcp4://:{}", "127.0.0.1:{}"])
def test_a_socket_that_takes_both_families_is_the_cause(ours: str) -> None:
    with running(server("::", v6only=0)) as child:
        error = failing(ours.format(child["port"]))
        assert (error.cause, error.holders[0].pid) == ("v6only", child["pid"])
        assert f"[::]:{child['port']}, which also accepts IPv4" in error.hint


@linux_only
@needs_ipv6
def test_wanting_both_families_at_once_is_the_cause() -> None:
    with running(server("0.0.0.0")) as child, socket.socket(socket.AF_INET6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        with pytest.raises(OSError, match="in use") as caught:
            sock.bind(("::", child["port"]))
        found = _holders.explain(("::", child["port"], 0, 0))
        assert caught.value.errno is not None
        assert (found.cause, found.holders[0].pid) == ("v6only", child["pid"])


HAND_ON = """
    sock = socket.create_server(("127.0.0.1", 0))
    sock.set_inheritable(True)
    program = "import sys; print(flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", program], close_fds=False, stdout=subprocess.PIPE)
    child.stdout.readline()
    tell(port=sock.getsockname()[1], child=child.pid)
"""


@pytest.mark.needs_sock_diag
@linux_only
def test_a_child_that_outlived_its_parent_is_the_cause() -> None:
    """It ends with the test, as its standard input does."""
    with running(HAND_ON + "    os._exit(0)\n", session=True) as parent:
        has_ended(parent["pid"])
        error = failing(f"127.0.0.1:{parent['port']}")
        assert (error.cause, [holder.pid for holder in error.holders]) == ("inherited", [parent["child"]])
        assert f"pid {parent['child']}" in error.hint
        assert "inherited the socket on" in error.hint


@pytest.mark.needs_sock_diag
@linux_only
def test_a_socket_that_parent_and_child_share_is_the_cause() -> None:
    with running(HAND_ON + "    wait()\n") as parent:
        error = failing(f"127.0.0.1:{parent['port']}")
        assert (error.cause, {holder.pid for holder in error.holders}) == (
            "inherited",
            {parent["pid"], parent["child"]},
        )
        assert "share the socket" in error.hint


@pytest.mark.needs_sock_diag
@linux_only
def test_a_child_of_ours_that_kept_what_we_closed_is_the_cause() -> None:
    program = HAND_ON.replace("subprocess.PIPE)", "subprocess.PIPE, stdin=subprocess.PIPE)")
    program += """
    address = "%s:%s" % sock.getsockname()
    sock.close()
    attempt(address)
    child.communicate()
    """
    told = run(program)
    assert (told["cause"], told["holders"][0][0]) == ("inherited", told["child"])


@linux_only
def test_a_held_bind_is_the_cause() -> None:
    with running(server(listens=False)) as child:
        error = failing(f"127.0.0.1:{child['port']}")
        if not error.holders:
            assert error.cause == "unknown"
            pytest.skip("Linux before 6.8 does not tell of sockets that are bound and no more")
        assert (error.cause, error.holders[0].pid, error.holders[0].state) == ("bound", child["pid"], "bound")
        assert "does not listen" in error.hint


@pytest.mark.needs_sock_diag
@linux_only
def test_a_connection_that_goes_out_from_the_port_is_the_cause() -> None:
    with harken.listen("127.0.0.1:0") as far, socket.create_connection(("127.0.0.1", far.port), timeout=10) as client:
        error = failing(f"127.0.0.1:{client.getsockname()[1]}")
        assert error.cause == "bound"
        # Another process's connection to elsewhere may go out from the same port.
        assert (os.getpid(), "established") in [(holder.pid, holder.state) for holder in error.holders]
        assert "has a connection from" in error.hint


@pytest.mark.needs_sock_diag
@linux_only
@needs_root
def test_what_may_not_be_looked_into_is_the_cause() -> None:
    with running(server(first=f"become({NOBODY})")) as child:
        told = run(f"become({NOBODY - 1}); attempt('127.0.0.1:{child['port']}')")
    assert told["cause"] == "hidden"
    assert told["holders"] == [[None, "nobody", "listening"]]
    assert "a process of user nobody that this user cannot inspect" in told["hint"]
    assert f"python -m harken who 127.0.0.1:{child['port']}" in told["hint"]


def test_nobody_is_the_cause_when_it_is_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_holders, "_on_ports", lambda _: [])
    with harken.listen("127.0.0.1:0") as listeners:
        error = failing(f"127.0.0.1:{listeners.port}")
    assert (error.cause, error.holders) == ("unknown", [])
    assert "try again" in error.hint


@pytest.mark.needs_sock_diag
@needs_table
def test_it_is_looked_into_when_it_is_asked_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    table = _holders._on_ports
    monkeypatch.setattr(_holders, "_on_ports", lambda ports: asked.append(ports[0]) or table(ports))
    with harken.listen("127.0.0.1:0") as listeners:
        error = failing(f"127.0.0.1:{listeners.port}")
        assert asked == []
        first = str(error)
        assert asked == [listeners.port]
    assert str(error) == first
    assert (error.cause, len(error.holders)) == ("listener", 1)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_knows_what_was_found(duplicate: Callable[[Any], Any]) -> None:
    with harken.listen("127.0.0.1:0") as listeners:
        error = failing(f"127.0.0.1:{listeners.port}")
        error.add_note("on the second try")
        again = duplicate(error)
    assert type(again) is type(error)
    assert (again.cause, again.holders, again.hint, str(again)) == (error.cause, error.holders, error.hint, str(error))
    assert again.__notes__ == ["on the second try"]


@needs_table
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_that_is_made_before_it_was_asked_has_found_out_all_the_same(duplicate: Callable[[Any], Any]) -> None:
    """It may be read where, or when, nobody has the port."""
    with running(server()) as child:
        error = failing(f"127.0.0.1:{child['port']}")
        again = duplicate(error)
    assert [holder.pid for holder in again.holders] == [child["pid"]]
    assert again.cause == "listener"
    assert f"(pid {child['pid']}, user " in again.hint
    assert f"(pid {child['pid']}, user " in str(again)


@linux_only
def test_a_relative_path_is_told_of_wherever_the_process_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("app.sock")
        sock.listen()
        error = failing("unix:app.sock")
        monkeypatch.chdir("elsewhere")
        assert error.address == "./app.sock"
        assert (error.cause, [holder.pid for holder in error.holders]) == ("listener", [os.getpid()])


@linux_only
@needs_root
def test_a_later_listen_that_fails_names_nobody_on_another_interface() -> None:
    program = """
        import harken
        def bound(interface):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
            sock.bind(("127.0.0.1", 8080))
            return sock
        late, rival, bystander = bound("lo"), bound("lo"), bound("va")
        bystander.listen()
        child = subprocess.Popen([sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[rival.fileno()])
        child.stdout.readline()
        rival.listen()
        rival.close()
        try:
            harken.adopt(late).listen()
        except harken.AddressInUseError as error:
            tell(step=error.step, child=child.pid, cause=error.cause,
                 holders=[[one.pid, one.interface, one.state] for one in error.holders])
        child.communicate()
    """
    told = run(program, setup="ip link add va type veth peer name vb; ip link set va up")
    assert (told["step"], told["cause"]) == ("listen", "inherited")
    assert told["holders"] == [[told["child"], "lo", "listening"]]


# ---------------------------------------------------------------------------- the call in its own way


@pytest.fixture
def free() -> int:
    """A port that nobody has, with another one behind it; none that connections of other tests are given."""
    first = 10000 + os.getpid() * 1009 % 20000
    for port in range(first, first + 200, 2):
        try:
            harken.listen(f":{port}", f":{port + 1}").close()
        except OSError:
            continue
        return port
    pytest.skip("no two ports in a row are free")


@pytest.mark.parametrize("open_them", [harken.listen, harken.bind])
@pytest.mark.parametrize(
    "binds",
    [
        ["0.0.0.0:{0}", "127.0.0.1:{0}"],
        ["127.0.0.1:{0}", "tcp4://:{0}"],
        ["127.0.0.1:{0}", "127.0.0.1:{0}"],
        ["localhost:{0}", "localhost:{0}"],
        ["localhost:{0}", "127.0.0.1:{0}"],
        ["127.0.0.1:{0}", "127.0.0.1:0", "127.0.0.1:{0}"],
        ["127.0.0.1:{0}?backlog=5", "127.0.0.1:{0}?nodelay=1"],
        ["127.0.0.1:{0}-{1}", "127.0.0.1:{0}"],
        ["127.0.0.1:{0}", "127.0.0.1:{1}", "127.0.0.1:{0}-{1}"],
        [":{0}?ipv6_only=0", "127.0.0.1:{0}"],
        [":{0}?ipv6_only=0", "[::1]:{0}"],
        ["127.0.0.1:{0}", ":{0}?ipv6_only=0"],
        ["0.0.0.0:{0}?reuse_port=1", "127.0.0.1:{0}?reuse_port=1"],
        ["127.0.0.1:{0}?reuse_port=1", "127.0.0.1:{0}"],
        ["tcp4://:{0}?interface=lo", "127.0.0.1:{0}"],
        ["mptcp://127.0.0.1:{0}", "127.0.0.1:{0}"],
    ],
)
@linux_only
@needs_ipv6
def test_a_call_that_is_in_its_own_way_says_so(free: int, open_them: Callable[..., Any], binds: list[str]) -> None:
    binds = [bind.format(free, free + 1) for bind in binds]
    with pytest.raises(harken.AddressInUseError) as caught:
        open_them(*binds)
    error = caught.value
    assert (error.cause, error.holders) == ("twice", [])
    first = binds[-2] if len(set(binds)) == 3 and "-" in binds[-1] else binds[0]
    assert repr(first) in error.hint
    assert repr(binds[-1]) in error.hint
    assert "of the same call" in error.hint or "twice in the same call" in error.hint
    copied = pickle.loads(pickle.dumps(error))
    assert (copied.cause, copied.holders, copied.hint) == (error.cause, error.holders, error.hint)


@linux_only
@pytest.mark.parametrize("open_them", [harken.listen, harken.bind])
@pytest.mark.parametrize("other", ["unix:{0}/a", "unix:{0}/../{1}/a", "unix:{0}/a?mode=0600", "unix:./a"])
def test_a_path_that_is_given_twice_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_them: Callable[..., Any], other: str
) -> None:
    monkeypatch.chdir(tmp_path)
    other = other.format(tmp_path, tmp_path.name)
    with pytest.raises(harken.AddressInUseError) as caught:
        open_them("127.0.0.1:0", f"unix:{tmp_path}/a", other)
    assert (caught.value.cause, caught.value.holders) == ("twice", [])
    assert repr(other) in caught.value.hint
    assert list(tmp_path.iterdir()) == []


@linux_only
@pytest.mark.parametrize("first", ["unix:a", "unix:./a?exclusive=0"])
@pytest.mark.parametrize("second", ["unix:a", "unix:{0}/a?exclusive=0", "unix:link/a?exclusive=0"])
@pytest.mark.parametrize("lives", [True, False])
def test_a_call_does_not_take_a_path_over_from_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str, lives: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    binds = [first.format(tmp_path), second.format(tmp_path)]
    with contextlib.ExitStack() as stack:
        if lives:
            old = stack.enter_context(socket.socket(socket.AF_UNIX))
            old.bind("a")
            old.listen()
        with pytest.raises(harken.AddressInUseError) as caught:
            harken.listen(*binds)
        if lives and "?" not in first:
            assert caught.value.cause == "listener"  # the first is refused
        else:
            assert (caught.value.cause, caught.value.holders) == ("twice", [])
        if lives:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect("a")
        assert sorted(os.listdir()) == (["a", "link"] if lives else ["link"])


@linux_only
def test_an_abstract_name_and_a_descriptor_that_are_given_twice_say_so() -> None:
    name = f"unix:@harken-twice-{os.getpid()}"
    with pytest.raises(harken.AddressInUseError) as caught:
        harken.listen(name, name)
    assert caught.value.cause == "twice"
    with socket.create_server(("127.0.0.1", 0)) as sock:
        bind = f"127.0.0.1:{sock.getsockname()[1]}"
        with pytest.raises(harken.AddressInUseError) as caught:
            harken.listen(f"fd://{sock.fileno()}", bind)
        assert (caught.value.cause, caught.value.holders) == ("twice", [])
        assert repr(f"fd://{sock.fileno()}") in caught.value.hint
        with pytest.raises(harken.ListenError, match="given twice"):
            harken.listen(f"fd://{sock.fileno()}", f"fd://{sock.fileno()}")


@linux_only
def test_a_name_that_stands_for_one_address_and_all_of_them_is_in_its_own_way(poison: Poison) -> None:
    program = """
        import harken
        try:
            harken.listen("both:18083")
        except harken.AddressInUseError as error:
            tell(cause=error.cause, hint=error.hint)
    """
    told = poison.run(program, hosts="both=0.0.0.0,127.0.0.1").said
    assert told["cause"] == "twice"
    assert "'both:18083' is given twice in the same call, or names addresses that overlap" in told["hint"]


@pytest.mark.needs_sock_diag
@needs_table
@pytest.mark.parametrize("binds", [["0.0.0.0:{0}", "127.0.0.1:{1}"], ["0.0.0.0:{0}", "127.0.0.1:{0}", "127.0.0.1:{1}"]])
def test_who_else_is_in_the_way_is_told_beside_sockets_of_our_own(free: int, binds: list[str]) -> None:
    """Nothing of the call overlaps with what somebody else has; and what is refused first is told."""
    with running(server()) as child:
        with pytest.raises(harken.AddressInUseError) as caught:
            harken.listen(*(bind.format(free, child["port"]) for bind in binds))
        assert (caught.value.cause, [holder.pid for holder in caught.value.holders]) == ("listener", [child["pid"]])


@pytest.mark.needs_sock_diag
@linux_only
def test_another_process_on_a_narrower_address_is_told_and_not_the_call() -> None:
    """0.0.0.0 of this call is bound and does not listen, so that it is in nobody's way."""
    with running(server("127.0.0.2")) as child:
        with pytest.raises(harken.AddressInUseError) as caught:
            harken.listen(f"127.0.0.1:{child['port']}", f"127.0.0.2:{child['port']}")
        assert (caught.value.cause, [holder.pid for holder in caught.value.holders]) == ("listener", [child["pid"]])


# ---------------------------------------------------------------------------- causes on other systems


class SaidError(Exception):
    """psutil's."""


class EndedError(SaidError):
    pass


@pytest.fixture
def psutil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What psutil says where these tests do not run: pid → parent of all that listen on 127.0.0.1:8080."""

    def say(parents: dict[int, int | None], *, each_its_own: bool = False) -> None:
        class Process:
            def __init__(self, pid: int) -> None:
                self.pid = pid
                if parents[pid] is None:
                    raise EndedError

            def name(self) -> str:
                return "server.exe"

            def ppid(self) -> int | None:
                return parents[self.pid]

            def net_connections(self, _: str) -> list[Any]:
                return [connection(self.pid)]

            def forbidden(self) -> str:
                raise SaidError

            username = cmdline = forbidden

        def connection(pid: int) -> Any:
            return SimpleNamespace(family=socket.AF_INET, laddr=("127.0.0.1", 8080), status="LISTEN", pid=pid)

        def connections(_: str) -> list[Any]:
            if each_its_own:
                raise SaidError
            return [connection(pid) for pid in parents]

        fake = SimpleNamespace(
            Error=SaidError,
            AccessDenied=SaidError,
            NoSuchProcess=EndedError,
            Process=Process,
            process_iter=lambda: map(Process, parents),
            net_connections=connections,
        )
        monkeypatch.setitem(sys.modules, "psutil", fake)  # type: ignore[arg-type]
        monkeypatch.setattr(_holders, "by_sock_diag", unavailable)
        monkeypatch.setattr(_holders, "by_proc", unavailable)

    return say


def unavailable(_: range) -> Any:
    raise OSError


def refused(winerror: int | None = None) -> Any:
    """The error of a bind to 127.0.0.1:8080."""
    reason = OSError(errno.EADDRINUSE, "in use") if winerror is None else PermissionError(errno.EACCES, "forbidden")
    if winerror is not None:
        reason.winerror = winerror  # type: ignore[attr-defined,unused-ignore]
    return failure("bind", ("127.0.0.1", 8080), reason)


@pytest.mark.parametrize("each_its_own", [False, True])
def test_what_psutil_tells_is_told(psutil: Callable[..., None], each_its_own: bool) -> None:
    psutil({50: 1}, each_its_own=each_its_own)
    error = refused()
    assert error.holders == [Holder(50, "server.exe", None, "", ("127.0.0.1", 8080), "listening")]
    assert error.cause == "listener"
    assert error.hint.startswith("server.exe (pid 50) listens on 127.0.0.1:8080 already; end it or")


@pytest.mark.parametrize("parents", [{50: 1, 51: 50}, {50: None}])
def test_a_child_has_it_also_where_psutil_tells(psutil: Callable[..., None], parents: dict[int, int | None]) -> None:
    """On Windows a socket is said to be that of the process that made it, also when only a child is left."""
    psutil(parents)
    assert refused().cause == "inherited"


def test_on_windows_a_forbidden_port_is_a_port_in_use(psutil: Callable[..., None]) -> None:
    psutil({50: 1})
    error = refused(winerror=10013)
    assert isinstance(error, harken.AddressInUseError)
    assert isinstance(error, PermissionError)
    assert error.cause == "listener"


NETSH = """
Protocole tcp Plages d'exclusion de ports

Port de début    Port de fin
-------------    -----------
       5357        5357
       8000        8099     *

* - Exclusions de ports administrés.
"""


def test_on_windows_a_port_may_be_in_a_range_that_is_kept(
    psutil: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    psutil({})
    monkeypatch.setattr(_hints, "excluded_range", lambda _, port: _hints.range_with(port, NETSH))
    error = refused(winerror=10013)
    assert (error.cause, error.holders) == ("excluded", [])
    assert "the ports 8000 to 8099" in error.hint
    assert "choose another, as 8100" in error.hint
    assert _hints.range_with(5356, NETSH) is None
    assert _hints.range_with(5357, NETSH) == (5357, 5357)


LINUX_WORDS = re.compile(
    r"SO_REUSEADDR|pass_fds|systemctl|systemd|/proc|sysctl|net\\.(ipv4|core)|CAP_|SELinux|AppArmor|seccomp|rm |mkdir -p"
    r"|/etc|ulimit|Linux"
)


@pytest.mark.parametrize(
    ("step", "address", "number", "told"),
    [
        ("bind", ("127.0.0.1", 8080), errno.EADDRINUSE, "no process is found that holds it"),
        ("bind", ("127.0.0.1", 8080), errno.EACCES, "a firewall"),
        ("socket", ("127.0.0.1", 8080), errno.EACCES, "a firewall"),
        ("bind", "C:\\\\no\\\\such/app.sock", errno.ENOENT, 'mkdir "'),
        ("adopt", "fd://7", errno.EBADF, "set_inheritable()"),
        ("adopt", "fd://7", errno.ENOTSOCK, "it is not a socket"),
        ("socket", ("127.0.0.1", 8080), errno.ENOBUFS, "no memory"),
    ],
)
def test_on_windows_no_words_of_linux_are_said(
    psutil: Callable[..., None], monkeypatch: pytest.MonkeyPatch, step: str, address: Any, number: int, told: str
) -> None:
    on_windows(monkeypatch)
    psutil({})
    hint = failure(step, address, OSError(number, "no")).hint
    assert told in hint
    assert LINUX_WORDS.findall(hint) == []


def on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers that the hints ask for are Windows'."""
    monkeypatch.setattr(_hints, "is_winsock", lambda: True)
    monkeypatch.setattr(_hints, "is_linux", lambda: False)
    monkeypatch.setattr(_hints, "setting", lambda _: "")


def test_where_the_addresses_are_not_told_the_loopbacks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine's own name stands for neither, and no hint may say that there is no IPv6 where ::1 is."""

    def refuse(*_: object) -> Any:
        raise OSError(errno.EAFNOSUPPORT, "no netlink")

    on_windows(monkeypatch)
    monkeypatch.setattr(_hints.netlink, "dump", refuse)
    mine = _hints.local_addresses()
    assert "127.0.0.1" in mine
    assert ("::1" in mine) == HAS_IPV6
    hint = failure("bind", ("2001:db8::77", 80, 0, 0), OSError(errno.EADDRNOTAVAIL, "no")).hint
    assert ("no interface here has IPv6" in hint) != HAS_IPV6
    hint = failure("bind", ("::127.0.0.1", 80, 0, 0), OSError(errno.EADDRNOTAVAIL, "no")).hint
    assert hint.startswith("an IPv4 address in IPv6 form, which no machine has: write 127.0.0.1:80")


@pytest.mark.skipif(LINUX, reason="Linux has a /proc")
def test_no_file_is_taken_for_the_kernels() -> None:
    """Elsewhere /proc may be anybody's: on Windows it is a folder of the current drive."""
    opened: list[str] = []
    looking = True
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if looking and event == "open" else None)
    with harken.listen("127.0.0.1:0", rcvbuf=8192) as listeners:
        listeners[0].stats()
        with pytest.raises(harken.AddressInUseError) as caught:
            harken.listen(f"127.0.0.1:{listeners.port}")
        assert caught.value.hint
        assert main(["check", "127.0.0.1:0", "[::127.0.0.1]:80", f"127.0.0.1:{listeners.port}"])
    for number in _hints._BY_NUMBER:
        assert failure("bind", ("2001:db8::77", 80, 0, 0), OSError(number, "no")).hint is not None
    Path(__file__).open().close()
    looking = False  # a hook stays for ever
    assert any(__file__ in name for name in opened)  # the hook sees what is opened
    assert [name for name in opened if name.startswith("/proc")] == []


def test_on_windows_a_restart_has_to_wait_for_old_connections(
    psutil: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_windows(monkeypatch)
    psutil({})
    ended = _holders.Held(("127.0.0.1", 8080), "time-wait", 0, None, None)
    monkeypatch.setattr(_holders, "_on_ports", lambda _: [ended])
    error = refused()
    assert error.cause == "time-wait"
    assert "SO_EXCLUSIVEADDRUSE" in error.hint
    assert "exclusive=False" in error.hint
    assert LINUX_WORDS.findall(error.hint) == []


# ---------------------------------------------------------------------------- other hints


@linux_only
@needs_root
def test_a_privileged_port_is_told_with_the_limit_and_three_ways_out() -> None:
    program = f"""
        open("/proc/sys/net/ipv4/ip_unprivileged_port_start", "w").write("600")
        become({NOBODY})
        attempt("127.0.0.1:599")
    """
    told = run(program, namespace=True)
    assert (told["step"], told["number"]) == ("bind", errno.EACCES)
    assert "PermissionError" in told["kinds"]
    assert "net.ipv4.ip_unprivileged_port_start" in told["hint"]
    for way in ("use 600 or above", "CAP_NET_BIND_SERVICE", "AmbientCapabilities=", "socket activation", "proxy"):
        assert way in told["hint"]


@linux_only
def test_another_thing_that_forbids_is_not_taken_for_the_port() -> None:
    error = failure("bind", ("127.0.0.1", 8080), PermissionError(errno.EACCES, "no"))
    assert "SELinux" in error.hint
    assert "ip_unprivileged_port_start" not in error.hint
    assert "seccomp" in failure("socket", ("127.0.0.1", 80), PermissionError(errno.EPERM, "no")).hint


def test_an_address_that_is_elsewhere_is_told_with_those_that_are_here() -> None:
    with pytest.raises(harken.ListenError) as caught:
        harken.listen("192.0.2.77:8080")
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert "127.0.0.1" in caught.value.hint
    assert (
        "not 192.0.2.77: bind one of these; if it is added later, start after that (After=network-" in caught.value.hint
    )
    assert ("?freebind=1" in caught.value.hint) == LINUX
    assert ":8080" not in caught.value.hint  # which would be every address


@linux_only
def test_the_addresses_are_those_of_the_machine() -> None:
    program = """
        subprocess.run(["ip", "address", "add", "198.51.100.7/32", "dev", "lo"], check=True)
        attempt("198.51.100.8:80")
    """
    told = run(program, namespace=True)
    assert told["hint"].startswith("this machine has 127.0.0.1, 198.51.100.7, ")
    assert "not 198.51.100.8" in told["hint"]


@linux_only
@needs_root
@needs_ipv6
@needs_seccomp
@pytest.mark.parametrize("netlink", [True, False])
@pytest.mark.parametrize(
    ("options", "bind"),
    [
        ("", "[2001:db8::10]:8080"),
        ("", "[fe80::10%va]:8080"),
        ("nodad", "[2001:db8::10]:8080"),
        ("", "[2001:db8::11]:8080"),
    ],
)
def test_an_address_that_is_being_checked_for_duplicates_says_so(options: str, bind: str, netlink: bool) -> None:
    """As long as the other end of the link is down."""
    program = (
        REFUSE_FAMILY
        + f"""
import errno, harken
{"" if netlink else "refuse_family(socket.AF_NETLINK, errno.EPERM)"}
attempt("{bind}")
harken.listen("{bind}?freebind=1").close()
"""
    )
    setup = f"""
        ip link add va type veth peer name vb
        ip link set va up
        ip address add 2001:db8::10/64 dev va {options}
        ip address add fe80::10/64 dev va {options}
    """
    told = run(program, setup=setup)
    if options:
        assert told["step"] is None
    elif "::11" in bind:
        assert "duplicates" not in told["hint"]
    else:
        host = bind[1:].partition("]")[0].partition("%")[0]
        assert told["hint"].startswith(f"va has {host}, which is still being checked for duplicates: try again")
        assert "`nodad`" in told["hint"]
        assert "?freebind=1" in told["hint"]


@linux_only
@needs_root
@needs_ipv6
def test_an_address_that_another_machine_has_says_so() -> None:
    program = """
        def ip(words):
            subprocess.run(["ip", *words.split()], check=True)
        program = "import sys; print(flush=True); sys.stdin.read()"
        command = ["unshare", "-n", sys.executable, "-c", program]
        other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        other.stdout.readline()
        ip(f"link add near type veth peer name far netns {other.pid}")
        there = ["nsenter", "-t", str(other.pid), "-n", "ip"]
        subprocess.run([*there, "address", "add", "2001:db8::10/64", "dev", "far", "nodad"], check=True)
        subprocess.run([*there, "link", "set", "far", "up"], check=True)
        ip("link set near up")
        ip("address add 2001:db8::10/64 dev near")
        monitor = ["ip", "-6", "address", "show", "dev", "near", "dadfailed"]
        while not subprocess.run(monitor, capture_output=True, check=True).stdout:
            pass
        attempt("[2001:db8::10]:8080")
        from harken.__main__ import main
        import contextlib, io
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            main(["check", "--json", "[2001:db8::10]:8080"])
        tell(checked=out.getvalue())
        other.communicate()
    """
    told = run(program, namespace=True)
    assert told["number"] == errno.EADDRNOTAVAIL
    assert told["hint"].startswith("near has 2001:db8::10, but another machine on this network")
    assert told["hint"] in told["checked"]


@linux_only
@needs_ipv6
def test_ipv6_that_is_disabled_is_told() -> None:
    program = """
        open("/proc/sys/net/ipv6/conf/all/disable_ipv6", "w").write("1")
        attempt("[::1]:8080")
    """
    told = run(program, namespace=True)
    assert told["number"] == errno.EADDRNOTAVAIL
    assert "IPv6 is disabled here (net.ipv6.conf.all.disable_ipv6 = 1)" in told["hint"]


@linux_only
@needs_ipv6
def test_a_link_local_address_needs_its_interface() -> None:
    with pytest.raises(harken.ListenError) as caught:
        harken.listen("[fe80::1]:8080")
    assert caught.value.hint.startswith(
        "a link-local address needs its interface, as in [fe80::1%eth0]:8080, and none of "
    )


@posix_only
def test_a_limit_on_files_is_told_when_there_is_no_file_left_to_look_with() -> None:
    program = """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 80))
        import harken, harken._diagnosis.hints
        kept = []
        try:
            while True:
                kept.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            attempt("127.0.0.1:0")
    """
    told = run(program)
    assert (told["step"], told["number"]) == ("socket", errno.EMFILE)
    assert "its limit of 64 open files and sockets" in told["hint"]  # the one in force; it may be raised to 80
    assert "ulimit -n" in told["hint"]


@pytest.mark.parametrize(
    ("number", "address", "told"),
    [
        (errno.EAFNOSUPPORT, ("::1", 80, 0, 0), "IPv6"),
        (errno.EAFNOSUPPORT, ("127.0.0.1", 80), "no such address family"),
        (errno.ENFILE, ("127.0.0.1", 80), "the system-wide limit"),
        (errno.ENOBUFS, ("127.0.0.1", 80), "no memory left for sockets"),
        (errno.EACCES, "/run/app.sock", "the folder of /run/app.sock"),
        (errno.EADDRNOTAVAIL, "/run/app.sock", ""),
        (errno.EINVAL, ("127.0.0.1", 80), ""),
        (errno.ENOPROTOOPT, ("127.0.0.1", 80), ""),
    ],
)
def test_each_number_has_its_hint_or_none(number: int, address: Any, told: str) -> None:
    error = failure("socket" if isinstance(address, tuple) else "bind", address, OSError(number, "no"))
    assert told in error.hint
    assert bool(told) == bool(error.hint)
    assert str(error).count("\n") == bool(told)


@pytest.mark.parametrize(
    ("code", "bind", "told"),
    [
        ("EAI_NONAME", "no.such.name:80", "no host is called 'no.such.name'"),
        ("EAI_NONAME", "localhost:htpp", "no service is called 'htpp'"),
        ("EAI_SERVICE", "localhost:htpp", "no service is called 'htpp'"),
        ("EAI_AGAIN", "db.internal:80", "no name server answered for 'db.internal': try again"),
        ("EAI_FAIL", "db.internal:80", "refused to answer for 'db.internal'"),
        ("EAI_FAMILY", "tcp4://[::1]:80", "'::1' has no address of the family"),
        ("EAI_MEMORY", "localhost:80", ""),
    ],
)
def test_a_name_without_an_address_has_its_hint(code: str, bind: str, told: str) -> None:
    error = failure("getaddrinfo", bind, socket.gaierror(getattr(socket, code), "no"))
    assert told in error.hint
    assert bool(told) == bool(error.hint)


@pytest.mark.parametrize(
    ("kernel_has_it", "filtered", "told"),
    [
        (False, False, "this system has no IPv6 at all (built or started without it)"),
        (False, True, "this system has no IPv6, or a seccomp filter denies IPv6 to this process"),
        (True, False, "this system has IPv6, but a seccomp filter denies IPv6 to this process"),
    ],
)
def test_a_family_may_be_lacking_or_filtered(
    monkeypatch: pytest.MonkeyPatch, kernel_has_it: bool, filtered: bool, told: str
) -> None:
    monkeypatch.setattr(_hints, "HAS_PROC", True)
    monkeypatch.setattr(os.path, "exists", lambda path: kernel_has_it and path == "/proc/net/if_inet6")
    monkeypatch.setattr(_hints, "_is_filtered", lambda: filtered)
    error = failure("socket", ("::1", 80, 0, 0), OSError(errno.EAFNOSUPPORT, "no"))
    assert error.hint.startswith(told)


def test_an_unknown_service_says_so() -> None:
    with pytest.raises(harken.ListenError) as caught:
        harken.listen("127.0.0.1:no-such-service")
    assert "no service is called 'no-such-service'" in caught.value.hint


@linux_only
@needs_root
@pytest.mark.parametrize("seen", [True, False])
def test_a_live_path_that_is_not_for_us_is_never_to_be_removed(seen: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="harken-") as folder, socket.socket(socket.AF_UNIX) as sock:
        os.chmod(folder, 0o777)
        path = f"{folder}/app.sock"
        sock.bind(path)
        sock.listen()
        os.chmod(path, 0o600)
        program = f"""
            {"" if seen else "import harken._diagnosis.holders; harken._diagnosis.holders._on_path = lambda path: []"}
            become({NOBODY})
            attempt("unix:{path}")
        """
        told = run(program)
        assert (told["step"], told["number"]) == ("connect", errno.EACCES)
        assert "rm " not in told["hint"]
        assert "remove" not in told["hint"]
        assert "choose another path" in told["hint"]
        if seen:
            assert f"a process of user root holds {path}" in told["hint"]
        else:
            assert "Start as the user that made it (root)" in told["hint"]


def held_by(name: str, pid: int, address: Any = ("0.0.0.0", 22)) -> Holder:
    return Holder(pid, name, "root", f"/usr/sbin/{name}", address, "listening")


@pytest.mark.parametrize(
    ("name", "pid", "told"),
    [
        ("systemd", 1, "systemctl list-sockets"),
        ("systemd", 812, "systemctl list-sockets"),
        ("launchd", 1, "launchctl print system"),
        ("inetd", 300, "/etc/inetd.conf"),
        ("docker-proxy", 300, "docker ps --filter publish=22"),
        ("com.docker.backe", 300, "docker ps --filter publish=22"),
        ("rootlessport", 300, "podman ps"),
        ("haproxy", 300, "remove the `bind`"),
        ("supervisord", 300, "supervisorctl status"),
        ("System", 4, "netsh http show servicestate"),
        ("svchost.exe", 300, 'tasklist /svc /fi "pid eq 300"'),
        ("server", 1, "the first process of this machine or container"),
    ],
)
def test_who_holds_a_port_for_others_is_not_to_be_ended(
    monkeypatch: pytest.MonkeyPatch, name: str, pid: int, told: str
) -> None:
    for cause in ("listener", "wildcard", "v6only", "bound", "inherited"):
        finding = _holders.Finding(cause, [held_by(name, pid)])
        monkeypatch.setattr(_holders, "explain", lambda *_, finding=finding: finding)
        hint = refused().hint
        assert told in hint
        assert "end it " not in hint
        assert f"pid {pid}" in hint


def test_a_service_is_stopped_by_its_unit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = open
    table = tmp_path / "cgroup"
    monkeypatch.setattr(_hints, "HAS_PROC", True)
    monkeypatch.setattr("builtins.open", lambda path, *a, **k: real(table if "cgroup" in str(path) else path, *a, **k))
    for line, unit in [
        ("0::/system.slice/nginx.service", "systemctl stop nginx.service"),
        ("0::/system.slice/system-getty.slice/getty@tty1.service/child", "systemctl stop getty@tty1.service"),
        ("1:name=systemd:/system.slice/nginx.service", "systemctl stop nginx.service"),
        (
            "0::/user.slice/user-7.slice/user@7.service/app.slice/web.service",
            "systemctl --user stop web.service",
        ),
        ("0::/user.slice/user-7.slice/session-3.scope", ""),
        ("0::/user.slice/user-7.slice/user@7.service/app.slice/term.scope", ""),
        ("0::/", ""),
    ]:
        table.write_text(line + "\n")
        finding = _holders.Finding("listener", [held_by("nginx", 300)])
        monkeypatch.setattr(_holders, "explain", lambda *_, finding=finding: finding)
        hint = refused().hint
        assert (f"end it (`{unit}`)" if unit else "end it or choose another port") in hint


@linux_only
def test_a_path_that_was_left_behind_is_told(tmp_path: Path) -> None:
    path = str(tmp_path / "app.sock")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        error = failure("bind", path, OSError(errno.EADDRINUSE, "in use"))
        assert (error.cause, error.holders[0].pid) == ("bound", os.getpid())  # type: ignore[attr-defined]
    error = failure("bind", path, OSError(errno.EADDRINUSE, "in use"))
    assert (error.cause, error.holders) == ("unknown", [])  # type: ignore[attr-defined]
    assert f"remove it (rm {path})" in error.hint


def test_a_hint_that_fails_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(_hints, "hint_for", fail)
    error = failure("bind", ("127.0.0.1", 80), OSError(errno.EACCES, "no"))
    assert error.hint == ""
    assert "\n" not in str(error)


def test_command_lines_of_others_do_nothing_to_the_terminal() -> None:
    rude = Holder(7, "x\x1b[31m", "me", "run \x1b]0;gotcha\x07 'a\nb' \udcff", ("0.0.0.0", 1), "listening")
    text = _hints.people([rude, rude, *(Holder(pid, "", "", "", "", "") for pid in range(8, 20))])
    assert text.isprintable()
    assert text.startswith("x\\x1b[31m (pid 7, user me: run ")
    assert text.endswith("and pid 8, 9, 10, 11, 12 and 7 more")


def test_the_repr_of_an_error_has_its_step_and_address() -> None:
    with harken.listen("127.0.0.1:0") as (listener,):
        with pytest.raises(harken.AddressInUseError) as caught:
            harken.listen(f"127.0.0.1:{listener.port}", reuse_port=True if LINUX else None)
        error = caught.value
        text = ", ".join(map(repr, error.args))
        assert error.args == (error.errno, error.strerror, *((None, error.winerror) if WINDOWS else ()))
        option = ", option=('reuse_port', True)" if LINUX else ""
        step = f"step='bind', address=('127.0.0.1', {listener.port}){option})"
        assert repr(error) == f"AddressInUseError({text}, {step}"
        assert repr(pickle.loads(pickle.dumps(error))) == repr(error)
    assert repr(failure("bind", "/a", PermissionError(errno.EACCES, "no"))) == (
        f"ListenPermissionError({errno.EACCES}, 'no', step='bind', address='/a')"
    )
    with pytest.raises(harken.ListenError) as unknown:
        harken.listen("no-such-name.invalid:80")
    assert repr(unknown.value).startswith("ListenGaierror(")
    assert repr(unknown.value).endswith("step='getaddrinfo', address='no-such-name.invalid:80')")
