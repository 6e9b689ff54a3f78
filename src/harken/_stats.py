"""The accept queue, as the system tells it."""

from __future__ import annotations

from ._constants import AF_UNIX
from ._socket import queue_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._types import HasFileno


class ListenerStats:
    """What the system tells of a listener; None for what it does not tell."""

    __slots__ = ("backlog", "drops", "overflows", "queued")

    queued: int | None
    """Connections that are established and wait for accept(): Linux, FreeBSD."""
    backlog: int | None
    """How many may wait: Linux, FreeBSD. When it is full, Linux leaves clients to try again, Windows refuses them."""
    overflows: int | None
    """How often a connection found its queue full: of all TCP listeners in this network namespace of Linux together,
    since it was made; None of a unix socket. It is the change between two readings that tells something."""
    drops: int | None
    """How often a TCP listener dropped a connection for this or any other reason; counted like ``overflows``."""

    def __init__(self, queued: int | None, backlog: int | None, overflows: int | None, drops: int | None) -> None:
        self.queued = queued
        self.backlog = backlog
        self.overflows = overflows
        self.drops = drops

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={getattr(self, name)}" for name in ("queued", "backlog", "overflows", "drops"))
        return f"ListenerStats({facts})"


def stats(listener: HasFileno | int) -> ListenerStats:
    """The accept queue of a listener, of any object with a ``fileno()``, or of a handle.

    On Linux by getsockopt(TCP_INFO) and /proc/net/netstat, of unix sockets by sock_diag; on FreeBSD by SO_LISTENQLEN.
    Raises OSError for what is no open socket.
    """
    handle = listener.fileno() if hasattr(listener, "fileno") else listener
    queued, backlog = queue_of(handle)
    unix = _unix_queue(handle) if backlog is None else None
    return ListenerStats(*unix, None, None) if unix else ListenerStats(queued, backlog, *_dropped())


def queue(handle: int) -> tuple[int | None, int | None]:
    """How many connections wait, and how many may; None where the system does not tell. Raises OSError as `stats`."""
    queued, backlog = queue_of(handle)
    return ((queued, backlog) if backlog is not None else _unix_queue(handle)) or (queued, None)


def _unix_queue(handle: int) -> tuple[int | None, int | None] | None:
    """The same of a unix socket, which Linux tells over sock_diag; None for what is none, or is not told of."""
    import os
    import struct

    from . import _netlink

    try:
        show_queue, any_cookie, listening, length = 0x10, 0xFFFFFFFF, 10, 4  # linux/unix_diag.h
        inode = os.fstat(handle).st_ino & 0xFFFFFFFF
        request = struct.pack("=BBxxIIIII", AF_UNIX, 0, 0xFFFFFFFF, inode, show_queue, any_cookie, any_cookie)
        body = _netlink.ask(_netlink.SOCK_DIAG, _netlink.DIAG_BY_FAMILY, request)
        queued, backlog = struct.unpack("=II", _netlink.attributes(body[16:])[length])
    except (OSError, OverflowError, KeyError):
        return None
    return (queued, backlog) if body[2] == listening else (None, None)


def _dropped() -> tuple[int | None, int | None]:
    """The counters of Linux: a line of names, and under it a line of numbers."""
    try:
        with open("/proc/net/netstat", encoding="ascii") as table:
            lines = [line.split() for line in table if line.startswith("TcpExt:")]
    except OSError:
        return None, None
    counters = dict(zip(*lines, strict=True))
    overflows, drops = counters.get("ListenOverflows"), counters.get("ListenDrops")
    return None if overflows is None else int(overflows), None if drops is None else int(drops)
