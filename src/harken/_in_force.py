"""Options that the system accepted without an error, and that do less than was asked for, or nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ._system import FASTOPEN_MOST

if TYPE_CHECKING:
    from ._options import Options


def shortfalls(options: Options, granted: Callable[[str], object]) -> Iterator[tuple[str, str]]:
    """Names of options that are not in force, each with the text of the warning. ``granted`` returns the value that the
    system has now, or None if it is unknown, as before there is a socket; then the system's settings decide."""
    for name, words in _RULES.items():
        asked = getattr(options, name)
        if asked is not None:
            told = granted(name)
            text = words(asked, told if isinstance(told, int) else None)
            if text:
                yield name, text


def _buffer(name: str, setting: str) -> Callable[[int, int | None], str]:
    def words(asked: int, told: int | None) -> str:
        most = _number(f"/proc/sys/net/core/{setting}")
        if most is not None and asked <= most:
            return ""  # and it is smaller only where configure= has made it so
        has = most if told is None else told
        if has is None or has >= asked:
            return ""
        if most is None:
            return f"{name}={asked} was asked for, and the system grants {has}"
        return (
            f"{name}={asked} was asked for, and net.core.{setting} grants {has}: raise it"
            f" (sysctl -w net.core.{setting}={asked}, and in /etc/sysctl.d to stay)"
        )

    return words


def _fastopen(asked: int, told: int | None) -> str:
    if asked == 0:
        return ""
    mode = _number("/proc/sys/net/ipv4/tcp_fastopen")
    if mode is not None and not mode & 2:
        return (
            f"fastopen={asked} does nothing: net.ipv4.tcp_fastopen is {mode}, and has no 2 in it, which is for servers"
            f" (sysctl -w net.ipv4.tcp_fastopen={mode | 3}, and in /etc/sysctl.d to stay)"
        )
    most = min(FASTOPEN_MOST, _number("/proc/sys/net/core/somaxconn") or asked)
    has = most if told is None else told
    if has < min(asked, FASTOPEN_MOST):
        return (
            f"fastopen={asked} was asked for, and net.core.somaxconn grants {has}: raise it"
            f" (sysctl -w net.core.somaxconn={asked}, and in /etc/sysctl.d to stay)"
        )
    return ""


def _defer_accept(asked: int, told: int | None) -> str:
    if told is None or told >= asked:
        return ""
    return f"defer_accept={asked} was asked for, and {told} seconds are the longest that the system waits"


def _tos(asked: int, told: int | None) -> str:
    if asked & 3 and told is not None and told != asked and told == asked & ~3:
        return f"tos={asked} was asked for, and TCP sends {told}: the lower two bits are for ECN, and the system's own"
    return ""


def _incoming_cpu(asked: int, _: int | None) -> str:
    count = os.cpu_count()
    try:
        with open("/sys/devices/system/cpu/possible") as file:  # as 0-7; more may be plugged in
            count = int(file.read().rpartition("-")[2].rpartition(",")[2]) + 1
    except (OSError, ValueError):
        pass
    if count is not None and asked >= count:
        return f"incoming_cpu={asked} does nothing: this machine has the CPUs 0 to {count - 1}"
    return ""


_RULES: dict[str, Callable[[int, int | None], str]] = {
    "rcvbuf": _buffer("rcvbuf", "rmem_max"),
    "sndbuf": _buffer("sndbuf", "wmem_max"),
    "fastopen": _fastopen,
    "defer_accept": _defer_accept,
    "tos": _tos,
    "incoming_cpu": _incoming_cpu,
}


def _number(path: str) -> int | None:
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return None
