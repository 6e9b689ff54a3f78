"""Sockets that are there already: handed over by another object, another process, or systemd.

Nothing is guessed: family, type, protocol and state are what the system says of the socket. Whoever calls `adopt` owns
it from then on; after an error nothing has changed hands, and the socket is as open as before.
"""

from __future__ import annotations

import os
from _thread import RLock
from errno import EINVAL
from sys import modules

from ._errors import ListenError, failure
from ._listener import Listener, Listeners
from ._loading import load
from ._paths import Descriptor
from ._socket import adopt, adopt_numbers, alone, describe, family_of, release_each, set_carried
from ._system import AF_UNIX, PASSED, SOCK_DGRAM, SOCK_STREAM, of_this_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, NoReturn

    from ._bind import Bind
    from ._types import Detachable

__all__ = ["adopt", "from_systemd"]

FIRST = 3
"""The first descriptor that systemd passes on; the others follow it."""


def fitting(fd_or_socket: int | Detachable) -> tuple[int, Listener]:
    """The number of what `adopt` is given, and the listener that is to have it. Raises for what cannot listen; nothing
    changes."""
    if isinstance(fd_or_socket, bool) or not (
        isinstance(fd_or_socket, int) or (hasattr(fd_or_socket, "detach") and hasattr(fd_or_socket, "fileno"))
    ):
        kind = type(fd_or_socket).__name__
        raise TypeError(f"adopt() takes a file descriptor or a socket object that can detach(), not {kind}")
    fd = fd_or_socket if isinstance(fd_or_socket, int) else fd_or_socket.fileno()
    _must_fit(fd)
    if isinstance(fd_or_socket, int) and _may_be_passed(fd):
        _by_number.add(fd)
    return fd, _successor(fd_or_socket)


def _successor(given: int | Detachable) -> Listener:
    """A listener without a handle, with what stands beside that of ``given``. The path of a unix socket stands in both
    objects; the one that has the handle removes it."""
    made: Listener
    if isinstance(given, Listener):
        made = given._twin()
        if family_of(given) == AF_UNIX and hasattr(given, "entry"):
            made.entry = given.entry  # type: ignore[attr-defined]
        return made
    room = modules.get("harken._handover")
    if room is None or not isinstance(given, room.ListeningSocket):
        return Listener.without_handle()
    shared: Any = given
    if shared._entry is None:
        made = Listener.without_handle()
    else:
        made = load("harken._unix").UnixListener.without_handle(shared._entry.path)
        made.entry = shared._entry  # type: ignore[attr-defined]
    set_carried(made, shared._wished, shared._at_accept)
    return made


_WHY = {
    "connected": "it is a connection, which accept() has returned to somebody; not a socket that listens",
    "new": "it is bound to no address",
}


def _must_fit(fd: int) -> None:
    try:
        family, kind, state = describe(fd)
    except OSError as error:
        failed("adopt", f"fd://{fd}", error)
    # Some other types listen as well, SOCK_SEQPACKET for one: whoever made it listen knows.
    if kind != SOCK_STREAM and state != "listening":
        failed("adopt", f"fd://{fd}", f"its type is {kind}, of family {family}: a datagram socket cannot listen")
    if state in _WHY:
        failed("adopt", f"fd://{fd}", _WHY[state])


def failed(step: str, address: str, reason: OSError | str) -> NoReturn:
    if isinstance(reason, ListenError):
        raise reason
    raise failure(step, address, reason if isinstance(reason, OSError) else OSError(EINVAL, reason)) from None


# ---------------------------------------------------------------------------- systemd

_passed: list[tuple[str, int]] = []  # what systemd passed to this process: names and descriptors
_owned: set[int] = set()  # of these, and of others that were adopted by their number: what an object has now
_by_number: set[int] = set()  # adopted so, and not close-on-exec before: if they are systemd's, they were passed
_choosing: dict[int, RLock] = {}  # a lock in each process, so that of two threads only one has a socket


def from_systemd(*names: str) -> Listeners:
    """The sockets that systemd passed, as sd_listen_fds(3) does: those with these names, in this order; without names,
    all.

    Several sockets may have one name. Sockets with other names stay open for a later call, and so do datagram sockets
    (ListenDatagram=) passed along with others that can listen. All are marked close-on-exec, and LISTEN_PID,
    LISTEN_PIDFDID, LISTEN_FDS and LISTEN_FDNAMES are removed from the environment, so that no child process uses them.

    Raises ListenError when no socket was passed to this process, or none has the name. A descriptor that is
    close-on-exec already was opened by this process and not passed: ListenError too.
    """
    found: list[Listener] = []
    try:
        alone(of_this_process(_choosing, RLock), _take, names, found)
        return Listeners(found)
    except BaseException:
        release_each(found, _owned)
        raise


def inherit(bind: Bind, open_already: list[int], into: list[Listener]) -> None:
    """What an ``fd://`` or a ``systemd:`` bind stands for is added to ``into``, all or nothing. The same call to
    `harken.listen` has the others already. ``systemd:`` alone stands for all that were passed."""
    if bind.fd is None:
        alone(of_this_process(_choosing, RLock), _take, _names(bind), into)
        return
    _must_be_new(bind.fd, open_already)
    fd, listener = fitting(bind.fd)
    _owned.discard(fd)
    adopt_numbers([fd], [listener], _owned, into)


def release(listeners: list[Listener]) -> None:
    """Closes the listeners; their sockets stay open, and can be asked for again."""
    release_each(listeners, _owned)


def descriptors_of(bind: Bind, owned: Iterable[int]) -> list[int]:
    """The descriptors that a bind stands for, each of which could be adopted; ``owned`` are others'. Nothing changes
    hands, and the environment stays as it is. Raises what `inherit` would raise."""
    if bind.fd is None:
        return _chosen(_names(bind), _announced() or _passed, {*_owned, *owned})
    _must_be_new(bind.fd, owned)
    _must_fit(bind.fd)
    return [bind.fd]


def _names(bind: Bind) -> tuple[str, ...]:
    return (bind.name,) if bind.name else ()


def _must_be_new(fd: int, owned: Iterable[int]) -> None:
    if fd in owned:
        failed("adopt", f"fd://{fd}", "this descriptor is given twice, or was not open")


def _take(names: tuple[str, ...], into: list[Listener]) -> None:
    _receive()
    chosen = _chosen(names, _passed, _owned)
    adopt_numbers(chosen, [Listener.without_handle() for _ in chosen], _owned, into)


def _chosen(names: tuple[str, ...], passed: list[tuple[str, int]], owned: set[int]) -> list[int]:
    """Descriptors, each of which can be listened on."""
    left = [(name, fd) for name, fd in passed if fd not in owned]
    if not left:
        failed("from_systemd", "", "all sockets that systemd passed have been taken over already")
    chosen = [] if names else [fd for _, fd in _without_datagrams(left)]
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"a name is a str, not {type(name).__name__}")
        of_name = [entry for entry in left if entry[0] == name and entry[1] not in chosen]
        if not of_name:
            there = ", ".join(repr(name) for name in dict.fromkeys(name for name, _ in left))
            failed("from_systemd", f"systemd:{name}", f"no socket has this name; the names are {there}")
        chosen += [fd for _, fd in _without_datagrams(of_name)]
    for fd in chosen:
        _must_fit(fd)
    return chosen


def _without_datagrams(entries: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """A unit may have ListenStream= and ListenDatagram= under one name: those that listen are meant."""
    streams = [entry for entry in entries if not _is_datagram(entry[1])]
    return streams or entries


def _is_datagram(fd: int) -> bool:
    try:
        return describe(fd)[1] == SOCK_DGRAM
    except OSError:
        return False  # it is no socket, as will be told


def _receive() -> None:
    """Takes what the environment announces, once; after an error that stays, and the next call says the same."""
    announced = _announced()
    if announced:
        # First noted: from the next line on it is close-on-exec, and does not look as if it had been passed.
        _passed[:] = announced
        for _, fd in announced:
            try:
                os.set_inheritable(fd, False)
            except OSError as error:
                failed("from_systemd", f"fd://{fd}", error)
    # LISTEN_FDS first: an interruption leaves either all of them, or none that is read again.
    for variable in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDNAMES"):
        os.environ.pop(variable, None)


def _announced() -> list[tuple[str, int]]:
    """What the environment says, which stays as it is: names and descriptors; none when it was taken before."""
    environment = os.environ
    count = environment.get("LISTEN_FDS")
    if count is None:
        if not _passed:
            failed("from_systemd", "", "systemd passed no sockets: LISTEN_FDS is not in the environment")
        return []
    pid, pidfd_id = environment.get("LISTEN_PID"), environment.get("LISTEN_PIDFDID")
    if pid is None:
        failed("from_systemd", "", "LISTEN_FDS is in the environment, but not LISTEN_PID: it may be another process's")
    if _number("LISTEN_PID", pid) != os.getpid():
        failed(
            "from_systemd",
            f"LISTEN_PID={pid}",
            f"the sockets were passed to process {pid}, and this is {os.getpid()}. A wrapper (uv run, poetry run, "
            "sh -c) that starts Python as its child changed the pid: let systemd start Python itself, or use exec",
        )
    if pidfd_id is not None and _number("LISTEN_PIDFDID", pidfd_id) != (own := _pidfd_id()) and own is not None:
        failed(
            "from_systemd",
            f"LISTEN_PIDFDID={pidfd_id}",
            f"the sockets were passed to another process {pid}, which is gone: this one's pidfd is {own}",
        )
    number = _number("LISTEN_FDS", count)
    if number == 0:
        failed("from_systemd", "LISTEN_FDS=0", "systemd passed no sockets")
    listed = environment.get("LISTEN_FDNAMES")
    names = listed.split(":") if listed else []
    if names and len(names) != number:
        failed("from_systemd", f"LISTEN_FDNAMES={listed}", f"{len(names)} names for {number} sockets")
    known = {*_by_number, *(fd for _, fd in _passed)}  # these we have made close-on-exec
    for fd in range(FIRST, FIRST + number):
        try:
            inherited = os.get_inheritable(fd)
        except OSError:
            failed("from_systemd", f"LISTEN_FDS={count}", f"{number} sockets from 3 on, but {fd} is not open")
        if fd not in known and (not inherited or _is_newer(fd)):
            why = f"{number} sockets from 3 on, but {fd} was opened by this process and not passed to it"
            failed("from_systemd", f"LISTEN_FDS={count}", why if inherited else f"{why}: it is close-on-exec")
    return [(names[n] if names else "unknown", FIRST + n) for n in range(number)]


def _may_be_passed(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def _is_newer(fd: int) -> bool:
    """Was it not there when harken was imported with this very environment?"""
    environment = os.environ
    return PASSED is not None and (
        PASSED[:2] == (environment.get("LISTEN_PID"), environment.get("LISTEN_FDS")) and fd not in PASSED[2]
    )


def _number(variable: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        failed("from_systemd", f"{variable}={value}", "it is not a number")
    return int(value)


def _pidfd_id() -> int | None:
    """What tells this process from others that had its pid: the inode of its pidfd. None where pidfds have none of
    their own, as in Linux before 6.9, where they share one with all that is no file."""
    pidfd_open, eventfd = getattr(os, "pidfd_open", None), getattr(os, "eventfd", None)
    if pidfd_open is None or eventfd is None:
        return None
    try:
        with Descriptor(pidfd_open, os.getpid()) as process, Descriptor(eventfd, 0) as event:
            own, no_file = os.fstat(process), os.fstat(event)
    except OSError:
        return None  # forbidden, by seccomp for one
    return None if own.st_dev == no_file.st_dev else own.st_ino
