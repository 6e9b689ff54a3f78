"""Predicts what `harken.listen` would do, by doing all of it except listen(2), and undoing it at once.

Whatever leaves no trace is done for real, by the code of listen() itself: TCP and vsock addresses and abstract names
are bound, bind after bind, and stay bound until the last one is judged, so that binds which conflict with each other do
so here too. The kernel decides, and nothing imitates it. For that instant the addresses are in use and nobody can
connect; on Linux no other server is disturbed, as a socket that has SO_REUSEADDR and does not listen conflicts with
none.

Paths of unix sockets and inherited sockets would be changed by that. For these the checks that listen() makes first are
made, and the rest is tried on a file without a name in the same folder.

listen(2) can fail where bind(2) did not: when another of several sockets that are bound to one port listens first.
Between the binds of one call this is predicted; another process may still be quicker.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from .. import _inherit, _unix
from .._bind import Bind
from .._collision import interface_of, is_same_path, record_conflicts
from .._errors import AddressInUseError, ListenError, failure
from .._listen import try_out
from .._options import for_binds
from .._paths import Descriptor
from .._plan import Plan
from .._socket import Socket, copy_of, describe, queue_of
from .._system import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    IPPROTO_IPV6,
    IPV6_V6ONLY,
    JOINS_LATE,
    OPTIONS,
    SO_REUSEADDR,
    SOCK_STREAM,
    SOL_SOCKET,
)
from .hints import outgoing_ports, reserving, setting
from .holders import Own, twin

if TYPE_CHECKING:
    from types import TracebackType

    from .._listener import Listener
    from .._types import Address
    from .holders import Holder

GOOD = ("free", "left behind", "passed on", "left out")
"""Verdicts with which listen() succeeds: the address would be opened; the path that an ended server left would be
replaced; the inherited socket would be taken over; the family is missing, and the bind's other addresses are not."""

UNKNOWN = "cannot be told"


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What listen() would do with one address of a bind."""

    bind: str
    address: Address | str
    """As in an error; for a name without an address, and for a range of ports that are all in use, the bind."""
    verdict: str
    """One of `GOOD`; ``taken``, ``given twice``, ``forbidden``, ``not here``, ``unknown name``, ``not supported``,
    ``impossible``; or `UNKNOWN`."""
    backlog: int | None = None
    """How many connections could wait; None if the system does not report it, and if nothing would be opened."""
    error: ListenError | None = None
    """The error that would be raised; for the verdict `UNKNOWN`, that may be raised."""
    note: str = ""
    """A remark, in one line."""

    @property
    def hint(self) -> str:
        """What to do about it, in one line, as the error says it."""
        return self.error.hint if self.error else ""

    @property
    def cause(self) -> str:
        """Why it is in use: `AddressInUseError.cause`; else empty."""
        return self.error.cause if isinstance(self.error, AddressInUseError) else ""

    @property
    def holders(self) -> list[Holder]:
        """The processes that hold it."""
        return self.error.holders if isinstance(self.error, AddressInUseError) else []


def foresee(binds: Sequence[str | int | Bind]) -> list[Foreseen]:
    """What ``harken.listen(*binds)`` would do: each address of each bind, in order. Names are looked up for that, and
    addresses are bound for an instant.

    Raises ValueError for a bind that cannot be read, or whose options make no sense; then nothing is said of the
    others, as nothing would be opened.
    """
    read = [Bind(bind) for bind in binds]
    plans = [_plan(bind) for bind in read]
    rows: list[Foreseen] = []
    with Trial() as trial:
        for bind, plan in zip(read, plans, strict=True):
            if isinstance(plan, ListenError):
                rows.append(Foreseen(str(bind), str(bind), "not supported", error=plan))
            else:
                rows += trial.of(bind, plan)
    return rows


def _plan(bind: Bind) -> Plan | ListenError:
    """An option that this system lacks is an error of its own: the bind could be opened elsewhere."""
    try:
        return Plan(for_binds("check", [bind], {})[0])
    except ListenError as error:
        return error


class Opened(NamedTuple):
    """A socket that the call would have opened by then."""

    own: Own
    shares: bool | str
    """Its reuse_port: whether it shares the port with others of the same call."""
    inherited: bool = False


class Trial:
    """One call of listen(), bind after bind; what the earlier binds would open conflicts with the later ones."""

    def __init__(self) -> None:
        self._sockets: list[tuple[Bind, Listener]] = []
        self._opened: list[Opened] = []
        self._paths: dict[str, str] = {}  # of unix sockets, and the bind of each
        self._descriptors: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _close([sock for _, sock in self._sockets])

    def of(self, bind: Bind, plan: Plan) -> list[Foreseen]:
        """What listen() would do with each address of this bind."""
        if bind.scheme in ("fd", "systemd"):
            return self._inherited(bind, plan)
        if bind.scheme == "unix":
            return [self._unix(bind, plan)]
        return self._by_binding(bind, plan)

    # ------------------------------------------------------------------ TCP, vsock

    def _by_binding(self, bind: Bind, plan: Plan) -> list[Foreseen]:
        ports: Sequence[int | str | None] = bind.ports or [bind.port]
        for port in ports:
            try:
                rows, sockets = self._tried(bind, plan, port)
            except ListenError as error:  # of getaddrinfo()
                return [Foreseen(str(bind), error.address, _word(error), error=error)]
            if len(ports) > 1 and any(isinstance(row.error, AddressInUseError) for row in rows):
                _close(sockets)  # and on to the next, as listen() does
                continue
            self._sockets += [(bind, sock) for sock in sockets]
            if bind.cid is None and bind.port != 0:
                shares = plan.asked("reuse_port") or False
                for sock in sockets:
                    both = plan.takes_both and sock.family == AF_INET6
                    own = Own(str(bind), sock.address, interface_of(sock), both, stands=True)
                    self._opened.append(Opened(own, shares))
            return rows
        none_free = failure("bind", str(bind), _error(errno.EADDRINUSE), plan.concerned("bind"))
        return [self._in_use(bind, plan, str(bind), none_free)]

    def _tried(self, bind: Bind, plan: Plan, port: int | str | None) -> tuple[list[Foreseen], list[Listener]]:
        """Each address on one port, and the sockets that are bound to them."""
        family = bind.family
        if plan.takes_both and bind.host is None and not family:
            family = AF_INET6  # one socket for both
        found, plain = try_out(bind, plan, family, port)
        lacks = [reason.errno for _, _, _, reason, _ in found if reason is not None]
        if family != bind.family and lacks and lacks[0] in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            also, plain = try_out(bind, plan, AF_INET, port)
            found = [(*one[:4], True) for one in found] + also
        tried = next((one[1] for one in found if one[1] is not None), None)
        backlog, note = _queue(plan, tried) if bind.cid is None else (None, "")
        if plain is not None:
            note = _joined("this system has no MPTCP: it would be plain TCP", note)
        rows: list[Foreseen] = []
        sockets: list[Listener] = []
        for address, sock, step, reason, absent in found:
            if sock is None:
                rows.append(self._failed(bind, plan, address, step, reason, absent=absent))
                continue
            other = self._will_listen_first(bind, plan, address, sock)
            if other is None:
                sockets.append(sock)
                rows.append(Foreseen(str(bind), address, "free", backlog, note=_joined(note, _lent(address))))
                continue
            sock.close()
            error = failure("listen", address, _error(errno.EADDRINUSE), plan.concerned("listen"))
            rows.append(self._in_use(bind, plan, address, error, (other._replace(stands=True),)))
        if rows and all(row.verdict == "left out" for row in rows):
            rows[-1] = replace(rows[-1], verdict=_word(rows[-1].error))
        return rows, sockets

    def _failed(
        self, bind: Bind, plan: Plan, address: Any, step: str | None, reason: OSError | None, *, absent: bool
    ) -> Foreseen:
        assert reason is not None
        if isinstance(reason, ListenError):
            error = reason
        else:
            error = failure(step or "bind", address, reason, plan.concerned(step or "bind"))
        if absent:
            return Foreseen(str(bind), address, "left out", error=error)
        if isinstance(error, AddressInUseError):
            return self._in_use(bind, plan, error.address, error)
        return Foreseen(str(bind), error.address, _word(error), error=error)

    def _in_use(
        self, bind: Bind, plan: Plan, address: Any, error: ListenError, own: Sequence[Own] | None = None
    ) -> Foreseen:
        """Records in the error what the error of listen() would know of the call's other sockets."""
        assert isinstance(error, AddressInUseError)
        record_conflicts(error, bind, plan.takes_both, plan.interface, None, self._sockets)
        if own is None:
            own = [Own(*one) for one in error._own] + [one.own for one in self._opened if one.inherited]
        error._own = tuple((one.bind, one.address, one.interface, one.takes_both, one.stands) for one in own)
        twice = own and twin(address, error._interface, plan.takes_both, own, standing=True)
        return Foreseen(str(bind), address, "given twice" if twice else "taken", error=error)

    def _will_listen_first(self, bind: Bind, plan: Plan, address: Any, sock: Listener) -> Own | None:
        """The socket of this call that is bound to the same address and listens before this one. On Linux bind(2) does
        not fail then, but listen(2) does; on other systems bind(2) has failed already."""
        if not JOINS_LATE or not isinstance(address, tuple) or not address[1] or bind.cid is not None:
            return None
        interface = interface_of(sock)
        met = [one for one in self._opened if twin(address, interface, plan.takes_both, [one.own], standing=False)]
        wish = plan.asked("reuse_port")
        same = any(opened.shares and opened.own.address[:2] == address[:2] for opened in met)
        joins = wish == "join" or (wish is True and same)
        return next((opened.own for opened in met if not (joins and opened.shares)), None)

    # ------------------------------------------------------------------ unix

    def _unix(self, bind: Bind, plan: Plan) -> Foreseen:
        text, path = str(bind), str(bind.path)
        try:
            Socket(AF_UNIX, SOCK_STREAM, 0).close()
        except OSError as reason:
            return _refused(text, _unix.shown(path), "socket", reason)
        backlog, note = _queue(plan)
        if path.startswith("\0"):
            try:
                self._sockets.append((bind, _unix.open_planned(path, plan)))
            except ListenError as reason:
                if not isinstance(reason, AddressInUseError):
                    return Foreseen(text, reason.address, _word(reason), error=reason)
                return self._in_use(bind, plan, path, reason)
            return Foreseen(text, path, "free", backlog, note=note)
        shown = _unix.shown(path)
        if not os.path.isdir("/proc/self/fd"):  # through which a path that is too long is bound
            try:
                _unix.must_fit(path)
            except OSError as reason:
                return _refused(text, shown, "bind", reason)
        for other, of in self._paths.items():
            if is_same_path(path, other):
                error = failure("bind", shown, _error(errno.EADDRINUSE), plan.concerned("bind"))
                return self._in_use(bind, plan, shown, error, [Own(of, shown, "", False, True)])
        row = _on_path(text, path, plan)
        if row.verdict not in GOOD:
            return row
        self._paths[path] = text
        return replace(row, backlog=backlog, note=_joined(row.note, note))

    # ------------------------------------------------------------------ inherited

    def _inherited(self, bind: Bind, plan: Plan) -> list[Foreseen]:
        text = str(bind)
        try:
            fds = _inherit.descriptors_of(bind, self._descriptors)
        except ListenError as error:
            twice = bind.fd in self._descriptors
            return [Foreseen(text, error.address or text, "given twice" if twice else "impossible", error=error)]
        return [self._passed_on(bind, fd, plan) for fd in fds]

    def _passed_on(self, bind: Bind, fd: int, plan: Plan) -> Foreseen:
        self._descriptors.add(fd)
        text, fact, shares = _about(bind, fd)
        listens = describe(fd)[2] == "listening"
        if listens:
            backlog, note = queue_of(fd)[1], "it listens already and keeps its queue"
        else:
            backlog, note = _queue(plan)
            if fact is not None and isinstance(fact.address, tuple):
                refused = self._too_late(bind, fd, plan, fact, shares=shares)
                if refused is not None:
                    return refused
        if fact is not None and isinstance(fact.address, tuple):
            self._opened.append(Opened(fact._replace(stands=fact.stands or listens), shares, inherited=True))
        return Foreseen(str(bind), text, "passed on", backlog, note=note)

    def _too_late(self, bind: Bind, fd: int, plan: Plan, fact: Own, *, shares: bool) -> Foreseen | None:
        """A socket that was bound beside others that have SO_REUSEADDR, one of which was the first to listen, or will
        be."""
        if not JOINS_LATE or shares:
            return None
        error = failure("listen", fact.address, _error(errno.EADDRINUSE), plan.concerned("listen"))
        for opened in self._opened:
            if twin(fact.address, fact.interface, fact.takes_both, [opened.own], standing=False):
                return self._in_use(bind, plan, fact.address, error, [opened.own._replace(stands=True)])
        if not fact.stands and _is_in_use(describe(fd)[0], fact):
            return self._in_use(bind, plan, fact.address, error, ())
        return None


def _is_in_use(family: int, fact: Own) -> bool:
    """Whether somebody listens on the address of a socket that was bound with SO_REUSEADDR. Then another one that
    has it cannot be bound there."""
    with Socket(family, SOCK_STREAM) as probe:
        probe.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        if family == AF_INET6:
            probe.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, not fact.takes_both)
        try:
            if fact.interface:
                probe.setsockopt(*OPTIONS["interface"][0], os.fsencode(fact.interface))
            probe.bind(fact.address)
        except OSError as reason:
            return reason.errno == errno.EADDRINUSE
    return False


# ---------------------------------------------------------------------------- rows


_WORDS = {
    errno.EACCES: "forbidden",
    errno.EPERM: "forbidden",
    errno.EROFS: "forbidden",
    errno.EADDRNOTAVAIL: "not here",
    errno.EAFNOSUPPORT: "not supported",
    errno.EPROTONOSUPPORT: "not supported",
}


def _word(error: OSError | None) -> str:
    if isinstance(error, socket.gaierror):
        return "unknown name"
    if isinstance(error, AddressInUseError):
        return "taken"
    return _WORDS.get((error.errno if error else None) or 0, "impossible")


def _refused(bind: str, address: Any, step: str, reason: OSError) -> Foreseen:
    error = failure(step, address, reason)
    return Foreseen(bind, address, _word(error), error=error)


def _error(number: int) -> OSError:
    # os.strerror() has no texts for Winsock's numbers, which start at 10000.
    text_of: Callable[[int], str] = getattr(ctypes, "FormatError", os.strerror) if number >= 10000 else os.strerror
    return OSError(number, text_of(number))


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _close(sockets: Sequence[Listener]) -> None:
    for sock in sockets:
        with suppress(OSError):
            sock.close()


def _queue(plan: Plan, sock: Listener | None = None) -> tuple[int | None, str]:
    """How many connections could wait, with a remark on that, and on other options that would not be in force."""
    granted, note = _granted(plan)
    return granted, _joined(note, *plan.shortfalls(sock).values())


def _granted(plan: Plan) -> tuple[int | None, str]:
    """How many connections could wait, as far as the system reports it, with a remark."""
    most, asked = setting("/proc/sys/net/core/somaxconn"), plan.asked("backlog")
    if not most.isdecimal():
        return None, ""
    if asked is None or asked <= int(most):
        return int(most) if asked is None else asked, ""
    return int(most), (
        f"backlog={asked} was asked for, and net.core.somaxconn grants {most}: raise it"
        f" (`sysctl -w net.core.somaxconn={asked}`, and in /etc/sysctl.d to stay)"
    )


def _lent(address: Any) -> str:
    """A remark on a port that the system may use for outgoing connections."""
    found = outgoing_ports(address[1]) if isinstance(address, tuple) and isinstance(address[0], str) else None
    if found is None:
        return ""
    return (
        f"an outgoing connection may get this port first, which is one of {found[0]} to {found[1]}"
        f" (net.ipv4.ip_local_port_range): choose a lower port, or reserve this one (`{reserving(address[1])}`)"
    )


# ---------------------------------------------------------------------------- paths


def _on_path(text: str, path: str, plan: Plan) -> Foreseen:
    shown, full = _unix.shown(path), os.path.join(os.getcwd(), path)
    try:
        there = os.lstat(full) if _unix.socket_at(shown, full) else None
        number = errno.ENOENT if there is None else _unix.knock(shown)
    except ListenError as error:
        return Foreseen(text, shown, "taken", error=error)
    except OSError as error:
        return _refused(text, shown, "bind", error)
    if number == errno.ENOENT:
        return _not_made(text, shown, full, None, plan) or Foreseen(text, shown, "free")
    if number == errno.ECONNREFUSED:
        note = "no server uses it: one that has ended left it behind, and it would be replaced"
        return _not_made(text, shown, full, there, plan) or Foreseen(text, shown, "left behind", note=note)
    if plan.asked("exclusive") is False:
        note = "a server uses it, and it would be taken over"
        return _not_made(text, shown, full, there, plan) or Foreseen(text, shown, "free", note=note)
    if number in (errno.EACCES, errno.EPERM):
        return _refused(text, shown, "connect", _error(number))
    return _refused(text, shown, "bind", _error(errno.EADDRINUSE))


def _not_made(text: str, path: str, full: str, there: os.stat_result | None, plan: Plan) -> Foreseen | None:
    """The error of making or replacing the path; None if it can be done."""
    folder = os.path.dirname(full)
    try:
        about = os.stat(folder)
        if not stat.S_ISDIR(about.st_mode):
            raise _error(errno.ENOTDIR)
    except OSError as error:
        return _refused(text, path, "bind", error)
    step, reason = _tried_on_a_file(folder, plan)
    if reason is not None:
        return _refused(text, path, step, reason)
    if there is not None and about.st_mode & stat.S_ISVTX and (user_now := getattr(os, "geteuid", None)):
        user = user_now()
        if user and user not in (there.st_uid, about.st_uid):
            return _refused(text, path, "bind", _error(errno.EPERM))
    return None


_NO_SUCH_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)


def _tried_on_a_file(folder: str, plan: Plan) -> tuple[str, OSError | None]:
    """Sets owner, group and mode on a file without a name, which nobody sees: in that folder if its file system has
    such files, else in memory. Returns the step that fails, with its error."""
    unnamed: int | None = getattr(os, "O_TMPFILE", None)
    file: Descriptor | None = None
    try:
        if unnamed is not None:
            file = Descriptor(os.open, folder, unnamed | os.O_WRONLY, 0o600)
    except OSError as error:
        if error.errno not in _NO_SUCH_FILES:
            return "bind", error
    try:
        if file is None:
            effective = os.access in os.supports_effective_ids
            if not os.access(folder, os.W_OK | os.X_OK, effective_ids=effective):
                return "bind", _error(errno.EROFS if _is_read_only(folder) else errno.EACCES)
            if (kind := _file_system(folder)) in _NO_SOCKETS:
                return "bind", _error(errno.ENOENT if kind == "proc" else errno.EPERM)
            if (in_memory := getattr(os, "memfd_create", None)) is None:
                return "bind", None
            file = Descriptor(in_memory, "harken")
        user, group = _unix.user_id(plan.asked("owner")), _unix.group_id(plan.asked("group"))
        if user != -1 or group != -1:
            with file as number:
                os.fchown(number, user, group)  # type: ignore[attr-defined,unused-ignore]
    except OSError as error:
        return "chown", error
    return "bind", None


# On Linux. Other file systems, network file systems included, have sockets, or are not known to lack them.
_NO_SOCKETS = frozenset(
    ("proc", "sysfs", "devpts", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "configfs", "mqueue", "vfat",
     "msdos", "exfat")
)  # fmt: skip


def _file_system(folder: str) -> str:
    """The type of the file system that a folder is in, as mount(8) names it; empty if it is unknown."""
    try:
        device = os.stat(folder).st_dev
        number = f"{os.major(device)}:{os.minor(device)}"  # type: ignore[attr-defined,unused-ignore]
        with open("/proc/self/mountinfo", errors="surrogateescape") as mounts:
            for mount in mounts:
                place, _, kind = mount.partition(" - ")
                if place.split()[2] == number:
                    return kind.split()[0]
    except (OSError, AttributeError, IndexError):  # there is no /proc
        pass
    return ""


def _is_read_only(folder: str) -> bool:
    if not hasattr(os, "statvfs"):
        return False
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)  # type: ignore[attr-defined,unused-ignore]


# ---------------------------------------------------------------------------- descriptors


def _about(bind: Bind, fd: int) -> tuple[Address | str, Own | None, bool]:
    """The address of an inherited socket, which stays as it is, what else decides whom it is in the way of, and whether
    it has SO_REUSEPORT."""
    try:
        with copy_of(fd) as sock:
            name = sock.getsockname()
            shares = getattr(socket, "SO_REUSEPORT", None)
            shared = shares is not None and bool(sock.getsockopt(socket.SOL_SOCKET, shares))
            both = sock.family == AF_INET6 and not sock.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY)
            stands = not JOINS_LATE or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
            interface = interface_of(sock)
    except OSError:
        return f"fd://{fd}", None, False
    address = os.fsdecode(name) if isinstance(name, bytes) else name or f"fd://{fd}"
    return address, Own(str(bind), address, interface, both, stands), shared
