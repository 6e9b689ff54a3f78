"""The options of one call: `Options`, and which of them apply to which of its binds.

Everything here is decided before a socket exists. `_option_table` describes each option; `_plan` has the steps at which
options are set, and `_sockopt` sets them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from errno import EOPNOTSUPP
from typing import TYPE_CHECKING, Literal, Self

from ._option_kinds import shortened
from ._option_table import ABSTRACT, INHERITED, PATH, TABLE, TCP, TCP4, VSOCK, WHAT
from ._resolve import normal_host
from ._socket import Socket
from ._system import SYSTEM
from ._types import Address

if TYPE_CHECKING:
    from ._bind import Bind


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of one call, checked and frozen. None leaves an option at its default.

    A value that is invalid on every system is a TypeError or a ValueError. For an option that this system does not
    have, `harken.listen` raises a ListenError that is also an io.UnsupportedOperation (and so a ValueError), and that
    names the option and the system. All options are checked before a socket exists.
    """

    # <options fields>: written by .ci/options
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
    # </options>

    def __post_init__(self) -> None:
        for name in self:
            object.__setattr__(self, name, TABLE[name].kind.check(name, getattr(self, name)))
        for name in self:
            implied = TABLE[name].implies
            if implied and getattr(self, implied) is False:
                raise ValueError(f"{name} needs {implied}, which is off")
        if self.exclusive and self.reuse_port:
            raise ValueError("reuse_port shares the port, and exclusive forbids that: give one of them")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self)})"

    def __iter__(self) -> Iterator[str]:
        """The names of those that are set."""
        return (one.name for one in fields(self) if getattr(self, one.name) is not None)

    def over(self, others: Self) -> Self:
        """These, and for each that is None, the value of the others."""
        return type(self)(
            **{name: getattr(others, name) for name in others} | {name: getattr(self, name) for name in self}
        )


# Where help() looks for the text of each.
Options.__slots__ = {name: option.doc for name, option in TABLE.items()}  # type: ignore[assignment]


# ---------------------------------------------------------------------------- which binds they apply to

_WIDER = {TCP4: TCP, ABSTRACT: PATH}


def kind_of(bind: Bind) -> str:
    """The kind of a bind, as `_option_table` has them."""
    if bind.scheme == "unix":
        return ABSTRACT if str(bind.path).startswith("\0") else PATH
    if bind.scheme == "vsock":
        return VSOCK
    if bind.scheme in ("fd", "systemd"):
        return INHERITED
    return TCP4 if bind.scheme == "tcp4" or _is_ipv4(bind.host) else TCP


def _does_not_apply(bind: Bind, name: str) -> str:
    """Why an option does not apply to a bind; empty when it does."""
    kind, binds = kind_of(bind), TABLE[name].binds
    if kind in binds:
        return ""
    wider = _WIDER.get(kind)
    return f"{name} does not apply to {WHAT[wider if wider and wider not in binds else kind]}"


def _is_ipv4(host: str | None) -> bool:
    return host is not None and ":" not in host and normal_host(host) is not None


# ---------------------------------------------------------------------------- reading


def for_binds(call: str, binds: Sequence[Bind], keywords: dict[str, object]) -> list[Options]:
    """The options of each bind: those in its own text, and then the keywords that have a meaning for it.

    A keyword must have one for some bind at least. What stands in a bind must have one for that bind.
    """
    refuse_unknown(call, keywords)
    given = Options(**keywords)  # type: ignore[arg-type]
    for name in given:
        reasons = [_does_not_apply(bind, name) for bind in binds]
        if all(reasons):
            raise ValueError(f"{binds[0]}: {reasons[0]}")
    found = []
    for bind in binds:
        own = _in_bind(bind)
        of_all = Options(**{name: getattr(given, name) for name in given if not _does_not_apply(bind, name)})
        try:
            options = own.over(of_all)
        except ValueError as error:
            raise ValueError(f"{bind}: {error}") from None
        if options.exclusive is False and str(bind.path).startswith("\0"):
            raise ValueError(f"{bind}: an abstract name cannot be taken over: it is in no directory")
        for name in options:
            missing = TABLE[name].missing(kind_of(bind), getattr(options, name), call)
            if missing:
                from ._errors import failure

                reason = io.UnsupportedOperation(EOPNOTSUPP, f"{name} is not available on {SYSTEM}: {missing}")
                raise failure("setsockopt", str(bind), reason, (name, getattr(options, name)))
        found.append(options)
    return found


def refuse_unknown(call: str, keywords: dict[str, object]) -> None:
    """Raises TypeError for a keyword that is no option, saying what was meant as far as can be seen."""
    unknown = next((name for name in keywords if name not in TABLE), None)
    if unknown is None:
        return
    right = _as_bind(keywords)
    told = f": write {call.removesuffix('()')}({right!r})" if right else _meant(unknown)
    raise TypeError(f"{call} got an unexpected keyword argument {shortened(unknown)!r}{told}")


def _in_bind(bind: Bind) -> Options:
    found: dict[str, object] = {}
    for name, text in bind.options.items():
        if name not in TABLE or name == "configure":
            bind.refuse(name, f"no option is called {shortened(name)!r}{_meant(name)}")
        reason = _does_not_apply(bind, name)
        if reason:
            bind.refuse(name, reason)
        try:
            found[name] = TABLE[name].kind.check(name, TABLE[name].kind.parse(name, text))
        except ValueError as error:
            bind.refuse(name, str(error))
    try:
        return Options(**found)  # type: ignore[arg-type]
    except ValueError as error:
        bind.refuse(next(reversed(found)), str(error))


# ---------------------------------------------------------------------------- what was meant

_ALIASES = {alias: option.name for option in TABLE.values() for alias in option.aliases}
_ASYNCIO = ("max_open", "limit", "batch", "on_overload", "engine")
_ELSEWHERE = {
    **dict.fromkeys(("host", "hostname", "ip", "addr", "address", "port", "bind"), "host and port are the bind, as in"
                    " '127.0.0.1:8080'"),
    **dict.fromkeys(("uds", "path", "unix"), "a unix socket is a bind, as in 'unix:/run/app.sock'"),
    **dict.fromkeys(("fd", "fileno"), "a descriptor is a bind, as in 'fd://3'"),
    **dict.fromkeys(("sock", "socket"), "an existing socket is passed to harken.adopt()"),
    "family": "the family is in the bind, as in 'tcp4://:8080' or 'tcp6://:8080'",
    **dict.fromkeys(("reuseaddress", "reuseaddr"), "SO_REUSEADDR is set where that is safe; exclusive=1 leaves it off"),
    **dict.fromkeys(("ssl", "tls", "sslcontext", "certfile", "keyfile", "cert", "key"), "TLS is for the server, which"
                    " gets the sockets"),
    **dict.fromkeys(("loop", "startserving"), "that is an argument of harken.asyncio's functions"),
    **dict.fromkeys((name.replace("_", "") for name in _ASYNCIO), "that is an argument of acceptor() and of"
                    " harken.asyncio's functions"),
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
    return f"; did you mean {near!r}?" if near else f": they are {', '.join(TABLE)}"


def nearest(name: str, among: Iterable[str] = ()) -> str:
    """The one of the names, else of the options and what asyncio's servers take, that an unknown name is likely to
    stand for; empty where none is near."""
    flat = _flat(name)
    known = {_flat(one): one for one in among or (*TABLE, *_ASYNCIO) if one != "configure"}
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
