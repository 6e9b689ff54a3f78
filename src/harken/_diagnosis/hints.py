"""Hints: what to do when a step has failed, in one line."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import re
import shlex
import shutil
import socket
import stat
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from .._bind import Bind, scoped, takes_scope
from .._errors import AddressInUseError, ListenError, shown
from .._resolve import scope_name
from .._system import HAS_PROC, OPTIONS
from . import netlink

if TYPE_CHECKING:
    from .._types import Address
    from .holders import Holder


def hint_for(error: ListenError) -> str:
    """One line; empty if there is nothing to add to the system's text."""
    if isinstance(error, AddressInUseError):
        joining = error.option == ("reuse_port", True) and error.cause == "listener"
        return _in_use(error) + (JOIN if joining else "")
    if isinstance(error, socket.gaierror):
        return _no_address(error)
    if isinstance(error, io.UnsupportedOperation):
        return ""  # the text of the error says it
    if error.option:
        return _option(*error.option, error.errno or 0)
    by_number = _BY_NUMBER.get(error.errno or 0)
    if error.step == "import" and by_number not in (_no_files, _no_system_files, _no_memory):
        return ""  # it is about a file of harken's, not about the address
    return by_number(error) if by_number else ""


# ---------------------------------------------------------------------------- in use

OTHER_PORT = "or choose another port (0 lets the system choose)"


def _in_use(error: AddressInUseError) -> str:
    cause, found, address = error.cause, error.holders, error.address
    if cause == "twice":
        return twice(error._bind, error._finding.twin)
    if cause == "excluded" and not isinstance(address, str):
        first, last = excluded_range(*address[:2]) or (address[1], address[1])
        return (
            f"Windows keeps the ports {first} to {last} for itself, often for Hyper-V (`netsh interface ipv4 show"
            f" excludedportrange protocol=tcp` lists them); choose another, as {last + 1}"
        )
    if cause == "time-wait":
        return _closing(address)
    if not found:
        return _nobody_seen(error._path or address)
    who, theirs, ours = people(found), place(found[0]), shown(address)
    end = _way_out(found, address)
    has = "listens on" if found[0].state == "listening" else "is bound to"
    if cause == "v6only":
        is_ipv6 = theirs.startswith("[")
        dual = "which also accepts IPv4 (IPV6_V6ONLY is off)" if is_ipv6 else "and this bind accepts IPv4 too"
        return f"{who} {has} {theirs}, {dual}; {end} {OTHER_PORT}"
    if cause == "wildcard":
        wide, narrow = (theirs, ours) if _is_any(found[0].address) else (ours, theirs)
        return f"{who} {has} {theirs}, and {wide} includes {narrow}; {end} {OTHER_PORT}"
    if cause == "hidden":
        user = f" of user {found[0].user}" if found[0].user else ""
        root = "administrator" if is_winsock() else "root"
        return (
            f"{theirs} is held by a process{user} that this user cannot inspect; run"
            f" `python -m harken who {shlex.quote(ours)}` as {root}, outside of any container, to see it"
        )
    if cause == "inherited":
        if len({holder.pid for holder in found}) > 1:
            return f"{who} share the socket on {theirs}, as children inherit sockets; {end}, children included"
        return f"{who} inherited the socket on {theirs}, and the process that opened it has ended or closed it; {end}"
    if cause == "bound":
        doing = "is bound to" if found[0].state == "bound" else "has a connection from"
        other = "or choose another path" if isinstance(found[0].address, str) else OTHER_PORT
        text = f"{who} {doing} {theirs} and does not listen there; {end} {other}"
        given = _given_to_connections(found[0].address) if found[0].state != "bound" else ""
        return f"{text}. {given}" if given else text
    if isinstance(found[0].address, str):
        return f"{who} listens on {theirs} already; {end} or choose another path"
    if isinstance(address, str):  # a range of ports
        return f"no port of {address} is free: {who} {has} {theirs}; {end} {OTHER_PORT}"
    return f"{who} listens on {theirs} already; {end} {OTHER_PORT}"


def twice(bind: str, other: str) -> str:
    """The hint for two binds of one call."""
    if bind == other:
        return f"{bind!r} is given twice in the same call, or names addresses that overlap: leave one of them out"
    return f"{other!r} and {bind!r} of the same call want the same address: leave one of them out"


def _closing(address: Address | str) -> str:
    left = "only connections in TIME_WAIT are left there, for a minute at most"
    if is_winsock():
        return (
            "only connections in TIME_WAIT are left there, for some minutes at most, and with SO_EXCLUSIVEADDRUSE the"
            " port is not available until they are gone: wait, or use exclusive=False"
        )
    if given := _given_to_connections(address):
        return f"{left}: wait. {given}. If a server closed them, make it set SO_REUSEADDR as well"
    return f"{left}: wait, or make the server that closed them set SO_REUSEADDR as well"


def _given_to_connections(address: Address | str) -> str:
    """Says that the system uses this port for outgoing connections; empty if it does not."""
    if isinstance(address, str) or (lent := outgoing_ports(address[1])) is None:
        return ""
    return (
        f"The system uses the ports {lent[0]} to {lent[1]} (net.ipv4.ip_local_port_range) for outgoing connections:"
        f" choose a lower port, or reserve this one (`{reserving(address[1])}`)"
    )


def is_winsock() -> bool:
    """Whether this is Windows, where the commands differ."""
    return hasattr(socket, "SO_EXCLUSIVEADDRUSE")


def is_linux() -> bool:
    """Whether this is Linux, with netlink, /proc and systemd's units."""
    return hasattr(socket, "AF_NETLINK")


def _remove(path: str) -> str:
    return f'del "{path}"' if is_winsock() else f"rm {shlex.quote(path)}"


def _nobody_seen(address: Address | str) -> str:
    if isinstance(address, str):
        if address.startswith("\0") or not os.path.exists(address):
            return "no process is found that holds it now: try again"
        from .._unix import is_live, socket_at

        try:
            socket_at(address, address)
        except ListenError as error:  # it is not a socket: never advise to remove it
            return f"{error.strerror}: choose another path"
        if is_live(address):
            return (
                "a process that is not visible from here holds it (another container?): end it or choose another path"
            )
        return f"no process holds it: a server that has ended left the file behind; remove it ({_remove(address)})"
    from .holders import holders

    try:
        holders(address)
    except ValueError:
        return "this machine has almost no free port left: close some listeners or connections"  # it was port 0
    except OSError as error:
        return f"{error.strerror}; {OTHER_PORT.removeprefix('or ')}"
    untold = (
        "a socket that does not listen" if is_winsock()
        else "a socket that does not listen (Linux before 6.8, or without netlink)" if is_linux()
        else "a socket of another user"
    )  # fmt: skip
    return (
        "no process is found that holds it: it is free again by now (try again), or held by what this system does not"
        f" report: {untold}"
    )


# Programs that hold ports for others, and what to do instead of ending them. {port} is the port that is in use.
_FOR_OTHERS = {
    "systemd": "it holds the port for a unit: `systemctl list-sockets` (with --user for a user's own) shows which, and"
    " `systemctl stop NAME.socket` frees it",
    "launchd": "it holds the port for a service: `sudo launchctl print system` shows which",
    "inetd": "it holds the port for a service: remove that from /etc/inetd.conf",
    "xinetd": "it holds the port for a service: remove that from /etc/xinetd.d",
    "docker-proxy": "a container publishes the port: `docker ps --filter publish={port}` shows which; stop that",
    "rootlessport": "a container publishes the port: `podman ps` or `docker ps` shows which; stop that",
    "com.docker.backend": "a container publishes the port: `docker ps --filter publish={port}` shows which; stop that",
    "wslrelay.exe": "a program in WSL holds the port: end it there",
    "haproxy": "it holds the port for its configuration: remove the `bind` and reload it",
    "supervisord": "it holds the port for a program: `supervisorctl status` shows which; stop that",
    "circusd": "it holds the port for a watcher: `circusctl listsockets` shows which; stop that",
    "s6-svscan": "it holds the port for a service: stop that one",
    "System": "Windows holds it for its own services: `netsh http show servicestate` shows those of HTTP.sys",
    "svchost.exe": 'it holds the port for a service of Windows: `tasklist /svc /fi "pid eq {pid}"` shows which',
}


def _way_out(found: list[Holder], address: Address | str) -> str:
    """What to do about the processes that hold the address."""
    first = found[0]
    several = len({holder.pid for holder in found}) > 1
    if os.getpid() in [holder.pid for holder in found]:
        return "close that one first"
    name = first.name.removeprefix("(").removesuffix(")")  # systemd calls its helpers so
    # Linux keeps 15 characters of a name, macOS 16.
    known = next(
        (text for key, text in _FOR_OTHERS.items() if name == key or (len(name) > 14 and key.startswith(name))), ""
    )
    if known:
        port = first.address[1] if isinstance(first.address, tuple) else address
        return known.format(port=port, pid=first.pid)
    if first.pid == 1:
        return "it is the first process of this machine or container, which ends with it: start it with another address"
    if first.pid is not None and (unit := _unit(first.pid)):
        return f"end it (`systemctl {'--user ' if unit[1] else ''}stop {unit[0]}`)"
    return "end them" if several else "end it"


def _unit(pid: int) -> tuple[str, bool] | None:
    """The service of systemd that a process belongs to, which would start it again, and whether it is a user's."""
    path = ""
    if not HAS_PROC:
        return None
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cgroup", errors="replace") as lines:
        for line in lines:
            number, _, rest = line.rstrip("\n").partition(":")
            controllers, _, path_of = rest.partition(":")
            if number == "0" or controllers == "name=systemd":
                path = path_of
    parts = path.split("/")
    name = next((part for part in reversed(parts) if part.endswith((".service", ".scope"))), "")
    if not name.endswith(".service") or name.startswith("user@") or not name.isprintable():
        return None
    return shlex.quote(name), any(part.startswith("user@") for part in parts)


def place(holder: Holder) -> str:
    """The address of its socket, as a bind."""
    text = shown(holder.address)
    if holder.interface is None or (len(holder.address) > 3 and holder.address[3]):
        return text
    return f"{text}?interface={holder.interface}"


def people(found: list[Holder]) -> str:
    """``python3 (pid 17, user www: python3 serve.py)``, and the other processes in short."""
    first, *others = {holder.pid: holder for holder in found}.values()
    if first.pid is None:
        return f"a process of user {first.user}" if first.user else "a process that this user cannot inspect"
    if first.pid == os.getpid():
        text = "this process itself"
    else:
        facts = [f"pid {first.pid}", *([f"user {first.user}"] if first.user else [])]
        command = printable(first.command)
        tail = f": {command if len(command) <= 100 else command[:97] + '...'}" if command else ""
        text = f"{printable(first.name) or 'a process'} ({', '.join(facts)}{tail})"
    if others:
        pids = [str(holder.pid) for holder in others if holder.pid is not None]
        more = f" and {len(pids) - 5} more" if len(pids) > 5 else ""
        text += f" and pid {', '.join(pids[:5])}{more}" if pids else " and others"
    return text


def printable(text: str) -> str:
    """A foreign command line, safe to print: line ends and control sequences are escaped."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape", "replace").decode() for one in text)


def _is_any(address: Address | str) -> bool:
    return address[0] in ("0.0.0.0", "::")


def excluded_range(host: str, port: int) -> tuple[int, int] | None:
    """The range of ports reserved by Windows that contains this one; None if there is none."""
    command = shutil.which("netsh")
    if command is None:
        return None
    family = "ipv6" if ":" in host else "ipv4"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(
            [command, "interface", family, "show", "excludedportrange", "protocol=tcp"],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False,
        )  # fmt: skip
        return range_with(port, told.stdout.decode(errors="replace"))
    return None


def range_with(port: int, table: str) -> tuple[int, int] | None:
    """The range that contains this port, in what netsh prints: a line with first and last port, in any language."""
    for first, last in re.findall(r"^\s*(\d+)\s+(\d+)", table, re.MULTILINE):
        if int(first) <= port <= int(last):
            return int(first), int(last)
    return None


# ---------------------------------------------------------------------------- by number


def _forbidden(error: ListenError) -> str:
    address = error.address
    if isinstance(address, str):
        return _forbidden_path(error, error._path or address) if _is_path(address) else ""
    if error.step != "bind":
        if is_winsock():
            return "security software forbids it: a firewall or an antivirus program"
        return "a security policy forbids it: SELinux, AppArmor, a seccomp filter or a firewall"
    told = setting("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    limit = int(told) if told.isdecimal() else 1024
    if 0 < address[1] < limit:
        known = (
            "net.ipv4.ip_unprivileged_port_start"
            if told or not is_linux()
            else ("net.ipv4.ip_unprivileged_port_start, unless changed: it cannot be read here")
        )
        return (
            f"ports below {limit} ({known}) are privileged: use {limit} or above, or grant CAP_NET_BIND_SERVICE"
            " (`setcap cap_net_bind_service=+ep` on the interpreter, or AmbientCapabilities= in the systemd unit), or"
            f" let systemd's socket activation or a proxy in front open port {address[1]}"
        )
    if is_winsock():
        return "something else forbids it: a firewall or other security software"
    fine = (
        "port and user are fine"
        if told or not is_linux()
        else ("the port may be a privileged one (net.ipv4.ip_unprivileged_port_start cannot be read here); if not")
    )
    return f"{fine}, something else forbids it: SELinux (`semanage port -l`), AppArmor, seccomp"


def _is_path(address: Address | str) -> bool:
    return isinstance(address, str) and "/" in address and "://" not in address and not address.startswith("\0")


def _forbidden_path(error: ListenError, path: str) -> str:
    if error.step == "connect":
        return _forbidden_socket(path)
    if error.step == "chown":
        return "only root may give a socket to another user; the group must be one of this user's (`id`)"
    folder = os.path.dirname(path) or "."
    if error.step in ("bind", "rename") and error.errno == errno.EPERM:
        if os.path.lexists(path) and os.stat(folder).st_mode & stat.S_ISVTX:
            return f"in {folder} only the owner of a file may remove it: ask the owner to, or choose another path"
        return (
            "the file system there may not support sockets (FAT and shared folders do not), or the folder may be"
            " immutable (`lsattr -d`): choose another folder"
        )
    return f"this user must be allowed to write to the folder of {path}"


def _forbidden_socket(path: str) -> str:
    """The hint for a socket that this user may not connect to, so that it is unknown whether a server uses it."""
    from .holders import holders

    owner = _owner(path)
    try:
        found = holders(path)
    except (OSError, ValueError):
        found = []
    if found:
        return (
            f"{people(found)} holds {path}, and this user may neither connect to it nor take it over:"
            f" {_way_out(found, path)} or choose another path"
        )
    return (
        "this user may not connect to it, so that it is unknown whether a server uses it; none is visible from here,"
        f" but one may run in another container. Start as the user that made it{owner}, which replaces it if no server"
        " uses it, or choose another path"
    )


def _owner(path: str) -> str:
    with contextlib.suppress(OSError, ImportError, KeyError):
        import pwd

        return f" ({pwd.getpwuid(os.lstat(path).st_uid).pw_name})"  # type: ignore[attr-defined,unused-ignore]
    return ""


def _no_folder(error: ListenError) -> str:
    if not isinstance(error.address, str):
        return ""
    if error.address.startswith("\0"):
        return "abstract names exist on Linux only: write a path, as in unix:/run/app.sock"
    folder = os.path.dirname(error.address) or "."
    if not _is_path(error.address):
        return ""
    if os.path.isdir(folder):
        return f"no files can be made in {folder}: choose another folder, such as /run or /tmp"
    if is_winsock():
        return f'the folder {folder} does not exist: make it (mkdir "{folder}")'
    made = "; RuntimeDirectory= in the systemd unit does it for folders in /run" if is_linux() else ""
    return f"the folder {folder} does not exist: make it (mkdir -p {shlex.quote(folder)}{made})"


def _no_directory(error: ListenError) -> str:
    return f"a part of {error.address} is a file, not a folder" if _is_path(error.address) else ""


def _read_only(error: ListenError) -> str:
    if not _is_path(error.address):
        return ""
    return "the file system there is read-only, as in many containers: choose a folder in /run or /tmp, or mount one"


def _occupied(error: ListenError) -> str:
    if not _is_path(error.address):
        return ""
    return "only sockets that servers left behind are replaced: choose another path, or move what is there"


def _name_too_long(error: ListenError) -> str:
    address = str(error.address)
    if address.startswith("\0"):
        return "choose a shorter name"
    if not _is_path(address):
        return ""
    if len(os.fsencode(os.path.basename(address))) > 255:
        return "a file name is limited to 255 bytes: choose a shorter one"
    return "choose a shorter path, such as one in /run or /tmp, or change to its folder and give only the name"


def _not_here(error: ListenError) -> str:
    if isinstance(error.address, str):
        own = "`*` stands for this machine's own context, and `local`, its loopback, needs the module vsock_loopback"
        return own if error.address.startswith("vsock://") else ""
    host, port = error.address[:2]
    if unready := _unready(error.address):
        return unready
    mine, packed = _here(), _packed(host)
    if len(packed) == 16 and not any(packed[:12]) and packed[12:] > b"\0\0\xff\xff":  # and not ::1
        return f"an IPv4 address in IPv6 form, which no machine has: write {'.'.join(map(str, packed[12:]))}:{port}"
    if ":" in host and mine and not any(":" in one for one, _ in mine):
        loopback = "127.0.0.1 in its place" if packed == _LOOPBACK_6 else "an IPv4 address"
        return f"{_why_no_ipv6()}: bind {loopback}"
    if takes_scope(host):
        return _link_local(error.address, mine)
    later = "if it is added later, start after that (After=network-online.target in the systemd unit)"
    if "freebind" in OPTIONS:
        later += " or bind it in advance, with ?freebind=1"
    if not mine:
        return f"this machine has no such address; {later}"
    told = [scoped(one, index) if takes_scope(one) else one for one, index in mine]
    more = f" and {len(told) - 8} more" if len(told) > 8 else ""
    return f"this machine has {', '.join(told[:8])}{more}, not {host}: bind one of these; {later}"


_OPTIMISTIC, _FAILED, _TENTATIVE = 0x04, 0x08, 0x40


def _unready(address: Address) -> str:
    """The hint for an IPv6 address of this machine that duplicate address detection keeps from being bound."""
    packed, scope = _packed(str(address[0])), address[3] if len(address) > 3 else 0
    for one, index, flags in _flags_of_addresses() if len(packed) == 16 else ():
        if one != packed or scope not in (0, index):
            continue
        name = str(index)
        with contextlib.suppress(OSError):
            name = socket.if_indextoname(index)
        if flags & _FAILED:
            return (
                f"{name} has {address[0]}, but another machine on this network had it first (duplicate address"
                " detection failed): give one of them another address"
            )
        if flags & _TENTATIVE and not flags & _OPTIMISTIC:
            return (
                f"{name} has {address[0]}, which is still being checked for duplicates: try again in a second or two"
                " (while the link is down it stays so), add the address with `nodad`, or bind it in advance, with"
                " ?freebind=1"
            )
    return ""


def _flags_of_addresses() -> list[tuple[bytes, int, int]]:
    """IPv6 addresses with their interfaces and flags; empty if the system does not report them."""
    found = []
    with contextlib.suppress(OSError, struct.error):
        for body in netlink.dump(netlink.ROUTE, 22, bytes([socket.AF_INET6, *bytes(7)])):  # RTM_GETADDR
            told = netlink.attributes(body[8:])
            (flags,) = struct.unpack("=I", told[8]) if len(told.get(8, b"")) == 4 else body[2:3]  # IFA_FLAGS
            found.append((told.get(2) or told.get(1) or b"", *struct.unpack_from("=I", body, 4), flags))
        return found
    if not HAS_PROC:
        return []
    with contextlib.suppress(OSError, ValueError), open("/proc/net/if_inet6") as lines:
        for line in lines:
            digits, index, _, _, flags_of, _ = line.split()
            found.append((bytes.fromhex(digits), int(index, 16), int(flags_of, 16)))
    return found


_LOOPBACK_6 = bytes(15) + b"\x01"


def _packed(host: str) -> bytes:
    with contextlib.suppress(OSError):
        return socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    return b""


def _link_local(address: Address, mine: list[tuple[str, int]]) -> str:
    """The hint for a link-local address: which interface has it, and which addresses this interface has."""
    host, port = str(address[0]).partition("%")[0], address[1]
    scope = address[3] if len(address) > 3 else 0
    own = [index for one, index in mine if _packed(one) == _packed(host) and index]
    right = " or ".join(f"[{scoped(host, index)}]:{port}" for index in own[:4])
    if not scope:
        there = f"as in {right}" if own else f"as in [{host}%eth0]:{port}, and none of {_interfaces()} has this one"
        return f"a link-local address needs its interface, {there}"
    if scope not in [index for index, _ in socket.if_nameindex()]:
        return _no_interface(str(scope))
    name = scope_name(int(scope))
    if own:
        names = " and ".join(scope_name(index) for index in own[:4])
        return f"{host} is an address of {names}, not of {name}: write {right}"
    its = [scoped(one, index) for one, index in mine if index == scope and takes_scope(one)]
    has = f"it has {', '.join(its[:4])}" if its else "it has no link-local address: is it up?"
    return f"neither {name} nor any other interface has {host}: {has}" if mine else f"{name} has no such address"


def _interfaces() -> str:
    names = [name for _, name in socket.if_nameindex()]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{', '.join(map(printable, names[:8]))}{more}"


def _no_interface(zone: str) -> str:
    what = "has the number" if zone.isdigit() else "is called"
    return f"no interface here {what} {printable(zone)}: the interfaces are {_interfaces()}"


def _no_such_device(error: ListenError) -> str:
    if isinstance(error.address, str) or len(error.address) < 4:
        return ""
    return _no_interface(str(error.address[3]))


def _why_no_ipv6() -> str:
    if setting("/proc/sys/net/ipv6/conf/all/disable_ipv6") == "1":
        return "IPv6 is disabled here (net.ipv6.conf.all.disable_ipv6 = 1)"
    return "no interface here has IPv6"


_NO_IPV6_AT_ALL = "this system has no IPv6 at all (built or started without it)"


def _why_no_family(host: str) -> str:
    """Why no socket of this address's family can be made: the kernel lacks it, or a filter denies it."""
    six = ":" in host
    name = "IPv6" if six else "IPv4"
    filtered = (
        f"a seccomp filter denies {name} to this process: RestrictAddressFamilies= in the systemd unit must name"
        f" {'AF_INET6' if six else 'AF_INET'}, or the container's profile must allow it"
    )
    if HAS_PROC and os.path.exists("/proc/net/if_inet6" if six else "/proc/net/tcp"):
        return f"this system has {name}, but {filtered}"
    if _is_filtered():
        return f"this system has no {name}, or {filtered}"
    return _NO_IPV6_AT_ALL if six else "this system has no IPv4 at all"


def _is_filtered() -> bool:
    """Whether a seccomp filter applies to this process."""
    if not HAS_PROC:
        return False
    with contextlib.suppress(OSError), open("/proc/self/status", errors="replace") as lines:
        return any(line.split() == ["Seccomp:", "2"] for line in lines)
    return False


def why_left_out(address: Address | str, error: OSError) -> OSError:
    """For `Listeners.left_out`: the same error, with a text that says why this machine does not have the address."""
    if isinstance(address, str):
        return error
    host = str(address[0])
    if error.errno == errno.EAFNOSUPPORT:
        why = _why_no_family(host)
    elif error.errno == errno.EADDRNOTAVAIL:
        mine = local_addresses()
        if any((":" in one) == (":" in host) for one in mine):
            why = f"no interface here has {host}"
        else:
            why = _why_no_ipv6() if ":" in host else "no interface here has IPv4"
    else:
        return error
    winerror = getattr(error, "winerror", None)
    return OSError(error.errno, why) if winerror is None else OSError(error.errno, why, None, winerror)


def local_addresses() -> list[str]:
    """The addresses of this machine; empty if they are unknown."""
    return [address for address, _ in _here()]


def _here() -> list[tuple[str, int]]:
    """The addresses of this machine, each with the number of its interface, or 0 if that is unknown."""
    found = []
    with contextlib.suppress(OSError, struct.error):
        for body in netlink.dump(netlink.ROUTE, 22, bytes(8)):  # RTM_GETADDR
            told = netlink.attributes(body[8:])
            packed = told.get(2) or told.get(1) or b""  # IFA_LOCAL, which differs on point-to-point links; IFA_ADDRESS
            family = {4: socket.AF_INET, 16: socket.AF_INET6}.get(len(packed))
            if family is not None:
                found.append((socket.inet_ntop(family, packed), int.from_bytes(body[4:8], sys.byteorder)))
        return found
    if is_linux():
        return _addresses_in_proc()  # the host name of a Linux machine mostly resolves to one address of many
    with contextlib.suppress(OSError):
        entries: Any = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
        told_by_name = [
            (str(entry[4][0]).partition("%")[0], entry[4][3] if len(entry[4]) > 3 else 0) for entry in entries
        ]
        return list(dict.fromkeys([*_loopbacks(), *told_by_name]))
    return []


def _loopbacks() -> list[tuple[str, int]]:
    """Those that this machine has: its name mostly stands for neither."""
    found = []
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
            found.append((host, 0))
    return found


def _addresses_in_proc() -> list[tuple[str, int]]:
    """All of them, if netlink is denied; empty if one of the two tables cannot be read."""
    try:
        with open("/proc/net/fib_trie") as lines:
            words = [line.split() for line in lines]
        local = [before[1] for before, line in itertools.pairwise(words) if line[:3] == ["/32", "host", "LOCAL"]]
        found = [(address, 0) for address in local]
        if os.path.exists("/proc/net/if_inet6"):
            with open("/proc/net/if_inet6") as lines:
                for line in lines:
                    digits, index = line.split()[:2]
                    found.append((socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)), int(index, 16)))
    except (OSError, ValueError, IndexError):
        return []
    return list(dict.fromkeys(found))


def _no_family(error: ListenError) -> str:
    if not isinstance(error.address, str) and ":" in error.address[0]:
        return f"{_why_no_family(error.address[0])}: bind IPv4, as 0.0.0.0 or 127.0.0.1"
    if _is_filtered():
        return (
            "this system has no such address family, or a seccomp filter denies it to this process:"
            " RestrictAddressFamilies= in the systemd unit, or the container's profile, must allow it"
        )
    return "this system has no such address family"


def _no_files(_: ListenError) -> str:
    try:
        import resource

        limit = str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])  # type: ignore[attr-defined,unused-ignore]
    except ImportError:
        return "this process has too many files and sockets open: close some"
    return (
        f"this process has reached its limit of {limit} open files and sockets: close some, or raise the limit"
        " (`ulimit -n`, LimitNOFILE= in the systemd unit, --ulimit nofile= for a container)"
    )


def _no_system_files(_: ListenError) -> str:
    limit = setting("/proc/sys/fs/file-max")
    return f"the system-wide limit of open files is reached{f' ({limit}, fs.file-max)' if limit else ''}: close some"


def _no_memory(_: ListenError) -> str:
    limits = setting("/proc/sys/net/ipv4/tcp_mem")
    more = f" or raise net.ipv4.tcp_mem ({limits} pages)" if limits else ""
    return f"the system has no memory left for sockets: close connections{more}"


def _invalid(error: ListenError) -> str:
    if not isinstance(error.address, str):
        host, port = str(error.address[0]), error.address[1]
        if takes_scope(host):
            return _link_local(error.address, _here())
        packed = _packed(host)
        if packed[:12] == bytes(10) + b"\xff\xff":
            ipv4 = ".".join(map(str, packed[12:]))
            return f"an IPv4 address in IPv6 form, which an IPv6-only socket cannot be bound to: write {ipv4}:{port}"
    return _no_folder(error) if str(error.address).startswith("\0") else ""


def _no_socket(error: ListenError) -> str:
    if not str(error.address).startswith("fd://"):
        return ""
    return "the descriptor is open, but it is not a socket: check its number"


def _no_descriptor(error: ListenError) -> str:
    if not str(error.address).startswith("fd://"):
        return ""
    if is_winsock():
        return "the process that starts this one must pass it on: set_inheritable(), and close_fds=False of subprocess"
    return "the process that starts this one must pass it on: pass_fds= of subprocess, set_inheritable() before an exec"


_BY_NUMBER = {
    errno.EBADF: _no_descriptor,
    errno.ENOTSOCK: _no_socket,
    errno.EACCES: _forbidden,
    errno.EPERM: _forbidden,
    errno.EADDRNOTAVAIL: _not_here,
    errno.ENODEV: _no_such_device,
    errno.ENXIO: _no_such_device,
    errno.EAFNOSUPPORT: _no_family,
    errno.EMFILE: _no_files,
    getattr(errno, "WSAEMFILE", errno.EMFILE): _no_files,
    errno.ENFILE: _no_system_files,
    errno.ENOBUFS: _no_memory,
    errno.ENOMEM: _no_memory,
    errno.EINVAL: _invalid,
    errno.ENOENT: _no_folder,
    errno.ENOTDIR: _no_directory,
    errno.EROFS: _read_only,
    errno.EEXIST: _occupied,
    errno.ENAMETOOLONG: _name_too_long,
}


def setting(path: str) -> str:
    """A setting of the kernel; empty if it cannot be read."""
    if not HAS_PROC:
        return ""
    try:
        with open(path) as file:
            return " ".join(file.read().split())
    except OSError:
        return ""


def outgoing_ports(port: int) -> tuple[int, int] | None:
    """The range of ports that Linux uses for outgoing connections, if this port is in it."""
    try:
        first, last = map(int, setting("/proc/sys/net/ipv4/ip_local_port_range").split())
    except ValueError:
        return None
    return (first, last) if first <= port <= last and not _is_reserved(port) else None


def reserving(port: int) -> str:
    """The command that reserves a port, beside those that are reserved already."""
    kept = setting("/proc/sys/net/ipv4/ip_local_reserved_ports")
    return f"sysctl -w net.ipv4.ip_local_reserved_ports={kept}{',' if kept else ''}{port}"


def _is_reserved(port: int) -> bool:
    for part in filter(None, setting("/proc/sys/net/ipv4/ip_local_reserved_ports").split(",")):
        first, _, last = part.partition("-")
        if int(first) <= port <= int(last or first):
            return True
    return False


# ---------------------------------------------------------------------------- options

JOIN = "; to share the port with the group of another process of this user, use reuse_port='join'"


def _option(name: str, value: object, number: int) -> str:
    if number in (errno.EPERM, errno.EACCES):
        if name == "congestion":
            allowed = setting("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
            return f"without CAP_NET_ADMIN only these may be used: {allowed} (net.ipv4.tcp_allowed_congestion_control)"
        from .._option_table import TABLE  # loaded already: an option was set

        needs = TABLE[name].privilege if name in TABLE else ""
        return (
            f"{name} {needs}: AmbientCapabilities=CAP_NET_ADMIN in the systemd unit, or --cap-add NET_ADMIN for a"
            " container"
            if needs
            else ""
        )
    if name == "congestion" and number == errno.ENOENT:
        there = setting("/proc/sys/net/ipv4/tcp_available_congestion_control")
        return f"available here: {there}; `modprobe tcp_{value}` may add it"
    if name == "interface" and number in (errno.ENODEV, errno.ENXIO):
        return f"this machine has {', '.join(interface for _, interface in socket.if_nameindex())}"
    if name in ("rcvbuf", "sndbuf") and number == errno.ENOBUFS:
        return "it is more than kern.ipc.maxsockbuf allows"
    if number in (errno.ENOPROTOOPT, errno.EOPNOTSUPP):
        return f"this kernel, or this kind of socket, does not support {name}"
    return ""


# ---------------------------------------------------------------------------- names


def _no_address(error: ListenError) -> str:
    code, named = error.errno, error._named
    if named is None:  # unpickled, or made elsewhere: only the text is known
        try:
            read = Bind(str(error.address))
            named = read.host, read.port
        except (ValueError, TypeError):
            named = str(error.address), 0
    host, port = named[0] or "*", named[1]
    codes = {name: getattr(socket, name, None) for name in ("EAI_AGAIN", "EAI_SERVICE", "EAI_FAIL", "EAI_FAMILY")}
    if code == codes["EAI_AGAIN"]:
        return f"no name server answered for {host!r}: try again, or check the network and /etc/resolv.conf"
    if code == codes["EAI_SERVICE"] or (isinstance(port, str) and not _is_service(port)):
        return f"no service is called {port!r} here (/etc/services): write the port as a number"
    if code == codes["EAI_FAMILY"] or code == getattr(socket, "EAI_ADDRFAMILY", None):
        literal = _packed(host.partition("%")[0])
        other = (
            f"it is an address of IPv{'6' if len(literal) == 16 else '4'}"
            if literal
            else "its addresses are of the other family"
        )
        return f"{host!r} has no address of the family that was asked for ({other}): write tcp:// for any family"
    if code == codes["EAI_FAIL"]:
        return f"the name server refused to answer for {host!r}: a numeric address needs none"
    address, percent, zone = host.partition("%")
    if percent and _packed(address):
        return _no_interface(zone)
    if code in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None)):
        return f"no host is called {host!r} in /etc/hosts or DNS: check the spelling, or write the address"
    return ""


def _is_service(name: str) -> bool:
    try:
        socket.getservbyname(name, "tcp")
    except OSError:
        return False
    return True
