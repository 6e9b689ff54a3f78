"""Unix sockets: a path that is safe to connect to from its first moment, is never stolen, and is removed again.

A path in a directory outlives the socket that made it, and bind(2) takes none that is there. So, under a lock on the
directory (flock(2), held by every process that opens or closes a path here, gone with it; no file is left for it):

- A path that a dead server left is replaced. A live server's is not: AddressInUseError tells whose it is. Neither is
  what is no socket: a file, a directory, a symbolic link. Whether a server lives is asked by connecting a *datagram*
  socket: the kernel refuses its type if a stream socket of any process has the path (EPROTOTYPE), and says
  ECONNREFUSED when nobody has. That finds servers whose queue is full, that do not listen yet, or that are in another
  container, and leaves no connection in anybody's queue. Who may not write to the socket cannot ask, and is refused.
- ``mode``, ``owner`` and ``group`` are in force before listen(2), and nobody can connect before that. Linux gives the
  path the mode that fchmod(2) gave the unbound socket, so that it begins with none and is never wider than asked for.
  Elsewhere it is made in a directory of its own (0700) and moved. The umask, which all threads share, is never touched.
- ``exclusive=False`` takes over a live server's path: the new socket listens under a temporary name and is moved over
  the path by rename(2), so that at no instant the path is missing or refuses. The old server keeps its connections and
  those in its queue, and should accept these before it closes. With `harken.bind` this happens in ``listen()``. When
  another listener of the same `harken.listen` fails, the old server gets its path back.
- ``close()`` removes the path if it is still ours (device and inode), and this process made it: not a forked child.
  ``sockets()`` hands that duty over to the new object; workers to which one was sent do not have it. After
  ``to_socket()`` and ``detach()``, and when a listener is dropped or killed, the path stays, and the next start
  replaces it.

What may surprise whoever uses it is in docs/unix.md.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import contextmanager, suppress

from ._errors import ListenError, failure
from ._listener import Listener
from ._socket import Socket, given_by
from ._system import AF_UNIX, SOCK_DGRAM, SOCK_STREAM, UNIX_PATH_ROOM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ._plan import Plan

_PATIENCE = 5.0  # seconds for the lock, which is held for less than a millisecond


def open_unix(
    path: str,
    *,
    mode: int | None = None,
    owner: str | int | None = None,
    group: str | int | None = None,
    exclusive: bool | None = None,
    prepare: Callable[[Listener], None] | None = None,
) -> UnixListener:
    """A socket that is bound to ``path``, or to the abstract name behind a NUL, and does not listen yet.

    Without ``mode`` the path gets what the umask leaves, as from bind(2). ``owner`` and ``group`` are names or numbers.
    ``exclusive=False``: a live server's path is taken over, in listen(). ``prepare`` is called between socket(2) and
    bind(2); what it raises is raised here, with everything closed.

    Raises ValueError for options that make no sense, before there is a socket; ListenError for a step that failed.
    """
    abstract = path.startswith("\0")
    given = {"mode": mode, "owner": owner, "group": group}
    wanted = [name for name, value in given.items() if value is not None]
    if abstract and (wanted or exclusive is False):
        name = wanted[0] if wanted else "exclusive=False"
        raise ValueError(f"{name} is for a path; @{path[1:]} is an abstract name, which is in no directory")
    if wanted and not hasattr(os, "chown"):
        raise ValueError(f"{wanted[0]}: a unix socket has none on this system")
    if mode is not None and not 0 <= mode <= 0o777:
        raise ValueError(f"mode {oct(mode)} is not between 0o0 and 0o777")
    uid, gid = user_id(owner), group_id(group)
    text = shown(path)
    with _step("socket", text):
        listener = UnixListener(path)
    try:
        if prepare is not None:
            prepare(listener)
        with _step("bind", text):
            if abstract:
                listener.bind(must_fit(path))
            else:
                _bind(listener, path, text, exclusive is False, mode, uid, gid)
    except BaseException:
        listener.close()
        raise
    return listener


def open_planned(path: str, plan: Plan | None) -> UnixListener:
    """The same, with the options of a bind."""
    if plan is None:
        return open_unix(path)
    wanted = plan.options

    def prepare(sock: Listener) -> None:
        plan.prepare(sock, path, False)

    listener = open_unix(
        path, mode=wanted.mode, owner=wanted.owner, group=wanted.group, exclusive=wanted.exclusive, prepare=prepare
    )
    listener.plan = plan
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

    __slots__ = ("_path", "entry", "plan")

    _path: str
    plan: Plan | None
    """The options that were asked for."""
    entry: Entry | None
    """What close() takes away; None for an abstract name."""

    def __init__(self, path: str) -> None:
        self._path, self.entry, self.plan = path, None, None
        super().__init__(AF_UNIX, SOCK_STREAM)

    @property
    def address(self) -> str:
        """The path as it was asked for, whatever the socket was bound to; an abstract name with the NUL in front."""
        if not given_by(self):
            self._must_be_open()
        return self._path

    def _begin(self, backlog: int | None) -> int:
        """As `Listener.listen`; and the path is taken over now, if that was asked for."""
        asked = super()._begin(backlog)
        if self.plan is not None:
            try:
                self.plan.listening(self)
            except OSError as reason:
                raise self._failed("setsockopt", reason) from None
        publish((self,))
        return asked

    @property
    def options(self) -> Mapping[str, object]:
        """The options that were asked for, as the system has them now."""
        if self.plan is None:
            return {}
        from ._plan import read_back

        return {name: read_back(self, name, self.plan.options) for name in self.plan.options if name != "configure"}

    def close(self) -> None:
        """Takes the path away, if it is ours, and closes the handle."""
        entry, self.entry = self.entry, None
        # In this order: as long as the socket is open, no other can get its inode's number.
        if entry is not None and self.fileno() >= 0:
            entry.remove()
        super().close()

    def _about_to_move(self, by: str) -> None:
        """A path stays when the handle is detached, or closed as a ``socket.socket``. Raises ValueError where the path
        is not taken over yet, which only one of ours will do."""
        super()._about_to_move(by)
        if self.entry is not None and self.entry.final is not None and by != "adopt()":
            raise ValueError(f"{self.url} is taken over in listen(): call that first")

    @classmethod
    def without_handle(cls, path: str, plan: Plan | None = None) -> UnixListener:
        made = cls.__new__(cls)
        made._path, made.entry, made.plan = path, None, plan
        return made

    def _twin(self) -> UnixListener:
        return UnixListener.without_handle(self._path, self.plan)


# ---------------------------------------------------------------------------- the entry in the directory


class Entry:
    """The entry of a socket in its directory, which whoever made it takes away."""

    __slots__ = ("backup", "final", "path", "pid", "place", "shown")

    def __init__(self, shown: str, path: str) -> None:
        self.shown = shown  # for errors
        self.path = path  # absolute: where it is now
        self.place = _place(path)
        self.pid = os.getpid()
        self.final: str | None = None  # where it goes when it listens
        self.backup: str | None = None  # a second name of what was there, until settle()

    def publish(self) -> None:
        """rename(2) over the path of the old server."""
        if self.final is None:
            return
        with _step("rename", self.shown), _locked(os.path.dirname(self.final)):
            try:
                if socket_at(self.shown, self.final):
                    self.backup = _temporary(self.final)  # known before it is there, whatever interrupts us
                    with _step("link", self.shown):
                        os.link(self.final, self.backup, follow_symlinks=False)
                os.rename(self.path, self.final)
            finally:
                if _place(self.final) == self.place:
                    self.path, self.final = self.final, None
                else:
                    self.settle()

    def settle(self) -> None:
        """What was taken over is not given back any more."""
        backup, self.backup = self.backup, None
        if backup is not None:
            with suppress(OSError):
                os.unlink(backup)

    def remove(self) -> None:
        """Never fails: a path that cannot be removed stays, as that of a killed server does."""
        if os.getpid() != self.pid:
            return
        with suppress(OSError), _locked(os.path.dirname(self.path)):
            ours = _place(self.path) == self.place
            if self.backup is not None and ours:
                os.rename(self.backup, self.path)  # the old server has its path back
                self.backup = None
            elif ours:
                os.unlink(self.path)
        self.settle()


def _place(path: str) -> tuple[int, int] | None:
    """Device and inode; None where nothing is."""
    try:
        there = os.lstat(path)
    except OSError:
        return None
    return there.st_dev, there.st_ino


def _temporary(path: str) -> str:
    """A name beside ``path`` that nobody else draws, and that fits where most names do."""
    return os.path.join(os.path.dirname(path), f".harken-{os.urandom(6).hex()}")


@contextmanager
def _locked(folder: str) -> Iterator[int | None]:
    """Nobody else here makes or removes a path in this directory meanwhile. Gives a descriptor of it, or None where
    the system opens no directories."""
    try:
        handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except PermissionError:  # Windows always; elsewhere one that may be written to, but not read
        only_path: int | None = getattr(os, "O_PATH", None)
        handle = -1 if only_path is None else os.open(folder, only_path)
    if handle < 0:
        yield None
        return
    try:
        unlock = _lock(handle, folder)
        try:
            yield handle
        finally:
            unlock()  # said, and not left to close(): a child that was forked meanwhile has the lock too
    finally:
        os.close(handle)


def _lock(handle: int, folder: str) -> Callable[[], None]:
    try:
        import fcntl
    except ImportError:
        return lambda: None
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[attr-defined,unused-ignore]
        except BlockingIOError:
            if time.monotonic() > end:
                text = f"somebody has held a lock on {folder} for {_PATIENCE:.0f} seconds"
                raise failure("flock", folder, TimeoutError(errno.ETIMEDOUT, text)) from None
            time.sleep(0.002)
        except OSError:
            return lambda: None  # a file system, or a directory that was not opened for reading, without locks
        else:
            return lambda: fcntl.flock(handle, fcntl.LOCK_UN)  # type: ignore[attr-defined,unused-ignore]


# ---------------------------------------------------------------------------- bind


def _bind(listener: UnixListener, path: str, shown: str, take_over: bool, mode: int | None, uid: int, gid: int) -> None:
    full = os.path.join(os.getcwd(), path)
    folder, name = os.path.split(full)
    with _locked(folder) as handle:
        way = f"/proc/self/fd/{handle}" if handle is not None and os.path.isdir(f"/proc/self/fd/{handle}") else None
        if way is None:
            must_fit(path)  # nobody could connect to it either
        take_over = _make_room(shown, full, take_over)
        private = mode is not None and not _begins_closed(listener)
        text = None if take_over or private else _fitting(path, way, name)
        if text is not None:
            listener.bind(text)
            listener.entry = Entry(shown, full)
            _give(full, mode, uid, gid, shown)
            return
        # It is made under another name, and moved.
        made = beside = _temporary(full)
        try:
            if private:
                os.mkdir(beside, 0o700)
                made = os.path.join(beside, "s")
            rest = os.path.relpath(made, folder)
            text = os.path.join(os.path.dirname(path), rest)
            listener.bind(_fitting(text, way, rest) or must_fit(text))
            listener.entry = entry = Entry(shown, made)
            _give(made, mode, uid, gid, shown)
            goes_to = _temporary(full) if take_over and private else made if take_over else full
            if goes_to != made:
                os.rename(made, goes_to)
                entry.path = goes_to
            entry.final = full if take_over else None
        finally:
            if listener.entry is None or (private and listener.entry.path == made):  # it failed, or was interrupted
                with suppress(OSError):
                    os.unlink(made)
            if private:
                with suppress(OSError):
                    os.rmdir(beside)


def _begins_closed(listener: Socket) -> bool:
    """Will the path begin with no permissions at all? Linux takes those of the socket; others have none on sockets."""
    try:
        os.fchmod(listener.fileno(), 0)  # type: ignore[attr-defined,unused-ignore]
    except (OSError, AttributeError):
        return False
    return True


def _give(path: str, mode: int | None, uid: int, gid: int, shown: str) -> None:
    """Owner first: the mode opens it for the group that it is meant for."""
    if uid != -1 or gid != -1:
        with _step("chown", shown):
            os.chown(path, uid, gid, follow_symlinks=False)  # type: ignore[attr-defined,unused-ignore]
    if mode is None:
        return
    with _step("chmod", shown):
        # In a directory of others' a symbolic link could lie there by now: it is never followed.
        if os.chmod in os.supports_follow_symlinks:
            os.chmod(path, mode, follow_symlinks=False)
            return
        handle = os.open(path, os.O_PATH | os.O_NOFOLLOW)  # type: ignore[attr-defined,unused-ignore]
        try:
            os.chmod(f"/proc/self/fd/{handle}", mode)
        finally:
            os.close(handle)


def _fitting(path: str, way: str | None, name: str) -> str | None:
    """What to tell bind(2): the path, or if that is too long the way through the descriptor of its directory."""
    texts = (path, f"{way}/{name}") if way else (path,)
    return next((text for text in texts if len(os.fsencode(text)) <= _room(text)), None)


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


@contextmanager
def _step(step: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, ListenError):
            raise
        raise failure(step, path, error) from None


# ---------------------------------------------------------------------------- whose is it?


def _make_room(shown: str, full: str, take_over: bool) -> bool:
    """Removes what a dead server left; raises for what must stay. Is there a live server, to be taken over from?"""
    if not socket_at(shown, full):
        return False
    number = knock(shown)
    if number == errno.ENOENT:
        return False  # removed meanwhile
    if number == errno.ECONNREFUSED:
        os.unlink(full)
        return False
    if take_over:
        return True
    if number in (errno.EACCES, errno.EPERM):
        raise failure("connect", shown, PermissionError(number, os.strerror(number)))
    raise failure("bind", shown, OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)))


def is_live(path: str) -> bool:
    """Has a process a socket that is bound to this path? False also where that cannot be told."""
    with suppress(OSError):
        return knock(path) not in (errno.ENOENT, errno.ECONNREFUSED, errno.EACCES, errno.EPERM, errno.ENOTDIR)
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
        handle = os.open(path, os.O_PATH | os.O_NOFOLLOW)  # type: ignore[attr-defined,unused-ignore]
        try:
            return probe.connect_ex(f"/proc/self/fd/{handle}")
        finally:
            os.close(handle)


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
        import importlib

        try:
            return int(getattr(importlib.import_module(module), look_up)(value)[2])
        except (KeyError, ValueError, ImportError):
            if not (value.isascii() and value.isdigit() and len(value) < 20):
                raise ValueError(f"{option}: no {what} is called {value!r} here") from None
    number = int(value)
    if not 0 <= number < 0xFFFFFFFF:  # which is -1 to chown(2): leave it as it is
        raise ValueError(f"{option}: {number} is no {what}'s number")
    return number
