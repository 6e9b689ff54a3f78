"""Unix sockets: a path that is safe to connect to from its first moment, is never stolen, and is removed again.

A path in a directory outlives the socket that made it, and bind(2) takes none that is there. So:

- A path that a dead server left is replaced. A live server's is not: AddressInUseError tells whose it is. Neither is
  what is no socket: a file, a directory, a symbolic link. Whether a server lives is asked by connecting a *datagram*
  socket: the kernel refuses its type if a stream socket of any process has the path (EPROTOTYPE), and says
  ECONNREFUSED when nobody has. That finds servers whose queue is full, that do not listen yet, or that are in another
  container, and leaves no connection in anybody's queue. Who may not write to the socket cannot ask, and is refused.
- ``mode``, ``owner`` and ``group`` are in force before listen(2), and nobody can connect before that: the path begins
  with no permissions (Linux), or in a directory of its own. They go to the socket, and not to whatever has its name by
  then. The umask, which all threads share, is never touched.
- ``exclusive=False`` takes over a live server's path: the new socket listens under a temporary name, and the two change
  places, so that at no instant the path is missing or refuses. The old server keeps its connections and those in its
  queue, and should accept these before it closes. With `harken.bind` this happens in ``listen()``. When another
  listener of the same `harken.listen` fails, the old server gets its path back.
- ``close()`` removes the path if it is still ours (device and inode), and this process made it: not a forked child.
  ``sockets()`` hands that duty over to the new object; workers to which one was sent do not have it. After
  ``to_socket()`` and ``detach()``, and when a listener is dropped or killed, the path stays, and the next start
  replaces it.

How this is done without a lock, which others could hold, is told in `harken._paths`; what may surprise whoever uses it,
and who removes a path when, in docs/unix.md.
"""

from __future__ import annotations

import errno
import os
import stat

from ._errors import ListenError, failure
from ._listener import Listener
from ._loading import load
from ._paths import Descriptor, Entry
from ._plan import DEFAULT, Plan
from ._socket import Socket, given_by
from ._system import AF_UNIX, SOCK_DGRAM, SOCK_STREAM, UNIX_PATH_ROOM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import NoReturn


def open_unix(
    path: str,
    *,
    mode: int | None = None,
    owner: str | int | None = None,
    group: str | int | None = None,
    exclusive: bool | None = None,
    prepare: Callable[[Listener], None] | None = None,
) -> UnixListener:
    """Returns a socket that is bound to ``path``, or to an abstract name behind a NUL, and does not listen yet.

    Without ``mode`` the path gets what the umask leaves, as from bind(2). ``owner`` and ``group`` are names or numbers.
    ``exclusive=False``: a live server's path is taken over, in listen(). ``prepare`` is called between socket(2) and
    bind(2); what it raises is raised here, with everything closed.

    Raises ValueError for options that make no sense, before there is a socket; ListenError for a step that failed.
    """
    rights = _rights(path, mode, owner, group, exclusive)
    listener = new_listener(path)
    try:
        if prepare is not None:
            prepare(listener)
        _bind(listener, path, exclusive is False, rights, fresh=False)
    except BaseException:
        listener.close()
        raise
    return listener


def new_listener(path: str, plan: Plan = DEFAULT) -> UnixListener:
    """Its socket, which is bound to nothing yet. Raises ListenError."""
    listener = UnixListener.without_handle(path, plan)
    try:
        Socket.__init__(listener, AF_UNIX, SOCK_STREAM)
    except OSError as reason:
        raise failure("socket", shown(path), reason) from None
    return listener


def bind_path(listener: UnixListener) -> None:
    """bind(2), with the rights that its plan has for the path. When the listener is dropped before harken.listen() has
    handed it out, the path is as it was."""
    wanted = listener.plan.options
    if wanted is None:
        _bind(listener, listener._path, False, _NO_RIGHTS, fresh=True)
    else:
        rights = _rights(listener._path, wanted.mode, wanted.owner, wanted.group, wanted.exclusive)
        _bind(listener, listener._path, wanted.exclusive is False, rights, fresh=True)


def open_planned(path: str, plan: Plan) -> UnixListener:
    """A socket that is bound, for ``harken check``. Raises ListenError, with everything closed."""
    listener = new_listener(path, plan)
    try:
        plan.before_bind(listener, path, False)
        bind_path(listener)
    except BaseException:
        listener.close()
        raise
    return listener


def publish(listeners: Iterable[Socket]) -> None:
    """Those that take over a path do so; they listen already. When one cannot, closing gives back what others took."""
    entries = [one.entry for one in listeners if isinstance(one, UnixListener) and one.entry is not None]
    for entry in entries:
        entry.publish()
    for entry in entries:
        entry.settle()


class UnixListener(Listener):
    """A listener on a unix socket, which owns its path: see `harken._unix`."""

    __slots__ = ("_path", "entry")

    _path: str
    entry: Entry | None
    """What close() takes away; None for an abstract name."""

    @property
    def address(self) -> str:
        """The path as it was asked for, whatever the socket was bound to; an abstract name with the NUL in front."""
        if not given_by(self):
            self._must_be_open()
        return self._path

    def getsockname(self) -> str | bytes:
        """The path as it was asked for: a socket that has replaced another was bound in a directory of its own, where
        nobody finds it any more. An abstract name as the system tells it."""
        bound: str | bytes = super().getsockname()
        return bound if self.entry is None else self._path

    def _begin(self, backlog: int | None) -> int:
        """As `Listener.listen`; and the path is taken over now, if that was asked for."""
        asked = super()._begin(backlog)
        publish((self,))
        return asked

    def close(self) -> None:
        """Takes the path away, if it is ours, and closes the handle."""
        # In this order: as long as the socket is open, no other can get its inode's number. Interrupted, it goes on
        # where it was when it is called again.
        if self.entry is not None and self.fileno() >= 0:
            self.entry.remove()
        super().close()

    def _about_to_move(self, by: str) -> None:
        """A path stays when the handle is detached, or closed as a ``socket.socket``. Raises ValueError where the path
        is not taken over yet, which only one of ours will do."""
        super()._about_to_move(by)
        if self.entry is not None and self.entry.pending and by != "adopt()":
            raise ValueError(f"{self.url} is taken over by listen(): call that first")

    @classmethod
    def without_handle(cls, path: str, plan: Plan = DEFAULT) -> UnixListener:  # type: ignore[override]
        made = cls.__new__(cls)
        made._path, made.entry, made.plan = path, None, plan
        return made

    def _twin(self) -> UnixListener:
        return UnixListener.without_handle(self._path, self.plan)


# ---------------------------------------------------------------------------- bind


_Rights = tuple[int, int, int]  # owner, group and mode by number; -1 leaves one as it is
_NO_RIGHTS: _Rights = (-1, -1, -1)


def _rights(
    path: str, mode: int | None, owner: str | int | None, group: str | int | None, exclusive: bool | None
) -> _Rights:
    given = {"mode": mode, "owner": owner, "group": group}
    wanted = [name for name, value in given.items() if value is not None]
    if path.startswith("\0") and (wanted or exclusive is False):
        name = wanted[0] if wanted else "exclusive=False"
        raise ValueError(f"{name} applies to a path; @{path[1:]} is an abstract name, which is in no directory")
    if wanted and not hasattr(os, "chown"):
        raise ValueError(f"{wanted[0]}: unix sockets have none on this system")
    if mode is not None and not 0 <= mode <= 0o777:
        raise ValueError(f"mode {oct(mode)} is not between 0o0 and 0o777")
    return user_id(owner), group_id(group), -1 if mode is None else mode


def _bind(listener: UnixListener, path: str, takes_over: bool, rights: _Rights, fresh: bool) -> None:
    if path.startswith("\0"):
        try:
            listener.bind(must_fit(path))
        except OSError as reason:
            raise failure("bind", path, reason) from None
        return
    # Known to the listener before there is a path: whatever interrupts us, close() takes it away.
    try:
        listener.entry = Entry(shown(path), path, os.path.join(os.getcwd(), path))
    except OSError as reason:  # the current directory is gone
        raise failure("bind", shown(path), reason) from None
    listener.entry.bind(listener, takes_over, *rights, fresh)


def refused(step: str, text: str, path: str, reason: OSError) -> NoReturn:
    """Raises what a step on a path came to, as a ListenError."""
    try:
        if reason.errno in (errno.EEXIST, errno.EADDRINUSE):  # the latter for a folder with a slash behind it
            socket_at(text, path)
        if reason.errno == errno.ENAMETOOLONG:
            must_fit(path)
    except OSError as better:
        reason = better
    raise reason if isinstance(reason, ListenError) else failure(step, text, reason) from None


def may_give(owner: int = -1, group: int = -1) -> bool:
    """May this process give a file of its own away, to these numbers? -1 is nobody else."""
    try:
        with open("/proc/self/status", "rb") as file:
            able = next(int(line[7:], 16) for line in file if line.startswith(b"CapEff:"))
        if able & 1:  # CAP_CHOWN, as the kernel asks it
            return True
    except (OSError, StopIteration):
        if os.geteuid() == 0:  # type: ignore[attr-defined,unused-ignore]
            return True
    user = os.geteuid()  # type: ignore[attr-defined,unused-ignore]
    groups = {-1, os.getegid(), *os.getgroups()}  # type: ignore[attr-defined,unused-ignore]
    return owner in (-1, user) and group in groups


def _room(path: str) -> int:
    return UNIX_PATH_ROOM - (not path.startswith("\0"))  # a path ends with a NUL, an abstract name begins with one


def shown(path: str) -> str:
    """As it stands in errors, where a path looks like one: unix:8080 is a file."""
    return path if path.startswith(("/", "./", "../", "\0")) else f"./{path}"


def must_fit(path: str) -> str:
    """The path, if an address has room for it; else an OSError."""
    size, room = len(os.fsencode(path)), _room(path)
    if size > room:
        raise OSError(errno.ENAMETOOLONG, f"it has {size} bytes, and a unix socket's address room for {room}")
    return path


# ---------------------------------------------------------------------------- whose is it?


def is_live(path: str) -> bool:
    """Has a process a socket that is bound to this path? False also where that cannot be told."""
    try:
        return knock(path) not in (errno.ENOENT, errno.ECONNREFUSED, errno.EACCES, errno.EPERM, errno.ENOTDIR)
    except OSError:
        return False


def knock(path: str) -> int:
    """The error of connecting to it, without a trace: see the top of this file."""
    try:
        probe = Socket(AF_UNIX, SOCK_DGRAM)
    except OSError:
        probe = Socket(AF_UNIX, SOCK_STREAM)  # Windows has no other; a server there has one connection more for it
    with probe:
        probe.settimeout(1)
        if not hasattr(os, "O_PATH") or len(os.fsencode(path)) <= _room(path):
            return probe.connect_ex(path)
        flags = os.O_PATH | os.O_NOFOLLOW  # type: ignore[attr-defined,unused-ignore]
        with Descriptor(os.open, path, flags) as number:
            return probe.connect_ex(f"/proc/self/fd/{number}")


_WINDOWS_TAG = 0x80000023  # IO_REPARSE_TAG_AF_UNIX
_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFLNK: "a symbolic link", stat.S_IFREG: "a file", stat.S_IFIFO: "a pipe"}


def socket_at(shown: str, full: str) -> bool:
    """Is there a socket? Raises a ListenError, a FileExistsError, for anything else that is there."""
    try:
        there = os.lstat(full)
    except FileNotFoundError:
        return False
    if stat.S_ISSOCK(there.st_mode) or getattr(there, "st_reparse_tag", 0) == _WINDOWS_TAG:
        return True
    kind = _KINDS.get(stat.S_IFMT(there.st_mode), "something")
    raise failure("bind", shown, FileExistsError(errno.EEXIST, f"{kind} is there already, which is no socket"))


# ---------------------------------------------------------------------------- owners


def user_id(owner: str | int | None) -> int:
    """A user's number from his name or number; -1 for None. Raises ValueError for a name that nobody has."""
    return _id("owner", owner, "pwd", "getpwnam", "user")


def group_id(group: str | int | None) -> int:
    """A group's number from its name or number; -1 for None. Raises ValueError for a name that no group has."""
    return _id("group", group, "grp", "getgrnam", "group")


def _id(option: str, value: str | int | None, module: str, look_up: str, what: str) -> int:
    if value is None:
        return -1
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise TypeError(f"{option} is a name or a number, not {type(value).__name__}")
    if isinstance(value, str):
        try:
            return int(getattr(load(module), look_up)(value)[2])
        except (KeyError, ValueError, OSError):  # or there is no such table here
            if not (value.isascii() and value.isdigit() and len(value) < 20):
                raise ValueError(f"{option}: no {what} is called {value!r} here") from None
    number = int(value)
    if not 0 <= number < 0xFFFFFFFF:  # which is -1 to chown(2): leave it as it is
        raise ValueError(f"{option}: {number} is not the number of a {what}")
    return number
