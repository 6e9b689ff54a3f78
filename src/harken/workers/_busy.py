"""Connections of a process, seen from outside: Linux tells of them by sock_diag(7), and whose they are by /proc."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable

from .._diagnosis import netlink
from .._system import IPPROTO_TCP

_ESTABLISHED = 1 << 1
_INFO = 2  # INET_DIAG_INFO
_LAST_SENT, _LAST_RECEIVED, _RECEIVED = 44, 52, 128  # in struct tcp_info; milliseconds ago, and bytes


def connections(process: int, places: Iterable[tuple[int, int]]) -> tuple[int, int] | None:
    """How many connections this process has, with the processes that it has started, and how many of them still want
    something: bytes that it has not read, or that the client has not got; a client that has not been heard yet, or was
    heard after the last answer. ``places`` are families and ports. None where it cannot be told."""
    try:
        mine = _sockets(process)
        found = busy = 0
        for family, port in places:
            request = struct.pack("=BBBxI", family, IPPROTO_TCP, 1 << (_INFO - 1), _ESTABLISHED)
            request += struct.pack("!HH", port, 0) + bytes(36) + b"\xff" * 8
            for body in netlink.dump(netlink.SOCK_DIAG, netlink.DIAG_BY_FAMILY, request):
                _, unread, unsent, _, inode = struct.unpack_from("=IIIII", body, 52)
                if inode in mine:
                    info = netlink.attributes(body[72:]).get(_INFO, b"")
                    found += 1
                    busy += bool(unread or unsent or _is_owed(info))
    except (OSError, struct.error):
        return None
    return found, busy


def _is_owed(info: bytes) -> bool:
    if len(info) < _RECEIVED + 8:
        return False
    sent, heard = struct.unpack_from("=I", info, _LAST_SENT)[0], struct.unpack_from("=I", info, _LAST_RECEIVED)[0]
    return bool(heard < sent or not struct.unpack_from("=Q", info, _RECEIVED)[0])


def _sockets(process: int) -> set[int]:
    found = set()
    for one in _family(process):
        for name in os.listdir(f"/proc/{one}/fd"):
            try:
                what = os.readlink(f"/proc/{one}/fd/{name}")
            except OSError:
                continue  # closed meanwhile
            if what.startswith("socket:["):
                found.add(int(what[8:-1]))
    return found


def _family(process: int) -> list[int]:
    found = [process]
    for one in found:
        try:
            with open(f"/proc/{one}/task/{one}/children", encoding="ascii") as file:
                found += [int(child) for child in file.read().split()]
        except OSError:
            continue  # ended meanwhile, or a kernel without this file
    return found
