"""What the machine under the tests is and has: asked once, so that the tests read the same everywhere."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys

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
HAS_IPV6 = _can_bind(socket.AF_INET6, "::1")
LOOPBACKS = ["127.0.0.1", *(["::1"] if HAS_IPV6 else [])]

needs_ipv6 = pytest.mark.skipif(not HAS_IPV6, reason="this machine has no ::1")
posix_only = pytest.mark.skipif(WINDOWS, reason="BSD sockets only")
windows_only = pytest.mark.skipif(not WINDOWS, reason="Winsock only")
linux_only = pytest.mark.skipif(not LINUX, reason="Linux only")


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
