"""What `harken.listen` would come to, foretold. Nothing is bound; nobody is connected to but, at times, a unix path.

An address is judged by what the system tells of it, in the order in which bind() would judge it. The error that would
be raised is made, so that step, cause, holders and hint are those of the real one.

Linux's rule for a port that somebody has: two sockets can be bound to one address only when both have SO_REUSEADDR, as
ours do, and neither listens. No table tells which sockets have it. Where this process may look into the other one, the
socket itself is asked, through a descriptor that is closed at once; where not, and for connections that no process has
any more, it cannot be told.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import os
import re
import socket
import stat
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _holders, _inherit, _netlink, _unix
from ._bind import Bind
from ._errors import AddressInUseError, ListenError, failure
from ._hints import excluded_range
from ._holders import NO_TABLE, Held
from ._options import for_binds
from ._plan import Plan
from ._resolve import addresses_of
from ._socket import Socket, describe, has_family, queue_of
from ._system import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    IPPROTO_IPV6,
    IPPROTO_MPTCP,
    IPPROTO_TCP,
    IPV6_V6ONLY,
    SOCK_STREAM,
)

if TYPE_CHECKING:
    from ._holders import Holder
    from ._options import Options
    from ._types import Address

GOOD = ("free", "left behind", "passed on", "left out")
"""Verdicts that are in nobody's way: it would be opened; a path is there whose server has gone, and would be replaced;
an inherited socket is there, and would be taken over; the family is not there, and the bind's other addresses do."""

UNKNOWN = "cannot be told"


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What would become of one address of a bind."""

    bind: str
    address: Address | str
    """As an error has it; for a name without an address, and for a range of ports that are all in use, the bind."""
    verdict: str
    """One of `GOOD`; ``taken``, ``given twice``, ``forbidden``, ``not here``, ``unknown name``, ``not supported``,
    ``impossible``; or `UNKNOWN`."""
    backlog: int | None = None
    """How many connections could wait; None where that is not told, and where nothing would be opened."""
    error: ListenError | None = None
    """What would be raised; of a verdict that is `UNKNOWN`, what may be raised."""
    note: str = ""
    """What else there is to know, in one line."""
    own_hint: str = ""
    """Where the error has none, or its own would be about something else."""

    @property
    def hint(self) -> str:
        """What to do about it, in one line, as the error would say it."""
        return self.own_hint or (self.error.hint if self.error else "")

    @property
    def cause(self) -> str:
        """Why it is in use: `AddressInUseError.cause`; ``twice`` when the call itself wants it twice; else empty."""
        if self.verdict == "given twice":
            return "twice"
        return self.error.cause if isinstance(self.error, AddressInUseError) else ""

    @property
    def holders(self) -> list[Holder]:
        """Who has it."""
        given = self.verdict == "given twice"
        return self.error.holders if isinstance(self.error, AddressInUseError) and not given else []


class Wishes(NamedTuple):
    """Those of a bind's options that decide whether an address can be had, and which queue it gets."""

    backlog: int | None
    takes_both: bool
    shares: bool
    """With other sockets of the same call."""
    joins: bool
    """And with those of other processes."""
    anywhere: bool
    """Also addresses that this machine has not: IP_FREEBIND, IP_TRANSPARENT."""
    takes_over: bool
    """A unix path from a live server."""
    plan: Plan
    """What else is asked of the sockets."""

    @classmethod
    def of(cls, options: Options) -> Wishes:
        joins = options.reuse_port == "join"
        anywhere = bool(options.freebind or options.transparent)
        over = options.exclusive is False
        plan = Plan(options)
        return cls(options.backlog, plan.takes_both, bool(options.reuse_port), joins, anywhere, over, plan)


def foresee(binds: Sequence[str | int | Bind]) -> list[Foreseen]:
    """What ``harken.listen(*binds)`` would do: each address of each bind, in order. Names are looked up for that.

    Raises ValueError for a bind that cannot be read, or whose options make no sense; then nothing is said of the
    others, as nothing would be opened.
    """
    read = [Bind(bind) for bind in binds]
    wishes = [_wishes(bind) for bind in read]
    future = Future()
    rows: list[Foreseen] = []
    for bind, wish in zip(read, wishes, strict=True):
        if isinstance(wish, ListenError):
            rows.append(Foreseen(str(bind), str(bind), "not supported", error=wish))
        else:
            rows += future.of(bind, wish)
    return rows


def _wishes(bind: Bind) -> Wishes | ListenError:
    """An option that this system lacks is an error of its own: the bind could be opened elsewhere."""
    try:
        return Wishes.of(for_binds("check", [bind], {})[0])
    except ListenError as error:
        return error


class Future:
    """One call of listen(), bind after bind; what the earlier ones would have is in the way of the later."""

    def __init__(self) -> None:
        self._ours: list[tuple[Held, str]] = []  # what would listen by then, and the bind
        self._paths: dict[str, str] = {}
        self._taken: set[int] = set()  # descriptors
        self._no_socket = cache(_no_socket)

    def of(self, bind: Bind, wishes: Wishes) -> list[Foreseen]:
        """What would become of each address of this bind."""
        if bind.scheme in ("fd", "systemd"):
            return self._inherited(bind, wishes)
        if bind.scheme == "unix":
            return [self._unix(bind, wishes)]
        if bind.scheme == "vsock":
            return [self._vsock(bind)]
        return self._tcp(bind, wishes)

    # ------------------------------------------------------------------ TCP

    def _tcp(self, bind: Bind, wishes: Wishes) -> list[Foreseen]:
        text, family = str(bind), bind.family
        if wishes.takes_both and bind.host is None and not family and self._no_socket(AF_INET6, IPPROTO_TCP) is None:
            family = AF_INET6  # one socket for both
        try:
            with addresses_of(bind, family) as entries:
                found = list(dict.fromkeys((entry.family, entry.sockaddr) for entry in entries))
        except OSError as reason:
            return [_refused(text, text, "getaddrinfo", reason)]
        addresses = [(family, sockaddr) for family, sockaddr in found if not isinstance(sockaddr, str)]
        both = len({family for family, _ in addresses}) > 1
        several = len(bind.ports) > 1
        ports = bind.ports if several else range(addresses[0][1][1], addresses[0][1][1] + 1)
        table = Table.of(ports)
        unsure: list[Foreseen] = []
        for port in ports:
            rows = [
                self._judged(bind, wishes, family, (sockaddr[0], port, *sockaddr[2:]), both, table)
                for family, sockaddr in addresses
            ]
            if all(row.verdict == "left out" for row in rows):
                rows[-1] = replace(rows[-1], verdict=_word(rows[-1].error), backlog=None)
            first = next((row for row in rows if row.verdict not in (*GOOD, UNKNOWN)), None)
            if first is not None and several and first.verdict in ("taken", "given twice"):
                continue
            if first is None and any(row.verdict == UNKNOWN for row in rows):
                unsure = unsure or rows
                continue
            if unsure and first is None:
                rows = [_also(row, f"or port {unsure[0].address[1]}, of which it cannot be told") for row in rows]
            if first is None or not unsure:
                self._have(rows, wishes)
                return rows
            break
        if unsure:
            self._have(unsure, wishes)
            return unsure
        return [_refused(text, text, "bind", _error(errno.EADDRINUSE))]

    def _have(self, rows: list[Foreseen], wishes: Wishes) -> None:
        for row in rows:
            if row.verdict in ("free", UNKNOWN) and not isinstance(row.address, str) and row.address[1]:
                held = Held(row.address, "listening", 0, None, None, wishes.takes_both and ":" in row.address[0])
                self._ours.append((held, row.bind))

    def _judged(
        self, bind: Bind, wishes: Wishes, family: int, address: tuple[Any, ...], both: bool, table: Table
    ) -> Foreseen:
        text, port = str(bind), int(address[1])
        step, error, sure = "socket", self._no_socket(family, IPPROTO_TCP), True
        if error is None:
            step = "bind"
            error, sure = _not_for_us(family, address, wishes)
            if both and bind.host is None and not has_family(family):
                error, sure = _error(errno.EADDRNOTAVAIL), True
        if error is not None and both and _may_be_absent(address, error):
            return replace(_refused(text, address, step, error), verdict="left out")
        multipath = bind.scheme == "mptcp" and IPPROTO_MPTCP >= 0 and not self._no_socket(family, IPPROTO_MPTCP)
        refused = _no_option(family, IPPROTO_MPTCP if multipath else IPPROTO_TCP, address, wishes.plan)
        if step == "bind" and refused is not None:
            return Foreseen(text, address, _word(refused), error=refused)
        if error is not None:
            row = _refused(text, address, step, error)
            return row if sure else replace(row, verdict=UNKNOWN, note="this system does not tell whether that is so")
        backlog, note = _queue(wishes)
        plain = "this system has no MPTCP, it would be plain TCP" if bind.scheme == "mptcp" and not multipath else ""
        note = _joined(plain, note)
        if port == 0:
            return Foreseen(text, address, "free", backlog, note=note)
        for held, other in self._ours:
            grade = _grade(_relation(address, held, wishes), address, "listening", table.linux)
            if held.address[1] == port and grade is not False and not wishes.shares:
                # Both are bound, as neither listens yet; elsewhere the second bind() is refused.
                row = _in_use(text, address, "listen" if table.linux else "bind")
                hint = f"{other!r} is given too and takes this address: leave one of them out"
                return replace(row, verdict="given twice" if grade else UNKNOWN, own_hint=hint)
        if table.unread:
            return replace(_in_use(text, address), verdict=UNKNOWN, own_hint=NO_TABLE)
        taken, why = self._held(address, port, wishes, table)
        if taken:
            return _in_use(text, address)
        if taken is None:
            return _also(replace(_in_use(text, address), verdict=UNKNOWN, backlog=backlog), why)
        if excluded_range(*address[:2]):
            return _in_use(text, address)
        return Foreseen(text, address, "free", backlog, note=_joined(note, why, table.silence))

    def _held(self, address: tuple[Any, ...], port: int, wishes: Wishes, table: Table) -> tuple[bool | None, str]:
        """Do others have it? None where it cannot be told; with why that is so, or why not."""
        met = [(relation, held) for held in table.on(port) if (relation := _relation(address, held, wishes))]
        unsure: list[tuple[Held, str]] = []
        for relation, held in met:
            grade = _grade(relation, address, held.state, table.linux)
            listens = held.state == "listening"
            if grade and relation == "theirs" and not table.sure:
                unsure.append((held, "the system does not tell whether the socket in the way takes IPv4 too"))
            elif grade and listens and wishes.joins and table.linux:
                unsure.append((held, "reuse_port"))
            elif grade:
                return True, ""
            elif grade is None:
                unsure.append((held, "reuse" if table.linux else "whether it is in the way differs between systems"))
        owners = _holders._processes({held.inode for held, _ in unsure if held.inode})
        answers: dict[str, bool] = {}
        for held, why in unsure:
            if why == "reuse_port":
                shares = _has_option(held, getattr(socket, "SO_REUSEPORT", None), owners)
                if shares is False or held.uid != os.geteuid():  # type: ignore[attr-defined,unused-ignore]
                    return True, ""
                told = "who listens there shares the port" if shares else "it is had if who listens there shares it"
                answers[told] = bool(shares)
            elif why == "reuse":
                reuses = _has_option(held, socket.SO_REUSEADDR, owners)
                if reuses is False:
                    return True, ""
                answers[_HARMLESS if reuses else _PERHAPS] = bool(reuses)
            else:
                answers[why] = False
        open_questions = [why for why, answered in answers.items() if not answered]
        return (None, open_questions[0]) if open_questions else (False, _joined(*answers))

    # ------------------------------------------------------------------ unix, vsock

    def _unix(self, bind: Bind, wishes: Wishes) -> Foreseen:
        text, path = str(bind), str(bind.path)
        error = self._no_socket(AF_UNIX, 0)
        if error is not None:
            return _refused(text, path, "socket", error)
        if path.startswith("\0") or not os.path.isdir("/proc/self/fd"):  # the way to a path that is too long
            try:
                _unix.must_fit(path)
            except OSError as reason:
                return _refused(text, _unix.shown(path), "bind", reason)
        place = path if path.startswith("\0") else _place(path)
        if place in self._paths:
            hint = f"{self._paths[place]!r} is given too and takes this path: leave one of them out"
            return replace(_in_use(text, path), verdict="given twice", own_hint=hint)
        row = self._abstract(text, path) if path.startswith("\0") else _on_path(text, path, wishes)
        if row.verdict in (*GOOD, UNKNOWN):
            self._paths[place] = text
        if row.verdict not in GOOD:
            return row
        backlog, note = _queue(wishes)
        return replace(row, backlog=backlog, note=_joined(row.note, note))

    def _abstract(self, text: str, name: str) -> Foreseen:
        try:
            found = {held.state for held in _holders._on_path(name)}
        except OSError as reason:
            return replace(_refused(text, name, "bind", reason), verdict=UNKNOWN, own_hint=str(reason.strerror))
        if found & {"listening", "bound"}:
            return _in_use(text, name)
        # A client may have bound the name before it connected; what a server has accepted has the name too, and not it.
        return replace(_in_use(text, name), verdict=UNKNOWN) if found else Foreseen(text, name, "free")

    def _vsock(self, bind: Bind) -> Foreseen:
        text = str(bind)
        family = getattr(socket, "AF_VSOCK", None)
        missing = _error(errno.EAFNOSUPPORT) if family is None else self._no_socket(family, 0)
        if missing is not None:
            return _refused(text, text, "socket", missing)
        note = "this system has vsock, and no table of who has its ports"
        return Foreseen(text, text, UNKNOWN, note=note)

    # ------------------------------------------------------------------ inherited

    def _inherited(self, bind: Bind, wishes: Wishes) -> list[Foreseen]:
        text = str(bind)
        try:
            fds = _inherit.meant(bind, self._taken)
        except ListenError as error:
            twice = bind.fd in self._taken
            return [Foreseen(text, error.address or text, "given twice" if twice else "impossible", error=error)]
        return [self._passed_on(text, fd, wishes) for fd in fds]

    def _passed_on(self, text: str, fd: int, wishes: Wishes) -> Foreseen:
        self._taken.add(fd)
        name, shares = _about(fd)
        if describe(fd)[2] == "listening":
            note = "it listens already, and keeps its queue"
            return Foreseen(text, name, "passed on", queue_of(fd)[1], note=note)
        granted, note = _queue(wishes)
        if isinstance(name, tuple):
            # It was bound beside others that have SO_REUSEADDR, and one of them may have been the first to listen.
            table, inode = Table.of(range(name[1], name[1] + 1)), os.fstat(fd).st_ino
            others = [held for held in table.on(name[1]) if held.state == "listening" and held.inode != inode]
            if table.linux and not shares and any(_relation(name, held, wishes) for held in others):
                return _in_use(text, name, "listen")
            self._ours.append((Held(name, "listening", 0, None), text))
        return Foreseen(text, name, "passed on", granted, note=note)


_HARMLESS = "sockets that do not listen are left there and not in the way, as they have SO_REUSEADDR"
_PERHAPS = "it is had all the same if what is left there was made with SO_REUSEADDR on, as servers' sockets mostly are"


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


def _in_use(bind: str, address: Any, step: str = "bind") -> Foreseen:
    return _refused(bind, address, step, _error(errno.EADDRINUSE))


def _also(row: Foreseen, note: str) -> Foreseen:
    return replace(row, note=_joined(row.note, note))


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _queue(wishes: Wishes) -> tuple[int | None, str]:
    """How many connections could wait, as far as the system tells, and what to say about that."""
    most = _setting("/proc/sys/net/core/somaxconn")
    if not most:
        return None, ""
    if wishes.backlog is None or wishes.backlog <= int(most):
        return int(most) if wishes.backlog is None else wishes.backlog, ""
    return int(most), (
        f"of the {wishes.backlog} that are asked for, net.core.somaxconn grants {most}: raise it"
        f" (`sysctl -w net.core.somaxconn={wishes.backlog}`, and in /etc/sysctl.d to stay)"
    )


# ---------------------------------------------------------------------------- what is in the way


class Table:
    """The sockets that have some ports, and how far the table that tells them can be relied on."""

    def __init__(
        self, held: Iterable[Held], *, linux: bool, sure: bool, silence: str = "", unread: bool = False
    ) -> None:
        self.linux = linux
        """Do Linux's rules hold? Windows and the BSDs let some sockets be bound beside others."""
        self.sure = sure
        """Does it tell which IPv6 sockets take IPv4 too?"""
        self.silence = silence
        """What it does not tell, for people."""
        self.unread = unread
        """There is none."""
        self._by_port: dict[int, list[Held]] = {}
        for one in held:
            self._by_port.setdefault(one.address[1], []).append(one)

    def on(self, port: int) -> list[Held]:
        return self._by_port.get(port, [])

    @classmethod
    def of(cls, ports: range) -> Table:
        """Each is asked in turn, as `harken.holders` does."""
        silent = "a socket that is bound and does not listen is not told of here"
        mine = "as far as can be seen: other users' sockets (macOS), and those that do not listen, are not told of"
        if ports[-1] == 0:
            return cls((), linux=_is_linux(), sure=True)
        with contextlib.suppress(OSError, ImportError):
            return cls(_holders.by_sock_diag(ports), linux=True, sure=True, silence="" if _tells_bound() else silent)
        with contextlib.suppress(OSError, ImportError):
            return cls(_holders.by_proc(ports), linux=True, sure=False, silence=silent)
        with contextlib.suppress(OSError, ImportError):
            return cls(_holders.by_psutil(ports), linux=False, sure=False, silence=mine)
        return cls((), linux=_is_linux(), sure=False, unread=True)


def _tells_bound() -> bool:
    """Linux 6.8 and newer."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)  # type: ignore[attr-defined,unused-ignore]
    return release is not None and (int(release[1]), int(release[2])) >= (6, 8)


def _relation(address: tuple[Any, ...], held: Held, wishes: Wishes) -> str:
    """How a socket meets the address, or not at all: `_holders._relation`, where IPv6 does not take IPv4 unless that is
    wished for."""
    relation = _holders._relation(_holders._packed(address[0]), address, held)
    return relation if relation != "ours" or wishes.takes_both else ""


def _grade(relation: str, address: tuple[Any, ...], state: str, linux: bool) -> bool | None:
    """Is a socket in the way? None where that depends on what the table does not tell."""
    if not relation:
        return False
    if linux:
        return True if state == "listening" else None
    if relation == "same":
        return True if state in ("listening", "bound") else None
    # Our SO_EXCLUSIVEADDRUSE wants a wildcard for itself. An address beside somebody's wildcard depends on his options,
    # and the BSDs let either stand beside the other.
    wide = not any(_holders._packed(address[0]))
    exclusive = hasattr(socket, "SO_EXCLUSIVEADDRUSE")
    return True if relation == "wildcard" and wide and exclusive and state == "listening" else None


def _has_option(held: Held, option: int | None, owners: dict[int, list[tuple[int, str]]]) -> bool | None:
    """SO_REUSEADDR or SO_REUSEPORT of another process's socket; None where that may not be asked.

    pidfd_getfd(2) gives a second descriptor of the socket, which is closed at once and changes nothing for its owner.
    """
    if option is None:
        return None
    for pid, handle in owners.get(held.inode, ()):
        fd = _borrowed(pid, int(handle))
        if fd is None:
            continue
        try:
            if os.fstat(fd).st_ino != held.inode:
                os.close(fd)  # its owner had closed it, and used the number again
                continue
            with socket.socket(fileno=fd) as sock:
                return bool(sock.getsockopt(socket.SOL_SOCKET, option))
        except OSError:
            continue
    return None


_PIDFD_GETFD = 438  # on every architecture of Linux but Alpha


def _borrowed(pid: int, fd: int) -> int | None:
    pidfd_open: Callable[[int], int] | None = getattr(os, "pidfd_open", None)
    if pidfd_open is None:
        return None
    try:
        pidfd = pidfd_open(pid)
    except OSError:
        return None
    try:
        found = int(ctypes.CDLL(None).syscall(_PIDFD_GETFD, pidfd, fd, 0))
    finally:
        os.close(pidfd)
    return None if found < 0 else found


# ---------------------------------------------------------------------------- what bind() would refuse


def _no_socket(family: int, proto: int) -> OSError | None:
    """The error of socket(), where the system has no such family."""
    try:
        Socket(family, SOCK_STREAM, proto).close()
    except OSError as error:
        return error
    return None


def _no_option(family: int, proto: int, address: tuple[Any, ...], plan: Plan) -> ListenError | None:
    """The error of an option that this kernel or this user has not: they are set on a socket that nobody sees."""
    if not any(True for _ in plan.options):
        return None
    try:
        with Socket(family, SOCK_STREAM, proto) as probe:
            if family == AF_INET6:
                probe.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, not plan.takes_both)
            plan.tune(probe, address)
    except ListenError as error:
        return error
    except OSError:
        pass  # of socket(2), which is told already
    return None


def _not_for_us(family: int, address: tuple[Any, ...], wishes: Wishes) -> tuple[OSError | None, bool]:
    """What bind() says of the address, whoever has it; and whether that is sure."""
    host, port = address[0], address[1]
    forbidden = _forbidden_port(port)
    here = True if wishes.anywhere else _is_here(family, address)
    if family == AF_INET6:
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        if packed[0] == 0xFF or (packed.startswith(_MAPPED) and not wishes.takes_both):
            return _error(errno.EINVAL), True
        if forbidden:
            return _error(errno.EACCES), True
        if packed[:2] == b"\xfe\x80" and _is_linux():
            if not address[3]:
                return _error(errno.EINVAL), True
            if address[3] not in dict(socket.if_nameindex()):
                return _error(errno.ENODEV), True
    if here is False:
        return _error(errno.EADDRNOTAVAIL), True
    if forbidden:
        return _error(errno.EACCES), True
    if here is None:
        return _error(errno.EADDRNOTAVAIL), False
    return (_error(errno.EACCES), False) if forbidden is None else (None, True)


_MAPPED = bytes(10) + b"\xff\xff"


def _error(number: int) -> OSError:
    # Winsock's numbers, from 10000 on, have their texts elsewhere.
    text_of: Callable[[int], str] = getattr(ctypes, "FormatError", os.strerror) if number >= 10000 else os.strerror
    return OSError(number, text_of(number))


def _may_be_absent(address: tuple[Any, ...], error: OSError) -> bool:
    """As the story has it: a name's addresses of the other family do where the system lacks this one, or has it without
    a loopback address."""
    gone = error.errno == errno.EADDRNOTAVAIL and address[0] in ("127.0.0.1", "0.0.0.0", "::1", "::")
    return gone or _word(error) == "not supported"


def _forbidden_port(port: int) -> bool | None:
    """None where it cannot be told: other systems than Linux have rules of their own for ports below 1024."""
    if _is_linux():
        limit = int(_setting("/proc/sys/net/ipv4/ip_unprivileged_port_start") or 1024)
        return 0 < port < limit and not _may_bind_any_port()
    if 0 < port < 1024 and (user_now := getattr(os, "geteuid", None)):
        return None if user_now() else False
    return False


_CAP_NET_BIND_SERVICE = 10
_NS_GET_USERNS = 0xB701


@cache
def _may_bind_any_port() -> bool:
    """Has this process the right, and has it that in this network? Root of a container may be nobody outside of it."""
    try:
        with open("/proc/self/status") as lines:
            effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    except (OSError, StopIteration):
        return bool(os.geteuid() == 0)  # type: ignore[attr-defined,unused-ignore]
    if not effective >> _CAP_NET_BIND_SERVICE & 1:
        return False
    import fcntl

    try:
        with open("/proc/self/ns/net") as network:
            os.close(fcntl.ioctl(network, _NS_GET_USERNS))  # type: ignore[attr-defined,unused-ignore]
    except OSError as error:
        return error.errno != errno.EPERM  # the user namespace that it belongs to is outside of ours
    return True


def _is_here(family: int, address: tuple[Any, ...]) -> bool | None:
    """Has this machine the address, or does it bind also those that it has not? None where it does not tell."""
    host = address[0].partition("%")[0]
    packed = socket.inet_pton(socket.AF_INET if family == AF_INET else socket.AF_INET6, host)
    if not any(packed):
        return True
    version = "ipv4" if family == AF_INET else "ipv6"
    if _setting(f"/proc/sys/net/{version}/ip_nonlocal_bind") == "1":
        return True
    with contextlib.suppress(OSError):
        return _routed_here(packed) if family == AF_INET else _assigned(packed, address[3])
    with contextlib.suppress(Exception):  # whatever psutil raises
        psutil = importlib.import_module("psutil")
        every = [one.address.partition("%")[0] for addresses in psutil.net_if_addrs().values() for one in addresses]
        found = packed in map(_holders._packed, every)
        return found or (None if packed[0] == 127 else False)
    return True if host in ("127.0.0.1", "::1") else None


_ROUTE_GET, _ADDRESS_GET = 26, 22
_LOCAL, _BROADCAST, _MULTICAST = 2, 3, 5


def _routed_here(packed: bytes) -> bool:
    """Is it an address of this machine for the kernel's table of routes, which is what bind() asks? It may be a whole
    network, as 127.0.0.0/8 is."""
    if packed[0] & 0xF0 == 0xE0 or packed == b"\xff" * 4:
        return True  # multicast and broadcast: bound without a look at the table, which may have no way to them
    request = struct.pack("=BBBBBBBBI", AF_INET, 32, 0, 0, 0, 0, 0, 0, 0) + struct.pack("=HH", 8, 1) + packed
    try:
        for body in _netlink.dump(_netlink.ROUTE, _ROUTE_GET, request, _netlink.ONE):
            return body[7] in (_LOCAL, _BROADCAST, _MULTICAST)
    except OSError as error:
        if error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL):
            raise
    return False


def _assigned(packed: bytes, scope: int) -> bool:
    """Has an interface this IPv6 address, and has it been found to be nobody else's?"""
    tentative, optimistic = 0x40, 0x04
    for body in _netlink.dump(_netlink.ROUTE, _ADDRESS_GET, bytes(8)):
        _, _, flags, _, index = struct.unpack_from("=BBBBI", body)
        told = _netlink.attributes(body[8:])
        if packed == (told.get(2) or told.get(1)) and scope in (0, index):
            return not flags & tentative or bool(flags & optimistic)
    return False


@cache
def _is_linux() -> bool:
    """With a /proc that is ours, which it is not for a program for Windows under Wine."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def _setting(path: str) -> str:
    """A setting of Linux's kernel; empty where there is none."""
    if _is_linux():
        with contextlib.suppress(OSError), open(path) as file:
            return file.read().strip()
    return ""


# ---------------------------------------------------------------------------- paths


def _on_path(text: str, path: str, wishes: Wishes) -> Foreseen:
    shown, full = _unix.shown(path), os.path.join(os.getcwd(), path)
    folder = os.path.dirname(full)
    try:
        there = os.lstat(full) if _unix.socket_at(shown, full) else None
    except ListenError as error:
        return Foreseen(text, shown, "taken", error=error)
    except OSError as error:
        return _refused(text, shown, "bind", error)
    number = errno.ENOENT if there is None else _unix.knock(shown)
    if number == errno.ENOENT:
        return _writable(text, shown, folder, None) or Foreseen(text, shown, "free")
    if number == errno.ECONNREFUSED:
        note = "nobody has it: a server that ended has left it behind, and it would be replaced"
        return _writable(text, shown, folder, there) or Foreseen(text, shown, "left behind", note=note)
    if wishes.takes_over:
        note = "a server has it, and it would be taken over"
        return _writable(text, shown, folder, there) or Foreseen(text, shown, "free", note=note)
    if number in (errno.EACCES, errno.EPERM):
        return _refused(text, shown, "connect", _error(number))
    return _in_use(text, shown)


def _writable(text: str, path: str, folder: str, there: os.stat_result | None) -> Foreseen | None:
    """What making the file, or replacing it, would raise; None when it can be done."""
    try:
        about = os.stat(folder)
    except OSError as error:
        return _refused(text, path, "bind", error)
    if not stat.S_ISDIR(about.st_mode):
        return _refused(text, path, "bind", _error(errno.ENOTDIR))
    effective = os.access in os.supports_effective_ids
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=effective):
        return _refused(text, path, "bind", _error(errno.EROFS if _is_read_only(folder) else errno.EACCES))
    if there is not None and about.st_mode & stat.S_ISVTX and (user_now := getattr(os, "geteuid", None)):
        user = user_now()
        if user and user not in (there.st_uid, about.st_uid):
            return _refused(text, path, "bind", _error(errno.EPERM))
    return None


def _is_read_only(folder: str) -> bool:
    if not hasattr(os, "statvfs"):
        return False
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)  # type: ignore[attr-defined,unused-ignore]


def _place(path: str) -> str:
    """The same for two ways to write one path."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


# ---------------------------------------------------------------------------- descriptors


def _about(fd: int) -> tuple[Address | str, bool]:
    """The address of an inherited socket, which stays as it is, and whether it has SO_REUSEPORT."""
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            name = sock.getsockname()
            shares = getattr(socket, "SO_REUSEPORT", None)
            shared = shares is not None and bool(sock.getsockopt(socket.SOL_SOCKET, shares))
    except OSError:
        return f"fd://{fd}", False  # on Windows, whose sockets are no descriptors
    return (os.fsdecode(name) if isinstance(name, bytes) else name or f"fd://{fd}"), shared
