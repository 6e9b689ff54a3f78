"""What a server is asked to listen on, as people write it.

``8080`` · ``:8080`` · ``*:8080`` · ``127.0.0.1:8080`` · ``[::1]:8080`` · ``[fe80::1%eth0]:8080`` · ``localhost:http`` ·
``tcp://…`` both families · ``tcp4://…`` IPv4 only · ``tcp6://…`` IPv6 only
"""

from __future__ import annotations

from ._constants import AF_INET, AF_INET6, AF_UNSPEC

_FAMILIES = {"tcp": AF_UNSPEC, "tcp4": AF_INET, "tcp6": AF_INET6}


class Bind(tuple[str | None, int | str, int, str]):
    """One bind, read: ``(host, port, family, text)``."""

    __slots__ = ()

    @property
    def host(self) -> str | None:
        """A name or an address; None for every address of every family."""
        return self[0]

    @property
    def port(self) -> int | str:
        """A number, or the name of a service."""
        return self[1]

    @property
    def family(self) -> int:
        """AF_INET or AF_INET6 where the scheme says so, else AF_UNSPEC."""
        return self[2]

    def __str__(self) -> str:
        return self[3]

    def __repr__(self) -> str:
        return f"Bind({self[3]!r})"


KNOWN: dict[str | int, Bind] = {}
"""Binds read before: programs open the same few again and again, tests most of all. It stops growing at 256."""


def parse(bind: str | int) -> Bind:
    """Reads one bind. Raises ValueError, which shows what could not be read, or TypeError for neither text nor port."""
    result = _parse(bind)
    if len(KNOWN) < 256 and type(bind) in (str, int):  # not by another type that is equal: True, 8080.0
        KNOWN[bind] = result
    return result


def _parse(bind: str | int) -> Bind:
    if isinstance(bind, int) and not isinstance(bind, bool):
        return Bind((None, _port(int(bind), str(bind)), AF_UNSPEC, f":{int(bind)}"))
    if not isinstance(bind, str):
        raise TypeError(f"a bind is a str or a port number, not {type(bind).__name__}: {bind!r}")
    scheme, separator, rest = bind.partition("://")
    if not separator:
        scheme, rest = "tcp", bind
    if scheme not in _FAMILIES:
        raise ValueError(f"bind {bind!r}: {scheme!r} is none of {', '.join(_FAMILIES)}")
    if rest.isascii() and rest.isdigit():
        host, port = "", rest
    elif rest.startswith("["):
        host, separator, port = rest[1:].partition("]:")
        if not separator or ":" not in host:
            raise ValueError(f"bind {bind!r}: an IPv6 address with a port is written [::1]:8080")
    else:
        host, separator, port = rest.rpartition(":")
        if not separator:
            raise ValueError(f"bind {bind!r}: the port is missing, as in {rest or '127.0.0.1'}:8080")
        if ":" in host:
            raise ValueError(f"bind {bind!r}: an IPv6 address stands in brackets, as in [{host}]:{port}")
    return Bind((None if host in ("", "*") else host, _port(port, bind), _FAMILIES[scheme], bind))


def _port(port: str | int, bind: str) -> int | str:
    if isinstance(port, str):
        if not (port.isascii() and port.isdigit()):
            if port and port[0].isalpha():
                return port
            raise ValueError(f"bind {bind!r}: {port!r} is no port: a number from 0 to 65535, or the name of a service")
        port = int(port.lstrip("0")[:20] or 0)  # int() refuses thousands of digits
    if not 0 <= port <= 65535:
        raise ValueError(f"bind {bind!r}: port {port} is not between 0 and 65535")
    return port
