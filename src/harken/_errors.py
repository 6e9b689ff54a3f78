"""Errors for the person who reads them at three in the morning: which step, on which address."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from ._types import Address


class ListenError(OSError):
    """A step on the way to a listening socket failed.

    The class of the plain error is kept beside it: where bind() was refused, this is a PermissionError too; where a
    name could not be resolved, a socket.gaierror. ``errno``, on Windows ``winerror``, and ``strerror`` are the
    system's.
    """

    step: str = "listen"
    """The call that failed: ``getaddrinfo``, ``socket``, ``setsockopt``, ``bind``, ``listen``; for inherited sockets
    ``adopt`` or ``from_systemd``."""

    address: Address | str = ""
    """What it failed on: an address as `Listener.address` has it; for ``getaddrinfo``, and for a
    range of ports that are all in use, the bind as it was given; what is inherited is ``fd://3``, ``systemd:name``."""

    def __str__(self) -> str:
        return f"{self.step}({shown(self.address)}): {super().__str__()}"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.step, self.address, _plain(self))


ListenError.__module__ = "harken"  # where programs import it from


def failure(step: str, address: Address | str, reason: OSError) -> ListenError:
    """``reason`` as a ListenError that is an instance of its class too."""
    plain = type(reason)
    kind = _KINDS.get(plain)
    if kind is None:
        name = f"Listen{plain.__name__[:1].upper()}{plain.__name__[1:]}"
        kind = cast("type[ListenError]", type(name, (ListenError, plain), {"__module__": "harken"}))
        _KINDS[plain] = kind
    winerror = getattr(reason, "winerror", None)
    # On Windows OSError finds errno from its fourth argument.
    error = kind(*reason.args) if winerror is None else kind(reason.errno, reason.strerror, None, winerror)
    error.step = step
    error.address = address
    return error


_KINDS: dict[type[OSError], type[ListenError]] = {OSError: ListenError}


def _plain(error: ListenError) -> OSError:
    plain = next((base for base in type(error).__bases__ if base is not ListenError), OSError)
    if getattr(error, "winerror", None) is not None:
        return cast(OSError, plain(error.errno, error.strerror, None, error.winerror))  # type: ignore[attr-defined,unused-ignore]
    return cast(OSError, plain(*error.args))


def _rebuild(step: str, address: Address | str, reason: OSError) -> ListenError:
    return failure(step, address, reason)


def shown(address: Address | str) -> str:
    """An address as people write it: ``127.0.0.1:80``, ``[::1]:80``."""
    if isinstance(address, str):
        return address
    host, port = str(address[0]), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
