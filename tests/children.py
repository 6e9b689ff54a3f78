"""Programs in child processes: ones that hold an address, and ones that fail to get it, as another user or in a network
of their own. A program tells what it has to tell with ``tell(**facts)``."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest

from machine import LINUX, WINE

PREAMBLE = """
import json, os, socket, subprocess, sys

def tell(**facts):
    print(json.dumps(facts), flush=True)

def wait():
    "Until the test has seen enough."
    sys.stdin.read()

def become(uid):
    "Another user; one who may look into his own processes, as he may after exec()."
    import ctypes, dataclasses, encodings.idna, importlib, pwd, resource, shlex
    import harken._hints, harken._holders
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)

def attempt(*binds, **options):
    "Listens, and tells what came of it."
    import harken
    try:
        harken.listen(*binds, **options).close()
        tell(step=None)
    except harken.ListenError as error:
        finding = {}
        if isinstance(error, harken.AddressInUseError):
            finding = {"cause": error.cause, "holders": [[one.pid, one.user, one.state] for one in error.holders]}
        kinds = [kind.__name__ for kind in type(error).__mro__]
        tell(step=error.step, number=error.errno, kinds=kinds, hint=error.hint, text=str(error), **finding)
"""

NOBODY = 65534

HAS_PSUTIL = importlib.util.find_spec("psutil") is not None and not WINE  # whose table names no process
needs_table = pytest.mark.skipif(
    not (LINUX or HAS_PSUTIL), reason="who has an address is told by Linux, or by psutil, which is not installed"
)
needs_psutil = pytest.mark.skipif(not HAS_PSUTIL, reason="psutil is not installed")
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user"
)


def _command(program: str, namespace: bool) -> list[str]:
    code = PREAMBLE + textwrap.dedent(program)
    command = [sys.executable, "-W", "ignore::ResourceWarning", "-c", code]
    if namespace:
        command = [*_unshare(), "sh", "-c", 'ip link set lo up; exec "$@"', "sh", *command]
    return command


def _unshare() -> list[str]:
    return ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-Urn"]  # type: ignore[attr-defined,unused-ignore]


@cache
def _can_unshare() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return (
        subprocess.run([*_unshare(), "ip", "link", "set", "lo", "up"], capture_output=True, check=False).returncode == 0
    )


def run(program: str, *, namespace: bool = False) -> dict[str, Any]:
    """Runs a program to its end, and gives all that it told. ``namespace``: in a network with only a loopback."""
    if namespace and not _can_unshare():
        pytest.skip("network namespaces cannot be made here (needs Linux, unshare, ip and the right to use them)")
    child = subprocess.run(
        _command(program, namespace), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50, check=False
    )
    assert child.returncode == 0, child.stderr
    assert child.stderr == ""
    told: dict[str, Any] = {}
    for line in child.stdout.splitlines():
        told |= json.loads(line)
    return told


@contextmanager
def running(program: str, *, session: bool = False) -> Iterator[dict[str, Any]]:
    """Runs a program that waits, and gives what it told first, with its ``pid``. ``session``: it leads one."""
    child = subprocess.Popen(
        _command(program, namespace=False),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=session,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        yield {"pid": child.pid} | json.loads(child.stdout.readline())
    finally:
        child.stdin.close()
        child.stdout.close()
        child.wait(30)


_SERVER = """
    {first}
    family = socket.AF_INET6 if ":" in "{host}" else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    if family == socket.AF_INET6 and {v6only} is not None:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, {v6only})
    sock.bind(("{host}", {port}))
    if {listens}:
        sock.listen()
    tell(port=sock.getsockname()[1])
    wait()
"""


def server(
    host: str = "127.0.0.1", *, port: int = 0, listens: bool = True, v6only: int | None = None, first: str = ""
) -> str:
    """A program that holds an address until the test has seen enough."""
    return _SERVER.format(host=host, port=port, listens=listens, v6only=v6only, first=first)
