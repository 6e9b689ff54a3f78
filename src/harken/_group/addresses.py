"""One address of a group, in the kernel: a listener for each slot, or one for all.

    number   0      1        2        3        4       ...
             sink   slot 0   slot 1   slot 2   slot 3  ...     all are open as long as the group is

The kernel counts the members of a SO_REUSEPORT group in the order in which they began to listen, and gives the number
of one that is closed to the last one. So the sink, which has number 0, is closed last.

The sink takes nothing: its queue is full, and the kernel drops the first packet of whoever is sent there. Clients send
it again after a second.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from typing import Any

from .._errors import failure
from .._handshakes import families_of
from .._listen import bind
from .._listener import Listener
from .._socket import Socket, family_of
from .._steering import hurry, keep_filter, only_near, steer
from .._system import (
    AF_INET,
    AF_INET6,
    IPPROTO_TCP,
    OPTIONS,
    SO_LINGER,
    SOCK_STREAM,
    SOL_SOCKET,
)

_STRANGERS = 64  # sockets of others that may be found among ours


class Address:
    """One address of the group."""

    steered = False

    def __init__(self, first: Listener, options: dict[str, Any]) -> None:
        self.first = first  # the sink; else the listener that all share, or that of slot 0
        self.url = first.url
        self.options = options
        self.listeners: list[Listener] = []  # of the slots

    def slot(self) -> Listener:
        """The listener of one slot more."""
        return self.first

    def begin(self) -> None:
        self.first._begin(None)

    def steer(self, table: Sequence[int]) -> None:
        """Nothing, where it cannot be done."""

    def close(self) -> None:
        self.first.close()


class Balanced(Address):
    """A listener for each slot, among which the system chooses."""

    def begin(self) -> None:
        """Each begins with its slot."""

    def slot(self) -> Listener:
        made = self.first if not self.listeners else self._join()
        self.listeners.append(made)
        made._begin(None)
        return made

    def _join(self) -> Listener:
        return bind(self.url, reuse_port="join", **self.options)[0]

    def close(self) -> None:
        while self.listeners:
            self.listeners[-1].close()  # the last first: then none changes its number
            self.listeners.pop()
        self.first.close()


class Steered(Balanced):
    """A group of the kernel's, with a sink."""

    steered = True

    def __init__(self, first: Listener, options: dict[str, Any]) -> None:
        super().__init__(first, options)
        self.numbers: list[int] = []  # of the slots
        self.filler: Socket | None = None  # fills the sink's queue
        self.port = first.port
        self.defer = int(options.get("defer_accept") or 0)
        self.families = families_of(first)

    def begin(self) -> None:
        """The sink. Until the first slot listens, whoever connects finds its queue full, too."""
        # Not before bind(2): so no socket of others, and none of this process, is on the port.
        self.first.setsockopt(*OPTIONS["reuse_port"][0], 1)
        only_near(self.first, True)  # also where it cannot be filled: on an address or interface that we cannot reach
        self.first._begin(0)
        hurry(self.first, 0, 0)
        try:
            self.filler = self._connected()
        except OSError:
            self.filler = None
        steer(self.first, [0])

    def slot(self) -> Listener:
        made = self._join()
        self.listeners.append(made)  # whatever comes, it is closed with the others
        made._begin(None)
        self.numbers.append(self._number_of(made, (self.numbers or [0])[-1] + 1))
        keep_filter(made)
        return made

    def steer(self, table: Sequence[int]) -> None:
        steer(self.first, [self.numbers[slot] for slot in table] or [0])

    def probe(self, slot: int, table: Sequence[int]) -> Socket | None:
        """A connection of our own in the queue of this slot; None where we cannot connect. ``table`` as before."""
        if self.filler is None:
            return None
        client = self._client()
        try:
            client.setsockopt(SOL_SOCKET, SO_LINGER, bytes(8))  # who accepts it sees an end, and not a reset
            places = [self.numbers[one] for one in table] or [0]
            steer(self.first, places, client.getsockname()[1], self.numbers[slot])
            return self._connected(client, bool(self.defer))
        except OSError:
            client.close()
            return None
        finally:
            self.steer(table)

    def _client(self) -> Socket:
        """A client of our own, from which nothing is left behind when it is closed."""
        client = Socket(family_of(self.first), SOCK_STREAM, IPPROTO_TCP)
        try:
            ipv4, ipv6, _ = OPTIONS["ttl"]
            client.setsockopt(*(ipv4 if family_of(client) == AF_INET else ipv6), 255)  # see `only_near`
            client.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            client.bind(("0.0.0.0" if family_of(client) == AF_INET else "::", 0))
            client.settimeout(1)
        except BaseException:
            client.close()
            raise
        return client

    def _connected(self, client: Socket | None = None, speaks: bool = True) -> Socket:
        address: Any = self.first.getsockname()
        wildcard = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0])
        client = self._client() if client is None else client
        try:
            client.connect((wildcard, *address[1:]) if wildcard else address)
            if speaks:
                client.send(b"\0")  # for TCP_DEFER_ACCEPT
        except BaseException:
            client.close()
            raise
        return client

    def _number_of(self, listener: Listener, expected: int) -> int:
        """By trying: sockets of somebody else's with our user id may have joined before it."""
        if self.filler is None:
            return expected  # where we cannot connect, nobody can tell
        for number in range(expected, expected + _STRANGERS):
            client = self._client()
            listener.settimeout(0.2)
            try:
                steer(self.first, [0], client.getsockname()[1], number)
                self._connected(client)
                while True:  # others, sent to it before it had a number, are dropped as by one that does not listen
                    found, peer = listener.accept()
                    with found:
                        if peer[1] == client.getsockname()[1]:
                            return number
            except TimeoutError:
                continue
            finally:
                client.close()
                steer(self.first, [0])
                listener.settimeout(None)
        reason = OSError(errno.EADDRINUSE, "other sockets joined this group while it was made")
        raise failure("listen", listener.address, reason)

    def close(self) -> None:
        while self.listeners:
            self.listeners[-1].close()
            self.listeners.pop()
        self.first.close()
        if self.filler is not None:
            self.filler.close()


def for_address(options: dict[str, Any], listener: Listener) -> dict[str, Any]:
    """Of a bind that stands for both families, what has a meaning for one address."""
    if family_of(listener) != AF_INET6:
        return {name: value for name, value in options.items() if name != "ipv6_only"}
    return options


def answers() -> int:
    """How often the kernel repeats its answer to a client, by default."""
    try:
        with open("/proc/sys/net/ipv4/tcp_synack_retries", encoding="ascii") as file:
            return max(1, min(int(file.read()), 127))
    except (OSError, ValueError):
        return 5
