"""What the machine under the tests is and has: asked once, so that the tests read the same everywhere."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import platform
import shutil
import socket
import struct
import sys
from collections.abc import Callable

import pytest

WINDOWS = sys.platform == "win32"
LINUX = sys.platform == "linux"


def _wine_version() -> str | None:
    if not WINDOWS:
        return None
    try:
        function = ctypes.WinDLL("ntdll").wine_get_version  # type: ignore[attr-defined,unused-ignore]
    except AttributeError:
        return None
    function.restype = ctypes.c_char_p
    return str(function().decode())


def _can_bind(family: int, host: str) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.bind((host, 0))
    except OSError:
        return False
    return True


WINE = _wine_version()
EMULATOR = os.environ.get("HARKEN_EMULATOR", "")
"""What runs this Python for another processor: "qemu-user", or nothing. Told, not asked: it hides itself."""

HAS_IPV6 = _can_bind(socket.AF_INET6, "::1")
LOOPBACKS = ["127.0.0.1", *(["::1"] if HAS_IPV6 else [])]

needs_ipv6 = pytest.mark.needs_ipv6
needs_root = pytest.mark.needs_root
posix_only = pytest.mark.posix_only
windows_only = pytest.mark.windows_only
linux_only = pytest.mark.linux_only
HAS_PSUTIL = importlib.util.find_spec("psutil") is not None and not WINE  # whose table names no process


def _tells_of_queues() -> bool:
    """Does TCP_INFO tell of a listener's queue?"""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(5)
        info = listener.getsockopt(socket.IPPROTO_TCP, 11, 64)
    return len(info) >= 32 and struct.unpack_from("=I", info, 28) == (5,)


def _answers_sock_diag() -> bool:
    """Does the kernel answer a question for unix sockets?"""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as netlink:  # type: ignore[attr-defined,unused-ignore]
        question = struct.pack("=IHHIIBBHIIIQ", 40, 20, 0x301, 0, 0, 1, 0, 0, 0, 0, 0, 0)
        netlink.sendall(question.ljust(40, b"\0"))
        return struct.unpack_from("=H", netlink.recv(65536), 4) != (2,)  # an error


def _has_socket_options() -> bool:
    """SO_MARK, SO_INCOMING_CPU, SO_BUSY_POLL, SO_BINDTODEVICE, IP_TRANSPARENT and TCP_CONGESTION."""
    with socket.socket() as sock:
        for level, number in ((1, 36), (1, 49), (1, 46), (1, 25), (0, 19), (6, 13)):
            sock.getsockopt(level, number, 16)
    return True


def _sends_flow_labels() -> bool:
    with socket.socket(socket.AF_INET6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, 33, 1)
    return True


def _linux_has(what: Callable[[], bool]) -> bool:
    """Only Linux is asked: a test that needs this there may do without it elsewhere."""
    try:
        return not LINUX or (not EMULATOR and what())
    except OSError:
        return False


_NEEDS: dict[str, tuple[Callable[[], bool], str]] = {
    "linux_only": (lambda: LINUX, "Linux only"),
    "posix_only": (lambda: not WINDOWS, "BSD sockets only"),
    "windows_only": (lambda: WINDOWS, "Winsock only"),
    "needs_ipv6": (lambda: HAS_IPV6, "this machine has no ::1"),
    "needs_root": (lambda: hasattr(os, "geteuid") and os.geteuid() == 0, "only root can become another user"),
    "needs_table": (
        lambda: LINUX or HAS_PSUTIL,
        "who has an address is told by Linux, or by psutil, which is not installed",
    ),
    "needs_psutil": (lambda: HAS_PSUTIL, "psutil is not installed"),
    "needs_seccomp": (
        lambda: not LINUX or platform.machine() in ("x86_64", "aarch64"),
        "the filter is written for x86-64 and arm64",
    ),
    "needs_strace": (
        lambda: LINUX and shutil.which("strace") is not None,
        "there is no strace to count system calls with",
    ),
    "needs_tcp_info": (lambda: _linux_has(_tells_of_queues), "TCP_INFO does not tell of a listener's queue"),
    "needs_sock_diag": (
        lambda: _linux_has(_answers_sock_diag),
        "there is no sock_diag, which tells who has an address and of unix sockets' queues",
    ),
    "needs_socket_options": (lambda: _linux_has(_has_socket_options), "an option of Linux's sockets is missing"),
    "needs_flow_labels": (lambda: _linux_has(_sends_flow_labels), "IPV6_FLOWINFO_SEND is missing"),
}
"""Each mark that says what a test needs: whether this machine has it, and what is said of a test that is skipped."""


@functools.cache
def lacks(mark: str) -> str:
    """The reason why tests with this mark are skipped here, or nothing."""
    has, reason = _NEEDS.get(mark, (lambda: True, ""))
    return "" if has() else reason


def wine_lacks(what: str) -> pytest.MarkDecorator:
    """The test holds on Windows; Wine differs, as ``what`` says. The end of the run counts these."""
    return pytest.mark.xfail(bool(WINE), reason=f"Wine lacks: {what}", strict=True)


def open_sockets() -> set[str]:
    """The sockets, eventfds and pipes of this process, as Linux names them; elsewhere it cannot be told."""
    found = set()
    with contextlib.suppress(FileNotFoundError):
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/self/fd/{number}")
                if target.startswith(("socket:", "pipe:")) or "eventfd" in target:
                    found.add(f"{number} {target}")
    return found


def bind_text(host: str, port: int = 0) -> str:
    """A host and a port as a bind."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
