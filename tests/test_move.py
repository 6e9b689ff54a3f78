"""A handle moves between objects: at every moment it has one owner, whatever comes between."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

import harken
from harken._socket import empty, move


def child(program: str, *arguments: str) -> list[str]:
    """What the program printed; it runs on its own, since an audit hook stays for ever."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split("\n")[:-1]


HOOK = """
import os, signal, sys, threading
import harken
[listener] = harken.listen("127.0.0.1:0")
handle, what = listener.fileno(), sys.argv[1]
def hook(event, arguments):
    if event == "socket.__new__":
        if "thread" in what:
            closer = threading.Thread(target=listener.close)
            closer.start()
            closer.join()
        elif "signal" in what:
            signal.raise_signal(signal.SIGUSR1)
            for _ in range(100):  # here the handler runs
                pass
        elif "close" in what:
            listener.close()
        if "raise" in what:
            raise KeyboardInterrupt
if hasattr(signal, "SIGUSR1"):
    signal.signal(signal.SIGUSR1, lambda *_: listener.close())
sys.addaudithook(hook)
made = []
try:
    made.append(listener.to_socket())
except KeyboardInterrupt:
    print("raised")
try:
    os.fstat(handle)
except OSError:
    print("closed")
print(listener.fileno() == handle, [one.fileno() == handle for one in made])
for one in made:
    one.close()
listener.close()
"""


@pytest.mark.skipif(os.name == "nt", reason="fstat() knows no sockets there")
@pytest.mark.parametrize(
    ("what", "outcome"),
    [
        ("nothing", ["False [True]"]),
        ("close", ["False [True]"]),
        ("close in a thread", ["False [True]"]),
        ("close in a signal handler", ["False [True]"]),
        ("raise", ["raised", "True []"]),
        ("close and raise", ["raised", "closed", "False []"]),
        ("close in a thread and raise", ["raised", "closed", "False []"]),
    ],
)
def test_an_audit_hook_that_closes_the_object_under_to_socket(what: str, outcome: list[str]) -> None:
    assert child(HOOK, what) == outcome


class Named(socket.socket):
    __slots__ = ("name",)
    name: str


def test_what_stands_beside_the_handle_is_set_before_it_comes() -> None:
    [listener] = harken.listen("127.0.0.1:0")
    handle, made = listener.fileno(), empty(Named)
    made.name = "a"
    assert (made.fileno(), repr(made)[:5]) == (-1, "<test")
    made.close()  # there is nothing to close
    made = empty(Named)
    with move(listener, made, 1.5) as moved:
        assert moved is made
        assert (made.fileno(), made.gettimeout(), listener.fileno()) == (handle, 1.5, -1)
        with pytest.raises(OSError, match="Bad file descriptor|10038"):
            move(listener, empty(Named), None)
    assert made.fileno() == -1


def test_a_default_timeout_is_not_looked_at() -> None:
    [listener] = harken.listen("127.0.0.1:0")
    socket.setdefaulttimeout(3)
    try:
        with listener.to_socket() as moved:
            assert moved.gettimeout() is None
    finally:
        socket.setdefaulttimeout(None)
