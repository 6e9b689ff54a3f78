"""Handshakes that are under way: a client has sent its first packet, and its connection is in no queue yet. Linux tells
of them by sock_diag(7), without a privilege."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Iterator

from ._diagnosis import netlink
from ._socket import Socket, family_of
from ._system import AF_INET, AF_INET6, IPPROTO_IPV6, IPPROTO_TCP, IPV6_V6ONLY

_HALF_OPEN = 1 << 3  # TCP_SYN_RECV
WITHOUT_SIGHT = 1.2  # seconds to wait where they cannot be seen: one repetition
LOOK = 0.02  # seconds between two looks, each of which takes the kernel 10 ms

Client = tuple[bytes, int]
"""Its address and port."""


def families_of(listener: Socket) -> tuple[int, ...]:
    """A listener of both families has clients of both."""
    both = family_of(listener) == AF_INET6 and not listener.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY)
    return (AF_INET6, AF_INET) if both else (family_of(listener),)


def handshakes(port: int, families: Iterable[int]) -> Iterator[Client]:
    """Those to one of this machine's ports. Raises OSError where it cannot be told."""
    for family in families:
        request = struct.pack("=BBBxI", family, IPPROTO_TCP, 0, _HALF_OPEN) + struct.pack("!HH", port, 0)
        request += bytes(36) + b"\xff" * 8
        for body in netlink.dump(netlink.SOCK_DIAG, netlink.DIAG_BY_FAMILY, request):
            if len(body) >= 40:
                yield bytes(body[24:40]), int.from_bytes(body[6:8], "big")


def wait(look: Callable[[], set[tuple[int, Client]]], until: float, between: Callable[[], object]) -> int | None:
    """Until those are over that are there now, or until this time, with ``between`` between two looks. Returns how many
    are left; None where it cannot be told, and one repetition was waited for."""
    begun = time.monotonic()
    try:
        # A packet that another processor had in hand when the last step was made is seen by the second look.
        left = look()
        time.sleep(0.005)
        left |= look()
        while left and (rest := until - time.monotonic()) > 0:
            time.sleep(min(LOOK, rest))
            between()
            left &= look()
        return len(left)
    except OSError:  # no netlink here, or no descriptor for it
        while (rest := min(until, begun + WITHOUT_SIGHT) - time.monotonic()) > 0:
            time.sleep(min(LOOK, rest))
        return None
