"""Sockets that are there already: handed over by another object, another process, or systemd.

Nothing is guessed: family, type, protocol and state are what the system says of the socket. Whoever calls `adopt` owns
it from then on; after an error nothing has changed hands, and the socket is as open as before.
"""

from __future__ import annotations

import os
from _thread import allocate_lock
from errno import EINVAL

from ._errors import failure
from ._listener import Listener, Listeners
from ._socket import describe, let_go
from ._system import AF_INET, AF_INET6, IPPROTO_TCP, SOCK_STREAM, TCP_NODELAY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

    from ._bind import Bind
    from ._types import Detachable

FIRST = 3
"""The first descriptor that systemd passes on; the others follow it."""


def adopt(fd_or_socket: int | Detachable) -> Listener:
    """Takes over a socket that listens, or one that is bound and can listen later.

    A number is a file descriptor, on Windows a SOCKET. An object gives it away by its ``detach()``, as a
    ``socket.socket`` and a `harken.Socket` do. The socket is not inherited by child processes from now on, and TCP
    sockets get TCP_NODELAY, which their connections inherit.

    Raises ListenError for what cannot listen: no socket, a datagram socket, a connection, a socket without an address.
    """
    if isinstance(fd_or_socket, int) and not isinstance(fd_or_socket, bool):
        fd = fd_or_socket
        _must_fit(fd)
    elif not isinstance(fd_or_socket, int) and hasattr(fd_or_socket, "detach") and hasattr(fd_or_socket, "fileno"):
        _must_fit(fd_or_socket.fileno())
        fd = fd_or_socket.detach()
    else:
        kind = type(fd_or_socket).__name__
        raise TypeError(f"adopt() takes a file descriptor or a socket object that can detach(), not {kind}")
    listener = Listener(fileno=fd)
    try:
        listener.set_inheritable(False)
    except BaseException:
        let_go(listener)
        raise
    if listener.family in (AF_INET, AF_INET6):
        try:
            listener.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        except OSError:
            pass  # of another protocol
    return listener


_WHY = {
    "connected": "it is a connection, which accept() has returned to somebody; not a socket that listens",
    "new": "it is bound to no address",
}


def _must_fit(fd: int) -> None:
    try:
        family, kind, state = describe(fd)
    except OSError as error:
        _fail("adopt", f"fd://{fd}", error)
    if state in _WHY:
        _fail("adopt", f"fd://{fd}", _WHY[state])
    # Some other types listen as well, SOCK_SEQPACKET for one: whoever made it listen knows.
    if kind != SOCK_STREAM and state != "listening":
        _fail("adopt", f"fd://{fd}", f"its type is {kind}, of family {family}: a datagram socket cannot listen")


def _fail(step: str, address: str, reason: OSError | str) -> NoReturn:
    raise failure(step, address, reason if isinstance(reason, OSError) else OSError(EINVAL, reason)) from None


# ---------------------------------------------------------------------------- systemd

_passed: list[tuple[str, int]] = []  # what systemd passed to this process: names and descriptors
_taken: set[int] = set()  # those that somebody has
_choosing = allocate_lock()  # so that of two threads only one has it


def from_systemd(*names: str) -> Listeners:
    """The sockets that systemd passed, as sd_listen_fds(3) tells: those with these names, in this order; or all.

    Several sockets may have one name. What is not asked for stays open for a later call. All of them are marked
    close-on-exec, and LISTEN_PID, LISTEN_PIDFDID, LISTEN_FDS and LISTEN_FDNAMES leave the environment, so that no child
    takes them for its own.

    Raises ListenError when nothing was passed, or not to this process, or no socket has the name.
    """
    return Listeners(_take(names))


def inherited(bind: Bind, open_already: list[int]) -> list[Listener]:
    """What an ``fd://`` or a ``systemd:`` bind stands for. The same call to `harken.listen` has the others already."""
    if bind.fd is None:
        return _take((str(bind.name),))
    _must_be_new(bind.fd, open_already)
    found = [adopt(bind.fd)]
    _taken.add(bind.fd)
    return found


def give_back(listeners: Iterable[Listener]) -> None:
    """The listeners are closed, their sockets stay open and may be asked for again."""
    for listener in listeners:
        _taken.discard(let_go(listener))


def meant(bind: Bind, taken: Iterable[int]) -> list[int]:
    """The descriptors that a bind stands for, each of which could be adopted; ``taken`` are others'. Nothing changes
    hands, and the environment stays as it is. Raises what `inherited` would raise."""
    if bind.fd is None:
        chosen = [fd for _, fd in _chosen((str(bind.name),), _announced() or _passed, {*_taken, *taken})]
    else:
        _must_be_new(bind.fd, taken)
        chosen = [bind.fd]
    for fd in chosen:
        _must_fit(fd)
    return chosen


def _must_be_new(fd: int, taken: Iterable[int]) -> None:
    if fd in taken:
        _fail("adopt", f"fd://{fd}", "this descriptor is asked for twice, or was not open")


def _take(names: tuple[str, ...]) -> list[Listener]:
    found: list[Listener] = []
    with _choosing:
        _receive()
        try:
            for _, fd in _chosen(names, _passed, _taken):
                found.append(adopt(fd))
                _taken.add(fd)
        except BaseException:
            give_back(found)
            raise
    return found


def _chosen(names: tuple[str, ...], passed: list[tuple[str, int]], taken: set[int]) -> list[tuple[str, int]]:
    left = [(name, fd) for name, fd in passed if fd not in taken]
    if not left:
        _fail("from_systemd", "", "all sockets that systemd passed are taken already")
    chosen = [] if names else left
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"a name is a str, not {type(name).__name__}")
        of_name = [entry for entry in left if entry[0] == name and entry not in chosen]
        if not of_name:
            there = ", ".join(repr(name) for name in dict.fromkeys(name for name, _ in left))
            _fail("from_systemd", f"systemd:{name}", f"no socket has this name; there is {there}")
        chosen += of_name
    return chosen


def _receive() -> None:
    """Takes what the environment announces, once; after an error that stays, and the next call says the same."""
    announced = _announced()
    if not announced:
        return
    for _, fd in announced:
        os.set_inheritable(fd, False)
    _passed[:] = announced
    for variable in ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(variable, None)


def _announced() -> list[tuple[str, int]]:
    """What the environment says, which stays as it is: names and descriptors; none when it was taken before."""
    environment = os.environ
    count = environment.get("LISTEN_FDS")
    if count is None:
        if not _passed:
            _fail("from_systemd", "", "systemd has passed no sockets: LISTEN_FDS is not in the environment")
        return []
    pid, pidfd_id = environment.get("LISTEN_PID"), environment.get("LISTEN_PIDFDID")
    if pid is None:
        _fail("from_systemd", "", "LISTEN_FDS is in the environment, but not LISTEN_PID: it may be another process's")
    if _number("LISTEN_PID", pid) != os.getpid():
        _fail(
            "from_systemd",
            f"LISTEN_PID={pid}",
            f"the sockets were passed to process {pid}, and this is {os.getpid()}. A wrapper (uv run, poetry run, "
            "sh -c) that starts Python as its child changed the pid: let systemd start Python itself, or use exec",
        )
    if pidfd_id is not None and _number("LISTEN_PIDFDID", pidfd_id) != (own := _pidfd_id()) and own is not None:
        _fail(
            "from_systemd",
            f"LISTEN_PIDFDID={pidfd_id}",
            f"the sockets were passed to another process {pid}, which is gone: this one's pidfd is {own}",
        )
    number = _number("LISTEN_FDS", count)
    if number == 0:
        _fail("from_systemd", "LISTEN_FDS=0", "systemd has passed no sockets")
    listed = environment.get("LISTEN_FDNAMES")
    names = listed.split(":") if listed else []
    if names and len(names) != number:
        _fail("from_systemd", f"LISTEN_FDNAMES={listed}", f"{len(names)} names for {number} sockets")
    for fd in range(FIRST, FIRST + number):
        try:
            os.get_inheritable(fd)
        except OSError:
            _fail("from_systemd", f"LISTEN_FDS={count}", f"{number} sockets from 3 on, but {fd} is not open")
    return [(names[n] if names else "unknown", FIRST + n) for n in range(number)]


def _number(variable: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        _fail("from_systemd", f"{variable}={value}", "it is no number")
    return int(value)


def _pidfd_id() -> int | None:
    """What tells this process from others that had its pid: the inode of its pidfd. None where pidfds have none of
    their own, as in Linux before 6.9, where they share one with all that is no file."""
    pidfd_open, eventfd = getattr(os, "pidfd_open", None), getattr(os, "eventfd", None)
    if pidfd_open is None or eventfd is None:
        return None
    opened: list[int] = []
    try:
        opened.append(pidfd_open(os.getpid()))
        opened.append(eventfd(0))
        own, no_file = map(os.fstat, opened)
    except OSError:
        return None  # forbidden, by seccomp for one
    finally:
        for fd in opened:
            os.close(fd)
    return None if own.st_dev == no_file.st_dev else own.st_ino
