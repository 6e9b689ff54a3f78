"""What can be asked of a listening socket: names, types, limits, and which binds they have a meaning for.

Everything here is decided before a socket exists. `_plan` knows when each option is set; the numbers of this system are
in ``platform/options.h``.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from errno import EOPNOTSUPP
from typing import TYPE_CHECKING, Literal, NoReturn, Self

from ._resolve import normal_host
from ._socket import Socket
from ._system import EXCLUSIVE_IS_A_CHOICE, OPTIONS, SYSTEM, TAKES_BOTH
from ._types import Address

if TYPE_CHECKING:
    from ._bind import Bind


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of one call, checked and frozen. None leaves an option at its default.

    Numbers are in the system's own units. A value that is invalid on every system is a TypeError or a ValueError. For
    an option that this system lacks, `harken.listen` raises a ListenError that is also an io.UnsupportedOperation (and
    so a ValueError), which names the option and the system. All options are checked before a socket exists.
    """

    backlog: int | None = None
    reuse_port: bool | Literal["join"] | None = None
    ipv6_only: bool | None = None
    exclusive: bool | None = None
    nodelay: bool | None = None
    keepalive: bool | None = None
    keepalive_idle: int | None = None
    keepalive_interval: int | None = None
    keepalive_count: int | None = None
    user_timeout: int | None = None
    defer_accept: int | None = None
    fastopen: int | None = None
    rcvbuf: int | None = None
    sndbuf: int | None = None
    freebind: bool | None = None
    transparent: bool | None = None
    interface: str | None = None
    mark: int | None = None
    tos: int | None = None
    ttl: int | None = None
    mss: int | None = None
    congestion: str | None = None
    priority: int | None = None
    incoming_cpu: int | None = None
    busy_poll: int | None = None
    inheritable: bool | None = None
    mode: int | None = None
    owner: str | int | None = None
    group: str | int | None = None
    configure: Callable[[Socket, Address], object] | None = None

    def __post_init__(self) -> None:
        for name in self:
            _CHECKS[name](name, getattr(self, name))
            if name in _SWITCHES and getattr(self, name) != "join":
                object.__setattr__(self, name, bool(getattr(self, name)))
        if self.keepalive is False:
            for name in ("keepalive_idle", "keepalive_interval", "keepalive_count"):
                if getattr(self, name) is not None:
                    raise ValueError(f"keepalive is off, and {name} is set")
        if self.exclusive and self.reuse_port:
            raise ValueError("reuse_port is to share the port, exclusive not to")

    def __iter__(self) -> Iterator[str]:
        """The names of those that are set."""
        return (one.name for one in fields(self) if getattr(self, one.name) is not None)

    def over(self, others: Self) -> Self:
        """These, and where they leave one open, the others'."""
        return type(self)(
            **{name: getattr(others, name) for name in others} | {name: getattr(self, name) for name in self}
        )


Options.__slots__ = {  # type: ignore[assignment]  # where help() looks for what to say of each
    "backlog": ("listen(2): how many connections may wait. By default as many as the system grants."),
    "reuse_port": (
        "Several sockets on one port, among which the system spreads connections: SO_REUSEPORT on Linux, "
        "SO_REUSEPORT_LB on FreeBSD; elsewhere one socket would get them all. True begins such a group, or adds "
        'to one that this process has; a port that another process has is refused. ``"join"`` joins another '
        "process's group too, of the same user."
    ),
    "ipv6_only": (
        "IPV6_V6ONLY. True, the default, is IPv6 alone. False takes IPv4 on the same socket (its peers look like "
        "``::ffff:192.0.2.1``), so that a bind without a host is one socket instead of two."
    ),
    "exclusive": (
        "Nobody else may bind this address or one that overlaps it. Always so on Linux. On Windows "
        "SO_EXCLUSIVEADDRUSE, which is the default; on macOS and the BSDs True leaves SO_REUSEADDR off, and a "
        "restart waits for connections in TIME_WAIT. For a unix path False means to take it over from a live "
        "server."
    ),
    "nodelay": ("TCP_NODELAY: small writes are sent at once. On by default, and inherited by connections."),
    "keepalive": ("SO_KEEPALIVE: idle connections are probed, and dead ones end. Implied by the next three."),
    "keepalive_idle": ("TCP_KEEPIDLE, on macOS TCP_KEEPALIVE: seconds until the first probe."),
    "keepalive_interval": ("TCP_KEEPINTVL: seconds between probes."),
    "keepalive_count": ("TCP_KEEPCNT: after how many probes without an answer the connection is dead."),
    "user_timeout": ("TCP_USER_TIMEOUT (Linux): milliseconds that sent data may stay unacknowledged."),
    "defer_accept": (
        "TCP_DEFER_ACCEPT (Linux): seconds for which a connection that has sent nothing is not handed out. Linux "
        "rounds up to the times at which it repeats the handshake: 1, 3, 7, 15 and so on"
    ),
    "fastopen": (
        "TCP_FASTOPEN: how many connections may bring data with their first packet and wait; 0 is none. A length "
        "on Linux, on or off on macOS and FreeBSD, each of which may have switched it off (net.ipv4.tcp_fastopen "
        "needs 2 in it)."
    ),
    "rcvbuf": (
        "SO_RCVBUF: bytes of the receive buffer, which is what bounds the TCP window. Turns Linux's own tuning "
        "off, which is capped at net.core.rmem_max."
    ),
    "sndbuf": ("SO_SNDBUF: bytes of the send buffer; net.core.wmem_max."),
    "freebind": ("IP_FREEBIND, IPV6_FREEBIND (Linux): an address that this machine has not yet may be bound."),
    "transparent": (
        "IP_TRANSPARENT (Linux; needs CAP_NET_ADMIN), IP_BINDANY (FreeBSD), SO_BINDANY (OpenBSD): addresses of "
        "others, for a proxy that traffic is diverted to."
    ),
    "interface": ("SO_BINDTODEVICE (Linux), IP_BOUND_IF (macOS): connections over this network interface only."),
    "mark": ("SO_MARK (Linux; needs CAP_NET_ADMIN): what the firewall and the routing rules see."),
    "tos": ("IP_TOS and IPV6_TCLASS: the byte of the IP header, 0 to 255; DSCP in its upper six bits."),
    "ttl": ("IP_TTL and IPV6_UNICAST_HOPS: how many routers a packet may pass, 1 to 255."),
    "mss": ("TCP_MAXSEG: the largest segment, in bytes, that the handshake offers."),
    "congestion": (
        "TCP_CONGESTION (Linux, FreeBSD): the algorithm, as ``bbr``; net.ipv4.tcp_allowed_congestion_control."
    ),
    "priority": (
        "SO_PRIORITY (Linux): the queueing class of what is sent; above 6 it needs CAP_NET_ADMIN. Not inherited "
        "by connections: set on each when it is accepted."
    ),
    "incoming_cpu": ("SO_INCOMING_CPU (Linux): of a reuse_port group, this socket takes what arrives on that CPU."),
    "busy_poll": (
        "SO_BUSY_POLL (Linux; to raise it older kernels want CAP_NET_ADMIN): microseconds for which a read looks "
        "into the device."
    ),
    "inheritable": ("Child processes have the listener too. Connections are never inherited."),
    "mode": ("Of a unix socket's path: its permissions, as 0o660; in a bind in octal, ``?mode=660``."),
    "owner": ("Of a unix socket's path: the user who has it, by name or number."),
    "group": ("Of a unix socket's path: its group, by name or number."),
    "configure": (
        "Called with each socket and the address that it is about to be bound to, for whatever is not in this "
        "list. What it raises is passed on, and nothing stays open."
    ),
}


# ---------------------------------------------------------------------------- values


def _switch(name: str, value: object) -> None:
    if not isinstance(value, bool) and not (isinstance(value, int) and value in (0, 1)):
        _wrong(name, "True or False", value)


def _reuse_port(name: str, value: object) -> None:
    if value != "join":
        _switch(name, value)


def _whole(least: int, most: int) -> Callable[[str, object], None]:
    def check(name: str, value: object) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            _wrong(name, f"an int from {least} to {most}", value)
        if not least <= value <= most:
            raise ValueError(f"{name} is from {least} to {most}, and not {_shown(value)}")

    return check


def _mode(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        _wrong(name, "an int, as 0o660", value)
    if not 0 <= value <= 0o777:
        shown = f"{oct(value)} ({value})" if value.bit_length() < 64 else _shown(value)
        meant = f"; did you mean 0o{value}?" if 600 <= value <= 777 and not set(str(value)) & {"8", "9"} else ""
        raise ValueError(f"{name} is from 0o0 to 0o777, written in octal, and not {shown}{meant}")


def _backlog(name: str, value: object) -> None:
    if not isinstance(value, int):
        raise TypeError(f"{name} must be an int or None, not {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{name} must not be negative: {_shown(value)}")


def _interface(name: str, value: object) -> None:
    """Linux takes any bytes but a slash, a colon and white space, and no more than 15 of them."""
    if not isinstance(value, str):
        _wrong(name, "a str", value)
    try:
        data = os.fsencode(value[:16])
    except UnicodeError:
        data = b"/"
    if not 1 <= len(data) <= 15 or b"/" in data or b":" in data or b"\0" in data or len(data.split()) > 1:
        raise ValueError(f"{name} is a name of 1 to 15 characters, and not {_short(value)!r}")


def _text(name: str, value: object) -> None:
    if not isinstance(value, str):
        _wrong(name, "a str", value)
    if not value or len(value) > 15 or not value.isascii() or not value.isprintable() or " " in value or "/" in value:
        raise ValueError(f"{name} is a name of 1 to 15 characters, and not {_short(value)!r}")


def _somebody(name: str, value: object) -> None:
    if isinstance(value, str):
        if not value or len(value) > 255:
            raise ValueError(f"{name} is a name of 1 to 255 characters or a number, and not {_short(value)!r}")
        return
    if not isinstance(value, int) or isinstance(value, bool):
        _wrong(name, "a name or a number", value)
    if not 0 <= value < 0xFFFFFFFF:
        raise ValueError(f"{name} is a name or a number from 0 on, and not {_shown(value)}")


def _function(name: str, value: object) -> None:
    if not callable(value):
        _wrong(name, "a function of a socket and an address", value)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."


def _wrong(name: str, what: str, value: object) -> NoReturn:
    raise TypeError(f"{name} is {what}, and not {type(value).__name__}")


def _shown(value: int) -> str:
    return str(value) if value.bit_length() < 1024 else f"a number of {value.bit_length()} bits"


_INT = 0x7FFFFFFF
_CHECKS: dict[str, Callable[[str, object], None]] = {
    "backlog": _backlog,
    "reuse_port": _reuse_port,
    "ipv6_only": _switch,
    "exclusive": _switch,
    "nodelay": _switch,
    "keepalive": _switch,
    "keepalive_idle": _whole(1, 32767),  # Linux takes no more
    "keepalive_interval": _whole(1, 32767),
    "keepalive_count": _whole(1, 127),
    "user_timeout": _whole(0, _INT),
    "defer_accept": _whole(0, _INT),
    "fastopen": _whole(0, _INT),
    "rcvbuf": _whole(1, _INT),
    "sndbuf": _whole(1, _INT),
    "freebind": _switch,
    "transparent": _switch,
    "interface": _interface,
    "mark": _whole(0, 0xFFFFFFFF),
    "tos": _whole(0, 255),
    "ttl": _whole(1, 255),
    "mss": _whole(88, 32767),  # as Linux
    "congestion": _text,
    "priority": _whole(0, _INT),
    "incoming_cpu": _whole(0, _INT),
    "busy_poll": _whole(0, _INT),
    "inheritable": _switch,
    "mode": _mode,
    "owner": _somebody,
    "group": _somebody,
    "configure": _function,
}
_SWITCHES = frozenset(name for name, check in _CHECKS.items() if check is _switch) | {"reuse_port"}
_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def _read(name: str, text: str) -> object:
    """A value as it stands in a bind."""
    if name in _SWITCHES:
        if name == "reuse_port" and text == "join":
            return text
        if text.lower() not in _WORDS:
            raise ValueError(f"{name} is 1 or 0{', or join' if name == 'reuse_port' else ''}, and not {_short(text)!r}")
        return _WORDS[text.lower()]
    if name in ("interface", "congestion"):
        return text
    digits = text.removeprefix("0o") if name == "mode" else text
    if digits.isascii() and digits.isdigit() and len(digits) < 300:
        try:
            return int(digits, 8 if name == "mode" else 10)
        except ValueError:
            raise ValueError(f"{name} is written in octal, as in {name}=0660, and not {_short(text)!r}") from None
    if name in ("owner", "group"):
        return text
    raise ValueError(f"{name} is a number, and not {_short(text)!r}")


# ---------------------------------------------------------------------------- which binds they are for

_OF_PATHS = frozenset(("mode", "owner", "group"))
_OF_ALL = frozenset(("backlog", "inheritable"))
# While it is made, and not when somebody else made it.
_AT_BIRTH = frozenset(
    ("reuse_port", "ipv6_only", "exclusive", "freebind", "transparent", "interface", "configure", *_OF_PATHS)
)
_OF_UNIX = _OF_ALL | _OF_PATHS | {"exclusive", "rcvbuf", "sndbuf", "configure"}
_OF_TCP = frozenset(_CHECKS) - _OF_PATHS
_BY_SCHEME = {
    "unix": ("a unix socket", _OF_UNIX),
    "vsock": ("a vsock", _OF_ALL | {"configure"}),
    "fd": ("a socket that is there already", frozenset(_CHECKS) - _AT_BIRTH),
    "systemd": ("a socket that is there already", frozenset(_CHECKS) - _AT_BIRTH),
}


def _no_meaning(bind: Bind, name: str) -> str:
    """Why an option means nothing for a bind; empty when it does."""
    what, known = _BY_SCHEME.get(bind.scheme, ("TCP", _OF_TCP))
    if name not in known:
        return f"{name} has no meaning for {what}"
    if name == "ipv6_only" and (bind.scheme == "tcp4" or _is_ipv4(bind.host)):
        return "ipv6_only has no meaning for IPv4"
    if name in _OF_PATHS and str(bind.path).startswith("\0"):
        return f"{name} has no meaning for an abstract name, which everybody can connect to"
    return ""


def _is_ipv4(host: str | None) -> bool:
    return host is not None and ":" not in host and normal_host(host) is not None


def _lacking(bind: Bind, options: Options, name: str) -> str:
    """Why this system cannot do it; empty when it can."""
    if name in _OF_PATHS:
        return "" if hasattr(os, "chown") else "its paths have no such thing"
    if name == "exclusive" and bind.scheme != "unix" and not options.exclusive and not EXCLUSIVE_IS_A_CHOICE:
        return "it never lets two listen on one address, unless both have reuse_port"
    if name == "ipv6_only" and not options.ipv6_only and not TAKES_BOTH:
        return "its IPv6 sockets never take IPv4"
    if name in _NUMBERED and name not in OPTIONS and getattr(options, name) is not False:  # which it always is then
        return _WHY_NOT.get(name, "it has no such option")
    return ""


_NUMBERED = _OF_TCP - {"backlog", "ipv6_only", "exclusive", "inheritable", "configure"}
_WHY_NOT = {"reuse_port": "one of the sockets would get all the connections"}


# ---------------------------------------------------------------------------- reading


def for_binds(call: str, binds: Sequence[Bind], keywords: dict[str, object]) -> list[Options]:
    """The options of each bind: those in its own text, and then the keywords that have a meaning for it.

    A keyword must have one for some bind at least. What stands in a bind must have one for that bind.
    """
    refuse_unknown(call, keywords)
    given = Options(**keywords)  # type: ignore[arg-type]
    for name in given:
        reasons = [_no_meaning(bind, name) for bind in binds]
        if all(reasons):
            raise ValueError(f"{binds[0]}: {reasons[0]}")
    found = []
    for bind in binds:
        own = _in_bind(bind)
        of_all = Options(**{name: getattr(given, name) for name in given if not _no_meaning(bind, name)})
        try:
            options = own.over(of_all)
        except ValueError as error:
            raise ValueError(f"{bind}: {error}") from None
        if options.exclusive is False and str(bind.path).startswith("\0"):
            raise ValueError(f"{bind}: an abstract name cannot be taken over: it is in no directory")
        for name in options:
            lacking = _lacking(bind, options, name)
            if lacking:
                from ._errors import failure

                reason = io.UnsupportedOperation(EOPNOTSUPP, f"{name} cannot be had on {SYSTEM}: {lacking}")
                raise failure("setsockopt", str(bind), reason, (name, getattr(options, name)))
        found.append(options)
    return found


def refuse_unknown(call: str, keywords: dict[str, object]) -> None:
    """Raises TypeError for a keyword that is no option, saying what was meant as far as can be seen."""
    unknown = next((name for name in keywords if name not in _CHECKS), None)
    if unknown is None:
        return
    right = _as_bind(keywords)
    told = f": write {call.removesuffix('()')}({right!r})" if right else _meant(unknown)
    raise TypeError(f"{call} got an unexpected keyword argument {_short(unknown)!r}{told}")


def _in_bind(bind: Bind) -> Options:
    found: dict[str, object] = {}
    for name, text in bind.options.items():
        if name not in _CHECKS or name == "configure":
            bind.refuse(name, f"no option is called {_short(name)!r}{_meant(name)}")
        reason = _no_meaning(bind, name)
        if reason:
            bind.refuse(name, reason)
        try:
            found[name] = _read(name, text)
            _CHECKS[name](name, found[name])
        except ValueError as error:
            bind.refuse(name, str(error))
    try:
        return Options(**found)  # type: ignore[arg-type]
    except ValueError as error:
        bind.refuse(next(reversed(found)), str(error))


# ---------------------------------------------------------------------------- what was meant

# What others call it: HAProxy, nginx, systemd, asyncio, people.
_ALIASES = {
    "user": "owner", "uid": "owner", "gid": "group", "perm": "mode", "permissions": "mode", "chmod": "mode",
    "umask": "mode", "deferred": "defer_accept", "tfo": "fastopen", "v4v6": "ipv6_only", "dualstack": "ipv6_only",
    "dualstackipv6": "ipv6_only", "cc": "congestion", "device": "interface", "dev": "interface",
    "bindtodevice": "interface", "queue": "backlog", "somaxconn": "backlog", "dscp": "tos", "hops": "ttl",
    "hoplimit": "ttl", "maxseg": "mss", "fwmark": "mark", "keepidle": "keepalive_idle",
    "keepintvl": "keepalive_interval",
    "keepcnt": "keepalive_count",
}  # fmt: skip
_ASYNCIO = ("max_open", "limit", "batch", "on_overload", "engine")
_ELSEWHERE = {
    **dict.fromkeys(("host", "hostname", "ip", "addr", "address", "port", "bind"), "host and port are the bind, as in"
                    " '127.0.0.1:8080'"),
    **dict.fromkeys(("uds", "path", "unix"), "a unix socket is a bind, as in 'unix:/run/app.sock'"),
    **dict.fromkeys(("fd", "fileno"), "a descriptor is a bind, as in 'fd://3'"),
    **dict.fromkeys(("sock", "socket"), "a socket that is there already is taken over by harken.adopt()"),
    "family": "the family is in the bind, as in 'tcp4://:8080' or 'tcp6://:8080'",
    **dict.fromkeys(("reuseaddress", "reuseaddr"), "SO_REUSEADDR is on where that is safe; exclusive=1 is without it"),
    **dict.fromkeys(("ssl", "tls", "sslcontext", "certfile", "keyfile", "cert", "key"), "TLS is for the server, which"
                    " gets the sockets"),
    **dict.fromkeys(("loop", "startserving"), "that is for harken.asyncio"),
    **dict.fromkeys((name.replace("_", "") for name in _ASYNCIO), "that is for acceptor(), and for harken.asyncio"),
}  # fmt: skip
_FAR = 40  # longer names are no slips of the keyboard, and comparing takes time with the square of the length


def _meant(name: str) -> str:
    """What an unknown option's name is likely to stand for; else which there are."""
    flat = _flat(name)
    if flat in _ELSEWHERE:
        return f": {_ELSEWHERE[flat]}"
    near = nearest(name)
    if near in _ASYNCIO:
        return f"; did you mean {near!r}, which is for acceptor() and harken.asyncio?"
    return f"; did you mean {near!r}?" if near else f": they are {', '.join(_CHECKS)}"


def nearest(name: str, among: Iterable[str] = ()) -> str:
    """The one of the names, else of the options and what asyncio's servers take, that an unknown name is likely to
    stand for; empty where none is near."""
    flat = _flat(name)
    known = {_flat(one): one for one in among or (*_CHECKS, *_ASYNCIO) if one != "configure"}
    for one in (flat, flat.removeprefix("so"), flat.removeprefix("tcp"), flat.removeprefix("ip")):
        if one in known or _ALIASES.get(one) in known.values():
            return known.get(one) or _ALIASES[one]
    if len(flat) > _FAR:
        return ""
    # A part of a name, or a name with more around it, as tcp_keepidle.
    parts = [one for one in known if len(flat) > 3 and (flat in one or (len(one) > 3 and one in flat))]
    near = [min(parts, key=lambda one: abs(len(one) - len(flat)))] if parts else get_close_matches(flat, known, 1, 0.7)
    return known[near[0]] if near else ""


def _flat(name: str) -> str:
    return name[: 4 * _FAR].lower().replace("_", "").replace("-", "")


def _as_bind(keywords: dict[str, object]) -> str:
    """The bind that the keywords of other servers stand for; empty where they stand for none."""
    from ._bind import Bind, unix_url

    path = keywords.get("uds", keywords.get("path"))
    if isinstance(path, str) and path:
        return unix_url(path[:4096])
    host, port = keywords.get("host"), keywords.get("port")
    if port is None or isinstance(port, bool):
        return ""
    try:
        bind = Bind.of(host, port).url.removeprefix("tcp://")  # type: ignore[arg-type]
        return bind.removeprefix("*") if Bind(bind) else ""
    except (TypeError, ValueError):
        return ""
