"""What a server is asked to listen on, as people write it.

``8080`` · ``:8080`` · ``*:8080`` · ``127.0.0.1:8080`` · ``[::1]:8080`` · ``[fe80::1%eth0]:8080`` · ``localhost:http`` ·
``tcp://…`` both families · ``tcp4://…`` IPv4 only · ``tcp6://…`` IPv6 only · ``mptcp://…`` ·
``:8000-8010`` the first port that is free ·
``unix:/path`` · ``unix:relative/path`` · ``unix:@abstract`` · ``vsock://cid:port`` · ``fd://3`` · ``systemd:name`` ·
``systemd:`` every socket that systemd has passed

Behind a question mark stand options: ``:443?backlog=8192&reuse_port=1``. Paths, names and the values of options may be
percent-encoded, which is how a question mark gets into a path: ``unix:/run/what%3F.sock``.
"""

from __future__ import annotations

from os import fsdecode, fsencode

from ._loading import Later, idna, load
from ._resolve import getaddrinfo, normal_host, scope_name
from ._system import AF_INET, AF_INET6, AF_UNIX, AF_UNSPEC, AI_NUMERICHOST, SOCK_STREAM

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types
    import typing

    from . import _types

    _Pairs = tuple[tuple[str, str], ...]
    _Target = str | int | tuple[_types.Address, ...] | None
    _Fields = tuple[str | None, int | str | None, int, str, _Target, int | None, str, _Pairs, int | None]
else:
    from _collections import _tuplegetter as _field

    types, typing, _types = Later("types"), Later("typing"), Later("harken._types")

_FAMILIES = {"tcp": AF_UNSPEC, "tcp4": AF_INET, "tcp6": AF_INET6, "mptcp": AF_UNSPEC}
SCHEMES = (*_FAMILIES, "unix", "vsock", "fd", "systemd")
MOST = 32768
"""Characters of a bind. The longest that makes sense is a path of 4096 bytes, each of them percent-encoded."""
_MOST_OF_A_HOST = 512  # before it is encoded: then 253, but accents may stand apart from their letters
ANY_CID = 0xFFFFFFFF  # linux/vm_sockets.h
_CIDS = {"*": ANY_CID, "any": ANY_CID, "": ANY_CID, "local": 1, "host": 2}
_NO_HOST = frozenset(" !\"#$%&'()*+,/:;<=>?@[\\]^`{|}~")
_HEX = frozenset("0123456789abcdefABCDEF")
_PLAIN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~/:@,+="
_Mapping = type(type.__dict__)  # types.MappingProxyType, without the import


class Bind(tuple["str | None", "int | str | None", int, str, "_Target", "int | None", str, "_Pairs", "int | None"]):
    """A bind, parsed. Raises ValueError for a text that is not a bind; the error shows the text, the place and the
    mistake.

    A bind is immutable and hashable. Two binds are equal if they mean the same, however they are written; `url` is the
    canonical form. Names are not resolved for this: ``localhost:http`` and ``127.0.0.1:80`` differ.
    """

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def host(self) -> str | None: ...

        @property
        def port(self) -> int | str | None: ...

        @property
        def family(self) -> int: ...

        @property
        def _text(self) -> str: ...

        @property
        def _target(self) -> _Target: ...

        @property
        def last_port(self) -> int | None: ...

        @property
        def scheme(self) -> str: ...

        @property
        def _pairs(self) -> _Pairs: ...

        @property
        def _scope(self) -> int | None: ...
    else:
        # The items of the tuple by name, as namedtuple has them: in C, as the story reads some of these for each bind.
        host = _field(0, "A name or an address; None for every address of every family, and for what has no host.")
        port = _field(
            1, "A number, the first of a range, or a service. 0 lets the system choose. None: it has no port."
        )
        family = _field(2, "AF_INET or AF_INET6 where the scheme says so, AF_UNIX for a path, else AF_UNSPEC.")
        _text = _field(3, "As it was written.")
        _target = _field(4, "Path, context id, descriptor or name; of TCP None, or the addresses that `looked_up` got.")
        last_port = _field(5, "The last of a range of ports; None where it is no range.")
        scheme = _field(6, "``tcp`` (also where none is written), ``tcp4 tcp6 mptcp unix vsock fd`` or ``systemd``.")
        _pairs = _field(7, "The options.")
        _scope = _field(8, "The number of the interface; None where there is no scope, or one that is a name.")

    def __new__(cls, bind: str | int | Bind) -> typing.Self:
        if isinstance(bind, Bind):
            return super().__new__(cls, bind)
        try:
            fields = read(bind)
        except ValueError as error:
            raise _explained(bind, error) from None
        return super().__new__(cls, fields)

    @classmethod
    def parse(cls, bind: str | int | Bind) -> typing.Self:
        """Reads a bind: the same as ``Bind(bind)``."""
        return cls(bind)

    @classmethod
    def of(
        cls, host: str | None, port: int | str, *, scheme: str = "tcp", family: int = AF_UNSPEC, scope_id: int = 0
    ) -> typing.Self:
        """A TCP bind from values, for a caller that has these and no text: nothing is written out and parsed again.

        ``host`` is what getaddrinfo() takes: a name, an address without brackets, with or without ``%scope``; None and
        the empty string are every address. Whether there is such a host is left to the resolver. ``port`` is a number,
        the name of a service, or the empty string, which is 0 as in the standard library. ``family`` (AF_INET,
        AF_INET6) goes with the scheme ``tcp`` and ``mptcp``. ``scope_id`` is the number in the fourth place of an
        AF_INET6 address; it reaches bind() as this number, whatever the interface is called.

        `url` and ``str()`` show the same bind as text. A host that no text can express, ``a b`` for one, is shown
        percent-encoded.

        Raises TypeError for values of other types, and ValueError for a scheme other than ``tcp tcp4 tcp6 mptcp``, a
        port or scope id out of range, and a NUL in the host or the port.
        """
        return super().__new__(cls, _of(host, port, scheme, family, scope_id))

    @property
    def scope_id(self) -> int:
        """The number of the interface, for a link-local address whose scope is a number; else 0."""
        return self._scope or 0

    @property
    def ports(self) -> range:
        """The ports to try, one or a range; none when the port is the name of a service, or there is no port."""
        first, last = self.port, self.last_port
        return range(first, (first if last is None else last) + 1) if isinstance(first, int) else range(0)

    @property
    def path(self) -> str | None:
        """A unix socket's path as `Socket.bind` takes it: an abstract name begins with a NUL."""
        return str(self._target) if self.scheme == "unix" else None

    @property
    def cid(self) -> int | None:
        """A vsock's context id; 0xFFFFFFFF is any."""
        place = self._target
        return place if self.scheme == "vsock" and isinstance(place, int) else None

    @property
    def fd(self) -> int | None:
        """The number in ``fd://3``."""
        place = self._target
        return place if self.scheme == "fd" and isinstance(place, int) else None

    @property
    def name(self) -> str | None:
        """The name in ``systemd:name``; empty for all sockets that systemd passed."""
        return str(self._target) if self.scheme == "systemd" else None

    @property
    def options(self) -> types.MappingProxyType[str, str]:
        """The options after the question mark, decoded; read-only."""
        return _Mapping(dict(self._pairs))

    @property
    def is_plain(self) -> bool:
        """One name and one port, by TCP, and no options: what most binds are."""
        return self._target is None and self.last_port is None and not self._pairs and self.scheme != "mptcp"

    def refuse(self, option: str, why: str) -> typing.NoReturn:
        """Raises ValueError for an option after the question mark, and shows its place."""
        text = self._text
        at = text.find("?") + 1
        while not text.startswith(f"{option}=", at):
            at = text.index("&", at) + 1
        _refuse(text, at, why)

    @property
    def url(self) -> str:
        """The canonical form: the same for all binds that are equal, and itself one of them."""
        scheme, options = self.scheme, "&".join(f"{key}={_quoted(value)}" for key, value in sorted(self._pairs))
        if scheme == "unix":
            url = unix_url(str(self._target))
        elif scheme == "systemd":
            url = f"systemd:{_quoted(str(self._target))}"
        elif scheme == "fd":
            url = f"fd://{self._target}"
        else:
            host = self._target if scheme == "vsock" else _normal(self.host, self._scope)
            last = "" if self.last_port is None else f"-{self.last_port}"
            url = f"{scheme}://{'*' if host in (None, ANY_CID) else host}:{self.port}{last}"
        return f"{url}?{options}" if options else url

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Bind({self._text!r})"

    def __reduce__(self) -> tuple[object, ...]:
        # By its text, as long as that says it all. What `of` has made need not have such a text.
        try:
            if tuple(type(self)(self._text)) == tuple(self):
                return type(self), (self._text,)
        except ValueError:
            pass
        return _made_again, (type(self), self.host, self.port, self.scheme, self.scope_id)

    def __hash__(self) -> int:
        return hash(self.url)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bind) and self.url == other.url

    def __ne__(self, other: object) -> bool:
        return not self == other

    # A tuple has an order; this value has one that agrees with its equality.
    def __lt__(self, other: tuple[object, ...]) -> bool:
        return self.url < other.url if isinstance(other, Bind) else NotImplemented

    def __le__(self, other: tuple[object, ...]) -> bool:
        return self.url <= other.url if isinstance(other, Bind) else NotImplemented

    def __gt__(self, other: tuple[object, ...]) -> bool:
        return self.url > other.url if isinstance(other, Bind) else NotImplemented

    def __ge__(self, other: tuple[object, ...]) -> bool:
        return self.url >= other.url if isinstance(other, Bind) else NotImplemented


def _made_again(kind: type[Bind], host: str | None, port: int | str, scheme: str, scope_id: int) -> Bind:
    return kind.of(host, port, scheme=scheme, scope_id=scope_id)


KNOWN: dict[str | int, Bind] = {}
"""Binds that were opened before, at most 256: a program opens the same few again and again, tests most of all."""


def to_open(bind: str | int | Bind) -> Bind:
    """Reads a bind that `harken.listen` is to open, or returns what was read before. Keys are exactly str or int: True
    equals 1, and 8080.0 equals 8080, and neither is a bind."""
    exact = type(bind) is str or type(bind) is int
    result = KNOWN.get(bind) if exact else None  # type: ignore[arg-type]
    if result is None:
        result = Bind(bind)
        if exact and len(KNOWN) < 256 and len(str(result)) < 256:
            KNOWN[bind] = result  # type: ignore[index]
    return result


def _of(host: str | None, port: int | str, scheme: str, family: int, scope_id: int) -> _Fields:
    if scheme not in _FAMILIES:
        raise ValueError(f"a bind of a host and a port has one of the schemes {', '.join(_FAMILIES)}, not {scheme!r}")
    if family != AF_UNSPEC:
        of_family = {AF_INET: "tcp4", AF_INET6: "tcp6"}.get(family)
        if of_family is None or scheme not in ("tcp", of_family):
            raise ValueError(f"the family {family} does not go with {scheme}")
        scheme = of_family
    host, port = _host_of(host), _port_of(port)
    if not isinstance(scope_id, int):
        raise TypeError(f"a scope id is an int, not {type(scope_id).__name__}")
    if not 0 <= scope_id <= 0xFFFFFFFF:
        raise ValueError(f"scope id {_shortly(scope_id)} is not between 0 and {0xFFFFFFFF}")
    if host is not None and takes_scope(host):
        address, _, zone = host.partition("%")
        if not scope_id and _is_number(zone) and _number(zone) <= 0xFFFFFFFF:
            scope_id = _number(zone)
        if scope_id:
            host = f"{address}%{scope_id}"  # a number goes over a name in the host
    else:
        scope_id = 0  # the system ignores it
    text = f"{scheme}://{_normal(host, scope_id) or '*'}:{port}"
    return host, port, _FAMILIES[scheme], text, None, None, scheme, (), scope_id or None


def _host_of(host: str | None) -> str | None:
    if host is None:
        return None
    if not isinstance(host, str):
        raise TypeError(f"a host is a str or None, not {type(host).__name__}: {_shown(host)}")
    if len(host) > _MOST_OF_A_HOST:
        raise ValueError(f"host {_short(host[:])!r}: {len(host)} characters, a name has at most 253")
    if "\0" in host:
        raise ValueError(f"host {host[:200]!r} has a NUL in it")
    return host[:] or None  # the text itself, also of a subclass with a __str__ of its own


def _port_of(port: int | str) -> int | str:
    if isinstance(port, str):
        if "\0" in port:
            raise ValueError(f"port {_short(port[:])!r} has a NUL in it")
        if len(port) > 255 and not _is_number(port):
            raise ValueError(f"port {_short(port[:])!r}: {len(port)} characters are not the name of a service")
        if port and not _is_number(port):
            return port[:]
        port = _number(port)
    elif not isinstance(port, int):
        raise TypeError(f"a port is a number or a str, not {type(port).__name__}: {_shown(port)}")
    if not 0 <= port <= 65535:
        raise ValueError(f"port {_shortly(port)} is not between 0 and 65535")
    return int(port)


def takes_scope(host: str) -> bool:
    """Is this the address of an interface? Those of IPv6 that are link-local: fe80::/10, and fec0::/10, which was."""
    first = (normal_host(host.partition("%")[0]) or "").partition(":")[0]
    return len(first) == 4 and first[:3] in ("fe8", "fe9", "fea", "feb", "fec", "fed", "fee", "fef")


def _shown(value: object) -> str:
    """A stranger's object in an error: its repr(), which may be long, or fail."""
    if isinstance(value, (bytes, bytearray)):
        value = value[:200]
    try:
        return _short(repr(value), 200)
    except Exception:
        return f"<{type(value).__name__}>"


def _shortly(number: int) -> str:
    return str(int(number)) if number.bit_length() < 1024 else f"a number of {number.bit_length()} bits"


def looked_up(bind: Bind, port: int, family: int, addresses: tuple[_types.Address, ...] | None) -> Bind:
    """The same bind, of one family if it is not AF_UNSPEC, with a port that is a number and with the addresses that
    somebody's resolver has found for the host: these are opened, and no other resolver is asked."""
    scheme = bind.scheme
    if family != AF_UNSPEC and scheme == "tcp":
        scheme = "tcp4" if family == AF_INET else "tcp6"
    target = bind._target if addresses is None else addresses
    return tuple.__new__(type(bind), (bind.host, port, family, bind._text, target, bind.last_port, scheme, *bind[7:]))


# ---------------------------------------------------------------------------- reading


def _refuse(text: str, at: int, what: str) -> typing.NoReturn:
    place = f"character {at + 1}" if at < len(text) else "at the end"
    raise ValueError(f"bind {_short(text, 200)!r}, {place}: {what}")


def _explained(bind: str | int, error: ValueError) -> ValueError:
    """The same error, in the words of `_mistakes` where these have better ones than the place in the text."""
    if not isinstance(bind, str):
        return error
    try:
        told = load("harken._diagnosis.mistakes").meant(bind[:])
    except Exception:  # what explains an error must not become the error
        return error
    return ValueError(f"bind {_short(bind[:], 200)!r}: {told}") if told else error


def _instead(bind: object) -> str:
    try:
        return str(load("harken._diagnosis.mistakes").instead(bind))
    except Exception:
        return ""


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def read(bind: str | int) -> _Fields:
    if isinstance(bind, int) and not isinstance(bind, bool):
        if not 0 <= bind <= 65535:
            text = _shortly(bind)
            _refuse(text, 0, f"port {text} is not between 0 and 65535")
        return None, int(bind), AF_UNSPEC, f":{int(bind)}", None, None, "tcp", (), None
    if not isinstance(bind, str):
        raise TypeError(f"a bind is a str or a port number, not {type(bind).__name__}: {_shown(bind)}{_instead(bind)}")
    if len(bind) > MOST:
        raise ValueError(f"bind {_short(bind[:], 200)!r}: {len(bind)} characters are more than the {MOST} of any bind")
    text = bind[:]  # the text itself, also of a subclass with a __str__ of its own
    scheme, at = _scheme(text)
    end = text.find("?", at)
    options: _Pairs = ()
    if end < 0:
        end = len(text)
    else:
        options = _options(text, end + 1)
    if scheme == "unix":
        return None, None, AF_UNIX, text, _path(text, at, end), None, scheme, options, None
    if scheme == "systemd":
        return None, None, AF_UNSPEC, text, _name(text, at, end), None, scheme, options, None
    if scheme == "fd":
        return None, None, AF_UNSPEC, text, _fd(text, at, end), None, scheme, options, None
    if scheme == "vsock":
        colon = text.rfind(":", at, end)
        if colon < 0:
            _refuse(text, end, "the port is missing, as in vsock://*:1024")
        port, last = _port(text, colon + 1, end, 0xFFFFFFFE)
        return None, port, AF_UNSPEC, text, _cid(text, at, colon), last, scheme, options, None
    host, scope_id, port_at = _host(text, at, end)
    port, last = _port(text, port_at, end, 65535)
    return host, port, _FAMILIES[scheme], text, None, last, scheme, options, scope_id


def _scheme(text: str) -> tuple[str, int]:
    """The scheme, and where the rest begins."""
    word, colon, rest = text.partition(":")
    if colon and word in ("unix", "systemd"):
        return word, len(word) + 1
    word, separator, _ = text.partition("://")
    if separator:
        if word not in SCHEMES:
            _refuse(text, 0, f"{_short(word)!r} is not one of {', '.join(SCHEMES)}")
        return word, len(word) + 3
    if text.startswith(("/", "./", "../", "@")):
        _refuse(text, 0, f"a unix socket is written unix:{_short(text)}")
    word, colon, rest = text.partition(":")
    if colon and word in SCHEMES:
        right, named = f"{word}://{_short(rest)}", f"tcp://{_short(text)}"
        shown = f", as in {right}" if reads(right) else ""
        host = f"; a host of that name: {named}" if reads(named) else ""
        _refuse(text, len(word), f"two slashes are missing{shown}{host}")
    return "tcp", 0


def _host(text: str, at: int, end: int) -> tuple[str | None, int | None, int]:
    """The host, its scope if that is a number, and where the port begins."""
    if text.startswith("[", at):
        return _in_brackets(text, at, end)
    colon = text.rfind(":", at, end)
    if colon < 0:
        rest = text[at:end]
        if _is_number(rest.replace("-", "", 1)):
            return None, None, at
        _refuse(text, end, f"the port is missing, as in {_with_a_port(_short(rest))}")
    host = text[at:colon]
    if host in ("", "*"):
        return None, None, colon + 1
    if ":" in host:
        right, port = "[::1]:8080", text[colon + 1 : end]
        if _is_ipv6(host) and (_is_number(port) or port[:1].isalpha()):
            right = f"[{host}]:{_short(port)}"
        elif _is_ipv6(text[at:end]):
            right = f"[{text[at:end]}]:8080"
        _refuse(text, at, f"an IPv6 address is written in brackets, as in {right}")
    if host in _NO_VALUE or (at == 0 and host in _NO_HOSTS):
        _refuse(text, at, f"{host!r} is not a host; if it is a host name, it is written tcp://{text}")
    if len(host) > _MOST_OF_A_HOST:
        _refuse(text, at, "no host name is longer than 253 characters")
    _none_of(text, at, colon, "a host", _NO_HOST)
    if _ends_in_a_number(host):
        if normal_host(host) is None:
            _refuse(text, at, _no_ipv4(host, text[colon + 1 : end]))
        _can_be_reached(text, at, host)
    else:
        _can_be_resolved(text, at, host)
    return host, None, colon + 1


def _with_a_port(host: str) -> str:
    right = f"{host}:8080"
    return right if host and reads(right) else "127.0.0.1:8080"


def reads(text: str) -> bool:
    """Is it a bind? What is shown as the right form has to be one, whatever was written."""
    try:
        read(text)
    except ValueError:
        return False
    return True


def _in_brackets(text: str, at: int, end: int) -> tuple[str, int | None, int]:
    """The same for an IPv6 address."""
    close = text.find("]", at, end)
    if close < 0 or not text.startswith(":", close + 1):
        right = f"{text[at : close + 1]}:8080" if normal_host(text[at + 1 : max(close, at + 1)]) else "[::1]:8080"
        _refuse(text, close + 1 if close >= 0 else end, f"an IPv6 address with a port is written {right}")
    host = text[at + 1 : close]
    address, percent, scope = host.partition("%")
    if not _is_ipv6(address):
        _refuse(text, at + 1, f"{_short(address)!r} is not an IPv6 address, which is written [::1]:8080 with its port")
    _can_be_reached(text, at + 1, address)
    if not percent:
        return host, None, close + 2
    if not scope:
        _refuse(text, close, "the scope is missing, as in [fe80::1%eth0]:8080")
    scope_at = at + len(address) + 2
    if not takes_scope(address):
        right = f"[{address}]:{_short(text[close + 2 : end])}?interface={_short(scope)}"
        _refuse(
            text, scope_at - 1,
            "only a link-local address (fe80::/10) has a scope; the option interface limits it to one interface"
            f" alone, as in {right}",
        )  # fmt: skip
    name, number = _scope(text, scope_at, close)
    return f"{address}%{name}", number, close + 2


def _can_be_resolved(text: str, at: int, host: str) -> None:
    try:
        labels = (host.encode("ascii") if host.isascii() else idna(host)).split(b".")
    except UnicodeError:
        _refuse(text, at, f"{_short(host)!r} is not a host name")
    if max(map(len, labels)) > 63:
        _refuse(text, at, "no part of a host name is longer than 63 characters")
    if sum(map(len, labels)) + len(labels) > 255:  # with the dots, of which one may be the last
        _refuse(text, at, "no host name is longer than 253 characters")
    plain = b".".join(labels).decode("ascii")
    if plain != host and _ends_in_a_number(plain):  # 127.0.0.1 with other digits or dots
        _refuse(text, at, f"{_short(host)!r} only looks like an address, which would be {plain}")


_NO_VALUE = frozenset(("None", "null", "undefined"))  # a variable without a value, written out
# In front of a colon they say how others write an address. A host of that name has to be meant.
_NO_HOSTS = frozenset(
    ("udp", "udp4", "udp6", "inet", "inet4", "inet6", "ssl", "tls", "http", "https", "UNIX", "TCP", "Unix", "Tcp")
)


def _is_ipv6(text: str) -> bool:
    return ":" in text and normal_host(text.partition("%")[0]) is not None


def _ends_in_a_number(host: str) -> bool:
    """Resolvers take such a host for an IPv4 address, in forms of which some mislead: 010.0.0.1 is 8.0.0.1."""
    last = host.rstrip(".").rpartition(".")[2]
    return last.isdecimal() or (last[:2].lower() == "0x" and _HEX.issuperset(last[2:]))


def _no_ipv4(host: str, port: str) -> str:
    """What to say of an IPv4 address that is not written as four numbers."""
    try:
        with getaddrinfo(host, 0, AF_INET, SOCK_STREAM, 0, AI_NUMERICHOST) as found:
            address = str(found[0].sockaddr[0])
    except (OSError, ValueError):
        bare = host.rstrip(".")
        if normal_host(bare):
            return f"an address does not end with a dot: write {bare}:{_short(port)}"
        return f"{_short(host)!r} is no IPv4 address, which is four numbers from 0 to 255, as in 127.0.0.1"
    every = f" or :{_short(port)}" if address == "0.0.0.0" else ""
    return f"{_short(host)!r} is an old way to write {address}: write {address}:{_short(port)}{every}"


def _can_be_reached(text: str, at: int, address: str) -> None:
    normal = normal_host(address) or ""
    first = normal.partition(":" if ":" in normal else ".")[0]
    if (len(first) == 4 and first[:2] == "ff") if ":" in normal else 224 <= int(first) < 240:
        _refuse(text, at, f"{normal} is a multicast address, to which no TCP client can connect")
    if normal == "255.255.255.255":
        _refuse(text, at, f"{normal} is the broadcast address, to which no TCP client can connect")


def _scope(text: str, at: int, end: int) -> tuple[str, int | None]:
    """The interface behind ``%``, decoded, and its number if it is one.

    ``%25`` in front of a name is how URLs write ``%`` (RFC 6874). ``%25`` and more digits is a number.
    """
    if text.startswith("25", at) and at + 2 < end and not _is_number(text[at:end]):
        at += 2
    _none_of(text, at, end, "a scope", frozenset(" #/[]"), "\udc80", "\udcff")  # bytes that are no text are in order
    name = _decoded(text, at, end)
    if not _is_number(name):
        if "/" in name or "\0" in name or len(fsencode(name)) > 255:
            _refuse(text, at, f"{_short(name)!r} is not the name of an interface")
        return name, None
    number = _number(name)
    if not 0 < number <= 0xFFFFFFFF:
        _refuse(text, at, f"{_short(name, 20)} is not the number of an interface: they start at 1")
    return str(number), number


def _none_of(text: str, at: int, end: int, what: str, bad: frozenset[str], first: str = "", last: str = "") -> None:
    for n in range(at, end):
        if text[n] in bad or not (text[n].isprintable() or first <= text[n] <= last):
            _refuse(text, n, f"{what} has no {text[n]!r} in it")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _number(text: str) -> int:
    return int(text.lstrip("0")[:20] or 0)  # int() refuses thousands of digits


def _port(text: str, at: int, end: int, most: int) -> tuple[int | str, int | None]:
    """A port, and the last one when it is a range."""
    port = text[at:end]
    first, dash, last = port.partition("-")
    if _is_number(first) and (not dash or _is_number(last)):
        numbers = [_number(number) for number in (first, last) if number]
        for number in numbers:
            if number > most:
                _refuse(text, at, f"port {number} is not between 0 and {most}")
        if dash and not 0 < numbers[0] <= numbers[1]:
            _refuse(text, at, f"a range of ports begins above 0 and goes up, as in 8000-8010; this is {port}")
        return numbers[0], numbers[1] if dash and numbers[0] < numbers[1] else None
    named = most == 65535  # services are of TCP
    if port in _NO_VALUE:
        _refuse(text, at, f"{port!r} is not a port")
    if not (
        named
        and len(port) <= 255
        and port.isascii()
        and port[:1].isalpha()
        and not _NO_NAME.intersection(port)
        and port.isprintable()
    ):
        or_name = ", or the name of a service" if named else ""
        _refuse(
            text, at, f"{_short(port)!r} is not a port: a number from 0 to {most}, a range as in 8000-8010{or_name}"
        )
    return port, None


_NO_NAME = frozenset(" #%:?@[]")


def _path(text: str, at: int, end: int) -> str:
    if text.startswith("//", at):
        if not text.startswith("///", at):
            _refuse(text, at, f"a path is written unix:/path or unix:{_short(text[at + 2 : end])}")
        at += 2
    if text.startswith("~", at):
        _refuse(text, at, "~ is not expanded here; a file of that name is written unix:./~")
    dollar = text.find("$", at, end)
    if dollar >= 0 and (text[dollar + 1 : dollar + 2] in ("{", "(") or _begins_a_part(text, at, dollar)):
        _refuse(text, dollar, "a variable has not been replaced by its value; the character itself is written %24")
    if text.startswith("@", at):
        name = _decoded(text, at + 1, end)
        return f"\0{name}" if name else _refuse(text, end, "the abstract name is missing, as in unix:@name")
    path = _decoded(text, at, end)
    if "\0" in path:
        _refuse(text, at, "a path has no NUL in it; an abstract name is written unix:@name")
    return path or _refuse(text, end, "the path is missing, as in unix:/run/app.sock")


def _begins_a_part(text: str, at: int, dollar: int) -> bool:
    return (dollar == at or text[dollar - 1] == "/") and text[dollar + 1 : dollar + 2].isidentifier()


def _name(text: str, at: int, end: int) -> str:
    """A name that may be missing: then all that systemd has passed is meant."""
    name = _decoded(text, at, end)
    if name.startswith("//") or ":" in name:
        _refuse(text, at, "a name of systemd's is written systemd:name, and has no colon in it")
    return name


def _fd(text: str, at: int, end: int) -> int:
    number = _number(text[at:end]) if _is_number(text[at:end]) else -1
    if not 0 <= number <= 0x7FFFFFFF:
        _refuse(text, at, f"{_short(text[at:end])!r} is not a file descriptor, as in fd://3")
    return number


def _cid(text: str, at: int, end: int) -> int:
    cid = text[at:end]
    number = _number(cid) if _is_number(cid) else _CIDS.get(cid, -1)
    if not 0 <= number <= 0xFFFFFFFF:
        _refuse(text, at, f"{_short(cid)!r} is not a context id: a number, host, local, or * for any")
    return number


def _options(text: str, at: int) -> _Pairs:
    found: dict[str, str] = {}
    for part in text[at:].split("&"):
        key, equals, _ = part.partition("=")
        if not (key.isascii() and key.isidentifier()):
            _refuse(text, at, f"{_short(key)!r} is not an option, which is written name=value")
        if not equals:
            _refuse(text, at + len(key), f"the value of {_short(key)} is missing, as in {_short(key)}=1")
        if key in found:
            _refuse(text, at, f"{_short(key)} is given twice")
        found[key] = _decoded(text, at + len(key) + 1, at + len(part))
        at += len(part) + 1
    return tuple(found.items())


def _decoded(text: str, at: int, end: int) -> str:
    """Percent-encoding undone, byte by byte: a path is bytes, and need not be UTF-8."""
    first, *others = text[at:end].split("%")
    data = bytearray(_encoded(text, at, first))
    at += len(first)
    for part in others:
        digits = part[:2]
        if len(digits) != 2 or not _HEX.issuperset(digits):
            _refuse(text, at, "a percent sign must be followed by two hexadecimal digits; itself it is written %25")
        data.append(int(digits, 16))
        data += _encoded(text, at + 3, part[2:])
        at += 1 + len(part)
    try:
        return fsdecode(bytes(data))
    except UnicodeError:
        _refuse(text, at, f"{bytes(data[:80])!r} cannot be decoded")


def _encoded(text: str, at: int, part: str) -> bytes:
    try:
        return fsencode(part)
    except UnicodeEncodeError as error:
        _refuse(text, at + error.start, f"{part[error.start]!r} cannot be encoded")


# ---------------------------------------------------------------------------- printing


def _quoted(text: str) -> str:
    data = fsencode(text)
    if not data.translate(None, _PLAIN):
        return text
    if not _ENCODED:
        _ENCODED[:] = [chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in range(256)]
    return "".join([_ENCODED[byte] for byte in data])


_ENCODED: list[str] = []  # each byte as it stands in a URL


def unix_url(path: str) -> str:
    """A path, or an abstract name behind a NUL, as a bind."""
    if path.startswith("\0"):
        return f"unix:@{_quoted(path[1:])}"
    if path.startswith(("@", "~")):
        return f"unix:%{ord(path[0]):02X}{_quoted(path[1:])}"
    return f"unix:{'//' if path.startswith('//') else ''}{_quoted(path)}"


def scoped(address: str, scope_id: int) -> str:
    """An IPv6 address with its scope, as it stands in the brackets of a bind that reads back as the same number.

    A name is for people: it is shown where the interface has one. Names may have any byte in them but a slash and white
    space, so they are percent-encoded.
    """
    return f"{address}%{_named_scope(scope_name(scope_id))}"


def _named_scope(name: str) -> str:
    if _is_number(name):
        return name
    return f"{'25' if name.startswith('25') else ''}{_quoted(name)}"


def _normal(host: str | None, scope_id: int | None = None) -> str | None:
    """A host as it stands in a URL, the same for all ways to write it."""
    if host is None:
        return None
    address, percent, scope = host.partition("%")
    digits = normal_host(address)
    if digits is not None and ":" in digits:
        return f"[{digits}%{scope_id or _named_scope(scope)}]" if percent else f"[{digits}]"
    if _NO_HOST.isdisjoint(host) and host.isprintable():
        return host.lower() if host.isascii() else host
    return "".join(one if one.isprintable() and one not in _NO_HOST else _quoted_all(one) for one in host)


def _quoted_all(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogateescape"))
