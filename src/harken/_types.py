"""Types that several rooms speak of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

from ._acceptor import Acceptor

Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str
"""Where a socket is: a tuple for TCP, as the standard library writes it; for a unix socket the path."""

Policy: TypeAlias = Literal["hash", "least", "weights"]
"""How a group spreads connections over its members."""

OnOverload: TypeAlias = Literal["pause", "shed"] | Callable[[Acceptor, OSError], float | str | None]
"""What an acceptor does when descriptors have run out."""


class HasFileno(Protocol):
    """Anything with a handle."""

    def fileno(self) -> int: ...


class HasOptions(Protocol):
    """A socket of harken's or of the standard library's."""

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


class Detachable(HasFileno, Protocol):
    """A socket object that can give its handle away."""

    def detach(self) -> int: ...
