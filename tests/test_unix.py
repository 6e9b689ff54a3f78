"""Unix sockets: whose a path is, from when, with which mode, and what is left of it."""

from __future__ import annotations

import errno
import gc
import json
import multiprocessing
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
from wire import fails

import harken
from children import NOBODY, PREAMBLE, has_ended, needs_root, run, running
from harken import _unix
from harken._unix import UnixListener, open_unix
from machine import LINUX, linux_only, posix_only, windows_only, wine_lacks

if TYPE_CHECKING:
    from poison import Poison

pytest_plugins = ["poison"]
pytestmark = pytest.mark.filterwarnings("ignore:unclosed harken.Socket:ResourceWarning")


@pytest.fixture(scope="module", autouse=True)
def what_multiprocessing_keeps_open() -> None:
    """On POSIX the first spawn opens a pipe to a process that stays until the end: not a leak of any test."""
    if hasattr(os, "fork"):
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()


@pytest.fixture
def path() -> Iterator[str]:
    """A path that is short, in a folder that others can pass through."""
    folder = tempfile.mkdtemp(prefix="hk")
    os.chmod(folder, 0o755)
    yield os.path.join(folder, "a.sock")
    shutil.rmtree(folder)


def opened(path: str, backlog: int | None = None, **options: object) -> UnixListener:
    listener = open_unix(path, **options)  # type: ignore[arg-type]
    try:
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def inode(path: str) -> int:
    return os.lstat(path).st_ino


def mode(path: str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def connect(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)  # type: ignore[attr-defined,unused-ignore]
    client.settimeout(30)
    try:
        client.connect(path)
    except BaseException:
        client.close()
        raise
    return client


def answers(path: str, listener: harken.Socket) -> bool:
    with connect(path) as client:
        connection, _ = listener.accept()
        connection.close()
        return client.recv(1) == b""


def leave_stale(path: str, kind: int = socket.SOCK_STREAM) -> None:
    with socket.socket(socket.AF_UNIX, kind) as dead:  # type: ignore[attr-defined,unused-ignore]
        dead.bind(path)


def folder_of(path: str) -> list[str]:
    return sorted(os.listdir(os.path.dirname(path)))


SERVER = """
    sock = socket.socket(socket.AF_UNIX, {kind})
    sock.bind({path!r})
    {then}
    tell()
    wait()
"""


def server(path: str, then: str = "sock.listen()", kind: str = "socket.SOCK_STREAM") -> str:
    return SERVER.format(path=path, then=then, kind=kind)


@posix_only
class TestListen:
    def test_a_server_on_a_path(self, path: str) -> None:
        with harken.listen(f"unix:{path}") as listeners:
            (listener,) = listeners
            assert (listener.address, listener.url, str(listener)) == (path, f"unix:{path}", f"unix:{path}")
            assert (listener.state, listener.family, listener.getsockname()) == ("listening", harken.AF_UNIX, path)
            assert harken.Bind(listener.url).path == path
            assert answers(path, listener)
            with pytest.raises(ValueError, match="no port"):
                _ = listeners.port
        assert folder_of(path) == []
        assert (str(listener), listener.state) == ("closed", "closed")
        with pytest.raises(OSError, match="."):
            _ = listener.address

    @pytest.mark.needs_sock_diag
    def test_bound_and_later_listening(self, path: str) -> None:
        with harken.bind(f"unix:{path}", backlog=7) as listeners:
            assert listeners[0].state == "bound"
            with pytest.raises(ConnectionRefusedError):
                connect(path)
            listeners.listen()
            assert answers(path, listeners[0])
            if LINUX:
                assert listeners[0].backlog == 7

    def test_a_relative_path_is_kept_as_it_is_and_found_again(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(os.path.dirname(path))
        with harken.listen("unix:8080") as (listener,):
            assert (listener.address, listener.url, listener.getsockname()) == ("8080", "unix:8080", "8080")
            with pytest.raises(harken.AddressInUseError) as caught:
                harken.listen("unix:8080")
            assert caught.value.address == "./8080"
            monkeypatch.chdir("/")
        assert folder_of(path) == []

    @linux_only
    def test_an_abstract_name(self) -> None:
        name = f"harken {os.getpid()}"
        with harken.listen(f"unix:@{name.replace(' ', '%20')}") as (listener,):
            assert (listener.address, listener.url) == (f"\0{name}", f"unix:@harken%20{os.getpid()}")
            assert harken.Bind(listener.url).path == listener.address
            assert answers(listener.address, listener)
            with pytest.raises(harken.AddressInUseError) as caught:
                harken.listen(listener.url)
            assert [holder.pid for holder in caught.value.holders] == [os.getpid()]

    def test_all_or_none(self, path: str) -> None:
        with harken.listen("127.0.0.1:0") as taken, pytest.raises(harken.AddressInUseError):
            harken.listen(f"unix:{path}", taken[0].url)
        assert folder_of(path) == []
        with pytest.raises(harken.AddressInUseError):
            harken.listen(f"unix:{path}", "127.0.0.1:0", f"unix:{path}")
        assert folder_of(path) == []

    def test_beside_other_listeners_each_is_closed(self, path: str) -> None:
        listeners = harken.listen(f"unix:{path}", "127.0.0.1:0", f"unix:{path}2")
        assert len(folder_of(path)) == 2
        listeners.close()
        assert {listener.state for listener in listeners} == {"closed"}
        assert folder_of(path) == []

    @pytest.mark.needs_sock_diag
    @linux_only
    def test_the_queue_is_told(self, path: str) -> None:
        with harken.listen(f"unix:{path}", backlog=5) as (listener,), connect(path), connect(path):
            for what in (listener, listener.fileno()):
                told = harken.stats(what)
                assert (told.queued, told.backlog, told.overflows, told.drops) == (2, 5, None, None)
            listener.listen(3)
            assert listener.backlog == 5
            listener.listen(6)
            assert listener.backlog == 6
        with harken.bind(f"unix:{path}") as (listener,):
            assert (listener.backlog, listener.stats().queued) == (None, None)

    def test_prepare_comes_between_socket_and_bind(self, path: str) -> None:
        seen: list[tuple[bool, str]] = []

        def prepare(sock: harken.Listener) -> None:
            sock.setsockopt(harken.SOL_SOCKET, harken.SO_RCVBUF, 4096)
            seen.append((os.path.exists(path), sock.getsockname()))

        with opened(path, prepare=prepare):
            assert seen == [(False, "")]

    def test_when_prepare_fails_nothing_is_left(self, path: str) -> None:
        def prepare(sock: harken.Listener) -> None:
            kept.append(sock)
            raise ZeroDivisionError

        kept: list[harken.Listener] = []
        with pytest.raises(ZeroDivisionError):
            opened(path, prepare=prepare)
        assert kept[0].state == "closed"
        assert folder_of(path) == []


@posix_only
class TestStale:
    @pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
    def test_what_a_dead_server_left_is_replaced(self, path: str, kind: int) -> None:
        leave_stale(path, kind)
        with harken.listen(f"unix:{path}") as (listener,):
            assert answers(path, listener)
        assert folder_of(path) == []

    def test_so_is_what_a_killed_one_left(self, path: str) -> None:
        program = f"import harken; kept = harken.listen({'unix:' + path!r}); tell(); os.kill(os.getpid(), 9)"
        with running(program) as child:
            has_ended(child["pid"])
            assert folder_of(path) == ["a.sock"]
            with harken.listen(f"unix:{path}") as (listener,):
                assert answers(path, listener)

    def test_so_is_what_a_dropped_one_left(self, path: str) -> None:
        listeners = harken.listen(f"unix:{path}")
        del listeners
        gc.collect()
        assert folder_of(path) == ["a.sock"]
        with harken.listen(f"unix:{path}") as (listener,):
            assert answers(path, listener)

    def test_of_many_that_start_at_once_one_wins(self, path: str) -> None:
        leave_stale(path)
        program = f"""
            import harken
            tell(ready=True)
            os.read(0, 1)
            try:
                with harken.listen({"unix:" + path!r}) as listeners:
                    tell(won=os.getpid())
                    connection, _ = listeners[0].accept()
                    connection.sendall(str(os.getpid()).encode())
                    connection.close()
                    wait()
            except harken.AddressInUseError as error:
                tell(won=0)
        """
        command = [sys.executable, "-c", PREAMBLE + textwrap.dedent(program)]
        reading, writing = os.pipe()
        children = [subprocess.Popen(command, stdin=reading, stdout=subprocess.PIPE, text=True) for _ in range(12)]
        os.close(reading)
        try:
            outputs = [child.stdout for child in children if child.stdout is not None]
            for output in outputs:
                assert "ready" in output.readline()
            os.write(writing, b"x" * len(children))
            won = [json_of(output.readline())["won"] for output in outputs]
            (winner,) = [pid for pid in won if pid]
            with connect(path) as client:
                assert int(client.recv(100)) == winner
        finally:
            os.close(writing)
            for child in children:
                child.communicate(timeout=50)
        assert folder_of(path) == []


def json_of(line: str) -> dict[str, int]:
    told: dict[str, int] = json.loads(line)
    return told


FILL = """
    sock.listen(0)
    full = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for client in full:
        client.setblocking(False)
        client.connect_ex({path!r})
"""


@posix_only
class TestLive:
    @pytest.mark.parametrize(
        ("then", "kind", "cause"),
        [
            ("sock.listen()", "socket.SOCK_STREAM", "listener"),
            ("", "socket.SOCK_STREAM", "bound"),
            ("full", "socket.SOCK_STREAM", "listener"),
            ("", "socket.SOCK_DGRAM", "bound"),
            pytest.param("sock.listen()", "socket.SOCK_SEQPACKET", "listener", marks=linux_only),
            pytest.param("", "socket.SOCK_SEQPACKET", "bound", marks=linux_only),
        ],
    )
    def test_what_a_process_has_is_refused(self, path: str, then: str, kind: str, cause: str) -> None:
        then = FILL.format(path=path).strip() if then == "full" else then
        with running(server(path, then, kind)) as child:
            before = inode(path)
            with pytest.raises(harken.AddressInUseError) as caught:
                harken.listen(f"unix:{path}")
            error = caught.value
            assert (error.step, error.address, error.errno) == ("bind", path, errno.EADDRINUSE)
            if LINUX:
                assert error.cause == cause
                assert {holder.pid for holder in error.holders} == {child["pid"]}
                assert f"pid {child['pid']}" in error.hint
                assert "another path" in error.hint
            assert inode(path) == before

    def test_asking_leaves_no_connection(self, path: str) -> None:
        with harken.listen(f"unix:{path}") as (listener,):
            with pytest.raises(harken.AddressInUseError):
                harken.listen(f"unix:{path}")
            listener.setblocking(False)
            assert listener.accept_many() == []
            listener.setblocking(True)
            assert answers(path, listener)

    def test_a_child_that_inherited_it_keeps_it_alive(self, path: str) -> None:
        then = """
    sock.listen()
    os.set_inheritable(sock.fileno(), True)
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], close_fds=False)
    sock.close()
"""
        with running(server(path, then.strip())), pytest.raises(harken.AddressInUseError):
            harken.listen(f"unix:{path}")

    @linux_only
    def test_a_server_in_another_network_is_seen(self, path: str) -> None:
        with harken.listen(f"unix:{path}"):
            told = run(f"attempt({'unix:' + path!r})", namespace=True)
            assert told["cause"] == "unknown"
            assert "another container" in told["hint"]
            assert folder_of(path) == ["a.sock"]

    def test_what_is_no_socket_is_refused(self, path: str) -> None:
        target = os.path.join(os.path.dirname(path), "target")
        made: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "a file": (lambda: Path(path).write_text("precious"), lambda: os.unlink(path)),
            "a directory": (lambda: os.mkdir(path), lambda: os.rmdir(path)),
            "a pipe": (lambda: os.mkfifo(path), lambda: os.unlink(path)),
            "a symbolic link": (lambda: os.symlink(target, path), lambda: os.unlink(path)),
        }
        for exclusive in (None, False):
            for kind, (make, remove) in made.items():
                make()
                before = inode(path)
                with pytest.raises(harken.ListenError, match=f"{kind} is there already, which is no socket") as caught:
                    opened(path, exclusive=exclusive)
                assert isinstance(caught.value, FileExistsError)
                assert "another path" in caught.value.hint
                assert inode(path) == before
                assert folder_of(path) == ["a.sock"]
                remove()
        leave_stale(target)
        os.symlink(target, path)
        with pytest.raises(FileExistsError):
            opened(path)
        assert folder_of(path) == ["a.sock", "target"]

    @needs_root
    @posix_only
    def test_what_may_not_be_asked_is_refused(self, path: str) -> None:
        leave_stale(path)
        os.chmod(path, 0o600)
        os.chmod(os.path.dirname(path), 0o777)
        told = run(f"import harken._unix; become({NOBODY}); attempt({'unix:' + path!r})")
        assert told["step"] == "connect"
        assert "PermissionError" in told["kinds"]
        assert "Start as the user that made it (root), which replaces it" in told["hint"]
        assert folder_of(path) == ["a.sock"]


@posix_only
class TestModeAndOwner:
    def test_without_them_it_is_as_bind_makes_it(self, path: str) -> None:
        leave_stale(f"{path}2")
        with opened(path):
            assert mode(path) == mode(f"{path}2")

    @pytest.mark.parametrize("wanted", [0o600, 0o660, 0o777, 0])
    def test_the_mode_is_the_one_that_was_asked_for(self, path: str, wanted: int) -> None:
        with opened(path, mode=wanted):
            assert mode(path) == wanted

    @needs_root
    def test_owners_by_name_and_by_number(self, path: str) -> None:
        import grp
        import pwd

        nobody = pwd.getpwuid(NOBODY)  # type: ignore[attr-defined,unused-ignore]
        group = grp.getgrgid(nobody.pw_gid)  # type: ignore[attr-defined,unused-ignore]
        for owner in (nobody.pw_name, NOBODY, str(NOBODY)):
            with opened(path, owner=owner):
                assert (os.lstat(path).st_uid, os.lstat(path).st_gid) == (NOBODY, os.getegid())  # type: ignore[attr-defined,unused-ignore]
        with opened(path, group=group.gr_name, mode=0o660):
            assert (os.lstat(path).st_uid, os.lstat(path).st_gid, mode(path)) == (0, group.gr_gid, 0o660)
        with opened(path, owner=1, group=2):
            assert (os.lstat(path).st_uid, os.lstat(path).st_gid) == (1, 2)

    @pytest.mark.parametrize(
        ("options", "error", "text"),
        [
            ({"owner": "nobody-of-this-name"}, ValueError, "no user is called 'nobody-of-this-name'"),
            ({"group": "no such group"}, ValueError, "no group is called"),
            ({"owner": -1}, ValueError, "-1"),
            ({"group": 0xFFFFFFFF}, ValueError, "4294967295"),
            ({"owner": True}, TypeError, "bool"),
            ({"mode": 0o1777}, ValueError, "0o1777"),
            ({"mode": -1}, ValueError, "mode"),
        ],
    )
    def test_what_makes_no_sense_is_refused_before_there_is_a_socket(
        self, path: str, options: dict[str, object], error: type[Exception], text: str
    ) -> None:
        with pytest.raises(error, match=text):
            opened(path, prepare=lambda _: pytest.fail("there is a socket"), **options)
        assert folder_of(path) == []

    @pytest.mark.parametrize("options", [{"mode": 0o600}, {"owner": 0}, {"group": 0}, {"exclusive": False}])
    def test_an_abstract_name_has_none_of_them(self, options: dict[str, object]) -> None:
        with pytest.raises(ValueError, match="abstract"):
            opened("\0harken", **options)

    def test_they_are_options_of_a_bind(self, path: str) -> None:
        group = os.getegid()  # type: ignore[attr-defined,unused-ignore]
        bind = f"unix:{path}?mode=0640&group={group}&rcvbuf=8192"
        with harken.listen(bind, backlog=9, inheritable=True) as (old,):
            assert (mode(path), old.address, old.url) == (0o640, path, f"unix:{path}")
            assert (old.options["mode"], old.options["rcvbuf"], old.get_inheritable()) == (0o640, 8192, True)
            with pytest.raises(harken.AddressInUseError):
                harken.listen(bind)
            with harken.bind(bind, exclusive=False, configure=lambda sock, _: sock.settimeout(7)) as (new,):
                assert answers(path, old)
                assert (new.state, new.gettimeout()) == ("bound", 7)
                new.listen()
                assert answers(path, new)
            with pytest.raises(ZeroDivisionError):
                harken.listen(f"unix:{path}2", configure=lambda *_: 1 // 0)
        assert folder_of(path) == []

    @pytest.mark.parametrize("option", ["owner", "group"])
    def test_a_name_that_nobody_has_is_found_out_before_there_is_a_socket(self, path: str, option: str) -> None:
        with pytest.raises(ValueError, match="is called 'of-nobody'"):
            harken.listen(
                "127.0.0.1:0", f"unix:{path}?{option}=of-nobody", configure=lambda *_: pytest.fail("there is")
            )

    @linux_only
    def test_a_takeover_is_given_back_when_the_call_fails(self, path: str, poison: Poison) -> None:
        with opened(path) as old, opened(f"{path}2") as other:
            before = inode(path)
            report = poison.run(
                f"""
                try:
                    harken.listen("unix:{path}?exclusive=0", "unix:{path}2?exclusive=0")
                except harken.ListenError as error:
                    tell(step=error.step, address=error.address, number=error.errno)
                """,
                poison=f"exchange:2:{errno.ENOSPC}",
            )
            assert report.said == {"step": "rename", "address": f"{path}2", "number": errno.ENOSPC}
            assert report.calls["exchange"] == 3  # there, and not there, and back
            assert (inode(path), folder_of(path)) == (before, ["a.sock", "a.sock2"])
            assert answers(path, old)
            assert answers(f"{path}2", other)

    @needs_root
    def test_who_may_not_give_it_away_leaves_nothing(self, path: str) -> None:
        os.chmod(os.path.dirname(path), 0o777)
        told = run(f"""
            import harken._unix
            become({NOBODY})
            try:
                harken._unix.open_unix({path!r}, owner=0, mode=0o600)
            except harken.ListenError as error:
                tell(step=error.step, hint=error.hint, left=os.listdir({os.path.dirname(path)!r}))
        """)
        assert told["step"] == "chown"
        assert "only root" in told["hint"]
        assert told["left"] == []

    @linux_only
    @pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
    def test_they_are_in_force_before_it_listens(self, path: str, tmp_path: Path) -> None:
        trace = tmp_path / "trace"
        program = f"import harken; harken._unix.open_unix({path!r}, mode=0o640, group={os.getegid()}).listen()"  # type: ignore[attr-defined,unused-ignore]
        calls = "bind,listen,fchmod,chmod,fchmodat,fchownat,lchown,umask"
        strace = ["strace", "-f", "-o", str(trace), "-e", f"trace={calls}"]
        python = [sys.executable, "-W", "ignore", "-c", f"import harken._unix; {program}"]
        ran = subprocess.run([*strace, *python], capture_output=True, text=True, timeout=50, check=False)
        if "PTRACE" in ran.stderr:
            pytest.skip("strace may not trace here")
        assert ran.returncode == 0, ran.stderr
        names = [line.split(None, 1)[1].split("(")[0] for line in trace.read_text().splitlines() if "(" in line]
        assert names[0] == "fchmod"
        assert [name.strip("fl") for name in names[1:]] == ["bind", "chownat", "chmodat", "isten"] or names[1:] in (
            ["bind", "lchown", "chmod", "listen"],
            ["bind", "fchownat", "chmod", "listen"],
            ["bind", "fchownat", "fchmodat", "listen"],
            ["bind", "lchown", "fchmodat", "listen"],
        )
        assert ", 000" in trace.read_text().splitlines()[0]

    @linux_only
    def test_at_no_instant_it_is_wider(self, path: str) -> None:
        program = f"""
            import select, stat
            seen, looks = set(), 0
            tell()
            while not select.select([sys.stdin], [], [], 0)[0]:
                try:
                    seen.add(stat.S_IMODE(os.lstat({path!r}).st_mode))
                    looks += 1
                except FileNotFoundError:
                    pass
                if looks == 300:
                    open({path + ".enough"!r}, "w").close()
            print(json.dumps(sorted(seen)), file=open({path + ".seen"!r}, "w"))
        """
        with running(program):
            while not os.path.exists(f"{path}.enough"):
                opened(path, mode=0o640).close()
        assert set(json_list(f"{path}.seen")) <= {0, 0o640}

    @needs_root
    @linux_only
    def test_at_no_instant_another_user_can_connect(self, path: str) -> None:
        os.chmod(os.path.dirname(path), 0o777)
        for wanted, may in ((0o600, False), (0o666, True)):
            program = f"""
                import select
                become({NOBODY})
                tell()
                tried = entered = 0
                while not select.select([sys.stdin], [], [], 0)[0]:
                    with socket.socket(socket.AF_UNIX) as client:
                        number = client.connect_ex({path!r})
                    tried += number != {errno.ENOENT}
                    entered += number == 0
                    if entered or (tried == 300 and not {may}):
                        open({path + ".enough"!r}, "w").close()
                print(json.dumps([tried, entered]), file=open({path + ".seen"!r}, "w"))
            """
            with running(program):
                while not os.path.exists(f"{path}.enough"):
                    opened(path, mode=wanted).close()
            tried, entered = json_list(f"{path}.seen")
            assert tried
            assert bool(entered) == may
            os.unlink(f"{path}.seen")
            os.unlink(f"{path}.enough")


def json_list(path: str) -> list[int]:
    with open(path) as file:
        found: list[int] = json.load(file)
    return found


@linux_only
class TestWhatSystemsLack:
    """As on macOS and the BSDs, or in a sandbox: sockets have no mode, nobody tells a socket's inode, and the file
    system does not know how two names change places, or how to rename to a free name only."""

    LACKS: ClassVar = {
        "modes": f"fchmod:1+:{errno.EINVAL}",
        "questions": f"netlink:1+:{errno.EAFNOSUPPORT}",
        "exchange": f"exchange:1+:{errno.EINVAL}",
        "both renames": f"exchange:1+:{errno.EINVAL},noreplace:1+:{errno.EINVAL}",
        "links too": f"exchange:1+:{errno.EINVAL},noreplace:1+:{errno.ENOSYS},linkat:1+:{errno.EPERM}",
        "all": f"fchmod:1+:{errno.EINVAL},netlink:1+:{errno.EPERM},exchange:1+:{errno.ENOSYS},"
        f"noreplace:1+:{errno.ENOSYS}",
    }

    @pytest.mark.parametrize("lacks", LACKS.values(), ids=LACKS)
    @pytest.mark.parametrize("left", ["nothing", "a dead one", "a live one"])
    @pytest.mark.parametrize("rights", [False, True])
    def test_it_comes_to_the_same(self, path: str, poison: Poison, lacks: str, left: str, rights: bool) -> None:
        if left == "a dead one":
            leave_stale(path)
        program = f"""
            import socket, stat
            from harken._unix import open_unix

            def opened(**more):
                listener = open_unix({path!r}, **more)
                listener.listen()
                return listener

            def state():
                now = os.lstat({path!r})
                return [now.st_ino, oct(stat.S_IMODE(now.st_mode)), os.listdir({os.path.dirname(path)!r})]

            def answers(listener):
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect({path!r})
                    listener.accept()[0].close()
                    return client.recv(1) == b""

            options = dict(mode=0o640, owner=os.geteuid()) if {rights} else {{}}
            old = opened() if {left == "a live one"} else None
            if old:
                before = state()
                try:
                    opened(**options)
                except harken.AddressInUseError as error:
                    tell(refused=error.step)
                with open_unix({path!r}, exclusive=False, **options) as held:
                    tell(held=[state()[:2] == before[:2], answers(old)])
                tell(untouched=state() == before)
            with opened(exclusive=False, **options) as new:
                tell(state=state()[1:], answers=answers(new), moved=harken.Socket.getsockname(new) != {path!r})
                if old:
                    old.close()
                    tell(still=answers(new))
            tell(left=os.listdir({os.path.dirname(path)!r}))
        """
        said = poison.run(program, poison=lacks).said
        assert said.pop("state")[0] == oct(0o640 if rights else 0o777 & ~umask())
        moved = said.pop("moved")
        assert moved == (left != "nothing" or (rights and ("fchmod" in lacks or "netlink" in lacks)))
        expected: dict[str, object] = {"answers": True, "left": []}
        if left == "a live one":
            expected |= {"refused": "bind", "held": [True, True], "untouched": True, "still": True}
        assert said == expected

    @pytest.mark.parametrize("lacks", ["", *LACKS.values()], ids=["nothing", *LACKS])
    @pytest.mark.parametrize(("step", "fails"), [("chmod", "chmod"), ("chown", "fchownat")])
    @pytest.mark.parametrize("stale", [False, True])
    def test_when_they_cannot_be_given_nothing_has_changed(
        self, path: str, poison: Poison, lacks: str, step: str, fails: str, stale: bool
    ) -> None:
        if stale:
            leave_stale(path)
        before = os.lstat(path) if stale else None
        report = poison.run(
            f"""
            try:
                harken.listen({"unix:" + path!r}, mode=0o640, owner=os.geteuid())
            except harken.ListenError as error:
                tell(step=error.step, number=error.errno)
            """,
            poison=f"{fails}:1:{errno.EPERM},{lacks}",
        )
        assert report.said == {"step": step, "number": errno.EPERM}
        assert report.failures[fails] == 1
        assert folder_of(path) == (["a.sock"] if stale else [])
        assert before is None or os.lstat(path) == before

    @pytest.mark.parametrize("fails", ["exchange", "mkdirat"])
    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
    def test_when_a_dead_one_cannot_be_replaced_nothing_has_changed(
        self, path: str, poison: Poison, fails: str, number: int
    ) -> None:
        leave_stale(path)
        before = os.lstat(path)
        report = poison.run(
            f"""
            try:
                harken.listen({"unix:" + path!r})
            except harken.ListenError as error:
                tell(step=error.step, number=error.errno)
            """,
            poison=f"{fails}:1:{number}",
        )
        assert report.said == {"step": "bind", "number": number}
        assert (os.lstat(path), folder_of(path)) == (before, ["a.sock"])


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@posix_only
class TestTakeover:
    def test_the_path_is_the_new_servers_and_connections_go_on(self, path: str) -> None:
        with opened(path) as old, connect(path) as client:
            connection, _ = old.accept()
            with connection, opened(path, mode=0o600, exclusive=False) as new:
                assert (new.address, new.url, mode(path), folder_of(path)) == (path, f"unix:{path}", 0o600, ["a.sock"])
                assert answers(path, new)
                old.close()
                connection.sendall(b"still here")
                assert client.recv(100) == b"still here"
                assert answers(path, new)
        assert folder_of(path) == []

    def test_held_it_takes_nothing_until_it_listens(self, path: str) -> None:
        with opened(path) as old, open_unix(path, exclusive=False) as new:
            assert (new.state, new.address) == ("bound", path)
            assert answers(path, old)
            for give_away in (new.detach, new.to_socket, harken.Listeners([new]).sockets):
                with pytest.raises(ValueError, match=r"listen\(\)"):
                    give_away()
            new.listen()
            assert answers(path, new)
            new.listen()
            assert answers(path, new)

    def test_held_and_closed_it_leaves_nothing(self, path: str) -> None:
        with opened(path) as old:
            open_unix(path, exclusive=False).close()
            assert folder_of(path) == ["a.sock"]
            assert answers(path, old)

    def test_held_and_dropped_it_leaves_nothing(self, path: str) -> None:
        with opened(path) as old:
            listeners = harken.bind(f"unix:{path}?exclusive=0")
            assert len(folder_of(path)) == 2
            del listeners
            gc.collect()
            assert folder_of(path) == ["a.sock"]
            assert answers(path, old)

    @pytest.mark.parametrize("stale", [False, True])
    def test_where_nobody_lives_nothing_is_waited_for(self, path: str, stale: bool) -> None:
        if stale:
            leave_stale(path)
        with open_unix(path, exclusive=False) as listener:
            assert (os.path.exists(path), folder_of(path)) == (True, ["a.sock"])
            listener.to_socket().close()  # it could not be given away while it had to be published
            # It is bound directly where there is nothing; what is there is never removed first.
        with opened(path, exclusive=False) as listener:
            assert answers(path, listener)
        assert folder_of(path) == []

    def test_what_it_was_bound_to_ends_with_its_name(self, path: str) -> None:
        """For those who look for it in a table of sockets."""
        with opened(path) as old, opened(path, exclusive=False) as new:
            assert old.getsockname() == path
            bound_to = harken.Socket.getsockname(new)
            assert isinstance(bound_to, str)
            assert bound_to.startswith(os.path.dirname(path) + "/.harken-")
            assert bound_to.endswith("/a.sock")
            assert not os.path.exists(bound_to)

    def test_when_the_old_server_is_gone_by_then(self, path: str) -> None:
        with opened(path) as old, open_unix(path, exclusive=False) as new:
            old.close()
            assert not os.path.exists(path)
            new.listen()
            assert answers(path, new)
        assert folder_of(path) == []

    def test_when_something_else_is_there_by_then(self, path: str) -> None:
        with opened(path) as old, open_unix(path, exclusive=False) as new:
            old.close()
            Path(path).touch()
            with pytest.raises(FileExistsError):
                new.listen()
            os.unlink(path)
            new.listen()
            assert answers(path, new)

    def test_when_another_listener_fails_the_old_server_has_its_path_back(self, path: str) -> None:
        with opened(path) as old, opened(f"{path}2") as other:
            before = inode(path)
            new = [open_unix(name, exclusive=False) for name in (path, f"{path}2")]
            for listener in new:
                harken.Socket.listen(listener)
            other.close()
            os.mkdir(f"{path}2")
            with pytest.raises(harken.ListenError, match="a directory"):
                _unix.publish(new)
            assert inode(path) != before
            for listener in new:
                listener.close()
            os.rmdir(f"{path}2")
            assert (inode(path), folder_of(path)) == (before, ["a.sock"])
            assert answers(path, old)

    def test_a_warning_that_is_made_an_error_takes_nothing_over(self, path: str) -> None:
        with opened(path) as old, warnings.catch_warnings():
            warnings.simplefilter("error")
            if old.backlog is None:
                pytest.skip("the queue of a unix socket is not told here")
            before = inode(path)
            with pytest.raises(RuntimeWarning):
                harken.listen(f"unix:{path}?exclusive=0", "127.0.0.1:0", backlog=0x7FFFFFFF)
            assert (inode(path), folder_of(path)) == (before, ["a.sock"])
            assert answers(path, old)

    @linux_only
    def test_when_the_rename_fails_nothing_has_changed(self, path: str, poison: Poison) -> None:
        with opened(path) as old:
            report = poison.run(
                f"""
                from harken._unix import open_unix
                with open_unix({path!r}, exclusive=False) as new:
                    try:
                        new.listen()
                    except harken.ListenError as error:
                        tell(step=error.step, address=error.address, number=error.errno)
                """,
                poison=f"exchange:1:{errno.ENOSPC}",
            )
            assert report.said == {"step": "rename", "address": path, "number": errno.ENOSPC}
            assert folder_of(path) == ["a.sock"]
            assert answers(path, old)

    @needs_root
    @linux_only
    @pytest.mark.parametrize("sticky", [False, True])
    def test_another_users_path_is_kept_or_not_taken(self, path: str, sticky: bool) -> None:
        """Whoever may write to the directory can take it over, and give it back: no second name is made of it, which
        fs.protected_hardlinks forbids. In a directory like /tmp he cannot, and nothing changes."""
        os.chmod(os.path.dirname(path), 0o1777 if sticky else 0o777)
        with opened(path, mode=0o666) as old:
            before = inode(path)
            told = run(f"""
                import harken._unix
                become({NOBODY})
                with harken._unix.open_unix({path!r}, exclusive=False) as listener:
                    try:
                        listener.listen()
                        tell(step="", ours=os.lstat({path!r}).st_uid == {NOBODY})
                    except harken.ListenError as error:
                        tell(step=error.step, number=error.errno, why="only the owner" in error.hint)
                with harken._unix.open_unix({path!r}, exclusive=False) as listener:
                    harken.Socket.listen(listener)
                    if not {sticky}:
                        listener.entry.publish()
            """)
            if sticky:
                assert told == {"step": "rename", "number": errno.EPERM, "why": True}
                assert (inode(path), folder_of(path)) == (before, ["a.sock"])
                assert answers(path, old)
            else:
                assert told == {"step": "", "ours": True}
                assert folder_of(path) == []

    @linux_only
    def test_a_client_that_connects_all_the_time_never_fails(self, path: str) -> None:
        program = f"""
            import select
            tell()
            failed, done = [], 0
            while not select.select([sys.stdin], [], [], 0)[0]:
                with socket.socket(socket.AF_UNIX) as client:
                    number = client.connect_ex({path!r})
                    done += 1
                    if number:
                        failed.append(number)
                    if done == 300:
                        open({path + ".enough"!r}, "w").close()
            print(json.dumps([done, *failed]), file=open({path + ".seen"!r}, "w"))
        """

        def drain(listener: harken.Listener) -> None:
            try:
                while True:
                    for connection in listener.accept_many():
                        connection.close()
            except OSError:
                pass  # closed

        threads = []
        current = opened(path)
        threads.append(threading.Thread(target=drain, args=(current,)))
        threads[0].start()
        try:
            with running(program):
                while len(threads) <= 50 or not os.path.exists(f"{path}.enough"):
                    new = opened(path, exclusive=False)
                    threads.append(threading.Thread(target=drain, args=(new,)))
                    threads[-1].start()
                    current.close()
                    current = new
        finally:
            current.close()
            for thread in threads:
                thread.join(30)
        done, *failed = json_list(f"{path}.seen")
        assert done >= 300
        assert failed == []


@posix_only
class TestClose:
    def test_what_raises_in_one_leaves_no_other_open(self, path: str) -> None:
        """A trace function, as a signal handler might: in no line of Python, for there is none."""

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        listeners = harken.listen(f"unix:{path}", f"unix:{path}2")
        trace = sys.gettrace()
        sys.settrace(interrupt)
        try:
            listeners.close()
        finally:
            sys.settrace(trace)
        assert ([one.state for one in listeners], folder_of(path)) == (["closed", "closed"], [])

    def test_a_path_that_is_not_ours_any_more_stays(self, path: str) -> None:
        with opened(path) as listener:
            os.unlink(path)
            leave_stale(path)
            listener.close()
            assert folder_of(path) == ["a.sock"]
            listener.close()

    def test_a_path_that_is_gone_is_no_error(self, path: str) -> None:
        with opened(path):
            os.unlink(path)

    @pytest.mark.parametrize("handed_over", [False, True])
    def test_a_forked_child_leaves_it(self, path: str, handed_over: bool) -> None:
        program = f"""
            import harken
            listeners = harken.listen({"unix:" + path!r})
            owner = listeners.sockets()[0] if {handed_over} else listeners
            child = os.fork()
            if child == 0:
                owner.close()
                os._exit(0)
            os.waitpid(child, 0)
            there = os.path.exists({path!r})
            owner.close()
            tell(there=there, then=os.path.exists({path!r}))
        """
        assert run(program) == {"there": True, "then": False}

    def test_a_socket_that_was_handed_over_takes_it_away(self, path: str) -> None:
        (sock,) = harken.listen(f"unix:{path}").sockets()
        with sock:
            assert sock.getsockname() == path
            copy = sock.dup()
            copy.close()
            assert folder_of(path) == ["a.sock"]
        assert folder_of(path) == []
        sock.close()

    @pytest.mark.parametrize("how", ["to_socket", "detach", "sockets and detach"])
    def test_who_takes_the_handle_takes_the_path(self, path: str, how: str) -> None:
        listeners = harken.listen(f"unix:{path}")
        if how == "to_socket":
            sock = listeners[0].to_socket()
            assert type(sock) is socket.socket
        else:
            source = listeners[0] if how == "detach" else listeners.sockets()[0]
            sock = socket.socket(fileno=source.detach())
            source.close()
        listeners.close()
        with sock:
            assert answers_on(path, sock)
        assert folder_of(path) == ["a.sock"]

    def test_a_spawned_worker_leaves_it(self, path: str) -> None:
        (sock,) = harken.listen(f"unix:{path}").sockets()
        context = multiprocessing.get_context("spawn")
        told, tell = context.Pipe(duplex=False)
        worker = context.Process(target=serve_one, args=(sock, tell))
        with sock, told, tell:
            worker.start()
            assert told.poll(60)
            assert told.recv() == ("ListeningSocket", path)
            with connect(path) as client:
                assert client.recv(100) == b"from the worker"
            worker.join(60)
            assert worker.exitcode == 0
            worker.close()
            assert folder_of(path) == ["a.sock"]
        assert folder_of(path) == []

    def test_asyncio_serves_on_it(self, path: str) -> None:
        import asyncio

        async def main(sock: socket.socket) -> bytes:
            async def hello(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(b"hello")
                writer.close()

            made = await asyncio.start_unix_server(hello, sock=sock)  # type: ignore[attr-defined,unused-ignore]
            reader, writer = await asyncio.open_unix_connection(path)  # type: ignore[attr-defined,unused-ignore]
            received: bytes = await reader.read()
            writer.close()
            made.close()
            await made.wait_closed()
            return received

        (sock,) = harken.listen(f"unix:{path}").sockets()
        with sock:
            assert asyncio.run(main(sock)) == b"hello"
        assert folder_of(path) == []


def answers_on(path: str, sock: socket.socket) -> bool:
    with connect(path) as client:
        sock.accept()[0].close()
        return client.recv(1) == b""


def serve_one(sock: socket.socket, told: Connection) -> None:
    with sock:
        told.send((type(sock).__name__, sock.getsockname()))
        connection, _ = sock.accept()
        with connection:
            connection.sendall(b"from the worker")


@posix_only
class TestLongPaths:
    @pytest.mark.needs_sock_diag
    @linux_only
    @pytest.mark.parametrize("folder", ["d", "d" * 150])
    @pytest.mark.parametrize("name", ["a.sock", "n" * 80, "n" * 200])
    def test_it_is_bound_through_its_folder(self, path: str, folder: str, name: str) -> None:
        home = os.path.join(os.path.dirname(path), folder)
        os.mkdir(home)
        long = os.path.join(home, name)
        with opened(long, mode=0o640) as listener:
            assert (listener.address, harken.Bind(listener.url).path, mode(long)) == (long, long, 0o640)
            assert os.listdir(home) == [name]
            handle = os.open(home if len(name) < 90 else long, os.O_PATH)
            through = f"/proc/self/fd/{handle}" + (f"/{name}" if len(name) < 90 else "")
            assert answers(through, listener)
            with pytest.raises(harken.AddressInUseError) as caught:
                opened(long)
            assert [(one.pid, one.address[-9:]) for one in caught.value.holders] == [(os.getpid(), long[-9:])]
            with opened(long, exclusive=False) as new:
                listener.close()
                os.close(handle)
                handle = os.open(long, os.O_PATH)
                assert answers(f"/proc/self/fd/{handle}", new)
                new.to_socket().close()  # which leaves it behind
            os.close(handle)
        assert os.listdir(home) == [name]
        opened(long).close()
        assert os.listdir(home) == []

    @needs_root
    @linux_only
    @pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
    def test_where_there_is_no_way_it_is_told(self, path: str) -> None:
        long = os.path.join(os.path.dirname(path), "n" * 120)
        code = f"""
import os, harken
open({path!r} + ".1", "w").close()
for path, options in (({long!r}, {{}}), ({path!r}, {{"mode": 0o640}})):
    try:
        with harken.listen("unix:" + path, **options): print(oct(os.lstat(path).st_mode & 0o777))
    except harken.ListenError as e: print(e.errno, e.strerror, "|", e.hint)
"""
        command = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /proc || exit 42; exec "$@"', "sh"]
        ran = subprocess.run(
            [*command, sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
        )
        if ran.returncode == 42 or "unshare" in ran.stderr:
            pytest.skip("nothing can be mounted here")
        told, given = ran.stdout.splitlines()
        assert told.startswith(f"{errno.ENAMETOOLONG} it has {len(long)} bytes")
        assert "room for 107" in told
        assert "shorter" in told.partition("|")[2]
        assert given == "0o640"
        assert folder_of(path) == ["a.sock.1"]

    @linux_only
    def test_the_longest_that_fits_and_one_more(self, path: str) -> None:
        for size in (107, 108):
            exact = path + "n" * (size - len(path))
            with opened(exact) as listener:
                assert (harken.Socket.getsockname(listener) == exact) == (size == 107)
                assert listener.getsockname() == exact
        for size in (108, 109):
            name = "\0" + "n" * (size - 1)
            if size == 108:
                opened(name).close()
                continue
            with pytest.raises(harken.ListenError, match="109 bytes.*room for 108"):
                opened(name)

    def test_a_name_that_no_file_can_have(self, path: str) -> None:
        with pytest.raises(harken.ListenError) as caught:
            opened(os.path.join(os.path.dirname(path), "n" * 256))
        assert caught.value.errno == errno.ENAMETOOLONG
        assert "255" in caught.value.hint


@posix_only
class TestFolders:
    def test_a_missing_one(self, path: str) -> None:
        with pytest.raises(harken.ListenError) as caught:
            harken.listen(f"unix:{os.path.dirname(path)}/missing/a.sock")
        assert isinstance(caught.value, FileNotFoundError)
        assert caught.value.step == "bind"
        assert f"mkdir -p {os.path.dirname(path)}/missing" in caught.value.hint

    def test_a_file_in_its_place(self, path: str) -> None:
        Path(path).touch()
        with pytest.raises(harken.ListenError) as caught:
            harken.listen(f"unix:{path}/a.sock")
        assert isinstance(caught.value, NotADirectoryError)
        assert "is a file, not a folder" in caught.value.hint

    @needs_root
    def test_one_that_may_not_be_written_to(self, path: str) -> None:
        told = run(f"import harken._unix; become({NOBODY}); attempt({'unix:' + path!r})")
        assert told["step"] == "bind"
        assert "PermissionError" in told["kinds"]
        assert f"this user must be allowed to write to the folder of {path}" in told["hint"]

    @needs_root
    @linux_only
    def test_one_that_may_not_be_read(self, path: str) -> None:
        os.chmod(os.path.dirname(path), 0o733)
        told = run(f"""
            import harken._unix
            become({NOBODY})
            attempt({"unix:" + path!r})
            with harken.listen({"unix:" + path!r}):
                attempt({"unix:" + path!r})
        """)
        assert told["kinds"][0] == "AddressInUseError"
        assert folder_of(path) == []

    @needs_root
    @linux_only
    @pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
    def test_one_that_is_read_only(self, path: str) -> None:
        home = os.path.dirname(path)
        code = f"import harken\ntry: harken.listen({'unix:' + path!r})\nexcept harken.ListenError as e: print(e.hint)"
        script = f'mount -t tmpfs -o ro none {home} || exit 42; exec "$@"'
        ran = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-c", code],
            capture_output=True, text=True, timeout=50, check=False,
        )  # fmt: skip
        if ran.returncode == 42 or "unshare" in ran.stderr:
            pytest.skip("nothing can be mounted here")
        assert "read-only" in ran.stdout, ran.stderr


@windows_only
class TestWindows:
    @wine_lacks("AF_UNIX")
    def test_a_server_on_a_path(self, path: str) -> None:
        with harken.listen(f"unix:{path}") as (listener,):
            assert (listener.address, listener.state) == (path, "listening")
            with pytest.raises(harken.AddressInUseError):
                harken.listen(f"unix:{path}")
        assert not os.path.exists(path)

    def test_mode_and_owner_are_refused(self, path: str) -> None:
        for options in ({"mode": 0o600}, {"owner": 0}, {"group": 0}):
            with pytest.raises(ValueError, match="on this system"):
                opened(path, **options)
        assert folder_of(path) == []


@posix_only
@pytest.mark.parametrize("before", ["nothing", "dead", "live"])
@pytest.mark.parametrize("given", ["whole", "relative", "long"])
def test_getsockname_is_the_path_that_was_asked_for(
    before: str, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket that takes another's place was bound in a directory of its own, and one whose path is too long by way of
    /proc."""
    folder = tmp_path / ("x" * 100 if given == "long" else "folder")
    folder.mkdir()
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as server:
        if before != "nothing":
            server.bind("socket")
            server.listen()
        if before == "dead":
            server.close()
        path = "./socket" if given == "relative" else str(folder / "socket")
        with harken.listen(f"unix:{path}", exclusive=False) as (listener,):
            assert listener.getsockname() == listener.address == path
            (sock,) = harken.Listeners([listener]).sockets()
            with sock:
                assert sock.getsockname() == path
            with fails(errno.EBADF):
                sock.getsockname()
    assert before == "live" or not os.path.lexists("socket")
