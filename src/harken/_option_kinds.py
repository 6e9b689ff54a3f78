"""The kinds of values that options have: what is valid, how a bind writes it, and how a socket takes it."""

# ruff: noqa: ARG002 - not every kind needs all that the interface of Kind passes

from __future__ import annotations

import os

from ._system import BUFFER_FACTOR, FASTOPEN_MOST, SOL_SOCKET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

INT_MAX = 0x7FFFFFFF


class Kind:
    """A kind of value. The names of its attributes are those of the columns that `_option_table` documents."""

    __slots__ = ("unit",)

    annotation = "int"
    """The type, as it stands in signatures and stubs; None, the default of each option, comes in addition."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        """What the value is, for the documentation: ``seconds``, ``switch``."""

    def check(self, name: str, value: object) -> object:
        """Returns the value as `Options` stores it. Raises TypeError or ValueError for one that no system takes."""
        raise NotImplementedError

    def parse(self, name: str, text: str) -> object:
        """Reads a value as it is written in a bind, ``?ttl=5``. Raises ValueError."""
        return number(name, text)

    def to_system(self, value: object, level: int) -> int | bytes:
        """What setsockopt() is given. ``level`` is that of the option: SOL_SOCKET, IPPROTO_IP and so on."""
        return int(value)  # type: ignore[call-overload,no-any-return]

    def from_system(self, value: int, asked: object) -> object:
        """The value that getsockopt() returned, in the option's own unit."""
        return value


class Switch(Kind):
    """On or off."""

    __slots__ = ()

    annotation = "bool"

    def __init__(self, unit: str = "switch") -> None:
        super().__init__(unit)

    def check(self, name: str, value: object) -> object:
        if not isinstance(value, bool) and not (isinstance(value, int) and value in (0, 1)):
            wrong_type(name, "True or False", value)
        return bool(value)

    def parse(self, name: str, text: str) -> object:
        value = _SWITCH_WORDS.get(text.lower())
        if value is None:
            raise ValueError(f"{name} must be 1 or 0{self.others()}, not {shortened(text)!r}")
        return value

    def others(self) -> str:
        """What a bind may say besides 1 and 0, for the message."""
        return ""

    def from_system(self, value: int, asked: object) -> object:
        return bool(value)


class Sharing(Switch):
    """On, off, or on together with other processes."""

    __slots__ = ()

    annotation = 'bool | Literal["join"]'

    def check(self, name: str, value: object) -> object:
        return value if value == "join" else super().check(name, value)

    def parse(self, name: str, text: str) -> object:
        return text if text == "join" else super().parse(name, text)

    def others(self) -> str:
        return ", or join"

    def to_system(self, value: object, level: int) -> int | bytes:
        return 1 if value else 0

    def from_system(self, value: int, asked: object) -> object:
        return asked if asked == "join" and value else bool(value)


class Whole(Kind):
    """A whole number between two limits."""

    __slots__ = ("least", "most")

    def __init__(self, unit: str, least: int, most: int = INT_MAX) -> None:
        super().__init__(unit)
        self.least, self.most = least, most

    def check(self, name: str, value: object) -> object:
        if not isinstance(value, int) or isinstance(value, bool):
            wrong_type(name, f"an int from {self.least} to {self.most}", value)
        if not self.least <= value <= self.most:
            raise ValueError(f"{name} must be from {self.least} to {self.most}, not {digits(value)}")
        return value

    def from_system(self, value: int, asked: object) -> object:
        return value & 0xFFFFFFFF if self.most > INT_MAX else value


class Buffer(Whole):
    """The size of a buffer, of which Linux reports twice what was set."""

    __slots__ = ()

    def from_system(self, value: int, asked: object) -> object:
        return value // BUFFER_FACTOR


class FastOpen(Whole):
    """A length on Linux, on or off on other systems."""

    __slots__ = ()

    def to_system(self, value: object, level: int) -> int | bytes:
        return min(int(value), FASTOPEN_MOST)  # type: ignore[call-overload,no-any-return]


class Backlog(Kind):
    """A number of connections, which the system limits."""

    __slots__ = ()

    def check(self, name: str, value: object) -> object:
        if not isinstance(value, int):
            raise TypeError(f"{name} must be an int or None, not {type(value).__name__}")
        if value < 0:
            raise ValueError(f"{name} must not be negative: {digits(value)}")
        return value


class Mode(Kind):
    """The permissions of a path."""

    __slots__ = ()

    def check(self, name: str, value: object) -> object:
        if not isinstance(value, int) or isinstance(value, bool):
            wrong_type(name, "an int, as 0o660", value)
        if not 0 <= value <= 0o777:
            shown = f"{oct(value)} ({value})" if value.bit_length() < 64 else digits(value)
            meant = f"; did you mean 0o{value}?" if 600 <= value <= 777 and not set(str(value)) & {"8", "9"} else ""
            raise ValueError(f"{name} must be from 0o0 to 0o777, written in octal, not {shown}{meant}")
        return value

    def parse(self, name: str, text: str) -> object:
        return number(name, text.removeprefix("0o"), 8)


class Text(Kind):
    """A name without spaces."""

    __slots__ = ()

    annotation = "str"

    def check(self, name: str, value: object) -> object:
        if not isinstance(value, str):
            wrong_type(name, "a str", value)
        if not self.is_valid(value):
            raise ValueError(f"{name} must be a name of 1 to 15 characters, not {shortened(value)!r}")
        return value

    def is_valid(self, value: str) -> bool:
        return 0 < len(value) <= 15 and value.isascii() and value.isprintable() and not set(value) & {" ", "/"}

    def parse(self, name: str, text: str) -> object:
        return text

    def to_system(self, value: object, level: int) -> int | bytes:
        return os.fsencode(value)  # type: ignore[arg-type]


class Interface(Text):
    """The name of a network interface, or where the system asks for it, its index."""

    __slots__ = ()

    def is_valid(self, value: str) -> bool:
        """Linux takes any bytes but a slash, a colon and white space, and no more than 15 of them."""
        try:
            data = os.fsencode(value[:16])
        except UnicodeError:
            return False
        return 1 <= len(data) <= 15 and not set(data) & set(b"/:\0") and len(data.split()) == 1

    def to_system(self, value: object, level: int) -> int | bytes:
        if level == SOL_SOCKET:
            return super().to_system(value, level)
        import socket

        return socket.if_nametoindex(value)  # type: ignore[arg-type]


class Account(Kind):
    """A user or a group, by name or number."""

    __slots__ = ()

    annotation = "str | int"

    def check(self, name: str, value: object) -> object:
        if isinstance(value, str):
            if not value or len(value) > 255:
                raise ValueError(f"{name} must be a name of 1 to 255 characters or a number, not {shortened(value)!r}")
            return value
        if not isinstance(value, int) or isinstance(value, bool):
            wrong_type(name, "a name or a number", value)
        if not 0 <= value < 0xFFFFFFFF:
            raise ValueError(f"{name} must be a name or a number from 0 on, not {digits(value)}")
        return value

    def parse(self, name: str, text: str) -> object:
        return number(name, text) if text.isascii() and text.isdigit() else text


class Function(Kind):
    """A function of a socket and an address; a bind cannot have it."""

    __slots__ = ()

    annotation = "Callable[[Socket, Address], object]"

    def check(self, name: str, value: object) -> object:
        if not callable(value):
            wrong_type(name, "a function of a socket and an address", value)
        return value


_SWITCH_WORDS = {
    "1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False,
}  # fmt: skip


def number(name: str, text: str, base: int = 10) -> int:
    """Reads a number. Raises ValueError."""
    if text.isascii() and text.isdigit() and len(text) < 300:
        try:
            return int(text, base)
        except ValueError:
            raise ValueError(f"{name} is written in octal, as in {name}=0660, not {shortened(text)!r}") from None
    raise ValueError(f"{name} must be a number, not {shortened(text)!r}")


def wrong_type(name: str, what: str, value: object) -> NoReturn:
    """Raises TypeError."""
    raise TypeError(f"{name} must be {what}, not {type(value).__name__}")


def shortened(text: str) -> str:
    """A text for a message."""
    return text if len(text) <= 80 else f"{text[:80]}..."


def digits(value: int) -> str:
    """A number for a message: Python refuses to print very long ones."""
    return str(value) if value.bit_length() < 1024 else f"a number of {value.bit_length()} bits"
