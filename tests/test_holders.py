"""Who has an address: real processes that have one, each in another way, beside what the system's own tool says."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harken
from children import NOBODY, needs_psutil, needs_root, needs_table, run, running, server
from harken import Holder, holders
from harken._diagnosis import holders as _holders
from machine import LINUX, bind_text, linux_only, needs_ipv6, posix_only

# ---------------------------------------------------------------------------- holders()


def tables() -> list[Any]:
    return [
        pytest.param("by_sock_diag", marks=linux_only),
        pytest.param("by_proc", marks=linux_only),
        pytest.param("by_psutil", marks=needs_psutil),
    ]


@pytest.fixture(params=tables())
def table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the tables as if the others were not there."""

    def refuse(_: range) -> Any:
        raise OSError

    for name in ("by_sock_diag", "by_proc", "by_psutil"):
        if name != request.param:
            monkeypatch.setattr(_holders, name, refuse)
    return str(request.param)


def held_by(pid: int, bind: Any) -> list[Holder]:
    """Only this process: elsewhere, as on the other family's addresses, others may have the same number meanwhile."""
    return [holder for holder in holders(bind) if holder.pid == pid]


@pytest.mark.needs_sock_diag
@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def test_a_listener_is_told_with_its_process(host: str) -> None:
    with running(server(host)) as child:
        port = child["port"]
        for bind in (bind_text(host, port), f":{port}", port, (host, port)):
            (holder,) = held_by(child["pid"], bind)
            assert holder.address[:2] == (host, port)
            assert holder.state == "listening"
            assert "python" in holder.name.lower()
            assert holder.user
            assert "-c" in holder.command
    assert held_by(child["pid"], bind_text(host, port)) == []


@pytest.mark.needs_sock_diag
@pytest.mark.usefixtures("table")
def test_connections_are_told_once_for_a_process() -> None:
    with harken.listen("127.0.0.1:0") as listeners:
        clients = [socket.create_connection(("127.0.0.1", listeners.port), timeout=10) for _ in range(3)]
        accepted = [listeners[0].accept()[0] for _ in clients]
        found = held_by(os.getpid(), listeners.port)
        for connection in (*clients, *accepted):
            connection.close()
    assert [(holder.pid, holder.state) for holder in found] == [
        (os.getpid(), "listening"),
        (os.getpid(), "established"),
    ]


@pytest.mark.needs_sock_diag
@needs_table
def test_a_wildcard_stands_for_its_addresses_and_they_for_it() -> None:
    with harken.listen("tcp4://:0") as wide:
        (holder,) = held_by(os.getpid(), f"127.0.0.1:{wide.port}")
        assert holder.address == ("0.0.0.0", wide.port)
    with harken.listen("127.0.0.1:0") as narrow:
        (holder,) = held_by(os.getpid(), f"tcp4://:{narrow.port}")
        assert holder.address == ("127.0.0.1", narrow.port)
        if LINUX:  # which has all of 127/8 on its loopback
            assert held_by(os.getpid(), f"127.0.0.2:{narrow.port}") == []


@needs_table
@needs_ipv6
def test_a_socket_for_both_families_is_told_for_ipv4_too() -> None:
    with running(server("::", v6only=0)) as child:
        (holder,) = held_by(child["pid"], f"127.0.0.1:{child['port']}")
        assert holder.address[0] == "::"


@pytest.mark.needs_sock_diag
@linux_only
@needs_ipv6
def test_a_socket_for_ipv6_alone_is_not_told_for_ipv4() -> None:
    with harken.listen("tcp6://:0") as listeners:
        assert held_by(os.getpid(), f"127.0.0.1:{listeners.port}") == []
        assert len(held_by(os.getpid(), f"[::1]:{listeners.port}")) == 1


@linux_only
def test_a_socket_that_is_only_bound_is_told() -> None:
    with running(server(listens=False)) as child:
        found = held_by(child["pid"], child["port"])
        if not found:
            pytest.skip("Linux before 6.8 does not tell of sockets that are bound and no more")
        assert [(holder.pid, holder.state) for holder in found] == [(child["pid"], "bound")]


@pytest.mark.needs_sock_diag
@needs_table
def test_names_of_hosts_and_of_services_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with harken.listen("127.0.0.1:0") as listeners:
        for bind in (f"localhost:{listeners.port}", ("localhost", listeners.port), ("", listeners.port)):
            assert len(held_by(os.getpid(), bind)) == 1
    monkeypatch.setattr(
        _holders, "_on_ports", lambda ports: [_holders.Held(("0.0.0.0", ports[0]), "listening", 0, None)]
    )
    assert holders("127.0.0.1:http")[0].address == ("0.0.0.0", 80)


@pytest.mark.parametrize("bind", [0, ":0", "nonsense", "1.2.3.4:99999", ("127.0.0.1", 0), "fd://3", "vsock://*:80"])
def test_what_no_one_can_have_is_a_value_error(bind: Any) -> None:
    with pytest.raises(ValueError, match="bind"):
        holders(bind)


def test_without_any_table_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: range) -> Any:
        raise ImportError

    for name in ("by_sock_diag", "by_proc", "by_psutil"):
        monkeypatch.setattr(_holders, name, refuse)
    with pytest.raises(OSError, match=r"pip install 'harken\[psutil\]'"):
        holders(8080)
    with harken.listen("127.0.0.1:0") as listeners:
        with pytest.raises(harken.AddressInUseError) as caught:
            harken.listen(f"127.0.0.1:{listeners.port}")
        error = caught.value
        assert error.hint
    assert (error.cause, error.holders) == ("unknown", [])
    assert "pip install 'harken[psutil]'" in error.hint


@pytest.mark.needs_sock_diag
@needs_table
def test_a_range_of_ports_is_every_port_of_it() -> None:
    with harken.listen("127.0.0.1:0") as one, harken.listen("127.0.0.1:0") as other:
        first, last = sorted((one.port, other.port))
        found = held_by(os.getpid(), f"127.0.0.1:{first}-{last}")
        assert {holder.address[1] for holder in found} >= {first, last}
        assert {holder.address[1] for holder in held_by(os.getpid(), harken.Bind(f"127.0.0.1:{first}"))} == {first}


@linux_only
def test_it_says_what_ss_says() -> None:
    if shutil.which("ss") is None:
        pytest.skip("ss is not installed")
    program = """
        import harken, re
        listeners = harken.listen("127.0.0.1:0", ":0", "127.0.0.3:0", "tcp4://:0")
        shared = listeners[0].to_socket()
        shared.set_inheritable(True)
        child = subprocess.Popen([sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False)
        child.stdout.readline()
        said = []
        for line in subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines():
            host, _, port = line.split()[3].rpartition(":")
            said += [[host.strip("[]"), int(port), int(pid)] for pid in re.findall(r"pid=(\\d+)", line)]
        ports = {shared.getsockname()[1], *(one.port for one in listeners[1:])}
        ours = [[*one.address[:2], one.pid] for port in ports for one in harken.holders(port)]
        child.communicate()
        tell(said=sorted(said), ours=sorted(ours))
    """
    told = run(program, namespace=True)
    assert len(told["ours"]) >= 5
    assert told["ours"] == told["said"]


@pytest.mark.needs_sock_diag
@linux_only
def test_a_unix_socket_is_told_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "app.sock"
    program = f"""
        sock = socket.socket(socket.AF_UNIX)
        sock.bind({str(path)!r})
        sock.listen()
        tell()
        wait()
    """
    with running(program) as child:
        monkeypatch.chdir(tmp_path)
        for bind in (path, str(path), f"unix:{path}", f"unix://{path}?mode=0660", "./app.sock", "unix:app.sock"):
            (holder,) = holders(bind)
            assert (holder.pid, holder.state, holder.address) == (child["pid"], "listening", str(path))
        monkeypatch.setattr(_holders, "_unix_by_sock_diag", raising(OSError()))
        assert [holder.pid for holder in holders(str(path))] == [child["pid"]]
        monkeypatch.undo()
        path.rename(tmp_path / "moved")  # it is a socket's file that makes it reachable, not its first name
        assert [holder.pid for holder in holders(tmp_path / "moved")] == [child["pid"]]
        path.touch()
        assert holders(path) == []
    assert holders(tmp_path / "moved") == []


@linux_only
def test_an_abstract_unix_socket_is_told() -> None:
    name = f"harken-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"\0{name}")
        (holder,) = holders(f"@{name}")
        assert (holder.pid, holder.state, holder.address) == (os.getpid(), "bound", f"\0{name}")


@linux_only
@pytest.mark.parametrize("table", ["_unix_by_sock_diag", "_unix_by_proc"])
def test_a_datagram_socket_has_no_connection_though_somebody_connected_to_it(table: str, tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, socket.socket(socket.AF_UNIX, sock.type) as client:
        sock.bind(path)
        client.connect(path)  # the kernel's state of both is "established" from now on
        assert [held.state for held in getattr(_holders, table)(path)] == ["bound"]
        with pytest.raises(harken.AddressInUseError) as caught:
            harken.listen(f"unix:{path}")
        assert f"is bound to {path} and does not listen there" in caught.value.hint


@posix_only
def test_elsewhere_unix_sockets_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_holders, "_unix_by_sock_diag", raising(OSError()))
    monkeypatch.setattr(_holders, "_unix_by_proc", raising(OSError()))
    monkeypatch.delattr(socket, "AF_NETLINK", raising=False)
    with pytest.raises(OSError, match="only be told on Linux"):
        holders("/run/app.sock")


def raising(error: Exception) -> Callable[..., Any]:
    def function(*_: object) -> Any:
        raise error

    return function


def test_a_holder_is_a_value() -> None:
    holder = Holder(1, "init", "root", "/sbin/init", ("127.0.0.1", 80), "listening")
    assert copy.deepcopy(holder) == pickle.loads(pickle.dumps(holder)) == holder
    assert len({holder, copy.copy(holder)}) == 1
    with pytest.raises(AttributeError):
        holder.pid = 2  # type: ignore[misc]
    assert harken.holders is holders


@linux_only
@needs_root
def test_the_user_of_a_process_is_told_as_it_is_now() -> None:
    with running(server().replace("tell(", f"become({NOBODY}); tell(")) as child:
        try:
            os.readlink(f"/proc/{child['pid']}/fd/0")
        except PermissionError:
            assert [one.pid for one in holders(child["port"])] == [None]
            pytest.skip("without CAP_SYS_PTRACE, as in a container, root may not look into others' processes")
        (holder,) = held_by(child["pid"], child["port"])
    assert (holder.pid, holder.user) == (child["pid"], "nobody")


def test_a_process_that_ended_meanwhile_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    held = _holders.Held(("127.0.0.1", 9), "listening", 12345678901, 0)
    monkeypatch.setattr(_holders, "_processes", lambda _: {})
    answers = iter([[held], []])
    monkeypatch.setattr(_holders, "_on_ports", lambda _: next(answers))
    assert holders("127.0.0.1:9") == []


# Each makes two folders, A and B, in which two files made alike can have one inode number, or one of stat's devices
# differs from the kernel's.
FILE_SYSTEMS = {
    "btrfs": """
        truncate -s 128M image; mkfs.btrfs -q -f image >/dev/null 2>&1; mkdir m; mount -o loop image m
        btrfs -q subvolume create m/A >/dev/null; btrfs -q subvolume create m/B >/dev/null
    """,
    "overlay": """
        mkdir m; mount -t tmpfs none m; mkdir m/1 m/2 m/3 m/A m/B m/low
        mount -t overlay overlay -o lowerdir=m/low,upperdir=m/1,workdir=m/2 m/A
        mount -t tmpfs none m/B
    """,
    "overlay of two": """
        mkdir m; mount -t tmpfs none m; mkdir m/1 m/2 m/A m/B m/low m/up; mount -t tmpfs none m/low
        mount -t tmpfs none m/up; mkdir m/up/1 m/up/2
        mount -t overlay overlay -o lowerdir=m/low:m/1,upperdir=m/up/1,workdir=m/up/2,xino=off m/A
    """,
    "bind mount": "mkdir m; mkdir m/A m/B m/C; mount --bind m/A m/C; mount -t tmpfs none m/B; mount --bind m/C m/A",
    "tmpfs": "mkdir m; mount -t tmpfs none m; mkdir m/A m/B",
}

IN_BOTH = """
    import harken, harken._diagnosis.holders, harken._unix
    if not {reads_mounts}:
        harken._diagnosis.holders.Place._ask_the_mount = lambda *_: None
    def server(folder, text):
        program = ("import os, socket, sys; os.chdir(sys.argv[1]); s = socket.socket(socket.AF_UNIX);"
                   "s.bind(sys.argv[2]); s.listen(); print(flush=True); sys.stdin.read()")
        command = [sys.executable, "-c", program, folder, text]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child.stdout.readline()
        return child
    here = os.getcwd()
    first = server("m/A", {text!r}.format(here + "/m/A"))
    second = server("m/B", {text!r}.format(here + "/m/B"))
    def told(path):
        return [one.pid for one in harken.holders(path)]
    both = [told("./m/A/a.sock"), told("./m/B/a.sock")]
    first.communicate()
    left = [told("./m/A/a.sock"), told("./m/B/a.sock")]
    os.rename("m/B/a.sock", "m/B/moved.sock")
    moved = told("./m/B/moved.sock")
    def cause(path):
        try:
            harken.listen(f"unix:{{path}}").close()
        except harken.AddressInUseError as error:
            return [error.cause, [one.pid for one in error.holders]]
    tell(pids=[first.pid, second.pid], both=both, left=left, moved=moved, cause=cause("m/B/moved.sock"),
         free=cause("m/A/a.sock"))
    second.communicate()
"""


@linux_only
@needs_root
@pytest.mark.parametrize("reads_mounts", [True, False])
@pytest.mark.parametrize("text", ["{}/a.sock", "a.sock"])
@pytest.mark.parametrize("system", FILE_SYSTEMS)
def test_on_every_file_system_the_holder_of_a_path_is_told_and_no_other(
    system: str, text: str, reads_mounts: bool, tmp_path: Path
) -> None:
    inside = f"cd {tmp_path}\n{FILE_SYSTEMS[system]}"
    probe = subprocess.run(["unshare", "-m", "sh", "-ec", inside], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"{system} cannot be mounted here: {probe.stderr.strip()[:80]}")
    subprocess.run(["rm", "-rf", tmp_path / "m", tmp_path / "image"], check=True)
    setup = f"""exec unshare -m sh -ec '{inside}
        exec "$@"' sh "$@" """
    told = run(IN_BOTH.format(text=text, reads_mounts=reads_mounts), setup=setup)
    first, second = told["pids"]
    if not reads_mounts and text == "a.sock" and system in ("btrfs", "overlay of two"):
        for (of_first, of_second), there in ((told["both"], first), (told["left"], None)):
            assert of_first in ([], [there])  # rather nobody than another
            assert of_second in ([], [second])
        return
    assert told["both"] == [[first], [second]]
    assert told["left"] == [[], [second]]
    assert told["free"] is None
    if reads_mounts or system not in ("btrfs", "overlay of two"):
        assert told["moved"] == [second]
        assert told["cause"] == ["listener", [second]]


@pytest.mark.parametrize("address", [("127.0.0.1",), (), (3, 80), ("x", 80.0), ("x", 1, 2, 3, 4)])
def test_a_tuple_that_is_no_address_is_told(address: Any) -> None:
    with pytest.raises(TypeError, match="an address must be .host, port., as Listener.address has it, not"):
        harken.holders(address)
