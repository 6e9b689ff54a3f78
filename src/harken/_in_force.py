"""Options that the system accepts without an error and then does not put in force, or only in part.

A rule is given the value that was asked for, and the one that the system reports, or None where that is unknown, as
before there is a socket; then the system's settings decide. It returns the text of the warning, or "". The rows of
`_option_table` name the rules.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from ._system import FASTOPEN_MOST, HAS_PROC


def buffer(name: str, setting: str) -> Callable[[int, int | None], str]:
    def words(asked: int, granted: int | None) -> str:
        most = _number(f"/proc/sys/net/core/{setting}")
        if most is not None and asked <= most:
            return ""  # and it is smaller only where configure= has made it so
        has = most if granted is None else granted
        if has is None or has >= asked:
            return ""
        if most is None:
            return f"{name}={asked} was asked for, and the system grants {has}"
        return (
            f"{name}={asked} was asked for, and net.core.{setting} grants {has}: raise it"
            f" (sysctl -w net.core.{setting}={asked}, and in /etc/sysctl.d to stay)"
        )

    return words


def fastopen(asked: int, granted: int | None) -> str:
    if asked == 0:
        return ""
    mode = _number("/proc/sys/net/ipv4/tcp_fastopen")
    if mode is not None and not mode & 2:
        return (
            f"fastopen={asked} does nothing: net.ipv4.tcp_fastopen is {mode}, and has no 2 in it, which is for servers"
            f" (sysctl -w net.ipv4.tcp_fastopen={mode | 3}, and in /etc/sysctl.d to stay)"
        )
    most = min(FASTOPEN_MOST, _number("/proc/sys/net/core/somaxconn") or asked)
    has = most if granted is None else granted
    if has < min(asked, FASTOPEN_MOST):
        return (
            f"fastopen={asked} was asked for, and net.core.somaxconn grants {has}: raise it"
            f" (sysctl -w net.core.somaxconn={asked}, and in /etc/sysctl.d to stay)"
        )
    return ""


def defer_accept(asked: int, granted: int | None) -> str:
    if granted is None or granted >= asked:
        return ""
    return f"defer_accept={asked} was asked for, and {granted} seconds are the longest that the system waits"


def tos(asked: int, granted: int | None) -> str:
    if asked & 3 and granted is not None and granted != asked and granted == asked & ~3:
        return (
            f"tos={asked} was asked for, and TCP sends {granted}: the lower two bits are for ECN, and the system's own"
        )
    return ""


def incoming_cpu(asked: int, _: int | None) -> str:
    count = os.cpu_count()
    try:
        with open("/sys/devices/system/cpu/possible") as file:  # as 0-7; more may be plugged in
            count = int(file.read().rpartition("-")[2].rpartition(",")[2]) + 1
    except (OSError, ValueError):
        pass
    if count is not None and asked >= count:
        return f"incoming_cpu={asked} does nothing: this machine has the CPUs 0 to {count - 1}"
    return ""


def _number(path: str) -> int | None:
    if not HAS_PROC:
        return None
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return None
