"""Which processes hold an address: the sockets that conflict with it, and their owners.

Three tables can tell of the sockets, and the first that this machine has is asked: the kernel of Linux over sock_diag,
``/proc/net``, psutil. From a socket to its processes Linux has no table; they are looked for in ``/proc/*/fd``.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import shlex
import socket
import stat
import struct
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from .._bind import Bind
from .._paths import Descriptor
from .._resolve import addresses_of, getaddrinfo
from .._system import AF_UNSPEC, AI_PASSIVE, IPPROTO_TCP, SOCK_STREAM
from .._types import Address
from . import netlink

if TYPE_CHECKING:
    from .._resolve import AddrInfo

NOT_FOR_US = (
    "who has an address cannot be told here: the kernel's tables (netlink, /proc/net) are kept from this process"
)
NO_TABLE = "who has an address cannot be told here without psutil: pip install 'harken[psutil]'"


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds an address, or a socket whose process is unknown."""

    pid: int | None
    """None if this user cannot inspect the process, or there is none, as for ``time-wait``."""
    name: str
    """The name of the program, as the system reports it; empty without a pid."""
    user: str | None
    """The name of the user, or the number of a user without one. Without a pid, the user who made the socket."""
    command: str
    """The command line, quoted for a shell; empty if it is unknown."""
    address: tuple[str, int] | tuple[str, int, int, int] | str
    """The address that the socket is bound to, which may be a wildcard that includes the one that was asked for."""
    state: str
    """``listening``, ``bound`` (and neither listening nor connected), ``established``, ``time-wait`` and so on."""
    interface: str | None = None
    """The one interface that the socket is bound to (SO_BINDTODEVICE, or the scope of a link-local address); None for
    all of them, and if it is unknown."""


Holder.__module__ = "harken"


def holders(bind: str | int | Bind | Address | os.PathLike[str]) -> list[Holder]:
    """Lists the processes that hold an address: a bind as `harken.listen` reads it, an address as ``getsockname()``
    returns it, or the path of a unix socket (``/run/app.sock``, ``unix:/run/app.sock``, ``@abstract``).

    A wildcard, in ``bind`` or of a socket, matches each of its addresses. Sockets bound to another interface than that
    of the bind (``:8080?interface=eth0``) are left out. Listening sockets come first. A process is listed once for each
    address and state, however many connections it has; with ``pid=None`` if this user cannot inspect it.

    Raises ValueError for an invalid bind, and OSError if the system does not report holders (it is not Linux, and
    psutil is missing) or a name has no address.
    """
    wanted = _wanted(bind)
    found = (
        _on_path(wanted)
        if isinstance(wanted, str)
        else [held for relation, held in _met(*wanted, interface=_interface_of(bind)) if relation != "ours"]
    )
    found.sort(key=lambda held: _RANK.get(held.state, len(_RANK)))
    return Owners(found).holders(found)


class Finding(NamedTuple):
    """Why an address is in use."""

    cause: str
    holders: list[Holder]
    twin: str = ""
    """The other bind of the same call, where that is the cause."""


def explain(address: Address | str, interface: str = "") -> Finding:
    """Why ``address``, which bind() or listen() has just refused on this interface or on all, is in use. Raises OSError
    if the system does not report it."""
    try:
        wanted = _wanted(address)
    except ValueError:
        wanted = str(address)  # a path that does not look like one
    if isinstance(wanted, str):
        met = [("same", held) for held in _on_path(wanted)]
    else:
        met = _met(*wanted, interface=interface)
    owners = Owners([held for _, held in met])
    met = [(relation, held) for relation, held in met if held not in owners.gone]
    # In order of relevance: beside a socket that listens, bound or connected ones may be harmless.
    for state, abroad in (("listening", False), ("listening", True), ("bound", False), ("bound", True), ("", False)):
        group = [
            (relation, held)
            for relation, held in met
            if (relation in _ABROAD) == abroad and (held.state == state or not (state or held.ownerless))
        ]
        if group:
            break
    else:
        closing = [held for relation, held in met if held.ownerless and relation not in _ABROAD]
        return Finding("time-wait" if closing else "unknown", owners.holders(closing))
    relations = {relation for relation, _ in group}
    # A socket on exactly this address explains more than one on an overlapping address.
    group = [(relation, held) for relation, held in group if relation == "same" or "same" not in relations]
    sockets = [held for _, held in group]
    named = owners.holders(sockets)
    if abroad:
        cause = "v6only"
    elif state and "same" not in relations:
        cause = "wildcard"
    elif all(holder.pid is None for holder in named):
        cause = "hidden"
    elif state and owners.inherited(sockets):
        cause = "inherited"
    else:
        cause = "listener" if state == "listening" else "bound"
    return Finding(cause, named)


class Own(NamedTuple):
    """A socket of a call of listen(), as it was when another one of that call was refused."""

    bind: str
    address: Any
    interface: str
    """Its name, or nothing."""
    takes_both: bool
    stands: bool
    """Whether it conflicts with any other socket on its address. On Linux one that was bound with SO_REUSEADDR does
    not, until it listens."""


def twin(address: Address | str, interface: str, takes_both: bool, own: Sequence[Own], *, standing: bool) -> str:
    """The bind of the call's own socket that had the address, or every port of a range; empty where there is none."""
    if isinstance(address, str):
        same = [one.bind for one in own if one.address == address]
        if same or not any(isinstance(one.address, tuple) for one in own):
            return same[0] if same else ""
    hosts, ports = cast("tuple[Sequence[_Inet], range]", _wanted(address))
    found: dict[int, str] = {}
    for one in own:
        if not isinstance(one.address, tuple) or one.address[1] not in ports or (standing and not one.stands):
            continue
        held = Held(one.address, "listening", 0, None, None, one.takes_both, _index(one.interface))
        for host in hosts:
            relation = _relation(_packed(host[0]), host, held, _index(interface))
            if relation and (takes_both or relation != "ours"):
                found.setdefault(one.address[1], one.bind)
    return found[ports[-1]] if len(found) == len(ports) else ""


# ---------------------------------------------------------------------------- addresses


_Inet = tuple[str, int] | tuple[str, int, int, int]


def _wanted(bind: str | int | Bind | Address | os.PathLike[str]) -> tuple[Sequence[_Inet], range] | str:
    """The addresses and ports in question, or the path."""
    if isinstance(bind, os.PathLike):
        return os.fspath(bind)
    if isinstance(bind, str) and bind.startswith(("/", "./", "../", "\0")):
        return bind
    if isinstance(bind, str) and bind.startswith("@"):
        return f"\0{bind[1:]}"
    hosts: Sequence[_Inet]
    if isinstance(bind, tuple) and not isinstance(bind, Bind):
        if not (2 <= len(bind) <= 4 and isinstance(bind[0] or "", str) and isinstance(bind[1], (int, str))):
            raise TypeError(f"an address must be (host, port), as Listener.address has it, not {bind!r:.200}")
        hosts = [bind] if _packed(bind[0]) else _resolved(bind[0] or "0.0.0.0", bind[1])
        last = None
    else:
        read = Bind(bind)
        if read.path is not None:
            return read.path
        if read.port is None or read.cid is not None:
            raise ValueError(f"bind {str(bind)!r}: holders are known for TCP and unix sockets only")
        hosts = _addresses(addresses_of(read, read.family))
        last = read.ports[-1] if read.ports else None
    first = hosts[0][1]
    if first == 0:
        raise ValueError(f"bind {bind!s}: port 0 means any free port, which no process holds")
    return hosts, range(first, (last or first) + 1)


def _resolved(host: str | None, port: int | str) -> list[_Inet]:
    return _addresses(getaddrinfo(host, port, AF_UNSPEC, SOCK_STREAM, IPPROTO_TCP, AI_PASSIVE))


def _addresses(entries: AddrInfo) -> list[_Inet]:
    with entries:
        found = dict.fromkeys(entry.sockaddr for entry in entries)
        return [sockaddr for sockaddr in found if not isinstance(sockaddr, str)]


def _interface_of(bind: object) -> str:
    """The interface that a bind names."""
    if isinstance(bind, str):
        bind = Bind(bind)
    return bind.options.get("interface", "") if isinstance(bind, Bind) else ""


def _index(interface: str) -> int:
    """The number of an interface; 0 for none, and for one that is gone."""
    with contextlib.suppress(OSError, AttributeError):
        return socket.if_nametoindex(interface) if interface else 0
    return 0


def _met(hosts: Sequence[_Inet], ports: range, *, interface: str = "") -> list[tuple[str, Held]]:
    """For each socket with one of the ports, how it overlaps the first of the addresses that it overlaps."""
    packed, device = [(_packed(host[0]), host) for host in hosts], _index(interface)
    found = []
    for held in _on_ports(ports):
        relations = [relation for ours, host in packed if (relation := _relation(ours, host, held, device))]
        if relations:
            found.append((min(relations, key=_ORDER.index), held))
    return found


def _packed(host: str) -> bytes:
    """4 bytes for IPv4 and for IPv4-mapped IPv6, else 16; empty for what is not an address."""
    host = host.partition("%")[0]
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            packed = socket.inet_pton(family, host)
            return packed[12:] if packed.startswith(_MAPPED) else packed
    return b""


_MAPPED = bytes(10) + b"\xff\xff"
_ORDER = ("same", "wildcard", "theirs", "ours")
_ABROAD = _ORDER[2:]  # the other family's wildcard takes both: theirs, or ours, if we had asked for that
_RANK = {"listening": 0, "bound": 1, "established": 2}


def _relation(ours: bytes, address: tuple[Any, ...], held: Held, device: int = 0) -> str:
    """How a socket overlaps an address: ``same``, ``wildcard``, ``theirs``, ``ours``, or not at all. ``device`` is the
    interface of the address, 0 for all: sockets on two interfaces never overlap."""
    theirs = _packed(held.address[0])
    device, other = device or _scope(address), held.device or _scope(held.address)
    if device and other and device != other:
        return ""
    if len(ours) == len(theirs):
        if ours == theirs:
            return "same"
        return "" if any(ours) and any(theirs) else "wildcard"
    if not any(theirs) and held.takes_both and len(ours) == 4:
        return "theirs"
    return "ours" if len(ours) == 16 and not any(ours) else ""


def _scope(address: tuple[Any, ...]) -> int:
    return int(address[3]) if len(address) > 3 else 0


def _is_link_local(packed: bytes) -> bool:
    """fe80::/10"""
    return len(packed) == 16 and packed[0] == 0xFE and packed[1] & 0xC0 == 0x80


# ---------------------------------------------------------------------------- sockets


class Held(NamedTuple):
    """A socket, as one of the tables lists it."""

    address: Any  # Address, or the path
    state: str
    inode: int
    """The number of the socket on Linux; 0 if it belongs to the kernel only."""
    uid: int | None
    pid: int | None = None
    """If the table has it, as psutil's does."""
    takes_both: bool = False
    """Whether it is an IPv6 socket that also accepts IPv4, as far as is known."""
    device: int = 0
    """The interface that it is bound to; 0 for all, as far as is known."""

    @property
    def ownerless(self) -> bool:
        """Whether it belongs to the kernel only, and to no process."""
        return not self.inode and self.pid is None


_STATES = {
    1: "established", 2: "syn-sent", 3: "syn-recv", 4: "fin-wait-1", 5: "fin-wait-2", 6: "time-wait",
    7: "bound", 8: "close-wait", 9: "last-ack", 10: "listening", 11: "closing", 12: "syn-recv",
}  # fmt: skip


def _on_ports(ports: range) -> list[Held]:
    """Every TCP socket with one of these local ports."""
    table: Callable[[range], list[Held]]
    why = NO_TABLE
    for table in (by_sock_diag, by_proc, by_psutil):
        try:
            return table(ports)
        except ImportError:
            pass
        except (OSError, struct.error, ValueError, IndexError) as error:  # forbidden, or not what Linux itself says
            if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise  # the table is there, and cannot be opened now
            if hasattr(socket, "AF_NETLINK"):
                why = NOT_FOR_US
    raise OSError(errno.ENOTSUP, why)


_DIAG_V6ONLY = 11


def by_sock_diag(ports: range) -> list[Held]:
    """From the kernel, in every state. Linux 6.8 and newer also report sockets that are only bound."""
    found = []
    one = struct.pack("!H", ports[0] if len(ports) == 1 else 0)  # the kernel filters by it; 0: no filter
    for family in (socket.AF_INET, socket.AF_INET6):
        request = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, 0xFFFFFFFF) + one + bytes(46)
        for body in netlink.dump(netlink.SOCK_DIAG, netlink.DIAG_BY_FAMILY, request):
            state, port = body[1], struct.unpack_from("!H", body, 4)[0]
            if port not in ports:
                continue
            uid, inode = struct.unpack_from("=II", body, 64)
            (device,) = struct.unpack_from("=I", body, 40)
            address: tuple[str, int] | tuple[str, int, int, int] | str
            if family == socket.AF_INET:
                address = (socket.inet_ntop(family, body[8:12]), port)
                both = False
            else:
                scope = device if _is_link_local(body[8:24]) else 0
                address = (socket.inet_ntop(family, body[8:24]), port, 0, scope)
                both = netlink.attributes(body[72:]).get(_DIAG_V6ONLY, b"\0") == b"\0"
            # Sockets without a process, such as in TIME_WAIT, have user 0 here, which does not mean root.
            uid = uid if inode else None
            found.append(Held(address, _STATES.get(state, "unknown"), inode, uid, None, both, device))
    return found


def by_proc(ports: range) -> list[Held]:
    """From ``/proc/net``, if netlink is denied. It does not list sockets that are only bound."""
    found = []
    if os.readlink("/proc/self") != str(os.getpid()):
        raise OSError(errno.ENOENT, "/proc tells of others")  # as to a program for Windows under Wine
    with open("/proc/net/tcp") as table:
        lines = table.readlines()[1:]
    with contextlib.suppress(OSError), open("/proc/net/tcp6") as table:
        lines += table.readlines()[1:]
    for line in lines:
        words = line.split()
        digits, _, number = words[1].partition(":")
        port = int(number, 16)
        if port not in ports:
            continue
        # Words of 32 bits, each in this machine's order.
        packed = b"".join(struct.pack("=I", int(digits[at : at + 8], 16)) for at in range(0, len(digits), 8))
        host = socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
        inode = int(words[9])
        address = (host, port) if len(packed) == 4 else (host, port, 0, 0)
        uid = int(words[7]) if inode else None
        found.append(Held(address, _STATES.get(int(words[3], 16), "unknown"), inode, uid, None, len(packed) == 16))
    return found


_PSUTIL_STATES = {"LISTEN": "listening", "CLOSE": "bound", "NONE": "bound", "BOUND": "bound"}


def by_psutil(ports: range) -> list[Held]:
    """From psutil, on systems that are not Linux."""
    psutil = importlib.import_module("psutil")
    found = []
    try:
        every = [(one.pid, one) for one in psutil.net_connections("tcp")]
    except psutil.AccessDenied:
        every = []  # macOS shows each user only their own processes, one by one
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                every += [(process.pid, one) for one in process.net_connections("tcp")]
    for pid, one in every:
        if not one.laddr or one.laddr[1] not in ports:
            continue
        port = one.laddr[1]
        state = _PSUTIL_STATES.get(one.status) or one.status.lower().replace("_", "-").replace("wait1", "wait-1")
        six = one.family == socket.AF_INET6
        address = (one.laddr[0], port, 0, 0) if six else (one.laddr[0], port)
        # 0 means no process: on Windows a socket that is being closed, under Wine one whose owner is unknown.
        found.append(Held(address, state, 0, None, None if state == "time-wait" else pid or None, six))
    return found


_UNIX_SHOW = 0x1 | 0x2 | 0x40  # the name, the inode of its path, the user
_UNIX_NAME, _UNIX_PATH, _UNIX_USER = 0, 1, 7


def _on_path(path: str) -> list[Held]:
    """Every unix socket that is bound to this path."""
    for table in (_unix_by_sock_diag, _unix_by_proc):
        with contextlib.suppress(OSError, struct.error, ValueError, IndexError):
            return table(path)
    why = NOT_FOR_US if hasattr(socket, "AF_NETLINK") else "who has a unix socket can only be told on Linux"
    raise OSError(errno.ENOTSUP, why)


def _unix_by_sock_diag(path: str) -> list[Held]:
    family: int | None = getattr(socket, "AF_UNIX", None)
    if family is None:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    place = None
    with contextlib.suppress(OSError, ValueError):
        place = Place(path)
    request = struct.pack("=BBxxIIIII", family, 0, 0xFFFFFFFF, 0, _UNIX_SHOW, 0, 0)
    found: list[Held] = []
    perhaps: list[tuple[Held, str]] = []
    for body in netlink.dump(netlink.SOCK_DIAG, netlink.DIAG_BY_FAMILY, request):
        told = netlink.attributes(body[16:])
        name = os.fsdecode(told.get(_UNIX_NAME, b""))
        name = name if name.startswith("\0") else name.rstrip("\0")
        sure: bool | None = name == path
        given = name
        # By the file at the path, however its server wrote it; a socket whose path was taken over no longer has it.
        if place is not None and _UNIX_PATH in told:
            sure = place.has(name, *struct.unpack("=II", told[_UNIX_PATH]))
            if os.path.basename(name) != os.path.basename(path) or name.startswith("/proc/"):
                name = path  # it was moved there from another name, as in a takeover, or was too long
        if sure is False:
            continue
        state, inode = body[2], struct.unpack_from("=I", body, 4)[0]
        # Whoever connects to a datagram socket, as listen() does to see whether it is in use, makes it "established".
        told_state = "bound" if body[1] == socket.SOCK_DGRAM else _STATES.get(state, "unknown")
        uid = struct.unpack("=I", told[_UNIX_USER])[0] if _UNIX_USER in told else None
        held = Held(name, told_state, inode, uid)
        if sure:
            found.append(held)
        else:
            perhaps.append((held, given))
    return found if place is None or not perhaps else found + place.made_out(perhaps, path, alone=not found)


class Place:
    """The file at a path, as the kernel numbers it: not as stat(2) does, where a file system has several devices (the
    subvolumes of btrfs), or inodes of others (overlayfs)."""

    def __init__(self, path: str) -> None:
        self._there = os.stat(path)
        self._inode, self._device, self._is_shared = self._there.st_ino, self._of_stat(), False
        with contextlib.suppress(OSError, StopIteration, ValueError, AttributeError):
            self._ask_the_mount(path)

    def _of_stat(self) -> int:
        # The kernel's own device number has 12 and 20 bits; st_dev arranges them in another way.
        device = self._there.st_dev
        return ((device >> 8) & 0xFFF) << 20 | (device & 0xFF) | (device >> 12) & 0xFFF00

    def _ask_the_mount(self, path: str) -> None:
        if not stat.S_ISSOCK(self._there.st_mode):
            return
        with (
            Descriptor(os.open, path, os.O_PATH) as number,  # type: ignore[attr-defined,unused-ignore]
            open(f"/proc/self/fdinfo/{number}") as lines,
        ):
            facts = dict(line.split()[:2] for line in lines)
        self._inode = int(facts.get("ino:", self._inode))
        with open("/proc/self/mountinfo", errors="surrogateescape") as mounts:
            words = next(words for line in mounts if (words := line.split())[0] == facts["mnt_id:"])
        major, minor = map(int, words[2].split(":"))
        self._is_shared, self._device = self._device != major << 20 | minor, major << 20 | minor

    def has(self, name: str, inode: int, device: int) -> bool | None:
        """Whether the socket with this inode is bound here; None if it may be in this or in another subvolume."""
        if inode != self._inode & 0xFFFFFFFF:
            return False
        if device == self._device and not self._is_shared:
            return True
        with contextlib.suppress(OSError, ValueError):
            if name.startswith("/"):
                return os.path.samestat(os.stat(name), self._there)
        return None if device == self._device else False

    def made_out(self, perhaps: list[tuple[Held, str]], path: str, *, alone: bool) -> list[Held]:
        """Those that are bound here, of sockets of which `has` does not know. Their names are read where their
        processes are, which may have gone elsewhere meanwhile."""
        owners = _processes({held.inode for held, _ in perhaps})
        sure = []
        for held, name in perhaps:
            for pid, _ in owners.get(held.inode, ()):
                with contextlib.suppress(OSError, ValueError):
                    if os.path.samestat(os.stat(os.path.join(f"/proc/{pid}/cwd", name)), self._there):
                        sure.append(held)
                        break
        if sure or not alone or len(perhaps) > 1:
            return sure  # better none than a wrong one
        from .._unix import is_live

        return [perhaps[0][0]] if is_live(path) else []


def _unix_by_proc(path: str) -> list[Held]:
    found = []
    with open("/proc/net/unix") as table:
        for line in table.readlines()[1:]:
            words = line.rstrip("\n").split(None, 7)
            if len(words) == 8 and words[7] == path.replace("\0", "@"):
                connected = words[5] == "03" and int(words[4], 16) != socket.SOCK_DGRAM
                state = "listening" if int(words[3], 16) & 0x10000 else "established" if connected else "bound"
                found.append(Held(path, state, int(words[6]), None))
    return found


# ---------------------------------------------------------------------------- processes


class Owners:
    """Finds the owners of sockets."""

    def __init__(self, sockets: Collection[Held]) -> None:
        self.gone: set[Held] = set()
        self._by_inode = _processes({held.inode for held in sockets if held.inode})
        lost = {held.inode for held in sockets} - {0, *self._by_inode}
        if lost and isinstance(next(iter(sockets)).address, tuple):
            # A process that ended meanwhile was not hidden: its sockets are gone too.
            with contextlib.suppress(OSError):
                ports = {held.address[1] for held in sockets}
                still = {held.inode for held in _on_ports(range(min(ports), max(ports) + 1))}
                self.gone = {held for held in sockets if held.inode in lost - still}

    def holders(self, sockets: Iterable[Held]) -> list[Holder]:
        """Each process once for each address and state."""
        found: dict[Holder, None] = {}
        for pid, uid, address, state, device in dict.fromkeys(self._claims(sockets)):  # of thousands, one
            about = ("", _user(uid), "") if pid is None else self._about(pid)
            found[Holder(pid, *about, address, state, _interface(device))] = None
        return list(found)

    def _claims(self, sockets: Iterable[Held]) -> Iterable[tuple[int | None, int | None, Any, str, int]]:
        for held in sockets:
            if held in self.gone:
                continue
            pids: set[int | None] = {pid for pid, _ in self._by_inode.get(held.inode, ())}
            for pid in sorted(pids or {held.pid}, key=lambda pid: pid or 0):
                yield pid, held.uid if pid is None else None, held.address, held.state, held.device

    def _about(self, pid: int) -> tuple[str, str | None, str]:
        return _about(pid) if self._by_inode else _about_by_psutil(pid)

    def inherited(self, sockets: Iterable[Held]) -> bool:
        """Whether the socket was inherited: several processes have it, or the only one outlived the process that
        started it, or is a child of this process that was given an inheritable handle."""
        sockets = list(sockets)
        for held in sockets:
            found = self._by_inode.get(held.inode, [])
            pids = {pid for pid, _ in found}
            if len(pids) > 1:
                return True
            for pid, about in found[:1]:
                if _is_orphan(pid) or (_is_ours(pid) and _crosses_exec(about)):
                    return True
        told = {held.pid for held in sockets if held.pid is not None}
        if not told:
            return False
        psutil = importlib.import_module("psutil")
        for pid in told:
            try:
                if psutil.Process(pid).ppid() in told:
                    return True
            except psutil.NoSuchProcess:
                return True  # Windows reports the process that made the socket, even if only its child still runs
            except psutil.Error:
                continue
        return False


def _interface(device: int) -> str | None:
    if not device:
        return None
    try:
        return socket.if_indextoname(device)
    except (OSError, AttributeError):
        return str(device)


def _processes(inodes: set[int]) -> dict[int, list[tuple[int, str]]]:
    """inode → the processes that have it, each with what ``/proc`` reports of a file descriptor."""
    found: dict[int, list[tuple[int, str]]] = {}
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    try:
        pids = [name for name in os.listdir("/proc") if name.isdigit()] if wanted else []
    except OSError:
        return found
    for pid in pids:
        try:
            folders = {f"/proc/{pid}": os.listdir(f"/proc/{pid}/fd")}
        except OSError:
            continue  # it has ended, or belongs to another user
        if not any(folders.values()):
            # The first thread has ended, and its table is gone; the other threads still have theirs.
            tasks = (f"/proc/{pid}/task/{thread}" for thread in _listed(f"/proc/{pid}/task"))
            folders = {task: _listed(f"{task}/fd") for task in tasks}
        for folder, handles in folders.items():
            for handle in handles:
                with contextlib.suppress(OSError):  # closed meanwhile
                    inode = wanted.get(os.readlink(f"{folder}/fd/{handle}"))
                    if inode is not None:
                        found.setdefault(inode, []).append((int(pid), f"{folder}/fdinfo/{handle}"))
    return found


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _about(pid: int) -> tuple[str, str | None, str]:
    """The name, the user and the command line of a process, as far as they are known."""
    name, user, command = "", None, ""
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/status", errors="surrogateescape") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key == "Name":
                    name = value.strip()
                elif key == "Uid":
                    user = _user(int(value.split()[1]))  # the effective one
                    break
        # It is gone with the first thread; the other threads still have it.
        for folder in (f"/proc/{pid}", *(f"/proc/{pid}/task/{thread}" for thread in _listed(f"/proc/{pid}/task"))):
            with open(f"{folder}/cmdline", "rb") as file:
                words = file.read().rstrip(b"\0").split(b"\0")
            if words != [b""]:
                command = shlex.join(map(os.fsdecode, words))
                break
    return name, user, command


def _about_by_psutil(pid: int) -> tuple[str, str | None, str]:
    psutil = importlib.import_module("psutil")
    name, user, command = "", None, ""
    # Each on its own: Windows reports the name even where it denies the rest.
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        with contextlib.suppress(psutil.Error, OSError):
            name = process.name()
        with contextlib.suppress(psutil.Error, OSError):
            user = process.username()
        with contextlib.suppress(psutil.Error, OSError):
            command = shlex.join(process.cmdline())
    return name, user, command


def _user(uid: int | None) -> str | None:
    if uid is None:
        return None
    try:
        import pwd

        name: str = pwd.getpwuid(uid).pw_name  # type: ignore[attr-defined,unused-ignore]
    except (ImportError, KeyError):
        return str(uid)
    return name


def _lineage(pid: int) -> tuple[int, int, int]:
    """Parent, process group, session; zeros for what has ended."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            words = file.read().rpartition(")")[2].split()
        return int(words[1]), int(words[2]), int(words[3])
    except (OSError, IndexError):
        return 0, 0, 0


def _is_orphan(pid: int) -> bool:
    """Whether its parent has ended, so that it was given another one. That one is in another session, as is otherwise
    only the parent of a leader: a daemon, a service or a job of a shell leads its session or its group."""
    parent, group, session = _lineage(pid)
    return bool(parent) and pid not in (group, session) and _lineage(parent)[2] != session


def _is_ours(pid: int) -> bool:
    while pid > 1:
        pid = _lineage(pid)[0]
        if pid == os.getpid():
            return True
    return False


def _crosses_exec(about: str) -> bool:
    try:
        with open(about) as lines:
            flags = next(line for line in lines if line.startswith("flags:"))
    except (OSError, StopIteration):
        return False
    return not int(flags.split()[1], 8) & getattr(os, "O_CLOEXEC", 0)
