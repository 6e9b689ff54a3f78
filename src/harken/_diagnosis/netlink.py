"""Questions to Linux's kernel over netlink: about sockets, and about this machine's addresses."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Generator

ROUTE = 0
SOCK_DIAG = 4
DIAG_BY_FAMILY = 20

_HEADER = struct.Struct("=IHHII")  # length, kind, flags, sequence, port
DUMP = 0x1 | 0x300  # all entries
ONE = 0x1 | 0x4  # one entry, followed by an acknowledgement
_PLAIN = 0x1  # one entry, or an error
_ERROR, _DONE = 2, 3


def ask(protocol: int, kind: int, request: bytes) -> bytes:
    """The body of the one message that answers. Raises OSError as `dump` does, ENOENT if there is no such entry."""
    with contextlib.closing(dump(protocol, kind, request, _PLAIN)) as answers:
        for body in answers:
            return body
    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def dump(protocol: int, kind: int, request: bytes, flags: int = DUMP) -> Generator[bytes, None, None]:
    """The body of each message that answers. Raises OSError where there is no netlink, or it may not be used."""
    family = getattr(socket, "AF_NETLINK", None)
    if family is None:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
        sock.settimeout(5)  # the kernel answers at once; an emulated one may not
        sock.send(_HEADER.pack(_HEADER.size + len(request), kind, flags, 1, 0) + request)
        while data := sock.recv(1 << 16):
            at = 0
            while at + _HEADER.size <= len(data):
                length, kind, *_ = _HEADER.unpack_from(data, at)
                body = data[at + _HEADER.size : at + length]
                if kind in (_ERROR, _DONE):
                    number = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                    if number:
                        raise OSError(number, os.strerror(number))
                    return
                yield body
                at += (length + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """What follows the fixed part of a message: number → value."""
    found, at = {}, 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found
