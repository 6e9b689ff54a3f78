"""Types that several rooms speak of."""

from typing import TypeAlias

Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int]
"""Where a TCP socket is, as the standard library writes it."""
