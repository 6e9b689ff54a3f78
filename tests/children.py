"""Programs in child processes: ones that hold an address, and ones that fail to get it, as another user or in a network
of their own. A program tells what it has to tell with ``tell(**facts)``."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import forkserver
import pytest
from wire import CHILD_ENVIRONMENT

import harken

PREAMBLE = """
import json, os, socket, subprocess, sys

def tell(**facts):
    print(json.dumps(facts), flush=True)

def wait():
    "Until the test has seen enough."
    sys.stdin.read()

def become(uid, *groups):
    "Another user; one who may look into his own processes, as he may after exec()."
    import ctypes, dataclasses, encodings.idna, importlib, pwd, resource, shlex
    import harken
    harken.preload()  # the modules may be where only this user can read them
    os.setgroups(groups)
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)

def attempt(*binds, **options):
    "Listens, and tells what came of it."
    import harken
    try:
        harken.listen(*binds, **options).close()
        tell(step=None)
    except harken.ListenError as error:
        finding = {}
        if isinstance(error, harken.AddressInUseError):
            finding = {"cause": error.cause, "holders": [[one.pid, one.user, one.state] for one in error.holders]}
        kinds = [kind.__name__ for kind in type(error).__mro__]
        tell(step=error.step, number=error.errno, kinds=kinds, hint=error.hint, text=str(error), **finding)
"""

# To be put before a program.
FORK = """
import os, select, signal, socket, sys, threading, harken
from wire import Call, wait_until
def in_a_child(function):
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(20)
            function()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
"""

SECCOMP = """
def seccomp(*instructions):
    "From now on a filter decides on this process's system calls, as in a container."
    import ctypes, struct
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in instructions))
    program = struct.pack("@HP", len(instructions), ctypes.addressof(code))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(38, 1, 0, 0, 0) == 0 and prctl(22, 2, ctypes.c_char_p(program), 0, 0) == 0, "seccomp"
"""

REFUSE_FAMILY = f"""{SECCOMP}
def refuse_family(family, number):
    "From now on socket(2) of this family fails: RestrictAddressFamilies= of systemd, or a kernel built without it."
    call = {{"x86_64": 41, "aarch64": 198}}[os.uname().machine]
    seccomp(
        (0x20, 0, 0, 0), (0x15, 0, 3, call),  # the system call; unless it is socket(2), allow it
        (0x20, 0, 0, 16), (0x15, 0, 1, family),  # the family; unless it is this one, allow it
        (0x06, 0, 0, 0x00050000 | number), (0x06, 0, 0, 0x7FFF0000),
    )
"""

NOBODY = 65534

needs_root = pytest.mark.needs_root
needs_table = pytest.mark.needs_table
needs_psutil = pytest.mark.needs_psutil
needs_seccomp = pytest.mark.needs_seccomp


def interpreter(program: str) -> list[str]:
    """The command that runs a program."""
    return [sys.executable, "-W", "ignore::ResourceWarning", "-c", PREAMBLE + textwrap.dedent(program)]


def in_namespace(command: list[str], setup: str = "") -> list[str]:
    """The same command in a network with only a loopback, after the shell has run ``setup`` there."""
    check_namespaces()
    return [*_unshare(), "sh", "-ec", f'ip link set lo up\n{setup}\nexec "$@"', "sh", *command]


def check_namespaces() -> None:
    if not _can_unshare():
        pytest.skip("network namespaces cannot be made here (needs Linux, unshare, ip and the right to use them)")


def _unshare() -> list[str]:
    return ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-Urn"]  # type: ignore[attr-defined,unused-ignore]


@cache
def _can_unshare() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    attempt = "ip link set lo up && test -w /proc/sys/net/core/somaxconn"
    return subprocess.run([*_unshare(), "sh", "-c", attempt], capture_output=True, check=False).returncode == 0


def run(program: str, *, namespace: bool = False, setup: str = "") -> dict[str, Any]:
    """Runs a program to its end, and gives all that it told. ``namespace``: in a network with only a loopback, which
    the shell commands of ``setup`` may change."""
    source = PREAMBLE + textwrap.dedent(program)
    alone = namespace or bool(setup)
    if alone:
        check_namespaces()
    # A setup that itself starts what comes after it needs something to start.
    forked = None if '"$@"' in setup else forkserver.start(source, setup=setup if alone else None)
    if forked:
        code, out, err = forkserver.ended(forked, 50)
    else:
        command = in_namespace(interpreter(program), setup) if alone else interpreter(program)
        child = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50, check=False
        )
        code, out, err = child.returncode, child.stdout, child.stderr
    assert code == 0, err
    assert err == ""
    told: dict[str, Any] = {}
    for line in out.splitlines():
        told |= json.loads(line)
    return told


@contextmanager
def running(program: str, *, session: bool = False) -> Iterator[dict[str, Any]]:
    """Runs a program that waits, and gives what it told first, with its ``pid``. ``session``: it leads one."""
    child = forkserver.start(PREAMBLE + textwrap.dedent(program), session=session, waits=True) or subprocess.Popen(
        interpreter(program), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=session
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        yield {"pid": child.pid} | json.loads(child.stdout.readline())
    finally:
        child.stdin.close()
        child.stdout.close()
        child.wait(30)


def has_ended(pid: int) -> None:
    """Waits for the end of a process, whosever child it is."""
    if not hasattr(os, "pidfd_open"):  # where the fork server does not run either, so that it is a child of ours
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # type: ignore[attr-defined,unused-ignore]
        return
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            assert select.select([pidfd], [], [], 30)[0], "it has not ended"
        finally:
            os.close(pidfd)


def on_terminal(arguments: list[str], columns: int = 80) -> tuple[int, str]:
    """Runs ``python -m harken`` on a terminal of this width, and gives its exit code and what it showed."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))  # type: ignore[attr-defined,unused-ignore]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "harken", *arguments]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:
        pass  # how a terminal says that the other end has closed
    finally:
        os.close(ours)
    return child.wait(30), shown.decode()


_SERVER = """
    {first}
    family = socket.AF_INET6 if ":" in "{host}" else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    if family == socket.AF_INET6 and {v6only} is not None:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, {v6only})
    sock.bind(("{host}", {port}))
    if {listens}:
        sock.listen()
    tell(port=sock.getsockname()[1])
    wait()
"""


def server(
    host: str = "127.0.0.1", *, port: int = 0, listens: bool = True, v6only: int | None = None, first: str = ""
) -> str:
    """A program that holds an address until the test has seen enough."""
    return _SERVER.format(host=host, port=port, listens=listens, v6only=v6only, first=first)


@contextmanager
def serving(command: list[str], listener: harken.Listener, log: Path) -> Iterator[int]:
    """Runs a server that inherits a listener, under its number; gives the server's pid. What it writes goes to ``log``,
    which is shown when the test fails. Ended as an operator does, by SIGTERM."""
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]  # where application.py is
    with log.open("wb") as out:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    try:
        yield child.pid
        child.terminate()
        child.wait(30)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)  # with its workers
            child.wait(30)
        print(log.read_text("utf-8", "replace"))


def _family(pid: int) -> Iterator[int]:
    """A process and all that it has started."""
    yield pid
    with contextlib.suppress(OSError):  # it has ended
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                yield from _family(int(child))


PIDFD_GETFD = 438  # the system call, which has no function in Python


def other_end(client: socket.socket, pid: int) -> tuple[int, socket.socket]:
    """Which process of the family of ``pid`` has accepted this connection, and a duplicate of its socket: whatever a
    server has done to it can be read from that, and the server need not help."""
    for member in _family(pid):
        pidfd = os.pidfd_open(member)
        try:
            for number in os.listdir(f"/proc/{member}/fd"):
                if not _link(f"/proc/{member}/fd/{number}").startswith("socket:"):
                    continue
                fd = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, pidfd, int(number), 0)
                if fd < 0:
                    if ctypes.get_errno() in (errno.EPERM, errno.ENOSYS):
                        pytest.skip("the sockets of another process cannot be looked at here (pidfd_getfd)")
                    continue  # closed just now
                copy = socket.socket(fileno=fd)
                with contextlib.suppress(OSError):
                    if copy.getpeername() == client.getsockname():
                        return member, copy
                copy.close()
        finally:
            os.close(pidfd)
    raise AssertionError("no process has accepted the connection")


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


STRACE = shutil.which("strace")
needs_strace = pytest.mark.needs_strace


def traced(code: str, log: Path) -> list[str]:
    """The system calls that a program makes between ``os.write(2, b"begin")`` and ``os.write(2, b"end")``, but for
    those that only get memory: a line each, as strace tells them. They may be those of a forked child, while its parent
    waits."""
    child = subprocess.run(
        [str(STRACE), "-f", "-o", log, sys.executable, "-c", code],
        env=CHILD_ENVIRONMENT, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    if "ptrace" in child.stderr:
        pytest.skip("no permission to trace")
    assert child.returncode == 0, child.stderr
    between = log.read_text().partition('write(2, "begin"')[2].partition('write(2, "end"')[0].splitlines()[1:-1]
    between = [line.partition(" ")[2].lstrip() for line in between]  # without the pid
    return [line for line in between if not line.startswith(("mmap", "munmap", "brk", "mremap", "madvise"))]
