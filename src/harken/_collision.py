"""What an error of listen() records of the call's own sockets, as they are closed by the time it is printed."""

from __future__ import annotations

import os

from ._errors import AddressInUseError
from ._socket import state_of
from ._system import (
    AF_INET6,
    AF_UNIX,
    AF_VSOCK,
    IPPROTO_IPV6,
    IPV6_V6ONLY,
    JOINS_LATE,
    OPTIONS,
    SO_REUSEADDR,
    SOL_SOCKET,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._bind import Bind
    from ._listener import Listener
    from ._types import Address, HasOptions


def record_conflicts(
    error: BaseException,
    bind: Bind,
    takes_both: bool,
    interface: str,
    sock: Listener | None,
    others: list[tuple[Bind, Listener]],
) -> None:
    """Records in an AddressInUseError what it needs to tell whether two binds of the call conflict: the bind that
    failed, whether its sockets take both families, the interface that the last one was for, its socket if that is open,
    and the other sockets of the call."""
    if not isinstance(error, AddressInUseError):
        return
    error._bind, error._takes_both = str(bind), takes_both
    error._interface = interface if sock is None else interface_of(sock)
    facts = (_facts(of, other, bind, error.address) for of, other in others)
    error._own = tuple(one for one in facts if one is not None)


def _facts(
    of: Bind, other: Listener, bind: Bind, wanted: Address | str
) -> tuple[str, Address | str, str, bool, bool] | None:
    try:
        state, address = state_of(other), other.address
        if other.family == AF_UNIX:
            same = isinstance(wanted, str) and isinstance(address, str) and is_same_path(wanted, address)
            return (str(of), wanted, "", False, True) if same else None
        if other.family == AF_VSOCK:
            same = bind.cid is not None and address[1] in bind.ports
            return (str(of), wanted, "", False, True) if same else None
        stands = not JOINS_LATE or state == "listening" or not other.getsockopt(SOL_SOCKET, SO_REUSEADDR)
        both = other.family == AF_INET6 and not other.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY)
        return str(of), address, interface_of(other), both, stands
    except OSError:
        return None  # closed meanwhile, or of a kind that cannot be asked


def is_same_path(one: str, other: str) -> bool:
    """Whether two paths are the same entry of a directory. Two entries for one file, hard links, are not: each can have
    a socket of its own."""
    if one == other or one.startswith("\0") or other.startswith("\0"):
        return one == other
    (folder, name), (other_folder, other_name) = os.path.split(one), os.path.split(other)
    try:
        if name == other_name:
            return os.path.samefile(folder or ".", other_folder or ".")
        first, second = os.lstat(one), os.lstat(other)  # where case makes no difference
        return first.st_nlink == 1 and os.path.samestat(first, second)
    except OSError:
        return False


def is_given_twice(path: str, sockets: list[Listener]) -> bool:
    """Whether a socket of the same call has this path, or is taking it over: one would take it from the other."""
    for sock in sockets:
        if sock.family == AF_UNIX and isinstance(address := sock.address, str) and is_same_path(path, address):
            return True
    return False


def interface_of(sock: HasOptions) -> str:
    """The interface that a socket is bound to; empty for all of them, and where the system cannot be asked."""
    (level, option), _, _ = OPTIONS.get("interface", ((-1, 0), (-1, 0), False))
    if level != SOL_SOCKET:
        return ""
    try:
        return os.fsdecode(sock.getsockopt(level, option, 16).partition(b"\0")[0])
    except OSError:
        return ""
