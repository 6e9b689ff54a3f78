"""How one bind is opened when options are asked for: what is set on its sockets, and when.

    socket → `prepare` → bind → `bound` → `made` → listen → `listening` → accept, with what `made` left for it

Before bind(2) stands whatever decides about the address, and whatever the handshake of a connection already needs: the
buffers, for one, set the window that is offered. After listen(2) stands what this system takes only from a listener.
Connections have the rest from their listener; what this system does not pass on is set on each of them.
"""

from __future__ import annotations

import os
from _warnings import warn  # of C: the module warnings may be out of reach by now
from typing import TYPE_CHECKING, Self

from ._listener import Listener
from ._loading import load
from ._option_table import AFTER_LISTEN, BEFORE_BIND, TABLE
from ._options import Options
from ._socket import Socket, family_of, numbers_of
from ._sockopt import apply, apply_one, apply_to_connections, read_back, shortfalls
from ._system import AF_INET6, IPPROTO_IPV6, IPV6_V6ONLY, JOINS_LATE, SO_REUSEADDR, SOL_SOCKET

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ._types import Address


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
        if self.guards and not JOINS_LATE and not joining and address[1]:
            error = _taken(sock, address)
            if error:
                return error
        if options.reuse_port and (joining or options.reuse_port == "join" or not JOINS_LATE):
            self._share(sock, address)
        apply(sock, address, options, BEFORE_BIND)
        if options.configure is not None:
            self.configuring = True
            options.configure(sock, address)
            self.configuring = False
            if sock.fileno() < 0:
                raise ValueError("configure() has closed the socket, which is to be bound next")
            from ._collision import interface_of

            self.interface = interface_of(sock)
        return 0

    def _share(self, sock: Socket, address: Address) -> None:
        apply_one(sock, address, TABLE["reuse_port"], self.options.reuse_port)

    def bound(self, sock: Socket, address: Address) -> None:
        """After bind(2), of a port that is held until it listens: from here on this process may have others beside it.
        Before bind(2) it would have let in other processes too."""
        if self.guards and JOINS_LATE:
            self._share(sock, address)

    def may_join(self, sock: Socket, before: Iterable[Socket]) -> bool:
        """After listen(2) found somebody who listens: is it one of this process's own group? ``before``: those of the
        same call that listen by now, of which it is known without the system's tables, and where /proc is hidden."""
        if not (self.guards and JOINS_LATE):
            return False
        address = sock.getsockname()
        if address not in [one.getsockname() for one in before] and not self.is_ours(address, "listening"):
            return False
        self._share(sock, address)
        return True

    def listening(self, sock: Socket) -> None:
        """After listen(2)."""
        address = sock.getsockname()
        if self.guards and JOINS_LATE:
            # Not earlier: listen(2) refuses all but one of those that bound the port at the same moment, unless they
            # are to share it already.
            self._share(sock, address)
        apply(sock, address, self.options, AFTER_LISTEN)

    def made(self, sock: Socket) -> None:
        """When all addresses are bound: what connections get when they are accepted, whoever calls listen(2)."""
        apply_to_connections(sock, self.options)

    def shortfalls(self, listener: Listener | None) -> dict[str, str]:
        """What is to be said of each option that is not in force, or not whole. Without a listener, by the settings."""
        return shortfalls(self.options, listener)

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
        apply(listener, address, self.options, BEFORE_BIND)
        return TunedListener.of(self)


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
