"""What a supervisor and its workers tell each other without a system call: a page of memory that all of them have."""

from __future__ import annotations

import mmap
import struct

from .._group.groups import MOST

_RECORD = struct.Struct("=BBBxHxxI")  # order, ready, asks, acceptors, open connections

SERVE, DRAIN, CLOSE = 0, 1, 2
"""Orders to a worker: go on; tell clients that their connection ends with the answer; accept no more."""


class Board:
    """A record for each worker. Whoever writes a field is the only one."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, MOST * _RECORD.size)  # shared with the children of a fork

    def clear(self, record: int) -> None:
        self._memory[record * _RECORD.size : (record + 1) * _RECORD.size] = bytes(_RECORD.size)

    def order(self, record: int) -> int:
        return self._memory[record * _RECORD.size]

    def give_order(self, record: int, order: int) -> None:
        self._memory[record * _RECORD.size] = order

    def ready(self, record: int) -> bool:
        return self._memory[record * _RECORD.size + 1] != 0

    def tell_ready(self, record: int) -> None:
        self._memory[record * _RECORD.size + 1] = 1

    def asks(self, record: int) -> bool:
        """Does the worker ask whether it is about to end, so that connections that are kept open end?"""
        return self._memory[record * _RECORD.size + 2] != 0

    def tell_asks(self, record: int) -> None:
        self._memory[record * _RECORD.size + 2] = 1

    def accepting(self, record: int) -> int:
        """How many acceptors the worker has."""
        return int(_RECORD.unpack_from(self._memory, record * _RECORD.size)[3])

    def open(self, record: int) -> int:
        """How many connections they have open."""
        return int(_RECORD.unpack_from(self._memory, record * _RECORD.size)[4])

    def tell_open(self, record: int, acceptors: int, open: int) -> None:
        struct.pack_into("=HxxI", self._memory, record * _RECORD.size + 4, acceptors, open)
