"""The main job as its user has it: a child process with real clients, ended by signal or by time."""

from __future__ import annotations

import io
import json
import os
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
from wire import fill, python, wait_until

import harken
from children import in_namespace, on_terminal
from harken.__main__ import main
from harken._cli import serve as _serve
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
    with serving("127.0.0.1:0", *(["--for", "4"] if WINDOWS else [])) as child:
        line = next_line(child, LISTENING)
        assert "backlog" in line
        assert echoes("127.0.0.1", port_of(line), 100, b"x" * 1000)
        if not WINDOWS:
            child.send_signal(signal.SIGINT)
        assert next_line(child, "accepted 100 connections, echoed 100000 bytes").endswith("0 were open at the end")
        assert child.wait(30) == 0


@needs_ipv6
def test_a_default_address_that_is_taken_is_told(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with harken.listen("[::1]:0") as (held,):
        monkeypatch.setattr("harken._cli.serve.DEFAULT_BINDS", ("127.0.0.1:0", f"[::1]:{held.port}"))
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


@posix_only
@pytest.mark.parametrize(
    "number", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGXCPU"]
)
def test_whatever_signal_ends_it_removes_the_path(number: str, tmp_path: Path) -> None:
    with serving(f"unix:{tmp_path}/socket") as child:
        next_line(child, LISTENING)
        child.send_signal(getattr(signal, number))
        assert "accepted 0 connections" in next_line(child, "accepted")
        assert child.wait(30) == 0
    assert list(tmp_path.iterdir()) == []


@posix_only
def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As nohup(1) has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with serving(f"unix:{tmp_path}/socket") as child:
            next_line(child, LISTENING)
            child.send_signal(signal.SIGHUP)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(f"{tmp_path}/socket")
                client.sendall(b"still there")
                assert client.recv(11) == b"still there"
            child.terminate()
            assert child.wait(30) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@posix_only
def test_a_signal_during_the_start_leaves_no_path(tmp_path: Path) -> None:
    """It comes as soon as the path is there, with whatever the server does then."""
    for turn in range(4):
        path = tmp_path / str(turn)
        with serving(f"unix:{path}") as child:
            wait_until(path.exists)
            child.terminate()
            assert child.wait(30) in (0, 128 + signal.SIGTERM)
    assert list(tmp_path.iterdir()) == []


@posix_only
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_signal_ends_the_opening_of_listeners(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``before``: while it takes long. ``after``: when the listeners are there and nobody serves yet."""

    def opening(*binds: str, **options: Any) -> harken.Listeners:
        if moment == "before":
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("goes on")
        return harken.listen(*binds, **options)

    class Signalled(_serve.Report):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("harken._cli.serve.listen", opening)
    if moment == "after":
        monkeypatch.setattr("harken._cli.serve.Report", Signalled)
    code = main(["serve", f"unix:{tmp_path}/socket"])
    assert code == (128 + signal.SIGTERM if moment == "before" else 0)
    assert list(tmp_path.iterdir()) == []


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


def serves_and_ends(child: subprocess.Popen[bytes], port: int) -> None:
    """It serves for as long as it lives, and SIGTERM ends it, whoever reads what it tells."""
    try:
        for _ in range(100):
            assert echoes("127.0.0.1", port, 10, b"still there")
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), timeout=30)
    finally:
        child.kill()
        child.wait(20)


def command(port: int, *more: str) -> list[str]:
    return [sys.executable, "-m", "harken", "serve", f"127.0.0.1:{port}", "--every", "0.001", *more]


def wait_for_listener(child: subprocess.Popen[bytes], port: int) -> None:
    def listens() -> bool:
        assert child.poll() is None, "it has ended"
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listens)


@pytest.fixture
def tcp_port() -> int:
    """One that nobody is given meanwhile, if the machine is not busy."""
    with harken.listen(f"127.0.0.1:{20000 + os.getpid() * 41 % 9000}-29999") as (free,):
        return free.port


@posix_only
@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("shared", [False, True], ids=["blocking", "non-blocking"])
def test_a_pipe_that_is_full_stops_nobody(as_json: bool, shared: bool) -> None:
    """Read once, and never again."""
    ours, theirs = os.pipe()
    if shared:
        os.set_blocking(theirs, False)
    more = ["--json"] if as_json else []
    try:
        child = subprocess.Popen(command(0, *more), stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
        line = os.read(ours, 4096).splitlines()[0].decode()
        port = port_of(f"{LISTENING}{json.loads(line)['url']},") if as_json else port_of(line)
        os.set_blocking(theirs, False)
        try:
            while True:
                os.write(theirs, b"x" * 4096)
        except BlockingIOError:
            os.set_blocking(theirs, shared is False)
        serves_and_ends(child, port)
    finally:
        os.close(ours)
        os.close(theirs)


@posix_only
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "</dev/null >/dev/full 2>&1"])
def test_a_stream_that_is_closed_or_full_stops_nobody(closed: str, tcp_port: int) -> None:
    if "full" in closed and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    child = subprocess.Popen(["sh", "-c", f'exec "$@" {closed}', "sh", *command(tcp_port)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout:
        wait_for_listener(child, tcp_port)
        serves_and_ends(child, tcp_port)


@posix_only
@pytest.mark.parametrize("as_json", [True, False])
def test_a_terminal_that_is_stopped_stops_nobody(as_json: bool, tcp_port: int) -> None:
    import pty
    import termios

    ours, theirs = pty.openpty()
    termios.tcflow(theirs, termios.TCOOFF)  # type: ignore[attr-defined,unused-ignore]
    more = ["--json"] if as_json else []
    try:
        child = subprocess.Popen(command(tcp_port, *more), stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
        wait_for_listener(child, tcp_port)
        serves_and_ends(child, tcp_port)
    finally:
        os.close(theirs)
        os.close(ours)


@posix_only
@pytest.mark.parametrize("arguments", [["who", "{port}"], ["check", "127.0.0.1:0"], ["check", "127.0.0.1:{port}"]])
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-", "2>&-"])
def test_a_stream_that_is_closed_changes_no_answer(closed: str, arguments: list[str]) -> None:
    with harken.listen("127.0.0.1:0") as (held,):
        filled = [one.format(port=held.port) for one in arguments]
        run = [sys.executable, "-m", "harken", *filled]
        plain = subprocess.run(run, capture_output=True, text=True, timeout=30, check=False)
        shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *run]
        result = subprocess.run(shell, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == plain.returncode
    assert result.stdout == ("" if ">&-" in closed.replace("2>&-", "") else plain.stdout)
    assert result.stderr == ("" if "2>&-" in closed else plain.stderr)


@linux_only
@pytest.mark.parametrize("command", ["who", "check"])
def test_what_cannot_be_written_is_told(command: str) -> None:
    with harken.listen("127.0.0.1:0") as (held,), open("/dev/full", "w") as full:
        run = [sys.executable, "-m", "harken", command, str(held.port)]
        result = subprocess.run(run, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("harken: cannot write to stdout: [Errno 28]")
    assert result.stderr.count("\n") == 1


@posix_only
@pytest.mark.parametrize("command", ["who", "check"])
def test_who_reads_no_further_is_no_error(command: str) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with harken.listen("127.0.0.1:0") as (held,):
        run = [sys.executable, "-m", "harken", command, str(held.port)]
        result = subprocess.run(run, stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    os.close(theirs)
    assert (result.returncode, result.stderr) == (1, "")


def test_a_closed_stream_does_not_give_its_number_to_a_socket() -> None:
    code = """
import os, sys
sys.stdout = None
os.close(1)
import harken.__main__ as main
main._plug()
import harken
with harken.listen("127.0.0.1:0") as (listener,):
    assert listener.fileno() > 2, listener.fileno()
"""
    python(code)


# ---------------------------------------------------------------------- what is told


def told(report: _serve.Report, out: io.StringIO) -> list[str]:
    report._out.close()
    return out.getvalue().splitlines()


def test_trouble_is_told_once_in_a_period(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("harken._cli.serve.time.monotonic", lambda: now[0])
    out = io.StringIO()
    report = _serve.Report(out, as_json=False, every=5)
    with harken.listen("127.0.0.1:0") as (listener,):
        url = str(listener)
        for seconds in (0.0, 0.1, 4.9, 5.1, 5.2, 10.0, 10.3):
            now[0] = 100 + seconds
            report.trouble(listener, OSError(24, "Too many open files"))
            report.failed(None, {"message": "it failed", "exception": LookupError()})
        lines = told(report, out)
    assert lines == [f"{url}: Too many open files; trying again"] * 3


def test_figures_are_left_out_where_nobody_reads_and_the_summary_is_not() -> None:
    class Slow(io.StringIO):
        go_on = threading.Event()

        def write(self, text: str) -> int:
            self.go_on.wait(30)
            return super().write(text)

    out = Slow()
    report = _serve.Report(out, as_json=True, every=5)
    for count in range(10_000):
        report.figures(count, count, 0, 0)
    assert len(report._out._waiting) <= _serve.MOST_WAITING + 1
    out.go_on.set()
    report.summary(7, 0, 0, 1)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    counts = [line["open"] for line in lines[:-1]]
    assert counts[:101] == list(range(101))  # the oldest, in their order; one more where the first was taken late
    assert len(counts) <= 102
    assert (lines[-1]["event"], lines[-1]["accepted"]) == ("summary", 7)


def test_what_was_left_out_is_told_as_a_person_writes_it() -> None:
    out = io.StringIO()
    report = _serve.Report(out, as_json=False, every=5)
    for address in (("::", 8080, 0, 0), ("127.0.0.1", 80), "mptcp://127.0.0.1:80"):
        report.left_out(address, OSError(97, "not here"))
    assert told(report, out) == [
        "left out [::]:8080: not here", "left out 127.0.0.1:80: not here", "left out mptcp://127.0.0.1:80: not here",
    ]  # fmt: skip


# ---------------------------------------------------------------------- its parts


def test_the_signal_handlers_are_put_back() -> None:
    def mine(*_: object) -> None:
        pass

    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGBREAK] if sys.platform == "win32" else [])]
    before = [signal.signal(number, mine) for number in numbers]
    try:
        assert main(["serve", "127.0.0.1:0", "--for", "0.01"]) == 0
        assert [signal.getsignal(number) for number in numbers] == [mine] * len(numbers)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_accepting_that_fails_pauses_each_time() -> None:
    """It does not spin: between two attempts it waits for the end, for a moment."""

    class Ended:
        waits = 0

        def is_set(self) -> bool:
            return self.waits == 5

        def wait(self, seconds: float) -> None:
            assert seconds == _serve.PAUSE
            self.waits += 1

    class Failing:
        attempts = 0

        def accept_many(self) -> None:
            self.attempts += 1
            raise OSError(24, "Too many open files")

    class Loop:
        troubles = 0

        def call_soon_threadsafe(self, *_: object) -> None:
            self.troubles += 1

    out = io.StringIO()
    server = _serve.Server(harken.Listeners(()), _serve.Report(out, as_json=False, every=5))
    server._ended, failing, loop = Ended(), Failing(), Loop()  # type: ignore[assignment]
    server._accept(failing, loop)  # type: ignore[arg-type]
    server.report._out.close()
    assert (failing.attempts, server._ended.waits, loop.troubles) == (6, 5, 5)  # type: ignore[attr-defined]


@linux_only
def test_without_descriptors_it_waits_and_says_so_and_goes_on() -> None:
    run = 'ulimit -n 32; exec "$@"'
    child = subprocess.Popen(
        ["sh", "-c", run, "sh", sys.executable, "-m", "harken", "serve", "127.0.0.1:0", "--every", "60"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        port = port_of(next_line(child, LISTENING))
        clients = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(40)]
        next_line(child, "trying again")
        for client in clients:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            client.close()
        child.send_signal(signal.SIGTERM)
        assert child.stdout is not None
        rest = child.stdout.read()
        assert "trying again" not in rest  # once in a period
        assert "accepted 40 connections" in rest
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.communicate()


def test_a_client_that_never_reads_is_not_read_from() -> None:
    with serving("127.0.0.1:0") as child:
        port = port_of(next_line(child, LISTENING))
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            taken = fill(client)  # until nothing goes any more, which is what this is about
            assert taken < 200_000_000
            client.setblocking(True)
            client.settimeout(30)
            assert len(client.recv(1000)) == 1000  # and then it goes on


@linux_only
def test_a_machine_without_ipv6_has_its_ipv4_loopback_by_default() -> None:
    setup = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.lo.disable_ipv6=1"
    run = in_namespace([sys.executable, "-m", "harken", "serve", "--for", "0.01"], setup)
    shown = subprocess.run(run, capture_output=True, text=True, timeout=50, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.splitlines()[0].startswith("listening on tcp://127.0.0.1:27015")
    assert "[::1]" not in shown.stdout


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


@pytest.mark.needs_tcp_info
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


@pytest.mark.needs_tcp_info
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
