"""Errors for the person who reads them at three in the morning: which step, on which address, and what to do."""

from __future__ import annotations

import errno
import os

from ._bind import scoped
from ._loading import Later

# `import harken` loads this module, so that an error can be told when nothing can be loaded any more: it costs no
# import that Python has not made at its own start.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from functools import cached_property
    from typing import Any

    from . import _types
    from ._diagnosis import holders as _holders
    from ._diagnosis.holders import Finding
    from ._types import Address
else:
    _holders, _types = Later("harken._diagnosis.holders"), Later("harken._types")

    class cached_property:  # noqa: N801
        """functools.cached_property, without the import of functools."""

        def __init__(self, function: Any) -> None:
            self.function, self.__doc__ = function, function.__doc__

        def __set_name__(self, owner: type, name: str) -> None:
            self.name = name

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            if instance is None:
                return self
            return instance.__dict__.setdefault(self.name, self.function(instance))


class ListenError(OSError):
    """A step on the way to a listening socket failed.

    It is also an instance of the plain error's class: a PermissionError where bind() was not permitted, a
    socket.gaierror where a name could not be resolved. ``errno``, on Windows ``winerror``, and ``strerror`` are the
    system's.
    """

    def __init__(self, *args: object) -> None:  # with a signature, which OSError's own has not
        super().__init__(*args)

    step: str = "listen"
    """The call that failed: ``getaddrinfo``, ``socket``, ``setsockopt``, ``bind``, ``listen``, ``getsockname``,
    ``getsockopt``; for the path of a unix socket also ``connect``, which finds out whether a server uses it, ``chown``,
    ``chmod``, and ``rename``, by which a takeover gets it; for inherited sockets ``adopt`` or ``from_systemd``;
    ``import`` where a module that the bind needs could not be loaded: see `preload`."""

    address: tuple[str, int] | tuple[str, int, int, int] | str = ""
    """What the call failed on: an address as in `Listener.address`; for ``getaddrinfo``, and for a range of ports that
    are all in use, the bind as it was given; for an inherited socket ``fd://3`` or ``systemd:name``."""

    _path = ""
    """A relative path in absolute form: the process may change its directory before the error is read."""

    option: tuple[str, object] | None = None
    """The option that failed, with the value that was asked for; None if it is not about an option."""

    _named: tuple[str | None, int | str | None] | None = None
    """Of getaddrinfo: the host and the port that it was asked for."""

    # What is below is found out when it is first asked for, and kept. A loop that tries the next port, or waits for
    # this one, would pay milliseconds for what it throws away; whoever prints the error does so at once.

    @cached_property
    def hint(self) -> str:
        """What to do about it, in one line; empty if there is nothing to add to the system's text."""
        try:
            from ._diagnosis.hints import hint_for

            return hint_for(self)
        except Exception:  # what explains an error must not become the error
            return ""

    def __str__(self) -> str:
        option = f", {self.option[0]}={self.option[1]!r}" if self.option else ""
        text = f"{self.step}({shown(self.address)}{option}): {super().__str__()}"
        return f"{text}\nhint: {self.hint}" if self.hint else text

    def __repr__(self) -> str:
        facts = [*map(repr, self.args), f"step={self.step!r}", f"address={self.address!r}"]
        if self.option:
            facts.append(f"option={self.option!r}")
        return f"{type(self).__name__}({', '.join(facts)})"

    def __reduce__(self) -> tuple[object, ...]:
        _ = self.hint  # found out here, as the copy may be read on another machine
        return failure, (self.step, self.address, _plain(self), self.option), self.__dict__


class AddressInUseError(ListenError):
    """The address is in use: EADDRINUSE, and on Windows also WSAEACCES, which is a PermissionError too."""

    _bind = ""
    """The bind that failed."""
    _interface = ""
    """The interface that its socket was bound to."""
    _takes_both = False
    """Whether it was an IPv6 socket that also accepts IPv4."""
    _own: tuple[tuple[str, tuple[str, int] | tuple[str, int, int, int] | str, str, bool, bool], ...] = ()
    """What else the call had opened, which is closed by the time that the error is read: `_diagnosis.holders.Own`."""

    @property
    def holders(self) -> list[_holders.Holder]:
        """The processes whose sockets conflict, this one included, as far as the system reports them. Looked up
        when first read. See `harken.holders`."""
        return self._finding.holders

    @property
    def cause(self) -> str:
        """Why the address is in use. Looked up when first read.

        ``twice``      two binds of the same call of listen() or bind() name it
        ``listener``   another socket listens on it
        ``wildcard``   a socket is bound to a wildcard that includes it, or to an address that this one includes
        ``v6only``     an IPv6 socket that also accepts IPv4 is bound to it, or this one is such a socket
        ``inherited``  a child process has the socket, inherited from its parent
        ``bound``      a socket is bound to it and does not listen
        ``time-wait``  only connections in TIME_WAIT are left there
        ``hidden``     a process that this user cannot inspect holds it
        ``excluded``   Windows reserves the port
        ``unknown``    no process is found that holds it, or the system does not report it
        """
        return self._finding.cause

    @cached_property
    def _finding(self) -> Finding | _Unknown:
        try:
            from ._diagnosis.holders import Finding, Own, explain, twin
        except Exception:  # as for the hint
            return _Unknown()
        own = [Own(*one) for one in self._own]
        found, wish = Finding("unknown", []), (self._interface, self._takes_both, own)
        try:
            # What surely stood in the way; then whatever is there now; then what may have stood in the way.
            if own and (other := twin(self.address, *wish, standing=True)):
                return Finding("twice", [], other)
            found = explain(self._path or self.address, self._interface) if self.address else found
            if own and found.cause == "unknown" and (other := twin(self.address, *wish, standing=False)):
                return Finding("twice", [], other)
        except Exception:
            pass
        if found.cause == "unknown" and not isinstance(self.address, str):
            try:
                from ._diagnosis.hints import excluded_range
            except Exception:
                return found
            if excluded_range(*self.address[:2]):
                return Finding("excluded", [])
        return found


ListenError.__module__ = AddressInUseError.__module__ = "harken"  # where programs import them from


class _Unknown:
    """A `Finding` where the module that finds out cannot be loaded."""

    cause, twin = "unknown", ""

    def __init__(self) -> None:
        self.holders: list[_holders.Holder] = []


_WSAEACCES = 10013


def failure(
    step: str, address: Address | str, reason: OSError, option: tuple[str, object] | None = None
) -> ListenError:
    """``reason`` as a ListenError that is an instance of its class too."""
    winerror = getattr(reason, "winerror", None)
    in_use = reason.errno == errno.EADDRINUSE or (winerror == _WSAEACCES and step == "bind")
    base, plain = AddressInUseError if in_use else ListenError, type(reason)
    kind: Any = base if plain is OSError else _KINDS.get((base, plain))
    if kind is None:
        name = f"{base.__name__.removesuffix('Error')}{plain.__name__[:1].upper()}{plain.__name__[1:]}"
        kind = type(name, (base, plain), {"__module__": "harken"})
        _KINDS[base, plain] = kind
    # On Windows OSError finds errno from its fourth argument.
    arguments = reason.args if winerror is None else (reason.errno, reason.strerror, None, winerror)
    error: ListenError = kind(*arguments)
    error.step = step
    error.address = address
    if isinstance(address, str) and address.startswith(("./", "../")):
        try:
            error._path = os.path.join(os.getcwd(), address)
        except OSError:
            pass  # the folder is gone
    error.option = option
    return error


_KINDS: dict[tuple[type[ListenError], type[OSError]], type[ListenError]] = {}


def _plain(error: ListenError) -> OSError:
    plain: type[OSError] = OSError
    for base in type(error).__bases__:
        if issubclass(base, OSError) and not issubclass(base, ListenError):
            plain = base
    if getattr(error, "winerror", None) is not None:
        return plain(error.errno, error.strerror, None, error.winerror)  # type: ignore[attr-defined,unused-ignore]
    return plain(*error.args)


def shown(address: Address | str) -> str:
    """An address as people write it: ``127.0.0.1:80``, ``[::1]:80``, ``[fe80::1%eth0]:80``."""
    if isinstance(address, str):
        return f"@{address[1:]}" if address.startswith("\0") else address
    host, port = str(address[0]), address[1]
    if len(address) > 3 and address[3] and "%" not in host:
        host = scoped(host, int(address[3]))
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
