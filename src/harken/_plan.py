"""How one bind is opened when options are asked for: what is set on its sockets, and when.

    socket → `prepare` → bind → `bound` → `made` → listen → `listening` → accept, with what `made` left for it

Before bind(2) stands whatever decides about the address, and whatever the handshake of a connection already needs: the
buffers, for one, set the window that is offered. After listen(2) stands what this system takes only from a listener.
Connections have the rest from their listener; what this system does not pass on is set on each of them.
"""

from __future__ import annotations

import os
import struct
from _warnings import warn  # of C: the module warnings may be out of reach by now
from typing import TYPE_CHECKING, Self

from ._in_force import shortfalls
from ._listener import Listener
from ._loading import load
from ._options import Options
from ._socket import Socket, family_of, numbers_of, set_at_accept, set_exclusive
from ._system import (
    AF_INET6,
    AF_UNIX,
    BUFFER_FACTOR,
    FASTOPEN_EARLY,
    FASTOPEN_MOST,
    IPPROTO_IPV6,
    IPPROTO_MPTCP,
    IPV6_V6ONLY,
    JOINS_LATE,
    OPTIONS,
    SETS_BOTH,
    SO_REUSEADDR,
    SOL_SOCKET,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ._types import Address

_AFTER = () if FASTOPEN_EARLY else ("fastopen",)
_BEFORE = tuple(name for name in OPTIONS if name not in _AFTER and name != "reuse_port")
_OF_CONNECTIONS = (
    "nodelay", "keepalive", "keepalive_idle", "keepalive_interval", "keepalive_count", "user_timeout", "rcvbuf",
    "sndbuf", "mark", "tos", "ttl", "congestion", "priority", "busy_poll",
)  # fmt: skip
_IMPLY_KEEPALIVE = ("keepalive_idle", "keepalive_interval", "keepalive_count")


class Plan:
    """What is to be done to the sockets of one bind."""

    __slots__ = ("backlog", "configuring", "interface", "options", "takes_both")

    interface: str
    """Of the last socket that was prepared: an error has to tell which interface was asked for."""
    backlog: int
    """For listen(2); -1 for the most."""
    takes_both: bool
    """IPv6 sockets take IPv4 too."""
    configuring: bool
    """The caller's own function is running, or has failed."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.interface = options.interface or ""
        self.backlog = -1 if options.backlog is None else min(options.backlog, 0x7FFFFFFF)
        self.takes_both = options.ipv6_only is False
        self.configuring = False
        if options.owner is not None or options.group is not None:
            from ._unix import group_id, user_id

            user_id(options.owner)  # a name that nobody has is found out before there is a socket
            group_id(options.group)

    def listener(self) -> TunedListener:
        """A listener that knows what was asked for, without a socket yet."""
        return TunedListener.of(self)

    @property
    def guards(self) -> bool:
        """Is the port kept from other processes although it is to be shared?"""
        return self.options.reuse_port is True

    def concerned(self, step: str) -> tuple[str, object] | None:
        """The option that an error of this step has to do with."""
        return ("reuse_port", True) if step in ("bind", "listen") and self.guards else None

    def is_ours(self, address: Address, *states: str) -> bool:
        """Is the group on this address one that this process has? With an address that only overlaps it may be in
        another one."""
        try:
            holders = load("harken._diagnosis.holders").holders
            found = [holder for holder in holders(address) if holder.address[:2] == address[:2]]
            return os.getpid() in {holder.pid for holder in found if not states or holder.state in states}
        except (OSError, ValueError):
            return False

    def prepare(self, sock: Socket, address: Address, joining: bool) -> int:
        """Between socket(2) and bind(2). ``joining``: into a group that is there already. Answers with an error number
        where the port is somebody's and bind(2) would not say so, else 0."""
        options = self.options
        if options.exclusive is not None and family_of(sock) != AF_UNIX:
            _attempt(address, "exclusive", options.exclusive, set_exclusive, sock, options.exclusive)
        if options.inheritable is not None:
            sock.set_inheritable(options.inheritable)
        if self.guards and not JOINS_LATE and not joining and address[1]:
            error = _taken(sock, address)
            if error:
                return error
        if options.reuse_port and (joining or options.reuse_port == "join" or not JOINS_LATE):
            self._set(sock, address, "reuse_port", 1)
        self.tune(sock, address)
        if options.configure is not None:
            self.configuring = True
            options.configure(sock, address)
            self.configuring = False
            if sock.fileno() < 0:
                raise ValueError("configure() has closed the socket, which is to be bound next")
            from ._collision import interface_of

            self.interface = interface_of(sock)
        return 0

    def tune(self, sock: Socket, address: Address) -> None:
        """The system's own options."""
        for name, value in self._values(_BEFORE):
            self._set(sock, address, name, value)

    def bound(self, sock: Socket, address: Address) -> None:
        """After bind(2), of a port that is held until it listens: from here on this process may have others beside it.
        Before bind(2) it would have let in other processes too."""
        if self.guards and JOINS_LATE:
            self._set(sock, address, "reuse_port", 1)

    def may_join(self, sock: Socket, before: Iterable[Socket]) -> bool:
        """After listen(2) found somebody who listens: is it one of this process's own group? ``before``: those of the
        same call that listen by now, of which it is known without the system's tables, and where /proc is hidden."""
        if not (self.guards and JOINS_LATE):
            return False
        address = sock.getsockname()
        if address not in [one.getsockname() for one in before] and not self.is_ours(address, "listening"):
            return False
        self._set(sock, address, "reuse_port", 1)
        return True

    def listening(self, sock: Socket) -> None:
        """After listen(2)."""
        address = sock.getsockname()
        if self.guards and JOINS_LATE:
            # Not earlier: listen(2) refuses all but one of those that bound the port at the same moment, unless they
            # are to share it already.
            self._set(sock, address, "reuse_port", 1)
        for name, value in self._values(_AFTER):
            self._set(sock, address, name, value)

    def made(self, sock: Socket) -> None:
        """When all addresses are bound: what connections get when they are accepted, whoever calls listen(2)."""
        at_accept = b"".join(
            _packed(*number, _value(name, value, number[0]))
            for name, value in self._values(_OF_CONNECTIONS)
            for number in _numbers(name, sock)
            # Of an MPTCP listener a plain TCP connection does not have all: busy_poll, for one.
            if not OPTIONS[name][2] or family_of(sock) == AF_UNIX or sock.proto == IPPROTO_MPTCP
        )
        if at_accept:
            set_at_accept(sock, at_accept)

    def shortfalls(self, listener: Listener | None) -> dict[str, str]:
        """What is to be said of each option that is not in force, or not whole. Without a listener, by the settings."""

        def granted(name: str) -> object:
            try:
                return None if listener is None else read_back(listener, name, self.options)
            except OSError:
                return None

        return dict(shortfalls(self.options, granted))

    def warn(self, bind: str, listeners: Sequence[Listener]) -> None:
        """Of options that the system took without an error and that are not in force: once for all of a bind."""
        told: dict[str, str] = {}
        for listener in listeners:
            told = self.shortfalls(listener) | told
        for text in told.values():
            warn(f"{bind}: {text}", RuntimeWarning, stacklevel=2)

    def adopted(self, listener: Listener) -> TunedListener:
        """For a socket that somebody else has bound: what it is to be replaced by, when its options are set."""
        address = listener.address
        self.tune(listener, address)
        if self.options.inheritable is not None:
            listener.set_inheritable(self.options.inheritable)
        return TunedListener.of(self)

    def _values(self, names: tuple[str, ...]) -> Iterator[tuple[str, object]]:
        for name in names:
            value = getattr(self.options, name)
            if (
                name == "keepalive"
                and value is None
                and any(getattr(self.options, other) is not None for other in _IMPLY_KEEPALIVE)
            ):
                value = True
            if value is not None:
                yield name, min(int(value), FASTOPEN_MOST) if name == "fastopen" else value

    def _set(self, sock: Socket, address: Address, name: str, value: object) -> None:
        for number in _numbers(name, sock):
            _attempt(address, name, value, _set_one, sock, number, name, value)


def _taken(sock: Socket, address: Address) -> int:
    """Where a socket joins at bind(2), one that does not join finds out whether there is anything to join."""
    with Socket(*numbers_of(sock)) as probe:
        probe.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        if family_of(sock) == AF_INET6:
            probe.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, sock.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY))
        try:
            probe.bind(address)
        except OSError as reason:
            return reason.errno or 0
    return 0


class TunedListener(Listener):
    """A listener whose options were asked for."""

    __slots__ = ("plan",)

    plan: Plan

    @classmethod
    def of(cls, plan: Plan) -> Self:
        self = cls.__new__(cls)
        self.plan = plan
        return self

    def _twin(self) -> TunedListener:
        return TunedListener.of(self.plan)

    def _begin(self, backlog: int | None) -> int:
        asked = super()._begin(backlog)
        try:
            self.plan.listening(self)
        except OSError as reason:
            raise self._failed("setsockopt", reason) from None
        return asked

    @property
    def options(self) -> Mapping[str, object]:
        return {name: read_back(self, name, self.plan.options) for name in self.plan.options if name != "configure"}


def read_back(sock: Listener, name: str, asked: Options) -> object:
    """An option as the system has it now; as it was asked for where the system cannot be asked."""
    value: object = getattr(asked, name)
    if name == "backlog":
        granted = sock.backlog
        return value if granted is None else granted
    if name == "inheritable":
        return sock.get_inheritable()
    if name == "ipv6_only":
        return bool(sock.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY)) if family_of(sock) == AF_INET6 else value
    if name in ("mode", "owner", "group", "exclusive") or name not in OPTIONS:
        return value
    level, option = _numbers(name, sock)[0]
    if name == "interface" and level != SOL_SOCKET:
        return value  # by its index
    if name in ("interface", "congestion"):
        return os.fsdecode(sock.getsockopt(level, option, 16).partition(b"\0")[0])
    told = sock.getsockopt(level, option)
    if isinstance(value, bool):
        return bool(told)
    if value == "join":
        return value if told else False
    if name in ("rcvbuf", "sndbuf"):
        return told // BUFFER_FACTOR
    return told & 0xFFFFFFFF if name == "mark" else told


def _numbers(name: str, sock: Socket) -> list[tuple[int, int]]:
    """Level and option. A socket of both families has two settings for what stands in the IP header."""
    ipv4, ipv6, _ = OPTIONS[name]
    if family_of(sock) != AF_INET6:
        return [ipv4]
    both = ipv4 != ipv6 and SETS_BOTH and not sock.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY)
    return [ipv6, ipv4] if both else [ipv6]


def _value(name: str, value: object, level: int) -> int | bytes:
    if not isinstance(value, str):
        return int(value)  # type: ignore[call-overload,no-any-return]
    if name == "interface" and level != SOL_SOCKET:
        import socket

        return socket.if_nametoindex(value)
    return os.fsencode(value)


def _set_one(sock: Socket, number: tuple[int, int], name: str, asked: object) -> None:
    value = _value(name, asked, number[0])
    sock.setsockopt(*number, struct.pack("=I", value) if isinstance(value, int) else value)


def _packed(level: int, option: int, value: int | bytes) -> bytes:
    """As `Socket` reads it: level, option, size, value, and on to the next multiple of four."""
    data = struct.pack("=I", value) if isinstance(value, int) else value
    return struct.pack("=iii", level, option, len(data)) + data + bytes(-len(data) % 4)


def _attempt(address: Address, name: str, value: object, call: Callable[..., None], *arguments: object) -> None:
    try:
        call(*arguments)
    except OSError as reason:
        from ._errors import failure

        raise failure("setsockopt", address, reason, (name, value)) from None
