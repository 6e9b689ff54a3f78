"""asyncio's ``host`` and ``port``, as binds.

With a port they mean what they mean in ``loop.create_server()``: a host, or a sequence of hosts; None, or an empty
string that is not in a sequence, is every address. Without a port, a host may also be a bind.

Names are looked up by ``loop.getaddrinfo()``, as asyncio does, so that a loop's own resolver is used. Its answers stay
tuples, and the caller's values stay as they are: they are never formatted and parsed again, as a ``?`` or ``:`` in them
would then mean something else.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from .._bind import Bind, looked_up
from .._errors import failure
from .._resolve import normal_host
from .._socket import Socket
from .._system import AF_INET, AF_INET6, AF_UNIX, AF_UNSPEC, AI_PASSIVE, SOCK_STREAM

if TYPE_CHECKING:
    _Addresses = tuple[tuple[str, int] | tuple[str, int, int, int], ...]

_BYTES = (bytes, bytearray, memoryview)  # sequences of numbers, which would be ports
_LONGEST_HOST = 1000  # characters; DNS takes 253, and IDNA takes time that grows with the square
_OF_TCP = ("tcp", "tcp4", "tcp6", "mptcp")


async def binds_of(host: Any, port: Any, family: int, flags: int) -> list[Bind]:
    """What ``create_server(factory, host, port, family=, flags=)`` listens on; no bind has a name left in it.

    Raises TypeError and ValueError for what is no host and no port, OverflowError for a port out of range; ListenError,
    a socket.gaierror, for a name that nobody has."""
    if isinstance(host, _BYTES):
        raise TypeError(f"host is a str or a sequence of them, not {type(host).__name__}: {host!r}")
    if port is None:
        return await _without_port(host, family, flags)
    port = _port(port)
    only = isinstance(host, (str, Bind)) or not isinstance(host, Iterable)  # a Bind is a tuple, but not of hosts
    several: Any = host
    given: list[Any] = [None] if host == "" else [host] if only else list(several)
    hosts = [_host(one) for one in given]
    found = await asyncio.gather(*(_looked_up(one, port, family, flags) for one in hosts))
    return _each_once(found)


async def _without_port(host: Any, family: int, flags: int) -> list[Bind]:
    one_only = host is None or isinstance(host, (str, int, Bind, Socket)) or not isinstance(host, Iterable)
    several: Any = host
    given: list[Any] = [host] if one_only else list(several)
    hosts: list[str] = []
    binds: list[Bind] = []
    for one in given:
        if one is None or one in ("", b""):
            _nobody("neither a host nor a port", one)
        if isinstance(one, bytes) or (isinstance(one, str) and _is_host(one)):
            hosts.append(str(_host(one)))
        else:
            binds.append(Bind(one))
    # A tuple that was meant as an address, most likely.
    wide = next((bind for bind in binds if bind.scheme in _OF_TCP and bind.host is None), None)
    if hosts and wide is not None:
        text = f"[{hosts[0]}]" if ":" in hosts[0] else hosts[0]
        raise TypeError(
            f"{hosts[0]!r} is a host without a port, and {str(wide)!r} is a port without a host, which means every"
            f" address of this machine. For this port of this host give both, host={hosts[0]!r}, port={wide.port!r}, or"
            f" one bind, '{text}:{wide.port}'; for both as they are, binds: ['{text}:0', ':{wide.port}']"
        )
    found = await asyncio.gather(*(_looked_up(one, 0, family, flags) for one in hosts))
    return _each_once(found) + list(await asyncio.gather(*(_narrowed(one, family, flags) for one in binds)))


def _is_host(text: str) -> bool:
    """Just a host, and no bind. ``::1`` is a host, and so is a name."""
    text = str.__str__(text)
    if normal_host(text.partition("%")[0]) is not None:
        return True
    return not (text.isascii() and text.replace("-", "", 1).isdigit()) and not set(":/?[]").intersection(text)


def _host(one: Any) -> str | None:
    if one is None:
        return None
    if isinstance(one, (Bind, Socket)):
        raise ValueError(f"{one} has its port already")
    if isinstance(one, bytes):
        one = one.decode("ascii")
    if not isinstance(one, str):
        raise TypeError(f"a host is a str, not {type(one).__name__}: {one!r}")
    text = str.__str__(one)  # the text itself, whatever an enum says in its place
    if "\0" in text:
        raise ValueError(f"embedded null character in the host {text!r}")
    if len(text) > _LONGEST_HOST:
        raise UnicodeError(f"a host of {len(text)} characters, {text[:50]!r}...: a name has at most 253")
    return text


def _port(port: Any) -> int | str:
    """A number, or the name of a service. Resolvers would take 65536 for 0, and 70000 for 4464."""
    if isinstance(port, bytes):
        port = port.decode("ascii")
    if isinstance(port, str):
        text = str.__str__(port)
        if "\0" in text:
            raise ValueError(f"embedded null character in the port {text!r}")
        try:
            number = int(text.encode("ascii")) if text else 0
        except ValueError:  # no digits that resolvers know
            return text
    elif hasattr(port, "__index__") and not isinstance(port, bool):
        number = int(port.__index__())
    else:
        raise TypeError(f"a port must be a number, or a str with a number or the name of a service, not {port!r}")
    if not 0 <= number <= 65535:
        shown = number if number.bit_length() < 1024 else f"a number of {number.bit_length()} bits"
        raise OverflowError(f"port must be 0-65535, not {shown}")
    return number


async def _looked_up(host: str | None, port: int | str, family: int, flags: int) -> Bind:
    if host == "":  # an empty one among others; some resolvers take it for every address
        _nobody("an empty host", host)
    if host is None and flags == AI_PASSIVE and family in (AF_UNSPEC, AF_INET, AF_INET6):
        return Bind.of(None, await _number(port, family), family=family)
    if isinstance(port, int) and _in_digits(host, family):
        return Bind.of(host, port, family=family)
    addresses = await _answer(host, port, family, flags)
    return looked_up(Bind.of(host or "localhost", port), addresses[0][1], family, addresses)


async def _narrowed(bind: Bind, family: int, flags: int) -> Bind:
    """With its name looked up, of one family if that was asked for."""
    if bind.scheme not in _OF_TCP:
        if family not in (AF_UNSPEC, bind.family) or (family and bind.family != AF_UNIX):
            raise ValueError(f"family is for TCP, not for {bind}")
        return bind
    if family not in (AF_UNSPEC, AF_INET, AF_INET6):
        raise ValueError(f"the family of a TCP bind is AF_INET or AF_INET6, not {family}: {bind}")
    if family and bind.family not in (AF_UNSPEC, family):
        raise ValueError(f"{bind} is not of the family that was asked for, {family}")
    family, host, port = family or bind.family, bind.host, bind.port
    assert port is not None
    if host is None:
        return looked_up(bind, await _number(port, family), family, None)
    # A scope that is a number is in the bind as one.
    if isinstance(port, int) and _in_digits(host.partition("%")[0] if bind.scope_id else host, family):
        return looked_up(bind, port, family, None)
    addresses = await _answer(host, port, family, flags, bind)
    return looked_up(bind, addresses[0][1], family, addresses)


def _in_digits(host: str | None, family: int) -> bool:
    """Is it an address of the family in digits, without a scope? There is nothing to look up then."""
    digits = None if host is None else normal_host(host)
    return digits is not None and family in (AF_UNSPEC, AF_INET6 if ":" in digits else AF_INET)


async def _number(port: int | str, family: int) -> int:
    if isinstance(port, int):
        return port
    return (await _answer(None, port, family, AI_PASSIVE))[0][1]


async def _answer(
    host: str | None, port: int | str, family: int, flags: int, written: Bind | None = None
) -> _Addresses:
    """The addresses that the loop's resolver gives, each once."""
    text = str(written) if written is not None else f"{'*' if host is None else host}:{port}"
    try:
        answer = await asyncio.get_running_loop().getaddrinfo(host, port, family=family, type=SOCK_STREAM, flags=flags)
        found = [_without_text(entry[4]) for entry in answer if entry[0] in (AF_INET, AF_INET6)]
    except OSError as reason:
        error = failure("getaddrinfo", text, reason)
        error._named = host, port  # for its hint
        raise error from None
    if not found:
        raise failure("getaddrinfo", text, OSError(f"getaddrinfo({host!r}) returned empty list"))
    return tuple(dict.fromkeys(found))


def _without_text(address: Any) -> Any:
    """The scope as a number, also where a resolver leaves it behind the host."""
    host, percent, scope = address[0].partition("%")
    if not percent:
        return tuple(address)
    number = int(scope) if scope.isascii() and scope.isdigit() else socket.if_nametoindex(scope)
    return (host, address[1], *(address[2:3] or (0,)), number)


def _each_once(binds: Iterable[Bind]) -> list[Bind]:
    """Several hosts may stand for one address, which can be bound once."""
    kept: list[Bind] = []
    seen: set[Any] = set()
    for bind in binds:
        host, port, addresses = bind[0], bind[1], bind[4]
        if isinstance(addresses, tuple):
            new = tuple(one for one in addresses if one not in seen)
            if new:
                kept.append(bind if new == addresses else looked_up(bind, int(port or 0), AF_UNSPEC, new))
            seen.update(new)
            continue
        address = (host, port, 0, 0) if host is not None and ":" in host else (host, port)
        if address not in seen:
            kept.append(bind)
            seen.add(address)
    return kept


def _nobody(what: str, host: object) -> NoReturn:
    """asyncio's resolver says the same."""
    error = socket.gaierror(socket.EAI_NONAME, f"{what}: nothing to listen on")
    raise failure("getaddrinfo", repr(host), error)
