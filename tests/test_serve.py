"""The main job as its user has it: a child process with real clients, ended by signal or by time."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import harken
from children import on_terminal
from harken.__main__ import main
from machine import WINDOWS, linux_only, needs_ipv6, posix_only

LISTENING = "listening on "


@contextmanager
def serving(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``python -m harken serve``; whatever the test does, it ends."""
    child = subprocess.Popen(
        [sys.executable, "-m", "harken", "serve", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        creationflags=subprocess.CREATE_NEW_PROCESS_GROUP if sys.platform == "win32" else 0,
    )  # fmt: skip
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.communicate(timeout=30)


def next_line(child: subprocess.Popen[str], containing: str) -> str:
    assert child.stdout is not None
    for line in child.stdout:
        if containing in line:
            return line.strip()
    pytest.fail(f"the server ended without a line with {containing!r}")


def port_of(line: str) -> int:
    return int(line.removeprefix(LISTENING).partition(",")[0].rpartition(":")[2])


def echoes(host: str, port: int, clients: int, data: bytes) -> bool:
    """Do all clients, connected at the same time, get back what they sent?"""
    connections = [socket.create_connection((host, port), timeout=30) for _ in range(clients)]
    try:
        for connection in connections:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        return all(read_all(connection) == data for connection in connections)
    finally:
        for connection in connections:
            connection.close()


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_many_clients_are_echoed_and_the_summary_counts_them() -> None:
    with serving("127.0.0.1:0", "--for", "4") as child:
        line = next_line(child, LISTENING)
        assert "backlog" in line
        assert echoes("127.0.0.1", port_of(line), 100, b"x" * 1000)
        assert next_line(child, "accepted 100 connections, echoed 100000 bytes").endswith("0 were open at the end")
        assert child.wait(30) == 0


@needs_ipv6
def test_a_default_address_that_is_taken_is_told(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with harken.listen("[::1]:0") as (held,):
        monkeypatch.setattr("harken._serve.DEFAULT_BINDS", ("127.0.0.1:0", f"[::1]:{held.port}"))
        assert main(["serve", "--for", "0.01"]) == 1
        assert capsys.readouterr().err.startswith(f"harken: bind([::1]:{held.port}): ")


@needs_ipv6
def test_one_line_for_each_listener_and_every_family_is_served() -> None:
    with serving(":0", "127.0.0.1:0") as child:
        lines = [next_line(child, LISTENING) for _ in range(3)]
        assert port_of(lines[0]) == port_of(lines[1])
        assert "[::]" in lines[1]
        assert echoes("127.0.0.1", port_of(lines[0]), 1, b"four")
        assert echoes("::1", port_of(lines[1]), 1, b"six")
        assert echoes("127.0.0.1", port_of(lines[2]), 1, b"other")


def test_more_than_a_socket_buffer_comes_back_to_a_client_that_reads_late() -> None:
    data = bytes(range(256)) * 40_000
    with serving("127.0.0.1:0") as child:
        port = port_of(next_line(child, LISTENING))
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            sender = threading.Thread(target=client.sendall, args=(data,))
            sender.start()
            received = b""
            while len(received) < len(data):
                received += client.recv(1 << 20)
            sender.join()
        assert received == data


@posix_only
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_it_cleanly_with_clients_open(number: str) -> None:
    with serving("127.0.0.1:0", "[::1]:0") as child:
        port = port_of(next_line(child, LISTENING))
        next_line(child, LISTENING)
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
            child.send_signal(getattr(signal, number))
            assert next_line(child, "accepted 1 connections").endswith("1 were open at the end")
            assert child.wait(30) == 0
            with pytest.raises(OSError, match="refused"):
                socket.create_connection(("127.0.0.1", port), timeout=30)


def test_it_serves_on_when_nobody_reads_what_it_tells() -> None:
    command = [sys.executable, "-m", "harken", "serve", "127.0.0.1:0", "--for", "1", "--every", "0.01"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        port = port_of(child.stdout.readline())
        child.stdout.close()
        assert echoes("127.0.0.1", port, 5, b"still there")
        assert child.stderr.read() == ""
        assert child.wait(30) == 0


def test_for_bounds_it() -> None:
    with serving("127.0.0.1:0", "--for", "0.2") as child:
        assert child.wait(30) == 0


def test_json_lines_tell_the_same_to_a_program() -> None:
    with serving("127.0.0.1:0", "--json", "--for", "0.5", "--every", "0.1", "--backlog", "5") as child:
        out, _ = child.communicate(timeout=30)
    told = [json.loads(line) for line in out.splitlines()]
    assert [fact["event"] for fact in told] == ["listening", "figures", "summary"]
    assert told[0]["url"].startswith("tcp://127.0.0.1:")
    assert told[0]["backlog"] in (5, None)
    assert told[2]["accepted"] == 0


@linux_only
def test_a_terminal_gets_figures_that_change_in_place() -> None:
    code, shown = on_terminal(["serve", "127.0.0.1:0", "--for", "1.5"])
    assert code == 0
    assert "\ropen 0  accepted 0  0/s  queued 0\x1b[K" in shown
    assert "accepted 0 connections" in shown


def test_a_port_in_use_is_said_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with harken.listen("127.0.0.1:0") as taken:
        assert main(["serve", f"127.0.0.1:{taken.port}"]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"harken: bind(127.0.0.1:{taken.port}): ")
        assert error.splitlines()[1].startswith("hint: ")
        assert error.count("\n") == 2


@pytest.mark.parametrize("bind", ["nonsense", "127.0.0.1:70000", "::1:80"])
def test_a_bind_that_cannot_be_read_is_a_mistake_of_the_command_line(
    bind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", bind]) == 2
    assert bind in capsys.readouterr().err


@linux_only
def test_a_backlog_that_is_not_granted_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "127.0.0.1:0", "--backlog", "2147483647", "--for", "0.01"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("harken: a backlog of 2147483647 was asked for, and the system grants ")


def test_usage_errors_and_help_have_their_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [[[], 2], [["serve", "--for", "-1"], 2], [["serve", "--for", "x"], 2]]
    for arguments, code in ([["--help"], 0], [["--version"], 0], *wrong):
        with pytest.raises(SystemExit) as ended:
            main(arguments)  # type: ignore[arg-type]
        assert ended.value.code == code
    assert harken.__version__ in capsys.readouterr().out


def test_the_console_script_is_the_same_program() -> None:
    scripts = Path(sys.executable).parent
    script = scripts / ("harken.exe" if WINDOWS else "harken")
    if not script.exists():
        pytest.skip("harken is not installed beside this interpreter, so it has no console script")
    shown = subprocess.run([script, "--version"], capture_output=True, text=True, check=True, timeout=30)
    assert shown.stdout.strip() == f"harken {harken.__version__}"
