"""Sets options on sockets and reads them back, as `_option_table` describes each.

What `_plan` needs of a stage is one call: ``apply(sock, address, options, BEFORE_BIND)``.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from ._option_table import TABLE, Option, for_connections, set_at
from ._socket import family_of, set_at_accept
from ._system import AF_INET6, AF_UNIX, IPPROTO_IPV6, IPPROTO_MPTCP, IPV6_V6ONLY, OPTIONS, SETS_BOTH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._listener import Listener
    from ._options import Options
    from ._socket import Socket
    from ._types import Address


def apply(sock: Socket, address: Address, options: Options, stage: str) -> None:
    """Sets those of the options that belong to this stage. Raises a ListenError that names the option."""
    for option in set_at(stage):
        value = wanted(options, option)
        if value is not None:
            apply_one(sock, address, option, value)


def apply_one(sock: Socket, address: Address, option: Option, value: object) -> None:
    """Sets one option: setsockopt(2) for most. Raises a ListenError that names it."""
    try:
        if option.apply is not None:
            option.apply(sock, value)
        else:
            for level, number, data in calls(sock, option, value):
                sock.setsockopt(level, number, data)
    except OSError as reason:
        from ._errors import failure

        raise failure("setsockopt", address, reason, (option.name, value)) from None


def apply_to_connections(sock: Socket, options: Options) -> None:
    """Leaves with a listener what is to be set on each connection that it accepts: the options that connections are to
    have, and that this system does not pass on to them."""
    settings: list[tuple[int, int, bytes]] = []
    for option in for_connections():
        value = wanted(options, option)
        if value is not None and not _passed_on(sock, option):
            settings += calls(sock, option, value)
    if settings:
        set_at_accept(sock, settings)


def read_back(listener: Listener, name: str, options: Options) -> object:
    """The value that is in force; the one that was asked for where the system does not say."""
    option = TABLE[name]
    asked: object = getattr(options, name)
    if option.get is not None:
        value = option.get(listener)
        return asked if value is None else value
    if not option.sockopt or name not in OPTIONS:
        return asked
    level, number = numbers(listener, option)[0]
    if not isinstance(asked, str) or asked == "join":
        return option.kind.from_system(listener.getsockopt(level, number), asked)
    if isinstance(option.kind.to_system(asked, level), int):
        return asked  # an interface, of which this system knows the index
    return os.fsdecode(listener.getsockopt(level, number, 16).partition(b"\0")[0])


def wanted(options: Options, option: Option) -> object:
    """The value that is asked for, or implied by another option; None for neither."""
    value: object = getattr(options, option.name)
    if value is None and any(
        other.implies == option.name and getattr(options, other.name) is not None for other in TABLE.values()
    ):
        return True
    return value


def calls(sock: Socket, option: Option, value: object) -> Iterator[tuple[int, int, bytes]]:
    """What setsockopt() is to be called with: level, number, value."""
    if option.name not in OPTIONS:
        return  # off, which it always is where the system does not have it
    for level, number in numbers(sock, option):
        data = option.kind.to_system(value, level)
        yield level, number, struct.pack("=I", data) if isinstance(data, int) else data


def numbers(sock: Socket, option: Option) -> list[tuple[int, int]]:
    """Level and number. A socket of both families has two settings for what is in the IP header."""
    ipv4, ipv6, _ = OPTIONS[option.name]
    if family_of(sock) != AF_INET6:
        return [ipv4]
    both = ipv4 != ipv6 and SETS_BOTH and not sock.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY)
    return [ipv6, ipv4] if both else [ipv6]


def _passed_on(sock: Socket, option: Option) -> bool:
    """Whether connections inherit it. A plain TCP connection of an MPTCP listener does not inherit all (SO_BUSY_POLL,
    for example), and one of a unix socket inherits nothing."""
    if option.name not in OPTIONS:
        return True  # there is nothing to set
    return bool(OPTIONS[option.name][2]) and family_of(sock) != AF_UNIX and sock.proto != IPPROTO_MPTCP


def shortfalls(options: Options, listener: Listener | None) -> dict[str, str]:
    """The options that the system accepts without putting them in force, each with the text of a warning. Without a
    listener, by the settings of the system."""
    found = {}
    for name in options:
        rule = TABLE[name].in_force
        if rule is None:
            continue
        granted: object = None
        if listener is not None:
            try:
                granted = read_back(listener, name, options)
            except OSError:
                pass
        text = rule(getattr(options, name), granted if isinstance(granted, int) else None)
        if text:
            found[name] = text
    return found
