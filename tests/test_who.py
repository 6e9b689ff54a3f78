"""``python -m harken who``: to a person, to a program, and by its exit code."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import harken
from children import needs_root, needs_table, on_terminal, run, running, server
from harken import Holder
from harken.__main__ import main
from harken._cli import who as _who
from harken._diagnosis import holders as _holders
from machine import linux_only


@pytest.mark.needs_sock_diag
@needs_table
def test_columns_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    with running(server()) as child:
        assert main(["who", f"127.0.0.1:{child['port']}"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    pid, user, state, address, name, command = line.split("\t")
    assert (int(pid), state, address) == (child["pid"], "listening", f"127.0.0.1:{child['port']}")
    assert user
    assert "python" in name.lower()
    assert "\\n" in command  # whole, on one line


@pytest.mark.needs_sock_diag
@needs_table
def test_json_for_a_program() -> None:
    with running(server()) as child:
        command = [sys.executable, "-m", "harken", "who", "--json", f"127.0.0.1:{child['port']}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    (fact,) = map(json.loads, done.stdout.splitlines())
    assert list(fact) == ["pid", "name", "user", "command", "address", "state", "interface"]
    assert (fact["pid"], fact["address"], fact["state"]) == (child["pid"], ["127.0.0.1", child["port"]], "listening")


@pytest.mark.needs_sock_diag
@linux_only
def test_a_table_for_a_person() -> None:
    with running(server()) as child:
        code, shown = on_terminal(["who", f"127.0.0.1:{child['port']}"], columns=90)
    assert code == 0
    headings, line = shown.splitlines()
    assert headings.split() == ["PID", "USER", "STATE", "ADDRESS", "NAME", "COMMAND"]
    assert re.match(rf"{child['pid']} +\S+ +listening +127\.0\.0\.1:{child['port']} +python", line)
    assert len(line) == 90
    assert line.endswith("...")
    assert headings.index("STATE") == line.index("listening")


@needs_table
def test_nobody_has_an_exit_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with harken.listen("127.0.0.1:0") as listeners:
        port = listeners.port
    assert main(["who", f"127.0.0.1:{port}"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"harken: no process holds 127.0.0.1:{port}\n"
    assert main(["who", "--json", f"127.0.0.1:{port}"]) == 1
    assert capsys.readouterr().out == ""
    with harken.listen("127.0.0.1:0") as listeners:
        assert main(["who", f"127.0.0.1:{port}", str(listeners.port)]) == 0


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["0"], ["127.0.0.1:70000"], ["--yaml", "80"]])
def test_a_mistake_has_an_exit_code_of_its_own(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: Any = main(["who", *arguments])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert capsys.readouterr().err


def test_not_knowing_has_an_exit_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unavailable(_: int) -> Any:
        raise ImportError

    for name in ("by_sock_diag", "by_proc", "by_psutil"):
        monkeypatch.setattr(_holders, name, unavailable)
    assert main(["who", "8080"]) == 3
    assert "pip install 'harken[psutil]'" in capsys.readouterr().err


def test_what_may_not_be_seen_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    hidden = Holder(None, "", "www", "", ("::", 80, 0, 0), "listening")
    monkeypatch.setattr(_who, "holders", lambda _: [hidden])
    assert main(["who", "80"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "-\twww\tlistening\t[::]:80\t-\t-\n"
    assert "cannot inspect all processes" in shown.err


def test_connections_that_ended_are_shown_and_are_nobodys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = Holder(None, "", None, "", ("127.0.0.1", 80), "time-wait")
    monkeypatch.setattr(_who, "holders", lambda _: [ended])
    assert main(["who", "80"]) == 1
    assert capsys.readouterr().out == "-\t-\ttime-wait\t127.0.0.1:80\t-\t-\n"


@pytest.mark.needs_socket_options
@linux_only
@needs_root
def test_the_interface_is_shown() -> None:
    told = run(
        """
        import contextlib, io, harken
        from harken.__main__ import main
        with harken.listen("0.0.0.0:8080?interface=lo"):
            shown = {}
            for bind in ("127.0.0.1:8080", ":8080?interface=lo", "127.0.0.1:8080?interface=va"):
                for options in ([], ["--json"]):
                    out = io.StringIO()
                    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
                        code = main(["who", *options, bind])
                    shown[" ".join([bind, *options])] = [code, out.getvalue()]
        tell(shown=shown)
    """,
        setup="ip link add va type veth peer name vb",
    )["shown"]
    for bind in ("127.0.0.1:8080", ":8080?interface=lo"):
        assert told[bind][1].split("\t")[3] == "0.0.0.0:8080?interface=lo"
        assert json.loads(told[f"{bind} --json"][1])["interface"] == "lo"
    assert told["127.0.0.1:8080?interface=va"] == [1, ""]


@linux_only
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_the_terminal_cannot_show_is_shown_all_the_same(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and command lines are other people's, and what is added to them is ASCII."""
    path = tmp_path / ("b\u00fcro\u2026\udcff" + "x" * 60)
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.path.relpath(path))
        sock.listen()
        binds = [["who", f"unix:{path}"], ["who", "--json", f"unix:{path}"], ["check", f"unix:{path}"]]
        for arguments in (*binds, ["check", "x,y"]):
            command = [sys.executable, "-m", "harken", *arguments]
            child = subprocess.run(
                command, env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True, timeout=50, check=False
            )
            assert b"Traceback" not in child.stderr
            assert child.returncode in (0, 1, 2), child.stderr
            child.stdout.decode(encoding)
