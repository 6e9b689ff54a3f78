"""How the sockets of one bind are opened: a `Plan`, which each `Listener` keeps.

    socket → `before_bind` → bind → `after_bind` → listen → `after_listen` → accept

The options that decide about the address are set before bind(2), and so are those that the handshake of a connection
already needs: the buffers set the window that is offered, for example. After listen(2) comes what this system takes
only from a listener. Connections inherit the rest from their listener; what this system does not pass on is kept by the
listener, and set on each connection. `harken._option_table` says which option belongs where.

Most calls ask for no option, and `import harken` loads this module, but none of those that know the options.
"""

from __future__ import annotations

import os
from _warnings import warn  # of C: the module warnings may be out of reach by now
from _weakref import ref

from ._loading import load
from ._socket import Socket, family_of, numbers_of, state_of
from ._system import AF_INET6, IPPROTO_IPV6, IPV6_V6ONLY, JOINS_LATE, SO_REUSEADDR, SOL_SOCKET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from ._listener import Listener
    from ._options import Options
    from ._types import Address


class Plan:
    """How the sockets of one bind are opened. It does not change."""

    __slots__ = ("backlog", "configure", "interface", "options", "shares", "takes_both")

    options: Options | None
    """None where nothing is asked for but a backlog."""
    backlog: int
    """For listen(2); -1 asks for the most."""
    takes_both: bool
    """Whether an IPv6 socket takes IPv4 too."""
    shares: bool
    """Whether other sockets of this process may have the port too, and those of other processes not."""
    interface: str
    """The network interface that is asked for, or empty."""
    configure: Callable[[Any, Any], object] | None
    """The caller's own function, which is called between socket(2) and bind(2)."""

    def __init__(self, options: Options | None = None, backlog: int = -1) -> None:
        self.options, self.backlog = options, backlog
        self.takes_both, self.shares, self.interface, self.configure = False, False, "", None
        if options is None:
            return
        if options.backlog is not None:
            self.backlog = min(options.backlog, 0x7FFFFFFF)
        self.takes_both, self.shares = options.ipv6_only is False, options.reuse_port is True
        self.interface, self.configure = options.interface or "", options.configure
        if options.owner is not None or options.group is not None:
            from ._unix import group_id, user_id

            user_id(options.owner)  # an unknown name is an error before there is a socket
            group_id(options.group)

    def __repr__(self) -> str:
        asked = {"backlog": self.backlog} if self.backlog >= 0 else {}
        if self.options is not None:
            asked = {name: self.asked(name) for name in self.options}
        return f"<Plan {', '.join(f'{name}={value!r}' for name, value in asked.items()) or 'with no options'}>"

    def asked(self, name: str) -> Any:
        """The value of an option; None where it was not asked for."""
        return getattr(self.options, name, None)

    def concerned(self, step: str) -> tuple[str, object] | None:
        """The option that an error of this step may be due to."""
        return ("reuse_port", True) if self.shares and step in ("bind", "listen") else None

    # ------------------------------------------------------------------ the steps

    def before_bind(self, sock: Socket, address: Address | str, joins: bool) -> int:
        """Sets options on a new socket. ``joins``: a group of sockets that share the port already. Returns an error
        number where the port is in use and bind(2) would not say so, else 0."""
        options = self.options
        if options is None:
            return 0
        if self.shares and not JOINS_LATE and not joins and address[1]:
            error = _in_use(sock, address)
            if error:
                return error
        if options.reuse_port and (joins or options.reuse_port == "join" or not JOINS_LATE):
            self._share(sock, address)
        _sockopt().apply(sock, address, options, _table().BEFORE_BIND)
        return 0

    def after_bind(self, sock: Listener, reserves: bool) -> None:
        """``reserves``: it will listen later. Then from here on this process may have other sockets on the port.
        Before bind(2), SO_REUSEPORT would have let in other processes too."""
        if self.options is None:
            return
        if reserves and self.shares and JOINS_LATE:
            self._share(sock, sock.address)
        _sockopt().apply_to_connections(sock, self.options)

    def after_listen(self, sock: Listener) -> None:
        """Sets what is set on a socket that listens."""
        if self.options is None:
            return
        address = sock.address
        if self.shares and JOINS_LATE:
            # Not earlier: of several sockets that were bound to the port at one moment, listen(2) refuses all but one,
            # unless they share it already.
            self._share(sock, address)
        _sockopt().apply(sock, address, self.options, _table().AFTER_LISTEN)

    def when_inherited(self, sock: Listener) -> None:
        """Sets options on a socket that somebody else has bound."""
        if self.options is not None:
            _sockopt().apply(sock, sock.address, self.options, _table().BEFORE_BIND)
            _sockopt().apply_to_connections(sock, self.options)

    def _share(self, sock: Socket, address: Address | str) -> None:
        _sockopt().apply_one(sock, address, _table().TABLE["reuse_port"], True)
        _sharing.append(ref(sock, _sharing.remove))

    # ------------------------------------------------------------------ sharing a port

    def is_ours(self, address: Address, *states: str) -> bool:
        """Whether this process has a socket on exactly this address, in one of the states if there are any: then it is
        the group to join. On an address that only overlaps there may be another group. A listener that has given its
        socket away is found in the system's tables only."""
        if any(_has(one(), address, states) for one in _sharing.copy()):
            return True
        try:
            found = [
                one for one in load("harken._diagnosis.holders").holders(address) if one.address[:2] == address[:2]
            ]
            return os.getpid() in {one.pid for one in found if not states or one.state in states}
        except (OSError, ValueError):
            return False

    def may_join(self, sock: Socket, before: Iterable[Socket]) -> bool:
        """After listen(2) found the port in use: whether by this process's own group; then the socket joins it.
        ``before`` are the sockets of the same call that listen by now, for which no table of the system is needed, nor
        /proc, which may be hidden."""
        if not (self.shares and JOINS_LATE):
            return False
        address = sock.getsockname()
        if address not in [one.getsockname() for one in before] and not self.is_ours(address, "listening"):
            return False
        self._share(sock, address)
        return True

    # ------------------------------------------------------------------ what is in force

    def shortfalls(self, listener: Listener | None) -> dict[str, str]:
        """Options that are not in force, or not fully, each with a text. Without a listener, by the system's
        settings."""
        return {} if self.options is None else _sockopt().shortfalls(self.options, listener)

    def warn(self, bind: str, listeners: Sequence[Listener]) -> None:
        """Warns of options that the system took without an error and that are not in force: once for all of a bind."""
        if self.options is None:
            return
        told: dict[str, str] = {}
        for listener in listeners:
            told = self.shortfalls(listener) | told
        for text in told.values():
            warn(f"{bind}: {text}", RuntimeWarning, stacklevel=2)

    def read_back(self, listener: Listener) -> Mapping[str, object]:
        """The options that were asked for, with the values that the system has."""
        options = self.options
        if options is None:
            return {}
        of_one = _sockopt().read_back
        return {name: of_one(listener, name, options) for name in options if name != "configure"}


DEFAULT = Plan()

_sharing: list[ref[Socket]] = []
"""This process's sockets that share their port, known without the system's tables: /proc may be hidden."""


def _has(sock: Socket | None, address: Address, states: tuple[str, ...]) -> bool:
    try:
        return sock is not None and sock.getsockname()[:2] == address[:2] and (not states or state_of(sock) in states)
    except OSError:  # it is closed, or was given away
        return False


def _sockopt() -> Any:
    return load("harken._sockopt")


def _table() -> Any:
    return load("harken._option_table")


def _in_use(sock: Socket, address: Address | str) -> int:
    """Where a socket joins a group in bind(2), one that does not join finds out whether there is anything to join."""
    with Socket(*numbers_of(sock)) as probe:
        probe.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        if family_of(sock) == AF_INET6:
            probe.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, sock.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY))
        try:
            probe.bind(address)
        except OSError as reason:
            return reason.errno or 0
    return 0
