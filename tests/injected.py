"""Makes every system call of every public operation fail in every documented way: ``python tests/injected.py``.

Each operation is run once, to count its calls. Then each call (the first, the second, ... of its name) is made to fail
with each error in its manual page, by a preloaded library, injected.c. After each of these triples (call, error,
operation):

- the right exception was raised: ListenError with step, address and this error where something is opened, otherwise
  OSError with this error; or none, where `QUIET` says why;
- nothing leaked: descriptors, threads, files;
- no client is lost: each that had connected is accepted, then or later;
- the same operation works when it is repeated.

    python tests/injected.py                 the sample that the test suite runs
    python tests/injected.py --long          all, some minutes
    python tests/injected.py --long listen   the operations that have this in their names
    python tests/injected.py --control       checks that deliberate faults are found

A child process does the work. If it hangs or dies, its triple is reported, and another child continues after it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import errno
import faulthandler
import gc
import json
import mmap
import os
import re
import shutil
import signal
import socket as stdlib
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import harken
import harken.asyncio
from harken import _acceptor
from harken._diagnosis import foresee as _foresee

# ---------------------------------------------------------------------------- the table: errors of each call

_OF_NETWORKS = "ENETDOWN EPROTO ENOPROTOOPT EHOSTDOWN ENONET EHOSTUNREACH ENETUNREACH"  # accept(2): of one connection
_OF_PATHS = "EACCES EIO ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR"
_OF_CHANGES = f"{_OF_PATHS} EPERM EROFS"

ERRORS = {
    "socket": "EACCES EAFNOSUPPORT EINVAL EMFILE ENFILE ENOBUFS ENOMEM EPERM EPROTONOSUPPORT",
    "bind": "EACCES EADDRINUSE EADDRNOTAVAIL EBADF EFAULT EINVAL ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR ENOTSOCK"
    " EPERM EROFS",
    "listen": "EADDRINUSE EBADF ENOTSOCK EOPNOTSUPP",
    "accept4": f"EAGAIN EBADF ECONNABORTED EINTR EINVAL EMFILE ENFILE ENOBUFS ENOMEM ENOTSOCK EOPNOTSUPP EPERM ENOSR"
    f" ESOCKTNOSUPPORT EPROTONOSUPPORT ETIMEDOUT {_OF_NETWORKS}",
    "connect": "EACCES EADDRINUSE EADDRNOTAVAIL EAFNOSUPPORT EAGAIN EALREADY EBADF ECONNREFUSED EFAULT EINPROGRESS"
    " EINTR EISCONN ENETUNREACH ENOTSOCK EPERM EPROTOTYPE ETIMEDOUT",
    "shutdown": "EBADF EINVAL ENOTCONN ENOTSOCK",
    "close": "EINTR EIO ENOSPC EDQUOT",
    "setsockopt": "EBADF EDOM EFAULT EINVAL EISCONN ENOMEM ENOPROTOOPT ENOTSOCK EPERM",
    "getsockopt": "EBADF EFAULT EINVAL ENOPROTOOPT ENOTSOCK",
    "getsockname": "EBADF EFAULT EINVAL ENOBUFS ENOTSOCK",
    "getpeername": "EBADF EFAULT EINVAL ENOBUFS ENOTCONN ENOTSOCK",
    "send": "EACCES EAGAIN EALREADY EBADF ECONNRESET EDESTADDRREQ EFAULT EINTR EINVAL EISCONN EMSGSIZE ENOBUFS ENOMEM"
    " ENOTCONN ENOTSOCK EOPNOTSUPP EPIPE",
    "recv": "EAGAIN EBADF ECONNREFUSED ECONNRESET EFAULT EINTR EINVAL ENOMEM ENOTCONN ENOTSOCK ETIMEDOUT",
    "read": "EBADF EFAULT EINTR EINVAL EIO EISDIR",
    "write": "EAGAIN EBADF EDQUOT EFBIG EINTR EINVAL EIO ENOSPC EPERM EPIPE",
    "sendfile": "EAGAIN EBADF EFAULT EINVAL EIO ENOMEM EOVERFLOW ESPIPE",
    "poll": "EFAULT EINTR EINVAL ENOMEM",
    "fcntl": "EACCES EAGAIN EBADF EBUSY EDEADLK EINVAL EMFILE ENOLCK EPERM",
    "ioctl": "EBADF EFAULT EINVAL ENOTTY",
    "open": f"{_OF_CHANGES} EBUSY EDQUOT EEXIST EINTR EINVAL EISDIR EMFILE ENFILE ENODEV ENOSPC ENXIO EOVERFLOW"
    " ETXTBSY",
    "stat": f"{_OF_PATHS} EBADF EOVERFLOW",
    "rename": f"{_OF_CHANGES} EBUSY EDQUOT EEXIST EINVAL EISDIR EMLINK ENOSPC ENOTEMPTY EXDEV",
    "link": f"{_OF_CHANGES} EDQUOT EEXIST EMLINK ENOSPC EXDEV",
    "unlink": f"{_OF_CHANGES} EBUSY EISDIR",
    "mkdir": f"{_OF_CHANGES} EDQUOT EEXIST EINVAL EMLINK ENOSPC",
    "rmdir": f"{_OF_CHANGES} EBUSY EINVAL ENOTEMPTY",
    "chmod": _OF_CHANGES,
    "chown": _OF_CHANGES,
    "flock": "EBADF EINTR EINVAL ENOLCK EWOULDBLOCK",
    "getcwd": "EACCES ENOENT ENOMEM",
    "readlink": f"{_OF_PATHS} EINVAL",
    "getrandom": "EAGAIN EINTR",
    "dup": "EBADF EMFILE",
    "getaddrinfo": "EAI_AGAIN EAI_BADFLAGS EAI_FAIL EAI_FAMILY EAI_MEMORY EAI_NONAME EAI_SERVICE EAI_SOCKTYPE"
    " EAI_NODATA EAI_ADDRFAMILY EAI_SYSTEM+EMFILE EAI_SYSTEM+EIO EAI_SYSTEM+ENOMEM",
    "getifaddrs": "EMFILE ENOBUFS ENOMEM EACCES EAFNOSUPPORT",
    "if_nametoindex": "ENODEV EMFILE",
    "if_indextoname": "ENXIO EMFILE",
    "epoll_create1": "EINVAL EMFILE ENFILE ENOMEM",
    "epoll_ctl": "EBADF EINVAL ELOOP ENOENT ENOMEM ENOSPC EPERM",
    "epoll_wait": "EBADF EFAULT EINTR EINVAL",
    "eventfd": "EINVAL EMFILE ENFILE ENODEV ENOMEM",
    "timerfd_create": "EINVAL EMFILE ENFILE ENODEV ENOMEM EPERM",
    "timerfd_settime": "EBADF EFAULT EINVAL ECANCELED",
    "mmap": "EACCES EAGAIN EBADF EINVAL ENFILE ENODEV ENOMEM EPERM",
    "malloc": "ENOMEM",
    "opendir": "EACCES EMFILE ENFILE ENOENT ENOMEM ENOTDIR",
    "io_uring_setup": "EFAULT EINVAL EMFILE ENFILE ENOMEM ENOSYS EPERM",
    "io_uring_enter": "EAGAIN EBADF EBADFD EBADR EBUSY EFAULT EINTR EINVAL ENOMEM ENXIO EOPNOTSUPP",
    "io_uring_register": "EACCES EBADF EBADFD EBUSY EFAULT EINVAL EMFILE ENOMEM ENXIO",
    "pidfd_open": "EINVAL EMFILE ENFILE ENODEV ENOMEM ESRCH",
    "pidfd_getfd": "EBADF EMFILE ENFILE EPERM ESRCH",
    "kcmp": "EBADF EINVAL EPERM ESRCH",
}
_LIKE = {
    "openat": "open", "lstat": "stat", "fstat": "stat", "fstatat": "stat", "renameat": "rename", "renameat2": "rename",
    "linkat": "link", "unlinkat": "unlink", "fchmod": "chmod", "fchmodat": "chmod", "lchown": "chown",
    "fchown": "chown", "fchownat": "chown", "calloc": "malloc", "sendto": "send", "sendmsg": "send",
    "recvfrom": "recv", "recvmsg": "recv", "socketpair": "socket",
}  # fmt: skip
ERRORS |= {name: ERRORS[other] for name, other in _LIKE.items()}
OF_WAKERS = {"read": "EAGAIN EINTR", "write": "EINTR"}
"""In the compiled modules, which write to and read from eventfds and timers only. An eventfd whose counter is full says
EAGAIN to a write, and is readable then: that cannot be feigned. All else means that its number is a stranger's."""
SHORT = ("send", "sendto", "sendmsg", "recv", "recvfrom", "read", "write", "sendfile")
_EAI = {name: abs(getattr(stdlib, name)) for name in dir(stdlib) if name.startswith("EAI_")}
_EAI |= {"EAI_NODATA": 5, "EAI_ADDRFAMILY": 9}

FAIL, AFTER, HALF = 1, 2, 3
PATIENCE = float(os.environ.get("HARKEN_INJECTED_PATIENCE", "20"))
"""Seconds, after which a triple hangs."""


class Triple(NamedTuple):
    """What is made to fail, where, how."""

    operation: str
    call: str
    nth: int
    error: str

    def __str__(self) -> str:
        return f"{self.operation}: {self.call} no. {self.nth} fails with {self.error}"

    @property
    def number(self) -> int:
        """What the shim is told."""
        if self.call != "getaddrinfo":
            return 0 if self.error == "short" else int(getattr(errno, self.error))
        name, _, more = self.error.partition("+")
        return _EAI[name] | (getattr(errno, more) << 8 if more else 0)

    @property
    def told(self) -> int:
        """What an exception has as its number."""
        if self.call != "getaddrinfo":
            return self.number
        _, _, more = self.error.partition("+")
        return int(getattr(errno, more)) if more else -self.number

    @property
    def how(self) -> int:
        after = self.call == "close" or (self.call == "connect" and self.error in ("EINTR", "EINPROGRESS"))
        return HALF if self.error == "short" else AFTER if after else FAIL


# ---------------------------------------------------------------------------- operations

Body = Callable[["Run"], None]


class Operation(NamedTuple):
    """Something that programs do."""

    name: str
    body: Body
    opens: bool
    """Is what fails a ListenError?"""
    ours: bool
    """Only calls of the compiled modules: where the interpreter's own (an event loop's) are not what is tested."""


OPERATIONS: dict[str, Operation] = {}


def operation(name: str, *, opens: bool = False, ours: bool = False) -> Callable[[Body], Body]:
    def register(body: Body) -> Body:
        OPERATIONS[name] = Operation(name, body, opens, ours)
        return body

    return register


class Shim:
    """injected.c, as it is preloaded."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self.arm, self.disarm = library.injected_arm, library.injected_disarm
        library.injected_name.restype = ctypes.c_char_p
        library.injected_count.restype = ctypes.c_long
        self.library = library
        self.names = []
        while (name := library.injected_name(len(self.names))) is not None:
            self.names.append(name.decode())

    def counts(self) -> dict[str, int]:
        numbers = {name: self.library.injected_count(at) for at, name in enumerate(self.names)}
        return {name: number for name, number in numbers.items() if number}


class Run:
    """One run of an operation: with a call that fails, or counted, or left alone."""

    def __init__(self, shim: Shim, operation: Operation, folder: str, triple: Triple | None, count: bool) -> None:
        self.shim, self.operation, self.folder, self.triple, self.count = shim, operation, folder, triple, count
        self.came = False
        self.failure: BaseException | None = None
        self.counts: dict[str, int] = {}

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """What is tested. An exception that leaves it is what came of it."""
        arm, disarm = self.shim.arm, self.shim.disarm
        if self.triple is not None:
            one = self.triple
            arguments = (one.call.encode(), ctypes.c_long(one.nth), one.how, one.number, self.operation.ours)
        else:
            arguments = (b"", ctypes.c_long(0), 0, 0, self.operation.ours)
        if self.triple is not None or self.count:
            arm(*arguments)
        try:
            yield
        except BaseException as failure:
            self.came = bool(disarm())
            self.failure = failure
            raise
        self.came = bool(disarm())
        if self.count:
            self.counts = self.shim.counts()

    def of_connections(self) -> bool:
        return self.triple is not None and self.triple.call in ("recv", "send", "sendmsg", "setsockopt", "getpeername")

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Within armed(): the test's own calls."""
        self.shim.library.injected_pause(True)
        yield
        self.shim.library.injected_pause(False)

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)


def opens(name: str, bind: Callable[[Run], Any], *, call: Any = None, **options: Any) -> None:
    """An operation that opens listeners."""

    @operation(name, opens=True)
    def body(run: Run) -> None:
        binds = bind(run)
        with run.armed():
            made = (call or harken.listen)(*(binds if isinstance(binds, list) else [binds]), **options)
        with made:
            for listener in made:
                assert listener.state == ("bound" if call else "listening")
                if options.get("mode"):
                    assert os.stat(str(listener.address)).st_mode & 0o777 == options["mode"]
                if not call:
                    reachable(listener)


def reachable(listener: harken.Listener) -> None:
    if listener.family == stdlib.AF_VSOCK:
        return
    with stdlib.socket(listener.family) as client:
        client.settimeout(5)
        address = listener.address
        if listener.family != stdlib.AF_UNIX:
            host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(address[0]), str(address[0]))
            client.connect((host, listener.port))
        else:
            path = str(address)
            with within("" if path.startswith("\0") else os.path.dirname(path)):
                client.connect(path if path.startswith("\0") else os.path.basename(path))
        listener.settimeout(5)
        listener.accept()[0].close()


@contextlib.contextmanager
def within(folder: str) -> Iterator[None]:
    before = os.getcwd()
    try:
        if folder:
            os.chdir(folder)
        yield
    finally:
        os.chdir(before)


HAS_IPV6 = os.path.exists("/proc/net/if_inet6")

opens("listen 127.0.0.1:0", lambda _: "127.0.0.1:0")
opens("listen :0", lambda _: ":0")
opens("listen a name", lambda _: "localhost:0")
opens("listen tcp4", lambda _: "tcp4://*:0")
opens("listen a range", lambda _: ":42100-42150")
opens("listen mptcp", lambda _: "mptcp://127.0.0.1:0")
opens("listen vsock", lambda _: "vsock://*:0")
opens("listen three binds", lambda run: ["127.0.0.1:0", f"unix:{run.path('three')}", "localhost:0"])
opens(
    "listen with options", lambda _: "127.0.0.1:0", keepalive_idle=30, rcvbuf=65536, tos=8, defer_accept=1,
    freebind=True, congestion="cubic", priority=3, inheritable=True,
)  # fmt: skip
opens("listen reuse_port", lambda _: ":0", reuse_port=True)
opens("listen both families", lambda _: ":0", ipv6_only=False)
opens("listen interface", lambda _: "127.0.0.1:0", interface="lo")
opens("listen backlog", lambda _: "127.0.0.1:0", backlog=10)
opens("listen backlog too long", lambda _: "127.0.0.1:0", backlog=1 << 24)
opens("bind 127.0.0.1:0", lambda _: "127.0.0.1:0", call=harken.bind)
opens("bind :0", lambda _: ":0", call=harken.bind)
opens("bind reuse_port", lambda _: "127.0.0.1:0", call=harken.bind, reuse_port=True)
opens("bind unix", lambda run: f"unix:{run.path('bound')}", call=harken.bind, mode=0o600)
opens("listen unix", lambda run: f"unix:{run.path('plain')}")
opens("listen unix mode", lambda run: f"unix:{run.path('mode')}", mode=0o640)
opens("listen unix owner", lambda run: f"unix:{run.path('owner')}", owner=os.getuid(), group=os.getgid(), mode=0o600)
opens("listen unix abstract", lambda run: f"unix:@{run.path('abstract')}")
opens("listen unix options", lambda run: f"unix:{run.path('options')}", rcvbuf=65536, backlog=3)


@operation("listen unix long path", opens=True)
def _(run: Run) -> None:
    folder = run.path("f" * 120)
    os.makedirs(folder, exist_ok=True)
    try:
        with run.armed():
            made = harken.listen(f"unix:{folder}/a.sock")
        made.close()
    finally:
        shutil.rmtree(folder)


@operation("listen unix stale path", opens=True)
def _(run: Run) -> None:
    path = run.path("stale")
    dead = stdlib.socket(stdlib.AF_UNIX)
    dead.bind(path)
    dead.close()
    try:
        with run.armed():
            made = harken.listen(f"unix:{path}")
        reachable(made[0])
        made.close()
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # an error may leave it as it was


@operation("listen unix takeover", opens=True)
def _(run: Run) -> None:
    path = run.path("live")
    old = stdlib.socket(stdlib.AF_UNIX)
    try:
        old.bind(path)
        old.listen()
        try:
            with run.armed():
                made = harken.listen(f"unix:{path}", exclusive=False, mode=0o600)
        except OSError:
            knock = stdlib.socket(stdlib.AF_UNIX)
            knock.connect(path)  # the live server is as it was
            knock.close()
            old.accept()[0].close()
            raise
        reachable(made[0])
        made.close()
    finally:
        old.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


@operation("bind unix takeover, listen", opens=True)
def _(run: Run) -> None:
    path = run.path("live")
    old = stdlib.socket(stdlib.AF_UNIX)
    try:
        old.bind(path)
        old.listen()
        with harken.bind(f"unix:{path}", exclusive=False) as held:
            with run.armed():
                held.listen()
            reachable(held[0])
    finally:
        old.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


@operation("listen a live path", opens=True)
def _(run: Run) -> None:
    path = run.path("live")
    old = stdlib.socket(stdlib.AF_UNIX)
    try:
        old.bind(path)
        old.listen()
        try:
            with run.armed():
                harken.listen(f"unix:{path}").close()
            raise AssertionError("two live servers on one path")
        except harken.AddressInUseError as error:
            if run.triple is not None:
                raise
            assert error.address == path
            run.failure = None
    finally:
        old.close()
        os.unlink(path)


@operation("bind, listen", opens=True)
def _(run: Run) -> None:
    with harken.bind("127.0.0.1:0", f"unix:{run.path('held')}") as held:
        try:
            with run.armed():
                held.listen()
        except OSError:
            held.listen()  # what listens already is left alone
            raise
        for listener in held:
            reachable(listener)


@operation("bind with options, listen", opens=True)
def _(run: Run) -> None:
    with harken.bind("127.0.0.1:0", reuse_port=True, fastopen=5, nodelay=True) as held:
        with run.armed():
            held.listen(20)
        reachable(held[0])


def inherits(name: str, bind: str, **options: Any) -> None:
    @operation(name, opens=True)
    def body(run: Run) -> None:
        with stdlib.create_server(("127.0.0.1", 0)) as given:
            fd = given.fileno()
            try:
                with run.armed():
                    made = harken.listen(bind.format(fd), **options)
            except OSError:
                assert given.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ACCEPTCONN)  # it is still the caller's
                raise
            reachable(made[0])
            given.detach()
            made.close()


inherits("listen fd://", "fd://{}")
inherits("listen fd:// with options", "fd://{}", backlog=200, nodelay=True, keepalive_idle=9)


@operation("adopt a number", opens=True)
def _(run: Run) -> None:
    with stdlib.create_server(("127.0.0.1", 0)) as given:
        with run.armed():
            listener = harken.adopt(given.fileno())
        reachable(listener)
        given.detach()
        listener.close()


@operation("adopt a socket", opens=True)
def _(run: Run) -> None:
    given = stdlib.create_server(("127.0.0.1", 0))
    try:
        with run.armed():
            listener = harken.adopt(given)
    except OSError:
        assert given.fileno() >= 0, "the caller has lost his socket"
        given.close()
        raise
    assert given.fileno() == -1
    reachable(listener)
    listener.close()


@operation("from_systemd", opens=True)
def _(run: Run) -> None:
    from harken import _inherit

    with stdlib.create_server(("127.0.0.1", 0)) as given:
        copy = os.dup2(given.fileno(), 3) if PARKED else -1
        environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}
        os.environ |= environment
        _inherit._passed.clear()
        _inherit._owned.clear()
        try:
            with run.armed():
                made = harken.from_systemd("web")
            with made:
                reachable(made[0])
            copy = -1
        finally:
            for variable in environment:
                os.environ.pop(variable, None)
            if copy >= 0:
                os.close(copy)
            os.dup2(PARKED[0], 3)  # whatever was there


PARKED: list[int] = []
"""What descriptor 3 is when it is nobody's."""


# ---------------------------------------------------------------------------- errors are explained


@operation("explain an address in use")
def _(run: Run) -> None:
    with harken.listen("127.0.0.1:0") as made:
        try:
            harken.listen(f"127.0.0.1:{made.port}")
        except harken.AddressInUseError as error:
            with run.armed():
                text = str(error)
                found = (error.cause, error.holders, error.hint)
            assert text.startswith("bind(127.0.0.1:"), text
            assert found[0]


@operation("explain a path in use")
def _(run: Run) -> None:
    path = run.path("used")
    with harken.listen(f"unix:{path}"):
        try:
            harken.listen(f"unix:{path}")
        except harken.AddressInUseError as error:
            with run.armed():
                text = str(error)
                found = (error.cause, error.holders, error.hint)
            assert text.startswith(f"bind({path})"), text
            assert found[0]


@operation("explain an address that is not here")
def _(run: Run) -> None:
    try:
        harken.listen("192.0.2.1:0")
    except harken.ListenError as error:
        with run.armed():
            text = str(error)
        assert text.startswith("bind(192.0.2.1:0)"), text


@operation("explain what was left out")
def _(run: Run) -> None:
    with harken.listen("127.0.0.1:0") as made:
        error = OSError(errno.EADDRNOTAVAIL, "not here")
        less = harken.Listeners(made)
        less._left_out = [(("::1", 80, 0, 0), error)]
        with run.armed():
            told = less.left_out
        assert told[0][1].errno == errno.EADDRNOTAVAIL


@operation("holders of a port")
def _(run: Run) -> None:
    with harken.listen("127.0.0.1:0") as made:
        port = made.port
        with run.armed():
            found = harken.holders(port)
        assert run.triple is not None or [one.pid for one in found] == [os.getpid()]


@operation("holders of a path")
def _(run: Run) -> None:
    path = run.path("whose")
    with harken.listen(f"unix:{path}"):
        with run.armed():
            found = harken.holders(path)
        assert run.triple is not None or [one.pid for one in found] == [os.getpid()]


def foresees(name: str, bind: Callable[[Run], str]) -> None:
    @operation(name)
    def body(run: Run) -> None:
        text = bind(run)
        with run.armed():
            found = list(_foresee.foresee([text]))
        assert found


foresees("check a port", lambda _: ":18080")
foresees("check a path", lambda run: f"unix:{run.path('later')}?mode=600")


@operation("stats of tcp")
def _(run: Run) -> None:
    with harken.listen("127.0.0.1:0") as made, run.armed():
        made[0].stats()


@operation("stats of unix")
def _(run: Run) -> None:
    with harken.listen(f"unix:{run.path('stats')}") as made, run.armed():
        made[0].stats()


@operation("what a listener tells")
def _(run: Run) -> None:
    with harken.listen(":0", reuse_port=True, rcvbuf=70000) as made, run.armed():
        for one in made:
            str((one.address, one.port, one.url, one.state, one.backlog, one.options))


# ---------------------------------------------------------------------------- getaddrinfo


def resolves(name: str, *arguments: Any) -> None:
    @operation(name)
    def body(run: Run) -> None:
        with run.armed():
            found = harken.getaddrinfo(*arguments)
        with found:
            assert list(found)


resolves("getaddrinfo in digits", "127.0.0.1", 80)
resolves("getaddrinfo of a name", "localhost", "http")
resolves("getaddrinfo of the wildcard", None, 80, 0, stdlib.SOCK_STREAM, 0, stdlib.AI_PASSIVE)


# ---------------------------------------------------------------------------- Socket


@operation("Socket()")
def _(run: Run) -> None:
    with run.armed():
        made = harken.Socket(stdlib.AF_INET, stdlib.SOCK_STREAM)
    made.close()


@operation("Socket(fileno=)")
def _(run: Run) -> None:
    with stdlib.socket() as given:
        with run.armed():
            made = harken.Socket(fileno=given.fileno())
        made.detach()


@operation("Socket: bind, listen")
def _(run: Run) -> None:
    with harken.Socket() as made, run.armed():
        made.bind(("127.0.0.1", 0))
        made.listen()


@operation("Socket.bind of a name")
def _(run: Run) -> None:
    with harken.Socket() as made, run.armed():
        made.bind(("localhost", 0))


@operation("Socket.bind of a path")
def _(run: Run) -> None:
    path = run.path("bare")
    try:
        with harken.Socket(stdlib.AF_UNIX) as made, run.armed():
            made.bind(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def connects(name: str, timeout: float | None, unix: bool = False) -> None:
    @operation(name)
    def body(run: Run) -> None:
        with (
            harken.listen(f"unix:{run.path('server')}" if unix else "127.0.0.1:0") as made,
            harken.Socket(stdlib.AF_UNIX if unix else stdlib.AF_INET) as client,
        ):
            client.settimeout(timeout)
            with run.armed():
                client.connect(made[0].address)
            assert client.getpeername() == made[0].getsockname()
            made[0].settimeout(5)
            made[0].accept()[0].close()


connects("connect", None)
connects("connect with a timeout", 5)
connects("connect to a path", None, True)


class Pair:
    """A connection: our end, and the other one."""

    def __enter__(self) -> Self:
        with harken.listen("127.0.0.1:0") as made:
            self.peer = stdlib.create_connection(made[0].address, 5)
            self.ours = made[0].accept()[0]
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.peer.close()
        self.ours.close()


def transfers(name: str, use: Callable[[harken.Socket, Pair], Any], timeout: float | None = 5) -> None:
    """``use`` reads "hello" or writes: what was written has to arrive, whole and in order, however short each call."""

    @operation(name)
    def body(run: Run) -> None:
        with Pair() as pair:
            pair.peer.sendall(b"hello")
            pair.ours.settimeout(timeout)
            pair.ours.recv(1, stdlib.MSG_PEEK)
            with run.armed():
                result = use(pair.ours, pair)
            if isinstance(result, bytes):
                assert b"hello".startswith(result), result
            elif isinstance(result, int):
                received = b""
                while len(received) < result:
                    received += pair.peer.recv(result - len(received))
                assert received == (DATA * 2)[:result]


DATA = bytes(range(256)) * 40
transfers("recv", lambda sock, _: sock.recv(5))
transfers("recv, non-blocking", lambda sock, _: sock.recv(5), 0)
transfers("recv MSG_WAITALL", lambda sock, _: sock.recv(5, stdlib.MSG_WAITALL), None)
transfers("recv_into", lambda sock, _: sock.recv_into(bytearray(5)) and b"hello")
transfers("send", lambda sock, _: sock.send(DATA))
transfers("send, non-blocking", lambda sock, _: sock.send(DATA), 0)
transfers("sendall", lambda sock, _: sock.sendall(DATA) or len(DATA))
transfers("sendall, blocking", lambda sock, _: sock.sendall(DATA) or len(DATA), None)
transfers("sendmsg", lambda sock, _: sock.sendmsg([DATA, DATA]))
transfers("shutdown", lambda sock, _: sock.shutdown(stdlib.SHUT_WR))
transfers("names and options", lambda sock, _: str((sock.getsockname(), sock.getpeername(), sock.getsockopt(1, 2))))
transfers("getsockopt into bytes", lambda sock, _: str(sock.getsockopt(1, 2, 4)))
transfers("setsockopt", lambda sock, _: sock.setsockopt(1, 9, 1))
transfers("settimeout", lambda sock, _: str((sock.settimeout(0), sock.settimeout(None), sock.setblocking(False))))
transfers("inheritable", lambda sock, _: str((sock.set_inheritable(True), sock.get_inheritable())))
transfers("dup", lambda sock, _: sock.dup().close())
transfers("repr", lambda sock, _: repr(sock))
transfers("connect_ex", lambda sock, _: str(sock.connect_ex(sock.getpeername())))


def _sendfile(sock: harken.Socket, _: Pair) -> int:
    with open(FILE, "rb") as file:
        return sock.sendfile(file)


FILE = os.path.join(tempfile.gettempdir(), f"harken-injected-{os.getpid()}")
"""Of the child."""
transfers("sendfile", _sendfile)


@operation("Socket.close")
def _(run: Run) -> None:
    with Pair() as pair, run.armed():
        pair.ours.close()


@operation("Socket.detach")
def _(run: Run) -> None:
    with Pair() as pair:
        with run.armed():
            handle = pair.ours.detach()
        os.close(handle)


@operation("to_socket of a connection")
def _(run: Run) -> None:
    with Pair() as pair:
        with run.armed():
            made = pair.ours.to_socket()
        made.close()


# ---------------------------------------------------------------------------- accepting


class Clients:
    """Connections to a listener, each of which has to be answered in the end."""

    def __init__(self, listener: harken.Socket, count: int) -> None:
        self.waiting = {}
        self.listener = stdlib.socket(fileno=os.dup(listener.fileno()))
        for _ in range(count):
            client = stdlib.socket(self.listener.family)
            client.settimeout(5)
            client.connect(self.listener.getsockname())
            self.waiting[client.getsockname()] = client

    def answered(self, connections: list[Any]) -> None:
        """These were accepted."""
        for one in connections:
            one.setblocking(True)
            self.seen(one)
            one.close()

    def seen(self, connection: Any) -> None:
        self.waiting.pop(connection.getpeername()).close()

    def all_answered(self) -> None:
        """Those that are left are still in the queue."""
        self.listener.settimeout(1)
        try:
            while self.waiting:
                connection = self.listener.accept()[0]
                self.waiting.pop(connection.getpeername()).close()
                connection.close()
        except TimeoutError:
            raise AssertionError(f"{len(self.waiting)} clients are lost") from None
        finally:
            self.close()

    def close(self) -> None:
        self.listener.close()
        for one in self.waiting.values():
            one.close()


def accepts(name: str, use: Callable[[harken.Listener], list[Any]], count: int = 3, timeout: float | None = 5) -> None:
    @operation(name)
    def body(run: Run) -> None:
        with harken.listen("127.0.0.1:0", priority=2) as made:
            clients = Clients(made[0], count)
            made[0].settimeout(timeout)
            try:
                with run.armed():
                    found = use(made[0])
                clients.answered(found)
            finally:
                clients.all_answered()


accepts("accept", lambda listener: [listener.accept()[0]])
accepts("accept, blocking", lambda listener: [listener.accept()[0]], timeout=None)
accepts("accept, non-blocking", lambda listener: [listener.accept()[0]], timeout=0)
accepts("accept_many", lambda listener: listener.accept_many(3))
accepts("accept_many, non-blocking", lambda listener: listener.accept_many(64), timeout=0)


@operation("accept that waits")
def _(run: Run) -> None:
    with harken.listen("127.0.0.1:0") as made:
        made[0].settimeout(0.01)
        try:
            with run.armed():
                made[0].accept()
        except TimeoutError:
            run.failure = None


def accepts_by_engine(engine: str) -> None:
    def of(made: harken.Listeners, **options: Any) -> harken.Acceptor:
        return made.acceptor(engine=engine, **options)

    @operation(f"{engine}: Acceptor()", ours=True)
    def construct(run: Run) -> None:
        with harken.listen("127.0.0.1:0", "127.0.0.1:0") as made:
            clients = Clients(made[0], 2)
            try:
                with run.armed():
                    acceptor = of(made)
                acceptor.close()
            finally:
                clients.all_answered()

    def takes(name: str, use: Callable[[harken.Acceptor, list[Any]], object], **options: Any) -> None:
        @operation(f"{engine}: {name}", ours=True)
        def body(run: Run) -> None:
            with harken.listen("127.0.0.1:0", "127.0.0.1:0") as made, of(made, **options) as acceptor:
                clients = Clients(made[0], 3)
                found: list[Any] = []
                try:
                    try:
                        with run.armed():
                            use(acceptor, found)
                    finally:
                        if not acceptor.closed:
                            # The same acceptor goes on, after a pause perhaps.
                            end = time.monotonic() + 3
                            acceptor.resume()
                            while len(found) < 3 and time.monotonic() < end and not acceptor.closed:
                                if acceptor.wait(0.5):
                                    found += acceptor.accept_many()
                            if not acceptor.closed and len(found) + acceptor.stats().shed < 3:
                                raise AssertionError(f"the acceptor took {len(found)} of 3 and no more")
                        else:
                            with contextlib.suppress(OSError):
                                while more := acceptor.accept_many():
                                    found += more
                    assert acceptor.stats().accepted >= len(found)
                finally:
                    shed = acceptor.stats().shed
                    clients.answered(found)
                    if shed:
                        clients.close()
                    else:
                        clients.all_answered()

    takes("accept_many", lambda acceptor, found: found.extend(acceptor.accept_many()))
    takes("accept_many(1)", lambda acceptor, found: found.extend(acceptor.accept_many(1)))
    takes("iteration", lambda acceptor, found: found.append(next(acceptor)))
    takes("wait", lambda acceptor, _: acceptor.wait(2))
    takes("pause, resume", lambda acceptor, _: (acceptor.pause(), acceptor.accept_many(), acceptor.resume()))
    takes("stats", lambda acceptor, _: (acceptor.stats(), repr(acceptor)))
    takes("close", lambda acceptor, _: acceptor.close())
    takes("shed", lambda acceptor, found: found.extend(acceptor.accept_many()), on_overload="shed")
    takes("limit", lambda acceptor, found: found.extend(acceptor.accept_many()), limit=1000)
    if engine != "accept":
        takes("fileno", lambda acceptor, _: acceptor.fileno())

    @operation(f"{engine}: a limit is reached", ours=True)
    def limited(run: Run) -> None:
        with harken.listen("127.0.0.1:0") as made, of(made, limit=1) as acceptor:
            clients = Clients(made[0], 3)
            found: list[Any] = []
            try:
                with run.armed():
                    for _ in range(3):
                        if acceptor.wait(1):
                            found += acceptor.accept_many()
                        while found:
                            with run.aside():
                                clients.seen(connection := found.pop())
                            connection.close()
            finally:
                clients.answered(found)
                acceptor.close()
                clients.all_answered()

    @operation(f"{engine}: a listener closes", ours=True)
    def one_closes(run: Run) -> None:
        with harken.listen("127.0.0.1:0", "127.0.0.1:0") as made, of(made) as acceptor:
            clients = Clients(made[0], 2)
            found: list[Any] = []
            try:
                with run.armed():
                    made[1].close()
                end = time.monotonic() + 3
                while len(found) < 2 and time.monotonic() < end:
                    if acceptor.wait(0.5):
                        found += acceptor.accept_many()
                assert len(found) == 2
            finally:
                clients.answered(found)
                acceptor.close()
                clients.all_answered()


for _engine in _acceptor.engines():
    accepts_by_engine(_engine)


# ---------------------------------------------------------------------------- hand-over


@operation("Listeners.sockets")
def _(run: Run) -> None:
    with harken.listen("127.0.0.1:0", f"unix:{run.path('over')}") as made:
        clients = Clients(made[0], 2)
        try:
            try:
                with run.armed():
                    sockets = made.sockets()
            except OSError:
                assert [one.state for one in made] == ["listening"] * 2, "half is given away"
                raise
            for one in sockets:
                one.close()
        finally:
            clients.all_answered()


@operation("sockets: listen, accept, dup, close")
def _(run: Run) -> None:
    with harken.listen("127.0.0.1:0", priority=1).sockets()[0] as listener:
        clients = Clients(listener, 1)
        found = []
        try:
            with run.armed():
                listener.listen(100)
                found.append(listener.accept()[0])
                listener.dup().close()
        finally:
            clients.answered(found)
            clients.all_answered()


@operation("to_socket of a listener")
def _(run: Run) -> None:
    with harken.listen("127.0.0.1:0") as made:
        try:
            with run.armed():
                given = made[0].to_socket()
        except OSError:
            assert made[0].state == "listening"
            raise
        given.close()


@operation("Listeners.close")
def _(run: Run) -> None:
    made = harken.listen("127.0.0.1:0", f"unix:{run.path('closed')}")
    path = run.path("closed")
    with run.armed():
        try:
            made.close()
        finally:
            assert [one.state for one in made] == ["closed"] * 2
    if os.path.exists(path):  # which must not fail close()
        os.unlink(path)


# ---------------------------------------------------------------------------- asyncio


def serves(name: str, *binds: Any, engine: str | None = None) -> None:
    @operation(name, ours=True)
    def body(run: Run) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read(4))
            writer.close()

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda *_: None)
            with run.armed():
                server = await harken.asyncio.start_server(serve, *binds, **({"engine": engine} if engine else {}))
                try:
                    for one in server.sockets[:1]:
                        host, port = one.getsockname()[:2]
                        reader, writer = await asyncio.open_connection(host, port)
                        writer.write(b"ping")
                        try:
                            answer = await asyncio.wait_for(reader.read(), 3)
                            writer.close()
                            await writer.wait_closed()
                        except ConnectionError:
                            answer = b""
                        # As with asyncio's own: of a connection that fails the client is told.
                        assert answer == b"ping" or run.of_connections(), answer
                finally:
                    server.close()
                    await server.wait_closed()

        asyncio.run(main())


serves("asyncio: start_server", "127.0.0.1", 0)
serves("asyncio: start_server, accept4", "127.0.0.1", 0, engine="accept4")
serves("asyncio: start_server, accept", "127.0.0.1", 0, engine="accept")


@operation("preload")
def _(run: Run) -> None:
    from harken import _loading

    with run.armed():
        _loading.load("json.tool")
    sys.modules.pop("json.tool", None)


# ---------------------------------------------------------------------------- the negative control


def control(name: str, fault: Callable[[Run, OSError], object], *, opens: bool = False) -> None:
    """An operation with a fault on purpose: this is done when a call fails."""

    @operation(f"control: {name}", opens=opens)
    def body(run: Run) -> None:
        with harken.listen("127.0.0.1:0") as made:
            clients = Clients(made[0], 1)
            try:
                with run.armed():
                    try:
                        with stdlib.socket() as sock:
                            sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_REUSEADDR, 1)
                    except OSError as error:
                        fault(run, error)
                        if name == "a client is lost":
                            made[0].accept()[0].close()
            finally:
                clients.all_answered()


def _raise(_: Run, error: OSError) -> None:
    raise error


def _raises_another(_: Run, error: OSError) -> None:
    raise LookupError("unknown encoding") from error


def _leaves(what: Callable[[Run], object]) -> Callable[[Run, OSError], None]:
    def fault(run: Run, error: OSError) -> None:
        with run.aside():
            what(run)
        raise error

    return fault


def add_controls() -> dict[str, str]:
    """Names, and what has to be said of them."""
    control("nothing is told", lambda *_: None)
    control("no ListenError", _raise, opens=True)
    control("another error", lambda *_: os.stat("/nowhere"))
    control("no OSError", _raises_another)
    control("a descriptor is left", _leaves(lambda _: os.dup(0)))
    control("a descriptor is lost", _leaves(lambda _: os.close(3)))
    control("a file is left", _leaves(lambda run: Path(run.path("a file")).touch()))
    control("a thread is left", _leaves(lambda _: threading.Thread(target=threading.Event().wait, daemon=True).start()))
    control("a client is lost", lambda *_: None)
    control("it hangs", _leaves(lambda _: threading.Event().wait()))
    control("it crashes", _leaves(lambda _: os.kill(os.getpid(), signal.SIGSEGV)))
    said = (
        "nothing was told", "no ListenError", "another error", "is no OSError", "left over: ['", "lost: ['3",
        "'a file'", "threads 1 -> 2", "1 clients are lost", "Timeout (0:00:04)", "ended with -11",
    )  # fmt: skip
    names = [name for name in OPERATIONS if name.startswith("control: ")]
    return dict(zip(names, said, strict=True))


# ---------------------------------------------------------------------------- what is right


class Quiet(NamedTuple):
    """Where nothing needs to be told of a failure, and why."""

    operation: str
    """A regular expression; the whole name."""
    calls: str
    errors: str
    """Those of the call, or * for all of them."""
    why: str


_OF_UNIX = "(listen|bind) .*(unix|binds|path).*"
_WITHOUT = "io_uring_enter socket malloc eventfd fcntl poll"
_PROBES = "socket bind close getifaddrs"
QUIET = [
    Quiet(
        ".*", "accept4 connect flock getrandom open openat poll read recv recvfrom recvmsg send sendmsg sendto write"
        " epoll_wait sendfile close io_uring_enter", "EINTR", "it is called again, or has done its work",
    ),
    Quiet(".*", " ".join(SHORT), "short", "what was not transferred is asked for again, or told by the result"),
    Quiet(".*", "recv send sendmsg sendto recvfrom read sendfile accept4",
          "EAGAIN", "it is waited for, and called again"),
    Quiet("explain .*", "*", "*", "what explains an error must not become the error: it says less"),
    Quiet("check .*", "*", "*", "it says what it sees; what cannot be seen is unknown, or the error that is foreseen"),
    Quiet("holders .*", "*", "*", "the next table is asked, or a process stays without its name"),
    Quiet("stats .*", "*", "*", "a figure that cannot be read is None"),
    Quiet("what a listener tells", "*",
          "*", "a setting that cannot be read is told as it was asked for, or not at all"),
    Quiet(".*", "getaddrinfo", "EAI_NONAME", "what looks like digits and is none may be a name: it is asked again"),
    Quiet("getaddrinfo of the wildcard", "getaddrinfo", "EAI_FAMILY EAI_NONAME", "the other family will do"),
    Quiet("(listen|bind) (:0|a range|tcp4|reuse_port|both families)", f"{_PROBES} getaddrinfo", "*",
          "of a wildcard one family will do; and the look whether a family is here decides nothing where it fails"),
    Quiet("(listen|bind) .*", "bind", "EADDRINUSE", "held alone first, then beside connections in TIME_WAIT"),
    Quiet("listen a range|listen a name|listen three binds", "listen bind socket",
          "EADDRINUSE EAFNOSUPPORT EADDRNOTAVAIL",
          "the next port of the range; of a name one family will do"),
    Quiet("listen mptcp", "socket setsockopt bind", "*", "without MPTCP it is TCP, which left_out tells"),
    Quiet("listen reuse_port", "*", "EADDRINUSE", "is it ours? then it joins"),
    Quiet(".*backlog.*|.*with options.*|listen unix options",
          "getsockopt stat fstat socket send recv poll ioctl open read close", "*", "no warning then"),
    Quiet("(adopt|from_systemd|listen fd://|asyncio).*", "setsockopt",
          "*", "TCP_NODELAY, of a socket of others: a help"),
    Quiet("(accept|accept_many)(,.*)?|sockets: .*", "setsockopt", "*", "of a connection that may be dead already"),
    Quiet("accept.*", "accept4", f"ECONNABORTED {_OF_NETWORKS}", "the connection died waiting: the next one"),
    Quiet("accept_many.*", "accept4", "*", "it gives what it has; the error comes again with the next call"),
    Quiet("sockets: .*", "getsockopt", "*", "listen(2) where the queue's length cannot be read"),
    Quiet("connect.*", "connect", "EINPROGRESS", "it goes on, and is waited for"),
    Quiet("connect_ex", "connect", "*", "it returns the number"),
    Quiet("repr", "*", "*", "what cannot be told is left out"),
    Quiet("to_socket of .*|Listeners.sockets", "getsockname", "*", "CPython looks whether it is a socket at all"),
    Quiet("(adopt a number|listen fd://).*", "fcntl",
          "*", "could it have been passed by systemd? it is ours in any case"),
    Quiet("from_systemd", "getsockname getsockopt",
          "*", "is it a datagram socket? when it is adopted it is asked again"),
    Quiet("from_systemd", "ioctl", "*", "the interpreter takes fcntl instead"),
    Quiet("Listeners.sockets|to_socket of a listener|bind with options, listen",
          "fstat getsockopt ioctl socket send recv poll close", "*", "the length of the queue, which is remembered"),
    Quiet("sendfile", "fstat ioctl", "*", "of the test's own open()"),
    Quiet("accept_many.*", "getsockopt", "*", "how many wait: else it tries"),
    # What an acceptor meets is for stats() and on_overload: the clients wait, and are taken later.
    Quiet("(io_uring|accept4|accept): .*", f"accept4 getsockopt ioctl close epoll_wait epoll_ctl {_WITHOUT}",
          "*", "the acceptor pauses, asks again, or does without: stats().failed counts"),
    Quiet("(io_uring|accept4|accept): .*", "read timerfd_settime", "*", "a wake-up more"),
    Quiet("asyncio: .*", "*", "*", "clients wait, are served by another engine, or their connection is closed"),
    # Paths: the operations look whether the path is as it was asked for, and the server to be reached.
    Quiet(_OF_UNIX, "socket send recv sendmsg recvmsg poll fstat fstatat lstat stat open openat close connect"
          " getsockname", "*", "the inode, and who lives there: else a private directory is taken, or somebody lives"),
    Quiet(_OF_UNIX, "fchmod fchmodat unlinkat rmdir renameat renameat2 linkat unlink flock", "*",
          "it is made in another way; what cannot be removed stays"),
    Quiet("Listeners.close", "*", "*", "a path that cannot be removed stays, as that of a killed server does"),
    Quiet("Socket.bind of a path", "unlink", "*", "the test's own"),
    Quiet("preload", "stat fstat read open close", "*", "the interpreter looks elsewhere"),
]  # fmt: skip


def judged(run: Run, triple: Triple) -> str:
    """What is wrong with how the failure was told; empty when nothing is."""
    failure, kind = run.failure, OPERATIONS[triple.operation]
    if failure is None:
        return "" if is_among(triple, QUIET) else "QUIET: nothing was told"
    if isinstance(failure, MemoryError) and triple.call in ("malloc", "calloc"):
        return ""
    if not isinstance(failure, OSError):
        return f"{type(failure).__name__} is no OSError: {failure!r}"
    if kind.opens:
        if not isinstance(failure, harken.ListenError):
            return f"no ListenError: {failure!r}"
        if not failure.step or failure.address in (None, "") or not str(failure):
            return f"no step or no address: {failure!r}"
    if failure.errno != triple.told and not any(
        re.fullmatch(rule.operation, triple.operation) and triple.call in rule.calls.split()
        and errno.errorcode[failure.errno or 0] in rule.errors.split() for rule in BECOMES
    ):  # fmt: skip
        return f"another error: {failure!r}"
    return ""


BECOMES = [
    Quiet("io_uring: Acceptor.*", "io_uring_setup io_uring_enter io_uring_register mmap", "EOPNOTSUPP",
          "the engine does not work here"),
    Quiet("from_systemd", "fcntl", "EINVAL", "a descriptor that was announced is not open"),
    Quiet(_OF_UNIX, "connect fstat fstatat lstat stat openat open socket send recv chmod fchownat",
          "EADDRINUSE EACCES EPERM EEXIST ENOENT",
          "only ECONNREFUSED means that nobody lives there; and what cannot be looked at is somebody's"),
    Quiet("listen unix long path", "stat lstat", "ENAMETOOLONG", "no way through /proc is seen"),
    Quiet("preload", "stat fstat open read", "ENOENT", "the interpreter has not found the module"),
]  # fmt: skip
"""Errors that are told as others: `errors` is what is told."""
STAYS = [
    Quiet(_OF_UNIX, "bind close fstat fstatat lstat open openat rename renameat renameat2 unlink unlinkat rmdir"
          " socket send recv", "*",
          "what cannot be looked at may be another's, and is not removed: the next try replaces it"),
    Quiet("Listeners.close", "*", "*", "close() never fails for a path"),
]  # fmt: skip
"""Where a file may be left."""
NOT_OURS = [
    Quiet("asyncio: .*", "close", "EIO ENOSPC EDQUOT", "asyncio's transports do not tell their server then"),
    Quiet(
        "sockets: .*", "getsockname getsockopt", "*", "CPython's accept() and dup() leak a descriptor that is no socket"
    ),
]


def is_among(triple: Triple, rules: list[Quiet]) -> bool:
    return any(
        re.fullmatch(rule.operation, triple.operation)
        and (rule.calls == "*" or triple.call in rule.calls.split())
        and (rule.errors == "*" or triple.error in rule.errors.split())
        for rule in rules
    )


# ---------------------------------------------------------------------------- the child


def state(folder: str) -> tuple[set[str], int, list[str]]:
    """Descriptors, threads and files."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
    found = {one for one in found if not one.endswith(f"/proc/{os.getpid()}/fd")}
    return found, threading.active_count(), sorted(os.listdir(folder))


def settled(folder: str, before: Any, stays: bool = False) -> str:
    """What is left of it; empty when nothing is. ``stays``: files may be left."""
    for attempt in range(60):
        now = state(folder)
        if stays:
            now = (now[0], now[1], before[2])
        if now[0] == before[0] and now[1] <= before[1] and now[2] == before[2]:
            return ""
        if attempt == 0:
            gc.collect()  # a frame in a cycle
        elif attempt > 2:
            time.sleep(0.01)  # a thread may be about to end
    lost, left = before[0] - now[0], now[0] - before[0]
    return f"left over: {sorted(left)}, lost: {sorted(lost)}, threads {before[1]} -> {now[1]}, files {now[2]}"


class Child:
    """Goes through the triples of operations, and tells of each operation and each fault in a line."""

    def __init__(self, note: str, long: bool) -> None:
        park = os.open(os.devnull, os.O_RDONLY)
        if park != 3:
            os.dup2(park, 3)
        PARKED.append(os.dup(park))
        self.shim, self.long = Shim(), long
        self.folder = tempfile.mkdtemp(prefix="harken-")
        Path(FILE).write_bytes(DATA)
        self.note = mmap.mmap(os.open(note, os.O_RDWR), 4096)
        self.threads = threading.active_count()
        self.unraisable: list[str] = []
        sys.unraisablehook = lambda about: self.unraisable.append(f"{about.exc_value!r} in {about.object!r}")
        warnings.simplefilter("ignore")
        import logging

        logging.getLogger("harken").addHandler(logging.NullHandler())
        logging.getLogger("harken").propagate = False

    def tell(self, **facts: Any) -> None:
        print(json.dumps(facts), flush=True)

    def write(self, text: str) -> None:
        data = text.encode()[:4000]
        self.note[: len(data) + 1] = data + b"\0"

    def run(self, operation: Operation, triple: Triple | None = None, count: bool = False) -> Run:
        run = Run(self.shim, operation, self.folder, triple, count)
        try:
            operation.body(run)
        except BaseException as failure:
            self.shim.disarm()
            if run.failure is not failure:
                run.failure = None
                raise
            failure.__traceback__ = None
        return run

    def triples(self, operation: Operation) -> list[Triple]:
        self.write(f"{operation.name}: counted")
        for _ in range(3):  # what is loaded or cached once
            assert self.run(operation).failure is None
        counted = self.run(operation, count=True)
        assert counted.failure is None, counted.failure
        found = []
        for call, number in sorted(counted.counts.items()):
            theirs = {
                error
                for one in NOT_OURS
                if re.fullmatch(one.operation, operation.name) and call in one.calls.split()
                for error in (ERRORS[call] if one.errors == "*" else one.errors).split()
            }
            nths = range(1, number + 1)
            if len(nths) > (24 if self.long else 3):
                most = 12 if self.long else 1
                nths = [*nths[:most], *nths[number // 2 : number // 2 + 1], *nths[-most:]]
            for nth in nths:
                errors = OF_WAKERS.get(call) if operation.ours else None
                found += [
                    Triple(operation.name, call, nth, error)
                    for error in (errors or ERRORS.get(call, "")).split()
                    if error not in theirs
                ]
                found += [Triple(operation.name, call, nth, "short")] if call in SHORT and not errors else []
        return found

    def try_one(self, triple: Triple) -> tuple[bool, str]:
        """Did the call come, and what is wrong?"""
        operation = OPERATIONS[triple.operation]
        for _ in range(100):  # a thread of the run before may be about to end, with its descriptors
            if threading.active_count() <= self.threads:
                break
            time.sleep(0.01)
        self.unraisable.clear()
        before = state(self.folder)
        fault = ""
        try:
            run = self.run(operation, triple)
        except BaseException as problem:
            fault, came = f"afterwards: {problem!r}", True
            problem.__traceback__ = None
            del problem
        else:
            came = run.came
            fault = judged(run, triple) if came else ""
            run.failure = None
        fault = fault or settled(self.folder, before, is_among(triple, STAYS))
        if self.unraisable and not fault:
            fault = f"unraisable: {self.unraisable}"
        try:
            again = self.run(operation)
            if again.failure is not None and not fault:
                fault = f"the next try fails: {again.failure!r}"
        except BaseException as problem:
            fault = fault or f"the next try fails: {problem!r}"
            problem.__traceback__ = None
        for left in os.listdir(self.folder):
            path = os.path.join(self.folder, left)
            if os.path.isdir(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        return came, fault

    def go(self, name: str, skip: int, sample: int) -> None:
        operation = OPERATIONS[name]
        all_of_them = self.triples(operation)
        done = faults = 0
        for at, triple in enumerate(all_of_them):
            if at < skip or (sample and hash_of(triple) % sample):
                continue
            if name.startswith("control: ") and (triple.call, triple.error) != ("socket", "EMFILE"):
                continue
            self.write(f"{at} {triple}")
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            came, fault = self.try_one(triple)
            faulthandler.cancel_dump_traceback_later()
            done += came
            if fault:
                faults += 1
                self.tell(fault=fault, triple=triple)
        self.tell(operation=name, done=done, faults=faults)


def hash_of(triple: Triple) -> int:
    """The same in every run."""
    import zlib

    return zlib.crc32(str(triple).encode())


# ---------------------------------------------------------------------------- the command


def library(folder: str) -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("there is no C compiler to build the shim with")
    made = os.path.join(folder, "injected.so")
    source = Path(__file__).with_name("injected.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", made, source, "-ldl"], check=True)
    return made


class Outcome(NamedTuple):
    done: int
    faults: list[str]


SAMPLE = 60
"""The suite takes one triple of so many."""


def all_of(names: list[str], *, long: bool, sample: int) -> Outcome:
    """Runs children until all operations are through."""
    done, faults = 0, []
    with tempfile.TemporaryDirectory() as folder:
        note = os.path.join(folder, "note")
        Path(note).write_bytes(bytes(4096))
        environment = os.environ | {"LD_PRELOAD": library(folder), "TMPDIR": folder}
        left, skip = list(names), 0
        while left:
            command = [sys.executable, __file__, "--child", note, "--skip", str(skip), "--sample", str(sample)]
            command += ["--long"] * long + left
            child = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
            )
            errors: list[str] = []
            reader = threading.Thread(target=lambda pipe, kept: kept.append(pipe.read()), args=(child.stderr, errors))
            reader.start()
            assert child.stdout
            for line in child.stdout:
                told = json.loads(line)
                if "operation" in told:
                    done += told["done"]
                    left.remove(told["operation"])
                    skip = 0
                    print(f"{told['operation']}: {told['done']} triples, {told['faults']} faults", flush=True)
                elif "fault" in told:
                    faults.append(f"{Triple(*told['triple'])}: {told['fault']}")
                    print(faults[-1], flush=True)
            child.wait()
            reader.join()
            if left:
                where = Path(note).read_bytes().partition(b"\0")[0].decode()
                at, _, triple = where.partition(" ")
                ended = f"a child ended with {child.returncode}: {triple}\n{''.join(errors)[-4000:]}"
                faults.append(ended)
                print(ended, flush=True)
                if not at.isdigit():
                    left.pop(0)  # it cannot even be counted
                    skip = 0
                else:
                    skip = int(at) + 1
    return Outcome(done, faults)


def main() -> int:
    parser = argparse.ArgumentParser(description="every system call fails in every documented way")
    parser.add_argument("operation", nargs="*", help="only those that have this in their name")
    parser.add_argument("--long", action="store_true", help="all triples; else a sample")
    parser.add_argument("--control", action="store_true", help="are faults found that are there on purpose?")
    parser.add_argument("--child", metavar="NOTE", help=argparse.SUPPRESS)
    parser.add_argument("--skip", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--sample", type=int, default=0, help="every n-th triple")
    options = parser.parse_args()
    expected = {}
    if options.control or any(name.startswith("control: ") for name in options.operation):
        expected = add_controls()
    if options.child:
        child = Child(options.child, options.long)
        for at, name in enumerate(options.operation):
            child.go(name, 0 if at else options.skip, options.sample)
        return 0
    if options.control:
        return controlled(expected)
    names = [name for name in OPERATIONS if not options.operation or any(one in name for one in options.operation)]
    sample = options.sample or (0 if options.long else SAMPLE)
    start = time.monotonic()
    done, faults = all_of(names, long=options.long, sample=sample)
    print(f"operations: {len(names)}, triples (call, error, operation): {done}, failures: {len(faults)}, ", end="")
    print(f"{time.monotonic() - start:.0f} s")
    return 1 if faults else 0


def controlled(expected: dict[str, str]) -> int:
    """Each fault that is there on purpose has to be found, and named."""
    os.environ["HARKEN_INJECTED_PATIENCE"] = "4"
    faults = all_of(list(expected), long=False, sample=0).faults
    missed = []
    for name, words in expected.items():
        about = [fault for fault in faults if f"{name}: " in fault]
        if len(about) != 1 or words not in about[0]:
            missed.append(name)
    print(f"faults on purpose: {len(expected)}, missed: {missed}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
