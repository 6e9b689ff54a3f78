"""How a server that accepts stops without losing a client: `Acceptor.drain`, `harken.asyncio.Server.drain`.

    no new connections → handshakes that have begun end → what is in the queue is accepted → listeners are closed

New connections are stopped by a lower bound for the TTL of packets (IP_MINTTL, IPV6_MINHOPCOUNT on Linux), which the
kernel looks at for the first packet of a connection, and not for those that end its handshake. It needs no privilege,
as a packet filter would. The client hears nothing, and sends its first packet again after a second; by then somebody
else may have the port, or it is refused. A unix socket has no handshake: its path is removed.
"""

from __future__ import annotations

import select
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ._handshakes import Client, families_of, handshakes, wait
from ._socket import Socket, family_of
from ._stats import queue
from ._steering import hurry, only_near
from ._system import AF_INET, AF_INET6, OPTIONS

if TYPE_CHECKING:
    from ._acceptor import Acceptor


class Drained:
    """What became of the clients of a server that was drained."""

    __slots__ = ("accepted", "finished", "left", "lost_at_most", "waited")

    accepted: int
    """Connections that were accepted since the drain began: they had been in the queue, or in the handshake."""
    finished: int
    """Connections that were open then, or were accepted since, and have ended by themselves."""
    left: int
    """Connections that were still open at the deadline."""
    lost_at_most: int | None
    """Handshakes that were still open at the deadline, and connections that were still in the queue: both are reset.
    None where new connections cannot be stopped, or handshakes not be seen."""
    waited: float
    """Seconds that it all took."""

    def __init__(self, accepted: int, finished: int, left: int, lost_at_most: int | None, waited: float) -> None:
        self.accepted = accepted
        self.finished = finished
        self.left = left
        self.lost_at_most = lost_at_most
        self.waited = waited

    def __repr__(self) -> str:
        return f"Drained({', '.join(f'{name}={getattr(self, name)}' for name in self.__slots__)})"


def drain(acceptor: Acceptor, deadline: float) -> Drained:
    begun = time.monotonic()
    until = begun + deadline
    before = acceptor.stats()
    listeners, shared = acceptor._begin_drain()
    lost: int | None = 0
    try:
        if not shared:
            lost = stop(listeners, until)
            while not acceptor.closed and waiting(listeners) and time.monotonic() < until:
                time.sleep(0.005)
            lost = added(lost, waiting(listeners))
    finally:  # also when it is interrupted: a listener that takes no new connections is of no use to anybody
        acceptor.close()
        for listener in listeners:
            listener.close()
    while acceptor.stats().open and time.monotonic() < until:
        time.sleep(0.01)
    return counted(acceptor, before.accepted, before.open, lost, begun)


def counted(acceptor: Acceptor, accepted: int, opened: int, lost: int | None, begun: float) -> Drained:
    after = acceptor.stats()
    since = after.accepted - accepted
    return Drained(since, opened + since - after.open, after.open, lost, time.monotonic() - begun)


def stop(listeners: Sequence[Socket], until: float) -> int | None:
    """No new connections to these; then waits for the handshakes. Returns how many are still open then."""
    outcomes = [_stop_one(listener) for listener in listeners]
    ports = [place for outcome in outcomes for place in outcome or ()]
    if not ports:
        return None if None in outcomes else 0

    def look() -> set[tuple[int, Client]]:
        return {(port, client) for port, families in ports for client in handshakes(port, families)}

    lost = wait(look, until, partial(int))
    return None if None in outcomes else lost


def _stop_one(listener: Socket) -> list[tuple[int, tuple[int, ...]]] | None:
    """The port, with families, whose handshakes are to be waited for, if there is one. None where new connections
    cannot be stopped."""
    if listener.fileno() < 0:  # closed, or given away, before
        return []
    entry = getattr(listener, "entry", None)  # the path of a unix socket
    if entry is not None:
        entry.remove()
        return []
    if family_of(listener) not in (AF_INET, AF_INET6):
        return []
    try:
        place = (listener.getsockname()[1], families_of(listener))
        hurry(listener, 1, 0)
        level, option = OPTIONS["reuse_port"][0] if "reuse_port" in OPTIONS else (0, 0)
        if level and listener.getsockopt(level, option):
            return [place]  # the kernel chooses it as before: who is dropped here would never get in
        only_near(listener, True)
    except OSError:
        return None
    return [place]


def waiting(listeners: Sequence[Socket]) -> int:
    """How many connections are in the queues; one for each where the system does not tell more than that some are."""
    found = 0
    for listener in listeners:
        try:
            queued = queue(listener)[0]
            found += int(_is_readable(listener)) if queued is None else queued
        except (OSError, ValueError):
            continue  # closed meanwhile
    return found


def _is_readable(listener: Socket) -> bool:
    poll = getattr(select, "poll", None)  # which takes any number; Windows' select() does, too
    if poll is None:
        return bool(select.select([listener.fileno()], [], [], 0)[0])
    one = poll()
    one.register(listener.fileno(), 1)  # POLLIN
    return bool(one.poll(0))


def added(lost: int | None, queued: int) -> int | None:
    return None if lost is None else lost + queued
