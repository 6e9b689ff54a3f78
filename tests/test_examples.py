"""The programs in examples/ run as they are, with real clients on the other end."""

from __future__ import annotations

import runpy
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import harken
from machine import HAS_IPV6

EXAMPLES = Path(__file__).parent.parent / "examples"


@contextmanager
def running(name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-u", str(EXAMPLES / name), *arguments]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.communicate(timeout=30)


def first_line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def test_the_documents_server_serves_its_client() -> None:
    with running("winsock_server.py", "0") as child:
        port = int(first_line(child).removeprefix("listening on port "))
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(b"this is a test")
            assert client.recv(512) == b"this is a test"
            client.shutdown(socket.SHUT_WR)
            assert client.recv(512) == b""
        out, _ = child.communicate(timeout=30)
        assert out.splitlines() == ["bytes received: 14", "bytes sent: 14", "connection closing..."]
        assert child.returncode == 0


@pytest.mark.parametrize(
    ("port", "said"), [("no-such-service", "getaddrinfo failed: "), ("in use", "bind failed with error: ")]
)
def test_the_documents_server_says_which_step_failed(port: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(EXAMPLES / "winsock_server.py"))["main"]
    with harken.listen("tcp4://*:0") as taken:
        assert main(str(taken.port) if port == "in use" else port) == 1
    assert capsys.readouterr().out.startswith(said)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("Socket", "error at socket(): "),
        ("listen", "listen failed with error: "),
        ("accept", "accept failed with error: "),
    ],
)
def test_the_documents_server_undoes_what_it_did_when_a_later_step_fails(
    step: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(f"{step} was made to fail")

    if step == "Socket":
        monkeypatch.setattr(harken, "Socket", fail)
    else:
        broken = type("Broken", (harken.Socket,), {step: fail})
        monkeypatch.setattr(harken, "Socket", broken)
    main = runpy.run_path(str(EXAMPLES / "winsock_server.py"))["main"]
    assert main("0") == 1
    assert said in capsys.readouterr().out


def test_one_call_serves_every_family() -> None:
    with running("one_call.py", ":0") as child:
        port = int(first_line(child).partition(",")[0].rpartition(":")[2])
        for host in ["127.0.0.1", *(["::1"] if HAS_IPV6 else [])]:
            with socket.create_connection((host, port), timeout=30) as client:
                client.sendall(b"hello")
                assert client.recv(100) == b"hello"
