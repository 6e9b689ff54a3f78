"""What is counted: the accept queue by the system, accepting by an `Acceptor`."""

from __future__ import annotations

import os
from _warnings import warn  # of C, as warnings has it: that module may not be loaded yet, and now be out of reach

from ._loading import Later, load
from ._socket import Socket, describe, drops_of, queue_of
from ._system import AF_INET, AF_INET6, AF_UNIX, HAS_PROC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, ClassVar

    from . import _types
else:
    _types = Later("harken._types")


class ListenerStats:
    """Figures of a listener; None where the system does not report one. The counters start when the socket is made,
    those of the namespace when the namespace is: compare two readings."""

    __slots__ = ("backlog", "drops", "namespace_drops", "namespace_overflows", "overflows", "queued")

    queued: int | None
    """Connections that are established and wait for accept(): Linux, FreeBSD."""
    backlog: int | None
    """How many may wait: Linux, FreeBSD. When it is full, Linux leaves clients to try again, Windows refuses them."""
    overflows: int | None
    """How often, at most, a connection found the queue of this TCP listener full: Linux. For one listener Linux counts
    only drops, for any reason, and overflows only for the whole network namespace: this is the smaller of the two."""
    drops: int | None
    """How often this TCP listener dropped a connection, because its queue was full or for any other reason: Linux."""
    namespace_overflows: int | None
    """How often a connection found its queue full: of all TCP listeners in this network namespace of Linux together.
    None for a unix socket."""
    namespace_drops: int | None
    """How often one of them dropped a connection for this or any other reason."""

    def __init__(
        self,
        queued: int | None,
        backlog: int | None,
        overflows: int | None,
        drops: int | None,
        namespace_overflows: int | None = None,
        namespace_drops: int | None = None,
    ) -> None:
        self.queued = queued
        self.backlog = backlog
        self.overflows = overflows
        self.drops = drops
        self.namespace_overflows = namespace_overflows
        self.namespace_drops = namespace_drops

    def __repr__(self) -> str:
        return f"ListenerStats({', '.join(f'{name}={getattr(self, name)}' for name in _OF_LISTENERS)})"


_OF_LISTENERS = ("queued", "backlog", "overflows", "drops", "namespace_overflows", "namespace_drops")


class AcceptorStats:
    """Counters of an `Acceptor`, as they were when it was asked."""

    __slots__ = ("accepted", "engine", "failed", "high_water", "open", "paused", "pauses", "shed")

    accepted: int
    """Connections that were accepted."""
    open: int
    """Connections that are open now, or were given away and not released."""
    high_water: int
    """The most that were open at once."""
    shed: int
    """Clients that were accepted and closed at once, for want of descriptors."""
    failed: dict[int, int]
    """How often accepting failed, by error number: connections that died waiting, and EMFILE and its like."""
    pauses: int
    """How often it stopped by itself: at the limit of open connections, or for want of descriptors."""
    paused: float
    """For how many seconds in all."""
    engine: str
    """How it takes connections: "io_uring", "accept4", "kqueue", "acceptex", "accept"."""

    def __init__(
        self,
        accepted: int,
        open: int,
        high_water: int,
        shed: int,
        failed: dict[int, int],
        pauses: int,
        paused: float,
        engine: str,
    ) -> None:
        facts = (accepted, open, high_water, shed, failed, pauses, paused, engine)
        for name, value in zip(_FACTS, facts, strict=True):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"AcceptorStats do not change: {name}")

    def __reduce__(self) -> tuple[Any, ...]:
        return AcceptorStats, tuple(getattr(self, name) for name in _FACTS)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AcceptorStats):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _FACTS)

    if TYPE_CHECKING:  # as a class has it that defines __eq__ and no __hash__
        __hash__: ClassVar[None]  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"AcceptorStats({', '.join(f'{name}={getattr(self, name)!r}' for name in _FACTS)})"


_FACTS = ("accepted", "open", "high_water", "shed", "failed", "pauses", "paused", "engine")


def stats(listener: _types.HasFileno | int) -> ListenerStats:
    """The state of the accept queue of a listener, of any object with a ``fileno()``, or of a handle.

    Read on Linux by getsockopt(TCP_INFO, SO_MEMINFO) and from /proc/net/netstat, for a unix socket by sock_diag(7); on
    FreeBSD by SO_LISTENQLEN. Raises OSError for what is not an open socket.
    """
    if isinstance(listener, (tuple, list)):
        raise TypeError("stats() takes one listener; for each of several: [one.stats() for one in listeners]")
    handle: Any = listener if isinstance(listener, Socket) else getattr(listener, "fileno", lambda: listener)()
    queued, backlog = queue(handle)
    if describe(handle)[0] not in (AF_INET, AF_INET6):
        return ListenerStats(queued, backlog, None, None)
    drops = drops_of(handle)
    of_all = _dropped()
    overflows = drops if drops is None or of_all[0] is None else min(drops, of_all[0])
    return ListenerStats(queued, backlog, overflows, drops, *of_all)


def queue(handle: int | Socket) -> tuple[int | None, int | None]:
    """How many connections wait, and how many may: `queue_of`, and Linux's unix sockets."""
    found = queue_of(handle)
    if found[1] is None and describe(handle)[0] == AF_UNIX:
        return _unix_queue(handle.fileno() if isinstance(handle, Socket) else handle)
    return found


_SHOW_QUEUE, _QUEUE = 0x10, 4
_LISTEN = 10


def _unix_queue(handle: int) -> tuple[int | None, int | None]:
    """From the kernel, about the socket with this inode. It is asked for no other, however many there are."""
    try:
        struct, netlink = load("struct"), load("harken._diagnosis.netlink")
        inode = os.fstat(handle).st_ino & 0xFFFFFFFF
        request = struct.pack("=BBxxIIIII", AF_UNIX, 0, 1 << _LISTEN, inode, _SHOW_QUEUE, 0xFFFFFFFF, 0xFFFFFFFF)
        body = netlink.ask(netlink.SOCK_DIAG, netlink.DIAG_BY_FAMILY, request)
    except OSError:  # no netlink, or not for us; or the socket is of another network namespace
        return None, None
    two = netlink.attributes(body[16:]).get(_QUEUE)
    if body[2] != _LISTEN or two is None:
        return None, None
    queued, limit = struct.unpack("=II", two)
    return queued, limit


def _dropped() -> tuple[int | None, int | None]:
    """The counters of Linux: a line of names, and under it a line of numbers."""
    if not HAS_PROC:
        return None, None
    try:
        with open("/proc/net/netstat", "rb") as table:  # as bytes: a codec might have to be loaded
            lines = [line.split() for line in table if line.startswith(b"TcpExt:")]
        counters = dict(zip(*lines, strict=True))
    except (OSError, TypeError, ValueError):
        return None, None  # hidden, or not what Linux writes
    overflows, drops = counters.get(b"ListenOverflows"), counters.get(b"ListenDrops")
    return None if overflows is None else int(overflows), None if drops is None else int(drops)


def warn_if_less(asked: Iterable[tuple[Socket, int]], level: int = 2) -> None:
    """Warns of listeners whose queue is shorter than was asked for, once for all of a call; -1 asks for the most.
    Python shows a warning once for each line of code that it comes from; ``level`` says how far up that line is, 2
    being the caller."""
    for listener, backlog in asked:
        try:
            granted = queue(listener.fileno())[1] if backlog >= 0 else None
        except OSError:
            granted = None  # nothing is told, as where the system cannot be asked
        if granted is not None and granted < backlog:
            wished = min(backlog, 0x7FFFFFFF)
            if HAS_PROC:
                setting, container = "net.core.somaxconn", f"; for a container --sysctl net.core.somaxconn={wished}"
            else:
                setting, container = "kern.ipc.soacceptqueue", ""
            warn(
                f"a backlog of {backlog} was asked for, and the system grants {granted}: when that many connections"
                " wait, further ones are dropped and have to be retried. To raise the limit:"
                f" sysctl -w {setting}={wished}{container}",
                RuntimeWarning,
                stacklevel=level,
            )
            return
