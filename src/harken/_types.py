"""Types that several rooms speak of."""

from typing import Protocol, TypeAlias

Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str
"""Where a socket is: a tuple for TCP, as the standard library writes it; for a unix socket the path."""


class HasFileno(Protocol):
    """Anything with a handle."""

    def fileno(self) -> int: ...


class Detachable(HasFileno, Protocol):
    """A socket object that can give its handle away."""

    def detach(self) -> int: ...
