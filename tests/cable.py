"""Two networks, of a server and of its clients, with a cable between them that takes time and loses packets: what
loopback does not show of a handshake. Needs root, Linux and a C compiler."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import select
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from itertools import count
from pathlib import Path

import pytest
from wire import wait_until

import harken
from harken._handshakes import handshakes
from machine import LINUX

_CLONE_NEWNET = 0x40000000
_SIOCETHTOOL = 0x8946
_OFFLOADS = (0x17, 0x19, 0x1F, 0x24, 0x2C)  # checksums, scatter-gather, TSO, GSO, GRO
_numbers = count()

SERVER, CLIENT = {4: "10.77.0.2", 6: "fd77::2"}, {4: "10.77.0.1", 6: "fd77::1"}


class Network:
    """A network namespace."""

    def __init__(self, name: str) -> None:
        self.name = name

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread opens its sockets here, and so do the threads that it starts; where a socket was opened it
        stays."""
        libc = ctypes.CDLL(None, use_errno=True)
        before, here = os.open("/proc/thread-self/ns/net", os.O_RDONLY), os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            assert libc.setns(here, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            yield
        finally:
            assert libc.setns(before, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            os.close(here)
            os.close(before)


class Cable:
    """``server`` and ``client`` are the two networks, with the addresses of ``SERVER`` and ``CLIENT``. ``lost`` is how
    many packets were lost, when the cable is cut."""

    lost = 0

    def __init__(self, server: Network, client: Network) -> None:
        self.server, self.client = server, client


@cache
def lacking() -> str:
    """Why there can be no cable here; empty where there can."""
    if not LINUX or os.geteuid() != 0:
        return "two networks and a cable between them need Linux and root"
    if shutil.which("ip") is None or shutil.which("cc") is None:
        return "two networks and a cable between them need ip(8) and a C compiler"
    name = f"hk{os.getpid()}t"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode != 0:
        return "network namespaces cannot be made here"
    pair = ["ip", "-n", name, "link", "add", "name", "a", "type", "veth", "peer", "name", "b"]
    made = subprocess.run(pair, capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return "" if made.returncode == 0 else "this kernel has no veth"


@cache
def _program() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="harken-cable-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source = Path(__file__).with_name("cable.c")
    subprocess.run(["cc", "-O2", "-o", folder / "cable", source], check=True, capture_output=True, timeout=50)
    return folder / "cable"


@contextlib.contextmanager
def cable(milliseconds: float = 20, percent: float = 0, seed: int = 1) -> Iterator[Cable]:
    """A cable with this delay and loss in each direction."""
    if lacking():
        pytest.skip(lacking())
    prefix = f"hk{os.getpid()}x{next(_numbers)}"
    server, client, between = (Network(prefix + end) for end in "scb")
    with contextlib.ExitStack() as stack:
        for network in (server, client, between):
            _ip("netns", "add", network.name)
            stack.callback(_ip, "netns", "del", network.name)
            _ip("-n", network.name, "link", "set", "lo", "up")
        for network, addresses in ((server, SERVER), (client, CLIENT)):
            end = network.name[-1]
            peer = ("type", "veth", "peer", "name", end, "netns", between.name)
            _ip("link", "add", "name", end, "netns", network.name, *peer)
            _ip("-n", network.name, "addr", "add", f"{addresses[4]}/24", "dev", end)
            _ip("-n", network.name, "addr", "add", f"{addresses[6]}/64", "dev", end, "nodad")
            _ip("-n", network.name, "link", "set", end, "up")
            _ip("-n", between.name, "link", "set", end, "up")
            with network.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                _do_without_offload(sock, end)
        command = [
            "ip",
            "netns",
            "exec",
            between.name,
            _program(),
            "c",
            "s",
            str(milliseconds),
            str(percent),
            str(seed),
        ]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        carrier = stack.enter_context(subprocess.Popen(command, text=True, **pipes))  # type: ignore[call-overload]
        made = Cable(server, client)
        try:
            assert carrier.stdout.readline() == "ready\n"
            _acquaint(client)
            yield made
        finally:
            carrier.stdin.close()
            made.lost = int((carrier.stdout.read().split() or ["0", "0"])[1])
            carrier.wait(10)


STAGES = ("answered", "connected", "queued")
"""Of a handshake: the server has answered the first packet; the client has got the answer, and its own is under way; it
is in the queue."""


@contextlib.contextmanager
def at_stage(made: Cable, stage: str, version: int, listener: harken.Listener) -> Iterator[list[socket.socket]]:
    """Twenty clients whose handshakes have come so far; further, where this process was kept waiting."""

    address, family = (SERVER[version], listener.port), socket.AF_INET6 if version == 6 else socket.AF_INET
    with contextlib.ExitStack() as stack:
        with made.client.inside():
            clients = [stack.enter_context(socket.socket(family)) for _ in range(20)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(address)
        with made.server.inside():
            if stage == "answered":
                wait_until(lambda: len(set(handshakes(listener.port, [family]))) + (listener.stats().queued or 0) >= 20)
            elif stage == "connected":
                wait_until(lambda: len(select.select([], clients, [], 1)[1]) == 20)
            else:
                wait_until(lambda: listener.stats().queued == 20)
        yield clients


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


def _do_without_offload(sock: socket.socket, interface: str) -> None:
    import fcntl  # where there is none, this module is only imported

    for number in _OFFLOADS:
        off = ctypes.create_string_buffer(struct.pack("II", number, 0))
        with contextlib.suppress(OSError):
            fcntl.ioctl(sock, _SIOCETHTOOL, struct.pack("16sQ16x", interface.encode(), ctypes.addressof(off)))


def _acquaint(client: Network) -> None:
    """Until both sides know each other's hardware address: nothing listens there, and that is the answer."""
    with client.inside():
        for family, version in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
            for _ in range(50):
                with socket.socket(family, socket.SOCK_STREAM) as sock:
                    sock.settimeout(0.5)
                    try:
                        sock.connect((SERVER[version], 9))
                    except ConnectionRefusedError:
                        break
                    except OSError:
                        continue
            else:
                raise AssertionError("the cable carries nothing")
